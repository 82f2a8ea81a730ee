//! The operator's ports: TLS for webhooks and streams, plain HTTP for metrics and probes. Connections are bounded, slow
//! handshakes end, and a stop lets what is under way finish.

use std::{convert::Infallible, future::Future, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto::Builder, graceful::GracefulShutdown},
};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use crate::certs::Serving;

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a client may take to send the head of a request.
const HEAD: Duration = Duration::from_secs(10);
/// How long to wait after `accept` failed, such as for a free file descriptor.
const BREATH: Duration = Duration::from_millis(50);
/// What a stopping server waits for at most.
const DRAIN: Duration = Duration::from_secs(10);

/// What a port is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// Webhooks, for API servers: HTTP/1.1 or HTTP/2 over TLS.
    Webhooks,
    /// The policy stream, for sidecars: HTTP/2 over TLS, one request on each connection for a long time.
    Streams,
    /// Metrics and probes: plain HTTP/1.1.
    Metrics,
}

impl Port {
    /// The most connections at once. Beyond it, new ones wait in the kernel's queue. Streams: a file descriptor and some
    /// 30 KiB for each.
    fn connections(self) -> usize {
        match self {
            Self::Webhooks => 512,
            Self::Streams => 20_000,
            Self::Metrics => 64,
        }
    }

    /// How each connection is served. Windows are small: a policy snapshot is sent in parts as the sidecar reads it, and what
    /// sidecars send is short.
    fn builder(self) -> Builder<TokioExecutor> {
        let mut builder = Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(64 * 1024);
        builder
            .http2()
            .timer(TokioTimer::new())
            .initial_stream_window_size(64 * 1024)
            .initial_connection_window_size(256 * 1024)
            .max_concurrent_streams(if self == Self::Streams { 4 } else { 250 })
            .max_header_list_size(32 * 1024)
            .max_send_buf_size(64 * 1024)
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10));
        match self {
            Self::Streams => builder.http2_only(),
            Self::Metrics => builder.http1_only(),
            Self::Webhooks => builder,
        }
    }
}

/// How TLS is spoken: with the certificate that is current at each handshake.
///
/// # Errors
/// The TLS library's.
pub fn tls(serving: Arc<Serving>, port: Port) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(crate::certs::issue::provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(serving);
    config.alpn_protocols = match port {
        Port::Streams => vec![b"h2".to_vec()],
        _ => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
    };
    // No sessions to resume: a certificate of another authority must be looked at.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Serves a port until `stopping` turns true; then takes no new connection, lets requests end, and returns.
pub async fn serve<F, A>(
    listener: TcpListener,
    port: Port,
    tls: Option<Arc<ServerConfig>>,
    answer: F,
    mut stopping: watch::Receiver<bool>,
) where
    F: Fn(Request<Incoming>) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Response<BoxBody<Bytes, Infallible>>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(port.connections()));
    let graceful = GracefulShutdown::new();
    let acceptor = tls.map(TlsAcceptor::from);
    loop {
        let accepted = tokio::select! {
            _ = stopping.wait_for(|stopping| *stopping) => break,
            accepted = accept(&listener, &places) => accepted,
        };
        let Some((stream, from, place)) = accepted else {
            sleep(BREATH).await;
            continue;
        };
        // Lines of the stream are short and each waits for an answer.
        let _ = stream.set_nodelay(true);
        let (acceptor, answer, watcher) = (acceptor.clone(), answer.clone(), graceful.watcher());
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(move |request| {
                let answered = answer(request);
                async move { Ok::<_, Infallible>(answered.await) }
            });
            let builder = port.builder();
            let ended = match acceptor {
                Some(acceptor) => match timeout(HANDSHAKE, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => watcher.watch(builder.serve_connection(TokioIo::new(stream), service).into_owned()).await,
                    Ok(Err(error)) => {
                        tracing::debug!(%error, %from, ?port, "a TLS handshake failed");
                        return;
                    }
                    Err(_) => return,
                },
                None => watcher.watch(builder.serve_connection(TokioIo::new(stream), service).into_owned()).await,
            };
            if let Err(error) = ended {
                tracing::debug!(error, %from, ?port, "a connection ended");
            }
        });
    }
    drop(listener);
    if timeout(DRAIN, graceful.shutdown()).await.is_err() {
        tracing::warn!(?port, "connections were cut: they did not end in time");
    }
}

type Place = tokio::sync::OwnedSemaphorePermit;

/// The next connection and its place, or nothing where there was a fault that passes.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> Option<(TcpStream, SocketAddr, Place)> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, from)) => Some((stream, from, place)),
        Err(error) => {
            tracing::warn!(%error, "a connection cannot be taken");
            None
        }
    }
}
