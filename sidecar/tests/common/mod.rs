//! Shared by the tests: a scripted MCP server, clients that send exactly what they are told, a sidecar in this
//! process, and the real program.
#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

pub mod client;
pub mod folder;
pub mod logs;
pub mod metrics;
pub mod operator;
pub mod pins;
pub mod pipes;
pub mod program;
pub mod sidecar;
pub mod stdio;
pub mod tls;
pub mod upstream;

use std::time::{Duration, Instant};

use serde_json::Value;

/// The time for which a test waits for what must happen.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Waits for a future, but not for ever.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what}: nothing happened within {DEADLINE:?}"))
}

/// Waits until a condition holds, and gives how long that took.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    began.elapsed()
}

/// A policy `agents/bank` for the server `bank` at a url, with entries in YAML.
pub fn policy(url: &str, tools: &str) -> String {
    format!(
        "apiVersion: toolweir.dev/v1alpha1\nkind: MCPPolicy\nmetadata: {{name: bank, namespace: agents}}\n\
         spec:\n  servers:\n  - name: bank\n    url: {url}\n    tools: {tools}\n"
    )
}

/// The same with more fields of the server, each a line of YAML.
pub fn policy_with(url: &str, tools: &str, fields: &[&str]) -> String {
    let fields: String = fields.iter().map(|field| format!("    {field}\n")).collect();
    policy(url, tools) + &fields
}

/// A policy that allows everything on the server `bank` at a url.
pub fn allow_all(url: &str) -> String {
    policy(url, "[{name: \"*\", action: Allow}]")
}

/// A policy of one server that also has a say in all but tools, and denies it: nobody is warned that it has none.
pub fn speaking(policy: &str) -> String {
    format!("{policy}    defaultActions: {{prompts: Deny, resources: Deny, requests: Deny, other: Deny}}\n")
}

/// A request in JSON-RPC.
pub fn request(id: &str, method: &str, params: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}"#)
}

/// A tools/call.
pub fn call(id: &str, tool: &str, arguments: &str) -> String {
    request(id, "tools/call", &format!(r#"{{"name":"{tool}","arguments":{arguments}}}"#))
}

/// A tools/call of the modern era.
pub fn modern_call(id: &str, tool: &str) -> String {
    request(
        id,
        "tools/call",
        &format!(r#"{{"name":"{tool}","_meta":{{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}}"#),
    )
}

/// The answer to a tools/call.
pub fn result(id: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"content":[{{"type":"text","text":"done"}}],"isError":false}}}}"#)
}

/// A tools/list result with tools of these names.
pub fn list(id: &str, names: &[&str]) -> String {
    let tools: Vec<String> =
        names.iter().map(|name| format!(r#"{{"name":"{name}","inputSchema":{{"type":"object"}}}}"#)).collect();
    format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"tools":[{}]}}}}"#, tools.join(","))
}

/// The lists: the method, the key in a result, and what identifies an entry.
pub const LISTS: [(&str, &str, &str); 5] = [
    ("tools/list", "tools", "name"),
    ("prompts/list", "prompts", "name"),
    ("resources/list", "resources", "uri"),
    ("resources/templates/list", "resourceTemplates", "uriTemplate"),
    ("tasks/list", "tasks", "taskId"),
];

/// What an agent may use by [`SOME`], and what not, as the entries of each of the [`LISTS`] name it.
pub fn usable(list: &str) -> [&'static str; 2] {
    match list {
        "resources" => ["file:///pay", "file:///wipe"],
        "resourceTemplates" => ["file:///pay/{id}", "file:///wipe/{id}"],
        _ => ["pay", "wipe"],
    }
}

/// The fields of a server with which some prompts and resources may be used.
pub const SOME: [&str; 2] = ["prompts: [{name: pay}]", "resources: [{uri: \"file:///pay*\"}]"];

/// The field of a server with which nothing of its messages is looked at but lists.
pub const FREE: &str = "defaultActions: {prompts: Allow, resources: Allow, requests: Allow, other: Allow}";

/// The denial in an answer: that of a tool result, or that of an error.
pub fn denial(answer: &Value) -> &Value {
    let found =
        answer.pointer("/result/_meta/toolweir.dev~1denial").or_else(|| answer.pointer("/error/data/toolweir.dev~1denial"));
    found.unwrap_or_else(|| panic!("no denial in {answer}"))
}
