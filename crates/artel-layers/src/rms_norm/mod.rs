//! RMS norm: each row is divided by the root of its mean square and multiplied by a weight.
//!
//! ```text
//! out[t, i] = weight[i] * hidden[t, i] / sqrt(mean_j(hidden[t, j]^2) + epsilon)
//! ```
//! Example: weight = [1, 1], epsilon = 0, row [3, 4]: mean square 12.5, so out = [0.8485, 1.1314].
//!
//! The width of the weight says what a row is. Over the hidden states a row is a token; over
//! queries `[T, heads * D]` with a weight of `D` a row is one head of one token, so the same call
//! serves Qwen3's per-head norm and MiniMax-M2's norm over all heads.
//! Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.

#[cfg(feature = "cuda")]
pub(crate) mod code;
#[cfg(feature = "cuda")]
mod codes;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "cuda")]
pub mod projection;
pub mod reference;
#[cfg(feature = "cuda")]
mod row;
#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::LayersError;

/// Norm rows side by side within wider rows, such as the heads of the queries of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NormColumns {
    /// Elements of a row that one token takes.
    pub row_width: usize,
    /// First column of the first norm row.
    pub first: usize,
    /// Norm rows of a token.
    pub heads: usize,
    /// Elements of a norm row.
    pub width: usize,
}

/// One RMS norm with its weight.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    weight: Vec<f32>,
    epsilon: f32,
}

impl RmsNorm {
    /// A norm over rows of `weight.len()` elements.
    ///
    /// # Errors
    /// [`LayersError::Config`] for an empty weight or an epsilon that is negative or not finite.
    pub fn new(weight: Vec<f32>, epsilon: f32) -> Result<Self, LayersError> {
        if weight.is_empty() {
            return Err(LayersError::config("width of an RMS norm", 0, "at least 1"));
        }
        if !(epsilon.is_finite() && epsilon >= 0.0) {
            return Err(LayersError::config("rms_norm_eps", epsilon, "finite and not negative"));
        }
        Ok(Self { weight, epsilon })
    }

    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.weight.len()
    }

    /// The weight of each element.
    pub fn weight(&self) -> &[f32] {
        &self.weight
    }

    /// What is added to the mean square.
    pub fn epsilon(&self) -> f32 {
        self.epsilon
    }

    /// Normalises each row of `rows` into the same row of `out`.
    ///
    /// # Errors
    /// [`LayersError::Shape`] when `rows` is no whole number of rows or `out` differs in size.
    pub fn forward(&self, rows: &[f32], out: &mut [f32]) -> Result<(), LayersError> {
        LayersError::check_rows("the input of an RMS norm", self.width(), rows.len())?;
        LayersError::check_shape("the output of an RMS norm", rows.len(), out.len())?;
        cpu::forward(self, rows, out);
        Ok(())
    }

    /// The residual step of a pre-norm decoder: `hidden += delta`, `out = norm(hidden)`.
    ///
    /// # Errors
    /// [`LayersError::Shape`] when the three differ in size or are no whole number of rows.
    pub fn add_and_forward(
        &self,
        delta: &[f32],
        hidden: &mut [f32],
        out: &mut [f32],
    ) -> Result<(), LayersError> {
        LayersError::check_rows("the residual of an RMS norm", self.width(), hidden.len())?;
        LayersError::check_shape("what is added to the residual", hidden.len(), delta.len())?;
        LayersError::check_shape("the output of an RMS norm", hidden.len(), out.len())?;
        cpu::add_and_forward(self, delta, hidden, out);
        Ok(())
    }

    /// Normalises in place what stands in `columns` of rows of `row_width` elements; the range may
    /// hold several norm rows side by side (the heads of a token). The rest is left alone.
    ///
    /// # Errors
    /// [`LayersError::Shape`] when `rows` is no whole number of rows, and
    /// [`LayersError::Config`] when `columns` leaves the row or is no whole number of norm rows.
    pub fn forward_columns(
        &self,
        rows: &mut [f32],
        row_width: usize,
        columns: Range<usize>,
    ) -> Result<(), LayersError> {
        let whole = columns.start <= columns.end
            && columns.end <= row_width
            && columns.len().is_multiple_of(self.width());
        if !whole {
            let allowed = format!("within 0..{row_width}, a multiple of {} wide", self.width());
            return Err(LayersError::config(
                "the columns of an RMS norm",
                format!("{columns:?}"),
                allowed,
            ));
        }
        LayersError::check_rows("the input of an RMS norm", row_width, rows.len())?;
        cpu::forward_columns(self, rows, row_width, columns);
        Ok(())
    }

    /// Normalises each row in place.
    ///
    /// # Errors
    /// [`LayersError::Shape`] when `rows` is no whole number of rows.
    pub fn forward_in_place(&self, rows: &mut [f32]) -> Result<(), LayersError> {
        self.forward_columns(rows, self.width(), 0..self.width())
    }
}
