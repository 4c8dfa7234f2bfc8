//! Mixtral (8x7B, 8x22B): softmax over all experts, the best renormalised. Source: Jiang et al.,
//! "Mixtral of Experts", 2024.

use artel_moe::router::{Router, RouterConfig, RoutingMethod};

use crate::Result;
use crate::config::{RotaryPart, hidden_activation};
use crate::decoder::{Decoder, GroupedQuery, MoeParts, ProjectionNames, RoutedExperts};
use crate::weights::{Group, Weights};

/// Gate, down and up are numbered in the order of the first release.
const NAMES: ProjectionNames = ProjectionNames { gate: "w1", up: "w3", down: "w2" };

pub(super) fn read(weights: &Weights<'_>) -> Result<Decoder> {
    let config = weights.config();
    let attention = GroupedQuery::read(&config)?;
    let window = config.optional_size("sliding_window")?;
    let experts = RoutedExperts {
        hidden: attention.hidden,
        intermediate: config.size("intermediate_size")?,
        activation: hidden_activation(&config)?,
        router: RouterConfig::new(
            RoutingMethod::softmax_renormalize(),
            config.size_of_any(&["num_local_experts", "num_experts"])?,
            config.size("num_experts_per_tok")?,
        )?,
    };
    Decoder::read(weights, attention.rope(&config, RotaryPart::Whole)?, &|_, layer| {
        let self_attn = layer.scope("self_attn", Group::Attention);
        let moe = layer.scope("block_sparse_moe", Group::Experts);
        let parts = MoeParts {
            gate: experts.read_gate(&moe)?,
            router: Router::new(experts.router)?,
            experts: experts.read_numbered(&moe, NAMES)?,
            shared: None,
        };
        Ok((
            attention.read_layer(&self_attn, attention.windowed_attention(window)?)?,
            experts.block(layer.features(), parts)?,
        ))
    })
}
