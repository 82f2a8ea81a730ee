//! The CONNECT method (RFC 9110, section 9.3.6): a client that takes what it connects to for its proxy names the destination so.

use super::names::{HostAndPort, read_authority};

/// Returns whether the first bytes of a connection are a CONNECT, in whatever case.
pub fn is_connect(early: &[u8]) -> bool {
    early.trim_ascii_start().get(..8).is_some_and(|method| method.eq_ignore_ascii_case(b"CONNECT "))
}

/// The host and port that the head of a CONNECT asks for. None where it is not clear.
pub fn connect_target(head: &[u8]) -> Option<HostAndPort> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let whole = request.parse(head).ok()?.is_complete();
    let (host, port) = read_authority(request.path.filter(|_| whole && request.method == Some("CONNECT"))?)?;
    Some(HostAndPort { host, port: port? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::names::Host;

    #[test]
    fn a_connect_asks_for_a_host_and_a_port() {
        let target = |line: &str| connect_target(format!("{line}\r\nHost: other\r\n\r\n").as_bytes());
        assert_eq!(
            target("CONNECT MCP.example.com:443 HTTP/1.1"),
            Some(HostAndPort { host: Host::Name("mcp.example.com".to_owned()), port: 443 })
        );
        assert_eq!(
            target("CONNECT [::ffff:192.0.2.1]:80 HTTP/1.1"),
            Some(HostAndPort { host: Host::read("192.0.2.1").unwrap(), port: 80 })
        );
        for line in
            ["CONNECT a HTTP/1.1", "CONNECT http://a:80/ HTTP/1.1", "CONNECT a@b:443 HTTP/1.1", "connect a:1 HTTP/1.1", "CONNECT"]
        {
            assert_eq!(target(line), None, "{line}");
        }
        assert!(is_connect(b"\r\nconnect a:1 HTTP/1.1"));
        assert!(!is_connect(b"CONNECTED / HTTP/1.1"));
    }
}
