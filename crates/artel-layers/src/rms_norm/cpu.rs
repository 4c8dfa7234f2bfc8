//! Rows in parallel once there are enough elements to pay for waking a thread.

use std::ops::Range;

use rayon::prelude::*;

use super::RmsNorm;
use crate::vector;

/// Below this many elements one core is done before a second has started.
const PARALLEL_ELEMENTS_MIN: usize = 1 << 16;

pub(super) fn forward(norm: &RmsNorm, rows: &[f32], out: &mut [f32]) {
    let width = norm.width();
    let each = |(row, out): (&[f32], &mut [f32])| write_row(norm, row, out);
    if rows.len() < PARALLEL_ELEMENTS_MIN {
        rows.chunks_exact(width).zip(out.chunks_exact_mut(width)).for_each(each);
    } else {
        rows.par_chunks_exact(width).zip(out.par_chunks_exact_mut(width)).for_each(each);
    }
}

pub(super) fn add_and_forward(norm: &RmsNorm, delta: &[f32], hidden: &mut [f32], out: &mut [f32]) {
    let width = norm.width();
    let each = |((delta, hidden), out): ((&[f32], &mut [f32]), &mut [f32])| {
        hidden.iter_mut().zip(delta).for_each(|(hidden, delta)| *hidden += delta);
        write_row(norm, hidden, out);
    };
    if hidden.len() < PARALLEL_ELEMENTS_MIN {
        let rows = delta.chunks_exact(width).zip(hidden.chunks_exact_mut(width));
        rows.zip(out.chunks_exact_mut(width)).for_each(each);
    } else {
        let rows = delta.par_chunks_exact(width).zip(hidden.par_chunks_exact_mut(width));
        rows.zip(out.par_chunks_exact_mut(width)).for_each(each);
    }
}

pub(super) fn forward_columns(
    norm: &RmsNorm,
    rows: &mut [f32],
    row_width: usize,
    columns: Range<usize>,
) {
    let each = |row: &mut [f32]| {
        for row in row[columns.clone()].chunks_exact_mut(norm.width()) {
            let scale = scale(norm, row);
            row.iter_mut().zip(&norm.weight).for_each(|(x, weight)| *x = weight * (*x * scale));
        }
    };
    if row_width == 0 {
        return;
    }
    if rows.len() < PARALLEL_ELEMENTS_MIN {
        rows.chunks_exact_mut(row_width).for_each(each);
    } else {
        rows.par_chunks_exact_mut(row_width).for_each(each);
    }
}

fn write_row(norm: &RmsNorm, row: &[f32], out: &mut [f32]) {
    let scale = scale(norm, row);
    for ((out, x), weight) in out.iter_mut().zip(row).zip(&norm.weight) {
        *out = weight * (x * scale);
    }
}

/// `1 / sqrt(mean square + epsilon)`.
fn scale(norm: &RmsNorm, row: &[f32]) -> f32 {
    let mean_square = vector::dot(row, row) / row.len() as f32;
    1.0 / (mean_square + norm.epsilon).sqrt()
}
