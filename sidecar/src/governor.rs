//! What the ways in (the proxy, stdio) share: the policies in force, and the record of every decision.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use arc_swap::{ArcSwap, Guard};
use http::Uri;
use prometheus::{Histogram, IntCounter};
use smallvec::SmallVec;
use toolweir_crds::{Mode, OnStoreFailure, bounds::server_url, stream::Refused};
use toolweir_engine::{
    Begun, Call, Decision, Denial, Engine, Memory, Options, Outcome as Answer, Pending, Permit, Policy, Reason, Timestamp,
    json::Raw,
    shared::{self, Peeked},
};
use toolweir_store::{Seen, Store, config, connect::StoreError};

use crate::{
    audit::{self, Audit},
    mcp_config::McpConfig,
    metrics::{Metrics, OTHER_TOOL, UNKNOWN_SERVER},
};

/// How many names of a server's tools/list are kept for the label `tool`.
const MOST_LEARNED: usize = 512;
/// The bytes of such a name.
const LONGEST_LEARNED: usize = 128;
/// How long a sidecar that has just started is not ready where the shared store that it needs does not answer yet.
const STORE_WAIT: Duration = Duration::from_secs(4);

/// The policies in force.
#[derive(Debug)]
pub struct InForce {
    /// What they compile to.
    pub engine: Engine,
    /// The policies, for display.
    pub policies: Vec<PolicyView>,
    /// What names their content: the first 12 hex digits of the SHA-256 of the files' text, or what the operator says.
    pub version: String,
    /// Policies that cannot be enforced as they are written and deny instead. Empty for those from files.
    pub problems: Vec<Refused>,
    /// Whether it was compiled with a shared store: without one, limits across pods deny.
    pub shared_store: bool,
    servers: HashMap<String, Arc<Server>>,
}

/// A policy in force, for display.
#[derive(Clone, Debug, serde::Serialize)]
pub struct PolicyView {
    /// Namespace and name.
    pub name: String,
    /// `Enforce` or `Audit`.
    pub mode: &'static str,
    /// What it says.
    pub spec: toolweir_crds::MCPPolicySpec,
}

impl From<Policy> for PolicyView {
    fn from(policy: Policy) -> Self {
        let mode = match policy.spec.mode {
            Mode::Enforce => "Enforce",
            Mode::Audit => "Audit",
        };
        Self { name: policy.id.to_string(), mode, spec: policy.spec }
    }
}

/// A url that cannot be connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadUrl {
    /// The server's name.
    pub server: String,
    /// The url, as a policy has it.
    pub url: String,
    /// What is wrong with it; names it.
    pub why: String,
}

/// A server that policies name, with the handles of its metrics.
#[derive(Debug)]
pub struct Server {
    /// Its name.
    pub name: String,
    /// Where it is, if a policy says so.
    pub url: Option<Uri>,
    /// `toolweir_upstream_duration_seconds`
    pub upstream_duration: Histogram,
    /// `toolweir_overhead_seconds`
    pub overhead: Histogram,
    /// `toolweir_requests_total` of tool calls that went well.
    pub calls_ok: IntCounter,
    /// `toolweir_tool_calls_total` of allowed calls, for tools that a policy names.
    allowed: HashMap<Box<str>, IntCounter>,
}

impl InForce {
    /// The policies with the handles of their metrics, and the urls that cannot be connected to: such a server is as one
    /// without a url, so that nothing reaches it.
    pub fn new(engine: Engine, policies: Vec<PolicyView>, version: String, metrics: &Metrics) -> (Self, Vec<BadUrl>) {
        let (mut servers, mut bad) = (HashMap::new(), Vec::new());
        for view in engine.servers() {
            let url = view.url.and_then(|url| {
                let found = server_url(url);
                if let Err(why) = &found {
                    bad.push(BadUrl { server: view.name.to_owned(), url: url.to_owned(), why: why.clone() });
                }
                found.ok()
            });
            let policy = engine.first_policy(view.name).map_or("", |policy| policy);
            let allowed = engine
                .tools(view.name)
                .map(|tool| (tool.into(), metrics.tool_calls.with_label_values(&[view.name, tool, "allowed", "none", policy])))
                .collect();
            // A series that appears with the value 1 has no rise; so what these policies can say begins at 0.
            for verdict in engine.verdicts(view.name) {
                let tool = verdict.tool.unwrap_or(OTHER_TOOL);
                metrics.tool_calls.with_label_values(&[
                    view.name,
                    tool,
                    verdict.decision,
                    verdict.reason.as_str(),
                    &verdict.policy,
                ]);
            }
            let server = Server {
                name: view.name.to_owned(),
                url,
                upstream_duration: metrics.upstream_duration.with_label_values(&[view.name]),
                overhead: metrics.overhead.with_label_values(&[view.name]),
                calls_ok: metrics.requests.with_label_values(&[view.name, "tools/call", Outcome::Ok.as_str()]),
                allowed,
            };
            servers.insert(server.name.clone(), Arc::new(server));
        }
        (Self { engine, policies, version, problems: Vec::new(), shared_store: false, servers }, bad)
    }

    /// The servers that some policy names, in no order.
    pub fn servers(&self) -> impl Iterator<Item = &Server> {
        self.servers.values().map(|server| &**server)
    }

    /// A server, if some policy names it.
    pub fn server(&self, name: &str) -> Option<&Arc<Server>> {
        self.servers.get(name)
    }
}

/// What became of a request: the closed set of the metrics' label `outcome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The server answered.
    Ok,
    /// The server answered with an HTTP error of the client's making (4xx).
    UpstreamRejected,
    /// The server answered with an HTTP error of its own (5xx).
    UpstreamError,
    /// The server could not be connected to.
    ConnectFailed,
    /// The server did not begin to answer in time.
    UpstreamTimeout,
    /// The server hung up, or its answer is no HTTP.
    UpstreamFailed,
    /// The server's answer cannot be passed on: a redirect, a list that cannot be read.
    UpstreamInvalid,
    /// A policy denied it.
    Denied,
    /// It needs no answer and was not forwarded.
    Dropped,
    /// Its meaning is not clear.
    Refused,
    /// It comes from a page of another origin.
    ForbiddenOrigin,
    /// No policy names the server.
    UnknownServer,
    /// There is nothing at its path, or not for its HTTP method.
    NotFound,
    /// Its body did not come in time, or the client hung up while sending it.
    ClientFailed,
    /// Too many bytes or connections are held.
    Overloaded,
    /// The client hung up before the answer.
    ClientGone,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 16] = [
        Self::Ok,
        Self::UpstreamRejected,
        Self::UpstreamError,
        Self::ConnectFailed,
        Self::UpstreamTimeout,
        Self::UpstreamFailed,
        Self::UpstreamInvalid,
        Self::Denied,
        Self::Dropped,
        Self::Refused,
        Self::ForbiddenOrigin,
        Self::UnknownServer,
        Self::NotFound,
        Self::ClientFailed,
        Self::Overloaded,
        Self::ClientGone,
    ];

    /// As metrics and the audit log name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::UpstreamRejected => "upstream_rejected",
            Self::UpstreamError => "upstream_error",
            Self::ConnectFailed => "connect_failed",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::UpstreamFailed => "upstream_failed",
            Self::UpstreamInvalid => "upstream_invalid",
            Self::Denied => "denied",
            Self::Dropped => "dropped",
            Self::Refused => "refused",
            Self::ForbiddenOrigin => "forbidden_origin",
            Self::UnknownServer => "unknown_server",
            Self::NotFound => "not_found",
            Self::ClientFailed => "client_failed",
            Self::Overloaded => "overloaded",
            Self::ClientGone => "client_gone",
        }
    }
}

/// Whether what is in force is what its source says.
#[derive(Clone, Copy, Debug)]
pub enum Freshness {
    /// It is.
    Current,
    /// That is not known: since this moment, and for so long before it.
    Stale(Instant, Duration),
    /// Its source has said nothing yet, since this moment. Everything is denied.
    Nothing(Instant),
}

/// Decides calls by the policies in force and records every decision.
#[derive(Debug)]
pub struct Governor {
    in_force: ArcSwap<InForce>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    audit: Audit,
    counts: Counts,
    options: Options,
    started: Instant,
    freshness: Mutex<Freshness>,
    learned: Mutex<HashMap<String, HashSet<Box<str>>>>,
    mcp_config: OnceLock<McpConfig>,
}

/// Where calls are counted.
#[derive(Debug)]
pub struct Counts {
    /// Those of this pod, which live on when the policies are replaced.
    pub memory: Arc<Memory>,
    /// Those that pods share, where a call can wait for them.
    pub store: Option<Store>,
}

impl Counts {
    /// Shared counts are there from now on; nothing: nowhere. Policies that share some are to be compiled anew.
    pub fn share(&self, metrics: &Metrics, config: Option<Result<config::Config, StoreError>>) {
        let Some(store) = &self.store else { return };
        if config.is_some() {
            metrics.begin_shared_store();
        }
        store.set_config(config);
    }

    /// Whether pods can share counts.
    pub fn are_shared(&self) -> bool {
        self.store.as_ref().is_some_and(Store::is_configured)
    }
}

impl Governor {
    /// A governor with its first policies.
    pub fn new(
        first: InForce,
        freshness: Freshness,
        metrics: Arc<Metrics>,
        audit: Audit,
        counts: Counts,
        options: Options,
    ) -> Arc<Self> {
        metrics.policy_connected.set(i64::from(matches!(freshness, Freshness::Current)));
        if let Some(store) = &counts.store {
            store.set_groups(first.engine.groups());
        }
        Arc::new(Self {
            in_force: ArcSwap::from_pointee(first),
            metrics,
            audit,
            counts,
            options,
            started: Instant::now(),
            freshness: Mutex::new(freshness),
            learned: Mutex::default(),
            mcp_config: OnceLock::new(),
        })
    }

    /// The policies in force.
    pub fn in_force(&self) -> Guard<Arc<InForce>> {
        self.in_force.load()
    }

    /// Brings policies into force for every call that is decided from now on.
    pub fn replace(&self, new: InForce) {
        if let Some(file) = self.mcp_config.get() {
            self.metrics.filed("mcp_config", "write", file.write(&new));
        }
        if let Some(store) = &self.counts.store {
            store.set_groups(new.engine.groups());
        }
        self.in_force.store(Arc::new(new));
        self.set_current();
    }

    /// What is in force is what its source says.
    pub fn set_current(&self) {
        *self.freshness.lock().unwrap_or_else(PoisonError::into_inner) = Freshness::Current;
        self.metrics.policy_connected.set(1);
    }

    /// What is in force is no longer what its source says, or that cannot be told.
    pub fn set_stale(&self) {
        let mut freshness = self.freshness.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*freshness, Freshness::Current) {
            *freshness = Freshness::Stale(Instant::now(), Duration::ZERO);
        }
        self.metrics.policy_connected.set(0);
    }

    /// How long what is in force has been stale; while nothing is, for how long.
    pub fn policy_age(&self) -> Duration {
        match *self.freshness.lock().unwrap_or_else(PoisonError::into_inner) {
            Freshness::Current => Duration::ZERO,
            Freshness::Stale(then, before) => before + then.elapsed(),
            Freshness::Nothing(then) => then.elapsed(),
        }
    }

    /// Whether a policy is in force: also an old one, and also none at all where the source says so.
    pub fn ready(&self) -> bool {
        !matches!(*self.freshness.lock().unwrap_or_else(PoisonError::into_inner), Freshness::Nothing(_))
    }

    /// Whether calls can be served as the policies say, or no better in a moment: a policy is in force, and the shared store
    /// answers if it is needed. A sidecar that has just started is given some seconds for that, and no more: what is done
    /// without a store, the policies say.
    pub fn serves(&self) -> Result<(), &'static str> {
        if !self.ready() {
            return Err("no policy yet");
        }
        let missing = self.counts.store.as_ref().is_some_and(Store::is_missing);
        if missing && self.started.elapsed() < STORE_WAIT { Err("the shared store does not answer yet") } else { Ok(()) }
    }

    /// Writes the servers in force to a file, now and at every change.
    ///
    /// # Errors
    /// The file cannot be written now.
    pub fn announce(&self, file: McpConfig) -> io::Result<()> {
        file.write(&self.in_force())?;
        let _ = self.mcp_config.set(file);
        Ok(())
    }

    /// The counts of the engine, which live on when the policies are replaced.
    pub fn counters(&self) -> &Arc<Memory> {
        &self.counts.memory
    }

    /// The counts that pods share, where a call can wait for them.
    pub fn store(&self) -> Option<&Store> {
        self.counts.store.as_ref()
    }

    /// What is known of the counts that pods share, for display.
    pub async fn seen(&self, in_force: &InForce) -> Seen {
        match &self.counts.store {
            Some(store) => store.seen(in_force.engine.shared_counts(), self.now()).await,
            None => Seen::default(),
        }
    }

    /// Where shared counts are from now on; nothing: nowhere. Policies that share some are to be compiled anew.
    pub fn set_store(&self, config: Option<Result<config::Config, StoreError>>) {
        self.counts.share(&self.metrics, config);
    }

    /// What policies are compiled with.
    pub fn options(&self) -> Options {
        Options { shared_store: self.counts.are_shared(), ..self.options.clone() }
    }

    /// The audit log.
    pub fn audit(&self) -> &Audit {
        &self.audit
    }

    /// The engine's time.
    pub fn now(&self) -> Timestamp {
        Timestamp::default().after(self.started.elapsed())
    }

    /// Counts a request.
    pub fn count(&self, server: Option<&Server>, method: &str, outcome: Outcome) {
        match server {
            Some(server) if outcome == Outcome::Ok && method == "tools/call" => server.calls_ok.inc(),
            _ => {
                let server = server.map_or(UNKNOWN_SERVER, |server| &server.name);
                self.metrics.requests.with_label_values(&[server, method, outcome.as_str()]).inc();
            }
        }
    }

    /// Remembers the name of a tool that a server lists.
    pub fn learn(&self, server: &str, tool: &str) {
        let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        if !learned.contains_key(server) {
            learned.insert(server.to_owned(), HashSet::new());
        }
        let fits = |names: &HashSet<_>| names.len() < MOST_LEARNED && tool.len() <= LONGEST_LEARNED;
        if let Some(names) = learned.get_mut(server).filter(|names| fits(names) && !names.contains(tool)) {
            names.insert(tool.into());
        }
    }

    /// The label `tool`: names that neither a policy nor a tools/list gave are not told apart.
    fn tool_label<'a>(&self, in_force: &InForce, server: &str, tool: &'a str) -> &'a str {
        let named = in_force.server(server).is_some_and(|server| server.allowed.contains_key(tool));
        let learned = || {
            let learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
            learned.get(server).is_some_and(|names| names.contains(tool))
        };
        if named || learned() { tool } else { OTHER_TOOL }
    }

    /// Decides on a call and counts the decision, without waiting for anybody: limits across pods deny. The record writes the
    /// audit line when it is dropped.
    pub fn decide(self: &Arc<Self>, in_force: &InForce, call: &Call<'_>, arrived: Arrival) -> (Decided, Record) {
        let decision = in_force.engine.decide(call, self.now());
        self.record(in_force, call, decision, arrived)
    }

    /// The same, with limits across pods: for these, the shared store is waited for, no longer than its budget.
    pub async fn decide_shared(self: &Arc<Self>, in_force: &InForce, call: &Call<'_>, arrived: Arrival) -> (Decided, Record) {
        let now = self.now();
        let pending = match in_force.engine.begin(call, now) {
            Begun::Decided(decision) => return self.record(in_force, call, decision, arrived),
            Begun::Pending(pending) => pending,
        };
        let mut undecided = Undecided { governor: self, in_force, call, arrived, pending: Some(pending) };
        let answers = match (&self.counts.store, &undecided.pending) {
            (Some(store), Some(pending)) => store.take(pending.wanted(), now).await,
            _ => SmallVec::new(),
        };
        undecided.finish(answers).unwrap_or_else(|| {
            let denial = Denial::no_policy(call.server, call.tool);
            self.record(in_force, call, Decision::denied(denial), arrived)
        })
    }

    /// What is to be known of counts that pods share for explaining a call. Nothing is taken.
    pub async fn peek(&self, in_force: &InForce, call: &Call<'_>, now: Timestamp) -> Peeked {
        let mut peeked = Peeked::default();
        let wanted = in_force.engine.shared_of(call, now);
        let Some(store) = self.counts.store.as_ref().filter(|_| wanted.iter().any(|wanted| !wanted.is_empty())) else {
            return peeked;
        };
        let Some(looked) = store.look(&wanted, now).await else { return peeked };
        for (take, (used, fits)) in wanted.iter().flat_map(|wanted| &wanted.takes).zip(looked.takes) {
            peeked.take(take, used, fits);
        }
        for (hold, under_way) in wanted.iter().flat_map(|wanted| &wanted.holds).zip(looked.holds) {
            peeked.hold(hold, under_way);
        }
        peeked
    }

    /// Counts a decision that was made elsewhere, such as on a call that cannot be forwarded.
    pub fn record(
        self: &Arc<Self>,
        in_force: &InForce,
        call: &Call<'_>,
        decision: Decision,
        arrived: Arrival,
    ) -> (Decided, Record) {
        let (name, reason) = decision.told();
        let Decision { outcome, policy, entry, without_store, .. } = decision;
        if let Some(action) = without_store {
            self.metrics.without_store(action);
        }
        let server = in_force.server(call.server);
        match server.and_then(|server| server.allowed.get(call.tool)).filter(|_| name == "allowed") {
            Some(counter) => counter.inc(),
            None => {
                let label = server.map_or(UNKNOWN_SERVER, |server| &server.name);
                let tool = self.tool_label(in_force, call.server, call.tool);
                let policy = policy.as_deref().unwrap_or_default();
                self.metrics.tool_calls.with_label_values(&[label, tool, name, reason.as_str(), policy]).inc();
            }
        }
        let record = Record {
            governor: Arc::clone(self),
            arrived,
            server: call.server.chars().take(toolweir_crds::bounds::SERVER_NAME).collect(),
            tool: call.tool.chars().take(toolweir_crds::bounds::TOOL_NAME).collect(),
            decision: name,
            reason,
            policy,
            entry,
            without_store,
            session: audit::session_hash(call.session),
            arguments: call.arguments.map(|raw: Raw<'_>| audit::sha256(raw.as_str().as_bytes())),
            outcome: Outcome::ClientGone,
        };
        match outcome {
            Answer::Allowed(permit) => (Decided::Allowed(permit), record),
            Answer::Denied(denial) => (Decided::Denied(Box::new(denial)), record),
        }
    }
}

/// The decision on a tools/call without an id: a notification of a method that is none. A server may carry it out all
/// the same and nobody would know, so it goes nowhere.
pub fn dropped(call: &Call<'_>) -> Decision {
    let mut denial = Denial::no_policy(call.server, call.tool);
    denial.reason = Reason::Malformed;
    "a tools/call without an id is no request".clone_into(&mut denial.message);
    Decision::denied(denial)
}

/// A decision that waits for the shared store. Dropped before it is made, since the client hung up, it is recorded as one for
/// which the store did not answer.
struct Undecided<'a> {
    governor: &'a Arc<Governor>,
    in_force: &'a InForce,
    call: &'a Call<'a>,
    arrived: Arrival,
    pending: Option<Pending<'a>>,
}

impl Undecided<'_> {
    fn finish(&mut self, answers: impl IntoIterator<Item = shared::Answer>) -> Option<(Decided, Record)> {
        let decision = self.pending.take()?.finish(answers, self.governor.now());
        Some(self.governor.record(self.in_force, self.call, decision, self.arrived))
    }
}

impl Drop for Undecided<'_> {
    fn drop(&mut self) {
        self.finish([]);
    }
}

/// When a request came.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// For durations.
    pub instant: Instant,
    /// For the log.
    pub time: SystemTime,
}

impl Arrival {
    /// Now.
    pub fn now() -> Self {
        Self { instant: Instant::now(), time: SystemTime::now() }
    }
}

/// Whether a call goes through.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "the larger is the common one, and lives no longer than its request")]
pub enum Decided {
    /// It does.
    Allowed(Permit),
    /// It does not.
    Denied(Box<Denial>),
}

/// The record of one call: dropped, it writes the audit line, so that none is missing when the client hangs up.
#[derive(Debug)]
pub struct Record {
    governor: Arc<Governor>,
    arrived: Arrival,
    server: String,
    tool: String,
    decision: &'static str,
    reason: Reason,
    policy: Option<Arc<str>>,
    entry: Option<Arc<str>>,
    without_store: Option<OnStoreFailure>,
    session: Option<String>,
    arguments: Option<String>,
    outcome: Outcome,
}

impl Record {
    /// Says what became of the call, and writes the line.
    pub fn finish(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.governor.audit.write(&audit::Line {
            time: audit::timestamp(self.arrived.time),
            server: &self.server,
            tool: &self.tool,
            decision: self.decision,
            reason: self.reason.as_str(),
            policy: self.policy.as_deref(),
            entry: self.entry.as_deref(),
            shared_store: self.without_store.map(OnStoreFailure::as_str),
            outcome: self.outcome.as_str(),
            latency_ms: (self.arrived.instant.elapsed().as_secs_f64() * 1e6).round() / 1e3,
            session: self.session.take(),
            arguments_sha256: self.arguments.take(),
        });
    }
}
