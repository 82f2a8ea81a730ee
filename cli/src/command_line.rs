//! The command line of `kubectl toolweir`, which is also installed as `toolweir`.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Arg, Args, CommandFactory, FromArgMatches, Parser, Subcommand, value_parser};
use k8s_openapi::jiff::Timestamp;
use toolweir_crds::OperationKind;

use crate::{
    CommandOutcome, OutputFormat,
    approvals::command::{ApprovalsCommand, run as run_of_approvals},
    cluster::{ClusterFlags, LazyClient, NamespaceFlags},
    denials, explain, explain_url,
    pins::{drift_command, pin_command},
    replay,
    replay_policies::NewPolicies,
    status, suggest,
    table::{error_line, json},
    tools::{interrupt::Interrupted, limits::ReadLimits, report, source::ToolSource},
};

/// Shows what tools can do, suggests and tests policies, shows what the policies of a cluster do, and decides on calls that wait for a person.
///
/// Exit codes: 0 everything is in order, or the call or connection is allowed; 1 something is not in order, or it is denied; 2 an
/// error.
#[derive(Debug, Parser)]
#[command(name = "toolweir", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Output format
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORM")]
    output: OutputFormat,
    #[command(flatten)]
    connection: ClusterFlags,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show policies, the sidecars that enforce them, and pods without a sidecar
    Status {
        #[command(flatten)]
        place: NamespaceFlags,
    },
    /// Show calls, other operations and connections that were denied, or would have been, from the sidecars' audit logs
    Denials {
        #[command(flatten)]
        place: NamespaceFlags,
        /// Keep showing new denials, also of new pods
        #[arg(short, long)]
        follow: bool,
        /// Only this pod
        #[arg(long, value_name = "POD")]
        pod: Option<String>,
        /// How far to look back, such as 30s, 10m or 2h
        #[arg(long, value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
        since: Duration,
    },
    /// Show which entry of which policy decides a call, or a prompt, a resource, a request of the server or another method, and how much of
    /// each limit is left; or, with --url, what becomes of a connection. Nothing is called, connected to or counted
    #[command(after_help = EXPLAIN_ELSEWHERE)]
    Explain {
        /// Pod that would make the call or connection
        #[arg(value_name = "POD")]
        pod: String,
        /// Tool; left out with --prompt, --resource, --request, --method and --url
        #[arg(value_name = "TOOL", required_unless_present_any = ["prompt", "resource", "request", "method", "url"])]
        tool: Option<String>,
        /// Arguments of the call, as a JSON object; with --prompt those of the prompt, with --request the parameters of the request
        #[arg(value_name = "ARGS-JSON")]
        arguments: Option<String>,
        #[command(flatten)]
        other: OtherThanTool,
        /// MCP server; optional if the pod's policies name only one
        #[arg(long, value_name = "NAME")]
        server: Option<String>,
        /// MCP session, for limits with the scope Session
        #[arg(long, value_name = "ID")]
        session: Option<String>,
        /// URL that the pod would connect to, in place of a tool
        #[arg(long, value_name = "URL", conflicts_with_all = ["tool", "arguments", "server", "session", "prompt", "resource", "request", "method"])]
        url: Option<String>,
        /// Namespace [default: that of the context]
        #[arg(short, long, value_name = "NAME")]
        namespace: Option<String>,
    },
    /// Decide the calls of the last hours anew, as if the policies in files were in force, and show what would change. Nothing is
    /// called or changed
    Replay {
        /// File or folder of policies; can be repeated. They take the place of those of the same name, and the others stay
        #[arg(long, required = true, value_name = "PATH")]
        policy: Vec<PathBuf>,
        /// Only this pod [default: those that the policies select]
        #[arg(long, value_name = "POD")]
        pod: Option<String>,
        /// How far to look back, such as 30m or 24h
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = humantime::parse_duration)]
        since: Duration,
        /// Maximum number of examples of each change
        #[arg(long, value_name = "COUNT", default_value_t = 3)]
        examples: usize,
        /// Namespace [default: that of the context]
        #[arg(short, long, value_name = "NAME")]
        namespace: Option<String>,
    },
    #[command(flatten)]
    OfApprovals(ApprovalsCommand),
    #[command(flatten)]
    OfTools(ToolsCommand),
}

/// What is asked for in place of a tool.
#[derive(Debug, Args)]
#[group(multiple = false)]
struct OtherThanTool {
    /// Prompt, in place of a tool
    #[arg(long, value_name = "NAME", conflicts_with = "arguments")]
    prompt: Option<String>,
    /// Resource, in place of a tool
    #[arg(long, value_name = "URI", conflicts_with = "arguments")]
    resource: Option<String>,
    /// What the server would ask of the agent, in place of a tool: sampling, elicitation or roots
    #[arg(long, value_name = "NAME", conflicts_with = "arguments")]
    request: Option<String>,
    /// Another method, such as logging/setLevel, in place of a tool
    #[arg(long, value_name = "NAME", conflicts_with = "arguments")]
    method: Option<String>,
}

impl OtherThanTool {
    /// Returns the kind and the name of what is asked for, and the arguments: what stands where a tool would are those.
    fn asked(self, tool: Option<String>, arguments: Option<String>) -> (OperationKind, String, Option<String>) {
        let Self { prompt, resource, request, method } = self;
        let named = [
            (OperationKind::Prompt, prompt),
            (OperationKind::Resource, resource),
            (OperationKind::Request, request),
            (OperationKind::Other, method),
        ];
        let named = named.into_iter().find_map(|(kind, name)| Some((kind, name?)));
        match named {
            Some((kind, name)) => (kind, name, tool),
            None => (OperationKind::Tool, tool.unwrap_or_default(), arguments),
        }
    }
}

/// The commands about the tools of a server. Most need no cluster.
#[derive(Debug, Subcommand)]
enum ToolsCommand {
    /// Show what the tools of a server can do, and, with --policy, what policies in files would do with them. Only a pod as the source needs a cluster
    #[command(after_help = TOOLS_EXAMPLES)]
    Tools {
        #[command(flatten)]
        source: ToolSource,
        /// File or folder of policies; can be repeated. Needed to show what policies would do
        #[arg(long, value_name = "PATH")]
        policy: Vec<PathBuf>,
    },
    /// Suggest a policy for the tools of a server: a manifest with a comment on each tool. Look at it, then apply it. Without --from
    /// and --observed, what a tool can do decides (reading 60 times a minute, writing 30, executing 10, all else denied)
    #[command(after_help = SUGGEST_EXAMPLES)]
    Suggest(suggest::command::SuggestOptions),
    /// Pin the tools of a server: a manifest with what they look like now. Read it, then apply it
    #[command(after_help = PIN_EXAMPLES)]
    Pin(pin_command::PinOptions),
    /// Show how the tools of a server differ from what was pinned. The exit code is 1 if they do
    #[command(after_help = DRIFT_EXAMPLES)]
    Drift(drift_command::DriftOptions),
}

const EXPLAIN_ELSEWHERE: &str = "\
A sidecar without a cluster answers the same at its administration port:
  curl -s http://127.0.0.1:15000/explain -d '{\"tool\": \"pay_invoice\", \"arguments\": {\"amount\": 600}}'";

const TOOLS_EXAMPLES: &str = "\
Examples:
  toolweir tools https://mcp.example.com/mcp --header 'Authorization: Bearer ...'
  toolweir tools saved-tools.json --policy policies/ --server mail
  toolweir tools -- npx -y @modelcontextprotocol/server-everything
  kubectl toolweir tools -n agents social-1 mail";

const SUGGEST_EXAMPLES: &str = "\
Examples:
  toolweir suggest https://mcp.example.com/mcp --out policy.yaml
  toolweir suggest --server files -- npx -y @modelcontextprotocol/server-filesystem /data
  kubectl toolweir suggest -n agents --from social-1
  toolweir suggest saved-tools.json --server mail --observed observed.json";

const PIN_EXAMPLES: &str = "\
Examples:
  toolweir pin https://mcp.example.com/mcp --server mail --out mail.pins.yaml
  toolweir pin --server files -- npx -y @modelcontextprotocol/server-filesystem /data
  kubectl toolweir pin -n agents social-1 mail --out mail.pins.yaml
  kubectl apply --server-side -f mail.pins.yaml

Read the texts before you apply them. Pins of more than 256 KiB do not fit into the annotation that kubectl apply writes without --server-side.";

const DRIFT_EXAMPLES: &str = "\
Examples:
  toolweir drift --pins mail.pins.yaml https://mcp.example.com/mcp
  toolweir drift --pins files.pins.yaml -- npx -y @modelcontextprotocol/server-filesystem /data
  kubectl toolweir drift -n agents social-1
  kubectl toolweir drift -n agents social-1 mail";

/// Returns the command line, with what common options mean for each command.
fn command() -> clap::Command {
    // Manifests have one form. An option that is not offered still says so.
    let hidden = || {
        Arg::new("output").short('o').long("output").hide(true).value_parser(value_parser!(OutputFormat)).default_value("text")
    };
    let says = |help: &'static str| move |arg: Arg| arg.help(help);
    Cli::command()
        .mut_subcommand("suggest", |suggest| {
            let help = "Namespace of the policy [default: left out], and of pods [default: that of the context, which the policy gets too]";
            suggest.arg(hidden()).mut_arg("namespace", says(help))
        })
        .mut_subcommand("pin", |pin| {
            let help = "Namespace of the pins [default: left out], and of a pod [default: that of the context, which the pins get too]";
            pin.arg(hidden())
                .mut_arg("namespace", says(help))
                .mut_arg("server", says("Name of the server in the pins [default: made of what the server is called]"))
        })
        .mut_subcommand("drift", |drift| {
            drift.mut_arg("server", says("Server whose pins of --pins are compared [default: the only one, or that of the source's name]"))
        })
}

/// Runs the command line of this process. `program` is what people call it by: `toolweir`, or `kubectl toolweir`.
pub fn main(program: &'static str) -> ExitCode {
    let matches = command().name(program).bin_name(program).get_matches();
    let done = Cli::from_arg_matches(&matches).map_err(anyhow::Error::from).and_then(execute);
    match done {
        Ok(CommandOutcome::Positive) => ExitCode::SUCCESS,
        Ok(CommandOutcome::Negative) => ExitCode::from(1),
        // The reader of the output has closed the pipe.
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {}", error_line(&error));
            ExitCode::from(error.downcast_ref::<Interrupted>().map_or(2, Interrupted::exit_code))
        }
    }
}

fn execute(cli: Cli) -> anyhow::Result<CommandOutcome> {
    // The client of the API server needs a process-wide crypto provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(cli))
}

async fn run(cli: Cli) -> anyhow::Result<CommandOutcome> {
    let cluster = LazyClient::new(cli.connection);
    let form = cli.output;
    match cli.command {
        Command::Status { place } => {
            let client = cluster.get().await?;
            let status = status::gather(client, &place.scope(client), Timestamp::now()).await?;
            let text = match form {
                OutputFormat::Text => status.text(),
                OutputFormat::Json => format!("{}\n", json(&status)?),
            };
            io::stdout().write_all(text.as_bytes())?;
            Ok(status.outcome())
        }
        Command::Denials { place, follow, pod, since } => {
            let client = cluster.get().await?;
            let options = denials::DenialsQuery { scope: place.scope(client), pod, since, follow, form };
            denials::denials(client, &options, io::stdout(), io::stderr()).await?;
            Ok(CommandOutcome::Positive)
        }
        Command::Explain { pod, tool, arguments, other, server, session, url, namespace } => {
            let client = cluster.get().await?;
            let namespace = namespace.unwrap_or_else(|| client.default_namespace().to_owned());
            let (text, found) = if let Some(url) = url {
                explain_url::explain_url(client, &namespace, &explain_url::UrlQuery { pod, url, form }).await?
            } else {
                let (kind, name, arguments) = other.asked(tool, arguments);
                let options = explain::ExplainQuery { pod, kind, name, arguments, server, session, form };
                explain::explain(client, &namespace, &options).await?
            };
            io::stdout().write_all(text.as_bytes())?;
            Ok(found)
        }
        Command::Replay { policy, pod, since, examples, namespace } => {
            let policies = NewPolicies::load(&policy)?;
            let client = cluster.get().await?;
            let namespace = namespace.unwrap_or_else(|| client.default_namespace().to_owned());
            let query = replay::ReplayQuery { namespace, pod, since, examples, form };
            replay::replay(client, policies, &query, io::stdout(), io::stderr()).await?;
            Ok(CommandOutcome::Positive)
        }
        Command::OfApprovals(command) => run_of_approvals(command, cluster.get().await?, form).await,
        Command::OfTools(command) => Box::pin(run_of_tools(command, &cluster, form)).await,
    }
}

async fn run_of_tools(command: ToolsCommand, cluster: &LazyClient, form: OutputFormat) -> anyhow::Result<CommandOutcome> {
    let limits = ReadLimits::default();
    let (text, found) = match command {
        ToolsCommand::Tools { source, policy } => {
            (report::tools(&source, &policy, cluster, &limits, form).await?, CommandOutcome::Positive)
        }
        ToolsCommand::Suggest(_) if form != OutputFormat::Text => {
            anyhow::bail!("a policy is written as YAML, with comments; leave out -o")
        }
        ToolsCommand::Suggest(options) => {
            let text = suggest::command::run(&options, cluster, &limits).await?;
            options.out_file().write(&text, io::stdout())?;
            return Ok(CommandOutcome::Positive);
        }
        ToolsCommand::Pin(_) if form != OutputFormat::Text => anyhow::bail!("pins are written as YAML; leave out -o"),
        ToolsCommand::Pin(options) => {
            let text = pin_command::pin(&options, cluster, &limits).await?;
            options.out_file().write(&text, io::stdout())?;
            return Ok(CommandOutcome::Positive);
        }
        ToolsCommand::Drift(options) => {
            let (text, notes, found) = drift_command::drift(&options, cluster, &limits, form).await?;
            for note in notes {
                writeln!(io::stderr(), "note: {note}")?;
            }
            (text, found)
        }
    };
    io::stdout().write_all(text.as_bytes())?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_in_order() {
        command().debug_assert();
    }

    #[test]
    fn flags_of_the_connection_stand_anywhere() {
        for line in ["kubectl-toolweir --context c status -A -o json", "kubectl-toolweir status --context c -A --output json"] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert_eq!((cli.connection.context.as_deref(), cli.output), (Some("c"), OutputFormat::Json), "{line}");
        }
        assert!(Cli::try_parse_from(["kubectl-toolweir", "status", "-A", "-n", "x"]).is_err());
        assert!(Cli::try_parse_from(["kubectl-toolweir", "explain", "p"]).is_err());
        assert!(Cli::try_parse_from(["kubectl-toolweir", "explain", "p", "t", "--url", "http://a"]).is_err());
        let cli = Cli::try_parse_from(["kubectl-toolweir", "explain", "p", "--url", "http://a"]).unwrap();
        assert!(matches!(cli.command, Command::Explain { url: Some(url), tool: None, .. } if url == "http://a"));
        let asked =
            |line: &[&str]| match Cli::try_parse_from([&["kubectl-toolweir", "explain", "p"], line].concat()).unwrap().command {
                Command::Explain { tool, arguments, other, .. } => other.asked(tool, arguments),
                other => panic!("{other:?}"),
            };
        let of = |kind, name: &str, arguments: Option<&str>| (kind, name.to_owned(), arguments.map(str::to_owned));
        assert_eq!(asked(&["t", "{}"]), of(OperationKind::Tool, "t", Some("{}")));
        assert_eq!(asked(&["--prompt", "review", "{}"]), of(OperationKind::Prompt, "review", Some("{}")));
        assert_eq!(asked(&["--resource", "file:///a"]), of(OperationKind::Resource, "file:///a", None));
        assert_eq!(asked(&["--request", "sampling"]), of(OperationKind::Request, "sampling", None));
        assert_eq!(asked(&["--method", "x/y"]), of(OperationKind::Other, "x/y", None));
        for wrong in
            [&["--prompt", "a", "--resource", "b"][..], &["t", "{}", "--prompt", "a"], &["--url", "http://a", "--method", "x"]]
        {
            assert!(Cli::try_parse_from([&["kubectl-toolweir", "explain", "p"], wrong].concat()).is_err(), "{wrong:?}");
        }
        let cli = Cli::try_parse_from(["kubectl-toolweir", "denials", "-f", "--since", "90s"]).unwrap();
        assert!(matches!(cli.command, Command::Denials { follow: true, since, .. } if since == Duration::from_secs(90)));
    }
}
