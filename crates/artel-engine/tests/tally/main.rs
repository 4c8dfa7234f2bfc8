//! The bundled model in every format: what must not change a bit of an answer.

mod batches;
mod ranks;

use std::path::Path;

use artel_engine::*;
use artel_model::{Checkpoint, Format, LoadOptions, Model, Tokenizer};

/// What is asked together.
const PROMPTS: [&str; 3] =
    ["12 + 30 - 7 =", "Tom has 5 apples and buys 3 bags of 4 apples.", "9 * 9"];

/// The model that comes with the program, in a format of choice.
struct Subject {
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    options: LoadOptions,
}

/// Ids and probabilities of the tokens of an answer, to the bit.
type Answer = Vec<(u32, u32)>;

impl Subject {
    fn new(format: Format) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tally");
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let tokenizer = Tokenizer::read(&checkpoint).unwrap();
        let usual = LoadOptions::default();
        let features = usual.features.with_invariant_rows();
        Self { checkpoint, tokenizer, options: LoadOptions { format: Some(format), features } }
    }

    fn model(&self) -> Model {
        Model::load(&self.checkpoint, &self.options).unwrap()
    }

    fn engine(&self, runner: CpuRunner) -> Engine {
        let config =
            EngineConfig { max_num_seqs: 4, max_num_batched_tokens: 8, ..Default::default() };
        Engine::new(Box::new(runner), self.tokenizer.clone(), config).unwrap()
    }

    /// A greedy request of 120 tokens.
    fn request(&self, text: &str) -> Request {
        Request {
            max_tokens: Some(120),
            ignore_eos: true,
            ..Request::new(self.tokenizer.encode(text).unwrap())
        }
    }

    /// Answers to a few prompts that run together.
    fn answers(&self, engine: &mut Engine) -> Vec<Answer> {
        let submit = |text: &&str| engine.submit(self.request(text)).unwrap();
        let streams: Vec<EventStream> = PROMPTS.iter().map(submit).collect();
        while engine.has_work() {
            engine.step();
        }
        streams.into_iter().map(read).collect()
    }
}

fn read(mut stream: EventStream) -> Answer {
    let mut answer = Answer::new();
    loop {
        match stream.try_recv().expect("a stream ends with its reason") {
            Event::PromptLogprobs(_) => {}
            Event::Token(token) => answer.push((token.id, token.logprob.to_bits())),
            Event::Finished(end) => {
                assert_eq!(end.reason, FinishReason::Length);
                return answer;
            }
        }
    }
}
