//! The wait before the next attempt: exponential, with full jitter, so that a thousand sidecars that lost their
//! operator at once do not come back at once.

use std::time::Duration;

/// The bounds of the wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The most before the first attempt.
    pub first: Duration,
    /// The most before any.
    pub most: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_millis(100), most: Duration::from_secs(10) }
    }
}

impl Backoff {
    /// The most to wait before an attempt, counted from 0.
    pub fn ceiling(self, attempt: u32) -> Duration {
        self.first.saturating_mul(2_u32.saturating_pow(attempt)).min(self.most)
    }

    /// Returns the wait before an attempt, counted from 0. For random numbers that are spread evenly over all of `u64`, it is
    /// spread evenly from 0 to the ceiling.
    pub fn pause(self, attempt: u32, random: u64) -> Duration {
        let ceiling = u64::try_from(self.ceiling(attempt).as_nanos()).unwrap_or(u64::MAX);
        let scaled = (u128::from(ceiling) * u128::from(random)) >> 64;
        Duration::from_nanos(u64::try_from(scaled).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_ceiling_doubles_up_to_ten_seconds() {
        let ceilings: Vec<u128> = (0..9).map(|attempt| Backoff::default().ceiling(attempt).as_millis()).collect();
        assert_eq!(ceilings, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(Backoff::default().ceiling(u32::MAX), Duration::from_secs(10));
    }

    #[test]
    fn pauses_are_spread_over_the_whole_span() {
        let backoff = Backoff::default();
        for attempt in [0, 3, 20] {
            let ceiling = backoff.ceiling(attempt).as_secs_f64();
            let mut tenths = [0; 10];
            for step in 0..10_000_u64 {
                let share = backoff.pause(attempt, step * (u64::MAX / 10_000)).as_secs_f64() / ceiling;
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 10")]
                let tenth = (share * 10.0) as usize;
                tenths[tenth.min(9)] += 1;
            }
            assert!(tenths.iter().all(|count| (990..=1010).contains(count)), "{tenths:?}");
        }
    }

    proptest! {
        #[test]
        fn a_pause_is_within_its_bounds_and_grows_with_the_random_number(
            first in 1_u64..1000, most in 1_u64..100_000, attempt in any::<u32>(), random in any::<u64>(), other in any::<u64>(),
        ) {
            let backoff = Backoff { first: Duration::from_millis(first), most: Duration::from_millis(most) };
            let pause = backoff.pause(attempt, random);
            prop_assert!(pause <= backoff.ceiling(attempt) && pause <= backoff.most);
            prop_assert!(backoff.ceiling(attempt) >= backoff.first.min(backoff.most));
            prop_assert!(backoff.ceiling(attempt) <= backoff.ceiling(attempt.saturating_add(1)));
            prop_assert_eq!(backoff.pause(attempt, random.min(other)) <= backoff.pause(attempt, random.max(other)), true);
        }
    }
}
