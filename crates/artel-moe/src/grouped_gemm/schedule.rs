//! From blocks to groups: all rows of one expert next to each other, padding gone.

use std::ops::Range;

use super::{PANEL_ROWS, TILE_ROWS};
use crate::MoeError;
use crate::assignment::Assignment;
use crate::quant::ScaleGrid;

/// The work of one grouped GEMM. Neighbouring blocks of one expert are one group, so that a panel
/// of its weights is used for all its rows while it is in the cache.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// Pairs, group by group.
    pub pairs: Vec<u32>,
    /// Where in `pairs` each group ends.
    pub group_ends: Vec<usize>,
    /// Expert of each group; `None`: the rows become zero.
    pub experts: Vec<Option<usize>>,
    /// First operand tile of each group, and the number of tiles at the end.
    pub first_tiles: Vec<usize>,
    /// Run of `pairs` of each operand tile, and the rows of its group.
    pub tile_pairs: Vec<(Range<usize>, usize)>,
    /// Output columns at which panels begin and end.
    pub panel_bounds: Vec<usize>,
    /// Part of the stacked matrix and the first row in it, of each panel.
    pub panel_parts: Vec<(usize, usize)>,
}

impl Schedule {
    /// Groups for `assignment` over `experts` experts.
    pub fn group(&mut self, assignment: &Assignment, experts: usize) -> Result<(), MoeError> {
        self.clear();
        let padded = assignment.num_tokens_post_padded;
        let block_size = assignment.block_size;
        if padded > assignment.sorted_token_ids.len() {
            let found = assignment.sorted_token_ids.len();
            return Err(MoeError::Shape { what: "sorted_token_ids", expected: padded, found });
        }
        if padded > 0
            && (block_size == 0 || padded.div_ceil(block_size) > assignment.expert_ids.len())
        {
            let allowed =
                format!("a size for {padded} positions and {} blocks", assignment.expert_ids.len());
            return Err(MoeError::config("block_size", block_size, allowed));
        }
        let blocks = assignment.sorted_token_ids[..padded].chunks(block_size.max(1));
        for (block, &expert) in blocks.zip(&assignment.expert_ids) {
            let expert = usize::try_from(expert).ok();
            if expert.is_some_and(|expert| expert >= experts) {
                let found = expert.unwrap_or_default();
                return Err(MoeError::config("an expert id", found, format!("below {experts}")));
            }
            let work = block.iter().filter_map(|&pair| u32::try_from(pair).ok());
            self.add_block(expert, work.filter(|&pair| (pair as usize) < assignment.num_pairs));
        }
        self.cut_into_tiles();
        Ok(())
    }

    /// One group of rows `0..rows`, for a dense product.
    pub fn group_all(&mut self, rows: usize) {
        self.clear();
        self.add_block(Some(0), 0..rows as u32);
        self.cut_into_tiles();
    }

    /// Panels over the rows of a stacked matrix; no panel crosses from one part to the next, nor
    /// from one block of scales to the next.
    pub fn cut_into_panels(&mut self, parts: impl IntoIterator<Item = (usize, ScaleGrid)>) {
        self.panel_bounds.clear();
        self.panel_parts.clear();
        self.panel_bounds.push(0);
        let mut first_row = 0;
        for (part, (rows, grid)) in parts.into_iter().enumerate() {
            let offset = match grid {
                ScaleGrid::Block { row_offset, .. } => row_offset % PANEL_ROWS,
                _ => 0,
            };
            let mut row = 0;
            while row < rows {
                self.panel_parts.push((part, row));
                row = (row + PANEL_ROWS - (offset + row) % PANEL_ROWS).min(rows);
                self.panel_bounds.push(first_row + row);
            }
            first_row += rows;
        }
    }

    fn clear(&mut self) {
        self.pairs.clear();
        self.group_ends.clear();
        self.experts.clear();
    }

    fn add_block(&mut self, expert: Option<usize>, work: impl Iterator<Item = u32>) {
        let before = self.pairs.len();
        self.pairs.extend(work);
        if self.pairs.len() == before {
            return;
        }
        if self.experts.last() == Some(&expert) {
            self.group_ends.pop();
        } else {
            self.experts.push(expert);
        }
        self.group_ends.push(self.pairs.len());
    }

    fn cut_into_tiles(&mut self) {
        self.tile_pairs.clear();
        self.first_tiles.clear();
        let mut start = 0;
        for &end in &self.group_ends {
            self.first_tiles.push(self.tile_pairs.len());
            let tiles = (start..end).step_by(TILE_ROWS);
            self.tile_pairs
                .extend(tiles.map(|first| (first..(first + TILE_ROWS).min(end), end - start)));
            start = end;
        }
        self.first_tiles.push(self.tile_pairs.len());
    }
}
