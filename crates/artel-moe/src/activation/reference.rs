//! The definition, in float64.

use super::{Activation, GateLayout};

/// One row: `input` has [`Activation::input_columns`] values for `out.len()` features.
pub fn activate_row(activation: Activation, input: &[f64], out: &mut [f64]) {
    let features = out.len();
    for (feature, out) in out.iter_mut().enumerate() {
        let (gate, up) = match activation.layout() {
            GateLayout::Halves => (input[feature], input[features + feature]),
            GateLayout::Interleaved => (input[2 * feature], input[2 * feature + 1]),
            GateLayout::Ungated => (input[feature], 1.0),
        };
        *out = gated(activation, gate, up);
    }
}

/// The function of one gate and one up value.
pub fn gated(activation: Activation, g: f64, u: f64) -> f64 {
    match activation {
        Activation::Silu | Activation::SiluNoMul => silu(g) * u,
        Activation::SiluClamp { limit } => {
            let limit = f64::from(limit);
            silu(g.min(limit)) * u.clamp(-limit, limit)
        }
        Activation::Gelu | Activation::GeluNoMul => {
            0.5 * g * (1.0 + erf(g * std::f64::consts::FRAC_1_SQRT_2)) * u
        }
        Activation::GeluTanh | Activation::GeluTanhNoMul => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3));
            0.5 * g * (1.0 + inner.tanh()) * u
        }
        Activation::SwigluOai { alpha, limit, .. } => {
            let (alpha, limit) = (f64::from(alpha), f64::from(limit));
            let g = g.min(limit);
            (u.clamp(-limit, limit) + 1.0) * g * sigmoid(alpha * g)
        }
        Activation::SwigluStep { limit } => {
            let limit = f64::from(limit);
            silu(g).min(limit) * u.clamp(-limit, limit)
        }
        Activation::Situ { beta, linear_beta } => {
            let bounded =
                |value: f64, beta: f32| f64::from(beta) * (value / f64::from(beta)).tanh();
            let u = linear_beta.map_or(u, |beta| bounded(u, beta));
            bounded(g, beta) * sigmoid(g) * u
        }
        Activation::Relu2 | Activation::Relu2NoMul => g.max(0.0).powi(2) * u,
    }
}

fn silu(x: f64) -> f64 {
    x * sigmoid(x)
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Error function by its series of positive terms,
/// `2/sqrt(pi) * exp(-x^2) * sum of 2^n x^(2n+1) / (1 * 3 * … * (2n+1))`.
fn erf(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut odd) = (x, x, 1.0);
    while term.abs() > 1e-18 * sum.abs() {
        odd += 2.0;
        term *= 2.0 * x * x / odd;
        sum += term;
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}
