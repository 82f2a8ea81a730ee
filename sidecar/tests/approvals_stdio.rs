//! Calls that a person must approve, over stdio: they wait beside the other lines.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::float_cmp)]

mod common;

use common::{
    call, denial,
    pipes::{Between, LONGEST},
    request, result, until, within,
};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use toolweir_approvals::Decided;

const ASKS: &str = "[{name: pay, approval: {hold: 8s}}, {name: read}]";

fn between(tools: &str) -> Between {
    let between = Between::new(tools);
    between.governor.approvals().ask_locally();
    between
}

async fn held(between: &Between, count: i64) {
    until("the calls that wait", async || between.governor.metrics.approvals.held.get() == count).await;
}

async fn decide(between: &Between, approve: bool) -> String {
    let waiting = || between.governor.approvals().waiting();
    until("a request", async || !waiting().is_empty()).await;
    let name = waiting()[0].name.to_string();
    let decided = Decided { approve, by: "uid 1 (eve)".to_owned(), reason: None, until: None };
    between.governor.approvals().decide(&name, &decided).await.unwrap();
    name
}

fn pay(id: u32) -> String {
    call(&id.to_string(), "pay", r#"{"amount":1}"#)
}

#[tokio::test]
async fn others_pass_while_a_call_waits_and_it_passes_when_it_is_approved() {
    let mut between = between(ASKS);
    between.ask(&pay(1)).await;
    held(&between, 1).await;
    for id in ["2", "3"] {
        between.ask(&call(id, "read", "{}")).await;
        assert_eq!(between.forwarded().await, call(id, "read", "{}"));
        assert_eq!(between.answer(&result(id)).await, result(id));
    }
    // Its id is its own meanwhile.
    between.ask(&call("1", "read", "{}")).await;
    assert_eq!(between.answered().await["result"]["isError"], true);
    decide(&between, true).await;
    assert_eq!(between.forwarded().await, pay(1));
    assert_eq!(between.answer(&result("1")).await, result("1"));
    held(&between, 0).await;
    assert_eq!((between.counted("tools/call", "ok"), between.counted("tools/call", "refused")), (3.0, 1.0));
    // It is used.
    between.ask(&pay(4)).await;
    held(&between, 1).await;
    let name = decide(&between, false).await;
    let answer = between.answered().await;
    assert_eq!((&answer["id"], &denial(&answer)["reason"]), (&json!(4), &json!("approval_denied")));
    assert_eq!(answer["result"]["content"][0]["text"], format!("Denied by a person ({name})."));
}

#[tokio::test]
async fn a_call_that_waits_can_be_cancelled_and_its_request_stands() {
    let mut between = between(ASKS);
    between.ask(&pay(1)).await;
    held(&between, 1).await;
    let cancel = request("0", "notifications/cancelled", r#"{"requestId":1}"#).replace(r#""id":0,"#, "");
    between.ask(&cancel).await;
    assert_eq!(between.forwarded().await, cancel);
    held(&between, 0).await;
    until("the count", async || between.counted("tools/call", "cancelled") == 1.0).await;
    decide(&between, true).await;
    between.ask(&pay(2)).await;
    assert_eq!(between.forwarded().await, pay(2));
    until("the lines", async || between.audit.text().lines().count() == 4).await;
    assert!(between.audit.text().contains(r#""outcome":"cancelled""#));
}

#[tokio::test]
async fn calls_that_wait_are_answered_when_the_client_or_the_server_ends() {
    for client_ends in [true, false] {
        let mut between = between(ASKS);
        between.ask(&pay(1)).await;
        held(&between, 1).await;
        if client_ends {
            between.client.shutdown().await.unwrap();
        } else {
            between.server.shutdown().await.unwrap();
        }
        let answer = between.answered().await;
        assert_eq!((&answer["id"], &denial(&answer)["reason"]), (&json!(1), &json!("approval_pending")), "{client_ends}");
        until("the count", async || between.counted("tools/call", "denied") == 1.0).await;
        if client_ends {
            between.server.shutdown().await.unwrap();
        }
        within("the end", between.relay).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn lines_that_wait_are_bounded_and_more_are_answered_at_once() {
    let mut between = between(ASKS);
    let long = |id: u32| call(&id.to_string(), "pay", &format!(r#"{{"n":{id},"text":"{}"}}"#, "x".repeat(LONGEST / 2)));
    between.ask(&long(1)).await;
    held(&between, 1).await;
    between.ask(&long(2)).await;
    let answer = between.answered().await;
    assert_eq!((&answer["id"], &denial(&answer)["reason"]), (&json!(2), &json!("approval_pending")));
    assert_eq!(between.governor.approvals().waiting().len(), 2);
}
