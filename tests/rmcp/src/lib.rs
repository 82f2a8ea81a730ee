//! A server and a client made with rmcp, and the sidecar between them, all in one process.

use std::{
    collections::BTreeSet,
    fs, io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use rmcp::{
    ClientLifecycleMode, ClientServiceExt, RoleClient, ServerHandler,
    handler::server::wrapper::Parameters,
    model::{CallToolRequestParams, CallToolResult, ClientConfig, JsonObject, ServerCapabilities, ServerConfig},
    schemars::{self, JsonSchema},
    service::RunningService,
    tool, tool_handler, tool_router,
    transport::{
        StreamableHttpClientTransport,
        streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager},
    },
};
use serde::Deserialize;
use tokio::{net::TcpListener, task::JoinHandle};
use toolweir_engine::CompileOptions;
use toolweir_sidecar::{
    approvals::AskSettings,
    proxy::Limits,
    run::{self, PolicySource, RunConfig, Sidecar},
};

/// Lets this process speak TLS, before its first connection.
pub fn use_ring() {
    // It fails if there is a provider already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// The calls of tools, in the order in which the server saw them.
pub type CallLog = Arc<Mutex<Vec<String>>>;

/// The tools of the server.
#[derive(Clone, Debug)]
pub struct Tools(CallLog);

/// The argument of `echo`.
#[derive(Debug, Deserialize, JsonSchema)]
struct Text {
    text: String,
}

/// The arguments of `add`.
#[derive(Debug, Deserialize, JsonSchema)]
struct Two {
    a: i64,
    b: i64,
}

#[tool_router]
impl Tools {
    fn saw(&self, call: impl Into<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(call.into());
    }

    #[tool(description = "Says what it is told")]
    fn echo(&self, Parameters(Text { text }): Parameters<Text>) -> String {
        self.saw(format!("echo {text}"));
        text
    }

    #[tool(description = "Adds two numbers")]
    fn add(&self, Parameters(Two { a, b }): Parameters<Two>) -> String {
        self.saw(format!("add {a} {b}"));
        (a + b).to_string()
    }

    #[tool(description = "Must never run")]
    fn delete_everything(&self) -> String {
        self.saw("delete_everything");
        "deleted".to_owned()
    }

    #[tool(description = "Must never run either")]
    fn read_secret(&self) -> String {
        self.saw("read_secret");
        "secret".to_owned()
    }
}

#[tool_handler]
impl ServerHandler for Tools {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }
}

/// A server that listens on a port of its own.
#[derive(Debug)]
pub struct RmcpServer {
    /// The address on which it listens.
    pub address: SocketAddr,
    log: CallLog,
    sessions: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl RmcpServer {
    /// Starts a server.
    ///
    /// # Errors
    /// No port can be bound.
    pub async fn start(config: StreamableHttpServerConfig) -> io::Result<Self> {
        let log = CallLog::default();
        let tools = Tools(Arc::clone(&log));
        let sessions = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&sessions);
        let make = move || {
            count.fetch_add(1, Ordering::Relaxed);
            Ok(tools.clone())
        };
        let service = StreamableHttpService::new(make, Arc::new(LocalSessionManager::default()), config);
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = TowerToHyperService::new(service.clone());
                tokio::spawn(
                    async move { Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await },
                );
            }
        });
        Ok(Self { address, log, sessions, task })
    }

    /// Returns how many sessions it opened; without sessions, how many requests it saw.
    pub fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    /// The calls that it saw.
    pub fn calls(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for RmcpServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts a sidecar on a policy in a folder of its own, which lives as long as what is returned.
///
/// # Errors
/// The policy is not in order, or the sidecar cannot start.
pub async fn sidecar(policy: &str) -> anyhow::Result<(Sidecar, tempfile::TempDir)> {
    use_ring();
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("policy.yaml");
    fs::write(&file, policy)?;
    let config = RunConfig {
        source: PolicySource::Local(file),
        mcp_config: None,
        listen: "127.0.0.1:0".to_owned(),
        metrics_listen: "127.0.0.1:0".to_owned(),
        admin_listen: "127.0.0.1:0".to_owned(),
        upstream_ca: None,
        extra_roots: Vec::new(),
        state: None,
        upstream_proxy: None,
        capture: None,
        credentials: toolweir_sidecar::credentials::keys::KeyFolders::default(),
        limits: Limits::default(),
        counters: 1000,
        workers: 2,
        allowed_hosts: Vec::new(),
        drain: Duration::from_secs(5),
        shared_store: None,
        options: CompileOptions::default(),
        approvals: AskSettings::default(),
    };
    let sidecar = run::start(&config, Arc::new(|_| Ok("info".to_owned())), Box::new(io::sink())).await?;
    Ok((sidecar, folder))
}

/// A client with a connection.
#[derive(Debug)]
pub struct RmcpClient(RunningService<RoleClient, ClientConfig>);

impl RmcpClient {
    /// Connects to a server in the way that `lifecycle` says.
    ///
    /// # Errors
    /// The server cannot be reached, or no version can be agreed on.
    pub async fn connect(url: &str, lifecycle: ClientLifecycleMode) -> anyhow::Result<Self> {
        let transport = StreamableHttpClientTransport::from_uri(url);
        Ok(Self(ClientConfig::default().serve_with_lifecycle(transport, lifecycle).await?))
    }

    /// The protocol version that was agreed on.
    pub fn version(&self) -> String {
        self.0.peer_info().map(|info| info.protocol_version.to_string()).unwrap_or_default()
    }

    /// The names of the tools that it is shown.
    ///
    /// # Errors
    /// The request fails.
    pub async fn tools(&self) -> anyhow::Result<BTreeSet<String>> {
        Ok(self.0.list_all_tools().await?.into_iter().map(|tool| tool.name.into_owned()).collect())
    }

    /// Calls a tool.
    ///
    /// # Errors
    /// There is no result: a model would not learn why.
    pub async fn call(&self, tool: &str, arguments: serde_json::Value) -> anyhow::Result<ModelAnswer> {
        let arguments: JsonObject = serde_json::from_value(arguments)?;
        Ok(self.0.call_tool(CallToolRequestParams::new(tool.to_owned()).with_arguments(arguments)).await?.into())
    }

    /// Ends the session.
    ///
    /// # Errors
    /// The session cannot be ended in good order.
    pub async fn close(self) -> anyhow::Result<()> {
        self.0.cancel().await?;
        Ok(())
    }
}

/// The parts of a result that reach a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelAnswer {
    /// True if it is an error.
    pub is_error: bool,
    /// The text.
    pub text: String,
    /// The machine-readable part of a denial.
    pub denial: Option<serde_json::Value>,
}

impl From<CallToolResult> for ModelAnswer {
    fn from(result: CallToolResult) -> Self {
        let text = result.content.iter().filter_map(|part| part.as_text()).map(|part| part.text.as_str()).collect();
        let denial = result.meta.as_ref().and_then(|meta| meta.0.get("toolweir.dev/denial")).cloned();
        Self { is_error: result.is_error == Some(true), text, denial }
    }
}
