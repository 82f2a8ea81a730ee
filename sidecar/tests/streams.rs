//! Streams pass as they come and end on both sides when one side ends them, in Streamable HTTP and in HTTP+SSE
//! (2024-11-05); a sidecar that stops finishes what it has begun. mcp.md, "Two eras" and "Lists, streams, tasks".
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::float_cmp)]

mod common;

use std::time::{Duration, Instant};

use common::{
    allow_all, call,
    client::{Ask, Http, Http2, Wire},
    denial, list, policy, request, result,
    sidecar::Sidecar,
    until,
    upstream::{Feed, Reply, Upstream},
    within,
};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    sync::{mpsc, oneshot},
};

const EVENTS: &str = "text/event-stream";

#[tokio::test]
async fn an_event_reaches_the_client_before_the_next_is_sent() {
    let (upstream, mut opened) = Upstream::streaming(EVENTS).await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    let asks = [Ask::post(call("1", "pay", "{}")), Ask::post(request("1", "tools/list", "{}")), Ask::get()];
    // Bytes as they come, whatever they are: comments, retry.
    let progress = "event: message\nid: 1\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\"}\n\n";
    let events = [": hello\n\n", "retry: 100\r\n\r\n", progress, ":\n\n"];
    for ask in &asks {
        let (mut wire, status, headers) = Wire::open(sidecar.address, ask).await;
        let feed = opened.recv().await.unwrap();
        assert_eq!((status, headers["content-type"].to_str().unwrap()), (200, EVENTS));
        for event in events {
            feed.send(event).await;
            assert_eq!(wire.text_up_to(event).await, event);
        }
        drop(feed);
        assert_eq!(wire.rest().await.unwrap(), "");

        let mut client = Http2::connect(sidecar.address).await;
        let response = client.head(ask).await;
        let feed = opened.recv().await.unwrap();
        assert_eq!(response.status(), 200);
        let mut body = response.into_body();
        for event in events {
            feed.send(event).await;
            let frame = within("an event", body.frame()).await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), event);
        }
    }
}

#[tokio::test]
async fn a_large_json_answer_is_not_held_back_either() {
    let (upstream, mut opened) = Upstream::streaming("application/json").await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    let large = format!("{{\"a\":\"{}", "x".repeat(100_000));
    let ask = Ask::post(call("1", "pay", "{}"));
    let (wire, feed) = tokio::join!(Wire::open(sidecar.address, &ask), async {
        let feed = opened.recv().await.unwrap();
        feed.send(&large).await;
        feed
    });
    let mut wire = wire.0;
    assert!(wire.text_up_to(&large).await == large);
    feed.send("\"}").await;
    assert_eq!(wire.text_up_to("\"}").await, "\"}");
}

#[tokio::test]
async fn get_and_delete_pass_with_what_they_ask_for() {
    let upstream = Upstream::start(|seen| match seen.method.as_str() {
        "GET" if seen.header("last-event-id") == "9" => Reply::new(200, EVENTS, "id: 10\ndata: {}\n\n"),
        "GET" => Reply::status(405).with("allow", "POST"),
        _ => Reply::status(204),
    })
    .await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    for http in Http::BOTH {
        let ask = Ask::get().with("mcp-session-id", "s").with("last-event-id", "9").with("mcp-protocol-version", "2025-11-25");
        assert_eq!(ask.over(http, sidecar.address).await.text(), "id: 10\ndata: {}\n\n");
        let seen = upstream.seen().pop().unwrap();
        assert_eq!(
            (seen.header("mcp-session-id"), seen.header("mcp-protocol-version"), seen.header("accept")),
            ("s", "2025-11-25", EVENTS)
        );
        let refused = Ask::get().over(http, sidecar.address).await;
        assert_eq!((refused.status, refused.header("allow")), (405, "POST"));
        assert_eq!(Ask::delete().with("mcp-session-id", "s").over(http, sidecar.address).await.status, 204);
        let seen = upstream.seen().pop().unwrap();
        assert_eq!((seen.method.as_str(), seen.header("mcp-session-id"), seen.path.as_str()), ("DELETE", "s", "/mcp"));
    }
    let scrape = sidecar.scrape().await;
    let counted =
        |method: &str, outcome: &str| scrape.sum("toolweir_requests_total", &[("method", method), ("outcome", outcome)]);
    assert_eq!((counted("_get", "ok"), counted("_get", "upstream_rejected"), counted("_delete", "ok")), (2.0, 2.0, 2.0));
}

#[tokio::test]
async fn a_client_that_hangs_up_ends_the_request_to_the_server() {
    let (feeds, mut opened) = mpsc::unbounded_channel();
    let (silent, mut hanging) = mpsc::unbounded_channel();
    let upstream = Upstream::start(move |seen| {
        if seen.header("x-answer") == "none" {
            let (guard, given_up) = oneshot::channel();
            silent.send(given_up).unwrap();
            return Reply::hang(guard);
        }
        let (reply, feed) = Reply::events();
        feeds.send(feed).unwrap();
        reply
    })
    .await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    for ask in [Ask::post(call("1", "pay", "{}")), Ask::post(request("1", "tools/list", "{}")), Ask::get()] {
        // After the head of the answer.
        let (wire, _, _) = Wire::open(sidecar.address, &ask).await;
        let feed = opened.recv().await.unwrap();
        drop(wire);
        feed.given_up().await;
        let mut client = Http2::connect(sidecar.address).await;
        let response = client.head(&ask).await;
        let feed = opened.recv().await.unwrap();
        drop(response);
        feed.given_up().await;
        // Before it.
        let ask = ask.with("x-answer", "none");
        let mut wire = Wire::connect(sidecar.address).await;
        wire.write(&ask.bytes("localhost")).await;
        let given_up = hanging.recv().await.unwrap();
        drop(wire);
        assert!(within("the end of the request", given_up).await.is_err());
        let head = tokio::spawn(async move { client.head(&ask).await });
        let given_up = hanging.recv().await.unwrap();
        head.abort();
        assert!(within("the end of the request", given_up).await.is_err());
    }
}

#[tokio::test]
async fn a_stream_that_the_server_breaks_off_is_broken_off() {
    let (upstream, mut opened) = Upstream::streaming(EVENTS).await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    for ask in [Ask::post(call("1", "pay", "{}")), Ask::get()] {
        let (mut wire, _, _) = Wire::open(sidecar.address, &ask).await;
        let feed = opened.recv().await.unwrap();
        feed.send("data: {}\n\n").await;
        wire.text_up_to("\n\n").await;
        feed.break_off().await;
        assert_eq!(wire.rest().await, Err("broken off"));
    }
}

/// A server of the HTTP+SSE transport with an open stream, and a client at the sidecar.
struct Legacy {
    upstream: Upstream,
    sidecar: Sidecar,
    /// The client's stream.
    wire: Wire,
    /// The server's end of it.
    feed: Feed,
    /// The endpoint to which the client is told to post.
    path: String,
    /// The streams that are opened next.
    opened: mpsc::UnboundedReceiver<Feed>,
    /// Signals that a POST waits for, if it asks to wait.
    waiting: mpsc::UnboundedReceiver<oneshot::Sender<()>>,
}

impl Legacy {
    async fn start(tools: &str, endpoint: &str) -> Self {
        let (feeds, mut opened) = mpsc::unbounded_channel();
        let (signals, waiting) = mpsc::unbounded_channel();
        let upstream = Upstream::start(move |seen| {
            if seen.method == "POST" {
                let accepted = Reply::new(202, "text/plain", "Accepted");
                if seen.header("x-answer") != "later" {
                    return accepted;
                }
                let (signal, wait) = oneshot::channel();
                signals.send(signal).unwrap();
                return accepted.after(wait);
            }
            let (reply, feed) = Reply::events();
            feeds.send(feed).unwrap();
            reply
        })
        .await;
        let sidecar = Sidecar::start(&policy(&upstream.url(), tools)).await;
        let (mut wire, status, _) = Wire::open(sidecar.address, &Ask::get()).await;
        assert_eq!(status, 200);
        let feed = opened.recv().await.unwrap();
        let endpoint = endpoint.replace("ADDRESS", &upstream.address.to_string());
        feed.send(&format!("event: endpoint\r\ndata: {endpoint}\r\n\r\n")).await;
        let path = told(&wire.text_up_to("\n\n").await);
        Self { upstream, sidecar, wire, feed, path, opened, waiting }
    }

    fn ask(&self, body: &str) -> Ask {
        Ask::post(body).to(&self.path)
    }

    async fn post(&self, body: &str) {
        let answer = self.sidecar.ask(&self.ask(body)).await;
        assert_eq!(answer.status, 202, "{}", answer.text());
    }

    /// Sends a message as the server, and gives what the client gets.
    async fn message(&mut self, body: &str) -> String {
        self.feed.send(&format!("event: message\ndata: {body}\n\n")).await;
        self.event().await
    }

    async fn event(&mut self) -> String {
        let event = self.wire.text_up_to("\n\n").await;
        let data = event.strip_prefix("event: message\ndata: ").and_then(|event| event.strip_suffix("\n\n"));
        data.unwrap_or_else(|| panic!("{event}")).to_owned()
    }
}

/// The path that an endpoint event tells.
fn told(event: &str) -> String {
    let path = event.strip_prefix("event: endpoint\ndata: ").and_then(|event| event.strip_suffix("\n\n"));
    path.unwrap_or_else(|| panic!("{event}")).to_owned()
}

#[tokio::test]
async fn messages_go_to_the_endpoint_that_the_server_named() {
    for (named, path) in [
        ("/messages/?session_id=7", "/messages/?session_id=7"),
        ("http://ADDRESS/messages?s=1", "/messages?s=1"),
        ("messages?s=1", "/messages?s=1"),
        ("?s=1", "/mcp?s=1"),
        ("//ADDRESS/m", "/m"),
    ] {
        let mut legacy = Legacy::start("[{name: pay}]", named).await;
        let id = legacy.path.strip_prefix("/bank/-/messages/").unwrap_or_else(|| panic!("{}", legacy.path));
        assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        let body = call("1", "pay", "{ }");
        let answer = legacy.sidecar.ask(&legacy.ask(&body).with("authorization", "Bearer x")).await;
        assert_eq!((answer.status, answer.text().as_str()), (202, "Accepted"));
        let seen = legacy.upstream.seen().pop().unwrap();
        assert_eq!((seen.path.as_str(), seen.text(), seen.header("authorization")), (path, body.as_str(), "Bearer x"), "{named}");
        assert_eq!(legacy.message(&result("1")).await, result("1"));
    }
}

#[tokio::test]
async fn an_endpoint_of_another_origin_ends_the_stream() {
    let (upstream, mut opened) = Upstream::streaming(EVENTS).await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    for named in [
        "http://evil.example/messages",
        "//evil.example/m",
        "https://ADDRESS/m",
        "http://127.0.0.1:1/m",
        "http://x@evil.example/",
    ] {
        let (mut wire, _, _) = Wire::open(sidecar.address, &Ask::get()).await;
        let feed = opened.recv().await.unwrap();
        let named = named.replace("ADDRESS", &upstream.address.to_string());
        feed.send(&format!("event: endpoint\ndata: {named}\n\n")).await;
        assert_eq!(wire.rest().await, Err("broken off"), "{named}");
        feed.given_up().await;
    }
}

/// The client's stream of a GET of which the server gives all this.
async fn got(kind: &'static str, status: u16, body: &str) -> Result<String, &'static str> {
    let (kind, body) = (kind.to_owned(), body.to_owned());
    let upstream = Upstream::start(move |_| Reply::new(status, &kind, body.clone())).await;
    let sidecar = Sidecar::start(&policy(&upstream.url(), "[{name: pay}]")).await;
    let mut wire = Wire::connect(sidecar.address).await;
    wire.write(&Ask::get().with("connection", "close").bytes("localhost")).await;
    // One that ends at its first event may have no head.
    let got = wire.closed().await;
    let (head, body) = got.split_once("\r\n\r\n").unwrap_or_default();
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    match body.strip_suffix("0\r\n\r\n") {
        Some(body) if chunked => Ok(body.split_once("\r\n").and_then(|(_, body)| body.strip_suffix("\r\n")).unwrap().to_owned()),
        None if !chunked && head.contains(&format!("content-length: {}", body.len())) => Ok(body.to_owned()),
        _ => Err("broken off"),
    }
}

#[tokio::test]
async fn an_endpoint_is_known_however_clients_read_it() {
    for (kind, status, event) in [
        (EVENTS, 200, "event : endpoint \ndata: http://evil.example/m\n\n"),
        (EVENTS, 200, "event:\tEndpoint\ndata: http://evil.example/m\n\n"),
        ("Text/Event-Stream; charset=utf-8", 200, "event: endpoint\ndata: http://evil.example/m\n\n"),
        ("text/event-stream ; charset=utf-8", 201, "event: endpoint\ndata: http://evil.example/m\n\n"),
        ("text/plain", 404, "event: endpoint\ndata: http://evil.example/m\n\n"),
        (EVENTS, 404, "event: endpoint\ndata: http://evil.example/m\n\n"),
        ("application/json", 200, "event: endpoint\ndata: http://evil.example/m\n\n"),
        ("application/x-ndjson", 200, ": c\n\nevent:endpoint\ndata: http://evil.example/m\n\n"),
        ("text/plain", 200, " event: endpoint\rdata: /m\r\r"),
        ("", 200, "event: endpoint\ndata: http://evil.example/m\n\n"),
        (EVENTS, 200, "event: endpoint\ndata: http://evil.example/m"),
        (EVENTS, 200, "data: http://evil.example/m\nevent: endpoint"),
        (EVENTS, 200, "event: endpoint\nevent: message\ndata: /m\n\n"),
        (EVENTS, 200, "data: x\u{2028}event: endpoint\u{2028}data: http://evil.example/m\n\n"),
    ] {
        assert_eq!(got(kind, status, event).await, Err("broken off"), "{kind:?} {event:?}");
    }
    // Clients that decode by its charset, or look for another type in it, read another stream.
    for kind in ["text/event-stream; charset=utf-16", "text/plain;charset=utf-7", "application/json, text/event-stream"] {
        let told = got(kind, 200, "event: endpoint\ndata: http://evil.example/m\n\n").await.unwrap();
        assert!(told.contains("cannot be passed on: its Content-Type names"), "{kind}: {told}");
    }
    let large = "x".repeat(4 * 1024 * 1024);
    for event in [format!("event: endpoint\ndata: /m?{large}\n\n"), format!("data: {large}\nevent: endpoint\n\n")] {
        assert_eq!(got(EVENTS, 200, &event).await, Err("broken off"));
    }
    // One of the server's own origin is rewritten, in words that every client reads.
    for event in ["event : Endpoint \ndata: /m\n\n", "\u{feff}EVENT:endpoint\ndata:/m\n\n"] {
        let told = got(EVENTS, 200, event).await.unwrap();
        assert!(told.starts_with("event: endpoint\ndata: /bank/-/messages/") && told.ends_with("\n\n"), "{told:?}");
    }
    // What is no event stream passes as it is.
    for (kind, body) in
        [("application/json", r#"{"tools":["endpoint"]}"#), ("text/html", "<p>event: endpoint</p>\n\n"), ("", "x")]
    {
        assert_eq!(got(kind, 200, body).await.as_deref(), Ok(body), "{kind:?}");
    }
}

#[tokio::test]
async fn comments_pass_at_once_and_are_no_half_of_an_event() {
    let (upstream, mut opened) = Upstream::streaming(EVENTS).await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    let (mut wire, _, _) = Wire::open(sidecar.address, &Ask::get()).await;
    let feed = opened.recv().await.unwrap();
    feed.send(":hb\n").await;
    assert_eq!(wire.text_up_to("\n").await, ":hb\n");
    feed.send("data: a\n").await;
    feed.send(": still there\n").await;
    assert_eq!(wire.text_up_to("\n").await, ": still there\n");
    feed.send("\n:hb").await;
    assert_eq!(wire.text_up_to("\n\n").await, "data: a\n\n");
    // It ends at once when the sidecar stops: there is no event to wait for.
    assert!(sidecar.stop(Duration::from_secs(5)).await);
    assert_eq!(wire.rest().await, Ok("".into()));
}

#[tokio::test]
async fn a_denial_arrives_on_the_stream_and_the_session_lives_on() {
    let mut legacy = Legacy::start("[{name: pay, limits: [{max: 1, window: hour}]}]", "/m").await;
    legacy.post(&call("1", "pay", "{}")).await;
    assert_eq!(legacy.message(&result("1")).await, result("1"));
    let answer = legacy.sidecar.ask(&legacy.ask(&call("2", "pay", "{}"))).await;
    assert_eq!((answer.status, answer.body.len()), (202, 0));
    let denied: Value = serde_json::from_str(&legacy.event().await).unwrap();
    assert_eq!((&denied["id"], &denied["result"]["isError"]), (&json!(2), &json!(true)));
    assert_eq!(denial(&denied)["reason"], "rate_limit");
    // It never comes between the halves of an event.
    legacy.feed.send("event: message\ndata: {\"half\":").await;
    let held = async || legacy.sidecar.scrape().await.sum("toolweir_held_bytes", &[]) > 0.0;
    until("the half to arrive", held).await;
    legacy.post(&call("\"x\"", "other", "{}")).await;
    legacy.feed.send("1}\n\n").await;
    assert_eq!(legacy.event().await, "{\"half\":1}");
    let denied: Value = serde_json::from_str(&legacy.event().await).unwrap();
    assert_eq!((&denied["id"], &denial(&denied)["reason"]), (&json!("x"), &json!("not_listed")));
    assert_eq!(legacy.upstream.seen().len(), 2);
}

#[tokio::test]
async fn a_list_that_arrives_on_the_stream_is_filtered() {
    let mut legacy = Legacy::start("[{name: pay}]", "/m").await;
    legacy.post(&request("1", "tools/list", "{}")).await;
    assert_eq!(legacy.message(&list("1", &["wipe", "pay"])).await, list("1", &["pay"]));
}

#[tokio::test]
async fn a_message_to_a_stream_is_held_to_the_rules_of_every_message() {
    let mut legacy = Legacy::start("[{name: \"*\", action: Allow}]", "/m").await;
    let pay = call("1", "pay", "{}");
    let ask = |body: &str| Ask::post(body).to(&legacy.path);
    for (name, ask, status) in [
        ("a batch", ask(&format!("[{pay}]")), 400),
        ("a key twice", ask(r#"{"method":"ping","method":"x"}"#), 400),
        // What has an id is answered where its client waits for that.
        ("another tool in a header", ask(&pay).with("mcp-name", "x"), 202),
        ("no JSON", ask(&pay).without("content-type"), 202),
        // Who posts there asks for no type.
        ("another type", ask(&pay).plain().without("content-type").with("content-type", "text/plain"), 202),
        ("another method", Ask::get().to(&legacy.path), 405),
        ("a stream that is not open", ask(&pay).to("/bank/-/messages/00000000000000000000000000000000"), 404),
        ("a query", ask(&pay).to(&format!("{}?x=1", legacy.path)), 202),
        ("a server that is not there", ask(&pay).to(&legacy.path.replace("bank", "shop")), 404),
    ] {
        assert_eq!(legacy.sidecar.ask(&ask).await.status, status, "{name}");
    }
    let notification = r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"pay"}}"#;
    assert_eq!(legacy.sidecar.ask(&ask(notification)).await.status, 202);
    for words in ["Refused: the header Mcp-Name", "Refused: the Content-Type", "Refused: the Content-Type", "Nothing is here"] {
        let answer: Value = serde_json::from_str(&legacy.event().await).unwrap();
        let text = answer["result"]["content"][0]["text"].as_str().unwrap();
        assert!(answer["id"] == 1 && text.starts_with(words), "{answer}");
    }
    assert_eq!(legacy.upstream.seen().len(), 1, "{:#?}", legacy.upstream.seen());
}

#[tokio::test]
async fn the_path_of_a_stream_ends_with_it() {
    let legacy = Legacy::start("[{name: pay}]", "/m").await;
    let Legacy { sidecar, wire, feed, path, .. } = legacy;
    drop(wire);
    feed.given_up().await;
    let ask = Ask::post(call("1", "pay", "{}")).to(&path);
    until("the path to be gone", async || sidecar.ask(&ask).await.status == 404).await;
}

#[tokio::test]
async fn a_stream_belongs_to_its_server_alone() {
    let legacy = Legacy::start("[{name: pay}]", "/m").await;
    let second = policy(&legacy.upstream.url(), "[{name: pay}]").replace("bank", "shop");
    let both = format!("{}---\n{second}", policy(&legacy.upstream.url(), "[{name: pay}]"));
    legacy.sidecar.folder.write("policy.yaml", both);
    let shop = async || {
        legacy.sidecar.ask(&Ask::get().method("PUT").to("/shop")).await.status == 405
            && legacy.sidecar.governor.in_force().server("shop").is_some()
    };
    until("the second server", shop).await;
    let answer = legacy.sidecar.ask(&legacy.ask(&call("1", "pay", "{}")).to(&legacy.path.replace("bank", "shop"))).await;
    assert_eq!(answer.status, 404);
}

#[tokio::test]
async fn a_call_over_a_stream_is_under_way_until_its_answer_arrives() {
    let mut legacy = Legacy::start("[{name: pay, maxConcurrent: 1}]", "/m").await;
    legacy.post(&call("1", "pay", "{}")).await;
    legacy.post(&call("2", "pay", "{}")).await;
    let denied: Value = serde_json::from_str(&legacy.event().await).unwrap();
    assert_eq!((&denied["id"], &denial(&denied)["reason"]), (&json!(2), &json!("concurrency")));
    // Other messages do not free its place; its answer does, though the server writes the id in its own way.
    legacy.message(r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#).await;
    legacy.message(&result("2")).await;
    legacy.post(&call("3", "pay", "{}")).await;
    assert!(legacy.event().await.contains("concurrency"));
    legacy.message(&result("1.0")).await;
    legacy.post(&call("4", "pay", "{}")).await;
    assert_eq!(legacy.upstream.seen().len(), 3);
    // A stream that ends takes the calls on it along.
    let Legacy { sidecar, wire, feed, mut opened, .. } = legacy;
    drop(wire);
    feed.given_up().await;
    let (mut wire, _, _) = Wire::open(sidecar.address, &Ask::get()).await;
    let feed = opened.recv().await.unwrap();
    feed.send("event: endpoint\ndata: /m\n\n").await;
    let path = told(&wire.text_up_to("\n\n").await);
    sidecar.ask(&Ask::post(call("5", "pay", "{}")).to(&path)).await;
    until("the call to pass", async || {
        sidecar.scrape().await.sum("toolweir_tool_calls_total", &[("decision", "allowed")]) == 3.0
    })
    .await;
}

#[tokio::test]
async fn an_id_that_is_in_use_on_a_stream_is_refused() {
    let mut legacy = Legacy::start("[{name: pay, maxConcurrent: 1}]", "/m").await;
    legacy.post(&call("1", "pay", "{}")).await;
    for id in ["1", "1.0", "10e-1", "1.5", "\"1\""] {
        for body in [request(id, "ping", "{}"), request(id, "tools/list", "{}"), call(id, "pay", "{}")] {
            legacy.post(&body).await;
            let message = "Refused: the id is in use by a request that has no answer yet.";
            let answer = legacy.event().await;
            assert!(answer.starts_with(&format!(r#"{{"jsonrpc":"2.0","id":{id},"#)) && answer.contains(message), "{answer}");
        }
    }
    assert_eq!(legacy.sidecar.counted("refused").await, 15.0);
    // So nothing but the answer to the call frees its place.
    legacy.post(&call("2", "pay", "{}")).await;
    assert!(legacy.event().await.contains("concurrency"));
    assert_eq!(legacy.upstream.seen().len(), 2);
    legacy.message(&result("1")).await;
    legacy.post(&request("1", "ping", "{}")).await;
    legacy.post(&call("2", "pay", "{}")).await;
    assert_eq!(legacy.upstream.seen().len(), 4);
    // What has no id has none in use, and an answer of the client has one of the server's.
    legacy.post(r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#).await;
    legacy.post(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#).await;
    assert_eq!(legacy.upstream.seen().len(), 6);
    // The ping is under way, too, so the answer to it ends it, and not the call.
    legacy.message(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#).await;
    legacy.post(&call("3", "pay", "{}")).await;
    assert!(legacy.event().await.contains("concurrency"));
    // An id of any length would be kept.
    legacy.post(&request(&format!("\"{}\"", "x".repeat(1100)), "ping", "{}")).await;
    assert!(legacy.event().await.contains("longer than 1024 bytes"));
}

#[tokio::test]
async fn one_id_can_be_under_way_twice_where_each_answer_belongs_to_its_post() {
    let (upstream, mut opened) = Upstream::streaming(EVENTS).await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    let mut feeds = Vec::new();
    for _ in 0..2 {
        let (wire, status, _) = Wire::open(sidecar.address, &Ask::post(call("1", "pay", "{}"))).await;
        assert_eq!(status, 200);
        feeds.push((wire, opened.recv().await.unwrap()));
    }
    assert_eq!(upstream.seen().len(), 2);
}

#[tokio::test]
async fn a_client_that_hangs_up_before_its_post_is_answered_frees_no_place() {
    let mut legacy = Legacy::start("[{name: pay, maxConcurrent: 1}]", "/m").await;
    let mut post = Wire::connect(legacy.sidecar.address).await;
    post.write(&legacy.ask(&call("1", "pay", "{}")).with("x-answer", "later").bytes("localhost")).await;
    let mut signal = legacy.waiting.recv().await.unwrap();
    drop(post);
    within("the end of the POST", signal.closed()).await;
    legacy.post(&call("2", "pay", "{}")).await;
    assert!(legacy.event().await.contains("concurrency"));
    legacy.post(&request("1", "ping", "{}")).await;
    assert!(legacy.event().await.contains("in use"));
    legacy.message(&result("1")).await;
    legacy.post(&call("2", "pay", "{}")).await;
    assert_eq!(legacy.upstream.seen().len(), 3);
}

#[tokio::test]
async fn a_cancelled_call_of_a_stream_leaves_its_place_and_its_line_says_so() {
    let mut legacy = Legacy::start("[{name: pay, maxConcurrent: 1}]", "/m").await;
    let cancel = |id: &str| format!(r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{id}}}}}"#);
    legacy.post(&call("1", "pay", "{}")).await;
    legacy.post(&cancel("\"1\"")).await;
    legacy.post(&call("2", "pay", "{}")).await;
    assert!(legacy.event().await.contains("concurrency"));
    // It is not over before the server has taken the notification.
    let mut slow = Wire::connect(legacy.sidecar.address).await;
    slow.write(&legacy.ask(&cancel("1")).with("x-answer", "later").bytes("localhost")).await;
    let signal = legacy.waiting.recv().await.unwrap();
    legacy.post(&call("2", "pay", "{}")).await;
    assert!(legacy.event().await.contains("concurrency"));
    signal.send(()).unwrap();
    assert_eq!(slow.answer().await.status, 202);
    legacy.post(&call("2", "pay", "{}")).await;
    // Its late answer passes and frees no other's place; until then the id is not for another.
    legacy.post(&request("1", "ping", "{}")).await;
    assert!(legacy.event().await.contains("in use"));
    assert_eq!(legacy.message(&result("1")).await, result("1"));
    legacy.post(&call("3", "pay", "{}")).await;
    assert!(legacy.event().await.contains("concurrency"));
    assert_eq!(legacy.message(&result("2")).await, result("2"));
    legacy.post(&call("1", "pay", "{}")).await;
    assert_eq!(legacy.message(&result("1")).await, result("1"));
    let outcomes: Vec<Value> = legacy.sidecar.audit(6).await.iter().map(|line| line["outcome"].clone()).collect();
    assert_eq!(outcomes, ["denied", "denied", "cancelled", "denied", "ok", "ok"]);
}

#[tokio::test]
async fn a_post_to_a_stream_that_is_not_answered_in_time_frees_no_place() {
    let (feeds, mut opened) = mpsc::unbounded_channel();
    let upstream = Upstream::start(move |seen| {
        if seen.method == "POST" {
            return Reply::hang(oneshot::channel().0);
        }
        let (reply, feed) = Reply::events();
        feeds.send(feed).unwrap();
        reply
    })
    .await;
    let short = |config: &mut toolweir_sidecar::run::RunConfig| config.limits.first_byte = Duration::from_millis(300);
    let sidecar = Sidecar::with(&policy(&upstream.url(), "[{name: pay, maxConcurrent: 1}]"), short).await;
    let (mut wire, _, _) = Wire::open(sidecar.address, &Ask::get()).await;
    let feed = opened.recv().await.unwrap();
    feed.send("event: endpoint\ndata: /m\n\n").await;
    let path = told(&wire.text_up_to("\n\n").await);
    let post = async |id: &str| sidecar.ask(&Ask::post(call(id, "pay", "{}")).to(&path)).await.status;
    assert_eq!(post("1").await, 202);
    assert!(wire.text_up_to("\n\n").await.contains("did not begin to answer in time"));
    assert_eq!(post("2").await, 202);
    assert!(wire.text_up_to("\n\n").await.contains("concurrency"));
    feed.send(&format!("data: {}\n\n", result("1"))).await;
    wire.text_up_to("\n\n").await;
    assert_eq!(post("2").await, 202);
    assert_eq!(upstream.seen().len(), 3);
}

#[tokio::test]
async fn an_answer_on_a_stream_frees_its_place_however_it_is_written() {
    let mut legacy = Legacy::start("[{name: pay, maxConcurrent: 1}]", "/m").await;
    let large = result("ID").replace("done", &"x".repeat(5 << 20));
    let answers = [
        ("a batch", format!("[{},{}]", result("100"), result("ID"))),
        ("a byte-order mark", format!("\u{feff}{}", result("ID"))),
        ("too large", large),
        ("its id at the end", format!(r#"{{"result":{{"x":"{}"}},"id":ID}}"#, "x".repeat(5 << 20))),
        ("not strict", r#"{"id":ID,"result":{"x":NaN}}"#.to_owned()),
        ("the id written anew", result("ID.0")),
    ];
    for (id, (name, answer)) in answers.iter().enumerate() {
        legacy.post(&call(&id.to_string(), "pay", "{}")).await;
        assert_eq!(legacy.upstream.seen().len(), id + 2, "{name}");
        let answer = answer.replace("ID", &id.to_string());
        assert_eq!(legacy.message(&answer).await, answer, "{name}");
    }
}

#[tokio::test]
async fn an_answer_that_overtakes_the_end_of_its_post_frees_the_place_too() {
    let mut legacy = Legacy::start("[{name: pay, maxConcurrent: 1}]", "/m").await;
    let mut post = Wire::connect(legacy.sidecar.address).await;
    post.write(&legacy.ask(&call("1", "pay", "{}")).with("x-answer", "later").bytes("localhost")).await;
    let signal = legacy.waiting.recv().await.unwrap();
    assert_eq!(legacy.message(&result("1")).await, result("1"));
    signal.send(()).unwrap();
    assert_eq!(post.answer().await.status, 202);
    legacy.post(&call("2", "pay", "{}")).await;
    assert_eq!(legacy.message(&result("2")).await, result("2"));
}

#[tokio::test]
async fn a_call_over_a_stream_frees_its_place_where_the_server_says_that_it_does_not_take_it() {
    let (feeds, mut opened) = mpsc::unbounded_channel();
    let upstream = Upstream::start(move |seen| {
        if seen.method == "POST" {
            return Reply::status(seen.json()["id"].as_u64().unwrap().try_into().unwrap());
        }
        let (reply, feed) = Reply::events();
        feeds.send(feed).unwrap();
        reply
    })
    .await;
    let sidecar = Sidecar::start(&policy(&upstream.url(), "[{name: pay, maxConcurrent: 1}]")).await;
    let (mut wire, _, _) = Wire::open(sidecar.address, &Ask::get()).await;
    let feed = opened.recv().await.unwrap();
    feed.send("event: endpoint\ndata: /m\n\n").await;
    let path = told(&wire.text_up_to("\n\n").await);
    let post = async |id: u16| sidecar.ask(&Ask::post(call(&id.to_string(), "pay", "{}")).to(&path)).await.status;
    // A client that was turned away may send the same again, with what was missing.
    for status in [401, 401, 404, 429, 503] {
        assert_eq!(post(status).await, status);
    }
    // Of a failure it is not known whether it has begun the call.
    assert_eq!(post(404).await, 202);
    assert!(wire.text_up_to("\n\n").await.contains("concurrency"));
    assert_eq!(post(503).await, 202);
    assert!(wire.text_up_to("\n\n").await.contains("the id is in use"));
    feed.send(&format!("data: {}\n\n", result("503"))).await;
    wire.text_up_to("\n\n").await;
    assert_eq!(post(404).await, 404);
}

#[tokio::test]
async fn each_stream_is_a_session_of_its_own() {
    let legacy = Legacy::start("[{name: pay, limits: [{max: 1, window: hour, scope: Session}]}]", "/m").await;
    let Legacy { upstream, sidecar, mut wire, feed: _feed, path, mut opened, .. } = legacy;
    let (mut other, _, _) = Wire::open(sidecar.address, &Ask::get()).await;
    let feed = opened.recv().await.unwrap();
    feed.send("event: endpoint\ndata: /m\n\n").await;
    let other_path = told(&other.text_up_to("\n\n").await);
    // Both begin at 1: an id belongs to a request of its stream.
    for (path, id) in [(&path, "1"), (&other_path, "1"), (&path, "2")] {
        assert_eq!(sidecar.ask(&Ask::post(call(id, "pay", "{}")).to(path)).await.status, 202);
    }
    assert!(wire.text_up_to("\n\n").await.contains("rate_limit"));
    assert_eq!(upstream.seen().len(), 4);
}

#[tokio::test]
async fn a_sidecar_that_stops_finishes_calls_and_ends_streams() {
    let (feeds, mut opened) = mpsc::unbounded_channel();
    let (signals, mut waiting) = mpsc::unbounded_channel();
    let upstream = Upstream::start(move |seen| {
        if seen.text().contains("tools/call") {
            let (signal, wait) = oneshot::channel();
            signals.send(signal).unwrap();
            return Reply::json(result("1")).after(wait);
        }
        let (reply, feed) = Reply::events();
        feeds.send(feed).unwrap();
        reply
    })
    .await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    let (address, metrics) = (sidecar.address, sidecar.metrics);
    // A call under way over each version of HTTP, streams for as long as the client lives, and connections that idle.
    let mut calling = Wire::connect(address).await;
    calling.write(&Ask::post(call("1", "pay", "{}")).bytes("localhost")).await;
    let first = waiting.recv().await.unwrap();
    let mut client = Http2::connect(address).await;
    let second = tokio::spawn(async move { client.ask(&Ask::post(call("1", "pay", "{}"))).await });
    let signal = waiting.recv().await.unwrap();
    let listen = r#"{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}"#;
    let mut streams = Vec::new();
    for ask in [Ask::get(), Ask::post(request("1", "subscriptions/listen", listen))] {
        let (mut wire, _, _) = Wire::open(address, &ask).await;
        let feed = opened.recv().await.unwrap();
        feed.send("data: {}\n\n").await;
        wire.text_up_to("\n\n").await;
        streams.push((wire, feed));
    }
    let mut idle = Wire::connect(address).await;
    let mut used = Wire::connect(address).await;
    used.write(&Ask::delete().method("PUT").bytes("localhost")).await;
    assert_eq!(used.answer().await.status, 405);
    until("all connections", async || sidecar.scrape().await.sum("toolweir_connections", &[]) == 6.0).await;

    let stopping = tokio::spawn(sidecar.stop(Duration::from_secs(5)));
    for (wire, feed) in &mut streams {
        assert_eq!(wire.rest().await, Ok("".into()));
        feed.given_up().await;
    }
    idle.closed().await;
    used.closed().await;
    until("new connections to be refused", async || TcpStream::connect(address).await.is_err()).await;
    assert_eq!(Ask::get().to("/readyz").over(Http::One, metrics).await.status, 503);
    assert!(!stopping.is_finished());
    first.send(()).unwrap();
    signal.send(()).unwrap();
    assert_eq!(calling.answer().await.text(), result("1"));
    assert_eq!(second.await.unwrap().text(), result("1"));
    assert!(within("the stop", stopping).await.unwrap(), "it was not drained");
}

#[tokio::test]
async fn a_sidecar_that_stops_does_not_wait_for_ever() {
    let (upstream, mut opened) = Upstream::streaming(EVENTS).await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    let (_wire, _, _) = Wire::open(sidecar.address, &Ask::post(call("1", "pay", "{}"))).await;
    let _feed = opened.recv().await.unwrap();
    let began = Instant::now();
    assert!(!sidecar.stop(Duration::from_millis(200)).await);
    assert!((200..2000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
}
