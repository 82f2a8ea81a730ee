//! When the policies change, clients are told that lists have changed, where their server has agreed to tell them: in
//! the era of 2026-07-28 by subscription, before that as the answer to `initialize` declares.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::time::Duration;

use common::{
    client::{Ask, Wire},
    policy, request,
    sidecar::Sidecar,
    upstream::{Feed, Reply, Upstream},
};
use tokio::sync::mpsc;

const EVENTS: &str = "text/event-stream";
const CHANGED: &str = "event: message\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/tools/list_changed\"}\n\n";
const DECLARES: &str = r#"{"jsonrpc":"2.0","id":1,"result":{"capabilities":{"tools":{"listChanged":true}}}}"#;

/// A server whose GET streams and subscriptions come bit by bit, and that answers `initialize` with this.
async fn before(kind: &'static str, initialized: String) -> (Upstream, Sidecar, mpsc::UnboundedReceiver<Feed>) {
    let (feeds, opened) = mpsc::unbounded_channel();
    let upstream = Upstream::start(move |seen| {
        if seen.method == "DELETE" {
            return Reply::status(200);
        }
        if seen.method == "POST" && !seen.text().contains("subscriptions/listen") {
            return Reply::new(200, kind, initialized.clone()).with("mcp-session-id", "s-1");
        }
        let (reply, feed) = Reply::events();
        feeds.send(feed).unwrap();
        reply
    })
    .await;
    let sidecar = Sidecar::start(&policy(&upstream.url(), "[{name: pay}]")).await;
    (upstream, sidecar, opened)
}

/// Brings another policy into force, and waits until it is.
async fn change(upstream: &Upstream, sidecar: &Sidecar, tools: &str) {
    replace(sidecar, &policy(&upstream.url(), tools)).await;
}

async fn replace(sidecar: &Sidecar, text: &str) {
    let before = sidecar.governor.in_force().version.clone();
    sidecar.folder.write("policy.yaml", text);
    common::until("the policy", async || sidecar.governor.in_force().version != before).await;
}

/// The client's stream up to an event of the server that says `end`.
async fn up_to_end(wire: &mut Wire, feed: &Feed) -> String {
    // What is told is told at once; this is for what must not be.
    tokio::time::sleep(Duration::from_millis(50)).await;
    feed.send("data: end\n\n").await;
    wire.text_up_to("data: end\n\n").await
}

fn acknowledges(id: &str, notifications: &str) -> String {
    format!(
        r#"data: {{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{{"_meta":{{"io.modelcontextprotocol/subscriptionId":{id}}},"notifications":{notifications}}}}}"#
    )
}

#[tokio::test]
async fn a_change_of_policy_is_told_to_subscriptions_that_the_server_acknowledged() {
    let (upstream, sidecar, mut opened) = before("application/json", String::new()).await;
    let listen = Ask::post(request("\"a\"", "subscriptions/listen", r#"{"notifications":{"toolsListChanged":true}}"#));
    for (notifications, told) in [
        (r#"{"toolsListChanged":true}"#, &["tools"][..]),
        (r#"{"promptsListChanged":true,"toolsListChanged":false}"#, &["prompts"]),
        (r#"{"resourcesListChanged":true,"toolsListChanged":true}"#, &["tools", "resources"]),
        (r#"{"tasksListChanged":true}"#, &[]),
        ("{}", &[]),
    ] {
        let (mut wire, status, _) = Wire::open(sidecar.address, &listen).await;
        let feed = opened.recv().await.unwrap();
        let acknowledged = acknowledges("\"a\"", notifications);
        // Not before it is acknowledged.
        feed.send(": hello\n\n").await;
        assert_eq!((status, wire.text_up_to("\n\n").await.as_str()), (200, ": hello\n\n"));
        change(&upstream, &sidecar, "[{name: pay}, {name: early}]").await;
        feed.send(&format!("{acknowledged}\n\n")).await;
        assert_eq!(wire.text_up_to("\n\n").await, format!("{acknowledged}\n\n"));
        // Nothing is put into an event.
        feed.send(": c\ndata: b").await;
        assert_eq!(wire.text_up_to("\n").await, ": c\n");
        change(&upstream, &sidecar, "[{name: pay}]").await;
        change(&upstream, &sidecar, "[{name: other}]").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        feed.send("\n\n").await;
        let one = CHANGED.replace("\"}", r#"","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":"a"}}}"#);
        let told: String = told.iter().map(|list| one.replace("tools", list)).collect();
        assert_eq!(up_to_end(&mut wire, &feed).await, format!("data: b\n\n{told}data: end\n\n"), "{notifications}");
        change(&upstream, &sidecar, "[{name: pay}]").await;
    }
}

#[tokio::test]
async fn a_change_of_policy_is_told_on_the_stream_of_a_session_whose_server_declared_it() {
    let all = DECLARES.replace(
        r#""tools":{"listChanged":true}"#,
        r#""tools":{"listChanged":true},"prompts":{"listChanged":true},"resources":{"listChanged":true}"#,
    );
    for (kind, body, told) in [
        ("application/json", DECLARES.to_owned(), &["tools"][..]),
        (EVENTS, format!("id: 1\ndata: {DECLARES}\n\n"), &["tools"]),
        (EVENTS, format!("id: 1\ndata: {all}\n\n"), &["tools", "prompts", "resources"]),
        ("application/json", DECLARES.replace("true", "false"), &[]),
        ("application/json", DECLARES.replace("tools", "prompts"), &["prompts"]),
        ("application/json", DECLARES.replace("tools", "tasks"), &[]),
    ] {
        let (upstream, sidecar, mut opened) = before(kind, body.clone()).await;
        let initialized = sidecar.ask(&Ask::post(request("1", "initialize", "{}"))).await;
        assert_eq!(initialized.text(), body);
        let told: String = told.iter().map(|list| CHANGED.replace("tools", list)).collect();
        for (session, told) in [("s-1", told.as_str()), ("s-2", "")] {
            let (mut wire, _, _) = Wire::open(sidecar.address, &Ask::get().with("mcp-session-id", session)).await;
            let feed = opened.recv().await.unwrap();
            change(&upstream, &sidecar, &format!("[{{name: \"{session}\"}}]")).await;
            assert_eq!(up_to_end(&mut wire, &feed).await, format!("{told}data: end\n\n"), "{body} {session}");
        }
        // What governs another server is no change.
        let (mut wire, _, _) = Wire::open(sidecar.address, &Ask::get().with("mcp-session-id", "s-1")).await;
        let feed = opened.recv().await.unwrap();
        let shop = policy(&upstream.url(), "[{name: pay}]").replace("bank", "shop");
        let both = format!("{}---\n{shop}", policy(&upstream.url(), "[{name: \"s-2\"}]"));
        replace(&sidecar, &both).await;
        assert_eq!(up_to_end(&mut wire, &feed).await, "data: end\n\n", "{body}");
        // A session that has ended is no session.
        assert_eq!(sidecar.ask(&Ask::delete().with("mcp-session-id", "s-1")).await.status, 200);
        let (mut wire, _, _) = Wire::open(sidecar.address, &Ask::get().with("mcp-session-id", "s-1")).await;
        let feed = opened.recv().await.unwrap();
        change(&upstream, &sidecar, "[{name: last}]").await;
        assert_eq!(up_to_end(&mut wire, &feed).await, "data: end\n\n", "{body}");
    }
}

#[tokio::test]
async fn a_change_of_policy_is_told_on_a_stream_of_http_and_sse() {
    let resources = DECLARES.replace("tools", "resources");
    for (initialized, told) in [
        (DECLARES.to_owned(), CHANGED.to_owned()),
        (resources, CHANGED.replace("tools", "resources")),
        (DECLARES.replace("true", "false"), String::new()),
    ] {
        let (upstream, sidecar, mut opened) = before(EVENTS, String::new()).await;
        let (mut wire, _, _) = Wire::open(sidecar.address, &Ask::get()).await;
        let feed = opened.recv().await.unwrap();
        feed.send("event: endpoint\ndata: /m\n\n").await;
        wire.text_up_to("\n\n").await;
        feed.send(&format!("event: message\ndata: {initialized}\n\n")).await;
        wire.text_up_to("\n\n").await;
        change(&upstream, &sidecar, "[{name: other}]").await;
        assert_eq!(up_to_end(&mut wire, &feed).await, format!("{told}data: end\n\n"));
    }
}
