//! The definition of every form of assignment: expert by expert, look at all pairs.

use super::{
    AlignOptions, Assignment, BatchedTokens, LocalExperts, LoraTokens, NonLocalExperts,
    check_index_range,
};
use crate::MoeError;

/// One pair a block, in the order of the pairs. Ids below 0 or from `num_experts` on become -1.
///
/// # Errors
/// [`MoeError::Config`] for more pairs than 32-bit indices reach.
pub fn direct(topk_ids: &[i32], num_experts: usize) -> Result<Assignment, MoeError> {
    let num_pairs = check_index_range(topk_ids.len())?;
    let exists = |id: i32| id >= 0 && (id as usize) < num_experts;
    Ok(Assignment {
        sorted_token_ids: (0..num_pairs as i32).collect(),
        expert_ids: topk_ids.iter().map(|&id| if exists(id) { id } else { -1 }).collect(),
        num_tokens_post_padded: num_pairs,
        block_size: 1,
        num_pairs,
    })
}

/// Pairs sorted by expert, each expert's run padded to whole blocks.
///
/// # Errors
/// [`MoeError::Config`] for a block size, experts or rows out of range, [`MoeError::Shape`] for an expert
/// map of another length.
pub fn align(topk_ids: &[i32], options: &AlignOptions<'_>) -> Result<Assignment, MoeError> {
    options.check()?;
    let sorted_len = options.sorted_len(topk_ids.len())?;
    let runs = (0..options.num_experts).filter_map(|position| {
        let (expert, id) = match options.experts {
            LocalExperts::All => (position, position),
            LocalExperts::Mapped(map, NonLocalExperts::ZeroBlocks) => {
                return Some(run_of(position, topk_ids, map.local_ids()[position]));
            }
            LocalExperts::Mapped(map, NonLocalExperts::Drop) => {
                let local = |id: &i32| *id == position as i32;
                (position, map.local_ids().iter().position(local)?)
            }
        };
        Some(run_of(id, topk_ids, expert as i32))
    });
    Ok(lay_out(runs.collect(), sorted_len, options.block_size, topk_ids.len()))
}

/// As [`align`], over rows that already lie by expert. The pair of row `j` of expert `b` is
/// `b * tokens_max + j`.
///
/// # Errors
/// As [`align`], and [`MoeError::Element`] for a count below 0 or above the room.
pub fn align_batched(
    tokens: &BatchedTokens<'_>,
    block_size: usize,
) -> Result<Assignment, MoeError> {
    tokens.check()?;
    let sorted_len = tokens.sorted_len(block_size)?;
    let mut runs = Vec::new();
    for (expert, &count) in tokens.expert_num_tokens.iter().enumerate() {
        let first = (expert * tokens.tokens_max) as i32;
        runs.push((expert as i32, (first..first + count).collect()));
    }
    let num_pairs = tokens.expert_num_tokens.len() * tokens.tokens_max;
    Ok(lay_out(runs, sorted_len, block_size, num_pairs))
}

/// One alignment for each adapter slot, over the tokens that use it.
///
/// # Errors
/// As [`align`], and [`MoeError::Shape`] when the ids are not `[T, K]`.
pub fn align_lora(
    topk_ids: &[i32],
    tokens: &LoraTokens<'_>,
    options: &AlignOptions<'_>,
) -> Result<Vec<Assignment>, MoeError> {
    let top_k = tokens.top_k(topk_ids)?;
    let of_slot = |lora: usize| {
        let masked: Vec<i32> = (0..topk_ids.len())
            .map(|pair| {
                let uses_it = tokens.token_lora_mapping[pair / top_k] == lora as i32;
                if uses_it && tokens.takes_part(lora) { topk_ids[pair] } else { -1 }
            })
            .collect();
        align(&masked, options)
    };
    (0..tokens.adapter_enabled.len()).map(of_slot).collect()
}

/// An expert to be written into the blocks and its pairs in order.
type Run = (i32, Vec<i32>);

fn run_of(id: usize, topk_ids: &[i32], written_expert: i32) -> Run {
    let chosen = |&pair: &i32| topk_ids[pair as usize] == id as i32;
    (written_expert, (0..topk_ids.len() as i32).filter(chosen).collect())
}

fn lay_out(runs: Vec<Run>, sorted_len: usize, block_size: usize, num_pairs: usize) -> Assignment {
    let sentinel = num_pairs as i32;
    let mut sorted_token_ids = Vec::new();
    let mut expert_ids = Vec::new();
    for (expert, pairs) in runs {
        sorted_token_ids.extend(pairs);
        while sorted_token_ids.len() % block_size != 0 {
            sorted_token_ids.push(sentinel);
        }
        expert_ids.resize(sorted_token_ids.len() / block_size, expert);
    }
    let num_tokens_post_padded = sorted_token_ids.len();
    sorted_token_ids.resize(sorted_len, sentinel);
    expert_ids.resize(sorted_len.div_ceil(block_size), -1);
    Assignment { sorted_token_ids, expert_ids, num_tokens_post_padded, block_size, num_pairs }
}
