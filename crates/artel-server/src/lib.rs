//! The engine over HTTP, as clients of OpenAI's API expect it.
//!
//! A request goes `router → api (what was sent) → prompt → generate (engine) → api (what is sent)`:
//!
//! ```text
//! connections.rs   accepts, limits what slow clients can hold, ends gracefully
//! router.rs        paths, keys, sizes; everything that is refused is refused with an error object
//! api/             one file an endpoint: its request, its answer, its stream
//! sampling.rs      what requests of all endpoints have in common
//! grammar.rs       JSON schemas as masks over tokens
//! reasoning.rs     what a model thinks apart from what it says
//! tools.rs         functions that a model may call
//! generate.rs      the choices of one request, as the engine makes them
//! metrics.rs       Prometheus' text
//! page.rs          the page at `/`
//! ```
//!
//! Flags and the environment are read elsewhere; nothing here knows how the model computes.

mod api;
mod app;
mod config;
mod connections;
mod error;
mod generate;
mod grammar;
mod metrics;
mod page;
mod prompt;
mod reasoning;
mod router;
mod sampling;
mod tools;
mod vocabulary;

pub use app::ServedModel;
pub use config::ServerConfig;
pub use connections::Server;
pub use error::ServerError;
