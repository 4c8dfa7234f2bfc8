//! Chat templates: messages to the text that the model was trained on.
//!
//! Templates are Jinja as `transformers` renders them: blocks are trimmed, Python's string methods
//! exist, and so do `raise_exception`, `strftime_now` and a `tojson` that writes as Python does.

mod python;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::SystemTime;

use minijinja::Environment;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Checkpoint, ModelError, Result};

/// Template used when none is asked for by name.
const DEFAULT: &str = "default";

/// Template that is preferred when tools are given and the checkpoint has one of this name.
const TOOL_USE: &str = "tool_use";

/// Steps that a template may take. Real ones need some thousands per message.
const FUEL: u64 = 10_000_000;

/// One message of a chat. Further fields (`tool_calls`, `reasoning_content`, …) reach the template
/// as they are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// Usually a string; some templates take a list of parts. Null when a message has none.
    #[serde(default)]
    pub content: Value,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl Message {
    /// A message of plain text.
    pub fn new(role: &str, text: &str) -> Self {
        Self { role: role.to_owned(), content: text.into(), rest: Map::new() }
    }
}

/// What a rendered chat ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The words that make the model answer next (`add_generation_prompt`).
    GenerationPrompt,
    /// The last message.
    LastMessage,
}

/// All that a template can see.
#[derive(Debug, Clone)]
pub struct Chat<'a> {
    /// The messages, oldest first.
    pub messages: &'a [Message],
    /// Functions the model may call, as JSON schemas; may be empty.
    pub tools: &'a [Value],
    /// How the text ends.
    pub ending: Ending,
    /// Further variables of the template, such as `enable_thinking`.
    pub variables: Map<String, Value>,
    /// What `strftime_now` formats, in UTC.
    pub now: SystemTime,
}

impl<'a> Chat<'a> {
    /// A chat without tools that the model answers next.
    pub fn new(messages: &'a [Message]) -> Self {
        let (ending, now) = (Ending::GenerationPrompt, SystemTime::now());
        Self { messages, tools: &[], ending, variables: Map::new(), now }
    }
}

/// The chat template of a checkpoint.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    /// By name; most checkpoints have only `default`.
    templates: BTreeMap<String, String>,
    /// `bos_token`, `eos_token` and so on, as the templates name them.
    special_tokens: Map<String, Value>,
}

impl ChatTemplate {
    /// Reads `chat_template.jinja`, or `chat_template` of `tokenizer_config.json`: a template or a
    /// list of named ones.
    ///
    /// # Errors
    /// [`ModelError::NoChatTemplate`] when there is none.
    pub fn read(checkpoint: &Checkpoint) -> Result<Self> {
        let config = checkpoint.find_json("tokenizer_config.json")?.unwrap_or_default();
        let mut templates = named_templates(config.get("chat_template"));
        if let Some(template) = checkpoint.find_text("chat_template.jinja")? {
            templates.insert(DEFAULT.to_owned(), template);
        }
        if templates.is_empty() {
            let (checkpoint, named) = (checkpoint.name(), String::new());
            return Err(ModelError::NoChatTemplate { checkpoint, named });
        }
        let mut special_tokens = special_tokens(&config);
        if let Some(map) = checkpoint.find_json("special_tokens_map.json")? {
            special_tokens.extend(self::special_tokens(&map));
        }
        Ok(Self { templates, special_tokens })
    }

    /// Whether a template holds these words, such as the tag of something that it may write.
    pub fn mentions(&self, words: &str) -> bool {
        self.templates.values().any(|template| template.contains(words))
    }

    /// The text of a chat.
    ///
    /// # Errors
    /// [`ModelError::ChatTemplate`] when the template does not parse, takes too long, or refuses
    /// the messages, with its own words.
    pub fn render(&self, chat: &Chat<'_>) -> Result<String> {
        let tool_use = (!chat.tools.is_empty()).then(|| self.templates.get(TOOL_USE)).flatten();
        let template = tool_use.or_else(|| self.templates.get(DEFAULT));
        let template = template.or_else(|| self.templates.values().next());
        let template = template.map(String::as_str).unwrap_or_default();
        // `generation` marks answers for training; it has no meaning for the text.
        let template = python::without_tag(template, &["generation", "endgeneration"]);
        let mut environment = environment(chat.now)?;
        environment.add_template(DEFAULT, &template).map_err(refused)?;
        let template = environment.get_template(DEFAULT).map_err(refused)?;
        template.render(self.variables(chat)).map_err(refused)
    }

    fn variables(&self, chat: &Chat<'_>) -> minijinja::Value {
        let mut variables = self.special_tokens.clone();
        variables.extend(chat.variables.clone());
        let tools = (!chat.tools.is_empty()).then_some(chat.tools);
        let generation_prompt = chat.ending == Ending::GenerationPrompt;
        let given: [(&str, minijinja::Value); 4] = [
            ("messages", Serde(chat.messages).into()),
            ("tools", Serde(tools).into()),
            ("documents", ().into()),
            ("add_generation_prompt", generation_prompt.into()),
        ];
        let variables = variables.into_iter().map(|(name, value)| (name, Serde(value).into()));
        minijinja::Value::from_pairs(
            variables.chain(given.map(|(name, value)| (name.to_owned(), value))),
        )
    }
}

/// `chat_template` is a string, or a list of `{"name": …, "template": …}`.
fn named_templates(field: Option<&Value>) -> BTreeMap<String, String> {
    let named = |item: &Value| {
        let text = |field: &str| Some(item.get(field)?.as_str()?.to_owned());
        Some((text("name")?, text("template")?))
    };
    match field {
        Some(Value::String(template)) => [(DEFAULT.to_owned(), template.clone())].into(),
        Some(Value::Array(items)) => items.iter().filter_map(named).collect(),
        _ => BTreeMap::new(),
    }
}

/// Every `…_token` of a tokenizer configuration: a string, or an object with its `content`.
fn special_tokens(config: &Map<String, Value>) -> Map<String, Value> {
    let text = |token: &Value| match token {
        Value::String(text) => Some(text.clone()),
        Value::Object(token) => token.get("content")?.as_str().map(str::to_owned),
        _ => None,
    };
    let tokens = config.iter().filter(|(name, _)| name.ends_with("_token"));
    tokens.filter_map(|(name, token)| Some((name.clone(), text(token)?.into()))).collect()
}

fn environment(now: SystemTime) -> Result<Environment<'static>> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(refused)?);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", python::to_json);
    environment.add_test("iterable", python::is_iterable);
    environment.add_function("raise_exception", python::raise_exception);
    environment.add_function("strftime_now", move |format: &str| python::strftime(format, now));
    Ok(environment)
}

/// The message of an error and of its causes: the template's own words are the innermost.
fn refused(error: minijinja::Error) -> ModelError {
    let mut why = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        why = format!("{why}: {inner}");
        cause = inner.source();
    }
    ModelError::ChatTemplate { why }
}
