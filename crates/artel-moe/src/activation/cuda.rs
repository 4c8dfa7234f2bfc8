//! Activation on the GPU, alone or with the quantisation of its result.
//!
//! Blocks go by pair, not by row of the aligned form: with few tokens most of those rows are
//! padding. A pair finds its row by its position; rows of no pair are neither read nor written.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use std::marker::PhantomData;

use artel_device::cuda::{
    Architecture, Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};

use super::{Activation, GateLayout};
use crate::MoeError;
use crate::combine::cuda::RowBiases;
use crate::quant::activations::Granularity;
use crate::quant::activations::cuda::{QuantizedRows, ROW_COLUMNS_MAX};
use crate::quant::{BLOCK, Element};

#[cutile::module]
mod kernels {
    use crate::activation::gate::cuda::gate_code::*;
    use crate::cuda::device_code::*;
    use crate::quant::activations::codes::cuda::quantize_code::*;
    use cutile::core::*;

    /// The rows of pairs; -1 for none. `SORTED` 0: row `p` belongs to pair `p`.
    unsafe fn rows_of_pairs<const R: i32, const SORTED: i32>(
        positions: *mut i32,
        pairs: i32,
        after: Token,
    ) -> Tile<i32, { [R] }> {
        let pair: Tile<i32, { [R] }> = count_from::<R>(get_tile_block_id().0 * R);
        let none: Tile<i32, { [R] }> = constant(-1i32, const_shape![R]);
        let is_pair: Tile<bool, { [R] }> = below(pair, pairs);
        let mut row: Tile<i32, { [R] }> = select(is_pair, pair, none);
        if SORTED == 1i32 {
            // SAFETY: the caller vouches for `pairs` positions.
            row = unsafe { gather(positions, pair, is_pair, -1i32, after) };
        }
        row
    }

    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn activate_rows<
        T: ElementType,
        const KIND: i32,
        const LAYOUT: i32,
        const I: i32,
        const SORTED: i32,
        const BIASED: i32,
        const R: i32,
        const C: i32,
        const PDL: i32,
    >(
        input: *mut T,
        words: *mut i32,
        positions: *mut i32,
        out: *mut T,
        pairs: i32,
        a: f32,
        b: f32,
        expert_ids: *mut i32,
        biases: *mut f32,
    ) {
        // SAFETY: launched as its specification says, after whatever wrote the operands.
        let ready: Token = unsafe { hand_over::<PDL>() };
        // SAFETY: there are `pairs` positions.
        let row: Tile<i32, { [R] }> =
            unsafe { rows_of_pairs::<R, SORTED>(positions, pairs, ready) };
        let none: Tile<i32, { [R] }> = constant(-1i32, const_shape![R]);
        let is_row: Tile<bool, { [R] }> = gt_tile(row, none);
        let column: Tile<i32, { [C] }> = count_from::<C>(get_tile_block_id().1 * C);
        let mask: Tile<bool, { [R, C] }> = block_mask(is_row, below(column, I));
        // SAFETY: the host has checked the rows, or vouches for positions.
        let values: Tile<f32, { [R, C] }> = unsafe {
            load_activated::<T, KIND, LAYOUT, I, BIASED, R, C>(
                input, words, row, column, mask, a, b, expert_ids, biases, ready,
            )
        };
        let values: Tile<T, { [R, C] }> = convert_tile(values);
        // SAFETY: as above, `I` numbers a row.
        unsafe { scatter_block(out, block_offsets(row, I, column), mask, values, ready) };
    }

    /// `WIDTH` columns share a scale, `GROUPS = C / WIDTH`, `TOTAL` groups in a row.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn activate_to_codes<
        T: ElementType,
        const KIND: i32,
        const LAYOUT: i32,
        const I: i32,
        const SORTED: i32,
        const BIASED: i32,
        const R: i32,
        const C: i32,
        const GROUPS: i32,
        const WIDTH: i32,
        const TOTAL: i32,
        const PDL: i32,
    >(
        input: *mut T,
        words: *mut i32,
        positions: *mut i32,
        codes: *mut f8e4m3fn,
        scales: *mut f32,
        pairs: i32,
        row_stride: i32,
        group_stride: i32,
        least: f32,
        most: f32,
        a: f32,
        b: f32,
        expert_ids: *mut i32,
        biases: *mut f32,
    ) {
        // SAFETY: launched as its specification says, after whatever wrote the operands.
        let ready: Token = unsafe { hand_over::<PDL>() };
        // SAFETY: there are `pairs` positions.
        let row: Tile<i32, { [R] }> =
            unsafe { rows_of_pairs::<R, SORTED>(positions, pairs, ready) };
        let none: Tile<i32, { [R] }> = constant(-1i32, const_shape![R]);
        let is_row: Tile<bool, { [R] }> = gt_tile(row, none);
        let column: Tile<i32, { [C] }> = count_from::<C>(get_tile_block_id().1 * C);
        let mask: Tile<bool, { [R, C] }> = block_mask(is_row, below(column, I));
        // SAFETY: the host has checked the rows, or vouches for positions.
        let values: Tile<f32, { [R, C] }> = unsafe {
            load_activated::<T, KIND, LAYOUT, I, BIASED, R, C>(
                input, words, row, column, mask, a, b, expert_ids, biases, ready,
            )
        };
        let found: Tile<f32, { [R, GROUPS] }> =
            group_scales::<R, C, GROUPS, WIDTH>(values, least, most);
        let code: Tile<f8e4m3fn, { [R, C] }> = to_codes::<R, C, GROUPS, WIDTH>(values, found);
        // SAFETY: as above, `I` codes a row.
        unsafe { scatter_block(codes, block_offsets(row, I, column), mask, code, ready) };
        let group: i32 = get_tile_block_id().1 * GROUPS;
        // SAFETY: as above, with the strides of the scales.
        unsafe {
            store_scales::<R, GROUPS>(
                scales,
                found,
                row,
                is_row,
                group,
                TOTAL,
                row_stride,
                group_stride,
                ready,
            )
        };
    }
}

/// Numbers that a block holds where there are few rows and many.
const BLOCK_NUMBERS: [usize; 2] = [1024, 4096];

/// From so many pairs on, blocks hold more.
const MANY_PAIRS: usize = 4096;

/// The kernel of one activation as constants: its number, its layout and its parameters.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Function {
    pub(crate) kind: i32,
    layout: i32,
    pub(crate) parameters: [f32; 2],
}

impl From<Activation> for Function {
    fn from(activation: Activation) -> Self {
        let (kind, a, b) = match activation {
            Activation::Silu | Activation::SiluNoMul => (0, 0.0, 0.0),
            Activation::SiluClamp { limit } => (1, limit, 0.0),
            Activation::Gelu | Activation::GeluNoMul => (2, 0.0, 0.0),
            Activation::GeluTanh | Activation::GeluTanhNoMul => (3, 0.0, 0.0),
            Activation::SwigluOai { alpha, limit, .. } => (4, alpha, limit),
            Activation::SwigluStep { limit } => (5, limit, 0.0),
            Activation::Situ { beta, linear_beta: None } => (6, beta, 0.0),
            Activation::Situ { beta, linear_beta: Some(linear) } => (7, beta, linear),
            Activation::Relu2 | Activation::Relu2NoMul => (8, 0.0, 0.0),
        };
        let layout = match activation.layout() {
            GateLayout::Halves => 0,
            GateLayout::Interleaved => 1,
            GateLayout::Ungated => 2,
        };
        Self { kind, layout, parameters: [a, b] }
    }
}

impl Function {
    /// None: the numbers are activated already.
    const DONE: Self = Self { kind: 9, layout: 2, parameters: [0.0; 2] };
}

/// What is activated.
#[derive(Debug, Clone, Copy)]
pub struct ActivationForm {
    /// The function.
    pub activation: Activation,
    /// `I`.
    pub intermediate_size: usize,
    /// Whether rows lie by expert (the aligned form) and pairs have positions.
    pub sorted: bool,
    /// Rows of a block, where sorted rows of gates and then ups have biases.
    pub biased: Option<usize>,
}

impl ActivationForm {
    fn check<A: Element>(&self) -> Result<(), MoeError> {
        self.activation.validate()?;
        if self.biased.is_some() && !(self.sorted && self.activation.layout() == GateLayout::Halves)
        {
            let allowed = "sorted rows of gates and then ups";
            return Err(MoeError::config("rows with biases", format!("{self:?}"), allowed));
        }
        match (size_of::<A>(), self.activation.layout()) {
            // Interleaved numbers are loaded two at a time, as one word.
            (2, _) | (4, GateLayout::Halves | GateLayout::Ungated) => Ok(()),
            _ => Err(MoeError::config("interleaved numbers", A::NAME, "bf16 or f16 on a GPU")),
        }
    }

    /// The constants that both kernels begin with.
    fn constants(&self, Function { kind, layout, .. }: Function) -> [i32; 5] {
        let (columns, biased) = (self.intermediate_size as i32, self.biased.unwrap_or(0) as i32);
        [kind, layout, columns, i32::from(self.sorted), biased]
    }

    /// Columns of a block: few of them may be beyond the end of a row.
    fn block_columns(&self) -> usize {
        let columns = self.intermediate_size;
        let fits = |block: &usize| columns.next_multiple_of(*block) - columns <= columns / 8;
        [1024, 512, 256].into_iter().find(fits).unwrap_or(BLOCK)
    }

    /// Grid for blocks of this shape.
    fn grid(&self, pairs: usize, [rows, columns]: [usize; 2]) -> [usize; 3] {
        [pairs.div_ceil(rows), self.intermediate_size.div_ceil(columns), 1]
    }
}

/// Rows that are activated.
#[derive(Debug, Clone, Copy)]
pub struct GateUp<'a, A: Element> {
    /// Rows of the first product, by pair or by position.
    pub rows: DeviceSlice<'a, A>,
    /// `T * K`.
    pub pairs: usize,
    /// With sorted rows: where the row of each pair lies, inside of `rows` and of the result; -1:
    /// nowhere.
    pub positions: Option<DeviceSlice<'a, i32>>,
    /// Present exactly when the form says so; `[E, 2, I]`.
    pub biases: Option<RowBiases<'a>>,
}

impl<A: Element> GateUp<'_, A> {
    fn arguments(&self, form: &ActivationForm) -> Result<Arguments, MoeError> {
        assert_eq!(self.positions.is_some(), form.sorted, "this is a bug: positions and their use");
        let biased = form.biased.is_some();
        assert_eq!(self.biases.is_some(), biased, "this is a bug: biases and their use");
        let arguments = Arguments::new().slice(self.rows).slice(self.rows);
        match self.positions {
            None => {
                let columns = form.activation.input_columns(form.intermediate_size);
                self.rows.expect_len("rows to activate", self.pairs * columns)?;
                Ok(arguments.no_slice())
            }
            Some(positions) => {
                positions.expect_len("positions of pairs", self.pairs)?;
                Ok(arguments.slice(positions))
            }
        }
    }
}

/// `arguments` and the biases, which stand behind all others.
fn with_biases(arguments: Arguments, biases: Option<RowBiases<'_>>) -> Arguments {
    match biases {
        None => arguments.no_slice().no_slice(),
        Some(RowBiases { expert_ids, biases }) => arguments.slice(expert_ids).slice(biases),
    }
}

/// Kernels for few pairs and for many, with the rows and columns of their blocks.
type Shaped = [(Kernel, [usize; 2]); 2];

fn choose(kernels: &Shaped, pairs: usize) -> &(Kernel, [usize; 2]) {
    &kernels[usize::from(pairs >= MANY_PAIRS)]
}

/// Activation alone.
#[derive(Debug, Clone)]
pub struct Activate<A> {
    kernels: Shaped,
    form: ActivationForm,
    element: PhantomData<A>,
}

impl<A: Element> Activate<A> {
    /// Asks for the kernels.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when one is missing and cannot be made, [`MoeError::Config`] for
    /// parameters that are illegal or numbers of other than two bytes.
    pub fn load(kernels: &mut Kernels, form: ActivationForm) -> Result<Self, MoeError> {
        form.check::<A>()?;
        let mut load = |numbers: usize| {
            let columns = form.block_columns();
            let shape = [numbers / columns, columns];
            let module = kernels::__module_ast_self;
            let spec = KernelSpec::new("activation/activate", module, "kernels", "activate_rows")
                .element(A::NAME)
                .generics(form.constants(form.activation.into()))
                .generics(shape.map(|size| size as i32))
                .pointers(["input", "words", "positions", "out", "expert_ids", "biases"])
                .warps(4)
                .programmatic();
            Ok::<_, MoeError>((kernels.get(&spec)?, shape))
        };
        let kernels = [load(BLOCK_NUMBERS[0])?, load(BLOCK_NUMBERS[1])?];
        Ok(Self { kernels, form, element: PhantomData })
    }

    /// Activates the rows of all pairs into `out`, `I` numbers a row at the same places.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when a slice is too short or the launch fails.
    ///
    /// # Panics
    /// When there are positions without sorted rows, or none with them.
    pub fn launch(
        &self,
        stream: &Stream,
        input: GateUp<'_, A>,
        out: &mut DeviceSliceMut<'_, A>,
    ) -> Result<(), MoeError> {
        let arguments = input.arguments(&self.form)?;
        if !self.form.sorted {
            out.expect_len("activated rows", input.pairs * self.form.intermediate_size)?;
        }
        let [a, b] = Function::from(self.form.activation).parameters;
        let arguments = arguments.slice_mut(out).size(input.pairs).f32(a).f32(b);
        let arguments = with_biases(arguments, input.biases);
        let (kernel, shape) = choose(&self.kernels, input.pairs);
        let grid = self.form.grid(input.pairs, *shape);
        // SAFETY: the arguments are the kernel's, with the lengths checked above.
        unsafe { kernel.launch(stream, grid, arguments) }?;
        Ok(())
    }
}

/// Activation and quantisation in one, without rounding in between.
#[derive(Debug, Clone)]
pub struct ActivateQuantize<A> {
    kernels: Shaped,
    form: ActivationForm,
    function: Function,
    granularity: Granularity,
    element: PhantomData<A>,
}

impl<A: Element> ActivateQuantize<A> {
    /// Asks for the kernels.
    ///
    /// # Errors
    /// As [`Activate::load`], and [`MoeError::Config`] for a row with one scale and more than
    /// [`ROW_COLUMNS_MAX`] columns.
    pub fn load(
        kernels: &mut Kernels,
        form: ActivationForm,
        granularity: Granularity,
    ) -> Result<Self, MoeError> {
        form.check::<A>()?;
        Self::load_function(kernels, form, form.activation.into(), granularity)
    }

    /// Asks for the kernels that quantise the rows of sorted pairs, `I` numbers each, which a product
    /// has activated already.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_activated(
        kernels: &mut Kernels,
        intermediate_size: usize,
        granularity: Granularity,
    ) -> Result<Self, MoeError> {
        let activation = Activation::SiluNoMul;
        let form = ActivationForm { activation, intermediate_size, sorted: true, biased: None };
        Self::load_function(kernels, form, Function::DONE, granularity)
    }

    fn load_function(
        kernels: &mut Kernels,
        form: ActivationForm,
        function: Function,
        granularity: Granularity,
    ) -> Result<Self, MoeError> {
        let columns = form.intermediate_size;
        if granularity == Granularity::Rows && columns > ROW_COLUMNS_MAX {
            let allowed = format!("at most {ROW_COLUMNS_MAX} with one scale a row");
            return Err(MoeError::config("columns of quantised rows", columns, allowed));
        }
        let mut load = |numbers: usize| {
            let (block, width) = match granularity {
                Granularity::Groups => (form.block_columns(), BLOCK),
                Granularity::Rows => (columns.next_power_of_two(), columns.next_power_of_two()),
            };
            let rows = (numbers / block).max(1);
            let shape = [rows, block, block / width, width, granularity.groups(columns)];
            let module = kernels::__module_ast_self;
            let spec = KernelSpec::new(
                "activation/activate_quantize",
                module,
                "kernels",
                "activate_to_codes",
            )
            .element(A::NAME)
            .generics(form.constants(function))
            .generics(shape.map(|size| size as i32))
            .pointers(["input", "words", "positions", "codes", "scales", "expert_ids", "biases"])
            .warps(if block > 4096 { 8 } else { 4 })
            .needs(Architecture::Sm90)
            .programmatic();
            Ok::<_, MoeError>((kernels.get(&spec)?, [rows, block]))
        };
        let kernels = [load(BLOCK_NUMBERS[0])?, load(BLOCK_NUMBERS[1])?];
        Ok(Self { kernels, form, function, granularity, element: PhantomData })
    }

    /// Activates the rows of all pairs into codes and scales, a row at the same place.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when a slice is too short or the launch fails.
    ///
    /// # Panics
    /// When there are positions without sorted rows, or none with them.
    pub fn launch(
        &self,
        stream: &Stream,
        input: GateUp<'_, A>,
        out: &mut QuantizedRows<'_>,
    ) -> Result<(), MoeError> {
        let arguments = input.arguments(&self.form)?;
        let columns = self.form.intermediate_size;
        let groups = self.granularity.groups(columns);
        if !self.form.sorted {
            out.expect_rows(input.pairs, columns, groups)?;
        }
        let [row_stride, group_stride] = out.scale_strides(groups);
        let [a, b] = self.function.parameters;
        let arguments = arguments
            .slice_mut(&out.codes)
            .slice_mut(&out.scales)
            .size(input.pairs)
            .size(row_stride)
            .size(group_stride)
            .f32(out.bounds.least)
            .f32(out.bounds.most)
            .f32(a)
            .f32(b);
        let arguments = with_biases(arguments, input.biases);
        let (kernel, shape) = choose(&self.kernels, input.pairs);
        let grid = self.form.grid(input.pairs, *shape);
        // SAFETY: the arguments are the kernel's, with the lengths checked above.
        unsafe { kernel.launch(stream, grid, arguments) }?;
        Ok(())
    }
}
