//! From what was sent to token ids.

use artel_model::{Chat, ModelError};
use serde::Deserialize;

use crate::app::App;
use crate::error::ApiError;

/// A prompt of `/v1/completions`: one or several, as text or as token ids.
#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a text, a list of texts, a list of token ids or a list of such lists"
)]
pub(crate) enum PromptField {
    Text(String),
    Texts(Vec<String>),
    Ids(Vec<u32>),
    IdLists(Vec<Vec<u32>>),
}

/// One prompt.
#[derive(Debug, Clone)]
pub(crate) struct Prompt {
    pub ids: Vec<u32>,
    /// The text that was given, if it was text.
    pub text: Option<String>,
}

impl PromptField {
    /// All prompts in tokens.
    pub(crate) fn encode(self, app: &App) -> Result<Vec<Prompt>, ApiError> {
        let text = |text: String| {
            check_length(app, "prompt", &text)?;
            let ids =
                app.model.tokenizer.encode(&text).map_err(|error| refused("prompt", error))?;
            Ok(Prompt { ids, text: Some(text) })
        };
        let ids = |ids: Vec<u32>| Prompt { ids, text: None };
        let prompts: Vec<Prompt> = match self {
            Self::Text(one) => vec![text(one)?],
            Self::Texts(many) => many.into_iter().map(text).collect::<Result<_, ApiError>>()?,
            Self::Ids(one) => vec![ids(one)],
            Self::IdLists(many) => many.into_iter().map(ids).collect(),
        };
        match prompts.iter().any(|prompt| prompt.ids.is_empty()) || prompts.is_empty() {
            true => Err(ApiError::field("prompt", "prompt is empty, but must have a token")),
            false => Ok(prompts),
        }
    }
}

/// A chat in tokens, and the text that the template made of it.
pub(crate) fn encode_chat(app: &App, chat: &Chat<'_>) -> Result<(Vec<u32>, String), ApiError> {
    let Some(template) = &app.model.template else {
        let message = "the model has no chat template; use /v1/completions";
        return Err(ApiError::field("messages", message));
    };
    let text = template.render(chat).map_err(|error| refused("messages", error))?;
    check_length(app, "messages", &text)?;
    let ids = app.model.tokenizer.encode_verbatim(&text);
    Ok((ids.map_err(|error| refused("messages", error))?, text))
}

/// A text that is longer than the longest tokens can make it is refused before it costs anything.
pub(crate) fn check_length(app: &App, field: &'static str, text: &str) -> Result<(), ApiError> {
    let Some(longest) = app.vocabulary.longest() else { return Ok(()) };
    let context = app.model.engine.config().max_model_len;
    if text.len() <= context.saturating_mul(longest) {
        return Ok(());
    }
    let message = format!(
        "{field} has {} bytes, which cannot be the {context} tokens that the context holds",
        text.len()
    );
    Err(ApiError::field(field, message).with_code("context_length_exceeded"))
}

pub(crate) fn refused(field: &'static str, error: ModelError) -> ApiError {
    ApiError::field(field, error.to_string())
}
