//! The hosts of declared servers, found by how a client names them.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use http::{Uri, uri::PathAndQuery};
use toolweir_crds::port_of;

use super::names::{Host, HostAndPort, SearchDomains};
use crate::in_force::{InForce, ServerInForce};

/// A declared server at a host and port.
#[derive(Debug)]
pub struct DeclaredServer {
    /// The server.
    pub server: Arc<ServerInForce>,
    /// Its URL.
    pub url: Uri,
    /// The host of its URL.
    pub host: Host,
    /// True if its URL is `https`.
    pub tls: bool,
    /// The addresses that its name had last.
    last: Mutex<Vec<IpAddr>>,
}

impl DeclaredServer {
    /// Returns the path and query of its url.
    fn target(&self) -> &str {
        self.url.path_and_query().map_or("/", PathAndQuery::as_str)
    }

    /// Returns whether a path and query are those of its url, or have one `/` more or less at their end.
    pub fn is_at(&self, asked: &str) -> bool {
        let (declared, bare) = (self.target(), |path| str::strip_suffix(path, '/').unwrap_or(path));
        asked == declared || (!asked.contains('?') && !declared.contains('?') && bare(asked) == bare(declared))
    }

    /// Notes the addresses that its name has now, and returns them.
    pub fn found(&self, addresses: Vec<IpAddr>) -> Vec<IpAddr> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&addresses);
        addresses
    }

    /// The addresses that its name had last; none where it was never resolved.
    pub fn last_found(&self) -> Vec<IpAddr> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Returns those of the servers at one host and port whose TLS is opened. What a policy refuses for a url is refused for that url under
/// every name.
pub fn intercepted(servers: &[Arc<DeclaredServer>]) -> impl Iterator<Item = &DeclaredServer> {
    let is_refused = |target: &str| servers.iter().any(|other| other.tls && other.server.refuses_tls && other.is_at(target));
    let opened = servers.iter().map(|server| &**server).filter(|server| server.tls && server.server.intercept);
    opened.filter(move |server| !is_refused(server.target()))
}

/// The declared servers of the policies in force, by port and by every name that their hosts may mean.
#[derive(Debug, Default)]
pub struct DeclaredServers {
    by_host: HashMap<HostAndPort, Vec<Arc<DeclaredServer>>>,
    by_port: HashMap<u16, Vec<Arc<DeclaredServer>>>,
}

impl DeclaredServers {
    fn new(in_force: &InForce, domains: &SearchDomains) -> Self {
        let mut declared = Self::default();
        // In an order that is the same each time.
        let mut servers: Vec<_> = in_force.servers().collect();
        servers.sort_by(|one, other| one.name.cmp(&other.name));
        for server in servers {
            let Some(url) = server.url.clone() else { continue };
            let tls = url.scheme() == Some(&http::uri::Scheme::HTTPS);
            let Some(host) = url.host().and_then(Host::read) else { continue };
            let Some(port) = port_of(&url) else { continue };
            let found =
                Arc::new(DeclaredServer { server: Arc::clone(server), url, host: host.clone(), tls, last: Mutex::default() });
            for meaning in domains.meanings(&host) {
                declared.by_host.entry(HostAndPort { host: meaning, port }).or_default().push(Arc::clone(&found));
            }
            declared.by_port.entry(port).or_default().push(found);
        }
        declared
    }

    /// The declared servers that a host and port may mean.
    pub fn at(&self, at: &HostAndPort, domains: &SearchDomains) -> Vec<Arc<DeclaredServer>> {
        let mut found: Vec<Arc<DeclaredServer>> = Vec::new();
        for meaning in domains.meanings(&at.host) {
            for server in self.by_host.get(&HostAndPort { host: meaning, port: at.port }).into_iter().flatten() {
                if !found.iter().any(|known| Arc::ptr_eq(known, server)) {
                    found.push(Arc::clone(server));
                }
            }
        }
        found
    }

    /// The declared servers at a port, whatever their host.
    pub fn at_port(&self, port: u16) -> &[Arc<DeclaredServer>] {
        self.by_port.get(&port).map_or(&[], Vec::as_slice)
    }
}

/// The declared servers of the policies that were asked about last.
#[derive(Debug, Default)]
pub struct DeclaredCache(Mutex<Option<(Weak<InForce>, Arc<DeclaredServers>)>>);

impl DeclaredCache {
    /// The declared servers of policies.
    pub fn of(&self, in_force: &Arc<InForce>, domains: &SearchDomains) -> Arc<DeclaredServers> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, declared)) = &*last
            && std::ptr::eq(of.as_ptr(), Arc::as_ptr(in_force))
        {
            return Arc::clone(declared);
        }
        let declared = Arc::new(DeclaredServers::new(in_force, domains));
        *last = Some((Arc::downgrade(in_force), Arc::clone(&declared)));
        declared
    }
}
