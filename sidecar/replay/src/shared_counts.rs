//! The counts that pods share, in place of the shared store: the engine's own windows, for all logs together.

use std::sync::Arc;

use toolweir_engine::{
    Call, Decision, DecisionStart, Engine, Memory, Permit, Timestamp,
    shared::{GrantedAmounts, GrantedPlaces, SharedAnswer, SharedDemand, SharedGrant},
    take::{Hold, Take, TakeError},
};

/// What was taken of these counts.
#[derive(Debug)]
struct TakenHere(Permit);

impl GrantedAmounts for TakenHere {
    fn give_back(self: Box<Self>) {
        self.0.give_back();
    }
}

impl GrantedPlaces for TakenHere {}

/// The counts that pods share.
#[derive(Debug)]
pub struct SharedCounts(Arc<Memory>);

impl Default for SharedCounts {
    fn default() -> Self {
        // A store has room for all.
        Self(Memory::new(usize::MAX))
    }
}

impl SharedCounts {
    /// Decides on a call.
    pub fn decide(&self, engine: &Engine, call: &Call<'_>, now: Timestamp) -> Decision {
        let pending = match engine.begin(call, now) {
            DecisionStart::Decided(decision) => return decision,
            DecisionStart::Pending(pending) => pending,
        };
        let mut answers: Vec<SharedAnswer> = Vec::new();
        for demand in pending.demands() {
            // The first is that of the enforced policies: where it is refused, the call is denied.
            let is_denied = matches!(answers.first(), Some(SharedAnswer::Refused(_)));
            answers.push(if is_denied {
                SharedAnswer::NotAsked
            } else {
                self.take(demand, now).map_or_else(SharedAnswer::Refused, SharedAnswer::Taken)
            });
        }
        pending.finish(answers, now)
    }

    fn take(&self, demand: &SharedDemand, now: Timestamp) -> Result<SharedGrant, TakeError> {
        let takes: Vec<Take> = demand.takes.iter().map(|shared| shared.take.clone()).collect();
        let holds: Vec<Hold> = demand.holds.iter().map(|shared| shared.hold.clone()).collect();
        let mut permit = self.0.take(&takes, &holds, now)?;
        let mut grant = SharedGrant::default();
        if permit.holds_places() {
            grant.places = Some(Box::new(TakenHere(permit.split_places())));
        }
        grant.amounts = Some(Box::new(TakenHere(permit)));
        Ok(grant)
    }
}
