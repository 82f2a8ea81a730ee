//! `toolweir pin`: what the tools of a server look like now, as `MCPToolPins`.

use clap::Args;
use toolweir_crds::{MCPToolPinsSpec, PinnedTool};

use super::{
    manifest::{ManifestName, pins_manifest},
    pinned::{add_hidden, pins_of},
    seen,
};
use crate::{
    cluster::LazyClient,
    object_names::GivenNames,
    out_file::OutFile,
    tools::{
        limits::ReadLimits,
        source::{self, ToolSource},
    },
};

/// The options of the command.
#[derive(Args, Clone, Debug, Default)]
pub struct PinOptions {
    #[command(flatten)]
    source: ToolSource,
    /// Name of the pins [default: that of the server]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    out: OutFile,
}

impl PinOptions {
    /// Where the manifest goes.
    pub fn out_file(&self) -> &OutFile {
        &self.out
    }
}

/// Reads tools and pins them. Returns the manifest.
///
/// # Errors
/// The tools cannot be read, or pins cannot hold them: one line that says why, and what to do.
pub async fn pin(options: &PinOptions, cluster: &LazyClient, limits: &ReadLimits) -> anyhow::Result<String> {
    let PinOptions { source, name, out: _ } = options;
    let names = GivenNames { server: source.server.as_deref(), name: name.as_deref(), namespace: source.namespace.as_deref() };
    names.check()?;
    let spec = read(source, cluster, limits).await?.pins;
    let namespace = match source.pod_and_server() {
        Some(_) if source.namespace.is_none() => Some(cluster.get().await?.default_namespace().to_owned()),
        _ => source.namespace.clone(),
    };
    let name = ManifestName { name: name.as_deref().unwrap_or(&spec.server), namespace: namespace.as_deref() };
    pins_manifest(&name, &spec, &source.origin())
}

/// The tools of a source, as pins.
#[derive(Clone, Debug)]
pub struct ReadTools {
    /// The tools, and a name for the server.
    pub pins: MCPToolPinsSpec,
    /// True if the name is made of what the server calls itself.
    pub says_name: bool,
}

/// Reads the tools of a source as pins: of a pod, also those that its sidecar has seen and hides.
///
/// # Errors
/// As [`source::read`], and where pins cannot hold the tools.
pub async fn read(source: &ToolSource, cluster: &LazyClient, limits: &ReadLimits) -> anyhow::Result<ReadTools> {
    let found = source::read(source, cluster, limits).await?;
    let mut pins = pins_of(&found.name, &found.tools)?;
    if let Some((pod, server)) = source.pod_and_server() {
        let client = cluster.get().await?;
        let namespace = source.namespace.as_deref().unwrap_or(client.default_namespace());
        // The sidecar has just seen the list.
        let (_, response) = seen::ask(client, namespace, pod).await?;
        let of_server = response.unwrap_or_default().servers.into_iter().filter(|seen| seen.server == server);
        let hidden = of_server.flat_map(|seen| seen.tools).map(|tool| tool.definition);
        add_hidden(&mut pins, hidden.collect::<Vec<PinnedTool>>())?;
    }
    Ok(ReadTools { pins, says_name: found.says_name })
}
