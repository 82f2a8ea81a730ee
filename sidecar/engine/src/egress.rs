//! Connections to somewhere else than a declared server, and what is decided on them.

use std::{fmt, net::IpAddr, sync::Arc};

use serde::{Serialize, Serializer};

pub use crate::address::{AddressRanges, reached};

/// Where a connection goes, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination<'a> {
    /// The name of the host, in lower case and without a final dot; none where the connection names none, or an address.
    pub name: Option<&'a str>,
    /// True if the name is one of the cluster's DNS.
    pub in_cluster: bool,
    /// The address; none where it is not known yet. The name and the port alone are judged then.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
}

/// Why a connection passes or does not: the closed set of values of the label `reason`, for connections. Those that policies find
/// come first, in the order of severity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EgressReason {
    /// It was not denied.
    None,
    /// No policy of the pod has `egress`.
    NoPolicy,
    /// A policy with `egress` does not compile, or a policy cannot be read.
    InvalidPolicy,
    /// No rule allows the name, or the address, at this port.
    NotAllowed,
    /// The name is allowed, and not for this address.
    Address,
    /// Host, TLS server name and destination do not agree.
    OtherName,
    /// It asks for another path of a declared server's host.
    OtherPath,
    /// It speaks MCP to a server that no policy declares.
    UndeclaredServer,
    /// It is TLS to a declared server whose TLS is not opened.
    ServerTls,
    /// It is TLS to a declared server whose TLS is opened, in a pod that was created without an authority for its host.
    NewPodNeeded,
    /// The client did not finish the TLS handshake with the sidecar.
    TlsHandshake,
    /// The TLS server name is hidden (encrypted client hello).
    HiddenName,
    /// The capture port was called itself.
    Direct,
    /// The first bytes can be read in two ways.
    Malformed,
    /// There was no room for it.
    Overloaded,
    /// The destination cannot be connected to.
    Unreachable,
    /// The name cannot be resolved.
    NotResolved,
    /// Nothing that names the destination came in time.
    Timeout,
}

impl EgressReason {
    /// Every reason.
    pub const ALL: [Self; 18] = [
        Self::None,
        Self::NoPolicy,
        Self::InvalidPolicy,
        Self::NotAllowed,
        Self::Address,
        Self::OtherName,
        Self::OtherPath,
        Self::UndeclaredServer,
        Self::ServerTls,
        Self::NewPodNeeded,
        Self::TlsHandshake,
        Self::HiddenName,
        Self::Direct,
        Self::Malformed,
        Self::Overloaded,
        Self::Unreachable,
        Self::NotResolved,
        Self::Timeout,
    ];

    /// Returns the name in metrics and the audit log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::NoPolicy => "no_policy",
            Self::InvalidPolicy => "invalid_policy",
            Self::NotAllowed => "not_allowed",
            Self::Address => "address",
            Self::OtherName => "other_name",
            Self::OtherPath => "other_path",
            Self::UndeclaredServer => "undeclared_server",
            Self::ServerTls => "server_tls",
            Self::NewPodNeeded => "new_pod_needed",
            Self::TlsHandshake => "tls_handshake",
            Self::HiddenName => "hidden_name",
            Self::Direct => "direct",
            Self::Malformed => "malformed",
            Self::Overloaded => "overloaded",
            Self::Unreachable => "unreachable",
            Self::NotResolved => "not_resolved",
            Self::Timeout => "timeout",
        }
    }
}

impl fmt::Display for EgressReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for EgressReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EgressEffect {
    /// It passes.
    Allowed,
    /// It does not pass.
    Denied,
    /// It passes, and a policy in audit mode objects.
    WouldDeny,
}

impl EgressEffect {
    /// Returns the name in metrics and the audit log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::WouldDeny => "would_deny",
        }
    }

    /// Returns whether the connection passes.
    pub fn passes(self) -> bool {
        self != Self::Denied
    }
}

/// The decision on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressDecision {
    /// What becomes of it.
    pub effect: EgressEffect,
    /// Why.
    pub reason: EgressReason,
    /// The policy that decides; of an allowed connection the first that has a say. None where no policy has one, and for the pod's own
    /// addresses.
    pub policy: Option<Arc<str>>,
    /// The most specific domain name of any policy that the destination has, at whatever port: a label that no client can invent.
    pub name: Option<Arc<str>>,
}
