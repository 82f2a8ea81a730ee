//! The whole engine against a naive model: every call that was let through is kept with its exact time, and for each call
//! everything is worked out anew from the meaning of the policies.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
#[path = "model/engines.rs"]
mod engines;
#[path = "model/generate.rs"]
mod generate;
#[path = "model/naive.rs"]
mod naive;
#[path = "model/run.rs"]
mod run;

use std::{collections::BTreeSet, sync::Arc};

use engines::{compile, compile_for, decide, explain, explains, of_any_state, permit, settle, told, usage, with_shared};
use generate::{Step, Then, policies, policy, seen, steps};
use naive::Seen;
use proptest::{collection::vec, option, prelude::*, sample::select, test_runner::FileFailurePersistence};
use run::Run;
use toolweir_crds::{Scope, explain::Explanation};
use toolweir_engine::{Call, Decision, DecisionStart, Denial, Engine, Memory, Operation, Permit, Timestamp, json::Reader};

/// Decides on a call with a store that answers, as it was explained. What needs approval then gets it, if so.
fn decided_and_explained(
    engine: &Engine,
    store: &Arc<Memory>,
    call: &Call<'_>,
    approved: bool,
    explained: &Explanation,
    now: u64,
) -> Result<Decision, TestCaseError> {
    let decision = common::decide(engine, store, call, Timestamp(now));
    explains(explained, &decision)?;
    let ask = decision.denial().and_then(|denial| denial.ask.as_deref()).filter(|_| approved);
    let again = ask.map(|ask| common::decide_approved(engine, store, call, Some(ask), Timestamp(now)));
    Ok(again.unwrap_or(decision))
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_engine_decides_as_the_policies_mean(
        (policies, shuffled) in policies().prop_flat_map(|policies| (Just(policies.clone()), Just(policies).prop_shuffle())),
        extra in policy("k"),
        start in 0_u64..2_000_000_000_000_000_000,
        steps in steps(),
        known in seen(),
    ) {
        let mut run = Run::new(policies, shuffled, extra, start);
        run.shows_what_no_enforced_policy_denies_by_action(known.as_ref())?;
        for (number, step) in steps.iter().enumerate() {
            run.step(step)?;
            if number % 16 == 15 {
                // What counts lives on when policies are compiled anew, in whatever order.
                run.shuffled.rotate_left(1);
                run.shuffled_engine = compile(&run.shuffled, &run.shuffled_counters);
            }
        }
        run.history.never_too_much()?;
        for audited in &run.audited {
            audited.history.never_too_much()?;
        }
    }

    /// Two pods that share all counts decide together as one pod that has all the calls; and what is explained by what the
    /// store says is what is then decided.
    #[test]
    fn pods_that_share_their_counts_decide_as_one(
        policies in policies(),
        scopes in vec(select(vec![Scope::Workload, Scope::ServiceAccount, Scope::Namespace, Scope::Policy]), 4),
        start in 0_u64..2_000_000_000_000_000_000,
        steps in steps(),
    ) {
        let mut policies = policies;
        // A session is one of one pod.
        for limit in policies.iter_mut().flat_map(|policy| &mut policy.spec.servers).flat_map(|server| &mut server.tools).flat_map(|tool| &mut tool.limits) {
            limit.scope = Scope::Pod;
        }
        let alone = compile(&policies, &Memory::new(Memory::COUNTERS));
        let shared = with_shared(&policies, &scopes.iter().copied().map(Some).collect::<Vec<_>>());
        let (pods, store) = (["a", "b"].map(|pod| compile_for(pod, &shared)), Memory::new(Memory::COUNTERS));
        let (mut now, mut under_way): (u64, Vec<[Option<Permit>; 2]>) = (start, Vec::new());
        for (number, step) in steps.iter().enumerate() {
            match step {
                Step::End { which, failed } => {
                    if !under_way.is_empty() {
                        let permits = under_way.swap_remove(which.index(under_way.len()));
                        permits.into_iter().flatten().for_each(|permit| settle(permit, *failed));
                    }
                }
                Step::Call { after, server, tool, session, arguments, then, approved, seen, .. } => {
                    now += after;
                    let known = seen.as_ref();
                    let expected = decide(&alone, &Seen { server, tool, session, arguments, now, known, approved: *approved });
                    let text = arguments.json();
                    let arguments = text.as_ref().map(|text| Reader::new(text.as_bytes()).unwrap().value().unwrap());
                    let call = Call { server, operation: Operation::tool(tool), arguments, session, seen: known };
                    let pod = &pods[number % 2];
                    let peeked = common::peek(pod, &store, &call, Timestamp(now));
                    let explained = pod.explain(&call, Timestamp(now), &peeked);
                    let decision = decided_and_explained(pod, &store, &call, *approved, &explained, now)?;
                    let without_scope = |denial: Denial| {
                        let mut denial = of_any_state(denial);
                        denial.limit.iter_mut().for_each(|limit| limit.scope = Scope::Pod);
                        denial.message.clear();
                        denial
                    };
                    let told = |decision: &Decision| {
                        let (denial, would_deny, policy, entry) = told(decision);
                        let would_deny: Vec<Denial> = would_deny.into_iter().map(without_scope).collect();
                        (denial.map(without_scope), would_deny, policy, entry)
                    };
                    prop_assert_eq!(told(&decision), told(&expected), "pods that share say another thing than one alone");
                    let permits = [permit(decision), permit(expected)];
                    match then {
                        Then::Keep => under_way.push(permits),
                        Then::Drop | Then::GiveBack => {
                            permits.into_iter().flatten().for_each(|permit| settle(permit, *then == Then::GiveBack));
                        }
                    }
                }
            }
        }
    }

    /// A call is let through as if no policy shared its counts, also where some do and others do not; and the explanation agrees
    /// with the decision.
    #[test]
    fn a_call_takes_its_own_counts_and_shared_ones_or_none(
        policies in policies(),
        scopes in vec(option::of(Just(Scope::Workload)), 4),
        start in 0_u64..2_000_000_000_000_000_000,
        steps in steps(),
    ) {
        let alone = compile(&policies, &Memory::new(Memory::COUNTERS));
        let (pod, store) = (compile_for("a", &with_shared(&policies, &scopes)), Memory::new(Memory::COUNTERS));
        let (mut now, mut under_way): (u64, Vec<[Option<Permit>; 2]>) = (start, Vec::new());
        for step in &steps {
            match step {
                Step::End { which, failed } => {
                    if !under_way.is_empty() {
                        let permits = under_way.swap_remove(which.index(under_way.len()));
                        permits.into_iter().flatten().for_each(|permit| settle(permit, *failed));
                    }
                }
                Step::Call { after, server, tool, session, arguments, then, approved, obedient, seen } => {
                    now += after;
                    let known = seen.as_ref();
                    let seen = Seen { server, tool, session, arguments, now, known, approved: *approved };
                    let text = arguments.json();
                    let arguments = text.as_ref().map(|text| Reader::new(text.as_bytes()).unwrap().value().unwrap());
                    let call = Call { server, operation: Operation::tool(tool), arguments, session, seen: known };
                    if *obedient {
                        // A request that ends before the store has answered leaves nothing behind.
                        let before = usage(&pod, now);
                        if let DecisionStart::Decided(decision) = pod.begin(&call, Timestamp(now)) {
                            permit(decision).into_iter().for_each(Permit::give_back);
                        }
                        prop_assert_eq!(usage(&pod, now), before, "a decision that was not finished counts");
                    }
                    let expected = decide(&alone, &seen);
                    let peeked = common::peek(&pod, &store, &call, Timestamp(now));
                    let explained = pod.explain(&call, Timestamp(now), &peeked);
                    let before = usage(&pod, now);
                    let decision = decided_and_explained(&pod, &store, &call, *approved, &explained, now)?;
                    let by = |decision: &Decision| {
                        let policies = decision.would_deny.iter().filter_map(|denial| denial.policy.clone());
                        (decision.denial().is_none(), policies.collect::<BTreeSet<_>>())
                    };
                    prop_assert_eq!(by(&decision), by(&expected), "shared counts say another thing than own ones");
                    if decision.denial().is_some() {
                        prop_assert_eq!(usage(&pod, now), before, "a denied call counts");
                    }
                    let permits = [permit(decision), permit(expected)];
                    match then {
                        Then::Keep => under_way.push(permits),
                        Then::Drop | Then::GiveBack => {
                            permits.into_iter().flatten().for_each(|permit| settle(permit, *then == Then::GiveBack));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_explained_is_what_is_then_decided_and_to_explain_changes_nothing(
        policies in policies(),
        start in 0_u64..2_000_000_000_000_000_000,
        steps in steps(),
        most in prop_oneof![Just(Memory::COUNTERS), 0_usize..8],
    ) {
        let engine = compile(&policies, &Memory::new(most));
        // The same calls, and nobody asks for an explanation.
        let silent = compile(&policies, &Memory::new(most));
        let (mut now, mut under_way): (u64, Vec<[Option<Permit>; 2]>) = (start, Vec::new());
        for step in &steps {
            match step {
                Step::End { which, failed } => {
                    if !under_way.is_empty() {
                        let permits = under_way.swap_remove(which.index(under_way.len()));
                        permits.into_iter().flatten().for_each(|permit| settle(permit, *failed));
                    }
                }
                Step::Call { after, server, tool, session, arguments, then, seen, .. } => {
                    now += after;
                    let call = Seen { server, tool, session, arguments, now, known: seen.as_ref(), approved: false };
                    let explained = explain(&engine, &call);
                    let before = usage(&engine, now);
                    prop_assert_eq!(&explained, &explain(&engine, &call), "it says another thing the second time");
                    prop_assert_eq!(usage(&engine, now), before);
                    let (decision, silent) = (decide(&engine, &call), decide(&silent, &call));
                    explains(&explained, &decision)?;
                    prop_assert_eq!(told(&decision), told(&silent), "it changed what is decided");
                    let permits = [permit(decision), permit(silent)];
                    match then {
                        Then::Keep => under_way.push(permits),
                        Then::Drop | Then::GiveBack => {
                            permits.into_iter().flatten().for_each(|permit| settle(permit, *then == Then::GiveBack));
                        }
                    }
                }
            }
        }
    }
}
