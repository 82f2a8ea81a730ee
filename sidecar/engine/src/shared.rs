//! What a call wants of counts that pods share, and what is answered. The engine asks nobody: who calls it does, between
//! [`crate::Engine::begin`] and [`crate::Pending::finish`].

use std::{fmt, sync::Arc};

use smallvec::SmallVec;
use toolweir_crds::OnStoreFailure;

use crate::counters::{Hold, Refusal, Take};

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
    fn used(&self, take: &crate::counters::Identity) -> Option<crate::window::Amount>;
}
