//! Qwen3-MoE (30B-A3B, 235B-A22B): softmax routing, queries and keys normed head by head, some
//! layers possibly dense. Source: "Qwen3 Technical Report", 2025.

use artel_moe::router::{Router, RouterConfig};

use super::{is_sparse, softmax_routing};
use crate::Result;
use crate::config::{RotaryPart, hidden_activation};
use crate::decoder::{
    Decoder, DenseMlp, GATE_UP_DOWN, GroupedQuery, MoeParts, QkNorm, RoutedExperts,
};
use crate::weights::{Group, Weights};

pub(super) fn read(weights: &Weights<'_>) -> Result<Decoder> {
    let config = weights.config();
    let attention = GroupedQuery::read(&config)?.with_attention_bias(&config)?;
    let attention = GroupedQuery { qk_norm: QkNorm::PerHead, ..attention };
    let window = match config.flag_or("use_sliding_window", false)? {
        true => config.optional_size("sliding_window")?,
        false => None,
    };
    let experts = RoutedExperts {
        hidden: attention.hidden,
        intermediate: config.size("moe_intermediate_size")?,
        activation: hidden_activation(&config)?,
        router: RouterConfig::new(
            softmax_routing(&config)?,
            config.size_of_any(&["num_experts", "num_local_experts"])?,
            config.size("num_experts_per_tok")?,
        )?,
    };
    Decoder::read(weights, attention.rope(&config, RotaryPart::Whole)?, &|number, layer| {
        let self_attn = layer.scope("self_attn", Group::Attention);
        let self_attn = attention.read_layer(&self_attn, attention.windowed_attention(window)?)?;
        if !is_sparse(&config, number)? {
            let (mlp, size) =
                (layer.scope("mlp", Group::DenseMlp), config.size("intermediate_size")?);
            let mlp = DenseMlp::read_layer(&mlp, attention.hidden, size, experts.activation)?;
            return Ok((self_attn, mlp));
        }
        let moe = layer.scope("mlp", Group::Experts);
        let parts = MoeParts {
            gate: experts.read_gate(&moe)?,
            router: Router::new(experts.router)?,
            experts: experts.read_numbered(&moe, GATE_UP_DOWN)?,
            shared: None,
        };
        Ok((self_attn, experts.block(layer.features(), parts)?))
    })
}
