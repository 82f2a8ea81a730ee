//! Policies from short texts, and calls on them.
#![allow(dead_code, reason = "not every test uses all of it")]

use toolweir_crds::read_documents;
use toolweir_engine::{
    Call, CompileOptions, Decision, Denial, Effect, Engine, Memory, Operation, Permit, Policy, Problem, Reason, Timestamp,
    json::Reader,
};

/// A policy of the namespace `agents`.
pub fn policy(name: &str, spec: &str) -> Policy {
    manifest("MCPPolicy", &format!("name: {name}, namespace: agents"), spec)
}

pub fn cluster_policy(name: &str, spec: &str) -> Policy {
    manifest("MCPClusterPolicy", &format!("name: {name}"), spec)
}

pub fn manifest(kind: &str, metadata: &str, spec: &str) -> Policy {
    let text = format!("{{apiVersion: toolweir.dev/v1alpha1, kind: {kind}, metadata: {{{metadata}}}, spec: {{{spec}}}}}");
    read_documents("test", &text).unwrap_or_else(|errors| panic!("{errors:#?}\n{text}")).remove(0).document.into()
}

/// A policy `agents/p` with these entries for the server `s`.
pub fn tools(tools: &str) -> Policy {
    policy("p", &format!("servers: [{{name: s, url: 'http://s/mcp', tools: [{tools}]}}]"))
}

pub fn compile(policies: &[Policy]) -> (Engine, Vec<Problem>) {
    let options = CompileOptions {
        shared_store: false,
        pod: "pod-1".to_owned(),
        namespace: "agents".to_owned(),
        service_account: "default".to_owned(),
        ..CompileOptions::default()
    };
    Engine::compile(policies, Memory::new(Memory::COUNTERS), &options)
}

/// An engine of policies without a problem.
pub fn engine(policies: &[Policy]) -> Engine {
    let (engine, problems) = compile(policies);
    assert_eq!(problems, []);
    engine
}

pub const SECOND: u64 = 1_000_000_000;

/// Decides on a call of the server `s`.
pub fn call(engine: &Engine, tool: &str, arguments: &str, seconds: u64) -> Decision {
    call_in(engine, "s", tool, "session-1", arguments, seconds)
}

pub fn call_in(engine: &Engine, server: &str, tool: &str, session: &str, arguments: &str, seconds: u64) -> Decision {
    let arguments = (!arguments.is_empty()).then(|| Reader::new(arguments.as_bytes()).unwrap().value().unwrap());
    engine.decide(&Call { server, operation: Operation::tool(tool), arguments, session, seen: None }, Timestamp(seconds * SECOND))
}

#[track_caller]
pub fn allowed(decision: Decision) -> Permit {
    match decision.effect {
        Effect::Allowed(permit) => permit,
        Effect::Denied(denial) => panic!("{denial:?}"),
    }
}

#[track_caller]
pub fn denied(decision: Decision) -> Denial {
    match decision.effect {
        Effect::Denied(denial) => denial,
        Effect::Allowed(_) => panic!("allowed"),
    }
}

/// The reason of a decision: `None` for a call that is let through.
pub fn reason(decision: &Decision) -> Reason {
    decision.denial().map_or(Reason::None, |denial| denial.reason)
}
