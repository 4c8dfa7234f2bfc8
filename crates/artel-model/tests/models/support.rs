//! The checkpoints of `fixtures/` and what transformers computed with them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use artel_model::checkpoint::{Dtype, StoredTensor};
use artel_model::{
    BlockId, Checkpoint, KvCache, LoadOptions, LogitsOf, Model, ModelError, SequenceInput,
};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

/// A checkpoint with its expected output.
pub struct Fixture {
    pub name: &'static str,
    pub prompt: Vec<u32>,
    pub greedy: Vec<u32>,
    /// Logits at every position of prompt and greedy tokens, `[P + 64, V]`.
    pub logits: Vec<f32>,
}

impl Fixture {
    pub fn read(name: &'static str) -> Self {
        let file = std::fs::read(folder(name).join("expected.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&file).unwrap();
        let ids = |name: &str| {
            let chunks = tensors.tensor(name).unwrap().data().as_chunks::<8>().0;
            chunks.iter().map(|bytes| i64::from_le_bytes(*bytes) as u32).collect::<Vec<_>>()
        };
        let logits = tensors.tensor("logits").unwrap().data().as_chunks::<4>().0;
        let fixture = Self {
            name,
            prompt: ids("prompt"),
            greedy: ids("greedy"),
            logits: logits.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        };
        assert_eq!(fixture.greedy.len(), 64);
        fixture
    }

    pub fn load(&self) -> Model {
        load(self.name, &LoadOptions::default())
    }

    /// Prompt and greedy tokens.
    pub fn tokens(&self) -> Vec<u32> {
        [&self.prompt[..], &self.greedy].concat()
    }

    pub fn vocabulary(&self) -> usize {
        self.logits.len() / (self.prompt.len() + self.greedy.len())
    }
}

pub fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

pub fn load(name: &str, options: &LoadOptions) -> Model {
    Model::load(&Checkpoint::open(&folder(name)).unwrap(), options).unwrap()
}

/// Logits of all tokens, which are fed in pieces of these lengths.
pub fn logits_in_chunks(model: &Model, tokens: &[u32], chunks: &[usize]) -> Vec<f32> {
    assert_eq!(chunks.iter().sum::<usize>(), tokens.len());
    let mut workspace = model.new_workspace();
    let mut cache = model.new_cache(KvCache::blocks_for(tokens.len()));
    let blocks = cache.all_blocks();
    let (mut cached, mut logits) = (0, Vec::new());
    for &length in chunks {
        let chunk = &tokens[cached..cached + length];
        let input = input(&blocks, cached, chunk, LogitsOf::AllTokens);
        logits.extend_from_slice(model.forward(&mut workspace, &mut cache, &[input]).unwrap());
        cached += length;
    }
    logits
}

/// New tokens of a sequence.
pub fn input<'a>(
    blocks: &'a [BlockId],
    cached: usize,
    tokens: &'a [u32],
    logits_of: LogitsOf,
) -> SequenceInput<'a> {
    SequenceInput { blocks, cached, tokens, logits_of }
}

/// Logits of all tokens, fed at once.
pub fn logits(model: &Model, tokens: &[u32]) -> Vec<f32> {
    logits_in_chunks(model, tokens, &[tokens.len()])
}

pub fn greedy(model: &Model, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut workspace = model.new_workspace();
    let mut cache = model.new_cache(KvCache::blocks_for(prompt.len() + count));
    let blocks = cache.all_blocks();
    let (mut tokens, mut cached) = (prompt.to_vec(), 0);
    for _ in 0..count {
        let input = input(&blocks, cached, &tokens[cached..], LogitsOf::LastToken);
        let logits = model.forward(&mut workspace, &mut cache, &[input]).unwrap();
        cached = tokens.len();
        tokens.push(argmax(logits));
    }
    tokens.split_off(prompt.len())
}

pub fn argmax(logits: &[f32]) -> u32 {
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    best.expect("a vocabulary") as u32
}

pub fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    // NaN would be passed over by `max`.
    differences.inspect(|difference| assert!(difference.is_finite())).fold(0.0, f32::max)
}

/// `1 - 2 <a, b> / (|a|^2 + |b|^2)`: 0 for equal vectors, about half the relative squared error.
pub fn relative_difference(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    1.0 - 2.0 * dot(a, b) / (dot(a, a) + dot(b, b))
}

/// A copy of a fixture that a test breaks before it is written to disk.
pub struct Edited {
    pub config: serde_json::Map<String, serde_json::Value>,
    /// Number type, shape and bytes by name.
    pub tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
}

impl Edited {
    pub fn of(name: &str) -> Self {
        let checkpoint = Checkpoint::open(&folder(name)).unwrap();
        let tensor = |(name, tensor): (&str, &StoredTensor)| {
            let bytes = tensor.bytes.as_bytes().to_vec();
            (name.to_owned(), (tensor.dtype, tensor.shape.clone(), bytes))
        };
        let tensors = checkpoint.tensors().map(tensor).collect();
        let config = checkpoint.find_json("config.json").unwrap().unwrap();
        Self { config, tensors }
    }

    pub fn set(mut self, field: &str, value: serde_json::Value) -> Self {
        self.config.insert(field.to_owned(), value);
        self
    }

    pub fn tensor(&mut self, name: &str) -> &mut (Dtype, Vec<usize>, Vec<u8>) {
        self.tensors.get_mut(name).unwrap_or_else(|| panic!("no tensor {name} in the fixture"))
    }

    pub fn load(&self) -> Result<Model, ModelError> {
        let folder = tempfile::tempdir().unwrap();
        let config = serde_json::to_vec(&self.config).unwrap();
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        let views = self.tensors.iter().map(|(name, (dtype, shape, bytes))| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        let weights = safetensors::serialize(views, None).unwrap();
        std::fs::write(folder.path().join("model.safetensors"), weights).unwrap();
        Model::load(&Checkpoint::open(folder.path())?, &LoadOptions::default())
    }

    pub fn error(&self) -> String {
        self.load().expect_err("the checkpoint is broken").to_string()
    }
}
