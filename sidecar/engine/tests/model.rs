//! The whole engine against a naive model: every call that was let through is kept with its exact time, and for each call
//! everything is worked out anew from what the policies mean.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{cmp::Reverse, collections::BTreeSet, sync::Arc, time::Duration};

use proptest::{
    collection::vec,
    option,
    prelude::*,
    sample::{Index, select, subsequence},
    test_runner::FileFailurePersistence,
};
use toolweir_crds::{
    Action, Limit, MCPPolicySpec, Mode, Scope, Server, Tool, Validation,
    explain::{Explanation, SaidOfLimit, Verdict},
};
use toolweir_engine::{
    Begun, Call, Decision, Denial, Engine, Memory, Options, Outcome, Permit, Policy, PolicyId, Reason, Severity, Timestamp,
    json::Reader,
    shared::{NothingKnown, Peeked},
};

// What is generated.

const SERVERS: [&str; 3] = ["a", "b", "c"];
const TOOLS: [&str; 7] = ["get_x", "get_y", "set_x", "pay", "ga", "GET_X", "paY"];
const ENTRIES: [&str; 14] =
    ["get_x", "get_y", "set_x", "pay", "PAY", "get_*", "ge*", "g*", "s*", "*a*", "*t_x", "*_x", "*_X", "*"];
const WINDOWS: [&str; 4] = ["second", "1500ms", "minute", "90s"];
const CONDITIONS: [&str; 4] = ["args.n < 3", "args.k == 'u'", "has(args.k)", "tool != 'get_x'"];
const SESSIONS: [&str; 2] = ["s1", "s2"];
/// Values of the argument `n`: as JSON, and as millionths; nothing for what is no cost.
const NUMBERS: [(&str, Option<u64>); 7] = [
    ("0", Some(0)),
    ("1", Some(1_000_000)),
    ("2", Some(2_000_000)),
    ("0.5", Some(500_000)),
    ("5", Some(5_000_000)),
    ("-1", None),
    ("\"1\"", None),
];
/// Values of the argument `k`: as JSON, and what tells them apart; nothing for what is no key.
const KEYS: [(&str, Option<&str>); 5] =
    [("\"u\"", Some("text u")), ("\"1\"", Some("text 1")), ("1", Some("number 1")), ("1.0", Some("number 1")), ("{}", None)];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Shape {
    Plain,
    /// A key stands twice.
    Repeated,
    /// Beside what else there is, a key `N`.
    OtherCase,
}

#[derive(Clone, Debug)]
struct Arguments {
    n: Option<usize>,
    k: Option<usize>,
    shape: Shape,
}

impl Arguments {
    fn json(&self) -> Option<String> {
        let mut members: Vec<String> = Vec::new();
        members.extend(self.n.map(|n| format!("\"n\": {}", NUMBERS[n].0)));
        members.extend(self.k.map(|k| format!("\"k\": {}", KEYS[k].0)));
        match self.shape {
            Shape::Plain => {}
            Shape::Repeated => members.push("\"z\": 1, \"z\": 2".to_owned()),
            Shape::OtherCase => members.push("\"N\": 1".to_owned()),
        }
        (!members.is_empty()).then(|| format!("{{{}}}", members.join(", ")))
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    Keep,
    Drop,
    GiveBack,
}

#[derive(Clone, Debug)]
enum Step {
    Call {
        after: u64,
        server: &'static str,
        tool: &'static str,
        session: &'static str,
        arguments: Arguments,
        then: Then,
        /// Whether a call that is told when to try again does so, and nothing comes in between.
        obedient: bool,
    },
    /// A call that is under way ends, or fails.
    End { which: Index, failed: bool },
}

fn limit() -> impl Strategy<Value = Limit> {
    let scope = prop_oneof![3 => Just(Scope::Pod), 1 => Just(Scope::Session)];
    let key = option::weighted(0.2, Just("args.k".to_owned()));
    let cost = option::weighted(0.25, Just("args.n".to_owned()));
    let free =
        (1_i64..5, select(WINDOWS.to_vec()), scope, key, cost.clone(), option::weighted(0.2, Just("d".to_owned()))).prop_map(
            |(max, window, scope, key, cost, counter)| Limit { max, window: window.parse().unwrap(), scope, key, cost, counter },
        );
    // Limits that always count together.
    let counter = Some("c".to_owned());
    let shared = (1_i64..5, cost).prop_map(move |(max, cost)| Limit {
        max,
        window: "minute".parse().unwrap(),
        scope: Scope::Pod,
        key: None,
        cost,
        counter: counter.clone(),
    });
    prop_oneof![3 => free, 1 => shared]
}

fn tools() -> impl Strategy<Value = Vec<Tool>> {
    let action = prop_oneof![4 => Just(None), 1 => Just(Some(Action::Allow)), 1 => Just(Some(Action::Deny))];
    let validation =
        select(CONDITIONS.to_vec()).prop_map(|expression| Validation { expression: expression.to_owned(), message: None });
    // Most entries have none: else no call would get as far as the limits.
    let validations = option::weighted(0.25, validation).prop_map(Vec::from_iter);
    let body = (action, vec(limit(), 0..4), validations, option::weighted(0.25, 1_i64..3)).prop_map(
        |(action, limits, validations, max_concurrent)| Tool { action, limits, validations, max_concurrent, ..Tool::default() },
    );
    (subsequence(ENTRIES.to_vec(), 0..5), vec(body, 5)).prop_map(|(names, bodies)| {
        names.into_iter().zip(bodies).map(|(name, body)| Tool { name: name.to_owned(), ..body }).collect()
    })
}

/// A policy; its name makes it one of its own, and is not in the order in which policies are made.
fn policy(name: &'static str) -> impl Strategy<Value = Policy> {
    let servers = |cluster: bool| {
        let names = if cluster { vec!["*", "a", "b"] } else { vec!["a", "b"] };
        let most = names.len();
        let action = prop_oneof![2 => Just(Action::Allow), 1 => Just(Action::Deny)];
        (subsequence(names, 1..=most), vec((action, tools()), most)).prop_map(|(names, bodies)| {
            let server = |(name, (default_action, tools)): (&str, _)| {
                let url = (name != "*").then(|| "http://server/mcp".to_owned());
                Server { name: name.to_owned(), url, default_action, tools }
            };
            names.into_iter().zip(bodies).map(server).collect::<Vec<_>>()
        })
    };
    let mode = prop_oneof![3 => Just(Mode::Enforce), 1 => Just(Mode::Audit)];
    any::<bool>().prop_flat_map(move |cluster| (Just(cluster), servers(cluster))).prop_flat_map(move |(cluster, servers)| {
        mode.clone().prop_map(move |mode| Policy {
            id: PolicyId { cluster, namespace: if cluster { "" } else { "agents" }.to_owned(), name: name.to_owned() },
            created: None,
            spec: MCPPolicySpec { mode, servers: servers.clone(), ..MCPPolicySpec::default() },
            unreadable: None,
        })
    })
}

fn policies() -> impl Strategy<Value = Vec<Policy>> {
    (policy("m"), policy("c"), policy("x"), policy("a"), 1_usize..5).prop_map(|(m, c, x, a, number)| {
        let mut policies = vec![m, c, x, a];
        policies.truncate(number);
        policies
    })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    const MS: u64 = 1_000_000;
    // Nothing, about as long as a window, as much longer as its places may come free late, and anything.
    let after = prop_oneof![
        4 => Just(0),
        2 => select(vec![1, 300 * MS, 1000 * MS, 1500 * MS, 60_000 * MS, 90_000 * MS]),
        1 => select(vec![1000, 1500, 60_000, 90_000]).prop_map(|window| window * MS + window * MS / 64),
        1 => select(vec![1000, 1500, 60_000, 90_000]).prop_map(|window| window * MS + window * MS / 64 - 1),
        2 => 0..2500 * MS,
        1 => 0..100_000 * MS,
    ];
    let arguments = (
        option::weighted(0.8, 0..NUMBERS.len()),
        option::weighted(0.8, 0..KEYS.len()),
        prop_oneof![10 => Just(Shape::Plain), 1 => Just(Shape::Repeated), 1 => Just(Shape::OtherCase)],
    )
        .prop_map(|(n, k, shape)| Arguments { n, k, shape });
    let then = prop_oneof![1 => Just(Then::Keep), 3 => Just(Then::Drop), 1 => Just(Then::GiveBack)];
    let server = prop_oneof![6 => Just(SERVERS[0]), 3 => Just(SERVERS[1]), 1 => Just(SERVERS[2])];
    // The first is the one that most entries match.
    let tool = prop_oneof![1 => Just(TOOLS[0]), 1 => select(TOOLS.to_vec())];
    let call = (after, server, tool, select(SESSIONS.to_vec()), arguments, then, any::<bool>());
    let call = call.prop_map(|(after, server, tool, session, arguments, then, obedient)| Step::Call {
        after,
        server,
        tool,
        session,
        arguments,
        then,
        obedient,
    });
    let end = (any::<Index>(), any::<bool>()).prop_map(|(which, failed)| Step::End { which, failed });
    vec(prop_oneof![6 => call, 1 => end], 1..60)
}

// What policies mean.

/// Whether a name with stars matches another: by trying everything.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.chars().next() {
        None => name.is_empty(),
        Some('*') => (0..=name.len()).any(|skip| matches(&pattern[1..], &name[skip..])),
        Some(char) => name.starts_with(char) && matches(&pattern[1..], &name[1..]),
    }
}

fn literals(name: &str) -> usize {
    name.chars().filter(|char| *char != '*').count()
}

fn says(tool: &Tool) -> Option<Action> {
    tool.action.or(if tool.name == "*" { None } else { Some(Action::Allow) })
}

/// Whether two globs of one server are equally specific, match one name and say different things about it.
fn contradictory(server: &Server) -> bool {
    let globs: Vec<&Tool> = server.tools.iter().filter(|tool| tool.name.contains('*')).collect();
    let both = |a: &Tool, b: &Tool| {
        ["get_x", "get_y", "set_x", "pay", "ga", "sa", "geat_x", "ge_X"]
            .iter()
            .any(|name| matches(&a.name, name) && matches(&b.name, name))
    };
    globs.iter().any(|a| globs.iter().any(|b| literals(&a.name) == literals(&b.name) && says(a) != says(b) && both(a, b)))
}

fn broken(policy: &Policy) -> bool {
    policy.spec.servers.iter().any(contradictory)
}

fn enforced(policy: &Policy) -> bool {
    policy.spec.mode == Mode::Enforce || broken(policy)
}

/// What one policy says about a server, under the name of the server or under `*`.
#[derive(Clone, Copy)]
struct Part<'a> {
    policy: &'a Policy,
    server: &'a Server,
}

impl<'a> Part<'a> {
    /// The entries that match a tool in whatever case, most specific first.
    fn entries(self, tool: &str) -> Vec<&'a Tool> {
        let lower = |name: &str| name.to_lowercase();
        let mut entries: Vec<&Tool> =
            self.server.tools.iter().filter(|entry| matches(&lower(&entry.name), &lower(tool))).collect();
        entries.sort_by_key(|entry| {
            let place = if entry.name == tool { 0 } else { 1 + usize::from(entry.name.contains('*')) };
            (place, Reverse(literals(&entry.name)), says(entry) != Some(Action::Deny))
        });
        entries
    }

    /// What an entry says of a tool that it matches: in another case it allows nothing.
    fn says(entry: &Tool, tool: &str) -> Option<Action> {
        says(entry).filter(|action| *action == Action::Deny || matches(&entry.name, tool))
    }

    /// What it says of a tool whatever the arguments are.
    fn by_action(self, tool: &str) -> Option<Reason> {
        if broken(self.policy) {
            return Some(Reason::InvalidPolicy);
        }
        match self.entries(tool).into_iter().find_map(|entry| Self::says(entry, tool)) {
            Some(Action::Allow) => None,
            Some(Action::Deny) => Some(Reason::Denied),
            None if self.server.default_action == Action::Allow => None,
            None => Some(Reason::NotListed),
        }
    }
}

/// A call, as the model sees it.
#[derive(Clone, Copy)]
struct Seen<'a> {
    server: &'a str,
    tool: &'a str,
    session: &'a str,
    arguments: &'a Arguments,
    now: u64,
}

impl Seen<'_> {
    fn number(&self) -> Option<(&'static str, Option<u64>)> {
        self.arguments.n.map(|n| NUMBERS[n])
    }

    fn key(&self) -> Option<&'static str> {
        self.arguments.k.and_then(|k| KEYS[k].1)
    }

    fn holds(&self, condition: &str) -> bool {
        match condition {
            "args.n < 3" => self.number().is_some_and(|(text, _)| text.parse::<f64>().is_ok_and(|n| n < 3.0)),
            "args.k == 'u'" => self.key() == Some("text u"),
            "has(args.k)" => self.arguments.k.is_some(),
            "tool != 'get_x'" => self.tool != "get_x",
            other => panic!("{other}"),
        }
    }
}

/// What a limit counts under.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Counted {
    policy: PolicyId,
    /// The counter's name, or the entry's server and name and the limit's place in it.
    name: Result<String, (String, String, usize)>,
    window: u128,
    /// For a named counter, which is one of a scope.
    session_scope: bool,
    session: Option<String>,
    key: Option<&'static str>,
}

/// What a call adds to a count, and how much of it there may be.
#[derive(Clone, Debug)]
struct Share {
    counted: Counted,
    amount: u64,
    limit: Limit,
}

/// A call that was let through.
#[derive(Clone, Debug)]
struct Past {
    at: u64,
    /// Each count once, with the largest of the amounts.
    shares: Vec<Share>,
    /// Each limit on its own.
    limits: Vec<(PolicyId, String, String, usize, Share)>,
    /// The entries with `maxConcurrent`.
    places: Vec<(PolicyId, String, String)>,
    under_way: bool,
}

/// What the model says to a call.
#[derive(Debug)]
enum Answer {
    /// A denial that does not depend on what was before.
    Denied(Reason, PolicyId),
    /// What hangs on the limits.
    Limited {
        /// Counts whose window holds too much for the call.
        full: Vec<Share>,
        /// Counts of which the window and 1/64 more hold too much for the call.
        nearly_full: Vec<Share>,
        /// The first policy with an entry of which too many calls are under way.
        busy: Option<PolicyId>,
        past: Past,
    },
}

/// What was let through by policies that decide together.
#[derive(Clone, Debug, Default)]
struct History(Vec<Past>);

impl History {
    fn sum(&self, counted: &Counted, since: impl Fn(u64) -> bool) -> u64 {
        let shares = self.0.iter().filter(|past| since(past.at)).flat_map(|past| &past.shares);
        shares.filter(|share| share.counted == *counted).map(|share| share.amount).sum()
    }

    fn answer(&self, parts: &[Part<'_>], call: &Seen<'_>) -> Answer {
        let deny = |reason, part: &Part<'_>| Answer::Denied(reason, part.policy.id.clone());
        // By action.
        let denials = parts.iter().filter_map(|part| part.by_action(call.tool).map(|reason| (reason, part)));
        if let Some((reason, part)) = denials.min_by_key(|(reason, _)| *reason) {
            return deny(reason, part);
        }
        // Arguments that two readers could read differently are a reason where they are read.
        let entries = || parts.iter().flat_map(|part| part.entries(call.tool).into_iter().map(move |entry| (part, entry)));
        let expressions = |entry: &Tool| {
            let limits = entry.limits.iter().flat_map(|limit| limit.key.iter().chain(&limit.cost).cloned());
            entry.validations.iter().map(|validation| validation.expression.clone()).chain(limits).collect::<Vec<_>>()
        };
        let reads_n = entries().flat_map(|(_, entry)| expressions(entry)).any(|expression| expression.contains("args.n"));
        let malformed = match call.arguments.shape {
            Shape::Plain => false,
            Shape::Repeated => true,
            Shape::OtherCase => reads_n,
        };
        // Conditions: of each policy the first that does not hold, of those the most severe.
        let mut failed: Vec<(Reason, &Part<'_>)> = Vec::new();
        for part in parts {
            let conditions = part.entries(call.tool).into_iter().flat_map(|entry| &entry.validations);
            let first = conditions.into_iter().find_map(|validation| {
                if malformed && validation.expression.contains("args") {
                    Some(Reason::Malformed)
                } else {
                    (!call.holds(&validation.expression)).then_some(Reason::Validation)
                }
            });
            failed.extend(first.map(|reason| (reason, part)));
        }
        if let Some((reason, part)) = failed.into_iter().min_by_key(|(reason, _)| *reason) {
            return deny(reason, part);
        }
        // Limits.
        let mut past = Past { at: call.now, shares: Vec::new(), limits: Vec::new(), places: Vec::new(), under_way: true };
        for (part, entry) in entries() {
            for (place, limit) in entry.limits.iter().enumerate() {
                if malformed && (limit.key.is_some() || limit.cost.is_some()) {
                    return deny(Reason::Malformed, part);
                }
                let key = limit.key.as_ref().and_then(|_| call.key());
                let amount = if limit.cost.is_some() { call.number().and_then(|n| n.1) } else { Some(1_000_000) };
                if limit.key.is_some() && key.is_none() {
                    return deny(Reason::Validation, part);
                }
                let Some(amount) = amount else { return deny(Reason::Validation, part) };
                let name = match &limit.counter {
                    Some(counter) => Ok(counter.clone()),
                    None => Err((part.server.name.clone(), entry.name.clone(), place)),
                };
                let counted = Counted {
                    policy: part.policy.id.clone(),
                    name,
                    window: limit.window.span().as_nanos(),
                    session_scope: limit.scope == Scope::Session,
                    session: (limit.scope == Scope::Session).then(|| call.session.to_owned()),
                    key,
                };
                let share = Share { counted, amount, limit: limit.clone() };
                past.limits.push((part.policy.id.clone(), part.server.name.clone(), entry.name.clone(), place, share.clone()));
                match past.shares.iter_mut().find(|other| other.counted == share.counted) {
                    None => past.shares.push(share),
                    Some(other) => {
                        other.amount = other.amount.max(share.amount);
                        if limit.max < other.limit.max {
                            other.limit = limit.clone();
                        }
                    }
                }
            }
            if entry.max_concurrent.is_some() {
                past.places.push((part.policy.id.clone(), part.server.name.clone(), entry.name.clone()));
            }
        }
        let too_much = |share: &Share, late: bool| {
            let window = u64::try_from(share.counted.window).unwrap();
            let max = u64::try_from(share.limit.max).unwrap() * 1_000_000;
            // A span includes both its ends. At the latest, a place is free when 1/64 of the window has passed; slices
            // are whole nanoseconds, which makes them longer by less than one each.
            let counts = |at: u64| if late { at + window + window / 64 + 130 > call.now } else { at + window >= call.now };
            self.sum(&share.counted, counts) + share.amount > max
        };
        let busy = entries().find(|(part, entry)| {
            let place = (part.policy.id.clone(), part.server.name.clone(), entry.name.clone());
            let under_way = self.0.iter().filter(|past| past.under_way && past.places.contains(&place)).count();
            entry.max_concurrent.is_some_and(|max| i64::try_from(under_way).unwrap() >= max)
        });
        Answer::Limited {
            full: past.shares.iter().filter(|share| too_much(share, false)).cloned().collect(),
            nearly_full: past.shares.iter().filter(|share| too_much(share, true)).cloned().collect(),
            busy: busy.map(|(part, _)| part.policy.id.clone()),
            past,
        }
    }

    /// Holds what the engine said against the answer.
    fn check(answer: &Answer, denial: Option<&Denial>, now: u64) -> Result<(), TestCaseError> {
        let by = |id: &PolicyId| denial.and_then(|denial| denial.policy.as_deref()) == Some(id.to_string().as_str());
        match answer {
            Answer::Denied(reason, policy) => {
                prop_assert_eq!(denial.map(|denial| denial.reason), Some(*reason));
                prop_assert!(by(policy), "{:?} is not by {}", denial, policy);
            }
            Answer::Limited { full, nearly_full, busy, .. } => match denial.map(|denial| (denial.reason, denial)) {
                None => {
                    prop_assert!(full.is_empty(), "let through over {:?}", full);
                    prop_assert!(busy.is_none(), "let through while too many are under way");
                }
                Some((Reason::RateLimit, denial)) => {
                    let told = denial.limit.as_ref().expect("a limit");
                    let culprit = nearly_full.iter().find(|share| {
                        by(&share.counted.policy)
                            && (told.max, &*told.window, told.scope)
                                == (share.limit.max, share.limit.window.as_str(), share.limit.scope)
                    });
                    prop_assert!(culprit.is_some(), "{:?} for {:?}", denial, nearly_full);
                    let never = |share: &&Share| share.amount > u64::try_from(share.limit.max).unwrap() * 1_000_000;
                    match denial.retry_after {
                        None => {
                            // No wait makes it pass: it costs too much, or another limit of the count let more through.
                            let other = |share: &&Share| share.limit.counter.is_some();
                            prop_assert!(nearly_full.iter().any(|share| never(&share) || other(&share)), "{:?}", denial);
                        }
                        Some(wait) => {
                            prop_assert!(!nearly_full.iter().any(|share| never(&share)), "{:?} waits for nothing", denial);
                            let window = |share: &Share| u64::try_from(share.counted.window).unwrap();
                            let longest = nearly_full.iter().map(window).max().unwrap();
                            prop_assert!(wait > Duration::ZERO && wait <= Duration::from_nanos(longest + longest / 64 + 130));
                        }
                    }
                }
                Some((Reason::Concurrency, _)) => {
                    prop_assert!(full.is_empty(), "the limit comes first: {:?}", full);
                    prop_assert!(busy.as_ref().is_some_and(by), "{:?} but {:?}", denial, busy);
                }
                Some((reason, denial)) => prop_assert!(false, "{} at {}: {:?} for {:?}", reason, now, denial, answer),
            },
        }
        Ok(())
    }

    fn admit(&mut self, answer: Answer) -> Option<usize> {
        let Answer::Limited { past, .. } = answer else { return None };
        self.0.push(past);
        Some(self.0.len() - 1)
    }

    fn end(&mut self, which: Option<usize>, failed: bool) {
        let Some(past) = which.map(|which| &mut self.0[which]) else { return };
        past.under_way = false;
        if failed {
            past.shares.clear();
            past.limits.clear();
        }
    }

    /// No span of any limit's window holds more than its maximum.
    fn never_too_much(&self) -> Result<(), TestCaseError> {
        let of = |past: &Past| past.limits.iter().cloned().map(|limit| (past.at, limit)).collect::<Vec<_>>();
        let all: Vec<_> = self.0.iter().flat_map(of).collect();
        for (start, (policy, server, entry, place, share)) in &all {
            let end = start + u64::try_from(share.counted.window).unwrap();
            let sum: u64 = all
                .iter()
                .filter(|(at, _)| (*start..=end).contains(at))
                .filter(|(_, other)| (&other.0, &other.1, &other.2, &other.3) == (policy, server, entry, place))
                .filter(|(_, other)| {
                    (&other.4.counted.session, other.4.counted.key) == (&share.counted.session, share.counted.key)
                })
                .map(|(_, other)| other.4.amount)
                .sum();
            let max = u64::try_from(share.limit.max).unwrap() * 1_000_000;
            prop_assert!(sum <= max, "{} millionths of {:?} from {}", sum, share.limit, start);
        }
        Ok(())
    }
}

/// Policies in the order of their names, with what they say about a server; nothing where none names it.
fn parts<'a>(policies: &'a [Policy], server: &str) -> Vec<Part<'a>> {
    let named = policies.iter().flat_map(|policy| &policy.spec.servers).any(|named| named.name == server);
    let mut sorted: Vec<&Policy> = policies.iter().filter(|_| named).collect();
    sorted.sort_by_key(|policy| (policy.id.cluster, &policy.id.name));
    let own = |policy: &'a Policy| policy.spec.servers.iter().map(move |server| Part { policy, server });
    sorted.into_iter().flat_map(own).filter(|part| part.server.name == server || part.server.name == "*").collect()
}

// The engine beside the model.

fn compile(policies: &[Policy], counters: &Arc<Memory>) -> Engine {
    let (engine, problems) = Engine::compile(policies, Arc::clone(counters), &Options::default());
    let invalid: BTreeSet<usize> =
        problems.iter().filter(|problem| problem.severity == Severity::Invalid).map(|problem| problem.policy).collect();
    let expected: BTreeSet<usize> = (0..policies.len()).filter(|index| broken(&policies[*index])).collect();
    assert_eq!(invalid, expected, "{problems:#?}");
    engine
}

fn decide(engine: &Engine, call: &Seen<'_>) -> Decision {
    let text = call.arguments.json();
    let arguments = text.as_ref().map(|text| Reader::new(text.as_bytes()).unwrap().value().unwrap());
    let call_ = Call { server: call.server, tool: call.tool, arguments, session: call.session };
    engine.decide(&call_, Timestamp(call.now))
}

fn explain(engine: &Engine, call: &Seen<'_>) -> Explanation {
    let text = call.arguments.json();
    let arguments = text.as_ref().map(|text| Reader::new(text.as_bytes()).unwrap().value().unwrap());
    let call_ = Call { server: call.server, tool: call.tool, arguments, session: call.session };
    engine.explain(&call_, Timestamp(call.now), &Peeked::default())
}

/// The policies, those at these places with counts that pods share.
fn with_shared(policies: &[Policy], shared: &[Option<Scope>]) -> Vec<Policy> {
    let mut policies = policies.to_vec();
    for (policy, scope) in policies.iter_mut().zip(shared) {
        let Some(scope) = scope else { continue };
        for tool in policy.spec.servers.iter_mut().flat_map(|server| &mut server.tools) {
            tool.limits.iter_mut().filter(|limit| limit.scope == Scope::Pod).for_each(|limit| limit.scope = *scope);
            if tool.max_concurrent.is_some() {
                tool.max_concurrent_scope = *scope;
            }
        }
    }
    policies
}

/// An engine for one of several pods of a workload.
fn compile_for(pod: &str, policies: &[Policy]) -> Engine {
    let options = Options {
        shared_store: true,
        pod: pod.to_owned(),
        namespace: "agents".to_owned(),
        service_account: "default".to_owned(),
        workload: "Deployment/social".to_owned(),
        of_any_pod: false,
    };
    Engine::compile(policies, Memory::new(Memory::COUNTERS), &options).0
}

fn settle(permit: Permit, failed: bool) {
    if failed { permit.give_back() } else { drop(permit) }
}

fn permit(decision: Decision) -> Option<Permit> {
    match decision.outcome {
        Outcome::Allowed(permit) => Some(permit),
        Outcome::Denied(_) => None,
    }
}

/// What everyone who asks about a decision sees.
fn told(decision: &Decision) -> (Option<Denial>, Vec<Denial>, Option<String>, Option<String>) {
    let text = |name: &Option<Arc<str>>| name.as_deref().map(str::to_owned);
    (decision.denial().cloned(), decision.would_deny.clone(), text(&decision.policy), text(&decision.entry))
}

fn usage(engine: &Engine, now: u64) -> Vec<(String, u64)> {
    let text = |view: &toolweir_engine::LimitView<'_>| format!("{} {} {} {}", view.policy, view.server, view.tool, view.limit);
    engine.limits(Timestamp(now), &NothingKnown).iter().map(|view| (text(view), view.used.to_bits())).collect()
}

/// A policy in audit mode, and the same policy enforced and alone: it decides on the calls that are let through.
struct Audited {
    policy: Policy,
    engine: Engine,
    history: History,
}

/// What is kept of a call that is under way.
struct UnderWay {
    permits: Vec<Permit>,
    past: Option<usize>,
    audited: Vec<(usize, Option<usize>)>,
}

struct Run {
    policies: Vec<Policy>,
    engine: Engine,
    history: History,
    audited: Vec<Audited>,
    shuffled: Vec<Policy>,
    shuffled_counters: Arc<Memory>,
    shuffled_engine: Engine,
    /// The policies on counters of their own, and with one more on the same counters.
    less: Engine,
    more: Engine,
    under_way: Vec<UnderWay>,
    now: u64,
}

impl Run {
    fn new(policies: Vec<Policy>, shuffled: Vec<Policy>, extra: Policy, now: u64) -> Self {
        let counters = || Memory::new(Memory::COUNTERS);
        let alone = |policy: &Policy| {
            let mut enforced = policy.clone();
            enforced.spec.mode = Mode::Enforce;
            // A policy that says nothing but which servers there are.
            let server = |name: &str| Server { name: name.to_owned(), default_action: Action::Allow, ..Server::default() };
            let servers = vec![server("a"), server("b")];
            let id = PolicyId { cluster: true, namespace: String::new(), name: "opens".to_owned() };
            let spec = MCPPolicySpec { servers, ..MCPPolicySpec::default() };
            let opens = Policy { id, created: None, spec, unreadable: None };
            Audited { policy: policy.clone(), engine: compile(&[enforced, opens], &counters()), history: History::default() }
        };
        let (shuffled_counters, shared) = (counters(), counters());
        let mut with_extra = policies.clone();
        with_extra.push(extra);
        Self {
            engine: compile(&policies, &counters()),
            history: History::default(),
            audited: policies.iter().filter(|policy| !enforced(policy)).map(alone).collect(),
            shuffled_engine: compile(&shuffled, &shuffled_counters),
            shuffled_counters,
            less: compile(&policies, &shared),
            more: compile(&with_extra, &shared),
            policies,
            shuffled,
            under_way: Vec::new(),
            now,
        }
    }

    fn shows_what_no_enforced_policy_denies_by_action(&self) -> Result<(), TestCaseError> {
        for server in SERVERS {
            let parts = parts(&self.policies, server);
            for tool in TOOLS {
                let denied = parts.iter().filter(|part| enforced(part.policy)).any(|part| part.by_action(tool).is_some());
                prop_assert_eq!(self.engine.shows(server, tool), !parts.is_empty() && !denied, "{} {}", server, tool);
            }
        }
        Ok(())
    }

    /// What is decided is among the verdicts of the tool's name, or where only `*` matches it, of no name.
    fn foresaw(&self, call: &Seen<'_>, decision: &Decision) -> Result<(), TestCaseError> {
        let servers = parts(&self.policies, call.server);
        let entries = || servers.iter().flat_map(|part| part.entries(call.tool));
        let named = self.engine.tools(call.server).any(|tool| tool == call.tool);
        let (name, reason) = decision.told();
        if reason == Reason::Malformed || !named && entries().any(|entry| entry.name != "*") {
            return Ok(());
        }
        let verdicts = self.engine.verdicts(call.server);
        let told = |verdict: &&toolweir_engine::Verdict<'_>| {
            verdict.tool == named.then_some(call.tool) && (verdict.decision, verdict.reason) == (name, reason)
        };
        let policies: Vec<&str> = verdicts.iter().filter(told).map(|verdict| &*verdict.policy).collect();
        let policy = decision.policy.as_deref().unwrap_or_default();
        prop_assert!(policies.contains(&policy), "{} {} by {} is not among {:#?}", name, reason, policy, verdicts);
        Ok(())
    }

    fn call(&mut self, call: &Seen<'_>, then: Then) -> Result<Option<Denial>, TestCaseError> {
        let parts = parts(&self.policies, call.server);
        let before = usage(&self.engine, call.now);
        let decision = decide(&self.engine, call);
        let shuffled = decide(&self.shuffled_engine, call);
        let (denial, would_deny, ..) = told(&decision);
        prop_assert_eq!(told(&decision), told(&shuffled), "the order of the policies matters");
        if parts.is_empty() {
            prop_assert_eq!(denial.as_ref().map(|denial| denial.reason), Some(Reason::NoPolicy));
            return Ok(denial);
        }
        self.foresaw(call, &decision)?;
        let together: Vec<Part<'_>> = parts.iter().copied().filter(|part| enforced(part.policy)).collect();
        let answer = self.history.answer(&together, call);
        History::check(&answer, denial.as_ref(), call.now)?;
        let more = permit(decide(&self.more, call));
        let Some(permit_here) = permit(decision) else {
            prop_assert!(more.is_none(), "one policy more lets through what was denied");
            prop_assert_eq!(usage(&self.engine, call.now), before, "a denied call counts");
            return Ok(denial);
        };
        let mut under_way = UnderWay { permits: vec![permit_here], past: self.history.admit(answer), audited: Vec::new() };
        under_way.permits.extend(permit(shuffled));
        // Where one policy more denies, what both have in common counts as if it had been let through.
        under_way.permits.push(more.unwrap_or_else(|| permit(decide(&self.less, call)).expect("a call that is let through")));
        // Each audited policy has its say about what the others let through.
        let mut expected: Vec<Denial> = Vec::new();
        for (index, audited) in self.audited.iter_mut().enumerate() {
            let own: Vec<Part<'_>> = parts.iter().copied().filter(|part| part.policy.id == audited.policy.id).collect();
            if own.is_empty() {
                continue;
            }
            let answer = audited.history.answer(&own, call);
            let by_it = would_deny.iter().filter(|denial| denial.policy.as_deref() == Some(&*audited.policy.id.to_string()));
            let by_it: Vec<&Denial> = by_it.collect();
            prop_assert!(by_it.len() <= 1, "{:?}", by_it);
            History::check(&answer, by_it.first().copied(), call.now)?;
            let alone = decide(&audited.engine, call);
            prop_assert_eq!(by_it.first().copied(), alone.denial(), "audited, and enforced alone");
            under_way.permits.extend(permit(alone));
            expected.extend(by_it.first().copied().cloned());
            if by_it.is_empty() {
                under_way.audited.push((index, audited.history.admit(answer)));
            }
        }
        prop_assert_eq!(expected.len(), would_deny.len());
        prop_assert!(would_deny.is_sorted_by_key(|denial| denial.reason));
        match then {
            Then::Keep => self.under_way.push(under_way),
            Then::Drop => self.settle(under_way, false),
            Then::GiveBack => self.settle(under_way, true),
        }
        Ok(None)
    }

    fn settle(&mut self, under_way: UnderWay, failed: bool) {
        under_way.permits.into_iter().for_each(|permit| settle(permit, failed));
        self.history.end(under_way.past, failed);
        for (index, past) in under_way.audited {
            self.audited[index].history.end(past, failed);
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::End { which, failed } => {
                if !self.under_way.is_empty() {
                    let under_way = self.under_way.swap_remove(which.index(self.under_way.len()));
                    self.settle(under_way, *failed);
                }
            }
            Step::Call { after, server, tool, session, arguments, then, obedient } => {
                self.now += after;
                let mut call = Seen { server, tool, session, arguments, now: self.now };
                let wait = self.call(&call, *then)?.and_then(|denial| denial.retry_after);
                if let Some(wait) = wait.filter(|_| *obedient) {
                    self.now = Timestamp(self.now).after(wait).0;
                    call.now = self.now - 1;
                    let early = decide(&self.engine, &call).denial().map(|denial| denial.reason);
                    prop_assert_eq!(early, Some(Reason::RateLimit), "told to wait too long");
                    call.now = self.now;
                    let again = self.call(&call, *then)?.map(|denial| denial.reason);
                    prop_assert!(again.is_none_or(|again| again == Reason::Concurrency), "told to wait too short: {:?}", again);
                }
            }
        }
        Ok(())
    }
}

/// What is explained, held against what is decided.
fn explains(explained: &Explanation, decision: &Decision) -> Result<(), TestCaseError> {
    let of_denial = |denial: &Denial| Verdict {
        allowed: false,
        reason: denial.reason.to_string(),
        policy: denial.policy.as_deref().map(str::to_owned),
        entry: denial.entry.as_deref().map(str::to_owned),
        message: Some(denial.message.clone()),
        retry_after_seconds: serde_json::to_value(denial).unwrap()["retryAfterSeconds"].as_u64(),
    };
    let (denial, would_deny, policy, entry) = told(decision);
    let (name, reason) = decision.told();
    let verdict = match &denial {
        Some(denial) => of_denial(denial),
        None => Verdict { allowed: true, reason: reason.to_string(), policy, entry, message: None, retry_after_seconds: None },
    };
    prop_assert_eq!((explained.decision.as_str(), &explained.verdict), (name, &verdict));
    prop_assert_eq!(&explained.would_deny, &would_deny.iter().map(of_denial).collect::<Vec<_>>());
    // Each policy on its own: all that are enforced must allow, and the one that denies says what all of them say.
    let enforces = |said: &&toolweir_crds::explain::Said| said.mode == Mode::Enforce || said.broken.is_some();
    let out_of_counters = |reason: &str| reason == Reason::CountersExhausted.as_str();
    let allow = explained.policies.iter().filter(enforces).all(|said| said.verdict.allowed);
    if !explained.policies.is_empty() && !out_of_counters(&verdict.reason) {
        prop_assert_eq!(allow, verdict.allowed, "{:#?}", explained);
    }
    for verdict in denial.iter().map(|_| &verdict).chain(&explained.would_deny) {
        let same = |said: &toolweir_crds::explain::Said| said.verdict == *verdict;
        // Together they may need more counts than each does alone.
        prop_assert!(
            explained.policies.is_empty() || out_of_counters(&verdict.reason) || explained.policies.iter().any(same),
            "{:#?}",
            explained
        );
    }
    for said in &explained.policies {
        let entries = || said.servers.iter().flat_map(|server| &server.entries);
        let limits = || entries().flat_map(|entry| &entry.limits);
        let busy = entries().filter_map(|entry| entry.max_concurrent).any(|places| places.under_way >= places.max);
        let held = entries().flat_map(|entry| &entry.validations).all(|validation| validation.holds);
        let fits = |limit: &SaidOfLimit| limit.fits;
        let room = |limit: &SaidOfLimit| {
            limit.used + limit.adds.unwrap_or(f64::INFINITY) <= f64::from(i32::try_from(limit.max).unwrap())
        };
        prop_assert!(limits().all(|limit| limit.fits == room(limit)), "{:#?}", said);
        match said.verdict.reason.as_str() {
            "none" => prop_assert!(!busy && held && limits().all(fits), "{:#?}", said),
            "rate_limit" => prop_assert!(held && !limits().all(fits), "{:#?}", said),
            "concurrency" => prop_assert!(held && busy && limits().all(fits), "{:#?}", said),
            "validation" => prop_assert!(!held || limits().any(|limit| limit.error.is_some()), "{:#?}", said),
            "not_listed" | "denied" => {
                prop_assert!(said.servers.iter().any(|server| server.action == Action::Deny), "{:#?}", said);
            }
            "invalid_policy" => prop_assert!(said.broken.is_some()),
            "malformed" | "counters_exhausted" => {}
            other => prop_assert!(false, "{}", other),
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_engine_decides_as_the_policies_mean(
        (policies, shuffled) in policies().prop_flat_map(|policies| (Just(policies.clone()), Just(policies).prop_shuffle())),
        extra in policy("k"),
        start in 0_u64..2_000_000_000_000_000_000,
        steps in steps(),
    ) {
        let mut run = Run::new(policies, shuffled, extra, start);
        run.shows_what_no_enforced_policy_denies_by_action()?;
        for (number, step) in steps.iter().enumerate() {
            run.step(step)?;
            if number % 16 == 15 {
                // What counts lives on when policies are compiled anew, in whatever order.
                run.shuffled.rotate_left(1);
                run.shuffled_engine = compile(&run.shuffled, &run.shuffled_counters);
            }
        }
        run.history.never_too_much()?;
        for audited in &run.audited {
            audited.history.never_too_much()?;
        }
    }

    /// Two pods that share all counts decide together as one pod that has all the calls; and what is explained by what the
    /// store says is what is then decided.
    #[test]
    fn pods_that_share_their_counts_decide_as_one(
        policies in policies(),
        scopes in vec(select(vec![Scope::Workload, Scope::ServiceAccount, Scope::Namespace, Scope::Policy]), 4),
        start in 0_u64..2_000_000_000_000_000_000,
        steps in steps(),
    ) {
        let mut policies = policies;
        // A session is one of one pod.
        for limit in policies.iter_mut().flat_map(|policy| &mut policy.spec.servers).flat_map(|server| &mut server.tools).flat_map(|tool| &mut tool.limits) {
            limit.scope = Scope::Pod;
        }
        let alone = compile(&policies, &Memory::new(Memory::COUNTERS));
        let shared = with_shared(&policies, &scopes.iter().copied().map(Some).collect::<Vec<_>>());
        let (pods, store) = (["a", "b"].map(|pod| compile_for(pod, &shared)), Memory::new(Memory::COUNTERS));
        let (mut now, mut under_way): (u64, Vec<[Option<Permit>; 2]>) = (start, Vec::new());
        for (number, step) in steps.iter().enumerate() {
            match step {
                Step::End { which, failed } => {
                    if !under_way.is_empty() {
                        let permits = under_way.swap_remove(which.index(under_way.len()));
                        permits.into_iter().flatten().for_each(|permit| settle(permit, *failed));
                    }
                }
                Step::Call { after, server, tool, session, arguments, then, .. } => {
                    now += after;
                    let expected = decide(&alone, &Seen { server, tool, session, arguments, now });
                    let text = arguments.json();
                    let arguments = text.as_ref().map(|text| Reader::new(text.as_bytes()).unwrap().value().unwrap());
                    let call = Call { server, tool, arguments, session };
                    let pod = &pods[number % 2];
                    let peeked = common::peek(pod, &store, &call, Timestamp(now));
                    let explained = pod.explain(&call, Timestamp(now), &peeked);
                    let decision = common::decide(pod, &store, &call, Timestamp(now));
                    explains(&explained, &decision)?;
                    let without_scope = |mut denial: Denial| {
                        denial.limit.iter_mut().for_each(|limit| limit.scope = Scope::Pod);
                        denial.message.clear();
                        denial
                    };
                    let told = |decision: &Decision| {
                        let (denial, would_deny, policy, entry) = told(decision);
                        let would_deny: Vec<Denial> = would_deny.into_iter().map(without_scope).collect();
                        (denial.map(without_scope), would_deny, policy, entry)
                    };
                    prop_assert_eq!(told(&decision), told(&expected), "pods that share say another thing than one alone");
                    let permits = [permit(decision), permit(expected)];
                    match then {
                        Then::Keep => under_way.push(permits),
                        Then::Drop | Then::GiveBack => {
                            permits.into_iter().flatten().for_each(|permit| settle(permit, *then == Then::GiveBack));
                        }
                    }
                }
            }
        }
    }

    /// Where some policies share their counts and others do not, a call is let through as if none did, and what is explained
    /// is what is then decided.
    #[test]
    fn a_call_takes_its_own_counts_and_shared_ones_or_none(
        policies in policies(),
        scopes in vec(option::of(Just(Scope::Workload)), 4),
        start in 0_u64..2_000_000_000_000_000_000,
        steps in steps(),
    ) {
        let alone = compile(&policies, &Memory::new(Memory::COUNTERS));
        let (pod, store) = (compile_for("a", &with_shared(&policies, &scopes)), Memory::new(Memory::COUNTERS));
        let (mut now, mut under_way): (u64, Vec<[Option<Permit>; 2]>) = (start, Vec::new());
        for step in &steps {
            match step {
                Step::End { which, failed } => {
                    if !under_way.is_empty() {
                        let permits = under_way.swap_remove(which.index(under_way.len()));
                        permits.into_iter().flatten().for_each(|permit| settle(permit, *failed));
                    }
                }
                Step::Call { after, server, tool, session, arguments, then, obedient } => {
                    now += after;
                    let seen = Seen { server, tool, session, arguments, now };
                    let text = arguments.json();
                    let arguments = text.as_ref().map(|text| Reader::new(text.as_bytes()).unwrap().value().unwrap());
                    let call = Call { server, tool, arguments, session };
                    if *obedient {
                        // A request that ends before the store has answered leaves nothing behind.
                        let before = usage(&pod, now);
                        if let Begun::Decided(decision) = pod.begin(&call, Timestamp(now)) {
                            permit(decision).into_iter().for_each(Permit::give_back);
                        }
                        prop_assert_eq!(usage(&pod, now), before, "a decision that was not finished counts");
                    }
                    let expected = decide(&alone, &seen);
                    let peeked = common::peek(&pod, &store, &call, Timestamp(now));
                    let explained = pod.explain(&call, Timestamp(now), &peeked);
                    let before = usage(&pod, now);
                    let decision = common::decide(&pod, &store, &call, Timestamp(now));
                    explains(&explained, &decision)?;
                    let by = |decision: &Decision| {
                        let policies = decision.would_deny.iter().filter_map(|denial| denial.policy.clone());
                        (decision.denial().is_none(), policies.collect::<BTreeSet<_>>())
                    };
                    prop_assert_eq!(by(&decision), by(&expected), "shared counts say another thing than own ones");
                    if decision.denial().is_some() {
                        prop_assert_eq!(usage(&pod, now), before, "a denied call counts");
                    }
                    let permits = [permit(decision), permit(expected)];
                    match then {
                        Then::Keep => under_way.push(permits),
                        Then::Drop | Then::GiveBack => {
                            permits.into_iter().flatten().for_each(|permit| settle(permit, *then == Then::GiveBack));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_explained_is_what_is_then_decided_and_to_explain_changes_nothing(
        policies in policies(),
        start in 0_u64..2_000_000_000_000_000_000,
        steps in steps(),
        most in prop_oneof![Just(Memory::COUNTERS), 0_usize..8],
    ) {
        let engine = compile(&policies, &Memory::new(most));
        // The same calls, and nobody asks for an explanation.
        let silent = compile(&policies, &Memory::new(most));
        let (mut now, mut under_way): (u64, Vec<[Option<Permit>; 2]>) = (start, Vec::new());
        for step in &steps {
            match step {
                Step::End { which, failed } => {
                    if !under_way.is_empty() {
                        let permits = under_way.swap_remove(which.index(under_way.len()));
                        permits.into_iter().flatten().for_each(|permit| settle(permit, *failed));
                    }
                }
                Step::Call { after, server, tool, session, arguments, then, .. } => {
                    now += after;
                    let call = Seen { server, tool, session, arguments, now };
                    let explained = explain(&engine, &call);
                    let before = usage(&engine, now);
                    prop_assert_eq!(&explained, &explain(&engine, &call), "it says another thing the second time");
                    prop_assert_eq!(usage(&engine, now), before);
                    let (decision, silent) = (decide(&engine, &call), decide(&silent, &call));
                    explains(&explained, &decision)?;
                    prop_assert_eq!(told(&decision), told(&silent), "it changed what is decided");
                    let permits = [permit(decision), permit(silent)];
                    match then {
                        Then::Keep => under_way.push(permits),
                        Then::Drop | Then::GiveBack => {
                            permits.into_iter().flatten().for_each(|permit| settle(permit, *then == Then::GiveBack));
                        }
                    }
                }
            }
        }
    }
}
