//! Products whose tiles have as many rows as an expert has: for Hopper, in assembly.
//!
//! A tile of 64 or 128 rows computes whole tiles, whatever an expert has; with 256 rows an expert on
//! average that is a quarter of the work. The matrix instructions of a warpgroup (`wgmma`) take any
//! multiple of 8 rows on one of their sides. So weights stand on the side of 64, and rows on the
//! other: an expert is cut into the fewest equal tiles of at most [`rows_max`] rows, in steps of
//! [`BLOCK_ROWS`], and each tile takes the loop that was written for its height. The tile language
//! knows only powers of two.
//!
//! One block of threads stays on each multiprocessor and walks over tiles. A warp moves weights and
//! rows into a ring of stages in shared memory (copy engine, tensor maps); two warpgroups multiply 64
//! features each. Gate and up alternate by 8 features, so that a thread has both of a number.
//!
//! FP8 codes have two sums for each number: what the matrix units sum is added to float32 sums,
//! times its scales, every 32 to 128 input features. Scales that cover all of these come last.
//!
//! Sums of integers are exact, so they need one each, and scales of features and rows come last.
//!
//! Where an expert has many hundred rows, as a linear map has, and scales stand in blocks, rows take
//! the side of 64: a thread then has two rows and many features, so few scales, and registers for
//! tiles of 192 weights.

#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "cuda")]
mod text;
pub mod words;

use super::{PrefillForm, RowScales};
use crate::MoeError;
use crate::grouped_gemm::words::WordCode;
use crate::weights::StackLayout;

/// The only architecture that has the instructions.
pub(crate) const ARCHITECTURE: &str = "sm_90";
/// Rows of a block of the assignment: heights of tiles are multiples.
pub const BLOCK_ROWS: usize = 16;
/// Bytes of a row of a stage, of weights and of activations.
pub(crate) const ROW_BYTES: usize = 128;
/// Columns that share a scale.
const GROUP: usize = 128;
/// Weights of a tile, gate and up together.
pub(crate) const WEIGHTS: usize = 128;
/// Threads: one warpgroup that loads and two that multiply.
#[cfg(feature = "cuda")]
const THREADS: usize = 384;
/// Most rows of a tile whose rows stand on the long side.
pub const LONG_ROWS: usize = 128;
/// Weights of such a tile, gates and ups together.
pub const LONG_FEATURES: usize = 192;
/// Most experts whose table fits beside the stages.
const EXPERTS_MAX: usize = 512;

/// Input features beyond which sums of integers might not fit 32 bits.
const INTEGER_COLUMNS_MAX: usize = 1 << 17;

/// Most rows of a tile whose numbers have so many sums each: what the accumulators hold. Codes of FP8
/// have two.
pub fn rows_max(sums: usize) -> usize {
    if sums == 2 { 144 } else { 288 }
}

/// Where the rows of a product stand in the matrix instructions.
#[cfg(feature = "cuda")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// On the side of any multiple of 8, so that tiles are as high as an expert has rows.
    Short,
    /// On the side of 64: faster where an expert has many hundred.
    Long,
}

/// When the assignment was made that a product reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Assigned {
    /// Perhaps only just: the product waits for the kernel before, like all others.
    Lately,
    /// Before a kernel of this family that came before: that one lets others start only when it has waited itself. So
    /// the product looks for its tiles and loads weights while the kernel before still runs.
    Before,
}

/// Input features of a stage.
pub(crate) fn depth(number_bytes: usize) -> usize {
    ROW_BYTES / number_bytes
}

/// Scales of codes.
#[cfg(feature = "cuda")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Scales {
    /// Output features that share one.
    features: usize,
    /// Whether each [`GROUP`] of input features has its own, of weights and of rows.
    grouped: bool,
}

/// Whether there is a kernel for these weights.
///
/// # Errors
/// [`MoeError::Config`] with what they must be.
pub fn check(layout: &StackLayout, form: PrefillForm) -> Result<(), MoeError> {
    let features = layout.rows / form.parts();
    // Each half of a tile's weights has one scale, as do the columns of a stage.
    let half = WEIGHTS / 2;
    let scales_fit = match (RowScales::of(layout), layout.scale_block) {
        (RowScales::Groups, Some([rows, columns])) => {
            let whole = form.parts() == 1 || features.is_multiple_of(rows);
            rows.is_multiple_of(half) && columns == GROUP && whole
        }
        _ => true,
    };
    let fits = layout.words.is_none()
        && matches!((layout.number_bytes, layout.scale_block), (2, None) | (1, Some(_)))
        && scales_fit
        && layout.rows == features * form.parts()
        && features.is_multiple_of(8)
        && (layout.columns * layout.number_bytes).is_multiple_of(16)
        // Without a loop the assembler makes every instruction wait.
        && layout.columns > depth(layout.number_bytes)
        && layout.experts <= EXPERTS_MAX;
    if fits {
        return Ok(());
    }
    let allowed = format!(
        "16-bit, or FP8 with a scale for {half} x {GROUP} numbers or more, features by 8, more than \
         {ROW_BYTES} bytes of input features, at most {EXPERTS_MAX} experts"
    );
    Err(MoeError::config("weights", format!("{layout:?}"), allowed))
}

/// Whether there is a kernel for these integers.
///
/// # Errors
/// [`MoeError::Config`] with what they must be.
pub fn check_integers(layout: &StackLayout, form: PrefillForm) -> Result<(), MoeError> {
    let features = layout.rows / form.parts();
    let fits = layout.words.is_some_and(|words| {
        words.format.code == WordCode::Int8Rows && words.parts == form.parts()
    }) && layout.rows == features * form.parts()
        && features.is_multiple_of(8)
        // Without a loop the assembler makes every instruction wait.
        && (ROW_BYTES + 1..=INTEGER_COLUMNS_MAX).contains(&layout.columns)
        && layout.experts <= EXPERTS_MAX;
    if fits {
        return Ok(());
    }
    let allowed = format!(
        "INT8 with a scale a row, features by 8, more than {ROW_BYTES} and at most {INTEGER_COLUMNS_MAX} input \
         features, at most {EXPERTS_MAX} experts"
    );
    Err(MoeError::config("weights", format!("{layout:?}"), allowed))
}

/// Whether there is a kernel for these weights with rows on the long side.
///
/// # Errors
/// [`MoeError::Config`] with what they must be.
pub fn check_long(layout: &StackLayout, form: PrefillForm) -> Result<(), MoeError> {
    check(layout, form)?;
    if RowScales::of(layout) == RowScales::Groups {
        return Ok(());
    }
    Err(MoeError::config("weights", format!("{layout:?}"), "FP8 in blocks"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grouped_gemm::words::WordFormat;
    use crate::weights::WordStack;

    const HALVES: StackLayout = StackLayout {
        experts: 8,
        rows: 1536,
        columns: 2048,
        number_bytes: 2,
        scale_block: None,
        words: None,
    };

    #[test]
    fn integers_with_a_scale_a_row_are_served() {
        let words = |code, parts| WordStack { format: WordFormat { code, group: 128 }, parts };
        let integers = |parts| StackLayout {
            number_bytes: 1,
            words: Some(words(WordCode::Int8Rows, parts)),
            ..HALVES
        };
        for form in [PrefillForm::Sums, PrefillForm::SiluAndMultiply] {
            let fits = integers(form.parts());
            for columns in [192, 768, 1 << 17] {
                assert_eq!(check_integers(&StackLayout { columns, ..fits }, form), Ok(()));
            }
            for layout in [
                HALVES,
                integers(3 - form.parts()),
                StackLayout { words: Some(words(WordCode::Int8, form.parts())), ..fits },
                StackLayout { rows: 1530, ..fits },
                StackLayout { columns: 128, ..fits },
                StackLayout { columns: (1 << 17) + 1, ..fits },
                StackLayout { experts: 1024, ..fits },
            ] {
                let error = check_integers(&layout, form).unwrap_err().to_string();
                assert!(error.contains("a scale a row"), "{error}");
            }
            assert!(check(&fits, form).is_err());
        }
    }

    #[test]
    fn what_tiles_cannot_serve_is_refused() {
        let codes =
            |scale_block| StackLayout { number_bytes: 1, scale_block: Some(scale_block), ..HALVES };
        for form in [PrefillForm::Sums, PrefillForm::SiluAndMultiply] {
            for fits in [HALVES, codes([128, 128]), codes([64, 128]), codes([1, 2048])] {
                assert_eq!(check(&fits, form), Ok(()));
            }
            for layout in [
                codes([32, 128]),
                codes([128, 64]),
                StackLayout { number_bytes: 1, ..HALVES },
                StackLayout { rows: 1530, ..HALVES },
                StackLayout { columns: 2044, ..HALVES },
                StackLayout { columns: 64, ..HALVES },
                StackLayout { columns: 128, ..codes([128, 128]) },
                StackLayout { experts: 1024, ..HALVES },
            ] {
                let error = check(&layout, form).unwrap_err().to_string();
                assert!(error.contains("features by 8"), "{error}");
                assert!(check_long(&layout, form).is_err());
            }
            assert_eq!(check_long(&codes([128, 128]), form), Ok(()));
            for layout in [HALVES, codes([1, 2048])] {
                let error = check_long(&layout, form).unwrap_err().to_string();
                assert!(error.contains("FP8 in blocks"), "{error}");
            }
        }
    }
}
