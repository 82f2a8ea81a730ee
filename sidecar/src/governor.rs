//! Decides calls by the policies in force, and records every decision. The proxy and stdio share one governor.

use std::{
    io,
    sync::{Arc, OnceLock},
    time::{Duration, Instant, SystemTime},
};

use arc_swap::{ArcSwap, Guard};
use smallvec::SmallVec;
use tokio::sync::watch;
use toolweir_crds::{
    OperationKind,
    observed::ObservedResponse,
    seen::SeenResponse,
    stream::{CredentialReport, CredentialState, DriftReport, InterceptionReport},
};
use toolweir_engine::{
    ApprovalAsk, Call, CompileOptions, Decision, DecisionStart, Denial, Effect, Memory, Operation, Pending, Permit, Reason,
    ResultLimit, SeenTool, Timestamp,
    shared::{self, Peeked},
};
use toolweir_store::{Store, StoreConfig, StoreError, UsageSnapshot};

use crate::{
    approvals::{Approvals, AskSettings},
    audit::Audit,
    control::state::StateDir,
    counts::Counts,
    credentials::set::CredentialSet,
    freshness::{Freshness, PolicyFreshness},
    in_force::{InForce, NamedTool, ServerInForce},
    interception::Interception,
    listed_names::ListedNames,
    mcp::method_label,
    mcp_config::McpConfig,
    metrics::SidecarMetrics,
    observed::ObservedCalls,
    outcome::Outcome,
    record::{Arrival, Record, RecordedDecision},
    seen_tools::{SeenTools, book::PageChanges},
    server_metrics::{OTHER_NAME, UNKNOWN_SERVER},
    server_requests::{DeniedLines, ServerRequestBook},
    tasks::TaskBook,
};

/// The time after its start for which a sidecar is not ready where the shared store that it needs does not answer yet.
const STORE_WAIT: Duration = Duration::from_secs(4);

/// Decides calls by the policies in force and records every decision.
#[derive(Debug)]
pub struct Governor {
    in_force: ArcSwap<InForce>,
    /// The metrics.
    pub metrics: Arc<SidecarMetrics>,
    audit: Audit,
    counts: Counts,
    options: CompileOptions,
    started: Instant,
    /// The freshness of the policies in force.
    pub freshness: PolicyFreshness,
    listed: ListedNames,
    seen: SeenTools,
    /// The tasks of calls that were let through.
    pub tasks: TaskBook,
    /// The requests of servers that hold places.
    pub server_requests: ServerRequestBook,
    /// Which denied requests of servers stand in the audit log.
    pub denied_lines: DeniedLines,
    approvals: Arc<Approvals>,
    observed: OnceLock<ObservedCalls>,
    mcp_config: OnceLock<McpConfig>,
    credentials: OnceLock<CredentialSet>,
    interception: OnceLock<Arc<Interception>>,
    /// Tells that something else is in force.
    replaced: watch::Sender<()>,
}

impl Governor {
    /// A governor with its first policies.
    pub fn new(
        first: InForce,
        freshness: Freshness,
        metrics: Arc<SidecarMetrics>,
        audit: Audit,
        counts: Counts,
        options: CompileOptions,
    ) -> Arc<Self> {
        let freshness = PolicyFreshness::new(freshness, metrics.freshness.clone());
        if let Some(store) = counts.store() {
            store.set_groups(first.engine.groups());
        }
        let seen = SeenTools::default();
        seen.attach(&first);
        let approvals = Approvals::new(&options, Arc::clone(&metrics), audit.clone());
        approvals.attach(&first);
        Arc::new(Self {
            in_force: ArcSwap::from_pointee(first),
            metrics,
            audit,
            counts,
            options,
            started: Instant::now(),
            freshness,
            listed: ListedNames::default(),
            seen,
            tasks: TaskBook::default(),
            server_requests: ServerRequestBook::default(),
            denied_lines: DeniedLines::default(),
            approvals,
            observed: OnceLock::new(),
            mcp_config: OnceLock::new(),
            credentials: OnceLock::new(),
            interception: OnceLock::new(),
            replaced: watch::Sender::new(()),
        })
    }

    /// The policies in force.
    pub fn in_force(&self) -> Guard<Arc<InForce>> {
        self.in_force.load()
    }

    /// Returns a receiver that changes whenever other policies come into force.
    pub fn replacements(&self) -> watch::Receiver<()> {
        self.replaced.subscribe()
    }

    /// Brings policies into force for every call that is decided from now on.
    pub fn replace(&self, new: InForce) {
        if let Some(file) = self.mcp_config.get() {
            self.metrics.files.record_result("mcp_config", "write", file.write(&new));
        }
        if let Some(store) = self.counts.store() {
            store.set_groups(new.engine.groups());
        }
        if let Some(credentials) = self.credentials.get() {
            new.attach_credentials(credentials);
        }
        if let Some(interception) = self.interception.get() {
            interception.prepare(&new, &self.metrics.files, SystemTime::now(), self.started.elapsed());
        }
        self.seen.attach(&new);
        let new = Arc::new(new);
        self.in_force.store(Arc::clone(&new));
        self.seen.compare_anew(&new, &self.metrics.servers);
        self.approvals.attach(&new);
        self.replaced.send_replace(());
        self.freshness.set_current();
    }

    /// Checks that calls can be served as the policies say, or no better in a moment: a policy is in force, and the shared
    /// store answers if it is needed. A sidecar that has just started is given some seconds for that, and no more: the
    /// policies say what is done without a store.
    ///
    /// # Errors
    /// The missing thing, in words.
    pub fn check_ready(&self) -> Result<(), &'static str> {
        if !self.freshness.has_policies() {
            return Err("no policy yet");
        }
        if self.interception.get().is_some_and(|interception| !interception.is_prepared()) {
            return Err("what agents are to trust is not made and written yet; the log says why if it fails");
        }
        let missing = self.counts.store().is_some_and(Store::is_missing);
        if missing && self.started.elapsed() < STORE_WAIT { Err("the shared store does not answer yet") } else { Ok(()) }
    }

    /// Writes the servers in force to a file, now and at every change.
    ///
    /// # Errors
    /// The file cannot be written now.
    pub fn write_mcp_config(&self, file: McpConfig) -> io::Result<()> {
        file.write(&self.in_force())?;
        let _ = self.mcp_config.set(file);
        Ok(())
    }

    /// Looks after the credentials of servers, of the policies in force and of all that follow.
    pub fn look_after_credentials(&self, set: CredentialSet) {
        let set = self.credentials.get_or_init(|| set);
        self.in_force().attach_credentials(set);
    }

    /// Returns a receiver that changes whenever the state of a credential does; none where no server can have one.
    pub fn credential_changes(&self) -> Option<watch::Receiver<()>> {
        self.credentials.get().map(CredentialSet::changes)
    }

    /// The states of the credentials in force, as far as they are known.
    pub fn credential_report(&self) -> CredentialReport {
        let in_force = self.in_force();
        let of = |server: &Arc<ServerInForce>| server.credential.as_ref()?.get()?.state();
        let mut credentials: Vec<CredentialState> = in_force.servers().filter_map(of).collect();
        credentials.sort_by(|a, b| a.server.cmp(&b.server));
        CredentialReport { credentials }
    }

    /// Opens TLS of captured agents by the policies in force, if there are any yet, and by all that follow.
    pub fn intercept(&self, interception: Arc<Interception>) {
        let _ = self.interception.set(interception);
        self.prepare_interception();
    }

    /// Decides on what captured agents are to trust, where there are policies and it was not decided yet. Returns true where it is.
    pub fn prepare_interception(&self) -> bool {
        let Some(interception) = self.interception.get() else { return true };
        if self.freshness.has_policies() && !interception.is_prepared() {
            interception.prepare(&self.in_force(), &self.metrics.files, SystemTime::now(), self.started.elapsed());
        }
        interception.is_prepared()
    }

    /// Returns a receiver that changes where it was decided what agents trust; none where nothing is captured.
    pub fn interception_changes(&self) -> Option<watch::Receiver<()>> {
        self.interception.get().map(|interception| interception.changes())
    }

    /// The states of servers in force whose TLS is to be opened.
    pub fn interception_report(&self) -> InterceptionReport {
        self.interception.get().map(|interception| interception.report(&self.in_force())).unwrap_or_default()
    }

    /// Records from now on what agents do, for [`Governor::observed`].
    pub fn observe(&self) {
        self.observed.get_or_init(|| ObservedCalls::new(SystemTime::now(), self.now()));
    }

    /// What agents did since [`Governor::observe`]; none before.
    pub fn observed(&self) -> Option<ObservedResponse> {
        self.observed.get().map(|observed| observed.response(self.now()))
    }

    /// The counts of the engine, which live on when the policies are replaced.
    pub fn counters(&self) -> &Arc<Memory> {
        &self.counts.memory
    }

    /// The counts that pods share, where a call can wait for them.
    pub fn store(&self) -> Option<&Store> {
        self.counts.store()
    }

    /// Returns what is known of the counts that pods share, for display.
    pub async fn shared_usage(&self, in_force: &InForce) -> UsageSnapshot {
        match self.counts.store() {
            Some(store) => store.usage(in_force.engine.shared_counts(), self.now()).await,
            None => UsageSnapshot::default(),
        }
    }

    /// Sets where the shared counts are from now on; nothing: nowhere. Policies with limits across pods must be compiled
    /// anew.
    pub fn set_store(&self, config: Option<Result<StoreConfig, StoreError>>) {
        self.counts.set_store(config);
    }

    /// Returns the options with which policies are compiled now.
    pub fn options(&self) -> CompileOptions {
        CompileOptions { shared_store: self.counts.are_shared(), ..self.options.clone() }
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
    pub fn count(&self, server: Option<&ServerInForce>, method: &str, outcome: Outcome) {
        match server {
            Some(server) if outcome == Outcome::Ok && method == "tools/call" => server.calls_ok.inc(),
            _ => {
                let server = server.map_or(UNKNOWN_SERVER, |server| &server.name);
                self.metrics.servers.requests.with_label_values(&[server, method, outcome.as_str()]).inc();
            }
        }
    }

    /// Remembers a name that a server lists, for the labels of metrics and [`Governor::observed`].
    pub fn learn_name(&self, server: &str, kind: OperationKind, name: &str) {
        self.listed.learn(server, kind, name);
    }

    /// What a server's lists said last of a tool; none where that is not known, or no policy of the server reads it.
    pub fn seen(&self, server: &str, tool: &str) -> Option<Arc<SeenTool>> {
        self.in_force().seen(server, tool)
    }

    /// A server says that its list has changed: nothing is known of its tools until they are listed again.
    pub fn list_changed(&self, server: &str) {
        self.seen.list_changed(&self.in_force(), server, &self.metrics.servers);
    }

    /// A page of a server's list has passed, and has changed what was seen of its tools.
    pub fn page_passed(&self, in_force: &InForce, server: &ServerInForce, changes: &PageChanges) {
        self.seen.page_passed(in_force, server, changes, &self.metrics.servers);
    }

    /// Takes over what an earlier run has seen of tools. Call it before anything is decided.
    pub fn restore_tools(&self, state: &StateDir) {
        self.seen.restore(state, &self.metrics.files);
        self.seen.compare_anew(&self.in_force(), &self.metrics.servers);
    }

    /// Takes over the requests for approval that an earlier run kept in a file of this name, and keeps them there. Call it before anything
    /// is decided.
    pub fn restore_approvals(&self, settings: &AskSettings, state: &StateDir, file: &str) {
        self.approvals.restore(settings, state, file);
        if self.freshness.has_policies() {
            self.approvals.attach(&self.in_force());
        }
    }

    /// The requests for approval.
    pub fn approvals(&self) -> &Arc<Approvals> {
        &self.approvals
    }

    /// Keeps what was seen of tools for a later run, where it has changed. It waits for the disk.
    pub fn keep_tools(&self, state: &StateDir) {
        self.seen.keep(state, &self.metrics.files);
    }

    /// Returns a receiver that changes whenever something else is known of tools.
    pub fn tool_changes(&self) -> watch::Receiver<()> {
        self.seen.changes()
    }

    /// The tools of servers in force that are not as they were pinned; nothing where no policy holds a server to pins.
    pub fn drift_report(&self) -> Option<DriftReport> {
        self.seen.drift(&self.in_force())
    }

    /// What was seen of the tools of servers in force.
    pub fn seen_response(&self) -> SeenResponse {
        self.seen.response(&self.in_force())
    }

    /// How often a server said that its list has changed.
    pub fn list_changes(&self, server: &str) -> u64 {
        self.in_force().server(server).and_then(|server| server.tools_seen()).map_or(0, |tools| tools.list_changes())
    }

    /// Records what was decided on a call of a tool that a policy names, or if `is_known` a tools/list; of others, nothing is kept.
    fn observe_call(&self, call: &Call<'_>, named: Option<&NamedTool>, is_known: bool, is_let_through: bool, arrived: Instant) {
        let Some(observed) = self.observed.get() else { return };
        let find = || if is_known { observed.tool(call.server, call.operation.name) } else { None };
        let listed;
        let record = match named {
            Some(named) => named.calls.get_or_init(find),
            None => {
                listed = find();
                &listed
            }
        };
        match record {
            Some(record) if is_let_through => {
                record.let_through(Timestamp::default().after(arrived.saturating_duration_since(self.started)));
            }
            Some(record) => record.denied(),
            None if is_let_through => observed.drop_call(),
            None => {}
        }
    }

    /// Decides on a call and counts the decision, without waiting for anybody: limits across pods deny. The record writes the
    /// audit line when it is dropped.
    ///
    /// # Errors
    /// A person must be asked first: the decision as it is until then. It is not counted.
    pub fn decide(
        self: &Arc<Self>,
        in_force: &InForce,
        call: &Call<'_>,
        arrived: Arrival,
    ) -> Result<(Decided, Record), Box<Decision>> {
        let decision = in_force.engine.decide(call, self.now());
        self.record_unless_asking(in_force, call, decision, arrived)
    }

    /// Decides as [`Governor::decide`] does, limits across pods included: for these it waits for the shared store, no longer than
    /// its budget.
    ///
    /// # Errors
    /// As for [`Governor::decide`].
    pub async fn decide_shared(
        self: &Arc<Self>,
        in_force: &InForce,
        call: &Call<'_>,
        arrived: Arrival,
    ) -> Result<(Decided, Record), Box<Decision>> {
        let now = self.now();
        let pending = match in_force.engine.begin(call, now) {
            DecisionStart::Decided(decision) => return self.record_unless_asking(in_force, call, decision, arrived),
            DecisionStart::Pending(pending) => pending,
        };
        let mut undecided = Undecided { governor: self, in_force, call, arrived, pending: Some(pending) };
        let answers = match (self.counts.store(), &undecided.pending) {
            (Some(store), Some(pending)) => store.take(pending.demands(), now).await,
            _ => SmallVec::new(),
        };
        let decision = undecided.finish(answers);
        let decision = decision.unwrap_or_else(|| Decision::denied(Denial::no_policy(call.server, call.operation)));
        self.record_unless_asking(in_force, call, decision, arrived)
    }

    /// Decides as [`Governor::decide_shared`] does on a call of which a person has approved this. It counts nothing; dropped, it has taken
    /// nothing.
    pub async fn decide_approved(&self, in_force: &InForce, call: &Call<'_>, approved: &ApprovalAsk) -> Decision {
        let now = self.now();
        let pending = match in_force.engine.begin_approved(call, Some(approved), now) {
            DecisionStart::Decided(decision) => return decision,
            DecisionStart::Pending(pending) => pending,
        };
        let answers = match self.counts.store() {
            Some(store) => store.take(pending.demands(), now).await,
            None => SmallVec::new(),
        };
        pending.finish(answers, self.now())
    }

    fn record_unless_asking(
        self: &Arc<Self>,
        in_force: &InForce,
        call: &Call<'_>,
        decision: Decision,
        arrived: Arrival,
    ) -> Result<(Decided, Record), Box<Decision>> {
        if decision.denial().is_some_and(|denial| denial.ask.is_some()) {
            return Err(Box::new(decision));
        }
        Ok(self.record(in_force, call, decision, arrived))
    }

    /// Returns the counts that pods share as far as explaining a call needs them. Nothing is taken.
    pub async fn peek(&self, in_force: &InForce, call: &Call<'_>, now: Timestamp) -> Peeked {
        let mut peeked = Peeked::default();
        let wanted = in_force.engine.shared_demands(call, now);
        let Some(store) = self.counts.store().filter(|_| wanted.iter().any(|wanted| !wanted.is_empty())) else {
            return peeked;
        };
        let Some(looked) = store.peek(&wanted, now).await else { return peeked };
        for (take, (used, fits)) in wanted.iter().flat_map(|wanted| &wanted.takes).zip(looked.takes) {
            peeked.add_take(take, used, fits);
        }
        for (hold, under_way) in wanted.iter().flat_map(|wanted| &wanted.holds).zip(looked.holds) {
            peeked.add_hold(hold, under_way);
        }
        peeked
    }

    /// Counts the decision on a call of a tool.
    fn count_call(
        &self,
        server: Option<&Arc<ServerInForce>>,
        call: &Call<'_>,
        (decision, reason, policy): (&str, &str, &str),
        is_let_through: bool,
        arrived: Instant,
    ) {
        let tool = call.operation.name;
        let named = server.and_then(|server| server.tools.get(tool));
        // Names that neither a policy nor a tools/list gave are not told apart.
        let is_known = named.is_some() || self.listed.contains(call.server, OperationKind::Tool, tool);
        self.observe_call(call, named, is_known, is_let_through, arrived);
        match named.filter(|_| decision == "allowed") {
            Some(tool) => tool.allowed.inc(),
            None => {
                let server = server.map_or(UNKNOWN_SERVER, |server| &server.name);
                let tool = if is_known { tool } else { OTHER_NAME };
                self.metrics.servers.tool_calls.with_label_values(&[server, tool, decision, reason, policy]).inc();
            }
        }
    }

    /// Counts the decision on another operation.
    fn count_operation(
        &self,
        found: Option<&Arc<ServerInForce>>,
        (server, operation): (&str, Operation<'_>),
        (decision, reason, policy): (&str, &str, &str),
    ) {
        let name = self.name_label(found, server, operation);
        let (server, method) = (found.map_or(UNKNOWN_SERVER, |server| &server.name), method_label(operation.method));
        self.metrics.servers.operations.with_label_values(&[server, method, name, decision, reason, policy]).inc();
    }

    /// The name of an operation as metrics have it: one that neither a policy, a list nor MCP gave is not told apart.
    fn name_label<'a>(&self, found: Option<&Arc<ServerInForce>>, server: &str, operation: Operation<'a>) -> &'a str {
        let Operation { kind, name, .. } = operation;
        let is_known = found.is_some_and(|server| server.names(kind, name)) || self.listed.contains(server, kind, name);
        if is_known { name } else { OTHER_NAME }
    }

    /// Counts that the result of an operation that was let through does not pass.
    pub fn count_denied_result(&self, in_force: &InForce, server: &str, operation: Operation<'_>, denial: &Denial) {
        let found = in_force.server(server);
        let (reason, policy) = (denial.reason.as_str(), denial.policy.as_deref().unwrap_or_default());
        if operation.kind == OperationKind::Tool {
            let name = self.name_label(found, server, operation);
            let server = found.map_or(UNKNOWN_SERVER, |server| &server.name);
            self.metrics.servers.tool_calls.with_label_values(&[server, name, "denied", reason, policy]).inc();
        } else {
            self.count_operation(found, (server, operation), ("denied", reason, policy));
        }
    }

    /// Counts a decision that was made elsewhere, such as on a call that cannot be forwarded.
    pub fn record(
        self: &Arc<Self>,
        in_force: &InForce,
        call: &Call<'_>,
        decision: Decision,
        arrived: Arrival,
    ) -> (Decided, Record) {
        let (name, reason) = decision.labels();
        let Decision { effect, policy, entry, store_fallback, changed, result_limit, .. } = decision;
        if let Some(action) = store_fallback {
            self.counts.count_fallback(action);
        }
        let server = in_force.server(call.server);
        let is_let_through = matches!(effect, Effect::Allowed(_));
        let labels = (name, reason.as_str(), policy.as_deref().unwrap_or_default());
        if call.operation.kind == OperationKind::Tool {
            self.count_call(server, call, labels, is_let_through, arrived.instant);
        } else {
            self.count_operation(server, (call.server, call.operation), labels);
        }
        let class = server.filter(|server| server.reads_definitions).map(|_| call.class());
        let approval = match &effect {
            Effect::Denied(denial) => denial.approval.clone(),
            Effect::Allowed(_) => None,
        };
        let decision =
            RecordedDecision { decision: name, reason, policy, entry, store_fallback, class, drift: changed, approval };
        let with_arguments = server.is_some_and(|server| server.audits_arguments);
        let record = Record::new(&self.audit, call, arrived, decision, with_arguments);
        match effect {
            Effect::Allowed(permit) => (Decided::Allowed(permit, result_limit), record),
            Effect::Denied(denial) => (Decided::Denied(Box::new(denial)), record),
        }
    }
}

/// The decision on a request without an id: a notification of a method that is none. A server may carry it out all
/// the same and nobody would know, so it goes nowhere.
pub fn decision_without_id(call: &Call<'_>) -> Decision {
    let mut denial = Denial::no_policy(call.server, call.operation);
    denial.reason = Reason::Malformed;
    denial.message = format!("a {} without an id is no request", call.operation.method);
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
    fn finish(&mut self, answers: impl IntoIterator<Item = shared::SharedAnswer>) -> Option<Decision> {
        Some(self.pending.take()?.finish(answers, self.governor.now()))
    }
}

impl Drop for Undecided<'_> {
    fn drop(&mut self) {
        if let Some(decision) = self.finish([]) {
            self.governor.record(self.in_force, self.call, decision, self.arrived);
        }
    }
}

/// The decision on a call, for the way on.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "the larger is the common one, and lives no longer than its request")]
pub enum Decided {
    /// The call goes through, and holds its places until the permit is dropped. Its result has this bound.
    Allowed(Permit, Option<Arc<ResultLimit>>),
    /// The call is denied.
    Denied(Box<Denial>),
}

impl Decided {
    /// Gives back what was taken: nothing of the call was sent to a server.
    pub fn give_back(self) {
        if let Self::Allowed(permit, _) = self {
            permit.give_back();
        }
    }
}
