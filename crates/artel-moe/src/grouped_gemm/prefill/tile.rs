//! Sizes of a block of threads' work, and which of them serve which weights.

use crate::MoeError;
use crate::grouped_gemm::EXACT_DEPTH;
use crate::weights::StackLayout;

/// Columns of activations that share a scale.
const GROUP: usize = 128;

/// Sizes of the work of one block of threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PrefillTile {
    /// Rows of activations. They divide the block size of the assignment.
    pub rows: usize,
    /// Output features; where gate and up become one, so many of each.
    pub columns: usize,
    /// Input features of a step.
    pub depth: usize,
    /// Warps that compute, 4 or 8.
    pub warps: usize,
    /// Blocks that share a multiprocessor.
    pub occupancy: usize,
}

/// What is stored of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PrefillForm {
    /// Its sums.
    Sums,
    /// `silu(gate) * up` of the sums' halves, in float32 until it is rounded.
    SiluAndMultiply,
}

impl PrefillForm {
    /// Sums that one stored number takes.
    pub fn parts(self) -> usize {
        match self {
            Self::Sums => 1,
            Self::SiluAndMultiply => 2,
        }
    }
}

/// Steps that are written out one after the other, each with its own buffers, and how far ahead the
/// compiler may plan to load. Found by compiling: any other value of one tile makes the compiler
/// keep products of several turns in registers, which spills them and serialises the matrix units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unroll {
    /// Steps written out.
    pub steps: usize,
    /// The compiler's hint for loads, 1 to 10.
    pub latency: usize,
}

/// Which numbers of a row of activations share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowScales {
    /// There are none.
    None,
    /// All.
    Rows,
    /// 128 columns.
    Groups,
}

impl RowScales {
    /// What weights of `layout` ask of their rows.
    pub fn of(layout: &StackLayout) -> Self {
        match layout.scale_block {
            None => Self::None,
            Some([_, columns]) if columns >= layout.columns => Self::Rows,
            Some(_) => Self::Groups,
        }
    }

    /// Scales of one row.
    pub fn per_row(self, layout: &StackLayout) -> usize {
        match self {
            Self::None => 0,
            Self::Rows => 1,
            Self::Groups => layout.columns.div_ceil(GROUP),
        }
    }
}

impl PrefillTile {
    const fn new([rows, columns, depth, warps, occupancy]: [usize; 5]) -> Self {
        Self { rows, columns, depth, warps, occupancy }
    }

    /// All tiles for these weights that are worth measuring.
    pub fn candidates(layout: &StackLayout, form: PrefillForm) -> Vec<Self> {
        if layout.words.is_some() {
            return Vec::new();
        }
        let tiles: &[[usize; 5]] = match (RowScales::of(layout), layout.scale_block) {
            (RowScales::None, _) => {
                &[[128, 256, 64, 8, 1], [128, 128, 64, 4, 2], [64, 256, 64, 4, 1]]
            }
            (RowScales::Groups, _) if form == PrefillForm::SiluAndMultiply => {
                &[[128, 128, EXACT_DEPTH, 8, 1], [64, 128, EXACT_DEPTH, 4, 2]]
            }
            (RowScales::Groups, Some([rows, columns])) if rows % 128 != 0 || columns % 128 != 0 => {
                &[[64, 64, 128, 4, 3], [64, 64, 64, 4, 3], [64, 32, 64, 4, 3]]
            }
            _ => &[[128, 128, 128, 8, 1], [64, 128, 128, 4, 2]],
        };
        let tiles = tiles.iter().map(|&[rows, columns, depth, warps, occupancy]| {
            Self::new([rows, columns / form.parts(), depth, warps, occupancy])
        });
        tiles.filter(|tile| tile.check(layout, form, tile.rows).is_ok()).collect()
    }

    /// The fastest that was measured on an H200 for so many rows an expert, were they spread evenly.
    ///
    /// # Errors
    /// [`MoeError`] when no tile fits the scales of the weights.
    pub fn fastest(
        layout: &StackLayout,
        form: PrefillForm,
        rows_per_expert: usize,
    ) -> Result<Self, MoeError> {
        let candidates = Self::candidates(layout, form);
        let small = candidates.last().copied().ok_or_else(|| {
            let found = format!("{:?}", layout.scale_block);
            MoeError::config("scale block", found, "a multiple of 32 x 64")
        })?;
        // With 64 rows fewer are padding; with 128 the multiprocessors read less.
        let rows_min = if layout.number_bytes == 1 { 192 } else { 48 };
        Ok(if rows_per_expert < rows_min { small } else { candidates[0] })
    }

    /// Checks what the kernels need of a tile.
    ///
    /// # Errors
    /// [`MoeError::Config`] with what they need.
    pub fn check(
        &self,
        layout: &StackLayout,
        form: PrefillForm,
        block_size: usize,
    ) -> Result<(), MoeError> {
        let fail =
            |allowed: String| MoeError::config("a prefill tile", format!("{self:?}"), allowed);
        let Self { rows, columns, depth, warps, occupancy } = *self;
        let powers = [rows, columns, depth].iter().all(|size| size.is_power_of_two());
        if !powers || rows < 64 || columns < 32 || depth > GROUP || !matches!(warps, 4 | 8) {
            return Err(fail(
                "powers of two, at least 64 rows and 32 columns, 4 or 8 warps".into(),
            ));
        }
        if occupancy == 0 || !block_size.is_multiple_of(rows) {
            return Err(fail(format!("rows that divide blocks of {block_size}")));
        }
        if !layout.rows.is_multiple_of(form.parts())
            || (form != PrefillForm::Sums && RowScales::of(layout) == RowScales::Rows)
        {
            let allowed = "gate and up without scales that come last";
            return Err(MoeError::config("weights", format!("{layout:?}"), allowed));
        }
        let whole = |[rows, columns]: [usize; 2]| {
            (layout.rows / form.parts()).is_multiple_of(rows) && columns.is_multiple_of(GROUP)
        };
        if form != PrefillForm::Sums && !layout.scale_block.is_none_or(whole) {
            let allowed = "gates in whole scale blocks of 128 columns";
            return Err(MoeError::config("weights", format!("{layout:?}"), allowed));
        }
        // The copy engine moves rows of a multiple of sixteen bytes.
        if !(layout.columns * layout.number_bytes).is_multiple_of(16)
            || !(layout.rows / form.parts() * 2).is_multiple_of(16)
        {
            let allowed = "output features by 8, input features by 16 bytes";
            return Err(MoeError::config("weights", format!("{layout:?}"), allowed));
        }
        match layout.scale_block {
            Some([scale_rows, scale_columns])
                if RowScales::of(layout) == RowScales::Groups
                    && (scale_rows % columns != 0 || scale_columns % depth != 0) =>
            {
                Err(fail(format!("within scale blocks of {scale_rows} x {scale_columns}")))
            }
            _ => Ok(()),
        }
    }

    /// How the loop over `steps` steps is written.
    pub fn unroll(&self, layout: &StackLayout, steps: usize) -> Unroll {
        let choices: &[(usize, usize)] = match (RowScales::of(layout), self.rows, self.occupancy) {
            // With one step, the small one of two that share a multiprocessor runs out of registers.
            (RowScales::None, _, 2) => &[(4, 4), (2, 4), (3, 4)],
            (RowScales::None, ..) => &[(4, 4), (2, 4), (1, 4)],
            // Gate and up of a tile.
            (_, 64, 2) if self.columns < 128 => &[(4, 1), (6, 1), (3, 1)],
            (_, _, 1) if self.columns < 128 && self.depth < GROUP => &[(6, 1), (8, 1), (4, 1)],
            (_, 64, 2) => &[(3, 4), (2, 1)],
            (_, 64, _) => &[(3, 1)],
            _ => &[(4, 1), (3, 1), (2, 1)],
        };
        // The last turn runs over the end: it multiplies zeros.
        let cost = |&&(unrolled, _): &&(usize, usize)| steps.div_ceil(unrolled) * unrolled;
        let &(steps, latency) = choices.iter().min_by_key(cost).expect("there is a choice");
        Unroll { steps, latency }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(rows: usize, columns: usize, scale_block: Option<[usize; 2]>) -> StackLayout {
        let number_bytes = if scale_block.is_some() { 1 } else { 2 };
        StackLayout { experts: 8, rows, columns, number_bytes, scale_block, words: None }
    }

    #[test]
    fn tiles_stay_within_scales() {
        for block in [None, Some([128, 128]), Some([64, 128]), Some([32, 64]), Some([1, 768])] {
            let layout = layout(384, 768, block);
            let candidates = PrefillTile::candidates(&layout, PrefillForm::Sums);
            assert!(!candidates.is_empty(), "{block:?}");
            for tile in candidates {
                tile.check(&layout, PrefillForm::Sums, 128).expect("a candidate is legal");
            }
        }
        let odd = layout(384, 768, Some([16, 16]));
        assert!(PrefillTile::candidates(&odd, PrefillForm::Sums).is_empty());
        let error = PrefillTile::fastest(&odd, PrefillForm::Sums, 9).unwrap_err();
        assert!(error.to_string().contains("32 x 64"), "{error}");
    }

    #[test]
    fn more_rows_take_larger_tiles() {
        let fp8 = layout(1536, 3072, Some([128, 128]));
        let rows =
            |share| PrefillTile::fastest(&fp8, PrefillForm::Sums, share).expect("tiles fit").rows;
        assert_eq!([rows(16), rows(128), rows(256)], [64, 64, 128]);
    }

    #[test]
    fn no_turn_is_wasted_if_one_fits() {
        let layout = layout(1536, 3072, Some([128, 128]));
        let candidates = PrefillTile::candidates(&layout, PrefillForm::Sums);
        let [large, small] = candidates[..] else { panic!("two tiles") };
        let steps = |tile: PrefillTile, steps| tile.unroll(&layout, steps).steps;
        assert_eq!([24, 6, 2, 23].map(|count| steps(large, count)), [4, 3, 2, 4]);
        assert_eq!([24, 6, 2, 4].map(|count| steps(small, count)), [3, 3, 2, 2]);
    }

    #[test]
    fn sums_that_codes_are_made_of_are_short() {
        let (layout, form) = (layout(1536, 3072, Some([128, 128])), PrefillForm::SiluAndMultiply);
        let candidates = PrefillTile::candidates(&layout, form);
        assert_eq!(candidates.iter().map(|tile| tile.depth).collect::<Vec<_>>(), [EXACT_DEPTH; 2]);
        // 3072 and 2048 columns in steps of 64.
        let steps = |count| candidates.iter().map(move |tile| tile.unroll(&layout, count).steps);
        assert_eq!([48, 32].map(|count| steps(count).collect::<Vec<_>>()), [[6, 4], [8, 4]]);
    }

    #[test]
    fn unaligned_weights_are_refused() {
        let odd = layout(100, 3072, Some([128, 128]));
        assert!(PrefillTile::candidates(&odd, PrefillForm::Sums).is_empty());
    }

    #[test]
    fn gate_and_up_share_a_tile() {
        let columns = |form| PrefillTile::candidates(&layout(1536, 2048, None), form)[0].columns;
        assert_eq!([PrefillForm::Sums, PrefillForm::SiluAndMultiply].map(columns), [256, 128]);
        let scaled = |block| {
            let layout = layout(1536, 2048, Some(block));
            let tiles = PrefillTile::candidates(&layout, PrefillForm::SiluAndMultiply);
            tiles.into_iter().map(|tile| [tile.rows, tile.columns]).collect::<Vec<_>>()
        };
        assert_eq!([[128; 2], [64, 128]].map(scaled), [const { [[128, 64], [64, 64]] }; 2]);
        for block in [[32, 128], [128, 64], [1, 2048], [768, 2048], [512, 128]] {
            assert!(scaled(block).is_empty(), "{block:?}");
        }
    }
}
