//! What the operator keeps of a namespace.

use std::collections::BTreeMap;

use toolweir_crds::select::Labels;

use crate::credentials::{CREDENTIALS, LONGEST_AUDIENCES, TOKEN_AUDIENCES};

/// The most bytes that are kept of an annotation: one that is longer than any valid one stays so.
const KEPT: usize = LONGEST_AUDIENCES + 4;

/// What the operator keeps of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceInfo {
    /// Its labels.
    pub labels: Labels,
    /// Its annotation [`CREDENTIALS`].
    pub credentials: Option<Box<str>>,
    /// Its annotation [`TOKEN_AUDIENCES`].
    pub token_audiences: Option<Box<str>>,
}

impl NamespaceInfo {
    /// Keeps of a namespace's labels and annotations what matters.
    pub fn new(labels: Labels, annotations: &BTreeMap<String, String>) -> Self {
        let kept = |key: &str| {
            let text = annotations.get(key)?;
            text.get(..text.floor_char_boundary(KEPT)).map(Box::from)
        };
        Self { labels, credentials: kept(CREDENTIALS), token_audiences: kept(TOKEN_AUDIENCES) }
    }
}

impl From<Labels> for NamespaceInfo {
    /// A namespace without annotations.
    fn from(labels: Labels) -> Self {
        Self { labels, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::read_audiences;

    #[test]
    fn an_annotation_that_is_too_long_is_cut_and_stays_wrong() {
        let long = "ä,".repeat(100_000);
        let annotations = BTreeMap::from([
            (TOKEN_AUDIENCES.to_owned(), long),
            (CREDENTIALS.to_owned(), "tokens".to_owned()),
            ("other".to_owned(), "x".to_owned()),
        ]);
        let info = NamespaceInfo::new(Labels::new(), &annotations);
        assert_eq!(info.credentials.as_deref(), Some("tokens"));
        let kept = info.token_audiences.unwrap();
        assert!((LONGEST_AUDIENCES + 1..=KEPT).contains(&kept.len()));
        assert!(read_audiences(&kept).is_err());
    }
}
