//! Tables once a step, then two multiplications an element.

use rayon::prelude::*;

use super::{Rope, RopeStyle, RopeTable, RopeTarget};

/// Below this many elements one core is done before a second has started.
const PARALLEL_ELEMENTS_MIN: usize = 1 << 15;

pub(super) fn table(rope: &Rope, positions: &[usize]) -> RopeTable {
    let pairs = rope.inverse_frequencies.len();
    let mut cos = vec![0f32; positions.len() * pairs];
    let mut sin = vec![0f32; positions.len() * pairs];
    let rows = cos.par_chunks_exact_mut(pairs).zip(sin.par_chunks_exact_mut(pairs));
    rows.zip(positions).with_min_len(64).for_each(|((cos, sin), &position)| {
        for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(&rope.inverse_frequencies) {
            // Sine and cosine in float64: float32 libraries differ in the last place.
            let angle = position as f32 * frequency;
            let (exact_sin, exact_cos) = f64::from(angle).sin_cos();
            *cos = exact_cos as f32 * rope.attention_scaling;
            *sin = exact_sin as f32 * rope.attention_scaling;
        }
    });
    RopeTable { style: rope.style, pairs, cos, sin }
}

pub(super) fn apply(table: &RopeTable, target: &RopeTarget, rows: &mut [f32]) {
    if target.columns.is_empty() {
        return;
    }
    let each = |((row, cos), sin): ((&mut [f32], &[f32]), &[f32])| {
        for head in row[target.columns.clone()].chunks_exact_mut(target.head_dim) {
            let part = &mut head[target.offset..target.offset + 2 * table.pairs];
            match table.style {
                RopeStyle::NeoX => turn_halves(part, cos, sin),
                RopeStyle::Interleaved => turn_neighbours(part, cos, sin),
            }
        }
    };
    if rows.len() < PARALLEL_ELEMENTS_MIN {
        let tables = table.cos.chunks_exact(table.pairs).zip(table.sin.chunks_exact(table.pairs));
        let rows = rows.chunks_exact_mut(target.row_width).zip(tables);
        rows.for_each(|(row, (cos, sin))| each(((row, cos), sin)));
    } else {
        rows.par_chunks_exact_mut(target.row_width)
            .zip(table.cos.par_chunks_exact(table.pairs))
            .zip(table.sin.par_chunks_exact(table.pairs))
            .for_each(each);
    }
}

fn turn_halves(part: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = part.split_at_mut(cos.len());
    for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

fn turn_neighbours(part: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (pairs, _) = part.as_chunks_mut::<2>();
    for (([a, b], cos), sin) in pairs.iter_mut().zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}
