//! Decides on connections to somewhere else than a declared server.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    address::{AddressClass, AddressRanges, class, reached},
    egress::{Destination, EgressDecision, EgressEffect, EgressReason},
    engine::Engine,
};

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
        // What a policy that only looks on objects to passes, but for addresses that nobody means by `egress`: of metadata, of the node.
        let is_restricted = found.is_some_and(|(_, class)| class == AddressClass::Restricted);
        let (enforced, audited): (Vec<_>, Vec<_>) = denials.partition(|(rules, _)| rules.is_enforced() || is_restricted);
        for (effect, denials) in [(EgressEffect::Denied, enforced), (EgressEffect::WouldDeny, audited)] {
            if let Some((rules, reason)) = denials.into_iter().min_by_key(|(_, reason)| *reason) {
                return decision(effect, reason, Some(&rules.policy));
            }
        }
        decision(EgressEffect::Allowed, EgressReason::None, Some(&first.policy))
    }

    /// Returns the exact domain names that some policy allows at a port, each once.
    pub fn exact_names(&self, port: u16) -> impl Iterator<Item = &str> {
        let names: BTreeSet<&str> = self.egress.iter().flat_map(|rules| rules.exact_names(port)).collect();
        names.into_iter()
    }
}
