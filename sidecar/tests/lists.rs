//! Lists show an agent only what it may use, in every form that a list can come in, and nothing else changes.
//! mcp.md, "Lists, streams, tasks".
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::float_cmp)]

mod common;

use common::{
    FREE, LISTS, SOME, call,
    client::{Answer, Ask, Http, Wire},
    list, policy, policy_with, request,
    sidecar::Sidecar,
    upstream::{Feed, Reply, Upstream},
    usable,
};
use serde_json::json;
use tokio::sync::mpsc;
use toolweir_sidecar::run::RunConfig;

/// What the agent may call: `pay` and what begins with `get_`, but not `get_secret`.
const TOOLS: &str = "[{name: pay}, {name: \"get_*\"}, {name: get_secret, action: Deny}]";

fn lists() -> Ask {
    Ask::post(request("1", "tools/list", "{}"))
}

/// A sidecar before a server that answers everything with this.
async fn before(kind: &'static str, body: impl Into<bytes::Bytes>) -> (Upstream, Sidecar) {
    let body = body.into();
    let upstream = Upstream::start(move |_| Reply::new(200, kind, body.clone()).with("mcp-session-id", "s-1")).await;
    let sidecar = Sidecar::start(&policy(&upstream.url(), TOOLS)).await;
    (upstream, sidecar)
}

async fn listed(kind: &'static str, body: &str) -> Answer {
    let (_upstream, sidecar) = before(kind, body.to_owned()).await;
    let one = lists().over(Http::One, sidecar.address).await;
    let two = lists().over(Http::Two, sidecar.address).await;
    assert_eq!((one.status, &one.body), (two.status, &two.body));
    one
}

#[tokio::test]
async fn a_list_shows_what_may_be_called_and_keeps_every_other_byte() {
    let server = "{ \"jsonrpc\":\"2.0\",\"result\" : {\"tools\":[ {\"name\":\"pay\",\"x\":1.0, \"inputSchema\":{\"type\":\"object\"}} ,\
                  {\"name\":\"wipe\"}, {\"title\":\"\\u00e9\",\"name\":\"get_posts\"},{\"name\":\"get_secret\"} ] , \"nextCursor\":\"c\\/2\",\
                  \"_meta\":{\"a\":null},\"ttlMs\":5},\"id\":1.0 }\n";
    let agent = "{ \"jsonrpc\":\"2.0\",\"result\" : {\"tools\":[ {\"name\":\"pay\",\"x\":1.0, \"inputSchema\":{\"type\":\"object\"}} ,\
                 {\"title\":\"\\u00e9\",\"name\":\"get_posts\"} ] , \"nextCursor\":\"c\\/2\",\
                 \"_meta\":{\"a\":null},\"ttlMs\":5},\"id\":1.0 }\n";
    let (upstream, sidecar) = before("application/json; charset=utf-8", server).await;
    for http in Http::BOTH {
        let answer = lists().over(http, sidecar.address).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, agent), "{http:?}");
        assert_eq!(answer.header("content-type"), "application/json; charset=utf-8");
        assert_eq!((answer.header("mcp-session-id"), answer.header("content-length")), ("s-1", agent.len().to_string().as_str()));
    }
    assert_eq!(upstream.seen().len(), 2);
    assert_eq!(sidecar.scrape().await.sum("toolweir_tools_hidden_total", &[("server", "bank")]), 4.0);
}

#[tokio::test]
async fn a_list_of_which_all_is_shown_passes_byte_for_byte() {
    for body in [
        list("1", &["pay", "get_posts"]),
        r#"{"result":{"tools":[],"cacheScope":"public"},"id":1,"jsonrpc":"2.0"}"#.to_owned(),
        r#" {"jsonrpc":"2.0","id":1,"error":{"code":-32603,"message":"no","data":{"tools":[{"name":"wipe"}]}}} "#.to_owned(),
        r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"pay"}],"cacheScope":"public","resultType":"complete"}}"#
            .to_owned(),
    ] {
        assert_eq!(listed("application/json", &body).await.text(), body);
    }
}

/// What a client finds that looks for the type in another way, or decodes by another charset.
#[tokio::test]
async fn a_list_that_clients_read_in_different_ways_is_not_passed_on() {
    let plain = list("1", &["pay", "wipe"]);
    let in_pairs = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let events = format!("data: {plain}\n\n");
    for (kind, body) in [
        ("application/json; x=text/event-stream", plain.clone().into_bytes()),
        ("application/json, text/event-stream", plain.clone().into_bytes()),
        ("application/json; charset=utf-16le", in_pairs(&plain)),
        ("application/json;charset*=utf-16", plain.clone().into_bytes()),
        ("text/event-stream; charset=utf-16le", in_pairs(&events)),
        ("text/event-stream; charset=utf-7", events.clone().into_bytes()),
    ] {
        for status in [200, 404] {
            let body = body.clone();
            let upstream = Upstream::start(move |_| Reply::new(status, kind, body.clone())).await;
            let sidecar = Sidecar::start(&policy(&upstream.url(), TOOLS)).await;
            let answer = sidecar.ask(&lists().plain()).await;
            // An error keeps its status; nothing of its body is left.
            let (expected, empty) = if status == 200 { (502, false) } else { (404, true) };
            assert_eq!((answer.status, answer.body.is_empty()), (expected, empty), "{kind} {status}");
            assert!(!answer.text().contains("wipe"), "{kind}");
        }
    }
    // JSON in what is called a stream: it is no event, and some read it all the same.
    let (_upstream, sidecar) = before("text/event-stream", plain.clone()).await;
    let mut wire = Wire::connect(sidecar.address).await;
    wire.write(&lists().bytes(&sidecar.address.to_string())).await;
    assert!(!wire.closed().await.contains("wipe"));
    let fine = listed("Application/JSON; charset=\"UTF8\"", &plain).await;
    assert_eq!((fine.status, fine.text().contains("wipe")), (200, false));
}

#[tokio::test]
async fn a_page_can_become_empty_and_is_private_once_something_was_cut_out() {
    let answer = listed(
        "application/json",
        r#"{"jsonrpc":"2.0","id":1,"result":{"cacheScope":"public","tools":[{"name":"wipe"},{"name":"get_secret"}],"nextCursor":"2"}}"#,
    )
    .await;
    let page = r#"{"jsonrpc":"2.0","id":1,"result":{"cacheScope":"private","tools":[],"nextCursor":"2"}}"#;
    assert_eq!(answer.text(), page);
}

#[tokio::test]
async fn a_cursor_reaches_the_server_and_every_page_is_filtered() {
    let upstream = Upstream::start(|seen| match seen.json()["params"]["cursor"].as_str() {
        None => Reply::json(r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"wipe"},{"name":"pay"}],"nextCursor":"2"}}"#),
        Some("2") => Reply::json(r#"{"jsonrpc":"2.0","id":2,"result":{"tools":[{"name":"get_a"},{"name":"burn"}]}}"#),
        other => panic!("{other:?}"),
    })
    .await;
    let sidecar = Sidecar::start(&policy(&upstream.url(), TOOLS)).await;
    let first = sidecar.post(&request("1", "tools/list", "{}")).await;
    assert_eq!(first["result"], json!({"tools": [{"name": "pay"}], "nextCursor": "2"}));
    let second = sidecar.post(&request("2", "tools/list", r#"{"cursor":"2"}"#)).await;
    assert_eq!(second["result"], json!({"tools": [{"name": "get_a"}]}));
}

#[tokio::test]
async fn a_tool_that_a_client_could_take_for_another_is_not_shown() {
    let names = r#"{"result":{"tools":[{"name":"pay","name":"wipe"},{"n\u0061me":"w\u0069pe"},{"name":7},{"title":"x"},{"name":"pay"}]},"id":1}"#;
    assert_eq!(listed("application/json", names).await.json()["result"], json!({"tools": [{"name": "pay"}]}));
    // A key that is written with an escape is the same key.
    let key = r#"{"r\u0065sult":{"t\u006fols":[{"name":"wipe"}]},"id":1}"#;
    assert_eq!(listed("application/json", key).await.json()["result"], json!({"tools": []}));
    let event = format!("data: {key}\n\n");
    assert!(!listed("text/event-stream", &event).await.text().contains("wipe"));
}

#[tokio::test]
async fn a_list_that_comes_as_an_event_is_filtered_and_its_stream_is_not_changed_else() {
    let stream = |list: &str| {
        format!(
            "\u{feff}: hello\r\n\r\nretry: 500\nid: 0\n\nevent: message\r\ndata: {}\r\n\r\nid: 7\nevent: message\ndata: {list}\nretry: 9\n\n: bye\n\ndata: cut",
            r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"tools":[{"name":"wipe"}]}}"#
        )
    };
    let answer = listed("text/event-stream", &stream(&list("1", &["pay", "wipe", "get_a"]))).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "text/event-stream"));
    assert_eq!(answer.text(), stream(&list("1", &["pay", "get_a"])));
}

#[tokio::test]
async fn a_list_over_several_lines_of_data_is_filtered() {
    let answer = listed("text/event-stream", "data: {\"jsonrpc\":\"2.0\",\"id\":1,\ndata: \"result\":{\"tools\":[{\"name\":\"wipe\"},\ndata: {\"name\":\"pay\"}]}}\n\n").await;
    let text = answer.text();
    let data: String = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let data: serde_json::Value = serde_json::from_str(&data).unwrap();
    assert_eq!(data["result"], json!({"tools": [{"name": "pay"}]}));
    assert!(text.ends_with("\n\n"));
}

/// Feeds of streams that a server is asked for.
async fn streaming() -> (Sidecar, mpsc::UnboundedReceiver<Feed>) {
    streaming_with(|_| {}).await
}

async fn streaming_with(change: impl FnOnce(&mut RunConfig)) -> (Sidecar, mpsc::UnboundedReceiver<Feed>) {
    let (upstream, opened) = Upstream::streaming("text/event-stream").await;
    (Sidecar::with(&policy(&upstream.url(), TOOLS), change).await, opened)
}

#[tokio::test]
async fn a_list_is_kept_no_longer_than_it_may_be_though_nothing_of_it_is_cut_out() {
    let long = |ttl: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"ttlMs":{ttl},"tools":[{{"name":"pay"}}]}}}}"#);
    let event = |ttl: &str| format!("data: {}\n\n", long(ttl));
    for (ttl, kept) in [("3600000", "5000"), ("\"1h\"", "5000"), ("-1", "5000"), ("4999.5", "4999.5"), ("0", "0")] {
        assert_eq!(listed("application/json", &long(ttl)).await.text(), long(kept), "{ttl}");
        assert_eq!(listed("text/event-stream", &event(ttl)).await.text(), event(kept), "{ttl}");
        // Replayed, or on a stream of HTTP+SSE.
        let (_upstream, sidecar) = before("text/event-stream", event(ttl)).await;
        assert_eq!(sidecar.ask(&Ask::get()).await.text(), event(kept), "{ttl}");
    }
    // What is no list is kept as long as its server says.
    let read = r#"{"id":1,"result":{"ttlMs":3600000,"contents":[],"_meta":{"tools":[]}}}"#;
    assert_eq!(listed("application/json", read).await.text(), read);
    let upstream = Upstream::start(move |_| Reply::json(long("60000"))).await;
    let told = |config: &mut RunConfig| config.limits.list_ttl = std::time::Duration::from_millis(1500);
    let sidecar = Sidecar::with(&policy(&upstream.url(), TOOLS), told).await;
    assert_eq!(sidecar.ask(&lists()).await.text(), long("1500"));
}

#[tokio::test]
async fn a_list_that_is_replayed_on_a_get_stream_is_filtered() {
    let (sidecar, mut opened) = streaming().await;
    let ask = Ask::get().with("last-event-id", "3").with("mcp-session-id", "s");
    let (mut wire, status, _) = Wire::open(sidecar.address, &ask).await;
    let feed = opened.recv().await.unwrap();
    assert_eq!(status, 200);
    feed.send("id: 4\ndata: ").await;
    feed.send(&format!("{}\n\n", list("9", &["wipe", "pay"]))).await;
    assert_eq!(wire.text_up_to("\n\n").await, format!("id: 4\ndata: {}\n\n", list("9", &["pay"])));
    // Events that hold no list leave as they came, even those that only a lenient client can read.
    for result in
        [r#"{"content":[{"type":"text","text":"\"tools\" wipe"}]}"#, r#"{"tools":{"x":"\u00e9"}}"#, r#"{"x":NaN,"y":"\u00e9"}"#]
    {
        let call = format!("id: 5\ndata: {{\"jsonrpc\":\"2.0\",\"id\":3,\"result\":{result}}}\n\n");
        feed.send(&call).await;
        assert_eq!(wire.text_up_to("\n\n").await, call);
    }
}

/// Lists that a lenient client can read and a strict reader cannot.
const UNREADABLE: [&str; 6] = [
    r#"{"id":1,"result":{"tools":[{"name":"wipe"}],"\ud800":1}}"#,
    r#"{"id":1,"result":{"tools":[{"name":"wipe","x":NaN}]}}"#,
    r#"{"id":1,"result":{"tools":[{"name":"wipe\ud800"}]}}"#,
    r#"{"id":1,"result":{"tools":[{"name":"wipe"},]}}"#,
    r#"{"id":1,"result":{"tools":[{"name":"wipe"}]}} // end"#,
    "{\"id\":1,\"result\":{\"tools\":[{\"name\":\"wipe\",\"x\":\"\t\"}]}}",
];

#[tokio::test]
async fn a_list_that_cannot_be_read_is_not_passed_on() {
    let deep = format!(r#"{{"id":1,"result":{{"tools":[{{"name":"wipe"}}],"x":{}{}}}}}"#, "[".repeat(200), "]".repeat(200));
    for body in UNREADABLE.into_iter().chain([deep.as_str(), "<html>", "[", "{\"result\":"]) {
        let (_upstream, sidecar) = before("application/json", body.to_owned()).await;
        let answer = sidecar.ask(&lists().plain()).await;
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (502, &json!(-32603)), "{body}: {}", answer.text());
        assert_eq!(answer.json()["id"], 1, "{body}");
        assert_eq!(sidecar.counted("upstream_invalid").await, 1.0, "{body}");
    }
}

#[tokio::test]
async fn a_list_in_an_event_that_cannot_be_read_ends_the_stream() {
    let deep = format!(r#"{{"id":1,"result":{{"tools":[{{"name":"wipe"}}],"x":{}{}}}}}"#, "[".repeat(200), "]".repeat(200));
    for body in UNREADABLE.into_iter().chain([deep.as_str()]) {
        for ask in [lists(), Ask::get()] {
            let (sidecar, mut opened) = streaming().await;
            let (mut wire, _, _) = Wire::open(sidecar.address, &ask).await;
            let feed = opened.recv().await.unwrap();
            feed.send(": first\n\n").await;
            assert_eq!(wire.text_up_to("\n\n").await, ": first\n\n");
            feed.send(&format!("data: {body}\n\n")).await;
            assert_eq!(wire.rest().await, Err("broken off"), "{body}");
        }
    }
}

#[tokio::test]
async fn a_list_in_another_form_is_not_passed_on() {
    let readable = list("1", &["pay", "wipe"]);
    for (kind, name, value) in [
        ("application/json", "content-encoding", "gzip"),
        ("text/event-stream", "content-encoding", "br"),
        ("application/json", "content-encoding", "identity, gzip"),
        ("text/plain", "x", "y"),
        ("", "x", "y"),
        ("application/x-ndjson", "x", "y"),
    ] {
        let body = readable.clone();
        let upstream = Upstream::start(move |_| Reply::new(200, kind, body.clone()).with(name, value)).await;
        let sidecar = Sidecar::start(&policy(&upstream.url(), TOOLS)).await;
        let answer = sidecar.ask(&lists().plain()).await;
        assert_eq!(answer.status, 502, "{kind} {value}: {}", answer.text());
        assert!(!answer.text().contains("wipe"));
        assert_eq!(sidecar.counted("upstream_invalid").await, 1.0, "{kind} {value}");
    }
}

#[tokio::test]
async fn a_list_that_is_larger_than_is_held_is_not_passed_on() {
    let large = list("1", &["pay", &"x".repeat(20_000)]);
    let small = |config: &mut RunConfig| config.limits.body = 10_000;
    let body = large.clone();
    let upstream = Upstream::start(move |_| Reply::json(body.clone())).await;
    let sidecar = Sidecar::with(&policy(&upstream.url(), TOOLS), small).await;
    let answer = sidecar.ask(&lists().plain()).await;
    assert_eq!(answer.status, 502);
    assert!(answer.text().contains("larger than 10000 bytes"), "{}", answer.text());

    let (sidecar, mut opened) = streaming_with(small).await;
    let (mut wire, status, _) = Wire::open(sidecar.address, &lists()).await;
    assert_eq!(status, 200);
    let feed = opened.recv().await.unwrap();
    feed.send(&format!("data: {}", &large[..15_000])).await;
    assert_eq!(wire.rest().await, Err("broken off"));
}

#[tokio::test]
async fn other_answers_are_not_held_whatever_their_size_and_form() {
    let text = format!(r#"{{"id":1,"result":{{"content":[{{"type":"text","text":"{}"}}]}}}}"#, "x".repeat(300_000));
    let body = text.clone();
    let upstream =
        Upstream::start(move |_| Reply::new(200, "application/json", body.clone()).with("content-encoding", "x-any")).await;
    let free = policy_with(&upstream.url(), TOOLS, &[FREE]);
    let sidecar = Sidecar::with(&free, |config| config.limits.body = 10_000).await;
    for http in Http::BOTH {
        assert_eq!(Ask::post(call("1", "pay", "{}")).over(http, sidecar.address).await.text(), text);
    }
}

#[tokio::test]
async fn an_error_of_the_server_passes_as_the_answer_to_a_list() {
    let upstream = Upstream::start(|_| Reply::new(404, "text/plain", "Session not found")).await;
    let sidecar = Sidecar::start(&policy(&upstream.url(), TOOLS)).await;
    let answer = sidecar.ask(&lists()).await;
    assert_eq!((answer.status, answer.text().as_str()), (404, "Session not found"));
}

#[tokio::test]
async fn a_tool_of_a_list_is_a_label_of_the_metrics_from_then_on() {
    let upstream = Upstream::start(|seen| match seen.json()["method"].as_str() {
        Some("tools/list") => Reply::json(list("1", &["get_posts", "wipe"])),
        _ => Reply::json(common::result("1")),
    })
    .await;
    let sidecar = Sidecar::start(&policy(&upstream.url(), TOOLS)).await;
    let counted = async |tool: &str| sidecar.scrape().await.sum("toolweir_tool_calls_total", &[("tool", tool)]);
    sidecar.post(&call("1", "get_posts", "{}")).await;
    assert_eq!((counted("get_posts").await, counted("_other").await), (0.0, 1.0));
    sidecar.post(&request("1", "tools/list", "{}")).await;
    for tool in ["get_posts", "wipe", "get_made_up"] {
        sidecar.post(&call("1", tool, "{}")).await;
    }
    assert_eq!((counted("get_posts").await, counted("wipe").await, counted("_other").await), (1.0, 1.0, 2.0));
}

#[tokio::test]
async fn the_last_list_of_a_stream_is_filtered_though_no_blank_line_ends_it() {
    for end in ["", "\n", "\r\n", "\r"] {
        let stream = format!("data: {{}}\n\nevent: message\ndata: {}{end}", list("1", &["pay", "wipe"]));
        let shown = format!("data: {{}}\n\nevent: message\ndata: {}\n", list("1", &["pay"]));
        assert_eq!(listed("text/event-stream", &stream).await.text(), shown, "{end:?}");
        let (_upstream, sidecar) = before("text/event-stream", stream).await;
        assert_eq!(sidecar.ask(&Ask::get()).await.text(), shown, "{end:?}");
    }
    // Half of one cannot be read, and passes to nobody.
    let (_upstream, sidecar) = before("text/event-stream", "data: {\"result\":{\"tools\":[{\"name\":\"wipe\"}").await;
    for ask in [Ask::get(), lists()] {
        let mut wire = Wire::connect(sidecar.address).await;
        wire.write(&ask.bytes("localhost")).await;
        let got = wire.closed().await;
        assert!(!got.contains("wipe") && !got.ends_with("0\r\n\r\n"), "{got}");
    }
}

#[tokio::test]
async fn a_list_is_filtered_whatever_status_and_type_it_comes_with() {
    let answer = list("1", &["pay", "wipe"]);
    let event = format!("data: {answer}\n\n");
    for (status, kind, body) in [
        (202, "application/json", &answer),
        (404, "application/json", &answer),
        (500, "text/html", &answer),
        (500, "", &answer),
        (400, "text/event-stream", &event),
        (200, "Text/Event-Stream;charset=utf-8", &event),
    ] {
        let body = body.clone();
        let upstream = Upstream::start(move |_| Reply::new(status, kind, body.clone())).await;
        let sidecar = Sidecar::start(&policy(&upstream.url(), TOOLS)).await;
        let answer = sidecar.ask(&lists()).await;
        assert_eq!(answer.status, status, "{kind}");
        assert!(answer.text().contains("pay") && !answer.text().contains("wipe"), "{status} {kind}: {}", answer.text());
    }
    // An error that holds no list passes as it is.
    for (status, kind, body) in [(502, "text/html", "<h1>Bad Gateway</h1>"), (404, "application/json", "{\"no\": json}")] {
        let upstream = Upstream::start(move |_| Reply::new(status, kind, body)).await;
        let sidecar = Sidecar::start(&policy(&upstream.url(), TOOLS)).await;
        let answer = sidecar.ask(&lists()).await;
        assert_eq!((answer.status, answer.text().as_str()), (status, body));
    }
}

#[tokio::test]
async fn a_list_is_known_in_whatever_case_its_keys_are_written() {
    let answer = listed("application/json", r#"{"id":1,"Result":{"TOOLS":[{"Name":"wipe"},{"name":"pay"}]}}"#).await;
    assert_eq!(answer.text(), r#"{"id":1,"Result":{"TOOLS":[{"name":"pay"}]}}"#);
}

#[tokio::test]
async fn a_list_of_a_hundred_thousand_tools_is_filtered_in_its_own_memory() {
    let items = vec![r#"{"name":"b"},{"name":"pay"}"#; 50_000].join(",");
    let answer = listed("application/json", &format!(r#"{{"id":1,"result":{{"tools":[{items}]}}}}"#)).await;
    let shown = vec![r#"{"name":"pay"}"#; 50_000].join(",");
    assert!(answer.text() == format!(r#"{{"id":1,"result":{{"tools":[{shown}]}}}}"#));
}

/// A list with entries of these names, URIs, URI templates or ids.
fn list_of((_, key, member): (&str, &str, &str), names: &[&str]) -> String {
    let entries: Vec<String> = names.iter().map(|name| format!(r#"{{"x":1.0,"{member}":"{name}"}}"#)).collect();
    format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"{key}":[{}]}}}}"#, entries.join(" , "))
}

/// A sidecar before a server that answers everything with this, by a policy with these fields. A task of `pay` is known.
async fn with_fields(fields: &[&str], kind: &'static str, body: String) -> (Upstream, Sidecar) {
    let upstream = Upstream::start(move |_| Reply::new(200, kind, body.clone())).await;
    let sidecar = Sidecar::start(&policy_with(&upstream.url(), "[{name: pay}]", fields)).await;
    sidecar.governor.tasks.learn("bank", "pay", "pay");
    (upstream, sidecar)
}

#[tokio::test]
async fn what_may_not_be_used_is_in_no_list_whatever_form_that_comes_in() {
    for list in LISTS {
        let (method, key, _) = list;
        let [pay, wipe] = usable(key);
        let (all, shown) = (list_of(list, &[wipe, pay, wipe]), list_of(list, &[pay]));
        let ask = Ask::post(request("1", method, "{}"));
        let (_upstream, sidecar) = with_fields(&SOME, "application/json", all.clone()).await;
        for http in Http::BOTH {
            assert_eq!(ask.over(http, sidecar.address).await.text(), shown, "{method} {http:?}");
        }
        let hidden = sidecar.scrape().await;
        for (_, other, _) in LISTS.into_iter().filter(|(_, other, _)| *other != "tools") {
            let count = if key == other { 4.0 } else { 0.0 };
            assert_eq!(hidden.sum("toolweir_entries_hidden_total", &[("server", "bank"), ("list", other)]), count, "{method}");
        }
        let tools = if key == "tools" { 4.0 } else { 0.0 };
        assert_eq!(hidden.sum("toolweir_tools_hidden_total", &[("server", "bank")]), tools, "{method}");
        let (_upstream, sidecar) = with_fields(&SOME, "text/event-stream", format!("id: 1\ndata: {all}\n\n")).await;
        // Of a stream that is resumed, too.
        for ask in [ask, Ask::get().with("last-event-id", "0")] {
            assert_eq!(sidecar.ask(&ask).await.text(), format!("id: 1\ndata: {shown}\n\n"), "{method}");
        }
    }
}

#[tokio::test]
async fn what_may_not_be_used_is_in_no_list_of_http_and_sse() {
    let (upstream, mut opened) = Upstream::legacy().await;
    let sidecar = Sidecar::start(&policy_with(&upstream.url(), "[{name: pay}]", &SOME)).await;
    sidecar.governor.tasks.learn("bank", "pay", "pay");
    let (mut stream, _, _) = Wire::open(sidecar.address, &Ask::get()).await;
    let feed = opened.recv().await.unwrap();
    feed.send("event: endpoint\ndata: /m\n\n").await;
    let path = stream.text_up_to("\n\n").await;
    let path = path.strip_prefix("event: endpoint\ndata: ").unwrap().trim();
    for list in LISTS {
        let (method, key, _) = list;
        let [pay, wipe] = usable(key);
        assert_eq!(sidecar.ask(&Ask::post(request("1", method, "{}")).to(path)).await.status, 202);
        feed.send(&format!("event: message\ndata: {}\n\n", list_of(list, &[pay, wipe]))).await;
        assert_eq!(stream.text_up_to("\n\n").await, format!("event: message\ndata: {}\n\n", list_of(list, &[pay])), "{method}");
    }
}

#[tokio::test]
async fn a_list_on_whose_kind_no_policy_has_a_say_is_empty() {
    for list in LISTS {
        let (method, key, _) = list;
        let body = list_of(list, &["wipe", "file:///wipe", "file:///{+path}"]);
        let ask = Ask::post(request("1", method, "{}"));
        for fields in [&[][..], &["defaultActions: {prompts: Deny, resources: Deny, requests: Allow, other: Allow}"]] {
            let (_upstream, sidecar) = with_fields(fields, "application/json", body.clone()).await;
            assert_eq!(sidecar.ask(&ask).await.text(), list_of(list, &[]), "{method} {fields:?}");
        }
        // And all of it is shown where policies allow all.
        let (_upstream, sidecar) =
            with_fields(&["defaultActions: {prompts: Allow, resources: Allow}"], "application/json", body.clone()).await;
        let shown = match key {
            "tools" | "tasks" => list_of(list, &[]),
            _ => body,
        };
        assert_eq!(sidecar.ask(&ask).await.text(), shown, "{method}");
    }
}

#[tokio::test]
async fn a_prompt_or_resource_that_an_entry_denies_is_not_shown_though_a_glob_allows_it() {
    let fields = [
        "prompts: [{name: \"review_*\"}, {name: review_secret, action: Deny}]",
        "resources: [{uri: \"file:///data/*\"}, {uri: \"file:///data/secret/*\", action: Deny}]",
    ];
    for (list, names, shown) in [
        (LISTS[1], &["review_code", "review_secret", "deploy", "REVIEW_SECRET"][..], &["review_code"][..]),
        (
            LISTS[2],
            &[
                "file:///data/a",
                "file:///data/secret/b",
                "file:///etc/passwd",
                "FILE:/data/c",
                "file:///data/../etc/passwd",
                "file:///data/%2e%2e/etc/passwd",
                "file:///data/SECRET/b",
                "data/a",
            ],
            &["file:///data/a", "FILE:/data/c"],
        ),
        (
            LISTS[3],
            // Of the first two some URI may be read.
            &[
                "file:///data/{name}",
                "file:///{+path}",
                "file:///etc/{name}",
                "file:///data/secret/{name}",
                "data/{name}",
                "https://{host}/data/x",
            ],
            &["file:///data/{name}", "file:///{+path}"],
        ),
    ] {
        let (_upstream, sidecar) = with_fields(&fields, "application/json", list_of(list, names)).await;
        assert_eq!(sidecar.ask(&Ask::post(request("1", list.0, "{}"))).await.text(), list_of(list, shown));
    }
}

#[tokio::test]
async fn a_template_behind_more_than_are_looked_at_is_not_shown() {
    let names: Vec<String> = (0..514).map(|number| format!("file:///pay/{number}/{{id}}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (_upstream, sidecar) = with_fields(&SOME, "application/json", list_of(LISTS[3], &names)).await;
    let answer = sidecar.ask(&Ask::post(request("1", LISTS[3].0, "{}"))).await;
    assert_eq!(answer.text(), list_of(LISTS[3], &names[..512]));
}

#[tokio::test]
async fn a_resource_that_a_client_could_take_for_another_is_not_shown() {
    let entries = r#"{"id":1,"result":{"resources":[{"uri":"file:///pay","uri":"file:///wipe"},{"URI":"file:///wipe","uri":"file:///pay"},{"\u0075ri":"file:///w\u0069pe"},{"uri":7},{"name":"file:///pay"},{"name":"x","uri":"file:///pay"}]}}"#;
    let (_upstream, sidecar) = with_fields(&SOME, "application/json", entries.to_owned()).await;
    let answer = sidecar.post(&request("1", "resources/list", "{}")).await;
    assert_eq!(answer["result"], json!({"resources": [{"name": "x", "uri": "file:///pay"}]}));
    // In whatever spelling the key is found.
    for key in [r"r\u0065\u0073ources", "re\u{17f}ources", "RESOURCES"] {
        let body = entries.replace("resources", key);
        let (_upstream, sidecar) = with_fields(&SOME, "text/event-stream", format!("data: {body}\n\n")).await;
        for ask in [Ask::post(request("1", "resources/list", "{}")), Ask::get()] {
            let text = sidecar.ask(&ask).await.text();
            assert!(text.contains(r#"{"name":"x","uri":"file:///pay"}"#) && !text.contains("pe\""), "{text}");
        }
    }
}

#[tokio::test]
async fn a_task_is_shown_only_while_the_tool_that_made_it_may_be_called() {
    let body = list_of(LISTS[4], &["of-pay", "of-wipe", "of-nobody", "of-another-server"]);
    let (upstream, sidecar) = with_fields(&[], "application/json", body).await;
    let tasks = &sidecar.governor.tasks;
    tasks.learn("bank", "of-pay", "pay");
    tasks.learn("bank", "of-wipe", "wipe");
    tasks.learn("shop", "of-another-server", "pay");
    let ask = Ask::post(request("1", "tasks/list", "{}"));
    assert_eq!(sidecar.ask(&ask).await.text(), list_of(LISTS[4], &["of-pay"]));
    let before = sidecar.governor.in_force().version.clone();
    sidecar.folder.write("policy.yaml", policy(&upstream.url(), "[{name: wipe}]"));
    common::until("the policy", async || sidecar.governor.in_force().version != before).await;
    assert_eq!(sidecar.ask(&ask).await.text(), list_of(LISTS[4], &["of-wipe"]));
}

#[tokio::test]
async fn any_list_that_cannot_be_read_is_not_passed_on() {
    for list in LISTS {
        let (method, key, _) = list;
        let body = list_of(list, &[usable(key)[0]]).replace("1.0", "NaN");
        let (_upstream, sidecar) = with_fields(&SOME, "application/json", body.clone()).await;
        let answer = sidecar.ask(&Ask::post(request("1", method, "{}")).plain()).await;
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (502, &json!(-32603)), "{method}");
        let (upstream, mut opened) = Upstream::streaming("text/event-stream").await;
        let sidecar = Sidecar::start(&policy_with(&upstream.url(), "[{name: pay}]", &SOME)).await;
        let (mut wire, _, _) = Wire::open(sidecar.address, &Ask::get()).await;
        opened.recv().await.unwrap().send(&format!("data: {body}\n\n")).await;
        // What tells of tasks is a message that is decided on, too: it goes nowhere by itself.
        let ended = if key == "tasks" { Ok(0) } else { Err("broken off") };
        assert_eq!(wire.rest().await.map(|rest| rest.len()), ended, "{method}");
    }
}

#[tokio::test]
async fn a_result_that_is_no_list_keeps_what_is_named_like_one() {
    let body = r#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"resource","resource":{"uri":"file:///wipe"}}],"structuredContent":{"resources":[{"uri":"file:///wipe"}],"tasks":[{"taskId":"x"}]},"contents":[{"uri":"file:///wipe","name":"wipe"}]}}"#;
    let event = format!("data: {body}\n\n");
    let (_upstream, sidecar) = with_fields(&[], "text/event-stream", event.clone()).await;
    assert_eq!(sidecar.ask(&Ask::get()).await.text(), event);
}

#[tokio::test]
async fn a_prompt_of_a_list_is_a_label_of_the_metrics_from_then_on() {
    let upstream = Upstream::start(|seen| match seen.json()["method"].as_str() {
        Some("prompts/list") => Reply::json(list_of(LISTS[1], &["review", "wipe"])),
        _ => Reply::json(r#"{"jsonrpc":"2.0","id":1,"result":{"messages":[]}}"#),
    })
    .await;
    let sidecar = Sidecar::start(&policy_with(&upstream.url(), "[]", &["prompts: [{name: \"r*\"}]"])).await;
    let counted = async |name: &str| sidecar.scrape().await.sum("toolweir_operations_total", &[("name", name)]);
    let get = |name: &str| request("1", "prompts/get", &format!(r#"{{"name":"{name}"}}"#));
    sidecar.post(&get("review")).await;
    assert_eq!((counted("review").await, counted("_other").await), (0.0, 1.0));
    sidecar.post(&request("1", "prompts/list", "{}")).await;
    for name in ["review", "wipe", "made_up"] {
        sidecar.post(&get(name)).await;
    }
    assert_eq!((counted("review").await, counted("wipe").await, counted("_other").await), (1.0, 1.0, 2.0));
}
