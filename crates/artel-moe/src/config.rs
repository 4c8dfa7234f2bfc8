//! Configuration of the layer: constructors validate, so a value that exists is legal.

use crate::MoeError;
use crate::activation::{Activation, Gating};
use crate::eplb::ExpertMap;
pub use crate::router::RouterConfig;

/// Where the router's weight multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RouterWeight {
    /// The expert's output, in the weighted sum.
    #[default]
    OnOutput,
    /// The first product, before its activation: `apply_router_weight_on_input` (Llama 4).
    OnInput,
}

/// How the experts of a layer are spread over ranks. Every rank computes a part of the sum over
/// experts (or over intermediate features), which the caller adds up.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Parallelism {
    /// One rank holds everything.
    #[default]
    Single,
    /// Every rank holds `1 / size` of the intermediate features of every expert.
    Tensor {
        /// Number of ranks.
        size: usize,
    },
    /// Every rank holds the experts that its map gives a local id; the rest is skipped.
    Expert(ExpertMap),
}

/// Sizes of a layer, as a checkpoint's configuration gives them.
#[derive(Debug, Clone, PartialEq)]
pub struct MoeShape {
    /// `H`.
    pub hidden_size: usize,
    /// `I` of one expert, over all ranks.
    pub intermediate_size: usize,
    /// `E`, over all ranks; with placement the number of physical experts.
    pub num_experts: usize,
    /// Slots a token, `K`.
    pub top_k: usize,
}

/// What a layer computes.
#[derive(Debug, Clone, PartialEq)]
pub struct MoeConfig {
    shape: MoeShape,
    activation: Activation,
    biases: bool,
    router_weight: RouterWeight,
    parallelism: Parallelism,
}

impl MoeConfig {
    /// A layer on one rank whose router weights multiply the outputs of its experts, which have no
    /// biases.
    ///
    /// # Errors
    /// [`MoeError::Config`] for a size of zero, sizes whose products overflow, more slots than 32-bit
    /// pair numbers allow, or impossible parameters of the activation.
    pub fn new(shape: MoeShape, activation: Activation) -> Result<Self, MoeError> {
        let sizes = [
            ("hidden_size", shape.hidden_size),
            ("intermediate_size", shape.intermediate_size),
            ("num_experts", shape.num_experts),
            ("top_k", shape.top_k),
        ];
        for (field, value) in sizes {
            if value == 0 || value > SIZE_MAX {
                return Err(MoeError::config(field, value, format!("1 to {SIZE_MAX}")));
            }
        }
        activation.validate()?;
        let router_weight = RouterWeight::OnOutput;
        let parallelism = Parallelism::Single;
        Ok(Self { shape, activation, biases: false, router_weight, parallelism })
    }

    /// The same with biases of the experts, or without. A layer with weights knows it from them.
    pub fn with_biases(self, biases: bool) -> Self {
        Self { biases, ..self }
    }

    /// The same with the router's weight where `router_weight` says.
    pub fn with_router_weight(self, router_weight: RouterWeight) -> Self {
        Self { router_weight, ..self }
    }

    /// The same spread over ranks.
    ///
    /// # Errors
    /// [`MoeError`] when ranks do not divide the intermediate size, or the map is not for `E` experts.
    pub fn with_parallelism(self, parallelism: Parallelism) -> Result<Self, MoeError> {
        match &parallelism {
            Parallelism::Single => {}
            Parallelism::Tensor { size } => {
                let intermediate_size = self.shape.intermediate_size;
                if *size == 0 || !intermediate_size.is_multiple_of(*size) {
                    let allowed = format!("a divisor of intermediate_size, {intermediate_size}");
                    return Err(MoeError::config("tensor parallel size", size, allowed));
                }
            }
            Parallelism::Expert(map) => {
                MoeError::check_shape("expert_map", self.shape.num_experts, map.num_global())?;
            }
        }
        Ok(Self { parallelism, ..self })
    }

    /// Sizes over all ranks.
    pub fn shape(&self) -> &MoeShape {
        &self.shape
    }

    /// The function between the two products.
    pub fn activation(&self) -> Activation {
        self.activation
    }

    /// The same with the biases of the experts.
    pub fn gating(&self) -> Gating {
        Gating { activation: self.activation, biases: self.biases }
    }

    /// Where the router's weight multiplies.
    pub fn router_weight(&self) -> RouterWeight {
        self.router_weight
    }

    /// How experts are spread over ranks.
    pub fn parallelism(&self) -> &Parallelism {
        &self.parallelism
    }

    /// Intermediate features that this rank holds of each of its experts.
    pub fn local_intermediate_size(&self) -> usize {
        match self.parallelism {
            Parallelism::Tensor { size } => self.shape.intermediate_size / size,
            Parallelism::Single | Parallelism::Expert(_) => self.shape.intermediate_size,
        }
    }

    /// Experts that this rank holds.
    pub fn local_experts(&self) -> usize {
        match &self.parallelism {
            Parallelism::Expert(map) => map.num_local(),
            Parallelism::Single | Parallelism::Tensor { .. } => self.shape.num_experts,
        }
    }
}

/// Keeps every product of two sizes far from overflow.
const SIZE_MAX: usize = 1 << 24;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eplb::{EpRank, ExpertPlacement};

    fn shape() -> MoeShape {
        MoeShape { hidden_size: 8, intermediate_size: 6, num_experts: 4, top_k: 2 }
    }

    #[test]
    fn sizes_must_be_there_and_sane() {
        assert!(MoeConfig::new(shape(), Activation::Silu).is_ok());
        for bad in [
            MoeShape { hidden_size: 0, ..shape() },
            MoeShape { intermediate_size: usize::MAX, ..shape() },
            MoeShape { num_experts: 0, ..shape() },
            MoeShape { top_k: 0, ..shape() },
        ] {
            assert!(MoeConfig::new(bad, Activation::Silu).is_err());
        }
        assert!(MoeConfig::new(shape(), Activation::SwigluStep { limit: -1.0 }).is_err());
    }

    #[test]
    fn ranks_share_features_or_experts() {
        let config = || MoeConfig::new(shape(), Activation::Silu).unwrap();
        let tensor = config().with_parallelism(Parallelism::Tensor { size: 3 }).unwrap();
        assert_eq!((tensor.local_intermediate_size(), tensor.local_experts()), (2, 4));
        assert!(config().with_parallelism(Parallelism::Tensor { size: 4 }).is_err());
        assert!(config().with_parallelism(Parallelism::Tensor { size: 0 }).is_err());
        let map = |experts| {
            let rank = EpRank::new(1, 2).unwrap();
            ExpertMap::new(experts, ExpertPlacement::Linear, rank).unwrap()
        };
        let expert = config().with_parallelism(Parallelism::Expert(map(4))).unwrap();
        assert_eq!((expert.local_intermediate_size(), expert.local_experts()), (6, 2));
        assert!(config().with_parallelism(Parallelism::Expert(map(5))).is_err());
    }
}
