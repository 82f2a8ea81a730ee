//! `toolweir-sidecar replay`, on what the real program has recorded.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{process::Stdio, time::Duration};

use common::{call, client::Ask, folder::Folder, policy, program, sidecar::Sidecar, speaking, upstream::Upstream, within};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use toolweir_sidecar::audit::MOST_ARGUMENTS;

const THREE: &str = "[{name: pay, validations: [{expression: 'args.n < 5'}], limits: [{max: 3, window: minute}]}]";

/// A policy under which the audit log has the arguments, if so.
fn audited(url: &str, tools: &str, with_arguments: bool) -> String {
    policy(url, tools).replace("    tools:", &format!("    auditArguments: {with_arguments}\n    tools:"))
}

async fn recorded(with_arguments: bool) -> String {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&audited(&upstream.url(), THREE, with_arguments)).await;
    for n in [1, 2, 9, 3, 4] {
        sidecar.ask(&Ask::post(call("1", "pay", &format!("{{ \"n\": {n} }}")))).await;
        // Within one millisecond, the log does not say which came first.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    sidecar.audit(5).await;
    sidecar.audit_text()
}

async fn replayed(policy: &str, log: &str) -> Value {
    let folder = Folder::new();
    let (policy, log) = (folder.write("policy.yaml", speaking(policy)), folder.write("audit.log", log));
    let output = program::run(&["replay", "--policy", policy.to_str().unwrap(), "-o", "json", log.to_str().unwrap()]).await;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn what_was_recorded_is_decided_as_it_was_and_otherwise_by_another_policy() {
    let with = recorded(true).await;
    let same = replayed(&policy("http://bank/mcp", THREE), &with).await;
    assert_eq!((&same["calls"], &same["unchanged"], &same["changes"]), (&json!(5), &json!(5), &json!([])));
    let halved = replayed(&policy("http://bank/mcp", &THREE.replace("max: 3", "max: 1")), &with).await;
    assert_eq!(halved["changed"], json!({"newly_denied": 2}));
    assert_eq!(
        (&halved["changes"][0]["reason"], &halved["changes"][0]["examples"][0]["line"]),
        (&json!("rate_limit"), &json!(2))
    );
    // Without arguments, the limit alone is certain: what was denied for its arguments counts.
    let without = replayed(&policy("http://bank/mcp", THREE), &recorded(false).await).await;
    assert_eq!((&without["changed"], &without["unchanged"]), (&json!({"newly_denied": 1, "unknown": 3}), &json!(1)));
}

#[tokio::test]
async fn the_log_is_read_from_stdin_too_and_damage_is_told() {
    let folder = Folder::new();
    let policy = folder.write("policy.yaml", speaking(&policy("http://bank/mcp", THREE)));
    let mut command = program::command(&["replay", "--policy", policy.to_str().unwrap(), "-"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let log = recorded(true).await;
    input.write_all(format!("{log}{}\nready\n", &log[..100]).as_bytes()).await.unwrap();
    drop(input);
    let output = within("the end", child.wait_with_output()).await.unwrap();
    let (out, error) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success() && out.contains("5 as before\nLines that are no calls: 1 other, 1 damaged\n"), "{out}");
    assert!(error.starts_with("warning: stdin:6: is a damaged audit line: EOF while parsing"), "{error}");
}

#[tokio::test]
async fn what_cannot_be_done_is_said_in_one_line_and_nothing_is_printed() {
    let folder = Folder::new();
    let good = folder.write("policy.yaml", policy("http://bank/mcp", THREE));
    let bad = folder.write("bad.yaml", policy("http://bank/mcp", "[{name: pay, limits: [{max: 0, window: day}]}]"));
    let log = folder.write("audit.log", "");
    for (policy, log, expected) in [
        (&bad, log.as_path(), "bad.yaml:8:40: spec.servers[0].tools[0].limits[0].max: is 0"),
        (&good, &folder.path().join("none.log"), "none.log is not there; give the path of an audit log"),
    ] {
        let output = program::run(&["replay", "--policy", policy.to_str().unwrap(), log.to_str().unwrap()]).await;
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.len(), error.lines().count()), (Some(1), 0, 1), "{error}");
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn the_audit_log_has_arguments_where_a_policy_asks_for_them_and_none_refuses() {
    let upstream = Upstream::bank().await;
    let tools = "[{name: pay}]";
    let arguments = "{ \"note\": \"a  b\\n\", \"amount\" : 1.50, \"amount\":2 }";
    let yes = audited(&upstream.url(), tools, true);
    let guard = |says: &str| {
        format!(
            "---\napiVersion: toolweir.dev/v1alpha1\nkind: MCPClusterPolicy\nmetadata: {{name: guard}}\n\
             spec:\n  servers: [{{name: '*', defaultAction: Allow{says}}}]\n"
        )
    };
    let plain = policy(&upstream.url(), tools);
    for (text, has) in [
        (yes.clone(), true),
        (plain.clone(), false),
        (audited(&upstream.url(), tools, false), false),
        (format!("{yes}{}", guard("")), true),
        (format!("{yes}{}", guard(", auditArguments: false")), false),
        (format!("{plain}{}", guard(", auditArguments: true")), true),
    ] {
        let sidecar = Sidecar::start(&text).await;
        sidecar.post(&call("1", "pay", arguments)).await;
        sidecar.post(&call("2", "close", "{}")).await;
        sidecar.post(&call("3", "pay", &format!("[\"{}\"]", "x".repeat(MOST_ARGUMENTS)))).await;
        let lines = sidecar.audit(3).await;
        let fields = |line: &Value| (line.get("arguments").cloned(), line.get("argumentsTooLarge").cloned());
        if has {
            // As they were sent: the order, the notation, and what stands twice.
            let raw = r#""arguments":{"note":"a  b\n","amount":1.50,"amount":2}}"#;
            assert!(sidecar.audit_text().lines().next().unwrap().ends_with(raw), "{}", sidecar.audit_text());
            assert_eq!(fields(&lines[1]), (Some(json!({})), None));
            assert_eq!(fields(&lines[2]), (None, Some(json!(true))));
        } else {
            assert!(lines.iter().all(|line| fields(line) == (None, None)), "{text}\n{lines:?}");
        }
    }
}
