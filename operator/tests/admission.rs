//! The webhooks as an API server sees them: reviews in, answers out, and what is counted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use data_encoding::BASE64;
use http::{Method, Request, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use serde_json::{Value, json};
use tokio::sync::watch;
use toolweir_crds::{SIDECAR_CONTAINER, resource::PolicyStatus, select::Labels};
use toolweir_engine::CompileOptions;
use toolweir_operator::{
    admission::{AdmissionHandler, Intake},
    approvals::service::ApprovalService,
    cluster_state::ClusterState,
    config::OperatorConfig,
    index::{ClusterEvent, PolicyEntry},
    inject::NamespaceInfo,
    namespaces::{NamespaceLookup, NamespaceResult},
    operator_metrics::OperatorMetrics,
};

/// What the API server says of namespaces, and what it was asked.
#[derive(Clone, Debug)]
struct ApiServer(Arc<Mutex<(NamespaceResult, Vec<String>)>>);

impl ApiServer {
    /// No namespace has the label.
    fn new() -> Self {
        Self(Arc::new(Mutex::new((Ok(Some(labels("team=x").into())), Vec::new()))))
    }

    fn says(&self, answer: NamespaceResult) {
        self.0.lock().unwrap().0 = answer;
    }

    /// The namespaces that were asked for since the last time.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().1)
    }

    fn namespaces(&self) -> NamespaceLookup {
        let server = self.clone();
        NamespaceLookup::with(move |name| {
            let mut held = server.0.lock().unwrap();
            held.1.push(name.to_owned());
            std::future::ready(held.0.clone())
        })
    }
}

struct Operator {
    api_server: ApiServer,
    webhooks: AdmissionHandler,
    metrics: OperatorMetrics,
    trust: watch::Sender<Arc<str>>,
}

fn labels(text: &str) -> Labels {
    text.split_whitespace().filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

fn operator() -> Operator {
    let metrics = OperatorMetrics::new().unwrap();
    let world = Arc::new(ClusterState::new(metrics.state.clone(), CompileOptions::default()));
    world.apply(ClusterEvent::Namespaces(BTreeMap::from([
        ("agents".to_owned(), labels("toolweir.dev/inject=enabled").into()),
        ("others".to_owned(), labels("team=x").into()),
    ])));
    let (trust, trusted) = watch::channel(Arc::from("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"));
    let api_server = ApiServer::new();
    let webhooks = AdmissionHandler {
        approvals: Arc::new(ApprovalService::new(None, metrics.approvals.clone())),
        state: world,
        intake: Arc::new(Intake::default()),
        metrics: metrics.admission.clone(),
        namespaces: api_server.namespaces(),
        config: Arc::new(OperatorConfig::default()),
        namespace: Arc::from("toolweir-system"),
        stream_url: Arc::from("https://toolweir-operator.toolweir-system.svc:8444"),
        trust: trusted,
    };
    Operator { api_server, webhooks, metrics, trust }
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "social-agent"}},
        "spec": {"containers": [{"name": "agent", "image": "registry.example/agent:1"}]},
    })
}

fn policy(kind: &str, spec: &Value) -> Value {
    let mut policy = json!({"apiVersion": "toolweir.dev/v1alpha1", "kind": kind, "metadata": {"name": "p"}, "spec": spec});
    if kind == "MCPPolicy" {
        policy["metadata"]["namespace"] = "agents".into();
    }
    policy
}

/// A spec with these tools.
fn tools(tools: &Value) -> Value {
    json!({"servers": [{"name": "facebook", "url": "http://facebook.tools.svc/mcp", "tools": tools}]})
}

/// What an API server sends (Kubernetes, "Dynamic Admission Control", "Request").
fn review(object: &Value) -> Value {
    let kind = object["kind"].clone();
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "", "version": "v1", "kind": kind},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "requestKind": {"group": "", "version": "v1", "kind": kind},
            "namespace": "agents",
            "operation": "CREATE",
            "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller", "groups": []},
            "object": object,
            "oldObject": null,
            "dryRun": false,
            "options": {"apiVersion": "meta.k8s.io/v1", "kind": "CreateOptions"},
        },
    })
}

impl Operator {
    async fn raw(&self, method: Method, path: &str, body: impl Into<Bytes>) -> (StatusCode, String) {
        let request = Request::builder().method(method).uri(path).body(Full::new(body.into())).unwrap();
        let response = self.webhooks.clone().answer(request).await;
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn ask(&self, path: &str, review: &Value) -> Value {
        let (status, body) = self.raw(Method::POST, path, review.to_string()).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
        assert_eq!(answer["kind"], "AdmissionReview");
        assert_eq!(answer["response"]["uid"], review["request"]["uid"], "the uid comes back");
        assert_eq!(answer.get("request"), None);
        answer["response"].clone()
    }

    async fn inject(&self, pod: &Value) -> Value {
        self.ask("/inject", &review(pod)).await
    }

    async fn validate(&self, policy: &Value) -> Value {
        self.ask("/validate", &review(policy)).await
    }

    async fn refusal(&self, policy: &Value) -> String {
        let said = self.validate(policy).await;
        assert_eq!((&said["allowed"], &said["status"]["code"]), (&json!(false), &json!(422)), "{said}");
        said["status"]["message"].as_str().unwrap().to_owned()
    }

    fn counted(&self, webhook: &str, result: &str, reason: &str) -> u64 {
        self.metrics.admission.admissions.with_label_values(&[webhook, result, reason]).get()
    }

    /// Everything that was counted.
    fn counts(&self) -> u64 {
        let page = String::from_utf8(self.metrics.registry.scrape().unwrap()).unwrap();
        let series = page.lines().filter(|line| line.starts_with("toolweir_operator_admissions_total{"));
        series.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
    }
}

fn patched(pod: &Value, said: &Value) -> Value {
    assert_eq!(said["patchType"], "JSONPatch");
    let patch = BASE64.decode(said["patch"].as_str().unwrap().as_bytes()).unwrap();
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &serde_json::from_slice::<json_patch::Patch>(&patch).unwrap()).unwrap();
    pod
}

mod inject {
    use super::*;

    #[tokio::test]
    async fn a_pod_is_answered_with_a_patch() {
        let operator = operator();
        let pod = pod("agent");
        let said = operator.inject(&pod).await;
        assert_eq!((&said["allowed"], said.get("warnings"), said.get("status")), (&json!(true), None, None));
        assert_eq!(said["auditAnnotations"], json!({"toolweir": "injected"}));
        let sidecar = &patched(&pod, &said)["spec"]["initContainers"][0];
        assert_eq!(sidecar["name"], SIDECAR_CONTAINER);
        let ca = sidecar["env"].as_array().unwrap().iter().find(|env| env["name"] == "TOOLWEIR_CA").unwrap();
        assert_eq!(ca["value"], "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n");
        assert_eq!((operator.counted("inject", "injected", ""), operator.counts()), (1, 1));
        assert_eq!(operator.metrics.admission.duration.get_sample_count(), 1);
    }

    #[tokio::test]
    async fn a_pod_that_is_as_it_should_be_gets_no_patch() {
        let operator = operator();
        let pod = pod("agent");
        let injected = patched(&pod, &operator.inject(&pod).await);
        let said = operator.inject(&injected).await;
        assert_eq!((&said["allowed"], said.get("patch"), said.get("patchType")), (&json!(true), None, None));
        assert_eq!(said["auditAnnotations"], json!({"toolweir": "skipped: AlreadyInjected"}));
        assert_eq!(operator.counted("inject", "skipped", "AlreadyInjected"), 1);
    }

    #[tokio::test]
    async fn whoever_asked_for_a_sidecar_and_gets_none_is_told() {
        let operator = operator();
        let mut pod = pod("agent");
        pod["spec"]["hostNetwork"] = true.into();
        let said = operator.inject(&pod).await;
        assert_eq!((&said["allowed"], said.get("patch")), (&json!(true), None));
        let promised = "not governed by Toolweir (HostNetwork): The pod shares its node's network, where a sidecar would serve the whole node.";
        assert_eq!(said["warnings"], json!([promised]));
        assert_eq!(operator.counted("inject", "skipped", "HostNetwork"), 1);
        pod["metadata"]["labels"]["toolweir.dev/inject"] = "disabled".into();
        let said = operator.inject(&pod).await;
        assert_eq!((&said["allowed"], said.get("warnings")), (&json!(true), None), "who opted out knows");
        assert_eq!(operator.counted("inject", "skipped", "OptedOut"), 1);
    }

    #[tokio::test]
    async fn warnings_are_as_short_as_an_api_server_takes_them() {
        let operator = operator();
        let mut pod = pod("agent");
        pod["metadata"]["annotations"] = json!({format!("toolweir.dev/sidecar-{}", "x".repeat(63)): "1"});
        pod["spec"]["containers"][0]["name"] = "ü".repeat(300).into();
        pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": 15001}]);
        let said = operator.inject(&pod).await;
        let warnings: Vec<&str> = said["warnings"].as_array().unwrap().iter().map(|warning| warning.as_str().unwrap()).collect();
        assert_eq!(warnings.len(), 2);
        assert!(warnings.iter().all(|warning| warning.chars().count() <= 250), "{warnings:?}");
    }

    #[tokio::test]
    async fn whoever_has_the_pod_scraped_otherwise_is_told_what_to_do() {
        let mut operator = operator();
        let mut pod = pod("agent");
        pod["metadata"]["annotations"] = json!({"prometheus.io/scrape": "true", "prometheus.io/port": "8080"});
        let said = operator.inject(&pod).await;
        assert_eq!((&said["allowed"], said.get("warnings")), (&json!(true), None), "nobody asked for ours");
        operator.webhooks.config = Arc::new(OperatorConfig::read("sidecar: {scrapeAnnotations: true}").unwrap());
        let said = operator.inject(&pod).await;
        let promised = "annotation prometheus.io/scrape: is the pod's own and stays, so Prometheus does not find the sidecar's metrics by annotations; remove it, or have port 15020 scraped as docs/monitoring.md says";
        assert_eq!(said["warnings"], json!([promised]));
        let annotations = patched(&pod, &said)["metadata"]["annotations"].clone();
        assert_eq!((&annotations["prometheus.io/port"], annotations.get("prometheus.io/path")), (&json!("8080"), None));
        pod["metadata"]["annotations"] = json!({"prometheus.io/port": "8080"});
        let said = operator.inject(&pod).await;
        let promised = "annotation prometheus.io/port: its own value was replaced by the sidecar's, 15020; to keep it, write prometheus.io/scrape too";
        assert_eq!(said["warnings"], json!([promised]));
        assert_eq!(patched(&pod, &said)["metadata"]["annotations"]["prometheus.io/port"], "15020");
    }

    #[tokio::test]
    async fn a_wrong_annotation_refuses_the_pod_with_advice() {
        let operator = operator();
        let mut pod = pod("agent");
        pod["metadata"]["annotations"] = json!({"toolweir.dev/sidecar-memory-limit": "64MB"});
        let said = operator.inject(&pod).await;
        let promised = "metadata.annotations[toolweir.dev/sidecar-memory-limit]: `64MB` is not a quantity; write for example 500m or 2 for cpu, 64Mi or 1Gi for memory";
        assert_eq!(said["status"], json!({"code": 422, "reason": "Invalid", "message": promised}));
        assert_eq!((&said["allowed"], said.get("patch")), (&json!(false), None));
        assert_eq!((operator.counted("inject", "refused", "Invalid"), operator.counts()), (1, 1));
    }

    #[tokio::test]
    async fn a_dry_run_is_answered_like_any_other_and_leaves_nothing_behind() {
        let operator = operator();
        let pod = pod("agent");
        let mut dry = review(&pod);
        dry["request"]["dryRun"] = true.into();
        let pods = || operator.webhooks.state.index().pods().count();
        let before = pods();
        assert_eq!(operator.ask("/inject", &dry).await, operator.inject(&pod).await);
        assert_eq!(pods(), before);
    }

    #[tokio::test]
    async fn before_there_are_certificates_pods_are_refused() {
        let operator = operator();
        operator.trust.send(Arc::from("")).unwrap();
        let said = operator.inject(&pod("agent")).await;
        assert_eq!(said["allowed"], false);
        assert_eq!(said["status"]["message"], "the operator has no certificates yet; try again");
        assert_eq!(operator.counted("inject", "refused", "NotReady"), 1);
        operator.trust.send(Arc::from("PEM")).unwrap();
        assert_eq!(operator.inject(&pod("agent")).await["allowed"], true);
    }

    #[tokio::test]
    async fn what_is_no_pod_is_refused() {
        let operator = operator();
        let said = operator.inject(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}})).await;
        assert_eq!(said["status"]["message"], "`Service` is not a Pod; only pods are injected");
        assert_eq!(operator.counted("inject", "refused", "NotAPod"), 1);
        for object in
            [json!({"kind": "Pod"}), json!({"kind": "Pod", "spec": {"containers": {}}}), json!({"kind": "Pod", "spec": []})]
        {
            assert_eq!(operator.inject(&object).await["allowed"], false, "{object}");
        }
    }

    /// A pod of this namespace, which says nothing of itself.
    fn of(namespace: &str) -> Value {
        let mut review = review(&pod("agent"));
        review["request"]["namespace"] = namespace.into();
        review
    }

    #[tokio::test]
    async fn a_namespace_that_was_labelled_a_moment_ago_is_injected_with_the_watch_behind() {
        let operator = operator();
        // The watch never hears of it.
        operator.api_server.says(Ok(Some(labels("team=x toolweir.dev/inject=enabled").into())));
        let began = Instant::now();
        let said = operator.ask("/inject", &of("others")).await;
        assert!(said.get("patch").is_some(), "{said}");
        assert_eq!(operator.api_server.asked(), ["others"]);
        assert!(began.elapsed() < Duration::from_secs(2), "nothing is waited for");
    }

    #[tokio::test]
    async fn a_namespace_that_the_api_server_does_not_tell_of_gets_no_pod_without_a_sidecar() {
        let operator = operator();
        operator.api_server.says(Err("it did not answer within 2 s".to_owned()));
        let said = operator.ask("/inject", &of("others")).await;
        assert_eq!((&said["allowed"], said.get("patch")), (&json!(false), None));
        assert_eq!(
            said["status"]["message"],
            "whether namespace others has the label toolweir.dev/inject: enabled is not known, since the API server does not tell \
             the operator: it did not answer within 2 s. Try again"
        );
        assert_eq!((operator.counted("inject", "refused", "NamespaceUnknown"), operator.counts()), (1, 1));
        // Nor where it knows of no such namespace, though it asked about a pod of it.
        operator.api_server.says(Ok(None));
        assert!(operator.ask("/inject", &of("others")).await.get("patch").is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_hangs_refuses_the_pod_before_the_webhook_is_given_up() {
        let mut operator = operator();
        operator.webhooks.namespaces = NamespaceLookup::with(|_| std::future::pending::<NamespaceResult>());
        let began = tokio::time::Instant::now();
        assert_eq!(operator.ask("/inject", &of("others")).await["allowed"], false);
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn a_namespace_that_did_not_opt_in_is_left_alone_with_a_warning() {
        let operator = operator();
        let mut review = of("others");
        let said = operator.ask("/inject", &review).await;
        assert_eq!((&said["allowed"], said.get("patch")), (&json!(true), None));
        assert!(said["warnings"][0].as_str().unwrap().contains("(NotOptedIn)"), "{said}");
        assert_eq!(operator.api_server.asked(), ["others"]);
        // A pod that says so itself, and a namespace that is never touched, are no question.
        operator.api_server.says(Err("nobody asks".to_owned()));
        review["request"]["object"]["metadata"]["labels"]["toolweir.dev/inject"] = "enabled".into();
        assert!(operator.ask("/inject", &review).await.get("patch").is_some());
        review["request"]["object"]["metadata"]["labels"]["toolweir.dev/inject"] = "disabled".into();
        assert_eq!(operator.ask("/inject", &review).await["auditAnnotations"], json!({"toolweir": "skipped: OptedOut"}));
        assert_eq!(operator.ask("/inject", &of("kube-system")).await.get("patch"), None);
        assert_eq!(operator.api_server.asked(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_namespace_that_the_index_has_as_opted_in_or_not_at_all_is_injected_without_a_question() {
        let operator = operator();
        // Both as the API server takes it, which asked. A label that was removed a moment ago may cost a sidecar too many.
        for namespace in ["agents", "new"] {
            assert!(operator.ask("/inject", &of(namespace)).await.get("patch").is_some(), "{namespace}");
        }
        // A pod's label that says neither yes nor no leaves it to the namespace.
        let mut review = of("others");
        review["request"]["object"]["metadata"]["labels"]["toolweir.dev/inject"] = "maybe".into();
        assert_eq!(operator.api_server.asked(), Vec::<String>::new());
        operator.api_server.says(Ok(Some(labels("toolweir.dev/inject=enabled").into())));
        assert!(operator.ask("/inject", &review).await.get("patch").is_some());
        assert_eq!(operator.api_server.asked(), ["others"]);
    }

    #[tokio::test]
    async fn annotations_of_a_namespace_hold_for_its_pods_as_the_index_or_the_api_server_has_them() {
        let operator = operator();
        let named = |secret: &str| {
            let annotations = BTreeMap::from([("toolweir.dev/credentials".to_owned(), secret.to_owned())]);
            NamespaceInfo::new(labels("toolweir.dev/inject=enabled"), &annotations)
        };
        operator.webhooks.state.apply(ClusterEvent::Namespace("agents".to_owned(), named("of-index")));
        operator.api_server.says(Ok(Some(named("of-api-server"))));
        for (namespace, secret) in [("agents", "of-index"), ("others", "of-api-server")] {
            let said = operator.ask("/inject", &of(namespace)).await;
            let patch = BASE64.decode(said["patch"].as_str().unwrap().as_bytes()).unwrap();
            let patch = String::from_utf8(patch).unwrap();
            assert!(patch.contains(&format!("\"secretName\":\"{secret}\"")), "{patch}");
        }
        operator.webhooks.state.apply(ClusterEvent::Namespace("agents".to_owned(), named("Wrong")));
        let said = operator.ask("/inject", &of("agents")).await;
        let message = said["status"]["message"].as_str().unwrap();
        assert!(
            message.starts_with("namespace agents: metadata.annotations[toolweir.dev/credentials]: `Wrong` is not"),
            "{message}"
        );
        assert_eq!(operator.counted("inject", "refused", "Invalid"), 1);
    }

    /// The end-to-end tests measure the time; here machines differ too much.
    #[tokio::test]
    async fn a_large_pod_is_quick() {
        let operator = operator();
        let mut pod = pod("agent");
        let container = |at: usize| {
            let env: Vec<Value> = (0..30).map(|n| json!({"name": format!("VARIABLE_{n}"), "value": "x".repeat(40)})).collect();
            let mounts: Vec<Value> =
                (0..10).map(|n| json!({"name": format!("v{n}"), "mountPath": format!("/data/{n}")})).collect();
            json!({"name": format!("c{at}"), "image": "registry.example/agent:1", "env": env, "volumeMounts": mounts})
        };
        pod["spec"]["containers"] = (0..20).map(container).collect();
        pod["spec"]["volumes"] = (0..10).map(|n| json!({"name": format!("v{n}"), "emptyDir": {}})).collect();
        let body = Bytes::from(review(&pod).to_string());
        let mut times: Vec<Duration> = Vec::new();
        for _ in 0..50 {
            let began = Instant::now();
            let (status, answer) = operator.raw(Method::POST, "/inject", body.clone()).await;
            times.push(began.elapsed());
            assert_eq!(status, StatusCode::OK);
            assert!(answer.len() < 32 * 1024, "{} bytes", answer.len());
        }
        times.sort();
        println!("a pod of 20 containers, {} bytes: median {:?}, longest {:?}", body.len(), times[25], times[49]);
    }
}

mod check {
    use super::*;

    /// An operator that captures, and a pod of a namespace that opted in to that, as the API server has it after the injection.
    async fn captured() -> (Operator, Value) {
        let mut operator = operator();
        operator.webhooks.config = Arc::new(OperatorConfig::read("capture: {method: Init}").unwrap());
        let captured = labels("toolweir.dev/inject=enabled toolweir.dev/capture=enabled").into();
        operator.webhooks.state.apply(ClusterEvent::Namespaces(BTreeMap::from([("agents".to_owned(), captured)])));
        let mut pod = pod("agent");
        pod["spec"]["securityContext"] = json!({"seccompProfile": {"type": "RuntimeDefault"}});
        pod["spec"]["containers"][0]["securityContext"] =
            json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
        let pod = patched(&pod, &operator.inject(&pod).await);
        (operator, pod)
    }

    #[tokio::test]
    async fn a_pod_in_order_is_allowed_and_another_refused_with_its_reason() {
        let (operator, mut pod) = captured().await;
        let said = operator.ask("/check", &review(&pod)).await;
        assert_eq!((&said["allowed"], said.get("patch")), (&json!(true), None), "{said}");
        assert_eq!(operator.counted("check", "allowed", ""), 1);
        pod["spec"]["hostPID"] = true.into();
        let said = operator.ask("/check", &review(&pod)).await;
        let promised = "the pod's traffic is captured (toolweir.dev/capture), and it could undo that: spec.hostPID: is true; leave it \
                        out (HostPid)";
        assert_eq!(said["status"], json!({"code": 422, "reason": "Invalid", "message": promised}));
        assert_eq!(said["auditAnnotations"], json!({"toolweir": "refused: HostPid"}));
        assert_eq!((said.get("patch"), operator.counted("check", "refused", "HostPid")), (None, 1), "nothing is repaired");
    }

    #[tokio::test]
    async fn a_policy_that_has_tls_opened_adds_to_the_pods_that_it_governs_and_may_go_before_the_check() {
        let (operator, before) = captured().await;
        let spec = json!({
            "podSelector": {"matchLabels": {"app": "social-agent"}},
            "servers": [{"name": "s", "url": "https://s.example/mcp", "tls": "Intercept"}],
        });
        let text = policy("MCPPolicy", &spec).to_string();
        let document = toolweir_crds::read_documents("test", &text).unwrap().remove(0).document;
        let state = &operator.webhooks.state;
        let entry = PolicyEntry::new("uid".to_owned(), 1, document, PolicyStatus::default(), &state.options);
        let id = entry.policy.id.clone();
        state.apply(ClusterEvent::Policy(id.clone(), Box::new(entry)));
        let of = |pod: &Value, list: &str, index: usize, field: &str| pod["spec"][list][index][field].to_string();
        let other = pod("other").to_string().replace("social-agent", "other");
        for (plain, is_opened) in [(pod("agent"), true), (serde_json::from_str(&other).unwrap(), false)] {
            let injected = patched(&plain, &operator.inject(&plain).await);
            assert_eq!(of(&injected, "initContainers", 1, "args").contains("--agent-ca-dir"), is_opened);
            assert_eq!(of(&injected, "containers", 0, "env").contains("SSL_CERT_FILE"), is_opened);
        }
        let opened = patched(&before, &operator.inject(&before).await);
        assert_ne!(opened, before, "the policy came between two rounds");
        for _ in ["with the policy", "without it"] {
            for pod in [&before, &opened] {
                let said = operator.ask("/check", &review(pod)).await;
                assert_eq!(said["allowed"], true, "{said}");
            }
            state.apply(ClusterEvent::PolicyGone(id.clone()));
        }
        assert!(operator.ask("/inject", &review(&opened)).await.get("patch").is_none());
    }

    #[tokio::test]
    async fn ids_are_chosen_anew_for_each_pod() {
        let (operator, first) = captured().await;
        let pod = pod("agent");
        let second = patched(&pod, &operator.inject(&pod).await);
        let ids = |pod: &Value| pod["spec"]["initContainers"][0]["args"].clone();
        assert_ne!(ids(&first), ids(&second));
    }

    #[tokio::test]
    async fn a_pod_that_was_injected_before_the_watch_knew_of_the_label_is_refused() {
        let (operator, mut pod) = captured().await;
        pod["spec"]["initContainers"].as_array_mut().unwrap().remove(0);
        let said = operator.ask("/check", &review(&pod)).await;
        assert!(said["status"]["message"].as_str().unwrap().contains("create the pod again"), "{said}");
        assert_eq!(operator.counted("check", "refused", "CaptureMissing"), 1);
    }

    #[tokio::test]
    async fn pods_that_are_none_of_ours_are_let_through() {
        let (operator, _) = captured().await;
        let mut out = pod("agent");
        out["metadata"]["labels"]["toolweir.dev/capture"] = "disabled".into();
        let mut mirror = pod("agent");
        mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "hash"});
        for (pod, namespace, reason) in
            [(&out, "agents", "OptedOut"), (&mirror, "agents", "MirrorPod"), (&pod("agent"), "kube-system", "ProtectedNamespace")]
        {
            let mut review = review(pod);
            review["request"]["namespace"] = namespace.into();
            let said = operator.ask("/check", &review).await;
            assert_eq!((&said["allowed"], said.get("warnings")), (&json!(true), None));
            assert_eq!(operator.counted("check", "skipped", reason), 1, "{reason}");
        }
        assert_eq!(operator.ask("/check", &review(&pod("agent"))).await["allowed"], false);
    }

    #[tokio::test]
    async fn ephemeral_containers_are_checked_whatever_became_of_the_labels() {
        let (operator, mut pod) = captured().await;
        pod["metadata"]["labels"]["toolweir.dev/capture"] = "disabled".into();
        // The operator's image was another when the pod was created.
        pod["spec"]["initContainers"][1]["image"] = "older".into();
        let mut debug = json!({"name": "debug", "image": "i"});
        let ask = |pod: &Value| {
            let mut review = review(pod);
            review["request"]["operation"] = "UPDATE".into();
            review["request"]["subResource"] = "ephemeralcontainers".into();
            review["request"]["oldObject"] = pod.clone();
            review
        };
        pod["spec"]["ephemeralContainers"] = json!([debug]);
        assert_eq!(operator.ask("/check", &ask(&pod)).await["allowed"], false);
        assert_eq!(operator.counted("check", "refused", "PrivilegeEscalation"), 1);
        debug["securityContext"] = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
        pod["spec"]["ephemeralContainers"] = json!([debug]);
        assert_eq!(operator.ask("/check", &ask(&pod)).await["allowed"], false);
        assert_eq!(operator.counted("check", "refused", "SidecarUser"), 1, "the image's user may be the sidecar's");
        debug["securityContext"]["runAsUser"] = 1000.into();
        pod["spec"]["ephemeralContainers"] = json!([debug]);
        assert_eq!(operator.ask("/check", &ask(&pod)).await["allowed"], true);
        assert_eq!(operator.api_server.asked(), Vec::<String>::new());
    }
}

mod validate {
    use super::*;

    #[tokio::test]
    async fn a_policy_that_means_something_is_let_in() {
        let operator = operator();
        let spec = tools(&json!([{"name": "get_*", "limits": [{"max": 30, "window": "minute"}]}]));
        let said = operator.validate(&policy("MCPPolicy", &spec)).await;
        assert_eq!((&said["allowed"], said.get("patch"), said.get("status")), (&json!(true), None, None));
        assert_eq!(said["auditAnnotations"], json!({"toolweir": "allowed"}));
        let guardrail = json!({"namespaceSelector": {"matchLabels": {"team": "a"}}, "servers": [{"name": "*", "tools": [{"name": "wipe", "action": "Deny"}]}]});
        assert_eq!(operator.validate(&policy("MCPClusterPolicy", &guardrail)).await["allowed"], true);
        assert_eq!((operator.counted("validate", "allowed", ""), operator.counts()), (2, 2));
        assert_eq!(operator.metrics.admission.duration.get_sample_count(), 0, "of pods alone");
    }

    #[tokio::test]
    async fn an_approval_that_nobody_can_give_is_warned_of_wherever_it_stands() {
        let operator = operator();
        let asking = json!({"name": "x", "approval": {}});
        for (list, entries, field) in [
            ("tools", json!([{"name": "t"}, asking]), "spec.servers[1].tools[1].approval"),
            ("prompts", json!([asking]), "spec.servers[1].prompts[0].approval"),
            ("resources", json!([{"uri": "db:b"}, {"uri": "db:c", "approval": {}}]), "spec.servers[1].resources[1].approval"),
            ("requests", json!([{"name": "roots", "approval": {}}]), "spec.servers[1].requests[0].approval"),
        ] {
            let url = "http://facebook.tools.svc/mcp";
            let spec = json!({"servers": [{"name": "other", "url": url}, {"name": "facebook", "url": url, list: entries}]});
            let said = operator.validate(&policy("MCPPolicy", &spec)).await;
            assert_eq!(said["allowed"], true, "{said}");
            let warning = said["warnings"][0].as_str().unwrap_or_default();
            assert!(warning.starts_with(&format!("{field}: these calls are denied for now: ")), "{list}: {said}");
        }
    }

    #[tokio::test]
    async fn what_a_schema_cannot_see_is_refused_with_its_field() {
        let operator = operator();
        for (kind, spec, promised) in [
            (
                "MCPPolicy",
                tools(&json!([{"name": "pay", "validations": [{"expression": "args.amount <="}]}])),
                "spec.servers[0].tools[0].validations[0].expression: is not a CEL expression",
            ),
            (
                "MCPPolicy",
                tools(&json!([{"name": "get_*"}, {"name": "*page", "action": "Deny"}])),
                "spec.servers[0].tools[1].name: `*page` and `get_*` (tools[0]) are equally specific",
            ),
            (
                "MCPPolicy",
                tools(&json!([{"name": "pay", "limits": [{"max": 1, "window": "hour", "scope": "Workload"}]}])),
                "spec.servers[0].tools[0].limits[0].scope: Workload counts across pods, which needs a shared store",
            ),
            ("MCPPolicy", json!({"servers": [{"name": "*"}]}), "spec.servers[0].name:"),
            (
                "MCPClusterPolicy",
                tools(&json!([{"name": "pay", "limits": [{"max": 1, "window": "hour", "cost": "argz.amount"}]}])),
                "spec.servers[0].tools[0].limits[0].cost:",
            ),
            ("MCPPolicy", json!({"servers": "all"}), "the policy cannot be read: "),
            ("MCPPolicy", json!(null), "the policy cannot be read: "),
        ] {
            let message = operator.refusal(&policy(kind, &spec)).await;
            assert!(message.starts_with(promised), "{spec} gives {message:?}");
            assert!(!message.contains('\n'), "{message:?}");
        }
        assert_eq!((operator.counted("validate", "refused", "Invalid"), operator.counts()), (7, 7));
    }

    #[tokio::test]
    async fn many_errors_are_told_up_to_a_point() {
        let operator = operator();
        let entries: Vec<Value> =
            (0..14).map(|n| json!({"name": format!("t{n}"), "validations": [{"expression": "nonsense.x"}]})).collect();
        let message = operator.refusal(&policy("MCPPolicy", &tools(&entries.into()))).await;
        assert_eq!(message.matches("expression:").count(), 10, "{message}");
        assert!(message.ends_with("; and 4 more"), "{message}");
    }

    #[tokio::test]
    async fn a_policy_that_was_let_in_once_can_still_be_labelled_and_removed() {
        let operator = operator();
        let old = policy("MCPPolicy", &json!({"servers": "as an older version had it"}));
        let mut new = old.clone();
        new["metadata"]["labels"] = json!({"team": "a"});
        let mut update = review(&new);
        update["request"]["operation"] = "UPDATE".into();
        update["request"]["oldObject"] = old.clone();
        assert_eq!(operator.ask("/validate", &update).await["allowed"], true);
        assert_eq!(operator.counted("validate", "allowed", "Unchanged"), 1);
        // But not changed into something else that means nothing.
        update["request"]["object"]["spec"] = json!({"servers": "otherwise"});
        assert_eq!(operator.ask("/validate", &update).await["allowed"], false);
    }

    #[tokio::test]
    async fn with_a_shared_store_wider_scopes_are_let_in() {
        let mut operator = operator();
        let options = CompileOptions { shared_store: true, of_any_pod: true, ..CompileOptions::default() };
        operator.webhooks.state = Arc::new(ClusterState::new(operator.metrics.state.clone(), options));
        let spec = tools(&json!([{"name": "pay", "limits": [{"max": 1, "window": "hour", "scope": "Workload"}]}]));
        assert_eq!(operator.validate(&policy("MCPPolicy", &spec)).await["allowed"], true);
    }

    #[tokio::test]
    async fn what_is_no_policy_is_refused() {
        let operator = operator();
        assert_eq!(operator.refusal(&json!({"kind": "Pod\n", "spec": {}})).await, "`Pod\\n` is not a policy");
        assert_eq!(operator.counted("validate", "refused", "NotAPolicy"), 1);
    }
}

mod wire {
    use super::*;

    #[tokio::test]
    async fn what_is_no_review_is_a_bad_request() {
        let operator = operator();
        for body in ["", "{", "[]", "null", "{}", r#"{"request": null}"#, r#"{"request": {}}"#, r#"{"request": {"uid": 1}}"#] {
            for path in ["/inject", "/validate"] {
                let (status, words) = operator.raw(Method::POST, path, body).await;
                assert_eq!(status, StatusCode::BAD_REQUEST, "{body:?} gives {words:?}");
            }
        }
        assert_eq!(
            (operator.counted("inject", "error", "Unreadable"), operator.counted("validate", "error", "Unreadable")),
            (8, 8)
        );
    }

    #[tokio::test]
    async fn what_is_too_deep_does_not_end_the_operator() {
        let operator = operator();
        let deep = format!("{{\"request\":{{\"uid\":\"a\",\"object\":{}{}}}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(operator.raw(Method::POST, "/inject", deep).await.0, StatusCode::BAD_REQUEST);
    }

    #[tokio::test]
    async fn there_are_two_paths_and_one_method() {
        let operator = operator();
        let review = review(&pod("agent")).to_string();
        for path in ["/", "/inject/", "/Inject", "/metrics"] {
            assert_eq!(operator.raw(Method::POST, path, review.clone()).await.0, StatusCode::NOT_FOUND, "{path}");
        }
        for path in ["/inject", "/validate"] {
            assert_eq!(operator.raw(Method::GET, path, "").await.0, StatusCode::METHOD_NOT_ALLOWED, "{path}");
        }
        // What an API server appends.
        assert_eq!(operator.raw(Method::POST, "/inject?timeout=5s", review).await.0, StatusCode::OK);
        assert_eq!(operator.counts(), 1);
    }

    #[tokio::test]
    async fn what_is_too_large_is_not_read() {
        let operator = operator();
        let (status, words) = operator.raw(Method::POST, "/inject", vec![b' '; 8 * 1024 * 1024 + 1]).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{words}");
        assert_eq!(operator.counted("inject", "error", "Unreadable"), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_review_that_does_not_arrive_is_not_waited_for() {
        let operator = operator();
        let body = StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, Infallible>>());
        let began = tokio::time::Instant::now();
        let response = operator.webhooks.clone().answer(Request::post("/inject").body(body).unwrap()).await;
        assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
        assert!(began.elapsed() <= Duration::from_secs(5));
    }
}
