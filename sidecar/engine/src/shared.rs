//! What a call wants of counts that pods share, and what is answered. The engine asks nobody: who calls it does, between
//! [`crate::Engine::begin`] and [`crate::Pending::finish`].

use std::{fmt, sync::Arc};

use smallvec::SmallVec;
use toolweir_crds::OnStoreFailure;

use crate::{
    counters::{Hold, Identity, Instance, Refusal, Take},
    window::{Amount, Full},
};

/// An amount to be counted against one maximum together with calls of other pods.
#[derive(Clone, Debug)]
pub struct SharedTake {
    /// The amount. Its identity names the count in all pods alike.
    pub take: Take,
    /// The pods that count together, such as `Workload agents/Deployment/social`.
    pub whose: Arc<str>,
    /// What its policy wants where the store does not answer.
    pub failure: OnStoreFailure,
}

/// A place among the calls under way in several pods.
#[derive(Clone, Debug)]
pub struct SharedHold {
    /// The place. Its identity names the places in all pods alike.
    pub hold: Hold,
    /// The pods that count together.
    pub whose: Arc<str>,
    /// What its policy wants where the store does not answer.
    pub failure: OnStoreFailure,
}

/// What policies that decide together want of counts that pods share: all of it is taken or nothing.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The amounts.
    pub takes: SmallVec<[SharedTake; 2]>,
    /// The places.
    pub holds: SmallVec<[SharedHold; 1]>,
}

impl Wanted {
    /// Whether nothing is wanted.
    pub fn is_empty(&self) -> bool {
        self.takes.is_empty() && self.holds.is_empty()
    }
}

/// The answer to one [`Wanted`].
#[derive(Debug)]
pub enum Answer {
    /// All of it was taken.
    Taken(Taken),
    /// Nothing was. Indices are those of the [`Wanted`]; the end of a [`crate::window::Full`] is in the engine's time.
    Refused(Refusal),
    /// Nothing was: the store does not answer, and [`OnStoreFailure::PerPod`] holds the pod to its part. Indices are the same.
    RefusedAlone(Refusal),
    /// The store does not answer, and some policy wants the call denied then.
    Unavailable,
    /// It was not asked for, since what comes before it was not taken.
    NotAsked,
}

/// What was taken elsewhere.
#[derive(Debug, Default)]
pub struct Taken {
    /// The amounts, for giving them back. Dropped, they stay counted.
    pub amounts: Option<Box<dyn Amounts>>,
    /// The places; they come free when it is dropped.
    pub places: Option<Box<dyn Places>>,
    /// What was done instead of asking the store, where it did not answer.
    pub without_store: Option<OnStoreFailure>,
}

/// Amounts that were taken elsewhere.
pub trait Amounts: fmt::Debug + Send + Sync {
    /// Gives them back: the call failed before a server answered it. It does not wait.
    fn give_back(self: Box<Self>);
}

/// Places that were taken elsewhere; dropped, they come free.
pub trait Places: fmt::Debug + Send + Sync {}

/// What is known of shared counts without asking: for display.
pub trait Known {
    /// What counts now against a limit, of the fullest of its counts that this pod knows; nothing where it knows none.
    fn used(&self, take: &Identity) -> Option<Amount>;
}

/// Nothing is known of shared counts.
#[derive(Clone, Copy, Debug, Default)]
pub struct NothingKnown;

impl Known for NothingKnown {
    fn used(&self, _: &Identity) -> Option<Amount> {
        None
    }
}

/// What was looked up of shared counts, without taking anything, for [`crate::Engine::explain`]. Of what is not in it, the
/// store does not answer.
#[derive(Clone, Debug, Default)]
pub struct Peeked {
    takes: Vec<(Identity, Instance, Amount, Result<(), Full>)>,
    holds: Vec<(Identity, u64)>,
}

impl Peeked {
    /// Adds what counts now in the count that a take is for, and whether the take alone fits. The end of a
    /// [`Full::Until`] is in the engine's time.
    pub fn take(&mut self, shared: &SharedTake, used: Amount, fits: Result<(), Full>) {
        self.takes.push((shared.take.identity.clone(), shared.take.instance.clone(), used, fits));
    }

    /// Adds how many places are taken.
    pub fn hold(&mut self, shared: &SharedHold, under_way: u64) {
        self.holds.push((shared.hold.identity.clone(), under_way));
    }

    /// What was said of a count last.
    pub(crate) fn of_take(&self, identity: &Identity, instance: &Instance) -> Option<(Amount, Result<(), Full>)> {
        let found = self.takes.iter().rev().find(|(of, which, ..)| of == identity && which == instance);
        found.map(|(_, _, used, fits)| (*used, *fits))
    }

    /// What was said of places last.
    pub(crate) fn of_hold(&self, identity: &Identity) -> Option<u64> {
        self.holds.iter().rev().find(|(of, _)| of == identity).map(|(_, under_way)| *under_way)
    }
}
