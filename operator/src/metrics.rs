//! Every metric of the operator. docs/metrics.md lists them; a test holds it against a scrape.

use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder, core::Collector,
};

use crate::auth::Refusal;

/// The metrics and their registry. A clone is another handle on the same.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    /// Admission reviews of pods and policies, by what was answered.
    pub admissions: IntCounterVec,
    /// Seconds that an admission review of a pod takes here.
    pub admission_duration: Histogram,
    /// Open streams.
    pub streams: IntGauge,
    /// Streams that were not opened.
    pub stream_refused: IntCounterVec,
    /// Streams that ended, by why.
    pub stream_ended: IntCounterVec,
    /// Snapshots that were sent.
    pub snapshots: IntCounter,
    /// Acknowledgements that came.
    pub acks: IntCounter,
    /// Whether this replica leads.
    pub leader: IntGauge,
    /// Whether everything was seen once.
    pub synced: IntGauge,
    /// Policies by kind and whether they are accepted.
    pub policies: IntGaugeVec,
    /// Statuses that were written.
    pub status_writes: IntCounterVec,
    /// Watches that failed and were begun anew.
    pub watch_failures: IntCounterVec,
    /// When certificates expire, in seconds since 1970.
    pub certificate_expiry: GaugeVec,
    /// Certificates that were made.
    pub certificate_rotations: IntCounterVec,
    /// What went wrong with certificates.
    pub certificate_failures: IntCounter,
    /// Bytes of resident memory, as the kernel says.
    pub resident: Gauge,
}

impl Metrics {
    /// All metrics, in a registry of their own.
    ///
    /// # Errors
    /// Two metrics share a name: a defect of this function.
    pub fn new() -> Result<Self, prometheus::Error> {
        let vec = |name: &str, help: &str, labels: &[&str]| IntCounterVec::new(Opts::new(name, help), labels);
        let seconds = vec![0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0];
        let metrics = Self {
            registry: Registry::new(),
            admissions: vec(
                "toolweir_operator_admissions_total",
                "Admission reviews by webhook (inject, validate), result and reason.",
                &["webhook", "result", "reason"],
            )?,
            admission_duration: Histogram::with_opts(
                HistogramOpts::new(
                    "toolweir_operator_admission_duration_seconds",
                    "Time that the admission of a pod takes here.",
                )
                .buckets(seconds),
            )?,
            streams: IntGauge::new("toolweir_operator_streams", "Policy streams of sidecars that are open at this replica.")?,
            stream_refused: vec(
                "toolweir_operator_stream_refused_total",
                "Policy streams that were not opened, by reason.",
                &["reason"],
            )?,
            stream_ended: vec("toolweir_operator_stream_ended_total", "Policy streams that ended, by reason.", &["reason"])?,
            snapshots: IntCounter::new("toolweir_operator_snapshots_total", "Snapshots of policies that were sent.")?,
            acks: IntCounter::new("toolweir_operator_acks_total", "Acknowledgements of snapshots that came.")?,
            leader: IntGauge::new("toolweir_operator_leader", "1 at the replica that writes status.")?,
            synced: IntGauge::new("toolweir_operator_synced", "1 once the whole cluster was seen.")?,
            policies: IntGaugeVec::new(
                Opts::new("toolweir_operator_policies", "Policies by kind and by the reason of their condition Accepted."),
                &["kind", "accepted"],
            )?,
            status_writes: vec("toolweir_operator_status_writes_total", "Statuses of policies that were written.", &["result"])?,
            watch_failures: vec(
                "toolweir_operator_watch_failures_total",
                "Watches on the API server that failed and were begun anew.",
                &["resource"],
            )?,
            certificate_expiry: GaugeVec::new(
                Opts::new("toolweir_operator_certificate_expiry_timestamp_seconds", "When a certificate expires (ca, leaf)."),
                &["certificate"],
            )?,
            certificate_rotations: vec(
                "toolweir_operator_certificate_rotations_total",
                "Certificates that were made (ca, leaf).",
                &["certificate"],
            )?,
            certificate_failures: IntCounter::new(
                "toolweir_operator_certificate_failures_total",
                "Certificates that could not be read, made or written, and webhooks whose CA could not be kept.",
            )?,
            resident: Gauge::new("process_resident_memory_bytes", "Resident memory.")?,
        };
        let build = IntGaugeVec::new(Opts::new("toolweir_build_info", "The version of the operator; always 1."), &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let all: [Box<dyn Collector>; 17] = [
            Box::new(metrics.admissions.clone()),
            Box::new(metrics.admission_duration.clone()),
            Box::new(metrics.streams.clone()),
            Box::new(metrics.stream_refused.clone()),
            Box::new(metrics.stream_ended.clone()),
            Box::new(metrics.snapshots.clone()),
            Box::new(metrics.acks.clone()),
            Box::new(metrics.leader.clone()),
            Box::new(metrics.synced.clone()),
            Box::new(metrics.policies.clone()),
            Box::new(metrics.status_writes.clone()),
            Box::new(metrics.watch_failures.clone()),
            Box::new(metrics.certificate_expiry.clone()),
            Box::new(metrics.certificate_rotations.clone()),
            Box::new(metrics.certificate_failures.clone()),
            Box::new(metrics.resident.clone()),
            Box::new(build),
        ];
        for collector in all {
            metrics.registry.register(collector)?;
        }
        // Known from the start, so that a rate has something to start from.
        for refusal in Refusal::ALL {
            metrics.stream_refused.with_label_values(&[refusal.as_str()]);
        }
        Ok(metrics)
    }

    /// The Prometheus text format.
    ///
    /// # Errors
    /// The encoder's.
    pub fn scrape(&self) -> Result<Vec<u8>, prometheus::Error> {
        self.resident.set(resident_bytes().unwrap_or_default());
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

/// `VmRSS` of this process (proc(5)).
fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib: f64 = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024.0)
}
