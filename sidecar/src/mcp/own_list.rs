//! The `tools/list` that the sidecar sends by itself for a client whose tools/call needs it: made of that call, of which it keeps what
//! says who asks (MCP 2026-07-28, "Per-request fields" and "Request Metadata Headers").

use http::{HeaderMap, HeaderName, HeaderValue, header};
use toolweir_engine::json::{JsonError, JsonKind, Raw, Reader};

use super::{
    headers::{METHOD, NAME, PROTOCOL_VERSION as VERSION_HEADER, SESSION_ID},
    request::PROTOCOL_VERSION,
};

/// What a request says in `_meta` of its client, and of the trace that it is part of. All else there belongs to the call: its progress
/// token, its task, and what others made for it alone.
const KEPT: [&str; 6] = [
    PROTOCOL_VERSION,
    "io.modelcontextprotocol/clientInfo",
    "io.modelcontextprotocol/clientCapabilities",
    "traceparent",
    "tracestate",
    "baggage",
];

/// Makes a tools/list with this id of a client's tools/call, which was read strictly before. None where that is not of a form in which
/// all servers would read the same.
pub fn for_call(call: &[u8], id: &str) -> Option<Vec<u8>> {
    let mut reader = Reader::new(call).ok()?;
    let mut meta = None;
    let read = reader.object::<JsonError>(|reader, key| {
        if key.string()?.as_deref() == Some("params") && reader.peek()? == JsonKind::Object {
            return reader.object::<JsonError>(|reader, key| {
                let value = reader.value()?;
                if key.string()?.as_deref() == Some("_meta") && value.kind() == JsonKind::Object {
                    meta = Some(value);
                }
                Ok(())
            });
        }
        reader.value().map(drop)
    });
    read.ok()?;
    reader.finish().ok()?;
    let kept = meta.map_or(Ok(Vec::new()), kept).ok()?;
    let is_modern = kept.iter().any(|(key, value)| *key == PROTOCOL_VERSION && value.kind() == JsonKind::String);
    let params = if is_modern {
        let members: Vec<String> = kept.iter().map(|(key, value)| format!("\"{key}\":{}", value.as_str())).collect();
        format!(r#","params":{{"_meta":{{{}}}}}"#, members.join(","))
    } else {
        String::new()
    };
    Some(format!(r#"{{"jsonrpc":"2.0","id":"{id}","method":"tools/list"{params}}}"#).into_bytes())
}

/// The members of `_meta` that are kept.
fn kept(meta: Raw<'_>) -> Result<Vec<(&'static str, Raw<'_>)>, JsonError> {
    let mut kept = Vec::new();
    meta.reader().object::<JsonError>(|reader, key| {
        let (key, value) = (key.string()?, reader.value()?);
        if let Some(known) = KEPT.into_iter().find(|known| key.as_deref() == Some(*known)) {
            kept.push((known, value));
        }
        Ok(())
    })?;
    Ok(kept)
}

/// Headers that say something of one message alone: what it is called with, its digest or signature, and that it must be carried out
/// once. The next message would not be what they say.
const OF_THE_MESSAGE: [&str; 8] = [
    "content-digest",
    "content-md5",
    "digest",
    "idempotency-key",
    "last-event-id",
    "repr-digest",
    "signature",
    "signature-input",
];

/// The headers of that tools/list: those of the call's POST, without what belongs to the call. So the session, the version, credentials
/// and the trace are the client's.
pub fn headers_for_call(call: &HeaderMap, is_modern: bool) -> HeaderMap {
    let mut headers = call.clone();
    let of_the_call = |name: &HeaderName| {
        let known = [&METHOD, &VERSION_HEADER, &SESSION_ID].contains(&name);
        (name.as_str().starts_with("mcp-") && !known) || OF_THE_MESSAGE.contains(&name.as_str())
    };
    let removed: Vec<HeaderName> = call.keys().filter(|name| of_the_call(name)).cloned().collect();
    for name in removed {
        headers.remove(name);
    }
    if is_modern || call.contains_key(&METHOD) || call.contains_key(&NAME) {
        headers.insert(METHOD, HeaderValue::from_static("tools/list"));
    }
    headers
}

/// The headers of an answer in the name of a client that sent these with another message: without what belongs to that.
pub fn headers_for_answer(sent: &HeaderMap) -> HeaderMap {
    let mut headers = headers_for_call(sent, false);
    for name in [METHOD, NAME, header::CONTENT_LENGTH, header::CONTENT_ENCODING] {
        headers.remove(name);
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_of_a_call_what_says_who_asks_and_nothing_else() {
        let plain = r#"{"jsonrpc":"2.0","id":"own","method":"tools/list"}"#;
        let version = r#""io.modelcontextprotocol/protocolVersion":"2026-07-28""#;
        for (call, list) in [
            (
                r#"{"id":7,"method":"tools/call","params":{"name":"pay","arguments":{"_meta":{"a":1}}}}"#.to_owned(),
                plain.to_owned(),
            ),
            (
                r#"{"id":7,"method":"tools/call","params":{"name":"pay","_meta":{"progressToken":1,"traceparent":"00"}}}"#
                    .to_owned(),
                plain.to_owned(),
            ),
            (r#"{"id":7,"method":"tools/call","params":{"name":"pay","_meta":null}}"#.to_owned(), plain.to_owned()),
            (
                format!(
                    r#" {{"params":{{"task":{{}},"inputResponses":{{}},"_meta":{{ {version} ,"progressToken":1,"io.modelcontextprotocol\/clientInfo": {{"name":"a"}},
                    "io.modelcontextprotocol/clientCapabilities":{{}},"io.modelcontextprotocol/logLevel":"debug","x":1,"tracestate":"t"}},"name":"pay"}},"method":"tools/call","id":7}}"#
                ),
                format!(
                    r#"{{"jsonrpc":"2.0","id":"own","method":"tools/list","params":{{"_meta":{{{version},"io.modelcontextprotocol/clientInfo":{{"name":"a"}},"io.modelcontextprotocol/clientCapabilities":{{}},"tracestate":"t"}}}}}}"#
                ),
            ),
        ] {
            assert_eq!(String::from_utf8(for_call(call.as_bytes(), "own").unwrap()).unwrap(), list, "{call}");
        }
        for odd in [r#"[{"id":7}]"#, "7", r#"{"id":7} {}"#, "{"] {
            assert_eq!(for_call(odd.as_bytes(), "own"), None, "{odd}");
        }
    }

    #[test]
    fn the_headers_of_a_list_are_those_of_the_client_but_not_of_the_call() {
        let headers = |pairs: &[(&'static str, &'static str)]| -> HeaderMap {
            pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
        };
        let stay = [
            ("accept", "application/json, text/event-stream"),
            ("authorization", "Bearer t"),
            ("mcp-session-id", "s"),
            ("mcp-protocol-version", "2026-07-28"),
            ("traceparent", "00"),
            ("x-tenant", "blue"),
        ];
        let go = [
            ("mcp-name", "pay"),
            ("mcp-param-region", "eu"),
            ("idempotency-key", "k"),
            ("content-digest", "d"),
            ("signature", "s"),
        ];
        let with = |more: &[(&'static str, &'static str)]| headers(&[&stay[..], more].concat());
        let call = with(&[&go[..], &[("mcp-method", "tools/call")]].concat());
        assert_eq!(headers_for_call(&call, true), with(&[("mcp-method", "tools/list")]));
        assert_eq!(headers_for_call(&with(&go[2..]), false), with(&[]));
        assert_eq!(headers_for_call(&with(&[]), true), with(&[("mcp-method", "tools/list")]));
    }
}
