//! The command line.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use toolweir_operator::{
    approvals::{settings::ApprovalSettings, webhook::WebhookFiles},
    check, run,
};
use tracing_subscriber::{filter::LevelFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// Injects the sidecar into agent pods and streams to each the policies that govern it.
#[derive(Debug, Parser)]
#[command(name = "toolweir-operator", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How much to log to stderr.
    #[arg(long, global = true, default_value = "info", value_name = "LEVEL")]
    log_level: LevelFilter,
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
    /// Run a replica of the operator in a cluster.
    Run(Box<Run>),
    /// Ask an operator whether it is ready, and whether its certificates are in order.
    Check {
        /// The operator's Service.
        #[arg(long, default_value = "toolweir-operator", value_name = "NAME")]
        service: String,
        /// The operator's namespace.
        #[arg(long, env = "POD_NAMESPACE", value_name = "NAME")]
        namespace: String,
    },
}

#[derive(Debug, Args)]
struct Run {
    /// The configuration.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The operator's namespace.
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAME")]
    namespace: String,
    /// This pod's name.
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pod_name: String,
    /// This pod's uid.
    #[arg(long, env = "POD_UID", value_name = "UID")]
    pod_uid: String,
    /// The operator's Service.
    #[arg(long, default_value = "toolweir-operator", value_name = "NAME")]
    service: String,
    /// The Secret that holds the operator's certificate authorities.
    #[arg(long, default_value = "toolweir-ca", value_name = "NAME")]
    ca_secret: String,
    /// The Lease by which one replica leads.
    #[arg(long, default_value = "toolweir-operator", value_name = "NAME")]
    lease: String,
    /// The `MutatingWebhookConfiguration`.
    #[arg(long, default_value = "toolweir-injector", value_name = "NAME")]
    injector: String,
    /// The `ValidatingWebhookConfiguration`.
    #[arg(long, default_value = "toolweir-policies", value_name = "NAME")]
    validator: String,
    /// Where the webhooks are served.
    #[arg(long, default_value = "0.0.0.0:8443", value_name = "ADDR")]
    webhook_listen: String,
    /// Where the policy stream is served.
    #[arg(long, default_value = "0.0.0.0:8444", value_name = "ADDR")]
    stream_listen: String,
    /// Where /metrics is, and /readyz and /ca.pem for `check`.
    #[arg(long, default_value = "0.0.0.0:8080", value_name = "ADDR")]
    metrics_listen: String,
    /// Where the kubelet finds /healthz and /readyz, served by a thread of their own.
    #[arg(long, default_value = "0.0.0.0:8081", value_name = "ADDR")]
    probe_listen: String,
    #[command(flatten)]
    approvals: Approvals,
}

#[derive(Debug, Args)]
struct Approvals {
    /// Whether people can be asked to approve calls.
    #[arg(long = "approvals", default_value = "off", value_name = "WHETHER")]
    is_on: Switch,
    /// How long an `MCPApproval` is kept after it ended: 7d, 12h, 90s.
    #[arg(long = "approvals-retention", default_value = "7d", value_name = "TIME", value_parser = humantime::parse_duration)]
    retention: Duration,
    /// The `ValidatingAdmissionPolicy` that checks who decides, and its binding of the same name.
    #[arg(long = "approvals-guard", default_value = "toolweir-approvals", value_name = "NAME")]
    guard: String,
    /// The file with the URL that is told of requests. It is read again for each message.
    #[arg(long = "approvals-webhook-url-file", value_name = "FILE")]
    webhook_url: Option<PathBuf>,
    /// The file with the key with which messages to it are signed. It is read again for each message.
    #[arg(long = "approvals-webhook-secret-file", value_name = "FILE", requires = "webhook_url")]
    webhook_secret: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    /// They can.
    On,
    /// They cannot.
    Off,
}

impl Approvals {
    /// Returns the settings; none where approvals are off.
    fn settings(self) -> Option<ApprovalSettings> {
        let Self { is_on, retention, guard, webhook_url, webhook_secret } = self;
        let webhook = webhook_url.map(|url| WebhookFiles { url, secret: webhook_secret });
        (is_on == Switch::On).then_some(ApprovalSettings { retention, guard, webhook })
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let format = fmt::layer().with_writer(std::io::stderr).with_target(false);
    let registry = tracing_subscriber::registry().with(cli.log_level);
    match cli.log_format {
        LogFormat::Text => registry.with(format.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))).init(),
        LogFormat::Json => registry.with(format.json().flatten_event(true)).init(),
    }
    match execute(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "toolweir-operator ends");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> anyhow::Result<()> {
    // The client of the API server asks for a process-wide provider; there is one crypto library.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match command {
        Command::Run(run) => {
            let options = run::RunOptions {
                config: run.config,
                namespace: run.namespace,
                pod_name: run.pod_name,
                pod_uid: run.pod_uid,
                service: run.service,
                ca_secret: run.ca_secret,
                lease: run.lease,
                injector: run.injector,
                validator: run.validator,
                webhook_listen: run.webhook_listen,
                stream_listen: run.stream_listen,
                metrics_listen: run.metrics_listen,
                probe_listen: run.probe_listen,
                approvals: run.approvals.settings(),
            };
            runtime.block_on(run::run(options))
        }
        Command::Check { service, namespace } => runtime.block_on(check::check(&service, &namespace)),
    }
}
