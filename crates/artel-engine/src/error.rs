use artel_layers::LayersError;
use artel_model::ModelError;

/// The result of an engine's operation.
pub type Result<T> = std::result::Result<T, EngineError>;

/// What can go wrong with a request or a step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A request or a setting that cannot be served.
    #[error("{field} is {value}, but must be {allowed}")]
    Invalid {
        /// What was given.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        allowed: String,
    },
    /// Prompt and answer together are longer than the context.
    #[error(
        "the prompt has {prompt} tokens and {max_tokens} more may follow, but the context holds \
         {context}: shorten the prompt, lower max_tokens or raise the context length"
    )]
    ContextOverflow {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens asked for.
        max_tokens: usize,
        /// Tokens that fit together.
        context: usize,
    },
    /// The model or the tokenizer failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A sampling parameter is out of range.
    #[error(transparent)]
    Sampling(#[from] LayersError),
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
