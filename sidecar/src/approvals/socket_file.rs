//! The file of a Unix socket: made so that nobody can connect before its group and mode are set, in the place of one that is left of a dead
//! process and of nothing else, and removed in the end.
//!
//! The socket is made in a folder that only its owner can enter, and then renamed. So one that can be seen has its mode, and somebody listens
//! at it, or its process has ended.

use std::{
    fs::{self, DirBuilder, File, Permissions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};
use tokio::{
    net::{UnixListener, UnixStream},
    time::sleep,
};

/// Owner and group may connect.
const MODE: u32 = 0o660;

/// The most bytes of the path of a socket (`sun_path`).
const LONGEST: usize = 107;

/// How often the folder is tried to lock, and the time between two tries.
const TRIES: usize = 100;
const AGAIN: Duration = Duration::from_millis(20);

/// Why there is no socket at a path.
#[derive(Debug, thiserror::Error)]
pub enum SocketFileError {
    /// No socket can have such a long path.
    #[error("is too long for a socket, by {0} bytes; write a shorter one")]
    TooLong(usize),
    /// Something else is there.
    #[error("is there and no socket; write another path, or remove it")]
    Occupied,
    /// Somebody listens there.
    #[error("another process listens there; give each sidecar a path of its own")]
    InUse,
    /// Its folder is missing.
    #[error("its folder is not there; make it, and let only the sidecar's user and root write there")]
    NoFolder,
    /// The group cannot have it.
    #[error("cannot be given to the group; run the sidecar as a member of that group")]
    Group(#[source] io::Error),
    /// The system refuses.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The file of a socket that this process listens at. It is removed when this is dropped, unless another took its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|there| identity(&there) == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens at a path, for the owner and a group: the given one, or the one that new files get there.
///
/// # Errors
/// Something is at the path that is no socket of a dead process, or the system refuses.
pub async fn listen(path: &Path, group: Option<u32>) -> Result<(UnixListener, SocketFile), SocketFileError> {
    let folder = PrivateFolder::beside(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => SocketFileError::NoFolder,
        _ => error.into(),
    })?;
    let made = folder.0.join("s");
    let longer = made.as_os_str().len().max(path.as_os_str().len());
    if let Some(surplus) = longer.checked_sub(LONGEST).filter(|surplus| *surplus > 0) {
        return Err(SocketFileError::TooLong(surplus));
    }
    let listener = UnixListener::bind(&made)?;
    if group.is_some() {
        chown(&made, None, group).map_err(SocketFileError::Group)?;
    }
    fs::set_permissions(&made, Permissions::from_mode(MODE))?;
    let identity = identity(&fs::symlink_metadata(&made)?);
    publish(&made, path).await?;
    Ok((listener, SocketFile { path: path.to_owned(), identity }))
}

/// Moves a socket to a path at which there is nothing, or the socket of a dead process.
async fn publish(made: &Path, path: &Path) -> Result<(), SocketFileError> {
    // Held until the end: of sidecars that start together, one at a time looks and moves.
    let _lock = lock(parent(path)).await?;
    if is_left_over(path).await? {
        fs::remove_file(path)?;
    }
    match renameat_with(CWD, made, CWD, path, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => Err(SocketFileError::Occupied),
        Err(error) => Err(io::Error::from(error).into()),
    }
}

/// Locks a folder among sidecars.
async fn lock(folder: &Path) -> io::Result<File> {
    let file = File::open(folder)?;
    for _ in 0..TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => sleep(AGAIN).await,
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::WouldBlock, "another process has locked its folder"))
}

/// Returns true for a socket at which nobody listens, false where there is nothing.
async fn is_left_over(path: &Path) -> Result<bool, SocketFileError> {
    match fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => {}
        Ok(_) => return Err(SocketFileError::Occupied),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        // Its queue is full.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(SocketFileError::InUse),
        Err(error) => Err(error.into()),
        Ok(_) => Err(SocketFileError::InUse),
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."))
}

fn identity(file: &fs::Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

/// A folder that only its owner can enter. It is removed when this is dropped, with the socket in it.
struct PrivateFolder(PathBuf);

impl PrivateFolder {
    fn beside(path: &Path) -> io::Result<Self> {
        let mut tried = 0;
        loop {
            let folder = parent(path).join(format!(".tw{}-{tried}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&folder) {
                Ok(()) => return Ok(Self(folder)),
                // Of a process that was killed and had this number.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && tried < 100 => tried += 1,
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for PrivateFolder {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.0.join("s"));
        let _ = fs::remove_dir(&self.0);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use std::os::unix::fs::symlink;

    use super::*;

    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("tw-socket-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&folder);
            fs::create_dir(&folder).unwrap();
            Self(folder)
        }

        fn socket(&self) -> PathBuf {
            self.0.join("a.sock")
        }

        fn files(&self) -> Vec<String> {
            let name = |file: io::Result<fs::DirEntry>| file.unwrap().file_name().into_string().unwrap();
            fs::read_dir(&self.0).unwrap().map(name).collect()
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    async fn refused(path: &Path) -> String {
        listen(path, None).await.map(|_| ()).unwrap_err().to_string()
    }

    #[tokio::test]
    async fn a_socket_is_for_its_owner_and_group_and_goes_with_its_process() {
        let place = Place::new("own");
        let path = place.socket();
        let (listener, file) = listen(&path, Some(rustix::process::getegid().as_raw())).await.unwrap();
        let metadata = fs::symlink_metadata(&path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o660);
        assert_eq!(metadata.gid(), rustix::process::getegid().as_raw());
        let (near, far) = tokio::join!(UnixStream::connect(&path), listener.accept());
        drop((near.unwrap(), far.unwrap()));
        // Nothing else is left there.
        assert_eq!(place.files(), ["a.sock"]);
        drop(file);
        assert!(place.files().is_empty());
    }

    #[tokio::test]
    async fn only_what_a_dead_process_left_is_replaced() {
        let place = Place::new("taken");
        let path = place.socket();
        let (listener, file) = listen(&path, None).await.unwrap();
        assert_eq!(refused(&path).await, "another process listens there; give each sidecar a path of its own");
        // As after SIGKILL.
        drop(listener);
        std::mem::forget(file);
        let (listener, file) = listen(&path, None).await.unwrap();
        let (near, far) = tokio::join!(UnixStream::connect(&path), listener.accept());
        drop((near.unwrap(), far.unwrap(), listener, file));

        let others: [fn(&Path) -> io::Result<()>; 3] =
            [|path: &Path| fs::write(path, "kept"), |path: &Path| fs::create_dir(path), |path: &Path| symlink("/dev/null", path)];
        for make in others {
            make(&path).unwrap();
            assert_eq!(refused(&path).await, "is there and no socket; write another path, or remove it");
            assert_eq!(place.files(), ["a.sock"]);
            let _ = fs::remove_dir(&path).or_else(|_| fs::remove_file(&path));
        }
    }

    /// A socket that another process put there is not this one's to remove.
    #[tokio::test]
    async fn the_socket_of_another_stays() {
        let place = Place::new("other");
        let path = place.socket();
        let (first, file) = listen(&path, None).await.unwrap();
        drop(first);
        let (_second, kept) = listen(&path, None).await.unwrap();
        drop(file);
        assert_eq!(place.files(), ["a.sock"]);
        drop(kept);
        assert!(place.files().is_empty());
    }

    /// However many start at once where one died, one listens there, and the others say so.
    #[test]
    fn one_of_many_has_the_path() {
        let place = Place::new("many");
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for _ in 0..20 {
            let path = place.socket();
            let left = runtime();
            std::mem::forget(left.block_on(listen(&path, None)).unwrap().1);
            drop(left);
            let together = std::sync::Barrier::new(8);
            let ended: Vec<_> = std::thread::scope(|threads| {
                let start = || {
                    let runtime = runtime();
                    together.wait();
                    let opened = runtime.block_on(listen(&path, None)).map_err(|error| error.to_string());
                    (opened, runtime)
                };
                let started: Vec<_> = (0..8).map(|_| threads.spawn(start)).collect();
                started.into_iter().map(|start| start.join().unwrap()).collect()
            });
            let refused: Vec<&String> = ended.iter().filter_map(|(opened, _)| opened.as_ref().err()).collect();
            assert_eq!(refused.len(), 7, "{refused:?}");
            assert!(refused.iter().all(|why| why.contains("another process listens there")), "{refused:?}");
            std::os::unix::net::UnixStream::connect(&path).unwrap();
            drop(ended);
            assert!(place.files().is_empty(), "{:?}", place.files());
        }
    }

    #[tokio::test]
    async fn what_cannot_be_is_said() {
        let place = Place::new("wrong");
        assert!(refused(&place.0.join("no/a.sock")).await.starts_with("its folder is not there; make it"));
        let left = LONGEST - place.0.as_os_str().len() - 1;
        let why = refused(&place.0.join("x".repeat(left + 1))).await;
        assert_eq!(why, "is too long for a socket, by 1 bytes; write a shorter one");
        listen(&place.0.join("x".repeat(left)), None).await.unwrap();
    }
}
