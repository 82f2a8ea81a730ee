//! The verdicts that policies can reach on a server's tools: metrics start at 0 for each of them.

use std::sync::Arc;

use toolweir_crds::OnStoreFailure;

use crate::{
    denial::Reason,
    engine::Engine,
    entry::CompiledEntry,
    rules::{Group, Step},
};

/// A decision that is possible on a tool, with its reason and the policy under which it is counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict<'a> {
    /// The tool's name; `None` for all tools that no entry names exactly.
    pub tool: Option<&'a str>,
    /// `allowed`, `denied` or `would_deny`, as in metrics and the audit log.
    pub decision: &'static str,
    /// The reason.
    pub reason: Reason,
    /// The policy that decides.
    pub policy: Arc<str>,
}

impl Engine {
    /// Returns the verdicts that are possible on the tools of a server: on each that some entry names exactly, and on all others
    /// together. Leaves out the faults that every call can have (a malformed body, too many counts).
    pub fn verdicts(&self, server: &str) -> Vec<Verdict<'_>> {
        let Some(rules) = self.servers.get(server) else { return Vec::new() };
        let mut verdicts: Vec<Verdict<'_>> = Vec::new();
        // No entry but `*` matches a tool without a name.
        for tool in self.tools(server).map(Some).chain([None]) {
            let plan = rules.plan(tool.unwrap_or_default());
            let mut add = |decision, reason, policy| {
                let verdict = Verdict { tool, decision, reason, policy };
                // A policy can reach the same verdict by its rules for the server and by those for `*`.
                if !verdicts.iter().rev().take_while(|known| known.tool == tool).any(|known| *known == verdict) {
                    verdicts.push(verdict);
                }
            };
            // Where every call is denied, no other verdict is possible.
            let open = plan.enforced.denial.is_none();
            for (reason, policy) in possible_denials(&plan.enforced) {
                add("denied", reason, policy);
            }
            for (reason, policy) in plan.audited.iter().filter(|_| open).flat_map(possible_denials) {
                add("would_deny", reason, policy);
            }
            if let Some(policy) = &plan.policy
                && open
                && plan.audited.iter().all(|group| group.denial.is_none())
            {
                add("allowed", Reason::None, Arc::clone(policy));
            }
        }
        verdicts
    }
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
        denials.extend(denial(step, Reason::Validation, CompiledEntry::has_expressions));
        denials.extend(denial(step, Reason::RateLimit, |entry| !entry.limits.is_empty()));
        denials.extend(denial(step, Reason::Concurrency, |entry| entry.hold.is_some()));
        if step.rules.on_store_failure == OnStoreFailure::Deny {
            denials.extend(denial(step, Reason::StoreUnavailable, CompiledEntry::shares));
        }
    }
    denials
}
