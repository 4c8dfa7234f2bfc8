//! Activation: the gated non-linearity between the two grouped GEMMs, `[M, 2I]` to `[M, I]`.
//!
//! A row holds a gate `g` and an up projection `u` for each of the `I` intermediate features,
//! either as halves (`g` in columns `0..I`, `u` in `I..2I`) or interleaved (`g0 u0 g1 u1 …`). The
//! ungated functions read rows of `I` columns. Everything is computed in float32 and cast once.
//!
//! Example, silu with `I = 2`: the row `[g0, g1, u0, u1] = [0, 1, 5, 2]` becomes
//! `[silu(0) * 5, silu(1) * 2] = [0, 1.4621172]`.

mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "cuda")]
pub(crate) mod gate {
    pub mod cuda;
}
pub mod reference;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

pub use cpu::activate;

use crate::MoeError;

/// Where gate and up stand in a row of the first grouped GEMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateLayout {
    /// `[g; u]`: gate in the first half.
    Halves,
    /// `g0 u0 g1 u1 …`, as gpt-oss stores them.
    Interleaved,
    /// No gate: the row is the input itself.
    Ungated,
}

/// The function between the two grouped GEMMs; names are those of vLLM's `MoEActivation`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// `silu(g) * u`.
    Silu,
    /// `silu(min(g, limit)) * clamp(u, ±limit)`: DeepSeek-V4's `swiglu_limit`.
    SiluClamp {
        /// Largest gate and largest magnitude of up.
        limit: f32,
    },
    /// `gelu(g) * u` with the error function.
    Gelu,
    /// `gelu(g) * u` with the tanh approximation.
    GeluTanh,
    /// gpt-oss: `g = min(g, limit)`, `u = clamp(u, ±limit)`, `(u + 1) * g * sigmoid(alpha * g)`.
    SwigluOai {
        /// Steepness of the sigmoid, 1.702 in gpt-oss.
        alpha: f32,
        /// Largest gate and largest magnitude of up, 7.0 in gpt-oss.
        limit: f32,
        /// gpt-oss interleaves, MiniMax-M3 stores halves.
        layout: GateLayout,
    },
    /// Step: `min(silu(g), limit) * clamp(u, ±limit)`.
    SwigluStep {
        /// 7.0 in Step.
        limit: f32,
    },
    /// Kimi: `beta * tanh(g / beta) * sigmoid(g) * u`.
    Situ {
        /// Bound of the gate, 1.0 in Kimi.
        beta: f32,
        /// When positive and finite, `u` is first bounded to `linear_beta * tanh(u / linear_beta)`.
        linear_beta: Option<f32>,
    },
    /// `relu(g)^2 * u`.
    Relu2,
    /// `relu(x)^2`.
    Relu2NoMul,
    /// `silu(x)`.
    SiluNoMul,
    /// `gelu(x)` with the error function.
    GeluNoMul,
    /// `gelu(x)` with the tanh approximation.
    GeluTanhNoMul,
}

/// What becomes of the sums of the first product before they are the rows of the second one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gating {
    /// The function of gate and up.
    pub activation: Activation,
    /// Whether experts have biases: the first product's are added before the function, the second
    /// product's to its rows before these are weighted.
    pub biases: bool,
}

impl Gating {
    /// What most experts do: SiLU without biases.
    pub const SILU: Self = Self { activation: Activation::Silu, biases: false };
}

impl Activation {
    /// Every name that parses, with the values of the parameters as published.
    pub const NAMED: [(&'static str, Self); 13] = [
        ("silu", Self::Silu),
        ("silu_clamp", Self::SiluClamp { limit: 10.0 }),
        ("gelu", Self::Gelu),
        ("gelu_tanh", Self::GeluTanh),
        (
            "swigluoai",
            Self::SwigluOai { alpha: 1.702, limit: 7.0, layout: GateLayout::Interleaved },
        ),
        (
            "swigluoai_uninterleave",
            Self::SwigluOai { alpha: 1.702, limit: 7.0, layout: GateLayout::Halves },
        ),
        ("swiglustep", Self::SwigluStep { limit: 7.0 }),
        ("situ", Self::Situ { beta: 1.0, linear_beta: None }),
        ("relu2", Self::Relu2),
        ("relu2_no_mul", Self::Relu2NoMul),
        ("silu_no_mul", Self::SiluNoMul),
        ("gelu_no_mul", Self::GeluNoMul),
        ("gelu_tanh_no_mul", Self::GeluTanhNoMul),
    ];

    /// Other spellings: Hugging Face configurations, and the function's other name.
    pub const ALIASES: [(&'static str, &'static str); 2] =
        [("gelu_pytorch_tanh", "gelu_tanh"), ("swish", "silu")];

    /// Name as people write it.
    pub fn name(self) -> &'static str {
        let same_kind = |other: &Self| {
            std::mem::discriminant(other) == std::mem::discriminant(&self)
                && other.layout() == self.layout()
        };
        let named = Self::NAMED.iter().find(|(_, activation)| same_kind(activation));
        named.expect("this is a bug: an activation without a name").0
    }

    /// Where gate and up stand in a row.
    pub fn layout(self) -> GateLayout {
        match self {
            Self::SwigluOai { layout, .. } => layout,
            Self::Relu2NoMul | Self::SiluNoMul | Self::GeluNoMul | Self::GeluTanhNoMul => {
                GateLayout::Ungated
            }
            _ => GateLayout::Halves,
        }
    }

    /// Columns of an input row for `intermediate_size` columns of output.
    pub fn input_columns(self, intermediate_size: usize) -> usize {
        match self.layout() {
            GateLayout::Ungated => intermediate_size,
            GateLayout::Halves | GateLayout::Interleaved => 2 * intermediate_size,
        }
    }

    /// Checks the parameters.
    ///
    /// # Errors
    /// [`MoeError::Config`] for a parameter that is not finite, a bound that is not positive, or an
    /// ungated layout of the gated `swigluoai`.
    pub fn validate(self) -> Result<(), MoeError> {
        let positive = |field, value: f32| {
            if value.is_finite() && value > 0.0 {
                return Ok(());
            }
            Err(MoeError::config(field, value, "a positive, finite number"))
        };
        match self {
            Self::SiluClamp { limit } | Self::SwigluStep { limit } => {
                positive("activation limit", limit)
            }
            Self::SwigluOai { layout: GateLayout::Ungated, .. } => {
                Err(MoeError::config("swigluoai layout", "ungated", "halves or interleaved"))
            }
            Self::SwigluOai { alpha, limit, .. } => {
                positive("swigluoai alpha", alpha).and(positive("activation limit", limit))
            }
            Self::Situ { beta, linear_beta } => positive("situ beta", beta)
                .and(linear_beta.map_or(Ok(()), |beta| positive("situ linear_beta", beta))),
            _ => Ok(()),
        }
    }
}

impl FromStr for Activation {
    type Err = MoeError;

    fn from_str(name: &str) -> Result<Self, MoeError> {
        let alias = Self::ALIASES.iter().find(|(alias, _)| *alias == name);
        let name = alias.map_or(name, |(_, canonical)| canonical);
        let named = Self::NAMED.iter().find(|(known, _)| *known == name);
        named.map(|(_, activation)| *activation).ok_or_else(|| {
            let names = Self::NAMED.iter().map(|(name, _)| *name);
            let aliases = Self::ALIASES.iter().map(|(alias, _)| *alias);
            let all: Vec<&str> = names.chain(aliases).collect();
            MoeError::config("activation", name, format!("one of {}", all.join(", ")))
        })
    }
}

impl fmt::Display for Activation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
