//! Functions that a model may call: how it is told of them, held to them, and understood.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::error::ApiError;
use crate::grammar::Grammar;

/// How a model writes calls of its own accord, as its chat template says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Syntax {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, as Qwen and Hermes do.
    Json,
    /// `<minimax:tool_call><invoke name="…"><parameter name="…">…</parameter>…</invoke>…`.
    Invoke,
}

impl Syntax {
    /// Of a model; `None` when its template says nothing that is understood here.
    fn of(app: &App) -> Option<Self> {
        let template = app.model.template.as_ref()?;
        // A tag that is a special token is not part of the text.
        let tokenizer = &app.model.tokenizer;
        let shown = |tag: &str| {
            let ids = tokenizer.encode_verbatim(tag);
            ids.and_then(|ids| tokenizer.decode(&ids)).is_ok_and(|text| text == tag)
        };
        let is = |syntax: &Self| {
            // Some put other things than JSON between the same tags.
            let other = ["<arg_key>", "<function="].iter().any(|tag| template.mentions(tag));
            template.mentions(syntax.begin())
                && !(other && *syntax == Self::Json)
                && shown(syntax.begin())
                && shown(syntax.end())
        };
        [Self::Invoke, Self::Json].into_iter().find(is)
    }

    fn begin(self) -> &'static str {
        match self {
            Self::Json => "<tool_call>",
            Self::Invoke => "<minimax:tool_call>",
        }
    }

    fn end(self) -> &'static str {
        match self {
            Self::Json => "</tool_call>",
            Self::Invoke => "</minimax:tool_call>",
        }
    }

    /// The calls between the tags; none when that is something else.
    fn calls(self, text: &str, functions: &[Function]) -> Vec<Call> {
        match self {
            Self::Json => {
                let object = serde_json::from_str(text.trim()).ok();
                object.as_ref().and_then(call_object).into_iter().collect()
            }
            Self::Invoke => between(text, "<invoke", "</invoke>")
                .filter_map(|call| invoke(call, functions))
                .collect(),
        }
    }
}

/// A call that a model made. Its arguments are JSON, as far as the answer was not cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub name: String,
    pub arguments: String,
}

/// The functions of a request, and which of them may be called.
#[derive(Debug, Default)]
pub(crate) struct Tools {
    /// As they were sent.
    given: Vec<Value>,
    functions: Vec<Function>,
    choice: Choice,
    several: bool,
    /// How the model writes calls that are not demanded of it.
    syntax: Option<Syntax>,
}

#[derive(Debug, Clone, Deserialize)]
struct Function {
    name: String,
    #[serde(default)]
    parameters: Option<Map<String, Value>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Choice {
    #[default]
    Never,
    Auto,
    Always,
    Only(String),
}

#[derive(Debug, Deserialize)]
struct Fields {
    #[serde(default)]
    tools: Option<Vec<Map<String, Value>>>,
    #[serde(default)]
    tool_choice: Option<Value>,
    #[serde(default)]
    parallel_tool_calls: Option<bool>,
}

impl Tools {
    /// Of a request.
    pub(crate) fn read(app: &App, body: &Map<String, Value>) -> Result<Self, ApiError> {
        let fields: Fields = crate::api::fields(body)?;
        let given = fields.tools.unwrap_or_default();
        let functions = given.iter().enumerate().map(|(index, tool)| function(index, tool));
        let functions: Vec<Function> = functions.collect::<Result<_, _>>()?;
        let choice = choice(fields.tool_choice.as_ref(), &functions)?;
        let several = fields.parallel_tool_calls.unwrap_or(true);
        let given = given.into_iter().map(Value::Object).collect();
        let tools = Self { given, functions, choice, several, syntax: Syntax::of(app) };
        if tools.choice == Choice::Auto && tools.syntax.is_none() {
            let message = "the model's chat template does not say how it calls functions; \
                           tool_choice \"required\" or one function makes it call them as JSON";
            return Err(ApiError::field("tool_choice", message).with_code("unsupported_parameter"));
        }
        Ok(tools)
    }

    /// What the chat template sees.
    pub(crate) fn for_template(&self) -> &[Value] {
        if self.choice == Choice::Never { &[] } else { &self.given }
    }

    /// What the answer has to look like where a call is demanded.
    pub(crate) fn grammar(&self, app: &App) -> Result<Option<Grammar>, ApiError> {
        let schema = match &self.choice {
            Choice::Never | Choice::Auto => return Ok(None),
            Choice::Only(name) => {
                let function = self.functions.iter().find(|function| &function.name == name);
                function.map(Function::schema).unwrap_or_default()
            }
            Choice::Always => {
                let calls = self.functions.iter().map(|function| {
                    json!({
                        "type": "object",
                        "properties": {
                            "name": {"const": function.name},
                            "parameters": function.schema(),
                        },
                        "required": ["name", "parameters"],
                        "additionalProperties": false,
                    })
                });
                let items = json!({"anyOf": calls.collect::<Vec<_>>()});
                let mut list = json!({"type": "array", "minItems": 1, "items": items});
                if !self.several {
                    list["maxItems"] = 1.into();
                }
                list
            }
        };
        Grammar::json(app, "tools", schema).map(Some)
    }

    /// Reads one answer.
    pub(crate) fn reader(&self) -> CallReader {
        let form = match (&self.choice, self.syntax) {
            (Choice::Auto, Some(syntax)) => Form::Tagged(syntax, self.functions.clone()),
            (Choice::Never | Choice::Auto, _) => Form::Text,
            (Choice::Always, _) => Form::List,
            (Choice::Only(name), _) => Form::Arguments(name.clone()),
        };
        CallReader { form, held: String::new(), is_call: false }
    }
}

impl Function {
    /// Of its arguments; those that are not described are not allowed, unless the schema says so.
    fn schema(&self) -> Value {
        let mut schema = self.parameters.clone().unwrap_or_default();
        schema.entry("type").or_insert_with(|| "object".into());
        schema.entry("additionalProperties").or_insert(Value::Bool(false));
        Value::Object(schema)
    }
}

fn function(index: usize, tool: &Map<String, Value>) -> Result<Function, ApiError> {
    let field = format!("tools[{index}].function");
    let read = tool.get("function").and_then(|function| Function::deserialize(function).ok());
    match (tool.get("type").and_then(Value::as_str), read) {
        (Some("function"), Some(function)) if !function.name.is_empty() => Ok(function),
        _ => {
            let message = format!(
                "{field} must be a function with a name and parameters, and the type of \
                 tools[{index}] \"function\""
            );
            Err(ApiError::field(field, message))
        }
    }
}

fn choice(given: Option<&Value>, functions: &[Function]) -> Result<Choice, ApiError> {
    let wrong = |why: String| Err(ApiError::field("tool_choice", why));
    let named = |given: &Value| Some(given.get("function")?.get("name")?.as_str()?.to_owned());
    match given {
        None | Some(Value::Null) if functions.is_empty() => Ok(Choice::Never),
        None | Some(Value::Null) => Ok(Choice::Auto),
        Some(Value::String(word)) => match &word[..] {
            "none" => Ok(Choice::Never),
            "auto" if functions.is_empty() => Ok(Choice::Never),
            "auto" => Ok(Choice::Auto),
            "required" if functions.is_empty() => {
                wrong("tool_choice is \"required\", but there are no tools".to_owned())
            }
            "required" => Ok(Choice::Always),
            _ => wrong(format!(
                "tool_choice is {word:?}, but must be \"none\", \"auto\", \"required\" or a function"
            )),
        },
        Some(given) => match named(given) {
            Some(name) if functions.iter().any(|function| function.name == name) => {
                Ok(Choice::Only(name))
            }
            Some(name) => wrong(format!("tool_choice names {name:?}, which is not one of tools")),
            None => wrong("tool_choice names no function".to_owned()),
        },
    }
}

/// How an answer holds calls.
#[derive(Debug)]
enum Form {
    /// Not at all.
    Text,
    /// Between tags, with text around them.
    Tagged(Syntax, Vec<Function>),
    /// A list of calls is all.
    List,
    /// The arguments of one function are all.
    Arguments(String),
}

/// Finds calls in an answer that arrives in pieces. A call is told when it is complete.
#[derive(Debug)]
pub(crate) struct CallReader {
    form: Form,
    held: String,
    /// Whether a tag is open.
    is_call: bool,
}

impl CallReader {
    /// Adds text; returns the text and the calls that are certain now.
    pub(crate) fn push(&mut self, text: &str) -> (String, Vec<Call>) {
        let (mut said, mut calls) = (String::new(), Vec::new());
        self.held.push_str(text);
        let (syntax, functions) = match &self.form {
            Form::Text => return (std::mem::take(&mut self.held), calls),
            Form::List | Form::Arguments(_) => return (said, calls),
            Form::Tagged(syntax, functions) => (*syntax, functions),
        };
        let (begin, end) = (syntax.begin(), syntax.end());
        loop {
            let tag = if self.is_call { end } else { begin };
            let Some(at) = self.held.find(tag) else { break };
            let rest = self.held.split_off(at + tag.len());
            let tagged = std::mem::replace(&mut self.held, rest);
            let before = &tagged[..at];
            if self.is_call {
                let found = syntax.calls(before, functions);
                // What is no call is left as the model wrote it.
                if found.is_empty() {
                    said.extend([begin, before, end]);
                }
                calls.extend(found);
            } else {
                said.push_str(before);
            }
            self.is_call = !self.is_call;
        }
        if !self.is_call {
            let open = (1..begin.len()).rev().find(|&length| self.held.ends_with(&begin[..length]));
            let certain = self.held.len() - open.unwrap_or(0);
            said.extend(self.held.drain(..certain));
        }
        (said, calls)
    }

    /// The rest, when nothing more comes.
    pub(crate) fn finish(&mut self) -> (String, Vec<Call>) {
        let held = std::mem::take(&mut self.held);
        match &self.form {
            Form::Text => (held, Vec::new()),
            Form::Tagged(syntax, _) if self.is_call => {
                (syntax.begin().to_owned() + &held, Vec::new())
            }
            Form::Tagged(..) => (held, Vec::new()),
            Form::Arguments(name) => {
                (String::new(), vec![Call { name: name.clone(), arguments: held }])
            }
            Form::List => match serde_json::from_str::<Vec<Value>>(&held) {
                Ok(list) => (String::new(), list.iter().filter_map(call_object).collect()),
                Err(_) => (held, Vec::new()),
            },
        }
    }
}

/// What stands between two tags, each time.
fn between<'t>(text: &'t str, begin: &'t str, end: &'t str) -> impl Iterator<Item = &'t str> {
    text.split(begin).skip(1).filter_map(move |rest| Some(rest.split_once(end)?.0))
}

/// ` name="…">…`: the name and what follows.
fn named(text: &str) -> Option<(&str, &str)> {
    let (attribute, rest) = text.split_once('>')?;
    let name = attribute.trim().strip_prefix("name=")?;
    Some((name.trim_matches(['"', '\'']), rest))
}

/// One call of [`Syntax::Invoke`]. Its arguments are texts; those that the schema does not call
/// strings are JSON.
fn invoke(text: &str, functions: &[Function]) -> Option<Call> {
    let (name, rest) = named(text)?;
    let function = functions.iter().find(|function| function.name == name);
    let properties = function.and_then(|function| function.parameters.as_ref()?.get("properties"));
    let mut arguments = Map::new();
    for parameter in between(rest, "<parameter", "</parameter>") {
        let (name, text) = named(parameter)?;
        let kind = properties.and_then(|properties| properties.get(name)?.get("type")?.as_str());
        let value = match kind {
            Some("string") => None,
            _ => serde_json::from_str(text.trim()).ok(),
        };
        arguments.insert(name.to_owned(), value.unwrap_or_else(|| text.trim_matches('\n').into()));
    }
    Some(Call { name: name.to_owned(), arguments: Value::Object(arguments).to_string() })
}

/// `{"name": …, "arguments": {…}}`, or `parameters` in place of `arguments`.
fn call_object(object: &Value) -> Option<Call> {
    let name = object.get("name")?.as_str()?.to_owned();
    let arguments = object.get("arguments").or_else(|| object.get("parameters"))?;
    let arguments = arguments.as_str().map_or_else(|| arguments.to_string(), str::to_owned);
    Some(Call { name, arguments })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(form: Form, pieces: &[&str]) -> (String, Vec<Call>) {
        let mut reader = CallReader { form, held: String::new(), is_call: false };
        let (mut said, mut calls) = (String::new(), Vec::new());
        for (text, found) in pieces.iter().map(|piece| reader.push(piece)).collect::<Vec<_>>() {
            said.push_str(&text);
            calls.extend(found);
        }
        let (text, found) = reader.finish();
        calls.extend(found);
        (said + &text, calls)
    }

    fn call(name: &str, arguments: &str) -> Call {
        Call { name: name.to_owned(), arguments: arguments.to_owned() }
    }

    #[test]
    fn calls_are_found_between_tags_however_they_are_cut() {
        let text = "Let me see. <tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n\
                    </tool_call> and <tool_call>no</tool_call> <b";
        let expected = (
            "Let me see.  and <tool_call>no</tool_call> <b".to_owned(),
            vec![call("add", "{\"a\":1}")],
        );
        let json = || Form::Tagged(Syntax::Json, Vec::new());
        assert_eq!(read(json(), &[text]), expected);
        for at in (0..text.len()).filter(|&at| text.is_char_boundary(at)) {
            assert_eq!(read(json(), &[&text[..at], &text[at..]]), expected, "cut at {at}");
        }
        let open = read(json(), &["a <tool_call>{\"name\": "]);
        assert_eq!(open, ("a <tool_call>{\"name\": ".to_owned(), Vec::new()));
    }

    #[test]
    fn arguments_that_are_written_as_texts_have_the_types_of_the_schema() {
        let properties = json!({"city": {"type": "string"}, "days": {"type": "integer"}});
        let parameters = json!({"properties": properties}).as_object().cloned();
        let functions = vec![Function { name: "weather".to_owned(), parameters }];
        let text = "Wait.<minimax:tool_call>\n<invoke name=\"weather\">\n\
                    <parameter name=\"city\">12</parameter>\n\
                    <parameter name=\"days\">3</parameter>\n\
                    <parameter name=\"more\">[\"a < b\"]</parameter>\n</invoke>\n\
                    <invoke name=\"stop\"></invoke>\n</minimax:tool_call>";
        let weather = call("weather", r#"{"city":"12","days":3,"more":["a < b"]}"#);
        let expected = ("Wait.".to_owned(), vec![weather, call("stop", "{}")]);
        for at in (0..text.len()).filter(|&at| text.is_char_boundary(at)) {
            let form = Form::Tagged(Syntax::Invoke, functions.clone());
            assert_eq!(read(form, &[&text[..at], &text[at..]]), expected, "cut at {at}");
        }
    }

    #[test]
    fn a_whole_answer_can_be_calls() {
        let list = r#"[{"name": "a", "parameters": {}}, {"name": "b", "parameters": {"x": [1]}}]"#;
        let expected = vec![call("a", "{}"), call("b", "{\"x\":[1]}")];
        assert_eq!(read(Form::List, &[&list[..9], &list[9..]]), (String::new(), expected));
        let one = read(Form::Arguments("f".to_owned()), &["{\"x\"", ": 1}"]);
        assert_eq!(one, (String::new(), vec![call("f", "{\"x\": 1}")]));
        assert_eq!(read(Form::List, &["[{"]), ("[{".to_owned(), Vec::new()));
    }
}
