//! Map and record on the GPU: one launch that maps the ids and counts.
//!
//! Whether this step counts, and how many tokens are real, are numbers on the device: a recorded
//! graph serves every step. Few pairs are counted one by one; many would queue up at a few hundred
//! counters, so a block first counts its own and adds to every counter once.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use artel_device::cuda::{
    Arguments, Context, DeviceBuffer, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels,
    Stream,
};

use super::ReplicaRule;
use crate::{MoeError, eplb::Placement};

#[cutile::module]
mod kernels {
    use crate::cuda::device_code::*;
    use cutile::core::*;

    /// Logical ids to physical ones, and the load of each slot; grid `[pairs / B, 1, 1]`.
    ///
    /// `SALTED`: 0 the published rule, 1 the salted one. `WARPS`: 0 adds every pair to its counter,
    /// else the block counts its `WARPS * PAIRS` pairs first, in `UPPER * 16 = COUNTERS` counters.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn map_and_record<
        const B: i32,
        const WARPS: i32,
        const PAIRS: i32,
        const UPPER: i32,
        const COUNTERS: i32,
        const TOP_K: i32,
        const SALTED: i32,
        const PDL: i32,
    >(
        physical_ids: *mut i32,
        expert_load: *mut i32,
        logical_ids: *mut i32,
        logical_to_physical: *mut i32,
        replica_count: *mut i32,
        record: *mut i32,
        unpadded_tokens: *mut i32,
        pairs: i32,
        num_logical: i32,
        row_len: i32,
        salt: i32,
    ) {
        // SAFETY: launched as its specification says.
        let ready: Token = unsafe { hand_over::<PDL>() };
        // SAFETY: one number each.
        let is_recorded: i32 = unsafe { load_i32(record, 0i32, ready) };
        // SAFETY: as above.
        let unpadded: i32 = unsafe { load_i32(unpadded_tokens, 0i32, ready) };
        let pair: Tile<i32, { [B] }> = count_from::<B>(get_tile_block_id().0 * B);
        let is_pair: Tile<bool, { [B] }> = is_before::<B>(pair, pairs);
        // SAFETY: the mask keeps inside `pairs`.
        let logical: Tile<i32, { [B] }> =
            unsafe { gather(logical_ids, pair, is_pair, -1i32, ready) };
        // SAFETY: the tables have `num_logical` rows, the second of `row_len` elements.
        let physical: Tile<i32, { [B] }> = unsafe {
            slots_of::<B, TOP_K, SALTED>(
                logical_to_physical,
                replica_count,
                logical,
                num_logical,
                row_len,
                salt,
                ready,
            )
        };
        // SAFETY: as for the load.
        unsafe { scatter(physical_ids, pair, is_pair, physical, ready) };

        if is_recorded != 0i32 {
            let end: i32 = min(unpadded, pairs / TOP_K) * TOP_K;
            let none: Tile<i32, { [B] }> = constant(-1i32, const_shape![B]);
            let counted: Tile<i32, { [B] }> = select(is_before::<B>(pair, end), physical, none);
            if WARPS == 0i32 {
                let one: Tile<i32, { [B] }> = constant(1i32, const_shape![B]);
                // SAFETY: physical ids are below the number of counters.
                unsafe { add_load::<B>(expert_load, counted, one, ready) };
            } else {
                let count: Tile<i32, { [COUNTERS] }> =
                    count_slots::<B, WARPS, PAIRS, UPPER, COUNTERS>(counted);
                let slot: Tile<i32, { [COUNTERS] }> = iota(const_shape![COUNTERS]);
                let absent: Tile<i32, { [COUNTERS] }> = constant(-1i32, const_shape![COUNTERS]);
                let nothing: Tile<i32, { [COUNTERS] }> = constant(0i32, const_shape![COUNTERS]);
                let slot: Tile<i32, { [COUNTERS] }> = select(gt_tile(count, nothing), slot, absent);
                // SAFETY: only slots that occur are added to.
                unsafe { add_load::<COUNTERS>(expert_load, slot, count, ready) };
            }
        }
    }

    fn is_before<const B: i32>(x: Tile<i32, { [B] }>, end: i32) -> Tile<bool, { [B] }> {
        let end: Tile<i32, { [B] }> = broadcast_scalar(end, const_shape![B]);
        lt_tile(x, end)
    }

    /// How often each slot occurs, by a matrix product a warp: of a matrix that has a one where a
    /// pair's slot has these upper bits, and one that has a one where it has these lower four.
    /// Products and sums are small integers, hence exact.
    fn count_slots<
        const B: i32,
        const WARPS: i32,
        const PAIRS: i32,
        const UPPER: i32,
        const COUNTERS: i32,
    >(
        physical: Tile<i32, { [B] }>,
    ) -> Tile<i32, { [COUNTERS] }> {
        let four: Tile<i32, { [B] }> = constant(4i32, const_shape![B]);
        let fifteen: Tile<i32, { [B] }> = constant(15i32, const_shape![B]);
        let upper: Tile<i32, { [B] }> = physical >> four;
        let upper: Tile<i32, { [WARPS, 1, PAIRS] }> = upper.reshape(const_shape![WARPS, 1, PAIRS]);
        let upper: Tile<i32, { [WARPS, UPPER, PAIRS] }> =
            upper.broadcast(const_shape![WARPS, UPPER, PAIRS]);
        let row: Tile<i32, { [UPPER] }> = iota(const_shape![UPPER]);
        let row: Tile<i32, { [1, UPPER, 1] }> = row.reshape(const_shape![1, UPPER, 1]);
        let row: Tile<i32, { [WARPS, UPPER, PAIRS] }> =
            row.broadcast(const_shape![WARPS, UPPER, PAIRS]);
        let one: Tile<i16, { [WARPS, UPPER, PAIRS] }> =
            constant(16256i16, const_shape![WARPS, UPPER, PAIRS]);
        let zero: Tile<i16, { [WARPS, UPPER, PAIRS] }> =
            constant(0i16, const_shape![WARPS, UPPER, PAIRS]);
        let has_upper: Tile<i16, { [WARPS, UPPER, PAIRS] }> =
            select(eq_tile(upper, row), one, zero);
        let has_upper: Tile<bf16, { [WARPS, UPPER, PAIRS] }> = bitcast(has_upper);

        let lower: Tile<i32, { [B] }> = physical & fifteen;
        let lower: Tile<i32, { [WARPS, PAIRS, 1] }> = lower.reshape(const_shape![WARPS, PAIRS, 1]);
        let lower: Tile<i32, { [WARPS, PAIRS, 16] }> =
            lower.broadcast(const_shape![WARPS, PAIRS, 16]);
        let column: Tile<i32, { [16] }> = iota(const_shape![16]);
        let column: Tile<i32, { [1, 1, 16] }> = column.reshape(const_shape![1, 1, 16]);
        let column: Tile<i32, { [WARPS, PAIRS, 16] }> =
            column.broadcast(const_shape![WARPS, PAIRS, 16]);
        let one: Tile<i16, { [WARPS, PAIRS, 16] }> =
            constant(16256i16, const_shape![WARPS, PAIRS, 16]);
        let zero: Tile<i16, { [WARPS, PAIRS, 16] }> =
            constant(0i16, const_shape![WARPS, PAIRS, 16]);
        let has_lower: Tile<i16, { [WARPS, PAIRS, 16] }> =
            select(eq_tile(lower, column), one, zero);
        let has_lower: Tile<bf16, { [WARPS, PAIRS, 16] }> = bitcast(has_lower);

        let nothing: Tile<f32, { [WARPS, UPPER, 16] }> =
            constant(0.0f32, const_shape![WARPS, UPPER, 16]);
        let count: Tile<f32, { [WARPS, UPPER, 16] }> = mmaf(has_upper, has_lower, nothing);
        let count: Tile<f32, { [UPPER, 16] }> = reduce_sum(count, 0i32);
        let count: Tile<i32, { [UPPER, 16] }> = ftoi(count, rounding::NearestIntToZero);
        count.reshape(const_shape![COUNTERS])
    }

    /// The slot of the copy that serves each pair of the block; -1 for an id that is no expert.
    unsafe fn slots_of<const B: i32, const TOP_K: i32, const SALTED: i32>(
        logical_to_physical: *mut i32,
        replica_count: *mut i32,
        logical: Tile<i32, { [B] }>,
        num_logical: i32,
        row_len: i32,
        salt: i32,
        ready: Token,
    ) -> Tile<i32, { [B] }> {
        let zero: Tile<i32, { [B] }> = constant(0i32, const_shape![B]);
        let experts: Tile<i32, { [B] }> = broadcast_scalar(num_logical, const_shape![B]);
        let is_expert: Tile<bool, { [B] }> = ge_tile(logical, zero) & lt_tile(logical, experts);
        // SAFETY: the mask keeps to the rows of the tables.
        let copies: Tile<i32, { [B] }> =
            unsafe { gather(replica_count, logical, is_expert, 1i32, ready) };
        let pair: Tile<i32, { [B] }> = count_from::<B>(get_tile_block_id().0 * B);
        let top_k: Tile<i32, { [B] }> = broadcast_scalar(TOP_K, const_shape![B]);
        let token: Tile<i32, { [B] }> = pair / top_k;
        let mut copy: Tile<i32, { [B] }> = token_hash::<B>(token, copies);
        if SALTED == 1i32 {
            copy = salted_hash::<B>(salt, token, logical, copies);
        }
        let row_len: Tile<i32, { [B] }> = broadcast_scalar(row_len, const_shape![B]);
        let entry: Tile<i32, { [B] }> = logical * row_len + copy;
        // SAFETY: an expert has at most `row_len` copies.
        unsafe { gather(logical_to_physical, entry, is_expert, -1i32, ready) }
    }

    /// Adds to counters and keeps them at the largest number once there; slot -1 is nowhere.
    unsafe fn add_load<const B: i32>(
        expert_load: *mut i32,
        slot: Tile<i32, { [B] }>,
        count: Tile<i32, { [B] }>,
        after: Token,
    ) {
        let none: Tile<i32, { [B] }> = constant(0i32, const_shape![B]);
        let mask: Tile<bool, { [B] }> = ge_tile(slot, none);
        let pointer: PointerTile<*mut i32, { [] }> = pointer_to_tile(expert_load);
        let pointer: PointerTile<*mut i32, { [1] }> = pointer.reshape(const_shape![1]);
        let pointer: PointerTile<*mut i32, { [B] }> = pointer.broadcast(const_shape![B]);
        let pointer: PointerTile<*mut i32, { [B] }> = pointer.offset_tile(slot);
        // SAFETY: the caller vouches for every unmasked slot.
        let (before, added): (Tile<i32, { [B] }>, Token) = unsafe {
            atomic_rmw_tko(
                pointer,
                count,
                atomic::Add,
                ordering::Relaxed,
                scope::Device,
                Some(mask),
                Some(after),
            )
        };
        // A sum that passed the largest number reads as negative. Whoever sees that puts the
        // largest number there, so the last one to add leaves it.
        let sum: Tile<i32, { [B] }> = before + count;
        let full: Tile<i32, { [B] }> = constant(2147483647i32, const_shape![B]);
        let overflown: Tile<bool, { [B] }> = mask & lt_tile(sum, none);
        // SAFETY: as above.
        let (_sum, _clamped): (Tile<i32, { [B] }>, Token) = unsafe {
            atomic_rmw_tko(
                pointer,
                full,
                atomic::Umin,
                ordering::Relaxed,
                scope::Device,
                Some(overflown),
                Some(added),
            )
        };
    }

    /// Copy by the published rule: `hash(token) mod copies`.
    fn token_hash<const B: i32>(
        token: Tile<i32, { [B] }>,
        copies: Tile<i32, { [B] }>,
    ) -> Tile<i32, { [B] }> {
        let token: Tile<u32, { [B] }> = bitcast(token);
        let copies: Tile<u32, { [B] }> = bitcast(copies);
        let multiplier: Tile<i32, { [B] }> = constant(-1640531527i32, const_shape![B]);
        let multiplier: Tile<u32, { [B] }> = bitcast(multiplier);
        let copy: Tile<u32, { [B] }> = (token * multiplier) % copies;
        bitcast(copy)
    }

    /// Copy by the salted rule.
    fn salted_hash<const B: i32>(
        salt: i32,
        token: Tile<i32, { [B] }>,
        expert: Tile<i32, { [B] }>,
        copies: Tile<i32, { [B] }>,
    ) -> Tile<i32, { [B] }> {
        let salt: Tile<i32, { [B] }> = broadcast_scalar(salt, const_shape![B]);
        let salt: Tile<u32, { [B] }> = bitcast(salt);
        let token: Tile<u32, { [B] }> = bitcast(token);
        let expert: Tile<u32, { [B] }> = bitcast(expert);
        let copies: Tile<u32, { [B] }> = bitcast(copies);
        let token_multiplier: Tile<i32, { [B] }> = constant(-1640531527i32, const_shape![B]);
        let token_multiplier: Tile<u32, { [B] }> = bitcast(token_multiplier);
        let expert_multiplier: Tile<u32, { [B] }> = constant(668265263u32, const_shape![B]);
        let seed: Tile<u32, { [B] }> = (token * token_multiplier) ^ salt;
        let hash: Tile<u32, { [B] }> = mix::<B>(seed + expert * expert_multiplier);
        let copy: Tile<u32, { [B] }> = mulhii(hash, copies);
        bitcast(copy)
    }

    /// The finaliser of MurmurHash3, as on the CPU.
    fn mix<const B: i32>(hash: Tile<u32, { [B] }>) -> Tile<u32, { [B] }> {
        let sixteen: Tile<u32, { [B] }> = constant(16u32, const_shape![B]);
        let thirteen: Tile<u32, { [B] }> = constant(13u32, const_shape![B]);
        let first: Tile<i32, { [B] }> = constant(-2048144789i32, const_shape![B]);
        let first: Tile<u32, { [B] }> = bitcast(first);
        let second: Tile<i32, { [B] }> = constant(-1028477387i32, const_shape![B]);
        let second: Tile<u32, { [B] }> = bitcast(second);
        let hash: Tile<u32, { [B] }> = (hash ^ (hash >> sixteen)) * first;
        let hash: Tile<u32, { [B] }> = (hash ^ (hash >> thirteen)) * second;
        hash ^ (hash >> sixteen)
    }
}

/// Pairs of one block where every pair is added to its counter.
const DIRECT_BLOCK: usize = 128;

/// Most pairs for which that is faster. On an H200 with 256 experts, 2048 pairs take 1.8 us this
/// way and 2.9 us the other, 8192 pairs 3.4 and 2.9, 65536 pairs 18.2 and 4.0.
const DIRECT_PAIRS_MAX: usize = 4096;

/// Pairs of one block that counts them first.
const COUNTING_BLOCK: usize = 512;

/// Most slots that are counted that way: the counters are registers.
const COUNTING_SLOTS_MAX: usize = 1024;

/// A placement on the device. Its memory does not move when the placement changes, so that graphs
/// stay valid.
#[derive(Debug)]
pub struct DevicePlacement {
    logical_to_physical: DeviceBuffer<i32>,
    logical_replica_count: DeviceBuffer<i32>,
    num_logical: usize,
    num_physical: usize,
}

impl DevicePlacement {
    /// A copy of `placement`.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] without memory.
    pub fn new(context: &Context, placement: &Placement) -> Result<Self, MoeError> {
        let (num_logical, num_physical) = (placement.num_logical(), placement.num_physical());
        let row_len = num_physical - num_logical + 1;
        let mut device = Self {
            logical_to_physical: context.buffer(num_logical * row_len)?,
            logical_replica_count: context.buffer(num_logical)?,
            num_logical,
            num_physical,
        };
        device.update(placement)?;
        Ok(device)
    }

    /// Overwrites it with a placement of the same experts on the same slots, and waits. No kernel
    /// may be using it.
    ///
    /// # Errors
    /// [`MoeError::Shape`] when the numbers differ, [`MoeError::Cuda`] when copying fails.
    pub fn update(&mut self, placement: &Placement) -> Result<(), MoeError> {
        let (logical, physical) = (placement.num_logical(), placement.num_physical());
        MoeError::check_shape("logical experts of the placement", self.num_logical, logical)?;
        MoeError::check_shape("slots of the placement", self.num_physical, physical)?;
        let mut table = vec![-1; logical * self.row_len()];
        for (expert, row) in (0..).zip(table.chunks_exact_mut(self.row_len())) {
            let replicas = placement.replicas(expert);
            row[..replicas.len()].copy_from_slice(replicas);
        }
        self.logical_to_physical.write(0, &table)?;
        self.logical_replica_count.write(0, placement.logical_replica_count())?;
        Ok(())
    }

    /// Copies that one expert can have: every expert has one, and any may have all the rest.
    fn row_len(&self) -> usize {
        self.num_physical - self.num_logical + 1
    }
}

/// What map and record reads and writes on the device.
#[derive(Debug)]
pub struct MapBuffers<'a> {
    /// `[T, K]`, from the router.
    pub logical_ids: DeviceSlice<'a, i32>,
    /// `[T, K]`, for the assignment.
    pub physical_ids: DeviceSliceMut<'a, i32>,
    /// `[P]`; grows, and stays at `i32::MAX` once there.
    pub expert_load: DeviceSliceMut<'a, i32>,
    /// One number: 0 when this step is not recorded.
    pub record: DeviceSlice<'a, i32>,
    /// One number: tokens from this one on are padding, mapped but not counted.
    pub unpadded_tokens: DeviceSlice<'a, i32>,
}

/// The kernels that map and record with one replica rule.
#[derive(Debug, Clone)]
pub struct MapAndRecord {
    top_k: usize,
    rule: ReplicaRule,
    direct: Kernel,
    counting: Option<Kernel>,
}

impl MapAndRecord {
    /// Asks for the kernels for `top_k` experts a token on `num_physical` slots.
    ///
    /// # Errors
    /// [`MoeError::Config`] when `top_k` is 0 or the rule has no kernel, [`MoeError::Cuda`] when a
    /// kernel is missing and cannot be made.
    pub fn load(
        kernels: &mut Kernels,
        top_k: usize,
        num_physical: usize,
        rule: ReplicaRule,
    ) -> Result<Self, MoeError> {
        if top_k == 0 {
            return Err(MoeError::config("top_k", top_k, "1 or more"));
        }
        let salted = match rule {
            ReplicaRule::TokenHash => false,
            ReplicaRule::Salted(_) => true,
            ReplicaRule::Shares(_) => {
                let allowed = "TokenHash or Salted: shares and quotas have no kernel yet";
                return Err(MoeError::config("replica rule on a GPU", "Shares", allowed));
            }
        };
        let spec = |block: usize, counting: [usize; 4]| {
            let module = kernels::__module_ast_self;
            KernelSpec::new("eplb/map_and_record", module, "kernels", "map_and_record")
                .generics([block as i32])
                .generics(counting.map(|value| value as i32))
                .generics([top_k as i32, i32::from(salted)])
                .pointers(["physical_ids", "expert_load", "logical_ids"])
                .pointers(["logical_to_physical", "replica_count"])
                .programmatic()
        };
        let direct = kernels.get(&spec(DIRECT_BLOCK, [0, 1, 1, 1]).warps(4))?;
        let counters = num_physical.next_power_of_two().max(256);
        // With more counters a warp multiplies fewer pairs, or its registers would not do.
        let warps = if counters > 256 { 8 } else { 4 };
        let counting = [warps, COUNTING_BLOCK / warps, counters / 16, counters];
        let counting = match counters <= COUNTING_SLOTS_MAX {
            true => Some(kernels.get(&spec(COUNTING_BLOCK, counting).warps(warps))?),
            false => None,
        };
        Ok(Self { top_k, rule, direct, counting })
    }

    /// Maps the ids of `tokens` tokens and counts them.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when a buffer is too short or the launch fails.
    pub fn launch(
        &self,
        stream: &Stream,
        tokens: usize,
        placement: &DevicePlacement,
        buffers: MapBuffers<'_>,
    ) -> Result<(), MoeError> {
        let pairs = tokens * self.top_k;
        buffers.logical_ids.expect_len("logical ids", pairs)?;
        buffers.physical_ids.expect_len("physical ids", pairs)?;
        buffers.expert_load.expect_len("expert_load", placement.num_physical)?;
        buffers.record.expect_len("the record flag", 1)?;
        buffers.unpadded_tokens.expect_len("unpadded tokens", 1)?;
        let salt = match self.rule {
            ReplicaRule::TokenHash => 0,
            ReplicaRule::Salted(salt) | ReplicaRule::Shares(salt) => salt.bits(),
        };
        let arguments = Arguments::new()
            .slice_mut(&buffers.physical_ids)
            .slice_mut(&buffers.expert_load)
            .slice(buffers.logical_ids)
            .slice(placement.logical_to_physical.slice())
            .slice(placement.logical_replica_count.slice())
            .slice(buffers.record)
            .slice(buffers.unpadded_tokens)
            .size(pairs)
            .size(placement.num_logical)
            .size(placement.row_len())
            .i32(salt as i32);
        let (kernel, block) = match &self.counting {
            Some(kernel) if pairs > DIRECT_PAIRS_MAX => (kernel, COUNTING_BLOCK),
            _ => (&self.direct, DIRECT_BLOCK),
        };
        let grid = [pairs.div_ceil(block), 1, 1];
        // SAFETY: the arguments are the kernel's; lengths were checked, the tables are a placement,
        // and slots beyond the last one never occur.
        unsafe { kernel.launch(stream, grid, arguments) }?;
        Ok(())
    }
}
