//! Tuning records: what kernels took on a GPU, for one shape, one file.
//!
//! A record says what it was measured with. Times of kernels whose source has changed since, or of
//! another architecture or shape, are never used.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::kernel::{GemmFamily, Way};
use super::work::ExpertsShape;
use crate::MoeError;

/// Records that come with the program, as files under `tuning/`.
pub(super) const BUNDLED: [&str; 11] = [
    include_str!("../../../tuning/sm_90/m2.5-tp2-fp8.json"),
    include_str!("../../../tuning/sm_90/m2.5-tp2-fp8-channel.json"),
    include_str!("../../../tuning/sm_90/m2.5-tp2-fp8-tensor.json"),
    include_str!("../../../tuning/sm_90/m2.5-tp2-int4.json"),
    include_str!("../../../tuning/sm_90/m2.5-tp2-int8-w8a16.json"),
    include_str!("../../../tuning/sm_90/m2.5-tp2-int8-w8a8.json"),
    include_str!("../../../tuning/sm_90/m2.5-tp2-mxfp4.json"),
    include_str!("../../../tuning/sm_90/m2.5-tp2-mxfp8.json"),
    include_str!("../../../tuning/sm_90/m2.5-tp2-nvfp4.json"),
    include_str!("../../../tuning/sm_90/qwen3-30b-bf16.json"),
    include_str!("../../../tuning/sm_90/qwen3-30b-fp8.json"),
];

/// Name of all kernels that are no grouped GEMM: sorting, quantisation, combine.
pub const STEPS: &str = "steps";

/// Times of one shape on one GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TuningRecord {
    /// Where and with what the times were taken.
    pub origin: RecordOrigin,
    /// Sizes that they are of.
    pub shape: RecordShape,
    /// Hashes of the sources of each family of kernels, and of [`STEPS`], with `+` between them.
    pub kernels: BTreeMap<String, String>,
    /// Microseconds of the experts from hidden states, ids and weights to hidden states, by tokens
    /// and way; nothing where the result was wrong.
    microseconds: BTreeMap<usize, BTreeMap<String, Option<f64>>>,
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

/// What is known of a way.
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
        for (way, time) in record.microseconds.values().flatten() {
            way.parse::<Way>()?;
            if time.is_some_and(|time| !(time.is_finite() && time > 0.0)) {
                return Err(not_a_record(format!("{time:?} microseconds of {way}")));
            }
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

    /// Whether anything is known of the kernels of a family, at any batch size.
    pub fn has_seen(&self, family: GemmFamily) -> bool {
        self.microseconds.values().flat_map(BTreeMap::keys).any(|way| way.contains(family.name()))
    }

    /// What is known of a way at a batch size.
    pub fn known(&self, way: &Way, tokens: usize) -> Known {
        let times = self.microseconds.get(&tokens);
        match times.and_then(|times| times.get(&way.to_string())) {
            None => Known::Nothing,
            Some(None) => Known::Wrong,
            Some(Some(time)) => Known::Microseconds(*time),
        }
    }

    /// Notes what was found of a way: its microseconds, or `None` for a wrong result.
    pub fn note(&mut self, way: &Way, tokens: usize, microseconds: Option<f64>) {
        // Nanoseconds are finer than any measurement.
        let rounded = microseconds.map(|time| (time * 1e3).round() / 1e3);
        self.microseconds.entry(tokens).or_default().insert(way.to_string(), rounded);
    }

    /// Batch sizes of which anything is known, ascending.
    pub fn tokens(&self) -> Vec<usize> {
        self.microseconds.keys().copied().collect()
    }

    /// How many times are known.
    pub fn len(&self) -> usize {
        self.microseconds.values().map(BTreeMap::len).sum()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.microseconds.is_empty()
    }

    /// Forgets the times of kernels that are made of a source in `current` that the record does not
    /// know, and learns it. `current` may name some of the kernels only: the others are left alone.
    /// Gives back the names of what changed.
    pub fn forget_changed(&mut self, current: &BTreeMap<String, String>) -> Vec<&'static str> {
        let names = GemmFamily::ALL.map(GemmFamily::name).into_iter().chain([STEPS]);
        let changed: Vec<&'static str> = names.filter(|name| !self.knows(name, current)).collect();
        let uses = |way: &str, name: &str| name == STEPS || way.contains(name);
        self.microseconds.retain(|_, times| {
            times.retain(|way, _| !changed.iter().any(|name| uses(way, name)));
            !times.is_empty()
        });
        for &name in &changed {
            self.kernels.insert(name.to_owned(), current[name].clone());
        }
        changed
    }

    /// Whether all sources of `current` under that name are the record's.
    fn knows(&self, name: &str, current: &BTreeMap<String, String>) -> bool {
        let Some(current) = current.get(name) else { return true };
        let known: Vec<&str> =
            self.kernels.get(name).map_or(vec![], |own| own.split('+').collect());
        current.split('+').all(|source| known.contains(&source))
    }
}
