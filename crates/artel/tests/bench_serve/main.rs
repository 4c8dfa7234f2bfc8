//! `artel bench serve` as a user runs it, against a server that behaves as it is told.

mod mock;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use mock::{Behaviour, Fault, Mock};
use serde_json::Value;

fn bench(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_artel"));
    command.args(["bench", "serve"]).args(arguments).env_remove("OPENAI_API_KEY");
    command.stdin(Stdio::null()).output().expect("artel starts")
}

fn against(mock: &Mock, arguments: &[&str]) -> Output {
    bench(&[&["--base-url", &mock.url()], arguments].concat())
}

/// Standard output of a run that must succeed.
fn report(mock: &Mock, arguments: &[&str]) -> String {
    let output = against(mock, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Standard error of a run that must fail with a sentence.
fn failure(output: &Output) -> String {
    let errors = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(!errors.contains("panicked"), "{errors}");
    errors
}

/// The number after `label` in a report.
fn number(report: &str, label: &str) -> f64 {
    let line = report.lines().find(|line| line.starts_with(label));
    let line = line.unwrap_or_else(|| panic!("no {label} in\n{report}"));
    line[40..].trim().parse().unwrap()
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// 12 requests of 8 tokens, 20 ms a token.
const SMALL: [&str; 6] =
    ["--num-prompts", "12", "--random-input-len", "16", "--random-output-len", "8"];

#[test]
fn the_report_tells_what_the_server_did() {
    let mock = Mock::start(Behaviour::default());
    let options = ["--max-concurrency", "4", "--num-warmups", "2", "--goodput", "ttft:5000"];
    let metrics = ["--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,99.9"];
    let report = report(&mock, &[&SMALL[..], &options, &metrics].concat());
    let labels: Vec<&str> =
        report.lines().map(|line| line.split(':').next().unwrap_or_default()).collect();
    assert_eq!(labels[0], "============ Serving Benchmark Result ============");
    let expected = [
        "Successful requests",
        "Failed requests",
        "Maximum request concurrency",
        "Benchmark duration (s)",
        "Total input tokens",
        "Total generated tokens",
        "Request throughput (req/s)",
        "Request goodput (req/s)",
        "Output token throughput (tok/s)",
        "Peak output token throughput (tok/s)",
        "Peak concurrent requests",
        "Total token throughput (tok/s)",
        "---------------Time to First Token----------------",
        "Mean TTFT (ms)",
        "Median TTFT (ms)",
        "P50 TTFT (ms)",
        "P99.9 TTFT (ms)",
        "-----Time per Output Token (excl. 1st token)------",
    ];
    assert_eq!(labels[1..=expected.len()], expected);
    assert_eq!(labels.last(), Some(&"=".repeat(50).as_str()));
    assert_eq!(number(&report, "Successful requests:"), 12.0);
    assert_eq!(number(&report, "Total input tokens:"), 12.0 * 11.0);
    assert_eq!(number(&report, "Total generated tokens:"), 12.0 * 8.0);
    let duration = number(&report, "Benchmark duration (s):");
    assert!((0.48..30.0).contains(&duration), "three rounds of 8 x 20 ms take {duration} s");
    let mean = |name: &str| number(&report, &format!("Mean {name} (ms):"));
    assert!((159.0..9000.0).contains(&mean("E2EL")), "8 x 20 ms take {} ms", mean("E2EL"));
    assert!((10.0..1000.0).contains(&mean("TPOT")), "20 ms take {} ms", mean("TPOT"));
    assert!((mean("ITL") - mean("TPOT")).abs() < 0.02, "one token an event");
    assert!((mean("E2EL") - mean("TTFT") - 7.0 * mean("TPOT")).abs() < 0.1);
    assert!(mock.open_max() <= 4, "{} ran at the same time", mock.open_max());
    let bodies = mock.bodies();
    assert_eq!(bodies.len(), 14);
    assert!(bodies.iter().all(|body| body["ignore_eos"] == true && body["max_tokens"] == 8));
}

#[test]
fn failures_are_counted_and_told_and_leave_the_others_alone() {
    let fault = |number| match number {
        3 => Fault::Refused,
        5 => Fault::Disconnect,
        7 => Fault::ErrorEvent,
        _ => Fault::None,
    };
    let mock = Mock::start(Behaviour { fault, ..Behaviour::default() });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out/run.json");
    let save = ["--save-result", "--save-detailed", "--result-filename", path.to_str().unwrap()];
    let output = against(&mock, &[&SMALL[..], &save].concat());
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{errors}");
    let report = String::from_utf8(output.stdout).unwrap();
    assert_eq!(number(&report, "Successful requests:"), 9.0);
    assert_eq!(number(&report, "Failed requests:"), 3.0);
    let result = json(&path);
    let failed: Vec<&str> = result["errors"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .filter(|error| !error.is_empty())
        .collect();
    assert_eq!(failed.len(), 3);
    for part in [
        "HTTP 500 Internal Server Error: no memory left",
        "the connection broke in the middle of the answer",
        "error in the stream: lost a GPU",
    ] {
        assert!(failed.iter().any(|error| error.contains(part)), "{part} not in {failed:?}");
        assert!(errors.contains(part), "{errors}");
    }
    let lengths = result["output_lens"].as_array().unwrap();
    assert_eq!(lengths.iter().filter(|length| **length == 0).count(), 3);
    let texts = result["generated_texts"].as_array().unwrap().iter();
    assert_eq!(texts.filter(|text| *text == "né né né né né né né né ").count(), 9);
}

/// Keys of the peer's result without and with `--save-detailed`, in its order.
const KEYS: [&str; 31] = [
    "date",
    "endpoint_type",
    "backend",
    "label",
    "model_id",
    "tokenizer_id",
    "num_prompts",
    "tp",
    "request_rate",
    "burstiness",
    "max_concurrency",
    "duration",
    "completed",
    "failed",
    "total_input_tokens",
    "total_output_tokens",
    "request_throughput",
    "request_goodput",
    "output_throughput",
    "total_token_throughput",
    "max_output_tokens_per_s",
    "max_concurrent_requests",
    "rtfx",
    "mean_ttft_ms",
    "median_ttft_ms",
    "std_ttft_ms",
    "p99_ttft_ms",
    "mean_e2el_ms",
    "median_e2el_ms",
    "std_e2el_ms",
    "p99_e2el_ms",
];
const DETAILS: [&str; 9] = [
    "input_lens",
    "output_lens",
    "ttfts",
    "itls",
    "latencies",
    "start_times",
    "queue_times",
    "generated_texts",
    "errors",
];

#[test]
fn results_have_the_keys_of_the_peer() {
    let mock = Mock::start(Behaviour::default());
    let folder = tempfile::tempdir().unwrap();
    let folder_name = folder.path().to_str().unwrap();
    // Long options may be shortened, as Python's parsers allow.
    let short = ["--num-prompt", "3", "--random-input", "8", "--random-output", "4"];
    let options = ["--save-result", "--result-dir", folder_name, "--metadata", "tp=1", "--label"];
    let rest = ["mine", "--percentile-metrics", "ttft,e2el", "--request-rate", "50"];
    report(&mock, &[&short[..], &options, &rest].concat());
    let file = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap();
    let name = file.file_name().into_string().unwrap();
    assert!(name.starts_with("mine-50.0qps-tally-") && name.ends_with(".json"), "{name}");
    let result = json(&file.path());
    let keys: Vec<&String> = result.as_object().unwrap().keys().collect();
    assert_eq!(keys, KEYS);
    assert_eq!((&result["label"], &result["tp"]), (&"mine".into(), &"1".into()));
    assert_eq!((&result["request_rate"], &result["max_concurrency"]), (&50.0.into(), &Value::Null));
    assert_eq!((&result["completed"], &result["request_goodput"]), (&3.into(), &Value::Null));

    let path = folder.path().join("appended.json");
    let append =
        ["--append-result", "--save-detailed", "--result-filename", path.to_str().unwrap()];
    let ramp = ["--ramp-up-strategy", "exponential", "--ramp-up-start-rps", "20"];
    for _ in 0..2 {
        report(&mock, &[&short[..], &append, &ramp, &["--ramp-up-end-rps", "40"]].concat());
    }
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 2);
    let result: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert!(DETAILS.iter().all(|key| result[key].as_array().is_some_and(|list| list.len() == 3)));
    assert_eq!((&result["request_rate"], &result["label"]), (&"inf".into(), &Value::Null));
    assert_eq!(result["ramp_up_strategy"], "exponential");
    let events = result["rps_change_events"].as_array().unwrap();
    assert_eq!((&events[0]["rps"], &events.last().unwrap()["rps"]), (&20.into(), &40.into()));
}

#[test]
fn an_artel_server_is_asked_where_the_time_went() {
    let mock = Mock::start(Behaviour { is_artel: true, ..Behaviour::default() });
    let folder = tempfile::tempdir().unwrap();
    let (path, picture) = (folder.path().join("run.json"), folder.path().join("a/run.svg"));
    let save = ["--save-result", "--result-filename", path.to_str().unwrap()];
    let plot = ["--plot", picture.to_str().unwrap()];
    let report = report(&mock, &[&SMALL[..], &save, &plot].concat());
    assert_eq!(number(&report, "Engine steps:"), 100.0);
    assert_eq!(number(&report, "Active experts per step and layer:"), 1.5);
    assert_eq!(number(&report, "Busiest expert's load (x mean):"), 1.5);
    // -(3/4 ln 3/4 + 1/4 ln 1/4) / ln 2
    assert_eq!(number(&report, "Expert load entropy (% of uniform):"), 81.13);
    let result = json(&path);
    assert_eq!(result["artel"]["layers"]["0"]["expert_tokens"][0], 30.0);
    assert_eq!(result["artel"]["steps"], 100.0);
    let picture = fs::read_to_string(picture).unwrap();
    assert!(picture.contains("<svg") && picture.contains("Latency over time"));
    assert!(picture.matches("<circle").count() >= 24, "a point for each first and last token");
}

#[test]
fn chats_take_prompts_of_files_and_servers_need_not_count() {
    let mock = Mock::start(Behaviour { usage: false, ..Behaviour::default() });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prompts.jsonl");
    fs::write(&path, "{\"prompt\": \"How many hens?\"}\n{\"prompt\": \"How many eggs?\"}\n")
        .unwrap();
    let dataset = ["--dataset-name", "custom", "--dataset-path", path.to_str().unwrap()];
    let options = ["--backend", "openai-chat", "--output-len", "5", "--num-prompts", "4"];
    let body = [
        "--extra-body",
        "{\"user\": \"me\"}",
        "--temperature",
        "0",
        "--disable-tqdm",
        "--trust-remote-code",
    ];
    let counted = report(&mock, &[&dataset[..], &options, &body].concat());
    assert!(number(&counted, "Total generated tokens:") >= 4.0 * 5.0, "{counted}");
    let body = &mock.bodies()[0];
    assert!(body["messages"][0]["content"].as_str().unwrap().starts_with("How many"));
    assert_eq!((&body["user"], &body["temperature"]), (&"me".into(), &0.0.into()));
    assert_eq!((&body["max_completion_tokens"], &body["ignore_eos"]), (&5.into(), &Value::Null));

    let uncounted = report(&mock, &[&dataset[..], &options, &["--skip-tokenizer-init"]].concat());
    assert!(
        !uncounted.contains("Total generated tokens:") && uncounted.contains("Mean TPOT (ms):")
    );
}

#[test]
fn malformed_requests_go_beside_the_others_and_are_not_counted_as_theirs() {
    let mock = Mock::start(Behaviour::default());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.json");
    let save = ["--save-result", "--result-filename", path.to_str().unwrap()];
    let asked = ["--malformed-rate", "0.25", "--malformed-rounds", "3"];
    let report = report(&mock, &[&SMALL[..], &asked, &save].concat());
    // The good requests of three rounds beside malformed ones.
    assert_eq!(number(&report, "Successful requests:"), 36.0);
    assert_eq!(number(&report, "Rounds:"), 3.0);
    let ratio = number(&report, "P99 ITL with / without:");
    assert!(ratio > 0.0, "{report}");
    assert!(number(&report, "unknown model: HTTP 404:") > 0.0, "{report}");
    let result = json(&path);
    assert_eq!((&result["num_prompts"], &result["completed"]), (&12.into(), &36.into()));
    assert_eq!(result["malformed"]["rounds_p99_itl_ms"].as_array().unwrap().len(), 3);
    let answers = result["malformed"]["answers"].as_object().unwrap();
    let count = |answers: &Value| answers.as_object().unwrap().values().map(count_of).sum::<u64>();
    assert_eq!(answers.values().map(count).sum::<u64>(), 12, "{answers:?}");
}

fn count_of(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

#[test]
fn a_thousand_requests_at_a_time_lose_nothing() {
    rlimit::increase_nofile_limit(8192).unwrap();
    let pace = Duration::from_millis(200);
    let mock = Mock::start(Behaviour { pace, ..Behaviour::default() });
    let report = report(&mock, &["--random-input-len", "4", "--random-output-len", "5"]);
    assert_eq!(number(&report, "Successful requests:"), 1000.0);
    assert_eq!(number(&report, "Total generated tokens:"), 5000.0);
    assert!(mock.open_max() > 200, "only {} ran at the same time", mock.open_max());
}

#[test]
fn arrivals_follow_the_rate() {
    let pace = Duration::from_millis(1);
    let mock = Mock::start(Behaviour { pace, ..Behaviour::default() });
    let options = ["--request-rate", "40", "--burstiness", "2", "--seed", "7"];
    let report = report(&mock, &[&SMALL[..], &options].concat());
    assert_eq!(number(&report, "Request rate configured (RPS):"), 40.0);
    let duration = number(&report, "Benchmark duration (s):");
    assert!((0.3..15.0).contains(&duration), "12 requests at 40 a second took {duration} s");
}

#[test]
fn a_model_that_the_server_lacks_is_named() {
    let mock = Mock::start(Behaviour::default());
    let model = ["--model", "gpt-9", "--tokenizer"];
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tally");
    let arguments = [&SMALL[..], &model, &[tokenizer.to_str().unwrap()]].concat();
    let errors = failure(&against(&mock, &arguments));
    assert!(errors.contains("does not list a model gpt-9, only tally"), "{errors}");
    let expected = "none of 12 requests succeeded; the first failed with: HTTP 404 Not Found: The \
                    model `gpt-9` does not exist.";
    assert!(errors.contains(expected), "{errors}");
    let errors = failure(&against(&mock, &["--model", "gpt-9"]));
    assert!(errors.contains("--tokenizer") && errors.contains("gpt-9"), "{errors}");
}

#[test]
fn what_cannot_be_measured_is_said_before_anything_is_sent() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let errors = failure(&bench(&["--port", &port.to_string()]));
    let expected = format!("no server answers at http://127.0.0.1:{port}: Connection refused");
    assert!(errors.contains(&expected) && errors.contains("is it running?"), "{errors}");
    let waiting = ["--port", &port.to_string(), "--ready-check-timeout-sec", "2"];
    assert!(failure(&bench(&waiting)).contains("Connection refused"));

    let mock = Mock::start(Behaviour::default());
    let refused = |arguments: &[&str]| failure(&against(&mock, arguments));
    assert!(refused(&["--dataset-name", "custom"]).contains("--dataset-path"));
    let missing = ["--dataset-name", "sharegpt", "--dataset-path", "/nowhere.json"];
    assert!(refused(&missing).contains("cannot read the data set /nowhere.json"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.jsonl");
    fs::write(&path, "{\"prompt\": \"one\"}\n{\"prompt\"\n").unwrap();
    let broken = ["--dataset-name", "custom", "--dataset-path", path.to_str().unwrap()];
    assert!(refused(&broken).contains("bad.jsonl, line 2: not JSON"));
    assert!(refused(&["--request-rate", "0"]).contains("--request-rate 0 is not positive"));
    assert!(refused(&["--metric-percentiles", "101"]).contains("between 0 and 100"));
    assert!(
        refused(&["--malformed-rate", "1"]).contains("--malformed-rate 1 is not between 0 and 1")
    );
    assert!(refused(&["--plot", "run.png"]).contains("SVG"));
    assert!(refused(&["--skip-tokenizer-init"]).contains("tokenizer"));
    assert!(
        refused(&["--backend", "openai-chat", "--endpoint", "/v1/completions"])
            .contains("/chat/completions")
    );
    assert!(failure(&bench(&["--base-url", "https://127.0.0.1"])).contains("plain HTTP only"));
    assert!(mock.bodies().is_empty());
    for wrong in [["--goodput", "itl:5"], ["--backend", "tgi"], ["--num-prompts", "0"]] {
        assert_eq!(bench(&wrong).status.code(), Some(2), "{wrong:?}");
    }
}
