//! `toolweir-sidecar stdio`: a server on stdin and stdout is governed by the same rules. Through pipes in memory, and with
//! the real program and a small server in Python.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::float_cmp)]

mod common;

use std::time::{Duration, Instant};

use common::{
    FREE, LISTS, SOME, call, denial,
    folder::Folder,
    list,
    metrics::Scrape,
    pipes::{Between, LONGEST, gate, governed, without_url},
    program, request, result,
    stdio::Governed,
    until, usable, within,
};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use toolweir_engine::{CompileOptions, Engine, Memory, Policy};
use toolweir_sidecar::{governor::Governor, in_force::InForce, stdio::gate::ClientMessageAction};

#[tokio::test]
async fn messages_pass_byte_for_byte_in_both_directions() {
    let mut between = Between::new("[{name: pay}]");
    for message in [
        "\t{ \"params\":{\"arguments\":{\"b\":1.0} ,\"name\":\"p\\u0061y\"}, \"method\":\"tools\\/call\",\"id\":7.0 } ",
        r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#,
        r#"{"jsonrpc":"2.0","id":"e","result":{"action":"accept"}}"#,
    ] {
        between.ask(message).await;
        assert_eq!(between.forwarded().await, message);
    }
    for message in [
        " {\"result\" : {\"isError\":false,\"x\":1.0},\"id\":7.0 }",
        "{\"jsonrpc\":\"2.0\",\"m\\u0065thod\":\"notifications/message\"}",
        "no JSON at all",
        "",
    ] {
        assert_eq!(between.answer(message).await, message);
    }
    assert_eq!(between.counted("tools/call", "ok"), 1.0);
    assert_eq!(between.counted("_answer", "ok"), 1.0);
    // CR LF ends a line as LF does, and the last line needs no end.
    between.send(format!("{}\r\n\n{}", request("1", "ping", "{}"), request("2", "ping", "{}"))).await;
    assert_eq!(between.forwarded().await, request("1", "ping", "{}"));
    between.client.shutdown().await.unwrap();
    assert_eq!(between.forwarded().await, request("2", "ping", "{}"));
}

#[tokio::test]
async fn a_denied_call_is_answered_and_never_reaches_the_server() {
    let mut between = Between::new("[{name: pay, limits: [{max: 1, window: hour}]}]");
    between.ask(&call("1", "pay", "{}")).await;
    assert_eq!(between.forwarded().await, call("1", "pay", "{}"));
    assert_eq!(between.answer(&result("1")).await, result("1"));
    between.ask(&call("\"x\"", "pay", r#"{"to":"secret"}"#)).await;
    let denied = between.answered().await;
    assert_eq!(
        (&denied["id"], &denied["result"]["isError"], &denial(&denied)["reason"]),
        (&json!("x"), &json!(true), &json!("rate_limit"))
    );
    between.ask(&call("3", "other", "{}")).await;
    assert_eq!(denial(&between.answered().await)["reason"], "not_listed");
    // A call without an id goes nowhere.
    between.ask(r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"pay"}}"#).await;
    between.ask(&request("4", "ping", "{}")).await;
    assert_eq!(between.forwarded().await, request("4", "ping", "{}"));
    assert_eq!((between.counted("tools/call", "denied"), between.counted("tools/call", "dropped")), (2.0, 1.0));
    until("the audit log", async || between.audit.text().lines().count() == 4).await;
    assert!(!between.audit.text().contains("secret"));
    let lines: Vec<Value> = between.audit.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        (&lines[0]["decision"], &lines[1]["reason"], &lines[3]["outcome"]),
        (&json!("allowed"), &json!("rate_limit"), &json!("dropped"))
    );
}

#[tokio::test]
async fn a_line_whose_meaning_is_not_clear_is_refused_and_the_next_is_read() {
    let mut between = Between::new("[{name: pay}]");
    let (pay, ping) = (call("1", "pay", "{}"), request("9", "ping", "{}"));
    let long = call("1", "pay", &format!(r#"{{"x":"{}"}}"#, "x".repeat(LONGEST)));
    let id_last = format!(r#"{{"params":{{"x":"{}"}},"method":"tools/list","id":"a"}}"#, "x".repeat(LONGEST));
    let rows: [(&str, Vec<u8>, Value, i64); 11] = [
        ("a batch", format!("[{pay}]").into(), json!(null), -32600),
        // Python's servers end a line there, so that what follows is a message of its own.
        ("a carriage return", format!("{ping}\r{pay}").into(), json!(null), -32600),
        ("a carriage return in white space", ping.replace(',', ",\r").into(), json!(9), -32600),
        ("two messages", format!("{ping} {pay}").into(), json!(null), -32700),
        ("no JSON", b"hello".to_vec(), json!(null), -32700),
        ("no UTF-8", b"{\"id\":1,\"method\":\"\xff\"}".to_vec(), json!(1), -32700),
        ("a byte-order mark", format!("\u{feff}{ping}").into(), json!(null), -32700),
        ("a key twice", r#"{"id":1,"method":"ping","method":"x"}"#.into(), json!(1), -32600),
        ("a line that is too long", long.replace("tools/call", "tools/list").into(), json!(1), -32600),
        ("a line that is too long, with its id at the end", id_last.into(), json!("a"), -32600),
        ("a line that is much too long", vec![b'x'; 500_000], json!(null), -32600),
    ];
    for (name, mut line, id, code) in rows {
        line.push(b'\n');
        between.send(line).await;
        let answer = between.answered().await;
        assert_eq!((&answer["id"], &answer["error"]["code"]), (&id, &json!(code)), "{name}: {answer}");
        assert!(answer["error"]["message"].as_str().unwrap().starts_with("Refused: "), "{name}: {answer}");
        between.ask(&ping).await;
        assert_eq!(between.forwarded().await, ping, "{name}");
        between.answer(&result("9")).await;
    }
    assert_eq!(between.counted("_none", "refused"), 11.0);
    // The client of a call hands the words to its model.
    between.ask(&long).await;
    let answer = between.answered().await;
    assert_eq!((&answer["id"], &answer["result"]["isError"]), (&json!(1), &json!(true)), "{answer}");
}

#[tokio::test]
async fn a_list_shows_what_may_be_called() {
    let mut between = Between::new("[{name: pay}]");
    assert_eq!(between.answer(&list("1", &["wipe", "pay"])).await, list("1", &["pay"]));
    let kept = |ttl: &str| format!(r#"{{"id":1,"result":{{"tools":[],"ttlMs":{ttl}}}}}"#);
    assert_eq!(between.answer(&kept("60000")).await, kept("5000"));
    let batch = format!("[{},{}]", list("1", &["wipe"]), result("2"));
    assert_eq!(between.answer(&batch).await, format!("[{},{}]", list("1", &[]), result("2")));
    // What cannot be read or is too long to hold goes nowhere.
    for dropped in
        [r#"{"id":1,"result":{"tools":[{"name":"wipe","x":NaN}]}}"#.to_owned(), list("1", &["x".repeat(16 * LONGEST).as_str()])]
    {
        within("the pipe", between.server.write_all(format!("{dropped}\n").as_bytes())).await.unwrap();
        assert_eq!(between.answer(&result("7")).await, result("7"));
    }
}

#[tokio::test]
async fn what_may_not_be_used_is_in_no_list_and_a_page_that_comes_empty_is_filled() {
    let fields: String = SOME.iter().map(|field| format!("    {field}\n")).collect();
    for (policy, is_said) in [(without_url("[{name: pay}]") + &fields, true), (without_url("[]"), false)] {
        let mut between = Between::started_with(&policy, 1 << 20, |_| {});
        between.governor.tasks().learn("bank", "pay", "pay");
        for (method, key, member) in LISTS {
            let [pay, wipe] = usable(key);
            let page = |id: &Value, names: &[&str], next: &str| {
                let entries: Vec<String> = names.iter().map(|name| format!(r#"{{"{member}":"{name}"}}"#)).collect();
                format!(r#"{{"id":{id},"result":{{"{key}":[{}]{next}}}}}"#, entries.join(","))
            };
            let shown: &[&str] = if is_said { &[pay] } else { &[] };
            let asked = request("\"a\"", method, "{}");
            between.ask(&asked).await;
            assert_eq!(between.forwarded().await, asked);
            assert_eq!(between.answer(&page(&json!("a"), &[wipe, pay], "")).await, page(&json!("a"), shown, ""), "{method}");
            between.ask(&asked).await;
            between.forwarded().await;
            let first = page(&json!("a"), &[wipe], r#","nextCursor":"2""#);
            between.server.write_all(format!("{first}\n").as_bytes()).await.unwrap();
            let second: Value = serde_json::from_str(&between.forwarded().await).unwrap();
            assert_eq!((second["method"].as_str(), second["params"]["cursor"].as_str()), (Some(method), Some("2")));
            assert_eq!(between.answer(&page(&second["id"], &[pay], "")).await, page(&json!("a"), shown, ""), "{method}");
            // What cannot be read goes nowhere.
            let unreadable = page(&json!(1), &[pay], r#","x":NaN"#);
            between.server.write_all(format!("{unreadable}\n").as_bytes()).await.unwrap();
            assert_eq!(between.answer(&result("7")).await, result("7"), "{method}");
        }
    }
}

#[tokio::test]
async fn a_message_of_the_server_may_be_longer_than_one_of_the_client() {
    let mut between = Between::new("[{name: pay}]");
    let picture = result("1").replace("done", &"x".repeat(10 * LONGEST));
    assert_eq!(between.answer(&picture).await, picture);
    let tools = list("1", &["wipe", "pay", "y".repeat(10 * LONGEST).as_str()]);
    assert_eq!(between.answer(&tools).await, list("1", &["pay"]));
}

#[tokio::test]
async fn a_page_of_a_list_that_comes_empty_is_filled_from_the_next_ones() {
    let mut between = Between::new("[{name: pay}]");
    let page = |id: &Value, name: &str, next: &str| {
        format!(r#"{{"id":{id},"result":{{"tools":[{name}],"nextCursor":"{next}"}}}}"#).replace(r#","nextCursor":"""#, "")
    };
    let (wipe, pay) = (r#"{"name":"wipe"}"#, r#"{"name":"pay"}"#);
    for filled in [true, false] {
        let asked = r#"{"jsonrpc":"2.0","id":"a","method":"tools/list","params":{"_meta":{"x":1.0}}}"#;
        between.ask(asked).await;
        assert_eq!(between.forwarded().await, asked);
        between.server.write_all(format!("{}\n", page(&json!("a"), wipe, "2")).as_bytes()).await.unwrap();
        let second = between.forwarded().await;
        let own = serde_json::from_str::<Value>(&second).unwrap()["id"].clone();
        assert_eq!(second, asked.replace("\"a\"", &own.to_string()).replace("1.0}", r#"1.0},"cursor":"2""#));
        // Others do not wait for it.
        assert_eq!(between.answer(&result("1")).await, result("1"));
        let (answer, got) = if filled {
            (page(&own, pay, ""), page(&json!("a"), pay, ""))
        } else {
            (format!(r#"{{"error":{{"code":1}},"id":{own}}}"#), page(&json!("a"), "", "2"))
        };
        assert_eq!(between.answer(&answer).await, got);
    }
    // A server that ends leaves the page so far.
    between.ask(&request("5", "tools/list", "{}")).await;
    between.server.write_all(format!("{}\n", page(&json!(5), wipe, "2")).as_bytes()).await.unwrap();
    between.forwarded().await;
    between.forwarded().await;
    between.server.shutdown().await.unwrap();
    assert_eq!(between.answered().await["result"], json!({"tools": [], "nextCursor": "2"}));
}

#[tokio::test]
async fn a_change_of_policy_is_told_where_the_server_has_agreed_to_tell_it() {
    let mut between = Between::new("[{name: pay}]");
    let changed = |governor: &Governor, tool: &str| {
        let text = without_url(&format!("[{{name: {tool}}}]"));
        let located = toolweir_crds::read_documents("policy.yaml", &text).unwrap();
        let policies: Vec<Policy> = located.into_iter().map(|located| located.document.into()).collect();
        let (engine, _) = Engine::compile(&policies, Memory::new(1), &CompileOptions::default());
        let views = policies.into_iter().map(Into::into).collect();
        governor.replace(InForce::new(engine, views, Vec::new(), tool.to_owned(), &governor.metrics.servers).0);
    };
    // Nobody has agreed to anything.
    changed(&between.governor, "a");
    assert_eq!(between.answer(&result("0")).await, result("0"));
    let declares = r#"{"id":1,"result":{"capabilities":{"tools":{"listChanged":true}}}}"#;
    assert_eq!(between.answer(declares).await, declares);
    changed(&between.governor, "b");
    let plain = json!({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"});
    assert_eq!(between.answered().await, plain);
    // The same policies once more are no change.
    changed(&between.governor, "b");
    let others = declares.replace("tools", "resources");
    assert_eq!(between.answer(&others).await, others);
    changed(&between.governor, "e");
    assert_eq!(between.answered().await["method"], "notifications/resources/list_changed");
    let silent = declares.replace("true", "false");
    assert_eq!(between.answer(&silent).await, silent);
    let acknowledged = r#"{"method":"notifications/subscriptions/acknowledged","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":7},"notifications":{"toolsListChanged":true}}}"#;
    assert_eq!(between.answer(acknowledged).await, acknowledged);
    changed(&between.governor, "c");
    let told = between.answered().await;
    let subscription = &told["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"];
    assert_eq!((&told["method"], subscription), (&plain["method"], &json!(7)));
    let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":7}}"#;
    between.ask(cancel).await;
    assert_eq!(between.forwarded().await, cancel);
    changed(&between.governor, "d");
    assert_eq!(between.answer(&result("2")).await, result("2"));
}

#[tokio::test]
async fn a_message_that_only_a_lenient_client_can_read_passes_if_it_holds_no_list() {
    let mut between = Between::new("[{name: pay}]");
    let message = r#"{"id":1,"result":{"x":NaN,"y":"\u00e9"}}"#;
    assert_eq!(between.answer(message).await, message);
}

#[tokio::test]
async fn a_call_is_under_way_until_its_answer() {
    let mut between = Between::new("[{name: pay, maxConcurrent: 1}]\n    requests: [{name: roots}]");
    between.ask(&call("1", "pay", "{}")).await;
    between.forwarded().await;
    between.ask(&call("2", "pay", "{}")).await;
    assert_eq!(denial(&between.answered().await)["reason"], "concurrency");
    // Neither a message of the server nor another answer frees its place.
    between.answer(r#"{"id":1,"method":"roots/list"}"#).await;
    between.answer(&result("\"1\"")).await;
    between.ask(&call("3", "pay", "{}")).await;
    assert_eq!(denial(&between.answered().await)["reason"], "concurrency");
    between.answer(r#"{"id":1,"error":{"code":1,"message":"no"}}"#).await;
    between.ask(&call("4", "pay", "{}")).await;
    assert_eq!(between.forwarded().await, call("4", "pay", "{}"));
}

#[tokio::test]
async fn an_id_that_is_in_use_is_refused() {
    let mut between = Between::new("[{name: pay, maxConcurrent: 1}]");
    between.ask(&call("1", "pay", "{}")).await;
    between.forwarded().await;
    for id in ["1", "1.0", "10e-1", "1.5", "\"1\""] {
        for body in [request(id, "ping", "{}"), request(id, "tools/list", "{}"), call(id, "pay", "{}")] {
            between.ask(&body).await;
            let line = within("an answer", between.to_client.next_line()).await.unwrap().unwrap();
            let message = "Refused: the id is in use by a request that has no answer yet.";
            assert!(line.starts_with(&format!(r#"{{"jsonrpc":"2.0","id":{id},"#)) && line.contains(message), "{line}");
        }
    }
    assert_eq!((between.counted("ping", "refused"), between.counted("tools/call", "refused")), (5.0, 5.0));
    // So nothing but the answer to the call frees its place.
    between.ask(&call("2", "pay", "{}")).await;
    assert_eq!(denial(&between.answered().await)["reason"], "concurrency");
    // Of a message with no id, and of an answer of the client, the id is not one of these.
    for passes in [r#"{"jsonrpc":"2.0","id":1,"result":{}}"#, r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#] {
        between.ask(passes).await;
        assert_eq!(between.forwarded().await, passes);
    }
    between.answer(&result("1")).await;
    between.ask(&request("1", "ping", "{}")).await;
    between.forwarded().await;
    between.ask(&call("2", "pay", "{}")).await;
    between.forwarded().await;
    between.answer(&result("1")).await;
    between.ask(&call("3", "pay", "{}")).await;
    assert_eq!(denial(&between.answered().await)["reason"], "concurrency");
}

#[tokio::test]
async fn an_answer_frees_its_place_however_it_is_written() {
    let mut between = Between::new("[{name: pay, maxConcurrent: 1}]");
    let long = "x".repeat(16 * LONGEST);
    let answers = [
        ("a batch", format!("[{},{}]", result("100"), result("ID")), true),
        ("a byte-order mark", format!("\u{feff}{}", result("ID")), true),
        ("not strict", r#"{"id":ID,"result":{"x":NaN}}"#.to_owned(), true),
        ("breaks off", r#"{"id":ID,"result":{"x":"#.to_owned(), true),
        ("too long", result("ID").replace("done", &long), false),
        ("its id at the end", format!(r#"{{"result":{{"x":"{long}"}},"id":ID}}"#), false),
        ("too long and a batch", format!(r#"[{{"result":"{long}","id":100}},{}]"#, result("ID")), false),
    ];
    for (id, (name, answer, passes)) in answers.iter().enumerate() {
        between.ask(&call(&id.to_string(), "pay", "{}")).await;
        assert_eq!(between.forwarded().await, call(&id.to_string(), "pay", "{}"), "{name}");
        let mut answer = answer.replace("ID", &id.to_string());
        if !passes {
            // The client is told that it does not get it; what follows passes.
            answer.push('\n');
            within("the pipe", between.server.write_all(answer.as_bytes())).await.unwrap();
            let told = between.answered().await;
            assert_eq!((&told["id"], &denial(&told)["reason"]), (&json!(id), &json!("upstream_invalid")), "{name}: {told}");
            answer = result("100");
        }
        assert_eq!(between.answer(&answer).await, answer, "{name}");
    }
}

#[tokio::test]
async fn a_cancelled_call_leaves_its_place_and_its_line_says_so() {
    let mut between = Between::new("[{name: pay, maxConcurrent: 1}]");
    let cancel = |id: &str| format!(r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{id}}}}}"#);
    between.ask(&call("1", "pay", "{}")).await;
    between.forwarded().await;
    for other in ["2", "\"1\"", "1.5"] {
        between.ask(&cancel(other)).await;
        assert_eq!(between.forwarded().await, cancel(other));
        between.ask(&call("2", "pay", "{}")).await;
        assert_eq!(denial(&between.answered().await)["reason"], "concurrency", "{other}");
    }
    between.ask(&cancel("1.0")).await;
    assert_eq!(between.forwarded().await, cancel("1.0"));
    between.ask(&call("2", "pay", "{}")).await;
    assert_eq!(between.forwarded().await, call("2", "pay", "{}"));
    // Its late answer passes and frees no other's place; until then the id is not for another.
    between.ask(&request("1", "ping", "{}")).await;
    let error = &between.answered().await["error"];
    let message = "Refused: the id is in use by a request that was cancelled and may still be answered.";
    assert_eq!((&error["code"], &error["message"]), (&json!(-32600), &json!(message)));
    assert_eq!(between.answer(&result("1")).await, result("1"));
    between.ask(&call("3", "pay", "{}")).await;
    assert_eq!(denial(&between.answered().await)["reason"], "concurrency");
    between.ask(&request("1", "ping", "{}")).await;
    assert_eq!(between.forwarded().await, request("1", "ping", "{}"));
    between.ask(&cancel("1")).await;
    between.forwarded().await;
    assert_eq!(between.answer(&result("2")).await, result("2"));
    assert_eq!((between.counted("tools/call", "cancelled"), between.counted("tools/call", "ok")), (1.0, 1.0));
    assert_eq!(between.counted("ping", "cancelled"), 1.0);
    until("the audit log", async || between.audit.text().lines().count() == 6).await;
    let allowed = |line: &str| line.contains("\"allowed\"");
    let lines: Vec<Value> =
        between.audit.text().lines().filter(|line| allowed(line)).map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["outcome"], &lines[1]["outcome"]), (&json!("cancelled"), &json!("ok")));
}

#[tokio::test]
async fn cancelled_requests_that_are_never_answered_end_no_session() {
    let mut between = Between::new("[{name: pay, maxConcurrent: 1}]");
    for id in 0..1100 {
        let cancel = format!(r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{id}}}}}"#);
        for message in [call(&id.to_string(), "pay", "{}"), cancel] {
            between.ask(&message).await;
            assert_eq!(between.forwarded().await, message);
        }
    }
    // The latest 1024 ids are remembered.
    between.ask(&request("76", "ping", "{}")).await;
    assert_eq!(between.answered().await["error"]["code"], -32600);
    between.ask(&request("75", "ping", "{}")).await;
    between.forwarded().await;
}

#[tokio::test]
async fn requests_without_an_answer_are_bounded() {
    let mut between = Between::new("[{name: pay}]");
    for id in 0..1024 {
        between.ask(&request(&id.to_string(), "ping", "{}")).await;
        between.forwarded().await;
    }
    between.ask(&call("5000", "pay", "{}")).await;
    let refused = between.answered().await;
    assert_eq!((&refused["id"], &denial(&refused)["reason"]), (&json!(5000), &json!("overloaded")), "{refused}");
    assert_eq!(between.counted("tools/call", "overloaded"), 1.0);
    between.answer(&result("7")).await;
    between.ask(&call("5000", "pay", "{}")).await;
    assert_eq!(between.forwarded().await, call("5000", "pay", "{}"));
}

#[tokio::test]
async fn a_denial_is_told_though_client_and_server_end_at_once() {
    for _ in 0..20 {
        let mut between = Between::with("[]", 200);
        // While the client is slow to read a message of the server, its call is denied, and both ends are closed.
        let long = result("0") + &" ".repeat(200);
        within("the pipe", between.server.write_all(format!("{long}\n").as_bytes())).await.unwrap();
        between.ask(&call("1", "pay", "{}")).await;
        between.client.shutdown().await.unwrap();
        assert_eq!(within("the end", between.to_server.next_line()).await.unwrap(), None);
        between.server.shutdown().await.unwrap();
        assert_eq!(between.answered().await["id"], 0);
        assert_eq!(denial(&between.answered().await)["reason"], "not_listed");
        within("the relay", between.relay).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn what_was_under_way_when_the_server_ended_is_answered_counted_and_recorded() {
    let mut between = Between::new("[{name: pay, maxConcurrent: 3}]");
    for message in [call("1", "pay", "{}"), request("\"b\"", "ping", "{}"), call("2", "pay", "{}"), call("3", "pay", "{}")] {
        between.ask(&message).await;
        assert_eq!(between.forwarded().await, message);
    }
    assert_eq!(between.answer(&result("1")).await, result("1"));
    // Its stdout stays open, and what is in it is read.
    between.ends.server.notify_one();
    assert_eq!(between.answer(&result("3")).await, result("3"));
    let ping = between.answered().await;
    assert_eq!((&ping["id"], &ping["error"]["code"]), (&json!("b"), &json!(-32603)));
    let called = between.answered().await;
    assert_eq!((&called["id"], &called["result"]["isError"]), (&json!(2), &json!(true)));
    within("the relay", between.relay).await.unwrap().unwrap();
    let text = String::from_utf8(between.governor.metrics.registry.encode().unwrap()).unwrap();
    let counted = |method: &str, outcome: &str| {
        let labels = [("server", "bank"), ("method", method), ("outcome", outcome)];
        Scrape::parse(&text).sum("toolweir_requests_total", &labels)
    };
    assert_eq!((counted("ping", "upstream_failed"), counted("ping", "ok")), (1.0, 0.0));
    assert_eq!((counted("tools/call", "upstream_failed"), counted("tools/call", "ok")), (1.0, 2.0));
    between.governor.audit().close();
    let audit = between.audit.text();
    let outcomes: Vec<Value> =
        audit.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["outcome"].clone()).collect();
    assert_eq!(outcomes, ["ok", "ok", "upstream_failed"]);
}

#[tokio::test]
async fn a_stop_closes_the_servers_stdin_though_the_client_goes_on() {
    let mut between = Between::new("[{name: pay}]");
    between.ends.stop.notify_one();
    assert_eq!(within("the end", between.to_server.next_line()).await.unwrap(), None);
    within("word of it", between.ends.input.notified()).await;
}

#[tokio::test]
async fn denials_come_in_the_order_of_their_calls() {
    let mut between = Between::new("[{name: pay}]");
    // More than wait for the client at once, and then a call that passes.
    for id in 0..100 {
        between.ask(&call(&id.to_string(), "other", "{}")).await;
    }
    between.ask(&call("100", "pay", "{}")).await;
    assert_eq!(between.forwarded().await, call("100", "pay", "{}"));
    for id in 0..100 {
        assert_eq!(between.answered().await["id"], id);
    }
}

#[test]
fn nothing_passes_a_policy_that_does_not_compile_or_does_not_name_the_server() {
    let (_folder, governor, _audit) = governed(&without_url("[{name: pay}]"));
    let broken = without_url("[{name: pay, validations: [{expression: \"args.\"}]}]");
    for (text, reason) in [(broken, "invalid_policy"), (without_url("[]").replace("name: bank\n", "name: shop\n"), "no_policy")] {
        let located = toolweir_crds::read_documents("policy.yaml", &text).unwrap();
        let policies: Vec<Policy> = located.into_iter().map(|located| located.document.into()).collect();
        let (engine, _) = Engine::compile(&policies, Memory::new(1), &CompileOptions::default());
        governor.replace(InForce::new(engine, Vec::new(), Vec::new(), "v".to_owned(), &governor.metrics.servers).0);
        let gate = gate(&governor);
        for message in [call("1", "pay", "{}"), request("1", "initialize", "{}"), request("1", "tools/list", "{}")] {
            let ClientMessageAction::Answer(answer) = gate.from_client(message.as_bytes()) else { panic!("{reason}: {message}") };
            let answer: Value = serde_json::from_slice(&answer).unwrap();
            assert_eq!(denial(&answer)["reason"], reason, "{message}");
        }
        for message in [r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#, r#"{"jsonrpc":"2.0","id":1,"result":{}}"#] {
            assert_eq!(gate.from_client(message.as_bytes()), ClientMessageAction::Drop, "{reason}: {message}");
        }
    }
}

/// Answers calls, ends with code 7 when its stdin does, and at once with code 3 when it is told so.
const SERVER: &str = r#"
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message["method"] == "tools/list":
        result = {"tools": [{"name": "pay"}, {"name": "wipe"}]}
    elif message["method"] == "exit":
        sys.exit(3)
    else:
        result = {"content": [{"type": "text", "text": line}], "isError": False}
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
sys.exit(7)
"#;

#[tokio::test]
async fn the_program_governs_a_server_and_ends_with_its_code() {
    let mut governed = Governed::start(&[], SERVER);
    assert_eq!(governed.ask(&request("1", "tools/list", "{}")).await["result"], json!({"tools": [{"name": "pay"}]}));
    let pay = call("2", "pay", r#"{"amount":1.0}"#);
    let passed = governed.ask(&pay).await;
    assert_eq!(passed["result"]["content"][0]["text"], format!("{pay}\n"));
    assert_eq!(denial(&governed.ask(&call("3", "pay", "{}")).await)["reason"], "rate_limit");
    assert_eq!(denial(&governed.ask(&call("4", "wipe", "{}")).await)["reason"], "not_listed");
    // The client ends a server by closing its stdin.
    governed.stdin = None;
    assert_eq!(governed.next().await, None);
    let audit = std::fs::read_to_string(governed.folder.path().join("audit.jsonl"));
    assert_eq!(governed.code().await, Some(7));
    assert_eq!(audit.unwrap().lines().count(), 3);
}

#[tokio::test]
async fn the_program_ends_when_its_server_ends_of_itself() {
    let mut governed = Governed::start(&[], SERVER);
    governed.stdin.as_mut().unwrap().write_all(format!("{}\n", request("1", "exit", "{}")).as_bytes()).await.unwrap();
    assert_eq!(governed.next().await.unwrap()["error"]["code"], -32603);
    assert_eq!(governed.next().await, None);
    assert_eq!(governed.code().await, Some(3));
}

#[tokio::test]
async fn the_program_ends_its_server_when_it_is_told_to_stop() {
    for signal in ["-TERM", "-INT"] {
        let mut governed = Governed::start(&[], SERVER);
        governed.ask(&request("1", "tools/list", "{}")).await;
        let began = Instant::now();
        program::signal(&governed.child, signal).await;
        // Its stdin closes too, at which it ends by itself if it sees that first.
        let code = governed.code().await;
        assert!(matches!(code, Some(143 | 7)), "{signal}: {code:?}");
        assert!(began.elapsed() < Duration::from_millis(1450), "{signal}: {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn the_programs_metrics_are_served_where_it_is_told() {
    // A port that was free a moment ago.
    let address = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut governed = Governed::start(&["--metrics-listen", &address.to_string()], SERVER);
    governed.ask(&call("1", "pay", "{}")).await;
    let scrape = common::client::Ask::get().to("/metrics").over(common::client::Http::One, address).await;
    let scrape = Scrape::parse(&scrape.text());
    assert_eq!(scrape.sum("toolweir_tool_calls_total", &[("tool", "pay"), ("decision", "allowed")]), 1.0);
    assert_eq!(scrape.sum("toolweir_limit_used_ratio", &[("limit", "1/hour")]), 1.0);
}

#[tokio::test]
async fn the_programs_policy_is_reloaded() {
    let mut governed = Governed::start(&[], SERVER);
    assert_eq!(denial(&governed.ask(&call("1", "wipe", "{}")).await)["reason"], "not_listed");
    governed.folder.write("policy.yaml", without_url("[{name: wipe}]"));
    let began = Instant::now();
    while governed.ask(&call("1", "wipe", "{}")).await["result"]["isError"] == true {
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn the_program_says_why_it_cannot_start_a_server() {
    let folder = Folder::new();
    let path = folder.write("policy.yaml", format!("{}    {FREE}\n", without_url("[]")));
    let path = path.to_str().unwrap();
    for (server, command, told) in [
        ("shop", "true", format!("toolweir-sidecar: no policy in {path} names the server shop; nothing could be called there\n")),
        (
            "bank",
            "/no/such/program",
            "toolweir-sidecar: /no/such/program cannot be started: No such file or directory (os error 2)\n".to_owned(),
        ),
    ] {
        let output = program::run(&["stdio", "--policy", path, "--server", server, "--", command]).await;
        assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap()), (Some(1), told));
        assert!(output.stdout.is_empty());
    }
}
