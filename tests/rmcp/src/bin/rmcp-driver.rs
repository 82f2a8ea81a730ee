//! Lets `tests/sdk/driver.py` steer the client of the Rust SDK; that file says how the two speak.

use std::io::{self, Write};

use rmcp::{
    ClientLifecycleMode, ClientServiceExt, RoleClient,
    model::{CallToolRequestParams, ClientConfig, JsonObject, ProtocolVersion},
    service::RunningService,
    transport::StreamableHttpClientTransport,
};
use serde::Deserialize;
use serde_json::{Value, json};

/// What `driver.py` asks for.
#[derive(Deserialize)]
struct Request {
    #[serde(default)]
    list: bool,
    #[serde(default)]
    call: String,
    #[serde(default)]
    args: JsonObject,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    toolweir_test_rmcp::use_ring();
    let url = std::env::args().nth(1).unwrap_or_default();
    let transport = StreamableHttpClientTransport::from_uri(url);
    let lifecycle = ClientLifecycleMode::Auto { preferred_versions: vec![ProtocolVersion::V_2026_07_28], legacy_version: None };
    let client = match ClientConfig::default().serve_with_lifecycle(transport, lifecycle).await {
        Ok(client) => client,
        Err(error) => return say(&json!({"error": error.to_string()})),
    };
    let version = client.peer_info().map(|info| info.protocol_version.to_string()).unwrap_or_default();
    say(&json!({"protocol": version}))?;
    for line in io::stdin().lines() {
        let request: Request = serde_json::from_str(&line?)?;
        say(&answer(&client, request).await.unwrap_or_else(|error| json!({"error": error.to_string()})))?;
    }
    client.cancel().await?;
    Ok(())
}

async fn answer(client: &RunningService<RoleClient, ClientConfig>, request: Request) -> anyhow::Result<Value> {
    if request.list {
        let names: Vec<_> = client.list_all_tools().await?.into_iter().map(|tool| tool.name).collect();
        return Ok(json!({"tools": names}));
    }
    let params = CallToolRequestParams::new(request.call).with_arguments(request.args);
    Ok(json!({"result": client.call_tool(params).await?}))
}

fn say(answer: &Value) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{answer}")?;
    Ok(out.flush()?)
}
