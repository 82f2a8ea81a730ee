//! What a captured connection begins with: an HTTP request, a TLS handshake, or something else. Bytes in, meaning out.

use super::client_hello::{ClientHello, HelloRead};
use crate::proxy::peeked::PREFACE;

/// The most bytes that are read before it is decided where a connection goes.
pub const LARGEST: usize = 16 * 1024;
/// The longest method of HTTP that is looked for, in bytes.
const LONGEST_METHOD: usize = 32;

/// The first bytes of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirstBytes {
    /// They may still become any of the others.
    More,
    /// The first line is that of a request over HTTP/1, or the preface of HTTP/2 (RFC 9112, section 3; RFC 9113, section 3.4).
    Http,
    /// The first message of a TLS handshake (RFC 8446, section 4.1.2).
    Tls(ClientHello),
    /// They begin as a TLS handshake does and go on otherwise.
    Malformed,
    /// Another protocol.
    Other,
}

/// Reads the first bytes of a connection.
pub fn read(bytes: &[u8]) -> FirstBytes {
    match bytes.first() {
        None => FirstBytes::More,
        Some(&super::client_hello::HANDSHAKE) => match super::client_hello::read(bytes) {
            HelloRead::More if bytes.len() < LARGEST => FirstBytes::More,
            HelloRead::More | HelloRead::Malformed => FirstBytes::Malformed,
            HelloRead::Hello(hello) => FirstBytes::Tls(hello),
        },
        Some(_) => http(bytes),
    }
}

/// Servers skip empty lines before a request, and some take words of HTTP in any case (RFC 9112, section 2.2).
fn http(bytes: &[u8]) -> FirstBytes {
    // Its first line alone does not tell HTTP/2, of which there may be few connections.
    if bytes.len() < PREFACE.len() && PREFACE.starts_with(bytes) {
        return FirstBytes::More;
    }
    let begin = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n'));
    let Some(line) = begin.and_then(|at| bytes.get(at..)) else {
        return if bytes.len() < LARGEST { FirstBytes::More } else { FirstBytes::Other };
    };
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let method = line.iter().take_while(|byte| is_token(byte)).count();
    match line.get(method) {
        None if method <= LONGEST_METHOD => return FirstBytes::More,
        Some(b' ' | b'\t') if (1..=LONGEST_METHOD).contains(&method) => {}
        _ => return FirstBytes::Other,
    }
    let end = line.iter().position(|byte| *byte == b'\n');
    let Some(line) = end.map_or(Some(line), |at| line.get(..at)) else { return FirstBytes::Other };
    let version = line.trim_ascii_end();
    let version = version.rsplit(|byte| matches!(byte, b' ' | b'\t')).next().unwrap_or_default();
    match end {
        None if bytes.len() < LARGEST => FirstBytes::More,
        // A first line that does not end is too long for a server, and no other protocol's either.
        None => FirstBytes::Http,
        Some(_) if version.get(..5).is_some_and(|name| name.eq_ignore_ascii_case(b"HTTP/")) => FirstBytes::Http,
        Some(_) => FirstBytes::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_from_other_protocols_by_their_first_line() {
        for (text, read_as) in [
            (&b""[..], FirstBytes::More),
            (b"GE", FirstBytes::More),
            (b"GET /mcp", FirstBytes::More),
            (b"GET /mcp HTTP/1.1\r\n", FirstBytes::Http),
            (b"get /mcp http/1.1\n", FirstBytes::Http),
            (b"\r\n\r\nPOST / HTTP/1.1\r\n", FirstBytes::Http),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", FirstBytes::Http),
            (b"PRI * HTTP/2.0\r\n", FirstBytes::More),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", FirstBytes::More),
            (b"PRI * HTTP/2.0\r\nHost: a", FirstBytes::Http),
            (b"CONNECT a:443 HTTP/1.1\r\n", FirstBytes::Http),
            (b"PING\r\n", FirstBytes::Other),
            (b"EHLO example\r\n", FirstBytes::Other),
            (b"GET key\r\n", FirstBytes::Other),
            (b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", FirstBytes::Other),
            (b"*1\r\n", FirstBytes::More),
            (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", FirstBytes::Other),
            (b"\x16abcdef", FirstBytes::Malformed),
        ] {
            // A command of RESP is told at its second byte.
            let read_as = if text == b"*1\r\n" { FirstBytes::Other } else { read_as };
            assert_eq!(read(text), read_as, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn a_first_line_without_an_end_is_a_request() {
        let mut line = b"GET /".to_vec();
        line.resize(LARGEST - 1, b'a');
        assert_eq!(read(&line), FirstBytes::More);
        line.push(b'a');
        assert_eq!(read(&line), FirstBytes::Http);
    }
}
