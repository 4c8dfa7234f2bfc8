//! Linear: rows times the transposed weight, plus a bias.
//!
//! ```text
//! out[t, n] = Σ_k rows[t, k] * weight[n, k] + bias[n]        weight [N, K] in its stored format
//! ```
//! Example: weight = [[1, 2], [0, 1]], bias = [10, 0], row [3, 4]: out = [3 + 8 + 10, 4].

#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "cuda")]
pub(crate) mod parts;
#[cfg(feature = "cuda")]
mod many;
#[cfg(feature = "cuda")]
mod product;
pub mod reference;
#[cfg(feature = "cuda")]
mod resident;
#[cfg(feature = "cuda")]
pub mod single;
#[cfg(test)]
mod tests;

use artel_moe::grouped_gemm::dense;
use artel_moe::quant::AnyMatrix;

use crate::{LayersError, Workspace};

/// One linear map.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: AnyMatrix,
    bias: Option<Vec<f32>>,
    /// Under which a workspace records its inputs.
    name: Option<Box<str>>,
}

impl Linear {
    /// A map without bias.
    pub fn new(weight: AnyMatrix) -> Self {
        Self { weight, bias: None, name: None }
    }

    /// A map with a bias `[N]`.
    ///
    /// # Errors
    /// [`LayersError::Shape`] when the bias does not hold one number per row of the weight.
    pub fn with_bias(weight: AnyMatrix, bias: Vec<f32>) -> Result<Self, LayersError> {
        LayersError::check_shape("the bias of a linear layer", weight.rows(), bias.len())?;
        Ok(Self { weight, bias: Some(bias), name: None })
    }

    /// The same with a name, under which a workspace can record its inputs
    /// ([`Workspace::record_inputs`]).
    pub fn named(self, name: &str) -> Self {
        Self { name: Some(name.into()), ..self }
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

    /// The bias `[N]`, if there is one.
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// Maps `rows` `[T, K]` to `out` `[T, N]`. The input is rounded to what the weight's format is
    /// multiplied with (bfloat16 for bfloat16 weights); sums are float32.
    ///
    /// # Errors
    /// [`LayersError::Product`] when the two are not `T` whole rows.
    pub fn forward(
        &self,
        workspace: &mut Workspace,
        rows: &[f32],
        out: &mut [f32],
    ) -> Result<(), LayersError> {
        if let (Some(inputs), Some(name)) = (&mut workspace.inputs, self.name.as_deref()) {
            let squares = inputs.entry(name.to_owned()).or_default();
            rows.chunks_exact(self.inputs()).for_each(|row| squares.add_row(row));
        }
        dense(workspace.features(), rows, &self.weight, out, &mut workspace.gemm)?;
        if let Some(bias) = &self.bias {
            for row in out.chunks_exact_mut(bias.len().max(1)) {
                row.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
            }
        }
        Ok(())
    }
}
