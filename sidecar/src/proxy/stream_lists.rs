//! Lists that a client has asked for, with what is needed to ask for their further pages.

use std::sync::Arc;

use http::{HeaderMap, Uri};

use super::budget::{Budget, HeldBytes};
use crate::{
    in_force::ServerInForce,
    lists::{ExpectedPages, LARGEST_REQUEST, ListRequests},
};

/// The headers and the place with which a client's request for a list was sent: with them further pages are asked for.
#[derive(Debug)]
pub struct PostContext {
    /// The client's headers.
    pub headers: HeaderMap,
    /// The URL at the server.
    pub url: Uri,
    /// The server.
    pub server: Arc<ServerInForce>,
    _room: Option<HeldBytes>,
}

impl PostContext {
    /// The context of a list that is being answered now.
    pub fn new(headers: &HeaderMap, url: &Uri, server: &Arc<ServerInForce>) -> Self {
        Self { headers: headers.clone(), url: url.clone(), server: Arc::clone(server), _room: None }
    }

    /// The same for a request that is kept until its answer comes. None where there is no room for it.
    pub fn kept(headers: &HeaderMap, url: &Uri, server: &Arc<ServerInForce>, budget: &Budget) -> Option<Self> {
        let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        let room = budget.try_hold(bytes + LARGEST_REQUEST)?;
        Some(Self { _room: Some(room), ..Self::new(headers, url, server) })
    }
}

/// The lists of an HTTP+SSE stream that are not answered yet.
#[derive(Debug, Default)]
pub struct StreamLists {
    /// Those that the client has asked for.
    pub asked: ListRequests<PostContext>,
    /// Those that the sidecar has asked for.
    pub expected: ExpectedPages,
}
