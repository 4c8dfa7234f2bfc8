//! Loads of experts with a known shape. The same seed gives the same loads.

use rand::{RngExt, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

#[derive(Debug, Clone, Copy)]
pub enum Skew {
    /// `exp(sigma * normal)`.
    Lognormal(f64),
    /// The n-th expert has `1 / n^exponent`, in random order.
    Zipf(f64),
}

pub fn load(skew: Skew, experts: usize, seed: u64) -> Vec<f64> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    match skew {
        Skew::Lognormal(sigma) => {
            (0..experts).map(|_| 1000.0 * (sigma * normal(&mut random)).exp()).collect()
        }
        Skew::Zipf(exponent) => {
            let load = |n: usize| 1000.0 / (n as f64).powf(exponent);
            let mut loads: Vec<f64> = (1..=experts).map(load).collect();
            loads.shuffle(&mut random);
            loads
        }
    }
}

/// The same experts later: each load times `exp(sigma * normal)`.
pub fn drifted(load: &[f64], sigma: f64, seed: u64) -> Vec<f64> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    load.iter().map(|load| load * (sigma * normal(&mut random)).exp()).collect()
}

/// A normal number, after Box and Muller.
fn normal(random: &mut ChaCha8Rng) -> f64 {
    let [radius, angle]: [f64; 2] = [random.random(), random.random()];
    (-2.0 * (1.0 - radius).ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}
