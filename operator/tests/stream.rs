//! The policy stream as a sidecar sees it, with an API server that is a function: who is let in, what comes down, what is
//! taken of what goes up, and that nobody waits for anybody.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody, combinators::BoxBody};
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use toolweir_crds::{read_documents, read_manifests, resource::PolicyStatus, stream::SharedStore};
use toolweir_engine::{CompileOptions, PolicyId};
use toolweir_operator::{
    approvals::service::ApprovalService,
    auth::TokenReviewer,
    cluster_state::ClusterState,
    events::{DenialReport, EventReport},
    index::{ClusterEvent, Pod, PodInterception, PodKey, PolicyEntry},
    inject::NamespaceInfo,
    operator_metrics::OperatorMetrics,
    pins::{PinsEntry, PinsKey},
    shared_store::health::SidecarStore,
    stream::{StreamBounds, StreamServer},
};

/// An API server that knows tokens of the form `POD:UID` in the second part of what looks like a JWT.
#[derive(Clone)]
struct ApiServer;

impl tower_service::Service<Request<kube::client::Body>> for ApiServer {
    type Response = Response<kube::client::Body>;
    type Error = Infallible;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        Box::pin(async move {
            assert_eq!(request.uri().path(), "/apis/authentication.k8s.io/v1/tokenreviews");
            let review: Value = serde_json::from_slice(&request.into_body().collect().await.unwrap().to_bytes()).unwrap();
            assert_eq!(review["spec"]["audiences"], json!(["toolweir"]));
            let token = review["spec"]["token"].as_str().unwrap();
            let answer = |status: Value| {
                let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}, "spec": {}, "status": status});
                Response::builder().status(201).body(kube::client::Body::from(body.to_string().into_bytes())).unwrap()
            };
            if token == "down" {
                return Ok(Response::builder().status(500).body(kube::client::Body::from(b"{}".to_vec())).unwrap());
            }
            let claims = token.split('.').nth(1).and_then(|part| BASE64URL_NOPAD.decode(part.as_bytes()).ok());
            let Some(claims) = claims.and_then(|claims| serde_json::from_slice::<Value>(&claims).ok()) else {
                return Ok(answer(json!({"authenticated": false, "error": "no"})));
            };
            let mut extra = json!({});
            if let Some(pod) = claims["pod"].as_str() {
                extra = json!({"authentication.kubernetes.io/pod-name": [pod], "authentication.kubernetes.io/pod-uid": [claims["uid"]]});
            }
            let user = json!({"username": "system:serviceaccount:agents:default", "extra": extra});
            Ok(answer(json!({"authenticated": true, "audiences": ["toolweir"], "user": user})))
        })
    }
}

fn token(claims: &Value) -> String {
    format!("e30.{}.c2ln", BASE64URL_NOPAD.encode(claims.to_string().as_bytes()))
}

/// One that also says whose it is, as a kubelet's does.
fn kubelet_token(pod: &str, uid: &str) -> String {
    let bound = json!({"namespace": "agents", "pod": {"name": pod, "uid": uid}, "serviceaccount": {"name": "default"}});
    token(&json!({"pod": pod, "uid": uid, "kubernetes.io": bound}))
}

/// The same API server, which takes a second for an answer, and what it was asked.
#[derive(Clone, Default)]
struct Slow(Arc<std::sync::Mutex<Asked>>);

#[derive(Default)]
struct Asked {
    all: usize,
    now: usize,
    most: usize,
}

impl tower_service::Service<Request<kube::client::Body>> for Slow {
    type Response = Response<kube::client::Body>;
    type Error = Infallible;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let asked = Arc::clone(&self.0);
        Box::pin(async move {
            {
                let mut asked = asked.lock().unwrap();
                (asked.all, asked.now) = (asked.all + 1, asked.now + 1);
                asked.most = asked.most.max(asked.now);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            asked.lock().unwrap().now -= 1;
            ApiServer.call(request).await
        })
    }
}

fn pod_token(pod: &str) -> String {
    token(&json!({"pod": pod, "uid": format!("uid-{pod}")}))
}

struct Operator {
    world: Arc<ClusterState>,
    metrics: OperatorMetrics,
    trust: watch::Sender<Arc<str>>,
    store: watch::Sender<SidecarStore>,
    stop: watch::Sender<bool>,
    told: mpsc::Receiver<EventReport>,
    streams: StreamServer,
}

fn pod(name: &str) -> ClusterEvent {
    let pod = Pod { uid: format!("uid-{name}"), injected: true, ..Pod::default() };
    ClusterEvent::Pod(PodKey { namespace: "agents".to_owned(), name: name.to_owned() }, pod)
}

fn policy(generation: i64, url: &str) -> ClusterEvent {
    let text = format!(
        "{{apiVersion: toolweir.dev/v1alpha1, kind: MCPPolicy, metadata: {{name: p, namespace: agents}}, \
         spec: {{servers: [{{name: s, url: '{url}'}}]}}}}"
    );
    let document = read_documents("test", &text).unwrap().remove(0).document;
    let entry =
        PolicyEntry::new("policy-uid".to_owned(), generation, document, PolicyStatus::default(), &CompileOptions::default());
    ClusterEvent::Policy(entry.policy.id.clone(), Box::new(entry))
}

/// A policy that counts across pods.
fn sharing(generation: i64) -> ClusterEvent {
    let text = "{apiVersion: toolweir.dev/v1alpha1, kind: MCPPolicy, metadata: {name: p, namespace: agents}, spec: {servers: \
                [{name: s, url: 'http://s', tools: [{name: t, limits: [{max: 1, window: day, scope: Workload}]}]}]}}";
    let document = read_documents("test", text).unwrap().remove(0).document;
    let options = CompileOptions { shared_store: true, of_any_pod: true, ..CompileOptions::default() };
    let entry = PolicyEntry::new("policy-uid".to_owned(), generation, document, PolicyStatus::default(), &options);
    ClusterEvent::Policy(entry.policy.id.clone(), Box::new(entry))
}

fn store(password: &str) -> SharedStore {
    SharedStore {
        url: "rediss://store.toolweir-system.svc".to_owned(),
        username: None,
        password: Some(password.to_owned()),
        ca: None,
        prefix: "toolweir".to_owned(),
        leases: true,
        budget_milliseconds: 50,
    }
}

/// The line that tells of it.
fn told(password: &str) -> Value {
    json!({"sharedStore": {
        "url": "rediss://store.toolweir-system.svc", "password": password, "prefix": "toolweir", "leases": true,
        "budgetMilliseconds": 50,
    }})
}

fn operator() -> Operator {
    let metrics = OperatorMetrics::new().unwrap();
    let world = Arc::new(ClusterState::new(metrics.state.clone(), CompileOptions::default()));
    world.apply(ClusterEvent::Namespaces(BTreeMap::from([("agents".to_owned(), NamespaceInfo::default())])));
    world.apply(ClusterEvent::Pods(BTreeMap::new()));
    world.apply(ClusterEvent::Policies { cluster: false, all: BTreeMap::new() });
    world.apply(ClusterEvent::Policies { cluster: true, all: BTreeMap::new() });
    world.apply(ClusterEvent::AllPins(BTreeMap::new()));
    world.apply(pod("one"));
    world.apply(pod("two"));
    let (trust, trusted) = watch::channel(Arc::from("PEM 1"));
    let (store, stores) = watch::channel(SidecarStore::Nowhere);
    let (stop, stopping) = watch::channel(false);
    let reviewer = TokenReviewer::new(kube::Client::new(ApiServer, "default"));
    let (reports, told) = mpsc::channel(1);
    let streams = StreamServer {
        approvals: Arc::new(ApprovalService::new(None, metrics.approvals.clone())),
        state: Arc::clone(&world),
        reviewer,
        trust: trusted,
        store: stores,
        reports,
        stopping,
        bounds: Arc::new(StreamBounds::default()),
        metrics: metrics.stream.clone(),
        events: metrics.events.clone(),
    };
    Operator { world, metrics, trust, store, stop, told, streams }
}

/// What a sidecar holds of its stream.
struct Sidecar {
    acks: mpsc::UnboundedSender<Bytes>,
    body: BoxBody<Bytes, Infallible>,
}

impl Sidecar {
    async fn line(&mut self) -> Option<Value> {
        let frame = timeout(Duration::from_secs(60), self.body.frame()).await.expect("a line");
        frame.map(|frame| {
            let data = frame.unwrap().into_data().unwrap();
            assert_eq!(data.last(), Some(&b'\n'));
            serde_json::from_slice(&data).unwrap()
        })
    }

    async fn version(&mut self) -> String {
        loop {
            let line = self.line().await.expect("the stream goes on");
            if let Some(version) = line["snapshot"]["version"].as_str() {
                return version.to_owned();
            }
        }
    }

    fn say(&self, text: impl Into<Bytes>) {
        let _ = self.acks.send(text.into());
    }
}

impl Operator {
    async fn refused(&self, headers: &[(&str, &str)]) -> StatusCode {
        let mut request = Request::post("/v1/policies");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.streams.clone().answer(request.body(Empty::<Bytes>::new()).unwrap()).await;
        response.status()
    }

    async fn open(&self, token: &str) -> Sidecar {
        let (acks, mut receiver) = mpsc::unbounded_channel::<Bytes>();
        let frames = futures_util::stream::poll_fn(move |context| {
            receiver.poll_recv(context).map(|data| data.map(|data| Ok::<_, Infallible>(Frame::data(data))))
        });
        let request = Request::post("/v1/policies").header("authorization", format!("Bearer {token}"));
        let response = self.streams.clone().answer(request.body(StreamBody::new(frames)).unwrap()).await;
        assert_eq!(response.status(), StatusCode::OK);
        Sidecar { acks, body: response.into_body() }
    }

    async fn reported(&mut self) -> EventReport {
        timeout(Duration::from_secs(5), self.told.recv()).await.unwrap().unwrap()
    }

    async fn denied(&mut self) -> DenialReport {
        match self.reported().await {
            EventReport::Denials(report) => report,
            other => panic!("{other:?}"),
        }
    }

    fn counted(&self, reason: &str) -> u64 {
        self.metrics.stream.refused.with_label_values(&[reason]).get()
    }

    async fn ended(&self, reason: &str) -> bool {
        for _ in 0..200 {
            if self.metrics.stream.ended.with_label_values(&[reason]).get() == 1 {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }

    fn enforcing(&self) -> i32 {
        let index = self.world.index();
        let tallies = self.world.acks().tally(&index);
        tallies["policy-uid"].acknowledged
    }
}

#[tokio::test(start_paused = true)]
async fn only_the_token_of_a_pod_that_runs_opens_a_stream() {
    let operator = operator();
    let bearer = |token: String| format!("Bearer {token}");
    for (header, status, reason) in [
        (String::new(), 401, "no_token"),
        ("Basic abc".to_owned(), 401, "no_token"),
        (bearer("garbage".to_owned()), 401, "bad_token"),
        (bearer(token(&json!({"sub": "x"}))), 403, "no_pod"),
        (bearer(pod_token("unknown")), 403, "unknown_pod"),
        (bearer(token(&json!({"pod": "one", "uid": "of a pod before"}))), 403, "unknown_pod"),
        (bearer("down".to_owned()), 503, "review_failed"),
    ] {
        let before = operator.counted(reason);
        assert_eq!(operator.refused(&[("authorization", &header)]).await.as_u16(), status, "{header}");
        assert_eq!(operator.counted(reason), before + 1, "{header}");
    }
    assert_eq!(operator.refused(&[]).await, 401);
}

#[tokio::test]
async fn nobody_is_let_in_before_the_whole_cluster_was_seen() {
    let mut operator = operator();
    operator.streams.state = Arc::new(ClusterState::new(operator.metrics.state.clone(), CompileOptions::default()));
    assert_eq!(operator.refused(&[("authorization", &format!("Bearer {}", pod_token("one")))]).await, 503);
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_that_is_here_before_the_word_of_its_pod_is_waited_for() {
    let operator = operator();
    let world = Arc::clone(&operator.world);
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        world.apply(pod("late"));
    });
    operator.open(&pod_token("late")).await.version().await;
}

#[tokio::test(start_paused = true)]
async fn trust_comes_first_then_what_holds_then_every_change_and_word_that_the_stream_lives() {
    let operator = operator();
    let mut sidecar = operator.open(&pod_token("one")).await;
    assert_eq!(sidecar.line().await.unwrap(), json!({"trust": {"certificates": "PEM 1"}}));
    assert_eq!(sidecar.line().await.unwrap(), json!({"sharedStore": null}));
    assert_eq!(sidecar.line().await.unwrap()["snapshot"]["policies"], json!([]));
    operator.world.apply(policy(1, "http://s/one"));
    assert_eq!(sidecar.line().await.unwrap()["snapshot"]["policies"][0]["spec"]["servers"][0]["url"], "http://s/one");
    operator.trust.send(Arc::from("PEM 2")).unwrap();
    assert_eq!(sidecar.line().await.unwrap(), json!({"trust": {"certificates": "PEM 2"}}));
    let began = tokio::time::Instant::now();
    assert_eq!(sidecar.line().await.unwrap(), json!("keepAlive"));
    assert!(began.elapsed() <= Duration::from_secs(10));
    operator.world.apply(ClusterEvent::PolicyGone(PolicyId {
        cluster: false,
        namespace: "agents".to_owned(),
        name: "p".to_owned(),
    }));
    assert_eq!(sidecar.line().await.unwrap()["snapshot"]["policies"], json!([]));
    operator.stop.send(true).unwrap();
    assert_eq!(sidecar.line().await, None);
    assert!(operator.ended("stopping").await);
}

#[tokio::test(start_paused = true)]
async fn where_counts_are_shared_comes_before_what_holds_and_again_when_it_changes() {
    let operator = operator();
    operator.world.apply(sharing(1));
    operator.store.send(SidecarStore::At(Arc::new(store("first")))).unwrap();
    let mut sidecar = operator.open(&pod_token("one")).await;
    assert!(sidecar.line().await.unwrap()["trust"].is_object());
    assert_eq!(sidecar.line().await.unwrap(), told("first"));
    assert!(sidecar.line().await.unwrap()["snapshot"].is_object());
    operator.store.send(SidecarStore::At(Arc::new(store("second")))).unwrap();
    assert_eq!(sidecar.line().await.unwrap(), told("second"));
    operator.store.send(SidecarStore::Nowhere).unwrap();
    assert_eq!(sidecar.line().await.unwrap(), json!({"sharedStore": null}));
    // What holds is another thing without it.
    assert!(sidecar.line().await.unwrap()["snapshot"].is_object());
    assert_eq!(sidecar.line().await.unwrap(), json!("keepAlive"));
}

#[tokio::test(start_paused = true)]
async fn an_operator_that_has_not_read_its_files_takes_the_store_from_nobody() {
    let operator = operator();
    operator.world.apply(sharing(1));
    operator.store.send(SidecarStore::Unread).unwrap();
    let mut sidecar = operator.open(&pod_token("one")).await;
    assert!(sidecar.line().await.unwrap()["trust"].is_object());
    assert!(sidecar.line().await.unwrap()["snapshot"].is_object());
    assert_eq!(sidecar.line().await.unwrap(), json!("keepAlive"));
    operator.store.send(SidecarStore::At(Arc::new(store("first")))).unwrap();
    assert_eq!(sidecar.line().await.unwrap(), told("first"));
    assert!(sidecar.line().await.unwrap()["snapshot"].is_object());
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_policies_share_no_count_is_not_told_where_until_they_do() {
    let operator = operator();
    operator.store.send(SidecarStore::At(Arc::new(store("first")))).unwrap();
    operator.world.apply(policy(1, "http://s/one"));
    let mut sidecar = operator.open(&pod_token("one")).await;
    assert!(sidecar.line().await.unwrap()["trust"].is_object());
    assert_eq!(sidecar.line().await.unwrap(), json!({"sharedStore": null}));
    assert!(sidecar.line().await.unwrap()["snapshot"].is_object());
    // Nothing is said of a change that does not concern it.
    operator.store.send(SidecarStore::At(Arc::new(store("second")))).unwrap();
    assert_eq!(sidecar.line().await.unwrap(), json!("keepAlive"));
    operator.world.apply(sharing(2));
    assert_eq!(sidecar.line().await.unwrap(), told("second"));
    assert!(sidecar.line().await.unwrap()["snapshot"].is_object());
    operator.world.apply(policy(3, "http://s/two"));
    assert!(sidecar.line().await.unwrap()["snapshot"].is_object());
    assert_eq!(sidecar.line().await.unwrap(), json!("keepAlive"));
}

#[tokio::test]
async fn denials_are_those_of_the_pod_whose_token_it_is_and_nobody_waits_for_events() {
    let mut operator = operator();
    let mut sidecar = operator.open(&pod_token("one")).await;
    let version = sidecar.version().await;
    let denied = json!({"policy": "agents/p", "reason": "rate_limit", "server": "s", "tool": "t", "count": 5});
    sidecar.say(format!("{}\n", json!({"denials": [denied], "pod": "two"})));
    let told = operator.denied().await;
    assert_eq!((told.pod.name.as_str(), told.uid.as_str(), told.denials[0].count), ("one", "uid-one", 5));
    // The channel has room for one, and nobody reads it now.
    for _ in 0..3 {
        sidecar.say(format!("{}\n", json!({"denials": [denied]})));
    }
    sidecar.say(format!("{}\n", json!({"version": version})));
    for _ in 0..200 {
        if operator.metrics.state.acks.get() == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(operator.metrics.state.acks.get(), 1, "what came after it was read");
    assert_eq!(operator.metrics.events.events.with_label_values(&["no_room"]).get(), 2);
}

#[tokio::test]
async fn a_pod_gets_its_own_policies_only() {
    let operator = operator();
    operator.world.apply(policy(1, "http://s/one"));
    let other = Pod { uid: "uid-one".to_owned(), injected: true, ..Pod::default() };
    operator.world.apply(ClusterEvent::Pod(PodKey { namespace: "elsewhere".to_owned(), name: "one".to_owned() }, other));
    // What a client says of itself changes nothing: the path has no place for it, and headers are not looked at.
    let mut sidecar = operator.open(&pod_token("two")).await;
    sidecar.line().await;
    sidecar.line().await;
    let snapshot = sidecar.line().await.unwrap();
    assert_eq!(snapshot["snapshot"]["policies"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn what_a_sidecar_acknowledges_counts_until_its_stream_ends() {
    let operator = operator();
    operator.world.apply(policy(1, "http://s/one"));
    let mut sidecar = operator.open(&pod_token("one")).await;
    let version = sidecar.version().await;
    assert_eq!(operator.enforcing(), 0);
    // In two pieces, as a network may cut it.
    let ack = format!("{{\"version\":\"{version}\"}}\n");
    let (head, tail) = ack.split_at(9);
    sidecar.say(head.to_owned());
    sidecar.say(tail.to_owned());
    let mut changes = operator.world.changes();
    while operator.enforcing() == 0 {
        timeout(Duration::from_secs(5), changes.changed()).await.unwrap().unwrap();
    }
    drop(sidecar);
    assert!(operator.ended("client_gone").await);
    assert_eq!(operator.enforcing(), 0);
}

#[tokio::test]
async fn what_a_sidecar_says_of_its_credentials_counts_until_its_stream_ends() {
    let operator = operator();
    operator.world.apply(policy(1, "https://s/one', credential: {bearer: {secretKey: token}}, defaultAction: 'Allow"));
    let mut sidecar = operator.open(&pod_token("one")).await;
    let version = sidecar.version().await;
    let state = json!({"server": "s", "kind": "bearer", "problem": "key `token` is missing"});
    sidecar.say(format!("{}\n{}\n", json!({"version": version}), json!({"credentials": [state]})));
    let tally = || operator.world.acks().tally(&operator.world.index())["policy-uid"].clone();
    let mut changes = operator.world.changes();
    while tally().credentials.problem.is_none() {
        timeout(Duration::from_secs(5), changes.changed()).await.unwrap().unwrap();
    }
    assert_eq!(tally().credentials.problem.unwrap(), "pod agents/one: server s: key `token` is missing");
    sidecar.say(format!("{}\n", json!({"credentials": [{"server": "s", "kind": "bearer"}]})));
    while tally().credentials.ready == 0 {
        timeout(Duration::from_secs(5), changes.changed()).await.unwrap().unwrap();
    }
    assert_eq!((tally().credentials.problem, tally().acknowledged), (None, 1));
    drop(sidecar);
    assert!(operator.ended("client_gone").await);
    assert_eq!(tally().credentials.ready, 0);
}

#[tokio::test]
async fn what_a_sidecar_says_of_tls_counts_for_a_pod_that_can_have_it_opened() {
    let operator = operator();
    operator.world.apply(policy(1, "https://s.example/mcp', tls: Intercept, defaultAction: 'Allow"));
    let prepared = Pod { uid: "uid-one".to_owned(), injected: true, interception: PodInterception::Prepared, ..Pod::default() };
    let key = PodKey { namespace: "agents".to_owned(), name: "one".to_owned() };
    operator.world.apply(ClusterEvent::Pod(key, prepared));
    let mut sidecar = operator.open(&pod_token("one")).await;
    let version = sidecar.version().await;
    let state = json!({"server": "s", "problem": "the authority has no s.example", "needsNewPod": true});
    sidecar.say(format!("{}\n{}\n", json!({"version": version}), json!({"interception": [state]})));
    let said = || operator.world.acks().tally(&operator.world.index())["policy-uid"].interception.clone();
    let mut changes = operator.world.changes();
    while said().new_pods.count == 0 {
        timeout(Duration::from_secs(5), changes.changed()).await.unwrap().unwrap();
    }
    assert_eq!((said().new_pods.to_string().as_str(), said().problem), ("agents/one", None));
    sidecar.say(format!("{}\n", json!({"interception": [{"server": "s"}]})));
    while said().ready == 0 {
        timeout(Duration::from_secs(5), changes.changed()).await.unwrap().unwrap();
    }
    assert_eq!(said().new_pods.count, 0);
}

fn pins(generation: i64, digest: &str) -> ClusterEvent {
    let text = format!(
        "{{apiVersion: toolweir.dev/v1alpha1, kind: MCPToolPins, metadata: {{name: shop, namespace: agents}}, \
         spec: {{server: s, tools: [{{name: pay, parts: [{{part: title, sha256: '{}', text: Pay}}]}}]}}}}",
        digest.repeat(32)
    );
    let pins = read_manifests("test", &text).unwrap().pins.remove(0).pins;
    let key = PinsKey { namespace: pins.namespace.clone(), name: pins.name.clone() };
    ClusterEvent::Pins(key, PinsEntry::new("pins-uid".to_owned(), generation, &pins))
}

#[tokio::test]
async fn changed_pins_reach_the_sidecars_as_changed_policies_do() {
    let operator = operator();
    operator.world.apply(policy(1, "https://s/one', pins: {name: shop}, defaultAction: 'Allow"));
    let mut sidecar = operator.open(&pod_token("one")).await;
    let without = sidecar.version().await;
    operator.world.apply(pins(1, "0a"));
    let first = sidecar.line().await.unwrap();
    assert_eq!(first["snapshot"]["pins"][0]["spec"]["tools"][0]["parts"][0]["sha256"], "0a".repeat(32));
    assert_eq!(first["snapshot"]["policies"].as_array().unwrap().len(), 1);
    operator.world.apply(pins(2, "0b"));
    let second = sidecar.version().await;
    assert!(first["snapshot"]["version"] != without && first["snapshot"]["version"] != second && without != second);
    operator.world.apply(ClusterEvent::PinsGone(PinsKey { namespace: "agents".to_owned(), name: "shop".to_owned() }));
    assert_eq!(sidecar.version().await, without);
}

#[tokio::test]
async fn tools_that_changed_count_until_the_stream_ends_and_become_events_of_pins_that_are_there_and_asked_for() {
    let mut operator = operator();
    operator.world.apply(policy(1, "https://s/one', pins: {name: shop}, defaultAction: 'Allow"));
    operator.world.apply(pins(3, "0a"));
    let mut sidecar = operator.open(&pod_token("one")).await;
    let version = sidecar.version().await;
    let drift = |server: &str, pins: &str, tool: &str| json!({"server": server, "pins": pins, "tool": tool, "changes": [{"part": "title", "change": "text"}]});
    let invented = [drift("s", "kube-system/secret", "a"), drift("t", "agents/shop", "b")];
    let said = json!({"drift": [invented[0], drift("s", "agents/shop", "pay"), invented[1]]});
    sidecar.say(format!("{}\n{said}\n", json!({"version": version})));
    let EventReport::Drift(drifted) = operator.reported().await else { panic!("denials") };
    assert_eq!(drifted.len(), 1, "{drifted:?}");
    let told = &drifted[0];
    assert_eq!((told.tool.as_str(), told.pins.to_string().as_str(), told.generation), ("pay", "agents/shop", 3));
    assert_eq!((told.uid.as_str(), told.pod.to_string().as_str()), ("pins-uid", "agents/one"));
    assert_eq!(told.changes.iter().map(|changed| changed.part.as_str()).collect::<Vec<_>>(), ["title"]);
    let tally = || operator.world.acks().tally(&operator.world.index())["policy-uid"].drift.clone();
    let mut changes = operator.world.changes();
    while tally().drifted == 0 {
        timeout(Duration::from_secs(5), changes.changed()).await.unwrap().unwrap();
    }
    // The last report holds, whole.
    sidecar.say(format!("{}\n", json!({"drift": []})));
    while tally().drifted == 1 {
        timeout(Duration::from_secs(5), changes.changed()).await.unwrap().unwrap();
    }
    assert_eq!((tally().reported, operator.told.try_recv().is_err()), (1, true));
    drop(sidecar);
    assert!(operator.ended("client_gone").await);
    assert_eq!(tally().reported, 0);
}

#[tokio::test]
async fn what_is_no_acknowledgement_ends_the_stream() {
    for nonsense in [Bytes::from("hello\n"), Bytes::from("{}\n"), Bytes::from(vec![b'x'; 300 * 1024])] {
        let operator = operator();
        let mut sidecar = operator.open(&pod_token("one")).await;
        sidecar.version().await;
        sidecar.say(nonsense);
        assert!(operator.ended("protocol").await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_that_does_not_read_is_left_behind_and_nobody_waits_for_it() {
    let operator = operator();
    let silent = operator.open(&pod_token("one")).await;
    let mut other = operator.open(&pod_token("two")).await;
    other.version().await;
    let mut last = String::new();
    for generation in 1..200 {
        operator.world.apply(policy(generation, &format!("http://s/{generation}")));
        let began = tokio::time::Instant::now();
        let version = other.version().await;
        assert!(began.elapsed() < Duration::from_millis(10), "waited {:?}", began.elapsed());
        assert_ne!(version, last);
        last = version;
    }
    tokio::time::sleep(Duration::from_secs(21)).await;
    assert!(operator.ended("slow").await);
    drop(silent);
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_with_its_pod_and_with_its_token() {
    let operator = operator();
    let mut sidecar = operator.open(&pod_token("one")).await;
    sidecar.version().await;
    operator.world.apply(ClusterEvent::PodGone(PodKey { namespace: "agents".to_owned(), name: "one".to_owned() }));
    assert_eq!(sidecar.line().await, None);
    assert!(operator.ended("pod_gone").await);

    let soon = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 25;
    let mut sidecar = operator.open(&token(&json!({"pod": "two", "uid": "uid-two", "exp": soon}))).await;
    let began = tokio::time::Instant::now();
    while sidecar.line().await.is_some() {}
    assert!((20..=26).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert!(operator.ended("token_expired").await);
}

#[tokio::test]
async fn there_is_one_path_and_one_method() {
    let operator = operator();
    let answer = |request: Request<Empty<Bytes>>| operator.streams.clone().answer(request);
    assert_eq!(answer(Request::get("/v1/policies").body(Empty::new()).unwrap()).await.status(), 405);
    assert_eq!(answer(Request::post("/").body(Empty::new()).unwrap()).await.status(), 404);
}

#[tokio::test(start_paused = true)]
async fn a_pod_has_two_streams_and_a_third_ends_the_oldest() {
    let operator = operator();
    let token = kubelet_token("one", "uid-one");
    let mut first = operator.open(&token).await;
    let mut second = operator.open(&token).await;
    let mut other = operator.open(&pod_token("two")).await;
    first.version().await;
    let mut third = operator.open(&token).await;
    while first.line().await.is_some() {}
    assert!(operator.ended("replaced").await);
    for sidecar in [&mut second, &mut third, &mut other] {
        sidecar.version().await;
    }
    assert_eq!(operator.metrics.state.streams.get(), 3);
    // Once one has gone there is room again.
    drop(second);
    assert!(operator.ended("client_gone").await);
    operator.open(&token).await.version().await;
    third.line().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn nobody_is_asked_about_a_pod_that_there_is_not() {
    let mut operator = operator();
    let slow = Slow::default();
    operator.streams.reviewer = TokenReviewer::new(kube::Client::new(slow.clone(), "default"));
    for (pod, uid) in [("one", "forged"), ("unknown", "uid-one")] {
        let header = format!("Bearer {}", kubelet_token(pod, uid));
        assert_eq!(operator.refused(&[("authorization", &header)]).await, 403);
    }
    assert_eq!((slow.0.lock().unwrap().all, operator.counted("unknown_pod")), (0, 2));
    // Only so many are waited for.
    let operator = Arc::new(operator);
    let asks: Vec<_> = (0..80)
        .map(|n| {
            let operator = Arc::clone(&operator);
            tokio::spawn(async move {
                let header = format!("Bearer {}", kubelet_token("unknown", &format!("uid-{n}")));
                operator.refused(&[("authorization", &header)]).await.as_u16()
            })
        })
        .collect();
    let mut answers: BTreeMap<u16, usize> = BTreeMap::new();
    for asked in asks {
        *answers.entry(asked.await.unwrap()).or_default() += 1;
    }
    assert_eq!(answers, BTreeMap::from([(403, 64), (503, 16)]));
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_bad_tokens_reaches_the_api_server_a_few_at_a_time_and_keeps_no_sidecar_out() {
    let mut operator = operator();
    let slow = Slow::default();
    operator.streams.reviewer = TokenReviewer::new(kube::Client::new(slow.clone(), "default"));
    let operator = Arc::new(operator);
    let flood: Vec<_> = (0..300)
        .map(|n| {
            let operator = Arc::clone(&operator);
            tokio::spawn(async move { operator.refused(&[("authorization", &format!("Bearer garbage-{n}"))]).await })
        })
        .collect();
    tokio::task::yield_now().await;
    let began = tokio::time::Instant::now();
    operator.open(&kubelet_token("one", "uid-one")).await.version().await;
    assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
    for refused in flood {
        let status = refused.await.unwrap();
        assert!([401, 503].contains(&status.as_u16()), "{status}");
    }
    assert!(slow.0.lock().unwrap().most <= 5, "{} at once", slow.0.lock().unwrap().most);
    // The same one again is not asked about for a while.
    let again = || operator.refused(&[("authorization", "Bearer the same")]);
    assert_eq!(again().await, 401);
    let before = slow.0.lock().unwrap().all;
    assert_eq!((again().await.as_u16(), slow.0.lock().unwrap().all), (401, before));
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!((again().await.as_u16(), slow.0.lock().unwrap().all), (401, before + 1));
}

#[tokio::test]
async fn an_acknowledgement_in_single_bytes_is_read_in_linear_time() {
    let operator = operator();
    operator.world.apply(policy(1, "http://s/one"));
    let mut sidecar = operator.open(&pod_token("one")).await;
    let version = sidecar.version().await;
    let refused = json!({"policy": "agents/other", "message": "x".repeat(200 * 1024)});
    let line = format!("{}\n", json!({"version": version, "problems": [refused]}));
    let began = std::time::Instant::now();
    for byte in line.into_bytes() {
        sidecar.say(vec![byte]);
    }
    let mut changes = operator.world.changes();
    while operator.enforcing() == 0 {
        timeout(Duration::from_secs(20), changes.changed()).await.expect("read in time").unwrap();
    }
    println!("200 KiB in single bytes took {:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_long_acknowledgement_must_end_in_time() {
    let operator = operator();
    let mut sidecar = operator.open(&pod_token("one")).await;
    sidecar.version().await;
    sidecar.say(vec![b' '; 100 * 1024]);
    let began = tokio::time::Instant::now();
    while sidecar.line().await.is_some() {}
    assert!(began.elapsed() <= Duration::from_secs(20));
    assert!(operator.ended("slow").await);
}

#[tokio::test]
async fn of_denials_only_so_much_is_kept() {
    let mut operator = operator();
    let mut sidecar = operator.open(&pod_token("one")).await;
    sidecar.version().await;
    let denied = |reason: &str| json!({"policy": "ü".repeat(400), "reason": reason, "server": "s", "tool": "t", "count": 1});
    let mut denials = vec![denied("no reason that there is")];
    denials.extend(vec![denied("rate_limit"); 150]);
    sidecar.say(format!("{}\n", json!({"denials": denials})));
    let told = operator.denied().await;
    assert_eq!(told.denials.len(), 63);
    assert!(told.denials.iter().all(|denied| denied.policy.len() == 128 && denied.reason == "rate_limit"));
}

/// Strangers on the port of the streams, and a sidecar among them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_without_a_stream_are_bounded_and_do_not_keep_sidecars_out() {
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::net::{TcpListener, TcpStream};
    use toolweir_operator::serve::{Port, serve};

    let operator = operator();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let streams = operator.streams.clone();
    let answer = move |request: Request<hyper::body::Incoming>| streams.clone().answer(request);
    let metrics = operator.metrics.ports.clone();
    // Without TLS, as it is the same behind it.
    tokio::spawn(serve(listener, Port::Streams, None, answer, metrics.clone(), operator.streams.stopping.clone()));
    let open = async |pod: &str| {
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let acks = StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, Infallible>>());
        let request = Request::post("http://localhost/v1/policies")
            .header("authorization", format!("Bearer {}", kubelet_token(pod, &format!("uid-{pod}"))))
            .body(acks)
            .unwrap();
        let response = timeout(Duration::from_secs(30), sender.send_request(request)).await.expect("an answer").unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        (sender, response.into_body())
    };
    let (_before, mut body) = open("one").await;
    body.frame().await.unwrap().unwrap();
    let mut strangers = Vec::new();
    for _ in 0..600 {
        let connect = TcpStream::connect(address);
        strangers.push(timeout(Duration::from_secs(30), connect).await.unwrap().unwrap());
    }
    let (_after, mut after) = open("two").await;
    after.frame().await.unwrap().unwrap();
    // On a busy machine some are accepted a moment later, and closed for it.
    let few = async {
        while metrics.connections.with_label_values(&["streams"]).get() > 260
            || metrics.connections_closed.with_label_values(&["streams", "crowded"]).get() == 0
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(10), few).await.expect("strangers are turned away");
    // The one that was there before them still is.
    operator.trust.send(Arc::from("PEM 2")).unwrap();
    let told = timeout(Duration::from_secs(30), async {
        loop {
            let data = body.frame().await.expect("it goes on").unwrap().into_data().unwrap();
            if String::from_utf8_lossy(&data).contains("PEM 2") {
                return;
            }
        }
    });
    told.await.expect("told");
}
