//! Accepts connections: one runtime for each worker, so that a call stays on one thread from its first byte to its last.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    thread,
    time::Duration,
};

use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::timeout,
};

use super::{
    budget::PIECE,
    credentialed_clients::CredentialedClients,
    state::{Proxy, ProxyState},
    upstream::{UpstreamClient, UpstreamOptions},
};
use crate::outcome::Outcome;

/// The time that a client has for sending the head of a request.
const HEAD: Duration = Duration::from_secs(30);

/// The bytes of one connection of a client that may wait to be read, and of the largest head of a request.
const UNREAD: u32 = 64 * 1024;
const LARGEST_HEAD: usize = 16 * 1024;

/// The running proxy.
#[derive(Debug)]
pub struct Running {
    /// The address at which it listens.
    pub address: SocketAddr,
    open: Arc<AtomicUsize>,
}

impl Running {
    /// Waits until every connection is closed, or `limit` has passed. True when all are closed.
    pub async fn drained(&self, limit: Duration) -> bool {
        let closed = async {
            while self.open.load(Ordering::Acquire) > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(limit, closed).await.is_ok()
    }
}

/// How the workers connect to servers.
#[derive(Clone, Debug)]
pub struct WorkerUpstreams {
    /// To servers without a credential.
    pub plain: UpstreamOptions,
    /// To servers with one.
    pub credentialed: UpstreamOptions,
}

/// Starts `workers` threads that serve `listener`. They stop to accept when `state.stopping` turns true, and finish
/// what they have begun.
///
/// # Errors
/// A thread cannot be started.
pub fn start(listener: TcpListener, workers: usize, state: &Arc<ProxyState>, upstream: &WorkerUpstreams) -> io::Result<Running> {
    let address = listener.local_addr()?;
    let open = Arc::new(AtomicUsize::new(0));
    let mut inboxes = Vec::new();
    for number in 0..workers.max(1) {
        let (sender, inbox) = mpsc::unbounded_channel::<TcpStream>();
        let (state, upstream, open) = (Arc::clone(state), upstream.clone(), Arc::clone(&open));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || runtime.block_on(worker(inbox, state, upstream, &open)))?;
        inboxes.push(sender);
    }
    tokio::spawn(accept(listener, inboxes, Arc::clone(state), Arc::clone(&open)));
    let watched = Arc::clone(state);
    tokio::spawn(async move {
        let closed = watched.governor.metrics.connections.closed.with_label_values(&["proxy", "not_read"]);
        let cut = |count: usize| {
            closed.inc_by(count as u64);
            tracing::warn!(count, "connections were closed: their clients did not read what waited for them");
        };
        watched.clients.watch(cut).await;
    });
    Ok(Running { address, open })
}

/// Gives each connection to the next worker in turn.
async fn accept(
    listener: TcpListener,
    inboxes: Vec<mpsc::UnboundedSender<TcpStream>>,
    state: Arc<ProxyState>,
    open: Arc<AtomicUsize>,
) {
    let mut stopping = state.stopping.clone();
    let metrics = &state.governor.metrics;
    for inbox in inboxes.iter().cycle() {
        let stream = loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = stopping.wait_for(|stopping| *stopping) => return,
            };
            match accepted {
                // Beyond the bound a connection is closed at once: it costs nothing then.
                Ok(_) if open.load(Ordering::Acquire) >= state.limits.connections => {
                    state.governor.count(None, "_none", Outcome::Overloaded);
                    metrics.connections.closed.with_label_values(&["proxy", "too_many"]).inc();
                    state.clients.turned_away();
                    tracing::warn!(limit = state.limits.connections, "too many connections; one was closed");
                }
                Ok((stream, _)) => break stream,
                Err(error) => {
                    // Out of file descriptors, most likely: let some come free.
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        };
        open.fetch_add(1, Ordering::AcqRel);
        metrics.connections.open.inc();
        // Handed over without its registration at this thread's reactor.
        if inbox.send(stream).is_err() {
            open.fetch_sub(1, Ordering::AcqRel);
            metrics.connections.open.dec();
        }
    }
}

async fn worker(
    mut inbox: mpsc::UnboundedReceiver<TcpStream>,
    state: Arc<ProxyState>,
    upstream: WorkerUpstreams,
    open: &Arc<AtomicUsize>,
) {
    let (client, credentialed) = (UpstreamClient::new(&upstream.plain), CredentialedClients::new(upstream.credentialed));
    let proxy = Proxy { state, client, credentialed };
    let (alive, mut all_closed) = mpsc::channel::<()>(1);
    while let Some(stream) = inbox.recv().await {
        let closing = Closing { open: Arc::clone(open), proxy: proxy.clone(), _alive: alive.clone() };
        tokio::spawn(async move {
            // Registered anew at this worker's reactor.
            if let Ok(stream) = stream.into_std().and_then(TcpStream::from_std) {
                let _ = stream.set_nodelay(true);
                connection(stream, closing.proxy.clone()).await;
            }
            drop(closing);
        });
    }
    // The runtime ends with this function, and what it runs with it: wait for the connections to close.
    drop(alive);
    let _ = all_closed.recv().await;
}

/// Counts a connection as closed when it is dropped.
struct Closing {
    open: Arc<AtomicUsize>,
    proxy: Proxy,
    _alive: mpsc::Sender<()>,
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::AcqRel);
        self.proxy.state.governor.metrics.connections.open.dec();
    }
}

/// The preface of a connection over HTTP/2 (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Waits for the first bytes of a request: until they tell the protocol, no other timeout runs.
async fn begins(mut stream: TcpStream) -> Option<PeekedConnection> {
    let begun = async {
        let mut begun = [0; PREFACE.len()];
        let mut come = 0;
        loop {
            match stream.read(begun.get_mut(come..)?).await {
                Ok(0) | Err(_) => return None,
                Ok(more) => come += more,
            }
            if come == PREFACE.len() || begun.get(..come) != PREFACE.get(..come) {
                return Some((begun, come));
            }
        }
    };
    let (begun, come) = timeout(HEAD, begun).await.ok()??;
    Some(PeekedConnection { first: begun, read: 0, come, stream })
}

/// A connection of which the first bytes were read.
struct PeekedConnection {
    first: [u8; PREFACE.len()],
    read: usize,
    come: usize,
    stream: TcpStream,
}

impl PeekedConnection {
    fn is_http2(&self) -> bool {
        self.come == PREFACE.len() && self.first == *PREFACE
    }
}

impl AsyncRead for PeekedConnection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(rest) = this.first.get(this.read..this.come).filter(|rest| !rest.is_empty()) {
            let part = rest.get(..into.remaining()).unwrap_or(rest);
            into.put_slice(part);
            this.read += part.len();
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_read(context, into)
    }
}

impl AsyncWrite for PeekedConnection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

async fn connection(stream: TcpStream, proxy: Proxy) {
    let mut stopping = proxy.state.stopping.clone();
    let begun = tokio::select! {
        begun = begins(stream) => begun,
        _ = async { stopping.wait_for(|stopping| *stopping).await.is_ok() } => None,
    };
    let Some(stream) = begun else { return };
    let place = if stream.is_http2() {
        let Some(place) = proxy.state.clients.http2_place() else {
            let metrics = &proxy.state.governor.metrics;
            proxy.state.governor.count(None, "_none", Outcome::Overloaded);
            metrics.connections.closed.with_label_values(&["proxy", "too_many"]).inc();
            tracing::warn!("too many connections over HTTP/2; one was closed");
            return;
        };
        Some(place)
    } else {
        None
    };
    let opened = proxy.state.clients.open();
    let mut stopping: watch::Receiver<bool> = proxy.state.stopping.clone();
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(LARGEST_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .max_concurrent_streams(64)
        .max_header_list_size(16 * 1024)
        .initial_stream_window_size(UNREAD)
        .initial_connection_window_size(UNREAD)
        .max_send_buf_size(PIECE);
    let of = Arc::clone(&opened.connection);
    let service = service_fn(move |request| proxy.clone().serve(Arc::clone(&of), request));
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let stopped = async move { stopping.wait_for(|stopping| *stopping).await.is_ok() };
    let serving = async move {
        let early = tokio::select! {
            result = connection.as_mut() => Some(result),
            _ = stopped => None,
        };
        match early {
            Some(result) => result,
            None => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    let result = tokio::select! {
        result = serving => result,
        () = opened.connection.cut() => Ok(()),
    };
    drop(place);
    if let Err(error) = result {
        tracing::debug!(%error, "connection");
    }
}
