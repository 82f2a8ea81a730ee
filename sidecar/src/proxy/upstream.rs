//! Connections to MCP servers: pooled, over HTTP/1.1 or HTTP/2, with TLS that is always verified.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as Pool, Error, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::ClientConfig;
use toolweir_engine::egress::AddressRanges;

use super::{
    budget::PIECE,
    through::{Through, UpstreamProxy},
};
use crate::net::{BoundedConnector, Resolver};

/// The time for which an idle connection is kept. Common servers close theirs after 5 s; closing first avoids sending a call on
/// a connection that is being closed.
const IDLE: Duration = Duration::from_secs(4);
/// The most headers of an answer.
const HEADERS: usize = 1000;

/// To a server, or to the proxy on the way to it.
type Tcp = Through<HttpConnector<Resolver>>;

/// The sizes of the kernel's send and receive buffers for a connection to a server, in bytes. The kernel doubles both.
const KERNEL: (usize, usize) = (64 * 1024, 32 * 1024);
/// The flow-control windows of HTTP/2, of one stream and of a connection, in bytes (RFC 9113, section 5.2).
pub(super) const STREAM: u32 = 64 * 1024;
pub(super) const CONNECTION: u32 = 1024 * 1024;

/// A client with its pool of connections. Each worker has its own, so that a call never changes threads.
#[derive(Clone, Debug)]
pub struct UpstreamClient {
    pool: Pool<BoundedConnector<HttpsConnector<Tcp>>, Full<Bytes>>,
    proxy: Option<UpstreamProxy>,
    shows_certificate: bool,
}

/// How servers are connected to.
#[derive(Clone, Debug)]
pub struct UpstreamOptions {
    /// TLS: whom to trust, and the certificate to show if there is one.
    pub tls: Arc<ClientConfig>,
    /// The time that connecting may take.
    pub connect: Duration,
    /// The proxy on the way, if there is one.
    pub proxy: Option<UpstreamProxy>,
    /// True if names are DNS's alone to resolve, not the pod's hosts file's, which any of its containers may be able to write.
    pub dns_alone: bool,
    /// What names must not resolve to, where that is known.
    pub ranges: Option<Arc<AddressRanges>>,
}

impl UpstreamClient {
    /// A client without a connection yet.
    pub fn new(options: &UpstreamOptions) -> Self {
        let UpstreamOptions { tls, connect, proxy, dns_alone, ranges } = options;
        let resolver = if *dns_alone { Resolver::of_dns_alone(ranges.clone()) } else { Resolver::default() };
        let mut http = HttpConnector::new_with_resolver(resolver);
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
            .build(BoundedConnector { inner: https, limit: *connect });
        Self { pool, proxy: proxy.clone(), shows_certificate: tls.client_auth_cert_resolver.has_certs() }
    }

    /// Returns true if its connections show a certificate of the sidecar's.
    pub fn shows_certificate(&self) -> bool {
        self.shows_certificate
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
