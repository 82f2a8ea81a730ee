//! Denials of calls, other operations and connections as Kubernetes events of the pod, for `kubectl describe pod`. They are gathered, and written at most once a minute for
//! each pod and reason. Events of tools that changed are those of [`crate::drift_events`], those of approvals of [`crate::approvals`].
//!
//! [`Ledger`] is plain data and functions; [`write`](fn@write) talks to the API server.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    fmt::Write as _,
    time::Duration,
};

use data_encoding::HEXLOWER;
use k8s_openapi::{api::core::v1::Event, jiff::Timestamp};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use prometheus::IntCounterVec;
use tokio::{sync::mpsc, time::Instant};
use toolweir_crds::{OperationKind, stream::Denied, text::one_line};
use toolweir_engine::{EgressReason, Reason};

use crate::{
    drift_events::{DriftLedger, DriftedTool},
    event_notice::{COMPONENT, EventNotice, EventObject, EventType},
    index::PodKey,
    metrics::OperatorRegistry,
};

/// At most one write in this time, for a pod and reason.
const PACE: Duration = Duration::from_secs(60);
/// After this time without a denial, the next one begins an event of its own.
const FORGET: Duration = Duration::from_secs(30 * 60);
/// The most events that are kept in mind. What goes beyond is counted, and not written.
const MOST: usize = 10_000;
/// The most that are written in a round, so that many pods at once do not flood the API server.
const ROUND: usize = 50;
/// The most events of approvals that wait to be written.
const APPROVALS: usize = 1000;
/// Between two rounds.
const LOOK: Duration = Duration::from_secs(1);
/// The most tools or destinations, and policies, that a message names.
const NAMED: usize = 3;
/// The longest name that is shown, in bytes.
const LONGEST_NAME: usize = 128;
/// The most kinds of denials that are taken of one line; a sidecar tells no more.
const KINDS: usize = 64;

/// The metric of events.
#[derive(Clone, Debug)]
pub struct EventMetrics {
    /// Events of denied calls, other operations and connections, of changed tools and of approvals, by result.
    pub events: IntCounterVec,
}

impl EventMetrics {
    /// Registers the metric.
    ///
    /// # Errors
    /// Those of [`OperatorRegistry::counter`].
    pub fn new(registry: &OperatorRegistry) -> Result<Self, prometheus::Error> {
        let help = "Events of denied calls and connections, of changed tools and of approvals, by what became of them.";
        let results = ["ok", "failed", "no_room"];
        Ok(Self { events: registry.counters_at_zero("toolweir_operator_events_total", help, "result", results)? })
    }

    /// Counts a report of which something had no room.
    pub fn count_no_room(&self) {
        self.events.with_label_values(&["no_room"]).inc();
    }
}

/// What becomes events.
#[derive(Clone, Debug)]
pub enum EventReport {
    /// Calls and connections that were denied.
    Denials(DenialReport),
    /// Tools that are not as they were pinned.
    Drift(Vec<DriftedTool>),
    /// A call that waits for a person, or what was decided.
    Approval(Box<EventNotice>),
}

/// The denials that a sidecar reported.
#[derive(Clone, Debug)]
pub struct DenialReport {
    /// The pod of the sidecar.
    pub pod: PodKey,
    /// The pod's uid.
    pub uid: String,
    /// The calls and connections that were denied.
    pub denials: Vec<Denied>,
}

/// Returns the part of a report that is kept: a bounded number of kinds with names of bounded length.
pub fn shorten(mut denials: Vec<Denied>) -> Vec<Denied> {
    denials.truncate(KINDS);
    denials.retain(|denied| DeniedKind::of(denied).is_some());
    for denied in &mut denials {
        for name in [&mut denied.policy, &mut denied.server, &mut denied.operation, &mut denied.tool]
            .into_iter()
            .chain(&mut denied.destination)
        {
            name.truncate(name.floor_char_boundary(LONGEST_NAME));
            name.shrink_to_fit();
        }
    }
    denials.shrink_to_fit();
    denials
}

/// What was denied, and why: for each pod, an event of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum DeniedKind {
    /// Calls of tools.
    Call(Reason),
    /// Other operations of a kind.
    Operation(OperationKind, Reason),
    /// Connections to somewhere else than a declared server.
    Connection(EgressReason),
}

impl DeniedKind {
    /// Returns the kind of a denial; none for a reason that only a newer sidecar knows.
    fn of(denied: &Denied) -> Option<Self> {
        let reason = denied.reason.as_str();
        if denied.destination.is_some() {
            let mut known = EgressReason::ALL.into_iter().filter(|known| *known != EgressReason::None);
            return known.find(|known| known.as_str() == reason).map(Self::Connection);
        }
        let mut known = Reason::ALL.into_iter().filter(|known| *known != Reason::None);
        let reason = known.find(|known| known.as_str() == reason)?;
        // Methods that only a newer sidecar knows are other methods here.
        Some(match denied.operation.as_str() {
            "" => Self::Call(reason),
            method => Self::Operation(OperationKind::of_method(method), reason),
        })
    }

    /// Returns the reason of the event.
    fn event(self) -> &'static str {
        match self {
            Self::Call(_) => "ToolCallDenied",
            Self::Operation(..) => "OperationDenied",
            Self::Connection(_) => "ConnectionDenied",
        }
    }

    /// Returns what was denied, one of it and several.
    fn what(self) -> [&'static str; 2] {
        match self {
            Self::Call(_) | Self::Operation(OperationKind::Tool, _) => ["tool call", "tool calls"],
            Self::Operation(OperationKind::Prompt, _) => ["use of a prompt", "uses of prompts"],
            Self::Operation(OperationKind::Resource, _) => ["read of a resource", "reads of resources"],
            Self::Operation(OperationKind::Request, _) => ["request of a server", "requests of servers"],
            Self::Operation(OperationKind::Other, _) => ["other request", "other requests"],
            Self::Connection(_) => ["connection", "connections"],
        }
    }

    /// Returns the reason as the metrics name it.
    fn reason(self) -> &'static str {
        match self {
            Self::Call(reason) | Self::Operation(_, reason) => reason.as_str(),
            Self::Connection(reason) => reason.as_str(),
        }
    }

    /// Returns the reason in words.
    fn why(self) -> String {
        match self {
            Self::Call(reason) => words(OperationKind::Tool, reason),
            Self::Operation(kind, reason) => words(kind, reason),
            Self::Connection(reason) => reason.words().to_owned(),
        }
    }
}

/// The denials that were reported, gathered to events.
#[derive(Debug, Default)]
pub struct Ledger(HashMap<(String, DeniedKind), EventEntry>);

#[derive(Debug)]
struct EventEntry {
    pod: PodKey,
    first: Timestamp,
    last: Timestamp,
    /// By the clock that does not jump.
    seen: Instant,
    written: Option<Instant>,
    is_new: bool,
    count: u64,
    /// Tools, or destinations.
    targets: BTreeMap<String, u64>,
    policies: BTreeSet<String>,
}

impl Ledger {
    /// Adds a report. Returns how many denials had no room.
    pub fn add(&mut self, report: DenialReport, now: Instant, time: Timestamp) -> u64 {
        let mut lost = 0;
        for denied in report.denials {
            let Some(kind) = DeniedKind::of(&denied) else { continue };
            let key = (report.uid.clone(), kind);
            if !self.0.contains_key(&key) && self.0.len() >= MOST {
                lost += denied.count;
                continue;
            }
            let entry = self.0.entry(key).or_insert_with(|| EventEntry {
                pod: report.pod.clone(),
                first: time,
                last: time,
                seen: now,
                written: None,
                is_new: true,
                count: 0,
                targets: BTreeMap::new(),
                policies: BTreeSet::new(),
            });
            (entry.last, entry.seen, entry.is_new) = (time, now, true);
            entry.count = entry.count.saturating_add(denied.count);
            // One more than is named, so that it can be said that there are more.
            let target = match &denied.destination {
                Some(destination) => shown(destination),
                None => format!("{} on {}", shown(&denied.tool), shown(&denied.server)),
            };
            if entry.targets.len() <= NAMED || entry.targets.contains_key(&target) {
                let count = entry.targets.entry(target).or_default();
                *count = count.saturating_add(denied.count);
            }
            if entry.policies.len() <= NAMED {
                entry.policies.insert(denied.policy.clone());
            }
        }
        lost
    }

    /// Returns the events that are due, the longest overdue first, and counts them as written. Forgets events that are over.
    pub fn due(&mut self, now: Instant) -> Vec<EventNotice> {
        self.0.retain(|_, entry| entry.is_new || now.saturating_duration_since(entry.seen) < FORGET);
        let mut due: Vec<_> = self
            .0
            .iter_mut()
            .filter(|(_, entry)| {
                entry.is_new && entry.written.is_none_or(|written| now.saturating_duration_since(written) >= PACE)
            })
            .collect();
        due.sort_by(|((uid, kind), entry), ((other_uid, other_kind), other)| {
            (entry.written, uid, kind).cmp(&(other.written, other_uid, other_kind))
        });
        due.truncate(ROUND);
        due.into_iter()
            .map(|((uid, kind), entry)| {
                (entry.written, entry.is_new) = (Some(now), false);
                entry.notice(uid, *kind)
            })
            .collect()
    }
}

impl EventEntry {
    fn notice(&self, uid: &str, kind: DeniedKind) -> EventNotice {
        let [one, several] = kind.what();
        let what = if self.count == 1 { one } else { several };
        let mut message = format!("{} {what} denied, {} ({})", self.count, kind.why(), kind.reason());
        // Sidecars tell of connections without the policy.
        if self.policies.iter().any(|policy| !policy.is_empty()) {
            let named: Vec<String> = self.policies.iter().map(|policy| shown(policy)).collect();
            let _ = write!(message, ", by {}", list(named.iter()));
        }
        let _ = write!(message, ": {}.", list(self.targets.keys()));
        EventNotice {
            regarding: EventObject {
                api_version: "v1",
                kind: "Pod",
                namespace: self.pod.namespace.clone(),
                name: self.pod.name.clone(),
                uid: uid.to_owned(),
            },
            name: name(&self.pod.name, uid, kind, self.first),
            event_type: EventType::Warning,
            reason: kind.event(),
            message,
            first: self.first,
            last: self.last,
            count: self.count,
        }
    }
}

/// Returns a reason in words, by the kind of what was denied.
fn words(kind: OperationKind, reason: Reason) -> String {
    match reason {
        Reason::Denied => format!("an entry denies the {kind}"),
        Reason::NotListed if kind == OperationKind::Other => "no policy allows the method".to_owned(),
        Reason::NotListed => format!("no entry allows the {kind}"),
        Reason::NoPolicy if kind != OperationKind::Tool => format!("no policy has a say in {}", several(kind)),
        reason => same_words(reason).to_owned(),
    }
}

/// Returns what several of a kind are called.
fn several(kind: OperationKind) -> &'static str {
    match kind {
        OperationKind::Tool | OperationKind::Prompt | OperationKind::Resource => kind.field(),
        OperationKind::Request => "requests of the server",
        OperationKind::Other => "other methods",
    }
}

/// Returns a reason in words that are the same for every kind.
fn same_words(reason: Reason) -> &'static str {
    match reason {
        Reason::RateLimit => "over a limit",
        Reason::Concurrency => "too many at once",
        Reason::Validation => "a condition does not hold",
        Reason::Denied => "an entry denies it",
        Reason::NotListed => "no entry allows it",
        Reason::NoPolicy => "no policy names the server",
        Reason::InvalidPolicy => "a policy cannot be enforced as it is written",
        Reason::Malformed => "its meaning is not clear",
        Reason::PinDrift => "the tool is not as it was pinned",
        Reason::NotPinned => "the tool is not pinned",
        Reason::PinUnverified => "it is not known whether the tool is as it was pinned",
        Reason::ApprovalPending => "it waits for a person's approval",
        Reason::ApprovalDenied => "a person has denied it",
        Reason::ApprovalExpired => "nobody approved it in time",
        Reason::ApprovalFull => "too many requests for approval wait",
        Reason::ApprovalUnavailable => "nobody can be asked to approve it",
        Reason::StoreUnavailable => "the store of shared counts does not answer",
        Reason::ResultTooLarge => "its result is larger than it may be",
        Reason::None | Reason::ExpressionBudget | Reason::CountersExhausted => "it cannot be counted",
    }
}

fn list<'a>(names: impl ExactSizeIterator<Item = &'a String>) -> String {
    let more = if names.len() > NAMED { ", ..." } else { "" };
    let first: Vec<&str> = names.take(NAMED).map(String::as_str).collect();
    format!("{}{more}", first.join(", "))
}

/// Returns a name that a sidecar reported as one line.
fn shown(name: &str) -> String {
    if name.is_empty() {
        return "no policy".to_owned();
    }
    let name = name.get(..name.floor_char_boundary(LONGEST_NAME)).unwrap_or_default();
    one_line(name, LONGEST_NAME)
}

/// Returns the name of the event: that of the pod, and a hash of its uid, what was denied and why, and the time.
fn name(pod: &str, uid: &str, kind: DeniedKind, first: Timestamp) -> String {
    let ([what, _], reason) = (kind.what(), kind.reason());
    let digest = ring::digest::digest(&ring::digest::SHA256, format!("{uid} {what} {reason} {first}").as_bytes());
    let pod: String = pod.chars().take(230).collect();
    // Of a pod's name everything but a dot at the end may come before a dot.
    format!("{}.{}", pod.trim_end_matches(['.', '-']), HEXLOWER.encode(digest.as_ref().get(..8).unwrap_or_default()))
}

/// Writes the reports of sidecars as events, for ever.
pub async fn write(client: Client, mut reports: mpsc::Receiver<EventReport>, metrics: EventMetrics) {
    let (mut denials, mut drifts, mut approvals) = (Ledger::default(), DriftLedger::default(), VecDeque::new());
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            report = reports.recv() => match report {
                Some(report) => {
                    let (now, time) = (Instant::now(), Timestamp::now());
                    let is_whole = match report {
                        EventReport::Denials(report) => denials.add(report, now, time) == 0,
                        EventReport::Drift(drifted) => drifts.add(drifted, now, time) == 0,
                        EventReport::Approval(_) if approvals.len() >= APPROVALS => false,
                        EventReport::Approval(notice) => {
                            approvals.push_back(*notice);
                            true
                        }
                    };
                    if !is_whole {
                        metrics.count_no_room();
                    }
                }
                // No stream is left that could report anything.
                None => return std::future::pending().await,
            },
            _ = look.tick() => {
                let now = Instant::now();
                let of_approvals: Vec<EventNotice> = approvals.drain(..approvals.len().min(ROUND)).collect();
                for notice in of_approvals.into_iter().chain(denials.due(now)).chain(drifts.due(now)) {
                    let written = apply(&client, &notice).await;
                    if let Err(error) = &written {
                        tracing::warn!(%error, kind = notice.regarding.kind, object = %notice.regarding, "an event cannot be written");
                    }
                    metrics.events.with_label_values(&[if written.is_ok() { "ok" } else { "failed" }]).inc();
                }
            }
        }
    }
}

async fn apply(client: &Client, notice: &EventNotice) -> Result<(), kube::Error> {
    let api: Api<Event> = Api::namespaced(client.clone(), &notice.regarding.namespace);
    api.patch(&notice.name, &PatchParams::apply(COMPONENT).force(), &Patch::Apply(&notice.event())).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(pod: &str, denials: &[(&str, &str, u64)]) -> DenialReport {
        let denied = |(reason, tool, count): &(&str, &str, u64)| Denied {
            policy: "agents/facebook".to_owned(),
            reason: (*reason).to_owned(),
            server: "facebook".to_owned(),
            operation: String::new(),
            tool: (*tool).to_owned(),
            destination: None,
            count: *count,
        };
        let pod = PodKey { namespace: "agents".to_owned(), name: pod.to_owned() };
        DenialReport { uid: format!("uid-{}", pod.name), pod, denials: denials.iter().map(denied).collect() }
    }

    fn time(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn the_first_denial_is_told_at_once_and_then_once_a_minute() {
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        ledger.add(told("a", &[("rate_limit", "send", 2)]), start, time(0));
        let first = ledger.due(start);
        assert_eq!(first.len(), 1);
        assert_eq!(first[0].message, "2 tool calls denied, over a limit (rate_limit), by agents/facebook: send on facebook.");
        ledger.add(told("a", &[("rate_limit", "send", 1)]), after(5), time(5));
        ledger.add(told("a", &[("rate_limit", "pay", 1)]), after(30), time(30));
        assert_eq!(ledger.due(after(59)), []);
        let second = ledger.due(after(60));
        assert_eq!((second[0].count, second[0].first, second[0].last), (4, time(0), time(30)));
        assert_eq!(second[0].name, first[0].name, "the same event, counted on");
        assert!(second[0].message.ends_with("pay on facebook, send on facebook."), "{}", second[0].message);
        assert_eq!(ledger.due(after(600)), [], "nothing new, nothing written");
    }

    #[test]
    fn pods_and_reasons_are_told_apart() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        ledger.add(told("a", &[("rate_limit", "send", 1), ("not_listed", "_other", 1)]), now, time(0));
        ledger.add(told("b", &[("rate_limit", "send", 1)]), now, time(0));
        let due = ledger.due(now);
        let names: BTreeSet<&str> = due.iter().map(|notice| notice.name.as_str()).collect();
        assert_eq!((due.len(), names.len()), (3, 3));
    }

    #[test]
    fn connections_are_told_apart_from_calls() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        let connection = |policy: &str, reason: &str, destination: &str, count| Denied {
            policy: policy.to_owned(),
            reason: reason.to_owned(),
            server: String::new(),
            operation: String::new(),
            tool: String::new(),
            destination: Some(destination.to_owned()),
            count,
        };
        let mut report = told("a", &[("invalid_policy", "send", 1)]);
        report.denials.extend([
            connection("agents/out", "not_allowed", "_other", 2),
            connection("agents/out", "not_allowed", "api.example.com", 1),
            connection("", "invalid_policy", "_address", 1),
            // A reason of calls alone.
            connection("agents/out", "rate_limit", "_other", 9),
        ]);
        assert_eq!(shorten(report.denials.clone()).len(), 4);
        ledger.add(report, now, time(0));
        let due: Vec<(&str, String)> = ledger.due(now).into_iter().map(|notice| (notice.reason, notice.message)).collect();
        let cannot = "a policy cannot be enforced as it is written (invalid_policy)";
        assert_eq!(
            due,
            [
                ("ToolCallDenied", format!("1 tool call denied, {cannot}, by agents/facebook: send on facebook.")),
                ("ConnectionDenied", format!("1 connection denied, {cannot}: _address.")),
                (
                    "ConnectionDenied",
                    "3 connections denied, no rule allows the destination (not_allowed), by agents/out: _other, api.example.com."
                        .to_owned()
                ),
            ]
        );
    }

    #[test]
    fn other_operations_are_told_by_their_kind() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        let of = |method: &str, reason: &str, name: &str, count| {
            let mut told = told("a", &[(reason, name, count)]);
            told.denials[0].operation = method.to_owned();
            told
        };
        for report in [
            told("a", &[("not_listed", "review", 1)]),
            of("prompts/get", "not_listed", "review", 2),
            of("prompts/get", "no_policy", "review", 1),
            of("resources/read", "denied", "file:///a", 1),
            of("resources/subscribe", "denied", "file:///b", 1),
            of("sampling/createMessage", "no_policy", "sampling", 2),
            of("logging/setLevel", "not_listed", "logging/setLevel", 1),
            of("_other", "not_listed", "_other", 1),
        ] {
            ledger.add(report, now, time(0));
        }
        let due: Vec<_> = ledger.due(now).into_iter().map(|notice| (notice.reason, notice.message)).collect();
        let message = |said: &str| ("OperationDenied", said.to_owned());
        assert_eq!(
            due,
            [
                (
                    "ToolCallDenied",
                    "1 tool call denied, no entry allows the tool (not_listed), by agents/facebook: review on facebook."
                        .to_owned()
                ),
                message(
                    "1 use of a prompt denied, no policy has a say in prompts (no_policy), by agents/facebook: review on facebook."
                ),
                message(
                    "2 uses of prompts denied, no entry allows the prompt (not_listed), by agents/facebook: review on facebook."
                ),
                message(
                    "2 reads of resources denied, an entry denies the resource (denied), by agents/facebook: file:///a on facebook, \
                     file:///b on facebook."
                ),
                message(
                    "2 requests of servers denied, no policy has a say in requests of the server (no_policy), by agents/facebook: \
                     sampling on facebook."
                ),
                message(
                    "2 other requests denied, no policy allows the method (not_listed), by agents/facebook: _other on facebook, \
                     logging/setLevel on facebook."
                ),
            ]
        );
    }

    #[test]
    fn an_event_begins_anew_after_half_an_hour() {
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        ledger.add(told("a", &[("denied", "x", 7)]), start, time(0));
        let first = ledger.due(start);
        let later = start + FORGET;
        assert_eq!(ledger.due(later), []);
        ledger.add(told("a", &[("denied", "x", 1)]), later, time(1800));
        let second = ledger.due(later);
        assert_eq!((second.len(), second[0].count), (1, 1));
        assert_ne!(first[0].name, second[0].name);
    }

    #[test]
    fn what_a_sidecar_says_is_bounded_and_shown_as_text() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        assert_eq!(ledger.add(told("a", &[("invented", "x", 1), ("none", "x", 1)]), now, time(0)), 0);
        assert_eq!(ledger.due(now), []);
        let long = "x".repeat(10_000);
        for tool in 0..100 {
            ledger.add(told("a", &[("denied", &format!("t{tool}\n{long}"), u64::MAX)]), now, time(0));
        }
        let due = ledger.due(now);
        assert_eq!(due[0].count, u64::MAX);
        assert!(due[0].message.len() < 1000 && !due[0].message.contains('\n'), "{}", due[0].message);
        assert!(due[0].message.ends_with(", ...."));
        let mut lost = 0;
        for pod in 0..=MOST {
            lost += ledger.add(told(&format!("p{pod}"), &[("denied", "x", 3)]), now, time(0));
        }
        assert_eq!(lost, 6, "one pod is there already");
        assert_eq!(ledger.due(now).len(), ROUND);
    }

    #[test]
    fn a_name_is_one_that_the_api_takes() {
        for pod in ["a", "agent-5d89989cc4-b6rsm", &"a".repeat(253), &format!("{}.b", "a".repeat(229))] {
            let name = name(pod, "uid", DeniedKind::Call(Reason::Denied), time(0));
            assert!(name.len() <= 253 && !name.contains("..") && !name.contains("-."), "{name}");
        }
    }
}
