//! `GET /observed` says what agents did: calls and peak rates of the tools that a policy or a tools/list names.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{
    call,
    client::{Ask, Http},
    policy, request,
    sidecar::Sidecar,
    upstream::{Reply, Upstream},
};
use toolweir_crds::observed::{ObservedResponse, ObservedTool};

async fn observed(sidecar: &Sidecar) -> ObservedResponse {
    let answer = Ask::get().to("/observed").over(Http::One, sidecar.admin).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"), "{}", answer.text());
    serde_json::from_value(answer.json()).unwrap()
}

fn tool(tool: &str, calls: u64, denied: u64) -> ObservedTool {
    let (peak_minute, peak_hour, peak_day) = (calls, calls, calls);
    ObservedTool { server: "bank".to_owned(), tool: tool.to_owned(), calls, denied, peak_minute, peak_hour, peak_day }
}

/// A server with two tools, and an answer to every call.
async fn upstream() -> Upstream {
    Upstream::start(|seen| {
        let message = seen.json();
        let result = match message["method"].as_str() {
            Some("tools/list") => r#"{"tools":[{"name":"get_a","inputSchema":{}},{"name":"get_b","inputSchema":{}}]}"#,
            _ => r#"{"content":[],"isError":false}"#,
        };
        Reply::json(format!(r#"{{"jsonrpc":"2.0","id":{},"result":{result}}}"#, message["id"]))
    })
    .await
}

#[tokio::test]
async fn what_was_let_through_and_denied_is_kept_by_tool_across_a_change_of_policies() {
    let upstream = upstream().await;
    let tools = "[{name: pay, limits: [{max: 2, window: hour}]}, {name: wipe, action: Deny}, {name: \"get_*\"}]";
    let sidecar = Sidecar::start(&policy(&upstream.url(), tools)).await;
    let before = observed(&sidecar).await;
    assert_eq!((before.tools, before.dropped_calls), (Vec::new(), 0));
    assert!(humantime::parse_rfc3339(&before.since).unwrap() <= std::time::SystemTime::now());

    for expected in ["none", "none", "rate_limit"] {
        assert_eq!(sidecar.reason(&call("1", "pay", "{}")).await, expected);
    }
    assert_eq!(sidecar.reason(&call("1", "wipe", "{}")).await, "denied");
    // A tool that only a glob covers is not known before the server lists it.
    assert_eq!(sidecar.reason(&call("1", "get_a", "{}")).await, "none");
    sidecar.post(&request("2", "tools/list", "{}")).await;
    assert_eq!(sidecar.reason(&call("1", "get_a", "{}")).await, "none");
    assert_eq!(sidecar.reason(&call("1", "get_unlisted", "{}")).await, "none");
    assert_eq!(sidecar.reason(&call("1", "made_up", "{}")).await, "not_listed");
    let seen = observed(&sidecar).await;
    assert_eq!((seen.tools, seen.dropped_calls), (vec![tool("get_a", 1, 0), tool("pay", 2, 1), tool("wipe", 0, 1)], 2));

    // Other policies: the same records go on, and audit mode lets through.
    let audit = policy(&upstream.url(), "[{name: pay, action: Deny}]").replace("spec:\n", "spec:\n  mode: Audit\n");
    let version = sidecar.governor.in_force().version.clone();
    sidecar.folder.write("policy.yaml", &audit);
    common::until("the new policy", async || sidecar.governor.in_force().version != version).await;
    assert_eq!(sidecar.reason(&call("1", "pay", "{}")).await, "none");
    assert_eq!(observed(&sidecar).await.tools[1], tool("pay", 3, 1));
}
