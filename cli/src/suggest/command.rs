//! The command: reads the tools of servers and what agents did, and suggests a policy.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use toolweir_crds::{bounds, check::server_url, text::escaped};

use super::{
    manifest::{PolicyFacts, ServerFacts, suggest},
    observations::{self, Observations},
    pods::{AskedPod, shared_labels},
    rules::ToolFacts,
};
use crate::{
    cluster::LazyClient,
    object_names::GivenNames,
    out_file::OutFile,
    pins::pinned::pins_of,
    table::shown,
    tools::{definition::ServerTools, limits::ReadLimits, secrets::without_url_secrets, source, source::ToolSource},
};

/// The options of the command.
#[derive(Args, Clone, Debug, Default)]
pub struct SuggestOptions {
    #[command(flatten)]
    source: ToolSource,
    /// URL of the server [default: that of the source, or of the pod's policies]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Name of the policy [default: that of the server]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Pod whose agent may go on as before: its tools and rates are what is allowed. Can be repeated for pods of one agent. Without a
    /// SOURCE, the tools of all servers that it called are read through its sidecar
    #[arg(long, value_name = "POD")]
    from: Vec<String>,
    /// File with a saved response of /observed of a sidecar (- is the standard input), in place of --from. Can be repeated
    #[arg(long, value_name = "FILE")]
    observed: Vec<PathBuf>,
    /// Also write pins of what the tools look like now, and hold the server to them
    #[arg(long)]
    pin: bool,
    #[command(flatten)]
    out: OutFile,
}

impl SuggestOptions {
    /// Where the manifest goes.
    pub fn out_file(&self) -> &OutFile {
        &self.out
    }

    /// The pod of a source POD SERVER.
    fn source_pod(&self) -> Option<&str> {
        match self.source.place.as_slice() {
            [pod, _] => Some(pod),
            _ => None,
        }
    }
}

/// Suggests a policy. Returns its manifest.
///
/// # Errors
/// The tools or what agents did cannot be read, or do not fit into a policy: one line that says why, and what to do.
pub async fn run(options: &SuggestOptions, cluster: &LazyClient, limits: &ReadLimits) -> anyhow::Result<String> {
    let SuggestOptions { source, url, name, from, observed: files, pin, out: _ } = options;
    let limits = &ReadLimits { others: true, ..*limits };
    if !source.is_given() && from.is_empty() {
        bail!("whose tools? give the URL of a server, a file with its tools, a command after --, POD SERVER, or --from POD");
    }
    let given = GivenNames { server: source.server.as_deref(), name: name.as_deref(), namespace: source.namespace.as_deref() };
    given.check()?;
    let mut observed = Observations::default();
    for file in files {
        observed.add(&observed_file(file, limits)?);
    }
    let (pods, namespace) = asked_pods(options, cluster, &mut observed).await?;
    let fits_use = !files.is_empty() || !from.is_empty();
    let servers = if source.is_given() {
        let found = source::read(source, cluster, limits).await?;
        vec![server_facts(found, &pods, source.origin(), *pin)?]
    } else {
        observed_servers(options, cluster, limits, &pods, &observed).await?
    };
    let servers = with_url(servers, url.as_deref())?;
    let named = || match servers.as_slice() {
        [only] => only.name.clone(),
        _ => pods.first().map(|pod| pod.pod.key.name.clone()).unwrap_or_default(),
    };
    let policy = PolicyFacts { name: name.clone().unwrap_or_else(named), namespace, pod_labels: shared_labels(&pods) };
    suggest(&policy, &servers, fits_use.then_some(&observed))
}

/// Asks the pods that the options name, and adds what was observed in those after `--from`. Returns them and the policy's namespace.
async fn asked_pods(
    options: &SuggestOptions,
    cluster: &LazyClient,
    observed: &mut Observations,
) -> anyhow::Result<(Vec<AskedPod>, Option<String>)> {
    let mut pods = Vec::new();
    let given = options.source.namespace.clone();
    if options.from.is_empty() && options.source_pod().is_none() {
        return Ok((pods, given));
    }
    let client = cluster.get().await?;
    let namespace = given.unwrap_or_else(|| client.default_namespace().to_owned());
    for name in &options.from {
        let pod = AskedPod::find(client, &namespace, name).await?;
        observed.add(&pod.observed(client).await?);
        pods.push(pod);
    }
    if let (Some(name), true) = (options.source_pod(), pods.is_empty()) {
        pods.push(AskedPod::find(client, &namespace, name).await?);
    }
    Ok((pods, Some(namespace)))
}

/// Reads the tools of all servers that were observed, or of the one that is named, through the first pod whose policies have it.
async fn observed_servers(
    options: &SuggestOptions,
    cluster: &LazyClient,
    limits: &ReadLimits,
    pods: &[AskedPod],
    observed: &Observations,
) -> anyhow::Result<Vec<ServerFacts>> {
    let names: Vec<&str> = match &options.source.server {
        Some(server) => vec![server],
        None => observed.servers().collect(),
    };
    if names.is_empty() {
        bail!(
            "no call was let through while it was observed; let the agent work first, under a policy in mode Audit for example"
        );
    }
    let mut servers = Vec::new();
    for name in names {
        let asked = pods.iter().find(|pod| pod.urls.contains_key(name)).or_else(|| pods.first()).context("no pod is named")?;
        let pod = &asked.pod.key.name;
        let through = ToolSource { place: vec![pod.clone(), name.to_owned()], server: None, ..options.source.clone() };
        let found = source::read(&through, cluster, limits)
            .await
            .with_context(|| format!("cannot list the tools of {}; give another SOURCE with --server {0}", shown(name)))?;
        servers.push(server_facts(found, pods, format!("the sidecar of pod {pod}"), options.pin)?);
    }
    Ok(servers)
}

fn server_facts(found: ServerTools, pods: &[AskedPod], origin: String, pin: bool) -> anyhow::Result<ServerFacts> {
    let pins = if pin { Some(pins_of(&found.name, &found.tools)?) } else { None };
    // What people give on the command line can hold a key, and a policy is kept where many read it.
    let query_left_out = found.url.as_deref().is_some_and(|url| url.contains(['?', '#']));
    let own = found.url.as_deref().map(without_url_secrets);
    let url = own.or_else(|| pods.iter().find_map(|pod| pod.urls.get(&found.name)).cloned());
    let facts = |tool: &crate::tools::definition::ListedTool| {
        let class = tool.classify();
        ToolFacts { name: tool.name().to_owned(), class: class.class, why: class.why() }
    };
    let tools = found.tools.iter().map(facts).collect();
    Ok(ServerFacts { name: found.name, url, query_left_out, origin, tools, others: found.others, pins })
}

/// Sets the url that is given, and checks all.
fn with_url(mut servers: Vec<ServerFacts>, url: Option<&str>) -> anyhow::Result<Vec<ServerFacts>> {
    if let Some(url) = url {
        let [only] = servers.as_mut_slice() else {
            bail!("--url is for one server, and these are {}; choose one with --server, or leave --url out", servers.len());
        };
        only.url = Some(url.to_owned());
        only.query_left_out = false;
    }
    for server in &servers {
        if let Some(url) = &server.url {
            server_url(url).map_err(|why| {
                let why = why.replace(&escaped(url, 80), &escaped(&without_url_secrets(url), 80));
                anyhow!("the url of {} {why}; give another with --url", shown(&server.name))
            })?;
        }
    }
    if servers.len() > bounds::SERVERS {
        bail!("a policy has room for {} servers, and {} were observed; choose one with --server", bounds::SERVERS, servers.len());
    }
    Ok(servers)
}

/// Reads a saved response of a sidecar.
fn observed_file(path: &Path, limits: &ReadLimits) -> anyhow::Result<toolweir_crds::observed::ObservedResponse> {
    let most = u64::try_from(limits.bytes).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::new();
    let read = if path.as_os_str() == "-" {
        io::stdin().lock().take(most).read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes))
    };
    let place = || format!("--observed {}", shown(&path.display().to_string()));
    read.map_err(|error| anyhow!("cannot be read: {error}; give the path of a saved response of /observed"))
        .with_context(place)?;
    if bytes.len() > limits.bytes {
        return Err(anyhow!("has more than {} bytes, which no sidecar writes", limits.bytes)).with_context(place);
    }
    observations::parse(&bytes).with_context(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(url: &str) -> ServerTools {
        ServerTools { name: "a".to_owned(), says_name: true, url: Some(url.to_owned()), tools: Vec::new(), others: None }
    }

    #[test]
    fn the_query_of_a_source_does_not_get_into_the_policy() {
        let facts = server_facts(found("https://a/mcp?key=s3cret"), &[], String::new(), false).unwrap();
        assert_eq!((facts.url.as_deref(), facts.query_left_out), (Some("https://a/mcp"), true));
        let asked = with_url(vec![facts], Some("https://a/mcp?key=1")).unwrap().remove(0);
        assert_eq!((asked.url.as_deref(), asked.query_left_out), (Some("https://a/mcp?key=1"), false));
        assert!(!server_facts(found("https://a/mcp"), &[], String::new(), false).unwrap().query_left_out);
    }

    #[test]
    fn a_url_that_does_not_fit_is_told_without_its_secrets() {
        let facts = server_facts(found("https://a/mcp"), &[], String::new(), false).unwrap();
        let error = with_url(vec![facts], Some("ftp://u:s3cret@a/?s3cret")).unwrap_err().to_string();
        assert!(
            error.starts_with("the url of a `ftp://a/` is not a URL of an MCP server") && !error.contains("s3cret"),
            "{error}"
        );
    }
}
