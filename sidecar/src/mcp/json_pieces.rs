//! JSON texts in pieces of any size: which bytes are of strings, read without a strict parser.

use memchr::memchr2;
use toolweir_engine::json::{JsonError, Raw, Reader};

/// Takes the parts of a JSON text in the order in which they stand.
pub trait JsonParts {
    /// Takes a part of a string behind its opening quote, as it is written. The last part is the closing quote.
    fn string(&mut self, part: &[u8]);

    /// Takes the end of a string, after its closing quote.
    fn end_of_string(&mut self);

    /// Takes a byte outside of strings, or the opening quote of one. Returns false where nothing of the text is of interest
    /// any more.
    fn outside(&mut self, byte: u8) -> bool;
}

/// The state between two pieces of a JSON text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum JsonLexer {
    /// Outside of strings.
    #[default]
    Outside,
    /// In a string.
    Inside,
    /// In a string, behind a backslash.
    Escaped,
}

impl JsonLexer {
    /// Hands a piece of the text to `parts`.
    pub fn push(&mut self, mut piece: &[u8], parts: &mut impl JsonParts) {
        while let Some((&byte, rest)) = piece.split_first() {
            match self {
                Self::Inside => {
                    let plain = memchr2(b'"', b'\\', piece).unwrap_or(piece.len());
                    let (text, rest) = piece.split_at(plain);
                    parts.string(text);
                    let Some((&end, rest)) = rest.split_first() else { return };
                    parts.string(&[end]);
                    piece = rest;
                    *self = if end == b'"' { Self::Outside } else { Self::Escaped };
                    if end == b'"' {
                        parts.end_of_string();
                    }
                }
                Self::Escaped => {
                    parts.string(&[byte]);
                    *self = Self::Inside;
                    piece = rest;
                }
                Self::Outside => {
                    piece = rest;
                    if byte == b'"' {
                        *self = Self::Inside;
                    }
                    if !parts.outside(byte) {
                        return;
                    }
                }
            }
        }
    }
}

/// The one value that a text holds.
///
/// # Errors
/// The text is no value, or more than one.
pub fn single_value(text: &[u8]) -> Result<Raw<'_>, JsonError> {
    let mut reader = Reader::new(text)?;
    let value = reader.value()?;
    reader.finish()?;
    Ok(value)
}
