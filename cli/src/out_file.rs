//! Manifests that are written to a file: whole or not at all.

use std::{
    ffi::OsString,
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{anyhow, bail};
use clap::Args;

use crate::table::shown;

/// Where a manifest goes.
#[derive(Args, Clone, Debug, Default)]
pub struct OutFile {
    /// File for the manifest, in place of the standard output. It is written beside it and then renamed, once all is read and checked: who
    /// watches it never sees a part, and after an error it is as it was
    #[arg(long = "out", value_name = "FILE")]
    path: Option<PathBuf>,
}

impl OutFile {
    /// Writes a manifest to the file, or else to `out`.
    ///
    /// # Errors
    /// It cannot be written. The file is as it was.
    pub fn write(&self, text: &str, mut out: impl Write) -> anyhow::Result<()> {
        let Some(path) = &self.path else { return Ok(out.write_all(text.as_bytes())?) };
        let name = || shown(&path.display().to_string()).into_owned();
        // A link stays a link.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.clone());
        if path.as_os_str() == "-" || fs::metadata(&target).is_ok_and(|found| !found.is_file()) {
            bail!("--out {} is no file; give the path of a file, or leave --out out for the standard output", name());
        }
        replace(&target, text.as_bytes()).map_err(|error| {
            anyhow!("--out {} cannot be written: {error}; give the path of a file in a folder that is there", name())
        })
    }
}

/// Puts a file in place of another, with the permissions of that one, or else those of a new file.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "is no path of a file"))?;
    // Folders of policies are read without what begins with a dot.
    let mut part = OsString::from(".");
    part.push(name);
    part.push(format!(".{}.new", std::process::id()));
    let part = path.with_file_name(part);
    let mut file = OpenOptions::new().write(true).create_new(true).open(&part)?;
    let mut write = || {
        if let Ok(before) = fs::metadata(path) {
            file.set_permissions(before.permissions())?;
        }
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&part, path)
    };
    let done = write();
    if done.is_err() {
        let _ = fs::remove_file(&part);
    }
    done
}
