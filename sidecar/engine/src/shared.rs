//! Demands on counts that pods share, and the answers to them. The engine does no I/O: its caller asks the store, between
//! [`crate::Engine::begin`] and [`crate::Pending::finish`].

use std::{fmt, sync::Arc};

use smallvec::SmallVec;
use toolweir_crds::OnStoreFailure;

use crate::{
    take::{Hold, Identity, Instance, Take, TakeError},
    window::{Amount, Full},
};

/// An amount to be counted against one maximum together with calls of other pods.
#[derive(Clone, Debug)]
pub struct SharedTake {
    /// The amount. Its identity names the count in all pods alike.
    pub take: Take,
    /// The pods that count together, such as `Workload agents/Deployment/social`.
    pub pod_group: Arc<str>,
    /// The action that its policy asks for where the store does not answer.
    pub failure: OnStoreFailure,
}

/// A place among the calls in flight in several pods.
#[derive(Clone, Debug)]
pub struct SharedHold {
    /// The place. Its identity names the places in all pods alike.
    pub hold: Hold,
    /// The pods that count together.
    pub pod_group: Arc<str>,
    /// The action that its policy asks for where the store does not answer.
    pub failure: OnStoreFailure,
}

/// The amounts and places that policies which decide together want of shared counts: all of it is taken or nothing.
#[derive(Clone, Debug, Default)]
pub struct SharedDemand {
    /// The amounts.
    pub takes: SmallVec<[SharedTake; 2]>,
    /// The places.
    pub holds: SmallVec<[SharedHold; 1]>,
}

impl SharedDemand {
    /// Returns true if nothing is wanted.
    pub fn is_empty(&self) -> bool {
        self.takes.is_empty() && self.holds.is_empty()
    }
}

/// The answer to one [`SharedDemand`].
#[derive(Debug)]
pub enum SharedAnswer {
    /// All of it was taken.
    Taken(SharedGrant),
    /// Nothing was. Indices are those of the [`SharedDemand`]; the end of a [`crate::window::Full`] is in the engine's time.
    Refused(TakeError),
    /// Nothing was: the store does not answer, and [`OnStoreFailure::PerPod`] holds the pod to its part. Indices are the same.
    RefusedAlone(TakeError),
    /// The store does not answer, and some policy wants the call denied then.
    Unavailable,
    /// The store was not asked, since a demand before this one was not met.
    NotAsked,
}

/// The amounts and places that were taken of shared counts.
#[derive(Debug, Default)]
pub struct SharedGrant {
    /// The amounts, for giving them back. Dropped, they stay counted.
    pub amounts: Option<Box<dyn GrantedAmounts>>,
    /// The places; they come free when it is dropped.
    pub places: Option<Box<dyn GrantedPlaces>>,
    /// The action that was taken instead, where the store did not answer.
    pub store_fallback: Option<OnStoreFailure>,
}

/// Amounts that were taken of shared counts.
pub trait GrantedAmounts: fmt::Debug + Send + Sync {
    /// Gives them back: the call failed before a server answered it. Does not block.
    fn give_back(self: Box<Self>);
}

/// Places that were taken of shared counts. They come free when it is dropped.
pub trait GrantedPlaces: fmt::Debug + Send + Sync {}

/// The last known state of shared counts, without asking the store: for display.
pub trait SharedUsage {
    /// Returns what counts now against a limit, of the fullest of its counts that this pod knows. `None` where it knows none.
    fn used(&self, take: &Identity) -> Option<Amount>;
}

/// A [`SharedUsage`] that knows of no count.
#[derive(Clone, Copy, Debug, Default)]
pub struct NothingKnown;

impl SharedUsage for NothingKnown {
    fn used(&self, _: &Identity) -> Option<Amount> {
        None
    }
}

/// The state of shared counts that was looked up for [`crate::Engine::explain`], without taking anything. A count that is
/// missing is one for which the store did not answer.
#[derive(Clone, Debug, Default)]
pub struct Peeked {
    takes: Vec<(Identity, Instance, Amount, Result<(), Full>)>,
    holds: Vec<(Identity, u64)>,
}

impl Peeked {
    /// Adds what counts now in the count that a take is for, and whether the take alone fits. The end of a
    /// [`Full::Until`] is in the engine's time.
    pub fn add_take(&mut self, shared: &SharedTake, used: Amount, fits: Result<(), Full>) {
        self.takes.push((shared.take.identity.clone(), shared.take.instance.clone(), used, fits));
    }

    /// Adds the number of places that are taken.
    pub fn add_hold(&mut self, shared: &SharedHold, in_flight: u64) {
        self.holds.push((shared.hold.identity.clone(), in_flight));
    }

    /// Returns what was added last of a count: what counts, and whether the take fits.
    pub(crate) fn take(&self, identity: &Identity, instance: &Instance) -> Option<(Amount, Result<(), Full>)> {
        let found = self.takes.iter().rev().find(|(of, which, ..)| of == identity && which == instance);
        found.map(|(_, _, used, fits)| (*used, *fits))
    }

    /// Returns the number of places that was added last.
    pub(crate) fn hold(&self, identity: &Identity) -> Option<u64> {
        self.holds.iter().rev().find(|(of, _)| of == identity).map(|(_, in_flight)| *in_flight)
    }
}
