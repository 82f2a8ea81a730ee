//! Which servers' TLS is opened, where policies say different things about it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use serde_json::{Value, json};
use toolweir_crds::ServerTls::{self, Intercept, Refuse};
use toolweir_engine::{CompileOptions, Engine, Memory, Operation, Policy, PolicyId, Problem, Reason, Severity};

const HERE: &str = "https://here.test/mcp";
const THERE: &str = "https://there.test/mcp";

/// A policy on the server `bank`, valid unless `tools` make it invalid.
fn policy(name: &str, mode: &str, url: Option<&str>, tls: Option<ServerTls>, tools: &Value) -> Policy {
    let server = json!({"name": "bank", "url": url, "tls": tls, "defaultAction": "Allow", "tools": tools});
    let spec = serde_json::from_value(json!({"mode": mode, "servers": [server]})).unwrap();
    let id = PolicyId { cluster: false, namespace: "n".to_owned(), name: name.to_owned() };
    Policy { id, created: None, spec, version: None, unreadable: None }
}

fn said(name: &str, url: &str, tls: Option<ServerTls>) -> Policy {
    policy(name, "Enforce", Some(url), tls, &json!([]))
}

/// The tools of a policy that does not compile.
fn wrong() -> Value {
    json!([{"name": "t", "validations": [{"expression": "no such thing"}]}])
}

fn compile(policies: &[Policy]) -> (Engine, Vec<Problem>) {
    Engine::compile(policies, Memory::new(0), &CompileOptions::default())
}

fn is_intercepted(policies: &[Policy]) -> bool {
    compile(policies).0.server("bank").unwrap().intercept
}

#[test]
fn tls_is_opened_where_a_policy_says_so_and_none_refuses() {
    let (intercept, refuse, nothing) = (Some(Intercept), Some(Refuse), None);
    for (first, second, expected) in [
        (nothing, nothing, false),
        (intercept, nothing, true),
        (nothing, intercept, true),
        (intercept, intercept, true),
        (intercept, refuse, false),
        (refuse, intercept, false),
        (refuse, nothing, false),
    ] {
        let policies = [said("p0", HERE, first), said("p1", HERE, second)];
        assert_eq!(is_intercepted(&policies), expected, "{first:?} {second:?}");
    }
    assert!(!is_intercepted(&[said("p", HERE, nothing)]));
    // One that gives no url has no say in it.
    assert!(is_intercepted(&[policy("p0", "Enforce", None, nothing, &json!([])), said("p1", HERE, intercept)]));
}

#[test]
fn a_refusal_that_overrules_another_policy_is_told_to_that_one() {
    let (engine, problems) = compile(&[said("p0", HERE, Some(Intercept)), said("p1", HERE, Some(Refuse))]);
    let message = "spec.servers[0].tls: is Intercept, but policy n/p1 says Refuse, which holds; write the same in both, or leave it out in one";
    let told: Vec<_> = problems.iter().map(|problem| (problem.policy, problem.severity, problem.error.to_string())).collect();
    assert_eq!(told, [(0, Severity::Conflict, message.to_owned())]);
    // The calls are governed all the same.
    assert!(engine.closed("bank").is_none() && engine.may_use("bank", Operation::tool("any"), None));
}

#[test]
fn it_holds_for_the_url_that_the_same_policy_gives_and_for_no_other() {
    // The url of the older policy is in force.
    assert!(!is_intercepted(&[said("p0", HERE, None), said("p1", THERE, Some(Intercept))]));
    assert!(is_intercepted(&[said("p0", HERE, Some(Intercept)), said("p1", THERE, None)]));
    // A refusal holds for the server, wherever it is.
    assert!(!is_intercepted(&[said("p0", HERE, Some(Intercept)), said("p1", THERE, Some(Refuse))]));
}

#[test]
fn the_mode_does_not_matter() {
    let audit = |name, tls| policy(name, "Audit", Some(HERE), tls, &json!([]));
    assert!(is_intercepted(&[audit("p", Some(Intercept))]));
    assert!(!is_intercepted(&[said("p0", HERE, Some(Intercept)), audit("p1", Some(Refuse))]));
}

#[test]
fn a_policy_that_does_not_compile_opens_nothing() {
    let broken = policy("p0", "Enforce", Some(HERE), Some(Intercept), &wrong());
    let (engine, _) = compile(std::slice::from_ref(&broken));
    assert!(!engine.server("bank").unwrap().intercept);
    assert_eq!(engine.closed("bank").map(|denial| denial.reason), Some(Reason::InvalidPolicy));
    // Nor does it keep another from that, but for a refusal. The calls are denied in words.
    assert!(is_intercepted(&[broken, said("p1", HERE, Some(Intercept))]));
    let broken = policy("p0", "Enforce", Some(HERE), Some(Refuse), &wrong());
    assert!(!is_intercepted(&[broken, said("p1", HERE, Some(Intercept))]));
    // What cannot be opened does not compile.
    for url in ["http://here.test/mcp", "https://10.0.0.1/mcp"] {
        assert!(!is_intercepted(&[said("p", url, Some(Intercept))]), "{url}");
    }
}

/// What a policy can say of a server.
#[derive(Clone, Copy, Debug)]
struct Say {
    url: &'static str,
    tls: Option<ServerTls>,
    mode: &'static str,
    compiles: bool,
}

/// The rule as docs/policies.md has it. The policies are ordered by age.
fn rule(said: &[Say]) -> bool {
    let in_force = said[0].url;
    let opens = |say: &Say| say.compiles && say.tls == Some(Intercept) && say.url == in_force;
    said.iter().any(opens) && !said.iter().any(|say| say.tls == Some(Refuse))
}

#[test]
fn every_two_and_many_three_policies_are_merged_by_the_rule_in_any_order() {
    let mut all = Vec::new();
    for url in [HERE, THERE] {
        for tls in [None, Some(Intercept), Some(Refuse)] {
            for mode in ["Enforce", "Audit"] {
                all.extend([true, false].map(|compiles| Say { url, tls, mode, compiles }));
            }
        }
    }
    for (a, b, c) in all.iter().enumerate().flat_map(|(at, a)| {
        let third = all[(at * 7 + 3) % all.len()];
        all.iter().map(move |b| (*a, *b, third))
    }) {
        for said in [&[a, b][..], &[a, b, c], &[c, b, a]] {
            let made = |(at, say): (usize, &Say)| {
                let tools = if say.compiles { json!([]) } else { wrong() };
                policy(&format!("p{at}"), say.mode, Some(say.url), say.tls, &tools)
            };
            let mut policies: Vec<Policy> = said.iter().enumerate().map(made).collect();
            assert_eq!(is_intercepted(&policies), rule(said), "{said:?}");
            policies.reverse();
            assert_eq!(is_intercepted(&policies), rule(said), "turned: {said:?}");
        }
    }
}
