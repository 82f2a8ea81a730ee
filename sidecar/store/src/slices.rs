//! The slices of a window on the store's clock, as sidecar/engine/src/window.rs has them, in microseconds.

use std::collections::VecDeque;

use toolweir_engine::{
    Amount,
    window::{LIFE, SLICES, Slice},
};

/// A length or a moment of the store's clock, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Micros(pub u64);

/// Returns the slice that a moment of the store's clock lies in, for a window of so many microseconds.
pub fn slice_of(now: u64, window: u64) -> Slice {
    let window = window.max(1);
    let (whole, rest) = (now / window, now % window);
    Slice(whole.saturating_mul(SLICES).saturating_add(rest.saturating_mul(SLICES) / window))
}

/// Returns the moment at which what was taken in a slice comes free.
pub fn end_of(slice: Slice, window: u64) -> u64 {
    let end = slice.0.saturating_add(LIFE);
    (end / SLICES).saturating_mul(window).saturating_add((end % SLICES).saturating_mul(window).div_ceil(SLICES))
}

/// The most that is kept in all slices together: nothing fits beside it, and the store's numbers are exact up to it.
const MOST: u64 = (1 << 53) - 1;

/// The amount in each slice, in millionths; oldest first.
#[derive(Clone, Debug, Default)]
pub struct Slices {
    held: VecDeque<(Slice, u64)>,
    total: u64,
}

impl Slices {
    /// Adds an amount to a slice. Returns how much of it there was room for.
    pub fn add(&mut self, slice: Slice, amount: u64) -> u64 {
        let amount = amount.min(MOST.saturating_sub(self.total));
        if amount == 0 {
            return 0;
        }
        self.total += amount;
        match self.held.iter().rposition(|(known, _)| *known <= slice) {
            Some(at) => match self.held.get_mut(at) {
                Some((known, held)) if *known == slice => *held = held.saturating_add(amount),
                _ => self.held.insert(at + 1, (slice, amount)),
            },
            None => self.held.push_front((slice, amount)),
        }
        amount
    }

    /// Takes an amount out of a slice, as far as it is there. Returns how much that was.
    pub fn remove(&mut self, slice: Slice, amount: u64) -> u64 {
        let Ok(at) = self.held.binary_search_by_key(&slice, |(known, _)| *known) else { return 0 };
        let Some((_, held)) = self.held.get_mut(at) else { return 0 };
        let removed = amount.min(*held);
        *held -= removed;
        self.total -= removed;
        if *held == 0 {
            self.held.remove(at);
        }
        removed
    }

    /// Forgets what is over at a moment in this slice.
    pub fn forget(&mut self, current: Slice) {
        let is_over = |slice: &Slice| slice.0.saturating_add(LIFE) <= current.0;
        while let Some((slice, amount)) = self.held.front().copied().filter(|(slice, _)| is_over(slice)) {
            debug_assert!(slice < current);
            self.total -= amount;
            self.held.pop_front();
        }
    }

    /// The sum of all slices.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Returns whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Each slice and what it holds.
    pub fn iter(&self) -> impl Iterator<Item = (Slice, u64)> {
        self.held.iter().copied()
    }

    /// Counts all of it in one slice.
    pub fn move_to(&mut self, slice: Slice) {
        let total = self.total;
        self.held.clear();
        if total > 0 {
            self.held.push_back((slice, total));
        }
    }

    /// Takes all of it out.
    pub fn drain(&mut self) -> Vec<(Slice, Amount)> {
        self.total = 0;
        self.held.drain(..).map(|(slice, amount)| (slice, Amount::from_millionths(amount))).collect()
    }

    /// Returns the slice after whose end an amount fits beside what is held, if nothing else is taken before. Nothing when it never
    /// does.
    pub fn fits_after(&self, amount: u64, max: u64) -> Option<Slice> {
        let mut left = self.total;
        self.held.iter().find_map(|(slice, held)| {
            left -= held;
            (left.saturating_add(amount) <= max).then_some(*slice)
        })
    }
}
