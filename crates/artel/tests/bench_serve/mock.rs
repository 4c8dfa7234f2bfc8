//! A server that streams tokens at a known pace and fails when it is told to.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use axum::{Json, Router};
use futures_util::stream;
use serde_json::{Value, json};

/// What goes wrong with a request, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// HTTP 500 instead of a stream.
    Refused,
    /// The connection closes after two tokens.
    Disconnect,
    /// An error event after two tokens.
    ErrorEvent,
}

/// How the server behaves.
#[derive(Debug, Clone, Copy)]
pub struct Behaviour {
    /// Pause before each token.
    pub pace: Duration,
    pub fault: fn(usize) -> Fault,
    /// Whether `/metrics` is an Artel server's.
    pub is_artel: bool,
    /// Whether usage is told where it is asked for.
    pub usage: bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        let pace = Duration::from_millis(20);
        Self { pace, fault: |_| Fault::None, is_artel: false, usage: true }
    }
}

/// A running server; it ends with the test's process.
#[derive(Debug)]
pub struct Mock {
    address: SocketAddr,
    seen: Arc<Seen>,
    _runtime: tokio::runtime::Runtime,
}

#[derive(Debug, Default)]
struct Seen {
    requests: AtomicUsize,
    readings: AtomicUsize,
    open: AtomicUsize,
    open_max: AtomicUsize,
    bodies: Mutex<Vec<Value>>,
}

type Shared = State<(Behaviour, Arc<Seen>)>;

impl Mock {
    pub fn start(behaviour: Behaviour) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let seen = Arc::new(Seen::default());
        let app = Router::new()
            .route("/v1/models", get(models))
            .route("/metrics", get(metrics))
            .route("/v1/completions", post(completions))
            .route("/v1/chat/completions", post(chat))
            .with_state((behaviour, Arc::clone(&seen)));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        // A token is sent when it is there, not when the one before was acknowledged.
        let listener = listener.tap_io(|connection| connection.set_nodelay(true).unwrap());
        runtime.spawn(async move { axum::serve(listener, app).await });
        Self { address, seen, _runtime: runtime }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Bodies of the requests for answers, as they arrived.
    pub fn bodies(&self) -> Vec<Value> {
        self.seen.bodies.lock().unwrap().clone()
    }

    /// Most answers that were being written at the same time.
    pub fn open_max(&self) -> usize {
        self.seen.open_max.load(Ordering::SeqCst)
    }
}

async fn models() -> Json<Value> {
    Json(json!({"object": "list", "data": [{"id": "tally", "root": "tally"}]}))
}

/// Between two readings: 100 steps, 0.02 s of scheduling, one expert with three times the load.
async fn metrics(State((behaviour, seen)): Shared) -> Response {
    let reading = seen.readings.fetch_add(1, Ordering::SeqCst);
    if !behaviour.is_artel {
        return "vllm:num_requests_running{model_name=\"a\"} 0\n".into_response();
    }
    format!(
        "artel:steps_total {}\nartel:step_seconds_total{{phase=\"schedule\"}} {}\n\
         artel:expert_tokens_total{{layer=\"0\",expert=\"0\"}} {}\n\
         artel:expert_tokens_total{{layer=\"0\",expert=\"1\"}} {}\n\
         artel:active_experts_sum{{layer=\"0\"}} {}\nartel:active_experts_count{{layer=\"0\"}} {}\n",
        100 * reading,
        0.02 * reading as f64,
        30 * reading,
        10 * reading,
        150 * reading,
        100 * reading
    )
    .into_response()
}

async fn completions(state: Shared, body: Json<Value>) -> Response {
    answer(state, body.0, "max_tokens", |text| json!({"text": text})).await
}

async fn chat(state: Shared, body: Json<Value>) -> Response {
    answer(state, body.0, "max_completion_tokens", |text| json!({"delta": {"content": text}})).await
}

async fn answer(
    State((behaviour, seen)): Shared,
    body: Value,
    length: &str,
    choice: fn(&str) -> Value,
) -> Response {
    let number = seen.requests.fetch_add(1, Ordering::SeqCst);
    seen.bodies.lock().unwrap().push(body.clone());
    let model = body["model"].as_str().unwrap_or_default();
    if model != "tally" {
        let message = format!("The model `{model}` does not exist.");
        let error = json!({"error": {"message": message, "type": "NotFoundError", "code": 404}});
        return (StatusCode::NOT_FOUND, Json(error)).into_response();
    }
    let fault = (behaviour.fault)(number);
    if fault == Fault::Refused {
        let error = json!({"error": {"message": "no memory left"}});
        return (StatusCode::INTERNAL_SERVER_ERROR, Json(error)).into_response();
    }
    let open = seen.open.fetch_add(1, Ordering::SeqCst) + 1;
    seen.open_max.fetch_max(open, Ordering::SeqCst);
    let tokens = body[length].as_u64().unwrap() as usize;
    let asks_usage = body["stream_options"]["include_usage"] == true;
    let usage = (behaviour.usage && asks_usage).then(
        || json!({"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": tokens}}),
    );
    let events = stream::unfold(0, move |step| {
        let (usage, seen) = (usage.clone(), Arc::clone(&seen));
        async move {
            if step < tokens {
                tokio::time::sleep(behaviour.pace).await;
            }
            let event = match (fault, step) {
                (Fault::Disconnect, 2) => Err(std::io::Error::other("gone")),
                (Fault::ErrorEvent, 2) => {
                    Ok("data: {\"error\": {\"message\": \"lost a GPU\"}}\n\n".to_owned())
                }
                _ if step < tokens => {
                    let mut choice = choice("né ");
                    choice["finish_reason"] = (step + 1 == tokens).then_some("length").into();
                    Ok(format!(": ping\n\ndata: {}\n\n", json!({"choices": [choice]})))
                }
                _ if step == tokens => {
                    seen.open.fetch_sub(1, Ordering::SeqCst);
                    let usage = usage.map(|usage| format!("data: {usage}\n\n"));
                    Ok(usage.unwrap_or_default() + "data: [DONE]\n\n")
                }
                _ => return None,
            };
            Some((event, step + 1))
        }
    });
    ([("content-type", "text/event-stream")], Body::from_stream(events)).into_response()
}
