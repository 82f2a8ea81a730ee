//! The program against the operator's own policy stream: real TLS and HTTP/2 on loopback, and an API server that is a function.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    process::Stdio,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use data_encoding::BASE64URL_NOPAD;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpListener,
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use toolweir_crds::{read_documents, resource::PolicyStatus};
use toolweir_engine::{CompileOptions, PolicyId};
use toolweir_operator::{
    approvals::service::ApprovalService,
    auth::TokenReviewer,
    cluster_state::ClusterState,
    index::{ClusterEvent, Pod, PodKey, PolicyEntry},
    inject::NamespaceInfo,
    operator_metrics::OperatorMetrics,
    shared_store::health::SidecarStore,
    stream::{StreamBounds, StreamServer},
};

const SIDECARS: usize = 50;
const SERVER_NAME: &str = "toolweir-operator.toolweir-system.svc";

/// An API server that takes every token for that of the pod which the token names.
#[derive(Clone)]
struct ApiServer;

impl tower_service::Service<Request<kube::client::Body>> for ApiServer {
    type Response = Response<kube::client::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        Box::pin(async move {
            let review: Value = serde_json::from_slice(&request.into_body().collect().await.unwrap().to_bytes()).unwrap();
            let claims = review["spec"]["token"].as_str().unwrap().split('.').nth(1).unwrap().to_owned();
            let claims: Value = serde_json::from_slice(&BASE64URL_NOPAD.decode(claims.as_bytes()).unwrap()).unwrap();
            let pod = claims["pod"].as_str().unwrap();
            let extra = json!({
                "authentication.kubernetes.io/pod-name": [pod],
                "authentication.kubernetes.io/pod-uid": [format!("uid-{pod}")],
            });
            let body = json!({
                "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}, "spec": {},
                "status": {
                    "authenticated": true, "audiences": ["toolweir"],
                    "user": {"username": "system:serviceaccount:agents:default", "extra": extra},
                },
            });
            Ok(Response::builder().status(201).body(kube::client::Body::from(body.to_string().into_bytes())).unwrap())
        })
    }
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn pem(authority: &CertifiedIssuer<'static, KeyPair>) -> String {
    let text = data_encoding::BASE64.encode(authority.der());
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

fn acceptor(authority: &CertifiedIssuer<'static, KeyPair>) -> TlsAcceptor {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new([SERVER_NAME.to_owned()]).unwrap().signed_by(&key, authority).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

/// The operator's side of the streams.
struct Operator {
    world: Arc<ClusterState>,
    address: SocketAddr,
    streams: StreamServer,
    task: JoinHandle<()>,
    _stop: watch::Sender<bool>,
    trust: watch::Sender<Arc<str>>,
    _store: watch::Sender<SidecarStore>,
}

fn pod_name(number: usize) -> String {
    format!("pod-{number}")
}

impl Operator {
    async fn start(authority: &CertifiedIssuer<'static, KeyPair>) -> Self {
        let metrics = OperatorMetrics::new().unwrap();
        let world = Arc::new(ClusterState::new(metrics.state.clone(), CompileOptions::default()));
        world.apply(ClusterEvent::Namespaces(BTreeMap::from([("agents".to_owned(), NamespaceInfo::default())])));
        let pods = (0..SIDECARS).map(|number| {
            let pod = Pod { uid: format!("uid-{}", pod_name(number)), injected: true, ..Pod::default() };
            (PodKey { namespace: "agents".to_owned(), name: pod_name(number) }, pod)
        });
        world.apply(ClusterEvent::Pods(pods.collect()));
        world.apply(ClusterEvent::Policies { cluster: false, all: BTreeMap::new() });
        world.apply(ClusterEvent::Policies { cluster: true, all: BTreeMap::new() });
        world.apply(ClusterEvent::AllPins(BTreeMap::new()));
        let (trust, trusted) = watch::channel(Arc::from(pem(authority)));
        let (stop, stopping) = watch::channel(false);
        let reviewer = TokenReviewer::new(kube::Client::new(ApiServer, "default"));
        // Nobody denies anything here.
        let (no_store, store) = watch::channel(SidecarStore::Nowhere);
        let (reports, _) = tokio::sync::mpsc::channel(1);
        let streams = StreamServer {
            approvals: Arc::new(ApprovalService::new(None, metrics.approvals.clone())),
            state: Arc::clone(&world),
            reviewer,
            trust: trusted,
            store,
            reports,
            stopping,
            bounds: Arc::new(StreamBounds::default()),
            metrics: metrics.stream.clone(),
            events: metrics.events.clone(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(serve(listener, acceptor(authority), streams.clone()));
        Self { world, address, streams, task, _stop: stop, trust, _store: no_store }
    }

    /// The listener and every connection go, and come back at the same address with another certificate.
    async fn restart(&mut self, authority: &CertifiedIssuer<'static, KeyPair>) {
        self.task.abort();
        let _ = (&mut self.task).await;
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.task = tokio::spawn(serve(listener, acceptor(authority), self.streams.clone()));
    }

    fn change(&self, generation: i64) {
        let text = format!(
            "{{apiVersion: toolweir.dev/v1alpha1, kind: MCPPolicy, metadata: {{name: p, namespace: agents}}, \
             spec: {{servers: [{{name: s, url: 'http://s/{generation}'}}]}}}}"
        );
        let document = read_documents("test", &text).unwrap().remove(0).document;
        let entry =
            PolicyEntry::new("policy-uid".to_owned(), generation, document, PolicyStatus::default(), &CompileOptions::default());
        self.world.apply(ClusterEvent::Policy(entry.policy.id.clone(), Box::new(entry)));
    }

    fn delete(&self) {
        self.world.apply(ClusterEvent::PolicyGone(PolicyId {
            cluster: false,
            namespace: "agents".to_owned(),
            name: "p".to_owned(),
        }));
    }

    /// How many pods enforce the policy, as a status would say it.
    fn enforcing(&self) -> i32 {
        let index = self.world.index();
        self.world.acks().tally(&index)["policy-uid"].acknowledged
    }

    async fn all_enforce(&self) {
        let mut changes = self.world.changes();
        while self.enforcing() < i32::try_from(SIDECARS).unwrap() {
            timeout(Duration::from_secs(60), changes.changed()).await.expect("acknowledgements").unwrap();
        }
    }
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, streams: StreamServer) {
    // Dropped with this task, and every connection with it.
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (acceptor, streams) = (acceptor.clone(), streams.clone());
        connections.spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(move |request| {
                let streams = streams.clone();
                async move { Ok::<_, Infallible>(streams.answer(request).await) }
            });
            let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("changes-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct Simulator {
    child: Child,
    commands: ChildStdin,
    events: Lines<BufReader<ChildStdout>>,
}

impl Simulator {
    fn start(folder: &Folder, operator: SocketAddr, authorities: &str) -> Self {
        let token = |number: usize| {
            let claims = BASE64URL_NOPAD.encode(json!({"pod": pod_name(number)}).to_string().as_bytes());
            json!({"pod": format!("agents/{}", pod_name(number)), "token": format!("e30.{claims}.c2ln")}).to_string()
        };
        let tokens: Vec<String> = (0..SIDECARS).map(token).collect();
        let mut child = Command::new(env!("CARGO_BIN_EXE_toolweir-test-simulator"))
            .args(["--connect", &operator.to_string(), "--server-name", SERVER_NAME, "--spread", "200", "--ca"])
            .arg(folder.write("ca.pem", authorities))
            .arg("--tokens")
            .arg(folder.write("tokens", &tokens.join("\n")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (commands, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, commands, events: BufReader::new(stdout).lines() }
    }

    async fn event(&mut self, name: &str) -> Value {
        let line = timeout(Duration::from_secs(60), self.events.next_line()).await.expect("an event").unwrap().expect("no end");
        let event: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&event["event"], &event["count"]), (&json!(name), &json!(SIDECARS)), "{event}");
        event
    }

    async fn report(&mut self) -> Value {
        self.commands.write_all(b"report\n").await.unwrap();
        self.event("report").await
    }
}

fn now() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

#[tokio::test(flavor = "current_thread")]
async fn every_change_is_told_once_all_have_acknowledged_it() {
    let (folder, first) = (Folder::new(), authority());
    let mut operator = Operator::start(&first).await;
    let mut simulator = Simulator::start(&folder, operator.address, &pem(&first));
    let connected = simulator.event("connected").await;
    assert!(connected["version"].is_string(), "{connected}");
    let mut before = connected["version"].clone();
    for generation in 1..=3 {
        let changed = now();
        operator.change(generation);
        let event = simulator.event("acknowledged").await;
        assert_ne!(event["version"], before);
        before = event["version"].clone();
        let [first, middle, last] = ["first_ms", "median_ms", "last_ms"].map(|key| event[key].as_u64().unwrap());
        assert!(changed <= first && first <= middle && middle <= last && last <= now(), "{changed} {event}");
        let at = event["at"].as_str().unwrap();
        assert!(at.starts_with("20") && at.ends_with(&format!("{:03}Z", last % 1000)), "{at}");
        operator.all_enforce().await;
    }
    let report = simulator.report().await;
    assert_eq!((&report["open"], &report["reconnects"], &report["lost"]), (&json!(SIDECARS), &json!(0), &json!({})), "{report}");
    assert_eq!(report["acknowledgements"], json!(4 * SIDECARS));
    assert_eq!(report["versions"], json!({before.as_str().unwrap(): SIDECARS}));

    // Another authority, which all are told of, and which the next certificate is of. Who comes back has what it had: the next
    // event is that of the next change.
    let second = authority();
    operator.trust.send(Arc::from(format!("{}{}", pem(&first), pem(&second)))).unwrap();
    operator.change(4);
    simulator.event("acknowledged").await;
    operator.restart(&second).await;
    operator.all_enforce().await;
    operator.delete();
    assert_eq!(simulator.event("acknowledged").await["version"], connected["version"]);
    let report = simulator.report().await;
    assert_eq!((&report["open"], &report["reconnects"]), (&json!(SIDECARS), &json!(SIDECARS)), "{report}");

    drop(simulator.commands);
    assert!(timeout(Duration::from_secs(10), simulator.child.wait()).await.expect("an end").unwrap().success());
}
