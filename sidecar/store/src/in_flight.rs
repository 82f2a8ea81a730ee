//! A request to the store while it is in flight, and what was taken with it.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use smallvec::SmallVec;
use tokio::{sync::oneshot, time::timeout};
use toolweir_engine::{
    Timestamp,
    shared::{self, SharedAnswer, SharedDemand},
};

use crate::{
    answer::{DemandAnswer, DemandAnswers, DemandGrant, TakenAmount},
    error::{StoreError, StoreFault},
    reply::{command_failed, malformed_reply, script_numbers},
    scripts::take::TakeRequest,
    state::{ConnectedStore, StoreInner, StoreState},
    worker::discard,
};

/// The time that a reply is waited for, also when its call is over. Then its connection is replaced.
const PATIENCE: Duration = Duration::from_secs(1);

/// The answers to the demands of a call, in their order.
pub type SharedAnswers = SmallVec<[SharedAnswer; 2]>;

impl StoreInner {
    /// Decides a call without the store. With `in_flight` a request of it may still be carried out.
    pub(crate) fn fall_back(self: &Arc<Self>, wanted: &[SharedDemand], engine: Timestamp, in_flight: bool) -> SharedAnswers {
        let answers = self.lock().fall_back(wanted, self.now(), engine, in_flight);
        self.shared_answers(answers)
    }

    /// Makes the engine's answers, which give back what was taken.
    pub(crate) fn shared_answers(self: &Arc<Self>, answers: DemandAnswers) -> SharedAnswers {
        answers.into_iter().map(|answer| self.shared_answer(answer)).collect()
    }

    fn shared_answer(self: &Arc<Self>, answer: DemandAnswer) -> SharedAnswer {
        match answer {
            DemandAnswer::Refused(refusal) => SharedAnswer::Refused(refusal),
            DemandAnswer::RefusedAlone(refusal) => SharedAnswer::RefusedAlone(refusal),
            DemandAnswer::Unavailable => SharedAnswer::Unavailable,
            DemandAnswer::NotAsked => SharedAnswer::NotAsked,
            DemandAnswer::Taken(DemandGrant { amounts, places, fallback }) => SharedAnswer::Taken(shared::SharedGrant {
                amounts: (!amounts.is_empty())
                    .then(|| Box::new(StoreAmounts { inner: Arc::clone(self), amounts }) as Box<dyn shared::GrantedAmounts>),
                places: (!places.is_empty())
                    .then(|| Box::new(StorePlaces { inner: Arc::clone(self), places }) as Box<dyn shared::GrantedPlaces>),
                store_fallback: fallback,
            }),
        }
    }

    /// Asks the store, and waits for the reply as long as the budget allows. The request is a task of its own: where its call is over
    /// before it is answered, what was taken is given back, and what it tells of leases holds all the same.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        wanted: &[SharedDemand],
        request: TakeRequest,
        up: &Arc<ConnectedStore>,
        engine: Timestamp,
    ) -> SharedAnswers {
        let (sender, receiver) = oneshot::channel();
        let in_flight =
            TakeInFlight { inner: Arc::clone(self), up: Arc::clone(up), wanted: wanted.to_vec(), request: Some(request) };
        tokio::spawn(in_flight.run(engine, sender));
        let budget = Duration::from_micros(self.budget.load(Ordering::Relaxed));
        let in_flight = match timeout(budget, receiver).await {
            Ok(Ok(delivered)) => {
                let answers = delivered.take();
                let refused = answers.iter().any(|answer| matches!(answer, SharedAnswer::Refused(_)));
                if refused { &self.meters.refused } else { &self.meters.asked }.inc();
                return answers;
            }
            Ok(Err(_)) => {
                self.meters.unavailable.inc();
                false
            }
            Err(_) => {
                self.meters.timeout.inc();
                self.suspect();
                true
            }
        };
        self.fall_back(wanted, engine, in_flight)
    }
}

/// A request in flight. Dropped without an answer, it gives up what it asked for.
struct TakeInFlight {
    inner: Arc<StoreInner>,
    up: Arc<ConnectedStore>,
    wanted: Vec<SharedDemand>,
    request: Option<TakeRequest>,
}

impl TakeInFlight {
    async fn run(mut self, engine: Timestamp, sender: oneshot::Sender<PendingAnswers>) {
        let Some(request) = &self.request else { return };
        let cmd = self.up.keys.take(&self.up.scripts, &self.inner.pod, request);
        let connection = self.inner.connection(&self.up).await;
        let connection = match connection {
            Ok(connection) if !sender.is_closed() => connection,
            not_sent => {
                if let Some(request) = self.request.take() {
                    self.inner.lock().request_not_sent(&self.wanted, &request);
                }
                match not_sent {
                    Ok(_) => {}
                    // The upkeep's connection may live on, to a server that nobody else reaches any more.
                    Err(error) if error.fault == StoreFault::Reset => self.inner.fail(self.up.generation, error),
                    Err(_) => self.inner.suspect(),
                }
                return;
            }
        };
        let before = Instant::now();
        let failed = match timeout(PATIENCE, connection.send(&cmd)).await {
            Ok(Ok(value)) => {
                self.inner.meters.round_trip.observe(before.elapsed().as_secs_f64());
                match script_numbers(&self.up.address, &value)
                    .and_then(|(time, numbers)| self.apply_reply(time, &numbers, engine))
                {
                    Ok(answers) => {
                        // Where nobody waits any more, it is given back.
                        let _ = sender.send(PendingAnswers(Some(self.inner.shared_answers(answers))));
                        return;
                    }
                    Err(error) => error,
                }
            }
            Ok(Err(error)) => command_failed(&self.up.address, &error),
            Err(_) => StoreError::new(StoreFault::Timeout, format!("{} did not answer", self.up.address)),
        };
        if matches!(failed.fault, StoreFault::Lost | StoreFault::Timeout) {
            // It may be this connection alone.
            discard(&connection);
            self.inner.suspect();
        } else {
            self.inner.fail(self.up.generation, failed);
        }
    }

    fn apply_reply(&mut self, store: u64, numbers: &[i64], engine: Timestamp) -> Result<DemandAnswers, StoreError> {
        let form = || malformed_reply(&self.up.address);
        let mut local = self.inner.lock();
        // What is taken now must be among what is brought to the store if it has to begin anew; so not after that.
        let epoch = self.up.keys.epoch();
        if !matches!(&**self.inner.state.load(), StoreState::Up(up) if up.keys.epoch() == epoch) {
            drop(local);
            return Err(StoreError::new(StoreFault::Lost, format!("the connection to {} was lost", self.up.address)));
        }
        let Some(request) = &self.request else { return Err(form()) };
        let answers = local.apply_reply(&self.wanted, request, store, numbers, self.inner.now(), engine).map_err(|_| form())?;
        self.request = None;
        let wake = local.has_begun_lease() | local.has_updates();
        drop(local);
        if wake {
            self.inner.wake.notify_one();
        }
        Ok(answers)
    }
}

impl Drop for TakeInFlight {
    fn drop(&mut self) {
        if let Some(request) = self.request.take() {
            self.inner.lock().request_lost(&self.wanted, &request);
        }
    }
}

/// Answers on their way to the call. Dropped before they are taken, what they took is given back.
struct PendingAnswers(Option<SharedAnswers>);

impl PendingAnswers {
    fn take(mut self) -> SharedAnswers {
        self.0.take().unwrap_or_default()
    }
}

impl Drop for PendingAnswers {
    fn drop(&mut self) {
        for answer in self.0.take().into_iter().flatten() {
            if let SharedAnswer::Taken(shared::SharedGrant { amounts: Some(amounts), .. }) = answer {
                shared::GrantedAmounts::give_back(amounts);
            }
        }
    }
}

/// Amounts that were taken, for giving them back.
#[derive(Debug)]
struct StoreAmounts {
    inner: Arc<StoreInner>,
    amounts: SmallVec<[TakenAmount; 2]>,
}

impl shared::GrantedAmounts for StoreAmounts {
    fn give_back(self: Box<Self>) {
        let now = self.inner.now();
        if self.inner.lock().give_back(&self.amounts, now) {
            self.inner.wake.notify_one();
        }
    }
}

/// Places that were taken; dropped, they come free.
#[derive(Debug)]
struct StorePlaces {
    inner: Arc<StoreInner>,
    places: SmallVec<[Arc<str>; 1]>,
}

impl shared::GrantedPlaces for StorePlaces {}

impl Drop for StorePlaces {
    fn drop(&mut self) {
        let mut local = self.inner.lock();
        for text in &self.places {
            local.release_place(text);
        }
        drop(local);
        self.inner.wake.notify_one();
    }
}
