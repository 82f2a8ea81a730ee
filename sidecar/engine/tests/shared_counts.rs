//! Counts that pods share: the demands on them, and the decisions by the answers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "common/calls.rs"]
mod calls;
mod common;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
};

use calls::*;
use serde_json::json;
use toolweir_crds::{OnStoreFailure, OperationKind, Scope, explain::Explanation};
use toolweir_engine::{
    Amount, Call, CompileOptions, Decision, DecisionStart, Engine, Memory, Operation, Pending, Permit, Policy, Problem, Reason,
    Timestamp,
    shared::{GrantedAmounts, GrantedPlaces, NothingKnown, Peeked, SharedAnswer, SharedDemand, SharedGrant, SharedUsage},
    take::{Identity, TakeError},
    window::Full,
};

fn options(pod: &str, workload: &str) -> CompileOptions {
    CompileOptions {
        shared_store: true,
        pod: pod.to_owned(),
        namespace: "agents".to_owned(),
        service_account: "default".to_owned(),
        workload: workload.to_owned(),
        of_any_pod: false,
    }
}

fn compiled(policies: &[Policy], options: &CompileOptions) -> (Engine, Vec<Problem>) {
    Engine::compile(policies, Memory::new(Memory::COUNTERS), options)
}

fn shared(policies: &[Policy]) -> Engine {
    let (engine, problems) = compiled(policies, &options("pod-1", "Deployment/social"));
    assert_eq!(problems, []);
    engine
}

/// A call of the server `s` without arguments.
const fn of(tool: &str) -> Call<'_> {
    Call { server: "s", operation: Operation::tool(tool), arguments: None, session: "session-1", seen: None }
}

#[track_caller]
fn pending<'a>(engine: &'a Engine, tool: &'a str) -> Pending<'a> {
    match engine.begin(&of(tool), Timestamp(0)) {
        DecisionStart::Pending(pending) => pending,
        DecisionStart::Decided(decision) => panic!("{decision:?}"),
    }
}

#[track_caller]
fn decided(engine: &Engine, tool: &str) -> Decision {
    match engine.begin(&of(tool), Timestamp(0)) {
        DecisionStart::Decided(decision) => decision,
        DecisionStart::Pending(pending) => panic!("{pending:?}"),
    }
}

/// The usage of each limit, by its label.
fn used(engine: &Engine) -> Vec<(String, f64)> {
    let views = engine.limits(Timestamp(0), &NothingKnown);
    views.into_iter().map(|view| (view.limit.to_owned(), view.used)).filter(|(_, used)| *used > 0.0).collect()
}

fn identities(engine: &Engine, tool: &str) -> Vec<String> {
    let of_one = |wanted: &SharedDemand| {
        let takes = wanted.takes.iter().map(|shared| shared.take.identity.as_str().to_owned());
        takes.chain(wanted.holds.iter().map(|shared| shared.hold.identity.as_str().to_owned())).collect::<Vec<_>>()
    };
    pending(engine, tool).demands().iter().flat_map(of_one).collect()
}

/// Counts what became of what was taken.
#[derive(Debug, Default)]
struct Watch {
    given_back: AtomicUsize,
    free: AtomicUsize,
}

#[derive(Debug)]
struct Watched(Arc<Watch>);

#[derive(Debug)]
struct WatchedPlace(Arc<Watch>);

impl GrantedAmounts for Watched {
    fn give_back(self: Box<Self>) {
        self.0.given_back.fetch_add(1, Relaxed);
    }
}

impl GrantedPlaces for WatchedPlace {}

impl Drop for WatchedPlace {
    fn drop(&mut self) {
        self.0.free.fetch_add(1, Relaxed);
    }
}

impl Watch {
    fn taken(self: &Arc<Self>) -> SharedAnswer {
        SharedAnswer::Taken(SharedGrant {
            amounts: Some(Box::new(Watched(Arc::clone(self)))),
            places: Some(Box::new(WatchedPlace(Arc::clone(self)))),
            store_fallback: None,
        })
    }

    /// The number of times that amounts were given back, and that places came free.
    fn seen(&self) -> (usize, usize) {
        (self.given_back.load(Relaxed), self.free.load(Relaxed))
    }
}

fn full_until(seconds: u64) -> TakeError {
    TakeError::Full([(0, Full::Until(Timestamp(seconds * SECOND)))].into_iter().collect())
}

fn full(seconds: u64) -> SharedAnswer {
    SharedAnswer::Refused(full_until(seconds))
}

/// One count and one place of this pod, and the same of its workload.
const BOTH: &str = "{name: a, limits: [{max: 5, window: minute}, {max: 9, window: hour, scope: Workload}], maxConcurrent: 3, \
                    maxConcurrentScope: Workload}, {name: 'a*', maxConcurrent: 2}";

#[test]
fn what_they_are_asked_for() {
    let engine = shared(&[tools(BOTH)]);
    let pending = pending(&engine, "a");
    let [SharedDemand { takes, holds }] = pending.demands() else { panic!("{pending:?}") };
    assert_eq!((takes.len(), holds.len()), (1, 1));
    assert_eq!(takes[0].take.identity.as_str(), format!("{}|agents/p|s|a|3600000000000|Workload|||0", takes[0].pod_group));
    assert_eq!(holds[0].hold.identity.as_str(), format!("{}|agents/p|s|a|maxConcurrent", holds[0].pod_group));
    assert_eq!(
        (&*takes[0].pod_group, &*holds[0].pod_group),
        ("Workload agents/Deployment/social", "Workload agents/Deployment/social")
    );
    assert_eq!((takes[0].take.max, takes[0].take.amount, holds[0].hold.max), (Amount::whole(9), Amount::ONE, 3));
    assert_eq!((takes[0].failure, holds[0].failure), (OnStoreFailure::Deny, OnStoreFailure::Deny));
}

#[test]
fn a_call_that_wants_none_is_decided_at_once() {
    let engine =
        shared(&[tools(&format!("{BOTH}, {{name: b, limits: [{{max: 1, window: minute}}]}}, {{name: c, action: Deny}}"))]);
    drop(allowed(decided(&engine, "b")));
    assert_eq!(reason(&decided(&engine, "b")), Reason::RateLimit);
    assert_eq!(reason(&decided(&engine, "c")), Reason::Denied);
    assert_eq!(reason(&decided(&engine, "d")), Reason::NotListed);
    // What this pod's own counts deny is put to nobody.
    let _held: Vec<Permit> = (0..2)
        .map(|_| allowed(pending(&engine, "a").finish([SharedAnswer::Taken(SharedGrant::default())], Timestamp::default())))
        .collect();
    assert_eq!(reason(&decided(&engine, "a")), Reason::Concurrency);
}

#[test]
fn taken_it_is_held_together_with_the_pods_own_counts() {
    let (engine, watch) = (shared(&[tools(BOTH)]), Arc::new(Watch::default()));
    let take = || allowed(pending(&engine, "a").finish([watch.taken()], Timestamp::default()));
    let mut permit = take();
    assert!(permit.holds_places());
    assert_eq!((used(&engine), watch.seen()), (vec![("5/minute".to_owned(), 1.0)], (0, 0)));
    let places = permit.split_places();
    assert!(!permit.holds_places() && places.holds_places());
    permit.give_back();
    assert_eq!((used(&engine), watch.seen()), (vec![], (1, 0)));
    drop(places);
    assert_eq!(watch.seen(), (1, 1));
    // Dropped, what is taken stays counted, and the places come free.
    drop(take());
    assert_eq!((used(&engine), watch.seen()), (vec![("5/minute".to_owned(), 1.0)], (1, 2)));
    let mut joined = take();
    joined.join(take());
    joined.give_back();
    assert_eq!((used(&engine), watch.seen()), (vec![("5/minute".to_owned(), 1.0)], (3, 4)));
}

#[test]
fn refused_or_unanswered_it_denies_and_nothing_stays_taken() {
    let engine = shared(&[tools(BOTH)]);
    let limit = "Denied by policy agents/p: a is limited to 9 calls an hour for its workload. Try again in 17 s.";
    let busy = "Denied by policy agents/p: at most 3 calls of a may be under way at once for its workload. Try again when one \
                has ended.";
    let silent = "Denied by policy agents/p: a is limited across pods, and the shared store of counts does not answer. Try \
                  again in 1 s.";
    for (answer, told, wait, message) in [
        (Some(full(17)), Reason::RateLimit, Some(17), limit),
        (Some(SharedAnswer::RefusedAlone(full_until(17))), Reason::RateLimit, Some(17), limit),
        (Some(SharedAnswer::Refused(TakeError::Busy(0))), Reason::Concurrency, None, busy),
        (Some(SharedAnswer::Unavailable), Reason::StoreUnavailable, Some(1), silent),
        (Some(SharedAnswer::NotAsked), Reason::StoreUnavailable, Some(1), silent),
        (None, Reason::StoreUnavailable, Some(1), silent),
    ] {
        let alone = matches!(answer, Some(SharedAnswer::RefusedAlone(_)));
        let asked = !matches!(answer, Some(SharedAnswer::NotAsked));
        let decision = pending(&engine, "a").finish(answer, Timestamp::default());
        let without = match told {
            Reason::StoreUnavailable if asked => Some(OnStoreFailure::Deny),
            _ => alone.then_some(OnStoreFailure::PerPod),
        };
        assert_eq!(decision.store_fallback, without);
        assert_eq!((decision.policy.as_deref(), decision.entry.as_deref()), (Some("agents/p"), Some("a")));
        let denial = denied(decision);
        assert_eq!((denial.reason, denial.message.as_str()), (told, message));
        assert_eq!(denial.retry_after.map(|wait| wait.as_secs()), wait);
        assert_eq!(denial.limit.map(|limit| limit.scope), (told == Reason::RateLimit).then_some(Scope::Workload));
        assert_eq!(used(&engine), []);
    }
    // Its places are free, too: both are to be had.
    let _held: Vec<Permit> = (0..2)
        .map(|_| allowed(pending(&engine, "a").finish([SharedAnswer::Taken(SharedGrant::default())], Timestamp::default())))
        .collect();
    // Who asks nobody is denied.
    let engine = shared(&[tools(BOTH)]);
    assert_eq!(reason(&call(&engine, "a", "", 0)), Reason::StoreUnavailable);
    assert_eq!(used(&engine), []);
}

#[test]
fn what_the_pod_counts_itself_counts_from_when_the_call_goes_on() {
    let engine = shared(&[tools("{name: a, limits: [{max: 1, window: second}, {max: 9, window: hour, scope: Workload}]}")]);
    let at = |milliseconds: u64| {
        let call = Call { server: "s", operation: Operation::tool("a"), arguments: None, session: "", seen: None };
        engine.begin(&call, Timestamp(milliseconds * SECOND / 1000))
    };
    let DecisionStart::Pending(slow) = at(0) else { panic!("it is shared") };
    drop(allowed(slow.finish([SharedAnswer::Taken(SharedGrant::default())], Timestamp(SECOND * 9 / 10))));
    assert!(matches!(at(1500), DecisionStart::Decided(decision) if reason(&decision) == Reason::RateLimit));
    assert!(matches!(at(1950), DecisionStart::Pending(_)));
}

#[test]
fn a_decision_that_is_not_finished_leaves_nothing_behind() {
    let engine = shared(&[tools(BOTH)]);
    for _ in 0..9 {
        drop(pending(&engine, "a"));
    }
    assert_eq!(used(&engine), []);
    // Others wait for the store in another thread.
    let decision = thread::scope(|scope| {
        let pending = pending(&engine, "a");
        scope.spawn(move || pending.finish([SharedAnswer::Taken(SharedGrant::default())], Timestamp::default())).join().unwrap()
    });
    drop(allowed(decision));
    assert_eq!(used(&engine), [("5/minute".to_owned(), 1.0)]);
}

#[test]
fn policies_in_audit_mode_ask_for_themselves() {
    let limits = "{max: 1, window: minute}, {max: 9, window: hour, scope: Policy}";
    let audit = |name| policy(name, &format!("mode: Audit, servers: [{{name: s, tools: [{{name: a, limits: [{limits}]}}]}}]"));
    let engine = shared(&[tools(BOTH), audit("q"), audit("r")]);
    let by = |decision: &Decision| -> Vec<(Reason, String)> {
        decision.would_deny.iter().map(|denial| (denial.reason, denial.policy.as_deref().unwrap().to_owned())).collect()
    };
    let watch = Arc::new(Watch::default());
    // `q` is refused, and takes nothing of its own counts; `r` does not say anything.
    let waiting = pending(&engine, "a");
    assert_eq!(waiting.demands().iter().map(|wanted| wanted.takes.len()).collect::<Vec<_>>(), [1, 1, 1]);
    let decision = waiting.finish([watch.taken(), full(9), watch.taken()], Timestamp::default());
    assert_eq!(by(&decision), [(Reason::RateLimit, "agents/q".to_owned())]);
    assert_eq!((decision.store_fallback, decision.policy.as_deref()), (None, Some("agents/q")));
    allowed(decision).give_back();
    assert_eq!((used(&engine), watch.seen()), (vec![], (2, 2)));
    // The store fails between two questions.
    let decision = pending(&engine, "a").finish([watch.taken(), SharedAnswer::Unavailable], Timestamp::default());
    assert_eq!(by(&decision), ["agents/q", "agents/r"].map(|name| (Reason::StoreUnavailable, name.to_owned())));
    assert_eq!(decision.store_fallback, Some(OnStoreFailure::Deny));
    allowed(decision).give_back();
    // Denied by those that are enforced, the others count nothing.
    let decision = pending(&engine, "a").finish([full(9), SharedAnswer::NotAsked, watch.taken()], Timestamp::default());
    assert!(decision.would_deny.is_empty());
    assert_eq!(reason(&decision), Reason::RateLimit);
    assert_eq!((used(&engine), watch.seen()), (vec![], (4, 4)));
    // What is denied by the pod's own counts of an audited policy is not asked for.
    drop(allowed(pending(&engine, "a").finish([watch.taken(), watch.taken(), watch.taken()], Timestamp::default())));
    let waiting = pending(&engine, "a");
    assert_eq!(waiting.demands().iter().map(|wanted| wanted.takes.len()).collect::<Vec<_>>(), [1, 0, 0]);
    assert_eq!(by(&waiting.finish([watch.taken()], Timestamp::default())).len(), 2);
    let alone = shared(&[audit("q"), tools("{name: a}")]);
    let waiting = pending(&alone, "a");
    assert_eq!(waiting.demands().iter().map(SharedDemand::is_empty).collect::<Vec<_>>(), [true, false]);
    assert_eq!(by(&waiting.finish([SharedAnswer::Taken(SharedGrant::default()), full(9)], Timestamp::default())).len(), 1);
}

#[test]
fn what_was_done_without_the_store_is_told() {
    let spec = |failure: &str| {
        let tool = "{name: a, limits: [{max: 9, window: hour, scope: Policy}]}";
        format!("onStoreFailure: {failure}, servers: [{{name: s, url: 'http://s/', tools: [{tool}]}}]")
    };
    let engine = shared(&[policy("o", &spec("Allow")), policy("p", &spec("PerPod"))]);
    let failures = |pending: &Pending<'_>| pending.demands()[0].takes.iter().map(|take| take.failure).collect::<Vec<_>>();
    assert_eq!(failures(&pending(&engine, "a")), [OnStoreFailure::Allow, OnStoreFailure::PerPod]);
    let taken = SharedGrant { store_fallback: Some(OnStoreFailure::PerPod), ..SharedGrant::default() };
    let decision = pending(&engine, "a").finish([SharedAnswer::Taken(taken)], Timestamp::default());
    assert_eq!(decision.store_fallback, Some(OnStoreFailure::PerPod));
    // Where none says that it denies, the first is named; else the first that does.
    let policy_of = |engine: &Engine| denied(pending(engine, "a").finish([], Timestamp::default())).policy.unwrap().to_string();
    assert_eq!(policy_of(&engine), "agents/o");
    let engine = shared(&[policy("o", &spec("Allow")), policy("p", &spec("Deny"))]);
    assert_eq!(policy_of(&engine), "agents/p");
}

#[test]
fn limits_that_count_together_are_asked_for_once() {
    let limit = |max: i64, window: &str| format!("{{max: {max}, window: {window}, scope: Workload, counter: c}}");
    let engine = shared(&[tools(&format!(
        "{{name: a, limits: [{}]}}, {{name: 'a*', limits: [{}, {}]}}",
        limit(5, "hour"),
        limit(3, "hour"),
        limit(4, "day")
    ))]);
    let waiting = pending(&engine, "a");
    let takes: Vec<(u64, Amount)> = waiting.demands()[0].takes.iter().map(|s| (s.take.max.millionths(), s.take.amount)).collect();
    assert_eq!(takes, [(3_000_000, Amount::ONE), (4_000_000, Amount::ONE)]);
    let denial = denied(waiting.finish([full(5)], Timestamp::default()));
    assert_eq!((denial.limit.unwrap().max, denial.entry.as_deref()), (3, Some("a*")));
}

#[test]
fn are_the_same_in_all_pods_of_the_scope_and_in_no_others() {
    let limits: Vec<String> = ["Workload", "ServiceAccount", "Namespace", "Policy"]
        .iter()
        .map(|scope| format!("{{max: 9, window: hour, scope: {scope}}}"))
        .collect();
    let tool = format!("{{name: a, limits: [{}], maxConcurrent: 2, maxConcurrentScope: Workload}}", limits.join(", "));
    let spec = format!("servers: [{{name: s, url: 'http://s/', tools: [{tool}]}}]");
    let policy = manifest("MCPClusterPolicy", "name: p", &spec);
    let of = |policy: &Policy, change: &dyn Fn(&mut CompileOptions)| {
        let mut options = options("pod-1", "Deployment/social");
        change(&mut options);
        let (engine, problems) = compiled(std::slice::from_ref(policy), &options);
        assert_eq!(problems, []);
        (identities(&engine, "a"), engine.groups().iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let (here, groups) = of(&policy, &|_| {});
    assert_eq!(
        groups,
        ["Namespace agents", "Policy cluster:p", "ServiceAccount agents/default", "Workload agents/Deployment/social"]
    );
    assert_eq!(here.iter().collect::<BTreeSet<_>>().len(), 5);
    assert_eq!(here, of(&policy, &|options| options.pod = "pod-2".to_owned()).0);
    // Which of them are the same as those here, in the order of the limits and then the places.
    let same = |policy: &Policy, change: &dyn Fn(&mut CompileOptions)| {
        of(policy, change).0.iter().zip(&here).map(|(there, here)| there == here).collect::<Vec<_>>()
    };
    assert_eq!(same(&policy, &|options| options.workload = "Deployment/other".to_owned()), [false, true, true, true, false]);
    assert_eq!(same(&policy, &|options| options.service_account = "other".to_owned()), [true, false, true, true, true]);
    assert_eq!(same(&policy, &|options| options.namespace = "other".to_owned()), [false, false, false, true, false]);
    for metadata in ["name: p, namespace: agents", "name: p, namespace: other"] {
        assert_eq!(same(&manifest("MCPPolicy", metadata, &spec), &|_| {}), [false; 5]);
    }
    let in_namespace = |namespace: &str| of(&manifest("MCPPolicy", &format!("name: p, namespace: {namespace}"), &spec), &|_| {});
    assert_eq!(in_namespace("a").1[1], "Policy a/p");
    assert!(in_namespace("a").0.iter().zip(&in_namespace("b").0).all(|(a, b)| a != b));
    // A policy with another maximum keeps its counts.
    let changed = manifest(
        "MCPClusterPolicy",
        "name: p",
        &spec.replace("max: 9", "max: 7").replace("maxConcurrent: 2", "maxConcurrent: 1"),
    );
    assert_eq!(same(&changed, &|_| {}), [true; 5]);
    // Only what is in force is a group.
    assert!(shared(&[policy]).shares());
    let own = shared(&[tools("{name: a, limits: [{max: 1, window: minute, scope: Session}], maxConcurrent: 1}")]);
    assert!(!own.shares() && own.groups().is_empty());
    drop(allowed(decided(&own, "a")));
}

#[test]
fn need_a_store_and_to_know_whose_they_are() {
    let both = |scope: &str| {
        let limit = format!("{{max: 1, window: hour, scope: {scope}}}");
        tools(&format!("{{name: a, limits: [{limit}], maxConcurrent: 1, maxConcurrentScope: {scope}}}"))
    };
    let errors = |scope: &str, options: &CompileOptions| -> Vec<(String, String)> {
        let (_, problems) = compiled(&[both(scope)], options);
        problems.into_iter().map(|problem| (problem.error.path, problem.error.message)).collect()
    };
    let at = ["spec.servers[0].tools[0].limits[0].scope", "spec.servers[0].tools[0].maxConcurrentScope"];
    let says = |message: &str| at.map(|path| (path.to_owned(), message.to_owned())).to_vec();
    let no_store = CompileOptions { shared_store: false, ..options("pod-1", "Deployment/social") };
    let needs = "Namespace counts across pods, which needs a shared store, and none is configured; write Pod";
    assert_eq!(
        errors("Namespace", &no_store),
        [(at[0].to_owned(), format!("{needs} or Session")), (at[1].to_owned(), needs.to_owned())]
    );
    assert_eq!(errors("Namespace", &CompileOptions { of_any_pod: true, ..no_store }).len(), 2);
    let known = options("pod-1", "Deployment/social");
    let nameless = CompileOptions { workload: String::new(), service_account: String::new(), ..known.clone() };
    let nowhere = CompileOptions { namespace: String::new(), ..known.clone() };
    for (scope, options, message) in [
        (
            "Workload",
            &nameless,
            "Workload counts the pods of one workload together, and this pod's is not known; write Pod, Namespace or Policy, \
             or give --pod-workload",
        ),
        (
            "Workload",
            &nowhere,
            "Workload counts the pods of one workload together, and this pod's namespace is not known; write Pod or Policy, \
             or give --pod-namespace",
        ),
        (
            "ServiceAccount",
            &nameless,
            "ServiceAccount counts the pods of one service account together, and this pod's is not known; write Pod, \
             Namespace or Policy, or give --pod-service-account",
        ),
        (
            "Namespace",
            &nowhere,
            "Namespace counts the pods of one namespace together, and this pod's is not known; write Pod or Policy, or give \
             --pod-namespace",
        ),
    ] {
        assert_eq!(errors(scope, options), says(message));
    }
    let unknown = CompileOptions { shared_store: true, ..CompileOptions::default() };
    assert_eq!(errors("Policy", &unknown), []);
    for scope in ["Workload", "ServiceAccount", "Namespace", "Policy"] {
        assert_eq!(errors(scope, &known), []);
        assert_eq!(errors(scope, &CompileOptions { of_any_pod: true, ..unknown.clone() }), []);
    }
}

fn explain(engine: &Engine, peeked: &Peeked) -> Explanation {
    engine.explain(&of("a"), Timestamp(0), peeked)
}

#[test]
fn are_explained_by_what_was_looked_up() {
    let engine = shared(&[tools(BOTH)]);
    let wanted = engine.shared_demands(&of("a"), Timestamp(0));
    let [SharedDemand { takes, holds }] = &wanted[..] else { panic!("{wanted:?}") };
    let peek = |used: u64, fits, under_way| {
        let mut peeked = Peeked::default();
        peeked.add_take(&takes[0], Amount::whole(used), fits);
        peeked.add_hold(&holds[0], under_way);
        explain(&engine, &peeked)
    };
    let of_entry = |said: &Explanation| said.policies[0].servers[0].entries[0].clone();
    let said = peek(7, Ok(()), 2);
    assert_eq!((said.verdict.allowed, said.decision.as_str()), (true, "allowed"));
    let entry = of_entry(&said);
    let limit = &entry.limits[1];
    assert_eq!((limit.used, limit.left, limit.fits, limit.store_unavailable), (7.0, 2.0, true, false));
    let places = entry.max_concurrent.unwrap();
    assert_eq!((places.max, places.under_way, places.scope, places.store_unavailable), (3, 2, Scope::Workload, false));
    let said = peek(9, Err(Full::Until(Timestamp(5 * SECOND))), 0);
    assert_eq!((said.verdict.reason.as_str(), said.verdict.retry_after_seconds), ("rate_limit", Some(5)));
    let limit = &of_entry(&said).limits[1];
    assert_eq!((limit.used, limit.left, limit.fits, limit.retry_after_seconds), (9.0, 0.0, false, Some(5)));
    assert_eq!(peek(0, Ok(()), 3).verdict.reason, "concurrency");
    // Nobody was asked.
    let said = explain(&engine, &Peeked::default());
    assert_eq!((said.decision.as_str(), said.verdict.reason.as_str()), ("denied", "store_unavailable"));
    assert_eq!(said.verdict.message, Some(denied(pending(&engine, "a").finish([], Timestamp::default())).message));
    let entry = of_entry(&said);
    assert_eq!(
        (entry.limits[1].fits, entry.limits[1].store_unavailable, entry.limits[0].store_unavailable),
        (false, true, false)
    );
    assert!(entry.max_concurrent.unwrap().store_unavailable);
    assert_eq!(used(&engine), []);
    // A policy that lets calls through then.
    let spec = format!("onStoreFailure: Allow, servers: [{{name: s, url: 'http://s/', tools: [{BOTH}]}}]");
    let said = explain(&shared(&[policy("p", &spec)]), &Peeked::default());
    assert!(said.verdict.allowed);
    assert!(of_entry(&said).limits[1].fits && of_entry(&said).limits[1].store_unavailable);
}

#[test]
fn are_looked_up_also_where_something_else_denies() {
    let limits = "{max: 3, window: hour, scope: Policy}, {max: 5, window: hour, scope: Policy, key: args.k}, \
                  {max: 5, window: day, scope: Workload, counter: c}, {max: 4, window: day, scope: Workload, counter: c}";
    let engine =
        shared(&[tools(&format!("{{name: a, action: Deny, validations: [{{expression: 'false'}}], limits: [{limits}]}}"))]);
    let wanted = engine.shared_demands(&of("a"), Timestamp(0));
    // Not that of the limit whose key has no value; what counts together once.
    let maxima: Vec<u64> = wanted[0].takes.iter().map(|shared| shared.take.max.millionths() / 1_000_000).collect();
    assert_eq!(maxima, [3, 4]);
    let mut peeked = Peeked::default();
    peeked.add_take(&wanted[0].takes[1], Amount::whole(4), Err(Full::Until(Timestamp(SECOND))));
    let said = explain(&engine, &peeked);
    assert_eq!(said.verdict.reason, "denied");
    let limits = &said.policies[0].servers[0].entries[0].limits;
    let seen: Vec<_> = limits.iter().map(|limit| (limit.fits, limit.store_unavailable, limit.used)).collect();
    assert_eq!(seen, [(false, true, 0.0), (false, false, 0.0), (true, false, 4.0), (false, false, 4.0)]);
    // Which of its counts is meant is not known.
    assert!(limits[1].error.is_some());
    assert!(engine.shared_demands(&Call { server: "other", ..of("a") }, Timestamp(0)).is_empty());
}

/// Looks up a count of which seven are used.
struct Seven;

impl SharedUsage for Seven {
    fn used(&self, identity: &Identity) -> Option<Amount> {
        identity.as_str().starts_with("Policy agents/p|").then(|| Amount::whole(7))
    }
}

#[test]
fn are_among_the_verdicts_and_views() {
    let reasons = |spec: &str| -> Vec<Reason> {
        let engine = shared(&[policy("p", spec)]);
        engine
            .verdicts("s", OperationKind::Tool)
            .iter()
            .filter(|verdict| verdict.name == Some("a"))
            .map(|verdict| verdict.reason)
            .collect()
    };
    let hold = "servers: [{name: s, url: 'http://s/', tools: [{name: a, maxConcurrent: 1, maxConcurrentScope: Policy}]}]";
    let limit = "servers: [{name: s, url: 'http://s/', tools: [{name: a, limits: [{max: 1, window: hour, scope: Policy}]}]}]";
    assert_eq!(reasons(hold), [Reason::Concurrency, Reason::StoreUnavailable, Reason::None]);
    assert_eq!(reasons(limit), [Reason::RateLimit, Reason::StoreUnavailable, Reason::None]);
    assert_eq!(reasons(&format!("onStoreFailure: Allow, {limit}")), [Reason::RateLimit, Reason::None]);
    let engine = shared(&[tools("{name: a, limits: [{max: 9, window: hour, scope: Policy}, {max: 9, window: hour}]}")]);
    assert_eq!(
        serde_json::to_value(engine.limits(Timestamp(0), &Seven)).unwrap(),
        json!([
            {"server": "s", "tool": "a", "policy": "agents/p", "limit": "9/hour/Policy", "keyed": false, "used": 7.0, "max": 9,
             "scope": "Policy", "shared": true},
            {"server": "s", "tool": "a", "policy": "agents/p", "limit": "9/hour", "keyed": false, "used": 0.0, "max": 9},
        ])
    );
}

#[test]
fn a_store_that_answers_holds_pods_to_one_maximum() {
    let (store, policies) = (Memory::new(Memory::COUNTERS), [tools(BOTH)]);
    let engines = ["Deployment/social", "Deployment/social", "Deployment/other"]
        .map(|workload| compiled(&policies, &options("pod", workload)).0);
    let decide = |pod: usize| common::decide(&engines[pod], &store, &of("a"), Timestamp(0));
    // Three places of the workload over its two pods; those of the other are its own.
    let held = [allowed(decide(0)), allowed(decide(1)), allowed(decide(0))];
    assert_eq!(reason(&decide(1)), Reason::Concurrency);
    drop(allowed(decide(2)));
    drop(held);
    for _ in 0..3 {
        drop([allowed(decide(0)), allowed(decide(1))]);
    }
    let peeked = common::peek(&engines[1], &store, &of("a"), Timestamp(0));
    assert_eq!(explain(&engines[1], &peeked).verdict.reason, "rate_limit");
    // Nine calls an hour: each pod has one place left of its own five and less, and the workload none.
    assert_eq!(denied(decide(1)).limit.unwrap().max, 9);
}
