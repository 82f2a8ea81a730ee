//! The pure core of approvals: what becomes of a request, what is done for a pod with a stream and for one without, and what holds
//! whatever is reported, decided and changed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::jiff::Timestamp;
use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::{Value, json};
use toolweir_crds::{
    approval_request::{
        ApprovalDecision, ApprovalPolicy, ApprovalState, KnownApproval, MCPApprovalSpec, ReportedApproval, ShownValue,
    },
    bounds,
    resource::MCPApproval,
};
use toolweir_engine::PolicyId;
use toolweir_operator::{
    approvals::{
        guarded::ApprovalGuard,
        plan::{ApprovalPlan, CREATIONS, PodView, StreamMemory, TakenReport, plan},
        records::{ApprovalRecord, ApprovalRecords, PodRecords, RequestKey, RequestingPod},
        request::{checked, is_name},
        transition::{Circumstances, due},
        upkeep::{ENDED, PodDirectory, orphans, outdated},
    },
    auth::PodIdentity,
    index::{IncludedPolicy, PodKey},
};

use ApprovalDecision::{Approve, Deny};
use ApprovalState::{Approved, Denied, Expired, Pending, Used, Voided};

const NOW: i64 = 1_900_000_000;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(NOW + seconds).unwrap()
}

fn policy(generation: i64) -> ApprovalPolicy {
    ApprovalPolicy { namespace: "agents".to_owned(), name: "pay".to_owned(), uid: "policy-uid".to_owned(), generation }
}

fn governing(generation: i64) -> Vec<IncludedPolicy> {
    let id = PolicyId { cluster: false, namespace: "agents".to_owned(), name: "pay".to_owned() };
    vec![IncludedPolicy { id, uid: "policy-uid".to_owned(), generation }]
}

fn spec(tool: &str) -> MCPApprovalSpec {
    MCPApprovalSpec {
        server: "billing".to_owned(),
        tool: tool.to_owned(),
        arguments_sha256: "0a".repeat(32),
        policies: vec![policy(1)],
        requested_at: at(0).to_string(),
        expires_at: at(600).to_string(),
        usable_seconds: 600,
        ..MCPApprovalSpec::default()
    }
}

fn agent() -> PodIdentity {
    let pod = PodKey { namespace: "agents".to_owned(), name: "bot-0".to_owned() };
    PodIdentity { pod, uid: "pod-uid".to_owned(), service_account: "bot".to_owned() }
}

fn pod(uid: &str) -> RequestingPod {
    RequestingPod { namespace: "agents".to_owned(), uid: uid.to_owned() }
}

/// An object with this status, created at a time.
fn object(created: i64, spec: &MCPApprovalSpec, status: &Value) -> ApprovalRecord {
    let object = json!({
        "apiVersion": "toolweir.dev/v1alpha1", "kind": "MCPApproval", "spec": spec, "status": status,
        "metadata": {"name": "n", "namespace": "agents", "uid": "u", "resourceVersion": "7", "creationTimestamp": at(created).to_string()},
    });
    ApprovalRecord::read(&serde_json::from_value::<MCPApproval>(object).unwrap(), at(created))
}

fn record(status: &Value) -> ApprovalRecord {
    object(0, &spec("pay"), status)
}

fn reported(name: &str, state: ApprovalState) -> ReportedApproval {
    let request = (!state.is_final()).then(|| spec("pay"));
    ReportedApproval { name: name.to_owned(), state, request, message: None }
}

fn report(received: i64, said: &[(&str, ApprovalState)]) -> TakenReport<()> {
    let said = said.iter().map(|(name, state)| reported(name, *state)).collect();
    TakenReport::new(said, at(received), None, |_| Some(()))
}

fn records(all: &[(&str, ApprovalRecord)]) -> PodRecords {
    all.iter().map(|(name, record)| ((*name).into(), record.clone())).collect()
}

/// A plan where nothing is unusual: the guard is there, and the policy governs.
fn planned(report: &TakenReport<()>, records: &PodRecords, memory: &StreamMemory, now: i64) -> ApprovalPlan {
    let (agent, governing) = (agent(), governing(1));
    let view =
        PodView { agent: &agent, report: Some(report), records, governing: &governing, guard: &ApprovalGuard::Guarded, memory };
    plan(&view, at(now))
}

fn told(plan: &ApprovalPlan) -> Vec<(&str, ApprovalState)> {
    plan.news.approvals.iter().map(|known| (known.name.as_str(), known.state)).collect()
}

fn written(plan: &ApprovalPlan) -> Vec<(&str, ApprovalState)> {
    plan.write.iter().map(|(name, due)| (name.as_str(), due.state)).collect()
}

fn next_state(
    status: &Value,
    said: Option<ApprovalState>,
    guard: &ApprovalGuard,
    governed: bool,
    now: i64,
) -> Option<ApprovalState> {
    let around = Circumstances { guard, governed, said: said.map(|said| (said, None)), lost: None };
    due(&record(status), around, at(now)).map(|due| due.state)
}

#[test]
fn the_states_of_a_request() {
    let guarded = ApprovalGuard::Guarded;
    let approve =
        |state: &str| json!({"state": state, "decision": "Approve", "decidedBy": "jane", "expiresAt": at(700).to_string()});
    let deny = json!({"state": "Pending", "decision": "Deny", "decidedBy": "jane"});
    for (status, said, now, next) in [
        (json!(null), None, 0, Some(Pending)),
        (json!({"state": "Pending"}), None, 1, None),
        (json!({"state": "Pending"}), Some(Pending), 601, Some(Expired)),
        (json!({"state": "Pending"}), Some(Voided), 1, Some(Voided)),
        (json!({"state": "Pending"}), Some(Used), 1, Some(Voided)),
        (approve("Pending"), Some(Pending), 600, Some(Approved)),
        (approve("Pending"), Some(Pending), 601, Some(Expired)),
        // The sidecar has ended it in the same moment: that holds.
        (approve("Pending"), Some(Expired), 1, Some(Expired)),
        (json!({"state": "Pending", "decision": "Approve"}), None, 1, Some(Voided)),
        (deny.clone(), None, 1, Some(Denied)),
        (deny, None, 601, Some(Expired)),
        (approve("Approved"), Some(Approved), 700, None),
        (approve("Approved"), Some(Approved), 701, Some(Expired)),
        (approve("Approved"), Some(Used), 701, Some(Used)),
        (approve("Approved"), Some(Voided), 1, Some(Voided)),
        (json!({"state": "Approved", "expiresAt": at(700).to_string()}), Some(Approved), 1, Some(Voided)),
        // What the operator ended while a sidecar was away, and what it had done by then.
        (approve("Expired"), Some(Used), 800, Some(Used)),
        (approve("Voided"), Some(Used), 800, Some(Used)),
        (approve("Expired"), Some(Approved), 800, None),
        (json!({"state": "Expired"}), Some(Used), 800, None),
        (approve("Used"), Some(Approved), 1, None),
        (approve("Denied"), Some(Used), 1, None),
    ] {
        assert_eq!(next_state(&status, said, &guarded, true, now), next, "{status} {said:?} {now}");
    }
    let missing = ApprovalGuard::Missing("it is not there".to_owned());
    let unknown = ApprovalGuard::Unknown("who knows".to_owned());
    for (status, guard, governed, next) in [
        (approve("Pending"), &missing, true, Some(Voided)),
        (approve("Pending"), &unknown, true, None),
        (approve("Pending"), &guarded, false, Some(Voided)),
        (json!({"state": "Pending"}), &guarded, false, Some(Voided)),
        (json!({"state": "Pending"}), &missing, true, None),
        // Where it went through before the policy changed, the sidecar says so, and that is written instead.
        (approve("Approved"), &guarded, false, Some(Voided)),
        (approve("Approved"), &missing, true, None),
    ] {
        assert_eq!(next_state(&status, None, guard, governed, 1), next, "{status} {guard:?} {governed}");
    }
    assert_eq!(next_state(&approve("Approved"), Some(Used), &guarded, false, 1), Some(Used));
}

#[test]
fn an_approval_and_a_denial_hold_as_long_as_the_request_says_from_when_they_were_seen() {
    let decided = |decision: &str| json!({"state": "Pending", "decision": decision, "decidedBy": "jane"});
    let around = Circumstances { guard: &ApprovalGuard::Guarded, governed: true, said: None, lost: None };
    for decision in ["Approve", "Deny"] {
        let due = due(&record(&decided(decision)), around, at(500)).unwrap();
        assert_eq!(due.until, Some(at(1100)));
        let patch = due.patch(Some("7"), at(500));
        let expected = json!({"expiresAt": at(1100).to_string(), "message": due.message, "state": due.state, "updatedAt": at(500).to_string()});
        assert_eq!(patch, json!({"metadata": {"resourceVersion": "7"}, "status": expected}));
    }
}

#[test]
fn a_request_becomes_an_object_of_its_own_pod() {
    let report = report(0, &[("pay-x", Pending)]);
    let plan = planned(&report, &PodRecords::new(), &StreamMemory::default(), 1);
    let [(name, made)] = plan.create.as_slice() else { panic!("{plan:?}") };
    assert_eq!((name.as_str(), made.agent.pod.as_str(), made.agent.pod_uid.as_str()), ("pay-x", "bot-0", "pod-uid"));
    assert_eq!((made.agent.service_account.as_str(), made.expires_at.as_str()), ("bot", at(600).to_string().as_str()));
    assert_eq!((told(&plan), written(&plan)), (vec![], vec![]));
}

#[test]
fn what_is_decided_is_told_once_it_is_written() {
    let report = report(0, &[("pay-x", Pending)]);
    let decided = json!({"state": "Pending", "decision": "Approve", "decidedBy": "jane", "reason": "fine"});
    let plan = planned(&report, &records(&[("pay-x", record(&decided))]), &StreamMemory::default(), 5);
    assert_eq!((written(&plan), told(&plan)), (vec![("pay-x", Approved)], vec![("pay-x", Pending)]));
    let mut approved = decided;
    (approved["state"], approved["expiresAt"]) = (json!("Approved"), json!(at(605).to_string()));
    let plan = planned(&report, &records(&[("pay-x", record(&approved))]), &StreamMemory::default(), 6);
    let until = u64::try_from(NOW + 605).unwrap();
    let known = KnownApproval {
        name: "pay-x".to_owned(),
        state: Approved,
        decided_by: Some("jane".to_owned()),
        reason: Some("fine".to_owned()),
        until: Some(until),
    };
    assert_eq!((plan.news.approvals.as_slice(), written(&plan)), ([known].as_slice(), vec![]));
    assert_eq!(plan.next, Some(at(606)));
}

#[test]
fn what_a_sidecar_ended_is_written_before_it_hears_of_it() {
    let approved = json!({"state": "Approved", "decision": "Approve", "decidedBy": "jane", "expiresAt": at(605).to_string()});
    let used = report(0, &[("pay-x", Used)]);
    let plan = planned(&used, &records(&[("pay-x", record(&approved))]), &StreamMemory::default(), 6);
    assert_eq!((written(&plan), told(&plan)), (vec![("pay-x", Used)], vec![]));
    let plan = planned(&used, &records(&[("pay-x", record(&json!({"state": "Used"})))]), &StreamMemory::default(), 6);
    assert_eq!((written(&plan), told(&plan)), (vec![], vec![("pay-x", Used)]));
    // It is told so even where it cannot be written, since it would say it for ever.
    let plan = planned(&used, &records(&[("pay-x", record(&json!({"state": "Voided"})))]), &StreamMemory::default(), 6);
    assert_eq!((written(&plan), told(&plan)), (vec![], vec![("pay-x", Used)]));
    // Nobody ever saw it.
    let plan = planned(&report(0, &[("pay-x", Expired)]), &PodRecords::new(), &StreamMemory::default(), 6);
    assert_eq!((written(&plan), told(&plan)), (vec![], vec![("pay-x", Expired)]));
}

#[test]
fn what_cannot_be_asked_or_is_gone_is_void() {
    let pending = report(0, &[("pay-x", Pending)]);
    let mut memory = StreamMemory::default();
    memory.forget("pay-x", Some(&pending));
    memory.forget("other", Some(&pending));
    let plan = planned(&pending, &PodRecords::new(), &memory, 1);
    assert_eq!((told(&plan), plan.create.len(), memory.deleted.len()), (vec![("pay-x", Voided)], 0, 1));
    memory = StreamMemory::default();
    memory.refused.insert("pay-x".to_owned(), "exceeded quota".to_owned());
    let plan = planned(&pending, &PodRecords::new(), &memory, 1);
    assert_eq!(plan.news.approvals[0].reason.as_deref(), Some("exceeded quota"));
    // One that the sidecar supposes to be there is waited for: the watch may be behind.
    let approved = report(0, &[("pay-x", Approved)]);
    let plan = planned(&approved, &PodRecords::new(), &StreamMemory::default(), 1);
    assert_eq!((told(&plan), plan.next, plan.create.len()), (vec![], Some(at(5)), 0));
    let plan = planned(&approved, &PodRecords::new(), &StreamMemory::default(), 5);
    assert_eq!((told(&plan), plan.create.len()), (vec![("pay-x", Voided)], 0));
}

#[test]
fn an_object_that_says_something_else_under_the_same_name_is_none_of_the_request() {
    let approved = json!({"state": "Approved", "decision": "Approve", "decidedBy": "jane", "expiresAt": at(605).to_string()});
    let other = object(-100, &spec("refund"), &approved);
    let plan = planned(&report(0, &[("pay-x", Pending)]), &records(&[("pay-x", other)]), &StreamMemory::default(), 6);
    assert_eq!((told(&plan), written(&plan)), (vec![("pay-x", Voided)], vec![("pay-x", Voided)]));
    // Where the sidecar does not say what it asks, it has the name from the operator.
    let mut silent = report(0, &[("pay-x", Approved)]);
    silent.said.get_mut("pay-x").unwrap().digest = None;
    let plan = planned(&silent, &records(&[("pay-x", record(&approved))]), &StreamMemory::default(), 6);
    assert_eq!(told(&plan), [("pay-x", Approved)]);
}

#[test]
fn what_the_sidecar_has_forgotten_is_void_unless_it_is_newer_than_the_report() {
    let pending = json!({"state": "Pending"});
    let old = object(-100, &spec("pay"), &pending);
    let plan = planned(
        &report(0, &[]),
        &records(&[("old", old), ("new", object(-10, &spec("pay"), &pending))]),
        &StreamMemory::default(),
        300,
    );
    assert_eq!((written(&plan), told(&plan)), (vec![("old", Voided)], vec![("new", Pending), ("old", Pending)]));
}

#[test]
fn nobody_can_be_asked_without_the_guard() {
    let report = report(0, &[("pay-x", Pending), ("pay-y", Approved)]);
    let approved = json!({"state": "Approved", "decision": "Approve", "decidedBy": "jane", "expiresAt": at(605).to_string()});
    let records = records(&[("pay-y", record(&approved))]);
    let (agent, governing, memory) = (agent(), governing(1), StreamMemory::default());
    for (guard, said) in [
        (ApprovalGuard::Missing("no guard".to_owned()), vec![]),
        (ApprovalGuard::Unknown("no guard".to_owned()), vec![]),
        (ApprovalGuard::Off, vec![("pay-x", Voided)]),
    ] {
        let view = PodView {
            agent: &agent,
            report: Some(&report),
            records: &records,
            governing: &governing,
            guard: &guard,
            memory: &memory,
        };
        let plan = plan(&view, at(6));
        assert_eq!((told(&plan), plan.create.len(), written(&plan)), (said, 0, vec![]), "{guard:?}");
        assert_eq!(plan.news.unavailable.as_deref(), guard.unavailable());
    }
}

#[test]
fn a_report_holds_only_so_much_and_says_what_had_no_room() {
    let many = (0..300).map(|n| reported(&format!("n-{n:03}"), Pending)).collect();
    let mut free = 10;
    let room = |bytes: usize| {
        assert!((512..2048).contains(&bytes), "{bytes}");
        free -= 1;
        (free >= 0).then_some(())
    };
    let taken = TakenReport::new(many, at(0), None, room);
    assert_eq!((taken.said.len(), taken.crowded.len()), (2 * bounds::POD_APPROVALS, 2 * bounds::POD_APPROVALS - 10));
    let mut memory = StreamMemory::default();
    memory.take(&taken);
    let plan = planned(&taken, &PodRecords::new(), &memory, 1);
    assert_eq!((plan.create.len(), told(&plan).len()), (10, taken.crowded.len()));
    let names = ["", "-x", "x-", "X", "a.b", "a/b", "a b", "..", "\u{e9}"];
    assert!(names.into_iter().all(|name| !is_name(name)) && !is_name(&"a".repeat(64)) && is_name(&"a".repeat(63)));
    let asked = names.iter().map(|name| reported(name, Pending)).collect();
    assert!(TakenReport::new(asked, at(0), None, |_| Some(())).said.is_empty());
}

#[test]
fn what_a_sidecar_asks_is_checked_and_bounded() {
    let make = |change: &dyn Fn(&mut MCPApprovalSpec)| {
        let mut asked = spec("pay");
        change(&mut asked);
        checked(&asked, &agent(), &governing(1), at(0))
    };
    let long = make(&|asked| {
        asked.agent.pod_uid = "forged".to_owned();
        asked.message = format!("\u{202e}a\nb{}", "\u{e9}".repeat(4000));
        asked.shown = vec![ShownValue { expression: "e".repeat(999), value: "\u{1b}[2J".repeat(999), cut: false }; 99];
        asked.usable_seconds = u64::MAX;
        asked.expires_at = at(999_999_999).to_string();
        asked.policies = vec![policy(1), policy(1)];
    });
    let long = long.unwrap();
    assert_eq!((long.agent.pod_uid.as_str(), long.policies.len(), long.shown.len()), ("pod-uid", 1, bounds::APPROVAL_SHOWN));
    assert!(long.message.len() <= bounds::APPROVAL_MESSAGE && long.message.starts_with("\u{fffd}a b"), "{}", long.message);
    assert!(
        long.shown.iter().all(|shown| shown.cut && shown.value.len() <= bounds::SHOWN_VALUE && !shown.value.contains('\u{1b}'))
    );
    assert_eq!((long.usable_seconds, long.expires_at.as_str()), (86_400, at(86_400).to_string().as_str()));
    for (words, change) in [
        ("server", (&|asked: &mut MCPApprovalSpec| asked.server.clear()) as &dyn Fn(&mut MCPApprovalSpec)),
        ("tool", &|asked| asked.tool = "t".repeat(3000)),
        ("argumentsSha256", &|asked| asked.arguments_sha256 = "0A".repeat(32)),
        ("policies", &|asked| asked.policies.clear()),
        ("policies", &|asked| asked.policies = (0..9).map(policy).collect()),
        ("policy agents/pay has changed", &|asked| asked.policies = vec![policy(2)]),
        ("policy pay has changed", &|asked| asked.policies[0].namespace.clear()),
        ("has changed", &|asked| asked.policies[0].uid = "other".to_owned()),
        ("expiresAt", &|asked| asked.expires_at = "soon".to_owned()),
        ("compare the clocks", &|asked| asked.expires_at = at(0).to_string()),
    ] {
        let refused = make(change).unwrap_err();
        assert!(refused.contains(words), "{refused}");
    }
}

/// Pods of which one is there, and one has a stream.
struct Pods;

impl PodDirectory for Pods {
    fn is_there(&self, pod: &RequestingPod, name: &str) -> bool {
        name.is_empty() && pod.uid != "gone"
    }

    fn has_stream(&self, pod: &RequestingPod) -> bool {
        pod.uid == "streams"
    }

    fn governing(&self, pod: &RequestingPod, _: &str) -> Vec<IncludedPolicy> {
        governing(if pod.uid == "changed" { 2 } else { 1 })
    }
}

#[test]
fn the_leader_ends_what_nobody_else_does() {
    let decided = json!({"state": "Pending", "decision": "Approve", "decidedBy": "jane", "expiresAt": at(600).to_string()});
    let approved = json!({"state": "Approved", "decision": "Approve", "decidedBy": "jane", "expiresAt": at(700).to_string()});
    let pending = json!({"state": "Pending", "expiresAt": at(600).to_string()});
    for (uid, status, now, next) in [
        ("there", &pending, 599, None),
        // The replica with the stream is given some seconds.
        ("there", &pending, 603, None),
        ("there", &pending, 606, Some(Expired)),
        ("there", &decided, 3, None),
        ("there", &decided, 6, Some(Approved)),
        ("changed", &decided, 6, Some(Voided)),
        ("changed", &pending, 6, None),
        ("changed", &approved, 6, Some(Voided)),
        ("there", &approved, 702, None),
        ("there", &approved, 706, Some(Expired)),
        ("gone", &pending, 29, None),
        ("gone", &pending, 31, Some(Voided)),
        ("gone", &approved, 31, Some(Voided)),
        ("gone", &decided, 31, Some(Voided)),
        ("streams", &decided, 6, None),
        ("there", &Value::Null, 6, Some(Pending)),
    ] {
        let mut all = ApprovalRecords::default();
        all.apply((pod(uid), "n".into()), record(status));
        let due = orphans(&all, &Pods, &ApprovalGuard::Guarded, at(now), 9);
        let next_state = due.first().map(|(_, _, due)| due.state);
        assert_eq!(next_state, next, "{uid} {status} {now}");
        assert!(orphans(&all, &Pods, &ApprovalGuard::Guarded, at(now), 0).is_empty());
    }
}

#[test]
fn what_ended_long_ago_is_deleted_and_of_a_pod_the_oldest_beyond_a_hundred() {
    let mut all = ApprovalRecords::default();
    let ended = |changed: i64| record(&json!({"state": "Used", "updatedAt": at(changed).to_string()}));
    for n in 0..i64::try_from(ENDED).unwrap() + 3 {
        all.apply((pod("busy"), format!("n-{n:03}").into()), ended(n));
    }
    all.apply((pod("old"), "old".into()), ended(-1000));
    all.apply((pod("old"), "young".into()), ended(-900));
    all.apply((pod("old"), "waits".into()), object(-9000, &spec("pay"), &json!({"state": "Pending"})));
    let names = |most| {
        let mut keys: Vec<String> =
            outdated(&all, Duration::from_secs(950), at(0), most).iter().map(|(_, name)| name.to_string()).collect();
        keys.sort();
        keys
    };
    assert_eq!(names(99), ["n-000", "n-001", "n-002", "old"]);
    assert_eq!(names(2).len(), 2);
}

#[test]
fn a_list_replaces_what_was_known_and_says_what_is_gone() {
    let mut all = ApprovalRecords::default();
    let key = |name: &str| -> RequestKey { (pod("p"), name.into()) };
    all.apply(key("stays"), record(&json!({"state": "Pending"})));
    all.apply(key("goes"), record(&json!({"state": "Pending"})));
    all.apply(key("ended"), record(&json!({"state": "Used"})));
    assert!(!all.is_listed() && all.has_open(&pod("p")));
    let later = object(50, &spec("pay"), &json!({"state": "Pending"}));
    let gone = all.replace(vec![(key("stays"), later), (key("comes"), record(&json!({"state": "Denied"})))]);
    assert_eq!((gone, all.is_listed()), (vec![key("goes")], true));
    // Nothing has changed of it, whenever it was listed.
    assert_eq!(all.of(&pod("p")).unwrap()["stays"].seen, NOW);
    assert_eq!(all.tally().into_iter().filter(|(_, count)| *count > 0).collect::<Vec<_>>(), [(Pending, 1), (Denied, 1)]);
    assert!(all.remove(&key("stays")).is_some() && !all.has_open(&pod("p")));
}

fn statuses() -> impl Strategy<Value = Value> {
    let state = prop_oneof![Just(Value::Null), select(ApprovalState::ALL.map(|state| json!(state)).to_vec())];
    let decision = select(vec![Value::Null, json!(Approve), json!(Deny)]);
    let by = select(vec![Value::Null, json!("jane")]);
    (state, decision, by, -100_i64..100).prop_map(|(state, decision, by, until)| {
        json!({"state": state, "decision": decision, "decidedBy": by, "reason": "why", "expiresAt": at(until).to_string()})
    })
}

fn guards() -> impl Strategy<Value = ApprovalGuard> {
    let words = || "why".to_owned();
    select(vec![
        ApprovalGuard::Guarded,
        ApprovalGuard::Guarded,
        ApprovalGuard::Off,
        ApprovalGuard::Unknown(words()),
        ApprovalGuard::Missing(words()),
    ])
}

fn specs() -> impl Strategy<Value = MCPApprovalSpec> {
    (select(vec!["pay", "refund"]), 1_i64..3, -100_i64..100, any::<bool>()).prop_map(|(tool, generation, expires, forged)| {
        let mut spec = MCPApprovalSpec { policies: vec![policy(generation)], expires_at: at(expires).to_string(), ..spec(tool) };
        if forged {
            "another pod".clone_into(&mut spec.agent.pod_uid);
        }
        spec
    })
}

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

proptest! {
    /// Whatever there is and whatever is said.
    #[test]
    fn nothing_passes_that_nobody_approved(
        objects in vec((select(NAMES.to_vec()), specs(), statuses(), -200_i64..0), 0..6),
        said in vec((select(NAMES.to_vec()), select(ApprovalState::ALL.to_vec()), proptest::option::of(specs())), 0..6),
        guard in guards(),
        generation in 1_i64..3,
        has_report in any::<bool>(),
        now in 0_i64..50,
    ) {
        let records: PodRecords = objects.into_iter().map(|(name, spec, status, created)| (name.into(), object(created, &spec, &status))).collect();
        let reported = said.into_iter().map(|(name, state, request)| ReportedApproval { name: name.to_owned(), state, request, message: None });
        let report = TakenReport::new(reported.collect(), at(0), None, |_| Some(()));
        let (agent, governing, memory) = (agent(), governing(generation), StreamMemory::default());
        let report = has_report.then_some(&report);
        let view = PodView { agent: &agent, report, records: &records, governing: &governing, guard: &guard, memory: &memory };
        let plan = plan(&view, at(now));
        for (name, due) in &plan.write {
            let record = &records[name.as_str()];
            let patch = due.patch(Some("1"), at(now));
            let allowed = ["state", "expiresAt", "updatedAt", "message"];
            prop_assert!(patch["status"].as_object().unwrap().keys().all(|key| allowed.contains(&key.as_str())), "{patch}");
            prop_assert!(patch.as_object().unwrap().keys().all(|key| ["status", "metadata"].contains(&key.as_str())), "{patch}");
            if matches!(due.state, Approved | Denied) {
                let open = record.open.as_ref().unwrap();
                prop_assert_eq!(record.decision, Some(if due.state == Approved { Approve } else { Deny }));
                prop_assert!(at(now) <= open.expires && record.verdict.is_some() && guard == ApprovalGuard::Guarded);
                prop_assert!(open.policies.iter().all(|policy| policy.generation == generation));
            }
            if due.state == Used {
                prop_assert_eq!(record.decision, Some(Approve));
            }
            prop_assert!(!matches!(record.state, Some(Used | Denied)), "these are for ever");
        }
        for known in &plan.news.approvals {
            let record = records.get(known.name.as_str());
            let reported = report.and_then(|report| report.said.get(&known.name));
            prop_assert!(record.is_some() || reported.is_some(), "{known:?}");
            if known.state == Approved {
                let record = record.unwrap();
                prop_assert_eq!((record.state, record.decision, &guard), (Some(Approved), Some(Approve), &ApprovalGuard::Guarded));
                prop_assert!(record.verdict.is_some() && record.until.unwrap() >= NOW + now);
                let open = record.open.as_ref().unwrap();
                prop_assert!(open.policies.iter().all(|policy| policy.generation == generation));
                let asked = reported.and_then(|said| said.digest);
                prop_assert!(asked.is_none_or(|asked| asked == open.digest));
            }
        }
        prop_assert!(plan.news.approvals.windows(2).all(|pair| pair[0].name < pair[1].name), "each once");
        for (name, made) in &plan.create {
            prop_assert!(!records.contains_key(name.as_str()) && guard == ApprovalGuard::Guarded);
            prop_assert_eq!((made.agent.pod_uid.as_str(), made.agent.service_account.as_str()), ("pod-uid", "bot"));
            prop_assert!(made.policies.iter().all(|policy| policy.generation == generation));
        }
    }

    /// An agent that asks as much as it can: in no minute are more objects made than may be, and none is made twice.
    #[test]
    fn the_pace_of_creation_is_bounded(steps in vec((0_i64..15, 0_usize..30), 1..20)) {
        let (mut now, mut made) = (0, BTreeMap::<String, i64>::new());
        let (mut records, mut number, mut waiting) = (PodRecords::new(), 0, Vec::<String>::new());
        for (pause, asked) in steps {
            now += pause;
            for _ in 0..asked {
                number += 1;
                waiting.push(format!("n-{number}"));
            }
            // The oldest are decided, so that there is always room.
            waiting.drain(..waiting.len().saturating_sub(bounds::POD_APPROVALS));
            let said = waiting.iter().map(|name| ReportedApproval {
                request: Some(MCPApprovalSpec { expires_at: at(90_000).to_string(), ..spec("pay") }),
                ..reported(name, Pending)
            });
            let report = TakenReport::new(said.collect(), at(now), None, |_| Some(()));
            let plan = planned(&report, &records, &StreamMemory::default(), now);
            let waits = plan.create.len() < waiting.len();
            for (name, spec) in plan.create {
                prop_assert!(made.insert(name.clone(), now).is_none());
                waiting.retain(|waiting| *waiting != name);
                records.insert(name.as_str().into(), object(now, &spec, &json!({"state": "Used"})));
            }
            let lately = made.values().filter(|at| **at > now - 60).count();
            prop_assert!(lately <= CREATIONS, "{lately}");
            prop_assert!(!waits || lately == CREATIONS, "none waits without need");
            prop_assert!(!waits || plan.next.is_some_and(|next| next <= at(now + 60)), "{:?}", plan.next);
        }
    }
}
