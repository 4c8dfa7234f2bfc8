//! Attention of many new tokens of some sequences, which is bound by arithmetic: prefill, or a chunk of
//! it, over keys that are all in the paged cache.
//!
//! A block of threads takes [`TILE_ROWS`] tokens of one sequence and one query head, and walks over the
//! keys in steps of 64 from a multiple of 64 on, so that a token's result does not depend on how its
//! prompt was cut or on what else is in the batch. What it reads of the keys comes from the second
//! cache, for the heads that share them run side by side.
//!
//! Example: sequences with 70 and 5 new tokens are three tiles: rows 0-63 and 64-69 of sequence 0, and
//! rows 70-74 of sequence 1. The longest rows go first.
//!
//! Source: Dao, "FlashAttention-2", 2023.

pub mod cuda;
pub mod steps;

/// Tokens of a tile.
pub const TILE_ROWS: usize = 64;

/// One tile: some neighbouring new tokens of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefillTile {
    /// Number of the sequence in the step.
    pub sequence: usize,
    /// First row of the step that belongs to it.
    pub first_row: usize,
}

/// The tiles of a step whose sequences bring `tokens` new tokens each, those that see the most keys of
/// their sequence first.
pub fn tiles(tokens: &[usize]) -> Vec<PrefillTile> {
    let mut tiles = Vec::new();
    let mut start = 0;
    for (sequence, &count) in tokens.iter().enumerate() {
        let rows = (start..start + count).step_by(TILE_ROWS);
        tiles.extend(rows.map(|first_row| PrefillTile { sequence, first_row }));
        start += count;
    }
    let row_of =
        |tile: &PrefillTile| tile.first_row - tokens[..tile.sequence].iter().sum::<usize>();
    tiles.sort_by_key(|tile| std::cmp::Reverse(row_of(tile)));
    tiles
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_documentation() {
        let found: Vec<_> =
            tiles(&[70, 5]).iter().map(|tile| (tile.sequence, tile.first_row)).collect();
        assert_eq!(found, [(0, 64), (0, 0), (1, 70)]);
    }

    #[test]
    fn every_row_is_in_one_tile() {
        for tokens in [vec![], vec![0], vec![1], vec![64, 0, 65, 1, 1000]] {
            let mut rows = vec![0; tokens.iter().sum()];
            for PrefillTile { sequence, first_row } in tiles(&tokens) {
                let end = tokens[..=sequence].iter().sum::<usize>();
                rows[first_row..end.min(first_row + TILE_ROWS)]
                    .iter_mut()
                    .for_each(|row| *row += 1);
            }
            assert!(rows.iter().all(|&count| count == 1), "{tokens:?}");
        }
    }
}
