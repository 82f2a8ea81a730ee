//! What a replay found.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, UNIX_EPOCH},
};

use serde::Serialize;
use toolweir_crds::{OperationKind, text::escaped};
use toolweir_engine::{Decision, Reason};

use crate::{
    audit_line::RecordedEffect,
    log_engine::Unknowns,
    names::{MOST_NAMES, NamedOperation},
    recording::RecordedCall,
};

/// The number of damaged lines that are named.
const MOST_DAMAGES: usize = 20;
/// The number of servers that a note names.
const MOST_SERVERS: usize = 5;
/// The characters that a note shows of a server's name.
const SERVER_NAME: usize = 63;

/// What would have been decided otherwise. Its JSON form is documented, and stays.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplayReport {
    /// The number of logs.
    pub logs: usize,
    /// The number of calls and other operations that were decided anew.
    pub calls: u64,
    /// The number of those that are no calls of tools, by method.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub operations: BTreeMap<String, u64>,
    /// When the first came, in RFC 3339.
    pub from: Option<String>,
    /// When the last came.
    pub to: Option<String>,
    /// The number of calls on which the same was decided, for the same reason.
    pub unchanged: u64,
    /// The number of calls of each kind of change.
    pub changed: BTreeMap<DecisionChange, u64>,
    /// The changes, by kind, server, operation, tool and reason.
    pub changes: Vec<Change>,
    /// The calls that were not decided anew, by reason: they were turned away before any policy was asked (`malformed`), or there are
    /// too many names (`too_many_names`).
    pub not_decided: BTreeMap<String, u64>,
    /// The number of lines that are no calls.
    pub skipped_lines: SkippedLines,
    /// The first damaged lines.
    pub damages: Vec<Damage>,
    /// What to keep in mind about the result.
    pub notes: Vec<String>,
}

/// A kind of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DecisionChange {
    /// It was let through, or a person was asked, and it would be denied.
    NewlyDenied,
    /// A person would be asked, who was not.
    NewlyAsks,
    /// It was denied, or a person was asked, and it would be let through.
    NewlyAllowed,
    /// It was allowed, and a policy in audit mode would object: deny it, or ask a person.
    NewlyWouldDeny,
    /// A policy in audit mode objected, and none would.
    NoLongerWouldDeny,
    /// As before, for another reason.
    OtherReason,
    /// It depends on what the log does not have.
    Unknown,
}

/// Calls of one tool on which something else would be decided, for one reason.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// What changes.
    pub change: DecisionChange,
    /// The server.
    pub server: String,
    /// The method of what is no call of a tool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// The tool, or what else was named.
    pub tool: String,
    /// Why it would be denied; for what is no longer denied, why it was; for what is unknown, what is missing: `arguments`,
    /// `session`, `class` and `pins`, or several of these, such as `arguments and session`.
    pub reason: &'static str,
    /// The number of calls.
    pub calls: u64,
    /// The first of them.
    pub examples: Vec<Example>,
}

/// A call of a [`Change`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Example {
    /// When it came, in RFC 3339.
    pub time: String,
    /// Its log.
    pub log: String,
    /// Its line there, from 1.
    pub line: u32,
    /// The policy that would decide.
    pub policy: Option<String>,
    /// The entry of that policy.
    pub entry: Option<String>,
}

/// The numbers of lines that are no calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SkippedLines {
    /// Audit lines of captured connections.
    pub connections: u64,
    /// Audit lines of steps of requests for approval.
    pub approvals: u64,
    /// Lines that are no audit lines.
    pub other: u64,
    /// Audit lines that cannot be read.
    pub damaged: u64,
}

/// An audit line that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// The log.
    pub log: String,
    /// The line there, from 1.
    pub line: u32,
    /// Why.
    pub why: String,
}

/// A change as it is counted: its kind, the number of the name, and the reason.
type ChangeKey = (DecisionChange, u32, &'static str);

/// Gathers a [`ReplayReport`].
#[derive(Debug)]
pub struct ReportWriter {
    pub skipped: SkippedLines,
    most_examples: usize,
    report: ReplayReport,
    first: u64,
    last: u64,
    store_silent: u64,
    /// True if a decision depended on how many calls were in flight.
    counts_places: bool,
    changes: HashMap<ChangeKey, Change>,
}

impl ReportWriter {
    /// Begins a report with up to so many examples of each change.
    pub fn new(examples: usize) -> Self {
        Self {
            skipped: SkippedLines::default(),
            most_examples: examples,
            report: ReplayReport::default(),
            first: u64::MAX,
            last: 0,
            store_silent: 0,
            counts_places: false,
            changes: HashMap::new(),
        }
    }

    /// Counts a call that was turned away before policies were asked.
    pub fn beyond_policies(&mut self, reason: Reason) {
        *self.report.not_decided.entry(reason.as_str().to_owned()).or_default() += 1;
    }

    /// Counts a call of a tool beyond those that are told apart.
    pub fn unnamed(&mut self) {
        *self.report.not_decided.entry("too_many_names".to_owned()).or_default() += 1;
    }

    /// Counts a damaged line.
    pub fn damaged(&mut self, log: &str, line: u32, why: String) {
        self.skipped.damaged += 1;
        if self.report.damages.len() < MOST_DAMAGES {
            self.report.damages.push(Damage { log: log.to_owned(), line, why });
        }
    }

    /// Counts a call for which the shared store did not answer.
    pub fn store_silent(&mut self, was_silent: bool) {
        self.store_silent += u64::from(was_silent);
    }

    /// Counts a call that was decided anew, perhaps by how many calls were in flight.
    pub fn decided(&mut self, time: u64, named: &NamedOperation, counts_places: bool) {
        if named.kind != OperationKind::Tool {
            match self.report.operations.get_mut(&*named.method) {
                Some(calls) => *calls += 1,
                None => drop(self.report.operations.insert(named.method.to_string(), 1)),
            }
        }
        self.counts_places |= counts_places;
        self.report.calls += 1;
        self.first = self.first.min(time);
        self.last = self.last.max(time);
    }

    /// Compares a decision with what was recorded. `needs` is what it depends on and the log lacks.
    pub fn change(&mut self, decision: &Decision, needs: Unknowns, recorded: &RecordedCall, named: &NamedOperation, log: &str) {
        let Some((kind, reason)) = compare(decision, needs, recorded) else {
            self.report.unchanged += 1;
            return;
        };
        let change = self.changes.entry((kind, recorded.name, reason)).or_insert_with(|| Change {
            change: kind,
            server: named.server.to_string(),
            operation: (named.kind != OperationKind::Tool).then(|| named.method.to_string()),
            tool: named.name.to_string(),
            reason,
            calls: 0,
            examples: Vec::new(),
        });
        change.calls += 1;
        if change.examples.len() < self.most_examples {
            change.examples.push(Example {
                time: rfc3339(recorded.time),
                log: log.to_owned(),
                line: recorded.line,
                policy: decision.policy.as_deref().map(str::to_owned),
                entry: decision.entry.as_deref().map(str::to_owned),
            });
        }
    }

    /// Ends the report on so many logs, and limits of windows up to `longest`.
    pub fn finish(self, logs: usize, longest: Duration) -> ReplayReport {
        let mut report = self.report;
        (report.logs, report.skipped_lines) = (logs, self.skipped);
        if report.calls > 0 {
            (report.from, report.to) = (Some(rfc3339(self.first)), Some(rfc3339(self.last)));
        }
        for change in self.changes.values() {
            *report.changed.entry(change.change).or_default() += change.calls;
        }
        report.changes = self.changes.into_values().collect();
        let place = |change: &Change| (change.change, change.server.clone(), change.operation.clone(), change.tool.clone());
        report.changes.sort_by_cached_key(|change| (place(change), change.reason));
        report.add_notes(longest);
        if self.counts_places {
            report.note("maxConcurrent is approximate: the log has the time to the head of each response, not to its end");
        }
        if self.store_silent > 0 {
            let calls = calls_are(self.store_silent);
            report.note(format!("{calls} recorded while the shared store did not answer; here it always does"));
        }
        report
    }
}

/// Returns the kind of a change and its reason; nothing for a decision that is as before.
fn compare(decision: &Decision, needs: Unknowns, recorded: &RecordedCall) -> Option<(DecisionChange, &'static str)> {
    let (label, reason) = decision.labels();
    let asks = decision.denial().is_some_and(|denial| denial.ask.is_some());
    let is_certain = needs == Unknowns::default();
    let would_ask = asks || label == "would_ask";
    // Whoever is asked is asked before limits are.
    let may_ask = asks || !is_certain && reason > Reason::ApprovalPending;
    let (reason, before) = (reason.as_str(), recorded.reason.as_str());
    if label != "denied" && !is_certain {
        return Some((DecisionChange::Unknown, needs.as_str()));
    }
    // What the log lacks could deny a call for a more severe reason.
    let other = || (reason != before && is_certain).then_some((DecisionChange::OtherReason, reason));
    match (recorded.effect, label) {
        // What a person says is not known here.
        (RecordedEffect::Asked, "denied") if may_ask => None,
        // Nor can anybody be asked about what can be read in two ways.
        (RecordedEffect::Denied | RecordedEffect::WouldDeny, _) if would_ask && recorded.reason == Reason::Malformed => None,
        (RecordedEffect::Denied, "denied") if asks && !is_certain => Some((DecisionChange::Unknown, needs.as_str())),
        (_, "denied") if asks => Some((DecisionChange::NewlyAsks, reason)),
        (RecordedEffect::Denied, "denied") | (RecordedEffect::WouldDeny, "would_deny" | "would_ask") => other(),
        (_, "denied") => Some((DecisionChange::NewlyDenied, reason)),
        (RecordedEffect::Denied | RecordedEffect::Asked, _) => Some((DecisionChange::NewlyAllowed, before)),
        (RecordedEffect::Allowed, "would_deny" | "would_ask") => Some((DecisionChange::NewlyWouldDeny, reason)),
        (RecordedEffect::WouldDeny, _) => Some((DecisionChange::NoLongerWouldDeny, before)),
        (RecordedEffect::Allowed, _) => None,
    }
}

impl ReplayReport {
    /// Returns the number of calls of a kind of change.
    pub fn count(&self, kind: DecisionChange) -> u64 {
        self.changed.get(&kind).copied().unwrap_or(0)
    }

    /// Adds a note.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Adds a note that names the servers on which calls would be denied because no policy governs them, with the remedy.
    pub fn note_ungoverned(&mut self, remedy: &str) {
        if let Some(servers) = self.without_policy(|change| change.operation.is_none()) {
            self.note(format!("no policy names {servers}: {remedy}"));
        }
    }

    /// Returns the servers on which what is chosen would be denied because no policy has a say in it, in words.
    fn without_policy(&self, choose: impl Fn(&Change) -> bool) -> Option<String> {
        let ungoverned = self.changes.iter().filter(|change| {
            matches!(change.change, DecisionChange::NewlyDenied | DecisionChange::OtherReason)
                && change.reason == Reason::NoPolicy.as_str()
                && choose(change)
        });
        let servers: BTreeSet<&str> = ungoverned.map(|change| change.server.as_str()).collect();
        let shown: Vec<String> = servers.iter().take(MOST_SERVERS).map(|server| escaped(server, SERVER_NAME)).collect();
        let more = match servers.len().saturating_sub(MOST_SERVERS) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let plural = if servers.len() == 1 { "" } else { "s" };
        (!shown.is_empty()).then(|| format!("server{plural} {}{more}", shown.join(", ")))
    }

    /// Returns the number of calls that are unknown for the lack of one of these.
    fn unknown_for(&self, lacking: &[&str]) -> u64 {
        let unknown = self.changes.iter().filter(|change| change.change == DecisionChange::Unknown);
        unknown.filter(|change| lacking.iter().any(|what| change.reason.contains(what))).map(|change| change.calls).sum()
    }

    fn add_notes(&mut self, longest: Duration) {
        match self.skipped_lines.damaged {
            0 if self.from.is_none() && self.not_decided.is_empty() => {
                self.note("the logs have no call; give audit logs of sidecars (docs/replay.md)");
            }
            0 => {}
            1 => self.note("1 audit line could not be read and is left out"),
            damaged => self.note(format!("{damaged} audit lines could not be read and are left out")),
        }
        if let Some(from) = self.from.clone().filter(|_| !longest.is_zero()) {
            self.note(format!(
                "limits begin empty at {from}: what was called before does not count, which matters for up to {}",
                humantime::format_duration(longest)
            ));
        }
        if let Some(servers) = self.without_policy(|change| change.operation.is_some()) {
            self.note(format!(
                "no policy says what becomes of prompts, resources, requests or other methods of {servers}, so that these are denied: \
                 write defaultActions, or lists of them (docs/operations.md)"
            ));
        }
        let unknown = self.unknown_for(&["arguments", "session"]);
        if unknown > 0 {
            self.note(format!(
                "{} unknown: conditions read what the logs lack. In limits, these calls count as let through. Logs have arguments where \
                 policies say auditArguments: true",
                calls_are(unknown)
            ));
        }
        let unknown = self.unknown_for(&["class"]);
        if unknown > 0 {
            self.note(format!(
                "{} unknown: entries decide by a class that the logs lack. In limits, these calls count as let through. Logs have classes \
                 where policies had entries for classes, or pins, when the calls came",
                calls_are(unknown)
            ));
        }
        let unknown = self.unknown_for(&["pins"]);
        if unknown > 0 {
            self.note(format!(
                "{} unknown: the logs do not say whether their tools were as pinned. In limits, these calls count as let through. \
                 toolweir drift says how tools compare with pins now",
                calls_are(unknown)
            ));
        }
        if let Some(calls) = self.not_decided.get("too_many_names").copied() {
            self.note(format!("{} left out: there are more than {MOST_NAMES} different tools", calls_are(calls)));
        }
        let refused: u64 = self.not_decided.iter().filter(|(why, _)| *why != "too_many_names").map(|(_, calls)| calls).sum();
        if refused > 0 {
            self.note(format!("{} left out: the sidecar turned them away before it asked policies", calls_are(refused)));
        }
    }
}

fn calls_are(number: u64) -> String {
    if number == 1 { "1 call is".to_owned() } else { format!("{number} calls are") }
}

fn rfc3339(nanos: u64) -> String {
    UNIX_EPOCH
        .checked_add(Duration::from_nanos(nanos))
        .map(|time| humantime::format_rfc3339_millis(time).to_string())
        .unwrap_or_default()
}
