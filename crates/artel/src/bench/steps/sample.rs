//! Sampling, of rows that all ask for the same.

use anyhow::Result;
use artel_device::cuda::{DeviceBuffer, Kernels, Stream};
use artel_layers::sample::SamplingParams;
use artel_layers::sample::cuda::{RowParameters, SampleKernels, SampleSteps};
use half::bf16;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::Floor;
use super::cuda::{Report, times, upload};

/// Sampling from one vocabulary.
pub(super) struct SampleStep {
    name: &'static str,
    vocabulary: usize,
    kernels: SampleKernels<bf16>,
}

/// What rows ask for.
fn requests() -> [(&'static str, SamplingParams); 6] {
    let plain = SamplingParams::default();
    [
        ("greedy", SamplingParams::greedy()),
        ("plain", plain),
        ("min-p 0.1", SamplingParams { min_p: 0.1, ..plain }),
        ("top 50", SamplingParams { top_k: 50, temperature: 0.7, ..plain }),
        ("top-p 0.95", SamplingParams { top_p: 0.95, ..plain }),
        ("top 20, 0.8", SamplingParams { top_k: 20, top_p: 0.8, temperature: 0.7, ..plain }),
    ]
}

impl SampleStep {
    pub(super) fn load(
        kernels: &mut Kernels,
        name: &'static str,
        vocabulary: usize,
    ) -> Result<Self> {
        Ok(Self { name, vocabulary, kernels: SampleKernels::load(kernels, vocabulary)? })
    }

    pub(super) fn measure(
        &self,
        stream: &Stream,
        rows: usize,
        report: &mut Report<'_>,
    ) -> Result<()> {
        let logits = upload(stream, &logits(rows * self.vocabulary))?;
        let uniforms: Vec<f64> = (0..rows).map(|row| (row as f64 * 0.377 + 0.31) % 1.0).collect();
        let uniforms = upload(stream, &uniforms)?;
        let mut workspace = self.kernels.workspace(stream.context(), rows)?;
        let mut tokens = DeviceBuffer::<i32>::zeroed(stream.context(), rows)?;
        let mut logprobs = DeviceBuffer::<f32>::zeroed(stream.context(), rows)?;
        for (request, params) in requests() {
            let of_rows = |value: f32| upload(stream, &vec![value; rows]);
            let (temperatures, top_ps) = (of_rows(params.temperature)?, of_rows(params.top_p)?);
            let least = of_rows(params.min_p.ln())?;
            let top_ks = upload(stream, &vec![params.top_k as i32; rows])?;
            let parameters = RowParameters {
                temperatures: temperatures.slice(),
                top_ks: top_ks.slice(),
                top_ps: top_ps.slice(),
                least: least.slice(),
                uniforms: uniforms.slice(),
            };
            let steps = SampleSteps {
                draws: params.temperature > 0.0,
                top_k: params.top_k > 0,
                top_p: params.top_p < 1.0,
            };
            let times = times(stream, |stream, _| {
                let out = (tokens.slice_mut(), logprobs.slice_mut());
                let (logits, parameters) = (logits.slice(), (&parameters, None));
                self.kernels.launch(stream, logits, parameters, steps, &mut workspace, out)
            })?;
            let floor = Floor::bytes(rows * self.vocabulary * 2);
            report(&format!("{} sample, {request}", self.name), rows, floor, &times);
        }
        Ok(())
    }
}

/// Spread as those of a language model that is in doubt: a bell whose deviation is 2.5.
fn logits(count: usize) -> Vec<bf16> {
    let mut random = StdRng::seed_from_u64(count as u64);
    let mut bell = || (0..12).map(|_| random.random_range(-0.5..0.5)).sum::<f32>();
    (0..count).map(|_| bf16::from_f32(2.5 * bell())).collect()
}
