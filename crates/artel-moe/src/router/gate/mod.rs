//! The gate: the linear layer in front of the router.

#[cfg(feature = "cuda")]
pub mod cuda;

use crate::MoeError;
use crate::quant::AnyMatrix;

/// The linear layer in front of the router: hidden states to one logit per expert.
#[derive(Debug, Clone)]
pub struct Gate {
    weight: AnyMatrix,
    bias: Option<Vec<f32>>,
}

impl Gate {
    /// `weight` `[E, H]`, `bias` `[E]`.
    ///
    /// # Errors
    /// [`MoeError::Shape`] when they differ in `E`.
    pub fn new(weight: AnyMatrix, bias: Option<Vec<f32>>) -> Result<Self, MoeError> {
        if let Some(bias) = &bias {
            MoeError::check_shape("router bias", weight.rows(), bias.len())?;
        }
        Ok(Self { weight, bias })
    }

    /// `[E, H]`.
    pub fn weight(&self) -> &AnyMatrix {
        &self.weight
    }

    /// `[E]`.
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }
}
