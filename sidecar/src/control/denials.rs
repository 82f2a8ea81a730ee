//! Reports of denied calls and other operations to the operator: by how much the sidecar's own counters have risen. Deciding a call knows nothing of
//! it, and a report holds nothing that a scrape would not.

use std::collections::HashMap;

use prometheus::{IntCounterVec, core::Collector};
use toolweir_crds::stream::{Denials, Denied};
use toolweir_engine::Reason;

use crate::metrics::SidecarMetrics;

/// The most kinds of denials in one line; the others come with a later one.
const MOST: usize = 64;

/// What was denied.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Kind {
    server: String,
    name: String,
    reason: String,
    policy: String,
    /// The method, but of a tool call.
    operation: String,
    /// Of a connection, which has no server, name and policy.
    destination: Option<String>,
}

/// The counts that were reported so far.
#[derive(Debug, Default)]
pub struct ReportedDenials(HashMap<Kind, u64>);

impl ReportedDenials {
    /// Returns the denials since the last report, if there are some. They count as reported.
    pub fn take_new(&mut self, metrics: &SidecarMetrics) -> Option<Denials> {
        let mut new: Vec<(Kind, u64, u64)> = counts(metrics)
            .filter_map(|(kind, count)| {
                let more = count.checked_sub(self.0.get(&kind).copied().unwrap_or_default())?;
                (more > 0).then_some((kind, more, count))
            })
            .collect();
        // The most frequent first; then by name, so that the order is the same each time.
        new.sort_by(|(a, more, _), (b, other, _)| other.cmp(more).then_with(|| a.cmp(b)));
        new.truncate(MOST);
        let reported = new.into_iter().map(|(kind, more, count)| {
            self.0.insert(kind.clone(), count);
            let Kind { server, name, reason, policy, operation, destination } = kind;
            Denied { policy, reason, server, operation, tool: name, destination, count: more }
        });
        let denials: Vec<Denied> = reported.collect();
        (!denials.is_empty()).then_some(Denials { denials })
    }
}

/// The series of denied calls, other operations and connections.
fn counts(metrics: &SidecarMetrics) -> impl Iterator<Item = (Kind, u64)> {
    let of_server = |label: &dyn Fn(&str) -> String, name: &str| Kind {
        server: label("server"),
        name: label(name),
        reason: label("reason"),
        policy: label("policy"),
        ..Kind::default()
    };
    let calls = denied(&metrics.servers.tool_calls, |label| of_server(label, "tool"));
    let operations =
        denied(&metrics.servers.operations, |label| Kind { operation: label("operation"), ..of_server(label, "name") });
    let connections = denied(&metrics.egress.connections, |label| Kind {
        reason: label("reason"),
        destination: Some(label("name")),
        ..Kind::default()
    });
    calls.into_iter().chain(operations).chain(connections)
}

/// The series of a counter whose decision is a denial.
fn denied(counter: &IntCounterVec, kind: impl Fn(&dyn Fn(&str) -> String) -> Kind) -> Vec<(Kind, u64)> {
    let metrics = counter.collect().into_iter().flat_map(|family| family.get_metric().to_vec());
    let denied = metrics.filter_map(|metric| {
        let label = |name: &str| {
            let found = metric.get_label().iter().find(|label| label.name() == name);
            found.map(|label| label.value().to_owned()).unwrap_or_default()
        };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a counter")]
        let count = metric.get_counter().get_value() as u64;
        // What waits for a person, the operator is told otherwise.
        let is_denied = label("decision") == "denied" && label("reason") != Reason::ApprovalPending.as_str();
        is_denied.then(|| (kind(&label), count))
    });
    denied.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied(tool: &str, reason: &str, count: u64) -> Denied {
        let text = str::to_owned;
        let (policy, reason) = (text("agents/p"), text(reason));
        Denied { policy, reason, server: text("s"), operation: String::new(), tool: text(tool), destination: None, count }
    }

    #[test]
    fn what_was_told_is_not_told_again() {
        let metrics = SidecarMetrics::new().unwrap();
        let deny = |tool: &str, reason: &str, count| {
            metrics.servers.tool_calls.with_label_values(&["s", tool, "denied", reason, "agents/p"]).inc_by(count);
        };
        let mut reported = ReportedDenials::default();
        assert_eq!(reported.take_new(&metrics), None);
        metrics.servers.tool_calls.with_label_values(&["s", "a", "allowed", "none", "agents/p"]).inc();
        metrics.servers.tool_calls.with_label_values(&["s", "a", "would_deny", "rate_limit", "agents/p"]).inc();
        metrics.servers.tool_calls.with_label_values(&["s", "a", "denied", "approval_pending", "agents/p"]).inc();
        assert_eq!(reported.take_new(&metrics), None);
        deny("a", "rate_limit", 2);
        deny("_other", "not_listed", 5);
        let first = vec![denied("_other", "not_listed", 5), denied("a", "rate_limit", 2)];
        assert_eq!(reported.take_new(&metrics), Some(Denials { denials: first }));
        assert_eq!(reported.take_new(&metrics), None);
        deny("a", "rate_limit", 1);
        assert_eq!(reported.take_new(&metrics), Some(Denials { denials: vec![denied("a", "rate_limit", 1)] }));
    }

    #[test]
    fn a_prompt_is_not_taken_for_a_tool_of_its_name() {
        let metrics = SidecarMetrics::new().unwrap();
        metrics.servers.tool_calls.with_label_values(&["s", "a", "denied", "denied", "agents/p"]).inc();
        let count = |labels: &[&str; 6], count| metrics.servers.operations.with_label_values(labels).inc_by(count);
        count(&["s", "prompts/get", "a", "denied", "denied", "agents/p"], 3);
        count(&["s", "prompts/get", "b", "allowed", "none", "agents/p"], 1);
        count(&["s", "sampling/createMessage", "sampling", "denied", "rate_limit", "agents/p"], 2);
        let of = |operation: &str, denied: Denied| Denied { operation: operation.to_owned(), ..denied };
        let expected = vec![
            of("prompts/get", denied("a", "denied", 3)),
            of("sampling/createMessage", denied("sampling", "rate_limit", 2)),
            denied("a", "denied", 1),
        ];
        let mut reported = ReportedDenials::default();
        assert_eq!(reported.take_new(&metrics), Some(Denials { denials: expected }));
        assert_eq!(reported.take_new(&metrics), None);
    }

    #[test]
    fn what_does_not_fit_comes_later() {
        let metrics = SidecarMetrics::new().unwrap();
        for tool in 0..MOST + 3 {
            metrics.servers.tool_calls.with_label_values(&["s", &format!("t{tool}"), "denied", "denied", "agents/p"]).inc();
        }
        let mut reported = ReportedDenials::default();
        assert_eq!(reported.take_new(&metrics).unwrap().denials.len(), MOST);
        assert_eq!(reported.take_new(&metrics).unwrap().denials.len(), 3);
        assert_eq!(reported.take_new(&metrics), None);
    }
}
