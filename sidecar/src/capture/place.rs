//! Where a captured HTTP request goes: to a declared server, or elsewhere.

use std::sync::Arc;

use http::{Method, Uri, uri::PathAndQuery};

use super::{
    declared::{DeclaredServer, DeclaredServers},
    names::{HostAndPort, SearchDomains},
};
use crate::in_force::ServerInForce;

/// The prefix of the paths at which an origin describes its authorization (RFC 8414, section 3; RFC 9728, section 3).
const WELL_KNOWN: &str = "/.well-known/oauth-";

/// What a captured request asks a declared server for.
#[derive(Clone, Debug)]
pub enum ServerTarget {
    /// The server's endpoint.
    Endpoint(Arc<ServerInForce>),
    /// The endpoint for messages of an open HTTP+SSE stream.
    Messages {
        /// The server.
        server: Arc<ServerInForce>,
        /// The id of the stream.
        stream: String,
    },
    /// The description of its authorization: the URL of it.
    Description(Arc<ServerInForce>, Uri),
}

/// Where a captured HTTP request goes.
#[derive(Clone, Debug)]
pub enum Place {
    /// To a declared server.
    Server(ServerTarget),
    /// To the host of declared servers, and to none of them.
    OtherPath,
    /// To another host.
    Elsewhere,
}

/// Finds where a request goes. A path is a server's exactly as its URL has it, or with one `/` more: what a server makes of others is
/// its own.
pub fn place(
    declared: &DeclaredServers,
    domains: &SearchDomains,
    at: &HostAndPort,
    method: &Method,
    target: &PathAndQuery,
) -> Place {
    let servers = declared.at(at, domains);
    // One that is declared with TLS is another, and plain HTTP to its port leads nowhere that is governed.
    let plain: Vec<&DeclaredServer> = servers.iter().map(|server| &**server).filter(|server| !server.tls).collect();
    if servers.is_empty() {
        return Place::Elsewhere;
    }
    let of_url = |server: &DeclaredServer| server.url.path_and_query().map_or("/", PathAndQuery::as_str).to_owned();
    let asked = target.as_str();
    if let Some(found) = plain.iter().find(|server| is_endpoint(&of_url(server), asked)) {
        return Place::Server(ServerTarget::Endpoint(Arc::clone(&found.server)));
    }
    for server in &plain {
        let rest = asked.strip_prefix('/').and_then(|rest| rest.strip_prefix(server.server.name.as_str()));
        if let Some(stream) = rest.and_then(|rest| rest.strip_prefix("/-/messages/")) {
            return Place::Server(ServerTarget::Messages { server: Arc::clone(&server.server), stream: stream.to_owned() });
        }
    }
    let is_description =
        method == Method::GET && target.query().is_none() && is_plain_path(asked) && asked.starts_with(WELL_KNOWN);
    if is_description && let Some(server) = described(&plain, asked) {
        let mut parts = server.url.clone().into_parts();
        parts.path_and_query = Some(target.clone());
        if let Ok(url) = Uri::from_parts(parts) {
            return Place::Server(ServerTarget::Description(Arc::clone(&server.server), url));
        }
    }
    Place::OtherPath
}

fn is_endpoint(declared: &str, asked: &str) -> bool {
    let plain = |path: &str| path.strip_suffix('/').map_or_else(|| path.to_owned(), str::to_owned);
    asked == declared || (!asked.contains('?') && !declared.contains('?') && plain(asked) == plain(declared))
}

/// Returns whether nothing in a path is more than it looks like: no dot segment, no escape.
fn is_plain_path(path: &str) -> bool {
    !path.contains(['%', '\\']) && !path.contains("//") && path.split('/').all(|part| part != "." && part != "..")
}

/// The server whose path ends that of a description, or else any of the host's.
fn described<'a>(servers: &[&'a DeclaredServer], asked: &str) -> Option<&'a DeclaredServer> {
    let of_path = servers.iter().find(|server| server.url.path().len() > 1 && asked.ends_with(server.url.path()));
    of_path.or_else(|| servers.first()).copied()
}
