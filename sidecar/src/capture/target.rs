//! Where a captured connection leads, as far as its client has said so.

use std::net::SocketAddr;

use toolweir_engine::egress::reached;

use super::names::{Host, HostAndPort};

/// Where a captured connection leads, as far as its client has said so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionTarget {
    /// The original address, or what the client asked for by CONNECT.
    pub at: HostAndPort,
    /// True if the client asked for it by CONNECT.
    pub by_connect: bool,
}

impl From<SocketAddr> for ConnectionTarget {
    fn from(original: SocketAddr) -> Self {
        Self { at: HostAndPort { host: Host::Address(reached(original.ip())), port: original.port() }, by_connect: false }
    }
}
