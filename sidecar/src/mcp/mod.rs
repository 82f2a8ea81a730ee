//! The Model Context Protocol as a policy proxy must know it: what a request means, and how answers are written.
//! Everything here works on bytes and knows nothing of sockets.

pub mod answer;
pub mod answer_finder;
pub mod ask_finder;
pub mod changes;
pub mod client_ask;
pub mod edits;
pub mod headers;
pub mod id;
pub mod json_pieces;
pub mod list;
pub mod list_kind;
pub mod members;
pub mod own_list;
pub mod page_request;
pub mod request;
pub mod scan;
pub mod server_message;
pub mod sse;

/// The methods of the protocol: for the metrics' label `method`, where others are `_other`, and so that none passes that
/// differs from one of them in case alone.
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
    "notifications/prompts/list_changed",
    "notifications/resources/list_changed",
    "notifications/resources/updated",
    "notifications/roots/list_changed",
    "notifications/subscriptions/acknowledged",
    "notifications/tasks",
    "notifications/tasks/status",
    "notifications/tools/list_changed",
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

/// The value of the metrics' label `method` for a method.
pub fn method_label(method: &str) -> &'static str {
    METHODS.binary_search(&method).ok().and_then(|at| METHODS.get(at)).copied().unwrap_or("_other")
}

/// Returns whether the protocol has such a method.
pub fn is_method(method: &str) -> bool {
    METHODS.binary_search(&method).is_ok()
}

/// The prefixes of methods that are all of one kind.
const FAMILIES: &[&str] = &["tasks/"];

/// The known method, or family of methods, that a method is but for case. A server that ignores case carries that out.
pub fn differs_in_case(method: &str) -> Option<&'static str> {
    if METHODS.binary_search(&method).is_ok() {
        return None;
    }
    let family =
        |family: &&&str| method.get(..family.len()).is_some_and(|start| start.eq_ignore_ascii_case(family) && start != **family);
    let known = METHODS.iter().find(|known| known.eq_ignore_ascii_case(method));
    known.or_else(|| FAMILIES.iter().find(family)).copied()
}

#[cfg(test)]
mod tests {
    #[test]
    fn methods_are_sorted_for_the_search() {
        assert!(super::METHODS.is_sorted());
        assert_eq!(super::method_label("tools/call"), "tools/call");
        assert_eq!(super::method_label("tools/Call"), "_other");
    }

    #[test]
    fn a_known_method_in_another_case_is_known() {
        for known in super::METHODS {
            assert_eq!(super::differs_in_case(known), None);
            assert_eq!(super::differs_in_case(&known.to_ascii_uppercase()), Some(*known));
        }
        assert_eq!(super::differs_in_case("Tasks/of-tomorrow"), Some("tasks/"));
        for other in ["tasks/of-tomorrow", "tools/lists", "x", "", "ta"] {
            assert_eq!(super::differs_in_case(other), None, "{other}");
        }
    }
}
