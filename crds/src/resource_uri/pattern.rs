//! Entries of policies for resources: a canonical URI, or a glob over such.

use std::borrow::Cow;

use super::{
    ambiguous::AmbiguousUri,
    canonical::{ResourceUri, canonical},
};
use crate::{
    bounds::RESOURCE_URI,
    operation::OperationKind,
    tool_name::{exactly, literals, shown, stands_for_itself},
};

/// What stands for the first star of an entry and for the others, to read it as a URI: texts that are the same in canonical form.
/// A star may be a name, a port, or a part of a URI that has slashes.
const STAND_INS: [[&str; 2]; 6] =
    [[NAME, NAME], [PORT, PORT], [NAME, PORT], ["/x0star0x", NAME], ["x0star0x://x0star0x", NAME], ["x0star0x:", NAME]];
const NAME: &str = "x0star0x";
const PORT: &str = "61089";

/// Returns why an entry cannot have this URI or glob, and what to write instead: one line, without the field's path.
///
/// ```
/// use toolweir_crds::resource_uri::pattern_problem;
///
/// assert_eq!(pattern_problem("file:///data/*"), None);
/// let problem = pattern_problem("file:/data/%61*").unwrap();
/// assert_eq!(problem, "`file:/data/%61*` is not as URIs are compared; write `file:///data/a*`");
/// ```
pub fn pattern_problem(entry: &str) -> Option<String> {
    if entry.is_empty() || entry.len() > RESOURCE_URI {
        return Some(format!("has {} bytes; from 1 to {RESOURCE_URI} are possible", entry.len()));
    }
    let Some(literals) = literals(entry) else {
        let shown = shown(entry);
        return Some(format!(r"`{shown}` has a backslash, which no URI has; write `/`, or `\*` for a `*` of the URI"));
    };
    match canonical_literals(&literals) {
        Ok(canonical) if canonical == literals => None,
        Ok(canonical) => {
            let remedy = canonical.iter().map(|literal| exactly(literal)).collect::<Vec<_>>().join("*");
            Some(format!("`{}` is not as URIs are compared; write `{}`", shown(entry), shown(&remedy)))
        }
        Err(problem) => Some(format!("`{}` {problem}", shown(entry))),
    }
}

/// Returns the texts between the stars as they are in canonical URIs.
///
/// # Errors
/// Why no URI of this form is canonical.
pub(super) fn canonical_literals(literals: &[Cow<'_, str>]) -> Result<Vec<String>, AmbiguousUri> {
    let (mut remedy, mut problem) = (None, None);
    for stand_ins in STAND_INS {
        let tried = match canonical(&joined(literals, stand_ins)) {
            // A star that is not there any more stood before `..`.
            Ok(canonical) => parted(&canonical, literals, stand_ins).ok_or(AmbiguousUri::Dots),
            Err(error) => Err(error),
        };
        match tried {
            // As it is, it is the form of some canonical URIs.
            Ok(parts) if parts == literals => return Ok(parts),
            Ok(parts) => remedy = remedy.or(Some(parts)),
            Err(error) => problem = problem.or(Some(error)),
        }
    }
    remedy.ok_or(problem.unwrap_or(AmbiguousUri::Scheme))
}

/// Joins literals with what stands for the stars between them.
fn joined(literals: &[Cow<'_, str>], [first, others]: [&str; 2]) -> String {
    let mut text = String::new();
    for (at, literal) in literals.iter().enumerate() {
        text.push_str(match at {
            0 => "",
            1 => first,
            _ => others,
        });
        text.push_str(literal);
    }
    text
}

/// Undoes [`joined`] in the canonical form of what it gave. None if not each star is there.
fn parted(canonical: &str, literals: &[Cow<'_, str>], [first, others]: [&str; 2]) -> Option<Vec<String>> {
    let Some((last, stars)) = literals.split_last().filter(|(_, stars)| !stars.is_empty()) else {
        return Some(vec![canonical.to_owned()]);
    };
    let (begin, mut rest) = canonical.split_once(first)?;
    let mut parts = vec![begin.to_owned()];
    for _ in stars.iter().skip(1) {
        let (part, behind) = rest.split_once(others)?;
        parts.push(part.to_owned());
        rest = behind;
    }
    // The path that a web address gets is part of what the last star stands for.
    let end = if last.is_empty() && rest == "/" { "" } else { rest };
    parts.push(end.to_owned());
    (!end.contains(first) && !end.contains(others)).then_some(parts)
}

/// Returns warnings of an entry that has what is taken for a part of a pattern, or whose star is a part of a host, and so stands for more
/// than that: each one line, without the field's path.
pub fn pattern_doubts(entry: &str) -> Vec<String> {
    let (authority, path) = match entry.split_once("://") {
        Some((_, rest)) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
        None => ("", entry),
    };
    // Brackets are of a host alone (RFC 3986, section 3.2.2).
    let odd = path.chars().find(|c| "[]".contains(*c)).or_else(|| entry.chars().find(|c| "{}|^".contains(*c)));
    let odd = odd.map(|other| stands_for_itself(entry, other, "write `*` in its place,", OperationKind::Resource));
    let is_part = authority.contains('*') && authority != "*" && !path.is_empty();
    let host = is_part.then(|| {
        format!(
            "`{}` has a `*` in its host, which stands for `/` too, and so for other hosts; write an entry for each host",
            shown(entry)
        )
    });
    odd.into_iter().chain(host).collect()
}

/// Returns whether an entry that allows means this URI. It matches the canonical form, case included, and none of its stars
/// reaches into another part: `*.txt` does not stand for `secret.key?.txt`, which some servers read as `secret.key`. Only a star
/// at the end stands for a query and a fragment too.
///
/// ```
/// use toolweir_crds::resource_uri::{ResourceUri, covers};
///
/// let uri = ResourceUri::read("db://files/secret.key?.txt").unwrap();
/// assert!(covers("db://files/*", &uri) && covers("db://files/*?*", &uri));
/// assert!(!covers("db://files/*.txt", &uri) && !covers("db://FILES/*", &uri));
/// ```
pub fn covers(entry: &str, uri: &ResourceUri<'_>) -> bool {
    let Some(literals) = literals(entry) else { return false };
    let literals: Vec<&str> = literals.iter().map(AsRef::as_ref).collect();
    let open = literals.len() > 1 && literals.last().is_some_and(|last| last.is_empty());
    let (rest, fragment) = uri.as_str().split_once('#').map_or((uri.as_str(), None), |(rest, part)| (rest, Some(part)));
    let (path, query) = rest.split_once('?').map_or((rest, None), |(path, part)| (path, Some(part)));
    let (rest, entry_fragment) = cut(&literals, '#');
    let (entry_path, entry_query) = cut(&rest, '?');
    let ends_with_query = entry_fragment.is_none();
    let ends_with_path = ends_with_query && entry_query.is_none();
    let part = |entry: Option<Vec<&str>>, part: Option<&str>, last: bool| match (entry, part) {
        (Some(entry), part) => part.is_some_and(|part| matches(&entry, part)),
        (None, None) => true,
        (None, Some(_)) => open && last,
    };
    matches(&entry_path, path) && part(entry_query, query, ends_with_path) && part(entry_fragment, fragment, ends_with_query)
}

/// Cuts the literals of a glob at the first of these marks.
fn cut<'a>(literals: &[&'a str], mark: char) -> (Vec<&'a str>, Option<Vec<&'a str>>) {
    let mut before = Vec::new();
    let mut rest = literals.iter();
    while let Some(literal) = rest.next() {
        if let Some((end, begin)) = literal.split_once(mark) {
            before.push(end);
            return (before, Some(std::iter::once(begin).chain(rest.copied()).collect()));
        }
        before.push(literal);
    }
    (before, None)
}

/// Returns whether a text has these literals with any characters between them.
pub(super) fn matches<S: AsRef<str>>(literals: &[S], text: &str) -> bool {
    let Some((first, rest)) = literals.split_first() else { return false };
    let Some((last, middle)) = rest.split_last() else { return first.as_ref() == text };
    let Some(text) = text.strip_prefix(first.as_ref()) else { return false };
    let Some(mut text) = text.strip_suffix(last.as_ref()) else { return false };
    // Each part at its first place leaves the most for those after it.
    for part in middle {
        let Some((_, behind)) = text.split_once(part.as_ref()) else { return false };
        text = behind;
    }
    true
}
