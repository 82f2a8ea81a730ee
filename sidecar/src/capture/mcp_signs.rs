//! Signs that an HTTP request speaks MCP. A server that no policy declares must not be called past all policies, by a client that
//! does as the specification says.

use http::{HeaderMap, Method, header};
use toolweir_engine::json::{JsonError, JsonKind, Raw, Reader};

use crate::mcp::is_method;

/// The most bytes of a body that are looked at.
pub const LOOKED_AT: usize = 16 * 1024;

/// Returns whether the head of a request is one of MCP: it has a header of MCP, or asks for both forms of an answer (MCP 2025-11-25,
/// Transports, "Sending Messages to the Server").
pub fn in_head(method: &Method, headers: &HeaderMap) -> bool {
    let accepts = |kind: &str| {
        let mut values =
            headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
        values.any(|value| value.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(kind))
    };
    headers.keys().any(|name| name.as_str().starts_with("mcp-"))
        || (method == Method::POST && accepts("application/json") && accepts("text/event-stream"))
}

/// Returns whether a body has to be looked at too: it may be JSON.
pub fn may_be_in_body(method: &Method, headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(|kind| kind.to_str().unwrap_or_default().to_ascii_lowercase());
    method == Method::POST && kind.is_none_or(|kind| kind.contains("json") || kind.starts_with("text/"))
}

/// Returns whether a body is a message of MCP, or a list with one: JSON-RPC 2.0 with a method of MCP.
pub fn in_body(body: &[u8]) -> bool {
    let Some(message) = Reader::new(body).ok().and_then(|mut reader| reader.value().ok()) else { return false };
    if message.kind() != JsonKind::Array {
        return is_message(message);
    }
    let mut found = false;
    let read = message.reader().array::<JsonError>(|reader| {
        found = is_message(reader.value()?) || found;
        Ok(())
    });
    read.is_ok() && found
}

fn is_message(message: Raw<'_>) -> bool {
    if message.kind() != JsonKind::Object {
        return false;
    }
    let (mut version, mut method) = (false, false);
    let read = message.reader().object::<JsonError>(|reader, key| {
        let (key, value) = (key.string()?.unwrap_or_default(), reader.value()?);
        let text = if value.kind() == JsonKind::String { value.string()?.unwrap_or_default() } else { "".into() };
        version = version || (key == "jsonrpc" && text == "2.0");
        method = method || (key == "method" && is_method(&text));
        Ok(())
    });
    read.is_ok() && version && method
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_message_of_mcp_is_known_by_its_head_or_its_body() {
        let headers = |pairs: &[(&'static str, &'static str)]| -> HeaderMap {
            pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
        };
        let both = headers(&[("accept", "application/json;q=0.9, Text/Event-Stream")]);
        assert!(in_head(&Method::POST, &both));
        assert!(!in_head(&Method::GET, &both));
        assert!(in_head(&Method::GET, &headers(&[("mcp-session-id", "1")])));
        assert!(!in_head(&Method::POST, &headers(&[("accept", "*/*"), ("content-type", "application/json")])));
        assert!(may_be_in_body(&Method::POST, &headers(&[("content-type", "application/vnd.api+json")])));
        assert!(may_be_in_body(&Method::POST, &HeaderMap::new()));
        assert!(!may_be_in_body(&Method::POST, &headers(&[("content-type", "application/grpc")])));
    }

    #[test]
    fn json_rpc_of_other_protocols_is_none_of_mcp() {
        for body in [
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{}}"#,
            r#" {"method":"initialize","id":0,"jsonrpc":"2.0"}"#,
            r#"[{"jsonrpc":"2.0","method":"notifications/initialized"}]"#,
            r#"{"jsonrpc":"2.0","method":"tools\u002flist","id":1}"#,
        ] {
            assert!(in_body(body.as_bytes()), "{body}");
        }
        for body in [
            "",
            "[]",
            "{}",
            r#"{"jsonrpc":"2.0","id":1,"method":"eth_call"}"#,
            r#"{"id":1,"method":"tools/call"}"#,
            r#"{"query":"{\"jsonrpc\":\"2.0\",\"method\":\"tools/call\"}"}"#,
            r#"{"jsonrpc":"2.0","method":"tools/call""#,
        ] {
            assert!(!in_body(body.as_bytes()), "{body}");
        }
    }
}
