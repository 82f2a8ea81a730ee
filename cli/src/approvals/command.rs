//! The command lines of `approvals`, `approve` and `deny`.

use std::{
    io::{self, Write},
    time::Duration,
};

use anyhow::bail;
use clap::{Args, Subcommand};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use toolweir_crds::approval_request::ApprovalDecision;

use super::{
    decide::{DecideQuery, decide},
    listing::{self, ApprovalsQuery},
    request::ListedApproval,
    watch,
};
use crate::{
    CommandOutcome, OutputFormat,
    cluster::{NamespaceFlags, NamespaceScope},
    table::shown,
};

/// How long `approve` and `deny` wait for the operator.
const PATIENCE: Duration = Duration::from_secs(5);

/// The commands about calls that wait for a person.
#[derive(Debug, Subcommand)]
pub(crate) enum ApprovalsCommand {
    /// Show the calls that wait for a person, with what policies show of them; or, with NAME, all about one
    Approvals {
        /// Request, as NAME or NAMESPACE/NAME
        #[arg(value_name = "NAME", conflicts_with_all = ["watch", "all", "all_namespaces"])]
        name: Option<String>,
        #[command(flatten)]
        place: NamespaceFlags,
        /// Keep showing new requests, and what becomes of them
        #[arg(short, long)]
        watch: bool,
        /// Also those that are decided or over
        #[arg(long)]
        all: bool,
    },
    /// Approve a call that waits: it goes through once
    Approve(DecisionFlags),
    /// Deny a call that waits: the agent is told so
    Deny(DecisionFlags),
}

/// The flags of a decision.
#[derive(Args, Debug)]
pub(crate) struct DecisionFlags {
    /// Request, as NAME or NAMESPACE/NAME
    #[arg(value_name = "NAME")]
    name: String,
    /// Why. The agent is told that of a denial
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Namespace [default: that of the context]
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
}

/// Runs one of the commands.
///
/// # Errors
/// Those of the command.
pub(crate) async fn run(command: ApprovalsCommand, client: &Client, form: OutputFormat) -> anyhow::Result<CommandOutcome> {
    match command {
        ApprovalsCommand::Approvals { name: Some(name), place, .. } => {
            let (namespace, name) = place_of(&name, place.namespace, client)?;
            let approval = ListedApproval::get(client, &namespace, &name).await?;
            let now = Timestamp::now();
            let text = match form {
                OutputFormat::Text => approval.described(now),
                OutputFormat::Json => format!("{}\n", approval.json_line(now)?),
            };
            io::stdout().write_all(text.as_bytes())?;
            Ok(CommandOutcome::Positive)
        }
        ApprovalsCommand::Approvals { name: None, place, watch, all } => {
            let query = ApprovalsQuery { scope: place.scope(client), all, form };
            if watch {
                watch::watch(client, &query, io::stdout(), io::stderr(), Timestamp::now).await?;
            } else {
                show(client, &query).await?;
            }
            Ok(CommandOutcome::Positive)
        }
        ApprovalsCommand::Approve(flags) => flags.run(client, ApprovalDecision::Approve, form).await,
        ApprovalsCommand::Deny(flags) => flags.run(client, ApprovalDecision::Deny, form).await,
    }
}

async fn show(client: &Client, query: &ApprovalsQuery) -> anyhow::Result<()> {
    let now = Timestamp::now();
    let (approvals, notes) = listing::gather(client, query, now).await?;
    io::stdout().write_all(listing::text(&approvals, &notes, query, now)?.as_bytes())?;
    for note in &notes {
        writeln!(io::stderr(), "note: {}", shown(note))?;
    }
    if approvals.is_empty() && query.form == OutputFormat::Text {
        let place = query.scope.namespace().map(|namespace| format!(" in namespace {namespace}")).unwrap_or_default();
        let what = if query.all { "There are no requests" } else { "No call waits for a person" };
        let all = if query.scope == NamespaceScope::All { "" } else { "; -A shows those of all namespaces" };
        writeln!(io::stderr(), "{what}{}{all}.", shown(&place))?;
    }
    Ok(())
}

impl DecisionFlags {
    async fn run(self, client: &Client, decision: ApprovalDecision, form: OutputFormat) -> anyhow::Result<CommandOutcome> {
        let (namespace, name) = place_of(&self.name, self.namespace, client)?;
        let query = DecideQuery { namespace, name, decision, reason: self.reason, patience: PATIENCE, form };
        decide(client, &query, io::stdout(), Timestamp::now).await
    }
}

/// Returns namespace and name of a request, which agents are told as `namespace/name`.
fn place_of(name: &str, flag: Option<String>, client: &Client) -> anyhow::Result<(String, String)> {
    let name = name.strip_prefix("mcpapproval/").or_else(|| name.strip_prefix("mcpapprovals/")).unwrap_or(name);
    let (namespace, name) = match (name.split_once('/'), flag) {
        (Some((namespace, _)), Some(flag)) if namespace != flag => {
            bail!("{} is a request of namespace {}; leave out -n {}", shown(name), shown(namespace), shown(&flag))
        }
        (Some((namespace, name)), _) => (namespace.to_owned(), name),
        (None, Some(namespace)) => (namespace, name),
        (None, None) => (client.default_namespace().to_owned(), name),
    };
    if namespace.is_empty() || name.is_empty() || name.contains('/') {
        bail!("a request is named NAME or NAMESPACE/NAME, as kubectl toolweir approvals shows it");
    }
    Ok((namespace, name.to_owned()))
}
