//! Capture: connections of the pod's other containers that the kernel redirects to the sidecar, whatever they are configured to call.
//!
//! What stands here decides where such a connection goes; `proxy/captured.rs` takes it there. The rules that redirect are written
//! before, by `toolweir-sidecar capture`.

pub mod client_hello;
pub mod connect;
pub mod connect_method;
pub mod declared;
pub mod explain;
pub mod first_bytes;
pub mod judge;
pub mod mcp_signs;
pub mod metrics;
pub mod names;
pub mod passing;
pub mod place;
pub mod splice;
pub mod target;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::net::TcpStream;
use toolweir_engine::egress::{AddressRanges, EgressReason};
use toolweir_store::dns::DnsResolver;

use self::{
    declared::{DeclaredCache, DeclaredServer, DeclaredServers, intercepted},
    names::{HostAndPort, SearchDomains},
    passing::PassingRoom,
};
use crate::{in_force::InForce, interception::Interception};

/// What captured connections need besides the policies in force.
pub struct Capture {
    /// The addresses that are known of the pod and its surroundings.
    pub ranges: Arc<AddressRanges>,
    /// The pod's search domains.
    pub domains: SearchDomains,
    /// The time that connecting may take, with resolving a name.
    pub connect: Duration,
    /// Room for those that pass.
    pub passing: PassingRoom,
    /// TLS to declared servers that is opened.
    pub interception: Arc<Interception>,
    resolver: OnceLock<DnsResolver>,
    declared: DeclaredCache,
}

impl std::fmt::Debug for Capture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Capture").field("ranges", &self.ranges).field("domains", &self.domains).finish_non_exhaustive()
    }
}

impl Capture {
    /// Capture with these addresses and search domains, `connect` for connecting, and what opens TLS.
    pub fn new(ranges: Arc<AddressRanges>, domains: SearchDomains, connect: Duration, interception: Arc<Interception>) -> Self {
        let passing = PassingRoom::default();
        Self { ranges, domains, connect, passing, interception, resolver: OnceLock::new(), declared: DeclaredCache::default() }
    }

    /// Returns the name for which TLS to declared servers at a host is opened.
    ///
    /// # Errors
    /// It is not: why.
    pub fn opened_name<'a>(&self, servers: &[Arc<DeclaredServer>], at: &'a HostAndPort) -> Result<&'a str, EgressReason> {
        if servers.is_empty() {
            return Err(EgressReason::UndeclaredServer);
        }
        let Some(name) = at.host.name().filter(|_| intercepted(servers).next().is_some()) else {
            return Err(EgressReason::ServerTls);
        };
        if self.interception.covers(name) { Ok(name) } else { Err(EgressReason::NewPodNeeded) }
    }

    /// The declared servers of policies.
    pub fn declared(&self, in_force: &Arc<InForce>) -> Arc<DeclaredServers> {
        self.declared.of(in_force, &self.domains)
    }

    fn resolver(&self) -> Result<&DnsResolver, String> {
        if let Some(made) = self.resolver.get() {
            return Ok(made);
        }
        let new = toolweir_store::dns::caching_resolver()?;
        Ok(self.resolver.get_or_init(|| new))
    }
}

/// Where a captured connection was going before the kernel redirected it. None for one that was not: its client called the capture
/// port itself.
///
/// # Errors
/// The connection has ended.
pub fn original_destination(stream: &TcpStream) -> io::Result<Option<SocketAddr>> {
    let here = stream.local_addr()?;
    let socket = socket2::SockRef::from(stream);
    let original = if here.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    // The kernel knows none where nothing was redirected.
    let original = original.ok().and_then(|address| address.as_socket());
    Ok(original.filter(|original| *original != here))
}
