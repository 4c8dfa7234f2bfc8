//! `/v1/completions`: texts that go on.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::logprobs::TextLogprobs;
use super::stream::{Chunks, stream};
use super::{Answer, JsonBody, UsageSum, check_model, collect, new_id, prepare};
use crate::app::{App, unix_seconds};
use crate::error::ApiError;
use crate::generate::{Choices, PromptLogprobs, Update, ending};
use crate::prompt::{Prompt, PromptField};
use crate::sampling::{CommonFields, Recipe, logprobs};

/// Tokens of an answer when the client does not say how many.
const USUAL_TOKENS: usize = 16;
/// Most answers to one request.
const ANSWERS_MAX: usize = 1024;

/// What is not served here.
const UNSERVED: [&str; 8] = [
    "suffix",
    "best_of",
    "use_beam_search",
    "prompt_logprobs",
    "include_stop_str_in_output",
    "prompt_embeds",
    "return_token_ids",
    "allowed_token_ids",
];

#[derive(Debug, Deserialize)]
struct Fields {
    prompt: PromptField,
    #[serde(default)]
    echo: Option<bool>,
    #[serde(default)]
    logprobs: Option<usize>,
}

/// A request that is ready to be submitted.
struct Prepared {
    prompts: Vec<Prompt>,
    n: usize,
    recipe: Recipe,
    streams: bool,
    includes_usage: bool,
    format: Format,
}

/// What the answer looks like.
#[derive(Debug, Clone, Copy)]
struct Format {
    echo: bool,
    logprobs: bool,
    /// The client wants to know of the prompt alone; the token that the engine makes is not shown.
    prompt_only: bool,
}

/// Answers a request.
pub(crate) async fn completions(
    State(app): State<Arc<App>>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let prepared = prepare(&app, body, read).await?;
    let Prepared { prompts, n, recipe, streams, includes_usage, format } = prepared;
    let each = prompts.iter().flat_map(|prompt| (0..n).map(move |choice| (prompt, choice)));
    let requests = each.map(|(prompt, choice)| recipe.request(prompt.ids.clone(), choice));
    let choices = Choices::submit(&app, requests)?;
    let prompts = if format.echo { prompts } else { Vec::new() };
    let writer = Writer::new(app, prompts, n, choices.len(), format);
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
    let echo = fields.echo.unwrap_or(false);
    let n = common.choices()?;
    let prompts = fields.prompt.encode(app)?;
    if prompts.len() * n > ANSWERS_MAX {
        let (count, most) = (prompts.len(), ANSWERS_MAX);
        let message = format!("{count} prompts with {n} answers are more than {most} answers");
        return Err(ApiError::field("prompt", message));
    }
    let mut recipe = common.recipe(&app.model.generation)?;
    let tokens = recipe.max_tokens.unwrap_or(USUAL_TOKENS);
    let prompt_only = echo && tokens == 0;
    recipe.max_tokens = Some(if prompt_only { 1 } else { tokens });
    recipe.logprobs = fields.logprobs.map(|count| logprobs("logprobs", count)).transpose()?;
    recipe.prompt_logprobs = recipe.logprobs.filter(|_| echo);
    recipe.grammar = super::format::grammar(app, &body.object)?;
    let format = Format { echo, logprobs: recipe.logprobs.is_some(), prompt_only };
    let (streams, includes_usage) = (common.stream.unwrap_or(false), common.includes_usage());
    Ok(Prepared { prompts, n, recipe, streams, includes_usage, format })
}

/// Writes answers and chunks.
struct Writer {
    app: Arc<App>,
    id: String,
    created: u64,
    /// Kept where they are echoed.
    prompts: Vec<Prompt>,
    n: usize,
    format: Format,
    /// Of each choice: where its next token begins in its text, and whether it has begun.
    places: Vec<(usize, bool)>,
}

impl Writer {
    fn new(app: Arc<App>, prompts: Vec<Prompt>, n: usize, choices: usize, format: Format) -> Self {
        let (id, created, places) = (new_id("cmpl"), unix_seconds(), vec![(0, false); choices]);
        Self { app, id, created, prompts, n, format, places }
    }

    fn whole(mut self, answers: Vec<Answer>) -> Value {
        let mut usage = UsageSum::default();
        let mut choices = Vec::with_capacity(answers.len());
        for (index, mut answer) in answers.into_iter().enumerate() {
            if self.format.prompt_only {
                answer.usage.completion_tokens = 0;
                answer.finish_reason = "length";
                answer.text.clear();
                answer.tokens.clear();
            }
            usage.add(&answer.usage, index % self.n == 0);
            let echo = self.echo(index);
            let logprobs = self.logprobs(index, answer.prompt.as_ref(), &answer.tokens);
            choices.push(json!({
                "index": index,
                "text": echo + &answer.text,
                "logprobs": logprobs,
                "finish_reason": answer.finish_reason,
                "stop_reason": answer.stop_reason,
            }));
        }
        self.object(choices, Some(usage.json()))
    }

    fn object(&self, choices: Vec<Value>, usage: Option<Value>) -> Value {
        let mut object = json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.app.config.name(),
            "choices": choices,
        });
        if let Some(usage) = usage {
            object["usage"] = usage;
        }
        object
    }

    /// The text of the prompt, before the first text of a choice.
    fn echo(&self, index: usize) -> String {
        let Some(prompt) = self.prompts.get(index / self.n) else { return String::new() };
        let decode = || self.app.model.tokenizer.decode(&prompt.ids).unwrap_or_default();
        prompt.text.clone().unwrap_or_else(decode)
    }

    fn logprobs<'a>(
        &mut self,
        index: usize,
        prompt: Option<&PromptLogprobs>,
        tokens: impl IntoIterator<Item = &'a artel_engine::Token>,
    ) -> Option<Value> {
        if !self.format.logprobs {
            return None;
        }
        let mut lists = TextLogprobs::default();
        let offset = &mut self.places[index].0;
        if let (Some(known), Some(prompt)) = (prompt, self.prompts.get(index / self.n)) {
            lists.add_prompt(&self.app.vocabulary, (&prompt.ids, known), offset);
        }
        for token in tokens {
            lists.add_token(&self.app.vocabulary, token, offset);
        }
        Some(lists.json())
    }
}

impl Chunks for Writer {
    fn chunk(&mut self, mut update: Update) -> Result<Value, ApiError> {
        let index = update.index;
        let ended =
            update.finished.as_ref().map(|finished| ending(&finished.reason)).transpose()?;
        let (mut finish_reason, stop_reason) = ended.unzip();
        let mut text = update.text();
        if self.format.prompt_only {
            update.token = None;
            finish_reason = finish_reason.map(|_| "length");
            text.clear();
        }
        if !std::mem::replace(&mut self.places[index].1, true) {
            text = self.echo(index) + &text;
        }
        let logprobs = self.logprobs(index, update.prompt.as_ref(), &update.token);
        let choice = json!({
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
            "stop_reason": stop_reason.flatten(),
        });
        Ok(self.object(vec![choice], None))
    }

    fn usage(&self, usage: &UsageSum) -> Value {
        self.object(Vec::new(), Some(usage.json()))
    }
}
