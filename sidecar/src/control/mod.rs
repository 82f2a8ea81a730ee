//! Policies from the operator: one stream that is opened again whenever it ends, and what is kept for the time without it.
//!
//! ```text
//! operator ── client (the stream) ── wire (lines) ── PolicyFollower ── snapshot (compiled) ──> governor
//!               │                                        │
//!          trust, backoff                  state (on disk), denials (reported up)
//! ```

pub mod backoff;
pub mod client;
pub mod denials;
pub mod metrics;
pub mod snapshot;
pub mod state;
pub mod trust;
pub mod wire;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context;
use ring::rand::{SecureRandom, SystemRandom};
use serde::Serialize;
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{sleep, timeout},
};
use toolweir_crds::stream::{self, Ack, Snapshot, StreamMessage};
use toolweir_engine::CompileOptions;
use toolweir_store::StoreConfig;

use self::{
    backoff::Backoff,
    client::{ConnectError, ConnectFault, Lost, Messages, OperatorEndpoint, StreamSender},
    denials::ReportedDenials,
    metrics::ControlPlaneMetrics,
    state::StateDir,
    trust::{Trust, TrustError},
    wire::{RawSnapshot, StreamLine},
};
use crate::{audit::Audit, counts::Counts, freshness::Freshness, governor::Governor, metrics::SidecarMetrics};

/// The longest token, in bytes.
const LONGEST_TOKEN: u64 = 16 * 1024;
/// The time between two reports of denied calls, if there were some.
const TELL: Duration = Duration::from_secs(5);
/// The time for which changes are gathered before they are reported.
const GATHER: Duration = Duration::from_millis(250);
/// The attempt with which to go on where somebody has to change something first.
const SLOWER: u32 = 4;

/// The configuration of the policy stream.
#[derive(Clone, Debug)]
pub struct ControlPlaneConfig {
    /// The address of the control plane.
    pub endpoint: OperatorEndpoint,
    /// The file with the token, which is read at every attempt: it is replaced before it expires.
    pub token_file: PathBuf,
    /// Whom to trust, in PEM, until the operator says otherwise. Empty: whom an earlier run was told to trust.
    pub authorities: String,
    /// The folder in which policies and trust are kept, if they are.
    pub state: Option<PathBuf>,
    /// The wait before an attempt.
    pub backoff: Backoff,
    /// The time without a line after which the stream is given up.
    pub silence: Duration,
}

/// Keeps the governor's policies what the operator says.
#[derive(Debug)]
pub struct PolicyFollower {
    config: ControlPlaneConfig,
    state: StateDir,
    trust: Trust,
    metrics: ControlPlaneMetrics,
}

/// A governor with the policies that were kept, if any, and what keeps it current.
///
/// # Errors
/// No authority is given that could be trusted, or a thread cannot be started.
pub fn govern(
    config: &ControlPlaneConfig,
    metrics: Arc<SidecarMetrics>,
    counts: Counts,
    mut options: CompileOptions,
    audit: Box<dyn std::io::Write + Send>,
) -> anyhow::Result<(Arc<Governor>, PolicyFollower)> {
    let stream_metrics = ControlPlaneMetrics::new(&metrics.registry)?;
    if let Some(folder) = &config.state {
        metrics.files.record_result("policies", "write", state::create(folder));
    }
    let state = StateDir::new(config.state.clone());
    let trust = first_trust(config, &state, &metrics)?;
    let kept = metrics.files.record_result("policies", "read", state.policies(SystemTime::now())).flatten();
    let (snapshot, freshness) = match kept {
        Some((snapshot, age)) => (snapshot, Freshness::Stale(Instant::now(), age)),
        None => (Snapshot { version: String::new(), policies: Vec::new(), pins: Vec::new() }, Freshness::Nothing(Instant::now())),
    };
    let kept = metrics.files.record_result("shared_store", "read", state.shared_store()).flatten();
    counts.set_store(kept.as_ref().map(StoreConfig::try_from));
    options.shared_store = counts.are_shared();
    let first = snapshot::in_force(&snapshot, &counts.memory, &options, &metrics.servers);
    log_problems(&first.problems);
    let audit = Audit::new(audit, &metrics.registry).context("the audit log cannot be started")?;
    let governor = Governor::new(first, freshness, metrics, audit, counts, options);
    Ok((governor, PolicyFollower { config: config.clone(), state, trust, metrics: stream_metrics }))
}

/// Returns the authorities to trust at the start: those that an earlier run was told of, and those that this one was. Either
/// may be the newer.
fn first_trust(config: &ControlPlaneConfig, state: &StateDir, metrics: &SidecarMetrics) -> anyhow::Result<Trust> {
    let mut authorities = Vec::new();
    if !config.authorities.is_empty() {
        authorities = trust::authorities(&config.authorities).context("the bundle of the control plane's authorities")?;
    }
    if let Some(bundle) = metrics.files.record_result("trust", "read", state.trust()).flatten()
        && let Some(kept) = metrics.files.record_result("trust", "read", trust::authorities(&bundle))
    {
        authorities.extend(kept.into_iter().filter(|der| !authorities.contains(der)).collect::<Vec<_>>());
    }
    let trust = Trust::new(authorities)?;
    if config.endpoint.is_secure() && trust.is_empty() {
        anyhow::bail!(
            "no certificate authority is trusted for the control plane; give one with --control-plane-ca or TOOLWEIR_CA"
        );
    }
    Ok(trust)
}

/// Logs the policies that deny since they cannot be enforced.
fn log_problems(problems: &[stream::PolicyProblem]) {
    for stream::PolicyProblem { policy, message } in problems {
        tracing::error!(policy, error = message, "policy cannot be enforced and denies");
    }
}

/// Reports denied calls to the operator, until the stream ends.
async fn report_denials(governor: &Governor, sender: &StreamSender, reported: &mut ReportedDenials) -> Lost {
    loop {
        sleep(TELL).await;
        if let Some(denials) = reported.take_new(&governor.metrics)
            && let Err(lost) = sender.send_denials(&denials).await
        {
            return lost;
        }
    }
}

/// Reports something to the operator whenever it changes, until the stream ends. `changes` tells of that, as other policies do. Without it,
/// there is nothing to report. `report` returns nothing as long as no policy asks for it; after a report, that is reported as an empty one.
async fn report_changes<R: Default + PartialEq + Serialize, T>(
    governor: &Governor,
    sender: &StreamSender,
    mut acked: watch::Receiver<bool>,
    changes: Option<watch::Receiver<T>>,
    report: impl Fn() -> Option<R>,
) -> Lost {
    // An operator that knows no such reports sends no policies that ask for what is reported.
    if acked.wait_for(|acked| *acked).await.is_err() {
        return std::future::pending().await;
    }
    let (Some(mut told_of), mut replaced) = (changes, governor.replacements()) else {
        return std::future::pending().await;
    };
    let (empty, mut reported) = (R::default(), None);
    loop {
        told_of.mark_unchanged();
        replaced.mark_unchanged();
        let report = report();
        if report != reported {
            if let Err(lost) = sender.send_report(report.as_ref().unwrap_or(&empty)).await {
                return lost;
            }
            reported = report;
        }
        tokio::select! {
            told = told_of.changed() => if told.is_err() { return std::future::pending().await },
            told = replaced.changed() => if told.is_err() { return std::future::pending().await },
        }
        // Several change together.
        sleep(GATHER).await;
    }
}

/// Reports the states of credentials to the operator, until the stream ends.
async fn report_credentials(governor: &Governor, sender: &StreamSender, acked: watch::Receiver<bool>) -> Lost {
    let report = || Some(wire::short_report(governor.credential_report())).filter(|report| !report.credentials.is_empty());
    report_changes(governor, sender, acked, governor.credential_changes(), report).await
}

/// Reports to the operator which servers' TLS is opened, until the stream ends.
async fn report_interception(governor: &Governor, sender: &StreamSender, acked: watch::Receiver<bool>) -> Lost {
    let report =
        || Some(wire::short_interception(governor.interception_report())).filter(|report| !report.interception.is_empty());
    report_changes(governor, sender, acked, governor.interception_changes(), report).await
}

/// Reports to the operator which tools are not as they were pinned, until the stream ends.
async fn report_drift(governor: &Governor, sender: &StreamSender, acked: watch::Receiver<bool>) -> Lost {
    // That there is none is told too: the operator waits for it.
    let report = || governor.drift_report().map(wire::short_drift);
    report_changes(governor, sender, acked, Some(governor.tool_changes()), report).await
}

/// Reports the requests for approval to the operator, until the stream ends. `heard` turns true when the operator has spoken of them on
/// this stream: an older one knows none.
async fn report_approvals(governor: &Governor, sender: &StreamSender, heard: watch::Receiver<bool>) -> Lost {
    let approvals = governor.approvals();
    let report = || Some(wire::short_approvals((*approvals.report()).clone()));
    report_changes(governor, sender, heard, Some(approvals.reports()), report).await
}

impl PolicyFollower {
    /// Follows the control plane until the sidecar stops. While there is no stream, what is in force stays so.
    pub async fn run(mut self, governor: Arc<Governor>, mut stopping: watch::Receiver<bool>) {
        tokio::select! {
            () = self.follow(&governor) => {}
            _ = stopping.wait_for(|stopping| *stopping) => {}
        }
    }

    async fn follow(&mut self, governor: &Arc<Governor>) {
        let random = SystemRandom::new();
        let (mut attempt, mut before) = (0, None);
        let mut reported = ReportedDenials::default();
        loop {
            let mut least = Duration::ZERO;
            match self.open().await {
                Ok((sender, mut messages)) => {
                    self.metrics.connects.with_label_values(&["ok"]).inc();
                    tracing::info!("connected to the control plane");
                    let began = Instant::now();
                    let (acked, heard) = (watch::Sender::new(false), watch::Sender::new(false));
                    let lost = tokio::select! {
                        lost = self.listen(governor, &sender, &mut messages, (&acked, &heard)) => lost,
                        lost = report_denials(governor, &sender, &mut reported) => lost,
                        lost = report_credentials(governor, &sender, acked.subscribe()) => lost,
                        lost = report_interception(governor, &sender, acked.subscribe()) => lost,
                        lost = report_drift(governor, &sender, acked.subscribe()) => lost,
                        lost = report_approvals(governor, &sender, heard.subscribe()) => lost,
                    };
                    governor.freshness.set_stale();
                    self.metrics.disconnects.with_label_values(&[lost.as_str()]).inc();
                    tracing::warn!(error = %lost, "policy stream lost; the policies in force stay in force");
                    before = None;
                    if began.elapsed() >= self.config.backoff.most {
                        attempt = 0;
                    }
                }
                Err(error) => {
                    self.metrics.connects.with_label_values(&[error.fault.as_str()]).inc();
                    // Told once, not with every attempt.
                    if before.replace(error.fault) == Some(error.fault) {
                        tracing::debug!(%error, fault = error.fault.as_str(), attempt, "no policy stream");
                    } else {
                        tracing::warn!(%error, fault = error.fault.as_str(), "cannot open the policy stream; retrying");
                    }
                    least = error.retry_after.unwrap_or_default();
                    if !error.fault.is_transient() {
                        attempt = attempt.max(SLOWER);
                    }
                }
            }
            let mut bytes = [0; 8];
            // Without a random number the whole pause is waited.
            let number = random.fill(&mut bytes).map_or(u64::MAX, |()| u64::from_ne_bytes(bytes));
            sleep(least + self.config.backoff.pause(attempt, number)).await;
            attempt = attempt.saturating_add(1);
        }
    }

    async fn open(&self) -> Result<(StreamSender, Messages), ConnectError> {
        let token = read_token(&self.config.token_file)?;
        client::connect(&self.config.endpoint, self.trust.tls(), &token).await
    }

    /// Does what a stream says, until it ends. Sets `acked` when a snapshot was acknowledged, and `heard` when the operator spoke of requests
    /// for approval.
    async fn listen(
        &mut self,
        governor: &Arc<Governor>,
        sender: &StreamSender,
        messages: &mut Messages,
        (acked, heard): (&watch::Sender<bool>, &watch::Sender<bool>),
    ) -> Lost {
        let silence = self.config.silence;
        loop {
            let line = match messages.next(silence).await {
                Ok(line) => line,
                Err(lost) => return lost,
            };
            self.metrics.messages.with_label_values(&[line.kind()]).inc();
            match line {
                StreamLine::Unknown(kind) => {
                    tracing::warn!(kind, "ignored a message from the operator: this sidecar does not know its kind");
                }
                StreamLine::Message(StreamMessage::KeepAlive) => {}
                StreamLine::Message(StreamMessage::Approvals(news)) => {
                    governor.approvals().learn(&news);
                    heard.send_replace(true);
                }
                StreamLine::Message(StreamMessage::SharedStore(store)) => self.set_store(governor, store).await,
                StreamLine::Message(StreamMessage::Trust(trust)) => self.update_trust(governor, trust).await,
                StreamLine::Message(StreamMessage::Snapshot(snapshot)) => {
                    let (enforcing, state) = (Arc::clone(governor), self.state.clone());
                    // Compiling takes time, and so does the disk; others wait for this thread.
                    let ack = match spawn_blocking(move || enforce(&enforcing, &state, &snapshot)).await {
                        Ok(ack) => ack,
                        Err(error) => {
                            governor.freshness.reload_failed();
                            return Lost::Broken(format!("a snapshot could not be brought into force: {error}"));
                        }
                    };
                    match timeout(silence, sender.send_ack(&ack)).await {
                        Ok(Ok(())) => drop(acked.send_replace(true)),
                        Ok(Err(lost)) => return lost,
                        Err(_) => return Lost::Broken("the operator takes no acknowledgement".to_owned()),
                    }
                }
            }
        }
    }

    /// Shares counts in a store from now on. The policies in force are compiled with it when they come again, which the operator
    /// sees to.
    async fn set_store(&mut self, governor: &Governor, store: Option<stream::SharedStore>) {
        governor.set_store(store.as_ref().map(StoreConfig::try_from));
        let state = self.state.clone();
        if let Ok(kept) = spawn_blocking(move || state.keep_shared_store(store.as_ref())).await {
            governor.metrics.files.record_result("shared_store", "write", kept);
        }
    }

    /// Trusts other authorities from the next connection on. A bundle that cannot be used changes nothing.
    async fn update_trust(&mut self, governor: &Governor, bundle: stream::TrustBundle) {
        let changed = trust::authorities(&bundle.certificates).and_then(|authorities| {
            let same = self.trust.equals(&authorities);
            Ok::<_, TrustError>(if same { None } else { Some(Trust::new(authorities)?) })
        });
        match changed {
            // Written all the same: what is trusted may have been given at the start.
            Ok(None) => {}
            Ok(Some(trust)) => {
                tracing::info!("the control plane's authorities changed");
                self.trust = trust;
            }
            Err(error) => {
                tracing::error!(%error, "cannot use a new bundle of the control plane's authorities; the old one stays trusted");
                return;
            }
        }
        let state = self.state.clone();
        let kept = spawn_blocking(move || match state.trust() {
            Ok(Some(old)) if old == bundle.certificates => Ok(()),
            _ => state.keep_trust(&bundle.certificates),
        });
        if let Ok(kept) = kept.await {
            governor.metrics.files.record_result("trust", "write", kept);
        }
    }
}

/// Brings a snapshot into force and keeps it. Returns the acknowledgement.
fn enforce(governor: &Governor, state: &StateDir, snapshot: &RawSnapshot) -> Ack {
    let options = governor.options();
    let known = {
        let in_force = governor.in_force();
        let same = in_force.version == snapshot.version && in_force.shared_store == options.shared_store;
        (governor.freshness.has_policies() && same).then(|| wire::ack(&snapshot.version, &in_force.problems))
    };
    let ack = if let Some(ack) = known {
        governor.freshness.set_current();
        ack
    } else {
        let new = snapshot::in_force(snapshot, governor.counters(), &options, &governor.metrics.servers);
        log_problems(&new.problems);
        let ack = wire::ack(&snapshot.version, &new.problems);
        let policies = new.policies.len();
        governor.replace(new);
        tracing::info!(version = snapshot.version, policies, "policy in force");
        ack
    };
    // Also where nothing changed: it is known to be current now.
    governor.metrics.files.record_result("policies", "write", state.keep_policies(snapshot, SystemTime::now()));
    ack
}

fn read_token(path: &Path) -> Result<String, ConnectError> {
    let failed = |why: String| ConnectError::new(ConnectFault::Unauthorized, format!("the token {}: {why}", path.display()));
    let text = fs::metadata(path).and_then(|meta| {
        if meta.len() > LONGEST_TOKEN {
            return Err(std::io::Error::other(format!("has more than {LONGEST_TOKEN} bytes")));
        }
        fs::read_to_string(path)
    });
    let text = text.map_err(|error| failed(error.to_string()))?;
    let token = text.trim();
    if token.is_empty() { Err(failed("is empty".to_owned())) } else { Ok(token.to_owned()) }
}
