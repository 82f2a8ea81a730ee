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

/// Adds a character of a text of others to one that is shown exactly: what cannot be seen, or would be obeyed, as its code.
///
/// ```
/// let mut shown = String::new();
/// "a\n\u{202e}b 🎉\u{fe0f}c\u{fe0f}".chars().for_each(|c| toolweir_crds::text::push_exact(&mut shown, c));
/// assert_eq!(shown, "a\\n\\u{202e}b 🎉\u{fe0f}c\\u{fe0f}");
/// ```
pub fn push_exact(shown: &mut String, c: char) {
    match c {
        '\n' => shown.push_str("\\n"),
        '\t' => shown.push_str("\\t"),
        '\r' => shown.push_str("\\r"),
        // Of a symbol, it chooses the form; after a letter or digit, it is not seen.
        '\u{fe0e}' | '\u{fe0f}' if shown.ends_with(|before: char| before >= '\u{2190}' && !before.is_alphanumeric()) => {
            shown.push(c);
        }
        c if c.is_control() || is_unseen(c) || matches!(c, '\u{fe0e}' | '\u{fe0f}') => {
            shown.push_str(&format!("\\u{{{:x}}}", u32::from(c)));
        }
        c => shown.push(c),
    }
}

/// Makes one word of a name that others chose, for a sentence or a column: what has blanks, quotes or more than visible ASCII stands in
/// quotes, so that nothing of it passes for the text around it.
///
/// ```
/// assert_eq!(toolweir_crds::text::one_word("pay_invoice"), "pay_invoice");
/// assert_eq!(toolweir_crds::text::one_word("pay of server \"test\"\n"), r#""pay of server \"test\"\n""#);
/// ```
pub fn one_word(name: &str) -> Cow<'_, str> {
    let is_plain = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\\' | '`');
    if !name.is_empty() && name.chars().all(is_plain) {
        return Cow::Borrowed(name);
    }
    let mut word = String::from('"');
    for c in name.chars() {
        if matches!(c, '"' | '\\') {
            word.push('\\');
        }
        push_exact(&mut word, c);
    }
    word.push('"');
    Cow::Owned(word)
}

/// Returns whether a character is invisible or looks like a space: spaces of other widths, fillers, characters that join, separate
/// or reverse their neighbours, and those that choose a form of the one before them, but for the two that emoji have.
pub fn is_unseen(c: char) -> bool {
    let blank = c.is_whitespace() && !matches!(c, ' ' | '\u{3000}');
    let filler = matches!(c, '\u{ad}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{2800}' | '\u{3164}' | '\u{ffa0}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{1d173}'..='\u{1d17a}');
    let joins = matches!(c, '\u{34f}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}');
    let chooses = matches!(c, '\u{180b}'..='\u{180f}' | '\u{fe00}'..='\u{fe0d}' | '\u{e0000}'..='\u{e0fff}');
    blank || filler || joins || chooses
}
