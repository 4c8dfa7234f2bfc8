//! Products of one row with FP8 weights in blocks, each in one launch with what comes before it: a norm,
//! or the sum of parts of attention, and the codes of the row.
//!
//! At one row a launch costs as much as the weights that it reads. Every block of threads makes the row
//! again, of numbers that lie in the second-level cache, and its weights are in its registers by then: they
//! are asked for before the kernel waits for the one ahead of it.
//!
//! Example: 2048 inputs are 16 groups with a scale. The 16 warps of a block have one each; together they
//! make 16 outputs of a tile, and the 132 blocks have 3 tiles each of 5120 outputs at most.

mod attention;
pub mod cuda;
mod norm;
pub(crate) mod text;

use text::{Cut, GROUP, ROWS};

/// Blocks of threads, one for each multiprocessor of an H200.
const BLOCKS: usize = 132;

/// Most warps of a block.
const WARPS_MAX: usize = 16;

/// Numbers of weights that a lane holds at most. With more of them the weights of a block arrive later than
/// those of the products of several rows do.
const NUMBERS_MAX: usize = 256;

impl Cut {
    /// All inputs in every block: what a norm needs. `None` where the weights do not fit the registers.
    fn whole(outputs: usize, inputs: usize) -> Option<Self> {
        let (tiles, groups) = (outputs / ROWS, inputs / GROUP);
        let across = (1..=WARPS_MAX).rev().find(|across| groups.is_multiple_of(*across))?;
        let blocks = tiles.min(BLOCKS);
        let (groups, tiles) = (groups / across, tiles.div_ceil(blocks));
        let cut = Self { outputs, inputs, across, groups, down: 1, tiles, blocks };
        cut.fits().then_some(cut)
    }

    /// A block for `parts` parts of the inputs and 128 outputs each.
    fn in_parts(outputs: usize, inputs: usize, parts: usize) -> Option<Self> {
        let across = inputs / GROUP / parts;
        let tiles_of_block = GROUP / ROWS;
        let down = [8, 4, 2, 1].into_iter().find(|down| down * across <= WARPS_MAX)?;
        let (tiles, blocks) = (tiles_of_block / down, outputs / GROUP);
        let cut = Self { outputs, inputs, across, groups: 1, down, tiles, blocks };
        let is_whole = outputs.is_multiple_of(GROUP) && inputs == parts * across * GROUP;
        (is_whole && cut.fits()).then_some(cut)
    }

    fn fits(&self) -> bool {
        let numbers = self.tiles * self.groups * ROWS * GROUP / 32;
        let is_whole = self.outputs.is_multiple_of(ROWS) && self.inputs.is_multiple_of(GROUP);
        // Blocks that wait for others to end would read nothing ahead.
        let is_at_once = self.blocks * self.parts() <= BLOCKS;
        is_whole && is_at_once && self.warps() >= 4 && numbers <= NUMBERS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_hold_all_weights() {
        for (outputs, inputs) in [(5120, 2048), (2048, 2048), (256, 512)] {
            let cut = Cut::whole(outputs, inputs).unwrap();
            assert!(cut.tiles * cut.blocks * cut.down * ROWS >= outputs, "{cut:?}");
            assert_eq!(cut.across * cut.groups * GROUP, inputs, "{cut:?}");
            assert_eq!(cut.parts(), 1);
        }
        assert_eq!(Cut::whole(8192, 3072), None);
        assert_eq!(Cut::whole(151_936, 2048), None);
    }

    #[test]
    fn blocks_of_parts_hold_all_weights() {
        for (outputs, inputs, parts) in [(2048, 4096, 8), (256, 4096, 8), (256, 512, 1)] {
            let cut = Cut::in_parts(outputs, inputs, parts).unwrap();
            assert_eq!(cut.tiles * cut.blocks * cut.down * ROWS, outputs, "{cut:?}");
            assert_eq!(cut.parts(), parts, "{cut:?}");
        }
        assert_eq!(Cut::in_parts(2048, 4096, 3), None);
        assert_eq!(Cut::in_parts(3072, 6144, 8), None);
    }
}
