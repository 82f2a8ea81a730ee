//! How much is read from a server before it is given up.

use std::time::Duration;

/// The bounds of reading one server's tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadLimits {
    /// The most pages.
    pub pages: usize,
    /// The most tools, and the most names of each other list.
    pub tools: usize,
    /// Whether prompts, resources and resource templates are listed too.
    pub others: bool,
    /// The most bytes of one file, and of all answers of a server together.
    pub bytes: usize,
    /// The time that each answer may take. All that opens a session is one answer.
    pub answer: Duration,
    /// The time that the whole reading may take.
    pub whole: Duration,
}

impl Default for ReadLimits {
    fn default() -> Self {
        Self {
            pages: 1000,
            tools: 10_000,
            others: false,
            bytes: 16 * 1024 * 1024,
            answer: Duration::from_secs(30),
            whole: Duration::from_secs(300),
        }
    }
}
