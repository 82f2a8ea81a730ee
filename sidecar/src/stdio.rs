//! `toolweir-sidecar stdio`: governs a server that speaks on stdin and stdout, one message a line
//! (MCP 2025-11-25, Transports, "stdio").

//!
//! ```text
//! client ── relay ── server      relay, to_server: the lines, one writer for each side; lines: how they are read and written
//!             │
//!            gate                what happens to a message: governor, lists, requests under way (server_line: of a server)
//! ```
//!
//! [`keeper`] starts and ends the server's process.

pub mod asked_line;
pub mod gate;
pub mod keeper;
pub mod lines;
pub mod pipe_answers;
pub mod relay;

pub mod server_line;
pub mod to_server;

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};
use toolweir_engine::CompileOptions;

use self::{
    gate::{Gate, ToolListState},
    keeper::{STOPPING, ServerProcess},
    relay::{RelaySignals, relay},
};
use crate::{
    admin::{self, AdminState, Listener, LogLevelControl},
    approvals::{self, AskSettings, socket},
    control::state::{self, StateDir},
    counts::Counts,
    metrics::SidecarMetrics,
    pending::PendingRequests,
    run::govern,
    scrape::Scraper,
    seen_tools::keeper::{keep_tools, keep_tools_now},
    source::Urls,
};

/// The configuration of `stdio`.
#[derive(Clone)]
pub struct StdioConfig {
    /// The policy file or folder.
    pub policy: PathBuf,
    /// The server's name in the policy.
    pub server: String,
    /// The server's program and its arguments.
    pub command: Vec<String>,
    /// The address of metrics and health, if they are served.
    pub metrics_listen: Option<String>,
    /// The file for audit lines; else they go to stderr, since stdout is the protocol's.
    pub audit_log: Option<PathBuf>,
    /// The longest message, in bytes.
    pub longest: usize,
    /// The time for which the client may keep a list.
    pub list_ttl: Duration,
    /// The folder that keeps what a restart needs, if there is one. Several sidecars may share it.
    pub state: Option<PathBuf>,
    /// The most live counts that are kept.
    pub counters: usize,
    /// The pod, for expressions and scopes.
    pub options: CompileOptions,
    /// How people are asked for approval.
    pub approvals: AskSettings,
}

/// Runs the server until it or the client ends, or a signal comes. Gives the exit code of the server, once nobody is left of
/// it and of what it started ([`keeper`]).
///
/// # Errors
/// The policy is not in order or does not name the server, the socket of approvals cannot be made, or the program cannot be started.
pub async fn run(config: StdioConfig, log_level: LogLevelControl) -> anyhow::Result<u8> {
    let audit: Box<dyn std::io::Write + Send> = match &config.audit_log {
        None => Box::new(std::io::stderr()),
        Some(path) => {
            let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
            Box::new(file.with_context(|| format!("--audit-log {}", path.display()))?)
        }
    };
    let metrics = Arc::new(SidecarMetrics::new()?);
    // No call waits here: limits across pods are refused as the policy is read.
    let counts = Counts::of_pod(config.counters);
    let (governor, watch) = govern(&config.policy, Urls::Unused, metrics, counts, config.options.clone(), audit)?;
    if governor.in_force().server(&config.server).is_none() {
        anyhow::bail!(
            "no policy in {} names the server {}; nothing could be called there",
            config.policy.display(),
            config.server
        );
    }
    if governor.in_force().server(&config.server).is_some_and(|server| server.credential.is_some()) {
        tracing::warn!(
            server = config.server,
            "the policy's credential has no effect: the server is a program that the sidecar starts"
        );
    }
    if let Some(folder) = &config.state {
        governor.metrics.files.record_result("tools", "write", state::create(folder));
    }
    let state_dir = StateDir::new(config.state.clone());
    governor.restore_tools(&state_dir);
    governor.restore_approvals(&config.approvals, &state_dir, &approvals::file_of(&config.server));
    if let Some(address) = &config.metrics_listen {
        let listener = admin::bind(address, "--metrics-listen").await?;
        let (_, stopping) = tokio::sync::watch::channel(false);
        let scraper = Arc::new(Scraper::new(Arc::clone(&governor))?);
        let state = AdminState { governor: Arc::clone(&governor), scraper, capture: None, stopping, log_level };
        tokio::spawn(admin::serve(listener, Listener::Metrics, state));
    }
    tokio::spawn(watch.run(Arc::clone(&governor)));
    tokio::spawn(keep_tools(Arc::clone(&governor), state_dir.clone()));
    tokio::spawn(Arc::clone(governor.approvals()).keep());
    let _socket = socket::open(config.approvals.socket.as_ref(), governor.approvals()).await?;
    let (mut process, stdin, stdout) = ServerProcess::start(&config.command)?;
    let gate = Gate {
        governor: Arc::clone(&governor),
        server: config.server.clone(),
        list_ttl: config.list_ttl,
        under_way: PendingRequests::default(),
        lists: ToolListState::default(),
    };
    let signals = Arc::new(RelaySignals::default());
    let client = (tokio::io::stdin(), tokio::io::stdout());
    let relay = relay(Arc::new(gate), config.longest, client.0, client.1, stdin, stdout, Arc::clone(&signals));
    let done = supervise(&mut process, relay, &signals).await;
    keep_tools_now(&governor, &state_dir).await;
    governor.approvals().close().await;
    governor.audit().close();
    done
}

/// The time that a server may go on whose stdin or stdout has ended. Clients send SIGTERM 2 s after they closed stdin,
/// so this is for those that are gone.
const ENDING: Duration = Duration::from_secs(5);

/// The time that a client which told the sidecar to stop has for reading what is left, once the server has ended.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Runs a relay and watches over the server's process until that has ended. Gives its exit code.
async fn supervise(
    process: &mut ServerProcess,
    relay: impl Future<Output = std::io::Result<()>>,
    signals: &RelaySignals,
) -> anyhow::Result<u8> {
    let mut unix_signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?);
    let mut told = async || {
        tokio::select! {
            _ = unix_signals.0.recv() => {}
            _ = unix_signals.1.recv() => {}
            _ = unix_signals.2.recv() => {}
        }
    };
    let mut relay = std::pin::pin!(relay);
    let (mut relayed, mut asked, mut stopped, mut until, mut killed) = (None, false, false, None, None);
    let code = loop {
        tokio::select! {
            code = process.ended() => break code?,
            done = &mut relay, if relayed.is_none() => {
                // A client that reads no more is gone.
                let rest = if done.is_ok() { ENDING } else { Duration::ZERO };
                relayed = Some(done);
                until.get_or_insert(Instant::now() + rest);
            }
            () = signals.input.notified() => drop(until.get_or_insert(Instant::now() + ENDING)),
            () = told(), if !asked => {
                (asked, stopped, killed) = (true, true, Some(Instant::now() + STOPPING));
                signals.stop.notify_one();
                process.stop();
            }
            () = keeper::wait_until(until), if !stopped => {
                (stopped, killed) = (true, Some(Instant::now() + STOPPING));
                process.stop();
            }
            () = keeper::wait_until(killed) => {
                killed = None;
                process.kill();
            }
        }
    };
    signals.server.notify_one();
    let done = match relayed {
        Some(done) => done,
        // The client reads on as slowly as it likes, unless it said that it does not.
        None => tokio::select! {
            done = &mut relay => done,
            () = async {
                if !asked {
                    told().await;
                }
                tokio::time::sleep(LAST_WORDS).await;
            } => Ok(()),
        },
    };
    done.map(|()| code).map_err(Into::into)
}
