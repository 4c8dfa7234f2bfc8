//! Integers in words of 32 bits, as quantisation tools pack them, turned into rows of codes.

use rayon::prelude::*;

/// Rows that are written at a time: a cache line of each row of the source.
const ROWS_AT_A_TIME: usize = 16;

/// Place `i` of an AWQ word belongs to output feature `AWQ_ORDER[i]` of its eight.
const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// Codes `[rows, columns * bits / 8]` from words `[columns * bits / 32, rows]` whose low bits are the
/// first of their columns: GPTQ.
pub(super) fn rows_from_input_words(
    words: &[u32],
    [rows, columns]: [usize; 2],
    bits: usize,
) -> Vec<u8> {
    let row_bytes = columns * bits / 8;
    let mut codes = vec![0u8; rows * row_bytes];
    let blocks = codes.par_chunks_mut((ROWS_AT_A_TIME * row_bytes).max(1)).enumerate();
    blocks.for_each(|(block, codes)| {
        for (place, words) in words.chunks_exact(rows).enumerate() {
            let words = &words[block * ROWS_AT_A_TIME..];
            for (codes, word) in codes.chunks_exact_mut(row_bytes).zip(words) {
                codes[place * 4..place * 4 + 4].copy_from_slice(&word.to_le_bytes());
            }
        }
    });
    codes
}

/// Codes of four bits `[rows, columns / 2]` from words `[columns, rows / 8]`: AWQ.
pub(super) fn rows_from_awq_words(words: &[u32], [rows, columns]: [usize; 2]) -> Vec<u8> {
    let row_bytes = columns / 2;
    let mut codes = vec![0u8; rows * row_bytes];
    let rows_per_block = 8 * ROWS_AT_A_TIME;
    let blocks = codes.par_chunks_mut((rows_per_block * row_bytes).max(1)).enumerate();
    blocks.for_each(|(block, codes)| {
        for (pair, words) in words.chunks_exact(2 * rows / 8).enumerate() {
            let (even, odd) = words.split_at(rows / 8);
            let first = block * ROWS_AT_A_TIME;
            for (eight, codes) in codes.chunks_mut(8 * row_bytes).enumerate() {
                for (place, row) in AWQ_ORDER.into_iter().enumerate() {
                    let code = |word: u32| (word >> (4 * place) & 15) as u8;
                    codes[row * row_bytes + pair] =
                        code(even[first + eight]) | code(odd[first + eight]) << 4;
                }
            }
        }
    });
    codes
}

/// Zero points `[rows, groups]` from words `[groups, rows * bits / 32]`; place `i` of a word belongs to
/// row `order[i]` of its own.
pub(super) fn zeros_from_output_words(
    words: &[u32],
    [rows, groups]: [usize; 2],
    bits: usize,
    awq: bool,
) -> Vec<u8> {
    let per_word = 32 / bits;
    let mut zeros = vec![0u8; rows * groups];
    for (group, words) in words.chunks_exact(rows / per_word).enumerate() {
        for (index, word) in words.iter().enumerate() {
            for (place, awq_row) in AWQ_ORDER.into_iter().enumerate().take(per_word) {
                let row = if awq { awq_row } else { place };
                let zero = word >> (bits * place) & ((1 << bits) - 1);
                zeros[(index * per_word + row) * groups + group] = zero as u8;
            }
        }
    }
    zeros
}

/// Zero points `[rows, groups]` from words `[ceil(rows * bits / 32), groups]`: compressed-tensors.
pub(super) fn zeros_from_packed_rows(
    words: &[u32],
    [rows, groups]: [usize; 2],
    bits: usize,
) -> Vec<u8> {
    let per_word = 32 / bits;
    let zero = |index: usize| {
        let (row, group) = (index / groups, index % groups);
        let word = words[row / per_word * groups + group];
        (word >> (bits * (row % per_word)) & ((1 << bits) - 1)) as u8
    };
    (0..rows * groups).map(zero).collect()
}

/// `[columns, rows]` from `[rows, columns]`.
pub(super) fn turned(numbers: &[f32], columns: usize) -> Vec<f32> {
    let turned =
        (0..columns).flat_map(|column| numbers.iter().skip(column).step_by(columns.max(1)));
    turned.copied().collect()
}
