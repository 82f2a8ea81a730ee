//! Secrets of the command line, which no error repeats.

use http::HeaderMap;

/// Shorter values stand in texts by chance.
const SHORTEST: usize = 4;

/// The values of headers, and what follows the scheme in them. None is ever shown.
#[derive(Clone, Default)]
pub struct HeaderSecrets(Vec<String>);

impl std::fmt::Debug for HeaderSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HeaderSecrets({})", self.0.len())
    }
}

impl HeaderSecrets {
    /// Takes the values of headers.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut values = Vec::new();
        for value in headers.values().filter_map(|value| value.to_str().ok()) {
            let rest = value.split_once(' ').map_or("", |(_, rest)| rest.trim());
            values.extend([value, rest].into_iter().filter(|text| text.len() >= SHORTEST).map(str::to_owned));
        }
        // The longest first, since one may hold another.
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        Self(values)
    }

    /// Returns a text without the secrets.
    pub fn removed(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "[header]"))
    }
}

/// Returns a text that may be meant as a URL without what may be secret in one: user, password, query and fragment.
pub fn without_url_secrets(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    // A password can hold a slash where somebody forgot to encode it.
    let rest = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    format!("{scheme}://{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_headers_are_removed_with_and_without_their_scheme() {
        let mut headers = HeaderMap::new();
        headers.append("authorization", "Bearer s3cret-token".parse().unwrap());
        headers.append("x-short", "1".parse().unwrap());
        let secrets = HeaderSecrets::of(&headers);
        assert_eq!(secrets.removed("no `Bearer s3cret-token`, no s3cret-token 1"), "no `[header]`, no [header] 1");
        assert!(!format!("{secrets:?}").contains("s3cret"));
    }

    #[test]
    fn urls_lose_user_password_and_query() {
        for (text, shown) in
            [("ftp://u:p@h/x?key=s#f", "ftp://h/x"), ("http://u:p/q@h:no/x", "http://h:no/x"), ("tools.json?x", "tools.json?x")]
        {
            assert_eq!(without_url_secrets(text), shown);
        }
    }
}
