//! The scheme of a URI.

use super::ambiguous::AmbiguousUri;

/// How servers read the URIs of a scheme.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SchemeKind {
    /// `file`.
    File,
    /// `http` and its like, with the scheme's own port.
    Web(u16),
    /// A scheme that each server reads in its own way.
    Other,
}

impl SchemeKind {
    /// Returns the kind of a scheme in lower case.
    pub(super) fn of(scheme: &str) -> Self {
        match scheme {
            "file" => Self::File,
            "http" | "ws" => Self::Web(80),
            "https" | "wss" => Self::Web(443),
            "ftp" => Self::Web(21),
            _ => Self::Other,
        }
    }
}

/// Returns the scheme in lower case, and what follows its colon.
pub(super) fn split_scheme(uri: &str) -> Result<(String, &str), AmbiguousUri> {
    let (scheme, rest) = uri.split_once(':').ok_or(AmbiguousUri::Scheme)?;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    if !scheme.starts_with(|first: char| first.is_ascii_alphabetic()) || !scheme.bytes().all(fits) {
        return Err(AmbiguousUri::Scheme);
    }
    if scheme.len() == 1 { Err(AmbiguousUri::Drive) } else { Ok((scheme.to_ascii_lowercase(), rest)) }
}
