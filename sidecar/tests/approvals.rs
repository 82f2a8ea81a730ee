//! Calls that a person must approve, over HTTP, with people who decide on this machine. The policy stream: `approvals_stream.rs`; stdio:
//! `approvals_stdio.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::float_cmp)]

mod common;

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use common::{
    call,
    client::{Ask, Http, Wire},
    denial,
    folder::Folder,
    policy,
    sidecar::{Sidecar, config},
    until,
    upstream::Upstream,
    within,
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use toolweir_approvals::Decided;
use toolweir_sidecar::{approvals::DecisionError, run::RunConfig};

/// Every call of `pay` asks, for up to 5 s.
const ASKS: &str = "[{name: pay, approval: {message: M, show: [args.amount], hold: 5s}}, {name: read}]";

/// A sidecar before a server that answers every call, and people who decide.
struct Bank {
    upstream: Upstream,
    sidecar: Arc<Sidecar>,
}

impl Bank {
    async fn start(tools: &str) -> Self {
        Self::with(tools, |_| {}).await
    }

    async fn with(tools: &str, change: impl FnOnce(&mut RunConfig)) -> Self {
        let upstream = Upstream::bank().await;
        let sidecar = Sidecar::with(&policy(&upstream.url(), tools), |config| {
            "agents".clone_into(&mut config.options.namespace);
            change(config);
        })
        .await;
        Self::of(upstream, sidecar)
    }

    fn of(upstream: Upstream, sidecar: Sidecar) -> Self {
        sidecar.governor.approvals().ask_locally();
        Self { upstream, sidecar: Arc::new(sidecar) }
    }

    /// Makes a call of `pay` that waits.
    fn begin(&self, arguments: &str) -> JoinHandle<Value> {
        let (sidecar, call) = (Arc::clone(&self.sidecar), call("1", "pay", arguments));
        tokio::spawn(async move { sidecar.post(&call).await })
    }

    async fn pay(&self, arguments: &str) -> Value {
        self.sidecar.post(&call("1", "pay", arguments)).await
    }

    /// The reason for which a call is denied now.
    async fn reason(&self, arguments: &str) -> String {
        self.sidecar.reason(&call("1", "pay", arguments)).await
    }

    /// The names of what waits, once so many do.
    async fn waiting(&self, count: usize) -> Vec<String> {
        until("the requests that wait", async || self.listed().len() == count).await;
        self.listed()
    }

    /// The names of what a person is shown now.
    fn listed(&self) -> Vec<String> {
        self.sidecar.governor.approvals().waiting().iter().map(|waiting| waiting.name.to_string()).collect()
    }

    /// Waits until so many calls are held.
    async fn held(&self, count: usize) {
        let held = || self.sidecar.governor.metrics.approvals.held.get();
        until("the calls that wait", async || held() == i64::try_from(count).unwrap()).await;
    }

    async fn decide(&self, name: &str, approve: bool) {
        self.sidecar.governor.approvals().decide(name, &decided(approve)).await.unwrap();
    }

    /// Waits for the one request, and decides on it.
    async fn decide_next(&self, approve: bool) -> String {
        let name = self.waiting(1).await.remove(0);
        self.decide(&name, approve).await;
        name
    }

    /// The arguments of the calls that the server got.
    fn delivered(&self) -> Vec<String> {
        self.upstream.seen().iter().map(|seen| seen.json()["params"]["arguments"].to_string()).collect()
    }

    /// How often an outcome was counted.
    async fn outcome(&self, outcome: &str) -> f64 {
        self.sidecar.scrape().await.sum("toolweir_approvals_total", &[("server", "bank"), ("outcome", outcome)])
    }

    async fn stop(self) -> Folder {
        let sidecar = Arc::into_inner(self.sidecar).unwrap();
        let folder = Folder::new();
        assert!(sidecar.stop(Duration::from_secs(5)).await);
        folder
    }
}

fn decided(approve: bool) -> Decided {
    Decided { approve, by: "uid 1000 (eve)".to_owned(), reason: (!approve).then(|| "Not today.".to_owned()), until: None }
}

#[tokio::test]
async fn a_decision_within_the_hold_is_as_if_nothing_had_happened() {
    let bank = Bank::start(ASKS).await;
    let paid = bank.begin(r#"{"amount":501,"secret":"MARKER"}"#);
    let name = bank.waiting(1).await.remove(0);
    bank.held(1).await;
    let waiting = bank.sidecar.governor.approvals().waiting();
    assert_eq!(waiting[0].request.shown[0].value, "501");
    // Others are served meanwhile, and nothing of this one has left.
    assert_eq!(bank.sidecar.reason(&call("2", "read", "{}")).await, "none");
    assert_eq!(bank.delivered(), ["{}"]);
    bank.decide(&name, true).await;
    let answer = within("the answer", paid).await.unwrap();
    assert_eq!((&answer["id"], &answer["result"]["isError"]), (&json!(1), &json!(false)));
    assert_eq!(bank.delivered().len(), 2);
    bank.held(0).await;
    let lines = bank.sidecar.audit(5).await;
    let steps: Vec<&Value> = lines.iter().filter(|line| line["event"] == "approval").collect();
    assert_eq!(steps.iter().map(|step| step["step"].as_str().unwrap()).collect::<Vec<_>>(), ["requested", "approved", "used"]);
    assert_eq!(steps[1]["by"], "uid 1000 (eve)");
    let shown = json!(format!("agents/{name}"));
    let of_call = lines.iter().find(|line| line["tool"] == "pay" && line.get("event").is_none()).unwrap();
    assert!(steps.iter().all(|step| step["approval"] == shown) && of_call["approval"] == shown, "{lines:?}");
    assert_eq!(
        (&of_call["decision"], &of_call["reason"], &of_call["outcome"]),
        (&json!("allowed"), &json!("none"), &json!("ok"))
    );
    assert_eq!(steps[0]["policies"], json!(["agents/bank"]));
    assert!(!bank.sidecar.audit_text().contains("MARKER"));
    // It is used: the same call asks anew.
    let again = bank.begin(r#"{"amount":501,"secret":"MARKER"}"#);
    assert_ne!(bank.waiting(1).await.remove(0), name);
    again.abort();
    let scrape = bank.sidecar.scrape().await;
    assert_eq!(scrape.sum("toolweir_approval_decision_seconds_count", &[("server", "bank")]), 1.0);
    assert_eq!(scrape.sum("toolweir_approvals_waiting", &[("server", "bank")]), 1.0);
    // The time that a person takes is none of the sidecar's.
    assert_eq!(scrape.sum("toolweir_overhead_seconds_bucket", &[("server", "bank"), ("le", "0.1")]), 2.0);
}

#[tokio::test]
async fn a_late_approval_lets_the_repeated_call_through_once() {
    let bank = Bank::start("[{name: pay, approval: {hold: 0s, expiry: 20s}}]").await;
    let answer = bank.pay(r#"{"a":1,"b":[2,"x"]}"#).await;
    let name = bank.waiting(1).await.remove(0);
    let text =
        format!("Waiting for a person: agents/{name}. Make the same call again in 20 s; it goes through once it is approved.");
    assert_eq!(answer["result"]["content"][0]["text"], text);
    assert_eq!(
        *denial(&answer),
        json!({"reason": "approval_pending", "policy": "agents/bank", "tool": "pay", "approval": format!("agents/{name}"),
            "retryAfterSeconds": 20})
    );
    assert!(name.starts_with("pay-") && bank.delivered().is_empty());
    // A repetition joins, whatever the order of keys; the answer over SSE says the same.
    assert_eq!(bank.reason(r#"{ "b": [2.0, "x"], "a": 1 }"#).await, "approval_pending");
    assert_eq!(bank.waiting(1).await, [name.as_str()]);
    bank.decide(&name, true).await;
    // Other arguments are another call.
    assert_eq!(bank.reason(r#"{"a":2,"b":[2,"x"]}"#).await, "approval_pending");
    assert!(bank.delivered().is_empty());
    assert_eq!(bank.reason(r#"{"b":[2,"x"],"a":1}"#).await, "none");
    assert_eq!(bank.reason(r#"{"b":[2,"x"],"a":1}"#).await, "approval_pending");
    assert_eq!(bank.delivered(), [r#"{"a":1,"b":[2,"x"]}"#]);
    assert_eq!((bank.outcome("requested").await, bank.outcome("used").await), (3.0, 1.0));
}

#[tokio::test]
async fn a_denied_call_is_denied_again_without_asking() {
    let bank = Bank::start(ASKS).await;
    let paid = bank.begin("{}");
    let name = bank.decide_next(false).await;
    let answer = within("the answer", paid).await.unwrap();
    assert_eq!(answer["result"]["content"][0]["text"], format!("Denied by a person (agents/{name}): Not today."));
    assert_eq!(
        (&denial(&answer)["reason"], &denial(&answer)["approval"]),
        (&json!("approval_denied"), &json!(format!("agents/{name}")))
    );
    assert_eq!(bank.reason("{}").await, "approval_denied");
    bank.waiting(0).await;
    assert_eq!((bank.outcome("requested").await, bank.outcome("denied").await), (1.0, 1.0));
    assert!(bank.delivered().is_empty());
}

#[tokio::test]
async fn of_repetitions_that_race_one_goes_and_the_others_ask_anew() {
    let bank = Bank::start(ASKS).await;
    let racing: Vec<_> = (0..4).map(|_| bank.begin("{}")).collect();
    bank.held(4).await;
    bank.decide_next(true).await;
    // The others wait for another decision.
    bank.waiting(1).await;
    bank.held(3).await;
    until("the one that goes", async || bank.delivered().len() == 1).await;
    bank.decide_next(false).await;
    let mut went = 0;
    for call in racing {
        let answer = within("an answer", call).await.unwrap();
        if answer["result"]["isError"] == false { went += 1 } else { assert_eq!(denial(&answer)["reason"], "approval_denied") }
    }
    assert_eq!((went, bank.delivered().len()), (1, 1));
}

#[tokio::test]
async fn changed_policies_void_a_request_and_decide_anew() {
    let bank = Bank::start(ASKS).await;
    let paid = bank.begin("{}");
    let name = bank.waiting(1).await.remove(0);
    bank.held(1).await;
    let write = |tools: &str| bank.sidecar.folder.write("policy.yaml", policy(&bank.upstream.url(), tools));
    // It still asks: the held call asks anew, in the name of the policy that is in force now.
    write("[{name: pay, approval: {message: Other., hold: 5s}}]");
    until("another request", async || bank.waiting(1).await != [name.clone()]).await;
    assert!(bank.sidecar.governor.approvals().decide(&name, &decided(true)).await.is_err());
    assert_eq!(bank.outcome("voided").await, 1.0);
    // It asks no more: the held call goes through.
    write("[{name: pay}]");
    assert_eq!(within("the answer", paid).await.unwrap()["result"]["isError"], false);
    bank.waiting(0).await;
    assert_eq!(bank.outcome("voided").await, 2.0);
    // An approval that was given is void as well.
    write("[{name: pay, approval: {hold: 0s}}]");
    until("a call that asks", async || bank.reason(r#"{"n":1}"#).await == "approval_pending").await;
    bank.decide_next(true).await;
    write("[{name: pay, approval: {hold: 0s, expiry: 20s}}]");
    until("the approval is void", async || bank.outcome("voided").await == 3.0).await;
    assert_eq!(bank.reason(r#"{"n":1}"#).await, "approval_pending");
}

#[tokio::test]
async fn a_client_that_hangs_up_or_cancels_leaves_the_request() {
    let bank = Bank::start(ASKS).await;
    let mut wire = Wire::connect(bank.sidecar.address).await;
    wire.write(&Ask::post(call("7", "pay", "{}")).bytes("localhost")).await;
    bank.held(1).await;
    drop(wire);
    bank.held(0).await;
    let mut wire = Wire::connect(bank.sidecar.address).await;
    wire.write(&Ask::post(call("8", "pay", "{}")).bytes("localhost")).await;
    bank.held(1).await;
    let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":8}}"#;
    assert_eq!(bank.sidecar.ask(&Ask::post(cancel)).await.status, 200);
    assert_eq!(wire.answer().await.status, 202);
    bank.held(0).await;
    let lines = bank.sidecar.audit(3).await;
    let calls: Vec<&Value> = lines.iter().filter(|line| line.get("event").is_none()).collect();
    let of = |key: &str| calls.iter().map(|line| line[key].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(
        (of("reason"), of("outcome")),
        (vec!["approval_pending".to_owned(); 2], vec!["client_gone".to_owned(), "cancelled".to_owned()])
    );
    bank.decide_next(true).await;
    assert_eq!(bank.reason("{}").await, "none");
    // The cancellation, and one call.
    assert_eq!(bank.upstream.seen().len(), 2);
}

#[tokio::test]
async fn nobody_can_be_asked_without_a_way_to_decide() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&policy(&upstream.url(), ASKS)).await;
    let answer = sidecar.post(&call("1", "pay", "{}")).await;
    assert_eq!(denial(&answer)["reason"], "approval_unavailable");
    let text = answer["result"]["content"][0]["text"].as_str().unwrap();
    assert!(text.contains("--approvals-socket"), "{text}");
    let counted = sidecar.scrape().await.sum("toolweir_approvals_total", &[("outcome", "unavailable")]);
    assert_eq!((counted, upstream.seen().len()), (1.0, 0));
}

#[tokio::test]
async fn more_requests_than_may_wait_are_denied() {
    let bank = Bank::start("[{name: pay, approval: {hold: 0s, pending: 2}}]").await;
    for (n, reason) in [(1, "approval_pending"), (2, "approval_pending"), (3, "approval_full"), (1, "approval_pending")] {
        assert_eq!(bank.reason(&format!(r#"{{"n":{n}}}"#)).await, reason);
    }
    bank.waiting(2).await;
    assert_eq!((bank.outcome("full").await, bank.outcome("requested").await), (1.0, 2.0));
}

#[tokio::test]
async fn arguments_that_two_calls_could_share_are_denied() {
    let bank = Bank::start("[{name: pay, approval: {hold: 0s}}]").await;
    for arguments in [r#"{"n":9007199254740993}"#, r#"{"n":-0}"#, r#"{"s":"\ud800"}"#] {
        assert_eq!(bank.reason(arguments).await, "malformed", "{arguments}");
    }
    bank.waiting(0).await;
    assert!(bank.delivered().is_empty());
}

#[tokio::test]
async fn limits_are_taken_when_the_call_goes_and_an_approval_is_used_only_then() {
    let bank = Bank::start("[{name: pay, limits: [{max: 1, window: hour}], approval: {when: args.big, hold: 0s}}]").await;
    assert_eq!(bank.reason(r#"{"big":true}"#).await, "approval_pending");
    bank.decide_next(true).await;
    // The limit is free until then, and a call without approval takes it.
    assert_eq!(bank.reason(r#"{"big":false}"#).await, "none");
    for _ in 0..2 {
        assert_eq!(bank.reason(r#"{"big":true}"#).await, "rate_limit");
    }
    assert_eq!(bank.outcome("used").await, 0.0);
    let lines = bank.sidecar.audit(6).await;
    let limited = lines.iter().find(|line| line["reason"] == "rate_limit").unwrap();
    assert!(limited["approval"].as_str().unwrap().starts_with("agents/pay-"), "{limited}");
}

#[tokio::test]
async fn an_approval_is_given_back_where_nothing_was_sent() {
    let bank = Bank::start("[{name: pay, approval: {hold: 0s}}]").await;
    let closed = policy("http://127.0.0.1:1", "[{name: pay, approval: {hold: 0s}}]");
    bank.sidecar.folder.write("policy.yaml", &closed);
    until("the other url", async || {
        bank.sidecar.governor.in_force().server("bank").unwrap().url.as_ref().unwrap().port_u16() == Some(1)
    })
    .await;
    assert_eq!(bank.reason("{}").await, "approval_pending");
    bank.decide_next(true).await;
    for n in 1..3 {
        assert_eq!(denial(&bank.pay("{}").await)["reason"], "connect_failed");
        assert_eq!((bank.outcome("used").await, bank.outcome("returned").await), (f64::from(n), f64::from(n)));
    }
}

#[tokio::test]
async fn held_bodies_use_half_of_the_memory_and_others_are_answered_at_once() {
    let bank = Bank::with(ASKS, |config| config.limits.held = 1024 * 1024).await;
    let arguments = |n: usize| format!(r#"{{"n":{n},"text":"{}"}}"#, "x".repeat(200 * 1024));
    let held: Vec<_> = (0..2).map(|n| bank.begin(&arguments(n))).collect();
    bank.held(2).await;
    let before = Instant::now();
    assert_eq!(bank.reason(&arguments(2)).await, "approval_pending");
    assert!(before.elapsed() < Duration::from_secs(4));
    // It asked all the same, and small ones wait still.
    bank.waiting(3).await;
    let small = bank.begin("{}");
    bank.held(3).await;
    for call in held.into_iter().chain([small]) {
        call.abort();
    }
    bank.held(0).await;
}

#[tokio::test]
async fn calls_that_wait_are_answered_when_the_sidecar_stops() {
    let bank = Bank::start("[{name: pay, approval: {hold: 50s}}]").await;
    let address = bank.sidecar.address;
    let mut wires = Vec::new();
    for _ in 0..3 {
        let mut wire = Wire::connect(address).await;
        wire.write(&Ask::post(call("1", "pay", "{}")).bytes("localhost")).await;
        wires.push(wire);
    }
    bank.held(3).await;
    let stopped = tokio::spawn(bank.stop());
    for mut wire in wires {
        assert_eq!(denial(&wire.answer().await.json())["reason"], "approval_pending");
    }
    within("the stop", stopped).await.unwrap();
}

#[tokio::test]
async fn a_restart_keeps_requests_and_approvals_and_what_was_used() {
    let (upstream, folder) = (Upstream::bank().await, Folder::new());
    let path = folder.write("policy.yaml", policy(&upstream.url(), "[{name: pay, approval: {hold: 0s}}]"));
    let start = |pod_uid: &str, folder: &Folder| {
        let mut config = config(&path);
        config.state = Some(folder.path().join("state"));
        config.approvals.pod_uid = pod_uid.to_owned();
        config
    };
    let run = async |pod_uid: &str| Bank::of(upstream.clone(), Sidecar::run(Folder::new(), &start(pod_uid, &folder)).await);
    let bank = run("u1").await;
    for n in 1..4 {
        assert_eq!(bank.reason(&format!(r#"{{"n":{n}}}"#)).await, "approval_pending");
    }
    let names = bank.waiting(3).await;
    for name in &names[..2] {
        bank.decide(name, true).await;
    }
    assert_eq!(bank.reason(r#"{"n":1}"#).await, "none");
    bank.stop().await;
    let bank = run("u1").await;
    assert_eq!(bank.listed(), names[2..], "before anything is written");
    // The first is used, the second can be.
    assert_eq!(bank.reason(r#"{"n":1}"#).await, "approval_pending");
    assert_eq!(bank.reason(r#"{"n":2}"#).await, "none");
    assert_eq!(bank.reason(r#"{"n":2}"#).await, "approval_pending");
    bank.stop().await;
    // Another pod has nothing to do with them.
    let bank = run("u2").await;
    bank.waiting(0).await;
    assert_eq!(upstream.seen().len(), 2);
    // Of two with one folder, one has the file.
    let other = run("u2").await;
    assert_eq!(other.reason("{}").await, "approval_pending");
    other.stop().await;
    bank.stop().await;
    run("u2").await.waiting(0).await;
}

#[tokio::test]
async fn what_cannot_be_written_is_denied() {
    let state = Folder::new();
    let bank = Bank::with("[{name: pay, approval: {hold: 0s}}]", |config| config.state = Some(state.path().to_owned())).await;
    assert_eq!(bank.reason(r#"{"n":1}"#).await, "approval_pending");
    bank.decide_next(true).await;
    // The place of the new file is taken by a folder.
    let blocker = state.path().join(".approvals.json.new");
    fs::create_dir(&blocker).unwrap();
    // Neither a request nor a use goes on, and nobody is told of the request.
    let answer = bank.pay(r#"{"n":2}"#).await;
    assert_eq!(denial(&answer)["reason"], "approval_unavailable");
    assert_eq!(bank.reason(r#"{"n":1}"#).await, "approval_unavailable");
    bank.waiting(0).await;
    assert!(bank.delivered().is_empty());
    let failures =
        bank.sidecar.scrape().await.sum("toolweir_file_failures_total", &[("file", "approvals"), ("operation", "write")]);
    assert!(failures >= 2.0);
    assert_eq!(bank.outcome("unavailable").await, 2.0);
    fs::remove_dir(&blocker).unwrap();
    assert_eq!(bank.reason(r#"{"n":1}"#).await, "none");
    assert_eq!(bank.reason(r#"{"n":2}"#).await, "approval_pending");
    assert_eq!(bank.delivered(), [r#"{"n":1}"#]);
}

/// Whoever approves and is told that it cannot be written may have denied it next.
#[tokio::test]
async fn an_approval_that_could_not_be_written_does_not_count_once_it_can_be() {
    let state = Folder::new();
    let bank = Bank::with(ASKS, |config| config.state = Some(state.path().to_owned())).await;
    let held = bank.begin(r#"{"n":1}"#);
    let name = bank.waiting(1).await.remove(0);
    let blocker = state.path().join(".approvals.json.new");
    fs::create_dir(&blocker).unwrap();
    let entered = bank.sidecar.governor.approvals().decide(&name, &decided(true)).await;
    assert!(matches!(entered, Err(DecisionError::NotKept(_))), "{entered:?}");
    assert_eq!(denial(&within("the answer", held).await.unwrap())["reason"], "approval_expired");
    fs::remove_dir(&blocker).unwrap();
    assert_eq!(bank.outcome("used").await, 0.0);
    let again = bank.begin(r#"{"n":1}"#);
    let waiting = async || bank.waiting(1).await.remove(0);
    until("another request", async || waiting().await != name).await;
    let other = waiting().await;
    bank.decide(&other, false).await;
    assert_eq!(denial(&within("the answer", again).await.unwrap())["reason"], "approval_denied");
    assert!(bank.delivered().is_empty());
}

#[tokio::test]
async fn a_policy_in_audit_mode_lets_the_call_pass() {
    let upstream = Upstream::bank().await;
    let text = policy(&upstream.url(), ASKS).replace("spec:\n", "spec:\n  mode: Audit\n");
    let sidecar = Sidecar::start(&text).await;
    assert_eq!(sidecar.reason(&call("1", "pay", "{}")).await, "none");
    let line = sidecar.audit(1).await.remove(0);
    assert_eq!((&line["decision"], &line["reason"]), (&json!("would_ask"), &json!("approval_pending")));
    let labels = [("decision", "would_ask"), ("reason", "approval_pending"), ("policy", "agents/bank")];
    assert_eq!(sidecar.scrape().await.sum("toolweir_tool_calls_total", &labels), 1.0);
}

#[tokio::test]
async fn a_held_call_takes_no_place_and_a_stream_gets_its_answer() {
    let bank = Bank::start("[{name: pay, maxConcurrent: 1, approval: {when: args.big, hold: 5s}}]").await;
    let held = bank.begin(r#"{"big":true}"#);
    bank.held(1).await;
    assert_eq!(bank.reason(r#"{"big":false}"#).await, "none");
    let answers = within("HTTP/2", async {
        let ask = Ask::post(call("2", "pay", r#"{"big":true}"#));
        let asked = ask.over(Http::Two, bank.sidecar.address);
        tokio::join!(asked, async {
            bank.held(2).await;
            bank.decide_next(false).await;
        })
    });
    assert_eq!(denial(&answers.await.0.json())["reason"], "approval_denied");
    assert_eq!(denial(&within("the answer", held).await.unwrap())["reason"], "approval_denied");
}
