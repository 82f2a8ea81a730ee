//! Estimates how much memory a JSON text takes as a tree before there is one. Three bytes of `[{}` may become hundreds.

use serde_json::Value;
use toolweir_engine::json::{JsonError, JsonKind, Reader};

/// The least bytes of an allocation.
const LEAST: usize = 32;
/// A node of a map, which every object that is not empty has; it holds eleven fields.
const NODE: usize = 640;
/// The fields that a node holds.
const FIELDS: usize = 11;
/// A field more than that. Nodes of a map that grew in order are half full, and others lead to them.
const FIELD: usize = 144;
/// An item of a list, in one that has just doubled its room.
const ITEM: usize = 2 * size_of::<Value>();

/// The reasons why a text has no weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unweighed {
    /// The text is no JSON that can be read.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// The tree would be larger than allowed.
    #[error("would take more than {} MiB to read", .0 / 1024 / 1024)]
    TooHeavy(usize),
}

/// Adds up the weight of texts.
#[derive(Clone, Copy, Debug)]
pub struct Scales {
    weight: usize,
    most: usize,
}

impl Scales {
    /// Creates scales for trees of at most `most` bytes.
    pub fn new(most: usize) -> Self {
        Self { weight: 0, most }
    }

    /// Returns the weight so far, in bytes.
    pub fn weight(&self) -> usize {
        self.weight
    }

    /// Weighs the next value of a reader.
    ///
    /// # Errors
    /// The value is no JSON, or too heavy together with what was weighed before.
    pub fn add(&mut self, reader: &mut Reader<'_>) -> Result<(), Unweighed> {
        match reader.peek()? {
            JsonKind::Object => {
                let mut fields = 0;
                reader.object(|reader, key| {
                    fields += 1;
                    self.field(fields, key.as_str().len())?;
                    self.add(reader)
                })
            }
            JsonKind::Array => {
                let mut items = 0;
                reader.array(|reader| {
                    items += 1;
                    self.put(if items == 1 { 4 * ITEM } else { ITEM })?;
                    self.add(reader)
                })
            }
            JsonKind::String => {
                let length = reader.value()?.as_str().len();
                self.put(text(length))
            }
            JsonKind::Number | JsonKind::Bool | JsonKind::Null => Ok(reader.value().map(drop)?),
        }
    }

    /// Weighs the `n`th field of an object, without its value.
    ///
    /// # Errors
    /// The tree is too heavy together with what was weighed before.
    pub fn field(&mut self, n: usize, key: usize) -> Result<(), Unweighed> {
        let place = match n {
            1 => NODE,
            n if n <= FIELDS => 0,
            _ => FIELD,
        };
        self.put(place + text(key))
    }

    /// Adds bytes.
    ///
    /// # Errors
    /// The tree is too heavy together with what was weighed before.
    pub fn put(&mut self, bytes: usize) -> Result<(), Unweighed> {
        self.weight = self.weight.saturating_add(bytes);
        if self.weight > self.most { Err(Unweighed::TooHeavy(self.most)) } else { Ok(()) }
    }
}

/// A string, with its quotes.
fn text(quoted: usize) -> usize {
    if quoted <= 2 { 0 } else { (quoted + 8).next_multiple_of(16).max(LEAST) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weigh(text: &str, most: usize) -> Result<usize, Unweighed> {
        let mut scales = Scales::new(most);
        let mut reader = Reader::new(text.as_bytes())?;
        scales.add(&mut reader)?;
        reader.finish()?;
        Ok(scales.weight())
    }

    #[test]
    fn what_is_small_as_text_and_large_as_a_tree_is_heavy() {
        const MIB: usize = 1024 * 1024;
        for (text, least) in [
            (format!("[{}0]", "0,".repeat(MIB)), 32 * MIB),
            (format!("[{}0]", "{\"\":0},".repeat(MIB / 8)), 80 * MIB),
            (format!("[{}0]", "[0],".repeat(MIB / 4)), 32 * MIB),
            (format!("{{{}}}", (0..100_000).map(|n| format!("\"{n}\":0")).collect::<Vec<_>>().join(",")), 10 * MIB),
        ] {
            assert!(weigh(&text, usize::MAX).unwrap() >= least, "{}", &text[..20]);
            assert_eq!(weigh(&text, 4 * MIB), Err(Unweighed::TooHeavy(4 * MIB)));
        }
    }

    #[test]
    fn what_is_long_as_text_is_not_heavier_than_it_is_long() {
        let text = format!("{{\"a\": \"{}\"}}", "x".repeat(3 * 1024 * 1024));
        assert!(weigh(&text, usize::MAX).unwrap() < text.len() + 1024);
        assert_eq!(weigh("[{}, [], \"\", 0, null, true]", usize::MAX).unwrap(), 9 * ITEM);
    }

    #[test]
    fn what_is_no_json_has_no_weight() {
        for text in ["", "[", "[1 2]", "{\"a\"}", &format!("{}{}", "[".repeat(200), "]".repeat(200))] {
            assert!(matches!(weigh(text, usize::MAX), Err(Unweighed::Json(_))), "{text:.20}");
        }
    }
}
