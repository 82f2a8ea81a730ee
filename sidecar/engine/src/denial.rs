//! Denials: the reason in a form for programs, and in words that a model can act on.

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use serde::{Serialize, Serializer};
use toolweir_crds::{Scope, text};

/// The reason for a decision: the closed set of values of the metrics' label `reason`, in the order of severity. Of several
/// denials, the most severe is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The call was not denied.
    None,
    /// No policy names the server.
    NoPolicy,
    /// A policy that does not compile denies everything on its servers.
    InvalidPolicy,
    /// An entry denies the tool.
    Denied,
    /// No entry allows the tool.
    NotListed,
    /// Two readers could understand the call differently, or the tool's name is too long.
    Malformed,
    /// A validation does not hold, or a validation, key or cost could not be computed.
    Validation,
    /// The validations, keys and costs take more work than one call is given.
    ExpressionBudget,
    /// A limit is used up.
    RateLimit,
    /// Too many calls are in flight.
    Concurrency,
    /// More counts are live than are kept.
    CountersExhausted,
    /// The shared store of counts does not answer.
    StoreUnavailable,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 12] = [
        Self::None,
        Self::NoPolicy,
        Self::InvalidPolicy,
        Self::Denied,
        Self::NotListed,
        Self::Malformed,
        Self::Validation,
        Self::ExpressionBudget,
        Self::RateLimit,
        Self::Concurrency,
        Self::CountersExhausted,
        Self::StoreUnavailable,
    ];

    /// Returns the name in metrics, the audit log and denials.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::NoPolicy => "no_policy",
            Self::InvalidPolicy => "invalid_policy",
            Self::Denied => "denied",
            Self::NotListed => "not_listed",
            Self::Malformed => "malformed",
            Self::Validation => "validation",
            Self::ExpressionBudget => "expression_budget",
            Self::RateLimit => "rate_limit",
            Self::Concurrency => "concurrency",
            Self::CountersExhausted => "counters_exhausted",
            Self::StoreUnavailable => "store_unavailable",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// The limit that a call ran into.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LimitInfo {
    /// Its maximum.
    pub max: i64,
    /// Its window, as the policy writes it.
    pub window: Arc<str>,
    /// The scope whose calls it counts together.
    pub scope: Scope,
}

/// A denial. Serialized, it is `_meta["toolweir.dev/denial"]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Denial {
    /// The reason.
    pub reason: Reason,
    /// The policy that denied; absent where none governs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Arc<str>>,
    /// The tool that was called.
    pub tool: String,
    /// The limit, for `rate_limit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<LimitInfo>,
    /// The time after which it is worth trying again, serialized as whole seconds, rounded up; absent where waiting does not help
    /// or the time is not known.
    #[serde(rename = "retryAfterSeconds", skip_serializing_if = "Option::is_none", serialize_with = "seconds")]
    pub retry_after: Option<Duration>,
    /// The text for the model.
    #[serde(skip)]
    pub message: String,
    /// The entry of the policy that decided, for the audit log.
    #[serde(skip)]
    pub entry: Option<Arc<str>>,
}

#[expect(clippy::ref_option, reason = "serde's signature")]
fn seconds<S: Serializer>(wait: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    wait.map(whole_seconds).serialize(serializer)
}

/// Returns whole seconds, rounded up, so that waiting that many is long enough.
pub(crate) fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

impl Denial {
    /// Makes the denial of a policy. The message says `Denied by policy NAME: WHAT`.
    pub(crate) fn of_policy(policy: &Arc<str>, entry: Option<&Arc<str>>, reason: Reason, tool: &str, what: &str) -> Self {
        Self {
            reason,
            policy: Some(Arc::clone(policy)),
            tool: display_name(tool).into_owned(),
            limit: None,
            retry_after: None,
            message: one_line(format!("Denied by policy {policy}: {what}")),
            entry: entry.map(Arc::clone),
        }
    }

    /// Makes the denial for a server that no policy names.
    pub fn no_policy(server: &str, tool: &str) -> Self {
        Self {
            reason: Reason::NoPolicy,
            policy: None,
            tool: display_name(tool).into_owned(),
            limit: None,
            retry_after: None,
            message: format!("Denied: no policy in force names the server {}.", display_name(server)),
            entry: None,
        }
    }
}

/// Returns a text as one line; a policy may write several.
fn one_line(message: String) -> String {
    if !message.contains(char::is_control) {
        return message;
    }
    text::one_line(message.trim_end(), usize::MAX)
}

/// Returns a name that a caller chose in a form for messages: short and without control characters.
pub(crate) fn display_name(name: &str) -> Cow<'_, str> {
    const LONGEST: usize = 128;
    if name.len() <= LONGEST && !name.contains(char::is_control) {
        return Cow::Borrowed(name);
    }
    Cow::Owned(text::one_line(name, LONGEST))
}
