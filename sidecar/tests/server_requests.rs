//! What servers ask of clients over HTTP: what policies allow passes byte for byte, and what they deny reaches no client, on every way
//! from a server to a client. The server is told, in the client's name.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::float_cmp)]

mod common;

use std::time::{Duration, Instant};

use common::{
    call,
    client::{Ask, Http, Http2, Wire},
    policy, request, result,
    sidecar::Sidecar,
    until,
    upstream::{Feed, Reply, Seen, Upstream},
    within,
};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::sync::mpsc;
use toolweir_approvals::Decided;
use toolweir_crds::stream::SharedStore;

/// The ways on which a server's messages come to a client in events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The answer to a POST.
    Post,
    /// The stream of a GET.
    Get,
    /// The stream of HTTP+SSE.
    Legacy,
}

const WAYS: [Way; 3] = [Way::Post, Way::Get, Way::Legacy];
const ENDPOINT: &str = "event: endpoint\ndata: /messages?s=1\n\n";
/// What passes whatever policies say.
const MARK: &str =
    "event: message\nid: mark\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\"params\":{}}\n\n";

/// A sidecar before a server that answers calls and a GET with events from a feed, a call with the header `x-body` with that as JSON,
/// and takes everything else.
struct Bank {
    upstream: Upstream,
    opened: mpsc::UnboundedReceiver<Feed>,
    sidecar: Sidecar,
}

/// The end of a stream at the client.
struct Stream {
    wire: Wire,
    feed: Feed,
    /// Where the client posts its messages.
    messages: String,
}

impl Bank {
    /// With these policies on what is no tool.
    async fn start(rules: &str) -> Self {
        Self::with(&format!("[{{name: \"*\", action: Allow}}]\n    {rules}"), |_| {}).await
    }

    async fn with(rules: &str, change: impl FnOnce(&mut toolweir_sidecar::run::RunConfig)) -> Self {
        let (feeds, opened) = mpsc::unbounded_channel();
        let upstream = Upstream::start(move |seen| {
            if !seen.header("x-body").is_empty() {
                return Reply::json(seen.header("x-body").to_owned());
            }
            if seen.method == "POST" && (seen.json().get("method").is_none() || seen.path.starts_with("/messages")) {
                return Reply::status(202);
            }
            let (reply, feed) = Reply::events();
            feeds.send(feed).unwrap();
            reply
        })
        .await;
        let sidecar = Sidecar::with(&policy(&upstream.url(), rules), change).await;
        Self { upstream, opened, sidecar }
    }

    async fn open(&mut self, way: Way) -> Stream {
        let ask = match way {
            Way::Post => Ask::post(call("1", "pay", "{}")),
            Way::Get | Way::Legacy => Ask::get(),
        };
        let ask = ask.with("mcp-session-id", "s").with("mcp-protocol-version", "2025-11-25").with("authorization", "Bearer own");
        let (mut wire, status, _) = Wire::open(self.sidecar.address, &ask).await;
        assert_eq!(status, 200);
        let feed = within("the stream", self.opened.recv()).await.unwrap();
        let mut messages = "/bank".to_owned();
        if way == Way::Legacy {
            feed.send(ENDPOINT).await;
            let told = wire.text_up_to("\n\n").await;
            told.lines().find_map(|line| line.strip_prefix("data: ")).unwrap().clone_into(&mut messages);
        }
        Stream { wire, feed, messages }
    }

    /// The answers that the server got, once there are so many.
    async fn answers(&self, count: usize) -> Vec<Seen> {
        let found = || -> Vec<Seen> {
            let is_answer = |seen: &Seen| seen.method == "POST" && seen.json().get("method").is_none();
            self.upstream.seen().into_iter().filter(is_answer).collect()
        };
        until("the server's answers", async || found().len() >= count).await;
        assert_eq!(found().len(), count);
        found()
    }

    /// A call whose answer is this JSON.
    async fn json(&self, body: &str) -> (u16, String) {
        let answer = self.sidecar.ask(&Ask::post(call("1", "pay", "{}")).with("x-body", body)).await;
        (answer.status, answer.text())
    }

    async fn decisions(&self, labels: &[(&str, &str)]) -> f64 {
        self.sidecar.scrape().await.sum("toolweir_operations_total", labels)
    }
}

impl Stream {
    /// Sends events, and gives what comes of them.
    async fn passed(&mut self, events: &str) -> String {
        self.feed.send(events).await;
        self.feed.send(MARK).await;
        let come = self.wire.text_up_to(MARK).await;
        come.strip_suffix(MARK).unwrap().to_owned()
    }
}

fn event(id: &str, data: &str) -> String {
    format!("event: message\nid: {id}\ndata: {data}\n\n")
}

fn sampling(id: &str) -> String {
    request(id, "sampling/createMessage", r#"{"maxTokens":100,"messages":[]}"#)
}

fn reason(answer: &Seen) -> Value {
    common::denial(&answer.json())["reason"].clone()
}

const ALL: &str = "defaultActions: {requests: Allow, resources: Allow, prompts: Allow, other: Allow}\n    resources: [{uri: \"file:///b/*\", action: Deny}]";
const NONE: &str = "defaultActions: {requests: Deny, other: Deny}";

/// Messages that ask for something, each with what is left of it where that is denied; nothing where it does not pass at all.
fn messages() -> Vec<(String, Option<String>)> {
    let error = |data: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"error":{{"code":-32042,"message":"m","data":{data}}}}}"#);
    vec![
        (sampling("7"), None),
        (request("\"x\"", "elicitation/create", r#"{"message":"m"}"#), None),
        (request("8", "roots/list", "{}"), None),
        (request("8", "made/up", "{}"), None),
        (r#"{"jsonrpc":"2.0","method":"notifications/made-up"}"#.to_owned(), None),
        (format!("[{},{}]", sampling("9"), result("1")), None),
        (r#"{"jsonrpc":"2.0","id":1,"result":{"task":{"taskId":"t"}}}"#.to_owned(), Some(String::new())),
        (
            r#"{"jsonrpc":"2.0","id":1,"result":{"resultType":"input_required","inputRequests":{"a":{"method":"roots/list"}}}}"#
                .to_owned(),
            Some("denied".to_owned()),
        ),
        (error(r#"{"elicitations":[{"mode":"url","url":"http://x"}]}"#), Some("denied".to_owned())),
        (error(r#"{"method":"GET","inputRequests":[]}"#), Some(String::new())),
    ]
}

#[tokio::test]
async fn what_is_allowed_passes_byte_for_byte_on_every_way() {
    let mut bank = Bank::start(ALL).await;
    for way in WAYS {
        for (message, _) in messages() {
            let mut stream = bank.open(way).await;
            let event = format!("retry: 5\nevent:message\r\nid:7\ndata: {message}\n\n: c\n\n");
            assert_eq!(stream.passed(&event).await, event, "{way:?} {message}");
        }
    }
    for (message, _) in messages() {
        assert_eq!(bank.json(&message).await, (200, message));
    }
    assert_eq!(bank.answers(0).await.len(), 0);
    assert!(
        bank.decisions(&[("operation", "sampling/createMessage"), ("name", "sampling"), ("decision", "allowed")]).await >= 4.0
    );
}

#[tokio::test]
async fn what_is_denied_never_reaches_the_client_and_the_server_is_told_in_its_name() {
    for way in WAYS {
        let mut bank = Bank::start(NONE).await;
        let mut stream = bank.open(way).await;
        let mut told = 0_usize;
        for (message, left) in messages() {
            let come = stream.passed(&format!("retry: 5\nid: 7\ndata: {message}\n\n")).await;
            match left.as_deref() {
                None => assert_eq!(come, "retry: 5\nid: 7\n\n", "{way:?} {message}"),
                Some("") => assert_eq!(come, format!("retry: 5\nid: 7\ndata: {message}\n\n")),
                Some(_) => {
                    let data: Value = serde_json::from_str(come.split_once("data: ").unwrap().1.trim()).unwrap();
                    assert_eq!(data["id"], 1, "{come}");
                    assert_eq!(common::denial(&data)["reason"], "not_listed");
                }
            }
            told += usize::from(left.is_none() && !message.contains("notifications/"));
        }
        for answer in bank.answers(told).await {
            assert_eq!(
                (answer.header("mcp-session-id"), answer.header("mcp-protocol-version"), answer.header("authorization")),
                ("s", "2025-11-25", "Bearer own")
            );
            assert_eq!((answer.header("content-type"), answer.header("last-event-id")), ("application/json", ""));
            assert_eq!(answer.path, if way == Way::Legacy { "/messages?s=1" } else { "/mcp" });
            assert_eq!((&answer.json()["error"]["code"], reason(&answer)), (&403.into(), "not_listed".into()));
        }
        let ids: Vec<Value> = bank.answers(told).await.iter().map(|answer| answer.json()["id"].clone()).collect();
        assert!(ids.contains(&7.into()) && ids.contains(&"x".into()), "{ids:?}");
        until("the count", async || {
            bank.sidecar.scrape().await.sum("toolweir_server_answers_total", &[("outcome", "ok")])
                == f64::from(u32::try_from(told).unwrap())
        })
        .await;
    }
}

#[tokio::test]
async fn a_stream_on_which_a_server_floods_is_read_slowly_and_then_as_before() {
    let mut bank = Bank::start(NONE).await;
    let mut stream = bank.open(Way::Get).await;
    // More than may be denied before it floods.
    assert!(!stream.passed(&format!("data: {}\n\n", sampling("7")).repeat(200)).await.contains("sampling"));
    let large = request("7", "sampling/createMessage", &format!(r#"{{"x":"{}"}}"#, "x".repeat(2000)));
    let batch = format!("[{}]", vec![sampling("7"); 60].join(","));
    for (ask, times) in [(sampling("7"), 200), (large, 20), (batch, 4)] {
        let events = format!("data: {ask}\n\n").repeat(times);
        let began = Instant::now();
        assert!(!stream.passed(&events).await.contains("sampling"));
        let (took, least) = (began.elapsed(), Duration::from_millis(events.len() as u64 / 512));
        assert!(took >= least, "{} bytes in {took:?}", events.len());
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let told = MARK.replace("mark", "told").repeat(5000);
    let began = Instant::now();
    assert_eq!(stream.passed(&told).await, told);
    let (took, slow) = (began.elapsed(), Duration::from_millis(told.len() as u64 / 512));
    assert!(took < slow, "{} bytes in {took:?}", told.len());
}

#[tokio::test]
async fn over_http2_it_is_the_same() {
    let mut bank = Bank::start(NONE).await;
    let mut client = Http2::connect(bank.sidecar.address).await;
    let mut body = client.head(&Ask::get().with("mcp-session-id", "s")).await.into_body();
    let feed = within("the stream", bank.opened.recv()).await.unwrap();
    feed.send(&event("1", &sampling("7"))).await;
    feed.send(MARK).await;
    let mut come = String::new();
    while !come.ends_with(MARK) {
        let frame = within("an event", body.frame()).await.unwrap().unwrap();
        come.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
    }
    assert_eq!(come, format!("id: 1\n\n{MARK}"));
    assert_eq!(bank.answers(1).await[0].header("mcp-session-id"), "s");
    let answer = Ask::post(call("1", "pay", "{}")).with("x-body", &sampling("7")).over(Http::Two, bank.sidecar.address).await;
    assert_eq!(answer.json()["id"], 1);
    assert!(!answer.text().contains("sampling"));
}

#[tokio::test]
async fn what_a_server_asks_in_place_of_a_json_answer_does_not_pass_either() {
    let bank = Bank::start(NONE).await;
    let (mut told, mut texts) = (0, Vec::new());
    for (message, left) in messages() {
        let (status, text) = bank.json(&message).await;
        assert_eq!(status, 200, "{text}");
        match left.as_deref() {
            Some("") => assert_eq!(text, message),
            Some(_) => {
                let answer: Value = serde_json::from_str(&text).unwrap();
                assert_eq!((&answer["id"], &common::denial(&answer)["reason"]), (&1.into(), &"not_listed".into()));
            }
            None => {
                let answer: Value = serde_json::from_str(&text).unwrap();
                let failed = &answer["result"]["_meta"]["toolweir.dev/denial"]["reason"];
                assert_eq!((&answer["id"], failed), (&1.into(), &"upstream_invalid".into()), "{text}");
                told += usize::from(!message.contains("notifications/"));
                texts.push(text);
            }
        }
    }
    assert!(texts.iter().all(|text| !text.contains("sampling") && !text.contains("roots/list")));
    assert_eq!(bank.answers(told).await.len(), told);
    // An error keeps its status, without what it says.
    let upstream = Upstream::start(|seen| {
        if seen.json().get("method").is_none() { Reply::status(202) } else { Reply::new(404, "application/json", sampling("3")) }
    })
    .await;
    let sidecar = Sidecar::start(&policy(&upstream.url(), &format!("[{{name: \"*\", action: Allow}}]\n    {NONE}"))).await;
    let answer = sidecar.ask(&Ask::post(call("1", "pay", "{}"))).await;
    assert_eq!((answer.status, answer.text().as_str()), (404, ""));
    upstream.saw(2).await;
}

#[tokio::test]
async fn a_stream_is_resumed_behind_what_was_dropped() {
    let mut bank = Bank::start(NONE).await;
    let mut stream = bank.open(Way::Get).await;
    assert_eq!(stream.passed(&event("41", &sampling("7"))).await, "id: 41\n\n");
    drop(stream);
    bank.answers(1).await;
    let (mut wire, ..) = Wire::open(bank.sidecar.address, &Ask::get().with("last-event-id", "41")).await;
    let feed = within("the stream", bank.opened.recv()).await.unwrap();
    assert_eq!(bank.upstream.seen().last().unwrap().header("last-event-id"), "41");
    // What is replayed is judged like any other.
    feed.send(&(event("42", &sampling("8")) + &event("43", &result("1")))).await;
    let last = event("43", &result("1"));
    assert_eq!(wire.text_up_to(&last).await, format!("id: 42\n\n{last}"));
    assert_eq!(bank.answers(2).await[1].header("last-event-id"), "");
}

#[tokio::test]
async fn what_a_server_asks_for_has_limits_conditions_and_places() {
    let rules = r#"requests: [{name: sampling, limits: [{max: 2, window: hour}], validations: [{expression: "args.maxTokens <= 100"}]}, {name: roots, maxConcurrent: 1}]"#;
    for way in WAYS {
        let mut bank = Bank::start(rules).await;
        let mut stream = bank.open(way).await;
        let greedy = request("1", "sampling/createMessage", r#"{"maxTokens":101}"#);
        assert_eq!(stream.passed(&event("1", &greedy)).await, "id: 1\n\n");
        assert_eq!(reason(&bank.answers(1).await[0]), "validation");
        for id in ["2", "3"] {
            let event = event(id, &sampling(id));
            assert_eq!(stream.passed(&event).await, event);
        }
        assert_eq!(stream.passed(&event("4", &sampling("4"))).await, "id: 4\n\n");
        let answer = bank.answers(2).await.pop().unwrap();
        assert_eq!((answer.json()["id"].clone(), reason(&answer)), (4.into(), "rate_limit".into()));
        // A place is held until the client answers, or the server cancels.
        let roots = |id: &str| event("9", &request(id, "roots/list", "{}"));
        assert_eq!(stream.passed(&roots("10")).await, roots("10"));
        assert_eq!(stream.passed(&roots("11")).await, "id: 9\n\n");
        assert_eq!(reason(&bank.answers(3).await[2]), "concurrency");
        let answer =
            Ask::post(r#"{"jsonrpc":"2.0","id":10,"result":{"roots":[]}}"#).with("mcp-session-id", "s").to(&stream.messages);
        assert_eq!(bank.sidecar.ask(&answer).await.status, 202);
        assert_eq!(stream.passed(&roots("12")).await, roots("12"));
        let cancelled = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":12}}"#;
        assert_eq!(stream.passed(&event("13", cancelled)).await, event("13", cancelled));
        assert_eq!(stream.passed(&roots("14")).await, roots("14"));
    }
}

#[tokio::test]
async fn a_request_that_a_person_must_approve_does_not_wait_and_passes_once_it_is_approved() {
    let rules = "requests: [{name: elicitation, approval: {message: M, show: [args.message]}}]";
    let mut bank = Bank::with(&format!("[{{name: \"*\", action: Allow}}]\n    {rules}"), |config| {
        "agents".clone_into(&mut config.options.namespace);
    })
    .await;
    let approvals = bank.sidecar.governor.approvals();
    approvals.ask_locally();
    let ask = |id: &str| request(id, "elicitation/create", r#"{"message":"m"}"#);
    let mut stream = bank.open(Way::Get).await;
    assert_eq!(stream.passed(&event("1", &ask("1"))).await, "id: 1\n\n");
    assert_eq!(reason(&bank.answers(1).await[0]), "approval_pending");
    let approvals = bank.sidecar.governor.approvals();
    let name = approvals.waiting()[0].name.to_string();
    let decided = Decided { approve: true, by: "ann".to_owned(), reason: None, until: None };
    approvals.decide(&name, &decided).await.unwrap();
    // The decision is awaited: its id comes at once, and the event behind it.
    stream.feed.send(&event("2", &ask("2"))).await;
    let alone = event("2", &ask("2")).replace("id: 2\n", "");
    assert_eq!(stream.wire.text_up_to(&alone).await, format!("id: 2\n\n{alone}"));
}

#[tokio::test]
async fn a_decision_that_waits_for_the_store_holds_up_nothing_else_and_the_end_waits_for_it() {
    let store = SharedStore {
        url: "redis://127.0.0.1:1".to_owned(),
        username: None,
        password: None,
        ca: None,
        prefix: "toolweir".to_owned(),
        leases: false,
        budget_milliseconds: 50,
    };
    for (failure, passes) in [("Allow", true), ("Deny", false)] {
        let rules =
            "[{name: \"*\", action: Allow}]\n    requests: [{name: sampling, limits: [{max: 9, window: hour, scope: Workload}]}]";
        let rules = format!("{rules}\n  onStoreFailure: {failure}");
        let mut bank = Bank::with(&rules, |config| {
            "agents".clone_into(&mut config.options.namespace);
            "Deployment/agent".clone_into(&mut config.options.workload);
            config.shared_store = Some((&store).try_into().unwrap());
        })
        .await;
        let mut stream = bank.open(Way::Post).await;
        stream.feed.send(&event("1", &sampling("1"))).await;
        drop(stream.feed);
        let alone = event("1", &sampling("1")).replace("id: 1\n", "");
        let come = String::from_utf8(stream.wire.rest().await.unwrap().to_vec()).unwrap();
        assert_eq!(come, format!("id: 1\n\n{}", if passes { &alone } else { "" }));
        assert_eq!(bank.answers(usize::from(!passes)).await.len(), usize::from(!passes));
        let (status, text) = bank.json(&sampling("1")).await;
        assert_eq!((status, text == sampling("1")), (200, passes), "{text}");
    }
}

#[tokio::test]
async fn a_message_that_two_clients_could_read_differently_passes_to_none() {
    let unclear = [
        r#"{"id":1,"method":"ping","method":"roots/list"}"#,
        r#"{"id":1,"method":"ping","METHOD":"roots/list"}"#,
        r#"{"id":1,"method":"roots/list""#,
        r#"{"id":1,"method":"roots/list","result":{}}"#,
        r#"[{"id":1,"method":"ping"},{"id":1,"method":7}]"#,
    ];
    for way in WAYS {
        let mut bank = Bank::start(ALL).await;
        let mut stream = bank.open(way).await;
        for text in unclear {
            let come = stream.passed(&event("5", text)).await;
            // On the stream of a call it may have been the answer: the call fails in its place.
            assert!(come.contains("id: 5\n") && come.contains("upstream_invalid") == (way == Way::Post), "{way:?} {come}");
            assert!(!come.contains("roots/list"), "{way:?} {come}");
            let (status, answer) = bank.json(text).await;
            assert!(status == 200 && answer.contains("upstream_invalid"), "{answer}");
        }
        let refused = bank.sidecar.scrape().await.sum("toolweir_server_messages_refused_total", &[("server", "bank")]);
        assert_eq!(refused, 2.0 * f64::from(u32::try_from(unclear.len()).unwrap()));
    }
}

#[tokio::test]
async fn a_line_that_is_data_to_some_clients_does_not_hide_a_request() {
    for line in ["id: {\"method\":\"x\"}", "event: \u{2028}data: {\"method\":\"x\"}", " data: {\"method\":\"x\",\"id\":1}"] {
        let mut bank = Bank::start(NONE).await;
        let mut stream = bank.open(Way::Post).await;
        stream.feed.send(&format!("{line}\ndata: {{}}\n\n")).await;
        assert!(stream.wire.rest().await.is_err(), "{line}");
    }
}

#[tokio::test]
async fn what_is_too_large_to_be_judged_ends_under_every_policy() {
    // Also where a server may ask for anything: a policy that comes into force meanwhile holds for an open stream.
    let free = "defaultActions: {requests: Allow, resources: Allow, other: Allow}";
    let padding = "x".repeat(20_000);
    let large = format!(r#"{{"jsonrpc":"2.0","pad":"{padding}","id":7,"method":"sampling/createMessage"}}"#);
    for rules in [NONE, ALL, free] {
        let mut bank =
            Bank::with(&format!("[{{name: \"*\", action: Allow}}]\n    {rules}"), |config| config.limits.body = 10_000).await;
        for way in WAYS {
            let mut stream = bank.open(way).await;
            let event = event("1", &large);
            stream.feed.send(&event).await;
            assert!(stream.wire.rest().await.is_err(), "{way:?}");
            // What asks for nothing passes whatever its size.
            let mut stream = bank.open(way).await;
            let plain = event.replace("method", "meth0d");
            assert_eq!(stream.passed(&plain).await, plain);
        }
    }
}

#[tokio::test]
async fn a_large_json_answer_streams_and_breaks_off_where_it_asks_for_something() {
    let (upstream, mut opened) = Upstream::streaming("application/json").await;
    let sidecar = Sidecar::start(&policy(&upstream.url(), &format!("[{{name: \"*\", action: Allow}}]\n    {NONE}"))).await;
    let padding = "x".repeat(100_000);
    // Behind what is held a key that only a tool's result has passes, and one of the message does not.
    for (end, passes) in [
        (r#"","structuredContent":{"method":"GET","a":{"inputRequests":{}}}}}"#, true),
        (r#""},"method":"roots/list"}"#, false),
        (r#"","inputRequests":{"a":{"method":"roots/list"}}}}"#, false),
    ] {
        let ask = Ask::post(call("1", "pay", "{}"));
        let (wire, feed) = tokio::join!(Wire::open(sidecar.address, &ask), async {
            let feed = within("the stream", opened.recv()).await.unwrap();
            feed.send(&format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"pad":"{padding}"#)).await;
            feed
        });
        let mut wire = wire.0;
        feed.send(end).await;
        drop(feed);
        let rest = wire.rest().await;
        assert_eq!(rest.is_ok(), passes, "{end}");
        assert!(rest.is_err() || rest.unwrap().ends_with(end.as_bytes()));
    }
    // Where what is held says that it asks, it is held to its end.
    for rules in [NONE, ALL] {
        let bank = Bank::start(rules).await;
        let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"roots/list","params":{{"x":"{}"}}}}"#, "x".repeat(15_000));
        let (_, text) = bank.json(&body).await;
        assert_eq!(text == body, rules == ALL);
    }
}

#[tokio::test]
async fn a_coded_answer_is_refused_unless_a_server_may_ask_for_anything() {
    let free = "defaultActions: {requests: Allow, resources: Allow, other: Allow}";
    for kind in ["application/json", "text/event-stream"] {
        let upstream = Upstream::start(move |_| Reply::new(200, kind, "coded").with("content-encoding", "gzip")).await;
        for (rules, passes) in [(NONE, false), (free, true)] {
            let sidecar =
                Sidecar::start(&policy(&upstream.url(), &format!("[{{name: \"*\", action: Allow}}]\n    {rules}"))).await;
            let answer = sidecar.ask(&Ask::post(call("1", "pay", "{}"))).await;
            assert_eq!(answer.text() == "coded", passes, "{}", answer.text());
        }
    }
}

#[tokio::test]
async fn a_task_of_a_call_that_was_let_through_may_be_asked_for() {
    let made = r#"{"jsonrpc":"2.0","id":1,"result":{"task":{"taskId":"t1","status":"working"}}}"#;
    for way in [Some(Way::Post), Some(Way::Legacy), None] {
        let mut bank = Bank::start(NONE).await;
        let get = Ask::post(request("5", "tasks/get", r#"{"taskId":"t1"}"#)).with("x-body", &result("5"));
        assert_eq!(bank.sidecar.ask(&get).await.json()["error"]["code"], 403);
        match way {
            None => assert_eq!(bank.json(made).await, (200, made.to_owned())),
            Some(way) => {
                let mut stream = bank.open(way).await;
                if way == Way::Legacy {
                    let sent = bank.sidecar.ask(&Ask::post(call("1", "pay", "{}")).to(&stream.messages)).await;
                    assert_eq!(sent.status, 202);
                }
                assert_eq!(stream.passed(&event("1", made)).await, event("1", made));
            }
        }
        assert_eq!(bank.sidecar.ask(&get).await.text(), result("5"), "{way:?}");
    }
}

#[tokio::test]
async fn a_notification_of_a_resource_that_may_not_be_read_is_dropped() {
    let mut bank = Bank::start("resources: [{uri: \"file:///a/*\"}]").await;
    let updated =
        |uri: &str| request("0", "notifications/resources/updated", &format!(r#"{{"uri":"{uri}"}}"#)).replace(r#""id":0,"#, "");
    for way in WAYS {
        let mut stream = bank.open(way).await;
        assert_eq!(stream.passed(&event("1", &updated("file:///a/x"))).await, event("1", &updated("file:///a/x")));
        assert_eq!(stream.passed(&event("2", &updated("file:///b/x"))).await, "id: 2\n\n");
    }
    assert_eq!(bank.answers(0).await.len(), 0);
}
