//! Requests, sampling and streaming text: several requests run together on one model.
//!
//! ```no_run
//! use artel_engine::{Engine, EngineConfig, EventKind, GenerationRequest};
//! use artel_model::{Checkpoint, LoadOptions, Model, Tokenizer};
//!
//! let checkpoint = Checkpoint::open("/models/OLMoE-1B-7B".as_ref())?;
//! let model = Model::load(&checkpoint, &LoadOptions::default())?;
//! let tokenizer = Tokenizer::read(&checkpoint)?;
//! let mut engine = Engine::new(&model, &tokenizer, EngineConfig::default())?;
//! engine.submit(GenerationRequest::new(tokenizer.encode("Hello")?, 32))?;
//! while engine.has_work() {
//!     for event in engine.step()? {
//!         match event.kind {
//!             EventKind::Token(token) => print!("{}", token.text),
//!             EventKind::Finished(end) => println!("{}", end.text),
//!         }
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod engine;
mod error;
mod event;
mod request;
mod schedule;
mod sequence;
mod stop;

pub use artel_layers::sample::SamplingParams;
pub use engine::{Engine, EngineConfig};
pub use error::{EngineError, Result};
pub use event::{Event, EventKind, FinishReason, Finished, Timings, Token, Usage};
pub use request::{Cancellation, GenerationRequest, RequestId};
