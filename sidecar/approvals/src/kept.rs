//! The book as a file keeps it.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use toolweir_crds::approval_request::{ApprovalState, MCPApprovalSpec};

use crate::{key::CallKey, name, request::Request};

/// The requests of a book, for a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeptBook {
    /// The time of the book: milliseconds since 1970.
    pub(crate) seen: u64,
    pub(crate) requests: Vec<KeptRequest>,
}

impl KeptBook {
    /// More bytes than the longest book takes.
    pub const LONGEST: usize = 32 << 20;
}

/// A request, for a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct KeptRequest {
    name: String,
    key: CallKey,
    revisions: Vec<CallKey>,
    request: MCPApprovalSpec,
    state: ApprovalState,
    asked: u64,
    until: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    known: bool,
    #[serde(default, skip_serializing_if = "is_zero")]
    uses: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
fn is_zero(uses: &u32) -> bool {
    *uses == 0
}

/// Why a kept book cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeptBookError {
    /// No book has so many.
    #[error("it has more requests than a sidecar keeps")]
    TooMany,
    /// A name that no book gives.
    #[error("request {0} has a name that is none")]
    Name(usize),
    /// Two requests of one name.
    #[error("request {0} is there twice")]
    Twice(usize),
}

/// A time, to the millisecond before it.
pub(crate) fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The time of [`millis`].
pub(crate) fn time(millis: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis)).unwrap_or(SystemTime::UNIX_EPOCH)
}

impl KeptRequest {
    pub(crate) fn of(request: &Request) -> Self {
        Self {
            name: request.name.to_string(),
            key: request.key,
            revisions: request.revisions.to_vec(),
            request: (*request.spec).clone(),
            state: request.state,
            asked: millis(request.asked),
            until: millis(request.until),
            reason: request.reason.as_deref().map(str::to_owned),
            known: request.known,
            uses: request.uses,
        }
    }

    /// The request, which is of use for no longer after `seen` than it says itself.
    pub(crate) fn restore(self, seen: SystemTime) -> Request {
        let mut request = Request {
            name: self.name.into(),
            key: self.key,
            revisions: self.revisions.into(),
            spec: Arc::new(self.request),
            state: self.state,
            asked: time(self.asked),
            until: time(self.until),
            reason: self.reason.map(Into::into),
            known: self.known,
            uses: self.uses,
            held_back: false,
        };
        request.until = seen.checked_add(request.span()).map_or(seen, |most| request.until.min(most));
        request
    }
}

/// Checks what a book relies on.
///
/// # Errors
/// No book keeps this.
pub(crate) fn check(requests: &[KeptRequest], most: usize) -> Result<(), KeptBookError> {
    if requests.len() > most {
        return Err(KeptBookError::TooMany);
    }
    let mut names = HashSet::new();
    for (at, request) in requests.iter().enumerate() {
        if !name::is_one(&request.name) {
            return Err(KeptBookError::Name(at));
        }
        if !names.insert(&request.name) {
            return Err(KeptBookError::Twice(at));
        }
    }
    Ok(())
}
