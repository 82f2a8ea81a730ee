//! Text of others in messages that must be one line, and on terminals.

use std::borrow::Cow;

/// The start of a text that is not checked yet, to be shown in quotes: at most `most` characters, each that could be misread escaped.
///
/// ```
/// assert_eq!(toolweir_crds::text::escaped("a\nbc", 3), "a\\nb");
/// ```
pub fn escaped(text: &str, most: usize) -> String {
    text.chars().take(most).flat_map(char::escape_debug).collect()
}

/// The start of a text as one line: at most `most` characters; line breaks and tabs become spaces, and every other control
/// character becomes U+FFFD.
///
/// ```
/// assert_eq!(toolweir_crds::text::one_line("a\nb\u{1b}c", 300), "a b\u{fffd}c");
/// ```
pub fn one_line(text: &str, most: usize) -> String {
    let shown = |c: char| match c {
        '\n' | '\r' | '\t' => ' ',
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    text.chars().map(shown).take(most).collect()
}

/// Makes a text that others wrote safe for a terminal: replaces control characters and characters that change the writing direction.
///
/// ```
/// assert_eq!(toolweir_crds::text::shown("a\u{1b}[2Jb\nc\u{202e}d"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}d");
/// ```
pub fn shown(text: &str) -> Cow<'_, str> {
    let strange =
        |c: char| c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if text.contains(strange) { Cow::Owned(text.replace(strange, "\u{fffd}")) } else { Cow::Borrowed(text) }
}
