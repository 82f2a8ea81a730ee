//! The registry of the operator's metrics. Each module creates its own metrics here, which registers them.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder, core::Collector,
};

/// A registry. A clone is another handle on the same.
#[derive(Clone, Debug)]
pub struct OperatorRegistry {
    registry: Registry,
    replacing: Arc<Mutex<()>>,
    resident: Gauge,
}

impl OperatorRegistry {
    /// Creates a registry with the metrics of the process.
    ///
    /// # Errors
    /// Those of [`OperatorRegistry::counter`].
    pub fn new() -> Result<Self, prometheus::Error> {
        let resident = Gauge::new("process_resident_memory_bytes", "Resident memory.")?;
        let metrics = Self { registry: Registry::new(), replacing: Arc::default(), resident };
        metrics.register(&metrics.resident)?;
        let build = metrics.gauges("toolweir_build_info", "The version of the operator; always 1.", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let started = Gauge::new("process_start_time_seconds", "When this process began, in seconds since 1970.")?;
        started.set(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        metrics.register(&started)?;
        Ok(metrics)
    }

    fn register(&self, collector: &(impl Collector + Clone + 'static)) -> Result<(), prometheus::Error> {
        self.registry.register(Box::new(collector.clone()))
    }

    /// Creates and registers a counter.
    ///
    /// # Errors
    /// The name or a label is not valid, or the name is taken: a defect of the caller.
    pub fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        let counter = IntCounter::new(name, help)?;
        self.register(&counter)?;
        Ok(counter)
    }

    /// Creates and registers counters with labels.
    ///
    /// # Errors
    /// Those of [`OperatorRegistry::counter`].
    pub fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
        let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
        self.register(&counters)?;
        Ok(counters)
    }

    /// Creates and registers counters with one label, whose values are all known and begin at 0: so the first rise of each is
    /// seen.
    ///
    /// # Errors
    /// Those of [`OperatorRegistry::counter`].
    pub fn counters_at_zero<'a>(
        &self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = &'a str>,
    ) -> Result<IntCounterVec, prometheus::Error> {
        let counters = self.counters(name, help, &[label])?;
        for value in values {
            counters.with_label_values(&[value]);
        }
        Ok(counters)
    }

    /// Creates and registers a gauge.
    ///
    /// # Errors
    /// Those of [`OperatorRegistry::counter`].
    pub fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        let gauge = IntGauge::new(name, help)?;
        self.register(&gauge)?;
        Ok(gauge)
    }

    /// Creates and registers gauges with labels.
    ///
    /// # Errors
    /// Those of [`OperatorRegistry::counter`].
    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
        let gauges = IntGaugeVec::new(Opts::new(name, help), labels)?;
        self.register(&gauges)?;
        Ok(gauges)
    }

    /// Creates and registers gauges of seconds with labels.
    ///
    /// # Errors
    /// Those of [`OperatorRegistry::counter`].
    pub fn seconds(&self, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec, prometheus::Error> {
        let gauges = GaugeVec::new(Opts::new(name, help), labels)?;
        self.register(&gauges)?;
        Ok(gauges)
    }

    /// Creates and registers a histogram.
    ///
    /// # Errors
    /// Those of [`OperatorRegistry::counter`].
    pub fn histogram(&self, name: &str, help: &str, buckets: Vec<f64>) -> Result<Histogram, prometheus::Error> {
        let histogram = Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))?;
        self.register(&histogram)?;
        Ok(histogram)
    }

    /// Replaces series by others, so that no scrape sees only part of them.
    pub fn replace(&self, series: impl FnOnce()) {
        let _whole = self.replacing();
        series();
    }

    fn replacing(&self) -> MutexGuard<'_, ()> {
        self.replacing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns all metrics in the Prometheus text format.
    ///
    /// # Errors
    /// The encoder's.
    pub fn scrape(&self) -> Result<Vec<u8>, prometheus::Error> {
        let _whole = self.replacing();
        self.resident.set(resident_bytes().unwrap_or_default());
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

/// Returns `VmRSS` of this process (proc(5)), in bytes.
fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib: f64 = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024.0)
}
