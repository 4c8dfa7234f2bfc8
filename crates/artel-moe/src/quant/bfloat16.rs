use half::bf16;

use super::{ActivationScales, DenseMatrix, Fit, NumberFormat};
use crate::MoeError;

/// bfloat16 weights and activations.
#[derive(Debug, Clone, Copy)]
pub struct Bf16;

impl NumberFormat for Bf16 {
    const NAME: &'static str = "bf16";
    const ACTIVATION_SCALES: ActivationScales = ActivationScales::None;
    type Activation = bf16;
    type Matrix = DenseMatrix<bf16>;

    fn quantize(
        rows: usize,
        columns: usize,
        _: Fit<'_>,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<DenseMatrix<bf16>, MoeError> {
        DenseMatrix::quantize(rows, columns, row)
    }
}
