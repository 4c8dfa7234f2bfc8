//! Ceilings that need raw instructions or raw pointers: the arithmetic units, and the `gemm` crate's
//! dense product.

pub mod units;

use gemm::{Parallelism, gemm};

/// `out[m, n] = x[m, :] . weights[n, :]` in float32: `x` `[rows, columns]`, `weights`
/// `[features, columns]`, `out` `[rows, features]`.
///
/// # Panics
/// When the three do not have these sizes.
pub fn dense_product(columns: usize, x: &[f32], weights: &[f32], out: &mut [f32]) {
    let (rows, features) = (x.len() / columns, weights.len() / columns);
    assert_eq!(x.len(), rows * columns);
    assert_eq!(weights.len(), features * columns);
    assert_eq!(out.len(), rows * features);
    let threads = Parallelism::Rayon(artel_device::cpu::threads());
    // SAFETY: strides describe row-major matrices of the sizes checked above; the right side is
    // read as `[columns, features]` with column stride `columns`.
    unsafe {
        gemm(
            rows,
            features,
            columns,
            out.as_mut_ptr(),
            1,
            features as isize,
            false,
            x.as_ptr(),
            1,
            columns as isize,
            weights.as_ptr(),
            columns as isize,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            threads,
        );
    }
}
