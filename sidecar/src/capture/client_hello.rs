//! The name that a TLS client asks for (RFC 8446, section 4.1.2; RFC 6066, section 3).
//!
//! Read without taking part in the handshake: what is not opened passes as it is. A fuzz target compares what is read with what
//! rustls reads.

/// The type of the first record of a handshake.
pub const HANDSHAKE: u8 = 0x16;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
/// The extension with the protocols that a client offers.
const PROTOCOLS: u16 = 16;
/// HTTP/2 among them (RFC 9113, section 3.2).
pub const HTTP_2: &[u8] = b"h2";
/// An encrypted `ClientHello` (RFC 9849): the name that can be read is then not the one that is asked for.
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;
/// The largest content of a record in clear text.
const LARGEST_RECORD: usize = 16 * 1024;

/// A `ClientHello`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// The name of the server, in lower case and without a final dot; none where the client names none, as for an address.
    pub server_name: Option<String>,
    /// True if another name may be in an encrypted part.
    pub hides_name: bool,
    /// True if it offers HTTP/2 by ALPN (RFC 7301, section 3.1).
    pub offers_http2: bool,
}

/// What was read of a `ClientHello`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HelloRead {
    /// It goes on.
    More,
    /// It is none, or says a thing twice.
    Malformed,
    /// It is whole.
    Hello(ClientHello),
}

/// Reads a `ClientHello`, which may be split into records.
pub fn read(bytes: &[u8]) -> HelloRead {
    let mut records = ByteFields(bytes);
    let mut message = Vec::new();
    loop {
        if let Some(length) = length_of(&message) {
            let Some(body) = message.get(4..4 + length) else {
                if message.first() != Some(&CLIENT_HELLO) {
                    return HelloRead::Malformed;
                }
                match next_record(&mut records) {
                    Ok(Some(piece)) => message.extend_from_slice(piece),
                    Ok(None) => return HelloRead::More,
                    Err(()) => return HelloRead::Malformed,
                }
                continue;
            };
            // Nothing follows it before the server has answered.
            let whole = message.first() == Some(&CLIENT_HELLO) && message.len() == 4 + length;
            return match hello(body).filter(|_| whole) {
                Some(hello) => HelloRead::Hello(hello),
                None => HelloRead::Malformed,
            };
        }
        match next_record(&mut records) {
            Ok(Some(piece)) => message.extend_from_slice(piece),
            Ok(None) => return HelloRead::More,
            Err(()) => return HelloRead::Malformed,
        }
    }
}

/// The length of a handshake message, once its head is there.
fn length_of(message: &[u8]) -> Option<usize> {
    let [_, a, b, c] = *message.first_chunk()?;
    Some(usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c))
}

/// The content of the next record; none if it is not whole yet.
fn next_record<'a>(records: &mut ByteFields<'a>) -> Result<Option<&'a [u8]>, ()> {
    let begin = records.0;
    let (Some(&kind), Some(&major)) = (begin.first(), begin.get(1)) else {
        return if begin.first().is_none_or(|kind| *kind == HANDSHAKE) { Ok(None) } else { Err(()) };
    };
    if kind != HANDSHAKE || major != 3 {
        return Err(());
    }
    let Some(&[_, _, _, high, low]) = begin.first_chunk::<5>() else { return Ok(None) };
    let length = usize::from(high) << 8 | usize::from(low);
    if length == 0 || length > LARGEST_RECORD {
        return Err(());
    }
    let Some(content) = begin.get(5..5 + length) else { return Ok(None) };
    records.0 = begin.get(5 + length..).unwrap_or_default();
    Ok(Some(content))
}

/// Reads the body of a `ClientHello`; none where it is malformed.
fn hello(body: &[u8]) -> Option<ClientHello> {
    let mut body = ByteFields(body);
    // The version and the random.
    body.take(2 + 32)?;
    body.short_list()?;
    body.list()?;
    body.short_list()?;
    let mut read = ClientHello::default();
    if body.0.is_empty() {
        // TLS 1.2 without an extension.
        return Some(read);
    }
    let mut extensions = ByteFields(body.list()?);
    let mut seen = Vec::new();
    while !extensions.0.is_empty() {
        let kind = extensions.number()?;
        let content = extensions.list()?;
        if seen.contains(&kind) {
            return None;
        }
        seen.push(kind);
        match kind {
            SERVER_NAME => read.server_name = Some(server_name(content)?),
            ENCRYPTED_CLIENT_HELLO => read.hides_name = true,
            PROTOCOLS => read.offers_http2 = offers_http2(content),
            _ => {}
        }
    }
    body.0.is_empty().then_some(read)
}

/// Returns whether HTTP/2 is among the protocols; not where they cannot be read, which ends the handshake.
fn offers_http2(content: &[u8]) -> bool {
    let mut protocols = ByteFields(ByteFields(content).list().unwrap_or_default());
    std::iter::from_fn(|| protocols.short_list()).any(|protocol| protocol == HTTP_2)
}

/// The one name of a list of names.
fn server_name(content: &[u8]) -> Option<String> {
    let mut content = ByteFields(content);
    let mut names = ByteFields(content.list()?);
    // The only type that there is.
    let kind = names.take(1)?;
    let name = names.list()?;
    if kind != [0] || !names.0.is_empty() || !content.0.is_empty() {
        return None;
    }
    let name = std::str::from_utf8(name).ok()?.to_ascii_lowercase();
    let name = name.strip_suffix('.').unwrap_or(&name);
    super::names::is_dns_name(name).then(|| name.to_owned())
}

/// Fields one after another.
struct ByteFields<'a>(&'a [u8]);

impl<'a> ByteFields<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        let taken = self.take(2)?;
        Some(u16::from_be_bytes(*taken.first_chunk()?))
    }

    /// A list whose length is a number of two bytes.
    fn list(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        self.take(length.into())
    }

    /// A list whose length is a number of one byte.
    fn short_list(&mut self) -> Option<&'a [u8]> {
        let length = *self.take(1)?.first()?;
        self.take(length.into())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName};

    use super::*;

    /// What rustls sends first.
    fn sent(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let mut client = ClientConnection::new(Arc::new(config), ServerName::try_from(name.to_owned()).unwrap()).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same message in records of at most `size` bytes.
    fn split(bytes: &[u8], size: usize) -> Vec<u8> {
        let piece = |piece: &[u8]| [&[HANDSHAKE, 3, 1][..], &u16::try_from(piece.len()).unwrap().to_be_bytes(), piece].concat();
        bytes[5..].chunks(size).flat_map(piece).collect()
    }

    #[test]
    fn the_name_is_read_however_the_message_is_split() {
        let hello = HelloRead::Hello(ClientHello {
            server_name: Some("mcp.example.com".to_owned()),
            hides_name: false,
            offers_http2: false,
        });
        let bytes = sent("MCP.example.com");
        assert_eq!(read(&bytes), hello);
        for size in [1, 2, 3, 40, 200] {
            assert_eq!(read(&split(&bytes, size)), hello, "{size}");
        }
        for end in 0..bytes.len() {
            assert_eq!(read(&bytes[..end]), HelloRead::More, "{end}");
        }
    }

    #[test]
    fn http2_is_seen_among_the_protocols() {
        for (offered, expected) in [
            (&b"\x00\x03\x02h2"[..], true),
            (b"\x00\x0c\x08http/1.1\x02h2", true),
            (b"\x00\x09\x08http/1.1", false),
            (b"\x00\x04\x03h2c", false),
            (b"\x00\x03\x09h2", false),
            (b"", false),
        ] {
            assert_eq!(offers_http2(offered), expected, "{}", offered.escape_ascii());
        }
    }

    #[test]
    fn an_address_is_no_name() {
        assert_eq!(read(&sent("192.0.2.1")), HelloRead::Hello(ClientHello::default()));
    }

    #[test]
    fn an_encrypted_name_is_noticed() {
        let mut bytes = sent("a.example");
        // An extension of four bytes more, and every length with it.
        bytes.extend([0xfe, 0x0d, 0, 0]);
        let length = |at: usize, bytes: &mut [u8]| {
            let long = u16::from_be_bytes([bytes[at], bytes[at + 1]]) + 4;
            bytes[at..at + 2].copy_from_slice(&long.to_be_bytes());
        };
        length(3, &mut bytes);
        length(7, &mut bytes);
        let mut at = 5 + 4 + 2 + 32;
        at += 1 + usize::from(bytes[at]);
        at += 2 + usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
        at += 1 + usize::from(bytes[at]);
        length(at, &mut bytes);
        assert_eq!(
            read(&bytes),
            HelloRead::Hello(ClientHello { server_name: Some("a.example".to_owned()), hides_name: true, offers_http2: false })
        );
        // The same extension again.
        bytes.extend([0xfe, 0x0d, 0, 0]);
        for at in [3, 7, at] {
            length(at, &mut bytes);
        }
        assert_eq!(read(&bytes), HelloRead::Malformed);
    }

    #[test]
    fn what_is_no_client_hello_is_malformed() {
        let mut bytes = sent("a.example");
        bytes.push(HANDSHAKE);
        assert!(matches!(read(&bytes), HelloRead::Hello(_)), "what follows is the next record's");
        for text in [&b"\x15\x03\x01"[..], b"\x16\x02\x00", b"\x16\x03\x01\x00\x00", b"\x16\x03\x01\xff\xff"] {
            assert_eq!(read(text), HelloRead::Malformed, "{}", text.escape_ascii());
        }
        let mut other = sent("a.example");
        other[5] = 2;
        assert_eq!(read(&other), HelloRead::Malformed);
    }
}
