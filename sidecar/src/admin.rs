//! The two small servers beside the proxy: metrics and health for the cluster, and administration for this machine.

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    thread,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::IntCounter;
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{Semaphore, watch},
    task::AbortHandle,
    time::{Sleep, sleep, timeout},
};

use crate::{capture::Capture, explain, governor::Governor, scrape::Scraper};

/// Connections of one port. Where one more comes, one of those is closed that have come from the same address as most.
const CONNECTIONS: usize = 64;
/// The time that a head, a body, and the reading of an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pages of metrics that are kept until their readers have them. Who asks while there are as many gets the newest of them.
const PAGES: usize = 4;
/// Answers of the administration that may be large, at once.
const LARGE: usize = 2;

/// Sets the log level, if one is given, and returns the one in force. The error says what to write.
pub type LogLevelControl = Arc<dyn Fn(Option<&str>) -> Result<String, String> + Send + Sync>;

/// What both servers answer from: handles that clones share.
#[derive(Clone)]
pub struct AdminState {
    /// The policies in force and their metrics.
    pub governor: Arc<Governor>,
    /// Gives the page of metrics.
    pub scraper: Arc<Scraper>,
    /// What captured connections are judged with, where there are any.
    pub capture: Option<Arc<Capture>>,
    /// Turns true when the sidecar stops.
    pub stopping: watch::Receiver<bool>,
    /// The log level.
    pub log_level: LogLevelControl,
}

/// One of the two servers beside the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// `/metrics`, `/healthz` and `/readyz`, for the cluster.
    Metrics,
    /// `/policy`, `/limits`, `/observed`, `/explain` and `/log-level`, for this machine.
    Admin,
}

impl Listener {
    /// As metrics name its port.
    fn as_str(self) -> &'static str {
        match self {
            Self::Metrics => "metrics",
            Self::Admin => "admin",
        }
    }
}

/// Places and pages that the answers of one server share.
#[derive(Debug)]
struct ListenerState {
    questions: Semaphore,
    large: Arc<Semaphore>,
    pages: Mutex<Vec<Weak<Vec<u8>>>>,
}

/// A connection that is open.
struct OpenConnection {
    peer: IpAddr,
    /// The number of requests that it is answering.
    busy: Arc<AtomicUsize>,
    task: AbortHandle,
}

/// Serves on a thread of its own, so that whoever asks much keeps nobody else waiting. It ends with what `state.stopping`
/// hears from.
///
/// # Errors
/// The thread cannot be started.
pub fn start(listener: TcpListener, listener_kind: Listener, state: AdminState) -> io::Result<()> {
    let listener = listener.into_std()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name(listener_kind.as_str().to_owned()).spawn(move || {
        let mut stopping = state.stopping.clone();
        runtime.block_on(async move {
            let ended = async { while stopping.changed().await.is_ok() {} };
            match TcpListener::from_std(listener) {
                Ok(listener) => tokio::select! {
                    () = serve(listener, listener_kind, state) => {}
                    () = ended => {}
                },
                Err(error) => tracing::error!(%error, face = ?listener_kind, "cannot serve the port"),
            }
        });
    })?;
    Ok(())
}

/// Serves until the process ends.
pub async fn serve(listener: TcpListener, listener_kind: Listener, state: AdminState) {
    let shared = Arc::new(ListenerState {
        questions: Semaphore::new(explain::AT_ONCE),
        large: Arc::new(Semaphore::new(LARGE)),
        pages: Mutex::default(),
    });
    let closed = |reason: &str| state.governor.metrics.connections.closed.with_label_values(&[listener_kind.as_str(), reason]);
    let (too_many, not_read) = (closed("too_many"), closed("not_read"));
    let mut open: Vec<OpenConnection> = Vec::new();
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, face = ?listener_kind, "accept");
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        open.retain(|open| !open.task.is_finished());
        if open.len() >= CONNECTIONS
            && let Some(at) = to_close(&open)
        {
            open.remove(at).task.abort();
            too_many.inc();
            tracing::warn!(face = ?listener_kind, limit = CONNECTIONS, "too many connections; one was closed");
        }
        let busy = Arc::<AtomicUsize>::default();
        let (state, shared, answering) = (state.clone(), Arc::clone(&shared), Arc::clone(&busy));
        let stream = Patient { stream, waits: None, not_read: not_read.clone() };
        let task = tokio::spawn(async move {
            let service = service_fn(move |request| {
                let (state, shared, busy) = (state.clone(), Arc::clone(&shared), Busy::begin(&answering));
                async move {
                    let answered = answer(request, listener_kind, state, &shared).await;
                    drop(busy);
                    answered
                }
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(16 * 1024);
            if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(%error, face = ?listener_kind, "connection");
            }
        });
        open.push(OpenConnection { peer: peer_of(peer), busy, task: task.abort_handle() });
    }
}

fn peer_of(peer: SocketAddr) -> IpAddr {
    peer.ip().to_canonical()
}

/// Which connection makes room for another: of those from the address that has most, the oldest that is not being answered,
/// or else the oldest.
fn to_close(open: &[OpenConnection]) -> Option<usize> {
    let mut from: HashMap<IpAddr, usize> = HashMap::new();
    for open in open {
        *from.entry(open.peer).or_default() += 1;
    }
    let most = from.into_iter().max_by_key(|(_, count)| *count)?.0;
    let theirs = || open.iter().enumerate().filter(|(_, open)| open.peer == most);
    let idle = theirs().find(|(_, open)| open.busy.load(Ordering::Relaxed) == 0);
    idle.or_else(|| theirs().next()).map(|(at, _)| at)
}

/// A request that is being answered.
struct Busy(Arc<AtomicUsize>);

impl Busy {
    fn begin(busy: &Arc<AtomicUsize>) -> Self {
        busy.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(busy))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection whose client has its time to read an answer, and no longer.
struct Patient {
    stream: TcpStream,
    waits: Option<Pin<Box<Sleep>>>,
    not_read: IntCounter,
}

impl Patient {
    /// A write that does not go on fails once too much time has passed since the first of its answer that did not.
    fn within<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            return written;
        }
        let waits = self.waits.get_or_insert_with(|| Box::pin(sleep(PATIENCE)));
        std::task::ready!(waits.as_mut().poll(context));
        self.not_read.inc();
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Patient {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.within(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.within(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // All of an answer is written before it is flushed.
        self.waits = None;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Bytes that keep something until they are written.
struct Keeping<K> {
    bytes: Vec<u8>,
    _kept: K,
}

impl<K> AsRef<[u8]> for Keeping<K> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A page of metrics that several may be given.
struct SharedPage(Arc<Vec<u8>>);

impl AsRef<[u8]> for SharedPage {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// The page of metrics: one of now, or where many wait for their readers, the newest of those.
async fn page(state: &AdminState, shared: &ListenerState) -> Result<Bytes, prometheus::Error> {
    let pages = || shared.pages.lock().unwrap_or_else(PoisonError::into_inner);
    let newest = {
        let mut pages = pages();
        pages.retain(|page| page.strong_count() > 0);
        if pages.len() >= PAGES { pages.last().and_then(Weak::upgrade) } else { None }
    };
    let page = match newest {
        Some(page) => page,
        None => {
            let page = Arc::new(state.scraper.scrape().await?);
            pages().push(Arc::downgrade(&page));
            page
        }
    };
    Ok(Bytes::from_owner(SharedPage(page)))
}

async fn answer(
    request: Request<Incoming>,
    listener_kind: Listener,
    state: AdminState,
    shared: &ListenerState,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let answer = match (listener_kind, &parts.method, parts.uri.path()) {
        (Listener::Metrics, &Method::GET, "/metrics") => match page(&state, shared).await {
            Ok(text) => respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text),
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        },
        (Listener::Metrics, &Method::GET, "/healthz") => plain(StatusCode::OK, "ok"),
        // It is not ready before a policy is in force, nor once it drains.
        (Listener::Metrics, &Method::GET, "/readyz") if *state.stopping.borrow() => {
            plain(StatusCode::SERVICE_UNAVAILABLE, "stopping")
        }
        (Listener::Metrics, &Method::GET, "/readyz") => match state.governor.check_ready() {
            Ok(()) => plain(StatusCode::OK, "ready"),
            Err(why) => plain(StatusCode::SERVICE_UNAVAILABLE, why),
        },
        (Listener::Admin, _, _) if !local(&parts) => plain(StatusCode::FORBIDDEN, "the Host header is not local"),
        (Listener::Admin, &Method::GET, path @ ("/policy" | "/limits" | "/observed" | "/seen")) => {
            match Arc::clone(&shared.large).try_acquire_owned() {
                Ok(place) => {
                    let value = match path {
                        "/policy" => policy(&state),
                        "/observed" => json!(state.governor.observed()),
                        "/seen" => json!(state.governor.seen_response()),
                        _ => limits(&state).await,
                    };
                    let text = format!("{value:#}\n").into_bytes();
                    respond(StatusCode::OK, "application/json", Bytes::from_owner(Keeping { bytes: text, _kept: place }))
                }
                Err(_) => {
                    plain(StatusCode::SERVICE_UNAVAILABLE, &format!("{LARGE} such questions are being answered; ask again"))
                }
            }
        }
        (Listener::Admin, &Method::POST, "/explain") => match explained(&state, shared, body).await {
            Ok(answer) => match serde_json::to_value(&answer) {
                Ok(answer) => json(&answer),
                Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
            },
            Err((status, why)) => plain(status, &why),
        },
        (Listener::Admin, &Method::GET, "/log-level") => level(&state, None),
        (Listener::Admin, &Method::PUT, "/log-level") => match timeout(PATIENCE, Limited::new(body, 64).collect()).await {
            Ok(Ok(body)) => level(&state, Some(&String::from_utf8_lossy(&body.to_bytes()))),
            Ok(Err(_)) => plain(StatusCode::PAYLOAD_TOO_LARGE, "write one word: off, error, warn, info, debug or trace"),
            Err(_) => plain(StatusCode::REQUEST_TIMEOUT, "the word did not come in time"),
        },
        (Listener::Metrics, ..) => plain(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz"),
        (Listener::Admin, ..) => {
            plain(StatusCode::NOT_FOUND, "there are /policy, /limits, /observed, /seen, /explain (POST) and /log-level")
        }
    };
    Ok(answer)
}

async fn explained(
    state: &AdminState,
    shared: &ListenerState,
    body: Incoming,
) -> Result<explain::Explained, (StatusCode, String)> {
    explain::explain(&state.governor, state.capture.as_deref(), &shared.questions, body).await
}

fn policy(state: &AdminState) -> serde_json::Value {
    let in_force = state.governor.in_force();
    json!({
        "version": in_force.version,
        "ageSeconds": state.governor.freshness.age().as_secs_f64(),
        "policies": in_force.policies,
        "problems": in_force.problems,
        "sharedStore": shared_store(&state.governor),
    })
}

async fn limits(state: &AdminState) -> serde_json::Value {
    let in_force = arc_swap::Guard::into_inner(state.governor.in_force());
    let seen = state.governor.shared_usage(&in_force).await;
    json!({"limits": in_force.engine.limits(state.governor.now(), &seen)})
}

/// The state of the shared store; nothing where there is none.
fn shared_store(governor: &Governor) -> Option<serde_json::Value> {
    let store = governor.store().filter(|store| store.is_configured())?;
    let error = store.failure().map(|error| json!({"fault": error.fault.as_str(), "message": error.message}));
    Some(json!({"state": store.state(), "error": error}))
}

/// Returns true if the request names this machine, which a page of another origin cannot make it do.
fn local(parts: &http::request::Parts) -> bool {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let Ok(authority) = host.to_str().unwrap_or_default().parse::<http::uri::Authority>() else { return false };
    if authority.as_str().contains('@') {
        return false;
    }
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    (name == "localhost" || name.parse::<IpAddr>().is_ok()) && !parts.headers.contains_key(header::ORIGIN)
}

fn level(state: &AdminState, new: Option<&str>) -> Response<Full<Bytes>> {
    match (state.log_level)(new.map(str::trim)) {
        Ok(level) => plain(StatusCode::OK, &level),
        Err(error) => plain(StatusCode::BAD_REQUEST, &error),
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", format!("{text}\n").into_bytes())
}

fn json(value: &serde_json::Value) -> Response<Full<Bytes>> {
    respond(StatusCode::OK, "application/json", format!("{value:#}\n").into_bytes())
}

fn respond(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// The bytes that the kernel may keep for a connection of a small port, sent and received: of pages that are not taken, and of
/// what is not read yet. It doubles both, and they count as the pod's memory.
const KERNEL: (u32, u32) = (16 * 1024, 16 * 1024);

/// Binds an address of a small port, with an error that names the flag.
///
/// # Errors
/// The address cannot be bound.
pub async fn bind(address: &str, flag: &str) -> io::Result<TcpListener> {
    bind_with(address, flag, Some(KERNEL)).await
}

/// The same; with how much the kernel keeps of what is sent and received on each of its connections.
///
/// # Errors
/// The address cannot be bound.
pub async fn bind_with(address: &str, flag: &str, kept: Option<(u32, u32)>) -> io::Result<TcpListener> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{flag} {address}: {error}; name another address with {flag}"));
    let mut failed = io::Error::new(io::ErrorKind::InvalidInput, "it is no address");
    for address in tokio::net::lookup_host(address).await.map_err(named)? {
        match listen(address, kept) {
            Ok(listener) => return Ok(listener),
            Err(error) => failed = error,
        }
    }
    Err(named(failed))
}

fn listen(address: SocketAddr, kept: Option<(u32, u32)>) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    if let Some((sent, received)) = kept {
        // Connections have what their listener has.
        socket.set_send_buffer_size(sent)?;
        socket.set_recv_buffer_size(received)?;
    }
    socket.bind(address)?;
    socket.listen(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_has_most_connections_makes_room_with_the_oldest_that_is_not_answered() {
        let open = |peer: &str, busy: usize| OpenConnection {
            peer: peer.parse().unwrap(),
            busy: Arc::new(AtomicUsize::new(busy)),
            task: tokio::spawn(async {}).abort_handle(),
        };
        let (a, b) = ("10.0.0.1", "10.0.0.2");
        assert_eq!(to_close(&[open(b, 0), open(a, 1), open(a, 0), open(a, 0)]), Some(2));
        assert_eq!(to_close(&[open(b, 0), open(a, 1), open(a, 1)]), Some(1));
        assert_eq!(to_close(&[]), None);
    }
}
