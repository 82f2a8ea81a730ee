//! Approvals: calls that wait for a person, and what was decided. The operator makes an `MCPApproval` of what a sidecar asks.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bounds;

/// One call that a person is asked about. It is never changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(
    feature = "kube",
    derive(kube::CustomResource),
    kube(
        group = "toolweir.dev",
        version = "v1alpha1",
        kind = "MCPApproval",
        doc = "A call of an agent that waits for a person, and what was decided.",
        plural = "mcpapprovals",
        shortname = "mcpa",
        category = "toolweir",
        namespaced,
        status = "ApprovalStatus",
        printcolumn = r#"{"name": "Tool", "type": "string", "jsonPath": ".spec.tool"}"#,
        printcolumn = r#"{"name": "Server", "type": "string", "jsonPath": ".spec.server"}"#,
        printcolumn = r#"{"name": "Agent", "type": "string", "jsonPath": ".spec.agent.pod"}"#,
        printcolumn = r#"{"name": "State", "type": "string", "jsonPath": ".status.state"}"#,
        printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#,
        printcolumn = r#"{"name": "Expires", "type": "string", "jsonPath": ".status.expiresAt", "description": "When the request ends, or an approval can no longer be used"}"#
    )
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "self == oldSelf",
    "message": "what is approved cannot be changed; the agent's next call makes another request",
}]))]
pub struct MCPApprovalSpec {
    /// The server that is called.
    #[schemars(length(min = 1, max = bounds::SERVER_NAME))]
    pub server: String,
    /// The tool that is called; for another operation its method and what it names, such as `resources/read file:///plans.txt`.
    #[schemars(length(min = 1, max = bounds::ASKED_NAME))]
    pub tool: String,
    /// The SHA-256 of the arguments in their canonical form (RFC 8785): 64 lower case hexadecimal digits. Of a call without
    /// `arguments`, that of nothing.
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    pub arguments_sha256: String,
    /// Who calls.
    pub agent: ApprovalAgent,
    /// The policies that ask.
    #[schemars(length(min = 1, max = bounds::ASKING_POLICIES))]
    pub policies: Vec<ApprovalPolicy>,
    /// Why they ask, in their words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = bounds::APPROVAL_MESSAGE))]
    pub message: String,
    /// What policies show of the arguments. Characters that are invisible or change the direction of text are escaped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = bounds::APPROVAL_SHOWN))]
    pub shown: Vec<ShownValue>,
    /// When the call came, in RFC 3339 and UTC.
    #[schemars(length(max = 40))]
    pub requested_at: String,
    /// When the request ends unless it is decided, in RFC 3339 and UTC.
    #[schemars(length(max = 40))]
    pub expires_at: String,
    /// For how many seconds an approval can be used after it was given.
    #[schemars(range(min = 1, max = 86_400), extend("format" = "int64"))]
    pub usable_seconds: u64,
}

/// The pod that calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalAgent {
    /// Its name.
    #[schemars(length(max = bounds::OBJECT_NAME))]
    pub pod: String,
    /// Its uid.
    #[schemars(length(max = 128))]
    pub pod_uid: String,
    /// Its service account, which may not decide.
    #[schemars(length(max = bounds::OBJECT_NAME))]
    pub service_account: String,
}

/// A policy that asks, in the state in which it asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalPolicy {
    /// Its namespace; empty for an `MCPClusterPolicy`.
    #[serde(default)]
    #[schemars(length(max = bounds::OBJECT_NAME), extend("default" = ""))]
    pub namespace: String,
    /// Its name.
    #[schemars(length(min = 1, max = bounds::OBJECT_NAME))]
    pub name: String,
    /// Its uid; empty for a local policy.
    #[serde(default)]
    #[schemars(length(max = 128), extend("default" = ""))]
    pub uid: String,
    /// Its generation; 0 for a local policy.
    #[serde(default)]
    #[schemars(range(min = 0, max = bounds::GENERATION), extend("default" = 0))]
    pub generation: i64,
}

impl fmt::Display for ApprovalPolicy {
    /// As the audit log names it: `namespace/name`, or `name` of an `MCPClusterPolicy`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { namespace, name, .. } = self;
        if namespace.is_empty() { f.write_str(name) } else { write!(f, "{namespace}/{name}") }
    }
}

/// A value of a call that its policies show.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ShownValue {
    /// The expression, as the policy has it.
    #[schemars(length(max = bounds::SHOWN_EXPRESSION))]
    pub expression: String,
    /// Its value: a text as it is, else as JSON; characters that are invisible or change the direction of text escaped. Of a value
    /// that cannot be computed, the reason in parentheses.
    #[schemars(length(max = bounds::SHOWN_VALUE))]
    pub value: String,
    /// True where the value goes on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
}

/// What became of a request. People write `decision`, `decidedBy` and `reason`, once; the operator writes the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalStatus {
    /// The decision of a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<ApprovalDecision>,
    /// The user who decided, as the API server knows them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = bounds::USER_NAME))]
    pub decided_by: Option<String>,
    /// Why. The agent is told that of a denial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = bounds::TEXT))]
    pub reason: Option<String>,
    /// The state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<ApprovalState>,
    /// When the request ends, or a given approval can no longer be used, in RFC 3339 and UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub expires_at: Option<String>,
    /// When the state was written last, in RFC 3339 and UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub updated_at: Option<String>,
    /// Why it is in this state, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = bounds::TEXT))]
    pub message: Option<String>,
}

/// The decision of a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ApprovalDecision {
    /// The call may go through once.
    Approve,
    /// It may not.
    Deny,
}

impl ApprovalDecision {
    /// Returns its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Approve => "Approve",
            Self::Deny => "Deny",
        }
    }
}

/// The state of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ApprovalState {
    /// It waits for a person.
    #[default]
    Pending,
    /// It was approved, and the call has not come again yet.
    Approved,
    /// It was denied.
    Denied,
    /// It was approved, and the call went through.
    Used,
    /// Nobody decided in time, or the call did not come again in time.
    Expired,
    /// Something that it was bound to has changed: a policy, or the pod is gone.
    Voided,
}

impl ApprovalState {
    /// Every state.
    pub const ALL: [Self; 6] = [Self::Pending, Self::Approved, Self::Denied, Self::Used, Self::Expired, Self::Voided];

    /// Returns its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Approved => "Approved",
            Self::Denied => "Denied",
            Self::Used => "Used",
            Self::Expired => "Expired",
            Self::Voided => "Voided",
        }
    }

    /// Returns true where it never becomes another.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Denied | Self::Used | Self::Expired | Self::Voided)
    }
}

impl fmt::Display for ApprovalState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a sidecar tells the operator: all requests that it keeps. Sent once the operator has told [`ApprovalNews`] on the stream, and at
/// every change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalReport {
    /// The requests, by name. At most [`bounds::POD_APPROVALS`] that are not ended, and those that ended lately.
    pub approvals: Vec<ReportedApproval>,
}

/// A request that a sidecar keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReportedApproval {
    /// The name of its `MCPApproval`, which the sidecar chose.
    pub name: String,
    /// The state as far as the sidecar knows.
    pub state: ApprovalState,
    /// What is asked. What it says of the agent, the operator replaces by what it knows itself. Absent where the request ended, and where
    /// the line would be too long with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<MCPApprovalSpec>,
    /// Why it ended, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What the operator tells a sidecar: all that it knows of requests of the pod that are not ended, and of those that the sidecar
/// reported last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalNews {
    /// Why nobody can be asked, in words with a remedy; absent where people can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unavailable: Option<String>,
    /// The requests, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<KnownApproval>,
}

/// A request as the operator knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KnownApproval {
    /// The name of its `MCPApproval`.
    pub name: String,
    /// The state. `Approved` and `Denied` are decisions; `Voided` ends a request that the sidecar still keeps: its object was
    /// deleted or could not be made. Of an ended one, it says that the operator knows, so that the sidecar can forget it.
    pub state: ApprovalState,
    /// Who decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<String>,
    /// The person's reason, or why it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Until when an approval can be used, or a denial holds: seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
}
