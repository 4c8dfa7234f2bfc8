//! The engine without a server: how long one batch takes, and how much many requests get through.

pub mod floors;
pub mod latency;
pub mod steps;
pub mod throughput;

use anyhow::{Result, bail};
use artel_engine::{EngineHandle, FinishReason, Request, SamplingParams};

use crate::eval::completions::complete_all;

/// A prompt and how long its answer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Tokens of the prompt.
    pub prompt_ids: Vec<u32>,
    /// Tokens of the answer; the model does not end it earlier.
    pub output_tokens: usize,
    /// Seed of the answer: tokens are drawn from the model's own distribution. The most likely ones
    /// soon repeat themselves, and a mixture of experts then uses few of its experts.
    pub seed: u64,
}

impl Job {
    fn request(&self) -> Request {
        Request {
            max_tokens: Some(self.output_tokens),
            sampling: SamplingParams { seed: self.seed, ..SamplingParams::default() },
            ignore_eos: true,
            ..Request::new(self.prompt_ids.clone())
        }
    }
}

/// Tokens of many jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tokens {
    /// Of their prompts.
    pub prompts: usize,
    /// Of their answers.
    pub answers: usize,
}

/// An engine that works off jobs.
#[derive(Debug)]
pub struct Offline(pub EngineHandle);

impl Offline {
    /// Works off `jobs`, as many together as the engine allows; `done` hears of each that ends.
    /// Returns the tokens of all.
    ///
    /// # Errors
    /// When a job does not fit the context or the engine fails.
    pub fn work_off(&self, jobs: &[Job], mut done: impl FnMut()) -> Result<Tokens> {
        let requests = jobs.iter().map(|job| Ok(job.request()));
        let mut total = Tokens::default();
        complete_all(&self.0, requests, |reply| {
            if reply.reason != FinishReason::Length {
                bail!("request {} ended early: {:?}", reply.index + 1, reply.reason);
            }
            total.prompts += reply.usage.prompt_tokens;
            total.answers += reply.usage.completion_tokens;
            done();
            Ok(())
        })?;
        Ok(total)
    }
}
