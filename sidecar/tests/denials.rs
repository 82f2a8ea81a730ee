//! Denials are answers that a model can act on, every decision is told in the audit log, and no content is told anywhere.
//! mcp.md, "Denials".
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::float_cmp)]

mod common;

use std::time::{Duration, Instant};

use common::{
    allow_all, call,
    client::{Ask, Http, Wire},
    denial, list, logs, modern_call, policy, request, result,
    sidecar::Sidecar,
    until,
    upstream::{Deed, Raw, Reply, Upstream},
};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use toolweir_engine::{CompileOptions, Engine, Memory, Policy};
use toolweir_sidecar::{audit, in_force::InForce};

const ONE_A_MINUTE: &str = "[{name: pay, limits: [{max: 1, window: minute}]}, {name: free, action: Allow}]";

/// The tool result of a call over a limit of one a minute.
fn over_the_limit(retry: &Value) -> Value {
    let seconds = retry.as_u64().unwrap();
    assert!((1..=61).contains(&seconds), "{seconds}");
    json!({
        "content": [{"type": "text", "text": format!("Denied by policy agents/bank: pay is limited to 1 call a minute. Try again in {seconds} s.")}],
        "isError": true,
        "_meta": {"toolweir.dev/denial": {
            "reason": "rate_limit",
            "policy": "agents/bank",
            "tool": "pay",
            "limit": {"max": 1, "window": "minute", "scope": "Pod"},
            "retryAfterSeconds": seconds,
        }},
    })
}

#[tokio::test]
async fn a_denied_call_is_a_tool_result_that_says_who_denied_it_and_when_to_try_again() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&policy(&upstream.url(), ONE_A_MINUTE)).await;
    assert_eq!(sidecar.reason(&call("1", "pay", "{}")).await, "none");
    for http in Http::BOTH {
        let answer = Ask::post(call("\"a-7\"", "pay", "{}")).over(http, sidecar.address).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"));
        let answer = answer.json();
        let result = over_the_limit(&denial(&answer)["retryAfterSeconds"]);
        assert_eq!(answer, json!({"jsonrpc": "2.0", "id": "a-7", "result": result}));
        // A modern client wants to know that the result is complete.
        let modern = Ask::post(modern_call("2", "pay")).over(http, sidecar.address).await.json();
        let mut result = over_the_limit(&denial(&modern)["retryAfterSeconds"]);
        result["resultType"] = json!("complete");
        assert_eq!(modern, json!({"jsonrpc": "2.0", "id": 2, "result": result}));
    }
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test]
async fn a_client_that_takes_only_events_gets_the_denial_as_one() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&policy(&upstream.url(), "[]")).await;
    for (accept, events) in [
        ("text/event-stream", true),
        ("text/event-stream, application/json;q=0", true),
        ("application/json, text/event-stream", false),
        ("text/event-stream, */*", false),
        ("application/*", false),
    ] {
        for http in Http::BOTH {
            let ask = Ask::post(call("1", "pay", "{}")).without("accept").with("accept", accept);
            let answer = ask.over(http, sidecar.address).await;
            let text = answer.text();
            let json: Value = if events {
                assert_eq!((answer.status, answer.header("content-type")), (200, "text/event-stream"), "{accept}");
                let data = text.strip_prefix("event: message\ndata: ").and_then(|text| text.strip_suffix("\n\n"));
                serde_json::from_str(data.unwrap_or_else(|| panic!("{text}"))).unwrap()
            } else {
                assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"), "{accept}");
                answer.json()
            };
            assert_eq!(denial(&json)["reason"], "not_listed", "{accept}");
        }
    }
    let silent = sidecar.ask(&Ask::post(call("1", "pay", "{}")).without("accept")).await;
    assert_eq!(denial(&silent.json())["reason"], "not_listed");
}

#[tokio::test]
async fn a_denied_legacy_call_for_a_task_is_an_error_and_a_modern_one_a_result() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&policy(&upstream.url(), "[]")).await;
    let legacy = sidecar.post(&request("1", "tools/call", r#"{"name":"pay","task":{"ttl":1000}}"#)).await;
    let text = "Denied by policy agents/bank: pay is not among the tools that may be called. Use one that tools/list shows.";
    let data = json!({"toolweir.dev/denial": {"reason": "not_listed", "policy": "agents/bank", "tool": "pay"}});
    assert_eq!(legacy, json!({"jsonrpc": "2.0", "id": 1, "error": {"code": 403, "message": text, "data": data}}));
    let meta = r#"{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}"#;
    let modern = sidecar.post(&request("1", "tools/call", &format!(r#"{{"name":"pay","task":{{}},"_meta":{meta}}}"#))).await;
    assert_eq!(modern["result"]["resultType"], "complete");
}

#[tokio::test]
async fn the_id_of_a_denied_request_comes_back_as_it_was_written() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&policy(&upstream.url(), "[]")).await;
    for id in ["7", "7.0", "1e3", "-0", "123456789012345678901234567890", r#""""#, r#""\u00e9\n""#] {
        let answer = sidecar.ask(&Ask::post(call(id, "pay", "{}"))).await.text();
        assert!(answer.starts_with(&format!(r#"{{"jsonrpc":"2.0","id":{id},"result":"#)), "{id}: {answer}");
    }
}

/// Takes every server of a sidecar's policy out of service, as a policy does that does not compile.
fn close(sidecar: &Sidecar, text: &str) {
    let broken = text.replace("tools: []", "tools: [{name: pay, validations: [{expression: \"args.\"}]}]");
    let located = toolweir_crds::read_documents("broken.yaml", &broken).unwrap();
    let policies: Vec<Policy> = located.into_iter().map(|located| located.document.into()).collect();
    let (engine, problems) = Engine::compile(&policies, Memory::new(1), &CompileOptions::default());
    assert_eq!(problems.len(), 1);
    let broken = InForce::new(engine, Vec::new(), Vec::new(), "broken".to_owned(), &sidecar.governor.metrics.servers).0;
    sidecar.governor.replace(broken);
}

#[tokio::test]
async fn nothing_reaches_a_server_whose_policy_does_not_compile() {
    let upstream = Upstream::bank().await;
    let text = policy(&upstream.url(), "[]");
    let sidecar = Sidecar::start(&text).await;
    close(&sidecar, &text);
    for http in Http::BOTH {
        let post = async |body: &str| Ask::post(body).over(http, sidecar.address).await;
        let call = post(&call("1", "pay", "{}")).await.json();
        assert_eq!((&denial(&call)["reason"], &call["result"]["isError"]), (&json!("invalid_policy"), &json!(true)));
        for method in ["initialize", "tools/list", "ping", "resources/list", "tasks/get", "anything"] {
            let answer = post(&request("1", method, "{}")).await;
            assert_eq!((answer.status, &answer.json()["error"]["code"]), (200, &json!(403)), "{method}: {}", answer.text());
            assert_eq!(denial(&answer.json())["reason"], "invalid_policy", "{method}");
        }
        // How a client finds out about the era: it must be able to fall back.
        let discover = post(&request("1", "server/discover", "{}")).await;
        assert_eq!((discover.status, &discover.json()["error"]["code"]), (200, &json!(-32601)));
        // Not answered, and so nothing that ends a session.
        for body in [
            r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#,
            r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{}}"#,
        ] {
            let answer = post(body).await;
            assert_eq!((answer.status, answer.body.len()), (202, 0), "{body}: {}", answer.text());
        }
        for ask in [Ask::get(), Ask::delete()] {
            let answer = ask.over(http, sidecar.address).await;
            assert_eq!(answer.status, 403, "{ask:?}");
            assert!(
                answer.text().contains("does not compile") && answer.header("www-authenticate").is_empty(),
                "{}",
                answer.text()
            );
        }
    }
    assert_eq!(upstream.connections(), 0, "{:#?}", upstream.seen());
    let scrape = sidecar.scrape().await;
    assert_eq!(scrape.sum("toolweir_requests_total", &[("outcome", "denied")]), 2.0 * 10.0);
    assert_eq!(scrape.sum("toolweir_requests_total", &[("outcome", "dropped")]), 2.0 * 3.0);
}

#[tokio::test]
async fn a_server_that_no_policy_names_cannot_be_reached() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    for http in Http::BOTH {
        let post = async |body: &str| Ask::post(body).to("/shop").over(http, sidecar.address).await;
        let call = post(&call("1", "pay", "{}")).await.json();
        assert_eq!(denial(&call), &json!({"reason": "no_policy", "tool": "pay"}));
        let text = &call["result"]["content"][0]["text"];
        assert_eq!(text, "Denied: no policy in force names the server shop.");
        let initialize = post(&request("1", "initialize", "{}")).await;
        assert_eq!((initialize.status, &initialize.json()["error"]["code"]), (200, &json!(403)));
        assert_eq!(post(&request("1", "server/discover", "{}")).await.json()["error"]["code"], -32601);
        assert_eq!(post(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#).await.status, 202);
        for ask in [Ask::get(), Ask::delete()] {
            assert_eq!(ask.to("/shop").over(http, sidecar.address).await.status, 404);
        }
        let metadata = Ask::get().to("/.well-known/oauth-protected-resource/shop").over(http, sidecar.address).await;
        assert_eq!(metadata.status, 404);
    }
    assert_eq!(upstream.connections(), 0);
    let scrape = sidecar.scrape().await;
    // No label comes from what a client names.
    assert!(scrape.series.iter().all(|series| series.labels.get("server").is_none_or(|server| server != "shop")));
    let denied = [("server", "_unknown"), ("tool", "_other"), ("decision", "denied"), ("reason", "no_policy"), ("policy", "")];
    assert_eq!(scrape.sum("toolweir_tool_calls_total", &denied), 2.0);
    assert_eq!(scrape.sum("toolweir_requests_total", &[("server", "_unknown"), ("outcome", "unknown_server")]), 6.0);
}

#[tokio::test]
async fn a_call_passes_after_the_time_that_its_denial_named() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&policy(&upstream.url(), "[{name: pay, limits: [{max: 1, window: 300ms}]}]")).await;
    let began = Instant::now();
    assert_eq!(sidecar.reason(&call("1", "pay", "{}")).await, "none");
    let denied = sidecar.post(&call("2", "pay", "{}")).await;
    // Whole seconds, rounded up.
    assert_eq!(denial(&denied)["retryAfterSeconds"], 1);
    assert_eq!(denial(&denied)["limit"], json!({"max": 1, "window": "300ms", "scope": "Pod"}));
    let passed = async || sidecar.reason(&call("3", "pay", "{}")).await == "none";
    until("the limit's place to come free", passed).await;
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
    assert_eq!(upstream.seen().len(), 2);
}

#[tokio::test]
async fn the_reason_of_a_policy_reaches_the_model() {
    let upstream = Upstream::bank().await;
    let tools = r#"[
      {name: delete, action: Deny, reason: Comments are evidence. Ask the moderation team.},
      {name: pay, validations: [{expression: "args.amount <= 500", message: Invoices over 500 need a person.}]}]"#;
    let sidecar = Sidecar::start(&policy(&upstream.url(), tools)).await;
    let text = async |body: &str| sidecar.post(body).await["result"]["content"][0]["text"].as_str().unwrap().to_owned();
    assert_eq!(
        text(&call("1", "delete", "{}")).await,
        "Denied by policy agents/bank: Comments are evidence. Ask the moderation team."
    );
    assert_eq!(
        text(&call("1", "pay", r#"{"amount":501}"#)).await,
        "Denied by policy agents/bank: Invoices over 500 need a person."
    );
    assert_eq!(text(&call("1", "pay", r#"{"amount":500.0}"#)).await, "done");
    let missing = text(&call("1", "pay", "{}")).await;
    assert!(
        missing.starts_with("Denied by policy agents/bank: Invoices over 500 need a person. (`args.amount <= 500` could not be"),
        "{missing}"
    );
}

#[tokio::test]
async fn of_several_policies_the_strictest_decides() {
    let upstream = Upstream::bank().await;
    let guardrail = "---\napiVersion: toolweir.dev/v1alpha1\nkind: MCPClusterPolicy\nmetadata: {name: guardrail}\nspec:\n  servers:\n  \
                     - name: \"*\"\n    defaultAction: Allow\n    tools: [{name: wipe, action: Deny}, {name: \"*\", limits: [{max: 2, window: hour}]}]\n";
    let sidecar = Sidecar::start(&format!("{}{guardrail}", allow_all(&upstream.url()))).await;
    let wipe = sidecar.post(&call("1", "wipe", "{}")).await;
    assert_eq!((&denial(&wipe)["reason"], &denial(&wipe)["policy"]), (&json!("denied"), &json!("guardrail")));
    for tool in ["a", "b"] {
        assert_eq!(sidecar.reason(&call("1", tool, "{}")).await, "none");
    }
    assert_eq!(denial(&sidecar.post(&call("1", "c", "{}")).await)["policy"], "guardrail");
}

#[tokio::test]
async fn a_session_has_a_count_of_its_own() {
    let upstream = Upstream::bank().await;
    let tools = "[{name: pay, limits: [{max: 1, window: hour, scope: Session}]}]";
    let sidecar = Sidecar::start(&policy(&upstream.url(), tools)).await;
    let reason = async |session: &str| {
        let answer = sidecar.ask(&Ask::post(call("1", "pay", "{}")).with("mcp-session-id", session)).await.json();
        answer.pointer("/result/_meta/toolweir.dev~1denial/reason").map(|reason| reason.as_str().unwrap().to_owned())
    };
    assert_eq!(reason("a").await, None);
    assert_eq!(reason("b").await, None);
    assert_eq!(reason("a").await.as_deref(), Some("rate_limit"));
}

#[tokio::test]
async fn the_audit_log_has_a_line_for_each_call_and_no_content() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&policy(&upstream.url(), ONE_A_MINUTE)).await;
    let arguments = r#"{ "to": "secret-recipient","amount":1.0}"#;
    for id in ["1", "2"] {
        let ask = Ask::post(call(id, "pay", arguments))
            .with("mcp-session-id", "secret-session")
            .with("authorization", "Bearer secret-token");
        sidecar.ask(&ask).await;
    }
    sidecar.post(&request("3", "tools/call", r#"{"name":"free"}"#)).await;
    sidecar.post(&call("4", "secret\u{e9}", "{}")).await;
    // No tool call, no line.
    sidecar.post(&request("5", "ping", "{}")).await;
    let mut lines = sidecar.audit(4).await;
    for line in &mut lines {
        let line = line.as_object_mut().unwrap();
        let time = line.remove("time").unwrap();
        assert!(time.as_str().unwrap().len() == 24 && time.as_str().unwrap().ends_with('Z'), "{time}");
        let latency = line.remove("latencyMs").unwrap().as_f64().unwrap();
        assert!((0.0..5000.0).contains(&latency), "{latency}");
    }
    let session = &audit::sha256(b"secret-session")[..16];
    let hash = audit::sha256(arguments.as_bytes());
    let first = json!({"server": "bank", "tool": "pay", "decision": "allowed", "reason": "none", "policy": "agents/bank",
        "entry": "pay", "outcome": "ok", "session": session, "argumentsSha256": hash});
    assert_eq!(lines[0], first);
    let mut second = first.clone();
    for (key, value) in [("decision", "denied"), ("reason", "rate_limit"), ("outcome", "denied")] {
        second[key] = json!(value);
    }
    assert_eq!(lines[1], second);
    assert_eq!(
        lines[2],
        json!({"server": "bank", "tool": "free", "decision": "allowed", "reason": "none", "policy": "agents/bank",
        "entry": "free", "outcome": "ok", "session": null, "argumentsSha256": null})
    );
    assert_eq!(
        lines[3],
        json!({"server": "bank", "tool": "secret\u{e9}", "decision": "denied", "reason": "not_listed",
        "policy": "agents/bank", "entry": null, "outcome": "denied", "session": null, "argumentsSha256": audit::sha256(b"{}")})
    );
    for secret in ["secret-recipient", "secret-session", "secret-token"] {
        assert!(!sidecar.audit_text().contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn names_that_a_client_makes_up_are_cut_short_in_the_audit_log() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&policy(&upstream.url(), "[]")).await;
    let ask = Ask::post(call("1", &"t".repeat(1000), "{}")).to(&format!("/{}", "s".repeat(1000)));
    sidecar.ask(&ask).await;
    let line = &sidecar.audit(1).await[0];
    assert_eq!((line["server"].as_str().unwrap().len(), line["tool"].as_str().unwrap().len()), (63, 512));
}

#[tokio::test]
async fn a_call_whose_client_hangs_up_has_its_line_and_its_count_too() {
    let (gone, given_up) = oneshot::channel();
    let gone = std::sync::Mutex::new(Some(gone));
    let upstream = Upstream::start(move |_| Reply::hang(gone.lock().unwrap().take().unwrap())).await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    let mut wire = Wire::connect(sidecar.address).await;
    wire.write(&Ask::post(call("1", "pay", "{}")).bytes("localhost")).await;
    upstream.saw(1).await;
    drop(wire);
    assert!(common::within("the end of the server's request", given_up).await.is_err());
    let line = &sidecar.audit(1).await[0];
    assert_eq!((&line["decision"], &line["outcome"]), (&json!("allowed"), &json!("client_gone")));
    until("the count", async || sidecar.counted("client_gone").await == 1.0).await;
}

#[tokio::test]
async fn no_content_of_a_request_or_an_answer_is_logged() {
    let log = logs::log();
    let upstream = Upstream::start(|seen| match seen.json()["id"].as_u64() {
        Some(1) => Reply::new(500, "text/plain", "CANARY-in-a-server-error"),
        Some(2) => Reply::new(200, "application/json", "CANARY-in-a-list"),
        _ => Reply::json(result("3")).with("x-canary", "CANARY-in-an-answer"),
    })
    .await;
    let garbage = Raw::start(Deed::Say(b"CANARY-of-a-server-without-http\r\n\r\n".to_vec())).await;
    let second = policy(&garbage.url(), "[{name: \"*\", action: Allow}]").replace("bank", "garbage");
    let first = policy(&upstream.url(), "[{name: \"*\", action: Allow, validations: [{expression: \"args.x == 1\"}]}]");
    let sidecar = Sidecar::start(&format!("{first}---\n{second}")).await;
    let before = log.text().len();
    let canary = |text: &str| {
        Ask::post(text).plain().with("authorization", "Bearer CANARY").with("mcp-session-id", "CANARY").with("x-canary", "CANARY")
    };
    for (ask, status) in [
        (canary(&call("1", "pay", r#"{"x":1,"y":"CANARY"}"#)), 500),
        (canary(&request("2", "tools/list", r#"{"cursor":"CANARY"}"#)), 502),
        (canary(&call("3", "pay", r#"{"x":1,"CANARY":"CANARY"}"#)), 200),
        (canary(&call("4", "pay", r#"{"x":2,"CANARY":"CANARY"}"#)), 200),
        (canary(&call("5", "pay", r#"{"x":1,"CANARY":1,"CANARY":2}"#)), 200),
        (canary(&call("6", "pay", r#"{"x":1,"y":CANARY}"#)), 400),
        (canary(r#"{"CANARY":1,"CANARY":2,"method":"ping"}"#), 400),
        (canary(r#"{"CANARY\u0000":1,"method":"ping"}"#), 400),
        (canary(r#"{"jsonrpc":"2.0","id":7,"method":"ping","params":{"NAME":"CANARY"}}"#), 400),
        (canary(&request("8", "TOOLS/CALL", r#"{"name":"CANARY"}"#)), 400),
        (canary(&request("9", "resources/read", r#"{"uri":"file:///CANARY"}"#)).with("mcp-name", "CANARY-name"), 400),
        (canary(&request("9", "CANARY-method", "{}")).with("mcp-method", "ping"), 400),
        (canary("CANARY").with("content-encoding", "CANARY"), 415),
        (canary("{}").without("content-type").with("content-type", "CANARY/CANARY"), 415),
        (canary("{}").with("mcp-name", "CANARY").with("mcp-name", "CANARY"), 400),
        (canary("{}").with("origin", "http://CANARY"), 403),
        (canary("{}").with("host", "CANARY"), 403),
        (canary("{}").to("/CANARY/CANARY"), 404),
        (canary("{}").to("/bank?CANARY"), 404),
        (canary("{}").method("DELETE").to("/CANARY"), 404),
        (canary(&call("1", "pay", r#"{"y":"CANARY"}"#)).to("/shop"), 200),
        (canary(&call("1", "pay", r#"{"y":"CANARY"}"#)).to("/garbage"), 502),
    ] {
        let answer = sidecar.ask(&ask).await;
        assert_eq!(answer.status, status, "{ask:?}: {}", answer.text());
    }
    // Each failure is logged before it is answered.
    let text = log.text();
    let logged = &text[before..];
    assert!(logged.contains("request refused") && logged.contains("request failed"), "{logged}");
    let found: Vec<&str> = logged.lines().filter(|line| line.to_ascii_uppercase().contains("CANARY")).collect();
    assert!(found.is_empty(), "{found:#?}");
    sidecar.audit(6).await;
    assert!(!sidecar.audit_text().contains("CANARY"), "{}", sidecar.audit_text());
}

#[tokio::test]
async fn a_call_of_which_nothing_was_sent_gives_its_place_back() {
    // A port that was free a moment ago.
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let dead = Sidecar::start(&policy(&format!("http://{nobody}/mcp"), ONE_A_MINUTE)).await;
    for id in ["1", "2"] {
        let answer = dead.ask(&Ask::post(call(id, "pay", "{}")).plain()).await;
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (502, &json!(-32603)), "{id}: {}", answer.text());
    }
    let used = dead.scrape().await.sum("toolweir_limit_used_ratio", &[("tool", "pay"), ("limit", "1/minute")]);
    assert_eq!(used, 0.0);
}

#[tokio::test]
async fn a_call_that_the_server_may_have_carried_out_keeps_its_place() {
    let failed = |status: &str| Deed::Say(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").into_bytes());
    for (name, deed, status) in [
        ("4xx", Deed::Say(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec()), 404),
        ("500", failed("500 Internal Server Error"), 500),
        ("502", failed("502 Bad Gateway"), 502),
        ("503", failed("503 Service Unavailable"), 503),
        ("504", failed("504 Gateway Timeout"), 504),
        ("599", failed("599 Of a gateway"), 599),
        ("a redirect", failed("307 Temporary Redirect"), 502),
        ("101", failed("101 Switching Protocols"), 502),
        ("no HTTP", Deed::Say(b"busy".to_vec()), 502),
        ("no answer in time", Deed::Keep(Vec::new()), 504),
        ("hung up", Deed::Say(Vec::new()), 502),
    ] {
        let upstream = Raw::start(deed).await;
        let short = |config: &mut toolweir_sidecar::run::RunConfig| config.limits.first_byte = Duration::from_millis(200);
        let sidecar = Sidecar::with(&policy(&upstream.url(), ONE_A_MINUTE), short).await;
        assert_eq!(sidecar.ask(&Ask::post(call("1", "pay", "{}")).plain()).await.status, status, "{name}");
        assert_eq!(sidecar.reason(&call("2", "pay", "{}")).await, "rate_limit", "{name}");
    }
}

#[tokio::test]
async fn a_limit_of_one_lets_one_call_reach_a_server_that_fails() {
    let upstream = Upstream::start(|_| Reply::status(503)).await;
    let sidecar = Sidecar::start(&policy(&upstream.url(), ONE_A_MINUTE)).await;
    let mut statuses = Vec::new();
    for id in 0..30 {
        statuses.push(sidecar.ask(&Ask::post(call(&id.to_string(), "pay", "{}"))).await.status);
    }
    assert_eq!((statuses[0], &statuses[1..]), (503, [200; 29].as_slice()));
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test]
async fn a_call_is_under_way_until_its_answer_has_ended() {
    let (upstream, mut opened) = Upstream::streaming("text/event-stream").await;
    let sidecar = Sidecar::start(&policy(&upstream.url(), "[{name: pay, maxConcurrent: 1}]")).await;
    let ask = Ask::post(call("1", "pay", "{}"));

    let (mut first, status, _) = Wire::open(sidecar.address, &ask).await;
    let feed = opened.recv().await.unwrap();
    feed.send(": working\n\n").await;
    assert_eq!((status, first.text_up_to("\n\n").await.as_str()), (200, ": working\n\n"));
    let denied = sidecar.post(&call("2", "pay", "{}")).await;
    assert_eq!(denial(&denied), &json!({"reason": "concurrency", "policy": "agents/bank", "tool": "pay"}));
    drop(feed);
    assert!(first.rest().await.unwrap().is_empty());

    // The place comes free with the end of the answer, and when the client hangs up.
    let (mut second, status, _) = Wire::open(sidecar.address, &ask).await;
    assert_eq!(status, 200);
    let feed = opened.recv().await.unwrap();
    feed.send("data: x\n\n").await;
    second.text_up_to("\n\n").await;
    assert_eq!(sidecar.reason(&call("2", "pay", "{}")).await, "concurrency");
    drop(second);
    feed.given_up().await;
    let (_third, status, _) = Wire::open(sidecar.address, &ask).await;
    assert_eq!(status, 200);
    assert_eq!(upstream.seen().len(), 3);
}

#[tokio::test]
async fn a_policy_in_audit_mode_lets_through_and_tells_what_it_would_have_denied() {
    let upstream = Upstream::start(|seen| match seen.json()["method"].as_str() {
        Some("tools/list") => Reply::json(list("1", &["pay", "free", "other"])),
        _ => Reply::json(result("1")),
    })
    .await;
    let text = policy(&upstream.url(), ONE_A_MINUTE).replace("spec:\n", "spec:\n  mode: Audit\n");
    let sidecar = Sidecar::start(&text).await;
    for tool in ["pay", "pay", "free", "other"] {
        assert_eq!(sidecar.reason(&call("1", tool, "{}")).await, "none", "{tool}");
    }
    assert_eq!(sidecar.ask(&Ask::post(request("1", "tools/list", "{}"))).await.text(), list("1", &["pay", "free", "other"]));
    let scrape = sidecar.scrape().await;
    let counted = |tool: &str, decision: &str, reason: &str| {
        scrape.sum(
            "toolweir_tool_calls_total",
            &[("tool", tool), ("decision", decision), ("reason", reason), ("policy", "agents/bank")],
        )
    };
    assert_eq!(counted("pay", "allowed", "none"), 1.0);
    assert_eq!(counted("pay", "would_deny", "rate_limit"), 1.0);
    assert_eq!(counted("free", "allowed", "none"), 1.0);
    assert_eq!(counted("_other", "would_deny", "not_listed"), 1.0);
    assert_eq!(scrape.sum("toolweir_tool_calls_total", &[("decision", "denied")]), 0.0);
    assert_eq!(scrape.sum("toolweir_policy_info", &[("policy", "agents/bank"), ("mode", "Audit")]), 1.0);
    let lines = sidecar.audit(4).await;
    let told: Vec<(&str, &str, &str)> = lines
        .iter()
        .map(|line| (line["decision"].as_str().unwrap(), line["reason"].as_str().unwrap(), line["outcome"].as_str().unwrap()))
        .collect();
    assert_eq!(
        told,
        [
            ("allowed", "none", "ok"),
            ("would_deny", "rate_limit", "ok"),
            ("allowed", "none", "ok"),
            ("would_deny", "not_listed", "ok")
        ]
    );
}
