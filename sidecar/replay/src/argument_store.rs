//! The arguments of recorded calls, until their calls are decided.

use std::{
    env,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

/// The bytes that are kept in memory.
const IN_MEMORY: usize = 8 * 1024 * 1024;

/// Texts, one after another: the last ones in memory, those before in a file that has no name, so that nothing of it is left.
#[derive(Debug, Default)]
pub struct ArgumentStore {
    file: Option<File>,
    /// The number of bytes in the file.
    written: u64,
    memory: Vec<u8>,
}

/// A text of an [`ArgumentStore`]: where it begins, and in the last 16 bits its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredArguments(u64);

impl StoredArguments {
    fn start(self) -> u64 {
        self.0 >> u16::BITS
    }

    fn length(self) -> usize {
        usize::from(u16::try_from(self.0 & u64::from(u16::MAX)).unwrap_or(u16::MAX))
    }
}

impl ArgumentStore {
    /// Adds a text of less than 64 KiB.
    ///
    /// # Errors
    /// It does not fit into memory, and no file can be written; or it is longer.
    pub fn add(&mut self, text: &str) -> io::Result<StoredArguments> {
        if !self.memory.is_empty() && self.memory.len() + text.len() > IN_MEMORY {
            self.write()?;
        }
        let start = self.written + self.memory.len() as u64;
        self.memory.extend_from_slice(text.as_bytes());
        let length = u16::try_from(text.len()).map_err(io::Error::other)?;
        Ok(StoredArguments(start << u16::BITS | u64::from(length)))
    }

    fn write(&mut self) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(nameless()?),
        };
        file.write_all(&self.memory)?;
        self.written += self.memory.len() as u64;
        self.memory.clear();
        Ok(())
    }

    /// Reads a text into `text`, in place of what is there.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&self, place: StoredArguments, text: &mut String) -> io::Result<()> {
        let mut bytes = std::mem::take(text).into_bytes();
        bytes.clear();
        let length = place.length();
        match (place.start().checked_sub(self.written), &self.file) {
            (None, Some(file)) => {
                bytes.resize(length, 0);
                file.read_exact_at(&mut bytes, place.start())?;
            }
            (at, _) => {
                let start = usize::try_from(at.unwrap_or_default()).map_err(io::Error::other)?;
                bytes.extend_from_slice(self.memory.get(start..start + length).unwrap_or_default());
            }
        }
        *text = String::from_utf8(bytes).map_err(io::Error::other)?;
        Ok(())
    }
}

/// Makes a file that nobody else can read, and that is gone with this program.
fn nameless() -> io::Result<File> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("toolweir-replay-{}-{}", process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let path = env::temp_dir().join(name);
    let file = OpenOptions::new().read(true).append(true).create_new(true).mode(0o600).open(&path).map_err(|error| {
        let message = format!("{} for the arguments of calls: {error}; set TMPDIR to a folder that can be written", path.display());
        io::Error::new(error.kind(), message)
    })?;
    fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn texts_are_read_as_they_were_added_from_memory_and_from_the_file() {
        let mut store = ArgumentStore::default();
        let text = |number: usize| format!("{number}{}", "é".repeat(number % 9000));
        let places: Vec<StoredArguments> = (0..3000).map(|number| store.add(&text(number)).unwrap()).collect();
        assert!(store.written > 0 && store.memory.len() < IN_MEMORY && !store.memory.is_empty());
        let mut read = String::new();
        for (number, place) in places.iter().enumerate().rev() {
            store.read(*place, &mut read).unwrap();
            assert_eq!(read, text(number));
        }
    }
}
