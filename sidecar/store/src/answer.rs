//! The answers to what a call wants, and what was taken for them.

use std::sync::Arc;

use smallvec::SmallVec;
use toolweir_crds::OnStoreFailure;
use toolweir_engine::{take::TakeError, window::Slice};

use crate::count::CountKey;

/// The place where an amount was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CountedIn {
    /// In the lease of this number.
    Lease(u64),
    Store,
    /// In this pod alone: the store was away.
    Pod,
}

/// An amount that was taken, for giving it back.
#[derive(Clone, Debug)]
pub struct TakenAmount {
    pub(crate) key: CountKey,
    pub(crate) slice: Slice,
    pub(crate) amount: u64,
    pub(crate) counted_in: CountedIn,
}

/// The amounts and places that were taken for one [`SharedDemand`](toolweir_engine::shared::SharedDemand).
#[derive(Clone, Debug, Default)]
pub struct DemandGrant {
    /// The amounts.
    pub amounts: SmallVec<[TakenAmount; 2]>,
    /// The places.
    pub places: SmallVec<[Arc<str>; 1]>,
    /// The fallback that was applied instead of asking the store.
    pub fallback: Option<OnStoreFailure>,
}

/// The answer to one [`SharedDemand`](toolweir_engine::shared::SharedDemand).
#[derive(Debug)]
pub enum DemandAnswer {
    /// All of it was taken.
    Taken(DemandGrant),
    /// Nothing was taken: it does not fit.
    Refused(TakeError),
    /// Nothing was taken: the store does not answer, and it does not fit into this pod's share.
    RefusedAlone(TakeError),
    /// Nothing was taken: the store does not answer, and the call has to be denied.
    Unavailable,
    /// Nothing was taken, since a demand before it was not met.
    NotAsked,
}

/// The answers to the demands of a call, in their order.
pub type DemandAnswers = SmallVec<[DemandAnswer; 2]>;
