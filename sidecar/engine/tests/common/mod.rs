//! A store of shared counts in memory, for tests.

use std::sync::Arc;

use toolweir_engine::{
    ApprovalAsk, Call, Decision, DecisionStart, Engine, Memory, Permit, Timestamp,
    shared::{GrantedAmounts, GrantedPlaces, Peeked, SharedAnswer, SharedDemand, SharedGrant},
    take::{Hold, Take, TakeError},
};

#[derive(Debug)]
struct Elsewhere(Permit);

impl GrantedAmounts for Elsewhere {
    fn give_back(self: Box<Self>) {
        self.0.give_back();
    }
}

impl GrantedPlaces for Elsewhere {}

fn parts(wanted: &SharedDemand) -> (Vec<Take>, Vec<Hold>) {
    let takes = wanted.takes.iter().map(|shared| shared.take.clone());
    (takes.collect(), wanted.holds.iter().map(|shared| shared.hold.clone()).collect())
}

fn take(store: &Arc<Memory>, wanted: &SharedDemand, now: Timestamp) -> Result<SharedGrant, TakeError> {
    let (takes, holds) = parts(wanted);
    let mut permit = store.take(&takes, &holds, now)?;
    let places = permit.split_places();
    Ok(SharedGrant {
        amounts: Some(Box::new(Elsewhere(permit))),
        places: Some(Box::new(Elsewhere(places))),
        store_fallback: None,
    })
}

/// Decides on a call with a store that answers.
pub fn decide(engine: &Engine, store: &Arc<Memory>, call: &Call<'_>, now: Timestamp) -> Decision {
    decide_approved(engine, store, call, None, now)
}

/// The same for a call of which a person has approved this.
pub fn decide_approved(
    engine: &Engine,
    store: &Arc<Memory>,
    call: &Call<'_>,
    approved: Option<&ApprovalAsk>,
    now: Timestamp,
) -> Decision {
    let pending = match engine.begin_approved(call, approved, now) {
        DecisionStart::Decided(decision) => return decision,
        DecisionStart::Pending(pending) => pending,
    };
    let mut answers: Vec<SharedAnswer> = Vec::new();
    for wanted in pending.demands() {
        let asked = !matches!(answers.first(), Some(SharedAnswer::Refused(_)));
        let taken = asked.then(|| take(store, wanted, now));
        answers.push(match taken {
            None => SharedAnswer::NotAsked,
            Some(Ok(taken)) => SharedAnswer::Taken(taken),
            Some(Err(refusal)) => SharedAnswer::Refused(refusal),
        });
    }
    pending.finish(answers, now)
}

/// Looks up the counts of a store for an explanation.
pub fn peek(engine: &Engine, store: &Arc<Memory>, call: &Call<'_>, now: Timestamp) -> Peeked {
    let mut peeked = Peeked::default();
    for wanted in engine.shared_demands(call, now) {
        for shared in &wanted.takes {
            let (used, fits) = store.peek(&shared.take, now);
            peeked.add_take(shared, used, fits);
        }
        for shared in &wanted.holds {
            peeked.add_hold(shared, store.in_flight(&shared.hold.identity));
        }
    }
    peeked
}
