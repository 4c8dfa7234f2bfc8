use std::time::Duration;

use artel_layers::LayersError;
use artel_model::ModelError;
use artel_moe::MoeError;
use artel_moe::eplb::trace::TraceError;

/// The result of an engine's operation.
pub type Result<T> = std::result::Result<T, EngineError>;

/// Why an engine does not start or a step fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A setting that makes no sense.
    #[error("{field} is {value}, but must be {allowed}")]
    Invalid {
        /// What was given.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        allowed: String,
    },
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The experts of the model cannot be placed, or a rank that holds some is gone.
    #[error(transparent)]
    Experts(#[from] MoeError),
    /// The thread that places experts has died.
    #[error("the thread that places experts has died: see the message above, and report it")]
    PlannerGone,
    /// The trace of experts cannot be written.
    #[error("the trace of experts: {0}")]
    Trace(#[from] TraceError),
    /// A layer of the model has no kernel, or failed.
    #[error(transparent)]
    Layers(#[from] LayersError),
    /// The GPU failed.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] artel_device::cuda::CudaError),
    /// The thread of the engine does not start.
    #[error("the thread of the engine does not start: {0}")]
    Thread(#[from] std::io::Error),
}

impl EngineError {
    pub(crate) fn invalid(
        field: &'static str,
        value: impl ToString,
        allowed: impl ToString,
    ) -> Self {
        Self::Invalid { field, value: value.to_string(), allowed: allowed.to_string() }
    }
}

/// Why a request is not taken. Nothing has run then.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// As many requests wait as may.
    #[error(
        "{waiting} requests are waiting, and no more than {limit} may: try again in {} s",
        retry_after.as_secs()
    )]
    QueueFull {
        /// Requests that wait.
        waiting: usize,
        /// How many may.
        limit: usize,
        /// When there should be room; whole seconds, at least one.
        retry_after: Duration,
    },
    /// Prompt and answer together are longer than the context.
    #[error(
        "the prompt has {prompt} tokens and {max_tokens} more may follow, but the context holds \
         {context}: shorten the prompt, lower max_tokens or raise the context length"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens asked for; 1 when no number was given.
        max_tokens: usize,
        /// Tokens that fit together.
        context: usize,
    },
    /// A parameter that cannot be served.
    #[error("{field} is {value}, but must be {allowed}")]
    Invalid {
        /// Name of the parameter.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        allowed: String,
    },
    /// The engine is shutting down or gone.
    #[error("the engine takes no more requests")]
    Stopped,
}

impl SubmitError {
    pub(crate) fn invalid(
        field: &'static str,
        value: impl ToString,
        allowed: impl ToString,
    ) -> Self {
        Self::Invalid { field, value: value.to_string(), allowed: allowed.to_string() }
    }
}

impl From<LayersError> for SubmitError {
    fn from(error: LayersError) -> Self {
        match error {
            LayersError::Config { field, value, allowed } => {
                Self::Invalid { field, value, allowed }
            }
            other => Self::invalid("sampling", other, "possible"),
        }
    }
}
