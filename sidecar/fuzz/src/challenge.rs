//! A `WWW-Authenticate` through the rewriter: what a client reads of it afterwards.

use http::Uri;
use toolweir_sidecar::proxy::challenge::{parameters, rewrite};

const LOCAL: &str = "http://127.0.0.1:15001/.well-known/oauth-protected-resource/bank";

fn is_at(named: &[u8], origin: &str) -> bool {
    let Ok(text) = std::str::from_utf8(named) else { return false };
    text.parse::<Uri>().is_ok_and(|uri| {
        uri.scheme_str() == Some("http")
            && uri.authority().is_some_and(|authority| {
                let host = authority.host().to_ascii_lowercase();
                format!("{host}:{}", authority.port_u16().unwrap_or(80)) == origin
            })
    })
}

/// The check.
pub fn check(value: &[u8]) {
    let url: Uri = "http://h/mcp".parse().expect("a URL");
    let new = rewrite(value, &url, LOCAL);
    let after = new.value.as_deref().unwrap_or(value);
    let (read, end) = parameters(after);
    for parameter in &read {
        assert_eq!(&after[parameter.place.start..parameter.place.start + parameter.name.len()], parameter.name);
        if parameter.name.eq_ignore_ascii_case(b"resource_metadata") {
            assert!(!is_at(&parameter.value, "h:80"), "it still names the server: {:?}", String::from_utf8_lossy(after));
        }
    }
    let rest = after[end..].to_ascii_lowercase();
    assert!(!rest.windows(17).any(|window| window == b"resource_metadata"), "unread: {:?}", String::from_utf8_lossy(after));
    if let Some(path) = &new.named {
        assert!(path.as_str().starts_with(['/', '?', '*']), "{path}");
    }

    // What was not rewritten and not left out is what it was.
    let (before, _) = parameters(value);
    let others = |parameters: &[toolweir_sidecar::proxy::challenge::Parameter<'_>]| {
        let others = parameters.iter().filter(|parameter| !parameter.name.eq_ignore_ascii_case(b"resource_metadata"));
        others.map(|parameter| (parameter.name.to_vec(), parameter.value.to_vec())).collect::<Vec<_>>()
    };
    // Where a part was left out, what stands before it can read as a token.
    assert!(new.cut || others(&before) == others(&read), "other parameters: {:?}", String::from_utf8_lossy(after));

    // Done twice it is done once.
    let again = rewrite(after, &url, LOCAL);
    assert!(!again.cut && again.value.as_deref().is_none_or(|again| again == after));
}
