//! The definition, in float64 from the frequencies on.

use super::{Rope, RopeStyle, RopeTarget};

/// `rows` with every rotary part turned.
pub fn apply(rope: &Rope, positions: &[usize], target: &RopeTarget, rows: &[f32]) -> Vec<f64> {
    let mut out: Vec<f64> = rows.iter().map(|&value| f64::from(value)).collect();
    let pairs = rope.inverse_frequencies().len();
    for (token, &position) in positions.iter().enumerate() {
        let row = token * target.row_width;
        for head in target.columns.clone().step_by(target.head_dim.max(1)) {
            for (pair, &frequency) in rope.inverse_frequencies().iter().enumerate() {
                let (first, second) = match rope.style {
                    RopeStyle::NeoX => (pair, pair + pairs),
                    RopeStyle::Interleaved => (2 * pair, 2 * pair + 1),
                };
                let start = row + head + target.offset;
                let (a, b) = (out[start + first], out[start + second]);
                // The angle is a float32 in every implementation; its rounding is part of it.
                let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
                let scaling = f64::from(rope.attention_scaling());
                out[start + first] = (a * cos - b * sin) * scaling;
                out[start + second] = (b * cos + a * sin) * scaling;
            }
        }
    }
    out
}
