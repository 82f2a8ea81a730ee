//! Sources of tools for tests, and what is read from them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{fs, path::PathBuf, time::Duration};

use toolweir_cli::{
    cluster::LazyClient,
    tools::{
        definition::{ListedTool, ServerTools},
        limits::ReadLimits,
        source::{ToolSource, read},
    },
};

use super::mcp_server::McpServer;

pub const LIMITS: ReadLimits = ReadLimits {
    pages: 1000,
    tools: 10_000,
    others: false,
    bytes: 16 * 1024 * 1024,
    answer: Duration::from_secs(30),
    whole: Duration::from_secs(300),
};
/// Short, so that silence is soon told.
pub const IMPATIENT: ReadLimits = ReadLimits { answer: Duration::from_millis(500), ..LIMITS };

pub fn at(place: &[&str]) -> ToolSource {
    ToolSource { place: place.iter().map(|&text| text.to_owned()).collect(), ..ToolSource::default() }
}

pub fn command(words: &[&str]) -> ToolSource {
    ToolSource { command: words.iter().map(Into::into).collect(), ..ToolSource::default() }
}

/// A shell that runs a script.
pub fn shell(script: &str) -> ToolSource {
    command(&["sh", "-c", script])
}

pub async fn found(source: &ToolSource, limits: ReadLimits) -> Result<ServerTools, String> {
    let found = read(source, &LazyClient::default(), &limits).await;
    let found = found.map_err(|error| format!("{error:#}"));
    if let Err(error) = &found {
        assert!(!error.contains('\n'), "{error}");
    }
    found
}

pub async fn of(server: &McpServer) -> Result<ServerTools, String> {
    found(&at(&[&server.url()]), LIMITS).await
}

pub fn names(found: &ServerTools) -> Vec<&str> {
    found.tools.iter().map(ListedTool::name).collect()
}

/// A file that is gone at the end.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("toolweir-tools-{}-{name}", std::process::id()));
        fs::write(&path, text).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Returns true of a process that is there, and has not ended.
pub fn alive(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.rsplit(')').next().unwrap().trim().starts_with('Z'))
}
