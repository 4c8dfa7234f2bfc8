//! The definition: one row after the other.

/// Copies row `t` of `input` `[T, hidden_size]` to each of `positions[t]` `[T, K]` that is not
/// negative.
pub fn permute<A: Copy>(input: &[A], hidden_size: usize, positions: &[i32], out: &mut [A]) {
    let tokens = input.len() / hidden_size;
    let top_k = positions.len().checked_div(tokens).unwrap_or(0);
    for (pair, &position) in positions.iter().enumerate() {
        if let Ok(position) = usize::try_from(position) {
            let row = &input[pair / top_k * hidden_size..][..hidden_size];
            out[position * hidden_size..][..hidden_size].copy_from_slice(row);
        }
    }
}
