use artel_moe::MoeError;

/// Everything that a caller of these operations can do wrong. Each variant carries the values that
/// were wrong and what was expected.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LayersError {
    /// A buffer has the wrong number of elements for the shapes it is used with.
    #[error("{what} has {found} elements, expected {expected}")]
    Shape {
        /// Which buffer.
        what: &'static str,
        /// Elements it should have.
        expected: usize,
        /// Elements it has.
        found: usize,
    },
    /// A configuration value outside its range.
    #[error("{field} is {value}, but must be {allowed}")]
    Config {
        /// Name of the field.
        field: &'static str,
        /// What was given.
        value: String,
        /// What is allowed.
        allowed: String,
    },
    /// A token id that the embedding has no row for.
    #[error("token id {id} at position {position} is not in the vocabulary of {vocabulary} tokens")]
    TokenId {
        /// The id.
        id: u32,
        /// Where in the input it stands.
        position: usize,
        /// Rows of the embedding.
        vocabulary: usize,
    },
    /// More tokens than the key-value cache of a sequence was declared for.
    #[error(
        "{tokens} tokens do not fit the context: the cache of this sequence was declared for \
         {capacity}; start it with a larger context length or a shorter prompt"
    )]
    ContextFull {
        /// Tokens the sequence would have.
        tokens: usize,
        /// Tokens the cache was declared for.
        capacity: usize,
    },
    /// Nothing to choose the next token from.
    #[error(
        "each of the {vocabulary} logits is NaN or negative infinity, so there is no next token: \
         the weights are damaged or a number overflowed"
    )]
    NoCandidate {
        /// Logits there are.
        vocabulary: usize,
    },
    /// A matrix product refused its operands.
    #[error(transparent)]
    Product(#[from] MoeError),
    /// A kernel could not be loaded or launched, or a buffer on the GPU is too short.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] artel_device::cuda::CudaError),
}

impl LayersError {
    /// Checks that `found` is `expected` and names `what` otherwise.
    ///
    /// # Errors
    /// [`LayersError::Shape`] when the two differ.
    pub fn check_shape(what: &'static str, expected: usize, found: usize) -> Result<(), Self> {
        if expected == found { Ok(()) } else { Err(Self::Shape { what, expected, found }) }
    }

    /// Checks that `elements` is a whole number of rows of `width` and returns how many.
    ///
    /// # Errors
    /// [`LayersError::Shape`] with the next smaller whole number of elements otherwise.
    pub fn check_rows(what: &'static str, width: usize, elements: usize) -> Result<usize, Self> {
        let rows = elements.checked_div(width).unwrap_or(0);
        Self::check_shape(what, rows * width, elements)?;
        Ok(rows)
    }

    /// A [`LayersError::Config`] for a value that is not allowed.
    pub fn config(field: &'static str, value: impl ToString, allowed: impl ToString) -> Self {
        Self::Config { field, value: value.to_string(), allowed: allowed.to_string() }
    }
}
