//! What the server says of itself: `/v1/models`, `/health`, `/version`, `/metrics`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::check_model;
use crate::app::App;
use crate::error::ApiError;
use crate::metrics;

/// All models, which is one.
pub(crate) async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    let names = app.config.names.iter();
    let models: Vec<Value> = names.map(|name| model_object(&app, name)).collect();
    Json(json!({"object": "list", "data": models}))
}

/// One of them.
pub(crate) async fn model(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    check_model(&app, Some(&name))?;
    Ok(Json(model_object(&app, app.config.name())))
}

fn model_object(app: &App, name: &str) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": app.created,
        "owned_by": "artel",
        "root": app.model.root,
        "parent": null,
        "max_model_len": app.model.engine.config().max_model_len,
    })
}

/// Whether requests are answered.
pub(crate) async fn health(State(app): State<Arc<App>>) -> Response {
    if app.model.engine.is_alive() {
        return Json(json!({"status": "ok"})).into_response();
    }
    let message = "the engine has stopped working";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message).into_response()
}

/// The program's version.
pub(crate) async fn version(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({"version": app.model.version}))
}

/// Everything that is counted.
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Response {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::text(&app)).into_response()
}
