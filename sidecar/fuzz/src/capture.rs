//! What a captured connection begins with: a request, a TLS handshake, a CONNECT, or something else.

use std::io::Cursor;

use rustls::server::Acceptor;
use toolweir_sidecar::capture::{
    connect_method::{connect_target, is_connect},
    first_bytes::{FirstBytes, LARGEST, read},
    mcp_signs,
    names::read_authority,
};

/// The check.
pub fn check(data: &[u8]) {
    let data = data.get(..LARGEST).unwrap_or(data);
    first_bytes(data);
    let _ = mcp_signs::in_body(data);
    if let Some(at) = connect_target(data) {
        assert!(is_connect(data));
        let again = read_authority(&at.to_string()).expect("it is an authority");
        assert_eq!((again.0, again.1), (at.host, Some(at.port)));
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Some((host, port)) = read_authority(text)
    {
        let shown = port.map_or(host.to_string(), |port| format!("{host}:{port}"));
        assert_eq!(read_authority(&shown), Some((host, port)), "{shown}");
        assert!(!shown.contains(|c: char| c.is_control() || c.is_whitespace() || c.is_ascii_uppercase()), "{shown:?}");
    }
}

/// What is clear stays so, whatever follows; and the name of a handshake is the one that rustls reads.
fn first_bytes(data: &[u8]) {
    let mut clear = None;
    for end in (0..=data.len()).step_by(1 + data.len() / 64).chain([data.len()]) {
        let read = read(&data[..end]);
        if let Some((before, at)) = &clear {
            assert_eq!(read, *before, "clear at {at}, at {end} another");
        } else if read != FirstBytes::More {
            clear = Some((read, end));
        }
    }
    let mut acceptor = Acceptor::default();
    let mut cursor = Cursor::new(data);
    let Some((FirstBytes::Tls(hello), _)) = clear else { return };
    while acceptor.read_tls(&mut cursor).is_ok_and(|read| read > 0) {
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let name = accepted.client_hello().server_name().map(|name| name.trim_end_matches('.').to_ascii_lowercase());
                let http2 = accepted.client_hello().alpn().is_some_and(|mut all| all.any(|protocol| protocol == b"h2"));
                assert_eq!((hello.server_name, hello.offers_http2), (name, http2));
                return;
            }
            Ok(None) => {}
            Err(_) => return,
        }
    }
}
