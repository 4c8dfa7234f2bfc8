//! The endpoints: what is sent and what is answered.

pub(crate) mod chat;
pub(crate) mod completions;
mod format;
mod logprobs;
pub(crate) mod state;
mod stream;
pub(crate) mod tokens;

use std::sync::Arc;
use std::time::Duration;

use artel_engine::{Token, Usage};
use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::error::ApiError;
use crate::generate::{Choices, PromptLogprobs, ending};

/// How long the rest of a body that is too large is still read, so that its sender gets to see why.
const DISCARD_TIME: Duration = Duration::from_secs(2);

/// Requests from this size on are prepared beside the threads that serve connections.
const LARGE_REQUEST_BYTES: usize = 32 << 10;

/// A request body that is a JSON object.
#[derive(Debug)]
pub(crate) struct JsonBody {
    pub object: Map<String, Value>,
    bytes: usize,
}

impl FromRequest<Arc<App>> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        check_content_type(request.headers())?;
        let (limit, time) = (app.config.body_bytes_max, app.config.read_timeout);
        let body = tokio::time::timeout(time, read(request, limit)).await.map_err(|_| {
            let seconds = time.as_secs();
            let message = format!("the body was not complete within {seconds} s");
            ApiError::refused(StatusCode::REQUEST_TIMEOUT, message)
        })??;
        let object = serde_json::from_slice(&body).map_err(|error| {
            ApiError::invalid(format!("the body is not a JSON object: {error}"))
        })?;
        Ok(Self { object, bytes: body.len() })
    }
}

fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = given.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = format!("the body is {kind:?}, but must be \"application/json\" (Content-Type)");
    Err(ApiError::refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, message))
}

async fn read(request: Request, limit: usize) -> Result<axum::body::Bytes, ApiError> {
    let announced = request.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    let message = format!("the body is larger than the {limit} bytes that are allowed");
    let too_large = ApiError::refused(StatusCode::PAYLOAD_TOO_LARGE, message);
    let body = request.into_body();
    if announced.is_some_and(|length| length > limit) {
        discard(body).await;
        return Err(too_large);
    }
    let mut bytes = Vec::with_capacity(announced.unwrap_or(0));
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk
            .map_err(|error| ApiError::invalid(format!("the body cannot be read: {error}")))?;
        if bytes.len() + chunk.len() > limit {
            discard(Body::from_stream(chunks)).await;
            return Err(too_large);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.into())
}

/// Reads on without keeping anything: a connection that is closed on what was sent takes the answer
/// with it.
async fn discard(body: Body) {
    let mut chunks = body.into_data_stream();
    let all = async { while let Some(Ok(_)) = chunks.next().await {} };
    // Whoever takes longer does without the answer.
    let _ = tokio::time::timeout(DISCARD_TIME, all).await;
}

impl JsonBody {
    /// Some of its fields; the others are passed over.
    pub(crate) fn fields<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        fields(&self.object)
    }

    /// Fields that would change the answer but are not served are refused, so that nobody waits for
    /// what does not come. Values that ask for nothing are fine.
    pub(crate) fn refuse(&self, unserved: &[&'static str]) -> Result<(), ApiError> {
        let asks = |field: &&&str| match self.object.get(**field) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::String(text)) => !text.is_empty(),
            Some(Value::Array(items)) => !items.is_empty(),
            Some(_) => true,
        };
        match unserved.iter().find(asks) {
            None => Ok(()),
            Some(field) => {
                let message = format!("{field} is not served here; leave it out");
                Err(ApiError::field(*field, message).with_code("unsupported_parameter"))
            }
        }
    }
}

/// Reads the fields of an object; an error names the one that it is about.
pub(crate) fn fields<T: DeserializeOwned>(object: &Map<String, Value>) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(object).map_err(|error| {
        let field = error.path().to_string();
        let why = error.inner().to_string();
        let why = ["usize", "u64", "u32"].iter().fold(why, |why, kind| {
            why.replace(&format!("expected {kind}"), "expected a whole number of at least 0")
        });
        let why = ["i64", "i32"].iter().fold(why, |why, kind| {
            why.replace(&format!("expected {kind}"), "expected a whole number")
        });
        let why = why.replace("expected f32", "expected a number");
        match &field[..] {
            "." | "?" => ApiError::invalid(why),
            _ => ApiError::field(field.clone(), format!("{field}: {why}")),
        }
    })
}

/// Prepares a request: beside the threads that serve connections when that may take its time.
pub(crate) async fn prepare<T: Send + 'static>(
    app: &Arc<App>,
    body: JsonBody,
    prepare: impl FnOnce(&Arc<App>, JsonBody) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let costs = ["response_format", "tools"].iter().any(|field| body.object.contains_key(*field));
    if body.bytes < LARGE_REQUEST_BYTES && !costs {
        return prepare(app, body);
    }
    let app = Arc::clone(app);
    tokio::task::spawn_blocking(move || prepare(&app, body))
        .await
        .unwrap_or_else(|_| Err(ApiError::internal("the request could not be prepared")))
}

/// The model that is asked for is the one that is served.
pub(crate) fn check_model(app: &App, name: Option<&str>) -> Result<(), ApiError> {
    match name {
        Some(name) if !app.config.answers_to(name) => {
            let served = app.config.name();
            let message = format!("the model {name:?} does not exist; here is {served:?}");
            let error = ApiError::refused(StatusCode::NOT_FOUND, message);
            let param = Some("model".into());
            Err(ApiError { param, ..error.with_code("model_not_found") })
        }
        _ => Ok(()),
    }
}

/// A complete choice.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub text: String,
    pub prompt: Option<PromptLogprobs>,
    pub tokens: Vec<Token>,
    pub finish_reason: &'static str,
    pub stop_reason: Option<Value>,
    pub usage: Usage,
}

/// Waits for all choices.
pub(crate) async fn collect(mut choices: Choices) -> Result<Vec<Answer>, ApiError> {
    let mut answers: Vec<Answer> = (0..choices.len()).map(|_| Answer::default()).collect();
    while let Some(update) = choices.next().await {
        let answer = &mut answers[update.index];
        answer.text.push_str(&update.text());
        answer.tokens.extend(update.token);
        answer.prompt = answer.prompt.take().or(update.prompt);
        if let Some(finished) = update.finished {
            (answer.finish_reason, answer.stop_reason) = ending(&finished.reason)?;
            answer.usage = finished.usage;
        }
    }
    Ok(answers)
}

/// Tokens of all choices; those of a prompt count once, however many answers it gets.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct UsageSum {
    prompt: usize,
    cached: usize,
    completion: usize,
}

impl UsageSum {
    pub(crate) fn add(&mut self, usage: &Usage, is_first_of_prompt: bool) {
        if is_first_of_prompt {
            self.prompt += usage.prompt_tokens;
            self.cached += usage.cached_tokens;
        }
        self.completion += usage.completion_tokens;
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        })
    }
}

/// A name for an answer that no other has.
pub(crate) fn new_id(kind: &str) -> String {
    format!("{kind}-{:032x}", rand::random::<u128>())
}
