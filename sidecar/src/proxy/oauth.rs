//! The description of a server's authorization (RFC 9728): the client reached the server by the sidecar's URL, and
//! refuses a description of another.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use http::{Uri, uri::PathAndQuery};
use toolweir_engine::json::{JsonKind, Reader};

/// The largest description of a server's authorization that is read, in bytes.
pub const LARGEST: usize = 256 * 1024;

/// The path of a server's description at its own origin (RFC 9728, section 3.1).
pub const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";

/// The most servers that are remembered.
const SERVERS: usize = 1024;
/// The longest path that is remembered, in bytes.
const LONGEST: usize = 2048;

/// The places at which servers said that their descriptions are. A server has one entry, and none but servers of policies have any.
#[derive(Debug, Default)]
pub struct Described(Mutex<HashMap<String, (Uri, PathAndQuery)>>);

impl Described {
    /// Takes what a server's challenge named.
    pub fn learn(&self, server: &str, url: &Uri, path: PathAndQuery) {
        if path.as_str().len() > LONGEST {
            return;
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= SERVERS && !known.contains_key(server) {
            // Most are no longer in any policy.
            known.clear();
        }
        known.insert(server.to_owned(), (url.clone(), path));
    }

    /// The places at which a server's description can be, in the order in which clients look (MCP 2025-11-25, Authorization, "Protected
    /// Resource Metadata Discovery Requirements"): what its challenge named, then by its path, then for its origin.
    pub fn places(&self, server: &str, url: &Uri) -> Vec<Uri> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let named = known.get(server).filter(|(of, _)| of == url).map(|(_, path)| path.clone());
        drop(known);
        let mut places = Vec::with_capacity(3);
        for path in [named, upstream_path(url).parse().ok(), WELL_KNOWN.parse().ok()] {
            let mut parts = url.clone().into_parts();
            parts.path_and_query = path;
            if let Ok(place) = Uri::from_parts(parts)
                && !places.contains(&place)
            {
                places.push(place);
            }
        }
        places
    }
}

/// The path of the description at the server itself.
fn upstream_path(url: &Uri) -> String {
    format!("{WELL_KNOWN}{}", url.path().trim_end_matches('/'))
}

/// A description with the sidecar's URL as its `resource`; every other byte stays. Nothing when it is no JSON object.
pub fn rewrite_resource(body: &[u8], resource: &str) -> Option<Vec<u8>> {
    let mut reader = Reader::new(body).ok()?;
    let mut places = Vec::new();
    if reader.peek().ok()? != JsonKind::Object {
        return None;
    }
    reader
        .object::<toolweir_engine::json::JsonError>(|reader, key| {
            let value = reader.value()?;
            if key.string()?.as_deref() == Some("resource") {
                places.push(value.start..value.end());
            }
            // Of two, clients would take one or the other; and each can become longer.
            if places.len() > 1 { Err(toolweir_engine::json::JsonError::Syntax(value.start)) } else { Ok(()) }
        })
        .ok()?;
    reader.finish().ok()?;
    let resource = serde_json::to_vec(resource).ok()?;
    let mut edited = Vec::with_capacity(body.len() + resource.len());
    let mut at = 0;
    for place in places {
        edited.extend_from_slice(body.get(at..place.start)?);
        edited.extend_from_slice(&resource);
        at = place.end;
    }
    edited.extend_from_slice(body.get(at..)?);
    Some(edited)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resource_is_the_url_that_the_client_used() {
        let body = br#"{"resource": "http://h/mcp", "authorization_servers": ["http://a"]}"#;
        let edited = rewrite_resource(body, "http://127.0.0.1:15001/bank").unwrap();
        assert_eq!(edited, br#"{"resource": "http://127.0.0.1:15001/bank", "authorization_servers": ["http://a"]}"#);
        assert_eq!(rewrite_resource(b"[]", "x"), None);
        assert_eq!(upstream_path(&"http://h/mcp/".parse().unwrap()), "/.well-known/oauth-protected-resource/mcp");
    }

    #[test]
    fn a_description_is_where_the_challenge_said_then_by_path_then_at_the_root() {
        let described = Described::default();
        let url: Uri = "http://h/mcp".parse().unwrap();
        let places = |url: &Uri| {
            described.places("bank", url).iter().map(Uri::path_and_query).map(|p| p.unwrap().to_string()).collect::<Vec<_>>()
        };
        let usual = ["/.well-known/oauth-protected-resource/mcp", "/.well-known/oauth-protected-resource"];
        assert_eq!(places(&url), usual);
        described.learn("bank", &url, "/about?x=y".parse().unwrap());
        described.learn("bank", &url, format!("/{}", "x".repeat(LONGEST)).parse().unwrap());
        assert_eq!(places(&url), ["/about?x=y", usual[0], usual[1]]);
        assert_eq!(places(&"http://other/mcp".parse().unwrap()), usual);
        assert_eq!(places(&"http://h/".parse().unwrap()), [usual[1]]);
        described.learn("bank", &url, usual[1].parse().unwrap());
        assert_eq!(places(&url), [usual[1], usual[0]]);
        for number in 0..3 * SERVERS {
            described.learn(&number.to_string(), &url, "/x".parse().unwrap());
        }
        assert!(described.0.lock().unwrap().len() <= SERVERS);
    }
}
