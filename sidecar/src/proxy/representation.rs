//! The type and the coding of an answer's body, as its head names them (RFC 9110, section 8).

use http::{HeaderMap, HeaderValue, header};

/// Returns true where a body is coded, by what its head says. An empty value and `identity` say that it is not (RFC 9110, section
/// 8.4.1).
pub fn is_coded(headers: &HeaderMap) -> bool {
    let codings = headers.get_all(header::CONTENT_ENCODING).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    codings.map(<[u8]>::trim_ascii).any(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity"))
}

/// Why an answer cannot be read.
pub const COMPRESSED: &str = "it is compressed, though that was not asked for";

/// Why the body of an answer cannot be read as all clients read it. None where it can.
pub fn unreadable(headers: &HeaderMap) -> Option<&'static str> {
    if is_coded(headers) { Some(COMPRESSED) } else { unclear_type(headers) }
}

/// Returns true where the type of an answer is that of JSON, whatever its parameters are.
pub fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
}

/// Returns true where some client takes an answer for an event stream: one that looks for the type anywhere in what the answer
/// says.
pub fn is_events(headers: &HeaderMap) -> bool {
    const KIND: &[u8] = b"text/event-stream";
    let names = |value: &HeaderValue| value.as_bytes().windows(KIND.len()).any(|part| part.eq_ignore_ascii_case(KIND));
    headers.get_all(header::CONTENT_TYPE).iter().any(names)
}

/// Why clients may read a body in another way than as UTF-8 of the one type that its head names. None where all read the same.
pub fn unclear_type(headers: &HeaderMap) -> Option<&'static str> {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let value = values.next()?.as_bytes();
    if values.next().is_some() {
        return Some("its Content-Type stands twice");
    }
    // As nearly all servers write it.
    if value == b"application/json" {
        return None;
    }
    let mut parts = value.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    let kind = parts.next().unwrap_or_default();
    let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$&-^_.+/".contains(byte);
    if !kind.iter().all(token) || (is_events(headers) && !kind.eq_ignore_ascii_case(b"text/event-stream")) {
        return Some("its Content-Type names more than one type");
    }
    let other_charset = |part: &[u8]| {
        let (name, charset) = part.split_at(part.iter().position(|byte| *byte == b'=').unwrap_or(part.len()));
        let charset = charset.strip_prefix(b"=").unwrap_or_default().trim_ascii();
        let charset = charset.strip_prefix(b"\"").and_then(|quoted| quoted.strip_suffix(b"\"")).unwrap_or(charset);
        let plain = name.trim_ascii().eq_ignore_ascii_case(b"charset")
            && (charset.eq_ignore_ascii_case(b"utf-8") || charset.eq_ignore_ascii_case(b"utf8"));
        part.to_ascii_lowercase().windows(7).any(|word| word == b"charset") && !plain
    };
    parts.any(other_charset).then_some("its Content-Type names another charset than UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_coded_by_what_its_head_says_and_not_by_that_it_says_something() {
        let coded = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::CONTENT_ENCODING, HeaderValue::from_static(value));
            }
            is_coded(&headers)
        };
        for plain in [[].as_slice(), &[""], &["identity"], &["Identity"], &["identity, ,IDENTITY "], &["", "identity"]] {
            assert!(!coded(plain), "{plain:?}");
        }
        for other in [["gzip"].as_slice(), &["none"], &["identity, br"], &["identity", "gzip"], &["\"\""]] {
            assert!(coded(other), "{other:?}");
        }
    }
}
