//! The metrics of approvals.

use prometheus::{IntCounterVec, IntGaugeVec};
use toolweir_crds::approval_request::ApprovalState;

use super::records::ApprovalRecords;
use crate::metrics::OperatorRegistry;

/// What is written: the label `operation` of `toolweir_operator_approval_writes_total`.
pub const OPERATIONS: [&str; 3] = ["create", "status", "delete"];
/// What became of a write: the label `result` of the same.
pub const WRITE_RESULTS: [&str; 5] = ["ok", "conflict", "gone", "refused", "failed"];
/// What became of a message: the label `result` of `toolweir_operator_webhook_deliveries_total`.
pub const DELIVERY_RESULTS: [&str; 3] = ["ok", "failed", "dropped"];

/// The metrics of approvals.
#[derive(Clone, Debug)]
pub struct MCPApprovalMetrics {
    /// Objects by state, at the replica that leads.
    approvals: IntGaugeVec,
    writes: IntCounterVec,
    /// 1 if the API server checks who decides. There is none where approvals are off.
    guarded: IntGaugeVec,
    deliveries: IntCounterVec,
}

impl MCPApprovalMetrics {
    /// Registers the metrics, with every value at 0.
    ///
    /// # Errors
    /// Those of [`OperatorRegistry::counter`].
    pub fn new(registry: &OperatorRegistry) -> Result<Self, prometheus::Error> {
        let help = "MCPApprovals by state. At the replica that leads.";
        let approvals = registry.gauges("toolweir_operator_approvals", help, &["state"])?;
        let help = "Writes of MCPApprovals, by operation and result.";
        let writes = registry.counters("toolweir_operator_approval_writes_total", help, &["operation", "result"])?;
        for operation in OPERATIONS {
            for result in WRITE_RESULTS {
                writes.with_label_values(&[operation, result]);
            }
        }
        let help = "1 if the API server checks who decides on MCPApprovals.";
        let guarded = registry.gauges("toolweir_operator_approvals_guarded", help, &[])?;
        let help = "Messages to the webhook of approvals, by result.";
        let name = "toolweir_operator_webhook_deliveries_total";
        let deliveries = registry.counters_at_zero(name, help, "result", DELIVERY_RESULTS)?;
        let metrics = Self { approvals, writes, guarded, deliveries };
        metrics.forget();
        Ok(metrics)
    }

    /// Sets whether the API server checks who decides.
    pub fn set_guarded(&self, is_guarded: bool) {
        self.guarded.with_label_values::<&str>(&[]).set(i64::from(is_guarded));
    }

    /// Counts a write.
    pub fn count_write(&self, operation: &'static str, result: &'static str) {
        self.writes.with_label_values(&[operation, result]).inc();
    }

    /// Counts a message to the webhook.
    pub fn count_delivery(&self, result: &'static str) {
        self.deliveries.with_label_values(&[result]).inc();
    }

    /// Sets how many objects there are of each state.
    pub fn set(&self, records: &ApprovalRecords) {
        for (state, count) in records.tally() {
            self.approvals.with_label_values(&[state.as_str()]).set(count);
        }
    }

    /// Sets these to 0: another replica leads.
    pub fn forget(&self) {
        for state in ApprovalState::ALL {
            self.approvals.with_label_values(&[state.as_str()]).set(0);
        }
    }
}
