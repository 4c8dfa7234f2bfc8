//! Frequencies as `transformers` computes them: float32 tensors, float64 scalars, in its order.

use super::{Llama3, RopeConfig, RopeScaling, Yarn, YarnAttention, yarn_mscale};
use crate::LayersError;

/// A rotary part wider than this is a corrupt file, not a model.
const ROTARY_DIM_MAX: usize = 1 << 16;

pub(super) fn check(config: &RopeConfig) -> Result<(), LayersError> {
    let dim = config.rotary_dim;
    if dim == 0 || !dim.is_multiple_of(2) || dim > ROTARY_DIM_MAX {
        let allowed = format!("even and in 2..={ROTARY_DIM_MAX}");
        return Err(LayersError::config("rotary_dim", dim, allowed));
    }
    positive("rope_theta", config.theta)?;
    match config.scaling {
        RopeScaling::None => Ok(()),
        RopeScaling::Linear { factor } => positive("rope factor", factor),
        RopeScaling::Llama3(llama3) => check_llama3(&llama3),
        RopeScaling::Yarn(yarn) => check_yarn(config.theta, &yarn),
    }
}

fn check_llama3(llama3: &Llama3) -> Result<(), LayersError> {
    positive("rope factor", llama3.factor)?;
    positive("low_freq_factor", llama3.low_freq_factor)?;
    positive("original_max_position_embeddings", llama3.original_max_position as f64)?;
    let (low, high) = (llama3.low_freq_factor, llama3.high_freq_factor);
    if high.is_finite() && high > low {
        return Ok(());
    }
    Err(LayersError::config("high_freq_factor", high, format!("above low_freq_factor, {low}")))
}

fn check_yarn(theta: f64, yarn: &Yarn) -> Result<(), LayersError> {
    positive("rope factor", yarn.factor)?;
    positive("beta_fast", yarn.beta_fast)?;
    positive("beta_slow", yarn.beta_slow)?;
    positive("original_max_position_embeddings", yarn.original_max_position as f64)?;
    if theta <= 1.0 {
        return Err(LayersError::config("rope_theta", theta, "above 1 under YaRN"));
    }
    match yarn.attention {
        YarnAttention::FromFactor => Ok(()),
        YarnAttention::Explicit(factor) => positive("attention_factor", factor),
        YarnAttention::Quotient { mscale, mscale_all_dim } => {
            positive("mscale", mscale)?;
            positive("mscale_all_dim", mscale_all_dim)
        }
    }
}

fn positive(field: &'static str, value: f64) -> Result<(), LayersError> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(LayersError::config(field, value, "finite and above 0"))
}

pub(super) fn inverse_frequencies(config: &RopeConfig) -> Vec<f32> {
    let wavelengths = (0..config.rotary_dim / 2).map(|pair| {
        let exponent = (2 * pair) as f32 / config.rotary_dim as f32;
        f64::from(config.theta as f32).powf(f64::from(exponent)) as f32
    });
    match config.scaling {
        RopeScaling::None => wavelengths.map(|wavelength| 1.0 / wavelength).collect(),
        RopeScaling::Linear { factor } => {
            wavelengths.map(|wavelength| 1.0 / wavelength / factor as f32).collect()
        }
        RopeScaling::Llama3(llama3) => {
            wavelengths.map(|wavelength| stretch(&llama3, 1.0 / wavelength)).collect()
        }
        RopeScaling::Yarn(yarn) => {
            let ramp = YarnRamp::new(config, &yarn);
            wavelengths.enumerate().map(|(pair, wavelength)| ramp.blend(pair, wavelength)).collect()
        }
    }
}

fn stretch(llama3: &Llama3, frequency: f32) -> f32 {
    let Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } = *llama3;
    let context = original_max_position as f64;
    let wavelength = std::f32::consts::TAU / frequency;
    if f64::from(wavelength) > context / low_freq_factor {
        return frequency / factor as f32;
    }
    if f64::from(wavelength) < context / high_freq_factor {
        return frequency;
    }
    let smooth = (context as f32 / wavelength - low_freq_factor as f32)
        / (high_freq_factor - low_freq_factor) as f32;
    (1.0 - smooth) * frequency / factor as f32 + smooth * frequency
}

/// Between which pairs YaRN goes from kept to divided frequencies.
struct YarnRamp {
    factor: f32,
    low: f64,
    high: f64,
}

impl YarnRamp {
    fn new(config: &RopeConfig, yarn: &Yarn) -> Self {
        let dim = config.rotary_dim as f64;
        let context = yarn.original_max_position as f64;
        // The pair, as a real number, that turns `rotations` times within the old context.
        let pair_of = |rotations: f64| {
            dim * (context / (rotations * std::f64::consts::TAU)).ln() / (2.0 * config.theta.ln())
        };
        let (mut low, mut high) = (pair_of(yarn.beta_fast), pair_of(yarn.beta_slow));
        if yarn.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        Self { factor: yarn.factor as f32, low, high }
    }

    fn blend(&self, pair: usize, wavelength: f32) -> f32 {
        let divided = 1.0 / (self.factor * wavelength);
        let kept = 1.0 / wavelength;
        let ramp = (pair as f32 - self.low as f32) / (self.high - self.low) as f32;
        let share_kept = 1.0 - ramp.clamp(0.0, 1.0);
        divided * (1.0 - share_kept) + kept * share_kept
    }
}

pub(super) fn attention_scaling(config: &RopeConfig) -> f32 {
    let RopeScaling::Yarn(yarn) = config.scaling else { return 1.0 };
    let scaling = match yarn.attention {
        YarnAttention::FromFactor => yarn_mscale(yarn.factor, 1.0),
        YarnAttention::Explicit(factor) => factor,
        YarnAttention::Quotient { mscale, mscale_all_dim } => {
            yarn_mscale(yarn.factor, mscale) / yarn_mscale(yarn.factor, mscale_all_dim)
        }
    };
    scaling as f32
}
