//! An API server for `MCPApproval`s: a function with a memory.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::{sync::broadcast, time::timeout};

type Answer = UnsyncBoxBody<Bytes, Infallible>;

fn text(body: &Value) -> Answer {
    Full::new(Bytes::from(body.to_string())).boxed_unsync()
}

/// What it knows.
struct Memory {
    objects: BTreeMap<String, Value>,
    version: u64,
    /// Everything that happened, for watches.
    events: Vec<(u64, Value)>,
    guarded: bool,
    /// Answers of the next writes.
    failures: Vec<(u16, &'static str)>,
    calls: usize,
}

/// The API server. A clone is the same.
#[derive(Clone)]
pub struct ApiServer {
    memory: Arc<Mutex<Memory>>,
    changes: broadcast::Sender<()>,
}

impl ApiServer {
    pub fn new() -> Self {
        let memory =
            Memory { objects: BTreeMap::new(), version: 1, events: Vec::new(), guarded: true, failures: Vec::new(), calls: 0 };
        Self { memory: Arc::new(Mutex::new(memory)), changes: broadcast::Sender::new(64) }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Memory) -> T) -> T {
        let changed = change(&mut self.memory.lock().unwrap());
        let _ = self.changes.send(());
        changed
    }

    pub fn set_guard(&self, guarded: bool) {
        self.change(|memory| memory.guarded = guarded);
    }

    /// The next writes fail with these.
    pub fn fail(&self, failures: &[(u16, &'static str)]) {
        self.change(|memory| memory.failures = failures.iter().rev().copied().collect());
    }

    /// How often it was asked, but for reviews of tokens.
    pub fn calls(&self) -> usize {
        self.memory.lock().unwrap().calls
    }

    pub fn names(&self) -> Vec<String> {
        self.memory.lock().unwrap().objects.keys().cloned().collect()
    }

    pub fn find(&self, name: &str) -> Option<Value> {
        self.memory.lock().unwrap().objects.get(name).cloned()
    }

    pub fn object(&self, name: &str) -> Value {
        self.find(name).unwrap_or_else(|| panic!("there is no {name}"))
    }

    /// Waits until an object has a state.
    pub async fn state(&self, name: &str, state: &str) -> Value {
        let waited = timeout(Duration::from_secs(30), async {
            loop {
                if let Some(object) = self.find(name).filter(|object| object["status"]["state"] == state) {
                    return object;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("{name} never is {state}: {:?}", self.find(name)))
    }

    /// What a person does.
    pub fn decide(&self, name: &str, decision: &str, by: &str, reason: &str) {
        self.change(|memory| {
            let mut object = memory.objects[name].clone();
            (object["status"]["decision"], object["status"]["decidedBy"]) = (json!(decision), json!(by));
            if !reason.is_empty() {
                object["status"]["reason"] = json!(reason);
            }
            memory.put(object, "MODIFIED");
        });
    }

    pub fn delete(&self, name: &str) {
        self.change(|memory| memory.delete(name));
    }

    /// An object that was there before.
    pub fn seed(&self, name: &str, pod_uid: &str, created: &str, status: &Value) {
        let object = json!({
            "apiVersion": "toolweir.dev/v1alpha1", "kind": "MCPApproval",
            "metadata": {"name": name, "namespace": "agents", "uid": format!("uid of {name}"), "creationTimestamp": created},
            "spec": {
                "server": "billing", "tool": "pay", "argumentsSha256": "0a".repeat(32), "requestedAt": created,
                "expiresAt": "2099-01-01T00:00:00Z", "usableSeconds": 600,
                "agent": {"pod": pod_uid.trim_start_matches("uid-"), "podUid": pod_uid, "serviceAccount": "default"},
                "policies": [{"namespace": "agents", "name": "asks", "uid": "uid-of-asks", "generation": 1}],
            },
            "status": status,
        });
        self.change(|memory| memory.put(object, "ADDED"));
    }

    fn watch(&self, from: u64) -> Answer {
        let (server, receiver) = (self.clone(), self.changes.subscribe());
        let events = futures_util::stream::unfold((server, receiver, from), |(server, mut receiver, from)| async move {
            loop {
                let next = {
                    let memory = server.memory.lock().unwrap();
                    memory.events.iter().find(|(version, _)| *version > from).cloned()
                };
                if let Some((version, event)) = next {
                    let line = Frame::data(Bytes::from(format!("{event}\n")));
                    return Some((Ok::<_, Infallible>(line), (server, receiver, version)));
                }
                if let Err(broadcast::error::RecvError::Closed) = receiver.recv().await {
                    return None;
                }
            }
        });
        StreamBody::new(events).boxed_unsync()
    }
}

impl Memory {
    fn put(&mut self, mut object: Value, kind: &str) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(object["metadata"]["name"].as_str().unwrap().to_owned(), object.clone());
        self.events.push((self.version, json!({"type": kind, "object": object})));
        object
    }

    fn delete(&mut self, name: &str) {
        let mut object = self.objects.remove(name).unwrap();
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.events.push((self.version, json!({"type": "DELETED", "object": object})));
    }

    /// Creates an object; its status is not taken (Kubernetes, "Custom Resources", "Status subresource").
    fn create(&mut self, mut object: Value) -> (u16, Value) {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        if self.objects.contains_key(&name) {
            return refuse(409, "there is one of that name");
        }
        assert!(object["status"].is_null(), "{object}");
        object.as_object_mut().unwrap().remove("status");
        object["metadata"]["uid"] = json!(format!("uid of {name}"));
        object["metadata"]["creationTimestamp"] = json!(k8s_openapi::jiff::Timestamp::now().to_string());
        (201, self.put(object, "ADDED"))
    }

    fn patch_status(&mut self, name: &str, patch: &Value) -> (u16, Value) {
        // That is the operator's promise, whatever happens.
        let written = patch["status"].as_object().unwrap();
        assert!(written.keys().all(|key| ["state", "expiresAt", "updatedAt", "message"].contains(&key.as_str())), "{patch}");
        let Some(mut object) = self.objects.get(name).cloned() else { return refuse(404, "not found") };
        let version = &patch["metadata"]["resourceVersion"];
        if !version.is_null() && *version != object["metadata"]["resourceVersion"] {
            return refuse(409, "the object has been modified");
        }
        for (key, value) in written {
            object["status"][key] = value.clone();
        }
        (200, self.put(object, "MODIFIED"))
    }
}

fn refuse(code: u16, message: &str) -> (u16, Value) {
    (
        code,
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message, "reason": "Unknown", "metadata": {}}),
    )
}

/// What the policy and its binding are, if there is a guard.
fn guard(path: &str) -> Value {
    if path.contains("bindings") {
        return json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": "guard"},
            "spec": {"policyName": "guard", "validationActions": ["Deny"]},
        });
    }
    let rule = json!({
        "apiGroups": ["toolweir.dev"], "apiVersions": ["v1alpha1"], "operations": ["CREATE", "UPDATE"],
        "resources": ["mcpapprovals", "mcpapprovals/status"],
    });
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": "guard"},
        "spec": {"matchConstraints": {"resourceRules": [rule]}, "validations": [{"expression": "true"}]},
    })
}

fn review(body: &Value) -> Value {
    let token = body["spec"]["token"].as_str().unwrap().split('.').nth(1).unwrap();
    let claims: Value = serde_json::from_slice(&BASE64URL_NOPAD.decode(token.as_bytes()).unwrap()).unwrap();
    let extra = json!({
        "authentication.kubernetes.io/pod-name": [claims["pod"]],
        "authentication.kubernetes.io/pod-uid": [claims["uid"]],
    });
    let user = json!({"username": "system:serviceaccount:agents:default", "extra": extra});
    let status = json!({"authenticated": true, "audiences": ["toolweir"], "user": user});
    json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}, "spec": {}, "status": status})
}

impl ApiServer {
    fn answer(&self, method: &Method, path: &str, query: &str, body: &Value) -> (u16, Answer) {
        if path.ends_with("/tokenreviews") {
            return (201, text(&review(body)));
        }
        let name = path.split("/mcpapprovals/").nth(1).map(|rest| rest.trim_end_matches("/status").to_owned());
        if *method == Method::GET && query.contains("watch=true") {
            self.change(|memory| memory.calls += 1);
            let from = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion=")).unwrap().parse().unwrap();
            return (200, self.watch(from));
        }
        let (code, answer) = self.change(|memory| {
            memory.calls += 1;
            if *method != Method::GET
                && let Some((code, message)) = memory.failures.pop()
            {
                return refuse(code, message);
            }
            match (method.as_str(), name.as_deref()) {
                ("GET", _) if path.contains("/validatingadmissionpolic") => {
                    if memory.guarded { (200, guard(path)) } else { refuse(404, "not found") }
                }
                ("GET", None) => {
                    let items: Vec<&Value> = memory.objects.values().collect();
                    let metadata = json!({"resourceVersion": memory.version.to_string()});
                    (200, json!({"apiVersion": "toolweir.dev/v1alpha1", "kind": "MCPApprovalList", "metadata": metadata, "items": items}))
                }
                ("GET", Some(name)) => memory.objects.get(name).map_or_else(|| refuse(404, "not found"), |object| (200, object.clone())),
                ("POST", None) => memory.create(body.clone()),
                ("PATCH", Some(name)) if path.ends_with("/status") => memory.patch_status(name, body),
                ("DELETE", Some(name)) => {
                    memory.delete(name);
                    (200, json!({"kind": "Status", "apiVersion": "v1", "status": "Success", "metadata": {}}))
                }
                _ => panic!("{method} {path}"),
            }
        });
        (code, text(&answer))
    }
}

impl tower_service::Service<Request<Body>> for ApiServer {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let server = self.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap_or_default();
            let query = head.uri.query().unwrap_or_default().to_owned();
            let (code, body) = server.answer(&head.method, head.uri.path(), &query, &body);
            Ok(Response::builder().status(code).body(body).unwrap())
        })
    }
}
