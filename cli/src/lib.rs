//! `kubectl toolweir`: what the policies of a cluster do, and why.
//!
//! [`status`], [`denials`] and [`explain`] are the three commands. Each gathers over the API server alone ([`cluster`],
//! [`forward`]) and writes what it found as plain data, in a form for people ([`table`]) or as JSON.

pub mod audit;
pub mod cluster;
pub mod denials;
pub mod explain;
pub mod forward;
pub mod scrape;
pub mod status;
pub mod table;

/// What a command found: the exit code is 0 or 1. What could not be found out is an error, and the exit code 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// All is well; the call goes through.
    Good,
    /// Something is not in order; the call is denied.
    Bad,
}

/// The form of what is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// Aligned, for people.
    #[default]
    Text,
    /// JSON, for programs.
    Json,
}
