//! Assignment on the CPU: a stable counting sort, two passes over the pairs and one over the
//! experts. One core is enough: 65,536 pairs take 0.4 ms, far less than their experts.

use super::{
    AlignOptions, Assignment, BatchedTokens, LocalExperts, LoraTokens, NonLocalExperts, Workspace,
    check_index_range,
};
use crate::MoeError;

/// One pair a block, in the order of the pairs. Ids below 0 or from `num_experts` on become -1.
///
/// # Errors
/// [`MoeError::Config`] for more pairs than 32-bit indices reach.
pub fn direct(topk_ids: &[i32], num_experts: usize, out: &mut Assignment) -> Result<(), MoeError> {
    let num_pairs = check_index_range(topk_ids.len())?;
    out.sorted_token_ids.clear();
    out.sorted_token_ids.extend(0..num_pairs as i32);
    out.expert_ids.clear();
    let checked = |&id: &i32| if exists(id, num_experts) { id } else { -1 };
    out.expert_ids.extend(topk_ids.iter().map(checked));
    out.num_tokens_post_padded = num_pairs;
    out.block_size = 1;
    out.num_pairs = num_pairs;
    Ok(())
}

/// Pairs sorted by expert, each expert's run padded to whole blocks.
///
/// # Errors
/// [`MoeError::Config`] for a block size, experts or rows out of range, [`MoeError::Shape`] for an expert
/// map of another length.
pub fn align(
    topk_ids: &[i32],
    options: &AlignOptions<'_>,
    workspace: &mut Workspace,
    out: &mut Assignment,
) -> Result<(), MoeError> {
    let pairs = || (0..).zip(topk_ids.iter().copied());
    align_pairs(pairs, topk_ids.len(), options, workspace, out)
}

/// As [`align`], over rows that already lie by expert. The pair of row `j` of expert `b` is
/// `b * tokens_max + j`.
///
/// Five experts with room for 8 rows, of which the counts are in use:
///
/// ```
/// use artel_moe::assignment::{Assignment, BatchedTokens, cpu};
/// let tokens = BatchedTokens { expert_num_tokens: &[2, 3, 0, 6, 8], tokens_max: 8 };
/// let mut out = Assignment::default();
/// cpu::align_batched(&tokens, 4, &mut out)?;
/// assert_eq!(out.num_tokens_post_padded, 24);
/// assert_eq!(out.expert_ids, [0, 1, 3, 3, 4, 4, -1, -1, -1, -1]);
/// assert_eq!(out.sorted_token_ids[..8], [0, 1, 40, 40, 8, 9, 10, 40]);
/// # Ok::<(), artel_moe::MoeError>(())
/// ```
///
/// # Errors
/// As [`align`], and [`MoeError::Element`] for a count below 0 or above the room.
pub fn align_batched(
    tokens: &BatchedTokens<'_>,
    block_size: usize,
    out: &mut Assignment,
) -> Result<(), MoeError> {
    tokens.check()?;
    let sorted_len = tokens.sorted_len(block_size)?;
    reset(out, sorted_len, block_size, tokens.expert_num_tokens.len() * tokens.tokens_max);
    let mut position = 0;
    for (expert, &count) in tokens.expert_num_tokens.iter().enumerate() {
        let first = (expert * tokens.tokens_max) as i32;
        let run = &mut out.sorted_token_ids[position..][..count as usize];
        for (pair, row) in run.iter_mut().zip(first..) {
            *pair = row;
        }
        position = close_run(out, position, count as usize, expert as i32);
    }
    out.num_tokens_post_padded = position;
    Ok(())
}

/// One alignment for each adapter slot, over the tokens that use it; slots of adapters that take
/// no part are empty. Outputs go by adapter id.
///
/// # Errors
/// As [`align`], and [`MoeError::Shape`] when the ids are not `[T, K]`.
pub fn align_lora(
    topk_ids: &[i32],
    tokens: &LoraTokens<'_>,
    options: &AlignOptions<'_>,
    workspace: &mut Workspace,
    out: &mut Vec<Assignment>,
) -> Result<(), MoeError> {
    let top_k = tokens.top_k(topk_ids)?;
    out.resize_with(tokens.adapter_enabled.len(), Assignment::default);
    for (lora, out) in out.iter_mut().enumerate() {
        let takes_part = tokens.takes_part(lora);
        let pairs = || {
            let rows = tokens.token_lora_mapping.iter().zip(topk_ids.chunks(top_k.max(1)));
            (0..)
                .step_by(top_k.max(1))
                .zip(rows)
                .filter(move |(_, (slot, _))| takes_part && **slot == lora as i32)
                .flat_map(|(first, (_, ids))| (first..).zip(ids.iter().copied()))
        };
        align_pairs(pairs, topk_ids.len(), options, workspace, out)?;
    }
    Ok(())
}

/// Sorts the (pair, id) that `pairs` yields, twice and in ascending order of pairs.
fn align_pairs<I: Iterator<Item = (i32, i32)>>(
    pairs: impl Fn() -> I,
    num_pairs: usize,
    options: &AlignOptions<'_>,
    workspace: &mut Workspace,
    out: &mut Assignment,
) -> Result<(), MoeError> {
    options.check()?;
    let sorted_len = options.sorted_len(num_pairs)?;
    reset(out, sorted_len, options.block_size, num_pairs);
    let num_experts = options.num_experts;
    let in_range = |id: i32| exists(id, num_experts).then_some(id as usize);
    match options.experts {
        LocalExperts::All => {
            let named = |expert| expert as i32;
            counting_sort(pairs, num_experts, in_range, named, (workspace, out));
        }
        LocalExperts::Mapped(map, NonLocalExperts::Drop) => {
            let to_local = |id| map.local(id);
            let named = |expert| expert as i32;
            counting_sort(pairs, map.num_local(), to_local, named, (workspace, out));
        }
        LocalExperts::Mapped(map, NonLocalExperts::ZeroBlocks) => {
            let named = |expert: usize| map.local_ids()[expert];
            counting_sort(pairs, num_experts, in_range, named, (workspace, out));
        }
    }
    Ok(())
}

/// 1. Count the pairs of each expert. 2. Lay out the runs. 3. Put every pair into its run.
fn counting_sort<I: Iterator<Item = (i32, i32)>>(
    pairs: impl Fn() -> I,
    num_runs: usize,
    run_of: impl Fn(i32) -> Option<usize>,
    named: impl Fn(usize) -> i32,
    (workspace, out): (&mut Workspace, &mut Assignment),
) {
    let offsets = &mut workspace.offsets;
    offsets.clear();
    offsets.resize(num_runs, 0);
    for (_, id) in pairs() {
        if let Some(run) = run_of(id) {
            offsets[run] += 1;
        }
    }
    let mut position = 0;
    for (run, offset) in offsets.iter_mut().enumerate() {
        let count = std::mem::replace(offset, position);
        position = close_run(out, position, count, named(run));
    }
    out.num_tokens_post_padded = position;
    for (pair, id) in pairs() {
        if let Some(run) = run_of(id) {
            out.sorted_token_ids[offsets[run]] = pair;
            offsets[run] += 1;
        }
    }
}

fn exists(id: i32, num_experts: usize) -> bool {
    // A negative id is a huge one without its sign.
    (id as u32 as usize) < num_experts
}

/// An assignment without work: all sentinel, all -1.
fn reset(out: &mut Assignment, sorted_len: usize, block_size: usize, num_pairs: usize) {
    out.sorted_token_ids.clear();
    out.sorted_token_ids.resize(sorted_len, num_pairs as i32);
    out.expert_ids.clear();
    out.expert_ids.resize(sorted_len.div_ceil(block_size), -1);
    out.num_tokens_post_padded = 0;
    out.block_size = block_size;
    out.num_pairs = num_pairs;
}

/// Names the expert of the blocks from `position` on that hold `count` pairs; returns where the
/// next run begins.
fn close_run(out: &mut Assignment, position: usize, count: usize, expert: i32) -> usize {
    let first_block = position / out.block_size;
    let blocks = count.div_ceil(out.block_size);
    out.expert_ids[first_block..first_block + blocks].fill(expert);
    position + blocks * out.block_size
}
