//! The credentials of all servers that have one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{runtime::Handle, sync::watch};
use toolweir_crds::Credential;

use super::{
    keeper::{Keeper, KeeperTools},
    server_credential::ServerCredential,
};

/// The credentials of all servers that have one. Policies that come into force find theirs here, with the tokens that are there.
#[derive(Debug)]
pub struct CredentialSet {
    tools: Arc<KeeperTools>,
    /// Where keepers run.
    runtime: Handle,
    current: Mutex<HashMap<String, Arc<ServerCredential>>>,
    report: watch::Sender<()>,
}

impl CredentialSet {
    /// A set without a credential, whose keepers run on the current runtime.
    pub fn new(tools: KeeperTools, runtime: Handle) -> Self {
        Self { tools: Arc::new(tools), runtime, current: Mutex::default(), report: watch::Sender::new(()) }
    }

    /// Looks after these credentials, each of a server, and after no other from now on. One that is the same as before goes on, with
    /// its token. Returns them by server.
    pub fn look_after<'a>(
        &self,
        credentials: impl Iterator<Item = (&'a str, &'a Credential)>,
    ) -> HashMap<String, Arc<ServerCredential>> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut *current);
        for (server, credential) in credentials {
            let of = match before.remove(server) {
                Some(of) if of.credential == *credential => of,
                replaced => {
                    // Its series end before those of the new one begin.
                    if let Some(of) = replaced {
                        self.retire(&of);
                    }
                    self.begin(server, credential)
                }
            };
            current.insert(server.to_owned(), of);
        }
        for of in before.values() {
            self.retire(of);
        }
        current.clone()
    }

    fn begin(&self, server: &str, credential: &Credential) -> Arc<ServerCredential> {
        let of = Arc::new(ServerCredential::new(server, credential.clone(), self.report.clone()));
        self.tools.metrics.begin(server, of.kind);
        self.runtime.spawn(Keeper::new(&of, Arc::clone(&self.tools)).run());
        of
    }

    /// Ends what looks after a credential, whoever still holds it.
    fn retire(&self, of: &ServerCredential) {
        of.retire(|| self.tools.metrics.end(&of.server, of.kind));
    }

    /// Returns a receiver that changes whenever the state of a credential does.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.report.subscribe()
    }
}
