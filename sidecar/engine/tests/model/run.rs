//! A run of calls through an engine and the model side by side.

use std::sync::Arc;

use proptest::prelude::*;
use toolweir_crds::{Action, MCPPolicySpec, Mode, OnDrift, OnNew, OperationKind, Server};
use toolweir_engine::{Decision, Denial, Engine, Memory, Operation, Permit, Policy, PolicyId, Reason, SeenTool, Timestamp};

use crate::{
    engines::{compile, decide, of_any_state, permit, settle, told, usage},
    generate::{SERVERS, Step, TOOLS, Then},
    naive::{History, Part, Seen, enforced, parts},
};

/// A policy in audit mode, and the same policy enforced and alone: it decides on the calls that are let through.
pub struct Audited {
    pub policy: Policy,
    pub engine: Engine,
    pub history: History,
}

/// A call in flight.
pub struct UnderWay {
    pub permits: Vec<Permit>,
    pub past: Option<usize>,
    pub audited: Vec<(usize, Option<usize>)>,
}

pub struct Run {
    pub policies: Vec<Policy>,
    pub engine: Engine,
    pub history: History,
    pub audited: Vec<Audited>,
    pub shuffled: Vec<Policy>,
    pub shuffled_counters: Arc<Memory>,
    pub shuffled_engine: Engine,
    /// The policies on counters of their own, and with one more on the same counters.
    pub less: Engine,
    pub more: Engine,
    pub under_way: Vec<UnderWay>,
    pub now: u64,
}

impl Run {
    pub fn new(policies: Vec<Policy>, shuffled: Vec<Policy>, extra: Policy, now: u64) -> Self {
        let counters = || Memory::new(Memory::COUNTERS);
        let alone = |policy: &Policy| {
            // What is only reported, in audit mode all that is said.
            let mut policy = policy.clone();
            for pins in policy.spec.servers.iter_mut().filter_map(|server| server.pins.as_mut()) {
                pins.on_drift = if pins.on_drift == OnDrift::Audit { OnDrift::Deny } else { pins.on_drift };
                pins.on_new = if pins.on_new == OnNew::Audit { OnNew::Deny } else { pins.on_new };
            }
            let mut enforced = policy.clone();
            enforced.spec.mode = Mode::Enforce;
            // A policy that says nothing but which servers there are.
            let server = |name: &str| Server { name: name.to_owned(), default_action: Action::Allow, ..Server::default() };
            let servers = vec![server("a"), server("b")];
            let id = PolicyId { cluster: true, namespace: String::new(), name: "opens".to_owned() };
            let spec = MCPPolicySpec { servers, ..MCPPolicySpec::default() };
            let opens = Policy { id, created: None, spec, version: None, unreadable: None };
            Audited { policy, engine: compile(&[enforced, opens], &counters()), history: History::default() }
        };
        let (shuffled_counters, shared) = (counters(), counters());
        let mut with_extra = policies.clone();
        with_extra.push(extra);
        Self {
            engine: compile(&policies, &counters()),
            history: History::default(),
            audited: policies.iter().filter(|policy| !enforced(policy)).map(alone).collect(),
            shuffled_engine: compile(&shuffled, &shuffled_counters),
            shuffled_counters,
            less: compile(&policies, &shared),
            more: compile(&with_extra, &shared),
            policies,
            shuffled,
            under_way: Vec::new(),
            now,
        }
    }

    pub fn shows_what_no_enforced_policy_denies_by_action(&self, known: Option<&SeenTool>) -> Result<(), TestCaseError> {
        for server in SERVERS {
            let parts = parts(&self.policies, server);
            for tool in TOOLS {
                let denied = parts.iter().filter(|part| enforced(part.policy)).any(|part| part.by_action(tool, known).is_some());
                prop_assert_eq!(
                    self.engine.may_use(server, Operation::tool(tool), known),
                    !parts.is_empty() && !denied,
                    "{} {}",
                    server,
                    tool
                );
            }
        }
        Ok(())
    }

    /// Checks that a decision is among the verdicts of the tool's name, or where only `*` matches it, of no name.
    pub fn foresaw(&self, call: &Seen<'_>, decision: &Decision) -> Result<(), TestCaseError> {
        let servers = parts(&self.policies, call.server);
        let entries = || servers.iter().flat_map(|part| part.entries(call.tool, call.known));
        let named = self.engine.names(call.server, OperationKind::Tool).any(|tool| tool == call.tool);
        let (name, reason) = decision.labels();
        if reason == Reason::Malformed || !named && entries().any(|entry| entry.name != "*" && entry.class.is_none()) {
            return Ok(());
        }
        let verdicts = self.engine.verdicts(call.server, OperationKind::Tool);
        let told = |verdict: &&toolweir_engine::Verdict<'_>| {
            verdict.name == named.then_some(call.tool) && (verdict.decision, verdict.reason) == (name, reason)
        };
        let policies: Vec<&str> = verdicts.iter().filter(told).map(|verdict| &*verdict.policy).collect();
        let policy = decision.policy.as_deref().unwrap_or_default();
        prop_assert!(policies.contains(&policy), "{} {} by {} is not among {:#?}", name, reason, policy, verdicts);
        Ok(())
    }

    pub fn call(&mut self, call: &Seen<'_>, then: Then) -> Result<Option<Denial>, TestCaseError> {
        let parts = parts(&self.policies, call.server);
        let before = usage(&self.engine, call.now);
        let decision = decide(&self.engine, call);
        let shuffled = decide(&self.shuffled_engine, call);
        let (denial, would_deny, ..) = told(&decision);
        prop_assert_eq!(told(&decision), told(&shuffled), "the order of the policies matters");
        if parts.is_empty() {
            prop_assert_eq!(denial.as_ref().map(|denial| denial.reason), Some(Reason::NoPolicy));
            return Ok(denial);
        }
        self.foresaw(call, &decision)?;
        let together: Vec<Part<'_>> = parts.iter().copied().filter(|part| enforced(part.policy)).collect();
        let answer = self.history.answer(&together, call);
        History::check(&answer, denial.as_ref(), call.now)?;
        let more = permit(decide(&self.more, call));
        let Some(permit_here) = permit(decision) else {
            prop_assert!(more.is_none(), "one policy more lets through what was denied");
            prop_assert_eq!(usage(&self.engine, call.now), before, "a denied call counts");
            return Ok(denial);
        };
        let mut under_way = UnderWay { permits: vec![permit_here], past: self.history.admit(answer), audited: Vec::new() };
        under_way.permits.extend(permit(shuffled));
        // Where one policy more denies, what both have in common counts as if it had been let through.
        under_way.permits.push(more.unwrap_or_else(|| permit(decide(&self.less, call)).expect("a call that is let through")));
        let reported = self.reports_of_pins(&together, call, &would_deny)?;
        // Each audited policy has its say about what the others let through. Nobody is asked for it, and so nobody approves.
        let call = &Seen { approved: false, ..*call };
        let mut expected: Vec<Denial> = Vec::new();
        for (index, audited) in self.audited.iter_mut().enumerate() {
            let servers = audited.policy.spec.servers.iter().filter(|server| [call.server, "*"].contains(&&*server.name));
            let own: Vec<Part<'_>> = servers.map(|server| Part { policy: &audited.policy, server }).collect();
            if own.is_empty() {
                continue;
            }
            let answer = audited.history.answer(&own, call);
            let by_it = would_deny.iter().filter(|denial| denial.policy.as_deref() == Some(&*audited.policy.id.to_string()));
            let by_it: Vec<&Denial> = by_it.collect();
            prop_assert!(by_it.len() <= 1, "{:?}", by_it);
            History::check(&answer, by_it.first().copied(), call.now)?;
            let alone = decide(&audited.engine, call);
            let told = |denial: Option<&Denial>| denial.cloned().map(of_any_state);
            prop_assert_eq!(told(by_it.first().copied()), told(alone.denial()), "audited, and enforced alone");
            under_way.permits.extend(permit(alone));
            expected.extend(by_it.first().copied().cloned());
            if by_it.is_empty() {
                under_way.audited.push((index, audited.history.admit(answer)));
            }
        }
        prop_assert_eq!(expected.len() + reported, would_deny.len());
        prop_assert!(would_deny.is_sorted_by_key(|denial| denial.reason));
        match then {
            Then::Keep => self.under_way.push(under_way),
            Then::Drop => self.settle(under_way, false),
            Then::GiveBack => self.settle(under_way, true),
        }
        Ok(None)
    }

    /// Checks what the pins of enforced policies only report, and returns how many there are.
    fn reports_of_pins(&self, together: &[Part<'_>], call: &Seen<'_>, would_deny: &[Denial]) -> Result<usize, TestCaseError> {
        let reported = together.iter().filter_map(|part| Some((part.by_pins(call.tool, call.known)?.0, part)));
        let mut reported: Vec<_> = reported.map(|(reason, part)| (reason, Some(part.policy.id.to_string()))).collect();
        let of_enforced = |denial: &&Denial| {
            self.audited.iter().all(|audited| denial.policy.as_deref() != Some(&*audited.policy.id.to_string()))
        };
        let found = would_deny.iter().filter(of_enforced);
        let mut found: Vec<_> = found.map(|denial| (denial.reason, denial.policy.as_deref().map(str::to_owned))).collect();
        for list in [&mut found, &mut reported] {
            list.sort_by_key(|(reason, policy)| (policy.clone(), *reason));
        }
        prop_assert_eq!(&found, &reported);
        Ok(found.len())
    }

    pub fn settle(&mut self, under_way: UnderWay, failed: bool) {
        under_way.permits.into_iter().for_each(|permit| settle(permit, failed));
        self.history.end(under_way.past, failed);
        for (index, past) in under_way.audited {
            self.audited[index].history.end(past, failed);
        }
    }

    pub fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::End { which, failed } => {
                if !self.under_way.is_empty() {
                    let under_way = self.under_way.swap_remove(which.index(self.under_way.len()));
                    self.settle(under_way, *failed);
                }
            }
            Step::Call { after, server, tool, session, arguments, then, approved, obedient, seen } => {
                self.now += after;
                let mut call =
                    Seen { server, tool, session, arguments, now: self.now, known: seen.as_ref(), approved: *approved };
                let wait = self.call(&call, *then)?.and_then(|denial| denial.retry_after);
                if let Some(wait) = wait.filter(|_| *obedient) {
                    self.now = Timestamp(self.now).after(wait).0;
                    call.now = self.now - 1;
                    let early = decide(&self.engine, &call).denial().map(|denial| denial.reason);
                    prop_assert_eq!(early, Some(Reason::RateLimit), "told to wait too long");
                    call.now = self.now;
                    let again = self.call(&call, *then)?.map(|denial| denial.reason);
                    prop_assert!(again.is_none_or(|again| again == Reason::Concurrency), "told to wait too short: {:?}", again);
                }
            }
        }
        Ok(())
    }
}
