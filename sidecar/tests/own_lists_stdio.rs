//! Over stdio too, a call whose decision depends on a definition that is not known waits until the sidecar has listed the server's tools by
//! itself; what the client sends meanwhile keeps its place behind it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::float_cmp)]

mod common;

use std::time::Duration;

use common::{
    call, denial,
    metrics::Scrape,
    pins::{get_balance, page, pay, pay_in_other_words, pinned},
    pipes::Between,
    request, result, until, within,
};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use toolweir_sidecar::stdio::gate::ToolListState;

/// A client and a server whose tool `pay` is pinned, where a call waits so long for a list.
fn between(wait: Duration) -> Between {
    let policy = pinned("X", &[pay()]).replace("    url: X\n", "    requests: [{name: roots}]\n");
    Between::started_with(&policy, 1 << 20, |gate| gate.lists = ToolListState::with_wait(wait))
}

const LONG: Duration = Duration::from_secs(10);

/// The list that the sidecar asks the server for next, as far as it says which.
async fn asked(between: &mut Between) -> Value {
    let list: Value = serde_json::from_str(&between.forwarded().await).unwrap();
    assert_eq!(list["method"], "tools/list", "{list}");
    list
}

async fn say(between: &mut Between, message: &str) {
    within("the server's pipe", between.server.write_all(format!("{message}\n").as_bytes())).await.unwrap();
}

fn counted(between: &Between, outcome: &str) -> f64 {
    let text = String::from_utf8(between.governor.metrics.registry.encode().unwrap()).unwrap();
    Scrape::parse(&text).sum("toolweir_own_lists_total", &[("server", "bank"), ("outcome", outcome)])
}

fn call_pay(id: u32) -> String {
    call(&id.to_string(), "pay", r#"{"amount":1.0}"#)
}

#[tokio::test]
async fn a_pinned_tool_that_is_called_first_passes_where_its_server_lists_it_so() {
    let mut between = between(LONG);
    between.ask(&call_pay(7)).await;
    let list = asked(&mut between).await;
    assert_eq!(list, json!({"jsonrpc": "2.0", "id": list["id"], "method": "tools/list"}));
    say(&mut between, &page(&list["id"], &[get_balance()], Some("2"))).await;
    let next = asked(&mut between).await;
    assert_eq!(next["params"], json!({"cursor": "2"}));
    say(&mut between, &page(&next["id"], &[pay()], None)).await;
    assert_eq!(between.forwarded().await, call_pay(7));
    // The client sees nothing of the list.
    assert_eq!(between.answer(&result("7")).await, result("7"));
    between.ask(&call_pay(8)).await;
    assert_eq!(between.forwarded().await, call_pay(8));
    assert_eq!(counted(&between, "complete"), 1.0);
}

#[tokio::test]
async fn of_a_modern_call_the_list_says_who_asks() {
    let mut between = between(LONG);
    let version = r#""io.modelcontextprotocol/protocolVersion":"2026-07-28""#;
    between.ask(&request("7", "tools/call", &format!(r#"{{"name":"pay","_meta":{{"progressToken":1,{version}}}}}"#))).await;
    let list = asked(&mut between).await;
    assert_eq!(list["params"], serde_json::from_str::<Value>(&format!(r#"{{"_meta":{{{version}}}}}"#)).unwrap());
}

#[tokio::test]
async fn a_tool_that_is_listed_otherwise_or_not_at_all_is_denied() {
    type Answer = fn(&Value) -> String;
    let rows: [(&str, &str, Answer); 4] = [
        ("pin_drift", "complete", |id| page(id, &[pay_in_other_words()], None)),
        ("pin_unverified", "complete", |id| page(id, &[get_balance()], None)),
        ("pin_unverified", "failed", |id| json!({"jsonrpc": "2.0", "id": id, "error": {"code": 1, "message": "no"}}).to_string()),
        ("pin_unverified", "failed", |id| format!("{{\"id\":{id},garbage")),
    ];
    for (reason, outcome, answer) in rows {
        let mut between = between(LONG);
        between.ask(&call_pay(7)).await;
        let list = asked(&mut between).await;
        say(&mut between, &answer(&list["id"])).await;
        assert_eq!(denial(&between.answered().await)["reason"], reason);
        assert_eq!(counted(&between, outcome), 1.0, "{reason}");
        assert_eq!(between.counted("tools/call", "denied"), 1.0);
    }
}

#[tokio::test]
async fn what_the_client_sends_meanwhile_keeps_its_place_and_its_answers_pass() {
    let mut between = between(LONG);
    between.ask(&call_pay(7)).await;
    let list = asked(&mut between).await;
    // The server asks the client for something before it lists.
    let roots = r#"{"jsonrpc":"2.0","id":1,"method":"roots/list"}"#;
    assert_eq!(between.answer(roots).await, roots);
    let behind =
        [call_pay(8), request("9", "ping", "{}"), r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#.to_owned()];
    for message in &behind {
        between.ask(message).await;
    }
    let answer = r#"{"jsonrpc":"2.0","id":1,"result":{"roots":[]}}"#;
    between.ask(answer).await;
    between.ask(r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":7}}"#).await;
    assert_eq!(between.forwarded().await, answer);
    // What cannot be read waits for nothing.
    between.ask("{").await;
    assert_eq!(between.answered().await["error"]["code"], -32700);
    say(&mut between, &page(&list["id"], &[pay()], None)).await;
    assert_eq!(between.forwarded().await, call_pay(7));
    for message in &behind {
        assert_eq!(between.forwarded().await, *message);
    }
    assert!(between.forwarded().await.contains("notifications/cancelled"));
    assert_eq!(between.counted("tools/call", "cancelled"), 1.0);
}

#[tokio::test]
async fn a_list_that_does_not_come_is_waited_for_once_and_calls_behind_it_wait_no_longer() {
    let mut between = between(Duration::from_millis(300));
    let began = std::time::Instant::now();
    for id in 1..=20 {
        between.ask(&call_pay(id)).await;
    }
    let list = asked(&mut between).await;
    for id in 1..=20 {
        let answer = between.answered().await;
        assert_eq!((&answer["id"], &denial(&answer)["reason"]), (&json!(id), &json!("pin_unverified")));
    }
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(counted(&between, "timeout"), 1.0);
    // Late, it is no answer for the client, but it says what the tools are.
    say(&mut between, &page(&list["id"], &[pay()], None)).await;
    assert_eq!(between.answer(&result("0")).await, result("0"));
    between.ask(&call_pay(21)).await;
    let mut next = between.forwarded().await;
    while next.contains("tools/list") {
        next = between.forwarded().await;
    }
    assert_eq!(next, call_pay(21));
}

#[tokio::test]
async fn a_tool_that_is_not_there_makes_one_list() {
    let mut between = between(LONG);
    for id in 1..=50 {
        between.ask(&call(&id.to_string(), &format!("made_up_{id}"), "{}")).await;
    }
    let list = asked(&mut between).await;
    say(&mut between, &page(&list["id"], &[pay()], None)).await;
    for id in 1..=50 {
        assert_eq!(between.answered().await["id"], id);
    }
    assert_eq!(counted(&between, "complete"), 1.0);
    between.ask(&call_pay(51)).await;
    assert_eq!(between.forwarded().await, call_pay(51));
}

#[tokio::test]
async fn a_client_that_has_said_everything_still_gets_its_answer() {
    let mut between = between(LONG);
    between.ask(&call_pay(7)).await;
    between.client.shutdown().await.unwrap();
    let list = asked(&mut between).await;
    say(&mut between, &page(&list["id"], &[pay()], None)).await;
    assert_eq!(between.forwarded().await, call_pay(7));
    assert_eq!(within("the end", between.to_server.next_line()).await.unwrap(), None);
    assert_eq!(between.answer(&result("7")).await, result("7"));
}

#[tokio::test]
async fn calls_that_wait_when_the_server_ends_are_answered_and_written_down() {
    let mut between = between(LONG);
    between.ask(&call_pay(7)).await;
    between.ask(&call_pay(8)).await;
    asked(&mut between).await;
    between.server.shutdown().await.unwrap();
    for id in [7, 8] {
        let answer = between.answered().await;
        assert_eq!((&answer["id"], &denial(&answer)["reason"]), (&json!(id), &json!("pin_unverified")));
    }
    until("the audit log", async || between.audit.text().lines().count() == 2).await;
    assert_eq!(counted(&between, "failed"), 1.0);
}
