//! What servers' lists said last of their tools: what decisions on classes and pins read.
//!
//! It is kept for each server, not for each session, and only where a policy of the server reads definitions. A page of a list is learned
//! entry by entry ([`book`]), each before it is decided whether it is shown; an entry whose text was read before costs a digest
//! ([`definition`]). Calls read it without a lock ([`tools_of_server`]). [`drift`] compares it with pins, [`kept`] is its form on disk, and
//! [`keeper`] writes that.

pub mod book;
pub mod definition;
pub mod drift;
pub mod keeper;
pub mod kept;
pub mod tools_of_server;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;
use toolweir_crds::{
    seen::SeenResponse,
    stream::{DriftReport, MOST_DRIFT},
};

pub use self::tools_of_server::ToolsOfServer;
use self::{book::PageChanges, tools_of_server::ToolCount};
use crate::{
    in_force::{InForce, ServerInForce},
    server_metrics::ServerMetrics,
};

/// The tools of all servers whose definitions policies read.
#[derive(Debug)]
pub struct SeenTools {
    /// By the servers' names.
    servers: Mutex<HashMap<String, Arc<ToolsOfServer>>>,
    count: Arc<ToolCount>,
    changed: watch::Sender<()>,
}

impl Default for SeenTools {
    fn default() -> Self {
        Self { servers: Mutex::default(), count: Arc::default(), changed: watch::Sender::new(()) }
    }
}

impl SeenTools {
    /// Gives the servers in force that policies read definitions of their tools. Call it before they come into force.
    pub fn attach(&self, in_force: &InForce) {
        let mut servers = self.servers();
        for server in in_force.servers().filter(|server| server.reads_definitions) {
            let tools = servers.entry(server.name.clone()).or_insert_with(|| Arc::new(ToolsOfServer::new(&self.count)));
            server.set_tools(Arc::clone(tools));
        }
    }

    /// Compares what is known with the pins that are in force now. Call it once they are.
    pub fn compare_anew(&self, in_force: &InForce, metrics: &ServerMetrics) {
        let servers: Vec<(String, Arc<ToolsOfServer>)> =
            self.servers().iter().map(|(name, tools)| (name.clone(), Arc::clone(tools))).collect();
        for (name, tools) in servers {
            match in_force.server(&name) {
                Some(server) if server.reads_definitions => {
                    set_drifted(in_force, server, metrics);
                    if !server.pins.is_empty() {
                        drift::tell_known(in_force, server, &tools);
                    }
                }
                // Its lists pass unread from now on, so that what is known of it grows old.
                Some(_) => drop(tools.list_changed()),
                // It may come back, and is listed again then.
                None => tools.forget(),
            }
            if in_force.server(&name).is_none_or(|server| server.pins.is_empty()) {
                let _ = metrics.tools_drifted.remove_label_values(&[&name]);
            }
        }
        self.changed.send_replace(());
    }

    /// A page of a server's list has passed, and has changed this.
    pub fn page_passed(&self, in_force: &InForce, server: &ServerInForce, changes: &PageChanges, metrics: &ServerMetrics) {
        let Some(tools) = server.tools_seen() else { return };
        if changes.is_full {
            tracing::warn!(
                server = server.name,
                "there is no room for all tools that the server lists beside those of others: the rest are of unknown class, and unverified"
            );
        }
        if !changes.new.is_empty() {
            drift::tell_new(in_force, server, tools, changes.new.iter().map(|name| &**name), metrics);
        }
        if changes.seen {
            set_drifted(in_force, server, metrics);
        }
        if changes.kept {
            self.changed.send_replace(());
        }
    }

    /// A server says that its list has changed.
    pub fn list_changed(&self, in_force: &InForce, server: &str, metrics: &ServerMetrics) {
        let Some(server) = in_force.server(server) else { return };
        if server.tools_seen().is_some_and(|tools| tools.list_changed()) {
            tracing::info!(
                server = server.name,
                "the server's list of tools has changed: its tools are unknown until they are listed"
            );
            set_drifted(in_force, server, metrics);
            self.changed.send_replace(());
        }
    }

    /// Returns a receiver that changes whenever something else is known.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Returns the tools that are not as they were pinned; nothing where no policy holds a server to pins.
    pub fn drift(&self, in_force: &InForce) -> Option<DriftReport> {
        if in_force.servers().all(|server| server.pins.is_empty()) {
            return None;
        }
        let of = |server: &Arc<ServerInForce>| server.tools_seen().map(|tools| drift::of_server(in_force, server, tools));
        let mut drift: Vec<_> = in_force.servers().filter_map(of).flatten().collect();
        drift.sort_by(|a, b| (&a.server, &a.pins, &a.tool).cmp(&(&b.server, &b.pins, &b.tool)));
        drift.truncate(MOST_DRIFT);
        Some(DriftReport { drift })
    }

    /// Returns what is known of all tools.
    pub fn response(&self, in_force: &InForce) -> SeenResponse {
        let of = |server: &Arc<ServerInForce>| server.tools_seen().map(|tools| drift::seen_of_server(in_force, server, tools));
        let mut servers: Vec<_> = in_force.servers().filter_map(of).collect();
        servers.sort_by(|a, b| a.server.cmp(&b.server));
        SeenResponse { servers }
    }

    fn servers(&self) -> MutexGuard<'_, HashMap<String, Arc<ToolsOfServer>>> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Computes `toolweir_tools_drifted` of a server anew.
fn set_drifted(in_force: &InForce, server: &ServerInForce, metrics: &ServerMetrics) {
    if let Some(tools) = server.tools_seen().filter(|_| !server.pins.is_empty()) {
        let drifted = drift::count_drifted(in_force, server, tools);
        metrics.tools_drifted.with_label_values(&[&server.name]).set(i64::try_from(drifted).unwrap_or(i64::MAX));
    }
}
