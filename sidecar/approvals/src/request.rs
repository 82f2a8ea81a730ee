//! A request, and what the book says of it to others.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use toolweir_crds::approval_request::{ApprovalState, MCPApprovalSpec, ReportedApproval};

use crate::key::CallKey;

/// What happened to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ApprovalStep {
    /// It was made.
    Requested,
    /// A person approved it.
    Approved,
    /// A person denied it.
    Denied,
    /// Its time passed.
    Expired,
    /// Something that it was bound to has changed.
    Voided,
    /// The call goes through.
    Used,
    /// Nothing was sent: the approval can be used again.
    Returned,
}

impl ApprovalStep {
    /// Every step.
    pub const ALL: [Self; 7] =
        [Self::Requested, Self::Approved, Self::Denied, Self::Expired, Self::Voided, Self::Used, Self::Returned];

    /// Returns its name in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Approved => "approved",
            Self::Denied => "denied",
            Self::Expired => "expired",
            Self::Voided => "voided",
            Self::Used => "used",
            Self::Returned => "returned",
        }
    }
}

/// A step of a request, for the audit log and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApprovalChange {
    /// What happened.
    pub step: ApprovalStep,
    /// The name of the request.
    pub name: Arc<str>,
    /// What was asked. Of a request that had ended before, without `message` and `shown`.
    pub request: Arc<MCPApprovalSpec>,
    /// Who decided: of [`ApprovalStep::Approved`] and [`ApprovalStep::Denied`].
    pub by: Option<String>,
    /// The person's reason, or why it ended.
    pub reason: Option<String>,
    /// From the question to the decision: of [`ApprovalStep::Approved`] and [`ApprovalStep::Denied`].
    pub waited: Option<Duration>,
}

/// A request that waits for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingApproval {
    /// The name of the request.
    pub name: Arc<str>,
    /// What is asked.
    pub request: Arc<MCPApprovalSpec>,
    /// When it ends unless it is decided.
    pub until: SystemTime,
}

/// A request of the book.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub name: Arc<str>,
    pub key: CallKey,
    /// The digests of the states of the policies that ask.
    pub revisions: Arc<[CallKey]>,
    pub spec: Arc<MCPApprovalSpec>,
    pub state: ApprovalState,
    /// When the call came.
    pub asked: SystemTime,
    /// Until when it is of use: a question can be answered, an approval used or given back, a denial holds, and the end of a request is yet
    /// to be told.
    pub until: SystemTime,
    /// The person's reason, or why it ended.
    pub reason: Option<Arc<str>>,
    /// Whether the operator knows that it has ended.
    pub known: bool,
    /// How often it was used; more than once only if nothing was sent before.
    pub uses: u32,
    /// Approved, and that does not count yet: [`Book::hold_back`](crate::Book::hold_back). A file does not have it: what is in the file counts.
    pub held_back: bool,
}

impl Request {
    /// How long it waits, how long an approval can be used, and how long a denial holds.
    pub fn span(&self) -> Duration {
        Duration::from_secs(self.spec.usable_seconds)
    }

    /// Its state for a call: while an approval is held back, the request waits.
    pub fn state_for_calls(&self) -> ApprovalState {
        if self.held_back { ApprovalState::Pending } else { self.state }
    }

    /// Whether it is of use at a time.
    pub fn is_of_use(&self, now: SystemTime) -> bool {
        now < self.until
    }

    /// Whether it is a denial that holds at a time.
    pub fn denies(&self, now: SystemTime) -> bool {
        self.state == ApprovalState::Denied && self.is_of_use(now)
    }

    /// Leaves out what nobody will be asked any more.
    pub fn forget_content(&mut self) {
        if !(self.spec.message.is_empty() && self.spec.shown.is_empty()) {
            let spec = Arc::make_mut(&mut self.spec);
            (spec.message, spec.shown) = (String::new(), Vec::new());
        }
    }

    /// What the operator is told of it.
    pub fn report(&self) -> ReportedApproval {
        let ended = self.state.is_final();
        ReportedApproval {
            name: self.name.to_string(),
            state: self.state,
            request: (!ended).then(|| (*self.spec).clone()),
            message: self.reason.as_deref().filter(|_| ended).map(str::to_owned),
        }
    }

    /// A step of it.
    pub fn change(&self, step: ApprovalStep) -> ApprovalChange {
        let (name, request) = (Arc::clone(&self.name), Arc::clone(&self.spec));
        ApprovalChange { step, name, request, by: None, reason: self.reason.as_deref().map(str::to_owned), waited: None }
    }
}
