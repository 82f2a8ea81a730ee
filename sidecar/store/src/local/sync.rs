//! Updates, leases that are over, signs of life: the messages to the store besides those of calls.

use std::sync::Arc;

use hashbrown::HashMap;

use super::LocalCounts;
use crate::{
    scripts::{CountUpdate, PlaceReport, take::CountRequest},
    slices::slice_of,
};

impl LocalCounts {
    /// Takes out the updates that the store has to be told of.
    pub fn take_updates(&mut self) -> Vec<CountUpdate> {
        std::mem::take(&mut self.updates)
    }

    /// Returns whether there are updates that the store has to be told of.
    pub fn has_updates(&self) -> bool {
        !self.updates.is_empty()
    }

    /// Takes updates again of which the store may not have been told. What was moved is moved once more: that frees nothing. What was
    /// given back stays counted, since it must not be given back twice.
    pub fn updates_lost(&mut self, updates: Vec<CountUpdate>) {
        let is_safe = |update: &CountUpdate| update.slices.iter().map(|(_, amount)| amount).sum::<i64>() >= 0;
        self.updates.extend(updates.into_iter().filter(is_safe));
    }

    /// The deadline of the lease that is over next, if there is one.
    pub fn next_deadline(&self) -> Option<u64> {
        let leased = self.counts.values().filter(|count| count.lease_requests == 0);
        leased.filter_map(|count| count.lease.map(|lease| lease.deadline)).min()
    }

    /// Ends the leases that are over. The requests that close them tell what was used and return the rest.
    pub fn close_leases(&mut self, now: u64) -> Vec<CountRequest> {
        self.counts.values_mut().filter_map(|count| count.close_lease(now)).collect()
    }

    /// Moves to another epoch, where the store has lost what it knew since the moment `since` of its clock. Returns what is to be
    /// brought there. Leases are over. The second part is brought with the first, as [`Self::offline_updates`] returns it.
    pub fn enter_epoch(&mut self, since: u64, now: u64) -> (Vec<CountUpdate>, Vec<CountUpdate>) {
        self.updates.clear();
        let store = self.clock.earliest(now);
        let mut updates = Vec::new();
        for count in self.counts.values_mut() {
            count.drop_lease();
            count.own.forget(slice_of(store, count.window));
            let first = slice_of(since, count.window);
            updates.extend(count.addition(count.own.iter().filter(|(slice, _)| *slice >= first)));
            // Of these the store never knew.
            updates.extend(count.addition(count.offline.iter().filter(|(slice, _)| *slice < first)));
        }
        self.places_lost();
        (updates, self.offline_updates())
    }

    /// Returns what this pod took without the store and the store does not know yet.
    pub fn offline_updates(&self) -> Vec<CountUpdate> {
        self.counts.values().filter_map(|count| count.addition(count.offline.iter())).collect()
    }

    /// Notes that the store knows these of the [`Self::offline_updates`].
    pub fn offline_stored(&mut self, updates: &[CountUpdate]) {
        if updates.is_empty() {
            return;
        }
        let stored: HashMap<&str, &CountUpdate> = updates.iter().map(|update| (&*update.digest, update)).collect();
        for count in self.counts.values_mut() {
            for (slice, amount) in stored.get(&*count.digest).into_iter().flat_map(|update| &update.slices) {
                count.offline.remove(*slice, u64::try_from(*amount).unwrap_or(0));
            }
        }
    }

    /// The places that the pod holds, for a sign of life.
    pub fn report_places(&mut self) -> Vec<PlaceReport> {
        let number = self.next_number();
        let mut reports = Vec::new();
        for held in self.places.values_mut().filter(|held| held.count > 0 || held.changed) {
            held.changed = false;
            reports.push(PlaceReport { digest: Arc::clone(&held.digest), number, held: held.count });
        }
        reports
    }

    /// Returns whether places came free of which the store may not know.
    pub fn places_changed(&self) -> bool {
        self.places.values().any(|held| held.changed)
    }

    /// Notes that the store may not know which places are held.
    pub fn places_lost(&mut self) {
        for held in self.places.values_mut() {
            held.changed = true;
        }
    }

    /// Ends all leases, and lets no other begin. Returns what [`Self::close_leases`] does.
    pub fn end_leases(&mut self) -> Vec<CountRequest> {
        self.leases = false;
        self.close_leases(u64::MAX)
    }
}
