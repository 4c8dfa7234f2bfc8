//! Requests that nobody would write: whatever comes in, an answer or an error object goes out.

use std::sync::OnceLock;

use artel_engine::EngineConfig;
use artel_server::ServerConfig;
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;

use crate::support::TestServer;

const PATHS: [&str; 4] = ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"];

/// One server for all cases, with a context so short that every answer is.
fn server() -> &'static (Runtime, TestServer) {
    static SERVER: OnceLock<(Runtime, TestServer)> = OnceLock::new();
    SERVER.get_or_init(|| {
        let runtime = Runtime::new().unwrap();
        let engine = EngineConfig { max_model_len: 24, ..EngineConfig::default() };
        let server = runtime.block_on(TestServer::with(engine, ServerConfig::default()));
        (runtime, server)
    })
}

/// Any JSON, not too deep.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-3i64..200).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (-1.0f64..2.0).prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(".{0,6}", inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// A request that would be answered, some of whose fields are anything.
fn any_request() -> impl Strategy<Value = Map<String, Value>> {
    const FIELDS: [&str; 38] = [
        "model",
        "prompt",
        "messages",
        "n",
        "stream",
        "stream_options",
        "max_tokens",
        "max_completion_tokens",
        "min_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "seed",
        "stop",
        "stop_token_ids",
        "ignore_eos",
        "logit_bias",
        "priority",
        "logprobs",
        "top_logprobs",
        "echo",
        "response_format",
        "add_generation_prompt",
        "chat_template_kwargs",
        "tools",
        "tool_choice",
        "tokens",
        "add_special_tokens",
        "return_token_strs",
        "suffix",
        "best_of",
        "user",
        "metadata",
        "parallel_tool_calls",
    ];
    let field = prop::sample::select(FIELDS.to_vec());
    prop::collection::vec((field, any_json()), 1..4).prop_map(|changes| {
        let request = json!({
            "prompt": "a", "tokens": [1], "messages": [{"role": "user", "content": "a"}],
        });
        let Value::Object(mut request) = request else { unreachable!("it is an object") };
        request.extend(changes.into_iter().map(|(field, value)| (field.to_owned(), value)));
        request
    })
}

/// Sends a body and checks what comes back.
fn check(path: &str, body: Vec<u8>) -> Result<(), TestCaseError> {
    let (runtime, server) = server();
    let shown = String::from_utf8_lossy(&body).into_owned();
    let request = server.client.post(server.url(path)).header("content-type", "application/json");
    let (status, text) = runtime.block_on(async {
        let response = request.body(body).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    });
    prop_assert!(status < 500, "{} {}: {} {}", path, shown, status, text);
    if text.starts_with("data: ") {
        prop_assert!(text.ends_with("data: [DONE]\n\n"), "{}: {}", shown, text);
        return Ok(());
    }
    let answer: Value = serde_json::from_str(&text).unwrap();
    prop_assert_eq!(status == 200, answer.get("error").is_none(), "{}: {}", shown, answer);
    if status != 200 {
        prop_assert!(answer["error"]["message"].is_string(), "{}: {}", shown, answer);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_request_is_answered(request in any_request(), path in prop::sample::select(PATHS.to_vec())) {
        check(path, Value::Object(request).to_string().into_bytes())?;
    }

    #[test]
    fn every_body_is_answered(
        bytes in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..60),
            any_json().prop_map(|json| json.to_string().into_bytes()),
        ],
        path in prop::sample::select(PATHS.to_vec()),
    ) {
        check(path, bytes)?;
    }
}
