/// Everything that a caller of the layer can do wrong. Each variant carries the values that were
/// wrong and what was expected.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MoeError {
    /// Two buffers that belong together differ in size.
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
    /// One element of an input outside its range.
    #[error("{what}[{position}] is {value}, but must be {allowed}")]
    Element {
        /// Which buffer.
        what: &'static str,
        /// Index of the element in it, flattened.
        position: usize,
        /// What was found there.
        value: String,
        /// What is allowed.
        allowed: String,
    },
    /// A rank of an expert-parallel group failed, or is gone.
    #[error("rank {rank} failed at {doing} of layer {layer}: {why}")]
    Rank {
        /// Which rank.
        rank: usize,
        /// Which of the group's layers.
        layer: usize,
        /// What it was doing.
        doing: &'static str,
        /// What went wrong.
        why: String,
    },
    /// The GPU or its kernels.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] artel_device::cuda::CudaError),
}

impl MoeError {
    /// Checks that `found` is `expected` and names `what` otherwise.
    ///
    /// # Errors
    /// [`MoeError::Shape`] when the two differ.
    pub fn check_shape(what: &'static str, expected: usize, found: usize) -> Result<(), Self> {
        if expected == found { Ok(()) } else { Err(Self::Shape { what, expected, found }) }
    }

    /// A [`MoeError::Config`] for a value that is not allowed.
    pub fn config(field: &'static str, value: impl ToString, allowed: impl ToString) -> Self {
        Self::Config { field, value: value.to_string(), allowed: allowed.to_string() }
    }

    /// A [`MoeError::Element`] for one element that is not allowed.
    pub fn element(
        what: &'static str,
        position: usize,
        value: impl ToString,
        allowed: impl ToString,
    ) -> Self {
        Self::Element { what, position, value: value.to_string(), allowed: allowed.to_string() }
    }
}
