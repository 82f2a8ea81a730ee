//! Denials: the reason in a form for programs, and in words that a model can act on.

use std::{fmt, sync::Arc, time::Duration};

use serde::{Serialize, Serializer};
use toolweir_crds::{OperationKind, PartSet, Scope, text};

use crate::{
    ask::ApprovalAsk,
    call::Operation,
    result_limit::ResultLimit,
    words::{self, display_name},
};

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
    /// The result is larger than it may be.
    ResultTooLarge,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 21] = [
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
        Self::ResultTooLarge,
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
            Self::ResultTooLarge => "result_too_large",
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
    /// The kind of what was asked for.
    pub kind: OperationKind,
    /// Its name, as it can be shown.
    pub name: String,
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
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<&'a LimitInfo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    approval: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_seconds: Option<u64>,
}

impl Serialize for Denial {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let of = |kind| (self.kind == kind).then_some(self.name.as_str());
        let told = ToldDenial {
            reason: self.told.unwrap_or(self.reason).as_str(),
            policy: self.policy.as_deref(),
            tool: of(OperationKind::Tool),
            prompt: of(OperationKind::Prompt),
            resource: of(OperationKind::Resource),
            request: of(OperationKind::Request),
            method: of(OperationKind::Other),
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
    pub(crate) fn of_policy(
        policy: &Arc<str>,
        entry: Option<&Arc<str>>,
        reason: Reason,
        operation: Operation<'_>,
        what: &str,
    ) -> Self {
        let message = one_line(format!("Denied by policy {policy}: {what}"));
        let (policy, entry) = (Some(Arc::clone(policy)), entry.map(Arc::clone));
        Self { reason, policy, message, entry, ..Self::bare(operation) }
    }

    /// Makes the denial for a server that no policy names.
    pub fn no_policy(server: &str, operation: Operation<'_>) -> Self {
        Self { message: words::no_say(server, OperationKind::Tool), ..Self::bare(operation) }
    }

    /// Makes the denial of a kind in which no policy has a say.
    pub(crate) fn no_say(server: &str, operation: Operation<'_>) -> Self {
        Self { message: words::no_say(server, operation.kind), ..Self::bare(operation) }
    }

    /// Makes the denial of a message about a task that no call of this sidecar made.
    pub fn unknown_task(server: &str, task: &str, method: &str) -> Self {
        let (server, shown) = (display_name(server), display_name(task));
        let message = format!(
            "Denied: the task {shown} of the server {server} is not one of a call that was let through, or is forgotten. Call the tool again."
        );
        Self { reason: Reason::NotListed, message, ..Self::bare(Operation::other(method)) }
    }

    /// Makes the denial of an operation with a result of so many bytes, or of more than so many where the rest was not read.
    pub fn result_too_large(limit: &ResultLimit, operation: Operation<'_>, bytes: u64, is_whole: bool) -> Self {
        let more = if is_whole { "" } else { "more than " };
        let what = format!(
            "the result of {} has {more}{bytes} bytes, and at most {} may pass. Ask for less at once.",
            display_name(operation.name),
            limit.max
        );
        Self::of_policy(&limit.policy, Some(&limit.entry), Reason::ResultTooLarge, operation, &what)
    }

    fn bare(operation: Operation<'_>) -> Self {
        Self {
            reason: Reason::NoPolicy,
            policy: None,
            kind: operation.kind,
            name: display_name(operation.name).into_owned(),
            limit: None,
            retry_after: None,
            message: String::new(),
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
