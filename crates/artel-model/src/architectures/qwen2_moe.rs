//! Qwen1.5-MoE and Qwen2-MoE: softmax routing, and a shared expert behind a sigmoid gate. Source:
//! Yang et al., "Qwen2 Technical Report", 2024.

use artel_moe::router::{Router, RouterConfig};

use super::{Windows, is_sparse, softmax_routing};
use crate::Result;
use crate::config::{ConfigReader, RotaryPart, hidden_activation};
use crate::decoder::{
    Decoder, DenseMlp, GATE_UP_DOWN, GroupedQuery, MoeParts, RoutedExperts, SharedExpert,
};
use crate::weights::{Bias, Group, Scope, Weights};

pub(super) fn read(weights: &Weights<'_>) -> Result<Decoder> {
    let config = weights.config();
    let attention = GroupedQuery {
        // Older files do not name it: queries, keys and values always have a bias there.
        input_bias: Bias::when(config.flag_or("qkv_bias", true)?),
        ..GroupedQuery::read(&config)?
    };
    let windows = windows(&config)?;
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
    let (hidden, activation) = (attention.hidden, experts.activation);
    Decoder::read(weights, attention.rope(&config, RotaryPart::Whole)?, &|number, layer| {
        let self_attn = layer.scope("self_attn", Group::Attention);
        let window = windows.of_layer(number);
        let self_attn = attention.read_layer(&self_attn, attention.windowed_attention(window)?)?;
        if !is_sparse(&config, number)? {
            let mlp = layer.scope("mlp", Group::DenseMlp);
            let size = config.size("intermediate_size")?;
            return Ok((self_attn, DenseMlp::read_layer(&mlp, hidden, size, activation)?));
        }
        let moe = layer.scope("mlp", Group::Experts);
        let size = config.size("shared_expert_intermediate_size")?;
        let shared = moe.scope("shared_expert", Group::SharedExperts);
        let parts = MoeParts {
            gate: experts.read_gate(&moe)?,
            router: Router::new(experts.router)?,
            experts: experts.read_numbered(&moe, GATE_UP_DOWN)?,
            shared: Some(SharedExpert {
                mlp: DenseMlp::read(&shared, hidden, size, activation)?,
                gate: Some(read_shared_gate(&moe, hidden)?),
            }),
        };
        Ok((self_attn, experts.block(layer.features(), parts)?))
    })
}

fn read_shared_gate(moe: &Scope<'_, '_>, hidden: usize) -> Result<artel_layers::linear::Linear> {
    moe.counted_as(Group::Router).linear("shared_expert_gate", [1, hidden], Bias::None)
}

/// Where there are windows, every other of the first `max_window_layers` layers has one, unless
/// `layer_types` says otherwise.
fn windows(config: &ConfigReader<'_>) -> Result<Windows> {
    if !config.flag_or("use_sliding_window", false)? {
        return Ok(Windows::None);
    }
    if config.has("layer_types") {
        return Windows::listed(config);
    }
    let window = config.size("sliding_window")?;
    Ok(Windows::EveryOther { window, of_first: config.count_or_zero("max_window_layers")? })
}
