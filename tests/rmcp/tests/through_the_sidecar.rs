//! rmcp's client reaches rmcp's server through the sidecar, for every way in which the two can speak.

#![allow(clippy::indexing_slicing)]

use std::time::Duration;

use rmcp::{ClientLifecycleMode, model::ProtocolVersion, transport::streamable_http_server::StreamableHttpServerConfig};
use serde_json::json;
use toolweir_test_rmcp::{RmcpClient, RmcpServer, sidecar};

const MODERN: &str = "2026-07-28";

/// Sessions, and every answer an event stream.
fn sessions() -> StreamableHttpServerConfig {
    StreamableHttpServerConfig::default()
}

/// No sessions, and every answer an event stream.
fn events() -> StreamableHttpServerConfig {
    StreamableHttpServerConfig::default().with_legacy_session_mode(false)
}

/// No sessions, and JSON answers.
fn json() -> StreamableHttpServerConfig {
    events().with_json_response(true)
}

fn initialize() -> ClientLifecycleMode {
    ClientLifecycleMode::Initialize
}

fn discover() -> ClientLifecycleMode {
    ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] }
}

fn auto() -> ClientLifecycleMode {
    ClientLifecycleMode::Auto { preferred_versions: vec![ProtocolVersion::V_2026_07_28], legacy_version: None }
}

async fn steps(server: StreamableHttpServerConfig, lifecycle: ClientLifecycleMode) -> anyhow::Result<()> {
    let modern = lifecycle != ClientLifecycleMode::Initialize;
    let with_sessions = server.legacy_session_mode && !modern;
    let server = RmcpServer::start(server).await?;
    let policy = format!(
        "apiVersion: toolweir.dev/v1alpha1
kind: MCPPolicy
metadata: {{name: rmcp, namespace: tests}}
spec:
  servers:
  - name: tools
    url: http://{}/mcp
    tools:
    - name: echo
    - name: add
      limits:
      - {{max: 3, window: minute}}
    - name: delete_everything
      action: Deny
      reason: Ask the platform team.
",
        server.address
    );
    let (sidecar, _folder) = sidecar(&policy).await?;
    let client = RmcpClient::connect(&format!("http://{}/tools", sidecar.proxy.address), lifecycle).await?;
    assert_eq!(client.version() == MODERN, modern, "{}", client.version());

    assert_eq!(client.tools().await?, ["add", "echo"].map(str::to_owned).into());

    let answer = client.call("echo", json!({"text": "one"})).await?;
    assert_eq!((answer.is_error, answer.text.as_str(), answer.denial), (false, "one", None));

    for (tool, text, reason) in [
        ("delete_everything", "Denied by policy tests/rmcp: Ask the platform team.", "denied"),
        ("read_secret", "Denied by policy tests/rmcp: read_secret is not among the tools that may be called.", "not_listed"),
    ] {
        let answer = client.call(tool, json!({})).await?;
        assert!(answer.is_error && answer.text.starts_with(text), "{answer:?}");
        let denial = answer.denial.unwrap_or_default();
        assert_eq!((&denial["reason"], &denial["tool"], &denial["policy"]), (&json!(reason), &json!(tool), &json!("tests/rmcp")));
    }

    for n in 1..=3 {
        let answer = client.call("add", json!({"a": n, "b": 10})).await?;
        assert_eq!((answer.is_error, answer.text), (false, (n + 10).to_string()));
    }
    let answer = client.call("add", json!({"a": 4, "b": 10})).await?;
    assert!(answer.is_error, "{answer:?}");
    assert!(
        answer.text.starts_with("Denied by policy tests/rmcp: add is limited to 3 calls a minute. Try again in "),
        "{answer:?}"
    );
    let denial = answer.denial.unwrap_or_default();
    assert_eq!(denial["limit"], json!({"max": 3, "window": "minute", "scope": "Pod"}));
    assert!((1..=61).contains(&denial["retryAfterSeconds"].as_u64().unwrap_or_default()), "{denial}");

    // Whatever was denied, the session lives on.
    assert_eq!(client.call("echo", json!({"text": "two"})).await?.text, "two");
    assert_eq!(client.tools().await?.len(), 2);
    assert_eq!(server.sessions() == 1, with_sessions, "{}", server.sessions());
    assert_eq!(server.calls(), ["echo one", "add 1 10", "add 2 10", "add 3 10", "echo two"]);
    client.close().await?;
    assert!(sidecar.stop(Duration::from_secs(5)).await, "requests were still under way");
    Ok(())
}

macro_rules! steps {
    ($($name:ident: $server:ident, $lifecycle:ident;)*) => {
        $(
            #[tokio::test]
            async fn $name() -> anyhow::Result<()> {
                steps($server(), $lifecycle()).await
            }
        )*
    };
}

steps! {
    a_legacy_client_of_a_server_with_sessions: sessions, initialize;
    a_legacy_client_of_a_server_that_streams: events, initialize;
    a_legacy_client_of_a_server_that_answers_json: json, initialize;
    a_modern_client_of_a_server_with_sessions: sessions, discover;
    a_modern_client_of_a_server_that_streams: events, discover;
    a_modern_client_of_a_server_that_answers_json: json, discover;
    a_client_that_finds_out_of_a_server_with_sessions: sessions, auto;
    a_client_that_finds_out_of_a_server_that_streams: events, auto;
    a_client_that_finds_out_of_a_server_that_answers_json: json, auto;
}
