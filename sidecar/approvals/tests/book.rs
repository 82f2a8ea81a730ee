//! The book against a model that knows no bounds: an approval is a person's word for one call, used once, in time, and no denial becomes one.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use proptest::prelude::*;
use toolweir_approvals::{ApprovalChange, ApprovalStep, ApprovalUse, Asked, AskedCall, Book, CallKey, Decided, KeptBook};
use toolweir_crds::approval_request::{ApprovalAgent, ApprovalNews, ApprovalPolicy, ApprovalState, KnownApproval};
use toolweir_engine::{ApprovalAsk, AskingPolicy};

/// Revisions of the policy that asks; each has its own span, in seconds.
const REVISIONS: [(&str, u64); 2] = [("uid/1", 30), ("uid/2", 100)];
const TOOLS: [&str; 2] = ["pay", "wire"];
/// Requests that may wait.
const PENDING: usize = 3;

/// What happens. Numbers choose among what there is.
#[derive(Clone, Debug)]
enum Event {
    Ask(usize, usize),
    Decide(usize, bool, Option<u64>),
    Use(usize, usize, usize),
    GiveBack(usize),
    Learn(usize, ApprovalState),
    KeepOnly(usize),
    Pass(u64),
    /// The clock is set back.
    SetBack(u64),
    Restart,
}

fn events() -> impl Strategy<Value = Event> {
    let (tool, revision, any_name) = (0..TOOLS.len(), 0..REVISIONS.len(), 0_usize..30);
    prop_oneof![
        6 => (tool.clone(), revision.clone()).prop_map(|(tool, revision)| Event::Ask(tool, revision)),
        5 => (any_name.clone(), prop::bool::weighted(0.7), prop::option::weighted(0.2, 0_u64..150))
            .prop_map(|(name, approve, until)| Event::Decide(name, approve, until)),
        5 => (any_name.clone(), tool, revision.clone()).prop_map(|(name, tool, revision)| Event::Use(name, tool, revision)),
        2 => any_name.clone().prop_map(Event::GiveBack),
        3 => (any_name, prop::sample::select(ApprovalState::ALL.to_vec())).prop_map(|(name, state)| Event::Learn(name, state)),
        1 => revision.prop_map(Event::KeepOnly),
        3 => (0_u64..40).prop_map(Event::Pass),
        1 => (1_u64..1000).prop_map(Event::SetBack),
        1 => Just(Event::Restart),
    ]
}

/// A request as the model has it. Times are seconds that have passed.
#[derive(Clone, Debug)]
struct Modelled {
    tool: usize,
    revision: usize,
    state: ApprovalState,
    /// Until when it can be decided, used, or given back, denies, or its end is to be told.
    until: u64,
    uses: u32,
    order: usize,
}

impl Modelled {
    fn span(&self) -> u64 {
        REVISIONS[self.revision].1
    }

    fn is_of(&self, tool: usize, revision: usize) -> bool {
        (self.tool, self.revision) == (tool, revision)
    }
}

struct World {
    book: Book,
    agent: ApprovalAgent,
    /// Seconds that have passed, and what the clock shows: they differ where it was set back.
    passed: u64,
    clock: u64,
    model: BTreeMap<String, Modelled>,
    names: Vec<String>,
    uses: Vec<(ApprovalUse, u32)>,
    steps: BTreeMap<String, Vec<ApprovalStep>>,
}

fn asking(revision: usize) -> Arc<AskingPolicy> {
    let policy = ApprovalPolicy { name: "payments".to_owned(), ..ApprovalPolicy::default() };
    Arc::new(AskingPolicy { policy, revision: REVISIONS[revision].0.into() })
}

fn ask_of(revision: usize) -> ApprovalAsk {
    ApprovalAsk {
        policies: vec![asking(revision)],
        message: "Payments need a person.".to_owned(),
        shown: Vec::new(),
        hold: Duration::ZERO,
        expiry: Duration::from_secs(REVISIONS[revision].1),
        pending: u32::try_from(PENDING).unwrap(),
    }
}

impl World {
    fn new() -> Self {
        let agent = ApprovalAgent { pod: "agent-0".to_owned(), pod_uid: "u0".to_owned(), service_account: "agent".to_owned() };
        Self {
            book: Book::default(),
            agent,
            passed: 0,
            clock: 1_000_000,
            model: BTreeMap::new(),
            names: Vec::new(),
            uses: Vec::new(),
            steps: BTreeMap::new(),
        }
    }

    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.clock)
    }

    fn key(&self, tool: usize, revision: usize) -> CallKey {
        CallKey::of("bank", TOOLS[tool], "00", &self.agent, &[asking(revision)])
    }

    fn named(&self, nth: usize) -> Option<String> {
        (!self.names.is_empty()).then(|| self.names[nth % self.names.len()].clone())
    }

    fn happen(&mut self, event: &Event) {
        match event {
            Event::Ask(tool, revision) => self.ask(*tool, *revision),
            Event::Decide(name, approve, until) => self.decide(*name, *approve, *until),
            Event::Use(name, tool, revision) => self.begin_use(*name, *tool, *revision),
            Event::GiveBack(nth) => self.give_back(*nth),
            Event::Learn(name, state) => self.learn(*name, *state),
            Event::KeepOnly(revision) => {
                self.book.keep_only([REVISIONS[*revision].0], self.now());
                let passed = self.passed;
                for request in self.model.values_mut().filter(|request| request.revision != *revision) {
                    no_longer(request, passed);
                }
            }
            Event::Pass(seconds) => {
                self.passed += seconds;
                self.clock += seconds;
                self.book.expire(self.now());
                self.expire();
            }
            Event::SetBack(seconds) => {
                self.clock -= seconds;
                self.book.expire(self.now());
            }
            Event::Restart => {
                let kept = serde_json::to_string(&self.book.kept()).unwrap();
                let kept: KeptBook = serde_json::from_str(&kept).unwrap();
                let before = (self.book.report(), self.book.waiting(), self.book.next_end());
                self.book = Book::from_kept(kept, &self.agent, self.now()).unwrap();
                assert_eq!((self.book.report(), self.book.waiting(), self.book.next_end()), before);
                self.uses.clear();
            }
        }
        self.compare();
    }

    /// Ends what has ended in the model.
    fn expire(&mut self) {
        let passed = self.passed;
        for request in self.model.values_mut().filter(|request| !request.state.is_final() && request.until <= passed) {
            request.state = ApprovalState::Expired;
            request.until = passed + request.span();
        }
    }

    fn ask(&mut self, tool: usize, revision: usize) {
        let passed = self.passed;
        let of_call = |state: ApprovalState| {
            let requests = self
                .model
                .iter()
                .filter(|(_, request)| request.is_of(tool, revision) && request.state == state && request.until > passed);
            requests.min_by_key(|(_, request)| (request.until, request.order)).map(|(name, _)| name.clone())
        };
        let pending = self.model.values().filter(|request| request.state == ApprovalState::Pending).count();
        let told = [ApprovalState::Expired, ApprovalState::Voided].map(&of_call);
        let expected = [ApprovalState::Approved, ApprovalState::Pending, ApprovalState::Denied].map(&of_call);
        let asked = self.ask_book(tool, revision);
        match (&asked, expected) {
            (Asked::Approved { name }, [Some(expected), ..])
            | (Asked::Waiting { name, is_new: false, .. }, [None, Some(expected), _])
            | (Asked::Denied { name, .. }, [None, None, Some(expected)]) => {
                // Of two that were approved and end at once, it can be either.
                let what = |name: &str| {
                    let Modelled { tool, revision, state, until, .. } = self.model[name];
                    (tool, revision, state, until)
                };
                assert_eq!(what(name), what(&expected));
            }
            (Asked::Expired { name, .. }, [None, None, None]) => {
                let request = &self.model[&**name];
                assert!(told.iter().any(Option::is_some) && request.until > passed && request.is_of(tool, revision), "{asked:?}");
                let told = self.model.values_mut().filter(|request| request.is_of(tool, revision));
                told.filter(|request| matches!(request.state, ApprovalState::Expired | ApprovalState::Voided))
                    .for_each(|request| request.until = passed);
            }
            (Asked::Full { most }, [None, None, None]) => assert!(told == [None, None] && *most == PENDING && pending >= PENDING),
            (Asked::Waiting { name, is_new: true, until }, [None, None, None]) => {
                assert!(told == [None, None] && pending < PENDING, "{asked:?}");
                assert_eq!(*until, self.now() + Duration::from_secs(REVISIONS[revision].1));
                let until = self.passed + REVISIONS[revision].1;
                let order = self.names.len();
                let new = Modelled { tool, revision, state: ApprovalState::Pending, until, uses: 0, order };
                assert!(self.model.insert(name.to_string(), new).is_none(), "a name twice");
                self.names.push(name.to_string());
            }
            (_, expected) => panic!("{asked:?}, not {expected:?}"),
        }
    }

    fn ask_book(&mut self, tool: usize, revision: usize) -> Asked {
        let (key, now, agent) = (self.key(tool, revision), self.now(), self.agent.clone());
        let call = AskedCall { server: "bank", tool: TOOLS[tool], arguments_sha256: "00", agent: &agent };
        let random = self.names.len() as u64 * 1_000_003;
        self.book.ask(key, &ask_of(revision), &call, random, now)
    }

    fn decide(&mut self, nth: usize, approve: bool, until: Option<u64>) {
        let Some(name) = self.named(nth) else { return };
        let decided = Decided {
            approve,
            by: "mia".to_owned(),
            reason: None,
            until: until.map(|until| self.now() + Duration::from_secs(until)),
        };
        let done = self.book.decide(&name, &decided, self.now());
        assert_eq!(done.is_ok(), self.decide_model(&name, approve, until), "{name}");
    }

    fn decide_model(&mut self, name: &str, approve: bool, until: Option<u64>) -> bool {
        let passed = self.passed;
        let request = self.model.get_mut(name).unwrap();
        if request.state != ApprovalState::Pending {
            return false;
        }
        request.until = passed + until.unwrap_or(u64::MAX).min(request.span());
        request.state = if approve { ApprovalState::Approved } else { ApprovalState::Denied };
        if !approve {
            let (tool, revision) = (request.tool, request.revision);
            let others = self.model.iter_mut().filter(|(other, request)| *other != name && request.is_of(tool, revision));
            others.for_each(|(_, request)| no_longer(request, passed));
        }
        self.expire();
        true
    }

    fn begin_use(&mut self, nth: usize, tool: usize, revision: usize) {
        let Some(name) = self.named(nth) else { return };
        let used = self.book.begin_use(&name, self.key(tool, revision), self.now());
        let request = self.model.get_mut(&name).unwrap();
        let is_it = request.is_of(tool, revision);
        let expected = is_it && request.state == ApprovalState::Approved && self.passed < request.until;
        assert_eq!(used.is_ok(), expected, "{name} {request:?}");
        if let Ok(used) = used {
            request.state = ApprovalState::Used;
            request.uses += 1;
            self.uses.push((used, request.uses));
        }
    }

    fn give_back(&mut self, nth: usize) {
        if self.uses.is_empty() {
            return;
        }
        let (used, number) = &self.uses[nth % self.uses.len()];
        let request = self.model.get_mut(&**used.name()).unwrap();
        let is_it = request.state == ApprovalState::Used && request.uses == *number;
        let expected = is_it && self.passed < request.until;
        assert_eq!(self.book.give_back(used, SystemTime::UNIX_EPOCH + Duration::from_secs(self.clock)), expected);
        if expected {
            request.state = ApprovalState::Approved;
        }
    }

    fn learn(&mut self, nth: usize, state: ApprovalState) {
        let Some(name) = self.named(nth) else { return };
        let known = KnownApproval { name: name.clone(), state, decided_by: Some("mia".to_owned()), ..KnownApproval::default() };
        self.book.learn(&ApprovalNews { unavailable: None, approvals: vec![known] }, self.now());
        let passed = self.passed;
        let request = self.model.get_mut(&name).unwrap();
        match (request.state, state) {
            (ApprovalState::Pending, ApprovalState::Approved | ApprovalState::Denied) => {
                self.decide_model(&name, state == ApprovalState::Approved, None);
            }
            (ApprovalState::Approved, ApprovalState::Used) if request.uses > 0 => {}
            (ApprovalState::Pending | ApprovalState::Approved, ended) if ended.is_final() => {
                request.state = if ended == ApprovalState::Expired { ended } else { ApprovalState::Voided };
                request.until = passed + request.span();
            }
            _ => {}
        }
    }

    /// Compares what the book says of itself, and checks the order of the steps.
    fn compare(&mut self) {
        let open: BTreeMap<_, _> = self.model.iter().filter(|(_, request)| !request.state.is_final()).collect();
        let report = self.book.report();
        let mut reported = 0;
        for approval in &report.approvals {
            assert_eq!(approval.state, self.model[&approval.name].state, "{approval:?}");
            assert_eq!(approval.request.is_some(), !approval.state.is_final());
            reported += usize::from(approval.request.is_some());
        }
        assert_eq!(reported, open.len());
        let ahead = |until: u64| self.now() + Duration::from_secs(until) - Duration::from_secs(self.passed);
        assert_eq!(self.book.next_end(), open.values().map(|request| ahead(request.until)).min());
        let waiting = open.values().filter(|request| request.state == ApprovalState::Pending).count();
        assert_eq!(self.book.waiting().len(), waiting);
        for change in self.book.take_changes() {
            self.steps.entry(change.name.to_string()).or_default().push(change.step);
            check_change(&change);
        }
    }
}

fn check_change(change: &ApprovalChange) {
    let decided = matches!(change.step, ApprovalStep::Approved | ApprovalStep::Denied);
    assert_eq!((change.by.is_some(), change.waited.is_some()), (decided, decided), "{change:?}");
    assert!(matches!(&*change.request.tool, "pay" | "wire"));
    let ended = matches!(change.step, ApprovalStep::Expired | ApprovalStep::Voided);
    assert_eq!(change.reason.is_some(), ended, "{change:?}");
}

/// Voids a request of the model, or ends the use of one that has ended.
fn no_longer(request: &mut Modelled, passed: u64) {
    if !request.state.is_final() {
        request.state = ApprovalState::Voided;
    }
    request.until = request.until.min(passed);
}

/// The steps of one request: one question, at most one decision, and as many uses as were given back, or one more.
fn check_steps(name: &str, steps: &[ApprovalStep]) {
    use ApprovalStep::{Approved, Denied, Expired, Requested, Returned, Used, Voided};
    assert_eq!(steps[0], Requested);
    for pair in steps.windows(2) {
        let follows: &[_] = match pair[0] {
            Requested => &[Approved, Denied, Expired, Voided],
            Approved | Returned => &[Used, Expired, Voided],
            Used => &[Returned],
            Denied | Expired | Voided => &[],
        };
        assert!(follows.contains(&pair[1]), "{name}: {steps:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn the_book_does_what_the_model_says(events in prop::collection::vec(events(), 1..60)) {
        let mut world = World::new();
        for event in &events {
            world.happen(event);
        }
        // Every request ends.
        world.happen(&Event::Pass(1000));
        assert!(world.book.report().approvals.iter().all(|approval| approval.state.is_final()));
        assert_eq!(world.book.next_end(), None);
        for (name, steps) in &world.steps {
            check_steps(name, steps);
            assert!(!matches!(steps.last(), Some(ApprovalStep::Requested | ApprovalStep::Approved | ApprovalStep::Returned)));
        }
    }
}

fn key_of(digest: &str) -> CallKey {
    CallKey::of("bank", "pay", digest, &ApprovalAgent::default(), &[asking(0)])
}

/// A book that is asked one question at a time.
struct Desk {
    book: Book,
    now: SystemTime,
    random: u64,
}

impl Desk {
    fn new() -> Self {
        Self { book: Book::default(), now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000), random: 0 }
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    fn ask_of(&mut self, digest: &str, ask: &ApprovalAsk) -> Asked {
        let (key, agent) = (key_of(digest), ApprovalAgent::default());
        let call = AskedCall { server: "bank", tool: "Pay Invoice!", arguments_sha256: digest, agent: &agent };
        self.random += 1;
        self.book.ask(key, ask, &call, self.random.wrapping_mul(0x9e37_79b9_7f4a_7c15), self.now)
    }

    fn ask(&mut self, digest: &str) -> Asked {
        self.ask_of(digest, &ApprovalAsk { pending: 50, ..ask_of(0) })
    }

    /// The name of a new request.
    fn request(&mut self, digest: &str) -> Arc<str> {
        match self.ask(digest) {
            Asked::Waiting { name, is_new: true, .. } => name,
            other => panic!("{other:?}"),
        }
    }

    fn decide(&mut self, name: &str, approve: bool) {
        let decided = Decided { approve, by: "mia".to_owned(), reason: Some("no\n\u{202e}".to_owned()), until: None };
        self.book.decide(name, &decided, self.now).unwrap();
    }
}

#[test]
fn names_are_labels_of_dns_and_never_there_twice() {
    let mut desk = Desk::new();
    let name = desk.request("00");
    assert!(name.starts_with("pay-invoice-") && name.len() == 22, "{name}");
    let again = Desk::new().request("00");
    assert_eq!(name, again, "the same random number");
    desk.random = 0;
    assert_ne!(desk.request("01"), name);
    for (tool, start) in
        [("", "call-"), ("日本", "call-"), ("a__B", "a-b-"), (&"x".repeat(300), &*format!("{}-", "x".repeat(40)))]
    {
        let agent = ApprovalAgent::default();
        let call = AskedCall { server: "bank", tool, arguments_sha256: "00", agent: &agent };
        let key = CallKey::of("bank", tool, "00", &agent, &[asking(0)]);
        let Asked::Waiting { name, .. } = Book::default().ask(key, &ask_of(0), &call, 3, desk.now) else { panic!("{tool}") };
        assert!(name.starts_with(start) && name.len() == start.len() + 10, "{name}");
    }
}

#[test]
fn no_more_wait_than_may_and_no_more_are_kept_than_a_pod_may_have() {
    let mut desk = Desk::new();
    let two = ApprovalAsk { pending: 2, ..ask_of(0) };
    for digest in ["a", "b"] {
        assert!(matches!(desk.ask_of(digest, &two), Asked::Waiting { is_new: true, .. }));
    }
    assert_eq!(desk.ask_of("c", &two), Asked::Full { most: 2 });
    assert!(matches!(desk.ask_of("a", &two), Asked::Waiting { is_new: false, .. }), "it joins");
    // Approved ones do not wait, but are kept.
    let mut desk = Desk::new();
    for call in 0..64 {
        let name = desk.request(&call.to_string());
        desk.decide(&name, true);
    }
    assert_eq!(desk.ask("more"), Asked::Full { most: 64 });
    assert_eq!(desk.book.report().approvals.len(), 64);
    desk.pass(30);
    desk.request("more");
    // What nobody has taken note of is at most 64.
    assert_eq!(desk.book.report().approvals.len(), 65);
    for call in 0..200 {
        let name = desk.request(&format!("denied {call}"));
        desk.decide(&name, false);
    }
    assert_eq!(desk.book.report().approvals.len(), 65);
    assert!(matches!(desk.ask("denied 0"), Asked::Denied { .. }), "denials hold");
    assert!(matches!(desk.ask("0"), Asked::Expired { .. }), "and do not crowd out others");
    for call in 200..300 {
        let name = desk.request(&format!("denied {call}"));
        desk.decide(&name, false);
    }
    assert!(matches!(desk.ask("denied 0"), Asked::Waiting { is_new: true, .. }), "up to 256 of them");
    assert!(serde_json::to_vec(&desk.book.kept()).unwrap().len() < KeptBook::LONGEST / 10);
}

#[test]
fn more_policies_than_an_approval_can_name_are_not_asked_for() {
    let many = ApprovalAsk { policies: vec![asking(0); 9], ..ask_of(0) };
    assert_eq!(Desk::new().ask_of("a", &many), Asked::TooManyPolicies { most: 8 });
}

#[test]
fn a_key_is_of_all_that_an_approval_is_bound_to() {
    let agent = |uid: &str, account: &str| ApprovalAgent {
        pod: "p".to_owned(),
        pod_uid: uid.to_owned(),
        service_account: account.to_owned(),
    };
    let (one, two) = (asking(0), asking(1));
    let keys = [
        CallKey::of("s", "t", "00", &agent("u", "a"), std::slice::from_ref(&one)),
        CallKey::of("st", "", "00", &agent("u", "a"), std::slice::from_ref(&one)),
        CallKey::of("s", "t2", "00", &agent("u", "a"), std::slice::from_ref(&one)),
        CallKey::of("s", "t", "01", &agent("u", "a"), std::slice::from_ref(&one)),
        CallKey::of("s", "t", "00", &agent("v", "a"), std::slice::from_ref(&one)),
        CallKey::of("s", "t", "00", &agent("u", "b"), std::slice::from_ref(&one)),
        CallKey::of("s", "t", "00", &agent("u", "a"), std::slice::from_ref(&two)),
        CallKey::of("s", "t", "00", &agent("u", "a"), &[one.clone(), two.clone()]),
        CallKey::of("s", "t", "00", &agent("u", "a"), &[two, one.clone()]),
    ];
    for (at, key) in keys.iter().enumerate() {
        assert!(!keys[..at].contains(key), "{at}");
    }
    let renamed = ApprovalAgent { pod: "q".to_owned(), ..agent("u", "a") };
    assert_eq!(CallKey::of("s", "t", "00", &renamed, &[one]), keys[0], "the uid says which pod it is");
}

#[test]
fn a_denial_says_why_and_ends_an_approval_of_the_same_call_that_was_given_back() {
    let mut desk = Desk::new();
    let first = desk.request("a");
    desk.decide(&first, true);
    let used = desk.book.begin_use(&first, key_of("a"), desk.now).unwrap();
    let second = desk.request("a");
    assert!(desk.book.give_back(&used, desk.now));
    assert_eq!(desk.ask("a"), Asked::Approved { name: first.clone() }, "both are there");
    desk.decide(&second, false);
    let Asked::Denied { name, reason, .. } = desk.ask("a") else { panic!("it was denied") };
    assert_eq!((name, reason.as_deref()), (second, Some("no \u{fffd}")));
    assert!(desk.book.begin_use(&first, key_of("a"), desk.now).is_err());
    // Also of one that is being used.
    let mut desk = Desk::new();
    let first = desk.request("a");
    desk.decide(&first, true);
    let used = desk.book.begin_use(&first, key_of("a"), desk.now).unwrap();
    let second = desk.request("a");
    desk.decide(&second, false);
    assert!(!desk.book.give_back(&used, desk.now));
    assert!(matches!(desk.ask("a"), Asked::Denied { .. }));
}

#[test]
fn a_use_is_given_back_once_and_by_the_call_that_had_it() {
    let mut desk = Desk::new();
    let name = desk.request("a");
    desk.decide(&name, true);
    let first = desk.book.begin_use(&name, key_of("a"), desk.now).unwrap();
    assert!(desk.book.begin_use(&name, key_of("a"), desk.now).is_err(), "it is in use");
    assert!(desk.book.give_back(&first, desk.now));
    assert!(!desk.book.give_back(&first, desk.now), "given back already");
    let second = desk.book.begin_use(&name, key_of("a"), desk.now).unwrap();
    assert!(!desk.book.give_back(&first, desk.now), "another call has it");
    desk.pass(29);
    assert!(desk.book.give_back(&second, desk.now));
    let third = desk.book.begin_use(&name, key_of("a"), desk.now).unwrap();
    desk.pass(1);
    assert!(!desk.book.give_back(&third, desk.now), "its time has passed");
    let steps: Vec<_> = desk.book.take_changes().iter().map(|change| change.step.as_str()).collect();
    assert_eq!(steps, ["requested", "approved", "used", "returned", "used", "returned", "used"]);
}

#[test]
fn a_clock_that_is_set_back_makes_nothing_last_longer() {
    let mut desk = Desk::new();
    let name = desk.request("a");
    desk.decide(&name, true);
    // By a second again and again, while 30 s pass.
    for _ in 0..29 {
        desk.pass(1);
        desk.book.expire(desk.now);
        desk.now -= Duration::from_secs(1);
        assert_eq!(desk.ask("a"), Asked::Approved { name: name.clone() });
    }
    desk.pass(1);
    assert!(desk.book.begin_use(&name, key_of("a"), desk.now).is_err());
    // By an hour, while nobody is looking: what was left is left.
    let mut desk = Desk::new();
    let name = desk.request("a");
    desk.pass(20);
    desk.book.expire(desk.now);
    let kept = desk.book.kept();
    desk.now -= Duration::from_secs(3600);
    desk.book = Book::from_kept(kept, &ApprovalAgent::default(), desk.now).unwrap();
    assert_eq!(desk.book.next_end(), Some(desk.now + Duration::from_secs(10)));
    desk.decide(&name, true);
    assert_eq!(desk.book.take_changes()[0].waited, Some(Duration::from_secs(20)));
}

#[test]
fn a_book_of_another_pod_is_empty_and_a_damaged_one_is_refused() {
    let mut desk = Desk::new();
    let name = desk.request("a");
    desk.decide(&name, true);
    let kept = serde_json::to_value(desk.book.kept()).unwrap();
    let read = |kept: serde_json::Value, agent: &ApprovalAgent, now| {
        let kept: KeptBook = serde_json::from_value(kept).map_err(|error| error.to_string())?;
        Book::from_kept(kept, agent, now).map_err(|error| error.to_string())
    };
    let same = ApprovalAgent::default();
    assert_eq!(read(kept.clone(), &same, desk.now).unwrap().report().approvals.len(), 1);
    for other in [
        ApprovalAgent { pod_uid: "other".to_owned(), ..ApprovalAgent::default() },
        ApprovalAgent { service_account: "other".to_owned(), ..ApprovalAgent::default() },
    ] {
        assert_eq!(read(kept.clone(), &other, desk.now).unwrap().report().approvals.len(), 0);
    }
    // What says that it lasts for longer than its span does not.
    let mut longer = kept.clone();
    longer["requests"][0]["until"] = 9_999_999_999_999_u64.into();
    let mut book = read(longer, &same, desk.now).unwrap();
    assert_eq!(book.next_end(), Some(desk.now + Duration::from_secs(30)));
    assert!(book.begin_use(&name, key_of("a"), desk.now + Duration::from_secs(30)).is_err());

    let change = |at: &str, value: serde_json::Value| {
        let mut kept = kept.clone();
        *kept.pointer_mut(at).unwrap() = value;
        read(kept, &same, desk.now).map(|_| ()).unwrap_err()
    };
    assert_eq!(change("/requests/0/name", "../x".into()), "request 0 has a name that is none");
    let request = kept["requests"][0].clone();
    assert_eq!(change("/requests", vec![request.clone(); 2].into()), "request 1 is there twice");
    assert_eq!(change("/requests", vec![request; 400].into()), "it has more requests than a sidecar keeps");
    assert!(change("/requests/0/key", "00".into()).contains("64 lower case hexadecimal digits"));
    assert!(change("/requests/0/state", "Maybe".into()).contains("unknown variant"));
    let mut unknown = kept.clone();
    unknown["approved"] = true.into();
    assert!(read(unknown, &same, desk.now).unwrap_err().contains("unknown field"));
}

#[test]
fn what_has_ended_is_told_until_the_operator_knows() {
    let mut desk = Desk::new();
    let name = desk.request("a");
    let news = |state| {
        let known = KnownApproval { name: name.to_string(), state, ..KnownApproval::default() };
        ApprovalNews { unavailable: None, approvals: vec![known] }
    };
    desk.book.learn(&news(ApprovalState::Denied), desk.now);
    assert_eq!(desk.book.report().approvals[0].state, ApprovalState::Denied);
    desk.book.learn(&news(ApprovalState::Denied), desk.now);
    assert_eq!(desk.book.report().approvals, []);
    assert!(matches!(desk.ask("a"), Asked::Denied { .. }), "it holds all the same");
    desk.pass(30);
    desk.request("a");
}

#[test]
fn a_call_that_went_is_told_until_the_operator_knows_even_if_it_ended_the_request_meanwhile() {
    let mut desk = Desk::new();
    let name = desk.request("a");
    let news = |state| {
        let known = KnownApproval { name: name.to_string(), state, ..KnownApproval::default() };
        ApprovalNews { unavailable: None, approvals: vec![known] }
    };
    desk.decide(&name, true);
    desk.book.begin_use(&name, key_of("a"), desk.now).unwrap();
    for ended in [ApprovalState::Voided, ApprovalState::Expired] {
        desk.book.learn(&news(ended), desk.now);
        assert_eq!(desk.book.report().approvals[0].state, ApprovalState::Used);
    }
    desk.book.learn(&news(ApprovalState::Used), desk.now);
    assert_eq!(desk.book.report().approvals, []);
}

#[test]
fn a_request_that_the_operator_ends_is_told_to_the_agent_once() {
    let mut desk = Desk::new();
    let name = desk.request("a");
    let known = KnownApproval {
        name: name.to_string(),
        state: ApprovalState::Voided,
        reason: Some("the name is taken".to_owned()),
        ..KnownApproval::default()
    };
    desk.book.learn(&ApprovalNews { unavailable: None, approvals: vec![known] }, desk.now);
    assert_eq!(desk.ask("a"), Asked::Expired { name, why: "the name is taken".into() });
    desk.request("a");
}
