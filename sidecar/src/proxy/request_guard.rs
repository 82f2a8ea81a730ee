//! The count of a request, which none escapes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::Uri;
use toolweir_engine::{Denial, Operation};

use super::failure::{FailureOrigin, RequestFailure};
use crate::{
    governor::Governor,
    in_force::{InForce, ServerInForce},
    outcome::Outcome,
    record::{Arrival, Record},
};

/// A request on its way. Dropped, it is counted, so that none is missing when its client hangs up.
pub struct RequestGuard<'a> {
    governor: &'a Governor,
    /// The policies in force that hold for the request.
    pub in_force: Arc<InForce>,
    /// The server that the path names, if a policy does too.
    server: Option<Arc<ServerInForce>>,
    /// True if the client uses the server's own URL, not the sidecar's.
    pub captured: bool,
    /// The metrics' label `method`.
    pub method: &'static str,
    /// The time at which the request came.
    pub arrived: Arrival,
    /// The time spent waiting for others: the client's body, the server's answer.
    waited: Duration,
    /// The outcome of the request.
    pub outcome: Outcome,
}

impl<'a> RequestGuard<'a> {
    /// A request that has come just now, held to the policies of now.
    pub fn new(governor: &'a Governor) -> Self {
        Self {
            governor,
            in_force: arc_swap::Guard::into_inner(governor.in_force()),
            server: None,
            captured: false,
            method: "_none",
            arrived: Arrival::now(),
            waited: Duration::ZERO,
            outcome: Outcome::ClientGone,
        }
    }

    /// Holds the request to the policies of now instead.
    pub fn update_policies(&mut self) {
        self.in_force = arc_swap::Guard::into_inner(self.governor.in_force());
    }

    /// Counts the request for the server of this name from now on, if a policy names it.
    pub fn find_server(&mut self, name: &str) {
        self.server = self.in_force.server(name).cloned();
    }

    /// The request at its server.
    ///
    /// # Errors
    /// No policy names the server.
    pub fn at_server(&mut self) -> Result<ServerGuard<'_, 'a>, RequestFailure> {
        let server = self.server.clone().ok_or(RequestFailure::UnknownServer)?;
        Ok(ServerGuard { server, request: self, record: None })
    }

    /// Takes note that others were waited for, since this moment.
    pub fn waited_since(&mut self, before: Instant) {
        self.waited += before.elapsed();
    }

    /// Takes note that others were waited for, for so long.
    pub fn waited_for(&mut self, time: Duration) {
        self.waited += time;
    }

    /// Logs a failure without the request's content, and returns the outcome that it is counted as.
    pub fn log(&self, failure: &RequestFailure) -> Outcome {
        let server = self.server.as_ref().map_or("", |server| &server.name);
        let (method, outcome) = (self.method, failure.outcome());
        let (fault, retry, failure) = (failure.origin(), failure.retry(), failure.in_general());
        if fault == FailureOrigin::Client {
            tracing::info!(server, method, outcome = outcome.as_str(), failure, "request refused");
        } else {
            tracing::warn!(server, method, outcome = outcome.as_str(), ?fault, retry, failure, "request failed");
        }
        outcome
    }

    /// The denial of everything on the server, if there is one.
    pub fn closed(&self, name: &str) -> Option<Denial> {
        match self.server {
            None => Some(Denial::no_policy(name, Operation::tool(""))),
            Some(_) => self.in_force.engine.closed(name),
        }
    }
}

impl Drop for RequestGuard<'_> {
    fn drop(&mut self) {
        self.governor.count(self.server.as_deref(), self.method, self.outcome);
        if let Some(server) = self.server.as_ref().filter(|_| self.outcome != Outcome::ClientGone) {
            server.overhead.observe(self.arrived.instant.elapsed().saturating_sub(self.waited).as_secs_f64());
        }
    }
}

/// A request at the server that its path names.
pub struct ServerGuard<'g, 'a> {
    /// The server.
    pub server: Arc<ServerInForce>,
    /// The request.
    pub request: &'g mut RequestGuard<'a>,
    /// The record of a call, which whoever takes it finishes: what becomes of the call may show after the head of its answer.
    pub record: Option<Record>,
}

impl ServerGuard<'_, '_> {
    /// The server's URL.
    ///
    /// # Errors
    /// No policy has one.
    pub fn url(&self) -> Result<Uri, RequestFailure> {
        self.server.url.clone().ok_or_else(|| RequestFailure::NoUrl(self.server.name.clone()))
    }

    /// Returns true where the server may ask its client for anything, whatever it is.
    pub fn asks_are_free(&self) -> bool {
        self.request.in_force.engine.asks_are_free(&self.server.name)
    }

    /// The failure of a server whose answer cannot be passed on, and why.
    pub fn invalid(&self, why: String) -> RequestFailure {
        RequestFailure::Invalid(self.server.name.clone(), why)
    }

    /// Takes note that others were waited for, since this moment.
    pub fn waited_since(&mut self, before: Instant) {
        self.request.waited_since(before);
    }
}
