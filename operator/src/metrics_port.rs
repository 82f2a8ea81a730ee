//! The port of metrics, which `toolweir-operator check` asks too.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use prometheus::{IntGauge, IntGaugeVec};
use tokio::{sync::watch, time::Instant};

use crate::{
    cluster_state::ClusterState,
    config::OperatorConfig,
    evicting_semaphore::{EvictablePermit, EvictingSemaphore, eviction_signal},
    metrics::OperatorRegistry,
    probes::ProbeHealth,
    response::{PortResponse, plain_text, with_content},
    seats::Seat,
};

/// The most pages of metrics that are held at once, for clients that read slowly. Then the oldest one is evicted.
const PAGES: usize = 8;
/// The time that a client has at least to read a page.
const READS: Duration = Duration::from_secs(1);
/// The time for which a page is given out again, so that a client that asks without end costs no more than this.
const FRESH: Duration = Duration::from_millis(100);

/// The metrics that are worked out at each scrape.
#[derive(Clone, Debug)]
pub struct ScrapeMetrics {
    /// Pods that opted in and have no sidecar, by namespace and reason.
    without_sidecar: IntGaugeVec,
    /// Streams whose sidecar enforces the snapshot that was sent last.
    streams_acknowledged: IntGauge,
    registry: OperatorRegistry,
}

impl ScrapeMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// Those of [`OperatorRegistry::counter`].
    pub fn new(registry: &OperatorRegistry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            without_sidecar: registry.gauges(
                "toolweir_operator_pods_without_sidecar",
                "Pods that run, opted in and have no sidecar, by their namespace and why.",
                &["pod_namespace", "reason"],
            )?,
            streams_acknowledged: registry.gauge(
                "toolweir_operator_streams_acknowledged",
                "Open policy streams whose sidecar enforces what was sent last.",
            )?,
            registry: registry.clone(),
        })
    }

    /// Sets the metrics. `without_sidecar`: pods by namespace and reason; `acknowledged`: streams.
    pub fn set(&self, without_sidecar: &BTreeMap<(String, &'static str), i64>, acknowledged: usize) {
        self.streams_acknowledged.set(i64::try_from(acknowledged).unwrap_or(i64::MAX));
        self.registry.replace(|| {
            self.without_sidecar.reset();
            for ((namespace, reason), count) in without_sidecar {
                self.without_sidecar.with_label_values(&[namespace.as_str(), reason]).set(*count);
            }
        });
    }

    /// Sets the metrics and returns all metrics in the Prometheus text format.
    fn page(
        &self,
        without_sidecar: &BTreeMap<(String, &'static str), i64>,
        acknowledged: usize,
    ) -> Result<Vec<u8>, prometheus::Error> {
        self.set(without_sidecar, acknowledged);
        self.registry.scrape()
    }
}

/// Answers requests on the port of metrics.
#[derive(Clone)]
pub struct MetricsPort {
    state: Arc<ClusterState>,
    config: Arc<OperatorConfig>,
    /// The operator's namespace.
    namespace: Arc<str>,
    trust: watch::Receiver<Arc<str>>,
    health: ProbeHealth,
    metrics: ScrapeMetrics,
    readers: EvictingSemaphore,
    last: Arc<Mutex<Option<(Instant, Bytes)>>>,
}

/// A page of metrics with its permit.
struct HeldPage(Bytes, #[expect(dead_code, reason = "held")] EvictablePermit);

impl AsRef<[u8]> for HeldPage {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl MetricsPort {
    /// Creates the port. `namespace`: the operator's; `trust`: its authorities in PEM.
    pub fn new(
        state: Arc<ClusterState>,
        config: Arc<OperatorConfig>,
        namespace: Arc<str>,
        trust: watch::Receiver<Arc<str>>,
        health: ProbeHealth,
        metrics: ScrapeMetrics,
    ) -> Self {
        let readers = EvictingSemaphore::new(PAGES, PAGES, READS);
        Self { state, config, namespace, trust, health, metrics, readers, last: Arc::default() }
    }

    /// Answers a request.
    pub async fn answer<B>(self, request: Request<B>) -> PortResponse {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return plain_text(StatusCode::METHOD_NOT_ALLOWED, "use GET");
        }
        match request.uri().path() {
            "/metrics" => self.metrics(request.extensions().get::<Arc<Seat>>()).await,
            "/ca.pem" => with_content(Bytes::copy_from_slice(self.trust.borrow().as_bytes()), "application/x-pem-file"),
            path => self
                .health
                .page(path)
                .unwrap_or_else(|| plain_text(StatusCode::NOT_FOUND, "there are /metrics, /healthz, /readyz and /ca.pem")),
        }
    }

    /// Returns the page of metrics. A client that reads it slowly is evicted where others want to read it.
    async fn metrics(&self, seat: Option<&Arc<Seat>>) -> PortResponse {
        let eviction = seat.map_or_else(eviction_signal, |seat| seat.eviction().clone());
        let Ok(permit) = self.readers.take(1, &eviction).await else {
            return plain_text(StatusCode::SERVICE_UNAVAILABLE, "too many read the metrics at once; try again");
        };
        match self.page() {
            Ok(page) => with_content(Bytes::from_owner(HeldPage(page, permit)), prometheus::TEXT_FORMAT),
            Err(error) => plain_text(StatusCode::INTERNAL_SERVER_ERROR, &format!("the metrics cannot be written: {error}")),
        }
    }

    fn page(&self) -> Result<Bytes, prometheus::Error> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((when, page)) = &*last
            && when.elapsed() < FRESH
        {
            return Ok(page.clone());
        }
        let page = Bytes::from(self.scrape()?);
        *last = Some((Instant::now(), page.clone()));
        Ok(page)
    }

    fn scrape(&self) -> Result<Vec<u8>, prometheus::Error> {
        let protects = |namespace: &str| self.config.protects(namespace, &self.namespace);
        let without_sidecar = self.state.index().without_sidecar(protects);
        self.metrics.page(&without_sidecar, self.state.acks().current())
    }
}
