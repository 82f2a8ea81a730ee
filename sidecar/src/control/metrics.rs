//! Metrics of the policy stream.

use prometheus::IntCounterVec;

use super::{client, wire};
use crate::registry::MetricsRegistry;

/// Attempts to open the policy stream, their ends, and what came.
#[derive(Debug)]
pub struct ControlPlaneMetrics {
    /// `toolweir_control_plane_connects_total`: attempts to open the policy stream, by their end.
    pub connects: IntCounterVec,
    /// `toolweir_control_plane_disconnects_total`: policy streams that ended, by how.
    pub disconnects: IntCounterVec,
    /// `toolweir_control_plane_messages_total`: what came on policy streams.
    pub messages: IntCounterVec,
}

impl ControlPlaneMetrics {
    /// Registers the metrics. Each begins at 0, so that the first of its kind is seen as a rise.
    ///
    /// # Errors
    /// They are registered already.
    pub fn new(registry: &MetricsRegistry) -> Result<Self, prometheus::Error> {
        let connects = registry.counters(
            "toolweir_control_plane_connects_total",
            "Attempts to open the policy stream, by their end.",
            &["result"],
        )?;
        let disconnects =
            registry.counters("toolweir_control_plane_disconnects_total", "Policy streams that ended, by how.", &["end"])?;
        let messages = registry.counters("toolweir_control_plane_messages_total", "What came on policy streams.", &["kind"])?;
        for result in client::RESULTS {
            connects.with_label_values(&[result]);
        }
        for end in client::ENDS {
            disconnects.with_label_values(&[end]);
        }
        for kind in wire::KINDS {
            messages.with_label_values(&[kind]);
        }
        Ok(Self { connects, disconnects, messages })
    }
}
