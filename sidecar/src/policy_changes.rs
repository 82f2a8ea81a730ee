//! Waiting for other policies of one server.

use std::sync::Arc;

use arc_swap::Guard;
use tokio::sync::watch;

use crate::{governor::Governor, in_force::InForce};

/// Waits for other policies of one server.
#[derive(Debug)]
pub struct PolicyChanges {
    governor: Arc<Governor>,
    server: String,
    replaced: watch::Receiver<()>,
    before: Arc<InForce>,
}

impl PolicyChanges {
    /// Watches the policies of a server from now on.
    pub fn watch(governor: &Arc<Governor>, server: &str) -> Self {
        let replaced = governor.replacements();
        Self {
            governor: Arc::clone(governor),
            server: server.to_owned(),
            replaced,
            before: Guard::into_inner(governor.in_force()),
        }
    }

    /// Waits until other policies govern the server than at the last time. May be cancelled.
    pub async fn next(&mut self) {
        // The sender lives as long as the governor.
        while self.replaced.changed().await.is_ok() {
            let now = Guard::into_inner(self.governor.in_force());
            let before = std::mem::replace(&mut self.before, now);
            if !before.governs_alike(&self.before, &self.server) {
                return;
            }
        }
        std::future::pending::<()>().await;
    }
}
