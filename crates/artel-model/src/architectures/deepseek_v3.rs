//! DeepSeek-V3 and R1: latent attention, dense first layers, experts selected with a bias from the
//! best groups, and a shared expert. Source: "DeepSeek-V3 Technical Report", 2024.

use artel_layers::rope::{Rope, RopeStyle};

use super::grouped_sigmoid_router;
use crate::Result;
use crate::config::{ConfigReader, RotaryPart, hidden_activation, rope_config};
use crate::decoder::{
    Decoder, DenseMlp, GATE_UP_DOWN, Latent, MoeParts, RoutedExperts, SharedExpert,
};
use crate::weights::{Group, Weights};

pub(super) fn read(weights: &Weights<'_>) -> Result<Decoder> {
    let config = weights.config();
    let (attention, hidden) = (Latent::read(&config)?, config.size("hidden_size")?);
    let activation = hidden_activation(&config)?;
    let experts = RoutedExperts {
        hidden,
        intermediate: config.size("moe_intermediate_size")?,
        activation,
        router: grouped_sigmoid_router(&config)?,
    };
    let dense_layers = config.count_or_zero("first_k_dense_replace")?;
    if config.optional_size("moe_layer_freq")?.is_some_and(|frequency| frequency != 1) {
        return Err(config.error("moe_layer_freq", 1));
    }
    Decoder::read(weights, rope(&config, &attention)?, &|number, layer| {
        let self_attn = attention.read_layer(&layer.scope("self_attn", Group::Attention))?;
        if number < dense_layers {
            let mlp = layer.scope("mlp", Group::DenseMlp);
            let size = config.size("intermediate_size")?;
            return Ok((self_attn, DenseMlp::read_layer(&mlp, hidden, size, activation)?));
        }
        let moe = layer.scope("mlp", Group::Experts);
        let size = experts.intermediate * config.size("n_shared_experts")?;
        let shared = moe.scope("shared_experts", Group::SharedExperts);
        let parts = MoeParts {
            gate: experts.read_gate(&moe)?,
            router: experts.read_biased_router(&moe.scope("gate", Group::Router))?,
            experts: experts.read_numbered(&moe, GATE_UP_DOWN)?,
            shared: Some(SharedExpert {
                mlp: DenseMlp::read(&shared, hidden, size, activation)?,
                gate: None,
            }),
        };
        Ok((self_attn, experts.block(layer.features(), parts)?))
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
