//! A policy as it is given to the compiler, and what the compiler finds wrong with one.

use std::fmt;

use toolweir_crds::{Document, FieldError, MCPPolicySpec, Server};

/// A policy's name. Sorts policies in a namespace before those of the cluster, each by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyId {
    /// True for an `MCPClusterPolicy`.
    pub cluster: bool,
    /// Its namespace; empty for an `MCPClusterPolicy`.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for PolicyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.cluster { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// A policy that governs the pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Its name.
    pub id: PolicyId,
    /// The time of its creation, in RFC 3339 and UTC as Kubernetes writes it.
    pub created: Option<String>,
    /// Its uid and generation in a cluster, if it is known there.
    pub version: Option<(String, i64)>,
    /// Its rules.
    pub spec: MCPPolicySpec,
    /// The reason why it cannot be read, if so: regardless of `spec`, the policy denies everything on its servers.
    pub unreadable: Option<FieldError>,
}

impl Policy {
    /// Makes a policy that cannot be read, so that its servers are not known: it denies everything on every server.
    pub fn unreadable(id: PolicyId, error: FieldError) -> Self {
        let every = Server { name: "*".to_owned(), ..Server::default() };
        let spec = MCPPolicySpec { servers: vec![every], ..MCPPolicySpec::default() };
        Self { id, created: None, version: None, spec, unreadable: Some(error) }
    }
}

impl From<Document> for Policy {
    fn from(document: Document) -> Self {
        let (cluster, metadata, spec) = match document {
            Document::MCPPolicy { metadata, spec } => (false, metadata, spec),
            Document::MCPClusterPolicy { metadata, spec } => (true, metadata, spec.into()),
        };
        let id = PolicyId { cluster, namespace: metadata.namespace.unwrap_or_default(), name: metadata.name };
        let version = metadata.uid.zip(metadata.generation);
        Self { id, created: metadata.creation_timestamp, version, spec, unreadable: None }
    }
}

/// The severity of a [`Problem`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The policy does not compile and denies everything on its servers.
    Invalid,
    /// What another policy says holds, of the server's URL or its TLS; the rules apply all the same.
    Conflict,
    /// Policies disagree on a server's credential, which closes the server.
    Closed,
    /// No policy gives the server a URL, so that it cannot be reached.
    NoUrl,
    /// The policy compiles, and likely means something else than intended.
    Doubt,
}

/// A problem with a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The policy, by its index among those given.
    pub policy: usize,
    /// The severity.
    pub severity: Severity,
    /// The field, and what to write instead.
    pub error: FieldError,
}
