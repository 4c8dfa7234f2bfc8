//! OLMoE (1B-7B): softmax routing over many small experts, queries and keys normed over all heads
//! together. Source: Muennighoff et al., "OLMoE", 2024.

use artel_moe::router::{Router, RouterConfig};

use super::softmax_routing;
use crate::Result;
use crate::config::{RotaryPart, hidden_activation};
use crate::decoder::{Decoder, GATE_UP_DOWN, GroupedQuery, MoeParts, QkNorm, RoutedExperts};
use crate::weights::{Group, Weights};

pub(super) fn read(weights: &Weights<'_>) -> Result<Decoder> {
    let config = weights.config();
    let clip = config.has("clip_qkv").then(|| config.positive("clip_qkv")).transpose()?;
    let attention = GroupedQuery {
        qk_norm: QkNorm::Whole,
        clip: clip.map(|clip| clip as f32),
        ..GroupedQuery::read(&config)?.with_attention_bias(&config)?
    };
    let experts = RoutedExperts {
        hidden: attention.hidden,
        intermediate: config.size("intermediate_size")?,
        activation: hidden_activation(&config)?,
        router: RouterConfig::new(
            softmax_routing(&config)?,
            config.size_of_any(&["num_experts", "num_local_experts"])?,
            config.size("num_experts_per_tok")?,
        )?,
    };
    Decoder::read(weights, attention.rope(&config, RotaryPart::Whole)?, &|_, layer| {
        let self_attn = layer.scope("self_attn", Group::Attention);
        let moe = layer.scope("mlp", Group::Experts);
        let parts = MoeParts {
            gate: experts.read_gate(&moe)?,
            router: Router::new(experts.router)?,
            experts: experts.read_numbered(&moe, GATE_UP_DOWN)?,
            shared: None,
        };
        Ok((
            attention.read_layer(&self_attn, attention.full_attention()?)?,
            experts.block(layer.features(), parts)?,
        ))
    })
}
