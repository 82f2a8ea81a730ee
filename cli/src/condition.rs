//! Conditions of policies.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde::Serialize;

/// A condition of a policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConditionRow {
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// The reason.
    pub reason: String,
    /// The message.
    pub message: String,
}

impl ConditionRow {
    /// Finds a condition of a policy of this generation. It is `Unknown` if it is missing or of an earlier generation.
    pub fn of(conditions: &[Condition], name: &str, generation: Option<i64>) -> Self {
        let unknown = |reason: &str, message: &str| Self {
            status: "Unknown".to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
        };
        let Some(condition) = conditions.iter().find(|condition| condition.type_ == name) else {
            return unknown("NoStatus", "The operator has not written a status; check that it runs.");
        };
        if condition.observed_generation.is_some() && condition.observed_generation != generation {
            return unknown("OldStatus", "The operator has not processed the latest change of the policy.");
        }
        Self { status: condition.status.clone(), reason: condition.reason.clone(), message: condition.message.clone() }
    }

    /// Returns the cell of a table: the status, and the reason if it is not `True`.
    pub fn cell(&self) -> String {
        if self.status == "True" { self.status.clone() } else { format!("{} ({})", self.status, self.reason) }
    }
}
