//! The Model Context Protocol as a policy proxy must know it: what a request means, and how answers are written.
//! Everything here works on bytes and knows nothing of sockets.

pub mod answer;
pub mod coding;
pub mod headers;
pub mod list;
pub mod request;
pub mod sse;

/// The methods of the protocol, for the metrics' label `method`; others are `_other`.
const METHODS: &[&str] = &[
    "completion/complete",
    "elicitation/create",
    "initialize",
    "logging/setLevel",
    "notifications/cancelled",
    "notifications/elicitation/complete",
    "notifications/initialized",
    "notifications/message",
    "notifications/progress",
    "notifications/roots/list_changed",
    "notifications/tasks/status",
    "ping",
    "prompts/get",
    "prompts/list",
    "resources/list",
    "resources/read",
    "resources/subscribe",
    "resources/templates/list",
    "resources/unsubscribe",
    "roots/list",
    "sampling/createMessage",
    "server/discover",
    "subscriptions/listen",
    "tasks/cancel",
    "tasks/get",
    "tasks/list",
    "tasks/result",
    "tasks/update",
    "tools/call",
    "tools/list",
];

/// A method as the metrics name it.
pub fn method_label(method: &str) -> &'static str {
    METHODS.binary_search(&method).ok().and_then(|at| METHODS.get(at)).copied().unwrap_or("_other")
}

#[cfg(test)]
mod tests {
    #[test]
    fn methods_are_sorted_for_the_search() {
        assert!(super::METHODS.is_sorted());
        assert_eq!(super::method_label("tools/call"), "tools/call");
        assert_eq!(super::method_label("tools/Call"), "_other");
    }
}
