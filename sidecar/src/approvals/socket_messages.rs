//! What is said on the socket of approvals: one line of JSON asks, one answers, and the connection ends.

use serde::{Deserialize, Serialize};
use toolweir_crds::{approval_request::MCPApprovalSpec, bounds};

/// The most bytes of a question, with its newline: a name and a reason, each character of which may be escaped.
pub const LONGEST_QUESTION: usize = 16 * 1024;

/// The most bytes of an answer: all requests of a sidecar, with all that policies may show of them.
pub const LONGEST_ANSWER: usize = 16 * 1024 * 1024;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum SocketQuestion {
    /// What waits?
    List {},
    /// A call may go through once.
    Approve {
        /// The name of its request.
        name: String,
    },
    /// A call may not go through.
    Deny {
        /// The name of its request.
        name: String,
        /// Why, for the agent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SocketAnswer {
    /// What waits.
    Waiting(Vec<SocketRequest>),
    /// The decision counts.
    Decided {
        /// For how many seconds an approval can be used, or a denial holds.
        seconds: u64,
    },
    /// The decision does not count: why, after the name of the request.
    Undecided(String),
    /// This peer, or this question, is refused: why.
    Refused(String),
}

/// A request that waits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SocketRequest {
    /// Its name.
    pub name: String,
    /// What is asked.
    pub request: MCPApprovalSpec,
    /// For how many seconds it waits.
    pub waits: u64,
    /// In how many seconds it ends.
    pub expires: u64,
}

/// Checks what a person gives as the reason of a denial.
///
/// # Errors
/// What is wrong with it, in words.
pub fn check_reason(reason: &str) -> Result<(), String> {
    if reason.trim().is_empty() {
        return Err("is empty; leave it out, or write why".to_owned());
    }
    if reason.len() > bounds::TEXT {
        return Err(format!("has {} bytes; {} are possible", reason.len(), bounds::TEXT));
    }
    if reason.chars().any(char::is_control) {
        return Err("has a control character; write one line of text".to_owned());
    }
    Ok(())
}
