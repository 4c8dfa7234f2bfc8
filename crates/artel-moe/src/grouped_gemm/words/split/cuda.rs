//! Rows of activations in two parts of eight bits each, or in bfloat16.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use artel_device::cuda::{
    Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};
use bytemuck::Pod;

use super::super::workspace::{RowForm, SplitBuffers};
use super::super::{WordCode, WordFormat};
use crate::MoeError;
use crate::grouped_gemm::decode::cuda::{AlignedStep, Release};
use crate::quant::{BLOCK, Element};

/// Columns of a product of rows in bfloat16.
pub(in super::super) const HALVES: usize = 64;

/// Which rows become rows of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowSource {
    /// Those of the tokens, each its own.
    Tokens,
    /// Of each position the row of its pair's token, one of so many of a token.
    TokensOfPositions(usize),
    /// Positions, those that pairs have.
    Positions,
    /// Blocks of so many rows, of each as many as there are tokens.
    Blocks(usize),
}

/// What tells rows in use from others.
#[derive(Debug, Clone, Copy)]
pub struct RowsInUse<'a> {
    /// Pairs by position; not read for tokens and blocks of them.
    pub sorted_token_ids: Option<DeviceSlice<'a, i32>>,
    /// Positions in use, one number; as above.
    pub num_tokens_post_padded: Option<DeviceSlice<'a, i32>>,
    /// Tokens, or pairs where rows are positions.
    pub count: usize,
    /// Rows of the product.
    pub rows: usize,
}

impl<'a> RowsInUse<'a> {
    /// The positions of a step of sorted pairs, `top_k` a token: `rows` of them.
    pub fn of_step<A: Element>(step: &AlignedStep<'a, A>, top_k: usize, rows: usize) -> Self {
        Self {
            sorted_token_ids: Some(step.blocks.sorted_token_ids),
            num_tokens_post_padded: Some(step.blocks.num_tokens_post_padded),
            count: step.tokens * top_k,
            rows,
        }
    }
}

/// Splits rows of `columns` numbers.
#[derive(Debug, Clone)]
pub struct SplitRows {
    kernel: Kernel,
    form: RowForm,
}

/// Rows that are to be split.
#[derive(Debug, Clone, Copy)]
pub struct SplitShape {
    /// Type of their numbers: `f32`, `f16` or `bf16`.
    pub element: &'static str,
    /// Numbers of a row.
    pub columns: usize,
    /// Weights that they meet.
    pub format: WordFormat,
    /// What they become.
    pub form: RowForm,
}

impl SplitRows {
    /// Asks for the kernel.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when it is missing and cannot be made.
    pub fn load(
        kernels: &mut Kernels,
        shape: SplitShape,
        source: RowSource,
    ) -> Result<Self, MoeError> {
        let SplitShape { element, columns, format, form } = shape;
        let width = columns.next_power_of_two().max(128);
        let (kind, per_block) = match source {
            RowSource::Tokens => (0, 1),
            RowSource::TokensOfPositions(top_k) => (1, top_k),
            RowSource::Positions => (2, 1),
            RowSource::Blocks(rows) => (3, rows),
        };
        let release = match source {
            RowSource::Tokens | RowSource::TokensOfPositions(_) => Release::AfterWait,
            RowSource::Positions | RowSource::Blocks(_) => Release::BeforeWait,
        };
        let sizes = [width / format.group, format.group, columns, format.depth(), format.copies()];
        let module = word_split::__module_ast_self;
        let spec = match form {
            RowForm::Parts => {
                KernelSpec::new("grouped_gemm/split_rows", module, "word_split", "split_rows")
                    .element(element)
                    .generics([format.kernel(), kind, constant(per_block)])
                    .generics(sizes.map(constant))
                    .generics([constant(format.product_columns())])
                    .generics([i32::from(release == Release::BeforeWait)])
                    .pointers(["scales", "sums"])
            }
            RowForm::Halves => {
                let sizes = [width / BLOCK, columns, format.padded(columns) / HALVES];
                KernelSpec::new("grouped_gemm/prefill_order", module, "word_split", "order_rows")
                    .element(element)
                    .generics([kind, constant(per_block)])
                    .generics(sizes.map(constant))
            }
        };
        let spec = spec
            .pointers(["out", "x", "sorted_token_ids", "num_tokens_post_padded"])
            .warps(if width > 4096 { 8 } else { 4 })
            .programmatic();
        Ok(Self { kernel: kernels.get(&spec)?, form })
    }

    /// Splits `rows.rows` rows of `x` into `out`, those in use.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when the launch fails.
    pub fn launch<A: Pod>(
        &self,
        stream: &Stream,
        x: DeviceSlice<'_, A>,
        rows: RowsInUse<'_>,
        out: &mut SplitBuffers,
    ) -> Result<(), MoeError> {
        let capacity = out.rows;
        out.expect_rows(rows.rows)?;
        let optional = |arguments: Arguments, slice: Option<DeviceSlice<'_, i32>>| match slice {
            Some(slice) => arguments.slice(slice),
            None => arguments.no_slice(),
        };
        let parts: DeviceSliceMut<'_, i8> = out.parts.slice_mut();
        let arguments = Arguments::new().slice_mut(&parts);
        let arguments = match self.form {
            RowForm::Parts => {
                arguments.slice_mut(&out.scales.slice_mut()).slice_mut(&out.sums.slice_mut())
            }
            RowForm::Halves => arguments,
        };
        let arguments = arguments.slice(x);
        let arguments = optional(arguments, rows.sorted_token_ids);
        let arguments = optional(arguments, rows.num_tokens_post_padded);
        let arguments = arguments.size(rows.count).size(capacity);
        // SAFETY: the arguments are the kernel's; the buffers have room for the rows.
        unsafe { self.kernel.launch(stream, [rows.rows, 1, 1], arguments) }?;
        Ok(())
    }
}

impl WordFormat {
    /// Its number in kernels.
    pub(in super::super) fn kernel(&self) -> i32 {
        match self.code {
            WordCode::Int4 => 0,
            // Numbers of eight bits meet activations in the same parts and scales of the same kind.
            WordCode::Mxfp4 | WordCode::Mxfp8 => 1,
            WordCode::Nvfp4 => 2,
            WordCode::Int8 => 3,
            WordCode::Int8Rows => 4,
        }
    }
}

/// A number as kernels take their constants.
pub(in super::super) fn constant(value: usize) -> i32 {
    i32::try_from(value).expect("this is a bug: a size of a layer beyond 31 bits")
}

/// The kernel.
#[cutile::module]
pub mod word_split {
    use crate::cuda::device_code::*;
    use crate::grouped_gemm::decode::parts::cuda::decode_parts::*;
    use crate::grouped_gemm::words::split::places::cuda::split_places::*;
    use cutile::core::*;

    /// The parts of one row: `out` `[columns / KM, XP, capacity, KX]`, its scale, and with `F = 0` the
    /// sums of its groups over 512, `[groups, capacity]`. `Q` groups of `G` columns hold the `K`
    /// columns. `KIND` says what rows are: 0 tokens, 1 tokens of positions of which each has `PER`, 2
    /// positions, 3 tokens in blocks of `PER`. `EARLY = 1`: the next kernel starts at once.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn split_rows<
        A: ElementType,
        const F: i32,
        const KIND: i32,
        const PER: i32,
        const Q: i32,
        const G: i32,
        const K: i32,
        const KM: i32,
        const XP: i32,
        const KX: i32,
        const EARLY: i32,
        const PDL: i32,
    >(
        out: *mut i8,
        scales: *mut f32,
        sums: *mut f32,
        x: *mut A,
        sorted_token_ids: *mut i32,
        num_tokens_post_padded: *mut i32,
        count: i32,
        capacity: i32,
    ) {
        let (row, _, _): (i32, i32, i32) = get_tile_block_id();
        let mut ready: Token = new_token_unordered();
        if EARLY == 1i32 {
            // SAFETY: nothing is written before the wait.
            ready = unsafe { release_then_wait::<PDL>(ready) };
        } else {
            // SAFETY: as above.
            ready = unsafe { wait_then_release::<PDL>(ready) };
        }
        // SAFETY: the caller vouches for an entry for every row in use.
        let from: i32 = unsafe {
            source_row::<KIND, PER>(sorted_token_ids, num_tokens_post_padded, row, count, ready)
        };
        if from >= 0i32 {
            // SAFETY: the row exists.
            let x: Tile<f32, { [Q, G] }> = unsafe { wide_row::<A, Q, G, K>(x, from, ready) };
            let scale: f32 = row_scale::<F, Q, G>(x);
            let one: Tile<i32, { [1] }> = splat::<1>(row);
            let always: Tile<bool, { [1] }> = constant(true, const_shape![1]);
            let kept: Tile<f32, { [1] }> = broadcast_scalar(scale, const_shape![1]);
            // SAFETY: every row has a scale.
            unsafe { scatter(scales, one, always, kept, ready) };
            let inverse: Tile<f32, { [Q, G] }> =
                broadcast_scalar(1.0f32 / scale, const_shape![Q, G]);
            let x: Tile<f32, { [Q, G] }> = x * inverse;
            if F < 3i32 {
                // SAFETY: every column of the row has a place for both parts, every group a sum.
                unsafe {
                    store_floats::<F, Q, G, K, KM, XP, KX>(out, sums, x, row, capacity, ready)
                };
            } else {
                // SAFETY: as above.
                unsafe { store_integers::<F, Q, G, K, KM, XP>(out, x, row, capacity) };
            }
        }
    }

    /// One row in bfloat16: `out` `[PRODUCTS, capacity, 64]`. Of each of `Q` planes of 128 columns, those
    /// that lie in even bytes of words come first; a word has four neighbours. The rest as above.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn order_rows<
        A: ElementType,
        const KIND: i32,
        const PER: i32,
        const Q: i32,
        const K: i32,
        const PRODUCTS: i32,
        const PDL: i32,
    >(
        out: *mut bf16,
        x: *mut A,
        sorted_token_ids: *mut i32,
        num_tokens_post_padded: *mut i32,
        count: i32,
        capacity: i32,
    ) {
        let (row, _, _): (i32, i32, i32) = get_tile_block_id();
        // SAFETY: nothing is written before the wait.
        let ready: Token = unsafe { wait_then_release::<PDL>(new_token_unordered()) };
        // SAFETY: the caller vouches for an entry for every row in use.
        let from: i32 = unsafe {
            source_row::<KIND, PER>(sorted_token_ids, num_tokens_post_padded, row, count, ready)
        };
        if from >= 0i32 {
            // SAFETY: the row exists.
            let x: Tile<f32, { [Q, 128] }> = unsafe { wide_row::<A, Q, 128, K>(x, from, ready) };
            let halves: Tile<bf16, { [Q, 128] }> = convert_tile(x);
            let halves: Tile<bf16, { [Q, 32, 2, 2] }> = halves.reshape(const_shape![Q, 32, 2, 2]);
            let order: Array<{ [0, 3, 1, 2] }> = const_array![0, 3, 1, 2];
            let halves: Tile<bf16, { [Q, 2, 32, 2] }> = permute(halves, order);
            let halves: Tile<bf16, { [Q, 2, 64] }> = halves.reshape(const_shape![Q, 2, 64]);
            // SAFETY: every row has a place in every product.
            unsafe { store_halves::<Q, PRODUCTS>(out, halves, row, capacity) };
        }
    }

    /// Both parts of a row in floating point.
    pub unsafe fn store_floats<
        const F: i32,
        const Q: i32,
        const G: i32,
        const K: i32,
        const KM: i32,
        const XP: i32,
        const KX: i32,
    >(
        out: *mut i8,
        sums: *mut f32,
        x: Tile<f32, { [Q, G] }>,
        row: i32,
        capacity: i32,
        after: Token,
    ) {
        let first: Tile<f8e4m3fn, { [Q, G] }> = convert_tile(x);
        let near: Tile<f32, { [Q, G] }> = convert_tile(first);
        let second: Tile<f8e4m3fn, { [Q, G] }> = convert_tile(x - near);
        if F == 0i32 {
            let far: Tile<f32, { [Q, G] }> = convert_tile(second);
            // SAFETY: the caller vouches for a sum for every group.
            unsafe { store_sums::<Q, G, K>(sums, near + far, row, capacity, after) };
        }
        let first: Tile<i8, { [Q, G] }> = bitcast(first);
        let second: Tile<i8, { [Q, G] }> = bitcast(second);
        let inside: Tile<bool, { [Q, G] }> = columns_inside::<Q, G, K>();
        let at: Tile<i32, { [Q, G] }> = float_places::<Q, G, KM, XP, KX>(row, capacity);
        let behind: Tile<i32, { [Q, G] }> = broadcast_scalar(KM, const_shape![Q, G]);
        // SAFETY: the caller vouches for both places of every column.
        unsafe { store_parts::<Q, G>(out, at, inside, second) };
        // SAFETY: as above.
        unsafe { store_parts::<Q, G>(out, at + behind, inside, first) };
    }

    /// Both parts of a row of integers, or its only one.
    pub unsafe fn store_integers<
        const F: i32,
        const Q: i32,
        const G: i32,
        const K: i32,
        const KM: i32,
        const XP: i32,
    >(
        out: *mut i8,
        x: Tile<f32, { [Q, G] }>,
        row: i32,
        capacity: i32,
    ) {
        let inside: Tile<bool, { [Q, G] }> = columns_inside::<Q, G, K>();
        let near: Tile<i32, { [Q, G] }> = rounded::<Q, G>(x);
        let at: Tile<i32, { [Q, G] }> = integer_places::<Q, G, KM, XP>(row, capacity);
        let mut first: Tile<i32, { [Q, G] }> = near;
        if F == 3i32 {
            let half: Tile<i32, { [Q, G] }> = constant(128i32, const_shape![Q, G]);
            let eight: Tile<i32, { [Q, G] }> = constant(8i32, const_shape![Q, G]);
            first = shri(near + half, eight);
            let steps: Tile<i32, { [Q, G] }> = constant(256i32, const_shape![Q, G]);
            let second: Tile<i8, { [Q, G] }> = low_byte::<Q, G>(near - first * steps);
            let behind: Tile<i32, { [Q, G] }> = broadcast_scalar(capacity * KM, const_shape![Q, G]);
            // SAFETY: the caller vouches for both places of every column.
            unsafe { store_parts::<Q, G>(out, at + behind, inside, second) };
        }
        let first: Tile<i8, { [Q, G] }> = low_byte::<Q, G>(first);
        // SAFETY: as above.
        unsafe { store_parts::<Q, G>(out, at, inside, first) };
    }
}
