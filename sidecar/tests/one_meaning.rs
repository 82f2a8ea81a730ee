//! A request whose meaning could differ between two parsers is refused with a clear answer and a count, and its server
//! sees nothing; what passes, passes byte for byte. mcp.md, "One meaning" and "Headers", over HTTP/1.1 and HTTP/2.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::float_cmp)]

mod common;

use common::{
    FREE, allow_all, call,
    client::{Ask, Http, Wire},
    denial, modern_call, policy, policy_with, request, result,
    sidecar::Sidecar,
    until,
    upstream::{Deed, Raw, Reply, Upstream},
};
use serde_json::{Value, json};

/// A request that is refused: what it shows, the request, the HTTP status that says so to who is no client of MCP, and the
/// JSON-RPC code.
type Row = (&'static str, Ask, u16, i64);

/// The words of an answer, and the code of an error.
fn said(answer: &Value) -> (String, Option<i64>) {
    let words = answer.pointer("/result/content/0/text").or(answer.pointer("/error/message"));
    let error = &answer["error"]["code"];
    assert_eq!(error.is_null(), answer["result"]["isError"] == true, "{answer}");
    (words.unwrap().as_str().unwrap().to_owned(), error.as_i64())
}

/// Sends each row over both versions of HTTP: every one is refused as documented and counted, and the server sees none.
async fn refused(rows: &[Row]) {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    for http in Http::BOTH {
        for (name, ask, status, code) in rows {
            let before = sidecar.counted("refused").await;
            let plain = ask.clone().plain().over(http, sidecar.address).await;
            assert_eq!(plain.status, *status, "{name}, {http:?}: {}", plain.text());
            let answer = ask.over(http, sidecar.address).await;
            assert_eq!(answer.header("content-type"), "application/json", "{name}, {http:?}");
            let body = answer.json();
            assert_eq!(body["jsonrpc"], "2.0", "{name}, {http:?}");
            let (message, error) = said(&body);
            assert_eq!(said(&plain.json()), (message.clone(), Some(*code)), "{name}, {http:?}");
            assert!(message.starts_with("Refused: ") && message.len() > 20, "{name}, {http:?}: {message}");
            assert!(error.is_none_or(|error| error == *code), "{name}, {http:?}: {body}");
            assert!(error.is_some() || body["id"] == 1, "{name}, {http:?}: {body}");
            // A client that gets its id back hears the words; an error of HTTP ends its session. In the modern era it makes
            // the client of a call send other headers.
            let modern = ask.is_modern() && error.is_some();
            let own = if body["id"].is_null() || modern { *status } else { 200 };
            assert!(!(ask.is_modern() && *code == -32020) || error.is_some(), "{name}, {http:?}: {body}");
            assert_eq!(answer.status, own, "{name}, {http:?}: {body}");
            assert_eq!(denial(&body)["reason"], "refused", "{name}, {http:?}: {body}");
            assert_eq!(sidecar.counted("refused").await, before + 2.0, "{name}, {http:?}");
        }
    }
    assert_eq!(upstream.connections(), 0, "{:#?}", upstream.seen());
}

/// A row of a body that is refused.
fn body(name: &'static str, body: impl Into<Vec<u8>>, code: i64) -> Row {
    (name, Ask::post(body), 400, code)
}

fn ping() -> Ask {
    Ask::post(request("1", "ping", "{}"))
}

#[tokio::test]
async fn a_body_that_is_not_one_json_value_in_utf_8_is_refused() {
    let pay = call("1", "pay", "{}");
    let with_bom = [b"\xef\xbb\xbf".as_slice(), pay.as_bytes()].concat();
    let utf_16: Vec<u8> = pay.encode_utf16().flat_map(u16::to_le_bytes).collect();
    refused(&[
        body("empty", "", -32700),
        body("white space", " \n", -32700),
        body("byte-order mark", with_bom, -32700),
        body(
            "invalid UTF-8 in a string",
            b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":{\"name\":\"p\xff\"}}",
            -32700,
        ),
        body("overlong UTF-8", b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"p\xc0\xa9ing\"}", -32700),
        body("UTF-16", utf_16, -32700),
        body("two values", format!("{pay}{pay}"), -32700),
        body("two values, a line each", format!("{pay}\n{pay}"), -32700),
        body("a value and rubbish", format!("{pay}x"), -32700),
        body("half a value", &pay[..pay.len() - 1], -32700),
        body("trailing comma", r#"{"jsonrpc":"2.0","id":1,"method":"ping",}"#, -32700),
        body("comment", r#"{"jsonrpc":"2.0",/**/"id":1,"method":"ping"}"#, -32700),
        body("NaN", r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":NaN}}"#, -32700),
        body("single quotes", "{'jsonrpc':'2.0','id':1,'method':'ping'}", -32700),
        body("raw control character", "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"pi\tng\"}", -32700),
        body("raw NUL", b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\0\"}", -32700),
        body("half of a surrogate pair", call("1", r"p\ud800", "{}"), -32700),
        body("form", "name=pay", -32700),
    ])
    .await;
}

#[tokio::test]
async fn a_body_that_is_not_declared_as_plain_json_is_refused() {
    let ask = || Ask::post(call("1", "pay", "{}"));
    let of_type = |kind: &str| ask().without("content-type").with("content-type", kind);
    refused(&[
        ("no Content-Type", ask().without("content-type"), 415, -32600),
        ("another Content-Type", of_type("text/plain"), 415, -32600),
        ("a form", of_type("application/x-www-form-urlencoded"), 415, -32600),
        ("JSON but for a suffix", of_type("application/json-rpc"), 415, -32600),
        ("two in one", of_type("application/json, text/plain"), 415, -32600),
        ("UTF-16", of_type("application/json; charset=utf-16"), 415, -32600),
        ("an extended charset", of_type("application/json; charset*=utf-16''utf-16"), 415, -32600),
        ("an extended charset that holds anyway", of_type("application/json; charset*=utf-8''utf-8"), 415, -32600),
        ("a continued charset", of_type("application/json; charset*0=utf-; charset*1=16"), 415, -32600),
        ("a comment", of_type("application/json; (charset=utf-16)"), 415, -32600),
        ("a comment behind", of_type("application/json; charset=utf-8 (utf-16)"), 415, -32600),
        ("another parameter", of_type("application/json; profile=x"), 415, -32600),
        ("another parameter beside", of_type("application/json; charset=utf-8; x=\"; charset=utf-16\""), 415, -32600),
        ("one charset twice", of_type("application/json; charset=utf-8; charset=utf-8"), 415, -32600),
        ("an empty parameter", of_type("application/json; charset=utf-8;"), 415, -32600),
        ("an escape in quotes", of_type("application/json; charset=\"utf\\-16\""), 415, -32600),
        ("an escape that changes nothing", of_type("application/json; charset=\"utf\\-8\""), 415, -32600),
        ("quotes that do not end", of_type("application/json; charset=\"utf-8"), 415, -32600),
        ("a blank before the value", of_type("application/json; charset= utf-8"), 415, -32600),
        ("no value", of_type("application/json; charset"), 415, -32600),
        ("digits of another script", of_type("application/json; charset=utf-\u{ff18}"), 415, -32600),
        ("a blank that is none in ASCII", of_type("application/json;\u{a0}charset=utf-8"), 415, -32600),
        ("UTF-7 in quotes", of_type("application/json; charset=\"utf-7\""), 415, -32600),
        ("two charsets", of_type("application/json; charset=utf-8; charset=utf-16"), 415, -32600),
        ("gzip", ask().with("content-encoding", "gzip"), 415, -32600),
        ("identity", ask().with("content-encoding", "identity"), 415, -32600),
    ])
    .await;
}

#[tokio::test]
async fn a_body_that_is_declared_as_json_in_utf_8_passes() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    for kind in [
        "application/json",
        "Application/Json",
        "application/json;charset=utf-8",
        "application/json; charset=UTF-8",
        "application/json; Charset=\"utf-8\"",
    ] {
        for http in Http::BOTH {
            let ask = Ask::post(call("1", "pay", "{}")).without("content-type").with("content-type", kind);
            assert_eq!(ask.over(http, sidecar.address).await.status, 200, "{kind}, {http:?}");
            assert_eq!(upstream.seen().last().unwrap().header("content-type"), kind);
        }
    }
}

#[tokio::test]
async fn a_body_that_nests_too_deep_is_refused() {
    // The message, params and arguments are three levels.
    let nested = |depth: usize| call("1", "pay", &format!("{{\"x\":{}{}}}", "[".repeat(depth), "]".repeat(depth)));
    let objects = format!("{}1{}", "{\"a\":".repeat(130), "}".repeat(130));
    let aside = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"ping","params":{objects}}}"#);
    refused(&[
        body("one level too many", nested(126), -32700),
        body("a hundred thousand levels", nested(100_000), -32700),
        body("outside of the arguments", aside, -32700),
        body("an answer", format!(r#"{{"jsonrpc":"2.0","id":1,"result":{objects}}}"#), -32700),
    ])
    .await;
    let upstream = Upstream::start(|_| Reply::json(result("1"))).await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    assert_eq!(sidecar.reason(&nested(125)).await, "none");
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_however_its_length_is_told() {
    let upstream = Upstream::bank().await;
    let most = 100_000;
    let sidecar = Sidecar::with(&allow_all(&upstream.url()), |config| config.limits.body = most).await;
    let sized = |size: usize| {
        let empty = call("1", "pay", r#"{"x":""}"#).len();
        call("1", "pay", &format!(r#"{{"x":"{}"}}"#, "x".repeat(size - empty)))
    };
    let (fits, large) = (sized(most), sized(most + 1));
    let chunked = |body: &str| Ask::post(body).with("transfer-encoding", "chunked");
    for (http, ask) in [
        (Http::One, Ask::post(large.as_str())),
        (Http::One, chunked(&large)),
        (Http::Two, Ask::post(large.as_str())),
        (Http::Two, Ask::post(large.as_str()).with("content-length", &large.len().to_string())),
    ] {
        let before = sidecar.counted("refused").await;
        assert_eq!(ask.clone().plain().over(http, sidecar.address).await.status, 413, "{http:?}");
        let answer = ask.over(http, sidecar.address).await;
        assert_eq!((answer.status, &answer.json()["id"]), (200, &json!(1)), "{http:?}: {}", answer.text());
        assert_eq!(
            said(&answer.json()),
            (format!("Refused: the body is larger than {most} bytes; send less at once, or raise --max-body."), None)
        );
        assert_eq!(sidecar.counted("refused").await, before + 2.0);
    }
    assert_eq!(upstream.connections(), 0);
    for (http, ask) in [(Http::One, Ask::post(fits.as_str())), (Http::One, chunked(&fits)), (Http::Two, Ask::post(fits.as_str()))]
    {
        assert_eq!(ask.over(http, sidecar.address).await.json()["result"]["isError"], false);
    }
    assert!(upstream.seen().iter().all(|seen| seen.body == fits), "a body changed on its way");
    assert_eq!(upstream.seen().len(), 3);
    until("the room to come free", async || sidecar.scrape().await.sum("toolweir_held_bytes", &[]) == 0.0).await;
}

#[tokio::test]
async fn the_announced_length_of_a_body_is_enough_to_refuse_it() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    // The client waits for leave to send it.
    let ask = Ask::post("").with("content-length", "4194305").with("expect", "100-continue");
    assert_eq!(sidecar.ask(&ask).await.status, 413);
}

#[tokio::test]
async fn an_object_that_decides_and_repeats_a_key_is_refused() {
    let params = |params: &str| request("1", "tools/call", params);
    refused(&[
        body("method twice", r#"{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call","params":{"name":"pay"}}"#, -32600),
        body("id twice", r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}"#, -32600),
        body(
            "params twice",
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a"},"params":{"name":"pay"}}"#,
            -32600,
        ),
        body("jsonrpc twice", r#"{"jsonrpc":"2.0","jsonrpc":"1.0","id":1,"method":"ping"}"#, -32600),
        body("an unknown key twice", r#"{"jsonrpc":"2.0","id":1,"method":"ping","x":1,"x":1}"#, -32600),
        body(
            "method twice, once escaped",
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","m\u0065thod":"tools/call","params":{"name":"pay"}}"#,
            -32600,
        ),
        body("result twice", r#"{"jsonrpc":"2.0","id":1,"result":{},"result":{}}"#, -32600),
        body("name twice", params(r#"{"name":"a","name":"pay"}"#), -32600),
        body("name twice, once escaped", params(r#"{"name":"a","n\u0061me":"pay"}"#), -32600),
        body("name twice, both the same", params(r#"{"name":"pay","name":"pay"}"#), -32600),
        body("arguments twice", params(r#"{"name":"pay","arguments":{"x":1},"arguments":{"x":2}}"#), -32600),
        body("an unknown parameter twice", params(r#"{"name":"pay","x":1,"x":2}"#), -32600),
        body("_meta twice", params(r#"{"name":"pay","_meta":{},"_meta":{}}"#), -32600),
        body("a key of _meta twice", params(r#"{"name":"pay","_meta":{"progressToken":1,"progressToken":2}}"#), -32600),
        body("the request that is cancelled twice", request("1", "x", r#"{"requestId":1,"requestId":2}"#), -32600),
        body("params of another method", request("1", "resources/read", r#"{"uri":"a:b","uri":"a:c"}"#), -32600),
    ])
    .await;
}

#[tokio::test]
async fn a_key_that_differs_from_a_known_one_in_case_alone_is_refused() {
    let params = |params: &str| request("1", "tools/call", params);
    let mut rows = vec![
        body(
            "a second method",
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","METHOD":"tools/call","params":{"name":"pay"}}"#,
            -32600,
        ),
        body("Method alone", r#"{"jsonrpc":"2.0","id":1,"Method":"tools/call","params":{"name":"pay"}}"#, -32600),
        body("ID", r#"{"jsonrpc":"2.0","id":1,"ID":2,"method":"ping"}"#, -32600),
        body("RequestId", request("1", "x", r#"{"requestId":1,"RequestId":2}"#), -32600),
        body("requestid alone", request("1", "x", r#"{"requestid":1}"#), -32600),
        body(
            "Params with a long s",
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a"},"paramſ":{"name":"pay"}}"#,
            -32600,
        ),
        body(
            "Params with an escaped long s",
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a"},"param\u017f":{"name":"pay"}}"#,
            -32600,
        ),
        body("Result", r#"{"jsonrpc":"2.0","id":1,"Result":{},"method":"ping"}"#, -32600),
        body("Name", params(r#"{"name":"a","Name":"pay"}"#), -32600),
        body("Name first", params(r#"{"Name":"pay","name":"a"}"#), -32600),
        body("Arguments with a long s", params(r#"{"name":"pay","argumentſ":{}}"#), -32600),
        body("Task with the Kelvin sign", params("{\"name\":\"pay\",\"tas\u{212a}\":{}}"), -32600),
        body("_META", params(r#"{"name":"pay","_META":{}}"#), -32600),
        body(
            "the version in _meta",
            params(r#"{"name":"pay","_meta":{"io.modelcontextprotocol/ProtocolVersion":"2026-07-28"}}"#),
            -32600,
        ),
    ];
    for method in ["Tools/Call", "TOOLS/CALL", "toolſ/call", "toolſ\\/call", " tools/call", "tools/call\\n", "tools/call\\u0020"]
    {
        rows.push(body("the method", request("1", method, r#"{"name":"pay"}"#), -32600));
    }
    refused(&rows).await;
}

#[tokio::test]
async fn a_method_that_some_take_for_a_known_one_is_refused() {
    let known = [
        "tools/call",
        "tools/list",
        "initialize",
        "server/discover",
        "subscriptions/listen",
        "prompts/get",
        "resources/read",
        "tasks/get",
        "tasks/result",
        "notifications/initialized",
        "notifications/cancelled",
        "ping",
    ];
    let mut rows = Vec::new();
    for method in known {
        let params = r#"{"name":"pay","uri":"a:b","taskId":"1"}"#;
        for (name, odd) in [
            ("in capitals", method.to_uppercase()),
            ("its first letter a capital", format!("{}{}", method[..1].to_uppercase(), &method[1..])),
            ("a blank before", format!(" {method}")),
            ("a blank behind", format!("{method} ")),
            ("a tab behind", format!(r"{method}\t")),
            ("a line's end behind", format!(r"{method}\r\n")),
            ("a NUL behind", format!(r"{method}\u0000x")),
            ("a NUL before", format!(r"\u0000{method}")),
            ("a wide blank before", format!("\u{3000}{method}")),
            ("a hard blank behind", format!("{method}\u{a0}")),
            ("a line separator behind", format!("{method}\u{2028}")),
            ("no width behind", format!("{method}\u{200b}")),
            ("a byte-order mark before", format!("\u{feff}{method}")),
            ("a soft hyphen inside", format!("{}\u{ad}{}", &method[..2], &method[2..])),
            ("a delete behind", format!("{method}\u{7f}")),
        ] {
            rows.push(body(name, request("1", &odd, params), -32600));
        }
    }
    for odd in ["tool\u{17f}/list", "tools/li\u{17f}t", "ta\u{17f}\u{212a}s/get", "\u{ff54}ools/list", "TOOL\u{17f}/CALL"] {
        rows.push(body("another script", request("1", odd, r#"{"name":"pay"}"#), -32600));
    }
    rows.push(body("a method of tasks to come", request("1", "TASKS/wait", "{}"), -32600));
    refused(&rows).await;
    // A method that is not known is the server's to know.
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    for method in ["tools/lists", "tasks/wait", "x-bank/Pay", r"\u0070ing"] {
        assert_eq!(sidecar.ask(&Ask::post(request("1", method, "{}"))).await.status, 200, "{method}");
    }
}

#[tokio::test]
async fn a_key_with_a_nul_is_refused() {
    let params = |params: &str| request("1", "tools/call", params);
    refused(&[
        body(
            "of the message",
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","method\u0000":"tools/call","params":{"name":"pay"}}"#,
            -32600,
        ),
        body("of params", params(r#"{"name":"a","name\u0000x":"pay"}"#), -32600),
        body("of params, before the name", params(r#"{"\u0000name":"a","name":"pay"}"#), -32600),
        body("of _meta", params(r#"{"name":"a","_meta":{"x\u0000":1}}"#), -32600),
        body("the tool's name", params(r#"{"name":"pay\u0000x"}"#), -32600),
        body("the tool's name with a line break", params(r#"{"name":"pay\n"}"#), -32600),
    ])
    .await;
}

#[tokio::test]
async fn what_is_neither_one_request_nor_one_answer_is_refused() {
    let pay = call("1", "pay", "{}");
    refused(&[
        body("a batch", format!("[{pay}]"), -32600),
        body("a batch of two", format!("[{pay},{pay}]"), -32600),
        body("an empty batch", "[]", -32600),
        body("a string", "\"tools/call\"", -32600),
        body("null", "null", -32600),
        body("an empty object", "{}", -32600),
        body("an id alone", r#"{"jsonrpc":"2.0","id":1}"#, -32600),
        body("method null", r#"{"jsonrpc":"2.0","id":1,"method":null,"params":{"name":"pay"}}"#, -32600),
        body("method a number", r#"{"jsonrpc":"2.0","id":1,"method":7}"#, -32600),
        body("method a list", r#"{"jsonrpc":"2.0","id":1,"method":["tools/call"],"params":{"name":"pay"}}"#, -32600),
        body(
            "method and result",
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"pay"},"result":{}}"#,
            -32600,
        ),
        body("method and error", r#"{"jsonrpc":"2.0","id":1,"method":"ping","error":{"code":1,"message":"m"}}"#, -32600),
        body("id null", r#"{"jsonrpc":"2.0","id":null,"method":"tools/call","params":{"name":"pay"}}"#, -32600),
        body("id an object", r#"{"jsonrpc":"2.0","id":{},"method":"tools/call","params":{"name":"pay"}}"#, -32600),
        body("id half of a surrogate pair", r#"{"jsonrpc":"2.0","id":"\ud800","method":"ping"}"#, -32700),
        body("id true", r#"{"jsonrpc":"2.0","id":true,"method":"ping"}"#, -32600),
        body("no params", r#"{"jsonrpc":"2.0","id":1,"method":"tools/call"}"#, -32600),
        body("params a list", request("1", "tools/call", r#"["pay"]"#), -32600),
        body("no tool name", request("1", "tools/call", "{}"), -32600),
        body("tool name null", request("1", "tools/call", r#"{"name":null}"#), -32600),
        body("tool name a number", request("1", "tools/call", r#"{"name":7}"#), -32600),
        body(
            "a version that is no text",
            request("1", "ping", r#"{"_meta":{"io.modelcontextprotocol/protocolVersion":20260728}}"#),
            -32600,
        ),
        body("tool name a list", request("1", "tools/call", r#"{"name":["pay"]}"#), -32600),
    ])
    .await;
}

#[tokio::test]
async fn headers_that_disagree_with_the_body_are_refused() {
    let pay = || Ask::post(call("1", "pay", "{}"));
    let modern = || Ask::post(modern_call("1", "pay"));
    let read = || Ask::post(request("1", "resources/read", r#"{"uri":"bank:a"}"#));
    let disagrees = |name: &'static str, ask: Ask| (name, ask, 400, -32020);
    refused(&[
        disagrees("another method", pay().with("mcp-method", "tools/list")),
        disagrees("the method in another case", pay().with("mcp-method", "Tools/Call")),
        disagrees("no method", pay().with("mcp-method", "")),
        disagrees("another method than ping", ping().with("mcp-method", "tools/call")),
        disagrees("another tool", pay().with("mcp-name", "read")),
        disagrees(
            "another tool in a legacy request with a version",
            pay().with("mcp-name", "read").with("mcp-protocol-version", "2025-06-18"),
        ),
        disagrees("the tool in another case", pay().with("mcp-name", "Pay")),
        disagrees("two tools", pay().with("mcp-name", "pay, read")),
        disagrees("another tool in Base64", pay().with("mcp-name", "=?base64?cmVhZA==?=")),
        disagrees(
            "the tool in Base64 without its padding",
            Ask::post(call("1", "payment", "{}")).with("mcp-name", "=?base64?cGF5bWVudA?="),
        ),
        disagrees("Base64 in another case", pay().with("mcp-name", "=?BASE64?cGF5?=")),
        disagrees("Base64 cut short", pay().with("mcp-name", "=?base64?cGF5")),
        disagrees("the method in Base64", pay().with("mcp-method", "=?base64?dG9vbHMvY2FsbA==?=")),
        disagrees("a version cut short", modern().with("mcp-protocol-version", "2026-07-2")),
        disagrees("a name that is not ASCII", Ask::post(call("1", "z\u{e4}hlen", "{}")).with("mcp-name", "z\u{e4}hlen")),
        disagrees("a method on a GET", Ask::get().with("mcp-method", "tools/call")),
        disagrees("a tool on a DELETE", Ask::delete().with("mcp-name", "pay")),
        disagrees("what is no Base64", pay().with("mcp-name", "=?base64?!!!?=")),
        disagrees("Base64 that is no UTF-8", pay().with("mcp-name", "=?base64?/w==?=")),
        disagrees("a tool for a method without one", Ask::post(request("1", "tools/list", "{}")).with("mcp-name", "pay")),
        disagrees("a tool for initialize", Ask::post(request("1", "initialize", "{}")).with("mcp-name", "pay")),
        disagrees("another resource", read().with("mcp-name", "bank:b")),
        disagrees("another prompt", Ask::post(request("1", "prompts/get", r#"{"name":"a"}"#)).with("mcp-name", "b")),
        disagrees("another task", Ask::post(request("1", "tasks/get", r#"{"taskId":"a"}"#)).with("mcp-name", "b")),
        disagrees("another version", modern().with("mcp-protocol-version", "2025-11-25")),
        disagrees("a method on an answer", Ask::post(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#).with("mcp-method", "tools/call")),
        disagrees("a tool on an answer", Ask::post(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#).with("mcp-name", "pay")),
    ])
    .await;
}

#[tokio::test]
async fn a_header_that_decides_must_not_end_at_the_sidecar() {
    let ask = |named: &str| Ask::post(modern_call("1", "pay")).with("connection", named);
    // HTTP/2 has no Connection header, so this is for HTTP/1.1 alone.
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    for named in ["mcp-session-id", "close, Mcp-Name", "content-type", "mcp-protocol-version, keep-alive"] {
        let answer = sidecar.ask(&ask(named).plain()).await;
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (400, &json!(-32600)), "{named}");
    }
    assert_eq!(sidecar.counted("refused").await, 4.0);
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn a_header_that_decides_and_stands_twice_is_refused() {
    let ask = || Ask::post(modern_call("1", "pay"));
    let twice = |name: &str, first: &str, second: &str| ask().without(name).with(name, first).with(name, second);
    refused(&[
        ("Mcp-Method", twice("mcp-method", "tools/call", "tools/call"), 400, -32600),
        ("Mcp-Name", twice("mcp-name", "pay", "read"), 400, -32600),
        ("MCP-Protocol-Version", twice("mcp-protocol-version", "2026-07-28", "2025-11-25"), 400, -32600),
        ("Mcp-Session-Id", twice("mcp-session-id", "a", "b"), 400, -32600),
        ("Content-Type", twice("content-type", "application/json", "text/plain"), 400, -32600),
        ("Authorization", twice("authorization", "Bearer a", "Bearer b"), 400, -32600),
        ("Last-Event-ID", twice("last-event-id", "1", "2"), 400, -32600),
        ("Mcp-Param-Region", twice("mcp-param-region", "eu", "us"), 400, -32600),
    ])
    .await;
    for ask in [Ask::get, Ask::delete] {
        let twice = |name: &str| ask().with(name, "a").with(name, "a");
        refused(&[
            ("Mcp-Session-Id", twice("mcp-session-id"), 400, -32600),
            ("MCP-Protocol-Version", twice("mcp-protocol-version"), 400, -32600),
            ("Last-Event-ID", twice("last-event-id"), 400, -32600),
            ("Authorization", twice("authorization"), 400, -32600),
        ])
        .await;
    }
}

#[tokio::test]
async fn a_header_that_decides_and_has_a_value_that_it_cannot_have_is_refused() {
    for ask in [|| Ask::post(call("1", "pay", "{}")), Ask::get, Ask::delete] {
        let with = |name: &str, value: &str| ask().with(name, value);
        refused(&[
            ("an empty session", with("mcp-session-id", ""), 400, -32600),
            ("two sessions", with("mcp-session-id", "a, b"), 400, -32600),
            ("a session beyond ASCII", with("mcp-session-id", "s\u{e9}"), 400, -32600),
            ("a session with a tab", with("mcp-session-id", "a\tb"), 400, -32600),
            ("two versions", with("mcp-protocol-version", "2025-03-26, 2026-07-28"), 400, -32020),
            ("a version in quotes", with("mcp-protocol-version", "\"2026-07-28\""), 400, -32020),
            ("no version", with("mcp-protocol-version", ""), 400, -32020),
            ("a version beyond ASCII", with("mcp-protocol-version", "2026-07-2\u{ff18}"), 400, -32020),
            ("a version of any length", with("mcp-protocol-version", &"2".repeat(65)), 400, -32020),
            ("an event with a tab", with("last-event-id", "1\t2"), 400, -32600),
            ("an underscore in a name", with("mcp_name", "read"), 400, -32600),
            ("a second Content-Type for some", with("content_type", "application/json; charset=utf-16"), 400, -32600),
            ("an argument beyond ASCII", with("mcp-param-region", "\u{e9}"), 400, -32020),
            ("an argument in odd Base64", with("mcp-param-region", "=?BASE64?ZXU=?="), 400, -32020),
        ])
        .await;
    }
    // HTTP/1.1 takes blanks around a value away; over HTTP/2 they would be lost on the way to the server.
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    for (name, value, status) in [
        ("mcp-session-id", " a", 400),
        ("mcp-session-id", "a ", 400),
        ("mcp-protocol-version", " 2025-11-25", 400),
        ("last-event-id", "1 ", 400),
        ("mcp-name", " pay", 400),
        ("content-type", "application/json ", 415),
    ] {
        for tool in ["pay", " pay"] {
            let ask = Ask::post(call("1", tool, "{}")).plain().without(name).with(name, value);
            let answer = ask.over(Http::Two, sidecar.address).await;
            assert_eq!(answer.status, status, "{name}: {value:?}: {}", answer.text());
        }
    }
    assert_eq!(upstream.connections(), 0, "{:#?}", upstream.seen());
}

#[tokio::test]
async fn versions_are_for_client_and_server_to_agree_on() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    for version in ["2025-03-26", "2026-07-28", "2099-12-31", "DRAFT-2027-v1"] {
        for http in Http::BOTH {
            let ask = Ask::post(call("1", "pay", "{}")).with("mcp-protocol-version", version);
            assert_eq!(ask.over(http, sidecar.address).await.status, 200, "{version}, {http:?}");
            assert_eq!(upstream.seen().last().unwrap().header("mcp-protocol-version"), version);
        }
    }
}

#[tokio::test]
async fn headers_that_agree_with_the_body_pass() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    let modern = Ask::post(modern_call("1", "pay")).with("mcp-method", "tools/call").with("mcp-protocol-version", "2026-07-28");
    let mut asked = 0;
    for http in Http::BOTH {
        for (name, ask) in [
            ("plain", modern.clone().with("mcp-name", "pay")),
            ("in Base64", modern.clone().with("mcp-name", "=?base64?cGF5?=")),
            ("without Mcp-Name", modern.clone()),
            ("a name that no header can hold", Ask::post(call("1", "zählen", "{}")).with("mcp-name", "=?base64?esOkaGxlbg==?=")),
            ("a version with a legacy body", Ask::post(call("1", "pay", "{}")).with("mcp-protocol-version", "2025-11-25")),
        ] {
            let answer = ask.over(http, sidecar.address).await;
            assert_eq!(answer.status, 200, "{name}, {http:?}: {}", answer.text());
            asked += 1;
        }
    }
    assert_eq!(upstream.seen().len(), asked);
}

#[tokio::test]
async fn arguments_that_could_mean_two_things_deny_the_call_where_a_policy_reads_them() {
    let upstream = Upstream::bank().await;
    let tools = r#"[{name: pay, validations: [{expression: "args.amount <= 500"}]}, {name: note}]"#;
    let sidecar = Sidecar::start(&policy(&upstream.url(), tools)).await;
    let rows = [
        ("a key twice", r#"{"amount":1,"amount":1000000}"#),
        ("a key twice, once escaped", r#"{"amount":1,"\u0061mount":1000000}"#),
        ("a key in another case", r#"{"amount":1,"Amount":1000000}"#),
        ("a key with a long s", r#"{"amount":1,"x":{"y":1,"y":2}}"#),
        ("a key with a NUL", r#"{"amount":1,"amount\u0000":1000000}"#),
        ("a list", "[1]"),
        ("a string", "\"1\""),
        ("half of a surrogate pair", r#"{"amount":1,"x":"\ud800"}"#),
    ];
    for http in Http::BOTH {
        for (name, arguments) in rows {
            let answer = Ask::post(call("1", "pay", arguments)).over(http, sidecar.address).await;
            assert_eq!(answer.status, 200, "{name}, {http:?}");
            let answer = answer.json();
            assert_eq!((&answer["id"], &answer["result"]["isError"]), (&json!(1), &json!(true)), "{name}, {http:?}: {answer}");
            assert_eq!(denial(&answer)["reason"], "malformed", "{name}, {http:?}: {answer}");
        }
    }
    assert_eq!(upstream.connections(), 0, "{:#?}", upstream.seen());
    let malformed = &[("decision", "denied"), ("reason", "malformed"), ("tool", "pay")];
    assert_eq!(sidecar.scrape().await.sum("toolweir_tool_calls_total", malformed), 2.0 * 8.0);
    // Where no policy reads them they are the server's, and pass as they are.
    let body = call("1", "note", rows[0].1);
    assert_eq!(sidecar.reason(&body).await, "none");
    assert_eq!(upstream.only().text(), body);
}

#[tokio::test]
async fn a_tools_call_without_an_id_is_dropped_and_counted() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    let body = r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"pay","arguments":{}}}"#;
    for http in Http::BOTH {
        let answer = Ask::post(body).over(http, sidecar.address).await;
        assert_eq!((answer.status, answer.body.len()), (202, 0), "{http:?}");
    }
    assert_eq!(upstream.connections(), 0);
    let scrape = sidecar.scrape().await;
    assert_eq!(scrape.sum("toolweir_requests_total", &[("method", "tools/call"), ("outcome", "dropped")]), 2.0);
    assert_eq!(scrape.sum("toolweir_tool_calls_total", &[("decision", "denied"), ("reason", "malformed")]), 2.0);
    let lines = sidecar.audit(2).await;
    assert_eq!(
        (&lines[0]["tool"], &lines[0]["decision"], &lines[0]["outcome"]),
        (&json!("pay"), &json!("denied"), &json!("dropped"))
    );
}

#[tokio::test]
async fn a_host_that_stands_twice_or_not_at_all_is_refused() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    let body = request("1", "ping", "{}");
    let rest = format!("Content-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    for (head, status) in [
        ("POST /bank HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n", 400),
        ("POST /bank HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n", 400),
        ("POST /bank HTTP/1.1\r\n", 403),
        ("POST /bank HTTP/1.0\r\n", 403),
        // What stands in the target counts.
        ("POST http://evil.example/bank HTTP/1.1\r\nHost: localhost\r\n", 403),
        ("POST http://localhost/bank HTTP/1.1\r\nHost: evil.example\r\n", 200),
    ] {
        assert_eq!(statuses(&sidecar, format!("{head}{rest}").as_bytes()).await, [status], "{head}");
    }
    assert_eq!(upstream.only().header("host"), upstream.address.to_string());
}

#[tokio::test]
async fn what_a_page_of_another_origin_sends_is_forbidden() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::with(&allow_all(&upstream.url()), |config| config.allowed_hosts = vec!["agent.test".to_owned()]).await;
    let own = sidecar.address;
    let from = |name: &str, value: &str| ping().with(name, value);
    for http in Http::BOTH {
        for ask in [
            from("origin", "http://evil.example"),
            from("origin", "https://localhost.evil.example"),
            from("origin", "null"),
            from("origin", ""),
            // A page can be at an address, too.
            from("origin", "http://203.0.113.9"),
            from("origin", "http://203.0.113.9:15001"),
            from("origin", "http://localhost").with("origin", "http://evil.example"),
            from("host", "evil.example"),
            from("host", "evil.example@localhost"),
            from("origin", "http://evil.example@localhost"),
            from("host", "localhost.evil.example:15001"),
            Ask::get().with("origin", "http://evil.example"),
            Ask::delete().with("host", "evil.example"),
        ] {
            let before = sidecar.counted("forbidden_origin").await;
            let answer = ask.over(http, own).await;
            assert_eq!((answer.status, &answer.json()["error"]["code"]), (403, &json!(-32600)), "{http:?} {ask:?}");
            assert_eq!(sidecar.counted("forbidden_origin").await, before + 1.0, "{http:?} {ask:?}");
        }
    }
    assert_eq!(upstream.connections(), 0, "{:#?}", upstream.seen());
    let mut passed = 0;
    for http in Http::BOTH {
        for ask in [
            from("origin", "http://localhost:6274"),
            from("origin", "http://127.0.0.1"),
            from("origin", "http://[::1]:8080"),
            from("origin", "https://agent.test"),
            from("host", "localhost:15001"),
            from("host", "10.1.2.3:15001"),
            from("host", "10.1.2.3:15001").with("origin", "http://10.1.2.3:15001"),
            from("host", "agent.test"),
            from("host", "[::1]:15001"),
        ] {
            assert_eq!(ask.over(http, own).await.status, 200, "{http:?} {ask:?}");
            passed += 1;
        }
    }
    assert_eq!(upstream.seen().len(), passed);
    assert!(upstream.seen().iter().all(|seen| seen.header("host") == upstream.address.to_string()), "a Host was not rewritten");
}

#[tokio::test]
async fn nothing_is_at_other_paths() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    for http in Http::BOTH {
        for path in [
            "/bank?x=1",
            "/bank?",
            "/",
            "//bank",
            "/bank/x",
            "/bank/mcp",
            "/bank/-/messages/",
            "/bank/-/messages/0123",
            "/bank/../bank",
        ] {
            let before = sidecar.counted("not_found").await;
            let plain = ping().to(path).plain().over(http, sidecar.address).await;
            let answer = ping().to(path).over(http, sidecar.address).await;
            // Who posts to a stream that is gone would wait there for an answer.
            let own = if path.contains("/-/") { 404 } else { 200 };
            assert_eq!((plain.status, answer.status), (404, own), "{http:?} {path}");
            assert_eq!((&answer.json()["id"], &answer.json()["error"]["code"]), (&json!(1), &json!(-32600)), "{http:?} {path}");
            assert_eq!(sidecar.counted("not_found").await, before + 2.0, "{http:?} {path}");
        }
        for method in ["PUT", "HEAD", "OPTIONS", "PATCH"] {
            let answer = Ask::delete().method(method).over(http, sidecar.address).await;
            assert_eq!((answer.status, answer.header("allow")), (405, "POST, GET, DELETE"), "{http:?} {method}");
        }
    }
    assert_eq!(upstream.connections(), 0, "{:#?}", upstream.seen());
    assert_eq!(ping().to("/bank/").over(Http::One, sidecar.address).await.status, 200);
}

/// Sends bytes as they are, and gives the status of each answer until the sidecar closes the connection.
async fn statuses(sidecar: &Sidecar, bytes: &[u8]) -> Vec<u16> {
    let mut wire = Wire::connect(sidecar.address).await;
    wire.write(bytes).await;
    let mut statuses = Vec::new();
    while let Some(status) = wire.next_status().await {
        statuses.push(status);
    }
    statuses
}

#[tokio::test]
async fn requests_whose_end_could_be_read_in_two_ways_are_refused() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    let (ping, hidden) = (request("1", "ping", "{}"), call("2", "pay", "{}"));
    let head = "POST /bank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    let smuggled = format!("{head}Content-Length: {}\r\n\r\n{hidden}", hidden.len());
    let chunked = format!("{:x}\r\n{ping}\r\n0\r\n\r\n", ping.len());
    let n = ping.len();
    for (name, bytes) in [
        ("two lengths", format!("{head}Content-Length: {n}\r\nContent-Length: {}\r\n\r\n{ping}{smuggled}", n + smuggled.len())),
        ("two lengths in one", format!("{head}Content-Length: {n}, {}\r\n\r\n{ping}", n + 1)),
        ("a length with a sign", format!("{head}Content-Length: +{n}\r\n\r\n{ping}")),
        ("a negative length", format!("{head}Content-Length: -1\r\n\r\n{ping}")),
        ("a length in hex", format!("{head}Content-Length: 0x{n:x}\r\n\r\n{ping}")),
        ("chunked and something after", format!("{head}Transfer-Encoding: chunked, identity\r\n\r\n{chunked}")),
        ("an unknown coding", format!("{head}Transfer-Encoding: xchunked\r\n\r\n{chunked}")),
        ("a folded header", format!("{head}X: a\r\n Transfer-Encoding: chunked\r\nContent-Length: {n}\r\n\r\n{ping}")),
        ("a space before the colon", format!("{head}Transfer-Encoding : chunked\r\nContent-Length: {n}\r\n\r\n{ping}")),
        ("a NUL in a header", format!("{head}X: a\0b\r\nContent-Length: {n}\r\n\r\n{ping}")),
        ("a chunk size with a sign", format!("{head}Transfer-Encoding: chunked\r\n\r\n+{chunked}")),
        ("a chunk that goes on", format!("{head}Transfer-Encoding: chunked\r\n\r\n1\r\n{ping}\r\n0\r\n\r\n")),
    ] {
        let statuses = statuses(&sidecar, bytes.as_bytes()).await;
        // A body whose chunks make no sense has not arrived.
        let status = if name.contains("chunk ") { 408 } else { 400 };
        assert_eq!(statuses, [status], "{name}");
    }
    assert_eq!(upstream.connections(), 0, "{:#?}", upstream.seen());
}

#[tokio::test]
async fn a_get_or_delete_whose_end_could_be_read_in_two_ways_is_refused() {
    let upstream = Upstream::start(|_| Reply::status(405)).await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    let hidden = call("2", "pay", "{}");
    let smuggled = format!(
        "POST /bank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{hidden}",
        hidden.len()
    );
    let n = smuggled.len();
    for method in ["GET", "DELETE"] {
        for lengths in [
            format!("Content-Length: {n}\r\nContent-Length: 0"),
            format!("Content-Length: {n}, 0"),
            format!("Content-Length: +{n}"),
            "Transfer-Encoding: chunked, identity".to_owned(),
            "Transfer-Encoding: xchunked".to_owned(),
        ] {
            let bytes = format!("{method} /bank HTTP/1.1\r\nHost: localhost\r\n{lengths}\r\n\r\n{smuggled}");
            assert_eq!(statuses(&sidecar, bytes.as_bytes()).await, [400], "{method}, {lengths}");
        }
        assert_eq!(upstream.connections(), 0, "{:#?}", upstream.seen());
    }
    // Where the end is clear, the body is dropped, and is no request of its own.
    for method in ["GET", "DELETE"] {
        let bytes =
            format!("{method} /bank HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {n}\r\n\r\n{smuggled}");
        assert_eq!(statuses(&sidecar, bytes.as_bytes()).await, [405], "{method}");
        let seen = upstream.seen().pop().unwrap();
        assert_eq!((seen.method.as_str(), seen.body.len(), seen.header("content-length")), (method, 0, ""));
    }
    assert_eq!(upstream.seen().len(), 2);
}

#[tokio::test]
async fn two_lengths_over_http_2_are_refused() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    let pay = call("1", "pay", "{}");
    let length = pay.len().to_string();
    let ask = Ask::post(pay.as_str()).plain().with("content-length", &length).with("content-length", &length);
    assert_eq!(ask.over(Http::Two, sidecar.address).await.status, 400);
    assert_eq!(upstream.connections(), 0);
    assert_eq!(Ask::post(pay).with("content-length", &length).over(Http::Two, sidecar.address).await.status, 200);
}

#[tokio::test]
async fn a_body_with_both_a_length_and_chunks_reaches_the_server_as_it_was_decided_on() {
    for lengths in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "X: a\nTransfer-Encoding: chunked",
    ] {
        let upstream =
            Raw::start(Deed::Say(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec())).await;
        let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
        let (ping, hidden) = (request("1", "ping", "{}"), call("2", "pay", "{}"));
        let head = "POST /bank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
        let second = format!("{head}Connection: close\r\nContent-Length: {}\r\n\r\n{hidden}", hidden.len());
        let bytes = format!("{head}{lengths}\r\n\r\n{:x}\r\n{ping}\r\n0\r\n\r\n{second}", ping.len());
        let statuses = statuses(&sidecar, bytes.as_bytes()).await;
        let received = String::from_utf8(upstream.received()).unwrap();
        // Its chunks are what it means to both, and what follows is a request of its own or nothing.
        let (first, after) = received.split_once(&ping).unwrap_or_else(|| panic!("{lengths:?}: {received}"));
        let first = first.to_ascii_lowercase();
        assert!(first.ends_with("\r\n\r\n") && !first.contains("transfer-encoding"), "{lengths:?}: {received}");
        assert_eq!(first.matches(&format!("content-length: {}\r\n", ping.len())).count(), 1, "{lengths:?}: {received}");
        assert_eq!(statuses.len(), 1 + after.matches("POST /mcp HTTP/1.1\r\n").count(), "{lengths:?}: {received}");
        assert!(after.is_empty() || after.starts_with("POST /mcp HTTP/1.1\r\n"), "{lengths:?}: {received}");
    }
}

/// The headers that a server gets or a client gets, without those that say how long the body is.
fn names(headers: &http::HeaderMap) -> Vec<(String, String)> {
    let mut names: Vec<(String, String)> = headers
        .iter()
        .filter(|(name, _)| !["content-length", "date", "transfer-encoding"].contains(&name.as_str()))
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    names.sort();
    names
}

/// A POST with headers for the server, for the sidecar, and for the next hop alone.
fn with_headers_of_every_kind(body: &str, http: Http) -> Ask {
    let mut ask = Ask::post(body)
        .with("authorization", "Bearer secret")
        .with("mcp-session-id", "s-1")
        .with("mcp-param-amount", "=?base64?MQ==?=")
        .with("x-unknown", "a")
        .with("x-unknown", "b")
        .with("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .with("last-event-id", "9")
        .with("accept-encoding", "gzip, br")
        .with("user-agent", "test")
        .with("origin", "http://localhost:1")
        .with("te", "trailers");
    if http == Http::One {
        ask = ask
            .with("connection", "keep-alive, X-Hop")
            .with("keep-alive", "timeout=5")
            .with("x-hop", "1")
            .with("proxy-authorization", "Basic eDp5")
            .with("expect", "100-continue")
            .with("upgrade", "h2c");
    }
    ask
}

#[tokio::test]
async fn what_passes_passes_byte_for_byte_in_both_directions() {
    let answer = "\n {\"result\" : {\"isError\":false, \"content\":[ ],\"x\":1.0,\"y\":1e2,\"z\":\"\\u00e9\u{e9}\\/\"},\r\n\"id\":7.0 , \"jsonrpc\":\"2.0\"}\t\n";
    let upstream = Upstream::start(move |_| {
        Reply::new(200, "application/json; charset=utf-8", answer)
            .with("mcp-session-id", "s-1")
            .with("x-of-the-server", "a")
            .with("x-of-the-server", "b")
            .with("keep-alive", "timeout=5")
            .with("connection", "x-hop")
            .with("x-hop", "1")
    })
    .await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    let body = "\t{ \"params\":{\"arguments\":{\"b\":1.0,\"a\":[1e2,-0.0,10000000000000000000000],\"a b\":\"\\u00e9\u{e9}\"} ,\"name\":\"p\\u0061y\"},\n\"extra\":null,\"method\":\"tools\\/call\", \"id\":7.0,\"jsonrpc\":\"2.0\" }\r\n";
    for http in Http::BOTH {
        let got = with_headers_of_every_kind(body, http).over(http, sidecar.address).await;
        assert_eq!((got.status, got.text().as_str()), (200, answer), "{http:?}");
        let headers = [
            // For the page that it comes from.
            ("access-control-allow-origin", "http://localhost:1"),
            ("access-control-expose-headers", "Mcp-Session-Id, MCP-Protocol-Version, WWW-Authenticate, Retry-After"),
            ("content-type", "application/json; charset=utf-8"),
            ("mcp-session-id", "s-1"),
            ("vary", "Origin"),
            ("x-of-the-server", "a"),
            ("x-of-the-server", "b"),
        ];
        assert_eq!(names(&got.headers), headers.map(|(name, value)| (name.to_owned(), value.to_owned())), "{http:?}");
        assert_eq!(got.header("content-length"), answer.len().to_string(), "{http:?}");
        let seen = upstream.seen().pop().unwrap();
        assert_eq!((seen.method.as_str(), seen.path.as_str(), seen.text()), ("POST", "/mcp", body), "{http:?}");
        assert_eq!(seen.header("content-length"), body.len().to_string());
        let address = upstream.address.to_string();
        let headers = [
            ("accept", "application/json, text/event-stream"),
            ("authorization", "Bearer secret"),
            ("content-type", "application/json"),
            ("host", address.as_str()),
            ("last-event-id", "9"),
            ("mcp-param-amount", "=?base64?MQ==?="),
            ("mcp-session-id", "s-1"),
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            ("user-agent", "test"),
            ("x-unknown", "a"),
            ("x-unknown", "b"),
        ];
        assert_eq!(names(&seen.headers), headers.map(|(name, value)| (name.to_owned(), value.to_owned())), "{http:?}");
    }
}

#[tokio::test]
async fn every_status_and_body_of_a_server_passes() {
    let upstream = Upstream::start(|seen| match seen.json()["method"].as_str().unwrap() {
        "notifications/initialized" => Reply::status(202),
        "ping" => Reply::new(400, "application/json", r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32600,"message":"no"}}"#),
        "prompts/list" => Reply::new(404, "text/plain", "Session not found"),
        "resources/list" => Reply::new(500, "text/html", "<h1>"),
        _ => Reply::new(200, "application/octet-stream", vec![0xff, 0x00]).with("content-encoding", "gzip"),
    })
    .await;
    let sidecar = Sidecar::start(&policy_with(&upstream.url(), "[{name: \"*\", action: Allow}]", &[FREE])).await;
    for http in Http::BOTH {
        let post = async |method: &str| Ask::post(request("1", method, "{}")).over(http, sidecar.address).await;
        let initialized =
            Ask::post(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#).over(http, sidecar.address).await;
        assert_eq!((initialized.status, initialized.body.len(), initialized.header("content-type")), (202, 0, ""));
        let ping = post("ping").await;
        assert_eq!((ping.status, &ping.json()["error"]["message"]), (400, &json!("no")));
        let prompts = post("prompts/list").await;
        assert_eq!(
            (prompts.status, prompts.text().as_str(), prompts.header("content-type")),
            (404, "Session not found", "text/plain")
        );
        assert_eq!(post("resources/list").await.status, 500);
        let discovered = post("server/discover").await;
        assert_eq!((discovered.body.as_ref(), discovered.header("content-encoding")), ([0xff, 0x00].as_slice(), "gzip"));
    }
    let scrape = sidecar.scrape().await;
    let counted =
        |method: &str, outcome: &str| scrape.sum("toolweir_requests_total", &[("method", method), ("outcome", outcome)]);
    assert_eq!(counted("notifications/initialized", "ok"), 2.0);
    assert_eq!(counted("ping", "upstream_rejected"), 2.0);
    assert_eq!(counted("resources/list", "upstream_error"), 2.0);
}

#[tokio::test]
async fn an_answer_of_the_client_passes() {
    let upstream = Upstream::start(|_| Reply::status(202)).await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    for body in [
        r#"{"jsonrpc":"2.0","id":"e-1","result":{"action":"accept","content":{"tools":[{"name":"x"}]}}}"#,
        r#"{"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"no"}}"#,
    ] {
        for http in Http::BOTH {
            assert_eq!(Ask::post(body).over(http, sidecar.address).await.status, 202);
            assert_eq!(upstream.seen().pop().unwrap().text(), body);
        }
    }
    assert_eq!(sidecar.scrape().await.sum("toolweir_requests_total", &[("method", "_answer"), ("outcome", "ok")]), 4.0);
}

#[tokio::test]
async fn requests_of_one_connection_are_decided_one_by_one() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&policy(&upstream.url(), "[{name: pay}]")).await;
    let mut wire = Wire::connect(sidecar.address).await;
    let (pay, other) = (call("1", "pay", "{}"), call("2", "steal", "{}"));
    let host = sidecar.address.to_string();
    let pipelined = [Ask::post(pay.as_str()), Ask::post(other.as_str()), Ask::post("{"), Ask::post(pay.as_str())];
    wire.write(&pipelined.iter().flat_map(|ask| ask.bytes(&host)).collect::<Vec<u8>>()).await;
    assert_eq!(wire.answer().await.text(), result("1"));
    assert_eq!(denial(&wire.answer().await.json())["reason"], "not_listed");
    assert_eq!(wire.answer().await.status, 400);
    assert_eq!(wire.answer().await.text(), result("1"));
    let bodies: Vec<Value> = upstream.seen().iter().map(|seen| seen.json()["params"]["name"].clone()).collect();
    assert_eq!(bodies, ["pay", "pay"]);
}
