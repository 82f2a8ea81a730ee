//! The state of the proxy.

use std::sync::Arc;

use tokio::sync::watch;

use super::{
    answer_rooms::ServerAnswers, budget::Budget, cancel::CancellableCalls, clients::Clients,
    credentialed_clients::CredentialedClients, legacy::LegacyStreams, limits::Limits, oauth::Described, sessions::Sessions,
    through::UpstreamProxy, upstream::UpstreamClient,
};
use crate::{approvals::room::WaitingRoom, capture::Capture, governor::Governor, own_lists::OwnLists};

/// The state that all workers share.
#[derive(Debug)]
pub struct ProxyState {
    /// The policies in force and the record of decisions.
    pub governor: Arc<Governor>,
    /// The bounds.
    pub limits: Limits,
    /// Room for bodies.
    pub budget: Budget,
    /// The open connections of clients.
    pub clients: Arc<Clients>,
    /// Open streams of the HTTP+SSE transport.
    pub streams: LegacyStreams,
    /// Sessions in which clients are told that lists have changed.
    pub sessions: Sessions,
    /// Calls of Streamable HTTP that hold places.
    pub calls: CancellableCalls,
    /// Room for answers to servers in the names of clients.
    pub server_answers: ServerAnswers,
    /// Room for calls that wait for a person.
    pub waiting: WaitingRoom,
    /// Lists that the sidecar asks for by itself.
    pub own_lists: OwnLists,
    /// Names under which the sidecar may be reached besides local ones.
    pub allowed_hosts: Vec<String>,
    /// The places at which servers said that their authorization is described.
    pub described: Described,
    /// The proxy through which servers are reached, if there is one.
    pub upstream_proxy: Option<UpstreamProxy>,
    /// What captured connections need, where there are any.
    pub capture: Option<Arc<Capture>>,
    /// Turns true when the sidecar stops.
    pub stopping: watch::Receiver<bool>,
}

/// The proxy of one worker. Its functions stand with the steps of a request, in the files beside this one.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// The state that all workers share.
    pub state: Arc<ProxyState>,
    /// This worker's connections to servers.
    pub client: UpstreamClient,
    /// This worker's connections to servers that have a credential.
    pub credentialed: CredentialedClients,
}
