//! Linear on the GPU: products of few rows are cut into parts for many blocks of threads, those of more
//! rows into tiles, and very many go through the product of the experts, with one expert that has
//! every row.
//!
//! Bytes: `N * K` of the weights once (FP8: and `N * K / 4096` of scales), `T * (K + N)` of rows. Until
//! `T` is some hundred that over the bandwidth is the floor, then `2 T N K` over the peak of the matrix
//! units. Up to 64 rows a row's bits do not depend on the others; more rows are summed in another order.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use std::marker::PhantomData;

use artel_device::cuda::{
    Arguments, Context, DeviceBuffer, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels,
    Stream,
};
use artel_moe::grouped_gemm::prefill::cuda::{Blocks, HalfElement};
use artel_moe::grouped_gemm::prefill::warpgroup::BLOCK_ROWS;
use artel_moe::quant::BLOCK;
use artel_moe::weights::StackLayout;

use super::many::cuda::Many;
pub use super::parts::cuda::PartSums;
pub use super::product::FEW_ROWS_MAX;
use super::product::cuda::Product;
use super::product::{ProductTile, SUMS_MAX};
use crate::LayersError;

#[cutile::module]
mod kernels {
    use artel_moe::cuda::device_code::*;
    use cutile::core::*;

    /// `rows[t, n] += bias[n]`.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn add_bias<A: ElementType, const N: i32, const C: i32, const PDL: i32>(
        rows: *mut A,
        bias: *mut f32,
    ) {
        // SAFETY: launched as its specification says, after whatever wrote the rows.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let row: Tile<i32, { [1] }> = count_from::<1>(get_tile_block_id().0);
        let column: Tile<i32, { [C] }> = count_from::<C>(get_tile_block_id().1 * C);
        let is_column: Tile<bool, { [C] }> = below(column, N);
        let always: Tile<bool, { [1] }> = constant(true, const_shape![1]);
        let mask: Tile<bool, { [1, C] }> = block_mask(always, is_column);
        let offsets: Tile<i64, { [1, C] }> = block_offsets(row, N, column);
        // SAFETY: the bias has `N` elements, which nobody writes.
        let bias: Tile<f32, { [C] }> =
            unsafe { gather(bias, column, is_column, 0.0f32, new_token_unordered()) };
        // SAFETY: there is a row for each block.
        let values: Tile<A, { [1, C] }> = unsafe { gather_block(rows, offsets, mask, ready) };
        let values: Tile<f32, { [1, C] }> = convert_tile(values);
        let sum: Tile<f32, { [1, C] }> = values + bias.reshape(const_shape![1, C]);
        let sum: Tile<A, { [1, C] }> = convert_tile(sum);
        // SAFETY: as above.
        unsafe { scatter_block(rows, offsets, mask, sum, ready) };
    }
}

/// Rows that the tiles of many rows share; buffers of rows are padded to it.
pub const ROWS_MULTIPLE: usize = 128;

/// Columns of a block that adds a bias.
const BIAS_COLUMNS: usize = 1024;

/// How the weight of a linear map is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinearNumbers {
    /// As the rows.
    Plain,
    /// FP8 with a scale for 128 x 128, multiplied by rows with a scale for 128 columns.
    Fp8Block128,
}

impl LinearNumbers {
    /// Bytes of a number.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Plain => 2,
            Self::Fp8Block128 => 1,
        }
    }
}

/// One linear map as kernels know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearShape {
    /// `N`, a multiple of 8.
    pub outputs: usize,
    /// `K`, a multiple of 16.
    pub inputs: usize,
    /// Format of the weight `[N, K]`.
    pub numbers: LinearNumbers,
    /// Whether a bias `[N]` is added.
    pub bias: bool,
}

impl LinearShape {
    fn check(&self) -> Result<(), LayersError> {
        let Self { outputs, inputs, .. } = *self;
        if outputs == 0 || !outputs.is_multiple_of(8) {
            return Err(LayersError::config("outputs", outputs, "a multiple of 8 on a GPU"));
        }
        if inputs == 0 || !inputs.is_multiple_of(16) {
            return Err(LayersError::config("inputs", inputs, "a multiple of 16 on a GPU"));
        }
        if outputs.saturating_mul(inputs) > i32::MAX as usize {
            let allowed = "at most 2^31 - 1 numbers a matrix on a GPU";
            return Err(LayersError::config("weight", format!("{outputs} x {inputs}"), allowed));
        }
        Ok(())
    }

    /// Checks the lengths of `tokens` rows and of the weight.
    pub(super) fn check_operands<A: HalfElement>(
        &self,
        tokens: usize,
        (rows, weight): (LinearRows<'_, A>, LinearWeight<'_>),
    ) -> Result<(), LayersError> {
        let Self { outputs, inputs, numbers, .. } = *self;
        let bytes = outputs * inputs * numbers.bytes();
        weight.numbers.expect_len("the weight of a linear map (bytes)", bytes)?;
        match rows {
            LinearRows::Plain(x) => x.expect_len("the input of a linear map", tokens * inputs)?,
            LinearRows::Fp8 { codes, scales } => {
                let groups = inputs.div_ceil(BLOCK);
                codes.expect_len("codes of a linear map", tokens * inputs)?;
                scales.expect_len("scales of a linear map", groups * padded(tokens))?;
                let blocks = outputs.div_ceil(BLOCK) * groups;
                weight.scales.expect_len("scales of the weight of a linear map", blocks)?;
            }
        }
        Ok(())
    }

    fn scale_block(&self) -> Option<[usize; 2]> {
        (self.numbers == LinearNumbers::Fp8Block128).then_some([BLOCK, BLOCK])
    }

    /// The weight as a stack of one expert.
    pub(super) fn layout(&self) -> StackLayout {
        StackLayout {
            experts: 1,
            rows: self.outputs,
            columns: self.inputs,
            number_bytes: self.numbers.bytes(),
            scale_block: self.scale_block(),
            words: None,
        }
    }
}

/// What all linear maps of a model share: room for the sums of parts, and the assignment of all rows to
/// one expert, for up to so many tokens.
#[derive(Debug)]
pub struct LinearWorkspace {
    sums: DeviceBuffer<f32>,
    /// Zeros, one for each block of the smallest size.
    experts: DeviceBuffer<i32>,
    /// `128 * n` at `4 n`: pointers are aligned to four numbers.
    padded: DeviceBuffer<i32>,
    tokens_max: usize,
}

impl LinearWorkspace {
    /// For steps of up to `tokens_max` tokens.
    ///
    /// # Errors
    /// [`LayersError::Cuda`] when memory runs out.
    pub fn new(context: &Context, tokens_max: usize) -> Result<Self, LayersError> {
        let tokens_max = tokens_max.next_multiple_of(ROWS_MULTIPLE);
        let blocks = tokens_max / ROWS_MULTIPLE;
        let padded: Vec<i32> =
            (0..=blocks as i32).flat_map(|block| [block * ROWS_MULTIPLE as i32, 0, 0, 0]).collect();
        Ok(Self {
            sums: DeviceBuffer::new(context, SUMS_MAX)?,
            experts: DeviceBuffer::zeroed(context, tokens_max / BLOCK_ROWS)?,
            padded: DeviceBuffer::from_host(context, &padded)?,
            tokens_max,
        })
    }

    /// What the latest product left in parts of `rows` rows.
    pub fn parts(&self, rows: usize) -> PartSums<'_> {
        PartSums { sums: self.sums.slice(), rows }
    }

    /// Where parts go.
    pub(super) fn sums_mut(&mut self) -> DeviceSliceMut<'_, f32> {
        self.sums.slice_mut()
    }

    fn check(&self, tokens: usize) -> Result<(), LayersError> {
        if tokens > self.tokens_max {
            let allowed = format!("at most {}, as declared for the workspace", self.tokens_max);
            return Err(LayersError::config("tokens of a linear map", tokens, allowed));
        }
        Ok(())
    }

    /// The blocks of `tokens` rows, which all are the one expert's.
    fn blocks(&self, tokens: usize) -> Result<Blocks<'_>, LayersError> {
        let padded = self.padded.slice().range(4 * tokens.div_ceil(ROWS_MULTIPLE), 1)?;
        let expert_ids = self.experts.slice();
        Ok(Blocks { expert_ids, num_tokens_post_padded: padded, pairs: None })
    }
}

/// Rows that outputs, and FP8 inputs, of `tokens` tokens have room for.
pub(super) fn padded(tokens: usize) -> usize {
    tokens.next_multiple_of(ROWS_MULTIPLE)
}

/// Rows that are multiplied.
#[derive(Debug, Clone, Copy)]
pub enum LinearRows<'a, A: HalfElement> {
    /// `[T, K]`; with more than [`Linear::few_tokens`] tokens there is room for
    /// [`Linear::padded`] rows.
    Plain(DeviceSlice<'a, A>),
    /// e4m3 codes `[padded, K]` and scales `[K / 128, padded]` of [`Linear::padded`] rows, of which
    /// `T` are in use.
    Fp8 {
        /// Codes.
        codes: DeviceSlice<'a, u8>,
        /// Scales.
        scales: DeviceSlice<'a, f32>,
    },
}

/// The weight of a linear map.
#[derive(Debug, Clone, Copy)]
pub struct LinearWeight<'a> {
    /// Stored numbers `[N, K]`.
    pub numbers: DeviceSlice<'a, u8>,
    /// `[ceil(N / 128), ceil(K / 128)]`, empty for plain numbers.
    pub scales: DeviceSlice<'a, f32>,
    /// `[N]`, present exactly when the shape says so.
    pub bias: Option<DeviceSlice<'a, f32>>,
}

/// The kernels of one shape.
#[derive(Debug, Clone)]
pub struct Linear<A> {
    shape: LinearShape,
    /// By rows of a tile, fewest first.
    few: Vec<Product<A>>,
    /// Small tiles, for up to so many tokens, and large ones.
    more: Option<(Product<A>, usize, Product<A>)>,
    /// With the tokens from which on it is the fastest.
    many: Option<(usize, Many<A>)>,
    bias: Option<Kernel>,
    element: PhantomData<A>,
}

impl<A: HalfElement> Linear<A> {
    /// Asks for the kernels that serve up to `tokens_max` tokens.
    ///
    /// # Errors
    /// [`LayersError::Config`] for sizes without kernels, [`LayersError::Product`] or
    /// [`LayersError::Cuda`] when a kernel is missing and cannot be made.
    pub fn load(
        kernels: &mut Kernels,
        shape: LinearShape,
        tokens_max: usize,
    ) -> Result<Self, LayersError> {
        shape.check()?;
        let mut few = Vec::new();
        for rows in [8, 16, 32, FEW_ROWS_MAX] {
            if rows == 8 || rows < 2 * tokens_max {
                few.push(Product::load(kernels, shape, ProductTile::few(&shape, rows))?);
            }
        }
        let more = match tokens_max > FEW_ROWS_MAX {
            true => {
                let small = Product::load(kernels, shape, ProductTile::small(&shape))?;
                let large = Product::load(kernels, shape, ProductTile::large(&shape))?;
                Some((small, ProductTile::large_from(&shape) - 1, large))
            }
            false => None,
        };
        let many = Many::load(kernels, &shape, tokens_max)?;
        let bias = match shape.bias && many.is_some() {
            true => Some(kernels.get(&bias_spec(A::NAME, shape.outputs))?),
            false => None,
        };
        Ok(Self { shape, few, more, many, bias, element: PhantomData })
    }

    /// Most tokens whose rows need no padding.
    pub fn few_tokens(&self) -> usize {
        self.many.as_ref().map_or(usize::MAX, |(from, _)| from - 1)
    }

    /// Rows that outputs, and FP8 inputs, of `tokens` tokens have room for.
    pub fn padded(tokens: usize) -> usize {
        padded(tokens)
    }

    /// Maps `tokens` rows to the first rows of `out` `[padded, N]`; what stands in the others then has
    /// no meaning.
    ///
    /// # Errors
    /// [`LayersError::Config`] for more tokens than the workspace was made for, [`LayersError::Product`]
    /// or [`LayersError::Cuda`] when a slice is too short or a launch fails.
    ///
    /// # Panics
    /// When rows, weight or bias are of another form than was loaded.
    pub fn launch(
        &self,
        stream: &Stream,
        workspace: &mut LinearWorkspace,
        tokens: usize,
        (rows, weight): (LinearRows<'_, A>, LinearWeight<'_>),
        out: &mut DeviceSliceMut<'_, A>,
    ) -> Result<(), LayersError> {
        workspace.check(tokens)?;
        if tokens == 0 {
            return Ok(());
        }
        out.expect_len("the output of a linear map", padded(tokens) * self.shape.outputs)?;
        match &self.many {
            Some((from, many)) if tokens >= *from => {
                let blocks = workspace.blocks(tokens)?;
                let mut rows_out = out.range_mut(0, padded(tokens) * self.shape.outputs)?;
                many.launch(stream, blocks, (rows, weight), &mut rows_out)?;
                self.launch_bias(stream, tokens, weight.bias, out)
            }
            _ => {
                let sums = &mut workspace.sums.slice_mut();
                self.product(tokens).launch(stream, tokens, (rows, weight), sums, out)
            }
        }
    }

    /// Parts in which [`launch_parts`](Self::launch_parts) leaves up to [`FEW_ROWS_MAX`] rows, where they
    /// are more than one and need no bias.
    pub fn parts(&self) -> Option<usize> {
        let parts = self.few.first().map_or(1, Product::parts);
        (parts > 1 && !self.shape.bias).then_some(parts)
    }

    /// As [`launch`](Self::launch) for a map with [`parts`](Self::parts) and few tokens, without adding
    /// them: they lie in the [workspace](LinearWorkspace::parts) until its next product. Returns the rows
    /// of each part.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// When there is one part, a bias, or more than [`FEW_ROWS_MAX`] tokens; when rows or weight are of
    /// another form than was loaded.
    pub fn launch_parts(
        &self,
        stream: &Stream,
        workspace: &mut LinearWorkspace,
        tokens: usize,
        operands: (LinearRows<'_, A>, LinearWeight<'_>),
    ) -> Result<usize, LayersError> {
        let few = tokens <= FEW_ROWS_MAX && self.parts().is_some();
        assert!(few, "this is a bug: {tokens} rows of this map are not left in parts");
        workspace.check(tokens)?;
        let product = self.product(tokens);
        product.launch_parts(stream, tokens, operands, &mut workspace.sums.slice_mut())?;
        Ok(product.part_rows(tokens))
    }

    /// The product for fewer tokens than the many.
    fn product(&self, tokens: usize) -> &Product<A> {
        match &self.more {
            Some((small, small_max, large)) if tokens > FEW_ROWS_MAX => {
                if tokens <= *small_max {
                    small
                } else {
                    large
                }
            }
            _ => {
                let fits = self.few.iter().find(|product| product.tile_rows() >= tokens);
                fits.or(self.few.last()).expect("this is a bug: a linear map without kernels")
            }
        }
    }

    fn launch_bias(
        &self,
        stream: &Stream,
        tokens: usize,
        bias: Option<DeviceSlice<'_, f32>>,
        out: &mut DeviceSliceMut<'_, A>,
    ) -> Result<(), LayersError> {
        let (kernel, bias) = match (&self.bias, bias) {
            (None, None) => return Ok(()),
            (Some(kernel), Some(bias)) => (kernel, bias),
            _ => panic!("this is a bug: a bias and its use must come together"),
        };
        bias.expect_len("the bias of a linear map", self.shape.outputs)?;
        let grid = [tokens, self.shape.outputs.div_ceil(BIAS_COLUMNS), 1];
        let arguments = Arguments::new().slice_mut(out).slice(bias);
        // SAFETY: the arguments are the kernel's, with the lengths checked here and by the caller.
        unsafe { kernel.launch(stream, grid, arguments) }?;
        Ok(())
    }
}

fn bias_spec(element: &str, outputs: usize) -> KernelSpec {
    KernelSpec::new("linear/add_bias", kernels::__module_ast_self, "kernels", "add_bias")
        .element(element)
        .generics([outputs as i32, BIAS_COLUMNS as i32])
        .pointers(["rows", "bias"])
        .warps(4)
        .programmatic()
}
