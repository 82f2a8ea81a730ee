//! A page of a list that the policies empty is filled from the next ones, since some clients never ask for those: in every
//! form that a list can come in. mcp.md, "Lists, streams, tasks".
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::float_cmp)]

mod common;

use std::{collections::HashSet, time::Duration};

use common::{
    LISTS, SOME,
    client::{Answer, Ask, Http, Wire},
    policy, policy_with, request,
    sidecar::Sidecar,
    until,
    upstream::{Feed, Reply, Seen, Upstream},
    usable, within,
};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

/// The tools that the agent may call.
const TOOLS: &str = "[{name: pay}]";

const EVENTS: &str = "text/event-stream";

/// A page with tools of these names under an id.
fn page(id: &Value, names: &[&str], next: Option<&str>) -> String {
    let tools: Vec<String> = names.iter().map(|name| format!(r#"{{"name":"{name}"}}"#)).collect();
    let next = next.map_or(String::new(), |next| format!(r#","nextCursor":"{next}""#));
    format!(r#"{{"jsonrpc":"2.0","result":{{"cacheScope":"public","tools":[{}]{next}}},"id":{id}}}"#, tools.join(","))
}

/// The page that a request of four asks for: two of which nothing may be called, one with `pay`, and one more.
fn of_four(seen: &Seen) -> String {
    let message = seen.json();
    match message["params"]["cursor"].as_str() {
        None => page(&message["id"], &["wipe", "burn"], Some("two")),
        Some("two") => page(&message["id"], &["wipe"], Some("c\\/\\u00e9\\\"")),
        Some("c/\u{e9}\"") => page(&message["id"], &["wipe", "pay"], Some("four")),
        Some("four") => page(&message["id"], &["pay"], None),
        other => panic!("{other:?}"),
    }
}

/// The page of those that the client gets, under its id.
const FILLED: &str =
    r#"{"jsonrpc":"2.0","result":{"cacheScope":"private","tools":[{"name":"pay"}],"nextCursor":"four"},"id":7.0}"#;

fn lists() -> Ask {
    Ask::post(request("7.0", "tools/list", "{}"))
}

async fn before(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> (Upstream, Sidecar) {
    let upstream = Upstream::start(script).await;
    let sidecar = Sidecar::start(&policy(&upstream.url(), TOOLS)).await;
    (upstream, sidecar)
}

async fn listed(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> (Upstream, Answer) {
    let (upstream, sidecar) = before(script).await;
    let answer = sidecar.ask(&lists()).await;
    (upstream, answer)
}

/// Returns true if a request is the client's own.
fn is_first(seen: &Seen) -> bool {
    seen.json()["params"].get("cursor").is_none()
}

#[tokio::test]
async fn an_empty_page_is_filled_as_the_client_would_by_asking_on() {
    let (upstream, sidecar) = before(|seen| Reply::json(of_four(seen)).with("mcp-session-id", "s-1")).await;
    let meta = r#"{ "_meta" : {"io.modelcontextprotocol/protocolVersion":"2026-07-28","progressToken":1.0} }"#;
    let ask = Ask::post(request("7.0", "tools/list", meta))
        .with("authorization", "Bearer t")
        .with("mcp-session-id", "s-1")
        .with("mcp-protocol-version", "2026-07-28")
        .with("mcp-method", "tools/list")
        .with("mcp-param-region", "eu")
        .with("x-tenant", "blue");
    for http in Http::BOTH {
        let answer = ask.over(http, sidecar.address).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, FILLED), "{http:?}");
        assert_eq!((answer.header("mcp-session-id"), answer.header("content-type")), ("s-1", "application/json"));
    }
    let seen = upstream.seen();
    assert_eq!(seen.len(), 6);
    for (number, seen) in seen.iter().enumerate() {
        for name in ["authorization", "mcp-session-id", "mcp-protocol-version", "mcp-method", "mcp-param-region", "x-tenant"] {
            assert_eq!(seen.headers.get_all(name).iter().count(), 1, "{name}");
        }
        for name in ["accept", "content-type", "authorization", "mcp-session-id", "mcp-param-region", "x-tenant"] {
            assert_eq!(seen.header(name), upstream.seen()[0].header(name));
        }
        let id = seen.json()["id"].to_string();
        let cursor = ["", r#","cursor":"two""#, r#","cursor":"c\/\u00e9\"""#][number % 3];
        let params = format!("{} {cursor}}}", meta.strip_suffix(" }").unwrap());
        assert_eq!(seen.text(), request(if number % 3 == 0 { "7.0" } else { &id }, "tools/list", &params));
    }
    let ids: HashSet<String> = seen.iter().map(|seen| seen.json()["id"].to_string()).collect();
    assert_eq!(ids.len(), 5, "ids of the sidecar's own are no other's: {ids:?}");
    // It counts as one request.
    assert_eq!(sidecar.scrape().await.sum("toolweir_requests_total", &[("method", "tools/list")]), 2.0);
}

#[tokio::test]
async fn a_page_that_the_server_gave_empty_or_that_has_a_tool_is_not_filled() {
    for names in [&[][..], &["pay"], &["wipe", "pay"]] {
        let (upstream, answer) = listed(move |seen| Reply::json(page(&seen.json()["id"], names, Some("two")))).await;
        let tools: Vec<Value> = names.iter().filter(|name| **name == "pay").map(|name| json!({ "name": name })).collect();
        assert_eq!(answer.json()["result"]["tools"], Value::from(tools));
        assert_eq!((&answer.json()["result"]["nextCursor"], upstream.seen().len()), (&json!("two"), 1), "{names:?}");
    }
    // Behind one that was emptied, one that the server gave empty is gone past, and the last page is what it is.
    let (_upstream, answer) = listed(|seen| {
        let id = &seen.json()["id"];
        Reply::json(match seen.json()["params"]["cursor"].as_str() {
            None => page(id, &["wipe"], Some("two")),
            Some("two") => page(id, &[], Some("three")),
            _ => page(id, &["wipe"], None),
        })
    })
    .await;
    assert_eq!(answer.text(), page(&json!(7.0), &[], None).replace("public", "private"));
}

/// Something goes wrong at the third page: the client gets the second, and can go on from there.
#[tokio::test]
async fn the_page_so_far_comes_with_its_cursor_where_no_other_can_be_had() {
    type Wrong = fn(&Seen) -> Reply;
    let rows: [(&str, Wrong); 14] = [
        ("its cursor repeats", |seen| Reply::json(page(&seen.json()["id"], &["wipe"], Some("two")))),
        ("HTTP 404", |seen| Reply::new(404, "application/json", of_four(seen))),
        ("HTTP 500", |_| Reply::new(500, "text/plain", "no")),
        ("a redirect", |_| Reply::status(307).with("location", "http://127.0.0.1:1/")),
        ("a JSON-RPC error", |seen| {
            Reply::json(format!(r#"{{"jsonrpc":"2.0","id":{},"error":{{"code":-32602,"message":"no"}}}}"#, seen.json()["id"]))
        }),
        ("another id", |_| Reply::json(page(&json!(7), &["pay"], None))),
        ("no list", |seen| Reply::json(common::result(&seen.json()["id"].to_string()))),
        ("unreadable", |seen| Reply::json(of_four(seen).replace(":\"public\"", ":NaN"))),
        ("unreadable, as an event", |seen| {
            Reply::new(200, EVENTS, format!("data: {}\n\n", of_four(seen).replace(":\"public\"", ":NaN")))
        }),
        ("too large", |seen| Reply::json(page(&seen.json()["id"], &["pay", &"x".repeat(70_000)], None))),
        ("compressed", |seen| Reply::json(of_four(seen)).with("content-encoding", "gzip")),
        ("of another type", |seen| Reply::new(200, "text/plain", of_four(seen))),
        ("a stream without it", |_| Reply::new(200, EVENTS, ": x\n\ndata\n\n")),
        ("nothing in time", |_| Reply::hang(oneshot::channel().0)),
    ];
    let so_far = page(&json!(7.0), &[], Some("c\\/\\u00e9\\\"")).replace("public", "private");
    for (name, wrong) in rows {
        for kind in ["application/json", EVENTS] {
            let upstream = Upstream::start(move |seen| {
                let third = seen.text().contains("00e9");
                let body = of_four(seen);
                match kind {
                    _ if third => wrong(seen),
                    EVENTS => Reply::new(200, EVENTS, format!("id: 1\ndata: {body}\n\n")),
                    kind => Reply::new(200, kind, body),
                }
            })
            .await;
            let sidecar = Sidecar::with(&policy(&upstream.url(), TOOLS), |config| {
                config.limits.body = 64 * 1024;
                if name == "nothing in time" {
                    config.limits.first_byte = Duration::from_millis(300);
                }
            })
            .await;
            let answer = sidecar.ask(&lists()).await;
            let expected = if name == "its cursor repeats" { so_far.replace("c\\/\\u00e9\\\"", "two") } else { so_far.clone() };
            let expected = if kind == EVENTS { format!("id: 1\ndata: {expected}\n\n") } else { expected };
            assert_eq!((answer.status, answer.text()), (200, expected), "{name} {kind}");
            assert_eq!(upstream.seen().len(), 3, "{name} {kind}");
        }
    }
}

#[tokio::test]
async fn no_more_than_twenty_pages_are_read_for_one_request() {
    let (upstream, answer) = listed(|seen| {
        let cursor = seen.json()["params"]["cursor"].as_str().map_or(1, |cursor| cursor.parse().unwrap());
        Reply::json(page(&seen.json()["id"], &["wipe"], Some(&(cursor + 1).to_string())))
    })
    .await;
    assert_eq!(answer.json()["result"], json!({"cacheScope": "private", "tools": [], "nextCursor": "21"}));
    assert_eq!(upstream.seen().len(), 20);
}

#[tokio::test]
async fn a_request_that_could_ask_for_another_page_than_meant_is_not_followed() {
    for params in [r#"{"Cursor":"1"}"#, "[]"] {
        let (upstream, sidecar) = before(|seen| Reply::json(page(&seen.json()["id"], &["wipe"], Some("two")))).await;
        let answer = sidecar.post(&request("1", "tools/list", params)).await;
        assert_eq!((&answer["result"]["nextCursor"], upstream.seen().len()), (&json!("two"), 1), "{params}");
    }
}

#[tokio::test]
async fn a_client_that_hangs_up_ends_the_search() {
    for kind in ["application/json", EVENTS] {
        let (given_up, mut waits) = mpsc::unbounded_channel();
        let (_upstream, sidecar) = before(move |seen| {
            if !is_first(seen) {
                let (held, released) = oneshot::channel();
                given_up.send(released).unwrap();
                return Reply::hang(held);
            }
            let body = of_four(seen);
            Reply::new(200, kind, if kind == EVENTS { format!("data: {body}\n\n") } else { body })
        })
        .await;
        let mut wire = Wire::connect(sidecar.address).await;
        wire.write(&lists().bytes("localhost")).await;
        let released = within("the second page", waits.recv()).await.unwrap();
        drop(wire);
        assert!(within("the end of the request", released).await.is_err(), "{kind}");
    }
}

#[tokio::test]
async fn a_page_is_filled_whether_answers_come_as_json_or_as_events() {
    for (first, other) in [(EVENTS, EVENTS), (EVENTS, "application/json"), ("application/json", EVENTS)] {
        let (_upstream, answer) = listed(move |seen| {
            let (kind, body) = (if is_first(seen) { first } else { other }, of_four(seen));
            let note = r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"data":"x"}}"#;
            let events =
                format!(": c\n\nid: a\nretry: 1\nevent: message\ndata: {note}\n\nid: b\nevent: message\ndata: {body}\n\n");
            Reply::new(200, kind, if kind == EVENTS { events } else { body })
        })
        .await;
        assert_eq!(answer.header("content-type"), first);
        let note = r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"data":"x"}}"#;
        let text = answer.text();
        if first != EVENTS {
            assert_eq!(text, FILLED);
            continue;
        }
        // What others said comes too, but a client must not resume their streams.
        let others = if other == EVENTS { format!("event: message\ndata: {note}\n\n").repeat(2) } else { String::new() };
        let own = format!(": c\n\nid: a\nretry: 1\nevent: message\ndata: {note}\n\n");
        assert_eq!(text, format!("{own}{others}id: b\nevent: message\ndata: {FILLED}\n\n"));
    }
}

#[tokio::test]
async fn a_stream_goes_on_while_its_page_is_filled() {
    let (feeds, mut opened) = mpsc::unbounded_channel::<Feed>();
    let (_upstream, sidecar) = before(move |seen| {
        let (reply, feed) = Reply::stream(if is_first(seen) { EVENTS } else { "application/json" });
        feeds.send(feed).unwrap();
        reply
    })
    .await;
    let (mut wire, _, _) = Wire::open(sidecar.address, &lists()).await;
    let first = within("the first answer", opened.recv()).await.unwrap();
    first.send(&format!("id: 1\ndata: {}\n\n", page(&json!(7.0), &["wipe"], Some("two")))).await;
    let second = within("the second answer", opened.recv()).await.unwrap();
    first.send("id: 2\ndata: {\"method\":\"notifications/message\"}\n\n").await;
    assert_eq!(wire.text_up_to("\n\n").await, "id: 2\ndata: {\"method\":\"notifications/message\"}\n\n");
    // The server's end of the stream is not the client's, and never does a page stand inside of an event.
    first.send(": c\ndata: {").await;
    assert_eq!(wire.text_up_to("\n").await, ": c\n");
    drop(second);
    until("nothing", async || {
        tokio::time::sleep(Duration::from_millis(50)).await;
        true
    })
    .await;
    first.send("}\n\n").await;
    drop(first);
    let rest = String::from_utf8(wire.rest().await.unwrap().to_vec()).unwrap();
    let so_far = page(&json!(7.0), &[], Some("two")).replace("public", "private");
    // Its id would send the client back behind what has passed since.
    assert_eq!(rest, format!("data: {{}}\n\ndata: {so_far}\n\n"));
}

/// A server of the HTTP+SSE transport, and a client at the sidecar.
struct Legacy {
    upstream: Upstream,
    sidecar: Sidecar,
    wire: Wire,
    feed: Feed,
    path: String,
}

impl Legacy {
    async fn start(accepted: u16) -> Self {
        let (feeds, mut opened) = mpsc::unbounded_channel();
        let (upstream, sidecar) = before(move |seen| {
            if seen.method == "POST" {
                return Reply::status(if is_first(seen) { 202 } else { accepted });
            }
            let (reply, feed) = Reply::events();
            feeds.send(feed).unwrap();
            reply
        })
        .await;
        let (mut wire, _, _) = Wire::open(sidecar.address, &Ask::get()).await;
        let feed = opened.recv().await.unwrap();
        feed.send("event: endpoint\ndata: /m\n\n").await;
        let told = wire.text_up_to("\n\n").await;
        let path = told.strip_prefix("event: endpoint\ndata: ").unwrap().trim().to_owned();
        Self { upstream, sidecar, wire, feed, path }
    }

    async fn post(&self, body: &str) {
        let ask = Ask::post(body).to(&self.path).with("authorization", "Bearer t").with("x-tenant", "blue");
        assert_eq!(self.sidecar.ask(&ask).await.status, 202);
    }

    async fn say(&self, message: &str) {
        self.feed.send(&format!("event: message\ndata: {message}\n\n")).await;
    }

    async fn heard(&mut self) -> String {
        let event = self.wire.text_up_to("\n\n").await;
        event.strip_prefix("event: message\ndata: ").unwrap().trim_end().to_owned()
    }

    /// The POST of this number, once it has come.
    async fn posted(&self, number: usize) -> Seen {
        let posts = || self.upstream.seen().into_iter().filter(|seen| seen.method == "POST").collect::<Vec<_>>();
        until("the POST", async || posts().len() >= number).await;
        posts()[number - 1].clone()
    }
}

#[tokio::test]
async fn an_empty_page_on_a_stream_of_http_and_sse_is_filled_and_no_other_answer_is_lost() {
    let mut legacy = Legacy::start(202).await;
    for round in 0..2 {
        legacy.post(&request("7.0", "tools/list", r#"{"x":1.0}"#)).await;
        legacy.post(&request("8", "ping", "{}")).await;
        legacy.say(&page(&json!(7), &["wipe"], Some("two"))).await;
        let asked = legacy.posted(3 + 3 * round).await;
        assert_eq!((asked.path.as_str(), asked.header("authorization"), asked.header("x-tenant")), ("/m", "Bearer t", "blue"));
        let own = asked.json()["id"].clone();
        assert_eq!(asked.text(), request(&own.to_string(), "tools/list", r#"{"x":1.0,"cursor":"two"}"#));
        legacy.say(r#"{"jsonrpc":"2.0","id":8,"result":{}}"#).await;
        assert_eq!(legacy.heard().await, r#"{"jsonrpc":"2.0","id":8,"result":{}}"#);
        // Of the sidecar's own request the client hears nothing, be its answer a page or an error.
        let (answer, filled) = if round == 0 {
            (page(&own, &["wipe", "pay"], None), page(&json!(7.0), &["pay"], None))
        } else {
            (format!(r#"{{"id":{own},"error":{{"code":1,"message":"no"}}}}"#), page(&json!(7), &[], Some("two")))
        };
        legacy.say(&answer).await;
        assert_eq!(legacy.heard().await, filled.replace("public", "private"));
    }
}

#[tokio::test]
async fn a_page_of_http_and_sse_is_the_one_so_far_where_the_next_is_not_to_be_had() {
    let mut legacy = Legacy::start(404).await;
    legacy.post(&request("\"a\"", "tools/list", "{}")).await;
    legacy.say(&page(&json!("a"), &["wipe"], Some("two"))).await;
    assert_eq!(legacy.heard().await, page(&json!("a"), &[], Some("two")).replace("public", "private"));
    // A list that nobody is known to have asked for is filtered alone.
    legacy.say(&page(&json!("a"), &["wipe"], Some("two"))).await;
    assert_eq!(legacy.heard().await, page(&json!("a"), &[], Some("two")).replace("public", "private"));
    assert_eq!(legacy.upstream.seen().iter().filter(|seen| seen.method == "POST").count(), 2);
}

#[tokio::test]
async fn an_answer_that_comes_too_late_reaches_no_client() {
    let (upstream, mut opened) = Upstream::legacy().await;
    let hurried = |config: &mut toolweir_sidecar::run::RunConfig| config.limits.first_byte = Duration::from_millis(300);
    let sidecar = Sidecar::with(&policy(&upstream.url(), TOOLS), hurried).await;
    let (mut wire, _, _) = Wire::open(sidecar.address, &Ask::get()).await;
    let feed = opened.recv().await.unwrap();
    feed.send("event: endpoint\ndata: /m\n\n").await;
    let told = wire.text_up_to("\n\n").await;
    let path = told.strip_prefix("event: endpoint\ndata: ").unwrap().trim();
    sidecar.ask(&lists().to(path)).await;
    feed.send(&format!("data: {}\n\n", page(&json!(7.0), &["wipe"], Some("two")))).await;
    let so_far = page(&json!(7.0), &[], Some("two")).replace("public", "private");
    assert_eq!(wire.text_up_to("\n\n").await, format!("data: {so_far}\n\n"));
    let own = upstream.seen().last().unwrap().json()["id"].clone();
    for late in [page(&own, &["pay"], None), "{}".to_owned()] {
        feed.send(&format!("data: {late}\n\n")).await;
    }
    assert_eq!(wire.text_up_to("\n\n").await, "data: {}\n\n");
}

#[tokio::test]
async fn an_empty_page_of_any_list_is_filled() {
    for (method, key, member) in LISTS {
        let [pay, wipe] = usable(key);
        let page = move |id: &Value, name: &str, next: Option<&str>| {
            let next = next.map_or(String::new(), |next| format!(r#","nextCursor":"{next}""#));
            format!(r#"{{"id":{id},"result":{{"{key}":[{{"{member}":"{name}"}}]{next}}}}}"#)
        };
        let filled = page(&json!(7.0), pay, None);
        for kind in ["application/json", EVENTS] {
            let body = move |seen: &Seen| match seen.json()["params"]["cursor"].as_str() {
                None => page(&seen.json()["id"], wipe, Some("two")),
                Some("two") => page(&seen.json()["id"], wipe, Some("three")),
                _ => page(&seen.json()["id"], pay, None),
            };
            let event = move |body: String| if kind == EVENTS { format!("data: {body}\n\n") } else { body };
            let upstream = Upstream::start(move |seen| Reply::new(200, kind, event(body(seen)))).await;
            let sidecar = Sidecar::start(&policy_with(&upstream.url(), TOOLS, &SOME)).await;
            sidecar.governor.tasks().learn("bank", "pay", "pay");
            let answer = sidecar.ask(&Ask::post(request("7.0", method, "{}"))).await;
            assert_eq!((answer.status, answer.text()), (200, event(filled.clone())), "{method} {kind}");
            let seen = upstream.seen();
            let methods: Vec<String> = seen.iter().map(|seen| seen.json()["method"].as_str().unwrap().to_owned()).collect();
            assert_eq!(methods, [method; 3], "{kind}");
        }
        // Over HTTP+SSE.
        let (upstream, mut opened) = Upstream::legacy().await;
        let sidecar = Sidecar::start(&policy_with(&upstream.url(), TOOLS, &SOME)).await;
        sidecar.governor.tasks().learn("bank", "pay", "pay");
        let (mut stream, _, _) = Wire::open(sidecar.address, &Ask::get()).await;
        let feed = opened.recv().await.unwrap();
        feed.send("event: endpoint\ndata: /m\n\n").await;
        let told = stream.text_up_to("\n\n").await;
        let path = told.strip_prefix("event: endpoint\ndata: ").unwrap().trim();
        sidecar.ask(&Ask::post(request("7.0", method, "{}")).to(path)).await;
        feed.send(&format!("data: {}\n\n", page(&json!(7), wipe, Some("two")))).await;
        upstream.saw(3).await;
        let asked = upstream.seen().last().unwrap().json();
        assert_eq!((asked["method"].as_str(), asked["params"]["cursor"].as_str()), (Some(method), Some("two")));
        feed.send(&format!("data: {}\n\n", page(&asked["id"], pay, None))).await;
        assert_eq!(stream.text_up_to("\n\n").await, format!("data: {filled}\n\n"), "{method}");
    }
}

/// Of a stream that is resumed it is not known what was asked for.
#[tokio::test]
async fn an_empty_page_that_is_replayed_is_filtered_and_keeps_its_cursor() {
    let list = page(&json!(7.0), &["wipe"], Some("two"));
    let (upstream, sidecar) = before(move |_| Reply::new(200, EVENTS, format!("id: 4\ndata: {list}\n\n"))).await;
    let answer = sidecar.ask(&Ask::get().with("last-event-id", "3").with("mcp-session-id", "s")).await;
    let so_far = page(&json!(7.0), &[], Some("two")).replace("public", "private");
    assert_eq!(answer.text(), format!("id: 4\ndata: {so_far}\n\n"));
    assert_eq!(upstream.seen().len(), 1);
}
