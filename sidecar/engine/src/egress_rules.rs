//! What policies say about connections, compiled.

use std::{net::IpAddr, sync::Arc};

use hashbrown::HashMap;
use ipnet::IpNet;
use toolweir_crds::{Egress, EgressDefault, EgressRule, Mode, egress::read_cidr};

use crate::{
    address::AddressClass,
    egress::{Destination, EgressReason},
};

/// Some of a policy's rules, a bit for each: a policy has at most 64 ([`toolweir_crds::bounds::EGRESS_RULES`]).
type RuleBits = u64;

/// What one policy says about connections.
#[derive(Debug)]
pub(crate) struct EgressRules {
    pub policy: Arc<str>,
    mode: Mode,
    default: EgressDefault,
    rules: Vec<ConnectionRule>,
    /// The rules that have an exact name, by that.
    exact: HashMap<Arc<str>, RuleBits>,
    /// The rules that have `*.` and a name, by that name; with the whole.
    below: HashMap<Box<str>, (Arc<str>, RuleBits)>,
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
    pub(crate) fn of_name(&self, name: &str) -> (RuleBits, Option<&Arc<str>>) {
        // No label is empty.
        if name.split('.').any(str::is_empty) {
            return (0, None);
        }
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
    pub(crate) fn judge(&self, to: &Destination<'_>, found: Option<(IpAddr, AddressClass)>) -> EgressReason {
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

    /// Returns the exact domain names of the rules for a port.
    pub(crate) fn exact_names(&self, port: u16) -> impl Iterator<Item = &str> {
        let at_port = self.rules.iter().enumerate().filter(|(_, rule)| rule.ports.contains(&port));
        let here = at_port.fold(0, |set, (index, _)| set | bit(index));
        self.exact.iter().filter(move |(_, set)| **set & here != 0).map(|(name, _)| &**name)
    }

    /// Returns true if its denials turn connections away.
    pub(crate) fn is_enforced(&self) -> bool {
        self.mode == Mode::Enforce || self.broken
    }
}

fn bit(index: usize) -> RuleBits {
    u32::try_from(index).ok().and_then(|index| 1_u64.checked_shl(index)).unwrap_or(0)
}
