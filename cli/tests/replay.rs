//! `replay` against an API server that is a function: which policies decide, on which logs, and what it says where it cannot.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{path::PathBuf, time::Duration};

use common::{ApiServer, SharedBuffer, pod};
use serde_json::{Value, json};
use toolweir_cli::{
    OutputFormat,
    replay::{ReplayQuery, replay},
    replay_policies::NewPolicies,
};

/// A file that is removed with the test.
struct PolicyFile(PathBuf);

impl Drop for PolicyFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn file(text: &str) -> PolicyFile {
    static NUMBER: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("toolweir-replay-{}-{number}.yaml", std::process::id()));
    std::fs::write(&path, text).unwrap();
    PolicyFile(path)
}

/// A policy of the server `bank` with a limit, for pods with this label `app`.
fn limited(name: &str, app: &str, max: i64) -> PolicyFile {
    file(&format!(
        "apiVersion: toolweir.dev/v1alpha1
kind: MCPPolicy
metadata: {{name: {name}}}
spec:
  podSelector: {{matchLabels: {{app: {app}}}}}
  servers:
  - name: bank
    url: http://bank/mcp
    tools: [{{name: pay, limits: [{{max: {max}, window: hour}}]}}]
"
    ))
}

fn calls(many: u8) -> Vec<String> {
    let call = |second: u8| {
        format!(
            r#"{{"time":"2026-11-24T17:08:{second:02}.414Z","server":"bank","tool":"pay","decision":"allowed","reason":"none","policy":"agents/bank","entry":"pay","outcome":"ok","latencyMs":1.5,"session":null,"argumentsSha256":null}}"#
        )
    };
    (0..many).map(call).collect()
}

/// Three pods, of which the last has no sidecar; the policy `bank` of the first two; and a guardrail of six calls an hour.
fn cluster() -> ApiServer {
    let api = ApiServer::default();
    api.change(|world| {
        world.namespaces = vec![json!({"metadata": {"name": "agents", "labels": {"team": "x"}}})];
        world.pods = vec![pod("agents", "social-1", true), pod("agents", "social-2", true), pod("agents", "old", false)];
        world.pods[1]["metadata"]["labels"]["app"] = "other".into();
        let server = |name: &str, max: i64| {
            json!({"name": name, "defaultAction": "Allow", "tools": [
            {"name": "pay", "limits": [{"max": max, "window": "hour"}]}]})
        };
        let mut bank = server("bank", 3);
        bank["url"] = "http://bank/mcp".into();
        let metadata = json!({"name": "bank", "namespace": "agents", "creationTimestamp": "2026-01-01T00:00:00Z"});
        world.policies = vec![json!({"metadata": metadata, "spec": {"servers": [bank]}})];
        let guardrail = |label: &str, max: i64| {
            let spec = json!({"namespaceSelector": {"matchLabels": {"team": label}}, "servers": [server("*", max)]});
            json!({"metadata": {"name": format!("guardrail-{label}")}, "spec": spec})
        };
        world.cluster_policies = vec![guardrail("x", 6), guardrail("y", 1)];
        world.logs.insert("social-1".to_owned(), calls(9));
        world.logs.insert("social-2".to_owned(), calls(9));
    });
    api
}

fn query(pod: Option<&str>) -> ReplayQuery {
    ReplayQuery {
        namespace: "agents".to_owned(),
        pod: pod.map(str::to_owned),
        since: Duration::from_secs(7200),
        examples: 1,
        form: OutputFormat::Json,
    }
}

async fn report(api: &ApiServer, file: &PolicyFile, query: &ReplayQuery) -> anyhow::Result<Value> {
    let (out, notes) = (SharedBuffer::default(), SharedBuffer::default());
    let new = NewPolicies::load(std::slice::from_ref(&file.0))?;
    replay(&api.client(), new, query, out.clone(), notes.clone()).await?;
    Ok(serde_json::from_str(&out.text()).unwrap())
}

/// The calls of each change, with log and policy of the first.
fn told(report: &Value) -> Vec<String> {
    let text = |change: &Value| {
        let first = &change["examples"][0];
        format!("{} {} {} {}:{}", change["change"], change["calls"], first["policy"], first["log"], first["line"])
            .replace('"', "")
    };
    report["changes"].as_array().unwrap().iter().map(text).collect()
}

#[tokio::test]
async fn all_policies_of_a_pod_decide_and_those_of_files_replace_those_of_the_same_name() {
    let api = cluster();
    // The old one of three calls no longer decides, the guardrail still does.
    let found = report(&api, &limited("bank", "social", 8), &query(None)).await.unwrap();
    assert_eq!(
        told(&found),
        [
            // What the policy no longer governs is governed by nothing but the guardrail, which names no server of its own.
            "newly_denied 9 null agents/social-2:1",
            "newly_denied 3 guardrail-x agents/social-1:7",
        ]
    );
    assert_eq!((&found["calls"], &found["unchanged"]), (&json!(18), &json!(6)));
    let read = api.seen("/log?");
    assert!(read.len() == 2 && read.iter().all(|request| request.contains("sinceSeconds=7200")), "{read:?}");
    // One of another name is added: the strictest decides.
    let found = report(&api, &limited("more", "social", 2), &query(None)).await.unwrap();
    assert_eq!(told(&found), ["newly_denied 7 agents/more agents/social-1:3"]);
    let found = report(&api, &limited("bank", "social", 8), &query(Some("social-2"))).await.unwrap();
    assert_eq!(told(&found), ["newly_denied 9 null agents/social-2:1"]);
}

#[tokio::test]
async fn the_log_before_a_restart_is_read_with_counts_of_its_own() {
    let api = cluster();
    api.change(|world| {
        world.pods[0]["status"]["initContainerStatuses"][0]["restartCount"] = 2.into();
        world.logs.insert("social-1 previous".to_owned(), calls(3));
        world.logs.insert("social-1".to_owned(), calls(2));
    });
    let found = report(&api, &limited("bank", "social", 2), &query(Some("social-1"))).await.unwrap();
    assert_eq!(told(&found), ["newly_denied 1 agents/bank agents/social-1 (before its restart):3"]);
    let notes = found["notes"].to_string();
    assert!(notes.contains("restarted 2 times; only the last two logs are there"), "{notes}");
    api.change(|world| {
        world.logs.remove("social-1 previous");
    });
    let found = report(&api, &limited("bank", "social", 2), &query(Some("social-1"))).await.unwrap();
    assert_eq!((told(&found), &found["calls"]), (vec![], &json!(2)));
    assert!(found["notes"].to_string().contains("the log before its restart is gone"));
}

#[tokio::test]
async fn pins_in_the_cluster_are_not_missed() {
    let text = std::fs::read_to_string(&limited("bank", "social", 8).0).unwrap();
    let pinned = file(&text.replace("- name: bank", "- name: bank\n    pins: {name: bank}"));
    let new = NewPolicies::load(std::slice::from_ref(&pinned.0)).unwrap();
    assert!(std::fs::read_to_string(&pinned.0).unwrap().contains("pins: {name: bank}"));
    assert!(new.warnings.iter().all(|warning| !warning.message.contains("pins")), "{:?}", new.warnings);
}

#[tokio::test]
async fn what_is_missing_is_said_in_one_line() {
    let api = cluster();
    let bank = limited("bank", "social", 2);
    let error = async |file: &PolicyFile| format!("{:#}", report(&api, file, &query(None)).await.unwrap_err());
    assert_eq!(
        error(&limited("more", "nobody", 1)).await,
        "the policies select no pod of namespace agents that has a sidecar; correct podSelector, or name a pod with --pod"
    );
    let text = std::fs::read_to_string(&bank.0).unwrap();
    assert_eq!(
        error(&file(&text.replace("{name: bank}", "{name: bank, namespace: others}"))).await,
        "policy others/bank governs no pod of namespace agents; write -n others, or leave it out of the files"
    );
    assert!(error(&file(&text.replace("max: 2", "max: 0"))).await.contains(".yaml:9:"));
    for (verb, resource) in [("list", "mcpclusterpolicies"), ("get", "namespaces"), ("list", "pods"), ("get", "pods/log")] {
        api.change(|world| {
            world.forbidden.insert((verb, resource));
        });
        let said = error(&bank).await;
        assert!(said.contains(&format!("the verb `{verb}` on `{resource}")), "{said}");
        api.change(|world| world.forbidden.clear());
    }
    api.change(|world| world.policies[0]["spec"]["aNewerField"] = 1.into());
    let said = error(&bank).await;
    assert!(said.contains("policy agents/bank in the cluster has what this version does not know"), "{said}");
}
