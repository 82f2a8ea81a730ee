//! Values as texts for a person who decides on a call.

use cel::common::{
    types::{CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelUInt},
    value::Val,
};
use toolweir_crds::text::push_exact;

use super::{
    error::EvalError,
    work::{self, units},
};

/// Writes a value: a text as it is, any other value as JSON with the keys of objects in order. Of either, characters that cannot be seen or
/// change the direction of text are escaped. At most `most` bytes; returns true beside it where the value goes on.
///
/// # Errors
/// The value has no such form, or the budget is spent.
pub fn write_shown(value: &dyn Val, most: usize) -> Result<(String, bool), EvalError> {
    let mut shown = ShownText { text: String::new(), most, cut: false };
    work::charge(100)?;
    match value.downcast_ref::<CelString>() {
        Some(text) => shown.all(text.inner())?,
        None => shown.json(value)?,
    }
    Ok((shown.text, shown.cut))
}

/// Returns a text in the same form, as far as `most` bytes go, and true where it goes on.
pub fn shown_text(text: &str, most: usize) -> (String, bool) {
    let mut shown = ShownText { text: String::new(), most, cut: false };
    text.chars().take(most + 1).for_each(|c| shown.push(c));
    (shown.text, shown.cut)
}

/// A text that is written up to a bound.
struct ShownText {
    text: String,
    most: usize,
    /// True once something had no room; nothing is added then.
    cut: bool,
}

impl ShownText {
    /// Adds a piece as a whole or not at all.
    fn add(&mut self, piece: &str) {
        if self.cut || self.text.len() + piece.len() > self.most {
            self.cut = true;
        } else {
            self.text.push_str(piece);
        }
    }

    fn push(&mut self, c: char) {
        if self.cut {
            return;
        }
        let before = self.text.len();
        push_exact(&mut self.text, c);
        if self.text.len() > self.most {
            self.text.truncate(before);
            self.cut = true;
        }
    }

    /// Adds a text, of which no more is read than there is room for.
    fn all(&mut self, text: &str) -> Result<(), EvalError> {
        work::charge(32 * units(text.len().min(self.most)))?;
        text.chars().take(self.most + 1).for_each(|c| self.push(c));
        Ok(())
    }

    fn quoted(&mut self, text: &str) -> Result<(), EvalError> {
        work::charge(32 * units(text.len().min(self.most)))?;
        self.add("\"");
        for c in text.chars().take(self.most + 1) {
            match c {
                '"' => self.add("\\\""),
                '\\' => self.add("\\\\"),
                c => self.push(c),
            }
        }
        self.add("\"");
        Ok(())
    }

    fn json(&mut self, value: &dyn Val) -> Result<(), EvalError> {
        if self.cut {
            return Ok(());
        }
        work::charge(100)?;
        if let Some(inner) = value.downcast_ref::<CelString>() {
            self.quoted(inner.inner())?;
        } else if let Some(inner) = value.downcast_ref::<CelInt>() {
            self.add(&inner.inner().to_string());
        } else if let Some(inner) = value.downcast_ref::<CelUInt>() {
            self.add(&inner.inner().to_string());
        } else if let Some(inner) = value.downcast_ref::<CelDouble>() {
            // With its fraction or exponent: 1.0, 1e21.
            self.add(&format!("{:?}", inner.inner()));
        } else if let Some(inner) = value.downcast_ref::<CelBool>() {
            self.add(&inner.inner().to_string());
        } else if value.downcast_ref::<CelNull>().is_some() {
            self.add("null");
        } else if let Some(list) = value.downcast_ref::<CelList>() {
            self.list(list)?;
        } else if let Some(map) = value.downcast_ref::<CelMap>() {
            self.map(map)?;
        } else {
            return Err(EvalError::Failed(format!("is of type {}, which cannot be shown", value.get_type().name())));
        }
        Ok(())
    }

    fn list(&mut self, list: &CelList<'_>) -> Result<(), EvalError> {
        self.add("[");
        for (at, item) in list.inner().iter().enumerate() {
            if at > 0 {
                self.add(",");
            }
            if self.cut {
                return Ok(());
            }
            self.json(item.as_ref())?;
        }
        self.add("]");
        Ok(())
    }

    fn map(&mut self, map: &CelMap<'_>) -> Result<(), EvalError> {
        let mut members: Vec<(&CelMapKey<'_>, _)> = Vec::new();
        for (key, value) in map.inner() {
            let len = if let CelMapKey::String(text) = key { text.inner().len() } else { 0 };
            work::charge(200 + 2 * units(len))?;
            members.push((key, value));
        }
        members.sort_by_key(|(key, _)| *key);
        self.add("{");
        for (at, (key, value)) in members.into_iter().enumerate() {
            if at > 0 {
                self.add(",");
            }
            if self.cut {
                return Ok(());
            }
            match key {
                CelMapKey::String(text) => self.quoted(text.inner())?,
                CelMapKey::Int(number) => self.quoted(&number.inner().to_string())?,
                CelMapKey::UInt(number) => self.quoted(&number.inner().to_string())?,
                CelMapKey::Bool(truth) => self.quoted(&truth.inner().to_string())?,
            }
            self.add(":");
            self.json(value.as_ref())?;
        }
        self.add("}");
        Ok(())
    }
}
