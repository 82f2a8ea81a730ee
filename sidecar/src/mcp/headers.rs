//! The headers that repeat what the body says (MCP 2026-07-28, "Request Metadata Headers"): they must agree with it.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, header};
use toolweir_crds::text::one_line;

use super::request::{Refusal, Request};

/// `Mcp-Method`
pub const METHOD: HeaderName = HeaderName::from_static("mcp-method");
/// `Mcp-Name`
pub const NAME: HeaderName = HeaderName::from_static("mcp-name");
/// `MCP-Protocol-Version`
pub const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
/// `Mcp-Session-Id`
pub const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");

/// Refuses a request with a header that decides and that could be read in two ways: it stands twice where one is meant,
/// its value is none that it can have, or its name has an underscore for a hyphen, which servers of the CGI kind do not
/// tell apart. Whatever the method: on a GET or DELETE these decide too.
pub fn check(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut before = None;
    // The values of one name come one after the other.
    for (name, value) in headers {
        let twice = before.replace(name).is_some_and(|before| std::ptr::eq(before, name));
        let shown = decides(name.as_str());
        // An argument's name may have one.
        if matches!(shown, None | Some("Mcp-*")) && name.as_str().contains('_') {
            let seen = decides(&name.as_str().replace('_', "-"));
            if let Some(seen) = seen.filter(|_| seen != shown) {
                return Err(Refusal::HeaderValue(seen, "stands there with an underscore in its name"));
            }
        }
        let Some(shown) = shown else { continue };
        if twice {
            return Err(Refusal::RepeatedHeader(shown));
        }
        let value = value.as_bytes();
        let wrong = match shown {
            "Last-Event-ID" if !is_text(value) => "has a control character or blanks around it",
            // Another coding would be left to whoever reads the body.
            "Transfer-Encoding" if !value.eq_ignore_ascii_case(b"chunked") => "is not chunked alone",
            "Mcp-Session-Id" if !is_visible(value) => "is not visible ASCII",
            "MCP-Protocol-Version" if !is_version(value) => "is no version",
            "Mcp-*" if decode(value).is_none() => "is neither ASCII nor canonical Base64",
            // What the others may say is looked at where it decides.
            _ => continue,
        };
        return Err(Refusal::HeaderValue(shown, wrong));
    }
    Ok(())
}

/// A header that decides, as it is shown.
fn decides(name: &str) -> Option<&'static str> {
    Some(match name {
        "content-type" => "Content-Type",
        "content-length" => "Content-Length",
        "content-encoding" => "Content-Encoding",
        "transfer-encoding" => "Transfer-Encoding",
        "authorization" => "Authorization",
        "last-event-id" => "Last-Event-ID",
        "mcp-session-id" => "Mcp-Session-Id",
        "mcp-protocol-version" => "MCP-Protocol-Version",
        "mcp-method" => "Mcp-Method",
        "mcp-name" => "Mcp-Name",
        other if other.starts_with("mcp-") => "Mcp-*",
        _ => return None,
    })
}

/// Refuses a POST whose body is not declared as plain JSON.
pub fn check_post(headers: &HeaderMap) -> Result<(), Refusal> {
    if headers.contains_key(header::CONTENT_ENCODING) {
        return Err(Refusal::ContentEncoding);
    }
    match headers.get(header::CONTENT_TYPE) {
        Some(value) if is_plain_json(value.as_bytes()) => Ok(()),
        _ => Err(Refusal::ContentType),
    }
}

/// Returns true where a Content-Type (RFC 9110, sections 8.3.1 and 5.6.6) is that of JSON in UTF-8, to whoever reads it. Servers
/// decode a body by parameters that others pass over, such as `charset*` or a second `charset`. So nothing passes but
/// no parameter at all, or the one that says what holds anyway.
fn is_plain_json(value: &[u8]) -> bool {
    let kind = b"application/json";
    let Some((start, rest)) = value.split_at_checked(kind.len()) else { return false };
    if !start.eq_ignore_ascii_case(kind) {
        return false;
    }
    if rest.is_empty() {
        return true;
    }
    let blanks = |text: &[u8]| text.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    let skip = |text| <[u8]>::get(text, blanks(text)..).unwrap_or_default();
    let Some(parameter) = skip(rest).strip_prefix(b";").map(skip) else { return false };
    let Some((name, charset)) = parameter.split_at_checked(b"charset=".len()) else { return false };
    let plain = charset.strip_prefix(b"\"").map_or(Some(charset), |quoted| quoted.strip_suffix(b"\""));
    name.eq_ignore_ascii_case(b"charset=") && plain.is_some_and(|charset| charset.eq_ignore_ascii_case(b"utf-8"))
}

/// Returns true where a value is the same to all: without control characters, and without blanks around it, which are lost on the
/// way from HTTP/2 to HTTP/1.1.
fn is_text(value: &[u8]) -> bool {
    value.first() != Some(&b' ') && value.last() != Some(&b' ') && !value.iter().any(u8::is_ascii_control)
}

/// Returns true where a value can be the id of a session (MCP 2025-11-25, Transports, "Session Management").
fn is_visible(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(u8::is_ascii_graphic)
}

/// Returns true where a value has the form of a version. Which there are is for client and server to agree on.
fn is_version(value: &[u8]) -> bool {
    (1..=64).contains(&value.len()) && value.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'))
}

/// Refuses a request in which a header and the body disagree. What a server requires and the client left out is the
/// server's to say.
pub fn check_agreement(headers: &HeaderMap, request: &Request<'_>) -> Result<(), Refusal> {
    // No method and no version needs Base64, so what it hides is read by some and not by others.
    differs(headers, &METHOD, "Mcp-Method", &request.method, plain)?;
    match request.header_name() {
        Some(name) => differs(headers, &NAME, "Mcp-Name", name, decode)?,
        // A name where the body has none, be it empty, says that the body means something else.
        None if headers.contains_key(&NAME) => {
            return Err(Refusal::HeaderMismatch("Mcp-Name", "a name".to_owned(), "none".to_owned()));
        }
        None => {}
    }
    if let Some(version) = &request.params.protocol_version {
        differs(headers, &PROTOCOL_VERSION, "MCP-Protocol-Version", version, plain)?;
    }
    Ok(())
}

/// Refuses a header that is there and is not what the body says.
fn differs(
    headers: &HeaderMap,
    name: &HeaderName,
    shown: &'static str,
    body: &str,
    read: impl FnOnce(&[u8]) -> Option<Cow<'_, str>>,
) -> Result<(), Refusal> {
    let Some(value) = headers.get(name) else { return Ok(()) };
    match read(value.as_bytes()) {
        Some(text) if text == body => Ok(()),
        text => Err(Refusal::HeaderMismatch(shown, quote(text.as_deref().unwrap_or("what cannot be read")), quote(body))),
    }
}

/// The members of a header that is a list (RFC 9110, section 5.6.1), with the blanks around them. A value that is not visible
/// ASCII is passed over.
pub fn listed<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','))
}

/// Refuses a request whose `Connection` names a header that decides: it would not reach the server (RFC 9110, section
/// 7.6.1).
pub fn check_connection(headers: &HeaderMap) -> Result<(), Refusal> {
    for name in listed(headers, &header::CONNECTION).map(|name| name.trim().to_ascii_lowercase()) {
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

/// Refuses headers that say that there is a request where the body, `what`, has none.
pub fn check_no_request(headers: &HeaderMap, what: &str) -> Result<(), Refusal> {
    for (name, shown) in [(&METHOD, "Mcp-Method"), (&NAME, "Mcp-Name")] {
        if headers.contains_key(name) {
            return Err(Refusal::HeaderMismatch(shown, "a request".to_owned(), what.to_owned()));
        }
    }
    Ok(())
}

fn plain(value: &[u8]) -> Option<Cow<'_, str>> {
    std::str::from_utf8(value).ok().map(Cow::Borrowed)
}

fn quote(text: &str) -> String {
    format!("`{}`", one_line(text, 60))
}

/// A header's value; `=?base64?…?=` holds what a header cannot. Nothing where two could read it in two ways: what is not
/// ASCII, a wrapper in another case, Base64 that is not canonical or not of UTF-8, blanks around it.
fn decode(value: &[u8]) -> Option<Cow<'_, str>> {
    let text = std::str::from_utf8(value).ok().filter(|text| text.is_ascii() && is_text(value))?;
    let wrapper = "=?base64?";
    let Some((start, rest)) = text.split_at_checked(wrapper.len()).filter(|(start, _)| start.eq_ignore_ascii_case(wrapper))
    else {
        return Some(Cow::Borrowed(text));
    };
    // Without its end it is a text like any other (MCP 2026-07-28, "Value Encoding").
    let Some(inner) = rest.strip_suffix("?=") else { return Some(Cow::Borrowed(text)) };
    if start != wrapper {
        return None;
    }
    let bytes = data_encoding::BASE64.decode(inner.as_bytes()).ok()?;
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

/// Returns true where a client takes a single event but not plain JSON. One whose `Accept` says nothing that can be
/// read is answered with JSON.
pub fn takes_events_alone(headers: &HeaderMap) -> bool {
    let takes = |kind: &str| accepted(headers, kind) == Some(true);
    !takes("application/json") && takes("text/event-stream")
}

/// Returns true where a client waits for leave to send its body (RFC 9110, section 10.1.1).
pub fn waits_for_leave(headers: &HeaderMap) -> bool {
    headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Returns true where a client names a type of MCP's answers in `Accept`, as MCP has every client do (MCP 2025-11-25, Transports,
/// "Sending Messages to the Server").
pub fn asks_for_mcp(headers: &HeaderMap) -> bool {
    let ranges = listed(headers, &header::ACCEPT);
    ranges
        .map(|range| range.split(';').next().unwrap_or_default().trim())
        .any(|named| named.eq_ignore_ascii_case("application/json") || named.eq_ignore_ascii_case("text/event-stream"))
}

/// Returns whether `Accept` (RFC 9110, section 12.5.1) takes a type: its most specific range says so. None where none fits. A
/// range that cannot be read is none.
fn accepted(headers: &HeaderMap, kind: &str) -> Option<bool> {
    let group = kind.split_once('/').map_or(kind, |(group, _)| group);
    let mut found: Option<(u8, bool)> = None;
    for range in listed(headers, &header::ACCEPT) {
        let mut parts = range.split(';').map(|part| part.trim_matches([' ', '\t']));
        let named = parts.next().unwrap_or_default();
        let specific = if named.eq_ignore_ascii_case(kind) {
            2
        } else if named.split_once('/').is_some_and(|(named, any)| named.eq_ignore_ascii_case(group) && any == "*") {
            1
        } else if named == "*/*" {
            0
        } else {
            continue;
        };
        let weights = parts.filter_map(|part| part.split_once('=')).filter(|(name, _)| name.trim_end().eq_ignore_ascii_case("q"));
        let Some(takes) = weights.map(|(_, weight)| weighs(weight.trim_start())).try_fold(true, |all, one| Some(all && one?))
        else {
            continue;
        };
        // Of two that are alike, one that takes it is enough.
        found = match found {
            Some((most, _)) if most > specific => found,
            Some((most, before)) if most == specific => Some((most, before || takes)),
            _ => Some((specific, takes)),
        };
    }
    found.map(|(_, takes)| takes)
}

/// Returns whether a weight (RFC 9110, section 12.4.2) is more than 0. None where it cannot be read.
fn weighs(weight: &str) -> Option<bool> {
    let (whole, rest) = weight.split_once('.').unwrap_or((weight, ""));
    let digits = matches!(whole, "0" | "1") && rest.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| weight.bytes().any(|byte| matches!(byte, b'1'..=b'9')))
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
            ("mcp-name", "=?BASE64?w6k=?="),
            ("mcp-name", "=?base64?w6k="),
            ("mcp-method", "=?base64?dG9vbHMvY2FsbA==?="),
            ("mcp-protocol-version", "=?base64?MjAyNi0wNy0yOA==?="),
            ("mcp-protocol-version", "2025-11-25"),
        ] {
            assert_eq!(agree(call, &[wrong]).unwrap_err().code(), -32020, "{wrong:?}");
        }
        assert!(agree(r#"{"id":1,"method":"tools/list"}"#, &[("mcp-name", "x")]).is_err());
        assert!(agree(r#"{"id":1,"method":"tasks/get","params":{}}"#, &[("mcp-name", "")]).is_err());
        assert!(agree(r#"{"id":1,"method":"resources/read","params":{"uri":"a:b"}}"#, &[("mcp-name", "a:c")]).is_err());
    }

    fn headers(pairs: &[(&'static str, &[u8])]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap());
        }
        headers
    }

    #[test]
    fn a_name_that_some_read_in_another_way_agrees_with_no_body() {
        for name in ["\u{e9}", " pay", "pay ", "=?BASE64?cGF5?=", "=?Base64?cGF5?="] {
            let body = format!(r#"{{"id":1,"method":"tools/call","params":{{"name":"{name}"}}}}"#);
            let Ok(Message::Request(request)) = parse(body.as_bytes()) else { panic!("{body}") };
            let error = check_agreement(&headers(&[("mcp-name", name.as_bytes())]), &request).unwrap_err();
            assert_eq!(error.code(), -32020, "{name}");
        }
        for name in ["=?q a", "=?base64?cGF5", "=?Base64?"] {
            let body = format!(r#"{{"id":1,"method":"tools/call","params":{{"name":"{name}"}}}}"#);
            assert_eq!(agree(&body, &[("mcp-name", name)]), Ok(()), "{name}");
        }
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table of cases")]
    fn bodies_are_declared_as_plain_json() {
        let check = |value: &[u8]| check_post(&headers(&[("content-type", value)]));
        for plain in [
            "application/json",
            "Application/JSON",
            "application/json;charset=utf-8",
            "application/json; charset=UTF-8",
            "application/json; Charset=\"Utf-8\"",
            "application/json \t;\t charset=utf-8",
        ] {
            assert_eq!(check(plain.as_bytes()), Ok(()), "{plain}");
        }
        for other in [
            "",
            "text/plain",
            "application/jsonp",
            "application/json ",
            " application/json",
            "application/json, application/json",
            "application/json;",
            "application/json; ",
            "application/json;;charset=utf-8",
            "application/json; charset=utf-8;",
            "application/json; charset=utf-8 ",
            "application/json; charset=utf-8; charset=utf-8",
            "application/json; charset=utf-8; charset=utf-16",
            "application/json; charset=utf-8; x=1",
            "application/json; x=1; charset=utf-8",
            "application/json; x=1",
            "application/json; version=2",
            "application/json; charset",
            "application/json; charset=",
            "application/json; charset=\"\"",
            "application/json; charset=utf8",
            "application/json; charset=utf-16",
            "application/json; charset=utf-7",
            "application/json; charset=\"utf-8",
            "application/json; charset=utf-8\"",
            "application/json; charset=\"\"utf-8\"\"",
            "application/json; charset='utf-8'",
            "application/json; charset=\"utf\\-8\"",
            "application/json; charset=\" utf-8\"",
            "application/json; charset =utf-8",
            "application/json; charset= utf-8",
            "application/json; charset*=utf-8''utf-16",
            "application/json; charset*=utf-8''utf-8",
            "application/json; charset*0=utf-; charset*1=16",
            "application/json; charset*0*=utf-8''utf-16",
            "application/json; charset=utf-8 (utf-16)",
            "application/json (comment)",
            "application/json; (comment) charset=utf-8",
            "application/json,charset=utf-8",
            "application/json charset=utf-8",
            "application/json; charset=utf-8, text/plain",
            "application/json; charset=utf-\u{ff18}",
            "application/json; \u{a0}charset=utf-8",
            "application/json; charset=\u{17f}",
        ] {
            assert_eq!(check(other.as_bytes()), Err(Refusal::ContentType), "{other}");
        }
        assert_eq!(check(b"application/json; charset=utf-8\xa0"), Err(Refusal::ContentType));
        assert_eq!(check_post(&HeaderMap::new()), Err(Refusal::ContentType));
        let coded = headers(&[("content-type", b"application/json"), ("content-encoding", b"identity")]);
        assert_eq!(check_post(&coded), Err(Refusal::ContentEncoding));
    }

    #[test]
    fn a_header_that_decides_stands_once_and_has_a_value_that_it_can_have() {
        for single in [
            "content-type",
            "content-length",
            "authorization",
            "last-event-id",
            "mcp-session-id",
            "mcp-protocol-version",
            "mcp-method",
            "mcp-name",
            "mcp-param-region",
        ] {
            let twice = check(&headers(&[("accept", b"a"), (single, b"1"), ("accept", b"b"), (single, b"1")]));
            assert!(matches!(twice, Err(Refusal::RepeatedHeader(_))), "{single}: {twice:?}");
        }
        for (name, values) in [
            ("mcp-session-id", &["", " ", "a b", "\u{e9}", "a\tb", " a", "a "][..]),
            ("mcp-protocol-version", &["", "2025-06-18, 2025-11-25", "2025-06-18 ", "\"2025-06-18\"", "2025\t06", "\u{662}025"]),
            ("last-event-id", &["a\tb", " a", "a "]),
            ("transfer-encoding", &["gzip, chunked", "identity", "chunked, chunked", ""]),
            ("mcp-param-region", &["\u{e9}", "a\tb", " a", "=?BASE64?ZQ==?=", "=?base64?ZQ?=", "=?base64?!?="]),
        ] {
            for value in values {
                let refused = check(&headers(&[(name, value.as_bytes())]));
                assert!(matches!(refused, Err(Refusal::HeaderValue(..))), "{name}: {value:?}: {refused:?}");
            }
        }
        for name in ["content_type", "mcp_name", "mcp-session_id", "content_encoding", "transfer_encoding", "mcp_param-x"] {
            let refused = check(&headers(&[("content-type", b"application/json"), (name, b"1")]));
            assert!(matches!(refused, Err(Refusal::HeaderValue(..))), "{name}: {refused:?}");
        }
        let fine: &[(&str, &[u8])] = &[
            ("x_y", b"1"),
            ("x_content_type", b"1"),
            ("accept", b"a"),
            ("accept", b"b"),
            ("mcp-session-id", b"!a,b~"),
            ("mcp-protocol-version", b"2099-01-01"),
            ("last-event-id", b"\xc3\xa9 7"),
            ("mcp-param-region", b"eu west"),
            ("mcp-param-user_id", b"7"),
            ("mcp-param-city", b"=?base64?w6k=?="),
            ("x-mcp", b" "),
            ("transfer-encoding", b"Chunked"),
        ];
        assert_eq!(check(&headers(fine)), Ok(()));
    }

    #[test]
    fn the_most_specific_range_says_what_a_client_takes() {
        let alone = |values: &[&str]| {
            let values: Vec<(&'static str, &[u8])> = values.iter().map(|value| ("accept", value.as_bytes())).collect();
            takes_events_alone(&headers(&values))
        };
        for events in [
            &["text/event-stream"][..],
            &["Text/Event-Stream;q=0.5"],
            &["text/*"],
            &["text/event-stream", "application/json;q=0"],
            &["text/event-stream, application/json; Q=0.000"],
            &["text/event-stream, application/json ; q = 0"],
            &["text/event-stream, application/json;q=0, */*"],
            &["*/*, application/*;q=0"],
            &["text/event-stream, application/json;q=high"],
        ] {
            assert!(alone(events), "{events:?}");
        }
        for json in [
            &[][..],
            &["text/event-stream, application/json"],
            &["text/event-stream", "application/json"],
            &["text/event-stream, */*;q=0.001"],
            &["application/json;q=0.1, text/event-stream;q=0"],
            &["*/*, text/event-stream;q=0"],
            &["text/html"],
            &["\u{e9}"],
            &["text/event-stream;q=2"],
        ] {
            assert!(!alone(json), "{json:?}");
        }
    }
}
