//! GLM-4.5 and 4.6: routing and shared experts of DeepSeek-V3 on grouped-query attention of which
//! a part of each head turns. Source: "GLM-4.5", 2025.

use super::grouped_experts::GroupedExperts;
use crate::Result;
use crate::config::RotaryPart;
use crate::decoder::{Decoder, GroupedQuery, QkNorm};
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
    let mlps = GroupedExperts::read(weights.config(), attention.hidden)?;
    Decoder::read(weights, attention.rope(&config, RotaryPart::Declared)?, &|number, layer| {
        let self_attn = layer.scope("self_attn", Group::Attention);
        let self_attn = attention.read_layer(&self_attn, attention.full_attention()?)?;
        Ok((self_attn, mlps.read_layer(number, layer)?))
    })
}
