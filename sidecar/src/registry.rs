//! The registry of metrics. A module creates its metrics here, in its constructor, so that none is created and then
//! forgotten on the page.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus::{
    Encoder, Error, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder, core::Collector,
};

/// Metrics that are created and not on the page yet.
type Unpublished = Mutex<Vec<Box<dyn Collector>>>;

/// Creates metrics and puts them on the page of one sidecar. Clones share the page.
///
/// A method that creates a metric fails if the name is taken or is not valid for a metric.
#[derive(Clone, Default)]
pub struct MetricsRegistry {
    page: Registry,
    /// Metrics that are not on the page yet; nothing: they are put there as they are created.
    unpublished: Option<Arc<Unpublished>>,
}

impl fmt::Debug for MetricsRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsRegistry").field("deferred", &self.unpublished.is_some()).finish_non_exhaustive()
    }
}

impl MetricsRegistry {
    /// Returns a registry whose metrics come onto the same page, once [`MetricsRegistry::publish`] is called.
    #[must_use]
    pub fn deferred(&self) -> Self {
        Self { page: self.page.clone(), unpublished: Some(Arc::default()) }
    }

    /// Puts deferred metrics on the page. The second call does nothing.
    pub fn publish(&self) -> Result<(), Error> {
        let Some(unpublished) = &self.unpublished else { return Ok(()) };
        let collectors = std::mem::take(&mut *unpublished.lock().unwrap_or_else(PoisonError::into_inner));
        collectors.into_iter().try_for_each(|collector| self.page.register(collector))
    }

    /// Creates a counter.
    pub fn counter(&self, name: &str, help: &str) -> Result<IntCounter, Error> {
        self.add(IntCounter::new(name, help)?)
    }

    /// Creates counters with labels.
    pub fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, Error> {
        self.add(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    /// Creates a gauge of whole numbers.
    pub fn int_gauge(&self, name: &str, help: &str) -> Result<IntGauge, Error> {
        self.add(IntGauge::new(name, help)?)
    }

    /// Creates gauges of whole numbers with labels.
    pub fn int_gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, Error> {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    /// Creates a gauge.
    pub fn gauge(&self, name: &str, help: &str) -> Result<Gauge, Error> {
        self.add(Gauge::new(name, help)?)
    }

    /// Creates gauges with labels.
    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec, Error> {
        self.add(GaugeVec::new(Opts::new(name, help), labels)?)
    }

    /// Creates a histogram with the upper bounds of its buckets.
    pub fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram, Error> {
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?)
    }

    /// Creates histograms with labels, and with the upper bounds of their buckets.
    pub fn histograms(&self, name: &str, help: &str, buckets: &[f64], labels: &[&str]) -> Result<HistogramVec, Error> {
        self.add(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)?)
    }

    fn add<C: Collector + Clone + 'static>(&self, metric: C) -> Result<C, Error> {
        let collector = Box::new(metric.clone());
        match &self.unpublished {
            Some(unpublished) => unpublished.lock().unwrap_or_else(PoisonError::into_inner).push(collector),
            None => self.page.register(collector)?,
        }
        Ok(metric)
    }

    /// Returns the page in the Prometheus text format.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.page.gather(), &mut text)?;
        Ok(text)
    }
}
