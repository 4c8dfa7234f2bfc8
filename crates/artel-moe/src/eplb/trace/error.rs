use std::io;

use crate::MoeError;

/// Why a trace cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// What was to be written does not fit the header.
    #[error(transparent)]
    Input(#[from] MoeError),
    /// The file.
    #[error("the trace cannot be written or read: {0}")]
    Io(#[from] io::Error),
    /// The file ends too early, as it does when its writer was killed. Everything before is good.
    #[error(
        "the trace ends inside {what} that begins at byte {offset}: {found} of {expected} bytes"
    )]
    Truncated {
        /// What is incomplete.
        what: &'static str,
        /// Where it begins, in bytes from the start of the file.
        offset: u64,
        /// Bytes that it should have.
        expected: usize,
        /// Bytes that are there.
        found: usize,
    },
    /// Something is there that cannot be.
    #[error("at byte {offset} of the trace, {what} is {found}, but must be {expected}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
        /// Where the header or record with it begins, in bytes from the start of the file.
        offset: u64,
        /// What was found.
        found: String,
        /// What may be there.
        expected: String,
    },
}

impl TraceError {
    pub(super) fn malformed(
        what: &'static str,
        offset: u64,
        found: impl ToString,
        expected: impl ToString,
    ) -> Self {
        Self::Malformed { what, offset, found: found.to_string(), expected: expected.to_string() }
    }

    /// Whether the only thing wrong is that the file stops too early.
    pub fn is_truncated(&self) -> bool {
        matches!(self, Self::Truncated { .. })
    }
}
