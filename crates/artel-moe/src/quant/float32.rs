use super::{ActivationScales, DenseMatrix, Fit, NumberFormat};
use crate::MoeError;

/// float32 weights and activations.
#[derive(Debug, Clone, Copy)]
pub struct F32;

impl NumberFormat for F32 {
    const NAME: &'static str = "f32";
    const ACTIVATION_SCALES: ActivationScales = ActivationScales::None;
    type Activation = f32;
    type Matrix = DenseMatrix<f32>;

    fn quantize(
        rows: usize,
        columns: usize,
        _: Fit<'_>,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<DenseMatrix<f32>, MoeError> {
        DenseMatrix::quantize(rows, columns, row)
    }
}
