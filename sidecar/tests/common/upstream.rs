//! An MCP server that answers as a test scripts it and records every request.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{mpsc, oneshot},
};
use tokio_rustls::TlsAcceptor;

use super::{result, until, within};

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: Method,
    pub path: String,
    pub version: Version,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Which connection it came on.
    pub connection: usize,
}

impl Seen {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// A header's value; empty when it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// The answer to a request.
pub enum Reply {
    Now(Response<Body>),
    Later(Pin<Box<dyn Future<Output = Response<Body>> + Send>>),
}

impl Reply {
    /// An answer that is given whole.
    pub fn new(status: u16, kind: &str, body: impl Into<Bytes>) -> Self {
        let body = Full::new(body.into()).map_err(|never| match never {}).boxed_unsync();
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        if !kind.is_empty() {
            response.headers_mut().insert("content-type", kind.parse().unwrap());
        }
        Self::Now(response)
    }

    pub fn json(body: impl Into<Bytes>) -> Self {
        Self::new(200, "application/json", body)
    }

    /// An answer without a body.
    pub fn status(status: u16) -> Self {
        Self::new(status, "", "")
    }

    /// No answer. The sender is dropped when the request is given up.
    pub fn hang(given_up: oneshot::Sender<()>) -> Self {
        Self::Later(Box::pin(async move {
            let _given_up = given_up;
            std::future::pending().await
        }))
    }

    /// An answer that waits for a signal.
    pub fn after(self, signal: oneshot::Receiver<()>) -> Self {
        Self::Later(Box::pin(async move {
            let _ = signal.await;
            match self {
                Self::Now(response) => response,
                Self::Later(response) => response.await,
            }
        }))
    }

    /// An answer whose body comes bit by bit.
    pub fn stream(kind: &str) -> (Self, Feed) {
        let (sender, receiver) = mpsc::channel(1);
        let mut response = Response::new(Fed(receiver).boxed_unsync());
        response.headers_mut().insert("content-type", kind.parse().unwrap());
        (Self::Now(response), Feed(sender))
    }

    /// An event stream whose events come bit by bit.
    pub fn events() -> (Self, Feed) {
        Self::stream("text/event-stream")
    }

    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        if let Self::Now(response) = &mut self {
            response.headers_mut().append(name, value.parse().unwrap());
        }
        self
    }
}

/// Feeds the body of an answer.
pub struct Feed(mpsc::Sender<io::Result<Bytes>>);

/// A body that is fed.
struct Fed(mpsc::Receiver<io::Result<Bytes>>);

impl hyper::body::Body for Fed {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}

impl Feed {
    pub async fn send(&self, text: &str) {
        within("the body", self.0.send(Ok(Bytes::from(text.to_owned())))).await.expect("the body is not read any more");
    }

    /// Sends a piece, however long it takes to be read; false when nobody reads any more.
    pub async fn try_send(&self, text: &str) -> bool {
        self.0.send(Ok(Bytes::from(text.to_owned()))).await.is_ok()
    }

    /// Breaks the body off.
    pub async fn break_off(self) {
        within("the body", self.0.send(Err(io::Error::other("broken off")))).await.unwrap();
    }

    /// Waits until nobody reads the body any more.
    pub async fn given_up(&self) {
        within("the end of the body's reader", self.0.closed()).await;
    }
}

type Script = dyn Fn(&Seen) -> Reply + Send + Sync;

struct Shared {
    script: Box<Script>,
    seen: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
}

/// A running server.
#[derive(Clone)]
pub struct Upstream {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

impl Upstream {
    pub async fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(None, script).await
    }

    /// The same with TLS.
    pub async fn with_tls(acceptor: TlsAcceptor, script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(Some(acceptor), script).await
    }

    /// A server that answers every call.
    pub async fn bank() -> Self {
        Self::start(|seen| Reply::json(result(&seen.json()["id"].to_string()))).await
    }

    #[expect(clippy::unused_async, reason = "as its callers, which every test awaits")]
    async fn listen(acceptor: Option<TlsAcceptor>, script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        // What the kernel keeps of an answer that nobody reads is not what a test looks for.
        socket.set_send_buffer_size(32 * 1024).unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let listener = socket.listen(1024).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared { script: Box::new(script), seen: Mutex::default(), connections: AtomicUsize::new(0) });
        let upstream = Self { address, shared: Arc::clone(&shared) };
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let number = shared.connections.fetch_add(1, Ordering::SeqCst);
                let (shared, acceptor) = (Arc::clone(&shared), acceptor.clone());
                tokio::spawn(async move {
                    match acceptor {
                        None => serve(stream, number, shared).await,
                        // A client that does not trust the certificate goes away.
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                serve(stream, number, shared).await;
                            }
                        }
                    }
                });
            }
        });
        upstream
    }

    /// The url for a policy.
    pub fn url(&self) -> String {
        format!("http://{}/mcp", self.address)
    }

    /// A server whose answers all come bit by bit, each from a feed.
    pub async fn streaming(kind: &'static str) -> (Self, mpsc::UnboundedReceiver<Feed>) {
        let (feeds, opened) = mpsc::unbounded_channel();
        let upstream = Self::start(move |_| {
            let (reply, feed) = Reply::stream(kind);
            feeds.send(feed).unwrap();
            reply
        });
        (upstream.await, opened)
    }

    /// A server of HTTP+SSE that takes every POST, and answers a GET with events from a feed.
    pub async fn legacy() -> (Self, mpsc::UnboundedReceiver<Feed>) {
        let (feeds, opened) = mpsc::unbounded_channel();
        let upstream = Self::start(move |seen| {
            if seen.method == "POST" {
                return Reply::status(202);
            }
            let (reply, feed) = Reply::events();
            feeds.send(feed).unwrap();
            reply
        });
        (upstream.await, opened)
    }

    /// The requests that came.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// The only request that came.
    pub fn only(&self) -> Seen {
        let seen = self.seen();
        assert_eq!(seen.len(), 1, "{seen:#?}");
        seen[0].clone()
    }

    /// Waits until this many requests have come.
    pub async fn saw(&self, count: usize) {
        until("the server's requests", async || self.seen().len() >= count).await;
    }

    /// The number of connections that were opened.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, number: usize, shared: Arc<Shared>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let shared = Arc::clone(&shared);
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            let path = parts.uri.path_and_query().map_or_else(String::new, ToString::to_string);
            let seen =
                Seen { method: parts.method, path, version: parts.version, headers: parts.headers, body, connection: number };
            shared.seen.lock().unwrap().push(seen.clone());
            match (shared.script)(&seen) {
                Reply::Now(response) => Ok::<_, Infallible>(response),
                Reply::Later(response) => Ok(response.await),
            }
        }
    });
    // A client may go away at any time.
    let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}

/// A server that speaks no HTTP of its own: it reads one request of each connection, and says and does what it is told.
pub struct Raw {
    pub address: SocketAddr,
    received: Arc<Mutex<Vec<u8>>>,
}

/// The behaviour of a [`Raw`] server.
#[derive(Clone)]
pub enum Deed {
    /// Sends these bytes and closes the connection.
    Say(Vec<u8>),
    /// Sends these bytes and keeps the connection.
    Keep(Vec<u8>),
}

impl Raw {
    pub async fn start(deed: Deed) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let received: Arc<Mutex<Vec<u8>>> = Arc::default();
        let raw = Self { address, received: Arc::clone(&received) };
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(answer(stream, deed.clone(), Arc::clone(&received)));
            }
        });
        raw
    }

    pub fn url(&self) -> String {
        format!("http://{}/mcp", self.address)
    }

    /// Every byte that came.
    pub fn received(&self) -> Vec<u8> {
        self.received.lock().unwrap().clone()
    }
}

async fn answer(mut stream: TcpStream, deed: Deed, received: Arc<Mutex<Vec<u8>>>) {
    let mut request = Vec::new();
    while !whole(&request) {
        let mut buffer = [0; 4096];
        let Ok(count @ 1..) = stream.read(&mut buffer).await else { return };
        request.extend_from_slice(&buffer[..count]);
        received.lock().unwrap().extend_from_slice(&buffer[..count]);
    }
    let (Deed::Say(bytes) | Deed::Keep(bytes)) = &deed;
    let _ = stream.write_all(bytes).await;
    if matches!(deed, Deed::Keep(_)) {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        received.lock().unwrap().extend_from_slice(&rest);
    }
}

/// Returns true if a request, head and body, has come whole.
fn whole(request: &[u8]) -> bool {
    let Some(end) = request.windows(4).position(|four| four == b"\r\n\r\n") else { return false };
    let head = String::from_utf8_lossy(&request[..end]).to_ascii_lowercase();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length:")).map_or(0, |text| text.trim().parse().unwrap());
    request.len() >= end + 4 + length
}
