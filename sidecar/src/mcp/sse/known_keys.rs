//! Keys of messages that must be read, however they are spelled.

use std::{
    array,
    ops::ControlFlow::{self, Break, Continue},
    sync::LazyLock,
};

/// The keys, in the order of their bits in [`KnownKeys`]: those of lists, and those of what a server asks for or tells of tasks.
const KEYS: [&str; 9] =
    ["tools", "prompts", "resources", "resourceTemplates", "tasks", "method", "inputRequests", "elicitations", "taskId"];

/// The keys that have a letter at a place, by the place and by the letter: so that no letter is compared with each key.
static KEYS_BY_LETTER: LazyLock<Vec<[KnownKeys; 26]>> = LazyLock::new(|| {
    let longest = KEYS.map(str::len).into_iter().max().unwrap_or_default();
    let have = |place: usize, letter: u8| {
        KnownKeys::ALL.filter(|key| key.as_bytes().get(place).is_some_and(|other| other.eq_ignore_ascii_case(&letter)))
    };
    (0..longest).map(|place| array::from_fn(|at| u8::try_from(at).map_or(KnownKeys(0), |at| have(place, b'a' + at)))).collect()
});

/// A set of keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KnownKeys(u16);

impl KnownKeys {
    /// Those of lists in results.
    pub const LISTS: Self = Self(0b1_1111);
    /// Those of messages in which a server asks for something, or tells of a task.
    pub const ASKS: Self = Self(0b1_1110_0000);

    /// That of requests and notifications.
    pub const METHOD: Self = Self(0b10_0000);
    /// That of requests in results and notifications.
    pub const INPUT_REQUESTS: Self = Self(0b100_0000);
    /// That of requests in errors.
    pub const ELICITATIONS: Self = Self(0b1000_0000);

    /// Every key that is looked for.
    const ALL: Self = Self(u16::MAX >> (16 - KEYS.len()));

    /// Returns true where one of the keys is of these.
    pub const fn any_of(self, keys: Self) -> bool {
        self.0 & keys.0 != 0
    }

    /// Those of this set that are not of the other.
    #[must_use]
    pub const fn without(self, keys: Self) -> Self {
        Self(self.0 & !keys.0)
    }

    /// Those of one set or the other.
    #[must_use]
    pub const fn and(self, keys: Self) -> Self {
        Self(self.0 | keys.0)
    }

    /// Those of the set that satisfy this.
    fn filter(self, holds: impl Fn(&str) -> bool) -> Self {
        let held = KEYS.iter().rev().fold(0, |held, key| held << 1 | u16::from(holds(key)));
        Self(self.0 & held)
    }
}

/// Looks for keys, however they are spelled and in whatever case, in a text that comes in parts.
#[derive(Clone, Copy, Debug, Default)]
pub struct KeyFinder {
    /// The keys that the string which goes on may still be. Without any, the next quote is looked for.
    open: KnownKeys,
    /// How many letters of them are there.
    letters: u8,
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
    /// Within a character of several bytes, of which this many are to come: what has come makes this number.
    Bytes(u8, u32),
}

/// The letter that a character is, as the widest reader without regard to case takes it; that of others is of no key.
fn letter(character: char) -> Option<u8> {
    match character {
        '\u{17f}' => Some(b's'),
        '\u{212a}' => Some(b'k'),
        '\u{130}' | '\u{131}' => Some(b'i'),
        other => u8::try_from(other).ok().map(|byte| byte.to_ascii_lowercase()),
    }
}

impl LetterPart {
    /// Takes a byte, and goes on with what has come of a letter, or breaks with the letter; with none where it is of no key.
    fn take(self, byte: u8) -> ControlFlow<Option<u8>, Self> {
        let digit = || char::from(byte).to_digit(16);
        let whole = |number| char::from_u32(number).and_then(letter);
        match (self, byte) {
            (Self::None, b'\\') => Continue(Self::Backslash),
            // The characters beyond ASCII that some reader takes for a letter of it begin so.
            (Self::None, 0xc4 | 0xc5) => Continue(Self::Bytes(1, u32::from(byte & 0x1f))),
            (Self::None, 0xe2) => Continue(Self::Bytes(2, u32::from(byte & 0xf))),
            (Self::None, _) => Break(byte.is_ascii().then(|| byte.to_ascii_lowercase())),
            (Self::Backslash, b'u') => Continue(Self::Escape(0, 0)),
            (Self::Escape(count @ 0..3, number), _) => {
                digit().map_or(Break(None), |digit| Continue(Self::Escape(count + 1, number * 16 + digit)))
            }
            (Self::Escape(_, number), _) => Break(digit().and_then(|digit| whole(number * 16 + digit))),
            (Self::Bytes(left, number), 0x80..0xc0) => {
                let number = number << 6 | u32::from(byte & 0x3f);
                if left > 1 { Continue(Self::Bytes(left - 1, number)) } else { Break(whole(number)) }
            }
            (Self::Backslash | Self::Bytes(..), _) => Break(None),
        }
    }
}

impl KeyFinder {
    /// Takes a part of the text. Gives the keys that have come to their end in it.
    pub fn feed(&mut self, text: &[u8]) -> KnownKeys {
        let (mut at, mut found, by_letter) = (0, KnownKeys::default(), &*KEYS_BY_LETTER);
        while let Some(byte) = text.get(at) {
            if self.open == KnownKeys::default() {
                // Most of a text is none of them.
                let Some(quote) = memchr::memchr(b'"', text.get(at..).unwrap_or_default()) else { return found };
                at += quote + 1;
                *self = Self { open: KnownKeys::ALL, ..Self::default() };
                continue;
            }
            at += 1;
            if *byte == b'"' {
                if self.part == LetterPart::None && self.letters > 0 {
                    found = found.and(self.open.filter(|key| key.len() == usize::from(self.letters)));
                }
                *self = Self { open: KnownKeys::ALL, ..Self::default() };
                continue;
            }
            match self.part.take(*byte) {
                Continue(part) => self.part = part,
                Break(letter) => {
                    let keys = by_letter.get(usize::from(self.letters)).zip(letter);
                    let keys = keys.and_then(|(keys, letter)| keys.get(usize::from(letter.wrapping_sub(b'a'))));
                    let open = KnownKeys(self.open.0 & keys.map_or(0, |keys| keys.0));
                    *self = Self { open, letters: self.letters + 1, part: LetterPart::None };
                }
            }
        }
        found
    }
}

/// The keys that stand in a text, also with escapes and in whatever case.
pub fn known_keys(text: &[u8]) -> KnownKeys {
    KeyFinder::default().feed(text)
}

/// Returns true where the key of a list stands in a text, also with escapes and in whatever case.
pub fn spells_list(text: &[u8]) -> bool {
    known_keys(text).any_of(KnownKeys::LISTS)
}

/// Returns true where a server may ask for something in a text, or tell of a task, however that is spelled.
pub fn spells_ask(text: &[u8]) -> bool {
    may_spell_ask(text) && known_keys(text).any_of(KnownKeys::ASKS)
}

/// Returns false where no string of a text begins as a key of [`KnownKeys::ASKS`] may: so for most answers, by two bytes of each string.
fn may_spell_ask(text: &[u8]) -> bool {
    let odd = |byte: u8| byte == b'\\' || !byte.is_ascii();
    memchr::memchr_iter(b'"', text).any(|quote| {
        let Some([first, second]) = text.get(quote + 1..quote + 3) else { return false };
        let second = if odd(*second) { None } else { Some(second | 0x20) };
        let begins = |letter| second.is_none_or(|second| second == letter);
        match first | 0x20 {
            b'm' => begins(b'e'),
            b'i' => begins(b'n'),
            b'e' => begins(b'l'),
            b't' => begins(b'a'),
            _ => odd(*first),
        }
    })
}

#[cfg(test)]
mod tests {
    use toolweir_engine::case::fold;

    use super::*;
    use crate::mcp::list_kind::ListKind;

    #[test]
    fn the_key_of_a_list_is_known_however_it_is_spelled() {
        for text in [
            "{\"TOOL\u{17f}\"",
            r#""tool\u017F""#,
            "\"tool\"tools\"",
            r#"{"tools":"#,
            r#"{"x":"","t\u006fol\u0073":"#,
            r#""\u0074\u006F\u006f\u006C\u0073""#,
            "\"ta\u{17f}\u{212a}s\"",
            r#""TAS\u212AS""#,
            r#""resourcetemplates""#,
            r#""\u0052esourceTemplates""#,
            "\"re\u{17f}ource\u{17f}\"",
            r#"{"Prompts":"#,
        ] {
            assert!(spells_list(text.as_bytes()), "{text}");
        }
        for text in [
            "",
            "\"",
            "\"\"",
            "\"tool",
            "\"tools",
            r#""tools ""#,
            r#""\u0074""#,
            r#"\"tools\""#,
            r#""\u0074\u006"#,
            "\"too\u{17f}ls\"",
            r#""resource""#,
            r#""resourcesTemplates""#,
            r#""resourceTemplate""#,
            r#""promptss""#,
            "\"ta\u{17f}\u{212b}s\"",
            r#""task\u0073\""#,
        ] {
            assert!(!spells_list(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn every_key_of_one_text_is_found_in_pieces_of_any_size() {
        let text = r#"{"tools":[{"name":"\u0074asks"}],"x":{"Prompts":"resources"},"resourceTemplate":1}"#.as_bytes();
        for piece in 1..=text.len() {
            let mut finder = KeyFinder::default();
            let found = text.chunks(piece).fold(KnownKeys::default(), |found, part| found.and(finder.feed(part)));
            assert_eq!(found, KnownKeys(0b1_0111), "{piece}");
        }
    }

    #[test]
    fn what_is_looked_for_are_the_lists_in_every_spelling_that_is_read_as_their_keys() {
        let lists = KnownKeys::ALL.filter(|key| ListKind::ALL.iter().any(|list| list.key() == key));
        assert_eq!((lists, ListKind::ALL.map(ListKind::key).len()), (KnownKeys::LISTS, lists.0.count_ones() as usize));
        for character in (0..=u32::from(char::MAX)).filter_map(char::from_u32).filter(|found| !matches!(found, '"' | '\\')) {
            let same = u8::try_from(fold(character)).ok().filter(u8::is_ascii_lowercase);
            assert_eq!(letter(character).filter(u8::is_ascii_lowercase), same, "{character:?}");
            let mut part = LetterPart::None;
            let taken = character.encode_utf8(&mut [0; 4]).bytes().find_map(|byte| match part.take(byte) {
                Continue(next) => {
                    part = next;
                    None
                }
                Break(letter) => Some(letter),
            });
            assert_eq!(taken.flatten().filter(u8::is_ascii_lowercase), same, "{character:?}");
        }
    }

    #[test]
    fn no_spelling_of_a_key_is_passed_over_by_its_beginning() {
        for key in KEYS.into_iter().filter(|key| KnownKeys::ALL.filter(|known| known == *key).any_of(KnownKeys::ASKS)) {
            let escaped: String = key.chars().map(|c| format!("\\u{:04x}", u32::from(c))).collect();
            let dotless = key.replace('i', "\u{131}").replace('k', "\u{212a}");
            for spelling in [
                key.to_owned(),
                key.to_uppercase(),
                escaped,
                dotless,
                format!("{}\\u{:04x}{}", &key[..1], u32::from(key.as_bytes()[1]), &key[2..]),
            ] {
                assert!(spells_ask(format!(r#"{{"x":1,"{spelling}":2}}"#).as_bytes()), "{spelling}");
            }
        }
        assert!(!may_spell_ask(br#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"x"}],"isError":false}}"#));
    }
}
