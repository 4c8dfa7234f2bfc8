//! Routing on the GPU: one launch from logits to experts and weights.
//!
//! A block is one warp and routes one token, whose logits lie in its registers; a multiprocessor
//! runs 32 of them. Everything that decides ids rounds as on the CPU: exponentials and sums are
//! computed in float64 and rounded once, and quotients are exact. Keys are compared as integers,
//! because a warp finds the largest of 32 integers in one instruction.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

mod groups;
mod numbers;
mod scores;
mod weights;

use artel_device::cuda::{
    Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};
use bytemuck::Pod;
use half::bf16;

use super::{
    Normalization, RouterConfig, Scoring, ScoringFunction, SelectedFunction, Selection,
    SelectionBias,
};
use crate::MoeError;

#[cutile::module]
mod kernels {
    use crate::cuda::device_code::*;
    use crate::router::cuda::groups::group_code::*;
    use crate::router::cuda::numbers::number_code::*;
    use crate::router::cuda::scores::score_code::*;
    use crate::router::cuda::weights::weight_code::*;
    use cutile::core::*;

    /// Experts and weights of one token a block; grid `[T, 1, 1]`.
    ///
    /// `NE` columns hold the logits: `WIDTH` columns a group, of which the first `GROUP_SIZE` are
    /// used. `logits` is `[PARTS, T, LOGITS]`, parts add up. The codes of `SCORING` and `WEIGHING`
    /// stand with the functions that take them.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn route<
        L: ElementType,
        const NE: i32,
        const WIDTH: i32,
        const PADDED_GROUPS: i32,
        const GROUP_SIZE: i32,
        const GROUPS_KEPT: i32,
        const LOGITS: i32,
        const EXPERTS: i32,
        const TOP_K: i32,
        const SLOTS: i32,
        const KP: i32,
        const SCORING: i32,
        const WEIGHING: i32,
        const BIAS: i32,
        const PARTS: i32,
        const PDL: i32,
    >(
        topk_ids: *mut i32,
        topk_weights: *mut f32,
        identity_weights: *mut f32,
        logits: *mut L,
        bias: *mut f32,
        unpadded_tokens: *mut i32,
        scaling_factor: f32,
        shared_weight: f32,
    ) {
        let id: Tile<i32, { [NE] }> = column_ids::<NE, WIDTH, GROUP_SIZE>();
        let is_logit: Tile<bool, { [NE] }> = is_logit::<NE, WIDTH, GROUP_SIZE, LOGITS>(id);
        let mut offset: Tile<f32, { [NE] }> = constant(0.0f32, const_shape![NE]);
        if BIAS == 1i32 {
            // SAFETY: the bias has an element for each logit. No kernel writes it: it need not wait.
            offset = unsafe { gather(bias, id, is_logit, 0.0f32, new_token_unordered()) };
        }
        // SAFETY: launched as its specification says.
        let ready: Token = unsafe { hand_over::<PDL>() };
        // SAFETY: one number.
        let unpadded: i32 = unsafe { load_i32(unpadded_tokens, 0i32, ready) };
        // SAFETY: the block's row of the logits.
        let logit: Tile<f32, { [NE] }> =
            unsafe { load_logits::<L, NE, LOGITS, PARTS>(logits, id, is_logit, ready) };
        let score: Tile<f32, { [NE] }> = scores::<NE, SCORING>(logit, is_logit);
        let lowest: Tile<i32, { [NE] }> = constant(-2147483647i32, const_shape![NE]);
        let mut key: Tile<i32, { [NE] }> =
            select(is_logit, order_key::<NE>(score + offset), lowest);
        if PADDED_GROUPS > 1i32 {
            key = keep_best_groups::<NE, WIDTH, PADDED_GROUPS, GROUPS_KEPT, BIAS>(key);
        }
        // No column of padding may be taken for the logit whose id it has.
        let past_all: Tile<i32, { [NE] }> = constant(2147483647i32, const_shape![NE]);
        let id: Tile<i32, { [NE] }> = select(is_logit, id, past_all);
        let (ids, picked) = select_best::<NE, KP, TOP_K, BIAS>(key, id, score);
        let weight: Tile<f32, { [KP] }> = weigh::<KP, TOP_K, WEIGHING>(picked, scaling_factor);
        let token: i32 = get_tile_block_id().0;
        let is_token: Tile<bool, { [KP] }> = is_less::<KP>(token, unpadded);
        if LOGITS > EXPERTS {
            let identity: Tile<f32, { [KP] }> =
                select_identity::<KP, EXPERTS, TOP_K>(ids, weight, is_token);
            let position: Tile<i32, { [KP] }> = broadcast_scalar(token, const_shape![KP]);
            // SAFETY: one number a block.
            unsafe { scatter(identity_weights, position, is_first::<KP>(), identity, ready) };
        }
        let (ids, weight) = fill_slots::<KP, EXPERTS, TOP_K>(ids, weight, shared_weight, is_token);
        let position: Tile<i32, { [KP] }> = count_from::<KP>(token * SLOTS);
        let is_slot: Tile<bool, { [KP] }> = is_below::<KP, SLOTS>();
        // SAFETY: the block's row of both.
        unsafe { scatter(topk_ids, position, is_slot, ids, ready) };
        // SAFETY: as above.
        unsafe { scatter(topk_weights, position, is_slot, weight, ready) };
    }

    /// The logit of each column; columns of padding have an id too, which is not theirs.
    fn column_ids<const NE: i32, const WIDTH: i32, const GROUP_SIZE: i32>() -> Tile<i32, { [NE] }> {
        let column: Tile<i32, { [NE] }> = iota(const_shape![NE]);
        let width: Tile<i32, { [NE] }> = broadcast_scalar(WIDTH, const_shape![NE]);
        let group_size: Tile<i32, { [NE] }> = broadcast_scalar(GROUP_SIZE, const_shape![NE]);
        let group: Tile<i32, { [NE] }> = column / width;
        group * group_size + (column - group * width)
    }

    /// Whether a column holds a logit.
    fn is_logit<const NE: i32, const WIDTH: i32, const GROUP_SIZE: i32, const LOGITS: i32>(
        id: Tile<i32, { [NE] }>,
    ) -> Tile<bool, { [NE] }> {
        let column: Tile<i32, { [NE] }> = iota(const_shape![NE]);
        let width: Tile<i32, { [NE] }> = broadcast_scalar(WIDTH, const_shape![NE]);
        let member: Tile<i32, { [NE] }> = column - (column / width) * width;
        let group_size: Tile<i32, { [NE] }> = broadcast_scalar(GROUP_SIZE, const_shape![NE]);
        let logits: Tile<i32, { [NE] }> = broadcast_scalar(LOGITS, const_shape![NE]);
        lt_tile(member, group_size) & lt_tile(id, logits)
    }

    /// The block's row of the logits, parts added in order.
    unsafe fn load_logits<L: ElementType, const NE: i32, const LOGITS: i32, const PARTS: i32>(
        logits: *mut L,
        id: Tile<i32, { [NE] }>,
        is_logit: Tile<bool, { [NE] }>,
        ready: Token,
    ) -> Tile<f32, { [NE] }> {
        let row: i32 = get_tile_block_id().0 * LOGITS;
        let start: Tile<i32, { [NE] }> = broadcast_scalar(row, const_shape![NE]);
        // SAFETY: the caller vouches for the row.
        let narrow: Tile<L, { [NE] }> =
            unsafe { load_row::<L, NE>(logits, start + id, is_logit, ready) };
        let mut sum: Tile<f32, { [NE] }> = convert_tile(narrow);
        if PARTS > 1i32 {
            let part_len: i32 = get_num_tile_blocks().0 * LOGITS;
            for part in 1i32..PARTS {
                let start: Tile<i32, { [NE] }> =
                    broadcast_scalar(row + part * part_len, const_shape![NE]);
                // SAFETY: as above, of the next part.
                let narrow: Tile<L, { [NE] }> =
                    unsafe { load_row::<L, NE>(logits, start + id, is_logit, ready) };
                let next: Tile<f32, { [NE] }> = convert_tile(narrow);
                sum = sum + next;
            }
        }
        sum
    }

    /// Elements at `position`; anything where `is_logit` is false, as no value is asked for.
    unsafe fn load_row<L: ElementType, const NE: i32>(
        logits: *mut L,
        position: Tile<i32, { [NE] }>,
        is_logit: Tile<bool, { [NE] }>,
        ready: Token,
    ) -> Tile<L, { [NE] }> {
        let pointer: PointerTile<*mut L, { [] }> = pointer_to_tile(logits);
        let pointer: PointerTile<*mut L, { [1] }> = pointer.reshape(const_shape![1]);
        let pointer: PointerTile<*mut L, { [NE] }> = pointer.broadcast(const_shape![NE]);
        let pointer: PointerTile<*mut L, { [NE] }> = pointer.offset_tile(position);
        // SAFETY: the caller vouches for every unmasked position.
        let (values, _read): (Tile<L, { [NE] }>, Token) = unsafe {
            load_ptr_tko(
                pointer,
                ordering::Weak,
                None::<scope::TileBlock>,
                Some(is_logit),
                None,
                Some(ready),
                Latency::<0>,
            )
        };
        values
    }

    /// Ids of the largest keys, descending, the lower id first among equals; and their scores.
    fn select_best<const NE: i32, const KP: i32, const TOP_K: i32, const BIAS: i32>(
        key: Tile<i32, { [NE] }>,
        id: Tile<i32, { [NE] }>,
        score: Tile<f32, { [NE] }>,
    ) -> (Tile<i32, { [KP] }>, Tile<f32, { [KP] }>) {
        let slot: Tile<i32, { [KP] }> = iota(const_shape![KP]);
        let mut key: Tile<i32, { [NE] }> = key;
        let mut ids: Tile<i32, { [KP] }> = constant(0i32, const_shape![KP]);
        let mut picked: Tile<i32, { [KP] }> = constant(0i32, const_shape![KP]);
        let score_key: Tile<i32, { [NE] }> = order_key::<NE>(score);
        let lowest: Tile<i32, { [NE] }> = constant(-2147483647i32, const_shape![NE]);
        let past_all: Tile<i32, { [NE] }> = constant(2147483647i32, const_shape![NE]);
        for k in 0i32..TOP_K {
            let best_key: i32 = largest::<NE>(key);
            let best_keys: Tile<i32, { [NE] }> = broadcast_scalar(best_key, const_shape![NE]);
            let candidate: Tile<i32, { [NE] }> = select(eq_tile(key, best_keys), id, past_all);
            let best_id: i32 = smallest::<NE>(candidate);
            let best_ids: Tile<i32, { [NE] }> = broadcast_scalar(best_id, const_shape![NE]);
            let taken: Tile<bool, { [NE] }> = eq_tile(id, best_ids);
            key = select(taken, lowest, key);
            let mut value: i32 = best_key;
            if BIAS == 1i32 {
                // The key is score and bias: the score is found beside it.
                let own_score: Tile<i32, { [NE] }> = select(taken, score_key, lowest);
                value = largest::<NE>(own_score);
            }
            let current: Tile<i32, { [KP] }> = broadcast_scalar(k, const_shape![KP]);
            let best_ids: Tile<i32, { [KP] }> = broadcast_scalar(best_id, const_shape![KP]);
            let values: Tile<i32, { [KP] }> = broadcast_scalar(value, const_shape![KP]);
            let here: Tile<bool, { [KP] }> = eq_tile(slot, current);
            ids = select(here, best_ids, ids);
            picked = select(here, values, picked);
        }
        (ids, from_order_key::<KP>(picked))
    }

    /// What zero experts weigh together.
    fn select_identity<const KP: i32, const EXPERTS: i32, const TOP_K: i32>(
        ids: Tile<i32, { [KP] }>,
        weight: Tile<f32, { [KP] }>,
        is_token: Tile<bool, { [KP] }>,
    ) -> Tile<f32, { [KP] }> {
        let zero: Tile<f32, { [KP] }> = constant(0.0f32, const_shape![KP]);
        let experts: Tile<i32, { [KP] }> = broadcast_scalar(EXPERTS, const_shape![KP]);
        let diverted: Tile<bool, { [KP] }> =
            is_below::<KP, TOP_K>() & ge_tile(ids, experts) & is_token;
        total::<KP>(select(diverted, weight, zero))
    }

    /// Zero experts become id 0 of weight 0, shared experts follow, padding tokens have no expert.
    fn fill_slots<const KP: i32, const EXPERTS: i32, const TOP_K: i32>(
        ids: Tile<i32, { [KP] }>,
        weight: Tile<f32, { [KP] }>,
        shared_weight: f32,
        is_token: Tile<bool, { [KP] }>,
    ) -> (Tile<i32, { [KP] }>, Tile<f32, { [KP] }>) {
        let slot: Tile<i32, { [KP] }> = iota(const_shape![KP]);
        let first: Tile<i32, { [KP] }> = constant(0i32, const_shape![KP]);
        let none: Tile<i32, { [KP] }> = constant(-1i32, const_shape![KP]);
        let zero: Tile<f32, { [KP] }> = constant(0.0f32, const_shape![KP]);
        let top_k: Tile<i32, { [KP] }> = broadcast_scalar(TOP_K, const_shape![KP]);
        let experts: Tile<i32, { [KP] }> = broadcast_scalar(EXPERTS, const_shape![KP]);
        let shared: Tile<f32, { [KP] }> = broadcast_scalar(shared_weight, const_shape![KP]);
        let is_expert: Tile<bool, { [KP] }> = lt_tile(ids, experts);
        let ids: Tile<i32, { [KP] }> = select(is_expert, ids, first);
        let weight: Tile<f32, { [KP] }> = select(is_expert, weight, zero);
        let is_routed: Tile<bool, { [KP] }> = lt_tile(slot, top_k);
        let ids: Tile<i32, { [KP] }> = select(is_routed, ids, experts + slot - top_k);
        let weight: Tile<f32, { [KP] }> = select(is_routed, weight, shared);
        (select(is_token, ids, none), select(is_token, weight, zero))
    }

    fn is_less<const KP: i32>(a: i32, b: i32) -> Tile<bool, { [KP] }> {
        let a: Tile<i32, { [KP] }> = broadcast_scalar(a, const_shape![KP]);
        let b: Tile<i32, { [KP] }> = broadcast_scalar(b, const_shape![KP]);
        lt_tile(a, b)
    }

    fn is_first<const KP: i32>() -> Tile<bool, { [KP] }> {
        is_below::<KP, 1>()
    }
}

// HOST
/// A number type of logits on the GPU.
pub trait LogitElement: Pod {
    /// Its name in kernels.
    const NAME: &'static str;
}

impl LogitElement for f32 {
    const NAME: &'static str = "f32";
}

impl LogitElement for bf16 {
    const NAME: &'static str = "bf16";
}

/// Logits that a warp holds in its registers; more are spread over four.
const WARP_LOGITS_MAX: usize = 1024;

/// Most logits that a kernel takes.
const LOGITS_MAX: usize = 4096;

/// Most slots that a kernel takes.
const SLOTS_MAX: usize = 64;

/// What routing reads and writes on the device.
#[derive(Debug)]
pub struct RouteBuffers<'a, L: Pod> {
    /// `[T, E]`, row-major.
    pub logits: DeviceSlice<'a, L>,
    /// Selection bias, `[E]`; empty without one.
    pub bias: DeviceSlice<'a, f32>,
    /// One number: tokens from this one on are padding, with ids of -1 and weights of 0.
    pub unpadded_tokens: DeviceSlice<'a, i32>,
    /// `[T, K]`.
    pub topk_ids: DeviceSliceMut<'a, i32>,
    /// `[T, K]`.
    pub topk_weights: DeviceSliceMut<'a, f32>,
    /// `[T]`; empty without zero experts.
    pub identity_weights: DeviceSliceMut<'a, f32>,
}

/// The kernel that routes as one configuration says.
#[derive(Debug, Clone)]
pub struct Route<L: LogitElement> {
    config: RouterConfig,
    parts: usize,
    kernel: Kernel,
    element: std::marker::PhantomData<L>,
}

impl<L: LogitElement> Route<L> {
    /// Asks for the kernel.
    ///
    /// # Errors
    /// [`MoeError::Config`] for more experts or slots than kernels are made for,
    /// [`MoeError::Cuda`] when the kernel is missing and cannot be made.
    pub fn load(kernels: &mut Kernels, config: &RouterConfig) -> Result<Self, MoeError> {
        Self::load_parts(kernels, config, 1)
    }

    /// The same for logits in `parts` parts, `[parts, T, E]`, which add up in order.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_parts(
        kernels: &mut Kernels,
        config: &RouterConfig,
        parts: usize,
    ) -> Result<Self, MoeError> {
        let shape = Shape::of(config)?;
        let method = config.method();
        let module = kernels::__module_ast_self;
        let spec = KernelSpec::new("router/route", module, "kernels", "route")
            .element(L::NAME)
            .generics(shape.generics(config).map(|value| value as i32))
            .generics([scoring_code(method.scoring), weighing_code(config)])
            .generics([i32::from(method.bias == SelectionBias::PerExpert), parts as i32])
            .pointers(["topk_ids", "topk_weights", "logits", "bias"])
            .warps(if shape.columns > WARP_LOGITS_MAX { 4 } else { 1 })
            .programmatic();
        let element = std::marker::PhantomData;
        Ok(Self { config: *config, parts, kernel: kernels.get(&spec)?, element })
    }

    /// Routes `tokens` tokens.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when a buffer is too short or the launch fails.
    pub fn launch(
        &self,
        stream: &Stream,
        tokens: usize,
        buffers: RouteBuffers<'_, L>,
    ) -> Result<(), MoeError> {
        let config = &self.config;
        let (logits, pairs) = (config.num_logits(), tokens * config.slots());
        let is_biased = config.method().bias == SelectionBias::PerExpert;
        let identities = if config.zero_experts() > 0 { tokens } else { 0 };
        buffers.logits.expect_len("router logits", self.parts * tokens * logits)?;
        buffers.bias.expect_len("the selection bias", if is_biased { logits } else { 0 })?;
        buffers.unpadded_tokens.expect_len("unpadded tokens", 1)?;
        buffers.topk_ids.expect_len("topk_ids", pairs)?;
        buffers.topk_weights.expect_len("topk_weights", pairs)?;
        buffers.identity_weights.expect_len("identity weights", identities)?;
        let arguments = Arguments::new()
            .slice_mut(&buffers.topk_ids)
            .slice_mut(&buffers.topk_weights)
            .slice_mut(&buffers.identity_weights)
            .slice(buffers.logits)
            .slice(buffers.bias)
            .slice(buffers.unpadded_tokens)
            .f32(config.routed_scaling_factor())
            .f32(config.fused_shared_experts().weight);
        // SAFETY: the arguments are the kernel's, and every buffer holds what a block of each token
        // reads and writes.
        unsafe { self.kernel.launch(stream, [tokens, 1, 1], arguments) }?;
        Ok(())
    }
}

/// How logits and slots are spread over tiles, whose sizes are powers of two.
struct Shape {
    columns: usize,
    width: usize,
    groups: usize,
    group_size: usize,
    groups_kept: usize,
    slots: usize,
}

impl Shape {
    fn of(config: &RouterConfig) -> Result<Self, MoeError> {
        let (groups, groups_kept) = match config.method().selection {
            Selection::TopK => (1, 1),
            Selection::Grouped { groups, groups_kept } => (groups, groups_kept),
        };
        let group_size = config.num_logits() / groups;
        let width = group_size.next_power_of_two();
        let groups = groups.next_power_of_two();
        let (columns, slots) = (groups * width, config.slots().next_power_of_two());
        if columns > LOGITS_MAX {
            let allowed = format!("at most {LOGITS_MAX} with its groups padded, on a GPU");
            return Err(MoeError::config("num_experts", config.num_logits(), allowed));
        }
        if slots > SLOTS_MAX {
            let allowed = format!("at most {SLOTS_MAX} with shared experts, on a GPU");
            return Err(MoeError::config("top_k", config.slots(), allowed));
        }
        Ok(Self { columns, width, groups, group_size, groups_kept, slots })
    }

    fn generics(&self, config: &RouterConfig) -> [usize; 10] {
        let Self { columns, width, groups, group_size, groups_kept, slots } = *self;
        let counts = [config.num_logits(), config.num_experts(), config.top_k(), config.slots()];
        let [logits, experts, top_k, used] = counts;
        [columns, width, groups, group_size, groups_kept, logits, experts, top_k, used, slots]
    }
}

fn scoring_code(scoring: Scoring) -> i32 {
    match scoring {
        Scoring::BeforeSelection(ScoringFunction::Softmax, _) => 0,
        Scoring::BeforeSelection(ScoringFunction::Sigmoid, _) => 1,
        Scoring::BeforeSelection(ScoringFunction::SqrtSoftplus, _) => 2,
        Scoring::AfterSelection(_) => 3,
    }
}

fn weighing_code(config: &RouterConfig) -> i32 {
    match (config.method().scoring, config.method().selection) {
        (Scoring::BeforeSelection(_, Normalization::AsIs), _) => 0,
        (Scoring::BeforeSelection(_, Normalization::Renormalize), Selection::TopK) => 1,
        (Scoring::BeforeSelection(_, Normalization::Renormalize), Selection::Grouped { .. }) => 2,
        (Scoring::AfterSelection(SelectedFunction::Softmax), _) => 3,
        (Scoring::AfterSelection(SelectedFunction::Sigmoid), _) => 4,
        (Scoring::AfterSelection(SelectedFunction::Logit), _) => 5,
    }
}
