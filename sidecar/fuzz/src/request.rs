//! A message of a client, with the headers that came with it: it is refused or it means one thing.
//!
//! The input may begin with header lines, each `name: value`, and an empty line; the rest is the body.

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::value::RawValue;
use toolweir_engine::{
    Denial, Operation,
    json::{JsonError, Raw},
};
use toolweir_sidecar::{
    mcp::{
        answer, headers,
        id::LONGEST_ID,
        method_label,
        request::{Message, Refusal, Request, parse},
        scan::{ReplyTo, Scan},
    },
    proxy::failure::RequestFailure,
};

use super::{
    assert_one_line,
    events::events,
    tree::{Reader, Tree},
};

/// A message as one reader takes it.
#[derive(Debug, Default, PartialEq)]
struct Meaning<'t> {
    method: Option<&'t str>,
    has_id: bool,
    is_answer: bool,
    name: Option<&'t str>,
    uri: Option<&'t str>,
    task_id: Option<&'t str>,
    request_id: Option<&'t Tree>,
    arguments: Option<&'t Tree>,
    task: bool,
    version: Option<&'t str>,
}

impl<'t> Meaning<'t> {
    fn of(tree: &'t Tree, reader: Reader) -> Self {
        let get = |tree, key| reader.get(tree, key);
        let params = get(tree, "params").unwrap_or(&Tree::Null);
        let meta = get(params, "_meta").unwrap_or(&Tree::Null);
        Self {
            method: get(tree, "method").and_then(Tree::string),
            has_id: get(tree, "id").is_some(),
            is_answer: get(tree, "result").or(get(tree, "error")).is_some(),
            name: get(params, "name").and_then(Tree::string),
            uri: get(params, "uri").and_then(Tree::string),
            task_id: get(params, "taskId").and_then(Tree::string),
            request_id: get(params, "requestId"),
            arguments: get(params, "arguments"),
            task: get(params, "task").is_some_and(|task| *task != Tree::Null),
            version: get(meta, "io.modelcontextprotocol/protocolVersion").and_then(Tree::string),
        }
    }
}

/// Splits an input into headers and body.
fn split(mut data: &[u8]) -> (HeaderMap, &[u8]) {
    let (mut headers, whole) = (HeaderMap::new(), data);
    while let Some(end) = data.iter().position(|byte| *byte == b'\n') {
        let (line, rest) = (&data[..end], &data[end + 1..]);
        data = rest;
        if line.is_empty() {
            return (headers, data);
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { break };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        let (Ok(name), Ok(value)) = (name, value) else { break };
        headers.append(name, value);
    }
    (HeaderMap::new(), whole)
}

/// The check.
pub fn check(data: &[u8]) {
    let (headers, body) = split(data);
    if let Err(refusal) = &headers::check(&headers) {
        refused(refusal, &Scan::of(body));
    }
    declared(&headers);
    let scanned = scanned(body);
    let tree = Tree::read(body);
    let message = match parse(body) {
        Ok(message) => message,
        Err(refusal) => {
            refused(&refusal, &scanned);
            if let Refusal::Json(why) = refusal {
                let another = matches!(why, JsonError::TooDeep | JsonError::LoneSurrogate(_));
                assert!(another || !matches!(tree, Ok(Some(_))), "refused as no JSON, which it is: {why}");
            }
            return;
        }
    };
    let tree = tree.expect("what is accepted is JSON");
    let request = match &message {
        Message::Request(request) => {
            answered(request);
            let strict = ReplyTo::from(&**request);
            let long = strict.id.as_ref().is_some_and(|id| id.len() > 6 * LONGEST_ID);
            assert!(scanned == strict || long, "{scanned:?} {strict:?}");
            agree(&headers, request);
            Some(&**request)
        }
        Message::Answer => {
            assert_eq!(scanned.id, None, "an answer has no answer");
            None
        }
    };
    let Some(tree) = tree else { return };
    let read = |raw: Raw<'_>| Tree::read(raw.as_str().as_bytes()).expect("it was JSON").expect("it was read");
    let arguments = request.and_then(|request| request.params.arguments).map(read);
    let request_id = request.and_then(|request| request.params.request_id).map(read);
    let ours = match request {
        None => Meaning { is_answer: true, ..Meaning::default() },
        Some(request) => Meaning {
            method: Some(&request.method),
            has_id: request.id.is_some(),
            is_answer: false,
            name: request.params.name.as_deref(),
            uri: request.params.uri.as_deref(),
            task_id: request.params.task_id.as_deref(),
            request_id: request_id.as_ref(),
            arguments: arguments.as_ref(),
            task: request.params.task,
            version: request.params.protocol_version.as_deref(),
        },
    };
    for reader in Reader::all() {
        let theirs = Meaning::of(&tree, reader);
        if request.is_none() {
            assert_eq!((theirs.method, theirs.is_answer), (None, true), "{reader:?}");
            continue;
        }
        assert_eq!(theirs, ours, "{reader:?}");
    }
    if let Some(method) = ours.method {
        let nearly = method.split('\0').next().unwrap_or_default().trim().to_lowercase();
        for known in ["tools/call", "tools/list", "initialize", "server/discover", "subscriptions/listen", "resources/read"] {
            assert!(method == known || nearly != known, "{method:?}");
        }
    }
}

#[derive(Deserialize)]
struct Answer<'a> {
    jsonrpc: String,
    #[serde(borrow)]
    id: &'a RawValue,
    result: Option<serde_json::Value>,
    error: Option<serde_json::Value>,
}

fn read(body: &[u8]) -> Answer<'_> {
    let answer: Answer<'_> = serde_json::from_slice(body).expect("an answer is JSON");
    assert_eq!(answer.jsonrpc, "2.0");
    assert!(answer.result.is_some() != answer.error.is_some());
    let seen = events(&answer::event(body));
    assert!(seen.len() == 1 && seen[0].data == body, "an answer is one event");
    answer
}

fn answered(request: &Request<'_>) {
    let name = request.params.name.as_deref().unwrap_or_default();
    let denial = Denial::no_policy("a server", Operation::tool(name));
    assert_one_line(&denial.message);
    assert_one_line(method_label(&request.method));
    let body = answer::denial(request, &denial);
    let denied = read(&body);
    assert_eq!(denied.id.get(), request.id.map_or("null", |id| id.as_str()));
    if let Some(result) = denied.result {
        assert!(request.is_tool_call());
        assert_eq!((&result["isError"], &result["content"][0]["text"]), (&true.into(), &denial.message.into()));
    }
    refused(&Refusal::ContentType, &ReplyTo::from(request));
}

/// The scan of a message that is not read strictly, in pieces of any size.
fn scanned(body: &[u8]) -> ReplyTo<'static> {
    let whole = Scan::of(body);
    for size in [1, 7] {
        let mut scan = Scan::default();
        body.chunks(size).for_each(|piece| scan.push(piece));
        assert_eq!(scan.finish(), whole);
    }
    whole
}

fn refused(refusal: &Refusal, to: &ReplyTo<'_>) {
    assert_one_line(&refusal.to_string());
    let body = RequestFailure::from(refusal.clone()).answer(to);
    let answer = read(&body);
    assert_eq!(answer.id.get(), to.id.as_deref().unwrap_or("null"));
    assert_eq!(answer.result.is_some(), to.takes_tool_result && to.id.is_some());
    assert!(refusal.status().is_client_error());
}

/// A body is taken for JSON in UTF-8 only where all that is declared is that.
fn declared(headers: &HeaderMap) {
    let post = headers::check_post(headers);
    if let Err(refusal) = &post {
        refused(refusal, &ReplyTo::default());
    }
    let kind = headers.get("content-type").map(|value| value.as_bytes().to_ascii_lowercase()).unwrap_or_default();
    let parts: Vec<&[u8]> = kind.splitn(2, |byte| *byte == b';').map(<[u8]>::trim_ascii).collect();
    let expected = !headers.contains_key("content-encoding")
        && !kind.ends_with(b" ")
        && matches!(parts.as_slice(), [b"application/json"] | [b"application/json", b"charset=utf-8" | b"charset=\"utf-8\""]);
    assert_eq!(post.is_ok(), expected, "{:?}", String::from_utf8_lossy(&kind));
}

/// Returns true if the headers say what the request says, written down as it stands in the specification.
fn agree(headers: &HeaderMap, request: &Request<'_>) {
    let params = &request.params;
    let says = |name: &str, text: Option<&str>| {
        let Some(value) = headers.get(name) else { return true };
        let Some(text) = text else { return false };
        if name != "mcp-name" {
            return value.as_bytes() == text.as_bytes();
        }
        let encoded = format!("=?base64?{}?=", data_encoding::BASE64.encode(text.as_bytes()));
        let safe = text.bytes().all(|byte| matches!(byte, b' '..=b'~')) && text.trim() == text;
        let plain = value.as_bytes() == text.as_bytes() && safe && !text.to_ascii_lowercase().starts_with("=?base64?");
        plain || value.as_bytes() == encoded.as_bytes()
    };
    let name = match &*request.method {
        "tools/call" | "prompts/get" => params.name.as_deref(),
        "resources/read" => params.uri.as_deref(),
        method if method.starts_with("tasks/") => params.task_id.as_deref(),
        _ => None,
    };
    let version = params.protocol_version.as_deref();
    let expected = says("mcp-method", Some(&request.method))
        && says("mcp-name", name)
        && (version.is_none() || says("mcp-protocol-version", version));
    let found = headers::check_agreement(headers, request);
    if let Err(refusal) = &found {
        refused(refusal, &ReplyTo::from(request));
    }
    assert_eq!(found.is_ok(), expected, "{found:?}");
}
