//! [`Store`]: takes what a call wants, and reads what counts now.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};
use toolweir_crds::bounds::SHARED_MAX;
use toolweir_engine::{
    Amount, Timestamp,
    shared::{SharedAnswer, SharedDemand, SharedTake},
    window::Full,
};

use crate::{
    answer::DemandAnswer,
    config::{IN_CLEAR, StoreConfig},
    error::StoreError,
    in_flight::SharedAnswers,
    local::{LocalCounts, LocalDecision},
    reply::script_numbers,
    state::{Meters, SharingConfig, StoreInner, StoreState, random_id},
    usage::{RefreshGuard, UsageSnapshot},
};

/// The time for which the usage of all pods is shown before it is read again, in microseconds.
const USAGE_LIFE: u64 = 1_000_000;
/// The most counts of which the usage is read.
const MOST_READ: usize = 64;

/// Counts that pods share. Cheap to clone.
#[derive(Clone)]
pub struct Store(pub(crate) Arc<StoreInner>);

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("state", &self.0.state.load()).finish_non_exhaustive()
    }
}

/// Counts and places as they are now in all pods.
#[derive(Clone, Debug, Default)]
pub struct PeekedCounts {
    /// For each take of each [`SharedDemand`]: the amount that counts, and whether the take fits.
    pub takes: Vec<(Amount, Result<(), Full>)>,
    /// For each hold of each [`SharedDemand`]: how many places are taken.
    pub holds: Vec<u64>,
}

impl Store {
    /// A store of which nothing is known yet: until its upkeep runs, it does not answer. At most `most` counts are kept.
    pub fn new(meters: Meters, most: usize) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(Arc::new(StoreInner {
            local: Mutex::new(LocalCounts::new(true, most)),
            state: ArcSwap::from_pointee(StoreState::Idle),
            sharing: watch::Sender::new(SharingConfig::default()),
            wake: Notify::new(),
            suspect: AtomicBool::new(false),
            pod: random_id(),
            meters,
            budget: AtomicU64::new(50_000),
            started: Instant::now(),
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            last_usage: ArcSwap::default(),
            reads_usage: AtomicBool::new(false),
        }))
    }

    /// Sets where the store is; nothing where there is none. A store whose configuration is an error never answers.
    pub fn set_config(&self, config: Option<Result<StoreConfig, StoreError>>) {
        if let Some(Ok(config)) = &config {
            self.0.budget.store(u64::try_from(config.budget.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
            self.0.lock().set_leases(config.leases);
        }
        let in_clear = config.as_ref().and_then(|config| config.as_ref().ok()).filter(|config| config.url.is_in_clear());
        let url = in_clear.map(|config| config.url.to_string());
        let changed = self.0.sharing.send_if_modified(|sharing| {
            let changed = sharing.config != config;
            sharing.config = config;
            changed
        });
        if let (true, Some(url)) = (changed, url) {
            tracing::warn!(url, "the shared store: {IN_CLEAR}");
        }
    }

    /// Sets the groups of pods that the policies in force count together. The store is connected to only if there are some.
    pub fn set_groups(&self, groups: BTreeSet<Arc<str>>) {
        self.0.sharing.send_if_modified(|sharing| {
            let changed = sharing.groups != groups;
            sharing.groups = groups;
            changed
        });
        self.0.wake.notify_one();
    }

    /// Returns whether there is a store.
    pub fn is_configured(&self) -> bool {
        self.0.sharing.borrow().config.is_some()
    }

    /// Returns whether a store is needed and does not answer.
    pub fn is_missing(&self) -> bool {
        let sharing = self.0.sharing.borrow();
        !sharing.groups.is_empty() && !matches!(**self.0.state.load(), StoreState::Up(_))
    }

    /// `connected`, `unavailable`, or `idle`: nobody needs it, or it is asked for the first time.
    pub fn state(&self) -> &'static str {
        match &**self.0.state.load() {
            StoreState::Up(_) => "connected",
            StoreState::Down(_) => "unavailable",
            StoreState::Idle => "idle",
        }
    }

    /// The reason why the store does not answer, if it does not.
    pub fn failure(&self) -> Option<StoreError> {
        match &**self.0.state.load() {
            StoreState::Down(error) => Some(error.clone()),
            StoreState::Up(_) | StoreState::Idle => None,
        }
    }

    /// Takes what a call wants, within the budget of time. `engine` is the engine's time.
    pub async fn take(&self, wanted: &[SharedDemand], engine: Timestamp) -> SharedAnswers {
        let inner = &self.0;
        let StoreState::Up(up) = (**inner.state.load()).clone() else {
            inner.meters.unavailable.inc();
            return inner.fall_back(wanted, engine, false);
        };
        let decision = inner.lock().decide(wanted, inner.now(), engine);
        match decision {
            Ok(LocalDecision::Answered(answers)) => {
                let full = answers.iter().any(|answer| matches!(answer, DemandAnswer::Refused(_)));
                if full { &inner.meters.known_full } else { &inner.meters.leased }.inc();
                inner.shared_answers(answers)
            }
            Ok(LocalDecision::Ask(request)) => inner.ask(wanted, request, &up, engine).await,
            Err(error) => {
                tracing::error!(%error, "a call with limits across pods is denied");
                inner.meters.unavailable.inc();
                wanted.iter().map(|_| SharedAnswer::Unavailable).collect()
            }
        }
    }

    /// Reads what counts now in all pods, without taking anything. Nothing where the store does not answer.
    pub async fn peek(&self, wanted: &[SharedDemand], engine: Timestamp) -> Option<PeekedCounts> {
        let StoreState::Up(up) = (**self.0.state.load()).clone() else { return None };
        let takes = || wanted.iter().flat_map(|wanted| &wanted.takes).map(|take| &take.take);
        let counts: Vec<_> = takes().map(LocalCounts::peek_of).collect();
        let holds = wanted.iter().flat_map(|wanted| &wanted.holds);
        let places: Vec<_> = holds.map(|hold| LocalCounts::places_digest(hold.hold.identity.as_str())).collect();
        let cmd = up.keys.peek(&up.scripts, &counts, &places);
        let value = timeout(Duration::from_secs(1), up.connection.send(&cmd)).await.ok()?.ok()?;
        let mut numbers = script_numbers(&up.address, &value).ok()?.1.into_iter();
        let mut peeked = PeekedCounts::default();
        for take in takes() {
            let (used, wait) = (u64::try_from(numbers.next()?).ok()?, numbers.next()?);
            let fits = match u64::try_from(wait) {
                Ok(0) => Ok(()),
                // This pod holds places that are among those used.
                Ok(_) if self.0.lock().is_leased(take, self.0.now()) => Ok(()),
                Ok(wait) if take.amount <= take.max => Err(Full::Until(engine.after(Duration::from_micros(wait)))),
                _ => Err(Full::Never),
            };
            peeked.takes.push((Amount::from_millionths(used), fits));
        }
        peeked.holds = numbers.map(|number| u64::try_from(number).unwrap_or(0)).collect();
        Some(peeked)
    }
}

impl Store {
    /// Returns the usage of shared counts: of these takes what the store says, if it answers; else what it said last. The store is
    /// asked once a second at most, however often this is called.
    pub async fn usage(&self, takes: impl IntoIterator<Item = SharedTake>, engine: Timestamp) -> UsageSnapshot {
        let inner = &self.0;
        let now = inner.now();
        let last = inner.last_usage.load_full();
        let (at, last) = &*last;
        let fresh = *at > 0 && now.saturating_sub(*at) < USAGE_LIFE;
        let mut usage = UsageSnapshot(inner.lock().used(now));
        if fresh || inner.reads_usage.swap(true, Ordering::AcqRel) {
            for (text, used) in &last.0 {
                let most = usage.0.entry(Arc::clone(text)).or_insert(*used);
                *most = (*most).max(*used);
            }
            return usage;
        }
        // Taken back also when nobody waits any more.
        let _guard = RefreshGuard(&inner.reads_usage);
        let all = |mut shared: SharedTake| {
            // Whether it fits is not asked for: that takes longer.
            (shared.take.amount, shared.take.max) = (Amount::default(), Amount::whole(SHARED_MAX.unsigned_abs()));
            shared
        };
        let wanted = SharedDemand { takes: takes.into_iter().take(MOST_READ).map(all).collect(), ..SharedDemand::default() };
        if !wanted.takes.is_empty()
            && let Some(peeked) = self.peek(std::slice::from_ref(&wanted), engine).await
        {
            let used = wanted.takes.iter().zip(peeked.takes);
            let read: HashMap<_, _> = used.map(|(shared, (used, _))| (Arc::from(shared.take.identity.as_str()), used)).collect();
            usage.0.extend(read.iter().map(|(text, used)| (Arc::clone(text), *used)));
            inner.last_usage.store(Arc::new((inner.now().max(1), UsageSnapshot(read))));
        }
        usage
    }
}
