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

use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};

use super::{
    captured,
    credentialed_clients::CredentialedClients,
    http_connection,
    state::{Proxy, ProxyState},
    upstream::{UpstreamClient, UpstreamOptions},
};
use crate::outcome::Outcome;

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

/// A connection that a worker is to serve.
struct Arrived {
    stream: TcpStream,
    /// True if the kernel redirected it here.
    captured: bool,
}

/// Starts `workers` threads that serve `listener`, and `captured`, where the kernel redirects connections to. They stop to accept when
/// `state.stopping` turns true, and finish what they have begun.
///
/// # Errors
/// A thread cannot be started.
pub fn start(
    listener: TcpListener,
    captured: Vec<TcpListener>,
    workers: usize,
    state: &Arc<ProxyState>,
    upstream: &WorkerUpstreams,
) -> io::Result<Running> {
    let address = listener.local_addr()?;
    let open = Arc::new(AtomicUsize::new(0));
    let mut inboxes = Vec::new();
    for number in 0..workers.max(1) {
        let (sender, inbox) = mpsc::unbounded_channel::<Arrived>();
        let (state, upstream, open) = (Arc::clone(state), upstream.clone(), Arc::clone(&open));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || runtime.block_on(worker(inbox, state, upstream, &open)))?;
        inboxes.push(sender);
    }
    let listeners = captured.into_iter().map(|listener| (listener, true)).chain([(listener, false)]);
    for (listener, captured) in listeners {
        tokio::spawn(accept(listener, captured, inboxes.clone(), Arc::clone(state), Arc::clone(&open)));
    }
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
    captured: bool,
    inboxes: Vec<mpsc::UnboundedSender<Arrived>>,
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
        if inbox.send(Arrived { stream, captured }).is_err() {
            open.fetch_sub(1, Ordering::AcqRel);
            metrics.connections.open.dec();
        }
    }
}

async fn worker(
    mut inbox: mpsc::UnboundedReceiver<Arrived>,
    state: Arc<ProxyState>,
    upstream: WorkerUpstreams,
    open: &Arc<AtomicUsize>,
) {
    let (client, credentialed) = (UpstreamClient::new(&upstream.plain), CredentialedClients::new(upstream.credentialed));
    let proxy = Arc::new(Proxy { state, client, credentialed });
    let (alive, mut all_closed) = mpsc::channel::<()>(1);
    while let Some(Arrived { stream, captured }) = inbox.recv().await {
        let closing = Closing { open: Arc::clone(open), state: Arc::clone(&proxy.state), _alive: alive.clone() };
        let Some(stream) = registered(stream) else { continue };
        let proxy = Arc::clone(&proxy);
        // A task is as large as the most that it may do, and a connection that only passes needs little.
        if captured {
            tokio::spawn(async move {
                captured::connection(stream, proxy).await;
                drop(closing);
            });
        } else {
            tokio::spawn(async move {
                http_connection::connection(stream, proxy).await;
                drop(closing);
            });
        }
    }
    // The runtime ends with this function, and what it runs with it: wait for the connections to close.
    drop(alive);
    let _ = all_closed.recv().await;
}

/// A connection, registered anew at this worker's reactor.
fn registered(stream: TcpStream) -> Option<TcpStream> {
    let stream = stream.into_std().and_then(TcpStream::from_std).ok()?;
    let _ = stream.set_nodelay(true);
    Some(stream)
}

/// Counts a connection as closed when it is dropped.
struct Closing {
    open: Arc<AtomicUsize>,
    state: Arc<ProxyState>,
    _alive: mpsc::Sender<()>,
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::AcqRel);
        self.state.governor.metrics.connections.open.dec();
    }
}
