//! The messages of the policy stream between the operator and a sidecar: newline-delimited JSON in both directions of one HTTP/2
//! request. The policies on it are the documents that a user writes; there is no second form.

use serde::{Deserialize, Serialize};

use crate::{
    approval_request::{ApprovalNews, ApprovalReport},
    credential::CredentialKind,
    seen::ToolDrift,
    tool_pins::ToolPins,
};

/// The path of the stream at the operator.
pub const PATH: &str = "/v1/policies";
/// The interval of [`StreamMessage::KeepAlive`], in seconds. A sidecar that receives nothing for three times as long reconnects.
pub const KEEP_ALIVE_SECONDS: u64 = 10;
/// The longest line that a sidecar reads, in bytes: some thousand usual policies, or five of the largest that etcd holds. A
/// sidecar's container is limited to 64 MiB of memory unless told otherwise, and holds a line more than once while it takes it
/// in.
pub const LONGEST_LINE: usize = 8 * 1024 * 1024;
/// The longest line that the operator reads of a sidecar, in bytes.
pub const LONGEST_ACK: usize = 256 * 1024;

/// A line from the operator. `P` is a policy: a [`crate::Document`] where it is written, and not yet parsed where it is read, so
/// that one policy that cannot be read does not hide the others. `T` are pins: [`ToolPins`], or what is written as they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StreamMessage<P, T = ToolPins> {
    /// All policies that govern the pod. A policy that is not in it no longer holds.
    Snapshot(Snapshot<P, T>),
    /// The authorities of the operator from now on.
    Trust(TrustBundle),
    /// The shared store from now on; none where there is no store. It comes before the first snapshot of a stream.
    SharedStore(Option<SharedStore>),
    /// What is known of the pod's requests for approval. A sidecar that was never told asks nobody, and denies what needs approval.
    Approvals(ApprovalNews),
    /// No change; shows that the stream is alive.
    KeepAlive,
}

/// All policies that govern a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot<P, T = ToolPins> {
    /// The version of this content; the acknowledgement repeats it.
    pub version: String,
    /// The policies, in any order.
    pub policies: Vec<P>,
    /// The pins that these policies name, as far as they are there, in any order. They lack their texts where the line would be longer
    /// than [`LONGEST_LINE`] with them.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub pins: Vec<T>,
}

/// The certificates that the operator's are signed with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrustBundle {
    /// Certificates of authorities in PEM, one or more.
    pub certificates: String,
}

/// The shared store of counts, and how to use it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SharedStore {
    /// `redis://HOST[:PORT]`, `rediss://` for TLS; several hosts separated by commas; the scheme with `+sentinel` (and the
    /// master's name as path) or `+cluster`.
    pub url: String,
    /// The ACL user; the default user where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// The password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// Certificates in PEM to trust besides the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// The prefix of the keys in the store.
    pub prefix: String,
    /// True if sidecars lease calls ahead of use where a limit is large compared with the traffic.
    pub leases: bool,
    /// The time that a call may wait for the store, in milliseconds.
    pub budget_milliseconds: u64,
}

impl std::fmt::Debug for SharedStore {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { url, username, password, ca, prefix, leases, budget_milliseconds } = self;
        f.debug_struct("SharedStore")
            .field("url", url)
            .field("username", username)
            .field("password", &password.as_ref().map(|_| "(not shown)"))
            .field("ca", ca)
            .field("prefix", prefix)
            .field("leases", leases)
            .field("budget_milliseconds", budget_milliseconds)
            .finish()
    }
}

/// The default of [`SharedStore::prefix`].
pub const STORE_PREFIX: &str = "toolweir";
/// The default of [`SharedStore::budget_milliseconds`].
pub const STORE_BUDGET_MILLISECONDS: u64 = 50;

/// A line from a sidecar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Report {
    /// A version is in force.
    Ack(Ack),
    /// Calls or connections were turned away.
    Denials(Denials),
    /// Whether the credentials of servers can be used; sent after the first acknowledgement, and at every change.
    Credentials(CredentialReport),
    /// Whether captured TLS to servers with `tls: Intercept` is opened; sent after the first acknowledgement, and at every change.
    /// Pods without captured connections do not send it.
    Interception(InterceptionReport),
    /// Which tools are not as they were pinned; sent after the first acknowledgement, and at every change.
    Drift(DriftReport),
    /// The requests for approval that the sidecar keeps.
    Approvals(ApprovalReport),
}

/// All tools of servers in force that are not as they were pinned, and those that are not pinned where policies mind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriftReport {
    /// At most [`MOST_DRIFT`], by server, pins and name.
    pub drift: Vec<ToolDrift>,
}

/// The most tools that a [`DriftReport`] names.
pub const MOST_DRIFT: usize = 128;

/// The credentials of all servers that have one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialReport {
    /// A state for each server with a credential.
    pub credentials: Vec<CredentialState>,
}

/// Whether the credential of a server can be used. Nothing in it is secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialState {
    /// The server.
    pub server: String,
    /// The credential's kind.
    pub kind: CredentialKind,
    /// Why calls fail for it, in words that name the key or the audience and the remedy; absent where it works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// The interception of all servers in force with `tls: Intercept`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterceptionReport {
    /// A state for each such server.
    pub interception: Vec<InterceptionState>,
}

/// Whether captured TLS to a server is opened. Nothing in it is secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InterceptionState {
    /// The server.
    pub server: String,
    /// Why it is refused instead, in words that name the remedy; absent where it is opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// True if the remedy is a new pod.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub needs_new_pod: bool,
}

/// Calls, other operations and connections that were denied since the last such line. Nothing in it comes from an argument, a session or a header: the sidecar's
/// metrics say the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denials {
    /// Each kind of denial.
    pub denials: Vec<Denied>,
}

/// Calls, other operations, or connections to somewhere else than a declared server, that were turned away for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denied {
    /// The policy as the audit log names it; empty where none denied.
    pub policy: String,
    /// The reason, as the metric has it: `rate_limit`, `not_listed`, ...
    pub reason: String,
    /// The server; empty for connections.
    pub server: String,
    /// The MCP method of another operation than a tool call, or `_other`; empty for tool calls and connections.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub operation: String,
    /// The tool, or the name in another operation, or `_other`; empty for connections.
    pub tool: String,
    /// For connections: the policy's domain name that the destination has, `_address` or `_other`. Absent for all else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// How many were denied.
    pub count: u64,
}

/// This version is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ack {
    /// The version of the snapshot.
    pub version: String,
    /// Policies that do not compile there and deny everything on their servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<PolicyProblem>,
}

/// A policy that a sidecar cannot enforce as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyProblem {
    /// The policy as the audit log names it: `namespace/name`, or `name` of an `MCPClusterPolicy`.
    pub policy: String,
    /// The field and what is wrong with it.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::approval_request::{
        ApprovalAgent, ApprovalPolicy, ApprovalState, KnownApproval, MCPApprovalSpec, ReportedApproval, ShownValue,
    };

    type Line = StreamMessage<serde_json::Value>;

    #[test]
    fn news_of_approvals_is_written_as_sidecars_of_other_versions_read_it() {
        let known = KnownApproval {
            name: "pay-x7k2".to_owned(),
            state: ApprovalState::Approved,
            decided_by: Some("jane@example.com".to_owned()),
            reason: None,
            until: Some(1_900_000_000),
        };
        let voided = KnownApproval { name: "pay-b3c4".to_owned(), state: ApprovalState::Voided, ..KnownApproval::default() };
        for (news, written) in [
            (ApprovalNews::default(), json!({"approvals": {}})),
            (
                ApprovalNews { unavailable: Some("set approvals.enabled".to_owned()), approvals: Vec::new() },
                json!({"approvals": {"unavailable": "set approvals.enabled"}}),
            ),
            (
                ApprovalNews { unavailable: None, approvals: vec![known, voided] },
                json!({"approvals": {"approvals": [
                    {"name": "pay-x7k2", "state": "Approved", "decidedBy": "jane@example.com", "until": 1_900_000_000},
                    {"name": "pay-b3c4", "state": "Voided"},
                ]}}),
            ),
        ] {
            let line = Line::Approvals(news);
            assert_eq!(serde_json::to_value(&line).unwrap(), written);
            assert_eq!(serde_json::from_value::<Line>(written).unwrap(), line);
        }
        // A later operator may say more.
        let later = json!({"approvals": {"later": 1, "approvals": [{"name": "a", "state": "Denied", "later": 1}]}});
        let Line::Approvals(news) = serde_json::from_value(later).unwrap() else { panic!("not news of approvals") };
        assert_eq!(news.approvals[0].state, ApprovalState::Denied);
    }

    #[test]
    fn a_report_of_approvals_is_written_as_operators_of_other_versions_read_it() {
        let request = MCPApprovalSpec {
            server: "bank".to_owned(),
            tool: "pay".to_owned(),
            arguments_sha256: "ab".repeat(32),
            agent: ApprovalAgent { pod: "agent-1".to_owned(), pod_uid: "u".to_owned(), service_account: "agent".to_owned() },
            policies: vec![ApprovalPolicy {
                namespace: "agents".to_owned(),
                name: "p".to_owned(),
                uid: "v".to_owned(),
                generation: 3,
            }],
            message: String::new(),
            shown: vec![ShownValue { expression: "args.n".to_owned(), value: "5".to_owned(), cut: false }],
            requested_at: "2026-01-01T00:00:00Z".to_owned(),
            expires_at: "2026-01-01T00:10:00Z".to_owned(),
            usable_seconds: 600,
        };
        let asked = ReportedApproval { name: "pay-x7k2".to_owned(), request: Some(request), ..ReportedApproval::default() };
        let used = ReportedApproval { name: "pay-b3c4".to_owned(), state: ApprovalState::Used, ..ReportedApproval::default() };
        let report = Report::Approvals(ApprovalReport { approvals: vec![asked, used] });
        let written = json!({"approvals": [
            {"name": "pay-x7k2", "state": "Pending", "request": {
                "server": "bank", "tool": "pay", "argumentsSha256": "ab".repeat(32),
                "agent": {"pod": "agent-1", "podUid": "u", "serviceAccount": "agent"},
                "policies": [{"namespace": "agents", "name": "p", "uid": "v", "generation": 3}],
                "shown": [{"expression": "args.n", "value": "5"}],
                "requestedAt": "2026-01-01T00:00:00Z", "expiresAt": "2026-01-01T00:10:00Z", "usableSeconds": 600,
            }},
            {"name": "pay-b3c4", "state": "Used"},
        ]});
        assert_eq!(serde_json::to_value(&report).unwrap(), written);
        assert_eq!(serde_json::from_value::<Report>(written).unwrap(), report);
    }

    #[test]
    fn reports_are_told_apart_also_where_they_are_empty() {
        let reports = [
            Report::Ack(Ack { version: "v".to_owned(), problems: Vec::new() }),
            Report::Denials(Denials { denials: Vec::new() }),
            Report::Credentials(CredentialReport::default()),
            Report::Interception(InterceptionReport::default()),
            Report::Drift(DriftReport::default()),
            Report::Approvals(ApprovalReport::default()),
        ];
        for report in reports {
            let line = serde_json::to_string(&report).unwrap();
            assert_eq!(serde_json::from_str::<Report>(&line).unwrap(), report, "{line}");
        }
    }
}
