//! The parts that connections to MCP servers and to the operator share: the resolver of names, the roots that TLS trusts, and how long
//! connecting may take.

pub mod names;
pub mod resolvers;

use std::{
    fs,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
    vec,
};

use http::Uri;
use hyper_util::client::legacy::connect::dns::Name;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use tokio::time::timeout;
use toolweir_engine::egress::AddressRanges;
use toolweir_store::dns::DnsResolver;
use toolweir_store::tls::{PemTrustError, add_pem_roots, client_config, system_roots};
use tower_service::Service;

use self::names::HostNames;

/// TLS that trusts the system's roots, `more`, and those of a PEM file if one is given.
///
/// # Errors
/// The file cannot be read or holds no certificate, or `more` has one that is not valid.
pub fn client_tls(extra: Option<&Path>, more: &[CertificateDer<'static>]) -> io::Result<Arc<ClientConfig>> {
    // A machine without roots can still use http, and https with a given CA.
    let mut roots = system_roots();
    for certificate in more {
        roots.add(certificate.clone()).map_err(io::Error::other)?;
    }
    if let Some(path) = extra {
        let pem = fs::read(path)?;
        add_pem_roots(&mut roots, &pem).map_err(|error| {
            let text = match error {
                PemTrustError::Pem(error) => error.to_string(),
                PemTrustError::Certificate(error) => error.to_string(),
                PemTrustError::Empty => "holds no PEM certificate".to_owned(),
            };
            io::Error::new(io::ErrorKind::InvalidData, text)
        })?;
    }
    Ok(Arc::new(tls_trusting(roots)?))
}

/// TLS that trusts these roots and nothing else.
///
/// # Errors
/// The crypto provider lacks a version of TLS: a defect of the build.
pub fn tls_trusting(roots: RootCertStore) -> io::Result<ClientConfig> {
    client_config(roots).map_err(io::Error::other)
}

/// Resolves names for the connector, in Rust: a static program has no resolver of the C library.
#[derive(Clone, Debug)]
pub enum Resolver {
    /// As the machine does, with the pod's hosts file, as the agent does: it is an MCP server of the agent's that is reached.
    Machine(HostNames),
    /// By DNS alone. Made at the first name, and made again where that failed.
    DnsAlone {
        /// The resolver.
        made: Arc<OnceLock<DnsResolver>>,
        /// What names must not resolve to: an address of the pod, its node or its surroundings, if these are known.
        ranges: Option<Arc<AddressRanges>>,
    },
}

impl Default for Resolver {
    fn default() -> Self {
        Self::Machine(HostNames::default())
    }
}

impl Resolver {
    /// One that asks DNS alone: the containers of a pod share its hosts file, and where the operator is must not be theirs to say.
    /// Where `ranges` are given, a name leads to no address that [`AddressRanges::is_off_limits`] names.
    pub fn of_dns_alone(ranges: Option<Arc<AddressRanges>>) -> Self {
        Self::DnsAlone { made: Arc::default(), ranges }
    }

    async fn lookup(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        match self {
            Self::Machine(names) => names.lookup(name).await.map_err(io::Error::other),
            Self::DnsAlone { made, ranges } => {
                let found = toolweir_store::dns::addresses(dns_resolver(made)?, name).await.map_err(io::Error::other)?;
                match ranges {
                    Some(ranges) => within(&found, ranges, name),
                    None => Ok(found),
                }
            }
        }
    }
}

/// Returns the addresses that a server may have.
fn within(found: &[IpAddr], ranges: &AddressRanges, name: &str) -> io::Result<Vec<IpAddr>> {
    let allowed: Vec<IpAddr> = found.iter().copied().filter(|address| !ranges.is_off_limits(*address)).collect();
    match found.iter().find(|address| ranges.is_off_limits(**address)) {
        Some(address) if allowed.is_empty() => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("{name} resolves to {address}, which is no server's; a URL with the address itself would lead there"),
        )),
        _ => Ok(allowed),
    }
}

fn dns_resolver(made: &OnceLock<DnsResolver>) -> io::Result<&DnsResolver> {
    if let Some(made) = made.get() {
        return Ok(made);
    }
    let new = toolweir_store::dns::resolver().map_err(io::Error::other)?;
    Ok(made.get_or_init(|| new))
}

impl Service<Name> for Resolver {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let resolver = self.clone();
        Box::pin(async move {
            let found = resolver.lookup(name.as_str()).await?;
            // The connector fills in the port.
            let addresses: Vec<SocketAddr> = found.into_iter().map(|ip| SocketAddr::new(ip, 0)).collect();
            Ok(addresses.into_iter())
        })
    }
}

/// A connector whose whole work, name, TCP and TLS, is bounded in time.
#[derive(Clone, Debug)]
pub struct BoundedConnector<C> {
    /// The connector.
    pub inner: C,
    /// The longest that connecting may take.
    pub limit: Duration,
}

impl<C> Service<Uri> for BoundedConnector<C>
where
    C: Service<Uri>,
    C::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    C::Future: Send + 'static,
    C::Response: Send + 'static,
{
    type Response = C::Response;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<C::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connecting, limit) = (self.inner.call(uri), self.limit);
        Box::pin(async move {
            match timeout(limit, connecting).await {
                Ok(done) => done.map_err(Into::into),
                Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "connecting took too long").into()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use hickory_resolver::config::ResolveHosts;

    use super::*;

    #[test]
    fn the_hosts_file_has_a_say_in_where_mcp_servers_are_and_none_in_where_the_operator_is() {
        let Resolver::Machine(names) = Resolver::default() else { panic!("MCP servers are where the agent finds them") };
        assert_eq!(names.source().hosts.as_deref(), Some(Path::new("/etc/hosts")));
        let Resolver::DnsAlone { made, .. } = Resolver::of_dns_alone(None) else { panic!("the operator is where DNS says") };
        assert_eq!(dns_resolver(&made).unwrap().options().use_hosts_file, ResolveHosts::Never);
    }
}
