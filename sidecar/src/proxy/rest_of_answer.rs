//! The rest of an answer whose beginning has passed: what must not pass in it breaks it off.

use crate::mcp::ask_finder::AskFinder;

/// What the rest of an answer is held to whose beginning has passed.
#[derive(Debug)]
pub struct RestOfAnswer {
    /// The server's name.
    pub server: String,
    /// Looks for what the server asks for.
    pub asks: Option<AskFinder>,
    /// The bytes that may still come.
    pub left: Option<u64>,
}

/// Why an answer breaks off whose beginning has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CutOff {
    /// The server asks for something in it.
    #[error("the answer asks for something, and is too large to be judged")]
    Asks,
    /// It is larger than may pass.
    #[error("the result is larger than may pass")]
    TooLarge,
}

impl RestOfAnswer {
    /// Takes a piece of the rest.
    ///
    /// # Errors
    /// It does not pass.
    pub fn take(&mut self, piece: &[u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let why = match self.left.map(|left| left.checked_sub(piece.len() as u64)) {
            Some(None) => Some(CutOff::TooLarge),
            left => {
                self.left = left.flatten();
                self.asks.as_mut().is_some_and(|asks| asks.push(piece)).then_some(CutOff::Asks)
            }
        };
        let Some(why) = why else { return Ok(()) };
        tracing::warn!(server = self.server, %why, "an answer breaks off");
        Err(why.into())
    }
}
