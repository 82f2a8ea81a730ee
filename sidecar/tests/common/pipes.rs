//! A client and a server on pipes in memory, with the relay of `stdio` between them.

use std::sync::Arc;

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, ReadHalf, WriteHalf},
    task::JoinHandle,
};
use toolweir_engine::{CompileOptions, Memory};
use toolweir_sidecar::{
    counts::Counts,
    governor::Governor,
    metrics::SidecarMetrics,
    run,
    source::Urls,
    stdio::{
        gate::{Gate, ToolListState},
        relay::{RelaySignals, relay},
    },
};

use super::{
    folder::Folder,
    logs::{self, Log},
    metrics::Scrape,
    policy, within,
};

/// The longest message of the client.
pub const LONGEST: usize = 2000;

type Reader = tokio::io::Lines<BufReader<ReadHalf<DuplexStream>>>;

/// A client and a server with the relay between them.
pub struct Between {
    pub governor: Arc<Governor>,
    pub audit: Log,
    pub client: WriteHalf<DuplexStream>,
    pub to_client: Reader,
    pub server: WriteHalf<DuplexStream>,
    pub to_server: Reader,
    pub relay: JoinHandle<std::io::Result<()>>,
    pub ends: Arc<RelaySignals>,
    _folder: Folder,
}

/// A governor with the text of a policy.
pub fn governed(text: &str) -> (Folder, Arc<Governor>, Log) {
    logs::log();
    let folder = Folder::new();
    let path = folder.write("policy.yaml", text);
    let audit = Log::default();
    // A server on stdin and stdout needs no url.
    let counts = Counts::of_pod(Memory::COUNTERS);
    let metrics = Arc::new(SidecarMetrics::new().unwrap());
    let governed = run::govern(&path, Urls::Unused, metrics, counts, CompileOptions::default(), Box::new(audit.clone()));
    let (governor, _watch) = governed.unwrap();
    (folder, governor, audit)
}

/// A gate for the server `bank`.
pub fn gate(governor: &Arc<Governor>) -> Gate {
    Gate {
        governor: Arc::clone(governor),
        server: "bank".to_owned(),
        list_ttl: toolweir_sidecar::lists::TTL,
        under_way: toolweir_sidecar::pending::PendingRequests::default(),
        lists: ToolListState::default(),
    }
}

/// A policy for a server on pipes.
pub fn without_url(tools: &str) -> String {
    policy("X", tools).replace("    url: X\n", "")
}

impl Between {
    pub fn new(tools: &str) -> Self {
        Self::with(tools, 1 << 20)
    }

    /// With a pipe to the client that takes this many bytes.
    pub fn with(tools: &str, capacity: usize) -> Self {
        Self::started_with(&without_url(tools), capacity, |_| {})
    }

    /// With the text of a policy, and a gate that is another.
    pub fn started_with(policy: &str, capacity: usize, change: impl FnOnce(&mut Gate)) -> Self {
        let (folder, governor, audit) = governed(policy);
        let (client, our_client) = tokio::io::duplex(capacity);
        let (server, our_server) = tokio::io::duplex(1 << 20);
        let ((client_in, client_out), (server_out, server_in)) = (tokio::io::split(our_client), tokio::io::split(our_server));
        let ends = Arc::new(RelaySignals::default());
        let mut gate = gate(&governor);
        change(&mut gate);
        let gate = Arc::new(gate);
        let relay = tokio::spawn(relay(gate, LONGEST, client_in, client_out, server_in, server_out, Arc::clone(&ends)));
        let ((to_client, client), (to_server, server)) = (tokio::io::split(client), tokio::io::split(server));
        let (to_client, to_server) = (BufReader::new(to_client).lines(), BufReader::new(to_server).lines());
        Self { governor, audit, client, to_client, server, to_server, relay, ends, _folder: folder }
    }

    /// Sends bytes as the client.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within("the client's pipe", self.client.write_all(bytes.as_ref())).await.unwrap();
    }

    /// Sends a message as the client.
    pub async fn ask(&mut self, message: &str) {
        self.send(format!("{message}\n")).await;
    }

    /// The next message to the client.
    pub async fn answered(&mut self) -> Value {
        let line = within("an answer", self.to_client.next_line()).await.unwrap().unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// The next message to the server.
    pub async fn forwarded(&mut self) -> String {
        within("a message", self.to_server.next_line()).await.unwrap().unwrap()
    }

    /// Sends a message as the server, and gives what the client gets.
    pub async fn answer(&mut self, message: &str) -> String {
        within("the server's pipe", self.server.write_all(format!("{message}\n").as_bytes())).await.unwrap();
        within("the answer", self.to_client.next_line()).await.unwrap().unwrap()
    }

    pub fn counted(&self, method: &str, outcome: &str) -> f64 {
        let text = String::from_utf8(self.governor.metrics.registry.encode().unwrap()).unwrap();
        Scrape::parse(&text).sum("toolweir_requests_total", &[("server", "bank"), ("method", method), ("outcome", outcome)])
    }
}
