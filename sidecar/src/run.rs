//! `toolweir-sidecar run`: the proxy with policies of files or of the operator.

use std::{
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use rustls::ClientConfig;
use rustls_pki_types::CertificateDer;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use toolweir_crds::FileError;
use toolweir_engine::{CompileOptions, egress::AddressRanges};

use crate::{
    admin::{self, AdminState, Listener, LogLevelControl},
    approvals::{
        self, AskSettings,
        room::WaitingRoom,
        socket::{self, ApprovalsSocket},
    },
    audit::Audit,
    capture::{Capture, names::SearchDomains},
    control::{self, state::StateDir},
    counts::Counts,
    credentials::{
        keeper::KeeperTools, keys::KeyFolders, metrics::CredentialMetrics, set::CredentialSet, token_client::TokenClient,
    },
    freshness::Freshness,
    governor::Governor,
    interception::{Interception, InterceptionSettings, metrics::InterceptionMetrics},
    mcp_config::McpConfig,
    metrics::SidecarMetrics,
    net,
    own_lists::OwnLists,
    proxy::{
        Limits,
        answer_rooms::ServerAnswers,
        budget::Budget,
        cancel::CancellableCalls,
        clients::Clients,
        http_connection::KERNEL,
        legacy::LegacyStreams,
        oauth,
        server::{self, Running, WorkerUpstreams},
        sessions::Sessions,
        state::ProxyState,
        through::UpstreamProxy,
        upstream::{UpstreamClient, UpstreamOptions},
    },
    scrape::Scraper,
    seen_tools::keeper::{keep_tools, keep_tools_now},
    source::{self, FileWatch, Urls},
};

/// The time that returning leases to the shared store may take.
const RETURN: Duration = Duration::from_millis(500);

/// How long after its start a sidecar waits for a policy that has TLS opened, where the operator knew of one when the pod was created.
const INTERCEPTION_WAIT: Duration = Duration::from_secs(5);

/// The time after which it is tried again to write what captured agents are to trust.
const AGAIN: Duration = Duration::from_secs(2);

/// The source of policies.
#[derive(Clone, Debug)]
pub enum PolicySource {
    /// A file or folder of this machine.
    Local(PathBuf),
    /// The operator.
    ControlPlane(Box<control::ControlPlaneConfig>),
}

/// The configuration of `run`.
#[derive(Clone)]
pub struct RunConfig {
    /// The source of policies.
    pub source: PolicySource,
    /// The file for agents that lists the servers in force, if there is one.
    pub mcp_config: Option<PathBuf>,
    /// The address on which the proxy listens.
    pub listen: String,
    /// The address of metrics and health.
    pub metrics_listen: String,
    /// The address of the administration.
    pub admin_listen: String,
    /// A PEM file of certificates to trust besides the system's.
    pub upstream_ca: Option<PathBuf>,
    /// Certificates to trust besides the system's, for servers and for captured agents.
    pub extra_roots: Vec<CertificateDer<'static>>,
    /// The proxy through which servers are reached, if there is one.
    pub upstream_proxy: Option<UpstreamProxy>,
    /// Where keys and tokens are that servers are shown.
    pub credentials: KeyFolders,
    /// The folder that keeps what a restart needs, if there is one.
    pub state: Option<PathBuf>,
    /// What is captured, if anything.
    pub capture: Option<CaptureSettings>,
    /// The bounds.
    pub limits: Limits,
    /// The most live counts that are kept.
    pub counters: usize,
    /// The number of threads that serve.
    pub workers: usize,
    /// Names under which the sidecar may be reached besides local ones.
    pub allowed_hosts: Vec<String>,
    /// The time to wait for requests under way when told to stop.
    pub drain: Duration,
    /// The shared store, if there is one and policies come from files; else the operator names it.
    pub shared_store: Option<toolweir_store::StoreConfig>,
    /// The pod, for expressions and scopes.
    pub options: CompileOptions,
    /// How people are asked for approval.
    pub approvals: AskSettings,
}

/// Connections that the kernel redirects to the sidecar.
#[derive(Clone, Debug)]
pub struct CaptureSettings {
    /// The port at which they arrive, on 127.0.0.1 and `[::1]`.
    pub port: u16,
    /// The addresses that are known of the pod and its surroundings.
    pub ranges: Arc<AddressRanges>,
    /// The folder in which agents find what they are to trust, where TLS to declared servers is opened.
    pub agent_ca_dir: Option<PathBuf>,
}

impl CaptureSettings {
    /// Binds the port on both loopback addresses. A machine without IPv6 has one.
    async fn listen(&self) -> anyhow::Result<Vec<TcpListener>> {
        let v4 = admin::bind_with(&format!("127.0.0.1:{}", self.port), "--capture-port", None).await?;
        let v6 = match admin::bind_with(&format!("[::1]:{}", self.port), "--capture-port", None).await {
            Ok(listener) => Some(listener),
            Err(error) if matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported) => None,
            Err(error) => return Err(error.into()),
        };
        Ok([Some(v4), v6].into_iter().flatten().collect())
    }
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
    metrics: Arc<SidecarMetrics>,
    counts: Counts,
    options: CompileOptions,
    audit: Box<dyn io::Write + Send>,
) -> anyhow::Result<(Arc<Governor>, FileWatch)> {
    let watch = FileWatch::new(policy, urls);
    let first = source::files(policy)
        .map_err(|error| vec![error])
        .and_then(|files| source::load(&files, Arc::clone(&counts.memory), &options, urls))
        .and_then(|loaded| loaded.in_force(policy, &metrics.servers))
        .map_err(PolicyErrors)?;
    let audit = Audit::new(audit, &metrics.registry).context("the audit log cannot be started")?;
    Ok((Governor::new(first, Freshness::Current, metrics, audit, counts, options), watch))
}

/// A running sidecar.
#[derive(Debug)]
pub struct Sidecar {
    /// The policies in force and the record of decisions.
    pub governor: Arc<Governor>,
    /// The proxy.
    pub proxy: Running,
    /// The address of metrics and health.
    pub metrics: std::net::SocketAddr,
    /// The address of the administration.
    pub admin: std::net::SocketAddr,
    state: StateDir,
    approvals_socket: Option<ApprovalsSocket>,
    stop: watch::Sender<bool>,
}

impl Sidecar {
    /// Stops: nothing new is accepted, what is under way is finished. Returns true if all was finished within `limit`.
    pub async fn stop(self, limit: Duration) -> bool {
        let _ = self.stop.send(true);
        let drained = self.proxy.drained(limit).await;
        if let Some(store) = self.governor.store() {
            store.leave(RETURN).await;
        }
        keep_tools_now(&self.governor, &self.state).await;
        self.governor.approvals().close().await;
        self.governor.audit().close();
        // Until now calls could wait for a person.
        drop(self.approvals_socket);
        drained
    }
}

/// Keeps the policies what their source says, for as long as it runs.
type Upkeep = Pin<Box<dyn Future<Output = ()> + Send>>;

impl RunConfig {
    fn govern(
        &self,
        audit: Box<dyn io::Write + Send>,
        stopping: watch::Receiver<bool>,
    ) -> anyhow::Result<(Arc<Governor>, Upkeep)> {
        let metrics = Arc::new(SidecarMetrics::new()?);
        let counts = Counts::with_store(self.counters, &metrics.registry)?;
        let mut options = self.options.clone();
        match &self.source {
            PolicySource::Local(path) => {
                counts.set_store(self.shared_store.clone().map(Ok));
                options.shared_store = counts.are_shared();
                let (governor, watch) = govern(path, Urls::Needed, metrics, counts, options, audit)?;
                Ok((Arc::clone(&governor), Box::pin(watch.run(governor))))
            }
            PolicySource::ControlPlane(config) => {
                let (governor, follower) = control::govern(config, metrics, counts, options, audit)?;
                Ok((Arc::clone(&governor), Box::pin(follower.run(governor, stopping))))
            }
        }
    }

    /// Takes over the requests for approval of an earlier run. From now on people can be asked, if there is a way.
    async fn ask_people(&self, governor: &Governor, state: &StateDir) -> anyhow::Result<Option<ApprovalsSocket>> {
        if let PolicySource::ControlPlane(_) = &self.source {
            governor.approvals().ask_by_operator();
        }
        governor.restore_approvals(&self.approvals, state, approvals::FILE);
        Ok(socket::open(self.approvals.socket.as_ref(), governor.approvals()).await?)
    }

    /// Reads the pod's nameservers, where they are asked for the operator, the store, or where captured connections lead.
    fn read_resolvers(&self, governor: &Governor) -> anyhow::Result<()> {
        let is_needed = match &self.source {
            PolicySource::ControlPlane(_) => true,
            PolicySource::Local(_) => self.shared_store.is_some() || self.capture.is_some(),
        };
        if !is_needed {
            return Ok(());
        }
        let read = match self.state.as_deref().filter(|_| self.capture.is_some()) {
            Some(state) => net::resolvers::read_kept(state, &governor.metrics.files),
            None => toolweir_store::dns::read(),
        };
        match read {
            Err(error) if self.capture.is_some() => anyhow::bail!("captured connections need a nameserver: {error}"),
            Err(error) => {
                tracing::warn!(error, "cannot resolve the names of the operator and of the shared store yet; retrying");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Returns the TLS with which servers are connected to.
    fn client_tls(&self) -> anyhow::Result<Arc<ClientConfig>> {
        let path = self.upstream_ca.as_deref();
        net::client_tls(path, &self.extra_roots)
            .with_context(|| format!("--upstream-ca {}", path.unwrap_or(Path::new("")).display()))
    }

    /// Returns how servers are connected to.
    fn upstreams(&self, tls: &Arc<ClientConfig>) -> WorkerUpstreams {
        let plain = UpstreamOptions {
            tls: Arc::clone(tls),
            connect: self.limits.connect,
            proxy: self.upstream_proxy.clone(),
            // A captured agent has no say in where its servers are.
            dns_alone: self.capture.is_some(),
            ranges: self.capture.as_ref().map(|capture| Arc::clone(&capture.ranges)),
        };
        // In a pod, the agent must not be able to say where a credential goes.
        let dns_alone = plain.dns_alone || matches!(self.source, PolicySource::ControlPlane(_));
        WorkerUpstreams { credentialed: UpstreamOptions { dns_alone, ..plain.clone() }, plain }
    }

    /// Has the credentials of servers looked after.
    fn look_after_credentials(&self, governor: &Governor, upstream: &UpstreamOptions) -> anyhow::Result<()> {
        let tools = KeeperTools {
            folders: self.credentials.clone(),
            tls: Arc::clone(&upstream.tls),
            tokens: TokenClient(UpstreamClient::new(upstream)),
            metrics: CredentialMetrics::new(&governor.metrics.registry)?,
        };
        governor.look_after_credentials(CredentialSet::new(tools, tokio::runtime::Handle::current()));
        Ok(())
    }

    /// Returns what captured connections are decided by, if there are any. The policies in force say which TLS is opened from now on.
    fn captured(&self, governor: &Governor) -> anyhow::Result<Option<Arc<Capture>>> {
        let Some(capture) = &self.capture else { return Ok(None) };
        // Now, while no other container can have written to them.
        let domains = toolweir_store::dns::search_domains().map_err(|error| anyhow::anyhow!("--capture-port: {error}"))?;
        let domains = SearchDomains::new(domains);
        let settings = InterceptionSettings {
            folder: capture.agent_ca_dir.clone(),
            state: StateDir::new(self.state.clone()),
            patience: if matches!(self.source, PolicySource::ControlPlane(_)) { INTERCEPTION_WAIT } else { Duration::ZERO },
            extra_roots: self.extra_roots.clone(),
            pod: if self.options.pod.is_empty() {
                String::new()
            } else {
                format!("{}/{}", self.options.namespace, self.options.pod)
            },
        };
        let metrics = InterceptionMetrics::new(&governor.metrics.registry)?;
        let interception = Arc::new(Interception::new(settings, domains.clone(), metrics).context("TLS cannot be set up")?);
        governor.intercept(Arc::clone(&interception));
        let is_local = matches!(self.source, PolicySource::Local(_));
        anyhow::ensure!(
            interception.is_prepared() || !is_local,
            "--agent-ca-dir: what agents are to trust cannot be made or written; the log says why"
        );
        Ok(Some(Arc::new(Capture::new(Arc::clone(&capture.ranges), domains, self.limits.connect, interception))))
    }

    /// Returns what the proxy's workers share. A body larger than the memory for bodies is not allowed, whatever the limits say.
    fn proxy_state(&self, governor: &Arc<Governor>, stopping: &watch::Receiver<bool>) -> anyhow::Result<Arc<ProxyState>> {
        let capture = self.captured(governor)?;
        let budget = Budget::new(self.limits.held, self.limits.held_wait, governor.metrics.connections.held_bytes.clone());
        let mut limits = self.limits.clone();
        if limits.body > budget.largest() {
            limits.body = budget.largest();
            tracing::warn!(
                bytes = limits.body,
                "--max-body is lowered to three quarters of --max-held; to allow larger bodies, raise --max-held"
            );
        }
        Ok(Arc::new(ProxyState {
            budget,
            clients: Clients::new(limits.requests, limits.connections),
            governor: Arc::clone(governor),
            server_answers: ServerAnswers::default(),
            own_lists: OwnLists::new(limits.own_list),
            // Half of the memory for bodies, and seven of eight requests: others go on while people take their time.
            waiting: WaitingRoom::new(limits.held / 2, limits.requests - limits.requests.div_ceil(8)),
            limits,
            streams: LegacyStreams::default(),
            sessions: Sessions::default(),
            calls: CancellableCalls::default(),
            allowed_hosts: self.allowed_hosts.clone(),
            described: oauth::Described::default(),
            upstream_proxy: self.upstream_proxy.clone(),
            capture,
            stopping: stopping.clone(),
        }))
    }
}

/// Starts the proxy, its small servers and what keeps the policies current.
///
/// # Errors
/// The policy is not in order, an address cannot be bound, the socket of approvals cannot be made, a certificate cannot be read, or the
/// agents' file cannot be written.
pub async fn start(config: &RunConfig, log_level: LogLevelControl, audit: Box<dyn io::Write + Send>) -> anyhow::Result<Sidecar> {
    let (stop, stopping) = watch::channel(false);
    let (governor, upkeep) = config.govern(audit, stopping.clone())?;
    governor.observe();
    if let (Some(folder), PolicySource::Local(_)) = (&config.state, &config.source) {
        governor.metrics.files.record_result("policies", "write", control::state::create(folder));
    }
    let state_dir = StateDir::new(config.state.clone());
    governor.restore_tools(&state_dir);
    let approvals_socket = config.ask_people(&governor, &state_dir).await?;
    // Now, while no container of the pod can have written to it.
    config.read_resolvers(&governor)?;
    let tls = config.client_tls()?;
    let listener = admin::bind_with(&config.listen, "--listen", Some(KERNEL)).await?;
    let captured = match &config.capture {
        Some(capture) => capture.listen().await?,
        None => Vec::new(),
    };
    let metrics = admin::bind(&config.metrics_listen, "--metrics-listen").await?;
    let admin = admin::bind(&config.admin_listen, "--admin-listen").await?;
    if let Some(path) = &config.mcp_config {
        governor.write_mcp_config(McpConfig::new(path.clone(), listener.local_addr()?)).context("--mcp-config")?;
    }
    let (metrics_address, admin_address) = (metrics.local_addr()?, admin.local_addr()?);
    let shared = config.proxy_state(&governor, &stopping)?;
    let upstreams = config.upstreams(&tls);
    config.look_after_credentials(&governor, &upstreams.credentialed)?;
    let proxy = server::start(listener, captured, config.workers, &shared, &upstreams).context("a worker cannot be started")?;
    let scraper = Arc::new(Scraper::new(Arc::clone(&governor))?);
    let state = AdminState { governor: Arc::clone(&governor), scraper, capture: shared.capture.clone(), stopping, log_level };
    admin::start(metrics, Listener::Metrics, state.clone()).context("a thread cannot be started")?;
    admin::start(admin, Listener::Admin, state).context("a thread cannot be started")?;
    tokio::spawn(upkeep);
    tokio::spawn(keep_tools(Arc::clone(&governor), state_dir.clone()));
    tokio::spawn(Arc::clone(governor.approvals()).keep());
    let deciding = Arc::clone(&governor);
    tokio::spawn(async move {
        while !deciding.prepare_interception() {
            tokio::time::sleep(AGAIN).await;
        }
    });
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
        if governor.freshness.has_policies() { "ready" } else { "no policy yet; every call is denied until the control plane sends one" }
    );
    drop(in_force);
    Ok(Sidecar { governor, proxy, metrics: metrics_address, admin: admin_address, state: state_dir, approvals_socket, stop })
}

/// Runs until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// Those of [`start`].
pub async fn run(config: RunConfig, log_level: LogLevelControl) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let sidecar = start(&config, log_level, Box::new(io::stdout())).await?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    if !sidecar.stop(config.drain).await {
        tracing::warn!(seconds = config.drain.as_secs_f64(), "requests were still in progress when --drain-timeout was over");
    }
    Ok(())
}
