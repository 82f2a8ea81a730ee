//! Files of policies on a disk. The only I/O of this crate.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use crate::FileError;

/// A file of policies, as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyText {
    /// Its path, to name it in errors.
    pub file: String,
    /// Its text.
    pub text: String,
}

/// The files of a path: itself, or those of a folder that end in .yaml, .yml or .json, by name.
///
/// # Errors
/// The path cannot be read or the folder has no such file.
pub fn files(path: &Path) -> Result<Vec<PathBuf>, FileError> {
    let failed = |error: &io::Error| file_error(path, format!("cannot be read: {error}"));
    if !fs::metadata(path).map_err(|error| failed(&error))?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(path).map_err(|error| failed(&error))? {
        let file = entry.map_err(|error| failed(&error))?.path();
        // A mounted ConfigMap keeps its data in folders whose names begin with two dots.
        let hidden = file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let policy = file.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json");
        if policy && !hidden && file.is_file() {
            found.insert(file);
        }
    }
    if found.is_empty() {
        return Err(file_error(path, "is a folder without a .yaml, .yml or .json file; write a policy there".to_owned()));
    }
    Ok(found.into_iter().collect())
}

/// Reads the files of paths, each a file or a folder.
///
/// # Errors
/// One cannot be read, is not UTF-8, or is a folder without policies.
pub fn read_all(paths: &[PathBuf]) -> Result<Vec<PolicyText>, FileError> {
    let mut found = Vec::new();
    for path in paths {
        found.extend(files(path)?);
    }
    read(&found)
}

/// Reads files.
///
/// # Errors
/// One cannot be read, or is not UTF-8.
pub fn read(paths: &[PathBuf]) -> Result<Vec<PolicyText>, FileError> {
    let text = |path: &PathBuf| {
        let bytes = fs::read(path).map_err(|error| file_error(path, format!("cannot be read: {error}")))?;
        let text = String::from_utf8(bytes).map_err(|error| file_error(path, format!("is not UTF-8: {}", error.utf8_error())))?;
        Ok(PolicyText { file: path.display().to_string(), text })
    };
    paths.iter().map(text).collect()
}

/// An error about a file as a whole.
pub fn file_error(path: &Path, message: String) -> FileError {
    FileError { file: path.display().to_string(), position: None, message }
}
