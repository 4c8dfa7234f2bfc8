//! Loading and launching.

use artel_device::cuda::{Architecture, DeviceSliceMut, Kernels, Stream};
use artel_moe::grouped_gemm::prefill::cuda::{
    Blocks, Fp8Operand, HalfElement, PrefillFp8Gemm, PrefillGemm,
};
use artel_moe::grouped_gemm::prefill::warpgroup::cuda::WarpgroupFp8Gemm;
use artel_moe::grouped_gemm::prefill::{PrefillForm, PrefillTile, warpgroup};

use crate::LayersError;
use crate::linear::cuda::{LinearNumbers, LinearRows, LinearShape, LinearWeight, ROWS_MULTIPLE};
use crate::linear::product::{BLOCKS_WANTED, FEW_ROWS_MAX};

/// The product of many rows of one shape.
#[derive(Debug, Clone)]
pub(in crate::linear) enum Many<A> {
    /// 16-bit numbers, in tiles.
    Plain(PrefillGemm<A>),
    /// FP8 in tiles.
    Tiles(PrefillFp8Gemm<A>),
    /// FP8 on Hopper, rows on the long side of the matrix instructions.
    Long(WarpgroupFp8Gemm<A>),
}

impl<A: HalfElement> Many<A> {
    /// Asks for it, with the tokens from which on it is the fastest; `None` where steps are smaller.
    pub(in crate::linear) fn load(
        kernels: &mut Kernels,
        shape: &LinearShape,
        tokens_max: usize,
    ) -> Result<Option<(usize, Self)>, LayersError> {
        let is_long = is_long(kernels.architecture(), shape);
        let from = many_from(shape, is_long)?;
        if tokens_max < from {
            return Ok(None);
        }
        let (layout, form) = (shape.layout(), PrefillForm::Sums);
        let tile = PrefillTile::fastest(&layout, form, usize::MAX)?;
        let many = match shape.numbers {
            LinearNumbers::Plain => {
                Self::Plain(PrefillGemm::load(kernels, &layout, form, tile, ROWS_MULTIPLE)?)
            }
            LinearNumbers::Fp8Block128 if is_long => {
                Self::Long(WarpgroupFp8Gemm::load_long(kernels, &layout, form)?)
            }
            LinearNumbers::Fp8Block128 => {
                Self::Tiles(PrefillFp8Gemm::load(kernels, &layout, form, tile, ROWS_MULTIPLE)?)
            }
        };
        Ok(Some((from, many)))
    }

    /// Maps all rows of `blocks` to `out`, which has as many.
    ///
    /// # Panics
    /// When rows are of another form than was loaded.
    pub(in crate::linear) fn launch(
        &self,
        stream: &Stream,
        blocks: Blocks<'_>,
        (rows, weight): (LinearRows<'_, A>, LinearWeight<'_>),
        out: &mut DeviceSliceMut<'_, A>,
    ) -> Result<(), LayersError> {
        let LinearWeight { numbers, scales, .. } = weight;
        if let (Self::Plain(product), LinearRows::Plain(x)) = (self, rows) {
            return Ok(product.launch(stream, blocks, x, numbers.cast(), out)?);
        }
        let LinearRows::Fp8 { codes, scales: row_scales } = rows else {
            panic!("this is a bug: rows of another linear map");
        };
        let rows = Fp8Operand { numbers: codes, scales: row_scales };
        let weights = Fp8Operand { numbers, scales };
        match self {
            Self::Plain(_) => panic!("this is a bug: rows of another linear map"),
            Self::Tiles(product) => product.launch(stream, blocks, rows, weights, out)?,
            Self::Long(product) => product.launch(stream, blocks, rows, weights, out)?,
        }
        Ok(())
    }
}

/// Whether rows may stand on the long side.
fn is_long(architecture: Architecture, shape: &LinearShape) -> bool {
    architecture == Architecture::Sm90
        && warpgroup::check_long(&shape.layout(), PrefillForm::Sums).is_ok()
}

/// Tokens from which on the product of the experts is the fastest: its tiles of 16-bit numbers have to
/// fill the GPU twice, those of FP8 three quarters of it, those with rows on the long side half of it.
fn many_from(shape: &LinearShape, is_long: bool) -> Result<usize, LayersError> {
    let (rows, columns, tiles) = match (shape.numbers, is_long) {
        (_, true) => (warpgroup::LONG_ROWS, warpgroup::LONG_FEATURES, BLOCKS_WANTED / 2),
        (numbers, false) => {
            let tile = PrefillTile::fastest(&shape.layout(), PrefillForm::Sums, usize::MAX)?;
            match numbers {
                LinearNumbers::Plain => (tile.rows, tile.columns, 2 * BLOCKS_WANTED),
                LinearNumbers::Fp8Block128 => (tile.rows, tile.columns, BLOCKS_WANTED * 3 / 4),
            }
        }
    };
    let row_tiles = tiles.div_ceil(shape.outputs.div_ceil(columns));
    Ok(((row_tiles - 1) * rows).max(FEW_ROWS_MAX) + 1)
}
