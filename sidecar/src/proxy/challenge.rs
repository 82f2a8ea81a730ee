//! `WWW-Authenticate` (RFC 9110, section 11.6.1): where a server's challenges name the description of its authorization
//! (RFC 9728, section 5.1), they name the sidecar's.
//!
//! Read as clients read it, which is more than the grammar has: a value may be a URL without quotes, and a comma may be
//! missing.

use std::{borrow::Cow, ops::Range};

use http::{Uri, uri::PathAndQuery};

use super::origin::{origin, resolve};

const PARAMETER: &[u8] = b"resource_metadata";

/// A value as a client may have it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rewritten {
    /// The new value; nothing when the old one stays.
    pub value: Option<Vec<u8>>,
    /// The first description at the server's own origin that it named.
    pub named: Option<PathAndQuery>,
    /// True where a part was left out that cannot be read and may name the server.
    pub cut: bool,
}

/// A parameter of a challenge.
#[derive(Debug, PartialEq, Eq)]
pub struct Parameter<'a> {
    /// Its name, as it was written.
    pub name: &'a [u8],
    /// Its value, without quotes.
    pub value: Cow<'a, [u8]>,
    /// The bytes from its name to the end of its value.
    pub place: Range<usize>,
}

/// The parameters of all challenges of a value, in order, and up to where it could be read.
pub fn parameters(value: &[u8]) -> (Vec<Parameter<'_>>, usize) {
    let mut reader = ChallengeReader { value, at: 0 };
    let mut parameters = Vec::new();
    loop {
        reader.skip(|byte| matches!(byte, b' ' | b'\t' | b','));
        let start = reader.at;
        if start == value.len() {
            return (parameters, start);
        }
        if let Some(parameter) = reader.parameter() {
            parameters.push(parameter);
        } else if !reader.scheme() {
            return (parameters, start);
        }
    }
}

/// Puts `local` in the place of every description at the origin of `url`.
pub fn rewrite(value: &[u8], url: &Uri, local: &str) -> Rewritten {
    let (parameters, end) = parameters(value);
    let (mut edited, mut at, mut named) = (Vec::new(), 0, None);
    let own = format!("resource_metadata=\"{}\"", local.replace('\\', "\\\\").replace('"', "\\\""));
    for parameter in parameters {
        if !parameter.name.eq_ignore_ascii_case(PARAMETER) || is_elsewhere(&parameter.value, url) {
            continue;
        }
        if named.is_none() {
            named = std::str::from_utf8(&parameter.value).ok().and_then(|text| resolve(url, text)?.path_and_query().cloned());
        }
        edited.extend_from_slice(value.get(at..parameter.place.start).unwrap_or_default());
        edited.extend_from_slice(own.as_bytes());
        at = parameter.place.end;
    }
    let rest = value.get(end..).unwrap_or_default();
    let cut = rest.windows(PARAMETER.len()).any(|window| window.eq_ignore_ascii_case(PARAMETER));
    if at == 0 && !cut {
        return Rewritten::default();
    }
    edited.extend_from_slice(value.get(at..if cut { end } else { value.len() }).unwrap_or_default());
    if cut {
        let kept = edited.iter().rposition(|byte| !matches!(byte, b' ' | b'\t' | b',')).map_or(0, |last| last + 1);
        edited.truncate(kept);
        if edited.is_empty() {
            edited = [b"Bearer ", own.as_bytes()].concat();
        }
    }
    Rewritten { value: Some(edited), named, cut }
}

/// Returns true for the URL of another origin. A text that is not a URL, or relative, is taken for one of the server's.
fn is_elsewhere(named: &[u8], url: &Uri) -> bool {
    let named = std::str::from_utf8(named).ok().and_then(|named| named.trim().parse::<Uri>().ok());
    named.is_some_and(|named| origin(&named).is_some_and(|named| Some(named) != origin(url)))
}

#[derive(Clone, Copy)]
struct ChallengeReader<'a> {
    value: &'a [u8],
    at: usize,
}

impl<'a> ChallengeReader<'a> {
    fn peek(&self) -> Option<u8> {
        self.value.get(self.at).copied()
    }

    fn skip(&mut self, fits: impl Fn(u8) -> bool) -> &'a [u8] {
        let start = self.at;
        while self.peek().is_some_and(&fits) {
            self.at += 1;
        }
        self.value.get(start..self.at).unwrap_or_default()
    }

    fn blanks(&mut self) {
        self.skip(|byte| matches!(byte, b' ' | b'\t'));
    }

    /// Returns true where an element of the list can end here.
    fn is_end(&self) -> bool {
        matches!(self.peek(), None | Some(b',' | b' ' | b'\t'))
    }

    /// Reads a parameter, or nothing.
    fn parameter(&mut self) -> Option<Parameter<'a>> {
        let mut reader = *self;
        let name = reader.skip(is_token);
        reader.blanks();
        if name.is_empty() || reader.peek() != Some(b'=') {
            return None;
        }
        reader.at += 1;
        reader.blanks();
        let value = if reader.peek() == Some(b'"') {
            reader.quoted()?
        } else {
            let plain = reader.skip(|byte| byte.is_ascii_graphic() && !matches!(byte, b',' | b'"') || byte >= 0x80);
            Cow::Borrowed(plain)
        };
        if value.is_empty() && reader.value.get(reader.at.wrapping_sub(1)) != Some(&b'"') || !reader.is_end() {
            return None;
        }
        let place = self.at..reader.at;
        self.at = reader.at;
        Some(Parameter { name, value, place })
    }

    /// Reads a quoted-string (RFC 9110, section 5.6.4).
    fn quoted(&mut self) -> Option<Cow<'a, [u8]>> {
        self.at += 1;
        let start = self.at;
        let mut plain: Option<Vec<u8>> = None;
        loop {
            let byte = self.peek()?;
            match byte {
                b'"' => {
                    let whole = self.value.get(start..self.at)?;
                    self.at += 1;
                    return Some(plain.map_or(Cow::Borrowed(whole), Cow::Owned));
                }
                b'\\' => {
                    let before = self.value.get(start..self.at)?;
                    let escaped = *self.value.get(self.at + 1)?;
                    plain.get_or_insert_with(|| before.to_vec()).push(escaped);
                    self.at += 2;
                }
                other => {
                    if let Some(plain) = &mut plain {
                        plain.push(other);
                    }
                    self.at += 1;
                }
            }
        }
    }

    /// Reads a scheme, with its token68 if it has one; its parameters are read one after the other.
    fn scheme(&mut self) -> bool {
        if self.skip(is_token).is_empty() || !self.is_end() {
            return false;
        }
        let mut reader = *self;
        reader.blanks();
        let text = reader.skip(|byte| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte));
        reader.skip(|byte| byte == b'=');
        // What a `=` follows is the name of a parameter.
        let after = {
            let mut later = reader;
            later.blanks();
            later
        };
        if !text.is_empty() && reader.at > self.at && matches!(after.peek(), None | Some(b',')) {
            *self = reader;
        }
        true
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: &str = "http://127.0.0.1:15001/.well-known/oauth-protected-resource/bank";

    fn rewritten(value: &str) -> String {
        let url: Uri = "http://h:80/mcp".parse().unwrap();
        let new = rewrite(value.as_bytes(), &url, LOCAL);
        new.value.map_or_else(|| value.to_owned(), |new| String::from_utf8(new).unwrap())
    }

    #[test]
    fn every_challenge_points_to_the_sidecar_if_it_pointed_to_the_server() {
        let own = format!("resource_metadata=\"{LOCAL}\"");
        for (value, expected) in [
            (r#"Bearer resource_metadata="http://h/x""#, format!("Bearer {own}")),
            (
                r#"Bearer error="invalid_token", resource_metadata="http://h/x", scope="a""#,
                format!(r#"Bearer error="invalid_token", {own}, scope="a""#),
            ),
            (
                r#"Negotiate abc==, Bearer resource_metadata="http://H:80/x", DPoP algs="ES256", resource_metadata="http://h/y""#,
                format!(r#"Negotiate abc==, Bearer {own}, DPoP algs="ES256", {own}"#),
            ),
            (r#"Bearer resource_metadata="http://h/x", resource_metadata="http://h/y""#, format!("Bearer {own}, {own}")),
            (r#"Bearer resource_metadata = "http://h/x""#, format!("Bearer {own}")),
            ("Bearer resource_metadata\t=\t\"http://h/x\" , a=b", format!("Bearer {own} , a=b")),
            (r#"BEARER RESOURCE_METADATA="HTTP://H/x""#, format!("BEARER {own}")),
            ("Bearer resource_metadata=http://h/x, a=b", format!("Bearer {own}, a=b")),
            ("Bearer a=b,resource_metadata=/x", format!("Bearer a=b,{own}")),
            (r#"Bearer realm="a\", b=\"c" resource_metadata="http:\//h/x""#, format!(r#"Bearer realm="a\", b=\"c" {own}"#)),
            (r#", ,Basic realm="x",,Bearer resource_metadata="//h/x""#, format!(r#", ,Basic realm="x",,Bearer {own}"#)),
            (r#"resource_metadata="http://h/x""#, own.clone()),
            // Of another origin, another parameter, or none.
            (r#"Bearer resource_metadata="http://other/x""#, r#"Bearer resource_metadata="http://other/x""#.to_owned()),
            (r#"Bearer resource_metadata="https://h/x""#, r#"Bearer resource_metadata="https://h/x""#.to_owned()),
            (r#"Bearer a="resource_metadata=\"http://h/x\"""#, r#"Bearer a="resource_metadata=\"http://h/x\"""#.to_owned()),
            ("Bearer", "Bearer".to_owned()),
            ("Basic YWJj, Bearer", "Basic YWJj, Bearer".to_owned()),
            // What cannot be read passes unless it may name the server.
            (r#"Bearer realm="x"#, r#"Bearer realm="x"#.to_owned()),
            (r#"Bearer realm="x", resource_metadata="http://h/x"#, r#"Bearer realm="x""#.to_owned()),
            (r#"Bearer @, Resource_metadata="http://h/x""#, "Bearer".to_owned()),
            (r#"@ resource_metadata="http://h/x""#, format!("Bearer {own}")),
        ] {
            assert_eq!(rewritten(value), expected, "{value}");
        }
    }

    #[test]
    fn what_a_challenge_named_first_is_told() {
        let url: Uri = "http://h/mcp".parse().unwrap();
        let named = |value: &str| rewrite(value.as_bytes(), &url, LOCAL).named.map(|path| path.to_string());
        let value = r#"Bearer resource_metadata="http://other/x", resource_metadata="http://h/a?b=c", resource_metadata="/d""#;
        assert_eq!(named(value).as_deref(), Some("/a?b=c"));
        assert_eq!(named("Bearer"), None);
    }

    #[test]
    fn a_value_that_is_no_text_is_read_too() {
        let url: Uri = "http://h/mcp".parse().unwrap();
        let value = b"Bearer realm=\"\xe9\", resource_metadata=\"http://h/x\"";
        let expected = [b"Bearer realm=\"\xe9\", resource_metadata=\"".as_slice(), LOCAL.as_bytes(), b"\""].concat();
        assert_eq!(rewrite(value, &url, LOCAL).value.unwrap(), expected);
    }
}
