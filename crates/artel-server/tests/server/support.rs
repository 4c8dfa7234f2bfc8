//! A server of its own for each test.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use artel_engine::{CpuRunner, Engine, EngineConfig, EngineHandle};
use artel_model::{
    ChatTemplate, Checkpoint, Format, GenerationConfig, LoadOptions, Model, Tokenizer,
};
use artel_server::{ServedModel, Server, ServerConfig};
use futures_util::StreamExt;
use reqwest::{Client, RequestBuilder, Response};
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A question that the bundled model answers with `ANSWER`.
pub const QUESTION: &str = "Maria has 14 pencils. She buys 3 boxes with 8 pencils in each. \
                            How many pencils does Maria have now?";
pub const ANSWER: &str = "#### 38";

/// A server that runs in the test's process.
pub struct TestServer {
    pub address: SocketAddr,
    pub engine: EngineHandle,
    pub client: Client,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<()>,
}

fn checkpoint() -> Checkpoint {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tally");
    Checkpoint::open(&folder).unwrap()
}

fn model() -> Arc<Model> {
    static MODEL: OnceLock<Arc<Model>> = OnceLock::new();
    // In float32 a token depends on the rest of its batch in the last bit at most.
    let options = LoadOptions { format: Some(Format::F32), ..LoadOptions::default() };
    let load = || Arc::new(Model::load(&checkpoint(), &options).unwrap());
    Arc::clone(MODEL.get_or_init(load))
}

impl TestServer {
    pub async fn start() -> Self {
        Self::with(EngineConfig::default(), ServerConfig::default()).await
    }

    pub async fn with(engine: EngineConfig, config: ServerConfig) -> Self {
        Self::with_grace(engine, config, Duration::from_secs(30)).await
    }

    pub async fn with_grace(engine: EngineConfig, config: ServerConfig, grace: Duration) -> Self {
        let checkpoint = checkpoint();
        let tokenizer = Tokenizer::read(&checkpoint).unwrap();
        let runner = Box::new(CpuRunner::new(model()));
        let engine = Engine::new(runner, tokenizer.clone(), engine).unwrap().spawn().unwrap();
        let served = ServedModel {
            engine: engine.clone(),
            tokenizer,
            template: Some(ChatTemplate::read(&checkpoint).unwrap()),
            generation: GenerationConfig::read(&checkpoint).unwrap(),
            // As if two layers without experts came first.
            expert_layers: vec![2, 3, 4, 5],
            root: "tally".to_owned(),
            version: "0.0.0",
        };
        let config = ServerConfig { names: vec!["tally".to_owned()], ..config };
        let server = Server::bind("127.0.0.1:0", config, served).await.unwrap();
        let address = server.address();
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(server.run(async move { stopped.await.unwrap_or(()) }, grace));
        let client = Client::builder().no_proxy().build().unwrap();
        Self { address, engine, client, stop: Some(stop), running }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn request(&self, path: &str, body: &Value) -> RequestBuilder {
        self.client.post(self.url(path)).json(body)
    }

    /// Status and body of an answer, which is JSON whatever happens.
    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        status_and_json(self.request(path, body).send().await.unwrap()).await
    }

    /// The answer to a request that must succeed.
    pub async fn ask(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.post(path, body).await;
        assert_eq!(status, 200, "{body} got {answer}");
        answer
    }

    /// All chunks of a stream that must be complete.
    pub async fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let response = self.request(path, body).send().await.unwrap();
        assert_eq!(response.status(), 200, "{body}");
        let mut chunks = chunks(response).await;
        assert_eq!(chunks.pop(), Some(Value::Null), "the stream of {body} is not complete");
        chunks
    }

    pub async fn get(&self, path: &str) -> Response {
        self.client.get(self.url(path)).send().await.unwrap()
    }

    /// The value of a metric, all its samples together.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await.text().await.unwrap();
        let samples = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
        });
        let values: Vec<f64> =
            samples.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
        assert!(!values.is_empty(), "no {name} in {text}");
        values.iter().sum()
    }

    /// Waits until nothing runs, nothing waits and no block is owned.
    pub async fn settle(&self) {
        let begun = Instant::now();
        loop {
            let now = self.engine.metrics();
            if (now.running, now.waiting, now.kv_blocks_used) == (0, 0, 0) {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "still busy: {now:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Begins to shut down; returns when that is done.
    pub async fn shut_down(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        (&mut self.running).await.unwrap();
    }
}

pub async fn status_and_json(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    let json = serde_json::from_str(&text);
    (status, json.unwrap_or_else(|_| panic!("{status} with what is no JSON: {text:?}")))
}

/// The data of each event; `[DONE]` is null.
pub async fn chunks(response: Response) -> Vec<Value> {
    let mut text = Vec::new();
    let mut body = response.bytes_stream();
    while let Some(Ok(bytes)) = body.next().await {
        text.extend_from_slice(&bytes);
    }
    parse_events(&String::from_utf8(text).unwrap())
}

pub fn parse_events(text: &str) -> Vec<Value> {
    let data = text.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    data.map(|data| match data {
        "[DONE]" => Value::Null,
        data => serde_json::from_str(data).unwrap(),
    })
    .collect()
}
