//! The headers that repeat what the body says (MCP 2026-07-28, "Request Metadata Headers"): they must agree with it.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, header};

use super::request::{Refusal, Request};

/// `Mcp-Method`
pub const METHOD: HeaderName = HeaderName::from_static("mcp-method");
/// `Mcp-Name`
pub const NAME: HeaderName = HeaderName::from_static("mcp-name");
/// `MCP-Protocol-Version`
pub const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
/// `Mcp-Session-Id`
pub const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");

/// Refuses a POST whose body is not declared as plain JSON, or in which a header that decides stands twice.
pub fn check_post(headers: &HeaderMap) -> Result<(), Refusal> {
    for (name, shown) in [
        (&METHOD, "Mcp-Method"),
        (&NAME, "Mcp-Name"),
        (&PROTOCOL_VERSION, "MCP-Protocol-Version"),
        (&SESSION_ID, "Mcp-Session-Id"),
        (&header::CONTENT_TYPE, "Content-Type"),
    ] {
        if headers.get_all(name).iter().nth(1).is_some() {
            return Err(Refusal::RepeatedHeader(shown));
        }
    }
    if headers.contains_key(header::CONTENT_ENCODING) {
        return Err(Refusal::ContentEncoding);
    }
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut parts = content_type.split(';').map(str::trim);
    if !parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case("application/json")) {
        return Err(Refusal::ContentType);
    }
    // Another charset would make another text of the same bytes.
    for parameter in parts {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        if name.trim().eq_ignore_ascii_case("charset") && !value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8") {
            return Err(Refusal::ContentType);
        }
    }
    Ok(())
}

/// Refuses a request in which a header and the body disagree. What a server requires and the client left out is the
/// server's to say.
pub fn check_agreement(headers: &HeaderMap, request: &Request<'_>) -> Result<(), Refusal> {
    let differs = |name: &HeaderName, shown: &'static str, body: &str| match headers.get(name) {
        None => Ok(()),
        Some(value) => match decode(value.as_bytes()) {
            Some(text) if text == body => Ok(()),
            text => Err(Refusal::HeaderMismatch(shown, quote(text.as_deref().unwrap_or("what cannot be read")), quote(body))),
        },
    };
    differs(&METHOD, "Mcp-Method", &request.method)?;
    match request.header_name() {
        Some(name) => differs(&NAME, "Mcp-Name", name)?,
        // A name where the body has none, be it empty, says that the body means something else.
        None if headers.contains_key(&NAME) => {
            return Err(Refusal::HeaderMismatch("Mcp-Name", "a name".to_owned(), "none".to_owned()));
        }
        None => {}
    }
    if let Some(version) = &request.params.protocol_version {
        differs(&PROTOCOL_VERSION, "MCP-Protocol-Version", version)?;
    }
    Ok(())
}

/// Refuses a request whose `Connection` names a header that decides: it would not reach the server (RFC 9110, section
/// 7.6.1).
pub fn check_connection(headers: &HeaderMap) -> Result<(), Refusal> {
    let named =
        headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    for name in named.map(|name| name.trim().to_ascii_lowercase()) {
        if name.starts_with("mcp-")
            || name.starts_with("content-")
            || name == "accept"
            || name == "authorization"
            || name == "last-event-id"
        {
            return Err(Refusal::Connection(name.chars().take(40).collect()));
        }
    }
    Ok(())
}

/// Refuses an answer whose headers say that it is a request.
pub fn check_answer(headers: &HeaderMap) -> Result<(), Refusal> {
    for (name, shown) in [(&METHOD, "Mcp-Method"), (&NAME, "Mcp-Name")] {
        if headers.contains_key(name) {
            return Err(Refusal::HeaderMismatch(shown, "a request".to_owned(), "an answer".to_owned()));
        }
    }
    Ok(())
}

fn quote(text: &str) -> String {
    let short: String = text.chars().take(60).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    format!("`{short}`")
}

/// A header's value; `=?base64?…?=` holds what a header cannot. Nothing when it is not canonical or not UTF-8.
fn decode(value: &[u8]) -> Option<Cow<'_, str>> {
    let text = std::str::from_utf8(value).ok()?;
    match text.strip_prefix("=?base64?").and_then(|rest| rest.strip_suffix("?=")) {
        None => Some(Cow::Borrowed(text)),
        Some(inner) => {
            let bytes = data_encoding::BASE64.decode(inner.as_bytes()).ok()?;
            String::from_utf8(bytes).ok().map(Cow::Owned)
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::mcp::request::{Message, parse};

    fn agree(body: &str, headers: &[(&'static str, &str)]) -> Result<(), Refusal> {
        let Ok(Message::Request(request)) = parse(body.as_bytes()) else { panic!("{body}") };
        let headers = headers.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect();
        check_agreement(&headers, &request)
    }

    #[test]
    fn headers_must_agree_with_the_body() {
        let call = r#"{"id":1,"method":"tools/call","params":{"name":"é","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}"#;
        assert_eq!(
            agree(call, &[("mcp-method", "tools/call"), ("mcp-name", "=?base64?w6k=?="), ("mcp-protocol-version", "2026-07-28")]),
            Ok(())
        );
        assert_eq!(agree(call, &[]), Ok(()));
        for wrong in [
            ("mcp-method", "tools/list"),
            ("mcp-name", "e"),
            ("mcp-name", "=?base64?w6k?="),
            ("mcp-name", "=?base64?w6l=?="),
            ("mcp-protocol-version", "2025-11-25"),
        ] {
            assert_eq!(agree(call, &[wrong]).unwrap_err().code(), -32020, "{wrong:?}");
        }
        assert!(agree(r#"{"id":1,"method":"tools/list"}"#, &[("mcp-name", "x")]).is_err());
        assert!(agree(r#"{"id":1,"method":"resources/read","params":{}}"#, &[("mcp-name", "")]).is_err());
        assert!(agree(r#"{"id":1,"method":"resources/read","params":{"uri":"a:b"}}"#, &[("mcp-name", "a:c")]).is_err());
    }

    #[test]
    fn bodies_are_declared_as_plain_json() {
        let check = |pairs: &[(HeaderName, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(name, HeaderValue::from_str(value).unwrap());
            }
            check_post(&headers)
        };
        assert_eq!(check(&[(header::CONTENT_TYPE, "Application/JSON; charset=UTF-8")]), Ok(()));
        assert_eq!(check(&[]), Err(Refusal::ContentType));
        assert_eq!(check(&[(header::CONTENT_TYPE, "text/plain")]), Err(Refusal::ContentType));
        assert_eq!(check(&[(header::CONTENT_TYPE, "application/json; charset=utf-16")]), Err(Refusal::ContentType));
        let json = (header::CONTENT_TYPE, "application/json");
        assert_eq!(check(&[json.clone(), (header::CONTENT_ENCODING, "gzip")]), Err(Refusal::ContentEncoding));
        assert!(check(&[json.clone(), (NAME, "a"), (NAME, "b")]).is_err());
        assert!(check(&[json.clone(), json]).is_err());
    }
}
