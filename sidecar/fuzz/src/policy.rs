//! A file of policies: read, compiled, and asked about a fixed set of calls.

use std::{collections::HashSet, net::IpAddr, time::Duration};

use toolweir_crds::read_documents;
use toolweir_engine::{
    AddressRanges, Call, CompileOptions, Decision, Destination, EgressEffect, EgressReason, Engine, Memory, Operation, Policy,
    Reason, Severity, Timestamp,
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

    connections(&policies, &engine, &other);
    let broken = |index: usize| problems.iter().any(|problem| problem.policy == index && problem.severity == Severity::Invalid);
    let closes = |index: usize, server: &str| {
        broken(index) && policies[index].spec.servers.iter().any(|named| named.name == server || named.name == "*")
    };
    let (mut calls, mut now) = (0, Timestamp::default());
    for server in engine.servers() {
        let closed = (0..policies.len()).any(|index| closes(index, server.name));
        assert_eq!(engine.closed(server.name).is_some(), closed, "{}", server.name);
        assert!(!server.intercept || server.url.is_some_and(|url| url.starts_with("https://")), "{}", server.name);
        let matched = policies.iter().flat_map(|policy| &policy.spec.servers).flat_map(|server| &server.tools);
        let mut tools: Vec<String> = matched.map(|tool| tool.name.replace('*', "x")).take(20).collect();
        tools.extend(["", "pay_invoice", "no such tool"].map(str::to_owned));
        for tool in &tools {
            let hidden = !engine.may_use(server.name, Operation::tool(tool), None);
            for (index, arguments) in ARGUMENTS.iter().map(|text| Some(raw(text))).chain([None]).enumerate() {
                calls += 1;
                if calls > CALLS {
                    return;
                }
                let session = if index % 2 == 0 { "" } else { "one" };
                let call = Call { server: server.name, operation: Operation::tool(tool), arguments, session, seen: None };
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
    let call = Call { server: "no such server", operation: Operation::tool("x"), arguments: None, session: "", seen: None };
    assert_eq!(reason(&engine.decide(&call, now)), Some(Reason::NoPolicy));
    assert!(engine.limits(now, &NothingKnown).iter().all(|limit| limit.used.is_finite() && limit.used >= 0.0));
}

/// Names and addresses of connections, besides those of the policies.
const DESTINATIONS: [(Option<&str>, &str); 8] = [
    (Some("api.example.com"), "1.1.1.1"),
    (Some("x.y.example.com"), "10.20.0.5"),
    (Some("com"), "::ffff:169.254.169.254"),
    (None, "2606:4700::1111"),
    (None, "10.1.0.7"),
    (None, "64:ff9b::a01:7"),
    (Some(""), "fd00::1"),
    (Some("."), "0.0.0.0"),
];

/// Decides on connections to what the rules name, and to what they do not.
fn connections(policies: &[Policy], engine: &Engine, turned: &Engine) {
    let ranges = AddressRanges { pod: vec![IpAddr::from([10, 1, 0, 7])], ..AddressRanges::default() };
    let has_say = policies.iter().any(|policy| policy.spec.egress.is_some());
    let names: HashSet<_> = policies.iter().map(|policy| &policy.id).collect();
    let rules = || policies.iter().filter_map(|policy| policy.spec.egress.as_ref()).flat_map(|egress| &egress.allow).take(20);
    let named: Vec<String> = rules().flat_map(|rule| &rule.domain_names).take(20).map(|name| name.replace('*', "x")).collect();
    let mut ports: Vec<u16> = rules().flat_map(|rule| &rule.ports).take(4).copied().collect();
    ports.push(443);
    let fixed = DESTINATIONS.iter().map(|(name, address)| (*name, *address));
    for (name, address) in named.iter().map(|name| (Some(name.as_str()), "10.20.0.5")).chain(fixed) {
        let address: IpAddr = address.parse().expect("an address");
        for (port, address) in ports.iter().flat_map(|port| [(*port, None), (*port, Some(address))]) {
            let to = Destination { name, in_cluster: port % 2 == 0, address, port };
            let decision = engine.decide_connection(&to, &ranges);
            assert_one_line(&decision.message(&to));
            assert_eq!(decision.effect == EgressEffect::Allowed, decision.reason == EgressReason::None, "{to:?}");
            assert!(has_say || decision.reason == EgressReason::NoPolicy, "{to:?}");
            let own = address
                .is_some_and(|address| address.is_unspecified() || toolweir_engine::egress::reached(address) == ranges.pod[0]);
            assert!(!own || !decision.effect.passes(), "{to:?} is the pod itself");
            if names.len() == policies.len() {
                let again = turned.decide_connection(&to, &ranges);
                assert_eq!(
                    (decision.effect, decision.reason),
                    (again.effect, again.reason),
                    "{to:?}: the order of the policies decides"
                );
            }
        }
        assert!(engine.exact_names(443).all(|name| !name.contains('*')));
    }
}
