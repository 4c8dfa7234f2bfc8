//! DeepSeek-V3 and R1: latent attention, dense first layers, experts selected with a bias from the
//! best groups, and a shared expert. Source: "DeepSeek-V3 Technical Report", 2024.

use artel_layers::rope::{Rope, RopeStyle};

use super::grouped_experts::GroupedExperts;
use crate::Result;
use crate::config::{ConfigReader, RotaryPart, rope_config};
use crate::decoder::{Decoder, Latent};
use crate::weights::{Group, Weights};

pub(super) fn read(weights: &Weights<'_>) -> Result<Decoder> {
    let config = weights.config();
    let attention = Latent::read(&config)?;
    let mlps = GroupedExperts::read(weights.config(), config.size("hidden_size")?)?;
    if config.optional_size("moe_layer_freq")?.is_some_and(|frequency| frequency != 1) {
        return Err(config.error("moe_layer_freq", 1));
    }
    Decoder::read(weights, rope(&config, &attention)?, &|number, layer| {
        let self_attn = attention.read_layer(&layer.scope("self_attn", Group::Attention))?;
        Ok((self_attn, mlps.read_layer(number, layer)?))
    })
}

/// Released files do not say how elements are paired: neighbours turn together.
fn rope(config: &ConfigReader<'_>, attention: &Latent) -> Result<Rope> {
    let style = match config.flag_or("rope_interleave", true)? {
        true => RopeStyle::Interleaved,
        false => RopeStyle::NeoX,
    };
    let rope = rope_config(config, attention.rope_dim(), RotaryPart::Whole, style)?;
    Ok(Rope::new(&rope)?)
}
