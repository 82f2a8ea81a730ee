//! Accepts connections: one runtime for each worker, so that a call stays on one thread from its first byte to its last.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use rustls::ClientConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::timeout,
};

use super::{
    service::{Proxy, Shared},
    upstream::Client,
};

/// How long a client may take to send the head of a request.
const HEAD: Duration = Duration::from_secs(30);

/// The running proxy.
#[derive(Debug)]
pub struct Running {
    /// Where it listens.
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

/// Starts `workers` threads that serve `listener`. They stop to accept when `shared.stopping` turns true, and finish
/// what they have begun.
///
/// # Errors
/// A thread cannot be started.
pub fn start(listener: TcpListener, workers: usize, shared: &Arc<Shared>, tls: &Arc<ClientConfig>) -> io::Result<Running> {
    let address = listener.local_addr()?;
    let open = Arc::new(AtomicUsize::new(0));
    let mut inboxes = Vec::new();
    for number in 0..workers.max(1) {
        let (sender, inbox) = mpsc::unbounded_channel::<TcpStream>();
        let (shared, tls, open) = (Arc::clone(shared), Arc::clone(tls), Arc::clone(&open));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || runtime.block_on(worker(inbox, shared, &tls, &open)))?;
        inboxes.push(sender);
    }
    tokio::spawn(accept(listener, inboxes, Arc::clone(shared), Arc::clone(&open)));
    Ok(Running { address, open })
}

/// Gives each connection to the next worker in turn.
async fn accept(
    listener: TcpListener,
    inboxes: Vec<mpsc::UnboundedSender<TcpStream>>,
    shared: Arc<Shared>,
    open: Arc<AtomicUsize>,
) {
    let mut stopping = shared.stopping.clone();
    let metrics = &shared.governor.metrics;
    for inbox in inboxes.iter().cycle() {
        let stream = loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = stopping.wait_for(|stopping| *stopping) => return,
            };
            match accepted {
                // Beyond the bound a connection is closed at once: it costs nothing then.
                Ok(_) if open.load(Ordering::Acquire) >= shared.limits.connections => {
                    metrics.requests.with_label_values(&[crate::metrics::UNKNOWN_SERVER, "_none", "overloaded"]).inc();
                    tracing::warn!(limit = shared.limits.connections, "too many connections; one was closed");
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
        metrics.connections.inc();
        // Handed over without its registration at this thread's reactor.
        if inbox.send(stream).is_err() {
            open.fetch_sub(1, Ordering::AcqRel);
            metrics.connections.dec();
        }
    }
}

async fn worker(
    mut inbox: mpsc::UnboundedReceiver<TcpStream>,
    shared: Arc<Shared>,
    tls: &Arc<ClientConfig>,
    open: &Arc<AtomicUsize>,
) {
    let proxy = Proxy { client: Client::new(tls, shared.limits.connect, shared.upstream_proxy.clone()), shared };
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
        self.proxy.shared.governor.metrics.connections.dec();
    }
}

/// Waits for the first bytes of a request: until they tell the protocol, no other timeout runs.
async fn begins(stream: &TcpStream) -> bool {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let begun = async {
        let mut head = [0; PREFACE.len()];
        loop {
            match stream.peek(&mut head).await {
                Ok(0) | Err(_) => return false,
                Ok(read) if read < head.len() && head.get(..read).is_some_and(|head| PREFACE.starts_with(head)) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Ok(_) => return true,
            }
        }
    };
    timeout(HEAD, begun).await.unwrap_or(false)
}

async fn connection(stream: TcpStream, proxy: Proxy) {
    let mut stopping = proxy.shared.stopping.clone();
    let begun = tokio::select! {
        begun = begins(&stream) => begun,
        _ = async { stopping.wait_for(|stopping| *stopping).await.is_ok() } => false,
    };
    if !begun {
        return;
    }
    let mut stopping: watch::Receiver<bool> = proxy.shared.stopping.clone();
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(64 * 1024);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .max_concurrent_streams(128)
        .max_header_list_size(64 * 1024)
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(1024 * 1024);
    let service = service_fn(move |request| proxy.clone().serve(request));
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let stopped = async move { stopping.wait_for(|stopping| *stopping).await.is_ok() };
    let early = tokio::select! {
        result = connection.as_mut() => Some(result),
        _ = stopped => None,
    };
    let result = match early {
        Some(result) => result,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection");
    }
}
