//! Connections on which the sidecar shows credentials.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use rustls::ClientConfig;

use super::upstream::{UpstreamClient, UpstreamOptions};
use crate::credentials::material::ReadyCredential;

/// Connections that show a certificate, and the certificate.
type CertifiedClient = (Weak<ReadyCredential>, UpstreamClient);

/// One worker's connections to servers with a credential. They are apart from the others: who resolves the names is another, and no
/// agent's request goes over a connection that shows a certificate without its policy.
#[derive(Clone, Debug)]
pub struct CredentialedClients {
    options: UpstreamOptions,
    /// Those on which a header shows it.
    plain: UpstreamClient,
    /// Those on which a certificate does, by server.
    certified: Arc<Mutex<HashMap<String, CertifiedClient>>>,
}

impl CredentialedClients {
    /// Without a connection yet.
    pub fn new(options: UpstreamOptions) -> Self {
        Self { plain: UpstreamClient::new(&options), options, certified: Arc::default() }
    }

    /// The connections on which a header shows it.
    pub fn plain(&self) -> &UpstreamClient {
        &self.plain
    }

    /// The connections to a server on which a certificate shows it: that of `tls`, of the credential `ready`.
    pub fn showing(&self, tls: &Arc<ClientConfig>, server: &str, ready: &Arc<ReadyCredential>) -> UpstreamClient {
        let mut certified = self.certified.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |of: &Weak<ReadyCredential>| std::ptr::eq(of.as_ptr(), Arc::as_ptr(ready));
        if let Some((_, client)) = certified.get(server).filter(|(of, _)| same(of)) {
            return client.clone();
        }
        certified.retain(|_, (of, _)| of.strong_count() > 0);
        let client = UpstreamClient::new(&UpstreamOptions { tls: Arc::clone(tls), ..self.options.clone() });
        certified.insert(server.to_owned(), (Arc::downgrade(ready), client.clone()));
        client
    }
}
