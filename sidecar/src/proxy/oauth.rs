//! Where a server's authorization is described (RFC 9728): the client reached the server by the sidecar's URL, and
//! refuses a description of another.

use http::Uri;
use toolweir_engine::json::{Kind, Reader};

use super::legacy::port;

/// The largest description of a server's authorization that is read, in bytes.
pub const LARGEST: usize = 256 * 1024;

/// The path of a server's description at its own origin (RFC 9728, section 3.1).
pub const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";

/// Where the server itself has its description.
pub fn upstream_path(url: &Uri) -> String {
    format!("{WELL_KNOWN}{}", url.path().trim_end_matches('/'))
}

/// A description with the sidecar's URL as its `resource`; every other byte stays. Nothing when it is no JSON object.
pub fn rewrite_resource(body: &[u8], resource: &str) -> Option<Vec<u8>> {
    let mut reader = Reader::new(body).ok()?;
    let mut places = Vec::new();
    if reader.peek().ok()? != Kind::Object {
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

/// A `WWW-Authenticate` value whose `resource_metadata` (RFC 9728, section 5.1) is at the sidecar, if it was at the
/// server's origin.
pub fn rewrite_challenge(value: &str, url: &Uri, local: &str) -> Option<String> {
    let start = value.find("resource_metadata=\"")? + "resource_metadata=\"".len();
    let length = value.get(start..)?.find('"')?;
    let named: Uri = value.get(start..start + length)?.parse().ok()?;
    let same = named.scheme() == url.scheme() && named.host() == url.host() && port(&named) == port(url);
    same.then(|| {
        format!("{}{local}{}", &value.get(..start).unwrap_or_default(), &value.get(start + length..).unwrap_or_default())
    })
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
    fn a_challenge_points_to_the_sidecar_if_it_pointed_to_the_server() {
        let url: Uri = "http://h:80/mcp".parse().unwrap();
        let value = r#"Bearer error="invalid_token", resource_metadata="http://h/.well-known/x", scope="a""#;
        let local = "http://127.0.0.1:15001/.well-known/oauth-protected-resource/bank";
        assert_eq!(
            rewrite_challenge(value, &url, local).unwrap(),
            format!(r#"Bearer error="invalid_token", resource_metadata="{local}", scope="a""#)
        );
        assert_eq!(rewrite_challenge(r#"Bearer resource_metadata="http://other/x""#, &url, local), None);
        assert_eq!(rewrite_challenge("Bearer", &url, local), None);
    }
}
