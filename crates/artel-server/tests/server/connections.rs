//! Clients that go away, are slow or stay too long.

use std::time::{Duration, Instant};

use artel_engine::EngineConfig;
use artel_server::ServerConfig;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::{TestServer, chunks, parse_events};

const COMPLETIONS: &str = "/v1/completions";

fn long(streams: bool) -> Value {
    json!({"prompt": "a", "max_tokens": 1000, "ignore_eos": true, "stream": streams})
}

/// A request as bytes.
fn raw(body: &Value) -> Vec<u8> {
    let body = body.to_string();
    let length = body.len();
    format!(
        "POST {COMPLETIONS} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Waits until the engine has cancelled so many requests.
async fn cancelled(server: &TestServer, count: u64) {
    let begun = Instant::now();
    while server.engine.metrics().finished.cancelled < count {
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", server.engine.metrics());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    server.settle().await;
}

async fn wait_until_running(server: &TestServer) {
    while server.engine.metrics().running == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_takes_its_request_with_it() {
    let server = TestServer::start().await;
    let mut body = server.request(COMPLETIONS, &long(true)).send().await.unwrap().bytes_stream();
    body.next().await.unwrap().unwrap();
    drop(body);
    cancelled(&server, 1).await;

    for (count, streams) in [(2, false), (3, true)] {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        socket.write_all(&raw(&long(streams))).await.unwrap();
        wait_until_running(&server).await;
        drop(socket);
        cancelled(&server, count).await;
    }
    // All choices of a request go.
    let mut many = long(true);
    many["n"] = 5.into();
    let response = server.request(COMPLETIONS, &many).send().await.unwrap();
    drop(response);
    cancelled(&server, 8).await;
    assert_eq!(server.get("/health").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_is_half_closed_is_dropped() {
    let server = TestServer::start().await;
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    socket.write_all(&raw(&long(true))).await.unwrap();
    wait_until_running(&server).await;
    socket.shutdown().await.unwrap();
    let mut rest = Vec::new();
    // The server may close at once, which some systems report as an error.
    let _ =
        tokio::time::timeout(Duration::from_secs(20), socket.read_to_end(&mut rest)).await.unwrap();
    assert!(!String::from_utf8_lossy(&rest).contains("[DONE]"));
    cancelled(&server, 1).await;
    server.ask(COMPLETIONS, &json!({"prompt": "a"})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_are_not_waited_for() {
    let read_timeout = Duration::from_millis(200);
    let config = ServerConfig { read_timeout, ..ServerConfig::default() };
    let server = TestServer::with(EngineConfig::default(), config).await;
    let request = raw(&json!({"prompt": "a"}));
    let head = request.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
    for (sent, expected) in [(0, ""), (10, ""), (head, "408"), (head + 5, "408")] {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        socket.write_all(&request[..sent]).await.unwrap();
        let mut answer = String::new();
        let read = socket.read_to_string(&mut answer);
        tokio::time::timeout(Duration::from_secs(20), read).await.unwrap().unwrap();
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert_eq!(status, expected, "{sent} bytes: {answer}");
    }
    server.ask(COMPLETIONS, &json!({"prompt": "a"})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_let_go() {
    let write_timeout = Duration::from_millis(200);
    let config = ServerConfig { write_timeout, ..ServerConfig::default() };
    let server = TestServer::with(EngineConfig::default(), config).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut socket = socket.connect(server.address).await.unwrap();
    // More than the buffers of the system hold.
    let mut request = long(true);
    request
        .as_object_mut()
        .unwrap()
        .extend([("logprobs".to_owned(), 20.into()), ("n".to_owned(), 24.into())]);
    socket.write_all(&raw(&request)).await.unwrap();
    cancelled(&server, 1).await;
    server.ask(COMPLETIONS, &json!({"prompt": "a"})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_http_is_dropped() {
    let server = TestServer::start().await;
    for bytes in [&b"\x16\x03\x01\x02\x00\x01"[..], b"GET\r\n\r\n", &[b'a'; 1 << 20]] {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        // It may be closed while we write.
        let _ = socket.write_all(bytes).await;
        let _ = socket.shutdown().await;
        let mut answer = Vec::new();
        let read = socket.read_to_end(&mut answer);
        let _ = tokio::time::timeout(Duration::from_secs(20), read).await.unwrap();
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{answer:?}");
    }
    server.ask(COMPLETIONS, &json!({"prompt": "a"})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_run_are_finished_before_the_server_stops() {
    let mut server = TestServer::start().await;
    let body = json!({"prompt": "a", "max_tokens": 300, "ignore_eos": true, "stream": true});
    let response = server.request(COMPLETIONS, &body).send().await.unwrap();
    let waiting = tokio::spawn(chunks(response));
    wait_until_running(&server).await;
    server.shut_down().await;
    let chunks = waiting.await.unwrap();
    assert_eq!(chunks.last(), Some(&Value::Null), "{chunks:?}");
    assert!(chunks.len() >= 301);
    assert!(!server.engine.is_alive());
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_too_long_is_cut_off_with_an_error() {
    let (engine, config) = (EngineConfig::default(), ServerConfig::default());
    let mut server = TestServer::with_grace(engine, config, Duration::ZERO).await;
    let streamed = server.request(COMPLETIONS, &long(true)).send().await.unwrap();
    let streamed = tokio::spawn(async move { streamed.text().await.unwrap() });
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    socket.write_all(&raw(&long(false))).await.unwrap();
    while server.engine.metrics().running < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    server.shut_down().await;
    let events = parse_events(&streamed.await.unwrap());
    assert_eq!(events.last().unwrap()["error"]["code"], "shutdown", "{events:?}");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("shutdown"), "{answer}");
}
