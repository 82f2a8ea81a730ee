//! Origins of URLs (RFC 6454), and references that stay within one.

use http::{
    Uri,
    uri::{PathAndQuery, Scheme},
};
use toolweir_crds::port_of;

/// The origin of a URL: scheme, host and port.
pub fn origin(url: &Uri) -> Option<(Scheme, String, u16)> {
    Some((url.scheme()?.clone(), url.host()?.to_ascii_lowercase(), port_of(url)?))
}

/// Resolves a reference (RFC 3986, section 4.1) against a base. None where it is not of the same origin, or none.
pub fn resolve(base: &Uri, reference: &str) -> Option<Uri> {
    let reference = reference.trim();
    let target = if reference.contains("://") || reference.starts_with("//") {
        let absolute: Uri = match reference.strip_prefix("//") {
            Some(rest) => format!("{}://{rest}", base.scheme_str()?).parse().ok()?,
            None => reference.parse().ok()?,
        };
        if origin(&absolute)? != origin(base)? {
            return None;
        }
        absolute.path_and_query()?.clone()
    } else if reference.starts_with('/') {
        reference.parse::<PathAndQuery>().ok()?
    } else if reference.starts_with('?') {
        format!("{}{reference}", base.path()).parse().ok()?
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{folder}/{reference}").parse().ok()?
    };
    let mut parts = base.clone().into_parts();
    parts.path_and_query = Some(target);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_resolved_within_their_origin() {
        let base: Uri = "http://tools.svc:8000/v1/sse".parse().unwrap();
        for (reference, target) in [
            ("/messages/?session_id=7", Some("http://tools.svc:8000/messages/?session_id=7")),
            ("messages?s=1", Some("http://tools.svc:8000/v1/messages?s=1")),
            ("?s=1", Some("http://tools.svc:8000/v1/sse?s=1")),
            ("http://Tools.svc:8000/m", Some("http://tools.svc:8000/m")),
            ("//tools.svc:8000/m", Some("http://tools.svc:8000/m")),
            ("http://tools.svc/m", None),
            // No port, which is not that of the scheme either.
            ("http://tools.svc:808000/m", None),
            ("https://tools.svc:8000/m", None),
            ("http://evil.example/m", None),
            ("//evil.example/m", None),
        ] {
            assert_eq!(resolve(&base, reference).map(|uri| uri.to_string()).as_deref(), target, "{reference}");
        }
    }
}
