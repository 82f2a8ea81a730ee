//! The files that hold keys of a Secret, and tokens of the pod's service account.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use toolweir_crds::credential::{secret_key_problem, token_file};

use super::CredentialProblem;

/// The most bytes of a key: the kubelet mounts no Secret of more than 1 MiB, and a chain of certificates has some KiB.
const LARGEST: u64 = 64 * 1024;
/// The most bytes of a key that goes into a header: servers take heads of 8 to 16 KiB.
pub const LARGEST_TEXT: usize = 8 * 1024;
/// Opens without waiting.
const NONBLOCK: i32 = OFlags::NONBLOCK.bits().cast_signed();
/// The link of the kubelet's to the files that belong together. It is replaced at once when the Secret changes.
const CURRENT: &str = "..data";

/// The folders of keys and of tokens, where the sidecar has them.
#[derive(Clone, Debug, Default)]
pub struct KeyFolders {
    /// A file for each key of the Secret: `--credentials-dir`.
    pub keys: Option<PathBuf>,
    /// A file for each audience ([`token_file`]): `--audience-tokens-dir`.
    pub tokens: Option<PathBuf>,
    /// True in a pod, where the operator has them mounted: errors say what to do there.
    pub in_pod: bool,
}

impl KeyFolders {
    /// Reads keys that belong together, all of one state of the Secret.
    ///
    /// # Errors
    /// The first key that is missing, empty or too large, or cannot be read.
    pub fn keys<const N: usize>(&self, names: [&str; N]) -> Result<[Vec<u8>; N], CredentialProblem> {
        let Some(folder) = &self.keys else {
            let name = names.first().unwrap_or(&"");
            let why = if self.in_pod {
                "no Secret is mounted; name one with the annotation toolweir.dev/credentials and create the pod anew"
            } else {
                "there is no folder of keys; give --credentials-dir"
            };
            return Err(CredentialProblem::lasting(format!("the key {name} is not there: {why}")));
        };
        // Whoever wrote the policy: a key is a file of this folder.
        if let Some(problem) = names.iter().find_map(|name| secret_key_problem(name)) {
            return Err(CredentialProblem::lasting(format!("a key {problem}")));
        }
        // A Secret that changes while it is read is read again; a second change in that time is none of the kubelet's.
        let mut last = current(folder);
        for _ in 0..2 {
            let read = names.map(|name| read(&last.join(name)).map_err(|error| (name, error)));
            let now = current(folder);
            if now == last {
                return all(read.map(|read| read.map_err(|(name, error)| self.key_problem(name, &error))));
            }
            last = now;
        }
        Err(CredentialProblem::passing("the Secret changes while it is read"))
    }

    fn key_problem(&self, name: &str, error: &KeyError) -> CredentialProblem {
        let remedy = match error {
            KeyError::Missing if self.in_pod => {
                "; add it to the Secret, and see that the Secret is in the pod's namespace".to_owned()
            }
            KeyError::Missing => format!(": there is no file {name} in the folder of --credentials-dir"),
            KeyError::Empty => "; write the text into it".to_owned(),
            _ => String::new(),
        };
        CredentialProblem::lasting(format!("the key {name} {error}{remedy}"))
    }

    /// Reads the token of an audience.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn token(&self, audience: &str) -> Result<String, CredentialProblem> {
        let what = format!("the service account token of the audience {audience}");
        let missing = || {
            let why = if self.in_pod {
                "add the audience to the annotation toolweir.dev/token-audiences and create the pod anew".to_owned()
            } else if self.tokens.is_none() {
                "there is no folder of tokens; give --audience-tokens-dir".to_owned()
            } else {
                format!("there is no file {} in the folder of --audience-tokens-dir", token_file(audience))
            };
            let sign = if self.in_pod { " is not mounted;" } else { " is not there:" };
            CredentialProblem::lasting(format!("{what}{sign} {why}"))
        };
        let folder = self.tokens.as_ref().ok_or_else(missing)?;
        let bytes = read(&folder.join(token_file(audience))).map_err(|error| match error {
            KeyError::Missing => missing(),
            other => CredentialProblem::lasting(format!("{what} {other}")),
        })?;
        text(&what, &bytes).map(str::to_owned)
    }
}

/// The text of a key, which may end with one line end: editors and `echo` write it.
///
/// # Errors
/// It is empty, too long, not UTF-8, or has a character that no header can hold; the words name the key.
pub fn key_text<'a>(name: &str, bytes: &'a [u8]) -> Result<&'a str, CredentialProblem> {
    text(&format!("the key {name}"), bytes)
}

fn text<'a>(what: &str, bytes: &'a [u8]) -> Result<&'a str, CredentialProblem> {
    let problem = |why: &str| Err(CredentialProblem::lasting(format!("{what} {why}")));
    let Ok(text) = std::str::from_utf8(bytes) else {
        return problem("is not UTF-8; store the text itself");
    };
    let text = text.strip_suffix('\n').map_or(text, |text| text.strip_suffix('\r').unwrap_or(text));
    if text.trim().is_empty() {
        return problem("is empty");
    }
    if text.contains(['\r', '\n']) {
        return problem("has more than one line; a header holds one");
    }
    if text.contains(char::is_control) {
        return problem("has a control character; remove it");
    }
    if text != text.trim() {
        return problem("begins or ends with a blank; remove it");
    }
    if text.len() > LARGEST_TEXT {
        return problem("has more than 8 KiB, and a header holds no more");
    }
    Ok(text)
}

#[derive(Debug, thiserror::Error)]
enum KeyError {
    #[error("is not there")]
    Missing,
    #[error("is empty")]
    Empty,
    #[error("has more than 64 KiB")]
    TooLarge,
    #[error("is not a file")]
    NoFile,
    #[error("cannot be read: {0}")]
    Io(io::Error),
}

/// The folder whose files belong together.
fn current(folder: &Path) -> PathBuf {
    fs::read_link(folder.join(CURRENT)).map_or_else(|_| folder.to_owned(), |target| folder.join(target))
}

fn read(path: &Path) -> Result<Vec<u8>, KeyError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => KeyError::Missing,
        _ => KeyError::Io(error),
    };
    // Opening a pipe would wait for whoever writes to it.
    let file = OpenOptions::new().read(true).custom_flags(NONBLOCK).open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(KeyError::NoFile);
    }
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(failed)?;
    match bytes.len() as u64 {
        0 => Err(KeyError::Empty),
        length if length > LARGEST => Err(KeyError::TooLarge),
        _ => Ok(bytes),
    }
}

/// The values of all results, or the first error.
fn all<T: Default, E, const N: usize>(results: [Result<T, E>; N]) -> Result<[T; N], E> {
    let mut error = None;
    let values = results.map(|result| {
        result.unwrap_or_else(|new| {
            error.get_or_insert(new);
            T::default()
        })
    });
    error.map_or(Ok(values), Err)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("toolweir-keys-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn folders(keys: &Path) -> KeyFolders {
        KeyFolders { keys: Some(keys.to_owned()), ..KeyFolders::default() }
    }

    #[test]
    fn words_name_the_key_and_what_is_wrong_with_it() {
        for (bytes, said) in [
            (b"".as_slice(), "the key k is empty"),
            (b"\n", "the key k is empty"),
            (b" \t", "the key k"),
            (b"a\nb", "the key k has more than one line; a header holds one"),
            (b"a\n\n", "the key k has more than one line; a header holds one"),
            (b"\na", "the key k has more than one line; a header holds one"),
            (b"a\x00b", "the key k has a control character; remove it"),
            (b"a\xffb", "the key k is not UTF-8; store the text itself"),
            (b"\xff\xfea\0", "the key k is not UTF-8; store the text itself"),
            (b" a", "the key k begins or ends with a blank; remove it"),
            (&[b'a'; LARGEST_TEXT + 1], "the key k has more than 8 KiB, and a header holds no more"),
        ] {
            let problem = key_text("k", bytes).unwrap_err();
            assert!(problem.message.starts_with(said) && !problem.passes, "{problem}");
        }
        for bytes in [b"a".as_slice(), b"a\n", b"a\r\n"] {
            assert_eq!(key_text("k", bytes), Ok("a"));
        }
        assert_eq!(key_text("k", "ü b".as_bytes()), Ok("ü b"));
    }

    #[test]
    fn keys_are_read_from_one_state_of_the_secret() {
        let folder = folder("state");
        for (state, text) in [("..1", "old"), ("..2", "new")] {
            fs::create_dir(folder.join(state)).unwrap();
            for key in ["user", "password"] {
                fs::write(folder.join(state).join(key), text).unwrap();
            }
        }
        symlink("..1", folder.join(CURRENT)).unwrap();
        for key in ["user", "password"] {
            symlink(Path::new(CURRENT).join(key), folder.join(key)).unwrap();
        }
        let read = || folders(&folder).keys(["user", "password"]).unwrap();
        assert_eq!(read(), [b"old", b"old"]);
        symlink("..2", folder.join("..new")).unwrap();
        fs::rename(folder.join("..new"), folder.join(CURRENT)).unwrap();
        fs::remove_dir_all(folder.join("..1")).unwrap();
        assert_eq!(read(), [b"new", b"new"]);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_key_that_is_missing_or_no_file_is_a_problem() {
        let folder = folder("missing");
        for outside in ["../token", "..", "a/b", "/etc/passwd", ""] {
            let problem = folders(&folder).keys([outside]).unwrap_err();
            assert!(problem.message.contains("is not a key of a Secret"), "{problem}");
        }
        fs::create_dir(folder.join("folder")).unwrap();
        fs::write(folder.join("large"), vec![b'a'; 64 * 1024 + 1]).unwrap();
        fs::write(folder.join("empty"), "").unwrap();
        for (key, said) in [
            ("none", "the key none is not there: there is no file none in the folder of --credentials-dir"),
            ("folder", "the key folder is not a file"),
            ("large", "the key large has more than 64 KiB"),
            ("empty", "the key empty is empty"),
        ] {
            let problem = folders(&folder).keys([key]).unwrap_err();
            assert!(problem.message.starts_with(said), "{problem}");
        }
        let pod = |keys: Option<&Path>| KeyFolders { keys: keys.map(Path::to_owned), tokens: None, in_pod: true };
        for (problem, said) in [
            (KeyFolders::default().keys(["t"]).unwrap_err(), "the key t is not there: there is no folder of keys"),
            (pod(None).keys(["t"]).unwrap_err(), "the key t is not there: no Secret is mounted"),
            (pod(Some(&folder)).keys(["t"]).unwrap_err(), "the key t is not there; add it to the Secret"),
            (
                KeyFolders::default().token("mcp").unwrap_err(),
                "the service account token of the audience mcp is not there: there is no folder",
            ),
            (
                pod(None).token("mcp").unwrap_err(),
                "the service account token of the audience mcp is not mounted; add the audience",
            ),
        ] {
            assert!(problem.message.starts_with(said), "{problem}");
        }
        fs::remove_dir_all(folder).unwrap();
    }
}
