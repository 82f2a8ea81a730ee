//! `POST /explain` says what would be decided on a call and why, and takes nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{
    call,
    client::{Answer, Ask, Http, Wire},
    denial, policy,
    sidecar::Sidecar,
    until,
    upstream::Upstream,
};
use serde_json::{Value, json};
use toolweir_sidecar::explain::{AT_ONCE, LARGEST};

async fn asked(sidecar: &Sidecar, question: &str) -> Answer {
    Ask::post(question).to("/explain").over(Http::One, sidecar.admin).await
}

async fn explained(sidecar: &Sidecar, question: &Value) -> Value {
    let answer = asked(sidecar, &question.to_string()).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"), "{}", answer.text());
    answer.json()
}

#[tokio::test]
async fn it_says_what_the_model_would_be_told_and_how_full_each_limit_is() {
    let upstream = Upstream::bank().await;
    let tools = "[{name: pay, limits: [{max: 2, window: hour}], validations: [{expression: \"args.n < 3\", message: Too much.}]}, \
                 {name: \"p*\", limits: [{max: 9, window: day, key: args.n}], maxConcurrent: 4}, {name: wipe, action: Deny}]";
    let guard = policy(&upstream.url(), "[{name: \"*\", action: Allow, limits: [{max: 1, window: hour}]}]")
        .replace("name: bank, namespace: agents", "name: guard, namespace: agents")
        .replace("spec:\n", "spec:\n  mode: Audit\n");
    let sidecar = Sidecar::start(&format!("{}---\n{guard}", policy(&upstream.url(), tools))).await;
    let pay = json!({"tool": "pay", "arguments": {"n": 1}});
    let before = explained(&sidecar, &pay).await;
    assert_eq!((&before["decision"], &before["server"]), (&json!("allowed"), &json!("bank")));
    assert_eq!((&before["servers"], &before["wouldDeny"]), (&json!(["bank"]), &json!([])));
    assert_eq!(before["version"], sidecar.governor.in_force().version);
    for used in 1..=2 {
        assert_eq!(sidecar.reason(&call("1", "pay", "{\"n\":1}")).await, "none");
        let now = explained(&sidecar, &pay).await;
        let entries = &now["policies"][0]["servers"][0]["entries"];
        let limit = &entries[0]["limits"][0];
        assert_eq!((&limit["used"], &limit["left"]), (&json!(f64::from(used)), &json!(f64::from(2 - used))), "{now:#}");
        assert_eq!((&limit["adds"], &limit["fits"]), (&json!(1.0), &json!(used < 2)));
        let keyed = &entries[1]["limits"][0];
        assert_eq!((&keyed["key"], &keyed["keyValue"], &keyed["used"]), (&json!("args.n"), &json!("1"), &json!(f64::from(used))));
        assert_eq!(entries[1]["maxConcurrent"], json!({"max": 4, "underWay": 0}));
        assert_eq!(entries[0]["validations"], json!([{"expression": "args.n < 3", "holds": true}]));
        // Of another key, nothing is used.
        let other = explained(&sidecar, &json!({"tool": "pay", "arguments": {"n": 2}})).await;
        assert_eq!(other["policies"][0]["servers"][0]["entries"][1]["limits"][0]["used"], 0.0);
    }
    let denied = explained(&sidecar, &pay).await;
    let told = sidecar.post(&call("1", "pay", "{\"n\":1}")).await;
    assert_eq!(denied["verdict"]["message"], told["result"]["content"][0]["text"]);
    assert_eq!(denied["verdict"]["retryAfterSeconds"], denial(&told)["retryAfterSeconds"]);
    assert_eq!((&denied["decision"], &denied["verdict"]["reason"]), (&json!("denied"), &json!("rate_limit")));
    assert_eq!((&denied["verdict"]["policy"], &denied["verdict"]["entry"]), (&json!("agents/bank"), &json!("pay")));
    let guard = &denied["policies"][1];
    assert_eq!((&guard["policy"], &guard["mode"]), (&json!("agents/guard"), &json!("Audit")));
    assert_eq!((&guard["verdict"]["allowed"], &guard["verdict"]["reason"]), (&json!(false), &json!("rate_limit")));

    let much = explained(&sidecar, &json!({"tool": "pay", "arguments": {"n": 3}, "server": "bank"})).await;
    assert_eq!(much["verdict"]["message"], "Denied by policy agents/bank: Too much.");
    // Where the arguments that a key reads are left out, the fullest count is told.
    let none = explained(&sidecar, &json!({"tool": "pay"})).await;
    let keyed = &none["policies"][0]["servers"][0]["entries"][1]["limits"][0];
    assert_eq!((&keyed["used"], &keyed["fullest"]), (&json!(2.0), &json!(true)), "{keyed}");
    assert!(keyed["error"].as_str().unwrap().starts_with("the key `args.n` of a limit could not be evaluated"), "{keyed}");

    let wipe = explained(&sidecar, &json!({"tool": "wipe"})).await;
    let said = &wipe["policies"][0]["servers"][0];
    assert_eq!((&said["entry"], &said["action"], &said["defaultAction"]), (&json!("wipe"), &json!("Deny"), &json!("Deny")));
    let elsewhere = explained(&sidecar, &json!({"tool": "pay", "server": "nowhere"})).await;
    assert_eq!((&elsewhere["verdict"]["reason"], &elsewhere["policies"]), (&json!("no_policy"), &json!([])));
    // Nothing of all that was counted as a call, or against a limit.
    assert_eq!(upstream.seen().len(), 2);
    assert_eq!(sidecar.audit(3).await.len(), 3);
}

#[tokio::test]
async fn what_is_no_tool_is_explained_as_it_would_be_decided() {
    let upstream = Upstream::bank().await;
    let lists = "prompts: [{name: review, limits: [{max: 2, window: hour}], validations: [{expression: \"args.n == '1'\"}]}]\n    \
                 resources: [{uri: \"file:///plans/*\"}]\n    requests: [{name: sampling, validations: [{expression: 'args.maxTokens < 9'}]}]\n    \
                 defaultActions: {other: Allow}\n";
    let text = format!("{}    {lists}", policy(&upstream.url(), "[{name: review, action: Deny}]"));
    let sidecar = Sidecar::start(&text).await;
    for (question, decision, reason) in [
        (json!({"prompt": "review", "arguments": {"n": "1"}}), "allowed", "none"),
        (json!({"prompt": "review", "arguments": {"n": "2"}}), "denied", "validation"),
        (json!({"prompt": "other"}), "denied", "not_listed"),
        (json!({"tool": "review"}), "denied", "denied"),
        (json!({"resource": "file:///plans/a.txt"}), "allowed", "none"),
        (json!({"resource": "file:///etc/passwd"}), "denied", "not_listed"),
        (json!({"request": "sampling", "arguments": {"maxTokens": 8}}), "allowed", "none"),
        (json!({"request": "sampling", "arguments": {"maxTokens": 9}}), "denied", "validation"),
        (json!({"request": "roots"}), "denied", "not_listed"),
        (json!({"method": "logging/setLevel"}), "allowed", "none"),
        (json!({"prompt": "review", "server": "nowhere"}), "denied", "no_policy"),
    ] {
        let said = explained(&sidecar, &question).await;
        assert_eq!((&said["decision"], &said["verdict"]["reason"]), (&json!(decision), &json!(reason)), "{question}: {said:#}");
    }
    let said = explained(&sidecar, &json!({"prompt": "review", "arguments": {"n": "1"}})).await;
    assert_eq!((&said["kind"], &said["tool"]), (&json!("prompt"), &json!("review")));
    assert_eq!(said["policies"][0]["servers"][0]["entries"][0]["limits"][0]["used"], 0.0, "nothing was taken");
    assert_eq!(explained(&sidecar, &json!({"tool": "review"})).await.get("kind"), None);
}

#[tokio::test]
async fn a_call_under_way_is_seen_and_none_is_added() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&policy(&upstream.url(), "[{name: pay, maxConcurrent: 1}]")).await;
    let call = toolweir_engine::Call {
        server: "bank",
        operation: toolweir_engine::Operation::tool("pay"),
        arguments: None,
        session: "",
        seen: None,
    };
    let places = async || {
        let answer = explained(&sidecar, &json!({"tool": "pay"})).await;
        let places = answer["policies"][0]["servers"][0]["entries"][0]["maxConcurrent"]["underWay"].as_u64().unwrap();
        (answer["verdict"]["reason"].as_str().unwrap().to_owned(), places)
    };
    assert_eq!(places().await, ("none".to_owned(), 0));
    let under_way = sidecar.governor.in_force().engine.decide(&call, sidecar.governor.now());
    assert_eq!(places().await, ("concurrency".to_owned(), 1));
    drop(under_way);
    assert_eq!(places().await, ("none".to_owned(), 0));
}

#[tokio::test]
async fn the_server_may_be_left_out_where_there_is_one() {
    let upstream = Upstream::bank().await;
    let one = policy(&upstream.url(), "[]");
    let sidecar = Sidecar::start(&format!("{one}---\n{}", one.replace("bank", "shop"))).await;
    let answer = asked(&sidecar, r#"{"tool":"x"}"#).await;
    assert_eq!((answer.status, answer.text().as_str()), (400, "which server? There are bank, shop; name one as `server`\n"));
    assert_eq!(explained(&sidecar, &json!({"tool": "x", "server": "shop"})).await["verdict"]["reason"], "not_listed");
}

#[tokio::test]
async fn what_is_no_question_is_refused_and_so_are_too_many() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&policy(&upstream.url(), "[]")).await;
    assert_eq!(asked(&sidecar, "{}").await.status, 400);
    assert_eq!(asked(&sidecar, &format!("{{\"tool\":\"{}\"}}", "x".repeat(LARGEST))).await.status, 413);
    let question = Ask::post(r#"{"tool":"x"}"#).to("/explain");
    for strange in [question.clone().with("host", "evil.example"), question.clone().with("origin", "http://localhost")] {
        assert_eq!(strange.over(Http::One, sidecar.admin).await.status, 403);
    }
    assert_eq!(question.clone().method("GET").over(Http::One, sidecar.admin).await.status, 404);
    assert_eq!(question.clone().over(Http::One, sidecar.metrics).await.status, 404);
    // Questions that do not end keep their places until they are given up.
    let mut slow = Vec::new();
    for _ in 0..AT_ONCE {
        let mut wire = Wire::connect(sidecar.admin).await;
        wire.write(b"POST /explain HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{").await;
        slow.push(wire);
    }
    let busy = async || question.clone().over(Http::One, sidecar.admin).await.status == 503;
    until("the places to be taken", busy).await;
    drop(slow);
    until("a place", async || !busy().await).await;
}
