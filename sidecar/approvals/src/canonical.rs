//! The canonical form of a call's arguments (RFC 8785), and its digest.
//!
//! Two calls have one digest only if they say the same. So arguments are refused of which the canonical form would say something else
//! than their text: RFC 8785 knows no numbers but those of IEEE 754, and no strings but those of Unicode.
//!
//! One pass reads the text and writes its canonical form but for the order of members, and remembers the members of each object that has
//! them in another order. A second pass goes through these. Both take time in proportion to the text, but for sorting.

use std::{cmp::Ordering, ops::Range};

use data_encoding::HEXLOWER;
use ring::digest::{Context, SHA256};
use toolweir_engine::json::{JsonKind, Raw, Reader};
use toolweir_pins::write_string;

use crate::{
    inexact::{Inexact, NotExact},
    number::write_number,
};

/// Returns the SHA-256 of a call's arguments in their canonical form, as 64 lower case hexadecimal digits. Of a call without arguments, that
/// of no bytes.
///
/// # Errors
/// The arguments have no exact canonical form.
pub fn arguments_sha256(arguments: Option<Raw<'_>>) -> Result<String, NotExact> {
    let mut context = Context::new(&SHA256);
    if let Some(arguments) = arguments {
        Canonical::of(arguments)?.write(&mut |piece| context.update(piece.as_bytes()));
    }
    Ok(HEXLOWER.encode(context.finish().as_ref()))
}

/// Returns the canonical form of a value.
///
/// # Errors
/// It has no exact one.
pub fn canonical_json(value: Raw<'_>) -> Result<String, NotExact> {
    let canonical = Canonical::of(value)?;
    let mut out = String::with_capacity(canonical.text.len());
    canonical.write(&mut |piece| out.push_str(piece));
    Ok(out)
}

/// A value in its canonical form, but for the order of some members.
#[derive(Default)]
struct Canonical {
    text: String,
    /// In the order in which they begin: those whose members stand in another order than they should, and some without members.
    objects: Vec<Object>,
}

/// An object whose members stand in another order than they should; without members: one that stands as it should.
#[derive(Default)]
struct Object {
    text: Range<usize>,
    /// In the order in which they should stand.
    members: Vec<Member>,
    /// The index of the next object that is not in this one.
    next: usize,
}

/// A member: its text, and the objects in it.
struct Member {
    text: Range<usize>,
    objects: Range<usize>,
}

impl Canonical {
    fn of(value: Raw<'_>) -> Result<Self, NotExact> {
        let mut canonical = Self::default();
        canonical.text.reserve(value.as_str().len());
        canonical.value(&mut value.reader())?;
        Ok(canonical)
    }

    fn value(&mut self, reader: &mut Reader<'_>) -> Result<(), NotExact> {
        match reader.peek()? {
            JsonKind::Object => self.object(reader)?,
            JsonKind::Array => self.array(reader)?,
            JsonKind::String => write_string(&reader.value()?.string()?.unwrap_or_default(), &mut self.text),
            JsonKind::Number => write_number(reader.value()?.as_str(), &mut self.text)?,
            JsonKind::Bool | JsonKind::Null => self.text.push_str(reader.value()?.as_str()),
        }
        Ok(())
    }

    fn array(&mut self, reader: &mut Reader<'_>) -> Result<(), NotExact> {
        self.text.push('[');
        let mut items = 0_usize;
        reader.array(|reader| {
            if items > 0 {
                self.text.push(',');
            }
            self.value(reader).map_err(|error| error.within(&format!("[{items}]")))?;
            items += 1;
            Ok::<(), NotExact>(())
        })?;
        self.text.push(']');
        Ok(())
    }

    fn object(&mut self, reader: &mut Reader<'_>) -> Result<(), NotExact> {
        let (start, index) = (self.text.len(), self.objects.len());
        self.objects.push(Object::default());
        self.text.push('{');
        let mut members = Vec::new();
        reader.object(|reader, key| {
            let key = key.string()?.unwrap_or_default();
            if !members.is_empty() {
                self.text.push(',');
            }
            let (text, objects) = (self.text.len(), self.objects.len());
            write_string(&key, &mut self.text);
            self.text.push(':');
            self.value(reader).map_err(|error| error.in_member(&key))?;
            members.push((key, Member { text: text..self.text.len(), objects: objects..self.objects.len() }));
            Ok::<(), NotExact>(())
        })?;
        self.text.push('}');
        if members.is_sorted_by(|(one, _), (other, _)| order(one, other).is_lt()) {
            if self.objects.len() == index + 1 {
                self.objects.pop();
            }
            return Ok(());
        }
        members.sort_unstable_by(|(one, _), (other, _)| order(one, other));
        let twice = members.windows(2).find_map(|pair| match pair {
            [(one, _), (other, _)] if one == other => Some(one),
            _ => None,
        });
        if let Some(key) = twice {
            return Err(NotExact::from(Inexact::Repeated).in_member(key));
        }
        let (next, text) = (self.objects.len(), start..self.text.len());
        if let Some(object) = self.objects.get_mut(index) {
            *object = Object { text, members: members.into_iter().map(|(_, member)| member).collect(), next };
        }
        Ok(())
    }

    fn write(&self, out: &mut impl FnMut(&str)) {
        self.write_part(&(0..self.text.len()), &(0..self.objects.len()), out);
    }

    /// Writes a part of the text, in which these objects are.
    fn write_part(&self, text: &Range<usize>, objects: &Range<usize>, out: &mut impl FnMut(&str)) {
        let (mut at, mut index) = (text.start, objects.start);
        while let Some(object) = self.objects.get(index).filter(|_| index < objects.end) {
            if object.members.is_empty() {
                index += 1;
                continue;
            }
            out(self.text.get(at..object.text.start).unwrap_or_default());
            for (nth, member) in object.members.iter().enumerate() {
                out(if nth > 0 { "," } else { "{" });
                self.write_part(&member.text, &member.objects, out);
            }
            out("}");
            (at, index) = (object.text.end, object.next);
        }
        out(self.text.get(at..text.end).unwrap_or_default());
    }
}

/// The order of RFC 8785: by the code units of UTF-16.
///
/// That is the order of the bytes of UTF-8, but for U+E000 to U+FFFF, which begin with 0xEE or 0xEF and stand after all that take a
/// surrogate pair, which begin with 0xF0 or more. No other byte of a character is one of these.
fn order(one: &str, other: &str) -> Ordering {
    let rank = |byte: u8| if matches!(byte, 0xee | 0xef) { byte | 0x10 } else { byte };
    one.bytes().map(rank).cmp(other.bytes().map(rank))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn members_stand_in_the_order_of_utf_16(one in keys(), other in keys()) {
            prop_assert_eq!(order(&one, &other), one.encode_utf16().cmp(other.encode_utf16()));
        }
    }

    fn keys() -> impl Strategy<Value = String> {
        proptest::collection::vec(
            prop_oneof![
                Just('a'),
                Just('é'),
                proptest::char::range('\u{d000}', '\u{ffff}'),
                proptest::char::range('\u{10000}', '\u{10ffff}')
            ],
            0..4,
        )
        .prop_map(|chars| chars.into_iter().collect())
    }
}
