//! The answers that the sidecar gives itself: denials and errors.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json, value::RawValue};
use toolweir_engine::{Denial, json::Raw};

use super::{request::Request, scan::ReplyTo};

/// The key under which a denial is found in `_meta`.
pub const DENIAL: &str = "toolweir.dev/denial";

/// The JSON-RPC error code of a denial that is not a tool result. Outside of what JSON-RPC reserves.
const DENIED: i32 = 403;

#[derive(Serialize)]
struct Envelope<'a> {
    jsonrpc: &'static str,
    /// The id exactly as the client wrote it.
    id: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Value>,
}

fn envelope(id: Option<&str>, result: Option<Value>, error: Option<Value>) -> Bytes {
    let id = id.and_then(|id| serde_json::from_str::<&RawValue>(id).ok());
    serde_json::to_vec(&Envelope { jsonrpc: "2.0", id, result, error }).map(Bytes::from).unwrap_or_default()
}

/// The answer to a request that a policy denies: for a tool call a tool result, since only that reaches the model.
pub fn denial(request: &Request<'_>, denial: &Denial) -> Bytes {
    // `server/discover` is how a client finds out about the server's era: unknown, it falls back to `initialize`,
    // which then tells why.
    let code = if request.method == "server/discover" { -32601 } else { DENIED };
    said(&ReplyTo::from(request), code, &denial.message, denial)
}

/// The same for a request that is answered in this form: any but server/discover.
pub fn denial_of(to: &ReplyTo<'_>, denial: &Denial) -> Bytes {
    said(to, DENIED, &denial.message, denial)
}

/// The answer to a request of a server that its client does not get: an error in the client's name.
pub fn refusal_of_client(id: Raw<'_>, denial: &Denial) -> Bytes {
    denial_of(&ReplyTo { id: Some(Cow::Borrowed(id.as_str())), ..ReplyTo::default() }, denial)
}

/// Why a request was not carried out, for programs: under the key of a denial, whose form it has.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NotCarriedOut {
    /// The outcome, as the metrics' label `outcome` names it.
    pub reason: &'static str,
    /// True where the same request may do better later.
    pub retry: bool,
    /// When, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u32>,
}

/// The answer to a request that was not carried out: for a tool call a tool result, else a JSON-RPC error of this code.
pub fn not_carried_out(to: &ReplyTo<'_>, code: i32, message: &str, why: &NotCarriedOut) -> Bytes {
    said(to, code, message, why)
}

/// An answer in words: a tool result for a tool call, else a JSON-RPC error of this code. `details` stand in `_meta`, or
/// in the error's `data`.
fn said(to: &ReplyTo<'_>, code: i32, message: &str, details: &impl Serialize) -> Bytes {
    let id = to.id.as_deref();
    if !to.takes_tool_result || id.is_none() {
        return envelope(id, None, Some(json!({"code": code, "message": message, "data": {DENIAL: details}})));
    }
    let mut result = json!({
        "content": [{"type": "text", "text": message}],
        "isError": true,
        "_meta": {DENIAL: details},
    });
    if let (true, Value::Object(result)) = (to.modern, &mut result) {
        result.insert("resultType".to_owned(), "complete".into());
    }
    envelope(id, Some(result), None)
}

/// An answer as one event of a stream.
pub fn event(answer: &[u8]) -> Bytes {
    let mut event = Vec::with_capacity(answer.len() + 32);
    event.extend_from_slice(b"event: message\ndata: ");
    event.extend_from_slice(answer);
    event.extend_from_slice(b"\n\n");
    event.into()
}

#[cfg(test)]
mod tests {
    use toolweir_engine::Denial;

    use super::*;
    use crate::mcp::request::{Message, parse};

    fn answer(body: &str) -> Value {
        let Ok(Message::Request(request)) = parse(body.as_bytes()) else { panic!("{body}") };
        serde_json::from_slice(&denial(&request, &Denial::no_policy("bank", toolweir_engine::Operation::tool("pay")))).unwrap()
    }

    #[test]
    fn a_denied_call_is_a_tool_result_with_the_clients_id() {
        let answer = answer(r#"{"id":7.0,"method":"tools/call","params":{"name":"pay"}}"#);
        assert_eq!(answer["id"].to_string(), "7.0");
        assert_eq!(answer["result"]["isError"], true);
        assert_eq!(answer["result"]["content"][0]["text"], "Denied: no policy in force names the server bank.");
        assert_eq!(answer["result"]["_meta"][DENIAL]["reason"], "no_policy");
        assert_eq!(answer["result"].get("resultType"), None);
    }

    #[test]
    fn a_failure_is_told_in_the_form_that_the_request_takes() {
        let failed = |body: &str| -> Value {
            let Ok(Message::Request(request)) = parse(body.as_bytes()) else { panic!("{body}") };
            let why = NotCarriedOut { reason: "upstream_failed", retry: false, retry_after_seconds: None };
            let to = ReplyTo::later(&request).unwrap();
            serde_json::from_slice(&not_carried_out(&to, -32603, "It ended.", &why)).unwrap()
        };
        let call = failed(r#"{"id":7.0,"method":"tools/call","params":{"name":"pay"}}"#);
        assert_eq!((call["id"].to_string(), &call["result"]["isError"]), ("7.0".to_owned(), &true.into()));
        assert_eq!((&call["result"]["content"][0]["text"], call["result"].get("resultType")), (&"It ended.".into(), None));
        let modern = failed(
            r#"{"id":1,"method":"tools/call","params":{"name":"pay","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}"#,
        );
        assert_eq!(modern["result"]["resultType"], "complete");
        for other in [r#"{"id":"a","method":"ping"}"#, r#"{"id":"a","method":"tools/call","params":{"name":"pay","task":{}}}"#] {
            let data = json!({DENIAL: {"reason": "upstream_failed", "retry": false}});
            let error = json!({"code": -32603, "message": "It ended.", "data": data});
            assert_eq!(failed(other), json!({"jsonrpc": "2.0", "id": "a", "error": error}));
        }
    }

    #[test]
    fn modern_calls_get_a_result_type_and_others_an_error() {
        let modern = answer(
            r#"{"id":1,"method":"tools/call","params":{"name":"pay","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}"#,
        );
        assert_eq!(modern["result"]["resultType"], "complete");
        assert_eq!(answer(r#"{"id":1,"method":"tools/call","params":{"name":"pay","task":{}}}"#)["error"]["code"], 403);
        assert_eq!(answer(r#"{"id":1,"method":"initialize"}"#)["error"]["code"], 403);
        assert_eq!(answer(r#"{"id":1,"method":"server/discover"}"#)["error"]["code"], -32601);
    }
}
