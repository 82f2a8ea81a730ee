//! URIs of resources: the canonical form of each, and what policies write.
//!
//! A server may read a URI in its own way: decode it once, twice or not at all, resolve `..` or not, drop a query or not. A URI
//! is accepted only where all of these end at the same resource, or at none; any other is an [`AmbiguousUri`], and no policy can
//! say anything of it.
//!
//! | part | canonical form | refused |
//! | --- | --- | --- |
//! | all | as it is | longer than [`RESOURCE_URI`](crate::bounds::RESOURCE_URI); control characters; backslashes; blanks at the ends of a part |
//! | scheme | lower case | none; a single letter, which is a drive |
//! | `file` | `file:///PATH`, also for `file:/PATH` and `file://localhost/PATH` | other hosts, relative paths, queries, fragments, and names that Windows reads as others |
//! | `http`, `https`, `ws`, `wss`, `ftp` | host in lower case without a last dot; no port where it is the scheme's own; path `/` if there is none | no `//`; user names; hosts with other characters than DNS has, or numbers that are no plain address; a fragment; `;` in the path |
//! | other schemes | `scheme://AUTHORITY/PATH` as it is, `scheme:///PATH` also for `scheme:/PATH`, or `scheme:NAME` | user names and `%` in the authority; `.` and `..` |
//! | path | decoded once, but for `%25`; `.` and `..` resolved (`file`, `http` and their like) | `//`; encoded `/`, `?`, `#`, `.`, `..`; what can be decoded again; `..` above the root or a drive |
//! | query, fragment | decoded once, but for `%23`, `%25`, `%26`, `%2B`, `%2C`, `%3B` and `%3D`; none if empty | what can be decoded again |
//!
//! Of texts that Unicode calls equivalent (an accented letter as one character or two; wide letters and plain ones), each is a URI
//! of its own, as most file systems have it. Which file a symbolic link, or a short name of Windows (`SECRET~1.TXT`), leads to is
//! the server's to know. Invisible characters are kept.
//!
//! Entries that deny match more than the canonical form: see [`ResourceUri::variants`]. Entries that allow match less: see
//! [`covers`].

mod ambiguous;
mod authority;
mod canonical;
mod pattern;
mod scheme;
mod template;
mod variants;

pub use ambiguous::AmbiguousUri;
pub use canonical::ResourceUri;
pub use pattern::{covers, pattern_doubts, pattern_problem};
pub use template::template_witnesses;
