//! A product of many rows an expert, by whichever kernel the plan chose.

use artel_device::cuda::{DeviceSlice, DeviceSliceMut, Kernels, Stream};

use crate::MoeError;
use crate::grouped_gemm::prefill::cuda::{
    Blocks, Fp8Operand, HalfElement, PrefillFp8Gemm, PrefillGemm,
};
use crate::grouped_gemm::prefill::warpgroup::Assigned;
use crate::grouped_gemm::prefill::warpgroup::cuda::{WarpgroupFp8Gemm, WarpgroupGemm};
use crate::grouped_gemm::prefill::{PrefillForm, PrefillTile};
use crate::plan::gpu::{GemmFamily, GemmKernel, Tile};
use crate::quant::Element;
use crate::weights::StackLayout;

/// A product of 16-bit numbers.
#[derive(Debug, Clone)]
pub(super) enum PlainGemm<A> {
    /// In tiles of a fixed height.
    Tiles(PrefillGemm<A>),
    /// In tiles as high as an expert has rows.
    Warpgroup(WarpgroupGemm<A>),
}

/// A product of FP8 rows and weights.
#[derive(Debug, Clone)]
pub(super) enum ScaledGemm<A> {
    /// In tiles of a fixed height.
    Tiles(PrefillFp8Gemm<A>),
    /// In tiles as high as an expert has rows, or with rows on the long side.
    Warpgroup(WarpgroupFp8Gemm<A>),
}

impl<A: HalfElement> PlainGemm<A> {
    pub(super) fn load(
        kernels: &mut Kernels,
        layout: &StackLayout,
        form: PrefillForm,
        kernel: GemmKernel,
        (block_size, assigned): (usize, Assigned),
    ) -> Result<Self, MoeError> {
        Ok(match kernel.family {
            GemmFamily::Warpgroup => {
                Self::Warpgroup(WarpgroupGemm::load(kernels, layout, form, assigned)?)
            }
            _ => {
                let tile = prefill_tile(kernel.tile);
                Self::Tiles(PrefillGemm::load(kernels, layout, form, tile, block_size)?)
            }
        })
    }

    pub(super) fn launch(
        &self,
        stream: &Stream,
        blocks: Blocks<'_>,
        rows: DeviceSlice<'_, A>,
        weights: DeviceSlice<'_, A>,
        out: &mut DeviceSliceMut<'_, A>,
    ) -> Result<(), MoeError> {
        match self {
            Self::Tiles(product) => product.launch(stream, blocks, rows, weights, out),
            Self::Warpgroup(product) => product.launch(stream, blocks, rows, weights, out),
        }
    }
}

impl<A: Element> ScaledGemm<A> {
    pub(super) fn load(
        kernels: &mut Kernels,
        layout: &StackLayout,
        form: PrefillForm,
        kernel: GemmKernel,
        block_size: usize,
    ) -> Result<Self, MoeError> {
        Ok(match kernel.family {
            GemmFamily::Warpgroup => {
                Self::Warpgroup(WarpgroupFp8Gemm::load(kernels, layout, form)?)
            }
            GemmFamily::Long => {
                Self::Warpgroup(WarpgroupFp8Gemm::load_long(kernels, layout, form)?)
            }
            _ => {
                let tile = prefill_tile(kernel.tile);
                Self::Tiles(PrefillFp8Gemm::load(kernels, layout, form, tile, block_size)?)
            }
        })
    }

    pub(super) fn launch(
        &self,
        stream: &Stream,
        blocks: Blocks<'_>,
        rows: Fp8Operand<'_>,
        weights: Fp8Operand<'_>,
        out: &mut DeviceSliceMut<'_, A>,
    ) -> Result<(), MoeError> {
        match self {
            Self::Tiles(product) => product.launch(stream, blocks, rows, weights, out),
            Self::Warpgroup(product) => product.launch(stream, blocks, rows, weights, out),
        }
    }
}

fn prefill_tile(tile: Tile) -> PrefillTile {
    let Tile { rows, columns, depth, warps, occupancy } = tile;
    PrefillTile { rows, columns, depth, warps, occupancy }
}
