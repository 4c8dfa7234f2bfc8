//! When requests are sent.

use anyhow::Result;
use rand::Rng;
use rand_distr::{Distribution, Gamma};

/// How fast requests come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rate {
    /// Requests a second; infinite: all at once.
    Constant(f64),
    /// From `start` to `end` requests a second over the run.
    RampUp {
        /// How the rate rises.
        strategy: RampUp,
        /// Rate of the first request.
        start: f64,
        /// Rate of the last request.
        end: f64,
    },
}

/// How a rate rises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RampUp {
    /// By the same amount with each request.
    Linear,
    /// By the same factor.
    Exponential,
}

impl RampUp {
    /// Name in the result.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Exponential => "exponential",
        }
    }
}

impl Rate {
    /// Requests a second at request `index` of `count`.
    pub fn at(self, index: usize, count: usize) -> f64 {
        match self {
            Self::Constant(rate) => rate,
            Self::RampUp { strategy, start, end } => {
                let progress = index as f64 / count.saturating_sub(1).max(1) as f64;
                match strategy {
                    RampUp::Linear => start + (end - start) * progress,
                    RampUp::Exponential => start * (end / start).powf(progress),
                }
            }
        }
    }
}

/// Seconds from the start of the run at which each of `count` requests is sent.
///
/// Gaps follow a gamma distribution of shape `burstiness` and mean 1/rate, which is a Poisson process
/// at burstiness 1 and even at infinity. At a constant rate the times are stretched so that the last
/// one is at `count / rate`: two seeds then offer the same load.
///
/// # Errors
/// When a rate or the burstiness is not positive.
pub fn schedule(
    rate: Rate,
    burstiness: f64,
    count: usize,
    random: &mut impl Rng,
) -> Result<Vec<f64>> {
    let mut now = 0.0;
    let mut times = Vec::with_capacity(count);
    for index in 0..count {
        now += gap(rate.at(index, count), burstiness, random)?;
        times.push(now);
    }
    if let (Rate::Constant(rate), Some(&last)) = (rate, times.last())
        && last > 0.0
    {
        let stretch = count as f64 / rate / last;
        times.iter_mut().for_each(|time| *time *= stretch);
    }
    Ok(times)
}

fn gap(rate: f64, burstiness: f64, random: &mut impl Rng) -> Result<f64> {
    anyhow::ensure!(rate > 0.0, "a request rate of {rate} a second is not positive");
    anyhow::ensure!(burstiness > 0.0, "a burstiness of {burstiness} is not positive");
    if rate.is_infinite() {
        return Ok(0.0);
    }
    if burstiness.is_infinite() {
        return Ok(1.0 / rate);
    }
    Ok(Gamma::new(burstiness, 1.0 / (rate * burstiness))?.sample(random))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn times(rate: Rate, burstiness: f64, count: usize) -> Vec<f64> {
        schedule(rate, burstiness, count, &mut ChaCha8Rng::seed_from_u64(3)).unwrap()
    }

    /// Squared coefficient of variation of the gaps: 1/burstiness for a gamma distribution.
    fn variation(times: &[f64]) -> f64 {
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        variance / mean.powi(2)
    }

    #[test]
    fn an_infinite_rate_sends_all_at_once() {
        assert_eq!(times(Rate::Constant(f64::INFINITY), 1.0, 3), [0.0; 3]);
        assert!(times(Rate::Constant(1.0), 1.0, 0).is_empty());
    }

    #[test]
    fn the_last_request_comes_at_count_over_rate_and_gaps_vary_as_asked() {
        for burstiness in [0.25, 1.0, 4.0] {
            let times = times(Rate::Constant(8.0), burstiness, 20_000);
            assert!((times[19_999] - 2500.0).abs() < 1e-6);
            assert!(times.is_sorted());
            let expected = 1.0 / burstiness;
            let found = variation(&times);
            assert!((found / expected - 1.0).abs() < 0.1, "{burstiness}: {found}");
        }
        assert_eq!(times(Rate::Constant(4.0), f64::INFINITY, 3), [0.25, 0.5, 0.75]);
    }

    #[test]
    fn rates_rise_as_asked() {
        let ramp = |strategy| Rate::RampUp { strategy, start: 1.0, end: 4.0 };
        let rates = |strategy| [0, 1, 2].map(|index| ramp(strategy).at(index, 3));
        assert_eq!(rates(RampUp::Linear), [1.0, 2.5, 4.0]);
        assert_eq!(rates(RampUp::Exponential), [1.0, 2.0, 4.0]);
        assert_eq!(ramp(RampUp::Linear).at(0, 1), 1.0);
        let even = times(ramp(RampUp::Linear), f64::INFINITY, 3);
        assert!(even.iter().zip([1.0, 1.4, 1.65]).all(|(a, b)| (a - b).abs() < 1e-12), "{even:?}");
    }

    #[test]
    fn the_same_seed_gives_the_same_times() {
        let rate = Rate::Constant(5.0);
        assert_eq!(times(rate, 0.5, 50), times(rate, 0.5, 50));
        let mut random = ChaCha8Rng::seed_from_u64(0);
        assert!(schedule(Rate::Constant(0.0), 1.0, 1, &mut random).is_err());
        assert!(schedule(Rate::Constant(1.0), 0.0, 1, &mut random).is_err());
    }
}
