//! The tools of servers, good and bad, over every transport.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{
    fs,
    process::Command,
    slice,
    sync::Arc,
    time::{Duration, Instant},
};

use common::{
    ApiServer,
    mcp_server::{McpServer, Reply, Seen, hello, json_reply, legacy, sse_server, text_reply},
    pod, sidecar,
    tool_source::{IMPATIENT, LIMITS, Scratch, alive, at, command, found, names, of, shell},
};
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use rmcp::transport::streamable_http_server::StreamableHttpServerConfig;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use toolweir_cli::{
    OutputFormat,
    cluster::LazyClient,
    tools::{
        limits::ReadLimits,
        report::tools,
        source::{ToolSource, read},
    },
};
use toolweir_test_rmcp::RmcpServer;

#[tokio::test]
async fn servers_of_the_official_sdk_are_read_in_every_way_they_speak() {
    let sessions = StreamableHttpServerConfig::default();
    let events = StreamableHttpServerConfig::default().with_legacy_session_mode(false);
    let json = StreamableHttpServerConfig::default().with_legacy_session_mode(false).with_json_response(true);
    for config in [sessions, events, json] {
        let server = RmcpServer::start(config).await.unwrap();
        let url = format!("http://{}/mcp", server.address);
        let found = found(&at(&[&url]), LIMITS).await.unwrap();
        assert_eq!((found.name.as_str(), found.url.as_deref()), ("rmcp", Some(url.as_str())));
        assert_eq!(names(&found), ["add", "delete_everything", "echo", "read_secret"]);
        assert_eq!(found.tools[0].description(), Some("Adds two numbers"));
    }
}

#[tokio::test]
async fn the_newest_version_is_spoken_without_a_session() {
    let server = McpServer::start(|seen| match seen.rpc() {
        "server/discover" => seen.result(&json!({"resultType": "complete", "supportedVersions": ["2026-07-28"],
            "capabilities": {"tools": {}}, "ttlMs": 0, "cacheScope": "private"})),
        "tools/list" => seen.result(&json!({"resultType": "complete", "ttlMs": 0, "cacheScope": "private", "tools": [
            // Of these, the SDK leaves out the second, whose header it does not like, and the fields of the first that it does not know.
            {"name": "a", "inputSchema": {"type": "object"}, "aNewerField": {"x": 1}},
            {"name": "b", "inputSchema": {"type": "object", "properties": {"x": {"type": "object", "x-mcp-header": "no header"}}}},
        ]})),
        _ => text_reply(500, "text/plain", ""),
    })
    .await;
    let found = of(&server).await.unwrap();
    assert_eq!(names(&found), ["a", "b"]);
    assert_eq!(found.tools[0].definition()["aNewerField"], json!({"x": 1}));
    assert_eq!(found.name, "127-0-0-1");
    let seen = server.seen();
    assert_eq!(seen.iter().map(Seen::rpc).collect::<Vec<_>>(), ["server/discover", "tools/list"]);
    let header = |name: &str| seen[1].headers[name].to_str().unwrap();
    assert_eq!((header("mcp-method"), header("mcp-protocol-version")), ("tools/list", "2026-07-28"));
}

#[tokio::test]
async fn every_page_of_an_earlier_server_is_followed_and_nothing_is_lost() {
    let odd = json!({"name": "odd", "annotations": "none", "inputSchema": null, "outputSchema": 7, "icons": [{"src": "x"}], "_meta": {"a": 1}});
    let last = odd.clone();
    let server = McpServer::start(legacy(move |seen| match seen.body["params"]["cursor"].as_str() {
        None => seen.result(&json!({"tools": [{"name": "a", "inputSchema": {"type": "object"}}], "nextCursor": "1"})),
        Some("1") => seen.result(&json!({"tools": [], "nextCursor": "2"})),
        Some("2") => {
            let answer = json!({"jsonrpc": "2.0", "id": seen.body["id"], "result": {"tools": [last], "nextCursor": ""}});
            let ping = json!({"jsonrpc": "2.0", "id": 77, "method": "ping"});
            text_reply(200, "text/event-stream", &format!("data: {ping}\n\nid: 1\ndata: {answer}\n\n"))
        }
        other => panic!("{other:?}"),
    }))
    .await;
    let mut source = at(&[&server.url()]);
    source.headers = ["Authorization: Bearer s3cret", "X-Team: a", "X-Team: b"].map(str::to_owned).to_vec();
    let found = found(&source, LIMITS).await.unwrap();
    assert_eq!((found.name.as_str(), names(&found)), ("mail", vec!["a", "odd"]));
    assert_eq!(found.tools[1].definition(), &odd);
    let seen = server.seen();
    assert!(seen.len() >= 6);
    for request in seen {
        let teams: Vec<_> = request.headers.get_all("x-team").iter().map(|team| team.to_str().unwrap()).collect();
        assert_eq!((request.headers["authorization"].to_str().unwrap(), teams), ("Bearer s3cret", vec!["a", "b"]), "{request:?}");
    }
}

#[tokio::test]
async fn http_sse_is_read_where_a_server_speaks_nothing_newer() {
    let list = json!({"tools": [{"name": "a", "aNewerField": 1}]});
    let server = sse_server("/messages?session=1", list).await;
    let mut source = at(&[&format!("http://{}/sse", server.address)]);
    source.headers = vec!["Authorization: Bearer s3cret".to_owned()];
    let read = found(&source, LIMITS).await.unwrap();
    assert_eq!((read.name.as_str(), names(&read), &read.tools[0].definition()["aNewerField"]), ("mail", vec!["a"], &json!(1)));
    assert!(server.seen().iter().all(|request| request.headers["authorization"] == "Bearer s3cret"));

    let elsewhere = sse_server("http://127.0.0.1:1/messages", json!({})).await;
    let error = found(&at(&[&format!("http://{}/sse", elsewhere.address)]), LIMITS).await.unwrap_err();
    assert!(error.ends_with("wants messages at another origin, `http://127.0.0.1:1/messages`, and nothing is sent there; give the URL of that server"), "{error}");
    let missing = found(&at(&[&format!("http://{}/other", server.address)]), LIMITS).await.unwrap_err();
    assert!(missing.ends_with("the server has no MCP endpoint there (404); check the path of the URL"), "{missing}");
}

#[tokio::test]
async fn lists_without_an_end_are_given_up() {
    let pages = |most: usize| {
        move |seen: &Seen| {
            let page: usize = seen.body["params"]["cursor"].as_str().map_or(1, |cursor| cursor.parse().unwrap());
            let next = if page < most { json!((page + 1).to_string()) } else { Value::Null };
            seen.result(&json!({"tools": [{"name": format!("t{page}")}], "nextCursor": next}))
        }
    };
    let thousand = McpServer::start(legacy(pages(1000))).await;
    assert_eq!(of(&thousand).await.unwrap().tools.len(), 1000);
    let more = McpServer::start(legacy(pages(1001))).await;
    let error = of(&more).await.unwrap_err();
    assert!(
        error.ends_with("the server's list has more than 1000 pages, and no agent can use so many; the server must be mended"),
        "{error}"
    );
    assert_eq!(more.seen().iter().filter(|seen| seen.rpc() == "tools/list").count(), 1000);
}

#[tokio::test]
async fn a_list_that_cannot_be_read_whole_is_an_error() {
    let cases: Vec<(&str, Value)> = vec![
        (
            "the server's list goes in circles: it gives the cursor `x\u{fffd}` twice",
            json!({"tools": [], "nextCursor": "x\u{1b}"}),
        ),
        ("the server gives `7` for a cursor", json!({"tools": [], "nextCursor": 7})),
        ("two tools are named `a`, and a policy cannot tell them apart", json!({"tools": [{"name": "a"}, {"name": "a"}]})),
        ("tool 1 cannot be read: a tool has no name", json!({"tools": [{"title": "a"}]})),
        ("answers tools/list with something else than a list of tools", json!({"tools": "all"})),
        ("answers tools/list with something else than a list of tools", json!({"content": []})),
    ];
    for (why, result) in cases {
        let server = McpServer::start(legacy(move |seen| seen.result(&result))).await;
        let error = of(&server).await.unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    let server = McpServer::start(legacy(|seen| {
        json_reply(200, &json!({"jsonrpc": "2.0", "id": seen.body["id"], "error": {"code": -32603, "message": "no\ndatabase"}}))
    }))
    .await;
    let error = of(&server).await.unwrap_err();
    assert!(error.ends_with("the server answers tools/list with an error: no database (-32603); look at its log"), "{error}");
}

#[tokio::test]
async fn a_bad_server_is_told_with_what_helps() {
    let raw = |status: u16, kind: &'static str, body: &'static str| move |_: &Seen| text_reply(status, kind, body);
    let twice = r#"{"jsonrpc":"2.0","id":2,"result":{"tools":[{"name":"a","description":"x","description":"y"}]}}"#;
    for (why, list) in [
        ("the server refuses access (401); give what it asks for with --header 'Authorization: ...'", raw(401, "text/plain", "")),
        ("the server refuses access (403)", raw(403, "application/json", "{}")),
        (
            "the server answers with HTTP status 500: `oh no`; is this the URL of an MCP server, and does it work? See its log",
            raw(500, "text/plain", "oh\nno"),
        ),
        ("the server answers with HTTP status 502;", raw(502, "text/html", "<html>")),
        (
            "content of type `text/html; charset=utf-8`, which no MCP server does; check the path",
            raw(200, "text/html; charset=utf-8", "<html>"),
        ),
        ("sends what is no MCP message (expected value at line 1 column 1): `<html>`", raw(200, "application/json", "<html>")),
        (
            "sends what is no MCP message (unrecognized JSON-RPC message): `{\"hello\":1}`",
            raw(200, "application/json", "{\"hello\":1}"),
        ),
        ("(`description` stands twice in one object", raw(200, "application/json", twice)),
        ("sends what is no MCP message", raw(200, "text/event-stream", "data: {\"hello\":1}\n\n")),
    ] {
        let server = McpServer::start(legacy(list)).await;
        let begun = Instant::now();
        let error = of(&server).await.unwrap_err();
        assert!(format!("{error};").contains(why), "{error}");
        assert!(error.starts_with(&format!("{}: ", server.url())) && begun.elapsed() < Duration::from_secs(25), "{error}");
        // The same at the first request.
        let all = McpServer::start(move |seen: &Seen| list(seen)).await;
        let first = of(&all).await.unwrap_err();
        let known = if why.contains("description") { "no MCP message" } else { why };
        assert!(format!("{first};").contains(known), "{first}");
    }
    let server = McpServer::start(|seen| match seen.rpc() {
        "initialize" => seen.result(&hello(&json!({"prompts": {}}))),
        "notifications/initialized" => text_reply(202, "", ""),
        _ => text_reply(400, "text/plain", ""),
    })
    .await;
    assert!(of(&server).await.unwrap_err().contains("the server has no tools: it does not declare the capability"));
}

#[tokio::test]
async fn silence_and_floods_are_given_up() {
    let silent = McpServer::start(|_| Reply::Never).await;
    let later = McpServer::start(legacy(|_| Reply::Never)).await;
    for server in [silent, later] {
        let error = found(&at(&[&server.url()]), IMPATIENT).await.unwrap_err();
        assert!(error.ends_with("the server does not answer within 0.5 s; check that it runs and is an MCP server"), "{error}");
    }
    let small = ReadLimits { bytes: 5000, ..LIMITS };
    let text = "x".repeat(5000);
    let flood = McpServer::start(legacy(move |seen| seen.result(&json!({"tools": [{"name": "a", "description": text}]})))).await;
    let error = found(&at(&[&flood.url()]), small).await.unwrap_err();
    assert!(error.ends_with("the server sends more than 5000 bytes, which no list of tools needs"), "{error}");
    let few = ReadLimits { tools: 1, ..LIMITS };
    let many = McpServer::start(legacy(|seen| seen.result(&json!({"tools": [{"name": "a"}, {"name": "b"}]})))).await;
    assert!(found(&at(&[&many.url()]), few).await.unwrap_err().contains("there are more than 1 tools"));

    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = found(&at(&[&format!("http://{closed}/mcp?key=s3cret")]), LIMITS).await.unwrap_err();
    assert!(
        error.contains("/mcp: nothing listens there (connection refused); start the server, or check host and port"),
        "{error}"
    );
    let error = found(&at(&["http://no-such-host.invalid/mcp"]), LIMITS).await.unwrap_err();
    assert!(error.contains("cannot be reached: ") && error.ends_with("; check the URL"), "{error}");
}

#[tokio::test]
async fn redirects_stay_where_the_headers_were_meant_for() {
    let good = McpServer::start(legacy(|seen| seen.result(&json!({"tools": [{"name": "a"}]})))).await;
    let redirect = |status: u16, to: String| {
        move |seen: &Seen| {
            let Reply::Now(mut response) = text_reply(status, "text/plain", "") else { panic!() };
            response.headers_mut().insert("location", to.parse().unwrap());
            if seen.path == "/mcp" { Reply::Now(response) } else { legacy(|seen| seen.result(&json!({"tools": []})))(seen) }
        }
    };
    let same = McpServer::start(redirect(307, "/mcp/".to_owned())).await;
    assert_eq!(of(&same).await.unwrap().tools, []);
    let server = McpServer::start(redirect(307, format!("{}?key=s3cret", good.url()))).await;
    let error = of(&server).await.unwrap_err();
    assert!(error.contains(&format!("the server redirects to `{}`, and headers are not sent elsewhere", good.url())), "{error}");
    assert_eq!(good.seen().len(), 0);
}

#[tokio::test]
async fn certificates_are_verified() {
    let key = KeyPair::generate().unwrap();
    let mut root = CertificateParams::default();
    root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = CertifiedIssuer::self_signed(root, KeyPair::generate().unwrap()).unwrap();
    let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &root).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let prepare = move |stream| {
        let acceptor = acceptor.clone();
        async move { acceptor.accept(stream).await.ok() }
    };
    let server = McpServer::start_with(legacy(|seen| seen.result(&json!({"tools": [{"name": "a"}]}))), prepare).await;
    let mut source = at(&[&format!("https://localhost:{}/mcp", server.address.port())]);
    let error = found(&source, LIMITS).await.unwrap_err();
    assert!(error.contains("its certificate cannot be verified: ") && error.ends_with("with --ca FILE"), "{error}");
    let ca = Scratch::new("ca.pem", &root.pem());
    source.ca = Some(ca.0.clone());
    assert_eq!(names(&found(&source, LIMITS).await.unwrap()), ["a"]);

    let plain = McpServer::start(legacy(|_| Reply::Never)).await;
    let error = found(&at(&[&format!("https://{}/mcp", plain.address)]), LIMITS).await.unwrap_err();
    assert!(error.contains("TLS fails: ") && error.ends_with("check that the server speaks https at this port"), "{error}");
    let empty = Scratch::new("empty.pem", "");
    source.ca = Some(empty.0.clone());
    assert!(found(&source, LIMITS).await.unwrap_err().contains("has no certificate; give a file with BEGIN CERTIFICATE lines"));
}

/// A server in shell, with the answer to each method.
fn shell_server(answers: &[(&str, &str)]) -> String {
    let cases: String = answers.iter().map(|(method, answer)| format!("*'\"{method}\"'*) answer '{answer}';;\n")).collect();
    format!(
        r#"answer() {{ printf '{{"jsonrpc":"2.0","id":%s,%s}}\n' "$id" "$1"; }}
while read -r line; do
id=$(printf '%s' "$line" | sed 's/.*"id":\([0-9]*\).*/\1/')
case "$line" in
{cases}esac
done
"#
    )
}

#[tokio::test]
async fn a_command_is_read_and_ended_with_all_that_it_started() {
    let refused = r#""error":{"code":-32601,"message":"no"}"#;
    let hello = format!("\"result\":{}", hello(&json!({"tools": {}})));
    let list = format!("\"result\":{}", json!({"tools": [{"name": "a", "aNewerField": 1}]}));
    let script = shell_server(&[("server/discover", refused), ("initialize", &hello), ("tools/list", &list)]);
    let pids = Scratch::new("pids", "");
    // What it starts does not end by itself, and neither does it.
    let script = format!("trap '' TERM; sleep 1000 & echo $! $$ > {}; echo log >&2; {script}\nsleep 1000", pids.path());
    let found = found(&shell(&script), LIMITS).await.unwrap();
    assert_eq!((found.name.as_str(), found.url.as_deref(), names(&found)), ("mail", None, vec!["a"]));
    assert_eq!(found.tools[0].definition()["aNewerField"], 1);
    let text = fs::read_to_string(pids.path()).unwrap();
    let pids: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(pids.len(), 2);
    for pid in pids {
        for _ in 0..100 {
            if !alive(pid) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(!alive(pid), "{pid} goes on");
    }
}

#[tokio::test]
async fn a_command_that_is_no_server_is_told_with_what_helps() {
    for (source, why) in [
        (
            command(&["/no/such/command"]),
            "cannot start `/no/such/command`: No such file or directory (os error 2); install it, or give its path",
        ),
        (command(&["/"]), "cannot start `/`: Permission denied (os error 13); make it executable"),
        (
            shell("echo a >&2; echo the last word >&2; exit 3"),
            "the command ended (exit status: 3) before it listed its tools: `the last word`; run it by hand to see why",
        ),
        (shell("exit 0"), "the command ended (exit status: 0) before it listed its tools; run it"),
        (
            shell("echo 'Server starts ...'; cat > /dev/null"),
            "something else than MCP messages to its standard output: `Server starts ...`; it must log to its standard error",
        ),
        (shell("echo '{\"hello\": 1}'; cat > /dev/null"), "sends what is no MCP message (unrecognized JSON-RPC message)"),
        (shell("yes | tr -d '\\n'"), "the server sends more than 16777216 bytes, which no list of tools needs"),
    ] {
        let error = found(&source, LIMITS).await.unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    let error = found(&shell("cat > /dev/null"), IMPATIENT).await.unwrap_err();
    assert!(error.starts_with("the server does not answer within 0.5 s"), "{error}");
}

#[tokio::test]
async fn a_pod_shows_what_its_policies_show() {
    let server = RmcpServer::start(StreamableHttpServerConfig::default()).await.unwrap();
    let policy = format!(
        "apiVersion: toolweir.dev/v1alpha1
kind: MCPPolicy
metadata: {{name: tools, namespace: agents}}
spec:
  servers:
  - name: tools
    url: http://{}/mcp
    tools: [{{name: echo}}, {{name: add}}]
",
        server.address
    );
    let running = sidecar(&policy).await;
    let api = ApiServer::default();
    api.change(|world| {
        world.pods = vec![pod("agents", "social-1", true), pod("agents", "social-2", true), pod("agents", "bare", false)];
        world.ports.insert(("social-1".to_owned(), 15001), running.sidecar.proxy.address);
    });
    let read = |place: [&'static str; 2]| {
        let client = LazyClient::from(api.client());
        async move {
            let source = at(&place);
            read(&source, &client, &LIMITS).await.map_err(|error| format!("{error:#}"))
        }
    };
    let found = read(["pod/social-1", "tools"]).await.unwrap();
    assert_eq!((found.name.as_str(), &found.url, names(&found)), ("tools", &None, vec!["add", "echo"]));
    for (place, why) in [
        (
            ["social-1", "other"],
            "server other through pod agents/social-1: Denied: no policy in force names the server other. kubectl toolweir explain",
        ),
        (["social-2", "tools"], "pod agents/social-2, port 15001: connection refused; does its sidecar run?"),
        (["bare", "tools"], "pod agents/bare has no sidecar"),
        (["gone", "tools"], "there is no pod gone in namespace agents"),
    ] {
        let error = read(place).await.unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    api.change(|world| {
        world.forbidden.insert(("get", "pods/portforward"));
    });
    let error = read(["social-1", "tools"]).await.unwrap_err();
    assert!(error.contains("the verb `get` on `pods/portforward` is not granted to you"), "{error}");
}

const POLICIES: &str = "
apiVersion: toolweir.dev/v1alpha1
kind: MCPPolicy
metadata: {name: mail, namespace: agents}
spec:
  servers:
  - name: mail
    url: http://mail/mcp
    tools:
    - {name: 'read_*', limits: [{max: 30, window: minute}, {max: 100, window: day, key: args.folder}]}
    - {name: send, validations: [{expression: 'size(args.to) < 5'}], maxConcurrent: 2, limits: [{max: 500, window: hour, cost: args.size}]}
    - {name: move, validations: [{expression: 'args.to != \"\"'}]}
    - {name: delete, action: Deny, reason: Ask a person.}
    - {name: list}
    - {name: pay, approval: {}}
    - {name: refund, approval: {when: args.amount > 500}}
---
apiVersion: toolweir.dev/v1alpha1
kind: MCPClusterPolicy
metadata: {name: trial}
spec:
  mode: Audit
  servers:
  - {name: '*', tools: [{name: list}, {name: 'read_*'}, {name: send}, {name: delete}, {name: pay}, {name: refund}]}
";

#[tokio::test]
async fn the_output_says_what_policies_would_do() {
    let list = Scratch::new("mail.json", &json!({"tools": [
        {"name": "read_mail"}, {"name": "send"}, {"name": "move"}, {"name": "delete"}, {"name": "list"}, {"name": "o\u{1b}[2J\nther"},
        {"name": "pay"}, {"name": "refund"},
    ]}).to_string());
    let policies = Scratch::new("policies.yaml", POLICIES);
    let source = ToolSource { server: Some("mail".to_owned()), ..at(&[list.path()]) };
    let paths = [policies.0.clone()];
    let cluster = LazyClient::default();
    let shown = |form| tools(&source, &paths, &cluster, &LIMITS, form);
    let text = shown(OutputFormat::Text).await.unwrap();
    let rows: Vec<Vec<&str>> =
        text.lines().map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()).collect();
    assert_eq!(rows[0], ["TOOL", "CLASS", "SEVERITY", "WHY", "POLICY"]);
    let verdicts: Vec<(&str, &str)> = rows[1..].iter().map(|row| (row[0], *row.last().unwrap())).collect();
    let promised = [
        ("read_mail", "allowed, 30 a minute, 100 a day for each args.folder"),
        ("send", "allowed, 500 of args.size an hour, 2 at once, if its validations hold"),
        ("move", "allowed if its validations hold, though in audit mode trial would deny it: not_listed"),
        ("delete", "denied by entry delete of agents/mail: Ask a person."),
        ("list", "allowed"),
        ("o\u{fffd}[2J\u{fffd}ther", "denied: not_listed"),
        ("pay", "allowed if a person approves it"),
        ("refund", "allowed if a person approves it where its condition asks"),
    ];
    assert_eq!(verdicts, promised);

    let json: Value = serde_json::from_str(&shown(OutputFormat::Json).await.unwrap()).unwrap();
    let read = read(&source, &LazyClient::default(), &LIMITS).await.unwrap();
    let expected: Vec<Value> = read
        .tools
        .iter()
        .zip(promised)
        .map(|(tool, (_, policy))| {
            let classified = tool.classify();
            let evidence: Vec<Value> = classified
                .evidence
                .iter()
                .map(|e| json!({"in": e.part, "start": e.span.start, "end": e.span.end, "text": e.text, "class": e.class.as_str()}))
                .collect();
            json!({"name": tool.name(), "class": classified.class.as_str(), "severity": classified.severity().as_str(), "evidence": evidence,
                "policy": policy})
        })
        .collect();
    assert_eq!(json, Value::Array(expected));

    let other = ToolSource { server: Some("calendar".to_owned()), ..source.clone() };
    let error = tools(&other, &paths, &LazyClient::default(), &LIMITS, OutputFormat::Text).await.unwrap_err().to_string();
    assert_eq!(error, "the policies do not name the server calendar; they have mail");
    let bad = Scratch::new("bad.yaml", &POLICIES.replace("window: minute", "window: fortnight"));
    let error = tools(&source, slice::from_ref(&bad.0), &LazyClient::default(), &LIMITS, OutputFormat::Text)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.starts_with(&format!("{}:10:", bad.path())) && error.contains("fortnight"), "{error}");
}

#[test]
fn errors_are_one_line_and_no_kubeconfig_is_read() {
    let list = Scratch::new("plain.json", r#"{"tools": [{"name": "a"}]}"#);
    let run = |binary: &str, words: &[&str]| {
        let done = Command::new(binary).args(words).env("KUBECONFIG", "/nowhere").output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (done.status.code(), text(&done.stdout), text(&done.stderr))
    };
    for binary in [env!("CARGO_BIN_EXE_toolweir"), env!("CARGO_BIN_EXE_kubectl-toolweir")] {
        let (code, stdout, stderr) = run(binary, &["tools", list.path()]);
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        assert!(stdout.starts_with("TOOL  CLASS"), "{stdout}");
        for words in [
            &["tools", "/nowhere.json"][..],
            &["tools", "--", "/no/such"],
            &["tools", "http://127.0.0.1:1/"],
            &["tools", "pod", "server"],
        ] {
            let (code, stdout, stderr) = run(binary, words);
            assert_eq!((code, stdout.as_str(), stderr.lines().count()), (Some(2), "", 1), "{stderr}");
            assert!(stderr.starts_with("error: "), "{stderr}");
        }
    }
    let usage = |binary| run(binary, &["tools", "--help"]).1;
    assert!(usage(env!("CARGO_BIN_EXE_toolweir")).contains("Usage: toolweir tools "));
    assert!(usage(env!("CARGO_BIN_EXE_kubectl-toolweir")).contains("Usage: kubectl toolweir tools "));
}
