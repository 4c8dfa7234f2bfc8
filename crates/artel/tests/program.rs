//! The program as a user runs it: what it prints where, what it returns, and what it says when
//! something is wrong.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const QUESTION: &str = "Maria has 14 pencils. She buys 3 boxes with 8 pencils in each. \
                        How many pencils does Maria have now?";

fn artel(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_artel"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn output(arguments: &[&str]) -> Output {
    artel(arguments).output().expect("artel starts")
}

/// Standard output of a command that must succeed.
fn succeed(arguments: &[&str]) -> String {
    let output = output(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?} failed: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Standard error of a command that must fail with `code` and without a panic.
fn fail(arguments: &[&str], code: i32) -> String {
    let output = output(arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
    assert!(!errors.contains("panicked"), "{errors}");
    errors
}

fn bundled() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tally")
}

/// A copy of the bundled model that a test may break.
fn copy_of_bundled(folder: &Path) -> String {
    for entry in fs::read_dir(bundled()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    folder.display().to_string()
}

#[test]
fn the_bundled_model_answers_on_standard_output_and_tells_its_speed_on_standard_error() {
    let output = output(&["run", "--prompt", QUESTION]);
    let answer = String::from_utf8(output.stdout).unwrap();
    assert!(answer.contains("<<3*8=24>>24") && answer.ends_with("#### 38\n"), "{answer}");
    let report = String::from_utf8(output.stderr).unwrap();
    assert!(report.contains("tokens/s"), "{report}");
}

#[test]
fn a_folder_and_standard_input_give_the_same_answer() {
    let folder = bundled().display().to_string();
    let expected = succeed(&["run", "--prompt", QUESTION]);
    let mut command = artel(&["run", &folder]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(QUESTION.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
}

#[test]
fn the_first_token_comes_within_a_second_of_the_start() {
    let started = Instant::now();
    let mut child = artel(&["run", "--prompt", QUESTION]).stdout(Stdio::piped()).spawn().unwrap();
    let mut first = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    let elapsed = started.elapsed();
    child.wait().unwrap();
    assert!(elapsed < Duration::from_secs(1), "the first token came after {elapsed:?}");
}

#[test]
fn sampling_follows_its_seed_and_stop_strings_cut() {
    let sample = |seed: &str| {
        succeed(&["run", "--prompt", QUESTION, "--temperature", "1.5", "--seed", seed])
    };
    assert_eq!(sample("1"), sample("1"));
    assert!((2..9).any(|seed| sample(&seed.to_string()) != sample("1")));
    let cut = succeed(&["run", "--prompt", QUESTION, "--stop", "####"]);
    assert!(!cut.contains("####") && cut.contains("38"), "{cut}");
    let short = output(&["run", "--prompt", QUESTION, "--max-tokens", "3"]);
    let report = String::from_utf8(short.stderr).unwrap();
    assert!(report.contains("[3 tokens") && report.contains("token limit"), "{report}");
}

#[test]
fn wrong_usage_is_status_2_and_wrong_input_status_1() {
    assert!(fail(&["run", "--temprature", "1"], 2).contains("--temperature"));
    assert!(fail(&[], 2).contains("Usage"));
    let errors = fail(&["run", "no/such/folder", "--prompt", "x"], 1);
    assert!(errors.contains("no/such/folder"), "{errors}");
    let errors = fail(&["run", "--prompt", "x", "--temperature", "-1"], 1);
    assert!(errors.contains("temperature is -1, but must be"), "{errors}");
    let errors = fail(&["run", "--prompt", "x", "--top-p", "1.5"], 1);
    assert!(errors.contains("top_p is 1.5, but must be in (0, 1]"), "{errors}");
    assert!(fail(&["logits", "--ids", "1,99999", "-o", "/dev/null"], 1).contains("99999"));
    let long = "apple ".repeat(3000);
    assert!(fail(&["run", "--prompt", &long], 1).contains("the context holds 1024"));
    assert!(fail(&["run"], 1).contains("--prompt"));
}

#[test]
fn broken_checkpoints_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = copy_of_bundled(folder.path());
    let weights = folder.path().join("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    let errors = fail(&["inspect", &path], 1);
    assert!(errors.contains("model.safetensors"), "{errors}");

    fs::write(&weights, &whole).unwrap();
    fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    succeed(&["inspect", &path]);
    assert!(fail(&["run", &path, "--prompt", "x"], 1).contains("tokenizer.json"));

    let config = folder.path().join("config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("MiniMaxM2ForCausalLM", "MaxiMinForCausalLM")).unwrap();
    let errors = fail(&["inspect", &path], 1);
    assert!(errors.contains("MaxiMin") && errors.contains("Qwen3MoeForCausalLM"), "{errors}");
}

#[test]
fn inspect_tells_what_the_model_is_and_needs() {
    let text = succeed(&["inspect", "--context", "1000", "--sequences", "2"]);
    for part in ["MiniMaxM2ForCausalLM", "active", "bf16", "2 sequence(s) of 1000", "because"] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    let text = succeed(&["inspect", "--format", "fp8"]);
    assert!(text.contains("fp8-block128"), "{text}");
}

#[test]
fn logits_are_a_numpy_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("logits.npy");
    succeed(&["logits", "--ids", "7,8,9", "-o", path.to_str().unwrap()]);
    let file = fs::read(&path).unwrap();
    assert_eq!(&file[..6], b"\x93NUMPY");
    let header = String::from_utf8_lossy(&file[10..128]).into_owned();
    let vocabulary = (file.len() - 128) / 4 / 3;
    assert!(header.contains(&format!("(3, {vocabulary})")), "{header}");
    let numbers = file[128..].chunks_exact(4).map(|bytes| bytes.try_into().unwrap());
    assert!(numbers.map(f32::from_le_bytes).all(f32::is_finite));
}

#[test]
fn an_evaluation_leaves_a_record_and_samples() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (result, samples) = (file("out/result.json"), file("samples.jsonl"));
    let text = succeed(&[
        "eval",
        "arithmetic",
        "--num-problems",
        "50",
        "--seed",
        "5",
        "--save-result",
        &result,
        "--save-samples",
        &samples,
    ]);
    assert!(text.contains("exact match"), "{text}");
    let record: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(result).unwrap()).unwrap();
    assert!(record["exact_match"].as_f64().unwrap() >= 0.9, "{record}");
    assert_eq!(record["total"]["problems"], 50);
    assert_eq!(fs::read_to_string(samples).unwrap().lines().count(), 50);
}

/// The result of a benchmark that is run with `arguments`, and what it printed.
fn benchmark(arguments: &[&str]) -> (serde_json::Value, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out/result.json");
    let save = ["--output-json", path.to_str().unwrap()];
    let text = succeed(&[&["bench"], arguments, &save].concat());
    (serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap(), text)
}

#[test]
fn a_batch_is_timed_without_a_server() {
    let sizes = ["--input-len", "8", "--output-len", "4", "--batch-size", "2", "--n", "2"];
    let runs = ["--num-iters", "3", "--num-iters-warmup", "1"];
    let (result, text) = benchmark(&[&["latency"], &sizes[..], &runs].concat());
    assert!(text.starts_with("Avg latency: 0.") && text.lines().count() == 9, "{text}");
    for kind in ["Time to first token, 4 x 8 tokens: ", "Time per output token, 4 sequences: "] {
        assert!(text.contains(kind), "{text}");
    }
    assert!(result["steps"]["times"]["decode_step_seconds"].as_f64().unwrap() > 0.0, "{result}");
    assert_eq!(result["latencies"].as_array().unwrap().len(), 3);
    assert!(result["percentiles"]["99"].as_f64().unwrap() > 0.0 && result["commit"].is_string());
    let errors = fail(&["bench", "latency", "--input-len", "100000"], 1);
    assert!(errors.contains("100000"), "{errors}");
}

#[test]
fn a_model_without_weights_is_timed_for_several_batch_sizes() {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../artel-model/tests/fixtures");
    let model = format!("{fixtures}/qwen3_moe_norm");
    let sizes = ["--input-len", "8", "--output-len", "4", "--batch-size", "1,3"];
    let runs = ["--num-iters", "1", "--num-iters-warmup", "0", "--load-format", "dummy"];
    let (result, text) = benchmark(&[&["latency", &model], &sizes[..], &runs].concat());
    assert!(text.contains("3 x 8 tokens"), "{text}");
    let batches = result["batches"].as_array().unwrap();
    let sizes: Vec<_> = batches.iter().map(|batch| batch["batch_size"].as_u64()).collect();
    assert_eq!(sizes, [Some(1), Some(3)]);
    let errors = fail(&["bench", "latency", "--load-format", "dummy"], 1);
    assert!(errors.contains("needs MODEL"), "{errors}");
}

#[test]
fn many_requests_are_timed_without_a_server() {
    let sizes = ["--input-len", "10", "--output-len", "6", "--num-prompts", "5"];
    let (result, text) = benchmark(&[&["throughput"], &sizes[..]].concat());
    assert!(text.starts_with("Throughput: ") && text.contains("output tokens/s"), "{text}");
    assert!(text.ends_with("Total num output tokens:  30\n"), "{text}");
    assert_eq!(result["num_requests"], 5);
    assert!((70..=90).contains(&result["total_num_tokens"].as_u64().unwrap()), "{result}");
    let errors = fail(&["bench", "throughput", "--dataset-name", "custom"], 1);
    assert!(errors.contains("--dataset-path"), "{errors}");
}

#[test]
fn problems_can_be_written_for_training() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.jsonl").display().to_string();
    let arguments = ["eval", "arithmetic", "--num-problems", "30", "--split", "training"];
    succeed(&[&arguments[..], &["--write", &path]].concat());
    let text = fs::read_to_string(path).unwrap();
    assert_eq!(text.lines().filter(|line| line.contains("####")).count(), 30);
}

fn interrupt(child: &Child) {
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

#[test]
fn control_c_ends_an_answer_cleanly() {
    let mut child = artel(&["run", "--prompt", QUESTION, "--ignore-eos", "--max-tokens", "900"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    interrupt(&child);
    let started = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(started.elapsed() < Duration::from_secs(2));
    let report = String::from_utf8(output.stderr).unwrap();
    assert!(report.contains("interrupted"), "{report}");
}

/// A request over a connection of its own; what comes back, head and body.
fn ask(address: &str, request: &str) -> String {
    let mut connection = TcpStream::connect(address).unwrap();
    connection.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_server_answers_until_it_is_interrupted() {
    let mut child = artel(&["serve", "--port", "0", "--max-num-seqs", "4", "--api-key", "secret"])
        .env("NO_COLOR", "1")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let mut told = Vec::new();
    while !told.last().is_some_and(|line: &String| line.contains("ready after")) {
        told.push(log.next().expect("the server says that it is ready"));
    }
    let told = told.join("\n");
    for decision in ["device: CPU", "plan: ", "cache: ", "batch: 4 requests", "key needed"] {
        assert!(told.contains(decision), "{told}");
    }
    let (_, address) = told.split_once("http://").unwrap();
    let address = address.split_once(',').unwrap().0;
    let body = format!(r#"{{"messages": [{{"role": "user", "content": "{QUESTION}"}}]}}"#);
    let request = |key: &str| {
        let length = body.len();
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\
             authorization: Bearer {key}\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n{body}"
        )
    };
    let answer = ask(address, &request("secret"));
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("#### 38"), "{answer}");
    assert!(ask(address, &request("guess")).starts_with("HTTP/1.1 401"));
    interrupt(&child);
    let rest: Vec<String> = log.collect();
    assert!(rest.last().unwrap().ends_with("stopped"), "{rest:?}");
    assert!(child.wait().unwrap().success());
    let url = ["eval", "arithmetic", "--url", "http://127.0.0.1:1"];
    assert!(fail(&url, 1).contains("http://127.0.0.1:1"));
    assert!(fail(&["serve", "--host", "999.0.0.1"], 1).contains("cannot listen on 999.0.0.1:8000"));
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut child = artel(&["run", "--prompt", QUESTION, "--ignore-eos", "--max-tokens", "500"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{errors}");
    assert!(!errors.contains("panicked"), "{errors}");
}

#[test]
fn kernels_are_packed_where_gpu_support_is_built_in_and_elsewhere_it_is_named() {
    let errors = fail(&["kernels", "list", "/nowhere/sm_90.pack"], 1);
    let expected = if cfg!(feature = "cuda") { "cannot be read" } else { "--features cuda" };
    assert!(errors.contains(expected), "{errors}");
    let errors = fail(&["tune", "--shapes", "gpt-5-bf16", "-o", "/nowhere"], 1);
    let expected = if cfg!(feature = "cuda") { "is no shape" } else { "--features cuda" };
    assert!(errors.contains(expected), "{errors}");
    let errors = fail(&["run", "--device", "cuda:999", "--prompt", "2"], 1);
    let expected = if cfg!(feature = "cuda") { "--device cpu can" } else { "--features cuda" };
    assert!(errors.contains("--device cuda:999") && errors.contains(expected), "{errors}");
    let errors = fail(&["kernels", "build", "--arch", "sm_75", "-o", "/nowhere/x.pack"], 2);
    assert!(errors.contains("sm_80, sm_90, sm_100, sm_120"), "{errors}");
}

#[test]
fn inspect_plans_for_a_gpu_without_one() {
    let plan = succeed(&["inspect", "--arch", "sm_90"]);
    assert!(plan.contains("GPU plan: experts in bf16 on sm_90"), "{plan}");
    assert_eq!(plan, succeed(&["inspect", "--device", "cuda", "--arch", "sm_90"]));
    let errors = fail(&["inspect", "--device", "cuda:999"], 1);
    let expected = if cfg!(feature = "cuda") { "cannot be opened" } else { "--features cuda" };
    assert!(errors.contains("--arch NAME plans") && errors.contains(expected), "{errors}");
    let errors = fail(&["inspect", "--tensor-parallel", "2"], 1);
    assert!(errors.contains("--tensor-parallel 2 is for"), "{errors}");
    let errors = fail(&["inspect", "--arch", "sm_80", "--format", "fp8"], 1);
    assert!(errors.contains("must be bf16 or f16 on sm_80"), "{errors}");
    let errors = fail(&["inspect", "--arch", "sm_90", "--tensor-parallel", "3"], 1);
    assert!(errors.contains("a divisor of intermediate_size, 128"), "{errors}");
}

#[test]
fn quantising_with_texts_shows_both_errors_and_writes_a_model_that_answers() {
    let folder = tempfile::tempdir().unwrap();
    let (texts, out) = (folder.path().join("texts"), folder.path().join("out"));
    fs::write(&texts, format!("{QUESTION}\n<|user|>{QUESTION}<|assistant|>3*8 = <<3*8=24>>24\n"))
        .unwrap();
    let (texts, out) = (texts.to_str().unwrap(), out.to_str().unwrap());
    let arguments = ["quantize", "--format", "nvfp4", "-o", out, "--calibrate", texts];
    let report = succeed(&[&arguments[..], &["--calibrate-tokens", "50"]].concat());
    assert!(report.contains("calibrated with 50 tokens"), "{report}");
    let percents = |line: &str| -> Vec<f64> {
        let words = line.split_whitespace().filter_map(|word| word.strip_suffix('%'));
        words.map(|word| word.parse().unwrap()).collect()
    };
    let layers: Vec<Vec<f64>> =
        report.lines().filter(|line| line.contains("model.layers")).map(percents).collect();
    assert_eq!(layers.len(), 4, "{report}");
    assert!(layers.iter().all(|errors| errors.len() == 4 && errors[2] < errors[3]), "{report}");
    let answer = succeed(&["run", out, "--prompt", QUESTION]);
    assert!(answer.contains("####"), "{answer}");
}

#[test]
fn files_that_nothing_can_be_calibrated_with_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let (texts, out) = (folder.path().join("texts"), folder.path().join("out"));
    let (file, output) = (texts.to_str().unwrap(), out.to_str().unwrap());
    let arguments = ["quantize", "--format", "nvfp4", "-o", output, "--calibrate", file];
    let errors = fail(&arguments, 1);
    assert!(errors.contains(file), "{errors}");
    for (content, expected) in
        [(&b" \n"[..], "has no text in it"), (b"a\xff", "not UTF-8"), (b"{\"a\": 1}", "line 1")]
    {
        fs::write(&texts, content).unwrap();
        let errors = fail(&arguments, 1);
        assert!(errors.contains(file) && errors.contains(expected), "{errors}");
    }
    assert!(!out.exists(), "nothing is written");
    fail(&["quantize", "--format", "nvfp4", "-o", output, "--calibrate-tokens", "5"], 2);
    fail(&[&arguments[..], &["--calibrate-tokens", "0"]].concat(), 2);
}
