//! What is answered to requests that make no sense: an error object that says why.

use std::time::Duration;

use artel_engine::EngineConfig;
use artel_server::ServerConfig;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{TestServer, status_and_json};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// The error object has all of its fields, and says something.
fn check(answer: &Value) -> (&str, &Value, &Value) {
    let error = answer["error"].as_object().unwrap_or_else(|| panic!("no error: {answer}"));
    let fields: Vec<&str> = error.keys().map(String::as_str).collect();
    assert_eq!(fields, ["message", "type", "param", "code"]);
    assert!(error["type"].is_string());
    (error["message"].as_str().unwrap(), &error["param"], &error["code"])
}

/// A body, the field that is wrong with it, and what is said of that.
type Wrong = (Value, &'static str, &'static str);

fn wrong_completions() -> Vec<Wrong> {
    vec![
        (json!({"prompt": "a", "temperature": -1}), "temperature", "at least 0"),
        (json!({"prompt": "a", "temperature": "hot"}), "temperature", "expected a number"),
        (json!({"prompt": "a", "temperature": 1e300}), "temperature", "finite"),
        (json!({"prompt": "a", "top_p": 0}), "top_p", "(0, 1]"),
        (json!({"prompt": "a", "top_k": -2}), "top_k", "-1 or 0"),
        (json!({"prompt": "a", "min_p": 2}), "min_p", "[0, 1]"),
        (json!({"prompt": "a", "repetition_penalty": 0}), "repetition_penalty", "above 0"),
        (json!({"prompt": "a", "presence_penalty": 3}), "presence_penalty", "[-2, 2]"),
        (json!({"prompt": "a", "frequency_penalty": -3}), "frequency_penalty", "[-2, 2]"),
        (json!({"prompt": "a", "n": 0}), "n", "1..=128"),
        (json!({"prompt": "a", "n": 129}), "n", "1..=128"),
        (json!({"prompt": "a", "n": -1}), "n", "whole number of at least 0"),
        (json!({"prompt": "a", "max_tokens": 0}), "max_tokens", "at least 1"),
        (json!({"prompt": "a", "max_tokens": 1.5}), "max_tokens", "whole number"),
        (json!({"prompt": "a", "max_tokens": 5000}), "max_tokens", "1024"),
        (json!({"prompt": "a", "max_tokens": 5, "min_tokens": 6}), "min_tokens", "at most"),
        (json!({"prompt": "a", "logprobs": 21}), "logprobs", "0..=20"),
        (json!({"prompt": "a", "logit_bias": {"1": 101}}), "logit_bias", "[-100, 100]"),
        (json!({"prompt": "a", "logit_bias": {"x": 1}}), "logit_bias", "token ids"),
        (json!({"prompt": "a", "logit_bias": {"1024": 1}}), "logit_bias", "below 1024"),
        (json!({"prompt": "a", "stop": [""]}), "stop", "some text"),
        (json!({"prompt": "a", "stop": 7}), "stop", "a text or a list of texts"),
        (json!({"prompt": "a", "stop": vec!["x"; 65]}), "stop", "at most 64"),
        (json!({"prompt": "a", "seed": 0.5}), "seed", "whole number"),
        (json!({"prompt": "a", "suffix": "b"}), "suffix", "not served"),
        (json!({"prompt": "a", "stream": "yes"}), "stream", "boolean"),
        (json!({"prompt": ""}), "prompt", "must have a token"),
        (json!({"prompt": []}), "prompt", "must have a token"),
        (json!({"prompt": {"a": 1}}), "prompt", "list of token ids"),
        (json!({"prompt": [1024]}), "prompt", "below 1024"),
        (json!({"prompt": [-1]}), "prompt", "list of token ids"),
        (json!({"prompt": "a ".repeat(1100)}), "max_tokens", "context"),
        (json!({"prompt": "a".repeat(1 << 20)}), "prompt", "1048576 bytes"),
        (
            json!({"prompt": "a", "response_format": {"type": "xml"}}),
            "response_format.type",
            "json",
        ),
        (
            json!({"prompt": "a", "response_format": {"type": "json_schema"}}),
            "response_format.json_schema",
            "no json_schema",
        ),
        (
            json!({"prompt": "a", "response_format":
            {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}}),
            "response_format",
            "no grammar",
        ),
        (json!({"prompt": vec!["a"; 600], "n": 2}), "prompt", "1024 answers"),
    ]
}

fn wrong_chats() -> Vec<Wrong> {
    let message = json!([{"role": "user", "content": "a"}]);
    vec![
        (json!({"messages": []}), "messages", "must have a message"),
        (json!({"messages": "hello"}), "messages", "sequence"),
        (json!({"messages": [{"content": "a"}]}), "messages[0].role", "must be a text"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content", "missing"),
        (json!({"messages": [{"role": "user", "content": 3}]}), "messages[0].content", "a text"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            "messages[0].content",
            "not text",
        ),
        (json!({"messages": message, "top_logprobs": 2}), "top_logprobs", "logprobs is not true"),
        (
            json!({"messages": message, "logprobs": true, "top_logprobs": 21}),
            "top_logprobs",
            "0..=20",
        ),
        (json!({"messages": message, "logprobs": 2}), "logprobs", "boolean"),
        (json!({"messages": message, "max_completion_tokens": 2000}), "max_tokens", "1024"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_field_is_named_with_what_it_may_be() {
    let server = TestServer::start().await;
    let all = wrong_completions().into_iter().map(|case| (COMPLETIONS, case));
    for (path, (body, param, why)) in all.chain(wrong_chats().into_iter().map(|case| (CHAT, case)))
    {
        let (status, answer) = server.post(path, &body).await;
        let shown: String = body.to_string().chars().take(200).collect();
        assert_eq!(status, 400, "{shown}: {answer}");
        let (message, named, _) = check(&answer);
        assert_eq!(named, param, "{shown}: {message}");
        assert!(message.contains(why), "{shown}: {message}");
    }
    let missing = server.post(COMPLETIONS, &json!({})).await;
    assert!(check(&missing.1).0.contains("missing field `prompt`"), "{missing:?}");
    server.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_no_request_is_refused() {
    let server = TestServer::start().await;
    let send = async |kind: Option<&str>, body: Vec<u8>| {
        let request = server.client.post(server.url(COMPLETIONS)).body(body);
        let request = kind.into_iter().fold(request, |all, kind| all.header("content-type", kind));
        status_and_json(request.send().await.unwrap()).await
    };
    let json = Some("application/json");
    let bodies: [&[u8]; 9] = [
        b"",
        b"{",
        b"[]",
        b"null",
        b"1",
        b"{\"prompt\": \"\\ud800\"}",
        b"\xff\xfe",
        b"{}{}",
        b"{\"a\": 1e999}",
    ];
    for body in bodies {
        let (status, answer) = send(json, body.to_vec()).await;
        assert_eq!(status, 400, "{answer}");
        assert!(check(&answer).0.contains("not a JSON object"), "{answer}");
    }
    let (status, answer) = send(json, b"{\"a\":".repeat(10_000)).await;
    assert_eq!(status, 400, "{answer}");
    let sound = br#"{"prompt": "a", "max_tokens": 1}"#;
    for kind in [None, Some("text/plain"), Some("application/x-www-form-urlencoded")] {
        let (status, answer) = send(kind, sound.to_vec()).await;
        assert_eq!(status, 415, "{answer}");
        assert!(check(&answer).0.contains("application/json"));
    }
    let (status, answer) = send(Some("Application/JSON; charset=utf-8"), sound.to_vec()).await;
    assert_eq!(status, 200, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_not_found() {
    let server = TestServer::start().await;
    let (status, answer) =
        server.post(COMPLETIONS, &json!({"model": "gpt-4", "prompt": "a"})).await;
    assert_eq!(status, 404);
    let (message, param, code) = check(&answer);
    assert!(message.contains("gpt-4") && message.contains("tally"), "{message}");
    assert_eq!((param, code), (&json!("model"), &json!("model_not_found")));
    for path in ["/v1/models/gpt-4", "/v1/nothing", "/favicon.ico"] {
        let (status, answer) = status_and_json(server.get(path).await).await;
        assert_eq!(status, 404, "{path}");
        check(&answer);
    }
    for (method, path) in
        [(Method::GET, COMPLETIONS), (Method::DELETE, CHAT), (Method::POST, "/health")]
    {
        let request = server.client.request(method, server.url(path)).json(&json!({}));
        let response = request.send().await.unwrap();
        assert!(response.headers().contains_key("allow"), "{path}");
        let (status, answer) = status_and_json(response).await;
        assert_eq!(status, 405, "{path}");
        check(&answer);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_key_gets_no_answer() {
    let api_keys = vec!["first".to_owned(), "second".to_owned()];
    let config = ServerConfig { api_keys, ..ServerConfig::default() };
    let server = TestServer::with(EngineConfig::default(), config).await;
    let body = json!({"prompt": "a", "max_tokens": 1});
    for shown in
        [None, Some("Bearer wrong"), Some("Bearer firsT"), Some("Basic first"), Some("first")]
    {
        let request = server.request(COMPLETIONS, &body);
        let request = shown.into_iter().fold(request, |all, key| all.header("authorization", key));
        let response = request.send().await.unwrap();
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
        let (status, answer) = status_and_json(response).await;
        assert_eq!((status, check(&answer).2), (401, &json!("invalid_api_key")), "{shown:?}");
    }
    for key in ["first", "second"] {
        let response = server.request(COMPLETIONS, &body).bearer_auth(key).send().await.unwrap();
        assert_eq!(response.status(), 200);
    }
    assert_eq!(server.get("/v1/models").await.status(), 401);
    for open in ["/health", "/metrics", "/version", "/"] {
        assert_eq!(server.get(open).await.status(), 200, "{open}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_pages_may_ask_only_where_that_is_wanted() {
    let origins = ["https://a.example".to_owned()].to_vec();
    let allowing = ServerConfig { cors_origins: origins, ..ServerConfig::default() };
    for (config, allowed) in
        [(ServerConfig::default(), None), (allowing, Some("https://a.example"))]
    {
        let server = TestServer::with(EngineConfig::default(), config).await;
        for (origin, expected) in [("https://a.example", allowed), ("https://b.example", None)] {
            let request = server.client.request(Method::OPTIONS, server.url(COMPLETIONS));
            let request = request.header("origin", origin);
            let request = request.header("access-control-request-method", "POST");
            let response = request.send().await.unwrap();
            let header = response.headers().get("access-control-allow-origin");
            assert_eq!(header.map(|value| value.to_str().unwrap()), expected, "{origin}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_have_a_limit() {
    let config = ServerConfig { body_bytes_max: 10_000, ..ServerConfig::default() };
    let server = TestServer::with(EngineConfig::default(), config).await;
    let giant = json!({"prompt": "a".repeat(3 << 20)});
    let (status, answer) = server.post(COMPLETIONS, &giant).await;
    assert_eq!(status, 413, "{answer}");
    assert!(check(&answer).0.contains("10000 bytes"));
    // Without its length the body is cut where it becomes too large.
    let pieces = (0..100).map(|_| Ok::<_, std::io::Error>(vec![b' '; 1000]));
    let body = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
    let request = server.client.post(server.url(COMPLETIONS)).body(body);
    let response = request.header("content-type", "application/json").send().await.unwrap();
    assert_eq!(status_and_json(response).await.0, 413);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_says_when_to_come_back() {
    let engine = EngineConfig { max_num_seqs: 1, max_waiting: 2, ..EngineConfig::default() };
    let server = TestServer::with(engine, ServerConfig::default()).await;
    let long = json!({"prompt": "a", "max_tokens": 900, "ignore_eos": true, "stream": true});
    let mut streams = Vec::new();
    for expected in 1..=3 {
        streams.push(server.request(COMPLETIONS, &long).send().await.unwrap());
        let busy = || server.engine.metrics().running + server.engine.metrics().waiting;
        while busy() < expected {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let response = server.request(COMPLETIONS, &long).send().await.unwrap();
    let after: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&after));
    let (status, answer) = status_and_json(response).await;
    assert_eq!((status, check(&answer).2), (429, &json!("queue_full")), "{answer}");
    drop(streams);
    server.settle().await;
    server.ask(COMPLETIONS, &json!({"prompt": "a"})).await;
}
