//! Cookies of servers (RFC 6265), such as those by which a load balancer keeps a client at one of its backends.
//!
//! A client reaches all servers at one host, so the server's name becomes a part of the cookie's: it goes back to that
//! server and to no other, whatever the client makes of paths. The rest is made to fit the local URL, which has no TLS.

use http::Uri;

/// The prefix of a cookie's name at the client: `toolweir~<server>~`. No server's name has a `~`.
const MARK: &str = "toolweir~";

/// A server's `Set-Cookie` as a client gets it. Nothing when the server must not set this cookie.
pub fn to_client(value: &[u8], server: &str, url: &Uri) -> Option<Vec<u8>> {
    let mut parts = value.split(|byte| *byte == b';');
    let pair = trim(parts.next()?);
    let (name, content) = split(pair);
    if name.is_empty() {
        return None;
    }
    let mut out = [MARK.as_bytes(), server.as_bytes(), b"~", name, b"=", content].concat();
    let mut path = None;
    for part in parts.map(trim) {
        let (name, value) = split(part);
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        if is("path") {
            path = value.starts_with(b"/").then_some(value);
        } else if is("domain") {
            // A client of the server would refuse it, and another host's cookie is not this server's to set.
            if !domain_matches(value, url.host()?) {
                return None;
            }
        } else if is("secure") || is("partitioned") || is("samesite") && value.eq_ignore_ascii_case(b"none") || part.is_empty() {
            // The local URL is no secure one, and neither of the others goes without `Secure`.
        } else {
            out.extend_from_slice(b"; ");
            out.extend_from_slice(part);
        }
    }
    out.extend_from_slice(format!("; Path=/{server}").as_bytes());
    // What is not for the server's URL can be for the one at which its HTTP+SSE transport takes messages.
    if path.is_some_and(|path| !path_matches(url.path().as_bytes(), path)) {
        out.extend_from_slice(b"/-/messages");
    }
    Some(out)
}

/// The cookies of a client that go to a server: those that it set, under their own names, and those that no server set
/// here. None when none is left.
pub fn to_server<'a>(values: impl Iterator<Item = &'a [u8]>, server: &str) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let cookies = values.flat_map(|value| value.split(|byte| *byte == b';')).map(trim);
    for cookie in cookies.filter(|cookie| !cookie.is_empty()) {
        let own = match cookie.strip_prefix(MARK.as_bytes()) {
            None => cookie,
            Some(marked) => match marked.strip_prefix(server.as_bytes()).and_then(|rest| rest.strip_prefix(b"~")) {
                None => continue,
                Some(own) => own,
            },
        };
        if !out.is_empty() {
            out.extend_from_slice(b"; ");
        }
        out.extend_from_slice(own);
    }
    (!out.is_empty()).then_some(out)
}

fn trim(part: &[u8]) -> &[u8] {
    part.trim_ascii()
}

fn split(pair: &[u8]) -> (&[u8], &[u8]) {
    match pair.iter().position(|byte| *byte == b'=') {
        Some(at) => {
            let (name, value) = pair.split_at(at);
            (trim(name), trim(value.get(1..).unwrap_or_default()))
        }
        None => (pair, b""),
    }
}

/// RFC 6265, section 5.1.3.
fn domain_matches(domain: &[u8], host: &str) -> bool {
    let domain = domain.strip_prefix(b".").unwrap_or(domain).to_ascii_lowercase();
    let host = host.to_ascii_lowercase().into_bytes();
    if domain.is_empty() || domain == host {
        return true;
    }
    let is_address = host.starts_with(b"[") || host.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.');
    !is_address && host.strip_suffix(domain.as_slice()).is_some_and(|before| before.ends_with(b"."))
}

/// RFC 6265, section 5.1.4.
fn path_matches(path: &[u8], cookie: &[u8]) -> bool {
    path.strip_prefix(cookie).is_some_and(|rest| rest.is_empty() || cookie.ends_with(b"/") || rest.starts_with(b"/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(value: &str) -> Option<String> {
        let url = "https://tools.example.com/mcp".parse().unwrap();
        to_client(value.as_bytes(), "bank", &url).map(|new| String::from_utf8(new).unwrap())
    }

    #[test]
    fn a_cookie_of_a_server_is_one_of_the_local_url() {
        for (value, expected) in [
            (
                "AWSALB=a/b+c==; Expires=Wed, 21 Oct 2026 07:28:00 GMT; Path=/",
                "a/b+c==; Expires=Wed, 21 Oct 2026 07:28:00 GMT; Path=/bank",
            ),
            ("AWSALB=x; Path=/mcp; Secure; HttpOnly; SameSite=None; Partitioned", "x; HttpOnly; Path=/bank"),
            ("AWSALB = x;;SAMESITE=lax;max-age=5", "x; SAMESITE=lax; max-age=5; Path=/bank"),
            ("AWSALB=x; Domain=.example.com; secure", "x; Path=/bank"),
            ("AWSALB=x; Path=mcp", "x; Path=/bank"),
            ("AWSALB=x; Path=/messages", "x; Path=/bank/-/messages"),
            ("AWSALB=x; Path=/mc", "x; Path=/bank/-/messages"),
        ] {
            assert_eq!(set(value).unwrap(), format!("toolweir~bank~AWSALB={expected}"), "{value}");
        }
        assert_eq!(set("__Host-s=x; Secure; Path=/").unwrap(), "toolweir~bank~__Host-s=x; Path=/bank");
        assert_eq!(set("__Secure-s=x; Secure").unwrap(), "toolweir~bank~__Secure-s=x; Path=/bank");
        for refused in ["a=b; Domain=other.com", "a=b; Domain=ple.com", "a=b; Domain=x.tools.example.com", "=b", ""] {
            assert_eq!(set(refused), None, "{refused}");
        }
    }

    #[test]
    fn a_cookie_goes_back_to_the_server_that_set_it_and_to_no_other() {
        let back = |values: &[&str], server: &str| {
            to_server(values.iter().map(|value| value.as_bytes()), server).map(|value| String::from_utf8(value).unwrap())
        };
        let jar = "toolweir~bank~AWSALB=x==; toolweir~bank-2~AWSALB=y;own=z ; toolweir~shop~a=b";
        assert_eq!(back(&[jar], "bank").as_deref(), Some("AWSALB=x==; own=z"));
        assert_eq!(back(&[jar], "bank-2").as_deref(), Some("AWSALB=y; own=z"));
        assert_eq!(back(&["a=b", "toolweir~bank~__Host-s=x"], "bank").as_deref(), Some("a=b; __Host-s=x"));
        assert_eq!(back(&["toolweir~shop~a=b"], "bank"), None);
        assert_eq!(back(&["toolweir~bank"], "bank"), None);
    }
}
