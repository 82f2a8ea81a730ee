//! What became of captured connections that lead to no declared server.

use prometheus::{IntCounterVec, IntGauge};
use toolweir_engine::egress::{EgressDecision, EgressEffect, EgressReason};

use crate::registry::MetricsRegistry;

/// The label `name` of a connection to a name that no policy has.
pub const OTHER_NAME: &str = "_other";
/// The label `name` of a connection that names none.
pub const NO_NAME: &str = "_address";
/// The label `name` of a connection to the host of a declared server, where it is not governed.
pub const SERVER_NAME: &str = "_server";

/// Metrics of captured connections.
#[derive(Debug)]
pub struct EgressMetrics {
    /// `toolweir_egress_connections_total`: connections by what was decided, why, and the name of a policy that they lead to.
    pub connections: IntCounterVec,
    /// `toolweir_egress_open_connections`: connections that pass now.
    pub open: IntGauge,
}

impl EgressMetrics {
    /// Registers the metrics. Denials for each reason begin at 0.
    ///
    /// # Errors
    /// They are registered already.
    pub fn new(registry: &MetricsRegistry) -> Result<Self, prometheus::Error> {
        let connections = registry.counters(
            "toolweir_egress_connections_total",
            "Captured connections to other destinations than declared servers, by what was decided, why, and the policy's name of the destination.",
            &["decision", "reason", "name"],
        )?;
        for reason in EgressReason::ALL.into_iter().filter(|reason| *reason != EgressReason::None) {
            connections.with_label_values(&[EgressEffect::Denied.as_str(), reason.as_str(), OTHER_NAME]);
        }
        let open = registry.int_gauge("toolweir_egress_open_connections", "Captured connections that pass now.")?;
        Ok(Self { connections, open })
    }

    /// Counts a decision. `named` says whether the connection names a host.
    pub fn count(&self, decision: &EgressDecision, named: bool) {
        let name = decision.name.as_deref().unwrap_or(if named { OTHER_NAME } else { NO_NAME });
        self.connections.with_label_values(&[decision.effect.as_str(), decision.reason.as_str(), name]).inc();
    }

    /// A connection that passes, until it is dropped.
    pub fn begin(&self) -> OpenEgress {
        self.open.inc();
        OpenEgress(self.open.clone())
    }
}

/// A connection that passes.
#[derive(Debug)]
pub struct OpenEgress(IntGauge);

impl Drop for OpenEgress {
    fn drop(&mut self) {
        self.0.dec();
    }
}
