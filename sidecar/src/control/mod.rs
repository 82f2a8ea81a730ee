//! Policies from the operator: one stream that is opened again whenever it ends, and what is kept for the time without it.
//!
//! [`client`] is the stream itself, [`wire`] what travels on it, [`snapshot`] how policies get in force, [`denials`] what
//! is told of calls that were turned away, [`state`] what is kept on disk, [`trust`] whom to trust, and [`backoff`] how long to wait.

pub mod backoff;
pub mod client;
pub mod denials;
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
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{sleep, timeout},
};
use toolweir_crds::stream::{self, Ack, Message, Snapshot};
use toolweir_engine::Options;
use toolweir_store::config;

use self::{
    backoff::Backoff,
    client::{Acks, ConnectError, Endpoint, Fault, Lost, Messages},
    denials::Told,
    state::State,
    trust::{Trust, TrustError},
    wire::{Line, Policy},
};
use crate::{
    audit::Audit,
    governor::{Counts, Freshness, Governor},
    metrics::Metrics,
};

/// The longest token, in bytes.
const LONGEST_TOKEN: u64 = 16 * 1024;
/// How often the operator is told of calls that were turned away, if there were some.
const TELL: Duration = Duration::from_secs(5);
/// The attempt with which to go on where somebody has to change something first.
const SLOWER: u32 = 4;

/// What is known of the control plane.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it is.
    pub endpoint: Endpoint,
    /// The file with the token, which is read at every attempt: it is replaced before it expires.
    pub token_file: PathBuf,
    /// Whom to trust, in PEM, until the operator says otherwise. Empty: whom an earlier run was told to trust.
    pub authorities: String,
    /// The folder in which policies and trust are kept, if they are.
    pub state: Option<PathBuf>,
    /// How long to wait before an attempt.
    pub backoff: Backoff,
    /// How long to hear nothing before the stream is given up.
    pub silence: Duration,
}

/// Keeps the governor's policies what the operator says.
#[derive(Debug)]
pub struct Follower {
    config: Config,
    state: State,
    trust: Trust,
}

/// A governor with the policies that were kept, if any, and what keeps it current.
///
/// # Errors
/// No authority is given that could be trusted, or a thread cannot be started.
pub fn govern(
    config: &Config,
    metrics: Arc<Metrics>,
    counts: Counts,
    mut options: Options,
    audit: Box<dyn std::io::Write + Send>,
) -> anyhow::Result<(Arc<Governor>, Follower)> {
    metrics.begin_control_plane();
    if let Some(folder) = &config.state {
        metrics.filed("policies", "write", state::make(folder));
    }
    let state = State::new(config.state.clone());
    let trust = first_trust(config, &state, &metrics)?;
    let kept = metrics.filed("policies", "read", state.policies(SystemTime::now())).flatten();
    let (snapshot, freshness) = match kept {
        Some((snapshot, age)) => (snapshot, Freshness::Stale(Instant::now(), age)),
        None => (Snapshot { version: String::new(), policies: Vec::new() }, Freshness::Nothing(Instant::now())),
    };
    let kept = metrics.filed("shared_store", "read", state.shared_store()).flatten();
    counts.share(&metrics, kept.as_ref().map(config::Config::try_from));
    options.shared_store = counts.are_shared();
    let first = snapshot::in_force(&snapshot, &counts.memory, &options, &metrics);
    tell_problems(&first.problems);
    let audit = Audit::new(audit, metrics.audit_lost.clone()).context("the audit log cannot be started")?;
    let governor = Governor::new(first, freshness, metrics, audit, counts, options);
    Ok((governor, Follower { config: config.clone(), state, trust }))
}

/// Whom to trust at the start: whom an earlier run was told to, and whom this one was. Either may be the newer.
fn first_trust(config: &Config, state: &State, metrics: &Metrics) -> anyhow::Result<Trust> {
    let mut authorities = Vec::new();
    if !config.authorities.is_empty() {
        authorities = trust::authorities(&config.authorities).context("the bundle of the control plane's authorities")?;
    }
    if let Some(bundle) = metrics.filed("trust", "read", state.trust()).flatten()
        && let Some(kept) = metrics.filed("trust", "read", trust::authorities(&bundle))
    {
        authorities.extend(kept.into_iter().filter(|der| !authorities.contains(der)).collect::<Vec<_>>());
    }
    let trust = Trust::new(authorities)?;
    if config.endpoint.is_secure() && trust.is_empty() {
        anyhow::bail!("nobody is trusted as the control plane; give its authorities with --control-plane-ca or TOOLWEIR_CA");
    }
    Ok(trust)
}

/// Says which policies deny since they cannot be enforced.
fn tell_problems(problems: &[stream::Refused]) {
    for stream::Refused { policy, message } in problems {
        tracing::error!(policy, error = message, "policy cannot be enforced and denies");
    }
}

/// Tells the operator of calls that were turned away, until the stream ends.
async fn tell_denials(governor: &Governor, acks: &Acks, told: &mut Told) -> Lost {
    loop {
        sleep(TELL).await;
        if let Some(denials) = told.take(&governor.metrics)
            && let Err(lost) = acks.tell(&denials).await
        {
            return lost;
        }
    }
}

impl Follower {
    /// Follows the control plane until the sidecar stops. While there is no stream, what is in force stays so.
    pub async fn run(mut self, governor: Arc<Governor>, mut stopping: watch::Receiver<bool>) {
        tokio::select! {
            () = self.follow(&governor) => {}
            _ = stopping.wait_for(|stopping| *stopping) => {}
        }
    }

    async fn follow(&mut self, governor: &Arc<Governor>) {
        let random = SystemRandom::new();
        let metrics = &governor.metrics;
        let (mut attempt, mut before) = (0, None);
        let mut told = Told::default();
        loop {
            let mut least = Duration::ZERO;
            match self.open().await {
                Ok((acks, mut messages)) => {
                    metrics.control_plane_connects.with_label_values(&["ok"]).inc();
                    tracing::info!("connected to the control plane");
                    let began = Instant::now();
                    let lost = tokio::select! {
                        lost = self.listen(governor, &acks, &mut messages) => lost,
                        lost = tell_denials(governor, &acks, &mut told) => lost,
                    };
                    governor.set_stale();
                    metrics.control_plane_disconnects.with_label_values(&[lost.as_str()]).inc();
                    tracing::warn!(error = %lost, "policy stream lost; what is in force stays so");
                    before = None;
                    if began.elapsed() >= self.config.backoff.most {
                        attempt = 0;
                    }
                }
                Err(error) => {
                    metrics.control_plane_connects.with_label_values(&[error.fault.as_str()]).inc();
                    // Told once, not with every attempt.
                    if before.replace(error.fault) == Some(error.fault) {
                        tracing::debug!(%error, fault = error.fault.as_str(), attempt, "no policy stream");
                    } else {
                        tracing::warn!(%error, fault = error.fault.as_str(), "no policy stream; it is tried again");
                    }
                    least = error.retry_after.unwrap_or_default();
                    if !error.fault.passes() {
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

    async fn open(&self) -> Result<(Acks, Messages), ConnectError> {
        let token = read_token(&self.config.token_file)?;
        client::connect(&self.config.endpoint, self.trust.tls(), &token).await
    }

    /// Does what a stream says, until it ends.
    async fn listen(&mut self, governor: &Arc<Governor>, acks: &Acks, messages: &mut Messages) -> Lost {
        let (silence, metrics) = (self.config.silence, &governor.metrics);
        loop {
            let line = match messages.next(silence).await {
                Ok(line) => line,
                Err(lost) => return lost,
            };
            metrics.control_plane_messages.with_label_values(&[line.kind()]).inc();
            match line {
                Line::Unknown(kind) => {
                    tracing::warn!(kind, "the operator sent a message of a kind that this sidecar does not know; passed over");
                }
                Line::Message(Message::KeepAlive) => {}
                Line::Message(Message::SharedStore(store)) => self.share(governor, store).await,
                Line::Message(Message::Trust(trust)) => self.believe(governor, trust).await,
                Line::Message(Message::Snapshot(snapshot)) => {
                    let (governor, state) = (Arc::clone(governor), self.state.clone());
                    // Compiling takes time, and so does the disk; others wait for this thread.
                    let ack = match spawn_blocking(move || enforce(&governor, &state, &snapshot)).await {
                        Ok(ack) => ack,
                        Err(error) => {
                            metrics.policy_reload_failures.inc();
                            return Lost::Broken(format!("a snapshot could not be brought into force: {error}"));
                        }
                    };
                    match timeout(silence, acks.send(&ack)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(lost)) => return lost,
                        Err(_) => return Lost::Broken("the operator takes no acknowledgement".to_owned()),
                    }
                }
            }
        }
    }

    /// Shares counts there from now on. What is in force is compiled with it when it comes again, which the operator sees to.
    async fn share(&mut self, governor: &Governor, store: Option<stream::SharedStore>) {
        governor.set_store(store.as_ref().map(config::Config::try_from));
        let state = self.state.clone();
        if let Ok(kept) = spawn_blocking(move || state.keep_shared_store(store.as_ref())).await {
            governor.metrics.filed("shared_store", "write", kept);
        }
    }

    /// Trusts other authorities from the next connection on. A bundle that cannot be used changes nothing.
    async fn believe(&mut self, governor: &Governor, told: stream::Trust) {
        let changed = trust::authorities(&told.certificates).and_then(|authorities| {
            let same = self.trust.is(&authorities);
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
                tracing::error!(%error, "a bundle of the control plane's authorities cannot be used; the old one is trusted");
                return;
            }
        }
        let state = self.state.clone();
        let kept = spawn_blocking(move || match state.trust() {
            Ok(Some(old)) if old == told.certificates => Ok(()),
            _ => state.keep_trust(&told.certificates),
        });
        if let Ok(kept) = kept.await {
            governor.metrics.filed("trust", "write", kept);
        }
    }
}

/// Brings a snapshot into force and keeps it. Gives the acknowledgement.
fn enforce(governor: &Governor, state: &State, snapshot: &Snapshot<Policy>) -> Ack {
    let options = governor.options();
    let known = {
        let in_force = governor.in_force();
        let same = in_force.version == snapshot.version && in_force.shared_store == options.shared_store;
        (governor.ready() && same).then(|| wire::ack(&snapshot.version, &in_force.problems))
    };
    let ack = if let Some(ack) = known {
        governor.set_current();
        ack
    } else {
        let new = snapshot::in_force(snapshot, governor.counters(), &options, &governor.metrics);
        tell_problems(&new.problems);
        let ack = wire::ack(&snapshot.version, &new.problems);
        let policies = new.policies.len();
        governor.replace(new);
        tracing::info!(version = snapshot.version, policies, "policy in force");
        ack
    };
    // Also where nothing changed: it is known to be current now.
    governor.metrics.filed("policies", "write", state.keep_policies(snapshot, SystemTime::now()));
    ack
}

fn read_token(path: &Path) -> Result<String, ConnectError> {
    let failed = |why: String| ConnectError::new(Fault::Unauthorized, format!("the token {}: {why}", path.display()));
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
