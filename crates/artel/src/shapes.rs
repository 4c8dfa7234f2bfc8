//! Layers that GPU kernels are compiled and tuned for: by name, or as a checkpoint has them.

use std::fmt;
use std::str::FromStr;

use anyhow::Context;
use artel_moe::activation::Activation;
use artel_moe::config::{MoeConfig, MoeShape, Parallelism};
use artel_moe::layer::AnyMoeLayer;
use artel_moe::quant::Format;
use artel_moe::router::{RouterConfig, RoutingMethod};

use crate::bench::layer::{LayerShape, MINIMAX_M2_5, QWEN3_30B_A3B};

/// What kernel packs that ship with the program are made for.
pub const SHIPPED: [&str; 3] = ["m2.5-tp2-fp8", "qwen3-30b-bf16", "qwen3-30b-fp8"];

/// Models by the name that they have in a shape's name.
const MODELS: [(&str, &LayerShape, RoutingMethod); 2] = [
    ("m2.5", &MINIMAX_M2_5, RoutingMethod::minimax2()),
    ("qwen3-30b", &QWEN3_30B_A3B, RoutingMethod::softmax_renormalize()),
];

/// Number formats by the name that they have in a shape's name.
const FORMATS: [(&str, Format); 11] = [
    ("bf16", Format::Bf16),
    ("f16", Format::F16),
    ("fp8", Format::Fp8Block128),
    ("fp8-tensor", Format::Fp8Tensor),
    ("fp8-channel", Format::Fp8Channel),
    ("int8-w8a8", Format::Int8W8A8),
    ("int8-w8a16", Format::Int8W8A16),
    ("int4", Format::Int4W4A16),
    ("mxfp4", Format::Mxfp4),
    ("mxfp8", Format::Mxfp8),
    ("nvfp4", Format::Nvfp4),
];

/// One layer with experts, on one rank.
#[derive(Debug, Clone)]
pub struct NamedLayer {
    /// Such as `m2.5-tp2-fp8`, or a checkpoint's.
    pub name: String,
    /// Sizes, activation and ranks.
    pub config: MoeConfig,
    /// How its router chooses.
    pub router: RouterConfig,
    /// Number format of its experts.
    pub format: Format,
}

impl FromStr for NamedLayer {
    type Err = anyhow::Error;

    /// `MODEL[-tpN]-FORMAT`.
    fn from_str(name: &str) -> anyhow::Result<Self> {
        let known = MODELS.map(|(model, ..)| model).join(", ");
        let formats = FORMATS.map(|(format, _)| format).join(", ");
        let expected = || {
            format!(
                "{name:?} is no shape; expected MODEL[-tpN]-FORMAT, MODEL one of {known}, FORMAT one of {formats}"
            )
        };
        let found = FORMATS.into_iter().find_map(|(format, known)| {
            Some((name.strip_suffix(format)?.strip_suffix('-')?, known))
        });
        let (rest, format) = found.with_context(expected)?;
        let (model, ranks) = match rest.rsplit_once("-tp") {
            Some((model, ranks)) => (model, ranks.parse().ok().with_context(expected)?),
            None => (rest, 1),
        };
        let found = MODELS.into_iter().find(|(known, ..)| *known == model);
        let (_, sizes, method) = found.with_context(expected)?;
        Ok(Self {
            name: name.to_owned(),
            config: config(sizes, ranks)?,
            router: RouterConfig::new(method, sizes.num_experts, sizes.top_k)?,
            format,
        })
    }
}

impl NamedLayer {
    /// The layers of a model, spread over `ranks` GPUs.
    ///
    /// # Errors
    /// When ranks do not divide the intermediate size.
    pub fn of_model(name: String, layer: &AnyMoeLayer, ranks: usize) -> anyhow::Result<Self> {
        let config = over_ranks(layer.config().clone(), ranks)?;
        let (router, format) = (*layer.router().config(), layer.plan().format().parse()?);
        Ok(Self { name, config, router, format })
    }
}

impl fmt::Display for NamedLayer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.name)
    }
}

fn config(sizes: &LayerShape, ranks: usize) -> anyhow::Result<MoeConfig> {
    let shape = MoeShape {
        hidden_size: sizes.hidden_size,
        intermediate_size: sizes.intermediate_size,
        num_experts: sizes.num_experts,
        top_k: sizes.top_k,
    };
    over_ranks(MoeConfig::new(shape, Activation::Silu)?, ranks)
}

fn over_ranks(config: MoeConfig, ranks: usize) -> anyhow::Result<MoeConfig> {
    Ok(match ranks {
        1 => config,
        size => config.with_parallelism(Parallelism::Tensor { size })?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_have_names() {
        let others = [
            "qwen3-30b-f16",
            "m2.5-tp8-fp8-tensor",
            "qwen3-30b-fp8-channel",
            "m2.5-tp2-int8-w8a16",
        ];
        for name in SHIPPED.into_iter().chain(others) {
            assert_eq!(name.parse::<NamedLayer>().unwrap().to_string(), name);
        }
        let layer: NamedLayer = "m2.5-tp2-fp8".parse().unwrap();
        assert_eq!(layer.config.local_intermediate_size(), 768);
        assert_eq!((layer.config.shape().num_experts, layer.router.top_k()), (256, 8));
        for bad in ["", "m2.5", "m2.5-int3", "gpt-5-bf16", "m2.5-tpx-bf16", "m2.5-tp5-bf16"] {
            assert!(bad.parse::<NamedLayer>().is_err(), "{bad}");
        }
        let error = "m3-bf16".parse::<NamedLayer>().unwrap_err().to_string();
        assert!(error.contains("m2.5, qwen3-30b"), "{error}");
    }
}
