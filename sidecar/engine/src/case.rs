//! Texts without regard to case, as the widest reader of keys and names takes them.
//!
//! Readers differ: some fold by Unicode's simple case folding, some compare in upper case, some in lower case, some in one after
//! the other. Two characters are the same here if any of these says so.

use std::borrow::Cow;

/// Returns the character that stands for all that differ from this one in case alone.
pub fn fold(c: char) -> char {
    if c.is_ascii() {
        return c.to_ascii_lowercase();
    }
    let c = match c {
        // Lower case of one character in Unicode's table, of two in its exceptions, which the standard library follows.
        '\u{130}' => 'i',
        // Equal by simple case folding alone: in upper case they are several characters.
        '\u{1fd3}' => '\u{390}',
        '\u{1fe3}' => '\u{3b0}',
        '\u{fb05}' => '\u{fb06}',
        c => c,
    };
    lower(upper(lower(c)))
}

/// Returns the lower case, where it is one character.
fn lower(c: char) -> char {
    let mut chars = c.to_lowercase();
    if chars.len() == 1 { chars.next().unwrap_or(c) } else { c }
}

/// Returns the upper case, where it is one character.
fn upper(c: char) -> char {
    let mut chars = c.to_uppercase();
    if chars.len() == 1 { chars.next().unwrap_or(c) } else { c }
}

/// Returns the text that stands for all that differ from this one in case alone.
pub fn folded(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase()) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().map(fold).collect())
}

/// Returns true if two texts are the same to some reader that ignores case.
pub fn same_but_for_case(a: &str, b: &str) -> bool {
    if a.is_ascii() && b.is_ascii() {
        return a.eq_ignore_ascii_case(b);
    }
    a.chars().map(fold).eq(b.chars().map(fold))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use regex_syntax::hir::{ClassUnicode, ClassUnicodeRange};

    use super::*;

    fn all() -> impl Iterator<Item = char> {
        (0..=u32::from(char::MAX)).filter_map(char::from_u32)
    }

    fn same(a: char, b: char) -> bool {
        same_but_for_case(&a.to_string(), &b.to_string())
    }

    /// Every pair that some reader takes for the same: by simple case folding (the table of `regex-syntax`), in upper case, in
    /// lower case, and in lower case of upper case; where these are one character each.
    #[test]
    fn characters_that_any_reader_takes_for_the_same_are() {
        let mut pairs = 0;
        for c in all() {
            let mut class = ClassUnicode::new([ClassUnicodeRange::new(c, c)]);
            class.case_fold_simple();
            let folds = class.ranges().iter().flat_map(|range| range.start()..=range.end());
            for other in folds.chain([lower(c), upper(c), lower(upper(c)), upper(lower(c))]) {
                assert!(same(c, other), "{c:?} {other:?}");
                pairs += usize::from(c != other);
            }
        }
        assert!(pairs > 5000, "{pairs}");
        // Java's characters, which follow the table without its exceptions.
        assert!(same('\u{130}', 'i') && same('\u{131}', 'I'));
    }

    #[test]
    fn names_of_any_script_are_compared_without_case() {
        for (a, b) in [
            ("paramſ", "PARAMS"),
            ("taſ\u{212a}", "task"),
            ("größe", "GRÖẞE"),
            ("σίσυφος", "ΣΊΣΥΦΟΣ"),
            ("µ", "\u{3bc}"),
            ("ǅ", "ǆ"),
            ("Ꭰ", "\u{ab70}"),
            ("кириллица", "КИРИЛЛИЦА"),
            ("ᾳ", "ᾼ"),
            ("𐐨", "𐐀"),
        ] {
            assert!(same_but_for_case(a, b), "{a} {b}");
            assert_eq!(folded(a), folded(b));
        }
        for (a, b) in [("name", "names"), ("é", "e"), ("größe", "große"), ("日", "月")] {
            assert!(!same_but_for_case(a, b), "{a} {b}");
        }
    }

    /// Nothing else is the same: what stands for a character differs from it in case alone.
    #[test]
    fn what_stands_for_a_character_stands_for_itself() {
        for c in all() {
            assert_eq!(fold(fold(c)), fold(c), "{c:?}");
        }
        let caseless: HashSet<char> =
            all().filter(|c| !c.is_lowercase() && !c.is_uppercase() && lower(*c) == *c && upper(*c) == *c).collect();
        assert!(caseless.iter().all(|c| fold(*c) == *c));
    }
}
