//! The gate and routing on the GPU: hidden states to experts in two launches.
//!
//! A few tokens cannot keep the memory busy while one block after the other adds over `H`. So `H`
//! is cut into parts, one block for each part, 16 experts and 64 tokens; every block writes its
//! partial logits, and routing adds the parts in order, so that the result does not depend on which
//! block was first. Twice the tokens are twice the blocks, so there are half the parts, until one
//! is left; beyond [`NARROW_TOKENS_MAX`] tokens blocks have 64 experts, so that hidden states are read less
//! often. Routing is a launch of its own,
//! which starts before this one has ended: in one launch the last block alone would have to route
//! every token.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use artel_device::cuda::{
    Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};
use bytemuck::Pod;
use half::bf16;

use crate::MoeError;
use crate::router::RouterConfig;
use crate::router::cuda::{Route, RouteBuffers};

#[cutile::module]
mod kernels {
    use crate::cuda::device_code::*;
    use cutile::core::*;

    /// `parts[p, t, e]` is the product of token `t` and expert `e` over part `p` of `H`; grid
    /// `[E / BE, parts, T / BT]`. `EXACT = 1`: weights are float32 and multiplied as three
    /// bfloat16 that add up to them.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn gate_parts<
        W: ElementType,
        const BT: i32,
        const BE: i32,
        const BK: i32,
        const STEPS: i32,
        const HIDDEN: i32,
        const LOGITS: i32,
        const HAS_BIAS: i32,
        const EXACT: i32,
        const PDL: i32,
    >(
        parts: *mut f32,
        hidden: *mut bf16,
        weight: *mut W,
        bias: *mut f32,
        tokens: i32,
    ) {
        let first_expert: i32 = get_tile_block_id().0 * BE;
        let part: i32 = get_tile_block_id().1;
        let first_token: i32 = get_tile_block_id().2 * BT;
        let first: i32 = part * STEPS * BK;
        // The first weights are under way while the kernel before ends.
        // SAFETY: rows below `LOGITS`, columns of this part. Nobody writes weights.
        let w: Tile<W, { [BE, BK] }> = unsafe {
            load_rows::<W, BE, BK, HIDDEN>(
                weight,
                first_expert,
                LOGITS,
                first,
                new_token_unordered(),
            )
        };
        // SAFETY: launched as its specification says.
        let ready: Token = unsafe { hand_over::<PDL>() };
        // SAFETY: rows below `tokens`, columns of this part.
        let x: Tile<bf16, { [BT, BK] }> =
            unsafe { load_rows::<bf16, BT, BK, HIDDEN>(hidden, first_token, tokens, first, ready) };
        let zero: Tile<f32, { [BT, BE] }> = constant(0.0f32, const_shape![BT, BE]);
        let mut sum: Tile<f32, { [BT, BE] }> = add_product::<W, BT, BE, BK, EXACT>(x, w, zero);
        if STEPS > 1i32 {
            for step in 1i32..STEPS {
                let next: i32 = first + step * BK;
                // SAFETY: as above.
                let w: Tile<W, { [BE, BK] }> = unsafe {
                    load_rows::<W, BE, BK, HIDDEN>(
                        weight,
                        first_expert,
                        LOGITS,
                        next,
                        new_token_unordered(),
                    )
                };
                // SAFETY: as above.
                let x: Tile<bf16, { [BT, BK] }> = unsafe {
                    load_rows::<bf16, BT, BK, HIDDEN>(hidden, first_token, tokens, next, ready)
                };
                sum = add_product::<W, BT, BE, BK, EXACT>(x, w, sum);
            }
        }
        // SAFETY: the masks keep to the part of `tokens` rows of `LOGITS` elements.
        unsafe { store_part::<BT, BE, LOGITS, HAS_BIAS>(parts, bias, sum, tokens, ready) };
    }

    /// `sum` and the product of rows and weights.
    fn add_product<
        W: ElementType,
        const BT: i32,
        const BE: i32,
        const BK: i32,
        const EXACT: i32,
    >(
        x: Tile<bf16, { [BT, BK] }>,
        w: Tile<W, { [BE, BK] }>,
        sum: Tile<f32, { [BT, BE] }>,
    ) -> Tile<f32, { [BT, BE] }> {
        let mut sum: Tile<f32, { [BT, BE] }> = sum;
        if EXACT == 1i32 {
            let w: Tile<f32, { [BE, BK] }> = convert_tile(w);
            let high: Tile<bf16, { [BE, BK] }> = convert_tile(w);
            let rest: Tile<f32, { [BE, BK] }> = w - widen::<BE, BK>(high);
            let middle: Tile<bf16, { [BE, BK] }> = convert_tile(rest);
            let rest: Tile<f32, { [BE, BK] }> = rest - widen::<BE, BK>(middle);
            let low: Tile<bf16, { [BE, BK] }> = convert_tile(rest);
            sum = mmaf(x, low.transpose(), sum);
            sum = mmaf(x, middle.transpose(), sum);
            sum = mmaf(x, high.transpose(), sum);
        } else {
            let w: Tile<bf16, { [BE, BK] }> = convert_tile(w);
            sum = mmaf(x, w.transpose(), sum);
        }
        sum
    }

    /// Rows from `first_row` up to `rows` and columns from `first` on of a matrix of `HIDDEN`
    /// columns; anything in rows beyond, which no stored sum depends on.
    unsafe fn load_rows<E: ElementType, const ROWS: i32, const BK: i32, const HIDDEN: i32>(
        base: *mut E,
        first_row: i32,
        rows: i32,
        first: i32,
        after: Token,
    ) -> Tile<E, { [ROWS, BK] }> {
        let row: Tile<i32, { [ROWS] }> = count_from::<ROWS>(first_row);
        let row: Tile<i32, { [ROWS, 1] }> = row.reshape(const_shape![ROWS, 1]);
        let row: Tile<i32, { [ROWS, BK] }> = row.broadcast(const_shape![ROWS, BK]);
        let column: Tile<i32, { [BK] }> = count_from::<BK>(first);
        let column: Tile<i32, { [1, BK] }> = column.reshape(const_shape![1, BK]);
        let column: Tile<i32, { [ROWS, BK] }> = column.broadcast(const_shape![ROWS, BK]);
        let row_len: Tile<i32, { [ROWS, BK] }> = broadcast_scalar(HIDDEN, const_shape![ROWS, BK]);
        let end: Tile<i32, { [ROWS, BK] }> = broadcast_scalar(rows, const_shape![ROWS, BK]);
        let pointer: PointerTile<*mut E, { [] }> = pointer_to_tile(base);
        let pointer: PointerTile<*mut E, { [1, 1] }> = pointer.reshape(const_shape![1, 1]);
        let pointer: PointerTile<*mut E, { [ROWS, BK] }> =
            pointer.broadcast(const_shape![ROWS, BK]);
        let pointer: PointerTile<*mut E, { [ROWS, BK] }> =
            pointer.offset_tile(row * row_len + column);
        // SAFETY: the caller vouches for the columns; the mask keeps to the rows.
        let (values, _read): (Tile<E, { [ROWS, BK] }>, Token) = unsafe {
            load_ptr_tko(
                pointer,
                ordering::Weak,
                None::<scope::TileBlock>,
                Some(lt_tile(row, end)),
                None,
                Some(after),
                Latency::<0>,
            )
        };
        values
    }

    fn widen<const A: i32, const B: i32>(x: Tile<bf16, { [A, B] }>) -> Tile<f32, { [A, B] }> {
        convert_tile(x)
    }

    /// Stores the partial logits; the first part brings the bias.
    unsafe fn store_part<const BT: i32, const BE: i32, const LOGITS: i32, const HAS_BIAS: i32>(
        parts: *mut f32,
        bias: *mut f32,
        sum: Tile<f32, { [BT, BE] }>,
        tokens: i32,
        after: Token,
    ) {
        let part: i32 = get_tile_block_id().1;
        let expert: Tile<i32, { [BE] }> = count_from::<BE>(get_tile_block_id().0 * BE);
        let experts: Tile<i32, { [BE] }> = broadcast_scalar(LOGITS, const_shape![BE]);
        let is_expert: Tile<bool, { [BE] }> = lt_tile(expert, experts);
        let mut sum: Tile<f32, { [BT, BE] }> = sum;
        if HAS_BIAS == 1i32 {
            if part == 0i32 {
                // SAFETY: the mask keeps to `LOGITS` elements.
                let bias: Tile<f32, { [BE] }> =
                    unsafe { gather(bias, expert, is_expert, 0.0f32, after) };
                let bias: Tile<f32, { [1, BE] }> = bias.reshape(const_shape![1, BE]);
                sum = sum + bias.broadcast(const_shape![BT, BE]);
            }
        }
        let expert: Tile<i32, { [1, BE] }> = expert.reshape(const_shape![1, BE]);
        let expert: Tile<i32, { [BT, BE] }> = expert.broadcast(const_shape![BT, BE]);
        let token: Tile<i32, { [BT] }> = count_from::<BT>(get_tile_block_id().2 * BT);
        let token: Tile<i32, { [BT, 1] }> = token.reshape(const_shape![BT, 1]);
        let token: Tile<i32, { [BT, BE] }> = token.broadcast(const_shape![BT, BE]);
        let row_len: Tile<i32, { [BT, BE] }> = broadcast_scalar(LOGITS, const_shape![BT, BE]);
        let end: Tile<i32, { [BT, BE] }> = broadcast_scalar(tokens, const_shape![BT, BE]);
        let start: Tile<i32, { [BT, BE] }> =
            broadcast_scalar(part * tokens * LOGITS, const_shape![BT, BE]);
        let mask: Tile<bool, { [BT, BE] }> = lt_tile(token, end) & lt_tile(expert, row_len);
        let pointer: PointerTile<*mut f32, { [] }> = pointer_to_tile(parts);
        let pointer: PointerTile<*mut f32, { [1, 1] }> = pointer.reshape(const_shape![1, 1]);
        let pointer: PointerTile<*mut f32, { [BT, BE] }> = pointer.broadcast(const_shape![BT, BE]);
        let pointer: PointerTile<*mut f32, { [BT, BE] }> =
            pointer.offset_tile(start + token * row_len + expert);
        // SAFETY: the caller vouches for the part; the mask keeps to its rows.
        let _written: Token = unsafe {
            store_ptr_tko(
                pointer,
                sum,
                ordering::Weak,
                None::<scope::TileBlock>,
                Some(mask),
                Some(after),
                Latency::<0>,
            )
        };
    }
}

/// A number type of gate weights on the GPU.
pub trait GateElement: Pod {
    /// Its name in kernels.
    const NAME: &'static str;
    /// Whether it has more bits than bfloat16, all of which count.
    const IS_WIDE: bool;
}

impl GateElement for bf16 {
    const NAME: &'static str = "bf16";
    const IS_WIDE: bool = false;
}

impl GateElement for f32 {
    const NAME: &'static str = "f32";
    const IS_WIDE: bool = true;
}

/// Most tokens of blocks with few experts.
pub const NARROW_TOKENS_MAX: usize = 512;

/// Experts of one block, of few tokens and of many.
const BLOCK_EXPERTS: [usize; 2] = [16, 64];

/// Tokens of one block. Fewer would leave the wide matrix instructions of Hopper, which take 64
/// rows; rows without a token are not loaded.
const BLOCK_TOKENS: usize = 64;

/// What `H` must be a multiple of.
const STEP_MIN: usize = 64;

/// Columns that a block multiplies at a time.
fn step(hidden_size: usize) -> usize {
    if hidden_size.is_multiple_of(2 * STEP_MIN) { 2 * STEP_MIN } else { STEP_MIN }
}

/// Most blocks: two for each multiprocessor.
const BLOCKS_MAX: usize = 256;

/// What the gate reads, beside what routing does.
#[derive(Debug)]
pub struct GateBuffers<'a, W: Pod> {
    /// `[T, H]`, row-major.
    pub hidden: DeviceSlice<'a, bf16>,
    /// `[E, H]`, row-major.
    pub weight: DeviceSlice<'a, W>,
    /// Added to the logits, `[E]`; empty without one.
    pub logit_bias: DeviceSlice<'a, f32>,
    /// Selection bias, `[E]`; empty without one.
    pub selection_bias: DeviceSlice<'a, f32>,
    /// One number: tokens from this one on are padding.
    pub unpadded_tokens: DeviceSlice<'a, i32>,
    /// Room for [`GateRoute::parts_len`] numbers.
    pub parts: DeviceSliceMut<'a, f32>,
    /// `[T, K]`.
    pub topk_ids: DeviceSliceMut<'a, i32>,
    /// `[T, K]`.
    pub topk_weights: DeviceSliceMut<'a, f32>,
    /// `[T]`; empty without zero experts.
    pub identity_weights: DeviceSliceMut<'a, f32>,
}

/// The kernels of one gate and its router.
#[derive(Debug, Clone)]
pub struct GateRoute<W: GateElement> {
    logits: usize,
    hidden_size: usize,
    has_bias: bool,
    /// By tokens, fewest first.
    cuts: Vec<Cut>,
    element: std::marker::PhantomData<W>,
}

/// One way to cut the work of a gate.
#[derive(Debug, Clone)]
struct Cut {
    tokens_max: usize,
    block_experts: usize,
    parts: usize,
    gate: Kernel,
    route: Route<f32>,
}

impl<W: GateElement> GateRoute<W> {
    /// Asks for the kernels for up to `tokens_max` tokens; `has_bias`: the gate adds a bias to its
    /// logits.
    ///
    /// # Errors
    /// [`MoeError::Config`] when `hidden_size` is no multiple of 64 or the router is too large for
    /// a kernel, [`MoeError::Cuda`] when a kernel is missing and cannot be made.
    pub fn load(
        kernels: &mut Kernels,
        config: &RouterConfig,
        (hidden_size, has_bias): (usize, bool),
        tokens_max: usize,
    ) -> Result<Self, MoeError> {
        if hidden_size == 0 || !hidden_size.is_multiple_of(STEP_MIN) {
            return Err(MoeError::config("hidden_size", hidden_size, "a multiple of 64 on a GPU"));
        }
        let (logits, step) = (config.num_logits(), step(hidden_size));
        let mut cuts: Vec<Cut> = Vec::new();
        let mut tokens = BLOCK_TOKENS;
        while cuts.last().is_none_or(|last| last.tokens_max < tokens_max) {
            let block_experts = BLOCK_EXPERTS[usize::from(tokens > NARROW_TOKENS_MAX)];
            let blocks = BLOCKS_MAX / (tokens / BLOCK_TOKENS);
            let wanted = blocks.div_ceil(logits.div_ceil(block_experts));
            let parts = parts(hidden_size / step, wanted);
            let sizes = [BLOCK_TOKENS, block_experts, step, hidden_size / step / parts];
            let spec = Self::spec(sizes, [hidden_size, logits], has_bias);
            let (gate, route) = (kernels.get(&spec)?, Route::load_parts(kernels, config, parts)?);
            let is_last = parts == 1 && tokens > NARROW_TOKENS_MAX;
            let tokens_max = if is_last { usize::MAX } else { tokens };
            cuts.push(Cut { tokens_max, block_experts, parts, gate, route });
            tokens *= 2;
        }
        Ok(Self { logits, hidden_size, has_bias, cuts, element: std::marker::PhantomData })
    }

    fn spec(block: [usize; 4], sizes: [usize; 2], has_bias: bool) -> KernelSpec {
        let module = kernels::__module_ast_self;
        let wide_block = block[1] == BLOCK_EXPERTS[1];
        let spec = KernelSpec::new("router/gate", module, "kernels", "gate_parts")
            .element(W::NAME)
            .generics(block.into_iter().chain(sizes).map(|size| size as i32))
            .generics([i32::from(has_bias), i32::from(W::IS_WIDE)])
            .pointers(["parts", "hidden", "weight", "bias"])
            .warps(4)
            .programmatic();
        // Else many tokens have a block's buffers fill a multiprocessor alone: 31 us instead of 18 for
        // 8,192 tokens of 2,048 numbers and 128 experts.
        if wide_block && !W::IS_WIDE { spec.occupancy(2) } else { spec }
    }

    /// Numbers that the partial logits of up to `tokens` tokens are.
    pub fn parts_len(&self, tokens: usize) -> usize {
        let rows = |cut: &Cut| cut.parts * cut.tokens_max.min(tokens);
        self.cuts.iter().map(rows).max().unwrap_or(0) * self.logits
    }

    fn cut(&self, tokens: usize) -> Result<&Cut, MoeError> {
        self.cuts.iter().find(|cut| tokens <= cut.tokens_max).ok_or_else(|| {
            let most = self.cuts.last().map_or(0, |cut| cut.tokens_max);
            MoeError::config("tokens", tokens, format!("at most {most} for this gate"))
        })
    }

    /// Parts of the logits of `tokens` tokens.
    ///
    /// # Errors
    /// [`MoeError::Config`] for more tokens than the kernels were loaded for.
    pub fn parts(&self, tokens: usize) -> Result<usize, MoeError> {
        Ok(self.cut(tokens)?.parts)
    }

    /// Routes tokens.
    ///
    /// # Errors
    /// [`MoeError::Config`] for more tokens than the kernels were loaded for, [`MoeError::Cuda`] when a
    /// buffer is too short or a launch fails.
    pub fn launch(
        &self,
        stream: &Stream,
        tokens: usize,
        buffers: GateBuffers<'_, W>,
    ) -> Result<(), MoeError> {
        let cut = self.cut(tokens)?;
        let biases = if self.has_bias { self.logits } else { 0 };
        buffers.hidden.expect_len("hidden states", tokens * self.hidden_size)?;
        buffers.weight.expect_len("weights of the gate", self.logits * self.hidden_size)?;
        buffers.logit_bias.expect_len("the bias of the gate", biases)?;
        buffers.parts.expect_len("partial logits", cut.parts * tokens * self.logits)?;
        let arguments = Arguments::new()
            .slice_mut(&buffers.parts)
            .slice(buffers.hidden)
            .slice(buffers.weight)
            .slice(buffers.logit_bias)
            .size(tokens);
        let experts = self.logits.div_ceil(cut.block_experts);
        let grid = [experts, cut.parts, tokens.div_ceil(BLOCK_TOKENS)];
        // SAFETY: the arguments are the kernel's, and every buffer holds what was checked.
        unsafe { cut.gate.launch(stream, grid, arguments) }?;
        let routing = RouteBuffers {
            logits: buffers.parts.as_slice(),
            bias: buffers.selection_bias,
            unpadded_tokens: buffers.unpadded_tokens,
            topk_ids: buffers.topk_ids,
            topk_weights: buffers.topk_weights,
            identity_weights: buffers.identity_weights,
        };
        cut.route.launch(stream, tokens, routing)
    }
}

/// Equal parts of so many steps, as many as are wanted if that is possible.
fn parts(steps: usize, wanted: usize) -> usize {
    (1..=steps).rfind(|&parts| steps.is_multiple_of(parts) && parts <= wanted).unwrap_or(1)
}
