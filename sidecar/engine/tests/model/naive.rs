//! The naive model: the meaning of policies, worked out anew for each call from every call that was let through.

use std::{cmp::Reverse, time::Duration};

use proptest::prelude::*;
use toolweir_crds::{Action, EntryApproval, Limit, Mode, OnDrift, OnNew, Scope, Server, Tool, ToolClass, ToolPart};
use toolweir_engine::{Denial, Policy, PolicyId, Reason, SeenTool};

use crate::generate::{Arguments, KEYS, NUMBERS, PINNED, Shape};

/// Matches a name with stars against another, by trying everything.
pub fn matches(pattern: &str, name: &str) -> bool {
    match pattern.chars().next() {
        None => name.is_empty(),
        Some('*') => (0..=name.len()).any(|skip| matches(&pattern[1..], &name[skip..])),
        Some(char) => name.starts_with(char) && matches(&pattern[1..], &name[1..]),
    }
}

pub fn literals(name: &str) -> usize {
    name.chars().filter(|char| *char != '*').count()
}

/// A name for an entry of its own.
pub fn name(entry: &Tool) -> String {
    entry.class.map_or(entry.name.clone(), |class| format!("class:{}", class.as_str()))
}

pub fn action(tool: &Tool) -> Option<Action> {
    tool.action.or(if tool.name == "*" { None } else { Some(Action::Allow) })
}

/// True if two globs of one server are equally specific, match one name and say different things about it.
pub fn contradictory(server: &Server) -> bool {
    let globs: Vec<&Tool> = server.tools.iter().filter(|tool| tool.name.contains('*')).collect();
    let both = |a: &Tool, b: &Tool| {
        ["get_x", "get_y", "set_x", "pay", "ga", "sa", "geat_x", "ge_X"]
            .iter()
            .any(|name| matches(&a.name, name) && matches(&b.name, name))
    };
    globs.iter().any(|a| globs.iter().any(|b| literals(&a.name) == literals(&b.name) && action(a) != action(b) && both(a, b)))
}

pub fn broken(policy: &Policy) -> bool {
    policy.spec.servers.iter().any(contradictory)
}

pub fn enforced(policy: &Policy) -> bool {
    policy.spec.mode == Mode::Enforce || broken(policy)
}

/// The rules of one policy for a server, under the name of the server or under `*`.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    pub policy: &'a Policy,
    pub server: &'a Server,
}

impl<'a> Part<'a> {
    /// The entries that match a tool in whatever case, or by its class, most specific first.
    pub fn entries(self, tool: &str, known: Option<&SeenTool>) -> Vec<&'a Tool> {
        let lower = |name: &str| name.to_lowercase();
        let matches = |entry: &&Tool| match entry.class {
            Some(of) => class(known) == of || class(known) == ToolClass::Unknown,
            None => matches(&lower(&entry.name), &lower(tool)),
        };
        let mut entries: Vec<&Tool> = self.server.tools.iter().filter(matches).collect();
        entries.sort_by_key(|entry| {
            let denies = action(entry) == Some(Action::Deny);
            let place = match entry.class {
                Some(_) if denies => 2,
                Some(_) => 4,
                None if entry.name == tool => 0,
                None if entry.name.contains('*') => 3,
                None => 1,
            };
            (place, Reverse(literals(&entry.name)), !denies)
        });
        entries
    }

    /// The action of an entry on a tool that it matches: in another case, or where the class is not known, it allows nothing.
    pub fn action_on(entry: &Tool, tool: &str, known: Option<&SeenTool>) -> Option<Action> {
        let allows = || match entry.class {
            Some(of) => class(known) == of,
            None => matches(&entry.name, tool),
        };
        action(entry).filter(|action| *action == Action::Deny || allows())
    }

    /// How the pins of the policy take the tool: why it is not as it was pinned, and true where that is only reported.
    pub fn by_pins(self, tool: &str, known: Option<&SeenTool>) -> Option<(Reason, bool)> {
        let pins = self.server.pins.as_ref().filter(|_| !broken(self.policy))?;
        let drift = |reason| Some((reason, pins.on_drift == OnDrift::Audit));
        if pins.name == "missing" {
            return drift(Reason::PinUnverified);
        }
        let Some((_, byte)) = PINNED.into_iter().find(|(name, _)| *name == tool) else {
            return (pins.on_new != OnNew::Allow).then_some((Reason::NotPinned, pins.on_new == OnNew::Audit));
        };
        let Some(known) = known else { return drift(Reason::PinUnverified) };
        let is_pinned = |part| known.definitions.iter().all(|now| now.get(part) == Some(&[byte; 32]));
        if is_pinned(ToolPart::Description) && is_pinned(ToolPart::InputSchema) { None } else { drift(Reason::PinDrift) }
    }

    /// The reason to deny a tool regardless of the arguments.
    pub fn by_action(self, tool: &str, known: Option<&SeenTool>) -> Option<Reason> {
        if broken(self.policy) {
            return Some(Reason::InvalidPolicy);
        }
        let by_pins = || self.by_pins(tool, known).filter(|(_, reported)| !reported).map(|(reason, _)| reason);
        match self.entries(tool, known).into_iter().find_map(|entry| Self::action_on(entry, tool, known)) {
            Some(Action::Deny) => Some(Reason::Denied),
            None if self.server.default_action == Action::Deny => Some(Reason::NotListed),
            Some(Action::Allow) | None => by_pins(),
        }
    }
}

pub fn class(known: Option<&SeenTool>) -> ToolClass {
    known.map_or(ToolClass::Unknown, |known| known.class)
}

/// A call, as the model sees it.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    pub server: &'a str,
    pub tool: &'a str,
    pub session: &'a str,
    pub arguments: &'a Arguments,
    pub now: u64,
    /// What is known of the tool.
    pub known: Option<&'a SeenTool>,
    /// True if a person approves whatever is asked.
    pub approved: bool,
}

impl Seen<'_> {
    pub fn number(&self) -> Option<(&'static str, Option<u64>)> {
        self.arguments.n.map(|n| NUMBERS[n])
    }

    pub fn key(&self) -> Option<&'static str> {
        self.arguments.k.and_then(|k| KEYS[k].1)
    }

    /// Whether a condition holds; nothing where it fails.
    pub fn value(&self, condition: &str) -> Option<bool> {
        match condition {
            "args.n < 3" => self.number().and_then(|(text, _)| text.parse::<f64>().ok()).map(|n| n < 3.0),
            "args.k == 'u'" => self.arguments.k.map(|_| self.key() == Some("text u")),
            "has(args.k)" => Some(self.arguments.k.is_some()),
            "tool != 'get_x'" => Some(self.tool != "get_x"),
            other => panic!("{other}"),
        }
    }
}

/// The identity of a count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    pub policy: PolicyId,
    /// The counter's name, or the entry's server and name and the limit's place in it.
    pub name: Result<String, (String, String, usize)>,
    pub window: u128,
    /// For a named counter, which is one of a scope.
    pub session_scope: bool,
    pub session: Option<String>,
    pub key: Option<&'static str>,
}

/// The amount that a call adds to a count, with the limit.
#[derive(Clone, Debug)]
pub struct Share {
    pub counted: Counted,
    pub amount: u64,
    pub limit: Limit,
}

/// A call that was let through.
#[derive(Clone, Debug)]
pub struct Past {
    pub at: u64,
    /// Each count once, with the largest of the amounts.
    pub shares: Vec<Share>,
    /// Each limit on its own.
    pub limits: Vec<(PolicyId, String, String, usize, Share)>,
    /// The entries with `maxConcurrent`.
    pub places: Vec<(PolicyId, String, String)>,
    pub under_way: bool,
}

/// The answer of the model to a call.
#[derive(Debug)]
pub enum Answer {
    /// A denial that does not depend on what was before.
    Denied(Reason, PolicyId),
    /// A person must be asked: by these entries.
    Asks(Vec<(PolicyId, EntryApproval)>),
    /// An answer that depends on the limits.
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

/// The calls that were let through by policies that decide together.
#[derive(Clone, Debug, Default)]
pub struct History(pub Vec<Past>);

impl History {
    fn sum(&self, counted: &Counted, since: impl Fn(u64) -> bool) -> u64 {
        let shares = self.0.iter().filter(|past| since(past.at)).flat_map(|past| &past.shares);
        shares.filter(|share| share.counted == *counted).map(|share| share.amount).sum()
    }

    pub fn answer(&self, parts: &[Part<'_>], call: &Seen<'_>) -> Answer {
        let malformed = is_malformed(parts, call);
        let past = by_action(parts, call)
            .and_then(|()| by_condition(parts, call, malformed))
            .and_then(|()| wants(parts, call, malformed));
        let asks = past.and_then(|past| Ok((past, asks(parts, call, malformed)?)));
        let (past, asks) = match asks {
            Ok(found) => found,
            Err((reason, policy)) => return Answer::Denied(reason, policy),
        };
        let never = |share: &Share| share.amount > u64::try_from(share.limit.max).unwrap() * 1_000_000;
        if !asks.is_empty() && !past.shares.iter().any(never) {
            // Nobody can be asked who is to be shown what cannot be read.
            let reads = |(_, approval): &&(PolicyId, EntryApproval)| approval.show.iter().any(|shown| shown.contains("args"));
            if let Some((policy, _)) = asks.iter().filter(|_| malformed).find(reads) {
                return Answer::Denied(Reason::Malformed, policy.clone());
            }
            if !call.approved {
                return Answer::Asks(asks);
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
        let busy = entries(parts, call).into_iter().find(|(part, entry)| {
            let place = (part.policy.id.clone(), part.server.name.clone(), name(entry));
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

    /// Checks the engine's decision against the answer.
    pub fn check(answer: &Answer, denial: Option<&Denial>, now: u64) -> Result<(), TestCaseError> {
        let by = |id: &PolicyId| denial.and_then(|denial| denial.policy.as_deref()) == Some(id.to_string().as_str());
        match answer {
            Answer::Denied(reason, policy) => {
                prop_assert_eq!(denial.map(|denial| denial.reason), Some(*reason));
                prop_assert!(by(policy), "{:?} is not by {}", denial, policy);
            }
            Answer::Asks(asks) => {
                prop_assert!(by(&asks[0].0), "{:?} is not by {:?}", denial, asks);
                Self::check_asked(asks, denial)?;
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

    /// Checks that a denial asks what these entries of policies ask.
    fn check_asked(asks: &[(PolicyId, EntryApproval)], denial: Option<&Denial>) -> Result<(), TestCaseError> {
        prop_assert_eq!(denial.map(|denial| denial.reason), Some(Reason::ApprovalPending));
        let ask = denial.and_then(|denial| denial.ask.as_deref()).expect("what to ask");
        let mut policies: Vec<String> = asks.iter().map(|(policy, _)| policy.to_string()).collect();
        policies.dedup();
        prop_assert_eq!(ask.policies.iter().map(|asking| asking.policy.to_string()).collect::<Vec<_>>(), policies);
        let least = |of: fn(&EntryApproval) -> Duration| asks.iter().map(|(_, approval)| of(approval)).min().unwrap();
        prop_assert_eq!(ask.hold, least(|approval| approval.hold.span()));
        prop_assert_eq!(ask.expiry, least(|approval| approval.expiry.span()));
        prop_assert_eq!(Some(ask.pending), asks.iter().map(|(_, approval)| approval.pending).min());
        let once = |all: Vec<String>| {
            all.iter()
                .enumerate()
                .filter(|(at, text)| !all[..*at].contains(text))
                .map(|(_, text)| text.clone())
                .collect::<Vec<_>>()
        };
        let messages = asks.iter().filter_map(|(_, approval)| approval.message.clone()).collect();
        prop_assert_eq!(&ask.message, &once(messages).join(" "));
        let shown = asks.iter().flat_map(|(_, approval)| approval.show.clone()).collect();
        prop_assert_eq!(ask.shown.iter().map(|shown| shown.expression.clone()).collect::<Vec<_>>(), once(shown));
        Ok(())
    }

    pub fn admit(&mut self, answer: Answer) -> Option<usize> {
        let Answer::Limited { past, .. } = answer else { return None };
        self.0.push(past);
        Some(self.0.len() - 1)
    }

    pub fn end(&mut self, which: Option<usize>, failed: bool) {
        let Some(past) = which.map(|which| &mut self.0[which]) else { return };
        past.under_way = false;
        if failed {
            past.shares.clear();
            past.limits.clear();
        }
    }

    /// No span of any limit's window holds more than its maximum.
    pub fn never_too_much(&self) -> Result<(), TestCaseError> {
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

/// The entries that match, of each policy in turn.
fn entries<'a, 'p>(parts: &'p [Part<'a>], call: &Seen<'_>) -> Vec<(&'p Part<'a>, &'a Tool)> {
    parts.iter().flat_map(|part| part.entries(call.tool, call.known).into_iter().map(move |entry| (part, entry))).collect()
}

/// Two readers could read the arguments differently, where a policy reads them.
fn is_malformed(parts: &[Part<'_>], call: &Seen<'_>) -> bool {
    let expressions = |entry: &Tool| {
        let limits = entry.limits.iter().flat_map(|limit| limit.key.iter().chain(&limit.cost).cloned());
        let approval = entry.approval.iter().flat_map(|approval| approval.when.iter().chain(&approval.show).cloned());
        entry.validations.iter().map(|validation| validation.expression.clone()).chain(limits).chain(approval).collect::<Vec<_>>()
    };
    let reads = entries(parts, call).into_iter().flat_map(|(_, entry)| expressions(entry));
    match call.arguments.shape {
        Shape::Plain => false,
        Shape::Repeated => true,
        Shape::OtherCase => reads.into_iter().any(|expression| expression.contains("args.n")),
    }
}

/// A denial that does not depend on what was before.
type Denied = (Reason, PolicyId);

/// The denial by an action: the most severe.
fn by_action(parts: &[Part<'_>], call: &Seen<'_>) -> Result<(), Denied> {
    let denials = parts.iter().filter_map(|part| part.by_action(call.tool, call.known).map(|reason| (reason, part)));
    let denial = denials.min_by_key(|(reason, _)| *reason);
    denial.map_or(Ok(()), |(reason, part)| Err((reason, part.policy.id.clone())))
}

/// The denial by a condition: of each policy the first that does not hold, of those the most severe.
fn by_condition(parts: &[Part<'_>], call: &Seen<'_>, malformed: bool) -> Result<(), Denied> {
    let mut failed: Vec<(Reason, &Part<'_>)> = Vec::new();
    for part in parts {
        let conditions = part.entries(call.tool, call.known).into_iter().flat_map(|entry| &entry.validations);
        let first = conditions.into_iter().find_map(|validation| {
            if malformed && validation.expression.contains("args") {
                Some(Reason::Malformed)
            } else {
                (call.value(&validation.expression) != Some(true)).then_some(Reason::Validation)
            }
        });
        failed.extend(first.map(|reason| (reason, part)));
    }
    let denial = failed.into_iter().min_by_key(|(reason, _)| *reason);
    denial.map_or(Ok(()), |(reason, part)| Err((reason, part.policy.id.clone())))
}

/// The entries that ask a person about the call. Policies are asked by in the order of their names.
fn asks(parts: &[Part<'_>], call: &Seen<'_>, malformed: bool) -> Result<Vec<(PolicyId, EntryApproval)>, Denied> {
    let mut asks = Vec::new();
    for (part, entry) in entries(parts, call) {
        let Some(approval) = &entry.approval else { continue };
        let when = approval.when.as_deref();
        if malformed && when.is_some_and(|when| when.contains("args")) {
            return Err((Reason::Malformed, part.policy.id.clone()));
        }
        if when.is_none_or(|when| call.value(when) != Some(false)) {
            asks.push((part.policy.id.clone(), approval.clone()));
        }
    }
    Ok(asks)
}

/// The amounts and places that the call wants, or the denial where a key or cost has no value.
fn wants(parts: &[Part<'_>], call: &Seen<'_>, malformed: bool) -> Result<Past, Denied> {
    let mut past = Past { at: call.now, shares: Vec::new(), limits: Vec::new(), places: Vec::new(), under_way: true };
    for (part, entry) in entries(parts, call) {
        for (place, limit) in entry.limits.iter().enumerate() {
            let share = share(part, entry, place, call, malformed)?;
            past.limits.push((part.policy.id.clone(), part.server.name.clone(), name(entry), place, share.clone()));
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
            past.places.push((part.policy.id.clone(), part.server.name.clone(), name(entry)));
        }
    }
    Ok(past)
}

/// The amount that the call wants of one limit of an entry, by its place.
fn share(part: &Part<'_>, entry: &Tool, place: usize, call: &Seen<'_>, malformed: bool) -> Result<Share, Denied> {
    let limit = &entry.limits[place];
    let deny = |reason| Err((reason, part.policy.id.clone()));
    if malformed && (limit.key.is_some() || limit.cost.is_some()) {
        return deny(Reason::Malformed);
    }
    let key = limit.key.as_ref().and_then(|_| call.key());
    let amount = if limit.cost.is_some() { call.number().and_then(|n| n.1) } else { Some(1_000_000) };
    if limit.key.is_some() && key.is_none() {
        return deny(Reason::Validation);
    }
    let Some(amount) = amount else { return deny(Reason::Validation) };
    let name = match &limit.counter {
        Some(counter) => Ok(counter.clone()),
        None => Err((part.server.name.clone(), name(entry), place)),
    };
    let counted = Counted {
        policy: part.policy.id.clone(),
        name,
        window: limit.window.span().as_nanos(),
        session_scope: limit.scope == Scope::Session,
        session: (limit.scope == Scope::Session).then(|| call.session.to_owned()),
        key,
    };
    Ok(Share { counted, amount, limit: limit.clone() })
}

/// Policies in the order of their names, with what they say about a server; nothing where none names it.
pub fn parts<'a>(policies: &'a [Policy], server: &str) -> Vec<Part<'a>> {
    let named = policies.iter().flat_map(|policy| &policy.spec.servers).any(|named| named.name == server);
    let mut sorted: Vec<&Policy> = policies.iter().filter(|_| named).collect();
    sorted.sort_by_key(|policy| (policy.id.cluster, &policy.id.name));
    let own = |policy: &'a Policy| policy.spec.servers.iter().map(move |server| Part { policy, server });
    sorted.into_iter().flat_map(own).filter(|part| part.server.name == server || part.server.name == "*").collect()
}
