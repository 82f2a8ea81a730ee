//! The canonical form of a URI.

use std::borrow::Cow;

use super::{
    ambiguous::AmbiguousUri,
    authority,
    scheme::{SchemeKind, split_scheme},
    variants::variants,
};
use crate::bounds::RESOURCE_URI;

/// A resource's URI in its canonical form: the one text of all URIs that servers read alike.
///
/// ```
/// use toolweir_crds::resource_uri::{AmbiguousUri, ResourceUri};
///
/// let uri = ResourceUri::read("FILE://localhost/data/x/../%61.txt").unwrap();
/// assert_eq!(uri.as_str(), "file:///data/a.txt");
/// assert_eq!(ResourceUri::read("file:///data/..%2fa.txt"), Err(AmbiguousUri::EncodedSeparator));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceUri<'a> {
    canonical: Cow<'a, str>,
    others: Vec<String>,
}

impl<'a> ResourceUri<'a> {
    /// Reads a URI.
    ///
    /// # Errors
    /// Why it has no canonical form.
    pub fn read(uri: &'a str) -> Result<Self, AmbiguousUri> {
        check_length(uri)?;
        let canonical = canonical(uri)?;
        check_length(&canonical)?;
        let others = variants(&canonical);
        let canonical = if canonical == uri { Cow::Borrowed(uri) } else { Cow::Owned(canonical) };
        Ok(Self { canonical, others })
    }

    /// Returns the canonical form. Its own canonical form is itself.
    pub fn as_str(&self) -> &str {
        &self.canonical
    }

    /// Returns the canonical form by itself.
    pub fn into_canonical(self) -> Cow<'a, str> {
        self.canonical
    }

    /// Returns what a server may take for the same resource, the canonical form first; an entry that denies or restricts one of
    /// these means all of them. They lack the fragment, the query and the last `/`, have a blank for `+`, and in schemes that
    /// servers read in ways of their own the authority is a part of the path, and the other way around. In which case they are
    /// written, the caller has to ignore. Not all are canonical.
    pub fn variants(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.as_str()).chain(self.others.iter().map(String::as_str))
    }
}

fn check_length(text: &str) -> Result<(), AmbiguousUri> {
    if (1..=RESOURCE_URI).contains(&text.len()) { Ok(()) } else { Err(AmbiguousUri::Length(text.len())) }
}

/// Returns whether a text has characters at its ends that readers drop there.
fn has_blank_ends(text: &str) -> bool {
    let blank = |c: char| c.is_whitespace() || c == '\u{feff}';
    text.starts_with(blank) || text.ends_with(blank)
}

/// Returns the canonical form of a URI of any length.
pub(super) fn canonical(uri: &str) -> Result<String, AmbiguousUri> {
    if uri.contains(char::is_control) {
        return Err(AmbiguousUri::Control);
    }
    if uri.contains('\\') {
        return Err(AmbiguousUri::Backslash);
    }
    if has_blank_ends(uri) {
        return Err(AmbiguousUri::Blank);
    }
    let (scheme, rest) = split_scheme(uri)?;
    let kind = SchemeKind::of(&scheme);
    let (rest, fragment) = rest.split_once('#').map_or((rest, None), |(rest, fragment)| (rest, Some(fragment)));
    let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
    if kind == SchemeKind::File && (query.is_some() || fragment.is_some()) {
        return Err(AmbiguousUri::FileQuery);
    }
    let fragment = fragment.filter(|fragment| !fragment.is_empty());
    if fragment.is_some() && kind != SchemeKind::Other {
        return Err(AmbiguousUri::Fragment);
    }
    let mut text = scheme + ":";
    push_location(&mut text, rest, kind)?;
    for (mark, part) in [('?', query), ('#', fragment)] {
        if let Some(part) = part.filter(|part| !part.is_empty()) {
            let part = decoded(part, UriPart::Query)?;
            if has_blank_ends(&part) {
                return Err(AmbiguousUri::Blank);
            }
            text.push(mark);
            text.push_str(&part);
        }
    }
    Ok(text)
}

/// Adds authority and path.
fn push_location(text: &mut String, rest: &str, kind: SchemeKind) -> Result<(), AmbiguousUri> {
    let with_authority = rest.strip_prefix("//").map(|rest| rest.split_at(rest.find('/').unwrap_or(rest.len())));
    let (authority, path) = match (kind, with_authority) {
        (SchemeKind::File, Some((host, path))) => {
            if !host.is_empty() && !host.eq_ignore_ascii_case("localhost") {
                return Err(AmbiguousUri::FileHost);
            }
            (String::new(), path)
        }
        (SchemeKind::Web(port), Some((authority, path))) => {
            (authority::of_web(authority, port)?, if path.is_empty() { "/" } else { path })
        }
        (SchemeKind::Web(_), None) => return Err(AmbiguousUri::NoHost),
        (SchemeKind::Other, Some((authority, path))) => {
            authority::check(authority)?;
            if has_blank_ends(authority) {
                return Err(AmbiguousUri::Blank);
            }
            (authority.to_owned(), path)
        }
        (SchemeKind::File, None) => (String::new(), rest),
        (SchemeKind::Other, None) if rest.starts_with('/') => (String::new(), rest),
        (SchemeKind::Other, None) if rest.is_empty() => return Err(AmbiguousUri::Empty),
        (SchemeKind::Other, None) => return push_segments(text, rest, kind),
    };
    text.push_str("//");
    text.push_str(&authority);
    match path.strip_prefix('/') {
        Some(path) => {
            text.push('/');
            push_segments(text, path, kind)
        }
        None if kind == SchemeKind::File => Err(AmbiguousUri::Relative),
        None => Ok(()),
    }
}

/// Adds a path, or what a scheme has in its place, without a `/` at its beginning.
fn push_segments(text: &mut String, path: &str, kind: SchemeKind) -> Result<(), AmbiguousUri> {
    let mut kept: Vec<Cow<'_, str>> = Vec::new();
    let mut segments = path.split('/').peekable();
    // A path that ends with `/`, `.` or `..` is one of a folder.
    let mut folder = false;
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "" if last => folder = true,
            "" => return Err(AmbiguousUri::EmptySegment),
            "." | ".." if kind == SchemeKind::Other => return Err(AmbiguousUri::Dots),
            "." => folder = last,
            ".." => {
                let parent = kept.pop().ok_or(AmbiguousUri::AboveRoot)?;
                // Some readers stay below a drive, and take names for drives that are none.
                if begins_like_drive(&parent) {
                    return Err(AmbiguousUri::AboveRoot);
                }
                folder = last;
            }
            segment => {
                let name = decoded(segment, UriPart::Path)?;
                check_name(&name, kind, kept.is_empty())?;
                kept.push(name);
            }
        }
    }
    text.push_str(&kept.join("/"));
    if folder && !kept.is_empty() {
        text.push('/');
    }
    Ok(())
}

/// Checks a decoded segment of a path. `first`: nothing of the path stands before it.
fn check_name(name: &str, kind: SchemeKind, first: bool) -> Result<(), AmbiguousUri> {
    if matches!(name, "." | "..") {
        return Err(AmbiguousUri::EncodedDots);
    }
    if has_blank_ends(name) {
        return Err(AmbiguousUri::Blank);
    }
    match kind {
        SchemeKind::File if first && is_drive(name, '|') => Err(AmbiguousUri::Drive),
        SchemeKind::File if first && is_drive(name, ':') => Ok(()),
        SchemeKind::File if name.ends_with(['.', ':']) || name.contains(":$") => Err(AmbiguousUri::FileName),
        SchemeKind::Web(_) if name.contains(';') => Err(AmbiguousUri::Parameters),
        _ => Ok(()),
    }
}

fn is_drive(name: &str, mark: char) -> bool {
    begins_like_drive(name) && name.len() == 2 && name.ends_with(mark)
}

fn begins_like_drive(name: &str) -> bool {
    matches!(name.as_bytes(), [letter, b':' | b'|', ..] if letter.is_ascii_alphabetic())
}

/// Where an encoded character stands.
#[derive(Clone, Copy)]
enum UriPart {
    /// In a segment of the path.
    Path,
    /// In the query or the fragment.
    Query,
}

/// Decodes once. What would have another meaning if it stood there plainly stays encoded.
fn decoded(text: &str, part: UriPart) -> Result<Cow<'_, str>, AmbiguousUri> {
    if !text.contains('%') {
        return Ok(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut pieces = text.split('%');
    bytes.extend_from_slice(pieces.next().unwrap_or_default().as_bytes());
    for piece in pieces {
        let (code, rest) = piece.split_at_checked(2).ok_or(AmbiguousUri::Triplet)?;
        let digits = code.bytes().all(|byte| byte.is_ascii_hexdigit());
        let byte = u8::from_str_radix(code, 16).ok().filter(|_| digits).ok_or(AmbiguousUri::Triplet)?;
        match (byte, part) {
            (b'\\', _) => return Err(AmbiguousUri::Backslash),
            (b'/' | b'?' | b'#', UriPart::Path) => return Err(AmbiguousUri::EncodedSeparator),
            (b'%', _) | (b'#' | b'&' | b'+' | b',' | b';' | b'=', UriPart::Query) => {
                bytes.push(b'%');
                bytes.extend(code.bytes().map(|digit| digit.to_ascii_uppercase()));
            }
            _ => bytes.push(byte),
        }
        bytes.extend_from_slice(rest.as_bytes());
    }
    let text = String::from_utf8(bytes).map_err(|_| AmbiguousUri::NotUtf8)?;
    if text.contains(char::is_control) {
        return Err(AmbiguousUri::Control);
    }
    let is_code = |behind: &str| behind.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2;
    if text.split("%25").skip(1).any(is_code) { Err(AmbiguousUri::EncodedTwice) } else { Ok(Cow::Owned(text)) }
}
