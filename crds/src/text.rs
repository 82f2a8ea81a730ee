//! Text of others in messages that must be one line.

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
