//! GLM-4.5 and 4.6: routing and shared experts of DeepSeek-V3 on grouped-query attention of which
//! a part of each head turns. Source: "GLM-4.5", 2025.

use super::grouped_sigmoid_router;
use crate::Result;
use crate::config::{RotaryPart, hidden_activation};
use crate::decoder::{
    Decoder, DenseMlp, GATE_UP_DOWN, GroupedQuery, MoeParts, QkNorm, RoutedExperts, SharedExpert,
};
use crate::weights::{Bias, Group, Weights};

pub(super) fn read(weights: &Weights<'_>) -> Result<Decoder> {
    let config = weights.config();
    let attention = GroupedQuery {
        input_bias: Bias::when(config.flag_or("attention_bias", false)?),
        qk_norm: match config.flag_or("use_qk_norm", false)? {
            true => QkNorm::PerHead,
            false => QkNorm::None,
        },
        ..GroupedQuery::read(&config)?
    };
    let (hidden, activation) = (attention.hidden, hidden_activation(&config)?);
    let experts = RoutedExperts {
        hidden,
        intermediate: config.size("moe_intermediate_size")?,
        activation,
        router: grouped_sigmoid_router(&config)?,
    };
    let dense_layers = config.count_or_zero("first_k_dense_replace")?;
    Decoder::read(weights, attention.rope(&config, RotaryPart::Declared)?, &|number, layer| {
        let self_attn = layer.scope("self_attn", Group::Attention);
        let self_attn = attention.read_layer(&self_attn, attention.full_attention()?)?;
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
