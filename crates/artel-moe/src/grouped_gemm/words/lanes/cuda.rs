//! The kernel that brings rows into this order.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use artel_device::cuda::{Arguments, DeviceSlice, Kernel, KernelSpec, Kernels, Stream};
use bytemuck::Pod;

use super::super::WordFormat;
use super::super::split::cuda::{HALVES, RowsInUse, constant};
use super::super::workspace::SplitBuffers;
use crate::MoeError;
use crate::quant::BLOCK;

/// Brings rows of tokens into the order of lanes, as bfloat16 numbers.
#[derive(Debug, Clone)]
pub struct LaneRows {
    kernel: Kernel,
}

impl LaneRows {
    /// Asks for the kernel of rows of `columns` numbers of type `element`: of each position that of its pair's token, one
    /// of `top_k`.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when it is missing and cannot be made.
    pub fn load(
        kernels: &mut Kernels,
        element: &'static str,
        (columns, top_k): (usize, usize),
        format: WordFormat,
    ) -> Result<Self, MoeError> {
        let width = columns.next_power_of_two().max(BLOCK);
        let planes = width / BLOCK;
        let products = format.padded(columns) / HALVES;
        let module = word_lanes::__module_ast_self;
        let spec =
            KernelSpec::new("grouped_gemm/warpgroup_lanes", module, "word_lanes", "lane_rows")
                .element(element)
                .generics([top_k, planes, 4 * planes, columns, products].map(constant))
                .pointers(["out", "x", "sorted_token_ids", "num_tokens_post_padded"])
                .warps(if width > 4096 { 8 } else { 4 })
                .programmatic();
        Ok(Self { kernel: kernels.get(&spec)? })
    }

    /// Brings `rows.rows` rows of `x` into `out`, those in use.
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
        let known = "this is a bug: positions without their pairs";
        let arguments = Arguments::new()
            .slice_mut(&out.parts.slice_mut())
            .slice(x)
            .slice(rows.sorted_token_ids.expect(known))
            .slice(rows.num_tokens_post_padded.expect(known))
            .size(rows.count)
            .size(capacity);
        // SAFETY: the arguments are the kernel's; the buffers have room for the rows.
        unsafe { self.kernel.launch(stream, [rows.rows, 1, 1], arguments) }?;
        Ok(())
    }
}

/// The kernel.
#[cutile::module]
pub mod word_lanes {
    use crate::grouped_gemm::decode::parts::cuda::decode_parts::*;
    use crate::grouped_gemm::words::split::places::cuda::split_places::*;
    use cutile::core::*;

    /// One row in bfloat16: `out` `[PRODUCTS, capacity, 64]`, of `Q` planes of 128 columns, `R` half halves. Rows are
    /// those of tokens of positions, of which each has `PER`.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn lane_rows<
        A: ElementType,
        const PER: i32,
        const Q: i32,
        const R: i32,
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
            source_row::<1, PER>(sorted_token_ids, num_tokens_post_padded, row, count, ready)
        };
        if from >= 0i32 {
            // SAFETY: the row exists.
            let x: Tile<f32, { [Q, 128] }> = unsafe { wide_row::<A, Q, 128, K>(x, from, ready) };
            let halves: Tile<bf16, { [Q, 128] }> = convert_tile(x);
            // Words, two bytes of each half: halves first.
            let halves: Tile<bf16, { [Q, 32, 2, 2] }> = halves.reshape(const_shape![Q, 32, 2, 2]);
            let order: Array<{ [0, 3, 1, 2] }> = const_array![0, 3, 1, 2];
            let halves: Tile<bf16, { [Q, 2, 32, 2] }> = permute(halves, order);
            // Of sixteen words four lanes have four each: those that they take together first.
            let halves: Tile<bf16, { [R, 4, 4, 2] }> = halves.reshape(const_shape![R, 4, 4, 2]);
            let order: Array<{ [0, 2, 1, 3] }> = const_array![0, 2, 1, 3];
            let halves: Tile<bf16, { [R, 4, 4, 2] }> = permute(halves, order);
            let halves: Tile<bf16, { [Q, 2, 64] }> = halves.reshape(const_shape![Q, 2, 64]);
            // SAFETY: every row has a place in every product.
            unsafe { store_halves::<Q, PRODUCTS>(out, halves, row, capacity) };
        }
    }
}
