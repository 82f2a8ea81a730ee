//! Files that are replaced whole.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use prometheus::IntCounterVec;

use crate::registry::MetricsRegistry;

/// The files of the sidecar: the label `file`.
pub const FILES: [&str; 8] =
    ["policies", "trust", "shared_store", "mcp_config", "resolvers", "interception", "tools", "approvals"];
/// The operations that can fail: the label `operation`.
pub const OPERATIONS: [&str; 2] = ["read", "write"];

/// Metrics of the sidecar's own files.
#[derive(Debug)]
pub struct FileMetrics {
    /// `toolweir_file_failures_total`
    failures: IntCounterVec,
}

impl FileMetrics {
    /// Registers the metrics. Each file and operation begins at 0, so that the first failure of each is seen as a rise.
    ///
    /// # Errors
    /// They are registered already.
    pub fn new(registry: &MetricsRegistry) -> Result<Self, prometheus::Error> {
        let failures = registry.counters(
            "toolweir_file_failures_total",
            "Files of the sidecar that could not be read or written.",
            &["file", "operation"],
        )?;
        for file in FILES {
            for operation in OPERATIONS {
                failures.with_label_values(&[file, operation]);
            }
        }
        Ok(Self { failures })
    }

    /// Logs and counts the failure of an operation with a file, if it failed. Returns what a successful one gave.
    pub fn record_result<T, E: std::fmt::Display>(&self, file: &str, operation: &str, result: Result<T, E>) -> Option<T> {
        result
            .inspect_err(|error| {
                tracing::error!(%error, file, operation, "cannot read or write a file of the sidecar");
                self.failures.with_label_values(&[file, operation]).inc();
            })
            .ok()
    }
}

/// The durability of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durable {
    /// The file survives the machine's sudden end: it is on the disk before it takes the place of the old one.
    Yes,
    /// The file need not survive: it is written anew at the next start.
    No,
}

/// Puts a file in place of another, with the permissions `mode`. A reader sees the old text or the new one, never a part.
///
/// # Errors
/// The file cannot be written; the old one is as it was.
pub fn replace(path: &Path, bytes: &[u8], mode: u32, durable: Durable) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "is no path of a file"))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut part = OsString::from(".");
    part.push(name);
    part.push(".new");
    let part = folder.join(part);
    let done = write(&part, bytes, mode, durable).and_then(|()| fs::rename(&part, path));
    if done.is_err() {
        let _ = fs::remove_file(&part);
    } else if durable == Durable::Yes {
        // The name is the folder's.
        File::open(folder)?.sync_all()?;
    }
    done
}

fn write(path: &Path, bytes: &[u8], mode: u32, durable: Durable) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    // What is left of an earlier attempt has a mode already, and a new file one that the umask cut down.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    if durable == Durable::Yes { file.sync_all() } else { Ok(()) }
}
