use std::{fmt, str::FromStr};

use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use rayon::prelude::*;

use super::sample::{Sampler, normal, shuffle};
use crate::{
    MoeError,
    eplb::trace::{TraceHeader, TraceRecord, TraceShape},
};

/// How popular the experts of a layer are. Which one is how popular is drawn for each layer.
///
/// ```
/// use artel_moe::eplb::simulate::SyntheticLoad;
/// let load: SyntheticLoad = "zipf:1.2".parse()?;
/// assert_eq!((load, load.to_string().as_str()), (SyntheticLoad::Zipf { exponent: 1.2 }, "zipf:1.2"));
/// assert!("zip:1".parse::<SyntheticLoad>().is_err());
/// # Ok::<(), artel_moe::MoeError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SyntheticLoad {
    /// Every expert alike.
    Uniform,
    /// `exp(sigma * z)` with `z` of the standard normal distribution.
    Lognormal {
        /// 0 is uniform; about 1 is what DeepSeek-R1 shows.
        sigma: f64,
    },
    /// The n-th most popular expert in proportion to `1 / n^exponent`.
    Zipf {
        /// 0 is uniform, 1 is classical.
        exponent: f64,
    },
    /// Lognormal with sigma 1 at first; then every popularity goes its own random way, by a factor
    /// `exp(sigma * z)` every [`Synthetic::drifting_every`] steps.
    Drift {
        /// Size of a change.
        sigma: f64,
    },
}

impl SyntheticLoad {
    /// What can be written, for messages.
    pub const FORMS: &'static str = "uniform, lognormal:SIGMA, zipf:EXPONENT or drift:SIGMA";
    /// Steepest parameter.
    const PARAMETER_MAX: f64 = 16.0;
}

impl FromStr for SyntheticLoad {
    type Err = MoeError;

    fn from_str(text: &str) -> Result<Self, MoeError> {
        let refuse = || MoeError::config("synthetic load", text, Self::FORMS);
        let (name, parameter) = match text.split_once(':') {
            None => (text, None),
            Some((name, number)) => (name, Some(number.parse::<f64>().map_err(|_| refuse())?)),
        };
        if let Some(parameter) = parameter
            && !(0.0..=Self::PARAMETER_MAX).contains(&parameter)
        {
            let allowed = format!("0 to {}", Self::PARAMETER_MAX);
            return Err(MoeError::config("parameter of a synthetic load", parameter, allowed));
        }
        match (name, parameter) {
            ("uniform", None) => Ok(Self::Uniform),
            ("lognormal", Some(sigma)) => Ok(Self::Lognormal { sigma }),
            ("zipf", Some(exponent)) => Ok(Self::Zipf { exponent }),
            ("drift", Some(sigma)) => Ok(Self::Drift { sigma }),
            _ => Err(refuse()),
        }
    }
}

impl fmt::Display for SyntheticLoad {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform => formatter.write_str("uniform"),
            Self::Lognormal { sigma } => write!(formatter, "lognormal:{sigma}"),
            Self::Zipf { exponent } => write!(formatter, "zipf:{exponent}"),
            Self::Drift { sigma } => write!(formatter, "drift:{sigma}"),
        }
    }
}

/// Endless steps of made-up load. Each token draws its experts one after the other without getting
/// one twice. The same arguments give the same steps.
#[derive(Debug, Clone)]
pub struct Synthetic {
    load: SyntheticLoad,
    shape: TraceShape,
    tokens: usize,
    drift_steps: u64,
    correlation: f64,
    step: u64,
    layers: Vec<Layer>,
}

#[derive(Debug, Clone)]
struct Layer {
    random: ChaCha8Rng,
    popularity: Vec<f64>,
    sampler: Sampler,
}

impl Synthetic {
    /// Steps in which every source rank has `tokens` tokens.
    ///
    /// # Errors
    /// [`MoeError`] for a shape that no trace has, or tokens that counts cannot hold.
    pub fn new(
        load: SyntheticLoad,
        shape: TraceShape,
        tokens: usize,
        seed: u64,
    ) -> Result<Self, MoeError> {
        TraceHeader::new(shape, "")?;
        if i32::try_from(tokens).is_err() {
            return Err(MoeError::config("tokens of a step", tokens, format!("0 to {}", i32::MAX)));
        }
        let layer = |layer| {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            random.set_stream(layer as u64);
            let popularity = popularity(load, shape.experts, &mut random);
            Layer { sampler: Sampler::new(popularity.iter().copied()), popularity, random }
        };
        let layers = (0..shape.layers).map(layer).collect();
        Ok(Self { load, shape, tokens, drift_steps: 100, correlation: 0.0, step: 0, layers })
    }

    /// The same with popularities that change every so many steps (100 without this), if they drift.
    pub fn drifting_every(self, steps: std::num::NonZeroU32) -> Self {
        Self { drift_steps: u64::from(steps.get()), ..self }
    }

    /// The same with tokens of a batch that resemble each other: in each step, each source rank sees
    /// every popularity times `exp(sigma * z)`.
    ///
    /// # Errors
    /// [`MoeError::Config`] for a negative or absurd sigma.
    pub fn correlated(self, sigma: f64) -> Result<Self, MoeError> {
        if !(0.0..=SyntheticLoad::PARAMETER_MAX).contains(&sigma) {
            let allowed = format!("0 to {}", SyntheticLoad::PARAMETER_MAX);
            return Err(MoeError::config("correlation of a batch", sigma, allowed));
        }
        Ok(Self { correlation: sigma, ..self })
    }

    /// Sizes of the steps.
    pub fn shape(&self) -> TraceShape {
        self.shape
    }
}

impl Iterator for Synthetic {
    type Item = Vec<TraceRecord>;

    fn next(&mut self) -> Option<Vec<TraceRecord>> {
        let Self { load, shape, tokens, drift_steps, correlation, step, .. } = *self;
        let drift = match load {
            SyntheticLoad::Drift { sigma } if step > 0 && step.is_multiple_of(drift_steps) => sigma,
            _ => 0.0,
        };
        let draw = |layer: &mut Layer| layer.step(shape, tokens, drift, correlation);
        // [layers][source ranks][L]
        let mut layers: Vec<Vec<Vec<i32>>> = self.layers.par_iter_mut().map(draw).collect();
        let mut of_rank =
            |rank: usize| layers.iter_mut().map(|ranks| std::mem::take(&mut ranks[rank])).collect();
        let records = (0..shape.source_ranks)
            .map(|rank| TraceRecord { step, source_rank: rank, counts: of_rank(rank) })
            .collect();
        self.step += 1;
        Some(records)
    }
}

impl Layer {
    /// Counts of the source ranks, `[source ranks][L]`.
    fn step(
        &mut self,
        shape: TraceShape,
        tokens: usize,
        drift: f64,
        correlation: f64,
    ) -> Vec<Vec<i32>> {
        if drift > 0.0 {
            let random = &mut self.random;
            self.popularity.iter_mut().for_each(|weight| *weight *= (drift * normal(random)).exp());
            self.sampler = Sampler::new(self.popularity.iter().copied());
        }
        let mut chosen = vec![0; shape.top_k];
        let mut counts = vec![vec![0; shape.experts]; shape.source_ranks];
        for counts in &mut counts {
            if correlation > 0.0 {
                let random = &mut self.random;
                let weights = self.popularity.iter();
                let seen = weights.map(|weight| weight * (correlation * normal(random)).exp());
                self.sampler = Sampler::new(seen);
            }
            for _ in 0..tokens {
                self.sampler.distinct(&mut chosen, &mut self.random);
                chosen.iter().for_each(|&expert| counts[expert] += 1);
            }
        }
        counts
    }
}

fn popularity(load: SyntheticLoad, experts: usize, random: &mut ChaCha8Rng) -> Vec<f64> {
    let lognormal = |sigma: f64, random: &mut ChaCha8Rng| {
        (0..experts).map(|_| (sigma * normal(random)).exp()).collect()
    };
    match load {
        SyntheticLoad::Uniform => vec![1.0; experts],
        SyntheticLoad::Lognormal { sigma } => lognormal(sigma, random),
        SyntheticLoad::Drift { .. } => lognormal(1.0, random),
        SyntheticLoad::Zipf { exponent } => {
            let mut weights: Vec<f64> =
                (1..=experts).map(|rank| (rank as f64).powf(-exponent)).collect();
            shuffle(&mut weights, random);
            weights
        }
    }
}
