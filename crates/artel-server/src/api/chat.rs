//! `/v1/chat/completions`: answers to messages.

use std::sync::Arc;

use artel_model::{Chat, Ending, Message};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::logprobs::chat_logprobs;
use super::stream::{Chunks, stream};
use super::{Answer, JsonBody, UsageSum, check_model, collect, new_id, prepare};
use crate::app::{App, unix_seconds};
use crate::error::ApiError;
use crate::generate::{Choices, Update, ending};
use crate::grammar::Grammar;
use crate::prompt::encode_chat;
use crate::reasoning::{Opening, Piece, Splitter};
use crate::sampling::{CommonFields, Recipe, logprobs};
use crate::tools::{Call, CallReader, Tools};

/// What is not served here.
const UNSERVED: [&str; 11] = [
    "audio",
    "functions",
    "function_call",
    "web_search_options",
    "use_beam_search",
    "best_of",
    "prompt_logprobs",
    "echo",
    "continue_final_message",
    "include_stop_str_in_output",
    "allowed_token_ids",
];

#[derive(Debug, Deserialize)]
struct Fields {
    messages: Vec<Map<String, Value>>,
    #[serde(default)]
    max_completion_tokens: Option<usize>,
    #[serde(default)]
    logprobs: Option<bool>,
    #[serde(default)]
    top_logprobs: Option<usize>,
    #[serde(default)]
    add_generation_prompt: Option<bool>,
    #[serde(default)]
    chat_template_kwargs: Option<Map<String, Value>>,
}

/// A request that is ready to be submitted.
struct Prepared {
    prompt_ids: Vec<u32>,
    n: usize,
    recipe: Recipe,
    streams: bool,
    includes_usage: bool,
    opening: Opening,
    tools: Tools,
}

/// Answers a request.
pub(crate) async fn chat(
    State(app): State<Arc<App>>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let prepared = prepare(&app, body, read).await?;
    let Prepared { prompt_ids, n, recipe, streams, includes_usage, opening, tools } = prepared;
    let requests = (0..n).map(|choice| recipe.request(prompt_ids.clone(), choice));
    let choices = Choices::submit(&app, requests)?;
    let writer = Writer::new(app, n, recipe.logprobs.is_some(), (opening, &tools));
    if streams {
        return Ok(stream(choices, writer, n, includes_usage));
    }
    Ok(Json(writer.whole(collect(choices).await?)).into_response())
}

fn read(app: &Arc<App>, body: JsonBody) -> Result<Prepared, ApiError> {
    body.refuse(&UNSERVED)?;
    let mut common: CommonFields = body.fields()?;
    check_model(app, common.model.as_deref())?;
    let fields: Fields = body.fields()?;
    let n = common.choices()?;
    let messages = messages(&fields.messages)?;
    let ending = match fields.add_generation_prompt {
        Some(false) => Ending::LastMessage,
        _ => Ending::GenerationPrompt,
    };
    let variables = fields.chat_template_kwargs.unwrap_or_default();
    let tools = Tools::read(app, &body.object)?;
    let shown = tools.for_template();
    let chat = Chat { ending, variables, tools: shown, ..Chat::new(&messages) };
    let (prompt_ids, text) = encode_chat(app, &chat)?;
    let opening = Opening::after(&text, &app.model.tokenizer);
    common.max_tokens = fields.max_completion_tokens.or(common.max_tokens);
    let mut recipe = common.recipe(&app.model.generation)?;
    recipe.logprobs = match (fields.logprobs.unwrap_or(false), fields.top_logprobs) {
        (true, count) => Some(logprobs("top_logprobs", count.unwrap_or(0))?),
        (false, None | Some(0)) => None,
        (false, Some(_)) => {
            let message = "top_logprobs is given, but logprobs is not true";
            return Err(ApiError::field("top_logprobs", message));
        }
    };
    let behind = opening.end_token(&app.model.tokenizer);
    let grammar = match tools.grammar(app)? {
        Some(grammar) => Some(grammar),
        None => super::format::grammar(app, &body.object)?,
    };
    recipe.grammar = grammar.map(|grammar: Grammar| grammar.behind(behind));
    let (streams, includes_usage) = (common.stream.unwrap_or(false), common.includes_usage());
    Ok(Prepared { prompt_ids, n, recipe, streams, includes_usage, opening, tools })
}

/// Messages as templates take them: contents are texts, arguments of calls are objects.
pub(crate) fn messages(given: &[Map<String, Value>]) -> Result<Vec<Message>, ApiError> {
    if given.is_empty() {
        return Err(ApiError::field("messages", "messages is empty, but must have a message"));
    }
    given.iter().enumerate().map(|(index, given)| message(index, given.clone())).collect()
}

fn message(index: usize, mut given: Map<String, Value>) -> Result<Message, ApiError> {
    let wrong = |field: &str, why: &str| {
        let field = format!("messages[{index}].{field}");
        let message = format!("{field} {why}");
        ApiError::field(field, message)
    };
    let role = match given.remove("role") {
        Some(Value::String(role)) => role,
        _ => return Err(wrong("role", "must be a text, such as \"user\"")),
    };
    let content = match given.remove("content").unwrap_or(Value::Null) {
        content @ (Value::String(_) | Value::Null) => content,
        Value::Array(parts) => match joined(&parts) {
            Some(text) => text.into(),
            None => return Err(wrong("content", "has a part that is not text")),
        },
        _ => return Err(wrong("content", "must be a text or a list of texts")),
    };
    let has_calls = given.get("tool_calls").is_some_and(|calls| !calls.is_null());
    if content.is_null() && !has_calls && role != "assistant" {
        return Err(wrong("content", "is missing"));
    }
    if let Some(Value::Array(calls)) = given.get_mut("tool_calls") {
        for call in calls {
            let arguments = call.get_mut("function").and_then(|call| call.get_mut("arguments"));
            if let Some(arguments) = arguments
                && let Some(parsed) =
                    arguments.as_str().and_then(|text| serde_json::from_str(text).ok())
            {
                *arguments = parsed;
            }
        }
    }
    Ok(Message { role, content, rest: given })
}

/// The texts of `{"type": "text", "text": …}` parts, one after the other.
fn joined(parts: &[Value]) -> Option<String> {
    let text = |part: &Value| match part.get("type")?.as_str()? {
        "text" => part.get("text")?.as_str().map(str::to_owned),
        _ => None,
    };
    parts.iter().map(text).collect()
}

/// Writes answers and chunks.
struct Writer {
    app: Arc<App>,
    id: String,
    created: u64,
    logprobs: bool,
    choices: Vec<ChoiceWriter>,
}

struct ChoiceWriter {
    splitter: Splitter,
    reader: CallReader,
    /// Calls that have been told.
    calls: usize,
    has_begun: bool,
}

/// What has become certain of a choice.
#[derive(Debug, Default)]
struct Parts {
    thought: String,
    said: String,
    calls: Vec<Call>,
}

impl ChoiceWriter {
    /// Adds text, which may be the last.
    fn push(&mut self, text: &str, is_last: bool) -> Parts {
        let mut pieces = self.splitter.push(text);
        if is_last {
            pieces.extend(self.splitter.finish());
        }
        let mut parts = Parts::default();
        for piece in pieces {
            match piece {
                Piece::Thought(text) => parts.thought.push_str(&text),
                Piece::Said(text) => parts.add(self.reader.push(&text)),
            }
        }
        if is_last {
            parts.add(self.reader.finish());
        }
        parts
    }

    /// Calls as they are sent, with their numbers.
    fn call_objects(&mut self, calls: &[Call]) -> Vec<Value> {
        let first = self.calls;
        self.calls += calls.len();
        let object = |(offset, call): (usize, &Call)| {
            json!({
                "index": first + offset,
                "id": new_id("call"),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            })
        };
        calls.iter().enumerate().map(object).collect()
    }

    /// Why the choice ended: with calls, if it did not run out of tokens.
    fn finish_reason(&self, reason: &'static str) -> &'static str {
        if reason == "stop" && self.calls > 0 { "tool_calls" } else { reason }
    }
}

impl Parts {
    fn add(&mut self, (said, calls): (String, Vec<Call>)) {
        self.said.push_str(&said);
        self.calls.extend(calls);
    }
}

impl Writer {
    fn new(
        app: Arc<App>,
        choices: usize,
        logprobs: bool,
        (opening, tools): (Opening, &Tools),
    ) -> Self {
        let choice = || {
            let (splitter, reader) = (Splitter::new(opening), tools.reader());
            ChoiceWriter { splitter, reader, calls: 0, has_begun: false }
        };
        let choices = (0..choices).map(|_| choice()).collect();
        Self { app, id: new_id("chatcmpl"), created: unix_seconds(), logprobs, choices }
    }

    fn whole(mut self, answers: Vec<Answer>) -> Value {
        let mut usage = UsageSum::default();
        let mut choices = Vec::with_capacity(answers.len());
        for (index, answer) in answers.into_iter().enumerate() {
            usage.add(&answer.usage, index == 0);
            let choice = &mut self.choices[index];
            let Parts { thought, said, calls } = choice.push(&answer.text, true);
            let mut message = json!({"role": "assistant", "content": said, "refusal": null});
            if !thought.is_empty() {
                message["reasoning_content"] = thought.into();
            }
            if !calls.is_empty() {
                message["tool_calls"] = choice.call_objects(&calls).into();
                if message["content"] == "" {
                    message["content"] = Value::Null;
                }
            }
            let finish_reason = choice.finish_reason(answer.finish_reason);
            choices.push(json!({
                "index": index,
                "message": message,
                "logprobs": self.logprobs(&answer.tokens),
                "finish_reason": finish_reason,
                "stop_reason": answer.stop_reason,
            }));
        }
        self.object("chat.completion", choices, Some(usage.json()))
    }

    fn object(&self, kind: &str, choices: Vec<Value>, usage: Option<Value>) -> Value {
        let mut object = json!({
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.app.config.name(),
            "choices": choices,
        });
        if let Some(usage) = usage {
            object["usage"] = usage;
        }
        object
    }

    fn logprobs<'a>(
        &self,
        tokens: impl IntoIterator<Item = &'a artel_engine::Token>,
    ) -> Option<Value> {
        self.logprobs.then(|| chat_logprobs(&self.app.vocabulary, tokens))
    }
}

impl Chunks for Writer {
    fn chunk(&mut self, update: Update) -> Result<Value, ApiError> {
        let index = update.index;
        let ended =
            update.finished.as_ref().map(|finished| ending(&finished.reason)).transpose()?;
        let choice = &mut self.choices[index];
        let Parts { thought, said, calls } = choice.push(&update.text(), ended.is_some());
        let mut delta = Map::new();
        if !std::mem::replace(&mut choice.has_begun, true) {
            delta.insert("role".to_owned(), "assistant".into());
        }
        if (thought.is_empty() && calls.is_empty()) || !said.is_empty() {
            delta.insert("content".to_owned(), said.into());
        }
        if !thought.is_empty() {
            delta.insert("reasoning_content".to_owned(), thought.into());
        }
        if !calls.is_empty() {
            delta.insert("tool_calls".to_owned(), choice.call_objects(&calls).into());
        }
        let (finish_reason, stop_reason) = ended.unzip();
        let finish_reason = finish_reason.map(|reason| choice.finish_reason(reason));
        let choice = json!({
            "index": index,
            "delta": delta,
            "logprobs": self.logprobs(&update.token),
            "finish_reason": finish_reason,
            "stop_reason": stop_reason.flatten(),
        });
        Ok(self.object("chat.completion.chunk", vec![choice], None))
    }

    fn usage(&self, usage: &UsageSum) -> Value {
        self.object("chat.completion.chunk", Vec::new(), Some(usage.json()))
    }
}
