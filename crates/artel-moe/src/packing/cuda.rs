//! Packing on the GPU: one element-wise launch that overlaps the end of the kernel before it.
//!
//! The CPU refuses an id that does not fit 16 bits. A kernel cannot without a round trip to the
//! host, so here such an id becomes -1, "no expert".

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use std::marker::PhantomData;

use artel_device::cuda::{
    Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};
use bytemuck::Pod;
use half::{bf16, f16};

use super::PackWeight;
use crate::MoeError;
use crate::assignment::cuda::IdForm;
use crate::combine::cuda::PairWeights;

/// Pairs that one block packs.
const BLOCK: usize = 512;

#[cutile::module]
mod kernels {
    use crate::cuda::device_code::*;
    use cutile::core::*;

    /// Weights of a wider type, rounded to bfloat16.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn pack_rounded<W: ElementType, const B: i32, const PDL: i32>(
        ids: *mut i32,
        weights: *mut W,
        packed: *mut i32,
        pairs: i32,
    ) {
        // SAFETY: launched as its specification says, after whatever wrote ids and weights.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let offsets: Tile<i32, { [B] }> = count_from::<B>(get_tile_block_id().0 * B);
        let mask: Tile<bool, { [B] }> = is_pair::<B>(offsets, pairs);
        // SAFETY: the mask keeps inside `pairs`.
        let weight: Tile<W, { [B] }> = unsafe { load::<W, B>(weights, offsets, mask, ready) };
        let weight: Tile<f32, { [B] }> = convert_tile(weight);
        let weight: Tile<bf16, { [B] }> = convert_tile(weight);
        let weight: Tile<i16, { [B] }> = bitcast(weight);
        // SAFETY: as above.
        unsafe { pack_with::<B>(ids, packed, offsets, mask, weight, ready) };
    }

    /// Weights that are bfloat16 already, as bits: a NaN keeps its payload.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn pack_copied<const B: i32, const PDL: i32>(
        ids: *mut i32,
        weights: *mut i16,
        packed: *mut i32,
        pairs: i32,
    ) {
        // SAFETY: launched as its specification says, after whatever wrote ids and weights.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let offsets: Tile<i32, { [B] }> = count_from::<B>(get_tile_block_id().0 * B);
        let mask: Tile<bool, { [B] }> = is_pair::<B>(offsets, pairs);
        // SAFETY: the mask keeps inside `pairs`.
        let weight: Tile<i16, { [B] }> = unsafe { load::<i16, B>(weights, offsets, mask, ready) };
        // SAFETY: as above.
        unsafe { pack_with::<B>(ids, packed, offsets, mask, weight, ready) };
    }

    fn is_pair<const B: i32>(offsets: Tile<i32, { [B] }>, pairs: i32) -> Tile<bool, { [B] }> {
        let end: Tile<i32, { [B] }> = broadcast_scalar(pairs, const_shape![B]);
        lt_tile(offsets, end)
    }

    /// `base[offsets[i]]` where `mask[i]`, anything elsewhere.
    unsafe fn load<W: ElementType, const B: i32>(
        base: *mut W,
        offsets: Tile<i32, { [B] }>,
        mask: Tile<bool, { [B] }>,
        ready: Token,
    ) -> Tile<W, { [B] }> {
        let pointer: PointerTile<*mut W, { [] }> = pointer_to_tile(base);
        let pointer: PointerTile<*mut W, { [1] }> = pointer.reshape(const_shape![1]);
        let pointer: PointerTile<*mut W, { [B] }> = pointer.broadcast(const_shape![B]);
        let pointer: PointerTile<*mut W, { [B] }> = pointer.offset_tile(offsets);
        // SAFETY: the caller vouches for every unmasked offset.
        let (values, _read): (Tile<W, { [B] }>, Token) = unsafe {
            load_ptr_tko(
                pointer,
                ordering::Weak,
                None::<scope::TileBlock>,
                Some(mask),
                None,
                Some(ready),
                Latency::<0>,
            )
        };
        values
    }

    /// Packs the ids with the bits of their weights.
    unsafe fn pack_with<const B: i32>(
        ids: *mut i32,
        packed: *mut i32,
        offsets: Tile<i32, { [B] }>,
        mask: Tile<bool, { [B] }>,
        weight: Tile<i16, { [B] }>,
        ready: Token,
    ) {
        // SAFETY: the caller vouches for every unmasked offset.
        let id: Tile<i32, { [B] }> = unsafe { gather(ids, offsets, mask, 0i32, ready) };
        // An id that 16 bits cannot hold is no expert.
        let none: Tile<i32, { [B] }> = constant(-1i32, const_shape![B]);
        let id_max: Tile<i32, { [B] }> = constant(32767i32, const_shape![B]);
        let id: Tile<i32, { [B] }> = select(gt_tile(id, id_max), none, id);
        let id: Tile<i32, { [B] }> = select(lt_tile(id, none), none, id);
        let weight: Tile<i32, { [B] }> = exti(weight);
        let low_half: Tile<i32, { [B] }> = constant(65535i32, const_shape![B]);
        let sixteen: Tile<i32, { [B] }> = constant(16i32, const_shape![B]);
        let pair: Tile<i32, { [B] }> = (id << sixteen) | (weight & low_half);
        // SAFETY: as above.
        unsafe { scatter(packed, offsets, mask, pair, ready) };
    }
}

/// A number type of weights that the GPU packs.
pub trait PackElement: Pod + PackWeight {
    /// Its name in kernels; none for bfloat16, whose bits are copied.
    const ROUNDED_FROM: Option<&'static str>;
}

impl PackElement for f32 {
    const ROUNDED_FROM: Option<&'static str> = Some("f32");
}

impl PackElement for f16 {
    const ROUNDED_FROM: Option<&'static str> = Some("f16");
}

impl PackElement for bf16 {
    const ROUNDED_FROM: Option<&'static str> = None;
}

/// The packing kernel for weights of one type.
#[derive(Debug, Clone)]
pub struct Pack<W: PackElement> {
    kernel: Kernel,
    element: PhantomData<W>,
}

impl<W: PackElement> Pack<W> {
    /// Asks for the kernel.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when it is missing and cannot be made.
    pub fn load(kernels: &mut Kernels) -> Result<Self, MoeError> {
        let module = kernels::__module_ast_self;
        let spec = |entry| KernelSpec::new("packing/pack", module, "kernels", entry);
        let spec = match W::ROUNDED_FROM {
            Some(element) => spec("pack_rounded").element(element),
            None => spec("pack_copied"),
        };
        let spec = spec.generics([BLOCK as i32]).pointers(["ids", "weights", "packed"]);
        Ok(Self { kernel: kernels.get(&spec.programmatic())?, element: PhantomData })
    }

    /// Packs `ids.len()` pairs.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when a slice is too short or the launch fails.
    pub fn launch(
        &self,
        stream: &Stream,
        ids: DeviceSlice<'_, i32>,
        weights: DeviceSlice<'_, W>,
        packed: &mut DeviceSliceMut<'_, i32>,
    ) -> Result<(), MoeError> {
        let pairs = ids.len();
        weights.expect_len("weights to pack", pairs)?;
        packed.expect_len("packed pairs", pairs)?;
        let arguments = Arguments::new().slice(ids).slice(weights).slice_mut(packed).size(pairs);
        // SAFETY: the arguments are the kernel's, all slices hold `pairs` elements.
        unsafe { self.kernel.launch(stream, [pairs.div_ceil(BLOCK), 1, 1], arguments) }?;
        Ok(())
    }
}

/// Experts of every token with their weights, on the device. An id below 0 or not below `E` is no
/// expert.
#[derive(Debug, Clone, Copy)]
pub enum DeviceRouting<'a> {
    /// As the router writes them.
    Pairs {
        /// `[T, K]`.
        ids: DeviceSlice<'a, i32>,
        /// `[T, K]`.
        weights: DeviceSlice<'a, f32>,
    },
    /// Packed pairs `[T, K]`, as [`Pack`] writes them. The weights are bfloat16.
    Packed(DeviceSlice<'a, i32>),
}

impl<'a> DeviceRouting<'a> {
    /// How ids come.
    pub fn form(&self) -> IdForm {
        match self {
            Self::Pairs { .. } => IdForm::Plain,
            Self::Packed(_) => IdForm::Packed,
        }
    }

    /// `count` pairs from `first` on.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when there are fewer.
    pub fn range(&self, first: usize, count: usize) -> Result<Self, MoeError> {
        Ok(match self {
            Self::Pairs { ids, weights } => {
                Self::Pairs { ids: ids.range(first, count)?, weights: weights.range(first, count)? }
            }
            Self::Packed(pairs) => Self::Packed(pairs.range(first, count)?),
        })
    }

    /// Checks that these are `pairs` pairs for kernels that take ids as `form` says.
    pub(crate) fn check(&self, form: IdForm, pairs: usize) -> Result<(), MoeError> {
        if self.form() != form {
            let (found, allowed) = (format!("{:?}", self.form()), format!("{form:?}"));
            return Err(MoeError::config("ids of experts", found, allowed));
        }
        match self {
            Self::Pairs { ids, weights } => {
                ids.expect_len("ids of experts", pairs)?;
                weights.expect_len("weights of experts", pairs)?;
            }
            Self::Packed(packed) => packed.expect_len("packed experts", pairs)?,
        }
        Ok(())
    }

    /// Ids or packed pairs.
    pub(crate) fn numbers(&self) -> DeviceSlice<'a, i32> {
        match *self {
            Self::Pairs { ids, .. } => ids,
            Self::Packed(packed) => packed,
        }
    }

    /// `arguments` with what ids are read from.
    pub(crate) fn ids(&self, arguments: Arguments) -> Arguments {
        arguments.slice(self.numbers())
    }

    /// `arguments` with what weights are read from.
    pub(crate) fn weights(&self, arguments: Arguments) -> Arguments {
        match *self {
            Self::Pairs { weights, .. } => arguments.slice(weights),
            Self::Packed(packed) => arguments.slice(packed),
        }
    }

    /// The weights as the combine takes them.
    pub(crate) fn pair_weights(&self) -> PairWeights<'a> {
        match *self {
            Self::Pairs { weights, .. } => PairWeights::Routed(weights),
            Self::Packed(packed) => PairWeights::Packed(packed),
        }
    }
}
