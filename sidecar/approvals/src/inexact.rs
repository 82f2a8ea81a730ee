//! Why arguments have no exact canonical form, and where.

use toolweir_crds::text::escaped;
use toolweir_engine::json::{JsonError, MAX_DEPTH};

/// Characters of a key that an error shows.
const SHOWN_KEY: usize = 40;

/// Bytes of the path that an error shows, but for one key. Of longer ones, the end.
const SHOWN_PATH: usize = 160;

/// Why a value has no exact canonical form, with what helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Inexact {
    /// It stands twice in its object: readers take the first, the last or neither.
    #[error("stands twice in its object; send each key once")]
    Repeated,
    /// A number with more digits than IEEE 754 keeps, or too large or too small for it.
    #[error("is a number that readers round; send it with at most 15 digits, or as a string")]
    Rounded,
    /// An integer that is not one of those that every reader has.
    #[error("is an integer beyond 2^53, which readers round; send it as a string")]
    Large,
    /// Some readers drop its sign.
    #[error("is -0, which readers take for 0; send 0")]
    NegativeZero,
    /// Readers replace it, or fail.
    #[error("has half of a surrogate pair; send whole characters")]
    LoneSurrogate,
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("nests deeper than {MAX_DEPTH} levels; send it flatter")]
    TooDeep,
    /// Not JSON.
    #[error("cannot be read as JSON; send what RFC 8259 allows")]
    Syntax,
}

/// The error of arguments without an exact canonical form: where, why, and what helps. The place has keys of the arguments: it is for the
/// agent that sent them, and [`NotExact::why`] for everybody else.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`arguments{place}` {why}")]
pub struct NotExact {
    place: String,
    why: Inexact,
}

impl NotExact {
    /// What is wrong, without a name or a value of the arguments.
    pub fn why(&self) -> Inexact {
        self.why
    }

    /// The same of something that holds this.
    pub(crate) fn within(mut self, step: &str) -> Self {
        if self.place.len() < SHOWN_PATH {
            self.place.insert_str(0, step);
        } else if !self.place.starts_with("...") {
            self.place.insert_str(0, "...");
        }
        self
    }

    /// The same of an object that has this as a member.
    pub(crate) fn in_member(self, key: &str) -> Self {
        let is_name = key.len() <= SHOWN_KEY
            && key.starts_with(|c: char| c == '_' || c.is_ascii_alphabetic())
            && key.chars().all(|c| c == '_' || c.is_ascii_alphanumeric());
        if is_name {
            return self.within(&format!(".{key}"));
        }
        let more = if key.chars().nth(SHOWN_KEY).is_some() { "..." } else { "" };
        self.within(&format!("[\"{}{more}\"]", escaped(key, SHOWN_KEY)))
    }
}

impl From<Inexact> for NotExact {
    fn from(why: Inexact) -> Self {
        Self { place: String::new(), why }
    }
}

impl From<JsonError> for NotExact {
    fn from(error: JsonError) -> Self {
        let why = match error {
            JsonError::LoneSurrogate(_) => Inexact::LoneSurrogate,
            JsonError::TooDeep => Inexact::TooDeep,
            JsonError::Utf8(_) | JsonError::ByteOrderMark | JsonError::Syntax(_) | JsonError::Trailing(_) => Inexact::Syntax,
        };
        why.into()
    }
}
