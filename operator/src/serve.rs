//! The operator's ports: TLS for webhooks and streams, plain HTTP for metrics and probes. Before a client is authenticated it may
//! send anything, so connections, their memory and the time for each step are bounded. A stop lets requests that are under way
//! finish.

use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use prometheus::{IntCounterVec, IntGaugeVec};
use rustls::{ServerConfig, server::ResolvesServerCert};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    client_ca::{self, ClientCa},
    metrics::OperatorRegistry,
    response::PortResponse,
    seats::{Seat, Seats},
};

/// The time that a TLS handshake may take, and from its end, or the beginning where there is none, the head of the first request.
const HEAD: Duration = Duration::from_secs(10);
/// The wait after `accept` failed, such as for a free file descriptor.
const BREATH: Duration = Duration::from_millis(50);
/// The time that a connection may take to end once it is asked to.
const LINGER: Duration = Duration::from_secs(5);
/// Between two lines on clients that were refused.
const PAUSE: Duration = Duration::from_secs(10);
/// The longest that a stopping server waits for its connections.
const DRAIN: Duration = Duration::from_secs(10);

/// A port of the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// Webhooks, for API servers: HTTP/1.1 or HTTP/2 over TLS.
    Webhooks,
    /// The policy stream, for sidecars: HTTP/2 over TLS, one request on each connection for a long time.
    Streams,
    /// Metrics: plain HTTP/1.1.
    Metrics,
    /// Probes, for the kubelet: plain HTTP/1.1, on a thread of their own.
    Probes,
}

impl Port {
    /// Every port.
    pub const ALL: [Self; 4] = [Self::Webhooks, Self::Streams, Self::Metrics, Self::Probes];

    /// Returns the name that metrics have.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Webhooks => "webhooks",
            Self::Streams => "streams",
            Self::Metrics => "metrics",
            Self::Probes => "probes",
        }
    }

    /// Returns the most connections that wait at once: for a handshake, for a request, for its body, or for a token to be
    /// reviewed. Each takes up to some 100 KiB. Open streams are not among them.
    fn waiting(self) -> usize {
        match self {
            Self::Webhooks | Self::Streams => 256,
            Self::Metrics => 32,
            Self::Probes => 16,
        }
    }

    /// Returns how long each of these stays at least. Long enough that many that connect at once, as after a restart, do not push
    /// each other out in the middle of a handshake.
    fn grace(self) -> Duration {
        match self {
            Self::Webhooks => Duration::from_millis(500),
            Self::Streams | Self::Metrics | Self::Probes => Duration::from_secs(1),
        }
    }

    /// Returns how long a connection may wait for its next request, whatever it answers to pings, or take for an answer.
    fn idle(self) -> Duration {
        match self {
            Self::Webhooks => Duration::from_secs(60),
            // It is there for one request.
            Self::Streams => HEAD,
            Self::Metrics | Self::Probes => Duration::from_secs(30),
        }
    }

    /// Returns how each connection is served. Windows are small: a policy snapshot is sent in parts as the sidecar reads it, what
    /// sidecars send is short, and a review waits at its sender until there is room for it here.
    fn builder(self) -> Builder<TokioExecutor> {
        let mut builder = Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(16 * 1024);
        // A token of a sidecar is in its head, and in nobody else's.
        let (streams, head) = if self == Self::Streams { (2, 20 * 1024) } else { (16, 8 * 1024) };
        builder
            .http2()
            .timer(TokioTimer::new())
            .initial_stream_window_size(64 * 1024 - 1)
            .initial_connection_window_size(64 * 1024 - 1)
            .max_concurrent_streams(streams)
            .max_header_list_size(head)
            .max_send_buf_size(64 * 1024)
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10));
        match self {
            Self::Streams => builder.http2_only(),
            Self::Metrics | Self::Probes => builder.http1_only(),
            Self::Webhooks => builder,
        }
    }
}

/// The reasons why the operator closed a connection: the closed set of the label `reason` of
/// `toolweir_operator_connections_closed_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// The TLS handshake failed.
    Handshake,
    /// There was no certificate of an API server, or none that is taken.
    Certificate,
    /// The handshake, or the head of the first request, did not come in time.
    Slow,
    /// There was no request for too long.
    Idle,
    /// Others needed its place, and it had waited longest.
    Crowded,
}

impl Closed {
    /// Every reason.
    pub const ALL: [Self; 5] = [Self::Handshake, Self::Certificate, Self::Slow, Self::Idle, Self::Crowded];

    /// Returns the name that metrics have.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Certificate => "certificate",
            Self::Slow => "slow",
            Self::Idle => "idle",
            Self::Crowded => "crowded",
        }
    }
}

/// The metrics of the ports.
#[derive(Clone, Debug)]
pub struct PortMetrics {
    /// Open connections, by port.
    pub connections: IntGaugeVec,
    /// Connections that the operator closed, by port and reason.
    pub connections_closed: IntCounterVec,
}

impl PortMetrics {
    /// Registers the metrics, with every port and reason at 0.
    ///
    /// # Errors
    /// Those of [`OperatorRegistry::counter`].
    pub fn new(registry: &OperatorRegistry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            connections: registry.gauges("toolweir_operator_connections", "Open connections, by port.", &["port"])?,
            connections_closed: registry.counters(
                "toolweir_operator_connections_closed_total",
                "Connections that the operator closed, by port and reason.",
                &["port", "reason"],
            )?,
        };
        for port in Port::ALL {
            metrics.connections.with_label_values(&[port.as_str()]);
            for closed in Closed::ALL {
                metrics.connections_closed.with_label_values(&[port.as_str(), closed.as_str()]);
            }
        }
        Ok(metrics)
    }
}

/// Returns the TLS configuration of a port. It serves the certificate that is current at each handshake. With `clients`, a client
/// must show a certificate that it accepts.
///
/// # Errors
/// The TLS library's.
pub fn tls(
    serving: Arc<dyn ResolvesServerCert>,
    port: Port,
    clients: Option<Arc<ClientCa>>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(toolweir_store::tls::provider()).with_safe_default_protocol_versions()?;
    let builder = match clients {
        Some(clients) => builder.with_client_cert_verifier(clients),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(serving);
    config.alpn_protocols = match port {
        Port::Streams => vec![b"h2".to_vec()],
        _ => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
    };
    // No sessions to resume: a certificate of another authority must be looked at.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Serves a port until `stopping` turns true; then takes no new connection, lets requests end, and returns. Each request has its
/// connection, an `Arc` of [`Seat`], among its extensions.
pub async fn serve<F, A>(
    listener: TcpListener,
    port: Port,
    tls: Option<Arc<ServerConfig>>,
    answer: F,
    metrics: PortMetrics,
    mut stopping: watch::Receiver<bool>,
) where
    F: Fn(Request<Incoming>) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = PortResponse> + Send + 'static,
{
    let seats = Seats::new(port.waiting(), port.grace());
    // Nothing is sent: it ends when the last connection has.
    let (open, mut ended) = mpsc::channel::<Infallible>(1);
    let served = Served {
        port,
        acceptor: tls.map(TlsAcceptor::from),
        answer,
        metrics,
        stopping: stopping.clone(),
        refusal_logged: Arc::default(),
        _open: open,
    };
    loop {
        let accepted = tokio::select! {
            _ = stopping.wait_for(|stopping| *stopping) => break,
            accepted = accept(&listener, &seats) => accepted,
        };
        let Some((stream, from, seat)) = accepted else {
            sleep(BREATH).await;
            continue;
        };
        // Lines of the stream are short and each waits for an answer.
        let _ = stream.set_nodelay(true);
        let served = served.clone();
        tokio::spawn(async move {
            let open = served.metrics.connections.with_label_values(&[port.as_str()]);
            open.inc();
            if let Some(closed) = served.connection(stream, from, &seat).await {
                served.metrics.connections_closed.with_label_values(&[port.as_str(), closed.as_str()]).inc();
                tracing::debug!(%from, port = port.as_str(), reason = closed.as_str(), "a connection was closed");
            }
            open.dec();
        });
    }
    drop((listener, served));
    if timeout(DRAIN, ended.recv()).await.is_err() {
        tracing::warn!(port = port.as_str(), "connections were closed because they did not end in time");
    }
}

/// Accepts the next connection and waits for its seat. Returns none where that failed.
async fn accept(listener: &TcpListener, seats: &Arc<Seats>) -> Option<(TcpStream, SocketAddr, Arc<Seat>)> {
    match listener.accept().await {
        Ok((stream, from)) => Some((stream, from, seats.seat().await)),
        Err(error) => {
            tracing::warn!(%error, "a connection cannot be accepted");
            None
        }
    }
}

/// The settings with which every connection of a port is served.
#[derive(Clone)]
struct Served<F> {
    port: Port,
    acceptor: Option<TlsAcceptor>,
    answer: F,
    metrics: PortMetrics,
    stopping: watch::Receiver<bool>,
    /// When a refused client was logged last.
    refusal_logged: Arc<Mutex<Option<Instant>>>,
    _open: mpsc::Sender<Infallible>,
}

impl<F, A> Served<F>
where
    F: Fn(Request<Incoming>) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = PortResponse> + Send + 'static,
{
    /// Serves a connection to its end. Returns why the operator closed it, if it did.
    async fn connection(&self, stream: TcpStream, from: SocketAddr, seat: &Arc<Seat>) -> Option<Closed> {
        let Some(acceptor) = &self.acceptor else { return self.requests(stream, from, seat).await };
        let accepted = tokio::select! {
            biased;
            () = seat.put_out() => return Some(Closed::Crowded),
            accepted = timeout(HEAD, acceptor.accept(stream)) => accepted,
        };
        match accepted {
            Ok(Ok(stream)) => self.requests(stream, from, seat).await,
            Ok(Err(error)) => {
                if client_ca::is_refusal(&error) {
                    self.log_refused(&error, from);
                    return Some(Closed::Certificate);
                }
                tracing::debug!(%error, %from, port = self.port.as_str(), "a TLS handshake failed");
                Some(Closed::Handshake)
            }
            Err(_) => Some(Closed::Slow),
        }
    }

    /// Logs that a client was refused, at most once in [`PAUSE`]: unauthenticated clients must not fill the log.
    fn log_refused(&self, error: &std::io::Error, from: SocketAddr) {
        let mut logged = self.refusal_logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.is_none_or(|when| when.elapsed() >= PAUSE) {
            *logged = Some(Instant::now());
            tracing::warn!(
                %error,
                %from,
                port = self.port.as_str(),
                "a client without an accepted certificate was refused; the metric counts further ones"
            );
        }
    }

    async fn requests<S>(&self, stream: S, from: SocketAddr, seat: &Arc<Seat>) -> Option<Closed>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let began = Instant::now();
        let service = service_fn({
            let (answer, seat) = (self.answer.clone(), Arc::clone(seat));
            move |mut request: Request<Incoming>| {
                let under_way = seat.request();
                request.extensions_mut().insert(Arc::clone(&seat));
                let answered = answer(request);
                async move {
                    let response = answered.await;
                    drop(under_way);
                    Ok::<_, Infallible>(response)
                }
            }
        });
        let builder = self.port.builder();
        let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
        let mut stopping = self.stopping.clone();
        // Once it was asked to end: until when, and why.
        let mut ends: Option<(Option<Instant>, Option<Closed>)> = None;
        loop {
            let (until, why) = match (ends, seat.idle()) {
                (Some((until, why)), _) => (until, why),
                (None, Some((since, true))) => (Some(since + self.port.idle()), Some(Closed::Idle)),
                // The handshake has its own time.
                (None, Some((since, false))) => (Some(since.max(began) + HEAD), Some(Closed::Slow)),
                (None, None) => (None, None),
            };
            let time_is_up = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = seat.put_out() => return Some(Closed::Crowded),
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(error, %from, port = self.port.as_str(), "a connection ended");
                    }
                    return ends.and_then(|(_, why)| why);
                }
                _ = stopping.wait_for(|stopping| *stopping), if ends.is_none() => {
                    connection.as_mut().graceful_shutdown();
                    ends = Some((None, None));
                }
                () = time_is_up => {
                    if ends.is_some() {
                        return why;
                    }
                    connection.as_mut().graceful_shutdown();
                    ends = Some((Some(Instant::now() + LINGER), why));
                }
                () = seat.changed() => {}
            }
        }
    }
}
