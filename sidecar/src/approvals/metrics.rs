//! Metrics of approvals.

use std::time::Duration;

use prometheus::{HistogramVec, IntCounterVec, IntGauge, IntGaugeVec};

use crate::registry::MetricsRegistry;

/// What can become of a request for approval, or of a call that would make one: the label `outcome`.
pub const OUTCOMES: [&str; 9] =
    ["requested", "approved", "denied", "expired", "voided", "used", "returned", "full", "unavailable"];
/// Buckets from a second, which somebody takes who was waiting for it, to a day, which is the longest that a request waits.
const DECISION_BUCKETS: [f64; 12] = [1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 21_600.0, 86_400.0];

/// Requests for approval, by server, and the calls that wait for them.
#[derive(Debug)]
pub struct ApprovalMetrics {
    /// `toolweir_approvals_total`
    total: IntCounterVec,
    /// `toolweir_approvals_waiting`
    waiting: IntGaugeVec,
    /// `toolweir_approval_decision_seconds`
    decision_seconds: HistogramVec,
    /// `toolweir_approvals_held`: calls that wait for a person now.
    pub held: IntGauge,
}

impl ApprovalMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// They are registered already.
    pub fn new(registry: &MetricsRegistry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            total: registry.counters(
                "toolweir_approvals_total",
                "Requests for approval by what became of them, and calls that could not make one.",
                &["server", "outcome"],
            )?,
            waiting: registry.int_gauges(
                "toolweir_approvals_waiting",
                "Requests for approval that wait for a person now.",
                &["server"],
            )?,
            decision_seconds: registry.histograms(
                "toolweir_approval_decision_seconds",
                "Time from a request for approval to the decision of a person.",
                &DECISION_BUCKETS,
                &["server"],
            )?,
            held: registry.int_gauge("toolweir_approvals_held", "Calls that wait for a person now.")?,
        })
    }

    /// Begins the series of a server at 0, so that the first of each is seen as a rise.
    pub fn begin(&self, server: &str) {
        for outcome in OUTCOMES {
            self.total.with_label_values(&[server, outcome]);
        }
        self.waiting.with_label_values(&[server]);
        self.decision_seconds.with_label_values(&[server]);
    }

    /// Counts an outcome.
    pub fn count(&self, server: &str, outcome: &str) {
        self.total.with_label_values(&[server, outcome]).inc();
    }

    /// Counts the decision of a person, so long after it was asked for.
    pub fn decided_after(&self, server: &str, waited: Duration) {
        self.decision_seconds.with_label_values(&[server]).observe(waited.as_secs_f64());
    }

    /// Sets how many requests for calls of a server wait.
    pub fn set_waiting(&self, server: &str, count: usize) {
        self.waiting.with_label_values(&[server]).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}
