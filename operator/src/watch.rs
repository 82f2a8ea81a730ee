//! Watches on the API server that fail.

use std::fmt::Display;

use prometheus::IntCounterVec;

use crate::metrics::OperatorRegistry;

/// The resources that are watched: the label `resource` of `toolweir_operator_watch_failures_total`.
pub const RESOURCES: [&str; 9] = [
    "namespaces",
    "pods",
    "mcppolicies",
    "mcpclusterpolicies",
    "mcptoolpins",
    "mcpapprovals",
    "configmaps",
    "mutatingwebhookconfigurations",
    "validatingwebhookconfigurations",
];

/// Counts and logs watches that failed and are begun anew.
#[derive(Clone, Debug)]
pub struct WatchFailures(IntCounterVec);

impl WatchFailures {
    /// Registers the metric.
    ///
    /// # Errors
    /// Those of [`OperatorRegistry::counter`].
    pub fn new(registry: &OperatorRegistry) -> Result<Self, prometheus::Error> {
        let help = "Watches on the API server that failed and were begun anew.";
        registry.counters_at_zero("toolweir_operator_watch_failures_total", help, "resource", RESOURCES).map(Self)
    }

    /// Counts and logs a failure.
    pub fn report(&self, resource: &str, error: &dyn Display) {
        self.0.with_label_values(&[resource]).inc();
        tracing::warn!(%error, resource, "watch failed; it is begun anew");
    }
}
