//! `/tokenize` and `/detokenize`.

use std::sync::Arc;

use artel_model::{Chat, Ending};
use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::chat::messages;
use super::{JsonBody, check_model, prepare};
use crate::app::App;
use crate::error::ApiError;
use crate::prompt::{check_length, encode_chat, refused};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TokenizeFields {
    model: Option<String>,
    prompt: Option<String>,
    messages: Option<Vec<Map<String, Value>>>,
    add_special_tokens: Option<bool>,
    add_generation_prompt: Option<bool>,
    return_token_strs: Option<bool>,
}

/// The tokens of a text or a chat.
pub(crate) async fn tokenize(
    State(app): State<Arc<App>>,
    body: JsonBody,
) -> Result<Json<Value>, ApiError> {
    prepare(&app, body, |app, body| {
        let fields: TokenizeFields = body.fields()?;
        check_model(app, fields.model.as_deref())?;
        let ids = token_ids(app, &fields)?;
        let texts = fields.return_token_strs.unwrap_or(false);
        let texts =
            texts.then(|| ids.iter().map(|&id| app.vocabulary.text(id)).collect::<Vec<_>>());
        Ok(Json(json!({
            "count": ids.len(),
            "max_model_len": app.model.engine.config().max_model_len,
            "tokens": ids,
            "token_strs": texts,
        })))
    })
    .await
}

fn token_ids(app: &App, fields: &TokenizeFields) -> Result<Vec<u32>, ApiError> {
    match (&fields.prompt, &fields.messages) {
        (Some(text), None) => {
            check_length(app, "prompt", text)?;
            let tokenizer = &app.model.tokenizer;
            let ids = match fields.add_special_tokens {
                Some(false) => tokenizer.encode_verbatim(text),
                _ => tokenizer.encode(text),
            };
            ids.map_err(|error| refused("prompt", error))
        }
        (None, Some(given)) => {
            let messages = messages(given)?;
            let ending = match fields.add_generation_prompt {
                Some(false) => Ending::LastMessage,
                _ => Ending::GenerationPrompt,
            };
            Ok(encode_chat(app, &Chat { ending, ..Chat::new(&messages) })?.0)
        }
        _ => Err(ApiError::field("prompt", "give either prompt or messages")),
    }
}

#[derive(Debug, Deserialize)]
struct DetokenizeFields {
    #[serde(default)]
    model: Option<String>,
    tokens: Vec<u32>,
}

/// The text of tokens.
pub(crate) async fn detokenize(
    State(app): State<Arc<App>>,
    body: JsonBody,
) -> Result<Json<Value>, ApiError> {
    prepare(&app, body, |app, body| {
        let fields: DetokenizeFields = body.fields()?;
        check_model(app, fields.model.as_deref())?;
        let size = app.model.engine.vocabulary();
        if let Some(id) = fields.tokens.iter().find(|id| **id as usize >= size) {
            let message = format!("tokens has {id}, but must be below {size}");
            return Err(ApiError::field("tokens", message));
        }
        let text = app.model.tokenizer.decode(&fields.tokens);
        Ok(Json(json!({"prompt": text.map_err(|error| refused("tokens", error))?})))
    })
    .await
}
