//! Many clients at the same time.

use std::sync::Arc;
use std::time::Duration;

use artel_engine::EngineConfig;
use artel_server::ServerConfig;
use serde_json::{Value, json};

use crate::support::{TestServer, chunks};

const COMPLETIONS: &str = "/v1/completions";
const STREAMS: usize = 1000;

/// Different lengths, prompts and seeds.
fn body(index: usize) -> Value {
    json!({
        "prompt": format!("{index} apples and {} pears are", index * 7),
        "max_tokens": 1 + index % 8,
        "seed": index,
        "temperature": 1,
        "ignore_eos": true,
        "logprobs": 0,
        "stream": true,
        "stream_options": {"include_usage": true},
    })
}

/// Tokens that a stream delivered, which must be what it says itself and what was asked for.
async fn count(server: Arc<TestServer>, index: usize) -> usize {
    let body = body(index);
    let response = server.request(COMPLETIONS, &body).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let events = chunks(response).await;
    assert_eq!(events.last(), Some(&Value::Null), "stream {index} is not complete");
    let tokens =
        |chunk: &Value| chunk["choices"][0]["logprobs"]["tokens"].as_array().map_or(0, Vec::len);
    let delivered: usize = events.iter().map(tokens).sum();
    let usage = &events[events.len() - 2]["usage"];
    assert_eq!(usage["completion_tokens"], delivered, "stream {index}");
    assert_eq!(delivered, body["max_tokens"].as_u64().unwrap() as usize, "stream {index}");
    delivered
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_streams_lose_no_token_and_leak_no_block() {
    rlimit::increase_nofile_limit(8192).unwrap();
    let server = Arc::new(TestServer::start().await);
    let streams: Vec<_> =
        (0..STREAMS).map(|index| tokio::spawn(count(Arc::clone(&server), index))).collect();
    let mut delivered = 0;
    for stream in streams {
        delivered += stream.await.unwrap();
    }
    server.settle().await;
    let now = server.engine.metrics();
    assert_eq!(now.generated_tokens, delivered as u64);
    assert_eq!((now.finished.length, now.finished.total()), (STREAMS as u64, STREAMS as u64));
    assert_eq!((now.kv_blocks_used, now.running, now.waiting), (0, 0, 0));
    assert_eq!(server.metric("artel:generation_tokens_total").await, delivered as f64);
    assert_eq!(server.metric("artel:time_to_first_token_seconds_count").await, STREAMS as f64);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_beside_streams_change_nothing_for_them() {
    let engine = EngineConfig { max_num_seqs: 8, ..EngineConfig::default() };
    let server = Arc::new(TestServer::with(engine, ServerConfig::default()).await);
    let malformed = [
        json!({"prompt": "a", "temperature": "hot"}),
        json!({"prompt": "a".repeat(100_000)}),
        json!({"prompt": [9_999_999]}),
        json!({"prompt": "a", "response_format": {"type": "json_schema",
            "json_schema": {"schema": {"pattern": "(((((a*)*)*)*)*)*{100,10000}"}}}}),
        json!({"model": "other", "prompt": "a"}),
    ];
    let streams: Vec<_> =
        (0..100).map(|index| tokio::spawn(count(Arc::clone(&server), index))).collect();
    for body in malformed.iter().cycle().take(10) {
        let (status, answer) = server.post(COMPLETIONS, body).await;
        assert!((400..500).contains(&status) || status == 200, "{answer}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    for stream in streams {
        stream.await.unwrap();
    }
    server.settle().await;
}
