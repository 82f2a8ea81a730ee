//! `kubectl toolweir`: shows what the policies of a cluster do, and why.
//!
//! [`command_line`] reads the arguments. [`status`], [`denials`] and [`explain`] (of connections: [`explain_url`]) collect data through the API
//! server only ([`cluster`] lists objects, [`forward`] asks sidecars), parse it ([`audit`], [`policy_rows`], [`servers`], [`scrape`]), and write it for people
//! ([`table`]) or as JSON. [`tools`] needs no cluster: it reads what tools a server has, and says what they can do;
//! [`suggest`] makes a policy of that, and [`pins`] says whether tools are as they were. [`replay`] decides the calls of the sidecars' logs anew, by the
//! policies of a cluster with others in their place ([`replay_policies`]). [`policy_files`] reads policies of files for both, [`object_names`] checks
//! names of manifests, [`yaml_text`] writes what others wrote into them, and [`out_file`] writes them to a file.

pub mod approvals;
pub mod audit;
pub mod cluster;
pub mod command_line;
pub mod condition;
pub mod denials;
pub mod explain;
pub mod explain_url;
pub mod forward;
pub mod object_names;
pub mod out_file;
pub mod pins;
pub mod policy_files;
pub mod policy_rows;
pub mod replay;
pub mod replay_policies;
pub mod scrape;
pub mod servers;
pub mod status;
pub mod suggest;
pub mod table;
pub mod tools;
pub mod yaml_text;

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
