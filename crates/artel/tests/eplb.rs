//! `artel eplb` as a user runs it: comparisons, placements, conversions, and what is said when
//! something is wrong.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use artel_moe::eplb::trace::{TraceHeader, TraceReader, TraceShape, TraceWriter};

/// Small enough to be quick: 8 experts on 4 GPUs.
const SMALL: &str = "--layers 2 --experts 8 --top-k 2 --tokens 16 --steps 30 --gpus 4";

fn output(arguments: &str, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_artel"));
    command.arg("eplb").args(arguments.split_whitespace()).args(more).stdin(Stdio::null());
    command.output().expect("artel starts")
}

/// Standard output of a command that must succeed.
fn succeed(arguments: &str, more: &[&str]) -> String {
    let output = output(arguments, more);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments} {more:?} failed: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Standard error of a command that must fail without a panic.
fn fail(arguments: &str, more: &[&str]) -> String {
    let output = output(arguments, more);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && !errors.contains("panicked"), "{arguments}: {errors}");
    errors
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A trace of 30 steps: expert 2 of layer 0 is hot.
fn trace(path: &Path) {
    let shape = TraceShape { layers: 2, experts: 8, top_k: 1, source_ranks: 1 };
    let file = fs::File::create(path).unwrap();
    let mut writer = TraceWriter::new(file, TraceHeader::new(shape, "small").unwrap()).unwrap();
    for step in 0..30 {
        writer.write(step, 0, &[vec![1, 1, 9, 1, 1, 1, 1, 1], vec![2; 8]]).unwrap();
    }
}

#[test]
fn policies_are_compared_drawn_and_saved() {
    let folder = tempfile::tempdir().unwrap();
    let (plots, result) = (folder.path().join("plots"), folder.path().join("r/result.json"));
    let arguments = format!(
        "simulate --synthetic zipf:1.2 {SMALL} --redundant 4 --interval 10 \
         --policy none,greedy,balanced:2+water-fill"
    );
    let more = ["--plot", text(&plots), "--save-result", text(&result)];
    let table = succeed(&arguments, &more);
    let line = |policy: &str| {
        let line = table.lines().find(|line| line.starts_with(&format!("{policy} ")));
        let numbers = line.unwrap_or_else(|| panic!("no {policy} in {table}")).split_whitespace();
        numbers.skip(1).filter_map(|word| word.parse().ok()).collect::<Vec<f64>>()
    };
    assert!(line("none")[0] > line("greedy")[0], "{table}");
    assert!(line("greedy")[0] > line("balanced:2+water-fill")[0], "{table}");
    assert!(table.contains("28 steps after the first plan"), "{table}");
    assert!(table.contains("greedy: redundant slots save"), "{table}");

    let json: serde_json::Value = serde_json::from_slice(&fs::read(&result).unwrap()).unwrap();
    assert_eq!((&json["load"], &json["gpus"]), (&"zipf:1.2".into(), &4.into()));
    assert!(json["command"].as_str().unwrap().starts_with("artel eplb simulate --synthetic"));
    let greedy = &json["rows"][1];
    assert_eq!((&greedy["policy"], &greedy["steps"]), (&"greedy".into(), &28.into()));
    assert_eq!(greedy["after"].as_array().unwrap().len(), 2);
    assert_eq!(greedy["after"][0].as_str().unwrap().split(' ').count(), 4);
    assert_eq!(greedy["imbalance_by_step"].as_str().unwrap().split(' ').count(), 30);
    for name in ["layers-before", "layers-after-greedy", "steps-balanced:2+water-fill", "imbalance"]
    {
        let picture = fs::read_to_string(plots.join(format!("{name}.svg"))).unwrap();
        assert!(picture.starts_with("<svg") && picture.contains("GPU"), "{name}");
    }
    // The same command gives the same table.
    assert_eq!(succeed(&arguments, &[]), table);
}

#[test]
fn a_placement_is_planned_inspected_and_replayed() {
    let folder = tempfile::tempdir().unwrap();
    let (load, file) = (folder.path().join("load.trace"), folder.path().join("placement.json"));
    trace(&load);
    let inspected = succeed("inspect", &[text(&load)]);
    assert!(inspected.contains("30 in 30 records, last 29"), "{inspected}");
    assert!(inspected.contains("most chosen expert 4.50 times the mean"), "{inspected}");

    let sizes = "--gpus 4 --redundant 4 --trace";
    let planned = succeed(&format!("plan {sizes}"), &[text(&load), "-o", text(&file)]);
    assert!(planned.contains("30 steps of load.trace, hash "), "{planned}");
    let inspected = succeed("inspect", &[text(&file)]);
    assert!(inspected.contains("8 a layer in 12 slots"), "{inspected}");
    assert!(inspected.contains("model          small"), "{inspected}");

    let more = [text(&load), "--policy", "none+water-fill"];
    let imbalance = |table: String| -> f64 {
        let line =
            table.lines().find(|line| line.starts_with("none+water-fill")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let simulate = format!("simulate {sizes}");
    let before = imbalance(succeed(&simulate, &more));
    let with = [&more[..], &["--placement", text(&file)]].concat();
    let after = imbalance(succeed(&simulate, &with));
    assert!(after <= 1.07 && after < before, "{before} {after}");
    // A placement for other GPUs is refused.
    let other = fail("simulate --gpus 2 --redundant 4 --trace", &with);
    assert!(other.contains("is for 4 GPUs with 3 slots each, and here are 2 with 6"), "{other}");
}

#[test]
fn a_cut_trace_is_used_up_to_the_cut() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("load.trace");
    trace(&path);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
    let inspected = succeed("inspect", &[text(&path)]);
    assert!(inspected.contains("29 in 29 records") && inspected.contains("cut off"), "{inspected}");
    let simulated = output("simulate --gpus 4 --policy greedy --trace", &[text(&path)]);
    let warning = String::from_utf8_lossy(&simulated.stderr).into_owned();
    assert!(simulated.status.success() && warning.contains("the trace ends inside"), "{warning}");
    // Damage in the middle is no cut.
    let mut damaged = bytes;
    damaged[80] ^= 1;
    fs::write(&path, damaged).unwrap();
    for command in ["inspect", "simulate --gpus 4 --trace", "plan --gpus 4 -o /dev/null --trace"] {
        let error = fail(command, &[text(&path)]);
        assert!(error.contains("at byte") && error.contains("load.trace"), "{error}");
    }
}

#[test]
fn recordings_of_others_become_traces() {
    let folder = tempfile::tempdir().unwrap();
    let (ids, trace) = (folder.path().join("ids.jsonl"), folder.path().join("ids.trace"));
    fs::write(&ids, "[[0, 1], [2, 3]]\n[[0, 2], [3, 1]]\n[[0, 3], [0, 1]]\n").unwrap();
    let more = [text(&ids), "-o", text(&trace), "--model", "another"];
    let said = succeed("convert --from ids --experts 4 --step-tokens 2", &more);
    assert!(said.contains("2 records, 2 layers of 4 experts, 2 a token"), "{said}");
    let reader = TraceReader::new(fs::File::open(&trace).unwrap()).unwrap();
    assert_eq!(reader.header().model(), "another");
    let counts: Vec<_> = reader.map(|record| record.unwrap().counts).collect();
    assert_eq!(counts[0], [vec![2, 1, 1, 0], vec![0, 1, 1, 2]]);
    let few = fail("convert --from ids --experts 3", &more);
    assert!(few.contains("token 0 has expert 3 in layer 1"), "{few}");
    let missing = fail("convert --from ids", &more);
    assert!(missing.contains("--experts"), "{missing}");
    let help = succeed("convert --help", &[]);
    assert!(help.contains("parquet") && help.contains("pickled"), "{help}");
}

#[test]
fn what_cannot_be_is_said_with_what_could() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none.trace");
    let missing = fail("simulate --gpus 2 --trace", &[text(&path)]);
    assert!(missing.contains("cannot open") && missing.contains("none.trace"), "{missing}");
    fs::write(&path, "ARTELTRC\u{9}").unwrap();
    assert!(fail("inspect", &[text(&path)]).contains("ends inside the header"));
    fs::write(&path, "something that is not a trace at all").unwrap();
    assert!(fail("inspect", &[text(&path)]).contains("must be \"ARTELTRC\""));
    fs::write(&path, "{\"format\": \"artel-placement\", \"version\": 9}").unwrap();
    assert!(fail("inspect", &[text(&path)]).contains("version of the placement file is 9"));
    let uneven = fail(&format!("simulate --synthetic uniform {SMALL} --redundant 5"), &[]);
    assert!(uneven.contains("--redundant 5") && uneven.contains("4 or 8"), "{uneven}");
    let short = fail(&format!("simulate --synthetic uniform {SMALL} --interval 400"), &[]);
    assert!(short.contains("lower --interval"), "{short}");
    assert!(fail("simulate --gpus 2", &[]).contains("--trace"));
    let load = fail("simulate --gpus 2 --synthetic zip:1", &[]);
    assert!(load.contains("zipf:EXPONENT"), "{load}");
    let policy = fail("simulate --gpus 2 --synthetic uniform --policy best", &[]);
    assert!(policy.contains("balanced, greedy, resplit, none"), "{policy}");
    let nodes = fail(&format!("simulate --synthetic uniform {SMALL} --nodes 3"), &[]);
    assert!(nodes.contains("number of nodes is 3"), "{nodes}");
}
