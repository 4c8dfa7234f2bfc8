//! Experts on ranks as a user runs them: the same answers wherever they are, files that lead from one
//! command to the next, and what is said when something is wrong.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Problems enough for some hundred steps.
const PROBLEMS: &str = "eval arithmetic --num-problems 40 --batch-size 8";

fn output(arguments: &str, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_artel"));
    command.args(arguments.split_whitespace()).args(more).stdin(Stdio::null());
    command.output().expect("artel starts")
}

fn succeed(arguments: &str, more: &[&str]) -> String {
    let output = output(arguments, more);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments} {more:?} failed: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Standard error of a command that must fail without a panic.
fn fail(arguments: &str) -> String {
    let output = output(arguments, &[]);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && !errors.contains("panicked"), "{arguments}: {errors}");
    errors
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn answers_are_the_same_while_experts_move() {
    let folder = tempfile::tempdir().unwrap();
    let samples = |name: &str, ranks: &str| {
        let path = folder.path().join(name);
        succeed(&format!("{PROBLEMS} {ranks}"), &["--save-samples", text(&path)]);
        fs::read(path).unwrap()
    };
    let alone = samples("alone", "");
    for (ranks, policy, interval) in [(2, "greedy", 4), (4, "balanced", 7), (8, "default", 10)] {
        let eplb = format!(
            "--ranks {ranks} --enable-eplb --eplb-config step_interval={interval} \
             --eplb-config.window_size 3 --eplb-config.num_redundant_experts 8 \
             --eplb-config.policy={policy}"
        );
        assert!(samples("spread", &eplb) == alone, "{eplb}: other answers");
    }
    assert!(samples("fixed", "--ranks 2") == alone, "two ranks answer otherwise");
}

#[test]
fn what_is_recorded_becomes_a_placement_to_begin_with() {
    let folder = tempfile::tempdir().unwrap();
    let (trace, placement) = (folder.path().join("t.trace"), folder.path().join("p.json"));
    let alone = succeed(PROBLEMS, &["--record-experts", text(&trace)]);
    let shown = succeed("eplb inspect", &[text(&trace)]);
    assert!(shown.contains("tally") && shown.contains("16 a layer, 4 for each token"), "{shown}");
    let plan = "eplb plan --gpus 4 --redundant 4 --policy balanced";
    succeed(plan, &["--trace", text(&trace), "-o", text(&placement)]);
    let spread = succeed(PROBLEMS, &["--eplb-placement", text(&placement)]);
    let score = |report: &str| report.lines().nth(1).map(str::to_owned);
    assert_eq!(score(&alone), score(&spread));
    let file = text(&placement);
    let ranks = fail(&format!("{PROBLEMS} --ranks 2 --eplb-placement {file}"));
    assert!(ranks.contains("[4, 16, 4]") && ranks.contains("[4, 16, 2]"), "{ranks}");
    fs::write(&placement, "{}").unwrap();
    let broken = fail(&format!("{PROBLEMS} --eplb-placement {file}"));
    assert!(broken.contains(file) && broken.contains("artel eplb plan"), "{broken}");
}

#[test]
fn settings_that_make_no_sense_are_named() {
    for (flags, words) in [
        ("--enable-eplb", &["--ranks 2 or more"][..]),
        ("--ranks 3", &["16", "multiple of the number of ranks, 3", "num_redundant_experts"]),
        ("--ranks 2 --eplb-config {}", &["--enable-eplb"]),
        ("--ranks 2 --enable-eplb --eplb-config window_size=0", &["window_size is 0"]),
        ("--ranks 2 --enable-eplb --eplb-config windows=1", &["windows", "window_size"]),
        ("--ranks 2 --enable-eplb --eplb-config.policy best", &["policy is best", "balanced"]),
        ("--ranks 0", &["--ranks"]),
        ("--ranks 2 --eplb-placement missing.json", &["missing.json"]),
        ("--record-experts no/such/folder/t", &["no/such/folder/t"]),
    ] {
        let errors = fail(&format!("{PROBLEMS} {flags}"));
        for word in words {
            assert!(errors.contains(word), "{flags}: no {word:?} in {errors}");
        }
    }
}
