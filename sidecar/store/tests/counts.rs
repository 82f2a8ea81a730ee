//! The scripts in a real redis-server, with a clock that the test sets, and what the pods make of the answers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{sync::Arc, time::Duration};

use common::Redis;
use proptest::prelude::*;
use redis::{Cmd, Value, aio::MultiplexedConnection};
use tokio::runtime::Runtime;
use toolweir_crds::OnStoreFailure;
use toolweir_engine::{
    Amount, Counters, Memory, Timestamp,
    counters::{Hold, Identity, Refusal, Take, instance},
    shared::{SharedHold, SharedTake, Wanted},
    window::{Full, Span},
};
use toolweir_store::{
    local::{Add, AllSaid, Local, PLACES_LIFE, POD_LIFE, Plan, Question, Said, Taken},
    scripts::{Keys, Scripts, integers},
};

/// A store whose clock stands still until it is set.
struct World {
    runtime: Runtime,
    connection: MultiplexedConnection,
    scripts: Scripts,
    keys: Keys,
    now: u64,
    epochs: u64,
    _redis: Redis,
}

/// Some day of 2026, in microseconds.
const BEGIN: u64 = 1_795_000_000_000_000;

impl World {
    fn new() -> Self {
        let redis = Redis::start(&[]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", redis.port)).unwrap();
        let connection = runtime.block_on(client.get_multiplexed_async_connection()).unwrap();
        let keys = Keys::new("test");
        let mut world = Self { runtime, connection, scripts: Scripts::default(), keys, now: BEGIN, epochs: 0, _redis: redis };
        let shas = Scripts::texts().map(|text| {
            assert!(text.contains("redis.call('TIME')"));
            let text = text.replace("redis.call('TIME')", "{ redis.call('GET', 's'), redis.call('GET', 'u') }");
            let mut load = Cmd::new();
            load.arg("SCRIPT").arg("LOAD").arg(text);
            match world.run(&load) {
                Value::BulkString(sha) => String::from_utf8(sha).unwrap(),
                other => panic!("{other:?}"),
            }
        });
        world.scripts = Scripts::of(shas);
        world.anew();
        world
    }

    /// Forgets everything.
    fn anew(&mut self) {
        let mut flush = Cmd::new();
        self.run(flush.arg("FLUSHDB"));
        self.set(BEGIN);
        let text = self.restart();
        assert_eq!(text.split(' ').next().unwrap(), format!("e{}", self.epochs));
    }

    /// Another run has the store's data. Gives the epoch.
    fn restart(&mut self) -> String {
        self.epochs += 1;
        let begin = self.keys.begin(&self.scripts, &format!("run{}", self.epochs), &format!("e{}", self.epochs), 0, None);
        let answer = self.run(&begin);
        let (_, text, opens) = toolweir_store::scripts::epoch(&answer).unwrap();
        assert_eq!(opens, self.now);
        self.keys = self.keys.within(&text);
        text
    }

    fn add(&mut self, adds: &[Add]) {
        for add in adds {
            self.numbers(&self.keys.clone().add(&self.scripts.clone(), add));
        }
    }

    /// A sign of life, with the pod's places.
    fn beat(&mut self, pod: &mut Local, name: &str) {
        let places = pod.all_places();
        self.numbers(&self.keys.clone().beat(&self.scripts.clone(), name, &[], POD_LIFE, &places, PLACES_LIFE));
    }

    fn set(&mut self, now: u64) {
        self.now = now;
        for (key, value) in [("s", now / 1_000_000), ("u", now % 1_000_000)] {
            let mut set = Cmd::new();
            set.arg("SET").arg(key).arg(value);
            self.run(&set);
        }
    }

    fn run(&mut self, cmd: &Cmd) -> Value {
        let mut connection = self.connection.clone();
        self.runtime.block_on(connection.send_packed_command(cmd)).unwrap()
    }

    fn numbers(&mut self, cmd: &Cmd) -> Vec<i64> {
        let answer = self.run(cmd);
        let mut numbers = integers(&answer).unwrap_or_else(|| panic!("{answer:?}"));
        assert_eq!(numbers[0], 0, "another epoch");
        numbers.split_off(2)
    }

    fn engine(&self) -> Timestamp {
        Timestamp(self.now * 1000)
    }

    /// A call of a pod whose clock is the store's, answered at once.
    fn call(&mut self, pod: &mut Local, name: &str, wanted: &[Wanted]) -> AllSaid {
        match pod.plan(wanted, self.now, self.engine()) {
            Plan::Said(said) => said,
            Plan::Ask(question) => {
                let numbers = self.numbers(&self.keys.clone().take(&self.scripts.clone(), name, &question));
                pod.answered(wanted, &question, self.now, &numbers, self.now, self.engine()).unwrap()
            }
        }
    }

    fn tell(&mut self, pod: &mut Local, name: &str) {
        for add in pod.gives() {
            self.numbers(&self.keys.clone().add(&self.scripts.clone(), &add));
        }
        for count in pod.closing(self.now) {
            self.numbers(&self.keys.clone().close(&self.scripts.clone(), name, &count));
        }
    }

    fn look(&mut self, take: &Take) -> i64 {
        let (digest, window) = Local::asked(take);
        let counts = [(digest, [window, take.max.millionths(), take.amount.millionths()])];
        self.numbers(&self.keys.clone().look(&self.scripts.clone(), &counts, &[]))[0]
    }
}

fn take(name: &str, key: &str, window: u64, max: u64, amount: u64) -> Take {
    Take {
        identity: Identity::new(name),
        instance: instance(key),
        span: Span::new(Duration::from_micros(window)),
        max: Amount::whole(max),
        amount: Amount::of_millionths(amount),
    }
}

fn wanted(takes: Vec<Take>, failure: OnStoreFailure) -> Wanted {
    let takes = takes.into_iter().map(|take| SharedTake { take, whose: "Namespace a".into(), failure }).collect();
    Wanted { takes, ..Wanted::default() }
}

fn place(max: u64) -> Wanted {
    let hold =
        SharedHold { hold: Hold { identity: Identity::new("slow"), max }, whose: "x".into(), failure: OnStoreFailure::Deny };
    Wanted { holds: std::iter::once(hold).collect(), ..Wanted::default() }
}

fn only(mut said: AllSaid) -> Said {
    assert_eq!(said.len(), 1);
    said.pop().unwrap()
}

fn taken(said: AllSaid) -> Taken {
    match only(said) {
        Said::Taken(taken) => taken,
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
    let world = std::cell::RefCell::new(World::new());
    let config = ProptestConfig { cases: 64, max_shrink_iters: 200, ..ProptestConfig::default() };
    proptest!(config, |(
        window in prop_oneof![Just(1_000_000_u64), 1000_u64..5_000_000],
        max in 1_u64..6,
        offset in 0_u64..10_000_000,
        steps in proptest::collection::vec(step(), 1..60),
    )| {
        let mut world = world.borrow_mut();
        world.anew();
        let mut now = BEGIN + offset;
        let memory = Memory::new(100);
        let mut pods = [Local::new(false, 100), Local::new(false, 100), Local::new(false, 100)];
        for step in steps {
            now += step.pause * window / 1000;
            world.set(now);
            let takes: Vec<Take> = (0..3_u64)
                .zip(step.amounts)
                .filter_map(|(count, amount)| Some(take("limit", &count.to_string(), window * (count % 2 + 1), max + count, amount?)))
                .collect();
            let here = memory.take(&takes, &[], world.engine());
            let group = [wanted(takes, OnStoreFailure::Deny)];
            let there = only(world.call(&mut pods[step.pod], &format!("p{}", step.pod), &group));
            match (here, there) {
                (Ok(permit), Said::Taken(got)) => if step.given_back {
                    permit.give_back();
                    pods[step.pod].give_back(&got.took, now);
                    world.tell(&mut pods[step.pod], "p");
                },
                (Err(Refusal::Full(here)), Said::Refused(Refusal::Full(there))) => {
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
    /// A question, the number of its pod, and whether somebody waits for the answer.
    question: Option<(usize, Option<Question>)>,
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

#[test]
fn leases_never_let_more_through_than_max_in_any_window_whatever_is_late_lost_or_dead() {
    let world = std::cell::RefCell::new(World::new());
    let leased = std::cell::Cell::new(0);
    let config = ProptestConfig { cases: 64, max_shrink_iters: 400, ..ProptestConfig::default() };
    proptest!(config, |(
        max in prop_oneof![1_u64..8, 8_u64..200],
        window in prop_oneof![Just(1_000_000_u64), 100_000_u64..2_000_000],
        events in proptest::collection::vec(event(), 100..600),
    )| {
        let mut world = world.borrow_mut();
        world.anew();
        let mut pods: Vec<Local> = (0..PODS).map(|_| Local::new(true, 100)).collect();
        let mut names: Vec<String> = (0..PODS).map(|pod| format!("pod{pod}")).collect();
        let mut sent: Vec<Sent> = Vec::new();
        // When each call went on, and what gives it back.
        let mut passed: Vec<(u64, usize, Taken)> = Vec::new();
        let group = [wanted(vec![take("limit", "", window, max, ONE)], OnStoreFailure::Deny)];
        let (keys, scripts) = (world.keys.clone(), world.scripts.clone());
        for event in events {
            let (now, engine) = (world.now, world.engine());
            match event {
                Event::Pause(micros) => world.set(now + micros),
                Event::Call(pod) => match pods[pod].plan(&group, now, engine) {
                    Plan::Said(said) => if let Said::Taken(taken) = only(said) {
                        leased.set(leased.get() + 1);
                        passed.push((now, pod, taken));
                    },
                    Plan::Ask(question) => {
                        let cmd = keys.take(&scripts, &names[pod], &question);
                        sent.push(Sent { cmd, question: Some((pod, Some(question))), answer: None });
                    }
                },
                Event::CarryOut(which) => {
                    let waiting: Vec<usize> = (0..sent.len()).filter(|at| sent[*at].answer.is_none()).collect();
                    if let Some(at) = waiting.get(which % waiting.len().max(1)) {
                        let numbers = world.numbers(&sent[*at].cmd);
                        if sent[*at].question.is_none() {
                            sent.remove(*at);
                        } else {
                            sent[*at].answer = Some((now, numbers));
                        }
                    }
                }
                Event::Deliver(which) => {
                    let done: Vec<usize> = (0..sent.len()).filter(|at| sent[*at].answer.is_some()).collect();
                    if let Some(at) = done.get(which % done.len().max(1)) {
                        let Sent { question, answer, .. } = sent.remove(*at);
                        let (Some((pod, Some(question))), Some((then, numbers))) = (question, answer) else { continue };
                        let said = pods[pod].answered(&group, &question, then, &numbers, now, engine).unwrap();
                        if let Said::Taken(taken) = only(said) {
                            passed.push((now, pod, taken));
                        }
                    }
                }
                Event::Forget(which) => {
                    let at = which % sent.len().max(1);
                    // Nobody waits any more; the store may carry it out all the same.
                    if let Some((pod, question)) = sent.get_mut(at).and_then(|sent| sent.question.as_mut())
                        && let Some(question) = question.take()
                    {
                        pods[*pod].unanswered(&group, &question);
                    }
                }
                Event::GiveBack(which) => if !passed.is_empty() {
                    let (_, pod, taken) = passed.remove(which % passed.len());
                    pods[pod].give_back(&taken.took, now);
                },
                Event::Upkeep(pod) => {
                    for add in pods[pod].gives() {
                        sent.push(Sent { cmd: keys.add(&scripts, &add), question: None, answer: None });
                    }
                    for count in pods[pod].closing(now) {
                        sent.push(Sent { cmd: keys.close(&scripts, &names[pod], &count), question: None, answer: None });
                    }
                }
                Event::Die(pod) => if pod < PODS {
                    pods[pod] = Local::new(true, 100);
                    names[pod] += "'";
                    // Its calls stay passed, and nobody can give them back; nobody waits for its answers.
                    for (.., taken) in passed.iter_mut().filter(|(_, of, _)| *of == pod) {
                        taken.took.clear();
                    }
                    for sent in &mut sent {
                        if let Some((_, question)) = sent.question.as_mut().filter(|(of, _)| *of == pod) {
                            *question = None;
                        }
                    }
                },
            }
        }
        let times: Vec<u64> = passed.iter().map(|(then, ..)| *then).collect();
        for begin in &times {
            let within = times.iter().filter(|then| (*begin..begin + window).contains(*then)).count();
            prop_assert!(within as u64 <= max, "{within} of {max} within {window} from {begin}");
        }
    });
    assert!(leased.get() > 150, "only {} calls were taken of leases", leased.get());
}

#[test]
fn a_pod_with_a_pace_leases_and_the_store_gets_back_what_it_does_not_use() {
    let mut world = World::new();
    let mut pod = Local::new(true, 100);
    let limit = take("limit", "", 60_000_000, 10_000, ONE);
    let group = [wanted(vec![limit.clone()], OnStoreFailure::Deny)];
    let mut asked = 0;
    for _ in 0..3000 {
        world.set(world.now + 7_000);
        if let Plan::Ask(question) = pod.plan(&group, world.now, world.engine()) {
            asked += 1;
            let numbers = world.numbers(&world.keys.clone().take(&world.scripts.clone(), "p", &question));
            taken(pod.answered(&group, &question, world.now, &numbers, world.now, world.engine()).unwrap());
        }
        world.tell(&mut pod, "p");
    }
    assert!((1..150).contains(&asked), "{asked} of 3000 calls needed a round trip");
    assert!(world.look(&limit) >= i64::try_from(3000 * ONE).unwrap());
    for _ in 0..60 {
        world.set(world.now + 50_000);
        world.tell(&mut pod, "p");
    }
    assert_eq!(world.look(&limit), i64::try_from(3000 * ONE).unwrap(), "what was used, and nothing more");
    world.set(world.now + 61_000_000);
    assert_eq!(world.look(&limit), 0);
}

#[test]
fn the_lease_of_a_pod_that_died_counts_as_used_until_the_window_has_passed() {
    let mut world = World::new();
    let mut pod = Local::new(true, 100);
    let limit = take("limit", "", 1_000_000, 1000, ONE);
    let group = [wanted(vec![limit.clone()], OnStoreFailure::Deny)];
    for _ in 0..100 {
        world.set(world.now + 1_000);
        world.call(&mut pod, "p", &group);
    }
    let held = world.look(&limit);
    assert!(held > i64::try_from(100 * ONE).unwrap(), "{held}");
    drop(pod);
    world.set(world.now + 900_000);
    assert_eq!(world.look(&limit), held, "nobody can say what it used");
    world.set(world.now + 1_100_000);
    assert_eq!(world.look(&limit), 0);
}

#[test]
fn places_are_shared_come_free_and_outlive_no_pod() {
    let mut world = World::new();
    let (mut a, mut b) = (Local::new(true, 100), Local::new(true, 100));
    let group = [place(3)];
    for _ in 0..2 {
        taken(world.call(&mut a, "a", &group));
    }
    taken(world.call(&mut b, "b", &group));
    for (pod, name) in [(&mut a, "a"), (&mut b, "b")] {
        assert!(matches!(only(world.call(pod, name, &group)), Said::Refused(Refusal::Busy(0))));
    }
    a.release("slow");
    let beat = |world: &mut World, pod: &mut Local, name: &str| {
        let places = pod.all_places();
        world.numbers(&world.keys.clone().beat(&world.scripts.clone(), name, &["group"], PLACES_LIFE, &places, PLACES_LIFE))
    };
    assert_eq!(beat(&mut world, &mut a, "a"), [1]);
    taken(world.call(&mut b, "b", &group));
    assert!(matches!(only(world.call(&mut a, "a", &group)), Said::Refused(_)));
    // b dies; a lives on.
    world.set(world.now + PLACES_LIFE - 1);
    assert_eq!(beat(&mut world, &mut a, "a"), [1]);
    assert!(matches!(only(world.call(&mut a, "a", &group)), Said::Refused(_)));
    world.set(world.now + 1);
    taken(world.call(&mut a, "a", &group));
    taken(world.call(&mut a, "a", &group));
    assert!(matches!(only(world.call(&mut a, "a", &group)), Said::Refused(_)));
}

#[test]
fn messages_about_places_that_come_in_another_order_end_in_what_the_pod_holds() {
    let mut world = World::new();
    let mut pod = Local::new(true, 100);
    let group = [place(5)];
    let questions: Vec<Question> = (0..3)
        .map(|_| match pod.plan(&group, world.now, world.engine()) {
            Plan::Ask(question) => question,
            other @ Plan::Said(_) => panic!("{other:?}"),
        })
        .collect();
    pod.release("slow");
    let places = pod.all_places();
    let (keys, scripts) = (world.keys.clone(), world.scripts.clone());
    world.numbers(&keys.beat(&scripts, "p", &[], 1, &places, PLACES_LIFE));
    for question in questions.iter().rev() {
        world.numbers(&keys.take(&scripts, "p", question));
    }
    let looked = world.numbers(&keys.look(&scripts, &[], &[Local::asked_places("slow")]));
    assert_eq!(looked, [2]);
}

#[test]
fn the_groups_of_a_call_are_taken_in_turn_and_audited_ones_only_after_the_enforced() {
    let mut world = World::new();
    let mut pod = Local::new(false, 100);
    let limit = |name: &str, max| wanted(vec![take(name, "", 1_000_000, max, ONE)], OnStoreFailure::Deny);
    let call = [limit("enforced", 2), limit("audited", 1), limit("other", 9)];
    let kinds = |said: &AllSaid| {
        let kind = |said: &Said| match said {
            Said::Taken(_) => 't',
            Said::Refused(_) | Said::RefusedAlone(_) => 'r',
            Said::Unavailable => 'u',
            Said::NotAsked => 'n',
        };
        said.iter().map(kind).collect::<String>()
    };
    for expected in ["ttt", "trt", "rnn"] {
        let said = world.call(&mut pod, "p", &call);
        assert_eq!(kinds(&said), expected);
    }
    assert_eq!(world.look(&call[2].takes[0].take), 2_000_000, "nothing of a call that is denied");
}

#[test]
fn without_the_store_each_pod_keeps_to_its_part_and_to_nothing_where_that_is_not_known() {
    let mut world = World::new();
    let mut pod = Local::new(true, 100);
    let limit = |failure| [wanted(vec![take("limit", "", 1_000_000, 10, ONE)], failure)];
    let alone =
        |pod: &mut Local, world: &World, failure| only(pod.without_store(&limit(failure), world.now, world.engine(), false));
    assert!(matches!(alone(&mut pod, &world, OnStoreFailure::PerPod), Said::Unavailable), "how many pods there are is not known");
    taken(world.call(&mut pod, "p", &limit(OnStoreFailure::PerPod)));
    pod.set_pods(&Arc::from("Namespace a"), 4);
    assert!(matches!(alone(&mut pod, &world, OnStoreFailure::Deny), Said::Unavailable));
    // One was taken of the store: 10 / 4 leaves one more.
    assert!(matches!(alone(&mut pod, &world, OnStoreFailure::PerPod), Said::Taken(_)));
    assert!(matches!(alone(&mut pod, &world, OnStoreFailure::PerPod), Said::RefusedAlone(Refusal::Full(_))));
    pod.set_pods(&Arc::from("Namespace a"), 40);
    world.set(world.now + 1_016_000);
    assert!(matches!(alone(&mut pod, &world, OnStoreFailure::PerPod), Said::Taken(_)), "at least one");
    assert!(matches!(alone(&mut pod, &world, OnStoreFailure::PerPod), Said::RefusedAlone(_)));
    assert!(matches!(alone(&mut pod, &world, OnStoreFailure::Allow), Said::Taken(_)));
    let brought: i64 = pod.taken_alone().iter().flat_map(|add| &add.slices).map(|(_, amount)| amount).sum();
    assert_eq!(brought, 2 * 1_000_000, "what still counts of what was taken alone");
}

#[test]
fn a_new_epoch_gets_what_every_pod_took_and_nothing_of_the_old_one() {
    let mut world = World::new();
    let (mut a, mut b) = (Local::new(false, 100), Local::new(false, 100));
    let limit = take("limit", "", 60_000_000, 5, ONE);
    let group = [wanted(vec![limit.clone()], OnStoreFailure::Deny)];
    taken(world.call(&mut a, "a", &group));
    taken(world.call(&mut a, "a", &group));
    taken(world.call(&mut b, "b", &group));
    let old = world.keys.clone();
    let now = world.now;
    world.anew();
    world.set(now + 1_000_000);
    let stale = old.add(&world.scripts.clone(), &a.everything(0, world.now).0[0]);
    let answer = world.run(&stale);
    assert_eq!(integers(&answer).unwrap()[0], 1, "the old epoch is over");
    for pod in [&mut a, &mut b] {
        let (adds, _) = pod.everything(0, now + 1_000_000);
        world.add(&adds);
    }
    assert_eq!(world.look(&limit), 3 * 1_000_000);
    taken(world.call(&mut b, "b", &group));
    taken(world.call(&mut b, "b", &group));
    assert!(matches!(only(world.call(&mut a, "a", &group)), Said::Refused(_)));
}

#[test]
fn what_a_count_holds_is_bounded_and_expires() {
    let mut world = World::new();
    let mut pod = Local::new(false, 100);
    let limit = take("limit", "", 1_000_000, 1_000_000, ONE);
    let group = [wanted(vec![limit.clone()], OnStoreFailure::Deny)];
    for _ in 0..1500 {
        world.set(world.now + 3_000);
        taken(world.call(&mut pod, "p", &group));
    }
    let mut keys = Cmd::new();
    keys.arg("KEYS").arg("*:c:*");
    let Value::Array(found) = world.run(&keys) else { panic!() };
    let [Value::BulkString(key)] = found.as_slice() else { panic!("{found:?}") };
    let mut ask = |command: &str| {
        let mut cmd = Cmd::new();
        cmd.arg(command).arg(key);
        match world.run(&cmd) {
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
    let mut world = World::new();
    let (mut a, mut b) = (Local::new(false, 100), Local::new(false, 100));
    let limit = take("limit", "", 60_000_000, 100, ONE);
    let group = [wanted(vec![limit.clone()], OnStoreFailure::Deny)];
    for _ in 0..10 {
        taken(world.call(&mut a, "a", &group));
    }
    taken(world.call(&mut b, "b", &group));
    // A pod that took some ends; the others go on.
    drop(a);
    world.set(world.now + 10_000_000);
    world.beat(&mut b, "b");
    let before = world.keys.epoch().to_owned();
    world.set(world.now + 500_000);
    taken(world.call(&mut b, "b", &group));
    world.restart();
    let since = world.keys.since(Some(&before));
    assert_eq!(since, world.now - 1_500_000, "a second before the last sign of life");
    let (adds, _) = b.everything(since, world.now);
    world.add(&adds);
    // What came through counts, and what b took lately may count twice, and nothing of before.
    assert_eq!(world.look(&limit), 13 * 1_000_000);
    // Who has missed one brings everything, and so does who was in none.
    let missed = world.keys.epoch().to_owned();
    world.restart();
    assert!(world.keys.since(Some(&missed)) > 0);
    assert_eq!((world.keys.since(Some(&before)), world.keys.since(None), world.keys.since(Some("nonsense"))), (0, 0, 0));
}

#[test]
fn a_lease_and_what_is_known_to_be_full_are_for_the_maximum_that_they_were_asked_for() {
    let mut world = World::new();
    let mut pod = Local::new(true, 100);
    // Two limits that count together.
    let of = |max| [wanted(vec![take("limit", "", 60_000_000, max, ONE)], OnStoreFailure::Deny)];
    let (large, small) = (of(10_000), of(50));
    for _ in 0..300 {
        world.set(world.now + 10_000);
        taken(world.call(&mut pod, "p", &large));
    }
    let mut leased = 0;
    for _ in 0..10 {
        leased += usize::from(matches!(pod.plan(&large, world.now, world.engine()), Plan::Said(_)));
        assert!(matches!(only(world.call(&mut pod, "p", &small)), Said::Refused(Refusal::Full(_))));
    }
    assert!(leased > 0, "it is full for the one, and leased for the other");
    // What is full for the larger is so for the smaller.
    let mut other = Local::new(true, 100);
    assert!(matches!(only(world.call(&mut other, "o", &small)), Said::Refused(_)));
    assert!(matches!(other.plan(&small, world.now, world.engine()), Plan::Said(_)));
    assert!(matches!(other.plan(&large, world.now, world.engine()), Plan::Ask(_)));
}

#[test]
fn calls_that_are_denied_lease_nothing_however_dear_they_are() {
    let mut world = World::new();
    let mut pod = Local::new(true, 100);
    let dear = [wanted(vec![take("limit", "", 60_000_000, 1000, u64::MAX / 2)], OnStoreFailure::Deny)];
    let cheap = take("limit", "", 60_000_000, 1000, ONE);
    for _ in 0..20 {
        world.set(world.now + 1_000_000);
        assert!(matches!(only(world.call(&mut pod, "p", &dear)), Said::Refused(_)));
    }
    taken(world.call(&mut pod, "p", &[wanted(vec![cheap.clone()], OnStoreFailure::Deny)]));
    assert_eq!(world.look(&cheap), 1_000_000, "one call, and no lease");
}

#[test]
fn a_call_that_is_let_through_without_the_store_and_costs_more_than_can_be_counted_fills_the_count_and_breaks_nothing() {
    let mut world = World::new();
    let mut pod = Local::new(false, 100);
    world.set(world.now + 1000);
    let dear = [wanted(vec![take("limit", "", 60_000_000, 1000, u64::MAX - 1)], OnStoreFailure::Allow)];
    let cheap = take("limit", "", 60_000_000, 1000, ONE);
    let group = [wanted(vec![cheap.clone()], OnStoreFailure::Allow)];
    taken(world.call(&mut pod, "p", &group));
    for _ in 0..3 {
        let said = only(pod.without_store(&dear, world.now, world.engine(), false));
        pod.give_back(&taken(AllSaid::from_iter([said])).took, world.now);
        assert!(matches!(only(pod.without_store(&dear, world.now, world.engine(), false)), Said::Taken(_)));
    }
    let adds = pod.taken_alone();
    world.add(&adds);
    world.add(&adds);
    pod.alone_told(&adds);
    assert!(pod.taken_alone().is_empty());
    assert!(matches!(only(world.call(&mut pod, "p", &group)), Said::Refused(_)));
    world.set(world.now + 61_000_000);
    taken(world.call(&mut pod, "p", &group));
    assert_eq!(world.look(&cheap), 1_000_000);
}

#[test]
fn a_message_that_comes_late_takes_no_place_again() {
    let mut world = World::new();
    let (mut pod, mut other) = (Local::new(true, 100), Local::new(true, 100));
    let group = [place(1)];
    let Plan::Ask(question) = pod.plan(&group, world.now, world.engine()) else { panic!() };
    let late = world.keys.take(&world.scripts, "p", &question);
    pod.unanswered(&group, &question);
    world.beat(&mut pod, "p");
    world.numbers(&late);
    taken(world.call(&mut other, "o", &group));
}

#[test]
fn what_is_taken_before_the_stores_clock_is_known_is_brought_all_the_same() {
    let mut world = World::new();
    let mut pod = Local::new(false, 100);
    let limit = take("limit", "", 60_000_000, 10, ONE);
    let group = [wanted(vec![limit.clone()], OnStoreFailure::Allow)];
    taken(pod.without_store(&group, 5, Timestamp(5000), false));
    pod.set_clock(world.now, 6, 7);
    world.add(&pod.taken_alone());
    assert_eq!(world.look(&limit), 1_000_000);
}

#[test]
fn what_could_not_be_told_is_moved_again_and_not_given_back_again() {
    let mut pod = Local::new(false, 100);
    let add = |slices: &[(u64, i64)]| Add { digest: "d".into(), window: 1, slices: slices.to_vec() };
    pod.gives_untold(vec![add(&[(3, 5), (2, -5)]), add(&[(2, -5)])]);
    assert_eq!(pod.gives(), [add(&[(3, 5), (2, -5)])]);
}

#[test]
fn what_is_brought_to_an_epoch_hangs_on_the_one_before() {
    let since = |before: &str, now: &str| Keys::new("p").within(now).since(Some(before));
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
    let mut world = World::new();
    let left = world.keys.epoch().to_owned();
    world.restart();
    let later = world.keys.epoch().to_owned();
    // The server of the first epoch has run on.
    let mut set = Cmd::new();
    set.arg("SET").arg(world.keys.epoch_key()).arg(&left);
    world.run(&set);
    let run = left.split(' ').nth(1).unwrap();
    let begin = |before| world.keys.begin(&world.scripts, run, "new", 2_000_000, before);
    let (same, anew) = (begin(Some(left.as_str())), begin(Some(later.as_str())));
    let mut ask = |cmd| toolweir_store::scripts::epoch(&world.run(cmd)).unwrap();
    assert_eq!(ask(&same).1, left);
    let (now, text, opens) = ask(&anew);
    assert_eq!((opens - now, text.split(' ').nth(4)), (2_000_000, Some("3")));
    assert_eq!(ask(&anew).1, text, "once");
    let keys = world.keys.within(&text);
    assert_eq!((keys.since(Some(&later)), keys.since(Some(&left))), (0, 0), "everybody brings everything");
}

#[test]
fn what_a_question_that_was_not_sent_would_have_told_is_told_of_the_same_lease_alone() {
    let mut world = World::new();
    let mut pod = Local::new(true, 100);
    let limit = take("limit", "", 60_000_000, 10_000, ONE);
    let group = [wanted(vec![limit.clone()], OnStoreFailure::Deny)];
    let lease = |world: &mut World, pod: &mut Local| {
        for _ in 0..500 {
            world.set(world.now + 7_000);
            world.call(pod, "p", &group);
            if matches!(pod.plan(&group, world.now, world.engine()), Plan::Said(_)) {
                return;
            }
        }
        panic!("no lease");
    };
    lease(&mut world, &mut pod);
    let dear = [wanted(vec![take("limit", "", 60_000_000, 10_000, 9000 * ONE)], OnStoreFailure::Deny)];
    let ask = |pod: &mut Local, world: &World| match pod.plan(&dear, world.now, world.engine()) {
        Plan::Ask(question) => question,
        other @ Plan::Said(_) => panic!("{other:?}"),
    };
    // Not sent, it changes nothing.
    let question = ask(&mut pod, &world);
    pod.unasked(&dear, &question);
    world.tell(&mut pod, "p");
    // Its lease is given up before: nothing of it is told of the next.
    let (first, second) = (ask(&mut pod, &world), ask(&mut pod, &world));
    pod.unanswered(&dear, &first);
    pod.unanswered(&dear, &second);
    pod.unasked(&dear, &first);
    lease(&mut world, &mut pod);
    for count in pod.end_leases() {
        let told: u64 = count.uses.iter().map(|(_, amount)| amount).sum();
        assert!(told <= 2 * ONE, "{told} of the lease that was given up");
    }
}

#[test]
fn an_answer_of_another_form_is_none() {
    let mut world = World::new();
    let mut pod = Local::new(true, 100);
    let group = [wanted(vec![take("limit", "", 60_000_000, 10, ONE)], OnStoreFailure::Deny), place(3)];
    let Plan::Ask(question) = pod.plan(&group, world.now, world.engine()) else { panic!() };
    let right = world.numbers(&world.keys.clone().take(&world.scripts.clone(), "p", &question));
    let wrong = [&right[1..], &[&right[..], &[0]].concat(), &[&[3], &right[1..]].concat(), &[&[0], &right[1..]].concat()];
    for numbers in wrong {
        assert!(pod.answered(&group, &question, world.now, numbers, world.now, world.engine()).is_err(), "{numbers:?}");
    }
    assert!(pod.answered(&group, &question, world.now, &right, world.now, world.engine()).is_ok());
}
