//! The file of the book.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    os::unix::fs::OpenOptionsExt,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use toolweir_approvals::KeptBook;

use crate::{
    control::state::{StateDir, StateError},
    files::FileMetrics,
};

/// A file that this process alone reads and writes.
#[derive(Clone, Debug)]
pub struct KeptFile {
    state: StateDir,
    name: Arc<str>,
    /// Locked until the sidecar ends: of two that read one book, each could use an approval. None where it cannot be locked, or is not any
    /// more: then nothing is written.
    lock: Arc<Mutex<Option<File>>>,
}

/// Why the file is not written.
#[derive(Debug, thiserror::Error)]
pub enum KeptFileError {
    /// It cannot be locked; the log says why.
    #[error("approvals cannot be kept: their file could not be locked when the sidecar began, or the sidecar ends")]
    NotLocked,
    /// It cannot be written.
    #[error(transparent)]
    State(#[from] StateError),
}

impl KeptFile {
    /// The file of this name in a folder; none where there is no folder, or another sidecar has the file.
    pub fn open(state: &StateDir, name: &str, metrics: &FileMetrics) -> Option<Self> {
        let folder = state.folder()?;
        let path = folder.join(format!(".{name}.lock"));
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let locked = lock.and_then(|lock| match lock.try_lock() {
            Ok(()) => Ok(Some(lock)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        });
        let kept = |lock: Option<File>| Self { state: state.clone(), name: name.into(), lock: Arc::new(Mutex::new(lock)) };
        let locked = locked.map_err(|error| io::Error::other(format!("{}: {error}", path.display())));
        match metrics.record_result("approvals", "write", locked) {
            Some(Some(lock)) => Some(kept(Some(lock))),
            Some(None) => {
                tracing::warn!(
                    file = %folder.join(name).display(),
                    "another sidecar has the file of approvals; this one keeps its own in memory, and forgets them when it ends"
                );
                None
            }
            // What is asked is denied then.
            None => Some(kept(None)),
        }
    }

    /// Reads the book.
    ///
    /// # Errors
    /// There is a file that cannot be used.
    pub fn read(&self) -> Result<Option<KeptBook>, StateError> {
        Ok(self.state.sealed(&self.name, KeptBook::LONGEST)?.map(|(kept, _)| kept))
    }

    /// Lets another sidecar have the file. Nothing is written from now on.
    pub fn release(&self) {
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Writes the book, and waits for the disk.
    ///
    /// # Errors
    /// It cannot be written; what was kept is as it was.
    pub fn write(&self, kept: &KeptBook, now: SystemTime) -> Result<(), KeptFileError> {
        // Held while it is written, so that nothing is once it is released.
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if lock.is_none() {
            return Err(KeptFileError::NotLocked);
        }
        Ok(self.state.keep_sealed(&self.name, kept, now)?)
    }
}
