//! A call whose decision depends on a definition that is not known waits until the sidecar has listed the server's tools by itself: with
//! the client's session, headers and credentials, over Streamable HTTP and HTTP+SSE.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::float_cmp)]

mod common;

use std::{sync::Arc, time::Duration};

use common::{
    call,
    client::{Ask, Wire},
    folder::Folder,
    logs,
    pins::{get_balance, page, pay, pay_in_other_words, pinned},
    policy,
    sidecar::Sidecar,
    until,
    upstream::{Feed, Reply, Seen, Upstream},
};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use toolweir_sidecar::{credentials::keys::KeyFolders, run::RunConfig};

const EVENTS: &str = "text/event-stream";

/// The answer to a tools/call, and to anything else `list`.
fn bank(seen: &Seen, list: impl FnOnce(&Value) -> Reply) -> Reply {
    let message = seen.json();
    if message["method"] == "tools/list" { list(&message) } else { Reply::json(common::result(&message["id"].to_string())) }
}

/// A server that lists these tools.
async fn listing(tools: Vec<Value>) -> Upstream {
    Upstream::start(move |seen| bank(seen, |message| Reply::json(page(&message["id"], &tools, None)))).await
}

fn lists(upstream: &Upstream) -> Vec<Seen> {
    upstream.seen().into_iter().filter(|seen| seen.method == "POST" && seen.json()["method"] == "tools/list").collect()
}

fn calls(upstream: &Upstream) -> usize {
    upstream.seen().iter().filter(|seen| seen.method == "POST" && seen.json()["method"] == "tools/call").count()
}

async fn counted(sidecar: &Sidecar, outcome: &str) -> f64 {
    sidecar.scrape().await.sum("toolweir_own_lists_total", &[("server", "bank"), ("outcome", outcome)])
}

fn call_pay() -> String {
    call("7", "pay", r#"{"amount":1.0}"#)
}

#[tokio::test]
async fn a_pinned_tool_that_is_called_first_passes_where_its_server_lists_it_so() {
    for kind in ["application/json", EVENTS] {
        let upstream = Upstream::start(move |seen| {
            bank(seen, |message| {
                let page = match message["params"]["cursor"].as_str() {
                    None => page(&message["id"], &[get_balance()], Some("a\"b")),
                    Some(_) => page(&message["id"], &[pay()], None),
                };
                match kind {
                    // What else the server says there is not the page.
                    EVENTS => Reply::new(
                        200,
                        EVENTS,
                        format!(": x\n\nevent: message\ndata: {{\"method\":\"notifications/message\"}}\n\ndata: {page}\n\n"),
                    ),
                    kind => Reply::new(200, kind, page),
                }
            })
        })
        .await;
        let sidecar = Sidecar::start(&pinned(&upstream.url(), &[pay(), get_balance()])).await;
        for _ in 0..2 {
            assert_eq!(sidecar.reason(&call_pay()).await, "none", "{kind}");
        }
        assert_eq!(sidecar.reason(&call("8", "get_balance", "{}")).await, "none");
        let seen = upstream.seen();
        assert_eq!((seen.len(), lists(&upstream).len()), (5, 2), "{kind}");
        assert_eq!(seen[2].text(), call_pay());
        assert_eq!((counted(&sidecar, "complete").await, counted(&sidecar, "failed").await), (1.0, 0.0));
        // No client has asked for a list, and of none anything was hidden.
        assert_eq!(sidecar.scrape().await.sum("toolweir_requests_total", &[("method", "tools/list")]), 0.0);
        assert_eq!(sidecar.scrape().await.sum("toolweir_tools_hidden_total", &[]), 0.0);
    }
}

#[tokio::test]
async fn the_list_is_asked_for_as_the_client_would_and_has_nothing_of_the_call() {
    let upstream = listing(vec![pay()]).await;
    let sidecar = Sidecar::start(&pinned(&upstream.url(), &[pay()])).await;
    let meta = r#""io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"a","version":"1"}"#;
    let params = format!(r#"{{"name":"pay","arguments":{{"secret":1}},"_meta":{{"progressToken":"p",{meta},"x":1}}}}"#);
    let headers = [
        ("authorization", "Bearer t"),
        ("mcp-session-id", "s-1"),
        ("mcp-protocol-version", "2026-07-28"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("x-tenant", "blue"),
    ];
    let of_the_call = [("mcp-method", "tools/call"), ("mcp-name", "pay"), ("mcp-param-region", "eu")];
    let ask = Ask::post(common::request("7", "tools/call", &params));
    let ask = headers.into_iter().chain(of_the_call).fold(ask, |ask, (name, value)| ask.with(name, value));
    assert_eq!(sidecar.ask(&ask).await.json()["result"]["isError"], false);
    let seen = upstream.seen();
    assert_eq!(seen.len(), 2);
    let id = seen[0].json()["id"].as_str().unwrap().to_owned();
    assert_eq!(seen[0].text(), common::request(&format!("\"{id}\""), "tools/list", &format!(r#"{{"_meta":{{{meta}}}}}"#)));
    for (name, value) in headers {
        assert_eq!((seen[0].header(name), seen[1].header(name)), (value, value), "{name}");
    }
    assert_eq!(seen[0].header("mcp-method"), "tools/list");
    for (name, value) in of_the_call {
        assert_eq!(seen[1].header(name), value);
        assert!(name == "mcp-method" || !seen[0].headers.contains_key(name), "{name}");
    }
    // In the legacy era there is nothing of it but the headers.
    let sidecar = Sidecar::start(&pinned(&upstream.url(), &[pay()])).await;
    assert_eq!(sidecar.reason(&call_pay()).await, "none");
    let list = &lists(&upstream)[1];
    assert_eq!(list.json(), json!({"jsonrpc": "2.0", "id": list.json()["id"], "method": "tools/list"}));
    assert!(!list.headers.contains_key("mcp-method"));
}

#[tokio::test]
async fn a_tool_that_is_listed_otherwise_is_denied_in_words_that_name_the_part() {
    let upstream = listing(vec![pay_in_other_words()]).await;
    let sidecar = Sidecar::start(&pinned(&upstream.url(), &[pay()])).await;
    let answer = sidecar.post(&call_pay()).await;
    assert_eq!(common::denial(&answer)["reason"], "pin_drift", "{answer}");
    assert!(answer["result"]["content"][0]["text"].as_str().unwrap().contains("description"), "{answer}");
    assert_eq!((calls(&upstream), lists(&upstream).len()), (0, 1));
    assert_eq!(sidecar.audit(1).await[0]["reason"], "pin_drift");
}

#[tokio::test]
async fn a_call_by_class_waits_for_the_list_too() {
    let upstream = listing(vec![pay(), get_balance()]).await;
    let sidecar = Sidecar::start(&policy(&upstream.url(), "[{class: Read}]")).await;
    assert_eq!(sidecar.reason(&call("1", "get_balance", "{}")).await, "none");
    assert_ne!(sidecar.reason(&call("2", "pay", "{}")).await, "none");
    assert_eq!(lists(&upstream).len(), 1);
}

#[tokio::test]
async fn a_tool_that_no_list_shows_is_denied_as_unverified() {
    type Wrong = fn(&Value) -> Reply;
    let rows: [(&str, &str, Wrong); 11] = [
        ("HTTP 500", "failed", |_| Reply::new(500, "text/plain", "no")),
        ("HTTP 404 with a list", "failed", |message| Reply::new(404, "application/json", page(&message["id"], &[pay()], None))),
        ("an error", "failed", |message| {
            Reply::json(
                json!({"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32603, "message": "SECRET"}}).to_string(),
            )
        }),
        ("garbage", "failed", |_| Reply::json("SECRET{")),
        ("another id", "failed", |_| Reply::json(page(&json!(7), &[get_balance()], None))),
        ("another type", "failed", |message| Reply::new(200, "text/html", page(&message["id"], &[get_balance()], None))),
        ("a stream without it", "failed", |_| Reply::new(200, EVENTS, "data: {}\n\n")),
        ("too large", "failed", |message| {
            let mut other = get_balance();
            other["description"] = "SECRET".repeat(20_000).into();
            Reply::json(page(&message["id"], &[other], None))
        }),
        ("endless pages", "failed", |message| {
            let number = message["params"]["cursor"].as_str().map_or(1, |cursor| cursor.parse().unwrap());
            Reply::json(page(&message["id"], &[get_balance()], Some(&(number + 1).to_string())))
        }),
        ("nothing in time", "timeout", |_| Reply::hang(oneshot::channel().0)),
        ("a list without it", "complete", |message| Reply::json(page(&message["id"], &[get_balance()], None))),
    ];
    for (name, outcome, wrong) in rows {
        let upstream = Upstream::start(move |seen| bank(seen, wrong)).await;
        let hurried = |config: &mut RunConfig| {
            config.limits.own_list = Duration::from_millis(if outcome == "timeout" { 300 } else { 10_000 });
            config.limits.body = 64 * 1024;
        };
        let sidecar = Sidecar::with(&pinned(&upstream.url(), &[pay()]), hurried).await;
        assert_eq!(sidecar.reason(&call_pay()).await, "pin_unverified", "{name}");
        assert_eq!(calls(&upstream), 0, "{name}");
        assert_eq!(lists(&upstream).len(), if name == "endless pages" { 20 } else { 1 }, "{name}");
        assert_eq!(counted(&sidecar, outcome).await, 1.0, "{name}");
        assert_eq!(sidecar.scrape().await.sum("toolweir_own_lists_total", &[]), 1.0, "{name}");
    }
    let log = logs::log().text();
    assert!(log.contains("could not list the server's tools by itself") && !log.contains("SECRET"), "{log}");
}

#[tokio::test]
async fn of_fifty_first_calls_one_lists() {
    let (listed, mut waits) = mpsc::unbounded_channel();
    let upstream = Upstream::start(move |seen| {
        bank(seen, |message| {
            let (signal, wait) = oneshot::channel();
            listed.send(signal).unwrap();
            Reply::json(page(&message["id"], &[pay()], None)).after(wait)
        })
    })
    .await;
    let sidecar = Arc::new(Sidecar::start(&pinned(&upstream.url(), &[pay()])).await);
    let asked: Vec<_> = (0..50)
        .map(|id| {
            let sidecar = Arc::clone(&sidecar);
            tokio::spawn(async move { sidecar.reason(&call(&id.to_string(), "pay", "{}")).await })
        })
        .collect();
    let signal = waits.recv().await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    signal.send(()).unwrap();
    for reason in join_all(asked).await {
        assert_eq!(reason.unwrap(), "none");
    }
    assert_eq!((lists(&upstream).len(), calls(&upstream)), (1, 50));
}

#[tokio::test]
async fn calls_of_a_tool_that_is_not_there_make_one_list_until_the_server_says_that_it_changed() {
    let upstream = listing(vec![pay()]).await;
    let sidecar = Sidecar::start(&pinned(&upstream.url(), &[pay()])).await;
    for id in 0..100 {
        let name = format!("made_up_{id}");
        assert_ne!(sidecar.reason(&call("7", &name, "{}")).await, "none");
    }
    assert_eq!(sidecar.reason(&call_pay()).await, "none");
    assert_eq!(lists(&upstream).len(), 1);
    sidecar.governor.list_changed("bank");
    for _ in 0..3 {
        assert_ne!(sidecar.reason(&call("7", "made_up", "{}")).await, "none");
    }
    assert_eq!(sidecar.reason(&call_pay()).await, "none");
    assert_eq!(lists(&upstream).len(), 2);
}

#[tokio::test]
async fn a_client_that_hangs_up_leaves_its_turn_to_the_next() {
    let (given_up, mut gone) = mpsc::unbounded_channel();
    let upstream = Upstream::start(move |seen| {
        bank(seen, |message| {
            if message.get("id").is_some() && seen.header("x-first") == "yes" {
                let (sender, receiver) = oneshot::channel();
                given_up.send(receiver).unwrap();
                return Reply::hang(sender);
            }
            Reply::json(page(&message["id"], &[pay()], None))
        })
    })
    .await;
    let sidecar = Arc::new(Sidecar::start(&pinned(&upstream.url(), &[pay()])).await);
    let mut wire = Wire::connect(sidecar.address).await;
    wire.write(&Ask::post(call_pay()).with("x-first", "yes").bytes("localhost")).await;
    let hung = gone.recv().await.unwrap();
    let next = Arc::clone(&sidecar);
    let next = tokio::spawn(async move { next.reason(&call_pay()).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(lists(&upstream).len(), 1, "one at a time");
    drop(wire);
    assert_eq!(next.await.unwrap(), "none");
    assert!(common::within("the end of the list", hung).await.is_err());
    assert_eq!((counted(&sidecar, "failed").await, counted(&sidecar, "complete").await), (1.0, 1.0));
    until("the bytes", async || sidecar.scrape().await.sum("toolweir_held_bytes", &[]) == 0.0).await;
}

#[tokio::test]
async fn the_credential_of_the_server_is_shown_and_renewed_once_it_is_refused() {
    let folder = Folder::new();
    folder.write("token", "old");
    let path = folder.path().to_owned();
    let upstream = Upstream::start(move |seen| {
        if seen.header("authorization") == "Bearer new" {
            return bank(seen, |message| Reply::json(page(&message["id"], &[pay()], None)));
        }
        std::fs::write(path.join("token"), "new").unwrap();
        Reply::status(401)
    })
    .await;
    let text = pinned(&upstream.url(), &[pay()]).replace("    pins:", "    credential: {bearer: {secretKey: token}}\n    pins:");
    let keys = KeyFolders { keys: Some(folder.path().to_owned()), tokens: None, in_pod: false };
    let sidecar = Sidecar::with(&text, |config| config.credentials = keys).await;
    until("the state of the credential", async || !sidecar.governor.credential_report().credentials.is_empty()).await;
    let answer = sidecar.ask(&Ask::post(call_pay()).with("authorization", "Bearer the-agent's")).await;
    assert_eq!(answer.json()["result"]["isError"], false, "{}", answer.text());
    let shown: Vec<(String, String)> = upstream
        .seen()
        .iter()
        .map(|seen| (seen.json()["method"].as_str().unwrap().to_owned(), seen.header("authorization").to_owned()))
        .collect();
    let shown: Vec<(&str, &str)> = shown.iter().map(|(method, shown)| (method.as_str(), shown.as_str())).collect();
    assert_eq!(shown, [("tools/list", "Bearer old"), ("tools/list", "Bearer new"), ("tools/call", "Bearer new")]);
}

/// A server and a client of HTTP+SSE, with a stream between them.
struct Legacy {
    upstream: Upstream,
    sidecar: Arc<Sidecar>,
    wire: Wire,
    feed: Feed,
    path: String,
}

impl Legacy {
    async fn start(wait: Duration) -> Self {
        let (upstream, mut opened) = Upstream::legacy().await;
        let sidecar = Sidecar::with(&pinned(&upstream.url(), &[pay()]), |config| config.limits.own_list = wait).await;
        let (mut wire, _, _) = Wire::open(sidecar.address, &Ask::get()).await;
        let feed = opened.recv().await.unwrap();
        feed.send("event: endpoint\ndata: /m\n\n").await;
        let told = wire.text_up_to("\n\n").await;
        let path = told.strip_prefix("event: endpoint\ndata: ").unwrap().trim().to_owned();
        Self { upstream, sidecar: Arc::new(sidecar), wire, feed, path }
    }

    /// Posts a message, without waiting until it is taken.
    fn post(&self, body: String) -> tokio::task::JoinHandle<u16> {
        let (sidecar, path) = (Arc::clone(&self.sidecar), self.path.clone());
        tokio::spawn(async move { sidecar.ask(&Ask::post(body).to(&path).with("authorization", "Bearer t")).await.status })
    }

    /// The POST of this number, once it has come.
    async fn posted(&self, number: usize) -> Seen {
        let posts = || self.upstream.seen().into_iter().filter(|seen| seen.method == "POST").collect::<Vec<_>>();
        until("the POST", async || posts().len() >= number).await;
        posts()[number - 1].clone()
    }

    async fn say(&self, message: &str) {
        self.feed.send(&format!("data: {message}\n\n")).await;
    }

    async fn heard(&mut self) -> Value {
        let event = self.wire.text_up_to("\n\n").await;
        let data = event.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
        serde_json::from_str(data).unwrap()
    }
}

#[tokio::test]
async fn over_http_and_sse_the_list_comes_on_the_stream_and_the_client_does_not_get_it() {
    for (tool, reason) in [(pay(), None), (pay_in_other_words(), Some("pin_drift")), (get_balance(), Some("pin_unverified"))] {
        let mut legacy = Legacy::start(Duration::from_secs(10)).await;
        let posted = legacy.post(call_pay());
        let list = legacy.posted(1).await;
        assert_eq!((list.path.as_str(), list.header("authorization")), ("/m", "Bearer t"));
        assert_eq!(list.json()["method"], "tools/list");
        // What else comes is the client's.
        legacy.say(r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#).await;
        assert_eq!(legacy.heard().await["method"], "ping");
        assert_eq!(legacy.post(r#"{"jsonrpc":"2.0","id":1,"result":{"roots":[]}}"#.to_owned()).await.unwrap(), 202);
        legacy.posted(2).await;
        legacy.say(&page(&list.json()["id"], &[tool], None)).await;
        assert_eq!(posted.await.unwrap(), 202);
        match reason {
            None => {
                assert_eq!(legacy.posted(3).await.text(), call_pay());
                legacy.say(&common::result("7")).await;
                assert_eq!(legacy.heard().await["result"]["isError"], false);
            }
            Some(reason) => assert_eq!(common::denial(&legacy.heard().await)["reason"], reason),
        }
    }
}

#[tokio::test]
async fn a_call_that_its_client_cancels_meanwhile_is_not_sent() {
    let cancels = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":7}}"#;
    let legacy = Legacy::start(Duration::from_secs(10)).await;
    let posted = legacy.post(call_pay());
    let list = legacy.posted(1).await;
    assert_eq!(legacy.post(cancels.to_owned()).await.unwrap(), 202);
    legacy.say(&page(&list.json()["id"], &[pay()], None)).await;
    assert_eq!(posted.await.unwrap(), 202);
    assert_eq!((calls(&legacy.upstream), legacy.sidecar.counted("cancelled").await), (0, 1.0));

    let (listed, mut waits) = mpsc::unbounded_channel();
    let upstream = Upstream::start(move |seen| {
        if seen.json().get("id").is_none() {
            return Reply::status(202);
        }
        bank(seen, |message| {
            let (signal, wait) = oneshot::channel();
            listed.send(signal).unwrap();
            Reply::json(page(&message["id"], &[pay()], None)).after(wait)
        })
    })
    .await;
    let sidecar = Arc::new(Sidecar::start(&pinned(&upstream.url(), &[pay()])).await);
    let asks = Arc::clone(&sidecar);
    let asked = tokio::spawn(async move { asks.ask(&Ask::post(call_pay()).with("mcp-session-id", "s")).await.status });
    let signal = waits.recv().await.unwrap();
    assert_eq!(sidecar.ask(&Ask::post(cancels).with("mcp-session-id", "s")).await.status, 202);
    signal.send(()).unwrap();
    assert_eq!((asked.await.unwrap(), calls(&upstream)), (202, 0));
}

#[tokio::test]
async fn over_http_and_sse_a_list_that_does_not_come_is_not_waited_for_longer_than_the_stream() {
    let mut legacy = Legacy::start(Duration::from_millis(300)).await;
    let posted = legacy.post(call_pay());
    let list = legacy.posted(1).await;
    assert_eq!(posted.await.unwrap(), 202);
    assert_eq!(common::denial(&legacy.heard().await)["reason"], "pin_unverified");
    // Late, it is no answer for the client.
    legacy.say(&json!({"jsonrpc": "2.0", "id": list.json()["id"], "error": {"code": 1, "message": "no"}}).to_string()).await;
    legacy.say(r#"{"jsonrpc":"2.0","method":"notifications/progress"}"#).await;
    assert_eq!(legacy.heard().await["method"], "notifications/progress");
    assert_eq!(counted(&legacy.sidecar, "timeout").await, 1.0);
    // A stream that ends ends the wait.
    let legacy = Legacy::start(Duration::from_secs(10)).await;
    let posted = legacy.post(call_pay());
    legacy.posted(1).await;
    let Legacy { sidecar, wire, feed, .. } = legacy;
    drop((wire, feed));
    until("the end of the list", async || counted(&sidecar, "failed").await == 1.0).await;
    assert_ne!(posted.await.unwrap(), 500);
}
