//! The MLPs of DeepSeek-V3 and its relatives: dense in the first layers, then routed experts selected
//! from the best groups, and a shared expert beside them.

use artel_moe::router::{RouterConfig, RoutingMethod};

use crate::Result;
use crate::config::{ConfigReader, hidden_activation};
use crate::decoder::{DenseMlp, GATE_UP_DOWN, Mlp, MoeParts, RoutedExperts, SharedExpert};
use crate::weights::{Group, Scope};

/// What `config.json` says about the MLPs of all layers.
pub(super) struct GroupedExperts<'a> {
    config: ConfigReader<'a>,
    experts: RoutedExperts,
    dense_layers: usize,
}

impl<'a> GroupedExperts<'a> {
    /// Reads what all layers share; `hidden` is the size of hidden states.
    pub(super) fn read(config: ConfigReader<'a>, hidden: usize) -> Result<Self> {
        let experts = RoutedExperts {
            hidden,
            intermediate: config.size("moe_intermediate_size")?,
            activation: hidden_activation(&config)?,
            router: grouped_sigmoid_router(&config)?,
        };
        let dense_layers = config.count_or_zero("first_k_dense_replace")?;
        Ok(Self { config, experts, dense_layers })
    }

    /// Reads `mlp` of layer `number`.
    pub(super) fn read_layer(&self, number: usize, layer: &Scope<'_, '_>) -> Result<Mlp> {
        let Self { config, experts, dense_layers } = self;
        let RoutedExperts { hidden, intermediate, activation, .. } = *experts;
        if number < *dense_layers {
            let mlp = layer.scope("mlp", Group::DenseMlp);
            let size = config.size("intermediate_size")?;
            return DenseMlp::read_layer(&mlp, hidden, size, activation);
        }
        let moe = layer.scope("mlp", Group::Experts);
        let size = intermediate * config.size("n_shared_experts")?;
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
        experts.block(layer.features(), parts)
    }
}

/// Sigmoid scores, selected with a bias from the best
/// groups, renormalised if `norm_topk_prob` says so, and scaled.
fn grouped_sigmoid_router(config: &ConfigReader<'_>) -> Result<RouterConfig> {
    let method = match config.flag("norm_topk_prob")? {
        true => RoutingMethod::sigmoid_renormalize(),
        false => RoutingMethod::sigmoid(),
    };
    for (field, expected) in [("scoring_func", "sigmoid"), ("topk_method", "noaux_tc")] {
        if config.has(field) && config.text(field)? != expected {
            return Err(config.error(field, format!("{expected:?}")));
        }
    }
    let method =
        method.with_bias().with_groups(config.size("n_group")?, config.size("topk_group")?);
    let experts = config.size_of_any(&["n_routed_experts", "num_local_experts"])?;
    let router = RouterConfig::new(method, experts, config.size("num_experts_per_tok")?)?;
    Ok(router.with_routed_scaling_factor(config.number("routed_scaling_factor")? as f32)?)
}
