//! A fake API server with the real port-forward protocol, and a real sidecar behind it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(dead_code, reason = "each test uses its part")]

pub mod approval_objects;
pub mod mcp_server;
pub mod tool_source;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    convert::Infallible,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, handshake::derive_accept_key, protocol::Role},
};
use toolweir_sidecar::{
    approvals::AskSettings,
    credentials::keys::KeyFolders,
    proxy::Limits,
    run::{self, PolicySource, RunConfig},
};

type Body = BoxBody<Bytes, Infallible>;

/// What the API server knows.
#[derive(Default)]
pub struct ClusterState {
    pub policies: Vec<Value>,
    pub cluster_policies: Vec<Value>,
    pub pins: Vec<Value>,
    pub namespaces: Vec<Value>,
    pub pods: Vec<Value>,
    pub approvals: approval_objects::ApprovalObjects,
    /// What each pod has logged so far.
    pub logs: HashMap<String, Vec<String>>,
    /// What comes of a pod's log, for each time that it is followed.
    pub followed: HashMap<String, VecDeque<mpsc::UnboundedReceiver<String>>>,
    /// What comes of the watch of the pods.
    pub watched: Option<mpsc::UnboundedReceiver<String>>,
    /// Where a port of a pod leads.
    pub ports: HashMap<(String, u16), SocketAddr>,
    /// Verb and resource that nobody may.
    pub forbidden: HashSet<(&'static str, &'static str)>,
    /// Every request, by path and query.
    pub seen: Vec<String>,
}

/// A server of it.
#[derive(Clone, Default)]
pub struct ApiServer(pub Arc<Mutex<ClusterState>>);

impl ApiServer {
    pub fn client(&self) -> kube::Client {
        kube::Client::new(self.clone(), "agents")
    }

    pub fn change(&self, change: impl FnOnce(&mut ClusterState)) {
        change(&mut self.0.lock().unwrap());
    }

    pub fn seen(&self, what: &str) -> Vec<String> {
        self.0.lock().unwrap().seen.iter().filter(|request| request.contains(what)).cloned().collect()
    }
}

impl tower_service::Service<Request<kube::client::Body>> for ApiServer {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        Poll::Ready(Ok(()))
    }

    /// Each request over a connection of its own, in memory: a port-forward takes it over.
    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let world = Arc::clone(&self.0);
        Box::pin(async move {
            let (near, far) = tokio::io::duplex(64 * 1024);
            let service = service_fn(move |request| {
                let world = Arc::clone(&world);
                async move {
                    let answered = if request.method() == http::Method::GET {
                        answer(&world, request)
                    } else {
                        answer_write(&world, request).await
                    };
                    Ok::<_, Infallible>(answered)
                }
            });
            let serve = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(far), service).with_upgrades();
            tokio::spawn(serve);
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(near)).await?;
            tokio::spawn(connection.with_upgrades());
            sender.send_request(request).await
        })
    }
}

fn text(status: u16, body: impl Into<Bytes>) -> Response<Body> {
    Response::builder().status(status).body(Full::new(body.into()).boxed()).unwrap()
}

fn refuse(code: u16, message: &str) -> Response<Body> {
    let status =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "code": code});
    text(code, status.to_string())
}

/// A page of two objects, and where the next begins.
fn page(all: &[Value], query: &str) -> Response<Body> {
    let start: usize = query.split('&').find_map(|pair| pair.strip_prefix("continue=")).map_or(0, |token| token.parse().unwrap());
    let items: Vec<&Value> = all.iter().skip(start).take(2).collect();
    let more = if start + 2 < all.len() { (start + 2).to_string() } else { String::new() };
    text(200, json!({"metadata": {"resourceVersion": "1", "continue": more}, "items": items}).to_string())
}

fn stream(mut lines: mpsc::UnboundedReceiver<String>) -> Response<Body> {
    let frames = futures_util::stream::poll_fn(move |context| {
        lines.poll_recv(context).map(|line| line.map(|line| Ok::<_, Infallible>(Frame::data(Bytes::from(line + "\n")))))
    });
    Response::new(BodyExt::boxed(StreamBody::new(frames)))
}

/// A stream of which nothing comes.
fn silence() -> Response<Body> {
    let frames = futures_util::stream::pending::<Result<Frame<Bytes>, Infallible>>();
    Response::new(BodyExt::boxed(StreamBody::new(frames)))
}

fn in_namespace<'a>(all: &'a [Value], namespace: Option<&str>) -> Vec<Value> {
    let own = |object: &&'a Value| namespace.is_none_or(|namespace| object["metadata"]["namespace"] == namespace);
    all.iter().filter(own).cloned().collect()
}

fn answer(world: &Mutex<ClusterState>, request: Request<Incoming>) -> Response<Body> {
    let mut world = world.lock().unwrap();
    let (path, query) = (request.uri().path().to_owned(), request.uri().query().unwrap_or_default().to_owned());
    world.seen.push(format!("{path}?{query}"));
    let path = path.strip_prefix("/apis/toolweir.dev/v1alpha1/").or_else(|| path.strip_prefix("/api/v1/")).unwrap_or_default();
    let parts: Vec<&str> = path.split('/').collect();
    let (namespace, parts) = match parts.as_slice() {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some(*namespace), rest.to_vec()),
        parts => (None, parts.to_vec()),
    };
    let watch = query.contains("watch=true");
    let (verb, resource) = match parts.as_slice() {
        [resource] if watch => ("watch", (*resource).to_owned()),
        [resource] => ("list", (*resource).to_owned()),
        [resource, _] => ("get", (*resource).to_owned()),
        [resource, _, sub] => ("get", format!("{resource}/{sub}")),
        other => panic!("{other:?}"),
    };
    if world.forbidden.iter().any(|(v, r)| *v == verb && *r == resource) {
        return refuse(403, &format!("{resource} is forbidden: User \"eve\" cannot {verb} resource \"{resource}\""));
    }
    let named =
        |all: &[Value], name: &str| in_namespace(all, namespace).into_iter().find(|object| object["metadata"]["name"] == name);
    let missing = |name: &str| refuse(404, &format!("{resource} \"{name}\" not found"));
    match parts.as_slice() {
        ["mcpapprovals"] if watch => world.approvals.watched.pop_front().map_or_else(silence, stream),
        ["mcpapprovals"] => page(&in_namespace(&world.approvals.objects, namespace), &query),
        ["mcpapprovals", name] => {
            named(&world.approvals.objects, name).map_or_else(|| missing(name), |found| text(200, found.to_string()))
        }
        ["pods"] if watch => world.watched.take().map_or_else(silence, stream),
        ["mcppolicies"] => page(&in_namespace(&world.policies, namespace), &query),
        ["mcpclusterpolicies"] => page(&world.cluster_policies, &query),
        ["namespaces"] => page(&world.namespaces, &query),
        ["pods"] => page(&in_namespace(&world.pods, namespace), &query),
        ["namespaces", name] => {
            named(&world.namespaces, name).map_or_else(|| missing(name), |found| text(200, found.to_string()))
        }
        ["mcptoolpins", name] => named(&world.pins, name).map_or_else(|| missing(name), |found| text(200, found.to_string())),
        ["pods", name] => named(&world.pods, name).map_or_else(|| missing(name), |found| text(200, found.to_string())),
        ["pods", name, "log"] if query.contains("follow=true") => {
            world.followed.get_mut(*name).and_then(VecDeque::pop_front).map_or_else(silence, stream)
        }
        // That of the run before a restart stands under its own name.
        ["pods", name, "log"] if query.contains("previous=true") => match world.logs.get(&format!("{name} previous")) {
            Some(lines) => text(200, lines.iter().map(|line| format!("{line}\n")).collect::<String>()),
            None => refuse(400, "previous terminated container \"toolweir-sidecar\" not found"),
        },
        ["pods", name, "log"] => match world.logs.get(*name) {
            Some(lines) => text(200, lines.iter().map(|line| format!("{line}\n")).collect::<String>()),
            None => missing(name),
        },
        ["pods", name, "portforward"] => {
            let port: u16 = query.split_once("ports=").unwrap().1.parse().unwrap();
            port_forward(request, port, world.ports.get(&((*name).to_owned(), port)).copied())
        }
        other => panic!("{other:?}"),
    }
}

/// Answers what is written, and what is asked with a body.
async fn answer_write(world: &Mutex<ClusterState>, request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    if head.uri.path().ends_with("/portforward") {
        return answer(world, Request::from_parts(head, body));
    }
    let body: Value = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
    let mut world = world.lock().unwrap();
    world.seen.push(format!("{} {}", head.method, head.uri.path()));
    let path: Vec<&str> = head.uri.path().split('/').collect();
    let resource = if path.contains(&"mcpapprovals") { "mcpapprovals/status" } else { path.last().unwrap() };
    let verb = if head.method == http::Method::PATCH { "patch" } else { "create" };
    if world.forbidden.contains(&(verb, resource)) {
        return refuse(403, &format!("{resource} is forbidden: User \"eve\" cannot {verb} resource \"{resource}\""));
    }
    match path.as_slice() {
        ["", "apis", "authentication.k8s.io", "v1", "selfsubjectreviews"] => text(201, world.approvals.review().to_string()),
        ["", "apis", "authorization.k8s.io", "v1", "selfsubjectaccessreviews"] => {
            text(201, world.approvals.access(&body).to_string())
        }
        ["", "apis", "toolweir.dev", "v1alpha1", "namespaces", namespace, "mcpapprovals", name, "status"] => {
            assert_eq!(head.headers["content-type"], "application/merge-patch+json");
            match world.approvals.patch_status(namespace, name, &body) {
                Ok(object) => text(200, object.to_string()),
                Err((code, message)) => refuse(code, &message),
            }
        }
        other => panic!("{other:?}"),
    }
}

/// The server's side of a port-forward: data on channel 0, what is wrong on channel 1, each begun with the port.
fn port_forward(mut request: Request<Incoming>, port: u16, to: Option<SocketAddr>) -> Response<Body> {
    let key = request.headers()["sec-websocket-key"].clone();
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let socket = TokioIo::new(upgrade.await.unwrap());
        let mut socket = WebSocketStream::from_raw_socket(socket, Role::Server, None).await;
        let [low, high] = port.to_le_bytes();
        for channel in [0, 1] {
            socket.send(Message::binary(vec![channel, low, high])).await.unwrap();
        }
        let Some(to) = to else {
            socket.send(Message::binary(b"\x01connection refused".to_vec())).await.unwrap();
            while let Some(Ok(_)) = socket.next().await {}
            return;
        };
        let (mut reader, mut writer) = TcpStream::connect(to).await.unwrap().into_split();
        let mut buffer = vec![0; 4096];
        loop {
            tokio::select! {
                message = socket.next() => match message {
                    Some(Ok(Message::Binary(bytes))) => writer.write_all(&bytes[1..]).await.unwrap(),
                    Some(Ok(_)) => {}
                    _ => return,
                },
                read = reader.read(&mut buffer) => match read {
                    Ok(0) | Err(_) => return,
                    Ok(read) => {
                        let mut bytes = vec![0];
                        bytes.extend_from_slice(&buffer[..read]);
                        let _ = socket.send(Message::binary(bytes)).await;
                    }
                },
            }
        }
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-accept", derive_accept_key(key.as_bytes()))
        .header("sec-websocket-protocol", "v4.channel.k8s.io")
        .body(Full::default().boxed())
        .unwrap()
}

/// A pod; with a sidecar, one that runs.
pub fn pod(namespace: &str, name: &str, sidecar: bool) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "uid": format!("uid-{name}"), "labels": {"app": "social"}, "resourceVersion": "1"},
        "spec": {"containers": [{"name": "agent"}]},
        "status": {"phase": "Running"},
    });
    if sidecar {
        pod["spec"]["initContainers"] = json!([{"name": "toolweir-sidecar"}]);
        pod["status"]["initContainerStatuses"] = json!([{
            "name": "toolweir-sidecar", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}},
        }]);
    }
    pod
}

/// A real sidecar, and the file of its policy.
pub struct RunningSidecar {
    pub sidecar: run::Sidecar,
    path: PathBuf,
}

impl Drop for RunningSidecar {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Starts one with the text of a policy.
pub async fn sidecar(policy: &str) -> RunningSidecar {
    static NUMBER: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path: PathBuf = std::env::temp_dir().join(format!("kubectl-toolweir-{}-{number}.yaml", std::process::id()));
    std::fs::write(&path, policy).unwrap();
    let free = || "127.0.0.1:0".to_owned();
    let config = RunConfig {
        source: PolicySource::Local(path.clone()),
        mcp_config: None,
        listen: free(),
        metrics_listen: free(),
        admin_listen: free(),
        upstream_ca: None,
        extra_roots: Vec::new(),
        state: None,
        upstream_proxy: None,
        capture: None,
        credentials: KeyFolders::default(),
        limits: Limits::default(),
        counters: 100,
        workers: 1,
        allowed_hosts: Vec::new(),
        drain: std::time::Duration::from_secs(1),
        shared_store: None,
        options: toolweir_engine::CompileOptions::default(),
        approvals: AskSettings::default(),
    };
    let sidecar = run::start(&config, Arc::new(|_| Ok("info".to_owned())), Box::new(std::io::sink())).await.unwrap();
    RunningSidecar { sidecar, path }
}

/// What a command writes, also while it runs.
#[derive(Clone, Debug, Default)]
pub struct SharedBuffer(Arc<Mutex<Vec<u8>>>);

impl SharedBuffer {
    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// Waits until it has this many lines.
    pub async fn lines(&self, many: usize) -> Vec<String> {
        for _ in 0..1000 {
            let lines: Vec<String> = self.text().lines().map(str::to_owned).collect();
            if lines.len() >= many {
                return lines;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("{}", self.text());
    }
}

impl std::io::Write for SharedBuffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
