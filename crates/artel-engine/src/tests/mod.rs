//! The engine on a model that is a hash function: fast, and wrong as soon as one token of the
//! context lies in the wrong place.

mod fairness;
mod requests;
mod sharing;
mod threads;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};

use artel_layers::sample::TokenLogprobs;
use artel_model::{BLOCK_TOKENS, Checkpoint, Tokenizer};

use crate::runner::{Launched, RunReport, Runner, RunnerInfo, SequenceOutput, SequenceStep};
use crate::*;

/// Size of the vocabulary; all tokens are characters.
pub const VOCABULARY: u32 = 67;

/// Its cache remembers tokens, and the next token is a hash of all it remembers.
#[derive(Debug, Default)]
pub struct HashRunner {
    blocks: Vec<[u32; BLOCK_TOKENS]>,
    /// Tokens computed, shared with the test.
    pub computed: Arc<Mutex<u64>>,
    /// Fails once it is asked to compute this token.
    pub poison: Option<u32>,
    /// Computes like a device, which has the tokens later.
    pub is_device: bool,
    /// What [`Runner::collect`] will tell.
    running: VecDeque<Result<Vec<SequenceOutput>>>,
    /// Tokens that the latest step chose.
    chosen: Vec<Option<u32>>,
}

/// The token that follows a text.
pub fn next(text: &[u32]) -> u32 {
    let hash = text.iter().fold(7u64, |hash, &id| {
        (hash ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
    });
    3 + (hash >> 33) as u32 % (VOCABULARY - 3)
}

/// What the model answers, in `count` tokens.
pub fn answer(prompt: &[u32], count: usize) -> Vec<u32> {
    let mut text = prompt.to_vec();
    (0..count).for_each(|_| text.push(next(&text)));
    text.split_off(prompt.len())
}

impl Runner for HashRunner {
    fn info(&self) -> RunnerInfo {
        let vocabulary = VOCABULARY as usize;
        RunnerInfo { vocabulary, max_positions: 4096, kv_bytes_per_token: 1, kv_cache_memory: None }
    }

    fn allocate(&mut self, blocks: usize) -> Result<()> {
        self.blocks = vec![[u32::MAX; BLOCK_TOKENS]; blocks];
        Ok(())
    }

    fn launch(&mut self, batch: &[SequenceStep<'_>]) -> Result<Launched> {
        if !self.is_device {
            return self.compute(batch).map(Launched::Done);
        }
        assert!(self.running.len() < 2, "one step ahead is enough");
        let outputs = self.compute(batch);
        self.running.push_back(outputs);
        Ok(Launched::Running)
    }

    fn collect(&mut self) -> Result<Vec<SequenceOutput>> {
        self.running.pop_front().expect("a step that runs")
    }

    fn report(&mut self) -> RunReport<'_> {
        RunReport { expert_pairs: &[], expert_steps: 0, path: "hash", ranks: None }
    }
}

impl HashRunner {
    fn compute(&mut self, batch: &[SequenceStep<'_>]) -> Result<Vec<SequenceOutput>> {
        if let Some(poison) = self.poison
            && batch.iter().any(|step| step.tokens.contains(&poison))
        {
            self.chosen = vec![Some(0); batch.len()];
            return Err(EngineError::invalid("a token", poison, "no poison"));
        }
        // All writes come first, as on a device that computes sequences side by side.
        for step in batch {
            *self.computed.lock().unwrap() += step.new_tokens() as u64;
            assert!(step.new_tokens() > 0);
            let depends = step.choice.is_some_and(|choice| {
                let penalised = choice.sampler.params().depends_on_history();
                penalised || choice.adjustments.allowed.is_some()
            });
            assert!(step.awaited.is_none() || (self.is_device && !depends));
            let awaited = step.awaited.map(|place| self.chosen[place].expect("a token"));
            for (index, id) in step.tokens.iter().copied().chain(awaited).enumerate() {
                let position = step.cached + index;
                let block = step.blocks[position / BLOCK_TOKENS];
                self.blocks[block as usize][position % BLOCK_TOKENS] = id;
            }
        }
        let outputs: Vec<SequenceOutput> = batch.iter().map(|step| self.output(step)).collect();
        let chosen = outputs.iter().map(|output| match &output.chosen {
            Some(Ok(chosen)) => Some(chosen.id),
            // A device has some number there.
            Some(Err(_)) => Some(0),
            None => None,
        });
        self.chosen = chosen.collect();
        Ok(outputs)
    }

    fn output(&self, step: &SequenceStep<'_>) -> SequenceOutput {
        let blocks = step.blocks.iter().flat_map(|&block| self.blocks[block as usize]);
        let text: Vec<u32> = blocks.take(step.cached + step.new_tokens()).collect();
        let targets = step.prompt.map(|prompt| prompt.targets).unwrap_or_default();
        let known = targets.iter().enumerate().map(|(index, &id)| {
            let certain = next(&text[..step.cached + index + 1]) == id;
            TokenLogprobs { id, logprob: if certain { 0.0 } else { -9.0 }, top: Vec::new() }
        });
        let chosen = step.choice.map(|choice| {
            let allowed = choice.adjustments.allowed;
            let fits = |id: &u32| {
                allowed.is_none_or(|allowed| allowed.is_allowed(*id))
                    && !choice.adjustments.banned.contains(id)
            };
            let ids = (0..VOCABULARY).map(|step| (next(&text) + step) % VOCABULARY);
            let id = ids.into_iter().find(fits).ok_or("nothing fits".to_owned())?;
            Ok(TokenLogprobs { id, logprob: 0.0, top: Vec::new() })
        });
        SequenceOutput { chosen, prompt: known.collect() }
    }
}

pub fn tokenizer() -> Tokenizer {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../artel-model/tests/fixtures");
    let tokenizer = std::fs::read(fixtures.join("text/byte_level/tokenizer.json")).unwrap();
    let files: [(&str, &'static [u8]); 3] = [
        ("config.json", b"{}"),
        ("model.safetensors", b"\x02\0\0\0\0\0\0\0{}"),
        ("tokenizer.json", tokenizer.leak()),
    ];
    Tokenizer::read(&Checkpoint::from_static("characters", &files).unwrap()).unwrap()
}

/// An engine on the host with room for so many blocks.
pub fn engine(blocks: usize, config: EngineConfig) -> Engine {
    engine_of(HashRunner::default(), blocks, config)
}

/// The same on a device.
pub fn engine_of_device(blocks: usize, config: EngineConfig) -> Engine {
    engine_of(HashRunner { is_device: true, ..HashRunner::default() }, blocks, config)
}

/// The host and a device.
pub const ENGINES: [fn(usize, EngineConfig) -> Engine; 2] = [engine, engine_of_device];

fn engine_of(runner: HashRunner, blocks: usize, config: EngineConfig) -> Engine {
    let kv_cache_memory = Some(blocks * BLOCK_TOKENS);
    let config = EngineConfig { kv_cache_memory, ..config };
    Engine::new(Box::new(runner), tokenizer(), config).unwrap()
}

/// A request for `max_tokens` tokens.
pub fn request(prompt_ids: Vec<u32>, max_tokens: usize) -> Request {
    Request { max_tokens: Some(max_tokens), ..Request::new(prompt_ids) }
}

/// A prompt of so many tokens.
pub fn prompt(seed: u32, tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|index| 3 + (index * index * 7 + index + seed * 13) % 64).collect()
}

/// Everything that the events of a request said.
#[derive(Debug, Default)]
pub struct Answer {
    pub ids: Vec<u32>,
    pub text: String,
    pub prompt: Vec<Option<TokenLogprobs>>,
    pub end: Option<Finished>,
}

impl Answer {
    /// Adds what has happened since.
    pub fn read(&mut self, stream: &mut EventStream) {
        while let Some(event) = stream.try_recv() {
            self.add(event);
        }
    }

    pub fn add(&mut self, event: Event) {
        assert!(self.end.is_none(), "something came after the end");
        match event {
            Event::PromptLogprobs(prompt) => self.prompt = prompt,
            Event::Token(token) => {
                self.ids.push(token.id);
                self.text += &token.text;
            }
            Event::Finished(end) => {
                self.text += &end.text;
                self.end = Some(end);
            }
        }
    }

    pub fn reason(&self) -> &FinishReason {
        &self.end.as_ref().expect("an end").reason
    }
}

/// Steps until nothing is left to do; every step leaves the blocks in order.
pub fn finish(engine: &mut Engine) {
    while engine.has_work() {
        engine.step();
        engine.check_integrity();
    }
    assert_eq!(engine.metrics().kv_blocks_used, 0, "a block is lost");
}

/// All of a request's answer.
pub fn read(mut stream: EventStream) -> Answer {
    let mut answer = Answer::default();
    answer.read(&mut stream);
    answer
}
