//! An operator that says what a test tells it to, over HTTP/2 with and without TLS.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{
    body::{Body, Frame, Incoming},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::mpsc,
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;
use toolweir_crds::{
    approval_request::ApprovalReport,
    read_documents,
    stream::{Ack, CredentialReport, DriftReport, PATH, Report},
};

use super::within;

/// The policies of a YAML text, as an operator sends them.
pub fn documents(yaml: &str) -> Vec<Value> {
    let read = read_documents("policy.yaml", yaml).unwrap();
    read.into_iter().map(|located| serde_json::to_value(located.document).unwrap()).collect()
}

struct Shared {
    acceptor: Mutex<Option<TlsAcceptor>>,
    /// The answer to who shows another token than `token`, or to everybody.
    status: Mutex<StatusCode>,
    token: Mutex<String>,
    refused: Mutex<Vec<String>>,
    opened: mpsc::UnboundedSender<Stream>,
}

pub struct Operator {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    opened: mpsc::UnboundedReceiver<Stream>,
    task: JoinHandle<()>,
}

impl Operator {
    /// One that lets in who shows this token. Without an acceptor it speaks without TLS.
    pub async fn start(acceptor: Option<TlsAcceptor>, token: &str) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), acceptor, token).await
    }

    /// The same, at an address that was one's before.
    pub async fn at(address: SocketAddr, acceptor: Option<TlsAcceptor>, token: &str) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let (sender, opened) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            acceptor: Mutex::new(acceptor),
            status: Mutex::new(StatusCode::OK),
            token: Mutex::new(token.to_owned()),
            refused: Mutex::default(),
            opened: sender,
        });
        let (address, all) = (listener.local_addr().unwrap(), Arc::clone(&shared));
        let task = tokio::spawn(async move {
            // Dropped with this task, and every connection with it.
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let shared = Arc::clone(&all);
                connections.spawn(async move {
                    let acceptor = shared.acceptor.lock().unwrap().clone();
                    match acceptor {
                        None => serve(stream, shared).await,
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                serve(stream, shared).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, shared, opened, task }
    }

    /// Waits for the next stream.
    pub async fn opened(&mut self) -> Stream {
        within("a stream", self.opened.recv()).await.unwrap()
    }

    /// Returns true if a stream is open that nobody has taken.
    pub fn has_opened(&mut self) -> bool {
        !self.opened.is_empty()
    }

    /// Shows another certificate from now on.
    pub fn show(&self, acceptor: TlsAcceptor) {
        *self.shared.acceptor.lock().unwrap() = Some(acceptor);
    }

    /// Takes this token alone from now on.
    pub fn take(&self, token: &str) {
        token.clone_into(&mut self.shared.token.lock().unwrap());
    }

    /// Answers everybody with this from now on.
    pub fn answer(&self, status: u16) {
        *self.shared.status.lock().unwrap() = StatusCode::from_u16(status).unwrap();
    }

    /// The tokens that were turned away.
    pub fn refused(&self) -> Vec<String> {
        self.shared.refused.lock().unwrap().clone()
    }

    /// Goes away, and all connections with it.
    pub async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, shared: Arc<Shared>) {
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(answer(request, &shared)) }
    });
    let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}

fn answer(request: Request<Incoming>, shared: &Shared) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    assert_eq!((request.method().as_str(), request.uri().path()), ("POST", PATH));
    let bearer = request.headers().get("authorization").map(|value| value.to_str().unwrap().to_owned());
    let token = bearer.and_then(|bearer| Some(bearer.strip_prefix("Bearer ")?.to_owned())).unwrap_or_default();
    let mut status = *shared.status.lock().unwrap();
    if status == StatusCode::OK && token != *shared.token.lock().unwrap() {
        status = StatusCode::UNAUTHORIZED;
    }
    if status != StatusCode::OK {
        shared.refused.lock().unwrap().push(token);
        let mut response = Response::new(Full::new(Bytes::from("no entry\n")).boxed_unsync());
        *response.status_mut() = status;
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert("retry-after", "1".parse().unwrap());
        }
        return response;
    }
    let (lines, fed) = mpsc::channel(1);
    let (sender, acks) = mpsc::unbounded_channel();
    let (reporter, reports) = mpsc::unbounded_channel();
    let (drifted, drift) = mpsc::unbounded_channel();
    let (asking, approvals) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let (mut body, mut held) = (request.into_body(), Vec::new());
        while let Some(Ok(frame)) = body.frame().await {
            held.extend_from_slice(&frame.into_data().unwrap());
            while let Some(end) = held.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = held.drain(..=end).collect();
                match serde_json::from_slice(&line).unwrap() {
                    Report::Ack(ack) => drop(sender.send(ack)),
                    Report::Credentials(report) => drop(reporter.send(report)),
                    Report::Drift(report) => drop(drifted.send(report)),
                    Report::Approvals(report) => drop(asking.send(report)),
                    Report::Denials(_) | Report::Interception(_) => {}
                }
            }
        }
    });
    let _ = shared.opened.send(Stream { token, lines, acks, reports, drift, approvals });
    Response::new(Fed(fed).boxed_unsync())
}

struct Fed(mpsc::Receiver<Bytes>);

impl Body for Fed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

/// A stream that a sidecar opened. Dropped, it ends.
pub struct Stream {
    /// The token that opened it.
    pub token: String,
    lines: mpsc::Sender<Bytes>,
    acks: mpsc::UnboundedReceiver<Ack>,
    reports: mpsc::UnboundedReceiver<CredentialReport>,
    drift: mpsc::UnboundedReceiver<DriftReport>,
    approvals: mpsc::UnboundedReceiver<ApprovalReport>,
}

impl Stream {
    /// Sends bytes as they are. False when nobody reads them any more.
    pub async fn raw(&self, bytes: impl Into<Bytes>) -> bool {
        within("the stream", self.lines.send(bytes.into())).await.is_ok()
    }

    pub async fn line(&self, line: &Value) {
        assert!(self.raw(format!("{line}\n")).await, "the stream is not read any more");
    }

    pub async fn snapshot(&self, version: &str, policies: &[Value]) {
        self.line(&json!({"snapshot": {"version": version, "policies": policies}})).await;
    }

    pub async fn trust(&self, certificates: &str) {
        self.line(&json!({"trust": {"certificates": certificates}})).await;
    }

    /// The next acknowledgement.
    pub async fn ack(&mut self) -> Ack {
        within("an acknowledgement", self.acks.recv()).await.expect("the stream has ended")
    }

    /// The next report of credentials.
    pub async fn report(&mut self) -> CredentialReport {
        within("a report of credentials", self.reports.recv()).await.expect("the stream has ended")
    }

    /// The next report of drift.
    pub async fn drift(&mut self) -> DriftReport {
        within("a report of drift", self.drift.recv()).await.expect("the stream has ended")
    }

    /// The next report of requests for approval.
    pub async fn approvals(&mut self) -> ApprovalReport {
        within("a report of approvals", self.approvals.recv()).await.expect("the stream has ended")
    }

    /// Returns true if a report of requests for approval has come that nobody has taken.
    pub fn has_approvals(&self) -> bool {
        !self.approvals.is_empty()
    }

    /// Sends a snapshot and waits until it is in force.
    pub async fn enforce(&mut self, version: &str, policies: &[Value]) -> Ack {
        self.snapshot(version, policies).await;
        let ack = self.ack().await;
        assert_eq!(ack.version, version);
        ack
    }

    /// Waits until the sidecar has given it up.
    pub async fn given_up(&self) {
        within("the end of the stream", self.lines.closed()).await;
    }
}
