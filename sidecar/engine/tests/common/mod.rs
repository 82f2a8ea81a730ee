//! A store of shared counts in memory, for tests.

use std::sync::Arc;

use toolweir_engine::{
    Begun, Call, Counters, Decision, Engine, Memory, Permit, Timestamp,
    counters::{Hold, Refusal, Take},
    shared::{Amounts, Answer, Peeked, Places, Taken, Wanted},
};

#[derive(Debug)]
struct Elsewhere(Permit);

impl Amounts for Elsewhere {
    fn give_back(self: Box<Self>) {
        self.0.give_back();
    }
}

impl Places for Elsewhere {}

fn parts(wanted: &Wanted) -> (Vec<Take>, Vec<Hold>) {
    let takes = wanted.takes.iter().map(|shared| shared.take.clone());
    (takes.collect(), wanted.holds.iter().map(|shared| shared.hold.clone()).collect())
}

fn take(store: &Arc<Memory>, wanted: &Wanted, now: Timestamp) -> Result<Taken, Refusal> {
    let (takes, holds) = parts(wanted);
    let mut permit = store.take(&takes, &holds, now)?;
    let places = permit.split_places();
    Ok(Taken { amounts: Some(Box::new(Elsewhere(permit))), places: Some(Box::new(Elsewhere(places))), without_store: None })
}

/// Decides on a call with a store that answers.
pub fn decide(engine: &Engine, store: &Arc<Memory>, call: &Call<'_>, now: Timestamp) -> Decision {
    let pending = match engine.begin(call, now) {
        Begun::Decided(decision) => return decision,
        Begun::Pending(pending) => pending,
    };
    let mut answers: Vec<Answer> = Vec::new();
    for wanted in pending.wanted() {
        let asked = !matches!(answers.first(), Some(Answer::Refused(_)));
        let taken = asked.then(|| take(store, wanted, now));
        answers.push(match taken {
            None => Answer::NotAsked,
            Some(Ok(taken)) => Answer::Taken(taken),
            Some(Err(refusal)) => Answer::Refused(refusal),
        });
    }
    pending.finish(answers, now)
}

/// What a store says for an explanation.
pub fn peek(engine: &Engine, store: &Arc<Memory>, call: &Call<'_>, now: Timestamp) -> Peeked {
    let mut peeked = Peeked::default();
    for wanted in engine.shared_of(call, now) {
        for shared in &wanted.takes {
            let (used, fits) = store.look(&shared.take, now);
            peeked.take(shared, used, fits);
        }
        for shared in &wanted.holds {
            peeked.hold(shared, store.under_way(&shared.hold.identity));
        }
    }
    peeked
}
