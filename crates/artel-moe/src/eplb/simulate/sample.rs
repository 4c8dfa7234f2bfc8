use rand_chacha::{ChaCha8Rng, rand_core::Rng};

/// Draws before the rest is summed up and drawn from directly.
const TRIES: usize = 32;

/// A number from 0 up to 1, without 1.
pub(super) fn uniform(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// A number of the standard normal distribution, by the method of Box and Muller.
pub(super) fn normal(random: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * (1.0 - uniform(random)).ln()).sqrt();
    radius * (std::f64::consts::TAU * uniform(random)).cos()
}

/// Shuffles in place (Fisher and Yates).
pub(super) fn shuffle<T>(values: &mut [T], random: &mut ChaCha8Rng) {
    for last in (1..values.len()).rev() {
        values.swap(last, (uniform(random) * (last + 1) as f64) as usize);
    }
}

/// Chooses experts in proportion to numbers.
#[derive(Debug, Clone)]
pub(super) struct Sampler {
    /// Sum up to and with each expert, `[L]`.
    cumulative: Vec<f64>,
}

impl Sampler {
    /// Of positive numbers.
    pub(super) fn new(popularity: impl Iterator<Item = f64>) -> Self {
        let mut total = 0.0;
        let add = |popularity: f64| {
            total += popularity;
            total
        };
        Self { cumulative: popularity.map(add).collect() }
    }

    fn popularity(&self, expert: usize) -> f64 {
        self.cumulative[expert] - if expert > 0 { self.cumulative[expert - 1] } else { 0.0 }
    }

    fn total(&self) -> f64 {
        self.cumulative.last().copied().unwrap_or(0.0)
    }

    /// Draws different experts into `chosen`, one after the other, each in proportion to its
    /// popularity among those left: an expert that is there already is drawn again.
    pub(super) fn distinct(&self, chosen: &mut [usize], random: &mut ChaCha8Rng) {
        for position in 0..chosen.len() {
            let (before, rest) = chosen.split_at_mut(position);
            let draw = |_| self.draw(random);
            let expert = (0..TRIES).map(draw).find(|expert| !before.contains(expert));
            rest[0] = expert.unwrap_or_else(|| self.among_the_rest(before, random));
        }
    }

    fn draw(&self, random: &mut ChaCha8Rng) -> usize {
        let at = uniform(random) * self.total();
        self.cumulative.partition_point(|sum| *sum <= at).min(self.cumulative.len() - 1)
    }

    /// The popular ones are taken and hardly anything else would ever be drawn.
    fn among_the_rest(&self, taken: &[usize], random: &mut ChaCha8Rng) -> usize {
        let rest = || (0..self.cumulative.len()).filter(|expert| !taken.contains(expert));
        let total: f64 = rest().map(|expert| self.popularity(expert)).sum();
        let mut left = uniform(random) * total;
        let ends_in = |expert: &usize| {
            left -= self.popularity(*expert);
            left < 0.0
        };
        // Numbers too small to add to the sum leave nothing to choose by: then the first one.
        let first = rest().next();
        rest().find(ends_in).or(first).expect("this is a bug: more experts a token than experts")
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    #[test]
    fn experts_come_in_proportion_and_once() {
        let mut random = ChaCha8Rng::seed_from_u64(3);
        let sampler = Sampler::new([1.0, 2.0, 0.0, 5.0].into_iter());
        let mut counts = [0; 4];
        for _ in 0..80_000 {
            let mut chosen = [0];
            sampler.distinct(&mut chosen, &mut random);
            counts[chosen[0]] += 1;
        }
        for (count, expected) in counts.into_iter().zip([10_000i32, 20_000, 0, 50_000]) {
            assert!((count - expected).abs() < 600, "{counts:?}");
        }
        // Second choices: 3 with 5/7 after 1, and so on; all pairs are of different experts.
        let mut pairs = [0; 2];
        for _ in 0..8_000 {
            let mut chosen = [0; 2];
            sampler.distinct(&mut chosen, &mut random);
            assert_ne!(chosen[0], chosen[1]);
            if chosen[0] == 1 {
                pairs[usize::from(chosen[1] == 3)] += 1;
            }
        }
        let share = f64::from(pairs[1]) / f64::from(pairs[0] + pairs[1]);
        assert!((share - 5.0 / 6.0).abs() < 0.03, "{share}");
    }

    #[test]
    fn hopeless_popularities_still_give_different_experts() {
        let mut random = ChaCha8Rng::seed_from_u64(3);
        let steep = (0..8).map(|rank| 1e-40f64.powi(rank));
        let mut chosen = [0; 8];
        Sampler::new(steep).distinct(&mut chosen, &mut random);
        chosen.sort_unstable();
        assert_eq!(chosen, [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn normal_numbers_have_mean_and_spread() {
        let mut random = ChaCha8Rng::seed_from_u64(5);
        let numbers: Vec<f64> = (0..100_000).map(|_| normal(&mut random)).collect();
        let mean = numbers.iter().sum::<f64>() / 1e5;
        let variance = numbers.iter().map(|number| number * number).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03, "{mean} {variance}");
    }
}
