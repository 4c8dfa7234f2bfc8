//! The norm of one row and its product in one launch.

use artel_gpu_test::{Case, Gpu};
use artel_layers::LayersError;
use artel_layers::linear::cuda::{LinearNumbers, LinearShape, LinearWeight};
use artel_layers::linear::reference as linear;
use artel_layers::linear::single::cuda::{ProjectNorm, ProjectNormRows};
use artel_layers::rms_norm::{RmsNorm, reference};
use artel_moe::quant::activations::{Granularity, reference as quantized};
use artel_moe::quant::e4m3_to_f32;
use half::bf16;

use crate::linear::{Weight, assert_near};
use crate::numbers::{numbers, rounding};

const EPSILON: f32 = 1e-6;

/// The nearest codes of a row may be others than those of the definition where sums of squares are
/// rounded.
pub const TOLERANCE: f64 = 1e-2;

pub fn cases() -> Vec<Case> {
    [(5120, 2048), (2048, 3072), (2048, 2048), (272, 512), (16, 1024)].map(case).into()
}

/// The row as products read it: codes times scales.
pub fn exact(rows: &[bf16]) -> Vec<f32> {
    let (codes, scales) = quantized::quantize(Granularity::Groups, rows.len(), rows);
    codes.iter().enumerate().map(|(at, &code)| e4m3_to_f32(code) * scales[at / 128]).collect()
}

fn case((outputs, inputs): (usize, usize)) -> Case {
    let numbers = LinearNumbers::Fp8Block128;
    let shape = LinearShape { outputs, inputs, numbers, bias: false };
    let load = move |kernels: &mut _| ProjectNorm::load(kernels, shape, EPSILON);
    Case::new(format!("single::norm_{outputs}_of_{inputs}"), load, move |gpu, kernel| {
        let Some(kernel) = kernel else {
            assert!(gpu.stream.context().architecture().to_string() != "sm_90", "no kernel");
            return Ok(());
        };
        let first = check(gpu, kernel, shape)?;
        assert_eq!(first, check(gpu, kernel, shape)?, "two runs give the same bits");
        Ok(())
    })
}

fn check(gpu: &Gpu, kernel: &ProjectNorm, shape: LinearShape) -> Result<Vec<bf16>, LayersError> {
    let LinearShape { outputs, inputs, .. } = shape;
    let weight = Weight::new::<bf16>(shape);
    let (hidden, delta) = (numbers::<f32>(inputs, 3), numbers::<bf16>(inputs, 4));
    let norm_weight: Vec<f32> = (0..inputs).map(|at| 0.5 + at as f32 / inputs as f32).collect();
    let sum: Vec<f32> = hidden.iter().zip(&delta).map(|(a, b)| a + b.to_f32()).collect();
    let norm = RmsNorm::new(norm_weight.clone(), EPSILON)?;
    let normed = reference::forward(&norm, &sum);
    let normed: Vec<bf16> = normed.into_iter().map(|value| bf16::from_f32(value as f32)).collect();
    let expected = linear::forward(&weight.host, 1, &exact(&normed));

    let (bytes, scales) = (gpu.upload(&weight.bytes), gpu.upload(&weight.scales));
    let (hidden, delta) = (gpu.upload(&hidden), gpu.upload(&delta));
    let norm_weight = gpu.upload(&norm_weight);
    let (mut sums, mut out) = (gpu.poisoned::<f32>(inputs), gpu.poisoned::<bf16>(outputs));
    let rows = ProjectNormRows {
        hidden: hidden.slice(),
        delta: delta.slice(),
        sums: sums.slice_mut(),
        norm: norm_weight.slice(),
    };
    let weight = LinearWeight { numbers: bytes.slice(), scales: scales.slice(), bias: None };
    kernel.launch(&gpu.stream, &rows, weight, &mut out.slice_mut())?;
    assert_eq!(gpu.download(&sums), sum, "the residual stream");
    let found = gpu.download(&out);
    assert_near(&found, &expected, (outputs, TOLERANCE + rounding::<bf16>()));
    Ok(found)
}
