//! Combine on the GPU: a block sums one stretch of columns of one token, all its rows in flight at
//! once. The tile depends on `H` alone, so the bits of a token never depend on the batch.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use std::marker::PhantomData;

use artel_device::cuda::{
    Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};

use crate::MoeError;
use crate::quant::Element;

/// Threads of a block; each loads 16 bytes of every row.
const THREADS: usize = 128;

#[cutile::module]
mod kernels {
    use crate::cuda::device_code::*;
    use cutile::core::*;

    /// Weights of the pairs, zero where `is_slot` is not.
    unsafe fn load_weights<const S: i32, const WEIGHTS: i32>(
        weights: *mut f32,
        pair: Tile<i32, { [S] }>,
        is_slot: Tile<bool, { [S] }>,
        after: Token,
    ) -> Tile<f32, { [S] }> {
        let mut weight: Tile<f32, { [S] }> = constant(1.0f32, const_shape![S]);
        if WEIGHTS > 0i32 {
            // SAFETY: the caller vouches for one weight a pair.
            weight = unsafe { gather(weights, pair, is_slot, 0.0f32, after) };
        }
        if WEIGHTS == 2i32 {
            // Bfloat16 in the low half of a packed pair.
            let packed: Tile<i32, { [S] }> = bitcast(weight);
            let sixteen: Tile<i32, { [S] }> = constant(16i32, const_shape![S]);
            weight = bitcast(packed << sixteen);
        }
        weight
    }

    /// The ids of packed pairs where `ORDER` says that they are packed; else what is given.
    fn ids_of<const S: i32, const ORDER: i32>(given: Tile<i32, { [S] }>) -> Tile<i32, { [S] }> {
        let mut ids: Tile<i32, { [S] }> = given;
        if ORDER == 1i32 {
            let sixteen: Tile<i32, { [S] }> = constant(16i32, const_shape![S]);
            ids = given >> sixteen;
        }
        ids
    }

    /// The sum of the rows that are added, each times its weight. Rows outside `is_read` are not
    /// touched.
    unsafe fn sum_of_rows<T: ElementType, const S: i32, const H: i32, const BLOCK: i32>(
        rows: *mut T,
        row: Tile<i32, { [S] }>,
        is_read: Tile<bool, { [S] }>,
        is_added: Tile<bool, { [S] }>,
        weight: Tile<f32, { [S] }>,
        column: Tile<i32, { [BLOCK] }>,
        after: Token,
    ) -> Tile<f32, { [BLOCK] }> {
        let is_column: Tile<bool, { [BLOCK] }> = below(column, H);
        let offsets: Tile<i64, { [S, BLOCK] }> = block_offsets(row, H, column);
        let mask: Tile<bool, { [S, BLOCK] }> = block_mask(is_read, is_column);
        // SAFETY: the caller vouches for the rows that are read.
        let values: Tile<T, { [S, BLOCK] }> = unsafe { gather_block(rows, offsets, mask, after) };
        let values: Tile<f32, { [S, BLOCK] }> = convert_tile(values);
        let weight: Tile<f32, { [S, 1] }> = weight.reshape(const_shape![S, 1]);
        let products: Tile<f32, { [S, BLOCK] }> = values * weight.broadcast(const_shape![S, BLOCK]);
        let mask: Tile<bool, { [S, BLOCK] }> = block_mask(is_added, is_column);
        let nothing: Tile<f32, { [S, BLOCK] }> = constant(0.0f32, const_shape![S, BLOCK]);
        reduce_sum(select(mask, products, nothing), 0i32)
    }

    /// What the zero experts of one token add.
    unsafe fn identity_term<T: ElementType, const H: i32, const BLOCK: i32>(
        weights: *mut f32,
        hidden_states: *mut T,
        token: i32,
        column: Tile<i32, { [BLOCK] }>,
        after: Token,
    ) -> Tile<f32, { [BLOCK] }> {
        let row: Tile<i32, { [1] }> = count_from::<1>(token);
        let always: Tile<bool, { [1] }> = constant(true, const_shape![1]);
        // SAFETY: the caller vouches for a weight of this token.
        let weight: Tile<f32, { [1] }> = unsafe { gather(weights, row, always, 0.0f32, after) };
        // SAFETY: and for its hidden state.
        unsafe {
            sum_of_rows::<T, 1, H, BLOCK>(hidden_states, row, always, always, weight, column, after)
        }
    }

    /// `sum` and the same of the biases of rows, whose blocks of `ROWS` say whose they are.
    unsafe fn with_biases<const S: i32, const H: i32, const BLOCK: i32, const ROWS: i32>(
        sum: Tile<f32, { [BLOCK] }>,
        expert_ids: *mut i32,
        biases: *mut f32,
        row: Tile<i32, { [S] }>,
        weight: Tile<f32, { [S] }>,
        column: Tile<i32, { [BLOCK] }>,
        after: Token,
    ) -> Tile<f32, { [BLOCK] }> {
        let none: Tile<i32, { [S] }> = constant(-1i32, const_shape![S]);
        let rows_of_block: Tile<i32, { [S] }> = broadcast_scalar(ROWS, const_shape![S]);
        let is_row: Tile<bool, { [S] }> = gt_tile(row, none);
        // SAFETY: the caller vouches for the blocks of the rows.
        let expert: Tile<i32, { [S] }> =
            unsafe { gather(expert_ids, row / rows_of_block, is_row, -1i32, after) };
        let is_added: Tile<bool, { [S] }> = is_row & gt_tile(expert, none);
        // SAFETY: the caller vouches for the biases of these experts.
        let of_biases: Tile<f32, { [BLOCK] }> = unsafe {
            sum_of_rows::<f32, S, H, BLOCK>(
                biases, expert, is_added, is_added, weight, column, after,
            )
        };
        sum + of_biases
    }

    unsafe fn store_sum<T: ElementType, const H: i32, const BLOCK: i32>(
        out: *mut T,
        token: i32,
        column: Tile<i32, { [BLOCK] }>,
        sum: Tile<f32, { [BLOCK] }>,
        after: Token,
    ) {
        let row: Tile<i32, { [1] }> = count_from::<1>(token);
        let always: Tile<bool, { [1] }> = constant(true, const_shape![1]);
        let offsets: Tile<i64, { [1, BLOCK] }> = block_offsets(row, H, column);
        let mask: Tile<bool, { [1, BLOCK] }> = block_mask(always, below(column, H));
        let sum: Tile<T, { [BLOCK] }> = convert_tile(sum);
        // SAFETY: the caller vouches for a row of this token.
        unsafe { scatter_block(out, offsets, mask, sum.reshape(const_shape![1, BLOCK]), after) };
    }

    /// `SLOTS`: `K` rounded up to a power of two. `ORDER` 0: rows lie by pair and `selectors` holds
    /// ids; 1: the same, packed ids; 2: `selectors` holds the position of each row, -1 for none.
    /// `WEIGHTS` 0: one; 1: float32; 2: packed. `BIASED`: rows of the blocks of sorted rows where `biases`
    /// `[E, H]` are added to rows before they are weighted, else 0.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn weighted_sum<
        T: ElementType,
        const K: i32,
        const SLOTS: i32,
        const H: i32,
        const BLOCK: i32,
        const ORDER: i32,
        const WEIGHTS: i32,
        const IDENTITY: i32,
        const BIASED: i32,
        const PDL: i32,
    >(
        rows: *mut T,
        selectors: *mut i32,
        weights: *mut f32,
        identity_weights: *mut f32,
        hidden_states: *mut T,
        out: *mut T,
        num_experts: i32,
        expert_ids: *mut i32,
        biases: *mut f32,
    ) {
        let token: i32 = get_tile_block_id().0;
        // SAFETY: launched as its specification says, after whatever wrote the operands.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let slot: Tile<i32, { [SLOTS] }> = count_from::<SLOTS>(0i32);
        let is_slot: Tile<bool, { [SLOTS] }> = below(slot, K);
        let pair: Tile<i32, { [SLOTS] }> = count_from::<SLOTS>(token * K);
        // SAFETY: selectors hold `K` elements a token.
        let chosen: Tile<i32, { [SLOTS] }> =
            unsafe { gather(selectors, pair, is_slot, -1i32, ready) };
        // SAFETY: as above.
        let weight: Tile<f32, { [SLOTS] }> =
            unsafe { load_weights::<SLOTS, WEIGHTS>(weights, pair, is_slot, ready) };
        let chosen: Tile<i32, { [SLOTS] }> = ids_of::<SLOTS, ORDER>(chosen);
        let none: Tile<i32, { [SLOTS] }> = constant(-1i32, const_shape![SLOTS]);
        let mut is_added: Tile<bool, { [SLOTS] }> = gt_tile(chosen, none);
        let mut row: Tile<i32, { [SLOTS] }> = pair;
        let mut is_read: Tile<bool, { [SLOTS] }> = is_slot;
        if ORDER == 2i32 {
            row = chosen;
            is_read = is_added;
        } else {
            // Rows lie where they lie: they are asked for before the ids are known.
            is_added = is_added & below(chosen, num_experts);
        }
        let column: Tile<i32, { [BLOCK] }> = count_from::<BLOCK>(get_tile_block_id().1 * BLOCK);
        // SAFETY: there are `K` rows a token, or as many as the largest position says.
        let mut sum: Tile<f32, { [BLOCK] }> = unsafe {
            sum_of_rows::<T, SLOTS, H, BLOCK>(rows, row, is_read, is_added, weight, column, ready)
        };
        if BIASED > 0i32 {
            // SAFETY: every block in use has an expert, and every expert `H` biases.
            sum = unsafe {
                with_biases::<SLOTS, H, BLOCK, BIASED>(
                    sum, expert_ids, biases, chosen, weight, column, ready,
                )
            };
        }
        if IDENTITY == 1i32 {
            // SAFETY: one weight and `H` numbers a token.
            let term: Tile<f32, { [BLOCK] }> = unsafe {
                identity_term::<T, H, BLOCK>(identity_weights, hidden_states, token, column, ready)
            };
            sum = term + sum;
        }
        // SAFETY: out is `[T, H]`.
        unsafe { store_sum::<T, H, BLOCK>(out, token, column, sum, ready) };
    }
}

/// Where the rows to combine lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// Row `p` belongs to pair `p` (the direct form); selectors are ids.
    Pairs,
    /// The same; selectors are packed pairs.
    PackedPairs,
    /// By expert (the aligned form); selectors are the position of each pair, -1: skipped.
    Sorted,
}

/// Where weights come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightForm {
    /// All are one: the router's weights are applied in another step.
    One,
    /// float32.
    Routed,
    /// The low halves of packed pairs.
    Packed,
}

/// What is combined how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CombineForm {
    /// `K`.
    pub top_k: usize,
    /// `H`.
    pub hidden_size: usize,
    /// Where rows lie.
    pub order: RowOrder,
    /// Where weights come from.
    pub weights: WeightForm,
    /// Whether zero experts add a share of the hidden states.
    pub identity: bool,
    /// Rows of a block of sorted rows, where biases of experts are added.
    pub biased: Option<usize>,
}

/// Weights of the pairs.
#[derive(Debug, Clone, Copy)]
pub enum PairWeights<'a> {
    /// One.
    One,
    /// `[T * K]`.
    Routed(DeviceSlice<'a, f32>),
    /// `[T * K]`, packed with ids that are not looked at.
    Packed(DeviceSlice<'a, i32>),
}

/// What zero experts add.
#[derive(Debug, Clone, Copy)]
pub struct IdentityShare<'a, A: Element> {
    /// Share of each token, `[T]`.
    pub weights: DeviceSlice<'a, f32>,
    /// `[T, H]`.
    pub hidden_states: DeviceSlice<'a, A>,
}

/// What is added to sorted rows of `N` numbers.
#[derive(Debug, Clone, Copy)]
pub struct RowBiases<'a> {
    /// Expert of each block of rows.
    pub expert_ids: DeviceSlice<'a, i32>,
    /// `[E, N]`.
    pub biases: DeviceSlice<'a, f32>,
}

/// Operands of one launch.
#[derive(Debug, Clone, Copy)]
pub struct CombineOperands<'a, A: Element> {
    /// Output of the experts, `H` numbers a row. By pair there are `T * K` rows, all of them readable.
    pub rows: DeviceSlice<'a, A>,
    /// `[T * K]`: ids, packed pairs or positions, as [`RowOrder`] says. Positions must lie inside `rows`.
    pub selectors: DeviceSlice<'a, i32>,
    /// Ids from 0 up to this exist. Positions do not pass through it.
    pub num_experts: usize,
    /// Weights of the pairs.
    pub weights: PairWeights<'a>,
    /// Present exactly when the form says so.
    pub identity: Option<IdentityShare<'a, A>>,
    /// Present exactly when the form says so.
    pub biases: Option<RowBiases<'a>>,
}

impl<A: Element> CombineOperands<'_, A> {
    fn fits(&self, form: &CombineForm) -> bool {
        let weights = match self.weights {
            PairWeights::One => WeightForm::One,
            PairWeights::Routed(_) => WeightForm::Routed,
            PairWeights::Packed(_) => WeightForm::Packed,
        };
        weights == form.weights
            && self.identity.is_some() == form.identity
            && self.biases.is_some() == form.biased.is_some()
    }
}

/// The combine kernel of one form.
#[derive(Debug, Clone)]
pub struct Combine<A> {
    kernel: Kernel,
    form: CombineForm,
    block: usize,
    element: PhantomData<A>,
}

impl<A: Element> Combine<A> {
    /// Asks for the kernel.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when it is missing and cannot be made, [`MoeError::Config`] for biases of
    /// rows that are not sorted.
    pub fn load(kernels: &mut Kernels, form: CombineForm) -> Result<Self, MoeError> {
        if form.biased.is_some() && form.order != RowOrder::Sorted {
            let found = format!("{:?}", form.order);
            return Err(MoeError::config("order of rows with biases", found, "Sorted"));
        }
        let block = (THREADS * 16 / size_of::<A>()).min(form.hidden_size.next_power_of_two());
        let order = match form.order {
            RowOrder::Pairs => 0,
            RowOrder::PackedPairs => 1,
            RowOrder::Sorted => 2,
        };
        let weights = match form.weights {
            WeightForm::One => 0,
            WeightForm::Routed => 1,
            WeightForm::Packed => 2,
        };
        let slots = form.top_k.next_power_of_two();
        let sizes = [form.top_k, slots, form.hidden_size, block].map(|size| size as i32);
        let module = kernels::__module_ast_self;
        let spec = KernelSpec::new("combine/weighted_sum", module, "kernels", "weighted_sum")
            .element(A::NAME)
            .generics(sizes.into_iter().chain([order, weights, i32::from(form.identity)]))
            .generics([form.biased.unwrap_or(0) as i32])
            .pointers(["rows", "selectors", "weights", "identity_weights", "hidden_states", "out"])
            .pointers(["expert_ids", "biases"])
            .warps(THREADS / 32)
            .programmatic();
        Ok(Self { kernel: kernels.get(&spec)?, form, block, element: PhantomData })
    }

    /// Sums the rows of `tokens` tokens into `out` `[T, H]`.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when a slice is too short or the launch fails.
    ///
    /// # Panics
    /// When the operands are not those of the form that was loaded.
    pub fn launch(
        &self,
        stream: &Stream,
        tokens: usize,
        operands: &CombineOperands<'_, A>,
        out: &mut DeviceSliceMut<'_, A>,
    ) -> Result<(), MoeError> {
        assert!(operands.fits(&self.form), "this is a bug: operands of another combine");
        let CombineForm { top_k, hidden_size, order, .. } = self.form;
        let pairs = tokens * top_k;
        operands.selectors.expect_len("selectors of rows to combine", pairs)?;
        out.expect_len("combined hidden states", tokens * hidden_size)?;
        if order != RowOrder::Sorted {
            operands.rows.expect_len("rows to combine", pairs * hidden_size)?;
        }
        let arguments = Arguments::new().slice(operands.rows).slice(operands.selectors);
        let arguments = match operands.weights {
            PairWeights::One => arguments.no_slice(),
            PairWeights::Routed(weights) => {
                weights.expect_len("router weights", pairs)?;
                arguments.slice(weights)
            }
            PairWeights::Packed(packed) => {
                packed.expect_len("packed router weights", pairs)?;
                arguments.slice(packed)
            }
        };
        let arguments = match operands.identity {
            None => arguments.no_slice().no_slice(),
            Some(IdentityShare { weights, hidden_states }) => {
                weights.expect_len("identity weights", tokens)?;
                hidden_states.expect_len("hidden states of the identity", tokens * hidden_size)?;
                arguments.slice(weights).slice(hidden_states)
            }
        };
        let arguments = arguments.slice_mut(out).size(operands.num_experts);
        let arguments = match operands.biases {
            None => arguments.no_slice().no_slice(),
            Some(RowBiases { expert_ids, biases }) => {
                let expected = operands.num_experts * hidden_size;
                biases.expect_len("biases of the experts", expected)?;
                arguments.slice(expert_ids).slice(biases)
            }
        };
        let grid = [tokens, hidden_size.div_ceil(self.block), 1];
        // SAFETY: the arguments are the kernel's, with the lengths checked above.
        unsafe { self.kernel.launch(stream, grid, arguments) }?;
        Ok(())
    }
}
