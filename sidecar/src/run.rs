//! `toolweir-sidecar run`: the proxy with policies of files or of the operator.

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use toolweir_crds::FileError;
use toolweir_engine::{Memory, Options};
use toolweir_store::Store;

use crate::{
    admin::{self, Face, LogLevel, State},
    audit::Audit,
    control,
    governor::{Counts, Freshness, Governor},
    mcp_config::McpConfig,
    metrics::Metrics,
    proxy::{
        Limits,
        budget::Budget,
        legacy::Streams,
        oauth,
        server::{self, Running},
        service::Shared,
        through::UpstreamProxy,
        upstream,
        waiting::Clients,
    },
    source::{self, Urls, Watch},
};

/// What the kernel may keep for a connection of a client: of answers that it does not read, and of what it sends and is not
/// read yet. The kernel doubles both; they count as the pod's memory.
/// What is less than two of the largest packets of the loopback device makes each wait for the other's timer.
const KERNEL: (u32, u32) = (16 * 1024, 64 * 1024);

/// How long it may take to return what is leased from the shared store.
const RETURN: Duration = Duration::from_millis(500);

/// Where policies come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file or folder of this machine.
    Local(PathBuf),
    /// The operator.
    ControlPlane(Box<control::Config>),
}

/// What `run` is told.
#[derive(Clone)]
pub struct Config {
    /// Where policies come from.
    pub source: Source,
    /// The file for agents that lists the servers in force, if there is one.
    pub mcp_config: Option<PathBuf>,
    /// Where the proxy listens.
    pub listen: String,
    /// Where metrics and health are served.
    pub metrics_listen: String,
    /// Where the administration is served.
    pub admin_listen: String,
    /// A PEM file of certificates to trust besides the system's.
    pub upstream_ca: Option<PathBuf>,
    /// The proxy through which servers are reached, if there is one.
    pub upstream_proxy: Option<UpstreamProxy>,
    /// The bounds.
    pub limits: Limits,
    /// How many live counts are kept.
    pub counters: usize,
    /// How many threads serve.
    pub workers: usize,
    /// Names under which the sidecar may be reached besides local ones.
    pub allowed_hosts: Vec<String>,
    /// How long to wait for requests under way when told to stop.
    pub drain: Duration,
    /// Where counts that pods share are, if policies come from files; else the operator says it.
    pub shared_store: Option<toolweir_store::config::Config>,
    /// What is known of the pod.
    pub options: Options,
}

/// Policies that are not in order: every error, a line each.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct PolicyErrors(pub Vec<FileError>);

/// A governor for the policies of a file or folder, and the watch that keeps it current.
///
/// # Errors
/// The policies are not in order, or a thread cannot be started.
pub fn govern(
    policy: &Path,
    urls: Urls,
    metrics: Arc<Metrics>,
    counts: Counts,
    options: Options,
    audit: Box<dyn std::io::Write + Send>,
) -> anyhow::Result<(Arc<Governor>, Watch)> {
    let watch = Watch::new(policy, urls);
    let first = source::files(policy)
        .map_err(|error| vec![error])
        .and_then(|files| source::load(&files, Arc::clone(&counts.memory), &options, urls))
        .and_then(|loaded| loaded.in_force(policy, &metrics))
        .map_err(PolicyErrors)?;
    let audit = Audit::new(audit, metrics.audit_lost.clone()).context("the audit log cannot be started")?;
    Ok((Governor::new(first, Freshness::Current, metrics, audit, counts, options), watch))
}

/// A running sidecar.
#[derive(Debug)]
pub struct Sidecar {
    /// The policies in force and the record of decisions.
    pub governor: Arc<Governor>,
    /// The proxy.
    pub proxy: Running,
    /// Where metrics and health are served.
    pub metrics: std::net::SocketAddr,
    /// Where the administration is served.
    pub admin: std::net::SocketAddr,
    stop: watch::Sender<bool>,
}

impl Sidecar {
    /// Stops: nothing new is accepted, what is under way is finished. True when all was finished within `limit`.
    pub async fn stop(self, limit: Duration) -> bool {
        let _ = self.stop.send(true);
        let drained = self.proxy.drained(limit).await;
        if let Some(store) = self.governor.store() {
            store.leave(RETURN).await;
        }
        self.governor.audit().close();
        drained
    }
}

/// What keeps policies what their source says, for as long as it runs.
type Upkeep = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Config {
    fn govern(
        &self,
        audit: Box<dyn std::io::Write + Send>,
        stopping: watch::Receiver<bool>,
    ) -> anyhow::Result<(Arc<Governor>, Upkeep)> {
        let metrics = Arc::new(Metrics::new()?);
        let store = Store::new(metrics.meters(), self.counters);
        let counts = Counts { memory: Memory::new(self.counters), store: Some(store) };
        let mut options = self.options.clone();
        match &self.source {
            Source::Local(path) => {
                counts.share(&metrics, self.shared_store.clone().map(Ok));
                options.shared_store = counts.are_shared();
                let (governor, watch) = govern(path, Urls::Needed, metrics, counts, options, audit)?;
                Ok((Arc::clone(&governor), Box::pin(watch.run(governor))))
            }
            Source::ControlPlane(config) => {
                let (governor, follower) = control::govern(config, metrics, counts, options, audit)?;
                Ok((Arc::clone(&governor), Box::pin(follower.run(governor, stopping))))
            }
        }
    }
}

/// Starts the proxy, its small servers and what keeps the policies current.
///
/// # Errors
/// The policy is not in order, an address cannot be bound, a certificate cannot be read, or the agents' file cannot be
/// written.
pub async fn start(config: &Config, log_level: LogLevel, audit: Box<dyn std::io::Write + Send>) -> anyhow::Result<Sidecar> {
    if (config.shared_store.is_some() || matches!(config.source, Source::ControlPlane(_)))
        // Now, while no container of the pod can have written to it.
        && let Err(error) = toolweir_store::dns::read()
    {
        tracing::warn!(error, "names of the operator and of the shared store cannot be resolved; it is tried again");
    }
    let (stop, stopping) = watch::channel(false);
    let (governor, upkeep) = config.govern(audit, stopping.clone())?;
    let tls = upstream::tls(config.upstream_ca.as_deref())
        .with_context(|| format!("--upstream-ca {}", config.upstream_ca.as_deref().unwrap_or(Path::new("")).display()))?;
    let listener = admin::bind_with(&config.listen, "--listen", Some(KERNEL)).await?;
    let metrics = admin::bind(&config.metrics_listen, "--metrics-listen").await?;
    let admin = admin::bind(&config.admin_listen, "--admin-listen").await?;
    if let Some(path) = &config.mcp_config {
        governor.announce(McpConfig::new(path.clone(), listener.local_addr()?)).context("--mcp-config")?;
    }
    let (metrics_address, admin_address) = (metrics.local_addr()?, admin.local_addr()?);
    let budget = Budget::new(config.limits.held, config.limits.held_wait, governor.metrics.held_bytes.clone());
    let mut limits = config.limits.clone();
    if limits.body > budget.largest() {
        limits.body = budget.largest();
        tracing::warn!(bytes = limits.body, "--max-body is more than three quarters of --max-held; larger bodies find no room");
    }
    let shared = Arc::new(Shared {
        budget,
        clients: Clients::new(limits.requests, limits.connections),
        governor: Arc::clone(&governor),
        limits,
        streams: Streams::default(),
        allowed_hosts: config.allowed_hosts.clone(),
        described: oauth::Described::default(),
        upstream_proxy: config.upstream_proxy.clone(),
        stopping: stopping.clone(),
    });
    let proxy = server::start(listener, config.workers, &shared, &tls).context("a worker cannot be started")?;
    let state = State { governor: Arc::clone(&governor), stopping, log_level };
    admin::start(metrics, Face::Metrics, state.clone()).context("a thread cannot be started")?;
    admin::start(admin, Face::Admin, state).context("a thread cannot be started")?;
    tokio::spawn(upkeep);
    if let Some(store) = governor.store().cloned() {
        tokio::spawn(async move { store.keep().await });
    }
    let in_force = governor.in_force();
    tracing::info!(
        listen = %proxy.address,
        metrics = %metrics_address,
        admin = %admin_address,
        version = %in_force.version,
        policies = in_force.policies.len(),
        servers = in_force.engine.servers().count(),
        "{}",
        if governor.ready() { "ready" } else { "no policy yet; everything is denied until the control plane gives one" }
    );
    drop(in_force);
    Ok(Sidecar { governor, proxy, metrics: metrics_address, admin: admin_address, stop })
}

/// Runs until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// Those of [`start`].
pub async fn run(config: Config, log_level: LogLevel) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let sidecar = start(&config, log_level, Box::new(std::io::stdout())).await?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    if !sidecar.stop(config.drain).await {
        tracing::warn!(seconds = config.drain.as_secs_f64(), "requests were still under way when the time to drain was over");
    }
    Ok(())
}
