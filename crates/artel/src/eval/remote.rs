//! The same problems through a server: what its clients get.

use anyhow::{Context, Result, ensure};
use artel_engine::Cancellation;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

/// A model behind an OpenAI-compatible server.
#[derive(Debug)]
pub struct RemoteModel {
    http: reqwest::Client,
    /// Address of the server without `/v1`.
    base: String,
    /// Key that is shown, if any.
    key: Option<String>,
    /// Name of the model.
    pub name: String,
}

/// One reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteReply {
    /// Number of the message.
    pub index: usize,
    /// What the model wrote.
    pub text: String,
    /// Tokens that it wrote.
    pub completion_tokens: usize,
}

impl RemoteModel {
    /// The first model that the server lists.
    ///
    /// # Errors
    /// When the server cannot be reached or lists none.
    pub async fn connect(url: &str, key: Option<String>) -> Result<Self> {
        let base = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        ensure!(base.starts_with("http://"), "{url} does not begin with http://");
        let http = reqwest::Client::builder().build().context("cannot start the HTTP client")?;
        let mut remote = Self { http, base, key, name: String::new() };
        let models = remote.send(remote.http.get(format!("{}/v1/models", remote.base))).await?;
        let name = models["data"][0]["id"].as_str();
        remote.name = name.with_context(|| format!("{url} serves no model"))?.to_owned();
        Ok(remote)
    }

    /// Puts messages to the model, so many at a time, greedily, and hands over the replies in the
    /// order of the messages.
    ///
    /// # Errors
    /// When a message is refused or `done` fails; the others are given up then.
    pub async fn answer_all(
        &self,
        messages: impl Iterator<Item = String>,
        (max_tokens, at_a_time): (usize, usize),
        cancellation: &Cancellation,
        mut done: impl FnMut(RemoteReply) -> Result<()>,
    ) -> Result<()> {
        let answers = messages.enumerate().map(|(index, message)| async move {
            let answer = self.answer(index, &message, max_tokens).await;
            answer.with_context(|| format!("problem {}", index + 1))
        });
        let mut answers = stream::iter(answers).buffered(at_a_time);
        while let Some(answer) = answers.next().await {
            done(answer?)?;
            if cancellation.is_cancelled() {
                break;
            }
        }
        Ok(())
    }

    async fn answer(&self, index: usize, message: &str, max_tokens: usize) -> Result<RemoteReply> {
        let body = json!({
            "model": self.name,
            "messages": [{"role": "user", "content": message}],
            "temperature": 0,
            "max_tokens": max_tokens,
        });
        let request = self.http.post(format!("{}/v1/chat/completions", self.base));
        let request = request.header("content-type", "application/json").body(body.to_string());
        let answer = self.send(request).await?;
        let text = answer["choices"][0]["message"]["content"].as_str();
        let text = text.with_context(|| format!("an answer without content: {answer}"))?.to_owned();
        let completion_tokens = answer["usage"]["completion_tokens"].as_u64().unwrap_or(0) as usize;
        Ok(RemoteReply { index, text, completion_tokens })
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Value> {
        let request = self.key.iter().fold(request, |request, key| request.bearer_auth(key));
        let response = request.send().await.with_context(|| format!("asking {}", self.base))?;
        let (status, text) = (response.status(), response.text().await?);
        ensure!(status.is_success(), "{} answered {status}: {text}", self.base);
        serde_json::from_str(&text).with_context(|| format!("no JSON from {}: {text}", self.base))
    }
}
