//! How many answers servers get in their clients' names, and how much they may be denied on a stream before that is slowed down: a server
//! that asks without end does not keep the sidecar busy.

use std::time::Instant;

/// The most answers at once.
pub const BURST: u32 = 128;
/// The most answers in a second thereafter.
pub const PER_SECOND: u32 = 32;

/// How many answers a server may still get.
#[derive(Clone, Copy, Debug)]
pub struct AnswerRate {
    left: f64,
    since: Instant,
}

impl AnswerRate {
    /// All that a server may get at once.
    pub fn new(now: Instant) -> Self {
        Self { left: f64::from(BURST), since: now }
    }

    /// Takes one. Returns false where none is left.
    pub fn take(&mut self, now: Instant) -> bool {
        let gained = now.saturating_duration_since(self.since).as_secs_f64() * f64::from(PER_SECOND);
        self.left = (self.left + gained).min(f64::from(BURST));
        self.since = now;
        let is_left = self.left >= 1.0;
        if is_left {
            self.left -= 1.0;
        }
        is_left
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_server_that_asks_without_end_gets_a_bounded_number_of_answers() {
        let now = Instant::now();
        let mut rate = AnswerRate::new(now);
        let taken = |rate: &mut AnswerRate, now| (0..10_000).filter(|_| rate.take(now)).count();
        assert_eq!(taken(&mut rate, now), 128);
        assert_eq!(taken(&mut rate, now + Duration::from_millis(20)), 0);
        assert_eq!(taken(&mut rate, now + Duration::from_secs(1)), 32);
        assert_eq!(taken(&mut rate, now + Duration::from_secs(3600)), 128);
        // A clock that goes back gives nothing.
        assert_eq!(taken(&mut rate, now), 0);
    }
}
