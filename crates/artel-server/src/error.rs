use std::borrow::Cow;
use std::time::Duration;

use artel_engine::SubmitError;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// Nobody can listen there.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// An origin that no browser would send.
    #[error("{origin:?} is no origin: give a scheme and a host, as in https://example.org, or *")]
    Origin {
        /// What was given.
        origin: String,
    },
}

/// An error as clients of OpenAI's API know it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ApiError {
    pub status: StatusCode,
    pub kind: &'static str,
    pub message: String,
    /// The field that it is about.
    pub param: Option<Cow<'static, str>>,
    pub code: Option<&'static str>,
    pub retry_after: Option<Duration>,
}

const INVALID_REQUEST: &str = "invalid_request_error";

impl ApiError {
    pub(crate) fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        let (message, param, code, retry_after) = (message.into(), None, None, None);
        Self { status, kind, message, param, code, retry_after }
    }

    /// A field has a value that it cannot have; the sentence says what it can.
    pub(crate) fn field(param: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        let param = Some(param.into());
        Self { param, ..Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, message) }
    }

    /// The request as a whole makes no sense.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, message)
    }

    /// The same with another status.
    pub(crate) fn refused(status: StatusCode, message: impl Into<String>) -> Self {
        Self::new(status, INVALID_REQUEST, message)
    }

    pub(crate) fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// The server's fault.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// Nobody's fault: the server is on its way out.
    pub(crate) fn stopped() -> Self {
        let message = "the server is shutting down and takes no more requests";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message).with_code("shutdown")
    }

    /// The object that is sent, alone or in a stream.
    pub(crate) fn object(&self) -> Value {
        json!({"error": {
            "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
        }})
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::QueueFull { retry_after, .. } => Self {
                retry_after: Some(retry_after),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
                    .with_code("queue_full")
            },
            SubmitError::PromptTooLong { .. } => {
                Self::field("max_tokens", message).with_code("context_length_exceeded")
            }
            SubmitError::Invalid { field, .. } => Self::field(field, message),
            SubmitError::Stopped => Self::stopped(),
            other => Self::internal(other.to_string()),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.object())).into_response();
        if let Some(after) = self.retry_after {
            let seconds = HeaderValue::from(after.as_secs().max(1));
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}
