//! What servers may take for the same resource as a canonical URI.

use super::scheme::SchemeKind;

/// Returns the variants of a canonical URI, without itself.
pub(super) fn variants(canonical: &str) -> Vec<String> {
    let Some((scheme, rest)) = canonical.split_once(':') else { return Vec::new() };
    let (location, rest) = rest.split_at(rest.find(['?', '#']).unwrap_or(rest.len()));
    let without_fragment = rest.split_once('#').map_or(rest, |(query, _)| query);
    let other = SchemeKind::of(scheme) == SchemeKind::Other;
    let mut found = Vec::new();
    let mut add = |text: String| {
        if text != canonical && !found.contains(&text) {
            found.push(text);
        }
    };
    let trimmed = location.strip_suffix('/').unwrap_or(location);
    for location in [location, trimmed] {
        for behind in [rest, without_fragment, ""] {
            let text = format!("{location}{behind}");
            for text in [text.replace('+', " "), text] {
                if !other {
                    add(format!("{scheme}:{text}"));
                    continue;
                }
                let name = text.trim_start_matches('/');
                for slashes in ["//", "///", ""] {
                    add(format!("{scheme}:{slashes}{name}"));
                }
            }
        }
    }
    found
}
