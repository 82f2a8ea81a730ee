//! Lists that the sidecar asks for by itself: a call whose decision depends on a definition that is not known waits for one. For each
//! server one is under way at a time, whatever the transport, and a tool that its server does not list makes few of them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout_at,
};

use crate::{
    governor::Governor,
    in_force::InForce,
    lists::{PageSource, list_all},
    outcome::ListingEnd,
};

/// The time for which a call waits for such a list, the wait for others included, unless said otherwise.
pub const WAIT: Duration = Duration::from_secs(10);
/// The time for which a server is not listed again for tools that its last list did not have.
const REST: Duration = Duration::from_secs(5);
/// The time for which a server is not listed again after a list of it that failed.
const REST_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// The last list of a server that the sidecar asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LastListing(Option<(Instant, u64, Duration)>);

impl LastListing {
    /// A list has ended now. `changes` is how often its server had said before it began that its list changed.
    pub fn set_ended(&mut self, end: ListingEnd, now: Instant, changes: u64) {
        let rest = if end == ListingEnd::Complete { REST } else { REST_AFTER_FAILURE };
        self.0 = Some((now, changes, rest));
    }

    /// Returns true where no other list is asked for now: the last one is not long ago, and the server has not said that it changed since.
    pub fn rests(&self, now: Instant, changes: u64) -> bool {
        self.0.is_some_and(|(at, before, rest)| before == changes && now.saturating_duration_since(at) < rest)
    }
}

/// The lists that the sidecar asks servers for by itself.
#[derive(Debug)]
pub struct OwnLists {
    wait: Duration,
    /// Of servers that policies name.
    servers: Mutex<HashMap<String, Arc<ServerTurns>>>,
}

/// The turns of those that want a list of one server.
#[derive(Debug)]
struct ServerTurns {
    turn: Arc<Semaphore>,
    last: Mutex<LastListing>,
}

impl Default for OwnLists {
    fn default() -> Self {
        Self::new(WAIT)
    }
}

impl OwnLists {
    /// Lists for which a call waits for so long.
    pub fn new(wait: Duration) -> Self {
        Self { wait, servers: Mutex::default() }
    }

    /// The time for which a call waits.
    pub fn wait(&self) -> Duration {
        self.wait
    }

    fn of(&self, server: &str) -> Arc<ServerTurns> {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turns) = servers.get(server) {
            return Arc::clone(turns);
        }
        let turns = Arc::new(ServerTurns { turn: Arc::new(Semaphore::new(1)), last: Mutex::default() });
        servers.insert(server.to_owned(), Arc::clone(&turns));
        turns
    }
}

impl ServerTurns {
    fn rests(&self, now: Instant, changes: u64) -> bool {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).rests(now, changes)
    }
}

/// The tool for which a list is wanted.
#[derive(Clone, Copy, Debug)]
pub struct SoughtTool<'a> {
    /// The server's name.
    pub server: &'a str,
    /// The tool's name.
    pub tool: &'a str,
}

impl SoughtTool<'_> {
    /// Returns true where the decision on a call of it needs a list: it depends on what the server says of the tool, and nothing is
    /// known of that.
    pub fn is_needed(&self, in_force: &InForce) -> bool {
        in_force.server(self.server).is_some_and(|server| server.reads_definitions)
            && in_force.seen(self.server, self.tool).is_none()
            && in_force.engine.depends_on_definition(self.server, self.tool)
    }
}

impl OwnLists {
    /// Lists a server's tools, all pages of them, as long as what it says of a tool is not known. `request` makes the message for the
    /// first page, of an id; nothing where none can be made. Who finds another list under way waits for that and looks again. Ends at `until` at the latest; what is known then,
    /// the governor knows. Dropped, it lets the next one have its turn.
    pub async fn look(
        &self,
        governor: &Governor,
        sought: SoughtTool<'_>,
        request: impl Fn(&str) -> Option<Vec<u8>>,
        pages: &mut impl PageSource,
        until: Instant,
    ) {
        let turns = self.of(sought.server);
        if turns.rests(Instant::now(), governor.list_changes(sought.server)) {
            return;
        }
        let Ok(Ok(turn)) = timeout_at(until.into(), Arc::clone(&turns.turn).acquire_owned()).await else { return };
        // Meanwhile another may have listed it. Who has waited for most of its time asks no more: what it would leave behind is another
        // request without an answer.
        let (changes, now) = (governor.list_changes(sought.server), Instant::now());
        let is_late = until.saturating_duration_since(now) < self.wait / 2;
        if is_late || !sought.is_needed(&governor.in_force()) || turns.rests(now, changes) {
            return;
        }
        let mut listing = OwnListing { governor, server: sought.server, end: ListingEnd::Failed, _turn: turn };
        listing.end = list_all(request, pages, until.into()).await;
        turns.last.lock().unwrap_or_else(PoisonError::into_inner).set_ended(listing.end, Instant::now(), changes);
    }
}

/// A list that is under way. Dropped, it is counted, so that none is missing when the client hangs up for which it is made.
struct OwnListing<'a> {
    governor: &'a Governor,
    server: &'a str,
    end: ListingEnd,
    _turn: OwnedSemaphorePermit,
}

impl Drop for OwnListing<'_> {
    fn drop(&mut self) {
        let (server, outcome) = (self.server, self.end.as_str());
        self.governor.metrics.servers.own_lists.with_label_values(&[server, outcome]).inc();
        match self.end {
            ListingEnd::Complete => tracing::info!(server, outcome, "the sidecar listed the server's tools by itself"),
            _ => tracing::warn!(
                server,
                outcome,
                "the sidecar could not list the server's tools by itself; calls of tools that are not known are denied where policies read definitions"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_listed_again_after_a_rest_or_where_its_list_has_changed() {
        let start = Instant::now();
        let mut last = LastListing::default();
        assert!(!last.rests(start, 0));
        last.set_ended(ListingEnd::Complete, start, 1);
        for (after, changes, rests) in [(0, 1, true), (4999, 1, true), (5000, 1, false), (10, 2, false)] {
            assert_eq!(last.rests(start + Duration::from_millis(after), changes), rests, "{after} {changes}");
        }
        last.set_ended(ListingEnd::Complete, start + Duration::from_secs(7), 2);
        assert!(last.rests(start + Duration::from_secs(8), 2));
        last.set_ended(ListingEnd::Failed, start, 2);
        assert!(last.rests(start + Duration::from_millis(999), 2) && !last.rests(start + Duration::from_secs(1), 2));
    }
}
