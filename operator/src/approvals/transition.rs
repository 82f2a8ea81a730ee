//! What becomes of a request: a function of its object, of what its sidecar says, and of what holds around both. Plain functions, no I/O.

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use toolweir_crds::{
    approval_request::{ApprovalDecision, ApprovalState},
    bounds,
};

use super::{
    guarded::ApprovalGuard,
    records::{ApprovalRecord, OpenRequest},
    request::{bounded, written},
};

/// What holds around a request.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances<'a> {
    /// Whether the API server checks who decides.
    pub guard: &'a ApprovalGuard,
    /// True if all policies that ask govern the pod as they did when they asked.
    pub governed: bool,
    /// What the sidecar of the pod says of it, and why; none where it says nothing.
    pub said: Option<(ApprovalState, Option<&'a str>)>,
    /// Why nobody can use it any more, if so.
    pub lost: Option<&'a str>,
}

/// A state that is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueState {
    /// The state.
    pub state: ApprovalState,
    /// Until when the request waits, an approval can be used or a denial holds; none where that stays as it is.
    pub until: Option<Timestamp>,
    /// Why, for people.
    pub message: Option<String>,
}

impl DueState {
    fn new(state: ApprovalState, message: &str) -> Self {
        let message = Some(bounded(message, bounds::TEXT)).filter(|message| !message.is_empty());
        Self { state, until: None, message }
    }

    /// Returns the first state of an object that has none; none where it cannot be one that waits.
    pub fn pending(record: &ApprovalRecord) -> Option<Self> {
        let open = record.open.as_ref().filter(|_| record.state.is_none())?;
        Some(Self { state: ApprovalState::Pending, until: Some(open.expires), message: None })
    }

    /// Returns the merge patch that writes it. `version`: that of the object on which it was decided; a write over another one fails.
    pub fn patch(&self, version: Option<&str>, now: Timestamp) -> Value {
        let mut status = json!({"state": self.state, "updatedAt": written(now), "message": self.message});
        if let (Some(until), Some(fields)) = (self.until, status.as_object_mut()) {
            fields.insert("expiresAt".to_owned(), written(until).into());
        }
        match version {
            Some(version) => json!({"metadata": {"resourceVersion": version}, "status": status}),
            None => json!({"status": status}),
        }
    }
}

const NOT_APPROVED: &str = "The sidecar says that the call went through, and no person approved it.";
const UNGOVERNED: &str = "A policy that asked has changed, or does not govern the pod any more.";

/// Returns the state that an object is to have next; none where it has the right one.
pub fn due(record: &ApprovalRecord, around: Circumstances<'_>, now: Timestamp) -> Option<DueState> {
    let approved = record.decision == Some(ApprovalDecision::Approve);
    let said = around.said.map(|(state, _)| state);
    let Some(open) = &record.open else {
        // The operator may have ended what a sidecar had used and not yet said. What happened is what is written.
        let corrected = matches!(record.state, Some(ApprovalState::Expired | ApprovalState::Voided)) && approved;
        return (corrected && said == Some(ApprovalState::Used)).then(used);
    };
    if let Some(ended) = said.and_then(|said| ended_by_sidecar(record, said, around.said.and_then(|(_, why)| why))) {
        return Some(ended);
    }
    if let Some(why) = around.lost {
        return Some(DueState::new(ApprovalState::Voided, why));
    }
    match record.state {
        Some(ApprovalState::Approved) if !approved => {
            Some(DueState::new(ApprovalState::Voided, "The decision is no longer in it."))
        }
        // A sidecar that has ended it too forgets it when it hears so: its word may never come.
        Some(ApprovalState::Approved) if !around.governed => Some(DueState::new(ApprovalState::Voided, UNGOVERNED)),
        Some(ApprovalState::Approved) => {
            let is_over = record.until.is_none_or(|until| now.as_second() > until);
            is_over.then(|| DueState::new(ApprovalState::Expired, "It was approved, and the call did not come again in time."))
        }
        _ => undecided(record, open, around, now),
    }
}

fn used() -> DueState {
    DueState::new(ApprovalState::Used, "The call went through.")
}

/// What the sidecar has ended, is ended.
fn ended_by_sidecar(record: &ApprovalRecord, said: ApprovalState, why: Option<&str>) -> Option<DueState> {
    let decision = record.decision;
    Some(match said {
        ApprovalState::Pending | ApprovalState::Approved => return None,
        ApprovalState::Used if decision == Some(ApprovalDecision::Approve) => used(),
        ApprovalState::Used => DueState::new(ApprovalState::Voided, NOT_APPROVED),
        // The state of a denial is written before the sidecar hears of it.
        ApprovalState::Denied | ApprovalState::Voided => {
            DueState::new(ApprovalState::Voided, why.unwrap_or("What it was bound to has changed."))
        }
        ApprovalState::Expired => DueState::new(ApprovalState::Expired, why.unwrap_or("Nobody decided in time.")),
    })
}

/// What becomes of a request whose decision was not counted yet.
fn undecided(record: &ApprovalRecord, open: &OpenRequest, around: Circumstances<'_>, now: Timestamp) -> Option<DueState> {
    if !around.governed {
        return Some(DueState::new(ApprovalState::Voided, UNGOVERNED));
    }
    let is_over = now > open.expires;
    let Some(decision) = record.decision else {
        if is_over {
            return Some(DueState::new(ApprovalState::Expired, "Nobody decided in time."));
        }
        return DueState::pending(record);
    };
    if is_over {
        return Some(DueState::new(ApprovalState::Expired, "It was decided after its end."));
    }
    match around.guard {
        ApprovalGuard::Off | ApprovalGuard::Unknown(_) => return None,
        ApprovalGuard::Missing(why) => {
            return Some(DueState::new(
                ApprovalState::Voided,
                &format!("It was decided while nothing checked who decides: {why}"),
            ));
        }
        ApprovalGuard::Guarded => {}
    }
    let Some(verdict) = &record.verdict else {
        return Some(DueState::new(ApprovalState::Voided, "The decision does not say who made it."));
    };
    let until = now.saturating_add(std::time::Duration::from_secs(open.usable)).ok();
    let by = bounded(&verdict.by, bounds::TEXT / 2);
    let (state, message) = match decision {
        ApprovalDecision::Approve => (ApprovalState::Approved, format!("Approved by {by}. The same call goes through once.")),
        ApprovalDecision::Deny => (ApprovalState::Denied, format!("Denied by {by}.")),
    };
    Some(DueState { until, ..DueState::new(state, &message) })
}
