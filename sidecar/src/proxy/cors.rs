//! Pages in a browser (Fetch, "CORS protocol"): what a page of an accepted origin may send and read.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header, request::Parts};

use crate::mcp::headers::listed;

/// The most names of headers that a page may ask for.
const NAMES: usize = 64;
/// The most bytes that they may have.
const BYTES: usize = 4 * 1024;
/// The seconds for which a browser may keep the answer to a preflight.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");
/// The methods that a client of MCP uses.
const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, DELETE");
/// The headers that a client of MCP reads besides those that any page may.
const EXPOSED: &str = "Mcp-Session-Id, MCP-Protocol-Version, WWW-Authenticate, Retry-After";
const REQUEST_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");

/// Returns true where a browser asks what a page may send.
pub fn is_preflight(request: &Parts) -> bool {
    request.method == Method::OPTIONS
        && request.headers.contains_key(header::ORIGIN)
        && request.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// The answer to a preflight of an accepted origin, whatever it is for: what is not there is said to the request itself,
/// in words that a page can read.
pub fn preflight<B>(asked: &HeaderMap, body: B) -> Response<B> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    let names = names(asked, &header::ACCESS_CONTROL_REQUEST_HEADERS);
    if let Some(names) = HeaderValue::from_str(&names.join(", ")).ok().filter(|names| !names.is_empty()) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, names);
    }
    // A page on the network that was accepted by its name may reach the pod's own address.
    if asked.get(REQUEST_PRIVATE_NETWORK).is_some_and(|value| value == "true") {
        headers.insert(ALLOW_PRIVATE_NETWORK, HeaderValue::from_static("true"));
    }
    headers
        .insert(header::VARY, HeaderValue::from_static("Access-Control-Request-Headers, Access-Control-Request-Private-Network"));
    response
}

/// Lets a page of this accepted origin read an answer. What the server said of pages is not said twice, since two values
/// are none to a browser; the names of its own headers stay.
pub fn expose(headers: &mut HeaderMap, origin: HeaderValue) {
    let own = names(headers, &header::ACCESS_CONTROL_EXPOSE_HEADERS);
    let more = own.iter().filter(|name| *name != "*" && !EXPOSED.split(", ").any(|known| known.eq_ignore_ascii_case(name)));
    let exposed = more.fold(EXPOSED.to_owned(), |names, name| format!("{names}, {name}"));
    headers.remove(header::ACCESS_CONTROL_ALLOW_CREDENTIALS);
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    if let Ok(exposed) = HeaderValue::from_str(&exposed) {
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
}

/// The names in a list of headers that can be some, within the bounds.
fn names(headers: &HeaderMap, list: &HeaderName) -> Vec<String> {
    let mut left = BYTES;
    listed(headers, list)
        .map(str::trim)
        .filter(|name| *name == "*" || name.parse::<HeaderName>().is_ok())
        .take(NAMES)
        .take_while(|name| {
            let fits = name.len() <= left;
            left = left.saturating_sub(name.len());
            fits
        })
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_preflight_allows_what_is_asked_for_within_bounds() {
        let allowed = |asked: &str| {
            let response = preflight(&headers(&[("access-control-request-headers", asked)]), ());
            assert_eq!(response.status(), 204);
            response.headers().get("access-control-allow-headers").map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(allowed("content-type,Mcp-Param-X, no token,,x").unwrap(), "content-type, Mcp-Param-X, x");
        assert_eq!(allowed(""), None);
        assert_eq!(allowed(&vec!["x"; 1000].join(",")).unwrap().split(", ").count(), NAMES);
        assert!(allowed(&vec!["x".repeat(1000).as_str(); 60].join(",")).unwrap().len() < BYTES + 10);
    }

    #[test]
    fn a_page_reads_an_answer_with_one_value_of_each_header() {
        let mut headers = headers(&[
            ("access-control-allow-origin", "*"),
            ("access-control-allow-origin", "null"),
            ("access-control-allow-credentials", "true"),
            ("access-control-expose-headers", "*, X-Request-Id"),
            ("access-control-expose-headers", "mcp-session-id"),
            ("vary", "Accept"),
        ]);
        expose(&mut headers, HeaderValue::from_static("http://localhost:6274"));
        let all = |name: &str| headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(all("access-control-allow-origin"), ["http://localhost:6274"]);
        assert_eq!(all("access-control-allow-credentials"), [""; 0]);
        assert_eq!(all("access-control-expose-headers"), [format!("{EXPOSED}, X-Request-Id")]);
        assert_eq!(all("vary"), ["Accept", "Origin"]);
    }
}
