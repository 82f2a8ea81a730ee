//! Bounds on results.

use std::sync::Arc;

/// The smallest bound on the result of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResultLimit {
    /// The most bytes.
    pub max: u64,
    /// The policy that says so.
    pub policy: Arc<str>,
    /// The entry of that policy.
    pub entry: Arc<str>,
}
