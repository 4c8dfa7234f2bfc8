use proptest::prelude::*;

use super::*;
use crate::eplb::{EpRank, ExpertPlacement};

#[derive(Debug, Clone)]
struct Case {
    topk_ids: Vec<i32>,
    num_experts: usize,
    block_size: usize,
    map: ExpertMap,
    padded_length: PaddedLength,
}

impl Case {
    fn options<'a>(&self, experts: LocalExperts<'a>) -> AlignOptions<'a> {
        let (num_experts, block_size) = (self.num_experts, self.block_size);
        AlignOptions { num_experts, block_size, experts, padded_length: self.padded_length }
    }

    /// The three ways to treat experts of other ranks.
    fn expert_sets(&self) -> [LocalExperts<'_>; 3] {
        [
            LocalExperts::All,
            LocalExperts::Mapped(&self.map, NonLocalExperts::Drop),
            LocalExperts::Mapped(&self.map, NonLocalExperts::ZeroBlocks),
        ]
    }

    fn align(&self, experts: LocalExperts<'_>) -> Assignment {
        let mut out = Assignment::default();
        let options = self.options(experts);
        cpu::align(&self.topk_ids, &options, &mut Workspace::default(), &mut out).unwrap();
        out
    }
}

fn case() -> impl Strategy<Value = Case> {
    let placement = prop_oneof![Just(ExpertPlacement::Linear), Just(ExpertPlacement::RoundRobin)];
    let padded = prop_oneof![Just(PaddedLength::WorstCase), Just(PaddedLength::WholeBlocks)];
    let ranks = any::<prop::sample::Index>();
    (1usize..40, 1usize..20, placement, padded, ranks).prop_flat_map(
        |(num_experts, block_size, placement, padded_length, ranks)| {
            let size = 1 + ranks.index(num_experts);
            let ep = EpRank::new(size / 2, size).unwrap();
            let map = ExpertMap::new(num_experts, placement, ep).unwrap();
            let ids = prop::collection::vec(-2..num_experts as i32 + 2, 0..300);
            ids.prop_map(move |topk_ids| Case {
                topk_ids,
                num_experts,
                block_size,
                map: map.clone(),
                padded_length,
            })
        },
    )
}

proptest! {
    #[test]
    fn cpu_equals_the_reference(case in case()) {
        for experts in case.expert_sets() {
            let slow = reference::align(&case.topk_ids, &case.options(experts)).unwrap();
            prop_assert_eq!(case.align(experts), slow);
        }
    }

    #[test]
    fn the_valid_pairs_appear_exactly_once(case in case()) {
        for experts in case.expert_sets() {
            let out = case.align(experts);
            let mut seen: Vec<i32> = out.sorted_token_ids.clone();
            seen.retain(|&pair| pair != out.num_pairs as i32);
            seen.sort_unstable();
            let computed_here = |id: i32| match experts {
                LocalExperts::Mapped(map, NonLocalExperts::Drop) => map.local(id).is_some(),
                _ => (0..case.num_experts as i32).contains(&id),
            };
            let valid = (0..).zip(&case.topk_ids).filter(|(_, id)| computed_here(**id));
            prop_assert_eq!(seen, valid.map(|(pair, _)| pair).collect::<Vec<i32>>());
        }
    }

    #[test]
    fn every_pair_lies_in_a_block_of_its_expert_in_order(case in case()) {
        for experts in case.expert_sets() {
            let out = case.align(experts);
            let name = |id: i32| match experts {
                LocalExperts::All => id,
                LocalExperts::Mapped(map, _) => map.local_ids()[id as usize],
            };
            let mut last_pair_of = std::collections::BTreeMap::new();
            for (expert, pairs) in out.blocks() {
                prop_assert_eq!(pairs.len(), case.block_size);
                let real = pairs.iter().take_while(|&&pair| pair < out.num_pairs as i32);
                let real: Vec<i32> = real.copied().collect();
                prop_assert!(!real.is_empty(), "a block without work");
                prop_assert!(pairs[real.len()..].iter().all(|&p| p == out.num_pairs as i32));
                for pair in real {
                    let id = case.topk_ids[pair as usize];
                    prop_assert_eq!(name(id), expert);
                    let before = last_pair_of.insert(id, pair);
                    prop_assert!(before.is_none_or(|before| before < pair));
                }
            }
        }
    }

    #[test]
    fn nothing_lies_behind_the_end(case in case()) {
        for experts in case.expert_sets() {
            let out = case.align(experts);
            prop_assert_eq!(out.num_tokens_post_padded % case.block_size, 0);
            let options = case.options(experts);
            let len = options.sorted_len(case.topk_ids.len()).unwrap();
            prop_assert_eq!(out.sorted_token_ids.len(), len);
            prop_assert_eq!(out.expert_ids.len(), len.div_ceil(case.block_size));
            let sentinel = out.num_pairs as i32;
            let behind = &out.sorted_token_ids[out.num_tokens_post_padded..];
            prop_assert!(behind.iter().all(|&pair| pair == sentinel));
            let blocks = out.num_tokens_post_padded / case.block_size;
            prop_assert!(out.expert_ids[blocks..].iter().all(|&expert| expert == -1));
        }
    }

    #[test]
    fn batched_rows_appear_exactly_once(
        counts in prop::collection::vec(0i32..20, 0..20),
        spare in 0usize..5,
        block_size in 1usize..12,
    ) {
        let tokens_max = counts.iter().copied().max().unwrap_or(0) as usize + spare;
        let tokens = BatchedTokens { expert_num_tokens: &counts, tokens_max };
        let mut out = Assignment::default();
        cpu::align_batched(&tokens, block_size, &mut out).unwrap();
        prop_assert_eq!(&out, &reference::align_batched(&tokens, block_size).unwrap());
        let real: Vec<i32> = (0..).zip(&counts).flat_map(|(expert, &count)| {
            (0..count).map(move |row| expert * tokens_max as i32 + row)
        }).collect();
        let mut seen = out.sorted_token_ids.clone();
        seen.retain(|&row| row != out.num_pairs as i32);
        prop_assert_eq!(seen, real);
    }

    #[test]
    fn adapters_share_out_the_pairs(
        case in case(),
        mapping in prop::collection::vec(-1i32..4, 300),
        enabled in prop::collection::vec(any::<bool>(), 0..4),
        active in prop::collection::vec(-1i32..5, 0..5),
    ) {
        let tokens = LoraTokens {
            token_lora_mapping: &mapping[..case.topk_ids.len() / 2],
            active_lora_ids: &active,
            adapter_enabled: &enabled,
        };
        let topk_ids = &case.topk_ids[..case.topk_ids.len() / 2 * 2];
        let mut out = Vec::new();
        for experts in case.expert_sets() {
            let options = case.options(experts);
            let workspace = &mut Workspace::default();
            cpu::align_lora(topk_ids, &tokens, &options, workspace, &mut out).unwrap();
            prop_assert_eq!(&out, &reference::align_lora(topk_ids, &tokens, &options).unwrap());
        }
    }
}
