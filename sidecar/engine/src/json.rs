//! Reads JSON in one strict pass, without building a tree of it.
//!
//! [`Reader`] checks the whole text (RFC 8259, UTF-8, no byte-order mark, a depth limit) while it hands out the
//! members that the caller asks for as the bytes that stand there. What is decided on is therefore exactly what is
//! forwarded. Nothing is allocated but for strings with escapes.

use std::borrow::Cow;

pub use crate::case::same_but_for_case;

/// The depth to which arrays and objects may nest.
pub const MAX_DEPTH: u32 = 128;

/// The reason why a text is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Not UTF-8.
    #[error("is not UTF-8 (byte {0})")]
    Utf8(usize),
    /// A byte-order mark.
    #[error("starts with a byte-order mark")]
    ByteOrderMark,
    /// Not JSON.
    #[error("is not JSON (byte {0})")]
    Syntax(usize),
    /// More than one value.
    #[error("goes on after its JSON value (byte {0})")]
    Trailing(usize),
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("nests deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// A string with half of a surrogate pair, which parsers read differently.
    #[error("has a string with half of a surrogate pair (byte {0})")]
    LoneSurrogate(usize),
}

/// The kind of a value, which its first byte gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JsonKind {
    /// `{`
    Object,
    /// `[`
    Array,
    /// `"`
    String,
    /// A number.
    Number,
    /// `true` or `false`.
    Bool,
    /// `null`
    Null,
}

/// A value as it stands in the text, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raw<'a> {
    text: &'a str,
    /// The byte at which it starts in the text that was read.
    pub start: usize,
}

impl<'a> Raw<'a> {
    /// Returns the JSON text.
    pub fn as_str(self) -> &'a str {
        self.text
    }

    /// Returns the byte after its end in the text that was read.
    pub fn end(self) -> usize {
        self.start + self.text.len()
    }

    /// Returns its kind.
    pub fn kind(self) -> JsonKind {
        match self.text.as_bytes().first() {
            Some(b'{') => JsonKind::Object,
            Some(b'[') => JsonKind::Array,
            Some(b'"') => JsonKind::String,
            Some(b't' | b'f') => JsonKind::Bool,
            Some(b'n') => JsonKind::Null,
            _ => JsonKind::Number,
        }
    }

    /// Returns the text of a string; `None` for other kinds.
    ///
    /// # Errors
    /// A lone surrogate, which parsers read differently.
    pub fn string(self) -> Result<Option<Cow<'a, str>>, JsonError> {
        let Some(inner) = self.text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) else { return Ok(None) };
        unescape(inner).map(Some).ok_or(JsonError::LoneSurrogate(self.start))
    }

    /// Returns a reader of this value alone. Its places count from the start of the value.
    pub fn reader(self) -> Reader<'a> {
        Reader { text: self.text, at: 0, depth: 0 }
    }
}

/// A cursor over a text.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    text: &'a str,
    at: usize,
    depth: u32,
}

impl<'a> Reader<'a> {
    /// Starts at the beginning of a text.
    ///
    /// # Errors
    /// The text is not UTF-8 or starts with a byte-order mark.
    pub fn new(bytes: &'a [u8]) -> Result<Self, JsonError> {
        let text = std::str::from_utf8(bytes).map_err(|error| JsonError::Utf8(error.valid_up_to()))?;
        if text.starts_with('\u{feff}') {
            return Err(JsonError::ByteOrderMark);
        }
        Ok(Self { text, at: 0, depth: 0 })
    }

    /// Returns its position in the text, in bytes.
    pub fn place(&self) -> usize {
        self.at
    }

    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while matches!(self.byte(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn expect(&mut self, byte: u8) -> Result<(), JsonError> {
        if self.byte() == Some(byte) {
            self.at += 1;
            return Ok(());
        }
        Err(JsonError::Syntax(self.at))
    }

    /// Returns the kind of the next value.
    ///
    /// # Errors
    /// No value can begin here.
    pub fn peek(&mut self) -> Result<JsonKind, JsonError> {
        self.skip_space();
        match self.byte() {
            Some(b'{') => Ok(JsonKind::Object),
            Some(b'[') => Ok(JsonKind::Array),
            Some(b'"') => Ok(JsonKind::String),
            Some(b't' | b'f') => Ok(JsonKind::Bool),
            Some(b'n') => Ok(JsonKind::Null),
            Some(b'-' | b'0'..=b'9') => Ok(JsonKind::Number),
            _ => Err(JsonError::Syntax(self.at)),
        }
    }

    /// Reads the end of the text.
    ///
    /// # Errors
    /// Something else follows.
    pub fn finish(mut self) -> Result<(), JsonError> {
        self.skip_space();
        if self.at == self.text.len() { Ok(()) } else { Err(JsonError::Trailing(self.at)) }
    }

    /// Reads any value.
    ///
    /// # Errors
    /// The text that follows is not a value, or nests too deep.
    pub fn value(&mut self) -> Result<Raw<'a>, JsonError> {
        self.skip_space();
        let start = self.at;
        self.skip()?;
        Ok(self.raw(start))
    }

    fn raw(&self, start: usize) -> Raw<'a> {
        Raw { text: self.text.get(start..self.at).unwrap_or_default(), start }
    }

    /// Reads an object: `member` gets each key and must read its value.
    ///
    /// # Errors
    /// The text that follows is not an object, or `member` fails.
    pub fn object<E: From<JsonError>>(&mut self, mut member: impl FnMut(&mut Self, Raw<'a>) -> Result<(), E>) -> Result<(), E> {
        self.open(b'{')?;
        self.skip_space();
        if self.byte() == Some(b'}') {
            self.at += 1;
        } else {
            loop {
                self.skip_space();
                let start = self.at;
                self.string()?;
                let key = self.raw(start);
                self.skip_space();
                self.expect(b':')?;
                member(self, key)?;
                self.skip_space();
                if self.byte() == Some(b'}') {
                    self.at += 1;
                    break;
                }
                self.expect(b',')?;
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// Reads an array: `item` must read each value.
    ///
    /// # Errors
    /// The text that follows is not an array, or `item` fails.
    pub fn array<E: From<JsonError>>(&mut self, mut item: impl FnMut(&mut Self) -> Result<(), E>) -> Result<(), E> {
        self.open(b'[')?;
        self.skip_space();
        if self.byte() == Some(b']') {
            self.at += 1;
        } else {
            loop {
                item(self)?;
                self.skip_space();
                if self.byte() == Some(b']') {
                    self.at += 1;
                    break;
                }
                self.expect(b',')?;
            }
        }
        self.depth -= 1;
        Ok(())
    }

    fn open(&mut self, byte: u8) -> Result<(), JsonError> {
        self.skip_space();
        self.expect(byte)?;
        if self.depth >= MAX_DEPTH {
            return Err(JsonError::TooDeep);
        }
        self.depth += 1;
        Ok(())
    }

    /// Passes over a value without recursion: bit `n` of `objects` says whether level `n` is an object.
    fn skip(&mut self) -> Result<(), JsonError> {
        let mut objects: u128 = 0;
        let mut level: u32 = 0;
        loop {
            // A value.
            self.skip_space();
            match self.byte() {
                Some(open @ (b'{' | b'[')) => {
                    if self.depth + level >= MAX_DEPTH {
                        return Err(JsonError::TooDeep);
                    }
                    self.at += 1;
                    self.skip_space();
                    let close = if open == b'{' { b'}' } else { b']' };
                    if self.byte() == Some(close) {
                        self.at += 1;
                    } else {
                        objects = objects << 1 | u128::from(open == b'{');
                        level += 1;
                        if open == b'{' {
                            self.key()?;
                        }
                        continue;
                    }
                }
                Some(b'"') => self.string()?,
                Some(b'-' | b'0'..=b'9') => self.number()?,
                Some(b't') => self.literal("true")?,
                Some(b'f') => self.literal("false")?,
                Some(b'n') => self.literal("null")?,
                _ => return Err(JsonError::Syntax(self.at)),
            }
            // What follows a value.
            loop {
                if level == 0 {
                    return Ok(());
                }
                self.skip_space();
                let in_object = objects & 1 == 1;
                match self.byte() {
                    Some(b',') => {
                        self.at += 1;
                        if in_object {
                            self.skip_space();
                            self.key()?;
                        }
                        break;
                    }
                    Some(b'}') if in_object => self.at += 1,
                    Some(b']') if !in_object => self.at += 1,
                    _ => return Err(JsonError::Syntax(self.at)),
                }
                objects >>= 1;
                level -= 1;
            }
        }
    }

    fn key(&mut self) -> Result<(), JsonError> {
        self.string()?;
        self.skip_space();
        self.expect(b':')
    }

    fn string(&mut self) -> Result<(), JsonError> {
        self.expect(b'"')?;
        let bytes = self.text.as_bytes();
        loop {
            let rest = bytes.get(self.at..).unwrap_or_default();
            self.at += plain(rest);
            match self.byte() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => match bytes.get(self.at + 1) {
                    Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 2,
                    Some(b'u') => {
                        let hex = bytes.get(self.at + 2..self.at + 6).unwrap_or_default();
                        if hex.len() < 4 || !hex.iter().all(u8::is_ascii_hexdigit) {
                            return Err(JsonError::Syntax(self.at));
                        }
                        self.at += 6;
                    }
                    _ => return Err(JsonError::Syntax(self.at)),
                },
                // A control character, or the end of the text.
                _ => return Err(JsonError::Syntax(self.at)),
            }
        }
    }

    fn literal(&mut self, word: &str) -> Result<(), JsonError> {
        if self.text.as_bytes().get(self.at..).is_some_and(|rest| rest.starts_with(word.as_bytes())) {
            self.at += word.len();
            return Ok(());
        }
        Err(JsonError::Syntax(self.at))
    }

    fn number(&mut self) -> Result<(), JsonError> {
        if self.byte() == Some(b'-') {
            self.at += 1;
        }
        match self.byte() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits()?,
            _ => return Err(JsonError::Syntax(self.at)),
        }
        if self.byte() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.byte(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.byte(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        while matches!(self.byte(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at == start { Err(JsonError::Syntax(start)) } else { Ok(()) }
    }
}

/// Returns the number of bytes before the next quote, backslash or control character. Examines eight at a time.
fn plain(bytes: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    let (words, _) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let zero_in = |x: u64| x.wrapping_sub(ONES) & !x & HIGHS;
        // Below 0x20: subtracting borrows into the high bit of a byte that had none.
        let control = word.wrapping_sub(ONES * 0x20) & !word & HIGHS;
        let hit = zero_in(word ^ (ONES * u64::from(b'"'))) | zero_in(word ^ (ONES * u64::from(b'\\'))) | control;
        if hit != 0 {
            // A borrow can mark a byte after the first hit, never one before it.
            return index * 8 + hit.trailing_zeros() as usize / 8;
        }
    }
    let done = words.len() * 8;
    let tail = bytes.get(done..).unwrap_or_default();
    done + tail.iter().position(|b| matches!(b, b'"' | b'\\' | 0..=0x1f)).unwrap_or(tail.len())
}

/// Returns the text that the inside of a checked string spells; `None` if it has half of a surrogate pair.
fn unescape(inner: &str) -> Option<Cow<'_, str>> {
    if !inner.contains('\\') {
        return Some(Cow::Borrowed(inner));
    }
    let mut text = String::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        text.push_str(before);
        let unit = |from: usize| escape.get(from..from + 4).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        let (char, len) = match escape.as_bytes().get(1)? {
            b'b' => ('\u{8}', 2),
            b'f' => ('\u{c}', 2),
            b'n' => ('\n', 2),
            b'r' => ('\r', 2),
            b't' => ('\t', 2),
            b'u' => match unit(2)? {
                high @ 0xd800..0xdc00 => {
                    let low = (escape.get(6..8)? == "\\u").then(|| unit(8)).flatten()?;
                    let low = (0xdc00..0xe000).contains(&low).then_some(low)?;
                    (char::from_u32(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00))?, 12)
                }
                code => (char::from_u32(code)?, 6),
            },
            plain => (char::from(*plain), 2),
        };
        text.push(char);
        rest = escape.get(len..)?;
    }
    text.push_str(rest);
    Some(Cow::Owned(text))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn accept(text: &[u8]) -> Result<(), JsonError> {
        let mut reader = Reader::new(text)?;
        reader.value()?;
        reader.finish()
    }

    #[test]
    fn accepts_json_and_nothing_else() {
        for good in [
            "null",
            " true ",
            "-0.5e+10",
            "\"\\u00e9\\n\"",
            "[]",
            "{}",
            "[1,[2,{\"a\":[]}]]",
            "{\"a\":{},\"b\":[{}]}",
            "\"01234567890123456789\\\"end\"",
            "[\"\u{1f600}\"]",
        ] {
            assert_eq!(accept(good.as_bytes()), Ok(()), "{good}");
        }
        for bad in [
            "",
            " ",
            "nul",
            "01",
            "1.",
            ".5",
            "+1",
            "1e",
            "\"",
            "\"\\x\"",
            "\"\\u12g4\"",
            "\"\n\"",
            "[1,]",
            "[,1]",
            "{\"a\"}",
            "{\"a\":1,}",
            "{a:1}",
            "[1}",
            "{\"a\":1]",
            "1 2",
            "NaN",
            "Infinity",
            "'a'",
            "\u{feff}1",
            "[1 2]",
            "\"\u{1}\"",
            "/**/1",
            "{\"a\" 1}",
            "\"abcdefg\u{7}hij\"",
        ] {
            assert!(accept(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(accept(b"\"\xff\""), Err(JsonError::Utf8(1)));
    }

    #[test]
    fn depth_is_limited_wherever_it_is_reached() {
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert_eq!(accept(nested(128).as_bytes()), Ok(()));
        assert_eq!(accept(nested(129).as_bytes()), Err(JsonError::TooDeep));
        let text = format!("{{\"a\":{}}}", nested(128));
        let mut reader = Reader::new(text.as_bytes()).unwrap();
        let read = reader.object(|reader, _| reader.value().map(drop));
        assert_eq!(read, Err(JsonError::TooDeep));
    }

    #[test]
    fn strings_are_unescaped_and_lone_surrogates_refused() {
        let string = |text: &'static str| Reader::new(text.as_bytes()).unwrap().value().unwrap().string();
        assert_eq!(string(r#""n\u0061me""#).unwrap().unwrap(), "name");
        assert_eq!(string(r#""\ud83d\ude00\/\\""#).unwrap().unwrap(), "\u{1f600}/\\");
        assert_eq!(string("7").unwrap(), None);
        for lone in [r#""\ud83d""#, r#""\ude00""#, r#""\ud83dx""#, r#""\ud83d\u0041""#] {
            assert!(string(lone).is_err(), "{lone}");
        }
    }

    proptest! {
        #[test]
        fn plain_stops_at_the_first_special_byte(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let naive = bytes.iter().position(|b| matches!(b, b'"' | b'\\' | 0..=0x1f)).unwrap_or(bytes.len());
            prop_assert_eq!(plain(&bytes), naive);
        }

        /// Agrees with serde_json on what is JSON, but for what this refuses on purpose.
        #[test]
        fn accepts_what_serde_json_accepts(text in "[\\[\\]{}:,\"\\\\ua0-9.eE+ tfnrlsd-]{0,24}") {
            let theirs = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            prop_assert_eq!(accept(text.as_bytes()).is_ok(), theirs, "{}", text);
        }
    }
}
