//! Metrics with the label `server`: requests and calls.

use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGaugeVec};

use crate::{mcp::list_kind::ListKind, registry::MetricsRegistry};

/// The label `server` where no policy names it.
pub const UNKNOWN_SERVER: &str = "_unknown";
/// The labels `tool` and `name` where neither a policy nor a list gave the name.
pub const OTHER_NAME: &str = "_other";

/// The label `part` of a tool that is not pinned.
pub const TOOL_PART: &str = "tool";

/// Buckets from 100 µs, which a fast server on loopback takes, to 60 s.
const UPSTREAM_BUCKETS: [f64; 17] =
    [0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Buckets from 5 µs to 100 ms.
const OVERHEAD_BUCKETS: [f64; 12] =
    [0.000_005, 0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.1];

/// Requests and calls, by server. [`InForce`](crate::in_force::InForce) resolves the handles that a call needs.
#[derive(Debug)]
pub struct ServerMetrics {
    /// `toolweir_tool_calls_total`: tool calls by decision.
    pub tool_calls: IntCounterVec,
    /// `toolweir_operations_total`: other operations by decision.
    pub operations: IntCounterVec,
    /// `toolweir_requests_total`: requests by what became of them.
    pub requests: IntCounterVec,
    /// `toolweir_upstream_duration_seconds`: from sending a request to the head of the server's answer.
    pub upstream_duration: HistogramVec,
    /// `toolweir_overhead_seconds`: the time that a request spends in the sidecar itself.
    pub overhead: HistogramVec,
    /// `toolweir_tools_hidden_total`: tools that were cut out of tools/list answers.
    pub tools_hidden: IntCounterVec,
    /// `toolweir_entries_hidden_total`: entries that were cut out of other lists.
    pub entries_hidden: IntCounterVec,
    /// `toolweir_server_answers_total`: answers to requests of servers, in the name of clients that do not get them.
    pub server_answers: IntCounterVec,
    /// `toolweir_server_messages_refused_total`: messages of servers that clients could read in two ways.
    pub messages_refused: IntCounterVec,
    /// `toolweir_own_lists_total`: lists that the sidecar asked for by itself.
    pub own_lists: IntCounterVec,
    /// `toolweir_tool_drift_total`: parts of definitions that a list showed for the first time, and that are not as pinned.
    pub tool_drift: IntCounterVec,
    /// `toolweir_tools_drifted`: tools that are not as pinned now.
    pub tools_drifted: IntGaugeVec,
}

impl ServerMetrics {
    /// Counts that a message of a server does not pass, since it cannot be read in one way.
    pub fn count_refused_message(&self, server: &str) {
        self.messages_refused.with_label_values(&[server]).inc();
    }

    /// Registers the metrics.
    ///
    /// # Errors
    /// They are registered already.
    pub fn new(registry: &MetricsRegistry) -> Result<Self, prometheus::Error> {
        let (server_answers, messages_refused) = messages_of_servers(registry)?;
        Ok(Self {
            tool_calls: registry.counters(
                "toolweir_tool_calls_total",
                "Tool calls by what was decided, why and by which policy.",
                &["server", "tool", "decision", "reason", "policy"],
            )?,
            operations: registry.counters(
                "toolweir_operations_total",
                "What else was asked for than tool calls, in both directions, by what was decided, why and by which policy.",
                &["server", "operation", "name", "decision", "reason", "policy"],
            )?,
            requests: registry.counters(
                "toolweir_requests_total",
                "MCP requests by method and by what became of them.",
                &["server", "method", "outcome"],
            )?,
            upstream_duration: registry.histograms(
                "toolweir_upstream_duration_seconds",
                "Time from sending a request to the head of the server's answer.",
                &UPSTREAM_BUCKETS,
                &["server"],
            )?,
            overhead: registry.histograms(
                "toolweir_overhead_seconds",
                "Time that a request spends in the sidecar itself.",
                &OVERHEAD_BUCKETS,
                &["server"],
            )?,
            tools_hidden: registry.counters(
                "toolweir_tools_hidden_total",
                "Tools that were cut out of tools/list answers.",
                &["server"],
            )?,
            entries_hidden: registry.counters(
                "toolweir_entries_hidden_total",
                "Entries that were cut out of the lists of prompts, resources, resource templates and tasks.",
                &["server", "list"],
            )?,
            server_answers,
            messages_refused,
            own_lists: registry.counters(
                "toolweir_own_lists_total",
                "Lists of tools that the sidecar asked servers for by itself, for calls whose decision needs them.",
                &["server", "outcome"],
            )?,
            tool_drift: registry.counters(
                "toolweir_tool_drift_total",
                "Parts of tools' definitions that a list showed anew and that are not as they were pinned; part=\"tool\": tools that are not pinned.",
                &["server", "part"],
            )?,
            tools_drifted: registry.int_gauges(
                "toolweir_tools_drifted",
                "Tools that are not as they were pinned now, or not pinned where a policy minds.",
                &["server"],
            )?,
        })
    }

    /// The counter of the entries that were cut out of a server's lists of this kind.
    pub fn hidden(&self, server: &str, list: ListKind) -> IntCounter {
        match list {
            ListKind::Tools => self.tools_hidden.with_label_values(&[server]),
            list => self.entries_hidden.with_label_values(&[server, list.key()]),
        }
    }
}

/// The counters of what becomes of messages of servers that clients do not get.
fn messages_of_servers(registry: &MetricsRegistry) -> Result<(IntCounterVec, IntCounterVec), prometheus::Error> {
    Ok((
        registry.counters(
            "toolweir_server_answers_total",
            "Answers to requests of servers that policies keep from clients, by what became of them.",
            &["server", "outcome"],
        )?,
        registry.counters(
            "toolweir_server_messages_refused_total",
            "Messages of servers that did not pass since clients could read them in different ways, or could not be read.",
            &["server"],
        )?,
    ))
}
