//! The audit record of one call, or of another operation.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Instant, SystemTime},
};

use toolweir_crds::{
    OnStoreFailure, OperationKind, PartSet, ToolClass,
    bounds::{RESOURCE_URI, SERVER_NAME, TOOL_NAME},
};
use toolweir_engine::{Call, Reason, json::Raw};

use crate::{
    audit::{self, Audit, AuditedArguments},
    outcome::Outcome,
};

/// The most characters of a method that are written.
const LONGEST_METHOD: usize = 128;

/// When a request came.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// For durations.
    pub instant: Instant,
    /// For the log.
    pub time: SystemTime,
}

impl Arrival {
    /// The present moment.
    pub fn now() -> Self {
        Self { instant: Instant::now(), time: SystemTime::now() }
    }
}

/// The parts of a decision that stand in the audit line.
#[derive(Debug)]
pub struct RecordedDecision {
    /// `allowed`, `denied`, `would_deny` or `would_ask`.
    pub decision: &'static str,
    /// Why.
    pub reason: Reason,
    /// The policy that decided.
    pub policy: Option<Arc<str>>,
    /// The entry of that policy.
    pub entry: Option<Arc<str>>,
    /// The fallback, where the shared store did not answer.
    pub store_fallback: Option<OnStoreFailure>,
    /// The class of the tool, where policies of the server read definitions.
    pub class: Option<ToolClass>,
    /// The parts of the tool's definition that are not as pins of a policy have them; nothing where no pins have the tool.
    pub drift: Option<PartSet>,
    /// The name of the request for approval, where there is one.
    pub approval: Option<Arc<str>>,
}

/// Returns the most characters of a name that are written: what is longer is no name that policies know.
fn longest_name(kind: OperationKind) -> usize {
    if kind == OperationKind::Resource { RESOURCE_URI } else { TOOL_NAME }
}

/// Returns the beginning of a text: at most so many characters.
fn beginning(text: &str, most: usize) -> String {
    if text.len() <= most { text.to_owned() } else { text.chars().take(most).collect() }
}

/// The record of one call. Dropped, it writes the audit line, so that none is missing when the client hangs up.
#[derive(Debug)]
pub struct Record {
    audit: Audit,
    arrived: Arrival,
    server: String,
    kind: OperationKind,
    method: String,
    name: String,
    decision: RecordedDecision,
    session: Option<String>,
    arguments_sha256: Option<String>,
    arguments: Option<AuditedArguments>,
    outcome: Outcome,
    cancelled: Option<Arc<AtomicBool>>,
    is_forgotten: bool,
}

impl Record {
    /// The record of a call on which this was decided, with its arguments or with their hash alone.
    pub fn new(audit: &Audit, call: &Call<'_>, arrived: Arrival, decision: RecordedDecision, with_arguments: bool) -> Self {
        Self {
            audit: audit.clone(),
            arrived,
            server: beginning(call.server, SERVER_NAME),
            kind: call.operation.kind,
            // Of a call of a tool, the line has none.
            method: if call.operation.kind == OperationKind::Tool {
                String::new()
            } else {
                beginning(call.operation.method, LONGEST_METHOD)
            },
            name: beginning(call.operation.name, longest_name(call.operation.kind)),
            decision,
            session: audit::session_hash(call.session),
            arguments_sha256: call.arguments.map(|raw: Raw<'_>| audit::sha256(raw.as_str().as_bytes())),
            arguments: call.arguments.filter(|_| with_arguments).map(|raw| AuditedArguments::of(raw.as_str())),
            outcome: Outcome::ClientGone,
            cancelled: None,
            is_forgotten: false,
        }
    }

    /// Names the request for approval of the call.
    pub fn set_approval(&mut self, name: Arc<str>) {
        self.decision.approval = Some(name);
    }

    /// Records the call as `cancelled`, whatever else became of it, if the flag is up by then.
    pub fn cancelled_by(&mut self, flag: Arc<AtomicBool>) {
        self.cancelled = Some(flag);
    }

    /// Returns `outcome`, or `Cancelled` if the call was cancelled.
    pub fn outcome_unless_cancelled(&self, outcome: Outcome) -> Outcome {
        let cancelled = self.cancelled.as_ref().is_some_and(|cancelled| cancelled.load(Ordering::Relaxed));
        if cancelled { Outcome::Cancelled } else { outcome }
    }

    /// Writes no line: it is counted, and so many like it were written that one more says nothing.
    pub fn forget(mut self) {
        self.is_forgotten = true;
    }

    /// Sets what became of the call, and writes the line.
    pub fn finish(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.is_forgotten {
            return;
        }
        self.outcome = self.outcome_unless_cancelled(self.outcome);
        let RecordedDecision { decision, reason, policy, entry, store_fallback, class, drift, approval } = &self.decision;
        self.audit.write(&audit::AuditLine {
            time: audit::timestamp(self.arrived.time),
            server: &self.server,
            tool: (self.kind == OperationKind::Tool).then_some(&self.name),
            operation: (self.kind != OperationKind::Tool).then_some(&self.method),
            name: (self.kind != OperationKind::Tool).then_some(&self.name),
            kind: (self.kind != OperationKind::Tool && self.kind != OperationKind::of_method(&self.method))
                .then_some(self.kind.noun()),
            decision,
            reason: reason.as_str(),
            policy: policy.as_deref(),
            entry: entry.as_deref(),
            shared_store: store_fallback.map(OnStoreFailure::as_str),
            class: class.map(ToolClass::as_str),
            drift: *drift,
            approval: approval.as_deref(),
            outcome: self.outcome.as_str(),
            latency_ms: (self.arrived.instant.elapsed().as_secs_f64() * 1e6).round() / 1e3,
            session: self.session.take(),
            arguments_sha256: self.arguments_sha256.take(),
            arguments: self.arguments.as_ref().and_then(AuditedArguments::text),
            arguments_too_large: self.arguments.as_ref().is_some_and(AuditedArguments::is_too_large),
        });
    }
}
