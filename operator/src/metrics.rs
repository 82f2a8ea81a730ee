//! Every metric of the operator. docs/metrics.md lists them; a test holds it against a scrape.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder, core::Collector,
};

use crate::{
    auth::Refusal,
    inject::Skip,
    serve::{Closed, Port},
    shared,
    stream::Ended,
};

/// What is watched: the label `resource` of `toolweir_operator_watch_failures_total`.
pub const RESOURCES: [&str; 7] = [
    "namespaces",
    "pods",
    "mcppolicies",
    "mcpclusterpolicies",
    "configmaps",
    "mutatingwebhookconfigurations",
    "validatingwebhookconfigurations",
];

/// The metrics and their registry. A clone is another handle on the same.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    whole: Arc<Mutex<()>>,
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
    /// Of these, streams whose sidecar enforces what was sent last.
    pub streams_acknowledged: IntGauge,
    /// Policies by kind and whether they are accepted.
    pub policies: IntGaugeVec,
    /// A policy and its conditions.
    pub policy_status: IntGaugeVec,
    /// How many pods a policy selects, and how many of these have a sidecar and enforce it.
    pub policy_pods: IntGaugeVec,
    /// Pods that opted in and have no sidecar.
    pub pods_without_sidecar: IntGaugeVec,
    /// Events of denied calls, by what became of them.
    pub events: IntCounterVec,
    /// Statuses that were written.
    pub status_writes: IntCounterVec,
    /// Watches that failed and were begun anew.
    pub watch_failures: IntCounterVec,
    /// When certificates expire, in seconds since 1970.
    pub certificate_expiry: GaugeVec,
    /// How long they live from beginning to end, in seconds.
    pub certificate_lifetime: GaugeVec,
    /// Certificates that were made.
    pub certificate_rotations: IntCounterVec,
    /// What went wrong with certificates.
    pub certificate_failures: IntCounter,
    /// Whether the shared store answers; no series where there is none.
    pub shared_store_up: IntGaugeVec,
    /// How often it did not, by why; no series where there is none.
    pub shared_store_failures: IntCounterVec,
    /// Open connections of each port.
    pub connections: IntGaugeVec,
    /// Connections that were closed from here, by port and why.
    pub connections_closed: IntCounterVec,
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
        let gauges = |name: &str, help: &str, labels: &[&str]| IntGaugeVec::new(Opts::new(name, help), labels);
        let (connections, connections_closed) = connections()?;
        let seconds = vec![0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0];
        let metrics = Self {
            registry: Registry::new(),
            whole: Arc::default(),
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
            streams_acknowledged: IntGauge::new(
                "toolweir_operator_streams_acknowledged",
                "Open policy streams whose sidecar enforces what was sent last.",
            )?,
            policy_status: gauges(
                "toolweir_operator_policy_status",
                "A policy with the reasons of its conditions; always 1. At the replica that leads.",
                &["policy", "mode", "accepted", "programmed"],
            )?,
            policy_pods: gauges(
                "toolweir_operator_policy_pods",
                "Pods of a policy: selected, of these injected, of these acknowledged. At the replica that leads.",
                &["policy", "state"],
            )?,
            pods_without_sidecar: gauges(
                "toolweir_operator_pods_without_sidecar",
                "Pods that run, opted in and have no sidecar, by their namespace and why.",
                &["pod_namespace", "reason"],
            )?,
            events: vec("toolweir_operator_events_total", "Events of denied calls, by what became of them.", &["result"])?,
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
            certificate_lifetime: GaugeVec::new(
                Opts::new(
                    "toolweir_operator_certificate_lifetime_seconds",
                    "How long a certificate lives, from beginning to end.",
                ),
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
            shared_store_up: IntGaugeVec::new(
                Opts::new("toolweir_operator_shared_store_up", "1 while the shared store answers this replica."),
                &[],
            )?,
            shared_store_failures: vec(
                "toolweir_operator_shared_store_failures_total",
                "How often this replica asked the shared store in vain, by fault.",
                &["fault"],
            )?,
            connections,
            connections_closed,
            resident: Gauge::new("process_resident_memory_bytes", "Resident memory.")?,
        };
        metrics.register()?;
        metrics.begin();
        Ok(metrics)
    }

    fn register(&self) -> Result<(), prometheus::Error> {
        let build = IntGaugeVec::new(Opts::new("toolweir_build_info", "The version of the operator; always 1."), &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let started = Gauge::new("process_start_time_seconds", "When this process began, in seconds since 1970.")?;
        started.set(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        let all: [Box<dyn Collector>; 28] = [
            Box::new(self.admissions.clone()),
            Box::new(self.admission_duration.clone()),
            Box::new(self.streams.clone()),
            Box::new(self.stream_refused.clone()),
            Box::new(self.stream_ended.clone()),
            Box::new(self.snapshots.clone()),
            Box::new(self.acks.clone()),
            Box::new(self.leader.clone()),
            Box::new(self.synced.clone()),
            Box::new(self.streams_acknowledged.clone()),
            Box::new(self.policies.clone()),
            Box::new(self.policy_status.clone()),
            Box::new(self.policy_pods.clone()),
            Box::new(self.pods_without_sidecar.clone()),
            Box::new(self.events.clone()),
            Box::new(self.certificate_lifetime.clone()),
            Box::new(started),
            Box::new(self.status_writes.clone()),
            Box::new(self.watch_failures.clone()),
            Box::new(self.certificate_expiry.clone()),
            Box::new(self.certificate_rotations.clone()),
            Box::new(self.certificate_failures.clone()),
            Box::new(self.shared_store_up.clone()),
            Box::new(self.shared_store_failures.clone()),
            Box::new(self.connections.clone()),
            Box::new(self.connections_closed.clone()),
            Box::new(self.resident.clone()),
            Box::new(build),
        ];
        for collector in all {
            self.registry.register(collector)?;
        }
        Ok(())
    }

    /// Begins every count whose labels are known at 0, so that the first of each is seen as a rise.
    fn begin(&self) {
        for refusal in Refusal::ALL {
            self.stream_refused.with_label_values(&[refusal.as_str()]);
        }
        for ended in Ended::ALL {
            self.stream_ended.with_label_values(&[ended.as_str()]);
        }
        for port in Port::ALL {
            self.connections.with_label_values(&[port.as_str()]);
            for closed in Closed::ALL {
                self.connections_closed.with_label_values(&[port.as_str(), closed.as_str()]);
            }
        }
        for skip in Skip::ALL {
            self.admissions.with_label_values(&["inject", "skipped", skip.as_str()]);
        }
        for (webhook, result, reason) in [
            ("inject", "injected", ""),
            ("inject", "refused", "Invalid"),
            ("inject", "refused", "NotReady"),
            ("inject", "refused", "TooComplex"),
            ("inject", "error", "Unreadable"),
            ("inject", "error", "Busy"),
            ("validate", "allowed", ""),
            ("validate", "refused", "Invalid"),
            ("validate", "refused", "TooComplex"),
            ("validate", "error", "Unreadable"),
            ("validate", "error", "Busy"),
        ] {
            self.admissions.with_label_values(&[webhook, result, reason]);
        }
        for result in ["ok", "gone", "failed"] {
            self.status_writes.with_label_values(&[result]);
        }
        for result in ["ok", "failed", "no_room"] {
            self.events.with_label_values(&[result]);
        }
        for resource in RESOURCES {
            self.watch_failures.with_label_values(&[resource]);
        }
    }

    /// Begins the counts of the shared store, where there is one.
    pub fn begin_shared_store(&self) {
        self.shared_store_up.with_label_values::<&str>(&[]);
        for fault in shared::faults() {
            self.shared_store_failures.with_label_values(&[fault]);
        }
    }

    /// Forgets what the replica that leads says of policies: another one says it now.
    pub fn forget_policies(&self) {
        let _whole = self.whole();
        self.reset_policies();
    }

    /// Held while series are replaced by others, so that no scrape sees them half.
    pub fn whole(&self) -> MutexGuard<'_, ()> {
        self.whole.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the series of policies, to be set anew while [`Metrics::whole`] is held.
    pub fn reset_policies(&self) {
        self.policies.reset();
        self.policy_status.reset();
        self.policy_pods.reset();
    }

    /// The Prometheus text format. `without_sidecar`: pods by namespace and reason.
    ///
    /// # Errors
    /// The encoder's.
    pub fn scrape(&self, without_sidecar: &BTreeMap<(String, &'static str), i64>) -> Result<Vec<u8>, prometheus::Error> {
        let _whole = self.whole();
        self.pods_without_sidecar.reset();
        for ((namespace, reason), count) in without_sidecar {
            self.pods_without_sidecar.with_label_values(&[namespace.as_str(), reason]).set(*count);
        }
        self.resident.set(resident_bytes().unwrap_or_default());
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

/// Of connections: those that are open, and those that were closed.
fn connections() -> Result<(IntGaugeVec, IntCounterVec), prometheus::Error> {
    let open = IntGaugeVec::new(Opts::new("toolweir_operator_connections", "Open connections, by port."), &["port"])?;
    let closed = IntCounterVec::new(
        Opts::new("toolweir_operator_connections_closed_total", "Connections that the operator closed, by port and reason."),
        &["port", "reason"],
    )?;
    Ok((open, closed))
}

/// `VmRSS` of this process (proc(5)).
fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib: f64 = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024.0)
}
