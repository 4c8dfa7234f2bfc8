//! Requests over HTTP to an OpenAI-compatible server.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::StreamExt;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value, json};

use super::answer::{Answer, Outcome, refusal};
use super::sse::EventParser;
use crate::bench::dataset::Prompt;

/// A whole answer takes at most this long.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(6 * 60 * 60);

/// What is asked besides answers (models, metrics) takes at most this long.
const QUESTION_TIME_MAX: Duration = Duration::from_secs(10);

/// Pause between attempts while a server starts.
pub const READY_PAUSE: Duration = Duration::from_secs(1);

/// Which of OpenAI's interfaces is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// A prompt is continued.
    Completions,
    /// A message is answered.
    Chat,
}

impl Backend {
    /// Name in the result.
    pub fn name(self) -> &'static str {
        match self {
            Self::Completions => "openai",
            Self::Chat => "openai-chat",
        }
    }

    /// What the path of the interface ends with.
    pub fn path_end(self) -> &'static str {
        match self {
            Self::Completions => "/completions",
            Self::Chat => "/chat/completions",
        }
    }
}

/// Where requests go.
#[derive(Debug, Clone)]
pub struct Target {
    /// Interface.
    pub backend: Backend,
    /// `http://host:port`, without a slash at the end.
    pub base_url: String,
    /// Path of the interface.
    pub endpoint: String,
    /// Headers of every request.
    pub headers: Vec<(String, String)>,
    /// Value of the `Authorization` header.
    pub api_key: Option<String>,
}

/// What all requests of a run have in common.
#[derive(Debug, Clone, Default)]
pub struct RequestFields {
    /// Whether the end of a text is the length asked for.
    pub ignore_eos: bool,
    /// Log-probabilities to ask for.
    pub logprobs: Option<u32>,
    /// Further fields; they win over all others.
    pub extra: Map<String, Value>,
}

/// One request, ready to be sent.
#[derive(Debug, Clone)]
pub struct Request {
    /// Its name in the `x-request-id` header.
    pub id: String,
    /// The JSON body.
    pub body: Vec<u8>,
    /// Tokens of the prompt as we count them.
    pub prompt_tokens: usize,
}

/// A model that the server lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedModel {
    /// Its name in requests.
    pub id: String,
    /// Where the server has it from.
    pub root: String,
}

/// Sends requests to one server.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    target: Target,
    url: String,
}

impl Client {
    /// A client that has not connected yet.
    ///
    /// # Errors
    /// When the address, the path or a header makes no sense.
    pub fn new(target: Target) -> Result<Self> {
        let base = &target.base_url;
        ensure!(
            !base.starts_with("https:"),
            "{base}: this client speaks plain HTTP only, because every TLS library needs a C \
             compiler to build or new processors to run; measure the server behind the proxy"
        );
        let url = format!("{base}{}", target.endpoint);
        let parsed = reqwest::Url::parse(&url).with_context(|| format!("{url} is no address"))?;
        ensure!(parsed.scheme() == "http", "{base} does not begin with http://");
        let (path, end) = (parsed.path(), target.backend.path_end());
        let is_chat = path.ends_with(Backend::Chat.path_end());
        ensure!(
            path.ends_with(end) && is_chat == (target.backend == Backend::Chat),
            "--endpoint {} does not end with {end}, as it does for --backend {}",
            target.endpoint,
            target.backend.name()
        );
        let http = reqwest::Client::builder()
            .default_headers(headers(&target)?)
            .pool_max_idle_per_host(usize::MAX)
            .tcp_nodelay(true)
            .build()
            .context("cannot start the HTTP client")?;
        Ok(Self { http, target, url })
    }

    /// The request for `text`.
    pub fn request(
        &self,
        id: String,
        model: &str,
        prompt: &Prompt,
        fields: &RequestFields,
    ) -> Request {
        let mut body = Map::new();
        let mut set = |field: &str, value: Value| body.insert(field.to_owned(), value);
        set("model", model.into());
        match self.target.backend {
            Backend::Completions => {
                set("prompt", prompt.text.clone().into());
                set("max_tokens", prompt.output_tokens.into());
                fields.logprobs.map(|count| set("logprobs", count.into()));
            }
            Backend::Chat => {
                set("messages", json!([{"role": "user", "content": prompt.text}]));
                set("max_completion_tokens", prompt.output_tokens.into());
                if let Some(count) = fields.logprobs {
                    set("logprobs", true.into());
                    set("top_logprobs", count.into());
                }
            }
        }
        set("stream", true.into());
        set("stream_options", json!({"include_usage": true}));
        if fields.ignore_eos {
            set("ignore_eos", true.into());
        }
        body.extend(fields.extra.clone());
        let body = Value::from(body).to_string().into_bytes();
        Request { id, body, prompt_tokens: prompt.tokens }
    }

    /// Sends a request and reads its answer to the end; times begin now.
    pub async fn send(&self, request: Request) -> Outcome {
        let started = Instant::now();
        let mut answer = Answer::default();
        let error = self.stream(&request, started, &mut answer).await.err();
        answer.finish(request.prompt_tokens, error)
    }

    async fn stream(
        &self,
        request: &Request,
        started: Instant,
        answer: &mut Answer,
    ) -> Result<(), String> {
        let post = self.http.post(&self.url).timeout(ANSWER_TIME_MAX);
        let post = post.header("x-request-id", &request.id).body(request.body.clone());
        let response = post.send().await.map_err(|error| describe(&error))?;
        let status = response.status();
        if !status.is_success() {
            let body = response.text().await.unwrap_or_default();
            return Err(format!("HTTP {status}: {}", refusal(&body)));
        }
        let mut parser = EventParser::default();
        let mut body = response.bytes_stream();
        while let Some(bytes) = body.next().await {
            let bytes = bytes.map_err(|error| {
                format!("the connection broke in the middle of the answer: {}", describe(&error))
            })?;
            // One time for all that came together: they were one write of the server.
            let seconds = started.elapsed().as_secs_f64();
            for event in parser.push(&bytes) {
                answer.event(&event, seconds)?;
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        parser.finish().map_or(Ok(()), |event| answer.event(&event, seconds))
    }

    /// The models that the server lists; none where it has no such list.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn models(&self) -> Result<Vec<ServedModel>> {
        let url = format!("{}/v1/models", self.target.base_url);
        let response = self.http.get(&url).timeout(QUESTION_TIME_MAX).send().await;
        let response = response.map_err(|error| self.unreachable(&error))?;
        if !response.status().is_success() {
            tracing::warn!("{url} answers with HTTP {}", response.status());
            return Ok(Vec::new());
        }
        let list = response.text().await.map_err(|error| self.unreachable(&error))?;
        let list: Value = serde_json::from_str(&list).unwrap_or_default();
        let models = list["data"].as_array().into_iter().flatten();
        let text = |model: &Value, field: &str| Some(model.get(field)?.as_str()?.to_owned());
        let served = |model: &Value| {
            let id = text(model, "id")?;
            Some(ServedModel { root: text(model, "root").unwrap_or_else(|| id.clone()), id })
        };
        Ok(models.filter_map(served).collect())
    }

    /// The text at `/metrics`, where the server has one.
    pub async fn metrics(&self) -> Option<String> {
        let url = format!("{}/metrics", self.target.base_url);
        let response = self.http.get(url).timeout(QUESTION_TIME_MAX).send().await.ok()?;
        if response.status().is_success() { response.text().await.ok() } else { None }
    }

    /// Sends `request` until it is answered.
    ///
    /// # Errors
    /// When it is not answered in time, with the last failure.
    pub async fn wait_until_ready(&self, request: &Request, limit: Duration) -> Result<()> {
        let started = Instant::now();
        loop {
            let last = match tokio::time::timeout(limit, self.send(request.clone())).await {
                Ok(Outcome { error: None, .. }) => return Ok(()),
                Ok(Outcome { error: Some(error), .. }) => error,
                Err(_) => "no complete answer".to_owned(),
            };
            if started.elapsed() + READY_PAUSE > limit {
                let (url, seconds) = (&self.url, limit.as_secs());
                bail!("{url} did not answer a first request within {seconds} s: {last}");
            }
            tokio::time::sleep(READY_PAUSE).await;
        }
    }

    fn unreachable(&self, error: &reqwest::Error) -> anyhow::Error {
        let base = &self.target.base_url;
        anyhow::anyhow!("no server answers at {base}: {}; is it running?", describe(error))
    }
}

fn headers(target: &Target) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(key) = &target.api_key {
        let mut value = HeaderValue::try_from(format!("Bearer {key}"))
            .context("OPENAI_API_KEY cannot be a header")?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    for (name, value) in &target.headers {
        let wrong = || format!("--header {name}={value} cannot be a header");
        let name = HeaderName::try_from(name).with_context(wrong)?;
        headers.insert(name, HeaderValue::try_from(value).with_context(wrong)?);
    }
    Ok(headers)
}

/// The innermost cause, which says what happened, not which layer noticed it.
fn describe(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(backend: Backend, base_url: &str, endpoint: &str) -> Target {
        let (base_url, endpoint) = (base_url.to_owned(), endpoint.to_owned());
        Target { backend, base_url, endpoint, headers: Vec::new(), api_key: None }
    }

    #[test]
    fn addresses_that_cannot_work_are_refused() {
        let refused = |backend, base: &str, endpoint: &str| {
            Client::new(target(backend, base, endpoint)).unwrap_err().to_string()
        };
        let completions = "/v1/completions";
        assert!(
            refused(Backend::Completions, "https://a", completions).contains("plain HTTP only")
        );
        assert!(refused(Backend::Completions, "a:80", completions).contains("http://"));
        assert!(refused(Backend::Completions, "", completions).contains("no address"));
        assert!(refused(Backend::Chat, "http://a", completions).contains("/chat/completions"));
        let chat = "/v1/chat/completions";
        assert!(refused(Backend::Completions, "http://a", chat).contains("--backend openai"));
    }

    #[test]
    fn bodies_hold_what_the_interface_asks_for() {
        let prompt = Prompt { text: "hi".to_owned(), tokens: 1, output_tokens: 5 };
        let extra = json!({"top_k": 3, "stream": false}).as_object().unwrap().clone();
        let fields = RequestFields { ignore_eos: true, logprobs: Some(2), extra };
        let body = |backend, endpoint: &str| {
            let client = Client::new(target(backend, "http://a", endpoint)).unwrap();
            let request = client.request("id".to_owned(), "m", &prompt, &fields);
            serde_json::from_slice::<Value>(&request.body).unwrap()
        };
        let common = json!({"model": "m", "stream": false, "ignore_eos": true, "top_k": 3,
            "stream_options": {"include_usage": true}});
        let merged = |more: Value| {
            let mut all = common.clone();
            all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            all
        };
        let completion = json!({"prompt": "hi", "max_tokens": 5, "logprobs": 2});
        assert_eq!(body(Backend::Completions, "/v1/completions"), merged(completion));
        let chat = json!({"messages": [{"role": "user", "content": "hi"}], "logprobs": true,
            "max_completion_tokens": 5, "top_logprobs": 2});
        assert_eq!(body(Backend::Chat, "/v1/chat/completions"), merged(chat));
    }
}
