//! The policies of `kubectl toolweir status`.

use std::{fmt::Write, time::Duration};

use kube::{Resource, ResourceExt, core::Object};
use serde::{Deserialize, Serialize};
use toolweir_crds::{LabelSelector, resource::PolicyStatus};

use crate::{
    approvals::waiting::WaitingApprovals,
    condition::ConditionRow,
    servers::{CredentialRow, INTERCEPT, PinnedServerRow, PolicyServer},
    table::{short, shown},
};

/// A policy and its status.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRow {
    /// `MCPPolicy` or `MCPClusterPolicy`.
    pub kind: &'static str,
    /// Its namespace; absent for an `MCPClusterPolicy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// `Enforce` or `Audit`.
    pub mode: String,
    /// The condition `Accepted`.
    pub accepted: ConditionRow,
    /// The condition `Programmed`.
    pub programmed: ConditionRow,
    /// The number of pods that it governs.
    pub selected: i32,
    /// The number of these pods that enforce it.
    pub acknowledged: i32,
    /// The servers to which it gives a credential.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub credentials: Vec<CredentialRow>,
    /// The condition `CredentialsReady`; absent if it gives none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_ready: Option<ConditionRow>,
    /// The servers whose captured TLS it has opened.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub intercepted: Vec<String>,
    /// The condition `InterceptionReady`; absent if it has none opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interception_ready: Option<ConditionRow>,
    /// The servers that it holds to pins.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pinned: Vec<PinnedServerRow>,
    /// The condition `PinsMatched`; absent if it names none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pins_matched: Option<ConditionRow>,
    /// True if it has calls that a person must approve.
    #[serde(skip)]
    pub asks: bool,
    /// The calls that wait for a person since it asks; absent if it never does, or that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approvals: Option<WaitingApprovals>,
}

/// The fields of a policy that this command needs. Unknown fields of newer versions are ignored.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicySelectors {
    /// `namespaceSelector`.
    pub namespace_selector: LabelSelector,
    /// `podSelector`.
    pub pod_selector: LabelSelector,
    /// `mode`; empty where it is left out.
    pub mode: String,
    /// `servers`.
    pub servers: Vec<PolicyServer>,
}

/// A policy, as far as a status needs it.
pub type AnyPolicy = Object<PolicySelectors, PolicyStatus>;

/// Returns a policy's name as in the audit log.
pub fn full_name(policy: &AnyPolicy) -> String {
    match policy.namespace() {
        Some(namespace) => format!("{namespace}/{}", policy.name_any()),
        None => policy.name_any(),
    }
}

impl PolicyRow {
    /// Returns the row of a policy.
    pub fn of(kind: &'static str, policy: &AnyPolicy) -> Self {
        let status = policy.status.clone().unwrap_or_default();
        let generation = policy.meta().generation;
        let condition = |name: &str| ConditionRow::of(&status.conditions, name, generation);
        let credentials = CredentialRow::all(&policy.spec.servers);
        let intercepted = PolicyServer::intercepted(&policy.spec.servers);
        let pinned = PinnedServerRow::all(&policy.spec.servers);
        Self {
            kind,
            namespace: policy.namespace(),
            name: policy.name_any(),
            mode: if policy.spec.mode.is_empty() { "Enforce".to_owned() } else { policy.spec.mode.clone() },
            accepted: condition("Accepted"),
            programmed: condition("Programmed"),
            selected: status.selected,
            acknowledged: status.acknowledged,
            credentials_ready: (!credentials.is_empty()).then(|| condition("CredentialsReady")),
            credentials,
            interception_ready: (!intercepted.is_empty()).then(|| condition("InterceptionReady")),
            intercepted,
            pins_matched: (!pinned.is_empty()).then(|| condition("PinsMatched")),
            pinned,
            asks: PolicyServer::any_asks(&policy.spec.servers),
            approvals: None,
        }
    }
}

/// Finds the servers of a policy that a condition speaks of, each with what the policy says of it, and the condition.
pub type ServersOf = for<'a> fn(&'a PolicyRow) -> Option<(Vec<(&'a str, &'a str)>, &'a ConditionRow)>;

impl PolicyRow {
    /// Adds a line on a condition that does not hold.
    pub fn explain(&self, name: &str, condition: &ConditionRow, text: &mut String) {
        if condition.status != "True" {
            let message = shown(&condition.message);
            let _ = writeln!(text, "  {}: {name} is {}: {message}", self.full_name(), condition.status);
        }
    }

    /// Returns the servers with a credential.
    pub fn with_credential(&self) -> Option<(Vec<(&str, &str)>, &ConditionRow)> {
        let servers = self.credentials.iter().map(|row| (row.server.as_str(), row.kind.as_str()));
        Some((servers.collect(), self.credentials_ready.as_ref()?))
    }

    /// Returns the servers whose captured TLS is opened.
    pub fn with_interception(&self) -> Option<(Vec<(&str, &str)>, &ConditionRow)> {
        let servers = self.intercepted.iter().map(|server| (server.as_str(), INTERCEPT));
        Some((servers.collect(), self.interception_ready.as_ref()?))
    }

    /// Returns the servers that are held to pins.
    pub fn with_pins(&self) -> Option<(Vec<(&str, &str)>, &ConditionRow)> {
        let servers = self.pinned.iter().map(|row| (row.server.as_str(), row.pins.as_str()));
        Some((servers.collect(), self.pins_matched.as_ref()?))
    }

    /// Returns the cells of a row on the calls that wait for a person.
    pub fn approval_cells(&self) -> Option<Vec<String>> {
        let WaitingApprovals { waiting, oldest_seconds } = self.approvals?;
        let oldest = if waiting == 0 { "-".to_owned() } else { short(Duration::from_secs(oldest_seconds)) };
        Some(vec![self.full_name(), waiting.to_string(), oldest])
    }

    /// Returns its name as in the audit log.
    pub fn full_name(&self) -> String {
        self.namespace.as_ref().map_or_else(|| self.name.clone(), |namespace| format!("{namespace}/{}", self.name))
    }

    /// Returns the cells of its row.
    pub fn cells(&self) -> Vec<String> {
        let sidecars = format!("{}/{}", self.acknowledged, self.selected);
        vec![
            self.kind.to_owned(),
            self.full_name(),
            shown(&self.mode).into_owned(),
            self.accepted.cell(),
            self.programmed.cell(),
            sidecars,
        ]
    }
}
