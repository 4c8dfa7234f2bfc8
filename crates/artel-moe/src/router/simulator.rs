//! A stand-in for a router in load tests: experts of each token drawn from a known distribution
//! or read from a recording. The same seed gives the same routing, however tokens are batched.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

use super::{RouterConfig, TopK};
use crate::MoeError;

/// What the simulated tokens choose.
#[derive(Debug, Clone, PartialEq)]
pub enum Workload {
    /// Every expert alike.
    Uniform,
    /// The n-th most popular expert is chosen in proportion to `1 / n^exponent`. Which expert is
    /// how popular is shuffled anew for each layer.
    Zipf {
        /// 0 is uniform, 1 is classical, larger is steeper.
        exponent: f64,
    },
    /// Experts in proportion to these numbers, `[E]`.
    Popularity(Vec<f64>),
    /// The tokens of a recording, over and over.
    Replay(TopK),
}

/// What a simulated router looks like from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimulatorConfig {
    /// Experts, `E`.
    pub num_experts: usize,
    /// Different experts a token, `K`.
    pub top_k: usize,
    /// Same seed, same routing.
    pub seed: u64,
    /// Each layer draws from a stream of its own.
    pub layer: u64,
}

/// Routes tokens without logits. Weights of drawn experts are `1 / K`.
///
/// ```
/// use artel_moe::router::{TopK, simulator::{Simulator, SimulatorConfig, Workload}};
/// let config = SimulatorConfig { num_experts: 64, top_k: 4, seed: 7, layer: 0 };
/// let mut simulator = Simulator::new(Workload::Zipf { exponent: 1.0 }, config)?;
/// let mut topk = TopK::default();
/// simulator.route(10, &mut topk);
/// assert_eq!((topk.tokens(), topk.ids.len()), (10, 40));
/// # Ok::<(), artel_moe::MoeError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Simulator {
    config: SimulatorConfig,
    source: Source,
}

#[derive(Debug, Clone)]
enum Source {
    Drawn { popularity: Vec<f64>, random: Box<ChaCha8Rng>, best_times: Vec<f64> },
    Recorded { trace: TopK, next_token: usize },
}

impl Simulator {
    /// A simulator at the start of its stream.
    ///
    /// # Errors
    /// [`MoeError`] for counts that a router refuses, popularities that are not finite and
    /// positive enough to choose `K` experts, and recordings that are empty, of another `K` or
    /// with experts that do not exist.
    pub fn new(workload: Workload, config: SimulatorConfig) -> Result<Self, MoeError> {
        RouterConfig::new(super::RoutingMethod::softmax(), config.num_experts, config.top_k)?;
        let source = match workload {
            Workload::Uniform => Source::drawn(vec![1.0; config.num_experts], &config)?,
            Workload::Zipf { exponent } => Source::drawn(zipf(exponent, &config)?, &config)?,
            Workload::Popularity(popularity) => Source::drawn(popularity, &config)?,
            Workload::Replay(trace) => Source::recorded(trace, &config)?,
        };
        Ok(Self { config, source })
    }

    /// Routes the next `tokens` tokens. Allocates nothing once `out` has seen a batch of this size.
    pub fn route(&mut self, tokens: usize, out: &mut TopK) {
        let top_k = self.config.top_k;
        out.resize(tokens, top_k);
        match &mut self.source {
            Source::Drawn { popularity, random, best_times } => {
                out.weights.fill(1.0 / top_k as f32);
                for ids in out.ids.chunks_exact_mut(top_k) {
                    draw_distinct(popularity, random, best_times, ids);
                }
            }
            Source::Recorded { trace, next_token } => {
                let rows = out.ids.chunks_exact_mut(top_k);
                for (ids, weights) in rows.zip(out.weights.chunks_exact_mut(top_k)) {
                    let row = *next_token * top_k..(*next_token + 1) * top_k;
                    ids.copy_from_slice(&trace.ids[row.clone()]);
                    weights.copy_from_slice(&trace.weights[row]);
                    *next_token = (*next_token + 1) % trace.tokens();
                }
            }
        }
    }
}

impl Source {
    fn drawn(popularity: Vec<f64>, config: &SimulatorConfig) -> Result<Self, MoeError> {
        MoeError::check_shape("expert popularity", config.num_experts, popularity.len())?;
        let bad = popularity.iter().position(|&weight| !(weight.is_finite() && weight >= 0.0));
        if let Some(expert) = bad {
            let allowed = "finite and not negative";
            return Err(MoeError::element("popularity", expert, popularity[expert], allowed));
        }
        let choosable = popularity.iter().filter(|&&weight| weight > 0.0).count();
        if choosable < config.top_k {
            let allowed = format!("at least {} (top_k)", config.top_k);
            return Err(MoeError::config("experts of positive popularity", choosable, allowed));
        }
        // Even streams draw tokens, odd ones shuffle popularities.
        let random = Box::new(stream(config, 0));
        Ok(Self::Drawn { popularity, random, best_times: vec![0.0; config.top_k] })
    }

    fn recorded(trace: TopK, config: &SimulatorConfig) -> Result<Self, MoeError> {
        if trace.top_k != config.top_k || trace.ids.is_empty() {
            let value = format!("{} tokens of {}", trace.tokens(), trace.top_k);
            let allowed = format!("1 or more tokens of {} experts", config.top_k);
            return Err(MoeError::config("recording", value, allowed));
        }
        MoeError::check_shape("recorded ids", trace.tokens() * trace.top_k, trace.ids.len())?;
        MoeError::check_shape("recorded weights", trace.ids.len(), trace.weights.len())?;
        let known = -1..config.num_experts as i32;
        if let Some(pair) = trace.ids.iter().position(|id| !known.contains(id)) {
            let allowed = format!("-1 or an expert below {}", config.num_experts);
            return Err(MoeError::element("recorded ids", pair, trace.ids[pair], allowed));
        }
        Ok(Self::Recorded { trace, next_token: 0 })
    }
}

fn stream(config: &SimulatorConfig, purpose: u64) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(config.seed);
    random.set_stream(config.layer.wrapping_mul(2).wrapping_add(purpose));
    random
}

fn zipf(exponent: f64, config: &SimulatorConfig) -> Result<Vec<f64>, MoeError> {
    if !(0.0..=16.0).contains(&exponent) {
        return Err(MoeError::config("Zipf exponent", exponent, "0 to 16"));
    }
    let mut popularity: Vec<f64> =
        (1..=config.num_experts).map(|rank| (rank as f64).powf(-exponent)).collect();
    let mut random = stream(config, 1);
    for last in (1..popularity.len()).rev() {
        popularity.swap(last, below(&mut random, last + 1));
    }
    Ok(popularity)
}

/// A number from 0 up to `end`, by the high bits of the draw.
fn below(random: &mut ChaCha8Rng, end: usize) -> usize {
    ((u128::from(random.next_u64()) * end as u128) >> 64) as usize
}

/// Draws different experts one after the other, each in proportion to its popularity among those
/// left. Every expert is a clock that rings after an exponential time of its rate; the first to
/// ring are chosen (Efraimidis and Spirakis 2006). One pass, whatever the skew.
fn draw_distinct(
    popularity: &[f64],
    random: &mut ChaCha8Rng,
    best_times: &mut [f64],
    ids: &mut [i32],
) {
    best_times.fill(f64::INFINITY);
    let last = ids.len() - 1;
    for (id, &rate) in popularity.iter().enumerate() {
        // Strictly between 0 and 1, so that the time is positive and finite.
        let uniform = ((random.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        let time = -uniform.ln() / rate;
        if time >= best_times[last] {
            continue;
        }
        let mut slot = last;
        while slot > 0 && time < best_times[slot - 1] {
            best_times[slot] = best_times[slot - 1];
            ids[slot] = ids[slot - 1];
            slot -= 1;
        }
        best_times[slot] = time;
        ids[slot] = id as i32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: SimulatorConfig =
        SimulatorConfig { num_experts: 64, top_k: 4, seed: 11, layer: 2 };

    fn routed(workload: Workload, config: SimulatorConfig, batches: &[usize]) -> TopK {
        let mut simulator = Simulator::new(workload, config).unwrap();
        let mut all = TopK { top_k: config.top_k, ..TopK::default() };
        let mut batch = TopK::default();
        for &tokens in batches {
            simulator.route(tokens, &mut batch);
            assert_eq!(batch.tokens(), tokens);
            all.ids.extend(&batch.ids);
            all.weights.extend(&batch.weights);
        }
        all
    }

    /// Tokens that chose each expert, most chosen first.
    fn counts(topk: &TopK) -> Vec<usize> {
        let mut counts = vec![0; CONFIG.num_experts];
        topk.ids.iter().for_each(|&id| counts[id as usize] += 1);
        counts.sort_unstable_by(|a, b| b.cmp(a));
        counts
    }

    #[test]
    fn tokens_choose_different_experts() {
        let all_of_them = SimulatorConfig { top_k: 64, ..CONFIG };
        let steep = Workload::Zipf { exponent: 16.0 };
        for config in [CONFIG, all_of_them, SimulatorConfig { top_k: 1, ..CONFIG }] {
            for workload in [Workload::Uniform, Workload::Zipf { exponent: 1.2 }, steep.clone()] {
                let topk = routed(workload, config, &[50, 0, 1]);
                for ids in topk.ids.chunks(config.top_k) {
                    let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
                    assert_eq!(distinct.len(), config.top_k);
                    assert!(ids.iter().all(|id| (0..64).contains(id)));
                }
                assert!(topk.weights.iter().all(|&w| w == 1.0 / config.top_k as f32));
            }
        }
    }

    #[test]
    fn the_seed_decides_everything_and_batches_nothing() {
        let zipf = || Workload::Zipf { exponent: 1.0 };
        let once = routed(zipf(), CONFIG, &[30]);
        assert_eq!(once, routed(zipf(), CONFIG, &[1, 9, 0, 20]));
        assert_ne!(once, routed(zipf(), SimulatorConfig { seed: 12, ..CONFIG }, &[30]));
        assert_ne!(once, routed(zipf(), SimulatorConfig { layer: 3, ..CONFIG }, &[30]));
        assert_eq!(once.ids[..8], [40, 13, 11, 4, 11, 55, 4, 40], "fixed for all time");
    }

    #[test]
    fn shares_are_those_of_the_distribution() {
        let one = SimulatorConfig { top_k: 1, ..CONFIG };
        let tokens = 64 * 500;
        let uniform = counts(&routed(Workload::Uniform, one, &[tokens]));
        assert!(uniform[0] < 600 && uniform[63] > 400, "{uniform:?}");
        let harmonic: f64 = (1..=64).map(|rank| 1.0 / f64::from(rank)).sum();
        let zipf = counts(&routed(Workload::Zipf { exponent: 1.0 }, one, &[tokens]));
        for rank in [1, 2, 4, 8] {
            let share = zipf[rank - 1] as f64 / tokens as f64 * rank as f64 * harmonic;
            assert!((share - 1.0).abs() < 0.1, "rank {rank}: {share}");
        }
        let mut only_three = vec![0.0; 64];
        only_three[..3].fill(2.0);
        let config = SimulatorConfig { top_k: 3, ..CONFIG };
        assert_eq!(
            counts(&routed(Workload::Popularity(only_three), config, &[9]))[..4],
            [9, 9, 9, 0]
        );
    }

    #[test]
    fn recordings_repeat() {
        let ids = vec![3, 1, -1, 0, 2, 2];
        let trace = TopK { ids, weights: vec![0.5, 0.25, 0.0, 1.0, 0.75, 0.1], top_k: 2 };
        let config = SimulatorConfig { num_experts: 4, top_k: 2, ..CONFIG };
        let topk = routed(Workload::Replay(trace.clone()), config, &[2, 3]);
        assert_eq!(topk.ids, [3, 1, -1, 0, 2, 2, 3, 1, -1, 0]);
        assert_eq!(topk.weights[4..8], [0.75, 0.1, 0.5, 0.25]);
        for wrong in [
            TopK { top_k: 3, ..trace.clone() },
            TopK { ids: vec![], weights: vec![], top_k: 2 },
            TopK { weights: vec![1.0; 5], ..trace.clone() },
            TopK { ids: vec![3, 1, 4, 0, 2, 2], ..trace.clone() },
            TopK { ids: vec![3, 1, -2, 0, 2, 2], ..trace.clone() },
            TopK { ids: vec![3, 1, 0, 0, 2], weights: vec![1.0; 5], top_k: 2 },
        ] {
            assert!(Simulator::new(Workload::Replay(wrong), config).is_err());
        }
    }

    #[test]
    fn illegal_workloads_are_refused() {
        let refused = |workload, config| assert!(Simulator::new(workload, config).is_err());
        refused(Workload::Uniform, SimulatorConfig { top_k: 65, ..CONFIG });
        refused(Workload::Uniform, SimulatorConfig { num_experts: 0, ..CONFIG });
        refused(Workload::Uniform, SimulatorConfig { num_experts: usize::MAX, ..CONFIG });
        for exponent in [-1.0, f64::NAN, f64::INFINITY] {
            refused(Workload::Zipf { exponent }, CONFIG);
        }
        refused(Workload::Popularity(vec![1.0; 63]), CONFIG);
        refused(Workload::Popularity(vec![f64::NAN; 64]), CONFIG);
        refused(Workload::Popularity(vec![0.0; 64]), CONFIG);
    }
}
