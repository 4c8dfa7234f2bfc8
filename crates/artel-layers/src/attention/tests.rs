use std::ops::Range;

use artel_device::cpu::CpuFeatures;
use proptest::prelude::*;

use super::*;

/// One run of a sequence through an attention layer.
#[derive(Debug, Clone)]
struct Case {
    shape: AttentionShape,
    window: Option<usize>,
    sinks: bool,
    /// New tokens of each step.
    steps: Vec<usize>,
}

const GROUPED: AttentionShape = AttentionShape {
    query_heads: 6,
    kv_heads: 2,
    key_dim: 24,
    value_dim: 20,
    values: ValueStorage::Own,
};

const LATENT: AttentionShape = AttentionShape {
    query_heads: 40,
    kv_heads: 1,
    key_dim: 37,
    value_dim: 29,
    values: ValueStorage::KeyPrefix,
};

fn case(shape: AttentionShape, steps: &[usize]) -> Case {
    Case { shape, window: None, sinks: false, steps: steps.to_vec() }
}

fn workspace() -> Workspace {
    Workspace::new(CpuFeatures::detect())
}

fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|index| ((index * 61 + seed * 7) % 89) as f32 / 30.0 - 1.5).collect()
}

impl Case {
    fn attention(&self) -> Attention {
        let mut attention = Attention::new(self.shape, 0.3).unwrap();
        if let Some(window) = self.window {
            attention = attention.with_window(window).unwrap();
        }
        if self.sinks {
            attention = attention.with_sinks(numbers(self.shape.query_heads, 9)).unwrap();
        }
        attention
    }

    fn tokens(&self) -> usize {
        self.steps.iter().sum()
    }

    /// Queries, keys and values of all tokens.
    fn rows(&self) -> [Vec<f32>; 3] {
        [self.shape.query_width(), self.shape.key_width(), self.shape.value_width()]
            .map(|width| numbers(self.tokens() * width, width))
    }

    /// The outputs of all tokens, computed step by step, with blocks in their order.
    fn run(&self) -> Vec<f32> {
        let cache = self.cache();
        self.run_in(cache.clone(), &cache.all_blocks())
    }

    /// A cache for all tokens.
    fn cache(&self) -> KvCache {
        KvCache::new(1, self.shape, KvCache::blocks_for(self.tokens()))
    }

    fn run_in(&self, mut cache: KvCache, blocks: &[BlockId]) -> Vec<f32> {
        let [queries, keys, values] = self.rows();
        let mut out = vec![f32::NAN; self.tokens() * self.shape.output_width()];
        let mut first = 0;
        for &tokens in &self.steps {
            let rows = |width: usize| first * width..(first + tokens) * width;
            let inputs = AttentionInputs {
                queries: &queries[rows(self.shape.query_width())],
                keys: &keys[rows(self.shape.key_width())],
                values: &values[rows(self.shape.value_width())],
            };
            let sequences = [SequenceTokens { blocks, cached: first, tokens }];
            let out = &mut out[rows(self.shape.output_width())];
            let attention = self.attention();
            attention.forward(&workspace(), (&mut cache, 0), inputs, &sequences, out).unwrap();
            first += tokens;
        }
        out
    }
}

/// Steps agree with the definition and, to the last bit, with one prefill of all tokens and with
/// blocks that lie anywhere.
fn check(case: Case) {
    let [queries, keys, values] = case.rows();
    let expected = reference::forward(&case.attention(), &queries, &keys, &values);
    let out = case.run();
    assert_eq!(out.len(), expected.len());
    for (index, (found, expected)) in out.iter().zip(&expected).enumerate() {
        let error = (f64::from(*found) - expected).abs();
        assert!(error < 1e-5, "{case:?}: {found} for {expected} at {index}");
    }
    let blocks = KvCache::blocks_for(case.tokens());
    let scattered: Vec<BlockId> = (0..blocks as BlockId).rev().map(|block| 3 * block + 1).collect();
    assert_eq!(case.run_in(KvCache::new(1, case.shape, 3 * blocks), &scattered), out);
    let whole = Case { steps: vec![case.tokens()], ..case };
    assert_eq!(whole.run(), out);
}

#[test]
fn prefill_and_decode() {
    for shape in [GROUPED, LATENT] {
        for steps in [vec![0], vec![1], vec![5, 1, 1], vec![63, 1, 1, 1], vec![40, 30, 1, 70]] {
            check(case(shape, &steps));
        }
    }
}

#[test]
fn groups_of_every_kind() {
    for (query_heads, kv_heads) in [(1, 1), (4, 4), (7, 1), (16, 1), (17, 1), (48, 2), (64, 8)] {
        check(case(AttentionShape { query_heads, kv_heads, ..GROUPED }, &[19, 1]));
    }
}

#[test]
fn odd_dimensions() {
    for (key_dim, value_dim) in [(1, 1), (3, 5), (16, 33), (128, 64)] {
        check(case(AttentionShape { key_dim, value_dim, ..GROUPED }, &[9, 2]));
    }
    check(case(AttentionShape { key_dim: 8, value_dim: 8, ..LATENT }, &[3]));
}

#[test]
fn windows_smaller_and_larger_than_a_step() {
    for window in [1, 2, 63, 64, 65, 1000] {
        check(Case { window: Some(window), ..case(GROUPED, &[130, 1, 5]) });
    }
}

#[test]
fn sinks_take_their_share() {
    check(Case { sinks: true, ..case(GROUPED, &[70, 1, 1]) });
    check(Case { sinks: true, window: Some(7), ..case(LATENT, &[33, 2]) });
}

#[test]
fn a_ragged_batch_is_its_sequences() {
    let case = Case { sinks: true, window: Some(20), ..case(GROUPED, &[30, 1]) };
    let attention = case.attention();
    let expected = case.run();
    let [queries, keys, values] = case.rows();
    let mut cache = KvCache::new(1, case.shape, 9);
    let blocks: [&[BlockId]; 3] = [&[5, 0], &[8, 1, 2], &[3, 7]];
    let mut cached = [0; 3];
    // The second sequence has nothing in the first step, the others are 30 and 31 tokens long.
    for counts in [[30, 0, 30], [1, 0, 0], [0, 31, 1]] {
        let gather = |rows: &[f32], width: usize| -> Vec<f32> {
            let parts = cached.iter().zip(counts);
            parts.flat_map(|(&from, n)| rows[from * width..(from + n) * width].to_vec()).collect()
        };
        let queries = gather(&queries, case.shape.query_width());
        let keys = gather(&keys, case.shape.key_width());
        let values = gather(&values, case.shape.value_width());
        let inputs = AttentionInputs { queries: &queries, keys: &keys, values: &values };
        let expected = gather(&expected, case.shape.output_width());
        let mut out = vec![f32::NAN; expected.len()];
        let sequences: [_; 3] = std::array::from_fn(|index| SequenceTokens {
            blocks: blocks[index],
            cached: cached[index],
            tokens: counts[index],
        });
        let kv = (&mut cache, 0);
        attention.forward(&workspace(), kv, inputs, &sequences, &mut out).unwrap();
        assert_eq!(out, expected);
        cached.iter_mut().zip(counts).for_each(|(cached, tokens)| *cached += tokens);
    }
}

#[test]
fn sequences_share_the_blocks_in_which_they_begin_alike() {
    let case = case(GROUPED, &[32, 5]);
    let expected = case.run();
    let [queries, keys, values] = case.rows();
    let mut cache = KvCache::new(1, case.shape, 5);
    let mut forward = |rows: Range<usize>, sequences: &[SequenceTokens<'_>]| {
        let rows = |all: &[f32], width: usize| {
            all[rows.start * width..rows.end * width].repeat(sequences.len())
        };
        let inputs = AttentionInputs {
            queries: &rows(&queries, case.shape.query_width()),
            keys: &rows(&keys, case.shape.key_width()),
            values: &rows(&values, case.shape.value_width()),
        };
        let mut out = rows(&expected, case.shape.output_width());
        out.fill(f32::NAN);
        let kv = (&mut cache, 0);
        case.attention().forward(&workspace(), kv, inputs, sequences, &mut out).unwrap();
        assert_eq!(out, rows(&expected, case.shape.output_width()));
    };
    forward(0..32, &[SequenceTokens { blocks: &[4, 2], cached: 0, tokens: 32 }]);
    let shared = |blocks| SequenceTokens { blocks, cached: 32, tokens: 5 };
    forward(32..37, &[shared(&[4, 2, 0]), shared(&[4, 2, 3])]);
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    for case in [case(GROUPED, &[90]), case(LATENT, &[70])] {
        let [queries, keys, values] = case.rows();
        let mut cache = case.cache();
        let blocks = cache.all_blocks();
        let sequences = [SequenceTokens { blocks: &blocks, cached: 0, tokens: case.tokens() }];
        cache.write(0, &sequences[0], &keys, &values);
        let expected = case.run();
        for features in CpuFeatures::every_supported() {
            let mut out = vec![f32::NAN; expected.len()];
            let attention = case.attention();
            let mut tiles = cpu::tiles(&attention, &queries, (&cache, 0), &sequences, &mut out);
            cpu::attend(features, &mut tiles);
            assert_eq!(out, expected);
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let case = Case { sinks: true, ..case(GROUPED, &[100]) };
    let expected = case.run();
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_eq!(pool.install(|| case.run()), expected);
    }
}

/// One head, one dimension: logits are the keys themselves.
fn tiny(keys: &[f32], values: &[f32], query: f32) -> Vec<f32> {
    let shape = AttentionShape {
        query_heads: 1,
        kv_heads: 1,
        key_dim: 1,
        value_dim: 1,
        values: ValueStorage::Own,
    };
    let queries = vec![query; keys.len()];
    let mut cache = KvCache::new(1, shape, 1);
    let sequences = [SequenceTokens { blocks: &[0], cached: 0, tokens: keys.len() }];
    let mut out = vec![f32::NAN; keys.len()];
    let inputs = AttentionInputs { queries: &queries, keys, values };
    Attention::new(shape, 1.0)
        .unwrap()
        .forward(&workspace(), (&mut cache, 0), inputs, &sequences, &mut out)
        .unwrap();
    out
}

#[test]
fn logits_without_bound() {
    let low = f32::NEG_INFINITY;
    assert_eq!(tiny(&[low, low], &[3.0, 4.0], 1.0), [0.0, 0.0], "nothing to look at");
    assert_eq!(tiny(&[low, 0.0], &[3.0, 4.0], 1.0), [0.0, 4.0], "only the second is there");
    assert_eq!(tiny(&[1e30, -1e30], &[3.0, 4.0], 1.0), [3.0, 3.0], "far apart");
    let spoilt = tiny(&[0.0, f32::NAN, 0.0], &[3.0, 4.0, 5.0], 1.0);
    assert!(spoilt[0] == 3.0 && spoilt[1].is_nan() && spoilt[2].is_nan(), "{spoilt:?}");
}

#[test]
fn too_few_blocks_are_refused_and_nothing_changes() {
    let attention = Attention::new(GROUPED, 1.0).unwrap();
    let mut cache = KvCache::new(2, GROUPED, 4);
    let [queries, keys, values] = case(GROUPED, &[10]).rows();
    let inputs = AttentionInputs { queries: &queries, keys: &keys, values: &values };
    let mut out = vec![0.0; 10 * GROUPED.output_width()];
    let mut refused = |blocks: &[BlockId], cached: usize| {
        let sequences = [&[3], blocks].map(|blocks| SequenceTokens { blocks, cached, tokens: 5 });
        attention.forward(&workspace(), (&mut cache, 0), inputs, &sequences, &mut out).unwrap_err()
    };
    assert_eq!(refused(&[], 0), LayersError::ContextFull { tokens: 5, capacity: 0 });
    assert_eq!(refused(&[1], 12), LayersError::ContextFull { tokens: 17, capacity: 16 });
    assert!(refused(&[4], 0).to_string().starts_with("a block is 4"));
    assert_eq!(cache.bytes(), 0);
}

#[test]
fn wrong_shapes_are_named() {
    let attention = Attention::new(GROUPED, 1.0).unwrap();
    let [queries, keys, values] = case(GROUPED, &[2]).rows();
    let mut out = vec![0.0; 2 * GROUPED.output_width()];
    let mut forward = |queries: &[f32], keys: &[f32], values: &[f32], layer: usize, shape| {
        let mut cache = KvCache::new(2, shape, 1);
        let sequences = [SequenceTokens { blocks: &[0], cached: 0, tokens: 2 }];
        let inputs = AttentionInputs { queries, keys, values };
        attention.forward(&workspace(), (&mut cache, layer), inputs, &sequences, &mut out)
    };
    assert!(forward(&queries, &keys, &values, 1, GROUPED).is_ok());
    assert!(forward(&queries[1..], &keys, &values, 0, GROUPED).is_err());
    assert!(forward(&queries, &keys[1..], &values, 0, GROUPED).is_err());
    assert!(forward(&queries, &keys, &[], 0, GROUPED).is_err());
    assert!(forward(&queries, &keys, &values, 2, GROUPED).is_err());
    assert!(forward(&queries, &keys, &values, 0, LATENT).is_err());
}

#[test]
fn impossible_configurations_are_refused() {
    let refused = |shape| Attention::new(shape, 1.0).unwrap_err().to_string();
    assert!(refused(AttentionShape { query_heads: 5, ..GROUPED }).contains("query_heads"));
    assert!(refused(AttentionShape { kv_heads: 0, ..GROUPED }).contains("kv_heads"));
    assert!(refused(AttentionShape { value_dim: 38, ..LATENT }).contains("prefix"));
    assert!(Attention::new(GROUPED, f32::NAN).is_err());
    let attention = Attention::new(GROUPED, 1.0).unwrap();
    assert!(attention.clone().with_window(0).is_err());
    assert!(attention.with_sinks(vec![0.0; 5]).is_err());
}

#[test]
fn a_block_takes_memory_when_it_is_written() {
    for shape in [GROUPED, LATENT] {
        let mut cache = KvCache::new(2, shape, 1000);
        assert_eq!((cache.bytes(), cache.blocks()), (0, 1000));
        let [_, keys, values] = case(shape, &[20]).rows();
        for layer in 0..2 {
            let sequence = SequenceTokens { blocks: &[9, 500], cached: 0, tokens: 20 };
            cache.write(layer, &sequence, &keys, &values);
        }
        assert_eq!(cache.bytes(), 2 * BLOCK_TOKENS * KvCache::bytes_per_token(2, &shape));
    }
}

proptest! {
    #[test]
    fn any_cut_of_any_prompt_agrees(
        (kv_heads, group) in (1usize..4, 1usize..20),
        (key_dim, value_dim) in (1usize..40, 1usize..40),
        steps in prop::collection::vec(0usize..40, 1..5),
        window in prop::option::of(1usize..90),
        (sinks, latent) in (any::<bool>(), any::<bool>()),
    ) {
        let shape = if latent {
            let value_dim = value_dim.min(key_dim);
            AttentionShape { query_heads: group, value_dim, key_dim, ..LATENT }
        } else {
            AttentionShape { query_heads: kv_heads * group, kv_heads, key_dim, value_dim, ..GROUPED }
        };
        check(Case { shape, window, sinks, steps });
    }
}
