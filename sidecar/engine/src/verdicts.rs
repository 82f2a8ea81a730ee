//! What policies can come to say of a server's tools: the counts that begin at 0 with them.

use std::sync::Arc;

use toolweir_crds::OnStoreFailure;

use crate::{
    denial::Reason,
    rules::{Engine, Entry, Group, Step},
};

/// What can be decided on a tool, why, and under which policy it is counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict<'a> {
    /// The tool's name; nothing for tools that no entry names exactly.
    pub tool: Option<&'a str>,
    /// `allowed`, `denied` or `would_deny`, as metrics and the audit log say it.
    pub decision: &'static str,
    /// Why.
    pub reason: Reason,
    /// The policy that decides.
    pub policy: Arc<str>,
}

impl Engine {
    /// What can be decided on the tools of a server, for those that some entry names exactly and for all others together.
    /// Of a call's faults (a body without meaning, too many counts) it says nothing: those every call can have.
    pub fn verdicts(&self, server: &str) -> Vec<Verdict<'_>> {
        let Some(rules) = self.servers.get(server) else { return Vec::new() };
        let mut verdicts: Vec<Verdict<'_>> = Vec::new();
        // No entry but `*` matches a tool without a name.
        for tool in self.tools(server).map(Some).chain([None]) {
            let plan = rules.plan(tool.unwrap_or_default());
            let mut add = |decision, reason, policy| {
                let verdict = Verdict { tool, decision, reason, policy };
                // Of one policy, what it says of the server and of `*` is the same verdict.
                if !verdicts.iter().rev().take_while(|known| known.tool == tool).any(|known| *known == verdict) {
                    verdicts.push(verdict);
                }
            };
            // What is denied whatever the call is, nobody else has a say in.
            let open = plan.enforced.denial.is_none();
            for (reason, policy) in says(&plan.enforced) {
                add("denied", reason, policy);
            }
            for (reason, policy) in plan.audited.iter().filter(|_| open).flat_map(says) {
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

/// The denials of policies that decide together.
fn says(group: &Group) -> Vec<(Reason, Arc<str>)> {
    if let Some(denial) = &group.denial {
        return denial.policy.iter().map(|policy| (denial.reason, Arc::clone(policy))).collect();
    }
    let of =
        |step: &Step, reason, can: fn(&Entry) -> bool| step.matching().any(can).then(|| (reason, Arc::clone(&step.part.policy)));
    let mut says = Vec::new();
    for step in &group.steps {
        says.extend(of(step, Reason::Validation, Entry::has_expressions));
        says.extend(of(step, Reason::RateLimit, |entry| !entry.limits.is_empty()));
        says.extend(of(step, Reason::Concurrency, |entry| entry.hold.is_some()));
        if step.part.on_store_failure == OnStoreFailure::Deny {
            says.extend(of(step, Reason::StoreUnavailable, Entry::shares));
        }
    }
    says
}
