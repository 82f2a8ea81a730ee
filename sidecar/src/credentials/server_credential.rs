//! The credential of one server, as the proxy finds it.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use http::{HeaderName, header::AUTHORIZATION};
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};
use toolweir_crds::{Credential, CredentialKind, CredentialSource, stream::CredentialState};

use super::{CredentialProblem, material::ReadyCredential};

/// The time that a call may wait for a credential: for one attempt at a token endpoint, with connecting.
const WAIT: Duration = Duration::from_secs(6);
/// The most calls that wait for one credential: those of other servers need room too.
const WAITING: usize = 128;
/// A server that refused the credential has to take it for so long before that counts.
const CALM: Duration = Duration::from_secs(5);
/// The time for which a credential that policies no longer give is shown for requests that were decided on before.
const FAREWELL: Duration = Duration::from_secs(5);

/// What is known of a credential.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// What can be shown, or could until it expired.
    pub ready: Option<Arc<ReadyCredential>>,
    /// When it expires, or has expired, in seconds since 1970, where that is known.
    pub expires: Option<i64>,
    /// Why there is none, or no newer one.
    pub problem: Option<CredentialProblem>,
    /// How often a renewal that a call asked for was done.
    pub renewals: u64,
}

impl Known {
    fn usable(&self) -> Option<&Arc<ReadyCredential>> {
        self.ready.as_ref().filter(|ready| ready.is_usable(Instant::now))
    }
}

/// The credential of one server. A keeper's task says what is known of it.
#[derive(Debug)]
pub struct ServerCredential {
    /// The server's name.
    pub server: String,
    /// As the policies say it.
    pub credential: Credential,
    /// Its kind.
    pub kind: CredentialKind,
    /// The header that holds it, where that is not Authorization.
    header: Option<HeaderName>,
    known: ArcSwap<Known>,
    /// Tells that something else is known.
    changed: watch::Sender<()>,
    /// Tells that the state that is reported is another. Shared by all credentials.
    report: watch::Sender<()>,
    /// Wakes the keeper.
    pub(super) wake: Arc<Notify>,
    /// True if it was asked for since the keeper last looked.
    used: AtomicBool,
    /// The version that a call wants another for; 0 where no call does.
    renew: AtomicU64,
    /// Calls that wait for it.
    waiting: AtomicUsize,
    /// True if the server refused it of late.
    refused: AtomicBool,
    /// When the server last refused it.
    refused_at: Mutex<Option<Instant>>,
    /// The state that was told last.
    told: Mutex<Option<CredentialState>>,
    /// Since when the policies in force no longer give it.
    retired: Mutex<Option<Instant>>,
    is_retired: AtomicBool,
}

impl ServerCredential {
    /// Creates it, with nothing known yet. `report` tells that the state that is reported is another.
    pub fn new(server: &str, credential: Credential, report: watch::Sender<()>) -> Self {
        let source = credential.source();
        let header = match source {
            Some(CredentialSource::Header(of)) => HeaderName::from_bytes(of.name.as_bytes()).ok(),
            _ => None,
        };
        Self {
            server: server.to_owned(),
            // A credential that is of no kind is never ready.
            kind: source.map_or(CredentialKind::Bearer, CredentialSource::kind),
            header: header.filter(|name| name != AUTHORIZATION),
            credential,
            known: ArcSwap::default(),
            changed: watch::Sender::new(()),
            report,
            wake: Arc::default(),
            used: AtomicBool::new(false),
            renew: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            refused: AtomicBool::new(false),
            refused_at: Mutex::default(),
            told: Mutex::default(),
            retired: Mutex::default(),
            is_retired: AtomicBool::new(false),
        }
    }

    /// The header besides Authorization that the agent may not send.
    pub fn header(&self) -> Option<&HeaderName> {
        self.header.as_ref()
    }

    /// Returns what can be shown now, if there is something: then there is no need to wait.
    pub fn current(&self) -> Option<Arc<ReadyCredential>> {
        if self.is_retired.load(Ordering::Relaxed) && self.retired_for() > FAREWELL {
            return None;
        }
        let known = self.known.load();
        let ready = known.usable()?;
        if let Some(renew_at) = ready.renew_at {
            self.set_used();
            if Instant::now() >= renew_at {
                self.wake.notify_one();
            }
        }
        Some(Arc::clone(ready))
    }

    /// Waits, within a bound, for what can be shown: where a token has to be asked for first.
    ///
    /// # Errors
    /// There is none: why.
    pub async fn wait(&self) -> Result<Arc<ReadyCredential>, CredentialProblem> {
        if self.retired_for() > FAREWELL {
            return Err(CredentialProblem::lasting("the policies no longer give it; send the request anew"));
        }
        let waiting = WaitingCall::new(&self.waiting);
        if waiting.place >= WAITING {
            return Err(CredentialProblem::passing("too many calls wait for it"));
        }
        let waited = async {
            let mut changed = self.changed.subscribe();
            loop {
                let known = self.known.load_full();
                if let Some(ready) = known.usable() {
                    return Ok(Arc::clone(ready));
                }
                if let Some(problem) = &known.problem {
                    return Err(problem.clone());
                }
                self.set_used();
                self.wake.notify_one();
                if changed.changed().await.is_err() {
                    return Err(CredentialProblem::passing("the sidecar stops"));
                }
            }
        };
        let late = |_| Err(CredentialProblem::passing(format!("the sidecar did not get it within {} s", WAIT.as_secs())));
        timeout(WAIT, waited).await.unwrap_or_else(late)
    }

    /// Returns another than one that the server refused; none where there is no other. Of many calls that ask at once, one renews it
    /// for all.
    pub async fn renewed(&self, refused: &ReadyCredential) -> Option<Arc<ReadyCredential>> {
        let mut changed = self.changed.subscribe();
        let before = self.known.load().renewals;
        // A call that was slow does not take back what a later one asks for.
        self.renew.fetch_max(refused.version(), Ordering::AcqRel);
        let renewed = async {
            loop {
                let known = self.known.load_full();
                let other = known.usable().filter(|ready| !ready.is(refused));
                if let Some(other) = other {
                    return Some(Arc::clone(other));
                }
                if known.renewals != before {
                    return None;
                }
                self.wake.notify_one();
                changed.changed().await.ok()?;
            }
        };
        timeout(WAIT, renewed).await.ok().flatten()
    }

    /// Takes note that the server refuses it, also after a renewal.
    pub fn set_refused(&self) {
        *lock(&self.refused_at) = Some(Instant::now());
        self.refused.store(true, Ordering::Release);
    }

    /// Takes note that what is shown is made of other keys than what the server may have refused.
    pub(super) fn forget_refusal(&self) {
        self.refused.store(false, Ordering::Release);
    }

    /// Takes note that the server did not refuse it. Where some of its replicas do, that counts for more.
    pub fn set_accepted(&self) {
        if self.refused.load(Ordering::Relaxed) && lock(&self.refused_at).is_none_or(|at| at.elapsed() >= CALM) {
            self.refused.store(false, Ordering::Release);
        }
    }

    /// The state to report; none where it is not known yet.
    pub fn state(&self) -> Option<CredentialState> {
        let problem = self.problem().map(|problem| problem.message);
        if problem.is_none() && self.known.load().ready.is_none() {
            return None;
        }
        Some(CredentialState { server: self.server.clone(), kind: self.kind, problem })
    }

    /// Why calls fail for it, if so.
    fn problem(&self) -> Option<CredentialProblem> {
        let known = self.known.load();
        // A token that expired unused is asked for when it is needed.
        let fails = known.usable().is_none();
        known.problem.clone().filter(|_| fails).or_else(|| {
            let refused = self.refused.load(Ordering::Relaxed);
            refused.then(|| CredentialProblem::lasting("the server refuses it, also after a renewal"))
        })
    }

    /// Returns true if it can be shown, and the server does not refuse it.
    pub fn works(&self) -> bool {
        self.state().is_some_and(|state| state.problem.is_none())
    }

    /// Tells the log and the operator of its state, if that is another than the one that was told last. It may be so since time has
    /// passed.
    pub(super) fn tell(&self) {
        let now = self.state();
        {
            let mut told = lock(&self.told);
            if *told == now {
                return;
            }
            told.clone_from(&now);
        }
        self.report.send_replace(());
        let (server, kind) = (self.server.as_str(), self.kind.as_str());
        match now.map(|state| state.problem) {
            Some(Some(problem)) => tracing::error!(server, kind, problem, "the server's credential cannot be used; calls fail"),
            Some(None) => tracing::info!(server, kind, "the server's credential can be used"),
            None => {}
        }
    }

    /// What is known of it.
    pub(super) fn known(&self) -> Arc<Known> {
        self.known.load_full()
    }

    /// Says what is known of it from now on.
    pub(super) fn publish(&self, known: Known) {
        self.known.store(Arc::new(known));
        self.changed.send_replace(());
        self.unless_retired(|| self.tell());
    }

    /// Returns whether it was asked for since this was last called.
    pub(super) fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    /// Takes note that it was asked for.
    pub(super) fn set_used(&self) {
        self.used.store(true, Ordering::Relaxed);
    }

    /// Returns whether a call wants another than what is known, since this was last called.
    pub(super) fn take_renew(&self) -> bool {
        let refused = self.renew.swap(0, Ordering::AcqRel);
        refused != 0 && self.known.load().ready.as_ref().is_none_or(|ready| ready.version() == refused)
    }

    /// Takes note that the policies in force no longer give it, and does `last`, once: nothing of it is told or measured any more.
    pub(super) fn retire(&self, last: impl FnOnce()) {
        let mut retired = lock(&self.retired);
        if retired.is_none() {
            *retired = Some(Instant::now());
            self.is_retired.store(true, Ordering::Release);
            last();
        }
        drop(retired);
        self.wake.notify_one();
    }

    /// Returns whether the policies in force no longer give it.
    pub(super) fn is_retired(&self) -> bool {
        self.is_retired.load(Ordering::Acquire)
    }

    /// Does something unless the policies no longer give it.
    pub(super) fn unless_retired(&self, something: impl FnOnce()) {
        let retired = lock(&self.retired);
        if retired.is_none() {
            something();
        }
    }

    fn retired_for(&self) -> Duration {
        lock(&self.retired).map_or(Duration::ZERO, |at| at.elapsed())
    }
}

/// A call that waits, as long as it does.
struct WaitingCall<'a> {
    waiting: &'a AtomicUsize,
    /// How many waited before it.
    place: usize,
}

impl<'a> WaitingCall<'a> {
    fn new(waiting: &'a AtomicUsize) -> Self {
        Self { place: waiting.fetch_add(1, Ordering::Relaxed), waiting }
    }
}

impl Drop for WaitingCall<'_> {
    fn drop(&mut self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
