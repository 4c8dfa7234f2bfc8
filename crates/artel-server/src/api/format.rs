//! `response_format`: what an answer has to look like.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::fields;
use crate::app::App;
use crate::error::ApiError;
use crate::grammar::Grammar;

#[derive(Debug, Deserialize)]
struct Fields {
    #[serde(default)]
    response_format: Option<ResponseFormat>,
}

#[derive(Debug, Deserialize)]
struct ResponseFormat {
    r#type: String,
    #[serde(default)]
    json_schema: Option<JsonSchema>,
}

#[derive(Debug, Deserialize)]
struct JsonSchema {
    #[serde(default)]
    schema: Option<Value>,
}

/// The grammar of what is asked for, if anything is.
pub(crate) fn grammar(app: &App, body: &Map<String, Value>) -> Result<Option<Grammar>, ApiError> {
    const FIELD: &str = "response_format";
    let Some(format) = fields::<Fields>(body)?.response_format else { return Ok(None) };
    let schema = match (&format.r#type[..], format.json_schema) {
        ("text", _) => return Ok(None),
        ("json_object", _) => json!({"type": "object"}),
        ("json_schema", Some(given)) => {
            let schema = given.schema.unwrap_or_else(|| json!({}));
            if !schema.is_object() {
                let message = "response_format.json_schema.schema must be an object";
                return Err(ApiError::field("response_format.json_schema.schema", message));
            }
            schema
        }
        ("json_schema", None) => {
            let message = "response_format has the type \"json_schema\", but no json_schema";
            return Err(ApiError::field("response_format.json_schema", message));
        }
        (other, _) => {
            let message = format!(
                "response_format.type is {other:?}, but must be \"text\", \"json_object\" or \
                 \"json_schema\""
            );
            return Err(ApiError::field("response_format.type", message));
        }
    };
    Grammar::json(app, FIELD, schema).map(Some)
}
