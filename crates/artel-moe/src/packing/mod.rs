//! Packing: an expert id and its weight in one 32-bit number, so that one load brings both.
//!
//! Bits 31..16 hold the id, bits 15..0 the weight as bfloat16 (rounded to nearest, ties to even).
//! An id of -1, "no expert", becomes 0xffff. The weight is kept to its own half: a negative one
//! does not disturb the id. The layout is that of FlashInfer's routed kernels and of vLLM's
//! `trtllm_moe_pack_topk_ids_weights` (pull requests #37695 and #42527).
//!
//! ```
//! use artel_moe::packing::{cpu, unpack};
//! let mut packed = [0; 3];
//! cpu::pack(&[5, 0, -1], &[0.5f32, -1.0, 0.0], &mut packed)?;
//! assert_eq!(packed.map(|pair| pair as u32), [0x0005_3f00, 0x0000_bf80, 0xffff_0000]);
//! let (mut ids, mut weights) = ([0; 3], [0.0; 3]);
//! unpack(&packed, &mut ids, &mut weights)?;
//! assert_eq!((ids, weights), ([5, 0, -1], [0.5, -1.0, 0.0]));
//! # Ok::<(), artel_moe::MoeError>(())
//! ```

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod reference;

#[cfg(test)]
mod tests;

use half::{bf16, f16};

use crate::MoeError;

/// Largest id that packs: the id is read back as a signed 16-bit number.
pub const PACKED_ID_MAX: i32 = i16::MAX as i32;

/// An integer type that holds expert ids.
pub trait ExpertId: Copy + std::fmt::Display {
    /// The id, or `None` when it is outside -1 to [`PACKED_ID_MAX`].
    fn packable(self) -> Option<i16>;
}

macro_rules! expert_id {
    ($($type:ty),*) => {$(
        impl ExpertId for $type {
            // For `i16` itself the conversion cannot fail.
            #[allow(irrefutable_let_patterns, clippy::useless_conversion)]
            fn packable(self) -> Option<i16> {
                let Ok(id) = i16::try_from(self) else { return None };
                (id >= -1).then_some(id)
            }
        }
    )*};
}
expert_id!(i8, i16, i32, i64, isize, u8, u16, u32, u64, usize);

/// A number type that holds weights.
pub trait PackWeight: Copy {
    /// Bit pattern of the nearest bfloat16, ties to even. bfloat16 itself keeps its bits; NaN stays
    /// NaN and becomes quiet.
    fn bf16_bits(self) -> u16;
}

impl PackWeight for f32 {
    fn bf16_bits(self) -> u16 {
        bf16::from_f32(self).to_bits()
    }
}

impl PackWeight for bf16 {
    fn bf16_bits(self) -> u16 {
        self.to_bits()
    }
}

impl PackWeight for f16 {
    fn bf16_bits(self) -> u16 {
        bf16::from_f32(self.to_f32()).to_bits()
    }
}

/// The id of a packed pair.
pub fn packed_id(packed: i32) -> i32 {
    packed >> 16
}

/// The weight of a packed pair.
pub fn packed_weight(packed: i32) -> bf16 {
    bf16::from_bits(packed as u16)
}

/// Takes packed pairs apart. Exact: packing the result again gives the same bits.
///
/// # Errors
/// [`MoeError::Shape`] when the three slices differ in length.
pub fn unpack(packed: &[i32], ids: &mut [i32], weights: &mut [f32]) -> Result<(), MoeError> {
    MoeError::check_shape("unpacked ids", packed.len(), ids.len())?;
    MoeError::check_shape("unpacked weights", packed.len(), weights.len())?;
    for ((&packed, id), weight) in packed.iter().zip(ids).zip(weights) {
        *id = packed_id(packed);
        *weight = packed_weight(packed).to_f32();
    }
    Ok(())
}

/// Checks lengths, and that every id survives packing.
fn check<I: ExpertId>(ids: &[I], weights: usize, packed: usize) -> Result<(), MoeError> {
    MoeError::check_shape("weights to pack", ids.len(), weights)?;
    MoeError::check_shape("packed pairs", ids.len(), packed)?;
    match ids.iter().position(|id| id.packable().is_none()) {
        None => Ok(()),
        Some(position) => {
            let allowed = format!("-1 to {PACKED_ID_MAX} to fit 16 bits");
            Err(MoeError::element("topk_ids", position, ids[position], allowed))
        }
    }
}
