//! A session with a server, by the official SDK: which protocol it speaks, and the pages of its list.

use std::{collections::HashSet, time::Duration};

use anyhow::{anyhow, bail};
use rmcp::{
    ClientLifecycleMode, ClientServiceExt, RoleClient,
    model::{
        ClientCapabilities, ClientConfig, ClientRequest, ErrorData, Implementation, ListPromptsRequest,
        ListResourceTemplatesRequest, ListResourcesRequest, ListToolsRequest, PaginatedRequestParams, ProtocolVersion,
    },
    service::{ClientInitializeError, PeerRequestOptions, RunningService, ServiceError},
    transport::Transport,
};
use serde_json::Value;
use tokio::time::timeout;

use super::{
    definition::{ListedTool, ToolCollector},
    fault::SourceFault,
    message::{self, ReadState},
    other_lists::{NameCollector, OtherList, OtherLists},
};
use crate::{cluster::chain, table::shown};

/// The time in which a session is ended.
const GOODBYE: Duration = Duration::from_secs(5);

/// What a server lists.
#[derive(Debug)]
pub struct SessionTools {
    /// What the server calls itself, if it does.
    pub name: Option<String>,
    /// Its tools.
    pub tools: Vec<ListedTool>,
    /// What else it lists, where that is to be read.
    pub others: Option<OtherLists>,
}

/// A list of a server.
#[derive(Clone, Copy, Debug)]
struct ServerList {
    /// The member of a result that has it.
    member: &'static str,
    method: &'static str,
    request: fn(PaginatedRequestParams) -> ClientRequest,
}

const TOOLS: ServerList = ServerList {
    member: "tools",
    method: "tools/list",
    request: |params| ClientRequest::ListToolsRequest(ListToolsRequest::with_param(params)),
};
const PROMPTS: ServerList = ServerList {
    member: "prompts",
    method: "prompts/list",
    request: |params| ClientRequest::ListPromptsRequest(ListPromptsRequest::with_param(params)),
};
const RESOURCES: ServerList = ServerList {
    member: "resources",
    method: "resources/list",
    request: |params| ClientRequest::ListResourcesRequest(ListResourcesRequest::with_param(params)),
};
const TEMPLATES: ServerList = ServerList {
    member: "resourceTemplates",
    method: "resources/templates/list",
    request: |params| ClientRequest::ListResourceTemplatesRequest(ListResourceTemplatesRequest::with_param(params)),
};

/// Asks whether a server speaks 2026-07-28, and else for a session of an earlier version.
pub fn either_era() -> ClientLifecycleMode {
    ClientLifecycleMode::Auto {
        preferred_versions: vec![ProtocolVersion::V_2026_07_28],
        legacy_version: Some(ProtocolVersion::LATEST_WITH_INITIALIZE),
    }
}

/// Opens a session and lists all tools.
///
/// # Errors
/// The server cannot be talked to, or its list cannot be read whole. A [`SourceFault`] is the root of what went wrong on the way.
pub async fn list<T>(transport: T, lifecycle: ClientLifecycleMode, state: &ReadState) -> anyhow::Result<SessionTools>
where
    T: Transport<RoleClient> + 'static,
{
    let config = ClientConfig::new(ClientCapabilities::default(), Implementation::new("toolweir", env!("CARGO_PKG_VERSION")));
    let started = timeout(state.limits.answer, config.serve_with_lifecycle(transport, lifecycle)).await;
    let mut session = match started {
        Ok(Ok(session)) => session,
        Ok(Err(error)) => return Err(state.faults.take().map_or_else(|| not_started(&error), Into::into)),
        Err(_) => return Err(state.faults.take().unwrap_or(SourceFault::Silent(state.limits.answer)).into()),
    };
    // What was noted on the way to a version that both speak is no fault.
    state.faults.take();
    let listed = tools(&session, state).await;
    let others = match &listed {
        Ok(_) if state.limits.others => Some(other_lists(&session, state).await),
        _ => None,
    };
    let _ = session.close_with_timeout(GOODBYE).await;
    let tools = listed?;
    let name = session.peer_info().and_then(|info| info.server_info.as_ref().map(|server| server.name.clone()));
    Ok(SessionTools { name, tools, others })
}

async fn tools(session: &RunningService<RoleClient, ClientConfig>, state: &ReadState) -> anyhow::Result<Vec<ListedTool>> {
    let capabilities = session.peer_info().map(|info| info.capabilities.clone()).unwrap_or_default();
    if capabilities.tools.is_none() {
        bail!("the server has no tools: it does not declare the capability; no policy on tools is needed for it");
    }
    let mut tools = ToolCollector::default();
    pages(session, TOOLS, state, |definitions| tools.add(definitions, &state.limits)).await?;
    Ok(tools.finish())
}

/// Reads what the server lists beside tools. What it cannot list is no fault of the whole.
async fn other_lists(session: &RunningService<RoleClient, ClientConfig>, state: &ReadState) -> OtherLists {
    let capabilities = session.peer_info().map(|info| info.capabilities.clone()).unwrap_or_default();
    let names = async |list: ServerList, key: &'static str, has: bool| {
        if !has {
            return OtherList::None;
        }
        let mut names = NameCollector::new(key, state.limits.tools);
        match pages(session, list, state, |items| names.add(&items)).await {
            Ok(()) => OtherList::Names(names.finish()),
            Err(error) => OtherList::Unread(state.secrets.removed(&format!("{error:#}"))),
        }
    };
    let has_resources = capabilities.resources.is_some();
    OtherLists {
        prompts: names(PROMPTS, "name", capabilities.prompts.is_some()).await,
        resources: names(RESOURCES, "uri", has_resources).await,
        templates: names(TEMPLATES, "uriTemplate", has_resources).await,
    }
}

/// Reads all pages of a list, and gives the items of each to `add`.
async fn pages(
    session: &RunningService<RoleClient, ClientConfig>,
    list: ServerList,
    state: &ReadState,
    mut add: impl FnMut(Vec<Value>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (mut cursors, mut cursor) = (HashSet::new(), None);
    for _ in 0..state.limits.pages {
        let Value::Object(mut page) = page(session, list, cursor.take(), state).await? else { return Err(no_list(list)) };
        match page.remove(list.member) {
            Some(Value::Array(items)) => add(items)?,
            _ => return Err(no_list(list)),
        }
        match page.remove("nextCursor") {
            None | Some(Value::Null) => return Ok(()),
            Some(Value::String(next)) if next.is_empty() => return Ok(()),
            Some(Value::String(next)) => {
                if !cursors.insert(next.clone()) {
                    bail!(
                        "the server's list goes in circles: it gives the cursor {} twice; the server must be mended",
                        cut(&state.secrets.removed(&next))
                    );
                }
                cursor = Some(next);
            }
            Some(other) => bail!(
                "the server gives {} for a cursor; the server must be mended",
                cut(&state.secrets.removed(&other.to_string()))
            ),
        }
    }
    bail!("the server's list has more than {} pages, and no agent can use so many; the server must be mended", state.limits.pages)
}

fn cut(text: &str) -> String {
    format!("`{}`", shown(text).chars().take(40).collect::<String>())
}

fn no_list(list: ServerList) -> anyhow::Error {
    anyhow!("the server answers {} with something else than a list of {}", list.method, list.member)
}

/// Requests one page.
async fn page(
    session: &RunningService<RoleClient, ClientConfig>,
    list: ServerList,
    cursor: Option<String>,
    state: &ReadState,
) -> anyhow::Result<Value> {
    let params = PaginatedRequestParams::default().with_cursor(cursor);
    let request = (list.request)(params);
    let asked = async {
        let options = PeerRequestOptions::with_timeout(state.limits.answer);
        session.send_cancellable_request(request, options).await?.await_response().await
    };
    match asked.await {
        Ok(result) => message::listed(result).ok_or_else(|| no_list(list)),
        Err(error) => Err(state.faults.take().map_or_else(|| not_listed(list, &error), Into::into)),
    }
}

fn not_listed(list: ServerList, error: &ServiceError) -> anyhow::Error {
    match error {
        ServiceError::McpError(error) => refused(list.method, error),
        ServiceError::Timeout { timeout } => SourceFault::Silent(*timeout).into(),
        other => SourceFault::Broken(chain(other)).into(),
    }
}

fn not_started(error: &ClientInitializeError) -> anyhow::Error {
    match error {
        ClientInitializeError::LegacyFallbackFailed { fallback, .. } => not_started(fallback),
        ClientInitializeError::JsonRpcError(error) => refused("initialize", error),
        ClientInitializeError::NoCompatibleProtocolVersion { server_supported, .. } => {
            let versions: Vec<String> = server_supported.iter().map(ToString::to_string).collect();
            anyhow!("the server speaks no version of MCP that is known here, but {}", cut(&versions.join(", ")))
        }
        ClientInitializeError::ExpectedInitResponse(_)
        | ClientInitializeError::ExpectedInitResult(_)
        | ClientInitializeError::ConflictInitResponseId(..)
        | ClientInitializeError::UncorrelatedErrorResponse { .. } => {
            anyhow!("the server answers `initialize` with something else than its result; check that it is an MCP server")
        }
        other => SourceFault::Broken(chain(other)).into(),
    }
}

fn refused(method: &'static str, error: &ErrorData) -> anyhow::Error {
    SourceFault::Refusal { method, message: error.message.to_string(), code: error.code.0 }.into()
}
