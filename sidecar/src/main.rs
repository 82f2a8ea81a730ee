//! The command line.

use std::{
    io::Write,
    path::PathBuf,
    process::ExitCode,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use toolweir_crds::stream::{self, STORE_PREFIX};
use toolweir_engine::{Memory, Options};
use toolweir_sidecar::{
    admin::LogLevel,
    control::{
        self,
        backoff::Backoff,
        client::{Endpoint, SILENCE},
    },
    import::{self, ImportOptions},
    proxy::{Limits, through::UpstreamProxy},
    run::{self, PolicyErrors, Source},
    source::{self, Urls},
    stdio,
};
use tracing_subscriber::{filter::LevelFilter, layer::SubscriberExt, reload, util::SubscriberInitExt};

/// Holds an agent's MCP tool calls to policy and measures them.
#[derive(Debug, Parser)]
#[command(name = "toolweir-sidecar", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How much to log to stderr.
    #[arg(long, global = true, default_value = "info", value_name = "LEVEL", value_parser = ["off", "error", "warn", "info", "debug", "trace"])]
    log_level: String,
    /// The form of the log.
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
    Run(Box<Run>),
    /// Compile policies and say what is wrong with them.
    Check {
        /// Take it that there is a shared store where the policies are used, so that limits may hold across pods.
        #[arg(long)]
        shared_store: bool,
        /// Policy files or folders; they are taken together, as the policies of one pod.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Turn a `PolicyLayer` policy (version "1") into an `MCPPolicy` on stdout.
    Import {
        /// The policy.
        #[arg(value_name = "POLICY.json")]
        file: PathBuf,
        /// The server's name.
        #[arg(long, value_name = "NAME")]
        server: String,
        /// Where the server is.
        #[arg(long, value_name = "URL")]
        url: String,
        /// The policy's name, else the server's.
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// The policy's namespace.
        #[arg(long, value_name = "NAME")]
        namespace: Option<String>,
        /// There is a shared store: all pods of a workload count together.
        #[arg(long)]
        shared_store: bool,
    },
    /// Govern a server that speaks on stdin and stdout.
    Stdio(Stdio),
}

#[derive(Debug, Args)]
#[expect(clippy::struct_field_names, reason = "the flags are called so")]
struct Pod {
    /// The pod's name, for expressions.
    #[arg(long, env = "POD_NAME", default_value = "", hide_default_value = true)]
    pod_name: String,
    /// The pod's namespace, for expressions.
    #[arg(long, env = "POD_NAMESPACE", default_value = "", hide_default_value = true)]
    pod_namespace: String,
    /// The pod's service account, for expressions.
    #[arg(long, env = "POD_SERVICE_ACCOUNT", default_value = "", hide_default_value = true)]
    pod_service_account: String,
    /// The pod's workload as KIND/NAME, such as Deployment/agent, for limits of the scope Workload.
    #[arg(long, env = "POD_WORKLOAD", default_value = "", hide_default_value = true)]
    pod_workload: String,
    /// How many live counts of sessions and keys are kept; beyond it, calls that need a new one are denied.
    #[arg(long, default_value_t = Memory::COUNTERS, value_name = "COUNT")]
    max_counters: usize,
}

impl Pod {
    fn options(&self) -> Options {
        Options {
            shared_store: false,
            pod: self.pod_name.clone(),
            namespace: self.pod_namespace.clone(),
            service_account: self.pod_service_account.clone(),
            workload: self.pod_workload.clone(),
            of_any_pod: false,
        }
    }
}

#[derive(Debug, Args)]
struct Run {
    /// The policy file, or a folder of them. Changes are in force within a second.
    #[arg(
        long,
        value_name = "FILE|DIR",
        required_unless_present = "control_plane",
        conflicts_with_all = ["control_plane", "token_file", "control_plane_ca", "state_dir"]
    )]
    policy: Option<PathBuf>,
    #[command(flatten)]
    control_plane: ControlPlane,
    #[command(flatten)]
    shared_store: SharedStore,
    /// A file to write the servers in force to, in the usual form of MCP clients (`mcpServers`).
    #[arg(long, value_name = "FILE")]
    mcp_config: Option<PathBuf>,
    /// Where agents reach the proxy.
    #[arg(long, default_value = "127.0.0.1:15001", value_name = "ADDR")]
    listen: String,
    /// Where /metrics, /healthz and /readyz are.
    #[arg(long, default_value = "0.0.0.0:15020", value_name = "ADDR")]
    metrics_listen: String,
    /// Where /policy, /limits and /log-level are.
    #[arg(long, default_value = "127.0.0.1:15000", value_name = "ADDR")]
    admin_listen: String,
    /// Certificates to trust besides the system's.
    #[arg(long, value_name = "PEM")]
    upstream_ca: Option<PathBuf>,
    /// A proxy through which servers are reached, as http://[USER:PASSWORD@]HOST:PORT, but for those of `NO_PROXY`.
    #[arg(long, env = "TOOLWEIR_UPSTREAM_PROXY", hide_env_values = true, value_name = "URL", value_parser = UpstreamProxy::from_str)]
    upstream_proxy: Option<UpstreamProxy>,
    /// A name under which the proxy may be reached besides localhost and addresses.
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,
    /// The largest request, and the largest list of tools, in bytes.
    #[arg(long, default_value_t = Limits::default().body, value_name = "BYTES")]
    max_body: usize,
    /// The bytes that are held at once: of bodies, and of answers that wait for their clients.
    #[arg(long, default_value_t = Limits::default().held, value_name = "BYTES")]
    max_held: usize,
    /// The connections of clients that may be open.
    #[arg(long, default_value_t = Limits::default().connections, value_name = "COUNT")]
    max_connections: usize,
    /// The requests that may be under way, their answers included.
    #[arg(long, default_value_t = Limits::default().requests, value_name = "COUNT")]
    max_requests: usize,
    /// Seconds that connecting to a server may take.
    #[arg(long, default_value = "5", value_name = "SECONDS", value_parser = seconds)]
    connect_timeout: Duration,
    /// Seconds that a server may take to begin its answer.
    #[arg(long, default_value = "300", value_name = "SECONDS", value_parser = seconds)]
    first_byte_timeout: Duration,
    /// Seconds to wait for requests under way after SIGTERM.
    #[arg(long, default_value = "20", value_name = "SECONDS", value_parser = seconds)]
    drain_timeout: Duration,
    /// Threads that serve; by default one for each core, at most 4.
    #[arg(long, value_name = "COUNT")]
    workers: Option<usize>,
    #[command(flatten)]
    pod: Pod,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_field_names, reason = "the flags are called so")]
struct ControlPlane {
    /// Take policies from the operator at this URL instead of files.
    #[arg(long, value_name = "URL", requires = "token_file")]
    control_plane: Option<Endpoint>,
    /// The file with the token that opens the policy stream. It is read at every attempt.
    #[arg(long, value_name = "FILE", requires = "control_plane")]
    token_file: Option<PathBuf>,
    /// The authorities to trust as the control plane; else the text of `TOOLWEIR_CA`. Nobody else is trusted.
    #[arg(long, value_name = "PEM", requires = "control_plane")]
    control_plane_ca: Option<PathBuf>,
    /// A folder that keeps the last policies, for a start without the operator.
    #[arg(long, value_name = "DIR", requires = "control_plane")]
    state_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_field_names, reason = "the flags are called so")]
struct SharedStore {
    /// The Valkey or Redis that counts limits across pods: `redis://HOST[:PORT]`, `rediss://` with TLS,
    /// `redis+sentinel://HOST,HOST/MASTER` or `redis+cluster://HOST,HOST`. With --control-plane the operator names it.
    #[arg(long, value_name = "URL", conflicts_with = "control_plane")]
    shared_store: Option<String>,
    /// The ACL user there; else the default user.
    #[arg(long, value_name = "NAME", requires = "shared_store")]
    shared_store_username: Option<String>,
    /// The file with the password.
    #[arg(long, value_name = "FILE", requires = "shared_store")]
    shared_store_password_file: Option<PathBuf>,
    /// Certificates to trust besides the system's.
    #[arg(long, value_name = "PEM", requires = "shared_store")]
    shared_store_ca: Option<PathBuf>,
    /// What every key there begins with.
    #[arg(long, value_name = "TEXT", default_value = STORE_PREFIX)]
    shared_store_prefix: String,
    /// Whether places are taken ahead of use where a limit is large against the traffic.
    #[arg(long, value_name = "true|false", default_value_t = true, action = clap::ArgAction::Set)]
    shared_store_leases: bool,
    /// Seconds that a call may wait for it; then onStoreFailure of its policy decides.
    #[arg(long, value_name = "SECONDS", default_value = "0.05", value_parser = seconds)]
    shared_store_budget: Duration,
}

impl SharedStore {
    /// Where counts are shared, if they are.
    fn config(self) -> anyhow::Result<Option<toolweir_store::config::Config>> {
        let Some(url) = self.shared_store else { return Ok(None) };
        let read = |path: Option<PathBuf>, flag: &str| {
            path.map(|path| std::fs::read_to_string(&path).with_context(|| format!("{flag} {}", path.display()))).transpose()
        };
        let password = read(self.shared_store_password_file, "--shared-store-password-file")?;
        let store = stream::SharedStore {
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

impl ControlPlane {
    /// What is known of the control plane, if there is one.
    fn config(self) -> anyhow::Result<Option<control::Config>> {
        let (Some(endpoint), Some(token_file)) = (self.control_plane, self.token_file) else { return Ok(None) };
        let authorities = match self.control_plane_ca {
            Some(path) => std::fs::read_to_string(&path).with_context(|| format!("--control-plane-ca {}", path.display()))?,
            None => std::env::var("TOOLWEIR_CA").unwrap_or_default(),
        };
        Ok(Some(control::Config {
            endpoint,
            token_file,
            authorities,
            state: self.state_dir,
            backoff: Backoff::default(),
            silence: SILENCE,
        }))
    }
}

#[derive(Debug, Args)]
struct Stdio {
    /// The policy file, or a folder of them. Changes are in force within a second.
    #[arg(long, value_name = "FILE|DIR")]
    policy: PathBuf,
    /// The server's name in the policy.
    #[arg(long, value_name = "NAME")]
    server: String,
    /// Where /metrics, /healthz and /readyz are; nowhere unless said.
    #[arg(long, value_name = "ADDR")]
    metrics_listen: Option<String>,
    /// Where audit lines go, else to stderr.
    #[arg(long, value_name = "FILE")]
    audit_log: Option<PathBuf>,
    /// The longest message of the client, in bytes; those of the server may be 16 times as long.
    #[arg(long, default_value_t = Limits::default().body, value_name = "BYTES")]
    max_body: usize,
    #[command(flatten)]
    pod: Pod,
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

fn execute(command: Command, log_level: LogLevel) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(arguments) => {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            let source = match (arguments.control_plane.config()?, arguments.policy) {
                (Some(control_plane), _) => Source::ControlPlane(Box::new(control_plane)),
                (None, Some(policy)) => Source::Local(policy),
                (None, None) => anyhow::bail!("give the policies with --policy or --control-plane"),
            };
            let config = run::Config {
                source,
                mcp_config: arguments.mcp_config,
                listen: arguments.listen,
                metrics_listen: arguments.metrics_listen,
                admin_listen: arguments.admin_listen,
                upstream_ca: arguments.upstream_ca,
                upstream_proxy: upstream_proxy(arguments.upstream_proxy),
                limits: Limits {
                    body: arguments.max_body,
                    held: arguments.max_held,
                    connect: arguments.connect_timeout,
                    first_byte: arguments.first_byte_timeout,
                    connections: arguments.max_connections,
                    requests: arguments.max_requests,
                    ..Limits::default()
                },
                counters: arguments.pod.max_counters,
                workers: arguments.workers.unwrap_or(cores.min(4)),
                allowed_hosts: arguments.allow_host,
                drain: arguments.drain_timeout,
                shared_store: arguments.shared_store.config()?,
                options: arguments.pod.options(),
            };
            runtime()?.block_on(run::run(config, log_level))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Check { files, shared_store } => check(&files, shared_store),
        Command::Import { file, server, url, name, namespace, shared_store } => {
            let text = std::fs::read_to_string(&file).map_err(|error| anyhow::anyhow!("{}: {error}", file.display()))?;
            match import::import(&text, &ImportOptions { server, url, name, namespace, shared_store }) {
                Ok(document) => {
                    std::io::stdout().write_all(import::to_yaml(&document).as_bytes())?;
                    match import::counted_by_each_pod(&document) {
                        0 => {}
                        limits => writeln!(
                            std::io::stderr(),
                            "{}: warning: each pod counts for itself, where the original has one count for an agent: N replicas have N \
                             times each limit ({limits} of them). With a shared store, give --shared-store",
                            file.display()
                        )?,
                    }
                    Ok(ExitCode::SUCCESS)
                }
                Err(errors) => {
                    for error in errors {
                        writeln!(std::io::stderr(), "{}: {error}", file.display())?;
                    }
                    Ok(ExitCode::FAILURE)
                }
            }
        }
        Command::Stdio(arguments) => {
            let config = stdio::Config {
                policy: arguments.policy,
                server: arguments.server,
                command: arguments.command,
                metrics_listen: arguments.metrics_listen,
                audit_log: arguments.audit_log,
                longest: arguments.max_body,
                counters: arguments.pod.max_counters,
                options: arguments.pod.options(),
            };
            let runtime = runtime()?;
            let code = runtime.block_on(stdio::run(config, log_level))?;
            // A read of stdin is under way on a thread that nothing can end.
            runtime.shutdown_background();
            Ok(ExitCode::from(code))
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
    let options = Options { shared_store, of_any_pod: shared_store, ..Options::default() };
    let loaded = source::load(&files, Memory::new(0), &options, Urls::MayFollow).map_err(PolicyErrors)?;
    let mut out = std::io::stdout();
    for warning in &loaded.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    let servers = loaded.engine.servers().count();
    writeln!(
        out,
        "ok: {} of {} and {}",
        counted(loaded.policies.len(), "policy", "policies"),
        counted(files.len(), "file", "files"),
        counted(servers, "server", "servers")
    )?;
    Ok(ExitCode::SUCCESS)
}

fn counted(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// Starts the log on stderr, and gives what changes its level.
fn start_log(level: &str, form: LogFormat) -> LogLevel {
    let first: LevelFilter = level.parse().unwrap_or(LevelFilter::INFO);
    let (filter, handle) = reload::Layer::new(first);
    let format = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    let registry = tracing_subscriber::registry().with(filter);
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
