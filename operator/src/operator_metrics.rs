//! All metrics of the operator. docs/metrics.md lists them; a test holds it against a scrape.

use crate::{
    admission::AdmissionMetrics, approvals::metrics::MCPApprovalMetrics, certs::CertificateMetrics, cluster_state::StateMetrics,
    events::EventMetrics, leader::LeaderMetrics, metrics::OperatorRegistry, metrics_port::ScrapeMetrics, publish::StatusMetrics,
    serve::PortMetrics, shared_store::monitor::StoreMonitorMetrics, stream::StreamMetrics, watch::WatchFailures,
};

/// The metrics of each module, in one registry.
#[derive(Clone, Debug)]
pub struct OperatorMetrics {
    /// The registry.
    pub registry: OperatorRegistry,
    /// Of the webhooks.
    pub admission: AdmissionMetrics,
    /// Of approvals.
    pub approvals: MCPApprovalMetrics,
    /// Of the certificates.
    pub certificates: CertificateMetrics,
    /// Of events.
    pub events: EventMetrics,
    /// Of leadership.
    pub leader: LeaderMetrics,
    /// Of the ports.
    pub ports: PortMetrics,
    /// Worked out at each scrape.
    pub scrape: ScrapeMetrics,
    /// Of the shared state.
    pub state: StateMetrics,
    /// Of policies and their status.
    pub status: StatusMetrics,
    /// Of the shared store.
    pub store: StoreMonitorMetrics,
    /// Of the streams.
    pub stream: StreamMetrics,
    /// Of the watches.
    pub watches: WatchFailures,
}

impl OperatorMetrics {
    /// Creates all metrics.
    ///
    /// # Errors
    /// Two metrics have the same name: a defect of the operator.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = OperatorRegistry::new()?;
        Ok(Self {
            admission: AdmissionMetrics::new(&registry)?,
            approvals: MCPApprovalMetrics::new(&registry)?,
            certificates: CertificateMetrics::new(&registry)?,
            events: EventMetrics::new(&registry)?,
            leader: LeaderMetrics::new(&registry)?,
            ports: PortMetrics::new(&registry)?,
            scrape: ScrapeMetrics::new(&registry)?,
            state: StateMetrics::new(&registry)?,
            status: StatusMetrics::new(&registry)?,
            store: StoreMonitorMetrics::new(&registry)?,
            stream: StreamMetrics::new(&registry)?,
            watches: WatchFailures::new(&registry)?,
            registry,
        })
    }
}
