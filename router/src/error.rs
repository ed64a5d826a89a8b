//! What can go wrong outside the hot path.

use std::fmt;

/// What was being done, and why it could not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterError {
    doing: String,
    cause: String,
}

impl RouterError {
    pub(crate) fn new(doing: impl Into<String>, cause: impl Into<String>) -> Self {
        Self {
            doing: doing.into(),
            cause: cause.into(),
        }
    }
}

impl fmt::Display for RouterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.doing, self.cause)
    }
}

impl std::error::Error for RouterError {}
