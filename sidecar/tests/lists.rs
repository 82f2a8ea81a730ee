//! `tools/list` shows an agent only what it may call, in every form that a list can come in, and changes nothing else.
//! mcp.md, "Lists, streams, tasks".
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::float_cmp)]

mod common;

use common::{
    call,
    client::{Answer, Ask, Http, Wire},
    list, policy, request,
    sidecar::Sidecar,
    upstream::{Feed, Reply, Upstream},
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
    // What is no list of tools is kept as long as its server says.
    let resources = r#"{"id":1,"result":{"ttlMs":3600000,"resources":[],"_meta":{"tools":[]}}}"#;
    assert_eq!(listed("application/json", resources).await.text(), resources);
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
    let upstream = Upstream::start(move |_| Reply::new(200, "application/json", body.clone())).await;
    let sidecar = Sidecar::with(&policy(&upstream.url(), TOOLS), |config| config.limits.body = 10_000).await;
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
async fn a_list_of_hundreds_of_thousands_of_tools_is_filtered_in_its_own_memory() {
    let items = vec![r#"{"name":"b"},{"name":"pay"}"#; 140_000].join(",");
    let answer = listed("application/json", &format!(r#"{{"id":1,"result":{{"tools":[{items}]}}}}"#)).await;
    let shown = vec![r#"{"name":"pay"}"#; 140_000].join(",");
    assert!(answer.text() == format!(r#"{{"id":1,"result":{{"tools":[{shown}]}}}}"#));
}
