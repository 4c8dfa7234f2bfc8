//! Products whose tiles have as many rows as an expert has: for Hopper, in assembly.
//!
//! A tile of 64 or 128 rows computes whole tiles, whatever an expert has; with 256 rows an expert on
//! average that is a quarter of the work. The matrix instructions of a warpgroup (`wgmma`) take any
//! multiple of 8 rows on one of their sides. So weights stand on the side of 64, and rows on the
//! other: an expert is cut into the fewest equal tiles of at most [`ROWS_MAX`] rows, in steps of
//! [`BLOCK_ROWS`], and each tile takes the loop that was written for its height. The tile language
//! knows only powers of two.
//!
//! One block of threads stays on each multiprocessor and walks over tiles. A warp moves weights and
//! rows into a ring of stages in shared memory (copy engine, tensor maps); two warpgroups multiply 64
//! features each. Gate and up alternate by 8 features, so that a thread has both of a number.

#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "cuda")]
mod epilogue;
#[cfg(feature = "cuda")]
mod text;

use super::PrefillForm;
use crate::MoeError;
use crate::weights::StackLayout;

/// The only architecture that has the instructions.
pub(crate) const ARCHITECTURE: &str = "sm_90";
/// Rows of a block of the assignment: heights of tiles are multiples.
pub const BLOCK_ROWS: usize = 16;
/// Most rows of a tile: what the accumulators hold.
pub const ROWS_MAX: usize = 288;
/// Weights of a tile, gate and up together.
pub(crate) const WEIGHTS: usize = 128;
/// Input features of a stage: a row of 128 bytes.
pub(crate) const DEPTH: usize = 64;
/// Threads: one warpgroup that loads and two that multiply.
#[cfg(feature = "cuda")]
const THREADS: usize = 384;
/// Most experts whose table fits beside the stages.
const EXPERTS_MAX: usize = 512;

/// Whether there is a kernel for these weights.
///
/// # Errors
/// [`MoeError::Config`] with what they must be.
pub fn check(layout: &StackLayout, form: PrefillForm) -> Result<(), MoeError> {
    let features = layout.rows / form.parts();
    let fits = layout.number_bytes == 2
        && layout.scale_block.is_none()
        && layout.words.is_none()
        && layout.rows == features * form.parts()
        && features.is_multiple_of(8)
        && layout.columns.is_multiple_of(8)
        // Without a loop the assembler makes every instruction wait.
        && layout.columns > DEPTH
        && layout.experts <= EXPERTS_MAX;
    if fits {
        return Ok(());
    }
    let allowed = format!(
        "16-bit, features by 8, more than {DEPTH} input features, at most {EXPERTS_MAX} experts"
    );
    Err(MoeError::config("weights", format!("{layout:?}"), allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_with_scales_and_odd_ones_are_refused() {
        let fits = StackLayout {
            experts: 8,
            rows: 1536,
            columns: 2048,
            number_bytes: 2,
            scale_block: None,
            words: None,
        };
        for form in [PrefillForm::Sums, PrefillForm::SiluAndMultiply] {
            assert_eq!(check(&fits, form), Ok(()));
            for layout in [
                StackLayout { number_bytes: 1, scale_block: Some([128, 128]), ..fits },
                StackLayout { rows: 1530, ..fits },
                StackLayout { columns: 2044, ..fits },
                StackLayout { columns: 64, ..fits },
                StackLayout { experts: 1024, ..fits },
            ] {
                let error = check(&layout, form).unwrap_err().to_string();
                assert!(error.contains("features by 8"), "{error}");
            }
        }
    }
}
