//! What became of TLS that the sidecar opens.

use prometheus::{IntCounterVec, IntGaugeVec};

use super::handshake::HandshakeError;
use crate::registry::MetricsRegistry;

/// The label `result` of a handshake after which requests are governed.
const COMPLETED: &str = "completed";
/// The values of the label `result`.
const RESULTS: [&str; 4] = [COMPLETED, "refused", "failed", "timeout"];

/// Metrics of interception.
#[derive(Debug)]
pub struct InterceptionMetrics {
    /// `toolweir_interception_handshakes_total`
    handshakes: IntCounterVec,
    /// `toolweir_interception_ready`
    ready: IntGaugeVec,
}

impl InterceptionMetrics {
    /// Registers the metrics. Each result begins at 0.
    ///
    /// # Errors
    /// They are registered already.
    pub fn new(registry: &MetricsRegistry) -> Result<Self, prometheus::Error> {
        let handshakes = registry.counters(
            "toolweir_interception_handshakes_total",
            "TLS handshakes of captured agents with the sidecar in place of a declared server, by how they ended.",
            &["result"],
        )?;
        for result in RESULTS {
            handshakes.with_label_values(&[result]);
        }
        let ready = registry.int_gauges(
            "toolweir_interception_ready",
            "Whether TLS to a server with `tls: Intercept` is opened: 1, or 0 where the pod is to be created anew.",
            &["server"],
        )?;
        Ok(Self { handshakes, ready })
    }

    /// Counts a handshake.
    pub fn count<T>(&self, result: &Result<T, HandshakeError>) {
        let result = result.as_ref().map_or_else(HandshakeError::as_str, |_| COMPLETED);
        self.handshakes.with_label_values(&[result]).inc();
    }

    /// Shows which servers are ready, and no others.
    pub fn show_ready<'a>(&self, servers: impl Iterator<Item = (&'a str, bool)>) {
        self.ready.reset();
        for (server, ready) in servers {
            self.ready.with_label_values(&[server]).set(ready.into());
        }
    }
}
