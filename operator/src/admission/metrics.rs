//! The metrics of the webhooks.

use prometheus::{Histogram, IntCounterVec};

use crate::{captured::CaptureRefusal, inject::SkipReason, metrics::OperatorRegistry};

/// The closed set of the label `result` of `toolweir_operator_admissions_total`.
pub const RESULTS: [&str; 5] = ["injected", "skipped", "allowed", "refused", "error"];
/// Labels that begin at 0, besides the reasons to skip a pod.
const AT_ZERO: [[&str; 3]; 17] = [
    ["inject", "injected", ""],
    ["inject", "refused", "Invalid"],
    ["inject", "refused", "NotReady"],
    ["inject", "refused", "TooComplex"],
    ["inject", "error", "Unreadable"],
    ["inject", "error", "Busy"],
    ["check", "allowed", ""],
    ["check", "refused", "Invalid"],
    ["check", "refused", "NotReady"],
    ["check", "refused", "TooComplex"],
    ["check", "error", "Unreadable"],
    ["check", "error", "Busy"],
    ["validate", "allowed", ""],
    ["validate", "refused", "Invalid"],
    ["validate", "refused", "TooComplex"],
    ["validate", "error", "Unreadable"],
    ["validate", "error", "Busy"],
];
/// The closed set of its label `reason`, together with [`SkipReason::ALL`], [`CaptureRefusal::ALL`] and the empty one.
pub const REASONS: [&str; 9] =
    ["Unchanged", "Invalid", "NotAPod", "NotAPolicy", "NotReady", "NamespaceUnknown", "TooComplex", "Unreadable", "Busy"];

/// The metrics of the webhooks.
#[derive(Clone, Debug)]
pub struct AdmissionMetrics {
    /// Admission reviews, by webhook, result and reason.
    pub admissions: IntCounterVec,
    /// The time that the admission of a pod takes here.
    pub duration: Histogram,
}

impl AdmissionMetrics {
    /// Registers the metrics. The results of each webhook that are usual begin at 0.
    ///
    /// # Errors
    /// Those of [`OperatorRegistry::counter`].
    pub fn new(registry: &OperatorRegistry) -> Result<Self, prometheus::Error> {
        let admissions = registry.counters(
            "toolweir_operator_admissions_total",
            "Admission reviews by webhook (inject, check, validate), result and reason.",
            &["webhook", "result", "reason"],
        )?;
        for skip in SkipReason::ALL {
            admissions.with_label_values(&["inject", "skipped", skip.as_str()]);
        }
        for refusal in CaptureRefusal::ALL {
            admissions.with_label_values(&["check", "refused", refusal.as_str()]);
        }
        for labels in AT_ZERO {
            admissions.with_label_values(&labels);
        }
        let buckets = vec![0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0];
        let help = "Time that the admission of a pod takes here.";
        let duration = registry.histogram("toolweir_operator_admission_duration_seconds", help, buckets)?;
        Ok(Self { admissions, duration })
    }
}
