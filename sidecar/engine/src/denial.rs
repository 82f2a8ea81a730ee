//! Denials: the reason in a form for programs, and in words that a model can act on.

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use serde::{Serialize, Serializer};
use toolweir_crds::{PartSet, Scope, text};

use crate::ask::ApprovalAsk;

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
    /// The tool is not as it was when it was pinned.
    PinDrift,
    /// The tool is not pinned.
    NotPinned,
    /// It is not known whether the tool is as it was when it was pinned.
    PinUnverified,
    /// A validation does not hold, or a validation, key or cost could not be computed.
    Validation,
    /// The validations, keys and costs take more work than one call is given.
    ExpressionBudget,
    /// The call waits for a person's approval.
    ApprovalPending,
    /// A person has denied the call.
    ApprovalDenied,
    /// Nobody decided in time, or the call did not come again in time.
    ApprovalExpired,
    /// More requests for approval wait than may.
    ApprovalFull,
    /// Nobody can be asked.
    ApprovalUnavailable,
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
    pub const ALL: [Self; 20] = [
        Self::None,
        Self::NoPolicy,
        Self::InvalidPolicy,
        Self::Denied,
        Self::NotListed,
        Self::Malformed,
        Self::PinDrift,
        Self::NotPinned,
        Self::PinUnverified,
        Self::Validation,
        Self::ExpressionBudget,
        Self::ApprovalPending,
        Self::ApprovalDenied,
        Self::ApprovalExpired,
        Self::ApprovalFull,
        Self::ApprovalUnavailable,
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
            Self::PinDrift => "pin_drift",
            Self::NotPinned => "not_pinned",
            Self::PinUnverified => "pin_unverified",
            Self::Validation => "validation",
            Self::ExpressionBudget => "expression_budget",
            Self::ApprovalPending => "approval_pending",
            Self::ApprovalDenied => "approval_denied",
            Self::ApprovalExpired => "approval_expired",
            Self::ApprovalFull => "approval_full",
            Self::ApprovalUnavailable => "approval_unavailable",
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// The reason.
    pub reason: Reason,
    /// The policy that denied; absent where none governs.
    pub policy: Option<Arc<str>>,
    /// The tool that was called.
    pub tool: String,
    /// The limit, for `rate_limit`.
    pub limit: Option<LimitInfo>,
    /// The time after which it is worth trying again, serialized as whole seconds, rounded up; absent where waiting does not help
    /// or the time is not known.
    pub retry_after: Option<Duration>,
    /// The text for the model.
    pub message: String,
    /// The entry of the policy that decided, for the audit log.
    pub entry: Option<Arc<str>>,
    /// The parts of the tool's definition that changed, for `pin_drift`.
    pub changed: PartSet,
    /// The reason that the caller is told, where that is another.
    pub told: Option<Reason>,
    /// What must be asked of a person first, for `approval_pending`.
    pub ask: Option<Box<ApprovalAsk>>,
    /// The name of the request for approval, where there is one.
    pub approval: Option<Arc<str>>,
}

/// What the caller is told of a denial, for programs.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ToldDenial<'a> {
    reason: Reason,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'a str>,
    tool: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<&'a LimitInfo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    approval: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_seconds: Option<u64>,
}

impl Serialize for Denial {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let told = ToldDenial {
            reason: self.told.unwrap_or(self.reason),
            policy: self.policy.as_deref(),
            tool: &self.tool,
            limit: self.limit.as_ref(),
            approval: self.approval.as_deref(),
            retry_after_seconds: self.retry_after.map(whole_seconds),
        };
        told.serialize(serializer)
    }
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
            changed: PartSet::default(),
            told: None,
            ask: None,
            approval: None,
        }
    }

    /// Returns what is said of a tool that may not be called and is not shown.
    pub(crate) fn not_among(shown_name: &str) -> String {
        format!("{shown_name} is not among the tools that may be called. Use one that tools/list shows.")
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
            changed: PartSet::default(),
            told: None,
            ask: None,
            approval: None,
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
