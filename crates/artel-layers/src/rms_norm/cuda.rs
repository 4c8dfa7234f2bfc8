//! RMS norm on the GPU: a block of threads holds its rows in registers, reads and writes each once.
//!
//! Bytes of `T` rows of `H`: `T * H * (hidden + out)`, and with a delta `T * H * (delta + 2 hidden +
//! out)`, each in the bytes of its numbers; FP8 out is one byte and four for 128 columns. At few
//! tokens the time is that of a launch. A row's bits do not depend on the other rows.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use std::marker::PhantomData;

use artel_device::cuda::{
    Architecture, Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};
use artel_moe::quant::activations::Granularity;
use artel_moe::quant::activations::cuda::QuantizedRows;
use artel_moe::quant::{BLOCK, Element};

use super::NormColumns;
use crate::LayersError;

#[cutile::module]
mod kernels {
    use artel_moe::cuda::device_code::*;
    use artel_moe::quant::activations::codes::cuda::quantize_code::*;
    use cutile::core::*;

    /// Offsets of the norm rows of a block: `HEADS` of `H` elements lie from column `FIRST` on in each
    /// row of `STRIDE` elements.
    fn offsets_of_rows<
        const R: i32,
        const C: i32,
        const H: i32,
        const HEADS: i32,
        const STRIDE: i32,
        const FIRST: i32,
    >(
        row: Tile<i32, { [R] }>,
        column: Tile<i32, { [C] }>,
    ) -> Tile<i64, { [R, C] }> {
        let first: Tile<i32, { [C] }> = broadcast_scalar(FIRST, const_shape![C]);
        let column: Tile<i32, { [C] }> = column + first;
        let mut offsets: Tile<i64, { [R, C] }> = block_offsets(row, STRIDE, column);
        if HEADS > 1i32 {
            let heads: Tile<i32, { [R] }> = broadcast_scalar(HEADS, const_shape![R]);
            let width: Tile<i32, { [R] }> = broadcast_scalar(H, const_shape![R]);
            let token: Tile<i32, { [R] }> = row / heads;
            let start: Tile<i32, { [R] }> = (row - token * heads) * width;
            let start: Tile<i64, { [R] }> = exti(start);
            let start: Tile<i64, { [R, 1] }> = start.reshape(const_shape![R, 1]);
            offsets = block_offsets(token, STRIDE, column) + start.broadcast(const_shape![R, C]);
        }
        offsets
    }

    /// A block of a matrix as float32, zero outside of the mask.
    unsafe fn load_values<T: ElementType, const R: i32, const C: i32>(
        base: *mut T,
        offsets: Tile<i64, { [R, C] }>,
        mask: Tile<bool, { [R, C] }>,
        after: Token,
    ) -> Tile<f32, { [R, C] }> {
        // SAFETY: the caller vouches for the offsets.
        let values: Tile<T, { [R, C] }> = unsafe { gather_block(base, offsets, mask, after) };
        let values: Tile<f32, { [R, C] }> = convert_tile(values);
        let nothing: Tile<f32, { [R, C] }> = constant(0.0f32, const_shape![R, C]);
        select(mask, values, nothing)
    }

    /// The rows to normalise; with `ADD` those of `hidden` plus `delta`, rounded to the numbers of
    /// `hidden` and stored there.
    unsafe fn load_hidden<
        T: ElementType,
        A: ElementType,
        const R: i32,
        const C: i32,
        const ADD: i32,
    >(
        hidden: *mut T,
        delta: *mut A,
        offsets: Tile<i64, { [R, C] }>,
        mask: Tile<bool, { [R, C] }>,
        after: Token,
    ) -> Tile<f32, { [R, C] }> {
        // SAFETY: the caller vouches for the offsets.
        let mut values: Tile<f32, { [R, C] }> =
            unsafe { load_values(hidden, offsets, mask, after) };
        if ADD == 1i32 {
            // SAFETY: as above.
            let added: Tile<f32, { [R, C] }> = unsafe { load_values(delta, offsets, mask, after) };
            let sum: Tile<T, { [R, C] }> = convert_tile(values + added);
            // SAFETY: as above.
            unsafe { scatter_block(hidden, offsets, mask, sum, after) };
            values = convert_tile(sum);
        }
        values
    }

    /// Rows over the root of their mean square, times the weight.
    unsafe fn normalized<const R: i32, const C: i32, const H: i32>(
        values: Tile<f32, { [R, C] }>,
        weight: *mut f32,
        column: Tile<i32, { [C] }>,
        epsilon: f32,
    ) -> Tile<f32, { [R, C] }> {
        // SAFETY: the weight has `H` elements, which nobody writes.
        let weight: Tile<f32, { [C] }> =
            unsafe { gather(weight, column, below(column, H), 0.0f32, new_token_unordered()) };
        let weight: Tile<f32, { [1, C] }> = weight.reshape(const_shape![1, C]);
        let squares: Tile<f32, { [R] }> = reduce_sum(values * values, 1i32);
        let width: i32 = H;
        let width: f32 = convert_scalar(width);
        let width: Tile<f32, { [R] }> = broadcast_scalar(width, const_shape![R]);
        let epsilon: Tile<f32, { [R] }> = broadcast_scalar(epsilon, const_shape![R]);
        let root: Tile<f32, { [R] }> =
            sqrt(squares / width + epsilon, rounding::NearestEven, ftz::Disabled);
        let one: Tile<f32, { [R] }> = constant(1.0f32, const_shape![R]);
        let scale: Tile<f32, { [R, 1] }> = (one / root).reshape(const_shape![R, 1]);
        weight.broadcast(const_shape![R, C]) * (values * scale.broadcast(const_shape![R, C]))
    }

    /// `R` norm rows of `H` elements in a tile of `C` columns.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn normalize<
        T: ElementType,
        A: ElementType,
        const H: i32,
        const R: i32,
        const C: i32,
        const HEADS: i32,
        const STRIDE: i32,
        const FIRST: i32,
        const ADD: i32,
        const PDL: i32,
    >(
        hidden: *mut T,
        delta: *mut A,
        weight: *mut f32,
        out: *mut A,
        rows: i32,
        epsilon: f32,
    ) {
        // SAFETY: launched as its specification says, after whatever wrote the operands.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let row: Tile<i32, { [R] }> = count_from::<R>(get_tile_block_id().0 * R);
        let column: Tile<i32, { [C] }> = count_from::<C>(0i32);
        let mask: Tile<bool, { [R, C] }> = block_mask(below(row, rows), below(column, H));
        let offsets: Tile<i64, { [R, C] }> =
            offsets_of_rows::<R, C, H, HEADS, STRIDE, FIRST>(row, column);
        // SAFETY: there are `rows` norm rows.
        let values: Tile<f32, { [R, C] }> =
            unsafe { load_hidden::<T, A, R, C, ADD>(hidden, delta, offsets, mask, ready) };
        // SAFETY: the weight has `H` elements.
        let values: Tile<f32, { [R, C] }> =
            unsafe { normalized::<R, C, H>(values, weight, column, epsilon) };
        let values: Tile<A, { [R, C] }> = convert_tile(values);
        // SAFETY: out has the rows of hidden.
        unsafe { scatter_block(out, offsets, mask, values, ready) };
    }

    /// As above with FP8 codes of the rounded rows, a scale for 128 columns. `KEEP`: the rounded rows
    /// are stored, too. `GROUPS = C / 128`, `TOTAL` groups in a row of `H`.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn normalize_to_codes<
        T: ElementType,
        A: ElementType,
        const H: i32,
        const R: i32,
        const C: i32,
        const GROUPS: i32,
        const TOTAL: i32,
        const ADD: i32,
        const KEEP: i32,
        const PDL: i32,
    >(
        hidden: *mut T,
        delta: *mut A,
        weight: *mut f32,
        out: *mut A,
        codes: *mut f8e4m3fn,
        scales: *mut f32,
        rows: i32,
        row_stride: i32,
        group_stride: i32,
        epsilon: f32,
        least: f32,
        most: f32,
    ) {
        // SAFETY: launched as its specification says, after whatever wrote the operands.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let row: Tile<i32, { [R] }> = count_from::<R>(get_tile_block_id().0 * R);
        let is_row: Tile<bool, { [R] }> = below(row, rows);
        let column: Tile<i32, { [C] }> = count_from::<C>(0i32);
        let mask: Tile<bool, { [R, C] }> = block_mask(is_row, below(column, H));
        let offsets: Tile<i64, { [R, C] }> = block_offsets(row, H, column);
        // SAFETY: there are `rows` rows.
        let values: Tile<f32, { [R, C] }> =
            unsafe { load_hidden::<T, A, R, C, ADD>(hidden, delta, offsets, mask, ready) };
        // SAFETY: the weight has `H` elements.
        let values: Tile<f32, { [R, C] }> =
            unsafe { normalized::<R, C, H>(values, weight, column, epsilon) };
        let rounded: Tile<A, { [R, C] }> = convert_tile(values);
        if KEEP == 1i32 {
            // SAFETY: out has the rows of hidden.
            unsafe { scatter_block(out, offsets, mask, rounded, ready) };
        }
        let values: Tile<f32, { [R, C] }> = convert_tile(rounded);
        let found: Tile<f32, { [R, GROUPS] }> =
            group_scales::<R, C, GROUPS, 128>(values, least, most);
        let code: Tile<f8e4m3fn, { [R, C] }> = to_codes::<R, C, GROUPS, 128>(values, found);
        // SAFETY: codes and scales have the rows of hidden.
        unsafe { scatter_block(codes, offsets, mask, code, ready) };
        // SAFETY: as above.
        unsafe {
            store_scales::<R, GROUPS>(
                scales,
                found,
                row,
                is_row,
                0i32,
                TOTAL,
                row_stride,
                group_stride,
                ready,
            )
        };
    }
}

/// Most elements of a norm row: all of it is held in registers.
pub const WIDTH_MAX: usize = 16384;

/// Elements that a block holds where rows are short.
const BLOCK_ELEMENTS: usize = 1024;

/// What is added to the rows before they are normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residual {
    /// Nothing.
    Alone,
    /// Rows of the output's numbers; the sums are stored where the hidden rows were.
    Add,
}

fn tile(width: usize) -> Result<[usize; 2], LayersError> {
    if width == 0 || width > WIDTH_MAX {
        let allowed = format!("in 1..={WIDTH_MAX} on a GPU");
        return Err(LayersError::config("width of an RMS norm", width, allowed));
    }
    let columns = width.next_power_of_two();
    Ok([(BLOCK_ELEMENTS / columns).max(1), columns])
}

fn spec(entry: &'static str, columns: usize) -> KernelSpec {
    KernelSpec::new("rms_norm/normalize", kernels::__module_ast_self, "kernels", entry)
        .warps(if columns > 4096 { 8 } else { 4 })
        .programmatic()
}

/// The rows of a launch.
#[derive(Debug)]
pub struct NormRows<'a, T: Element, A: Element> {
    /// Rows `[T, H]`; the sums with [`Residual::Add`].
    pub hidden: DeviceSliceMut<'a, T>,
    /// `[T, H]`, present exactly with [`Residual::Add`].
    pub delta: Option<DeviceSlice<'a, A>>,
    /// Weights `[H]`.
    pub weight: DeviceSlice<'a, f32>,
    /// `T`.
    pub tokens: usize,
}

impl<T: Element, A: Element> NormRows<'_, T, A> {
    fn arguments(&self, width: usize, residual: Residual) -> Result<Arguments, LayersError> {
        self.hidden.expect_len("rows to normalise", self.tokens * width)?;
        self.weight.expect_len("weights of an RMS norm", width)?;
        let arguments = Arguments::new().slice_mut(&self.hidden);
        let arguments = match (residual, self.delta) {
            (Residual::Alone, None) => arguments.no_slice(),
            (Residual::Add, Some(delta)) => {
                delta.expect_len("what is added to the residual", self.tokens * width)?;
                arguments.slice(delta)
            }
            _ => panic!("this is a bug: rows to add and their use must come together"),
        };
        Ok(arguments.slice(self.weight))
    }
}

/// RMS norm of rows of `T` to rows of `A`.
#[derive(Debug, Clone)]
pub struct Normalize<T, A> {
    kernel: Kernel,
    width: usize,
    rows: usize,
    epsilon: f32,
    residual: Residual,
    elements: PhantomData<(T, A)>,
}

impl<T: Element, A: Element> Normalize<T, A> {
    /// Asks for the kernel for rows of `width` elements.
    ///
    /// # Errors
    /// [`LayersError::Config`] for a width that does not fit registers, [`LayersError::Cuda`] when the
    /// kernel is missing and cannot be made.
    pub fn load(
        kernels: &mut Kernels,
        width: usize,
        epsilon: f32,
        residual: Residual,
    ) -> Result<Self, LayersError> {
        let [rows, columns] = tile(width)?;
        let add = i32::from(residual == Residual::Add);
        let sizes = [width, rows, columns, 1, width, 0].map(|size| size as i32);
        let spec = spec("normalize", columns)
            .element(T::NAME)
            .element(A::NAME)
            .generics(sizes.into_iter().chain([add]))
            .pointers(["hidden", "delta", "weight", "out"]);
        let kernel = kernels.get(&spec)?;
        Ok(Self { kernel, width, rows, epsilon, residual, elements: PhantomData })
    }

    /// Normalises into `out` `[T, H]`.
    ///
    /// # Errors
    /// [`LayersError::Cuda`] when a slice is too short or the launch fails.
    ///
    /// # Panics
    /// When there is a delta without [`Residual::Add`], or none with it.
    pub fn launch(
        &self,
        stream: &Stream,
        rows: &NormRows<'_, T, A>,
        out: &mut DeviceSliceMut<'_, A>,
    ) -> Result<(), LayersError> {
        let arguments = rows.arguments(self.width, self.residual)?;
        out.expect_len("normalised rows", rows.tokens * self.width)?;
        let arguments = arguments.slice_mut(out).size(rows.tokens).f32(self.epsilon);
        let grid = [rows.tokens.div_ceil(self.rows), 1, 1];
        // SAFETY: the arguments are the kernel's, with the lengths checked above.
        unsafe { self.kernel.launch(stream, grid, arguments) }?;
        Ok(())
    }
}

/// RMS norm in place of some columns of wider rows: of queries and keys, by head or over all heads.
#[derive(Debug, Clone)]
pub struct NormalizeColumns<A> {
    kernel: Kernel,
    columns: NormColumns,
    rows: usize,
    epsilon: f32,
    element: PhantomData<A>,
}

impl<A: Element> NormalizeColumns<A> {
    /// Asks for the kernel.
    ///
    /// # Errors
    /// [`LayersError::Config`] for columns that leave the row or a width that does not fit registers,
    /// [`LayersError::Cuda`] when the kernel is missing and cannot be made.
    pub fn load(
        kernels: &mut Kernels,
        columns: NormColumns,
        epsilon: f32,
    ) -> Result<Self, LayersError> {
        let NormColumns { row_width, first, heads, width } = columns;
        let [rows, padded] = tile(width)?;
        let end = first.saturating_add(heads.saturating_mul(width));
        if heads == 0 || end > row_width {
            let (found, allowed) = (format!("{columns:?}"), format!("heads within 0..{row_width}"));
            return Err(LayersError::config("columns of an RMS norm", found, allowed));
        }
        let sizes = [width, rows, padded, heads, row_width, first, 0].map(|size| size as i32);
        let spec = spec("normalize", padded)
            .element(A::NAME)
            .element(A::NAME)
            .generics(sizes)
            .pointers(["hidden", "delta", "weight", "out"]);
        let kernel = kernels.get(&spec)?;
        Ok(Self { kernel, columns, rows, epsilon, element: PhantomData })
    }

    /// Normalises the columns of `tokens` rows; `weight` `[width]`.
    ///
    /// # Errors
    /// [`LayersError::Cuda`] when a slice is too short or the launch fails.
    pub fn launch(
        &self,
        stream: &Stream,
        tokens: usize,
        weight: DeviceSlice<'_, f32>,
        rows: &mut DeviceSliceMut<'_, A>,
    ) -> Result<(), LayersError> {
        rows.expect_len("rows to normalise", tokens * self.columns.row_width)?;
        weight.expect_len("weights of an RMS norm", self.columns.width)?;
        let norm_rows = tokens * self.columns.heads;
        let arguments = Arguments::new().slice_mut(rows).no_slice().slice(weight).slice_mut(rows);
        let arguments = arguments.size(norm_rows).f32(self.epsilon);
        let grid = [norm_rows.div_ceil(self.rows), 1, 1];
        // SAFETY: the arguments are the kernel's, with the lengths checked above.
        unsafe { self.kernel.launch(stream, grid, arguments) }?;
        Ok(())
    }
}

/// What becomes of the rows beside their codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plain {
    /// They are stored, too: the router of an MoE layer reads them.
    Kept,
    /// Only codes are stored.
    Dropped,
}

/// RMS norm with the rows as FP8, a scale for 128 columns: what FP8 weights in blocks are multiplied
/// with. The codes are those of the rounded rows.
#[derive(Debug, Clone)]
pub struct NormalizeQuantize<T, A> {
    kernel: Kernel,
    width: usize,
    rows: usize,
    epsilon: f32,
    residual: Residual,
    plain: Plain,
    elements: PhantomData<(T, A)>,
}

impl<T: Element, A: Element> NormalizeQuantize<T, A> {
    /// Asks for the kernel for rows of `width` elements.
    ///
    /// # Errors
    /// As [`Normalize::load`].
    pub fn load(
        kernels: &mut Kernels,
        width: usize,
        epsilon: f32,
        residual: Residual,
        plain: Plain,
    ) -> Result<Self, LayersError> {
        let [_, columns] = tile(width)?;
        let columns = columns.max(BLOCK);
        let rows = (BLOCK_ELEMENTS / columns).max(1);
        let sizes = [width, rows, columns, columns / BLOCK, Granularity::Groups.groups(width)];
        let flags = [residual == Residual::Add, plain == Plain::Kept].map(i32::from);
        let spec = spec("normalize_to_codes", columns)
            .element(T::NAME)
            .element(A::NAME)
            .generics(sizes.map(|size| size as i32).into_iter().chain(flags))
            .pointers(["hidden", "delta", "weight", "out", "codes", "scales"])
            .needs(Architecture::Sm90);
        let kernel = kernels.get(&spec)?;
        Ok(Self { kernel, width, rows, epsilon, residual, plain, elements: PhantomData })
    }

    /// Normalises into `codes`, and into `out` `[T, H]` where rows are kept.
    ///
    /// # Errors
    /// [`LayersError::Cuda`] when a slice is too short or the launch fails.
    ///
    /// # Panics
    /// When there is a delta without [`Residual::Add`] or `out` without [`Plain::Kept`], or none with
    /// it.
    pub fn launch(
        &self,
        stream: &Stream,
        rows: &NormRows<'_, T, A>,
        out: Option<DeviceSliceMut<'_, A>>,
        codes: &mut QuantizedRows<'_>,
    ) -> Result<(), LayersError> {
        let (tokens, width) = (rows.tokens, self.width);
        let groups = Granularity::Groups.groups(width);
        let arguments = rows.arguments(width, self.residual)?;
        codes.expect_rows(tokens, width, groups)?;
        let arguments = match (self.plain, out) {
            (Plain::Dropped, None) => arguments.no_slice(),
            (Plain::Kept, Some(out)) => {
                out.expect_len("normalised rows", tokens * width)?;
                arguments.slice_mut(&out)
            }
            _ => panic!("this is a bug: kept rows and their place must come together"),
        };
        let [row_stride, group_stride] = codes.scale_strides(groups);
        let arguments = arguments
            .slice_mut(&codes.codes)
            .slice_mut(&codes.scales)
            .size(tokens)
            .size(row_stride)
            .size(group_stride)
            .f32(self.epsilon)
            .f32(codes.bounds.least)
            .f32(codes.bounds.most);
        let grid = [tokens.div_ceil(self.rows), 1, 1];
        // SAFETY: the arguments are the kernel's, with the lengths checked above.
        unsafe { self.kernel.launch(stream, grid, arguments) }?;
        Ok(())
    }
}
