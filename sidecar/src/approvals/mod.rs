//! Calls that a person must approve: the book of requests, what of it is on disk, and who can be asked.
//!
//! Nothing of the book is told to anybody, and no approval is used, before it is on disk. One task writes ([`Approvals::keep`]): a write has
//! all changes up to its version, so that a later write never loses an earlier change, and changes that come together are written together.

pub mod accounts;
pub mod asking_call;
pub mod command;
pub mod keep;
pub mod kept_file;
pub mod metrics;
pub mod room;
pub mod socket;
pub mod socket_args;
pub mod socket_file;
pub mod socket_messages;
mod telling;
pub mod words;

use std::{
    borrow::Cow,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::SystemTime,
};

use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{Notify, watch};
use toolweir_approvals::{
    ApprovalChange, ApprovalUse, Asked, AskedCall, Book, CallKey, Decided, NotDecided, NotUsable, WaitingApproval,
};
use toolweir_crds::{
    OperationKind,
    approval_request::{ApprovalAgent, ApprovalNews, ApprovalReport},
};
use toolweir_engine::{ApprovalAsk, CompileOptions, Operation, shared::GrantedAmounts};

pub use self::telling::ToldApprovals;
use self::{
    kept_file::KeptFile,
    socket_args::ApprovalsSocketSettings,
    telling::{Teller, UntoldBook},
    words::Unavailable,
};
use crate::{audit::Audit, control::state::StateDir, in_force::InForce, metrics::SidecarMetrics};

/// The most changes that wait to be written. Of more, the audit log and the metrics lack the oldest.
const MOST_UNTOLD: usize = 4096;

/// Why a request is void of which the approval could not be written.
const NOT_WRITTEN: &str = "its approval could not be written to the sidecar's state folder";

/// The file of a sidecar that serves HTTP.
pub const FILE: &str = "approvals.json";

/// The file of a sidecar for a server over stdio: several may share a folder.
pub fn file_of(server: &str) -> String {
    format!("approvals-{server}.json")
}

/// How people are asked.
#[derive(Clone, Debug, Default)]
pub struct AskSettings {
    /// The uid of the pod; empty where it is not known.
    pub pod_uid: String,
    /// The socket at which people of this machine decide, if there is one.
    pub socket: Option<ApprovalsSocketSettings>,
}

/// The requests for approval of one sidecar.
#[derive(Debug)]
pub struct Approvals {
    state: Mutex<ApprovalsState>,
    agent: OnceLock<ApprovalAgent>,
    options: ApprovalAgent,
    /// Changes with every change of the book, on disk or not.
    changed: watch::Sender<()>,
    /// There is something to write.
    unsaved: Notify,
    saved: watch::Sender<SaveState>,
    teller: Teller,
    file: OnceLock<KeptFile>,
    metrics: Arc<SidecarMetrics>,
    random: SystemRandom,
}

#[derive(Debug)]
struct ApprovalsState {
    book: Book,
    /// Why nobody can be asked, if so.
    unavailable: Option<Unavailable>,
    /// Counts the changes of the book.
    version: u64,
    /// Steps that are not on disk yet, and not told.
    untold: Vec<ApprovalChange>,
}

/// How far the book is on disk.
#[derive(Clone, Copy, Debug, Default)]
struct SaveState {
    /// The version that is on disk.
    version: u64,
    /// How many writes failed.
    failures: u64,
}

/// The book cannot be written, so what was to be done is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it cannot be written to the sidecar's state folder; the log says why")]
pub struct NotKept;

/// Why a decision does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecisionError {
    /// No such request waits.
    #[error(transparent)]
    NotDecided(#[from] NotDecided),
    /// It cannot be written: an approval never counts.
    #[error("the decision cannot be kept: {0}")]
    NotKept(#[from] NotKept),
}

/// Why an approval is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UseError {
    /// It cannot be used any more.
    #[error(transparent)]
    NotUsable(#[from] NotUsable),
    /// That it is used cannot be written.
    #[error(transparent)]
    NotKept(#[from] NotKept),
}

/// An approval that a call uses up, unless it gives it back since nothing was sent.
#[derive(Debug)]
pub struct UsedApproval {
    approvals: Arc<Approvals>,
    used: ApprovalUse,
}

impl ApprovalsState {
    /// What is not told yet.
    fn take_untold(&mut self) -> UntoldBook {
        UntoldBook::new(self.version, &self.book, std::mem::take(&mut self.untold))
    }
}

impl GrantedAmounts for UsedApproval {
    fn give_back(self: Box<Self>) {
        self.approvals.give_back(&self.used);
    }
}

impl Approvals {
    /// No requests yet, and nobody who can be asked.
    pub fn new(options: &CompileOptions, metrics: Arc<SidecarMetrics>, audit: Audit) -> Arc<Self> {
        let agent =
            ApprovalAgent { pod: options.pod.clone(), pod_uid: String::new(), service_account: options.service_account.clone() };
        let state =
            ApprovalsState { book: Book::default(), unavailable: Some(Unavailable::NoSocket), version: 0, untold: Vec::new() };
        Arc::new(Self {
            state: Mutex::new(state),
            agent: OnceLock::new(),
            options: agent,
            changed: watch::Sender::new(()),
            unsaved: Notify::new(),
            saved: watch::Sender::default(),
            teller: Teller::new(Arc::clone(&metrics), audit, options.namespace.clone()),
            file: OnceLock::new(),
            metrics,
            random: SystemRandom::new(),
        })
    }

    /// Takes over what an earlier run kept in a file of this name, and keeps it there from now on. Call it before anything is decided.
    pub fn restore(&self, settings: &AskSettings, state: &StateDir, name: &str) {
        let agent = self.agent.get_or_init(|| ApprovalAgent { pod_uid: settings.pod_uid.clone(), ..self.options.clone() });
        let Some(file) = KeptFile::open(state, name, &self.metrics.files) else { return };
        let read = self.metrics.files.record_result("approvals", "read", file.read()).flatten();
        let now = SystemTime::now();
        let book = read.and_then(|kept| self.metrics.files.record_result("approvals", "read", Book::from_kept(kept, agent, now)));
        let _ = self.file.set(file);
        if let Some(book) = book {
            // It is on disk, but for what has ended meanwhile.
            self.tell(UntoldBook::new(0, &book, Vec::new()));
            self.edit(|before| *before = book);
        }
    }

    /// The pod, as requests name it.
    fn agent(&self) -> &ApprovalAgent {
        self.agent.get().unwrap_or(&self.options)
    }

    fn lock(&self) -> MutexGuard<'_, ApprovalsState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on people are asked on this machine.
    pub fn ask_locally(&self) {
        self.lock().unavailable = None;
    }

    /// From now on people are asked by the operator, once it says that they can be.
    pub fn ask_by_operator(&self) {
        self.lock().unavailable = Some(Unavailable::NotHeard);
    }

    /// Why nobody can be asked now, if so.
    pub fn unavailable(&self) -> Option<Unavailable> {
        self.lock().unavailable.clone()
    }

    /// Takes in what the operator says.
    pub fn learn(&self, news: &ApprovalNews) {
        self.lock().unavailable = news.unavailable.as_deref().map(|why| Unavailable::Operator(why.into()));
        self.edit(|book| book.learn(news, SystemTime::now()));
    }

    /// Other policies are in force: requests of policies that are not among them any more are voided.
    pub fn attach(&self, in_force: &InForce) {
        for server in in_force.servers().filter(|server| server.asks_people) {
            self.metrics.approvals.begin(&server.name);
        }
        let revisions: Vec<&str> = in_force.engine.asking_policies().map(|policy| &*policy.revision).collect();
        self.edit_if_stepped(|book| book.keep_only(revisions, SystemTime::now()));
    }

    /// Changes the book. Returns the version that has the change.
    fn edit<T>(&self, change: impl FnOnce(&mut Book) -> T) -> (T, u64) {
        self.edit_as(change, true)
    }

    /// The same, where there is a change only if there is a step to tell.
    fn edit_if_stepped<T>(&self, change: impl FnOnce(&mut Book) -> T) -> (T, u64) {
        self.edit_as(change, false)
    }

    fn edit_as<T>(&self, change: impl FnOnce(&mut Book) -> T, always: bool) -> (T, u64) {
        let mut state = self.lock();
        let result = change(&mut state.book);
        let changes = state.book.take_changes();
        if !always && changes.is_empty() {
            return (result, state.version);
        }
        state.version += 1;
        state.untold.extend(changes);
        let surplus = state.untold.len().saturating_sub(MOST_UNTOLD);
        state.untold.drain(..surplus);
        let version = state.version;
        if self.file.get().is_none() {
            let untold = state.take_untold();
            self.tell(untold);
        }
        drop(state);
        self.changed.send_replace(());
        self.unsaved.notify_one();
        (result, version)
    }

    /// Tells a version that is on disk, or is kept nowhere.
    fn tell(&self, untold: UntoldBook) {
        let UntoldBook { version, told, changes } = untold;
        self.teller.tell(told, &changes);
        self.saved.send_modify(|saved| saved.version = saved.version.max(version));
    }

    /// Returns a receiver that changes with every change of the book.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The name of a request as people and agents are shown it.
    pub fn shown_name(&self, name: &str) -> Arc<str> {
        self.teller.shown_name(name)
    }

    /// The key of a call for which policies ask.
    pub fn key(&self, server: &str, operation: Operation<'_>, arguments_sha256: &str, ask: &ApprovalAsk) -> CallKey {
        let Operation { kind, name, method } = operation;
        // No tool has a control character in its name.
        let what = if kind == OperationKind::Tool { Cow::Borrowed(name) } else { format!("\u{0}{method}\u{0}{name}").into() };
        CallKey::of(server, &what, arguments_sha256, self.agent(), &ask.policies)
    }

    /// Asks for a call of this server and operation with arguments of this hash: joins the request that is there, or makes one. What this says
    /// is on disk.
    ///
    /// # Errors
    /// Nobody can be asked.
    pub async fn ask(
        &self,
        key: CallKey,
        ask: &ApprovalAsk,
        (server, operation, arguments_sha256): (&str, Operation<'_>, &str),
    ) -> Result<Asked, Unavailable> {
        let tool = shown_operation(operation);
        let call = AskedCall { server, tool: &tool, arguments_sha256, agent: self.agent() };
        let (unavailable, random, now) = (self.unavailable(), self.number(), SystemTime::now());
        let (asked, version) = self.edit_if_stepped(|book| match unavailable {
            None => Ok(book.ask(key, ask, &call, random, now)),
            // What was asked and decided before holds.
            Some(why) => {
                let mut trial = book.clone();
                match trial.ask(key, ask, &call, random, now) {
                    Asked::Waiting { is_new: true, .. } | Asked::Full { .. } => Err(why),
                    asked => {
                        *book = trial;
                        Ok(asked)
                    }
                }
            }
        });
        let asked = match asked {
            Ok(Asked::TooManyPolicies { .. }) => Err(Unavailable::Policies(ask.policies.len())),
            Ok(Asked::Waiting { .. }) if self.kept(version).await.is_err() => Err(Unavailable::NotKept),
            asked => asked,
        };
        match &asked {
            Err(_) => self.metrics.approvals.count(server, "unavailable"),
            Ok(Asked::Full { .. }) => self.metrics.approvals.count(server, "full"),
            Ok(_) => {}
        }
        asked
    }

    /// A number for a name, which need not be secret: where there is no randomness, the clock tells two apart.
    fn number(&self) -> u64 {
        let mut bytes = [0; 8];
        match self.random.fill(&mut bytes) {
            Ok(()) => u64::from_ne_bytes(bytes),
            Err(_) => SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| u64::from(since.subsec_nanos())),
        }
    }

    /// Returns true where a request waits for a person.
    pub fn is_waiting(&self, name: &str) -> bool {
        self.lock().book.is_waiting(name)
    }

    /// Enters the decision of a person on a request, by its name with or without the pod's namespace. An approval counts once it is on disk;
    /// a denial counts at once.
    ///
    /// # Errors
    /// No such request waits, or the decision cannot be written. Then an approval never counts, and its request is void.
    pub async fn decide(&self, name: &str, decided: &Decided) -> Result<(), DecisionError> {
        let name = name.strip_prefix(&*self.shown_name("")).unwrap_or(name);
        let (entered, version) = self.edit_if_stepped(|book| {
            book.decide(name, decided, SystemTime::now())?;
            book.hold_back(name);
            Ok::<(), NotDecided>(())
        });
        entered?;
        if let Err(error) = self.kept(version).await {
            self.edit_if_stepped(|book| book.take_back(name, NOT_WRITTEN, SystemTime::now()));
            return Err(error.into());
        }
        // The file has it already, and nobody is told anything new but the calls that wait.
        self.lock().book.let_count(name);
        self.changed.send_replace(());
        Ok(())
    }

    /// Uses an approval up for a call of this key: when this returns it is on disk, and the call may be sent.
    ///
    /// # Errors
    /// It cannot be used any more, or that it is used cannot be written; then it is as before.
    pub async fn begin_use(self: &Arc<Self>, name: &str, key: CallKey) -> Result<UsedApproval, UseError> {
        let (used, version) = self.edit_if_stepped(|book| book.begin_use(name, key, SystemTime::now()));
        // Dropped here, since its client hung up or the disk failed, nothing was sent.
        let mut unsent = UnsentUse(Some(UsedApproval { approvals: Arc::clone(self), used: used? }));
        self.kept(version).await?;
        unsent.0.take().ok_or(UseError::NotKept(NotKept))
    }

    fn give_back(&self, used: &ApprovalUse) {
        self.edit_if_stepped(|book| book.give_back(used, SystemTime::now()));
    }

    /// The requests that wait for a person, oldest first, as far as they are on disk.
    pub fn waiting(&self) -> Arc<[WaitingApproval]> {
        Arc::clone(&self.teller.told().borrow().waiting)
    }

    /// What the operator is told: all requests that are kept, as far as they are on disk.
    pub fn report(&self) -> Arc<ApprovalReport> {
        Arc::clone(&self.teller.told().borrow().report)
    }

    /// Returns a receiver that changes when [`Approvals::report`] and [`Approvals::waiting`] do.
    pub fn reports(&self) -> watch::Receiver<ToldApprovals> {
        self.teller.told()
    }
}

/// The use of an approval of which nothing was sent yet. Dropped, it gives the approval back.
struct UnsentUse(Option<UsedApproval>);

impl Drop for UnsentUse {
    fn drop(&mut self) {
        if let Some(used) = self.0.take() {
            used.approvals.give_back(&used.used);
        }
    }
}

/// An operation, as approvers are shown it: a tool's name, or the method and what it names.
fn shown_operation(Operation { kind, name, method }: Operation<'_>) -> Cow<'_, str> {
    match kind {
        OperationKind::Tool => Cow::Borrowed(name),
        OperationKind::Other => Cow::Borrowed(method),
        _ => format!("{method} {name}").into(),
    }
}
