//! Keeps what was seen of tools on disk, so that a restart forgets no drift.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    os::unix::fs::OpenOptionsExt,
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use tokio::{task::spawn_blocking, time::sleep};

use super::{
    SeenTools, ToolsOfServer,
    kept::{KeptServer, KeptServers},
};
use crate::{control::state::StateDir, files::FileMetrics, governor::Governor};

/// The file.
pub const TOOLS: &str = "tools.json";
/// The file that is locked while it is written: several sidecars of stdio servers can share a folder.
const LOCK: &str = ".tools.lock";
/// The largest file, in bytes.
const LARGEST: usize = 32 * 1024 * 1024;
/// The time for which changes gather before they are written.
const GATHER: Duration = Duration::from_secs(1);
/// The time for which another sidecar may hold the lock.
const PATIENCE: Duration = Duration::from_secs(2);

impl SeenTools {
    /// Takes over what an earlier run kept. A file that is damaged, or none of a sidecar's, is as one that is not there.
    pub fn restore(&self, state: &StateDir, metrics: &FileMetrics) {
        let kept = metrics.record_result("tools", "read", state.sealed::<KeptServers>(TOOLS, LARGEST));
        let Some((kept, _)) = kept.flatten() else { return };
        let Some(read) = metrics.record_result("tools", "read", kept.read(Instant::now())) else { return };
        for (server, tools) in read {
            let mut servers = self.servers();
            let of = servers.entry(server).or_insert_with(|| Arc::new(ToolsOfServer::new(&self.count)));
            of.restore(tools);
        }
    }

    /// Writes what has changed since it was last written. What the file has of other servers stays.
    pub fn keep(&self, state: &StateDir, metrics: &FileMetrics) {
        let servers = self.servers();
        let unsaved = servers.iter().filter(|(_, tools)| tools.take_unsaved());
        let unsaved: Vec<(String, Arc<ToolsOfServer>)> =
            unsaved.map(|(server, tools)| (server.clone(), Arc::clone(tools))).collect();
        drop(servers);
        if unsaved.is_empty() {
            return;
        }
        let kept = write(state, &unsaved);
        if metrics.record_result("tools", "write", kept).is_none() {
            for (_, tools) in &unsaved {
                tools.set_unsaved();
            }
        }
    }
}

fn write(state: &StateDir, unsaved: &[(String, Arc<ToolsOfServer>)]) -> Result<(), Box<dyn std::error::Error>> {
    let Some(folder) = state.folder() else { return Ok(()) };
    let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(folder.join(LOCK))?;
    lock_within(&lock, PATIENCE)?;
    // What cannot be read there was told at the start, and is replaced.
    let others = state.sealed::<KeptServers>(TOOLS, LARGEST).ok().flatten().map(|(kept, _)| kept).unwrap_or_default();
    let mut kept = others.with(unsaved.iter().map(|(server, tools)| KeptServer::new(server, tools)).collect());
    if serde_json::to_vec(&kept)?.len() > LARGEST {
        kept.drop_texts();
    }
    Ok(state.keep_sealed(TOOLS, &kept, SystemTime::now())?)
}

fn lock_within(lock: &File, patience: Duration) -> io::Result<()> {
    let until = Instant::now() + patience;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < until => thread::sleep(Duration::from_millis(20)),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Writes what is seen of tools after each change, for as long as it runs.
pub async fn keep_tools(governor: Arc<Governor>, state: StateDir) {
    let mut changes = governor.tool_changes();
    while changes.changed().await.is_ok() {
        sleep(GATHER).await;
        changes.mark_unchanged();
        keep_tools_now(&governor, &state).await;
    }
}

/// Writes what has changed since it was last written.
pub async fn keep_tools_now(governor: &Arc<Governor>, state: &StateDir) {
    let (keeping, state) = (Arc::clone(governor), state.clone());
    if let Err(error) = spawn_blocking(move || keeping.keep_tools(&state)).await {
        tracing::error!(%error, "what was seen of tools could not be written");
    }
}
