//! Packing on the CPU: one pass that checks the ids, one without branches that packs.

use super::{ExpertId, PackWeight, check};
use crate::MoeError;

/// Packs every pair. Nothing is written when an id does not fit.
///
/// # Errors
/// [`MoeError::Shape`] when the slices differ in length, [`MoeError::Element`] for an id that does
/// not fit.
pub fn pack<I: ExpertId, W: PackWeight>(
    ids: &[I],
    weights: &[W],
    packed: &mut [i32],
) -> Result<(), MoeError> {
    check(ids, weights.len(), packed.len())?;
    for ((id, weight), packed) in ids.iter().zip(weights).zip(packed) {
        let id = id.packable().unwrap_or(-1);
        *packed = i32::from(id) << 16 | i32::from(weight.bf16_bits());
    }
    Ok(())
}
