//! Whatever becomes of a request whose id can be read, its client gets that id back, in the form in which it hands words
//! to its model: an HTTP error, or an answer without the id, ends whole sessions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::float_cmp)]

mod common;

use std::time::Duration;

use common::{
    allow_all, call,
    client::{Answer, Ask, Http, Wire},
    denial, modern_call, policy, request,
    sidecar::Sidecar,
    upstream::{Deed, Raw, Upstream},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use toolweir_sidecar::run::RunConfig;

/// Bounds that a test can pass over.
fn small(config: &mut RunConfig) {
    config.limits.body = 10_000;
    config.limits.first_byte = Duration::from_millis(200);
}

/// A message as Python and TypeScript write it: the id comes last.
fn id_last(method: &str, params: &str, id: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":{params},"id":{id}}}"#)
}

fn large(method: &str) -> String {
    id_last(method, &format!(r#"{{"name":"pay","arguments":{{"x":"{}"}}}}"#, "x".repeat(50_000)), "\"a7\"")
}

/// The words of a tool result; what a model is told.
fn words(answer: &Answer) -> String {
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"), "{}", answer.text());
    let body = answer.json();
    assert_eq!((&body["jsonrpc"], &body["result"]["isError"]), (&json!("2.0"), &json!(true)), "{body}");
    assert_eq!(body["result"]["content"][0]["type"], "text", "{body}");
    body["result"]["content"][0]["text"].as_str().unwrap().to_owned()
}

/// Posts a call that is not carried out, and checks that its answer is a tool result that says why.
async fn is_answered_as_a_tool_result(name: &str, url: &str, ask: &Ask, (reason, again, says): (&str, bool, &str)) {
    let sidecar = Sidecar::with(&allow_all(url), small).await;
    for http in Http::BOTH {
        if http == Http::Two && name.contains("chunks") {
            continue;
        }
        let answer = ask.over(http, sidecar.address).await;
        let said = words(&answer);
        assert!(said.contains(says), "{name}, {http:?}: {said}");
        let body = answer.json();
        assert_eq!(body["id"], "a7", "{name}, {http:?}: {body}");
        let expected = if again {
            json!({"reason": reason, "retry": true, "retryAfterSeconds": 1})
        } else {
            json!({"reason": reason, "retry": false})
        };
        assert_eq!(denial(&body), &expected, "{name}, {http:?}");
        assert_eq!(body["result"].get("resultType"), None, "{name}, {http:?}");
    }
    let told = sidecar.counted(reason).await;
    assert_eq!(told, if name.contains("chunks") { 1.0 } else { 2.0 }, "{name}");
}

#[tokio::test]
async fn a_call_that_is_not_carried_out_is_a_tool_result_with_its_id() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (hangs, hangs_up) = (Raw::start(Deed::Keep(Vec::new())).await, Raw::start(Deed::Say(Vec::new())).await);
    let redirects = Raw::start(Deed::Say(b"HTTP/1.1 307 Go\r\nLocation: /else\r\nContent-Length: 0\r\n\r\n".to_vec())).await;
    let upstream = Upstream::bank().await;
    let pay = || Ask::post(call("\"a7\"", "pay", "{}"));
    for (name, url, ask, reason, again, says) in [
        ("too large", upstream.url(), Ask::post(large("tools/call")), "refused", false, "larger than 10000 bytes"),
        (
            "too large, in chunks",
            upstream.url(),
            Ask::post(large("tools/call")).with("transfer-encoding", "chunked"),
            "refused",
            false,
            "larger than 10000 bytes",
        ),
        (
            "a key twice",
            upstream.url(),
            Ask::post(id_last("tools/call", r#"{"name":"a","name":"b"}"#, "\"a7\"")),
            "refused",
            false,
            "repeats the key",
        ),
        ("no name", upstream.url(), Ask::post(id_last("tools/call", "{}", "\"a7\"")), "refused", false, "needs `params.name`"),
        ("no JSON", upstream.url(), pay().without("content-type"), "refused", false, "Content-Type"),
        ("two sessions", upstream.url(), pay().with("mcp-session-id", "a, b"), "refused", false, "Mcp-Session-Id"),
        (
            "a legacy call with another tool in a header",
            upstream.url(),
            pay().with("mcp-name", "x"),
            "refused",
            false,
            "Mcp-Name",
        ),
        ("an unknown path", upstream.url(), pay().to("/bank/mcp"), "not_found", false, "reached at /<name>"),
        ("cannot connect", format!("http://{nobody}/mcp"), pay(), "connect_failed", true, "nobody listens"),
        (
            "hung up",
            hangs_up.url(),
            pay(),
            "upstream_failed",
            false,
            "hung up or sent what is no HTTP answer. The call may have been carried out.",
        ),
        (
            "timed out",
            hangs.url(),
            pay(),
            "upstream_timeout",
            false,
            "did not begin to answer in time. The call may have been carried out.",
        ),
        ("redirected", redirects.url(), pay(), "upstream_invalid", false, "it redirects to /else"),
    ] {
        is_answered_as_a_tool_result(name, &url, &ask, (reason, again, says)).await;
    }
    assert!(upstream.seen().is_empty(), "{:#?}", upstream.seen());
}

#[tokio::test]
async fn a_call_for_which_there_is_no_place_or_no_room_is_a_tool_result_with_its_id() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::with(&allow_all(&upstream.url()), |config| config.limits.requests = 1).await;
    let mut first = Wire::connect(sidecar.address).await;
    let pay = Ask::post(id_last("tools/call", r#"{"name":"pay"}"#, "7.0"));
    let bytes = pay.bytes("localhost");
    first.write(&bytes[..bytes.len() - 1]).await;
    common::until("its place to be taken", async || sidecar.ask(&pay.clone().plain()).await.status == 503).await;
    let answer = sidecar.ask(&pay).await;
    assert!(words(&answer).contains("Try again"), "{}", answer.text());
    assert!(answer.text().contains(r#""id":7.0"#), "{}", answer.text());
    assert_eq!(denial(&answer.json()), &json!({"reason": "overloaded", "retry": true, "retryAfterSeconds": 1}));

    let sidecar = Sidecar::with(&allow_all(&upstream.url()), |config| {
        config.limits.held = 100_000;
        config.limits.held_wait = Duration::from_millis(50);
    })
    .await;
    let pay = Ask::post(large("tools/call"));
    let bytes = pay.bytes("localhost");
    let mut first = Wire::connect(sidecar.address).await;
    first.write(&bytes[..bytes.len() - 1]).await;
    common::until("its room to be taken", async || sidecar.ask(&pay.clone().plain()).await.status == 503).await;
    let answer = sidecar.ask(&pay).await;
    assert!(words(&answer).contains("holds as many bytes as it may"), "{}", answer.text());
    assert_eq!(answer.json()["id"], "a7");
}

#[tokio::test]
async fn what_calls_no_tool_gets_an_error_with_its_id() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let sidecar = Sidecar::with(&allow_all(&format!("http://{nobody}/mcp")), small).await;
    let modern = r#"{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}"#;
    let task = r#"{"name":"pay","task":{"ttl":1}}"#;
    for (name, ask, status, code) in [
        ("initialize", Ask::post(request("5", "initialize", "{}")), 200, -32603),
        ("a list", Ask::post(request("5", "tools/list", "{}")), 200, -32603),
        ("a list that is too large", Ask::post(large("tools/list").replace("\"a7\"", "5")), 200, -32600),
        ("a call that asks for a task", Ask::post(request("5", "tools/call", task)), 200, -32603),
        ("a modern list", Ask::post(request("5", "tools/list", modern)), 502, -32603),
        (
            "a modern list with another method in a header",
            Ask::post(request("5", "tools/list", modern)).with("mcp-method", "ping"),
            400,
            -32020,
        ),
        ("a modern call with another tool in a header", Ask::post(modern_call("5", "pay")).with("mcp-name", "x"), 400, -32020),
        (
            "a modern call with an odd header",
            Ask::post(modern_call("5", "pay")).with("mcp-protocol-version", "\"x\""),
            400,
            -32020,
        ),
        ("another origin", Ask::post(call("5", "pay", "{}")).with("origin", "https://chat.example"), 403, -32600),
        ("another host", Ask::post(call("5", "pay", "{}")).with("host", "chat.example"), 403, -32600),
    ] {
        for http in Http::BOTH {
            let answer = ask.over(http, sidecar.address).await;
            let body = answer.json();
            assert_eq!(
                (answer.status, &body["id"], &body["error"]["code"]),
                (status, &json!(5), &json!(code)),
                "{name}, {http:?}: {body}"
            );
            assert!(denial(&body)["reason"].is_string(), "{name}: {body}");
        }
    }
    // A modern call has the form of its era.
    let answer = sidecar.ask(&Ask::post(modern_call("5", "pay"))).await;
    assert!(words(&answer).contains("nobody listens"));
    assert_eq!(answer.json()["result"]["resultType"], "complete");
    // One who takes only events gets one.
    let events = Ask::post(call("5", "pay", "{}")).without("accept").with("accept", "text/event-stream");
    let answer = sidecar.ask(&events).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "text/event-stream"));
    assert!(answer.text().starts_with("event: message\ndata: {") && answer.text().ends_with("}\n\n"), "{}", answer.text());
}

#[tokio::test]
async fn a_call_to_a_server_that_no_policy_names_or_that_has_no_url_is_a_tool_result() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&policy(&upstream.url(), "[{name: pay}]")).await;
    let answer = sidecar.ask(&Ask::post(call("5", "pay", "{}")).to("/shop")).await;
    assert!(words(&answer).contains("no policy in force names the server shop"), "{}", answer.text());
    assert_eq!(answer.json()["id"], 5);
}

#[tokio::test]
async fn a_message_that_is_not_taken_is_scanned_within_bounds() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::with(&allow_all(&upstream.url()), |config| config.limits.body = 1000).await;
    let message = |size: usize| id_last("tools/call", &format!(r#"{{"name":"pay","x":"{}"}}"#, "x".repeat(size)), "7");
    let answer = sidecar.ask(&Ask::post(message(15_000))).await;
    assert_eq!((answer.status, &answer.json()["id"]), (200, &json!(7)), "{}", answer.text());
    // What comes behind is not read, so the id is not known.
    let mut wire = Wire::connect(sidecar.address).await;
    wire.write(&Ask::post(message(16_000)).bytes("localhost")).await;
    let (status, _) = wire.head().await;
    assert_eq!(status, 413);
    // Nor is one that repeats.
    let twice = message(2000).replace("\"id\":7", "\"id\":7,\"id\":8");
    let answer = sidecar.ask(&Ask::post(twice)).await;
    assert_eq!((answer.status, &answer.json()["id"]), (413, &Value::Null), "{}", answer.text());
    // The answer to a request of the server is none itself.
    let long = format!(r#"{{"jsonrpc":"2.0","id":7,"result":{{"x":"{}"}}}}"#, "x".repeat(2000));
    let answer = sidecar.ask(&Ask::post(long)).await;
    assert_eq!((answer.status, &answer.json()["id"]), (413, &Value::Null), "{}", answer.text());
}
