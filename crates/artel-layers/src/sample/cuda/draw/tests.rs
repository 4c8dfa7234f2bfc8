//! The kernels' search, written for the host, against the CPU's sampler: what units, bins, targets and
//! cuts mean is checked without a GPU.

use std::collections::BTreeMap;

use super::BINS;
use crate::sample::{Adjustments, Sampler, SamplingParams, TokenHistory};
use crate::vector;

/// Rank and id.
type Place = (u32, u32);

/// Candidates of a row in the order of their places, with their units.
struct Row {
    tokens: BTreeMap<Place, i64>,
}

fn bin_of(rank: u32) -> usize {
    ((rank >> 17) as i32 - 7552).clamp(0, BINS as i32 - 1) as usize
}

fn share_of(total: i64, share: f64) -> f64 {
    share * total as f64
}

impl Row {
    fn new(params: &SamplingParams, logits: &[f32]) -> Self {
        let largest = vector::max(logits);
        let least = params.min_p.ln();
        let placed = |(id, &logit): (usize, &f32)| {
            let relative =
                if logit == largest { 0.0 } else { (logit - largest) / params.temperature };
            let is_candidate = relative > f32::NEG_INFINITY && relative >= least;
            let place = (relative.to_bits() & 0x7fff_ffff, id as u32);
            is_candidate.then(|| (place, (vector::exp(relative) * 2f32.powi(42)) as i64))
        };
        Self { tokens: logits.iter().enumerate().filter_map(placed).collect() }
    }

    /// The place up to which amounts reach `wanted`: first its bin, then the place within it.
    fn reached(&self, amount: impl Fn(i64) -> i64, wanted: i64) -> Place {
        let mut bins = [0i64; BINS];
        self.tokens.iter().for_each(|(place, units)| bins[bin_of(place.0)] += amount(*units));
        let mut before = 0;
        let bin = bins.iter().position(|sum| {
            before += sum;
            before >= wanted
        });
        let bin = bin.expect("no more is wanted than there is");
        before -= bins[bin];
        let mut inside = self.tokens.iter().filter(|(place, _)| bin_of(place.0) == bin);
        let found = inside.find(|(_, units)| {
            before += amount(**units);
            before >= wanted
        });
        *found.expect("the bin reaches it").0
    }

    fn cut_after(&mut self, place: Place) {
        self.tokens.retain(|other, _| *other <= place);
    }

    fn total(&self) -> i64 {
        self.tokens.values().sum()
    }
}

fn draw(params: &SamplingParams, logits: &[f32], uniform: f64) -> u32 {
    let mut row = Row::new(params, logits);
    let is_cut = (1..row.tokens.len()).contains(&params.top_k);
    if is_cut {
        row.cut_after(row.reached(|_| 1, params.top_k as i64));
    }
    if params.top_p < 1.0 {
        let total = row.total();
        let wanted = share_of(total, f64::from(params.top_p)).ceil() as i64;
        row.cut_after(row.reached(|units| units, wanted.min(total).max(1)));
    }
    let total = row.total();
    let wanted = (share_of(total, uniform).floor() as i64 + 1).min(total);
    if is_cut || params.top_p < 1.0 {
        return row.reached(|units| units, wanted).1;
    }
    let mut by_id: Vec<(u32, i64)> = row.tokens.iter().map(|(place, u)| (place.1, *u)).collect();
    by_id.sort_unstable();
    let mut up_to = 0;
    let found = by_id.iter().find(|(_, units)| {
        up_to += units;
        up_to >= wanted
    });
    found.expect("no more is wanted than there is").0
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
                let found = draw(&request, &logits, sampler.uniform(3));
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
    assert_eq!(draw(&params, &logits, 0.6), 3);
}
