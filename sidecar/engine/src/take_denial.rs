//! The denials of calls whose limits could not be taken.

use std::{cmp::Reverse, sync::Arc, time::Duration};

use toolweir_crds::Scope;

use crate::{
    call::Operation,
    denial::{Denial, LimitInfo, Reason, whole_seconds},
    entry::CompiledLimit,
    evaluate::Evaluator,
    shared::SharedDemand,
    take::{Take, TakeError},
    wants::{Attribution, Origins},
    window::Full,
    words::{self, display_name},
};

impl Evaluator<'_> {
    /// Returns the denial of a call whose limits were not taken. Of several that are full, it names the one that takes longest.
    pub fn take_denial(&self, error: &TakeError, sources: &impl Attribution) -> Denial {
        let name = display_name(self.call.operation.name);
        match error {
            TakeError::Full(full) => {
                // The one that takes longest to come free: who waits for it has waited for all.
                let longest = full.iter().max_by_key(|(index, why)| {
                    let until = match why {
                        Full::Until(then) => then.0,
                        Full::Never => u64::MAX,
                    };
                    (until, Reverse(*index))
                });
                let found = longest.and_then(|(index, why)| Some((sources.take(*index)?, why)));
                found.map(|((take, policy, entry, limit), why)| self.full_denial(policy, entry, limit, take, *why))
            }
            TakeError::Busy(index) => sources.hold(*index).map(|(hold, policy, entry, scope)| {
                let noun = words::counted(self.call.operation.kind);
                let many = if hold.max == 1 { format!("1 {noun}") } else { format!("{} {noun}s", hold.max) };
                let whose = scope_phrase(scope);
                let what = format!("at most {many} of {entry} may be under way at once{whose}. Try again when one has ended.");
                self.denial(policy, entry, Reason::Concurrency, &what)
            }),
            TakeError::OutOfCounters(index) => sources.take(*index).map(|(_, policy, entry, _)| {
                let what = format!(
                    "{name} is counted for each session or key, and there are more of those than are kept. Try again later."
                );
                self.denial(policy, entry, Reason::CountersExhausted, &what)
            }),
        }
        .unwrap_or_else(|| Denial::no_policy(self.call.server, self.call.operation))
    }

    /// Returns the denial of a call for which the store of shared counts does not answer.
    pub fn store_denial(&self, demand: &SharedDemand, origins: &Origins) -> Denial {
        let Some((policy, entry)) = origins.of_store_failure(demand) else {
            return Denial::no_policy(self.call.server, self.call.operation);
        };
        let wait = Duration::from_secs(1);
        let what = format!(
            "{} is limited across pods, and the shared store of counts does not answer. Try again in {} s.",
            display_name(self.call.operation.name),
            whole_seconds(wait)
        );
        let mut denial = self.denial(policy, entry, Reason::StoreUnavailable, &what);
        denial.retry_after = Some(wait);
        denial
    }

    /// Returns the denial of a call that does not fit a limit.
    fn full_denial(&self, policy: &Arc<str>, entry: &Arc<str>, limit: &CompiledLimit, take: &Take, why: Full) -> Denial {
        let Operation { kind, name, .. } = self.call.operation;
        let whose = scope_phrase(limit.scope);
        let per = limit.window.per();
        let many = |noun: &str| if limit.max == 1 { noun.to_owned() } else { format!("{noun}s") };
        let counted = if limit.cost.is_some() { "a total cost of ".to_owned() } else { String::new() };
        let noun = if limit.cost.is_some() { String::new() } else { format!(" {}", many(words::counted(kind))) };
        let each = limit.key.as_ref().map(|(_, source)| format!(" for each `{source}`")).unwrap_or_default();
        let shared = if **entry == *name {
            String::new()
        } else {
            format!(" (counted together with every {kind} that `{entry}` matches)")
        };
        let (retry_after, advice) = match why {
            Full::Until(then) => {
                let wait = then.since(self.now);
                (Some(wait), format!("Try again in {} s.", whole_seconds(wait)))
            }
            Full::Never => (None, format!("This {} costs {} and can never pass.", words::counted(kind), take.amount.as_f64())),
        };
        let name = display_name(name);
        let what = format!("{name} is limited to {counted}{}{noun} {per}{whose}{each}{shared}. {advice}", limit.max);
        let mut denial = self.denial(policy, entry, Reason::RateLimit, &what);
        denial.limit = Some(LimitInfo { max: limit.max, window: Arc::clone(&limit.window_text), scope: limit.scope });
        denial.retry_after = retry_after;
        denial
    }
}

/// Returns the words for the calls that a scope counts together.
fn scope_phrase(scope: Scope) -> &'static str {
    match scope {
        Scope::Session => " in each session",
        Scope::Pod => "",
        Scope::Workload => " for its workload",
        Scope::ServiceAccount => " for its service account",
        Scope::Namespace => " for its namespace",
        Scope::Policy => " for all that the policy governs",
    }
}
