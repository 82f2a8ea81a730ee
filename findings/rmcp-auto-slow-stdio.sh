#!/usr/bin/env bash
# rmcp 3.11.0 (the Rust SDK of MCP), a client with ClientLifecycleMode::Auto and a child process that needs 12 s to start.
#
# Auto asks with server/discover first, and falls back to initialize "when the peer reports that it is legacy or does not respond within 10
# seconds". No option changes the time. After 10 s the client forgets its question, without cancelling it, and sends initialize into the same
# pipe. The server starts, reads both requests, and answers them in order, each with its id; to the first it says "Method not found", the
# answer by which Auto knows a legacy server. The client now takes any response for the answer to initialize. The id differs, so it gives up
# the connection, with an error that blames the server, and kills the process. So it falls back on each of the two grounds, and fails when
# both are there. A process needs that long when npx or uvx downloads it first, or when it imports a lot.
#
# The server is right: Auto reaches the same one if it needs 1 s, or if it ignores server/discover (though it needs 12 s), and Initialize
# reaches it in any case. A late answer of a server of both eras, which says that all is well, ends the connection too. Once connected, the SDK
# ignores a response that nothing waits for; it is only in the handshake that one is fatal.
#
# Exit code 0 while this is so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/src"
cat >"$work/server.sh" <<'END'
# A server that needs $1 seconds to start. $2 is what it makes of server/discover: legacy, silent or both (eras).
sleep "$1"
answer() { printf '{"jsonrpc":"2.0","id":%s,%s}\n' "$id" "$1"; }
while read -r line; do
	id=${line#*'"id":'}
	id=${id%%,*}
	case $2$line in
	silent*'"method":"server/discover"'*) ;;
	both*'"method":"server/discover"'*)
		answer '"result":{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{"tools":{}},"ttlMs":0,"cacheScope":"private"}'
		;;
	*'"method":"initialize"'*)
		answer '"result":{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"slow","version":"1"}}'
		;;
	*'"method":"tools/list"'*)
		answer '"result":{"resultType":"complete","tools":[{"name":"weather","inputSchema":{"type":"object"}}],"ttlMs":0,"cacheScope":"private"}'
		;;
	*'"method":"notifications/'*) ;;
	*) answer '"error":{"code":-32601,"message":"Method not found"}' ;;
	esac
done
END
cat >"$work/Cargo.toml" <<'END'
[package]
name = "slow"
version = "0.0.0"
edition = "2024"

[dependencies]
rmcp = { version = "=3.11.0", default-features = false, features = ["client", "transport-child-process"] }
tokio = { version = "=1.54.1", features = ["macros", "process", "rt", "time"] }

[profile.dev]
debug = false
END
cat >"$work/src/main.rs" <<'END'
use std::{error::Error, time::Instant};

use rmcp::{ClientLifecycleMode, ClientServiceExt, model::ProtocolVersion, transport::TokioChildProcess};
use tokio::process::Command;

async fn tools(mode: ClientLifecycleMode, delay: &str, kind: &str) -> Result<Vec<String>, Box<dyn Error>> {
    let mut server = Command::new("sh");
    server.args(["server.sh", delay, kind]);
    let client = ().serve_with_lifecycle(TokioChildProcess::new(server)?, mode).await?;
    let tools = client.list_all_tools().await?;
    client.cancel().await?;
    Ok(tools.into_iter().map(|tool| tool.name.into_owned()).collect())
}

async fn connect(mode: ClientLifecycleMode, delay: &str, kind: &str) {
    let name = if mode == ClientLifecycleMode::Initialize { "Initialize" } else { "Auto" };
    let began = Instant::now();
    let said = match tools(mode, delay, kind).await {
        Ok(tools) => format!("tools {tools:?}"),
        Err(error) => error.to_string(),
    };
    println!("{name}, {kind}, {delay} s: {said} (after {} s)", began.elapsed().as_secs());
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let auto = || ClientLifecycleMode::Auto {
        preferred_versions: vec![ProtocolVersion::V_2026_07_28],
        legacy_version: Some(ProtocolVersion::V_2025_11_25),
    };
    tokio::join!(
        connect(auto(), "1", "legacy"),
        connect(auto(), "12", "legacy"),
        connect(auto(), "12", "silent"),
        connect(ClientLifecycleMode::Initialize, "12", "legacy"),
        connect(auto(), "1", "both"),
        connect(auto(), "12", "both"),
    );
}
END
cd "$work"
CARGO_TARGET_DIR=$work/target cargo run --quiet | sort | tee said
saw() { grep -qF "$1 (after " said; }
saw 'Auto, legacy, 1 s: tools ["weather"]'
saw 'Auto, legacy, 12 s: uncorrelated error response: expected id 1, error response carried 0'
saw 'Auto, silent, 12 s: tools ["weather"]'
saw 'Initialize, legacy, 12 s: tools ["weather"]'
saw 'Auto, both, 1 s: tools ["weather"]'
saw 'Auto, both, 12 s: conflict initialized response id: expected 1, got 0'
echo "as described"

# Auto, both, 1 s: tools ["weather"] (after 1 s)
# Auto, both, 12 s: conflict initialized response id: expected 1, got 0 (after 12 s)
# Auto, legacy, 1 s: tools ["weather"] (after 1 s)
# Auto, legacy, 12 s: uncorrelated error response: expected id 1, error response carried 0 (after 12 s)
# Auto, silent, 12 s: tools ["weather"] (after 12 s)
# Initialize, legacy, 12 s: tools ["weather"] (after 12 s)
