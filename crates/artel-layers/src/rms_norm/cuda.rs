//! RMS norm on the GPU: a block of threads holds its rows in registers, reads and writes each once.
//!
//! Bytes of `T` rows of `H`: `T * H * (hidden + out)`, and with a delta `T * H * (delta + 2 hidden +
//! out)`, each in the bytes of its numbers; FP8 out is one byte and four for 128 columns. At few
//! tokens the time is that of a launch. A row's bits do not depend on the other rows.
//!
//! On Hopper rows of float32 that become bfloat16 or codes have a kernel in assembly, where their width is a
//! multiple of 256 up to 8192.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use std::marker::PhantomData;

use artel_device::cuda::{
    Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};
use artel_moe::layer::cuda::PairRows;
use artel_moe::quant::Element;

pub use super::codes::cuda::{NormalizeQuantize, Plain};
use super::{NormColumns, row};
use crate::LayersError;
use crate::linear::parts::cuda::PartSums;

#[cutile::module]
mod kernels {
    use crate::rms_norm::code::cuda::norm_code::*;
    use artel_moe::cuda::device_code::*;
    use cutile::core::*;

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
        const PARTS: i32,
        const PDL: i32,
    >(
        hidden: *mut T,
        delta: *mut A,
        sums: *mut f32,
        weight: *mut f32,
        out: *mut A,
        rows: i32,
        part_rows: i32,
        epsilon: f32,
    ) {
        // SAFETY: launched as its specification says, after whatever wrote the operands.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let row: Tile<i32, { [R] }> = count_from::<R>(get_tile_block_id().0 * R);
        let column: Tile<i32, { [C] }> = count_from::<C>(0i32);
        let mask: Tile<bool, { [R, C] }> = block_mask(below(row, rows), below(column, H));
        let offsets: Tile<i64, { [R, C] }> =
            offsets_of_rows::<R, C, H, HEADS, STRIDE, FIRST>(row, column);
        let mut values: Tile<f32, { [R, C] }> = constant(0.0f32, const_shape![R, C]);
        if ADD > 0i32 {
            // SAFETY: there are `rows` rows of `H` elements, and as many in every part.
            values = unsafe {
                load_hidden::<T, A, H, R, C, ADD, PARTS>(
                    hidden, delta, sums, part_rows, row, column, mask, ready,
                )
            };
        }
        if ADD == 0i32 {
            // SAFETY: there are `rows` norm rows.
            values = unsafe { load_values(hidden, offsets, mask, ready) };
        }
        // SAFETY: the weight has `H` elements.
        let values: Tile<f32, { [R, C] }> =
            unsafe { normalized::<R, C, H>(values, weight, column, epsilon) };
        let values: Tile<A, { [R, C] }> = convert_tile(values);
        // SAFETY: out has the rows of hidden.
        unsafe { scatter_block(out, offsets, mask, values, ready) };
    }
}

/// Most elements of a norm row: all of it is held in registers.
pub const WIDTH_MAX: usize = 16384;

/// Elements that a block holds where rows are short.
pub(super) const BLOCK_ELEMENTS: usize = 1024;

/// What is added to the rows before they are normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residual {
    /// Nothing.
    Alone,
    /// Rows of the output's numbers; the sums are stored where the hidden rows were.
    Add,
    /// The same, in 2, 4 or 8 parts.
    AddParts(usize),
    /// The weighted rows of so many pairs a token, where there is a [kernel](adds_pairs) for it.
    AddPairs(usize),
}

impl Residual {
    fn parts(self) -> usize {
        match self {
            Self::Alone | Self::Add => 1,
            Self::AddParts(parts) | Self::AddPairs(parts) => parts,
        }
    }

    /// Whether something is added (2: of pairs), and in how many parts.
    pub(super) fn constants(self) -> [usize; 2] {
        let adds = match self {
            Self::Alone => 0,
            Self::Add | Self::AddParts(_) => 1,
            Self::AddPairs(_) => 2,
        };
        [adds, self.parts()]
    }

    /// Warps of a block with `columns` columns.
    pub(super) fn warps(self, columns: usize) -> usize {
        if columns > 4096 || self.parts() * columns > 4096 { 8 } else { 4 }
    }
}

/// What is added.
#[derive(Debug, Clone, Copy)]
pub enum Delta<'a, A: Element> {
    /// Nothing: [`Residual::Alone`].
    Nothing,
    /// `[T, H]`: [`Residual::Add`].
    Rows(DeviceSlice<'a, A>),
    /// What a product left: [`Residual::AddParts`].
    Parts(PartSums<'a>),
    /// What experts left: [`Residual::AddPairs`].
    Pairs(PairRows<'a, A>),
}

/// Whether norms of float32 rows of `width` to bfloat16 or codes can add `top_k` pairs a token.
pub fn adds_pairs(kernels: &Kernels, width: usize, top_k: usize) -> bool {
    row::cuda::is_known(kernels, width, Residual::AddPairs(top_k))
}

/// An error where there are only tiles, which do not add pairs.
pub(super) fn expect_tiles(residual: Residual, width: usize) -> Result<(), LayersError> {
    match residual {
        Residual::AddPairs(_) => {
            let allowed = "one whose norm has a kernel that adds pairs";
            Err(LayersError::config("width of an RMS norm", width, allowed))
        }
        Residual::Alone | Residual::Add | Residual::AddParts(_) => Ok(()),
    }
}

pub(super) fn tile(width: usize) -> Result<[usize; 2], LayersError> {
    if width == 0 || width > WIDTH_MAX {
        let allowed = format!("in 1..={WIDTH_MAX} on a GPU");
        return Err(LayersError::config("width of an RMS norm", width, allowed));
    }
    let columns = width.next_power_of_two();
    Ok([(BLOCK_ELEMENTS / columns).max(1), columns])
}

/// `sizes`: of the kernel, up to the first column.
fn spec(elements: [&'static str; 2], sizes: [usize; 6], residual: Residual) -> KernelSpec {
    let [_, _, columns, ..] = sizes;
    let module = kernels::__module_ast_self;
    KernelSpec::new("rms_norm/normalize", module, "kernels", "normalize")
        .element(elements[0])
        .element(elements[1])
        .generics(sizes.into_iter().chain(residual.constants()).map(|size| size as i32))
        .pointers(["hidden", "delta", "sums", "weight", "out"])
        .warps(residual.warps(columns))
        .programmatic()
}

/// The rows of a launch.
#[derive(Debug)]
pub struct NormRows<'a, T: Element, A: Element> {
    /// Rows `[T, H]`; the sums where something is added.
    pub hidden: DeviceSliceMut<'a, T>,
    /// What is added, of the kind that was asked for.
    pub delta: Delta<'a, A>,
    /// Weights `[H]`.
    pub weight: DeviceSlice<'a, f32>,
    /// `T`.
    pub tokens: usize,
}

impl<T: Element, A: Element> NormRows<'_, T, A> {
    /// The pointers to what is read, and the rows of a part.
    pub(super) fn arguments(
        &self,
        width: usize,
        residual: Residual,
    ) -> Result<(Arguments, usize), LayersError> {
        self.hidden.expect_len("rows to normalise", self.tokens * width)?;
        self.weight.expect_len("weights of an RMS norm", width)?;
        let arguments = Arguments::new().slice_mut(&self.hidden);
        let (arguments, part_rows) = match (residual, self.delta) {
            (Residual::Alone, Delta::Nothing) => (arguments.no_slice().no_slice(), 0),
            (Residual::Add, Delta::Rows(delta)) => {
                delta.expect_len("what is added to the residual", self.tokens * width)?;
                (arguments.slice(delta).no_slice(), 0)
            }
            (Residual::AddParts(parts), Delta::Parts(sums)) => {
                let arguments = arguments.no_slice();
                (sums.argument(arguments, parts, [self.tokens, width])?, sums.rows)
            }
            (Residual::AddPairs(top_k), Delta::Pairs(pairs)) if top_k == pairs.top_k => {
                pairs.positions.expect_len("positions of pairs", self.tokens * top_k)?;
                pairs.weights.expect_len("weights of pairs", self.tokens * top_k)?;
                (arguments.slice(pairs.rows).slice(pairs.weights), 0)
            }
            _ => panic!("this is a bug: what is added is of another kind than was asked for"),
        };
        Ok((arguments.slice(self.weight), part_rows))
    }

    /// `arguments` with what those end with that add pairs.
    pub(super) fn ends(&self, arguments: Arguments) -> Arguments {
        match self.delta {
            Delta::Pairs(pairs) => arguments.slice(pairs.positions),
            Delta::Nothing | Delta::Rows(_) | Delta::Parts(_) => arguments,
        }
    }
}

/// What normalises whole rows.
#[derive(Debug, Clone)]
pub(super) enum NormKernel {
    /// A block of threads a row.
    Row(Kernel),
    /// Tiles of so many rows.
    Tiles(Kernel, usize),
}

/// RMS norm of rows of `T` to rows of `A`.
#[derive(Debug, Clone)]
pub struct Normalize<T, A> {
    kernel: NormKernel,
    width: usize,
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
        let elements = [T::NAME, A::NAME];
        let of_row = row::cuda::load(kernels, elements, width, residual, [true, false])?;
        let kernel = match of_row {
            Some(kernel) => NormKernel::Row(kernel),
            None => {
                expect_tiles(residual, width)?;
                let spec = spec(elements, [width, rows, columns, 1, width, 0], residual);
                NormKernel::Tiles(kernels.get(&spec)?, rows)
            }
        };
        Ok(Self { kernel, width, epsilon, residual, elements: PhantomData })
    }

    /// Normalises into `out` `[T, H]`.
    ///
    /// # Errors
    /// [`LayersError::Cuda`] when a slice is too short or the launch fails.
    ///
    /// # Panics
    /// When what is added is of another kind than was asked for.
    pub fn launch(
        &self,
        stream: &Stream,
        rows: &NormRows<'_, T, A>,
        out: &mut DeviceSliceMut<'_, A>,
    ) -> Result<(), LayersError> {
        let (arguments, part_rows) = rows.arguments(self.width, self.residual)?;
        out.expect_len("normalised rows", rows.tokens * self.width)?;
        let arguments = arguments.slice_mut(out);
        let sizes = |arguments: Arguments| arguments.size(rows.tokens).size(part_rows);
        let (kernel, arguments, block_rows) = match &self.kernel {
            NormKernel::Tiles(kernel, block_rows) => {
                (kernel, sizes(arguments).f32(self.epsilon), *block_rows)
            }
            NormKernel::Row(kernel) => {
                let arguments = sizes(arguments.no_slice().no_slice()).size(0).size(0);
                (kernel, rows.ends(arguments.f32(self.epsilon).f32(0.0).f32(0.0)), 1)
            }
        };
        let grid = [rows.tokens.div_ceil(block_rows), 1, 1];
        // SAFETY: the arguments are the kernel's, with the lengths checked above.
        unsafe { kernel.launch(stream, grid, arguments) }?;
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
        let sizes = [width, rows, padded, heads, row_width, first];
        let kernel = kernels.get(&spec([A::NAME; 2], sizes, Residual::Alone))?;
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
        let arguments = Arguments::new().slice_mut(rows).no_slice().no_slice().slice(weight);
        let arguments = arguments.slice_mut(rows).size(norm_rows).size(0).f32(self.epsilon);
        let grid = [norm_rows.div_ceil(self.rows), 1, 1];
        // SAFETY: the arguments are the kernel's, with the lengths checked above.
        unsafe { self.kernel.launch(stream, grid, arguments) }?;
        Ok(())
    }
}
