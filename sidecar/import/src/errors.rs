//! The errors of an import.

use std::collections::HashSet;

/// A part of a policy that cannot be imported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct ImportError {
    /// The place in the original, such as `tools.send_dm_to_user.limits[0].window`; an option such as `--server`; a
    /// line and column where the text is not JSON or YAML; or `policy` for the whole of it.
    pub path: String,
    /// The fault, and what to write instead where that is possible.
    pub message: String,
}

/// The errors found so far.
#[derive(Debug, Default)]
pub(super) struct Errors {
    found: Vec<ImportError>,
    paths: HashSet<String>,
}

impl Errors {
    pub(super) fn at(&mut self, path: impl Into<String>, message: impl Into<String>) {
        let (path, message) = (path.into(), message.into());
        self.paths.insert(path.clone());
        self.found.push(ImportError { path, message });
    }

    /// Adds an error unless its place already has one, which then is the better one.
    pub(super) fn also(&mut self, path: String, message: String) {
        if !self.paths.contains(&path) {
            self.at(path, message);
        }
    }

    /// In the order found, each once.
    pub(super) fn into_distinct(self) -> Vec<ImportError> {
        let mut seen = HashSet::new();
        let new = |error: &ImportError| seen.insert((error.path.clone(), error.message.clone()));
        self.found.into_iter().filter(new).collect()
    }
}
