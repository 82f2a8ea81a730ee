//! The key of the list in a `tools/list` result, however it is spelled.

/// Looks for the key of the list in a tools/list result, however it is spelled and in whatever case, in a text that comes in
/// parts.
#[derive(Clone, Copy, Debug, Default)]
pub struct ToolsKey {
    /// Nothing, or the opening quote and how many letters are there.
    found: Option<u8>,
    /// Of a letter that is not written as itself: what has come of it.
    part: LetterPart,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum LetterPart {
    #[default]
    None,
    /// After the backslash.
    Backslash,
    /// After `\u` and this many digits, which make this number.
    Escape(u8, u32),
    /// After the first byte of the long s, which some parsers take for an s.
    LongS,
}

impl ToolsKey {
    /// Takes a part of the text. True when the key has come in it.
    pub fn feed(&mut self, text: &[u8]) -> bool {
        let (mut at, mut spelled) = (0, false);
        while let Some(byte) = text.get(at) {
            let Some(letters) = self.found else {
                // Most of a text is none of it.
                let Some(quote) = memchr::memchr(b'"', text.get(at..).unwrap_or_default()) else { return spelled };
                at += quote + 1;
                (self.found, self.part) = (Some(0), LetterPart::None);
                continue;
            };
            at += 1;
            if *byte == b'"' {
                spelled |= letters == 5 && self.part == LetterPart::None;
                (self.found, self.part) = (Some(0), LetterPart::None);
                continue;
            }
            let next = match (self.part, *byte) {
                (LetterPart::None, b'\\') => Some(LetterPart::Backslash),
                (LetterPart::None, 0xc5) => Some(LetterPart::LongS),
                (LetterPart::Backslash, b'u') => Some(LetterPart::Escape(0, 0)),
                (LetterPart::Escape(count @ 0..3, number), byte) => {
                    char::from(byte).to_digit(16).map(|digit| LetterPart::Escape(count + 1, number * 16 + digit))
                }
                _ => None,
            };
            if let Some(part) = next {
                self.part = part;
                continue;
            }
            let letter = match (self.part, *byte) {
                (LetterPart::None, byte) => Some(char::from(byte)),
                (LetterPart::Escape(_, number), byte) => {
                    char::from(byte).to_digit(16).and_then(|digit| char::from_u32(number * 16 + digit))
                }
                (LetterPart::LongS, 0xbf) => Some('\u{17f}'),
                _ => None,
            };
            self.part = LetterPart::None;
            let wanted = b"tools".get(usize::from(letters)).map(|letter| char::from(*letter));
            let fits = letter.is_some_and(|letter| {
                Some(letter.to_ascii_lowercase()) == wanted || (letter == '\u{17f}' && wanted == Some('s'))
            });
            self.found = fits.then_some(letters + 1);
        }
        spelled
    }
}

/// Returns true where the key stands in a text, also with escapes and in whatever case.
pub fn spells_tools(text: &[u8]) -> bool {
    ToolsKey::default().feed(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_tools_is_known_however_it_is_spelled() {
        for text in [
            "{\"TOOL\u{17f}\"",
            r#""tool\u017F""#,
            "\"tool\"tools\"",
            r#"{"tools":"#,
            r#"{"x":"","t\u006fol\u0073":"#,
            r#""\u0074\u006F\u006f\u006C\u0073""#,
        ] {
            assert!(spells_tools(text.as_bytes()), "{text}");
        }
        for text in
            ["", "\"", "\"tool", "\"tools", r#""tools ""#, r#""\u0074""#, r#"\"tools\""#, r#""\u0074\u006"#, "\"too\u{17f}ls\""]
        {
            assert!(!spells_tools(text.as_bytes()), "{text}");
        }
    }
}
