//! The usage of shared counts, for display.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use toolweir_engine::{Amount, shared, take::Identity};

/// The amounts that count against shared limits at one moment, by the limits' identities.
#[derive(Clone, Debug, Default)]
pub struct UsageSnapshot(pub(crate) HashMap<Arc<str>, Amount>);

impl shared::SharedUsage for UsageSnapshot {
    fn used(&self, identity: &Identity) -> Option<Amount> {
        self.0.get(identity.as_str()).copied()
    }
}

/// Marks that the usage is being read, until it is dropped.
pub(crate) struct RefreshGuard<'a>(pub(crate) &'a AtomicBool);

impl Drop for RefreshGuard<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
