//! Errors of expressions, and texts of other projects' errors as one line.

use std::fmt::{self, Write};

use toolweir_crds::text;

use super::work::Spent;

/// The reason why an expression gives no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EvalError {
    /// The decision's budget is spent.
    Spent,
    /// The evaluation failed, or its value has the wrong type.
    Failed(String),
}

impl EvalError {
    /// Adds to a failure that the expression could not be evaluated.
    pub(super) fn not_evaluated(self) -> Self {
        match self {
            Self::Spent => Self::Spent,
            Self::Failed(why) => Self::Failed(format!("could not be evaluated: {why}")),
        }
    }
}

impl From<Spent> for EvalError {
    fn from(_: Spent) -> Self {
        Self::Spent
    }
}

impl fmt::Display for EvalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spent => f.write_str("takes more work than a call is given"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

/// Returns the beginning of an error as one line: it may quote values of any size.
pub fn beginning(error: &dyn fmt::Display) -> String {
    struct Beginning(String);
    impl Write for Beginning {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let left = 1200_usize.saturating_sub(self.0.len());
            self.0.push_str(text.get(..text.floor_char_boundary(left)).unwrap_or_default());
            if text.len() > left { Err(fmt::Error) } else { Ok(()) }
        }
    }
    let mut beginning = Beginning(String::new());
    // An error is that the rest is left out.
    let _ = write!(beginning, "{error}");
    one_line(&beginning.0)
}

/// Returns the error of another project's parser as one line of bounded length: it may quote any part of what was parsed.
pub fn one_line(error: &str) -> String {
    let words = error.split_whitespace().collect::<Vec<_>>().join(" ");
    text::one_line(&words, 300)
}
