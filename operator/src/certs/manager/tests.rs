//! The manager against an API server in memory: objects with versions, conflicts, watches and faults.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    pin::Pin,
    sync::{Mutex, MutexGuard},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use tokio::time::timeout;

use super::*;

const SECRET: &str = "/api/v1/namespaces/toolweir-system/secrets/toolweir-ca";
const INJECTOR: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/toolweir-injector";
const VALIDATOR: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/toolweir-policies";

#[derive(Debug, Default)]
struct Objects {
    /// By path.
    all: BTreeMap<String, Value>,
    version: u64,
    /// Methods and paths of what changed something.
    writes: Vec<(Method, String)>,
    down: bool,
}

impl Objects {
    fn put(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.all.insert(path.to_owned(), object.clone());
        object
    }
}

/// An API server that is a map.
#[derive(Clone, Debug, Default)]
struct ApiServer {
    objects: Arc<Mutex<Objects>>,
    changes: watch::Sender<u64>,
}

type ApiResponse = Response<UnsyncBoxBody<Bytes, Infallible>>;

fn answer(status: StatusCode, value: &Value) -> ApiResponse {
    Response::builder().status(status).body(Full::new(Bytes::from(value.to_string())).boxed_unsync()).unwrap()
}

fn failure(status: StatusCode, reason: &str) -> ApiResponse {
    let code = status.as_u16();
    answer(
        status,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": reason, "reason": reason, "code": code}),
    )
}

/// The metadata alone, as `as=PartialObjectMetadata` has it.
fn partial(object: &Value) -> Value {
    json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": object["metadata"]})
}

impl ApiServer {
    /// One in which the chart is installed.
    fn new() -> Self {
        let server = Self::default();
        let webhooks = |kind: &str, name: &str, webhooks: &[&str]| {
            let webhooks: Vec<Value> = webhooks
                .iter()
                .map(|name| {
                    let service = json!({"name": "toolweir-operator", "namespace": "toolweir-system", "path": "/inject"});
                    json!({"name": name, "clientConfig": {"service": service}, "sideEffects": "None", "admissionReviewVersions": ["v1"]})
                })
                .collect();
            json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "webhooks": webhooks})
        };
        let injector = webhooks(
            "MutatingWebhookConfiguration",
            "toolweir-injector",
            &["namespaces.inject.toolweir.dev", "pods.inject.toolweir.dev"],
        );
        server.set(INJECTOR, injector);
        server.set(VALIDATOR, webhooks("ValidatingWebhookConfiguration", "toolweir-policies", &["policies.toolweir.dev"]));
        server
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap()
    }

    /// Somebody else writes an object.
    fn set(&self, path: &str, object: Value) {
        let version = {
            let mut objects = self.objects();
            objects.put(path, object);
            objects.version
        };
        self.changes.send_replace(version);
    }

    fn get(&self, path: &str) -> Value {
        self.objects().all.get(path).cloned().unwrap_or_default()
    }

    fn delete(&self, path: &str) {
        self.objects().all.remove(path);
    }

    /// Somebody else's `caBundle`.
    fn spoil(&self, path: &str, at: usize) {
        let mut object = self.get(path);
        object["webhooks"][at]["clientConfig"]["caBundle"] = "c29tZWJvZHkgZWxzZQ==".into();
        self.set(path, object);
    }

    fn state(&self) -> AuthoritySet {
        store::read(&serde_json::from_value(self.get(SECRET)).unwrap()).unwrap().unwrap()
    }

    fn ids(&self) -> Vec<String> {
        self.state().authorities.into_iter().map(|authority| authority.id).collect()
    }

    /// Every `caBundle`, as text.
    fn bundles(&self) -> Vec<String> {
        let webhooks = |path: &str| self.get(path)["webhooks"].as_array().cloned().unwrap_or_default();
        let of = |webhook: &Value| {
            let bundle = webhook["clientConfig"]["caBundle"].as_str().unwrap_or_default();
            String::from_utf8(BASE64.decode(bundle.as_bytes()).unwrap()).unwrap()
        };
        webhooks(INJECTOR).iter().chain(&webhooks(VALIDATOR)).map(of).collect()
    }

    fn writes(&self) -> Vec<(Method, String)> {
        std::mem::take(&mut self.objects().writes)
    }

    fn keeper(&self) -> CertificateManager {
        self.keeper_with(CertificateLifetimes::new(Duration::from_secs(60), Duration::from_secs(20)).unwrap())
    }

    fn keeper_with(&self, lifetimes: CertificateLifetimes) -> CertificateManager {
        let settings = CertificateSettings {
            namespace: "toolweir-system".to_owned(),
            secret: "toolweir-ca".to_owned(),
            names: issue::names("toolweir-operator", "toolweir-system"),
            injector: "toolweir-injector".to_owned(),
            validator: "toolweir-policies".to_owned(),
            lifetimes,
            store: None,
        };
        let registry = OperatorRegistry::new().unwrap();
        let metrics = CertificateMetrics::new(&registry).unwrap();
        CertificateManager::new(Client::new(self.clone(), "default"), settings, metrics, WatchFailures::new(&registry).unwrap())
    }

    async fn answer(self, request: Request<kube::client::Body>) -> ApiResponse {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        // Whoever asks at the same time comes in between.
        tokio::task::yield_now().await;
        let (path, query) = (head.uri.path().to_owned(), head.uri.query().unwrap_or_default().to_owned());
        let answered = self.objects().answer(&head.method, &path, &query, &body);
        match answered {
            Some(answered) => {
                let version = self.objects().version;
                self.changes.send_if_modified(|seen| std::mem::replace(seen, version) != version);
                answered
            }
            None => self.watch(path),
        }
    }

    /// Events of every change from now on, of whatever object.
    fn watch(&self, path: String) -> ApiResponse {
        let (objects, changes) = (Arc::clone(&self.objects), self.changes.subscribe());
        let events = futures_util::stream::unfold(changes, move |mut changes| {
            let (objects, path) = (Arc::clone(&objects), path.clone());
            async move {
                changes.changed().await.ok()?;
                let object = objects
                    .lock()
                    .unwrap()
                    .all
                    .iter()
                    .find(|(at, _)| at.starts_with(&path))
                    .map(|(_, object)| partial(object))?;
                let event = format!("{}\n", json!({"type": "MODIFIED", "object": object}));
                Some((Ok::<_, Infallible>(Frame::data(Bytes::from(event))), changes))
            }
        });
        Response::new(StreamBody::new(events).boxed_unsync())
    }
}

impl Objects {
    /// Nothing where it is a watch.
    fn answer(&mut self, method: &Method, path: &str, query: &str, body: &[u8]) -> Option<ApiResponse> {
        if self.down {
            return Some(failure(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"));
        }
        if query.contains("watch=true") {
            return None;
        }
        if query.contains("fieldSelector") {
            let items: Vec<Value> =
                self.all.iter().filter(|(at, _)| at.starts_with(path)).map(|(_, object)| partial(object)).collect();
            let version = self.version.to_string();
            let list = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList", "metadata": {"resourceVersion": version}, "items": items});
            return Some(answer(StatusCode::OK, &list));
        }
        let there = self.all.get(path).cloned();
        let object = || serde_json::from_slice::<Value>(body).unwrap();
        let changed = match (method, there) {
            (&Method::GET, Some(there)) => return Some(answer(StatusCode::OK, &there)),
            (&Method::POST, _) => {
                let object = object();
                let path = format!("{path}/{}", object["metadata"]["name"].as_str().unwrap());
                if self.all.contains_key(&path) {
                    return Some(failure(StatusCode::CONFLICT, "AlreadyExists"));
                }
                self.put(&path, object)
            }
            (&Method::PUT, Some(there)) => {
                let object = object();
                if object["metadata"]["resourceVersion"] != there["metadata"]["resourceVersion"] {
                    return Some(failure(StatusCode::CONFLICT, "Conflict"));
                }
                self.put(path, object)
            }
            (&Method::PATCH, Some(mut there)) => {
                let steps: json_patch::Patch = serde_json::from_slice(body).unwrap();
                if json_patch::patch(&mut there, &steps).is_err() {
                    return Some(failure(StatusCode::UNPROCESSABLE_ENTITY, "Invalid"));
                }
                self.put(path, there)
            }
            (_, None) => return Some(failure(StatusCode::NOT_FOUND, "NotFound")),
            (method, Some(_)) => panic!("{method} {path}"),
        };
        self.writes.push((method.clone(), path.to_owned()));
        Some(answer(if method == Method::POST { StatusCode::CREATED } else { StatusCode::OK }, &changed))
    }
}

impl tower_service::Service<Request<kube::client::Body>> for ApiServer {
    type Response = ApiResponse;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<ApiResponse, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let server = self.clone();
        Box::pin(async move { Ok(server.answer(request).await) })
    }
}

fn now() -> SystemTime {
    // Certificates hold whole seconds.
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn after(seconds: u64) -> SystemTime {
    now() + Duration::from_secs(seconds)
}

fn shown(keeper: &CertificateManager) -> Arc<CertifiedKey> {
    keeper.serving().0.load_full().expect("a certificate")
}

fn made(keeper: &CertificateManager, which: &str) -> u64 {
    keeper.metrics.rotations.with_label_values(&[which]).get()
}

#[tokio::test]
async fn at_the_first_start_there_is_a_secret_and_both_webhooks_trust_it() {
    let server = ApiServer::new();
    let mut keeper = server.keeper();
    assert!(keeper.trust().borrow().is_empty() && keeper.serving().0.load().is_none());
    // A third of the authority's life is as long as a certificate lives at most: half of that is the next thing due.
    assert_eq!(keeper.round(now()).await.unwrap(), after(10));
    let secret = server.get(SECRET);
    assert_eq!(secret["type"], "toolweir.dev/ca");
    assert_eq!(secret["metadata"]["labels"]["app.kubernetes.io/managed-by"], "toolweir-operator");
    let bundle = server.state().bundle();
    assert_eq!(server.bundles(), [bundle.as_str(); 3]);
    assert_eq!(&**keeper.trust().borrow(), bundle);
    issue::verify(&shown(&keeper), &server.state(), &keeper.settings.names, now()).unwrap();
    assert_eq!((made(&keeper, "ca"), made(&keeper, "leaf")), (1, 1));
    let expiry = |which: &str| keeper.metrics.expiry.with_label_values(&[which]).get();
    assert!((expiry("ca") - 1_800_000_060.0).abs() < 0.1 && (expiry("leaf") - 1_800_000_020.0).abs() < 0.1);
    assert_eq!(server.writes().len(), 3);
    // And then nothing is written for as long as nothing is due.
    keeper.round(after(1)).await.unwrap();
    assert_eq!(server.writes(), []);
    assert_eq!(made(&keeper, "leaf"), 1);
}

#[tokio::test]
async fn a_replica_that_comes_later_takes_the_authorities_that_are_there() {
    let server = ApiServer::new();
    server.keeper().round(now()).await.unwrap();
    let (ids, mut other) = (server.ids(), server.keeper());
    server.writes();
    other.round(after(3)).await.unwrap();
    assert_eq!((server.ids(), server.writes()), (ids, Vec::new()));
    issue::verify(&shown(&other), &server.state(), &other.settings.names, after(3)).unwrap();
}

#[tokio::test]
async fn two_replicas_at_once_end_with_the_same_authorities() {
    let server = ApiServer::new();
    let (mut one, mut other) = (server.keeper(), server.keeper());
    for (at, count) in [(0, 1), (20, 2), (40, 3), (60, 3), (80, 3)] {
        // Both look before either writes; one of them is told that it is too late.
        let (first, second) = tokio::join!(one.round(after(at)), other.round(after(at)));
        first.unwrap();
        second.unwrap();
        let state = server.state();
        assert_eq!(state.authorities.len(), count, "after {at} s");
        for keeper in [&one, &other] {
            assert_eq!(&**keeper.trust().borrow(), state.bundle());
            issue::verify(&shown(keeper), &state, &keeper.settings.names, after(at)).unwrap();
        }
        assert_eq!(server.bundles(), [state.bundle().as_str(); 3]);
    }
    assert_eq!(made(&one, "ca") + made(&other, "ca"), 5);
}

#[tokio::test]
async fn over_two_lives_what_is_shown_is_accepted_by_who_heard_a_third_ago() {
    let server = ApiServer::new();
    let mut keeper = server.keeper();
    let mut told = Vec::new();
    for at in (0..=120).step_by(4) {
        keeper.round(after(at)).await.unwrap();
        told.push(server.state());
        // Five steps are a third of a life.
        for heard in told.iter().rev().take(6) {
            issue::verify(&shown(&keeper), heard, &keeper.settings.names, after(at))
                .unwrap_or_else(|error| panic!("after {at} s: {error}"));
        }
    }
    assert!(made(&keeper, "ca") == 7 && made(&keeper, "leaf") > 10);
}

#[tokio::test]
async fn a_ca_bundle_that_somebody_else_wrote_is_mended() {
    let server = ApiServer::new();
    let mut keeper = server.keeper();
    keeper.round(now()).await.unwrap();
    server.writes();
    server.spoil(INJECTOR, 1);
    keeper.round(after(1)).await.unwrap();
    assert_eq!(server.bundles(), [server.state().bundle().as_str(); 3]);
    assert_eq!(server.writes(), [(Method::PATCH, INJECTOR.to_owned())], "and nothing else is written");
    // `helm upgrade` writes the whole object, with other webhooks even.
    let mut object = server.get(VALIDATOR);
    object["webhooks"] = json!([{"name": "new", "clientConfig": {}, "sideEffects": "None", "admissionReviewVersions": ["v1"]}]);
    server.set(VALIDATOR, object);
    keeper.round(after(2)).await.unwrap();
    assert_eq!(server.bundles(), [server.state().bundle().as_str(); 3]);
}

#[tokio::test]
async fn a_secret_that_was_deleted_is_written_back_with_the_same_authorities() {
    let server = ApiServer::new();
    let mut keeper = server.keeper();
    keeper.round(now()).await.unwrap();
    keeper.round(after(20)).await.unwrap();
    let ids = server.ids();
    assert_eq!(ids.len(), 2);
    server.delete(SECRET);
    keeper.round(after(21)).await.unwrap();
    assert_eq!(server.ids(), ids);
    // One that somebody emptied, too.
    let mut secret = server.get(SECRET);
    secret["data"] = json!({});
    server.set(SECRET, secret);
    keeper.round(after(22)).await.unwrap();
    assert_eq!(server.ids(), ids);
}

#[tokio::test]
async fn a_secret_that_cannot_be_read_is_left_alone_and_what_was_in_force_stays() {
    let server = ApiServer::new();
    let mut keeper = server.keeper();
    keeper.round(now()).await.unwrap();
    let (state, bundles, before) = (server.state(), server.bundles(), shown(&keeper));
    let mut secret = server.get(SECRET);
    secret["data"]["authorities.json"] = BASE64.encode(b"{\"version\": 1, \"authorities\": [").into();
    server.set(SECRET, secret.clone());
    server.writes();

    let error = keeper.round(after(1)).await.unwrap_err().to_string();
    assert!(error.starts_with("Secret toolweir-ca cannot be used: authorities.json cannot be read: "), "{error}");
    let remedy = "Nothing is changed. Restore it, or delete it: an operator that ran before writes it back. Where none did, restart the agents then";
    assert!(error.ends_with(remedy), "{error}");
    assert_eq!(server.writes(), []);
    assert_eq!(server.get(SECRET)["data"], secret["data"]);
    assert_eq!(server.bundles(), bundles);
    assert_eq!(&**keeper.trust().borrow(), state.bundle());
    assert!(Arc::ptr_eq(&before, &shown(&keeper)));

    // What is shown does not run out before somebody comes.
    keeper.round(after(15)).await.unwrap_err();
    issue::verify(&shown(&keeper), &state, &keeper.settings.names, after(30)).unwrap();
    // A replica that starts now has nothing to show, and says why.
    let mut other = server.keeper();
    other.round(after(15)).await.unwrap_err();
    assert!(other.serving().0.load().is_none());

    // Deleted, as advised: the replica that knows the authorities writes them back.
    server.delete(SECRET);
    keeper.round(after(16)).await.unwrap();
    assert_eq!(server.state(), state);
    other.round(after(16)).await.unwrap();
}

#[tokio::test]
async fn without_an_api_server_what_is_shown_does_not_run_out() {
    let server = ApiServer::new();
    let mut keeper = server.keeper();
    keeper.round(now()).await.unwrap();
    let state = server.state();
    server.objects().down = true;
    for at in (2..58).step_by(4) {
        let error = keeper.round(after(at)).await.unwrap_err().to_string();
        assert!(error.starts_with("the API server returned an error: "), "{error}");
        issue::verify(&shown(&keeper), &state, &keeper.settings.names, after(at)).unwrap();
    }
    // The successor is a whole third late, and must sign at once.
    server.objects().down = false;
    keeper.round(after(58)).await.unwrap();
    issue::verify(&shown(&keeper), &server.state(), &keeper.settings.names, after(58)).unwrap();
    assert_eq!((server.ids().len(), server.bundles()), (2, vec![server.state().bundle(); 3]));
}

#[tokio::test]
async fn authorities_that_cannot_sign_what_is_accepted_are_told_to_nobody() {
    let server = ApiServer::new();
    let mut keeper = server.keeper();
    keeper.round(now()).await.unwrap();
    let (bundles, before) = (server.bundles(), shown(&keeper));
    // Somebody put another one in its place, and gave it an id that its certificate does not have.
    let mut forged = issue::authority(&server.state().authorities[0].span).unwrap();
    forged.id = "mine".to_owned();
    let secret = store::secret("toolweir-ca", &AuthoritySet { authorities: vec![forged] }).unwrap();
    server.set(SECRET, serde_json::to_value(secret).unwrap());
    let error = keeper.round(after(1)).await.unwrap_err().to_string();
    assert!(error.starts_with("the certificate that was made would not be accepted: "), "{error}");
    assert_eq!(server.bundles(), bundles);
    assert_eq!(keeper.trust().borrow().as_bytes(), bundles[0].as_bytes());
    assert!(Arc::ptr_eq(&before, &shown(&keeper)));
}

#[tokio::test]
async fn another_authority_under_the_same_id_is_noticed() {
    let server = ApiServer::new();
    let mut keeper = server.keeper();
    keeper.round(now()).await.unwrap();
    let span = server.state().authorities[0].span;
    // As after a restore from a backup of another cluster, where somebody kept the id.
    let other = issue::authority(&span).unwrap();
    let secret = store::secret("toolweir-ca", &AuthoritySet { authorities: vec![other] }).unwrap();
    server.set(SECRET, serde_json::to_value(secret).unwrap());
    keeper.round(after(1)).await.unwrap();
    issue::verify(&shown(&keeper), &server.state(), &keeper.settings.names, after(1)).unwrap();
    assert_eq!(server.bundles(), [server.state().bundle().as_str(); 3]);
}

#[tokio::test]
async fn without_the_webhooks_there_is_a_certificate_but_the_round_fails() {
    let server = ApiServer::new();
    server.delete(VALIDATOR);
    let mut keeper = server.keeper();
    let error = keeper.round(now()).await.unwrap_err().to_string();
    assert!(error.contains("NotFound"), "{error}");
    issue::verify(&shown(&keeper), &server.state(), &keeper.settings.names, now()).unwrap();
}

/// In real time: what [`CertificateManager::run`] adds to its rounds.
#[tokio::test]
async fn it_becomes_ready_and_is_told_of_changes() {
    let server = ApiServer::new();
    let validator = server.get(VALIDATOR);
    server.delete(VALIDATOR);
    // A life so long that nothing is due, nor looked at, within this test.
    let keeper = server.keeper_with(CertificateLifetimes::default());
    let (mut ready, metrics) = (keeper.ready(), keeper.metrics.clone());
    let running = tokio::spawn(keeper.run());
    let limit = Duration::from_secs(20);
    let until = async |holds: &dyn Fn() -> bool| {
        timeout(limit, async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .unwrap();
    };
    until(&|| metrics.failures.get() > 0).await;
    assert!(!*ready.borrow(), "not before both webhooks trust it");
    server.set(VALIDATOR, validator);
    timeout(limit, ready.wait_for(|ready| *ready)).await.unwrap().unwrap();
    let bundle = server.state().bundle();

    for (path, at) in [(INJECTOR, 0), (VALIDATOR, 0)] {
        let began = tokio::time::Instant::now();
        server.spoil(path, at);
        until(&|| server.bundles() == [bundle.as_str(); 3]).await;
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    }

    let mut secret = server.get(SECRET);
    secret["data"] = json!({"tls.key": ""});
    server.set(SECRET, secret);
    let before = metrics.failures.get();
    // Nobody watches Secrets; what makes it look is any change of a webhook.
    server.set(INJECTOR, server.get(INJECTOR));
    until(&|| metrics.failures.get() > before).await;
    assert!(*ready.borrow(), "it serves on");
    assert_eq!(server.bundles(), [bundle.as_str(); 3]);
    running.abort();
}

#[test]
fn a_ca_bundle_is_written_where_it_is_not_current() {
    let webhook = |name: &str, bundle: Option<&str>| WebhookBundle { name: name.to_owned(), bundle: bundle.map(str::to_owned) };
    let held = [webhook("a", Some("new")), webhook("b", None), webhook("c", Some("old"))];
    let expected = json!([
        {"op": "test", "path": "/webhooks/1/name", "value": "b"},
        {"op": "add", "path": "/webhooks/1/clientConfig/caBundle", "value": "new"},
        {"op": "test", "path": "/webhooks/2/name", "value": "c"},
        {"op": "add", "path": "/webhooks/2/clientConfig/caBundle", "value": "new"},
    ]);
    assert_eq!(serde_json::to_value(bundle_patch(&held, "new").unwrap()).unwrap(), expected);
    assert!(bundle_patch(&held[..1], "new").is_none());
}

const STORE: &str = "/api/v1/namespaces/toolweir-system/secrets/toolweir-store-tls";

fn store_keeper(server: &ApiServer) -> CertificateManager {
    let mut keeper = server.keeper_with(CertificateLifetimes::new(Duration::from_secs(3600), Duration::from_secs(60)).unwrap());
    let names = issue::names("toolweir-store", "toolweir-system");
    keeper.settings.store = Some(StoreCertificateSettings { secret: "toolweir-store-tls".to_owned(), names });
    keeper
}

fn of_store(server: &ApiServer, key: &str) -> String {
    String::from_utf8(BASE64.decode(server.get(STORE)["data"][key].as_str().unwrap_or_default().as_bytes()).unwrap()).unwrap()
}

#[tokio::test]
async fn the_store_gets_a_certificate_of_the_authorities_and_never_their_key() {
    let server = ApiServer::new();
    let (mut one, mut other) = (store_keeper(&server), store_keeper(&server));
    let now = SystemTime::now();
    let (first, second) = tokio::join!(one.round(now), other.round(now));
    first.unwrap();
    second.unwrap();
    let pair = issue::StoreKeyPair { certificate: of_store(&server, "tls.crt"), key: of_store(&server, "tls.key") };
    let names = ["toolweir-store.toolweir-system.svc".to_owned()];
    assert!(pair.is_good(&server.state(), &names, now));
    assert_eq!(of_store(&server, "ca.crt"), server.state().bundle());
    assert_eq!(server.get(STORE)["type"], "kubernetes.io/tls");
    let authority = server.state().authorities[0].key.clone();
    assert!(!server.get(STORE).to_string().contains(authority.lines().nth(1).unwrap()));
    // Nothing is written while it is in order.
    server.writes();
    one.round(now + Duration::from_secs(300)).await.unwrap();
    other.round(now + Duration::from_secs(300)).await.unwrap();
    assert_eq!(server.writes(), []);
    // At half of its 20 minutes it is made anew, with the same authority, and once.
    let later = now + Duration::from_secs(700);
    one.round(later).await.unwrap();
    other.round(later).await.unwrap();
    assert_eq!(server.writes(), [(Method::PUT, STORE.to_owned())]);
    assert_ne!(of_store(&server, "tls.crt"), pair.certificate);
    // Somebody deletes it.
    server.delete(STORE);
    one.round(later).await.unwrap();
    assert!(of_store(&server, "tls.crt").starts_with("-----BEGIN CERTIFICATE"));
    assert_eq!(
        one.metrics.rotations.with_label_values(&["store"]).get() + other.metrics.rotations.with_label_values(&["store"]).get(),
        3
    );
}

#[tokio::test]
async fn the_stores_certificate_follows_the_authorities_through_their_thirds() {
    let server = ApiServer::new();
    let mut keeper = store_keeper(&server);
    let began = SystemTime::now();
    for seconds in (0..3600 * 4).step_by(60) {
        let now = began + Duration::from_secs(seconds);
        keeper.round(now).await.unwrap();
        let pair = issue::StoreKeyPair { certificate: of_store(&server, "tls.crt"), key: of_store(&server, "tls.key") };
        let names = ["toolweir-store.toolweir-system.svc".to_owned()];
        // Who trusts what sidecars are told now accepts it, now and for a while.
        assert!(pair.is_good(&server.state(), &names, now), "after {seconds} s");
        assert!(pair.is_good(&server.state(), &names, now + Duration::from_secs(120)), "after {seconds} s");
    }
    assert!(server.state().authorities.iter().all(|authority| authority.span.made > began), "they have come and gone");
}

#[tokio::test]
async fn a_secret_of_somebody_else_for_the_store_holds_up_nothing_and_stays() {
    let server = ApiServer::new();
    let foreign = json!({"metadata": {"name": "toolweir-store-tls", "namespace": "toolweir-system"}, "type": "Opaque"});
    server.set(STORE, foreign);
    let mut keeper = store_keeper(&server);
    let now = SystemTime::now();
    let next = keeper.round(now).await.unwrap();
    assert!(next <= now + Duration::from_secs(60), "it is tried again");
    assert_eq!(keeper.metrics.failures.get(), 1);
    assert_eq!(server.get(STORE)["type"], "Opaque");
    assert!(server.bundles().iter().all(|bundle| *bundle == server.state().bundle()), "the webhooks are in order");
}
