//! The headers of a message that goes on to the next hop.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use smallvec::SmallVec;

use super::cookies;
use crate::mcp::headers;

/// Headers that end at each hop (RFC 9110, section 7.6.1).
static HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Headers that a server does not get: those that name the sidecar, or are about this hop's body.
static NOT_FORWARDED: [HeaderName; 5] =
    [header::HOST, header::CONTENT_LENGTH, header::ACCEPT_ENCODING, header::ORIGIN, header::EXPECT];

/// The headers that a server gets: without those of this hop, those that name the sidecar, and the wish for compressed
/// answers, which could not be read.
pub fn forwarded(headers: &HeaderMap, server: &str) -> HeaderMap {
    let mut forwarded = headers.clone();
    remove_hop_by_hop_and(&mut forwarded, &NOT_FORWARDED);
    if headers.contains_key(header::COOKIE) {
        let values = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes);
        forwarded.remove(header::COOKIE);
        if let Some(own) = cookies::to_server(values, server).and_then(|own| HeaderValue::from_bytes(&own).ok()) {
            forwarded.insert(header::COOKIE, own);
        }
    }
    forwarded
}

/// Removes the headers that end at this hop.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    remove_hop_by_hop_and(headers, &[]);
}

/// Removes the headers that end at this hop, and others. They are looked for among those that are there, which are few: a look-up costs more.
fn remove_hop_by_hop_and(headers: &mut HeaderMap, others: &[HeaderName]) {
    let mut removed: SmallVec<[HeaderName; 4]> =
        headers.keys().filter(|name| HOP_BY_HOP.contains(name) || others.contains(name)).cloned().collect();
    if removed.contains(&header::CONNECTION) {
        removed.extend(headers::listed(headers, &header::CONNECTION).filter_map(|name| name.trim().parse().ok()));
    }
    for name in removed {
        headers.remove(name);
    }
}

/// The origin by which a client reached the sidecar.
pub fn sidecar_origin(headers: &HeaderMap) -> String {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("127.0.0.1:15001");
    format!("http://{host}")
}
