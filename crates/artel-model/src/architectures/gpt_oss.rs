//! gpt-oss (20b, 120b) with plain experts or MXFP4 ones: a sink for each query head, windows on every other
//! layer, biases everywhere, and a clamped activation over interleaved gate and up.

use artel_moe::activation::{Activation, GateLayout};
use artel_moe::router::Gate;
use artel_moe::router::{Router, RouterConfig, RoutingMethod};
use artel_moe::weights::ExpertTensors;

use super::Windows;
use crate::Result;
use crate::config::{ConfigReader, RotaryPart};
use crate::decoder::{Decoder, GroupedQuery, MoeParts, RoutedExperts};
use crate::weights::{Group, Scope, Weights};

/// Steepness of the activation in the published model code; released files do not give it.
const PUBLISHED_ALPHA: f64 = 1.702;

pub(super) fn read(weights: &Weights<'_>) -> Result<Decoder> {
    let config = weights.config();
    let attention = GroupedQuery::read(&config)?.with_attention_bias(&config)?;
    let windows = Windows::listed(&config)?;
    let experts = RoutedExperts {
        hidden: attention.hidden,
        intermediate: config.size("intermediate_size")?,
        activation: clamped_swiglu(&config)?,
        router: RouterConfig::new(
            RoutingMethod::top_k_then_softmax(),
            config.size_of_any(&["num_local_experts", "num_experts"])?,
            config.size_of_any(&["num_experts_per_tok", "experts_per_token"])?,
        )?,
    };
    Decoder::read(weights, attention.rope(&config, RotaryPart::Whole)?, &|number, layer| {
        let self_attn = layer.scope("self_attn", Group::Attention);
        let sinks = self_attn.vector("sinks", attention.heads)?;
        let mixing = attention.windowed_attention(windows.of_layer(number))?.with_sinks(sinks)?;
        let moe = layer.scope("mlp", Group::Experts);
        let parts = MoeParts {
            gate: read_gate(&moe, &experts)?,
            router: Router::new(experts.router)?,
            experts: read_experts(&moe.scope("experts", Group::Experts), &experts)?.into(),
            shared: None,
        };
        Ok((attention.read_layer(&self_attn, mixing)?, experts.block(layer.features(), parts)?))
    })
}

fn clamped_swiglu(config: &ConfigReader<'_>) -> Result<Activation> {
    Ok(Activation::SwigluOai {
        alpha: config.optional_number("swiglu_alpha")?.unwrap_or(PUBLISHED_ALPHA) as f32,
        limit: config.positive("swiglu_limit")? as f32,
        layout: GateLayout::Interleaved,
    })
}

fn read_gate(moe: &Scope<'_, '_>, experts: &RoutedExperts) -> Result<Gate> {
    let router = moe.scope("router", Group::Router);
    let weight = router.matrix("weight", [experts.experts(), experts.hidden])?;
    Ok(Gate::new(weight, Some(router.vector("bias", experts.experts())?))?)
}

/// All experts of a layer share a tensor: plain numbers laid out for `x @ W`, `[E, H, 2I]` and
/// `[E, I, H]`, or rows of MXFP4 blocks.
fn read_experts(weights: &Scope<'_, '_>, spec: &RoutedExperts) -> Result<Vec<ExpertTensors>> {
    let (experts, hidden, gate_up) = (spec.experts(), spec.hidden, 2 * spec.intermediate);
    let (w13, w2) = if weights.has("gate_up_proj_blocks") {
        let w13 = weights.mxfp4_matrices("gate_up_proj", [experts, gate_up, hidden])?;
        (w13, weights.mxfp4_matrices("down_proj", [experts, hidden, spec.intermediate])?)
    } else {
        let w13 = weights.transposed_matrices("gate_up_proj", [experts, hidden, gate_up])?;
        (w13, weights.transposed_matrices("down_proj", [experts, spec.intermediate, hidden])?)
    };
    let w13_bias = weights.array("gate_up_proj_bias", &[experts, gate_up])?;
    let w2_bias = weights.array("down_proj_bias", &[experts, hidden])?;
    let matrices = w13.into_iter().zip(w2);
    let biases = w13_bias.chunks_exact(gate_up).zip(w2_bias.chunks_exact(hidden));
    let expert = |((w13, w2), (w13_bias, w2_bias)): ((_, _), (&[f32], &[f32]))| ExpertTensors {
        w13: vec![w13],
        w13_bias: Some(w13_bias.to_vec()),
        w2,
        w2_bias: Some(w2_bias.to_vec()),
    };
    Ok(matrices.zip(biases).map(expert).collect())
}
