//! `notifications/cancelled` over Streamable HTTP: the call that it names leaves its place of `maxConcurrent`, once the server
//! has taken the notification. HTTP+SSE and stdio: `streams.rs`, `stdio.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::float_cmp)]

mod common;

use common::{
    call,
    client::{Ask, Wire},
    denial, policy, result,
    sidecar::Sidecar,
    upstream::{Feed, Reply, Upstream},
    within,
};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

/// A server that, with calls, waits for a signal, or begins an event stream at once, as their argument says.
enum Began {
    Waits(oneshot::Sender<()>),
    Streams(Feed),
}

/// A sidecar before a server that takes all notifications but those with the reason `no`.
struct Bank {
    upstream: Upstream,
    sidecar: Sidecar,
    began: mpsc::UnboundedReceiver<Began>,
}

impl Bank {
    async fn start(tools: &str) -> Self {
        let (begins, began) = mpsc::unbounded_channel();
        let upstream = Upstream::start(move |seen| {
            let message = seen.json();
            if message["method"] == "notifications/cancelled" {
                return Reply::status(if message["params"]["reason"] == "no" { 400 } else { 202 });
            }
            if message["params"]["arguments"]["stream"] == true {
                let (reply, feed) = Reply::events();
                begins.send(Began::Streams(feed)).unwrap();
                return reply;
            }
            let (signal, wait) = oneshot::channel();
            begins.send(Began::Waits(signal)).unwrap();
            Reply::json(result(&message["id"].to_string())).after(wait)
        })
        .await;
        let sidecar = Sidecar::start(&policy(&upstream.url(), tools)).await;
        Self { upstream, sidecar, began }
    }

    /// Begins a call, and gives both ends once it is at the server.
    async fn begin(&mut self, session: &str, id: &str, arguments: &str) -> (Wire, Began) {
        let mut wire = Wire::connect(self.sidecar.address).await;
        wire.write(&of(session, &call(id, "pay", arguments)).bytes("localhost")).await;
        (wire, within("the call at the server", self.began.recv()).await.unwrap())
    }

    /// Returns true if a call finds no place.
    async fn is_full(&self, session: &str) -> bool {
        let seen = self.upstream.seen().len();
        let answer = self.sidecar.ask(&of(session, &call("99", "pay", "{}"))).await.json();
        let full = answer["result"]["isError"] == true && denial(&answer)["reason"] == "concurrency";
        assert_eq!(self.upstream.seen().len(), seen, "{answer}");
        full
    }

    async fn cancel(&self, session: &str, params: &str) -> u16 {
        let notification = format!(r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{params}}}"#);
        self.sidecar.ask(&of(session, &notification)).await.status
    }
}

/// A message of a session, or of none.
fn of(session: &str, body: &str) -> Ask {
    let ask = Ask::post(body);
    if session.is_empty() { ask } else { ask.with("mcp-session-id", session) }
}

#[tokio::test]
async fn a_cancelled_call_leaves_its_place_and_its_line_says_so() {
    for session in ["s1", ""] {
        let mut bank = Bank::start("[{name: pay, maxConcurrent: 1}]").await;
        let (mut first, signal) = bank.begin(session, "7", "{}").await;
        let Began::Waits(signal) = signal else { panic!("it streams") };
        assert!(bank.is_full(session).await);
        // None of these names it, and one that the server does not take stops nothing there.
        for (of, params, status) in [
            ("s2", r#"{"requestId":7}"#, 202),
            (session, r#"{"requestId":"7"}"#, 202),
            (session, r#"{"requestId":8}"#, 202),
            (session, r#"{"requestId":null}"#, 202),
            (session, r#"{"requestId":{"a":1}}"#, 202),
            (session, "{}", 202),
            (session, r#"{"requestId":7,"reason":"no"}"#, 400),
        ] {
            assert_eq!(bank.cancel(of, params).await, status, "{params}");
            assert!(bank.is_full(session).await, "{of}: {params}");
        }
        assert_eq!(bank.cancel(session, r#"{"requestId":7.0,"reason":"slow"}"#).await, 202);
        let (mut second, other) = bank.begin(session, "7", "{}").await;
        // The server answers the first all the same. That passes, and frees no other's place.
        signal.send(()).unwrap();
        assert_eq!(first.answer().await.json()["id"], 7);
        assert!(bank.is_full(session).await);
        let Began::Waits(other) = other else { panic!("it streams") };
        other.send(()).unwrap();
        assert_eq!(second.answer().await.json()["id"], 7);
        let lines = bank.sidecar.audit(11).await;
        let outcomes: Vec<_> = lines.iter().map(|line| &line["outcome"]).filter(|outcome| *outcome != "denied").collect();
        assert_eq!(outcomes, [&json!("cancelled"), &json!("ok")]);
        assert_eq!((bank.sidecar.counted("cancelled").await, bank.sidecar.counted("ok").await), (1.0, 8.0));
    }
}

#[tokio::test]
async fn a_call_whose_answer_has_begun_leaves_its_place_as_well() {
    let mut bank = Bank::start("[{name: pay, maxConcurrent: 1}]").await;
    let (mut wire, began) = bank.begin("s1", "7", r#"{"stream":true}"#).await;
    assert_eq!(wire.head().await.0, 200);
    assert!(bank.is_full("s1").await);
    assert_eq!(bank.cancel("s1", r#"{"requestId":7}"#).await, 202);
    let (_second, _signal) = bank.begin("s1", "8", "{}").await;
    let Began::Streams(feed) = began else { panic!("it waits") };
    feed.send("data: {}\n\n").await;
    wire.text_up_to("\n\n").await;
    // Its line was written with the head of its answer.
    assert_eq!(bank.sidecar.audit(2).await[0]["outcome"], "ok");
}

#[tokio::test]
async fn a_client_that_cancels_and_hangs_up_has_cancelled() {
    let mut bank = Bank::start("[{name: pay, maxConcurrent: 1}]").await;
    let (wire, _signal) = bank.begin("s1", "7", "{}").await;
    assert_eq!(bank.cancel("s1", r#"{"requestId":7}"#).await, 202);
    drop(wire);
    assert_eq!(bank.sidecar.audit(1).await[0]["outcome"], "cancelled");
}

#[tokio::test]
async fn a_name_that_two_calls_have_frees_neither() {
    let mut bank = Bank::start("[{name: pay, maxConcurrent: 2}]").await;
    let (mut first, signal) = bank.begin("", "1", "{}").await;
    let (_second, _signal) = bank.begin("", "1", "{}").await;
    assert_eq!(bank.cancel("", r#"{"requestId":1}"#).await, 202);
    assert!(bank.is_full("").await);
    let Began::Waits(signal) = signal else { panic!("it streams") };
    signal.send(()).unwrap();
    first.answer().await;
    let (_third, _signal) = bank.begin("", "2", "{}").await;
    assert!(bank.is_full("").await);
    // Now it names one.
    assert_eq!(bank.cancel("", r#"{"requestId":1}"#).await, 202);
    let (_fourth, _signal) = bank.begin("", "3", "{}").await;
    assert!(bank.is_full("").await);
}
