//! The budget of a decision, in units of work that are the same on every machine.
//!
//! Neither the library that evaluates expressions nor a search for a pattern can be interrupted, so work is charged before it is
//! done: for each node of an expression's tree, each element of a comprehension, and each byte that is compared, copied, searched
//! or read. A unit is about a nanosecond of a server's processor.

use std::cell::Cell;

/// The units of one decision: all policies together, those in audit mode included.
pub const BUDGET: u64 = 10_000_000;

thread_local! {
    /// The units that are left for the expression that this thread evaluates: functions of the library are given their arguments alone.
    static LEFT: Cell<u64> = const { Cell::new(0) };
}

/// The budget is spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spent;

/// A budget, with the units that are left of it. Once more was charged than there was, nothing is left.
#[derive(Debug)]
pub struct Meter(Cell<u64>);

impl Default for Meter {
    fn default() -> Self {
        Self::new(BUDGET)
    }
}

impl Meter {
    /// Makes a budget of so many units.
    pub fn new(units: u64) -> Self {
        Self(Cell::new(units))
    }

    /// Returns the units that are left.
    pub fn left(&self) -> u64 {
        self.0.get()
    }

    /// Charges units.
    ///
    /// # Errors
    /// There are not so many left.
    pub fn charge(&self, units: u64) -> Result<(), Spent> {
        take(&self.0, units)
    }

    /// Runs a closure whose work is charged with [`charge`].
    pub(super) fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        LEFT.set(self.0.get());
        let done = work();
        self.0.set(LEFT.replace(0));
        done
    }
}

fn take(left: &Cell<u64>, units: u64) -> Result<(), Spent> {
    let rest = left.get().saturating_sub(units);
    left.set(rest);
    if rest == 0 { Err(Spent) } else { Ok(()) }
}

/// Charges the expression that this thread evaluates.
pub(super) fn charge(units: u64) -> Result<(), Spent> {
    LEFT.with(|left| take(left, units))
}

/// Returns a number of bytes or items as units.
pub fn units(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
