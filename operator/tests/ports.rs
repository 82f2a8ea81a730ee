//! The ports as strangers find them: real sockets, with senders that are slow, many, silent or large, and an honest one that must be
//! answered all the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use toolweir_engine::CompileOptions;
use toolweir_operator::{
    admission::{AdmissionHandler, Intake},
    approvals::service::ApprovalService,
    client_ca::ClientCa,
    cluster_state::{ClusterState, StateMetrics},
    config::OperatorConfig,
    index::ClusterEvent,
    metrics::OperatorRegistry,
    namespaces::{NamespaceLookup, NamespaceResult},
    operator_metrics::OperatorMetrics,
    probes::ProbeHealth,
    response::plain_text,
    serve::{self, Port, PortMetrics, serve},
};

/// What an API server waits for unless the chart says otherwise.
const TIME_OUT: Duration = Duration::from_secs(5);
/// For what takes no time, on a machine that is busy.
const SOON: Duration = Duration::from_secs(30);

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn signed(issuer: &Authority, name: &str, usage: ExtendedKeyUsagePurpose) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![usage];
    let certificate = params.signed_by(&key, issuer).unwrap();
    (certificate.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).unwrap())
}

#[derive(Debug)]
struct Fixed(Arc<CertifiedKey>);

impl ResolvesServerCert for Fixed {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

struct Served {
    address: SocketAddr,
    authority: Authority,
    metrics: OperatorMetrics,
    stop: watch::Sender<bool>,
    done: tokio::task::JoinHandle<()>,
}

fn world(metrics: &StateMetrics) -> Arc<ClusterState> {
    let world = Arc::new(ClusterState::new(metrics.clone(), CompileOptions::default()));
    let labels = BTreeMap::from([("toolweir.dev/inject".to_owned(), "enabled".to_owned())]);
    world.apply(ClusterEvent::Namespaces(BTreeMap::from([("agents".to_owned(), labels.into())])));
    world
}

/// The webhooks on a port of their own, as the operator serves them.
async fn webhooks(clients: Option<Arc<ClientCa>>) -> Served {
    let metrics = OperatorMetrics::new().unwrap();
    let world = world(&metrics.state);
    let authority = authority();
    let (certificate, key) = signed(&authority, "operator", ExtendedKeyUsagePurpose::ServerAuth);
    let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
    let fixed = Arc::new(Fixed(Arc::new(CertifiedKey::new(vec![certificate], key))));
    let tls: Arc<ServerConfig> = serve::tls(fixed, Port::Webhooks, clients).unwrap();
    let (trust, trusted) = watch::channel(Arc::from("PEM"));
    let webhooks = AdmissionHandler {
        approvals: Arc::new(ApprovalService::new(None, metrics.approvals.clone())),
        state: Arc::clone(&world),
        intake: Arc::new(Intake::default()),
        metrics: metrics.admission.clone(),
        config: Arc::new(OperatorConfig::default()),
        namespace: Arc::from("toolweir-system"),
        stream_url: Arc::from("https://toolweir-operator.toolweir-system.svc:8444"),
        trust: trusted,
        namespaces: NamespaceLookup::with(|_| std::future::pending::<NamespaceResult>()),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopping) = watch::channel(false);
    let answer = move |request| {
        let _trust = &trust;
        webhooks.clone().answer(request)
    };
    let done = tokio::spawn(serve(listener, Port::Webhooks, Some(tls), answer, metrics.ports.clone(), stopping));
    Served { address, authority, metrics, stop, done }
}

impl Served {
    fn client(&self, protocol: &[u8], identity: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.der().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match identity {
            Some((certificate, key)) => builder.with_client_auth_cert(vec![certificate], key).unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![protocol.to_vec()];
        TlsConnector::from(Arc::new(config))
    }

    async fn connect(&self) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        self.client(b"http/1.1", None).connect(name, stream).await.unwrap()
    }

    /// A review on a connection of its own, by HTTP/1.1: status and body.
    async fn ask(&self, path: &str, body: impl Into<Bytes>) -> (StatusCode, String) {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(self.connect().await)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::post(path).header(header::HOST, "localhost").body(Full::new(body.into())).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn is_injected(&self) {
        let (status, answer) = timeout(TIME_OUT, self.ask("/inject", review("Pod", &pod()))).await.expect("an answer in time");
        assert_eq!(status, StatusCode::OK, "{answer}");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!((&answer["response"]["allowed"], answer["response"]["patch"].is_string()), (&json!(true), true));
    }

    async fn closed(&self, reason: &str, least: u64) {
        let port = Port::Webhooks.as_str();
        let count = || self.metrics.ports.connections_closed.with_label_values(&[port, reason]).get();
        let seen = timeout(SOON, async {
            while count() < least {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        assert!(seen.await.is_ok(), "{} closed as {reason}, not {least}", count());
    }
}

fn pod() -> Value {
    json!({"kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [{"name": "agent", "image": "a"}]}})
}

fn review(kind: &str, object: &Value) -> String {
    json!({"request": {"uid": "u", "kind": {"kind": kind}, "namespace": "agents", "object": object}}).to_string()
}

async fn ends(stream: &mut (impl AsyncReadExt + Unpin)) {
    let mut rest = Vec::new();
    let _ = timeout(SOON, stream.read_to_end(&mut rest)).await.expect("the connection is closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_never_shake_hands_do_not_keep_others_out() {
    let served = webhooks(None).await;
    let mut silent = Vec::new();
    for _ in 0..600 {
        // Some send half a greeting, some nothing. Those that find the queue full have to wait, as strangers do.
        let mut stream = timeout(SOON, TcpStream::connect(served.address)).await.unwrap().unwrap();
        if silent.len() % 2 == 0 {
            stream.write_all(&[22, 3, 1]).await.unwrap();
        }
        silent.push(stream);
    }
    served.is_injected().await;
    ends(&mut silent[0]).await;
    served.closed("crowded", 300).await;
    assert!(served.metrics.ports.connections.with_label_values(&["webhooks"]).get() <= 300);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_bodies_do_not_keep_others_out() {
    let served = webhooks(None).await;
    let mut slow = Vec::new();
    // Of each size as many as there is room for, and more.
    for length in [8 * 1024 * 1024, 256 * 1024] {
        for _ in 0..40 {
            let mut stream = served.connect().await;
            let head = format!("POST /inject HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{{");
            stream.write_all(head.as_bytes()).await.unwrap();
            slow.push(stream);
        }
    }
    served.is_injected().await;
    // A large one that is honest, too.
    let mut large = pod();
    large["metadata"]["annotations"] = json!({"a": "x".repeat(3 * 1024 * 1024)});
    let mut asked: Value = serde_json::from_str(&review("Pod", &large)).unwrap();
    asked["request"]["oldObject"] = large;
    let (status, answer) = timeout(SOON, served.ask("/inject", asked.to_string())).await.unwrap();
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert!(served.metrics.admission.admissions.with_label_values(&["inject", "error", "Busy"]).get() > 0);
    ends(&mut slow[0]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_is_answered_in_time_while_the_worst_policies_are_compiled() {
    let served = Arc::new(webhooks(None).await);
    let patterns: Vec<Value> =
        (0..8).map(|n| json!({"expression": format!("args.a.matches('(a{{0,20}}){{0,20}}{n}')")})).collect();
    let spec = json!({"servers": [{"name": "s", "url": "http://s", "tools": [{"name": "t", "validations": patterns}]}]});
    let policy = review("MCPPolicy", &json!({"kind": "MCPPolicy", "metadata": {"name": "p"}, "spec": spec}));
    let worst: Vec<_> = (0..8)
        .map(|_| {
            let (served, policy) = (Arc::clone(&served), policy.clone());
            tokio::spawn(async move { served.ask("/validate", policy).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    for _ in 0..5 {
        served.is_injected().await;
    }
    // Nor does one whose labels alone change.
    let old = json!({"kind": "MCPPolicy", "metadata": {"name": "p"}, "spec": {"servers": []}});
    let update = json!({"request": {"uid": "u", "kind": {"kind": "MCPPolicy"}, "object": old, "oldObject": old}});
    let (status, _) = timeout(TIME_OUT, served.ask("/validate", update.to_string())).await.expect("an answer in time");
    assert_eq!(status, StatusCode::OK);
    for asked in worst {
        // Whatever they are told, they are told something.
        let (status, answer) = timeout(2 * SOON, asked).await.unwrap().unwrap();
        assert!([StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE].contains(&status), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_become_a_large_tree_is_refused_with_advice_and_what_is_only_long_is_not() {
    let served = webhooks(None).await;
    for spec in [json!({"containers": [], "x": vec![0; 1_500_000]}), json!({"containers": vec![json!({}); 6_000]})] {
        let (status, answer) = served.ask("/inject", review("Pod", &json!({"kind": "Pod", "spec": spec}))).await;
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!((status, &answer["response"]["allowed"]), (StatusCode::OK, &json!(false)));
        let message = answer["response"]["status"]["message"].as_str().unwrap();
        assert!(message.starts_with("the pod would take more than 36 MiB to read: it has too many lists"), "{message}");
    }
    assert_eq!(served.metrics.admission.admissions.with_label_values(&["inject", "refused", "TooComplex"]).get(), 2);
    let managed: serde_json::Map<String, Value> = (0..60_000).map(|n| (format!("f:field-number-{n}-{n}"), json!({}))).collect();
    let mut honest = pod();
    honest["metadata"]["managedFields"] = json!([{"manager": "kubectl", "fieldsV1": managed}]);
    honest["metadata"]["annotations"] = json!({"long": "x".repeat(1024 * 1024)});
    let mut asked: Value = serde_json::from_str(&review("Pod", &honest)).unwrap();
    asked["request"]["oldObject"] = honest;
    let (status, answer) = served.ask("/inject", asked.to_string()).await;
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((status, &answer["response"]["allowed"]), (StatusCode::OK, &json!(true)));
    // What nobody looked at is not in the way back either.
    assert!(answer.to_string().len() < 16 * 1024);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_only_answers_pings_ends() {
    let metrics = PortMetrics::new(&OperatorRegistry::new().unwrap()).unwrap();
    let (_stop, stopping) = watch::channel(false);
    let (listener, address) = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    };
    // Without TLS, as it is the same behind it.
    let answer = |_: Request<hyper::body::Incoming>| async { plain_text(StatusCode::OK, "ok") };
    tokio::spawn(serve(listener, Port::Webhooks, None, answer, metrics.clone(), stopping));
    let count = |reason: &str| metrics.connections_closed.with_label_values(&["webhooks", reason]).get();
    // The client's side answers pings by itself.
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = || Request::post("http://localhost/inject").body(Empty::<Bytes>::new()).unwrap();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(40)).await;
        if sender.is_closed() {
            break;
        }
        let _ = sender.send_request(request()).await;
    }
    let began = tokio::time::Instant::now();
    timeout(Duration::from_secs(90), connection).await.expect("it ends").unwrap().unwrap();
    println!("it ended after {:?}", began.elapsed());
    assert_eq!(count("idle") + count("slow"), 1);

    // And by HTTP/1.1, kept alive.
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"POST /inject HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    timeout(Duration::from_secs(90), stream.read_to_end(&mut rest)).await.expect("it ends").unwrap();
    assert!(rest.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test(start_paused = true)]
async fn half_a_head_is_waited_for_ten_seconds() {
    for port in [Port::Webhooks, Port::Metrics, Port::Probes, Port::Streams] {
        let metrics = PortMetrics::new(&OperatorRegistry::new().unwrap()).unwrap();
        let (_stop, stopping) = watch::channel(false);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = |_: Request<hyper::body::Incoming>| async { plain_text(StatusCode::OK, "ok") };
        tokio::spawn(serve(listener, port, None, answer, metrics, stopping));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"PRI * HT").await.unwrap();
        let began = tokio::time::Instant::now();
        let mut rest = Vec::new();
        let _ = timeout(Duration::from_secs(60), stream.read_to_end(&mut rest)).await.expect("it ends");
        assert!(began.elapsed() <= Duration::from_secs(16), "{port:?}: {:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_never_ask_do_not_keep_the_scraper_out() {
    let metrics = PortMetrics::new(&OperatorRegistry::new().unwrap()).unwrap();
    let (_stop, stopping) = watch::channel(false);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = |_: Request<hyper::body::Incoming>| async { plain_text(StatusCode::OK, "ok") };
    tokio::spawn(serve(listener, Port::Metrics, None, answer, metrics.clone(), stopping));
    let mut halves = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /metrics HT").await.unwrap();
        halves.push(stream);
    }
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    timeout(Duration::from_secs(8), stream.read_to_end(&mut answer)).await.expect("an answer").unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    assert!(metrics.connections.with_label_values(&["metrics"]).get() <= 33);
}

/// A runtime whose threads are all busy says nothing; the probes do.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn probes_are_answered_while_the_runtime_is_busy() {
    let metrics = OperatorMetrics::new().unwrap();
    metrics.state.synced.set(1);
    let (_certified, certified) = watch::channel(true);
    let (stop, stopping) = watch::channel(false);
    let (close, closing) = watch::channel(false);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap().into_std().unwrap();
    let address = listener.local_addr().unwrap();
    let health = ProbeHealth::new(metrics.state.synced.clone(), certified, stopping);
    let ended = health.serve(listener, metrics.ports, closing).unwrap();
    tokio::spawn(health.clone().beat());
    let busy = Arc::new(std::sync::Barrier::new(2));
    let (began, held) = std::sync::mpsc::channel();
    tokio::spawn({
        let busy = Arc::clone(&busy);
        async move {
            began.send(()).unwrap();
            // The only thread of this runtime.
            busy.wait();
        }
    });
    let probe = move |path: &str| {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    tokio::task::block_in_place(|| {
        held.recv().unwrap();
        for path in ["/healthz", "/readyz"] {
            let answer = probe(path);
            assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
        }
        stop.send(true).unwrap();
        assert!(probe("/readyz").contains("stopping"));
        assert!(probe("/metrics").starts_with("HTTP/1.1 404"));
        busy.wait();
    });
    close.send(true).unwrap();
    timeout(SOON, ended).await.expect("it ends").unwrap_err();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_authorities_are_given_only_their_clients_get_through_the_handshake() {
    let clients = authority();
    let path = std::env::temp_dir().join(format!("toolweir-ports-{}.pem", std::process::id()));
    std::fs::write(&path, clients.pem()).unwrap();
    let served = webhooks(Some(ClientCa::new(&path, vec!["kube-apiserver".to_owned()]).unwrap())).await;
    let identity = |issuer: &Authority, name: &str| Some(signed(issuer, name, ExtendedKeyUsagePurpose::ClientAuth));
    let ask = async |identity| {
        let stream = TcpStream::connect(served.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = served.client(b"http/1.1", identity).connect(name, stream).await?;
        let body = review("Pod", &pod());
        let head = format!("POST /inject HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = ask(identity(&clients, "kube-apiserver")).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    for refused in [None, identity(&clients, "somebody"), identity(&authority(), "kube-apiserver")] {
        // By TLS 1.3 a client learns of it once it reads.
        let error = ask(refused).await.unwrap_err().to_string();
        assert!(error.contains("alert") || error.contains("reset") || error.contains("pipe"), "{error}");
    }
    served.closed("certificate", 3).await;
    std::fs::remove_file(path).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_lets_what_is_under_way_finish() {
    let metrics = PortMetrics::new(&OperatorRegistry::new().unwrap()).unwrap();
    let (stop, stopping) = watch::channel(false);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = |_: Request<hyper::body::Incoming>| async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        plain_text(StatusCode::OK, "ok")
    };
    let done = tokio::spawn(serve(listener, Port::Metrics, None, answer, metrics, stopping));
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let began = Instant::now();
    stop.send(true).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert!(rest.starts_with(b"HTTP/1.1 200"));
    timeout(SOON, done).await.unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_secs(9), "not cut");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_of_one_connection_are_bounded() {
    let served = webhooks(None).await;
    let stream = TcpStream::connect(served.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = served.client(b"h2", None).connect(name, stream).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    // Bodies that never come: as many streams as are allowed are open, and no more.
    let mut open = Vec::new();
    for _ in 0..40 {
        sender.ready().await.unwrap();
        let body =
            http_body_util::StreamBody::new(futures_util::stream::pending::<Result<http_body::Frame<Bytes>, std::io::Error>>());
        let request = Request::post("https://localhost/inject").body(body.boxed()).unwrap();
        open.push(tokio::spawn(sender.send_request(request)));
    }
    served.is_injected().await;
    let (mut late, mut refused) = (0, 0);
    for asked in open {
        let answer: Result<Response<_>, _> = timeout(SOON, asked).await.expect("an answer").unwrap();
        match answer {
            // A client that has not heard of the bound yet is told to come back.
            Err(error) => refused += usize::from(format!("{error:?}").contains("REFUSED_STREAM")),
            Ok(answer) => {
                assert_eq!(answer.status(), StatusCode::REQUEST_TIMEOUT);
                late += 1;
            }
        }
    }
    assert_eq!((late + refused, late >= 16), (40, true), "{late} {refused}");
    served.stop.send(true).unwrap();
    timeout(SOON, served.done).await.unwrap().unwrap();
}
