//! The answers that the sidecar gives itself: denials and errors.

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json, value::RawValue};
use toolweir_engine::Denial;

use super::request::{Refusal, Request};

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
    let id = request.id.as_ref().map(|id| id.as_str());
    // A server without tasks answers `task` with an error, so clients know one there.
    if request.is_tool_call() && (request.is_modern() || !request.params.task) {
        let mut result = json!({
            "content": [{"type": "text", "text": denial.message}],
            "isError": true,
            "_meta": {DENIAL: denial},
        });
        if let (true, Value::Object(result)) = (request.is_modern(), &mut result) {
            result.insert("resultType".to_owned(), "complete".into());
        }
        return envelope(id, Some(result), None);
    }
    // `server/discover` is how a client finds out about the server's era: unknown, it falls back to `initialize`,
    // which then tells why.
    let code = if request.method == "server/discover" { -32601 } else { DENIED };
    envelope(id, None, Some(json!({"code": code, "message": denial.message, "data": {DENIAL: denial}})))
}

/// The answer to a message that is refused.
pub fn refusal(id: Option<&str>, refusal: &Refusal) -> Bytes {
    error(id, refusal.code(), &format!("Refused: {refusal}."))
}

/// A JSON-RPC error.
pub fn error(id: Option<&str>, code: i32, message: &str) -> Bytes {
    envelope(id, None, Some(json!({"code": code, "message": message})))
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
        serde_json::from_slice(&denial(&request, &Denial::no_policy("bank", "pay"))).unwrap()
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
