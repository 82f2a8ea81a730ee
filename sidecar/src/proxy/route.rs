//! The route of a request: the target in its path, and the check of the host and the origin that it names.

use std::net::IpAddr;

use http::{HeaderMap, HeaderValue, Uri, header};

use super::{failure::RequestFailure, oauth};
use crate::{capture::place::ServerTarget, mcp::request::Refusal};

/// The target of a request.
pub enum RouteTarget<'a> {
    /// A server's endpoint.
    Server(&'a str),
    /// The endpoint for messages of an open HTTP+SSE stream.
    Messages {
        /// The server's name.
        server: &'a str,
        /// The id of the stream.
        stream: &'a str,
    },
    /// The description of a server's authorization.
    Authorization(&'a str),
    /// The same as the server gives it, at this URL: for a client that uses the server's own.
    Description(&'a str, Uri),
}

impl<'a> From<&'a ServerTarget> for RouteTarget<'a> {
    fn from(captured: &'a ServerTarget) -> Self {
        match captured {
            ServerTarget::Endpoint(server) => Self::Server(&server.name),
            ServerTarget::Messages { server, stream } => Self::Messages { server: &server.name, stream },
            ServerTarget::Description(server, url) => Self::Description(&server.name, url.clone()),
        }
    }
}

/// Reads the target in a path. None where there is nothing at it.
pub fn target(path: &str) -> Option<RouteTarget<'_>> {
    if let Some(server) = path.strip_prefix(oauth::WELL_KNOWN).and_then(|rest| rest.strip_prefix('/')) {
        let server = server.strip_suffix('/').unwrap_or(server);
        return (!server.contains('/')).then_some(RouteTarget::Authorization(server));
    }
    let rest = path.strip_prefix('/')?;
    match rest.split_once('/') {
        None | Some((_, "")) => Some(RouteTarget::Server(rest.trim_end_matches('/'))).filter(|_| !rest.is_empty()),
        Some((server, rest)) => rest.strip_prefix("-/messages/").map(|stream| RouteTarget::Messages { server, stream }),
    }
}

/// Refuses what a page of another origin sends (MCP 2025-11-25, Transports, "Security Warning"): browsers send
/// `Origin`, and with a rebound name a `Host` that is not local. `allowed_hosts` are the names of the sidecar besides local ones.
///
/// # Errors
/// `Host` or `Origin` is not local, or there are two of `Host`.
pub fn check_origin(headers: &HeaderMap, allowed_hosts: &[String]) -> Result<(), RequestFailure> {
    if headers.get_all(header::HOST).iter().nth(1).is_some() {
        return Err(Refusal::RepeatedHeader("Host").into());
    }
    let named = headers.get(header::HOST).and_then(|value| value.to_str().ok());
    // An address cannot be rebound, so any is accepted as the host.
    if !named.is_some_and(|authority| is_local(authority, allowed_hosts, |_| true)) {
        return Err(RequestFailure::ForbiddenOrigin("Host"));
    }
    for origin in headers.get_all(header::ORIGIN) {
        let authority = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, authority)| authority);
        // A page can be at an address too: only a local one, or that of the sidecar itself, is not foreign.
        if !authority.is_some_and(|authority| {
            Some(authority) == named || is_local(authority, allowed_hosts, |address| address.is_loopback())
        }) {
            return Err(RequestFailure::ForbiddenOrigin("Origin"));
        }
    }
    Ok(())
}

/// Refuses what a page of another origin than the server's sends to a server by its own URL, which has this scheme.
///
/// # Errors
/// `Origin` is not that of the request.
pub fn check_captured_origin(headers: &HeaderMap, scheme: &str) -> Result<(), RequestFailure> {
    let host = headers.get(header::HOST).and_then(|value| value.to_str().ok());
    let is_own = |origin: &HeaderValue| {
        let origin = origin.to_str().ok().and_then(|origin| origin.strip_prefix(scheme)?.strip_prefix("://"));
        origin.is_some() && origin == host
    };
    if headers.get_all(header::ORIGIN).iter().all(is_own) { Ok(()) } else { Err(RequestFailure::ForeignOrigin) }
}

/// The origin of the page that asks, if it is accepted.
pub fn accepted_origin(headers: &HeaderMap, allowed_hosts: &[String]) -> Option<HeaderValue> {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let origin = origins.next()?;
    (origins.next().is_none() && check_origin(headers, allowed_hosts).is_ok()).then(|| origin.clone())
}

/// Returns true where an authority names this machine, by a name of it or by an address that `fits`.
fn is_local(authority: &str, allowed_hosts: &[String], fits: impl Fn(IpAddr) -> bool) -> bool {
    let Ok(authority) = authority.parse::<http::uri::Authority>() else { return false };
    // What stands before an `@` is a name to some, and the host to others.
    if authority.as_str().contains('@') {
        return false;
    }
    let host = authority.host();
    host.trim_start_matches('[').trim_end_matches(']').parse().is_ok_and(fits)
        || host.eq_ignore_ascii_case("localhost")
        || allowed_hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_the_server_itself_is_told_by_the_scheme_of_the_connection_too() {
        let check = |origin: &'static str, scheme: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static("bank.example"));
            headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
            check_captured_origin(&headers, scheme).is_ok()
        };
        assert!(check("https://bank.example", "https") && check("http://bank.example", "http"));
        for (origin, scheme) in [
            ("http://bank.example", "https"),
            ("https://bank.example", "http"),
            ("https://bank.example.evil.example", "https"),
            ("null", "https"),
            ("", "https"),
        ] {
            assert!(!check(origin, scheme), "{origin} over {scheme}");
        }
    }
}
