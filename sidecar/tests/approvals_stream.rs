//! Calls that a person must approve where the operator asks: what goes up and down the policy stream, and what holds while there is none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::float_cmp)]

mod common;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use common::{
    call, denial,
    folder::Folder,
    operator::{Operator, Stream, documents},
    policy,
    sidecar::{self, Sidecar},
    until,
    upstream::Upstream,
    within,
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use toolweir_crds::approval_request::{ApprovalReport, ApprovalState, ReportedApproval};
use toolweir_sidecar::{
    control::{self, backoff::Backoff, client::SILENCE, wire},
    run::{PolicySource, RunConfig},
};

/// A sidecar whose operator asks, and its stream.
struct Stage {
    folder: Folder,
    upstream: Upstream,
    operator: Operator,
    sidecar: Arc<Sidecar>,
    stream: Stream,
}

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
    config.state = Some(folder.path().join("state"));
    "agents".clone_into(&mut config.options.namespace);
    "pod-uid".clone_into(&mut config.approvals.pod_uid);
    config
}

impl Stage {
    /// A stage on which `pay` asks, in a policy of generation 1.
    async fn new(hold: &str) -> Self {
        let (folder, upstream) = (Folder::new(), Upstream::bank().await);
        let mut operator = Operator::start(None, "first").await;
        let sidecar = Arc::new(Sidecar::run(Folder::new(), &follows(&operator, &folder)).await);
        let stream = operator.opened().await;
        let mut stage = Self { folder, upstream, operator, sidecar, stream };
        stage.enforce("v1", hold, 1).await;
        stage
    }

    async fn enforce(&mut self, version: &str, hold: &str, generation: i64) {
        let tools = format!("[{{name: pay, approval: {{hold: {hold}, show: [args.n]}}}}]");
        let mut policies = documents(&policy(&self.upstream.url(), &tools));
        policies[0]["metadata"]["uid"] = json!("policy-uid");
        policies[0]["metadata"]["generation"] = json!(generation);
        self.stream.enforce(version, &policies).await;
    }

    /// The operator says this of requests.
    async fn say(&self, news: Value) {
        self.stream.line(&json!({"approvals": news})).await;
    }

    /// The operator says that people can be asked.
    async fn ask_people(&mut self) {
        self.say(json!({})).await;
        until("people can be asked", async || self.sidecar.governor.approvals().unavailable().is_none()).await;
        assert_eq!(self.reported(0).await, []);
    }

    async fn decide(&self, name: &str, state: &str) {
        let until = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() + 60;
        let known = json!({"name": name, "state": state, "decidedBy": "eve", "reason": "R", "until": until});
        self.say(json!({"approvals": [known]})).await;
    }

    fn begin(&self, n: u32) -> JoinHandle<Value> {
        let sidecar = Arc::clone(&self.sidecar);
        tokio::spawn(async move { sidecar.post(&pay(n)).await })
    }

    async fn held(&self, count: i64) {
        until("the calls that wait", async || self.sidecar.governor.metrics.approvals.held.get() == count).await;
    }

    /// The next report with this many requests that have not ended.
    async fn reported(&mut self, open: usize) -> Vec<ReportedApproval> {
        loop {
            let ApprovalReport { approvals } = self.stream.approvals().await;
            if approvals.iter().filter(|approval| !approval.state.is_final()).count() == open {
                return approvals;
            }
        }
    }
}

fn pay(n: u32) -> String {
    call("1", "pay", &format!(r#"{{"n":{n},"secret":"MARKER"}}"#))
}

#[tokio::test]
async fn nobody_is_asked_before_the_operator_says_so_and_then_it_is_told_what_is_asked() {
    let mut stage = Stage::new("5s").await;
    assert_eq!(stage.sidecar.reason(&pay(1)).await, "approval_unavailable");
    stage.say(json!({"unavailable": "approvals.enabled is false"})).await;
    until("the operator's reason", async || {
        let answer = stage.sidecar.post(&pay(1)).await;
        answer["result"]["content"][0]["text"].as_str().unwrap().contains("approvals.enabled is false")
    })
    .await;
    stage.ask_people().await;
    let paid = stage.begin(1);
    let told = stage.reported(1).await;
    let request = told[0].request.as_ref().unwrap();
    assert_eq!((told[0].state, request.server.as_str(), request.tool.as_str()), (ApprovalState::Pending, "bank", "pay"));
    assert_eq!((request.policies[0].uid.as_str(), request.policies[0].generation), ("policy-uid", 1));
    assert_eq!((request.shown[0].value.as_str(), request.arguments_sha256.len()), ("1", 64));
    assert!(!serde_json::to_string(&told).unwrap().contains("MARKER"));
    assert!(stage.upstream.seen().is_empty());
    stage.decide(&told[0].name, "Approved").await;
    assert_eq!(within("the answer", paid).await.unwrap()["result"]["isError"], false);
    // That it is used goes up until the operator knows.
    let ended = stage.reported(0).await;
    assert_eq!((ended[0].state, &ended[0].request), (ApprovalState::Used, &None));
    let used = json!({"approvals": [{"name": told[0].name, "state": "Used"}]});
    stage.say(used).await;
    // A denial, with the reason of the person.
    let paid = stage.begin(2);
    let told = stage.reported(1).await;
    stage.decide(&told[0].name, "Denied").await;
    let answer = within("the answer", paid).await.unwrap();
    assert_eq!(answer["result"]["content"][0]["text"], format!("Denied by a person (agents/{}): R", told[0].name));
    let lines = stage.sidecar.audit_text();
    assert!(lines.contains(r#""step":"approved""#) && lines.contains(r#""by":"eve""#) && !lines.contains("MARKER"), "{lines}");
}

#[tokio::test]
async fn nothing_passes_while_the_operator_is_gone_and_its_word_counts_when_it_is_back() {
    let mut stage = Stage::new("10s").await;
    stage.ask_people().await;
    let paid = stage.begin(1);
    let told = stage.reported(1).await;
    let address = stage.operator.address;
    stage.operator.stop().await;
    // Requests wait here meanwhile.
    let other = {
        let sidecar = Arc::clone(&stage.sidecar);
        tokio::spawn(async move { sidecar.post(&pay(2)).await })
    };
    until("the second request", async || stage.sidecar.governor.approvals().waiting().len() == 2).await;
    assert!(stage.upstream.seen().is_empty());
    let mut operator = Operator::at(address, None, "first").await;
    let mut stream = operator.opened().await;
    // An operator that has not spoken of them yet is told nothing.
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(!stream.has_approvals());
    let approved = json!([{"name": told[0].name, "state": "Approved", "decidedBy": "eve"}]);
    stream.line(&json!({"approvals": {"approvals": approved}})).await;
    assert_eq!(within("the answer", paid).await.unwrap()["result"]["isError"], false);
    assert!(stream.approvals().await.approvals.iter().any(|approval| approval.state == ApprovalState::Pending));
    assert_eq!(stage.upstream.seen().len(), 1);
    other.abort();
}

#[tokio::test]
async fn a_changed_policy_or_a_word_of_the_operator_voids_a_request() {
    let mut stage = Stage::new("0s").await;
    stage.ask_people().await;
    assert_eq!(stage.sidecar.reason(&pay(1)).await, "approval_pending");
    let told = stage.reported(1).await;
    stage.decide(&told[0].name, "Approved").await;
    until("the approval", async || stage.sidecar.audit_text().contains(r#""step":"approved""#)).await;
    // The same rules in another generation.
    stage.enforce("v2", "0s", 2).await;
    assert_eq!(stage.sidecar.reason(&pay(1)).await, "approval_pending");
    let told = stage.reported(1).await;
    assert_eq!(told[0].request.as_ref().unwrap().policies[0].generation, 2);
    assert!(told.iter().any(|approval| approval.state == ApprovalState::Voided));
    stage.say(json!({"approvals": [{"name": told[0].name, "state": "Voided"}]})).await;
    stage.reported(0).await;
    assert!(stage.upstream.seen().is_empty());
}

#[tokio::test]
async fn an_approval_survives_a_restart_without_the_operator_and_its_use_does_too() {
    let mut stage = Stage::new("0s").await;
    stage.ask_people().await;
    for n in 1..3 {
        assert_eq!(stage.sidecar.reason(&pay(n)).await, "approval_pending");
    }
    let told = stage.reported(2).await;
    let of = |n: &str| {
        let shows = |approval: &&ReportedApproval| approval.request.as_ref().unwrap().shown[0].value == n;
        told.iter().find(shows).unwrap().name.clone()
    };
    let approved: Vec<Value> = ["1", "2"].map(|n| json!({"name": of(n), "state": "Approved", "decidedBy": "eve"})).into();
    stage.say(json!({"approvals": approved})).await;
    until("the approvals", async || stage.sidecar.audit_text().matches(r#""step":"approved""#).count() == 2).await;
    assert_eq!(stage.sidecar.reason(&pay(1)).await, "none");
    let config = follows(&stage.operator, &stage.folder);
    stage.operator.stop().await;
    let Stage { sidecar, upstream, folder, .. } = stage;
    assert!(Arc::into_inner(sidecar).unwrap().stop(Duration::from_secs(2)).await);
    let again = Sidecar::run(Folder::new(), &config).await;
    // What was approved can be used; that it was used is known; nobody can be asked for another.
    assert_eq!(again.reason(&pay(1)).await, "approval_unavailable");
    assert_eq!(again.reason(&pay(2)).await, "none");
    assert_eq!(again.reason(&pay(2)).await, "approval_unavailable");
    assert_eq!(upstream.seen().len(), 2);
    drop(folder);
}

#[tokio::test]
async fn reports_are_gathered() {
    let mut stage = Stage::new("0s").await;
    stage.ask_people().await;
    let before = Instant::now();
    for n in 0..5 {
        assert_eq!(stage.sidecar.reason(&pay(n)).await, "approval_pending");
    }
    let mut reports = 0;
    while before.elapsed() < Duration::from_secs(1) {
        reports += usize::from(stage.stream.has_approvals());
        if stage.stream.has_approvals() {
            stage.stream.approvals().await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!((1..=5).contains(&reports), "{reports}");
    assert_eq!(denial(&stage.sidecar.post(&pay(9)).await)["reason"], "approval_full");
    stage.held(0).await;
}

#[test]
fn a_report_that_is_too_long_names_every_request_and_leaves_out_what_some_ask() {
    let request = |name: usize, state| ReportedApproval {
        name: format!("pay-{name}"),
        state,
        request: Some(toolweir_crds::approval_request::MCPApprovalSpec { message: "m".repeat(10_000), ..Default::default() }),
        message: None,
    };
    let approvals = (0..40).map(|n| request(n, if n < 10 { ApprovalState::Approved } else { ApprovalState::Pending })).collect();
    let short = wire::short_approvals(ApprovalReport { approvals });
    let line = serde_json::to_vec(&short).unwrap().len();
    assert!((240_000..toolweir_crds::stream::LONGEST_ACK).contains(&line), "{line}");
    let asked: Vec<bool> = short.approvals.iter().map(|approval| approval.request.is_some()).collect();
    let left = asked.iter().filter(|asked| **asked).count();
    assert_eq!(asked, [vec![false; 10], vec![true; left], vec![false; 30 - left]].concat());
}
