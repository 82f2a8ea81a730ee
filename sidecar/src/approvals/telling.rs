//! Tells what happened to requests for approval: in the audit log, in the log, in metrics, and to whoever follows.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use tokio::sync::watch;
use toolweir_approvals::{ApprovalChange, ApprovalStep, Book, WaitingApproval};
use toolweir_crds::approval_request::ApprovalReport;

use crate::{
    audit::{self, ApprovalLine, Audit},
    metrics::SidecarMetrics,
};

/// What others are told of a book.
#[derive(Clone, Debug, Default)]
pub struct ToldApprovals {
    /// What the operator is told.
    pub report: Arc<ApprovalReport>,
    /// What waits for a person, oldest first.
    pub waiting: Arc<[WaitingApproval]>,
}

/// A version of the book that is not told yet.
#[derive(Debug)]
pub(super) struct UntoldBook {
    pub version: u64,
    pub told: ToldApprovals,
    pub changes: Vec<ApprovalChange>,
}

impl UntoldBook {
    /// A version of a book, with the changes since the last one that was told.
    pub fn new(version: u64, book: &Book, changes: Vec<ApprovalChange>) -> Self {
        let told = ToldApprovals { report: Arc::new(book.report()), waiting: book.waiting().into() };
        Self { version, told, changes }
    }
}

/// Tells what happened.
#[derive(Debug)]
pub(super) struct Teller {
    metrics: Arc<SidecarMetrics>,
    audit: Audit,
    /// The namespace of the pod; empty where it is not known.
    namespace: String,
    told: watch::Sender<ToldApprovals>,
    /// Servers whose gauges were set.
    servers: Mutex<Vec<Arc<str>>>,
}

impl Teller {
    pub fn new(metrics: Arc<SidecarMetrics>, audit: Audit, namespace: String) -> Self {
        Self { metrics, audit, namespace, told: watch::Sender::default(), servers: Mutex::default() }
    }

    /// What was told last, and all that follows.
    pub fn told(&self) -> watch::Receiver<ToldApprovals> {
        self.told.subscribe()
    }

    /// The name of a request as people and agents are shown it.
    pub fn shown_name(&self, name: &str) -> Arc<str> {
        if self.namespace.is_empty() { name.into() } else { format!("{}/{name}", self.namespace).into() }
    }

    /// Tells what has changed, and how the book is now.
    pub fn tell(&self, told: ToldApprovals, changes: &[ApprovalChange]) {
        for change in changes {
            self.tell_of(change);
        }
        self.set_waiting(&told.waiting);
        self.told.send_replace(told);
    }

    fn set_waiting(&self, waiting: &[WaitingApproval]) {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        for waiting in waiting {
            if !servers.iter().any(|server| **server == *waiting.request.server) {
                servers.push(waiting.request.server.as_str().into());
            }
        }
        for server in servers.iter() {
            let count = waiting.iter().filter(|waiting| *waiting.request.server == **server).count();
            self.metrics.approvals.set_waiting(server, count);
        }
    }

    fn tell_of(&self, change: &ApprovalChange) {
        let ApprovalChange { step, name, request, by, reason, waited } = change;
        let metrics = &self.metrics.approvals;
        metrics.count(&request.server, step.as_str());
        if let Some(waited) = waited.filter(|_| matches!(step, ApprovalStep::Approved | ApprovalStep::Denied)) {
            metrics.decided_after(&request.server, waited);
        }
        let policies: Vec<String> = request.policies.iter().map(ToString::to_string).collect();
        let name = self.shown_name(name);
        tracing::info!(approval = %name, server = request.server, tool = request.tool, step = step.as_str(), by, "approval");
        self.audit.write(&ApprovalLine {
            time: audit::timestamp(SystemTime::now()),
            event: "approval",
            step: step.as_str(),
            approval: &name,
            server: &request.server,
            tool: &request.tool,
            policies: &policies,
            by: by.as_deref(),
            reason: reason.as_deref(),
            arguments_sha256: &request.arguments_sha256,
        });
    }
}
