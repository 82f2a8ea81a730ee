//! Every metric of the sidecar. docs/metrics.md lists them; a test holds it against a scrape.

use std::{sync::Once, time::SystemTime};

use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder, core::Collector,
};
use toolweir_crds::OnStoreFailure;
use toolweir_store::{Meters, connect::Fault};

use crate::{control, governor::Governor};

/// The server's label where no policy names it.
pub const UNKNOWN_SERVER: &str = "_unknown";
/// The tool's label where neither a policy nor a tools/list gave the name.
pub const OTHER_TOOL: &str = "_other";

/// The metrics and their registry.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Tool calls by decision.
    pub tool_calls: IntCounterVec,
    /// Requests by what became of them.
    pub requests: IntCounterVec,
    /// Seconds from sending a request to the head of the server's answer.
    pub upstream_duration: HistogramVec,
    /// Seconds that a request spends in the sidecar itself.
    pub overhead: HistogramVec,
    /// Tools that were cut out of tools/list answers.
    pub tools_hidden: IntCounterVec,
    limit_used: GaugeVec,
    policy_info: IntGaugeVec,
    policy_age: Gauge,
    policy_invalid: IntGaugeVec,
    /// Whether the source of the policy can be read and what it says is in force.
    pub policy_connected: IntGauge,
    /// Attempts to bring a new policy into force that failed.
    pub policy_reload_failures: IntCounter,
    /// Open connections of clients.
    pub connections: IntGauge,
    /// Connections that were closed since there were too many, or since their clients were too slow.
    pub connections_closed: IntCounterVec,
    /// Bytes of bodies that are held.
    pub held_bytes: IntGauge,
    /// Audit lines that were lost since nobody read them.
    pub audit_lost: IntCounter,
    /// Attempts to open the policy stream, by their end.
    pub control_plane_connects: IntCounterVec,
    /// Policy streams that ended, by how.
    pub control_plane_disconnects: IntCounterVec,
    /// What came on policy streams.
    pub control_plane_messages: IntCounterVec,
    file_failures: IntCounterVec,
    shared_store: SharedStore,
}

/// What is measured of the shared store; part of the page once there is one.
#[derive(Debug)]
struct SharedStore {
    begun: Once,
    meters: Meters,
    calls: IntCounterVec,
    /// Decisions for which the store did not answer, by what was done instead.
    without: IntCounterVec,
}

/// What became of a call that wants something of the shared store: the label `outcome` of
/// `toolweir_shared_store_calls_total`.
pub const STORE_OUTCOMES: [&str; 6] = ["ok", "lease", "refused", "known_full", "unavailable", "timeout"];

impl SharedStore {
    fn new() -> Result<Self, prometheus::Error> {
        let calls = counter(
            "toolweir_shared_store_calls_total",
            "Calls with limits across pods, by how the shared store or a lease answered them.",
            &["outcome"],
        )?;
        let [asked, leased, refused, known_full, unavailable, timeout] =
            STORE_OUTCOMES.map(|outcome| calls.with_label_values(&[outcome]));
        // From 50 µs, a store on this machine, to 10 s, the largest budget.
        let buckets = vec![0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 10.0];
        let round_trip =
            HistogramOpts::new("toolweir_shared_store_round_trip_seconds", "Time from a question to the shared store's answer.");
        let meters = Meters {
            up: IntGauge::new(
                "toolweir_shared_store_up",
                "0 while the policies in force need the shared store and it does not answer, else 1.",
            )?,
            asked,
            leased,
            refused,
            known_full,
            unavailable,
            timeout,
            failures: counter(
                "toolweir_shared_store_failures_total",
                "Times that the shared store could not be reached or was lost, by why.",
                &["fault"],
            )?,
            round_trip: Histogram::with_opts(round_trip.buckets(buckets))?,
        };
        let without = counter(
            "toolweir_shared_store_fallbacks_total",
            "Decisions for which the shared store did not answer, by what its policy has done then.",
            &["action"],
        )?;
        Ok(Self { begun: Once::new(), meters, calls, without })
    }
}

/// Connections that are closed to stay within bounds: the labels `port` and `cause`.
pub const CLOSED: [(&str, &str); 6] = [
    ("proxy", "too_many"),
    ("proxy", "not_read"),
    ("metrics", "too_many"),
    ("metrics", "not_read"),
    ("admin", "too_many"),
    ("admin", "not_read"),
];

/// What the sidecar keeps in files: the label `file`.
pub const FILES: [&str; 4] = ["policies", "trust", "shared_store", "mcp_config"];
/// What failed with a file: the label `operation`.
pub const OPERATIONS: [&str; 2] = ["read", "write"];

impl Metrics {
    /// All metrics, in a registry of their own.
    ///
    /// # Errors
    /// Two metrics share a name: a defect of this function.
    pub fn new() -> Result<Self, prometheus::Error> {
        // From 50 µs, which a fast server on loopback takes, to 60 s.
        let upstream =
            vec![0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
        let overhead =
            vec![0.000_005, 0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.1];
        let metrics = Self {
            registry: Registry::new(),
            tool_calls: counter(
                "toolweir_tool_calls_total",
                "Tool calls by what was decided, why and by which policy.",
                &["server", "tool", "decision", "reason", "policy"],
            )?,
            requests: counter(
                "toolweir_requests_total",
                "MCP requests by method and by what became of them.",
                &["server", "method", "outcome"],
            )?,
            upstream_duration: HistogramVec::new(
                HistogramOpts::new(
                    "toolweir_upstream_duration_seconds",
                    "Time from sending a request to the head of the server's answer.",
                )
                .buckets(upstream),
                &["server"],
            )?,
            overhead: HistogramVec::new(
                HistogramOpts::new("toolweir_overhead_seconds", "Time that a request spends in the sidecar itself.")
                    .buckets(overhead),
                &["server"],
            )?,
            tools_hidden: counter("toolweir_tools_hidden_total", "Tools that were cut out of tools/list answers.", &["server"])?,
            limit_used: GaugeVec::new(
                Opts::new(
                    "toolweir_limit_used_ratio",
                    "How full a limit is; of a limit for each session, the fullest. Over 1 for a while when max was lowered.",
                ),
                &["server", "tool", "policy", "limit"],
            )?,
            policy_info: IntGaugeVec::new(
                Opts::new("toolweir_policy_info", "The policies in force; always 1."),
                &["policy", "mode", "version"],
            )?,
            policy_age: Gauge::new(
                "toolweir_policy_age_seconds",
                "Time since the policy in force was last known to be what its source says; 0 while it is.",
            )?,
            policy_connected: IntGauge::new(
                "toolweir_policy_connected",
                "1 while the source of the policy can be read and what it says is in force.",
            )?,
            policy_reload_failures: IntCounter::new(
                "toolweir_policy_reload_failures_total",
                "New policies that could not be brought into force; the last good one stayed.",
            )?,
            connections: IntGauge::new("toolweir_connections", "Open connections of clients.")?,
            connections_closed: counter(
                "toolweir_connections_closed_total",
                "Connections that the sidecar closed to stay within its bounds, by port and by cause.",
                &["port", "cause"],
            )?,
            held_bytes: IntGauge::new(
                "toolweir_held_bytes",
                "Bytes that are held: of bodies while their meaning is decided, and of answers that wait for their clients.",
            )?,
            audit_lost: IntCounter::new("toolweir_audit_lost_total", "Audit lines that were lost since stdout was not read.")?,
            policy_invalid: IntGaugeVec::new(
                Opts::new("toolweir_policy_invalid", "Policies in force that cannot be enforced as written and deny; always 1."),
                &["policy"],
            )?,
            control_plane_connects: counter(
                "toolweir_control_plane_connects_total",
                "Attempts to open the policy stream, by their end.",
                &["result"],
            )?,
            control_plane_disconnects: counter(
                "toolweir_control_plane_disconnects_total",
                "Policy streams that ended, by how.",
                &["end"],
            )?,
            control_plane_messages: counter("toolweir_control_plane_messages_total", "What came on policy streams.", &["kind"])?,
            file_failures: counter(
                "toolweir_file_failures_total",
                "Files of the sidecar that could not be read or written.",
                &["file", "operation"],
            )?,
            shared_store: SharedStore::new()?,
        };
        metrics.register()?;
        Ok(metrics)
    }

    fn register(&self) -> Result<(), prometheus::Error> {
        for (port, cause) in CLOSED {
            self.connections_closed.with_label_values(&[port, cause]);
        }
        let build = IntGaugeVec::new(Opts::new("toolweir_build_info", "The version of the sidecar; always 1."), &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let started = Gauge::new("process_start_time_seconds", "When this process began, in seconds since 1970.")?;
        started.set(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        let all: [Box<dyn Collector>; 21] = [
            Box::new(self.tool_calls.clone()),
            Box::new(self.requests.clone()),
            Box::new(self.upstream_duration.clone()),
            Box::new(self.overhead.clone()),
            Box::new(self.tools_hidden.clone()),
            Box::new(self.limit_used.clone()),
            Box::new(self.policy_info.clone()),
            Box::new(self.policy_age.clone()),
            Box::new(self.policy_connected.clone()),
            Box::new(self.policy_reload_failures.clone()),
            Box::new(self.connections.clone()),
            Box::new(self.connections_closed.clone()),
            Box::new(self.held_bytes.clone()),
            Box::new(self.audit_lost.clone()),
            Box::new(self.policy_invalid.clone()),
            Box::new(self.control_plane_connects.clone()),
            Box::new(self.control_plane_disconnects.clone()),
            Box::new(self.control_plane_messages.clone()),
            Box::new(self.file_failures.clone()),
            Box::new(build),
            Box::new(started),
        ];
        all.into_iter().try_for_each(|collector| self.registry.register(collector))
    }

    /// Begins the counts of the control plane at 0, so that the first of each is seen as a rise. Without a control plane
    /// there are none.
    pub fn begin_control_plane(&self) {
        for result in control::client::RESULTS {
            self.control_plane_connects.with_label_values(&[result]);
        }
        for end in control::client::ENDS {
            self.control_plane_disconnects.with_label_values(&[end]);
        }
        for kind in control::wire::KINDS {
            self.control_plane_messages.with_label_values(&[kind]);
        }
        for file in FILES {
            for operation in OPERATIONS {
                self.file_failures.with_label_values(&[file, operation]);
            }
        }
    }

    /// What the shared store is measured with.
    pub fn meters(&self) -> Meters {
        self.shared_store.meters.clone()
    }

    /// Puts the shared store on the page, from 0, so that the first of each is seen as a rise. Without one there is nothing
    /// to tell.
    pub fn begin_shared_store(&self) {
        let SharedStore { begun, meters, calls, without } = &self.shared_store;
        begun.call_once(|| {
            for fault in Fault::ALL {
                meters.failures.with_label_values(&[fault.as_str()]);
            }
            for action in [OnStoreFailure::Deny, OnStoreFailure::PerPod, OnStoreFailure::Allow] {
                without.with_label_values(&[action.as_str()]);
            }
            let all: [Box<dyn Collector>; 5] = [
                Box::new(meters.up.clone()),
                Box::new(calls.clone()),
                Box::new(meters.failures.clone()),
                Box::new(meters.round_trip.clone()),
                Box::new(without.clone()),
            ];
            for collector in all {
                if let Err(error) = self.registry.register(collector) {
                    tracing::error!(%error, "a metric of the shared store is not on the page");
                }
            }
        });
    }

    /// The shared store did not answer for a decision.
    pub fn without_store(&self, action: OnStoreFailure) {
        self.shared_store.without.with_label_values(&[action.as_str()]).inc();
    }

    /// What was done with a file: logs and counts a failure.
    pub fn filed<T, E: std::fmt::Display>(&self, file: &str, operation: &str, done: Result<T, E>) -> Option<T> {
        done.inspect_err(|error| {
            tracing::error!(%error, file, operation, "a file of the sidecar failed");
            self.file_failures.with_label_values(&[file, operation]).inc();
        })
        .ok()
    }

    /// The Prometheus text format, with what is computed at a scrape.
    ///
    /// # Errors
    /// The encoder's.
    pub async fn scrape(&self, governor: &Governor) -> Result<Vec<u8>, prometheus::Error> {
        let in_force = arc_swap::Guard::into_inner(governor.in_force());
        let seen = governor.seen(&in_force).await;
        // Series of policies that are gone go with them.
        self.policy_info.reset();
        for policy in &in_force.policies {
            self.policy_info.with_label_values(&[policy.name.as_str(), policy.mode, in_force.version.as_str()]).set(1);
        }
        self.policy_invalid.reset();
        for problem in &in_force.problems {
            self.policy_invalid.with_label_values(&[problem.policy.as_str()]).set(1);
        }
        self.limit_used.reset();
        for limit in in_force.engine.limits(governor.now(), &seen) {
            if !limit.keyed {
                let gauge = self.limit_used.with_label_values(&[limit.server, limit.tool, limit.policy, limit.limit]);
                #[expect(clippy::cast_precision_loss, reason = "a ratio for display")]
                gauge.set(limit.used / limit.max as f64);
            }
        }
        self.policy_age.set(governor.policy_age().as_secs_f64());
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

fn counter(name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
    IntCounterVec::new(Opts::new(name, help), labels)
}
