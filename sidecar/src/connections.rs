//! Metrics of clients' connections, and of what is held for them.

use prometheus::{IntCounterVec, IntGauge};

use crate::registry::MetricsRegistry;

/// Connections that are closed to stay within bounds: the labels `port` and `cause`.
pub const CLOSED: [(&str, &str); 6] = [
    ("proxy", "too_many"),
    ("proxy", "not_read"),
    ("metrics", "too_many"),
    ("metrics", "not_read"),
    ("admin", "too_many"),
    ("admin", "not_read"),
];

/// Connections of clients, and what is held for them.
#[derive(Debug)]
pub struct ConnectionMetrics {
    /// `toolweir_connections`: connections that are open.
    pub open: IntGauge,
    /// `toolweir_connections_closed_total`: connections that were closed to stay within bounds.
    pub closed: IntCounterVec,
    /// `toolweir_held_bytes`: bytes of bodies and answers that are held.
    pub held_bytes: IntGauge,
}

impl ConnectionMetrics {
    /// Registers the metrics. Those of [`CLOSED`] begin at 0.
    ///
    /// # Errors
    /// They are registered already.
    pub fn new(registry: &MetricsRegistry) -> Result<Self, prometheus::Error> {
        let closed = registry.counters(
            "toolweir_connections_closed_total",
            "Connections that the sidecar closed to stay within its bounds, by port and by cause.",
            &["port", "cause"],
        )?;
        for (port, cause) in CLOSED {
            closed.with_label_values(&[port, cause]);
        }
        Ok(Self {
            open: registry.int_gauge("toolweir_connections", "Open connections of clients.")?,
            closed,
            held_bytes: registry.int_gauge(
                "toolweir_held_bytes",
                "Bytes that are held: of bodies while their meaning is decided, and of answers that wait for their clients.",
            )?,
        })
    }
}
