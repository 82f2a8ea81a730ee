//! A sliding window that never admits more than its maximum.
//!
//! Time is cut into slices of 1/128 of the window. What is let through in slice `e` counts until slice `e + 130`
//! begins, so it is at least 129/128 and at most 130/128 of the window old when its place comes free: never early, and
//! at most 1/64 of the window late. The 1/128 in hand covers that calls reach the server a little after they were
//! decided on, one later than another. At most 131 slices are kept, regardless of the maximum.

use std::{collections::VecDeque, time::Duration};

/// A point in time: nanoseconds since any fixed moment of a clock that never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Returns the point that lies `span` later.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Returns the time from `earlier` to this point; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// An amount that is counted, in millionths of a call or of a cost's unit, so that sums are exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Amount(u64);

impl Amount {
    const UNIT: u64 = 1_000_000;
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// One call.
    pub const ONE: Self = Self(Self::UNIT);

    /// Makes an amount of a whole number of calls or units.
    pub fn whole(number: u64) -> Self {
        Self(number.saturating_mul(Self::UNIT))
    }

    /// Makes an amount of a cost, rounded up to a millionth. `None` for one that is negative or not a number.
    pub fn cost(number: f64) -> Option<Self> {
        if number.is_nan() || number < 0.0 {
            return None;
        }
        let millionths = number * 1e6;
        // A decimal fraction such as 0.57 is a little off in binary: that little is not a reason to round up.
        let nearest = millionths.round();
        let exact = (millionths - nearest).abs() <= nearest * 4.0 * f64::EPSILON;
        // Saturates for what is larger than any maximum.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative; `as` saturates")]
        Some(Self(if exact { nearest } else { millionths.ceil() } as u64))
    }

    /// Returns the number of millionths of a call, or of a cost's unit.
    pub fn millionths(self) -> u64 {
        self.0
    }

    /// Makes an amount of so many millionths.
    pub fn from_millionths(number: u64) -> Self {
        Self(number)
    }

    /// Returns it as a fraction of another amount.
    #[expect(clippy::cast_precision_loss, reason = "for display")]
    pub fn ratio(self, of: Self) -> f64 {
        self.0 as f64 / of.0.max(1) as f64
    }

    /// Returns the number of calls or units.
    pub fn as_f64(self) -> f64 {
        self.ratio(Self::ONE)
    }

    /// Returns the sum; it saturates.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

/// A window's length, cut into slices of exactly 1/128: slice `e` holds the moments from `e / 128` of the length on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    length: u64,
}

/// A slice of time, counted from the clock's zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slice(pub u64);

/// The number of slices of one window.
pub const SLICES: u64 = 128;
/// The number of slices after which a place is free.
pub const LIFE: u64 = SLICES + 2;

impl Span {
    /// Makes the span of a window of this length.
    pub fn new(length: Duration) -> Self {
        Self { length: u64::try_from(length.as_nanos()).unwrap_or(u64::MAX).clamp(1, u64::MAX / SLICES) }
    }

    /// Returns the window's length in nanoseconds.
    pub fn nanos(self) -> u64 {
        self.length
    }

    /// Returns the slice that a moment lies in.
    pub fn slice_of(self, now: Timestamp) -> Slice {
        // In two parts, so that nothing is rounded and nothing overflows.
        let (whole, rest) = (now.0 / self.length, now.0 % self.length);
        Slice(whole.saturating_mul(SLICES).saturating_add(rest * SLICES / self.length))
    }

    /// Returns the moment at which the amount that was taken in a slice comes free.
    pub fn end_of(self, slice: Slice) -> Timestamp {
        let end = slice.0.saturating_add(LIFE);
        let (whole, rest) = (end / SLICES, end % SLICES);
        Timestamp(whole.saturating_mul(self.length).saturating_add((rest * self.length).div_ceil(SLICES)))
    }
}

/// The amounts that one window has let through lately.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    /// Slices that hold something, oldest first.
    slices: VecDeque<(Slice, Amount)>,
    total: Amount,
}

/// The reason why an amount does not fit now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The amount fits from then on, if nothing else is let through before.
    Until(Timestamp),
    /// The amount is more than the maximum and never fits.
    Never,
}

impl Usage {
    /// Drops the slices that have come free.
    fn advance(&mut self, span: Span, now: Timestamp) {
        while let Some((slice, amount)) = self.slices.front().copied() {
            if span.end_of(slice) > now {
                break;
            }
            self.total = self.total.minus(amount);
            self.slices.pop_front();
        }
    }

    /// Checks that an amount fits now.
    ///
    /// # Errors
    /// The moment from which it fits.
    pub fn check(&mut self, span: Span, now: Timestamp, amount: Amount, max: Amount) -> Result<(), Full> {
        self.advance(span, now);
        if self.total.plus(amount) <= max {
            return Ok(());
        }
        if amount > max {
            return Err(Full::Never);
        }
        let mut left = self.total;
        for (slice, freed) in &self.slices {
            left = left.minus(*freed);
            if left.plus(amount) <= max {
                return Err(Full::Until(span.end_of(*slice)));
            }
        }
        Err(Full::Never)
    }

    /// Counts an amount. Returns the slice in which it counts, for [`Usage::give_back`].
    pub fn take(&mut self, span: Span, now: Timestamp, amount: Amount) -> Slice {
        self.advance(span, now);
        self.total = self.total.plus(amount);
        let slice = span.slice_of(now);
        match self.slices.back_mut() {
            // Two threads can read the clock in one order and get here in the other: the later slice holds both.
            Some((last, held)) if *last >= slice => {
                *held = held.plus(amount);
                *last
            }
            _ => {
                self.slices.push_back((slice, amount));
                slice
            }
        }
    }

    /// Removes an amount that [`Usage::take`] counted, if it still counts.
    pub fn give_back(&mut self, slice: Slice, amount: Amount) {
        if let Ok(at) = self.slices.binary_search_by_key(&slice, |(slice, _)| *slice)
            && let Some((_, held)) = self.slices.get_mut(at)
        {
            *held = held.minus(amount);
            self.total = self.total.minus(amount);
            if *held == Amount::ZERO {
                self.slices.remove(at);
            }
        }
    }

    /// Returns the amount that counts now.
    pub fn used(&mut self, span: Span, now: Timestamp) -> Amount {
        self.advance(span, now);
        self.total
    }

    /// Returns the moment at which nothing of it counts any more.
    pub fn end(&self, span: Span) -> Timestamp {
        self.slices.back().map_or(Timestamp(0), |(slice, _)| span.end_of(*slice))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn costs_are_exact_to_a_millionth() {
        assert_eq!(Amount::cost(0.57).map(|a| a.0), Some(570_000));
        assert_eq!(Amount::cost(0.1), Some(Amount(100_000)));
        assert_eq!(Amount::cost(1e-9), Some(Amount(1)));
        assert_eq!(Amount::cost(0.0), Some(Amount::ZERO));
        assert_eq!(Amount::cost(-1.0), None);
        assert_eq!(Amount::cost(f64::NAN), None);
        assert_eq!(Amount::cost(f64::INFINITY), Some(Amount(u64::MAX)));
    }

    #[test]
    fn a_place_given_back_is_free() {
        let (span, max) = (Span::new(Duration::from_secs(1)), Amount::whole(2));
        let mut usage = Usage::default();
        let first = usage.take(span, Timestamp(5), Amount::ONE);
        usage.take(span, Timestamp(6), Amount::ONE);
        assert!(usage.check(span, Timestamp(7), Amount::ONE, max).is_err());
        usage.give_back(first, Amount::ONE);
        assert_eq!(usage.check(span, Timestamp(7), Amount::ONE, max), Ok(()));
        usage.give_back(Slice(99), Amount::ONE);
        assert_eq!(usage.used(span, Timestamp(7)), Amount::ONE);
    }

    /// The naive model: every admission with its exact time.
    #[derive(Default)]
    struct Naive(Vec<(u64, u64)>);

    impl Naive {
        fn in_span(&self, end: u64, span: u64) -> u64 {
            self.0.iter().filter(|(at, _)| *at + span > end).map(|(_, n)| n).sum()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        /// Also where a length cannot be cut into 128 slices of whole nanoseconds, however long it is: a place comes free
        /// later than 129/128 of the window, and at most 1/64 of it late, rounded up to the nanosecond.
        #[test]
        fn slices_of_no_whole_nanoseconds_are_neither_early_nor_late(
            length in prop_oneof![128_u64..1000, 100_000_000_u64..2_678_400_000_000_000],
            odd in 1_u64..128,
            now in 0_u64..4_000_000_000_000_000_000,
            on_an_edge in any::<bool>(),
        ) {
            let length = length / 128 * 128 + odd;
            let span = Span::new(Duration::from_nanos(length));
            let now = if on_an_edge { now / length * length } else { now };
            let mut usage = Usage::default();
            let slice = usage.take(span, Timestamp(now), Amount::ONE);
            prop_assert_eq!(slice, span.slice_of(Timestamp(now)));
            let end = span.end_of(slice).0;
            prop_assert!(u128::from(end - now) * 128 > u128::from(length) * 129, "early");
            prop_assert!(end - now <= length + length.div_ceil(64), "late");
            prop_assert_eq!(usage.check(span, Timestamp(end - 1), Amount::ONE, Amount::ONE), Err(Full::Until(Timestamp(end))));
            prop_assert_eq!(usage.check(span, Timestamp(end), Amount::ONE, Amount::ONE), Ok(()));
        }

        /// For any sequence of calls: no span of the window holds more than the maximum, a call is turned away only
        /// when the window and 1/64 more is full, the wait that is told is enough, and memory is bounded.
        #[test]
        fn never_more_than_max_and_at_most_a_64th_late(
            window_ms in 100_u64..100_000,
            max in 1_u64..20,
            start in 0_u64..1_000_000_000_000,
            calls in proptest::collection::vec((0_u64..1000, 1_u64..4), 1..300),
        ) {
            let length = window_ms * 1_000_000;
            let span = Span::new(Duration::from_millis(window_ms));
            let (mut usage, mut naive, mut now) = (Usage::default(), Naive::default(), start);
            for (step, amount) in calls {
                now += step * step * length / 4_000_000;
                let (whole, most) = (Amount::whole(amount), Amount::whole(max));
                match usage.check(span, Timestamp(now), whole, most) {
                    Ok(()) => {
                        usage.take(span, Timestamp(now), whole);
                        naive.0.push((now, amount));
                        prop_assert!(naive.in_span(now, length) <= max);
                    }
                    Err(Full::Never) => prop_assert!(amount > max),
                    Err(Full::Until(then)) => {
                        prop_assert!(naive.in_span(now, length + length.div_ceil(64)) + amount > max, "turned away too late");
                        prop_assert!(then.0 > now && then.0 - now <= length + length.div_ceil(64) + 64);
                        let at = |at: u64| usage.clone().check(span, Timestamp(at), whole, most);
                        prop_assert_eq!(at(then.0), Ok(()));
                        prop_assert!(at(then.0 - 1).is_err());
                    }
                }
                prop_assert!(usage.slices.len() <= 131);
            }
        }
    }
}
