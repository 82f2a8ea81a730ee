//! What becomes of a connection that leads to no declared server: the engine's decision on its name, then on each address that the
//! name has.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use tokio::time::timeout;
use toolweir_engine::egress::{Destination, EgressDecision, EgressEffect, EgressReason, reached};

use super::{
    Capture,
    metrics::SERVER_NAME,
    names::{Host, HostAndPort},
};
use crate::in_force::InForce;

/// The judgement on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It may lead to these addresses, in this order.
    Open {
        /// At least one.
        addresses: Vec<SocketAddr>,
        /// The decision, which lets it pass.
        decision: EgressDecision,
    },
    /// It passes not.
    Refused {
        /// The decision.
        decision: EgressDecision,
        /// The address to which it would lead, where that is known.
        address: Option<IpAddr>,
    },
}

impl Judgement {
    /// A refusal of a connection of which no address is known.
    pub fn refused(decision: EgressDecision) -> Self {
        Self::Refused { decision, address: None }
    }
}

/// A denial that no policy gives.
pub fn refused(reason: EgressReason) -> EgressDecision {
    EgressDecision { effect: EgressEffect::Denied, reason, policy: None, name: None }
}

/// What DNS says about a name.
struct Resolved {
    /// The whole name that has the addresses.
    whole: String,
    addresses: Vec<IpAddr>,
}

/// Why a name has no addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DnsFailure {
    /// DNS says that there are none.
    Nothing,
    /// DNS does not say.
    Unanswered,
}

impl Capture {
    /// Judges a connection to a host and port, within the time for connecting.
    pub async fn judge(&self, in_force: &Arc<InForce>, at: &HostAndPort) -> Judgement {
        // What is governed has been taken there by now. Nothing else leads to a declared server by its name, whatever `egress` allows.
        if at.host.name().is_some() && !self.declared(in_force).at(at, &self.domains).is_empty() {
            let decision = refused(EgressReason::UndeclaredServer);
            return Judgement::refused(EgressDecision { name: Some(SERVER_NAME.into()), ..decision });
        }
        let judged = async {
            match &at.host {
                Host::Name(name) => self.judge_name(in_force, name, at.port).await,
                Host::Address(address) => self.judge_address(in_force, *address, at.port).await,
            }
        };
        // Many names may have to be resolved. What DNS does not say in time is not known.
        timeout(self.connect, judged).await.unwrap_or_else(|_| Judgement::refused(refused(EgressReason::NotResolved)))
    }

    /// A name that a policy allows is resolved, and each of its addresses judged. So is one that none allows: a search domain may make
    /// another of it, and a rule may allow its address.
    async fn judge_name(&self, in_force: &Arc<InForce>, name: &str, port: u16) -> Judgement {
        let decide = |name: &str, in_cluster, address| {
            let to = Destination { name: Some(name), in_cluster, address, port };
            in_force.engine.decide_connection(&to, &self.ranges)
        };
        let (mut name, mut decision) = (name.to_owned(), decide(name, false, None));
        if !decision.effect.passes() && decision.reason != EgressReason::NotAllowed {
            return Judgement::refused(decision);
        }
        let Some(resolved) = self.resolve(&name).await else {
            let is_allowed = decision.effect.passes();
            let reason = if is_allowed { EgressReason::NotResolved } else { decision.reason };
            return Judgement::refused(EgressDecision { reason, ..decision });
        };
        let mut forms = self.domains.in_cluster(&resolved.whole).into_iter().chain([resolved.whole.as_str()]);
        let allowed = |form: &str| Some((form.to_owned(), decide(form, false, None))).filter(|(_, found)| found.effect.passes());
        if !decision.effect.passes()
            && let Some(found) = forms.find_map(allowed)
        {
            (name, decision) = found;
        }
        let in_cluster = self.domains.in_cluster(&resolved.whole).is_some();
        let (mut addresses, mut passing, mut refusal) = (Vec::new(), None, None);
        for address in resolved.addresses {
            let decision = decide(&name, in_cluster, Some(address));
            if !decision.effect.passes() {
                refusal = refusal.or(Some((decision, address)));
            } else if !self.ranges.is_public(address)
                && let Some(reason) = self.is_declared(in_force, address, port).await
            {
                refusal = refusal.or(Some((EgressDecision { reason, ..refused_as(&decision) }, address)));
            } else {
                addresses.push(SocketAddr::new(address, port));
                passing = Some(decision);
            }
        }
        match (passing, refusal) {
            (Some(decision), _) => Judgement::Open { addresses, decision },
            (None, Some((decision, address))) => Judgement::Refused { decision, address: Some(address) },
            (None, None) => Judgement::refused(EgressDecision { reason: EgressReason::NotResolved, ..decision }),
        }
    }

    /// An address is allowed by itself, or where it is one of a name that is.
    async fn judge_address(&self, in_force: &Arc<InForce>, address: IpAddr, port: u16) -> Judgement {
        let address = reached(address);
        let decide = |name, in_cluster| {
            let to = Destination { name, in_cluster, address: Some(address), port };
            in_force.engine.decide_connection(&to, &self.ranges)
        };
        let mut decision = decide(None, false);
        if matches!(decision.reason, EgressReason::NotAllowed | EgressReason::Address) && !decision.effect.passes() {
            for name in in_force.engine.exact_names(port) {
                let Some(resolved) = self.resolve(name).await else { continue };
                if resolved.addresses.iter().any(|of| reached(*of) == address) {
                    let of_name = decide(Some(name), self.domains.in_cluster(&resolved.whole).is_some());
                    if of_name.effect.passes() {
                        decision = of_name;
                        break;
                    }
                }
            }
        }
        if decision.effect.passes()
            && let Some(reason) = self.is_declared(in_force, address, port).await
        {
            decision = EgressDecision { reason, ..refused_as(&decision) };
        }
        if !decision.effect.passes() {
            return Judgement::Refused { decision, address: Some(address) };
        }
        Judgement::Open { addresses: vec![SocketAddr::new(address, port)], decision }
    }

    /// Returns why an address must not be connected to, where a declared server is at it, or may be: what it is called by another name, or
    /// none, is not held to its policies.
    async fn is_declared(&self, in_force: &Arc<InForce>, address: IpAddr, port: u16) -> Option<EgressReason> {
        let here = |of: &IpAddr| reached(*of) == reached(address);
        let declared = self.declared(in_force);
        let mut unknown = None;
        for server in declared.at_port(port) {
            let is_here = match &server.host {
                Host::Address(of) => here(of),
                Host::Name(name) => match self.ask(name).await {
                    Ok(resolved) => server.found(resolved.addresses).iter().any(here),
                    // An agent can keep DNS from answering. The server is then where it was last; if that is not known, it may be anywhere.
                    Err(says) => {
                        let last = server.last_found();
                        if last.is_empty() && says == DnsFailure::Unanswered {
                            unknown = Some(EgressReason::NotResolved);
                        }
                        last.iter().any(here)
                    }
                },
            };
            if is_here {
                return Some(EgressReason::UndeclaredServer);
            }
        }
        unknown
    }

    async fn resolve(&self, name: &str) -> Option<Resolved> {
        self.ask(name).await.ok()
    }

    async fn ask(&self, name: &str) -> Result<Resolved, DnsFailure> {
        let resolver = self.resolver().inspect_err(|error| tracing::warn!(error, "cannot resolve names"));
        let resolver = resolver.map_err(|_| DnsFailure::Unanswered)?;
        let found = toolweir_store::dns::lookup(resolver, name).await;
        let found =
            found.map_err(|error| if error.is_no_records_found() { DnsFailure::Nothing } else { DnsFailure::Unanswered })?;
        let whole = found.query().name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
        Ok(Resolved { whole, addresses: found.iter().collect() })
    }
}

/// The same decision as a denial that no policy gives.
fn refused_as(decision: &EgressDecision) -> EgressDecision {
    EgressDecision { effect: EgressEffect::Denied, policy: None, ..decision.clone() }
}
