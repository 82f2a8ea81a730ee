//! Connections to MCP servers: pooled, over HTTP/1.1 or HTTP/2, with TLS that is always verified.

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

use bytes::Bytes;
use hickory_resolver::TokioResolver;
use http::{Request, Response, Uri, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as Pool, Error, connect::HttpConnector, connect::dns::Name},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tokio::time::timeout;
use tower_service::Service;

use super::{
    names::Names,
    through::{Through, UpstreamProxy},
    waiting::PIECE,
};

/// How long an idle connection is kept. Common servers close theirs after 5 s; closing first avoids sending a call on
/// a connection that is being closed.
const IDLE: Duration = Duration::from_secs(4);
/// How many headers an answer may have.
const HEADERS: usize = 1000;

/// To a server, or to the proxy on the way to it.
type Tcp = Through<HttpConnector<Resolver>>;

/// What the kernel may keep for a connection to a server: of what is sent, and of what is received. It doubles both.
const KERNEL: (usize, usize) = (64 * 1024, 32 * 1024);
/// What may have come over HTTP/2 that is not read yet, of one answer and of all on a connection.
const STREAM: u32 = 64 * 1024;
const CONNECTION: u32 = 1024 * 1024;

/// A client with its pool of connections. Each worker has its own, so that a call never changes threads.
#[derive(Clone, Debug)]
pub struct Client {
    pool: Pool<Bounded<HttpsConnector<Tcp>>, Full<Bytes>>,
    proxy: Option<UpstreamProxy>,
}

impl Client {
    /// A client that trusts `tls` and connects within `connect`, through a proxy if there is one.
    pub fn new(tls: &Arc<ClientConfig>, connect: Duration, proxy: Option<UpstreamProxy>) -> Self {
        let mut http = HttpConnector::new_with_resolver(Resolver::default());
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_keepalive(Some(Duration::from_secs(60)));
        // What the kernel keeps of an answer that nobody reads counts as the pod's memory.
        http.set_recv_buffer_size(Some(KERNEL.1));
        http.set_send_buffer_size(Some(KERNEL.0));
        let https = HttpsConnectorBuilder::new()
            .with_tls_config((**tls).clone())
            .https_or_http()
            .enable_http1()
            .enable_http2()
            .wrap_connector(Through { inner: http, proxy: proxy.clone() });
        let pool = Pool::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE)
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .http1_max_headers(HEADERS)
            .http2_keep_alive_interval(Duration::from_secs(30))
            .http1_max_buf_size(PIECE)
            .http2_initial_stream_window_size(STREAM)
            .http2_initial_connection_window_size(CONNECTION)
            .http2_max_send_buf_size(PIECE)
            .http2_max_header_list_size(16 * 1024)
            .build(Bounded { inner: https, limit: connect });
        Self { pool, proxy }
    }

    /// Sends a request and waits for the head of its answer.
    ///
    /// # Errors
    /// The pool's; [`Error::is_connect`] tells those before which nothing was sent.
    pub async fn send(&self, mut request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Error> {
        if let Some(value) = self.proxy.as_ref().and_then(|proxy| proxy.authorization(request.uri())) {
            request.headers_mut().insert(header::PROXY_AUTHORIZATION, value);
        }
        self.pool.request(request).await
    }
}

/// Whom to trust: the system's roots and, if given, those of a PEM file.
///
/// # Errors
/// The file cannot be read or holds no certificate.
pub fn tls(extra: Option<&Path>) -> io::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    // A machine without roots can still use http, and https with a given CA.
    let system = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(system.certs);
    if let Some(path) = extra {
        let pem = fs::read(path)?;
        let mut found = 0;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            roots.add(certificate).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            found += 1;
        }
        if found == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "holds no PEM certificate"));
        }
    }
    Ok(Arc::new(trusting(roots)?))
}

/// TLS that trusts these roots and nothing else.
///
/// # Errors
/// The crypto provider lacks a version of TLS: a defect of the build.
pub fn trusting(roots: RootCertStore) -> io::Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

/// Resolves names for the connector, in Rust: a static program has no resolver of the C library.
#[derive(Clone, Debug)]
pub(crate) enum Resolver {
    /// As the machine does, with the pod's hosts file, as the agent does: it is an MCP server of the agent's that is reached.
    Machine(Names),
    /// By DNS alone. Made at the first name, and made again where that failed.
    Alone(Arc<OnceLock<TokioResolver>>),
}

impl Default for Resolver {
    fn default() -> Self {
        Self::Machine(Names::default())
    }
}

impl Resolver {
    /// One that asks DNS alone: the containers of a pod share its hosts file, and where the operator is must not be theirs to say.
    pub(crate) fn of_dns_alone() -> Self {
        Self::Alone(Arc::default())
    }

    async fn lookup(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        match self {
            Self::Machine(names) => names.lookup(name).await.map_err(io::Error::other),
            Self::Alone(made) => toolweir_store::dns::addresses(alone(made)?, name).await.map_err(io::Error::other),
        }
    }
}

fn alone(made: &OnceLock<TokioResolver>) -> io::Result<&TokioResolver> {
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
pub(crate) struct Bounded<C> {
    pub(crate) inner: C,
    pub(crate) limit: Duration,
}

impl<C> Service<Uri> for Bounded<C>
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
        let Resolver::Alone(made) = Resolver::of_dns_alone() else { panic!("the operator is where DNS says") };
        assert_eq!(alone(&made).unwrap().options().use_hosts_file, ResolveHosts::Never);
    }
}
