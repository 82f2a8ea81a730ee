//! Why a URI has no canonical form.

use crate::bounds::RESOURCE_URI;

/// Why a URI can be read in more than one way, and what to write instead: one line, without the URI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AmbiguousUri {
    /// It, or its canonical form, is empty or too long.
    #[error("has {0} bytes; from 1 to {RESOURCE_URI} are possible")]
    Length(usize),
    /// A control character, plain or encoded.
    #[error("has a control character; leave it out")]
    Control,
    /// A blank at either end of a part, plain or encoded.
    #[error("has a blank at the beginning or end of a part, which some servers drop; leave it out")]
    Blank,
    /// A backslash, plain or encoded.
    #[error("has a backslash; write `/`")]
    Backslash,
    /// Nothing that is a scheme before the first colon.
    #[error("has no scheme; write the whole URI, such as file:///data/a.txt")]
    Scheme,
    /// A scheme and nothing behind it.
    #[error("names nothing; write what stands behind the scheme")]
    Empty,
    /// `C:` in place of a scheme, or `C|` in place of a drive.
    #[error("has a drive in the place of a scheme or with `|`; write file:///C:/ and the rest")]
    Drive,
    /// A path of a file that does not begin at the root.
    #[error("does not begin at the root; write file:/// and the whole path")]
    Relative,
    /// A file of a host.
    #[error("names a host, which files do not have; write file:/// and the whole path")]
    FileHost,
    /// A query or fragment of a file.
    #[error("has a `?` or `#`, which servers of files read in two ways; leave out what begins there")]
    FileQuery,
    /// A name that Windows reads as another.
    #[error("has a name that ends with a dot or colon or has `:$`, which Windows drops; write the plain name of the file")]
    FileName,
    /// `https:` without `//` and a host.
    #[error("has no `//` and host behind its scheme; write them")]
    NoHost,
    /// `user@` before a host.
    #[error("has an `@` before its path; leave out the user's name")]
    User,
    /// A `%` before the path.
    #[error("has a `%` before its path; write the host plainly")]
    EncodedHost,
    /// A host that clients may read as another.
    #[error("has a host that is neither a name of DNS (letters, digits, `-`, `_`, dots) nor a plain address; write it as such")]
    Host,
    /// What is no port.
    #[error("has a port that is no number from 1 to 65535; write one, or none")]
    Port,
    /// `;` in the path of a web address.
    #[error("has a `;` in its path, behind which some servers do not read; leave out what begins there")]
    Parameters,
    /// A fragment of a web address.
    #[error("has a `#`, which no server is sent; leave out what begins there")]
    Fragment,
    /// A `%` that begins nothing.
    #[error("has a `%` without two hexadecimal digits; write `%25` for a percent sign")]
    Triplet,
    /// Bytes that are no text.
    #[error("decodes to bytes that are not UTF-8; write its characters plainly")]
    NotUtf8,
    /// `%2F`, `%3F` or `%23` in a path.
    #[error("has an encoded `/`, `?` or `#` in its path; write it plainly, or use another name")]
    EncodedSeparator,
    /// `.` or `..` with an encoded dot.
    #[error("has an encoded `.` or `..`; write the path that it leads to")]
    EncodedDots,
    /// A text that is encoded after it was decoded.
    #[error("is encoded twice; encode it once")]
    EncodedTwice,
    /// `..` at the root, or behind what looks like a drive.
    #[error("leads above the root or a drive; write the path that is meant")]
    AboveRoot,
    /// `.` or `..` where servers do not agree on what it is.
    #[error("has `.` or `..` as a part, which not every server resolves; write the path that it leads to")]
    Dots,
    /// `//` in a path.
    #[error("has `//` in its path; write one `/`")]
    EmptySegment,
}
