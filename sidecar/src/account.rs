//! The count and the audit line of a request whose answer arrives elsewhere than in its own HTTP response.

use std::sync::Arc;

use crate::{governor::Governor, in_force::ServerInForce, outcome::Outcome, record::Record};

/// The count of a request and the audit line of a call. Dropped, both are written, so that none is missing, whatever ends
/// the request.
#[derive(Debug)]
pub struct Account {
    count: Option<Count>,
    record: Option<Record>,
    outcome: Outcome,
}

/// The labels under which a request is counted.
#[derive(Debug)]
struct Count {
    governor: Arc<Governor>,
    server: Option<Arc<ServerInForce>>,
    method: &'static str,
}

impl Account {
    /// The account of a request that is counted and, if it is a call, recorded at its end.
    pub fn new(
        governor: &Arc<Governor>,
        server: Option<&Arc<ServerInForce>>,
        method: &'static str,
        record: Option<Record>,
    ) -> Self {
        let count = Count { governor: Arc::clone(governor), server: server.cloned(), method };
        Self { count: Some(count), record, outcome: Outcome::ClientGone }
    }

    /// The account of a call that is counted elsewhere.
    pub fn of_call(record: Record) -> Self {
        Self { count: None, record: Some(record), outcome: Outcome::ClientGone }
    }

    /// Sets what became of the request, and closes the account.
    pub fn finish(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if let Some(Count { governor, server, method }) = self.count.take() {
            governor.count(server.as_deref(), method, self.outcome);
        }
        if let Some(record) = self.record.take() {
            record.finish(self.outcome);
        }
    }
}
