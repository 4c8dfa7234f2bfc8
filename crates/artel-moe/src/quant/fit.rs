//! What the scales of a matrix are fitted to while it is quantised.
//!
//! A format knows the scale that the numbers of a group ask for. Where the inputs are known, that one
//! and some beside it are tried, and the one with the smallest error of the outputs is taken:
//!
//! ```text
//! Σ mean_square[k] * (rounded[n, k] - number[n, k])^2        mean_square[k] of input column k
//! ```
//! That is the expected square of what the group adds to the error of output `n` when columns of the
//! input do not depend on each other. The format's own scale is the first candidate and wins a tie, so
//! this error is never larger than without the inputs.

use std::ops::Range;

use crate::MoeError;

/// Numbers whose errors are summed side by side, so that loops over them become vectors.
const LANES: usize = 8;

/// What the scales of a matrix are fitted to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fit<'a> {
    /// Its numbers alone: each format says how.
    Weights,
    /// Its products with inputs whose columns have these mean squares, `[columns]`.
    Inputs(&'a [f32]),
}

impl<'a> Fit<'a> {
    /// Checks that this is for a matrix of so many columns.
    pub(super) fn check(self, columns: usize) -> Result<(), MoeError> {
        let Self::Inputs(mean_squares) = self else { return Ok(()) };
        MoeError::check_shape("mean squares of inputs", columns, mean_squares.len())?;
        let is_sound = |mean: &f32| mean.is_finite() && *mean >= 0.0;
        match mean_squares.iter().position(|mean| !is_sound(mean)) {
            None => Ok(()),
            Some(column) => {
                let (found, allowed) = (mean_squares[column], "finite and not negative");
                Err(MoeError::element("mean squares of inputs", column, found, allowed))
            }
        }
    }

    /// The part for some columns.
    pub(super) fn cut(self, columns: Range<usize>) -> Self {
        match self {
            Self::Weights => self,
            Self::Inputs(mean_squares) => Self::Inputs(&mean_squares[columns]),
        }
    }

    /// The scale of `rows` of numbers that share one: the first candidate, or the best for these
    /// inputs. `rounded` says what a candidate makes of a number.
    pub(super) fn choose<'v, S: Copy, const N: usize>(
        self,
        rows: impl IntoIterator<Item = &'v [f32]>,
        candidates: [S; N],
        rounded: impl Fn(f32, S) -> f32,
    ) -> S {
        let Self::Inputs(mean_squares) = self else { return candidates[0] };
        let mut sums = [0f64; N];
        for row in rows {
            let errors = candidates.map(|scale| error(row, mean_squares, |x| rounded(x, scale)));
            add(&mut sums, errors);
        }
        candidates[least(&sums)]
    }
}

/// `Σ mean_square * (rounded - number)^2`.
pub(super) fn error(row: &[f32], mean_squares: &[f32], rounded: impl Fn(f32) -> f32) -> f64 {
    let mut sums = [0f64; LANES];
    for (row, mean_squares) in row.chunks(LANES).zip(mean_squares.chunks(LANES)) {
        for ((sum, &number), &mean_square) in sums.iter_mut().zip(row).zip(mean_squares) {
            let lost = f64::from(rounded(number) - number);
            *sum += f64::from(mean_square) * lost * lost;
        }
    }
    sums.into_iter().sum()
}

/// Adds the errors of one more row, candidate by candidate.
pub(super) fn add<const N: usize>(sums: &mut [f64; N], errors: [f64; N]) {
    sums.iter_mut().zip(errors).for_each(|(sum, error)| *sum += error);
}

/// The first of the smallest errors. An error that is no number is never smaller.
pub(super) fn least(errors: &[f64]) -> usize {
    let better =
        |best: usize, index: usize| if errors[index] < errors[best] { index } else { best };
    (0..errors.len()).fold(0, better)
}
