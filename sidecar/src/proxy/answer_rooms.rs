//! The room for answers that servers get in their clients' names: bounded at once and over time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::answer_rate::AnswerRate;

/// The most answers that are under way to one server. A server that does not take them has no more of the sidecar's connections than
/// that.
const MOST_UNDER_WAY: usize = 16;
/// How often it is logged that answers were left out.
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// The most servers that are remembered.
const MOST_SERVERS: usize = 1024;

/// The room for answers to each server.
#[derive(Debug, Default)]
pub struct ServerAnswers(Mutex<HashMap<String, AnswerRoom>>);

#[derive(Debug)]
struct AnswerRoom {
    places: Arc<Semaphore>,
    rate: AnswerRate,
    told: Option<Instant>,
}

/// Why an answer is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoAnswerRoom {
    /// True where that is to be logged: it was not for a while.
    pub is_news: bool,
}

impl AnswerRoom {
    fn new(now: Instant) -> Self {
        Self { places: Arc::new(Semaphore::new(MOST_UNDER_WAY)), rate: AnswerRate::new(now), told: None }
    }

    fn begin(&mut self, now: Instant) -> Option<OwnedSemaphorePermit> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        self.rate.take(now).then_some(place)
    }
}

impl ServerAnswers {
    /// Takes the place of an answer to a server, which it has until it is dropped.
    ///
    /// # Errors
    /// There are too many of them.
    pub fn begin(&self, server: &str, now: Instant) -> Result<OwnedSemaphorePermit, NoAnswerRoom> {
        let mut rooms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !rooms.contains_key(server) {
            if rooms.len() >= MOST_SERVERS {
                rooms.retain(|_, room| room.places.available_permits() < MOST_UNDER_WAY);
            }
            rooms.insert(server.to_owned(), AnswerRoom::new(now));
        }
        let Some(room) = rooms.get_mut(server) else { return Err(NoAnswerRoom { is_news: true }) };
        room.begin(now).ok_or_else(|| {
            let is_news = room.told.is_none_or(|told| now.saturating_duration_since(told) >= TOLD_EVERY);
            if is_news {
                room.told = Some(now);
            }
            NoAnswerRoom { is_news }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer_rate::{BURST, PER_SECOND};

    #[test]
    fn answers_are_bounded_at_once_and_over_time_and_it_is_told_once_in_a_while() {
        let (answers, now) = (ServerAnswers::default(), Instant::now());
        let under_way: Vec<_> = (0..MOST_UNDER_WAY).map(|_| answers.begin("bank", now).unwrap()).collect();
        assert_eq!(answers.begin("bank", now).unwrap_err(), NoAnswerRoom { is_news: true });
        assert_eq!(answers.begin("bank", now).unwrap_err(), NoAnswerRoom { is_news: false });
        assert!(answers.begin("shop", now).is_ok());
        drop(under_way);
        let taken = (0..1000).filter(|_| answers.begin("bank", now).is_ok()).count();
        assert_eq!(taken + MOST_UNDER_WAY, usize::try_from(BURST).unwrap());
        for (later, free) in [(Duration::from_secs(1), PER_SECOND), (Duration::from_secs(3600), BURST)] {
            let begun: Vec<_> = (0..1000).map(|_| answers.begin("bank", now + later).map(drop)).collect();
            assert_eq!(begun.iter().filter(|begun| begun.is_ok()).count(), usize::try_from(free).unwrap());
            let news = begun.iter().filter(|begun| begun.is_err_and(|why| why.is_news)).count();
            assert_eq!(news, usize::from(later > TOLD_EVERY));
        }
    }
}
