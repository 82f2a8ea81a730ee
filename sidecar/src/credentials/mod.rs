//! Credentials of servers: what the sidecar shows a server, so that the agent need not have it.
//!
//! ```text
//! policy ─> CredentialSet ─> ServerCredential, one for each server     what the proxy asks for
//!                                  ^
//!                                keeper ─> keys (files), grant + token_client (token endpoints)
//!                                  └─────> material, certificate, jwt: pure
//! ```
//!
//! A keeper's task reads the files of one credential, and asks its token endpoint where it has one. A call takes what is there, or waits
//! for the keeper within a bound. Nothing secret is in a text that could be logged: [`material::CredentialMaterial`] shows none.

pub mod certificate;
pub mod grant;
pub mod jwt;
pub mod keeper;
pub mod keys;
pub mod material;
pub mod metrics;
pub mod server_credential;
pub mod set;
pub mod token_client;

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use serde::de::DeserializeOwned;

/// Why a server's credential cannot be used, in words that name the key and the remedy, and hold nothing secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialProblem {
    /// In words, without a full stop.
    pub message: String,
    /// True where it may pass in a moment, without anybody's help.
    pub passes: bool,
}

impl CredentialProblem {
    /// One that stays until somebody changes something.
    pub fn lasting(message: impl Into<String>) -> Self {
        Self { message: message.into(), passes: false }
    }

    /// One that passes by itself.
    pub fn passing(message: impl Into<String>) -> Self {
        Self { message: message.into(), passes: true }
    }
}

impl fmt::Display for CredentialProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Reads a JSON object that others wrote. A list is none, though serde takes one for the fields of a struct in their order; and what is
/// not looked at has to be text, too.
fn read_object<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let text = std::str::from_utf8(bytes).ok()?;
    text.trim_start().starts_with('{').then(|| serde_json::from_str(text).ok())?
}

/// The time since 1970.
fn since_1970() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// The same in whole seconds.
fn unix_now() -> i64 {
    i64::try_from(since_1970().as_secs()).unwrap_or(i64::MAX)
}
