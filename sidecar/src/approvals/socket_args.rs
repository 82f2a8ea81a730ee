//! The flags of the socket at which people decide.

use std::path::PathBuf;

use clap::Args;

/// Where people decide, and who may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApprovalsSocketSettings {
    /// The path of the socket.
    pub path: PathBuf,
    /// The group whose members may connect, by name or number; else the one that new files get there.
    pub group: Option<String>,
    /// Whether the sidecar's own user may decide.
    pub allow_same_user: bool,
}

/// The flags.
#[derive(Debug, Args)]
#[expect(clippy::struct_field_names, reason = "the flags are called so")]
pub struct ApprovalsSocketArgs {
    /// Unix socket at which people of this machine approve calls, with `toolweir-sidecar approvals`. Without it, calls that need approval
    /// are denied.
    #[arg(long, value_name = "PATH")]
    approvals_socket: Option<PathBuf>,
    /// Group whose members may connect to that socket, by name or number; defaults to that of new files there.
    #[arg(long, value_name = "NAME", requires = "approvals_socket")]
    approvals_group: Option<String>,
    /// Let the sidecar's own user approve calls. An agent that is this user can then approve its own.
    #[arg(long, requires = "approvals_socket")]
    approvals_allow_same_user: bool,
}

impl ApprovalsSocketArgs {
    /// The socket, if there is to be one.
    pub fn settings(self) -> Option<ApprovalsSocketSettings> {
        let (group, allow_same_user) = (self.approvals_group, self.approvals_allow_same_user);
        self.approvals_socket.map(|path| ApprovalsSocketSettings { path, group, allow_same_user })
    }
}
