//! Continuous batching: many requests run together on one model.
//!
//! An [`Engine`] owns a [`Runner`], the blocks of its key-value cache and all requests. Every
//! [`step`](Engine::step) computes one token for each request that is answering and as much of the
//! others' prompts as fits beside them. [`Engine::spawn`] gives it a thread, to which any number of
//! [`EngineHandle`]s talk:
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use artel_engine::{CpuRunner, Engine, EngineConfig, Event, Request};
//! use artel_model::{Checkpoint, LoadOptions, Model, Tokenizer};
//!
//! let checkpoint = Checkpoint::open("/models/OLMoE-1B-7B".as_ref())?;
//! let model = Model::load(&checkpoint, &LoadOptions::default())?;
//! let tokenizer = Tokenizer::read(&checkpoint)?;
//! let runner = Box::new(CpuRunner::new(Arc::new(model)));
//! let engine = Engine::new(runner, tokenizer.clone(), EngineConfig::default())?.spawn()?;
//!
//! let mut answer = engine.submit(Request::new(tokenizer.encode("Hello")?))?;
//! while let Some(event) = answer.blocking_recv() {
//!     match event {
//!         Event::PromptLogprobs(_) => {}
//!         Event::Token(token) => print!("{}", token.text),
//!         Event::Finished(end) => println!("{}", end.text),
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Tokens depend on the request alone, not on what else is in the batch, as far as the model's
//! kernels give the same bits in any batch.

mod engine;
mod handle;
mod scheduler;
mod sequence;
mod blocks;
mod runner;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod ranks;
mod request;
mod event;
mod stop;
mod metrics;
mod config;
mod error;
#[cfg(test)]
mod tests;

pub use artel_layers::sample::{SamplingParams, TokenLogprobs, TokenMask};
pub use config::EngineConfig;
pub use cpu::CpuRunner;
#[cfg(feature = "cuda")]
pub use cuda::{CudaRunner, CudaRunnerKernels};
pub use engine::Engine;
pub use error::{EngineError, Result, SubmitError};
pub use event::{Event, FinishReason, Finished, StoppedBy, Timings, Token, Usage};
pub use handle::{EngineHandle, EventStream};
pub use metrics::{ExpertMetrics, FinishedCounts, Metrics, StepMetrics, StepTimes};
pub use ranks::{ExpertRanks, RankMetrics};
pub use request::{Cancellation, LOGPROBS_MAX, LogitsMask, Request, RequestId};
pub use runner::{
    Choice, Launched, PromptTargets, RunReport, Runner, RunnerInfo, SequenceOutput, SequenceStep,
};
