//! What stands between `//` and the path.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::ambiguous::AmbiguousUri;

/// Checks the authority of any scheme.
pub(super) fn check(authority: &str) -> Result<(), AmbiguousUri> {
    if authority.contains('@') {
        return Err(AmbiguousUri::User);
    }
    if authority.contains('%') {
        return Err(AmbiguousUri::EncodedHost);
    }
    // Servers join it and the path, and resolve what they get.
    if matches!(authority, "." | "..") { Err(AmbiguousUri::Dots) } else { Ok(()) }
}

/// Returns the canonical authority of a web address. `own`: the port of its scheme.
pub(super) fn of_web(authority: &str, own: u16) -> Result<String, AmbiguousUri> {
    check(authority)?;
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, behind) = rest.split_once(']').ok_or(AmbiguousUri::Host)?;
            let port = if behind.is_empty() { "" } else { behind.strip_prefix(':').ok_or(AmbiguousUri::Host)? };
            (ipv6(address)?, port)
        }
        None => {
            let (host, port) = authority.split_once(':').unwrap_or((authority, ""));
            (name(host)?, port)
        }
    };
    if port.is_empty() {
        return Ok(host);
    }
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    let port = port.parse::<u16>().ok().filter(|port| digits && *port != 0).ok_or(AmbiguousUri::Port)?;
    Ok(if port == own { host } else { format!("{host}:{port}") })
}

fn ipv6(text: &str) -> Result<String, AmbiguousUri> {
    let address = text.parse::<Ipv6Addr>().map_err(|_| AmbiguousUri::Host)?;
    // One that holds an IPv4 address leads to the same host as that.
    let plain = address.to_ipv4().is_none() || address.is_loopback() || address.is_unspecified();
    if plain { Ok(format!("[{address}]")) } else { Err(AmbiguousUri::Host) }
}

fn name(host: &str) -> Result<String, AmbiguousUri> {
    if host.is_empty() {
        return Err(AmbiguousUri::NoHost);
    }
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if !host.split('.').all(|label| !label.is_empty() && label.bytes().all(fits)) {
        return Err(AmbiguousUri::Host);
    }
    // What ends with a number is read as an address (WHATWG URL, "ends in a number"), which has many notations.
    let last = host.rsplit('.').next().unwrap_or_default();
    let is_number = last.bytes().all(|byte| byte.is_ascii_digit())
        || last.strip_prefix("0x").is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
    if is_number && host.parse::<Ipv4Addr>().is_err() { Err(AmbiguousUri::Host) } else { Ok(host) }
}
