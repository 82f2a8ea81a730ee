//! What `egress` means.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use toolweir_engine::{
    AddressRanges, CompileOptions, Destination, EgressDecision, EgressEffect, EgressReason, Engine, Memory, Policy, PolicyId,
};

/// Compiles policies, named by their place: their specs in YAML.
fn engine(specs: &[&str]) -> Engine {
    let policies: Vec<Policy> = specs
        .iter()
        .enumerate()
        .map(|(index, spec)| Policy {
            id: PolicyId { cluster: false, namespace: "agents".to_owned(), name: format!("p{index}") },
            created: None,
            spec: serde_yaml::from_str(spec).unwrap_or_else(|error| panic!("{spec}: {error}")),
            version: None,
            unreadable: None,
        })
        .collect();
    Engine::compile(&policies, Memory::new(16), &CompileOptions::default()).0
}

fn ranges() -> AddressRanges {
    AddressRanges {
        pod: vec!["10.1.0.7".parse().unwrap()],
        node: vec!["10.0.0.9".parse().unwrap()],
        private: vec!["203.0.112.0/24".parse().unwrap()],
    }
}

/// Decides on `NAME`, `NAME=ADDRESS` or `=ADDRESS`, with a port after a blank. `NAME` ends with `!` where it is of the cluster.
fn decide(engine: &Engine, to: &str) -> EgressDecision {
    let (host, port) = to.split_once(' ').unwrap();
    let (name, address) = host.split_once('=').map_or((host, None), |(name, address)| (name, Some(address)));
    let in_cluster = name.ends_with('!');
    let name = Some(name.trim_end_matches('!')).filter(|name| !name.is_empty());
    let address = address.map(|address| address.parse().unwrap());
    engine.decide_connection(&Destination { name, in_cluster, address, port: port.parse().unwrap() }, &ranges())
}

/// Returns the decision in short: effect, reason, policy and name.
fn said(engine: &Engine, to: &str) -> String {
    let EgressDecision { effect, reason, policy, name } = decide(engine, to);
    let text = |text: Option<std::sync::Arc<str>>| text.as_deref().unwrap_or("-").trim_start_matches("agents/").to_owned();
    format!("{} {reason} {} {}", effect.as_str(), text(policy), text(name))
}

#[track_caller]
fn check(specs: &[&str], expected: &[(&str, &str)]) {
    let engine = engine(specs);
    for (to, expected) in expected {
        assert_eq!(said(&engine, to), *expected, "{to}");
    }
}

#[test]
fn without_egress_nothing_passes() {
    let servers = "servers: [{name: s, url: http://s/mcp}]";
    for specs in [&[][..], &[servers]] {
        check(specs, &[("a.com=1.1.1.1 443", "denied no_policy - -"), ("=1.1.1.1 443", "denied no_policy - -")]);
    }
    // Another policy's `egress` does not need this one's word.
    check(
        &[servers, "egress: {allow: [{domainNames: [a.com], ports: [443]}]}"],
        &[("a.com=1.1.1.1 443", "allowed none p1 a.com")],
    );
    check(&["egress: {}"], &[("a.com=1.1.1.1 443", "denied not_allowed p0 -")]);
}

#[test]
fn names_and_ports_are_matched() {
    check(
        &[
            "egress: {allow: [{domainNames: [a.com, '*.b.com', '*.x.b.com', y.b.com], ports: [443, 80]}, {domainNames: [a.com], ports: [22]}]}",
        ],
        &[
            ("a.com=1.1.1.1 443", "allowed none p0 a.com"),
            ("a.com=1.1.1.1 80", "allowed none p0 a.com"),
            ("a.com=1.1.1.1 22", "allowed none p0 a.com"),
            ("a.com=1.1.1.1 8080", "denied not_allowed p0 a.com"),
            ("a.com 443", "allowed none p0 a.com"),
            ("x.a.com=1.1.1.1 443", "denied not_allowed p0 -"),
            ("aa.com=1.1.1.1 443", "denied not_allowed p0 -"),
            ("com=1.1.1.1 443", "denied not_allowed p0 -"),
            ("b.com=1.1.1.1 443", "denied not_allowed p0 -"),
            ("ab.com=1.1.1.1 443", "denied not_allowed p0 -"),
            (".b.com=1.1.1.1 443", "denied not_allowed p0 -"),
            ("a..b.com=1.1.1.1 443", "denied not_allowed p0 -"),
            ("q.b.com.=1.1.1.1 443", "denied not_allowed p0 -"),
            ("q.b.com=1.1.1.1 443", "allowed none p0 *.b.com"),
            ("q.r.b.com=1.1.1.1 443", "allowed none p0 *.b.com"),
            ("q.x.b.com=1.1.1.1 443", "allowed none p0 *.x.b.com"),
            ("y.b.com=1.1.1.1 443", "allowed none p0 y.b.com"),
            ("z.y.b.com=1.1.1.1 443", "allowed none p0 *.b.com"),
            ("q.b.com=1.1.1.1 22", "denied not_allowed p0 *.b.com"),
            ("=1.1.1.1 443", "denied not_allowed p0 -"),
        ],
    );
}

#[test]
fn a_name_leads_to_public_addresses_and_to_the_cluster() {
    check(
        &[
            "egress: {allow: [{domainNames: [a.com], ports: [443]}, {domainNames: [b.com], cidrs: [10.20.0.0/16, 169.254.7.7/32], ports: [443]}]}",
        ],
        &[
            ("a.com=10.20.0.5 443", "denied address p0 a.com"),
            ("a.com=203.0.112.5 443", "denied address p0 a.com"),
            ("a.com!=10.20.0.5 443", "allowed none p0 a.com"),
            ("a.com!=fd00::5 443", "allowed none p0 a.com"),
            ("a.com!=169.254.169.254 443", "denied address p0 a.com"),
            ("a.com!=10.0.0.9 443", "denied address p0 a.com"),
            ("a.com!=10.1.0.7 443", "denied address - a.com"),
            ("a.com!=127.0.0.1 443", "denied address - a.com"),
            ("c.com!=10.20.0.5 443", "denied not_allowed p0 -"),
            ("b.com=10.20.0.5 443", "allowed none p0 b.com"),
            ("b.com=::ffff:10.20.0.5 443", "allowed none p0 b.com"),
            ("b.com=10.21.0.5 443", "denied address p0 b.com"),
            ("b.com=1.1.1.1 443", "allowed none p0 b.com"),
            ("b.com=169.254.7.7 443", "allowed none p0 b.com"),
            ("b.com=169.254.7.8 443", "denied address p0 b.com"),
            ("b.com=10.20.0.5 80", "denied not_allowed p0 b.com"),
            ("=10.20.0.5 443", "allowed none p0 -"),
            ("=10.21.0.5 443", "denied address p0 -"),
        ],
    );
}

#[test]
fn addresses_alone_need_no_name() {
    check(
        &["egress: {allow: [{cidrs: [10.20.0.0/16, 'fd00:7::/32', 0.0.0.0/5, 1.1.1.1/32], ports: [5432]}]}"],
        &[
            ("=10.20.0.5 5432", "allowed none p0 -"),
            ("=64:ff9b::10.20.0.5 5432", "allowed none p0 -"),
            ("=fd00:7::1 5432", "allowed none p0 -"),
            ("=1.1.1.1 5432", "allowed none p0 -"),
            ("=8.8.8.8 5432", "denied not_allowed p0 -"),
            ("=10.20.0.5 5433", "denied address p0 -"),
            ("db.corp=10.20.0.5 5432", "allowed none p0 -"),
            ("db.corp 5432", "denied not_allowed p0 -"),
            ("=0.0.0.0 5432", "denied address - -"),
            ("=0.0.0.1 5432", "allowed none p0 -"),
        ],
    );
}

#[test]
fn the_default_allow_is_for_public_addresses() {
    check(
        &["egress: {default: Allow, allow: [{domainNames: [db.data.svc], ports: [5432]}]}"],
        &[
            ("a.com=1.1.1.1 443", "allowed none p0 -"),
            ("=1.1.1.1 6000", "allowed none p0 -"),
            ("a.com 443", "allowed none p0 -"),
            ("a.com=10.0.0.1 443", "denied address p0 -"),
            ("a.svc!=10.0.0.1 443", "denied address p0 -"),
            ("=169.254.169.254 80", "denied address p0 -"),
            ("=::ffff:169.254.169.254 80", "denied address p0 -"),
            ("db.data.svc!=10.0.0.1 5432", "allowed none p0 db.data.svc"),
            ("db.data.svc!=10.0.0.1 5433", "denied address p0 db.data.svc"),
        ],
    );
}

#[test]
fn the_strictest_policy_wins() {
    let (wide, narrow) = (
        "egress: {allow: [{domainNames: ['*.b.com', a.com], ports: [443]}]}",
        "egress: {allow: [{domainNames: [x.b.com], ports: [443, 80]}]}",
    );
    for (specs, first, second) in [([wide, narrow], "p0", "p1"), ([narrow, wide], "p1", "p0")] {
        let engine = engine(&specs);
        assert_eq!(said(&engine, "x.b.com=1.1.1.1 443"), "allowed none p0 x.b.com");
        assert_eq!(said(&engine, "x.b.com=1.1.1.1 80"), format!("denied not_allowed {first} x.b.com"));
        assert_eq!(said(&engine, "y.b.com=1.1.1.1 443"), format!("denied not_allowed {second} *.b.com"));
        assert_eq!(said(&engine, "a.com=1.1.1.1 443"), format!("denied not_allowed {second} a.com"));
    }
}

#[test]
fn audit_lets_pass_and_says_so() {
    let audit = "{mode: Audit, egress: {allow: [{domainNames: [a.com], ports: [443]}]}}";
    check(
        &[audit],
        &[
            ("a.com=1.1.1.1 443", "allowed none p0 a.com"),
            ("b.com=1.1.1.1 443", "would_deny not_allowed p0 -"),
            ("=169.254.169.254 80", "denied address p0 -"),
            ("b.com=169.254.169.254 80", "denied not_allowed p0 -"),
            ("=127.0.0.1 80", "denied address - -"),
        ],
    );
    check(
        &[audit, "egress: {allow: [{domainNames: [a.com, b.com], ports: [443]}]}"],
        &[
            ("a.com=1.1.1.1 443", "allowed none p0 a.com"),
            ("b.com=1.1.1.1 443", "would_deny not_allowed p0 b.com"),
            ("c.com=1.1.1.1 443", "denied not_allowed p1 -"),
        ],
    );
}

#[test]
fn a_policy_that_cannot_be_enforced_denies_every_connection() {
    let good = "egress: {default: Allow}";
    for bad in [
        "{mode: Audit, egress: {allow: [{domainNames: [A.com], ports: [443]}]}}",
        "{egress: {allow: [{ports: [443]}]}}",
        "{egress: {default: Allow}, servers: [{name: '*'}]}",
    ] {
        check(
            &[good, bad],
            &[("a.com=1.1.1.1 443", "denied invalid_policy p1 -"), ("=1.1.1.1 443", "denied invalid_policy p1 -")],
        );
    }
    // One without `egress` has no say in it.
    check(&[good, "{servers: [{name: '*'}]}"], &[("a.com=1.1.1.1 443", "allowed none p0 -")]);
    let id = PolicyId { cluster: true, namespace: String::new(), name: "guard".to_owned() };
    let error = toolweir_crds::FieldError { path: "spec".to_owned(), message: "cannot be read".to_owned() };
    let policies = [Policy::unreadable(id, error)];
    let (engine, _) = Engine::compile(&policies, Memory::new(16), &CompileOptions::default());
    assert_eq!(said(&engine, "a.com=1.1.1.1 443"), "denied invalid_policy guard -");
}

#[test]
fn exact_names_are_those_of_a_port() {
    let engine = engine(&[
        "egress: {allow: [{domainNames: [b.com, '*.c.com'], ports: [5432]}, {domainNames: [a.com, d.com], ports: [443]}]}",
        "{mode: Audit, egress: {allow: [{domainNames: [b.com, a.com], ports: [5432]}]}}",
    ]);
    assert_eq!(engine.exact_names(5432).collect::<Vec<_>>(), ["a.com", "b.com"]);
    assert_eq!(engine.exact_names(443).collect::<Vec<_>>(), ["a.com", "d.com"]);
    assert_eq!(engine.exact_names(80).count(), 0);
}

#[test]
fn each_reason_has_a_name_of_its_own() {
    let names: std::collections::BTreeSet<&str> = EgressReason::ALL.iter().map(|reason| reason.as_str()).collect();
    assert_eq!(names.len(), EgressReason::ALL.len());
    assert!(EgressReason::ALL.is_sorted());
    assert!(EgressEffect::WouldDeny.passes() && EgressEffect::Allowed.passes() && !EgressEffect::Denied.passes());
}
