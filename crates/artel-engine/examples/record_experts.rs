//! Records which experts a model chooses: a runner around the runner of the CPU that writes every
//! step to a trace. The bundled model answers the questions of a file of JSON lines:
//!
//! ```text
//! artel eval arithmetic --write problems.jsonl --split held-out --num-problems 512
//! cargo run --release -p artel-engine --example record_experts -- problems.jsonl tally.trace
//! ```

use std::error::Error;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use artel_engine::{
    CpuRunner, Engine, EngineConfig, Request, RunReport, Runner, RunnerInfo, SequenceOutput,
    SequenceStep,
};
use artel_model::{
    Chat, ChatTemplate, Checkpoint, GenerationConfig, LoadOptions, Message, Model, Tokenizer,
};
use artel_moe::eplb::trace::{TraceHeader, TraceShape, TraceWriter};

/// Questions that are answered together.
const TOGETHER: usize = 64;

/// Longest answer.
const ANSWER_TOKENS_MAX: usize = 512;

/// Writes the load of every step of another runner.
struct Recording {
    inner: CpuRunner,
    writer: TraceWriter<File>,
    step: u64,
}

impl Runner for Recording {
    fn info(&self) -> RunnerInfo {
        self.inner.info()
    }

    fn allocate(&mut self, blocks: usize) -> artel_engine::Result<()> {
        self.inner.allocate(blocks)
    }

    fn run(&mut self, batch: &[SequenceStep<'_>]) -> artel_engine::Result<Vec<SequenceOutput>> {
        let outputs = self.inner.run(batch)?;
        let written = self.writer.write(self.step, 0, self.inner.report().expert_pairs);
        written.unwrap_or_else(|error| panic!("step {}: {error}", self.step));
        self.step += 1;
        Ok(outputs)
    }

    fn report(&self) -> RunReport<'_> {
        self.inner.report()
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let paths: Vec<String> = std::env::args().skip(1).collect();
    let [questions, trace] = paths.as_slice() else {
        return Err("usage: record_experts QUESTIONS.jsonl FILE.trace".into());
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tally");
    let checkpoint = Checkpoint::open(&folder)?;
    let model = Arc::new(Model::load(&checkpoint, &LoadOptions::default())?);
    let tokenizer = Tokenizer::read(&checkpoint)?;
    let template = ChatTemplate::read(&checkpoint)?;
    let end_tokens = GenerationConfig::read(&checkpoint)?.end_tokens;
    let shape = TraceShape {
        layers: model.expert_layers().len(),
        experts: model.config().experts,
        top_k: model.config().experts_per_token,
        source_ranks: 1,
    };
    let writer = TraceWriter::new(File::create(trace)?, TraceHeader::new(shape, "tally")?)?;
    let runner = Recording { inner: CpuRunner::new(model), writer, step: 0 };
    let config = EngineConfig { max_num_seqs: TOGETHER, ..EngineConfig::default() };
    let mut engine = Engine::new(Box::new(runner), tokenizer.clone(), config)?;

    let mut answers = Vec::new();
    for line in fs::read_to_string(questions)?.lines() {
        let question: serde_json::Value = serde_json::from_str(line)?;
        let question = question["question"].as_str().ok_or("a line without a question")?;
        let prompt = template.render(&Chat::new(&[Message::new("user", question)]))?;
        // Without a reader of its events a request would be cancelled.
        answers.push(engine.submit(Request {
            end_tokens: end_tokens.clone(),
            max_tokens: Some(ANSWER_TOKENS_MAX),
            ..Request::new(tokenizer.encode_verbatim(&prompt)?)
        })?);
    }
    while engine.has_work() {
        engine.step();
    }
    println!("{trace}: {} answers", answers.len());
    Ok(())
}
