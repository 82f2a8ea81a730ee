//! Every method of MCP over stdio, in both directions: what policies let by passes byte for byte, and what they do not never reaches the
//! other side.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::float_cmp)]

mod common;

use std::time::{Duration, Instant};

use common::{
    call, denial,
    metrics::Scrape,
    pipes::{Between, LONGEST},
    request, result, until, within,
};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use toolweir_approvals::Decided;

/// Members of a server that let by what the rows of the tests ask for.
const ALLOWS: &str = "[{name: pay}]
    prompts: [{name: \"review_*\"}]
    resources: [{uri: \"file:///data/*\"}]
    requests: [{name: sampling}, {name: elicitation}, {name: roots}]
    defaultActions: {other: Allow}";

/// Members of a server that let by nothing.
const DENIES: &str = "[]
    prompts: []
    resources: []
    requests: []
    defaultActions: {other: Deny}";

const PAGE: &str = r#"{"uri":"file:///data/a"}"#;

/// Requests of a client that are decided on.
const ASKED: [(&str, &str); 13] = [
    ("tools/call", r#"{"name":"pay","arguments":{"a":1.0}}"#),
    ("prompts/get", r#"{"name":"review_code","arguments":{"a":"b"}}"#),
    ("resources/read", PAGE),
    ("resources/subscribe", PAGE),
    ("resources/unsubscribe", PAGE),
    ("completion/complete", r#"{"ref":{"type":"ref/prompt","name":"review_code"},"argument":{"name":"a","value":"b"}}"#),
    ("completion/complete", r#"{"ref":{"type":"ref/resource","uri":"file:///data/a"},"argument":{"name":"a","value":"b"}}"#),
    ("completion/complete", r#"{"ref":{"type":"ref/resource","uri":"file:///data/{a}"},"argument":{"name":"a","value":"b"}}"#),
    ("subscriptions/listen", r#"{"notifications":{"resourceSubscriptions":["file:///data/a"]}}"#),
    ("logging/setLevel", r#"{"level":"info"}"#),
    ("tasks/get", "{}"),
    ("x/y", "{}"),
    ("notifications/progress", "{}"),
];

/// Requests of a client that always pass.
const FREE: [&str; 8] = [
    "initialize",
    "ping",
    "server/discover",
    "tools/list",
    "prompts/list",
    "resources/list",
    "resources/templates/list",
    "tasks/list",
];

/// Requests of a server that are decided on.
const ASKED_OF_CLIENTS: [&str; 5] = ["sampling/createMessage", "elicitation/create", "roots/list", "tasks/get", "x/ask"];

fn notification(method: &str, params: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":{params}}}"#)
}

impl Between {
    /// Sends a message as the server.
    async fn say(&mut self, message: &str) {
        within("the server's pipe", self.server.write_all(format!("{message}\n").as_bytes())).await.unwrap();
    }

    /// The next message to the server, which is an answer in the client's name.
    async fn refused(&mut self) -> Value {
        serde_json::from_str(&self.forwarded().await).unwrap()
    }

    /// Asserts that nothing reached the client that it did not read.
    async fn nothing_more(&mut self) {
        assert_eq!(self.answer(&result("777")).await, result("777"));
    }

    /// Makes a request that passes, and sends this as the server. Gives what the client gets.
    async fn exchange(&mut self, asked: &str, answer: &str) -> Value {
        self.ask(asked).await;
        assert_eq!(self.forwarded().await, asked);
        serde_json::from_str(&self.answer(answer).await).unwrap()
    }

    fn sum(&self, metric: &str, labels: &[(&str, &str)]) -> f64 {
        Scrape::parse(&String::from_utf8(self.governor.metrics.registry.encode().unwrap()).unwrap()).sum(metric, labels)
    }
}

#[tokio::test]
async fn what_a_client_asks_for_passes_byte_for_byte_or_never_reaches_the_server() {
    for (policy, passes) in [(ALLOWS, true), (DENIES, false)] {
        let mut between = Between::new(policy);
        for (id, (method, params)) in ASKED.iter().enumerate() {
            let message = request(&id.to_string(), method, params);
            between.ask(&message).await;
            if passes {
                assert_eq!(between.forwarded().await, message);
                continue;
            }
            let told = between.answered().await;
            assert_eq!(told["id"], id, "{told}");
            assert!(["not_listed", "denied"].contains(&denial(&told)["reason"].as_str().unwrap()), "{method}: {told}");
            assert_eq!(told.pointer("/error/code").is_none(), *method == "tools/call", "{method}: {told}");
        }
        for (id, method) in FREE.iter().enumerate() {
            let message = request(&format!("\"{id}x\""), method, "{}");
            between.ask(&message).await;
            assert_eq!(between.forwarded().await, message, "{method}");
        }
        for method in ["initialized", "cancelled", "progress", "roots/list_changed", "tasks/status"] {
            let message = notification(&format!("notifications/{method}"), r#"{"requestId":"no"}"#);
            between.ask(&message).await;
            assert_eq!(between.forwarded().await, message);
        }
        let (other, after) = (notification("notifications/x", "{}"), notification("notifications/initialized", "{}"));
        between.ask(&other).await;
        between.ask(&after).await;
        if passes {
            assert_eq!(between.forwarded().await, other);
        }
        assert_eq!(between.forwarded().await, after);
        assert_eq!(between.counted("_other", if passes { "ok" } else { "dropped" }), 1.0);
    }
}

#[tokio::test]
async fn what_a_server_asks_for_passes_byte_for_byte_or_never_reaches_the_client() {
    for (policy, passes) in [(ALLOWS, true), (DENIES, false), ("[{name: pay}]", false)] {
        let mut between = Between::new(policy);
        for (id, method) in ASKED_OF_CLIENTS.iter().enumerate() {
            let message = format!(" {} ", request(&format!("{id}.0"), method, r#"{"maxTokens":1.0}"#));
            if passes {
                assert_eq!(between.answer(&message).await, message);
                continue;
            }
            between.say(&message).await;
            let line = between.forwarded().await;
            assert!(line.starts_with(&format!(r#"{{"jsonrpc":"2.0","id":{id}.0,"error":{{"#)), "{line}");
            let told: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(told["error"]["code"], 403, "{told}");
            assert!(["not_listed", "no_policy", "denied"].contains(&denial(&told)["reason"].as_str().unwrap()), "{told}");
        }
        between.nothing_more().await;
        let ping = request("1", "ping", "{}");
        assert_eq!(between.answer(&ping).await, ping);
        for method in ["message", "progress", "cancelled", "tools/list_changed", "elicitation/complete", "tasks/status"] {
            let message = notification(&format!("notifications/{method}"), "{}");
            assert_eq!(between.answer(&message).await, message);
        }
        for (method, params) in [("notifications/resources/updated", PAGE), ("notifications/x", "{}")] {
            let message = notification(method, params);
            between.say(&message).await;
            if passes {
                assert_eq!(within("a message", between.to_client.next_line()).await.unwrap().unwrap(), message);
            }
        }
        between.nothing_more().await;
        let asked = if passes { 0.0 } else { 5.0 };
        until("the answers", async || between.sum("toolweir_server_answers_total", &[("outcome", "ok")]) == asked).await;
        let decision = if passes { "allowed" } else { "denied" };
        for method in &ASKED_OF_CLIENTS[..3] {
            let labels = [("server", "bank"), ("operation", *method), ("decision", decision)];
            assert_eq!(between.sum("toolweir_operations_total", &labels), 1.0, "{method}");
        }
    }
}

#[tokio::test]
async fn a_resource_that_may_not_be_read_is_not_heard_of() {
    let mut between = Between::new(ALLOWS);
    for uri in ["file:///secret", "file:///data/../secret", "FILE:///data/%2e%2e/secret"] {
        between.say(&notification("notifications/resources/updated", &json!({"uri": uri}).to_string())).await;
    }
    between.nothing_more().await;
    between.ask(&request("1", "resources/read", r#"{"uri":"file:///data/%2e%2e/secret"}"#)).await;
    assert_eq!(between.answered().await["error"]["code"], 403);
}

#[tokio::test]
async fn requests_of_a_server_are_held_to_limits_and_conditions() {
    let mut between = Between::new(
        "[]\n    requests: [{name: sampling, limits: [{max: 2, window: hour}], validations: [{expression: \"args.maxTokens <= 1000\"}]}]",
    );
    let sampling =
        |id: u32, tokens: u32| request(&id.to_string(), "sampling/createMessage", &format!(r#"{{"maxTokens":{tokens}}}"#));
    for (id, tokens, reason) in [(1, 1000, ""), (2, 1001, "validation"), (3, 1, ""), (4, 1, "rate_limit")] {
        if reason.is_empty() {
            assert_eq!(between.answer(&sampling(id, tokens)).await, sampling(id, tokens));
            continue;
        }
        between.say(&sampling(id, tokens)).await;
        let told = between.refused().await;
        assert_eq!((&told["id"], &denial(&told)["reason"]), (&json!(id), &json!(reason)));
    }
    between.nothing_more().await;
}

#[tokio::test]
async fn a_request_of_a_server_holds_its_place_until_the_client_answers_or_the_server_cancels_it() {
    let mut between = Between::new("[]\n    requests: [{name: sampling, maxConcurrent: 1}]");
    let sampling = |id: &str| request(id, "sampling/createMessage", "{}");
    assert_eq!(between.answer(&sampling("1")).await, sampling("1"));
    between.say(&sampling("2")).await;
    assert_eq!(denial(&between.refused().await)["reason"], "concurrency");
    for (answer, frees) in [(result("\"1\""), false), (result("7"), false), (result("1.0"), true)] {
        between.ask(&answer).await;
        assert_eq!(between.forwarded().await, answer);
        between.say(&sampling("3")).await;
        if frees {
            assert_eq!(within("a message", between.to_client.next_line()).await.unwrap().unwrap(), sampling("3"));
        } else {
            assert_eq!(denial(&between.refused().await)["reason"], "concurrency", "{answer}");
        }
    }
    let cancels = notification("notifications/cancelled", r#"{"requestId":3}"#);
    assert_eq!(between.answer(&cancels).await, cancels);
    assert_eq!(between.answer(&sampling("4")).await, sampling("4"));
}

#[tokio::test]
async fn input_that_a_result_may_not_ask_for_is_cut_out_or_denied() {
    let mut between = Between::new("[{name: pay}]\n    requests: [{name: elicitation}]");
    let (sampling, elicitation) = (r#""a":{"method":"sampling/createMessage"}"#, r#""b":{"method":"elicitation/create"}"#);
    let asks = |id: &str, asked: &str| {
        format!(r#"{{"id":{id},"result":{{"resultType":"input_required","inputRequests":{{{asked}}},"requestState":"s"}}}}"#)
    };
    let pay = |id: &str| call(id, "pay", "{}");
    between.ask(&pay("1")).await;
    between.forwarded().await;
    assert_eq!(between.answer(&asks("1", &format!("{sampling},{elicitation}"))).await, asks("1", elicitation));
    let denied = between.exchange(&pay("2"), &asks("2", sampling)).await;
    assert_eq!((&denied["id"], &denied["result"]["isError"]), (&json!(2), &json!(true)), "{denied}");
    assert_eq!(denial(&denied)["request"], "sampling");
    // The server hears nothing of it: it was told by its own result.
    between.nothing_more().await;
    let error = |id: u32| {
        format!(
            r#"{{"id":{id},"error":{{"code":-32042,"message":"m","data":{{"elicitations":[{{"mode":"url","url":"http://x"}}]}}}}}}"#
        )
    };
    let asked = pay("3");
    between.ask(&asked).await;
    between.forwarded().await;
    assert_eq!(between.answer(&error(3)).await, error(3));
    let mut between = Between::new("[{name: pay}]\n    requests: []");
    let denied = between.exchange(&pay("4"), &error(4)).await;
    assert_eq!((&denied["id"], &denial(&denied)["request"]), (&json!(4), &json!("elicitation")), "{denied}");
    // The page that the sidecar fills is no way around.
    between.ask(&request("5", "tools/list", "{}")).await;
    between.forwarded().await;
    between.say(r#"{"id":5,"result":{"tools":[{"name":"wipe"}],"nextCursor":"2"}}"#).await;
    let own: Value = serde_json::from_str(&between.forwarded().await).unwrap();
    let page = format!(r#"{{"id":{},"result":{{"tools":[{{"name":"pay"}}],"inputRequests":{{{sampling}}}}}}}"#, own["id"]);
    let filled: Value = serde_json::from_str(&between.answer(&page).await).unwrap();
    assert_eq!(filled, json!({"id": 5, "result": {"tools": [], "nextCursor": "2"}}));
}

#[tokio::test]
async fn a_message_that_two_clients_could_read_differently_goes_nowhere_and_who_waits_for_it_is_told() {
    let mut between = Between::new(ALLOWS);
    for unclear in [
        r#"{"id":1,"method":"ping","method":"sampling/createMessage"}"#,
        r#"{"id":1,"method":"ping","Method":"sampling/createMessage"}"#,
        r#"{"id":1,"method":"sampling/createMessage""#,
        r#"{"id":1,"m\u0065thod":NaN}"#,
    ] {
        between.say(unclear).await;
        between.nothing_more().await;
    }
    for (asked, answer) in [
        (call("1", "pay", "{}"), r#"{"id":1,"result":{"inputRequests":{},"inputRequests":{"a":{"method":"roots/list"}}}}"#),
        (request("2", "prompts/get", r#"{"name":"review_a"}"#), r#"{"id":2,"result":{"x":NaN,"taskId":"t"}}"#),
        (request("3", "tools/list", "{}"), r#"{"id":3,"result":{"tools":[{"name":"wipe","x":NaN}]}}"#),
        (request("4", "ping", "{}"), r#"[{"id":4,"result":{}},{"id":1,"method":"notifications/x","result":1}]"#),
    ] {
        let told = between.exchange(&asked, answer).await;
        assert_eq!(
            (&told["id"], &denial(&told)["reason"]),
            (&serde_json::from_str::<Value>(&asked).unwrap()["id"], &json!("upstream_invalid"))
        );
        assert_eq!(told.pointer("/result/isError").is_some(), asked.contains("tools/call"), "{told}");
        between.nothing_more().await;
    }
    assert_eq!(between.sum("toolweir_server_messages_refused_total", &[("server", "bank")]), 8.0);
    for method in ["tools/call", "prompts/get", "tools/list", "ping"] {
        assert_eq!(between.counted(method, "upstream_invalid"), 1.0, "{method}");
    }
    // Where a server may ask for anything, there is nothing to find in it.
    let mut between = Between::new("[{name: pay}]\n    defaultActions: {resources: Allow, requests: Allow, other: Allow}");
    let unclear = r#"{"id":1,"method":"ping","Method":"sampling/createMessage"}"#;
    assert_eq!(between.answer(unclear).await, unclear);
}

#[tokio::test]
async fn a_batch_passes_whole_or_not_at_all() {
    let mut between = Between::new("[{name: pay}]\n    requests: [{name: roots}]");
    let passes = format!("[{},{}]", request("1", "roots/list", "{}"), notification("notifications/message", "{}"));
    assert_eq!(between.answer(&passes).await, passes);
    between.ask(&call("1", "pay", "{}")).await;
    between.forwarded().await;
    let batch =
        format!("[{},{},{}]", request("8", "roots/list", "{}"), request("9", "sampling/createMessage", "{}"), result("1"));
    let told: Value = serde_json::from_str(&between.answer(&batch).await).unwrap();
    assert_eq!((&told["id"], &denial(&told)["reason"]), (&json!(1), &json!("upstream_invalid")));
    let refused = between.refused().await;
    assert_eq!((&refused["id"], &denial(&refused)["reason"]), (&json!(9), &json!("not_listed")));
    between.nothing_more().await;
}

#[tokio::test]
async fn a_server_that_asks_without_end_is_answered_so_often_and_other_calls_go_on() {
    let mut between = Between::new("[{name: pay}]");
    let (began, mut slowest, mut refused) = (Instant::now(), Duration::ZERO, 0);
    for round in 0..100 {
        let flood: String =
            (0..100).map(|n| request(&(100 * round + n).to_string(), "sampling/createMessage", "{}") + "\n").collect();
        within("the server's pipe", between.server.write_all(flood.as_bytes())).await.unwrap();
        let (asked, id) = (Instant::now(), format!("\"c{round}\""));
        between.ask(&call(&id, "pay", "{}")).await;
        loop {
            let line = between.forwarded().await;
            if line == call(&id, "pay", "{}") {
                break;
            }
            assert!(line.contains("\"code\":403"), "{line}");
            refused += 1;
        }
        assert_eq!(between.answer(&result(&id)).await, result(&id));
        slowest = slowest.max(asked.elapsed());
    }
    let most = 128.0 + 32.0 * began.elapsed().as_secs_f64() + 1.0;
    assert!(refused >= 64 && f64::from(refused) <= most, "{refused} in {:?}", began.elapsed());
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    let answers = |outcome| between.sum("toolweir_server_answers_total", &[("outcome", outcome)]);
    assert!(answers("ok") <= most && answers("ok") + answers("dropped") >= 9999.0, "{} {}", answers("ok"), answers("dropped"));
    assert_eq!(between.sum("toolweir_operations_total", &[("decision", "denied")]), 10_000.0);
}

#[tokio::test]
async fn answers_to_a_server_that_reads_none_end_nothing() {
    let mut between = Between::new("[{name: pay}]");
    between.client.shutdown().await.unwrap();
    assert_eq!(within("the end", between.to_server.next_line()).await.unwrap(), None);
    between.say(&request("1", "roots/list", "{}")).await;
    between.nothing_more().await;
    assert_eq!(between.sum("toolweir_server_answers_total", &[("outcome", "failed")]), 1.0);
}

#[tokio::test]
async fn a_result_that_is_too_large_becomes_a_denial_with_both_sizes() {
    let mut between = Between::new(
        "[{name: pay, maxResultBytes: 200, maxConcurrent: 1}, {name: read}]\n    prompts: [{name: p, maxResultBytes: 200}]\n    \
         resources: [{uri: \"ab:c\", maxResultBytes: 200}]",
    );
    let of_length = |id: &str, length: usize| {
        let empty = result(id).replace("done", "");
        empty.replace(r#""text":"""#, &format!(r#""text":"{}""#, "x".repeat(length - empty.len())))
    };
    for (id, asked) in [
        ("1", call("1", "pay", "{}")),
        ("2", request("2", "prompts/get", r#"{"name":"p"}"#)),
        ("3", request("3", "resources/read", r#"{"uri":"ab:c"}"#)),
    ] {
        between.ask(&asked).await;
        between.forwarded().await;
        assert_eq!(between.answer(&of_length(id, 200)).await, of_length(id, 200));
        for length in [201, 17 * 16 * LONGEST] {
            let told = between.exchange(&asked, &of_length(id, length)).await;
            let number = serde_json::from_str::<Value>(id).unwrap();
            assert_eq!((&told["id"], &denial(&told)["reason"]), (&number, &json!("result_too_large")), "{told}");
            let text = told.pointer("/result/content/0/text").or_else(|| told.pointer("/error/message")).unwrap().to_string();
            assert!(text.contains(&format!(" has {length} bytes, and at most 200 may pass")), "{text}");
        }
        between.nothing_more().await;
    }
    let denied = [("decision", "denied"), ("reason", "result_too_large")];
    assert_eq!(between.sum("toolweir_tool_calls_total", &denied), 2.0);
    assert_eq!(between.sum("toolweir_operations_total", &denied), 4.0);
    assert_eq!((between.counted("tools/call", "result_too_large"), between.counted("tools/call", "ok")), (2.0, 1.0));
    until("the audit log", async || between.audit.text().lines().count() == 9).await;
    assert_eq!(between.audit.text().matches(r#""outcome":"result_too_large""#).count(), 6);
    // Without a bound it is what no message of a server may be.
    let told = between.exchange(&call("4", "read", "{}"), &of_length("4", 17 * 16 * LONGEST)).await;
    assert_eq!((&told["id"], &denial(&told)["reason"]), (&json!(4), &json!("upstream_invalid")));
    assert_eq!(between.sum("toolweir_server_messages_refused_total", &[("server", "bank")]), 4.0);
    // One in a batch takes the others along.
    between.ask(&call("5", "pay", "{}")).await;
    between.ask(&call("6", "read", "{}")).await;
    let batch = format!("[{},{}]", of_length("5", 201), result("6"));
    between.say(&batch).await;
    let told = [between.answered().await, between.answered().await];
    assert_eq!(told.map(|told| denial(&told)["reason"].clone()), ["result_too_large", "upstream_invalid"]);
    // Some clients take an answer to "7" for that of 7.
    between.ask(&call("7", "pay", "{}")).await;
    between.forwarded().await;
    between.say(&of_length("\"7\"", 201)).await;
    assert_eq!(between.answer(&of_length("7", 200)).await, of_length("7", 200));
    assert_eq!(between.sum("toolweir_server_messages_refused_total", &[("server", "bank")]), 5.0);
}

#[tokio::test]
async fn a_task_belongs_to_the_call_that_was_let_through() {
    let mut between = Between::new("[{name: pay, maxResultBytes: 300}]");
    let about = |id: &str, method: &str, task: &str| request(id, method, &format!(r#"{{"taskId":"{task}"}}"#));
    between.ask(&about("0", "tasks/get", "t1")).await;
    assert_eq!(denial(&between.answered().await)["reason"], "not_listed");
    let made = r#"{"jsonrpc":"2.0","id":1,"result":{"task":{"taskId":"t1","status":"working"}}}"#;
    between.exchange(&request("1", "tools/call", r#"{"name":"pay","task":{}}"#), made).await;
    for method in ["tasks/get", "tasks/result", "tasks/update", "tasks/cancel"] {
        let asked = about("2", method, "t1");
        assert_eq!(between.exchange(&asked, &result("2")).await["result"]["isError"], false);
        between.ask(&about("3", method, "t2")).await;
        assert_eq!(denial(&between.answered().await)["reason"], "not_listed", "{method}");
    }
    let tasks = |ids: &[&str]| {
        let tasks: Vec<String> = ids.iter().map(|id| format!(r#"{{"taskId":"{id}","status":"working"}}"#)).collect();
        format!(r#"{{"jsonrpc":"2.0","id":4,"result":{{"tasks":[{}]}}}}"#, tasks.join(","))
    };
    between.ask(&request("4", "tasks/list", "{}")).await;
    between.forwarded().await;
    assert_eq!(between.answer(&tasks(&["t2", "t1"])).await, tasks(&["t1"]));
    // Its result is that of the call.
    let told = between.exchange(&about("5", "tasks/result", "t1"), &result("5").replace("done", &"x".repeat(300))).await;
    assert_eq!((&told["id"], &denial(&told)["reason"]), (&json!(5), &json!("result_too_large")), "{told}");
}

async fn approve(between: &Between) {
    let waiting = || between.governor.approvals().waiting();
    until("a request", async || !waiting().is_empty()).await;
    let decided = Decided { approve: true, by: "uid 1 (eve)".to_owned(), reason: None, until: None };
    between.governor.approvals().decide(&waiting()[0].name, &decided).await.unwrap();
}

#[tokio::test]
async fn a_request_of_a_server_for_which_a_person_is_asked_is_made_again() {
    let mut between = Between::new("[]\n    requests: [{name: sampling, approval: {hold: 8s}}]");
    between.governor.approvals().ask_locally();
    let sampling = request("1", "sampling/createMessage", r#"{"maxTokens":7}"#);
    for _ in 0..2 {
        between.say(&sampling).await;
        let told = between.refused().await;
        assert_eq!((&told["id"], &denial(&told)["reason"]), (&json!(1), &json!("approval_pending")), "{told}");
    }
    assert_eq!(between.governor.approvals().waiting().len(), 1);
    between.nothing_more().await;
    approve(&between).await;
    let again = sampling.replace("\"id\":1", "\"id\":2");
    assert_eq!(between.answer(&again).await, again);
    between.say(&sampling).await;
    assert_eq!(denial(&between.refused().await)["reason"], "approval_pending");
}

#[tokio::test]
async fn prompts_and_resources_wait_for_a_person_as_calls_do() {
    let mut between = Between::new(
        "[]\n    prompts: [{name: p, approval: {hold: 8s}}]\n    resources: [{uri: \"ab:c\", approval: {hold: 8s}, maxResultBytes: 100}]",
    );
    between.governor.approvals().ask_locally();
    for asked in [request("1", "prompts/get", r#"{"name":"p"}"#), request("2", "resources/read", r#"{"uri":"ab:c"}"#)] {
        between.ask(&asked).await;
        until("what waits", async || between.governor.metrics.approvals.held.get() == 1).await;
        approve(&between).await;
        assert_eq!(between.forwarded().await, asked);
    }
    assert_eq!(between.answer(&result("1")).await, result("1"));
    let told = result("2").replace("done", &"x".repeat(100));
    assert_eq!(denial(&serde_json::from_str(&between.answer(&told).await).unwrap())["reason"], "result_too_large");
}
