//! Tuning records: what kernels took on a GPU, for one shape, one file.
//!
//! A record says what it was measured with. Times of kernels whose source has changed since, or of
//! another architecture or shape, are never used.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::kernel::{GemmFamily, GemmKernel, GpuPath, GpuProduct};
use super::work::ExpertsShape;
use crate::MoeError;

/// Records that come with the program, as files under `tuning/`.
const BUNDLED: [&str; 0] = [];

/// Name of the step in which pairs are sorted by expert.
const ALIGN: &str = "align";

/// Times of one shape on one GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TuningRecord {
    /// Where and with what the times were taken.
    pub origin: RecordOrigin,
    /// Sizes that they are of.
    pub shape: RecordShape,
    /// Hash of the source of each family of kernels, by name.
    pub kernels: BTreeMap<String, String>,
    /// Microseconds by step, tokens, and path with kernel; nothing where the result was wrong.
    microseconds: BTreeMap<String, BTreeMap<usize, BTreeMap<String, Option<f64>>>>,
}

/// Where and with what times were taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordOrigin {
    /// `sm_90`.
    pub architecture: String,
    /// Name that the GPU gives itself.
    pub device: String,
    /// What compiled the kernels.
    pub compiler: String,
    /// Day in UTC, `YYYY-MM-DD`.
    pub date: String,
}

/// [`ExpertsShape`] in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordShape {
    experts: usize,
    local_experts: usize,
    top_k: usize,
    hidden_size: usize,
    intermediate_size: usize,
    format: String,
}

impl From<&ExpertsShape> for RecordShape {
    fn from(shape: &ExpertsShape) -> Self {
        Self {
            experts: shape.experts,
            local_experts: shape.local_experts,
            top_k: shape.top_k,
            hidden_size: shape.hidden_size,
            intermediate_size: shape.intermediate_size,
            format: shape.format.name().to_owned(),
        }
    }
}

/// Something that takes time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Sorting the pairs into blocks of so many rows.
    Align {
        /// Rows of a block.
        block_size: usize,
    },
    /// One product.
    Product {
        /// Which.
        product: GpuProduct,
        /// How its pairs are assigned.
        path: GpuPath,
        /// What computes it.
        kernel: GemmKernel,
    },
}

impl Step {
    fn keys(self) -> (&'static str, String) {
        match self {
            Self::Align { block_size } => (ALIGN, block_size.to_string()),
            Self::Product { product, path: GpuPath::Direct, kernel } => {
                (product.name(), format!("direct {kernel}"))
            }
            Self::Product { product, path: GpuPath::Aligned { .. }, kernel } => {
                (product.name(), format!("aligned {kernel}"))
            }
        }
    }
}

/// What is known of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Known {
    /// Never measured.
    Nothing,
    /// It computed something else than the reference.
    Wrong,
    /// Microseconds.
    Microseconds(f64),
}

impl TuningRecord {
    /// A record without times. `kernels` are the hashes of what will be measured.
    pub fn new(
        origin: RecordOrigin,
        shape: &ExpertsShape,
        kernels: BTreeMap<String, String>,
    ) -> Self {
        Self { origin, shape: shape.into(), kernels, microseconds: BTreeMap::new() }
    }

    /// The record in a file's text.
    ///
    /// # Errors
    /// [`MoeError::Config`] for text that is no record, or with times that are none.
    pub fn from_json(text: &str) -> Result<Self, MoeError> {
        let not_a_record =
            |why: String| MoeError::config("tuning record", why, "one of artel tune");
        let record: Self = serde_json::from_str(text).map_err(|e| not_a_record(e.to_string()))?;
        let times = record.microseconds.values().flat_map(BTreeMap::values);
        for (key, time) in times.flatten() {
            if time.is_some_and(|time| !(time.is_finite() && time > 0.0)) {
                return Err(not_a_record(format!("{time:?} microseconds of {key}")));
            }
            let kernel = key.split_once(' ').map(|(_, kernel)| kernel.parse::<GemmKernel>());
            kernel.transpose()?;
        }
        Ok(record)
    }

    /// A file's text.
    pub fn to_json(&self) -> String {
        let text = serde_json::to_string_pretty(self);
        text.expect("this is a bug: a record has only text and numbers") + "\n"
    }

    /// The record among those of the program that is of this shape and architecture.
    ///
    /// # Errors
    /// [`MoeError::Config`] for a bundled file that is none, which a test rules out.
    pub fn bundled(architecture: &str, shape: &ExpertsShape) -> Result<Option<Self>, MoeError> {
        for text in BUNDLED {
            let record = Self::from_json(text)?;
            if record.origin.architecture == architecture && record.shape == shape.into() {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    /// What is known of a step at a batch size.
    pub fn known(&self, step: Step, tokens: usize) -> Known {
        let (name, key) = step.keys();
        let times = self.microseconds.get(name).and_then(|by_tokens| by_tokens.get(&tokens));
        match times.and_then(|times| times.get(&key)) {
            None => Known::Nothing,
            Some(None) => Known::Wrong,
            Some(Some(time)) => Known::Microseconds(*time),
        }
    }

    /// Notes what was found of a step.
    pub fn note(&mut self, step: Step, tokens: usize, known: Known) {
        let (name, key) = step.keys();
        let times =
            self.microseconds.entry(name.to_owned()).or_default().entry(tokens).or_default();
        match known {
            Known::Nothing => times.remove(&key),
            Known::Wrong => times.insert(key, None),
            // Nanoseconds are finer than any measurement.
            Known::Microseconds(time) => times.insert(key, Some((time * 1e3).round() / 1e3)),
        };
    }

    /// Batch sizes of which anything is known, ascending.
    pub fn tokens(&self) -> Vec<usize> {
        let mut tokens: Vec<usize> =
            self.microseconds.values().flat_map(|by_tokens| by_tokens.keys().copied()).collect();
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    }

    /// Forgets the times of families whose source is not `current`, and takes over their new hashes.
    /// Gives back the names of those families.
    pub fn update(&mut self, current: &BTreeMap<String, String>) -> Vec<String> {
        let stale = |name: &str| self.kernels.get(name) != current.get(name);
        let families: Vec<&str> =
            GemmFamily::ALL.map(GemmFamily::name).into_iter().filter(|name| stale(name)).collect();
        let align_changed = stale(ALIGN);
        for (step, by_tokens) in &mut self.microseconds {
            for times in by_tokens.values_mut() {
                times.retain(|key, _| match step == ALIGN {
                    true => !align_changed,
                    false => !families.iter().any(|family| key.contains(family)),
                });
            }
            by_tokens.retain(|_, times| !times.is_empty());
        }
        self.microseconds.retain(|_, by_tokens| !by_tokens.is_empty());
        self.kernels = current.clone();
        let changed = families.into_iter().map(str::to_owned);
        changed.chain(align_changed.then(|| ALIGN.to_owned())).collect()
    }
}
