//! MCP servers that are functions: what a good one lists, and what a bad one does instead.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::mpsc,
};

type ReplyBody = BoxBody<Bytes, Infallible>;

/// A request, as a server sees it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Seen {
    /// The method of JSON-RPC.
    pub fn rpc(&self) -> &str {
        self.body["method"].as_str().unwrap_or_default()
    }

    /// An answer in JSON.
    pub fn result(&self, result: &Value) -> Reply {
        json_reply(200, &json!({"jsonrpc": "2.0", "id": self.body["id"], "result": result}))
    }
}

/// What a server answers.
pub enum Reply {
    Now(Response<ReplyBody>),
    Never,
}

pub fn text_reply(status: u16, kind: &str, body: &str) -> Reply {
    let response = Response::builder().status(status).header("content-type", kind);
    Reply::Now(response.body(Full::new(Bytes::from(body.to_owned())).boxed()).unwrap())
}

pub fn json_reply(status: u16, body: &Value) -> Reply {
    text_reply(status, "application/json", &body.to_string())
}

/// A server that is a function of requests.
#[derive(Clone)]
pub struct McpServer {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl McpServer {
    pub async fn start(answer: impl Fn(&Seen) -> Reply + Clone + Send + Sync + 'static) -> Self {
        Self::start_with(answer, |stream| async { Some(stream) }).await
    }

    /// Starts one whose connections are prepared, such as by TLS.
    pub async fn start_with<S, F>(
        answer: impl Fn(&Seen) -> Reply + Clone + Send + Sync + 'static,
        prepare: impl Fn(tokio::net::TcpStream) -> F + Send + 'static,
    ) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Future<Output = Option<S>> + Send,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let noted = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Some(stream) = prepare(stream).await else { continue };
                let (answer, noted) = (answer.clone(), Arc::clone(&noted));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (answer, noted) = (answer.clone(), Arc::clone(&noted));
                    async move {
                        let (parts, body) = request.into_parts();
                        let body = body.collect().await.unwrap().to_bytes();
                        let seen = Seen {
                            method: parts.method.to_string(),
                            path: parts.uri.path().to_owned(),
                            headers: parts.headers,
                            body: serde_json::from_slice(&body).unwrap_or_default(),
                        };
                        noted.lock().unwrap().push(seen.clone());
                        match answer(&seen) {
                            Reply::Now(response) => Ok::<_, Infallible>(response),
                            Reply::Never => std::future::pending().await,
                        }
                    }
                });
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { address, seen }
    }

    pub fn url(&self) -> String {
        format!("http://{}/mcp", self.address)
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

/// The result of `initialize` of a server.
pub fn hello(capabilities: &Value) -> Value {
    json!({"protocolVersion": "2025-06-18", "capabilities": capabilities, "serverInfo": {"name": "acme/Mail", "version": "1"}})
}

/// Answers as a server of an earlier era; `list` gives the answer to tools/list.
pub fn legacy(
    list: impl Fn(&Seen) -> Reply + Clone + Send + Sync + 'static,
) -> impl Fn(&Seen) -> Reply + Clone + Send + Sync + 'static {
    move |seen| match (seen.method.as_str(), seen.rpc()) {
        ("POST", "initialize") => seen.result(&hello(&json!({"tools": {}}))),
        ("POST", "tools/list") => list(seen),
        ("POST", "server/discover") => text_reply(400, "text/plain", "Bad Request: no session"),
        ("POST", _) => text_reply(202, "text/plain", ""),
        ("DELETE", _) => text_reply(200, "text/plain", ""),
        _ => text_reply(405, "text/plain", ""),
    }
}

/// A server of HTTP+SSE, whose stream names an endpoint.
pub async fn sse_server(endpoint: &'static str, list: Value) -> McpServer {
    let events: Arc<Mutex<Option<mpsc::UnboundedSender<String>>>> = Arc::default();
    McpServer::start(move |seen| match (seen.method.as_str(), seen.path.as_str()) {
        ("GET", "/sse") => {
            let (sender, receiver) = mpsc::unbounded_channel();
            sender.send(format!(": hello\nevent: endpoint\ndata: {endpoint}\n\n")).unwrap();
            *events.lock().unwrap() = Some(sender);
            let frames = stream::unfold(receiver, |mut receiver| async {
                let text = receiver.recv().await?;
                Some((Ok::<_, Infallible>(Frame::data(Bytes::from(text))), receiver))
            });
            let response = Response::builder().header("content-type", "text/event-stream; charset=utf-8");
            Reply::Now(response.body(BodyExt::boxed(StreamBody::new(SyncStream(Box::pin(frames))))).unwrap())
        }
        ("POST", "/messages") => {
            let result = match seen.rpc() {
                "initialize" => Some(hello(&json!({"tools": {}}))),
                "tools/list" => Some(list.clone()),
                _ => None,
            };
            if let Some(result) = result {
                let answer = json!({"jsonrpc": "2.0", "id": seen.body["id"], "result": result});
                let text = format!("event: message\ndata: {answer}\n\n");
                events.lock().unwrap().as_ref().unwrap().send(text).unwrap();
            }
            text_reply(202, "text/plain", "Accepted")
        }
        _ => text_reply(404, "text/plain", "Not Found"),
    })
    .await
}

/// A stream that a body can hold.
struct SyncStream<S>(std::pin::Pin<Box<S>>);

impl<S: futures_util::Stream> futures_util::Stream for SyncStream<S> {
    type Item = S::Item;

    fn poll_next(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<S::Item>> {
        self.0.as_mut().poll_next(cx)
    }
}
