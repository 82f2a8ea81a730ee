//! The verdicts that policies can reach on what is asked of a server: metrics start at 0 for each of them.

use std::{borrow::Cow, sync::Arc};

use toolweir_crds::{OnDrift, OnNew, OnStoreFailure, OperationKind};

use crate::{
    denial::Reason,
    engine::Engine,
    entry::CompiledEntry,
    rules::{Group, NamePlan, Step},
};

/// A decision that is possible on a name, with its reason and the policy under which it is counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict<'a> {
    /// The name; `None` for all that no entry has exactly.
    pub name: Option<&'a str>,
    /// `allowed`, `denied`, `would_deny` or `would_ask`, as in metrics and the audit log.
    pub decision: &'static str,
    /// The reason.
    pub reason: Reason,
    /// The policy that decides.
    pub policy: Arc<str>,
}

impl Engine {
    /// Returns the verdicts that are possible on operations of a kind on a server: on each name that some entry has exactly, and on all
    /// others together. Leaves out the faults that every call can have (a malformed body, too many counts), and kinds in which no policy
    /// has a say.
    pub fn verdicts(&self, server: &str, kind: OperationKind) -> Vec<Verdict<'_>> {
        let Some(rules) = self.servers.get(server).map(|rules| rules.of(kind)) else { return Vec::new() };
        let mut verdicts: Vec<Verdict<'_>> = Vec::new();
        for name in rules.names().map(Some).chain([None].into_iter().filter(|_| !rules.policies.is_empty())) {
            let mut add = |decision, reason, policy| {
                let verdict = Verdict { name, decision, reason, policy };
                // A policy can reach the same verdict by its rules for the server and by those for `*`.
                if !verdicts.iter().rev().take_while(|known| known.name == name).any(|known| *known == verdict) {
                    verdicts.push(verdict);
                }
            };
            let plans: Vec<Cow<'_, NamePlan>> = match name {
                Some(name) => rules.plans(name).collect(),
                None => rules.plans_of_others().map(Cow::Owned).collect(),
            };
            for plan in plans {
                // Where every call is denied, no other verdict is possible.
                let open = plan.enforced.denial.is_none();
                for (reason, policy) in possible_denials(&plan.enforced) {
                    add("denied", reason, policy);
                }
                for policy in plan.enforced.steps.iter().filter(|_| open).filter_map(asking) {
                    for reason in APPROVAL_DENIALS {
                        add("denied", reason, Arc::clone(policy));
                    }
                }
                for (decision, reason, policy) in plan.enforced.steps.iter().filter(|_| open).flat_map(pin_verdicts) {
                    add(decision, reason, policy);
                }
                for (reason, policy) in plan.audited.iter().filter(|_| open).flat_map(possible_denials) {
                    add("would_deny", reason, policy);
                }
                let audited = plan.audited.iter().filter(|group| open && group.denial.is_none());
                for policy in audited.flat_map(|group| &group.steps).filter_map(asking) {
                    add("would_ask", Reason::ApprovalPending, Arc::clone(policy));
                }
                for (_, reason, policy) in
                    plan.audited.iter().filter(|_| open).flat_map(|group| &group.steps).flat_map(pin_verdicts)
                {
                    add("would_deny", reason, policy);
                }
                if let Some(policy) = &plan.policy
                    && open
                    && plan.audited.iter().all(|group| group.denial.is_none())
                {
                    add("allowed", Reason::None, Arc::clone(policy));
                }
            }
        }
        verdicts
    }
}

/// The denials of a call that needs the approval of a person.
const APPROVAL_DENIALS: [Reason; 5] =
    [Reason::ApprovalPending, Reason::ApprovalDenied, Reason::ApprovalExpired, Reason::ApprovalFull, Reason::ApprovalUnavailable];

/// Returns the policy if it may ask a person about calls of the tool.
fn asking(step: &Step) -> Option<&Arc<str>> {
    step.matching().any(|entry| entry.approval.is_some()).then_some(&step.rules.policy)
}

/// Returns the verdicts for pins that a policy which is enforced can reach, if the tool is not denied anyway.
fn pin_verdicts(step: &Step) -> Vec<(&'static str, Reason, Arc<str>)> {
    let Some(rule) = &step.rules.pins else { return Vec::new() };
    let drift = if rule.on_drift == OnDrift::Audit { "would_deny" } else { "denied" };
    let mut verdicts = vec![(drift, Reason::PinDrift), (drift, Reason::PinUnverified)];
    match rule.on_new {
        OnNew::Deny => verdicts.push(("denied", Reason::NotPinned)),
        OnNew::Audit => verdicts.push(("would_deny", Reason::NotPinned)),
        OnNew::Allow => {}
    }
    verdicts.into_iter().map(|(decision, reason)| (decision, reason, Arc::clone(&step.rules.policy))).collect()
}

/// Returns the denials that policies which decide together can give.
fn possible_denials(group: &Group) -> Vec<(Reason, Arc<str>)> {
    if let Some(denial) = &group.denial {
        return denial.policy.iter().map(|policy| (denial.reason, Arc::clone(policy))).collect();
    }
    let denial = |step: &Step, reason, can_deny: fn(&CompiledEntry) -> bool| {
        step.matching().any(can_deny).then(|| (reason, Arc::clone(&step.rules.policy)))
    };
    let mut denials = Vec::new();
    for step in &group.steps {
        denials.extend(denial(step, Reason::Validation, CompiledEntry::has_conditions));
        denials.extend(denial(step, Reason::RateLimit, |entry| !entry.limits.is_empty()));
        denials.extend(denial(step, Reason::Concurrency, |entry| entry.hold.is_some()));
        if step.rules.on_store_failure == OnStoreFailure::Deny {
            denials.extend(denial(step, Reason::StoreUnavailable, CompiledEntry::shares));
        }
    }
    denials
}
