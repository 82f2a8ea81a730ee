//! What became of TLS that the sidecar opens.

use std::sync::atomic::{AtomicBool, Ordering};

use prometheus::{IntCounter, IntCounterVec, IntGaugeVec};

use super::handshake::HandshakeError;
use crate::registry::MetricsRegistry;

/// The label `result` of a handshake after which requests are governed.
const COMPLETED: &str = "completed";
/// The label `result` of one after which the client hung up: some look at the certificate only then.
const UNUSED: &str = "unused";
/// The values of the label `result`.
const RESULTS: [&str; 5] = [COMPLETED, UNUSED, "refused", "failed", "timeout"];

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

    /// Counts a handshake that came to nothing.
    pub fn failed(&self, error: &HandshakeError) {
        self.handshakes.with_label_values(&[error.as_str()]).inc();
    }

    /// A handshake for a name that is complete, which is counted at the first request or at the end.
    pub fn opened(&self, name: &str) -> OpenedTls {
        OpenedTls {
            name: name.to_owned(),
            completed: self.handshakes.with_label_values(&[COMPLETED]),
            unused: self.handshakes.with_label_values(&[UNUSED]),
            is_counted: AtomicBool::new(false),
        }
    }

    /// Shows which servers are ready, and no others.
    pub fn show_ready<'a>(&self, servers: impl Iterator<Item = (&'a str, bool)>) {
        self.ready.reset();
        for (server, ready) in servers {
            self.ready.with_label_values(&[server]).set(ready.into());
        }
    }
}

/// TLS that was opened, until it ends.
#[derive(Debug)]
pub struct OpenedTls {
    name: String,
    completed: IntCounter,
    unused: IntCounter,
    is_counted: AtomicBool,
}

impl OpenedTls {
    /// A request came.
    pub fn asked(&self) {
        if !self.is_counted.swap(true, Ordering::Relaxed) {
            self.completed.inc();
        }
    }
}

impl Drop for OpenedTls {
    fn drop(&mut self) {
        if !*self.is_counted.get_mut() {
            self.unused.inc();
            let name = &self.name;
            tracing::info!(
                name,
                "a client ended its connection after the TLS handshake, without a request: it may not trust the certificate"
            );
        }
    }
}
