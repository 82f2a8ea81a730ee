//! Approvals as a sidecar and a person see them: real streams, and an API server that is a function with a memory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod approval_api;

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use http::{Request, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::timeout,
};
use toolweir_crds::{read_documents, resource::PolicyStatus};
use toolweir_engine::{CompileOptions, PolicyId};
use toolweir_operator::{
    approvals::{
        session,
        settings::{ApprovalSettings, PreparedApprovals},
        webhook::WebhookFiles,
        writer::EventQueue,
    },
    auth::{PodIdentity, TokenReviewer},
    cluster_state::ClusterState,
    event_notice::EventNotice,
    events::EventReport,
    index::{ClusterEvent, Pod, PodKey, PolicyEntry},
    inject::NamespaceInfo,
    operator_metrics::OperatorMetrics,
    shared_store::health::SidecarStore,
    stream::{StreamBounds, StreamServer},
};

use approval_api::ApiServer;

/// Longer than anything takes here, on a busy machine too.
const LONG: Duration = Duration::from_secs(30);

struct Operator {
    world: Arc<ClusterState>,
    metrics: OperatorMetrics,
    streams: StreamServer,
    events: mpsc::Receiver<EventReport>,
    leads: watch::Sender<bool>,
    _parts: JoinSet<()>,
    _held: (watch::Sender<Arc<str>>, watch::Sender<SidecarStore>, watch::Sender<bool>),
}

fn policy(name: &str, generation: i64, tools: &str) -> ClusterEvent {
    let text = format!(
        "{{apiVersion: toolweir.dev/v1alpha1, kind: MCPPolicy, metadata: {{name: {name}, namespace: agents}}, spec: {{podSelector: \
         {{matchLabels: {{policy: {name}}}}}, servers: [{{name: billing, url: 'http://s', tools: [{tools}]}}]}}}}"
    );
    let document = read_documents("test", &text).unwrap().remove(0).document;
    let uid = format!("uid-of-{name}");
    let entry = PolicyEntry::new(uid, generation, document, PolicyStatus::default(), &CompileOptions::default());
    ClusterEvent::Policy(entry.policy.id.clone(), Box::new(entry))
}

fn pod(name: &str, policy: &str) -> ClusterEvent {
    let labels = BTreeMap::from([("policy".to_owned(), policy.to_owned())]);
    let pod = Pod { uid: format!("uid-{name}"), labels, injected: true, ..Pod::default() };
    ClusterEvent::Pod(PodKey { namespace: "agents".to_owned(), name: name.to_owned() }, pod)
}

fn settings() -> ApprovalSettings {
    ApprovalSettings { retention: Duration::from_secs(7 * 24 * 3600), guard: "guard".to_owned(), webhook: None }
}

fn operator(api: &ApiServer, settings: Option<ApprovalSettings>) -> Operator {
    let metrics = OperatorMetrics::new().unwrap();
    let world = Arc::new(ClusterState::new(metrics.state.clone(), CompileOptions::default()));
    world.apply(ClusterEvent::Namespaces(BTreeMap::from([("agents".to_owned(), NamespaceInfo::default())])));
    world.apply(ClusterEvent::Pods(BTreeMap::new()));
    world.apply(ClusterEvent::Policies { cluster: false, all: BTreeMap::new() });
    world.apply(ClusterEvent::Policies { cluster: true, all: BTreeMap::new() });
    world.apply(ClusterEvent::AllPins(BTreeMap::new()));
    for (name, policy) in [("one", "asks"), ("two", "asks"), ("three", "silent")] {
        world.apply(pod(name, policy));
    }
    world.apply(policy("asks", 1, "{name: pay, approval: {}}"));
    world.apply(policy("silent", 1, "{name: pay}"));
    let (trust, trusted) = watch::channel(Arc::from("PEM"));
    let (store, stores) = watch::channel(SidecarStore::Nowhere);
    let (stop, stopping) = watch::channel(false);
    let (reports, events) = mpsc::channel(256);
    let client = kube::Client::new(api.clone(), "default");
    let queue = EventQueue { reports: reports.clone(), metrics: metrics.events.clone() };
    let approvals = PreparedApprovals::new(settings, client.clone(), queue, &metrics);
    let streams = StreamServer {
        approvals: Arc::clone(&approvals.service),
        state: Arc::clone(&world),
        reviewer: TokenReviewer::new(client),
        trust: trusted,
        store: stores,
        reports,
        stopping,
        bounds: Arc::new(StreamBounds::default()),
        metrics: metrics.stream.clone(),
        events: metrics.events.clone(),
    };
    let (mut parts, (leads, leading)) = (JoinSet::new(), watch::channel(false));
    approvals.start(&mut parts, &world, &metrics, leading);
    Operator { world, metrics, streams, events, leads, _parts: parts, _held: (trust, store, stop) }
}

/// What a sidecar holds of its stream.
struct Sidecar {
    reports: mpsc::UnboundedSender<Bytes>,
    body: BoxBody<Bytes, Infallible>,
}

impl Operator {
    async fn open(&self, pod: &str) -> Sidecar {
        let (reports, mut receiver) = mpsc::unbounded_channel::<Bytes>();
        let frames = futures_util::stream::poll_fn(move |context| {
            receiver.poll_recv(context).map(|data| data.map(|data| Ok::<_, Infallible>(Frame::data(data))))
        });
        let claims = json!({"pod": pod, "uid": format!("uid-{pod}")});
        let token = format!("e30.{}.c2ln", BASE64URL_NOPAD.encode(claims.to_string().as_bytes()));
        let request = Request::post("/v1/policies").header("authorization", format!("Bearer {token}"));
        let response = self.streams.clone().answer(request.body(StreamBody::new(frames)).unwrap()).await;
        assert_eq!(response.status(), StatusCode::OK);
        Sidecar { reports, body: response.into_body() }
    }

    async fn event(&mut self) -> EventNotice {
        match timeout(LONG, self.events.recv()).await.expect("an event").unwrap() {
            EventReport::Approval(notice) => *notice,
            other => panic!("{other:?}"),
        }
    }

    fn counted(&self, series: &str) -> i64 {
        let page = String::from_utf8(self.metrics.registry.scrape().unwrap()).unwrap();
        let line = page.lines().find_map(|line| line.strip_prefix(series)).unwrap_or_else(|| panic!("no {series}"));
        line.trim().parse().unwrap()
    }
}

impl Sidecar {
    async fn line(&mut self) -> Value {
        let frame = timeout(LONG, self.body.frame()).await.expect("a line").expect("the stream goes on");
        serde_json::from_slice(&frame.unwrap().into_data().unwrap()).unwrap()
    }

    async fn news(&mut self) -> Value {
        loop {
            let mut line = self.line().await;
            if !line["approvals"].is_null() {
                return line["approvals"].take();
            }
        }
    }

    /// Waits until a request has this state in the news.
    async fn told(&mut self, name: &str, state: &str) -> Value {
        loop {
            let news = self.news().await;
            let known = news["approvals"].as_array().into_iter().flatten().find(|known| known["name"] == name);
            if let Some(known) = known.filter(|known| known["state"] == state) {
                return known.clone();
            }
        }
    }

    fn says(&self, approvals: &[Value]) {
        self.reports.send(format!("{}\n", json!({"approvals": approvals})).into()).unwrap();
    }
}

fn after(seconds: i64) -> String {
    Timestamp::from_second(Timestamp::now().as_second() + seconds).unwrap().to_string()
}

fn asked(name: &str, hash: &str) -> Value {
    json!({
        "name": name, "state": "Pending",
        "request": {
            "server": "billing", "tool": "pay", "argumentsSha256": hash.repeat(32), "requestedAt": after(0), "expiresAt": after(600),
            "usableSeconds": 600, "shown": [{"expression": "args.amount", "value": "900"}], "message": "Over 500.",
            "agent": {"pod": "forged", "podUid": "forged", "serviceAccount": "forged"},
            "policies": [{"namespace": "agents", "name": "asks", "uid": "uid-of-asks", "generation": 1}],
        },
    })
}

fn says(name: &str, state: &str) -> Value {
    json!({"name": name, "state": state})
}

#[tokio::test]
async fn a_call_is_asked_approved_and_used() {
    let api = ApiServer::new();
    let mut operator = operator(&api, Some(settings()));
    let mut sidecar = operator.open("one").await;
    assert_eq!(sidecar.news().await, json!({}), "people can be asked");
    sidecar.says(&[asked("pay-x", "0a")]);
    assert_eq!(sidecar.told("pay-x", "Pending").await, says("pay-x", "Pending"));
    let object = api.state("pay-x", "Pending").await;
    assert_eq!(object["metadata"]["labels"]["toolweir.dev/pod-uid"], "uid-one");
    assert_eq!(object["spec"]["agent"], json!({"pod": "one", "podUid": "uid-one", "serviceAccount": "default"}));
    assert_eq!(object["spec"]["expiresAt"], object["status"]["expiresAt"]);
    let event = operator.event().await;
    assert_eq!(
        (event.reason, event.regarding.to_string().as_str(), event.regarding.uid.as_str()),
        ("ApprovalRequested", "agents/one", "uid-one")
    );
    assert!(event.message.starts_with("Tool pay on server billing waits for a person until 2"), "{}", event.message);
    assert!(event.message.contains("agents/pay-x. `kubectl toolweir approve pay-x -n agents`, or `kubectl"), "{}", event.message);
    api.decide("pay-x", "Approve", "jane", "fine");
    let known = sidecar.told("pay-x", "Approved").await;
    assert_eq!((&known["decidedBy"], &known["reason"]), (&json!("jane"), &json!("fine")));
    let until = known["until"].as_i64().unwrap() - Timestamp::now().as_second();
    assert!((590..=600).contains(&until), "{until}");
    let event = operator.event().await;
    assert_eq!((event.reason, event.event_type.as_str()), ("ApprovalDecided", "Normal"));
    assert_eq!(event.message, "Tool pay on server billing was approved by jane (agents/pay-x): fine");
    sidecar.says(&[says("pay-x", "Used")]);
    sidecar.told("pay-x", "Used").await;
    assert_eq!(api.object("pay-x")["status"]["state"], "Used");
    for (series, count) in [("create\",result=\"ok\"}", 1), ("status\",result=\"ok\"}", 3), ("status\",result=\"failed\"}", 0)] {
        assert_eq!(
            operator.counted(&format!("toolweir_operator_approval_writes_total{{operation=\"{series}")),
            count,
            "{series}"
        );
    }
}

#[tokio::test]
async fn a_pod_hears_of_its_own_requests_and_one_that_asks_nobody_of_none() {
    let api = ApiServer::new();
    let operator = operator(&api, Some(settings()));
    let (mut one, mut two, mut three) = (operator.open("one").await, operator.open("two").await, operator.open("three").await);
    one.news().await;
    two.news().await;
    one.says(&[asked("pay-x", "0a")]);
    one.told("pay-x", "Pending").await;
    two.says(&[asked("pay-y", "0a")]);
    let news = two.news().await;
    assert_eq!(news, json!({"approvals": [says("pay-y", "Pending")]}));
    api.decide("pay-x", "Approve", "jane", "");
    one.told("pay-x", "Approved").await;
    // The name of another pod's is taken, and its approval is none for this one.
    two.says(&[asked("pay-x", "0a"), says("pay-y", "Pending")]);
    let known = two.told("pay-x", "Voided").await;
    assert_eq!(known["reason"], "its name is that of another request");
    assert_eq!(api.object("pay-x")["spec"]["agent"]["podUid"], "uid-one");
    // Policies and keep-alives are all that the third one hears, whatever it says.
    three.says(&[asked("pay-z", "0a")]);
    for _ in 0..3 {
        assert!(three.line().await["approvals"].is_null());
    }
    assert!(api.find("pay-z").is_none());
}

#[tokio::test]
async fn a_changed_policy_voids_what_it_asked_and_a_deleted_object_too() {
    let api = ApiServer::new();
    let operator = operator(&api, Some(settings()));
    let mut sidecar = operator.open("one").await;
    sidecar.news().await;
    sidecar.says(&[asked("pay-x", "0a"), asked("pay-y", "0b"), asked("pay-z", "0c")]);
    for name in ["pay-x", "pay-y", "pay-z"] {
        api.state(name, "Pending").await;
    }
    api.delete("pay-y");
    assert_eq!(sidecar.told("pay-y", "Voided").await["reason"], "it was deleted");
    api.decide("pay-z", "Approve", "jane", "");
    sidecar.told("pay-z", "Approved").await;
    operator.world.apply(policy("asks", 2, "{name: pay, approval: {hold: 1s}}"));
    let mut lines = Vec::new();
    while !lines.iter().any(|line: &Value| line["approvals"]["approvals"][0]["state"] == "Voided") {
        lines.push(sidecar.line().await);
    }
    assert!(lines[0]["snapshot"].is_object(), "the policies come first: {lines:?}");
    assert_eq!(
        lines.last().unwrap()["approvals"]["approvals"][2]["state"],
        "Voided",
        "an approval of what the policy said is none"
    );
    api.state("pay-x", "Voided").await;
    // Also where the sidecar says nothing. It has the last word on one that it had used by then.
    api.state("pay-z", "Voided").await;
    sidecar.says(&[says("pay-z", "Used")]);
    api.state("pay-z", "Used").await;
}

#[tokio::test]
async fn without_the_guard_nobody_is_asked_and_no_decision_counts() {
    let api = ApiServer::new();
    api.set_guard(false);
    let unguarded = operator(&api, Some(settings()));
    let mut sidecar = unguarded.open("one").await;
    let news = sidecar.news().await;
    assert!(news["unavailable"].as_str().unwrap().contains("ValidatingAdmissionPolicy guard"), "{news}");
    assert_eq!(unguarded.counted("toolweir_operator_approvals_guarded"), 0);
    sidecar.says(&[asked("pay-x", "0a")]);
    // One that was asked before, and that somebody decides now.
    api.seed("pay-y", "uid-one", &after(0), &json!({"state": "Pending"}));
    api.decide("pay-y", "Approve", "mallory", "");
    let object = api.state("pay-y", "Voided").await;
    assert!(object["status"]["message"].as_str().unwrap().contains("nothing checked who decides"), "{object}");
    assert!(api.find("pay-x").is_none());
    drop((sidecar, unguarded));
    api.set_guard(true);
    let guarded = operator(&api, Some(settings()));
    let mut sidecar = guarded.open("one").await;
    assert_eq!(sidecar.news().await, json!({}), "what is void stays so, and the sidecar does not ask for it");
    assert_eq!(guarded.counted("toolweir_operator_approvals_guarded"), 1);
}

#[tokio::test]
async fn where_approvals_are_off_a_sidecar_hears_why() {
    let api = ApiServer::new();
    let operator = operator(&api, None);
    let mut sidecar = operator.open("one").await;
    let news = sidecar.news().await;
    assert!(news["unavailable"].as_str().unwrap().contains("approvals.enabled"), "{news}");
    sidecar.says(&[asked("pay-x", "0a")]);
    sidecar.told("pay-x", "Voided").await;
    assert_eq!(api.calls(), 0, "nothing is read or written");
}

#[tokio::test]
async fn another_replica_goes_on_where_one_stopped() {
    let api = ApiServer::new();
    let first = operator(&api, Some(settings()));
    let mut sidecar = first.open("one").await;
    sidecar.news().await;
    sidecar.says(&[asked("pay-x", "0a")]);
    api.state("pay-x", "Pending").await;
    drop((sidecar, first));
    api.decide("pay-x", "Deny", "jane", "no money");
    let second = operator(&api, Some(settings()));
    let mut sidecar = second.open("one").await;
    // Before, a sidecar says nothing.
    sidecar.news().await;
    sidecar.says(&[asked("pay-x", "0a")]);
    let known = sidecar.told("pay-x", "Denied").await;
    assert_eq!((&known["decidedBy"], &known["reason"]), (&json!("jane"), &json!("no money")));
    assert!(known["until"].as_i64().unwrap() > Timestamp::now().as_second() + 500);
    // What has no object and was never asked here is asked now.
    sidecar.says(&[says("pay-x", "Denied"), asked("pay-y", "0b")]);
    api.state("pay-y", "Pending").await;
}

#[tokio::test]
async fn a_flood_makes_twenty_objects_at_once() {
    let api = ApiServer::new();
    let operator = operator(&api, Some(settings()));
    let mut sidecar = operator.open("one").await;
    sidecar.news().await;
    let many: Vec<Value> = (0..64).map(|n| asked(&format!("pay-{n}"), &format!("{n:02x}"))).collect();
    sidecar.says(&many);
    while sidecar.news().await["approvals"].as_array().unwrap().len() < 20 {}
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(operator.counted("toolweir_operator_approval_writes_total{operation=\"create\",result=\"ok\"}"), 20);
    assert_eq!(api.names().len(), 20);
}

#[tokio::test]
async fn writes_that_fail_are_made_again_and_what_is_refused_is_void() {
    let api = ApiServer::new();
    let operator = operator(&api, Some(settings()));
    let mut sidecar = operator.open("one").await;
    sidecar.news().await;
    api.fail(&[(500, ""), (409, "conflict")]);
    sidecar.says(&[asked("pay-x", "0a")]);
    // The first creation fails, then comes the first write of a state.
    api.state("pay-x", "Pending").await;
    api.fail(&[(403, "exceeded quota: approvals")]);
    sidecar.says(&[says("pay-x", "Pending"), asked("pay-y", "0b")]);
    let known = sidecar.told("pay-y", "Voided").await;
    assert_eq!(known["reason"], "the API server does not take the request: exceeded quota: approvals");
    assert_eq!(operator.counted("toolweir_operator_approval_writes_total{operation=\"create\",result=\"refused\"}"), 1);
    assert_eq!(operator.counted("toolweir_operator_approval_writes_total{operation=\"create\",result=\"failed\"}"), 1);
}

#[tokio::test]
async fn the_leader_ends_requests_of_pods_that_are_gone_and_deletes_old_ones() {
    let api = ApiServer::new();
    let long_ago = "2020-01-01T00:00:00Z";
    api.seed("orphan", "uid-gone", long_ago, &json!({"state": "Pending"}));
    api.seed(
        "late",
        "uid-one",
        long_ago,
        &json!({"state": "Approved", "decision": "Approve", "decidedBy": "jane", "expiresAt": long_ago}),
    );
    api.seed("old", "uid-one", long_ago, &json!({"state": "Used", "updatedAt": long_ago}));
    api.seed("young", "uid-one", long_ago, &json!({"state": "Used", "updatedAt": after(-60)}));
    let operator = operator(&api, Some(settings()));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(api.names().len(), 4, "only the leader does");
    operator.leads.send_replace(true);
    assert_eq!(api.state("orphan", "Voided").await["status"]["message"], "The pod is gone.");
    while api.find("old").is_some() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // It is there, but has no stream; what has just been seen is left to the replica with the stream for a while.
    api.state("late", "Expired").await;
    assert_eq!(api.names(), ["late", "orphan", "young"]);
    for (state, count) in [("Voided", 1), ("Used", 1)] {
        assert_eq!(operator.counted(&format!("toolweir_operator_approvals{{state=\"{state}\"}}")), count, "as of its last look");
    }
    operator.leads.send_replace(false);
    let forgotten = || operator.counted("toolweir_operator_approvals{state=\"Used\"}") == 0;
    while !forgotten() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn the_webhook_is_told_of_a_request_by_the_replica_that_made_it() {
    let api = ApiServer::new();
    let path = std::env::temp_dir().join(format!("toolweir-approvals-{}-url", std::process::id()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    std::fs::write(&path, format!("http://{}/hook", listener.local_addr().unwrap())).unwrap();
    let webhook = Some(WebhookFiles { url: path.clone(), secret: None });
    let operator = operator(&api, Some(ApprovalSettings { webhook, ..settings() }));
    let mut sidecar = operator.open("one").await;
    sidecar.news().await;
    sidecar.says(&[asked("pay-x", "0a")]);
    let (mut stream, _) = timeout(LONG, listener.accept()).await.expect("a connection").unwrap();
    let mut text = Vec::new();
    while !text.ends_with(b"}}") {
        let mut part = [0; 4096];
        let length = tokio::io::AsyncReadExt::read(&mut stream, &mut part).await.unwrap();
        text.extend_from_slice(&part[..length]);
    }
    let _ = std::fs::remove_file(path);
    let text = String::from_utf8(text).unwrap();
    let body: Value = serde_json::from_str(text.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!((&body["approval"]["name"], &body["approval"]["shown"][0]["value"]), (&json!("pay-x"), &json!("900")));
    assert!(!text.contains("toolweir-signature") && !text.contains(&"0a".repeat(32)), "{text}");
}

#[test]
fn the_id_of_a_policy_is_what_an_approval_names() {
    // Approvals name policies by namespace and name, which must be those of the index.
    let ClusterEvent::Policy(id, _) = policy("asks", 1, "{name: pay, approval: {}}") else { panic!("no policy") };
    assert_eq!(id, PolicyId { cluster: false, namespace: "agents".to_owned(), name: "asks".to_owned() });
}

/// There are ten thousand of them.
#[tokio::test]
async fn a_stream_whose_pod_needs_no_approvals_is_hardly_larger_for_them() {
    let operator = operator(&ApiServer::new(), Some(settings()));
    let pod = PodKey { namespace: "agents".to_owned(), name: "three".to_owned() };
    let agent = PodIdentity { pod, uid: "uid-three".to_owned(), service_account: "default".to_owned() };
    let (_current, snapshots) = watch::channel(None);
    let serving = session::serve(&operator.streams.approvals, 1, &agent, snapshots, watch::channel(None).0);
    let bytes = size_of_val(&serving);
    assert!(bytes < 1024, "{bytes} bytes");
}
