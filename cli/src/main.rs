//! The command line.

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use kube::Client;
use toolweir_cli::{
    Form, Found,
    cluster::{Connection, Scope},
    denials, explain, status,
};

/// What the policies of a cluster do, and why.
///
/// Exit codes: 0 all is well, or the call goes through; 1 something is not in order, or the call is denied; 2 it could not be
/// found out.
#[derive(Debug, Parser)]
#[command(name = "kubectl-toolweir", bin_name = "kubectl toolweir", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// The form of the output.
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORM")]
    output: Form,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Args)]
struct Where {
    /// The namespace, else that of the context.
    #[arg(short, long, value_name = "NAME", conflicts_with = "all_namespaces")]
    namespace: Option<String>,
    /// All namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
}

impl Where {
    fn scope(self, client: &Client) -> Scope {
        if self.all_namespaces {
            return Scope::All;
        }
        Scope::Namespace(self.namespace.unwrap_or_else(|| client.default_namespace().to_owned()))
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show policies, the sidecars that enforce them, and pods where nothing does.
    Status {
        #[command(flatten)]
        place: Where,
    },
    /// Show calls that were denied, or would have been, from the sidecars' audit logs.
    Denials {
        #[command(flatten)]
        place: Where,
        /// Go on, and take in pods that come.
        #[arg(short, long)]
        follow: bool,
        /// Of this pod alone.
        #[arg(long, value_name = "POD")]
        pod: Option<String>,
        /// From how long ago on, such as 30s, 10m or 2h.
        #[arg(long, value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
        since: Duration,
    },
    /// Say which entry of which policy decides a call, and how much of each limit is left. Nothing is called or counted.
    Explain {
        /// The pod that would make the call.
        #[arg(value_name = "POD")]
        pod: String,
        /// The tool.
        #[arg(value_name = "TOOL")]
        tool: String,
        /// The call's arguments, a JSON object.
        #[arg(value_name = "ARGS-JSON")]
        arguments: Option<String>,
        /// The MCP server; may be left out where the pod's policies name one alone.
        #[arg(long, value_name = "NAME")]
        server: Option<String>,
        /// The MCP session, for limits of which each session has its own.
        #[arg(long, value_name = "ID")]
        session: Option<String>,
        /// The namespace, else that of the context.
        #[arg(short, long, value_name = "NAME")]
        namespace: Option<String>,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match execute(cli) {
        Ok(Found::Good) => ExitCode::SUCCESS,
        Ok(Found::Bad) => ExitCode::from(1),
        // Who read the output has seen enough.
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn execute(cli: Cli) -> anyhow::Result<Found> {
    // The client of the API server asks for a process-wide provider; there is one crypto library.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(cli))
}

async fn run(cli: Cli) -> anyhow::Result<Found> {
    let client = cli.connection.client().await?;
    let form = cli.output;
    match cli.command {
        Command::Status { place } => {
            let status = status::gather(&client, &place.scope(&client)).await?;
            let text = match form {
                Form::Text => status.text(),
                Form::Json => format!("{}\n", serde_json::to_string_pretty(&status)?),
            };
            io::stdout().write_all(text.as_bytes())?;
            Ok(status.found())
        }
        Command::Denials { place, follow, pod, since } => {
            let options = denials::Options { scope: place.scope(&client), pod, since, follow, form };
            denials::denials(&client, &options, io::stdout(), io::stderr()).await?;
            Ok(Found::Good)
        }
        Command::Explain { pod, tool, arguments, server, session, namespace } => {
            let namespace = namespace.unwrap_or_else(|| client.default_namespace().to_owned());
            let options = explain::Options { pod, tool, arguments, server, session, form };
            let (text, found) = explain::explain(&client, &namespace, &options).await?;
            io::stdout().write_all(text.as_bytes())?;
            Ok(found)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_in_order() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_of_the_connection_stand_anywhere() {
        for line in ["kubectl-toolweir --context c status -A -o json", "kubectl-toolweir status --context c -A --output json"] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert_eq!((cli.connection.context.as_deref(), cli.output), (Some("c"), Form::Json), "{line}");
        }
        assert!(Cli::try_parse_from(["kubectl-toolweir", "status", "-A", "-n", "x"]).is_err());
        let cli = Cli::try_parse_from(["kubectl-toolweir", "denials", "-f", "--since", "90s"]).unwrap();
        assert!(matches!(cli.command, Command::Denials { follow: true, since, .. } if since == Duration::from_secs(90)));
    }
}
