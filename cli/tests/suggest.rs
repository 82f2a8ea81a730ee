//! `toolweir suggest`: from a file with the program, and from pods against an API server that is a function, with a real sidecar.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{
    fs,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use clap::Parser;
use common::{ApiServer, RunningSidecar, pod, sidecar};
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use toolweir_cli::{
    cluster::LazyClient,
    suggest::{
        command::{self, SuggestOptions},
        manifest::{self, PolicyFacts, ServerFacts},
        observations::Observations,
    },
    tools::limits::ReadLimits,
};
use toolweir_crds::{Action, Document, MCPPolicySpec, OperationKind, read_documents};
use toolweir_engine::{Call, CompileOptions, Effect, Engine, Memory, Operation, Severity, Timestamp};
use toolweir_sidecar::{observed::ObservedCalls, record::Arrival};

/// A folder that is gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("toolweir-suggest-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn spec(text: &str) -> MCPPolicySpec {
    match read_documents("policy", text).unwrap().remove(0).document {
        Document::MCPPolicy { spec, .. } => spec,
        Document::MCPClusterPolicy { .. } => panic!("{text}"),
    }
}

/// The entries of the only server: their names, and the maxima of their limits or none where they deny.
fn entries(text: &str) -> Vec<(String, Option<Vec<i64>>)> {
    let tools = spec(text).servers.remove(0).tools.into_iter();
    let rule = |tool: toolweir_crds::Tool| {
        let maxima = tool.limits.iter().map(|limit| limit.max).collect();
        (tool.name, (tool.action != Some(Action::Deny)).then_some(maxima))
    };
    tools.map(rule).collect()
}

const TOOLS: &str = r#"{"tools": [
    {"name": "get_posts", "description": "Gets posts.", "inputSchema": {"type": "object"}},
    {"name": "pay", "description": "Pays.", "inputSchema": {"type": "object"}},
    {"name": "on", "inputSchema": {"type": "object"}}
]}"#;

/// Runs the program where there is no kubeconfig.
fn program(arguments: &[&str], stdin: &str, folder: &Path) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_toolweir"))
        .arg("suggest")
        .args(arguments)
        .current_dir(folder)
        .env("KUBECONFIG", folder.join("none"))
        .env("HOME", folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that does not read it may have ended.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

#[test]
fn a_file_gives_a_policy_without_a_cluster() {
    let folder = Folder::new("file");
    folder.write("Shop Server.json", TOOLS);
    let ran = program(&["Shop Server.json", "--url", "https://shop.example/mcp", "-n", "agents"], "", &folder.0);
    let (text, errors) = (String::from_utf8(ran.stdout).unwrap(), String::from_utf8(ran.stderr).unwrap());
    assert_eq!((ran.status.code(), errors.as_str()), (Some(0), ""));
    let read = spec(&text);
    assert_eq!(read.servers[0].name, "shop-server");
    assert_eq!(read.servers[0].url.as_deref(), Some("https://shop.example/mcp"));
    let names: Vec<&str> = read.servers[0].tools.iter().map(|tool| tool.name.as_str()).collect();
    assert_eq!(names, ["get_posts", "pay", "on"]);
    assert!(text.contains("  name: shop-server\n  namespace: agents\n") && text.contains("    - name: \"on\"\n"), "{text}");
    assert!(text.contains("# shop-server: 3 tools, read from Shop Server.json\n"), "{text}");
    // The same again, from the standard input and with other names.
    let other = program(&["-", "--server", "shop-server", "--name", "shop-server"], TOOLS, &folder.0);
    let other = String::from_utf8(other.stdout).unwrap();
    assert_eq!(spec(&other).servers[0].tools, read.servers[0].tools);
}

#[test]
fn a_file_of_observations_fits_the_limits() {
    let folder = Folder::new("observed");
    folder.write("shop.json", TOOLS);
    let observed = |minute: u64, seconds: u64| {
        let tool = |server: &str, tool: &str, calls: u64| json!({"server": server, "tool": tool, "calls": calls, "denied": 2, "peakMinute": minute, "peakHour": calls, "peakDay": calls});
        let tools = json!([tool("other", "x", 9), tool("shop", "pay", 9), tool("shop", "gone", 9)]);
        json!({"since": "2026-07-28T09:30:00.000Z", "seconds": seconds, "tools": tools, "droppedCalls": 0, "newer": 1})
            .to_string()
    };
    folder.write("one.json", &observed(3, 7200));
    let ran = program(&["shop.json", "--observed", "one.json", "--observed", "-"], &observed(4, 3600), &folder.0);
    let (text, errors) = (String::from_utf8(ran.stdout).unwrap(), String::from_utf8(ran.stderr).unwrap());
    assert_eq!((ran.status.code(), errors.as_str()), (Some(0), ""));
    let expected = [("pay", Some(vec![7, 17])), ("gone", Some(vec![7, 17]))];
    assert_eq!(entries(&text), expected.map(|(name, limits)| (name.to_owned(), limits)));
    assert!(text.contains("# Observed: 2 pods, for 1h to 2h."), "{text}");
}

#[test]
fn what_is_wrong_is_one_line_with_what_helps_and_nothing_is_written() {
    let folder = Folder::new("wrong");
    folder.write("shop.json", TOOLS);
    folder.write("none.json", r#"{"since": "x", "seconds": 9, "tools": []}"#);
    folder.write(
        "other.json",
        r#"{"since": "x", "seconds": 9, "tools":
        [{"server": "bank", "tool": "t", "calls": 1, "peakMinute": 1, "peakHour": 1, "peakDay": 1}]}"#,
    );
    for (arguments, expected) in [
        (
            &[][..],
            "error: whose tools? give the URL of a server, a file with its tools, a command after --, POD SERVER, or --from POD\n",
        ),
        (&["shop.json", "--server", "Shop"], "error: --server `Shop` does not fit; write 1 to 63 lower case letters"),
        (&["shop.json", "--name", "a_b"], "error: --name `a_b` does not fit; write"),
        (&["shop.json", "-n", ""], "error: --namespace `` does not fit; write"),
        (&["shop.json", "--url", "shop.example"], "error: the url of shop `shop.example` is not a URL of an MCP server; write"),
        (&["shop.json", "--url", "http://u:p@shop/"], "error: the url of shop holds a password; write it as `credential`"),
        (&["shop.json", "-o", "json"], "error: a policy is written as YAML, with comments; leave out -o\n"),
        (&["shop.json", "--observed", "gone.json"], "error: --observed gone.json: cannot be read: No such file"),
        (
            &["shop.json", "--observed", "shop.json"],
            "error: --observed shop.json: is not what a sidecar observed: it has no `since`; save it",
        ),
        (
            &["shop.json", "--observed", "none.json"],
            "error: no call was let through while it was observed; let the agent work first",
        ),
        (
            &["shop.json", "--observed", "other.json"],
            "error: no call was observed on the server shop, but on bank; name one of these",
        ),
        (&["shop.json", "--from", "social-1"], "error: "),
    ] {
        let ran = program(arguments, "", &folder.0);
        let errors = String::from_utf8(ran.stderr).unwrap();
        assert!(errors.starts_with(expected) && errors.lines().count() == 1, "{arguments:?}: {errors}");
        assert_eq!((ran.status.code(), ran.stdout.len()), (Some(2), 0), "{arguments:?}");
    }
}

#[derive(Parser)]
struct CommandLine {
    #[command(flatten)]
    options: SuggestOptions,
}

/// Runs the command with an API server.
async fn suggest(api: &ApiServer, arguments: &[&str]) -> Result<String, String> {
    let line = CommandLine::parse_from(["suggest"].iter().chain(arguments));
    let cluster = LazyClient::from(api.client());
    command::run(&line.options, &cluster, &ReadLimits::default()).await.map_err(|error| format!("{error:#}"))
}

/// A server in its own task that answers every POST: a list of tools, or whatever else is asked.
async fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut read = Vec::new();
                loop {
                    let Some((body, used)) = whole_request(&read) else {
                        let mut piece = [0; 4096];
                        match stream.read(&mut piece).await {
                            Ok(0) | Err(_) => return,
                            Ok(many) => read.extend_from_slice(&piece[..many]),
                        }
                        continue;
                    };
                    let answer = answer(&body);
                    read.drain(..used);
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    address
}

/// The body of a whole request, and how many bytes it takes with its head.
fn whole_request(bytes: &[u8]) -> Option<(String, usize)> {
    let text = String::from_utf8_lossy(bytes);
    let (head, _) = text.split_once("\r\n\r\n")?;
    let length = |line: &str| {
        line.to_ascii_lowercase().strip_prefix("content-length:").map(|length| length.trim().parse::<usize>().unwrap())
    };
    let whole = head.len() + 4 + head.lines().find_map(length).unwrap_or(0);
    (bytes.len() >= whole).then(|| (text[head.len() + 4..whole].to_owned(), whole))
}

fn answer(body: &str) -> String {
    let message: Value = serde_json::from_str(body).unwrap_or_default();
    let (field, said) = match message["method"].as_str() {
        Some("initialize") => {
            let server = json!({"name": "s", "version": "1"});
            (
                "result",
                json!({"protocolVersion": "2025-06-18", "capabilities": {"tools": {}, "prompts": {}, "resources": {}}, "serverInfo": server}),
            )
        }
        Some("tools/list") => ("result", serde_json::from_str(TOOLS).unwrap()),
        Some("prompts/list") if message["params"]["cursor"].is_null() => {
            ("result", json!({"prompts": [{"name": "review"}, {"name": "sum *", "arguments": "odd"}], "nextCursor": "2"}))
        }
        Some("prompts/list") => ("result", json!({"prompts": [{"name": "plan"}]})),
        Some("resources/list") => ("result", json!({"resources": [{"uri": "file:///plans.txt", "name": 7}]})),
        _ if message["id"].is_null() => return "HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n".to_owned(),
        _ => ("error", json!({"code": -32601, "message": "Method not found"})),
    };
    let text = json!({"jsonrpc": "2.0", "id": message["id"], field: said}).to_string();
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{text}", text.len())
}

/// A cluster with the pod `social-1`, whose sidecar is a real one that lets everything through, in mode Audit.
async fn cluster() -> (ApiServer, RunningSidecar, String) {
    let url = format!("http://{}/mcp", upstream().await);
    let server = |name: &str| format!("  - {{name: {name}, url: \"{url}\"}}\n");
    let policy = format!(
        "apiVersion: toolweir.dev/v1alpha1\nkind: MCPPolicy\nmetadata: {{name: bank, namespace: agents}}\nspec:\n  mode: Audit\n  servers:\n{}{}",
        server("bank"),
        server("shop"),
    );
    let running = sidecar(&policy).await;
    let api = ApiServer::default();
    api.change(|world| {
        world.pods = vec![pod("agents", "social-1", true), pod("agents", "bare", false)];
        world.ports.insert(("social-1".to_owned(), 15000), running.sidecar.admin);
        world.ports.insert(("social-1".to_owned(), 15001), running.sidecar.proxy.address);
    });
    (api, running, url)
}

/// What an agent calls: its sidecar knows the tools once it has listed them.
fn work(running: &RunningSidecar, server: &str, tool: &str, times: usize) {
    let governor = &running.sidecar.governor;
    governor.learn_name(server, OperationKind::Tool, tool);
    for _ in 0..times {
        let call = Call { server, operation: Operation::tool(tool), arguments: None, session: "", seen: None };
        drop(governor.decide(&governor.in_force(), &call, Arrival::now()));
    }
}

#[tokio::test]
async fn what_a_server_lists_beside_tools_is_allowed_and_what_it_asks_for_is_not() {
    let url = format!("http://{}/mcp", upstream().await);
    let text = suggest(&ApiServer::default(), &[&url]).await.unwrap();
    let server = &spec(&text).servers[0];
    let names = |kind| server.entries(kind).iter().map(|entry| entry.name.to_owned()).collect::<Vec<_>>();
    assert_eq!(names(OperationKind::Prompt), ["review", "sum \\*", "plan"], "{text}");
    assert_eq!(names(OperationKind::Resource), ["file:///plans.txt"], "{text}");
    assert!(OperationKind::ALL.into_iter().all(|kind| server.has_say(kind)), "{text}");
    assert_eq!(server.requests, None);
    assert_eq!((server.default_actions.requests, server.default_actions.other), (Some(Action::Deny), Some(Action::Deny)));
    // Of templates, which it cannot list, nothing is said.
    assert!(!text.contains("template"), "{text}");
}

#[tokio::test]
async fn from_a_pod_come_rates_labels_namespace_and_urls() {
    let (api, running, url) = cluster().await;
    work(&running, "bank", "pay", 5);
    let folder = Folder::new("pod");
    let file = folder.write("bank.json", TOOLS);
    let text = suggest(&api, &[file.to_str().unwrap(), "--from", "pod/social-1"]).await.unwrap();
    assert_eq!(entries(&text), [("pay".to_owned(), Some(vec![9]))]);
    let read = spec(&text);
    assert_eq!(read.servers[0].url.as_deref(), Some(url.as_str()));
    assert_eq!(read.pod_selector.match_labels.into_iter().collect::<Vec<_>>(), [("app".to_owned(), "social".to_owned())]);
    assert!(text.contains("metadata:\n  name: bank\n  namespace: agents\n"), "{text}");
    assert!(text.contains("# That is less than a minute, so the limits are guesses"), "{text}");

    let errors = [
        (&["--from", "gone"][..], "there is no pod gone in namespace agents; pods with a sidecar in that namespace: social-1"),
        (&["--from", "bare"], "pod agents/bare has no sidecar"),
        (
            &[file.to_str().unwrap(), "--server", "other", "--from", "social-1"],
            "no call was observed on the server other, but on bank",
        ),
    ];
    for (arguments, expected) in errors {
        let error = suggest(&api, arguments).await.unwrap_err();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[tokio::test]
async fn the_tools_of_all_servers_that_were_called_come_through_the_sidecar() {
    let (api, running, url) = cluster().await;
    let error = suggest(&api, &["--from", "social-1"]).await.unwrap_err();
    assert!(error.starts_with("no call was let through while it was observed; let the agent work first"), "{error}");
    work(&running, "bank", "pay", 5);
    work(&running, "bank", "on", 1);
    work(&running, "shop", "get_posts", 2);
    let text = suggest(&api, &["--from", "social-1"]).await.unwrap();
    let read = spec(&text);
    let found = read.servers.iter().map(|server| {
        let entry = |tool: &toolweir_crds::Tool| (tool.name.clone(), tool.limits[0].max);
        (server.name.as_str(), server.url.as_deref(), server.tools.iter().map(entry).collect::<Vec<_>>())
    });
    let entries = |entries: &[(&str, i64)]| entries.iter().map(|(name, max)| ((*name).to_owned(), *max)).collect::<Vec<_>>();
    let expected = [
        ("bank", Some(url.as_str()), entries(&[("pay", 9), ("on", 1)])),
        ("shop", Some(url.as_str()), entries(&[("get_posts", 3)])),
    ];
    assert_eq!(found.collect::<Vec<_>>(), expected, "{text}");
    assert!(text.contains("metadata:\n  name: social-1\n  namespace: agents\n"), "{text}");
    assert!(text.contains("# bank: 3 tools, read from the sidecar of pod social-1\n"), "{text}");
    // One of them, called by its name, and by its classes alone.
    let one = suggest(&api, &["--from", "social-1", "--server", "shop", "--name", "shop"]).await.unwrap();
    assert_eq!(spec(&one).servers.len(), 1);
    let by_class = suggest(&api, &["social-1", "bank"]).await.unwrap();
    assert_eq!((spec(&by_class).servers[0].tools.len(), spec(&by_class).servers[0].url.as_deref()), (3, Some(url.as_str())));
    assert_eq!(spec(&by_class).pod_selector, read.pod_selector);
    let error = suggest(&api, &["--from", "social-1", "--url", "http://a/mcp"]).await.unwrap_err();
    assert!(error.starts_with("--url is for one server, and these are 2; choose one with --server"), "{error}");
}

#[tokio::test]
async fn a_sidecar_that_is_too_old_is_told() {
    let (api, _running, _) = cluster().await;
    let old = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = old.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = old.accept().await.unwrap();
            tokio::spawn(async move {
                let mut head = [0; 1024];
                let many = stream.read(&mut head).await.unwrap();
                let is_policy = head[..many].starts_with(b"GET /policy");
                let (status, body) =
                    if is_policy { ("200 OK", "{\"policies\": []}") } else { ("404 Not Found", "there are /policy and /limits") };
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                stream.write_all(answer.as_bytes()).await.unwrap();
                // The connection ends with its client.
                let _ = stream.read(&mut head).await;
            });
        }
    });
    api.change(|world| {
        world.ports.insert(("social-1".to_owned(), 15000), address);
    });
    let error = suggest(&api, &["--from", "social-1"]).await.unwrap_err();
    let expected =
        "the sidecar of pod agents/social-1 is too old for this: it has no /observed. Restart the pod to get a new sidecar";
    assert!(error.starts_with(expected), "{error}");
}

/// How many calls of a tool the engine denies, `times` at each moment.
fn denied(text: &str, moments: &[u64], times: usize) -> usize {
    let policies: Vec<_> = read_documents("policy", text).unwrap().into_iter().map(|read| read.document.into()).collect();
    let (engine, problems) = Engine::compile(&policies, Memory::new(Memory::COUNTERS), &CompileOptions::default());
    assert!(problems.iter().all(|problem| problem.severity != Severity::Invalid), "{problems:?}");
    let call = Call { server: "shop", operation: Operation::tool("pay"), arguments: None, session: "", seen: None };
    let calls = moments.iter().flat_map(|moment| std::iter::repeat_n(*moment, times));
    calls.filter(|moment| matches!(engine.decide(&call, Timestamp(*moment)).effect, Effect::Denied(_))).count()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever an agent does, from bursts to a call a day: who goes on as before is never denied, and who goes twice as fast is.
    #[test]
    fn limits_let_through_what_was_seen_and_not_twice_that(
        steps in proptest::collection::vec((0_u32..9, 0_u64..1_000_000), 1..150),
        afterwards in 0_u64..100_000,
    ) {
        let seen = ObservedCalls::new(std::time::UNIX_EPOCH, Timestamp(0));
        let (mut now, mut moments) = (0, Vec::new());
        for (scale, step) in steps {
            now += step * 10_u64.pow(scale);
            seen.tool("shop", "pay").unwrap().let_through(Timestamp(now));
            moments.push(now);
        }
        let mut observed = Observations::default();
        observed.add(&seen.response(Timestamp(now + afterwards * 1_000_000_000)));
        let server = ServerFacts { name: "shop".to_owned(), ..ServerFacts::default() };
        let policy = PolicyFacts { name: "shop".to_owned(), ..PolicyFacts::default() };
        let text = manifest::suggest(&policy, &[server], Some(&observed)).unwrap();
        prop_assert_eq!(denied(&text, &moments, 1), 0, "{}", text);
        prop_assert!(denied(&text, &moments, 2) > 0, "{}", text);
    }
}
