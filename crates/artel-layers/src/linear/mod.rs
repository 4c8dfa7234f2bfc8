//! Linear: rows times the transposed weight, plus a bias.
//!
//! ```text
//! out[t, n] = Σ_k rows[t, k] * weight[n, k] + bias[n]        weight [N, K] in its stored format
//! ```
//! Example: weight = [[1, 2], [0, 1]], bias = [10, 0], row [3, 4]: out = [3 + 8 + 10, 4].

mod cpu;
pub mod reference;
#[cfg(test)]
mod tests;

use artel_moe::quant::AnyMatrix;

use crate::LayersError;

/// One linear map.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: AnyMatrix,
    bias: Option<Vec<f32>>,
}

impl Linear {
    /// A map without bias.
    pub fn new(weight: AnyMatrix) -> Self {
        Self { weight, bias: None }
    }

    /// A map with a bias `[N]`.
    ///
    /// # Errors
    /// [`LayersError::Shape`] when the bias does not hold one number per row of the weight.
    pub fn with_bias(weight: AnyMatrix, bias: Vec<f32>) -> Result<Self, LayersError> {
        LayersError::check_shape("the bias of a linear layer", weight.rows(), bias.len())?;
        Ok(Self { weight, bias: Some(bias) })
    }

    /// Elements of an input row, `K`.
    pub fn inputs(&self) -> usize {
        self.weight.columns()
    }

    /// Elements of an output row, `N`.
    pub fn outputs(&self) -> usize {
        self.weight.rows()
    }

    /// The weight in its stored format.
    pub fn weight(&self) -> &AnyMatrix {
        &self.weight
    }

    /// Maps `rows` `[T, K]` to `out` `[T, N]`.
    ///
    /// # Errors
    /// [`LayersError::Shape`] when either is not `T` whole rows.
    pub fn forward(&self, rows: &[f32], out: &mut [f32]) -> Result<(), LayersError> {
        let tokens = if self.inputs() > 0 {
            LayersError::check_rows("the input of a linear layer", self.inputs(), rows.len())?
        } else {
            LayersError::check_rows("the output of a linear layer", self.outputs(), out.len())?
        };
        let expected = tokens.saturating_mul(self.outputs());
        LayersError::check_shape("the output of a linear layer", expected, out.len())?;
        cpu::forward(self, tokens, rows, out)
    }
}
