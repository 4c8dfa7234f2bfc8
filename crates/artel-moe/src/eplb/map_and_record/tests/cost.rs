//! What mapping and recording cost.

use std::{hint::black_box, time::Instant};

use super::*;

const TOKENS: usize = 4096;
const TOP_K: usize = 8;

fn logical_ids() -> Vec<i32> {
    let pair = |pair: usize| (pair.wrapping_mul(2_654_435_761) >> 9) as i32 % 256;
    (0..TOKENS * TOP_K).map(pair).collect()
}

/// Least time of a pair in nanoseconds, of many interleaved runs: first without, then with recording.
fn nanoseconds_a_pair(
    table: &ReplicaTable,
    mut step: impl FnMut(&mut [i32], LoadRecorder<'_>),
) -> [f64; 2] {
    let logical_ids = logical_ids();
    let (mut ids, mut load) = (logical_ids.clone(), vec![0; table.num_physical()]);
    let mut best = [f64::INFINITY; 2];
    for _ in 0..40 {
        for enabled in [false, true] {
            ids.copy_from_slice(&logical_ids);
            let recorder =
                LoadRecorder { expert_load: &mut load, enabled, unpadded_tokens: TOKENS };
            let start = Instant::now();
            step(black_box(&mut ids), recorder);
            let time = start.elapsed().as_secs_f64() * 1e9 / ids.len() as f64;
            best[usize::from(enabled)] = best[usize::from(enabled)].min(time);
        }
    }
    best
}

#[test]
fn not_recording_costs_nothing() {
    let placement = Placement::initial(256, 128).unwrap();
    let quotas = even_quotas(&logical_ids(), &placement);
    let table = ReplicaTable::new(&LayerPlan::equal(placement)).unwrap();
    for rule in every_rule() {
        let [off, on] = nanoseconds_a_pair(&table, |ids, recorder| {
            cpu::map_and_record(ids, TOP_K, &table, rule, recorder).unwrap();
        });
        println!("{rule:?}: {off:.2} ns a pair, {on:.2} with recording");
        // The map alone is what remains; a fifth is for the noise of a busy machine.
        assert!(off <= on * 1.2, "{off} without, {on} with");
    }
    let mut cursor = QuotaCursor::default();
    let [off, on] = nanoseconds_a_pair(&table, |ids, recorder| {
        cpu::map_by_quotas(ids, TOP_K, &table, (&quotas, &mut cursor), recorder).unwrap();
    });
    println!("quotas: {off:.2} ns a pair, {on:.2} with recording");
    assert!(off <= on * 1.2, "{off} without, {on} with");
}
