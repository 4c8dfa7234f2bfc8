//! Products of up to 64 rows with FP8 weights in blocks, whose weights all lie in shared memory.
//!
//! A block of threads has one tile, and there is one for each multiprocessor at most. So all weights are
//! asked for before the kernel waits for the one ahead of it, and what is left to wait for is the rows.
//! Sums are those of the other products of few rows: 128 inputs at a time, in their order.
//!
//! Example: 5120 x 2048 in 4 parts are 32 tiles of 160 outputs and 512 inputs, 80 KB each, on 128
//! multiprocessors.

mod text;

use artel_device::cuda::{Architecture, Assembly, KernelSpec};

use super::cuda::{LinearNumbers, LinearShape};
use super::product::{FEW_ROWS_MAX, MULTIPROCESSORS};

/// Inputs with a scale.
const GROUP: usize = 128;
/// Outputs that the warps load at once.
const COLUMNS_MULTIPLE: usize = 32;
/// Most outputs of a tile: each of two warpgroups has half of them, whose sums are in registers twice.
const COLUMNS_MAX: usize = 192;
/// Bytes of shared memory of a block.
const SHARED_MAX: usize = 227 * 1024;
/// Threads of a block: two warpgroups.
const THREADS: usize = 256;

/// Which outputs and inputs a block has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    outputs: usize,
    inputs: usize,
    /// Outputs of a tile.
    columns: usize,
    parts: usize,
}

impl Cut {
    /// For a product in `parts` parts; `None` where its weights do not fit.
    pub(super) fn of(shape: &LinearShape, parts: usize) -> Option<Self> {
        let LinearShape { outputs, inputs, numbers, bias } = *shape;
        let is_known = numbers == LinearNumbers::Fp8Block128
            && !bias
            && parts > 1
            && inputs.is_multiple_of(GROUP * parts);
        let tiles = MULTIPROCESSORS / parts;
        let fits = |columns: &usize| {
            outputs.is_multiple_of(*columns) && outputs / *columns <= tiles && is_known
        };
        let columns = (COLUMNS_MULTIPLE..=COLUMNS_MAX).step_by(COLUMNS_MULTIPLE).find(fits)?;
        let cut = Self { outputs, inputs, columns, parts };
        (cut.shared_bytes() <= SHARED_MAX).then_some(cut)
    }

    /// Groups of inputs of a part.
    fn groups(&self) -> usize {
        self.inputs / GROUP / self.parts
    }

    /// Outputs of a warpgroup.
    fn own_columns(&self) -> usize {
        self.columns / 2
    }

    /// Where the rows stand, behind the weights.
    fn rows_at(&self) -> usize {
        self.groups() * self.columns * GROUP
    }

    fn shared_bytes(&self) -> usize {
        self.rows_at() + self.groups() * FEW_ROWS_MAX * GROUP
    }

    /// The grid of a launch.
    pub(super) fn grid(&self) -> [usize; 3] {
        [self.outputs / self.columns, 1, self.parts]
    }

    pub(super) fn spec(&self) -> KernelSpec {
        let text = text::source(self).into();
        let assembly = Assembly { text, threads: THREADS, shared_bytes: self.shared_bytes() };
        let sizes = [self.outputs, self.inputs, self.columns, self.parts].map(|size| size as i32);
        KernelSpec::assembly("linear/resident", assembly, "multiply", Architecture::Sm90)
            .generics(sizes)
            .programmatic()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_one_for_each_multiprocessor_at_most() {
        for (outputs, inputs, parts, columns) in [
            (5120, 2048, 4, Some(160)),
            (2048, 4096, 8, Some(128)),
            (3072, 6144, 8, Some(192)),
            (2048, 768, 2, Some(32)),
            (8192, 3072, 2, None),
            (520, 2048, 8, None),
            (5120, 2048, 1, None),
        ] {
            let numbers = LinearNumbers::Fp8Block128;
            let shape = LinearShape { outputs, inputs, numbers, bias: false };
            let cut = Cut::of(&shape, parts);
            assert_eq!(cut.map(|cut| cut.columns), columns, "{shape:?}");
            let blocks = cut.map_or(0, |cut| cut.grid().iter().product());
            assert!(blocks <= MULTIPROCESSORS, "{shape:?}");
        }
    }
}
