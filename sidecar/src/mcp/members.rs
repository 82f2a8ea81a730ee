//! Members of JSON objects as clients of every kind may find them: in any case, and more than once.

use toolweir_engine::json::{JsonError, Raw, same_but_for_case};

/// A member of which clients may find several.
#[derive(Clone, Copy, Default)]
pub enum Member<T> {
    #[default]
    /// The member is not there.
    None,
    /// The member is there once.
    One(T),
    /// The member is there more than once, so that clients may read different ones.
    Several,
}

impl<T> Member<T> {
    /// Takes one that stands there.
    pub fn add(&mut self, value: T) {
        *self = if matches!(self, Self::None) { Self::One(value) } else { Self::Several };
    }

    /// The only one.
    pub fn one(self) -> Option<T> {
        if let Self::One(value) = self { Some(value) } else { None }
    }
}

/// Returns true where a key is this one, in whatever case.
///
/// # Errors
/// The key has half of a surrogate pair.
pub fn is_key(key: Raw<'_>, name: &str) -> Result<bool, JsonError> {
    let text = key.as_str().as_bytes();
    // Most keys are plain.
    if let [b'"', plain @ .., b'"'] = text
        && plain.iter().all(|byte| byte.is_ascii() && *byte != b'\\')
    {
        return Ok(plain.eq_ignore_ascii_case(name.as_bytes()));
    }
    Ok(key.string()?.is_some_and(|key| same_but_for_case(&key, name)))
}
