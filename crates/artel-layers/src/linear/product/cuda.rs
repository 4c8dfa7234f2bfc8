//! The product of a linear map on the GPU: one tile a block of threads, the weights on the long side of
//! the matrix units.
//!
//! For few rows the weights are what takes time, and a dense matrix has few tiles for the many
//! multiprocessors. So its columns are cut into parts that different blocks sum; a second launch adds
//! the parts, always in the same order. The cut does not depend on the number of rows, so a row's bits
//! do not depend on the others. More rows have tiles enough. On Hopper FP8 weights of parts lie in shared
//! memory, where all of them fit.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use std::marker::PhantomData;

use artel_device::cuda::{
    Architecture, Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};
use artel_moe::grouped_gemm::prefill::cuda::HalfElement;
use artel_moe::quant::BLOCK;
use bytemuck::Pod;

use super::super::cuda::{LinearNumbers, LinearRows, LinearShape, LinearWeight};
use super::super::resident;
use super::ahead::cuda::ahead;
use super::{FEW_ROWS_MAX, ProductTile};
use crate::LayersError;

#[cutile::module]
mod kernels {
    use crate::linear::parts::cuda::part_code::*;
    use artel_moe::cuda::device_code::*;
    use cutile::core::*;

    /// `out[part, t, n]` = the sum over the columns of a part of `x[t, k] * w[n, k]`.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn multiply<
        A: ElementType,
        O: ElementType,
        const BM: i32,
        const BN: i32,
        const BK: i32,
        const STEPS: i32,
        const BIAS: i32,
        const PDL: i32,
    >(
        out: &Tensor<O, { [-1, -1] }>,
        x: &Tensor<A, { [-1, -1] }>,
        w: &Tensor<A, { [-1, -1] }>,
        bias: *mut f32,
        row_tiles: i32,
        outputs: i32,
    ) {
        let (column, row, part): (i32, i32, i32) = get_tile_block_id();
        let weights: Partition<A, { [BN, BK] }> = w.partition(const_shape![BN, BK]);
        // The first weights are under way while the kernel before ends.
        let first: Tile<A, { [BN, BK] }> = weights.load([column, part * STEPS]);
        // SAFETY: launched as its specification says, after whatever wrote the rows.
        let ready: Token = unsafe { hand_over::<PDL>() };
        // SAFETY: the token stands for the end of the kernel before.
        unsafe { x.set_token(ready) };
        let rows: Partition<A, { [BM, BK] }> = x.partition(const_shape![BM, BK]);
        // SAFETY: the bias has a number for each output.
        let sum: Tile<f32, { [BN, BM] }> =
            unsafe { start::<BM, BN, BIAS>(bias, column * BN, outputs) };
        let right: Tile<A, { [BM, BK] }> = rows.load([row, part * STEPS]);
        let mut sum: Tile<f32, { [BN, BM] }> = mmaf(first, right.transpose(), sum);
        if STEPS > 1i32 {
            for step in 1i32..STEPS {
                let k: i32 = part * STEPS + step;
                let left: Tile<A, { [BN, BK] }> = weights.load([column, k]);
                let right: Tile<A, { [BM, BK] }> = rows.load([row, k]);
                sum = mmaf(left, right.transpose(), sum);
            }
        }
        let sum: Tile<f32, { [BM, BN] }> = sum.transpose();
        let rounded: Tile<O, { [BM, BN] }> = convert_tile(sum);
        // SAFETY: no two blocks store the same tile.
        let mut tiles: PartitionMut<O, { [BM, BN] }> =
            unsafe { out.partition_full_mut(const_shape![BM, BN]) };
        tiles.store(rounded, [part * row_tiles + row, column]);
    }

    /// As `multiply` for FP8 rows and weights: a scale for a row and 128 columns (`x_scales`
    /// `[K / 128, T]`), and for 128 x 128 of the weights, `SCALES` of which are beside each other.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn multiply_fp8<
        O: ElementType,
        const BM: i32,
        const BN: i32,
        const STEPS: i32,
        const SCALES: i32,
        const BIAS: i32,
        const PDL: i32,
    >(
        out: &Tensor<O, { [-1, -1] }>,
        x: &Tensor<f8e4m3fn, { [-1, -1] }>,
        x_scales: &Tensor<f32, { [-1, -1] }>,
        w: &Tensor<f8e4m3fn, { [-1, -1] }>,
        w_scales: *mut f32,
        bias: *mut f32,
        row_tiles: i32,
        outputs: i32,
    ) {
        let (column, row, part): (i32, i32, i32) = get_tile_block_id();
        let weights: Partition<f8e4m3fn, { [BN, 128] }> = w.partition(const_shape![BN, 128]);
        let first: Tile<f8e4m3fn, { [BN, 128] }> = weights.load([column, part * STEPS]);
        // SAFETY: launched as its specification says, after whatever wrote the rows.
        let ready: Token = unsafe { hand_over::<PDL>() };
        // SAFETY: the token stands for the end of the kernel before.
        unsafe { x.set_token(ready) };
        // SAFETY: as above.
        unsafe { x_scales.set_token(ready) };
        let rows: Partition<f8e4m3fn, { [BM, 128] }> = x.partition(const_shape![BM, 128]);
        let scales: Partition<f32, { [1, BM] }> = x_scales.partition(const_shape![1, BM]);
        let scale_row: i32 = column * BN / 128i32 * SCALES;
        // SAFETY: the bias has a number for each output.
        let sum: Tile<f32, { [BN, BM] }> =
            unsafe { start::<BM, BN, BIAS>(bias, column * BN, outputs) };
        let right: Tile<f8e4m3fn, { [BM, 128] }> = rows.load([row, part * STEPS]);
        let scale: Tile<f32, { [1, BM] }> = scales.load([part * STEPS, row]);
        // SAFETY: there are scales for every column tile.
        let weight_scale: f32 = unsafe { scale_of(w_scales, scale_row, part * STEPS, SCALES) };
        let mut sum: Tile<f32, { [BN, BM] }> =
            add_scaled::<BM, BN>(sum, first, right, scale, weight_scale);
        if STEPS > 1i32 {
            for step in 1i32..STEPS {
                let k: i32 = part * STEPS + step;
                let left: Tile<f8e4m3fn, { [BN, 128] }> = weights.load([column, k]);
                let right: Tile<f8e4m3fn, { [BM, 128] }> = rows.load([row, k]);
                let scale: Tile<f32, { [1, BM] }> = scales.load([k, row]);
                // SAFETY: as above.
                let weight_scale: f32 = unsafe { scale_of(w_scales, scale_row, k, SCALES) };
                sum = add_scaled::<BM, BN>(sum, left, right, scale, weight_scale);
            }
        }
        let sum: Tile<f32, { [BM, BN] }> = sum.transpose();
        let rounded: Tile<O, { [BM, BN] }> = convert_tile(sum);
        // SAFETY: no two blocks store the same tile.
        let mut tiles: PartitionMut<O, { [BM, BN] }> =
            unsafe { out.partition_full_mut(const_shape![BM, BN]) };
        tiles.store(rounded, [part * row_tiles + row, column]);
    }

    /// What sums begin with: the bias of their output, or zeros.
    unsafe fn start<const BM: i32, const BN: i32, const BIAS: i32>(
        bias: *mut f32,
        first: i32,
        outputs: i32,
    ) -> Tile<f32, { [BN, BM] }> {
        let mut sum: Tile<f32, { [BN, BM] }> = constant(0.0f32, const_shape![BN, BM]);
        if BIAS == 1i32 {
            let output: Tile<i32, { [BN] }> = count_from::<BN>(first);
            let exists: Tile<bool, { [BN] }> = below(output, outputs);
            // SAFETY: the caller vouches for the bias, which nobody writes.
            let bias: Tile<f32, { [BN] }> =
                unsafe { gather(bias, output, exists, 0.0f32, new_token_unordered()) };
            sum = bias.reshape(const_shape![BN, 1]).broadcast(const_shape![BN, BM]);
        }
        sum
    }

    /// The scale of the weights of a step; behind the last column that of the last one, of zeros.
    unsafe fn scale_of(w_scales: *mut f32, scale_row: i32, step: i32, steps: i32) -> f32 {
        let at: Tile<i32, { [1] }> = count_from::<1>(scale_row + min(step, steps - 1i32));
        let always: Tile<bool, { [1] }> = constant(true, const_shape![1]);
        // SAFETY: the caller vouches for the row of scales.
        let scale: Tile<f32, { [1] }> =
            unsafe { gather(w_scales, at, always, 0.0f32, new_token_unordered()) };
        tile_to_scalar(scale.reshape(const_shape![]))
    }

    /// `sum` + `left` x `right` transposed, times the scales.
    fn add_scaled<const BM: i32, const BN: i32>(
        sum: Tile<f32, { [BN, BM] }>,
        left: Tile<f8e4m3fn, { [BN, 128] }>,
        right: Tile<f8e4m3fn, { [BM, 128] }>,
        scale: Tile<f32, { [1, BM] }>,
        weight_scale: f32,
    ) -> Tile<f32, { [BN, BM] }> {
        let zero: Tile<f32, { [BN, BM] }> = constant(0.0f32, const_shape![BN, BM]);
        // SAFETY: 128 products added in the short accumulators lose 1.3e-4.
        let product: Tile<f32, { [BN, BM] }> =
            unsafe { mmaf_with_fast_acc(left, right.transpose(), zero, fast_acc::Enabled) };
        let weight_scale: Tile<f32, { [1, BM] }> =
            broadcast_scalar(weight_scale, const_shape![1, BM]);
        let scale: Tile<f32, { [BN, BM] }> = (scale * weight_scale).broadcast(const_shape![BN, BM]);
        fma(product, scale, sum, rounding::NearestEven, ftz::Disabled)
    }

    /// `out[t, n]` = the sum of the parts in their order, and `bias[n]`.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn add_parts<
        A: ElementType,
        const N: i32,
        const C: i32,
        const PARTS: i32,
        const BIAS: i32,
        const PDL: i32,
    >(
        parts: *mut f32,
        bias: *mut f32,
        out: *mut A,
        rows: i32,
    ) {
        // SAFETY: launched as its specification says, after the products.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let (row, tile, _): (i32, i32, i32) = get_tile_block_id();
        let column: Tile<i32, { [C] }> = count_from::<C>(tile * C);
        let is_column: Tile<bool, { [C] }> = below(column, N);
        let mask: Tile<bool, { [1, C] }> = is_column.reshape(const_shape![1, C]);
        let start: Tile<i32, { [1] }> = count_from::<1>(row);
        let start: Tile<i64, { [1] }> = exti(start);
        let width: Tile<i32, { [1] }> = broadcast_scalar(N, const_shape![1]);
        let width: Tile<i64, { [1] }> = exti(width);
        // SAFETY: every part has the row.
        let sum: Tile<f32, { [1, C] }> =
            unsafe { sum_parts::<1, C, PARTS, N>(parts, start * width, rows, column, mask, ready) };
        let mut sum: Tile<f32, { [C] }> = sum.reshape(const_shape![C]);
        if BIAS == 1i32 {
            // SAFETY: the bias has `N` elements, which nobody writes.
            let bias: Tile<f32, { [C] }> =
                unsafe { gather(bias, column, is_column, 0.0f32, new_token_unordered()) };
            sum = sum + bias;
        }
        let sum: Tile<A, { [C] }> = convert_tile(sum);
        let one: Tile<i32, { [C] }> = broadcast_scalar(row * N, const_shape![C]);
        // SAFETY: `out` has the row.
        unsafe { scatter(out, one + column, is_column, sum, ready) };
    }
}

/// Columns of a block that adds parts.
const ADD_COLUMNS: usize = 512;

/// The kernels of one tile.
#[derive(Debug, Clone)]
pub struct Product<A> {
    shape: LinearShape,
    tile: ProductTile,
    multiply: Kernel,
    /// Where the product is one of those.
    resident: Option<resident::Cut>,
    add: Option<Kernel>,
    element: PhantomData<A>,
}

impl<A: HalfElement> Product<A> {
    /// Asks for the kernels of a tile.
    ///
    /// # Errors
    /// [`LayersError::Cuda`] when a kernel is missing and cannot be made.
    pub fn load(
        kernels: &mut Kernels,
        shape: LinearShape,
        tile: ProductTile,
    ) -> Result<Self, LayersError> {
        let is_few = tile.rows <= FEW_ROWS_MAX && kernels.architecture() == Architecture::Sm90;
        let resident = is_few.then(|| resident::Cut::of(&shape, tile.parts)).flatten();
        let multiply = match &resident {
            Some(cut) => kernels.get(&cut.spec())?,
            None => kernels.get(&multiply_spec(A::NAME, &shape, &tile))?,
        };
        let add = match tile.parts {
            1 => None,
            parts => Some(kernels.get(&add_spec(A::NAME, &shape, parts))?),
        };
        Ok(Self { shape, tile, multiply, resident, add, element: PhantomData })
    }

    /// Rows of a tile.
    pub fn tile_rows(&self) -> usize {
        self.tile.rows
    }

    /// Parts of its sums.
    pub fn parts(&self) -> usize {
        self.tile.parts
    }

    /// Rows of a part of `tokens` rows: whole tiles.
    pub fn part_rows(&self, tokens: usize) -> usize {
        tokens.next_multiple_of(self.tile.rows)
    }

    /// Maps `tokens` rows to the first rows of `out`; `sums` has room for the sums of all parts of whole
    /// tiles, where there are several.
    ///
    /// # Errors
    /// [`LayersError::Cuda`] when a slice is too short or a launch fails.
    ///
    /// # Panics
    /// When rows, weight or bias are of another form than was loaded.
    pub fn launch(
        &self,
        stream: &Stream,
        tokens: usize,
        (rows, weight): (LinearRows<'_, A>, LinearWeight<'_>),
        sums: &mut DeviceSliceMut<'_, f32>,
        out: &mut DeviceSliceMut<'_, A>,
    ) -> Result<(), LayersError> {
        let LinearShape { outputs, .. } = self.shape;
        out.expect_len("the output of a linear map", tokens * outputs)?;
        let Some(add) = &self.add else {
            return self.multiply(stream, tokens, (rows, weight), out);
        };
        self.launch_parts(stream, tokens, (rows, weight), sums)?;
        let arguments = Arguments::new().slice_mut(sums);
        let arguments = match self.bias(weight.bias)? {
            Some(bias) => arguments.slice(bias),
            None => arguments.no_slice(),
        };
        let arguments = arguments.slice_mut(out).size(self.part_rows(tokens));
        let grid = [tokens, outputs.div_ceil(ADD_COLUMNS), 1];
        // SAFETY: the arguments are the kernel's, with the lengths checked here and by the product.
        unsafe { add.launch(stream, grid, arguments) }?;
        Ok(())
    }

    /// Leaves the sums of several parts, `[parts, part_rows, N]`, without the bias.
    ///
    /// # Errors
    /// As [`launch`](Self::launch).
    ///
    /// # Panics
    /// As there, and when there is one part.
    pub fn launch_parts(
        &self,
        stream: &Stream,
        tokens: usize,
        operands: (LinearRows<'_, A>, LinearWeight<'_>),
        sums: &mut DeviceSliceMut<'_, f32>,
    ) -> Result<(), LayersError> {
        assert!(self.add.is_some(), "this is a bug: a product that is not cut leaves no parts");
        let numbers = self.tile.parts * self.part_rows(tokens) * self.shape.outputs;
        sums.expect_len("sums of parts", numbers)?;
        self.multiply(stream, tokens, operands, sums)
    }

    /// `out`: what the kernel makes, rows or sums of parts.
    fn multiply<O: Pod>(
        &self,
        stream: &Stream,
        tokens: usize,
        (rows, weight): (LinearRows<'_, A>, LinearWeight<'_>),
        out: &mut DeviceSliceMut<'_, O>,
    ) -> Result<(), LayersError> {
        if let Some(cut) = &self.resident {
            return self.multiply_resident(stream, tokens, (rows, weight), (cut, out));
        }
        let LinearShape { outputs, .. } = self.shape;
        let ProductTile { rows: tile_rows, columns, parts, ahead, .. } = self.tile;
        let row_tiles = tokens.div_ceil(tile_rows);
        let out_rows = if parts > 1 { parts * row_tiles * tile_rows } else { tokens };
        let arguments = match ahead {
            true => Arguments::new().slice_mut(out),
            false => Arguments::new().tensor_mut(out, &[out_rows, outputs]),
        };
        let arguments = self.operands(arguments, tokens, (rows, weight))?;
        let arguments = match self.bias(weight.bias)? {
            _ if ahead => arguments.size(tokens),
            Some(bias) if parts == 1 => arguments.slice(bias),
            _ => arguments.no_slice(),
        };
        let arguments = arguments.size(row_tiles).size(outputs);
        let grid = [outputs.div_ceil(columns), row_tiles, parts];
        // SAFETY: the arguments are the kernel's, with the lengths checked here and by the caller.
        unsafe { self.multiply.launch(stream, grid, arguments) }?;
        Ok(())
    }

    /// The same where weights lie in shared memory.
    fn multiply_resident<O: Pod>(
        &self,
        stream: &Stream,
        tokens: usize,
        operands: (LinearRows<'_, A>, LinearWeight<'_>),
        (cut, out): (&resident::Cut, &mut DeviceSliceMut<'_, O>),
    ) -> Result<(), LayersError> {
        self.shape.check_operands(tokens, operands)?;
        let (LinearRows::Fp8 { codes, scales }, weight) = operands else {
            panic!("this is a bug: rows of another linear map");
        };
        let arguments = Arguments::new()
            .slice_mut(out)
            .slice(codes)
            .slice(scales)
            .slice(weight.numbers)
            .slice(weight.scales)
            .size(tokens)
            .size(self.part_rows(tokens))
            .size(super::super::cuda::padded(tokens));
        // SAFETY: the arguments are the kernel's, with the lengths checked here and by the caller.
        unsafe { self.multiply.launch(stream, cut.grid(), arguments) }?;
        Ok(())
    }

    fn bias<'a>(
        &self,
        bias: Option<DeviceSlice<'a, f32>>,
    ) -> Result<Option<DeviceSlice<'a, f32>>, LayersError> {
        let found = bias.is_some();
        assert_eq!(found, self.shape.bias, "this is a bug: a bias and its use must come together");
        if let Some(bias) = bias {
            bias.expect_len("the bias of a linear map", self.shape.outputs)?;
        }
        Ok(bias)
    }

    /// Adds rows and weights to the arguments.
    fn operands(
        &self,
        arguments: Arguments,
        tokens: usize,
        (rows, weight): (LinearRows<'_, A>, LinearWeight<'_>),
    ) -> Result<Arguments, LayersError> {
        self.shape.check_operands(tokens, (rows, weight))?;
        let LinearShape { outputs, inputs, numbers, .. } = self.shape;
        match (numbers, rows) {
            (LinearNumbers::Plain, LinearRows::Plain(x)) => {
                let w: DeviceSlice<'_, A> = weight.numbers.cast();
                Ok(arguments.tensor(x, &[tokens, inputs]).tensor(w, &[outputs, inputs]))
            }
            (LinearNumbers::Fp8Block128, LinearRows::Fp8 { codes, scales }) => {
                let padded = super::super::cuda::padded(tokens);
                Ok(arguments
                    .tensor(codes, &[tokens, inputs])
                    .tensor(scales, &[inputs.div_ceil(BLOCK), padded])
                    .tensor(weight.numbers, &[outputs, inputs])
                    .slice(weight.scales))
            }
            _ => panic!("this is a bug: rows of another linear map"),
        }
    }
}

fn multiply_spec(element: &str, shape: &LinearShape, tile: &ProductTile) -> KernelSpec {
    let LinearShape { outputs, inputs, numbers, bias } = *shape;
    let ProductTile { rows, columns, depth, parts, ahead: is_ahead, warps, occupancy } = *tile;
    // Parts begin at the same columns whatever the depth is, so that sums have the same bits.
    let steps = match parts {
        1 => inputs.div_ceil(depth),
        _ => inputs.div_ceil(BLOCK).div_ceil(parts) * BLOCK / depth,
    };
    let result = if parts > 1 { "f32" } else { element };
    let bias = usize::from(bias && parts == 1);
    let spec =
        |entry| KernelSpec::new("linear/product", kernels::__module_ast_self, "kernels", entry);
    let ahead = |entry| KernelSpec::new("linear/product", ahead::__module_ast_self, "ahead", entry);
    let spec = match numbers {
        LinearNumbers::Plain if is_ahead => ahead("multiply_ahead")
            .element(element)
            .generics([rows, columns, depth, steps].map(|size| size as i32)),
        LinearNumbers::Plain => spec("multiply")
            .element(element)
            .element(result)
            .generics([rows, columns, depth, steps, bias].map(|size| size as i32)),
        LinearNumbers::Fp8Block128 => {
            let sizes = [rows, columns, steps, inputs.div_ceil(BLOCK), bias];
            spec("multiply_fp8")
                .element(result)
                .generics(sizes.map(|size| size as i32))
                .tensor("x_scales", &[1, 128], &[-1, 1])
                .pointers(["w_scales"])
                .needs(Architecture::Sm90)
        }
    };
    let spec = match is_ahead {
        true => spec.pointers(["out"]),
        false => spec.tensor("out", &[1, 1], &[outputs as i32, 1]).pointers(["bias"]),
    };
    spec.tensor("x", &[1, 1], &[inputs as i32, 1])
        .tensor("w", &[1, 1], &[inputs as i32, 1])
        .warps(warps)
        .occupancy(occupancy)
        .programmatic()
}

fn add_spec(element: &str, shape: &LinearShape, parts: usize) -> KernelSpec {
    let sizes = [shape.outputs, ADD_COLUMNS, parts, usize::from(shape.bias)];
    KernelSpec::new("linear/product", kernels::__module_ast_self, "kernels", "add_parts")
        .element(element)
        .generics(sizes.map(|size| size as i32))
        .pointers(["parts", "bias", "out"])
        .warps(4)
        .programmatic()
}
