//! Engines for the model, and what can be seen of their decisions.

use std::{collections::BTreeSet, sync::Arc};

use proptest::prelude::*;
use toolweir_crds::{
    Action, Mode, Scope, TimeSpan,
    explain::{AskExplanation, Explanation, LimitExplanation, PolicyExplanation, VerdictExplanation},
};
use toolweir_engine::{
    ApprovalAsk, AskingPolicy, Call, CompileOptions, Decision, DecisionStart, Denial, Effect, Engine, Memory, Operation, Permit,
    Policy, Reason, Severity, Timestamp,
    json::Reader,
    shared::{NothingKnown, Peeked},
};

use crate::{
    generate::pins,
    naive::{Seen, broken},
};

pub fn compile(policies: &[Policy], counters: &Arc<Memory>) -> Engine {
    let (engine, problems) = Engine::compile(policies, Arc::clone(counters), &CompileOptions::default());
    let invalid: BTreeSet<usize> =
        problems.iter().filter(|problem| problem.severity == Severity::Invalid).map(|problem| problem.policy).collect();
    let expected: BTreeSet<usize> = (0..policies.len()).filter(|index| broken(&policies[*index])).collect();
    assert_eq!(invalid, expected, "{problems:#?}");
    engine.with_pins(&pins())
}

pub fn decide(engine: &Engine, call: &Seen<'_>) -> Decision {
    let text = call.arguments.json();
    let arguments = text.as_ref().map(|text| Reader::new(text.as_bytes()).unwrap().value().unwrap());
    let call_ =
        Call { server: call.server, operation: Operation::tool(call.tool), arguments, session: call.session, seen: call.known };
    let decision = engine.decide(&call_, Timestamp(call.now));
    let Some(ask) = decision.denial().and_then(|denial| denial.ask.as_deref()).filter(|_| call.approved) else { return decision };
    let DecisionStart::Decided(decision) = engine.begin_approved(&call_, Some(ask), Timestamp(call.now)) else {
        panic!("no count is shared")
    };
    decision
}

/// A denial without what tells one state of a policy from another.
pub fn of_any_state(mut denial: Denial) -> Denial {
    for asking in denial.ask.iter_mut().flat_map(|ask| &mut ask.policies) {
        *asking = Arc::new(AskingPolicy { revision: "".into(), ..(**asking).clone() });
    }
    denial
}

pub fn explain(engine: &Engine, call: &Seen<'_>) -> Explanation {
    let text = call.arguments.json();
    let arguments = text.as_ref().map(|text| Reader::new(text.as_bytes()).unwrap().value().unwrap());
    let call_ =
        Call { server: call.server, operation: Operation::tool(call.tool), arguments, session: call.session, seen: call.known };
    engine.explain(&call_, Timestamp(call.now), &Peeked::default())
}

/// The policies, those at these places with counts that pods share.
pub fn with_shared(policies: &[Policy], shared: &[Option<Scope>]) -> Vec<Policy> {
    let mut policies = policies.to_vec();
    for (policy, scope) in policies.iter_mut().zip(shared) {
        let Some(scope) = scope else { continue };
        for tool in policy.spec.servers.iter_mut().flat_map(|server| &mut server.tools) {
            tool.limits.iter_mut().filter(|limit| limit.scope == Scope::Pod).for_each(|limit| limit.scope = *scope);
            if tool.max_concurrent.is_some() {
                tool.max_concurrent_scope = *scope;
            }
        }
    }
    policies
}

/// An engine for one of several pods of a workload.
pub fn compile_for(pod: &str, policies: &[Policy]) -> Engine {
    let options = CompileOptions {
        shared_store: true,
        pod: pod.to_owned(),
        namespace: "agents".to_owned(),
        service_account: "default".to_owned(),
        workload: "Deployment/social".to_owned(),
        of_any_pod: false,
    };
    Engine::compile(policies, Memory::new(Memory::COUNTERS), &options).0.with_pins(&pins())
}

pub fn settle(permit: Permit, failed: bool) {
    if failed { permit.give_back() } else { drop(permit) }
}

pub fn permit(decision: Decision) -> Option<Permit> {
    match decision.effect {
        Effect::Allowed(permit) => Some(permit),
        Effect::Denied(_) => None,
    }
}

/// Everything that can be seen of a decision.
pub fn told(decision: &Decision) -> (Option<Denial>, Vec<Denial>, Option<String>, Option<String>) {
    let text = |name: &Option<Arc<str>>| name.as_deref().map(str::to_owned);
    (decision.denial().cloned(), decision.would_deny.clone(), text(&decision.policy), text(&decision.entry))
}

pub fn usage(engine: &Engine, now: u64) -> Vec<(String, u64)> {
    let text = |view: &toolweir_engine::LimitView<'_>| format!("{} {} {} {}", view.policy, view.server, view.tool, view.limit);
    engine.limits(Timestamp(now), &NothingKnown).iter().map(|view| (text(view), view.used.to_bits())).collect()
}

/// Checks an explanation against the decision.
pub fn explains(explained: &Explanation, decision: &Decision) -> Result<(), TestCaseError> {
    let of_denial = |denial: &Denial| VerdictExplanation {
        allowed: false,
        reason: denial.reason.to_string(),
        policy: denial.policy.as_deref().map(str::to_owned),
        entry: denial.entry.as_deref().map(str::to_owned),
        message: Some(denial.message.clone()),
        retry_after_seconds: serde_json::to_value(denial).unwrap()["retryAfterSeconds"].as_u64(),
        approval: denial.ask.as_deref().map(of_ask),
    };
    let (denial, would_deny, policy, entry) = told(decision);
    let (name, reason) = decision.labels();
    let verdict = match &denial {
        Some(denial) => of_denial(denial),
        None => VerdictExplanation {
            allowed: true,
            reason: reason.to_string(),
            policy,
            entry,
            message: None,
            retry_after_seconds: None,
            approval: None,
        },
    };
    prop_assert_eq!((explained.decision.as_str(), &explained.verdict), (name, &verdict));
    prop_assert_eq!(&explained.would_deny, &would_deny.iter().map(of_denial).collect::<Vec<_>>());
    // Each policy on its own: all that are enforced must allow, and the one that denies says what all of them say.
    let enforces = |said: &&PolicyExplanation| said.mode == Mode::Enforce || said.broken.is_some();
    let out_of_counters = |reason: &str| reason == Reason::CountersExhausted.as_str();
    let allow = explained.policies.iter().filter(enforces).all(|said| said.verdict.allowed);
    if !explained.policies.is_empty() && !out_of_counters(&verdict.reason) {
        prop_assert_eq!(allow, verdict.allowed, "{:#?}", explained);
    }
    for verdict in denial.iter().map(|_| &verdict).chain(&explained.would_deny) {
        // What pins only report is no policy's verdict.
        let reports = |said: &PolicyExplanation| {
            let differs = said.servers.iter().filter_map(|server| server.pins.as_ref()).any(|pins| pins.state != "same");
            differs && !verdict.allowed && ["pin_drift", "not_pinned", "pin_unverified"].contains(&&*verdict.reason)
        };
        let same = |said: &PolicyExplanation| {
            said.verdict == VerdictExplanation { approval: said.verdict.approval.clone(), ..verdict.clone() }
                || denial.is_none() && Some(&said.policy) == verdict.policy.as_ref() && reports(said)
        };
        // Together they may need more counts than each does alone.
        prop_assert!(
            explained.policies.is_empty() || out_of_counters(&verdict.reason) || explained.policies.iter().any(same),
            "{:#?}",
            explained
        );
    }
    // The policies that ask are those that ask on their own, but for those that something else denies.
    if denial.is_some()
        && let Some(ask) = &verdict.approval
    {
        let asks = explained.policies.iter().filter(enforces).filter(|said| {
            said.servers.iter().flat_map(|server| &server.entries).filter_map(|entry| entry.approval.as_ref()).any(|of| of.asks)
        });
        prop_assert_eq!(&ask.policies, &asks.map(|said| said.policy.clone()).collect::<Vec<_>>());
    }
    explained.policies.iter().try_for_each(explains_policy)
}

fn of_ask(ask: &ApprovalAsk) -> AskExplanation {
    AskExplanation {
        policies: ask.policies.iter().map(|asking| asking.policy.to_string()).collect(),
        message: ask.message.clone(),
        shown: ask.shown.clone(),
        hold: TimeSpan::of(ask.hold),
        expiry: TimeSpan::of(ask.expiry),
        pending: ask.pending,
    }
}

/// The explanation of one policy agrees with itself.
fn explains_policy(said: &PolicyExplanation) -> Result<(), TestCaseError> {
    let entries = || said.servers.iter().flat_map(|server| &server.entries);
    let limits = || entries().flat_map(|entry| &entry.limits);
    let busy = entries().filter_map(|entry| entry.max_concurrent).any(|places| places.under_way >= places.max);
    let held = entries().flat_map(|entry| &entry.validations).all(|validation| validation.holds);
    let fits = |limit: &LimitExplanation| limit.fits;
    let room = |limit: &LimitExplanation| {
        limit.used + limit.adds.unwrap_or(f64::INFINITY) <= f64::from(i32::try_from(limit.max).unwrap())
    };
    prop_assert!(limits().all(|limit| limit.fits == room(limit)), "{:#?}", said);
    let asks = entries().filter_map(|entry| entry.approval.as_ref()).any(|approval| approval.asks);
    match said.verdict.reason.as_str() {
        "none" => prop_assert!(!asks && !busy && held && limits().all(fits), "{:#?}", said),
        "approval_pending" => prop_assert!(asks && held, "{:#?}", said),
        "rate_limit" => prop_assert!(held && !limits().all(fits), "{:#?}", said),
        "concurrency" => prop_assert!(!asks && held && busy && limits().all(fits), "{:#?}", said),
        "validation" => prop_assert!(!held || limits().any(|limit| limit.error.is_some()), "{:#?}", said),
        "not_listed" | "denied" => {
            prop_assert!(said.servers.iter().any(|server| server.action == Action::Deny), "{:#?}", said);
        }
        "pin_drift" | "not_pinned" | "pin_unverified" => {
            let differs = |state: &str| state != "same";
            prop_assert!(said.servers.iter().filter_map(|server| server.pins.as_ref()).any(|pins| differs(&pins.state)));
        }
        "invalid_policy" => prop_assert!(said.broken.is_some()),
        "malformed" | "counters_exhausted" => {}
        other => prop_assert!(false, "{}", other),
    }
    Ok(())
}
