//! Names of entries: the tool that one names, or the glob over tools that it is.
//!
//! MCP lets a tool have any text for a name (2025-11-25, Tools, "Tool Names", recommends 1 to 128 letters, digits and `_ - . /`).
//! Any text without control characters can be written here: `*` stands for any characters, `\*` for a `*` that is part of the
//! name, and `\\` for a backslash. So each name has one spelling.

use std::borrow::Cow;

use crate::{bounds::TOOL_NAME, operation::OperationKind, text::is_unseen};

/// Returns the texts between the stars of an entry's name; a single one is the name of a tool. None where a backslash escapes
/// nothing.
pub fn literals(entry: &str) -> Option<Vec<Cow<'_, str>>> {
    if !entry.contains('\\') {
        return Some(entry.split('*').map(Cow::Borrowed).collect());
    }
    let (mut literals, mut literal) = (Vec::new(), String::new());
    let mut chars = entry.chars();
    while let Some(c) = chars.next() {
        match c {
            '*' => literals.push(Cow::Owned(std::mem::take(&mut literal))),
            '\\' => literal.push(chars.next().filter(|escaped| is_special(*escaped))?),
            c => literal.push(c),
        }
    }
    literals.push(Cow::Owned(literal));
    Some(literals)
}

/// Returns the name of the entry for this tool and no other.
pub fn exactly(tool: &str) -> String {
    tool.chars().flat_map(|c| is_special(c).then_some('\\').into_iter().chain([c])).collect()
}

fn is_special(c: char) -> bool {
    matches!(c, '*' | '\\')
}

/// Returns the name of an entry on one line: invisible characters are escaped.
pub fn shown(entry: &str) -> String {
    let plain = |c: char| matches!(c, '\\' | '\'' | '"');
    entry.chars().flat_map(|c| plain(c).then_some(c).into_iter().chain(c.escape_debug().filter(move |_| !plain(c)))).collect()
}

/// Returns why an entry cannot have this name, and what to write instead.
pub(crate) fn problem(entry: &str) -> Option<String> {
    if entry.is_empty() || entry.len() > TOOL_NAME {
        return Some(format!("has {} bytes; from 1 to {TOOL_NAME} are possible", entry.len()));
    }
    if entry.contains(char::is_control) {
        return Some("contains a control character, which a tool that is called cannot have; remove it".to_owned());
    }
    let unclear = || {
        let shown = shown(entry);
        format!(r"`{shown}` has a backslash that stands for nothing; write `\\` for a backslash, `\*` for a `*` of the name")
    };
    literals(entry).is_none().then(unclear)
}

/// Returns warnings of parts of an entry's name that are probably a mistake, each in one line.
pub fn doubts(entry: &str, kind: OperationKind) -> Vec<String> {
    let mut doubts = Vec::new();
    let shown = shown(entry);
    if entry.starts_with(char::is_whitespace) || entry.ends_with(char::is_whitespace) {
        doubts.push(format!(
            "`{shown}` begins or ends with a blank, which is part of the name; remove it unless the {kind} has it"
        ));
    }
    if let Some(unseen) = entry.chars().find(|c| is_unseen(*c)) {
        let code = u32::from(unseen);
        doubts.push(format!(
            "`{shown}` has the character U+{code:04X}, which cannot be seen for what it is and is part of the name; remove it unless the \
             {kind} has it"
        ));
    }
    if let Some(class) = entry.strip_prefix("class:").filter(|_| kind == OperationKind::Tool) {
        doubts.push(format!("`{shown}` is a tool of this name; for a class, write `class: {}` in place of `name`", class.trim()));
    }
    // Those of URIs are other ones: see `resource_uri::pattern_doubts`.
    if kind != OperationKind::Resource {
        let odd = entry.chars().find(|c| "?[]{}|^$,".contains(*c));
        doubts.extend(odd.map(|other| stands_for_itself(entry, other, "write an entry for each name", kind)));
    }
    doubts
}

/// The warning of a character that is taken for a part of a pattern. `instead` says what to write.
pub(crate) fn stands_for_itself(entry: &str, other: char, instead: &str, kind: OperationKind) -> String {
    let shown = shown(entry);
    format!(
        "`{shown}` has `{other}`, which stands for itself: only `*` stands for other characters; {instead} unless the {kind} is called so"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_part_a_name_and_escaped_ones_belong_to_it() {
        for (entry, expected) in [
            ("get_me", Some(vec!["get_me"])),
            ("get_*", Some(vec!["get_", ""])),
            ("*日本*", Some(vec!["", "日本", ""])),
            (r"2\*3", Some(vec!["2*3"])),
            (r"\**", Some(vec!["*", ""])),
            (r"C:\\dir", Some(vec![r"C:\dir"])),
            (r"\\*", Some(vec!["\\", ""])),
            (r"\\\*", Some(vec![r"\*"])),
            (r"a\b", None),
            (r"a\", None),
        ] {
            let found = literals(entry);
            assert_eq!(found.as_ref().map(|parts| parts.iter().map(AsRef::as_ref).collect()), expected, "{entry}");
        }
    }

    #[test]
    fn every_name_has_an_entry_of_its_own() {
        for name in ["get_me", "send dm", "grüße", "検索", "a/b:c(d)", "*", r"\", r"\*", r"a\\b*", " x ", "🙂", "\"'#{}[]&!%@`"]
        {
            let entry = exactly(name);
            assert_eq!(literals(&entry), Some(vec![name.into()]), "{name}");
            assert_eq!(problem(&entry), None, "{name}");
        }
    }

    #[test]
    fn names_that_are_likely_meant_otherwise_are_told() {
        for (entry, what) in [
            (" pay", "begins or ends with a blank"),
            ("pay\u{3000}", "begins or ends with a blank"),
            ("pay\u{200b}", "U+200B"),
            ("pay\u{a0}now", "U+00A0"),
            ("get_?", "`?`, which stands for itself"),
            ("get_[ab]*", "`[`, which stands for itself"),
            ("pay, refund", "`,`, which stands for itself"),
        ] {
            let doubts = doubts(entry, OperationKind::Tool);
            assert!(doubts.len() == 1 && doubts[0].contains(what), "{entry}: {doubts:?}");
        }
        for entry in ["get_*", "send dm", "検索", "files.read-v2", "a/b:c(d)", r"2\*3"] {
            assert_eq!(doubts(entry, OperationKind::Tool), Vec::<String>::new(), "{entry}");
        }
    }
}
