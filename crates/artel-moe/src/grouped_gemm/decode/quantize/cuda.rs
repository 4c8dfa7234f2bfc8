//! Rows to FP8 with a scale for every 128 columns or for each row.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use artel_device::cuda::{
    Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};
use bytemuck::Pod;

use super::super::arguments::constant;
use crate::MoeError;
use crate::quant::BLOCK;
use crate::quant::activations::cuda::ROW_COLUMNS_MAX;
use crate::quant::activations::{Granularity, ScaleBounds};

/// Groups that one block quantises where a row has several.
const GROUPS: usize = 4;

/// When the kernel lets the next one start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// When it may begin itself: what was there before this launch is then there for the next.
    AfterWait,
    /// At once, for a next kernel that reads only what is older than the kernel before this one.
    BeforeWait,
}

/// Quantises rows to FP8 with float32 scales.
#[derive(Debug, Clone)]
pub struct QuantizeRows {
    columns: usize,
    granularity: Granularity,
    element_bytes: usize,
    kernel: Kernel,
}

impl QuantizeRows {
    /// Asks for the kernel: rows of `columns` numbers of type `element`, `f32`, `f16` or `bf16`.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when it is missing and cannot be made, [`MoeError::Config`] for a row
    /// with one scale and more than [`ROW_COLUMNS_MAX`] columns.
    pub fn load(
        kernels: &mut Kernels,
        element: &'static str,
        columns: usize,
        granularity: Granularity,
        release: Release,
    ) -> Result<Self, MoeError> {
        let [groups, width] = match granularity {
            Granularity::Groups => [GROUPS, BLOCK],
            Granularity::Rows => [1, columns.next_power_of_two()],
        };
        if width > ROW_COLUMNS_MAX {
            let allowed = format!("at most {ROW_COLUMNS_MAX} with one scale a row");
            return Err(MoeError::config("columns of quantised rows", columns, allowed));
        }
        let early = i32::from(release == Release::BeforeWait);
        let module = decode_quantize::__module_ast_self;
        let entry = "quantize_groups";
        let spec = KernelSpec::new("grouped_gemm/quantize", module, "decode_quantize", entry)
            .element(element)
            .generics([groups, width, columns].map(constant))
            .generics([early])
            .pointers(["codes", "scales", "x"])
            .warps(if width >= 4096 { 8 } else { 4 })
            .programmatic();
        let element_bytes = if element == "f32" { 4 } else { 2 };
        Ok(Self { columns, granularity, element_bytes, kernel: kernels.get(&spec)? })
    }

    /// Quantises `rows` rows of `x`: codes `[rows, columns]`, scales `[groups, stride]` within
    /// `bounds`. `out` is both and the stride.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when a slice is too short or the launch fails.
    pub fn launch<A: Pod>(
        &self,
        stream: &Stream,
        x: DeviceSlice<'_, A>,
        rows: usize,
        out: (DeviceSliceMut<'_, u8>, DeviceSliceMut<'_, f32>, usize),
        bounds: ScaleBounds,
    ) -> Result<(), MoeError> {
        let (codes, scales, stride) = out;
        let groups = self.granularity.groups(self.columns);
        let elements = rows * self.columns * self.element_bytes / size_of::<A>();
        x.expect_len("rows to quantise", elements)?;
        codes.expect_len("quantised rows", rows * self.columns)?;
        scales.expect_len("scales of quantised rows", groups * stride.max(rows))?;
        let arguments = Arguments::new().slice_mut(&codes).slice_mut(&scales).slice(x);
        let arguments = arguments.size(stride).f32(bounds.least).f32(bounds.most);
        let grid = [rows, groups.div_ceil(GROUPS), 1];
        // SAFETY: the arguments are the kernel's; all lengths are checked above.
        unsafe { self.kernel.launch(stream, grid, arguments) }?;
        Ok(())
    }
}

/// Quantisation of the rows of a product.
#[cutile::module]
pub mod decode_quantize {
    use crate::cuda::device_code::*;
    use crate::grouped_gemm::decode::parts::cuda::decode_parts::*;
    use cutile::core::*;

    /// `BG` groups of `W` columns of one row `[K]`. Scales are from `least` to `most` and go to `[groups, scale_stride]`. `EARLY = 1`:
    /// the next kernel starts before this one waits, for one that reads nothing but its results.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn quantize_groups<
        A: ElementType,
        const BG: i32,
        const W: i32,
        const K: i32,
        const EARLY: i32,
        const PDL: i32,
    >(
        codes: *mut f8e4m3fn,
        scales: *mut f32,
        x: *mut A,
        scale_stride: i32,
        least: f32,
        most: f32,
    ) {
        let (row, part, _): (i32, i32, i32) = get_tile_block_id();
        let mut ready: Token = new_token_unordered();
        if EARLY == 1i32 {
            // SAFETY: nothing is written before the wait.
            ready = unsafe { release_then_wait::<PDL>(ready) };
        } else {
            // SAFETY: as above.
            ready = unsafe { wait_then_release::<PDL>(ready) };
        }
        let groups: Tile<i32, { [BG] }> = count_from::<BG>(part * BG);
        let start: Tile<i32, { [BG] }> = groups * splat::<BG>(W);
        let start: Tile<i32, { [BG, 1] }> = start.reshape(const_shape![BG, 1]);
        let start: Tile<i32, { [BG, W] }> = start.broadcast(const_shape![BG, W]);
        let within: Tile<i32, { [W] }> = iota(const_shape![W]);
        let within: Tile<i32, { [1, W] }> = within.reshape(const_shape![1, W]);
        let columns: Tile<i32, { [BG, W] }> = start + within.broadcast(const_shape![BG, W]);
        let end: Tile<i32, { [BG, W] }> = broadcast_scalar(K, const_shape![BG, W]);
        let inside: Tile<bool, { [BG, W] }> = lt_tile(columns, end);
        // SAFETY: the row exists; the mask keeps inside it.
        let x: Tile<A, { [BG, W] }> =
            unsafe { load_groups::<A, BG, W, K>(x, row, columns, inside, ready) };
        let x: Tile<f32, { [BG, W] }> = convert_tile(x);
        let none: Tile<f32, { [BG, W] }> = constant(0.0f32, const_shape![BG, W]);
        let x: Tile<f32, { [BG, W] }> = select(inside, x, none);
        let scale: Tile<f32, { [BG] }> = row_scales::<BG, W>(x, least, most);
        let code: Tile<f8e4m3fn, { [BG, W] }> = to_e4m3::<BG, W>(x, scale);
        // SAFETY: as above.
        unsafe { store_groups::<f8e4m3fn, BG, W, K>(codes, row, columns, inside, code) };
        let whole: Tile<bool, { [BG] }> = lt_tile(groups, splat::<BG>(ceil_div(K, W)));
        let place: Tile<i32, { [BG] }> = groups * splat::<BG>(scale_stride) + splat::<BG>(row);
        // SAFETY: every group has a scale.
        unsafe { scatter(scales, place, whole, scale, ready) };
    }

    /// Pointers to some columns of one row of a matrix with `K` columns.
    pub fn group_pointers<E: ElementType, const BG: i32, const W: i32, const K: i32>(
        base: *mut E,
        row: i32,
        columns: Tile<i32, { [BG, W] }>,
    ) -> PointerTile<*mut E, { [BG, W] }> {
        let row: Tile<i32, { [BG, W] }> = broadcast_scalar(row, const_shape![BG, W]);
        let size: Tile<i32, { [BG, W] }> = broadcast_scalar(K, const_shape![BG, W]);
        let row: Tile<i64, { [BG, W] }> = exti(row);
        let size: Tile<i64, { [BG, W] }> = exti(size);
        let pointer: PointerTile<*mut E, { [] }> = pointer_to_tile(base);
        let pointer: PointerTile<*mut E, { [1, 1] }> = pointer.reshape(const_shape![1, 1]);
        let pointer: PointerTile<*mut E, { [BG, W] }> = pointer.broadcast(const_shape![BG, W]);
        let pointer: PointerTile<*mut E, { [BG, W] }> = pointer.offset_tile(row * size);
        let pointer: PointerTile<*mut E, { [BG, W] }> = pointer.offset_tile(columns);
        pointer
    }

    /// Some columns of one row where the mask is on, anything elsewhere.
    pub unsafe fn load_groups<E: ElementType, const BG: i32, const W: i32, const K: i32>(
        base: *mut E,
        row: i32,
        columns: Tile<i32, { [BG, W] }>,
        mask: Tile<bool, { [BG, W] }>,
        after: Token,
    ) -> Tile<E, { [BG, W] }> {
        // SAFETY: the caller vouches for the unmasked columns of the row.
        let (values, _read): (Tile<E, { [BG, W] }>, Token) = unsafe {
            load_ptr_tko(
                group_pointers::<E, BG, W, K>(base, row, columns),
                ordering::Weak,
                None::<scope::TileBlock>,
                Some(mask),
                None,
                Some(after),
                Latency::<0>,
            )
        };
        values
    }

    /// Writes some columns of one row where the mask is on.
    pub unsafe fn store_groups<E: ElementType, const BG: i32, const W: i32, const K: i32>(
        base: *mut E,
        row: i32,
        columns: Tile<i32, { [BG, W] }>,
        mask: Tile<bool, { [BG, W] }>,
        values: Tile<E, { [BG, W] }>,
    ) {
        // SAFETY: the caller vouches for the unmasked columns of the row.
        let _written: Token = unsafe {
            store_ptr_tko(
                group_pointers::<E, BG, W, K>(base, row, columns),
                values,
                ordering::Weak,
                None::<scope::TileBlock>,
                Some(mask),
                None,
                Latency::<0>,
            )
        };
    }
}
