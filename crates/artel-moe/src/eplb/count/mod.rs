//! Count: how many pairs each expert of each layer has, added to what it had.
//!
//! ```text
//! counts[l, e] += number of p < pairs with ids[l, p] = e
//! ```
//! Example: 2 layers of 3 experts, 2 pairs each, ids = [[0, 2], [2, 2]]: counts grow by
//! [[1, 0, 1], [0, 0, 2]]. Ids below 0 or beyond the experts are no expert.

#[cfg(feature = "cuda")]
pub mod cuda;
pub mod reference;

use crate::MoeError;

/// Sizes of a count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CountShape {
    /// Layers.
    pub layers: usize,
    /// Pairs of each layer.
    pub pairs: usize,
    /// From the ids of a layer to those of the next.
    pub stride: usize,
    /// Experts of each layer, `E`.
    pub experts: usize,
}

impl CountShape {
    /// Checks that layers do not overlap and all ids can be numbered with 31 bits.
    ///
    /// # Errors
    /// [`MoeError::Config`].
    pub fn check(&self) -> Result<(), MoeError> {
        let Self { layers, pairs, stride, .. } = *self;
        if pairs > stride {
            let allowed = format!("at most {stride}, the room of a layer");
            return Err(MoeError::config("pairs of a layer", pairs, allowed));
        }
        if layers.saturating_mul(stride) > i32::MAX as usize {
            let found = format!("{layers} x {stride}");
            return Err(MoeError::config("ids of all layers", found, "below 2^31"));
        }
        Ok(())
    }
}
