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

/// Makes a text that others wrote safe for a terminal: replaces control characters, characters that change the writing direction, and
/// those that cannot be seen, so that no two texts look alike that are not.
///
/// ```
/// assert_eq!(toolweir_crds::text::shown("a\u{1b}[2Jb\nc\u{202e}d"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}d");
/// assert_eq!(toolweir_crds::text::shown("pay\u{200b} now"), "pay\u{fffd} now");
/// ```
pub fn shown(text: &str) -> Cow<'_, str> {
    let strange = |c: char| c.is_control() || is_unseen(c);
    if text.contains(strange) { Cow::Owned(text.replace(strange, "\u{fffd}")) } else { Cow::Borrowed(text) }
}

/// Makes JSON safe for a terminal: control characters and those that cannot be seen are escaped, which leaves what it says as it is.
pub fn safe_json(json: &str) -> String {
    let mut text = String::new();
    for c in json.chars() {
        if !c.is_ascii_graphic() && !matches!(c, ' ' | '\n') && (c.is_control() || is_unseen(c)) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                text.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            text.push(c);
        }
    }
    text
}

/// Returns whether a character is invisible or looks like a space: spaces of other widths, fillers, and characters that join, separate
/// or reverse their neighbours.
pub fn is_unseen(c: char) -> bool {
    let blank = c.is_whitespace() && !matches!(c, ' ' | '\u{3000}');
    let filler = matches!(c, '\u{ad}' | '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
    let joins = matches!(c, '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}');
    blank || filler || joins
}
