//! The metrics that every sidecar has. Each belongs to the module that raises it, which registers it in a constructor;
//! docs/metrics.md lists them, and a test holds it against a scrape.
//!
//! Others register when there is something to count: [`audit`](crate::audit), [`counts`](crate::counts) (the shared store),
//! [`control`](crate::control) (the policy stream), [`scrape`](crate::scrape) (what is computed at a scrape).

use std::time::SystemTime;

use crate::{
    approvals::metrics::ApprovalMetrics, capture::metrics::EgressMetrics, connections::ConnectionMetrics, files::FileMetrics,
    freshness::FreshnessMetrics, registry::MetricsRegistry, server_metrics::ServerMetrics,
};

/// The metrics that every sidecar has, and the registry for others.
#[derive(Debug)]
pub struct SidecarMetrics {
    /// The registry in which modules register their metrics.
    pub registry: MetricsRegistry,
    /// Requests and calls, by server.
    pub servers: ServerMetrics,
    /// The freshness of the policies in force.
    pub freshness: FreshnessMetrics,
    /// Files that could not be read or written.
    pub files: FileMetrics,
    /// Connections of clients, and what is held for them.
    pub connections: ConnectionMetrics,
    /// Captured connections to other destinations than declared servers.
    pub egress: EgressMetrics,
    /// Requests for approval.
    pub approvals: ApprovalMetrics,
}

impl SidecarMetrics {
    /// Registers the metrics in a registry of their own.
    ///
    /// # Errors
    /// Two metrics share a name: a defect.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = MetricsRegistry::default();
        let build = registry.int_gauges("toolweir_build_info", "The version of the sidecar; always 1.", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let started = registry.gauge("process_start_time_seconds", "When this process began, in seconds since 1970.")?;
        started.set(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        Ok(Self {
            servers: ServerMetrics::new(&registry)?,
            freshness: FreshnessMetrics::new(&registry)?,
            files: FileMetrics::new(&registry)?,
            connections: ConnectionMetrics::new(&registry)?,
            egress: EgressMetrics::new(&registry)?,
            approvals: ApprovalMetrics::new(&registry)?,
            registry,
        })
    }
}
