use half::f16;

use super::{DenseMatrix, NumberFormat};

/// IEEE half precision weights and activations.
#[derive(Debug, Clone, Copy)]
pub struct F16;

impl NumberFormat for F16 {
    const NAME: &'static str = "f16";
    type Activation = f16;
    type Matrix = DenseMatrix<f16>;
}
