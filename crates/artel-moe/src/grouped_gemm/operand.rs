//! Activations as kernels read them: gathered per expert and cut into tiles of [`TILE_ROWS`] rows.

use std::ops::Range;

/// Rows of a tile. The last tile of an expert may have fewer.
pub const TILE_ROWS: usize = 16;

/// The rows of one tile before they are prepared, wherever they lie.
#[derive(Debug, Clone, Copy)]
pub struct GatheredRows<'a, A> {
    pub(super) source: &'a [A],
    pub(super) columns: usize,
    pub(super) pairs: &'a [u32],
    pub(super) pairs_per_row: usize,
    pub(super) group_rows: usize,
    pub(super) input_scale: Option<f32>,
}

impl<'a, A> GatheredRows<'a, A> {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// Rows of the whole group that this tile is part of: what a kernel chooses its layout by.
    pub fn group_rows(&self) -> usize {
        self.group_rows
    }

    /// The scale of all rows, where the weights come with one.
    pub fn input_scale(&self) -> Option<f32> {
        self.input_scale
    }

    /// Numbers in a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// One row.
    pub fn row(&self, index: usize) -> &'a [A] {
        let start = self.pairs[index] as usize / self.pairs_per_row * self.columns;
        &self.source[start..start + self.columns]
    }
}

/// Prepared rows: a run of tiles.
#[derive(Debug, Clone, Copy)]
pub struct Operand<'a> {
    tiles: &'a [f32],
    tile_words: usize,
    rows: usize,
    group_rows: usize,
}

impl<'a> Operand<'a> {
    pub(super) fn new(tiles: &'a [f32], tile_words: usize, rows: usize) -> Self {
        debug_assert_eq!(tiles.len(), rows.div_ceil(TILE_ROWS) * tile_words);
        Self { tiles, tile_words, rows, group_rows: rows }
    }

    /// Rows of the whole group that these tiles are part of.
    pub fn group_rows(&self) -> usize {
        self.group_rows
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of tiles.
    pub fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE_ROWS)
    }

    /// The words of one tile.
    pub fn tile(&self, index: usize) -> &'a [f32] {
        &self.tiles[index * self.tile_words..(index + 1) * self.tile_words]
    }

    /// Rows in use of one tile.
    pub fn tile_rows(&self, index: usize) -> usize {
        (self.rows - index * TILE_ROWS).min(TILE_ROWS)
    }

    /// A run of tiles.
    pub fn slice(&self, tiles: Range<usize>) -> Self {
        let rows = (tiles.end * TILE_ROWS).min(self.rows) - tiles.start * TILE_ROWS;
        let words = tiles.start * self.tile_words..tiles.end * self.tile_words;
        Self { tiles: &self.tiles[words], rows, ..*self }
    }
}
