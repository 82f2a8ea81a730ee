//! Decides on connections to somewhere else than a declared server.

use std::{collections::BTreeSet, fmt, net::IpAddr, sync::Arc};

use hashbrown::HashMap;
use ipnet::IpNet;
use serde::{Serialize, Serializer};
use toolweir_crds::{Egress, EgressDefault, EgressRule, Mode, egress::read_cidr};

pub use crate::address::{AddressRanges, reached};
use crate::{
    address::{AddressClass, class},
    engine::Engine,
};

/// Where a connection goes, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination<'a> {
    /// The name of the host, in lower case and without a final dot; none where the connection names none, or an address.
    pub name: Option<&'a str>,
    /// True if the name is one of the cluster's DNS.
    pub in_cluster: bool,
    /// The address; none where it is not known yet. The name and the port alone are judged then.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
}

/// Why a connection passes or does not: the closed set of values of the label `reason`, for connections. Those that policies find
/// come first, in the order of severity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EgressReason {
    /// It was not denied.
    None,
    /// No policy of the pod has `egress`.
    NoPolicy,
    /// A policy with `egress` does not compile, or a policy cannot be read.
    InvalidPolicy,
    /// No rule allows the name, or the address, at this port.
    NotAllowed,
    /// The name is allowed, and not for this address.
    Address,
    /// Host, TLS server name and destination do not agree.
    OtherName,
    /// It asks for another path of a declared server's host.
    OtherPath,
    /// It speaks MCP to a server that no policy declares.
    UndeclaredServer,
    /// It is TLS to a declared server, which is not opened.
    ServerTls,
    /// The TLS server name is hidden (encrypted client hello).
    HiddenName,
    /// The capture port was called itself.
    Direct,
    /// The first bytes can be read in two ways.
    Malformed,
    /// There was no room for it.
    Overloaded,
    /// The destination cannot be connected to.
    Unreachable,
    /// The name cannot be resolved.
    NotResolved,
    /// Nothing that names the destination came in time.
    Timeout,
}

impl EgressReason {
    /// Every reason.
    pub const ALL: [Self; 16] = [
        Self::None,
        Self::NoPolicy,
        Self::InvalidPolicy,
        Self::NotAllowed,
        Self::Address,
        Self::OtherName,
        Self::OtherPath,
        Self::UndeclaredServer,
        Self::ServerTls,
        Self::HiddenName,
        Self::Direct,
        Self::Malformed,
        Self::Overloaded,
        Self::Unreachable,
        Self::NotResolved,
        Self::Timeout,
    ];

    /// Returns the name in metrics and the audit log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::NoPolicy => "no_policy",
            Self::InvalidPolicy => "invalid_policy",
            Self::NotAllowed => "not_allowed",
            Self::Address => "address",
            Self::OtherName => "other_name",
            Self::OtherPath => "other_path",
            Self::UndeclaredServer => "undeclared_server",
            Self::ServerTls => "server_tls",
            Self::HiddenName => "hidden_name",
            Self::Direct => "direct",
            Self::Malformed => "malformed",
            Self::Overloaded => "overloaded",
            Self::Unreachable => "unreachable",
            Self::NotResolved => "not_resolved",
            Self::Timeout => "timeout",
        }
    }
}

impl fmt::Display for EgressReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for EgressReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EgressEffect {
    /// It passes.
    Allowed,
    /// It does not pass.
    Denied,
    /// It passes, and a policy in audit mode objects.
    WouldDeny,
}

impl EgressEffect {
    /// Returns the name in metrics and the audit log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::WouldDeny => "would_deny",
        }
    }

    /// Returns whether the connection passes.
    pub fn passes(self) -> bool {
        self != Self::Denied
    }
}

/// The decision on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressDecision {
    /// What becomes of it.
    pub effect: EgressEffect,
    /// Why.
    pub reason: EgressReason,
    /// The policy that decides; of an allowed connection the first that has a say. None where no policy has one, and for the pod's own
    /// addresses.
    pub policy: Option<Arc<str>>,
    /// The most specific domain name of any policy that the destination has, at whatever port: a label that no client can invent.
    pub name: Option<Arc<str>>,
}

/// Some of a policy's rules, a bit for each: a policy has at most 64 ([`toolweir_crds::bounds::EGRESS_RULES`]).
type RuleSet = u64;

/// What one policy says about connections.
#[derive(Debug)]
pub(crate) struct EgressRules {
    policy: Arc<str>,
    mode: Mode,
    default: EgressDefault,
    rules: Vec<ConnectionRule>,
    /// The rules that have an exact name, by that.
    exact: HashMap<Arc<str>, RuleSet>,
    /// The rules that have `*.` and a name, by that name; with the whole.
    below: HashMap<Box<str>, (Arc<str>, RuleSet)>,
    /// True if the policy cannot be enforced. It denies every connection then, in any mode.
    broken: bool,
}

#[derive(Debug)]
struct ConnectionRule {
    ports: Vec<u16>,
    ranges: Vec<IpNet>,
    /// True if it has domain names.
    named: bool,
}

impl EgressRules {
    /// Compiles the `egress` of a policy that has passed [`toolweir_crds::check`](mod@toolweir_crds::check).
    pub(crate) fn new(policy: Arc<str>, mode: Mode, egress: &Egress) -> Self {
        let mut compiled = Self { mode, default: egress.default, ..Self::broken(policy) };
        compiled.broken = false;
        for (index, rule) in egress.allow.iter().enumerate() {
            compiled.add(index, rule);
        }
        compiled
    }

    /// Makes the rules of a policy that cannot be enforced: they deny everything.
    pub(crate) fn broken(policy: Arc<str>) -> Self {
        Self {
            policy,
            mode: Mode::Enforce,
            default: EgressDefault::Deny,
            rules: Vec::new(),
            exact: HashMap::new(),
            below: HashMap::new(),
            broken: true,
        }
    }

    fn add(&mut self, index: usize, rule: &EgressRule) {
        let bit = bit(index);
        for name in &rule.domain_names {
            let whole: Arc<str> = name.as_str().into();
            if let Some(parent) = name.strip_prefix("*.") {
                self.below.entry(parent.into()).or_insert((whole, 0)).1 |= bit;
            } else {
                *self.exact.entry(whole).or_default() |= bit;
            }
        }
        self.rules.push(ConnectionRule {
            ports: rule.ports.clone(),
            ranges: rule.cidrs.iter().filter_map(|range| read_cidr(range).ok()).collect(),
            named: !rule.domain_names.is_empty(),
        });
    }

    /// Returns the rules with a domain name that the name has, and the most specific of these.
    fn of_name(&self, name: &str) -> (RuleSet, Option<&Arc<str>>) {
        let exact = self.exact.get_key_value(name);
        let mut rules = exact.map_or(0, |(_, rules)| *rules);
        let mut most_specific = exact.map(|(name, _)| name);
        let mut rest = name;
        while let Some((_, parent)) = rest.split_once('.') {
            if let Some((whole, more)) = self.below.get(parent) {
                rules |= more;
                most_specific = most_specific.or(Some(whole));
            }
            rest = parent;
        }
        (rules, most_specific)
    }

    /// Returns why it denies the connection, or [`EgressReason::None`]. `found` is the address that is reached, and its class.
    fn judge(&self, to: &Destination<'_>, found: Option<(IpAddr, AddressClass)>) -> EgressReason {
        if self.broken {
            return EgressReason::InvalidPolicy;
        }
        let named = to.name.map_or(0, |name| self.of_name(name).0);
        let at_port = || self.rules.iter().enumerate().filter(|(_, rule)| rule.ports.contains(&to.port));
        let by_name = at_port().any(|(index, _)| named & bit(index) != 0);
        let by_default = self.default == EgressDefault::Allow;
        let Some((address, class)) = found else {
            return if by_name || by_default { EgressReason::None } else { EgressReason::NotAllowed };
        };
        let by_address = at_port().any(|(index, rule)| {
            let has_say = !rule.named || to.name.is_none() || named & bit(index) != 0;
            has_say && rule.ranges.iter().any(|range| range.contains(&address))
        });
        if by_address {
            return EgressReason::None;
        }
        let is_public = class == AddressClass::Public;
        if !by_name && !by_default {
            return if to.name.is_none() && !is_public { EgressReason::Address } else { EgressReason::NotAllowed };
        }
        let is_service = class == AddressClass::Private && to.in_cluster && by_name;
        if is_public || is_service { EgressReason::None } else { EgressReason::Address }
    }
}

fn bit(index: usize) -> RuleSet {
    u32::try_from(index).ok().and_then(|index| 1_u64.checked_shl(index)).unwrap_or(0)
}

/// Returns how specific a domain name is: an exact one before every other, and then the longest.
fn specificity(name: &str) -> (bool, usize) {
    (!name.starts_with("*."), name.len())
}

impl Engine {
    /// Decides on a connection that leads to no declared server. All policies with `egress` must allow it; where there is none, it is
    /// denied. An address that holds another, such as `::ffff:10.0.0.1`, is judged as that one.
    pub fn decide_connection(&self, to: &Destination<'_>, ranges: &AddressRanges) -> EgressDecision {
        let found = to.address.map(|address| (reached(address), class(address, ranges)));
        let name = to.name.and_then(|name| {
            let names = self.egress.iter().filter_map(|rules| rules.of_name(name).1);
            names.max_by_key(|name| specificity(name)).cloned()
        });
        let decision = |effect, reason, policy: Option<&Arc<str>>| EgressDecision {
            effect,
            reason,
            policy: policy.cloned(),
            name: name.clone(),
        };
        let Some(first) = self.egress.first() else {
            return decision(EgressEffect::Denied, EgressReason::NoPolicy, None);
        };
        if found.is_some_and(|(_, class)| class == AddressClass::Own) {
            return decision(EgressEffect::Denied, EgressReason::Address, None);
        }
        let denials = self.egress.iter().map(|rules| (rules, rules.judge(to, found)));
        let denials = denials.filter(|(_, reason)| *reason != EgressReason::None);
        let (enforced, audited): (Vec<_>, Vec<_>) = denials.partition(|(rules, _)| rules.mode == Mode::Enforce || rules.broken);
        for (effect, denials) in [(EgressEffect::Denied, enforced), (EgressEffect::WouldDeny, audited)] {
            if let Some((rules, reason)) = denials.into_iter().min_by_key(|(_, reason)| *reason) {
                return decision(effect, reason, Some(&rules.policy));
            }
        }
        decision(EgressEffect::Allowed, EgressReason::None, Some(&first.policy))
    }

    /// Returns the exact domain names that some policy allows at a port, each once.
    pub fn exact_names(&self, port: u16) -> impl Iterator<Item = &str> {
        let of = |rules: &'_ EgressRules| {
            let at_port = rules.rules.iter().enumerate().filter(|(_, rule)| rule.ports.contains(&port));
            at_port.fold(0, |set, (index, _)| set | bit(index))
        };
        let names: BTreeSet<&str> = self
            .egress
            .iter()
            .flat_map(|rules| {
                let here = of(rules);
                rules.exact.iter().filter(move |(_, set)| **set & here != 0).map(|(name, _)| &**name)
            })
            .collect();
        names.into_iter()
    }
}
