use super::*;
use crate::eplb::{EpRank, ExpertPlacement};

fn aligned(topk_ids: &[i32], options: &AlignOptions<'_>) -> Assignment {
    let mut out = Assignment::default();
    cpu::align(topk_ids, options, &mut Workspace::default(), &mut out).unwrap();
    assert_eq!(out, reference::align(topk_ids, options).unwrap());
    out
}

fn batched(counts: &[i32], tokens_max: usize, block_size: usize) -> Assignment {
    let tokens = BatchedTokens { expert_num_tokens: counts, tokens_max };
    let mut out = Assignment::default();
    cpu::align_batched(&tokens, block_size, &mut out).unwrap();
    assert_eq!(out, reference::align_batched(&tokens, block_size).unwrap());
    out
}

fn mapped(map: &ExpertMap, non_local: NonLocalExperts, block_size: usize) -> AlignOptions<'_> {
    let experts = LocalExperts::Mapped(map, non_local);
    AlignOptions { experts, ..AlignOptions::new(map.num_global(), block_size) }
}

/// The published example: four tokens, three experts each.
const EXAMPLE: [i32; 12] = [2, 3, 4, 1, 2, 4, 1, 3, 4, 1, 2, 3];

#[test]
fn the_published_example() {
    let out = aligned(&EXAMPLE, &AlignOptions::new(5, 4));
    let used = out.num_tokens_post_padded;
    assert_eq!(used, 16);
    assert_eq!(out.sorted_token_ids.len(), 12 + 5 * 3);
    assert_eq!(
        out.sorted_token_ids[..used],
        [3, 6, 9, 12, 0, 4, 10, 12, 1, 7, 11, 12, 2, 5, 8, 12]
    );
    assert!(out.sorted_token_ids[used..].iter().all(|&pair| pair == 12));
    assert_eq!(out.expert_ids, [1, 2, 3, 4, -1, -1, -1]);
    assert_eq!(out.blocks().map(|(expert, _)| expert).collect::<Vec<_>>(), [1, 2, 3, 4]);
    // With four experts, id 4 does not exist and is dropped.
    assert_eq!(aligned(&EXAMPLE, &AlignOptions::new(4, 4)).num_tokens_post_padded, 12);
}

#[test]
fn padded_lengths() {
    let len = |experts, block, pairs| AlignOptions::new(experts, block).sorted_len(pairs).unwrap();
    assert_eq!(len(5, 4, 12), 27);
    assert_eq!(len(8, 16, 3), 48, "fewer pairs than experts: a block for each pair");
    assert_eq!(len(8, 16, 7), 7 * 16);
    assert_eq!(len(8, 16, 8), 8 + 8 * 15);
    assert_eq!(len(8, 1, 0), 0);
    let whole =
        AlignOptions { padded_length: PaddedLength::WholeBlocks, ..AlignOptions::new(5, 4) };
    assert_eq!(whole.sorted_len(12).unwrap(), 28);
    assert_eq!(aligned(&EXAMPLE, &whole).sorted_token_ids.len(), 28);
}

#[test]
fn edge_cases_agree_with_the_reference() {
    let many: Vec<i32> = (0..999).map(|pair| pair * 7 % 13 - 1).collect();
    let cases: [&[i32]; 8] = [
        &[],                          // no token
        &[3],                         // one token
        &[2; 33],                     // one expert gets all, the others none
        &[1, 1, 5, 5, 1],             // duplicates within a token
        &[-1, 0, 7, 8, 100, -5, 2],   // ids of -1 and out of range
        &[i32::MIN, i32::MAX, -1],    // nobody at all
        &[7, 6, 5, 4, 3, 2, 1, 0, 0], // everybody
        &many,
    ];
    for ids in cases {
        for (num_experts, block_size) in [(8, 4), (8, 1), (8, 16), (9, 5), (12, 64), (1, 3), (0, 4)]
        {
            aligned(ids, &AlignOptions::new(num_experts, block_size));
            for placement in [ExpertPlacement::Linear, ExpertPlacement::RoundRobin] {
                for rank in 0..num_experts.min(3) {
                    let ep = EpRank::new(rank, num_experts.min(3)).unwrap();
                    let map = ExpertMap::new(num_experts, placement, ep).unwrap();
                    aligned(ids, &mapped(&map, NonLocalExperts::Drop, block_size));
                    aligned(ids, &mapped(&map, NonLocalExperts::ZeroBlocks, block_size));
                }
            }
        }
    }
}

#[test]
fn direct_lists_one_pair_a_block() {
    for (ids, experts) in [
        (&[][..], &[][..]),
        (&[3, 0], &[3, 0]),
        (&[-1, 7, 8, i32::MIN, i32::MAX, 0], &[-1, 7, -1, -1, -1, 0]),
    ] {
        let mut out = Assignment { num_pairs: 77, ..Assignment::default() };
        cpu::direct(ids, 8, &mut out).unwrap();
        assert_eq!(out, reference::direct(ids, 8).unwrap());
        assert_eq!(out.expert_ids, experts);
        assert_eq!(out.num_tokens_post_padded, ids.len());
        for (pair, (expert, pairs)) in out.blocks().enumerate() {
            assert_eq!((expert, pairs), (experts[pair], &[pair as i32][..]));
        }
    }
}

#[test]
fn non_local_experts_are_dropped_or_zeroed() {
    // Rank 1 of 2 holds experts 2 and 3 as 0 and 1.
    let map = ExpertMap::from_local_ids(vec![-1, -1, 0, 1], 2).unwrap();
    let ids = [3, 0, 2, 3, 1, 9];
    let dropped = aligned(&ids, &mapped(&map, NonLocalExperts::Drop, 2));
    assert_eq!(dropped.num_tokens_post_padded, 4);
    assert_eq!(dropped.expert_ids[..3], [0, 1, -1]);
    assert_eq!(dropped.sorted_token_ids[..4], [2, 6, 0, 3]);
    let zeroed = aligned(&ids, &mapped(&map, NonLocalExperts::ZeroBlocks, 2));
    assert_eq!(zeroed.num_tokens_post_padded, 8);
    assert_eq!(zeroed.expert_ids[..5], [-1, -1, 0, 1, -1]);
    assert_eq!(zeroed.sorted_token_ids[..8], [1, 6, 4, 6, 2, 6, 0, 3]);
}

#[test]
fn batched_rows_keep_their_places() {
    let out = batched(&[2, 3, 0, 6, 8], 8, 4);
    assert_eq!(out.num_tokens_post_padded, 24);
    assert_eq!(out.expert_ids, [0, 1, 3, 3, 4, 4, -1, -1, -1, -1]);
    assert_eq!(out.sorted_token_ids[8..16], [24, 25, 26, 27, 28, 29, 40, 40]);
    assert_eq!(out.num_pairs, 40);
    for (counts, tokens_max, block_size) in [
        (&[][..], 8, 4),
        (&[0], 0, 4),
        (&[0, 0, 0], 5, 2),
        (&[5], 5, 2),
        (&[1, 5, 0], 5, 16),
        (&[7, 7, 7], 7, 1),
    ] {
        batched(counts, tokens_max, block_size);
    }
}

#[test]
fn lora_adapters_get_their_own_alignment() {
    let topk_ids = [0, 1, 1, 2, 0, 2, 1, 0];
    let mapping = [1, -1, 0, 1];
    let cases: [(&[i32], &[bool]); 5] = [
        (&[0, 1], &[true, true]),
        (&[-1, 1, 0], &[true, true]),
        (&[1, 9, -7], &[true, true]),
        (&[0, 1], &[true, false]),
        (&[], &[true, true, true]),
    ];
    let options = AlignOptions::new(3, 2);
    let mut reused = Vec::new();
    for (active_lora_ids, adapter_enabled) in cases {
        let tokens = LoraTokens { token_lora_mapping: &mapping, active_lora_ids, adapter_enabled };
        let workspace = &mut Workspace::default();
        cpu::align_lora(&topk_ids, &tokens, &options, workspace, &mut reused).unwrap();
        assert_eq!(reused, reference::align_lora(&topk_ids, &tokens, &options).unwrap());
        for (lora, slot) in reused.iter().enumerate() {
            assert_eq!(slot.num_tokens_post_padded == 0, !tokens.takes_part(lora));
        }
    }
    let tokens = LoraTokens {
        token_lora_mapping: &mapping,
        active_lora_ids: &[1],
        adapter_enabled: &[true, true],
    };
    cpu::align_lora(&topk_ids, &tokens, &options, &mut Workspace::default(), &mut reused).unwrap();
    // Tokens 0 and 3 use adapter 1: pairs 0, 1, 6 and 7.
    assert_eq!(reused[1].sorted_token_ids[..4], [0, 7, 1, 6]);
    assert_eq!(reused[1].expert_ids[..2], [0, 1]);
    assert!(reused[0].sorted_token_ids.iter().all(|&pair| pair == 8));
}

#[test]
fn lora_without_tokens() {
    let tokens =
        LoraTokens { token_lora_mapping: &[], active_lora_ids: &[0], adapter_enabled: &[true] };
    let options = AlignOptions::new(3, 2);
    let mut out = Vec::new();
    cpu::align_lora(&[], &tokens, &options, &mut Workspace::default(), &mut out).unwrap();
    assert_eq!(out, reference::align_lora(&[], &tokens, &options).unwrap());
    assert_eq!(out[0].num_tokens_post_padded, 0);
}

#[test]
fn a_reused_output_forgets_the_batch_before() {
    let (mut workspace, mut out) = (Workspace::default(), Assignment::default());
    let large: Vec<i32> = (0..500).map(|pair| pair % 16).collect();
    for ids in [&large[..], &EXAMPLE, &[], &large[..33]] {
        let options = AlignOptions::new(16, 8);
        cpu::align(ids, &options, &mut workspace, &mut out).unwrap();
        assert_eq!(out, reference::align(ids, &options).unwrap());
        cpu::direct(ids, 16, &mut out).unwrap();
        assert_eq!(out, reference::direct(ids, 16).unwrap());
    }
}

#[test]
fn illegal_inputs_are_refused() {
    let refused = |options: &AlignOptions<'_>| {
        let mut out = Assignment::default();
        let fast = cpu::align(&EXAMPLE, options, &mut Workspace::default(), &mut out).unwrap_err();
        assert_eq!(fast, reference::align(&EXAMPLE, options).unwrap_err());
        fast.to_string()
    };
    assert_eq!(refused(&AlignOptions::new(5, 0)), "block_size is 0, but must be 1 to 65536");
    assert!(refused(&AlignOptions::new(5, usize::MAX)).starts_with("block_size"));
    assert!(refused(&AlignOptions::new(usize::MAX, 1)).starts_with("num_experts"));
    assert!(AlignOptions::new(1 << 15, 1 << 16).sorted_len(1 << 15).is_err(), "beyond 32 bits");
    let map = ExpertMap::from_local_ids(vec![0, -1], 1).unwrap();
    let experts = LocalExperts::Mapped(&map, NonLocalExperts::Drop);
    let short = AlignOptions { experts, ..AlignOptions::new(5, 4) };
    assert_eq!(refused(&short), "expert_map has 2 elements, expected 5");

    let mut out = Assignment::default();
    for (counts, tokens_max, block_size) in [
        (&[-1][..], 8, 4),
        (&[9], 8, 4),
        (&[1], 8, 0),
        (&[1, 1], usize::MAX, 4),
        (&[1, 1, 1], 1 << 30, 4),
    ] {
        let tokens = BatchedTokens { expert_num_tokens: counts, tokens_max };
        assert!(cpu::align_batched(&tokens, block_size, &mut out).is_err());
    }
    let tokens = LoraTokens {
        token_lora_mapping: &[0, 0, 0, 0, 0],
        active_lora_ids: &[0],
        adapter_enabled: &[true],
    };
    let options = AlignOptions::new(5, 4);
    let workspace = &mut Workspace::default();
    assert!(cpu::align_lora(&EXAMPLE, &tokens, &options, workspace, &mut vec![]).is_err());
}

#[test]
fn a_warm_output_is_not_reallocated() {
    let (mut workspace, mut out) = (Workspace::default(), Assignment::default());
    let ids: Vec<i32> = (0..800).map(|pair| pair * 11 % 32).collect();
    let mut addresses = Vec::new();
    for pairs in [800, 8, 0, 80, 800] {
        cpu::direct(&ids[..pairs], 32, &mut out).unwrap();
        let options = AlignOptions::new(32, 16);
        cpu::align(&ids[..pairs], &options, &mut workspace, &mut out).unwrap();
        let buffers = [&out.sorted_token_ids, &out.expert_ids].map(|buffer| buffer.as_ptr());
        addresses.push((buffers, workspace.offsets.as_ptr()));
    }
    addresses.dedup();
    assert_eq!(addresses.len(), 1);
}
