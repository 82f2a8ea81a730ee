//! A sidecar in this process, on ports that are free.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;
use toolweir_engine::{CompileOptions, Memory};
use toolweir_sidecar::{
    approvals::AskSettings,
    credentials::keys::KeyFolders,
    governor::Governor,
    proxy::Limits,
    run::{self, PolicySource, RunConfig},
};

use super::{
    client::{Answer, Ask, Http},
    folder::Folder,
    logs::{self, Log},
    metrics::Scrape,
    until, within,
};

pub struct Sidecar {
    pub address: SocketAddr,
    pub metrics: SocketAddr,
    pub admin: SocketAddr,
    pub governor: Arc<Governor>,
    pub folder: Folder,
    running: run::Sidecar,
    audit: Log,
}

/// The configuration of a sidecar for a test.
pub fn config(policy: &Path) -> RunConfig {
    from(PolicySource::Local(policy.to_owned()))
}

/// The same, with policies from somewhere else.
pub fn from(source: PolicySource) -> RunConfig {
    let free = || "127.0.0.1:0".to_owned();
    RunConfig {
        source,
        mcp_config: None,
        listen: free(),
        metrics_listen: free(),
        admin_listen: free(),
        extra_roots: Vec::new(),
        state: None,
        upstream_ca: None,
        upstream_proxy: None,
        capture: None,
        credentials: KeyFolders::default(),
        limits: Limits::default(),
        counters: Memory::COUNTERS,
        workers: 2,
        allowed_hosts: Vec::new(),
        drain: Duration::from_secs(5),
        shared_store: None,
        options: CompileOptions::default(),
        approvals: AskSettings::default(),
    }
}

impl Sidecar {
    /// Starts one with the text of a policy.
    pub async fn start(policy: &str) -> Self {
        Self::with(policy, |_| {}).await
    }

    /// Starts one that is told something else, too.
    pub async fn with(policy: &str, change: impl FnOnce(&mut RunConfig)) -> Self {
        let folder = Folder::new();
        let path = folder.write("policy.yaml", policy);
        Self::at(folder, path, change).await
    }

    /// Starts one with policies that are somewhere in a folder.
    pub async fn at(folder: Folder, policy: PathBuf, change: impl FnOnce(&mut RunConfig)) -> Self {
        let mut config = config(&policy);
        change(&mut config);
        Self::run(folder, &config).await
    }

    /// Starts one that is told all this. The folder lives as long as it does.
    pub async fn run(folder: Folder, config: &RunConfig) -> Self {
        logs::log();
        let audit = Log::default();
        let running = run::start(config, Arc::new(|_| Ok("info".to_owned())), Box::new(audit.clone())).await;
        let running = running.unwrap_or_else(|error| panic!("{error:#}"));
        Self {
            address: running.proxy.address,
            metrics: running.metrics,
            admin: running.admin,
            governor: Arc::clone(&running.governor),
            folder,
            running,
            audit,
        }
    }

    /// Sends a request over HTTP/1.1.
    pub async fn ask(&self, ask: &Ask) -> Answer {
        ask.over(Http::One, self.address).await
    }

    /// Posts a message to the server `bank`, and gives the JSON of its answer.
    pub async fn post(&self, body: &str) -> Value {
        self.ask(&Ask::post(body)).await.json()
    }

    /// Posts a call, and gives the reason of its denial; `none` when it went through.
    pub async fn reason(&self, body: &str) -> String {
        let answer = self.post(body).await;
        if let Some(reason) = answer.pointer("/result/_meta/toolweir.dev~1denial/reason") {
            return reason.as_str().unwrap().to_owned();
        }
        assert_eq!(answer["result"]["isError"], false, "{answer}");
        "none".to_owned()
    }

    pub async fn scrape(&self) -> Scrape {
        let answer = Ask::get().to("/metrics").over(Http::One, self.metrics).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        Scrape::parse(&answer.text())
    }

    /// The requests with this outcome so far.
    pub async fn counted(&self, outcome: &str) -> f64 {
        self.scrape().await.sum("toolweir_requests_total", &[("outcome", outcome)])
    }

    /// The audit log, once it has this many lines.
    pub async fn audit(&self, lines: usize) -> Vec<Value> {
        until("the audit lines", async || self.audit.text().lines().count() >= lines).await;
        let text = self.audit.text();
        let read: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(read.len(), lines, "{text}");
        read
    }

    pub fn audit_text(&self) -> String {
        self.audit.text()
    }

    /// Stops it. True when all that was under way was finished.
    pub async fn stop(self, limit: Duration) -> bool {
        within("the stop", self.running.stop(limit)).await
    }
}
