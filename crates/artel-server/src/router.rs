//! Which path is which endpoint, and who may ask.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};
use subtle::{Choice, ConstantTimeEq};
use tower_http::cors::{AllowOrigin, Any, CorsLayer};

use crate::api::{chat, completions, state, tokens};
use crate::app::App;
use crate::config::ServerConfig;
use crate::error::{ApiError, ServerError};
use crate::page;

/// The whole server but for its connections.
pub(crate) fn router(app: Arc<App>) -> Result<Router, ServerError> {
    let cors = cors(&app.config)?;
    let guarded = Router::new()
        .route("/v1/completions", post(completions::completions))
        .route("/v1/chat/completions", post(chat::chat))
        .route("/v1/models", get(state::models))
        .route("/v1/models/{*name}", get(state::model))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route_layer(from_fn_with_state(Arc::clone(&app), check_key));
    let router = guarded
        .route("/", get(page::page))
        .route("/page.js", get(page::script))
        .route("/health", get(state::health))
        .route("/version", get(state::version))
        .route("/metrics", get(state::metrics))
        .fallback(not_found)
        .method_not_allowed_fallback(not_allowed)
        .layer(from_fn_with_state(Arc::clone(&app), record))
        .with_state(app);
    Ok(match cors {
        Some(cors) => router.layer(cors),
        None => router,
    })
}

async fn not_found(request: Request) -> ApiError {
    let path = request.uri().path();
    ApiError::refused(StatusCode::NOT_FOUND, format!("there is nothing at {path}"))
}

async fn not_allowed(request: Request) -> ApiError {
    let (method, path) = (request.method(), request.uri().path());
    let message = format!("{path} does not answer to {method}");
    ApiError::refused(StatusCode::METHOD_NOT_ALLOWED, message)
}

/// Counts and, where that is wanted, logs what is answered.
async fn record(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = next.run(request).await;
    let status = response.status().as_u16();
    app.recorder.response(status);
    if app.config.log_requests {
        let milliseconds = started.elapsed().as_secs_f64() * 1e3;
        tracing::info!(%method, path, status, milliseconds, "answered");
    }
    response
}

/// Lets through who shows one of the keys, if there are keys.
async fn check_key(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let keys = &app.config.api_keys;
    if keys.is_empty() || request.method() == Method::OPTIONS {
        return Ok(next.run(request).await);
    }
    let Some(shown) = bearer(request.headers()) else {
        let message = "an API key is needed: send it as \"Authorization: Bearer KEY\"";
        let error = ApiError::refused(StatusCode::UNAUTHORIZED, message);
        return Err(error.with_code("invalid_api_key"));
    };
    // All keys are looked at in full, so that the time tells nothing of them but their lengths.
    let fits = keys.iter().fold(Choice::from(0), |fits, key| fits | key.as_bytes().ct_eq(shown));
    if bool::from(fits) {
        return Ok(next.run(request).await);
    }
    let error =
        ApiError::refused(StatusCode::UNAUTHORIZED, "the API key is not one of this server");
    Err(error.with_code("invalid_api_key"))
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, key) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key)
}

fn cors(config: &ServerConfig) -> Result<Option<CorsLayer>, ServerError> {
    if config.cors_origins.is_empty() {
        return Ok(None);
    }
    let origins = match config.cors_origins.iter().any(|origin| origin == "*") {
        true => AllowOrigin::any(),
        false => {
            let parse = |origin: &String| {
                let value = HeaderValue::from_str(origin).ok();
                let value = value.filter(|_| origin.contains("://") && !origin.ends_with('/'));
                value.ok_or_else(|| ServerError::Origin { origin: origin.clone() })
            };
            let origins: Result<Vec<_>, _> = config.cors_origins.iter().map(parse).collect();
            AllowOrigin::list(origins?)
        }
    };
    let methods = [Method::GET, Method::POST];
    Ok(Some(CorsLayer::new().allow_origin(origins).allow_methods(methods).allow_headers(Any)))
}
