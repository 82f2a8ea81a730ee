//! Where tools are read from.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use ::http::HeaderMap;
use anyhow::{Context, anyhow, bail};
use clap::Args;
use kube::Client;
use reqwest::Url;
use rmcp::{
    ClientLifecycleMode,
    transport::{StreamableHttpClientTransport, streamable_http_client::StreamableHttpClientTransportConfig},
};

use tokio::time::timeout;

use super::{
    definition::{ServerTools, server_name},
    fault::SourceFault,
    file,
    http::{self, McpHttp},
    http_sse,
    interrupt::EndSignals,
    limits::ReadLimits,
    message::ReadState,
    pod::PodPort,
    secrets::{HeaderSecrets, without_url_secrets},
    session::{self, SessionTools},
    stdio,
};
use crate::{cluster::LazyClient, table::shown};

/// The source of tools, as arguments of a command.
#[derive(Args, Clone, Debug, Default)]
pub struct ToolSource {
    /// URL of a server (http:// or https://), file with a result of tools/list or with a registry's server.json (- is the standard input), or,
    /// through the sidecar of a pod, POD SERVER
    #[arg(value_name = "SOURCE", num_args = 0..=2)]
    pub place: Vec<String>,
    /// Command that starts a server on its standard input and output
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
    /// Name of the server in policies [default: made of what the server is called]
    #[arg(long, value_name = "NAME")]
    pub server: Option<String>,
    /// Header for every request to a URL, such as 'Authorization: Bearer ...'; can be repeated. It is never shown
    #[arg(long = "header", value_name = "NAME: VALUE")]
    pub headers: Vec<String>,
    /// File of certificates (PEM) that are trusted for https besides those of the system
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Namespace of the pod [default: that of the context]
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,
}

/// What the arguments mean.
#[derive(Clone, Debug, PartialEq, Eq)]
enum ChosenSource<'a> {
    Url(&'a str),
    File(&'a Path),
    Command(&'a [OsString]),
    Pod { pod: &'a str, server: &'a str },
}

/// What to give, for errors.
const SOURCES: &str = "give the URL of a server, a file with its tools, a command after --, or POD SERVER";

impl ToolSource {
    /// Returns true if a source is named at all.
    pub fn is_given(&self) -> bool {
        !self.place.is_empty() || !self.command.is_empty()
    }

    /// Returns the pod and the server of a source POD SERVER.
    pub fn pod_and_server(&self) -> Option<(&str, &str)> {
        match (self.place.as_slice(), self.command.as_slice()) {
            ([pod, server], []) => Some((pod.strip_prefix("pod/").unwrap_or(pod), server)),
            _ => None,
        }
    }

    /// Says where the tools are read. Arguments of a command, and the query of a URL, may be secret.
    pub fn origin(&self) -> String {
        match (self.place.as_slice(), self.command.first()) {
            ([pod, server], _) => format!("the sidecar of pod {pod}, server {server}"),
            ([place], _) if place == "-" => "the standard input".to_owned(),
            ([place], _) if place.contains("://") => without_url_secrets(place),
            ([place], _) => place.clone(),
            (_, command) => format!("the command {}", command.map(|program| program.to_string_lossy()).unwrap_or_default()),
        }
    }

    fn chosen(&self) -> anyhow::Result<ChosenSource<'_>> {
        let chosen = match (self.place.as_slice(), self.command.as_slice()) {
            ([], []) => bail!("whose tools? {SOURCES}"),
            ([], command) => ChosenSource::Command(command),
            (_, [_, ..]) => bail!("a command after -- stands alone; {SOURCES}"),
            ([url], []) if is_url(url) => ChosenSource::Url(url),
            ([other], []) if other.contains("://") => {
                bail!("{} is no URL with http:// or https://; {SOURCES}", shown(&without_url_secrets(other)))
            }
            ([file], []) => ChosenSource::File(Path::new(file)),
            ([pod, server], []) => ChosenSource::Pod { pod: pod.strip_prefix("pod/").unwrap_or(pod), server },
            _ => bail!("these are too many sources; {SOURCES}"),
        };
        if !matches!(chosen, ChosenSource::Url(_)) && (!self.headers.is_empty() || self.ca.is_some()) {
            bail!("--header and --ca are for a URL; leave them out, or give the URL of the server");
        }
        if matches!(chosen, ChosenSource::Url(url) if self.ca.is_some() && !has_scheme(url, "https://")) {
            bail!("--ca is for https; leave it out, or give a URL with https://");
        }
        Ok(chosen)
    }
}

fn is_url(text: &str) -> bool {
    has_scheme(text, "http://") || has_scheme(text, "https://")
}

fn has_scheme(text: &str, scheme: &str) -> bool {
    text.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme))
}

/// Reads the tools of a source. Only a pod needs the cluster.
///
/// # Errors
/// The tools cannot be read, or not all of them: one line that says why, and what to do.
pub async fn read(source: &ToolSource, cluster: &LazyClient, limits: &ReadLimits) -> anyhow::Result<ServerTools> {
    let mut found = match source.chosen()? {
        ChosenSource::File(path) => file::read(path, limits)?,
        ChosenSource::Command(command) => of_command(command, limits).await?,
        ChosenSource::Url(text) => {
            let (url, headers) = (http::parse_url(text)?, http::parse_headers(&source.headers)?);
            let state = ReadState::with_secrets(*limits, HeaderSecrets::of(&headers));
            let http = McpHttp::new(&url, headers, source.ca.as_deref(), &state)?;
            let listed = of_url(&http, &url).await.with_context(|| place(&url))?;
            let name = listed.name.as_deref().or(url.host_str()).unwrap_or_default();
            let says_name = listed.name.is_some();
            ServerTools {
                name: server_name(name),
                says_name,
                url: Some(text.to_owned()),
                tools: listed.tools,
                others: listed.others,
            }
        }
        ChosenSource::Pod { pod, server } => {
            let client = cluster.get().await?;
            let namespace = source.namespace.as_deref().unwrap_or(client.default_namespace());
            of_pod(client, namespace, pod, server, limits).await?
        }
    };
    if let Some(name) = &source.server {
        found.name.clone_from(name);
    }
    Ok(found)
}

/// Reads from a server at a URL, within the time for all. No error repeats the secrets.
async fn of_url(http: &McpHttp, url: &Url) -> anyhow::Result<SessionTools> {
    let state = http.state();
    let listed = in_time(state, Box::pin(over_http(http, url))).await;
    listed.map_err(|error| match error.downcast::<SourceFault>() {
        Ok(fault) => fault.without(&state.secrets).into(),
        Err(other) => anyhow!("{}", state.secrets.removed(&format!("{other:#}"))),
    })
}

async fn in_time(state: &ReadState, reading: impl Future<Output = anyhow::Result<SessionTools>>) -> anyhow::Result<SessionTools> {
    let whole = state.limits.whole;
    timeout(whole, reading).await.unwrap_or_else(|_| Err(SourceFault::Slow(whole).into()))
}

/// Reads over Streamable HTTP, or else over HTTP+SSE.
async fn over_http(http: &McpHttp, url: &Url) -> anyhow::Result<SessionTools> {
    let state = http.state();
    let mut config = StreamableHttpClientTransportConfig::with_uri(url.as_str()).reinit_on_expired_session(false);
    config.allow_stateless = true;
    let transport = StreamableHttpClientTransport::with_client(http.clone(), config);
    let refused = match session::list(transport, session::either_era(), state).await {
        Err(error) if error.downcast_ref::<SourceFault>().is_some_and(SourceFault::suggests_http_sse) => error,
        listed => return listed,
    };
    match http_sse::open(http, url).await? {
        Some(transport) => session::list(transport, ClientLifecycleMode::Initialize, state).await,
        None => Err(refused),
    }
}

/// Returns a URL without its query, which can hold a secret.
fn place(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    shown(url.as_str()).into_owned()
}

async fn of_command(command: &[OsString], limits: &ReadLimits) -> anyhow::Result<ServerTools> {
    let state = ReadState::new(*limits);
    // The command is in a process group of its own, so that what ends this program does not end it.
    let mut signals = EndSignals::listen()?;
    let transport = stdio::start(command, &state)?;
    let listed = tokio::select! {
        listed = in_time(&state, session::list(transport, session::either_era(), &state)) => listed?,
        interrupted = signals.next() => return Err(interrupted.into()),
    };
    let program = command.first().map(|program| program.to_string_lossy().into_owned()).unwrap_or_default();
    let name = server_name(listed.name.as_deref().unwrap_or(&program));
    Ok(ServerTools { name, says_name: listed.name.is_some(), url: None, tools: listed.tools, others: listed.others })
}

async fn of_pod(client: &Client, namespace: &str, pod: &str, server: &str, limits: &ReadLimits) -> anyhow::Result<ServerTools> {
    let state = ReadState::new(*limits);
    let port = PodPort::open(client, namespace, pod, &state).await?;
    let mut url = Url::parse(&format!("http://{}", port.address))?;
    url.path_segments_mut().map_err(|()| anyhow!("cannot open a local port"))?.push(server);
    let http = McpHttp::new(&url, HeaderMap::new(), None, &state)?;
    let listed = of_url(&http, &url).await.map_err(|error| match error.downcast_ref::<SourceFault>() {
        // The sidecar says who denies.
        Some(SourceFault::Refusal { message, code: 403, .. }) => {
            anyhow!(
                "{} kubectl toolweir explain -n {namespace} {pod} TOOL --server {} shows the servers that are named",
                shown(message),
                shown(server)
            )
        }
        _ => error,
    });
    let listed = listed.with_context(|| format!("server {} through pod {namespace}/{pod}", shown(server)))?;
    Ok(ServerTools { name: server.to_owned(), says_name: false, url: None, tools: listed.tools, others: listed.others })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_told_by_its_form() {
        let source = |place: &[&str], command: &[&str]| ToolSource {
            place: place.iter().map(|&text| text.to_owned()).collect(),
            command: command.iter().map(OsString::from).collect(),
            ..ToolSource::default()
        };
        assert_eq!(source(&["HTTPS://a"], &[]).chosen().unwrap(), ChosenSource::Url("HTTPS://a"));
        assert_eq!(source(&["http.json"], &[]).chosen().unwrap(), ChosenSource::File(Path::new("http.json")));
        assert_eq!(source(&["pod/a", "b"], &[]).chosen().unwrap(), ChosenSource::Pod { pod: "a", server: "b" });
        let command = source(&[], &["npx", "-y"]);
        assert_eq!(command.chosen().unwrap(), ChosenSource::Command(&command.command));
        for (source, why) in [
            (source(&[], &[]), "whose tools? give the URL"),
            (source(&["a"], &["b"]), "a command after -- stands alone"),
            (ToolSource { headers: vec!["a: b".to_owned()], ..source(&["a"], &[]) }, "--header and --ca are for a URL"),
        ] {
            assert!(source.chosen().unwrap_err().to_string().starts_with(why));
        }
    }
}
