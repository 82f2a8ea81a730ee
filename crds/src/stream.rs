//! What travels on the policy stream between the operator and a sidecar: newline-delimited JSON in both directions of one
//! HTTP/2 request. The policies on it are the documents that a user writes; there is no second form.

use serde::{Deserialize, Serialize};

/// Where the operator serves the stream.
pub const PATH: &str = "/v1/policies";
/// The audience of the tokens that open it.
pub const AUDIENCE: &str = "toolweir";
/// How often the operator says something, in seconds; a sidecar that hears nothing for three times as long gives up.
pub const KEEP_ALIVE_SECONDS: u64 = 10;
/// The longest line that a sidecar reads, in bytes: some thousand usual policies, or five of the largest that etcd holds. A
/// sidecar's container is limited to 64 MiB of memory unless told otherwise, and holds a line more than once while it takes it in.
pub const LONGEST_LINE: usize = 8 * 1024 * 1024;
/// The longest line that the operator reads of a sidecar, in bytes.
pub const LONGEST_ACK: usize = 256 * 1024;

/// A line from the operator. `P` is a policy: a [`crate::Document`] where it is written, and not yet looked at where it is
/// read, since one policy that cannot be read must not hide the others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Message<P> {
    /// All policies that govern the pod. What is not in it no longer holds.
    Snapshot(Snapshot<P>),
    /// Whom to trust as the operator from now on.
    Trust(Trust),
    /// Where counts are shared from now on; nothing: nowhere. It comes before the first snapshot of a stream.
    SharedStore(Option<SharedStore>),
    /// Nothing new.
    KeepAlive,
}

/// All policies that govern a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot<P> {
    /// Names this content; the acknowledgement says it back.
    pub version: String,
    /// The policies, in any order.
    pub policies: Vec<P>,
}

/// The certificates that the operator's are signed with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trust {
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
    /// What the keys in the store begin with.
    pub prefix: String,
    /// Whether places are taken ahead of use where a limit is large against the traffic.
    pub leases: bool,
    /// How long a call may wait for the store, in milliseconds.
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

/// What keys in the store begin with, unless said otherwise.
pub const STORE_PREFIX: &str = "toolweir";
/// How long a call may wait for the store, in milliseconds, unless said otherwise.
pub const STORE_BUDGET_MILLISECONDS: u64 = 50;

/// A line from a sidecar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Report {
    /// A version is in force.
    Ack(Ack),
    /// Calls were turned away.
    Denials(Denials),
}

/// Calls that were turned away since the last such line. Nothing in it comes from an argument, a session or a header: it is what
/// the sidecar's metrics say too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denials {
    /// Each kind of denial.
    pub denials: Vec<Denied>,
}

/// Calls that were turned away for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denied {
    /// The policy as the audit log names it.
    pub policy: String,
    /// The reason, as the metric has it: `rate_limit`, `not_listed`, ...
    pub reason: String,
    /// The server.
    pub server: String,
    /// The tool, or `_other`.
    pub tool: String,
    /// How many calls.
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
    pub problems: Vec<Refused>,
}

/// A policy that a sidecar cannot enforce as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refused {
    /// The policy as the audit log names it: `namespace/name`, or `name` of an `MCPClusterPolicy`.
    pub policy: String,
    /// The field and what is wrong with it.
    pub message: String,
}
