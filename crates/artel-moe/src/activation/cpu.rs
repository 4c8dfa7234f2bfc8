use artel_device::cpu::{CpuFeatures, Vectorized};
use rayon::prelude::*;

use super::{Activation, GateLayout};
use crate::MoeError;
use crate::quant::Element;

/// Features that are widened, computed and cast at a time: fits the first-level cache.
const CHUNK: usize = 128;

/// Below so many features in all, one thread is faster than waking another.
const SERIAL_FEATURES: usize = 8192;

/// Applies `activation` to every row of `input` `[M, 2I]` (or `[M, I]` when it has no gate) and
/// writes `out` `[M, I]`.
///
/// # Errors
/// [`MoeError::Shape`] when the two buffers do not have the same number of rows.
pub fn activate<A: Element>(
    features: CpuFeatures,
    activation: Activation,
    intermediate_size: usize,
    input: &[A],
    out: &mut [A],
) -> Result<(), MoeError> {
    if intermediate_size == 0 || out.is_empty() {
        return MoeError::check_shape("activation input", 0, input.len());
    }
    let columns = activation.input_columns(intermediate_size);
    let rows = out.len() / intermediate_size;
    MoeError::check_shape("activation output", rows * intermediate_size, out.len())?;
    MoeError::check_shape("activation input", rows * columns, input.len())?;
    let rows_per_thread = (SERIAL_FEATURES / intermediate_size).max(1);
    input
        .par_chunks_exact(columns)
        .zip(out.par_chunks_exact_mut(intermediate_size))
        .with_min_len(rows_per_thread)
        .for_each(|(input, out)| features.vectorize(Row { activation, input, out }));
    Ok(())
}

struct Row<'a, A> {
    activation: Activation,
    input: &'a [A],
    out: &'a mut [A],
}

impl<A: Element> Vectorized for Row<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (mut gate, mut up) = ([0.0; CHUNK], [1.0; CHUNK]);
        let features = self.out.len();
        for (index, out) in self.out.chunks_mut(CHUNK).enumerate() {
            let (start, count) = (index * CHUNK, out.len());
            match self.activation.layout() {
                GateLayout::Halves => {
                    widen(&self.input[start..start + count], &mut gate);
                    widen(&self.input[features + start..features + start + count], &mut up);
                }
                GateLayout::Interleaved => {
                    let pairs = &self.input[2 * start..2 * (start + count)];
                    for ((gate, up), pair) in gate.iter_mut().zip(&mut up).zip(pairs.as_chunks().0)
                    {
                        let [g, u]: &[A; 2] = pair;
                        (*gate, *up) = (g.to_f32(), u.to_f32());
                    }
                }
                GateLayout::Ungated => widen(&self.input[start..start + count], &mut gate),
            }
            apply(self.activation, &mut gate, &up);
            for (out, &value) in out.iter_mut().zip(&gate) {
                *out = A::from_f32(value);
            }
        }
    }
}

#[inline(always)]
fn widen<A: Element>(input: &[A], out: &mut [f32; CHUNK]) {
    for (out, input) in out.iter_mut().zip(input) {
        *out = input.to_f32();
    }
}

/// Leaves the result in `gate`. The match is outside the loops so that each vectorises.
#[inline(always)]
fn apply(activation: Activation, gate: &mut [f32; CHUNK], up: &[f32; CHUNK]) {
    match activation {
        Activation::Silu | Activation::SiluNoMul => map(gate, up, |g, u| silu(g) * u),
        Activation::SiluClamp { limit } => {
            map(gate, up, |g, u| silu(at_most(g, limit)) * within(u, limit));
        }
        Activation::Gelu | Activation::GeluNoMul => {
            map(gate, up, |g, u| 0.5 * g * one_plus_erf(g * std::f32::consts::FRAC_1_SQRT_2) * u);
        }
        Activation::GeluTanh | Activation::GeluTanhNoMul => {
            // 1 + tanh(y) = 2 * sigmoid(2y), with y = sqrt(2/pi) * (g + 0.044715 g^3).
            const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769_2;
            map(gate, up, |g, u| {
                g * sigmoid(TWICE_SQRT_2_OVER_PI * (g + 0.044715 * g * g * g)) * u
            });
        }
        Activation::SwigluOai { alpha, limit, .. } => map(gate, up, |g, u| {
            let g = at_most(g, limit);
            (within(u, limit) + 1.0) * g * sigmoid(alpha * g)
        }),
        Activation::SwigluStep { limit } => {
            map(gate, up, |g, u| at_most(silu(g), limit) * within(u, limit));
        }
        Activation::Situ { beta, linear_beta: None } => {
            map(gate, up, |g, u| beta * tanh(g / beta) * sigmoid(g) * u);
        }
        Activation::Situ { beta, linear_beta: Some(linear) } => {
            map(gate, up, |g, u| beta * tanh(g / beta) * sigmoid(g) * (linear * tanh(u / linear)))
        }
        Activation::Relu2 | Activation::Relu2NoMul => map(gate, up, |g, u| {
            let positive = if g < 0.0 { 0.0 } else { g };
            positive * positive * u
        }),
    }
}

#[inline(always)]
fn map(gate: &mut [f32; CHUNK], up: &[f32; CHUNK], f: impl Fn(f32, f32) -> f32) {
    for (gate, &up) in gate.iter_mut().zip(up) {
        *gate = f(*gate, up);
    }
}

// Comparisons are written so that NaN passes through, which `f32::min` would swallow.

#[inline(always)]
fn at_most(value: f32, limit: f32) -> f32 {
    if value > limit { limit } else { value }
}

#[inline(always)]
fn within(value: f32, limit: f32) -> f32 {
    at_most(if value < -limit { -limit } else { value }, limit)
}

#[inline(always)]
fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Abramowitz and Stegun 7.1.26, absolute error below 2e-7.
#[inline(always)]
fn one_plus_erf(x: f32) -> f32 {
    let magnitude = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * magnitude);
    let polynomial = ((((1.061_405_4 * t - 1.453_152_1) * t + 1.421_413_8) * t - 0.284_496_72) * t
        + 0.254_829_6)
        * t;
    let tail = polynomial * exp(-x * x);
    if x < 0.0 { tail } else { 2.0 - tail }
}

/// Odd polynomial near zero, where `1 - 2 / (e^2x + 1)` would lose its digits.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    let z = x * x;
    let near = (((-5.704_988_7e-3 * z + 0.020_639_09) * z - 0.053_739_71) * z + 1.333_144_2e-1) * z
        - 0.333_332_8;
    let far = 1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0);
    if z < 0.390_625 { x + x * z * near } else { far.copysign(x) }
}

/// `e^x` to about two units in the last place, without branches: `2^n * e^r` with `|r| <= ln2 / 2`.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = at_most(if x < -87.0 { -87.0 } else { x }, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let polynomial =
        ((((1.987_569_1e-4 * r + 1.398_2e-3) * r + 8.333_452e-3) * r + 4.166_579_6e-2) * r
            + 1.666_666_5e-1)
            * r
            + 0.5;
    let power_of_two = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    (polynomial * r * r + r + 1.0) * power_of_two
}
