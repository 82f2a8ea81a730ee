//! A file of policies: read, compiled, and asked about a fixed set of calls.

use std::time::Duration;

use toolweir_crds::read_documents;
use toolweir_engine::{
    Call, CompileOptions, Decision, Engine, Memory, Policy, Reason, Severity, Timestamp,
    json::{Raw, Reader},
    shared::NothingKnown,
};

use super::assert_one_line;

/// Arguments as agents send them, and as they should not.
const ARGUMENTS: [&str; 8] = [
    "{}",
    r#"{"amount": 5, "currency": "EUR", "to": "a@example.org", "tags": ["a", "b"], "dry_run": true}"#,
    r#"{"amount": -1, "currency": "", "to": null, "tags": []}"#,
    r#"{"amount": 1e308, "currency": "\u00e9\ud83d\ude00", "to": {"name": "x"}, "tags": [[1], {"a": 1.5}]}"#,
    r#"{"amount": "5", "amount": 5}"#,
    r#"{"Amount": 18446744073709551616, "amount": 9223372036854775807, "text": "\ud800"}"#,
    "[1, 2]",
    "null",
];

/// The number of calls that are decided by one policy, so that one with a thousand entries is no slow input.
const CALLS: usize = 200;

fn raw(text: &'static str) -> Raw<'static> {
    Reader::new(text.as_bytes()).and_then(|mut reader| reader.value()).expect("arguments are JSON")
}

/// Returns the reason of a denial; `None` for a call that is let through.
fn reason(decision: &Decision) -> Option<Reason> {
    decision.denial().map(|denial| denial.reason)
}

/// The check.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let documents = match read_documents("policy.yaml", text) {
        Ok(documents) => documents,
        Err(errors) => {
            assert!(!errors.is_empty());
            for error in errors {
                let line = error.to_string();
                assert_one_line(&line);
                assert!(line.starts_with("policy.yaml:"), "{line}");
            }
            return;
        }
    };
    let policies: Vec<Policy> = documents.iter().map(|located| located.document.clone().into()).collect();
    let options = CompileOptions {
        shared_store: true,
        pod: "pod".to_owned(),
        namespace: "ns".to_owned(),
        service_account: "sa".to_owned(),
        workload: "Deployment/agent".to_owned(),
        of_any_pod: false,
    };
    let (engine, problems) = Engine::compile(&policies, Memory::new(64), &options);
    for problem in &problems {
        assert_one_line(&problem.error.to_string());
        let located = documents.get(problem.policy).expect("a problem has its policy");
        assert_one_line(&located.error(&problem.error).to_string());
    }
    let mut turned = policies.clone();
    turned.reverse();
    let (other, _) = Engine::compile(&turned, Memory::new(64), &options);

    let broken = |index: usize| problems.iter().any(|problem| problem.policy == index && problem.severity == Severity::Invalid);
    let closes = |index: usize, server: &str| {
        broken(index) && policies[index].spec.servers.iter().any(|named| named.name == server || named.name == "*")
    };
    let (mut calls, mut now) = (0, Timestamp::default());
    for server in engine.servers() {
        let closed = (0..policies.len()).any(|index| closes(index, server.name));
        assert_eq!(engine.closed(server.name).is_some(), closed, "{}", server.name);
        let matched = policies.iter().flat_map(|policy| &policy.spec.servers).flat_map(|server| &server.tools);
        let mut tools: Vec<String> = matched.map(|tool| tool.name.replace('*', "x")).take(20).collect();
        tools.extend(["", "pay_invoice", "no such tool"].map(str::to_owned));
        for tool in &tools {
            let hidden = !engine.shows(server.name, tool);
            for (index, arguments) in ARGUMENTS.iter().map(|text| Some(raw(text))).chain([None]).enumerate() {
                calls += 1;
                if calls > CALLS {
                    return;
                }
                let session = if index % 2 == 0 { "" } else { "one" };
                let call = Call { server: server.name, tool, arguments, session };
                let decision = engine.decide(&call, now);
                if let Some(denial) = decision.denial() {
                    assert_one_line(&denial.message);
                }
                let found = reason(&decision);
                assert!(!closed || found == Some(Reason::InvalidPolicy), "{tool}: {found:?} by a policy that does not compile");
                assert!(!hidden || found.is_some(), "{tool} is not shown and may be called");
                assert_eq!(found, reason(&other.decide(&call, now)), "{tool}: the order of the policies decides");
                now = now.after(Duration::from_millis(700));
            }
        }
    }
    let call = Call { server: "no such server", tool: "x", arguments: None, session: "" };
    assert_eq!(reason(&engine.decide(&call, now)), Some(Reason::NoPolicy));
    assert!(engine.limits(now, &NothingKnown).iter().all(|limit| limit.used.is_finite() && limit.used >= 0.0));
}
