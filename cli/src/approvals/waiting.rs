//! How many calls of a policy wait for a person.

use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use super::{
    request::ListedApproval,
    request_text::{policy_name, span},
};

/// The calls that wait for a person, of one policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WaitingApprovals {
    /// Their number.
    pub waiting: usize,
    /// For how many seconds the first has waited.
    pub oldest_seconds: u64,
}

impl WaitingApprovals {
    /// Counts those that a policy asks for.
    pub fn of(policy: &str, approvals: &[ListedApproval], now: Timestamp) -> Self {
        let asked = |approval: &&ListedApproval| approval.spec.policies.iter().any(|asking| policy_name(asking) == policy);
        let ages = approvals.iter().filter(asked).map(|approval| approval.created_at.map_or(0, |made| span(made, now).as_secs()));
        ages.fold(Self::default(), |Self { waiting, oldest_seconds }, age| Self {
            waiting: waiting + 1,
            oldest_seconds: oldest_seconds.max(age),
        })
    }
}
