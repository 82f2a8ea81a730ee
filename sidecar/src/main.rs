//! The command line.

use std::{
    io::Write,
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use rustls_pki_types::CertificateDer;
use toolweir_crds::{
    sidecar::{ADMIN_PORT, METRICS_PORT, PROXY_PORT},
    stream::{STORE_PREFIX, SharedStore},
};
use toolweir_engine::{CompileOptions, Memory, egress::AddressRanges};
use toolweir_sidecar::{
    admin::LogLevelControl,
    approvals::{AskSettings, command::ApprovalsArgs, socket_args::ApprovalsSocketArgs},
    capture_rules::{self, CaptureRulesArgs},
    control::{
        ControlPlaneConfig,
        backoff::Backoff,
        client::{OperatorEndpoint, SILENCE},
    },
    credentials::keys::KeyFolders,
    import_command::ImportArgs,
    pod_args::PodArgs,
    proxy::{Limits, through::UpstreamProxy},
    replay_command::{self, ReplayArgs},
    run::{self, CaptureSettings, PolicyErrors, PolicySource, RunConfig},
    source::{self, Urls},
    stdio::{self, StdioConfig, keeper},
};
use toolweir_store::tls::pem_certificates;
use tracing::Level;
use tracing_subscriber::{
    filter::{LevelFilter, filter_fn},
    layer::SubscriberExt,
    reload,
    util::SubscriberInitExt,
};

/// Enforces policy on an agent's MCP tool calls, and measures them.
#[derive(Debug, Parser)]
#[command(name = "toolweir-sidecar", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Log level. The log goes to stderr.
    #[arg(long, global = true, default_value = "info", value_name = "LEVEL", value_parser = ["off", "error", "warn", "info", "debug", "trace"])]
    log_level: String,
    /// Log format.
    #[arg(long, global = true, default_value = "text", value_name = "FORM")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// A line of text.
    Text,
    /// A line of JSON.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy. The audit log goes to stdout, the log to stderr.
    Run(Box<RunArgs>),
    /// Compile policies and report what is wrong with them.
    Check {
        /// Assume a shared store, so that limits across pods are allowed.
        #[arg(long)]
        shared_store: bool,
        /// Policy files or folders, checked together as the policies of one pod.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Turn `PolicyLayer` policies (version "1") into `MCPPolicies` on stdout.
    Import(ImportArgs),
    /// Decide the calls of audit logs anew, by other policies, and print what would change.
    Replay(ReplayArgs),
    /// List the calls that wait for a person at the socket of a sidecar, and approve or deny them.
    Approvals(ApprovalsArgs),
    /// Enforce policy on a server that speaks MCP on stdin and stdout.
    Stdio(StdioArgs),
    /// Write the rules that redirect a pod's connections to its sidecar, and prove them. Needs `NET_ADMIN`.
    Capture(CaptureRulesArgs),
    /// What `stdio` starts, and what starts the server.
    #[command(name = keeper::SUBCOMMAND, hide = true)]
    KeepServer {
        /// The process of `stdio`.
        parent: i32,
        /// The server's command.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Seconds for which a client may cache a list, if the server allows it (`ttlMs`).
    #[arg(long, default_value = "5", value_name = "SECONDS", value_parser = seconds)]
    list_ttl: Duration,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("policy_source").args(["policy", "control_plane"]).required(true))]
struct RunArgs {
    /// Policy file, or a folder of them. Changes take effect within a second.
    #[arg(
        long,
        value_name = "FILE|DIR",
        conflicts_with_all = ["control_plane", "token_file", "control_plane_ca"]
    )]
    policy: Option<PathBuf>,
    #[command(flatten)]
    control_plane: ControlPlaneArgs,
    /// Folder that keeps what a restart needs: what servers' tools looked like, approvals, the operator's last policies, and of captured pods
    /// the nameservers and the certificate authority.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    shared_store: SharedStoreArgs,
    #[command(flatten)]
    approvals: ApprovalsSocketArgs,
    /// File to which the servers in force are written, in the usual format of MCP clients (`mcpServers`).
    #[arg(long, value_name = "FILE")]
    mcp_config: Option<PathBuf>,
    /// Address on which the proxy listens for agents.
    #[arg(long, default_value_t = format!("127.0.0.1:{PROXY_PORT}"), value_name = "ADDR")]
    listen: String,
    /// Address of /metrics, /healthz and /readyz.
    #[arg(long, default_value_t = format!("0.0.0.0:{METRICS_PORT}"), value_name = "ADDR")]
    metrics_listen: String,
    /// Address of /policy, /limits, /observed, /seen, /explain and /log-level.
    #[arg(long, default_value_t = format!("127.0.0.1:{ADMIN_PORT}"), value_name = "ADDR")]
    admin_listen: String,
    /// CA certificates to trust in addition to the system's.
    #[arg(long, value_name = "PEM")]
    upstream_ca: Option<PathBuf>,
    /// CA certificates to trust in addition to the system's, for servers and for captured agents; defaults to the text of
    /// `TOOLWEIR_EXTRA_ROOTS`.
    #[arg(long, value_name = "PEM")]
    extra_roots: Option<PathBuf>,
    /// HTTP proxy through which to reach servers, as http://[USER:PASSWORD@]HOST:PORT; those in `NO_PROXY` are reached directly.
    #[arg(long, env = "TOOLWEIR_UPSTREAM_PROXY", hide_env_values = true, value_name = "URL", value_parser = UpstreamProxy::from_str)]
    upstream_proxy: Option<UpstreamProxy>,
    /// Folder with a file for each key that credentials of servers name.
    #[arg(long, value_name = "DIR")]
    credentials_dir: Option<PathBuf>,
    /// Folder with a service account token for each audience that credentials of servers name.
    #[arg(long, value_name = "DIR")]
    audience_tokens_dir: Option<PathBuf>,
    #[command(flatten)]
    capture: CapturedArgs,
    /// Host name under which the proxy may be reached, in addition to localhost and IP addresses.
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,
    /// Maximum size of a request, and of a list, in bytes; at most three quarters of --max-held.
    #[arg(long, default_value_t = Limits::default().body, value_name = "BYTES")]
    max_body: usize,
    /// Maximum number of bytes held at once: of bodies, and of answers that wait for their clients.
    #[arg(long, default_value_t = Limits::default().held, value_name = "BYTES")]
    max_held: usize,
    /// Maximum number of open client connections.
    #[arg(long, default_value_t = Limits::default().connections, value_name = "COUNT")]
    max_connections: usize,
    /// Maximum number of requests in progress, including their answers.
    #[arg(long, default_value_t = Limits::default().requests, value_name = "COUNT")]
    max_requests: usize,
    /// Seconds allowed for connecting to a server.
    #[arg(long, default_value = "5", value_name = "SECONDS", value_parser = seconds)]
    connect_timeout: Duration,
    /// Seconds allowed for a server to begin its answer.
    #[arg(long, default_value = "300", value_name = "SECONDS", value_parser = seconds)]
    first_byte_timeout: Duration,
    #[command(flatten)]
    lists: ListArgs,
    /// Seconds to wait for requests in progress after SIGTERM.
    #[arg(long, default_value = "20", value_name = "SECONDS", value_parser = seconds)]
    drain_timeout: Duration,
    /// Number of worker threads; defaults to one per core, at most 4.
    #[arg(long, value_name = "COUNT")]
    workers: Option<usize>,
    #[command(flatten)]
    pod: PodArgs,
}

#[derive(Debug, Args)]
struct CapturedArgs {
    /// Port on both loopback addresses to which the kernel redirects connections of the pod's other containers.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    capture_port: Option<u16>,
    /// Range of addresses that are internal here, such as those of pods and nodes, besides the private ones of every network.
    #[arg(long, value_name = "CIDR", requires = "capture_port")]
    private_cidr: Vec<IpNet>,
    /// The pod's own addresses.
    #[arg(long, env = "POD_IPS", value_name = "IP,IP", value_delimiter = ',')]
    pod_ips: Vec<IpAddr>,
    /// The addresses of the pod's node.
    #[arg(long, env = "NODE_IPS", value_name = "IP,IP", value_delimiter = ',')]
    node_ips: Vec<IpAddr>,
    /// Folder for the certificates that agents are to trust, in which `ca-bundle.pem` and `ca-bundle.jks` are written. With it, TLS to
    /// servers with `tls: Intercept` is opened.
    #[arg(long, value_name = "DIR", requires = "capture_port")]
    agent_ca_dir: Option<PathBuf>,
}

impl CapturedArgs {
    /// What is captured, if anything.
    fn config(self) -> Option<CaptureSettings> {
        let ranges = AddressRanges { pod: self.pod_ips, node: self.node_ips, private: self.private_cidr };
        Some(CaptureSettings { port: self.capture_port?, ranges: Arc::new(ranges), agent_ca_dir: self.agent_ca_dir })
    }
}

#[derive(Debug, Args)]
struct ControlPlaneArgs {
    /// Take policies from the operator at this URL, not from files.
    #[arg(long, value_name = "URL", requires = "token_file")]
    control_plane: Option<OperatorEndpoint>,
    /// File with the token that opens the policy stream. It is read at every attempt.
    #[arg(long, value_name = "FILE", requires = "control_plane")]
    token_file: Option<PathBuf>,
    /// CA certificates of the control plane; defaults to the text of `TOOLWEIR_CA`. No other is trusted.
    #[arg(long, value_name = "PEM", requires = "control_plane")]
    control_plane_ca: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_field_names, reason = "the flags are called so")]
struct SharedStoreArgs {
    /// The Valkey or Redis that counts limits across pods: `redis://HOST[:PORT]`, `rediss://` with TLS,
    /// `redis+sentinel://HOST,HOST/MASTER` or `redis+cluster://HOST,HOST`. With --control-plane the operator names it.
    #[arg(long, value_name = "URL", conflicts_with = "control_plane")]
    shared_store: Option<String>,
    /// ACL user of the store; defaults to the default user.
    #[arg(long, value_name = "NAME", requires = "shared_store")]
    shared_store_username: Option<String>,
    /// File with the password.
    #[arg(long, value_name = "FILE", requires = "shared_store")]
    shared_store_password_file: Option<PathBuf>,
    /// CA certificates to trust in addition to the system's.
    #[arg(long, value_name = "PEM", requires = "shared_store")]
    shared_store_ca: Option<PathBuf>,
    /// Prefix of every key in the store.
    #[arg(long, value_name = "TEXT", default_value = STORE_PREFIX)]
    shared_store_prefix: String,
    /// Take places ahead of use where a limit is large compared with the traffic.
    #[arg(long, value_name = "true|false", default_value_t = true, action = clap::ArgAction::Set)]
    shared_store_leases: bool,
    /// Seconds that a call may wait for the store; then onStoreFailure of its policy decides.
    #[arg(long, value_name = "SECONDS", default_value = "0.05", value_parser = seconds)]
    shared_store_budget: Duration,
}

impl SharedStoreArgs {
    /// Where counts are shared, if they are.
    fn config(self) -> anyhow::Result<Option<toolweir_store::StoreConfig>> {
        let Some(url) = self.shared_store else { return Ok(None) };
        let read = |path: Option<PathBuf>, flag: &str| {
            path.map(|path| std::fs::read_to_string(&path).with_context(|| format!("{flag} {}", path.display()))).transpose()
        };
        let password = read(self.shared_store_password_file, "--shared-store-password-file")?;
        let store = SharedStore {
            url,
            username: self.shared_store_username,
            // An editor ends a file with a newline.
            password: password.map(|text| text.trim_end_matches(['\r', '\n']).to_owned()),
            ca: read(self.shared_store_ca, "--shared-store-ca")?,
            prefix: self.shared_store_prefix,
            leases: self.shared_store_leases,
            budget_milliseconds: u64::try_from(self.shared_store_budget.as_millis()).unwrap_or(u64::MAX),
        };
        Ok(Some((&store).try_into().context("--shared-store")?))
    }
}

impl ControlPlaneArgs {
    /// What is known of the control plane, if there is one.
    fn config(self, state: Option<PathBuf>) -> anyhow::Result<Option<ControlPlaneConfig>> {
        let (Some(endpoint), Some(token_file)) = (self.control_plane, self.token_file) else { return Ok(None) };
        let authorities = match self.control_plane_ca {
            Some(path) => std::fs::read_to_string(&path).with_context(|| format!("--control-plane-ca {}", path.display()))?,
            None => std::env::var("TOOLWEIR_CA").unwrap_or_default(),
        };
        Ok(Some(ControlPlaneConfig { endpoint, token_file, authorities, state, backoff: Backoff::default(), silence: SILENCE }))
    }
}

#[derive(Debug, Args)]
struct StdioArgs {
    /// Policy file, or a folder of them. Changes take effect within a second.
    #[arg(long, value_name = "FILE|DIR")]
    policy: PathBuf,
    /// The server's name in the policy.
    #[arg(long, value_name = "NAME")]
    server: String,
    /// Address of /metrics, /healthz and /readyz; not served by default.
    #[arg(long, value_name = "ADDR")]
    metrics_listen: Option<String>,
    /// File for audit lines; defaults to stderr.
    #[arg(long, value_name = "FILE")]
    audit_log: Option<PathBuf>,
    /// Folder that keeps what a restart needs: what the server's tools looked like, and approvals. Several sidecars may share it.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Maximum length of a message of the client, in bytes; one of the server may be 16 times as long.
    #[arg(long, default_value_t = Limits::default().body, value_name = "BYTES")]
    max_body: usize,
    #[command(flatten)]
    approvals: ApprovalsSocketArgs,
    #[command(flatten)]
    lists: ListArgs,
    #[command(flatten)]
    pod: PodArgs,
    /// The server's command.
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

/// The proxy that was asked for, without the hosts that the environment excepts. A variable alone asks for none: an
/// environment is often one for all programs of a machine.
fn upstream_proxy(proxy: Option<UpstreamProxy>) -> Option<UpstreamProxy> {
    let set = |names: &[&'static str]| {
        names
            .iter()
            .copied()
            .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()).map(|value| (name, value)))
    };
    if let Some(proxy) = proxy {
        let except = set(&["NO_PROXY", "no_proxy"]).map_or(String::new(), |(_, value)| value);
        return Some(proxy.except(&except));
    }
    if let Some((variable, _)) = set(&["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"]) {
        tracing::warn!(variable, "a proxy is set in the environment and not used; to use one, give --upstream-proxy");
    }
    None
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "write a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(number)
        .ok()
        .filter(|span| !span.is_zero())
        .ok_or_else(|| "write a positive number of seconds".to_owned())
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let log_level = start_log(&cli.log_level, cli.log_format);
    match execute(cli.command, log_level) {
        Ok(code) => code,
        Err(error) => {
            // Errors of policies say themselves where they are; one line each.
            let text = match error.downcast_ref::<PolicyErrors>() {
                Some(errors) => errors.to_string(),
                None => format!("toolweir-sidecar: {error:#}"),
            };
            let _ = writeln!(std::io::stderr(), "{text}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command, log_level: LogLevelControl) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(arguments) => {
            runtime()?.block_on(run::run(arguments.config()?, log_level))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Check { files, shared_store } => check(&files, shared_store),
        Command::Import(arguments) => arguments.run(),
        Command::Approvals(arguments) => arguments.run(),
        Command::Replay(arguments) => replay_command::replay(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Stdio(arguments) => {
            let runtime = runtime()?;
            let code = runtime.block_on(stdio::run(arguments.config(), log_level))?;
            // A read of stdin is under way on a thread that nothing can end.
            runtime.shutdown_background();
            Ok(ExitCode::from(code))
        }
        Command::Capture(arguments) => {
            capture_rules::capture(&arguments)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::KeepServer { parent, command } => {
            Ok(ExitCode::from(runtime()?.block_on(keeper::keep_server(parent, &command))?))
        }
    }
}

impl RunArgs {
    fn config(self) -> anyhow::Result<RunConfig> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let source = match (self.control_plane.config(self.state_dir.clone())?, self.policy) {
            (Some(control_plane), _) => PolicySource::ControlPlane(Box::new(control_plane)),
            (None, Some(policy)) => PolicySource::Local(policy),
            (None, None) => anyhow::bail!("name the source of the policies with --policy or --control-plane"),
        };
        let capture = self.capture.config();
        if self.state_dir.is_some() && capture.as_ref().is_some_and(|capture| capture.agent_ca_dir == self.state_dir) {
            anyhow::bail!("--agent-ca-dir: is the folder of --state-dir, which agents must not read; write another");
        }
        let in_pod = matches!(source, PolicySource::ControlPlane(_));
        let socket = self.approvals.settings();
        if in_pod && socket.is_some() {
            anyhow::bail!(
                "--approvals-socket: with --control-plane the operator asks people, who decide with kubectl toolweir approve; remove the flag"
            );
        }
        Ok(RunConfig {
            source,
            mcp_config: self.mcp_config,
            listen: self.listen,
            metrics_listen: self.metrics_listen,
            admin_listen: self.admin_listen,
            upstream_ca: self.upstream_ca,
            extra_roots: extra_roots(self.extra_roots.as_deref())?,
            upstream_proxy: upstream_proxy(self.upstream_proxy),
            capture,
            state: self.state_dir,
            credentials: KeyFolders { keys: self.credentials_dir, tokens: self.audience_tokens_dir, in_pod },
            limits: Limits {
                body: self.max_body,
                held: self.max_held,
                connect: self.connect_timeout,
                first_byte: self.first_byte_timeout,
                list_ttl: self.lists.list_ttl,
                connections: self.max_connections,
                requests: self.max_requests,
                ..Limits::default()
            },
            counters: self.pod.max_counters,
            workers: self.workers.unwrap_or(cores.min(4)),
            allowed_hosts: self.allow_host,
            drain: self.drain_timeout,
            shared_store: self.shared_store.config()?,
            options: self.pod.options(),
            approvals: AskSettings { socket, ..self.pod.approvals() },
        })
    }
}

/// Returns the certificates of a file, or those of the variable.
fn extra_roots(path: Option<&Path>) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    if let Some(path) = path {
        let place = || format!("--extra-roots {}", path.display());
        return pem_certificates(&std::fs::read(path).with_context(place)?).with_context(place);
    }
    let pem = std::env::var("TOOLWEIR_EXTRA_ROOTS").unwrap_or_default();
    if pem.trim().is_empty() {
        return Ok(Vec::new());
    }
    pem_certificates(pem.as_bytes()).context("TOOLWEIR_EXTRA_ROOTS")
}

impl StdioArgs {
    fn config(self) -> StdioConfig {
        StdioConfig {
            policy: self.policy,
            server: self.server,
            command: self.command,
            metrics_listen: self.metrics_listen,
            audit_log: self.audit_log,
            state: self.state_dir,
            longest: self.max_body,
            list_ttl: self.lists.list_ttl,
            counters: self.pod.max_counters,
            options: self.pod.options(),
            approvals: AskSettings { socket: self.approvals.settings(), ..self.pod.approvals() },
        }
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn check(paths: &[PathBuf], shared_store: bool) -> anyhow::Result<ExitCode> {
    let mut files = Vec::new();
    for path in paths {
        files.extend(source::files(path).map_err(|error| PolicyErrors(vec![error]))?);
    }
    let options = CompileOptions { shared_store, of_any_pod: shared_store, ..CompileOptions::default() };
    let loaded = source::load(&files, Memory::new(0), &options, Urls::MayFollow).map_err(PolicyErrors)?;
    let mut out = std::io::stdout();
    for warning in &loaded.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    let servers = loaded.engine.servers().count();
    writeln!(
        out,
        "ok: {}{} of {} and {}",
        counted(loaded.policies.len(), "policy", "policies"),
        if loaded.pins.is_empty() { String::new() } else { format!(" and {} MCPToolPins", loaded.pins.len()) },
        counted(files.len(), "file", "files"),
        counted(servers, "server", "servers")
    )?;
    Ok(ExitCode::SUCCESS)
}

fn counted(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// The libraries that read and write what goes over connections.
const WIRE: [&str; 3] = ["h2", "hyper", "rustls"];

/// Starts the log on stderr, and gives what changes its level.
fn start_log(level: &str, form: LogFormat) -> LogLevelControl {
    let first: LevelFilter = level.parse().unwrap_or(LevelFilter::INFO);
    let (filter, handle) = reload::Layer::new(first);
    let format = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    // What servers and token endpoints say may repeat a secret, and these log it from debug on.
    let wire =
        filter_fn(|event| *event.level() <= Level::INFO || !WIRE.iter().any(|library| event.target().starts_with(library)));
    let registry = tracing_subscriber::registry().with(filter).with(wire);
    match form {
        LogFormat::Text => registry.with(format.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))).init(),
        LogFormat::Json => registry.with(format.json().flatten_event(true)).init(),
    }
    let current = Mutex::new(first);
    Arc::new(move |new| {
        let mut current = current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(new) = new {
            let level: LevelFilter =
                new.parse().map_err(|_| "write one word: off, error, warn, info, debug or trace".to_owned())?;
            handle.reload(level).map_err(|error| error.to_string())?;
            *current = level;
        }
        Ok(current.to_string())
    })
}
