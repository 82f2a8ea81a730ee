//! `kubectl toolweir`: shows what the policies of a cluster do, and why.
//!
//! [`status`], [`denials`] and [`explain`] (of connections: [`explain_url`]) are the three commands. They collect data through the API server only ([`cluster`] lists
//! objects, [`forward`] asks sidecars), parse it ([`audit`], [`servers`], [`scrape`]), and write it for people ([`table`]) or as JSON.

pub mod audit;
pub mod cluster;
pub mod condition;
pub mod denials;
pub mod explain;
pub mod explain_url;
pub mod forward;
pub mod scrape;
pub mod servers;
pub mod status;
pub mod table;

/// The outcome of a command, which determines the exit code. Errors have the exit code 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandOutcome {
    /// Everything is in order; the call or connection is allowed. Exit code 0.
    Positive,
    /// Something is not in order; the call or connection is denied. Exit code 1.
    Negative,
}

/// The output format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum OutputFormat {
    /// Aligned text for people
    #[default]
    Text,
    /// JSON for programs
    Json,
}
