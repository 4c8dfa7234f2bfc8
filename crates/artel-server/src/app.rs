use std::time::{Duration, SystemTime};

use artel_engine::EngineHandle;
use artel_model::{ChatTemplate, GenerationConfig, Tokenizer};

use crate::config::ServerConfig;
use crate::grammar::GrammarFactory;
use crate::metrics::Recorder;
use crate::vocabulary::Vocabulary;

/// A model that runs, and what the server has to know of its checkpoint.
#[derive(Debug)]
pub struct ServedModel {
    /// Runs it.
    pub engine: EngineHandle,
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    /// How messages become text; without one there are only plain completions.
    pub template: Option<ChatTemplate>,
    /// How its authors mean it to be sampled.
    pub generation: GenerationConfig,
    /// Numbers of the decoder layers that have experts, in the order in which the engine counts them.
    pub expert_layers: Vec<usize>,
    /// The folder of the checkpoint, for clients that look for the tokenizer there.
    pub root: String,
    /// Version of the program.
    pub version: &'static str,
}

/// What all handlers share.
#[derive(Debug)]
pub(crate) struct App {
    pub config: ServerConfig,
    pub model: ServedModel,
    pub vocabulary: Vocabulary,
    pub grammars: GrammarFactory,
    pub recorder: Recorder,
    /// Seconds since 1970, when the server was started.
    pub created: u64,
}

impl App {
    pub(crate) fn new(config: ServerConfig, model: ServedModel) -> Self {
        let vocabulary = Vocabulary::new(&model.tokenizer);
        let recorder = Recorder::new(&config);
        let (grammars, created) = (GrammarFactory::default(), unix_seconds());
        Self { vocabulary, grammars, recorder, config, model, created }
    }
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or(Duration::ZERO).as_secs()
}
