//! Embedding: the row of each token id, widened to float32.
//!
//! ```text
//! out[t, :] = weight[ids[t], :]        weight [V, H] in its stored format
//! ```
//! Example: weight = [[1, 2], [3, 4]], ids = [1, 1, 0]: out = [3, 4, 3, 4, 1, 2].
//!
//! There is nothing to compute: `forward` is its own definition.

#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(test)]
mod tests;

use artel_moe::quant::AnyMatrix;

use crate::LayersError;

/// The table of a model's token embeddings.
#[derive(Debug, Clone)]
pub struct Embedding {
    weight: AnyMatrix,
}

impl Embedding {
    /// An embedding over `weight`, one row a token of the vocabulary.
    pub fn new(weight: AnyMatrix) -> Self {
        Self { weight }
    }

    /// Elements of a row, `H`.
    pub fn width(&self) -> usize {
        self.weight.columns()
    }

    /// Rows, `V`.
    pub fn vocabulary(&self) -> usize {
        self.weight.rows()
    }

    /// The table, for models whose output layer shares it.
    pub fn weight(&self) -> &AnyMatrix {
        &self.weight
    }

    /// Writes the rows of `ids` `[T]` to `out` `[T, H]`.
    ///
    /// # Errors
    /// [`LayersError::TokenId`] for the first id that has no row (nothing is written then) and
    /// [`LayersError::Shape`] when `out` does not hold `T * H` elements.
    pub fn forward(&self, ids: &[u32], out: &mut [f32]) -> Result<(), LayersError> {
        let expected = ids.len().saturating_mul(self.width());
        LayersError::check_shape("the output of the embedding", expected, out.len())?;
        let vocabulary = self.vocabulary();
        if let Some(position) = ids.iter().position(|&id| id as usize >= vocabulary) {
            return Err(LayersError::TokenId { id: ids[position], position, vocabulary });
        }
        if self.width() > 0 {
            for (&id, row) in ids.iter().zip(out.chunks_exact_mut(self.width())) {
                self.weight.dequantize_row(id as usize, row);
            }
        }
        Ok(())
    }
}
