//! The definition, in float64.

/// `rows` `[T, H]`, each times its weight.
pub fn weigh_rows(rows: &[f64], weights: &[f32], hidden_size: usize) -> Vec<f64> {
    let weighed = |(row, &weight): (&[f64], &f32)| -> Vec<f64> {
        row.iter().map(|x| x * f64::from(weight)).collect()
    };
    rows.chunks(hidden_size).zip(weights).flat_map(weighed).collect()
}
