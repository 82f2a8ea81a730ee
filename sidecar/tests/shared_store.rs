//! Limits that hold across pods, from the request to the record of it, with a real redis-server. What holds under load and
//! in outages is shown by `make test-shared`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::float_cmp)]

mod common;
#[path = "../store/tests/common/mod.rs"]
mod servers;

use std::{fs, os::unix::fs::PermissionsExt, sync::Mutex, time::Duration};

use common::{
    call,
    client::{Ask, Http},
    folder::Folder,
    logs,
    operator::{Operator, documents},
    policy, result,
    sidecar::{self, Sidecar},
    until,
    upstream::{Reply, Upstream},
};
use serde_json::{Value, json};
use servers::{Redis, free_port};
use tokio::sync::oneshot;
use toolweir_crds::stream::SharedStore;
use toolweir_sidecar::{
    control::{self, backoff::Backoff, client::SILENCE, state::SHARED_STORE},
    run::{PolicySource, RunConfig},
};

const PASSWORD: &str = "kestrel-7-swordfish";

fn store(port: u16) -> SharedStore {
    SharedStore {
        url: format!("redis://127.0.0.1:{port}"),
        username: None,
        password: None,
        ca: None,
        prefix: "toolweir".to_owned(),
        leases: true,
        // What a busy machine may take is not what is tested.
        budget_milliseconds: 5000,
    }
}

/// Sets the pod, as one of a workload.
fn pod(config: &mut RunConfig) {
    "agents".clone_into(&mut config.options.namespace);
    "Deployment/agent".clone_into(&mut config.options.workload);
}

/// A sidecar with a policy of files and a store.
async fn sidecar(policy: &str, store: &SharedStore) -> Sidecar {
    let sidecar = Sidecar::with(policy, |config| {
        pod(config);
        config.shared_store = Some(store.try_into().unwrap());
    });
    sidecar.await
}

async fn pays(sidecar: &Sidecar) -> String {
    sidecar.reason(&call("1", "pay", "{}")).await
}

async fn admin(sidecar: &Sidecar, path: &str) -> Value {
    Ask::get().to(path).over(Http::One, sidecar.admin).await.json()
}

async fn ready(sidecar: &Sidecar) -> (u16, String) {
    let answer = Ask::get().to("/readyz").over(Http::One, sidecar.metrics).await;
    (answer.status, answer.text())
}

async fn until_ready(sidecar: &Sidecar) -> Duration {
    until("ready", async || ready(sidecar).await.0 == 200).await
}

async fn metric(sidecar: &Sidecar, name: &str, labels: &[(&str, &str)]) -> f64 {
    sidecar.scrape().await.sum(&format!("toolweir_shared_store_{name}"), labels)
}

fn limited(url: &str, max: u32, more: &str) -> String {
    policy(url, &format!("[{{name: pay, limits: [{{max: {max}, window: hour, scope: Workload}}]}}]")) + more
}

#[tokio::test]
async fn pods_of_a_workload_share_a_limit_and_all_that_shows_it() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::bank().await);
    let policy = limited(&upstream.url(), 5, "");
    let first = sidecar(&policy, &store(redis.port)).await;
    let other = sidecar(&policy, &store(redis.port)).await;
    for sidecar in [&first, &other] {
        until_ready(sidecar).await;
        assert_eq!(metric(sidecar, "up", &[]).await, 1.0);
        assert_eq!(admin(sidecar, "/policy").await["sharedStore"], json!({"state": "connected", "error": null}));
        assert!(sidecar.governor.in_force().shared_store, "policies of files are compiled with the store as well");
    }
    for number in 0..5 {
        assert_eq!(pays(if number % 2 == 0 { &first } else { &other }).await, "none", "{number}");
    }
    for sidecar in [&first, &other] {
        assert_eq!(pays(sidecar).await, "rate_limit");
        assert_eq!(admin(sidecar, "/limits").await["limits"][0]["used"], 5.0);
        let asked = Ask::post(r#"{"tool":"pay"}"#).to("/explain").over(Http::One, sidecar.admin).await.json();
        assert_eq!(asked["decision"], "denied");
        let limit = &asked["policies"][0]["servers"][0]["entries"][0]["limits"][0];
        assert_eq!((&limit["used"], &limit["left"], &limit["scope"]), (&json!(5.0), &json!(0.0), &json!("Workload")));
    }
    assert_eq!(upstream.seen().len(), 5);
    assert!(first.audit(4).await.iter().all(|line| line.get("sharedStore").is_none()));
    assert_eq!(metric(&first, "fallbacks_total", &[]).await, 0.0);
    assert_eq!(metric(&first, "calls_total", &[]).await, 4.0);
}

#[tokio::test]
async fn a_store_without_tls_is_warned_of_in_the_log_unless_it_is_on_the_machine() {
    let upstream = Upstream::bank().await;
    let policy = limited(&upstream.url(), 5, "");
    let mut sidecars = Vec::new();
    // Nobody answers at any of them.
    for url in ["redis://clear.invalid", "rediss://secret.invalid", "redis://127.0.0.1:1", "redis://localhost:1"] {
        sidecars.push(sidecar(&policy, &SharedStore { url: url.to_owned(), ..store(1) }).await);
    }
    let log = logs::log().text();
    let warned: Vec<&str> = log.lines().filter(|line| line.contains("without TLS, so its password")).collect();
    assert!(!warned.is_empty() && warned.iter().all(|line| line.contains("redis://clear.invalid:6379")), "{warned:?}");
}

#[tokio::test]
async fn a_call_of_which_nothing_was_sent_gives_its_place_back() {
    let redis = Redis::start(&[]);
    let nowhere = format!("http://127.0.0.1:{}/mcp", free_port());
    let sidecar = sidecar(&limited(&nowhere, 1, ""), &store(redis.port)).await;
    until_ready(&sidecar).await;
    for _ in 0..3 {
        let answer = sidecar.post(&call("1", "pay", "{}")).await;
        assert!(answer.to_string().contains("bank") && !answer.to_string().contains("rate_limit"), "{answer}");
        // The store gets to know.
        until("nothing used", async || admin(&sidecar, "/limits").await["limits"][0]["used"] == 0.0).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn without_a_store_each_policy_has_what_it_chose_and_the_record_says_so() {
    let upstream = Upstream::bank().await;
    let with = async |choice, told| {
        let policy = limited(&upstream.url(), 5, &format!("  onStoreFailure: {choice}\n"));
        let sidecar = sidecar(&policy, &store(free_port())).await;
        let done = if choice == "Allow" { "Allow" } else { "Deny" };
        assert_eq!(pays(&sidecar).await, told, "{choice}");
        let line = &sidecar.audit(1).await[0];
        assert_eq!((&line["sharedStore"], &line["reason"]), (&json!(done), &json!(told)), "{choice}");
        assert_eq!(metric(&sidecar, "fallbacks_total", &[("action", done)]).await, 1.0);
        assert_eq!(metric(&sidecar, "up", &[]).await, 0.0);
        until("the fault", async || metric(&sidecar, "failures_total", &[("fault", "refused")]).await > 0.0).await;
        let state = &admin(&sidecar, "/policy").await["sharedStore"];
        assert_eq!((&state["state"], &state["error"]["fault"]), (&json!("unavailable"), &json!("refused")));
        // A start is held up for some seconds, not for ever.
        assert_eq!(ready(&sidecar).await, (503, "the shared store does not answer yet\n".to_owned()));
        let took = until_ready(&sidecar).await;
        assert!(took < Duration::from_secs(6), "{took:?}");
    };
    // How many pods there are was never known: PerPod denies.
    tokio::join!(with("Deny", "store_unavailable"), with("PerPod", "store_unavailable"), with("Allow", "none"));
}

#[tokio::test]
async fn a_call_whose_client_hangs_up_while_the_store_is_asked_is_on_record_and_goes_nowhere() {
    let (redis, upstream) = (Redis::start(&[]), Upstream::bank().await);
    let sidecar = sidecar(&limited(&upstream.url(), 5, ""), &store(redis.port)).await;
    until_ready(&sidecar).await;
    redis.say(&["CLIENT", "PAUSE", "1500", "ALL"]);
    let address = sidecar.address;
    let asking = tokio::spawn(async move { Ask::post(call("1", "pay", "{}")).over(Http::One, address).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    asking.abort();
    let line = &sidecar.audit(1).await[0];
    assert_eq!(
        (&line["decision"], &line["outcome"], &line["sharedStore"]),
        (&json!("denied"), &json!("client_gone"), &json!("Deny"))
    );
    assert!(upstream.seen().is_empty());
    assert_eq!(sidecar.counted("client_gone").await, 1.0);
    // Another is served when the store is itself again.
    until("a call", async || pays(&sidecar).await == "none").await;
}

/// A sidecar of an operator without TLS.
fn follows(operator: &Operator, folder: &Folder) -> RunConfig {
    let control = control::ControlPlaneConfig {
        endpoint: format!("http://{}", operator.address).parse().unwrap(),
        token_file: folder.write("token", "first\n"),
        authorities: String::new(),
        state: Some(folder.path().join("state")),
        backoff: Backoff { first: Duration::from_millis(10), most: Duration::from_millis(100) },
        silence: SILENCE,
    };
    let mut config = sidecar::from(PolicySource::ControlPlane(Box::new(control)));
    pod(&mut config);
    config
}

#[tokio::test]
async fn the_operator_says_where_counts_are_shared_and_that_is_kept_for_a_start_without_it() {
    let redis = Redis::start(&["--requirepass", PASSWORD]);
    let (folder, upstream) = (Folder::new(), Upstream::bank().await);
    let mut operator = Operator::start(None, "first").await;
    let sidecar = Sidecar::run(Folder::new(), &follows(&operator, &folder)).await;
    let mut stream = operator.opened().await;
    let policies = documents(&limited(&upstream.url(), 3, ""));
    // Nowhere: the policy cannot be enforced, and denies.
    stream.line(&json!({"sharedStore": null})).await;
    let problems = stream.enforce("1", &policies).await.problems;
    assert!(problems.len() == 1 && problems[0].message.contains("shared store"), "{problems:?}");
    assert_eq!(pays(&sidecar).await, "invalid_policy");
    assert!(!sidecar.scrape().await.types.contains_key("toolweir_shared_store_up"), "there is no store to tell of");
    // The same policies again, with a store.
    let told = SharedStore { password: Some(PASSWORD.to_owned()), ..store(redis.port) };
    stream.line(&json!({"sharedStore": told})).await;
    assert!(stream.enforce("1", &policies).await.problems.is_empty());
    until("the store", async || metric(&sidecar, "up", &[]).await == 1.0).await;
    assert_eq!(pays(&sidecar).await, "none");
    let kept = folder.path().join("state").join(SHARED_STORE);
    assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(sidecar.stop(Duration::from_secs(1)).await);
    let config = follows(&operator, &folder);
    operator.stop().await;
    let again = Sidecar::run(Folder::new(), &config).await;
    until_ready(&again).await;
    assert_eq!((pays(&again).await, pays(&again).await, pays(&again).await), ("none".into(), "none".into(), "rate_limit".into()));
    for text in [logs::log().text(), admin(&again, "/policy").await.to_string(), again.audit_text()] {
        assert!(!text.contains(PASSWORD), "{text}");
    }
}

#[tokio::test]
async fn a_store_that_cannot_be_meant_is_one_that_does_not_answer() {
    let (folder, upstream) = (Folder::new(), Upstream::bank().await);
    let mut operator = Operator::start(None, "first").await;
    let sidecar = Sidecar::run(Folder::new(), &follows(&operator, &folder)).await;
    let mut stream = operator.opened().await;
    stream.line(&json!({"sharedStore": {"url": "ftp://x", "prefix": "p", "leases": true, "budgetMilliseconds": 50}})).await;
    let policies = documents(&limited(&upstream.url(), 3, "  onStoreFailure: Allow\n"));
    assert!(stream.enforce("1", &policies).await.problems.is_empty());
    assert_eq!(pays(&sidecar).await, "none");
    assert_eq!(metric(&sidecar, "failures_total", &[("fault", "bad_config")]).await, 1.0);
    assert_eq!(admin(&sidecar, "/policy").await["sharedStore"]["error"]["fault"], "bad_config");
}

#[tokio::test]
async fn places_are_shared_for_as_long_as_calls_are_under_way() {
    let redis = Redis::start(&[]);
    let (release, released) = oneshot::channel();
    let first_answer = Mutex::new(Some(released));
    let upstream = Upstream::start(move |_| match first_answer.lock().unwrap().take() {
        Some(released) => Reply::json(result("1")).after(released),
        None => Reply::json(result("1")),
    })
    .await;
    let policy = policy(&upstream.url(), "[{name: pay, maxConcurrent: 1, maxConcurrentScope: Workload}]");
    let (first, other) = (sidecar(&policy, &store(redis.port)).await, sidecar(&policy, &store(redis.port)).await);
    until_ready(&first).await;
    until_ready(&other).await;
    let (body, address) = (call("1", "pay", "{}"), first.address);
    let under_way = tokio::spawn(async move { Ask::post(body.as_str()).over(Http::One, address).await });
    until("the call arrives", async || upstream.seen().len() == 1).await;
    assert_eq!(pays(&other).await, "concurrency");
    release.send(()).unwrap();
    assert_eq!(under_way.await.unwrap().status, 200);
    until("the place is free", async || pays(&other).await == "none").await;
}
