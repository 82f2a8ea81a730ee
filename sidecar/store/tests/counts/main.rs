//! The scripts in a real redis-server, with a clock that the test sets, and what the pods make of the answers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../common/mod.rs"]
mod common;
mod manual_clock;

use std::{sync::Arc, time::Duration};

use manual_clock::{BEGIN, ManualClockStore};
use proptest::prelude::*;
use redis::{Cmd, Value};
use toolweir_crds::OnStoreFailure;
use toolweir_engine::{
    Amount, Memory, Timestamp,
    shared::{SharedDemand, SharedHold, SharedTake},
    take::{Hold, Identity, Take, TakeError, instance},
    window::{Full, Slice, Span},
};
use toolweir_store::{
    answer::{DemandAnswer, DemandAnswers, DemandGrant},
    local::{LocalCounts, LocalDecision, PLACES_LIFE},
    scripts::{CountUpdate, EpochReply, KeySpace, read_integers, take::TakeRequest},
    slices::Micros,
};

fn take(name: &str, key: &str, window: u64, max: u64, amount: u64) -> Take {
    Take {
        identity: Identity::new(name),
        instance: instance(key),
        span: Span::new(Duration::from_micros(window)),
        max: Amount::whole(max),
        amount: Amount::from_millionths(amount),
    }
}

fn wanted(takes: Vec<Take>, failure: OnStoreFailure) -> SharedDemand {
    let takes = takes.into_iter().map(|take| SharedTake { take, pod_group: "Namespace a".into(), failure }).collect();
    SharedDemand { takes, ..SharedDemand::default() }
}

fn place(max: u64) -> SharedDemand {
    let hold =
        SharedHold { hold: Hold { identity: Identity::new("slow"), max }, pod_group: "x".into(), failure: OnStoreFailure::Deny };
    SharedDemand { holds: std::iter::once(hold).collect(), ..SharedDemand::default() }
}

fn only(mut answers: DemandAnswers) -> DemandAnswer {
    assert_eq!(answers.len(), 1);
    answers.pop().unwrap()
}

fn taken(answers: DemandAnswers) -> DemandGrant {
    match only(answers) {
        DemandAnswer::Taken(taken) => taken,
        other => panic!("{other:?}"),
    }
}

const ONE: u64 = 1_000_000;

#[derive(Clone, Debug)]
struct Step {
    pod: usize,
    /// In thousandths of the window.
    pause: u64,
    /// For each of three counts: not wanted, or so many millionths.
    amounts: [Option<u64>; 3],
    given_back: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let amount = prop_oneof![2 => Just(None), 3 => Just(Some(ONE)), 1 => (1..3 * ONE).prop_map(Some)];
    let pause = prop_oneof![4 => 0_u64..20, 3 => 20_u64..300, 1 => 300_u64..3000];
    (0..3_usize, pause, [amount.clone(), amount.clone(), amount], proptest::bool::weighted(0.1))
        .prop_map(|(pod, pause, amounts, given_back)| Step { pod, pause, amounts, given_back })
}

#[test]
fn the_shared_counts_and_those_in_memory_give_the_same_answers_for_the_same_history() {
    let store = std::cell::RefCell::new(ManualClockStore::new());
    let config = ProptestConfig { cases: 64, max_shrink_iters: 200, ..ProptestConfig::default() };
    proptest!(config, |(
        window in prop_oneof![Just(1_000_000_u64), 1000_u64..5_000_000],
        max in 1_u64..6,
        offset in 0_u64..10_000_000,
        steps in proptest::collection::vec(step(), 1..60),
    )| {
        let mut store = store.borrow_mut();
        store.reset();
        let mut now = BEGIN + offset;
        let memory = Memory::new(100);
        let mut pods = [LocalCounts::new(false, 100), LocalCounts::new(false, 100), LocalCounts::new(false, 100)];
        for step in steps {
            now += step.pause * window / 1000;
            store.set_clock(now);
            let takes: Vec<Take> = (0..3_u64)
                .zip(step.amounts)
                .filter_map(|(count, amount)| Some(take("limit", &count.to_string(), window * (count % 2 + 1), max + count, amount?)))
                .collect();
            let here = memory.take(&takes, &[], store.engine_time());
            let group = [wanted(takes, OnStoreFailure::Deny)];
            let there = only(store.call(&mut pods[step.pod], &format!("p{}", step.pod), &group));
            match (here, there) {
                (Ok(permit), DemandAnswer::Taken(got)) => if step.given_back {
                    permit.give_back();
                    pods[step.pod].give_back(&got.amounts, now);
                    store.flush(&mut pods[step.pod], "p");
                },
                (Err(TakeError::Full(here)), DemandAnswer::Refused(TakeError::Full(there))) => {
                    let micros = |(index, full): &(usize, Full)| match full {
                        Full::Until(then) => (*index, Some(then.0.div_ceil(1000))),
                        Full::Never => (*index, None),
                    };
                    prop_assert_eq!(here.iter().map(micros).collect::<Vec<_>>(), there.iter().map(micros).collect::<Vec<_>>());
                }
                (here, there) => prop_assert!(false, "in memory {:?}, shared {:?}", here, there),
            }
        }
    });
}

/// A command that a pod has sent, and that the store may carry out at any time.
struct Sent {
    cmd: Cmd,
    /// A request, the number of its pod, and whether somebody waits for the answer.
    request: Option<(usize, Option<TakeRequest>)>,
    answer: Option<(u64, Vec<i64>)>,
}

#[derive(Clone, Debug)]
enum Event {
    Pause(u64),
    Call(usize),
    CarryOut(usize),
    Deliver(usize),
    Forget(usize),
    GiveBack(usize),
    Upkeep(usize),
    Die(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (1_u64..3000).prop_map(Event::Pause),
        1 => (3000_u64..60_000).prop_map(Event::Pause),
        12 => (0..PODS).prop_map(Event::Call),
        12 => any::<usize>().prop_map(Event::CarryOut),
        12 => any::<usize>().prop_map(Event::Deliver),
        1 => any::<usize>().prop_map(Event::Forget),
        1 => any::<usize>().prop_map(Event::GiveBack),
        4 => (0..PODS).prop_map(Event::Upkeep),
        1 => (0..PODS * 20).prop_map(Event::Die),
    ]
}

const PODS: usize = 4;

/// Pods that share one limit over a network that delays and loses commands.
struct Deployment<'a> {
    store: &'a mut ManualClockStore,
    group: [SharedDemand; 1],
    members: Vec<LocalCounts>,
    names: Vec<String>,
    sent: Vec<Sent>,
    /// When each call went on, its pod, and what gives it back.
    passed: Vec<(u64, usize, DemandGrant)>,
    /// Calls that a lease let through.
    leased: usize,
}

impl<'a> Deployment<'a> {
    fn new(store: &'a mut ManualClockStore, group: [SharedDemand; 1]) -> Self {
        store.reset();
        let members = (0..PODS).map(|_| LocalCounts::new(true, 100)).collect();
        let names = (0..PODS).map(|pod| format!("pod{pod}")).collect();
        Self { store, group, members, names, sent: Vec::new(), passed: Vec::new(), leased: 0 }
    }

    fn happen(&mut self, event: &Event) {
        match *event {
            Event::Pause(micros) => self.store.set_clock(self.store.now + micros),
            Event::Call(pod) => self.call(pod),
            Event::CarryOut(which) => self.carry_out(which),
            Event::Deliver(which) => self.deliver(which),
            Event::Forget(which) => {
                let at = which % self.sent.len().max(1);
                // Nobody waits any more; the store may carry it out all the same.
                if let Some((pod, request)) = self.sent.get_mut(at).and_then(|sent| sent.request.as_mut())
                    && let Some(request) = request.take()
                {
                    self.members[*pod].request_lost(&self.group, &request);
                }
            }
            Event::GiveBack(which) => {
                if !self.passed.is_empty() {
                    let (_, pod, grant) = self.passed.remove(which % self.passed.len());
                    self.members[pod].give_back(&grant.amounts, self.store.now);
                }
            }
            Event::Upkeep(pod) => self.upkeep(pod),
            Event::Die(pod) => {
                if pod < PODS {
                    self.die(pod);
                }
            }
        }
    }

    fn call(&mut self, pod: usize) {
        match self.members[pod].decide(&self.group, self.store.now, self.store.engine_time()).unwrap() {
            LocalDecision::Answered(answers) => {
                if let DemandAnswer::Taken(grant) = only(answers) {
                    self.leased += 1;
                    self.passed.push((self.store.now, pod, grant));
                }
            }
            LocalDecision::Ask(request) => {
                let cmd = self.store.keys.take(&self.store.scripts, &self.names[pod], &request);
                self.sent.push(Sent { cmd, request: Some((pod, Some(request))), answer: None });
            }
        }
    }

    /// The store carries out one of the commands.
    fn carry_out(&mut self, which: usize) {
        let waiting: Vec<usize> = (0..self.sent.len()).filter(|at| self.sent[*at].answer.is_none()).collect();
        if let Some(at) = waiting.get(which % waiting.len().max(1)) {
            let numbers = self.store.numbers(&self.sent[*at].cmd);
            if self.sent[*at].request.is_none() {
                self.sent.remove(*at);
            } else {
                self.sent[*at].answer = Some((self.store.now, numbers));
            }
        }
    }

    /// One of the answers comes to its pod.
    fn deliver(&mut self, which: usize) {
        let done: Vec<usize> = (0..self.sent.len()).filter(|at| self.sent[*at].answer.is_some()).collect();
        if let Some(at) = done.get(which % done.len().max(1)) {
            let Sent { request, answer, .. } = self.sent.remove(*at);
            let (Some((pod, Some(request))), Some((then, numbers))) = (request, answer) else { return };
            let (now, engine) = (self.store.now, self.store.engine_time());
            let answers = self.members[pod].apply_reply(&self.group, &request, then, &numbers, now, engine).unwrap();
            if let DemandAnswer::Taken(grant) = only(answers) {
                self.passed.push((now, pod, grant));
            }
        }
    }

    fn upkeep(&mut self, pod: usize) {
        let ManualClockStore { keys, scripts, now, .. } = &*self.store;
        for update in self.members[pod].take_updates() {
            self.sent.push(Sent { cmd: keys.add(scripts, &update), request: None, answer: None });
        }
        for count in self.members[pod].close_leases(*now) {
            self.sent.push(Sent { cmd: keys.close(scripts, &self.names[pod], &count), request: None, answer: None });
        }
    }

    /// A pod is killed, and another takes its place.
    fn die(&mut self, pod: usize) {
        self.members[pod] = LocalCounts::new(true, 100);
        self.names[pod] += "'";
        // Its calls stay passed, and nobody can give them back; nobody waits for its answers.
        for (.., grant) in self.passed.iter_mut().filter(|(_, of, _)| *of == pod) {
            grant.amounts.clear();
        }
        for sent in &mut self.sent {
            if let Some((_, request)) = sent.request.as_mut().filter(|(of, _)| *of == pod) {
                *request = None;
            }
        }
    }
}

#[test]
fn leases_never_let_more_through_than_max_in_any_window_whatever_is_late_lost_or_dead() {
    let store = std::cell::RefCell::new(ManualClockStore::new());
    let leased = std::cell::Cell::new(0);
    let config = ProptestConfig { cases: 64, max_shrink_iters: 400, ..ProptestConfig::default() };
    proptest!(config, |(
        max in prop_oneof![1_u64..8, 8_u64..200],
        window in prop_oneof![Just(1_000_000_u64), 100_000_u64..2_000_000],
        events in proptest::collection::vec(event(), 100..600),
    )| {
        let mut store = store.borrow_mut();
        let mut deployment = Deployment::new(&mut store, [wanted(vec![take("limit", "", window, max, ONE)], OnStoreFailure::Deny)]);
        for event in &events {
            deployment.happen(event);
        }
        leased.set(leased.get() + deployment.leased);
        let times: Vec<u64> = deployment.passed.iter().map(|(then, ..)| *then).collect();
        for begin in &times {
            let within = times.iter().filter(|then| (*begin..begin + window).contains(*then)).count();
            prop_assert!(within as u64 <= max, "{within} of {max} within {window} from {begin}");
        }
    });
    assert!(leased.get() > 150, "only {} calls were taken of leases", leased.get());
}

#[test]
fn a_pod_with_a_pace_leases_and_the_store_gets_back_what_it_does_not_use() {
    let mut store = ManualClockStore::new();
    let mut pod = LocalCounts::new(true, 100);
    let limit = take("limit", "", 60_000_000, 10_000, ONE);
    let group = [wanted(vec![limit.clone()], OnStoreFailure::Deny)];
    let mut asked = 0;
    for _ in 0..3000 {
        store.set_clock(store.now + 7_000);
        if let LocalDecision::Ask(request) = pod.decide(&group, store.now, store.engine_time()).unwrap() {
            asked += 1;
            let numbers = store.numbers(&store.keys.clone().take(&store.scripts.clone(), "p", &request));
            taken(pod.apply_reply(&group, &request, store.now, &numbers, store.now, store.engine_time()).unwrap());
        }
        store.flush(&mut pod, "p");
    }
    assert!((1..150).contains(&asked), "{asked} of 3000 calls needed a round trip");
    assert!(store.used(&limit) >= i64::try_from(3000 * ONE).unwrap());
    for _ in 0..60 {
        store.set_clock(store.now + 50_000);
        store.flush(&mut pod, "p");
    }
    assert_eq!(store.used(&limit), i64::try_from(3000 * ONE).unwrap(), "what was used, and nothing more");
    store.set_clock(store.now + 61_000_000);
    assert_eq!(store.used(&limit), 0);
}

#[test]
fn the_lease_of_a_pod_that_died_counts_as_used_until_the_window_has_passed() {
    let mut store = ManualClockStore::new();
    let mut pod = LocalCounts::new(true, 100);
    let limit = take("limit", "", 1_000_000, 1000, ONE);
    let group = [wanted(vec![limit.clone()], OnStoreFailure::Deny)];
    for _ in 0..100 {
        store.set_clock(store.now + 1_000);
        store.call(&mut pod, "p", &group);
    }
    let held = store.used(&limit);
    assert!(held > i64::try_from(100 * ONE).unwrap(), "{held}");
    drop(pod);
    store.set_clock(store.now + 900_000);
    assert_eq!(store.used(&limit), held, "nobody can say what it used");
    store.set_clock(store.now + 1_100_000);
    assert_eq!(store.used(&limit), 0);
}

#[test]
fn places_are_shared_come_free_and_outlive_no_pod() {
    let mut store = ManualClockStore::new();
    let (mut a, mut b) = (LocalCounts::new(true, 100), LocalCounts::new(true, 100));
    let group = [place(3)];
    for _ in 0..2 {
        taken(store.call(&mut a, "a", &group));
    }
    taken(store.call(&mut b, "b", &group));
    for (pod, name) in [(&mut a, "a"), (&mut b, "b")] {
        assert!(matches!(only(store.call(pod, name, &group)), DemandAnswer::Refused(TakeError::Busy(0))));
    }
    a.release_place("slow");
    let beat = |store: &mut ManualClockStore, pod: &mut LocalCounts, name: &str| {
        let places = pod.report_places();
        store.numbers(&store.keys.clone().heartbeat(&store.scripts.clone(), name, &["group"], PLACES_LIFE, &places, PLACES_LIFE))
    };
    assert_eq!(beat(&mut store, &mut a, "a"), [1]);
    taken(store.call(&mut b, "b", &group));
    assert!(matches!(only(store.call(&mut a, "a", &group)), DemandAnswer::Refused(_)));
    // b dies; a lives on.
    store.set_clock(store.now + PLACES_LIFE - 1);
    assert_eq!(beat(&mut store, &mut a, "a"), [1]);
    assert!(matches!(only(store.call(&mut a, "a", &group)), DemandAnswer::Refused(_)));
    store.set_clock(store.now + 1);
    taken(store.call(&mut a, "a", &group));
    taken(store.call(&mut a, "a", &group));
    assert!(matches!(only(store.call(&mut a, "a", &group)), DemandAnswer::Refused(_)));
}

#[test]
fn messages_about_places_that_come_in_another_order_end_in_what_the_pod_holds() {
    let mut store = ManualClockStore::new();
    let mut pod = LocalCounts::new(true, 100);
    let group = [place(5)];
    let requests: Vec<TakeRequest> = (0..3)
        .map(|_| match pod.decide(&group, store.now, store.engine_time()).unwrap() {
            LocalDecision::Ask(request) => request,
            other @ LocalDecision::Answered(_) => panic!("{other:?}"),
        })
        .collect();
    pod.release_place("slow");
    let places = pod.report_places();
    let (keys, scripts) = (store.keys.clone(), store.scripts.clone());
    store.numbers(&keys.heartbeat(&scripts, "p", &[], 1, &places, PLACES_LIFE));
    for request in requests.iter().rev() {
        store.numbers(&keys.take(&scripts, "p", request));
    }
    let looked = store.numbers(&keys.peek(&scripts, &[], &[LocalCounts::places_digest("slow")]));
    assert_eq!(looked, [2]);
}

#[test]
fn the_groups_of_a_call_are_taken_in_turn_and_audited_ones_only_after_the_enforced() {
    let mut store = ManualClockStore::new();
    let mut pod = LocalCounts::new(false, 100);
    let limit = |name: &str, max| wanted(vec![take(name, "", 1_000_000, max, ONE)], OnStoreFailure::Deny);
    let call = [limit("enforced", 2), limit("audited", 1), limit("other", 9)];
    let kinds = |answers: &DemandAnswers| {
        let kind = |answer: &DemandAnswer| match answer {
            DemandAnswer::Taken(_) => 't',
            DemandAnswer::Refused(_) | DemandAnswer::RefusedAlone(_) => 'r',
            DemandAnswer::Unavailable => 'u',
            DemandAnswer::NotAsked => 'n',
        };
        answers.iter().map(kind).collect::<String>()
    };
    for expected in ["ttt", "trt", "rnn"] {
        let answers = store.call(&mut pod, "p", &call);
        assert_eq!(kinds(&answers), expected);
    }
    assert_eq!(store.used(&call[2].takes[0].take), 2_000_000, "nothing of a call that is denied");
}

#[test]
fn without_the_store_each_pod_keeps_to_its_part_and_to_nothing_where_that_is_not_known() {
    let mut store = ManualClockStore::new();
    let mut pod = LocalCounts::new(true, 100);
    let limit = |failure| [wanted(vec![take("limit", "", 1_000_000, 10, ONE)], failure)];
    let alone = |pod: &mut LocalCounts, store: &ManualClockStore, failure| {
        only(pod.fall_back(&limit(failure), store.now, store.engine_time(), false))
    };
    assert!(
        matches!(alone(&mut pod, &store, OnStoreFailure::PerPod), DemandAnswer::Unavailable),
        "how many pods there are is not known"
    );
    taken(store.call(&mut pod, "p", &limit(OnStoreFailure::PerPod)));
    pod.set_pods(&Arc::from("Namespace a"), 4);
    assert!(matches!(alone(&mut pod, &store, OnStoreFailure::Deny), DemandAnswer::Unavailable));
    // One was taken of the store: 10 / 4 leaves one more.
    assert!(matches!(alone(&mut pod, &store, OnStoreFailure::PerPod), DemandAnswer::Taken(_)));
    assert!(matches!(alone(&mut pod, &store, OnStoreFailure::PerPod), DemandAnswer::RefusedAlone(TakeError::Full(_))));
    pod.set_pods(&Arc::from("Namespace a"), 40);
    store.set_clock(store.now + 1_016_000);
    assert!(matches!(alone(&mut pod, &store, OnStoreFailure::PerPod), DemandAnswer::Taken(_)), "at least one");
    assert!(matches!(alone(&mut pod, &store, OnStoreFailure::PerPod), DemandAnswer::RefusedAlone(_)));
    assert!(matches!(alone(&mut pod, &store, OnStoreFailure::Allow), DemandAnswer::Taken(_)));
    let brought: i64 = pod.offline_updates().iter().flat_map(|add| &add.slices).map(|(_, amount)| amount).sum();
    assert_eq!(brought, 2 * 1_000_000, "what still counts of what was taken alone");
}

#[test]
fn a_new_epoch_gets_what_every_pod_took_and_nothing_of_the_old_one() {
    let mut store = ManualClockStore::new();
    let (mut a, mut b) = (LocalCounts::new(false, 100), LocalCounts::new(false, 100));
    let limit = take("limit", "", 60_000_000, 5, ONE);
    let group = [wanted(vec![limit.clone()], OnStoreFailure::Deny)];
    taken(store.call(&mut a, "a", &group));
    taken(store.call(&mut a, "a", &group));
    taken(store.call(&mut b, "b", &group));
    let old = store.keys.clone();
    let now = store.now;
    store.reset();
    store.set_clock(now + 1_000_000);
    let stale = old.add(&store.scripts.clone(), &a.enter_epoch(0, store.now).0[0]);
    let answer = store.run(&stale);
    assert_eq!(read_integers(&answer).unwrap()[0], 1, "the old epoch is over");
    for pod in [&mut a, &mut b] {
        let (adds, _) = pod.enter_epoch(0, now + 1_000_000);
        store.update(&adds);
    }
    assert_eq!(store.used(&limit), 3 * 1_000_000);
    taken(store.call(&mut b, "b", &group));
    taken(store.call(&mut b, "b", &group));
    assert!(matches!(only(store.call(&mut a, "a", &group)), DemandAnswer::Refused(_)));
}

#[test]
fn what_a_count_holds_is_bounded_and_expires() {
    let mut store = ManualClockStore::new();
    let mut pod = LocalCounts::new(false, 100);
    let limit = take("limit", "", 1_000_000, 1_000_000, ONE);
    let group = [wanted(vec![limit.clone()], OnStoreFailure::Deny)];
    for _ in 0..1500 {
        store.set_clock(store.now + 3_000);
        taken(store.call(&mut pod, "p", &group));
    }
    let mut keys = Cmd::new();
    keys.arg("KEYS").arg("*:c:*");
    let Value::Array(found) = store.run(&keys) else { panic!() };
    let [Value::BulkString(key)] = found.as_slice() else { panic!("{found:?}") };
    let mut ask = |command: &str| {
        let mut cmd = Cmd::new();
        cmd.arg(command).arg(key);
        match store.run(&cmd) {
            Value::Int(number) => number,
            other => panic!("{other:?}"),
        }
    };
    let (fields, life) = (ask("HLEN"), ask("PTTL"));
    assert!((130..=136).contains(&fields), "{fields} fields");
    assert!((1..=62_000).contains(&life), "{life} ms");
}

#[test]
fn counts_that_came_through_a_restart_count_on_and_pods_bring_what_was_lost_alone() {
    let mut store = ManualClockStore::new();
    let (mut a, mut b) = (LocalCounts::new(false, 100), LocalCounts::new(false, 100));
    let limit = take("limit", "", 60_000_000, 100, ONE);
    let group = [wanted(vec![limit.clone()], OnStoreFailure::Deny)];
    for _ in 0..10 {
        taken(store.call(&mut a, "a", &group));
    }
    taken(store.call(&mut b, "b", &group));
    // A pod that took some ends; the others go on.
    drop(a);
    store.set_clock(store.now + 10_000_000);
    store.heartbeat(&mut b, "b");
    let before = store.keys.epoch().to_owned();
    store.set_clock(store.now + 500_000);
    taken(store.call(&mut b, "b", &group));
    store.restart();
    let since = store.keys.lost_since(Some(&before));
    assert_eq!(since, store.now - 1_500_000, "a second before the last sign of life");
    let (adds, _) = b.enter_epoch(since, store.now);
    store.update(&adds);
    // What came through counts, and what b took lately may count twice, and nothing of before.
    assert_eq!(store.used(&limit), 13 * 1_000_000);
    // Who has missed one brings everything, and so does who was in none.
    let missed = store.keys.epoch().to_owned();
    store.restart();
    assert!(store.keys.lost_since(Some(&missed)) > 0);
    assert_eq!(
        (store.keys.lost_since(Some(&before)), store.keys.lost_since(None), store.keys.lost_since(Some("nonsense"))),
        (0, 0, 0)
    );
}

#[test]
fn a_lease_and_what_is_known_to_be_full_are_for_the_maximum_that_they_were_asked_for() {
    let mut store = ManualClockStore::new();
    let mut pod = LocalCounts::new(true, 100);
    // Two limits that count together.
    let of = |max| [wanted(vec![take("limit", "", 60_000_000, max, ONE)], OnStoreFailure::Deny)];
    let (large, small) = (of(10_000), of(50));
    for _ in 0..300 {
        store.set_clock(store.now + 10_000);
        taken(store.call(&mut pod, "p", &large));
    }
    let mut leased = 0;
    for _ in 0..10 {
        leased += usize::from(matches!(pod.decide(&large, store.now, store.engine_time()).unwrap(), LocalDecision::Answered(_)));
        assert!(matches!(only(store.call(&mut pod, "p", &small)), DemandAnswer::Refused(TakeError::Full(_))));
    }
    assert!(leased > 0, "it is full for the one, and leased for the other");
    // What is full for the larger is so for the smaller.
    let mut other = LocalCounts::new(true, 100);
    assert!(matches!(only(store.call(&mut other, "o", &small)), DemandAnswer::Refused(_)));
    assert!(matches!(other.decide(&small, store.now, store.engine_time()).unwrap(), LocalDecision::Answered(_)));
    assert!(matches!(other.decide(&large, store.now, store.engine_time()).unwrap(), LocalDecision::Ask(_)));
}

#[test]
fn calls_that_are_denied_lease_nothing_however_dear_they_are() {
    let mut store = ManualClockStore::new();
    let mut pod = LocalCounts::new(true, 100);
    let dear = [wanted(vec![take("limit", "", 60_000_000, 1000, u64::MAX / 2)], OnStoreFailure::Deny)];
    let cheap = take("limit", "", 60_000_000, 1000, ONE);
    for _ in 0..20 {
        store.set_clock(store.now + 1_000_000);
        assert!(matches!(only(store.call(&mut pod, "p", &dear)), DemandAnswer::Refused(_)));
    }
    taken(store.call(&mut pod, "p", &[wanted(vec![cheap.clone()], OnStoreFailure::Deny)]));
    assert_eq!(store.used(&cheap), 1_000_000, "one call, and no lease");
}

#[test]
fn a_call_that_is_let_through_without_the_store_and_costs_more_than_can_be_counted_fills_the_count_and_breaks_nothing() {
    let mut store = ManualClockStore::new();
    let mut pod = LocalCounts::new(false, 100);
    store.set_clock(store.now + 1000);
    let dear = [wanted(vec![take("limit", "", 60_000_000, 1000, u64::MAX - 1)], OnStoreFailure::Allow)];
    let cheap = take("limit", "", 60_000_000, 1000, ONE);
    let group = [wanted(vec![cheap.clone()], OnStoreFailure::Allow)];
    taken(store.call(&mut pod, "p", &group));
    for _ in 0..3 {
        let answers = only(pod.fall_back(&dear, store.now, store.engine_time(), false));
        pod.give_back(&taken(DemandAnswers::from_iter([answers])).amounts, store.now);
        assert!(matches!(only(pod.fall_back(&dear, store.now, store.engine_time(), false)), DemandAnswer::Taken(_)));
    }
    let adds = pod.offline_updates();
    store.update(&adds);
    store.update(&adds);
    pod.offline_stored(&adds);
    assert!(pod.offline_updates().is_empty());
    assert!(matches!(only(store.call(&mut pod, "p", &group)), DemandAnswer::Refused(_)));
    store.set_clock(store.now + 61_000_000);
    taken(store.call(&mut pod, "p", &group));
    assert_eq!(store.used(&cheap), 1_000_000);
}

#[test]
fn a_message_that_comes_late_takes_no_place_again() {
    let mut store = ManualClockStore::new();
    let (mut pod, mut other) = (LocalCounts::new(true, 100), LocalCounts::new(true, 100));
    let group = [place(1)];
    let LocalDecision::Ask(request) = pod.decide(&group, store.now, store.engine_time()).unwrap() else { panic!() };
    let late = store.keys.take(&store.scripts, "p", &request);
    pod.request_lost(&group, &request);
    store.heartbeat(&mut pod, "p");
    store.numbers(&late);
    taken(store.call(&mut other, "o", &group));
}

#[test]
fn what_is_taken_before_the_stores_clock_is_known_is_brought_all_the_same() {
    let mut store = ManualClockStore::new();
    let mut pod = LocalCounts::new(false, 100);
    let limit = take("limit", "", 60_000_000, 10, ONE);
    let group = [wanted(vec![limit.clone()], OnStoreFailure::Allow)];
    taken(pod.fall_back(&group, 5, Timestamp(5000), false));
    pod.set_clock(store.now, 6, 7);
    store.update(&pod.offline_updates());
    assert_eq!(store.used(&limit), 1_000_000);
}

#[test]
fn what_could_not_be_told_is_moved_again_and_not_given_back_again() {
    let mut pod = LocalCounts::new(false, 100);
    let update = |slices: &[(u64, i64)]| CountUpdate {
        digest: "d".into(),
        window: Micros(1),
        slices: slices.iter().map(|(slice, amount)| (Slice(*slice), *amount)).collect(),
    };
    pod.updates_lost(vec![update(&[(3, 5), (2, -5)]), update(&[(2, -5)])]);
    assert_eq!(pod.take_updates(), [update(&[(3, 5), (2, -5)])]);
}

#[test]
fn what_is_brought_to_an_epoch_hangs_on_the_one_before() {
    let since = |before: &str, now: &str| KeySpace::new("p").in_epoch(now).lost_since(Some(before));
    let before = "n run1 100 50 3 run0";
    assert_eq!(since(before, "n run2 200 150 4 run1"), 150);
    for (now, why) in [
        ("n run2 200 150 5 run1", "one was missed"),
        ("n run3 200 150 4 run2", "it came out of a backup, and others have been in another fourth one"),
        ("m run2 200 150 4 run1", "the counts are others"),
        ("n run2 200 150 4", "it is none"),
        (before, "it is the same"),
    ] {
        assert_eq!(since(before, now), 0, "{why}");
    }
}

#[test]
fn a_server_that_others_have_left_in_between_begins_anew_though_its_run_is_the_same() {
    let mut store = ManualClockStore::new();
    let left = store.keys.epoch().to_owned();
    store.restart();
    let later = store.keys.epoch().to_owned();
    // The server of the first epoch has run on.
    let mut set = Cmd::new();
    set.arg("SET").arg(store.keys.epoch_key()).arg(&left);
    store.run(&set);
    let run = left.split(' ').nth(1).unwrap();
    let begin = |before| store.keys.begin_epoch(&store.scripts, run, "new", 2_000_000, before);
    let (same, anew) = (begin(Some(left.as_str())), begin(Some(later.as_str())));
    let mut ask = |cmd| EpochReply::read(&store.run(cmd)).unwrap();
    assert_eq!(ask(&same).text, left);
    let EpochReply { now, text, opens } = ask(&anew);
    assert_eq!((opens - now, text.split(' ').nth(4)), (2_000_000, Some("3")));
    assert_eq!(ask(&anew).text, text, "once");
    let keys = store.keys.in_epoch(&text);
    assert_eq!((keys.lost_since(Some(&later)), keys.lost_since(Some(&left))), (0, 0), "everybody brings everything");
}

#[test]
fn what_a_question_that_was_not_sent_would_have_told_is_told_of_the_same_lease_alone() {
    let mut store = ManualClockStore::new();
    let mut pod = LocalCounts::new(true, 100);
    let limit = take("limit", "", 60_000_000, 10_000, ONE);
    let group = [wanted(vec![limit.clone()], OnStoreFailure::Deny)];
    let lease = |store: &mut ManualClockStore, pod: &mut LocalCounts| {
        for _ in 0..500 {
            store.set_clock(store.now + 7_000);
            store.call(pod, "p", &group);
            if matches!(pod.decide(&group, store.now, store.engine_time()).unwrap(), LocalDecision::Answered(_)) {
                return;
            }
        }
        panic!("no lease");
    };
    lease(&mut store, &mut pod);
    let dear = [wanted(vec![take("limit", "", 60_000_000, 10_000, 9000 * ONE)], OnStoreFailure::Deny)];
    let ask = |pod: &mut LocalCounts, store: &ManualClockStore| match pod.decide(&dear, store.now, store.engine_time()).unwrap() {
        LocalDecision::Ask(request) => request,
        other @ LocalDecision::Answered(_) => panic!("{other:?}"),
    };
    // Not sent, it changes nothing.
    let request = ask(&mut pod, &store);
    pod.request_not_sent(&dear, &request);
    store.flush(&mut pod, "p");
    // Its lease is given up before: nothing of it is told of the next.
    let (first, second) = (ask(&mut pod, &store), ask(&mut pod, &store));
    pod.request_lost(&dear, &first);
    pod.request_lost(&dear, &second);
    pod.request_not_sent(&dear, &first);
    lease(&mut store, &mut pod);
    for count in pod.end_leases() {
        let told: u64 = count.uses.iter().map(|(_, amount)| amount.millionths()).sum();
        assert!(told <= 2 * ONE, "{told} of the lease that was given up");
    }
}

#[test]
fn an_answer_of_another_form_is_none() {
    let mut store = ManualClockStore::new();
    let mut pod = LocalCounts::new(true, 100);
    let group = [wanted(vec![take("limit", "", 60_000_000, 10, ONE)], OnStoreFailure::Deny), place(3)];
    let LocalDecision::Ask(request) = pod.decide(&group, store.now, store.engine_time()).unwrap() else { panic!() };
    let right = store.numbers(&store.keys.clone().take(&store.scripts.clone(), "p", &request));
    let wrong = [&right[1..], &[&right[..], &[0]].concat(), &[&[3], &right[1..]].concat(), &[&[0], &right[1..]].concat()];
    for numbers in wrong {
        assert!(pod.apply_reply(&group, &request, store.now, numbers, store.now, store.engine_time()).is_err(), "{numbers:?}");
    }
    assert!(pod.apply_reply(&group, &request, store.now, &right, store.now, store.engine_time()).is_ok());
}
