//! Experts with random weights, and what they compute in float64.

use artel_device::HostBuffer;
use artel_moe::activation::reference::activate_row;
use artel_moe::activation::{Activation, GateLayout, Gating};
use artel_moe::config::{MoeConfig, MoeShape, RouterWeight};
use artel_moe::grouped_gemm::GemmFormat;
use artel_moe::grouped_gemm::decode::{DecodeShape, WeightNumbers};
use artel_moe::quant::{
    ActivationScales, BLOCK, Bf16, DenseMatrix, Element, F16, Fit, Format, Fp8Block128,
    Fp8BlockMatrix, Fp8Channel, Fp8ChannelMatrix, Fp8Tensor, Fp8TensorMatrix, Int4Matrix,
    Int4W4A16, Int8W8A8, Int8W8A16, Mxfp4, Mxfp8, NumberFormat, Nvfp4, ZeroPoints, e4m3_from_f32,
    e4m3_to_f32,
};
use artel_moe::weights::{ExpertMatrices, Stacked};
use half::{bf16, f16};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A format that tests can make matrices of.
pub trait TestFormat: GemmFormat {
    /// Largest `|out - expected| / |expected|` of both products. FP8 products are summed with less
    /// than float32's precision, which moves some activations to the neighbouring code.
    const LIMIT: f64;
    fn matrix(rng: &mut ChaCha8Rng, rows: usize, columns: usize) -> Self::Matrix;
}

macro_rules! dense_format {
    ($format:ident, $element:ty, $limit:literal) => {
        impl TestFormat for $format {
            const LIMIT: f64 = $limit;
            fn matrix(rng: &mut ChaCha8Rng, rows: usize, columns: usize) -> DenseMatrix<$element> {
                let numbers = (0..rows * columns).map(|_| rng.random_range(-0.1f32..0.1));
                let numbers: Vec<$element> = numbers.map(Element::from_f32).collect();
                DenseMatrix::new(HostBuffer::from_vec(numbers), rows, columns).expect("sizes fit")
            }
        }
    };
}
dense_format!(F16, f16, 2e-3);
dense_format!(Bf16, bf16, 5e-3);

/// Codes of every magnitude, and scales that differ.
fn codes(rng: &mut ChaCha8Rng, count: usize) -> HostBuffer {
    let codes = (0..count).map(|_| e4m3_from_f32(rng.random_range(-448.0..448.0)));
    HostBuffer::from_vec(codes.collect::<Vec<u8>>())
}

fn scales(rng: &mut ChaCha8Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| rng.random_range(0.0001..0.0003)).collect()
}

/// Activations have a scale that is given.
impl TestFormat for Fp8Tensor {
    const LIMIT: f64 = 1.5e-2;
    fn matrix(rng: &mut ChaCha8Rng, rows: usize, columns: usize) -> Fp8TensorMatrix {
        let (scale, codes) = (scales(rng, 1)[0], codes(rng, rows * columns));
        let matrix = Fp8TensorMatrix::new(codes, scale, rows, columns).expect("sizes fit");
        matrix.with_input_scale(0.0123).expect("a positive scale")
    }
}

impl TestFormat for Fp8Channel {
    const LIMIT: f64 = 1.5e-2;
    fn matrix(rng: &mut ChaCha8Rng, rows: usize, columns: usize) -> Fp8ChannelMatrix {
        let (scales, codes) = (scales(rng, rows), codes(rng, rows * columns));
        Fp8ChannelMatrix::new(codes, HostBuffer::from_vec(scales), rows, columns)
            .expect("sizes fit")
    }
}

impl TestFormat for Fp8Block128 {
    const LIMIT: f64 = 1.5e-2;
    fn matrix(rng: &mut ChaCha8Rng, rows: usize, columns: usize) -> Fp8BlockMatrix {
        let blocks = rows.div_ceil(BLOCK) * columns.div_ceil(BLOCK);
        let (scales, codes) = (scales(rng, blocks), codes(rng, rows * columns));
        Fp8BlockMatrix::new(codes, HostBuffer::from_vec(scales), rows, columns).expect("sizes fit")
    }
}

/// Weights of a format that are quantised from random numbers.
macro_rules! quantised_format {
    ($format:ident, $limit:literal) => {
        impl TestFormat for $format {
            const LIMIT: f64 = $limit;
            fn matrix(rng: &mut ChaCha8Rng, rows: usize, columns: usize) -> Self::Matrix {
                let numbers = random_rows(rng, rows, columns);
                $format::quantize(rows, columns, Fit::Weights, numbers).expect("sizes fit")
            }
        }
    };
}
quantised_format!(Int8W8A16, 5e-3);
quantised_format!(Mxfp4, 5e-3);
quantised_format!(Mxfp8, 5e-3);
quantised_format!(Nvfp4, 5e-3);
// A halfway case that rounds to the other side is a whole code.
quantised_format!(Int8W8A8, 1.5e-2);

/// Groups have zero points.
impl TestFormat for Int4W4A16 {
    const LIMIT: f64 = 5e-3;
    fn matrix(rng: &mut ChaCha8Rng, rows: usize, columns: usize) -> Int4Matrix {
        let numbers = random_rows(rng, rows, columns);
        Int4Matrix::quantize([rows, columns], 128, ZeroPoints::Fitted, Fit::Weights, numbers)
            .expect("sizes fit")
    }
}

/// Writes random rows whose magnitudes differ from group to group.
fn random_rows(
    rng: &mut ChaCha8Rng,
    rows: usize,
    columns: usize,
) -> impl Fn(usize, &mut [f32]) + Sync {
    let number = |at: usize| rng.random_range(-0.05f32..0.08) * (1 + at / 16 % 5) as f32;
    let numbers: Vec<f32> = (0..rows * columns).map(number).collect();
    move |row, out| out.copy_from_slice(&numbers[row * columns..(row + 1) * columns])
}

/// Sizes of a test's experts.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub experts: usize,
    pub top_k: usize,
    pub hidden: usize,
    pub inner: usize,
}

/// Experts of one layer.
pub struct Layer<F: TestFormat> {
    pub sizes: Sizes,
    pub gating: Gating,
    pub router_weight: RouterWeight,
    pub w13: ExpertMatrices<F>,
    pub w2: ExpertMatrices<F>,
}

impl<F: TestFormat> Layer<F> {
    pub fn new(sizes: Sizes) -> Self {
        Self::gated(sizes, Gating::SILU)
    }

    /// Experts whose gates are shut as `gating` says.
    pub fn gated(sizes: Sizes, gating: Gating) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let mut stack = |parts: usize, rows: usize, columns: usize| {
            let expert = |rng: &mut ChaCha8Rng| {
                let parts = (0..parts).map(|_| F::matrix(rng, rows, columns)).collect();
                Stacked::new(parts).expect("parts of one width")
            };
            let experts = (0..sizes.experts).map(|_| expert(&mut rng)).collect();
            let experts = ExpertMatrices::new(experts).expect("experts of one size");
            if !gating.biases {
                return experts;
            }
            let biases = (0..sizes.experts * parts * rows).map(|_| rng.random_range(-0.6f32..0.5));
            experts.with_biases(biases.collect()).expect("a bias for every row")
        };
        let w13 = match gating.activation.layout() {
            GateLayout::Interleaved => stack(1, 2 * sizes.inner, sizes.hidden),
            GateLayout::Halves | GateLayout::Ungated => stack(2, sizes.inner, sizes.hidden),
        };
        let w2 = stack(1, sizes.hidden, sizes.inner);
        Self { sizes, gating, router_weight: RouterWeight::OnOutput, w13, w2 }
    }

    /// What the layer computes.
    pub fn config(&self) -> MoeConfig {
        let config = config_of(self.sizes, self.gating.activation);
        config.with_biases(self.gating.biases).with_router_weight(self.router_weight)
    }

    pub fn shape(&self) -> DecodeShape {
        shape_of::<F>(self.sizes)
    }

    /// Numbers and scales of a stack, as a device keeps them.
    pub fn stack(weights: &ExpertMatrices<F>) -> (Vec<u8>, Vec<f32>) {
        let layout = weights.stack_layout();
        let mut numbers = vec![0; layout.experts * layout.number_bytes_per_expert()];
        let mut scales = vec![0.0; layout.experts * layout.scales_per_expert()];
        let bytes = layout.number_bytes_per_expert();
        for (expert, numbers) in numbers.chunks_mut(bytes).enumerate() {
            weights.write_numbers(expert, numbers).expect("the stack's own size");
        }
        if layout.scales_per_expert() > 0 {
            for (expert, scales) in scales.chunks_mut(layout.scales_per_expert()).enumerate() {
                weights.write_scales(expert, &layout, scales).expect("the stack's own size");
            }
        }
        (numbers, scales)
    }

    /// Row of one token with one expert, in float64 but for the format's own steps.
    pub fn row(&self, x: &[f32], expert: usize) -> Vec<f64> {
        let x = kept::<F>(x, self.w13.input_scale(), 1e-10 / 448.0);
        let gate_up = multiply(&self.w13, expert, &x);
        let mut activated = vec![0.0; self.sizes.inner];
        activate_row(self.gating.activation, &gate_up, &mut activated);
        let activated: Vec<f32> = activated.into_iter().map(|value| value as f32).collect();
        let activated = kept::<F>(&activated, self.w2.input_scale(), 1.0 / (448.0 * 512.0));
        multiply(&self.w2, expert, &activated)
    }
}

/// What a layer of some sizes computes, without biases.
pub fn config_of(sizes: Sizes, activation: Activation) -> MoeConfig {
    let Sizes { experts, top_k, hidden, inner } = sizes;
    let shape =
        MoeShape { hidden_size: hidden, intermediate_size: inner, num_experts: experts, top_k };
    MoeConfig::new(shape, activation).expect("sizes of a layer")
}

pub fn shape_of<F: TestFormat>(sizes: Sizes) -> DecodeShape {
    let Sizes { experts, top_k, hidden, inner } = sizes;
    let numbers = match F::NAME.parse().expect("a format has a name") {
        // Scales of gate and up repeat where up begins inside a block.
        Format::Fp8Block128 => WeightNumbers::Fp8Blocks {
            w13: [1 << inner.trailing_zeros().min(7), BLOCK],
            w2: [BLOCK, BLOCK],
        },
        Format::Fp8Tensor => WeightNumbers::Fp8Blocks { w13: [inner, hidden], w2: [hidden, inner] },
        Format::Fp8Channel => WeightNumbers::Fp8Blocks { w13: [1, hidden], w2: [1, inner] },
        _ => WeightNumbers::Plain,
    };
    let gating = Gating::SILU;
    DecodeShape { experts, top_k, hidden_size: hidden, intermediate_size: inner, numbers, gating }
}

/// `weights[expert] . x`, plus the bias.
pub fn multiply<F: TestFormat>(weights: &ExpertMatrices<F>, expert: usize, x: &[f64]) -> Vec<f64> {
    let mut row = vec![0.0; weights.columns()];
    let dot = |n: usize| {
        weights.matrix(expert).dequantize_row(n, &mut row);
        let bias = weights.bias(expert).map_or(0.0, |bias| f64::from(bias[n]));
        row.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum::<f64>() + bias
    };
    (0..weights.rows()).map(dot).collect()
}

/// What the product sees of a row.
pub fn kept<F: TestFormat>(x: &[f32], input_scale: Option<f32>, least: f32) -> Vec<f64> {
    let width = match F::ACTIVATION_SCALES {
        ActivationScales::None => return x.iter().map(|&x| rounded::<F>(f64::from(x))).collect(),
        ActivationScales::Group => BLOCK,
        ActivationScales::Row => x.len(),
        ActivationScales::Int8Row => return kept_as_integers(x),
    };
    let group = |group: &[f32]| {
        let largest = group.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        let scale = input_scale.unwrap_or((largest / 448.0).max(least));
        let keep = |&x: &f32| f64::from(e4m3_to_f32(e4m3_from_f32(x / scale))) * f64::from(scale);
        group.iter().map(keep).collect::<Vec<f64>>()
    };
    x.chunks(width).flat_map(group).collect()
}

/// Codes of one scale a row.
fn kept_as_integers(x: &[f32]) -> Vec<f64> {
    let largest = x.iter().fold(1e-10f32, |largest, x| largest.max(x.abs()));
    let code = |x: &f32| f64::from((x * (127.0 / largest)).round());
    x.iter().map(|x| code(x) * f64::from(largest) / 127.0).collect()
}

fn rounded<F: TestFormat>(value: f64) -> f64 {
    f64::from(F::Activation::from_f32(value as f32).to_f32())
}

/// Hidden states of `tokens` tokens.
pub fn hidden_states<F: TestFormat>(tokens: usize, hidden: usize) -> Vec<F::Activation> {
    let mut rng = ChaCha8Rng::seed_from_u64(13);
    (0..tokens * hidden).map(|_| F::Activation::from_f32(rng.random_range(-2.0..2.0))).collect()
}

/// `|found - expected| / |expected|`; NaN never passes.
pub fn check_close<A: Element>(found: &[A], expected: &[f64], limit: f64, what: &str) {
    let (mut difference, mut norm) = (0.0, 0.0);
    for (found, expected) in found.iter().zip(expected) {
        difference += (f64::from(found.to_f32()) - expected).powi(2);
        norm += expected.powi(2);
    }
    let error = (difference / norm.max(1e-30)).sqrt();
    assert!(error <= limit, "{what}: error {error}, allowed {limit}");
}
