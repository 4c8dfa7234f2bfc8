//! MiniMax-M2, M2.1, M2.5: sigmoid routing selected with a bias, queries and keys normed over all
//! heads together, part of each head turns.

use artel_moe::router::{RouterConfig, RoutingMethod};

use crate::Result;
use crate::config::{ConfigReader, RotaryPart, hidden_activation};
use crate::decoder::{Decoder, GroupedQuery, MoeParts, ProjectionNames, QkNorm, RoutedExperts};
use crate::weights::{Group, Weights};

const NAMES: ProjectionNames = ProjectionNames { gate: "w1", up: "w3", down: "w2" };

pub(super) fn read(weights: &Weights<'_>) -> Result<Decoder> {
    let config = weights.config();
    check_variant(&config)?;
    let attention = GroupedQuery { qk_norm: QkNorm::Whole, ..GroupedQuery::read(&config)? };
    let experts = RoutedExperts {
        hidden: attention.hidden,
        intermediate: config.size("intermediate_size")?,
        activation: hidden_activation(&config)?,
        router: RouterConfig::new(
            RoutingMethod::minimax2(),
            config.size_of_any(&["num_local_experts", "num_experts"])?,
            config.size("num_experts_per_tok")?,
        )?,
    };
    Decoder::read(weights, attention.rope(&config, RotaryPart::Declared)?, &|_, layer| {
        let self_attn = layer.scope("self_attn", Group::Attention);
        let moe = layer.scope("block_sparse_moe", Group::Experts);
        let parts = MoeParts {
            gate: experts.read_gate(&moe)?,
            router: experts.read_biased_router(&moe)?,
            experts: experts.read_numbered(&moe, NAMES)?,
            shared: None,
        };
        Ok((
            attention.read_layer(&self_attn, attention.full_attention()?)?,
            experts.block(layer.features(), parts)?,
        ))
    })
}

/// Released files describe variants in fields that newer ones leave out. What no released
/// checkpoint uses is refused rather than ignored.
fn check_variant(config: &ConfigReader<'_>) -> Result<()> {
    for (field, expected) in [("scoring_func", "sigmoid"), ("qk_norm_type", "per_layer")] {
        if config.has(field) && config.text(field)? != expected {
            return Err(config.error(field, format!("{expected:?}")));
        }
    }
    for field in ["use_routing_bias", "use_qk_norm"] {
        if !config.flag_or(field, true)? {
            return Err(config.error(field, true));
        }
    }
    if config.count_or_zero("shared_intermediate_size")? > 0 {
        return Err(config.error("shared_intermediate_size", 0));
    }
    if config.counts("attn_type_list")?.iter().any(|&kind| kind != 1) {
        return Err(config.error("attn_type_list", "only 1, full attention"));
    }
    Ok(())
}
