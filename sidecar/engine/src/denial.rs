//! Why a call is denied, in words that a model can act on and in a form that a program can.

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use serde::{Serialize, Serializer};
use toolweir_crds::Scope;

/// Why a call was decided as it was: the closed set of the metrics' label `reason`. In the order of severity: of
/// several denials the first is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// It was not denied.
    None,
    /// No policy names the server.
    NoPolicy,
    /// A policy that does not compile denies everything on its servers.
    InvalidPolicy,
    /// An entry denies the tool.
    Denied,
    /// No entry allows the tool.
    NotListed,
    /// What the call means could differ between two readers, or its tool has a name that is too long.
    Malformed,
    /// A condition does not hold, or it, a key or a cost could not be computed.
    Validation,
    /// The conditions, keys and costs take more work on it than one call is given.
    ExpressionBudget,
    /// A limit is used up.
    RateLimit,
    /// Too many calls are under way.
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

    /// As metrics, the audit log and denials name it.
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
    /// What it counts together.
    pub scope: Scope,
}

/// A denial: what `_meta["toolweir.dev/denial"]` holds, and the text for the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Denial {
    /// Why.
    pub reason: Reason,
    /// The policy that denied; absent where none governs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Arc<str>>,
    /// The tool that was called.
    pub tool: String,
    /// The limit, for `rate_limit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<LimitInfo>,
    /// Whole seconds after which it is worth trying again, rounded up; absent where waiting does not help or how long
    /// is not known.
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

/// Whole seconds, rounded up, so that who waits them has waited long enough.
pub(crate) fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

impl Denial {
    /// A denial by a policy. The message says `Denied by policy NAME: WHAT`.
    pub(crate) fn by(policy: &Arc<str>, entry: Option<&Arc<str>>, reason: Reason, tool: &str, what: &str) -> Self {
        Self {
            reason,
            policy: Some(Arc::clone(policy)),
            tool: shown(tool).into_owned(),
            limit: None,
            retry_after: None,
            message: one_line(format!("Denied by policy {policy}: {what}")),
            entry: entry.map(Arc::clone),
        }
    }

    /// The denial of a server that no policy names.
    pub fn no_policy(server: &str, tool: &str) -> Self {
        Self {
            reason: Reason::NoPolicy,
            policy: None,
            tool: shown(tool).into_owned(),
            limit: None,
            retry_after: None,
            message: format!("Denied: no policy in force names the server {}.", shown(server)),
            entry: None,
        }
    }
}

/// One line of what a policy may say in several.
fn one_line(text: String) -> String {
    if !text.contains(char::is_control) {
        return text;
    }
    text.trim_end().replace(char::is_control, " ")
}

/// A name that a caller chose, fit for a message: short and without control characters.
pub(crate) fn shown(name: &str) -> Cow<'_, str> {
    const LONGEST: usize = 128;
    if name.len() <= LONGEST && !name.contains(char::is_control) {
        return Cow::Borrowed(name);
    }
    Cow::Owned(name.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(LONGEST).collect())
}
