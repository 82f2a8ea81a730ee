//! Asks the store what a call wants, within a budget, and says what else is done where it does not answer.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge};
use redis::Value;
use ring::rand::{SecureRandom, SystemRandom};
use smallvec::SmallVec;
use tokio::{
    sync::{Notify, oneshot, watch},
    time::timeout,
};
use toolweir_crds::bounds::SHARED_MAX;
use toolweir_engine::{
    Amount, Timestamp,
    counters::Identity,
    shared::{self, Answer, SharedTake, Wanted},
    window::Full,
};

use crate::{
    config::{Config, IN_CLEAR},
    connect::{Address, Connection, Connector, Fault, StoreError, fault_of},
    local::{self, AllSaid, Local, Plan, Question, Said, Took},
    scripts::{Keys, Scripts, integers},
};

/// How long a connection of a worker may take to be made.
const OPENING: Duration = Duration::from_secs(2);
/// How long after a connection of a worker could not be made the next attempt is.
const AGAIN: Duration = Duration::from_millis(250);
/// How long an answer is waited for, also when its call is over. Then its connection is replaced.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long what was seen of other pods' counts is shown for the present.
const SEEN_LIFE: u64 = 1_000_000;

/// What is measured.
#[derive(Clone, Debug)]
pub struct Meters {
    /// 0 while the store is needed and does not answer, else 1.
    pub up: IntGauge,
    /// Calls that were taken with a round trip.
    pub asked: IntCounter,
    /// Calls that were taken from a lease.
    pub leased: IntCounter,
    /// Calls that the store refused.
    pub refused: IntCounter,
    /// Calls that were refused since the count was just said to be full.
    pub known_full: IntCounter,
    /// Calls for which the store could not be asked.
    pub unavailable: IntCounter,
    /// Calls for which it did not answer in time.
    pub timeout: IntCounter,
    /// Connections that failed or were lost, by fault.
    pub failures: IntCounterVec,
    /// How long a round trip took, in seconds.
    pub round_trip: Histogram,
}

/// Whether the store can be asked.
#[derive(Clone, Debug)]
pub(crate) enum State {
    /// It can.
    Up(Arc<Up>),
    /// It cannot, and why.
    Down(StoreError),
    /// Nobody has tried yet, or nothing is shared.
    Idle,
}

/// A store that answers.
#[derive(Debug)]
pub(crate) struct Up {
    pub generation: u64,
    pub address: Address,
    pub connector: Connector,
    pub keys: Keys,
    pub scripts: Scripts,
    /// The connection of the upkeep.
    pub connection: Connection,
}

/// What there is to share, and where.
#[derive(Clone, Debug, Default)]
pub(crate) struct Job {
    pub config: Option<Result<Config, StoreError>>,
    pub groups: BTreeSet<Arc<str>>,
}

/// Counts that pods share. Cheap to clone.
#[derive(Clone)]
pub struct Store(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub local: Mutex<Local>,
    pub state: ArcSwap<State>,
    pub job: watch::Sender<Job>,
    pub wake: Notify,
    pub suspect: AtomicBool,
    pub pod: String,
    pub meters: Meters,
    budget: AtomicU64,
    started: Instant,
    id: u64,
    /// What was seen last, and when; and whether somebody looks.
    seen: ArcSwap<(u64, Seen)>,
    looking: AtomicBool,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("state", &self.0.state.load()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").finish_non_exhaustive()
    }
}

/// 16 hex digits that nobody else has.
pub(crate) fn name() -> String {
    let mut bytes = [0; 8];
    // Without random numbers, the time and the process will do.
    if SystemRandom::new().fill(&mut bytes).is_err() {
        let time = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(0);
        bytes = (nanos ^ (u64::from(std::process::id()) << 40)).to_be_bytes();
    }
    data_encoding::HEXLOWER.encode(&bytes)
}

/// A worker's connection, made by a task of its own so that a call with little time does not end the attempt.
#[derive(Clone)]
struct Opening {
    store: u64,
    generation: u64,
    /// When the attempt was made.
    since: Instant,
    result: watch::Receiver<Option<Result<Connection, StoreError>>>,
}

impl Opening {
    /// Whether another attempt is due: it failed some time ago, or the connection has ended.
    fn is_over(&self) -> bool {
        match &*self.result.borrow() {
            Some(Ok(connection)) => connection.has_ended(),
            Some(Err(_)) => self.since.elapsed() >= AGAIN,
            None => false,
        }
    }
}

thread_local! {
    /// This thread's connections.
    static OPENED: RefCell<Vec<Opening>> = const { RefCell::new(Vec::new()) };
}

/// What is answered to a call, for each thing that it wants.
pub type Answers = SmallVec<[Answer; 2]>;

/// A count as it is now in all pods.
#[derive(Clone, Debug, Default)]
pub struct Looked {
    /// For each take of each [`Wanted`]: what is used, and whether it fits.
    pub takes: Vec<(Amount, Result<(), Full>)>,
    /// For each place: how many are taken.
    pub holds: Vec<u64>,
}

impl Store {
    /// A store of which nothing is known yet: until its upkeep runs, it does not answer. At most `most` counts are kept.
    pub fn new(meters: Meters, most: usize) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(Arc::new(Inner {
            local: Mutex::new(Local::new(true, most)),
            state: ArcSwap::from_pointee(State::Idle),
            job: watch::Sender::new(Job::default()),
            wake: Notify::new(),
            suspect: AtomicBool::new(false),
            pod: name(),
            meters,
            budget: AtomicU64::new(50_000),
            started: Instant::now(),
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            seen: ArcSwap::default(),
            looking: AtomicBool::new(false),
        }))
    }

    /// Where the store is; nothing: there is none. One whose description cannot be used never answers.
    pub fn set_config(&self, config: Option<Result<Config, StoreError>>) {
        if let Some(Ok(config)) = &config {
            self.0.budget.store(u64::try_from(config.budget.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
            self.0.lock().set_leases(config.leases);
        }
        let in_clear = config.as_ref().and_then(|config| config.as_ref().ok()).filter(|config| config.url.is_in_clear());
        let url = in_clear.map(|config| config.url.to_string());
        let changed = self.0.job.send_if_modified(|job| {
            let changed = job.config != config;
            job.config = config;
            changed
        });
        if let (true, Some(url)) = (changed, url) {
            tracing::warn!(url, "the shared store: {IN_CLEAR}");
        }
    }

    /// The groups of pods that the policies in force count together. The store is connected to only if there are some.
    pub fn set_groups(&self, groups: BTreeSet<Arc<str>>) {
        self.0.job.send_if_modified(|job| {
            let changed = job.groups != groups;
            job.groups = groups;
            changed
        });
        self.0.wake.notify_one();
    }

    /// Whether there is a store.
    pub fn is_configured(&self) -> bool {
        self.0.job.borrow().config.is_some()
    }

    /// Whether a store is needed and does not answer.
    pub fn is_missing(&self) -> bool {
        let job = self.0.job.borrow();
        !job.groups.is_empty() && !matches!(**self.0.state.load(), State::Up(_))
    }

    /// `connected`, `unavailable`, or `idle`: nobody needs it, or it is asked for the first time.
    pub fn state(&self) -> &'static str {
        match &**self.0.state.load() {
            State::Up(_) => "connected",
            State::Down(_) => "unavailable",
            State::Idle => "idle",
        }
    }

    /// Why the store does not answer, if it does not.
    pub fn failure(&self) -> Option<StoreError> {
        match &**self.0.state.load() {
            State::Down(error) => Some(error.clone()),
            State::Up(_) | State::Idle => None,
        }
    }

    /// Takes what a call wants. It never takes longer than the budget. `engine` is the engine's time.
    pub async fn take(&self, wanted: &[Wanted], engine: Timestamp) -> Answers {
        let inner = &self.0;
        let State::Up(up) = (**inner.state.load()).clone() else {
            inner.meters.unavailable.inc();
            return inner.without(wanted, engine, false);
        };
        let plan = inner.lock().plan(wanted, inner.now(), engine);
        match plan {
            Plan::Said(said) => {
                let full = said.iter().any(|said| matches!(said, Said::Refused(_)));
                if full { &inner.meters.known_full } else { &inner.meters.leased }.inc();
                inner.answers(said)
            }
            Plan::Ask(question) => inner.ask(wanted, question, &up, engine).await,
        }
    }

    /// What counts now, in all pods; nothing where the store does not answer. Nothing is taken.
    pub async fn look(&self, wanted: &[Wanted], engine: Timestamp) -> Option<Looked> {
        let State::Up(up) = (**self.0.state.load()).clone() else { return None };
        let takes = || wanted.iter().flat_map(|wanted| &wanted.takes).map(|take| &take.take);
        let counts: Vec<_> = takes()
            .map(|take| {
                let (digest, window) = Local::asked(take);
                (digest, [window, take.max.millionths(), take.amount.millionths()])
            })
            .collect();
        let holds = wanted.iter().flat_map(|wanted| &wanted.holds);
        let places: Vec<_> = holds.map(|hold| Local::asked_places(hold.hold.identity.as_str())).collect();
        let cmd = up.keys.look(&up.scripts, &counts, &places);
        let value = timeout(Duration::from_secs(1), up.connection.send(&cmd)).await.ok()?.ok()?;
        let mut numbers = current(&up.address, &value).ok()?.1.into_iter();
        let mut looked = Looked::default();
        for take in takes() {
            let (used, wait) = (u64::try_from(numbers.next()?).ok()?, numbers.next()?);
            let fits = match u64::try_from(wait) {
                Ok(0) => Ok(()),
                // This pod holds places that are among those used.
                Ok(_) if self.0.lock().is_leased(take, self.0.now()) => Ok(()),
                Ok(wait) if take.amount <= take.max => Err(Full::Until(engine.after(Duration::from_micros(wait)))),
                _ => Err(Full::Never),
            };
            looked.takes.push((Amount::of_millionths(used), fits));
        }
        looked.holds = numbers.map(|number| u64::try_from(number).unwrap_or(0)).collect();
        Some(looked)
    }
}

/// What is known of shared counts at one moment, for display.
#[derive(Clone, Debug, Default)]
pub struct Seen(HashMap<Arc<str>, Amount>);

impl shared::Known for Seen {
    fn used(&self, identity: &Identity) -> Option<Amount> {
        self.0.get(identity.as_str()).copied()
    }
}

/// Of how many counts the store is asked for display.
const SEEN: usize = 64;

impl Store {
    /// What is known of shared counts: of these takes what the store says, if it answers; else what it said last. It is asked once a
    /// second at most, whoever wants to know.
    pub async fn seen(&self, takes: impl IntoIterator<Item = SharedTake>, engine: Timestamp) -> Seen {
        let inner = &self.0;
        let now = inner.now();
        let last = inner.seen.load_full();
        let (at, last) = &*last;
        let fresh = *at > 0 && now.saturating_sub(*at) < SEEN_LIFE;
        let mut seen = Seen(inner.lock().used(now));
        if fresh || inner.looking.swap(true, Ordering::AcqRel) {
            for (text, used) in &last.0 {
                let most = seen.0.entry(Arc::clone(text)).or_insert(*used);
                *most = (*most).max(*used);
            }
            return seen;
        }
        // Taken back also when nobody waits any more.
        let _looking = Looking(&inner.looking);
        let all = |mut shared: SharedTake| {
            // Whether it fits is not asked for: that takes longer.
            (shared.take.amount, shared.take.max) = (Amount::default(), Amount::whole(SHARED_MAX.unsigned_abs()));
            shared
        };
        let wanted = Wanted { takes: takes.into_iter().take(SEEN).map(all).collect(), ..Wanted::default() };
        if !wanted.takes.is_empty()
            && let Some(looked) = self.look(std::slice::from_ref(&wanted), engine).await
        {
            let used = wanted.takes.iter().zip(looked.takes);
            let told: HashMap<_, _> = used.map(|(shared, (used, _))| (Arc::from(shared.take.identity.as_str()), used)).collect();
            seen.0.extend(told.iter().map(|(text, used)| (Arc::clone(text), *used)));
            inner.seen.store(Arc::new((inner.now().max(1), Seen(told))));
        }
        seen
    }
}

struct Looking<'a>(&'a AtomicBool);

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Inner {
    pub fn lock(&self) -> MutexGuard<'_, Local> {
        self.local.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Microseconds since this began.
    pub fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// The store of this generation does not answer.
    pub fn fail(&self, generation: u64, error: StoreError) {
        let state = self.state.load_full();
        if !matches!(&*state, State::Up(up) if up.generation == generation) {
            return;
        }
        let before = self.state.compare_and_swap(&state, Arc::new(State::Down(error)));
        if Arc::ptr_eq(&before, &state) {
            self.meters.up.set(0);
            self.wake.notify_one();
        }
    }

    /// A connection may be bad; whether the store is gone, or this process was not scheduled, the upkeep finds out.
    fn suspect(&self) {
        self.suspect.store(true, Ordering::Relaxed);
        self.wake.notify_one();
    }

    fn without(self: &Arc<Self>, wanted: &[Wanted], engine: Timestamp, asked: bool) -> Answers {
        let said = self.lock().without_store(wanted, self.now(), engine, asked);
        self.answers(said)
    }

    fn answers(self: &Arc<Self>, said: AllSaid) -> Answers {
        said.into_iter().map(|said| self.answer(said)).collect()
    }

    fn answer(self: &Arc<Self>, said: Said) -> Answer {
        match said {
            Said::Refused(refusal) => Answer::Refused(refusal),
            Said::RefusedAlone(refusal) => Answer::RefusedAlone(refusal),
            Said::Unavailable => Answer::Unavailable,
            Said::NotAsked => Answer::NotAsked,
            Said::Taken(local::Taken { took, places, without_store }) => {
                let (amounts, held) = (Arc::clone(self), Arc::clone(self));
                Answer::Taken(shared::Taken {
                    amounts: (!took.is_empty()).then(|| Box::new(Amounts { inner: amounts, took }) as Box<dyn shared::Amounts>),
                    places: (!places.is_empty()).then(|| Box::new(Places { inner: held, places }) as Box<dyn shared::Places>),
                    without_store,
                })
            }
        }
    }

    /// Asks the store. The question is a task of its own: where its call is over before it is answered, what was taken is given back,
    /// and what it tells of leases holds all the same.
    async fn ask(self: &Arc<Self>, wanted: &[Wanted], question: Question, up: &Arc<Up>, engine: Timestamp) -> Answers {
        let (sender, receiver) = oneshot::channel();
        let asking = Asking { inner: Arc::clone(self), up: Arc::clone(up), wanted: wanted.to_vec(), question: Some(question) };
        tokio::spawn(asking.run(engine, sender));
        let budget = Duration::from_micros(self.budget.load(Ordering::Relaxed));
        let asked = match timeout(budget, receiver).await {
            Ok(Ok(delivered)) => {
                let answers = delivered.take();
                let refused = answers.iter().any(|answer| matches!(answer, Answer::Refused(_)));
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
        self.without(wanted, engine, asked)
    }

    /// This thread's connection.
    async fn connection(self: &Arc<Self>, up: &Arc<Up>) -> Result<Connection, StoreError> {
        let mut opening = OPENED.with_borrow_mut(|opened| {
            opened.retain(|opening| opening.store != self.id || (opening.generation == up.generation && !opening.is_over()));
            if let Some(known) = opened.iter().find(|opening| opening.store == self.id) {
                return known.clone();
            }
            let (sender, result) = watch::channel(None);
            let task = Arc::clone(up);
            tokio::spawn(async move {
                let result = task.connector.open(&task.address, OPENING).await.and_then(|connection| {
                    let same = connection.run_id == task.connection.run_id;
                    let error =
                        || StoreError::new(Fault::Reset, format!("{} was started again, or is another server", task.address));
                    same.then_some(connection).ok_or_else(error)
                });
                drop(task);
                sender.send_replace(Some(result));
                // Kept until nobody asks any more.
                sender.closed().await;
            });
            let opening = Opening { store: self.id, generation: up.generation, since: Instant::now(), result };
            opened.push(opening.clone());
            opening
        });
        if let Some(result) = &*opening.result.borrow() {
            return result.clone();
        }
        let done = opening.result.wait_for(Option::is_some).await;
        done.ok().and_then(|result| result.clone()).unwrap_or_else(|| Err(unreadable(&up.address)))
    }
}

/// This connection is not used any more.
fn discard(connection: &Connection) {
    let is_it = |opening: &Opening| matches!(&*opening.result.borrow(), Some(Ok(known)) if known.is(connection));
    OPENED.with_borrow_mut(|opened| opened.retain(|opening| !is_it(opening)));
}

pub(crate) fn lost(address: &Address, error: &redis::RedisError) -> StoreError {
    StoreError::new(fault_of(error), format!("{address}: {error}"))
}

/// What a script answers after the code: the store's time, and its numbers; an error where the store is in another epoch.
pub(crate) fn current(address: &Address, answer: &Value) -> Result<(u64, Vec<i64>), StoreError> {
    let mut numbers = integers(answer).ok_or_else(|| unreadable(address))?;
    match numbers.as_slice() {
        [0, time, ..] => {
            let time = u64::try_from(*time).unwrap_or(0);
            numbers.drain(..2);
            Ok((time, numbers))
        }
        [1, ..] => Err(StoreError::new(Fault::Reset, format!("{address} has lost what it knew, or begun anew"))),
        _ => Err(unreadable(address)),
    }
}

pub(crate) fn unreadable(address: &Address) -> StoreError {
    StoreError {
        fault: Fault::Answer,
        message: format!("{address} gives an answer of another form; is another version at work?"),
    }
}

/// A question under way. Dropped without an answer, it gives up what it asked for.
struct Asking {
    inner: Arc<Inner>,
    up: Arc<Up>,
    wanted: Vec<Wanted>,
    question: Option<Question>,
}

impl Asking {
    async fn run(mut self, engine: Timestamp, sender: oneshot::Sender<Delivered>) {
        let Some(question) = &self.question else { return };
        let cmd = self.up.keys.take(&self.up.scripts, &self.inner.pod, question);
        let connection = self.inner.connection(&self.up).await;
        let connection = match connection {
            Ok(connection) if !sender.is_closed() => connection,
            not_sent => {
                if let Some(question) = self.question.take() {
                    self.inner.lock().unasked(&self.wanted, &question);
                }
                match not_sent {
                    Ok(_) => {}
                    // The upkeep's connection may live on, to a server that nobody else reaches any more.
                    Err(error) if error.fault == Fault::Reset => self.inner.fail(self.up.generation, error),
                    Err(_) => self.inner.suspect(),
                }
                return;
            }
        };
        let before = Instant::now();
        let failed = match timeout(PATIENCE, connection.send(&cmd)).await {
            Ok(Ok(value)) => {
                self.inner.meters.round_trip.observe(before.elapsed().as_secs_f64());
                match current(&self.up.address, &value).and_then(|(time, numbers)| self.answered(time, &numbers, engine)) {
                    Ok(said) => {
                        // Where nobody waits any more, it is given back.
                        let _ = sender.send(Delivered(Some(self.inner.answers(said))));
                        return;
                    }
                    Err(error) => error,
                }
            }
            Ok(Err(error)) => lost(&self.up.address, &error),
            Err(_) => StoreError::new(Fault::Timeout, format!("{} did not answer", self.up.address)),
        };
        if matches!(failed.fault, Fault::Lost | Fault::Timeout) {
            // It may be this connection alone.
            discard(&connection);
            self.inner.suspect();
        } else {
            self.inner.fail(self.up.generation, failed);
        }
    }

    fn answered(&mut self, store: u64, numbers: &[i64], engine: Timestamp) -> Result<AllSaid, StoreError> {
        let form = || unreadable(&self.up.address);
        let mut local = self.inner.lock();
        // What is taken now must be among what is brought to the store if it has to begin anew; so not after that.
        let epoch = self.up.keys.epoch();
        if !matches!(&**self.inner.state.load(), State::Up(up) if up.keys.epoch() == epoch) {
            drop(local);
            return Err(StoreError::new(Fault::Lost, format!("the connection to {} was lost", self.up.address)));
        }
        let Some(question) = &self.question else { return Err(form()) };
        let said = local.answered(&self.wanted, question, store, numbers, self.inner.now(), engine).map_err(|_| form())?;
        self.question = None;
        let wake = local.has_begun_lease() | local.has_gives();
        drop(local);
        if wake {
            self.inner.wake.notify_one();
        }
        Ok(said)
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if let Some(question) = self.question.take() {
            self.inner.lock().unanswered(&self.wanted, &question);
        }
    }
}

/// Answers on their way to the call. Dropped before they are taken, what they took is given back.
struct Delivered(Option<Answers>);

impl Delivered {
    fn take(mut self) -> Answers {
        self.0.take().unwrap_or_default()
    }
}

impl Drop for Delivered {
    fn drop(&mut self) {
        for answer in self.0.take().into_iter().flatten() {
            if let Answer::Taken(shared::Taken { amounts: Some(amounts), .. }) = answer {
                shared::Amounts::give_back(amounts);
            }
        }
    }
}

/// Amounts that were taken.
#[derive(Debug)]
struct Amounts {
    inner: Arc<Inner>,
    took: SmallVec<[Took; 2]>,
}

impl shared::Amounts for Amounts {
    fn give_back(self: Box<Self>) {
        let now = self.inner.now();
        if self.inner.lock().give_back(&self.took, now) {
            self.inner.wake.notify_one();
        }
    }
}

/// Places that were taken.
#[derive(Debug)]
struct Places {
    inner: Arc<Inner>,
    places: SmallVec<[Arc<str>; 1]>,
}

impl shared::Places for Places {}

impl Drop for Places {
    fn drop(&mut self) {
        let mut local = self.inner.lock();
        for text in &self.places {
            local.release(text);
        }
        drop(local);
        self.inner.wake.notify_one();
    }
}
