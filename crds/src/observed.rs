//! The answer of `GET /observed` at the sidecar's administration: the calls that it let through, and their peaks. The sidecar writes it
//! and `suggest` reads it. Fields that are left out have their defaults, so the two can have different versions.

use serde::{Deserialize, Serialize};

/// The answer of `GET /observed`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObservedResponse {
    /// When the sidecar began to observe, in RFC 3339.
    pub since: String,
    /// Whole seconds since then.
    pub seconds: u64,
    /// The tools that were called, ordered by server and name.
    pub tools: Vec<ObservedTool>,
    /// Calls that were let through and are not in `tools`: neither a policy nor a tools/list named their tool, or there was no room for it.
    pub dropped_calls: u64,
}

/// The calls of one tool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObservedTool {
    /// The server's name in the policies.
    pub server: String,
    /// The tool.
    pub tool: String,
    /// Calls that were let through, also those that a policy in audit mode would have denied.
    pub calls: u64,
    /// Calls that were denied.
    pub denied: u64,
    /// The most calls that were let through in any minute, as limits count: no less than in any minute, no more than in one of 61 s.
    pub peak_minute: u64,
    /// The most in any hour.
    pub peak_hour: u64,
    /// The most in any day.
    pub peak_day: u64,
}
