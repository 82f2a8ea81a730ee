//! Results that are larger than an entry's `maxResultBytes` become a denial with both sizes, on every way.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::float_cmp)]

mod common;

use common::{
    call,
    client::{Ask, Http, Wire},
    denial, policy, request,
    sidecar::Sidecar,
    until,
    upstream::{Feed, Reply, Upstream},
};
use serde_json::Value;
use tokio::sync::mpsc;

const MAX: usize = 1000;

/// The answer to a call, of so many bytes.
fn answer_of(bytes: usize) -> String {
    let frame = |text: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"content":[{{"type":"text","text":"{text}"}}]}}}}"#);
    let answer = frame(&"x".repeat(bytes - frame("").len()));
    assert_eq!(answer.len(), bytes);
    answer
}

fn rules(max: usize) -> String {
    format!(r#"[{{name: pay, maxResultBytes: {max}, limits: [{{max: 3, window: hour}}]}}, {{name: "*", action: Allow}}]"#)
}

async fn server() -> (Upstream, mpsc::UnboundedReceiver<Feed>) {
    let (feeds, opened) = mpsc::unbounded_channel();
    let upstream = Upstream::start(move |seen| {
        if seen.path.starts_with("/messages") {
            return Reply::status(202);
        }
        if let Ok(bytes) = seen.header("x-bytes").parse() {
            return Reply::json(answer_of(bytes));
        }
        let kind = if seen.header("x-kind").is_empty() { "text/event-stream" } else { "application/json" };
        let (reply, feed) = Reply::stream(kind);
        feeds.send(feed).unwrap();
        reply
    })
    .await;
    (upstream, opened)
}

fn assert_denied(text: &str, words: &str) {
    let answer: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!((&answer["id"], &denial(&answer)["reason"]), (&1.into(), &"result_too_large".into()), "{text}");
    let said = answer["result"]["content"][0]["text"].as_str().unwrap();
    assert!(said.contains(words), "{said}");
}

/// The data of the events of a text.
fn data(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.strip_prefix("data: ")).collect()
}

#[tokio::test]
async fn a_json_result_passes_up_to_the_bound_and_what_it_took_stays_taken() {
    let (upstream, _) = server().await;
    for http in Http::BOTH {
        let sidecar = Sidecar::start(&policy(&upstream.url(), &rules(MAX))).await;
        let pay = |bytes: usize| Ask::post(call("1", "pay", "{}")).with("x-bytes", &bytes.to_string());
        let whole = pay(MAX).over(http, sidecar.address).await;
        assert_eq!((whole.status, whole.text()), (200, answer_of(MAX)));
        assert_eq!(whole.header("content-length"), MAX.to_string());
        let denied = pay(MAX + 1).over(http, sidecar.address).await;
        assert_eq!((denied.status, denied.header("content-type")), (200, "application/json"));
        assert_denied(&denied.text(), "has 1001 bytes, and at most 1000 may pass");
        let events = pay(100_000).without("accept").with("accept", "text/event-stream").over(http, sidecar.address).await;
        assert_denied(data(&events.text())[0], "has 100000 bytes");
        assert_eq!(denial(&pay(5).over(http, sidecar.address).await.json())["reason"], "rate_limit");
        let scrape = sidecar.scrape().await;
        let counted = |decision: &str, reason: &str| {
            scrape.sum("toolweir_tool_calls_total", &[("tool", "pay"), ("decision", decision), ("reason", reason)])
        };
        assert_eq!((counted("allowed", "none"), counted("denied", "result_too_large")), (3.0, 2.0));
        assert_eq!(scrape.sum("toolweir_requests_total", &[("outcome", "result_too_large")]), 2.0);
        let outcomes: Vec<Value> = sidecar.audit(4).await.into_iter().map(|line| line["outcome"].clone()).collect();
        assert_eq!(outcomes, ["ok", "result_too_large", "result_too_large", "denied"]);
    }
}

#[tokio::test]
async fn a_json_result_without_a_length_is_held_as_far_as_its_bound() {
    for (max, bytes, passes) in
        [(MAX, MAX, true), (MAX, MAX + 1, false), (200_000, 200_000, true), (200_000, 200_001, false), (200_000, 900_000, false)]
    {
        let (upstream, mut opened) = server().await;
        let sidecar = Sidecar::start(&policy(&upstream.url(), &rules(max))).await;
        let ask = Ask::post(call("1", "pay", "{}")).with("x-kind", "json");
        let (answer, ()) = tokio::join!(sidecar.ask(&ask), async {
            let feed = opened.recv().await.unwrap();
            let answer = answer_of(bytes);
            for piece in answer.as_bytes().chunks(7000) {
                if !feed.try_send(std::str::from_utf8(piece).unwrap()).await {
                    break;
                }
            }
        });
        if passes {
            assert_eq!(answer.text(), answer_of(bytes));
        } else {
            assert_denied(&answer.text(), &format!("and at most {max} may pass"));
        }
    }
}

#[tokio::test]
async fn an_event_larger_than_the_bound_becomes_a_denial_and_the_stream_ends_after_it() {
    let progress =
        request("0", "notifications/message", &format!(r#"{{"data":"{}"}}"#, "x".repeat(2 * MAX))).replace("\"id\":0,", "");
    let ping = request("1", "ping", &format!(r#"{{"x":"{}"}}"#, "x".repeat(2 * MAX)));
    for (bytes, passes) in [(MAX, true), (MAX + 1, false), (50_000, false)] {
        for form in ["{}", "[{}]"].into_iter().filter(|form| bytes != MAX || *form == "{}") {
            let (upstream, mut opened) = server().await;
            let sidecar = Sidecar::start(&policy(&upstream.url(), &rules(MAX))).await;
            let (mut wire, ..) = Wire::open(sidecar.address, &Ask::post(call("1", "pay", "{}"))).await;
            let feed = opened.recv().await.unwrap();
            // What is not the result has no bound.
            let others = format!("data: {progress}\n\ndata: {ping}\n\n");
            feed.send(&others).await;
            assert_eq!(wire.text_up_to(&others).await, others);
            let answer = form.replace("{}", &answer_of(bytes));
            feed.send(&format!("id: 7\ndata: {answer}\n\n")).await;
            if passes {
                assert_eq!(data(&wire.text_up_to("\n\n").await), [answer]);
                drop(feed);
                assert_eq!(wire.rest().await.unwrap(), "");
            } else {
                let rest = wire.rest().await.unwrap();
                feed.given_up().await;
                let text = std::str::from_utf8(&rest).unwrap();
                assert!(text.starts_with("id: 7\n"));
                assert_denied(data(text)[0], &format!("has {} bytes", answer.len()));
            }
            let line = sidecar.audit(1).await.remove(0);
            assert_eq!(line["outcome"], if passes { "ok" } else { "result_too_large" });
        }
    }
}

#[tokio::test]
async fn an_event_too_large_to_hold_is_cut_where_the_bound_is() {
    for (max, bytes) in [(MAX, 30_000), (50_000, 50_001), (50_000, 90_000)] {
        let (upstream, mut opened) = server().await;
        let sidecar = Sidecar::with(&policy(&upstream.url(), &rules(max)), |config| config.limits.body = 10_000).await;
        let (mut wire, ..) = Wire::open(sidecar.address, &Ask::post(call("1", "pay", "{}"))).await;
        let feed = opened.recv().await.unwrap();
        feed.send(&format!("data: {}\n\n", answer_of(bytes))).await;
        let rest = wire.rest().await.unwrap();
        let text = std::str::from_utf8(&rest).unwrap();
        let last = data(text).pop().unwrap();
        assert_denied(last, &format!("has more than {max} bytes"));
        assert!(text.len() < max + 1000, "{}", text.len());
    }
    // As large as may be, it passes though it is not held.
    let (upstream, mut opened) = server().await;
    let sidecar = Sidecar::with(&policy(&upstream.url(), &rules(50_000)), |config| config.limits.body = 10_000).await;
    let (mut wire, ..) = Wire::open(sidecar.address, &Ask::post(call("1", "pay", "{}"))).await;
    let feed = opened.recv().await.unwrap();
    let event = format!("data: {}\n\n", answer_of(50_000));
    feed.send(&event).await;
    drop(feed);
    assert_eq!(wire.rest().await.unwrap(), event);
}

#[tokio::test]
async fn on_a_stream_of_http_and_sse_the_result_is_known_by_its_id_and_the_stream_goes_on() {
    let (upstream, mut opened) = server().await;
    let sidecar = Sidecar::start(&policy(&upstream.url(), &rules(MAX).replace("max: 3", "max: 30"))).await;
    let (mut wire, ..) = Wire::open(sidecar.address, &Ask::get()).await;
    let feed = opened.recv().await.unwrap();
    feed.send("event: endpoint\ndata: /messages?s=1\n\n").await;
    let told = wire.text_up_to("\n\n").await;
    let messages = data(&told)[0].to_owned();
    for (bytes, passes) in [(MAX, true), (MAX + 1, false)] {
        assert_eq!(sidecar.ask(&Ask::post(call("1", "pay", "{}")).to(&messages)).await.status, 202);
        let event = format!("event: message\ndata: {}\n\n", answer_of(bytes));
        // In two pieces: its end is known before the event is.
        let (start, end) = event.split_at(event.len() - 1);
        feed.send(start).await;
        feed.send(end).await;
        let come = wire.text_up_to("\n\n").await;
        if passes {
            assert_eq!(come, event);
        } else {
            assert_denied(data(&come)[0], "has 1001 bytes");
        }
    }
    // Some clients take an answer to `"1"` for that of 1.
    assert_eq!(sidecar.ask(&Ask::post(call("1", "pay", "{}")).to(&messages)).await.status, 202);
    feed.send(&format!("data: {}\n\n", answer_of(5000).replace("\"id\":1", "\"id\":\"1\""))).await;
    let event = format!("event: message\ndata: {}\n\n", answer_of(MAX));
    feed.send(&event).await;
    assert_eq!(wire.text_up_to("\n\n").await, event);
    // Also where both come at once, and the awaited one second.
    assert_eq!(sidecar.ask(&Ask::post(call("1", "pay", "{}")).to(&messages)).await.status, 202);
    let other = format!("data: {}\n\n", answer_of(5000).replace("\"id\":1", "\"id\":\"1\""));
    feed.send(&[other, event.clone()].concat()).await;
    assert_eq!(wire.text_up_to("\n\n").await, event);
    // What cannot be read and was found to be an answer is told to who waits for it.
    for (id, tool) in [("1", "pay"), ("2", "read")] {
        assert_eq!(sidecar.ask(&Ask::post(call(id, tool, "{}")).to(&messages)).await.status, 202);
    }
    let deep = format!(r#"{{"jsonrpc":"2.0","id":2,"result":{}{}}}"#, "{\"x\":".repeat(300), "1".to_owned() + &"}".repeat(300));
    feed.send(&format!("data: {deep}\n\n")).await;
    let told: Value = serde_json::from_str(data(&wire.text_up_to("\n\n").await)[0]).unwrap();
    assert_eq!((&told["id"], &denial(&told)["reason"]), (&2.into(), &"upstream_invalid".into()), "{told}");
    feed.send(&event).await;
    assert_eq!(wire.text_up_to("\n\n").await, event);
    // An answer to nothing has no bound.
    let event = format!("event: message\ndata: {}\n\n", answer_of(5000));
    feed.send(&event).await;
    assert_eq!(wire.text_up_to("\n\n").await, event);
    let outcomes: Vec<Value> = sidecar.audit(6).await.into_iter().map(|line| line["outcome"].clone()).collect();
    assert_eq!(outcomes, ["ok", "result_too_large", "ok", "ok", "upstream_invalid", "ok"]);
    assert_eq!(sidecar.scrape().await.sum("toolweir_server_messages_refused_total", &[]), 3.0);
}

#[tokio::test]
async fn results_of_prompts_and_resources_have_bounds_too() {
    let upstream = Upstream::start(|_| Reply::json(answer_of(MAX + 1))).await;
    let rules = format!(
        "[]\n    prompts: [{{name: p, maxResultBytes: {MAX}}}]\n    resources: [{{uri: \"file:///a/*\", maxResultBytes: {MAX}}}]"
    );
    let sidecar = Sidecar::start(&policy(&upstream.url(), &rules)).await;
    for (method, params) in [("prompts/get", r#"{"name":"p"}"#), ("resources/read", r#"{"uri":"file:///a/b"}"#)] {
        let answer = sidecar.post(&request("1", method, params)).await;
        assert_eq!((&answer["error"]["code"], &denial(&answer)["reason"]), (&403.into(), &"result_too_large".into()));
        until("the count", async || {
            let labels = [("operation", method), ("decision", "denied"), ("reason", "result_too_large")];
            sidecar.scrape().await.sum("toolweir_operations_total", &labels) == 1.0
        })
        .await;
    }
}
