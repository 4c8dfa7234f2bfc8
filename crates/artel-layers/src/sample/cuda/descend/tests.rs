//! The kernel's search, written for the host, against the CPU's sampler: what the ranges, targets and
//! cuts mean is checked without a GPU.

use super::{LEVELS, RANK_LEVELS, Stage, shift};
use crate::sample::{Adjustments, Sampler, SamplingParams, TokenHistory};
use crate::vector;

/// A candidate: both parts of its place and its weight.
type Placed = ([u32; 2], f64);

/// A row as the kernel sees it.
struct Row {
    candidates: Vec<Placed>,
    cut: Option<[u32; 2]>,
}

impl Row {
    fn new(params: &SamplingParams, logits: &[f32]) -> Self {
        let largest = vector::max(logits);
        let least = params.min_p.ln();
        let placed = |(id, &logit): (usize, &f32)| {
            let relative =
                if logit == largest { 0.0 } else { (logit - largest) / params.temperature };
            let is_candidate = relative > f32::NEG_INFINITY && relative >= least;
            let rank = relative.to_bits() & 0x7fff_ffff;
            is_candidate.then(|| ([rank, id as u32], f64::from(vector::exp(relative))))
        };
        Self { candidates: logits.iter().enumerate().filter_map(placed).collect(), cut: None }
    }

    /// One stage: the place of the first token with which the sum reaches the target, and the sum of
    /// all.
    fn find(
        &self,
        stage: Stage,
        first_level: usize,
        target: impl Fn(f64) -> f64,
    ) -> ([u32; 2], f64) {
        let is_ranked = stage != Stage::Draw || self.cut.is_some();
        let (mut place, mut base, mut total, mut wanted) = ([0u32; 2], 0.0, 0.0, 0.0);
        for level in first_level..LEVELS {
            let (part, shift) = (usize::from(level >= RANK_LEVELS), shift(level));
            let mut sums = [0f64; 16];
            for &(whole, weight) in &self.candidates {
                if self.cut.is_some_and(|cut| whole > cut) {
                    continue;
                }
                let ranked = [if is_ranked { whole[0] } else { 0 }, whole[1]];
                let is_near = (part == 0 || ranked[0] == place[0])
                    && ranked[part] >> shift >> 4 == place[part] >> shift >> 4;
                if is_near {
                    let range = ranked[part] >> shift & 15;
                    sums[range as usize] += if stage == Stage::TopK { 1.0 } else { weight };
                }
            }
            if level == first_level {
                total = sums.iter().sum();
                wanted = target(total);
            }
            let mut up_to = base;
            let reached = sums.iter().position(|&sum| {
                up_to += sum;
                sum > 0.0 && (up_to > wanted || stage != Stage::Draw && up_to == wanted)
            });
            let last = sums.iter().rposition(|&sum| sum > 0.0).unwrap_or(0);
            let range = reached.unwrap_or(last);
            base += sums[..range].iter().sum::<f64>();
            place[part] |= (range as u32) << shift;
        }
        (place, total)
    }
}

fn descend(params: &SamplingParams, logits: &[f32], uniform: f64) -> u32 {
    let mut row = Row::new(params, logits);
    let cuts = params.top_k > 0 || params.top_p < 1.0;
    let first_level = if cuts { 0 } else { RANK_LEVELS };
    if params.top_k > 0 {
        let (place, total) = row.find(Stage::TopK, first_level, |_| params.top_k as f64);
        if (params.top_k as f64) < total {
            row.cut = Some(place);
        }
    }
    if params.top_p < 1.0 {
        let target = |total| f64::from(params.top_p) * total;
        row.cut = Some(row.find(Stage::TopP, first_level, target).0);
    }
    row.find(Stage::Draw, first_level, |total| uniform * total).0[1]
}

fn logits(vocabulary: usize, seed: u64) -> Vec<f32> {
    let mut state = seed | 1;
    (0..vocabulary)
        .map(|id| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888);
            let uniform = (state >> 40) as f32 / 8_388_608.0 - 1.0;
            match (id as u64 + seed) % 7 {
                0 => 3.5,
                1 if seed.is_multiple_of(3) => f32::NAN,
                2 if seed.is_multiple_of(4) => f32::NEG_INFINITY,
                _ => uniform * 8.0,
            }
        })
        .collect()
}

#[test]
fn the_search_finds_the_token_of_the_cpu() {
    let plain = SamplingParams::default();
    let requests = [
        plain,
        SamplingParams { temperature: 0.1, ..plain },
        SamplingParams { temperature: 20.0, ..plain },
        SamplingParams { top_k: 1, ..plain },
        SamplingParams { top_k: 7, ..plain },
        SamplingParams { top_k: 1 << 20, ..plain },
        SamplingParams { top_p: 1e-9, ..plain },
        SamplingParams { top_p: 0.5, ..plain },
        SamplingParams { top_p: 0.9999, temperature: 3.0, ..plain },
        SamplingParams { min_p: 0.05, ..plain },
        SamplingParams { min_p: 1.0, ..plain },
        SamplingParams { top_k: 40, top_p: 0.9, min_p: 0.01, temperature: 1.5, ..plain },
    ];
    for vocabulary in [1, 2, 15, 16, 17, 300, 5000] {
        for request in requests {
            for seed in 0..12 {
                let sampler = Sampler::new(SamplingParams { seed, ..request }).unwrap();
                let logits = logits(vocabulary, seed);
                let mut own = logits.clone();
                let history = TokenHistory::default();
                let Ok(expected) = sampler.sample(&history, 3, Adjustments::default(), &mut own)
                else {
                    assert!(vector::max(&logits) == f32::NEG_INFINITY);
                    continue;
                };
                let found = descend(&request, &logits, sampler.uniform(3));
                assert_eq!(found, expected.id, "{vocabulary} {seed} {request:?}");
            }
        }
    }
}

#[test]
fn the_example_of_the_documentation() {
    let mut logits = [f32::NEG_INFINITY; 10];
    logits[7] = 0.0;
    (logits[3], logits[9]) = (0.5f32.ln(), 0.5f32.ln());
    let params = SamplingParams { top_k: 5, ..SamplingParams::default() };
    // The row holds three candidates, so only top-p would cut it: nearly all of them.
    let params = SamplingParams { top_p: 0.999, ..params };
    assert_eq!(descend(&params, &logits, 0.6), 3);
}
