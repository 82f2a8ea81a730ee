//! `toolweir drift`: how tools differ from pins of a file, or those that a sidecar saw last from pins of the cluster.

use std::path::PathBuf;

use anyhow::{anyhow, bail};
use clap::Args;
use kube::Client;
use toolweir_crds::{
    FileError, PinnedTool, ToolPins, policy_files, read_manifests,
    seen::{SeenDefinition, SeenResponse, SeenServer},
};
use toolweir_pins::check_texts;

use super::{
    cluster_pins,
    drift::{Compared, ToolDriftRow, drifted},
    drift_text,
    pin_command::{self, ReadTools},
    seen,
};
use crate::{
    CommandOutcome, OutputFormat,
    cluster::LazyClient,
    policy_files::faults,
    table::{json, shown},
    tools::{limits::ReadLimits, source::ToolSource},
};

/// The options of the command.
#[derive(Args, Clone, Debug, Default)]
pub struct DriftOptions {
    /// File or folder with pins, to compare the tools of SOURCE with; can be repeated. Left out: POD, or POD SERVER; what its
    /// sidecar saw last is compared with the pins in the cluster
    #[arg(long, value_name = "PATH")]
    pins: Vec<PathBuf>,
    #[command(flatten)]
    source: ToolSource,
}

/// Compares tools with pins. Returns the output, notes on what could not be compared, and whether all is as it was pinned.
///
/// # Errors
/// The tools or the pins cannot be read.
pub async fn drift(
    options: &DriftOptions,
    cluster: &LazyClient,
    limits: &ReadLimits,
    form: OutputFormat,
) -> anyhow::Result<(String, Vec<String>, CommandOutcome)> {
    let mut compared = match options.pins.as_slice() {
        [] => of_pod(&options.source, cluster).await?,
        paths => of_files(paths, &options.source, cluster, limits).await?,
    };
    let is_same = compared.drifted.is_empty() && compared.notes.is_empty();
    let text = match form {
        OutputFormat::Json => format!("{}\n", json(&compared.drifted)?),
        OutputFormat::Text if compared.drifted.is_empty() => compared.same.concat(),
        OutputFormat::Text => drift_text::text(&compared.drifted),
    };
    let outcome = if is_same { CommandOutcome::Positive } else { CommandOutcome::Negative };
    compared.notes.append(&mut compared.remarks);
    Ok((text, compared.notes, outcome))
}

/// What was compared.
#[derive(Default)]
struct Comparison {
    drifted: Vec<ToolDriftRow>,
    /// A line for each server that is as it was pinned.
    same: Vec<String>,
    /// What could not be compared.
    notes: Vec<String>,
    /// What may be a mistake in what was compared.
    remarks: Vec<String>,
}

impl Comparison {
    fn add(&mut self, server: &str, pins: &ToolPins, now: &[PinnedTool]) {
        let name = pins.to_string();
        let found = drifted(Compared { server, pins: &name }, &pins.spec, now);
        if found.is_empty() {
            let tools = if now.len() == 1 { "1 tool is" } else { &format!("{} tools are", now.len()) };
            self.same.push(format!("{}: {tools} as pinned by {}.\n", shown(server), shown(&name)));
        }
        self.drifted.extend(found);
    }
}

async fn of_files(
    paths: &[PathBuf],
    source: &ToolSource,
    cluster: &LazyClient,
    limits: &ReadLimits,
) -> anyhow::Result<Comparison> {
    let pins = read_pins(paths)?;
    // `--server` names the pins; what a pod is asked for stands after its name.
    let now = pin_command::read(source, cluster, limits).await?;
    let pins = choose(&pins, source.server.as_deref(), &now.pins.server, paths)?;
    let mut found = Comparison::default();
    found.add(&pins.spec.server, pins, &now.pins.tools);
    // Of tools that are as pinned, nobody asks.
    if source.server.is_none() && !found.drifted.is_empty() {
        found.remarks.extend(other_server(&now, source, &pins.spec.server));
    }
    Ok(found)
}

/// Says that pins may be those of another server.
fn other_server(now: &ReadTools, source: &ToolSource, pinned: &str) -> Option<String> {
    let server = shown(&now.pins.server);
    let who = match (source.pod_and_server(), now.says_name) {
        _ if now.pins.server == pinned => return None,
        (Some(_), _) => format!("this is the server {server}"),
        (None, true) => format!("the server calls itself {server}"),
        (None, false) => return None,
    };
    Some(format!("{who}; these are pins of {}. If they are the right ones, say --server {0}", shown(pinned)))
}

fn read_pins(paths: &[PathBuf]) -> anyhow::Result<Vec<ToolPins>> {
    let texts = policy_files::read_all(paths).map_err(|error| {
        anyhow!("{}; give the path of a file or folder of pins with --pins", faults(std::slice::from_ref(&error)))
    })?;
    let mut all = Vec::new();
    for text in &texts {
        for located in read_manifests(&text.file, &text.text).map_err(|errors| faults(&errors))?.pins {
            let wrong: Vec<FileError> = check_texts(&located.pins).iter().map(|error| located.error(error)).collect();
            if !wrong.is_empty() {
                return Err(faults(&wrong));
            }
            all.push(located.pins);
        }
    }
    Ok(all)
}

/// Chooses the pins of a server: the one that was asked for, or what the server is probably called, or the only ones.
fn choose<'a>(pins: &'a [ToolPins], server: Option<&str>, likely: &str, paths: &[PathBuf]) -> anyhow::Result<&'a ToolPins> {
    let names = || paths.iter().map(|path| shown(&path.display().to_string()).into_owned()).collect::<Vec<_>>().join(", ");
    let path = || format!("{} {}", names(), if paths.len() == 1 { "has" } else { "have" });
    let list = || pins.iter().map(|pins| shown(&pins.spec.server).into_owned()).collect::<Vec<_>>().join(", ");
    let of = |name: &str| pins.iter().filter(|pins| pins.spec.server == name).collect::<Vec<_>>();
    match (server, pins) {
        (_, []) => bail!("{} no MCPToolPins; write them with `toolweir pin`", path()),
        (None, [only]) => Ok(only),
        (name, _) => match of(name.unwrap_or(likely)).as_slice() {
            [only] => Ok(only),
            [] if name.is_none() => bail!("{} pins of {}; say with --server which of them these are", path(), list()),
            [] => bail!("{} no pins of the server {}, but of {}", path(), shown(name.unwrap_or(likely)), list()),
            _ => bail!(
                "{} more than one MCPToolPins of the server {}; give a file with the pins that you mean",
                path(),
                shown(name.unwrap_or(likely))
            ),
        },
    }
}

async fn of_pod(source: &ToolSource, cluster: &LazyClient) -> anyhow::Result<Comparison> {
    let (pod, server) = match (source.place.as_slice(), source.command.as_slice()) {
        ([pod], []) if !pod.contains("://") => (pod.as_str(), None),
        ([pod, server], []) => (pod.as_str(), Some(server.as_str())),
        _ => bail!(
            "compared with which pins? Give --pins FILE and a SOURCE; or POD [SERVER], which are compared with the pins in the cluster"
        ),
    };
    if let Some(name) = &source.server {
        bail!("--server is for pins of a file; write {} after the pod", shown(name));
    }
    let client = cluster.get().await?;
    let namespace = source.namespace.as_deref().unwrap_or(client.default_namespace());
    let (pod, response) = seen::ask(client, namespace, pod).await?;
    let SeenResponse { servers } = response.ok_or_else(|| seen::too_old(&pod))?;
    let held: Vec<SeenServer> = servers.into_iter().filter(|seen| !seen.pins.is_empty()).collect();
    let list = || held.iter().map(|seen| shown(&seen.server).into_owned()).collect::<Vec<_>>().join(", ");
    let chosen: Vec<&SeenServer> = held.iter().filter(|seen| server.is_none_or(|name| seen.server == name)).collect();
    match (chosen.as_slice(), server) {
        ([], Some(name)) if !held.is_empty() => {
            bail!("no policy of pod {} holds the server {} to pins, but {}", pod.key, shown(name), list())
        }
        ([], _) => bail!("no policy of pod {} holds a server to pins; write them with `pin`, and `pins` in the policy", pod.key),
        _ => {}
    }
    let mut found = Comparison::default();
    for seen in chosen {
        add_seen(client, seen, &format!("-n {namespace} {}", pod.key.name), &mut found).await?;
    }
    Ok(found)
}

/// Compares what a sidecar saw of a server with all pins to which policies hold it.
async fn add_seen(client: &Client, seen: &SeenServer, pod: &str, found: &mut Comparison) -> anyhow::Result<()> {
    let server = shown(&seen.server);
    if seen.tools.is_empty() {
        found
            .notes
            .push(format!("{server}: no list of its tools was seen yet; kubectl toolweir tools {pod} {server} asks for one"));
        return Ok(());
    }
    for id in &seen.pins {
        let Some((namespace, name)) = id.split_once('/') else { continue };
        let Some(spec) = cluster_pins::get(client, namespace, name).await? else {
            found.notes.push(format!(
                "{server}: the pins {} are not there, and so no tool is known to be as it was; write them with pin",
                shown(id)
            ));
            continue;
        };
        let pins = ToolPins { namespace: namespace.to_owned(), name: name.to_owned(), spec };
        let before = found.drifted.len();
        // What is new and allowed is no drift.
        let is_minded = |tool: &&SeenDefinition| tool.drift.iter().any(|drift| drift.pins == *id);
        let is_pinned = |tool: &&SeenDefinition| pins.spec.tools.iter().any(|pinned| pinned.name == tool.definition.name);
        let compared = seen.tools.iter().filter(|tool| is_pinned(tool) || is_minded(tool));
        let now: Vec<PinnedTool> = compared.map(|tool| tool.definition.clone()).collect();
        found.add(&seen.server, &pins, &now);
        let told = found.drifted.get(before..).unwrap_or_default();
        // Another definition of the same name, or pins that the sidecar does not have yet.
        let untold: Vec<String> = seen
            .tools
            .iter()
            .filter(is_minded)
            .map(|tool| &tool.definition.name)
            .filter(|name| told.iter().all(|told| told.tool != **name))
            .map(|name| shown(name).into_owned())
            .collect();
        if !untold.is_empty() {
            found.notes.push(format!(
                "{server}: its sidecar says that these are not as pinned by {}, though what it saw last is: {}. It saw another definition of them too, or does not have the latest pins yet",
                shown(id),
                untold.join(", ")
            ));
        }
    }
    Ok(())
}
