//! Files that are replaced whole.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// Whether a file must outlive the machine's sudden end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durable {
    /// It must: it is on the disk before it takes the place of the old one.
    Yes,
    /// It is made anew at the next start.
    No,
}

/// Puts a file in place of another: who reads it sees the old text or the new one, never a part.
///
/// # Errors
/// It cannot be written; the old one is as it was.
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
