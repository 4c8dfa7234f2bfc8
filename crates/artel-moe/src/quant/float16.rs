use half::f16;

use super::{ActivationScales, DenseMatrix, Fit, NumberFormat};
use crate::MoeError;

/// IEEE half precision weights and activations.
#[derive(Debug, Clone, Copy)]
pub struct F16;

impl NumberFormat for F16 {
    const NAME: &'static str = "f16";
    const ACTIVATION_SCALES: ActivationScales = ActivationScales::None;
    type Activation = f16;
    type Matrix = DenseMatrix<f16>;

    fn quantize(
        rows: usize,
        columns: usize,
        _: Fit<'_>,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<DenseMatrix<f16>, MoeError> {
        DenseMatrix::quantize(rows, columns, row)
    }
}
