//! The files in which a sidecar keeps what it needs to start without the operator: the last policies, whom it
//! trusts, and where counts are shared. Nobody else may write these files, and only their owner reads them.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use toolweir_crds::stream::{LONGEST_LINE, SharedStore};

use super::{trust, wire::RawSnapshot};
use crate::{
    audit::sha256,
    files::{self, Durable},
};

/// The file with the last policies.
pub const POLICIES: &str = "policies.json";
/// The file with whom to trust.
pub const TRUST: &str = "trust.pem";
/// The file with where counts are shared.
pub const SHARED_STORE: &str = "shared-store.json";
/// The form of files with a checksum that this version writes, and the only one that it reads.
const FORMAT: u32 = 1;
/// The largest head of such a file, in bytes.
const HEAD: usize = 4096;

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct StateError {
    path: PathBuf,
    why: Why,
}

#[derive(Debug, thiserror::Error)]
enum Why {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("is writable by others (mode {0:o}); make it writable by its owner only")]
    Mode(u32),
    #[error("is not a regular file")]
    NoFile,
    #[error("is larger than {0} bytes")]
    TooLarge(usize),
    #[error("is damaged: {0}")]
    Damaged(String),
    #[error("has format {0}, but this version reads format {FORMAT}")]
    Format(u32),
}

/// The first line of a file with a checksum.
#[derive(Serialize, Deserialize)]
struct Head {
    format: u32,
    /// Seconds since 1970.
    written: u64,
    /// Of the second line: what was half-written or altered could hold fewer rules.
    sha256: String,
}

/// The folder of these files, if there is one.
#[derive(Clone, Debug)]
pub struct StateDir(Option<PathBuf>);

impl StateDir {
    /// A folder, or nowhere: then nothing is kept.
    pub fn new(folder: Option<PathBuf>) -> Self {
        Self(folder)
    }

    /// The folder, if there is one.
    pub fn folder(&self) -> Option<&Path> {
        self.0.as_deref()
    }

    /// Reads the policies that were kept, and how long ago.
    ///
    /// # Errors
    /// There is a file that cannot be used.
    pub fn policies(&self, now: SystemTime) -> Result<Option<(RawSnapshot, Duration)>, StateError> {
        let kept = self.sealed(POLICIES, LONGEST_LINE)?;
        Ok(kept.map(|(snapshot, written)| {
            // A clock that was set back makes nothing younger than new.
            (snapshot, now.duration_since(written.unwrap_or(now)).unwrap_or_default())
        }))
    }

    /// Reads what was kept with its checksum in a file of at most `most` bytes, and when it was written.
    ///
    /// # Errors
    /// There is a file that cannot be used.
    pub fn sealed<T: DeserializeOwned>(&self, name: &str, most: usize) -> Result<Option<(T, Option<SystemTime>)>, StateError> {
        self.read(name, HEAD + most, |bytes| {
            let damaged = |why: &str| Why::Damaged(why.to_owned());
            let end = memchr::memchr(b'\n', bytes).ok_or_else(|| damaged("it has no second line"))?;
            let (head, body) = bytes.split_at(end);
            let head: Head = serde_json::from_slice(head).map_err(|error| Why::Damaged(error.to_string()))?;
            if head.format != FORMAT {
                return Err(Why::Format(head.format));
            }
            let body = body.trim_ascii();
            if sha256(body) != head.sha256 {
                return Err(damaged("its checksum is another"));
            }
            let kept = serde_json::from_slice(body).map_err(|error| Why::Damaged(error.to_string()))?;
            Ok((kept, SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(head.written))))
        })
    }

    /// Keeps policies.
    ///
    /// # Errors
    /// They cannot be written; what was kept is as it was.
    pub fn keep_policies(&self, snapshot: &RawSnapshot, now: SystemTime) -> Result<(), StateError> {
        self.keep_sealed(POLICIES, snapshot, now)
    }

    /// Keeps something with its checksum.
    ///
    /// # Errors
    /// It cannot be written; what was kept is as it was.
    pub fn keep_sealed<T: Serialize>(&self, name: &str, kept: &T, now: SystemTime) -> Result<(), StateError> {
        self.write(name, || {
            let body = serde_json::to_vec(kept)?;
            let written = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            let mut bytes = serde_json::to_vec(&Head { format: FORMAT, written, sha256: sha256(&body) })?;
            bytes.push(b'\n');
            bytes.extend_from_slice(&body);
            bytes.push(b'\n');
            Ok(bytes)
        })
    }

    /// Reads the bundle that was kept.
    ///
    /// # Errors
    /// There is a file that cannot be used.
    pub fn trust(&self) -> Result<Option<String>, StateError> {
        self.read(TRUST, trust::LARGEST, |bytes| {
            String::from_utf8(bytes.to_vec()).map_err(|error| Why::Damaged(error.to_string()))
        })
    }

    /// Keeps a bundle.
    ///
    /// # Errors
    /// The file cannot be written; the old one is as it was.
    pub fn keep_trust(&self, bundle: &str) -> Result<(), StateError> {
        self.write(TRUST, || Ok(bundle.as_bytes().to_vec()))
    }

    /// Reads the shared store that was kept.
    ///
    /// # Errors
    /// There is a file that cannot be used.
    pub fn shared_store(&self) -> Result<Option<SharedStore>, StateError> {
        let kept = self.read_json(SHARED_STORE, 2 * trust::LARGEST);
        kept.map(Option::flatten)
    }

    /// Keeps where counts are shared, or that they are not.
    ///
    /// # Errors
    /// The file cannot be written; the old one is as it was.
    pub fn keep_shared_store(&self, store: Option<&SharedStore>) -> Result<(), StateError> {
        if matches!(self.shared_store(), Ok(kept) if kept.as_ref() == store) {
            return Ok(());
        }
        self.keep_json(SHARED_STORE, &store)
    }

    /// Reads what was kept in a file of at most `most` bytes.
    ///
    /// # Errors
    /// There is a file that cannot be used.
    pub fn read_json<T: DeserializeOwned>(&self, name: &str, most: usize) -> Result<Option<T>, StateError> {
        self.read(name, most, |bytes| {
            // What cannot be read is not shown: a secret may be in it.
            serde_json::from_slice(bytes).map_err(|error| Why::Damaged(format!("line {} cannot be read", error.line())))
        })
    }

    /// Keeps something in a file.
    ///
    /// # Errors
    /// The file cannot be written; the old one is as it was.
    pub fn keep_json<T: Serialize>(&self, name: &str, kept: &T) -> Result<(), StateError> {
        self.write(name, || serde_json::to_vec(kept))
    }

    fn read<T>(&self, name: &str, most: usize, read: impl FnOnce(&[u8]) -> Result<T, Why>) -> Result<Option<T>, StateError> {
        let Some(folder) = &self.0 else { return Ok(None) };
        let path = folder.join(name);
        match bytes(&path, most).and_then(|bytes| read(&bytes)) {
            Ok(read) => Ok(Some(read)),
            Err(Why::Io(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(why) => Err(StateError { path, why }),
        }
    }

    fn write(&self, name: &str, bytes: impl FnOnce() -> Result<Vec<u8>, serde_json::Error>) -> Result<(), StateError> {
        let Some(folder) = &self.0 else { return Ok(()) };
        let path = folder.join(name);
        let written = bytes().map_err(io::Error::from).and_then(|bytes| files::replace(&path, &bytes, 0o600, Durable::Yes));
        written.map_err(|error| StateError { path, why: error.into() })
    }
}

/// A file whole, if nobody else may have written it.
fn bytes(path: &Path, most: usize) -> Result<Vec<u8>, Why> {
    // Only the look at the open file counts: the name may be another's by then.
    let file = File::open(path)?;
    let meta = file.metadata()?;
    let mode = meta.permissions().mode() & 0o777;
    if !meta.is_file() {
        return Err(Why::NoFile);
    }
    if mode & 0o022 != 0 {
        return Err(Why::Mode(mode));
    }
    if usize::try_from(meta.len()).map_or(true, |len| len > most) {
        return Err(Why::TooLarge(most));
    }
    let mut bytes = Vec::new();
    file.take(most as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Creates the folder, for its owner alone, if it is not there.
///
/// # Errors
/// The folder cannot be created.
pub fn create(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if folder.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;

    /// A folder that is removed with the test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("toolweir-state-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            create(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn snapshot(version: &str) -> RawSnapshot {
        let text = format!(r#"{{"version":"{version}","policies":[{{"kind":"MCPPolicy",  "spec":{{"max":30}}}},5]}}"#);
        serde_json::from_str(&text).unwrap()
    }

    const THEN: Duration = Duration::from_secs(1_700_000_000);

    #[test]
    fn what_is_kept_comes_back_with_its_age_and_only_its_owner_reads_it() {
        let folder = Folder::new("kept");
        let state = StateDir::new(Some(folder.0.clone()));
        let then = SystemTime::UNIX_EPOCH + THEN;
        assert!(state.policies(then).unwrap().is_none() && state.trust().unwrap().is_none());
        for version in ["1", "2"] {
            state.keep_policies(&snapshot(version), then).unwrap();
            state.keep_trust(version).unwrap();
        }
        let (read, age) = state.policies(then + Duration::from_secs(90)).unwrap().unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), serde_json::to_string(&snapshot("2")).unwrap());
        assert_eq!(age, Duration::from_secs(90));
        assert_eq!(state.policies(then - Duration::from_secs(90)).unwrap().unwrap().1, Duration::ZERO);
        assert_eq!(state.trust().unwrap().as_deref(), Some("2"));
        let mut names: Vec<_> = fs::read_dir(&folder.0).unwrap().map(|entry| entry.unwrap()).collect();
        names.sort_by_key(fs::DirEntry::file_name);
        let modes: Vec<_> = names
            .iter()
            .map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().permissions().mode() & 0o777))
            .collect();
        assert_eq!(modes, [(POLICIES.to_owned(), 0o600), (TRUST.to_owned(), 0o600)]);
        let nowhere = StateDir::new(None);
        nowhere.keep_policies(&snapshot("1"), then).unwrap();
        assert!(nowhere.policies(then).unwrap().is_none());
    }

    #[test]
    fn a_file_that_is_damaged_or_that_others_may_write_is_not_used() {
        let folder = Folder::new("damaged");
        let state = StateDir::new(Some(folder.0.clone()));
        let (path, now) = (folder.0.join(POLICIES), SystemTime::UNIX_EPOCH + THEN);
        state.keep_policies(&snapshot("1"), now).unwrap();
        let good = fs::read(&path).unwrap();
        assert!(state.policies(now).is_ok());
        for end in 0..good.len() - 1 {
            fs::write(&path, &good[..end]).unwrap();
            assert!(state.policies(now).is_err(), "the first {end} bytes");
        }
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            let read = state.policies(now);
            // The time of writing is the one thing that may differ: it opens nothing.
            let same = read.as_ref().is_ok_and(|read| read.as_ref().is_some_and(|(read, _)| read.version == "1"));
            assert!(read.is_err() || same, "byte {at}");
            assert!(
                read.is_err() || bytes[..at].ends_with(b"\"written\":") || good[at].is_ascii_digit() || at > 100,
                "byte {at}"
            );
        }
        fs::write(&path, String::from_utf8(good.clone()).unwrap().replace("\"format\":1", "\"format\":2")).unwrap();
        assert!(state.policies(now).unwrap_err().to_string().ends_with("has format 2, but this version reads format 1"));
        fs::write(&path, &good).unwrap();
        for (mode, used) in [(0o600, true), (0o644, true), (0o660, false), (0o602, false), (0o666, false)] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert_eq!(state.policies(now).is_ok(), used, "{mode:o}");
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(state.policies(now).is_err());
    }

    #[test]
    fn what_cannot_be_written_leaves_the_old_file_and_no_other() {
        let folder = Folder::new("failing");
        let state = StateDir::new(Some(folder.0.clone()));
        let now = SystemTime::UNIX_EPOCH + THEN;
        state.keep_policies(&snapshot("1"), now).unwrap();
        // The place of the new file is taken by a folder.
        fs::create_dir(folder.0.join(format!(".{POLICIES}.new"))).unwrap();
        assert!(state.keep_policies(&snapshot("2"), now).is_err());
        assert_eq!(state.policies(now).unwrap().unwrap().0.version, "1");
        assert!(StateDir::new(Some(folder.0.join("missing"))).keep_trust("x").is_err());
    }
}
