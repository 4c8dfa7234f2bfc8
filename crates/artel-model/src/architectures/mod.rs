//! The architectures: one short file each, which says what its model is made of.
//!
//! An architecture reads `config.json`, describes its attention and its experts, and names the
//! weights of one layer; [`Decoder`] is the rest. A number that `config.json` can give is never
//! written down here.

mod deepseek_v3;
mod glm4_moe;
mod gpt_oss;
mod grouped_experts;
mod minimax_m2;
mod mixtral;
mod olmoe;
mod qwen2_moe;
mod qwen3_moe;

use artel_moe::router::RoutingMethod;

use crate::config::ConfigReader;
use crate::decoder::Decoder;
use crate::weights::Weights;
use crate::{ModelError, Result};

/// A known architecture.
#[derive(Clone, Copy)]
pub(crate) struct Architecture {
    /// As `architectures` of `config.json` names it.
    pub(crate) name: &'static str,
    /// Builds the model from a checkpoint.
    pub(crate) read: fn(&Weights<'_>) -> Result<Decoder>,
}

const KNOWN: [Architecture; 8] = [
    Architecture { name: "MiniMaxM2ForCausalLM", read: minimax_m2::read },
    Architecture { name: "Qwen3MoeForCausalLM", read: qwen3_moe::read },
    Architecture { name: "MixtralForCausalLM", read: mixtral::read },
    Architecture { name: "DeepseekV3ForCausalLM", read: deepseek_v3::read },
    Architecture { name: "GptOssForCausalLM", read: gpt_oss::read },
    Architecture { name: "OlmoeForCausalLM", read: olmoe::read },
    Architecture { name: "Qwen2MoeForCausalLM", read: qwen2_moe::read },
    Architecture { name: "Glm4MoeForCausalLM", read: glm4_moe::read },
];

/// Names of all known architectures.
pub fn known_architectures() -> impl Iterator<Item = &'static str> {
    KNOWN.iter().map(|architecture| architecture.name)
}

/// The architecture that `config.json` names.
pub(crate) fn find(config: &ConfigReader<'_>) -> Result<Architecture> {
    let names = config.texts("architectures")?.unwrap_or_default();
    let known = KNOWN.iter().find(|architecture| names.contains(&architecture.name));
    known.copied().ok_or_else(|| ModelError::UnknownArchitecture {
        found: names.join(", "),
        known: known_architectures().collect::<Vec<_>>().join(", "),
    })
}

/// Whether a layer of Qwen's models has experts: not if `mlp_only_layers` lists it, else every
/// `decoder_sparse_step`-th one.
fn is_sparse(config: &ConfigReader<'_>, layer: usize) -> Result<bool> {
    let step = config.optional_size("decoder_sparse_step")?.unwrap_or(1);
    let dense = config.counts("mlp_only_layers")?;
    Ok(!dense.contains(&layer) && (layer + 1).is_multiple_of(step))
}

/// Softmax over all experts, renormalised over the selected ones if `norm_topk_prob` says so.
fn softmax_routing(config: &ConfigReader<'_>) -> Result<RoutingMethod> {
    Ok(match config.flag("norm_topk_prob")? {
        true => RoutingMethod::softmax_renormalize(),
        false => RoutingMethod::softmax(),
    })
}

/// The sliding windows of a model.
enum Windows {
    /// No layer has one.
    None,
    /// Every other of the first layers has one, beginning with the first.
    EveryOther { window: usize, of_first: usize },
    /// Each layer's own.
    Listed(Vec<Option<usize>>),
}

impl Windows {
    /// What `layer_types` says, one entry for each layer.
    fn listed(config: &ConfigReader<'_>) -> Result<Self> {
        let layers = config.size("num_hidden_layers")?;
        let expected = format!("{layers} of full_attention, sliding_attention");
        let wrong = || config.error("layer_types", &expected);
        let types = config.texts("layer_types")?.filter(|types| types.len() == layers);
        let mut windows = Vec::new();
        for kind in types.ok_or_else(wrong)? {
            windows.push(match kind {
                "full_attention" => None,
                "sliding_attention" => Some(config.size("sliding_window")?),
                _ => return Err(wrong()),
            });
        }
        Ok(Self::Listed(windows))
    }

    fn of_layer(&self, layer: usize) -> Option<usize> {
        match self {
            Self::None => None,
            Self::EveryOther { window, of_first } => {
                (layer < *of_first && layer.is_multiple_of(2)).then_some(*window)
            }
            Self::Listed(windows) => windows[layer],
        }
    }
}
