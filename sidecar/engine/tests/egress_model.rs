//! Decisions on connections, compared with a model that is as plain as the documentation: for any policies and destinations, in any
//! order of the policies.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::{prelude::*, sample::select};
use toolweir_crds::{Egress, EgressDefault, EgressRule, FieldError, MCPPolicySpec, Mode, Server};
use toolweir_engine::{AddressRanges, CompileOptions, Destination, EgressEffect, EgressReason, Engine, Memory, Policy, PolicyId};

/// Names of destinations.
const NAMES: [&str; 9] = ["a.com", "b.com", "x.b.com", "y.x.b.com", "bb.com", "com", "db.svc", "svc", "localhost"];
/// Domain names of rules.
const PATTERNS: [&str; 8] = ["a.com", "b.com", "*.b.com", "x.b.com", "*.x.b.com", "*.com", "*.svc", "db.svc"];
const PORTS: [u16; 3] = [80, 443, 5432];
const RANGES: [&str; 8] =
    ["10.0.0.0/8", "10.20.0.0/16", "10.1.0.7/32", "1.1.1.1/32", "169.254.0.0/16", "0.0.0.0/0", "fd00::/8", "::/0"];

/// What an address is, written down by hand.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Pod,
    Never,
    Private,
    Public,
}

const ADDRESSES: [(&str, Kind); 20] = [
    ("127.0.0.1", Kind::Pod),
    ("0.0.0.0", Kind::Pod),
    ("10.1.0.7", Kind::Pod),
    ("::1", Kind::Pod),
    ("::", Kind::Pod),
    ("fd00:1::7", Kind::Pod),
    ("169.254.169.254", Kind::Never),
    ("224.0.0.1", Kind::Never),
    ("255.255.255.255", Kind::Never),
    ("0.0.0.1", Kind::Never),
    ("10.0.0.9", Kind::Never),
    ("100.100.100.200", Kind::Never),
    ("fd00:ec2::254", Kind::Never),
    ("fe80::1", Kind::Never),
    ("10.20.0.5", Kind::Private),
    ("203.0.112.1", Kind::Private),
    ("fd00:7::1", Kind::Private),
    ("1.1.1.1", Kind::Public),
    ("8.8.8.8", Kind::Public),
    ("2606:4700::1111", Kind::Public),
];

fn ranges() -> AddressRanges {
    let parse = |text: &str| text.parse::<IpAddr>().unwrap();
    AddressRanges {
        pod: vec![parse("10.1.0.7"), parse("fd00:1::7")],
        node: vec![parse("10.0.0.9")],
        private: vec!["203.0.112.0/24".parse().unwrap()],
    }
}

/// A destination whose address is one of the table, in one of its forms.
#[derive(Clone, Debug)]
struct Target {
    name: Option<&'static str>,
    in_cluster: bool,
    /// The address as it is asked, as it is written in the table, and what it is.
    address: Option<(IpAddr, IpAddr, Kind)>,
    port: u16,
}

impl Target {
    fn destination(&self) -> Destination<'static> {
        Destination {
            name: self.name,
            in_cluster: self.in_cluster,
            address: self.address.map(|(asked, ..)| asked),
            port: self.port,
        }
    }
}

/// Writes an IPv4 address as an IPv6 address.
fn form(address: IpAddr, how: usize) -> IpAddr {
    let IpAddr::V4(v4) = address else { return address };
    let [a, b, c, d] = v4.octets();
    let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    match how {
        1 => IpAddr::V6(v4.to_ipv6_mapped()),
        2 => IpAddr::V6(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low)),
        3 => IpAddr::V6(Ipv6Addr::new(0x2002, high, low, 1, 2, 3, 4, 5)),
        4 => IpAddr::V6(Ipv6Addr::new(0x2001, 0, 1, 2, 3, 4, !high, !low)),
        // `::` and `::1` are addresses of their own, and here these are 0.0.0.0 and 0.0.0.1.
        5 if v4 != Ipv4Addr::UNSPECIFIED && v4 != Ipv4Addr::new(0, 0, 0, 1) => {
            IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low))
        }
        _ => address,
    }
}

fn targets() -> impl Strategy<Value = Target> {
    let address = (select(ADDRESSES.to_vec()), 0..6_usize).prop_map(|((text, kind), how)| {
        let address: IpAddr = text.parse().unwrap();
        (form(address, how), address, kind)
    });
    (
        prop::option::weighted(0.8, select(NAMES.to_vec())),
        any::<bool>(),
        prop::option::weighted(0.9, address),
        select(PORTS.to_vec()),
    )
        .prop_map(|(name, in_cluster, address, port)| Target {
            name,
            in_cluster: in_cluster && name.is_some(),
            address,
            port,
        })
}

fn some<T: Clone + std::fmt::Debug + 'static>(of: &'static [T], least: usize) -> impl Strategy<Value = Vec<T>> {
    prop::sample::subsequence(of.to_vec(), least..=3)
}

fn rules() -> impl Strategy<Value = EgressRule> {
    (some(&PATTERNS, 0), some(&RANGES, 0), some(&PORTS, 1))
        .prop_filter("names a destination", |(names, cidrs, _)| !names.is_empty() || !cidrs.is_empty())
        .prop_map(|(names, cidrs, ports)| EgressRule {
            domain_names: names.into_iter().map(str::to_owned).collect(),
            cidrs: cidrs.into_iter().map(str::to_owned).collect(),
            ports,
        })
}

/// A policy: whether it can be read, its mode, and its `egress`.
#[derive(Clone, Debug)]
struct Given {
    readable: bool,
    compiles: bool,
    mode: Mode,
    egress: Option<Egress>,
}

fn policies() -> impl Strategy<Value = Vec<Given>> {
    let default = select(vec![EgressDefault::Deny, EgressDefault::Deny, EgressDefault::Allow]);
    let egress = (default, prop::collection::vec(rules(), 0..4)).prop_map(|(default, allow)| Egress { default, allow });
    let policy = (
        prop::bool::weighted(0.97),
        prop::bool::weighted(0.95),
        select(vec![Mode::Enforce, Mode::Enforce, Mode::Audit]),
        prop::option::weighted(0.9, egress),
    )
        .prop_map(|(readable, compiles, mode, egress)| Given { readable, compiles, mode, egress });
    prop::collection::vec(policy, 0..4)
}

fn compile(given: &[Given]) -> Engine {
    let policies: Vec<Policy> = given
        .iter()
        .enumerate()
        .map(|(index, given)| {
            let server = Server { name: if given.compiles { "s" } else { "not a name" }.to_owned(), ..Server::default() };
            Policy {
                id: PolicyId { cluster: false, namespace: "n".to_owned(), name: format!("p{index}") },
                created: None,
                spec: MCPPolicySpec {
                    mode: given.mode,
                    servers: vec![server],
                    egress: given.egress.clone(),
                    ..MCPPolicySpec::default()
                },
                version: None,
                unreadable: (!given.readable).then(|| FieldError { path: "spec".to_owned(), message: "unknown".to_owned() }),
            }
        })
        .collect();
    Engine::compile(&policies, Memory::new(0), &CompileOptions::default()).0
}

/// Whether a domain name of a rule stands for a name.
fn stands_for(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(end) => name.ends_with(end) && name.len() > end.len(),
        None => pattern == name,
    }
}

/// Why one policy objects, as the documentation says it.
fn objection(egress: &Egress, to: &Target) -> Option<EgressReason> {
    let rules: Vec<&EgressRule> = egress.allow.iter().filter(|rule| rule.ports.contains(&to.port)).collect();
    let has_name =
        |rule: &EgressRule| to.name.is_some_and(|name| rule.domain_names.iter().any(|pattern| stands_for(pattern, name)));
    let by_name = rules.iter().any(|rule| has_name(rule));
    let by_default = egress.default == EgressDefault::Allow;
    let Some((_, address, kind)) = to.address else { return (!by_name && !by_default).then_some(EgressReason::NotAllowed) };
    let in_range = |rule: &EgressRule| rule.cidrs.iter().any(|range| range.parse::<ipnet::IpNet>().unwrap().contains(&address));
    if rules.iter().any(|rule| in_range(rule) && (rule.domain_names.is_empty() || to.name.is_none() || has_name(rule))) {
        return None;
    }
    if !by_name && !by_default {
        let address_alone = to.name.is_none() && kind != Kind::Public;
        return Some(if address_alone { EgressReason::Address } else { EgressReason::NotAllowed });
    }
    let fits = kind == Kind::Public || (kind == Kind::Private && to.in_cluster && by_name);
    (!fits).then_some(EgressReason::Address)
}

/// The decision, as the documentation says it.
fn model(given: &[Given], to: &Target) -> (EgressEffect, EgressReason) {
    let broken = |given: &Given| !given.readable || (!given.compiles && given.egress.is_some());
    let with_say: Vec<&Given> = given.iter().filter(|given| broken(given) || given.egress.is_some()).collect();
    if with_say.is_empty() {
        return (EgressEffect::Denied, EgressReason::NoPolicy);
    }
    if to.address.is_some_and(|(_, _, kind)| kind == Kind::Pod) {
        return (EgressEffect::Denied, EgressReason::Address);
    }
    if with_say.iter().any(|given| broken(given)) {
        return (EgressEffect::Denied, EgressReason::InvalidPolicy);
    }
    // To the node, and to addresses of metadata, audit opens no way.
    let is_never = to.address.is_some_and(|(_, _, kind)| kind == Kind::Never);
    for (mode, effect) in [(Mode::Enforce, EgressEffect::Denied), (Mode::Audit, EgressEffect::WouldDeny)] {
        let of_mode = with_say.iter().filter(|given| (if is_never { Mode::Enforce } else { given.mode }) == mode);
        let objections: Vec<EgressReason> = of_mode.filter_map(|given| objection(given.egress.as_ref()?, to)).collect();
        for reason in [EgressReason::NotAllowed, EgressReason::Address] {
            if objections.contains(&reason) {
                return (effect, reason);
            }
        }
    }
    (EgressEffect::Allowed, EgressReason::None)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn decisions_are_those_of_the_model_in_any_order(given in policies(), to in prop::collection::vec(targets(), 16)) {
        let mut turned = given.clone();
        turned.reverse();
        let (engine, other) = (compile(&given), compile(&turned));
        for to in to {
            let decision = engine.decide_connection(&to.destination(), &ranges());
            prop_assert_eq!((decision.effect, decision.reason), model(&given, &to), "{:?}", &to);
            let again = other.decide_connection(&to.destination(), &ranges());
            prop_assert_eq!((decision.effect, decision.reason, decision.name), (again.effect, again.reason, again.name), "{:?}", &to);
        }
    }

    #[test]
    fn one_more_policy_with_egress_never_opens_anything(given in policies(), more in policies(), to in prop::collection::vec(targets(), 16)) {
        prop_assume!(given.iter().any(|given| given.egress.is_some()));
        let all: Vec<Given> = given.iter().chain(&more).cloned().collect();
        let (engine, stricter) = (compile(&given), compile(&all));
        for to in to {
            let before = engine.decide_connection(&to.destination(), &ranges()).effect.passes();
            let after = stricter.decide_connection(&to.destination(), &ranges()).effect.passes();
            prop_assert!(before || !after, "{:?}", &to);
        }
    }

    #[test]
    fn what_a_name_is_allowed_at_an_address_it_is_allowed_without(given in policies(), to in targets()) {
        // The sidecar asks before it resolves the name, and may stop there, unless an address range is what allows it.
        let with = compile(&given).decide_connection(&to.destination(), &ranges());
        let without = compile(&given).decide_connection(&Destination { address: None, ..to.destination() }, &ranges());
        let by_range = given.iter().filter_map(|given| given.egress.as_ref()).flat_map(|egress| &egress.allow).any(|rule| !rule.cidrs.is_empty());
        prop_assert!(by_range || without.effect.passes() || !with.effect.passes(), "{:?}", &to);
    }
}
