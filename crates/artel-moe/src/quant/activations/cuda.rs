//! Quantisation of activations on the GPU. The rows of a token are read and divided once; where
//! products want them by expert, the result is stored at each of the token's positions.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use std::marker::PhantomData;

use artel_device::cuda::{
    Architecture, Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};

use super::{Granularity, ScaleBounds};
use crate::MoeError;
use crate::quant::{BLOCK, Element};

#[cutile::module]
mod kernels {
    use crate::cuda::device_code::*;
    use crate::quant::activations::codes::cuda::quantize_code::*;
    use cutile::core::*;

    /// Where copy `copy` of each row goes: `positions[row * K + copy]`, or with `K = 0` where the
    /// row was. -1: nowhere.
    unsafe fn destinations<const R: i32, const K: i32>(
        positions: *mut i32,
        row: Tile<i32, { [R] }>,
        is_row: Tile<bool, { [R] }>,
        copy: i32,
        after: Token,
    ) -> Tile<i32, { [R] }> {
        let nowhere: Tile<i32, { [R] }> = constant(-1i32, const_shape![R]);
        let mut destination: Tile<i32, { [R] }> = select(is_row, row, nowhere);
        if K > 0i32 {
            let top_k: Tile<i32, { [R] }> = broadcast_scalar(K, const_shape![R]);
            let copy: Tile<i32, { [R] }> = broadcast_scalar(copy, const_shape![R]);
            // SAFETY: the caller vouches for `K` positions a row.
            destination = unsafe { gather(positions, row * top_k + copy, is_row, -1i32, after) };
        }
        destination
    }

    /// `R` rows by `C` columns of `[rows, H]` as float32; zero outside.
    unsafe fn load_values<T: ElementType, const R: i32, const C: i32>(
        input: *mut T,
        offsets: Tile<i64, { [R, C] }>,
        mask: Tile<bool, { [R, C] }>,
        after: Token,
    ) -> Tile<f32, { [R, C] }> {
        // SAFETY: the caller vouches for the offsets.
        let values: Tile<T, { [R, C] }> = unsafe { gather_block(input, offsets, mask, after) };
        let values: Tile<f32, { [R, C] }> = convert_tile(values);
        let nothing: Tile<f32, { [R, C] }> = constant(0.0f32, const_shape![R, C]);
        select(mask, values, nothing)
    }

    /// `R` rows by `C` columns. `WIDTH` columns share a scale, `GROUPS = C / WIDTH`, `TOTAL` groups
    /// in a row of `H`. Each row is stored `COPIES` times.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn quantize_rows<
        T: ElementType,
        const H: i32,
        const R: i32,
        const C: i32,
        const GROUPS: i32,
        const WIDTH: i32,
        const TOTAL: i32,
        const K: i32,
        const COPIES: i32,
        const PDL: i32,
    >(
        input: *mut T,
        positions: *mut i32,
        codes: *mut f8e4m3fn,
        scales: *mut f32,
        rows: i32,
        row_stride: i32,
        group_stride: i32,
        least: f32,
        most: f32,
    ) {
        // SAFETY: launched as its specification says, after whatever wrote the operands.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let row: Tile<i32, { [R] }> = count_from::<R>(get_tile_block_id().0 * R);
        let is_row: Tile<bool, { [R] }> = below(row, rows);
        let column: Tile<i32, { [C] }> = count_from::<C>(get_tile_block_id().1 * C);
        let is_column: Tile<bool, { [C] }> = below(column, H);
        let mask: Tile<bool, { [R, C] }> = block_mask(is_row, is_column);
        let offsets: Tile<i64, { [R, C] }> = block_offsets(row, H, column);
        // SAFETY: input is `[rows, H]`.
        let values: Tile<f32, { [R, C] }> = unsafe { load_values(input, offsets, mask, ready) };
        let found: Tile<f32, { [R, GROUPS] }> =
            group_scales::<R, C, GROUPS, WIDTH>(values, least, most);
        let code: Tile<f8e4m3fn, { [R, C] }> = to_codes::<R, C, GROUPS, WIDTH>(values, found);
        let group: i32 = get_tile_block_id().1 * GROUPS;
        for copy in 0i32..COPIES {
            // SAFETY: positions is `[rows, K]`.
            let to: Tile<i32, { [R] }> =
                unsafe { destinations::<R, K>(positions, row, is_row, copy, ready) };
            let nowhere: Tile<i32, { [R] }> = constant(-1i32, const_shape![R]);
            let kept: Tile<bool, { [R] }> = gt_tile(to, nowhere);
            let offsets: Tile<i64, { [R, C] }> = block_offsets(to, H, column);
            // SAFETY: the caller vouches that destinations lie inside codes and scales.
            unsafe { scatter_block(codes, offsets, block_mask(kept, is_column), code, ready) };
            // SAFETY: as above.
            unsafe {
                store_scales::<R, GROUPS>(
                    scales,
                    found,
                    to,
                    kept,
                    group,
                    TOTAL,
                    row_stride,
                    group_stride,
                    ready,
                )
            };
        }
    }

    /// As above with one scale for everything, which `scale` points to.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn quantize_static<
        T: ElementType,
        const H: i32,
        const R: i32,
        const C: i32,
        const K: i32,
        const COPIES: i32,
        const PDL: i32,
    >(
        input: *mut T,
        positions: *mut i32,
        codes: *mut f8e4m3fn,
        scale: *mut f32,
        rows: i32,
    ) {
        // SAFETY: launched as its specification says, after whatever wrote the operands.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let row: Tile<i32, { [R] }> = count_from::<R>(get_tile_block_id().0 * R);
        let is_row: Tile<bool, { [R] }> = below(row, rows);
        let column: Tile<i32, { [C] }> = count_from::<C>(get_tile_block_id().1 * C);
        let is_column: Tile<bool, { [C] }> = below(column, H);
        let mask: Tile<bool, { [R, C] }> = block_mask(is_row, is_column);
        let offsets: Tile<i64, { [R, C] }> = block_offsets(row, H, column);
        // SAFETY: input is `[rows, H]`.
        let values: Tile<f32, { [R, C] }> = unsafe { load_values(input, offsets, mask, ready) };
        let first: Tile<i32, { [1] }> = constant(0i32, const_shape![1]);
        let always: Tile<bool, { [1] }> = constant(true, const_shape![1]);
        // SAFETY: one number.
        let scale: Tile<f32, { [1] }> = unsafe { gather(scale, first, always, 1.0f32, ready) };
        let scale: Tile<f32, { [1, 1] }> = scale.reshape(const_shape![1, 1]);
        let scale: Tile<f32, { [R, 1] }> = scale.broadcast(const_shape![R, 1]);
        let code: Tile<f8e4m3fn, { [R, C] }> = to_codes::<R, C, 1, C>(values, scale);
        for copy in 0i32..COPIES {
            // SAFETY: positions is `[rows, K]`.
            let to: Tile<i32, { [R] }> =
                unsafe { destinations::<R, K>(positions, row, is_row, copy, ready) };
            let nowhere: Tile<i32, { [R] }> = constant(-1i32, const_shape![R]);
            let kept: Tile<bool, { [R] }> = gt_tile(to, nowhere);
            let offsets: Tile<i64, { [R, C] }> = block_offsets(to, H, column);
            // SAFETY: the caller vouches that destinations lie inside codes.
            unsafe { scatter_block(codes, offsets, block_mask(kept, is_column), code, ready) };
        }
    }
}

/// Most columns a row may have when it shares one scale: all of it is held in registers.
pub const ROW_COLUMNS_MAX: usize = 16384;

/// Columns of a block.
const COLUMNS: usize = 1024;

/// Rows of a block where there are many: fewer, larger blocks keep more reads in flight.
const MANY_ROWS: usize = 4;

/// From so many rows on, blocks have [`MANY_ROWS`].
const MANY_ROWS_FROM: usize = 1024;

/// One kernel for blocks of one row and one for blocks of several.
#[derive(Debug, Clone)]
struct ByRows {
    few: Kernel,
    many: Kernel,
    many_rows: usize,
}

impl ByRows {
    fn load(
        kernels: &mut Kernels,
        many_rows: usize,
        spec: impl Fn(usize) -> KernelSpec,
    ) -> Result<Self, MoeError> {
        Ok(Self { few: kernels.get(&spec(1))?, many: kernels.get(&spec(many_rows))?, many_rows })
    }

    /// The kernel for `rows` rows, and its blocks.
    fn choose(&self, rows: usize) -> (&Kernel, usize) {
        match rows < MANY_ROWS_FROM {
            true => (&self.few, rows),
            false => (&self.many, rows.div_ceil(self.many_rows)),
        }
    }
}

/// How often a row is stored, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// Once, where it was.
    InPlace,
    /// At each of the positions of its `K` pairs, so that rows lie as the aligned assignment sorts
    /// them. Rows of the result that belong to no pair are left as they were.
    Sorted {
        /// `K`.
        top_k: usize,
    },
}

impl Placement {
    /// `K` and the number of copies, as kernels take them.
    fn constants(self) -> [i32; 2] {
        match self {
            Self::InPlace => [0, 1],
            Self::Sorted { top_k } => [top_k as i32; 2],
        }
    }

    fn check(self, rows: usize, positions: Option<DeviceSlice<'_, i32>>) -> Result<(), MoeError> {
        match (self, positions) {
            (Self::InPlace, None) => Ok(()),
            (Self::Sorted { top_k }, Some(positions)) => {
                Ok(positions.expect_len("positions of rows", rows * top_k)?)
            }
            _ => panic!("this is a bug: positions and their use must come together"),
        }
    }
}

/// Rows that are quantised.
#[derive(Debug, Clone, Copy)]
pub struct InputRows<'a, A: Element> {
    /// `[rows, columns]`.
    pub values: DeviceSlice<'a, A>,
    /// Rows in use.
    pub rows: usize,
    /// `[rows, K]` with [`Placement::Sorted`]: where each copy goes, inside the result; -1: nowhere.
    pub positions: Option<DeviceSlice<'a, i32>>,
}

impl<A: Element> InputRows<'_, A> {
    fn arguments(&self) -> Arguments {
        let arguments = Arguments::new().slice(self.values);
        match self.positions {
            None => arguments.no_slice(),
            Some(positions) => arguments.slice(positions),
        }
    }
}

/// How scales lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleLayout {
    /// `[rows, groups]`.
    ByRow,
    /// `[groups, rows]`, as kernels read it that take one group of many rows at a time.
    ByGroup {
        /// Rows of the result there is room for.
        rows: usize,
    },
}

/// FP8 rows that are written.
#[derive(Debug)]
pub struct QuantizedRows<'a> {
    /// e4m3 codes, `[rows, columns]`.
    pub codes: DeviceSliceMut<'a, u8>,
    /// Scales.
    pub scales: DeviceSliceMut<'a, f32>,
    /// How scales lie.
    pub layout: ScaleLayout,
    /// What scales may be.
    pub bounds: ScaleBounds,
}

impl QuantizedRows<'_> {
    /// Checks that there is room for `rows` rows.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when codes or scales are too short.
    pub fn expect_rows(&self, rows: usize, columns: usize, groups: usize) -> Result<(), MoeError> {
        self.codes.expect_len("codes of quantised rows", rows * columns)?;
        let [row_stride, group_stride] = self.scale_strides(groups);
        let last = rows.saturating_sub(1) * row_stride + (groups - 1) * group_stride;
        self.scales.expect_len("scales of quantised rows", (last + 1) * rows.min(1))?;
        Ok(())
    }

    /// Elements between the scales of neighbouring rows and of neighbouring groups.
    pub fn scale_strides(&self, groups: usize) -> [usize; 2] {
        match self.layout {
            ScaleLayout::ByRow => [groups, 1],
            ScaleLayout::ByGroup { rows } => [1, rows],
        }
    }
}

/// Quantisation with scales chosen from the numbers.
#[derive(Debug, Clone)]
pub struct Quantize<A> {
    kernels: ByRows,
    columns: usize,
    block: usize,
    granularity: Granularity,
    placement: Placement,
    element: PhantomData<A>,
}

impl<A: Element> Quantize<A> {
    /// Asks for the kernel for rows of `columns` numbers.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when it is missing and cannot be made, [`MoeError::Config`] for a row
    /// with one scale and more than [`ROW_COLUMNS_MAX`] columns.
    pub fn load(
        kernels: &mut Kernels,
        columns: usize,
        granularity: Granularity,
        placement: Placement,
    ) -> Result<Self, MoeError> {
        let padded = columns.next_power_of_two();
        let (block, width) = match granularity {
            Granularity::Groups => (padded.clamp(BLOCK, COLUMNS), BLOCK),
            Granularity::Rows if columns > ROW_COLUMNS_MAX => {
                let allowed = format!("at most {ROW_COLUMNS_MAX} with one scale a row");
                return Err(MoeError::config("columns of quantised rows", columns, allowed));
            }
            Granularity::Rows => (padded, padded),
        };
        let spec = |rows: usize| {
            let shape = [columns, rows, block, block / width, width, granularity.groups(columns)];
            let module = kernels::__module_ast_self;
            KernelSpec::new("quant/quantize_rows", module, "kernels", "quantize_rows")
                .element(A::NAME)
                .generics(shape.map(|size| size as i32).into_iter().chain(placement.constants()))
                .pointers(["input", "positions", "codes", "scales"])
                .warps(if block > 4096 { 8 } else { 4 })
                .needs(Architecture::Sm90)
                .programmatic()
        };
        // A row that shares one scale fills a block by itself.
        let many_rows = if granularity == Granularity::Groups { MANY_ROWS } else { 1 };
        let kernels = ByRows::load(kernels, many_rows, spec)?;
        Ok(Self { kernels, columns, block, granularity, placement, element: PhantomData })
    }

    /// Quantises `input`.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when a slice is too short or the launch fails.
    ///
    /// # Panics
    /// When there are positions without [`Placement::Sorted`], or none with it.
    pub fn launch(
        &self,
        stream: &Stream,
        input: InputRows<'_, A>,
        out: &mut QuantizedRows<'_>,
    ) -> Result<(), MoeError> {
        let InputRows { values, rows, positions } = input;
        values.expect_len("rows to quantise", rows * self.columns)?;
        self.placement.check(rows, positions)?;
        let groups = self.granularity.groups(self.columns);
        let [row_stride, group_stride] = out.scale_strides(groups);
        if self.placement == Placement::InPlace {
            out.expect_rows(rows, self.columns, groups)?;
        }
        let arguments = input
            .arguments()
            .slice_mut(&out.codes)
            .slice_mut(&out.scales)
            .size(rows)
            .size(row_stride)
            .size(group_stride)
            .f32(out.bounds.least)
            .f32(out.bounds.most);
        let (kernel, blocks) = self.kernels.choose(rows);
        let grid = [blocks, self.columns.div_ceil(self.block), 1];
        // SAFETY: the arguments are the kernel's, with the lengths checked above.
        unsafe { kernel.launch(stream, grid, arguments) }?;
        Ok(())
    }
}

/// Quantisation with one given scale.
#[derive(Debug, Clone)]
pub struct QuantizeStatic<A> {
    kernels: ByRows,
    columns: usize,
    placement: Placement,
    element: PhantomData<A>,
}

impl<A: Element> QuantizeStatic<A> {
    /// Asks for the kernel for rows of `columns` numbers.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when it is missing and cannot be made.
    pub fn load(
        kernels: &mut Kernels,
        columns: usize,
        placement: Placement,
    ) -> Result<Self, MoeError> {
        let spec = |rows: usize| {
            let shape = [columns, rows, column_block(columns)].map(|size| size as i32);
            let module = kernels::__module_ast_self;
            KernelSpec::new("quant/quantize_static", module, "kernels", "quantize_static")
                .element(A::NAME)
                .generics(shape.into_iter().chain(placement.constants()))
                .pointers(["input", "positions", "codes", "scale"])
                .warps(4)
                .needs(Architecture::Sm90)
                .programmatic()
        };
        let kernels = ByRows::load(kernels, MANY_ROWS, spec)?;
        Ok(Self { kernels, columns, placement, element: PhantomData })
    }

    /// Quantises `input` to e4m3 `codes` `[rows, columns]`; `scale` is one number.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when a slice is too short or the launch fails.
    ///
    /// # Panics
    /// When there are positions without [`Placement::Sorted`], or none with it.
    pub fn launch(
        &self,
        stream: &Stream,
        input: InputRows<'_, A>,
        scale: DeviceSlice<'_, f32>,
        codes: &mut DeviceSliceMut<'_, u8>,
    ) -> Result<(), MoeError> {
        input.values.expect_len("rows to quantise", input.rows * self.columns)?;
        self.placement.check(input.rows, input.positions)?;
        scale.expect_len("the scale of all rows", 1)?;
        if self.placement == Placement::InPlace {
            codes.expect_len("codes of quantised rows", input.rows * self.columns)?;
        }
        let arguments = input.arguments().slice_mut(codes).slice(scale).size(input.rows);
        let (kernel, blocks) = self.kernels.choose(input.rows);
        let grid = [blocks, self.columns.div_ceil(column_block(self.columns)), 1];
        // SAFETY: the arguments are the kernel's, with the lengths checked above.
        unsafe { kernel.launch(stream, grid, arguments) }?;
        Ok(())
    }
}

/// Columns of a block where nothing is shared within a row.
fn column_block(columns: usize) -> usize {
    columns.next_power_of_two().min(COLUMNS)
}
