//! The budget of a decision: the most expensive calls, whose work is charged before it is done.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "common/worst.rs"]
mod worst;

use toolweir_crds::{Mode, Tool, Validation};
use toolweir_engine::{
    Call, CompileOptions, Engine, Memory, Operation, Policy, Reason, Severity, Timestamp, json::Reader, shared::Peeked,
};
use worst::{Case, Ends, cases, policy};

fn engine(policies: &[Policy]) -> Engine {
    let (engine, problems) = Engine::compile(policies, Memory::new(Memory::COUNTERS), &CompileOptions::default());
    assert!(problems.iter().all(|problem| problem.severity == Severity::Doubt), "{problems:#?}");
    engine
}

fn call<'a>(tool: &'a str, arguments: &'a str) -> Call<'a> {
    let arguments = Reader::new(arguments.as_bytes()).unwrap().value().unwrap();
    Call { server: "server", operation: Operation::tool(tool), arguments: Some(arguments), session: "", seen: None }
}

fn reason(engine: &Engine, call: &Call<'_>) -> Reason {
    engine.decide(call, Timestamp(0)).denial().map_or(Reason::None, |denial| denial.reason)
}

/// The budget denies the same calls each time, in a decision and in an explanation of it.
#[test]
fn the_dearest_calls_end_with_the_budget() {
    let mut wrong = Vec::new();
    for Case { name, policy, tool, arguments, ends } in cases() {
        let (engine, call) = (engine(&[policy]), call(&tool, &arguments));
        for _ in 0..2 {
            let reason = reason(&engine, &call);
            if (reason == Reason::ExpressionBudget) != (ends == Ends::Spent) {
                wrong.push(format!("{name}: {reason}"));
            }
        }
        let explained = engine.explain(&call, Timestamp(0), &Peeked::default());
        if (explained.verdict.reason == "expression_budget") != (ends == Ends::Spent) {
            wrong.push(format!("explained, {name}: {:?}", explained.verdict));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

/// A condition that takes about this many units, on a text of this length.
fn dear(mode: Mode, name: &str, conditions: usize) -> Policy {
    let validation = Validation { expression: "args.t.matches('^[a-z]*$')".to_owned(), message: None };
    let tool = Tool { name: "pay".to_owned(), validations: vec![validation; conditions], ..Tool::default() };
    let mut policy = policy(vec![tool]);
    name.clone_into(&mut policy.id.name);
    policy.spec.mode = mode;
    policy
}

#[test]
fn the_budget_is_one_for_all_policies_and_an_audited_one_blocks_nothing() {
    let text = format!("{{\"t\":\"{}\"}}", "a".repeat(3_000_000));
    let call = call("pay", &text);
    let one = |mode| reason(&engine(&[dear(mode, "a", 1)]), &call);
    assert_eq!(one(Mode::Enforce), Reason::None);
    // Two that fit on their own do not together.
    let enforced = [dear(Mode::Enforce, "a", 1), dear(Mode::Enforce, "b", 1)];
    assert_eq!(reason(&engine(&enforced), &call), Reason::ExpressionBudget);
    // What is audited comes after what is enforced, whatever the names are.
    let audited = engine(&[dear(Mode::Audit, "a", 2), dear(Mode::Enforce, "b", 1), dear(Mode::Audit, "c", 1)]);
    let decision = audited.decide(&call, Timestamp(0));
    assert_eq!(decision.labels(), ("would_deny", Reason::ExpressionBudget));
    assert!(decision.would_deny.iter().all(|denial| denial.reason == Reason::ExpressionBudget));
    assert!(decision.denial().is_none());
}

#[test]
fn a_denial_says_what_to_do() {
    let text = format!("{{\"t\":\"{}\"}}", "a".repeat(4_000_000));
    let decision = engine(&[dear(Mode::Enforce, "a", 2)]).decide(&call("pay", &text), Timestamp(0));
    assert_eq!(
        decision.denial().unwrap().message,
        "Denied by policy agents/a: the conditions on this call take more work than one call is given. Send smaller arguments."
    );
}
