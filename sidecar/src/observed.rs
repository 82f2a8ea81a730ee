//! What agents really did: for each tool the calls that were let through, and the most of them in any minute, hour and day. From
//! that, `toolweir suggest --from` and `--observed` fit the limits of a policy.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use toolweir_crds::observed::{ObservedResponse, ObservedTool};
use toolweir_engine::{
    Amount, Timestamp,
    window::{Span, Usage},
};

use crate::audit;

/// The most tools that are kept, of all servers together.
pub const MOST_TOOLS: usize = 512;

/// The calls of the tools that were called, in bounded memory: at most [`MOST_TOOLS`] of them, each with three windows of the engine.
#[derive(Debug)]
pub struct ObservedCalls {
    since: SystemTime,
    began: Timestamp,
    servers: Mutex<ServerMap>,
    dropped: AtomicU64,
}

/// The tools of each server, by their names.
#[derive(Debug, Default)]
struct ServerMap {
    tools: HashMap<Box<str>, HashMap<Box<str>, Arc<ToolCalls>>>,
    count: usize,
}

impl ObservedCalls {
    /// Begins at a moment: of the calendar, and of the clock by which calls are recorded.
    pub fn new(since: SystemTime, began: Timestamp) -> Self {
        Self { since, began, servers: Mutex::default(), dropped: AtomicU64::new(0) }
    }

    /// Returns the record of a tool, which is new where there is none. None where there is no room for it.
    pub fn tool(&self, server: &str, tool: &str) -> Option<Arc<ToolCalls>> {
        let mut servers = self.lock();
        if let Some(known) = servers.tools.get(server).and_then(|tools| tools.get(tool)) {
            return Some(Arc::clone(known));
        }
        if servers.count >= MOST_TOOLS {
            return None;
        }
        servers.count += 1;
        let new = Arc::<ToolCalls>::default();
        servers.tools.entry(server.into()).or_default().insert(tool.into(), Arc::clone(&new));
        Some(new)
    }

    /// Counts a call that was let through and that no record keeps.
    pub fn drop_call(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// What was seen until now.
    pub fn response(&self, now: Timestamp) -> ObservedResponse {
        let mut tools: Vec<ObservedTool> = Vec::new();
        for (server, of_server) in &self.lock().tools {
            tools.extend(of_server.iter().map(|(tool, calls)| calls.observed(server, tool)));
        }
        tools.sort_by(|a, b| (&a.server, &a.tool).cmp(&(&b.server, &b.tool)));
        ObservedResponse {
            since: audit::timestamp(self.since),
            seconds: now.since(self.began).as_secs(),
            tools,
            dropped_calls: self.dropped.load(Ordering::Relaxed),
        }
    }

    fn lock(&self) -> MutexGuard<'_, ServerMap> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The calls of one tool.
#[derive(Debug, Default)]
pub struct ToolCalls(Mutex<ToolCounts>);

#[derive(Debug)]
struct ToolCounts {
    calls: u64,
    denied: u64,
    minute: Peak,
    hour: Peak,
    day: Peak,
}

impl Default for ToolCounts {
    fn default() -> Self {
        let of = |seconds| Peak::new(Duration::from_secs(seconds));
        Self { calls: 0, denied: 0, minute: of(60), hour: of(3600), day: of(86_400) }
    }
}

impl ToolCalls {
    /// Records a call that was let through.
    pub fn let_through(&self, at: Timestamp) {
        let mut counts = self.lock();
        counts.calls = counts.calls.saturating_add(1);
        counts.minute.add(at);
        counts.hour.add(at);
        counts.day.add(at);
    }

    /// Records a call that was denied.
    pub fn denied(&self) {
        let mut counts = self.lock();
        counts.denied = counts.denied.saturating_add(1);
    }

    fn observed(&self, server: &str, tool: &str) -> ObservedTool {
        let counts = self.lock();
        ObservedTool {
            server: server.to_owned(),
            tool: tool.to_owned(),
            calls: counts.calls,
            denied: counts.denied,
            peak_minute: counts.minute.calls(),
            peak_hour: counts.hour.calls(),
            peak_day: counts.day.calls(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, ToolCounts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The most calls in any window of one length, by the window with which limits count. So it is never less than what a limit of that
/// window would have counted, and no more than a window that is 1/64 longer holds.
#[derive(Debug)]
struct Peak {
    span: Span,
    usage: Usage,
    most: Amount,
}

impl Peak {
    fn new(length: Duration) -> Self {
        Self { span: Span::new(length), usage: Usage::default(), most: Amount::ZERO }
    }

    fn add(&mut self, at: Timestamp) {
        self.usage.take(self.span, at, Amount::ONE);
        self.most = self.most.max(self.usage.used(self.span, at));
    }

    fn calls(&self) -> u64 {
        self.most.millionths() / Amount::ONE.millionths()
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn observed() -> ObservedCalls {
        ObservedCalls::new(UNIX_EPOCH, Timestamp(5 * SECOND))
    }

    #[test]
    fn calls_are_counted_by_tool_in_the_order_of_their_names() {
        let observed = observed();
        for (server, tool, calls, denied) in [("bank", "pay", 3, 1), ("bank", "get", 1, 0), ("air", "zip", 0, 2)] {
            let record = observed.tool(server, tool).unwrap();
            (0..calls).for_each(|n| record.let_through(Timestamp(n * 70 * SECOND)));
            (0..denied).for_each(|_| record.denied());
        }
        let tool = |server: &str, tool: &str, calls, denied, peak_minute| ObservedTool {
            server: server.to_owned(),
            tool: tool.to_owned(),
            calls,
            denied,
            peak_minute,
            peak_hour: calls,
            peak_day: calls,
        };
        let golden = ObservedResponse {
            since: "1970-01-01T00:00:00.000Z".to_owned(),
            seconds: 145,
            tools: vec![tool("air", "zip", 0, 2, 0), tool("bank", "get", 1, 0, 1), tool("bank", "pay", 3, 1, 1)],
            dropped_calls: 0,
        };
        assert_eq!(observed.response(Timestamp(150 * SECOND)), golden);
    }

    #[test]
    fn there_is_room_for_so_many_tools_and_known_ones_stay() {
        let observed = observed();
        for tool in 0..MOST_TOOLS {
            assert!(observed.tool(if tool % 2 == 0 { "a" } else { "b" }, &tool.to_string()).is_some());
        }
        assert!(observed.tool("a", "new").is_none() && observed.tool("c", "0").is_none());
        observed.drop_call();
        observed.tool("a", "0").unwrap().let_through(Timestamp(0));
        let response = observed.response(Timestamp(0));
        assert_eq!((response.tools.len(), response.dropped_calls, response.tools[0].calls), (MOST_TOOLS, 1, 1));
    }

    /// The most calls in any span of this length: one that ends with a call has most.
    fn naive(calls: &[u64], length: u64) -> u64 {
        let within = |end: u64| calls.iter().filter(|at| **at <= end && **at + length > end).count() as u64;
        calls.iter().map(|end| within(*end)).max().unwrap_or(0)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// Never less than any minute, hour or day really had, and no more than one that is 1/64 longer. Steps of all sizes: many calls
        /// in a slice, and none for days.
        #[test]
        fn peaks_are_those_of_a_naive_model(
            start in 0..1_000_000 * SECOND,
            steps in proptest::collection::vec((0_u32..10, 0_u64..1_000_000), 1..200),
        ) {
            let record = ToolCalls::default();
            let (mut now, mut calls) = (start, Vec::new());
            for (scale, step) in steps {
                now += step * 10_u64.pow(scale);
                record.let_through(Timestamp(now));
                calls.push(now);
            }
            let seen = record.observed("s", "t");
            for (peak, seconds) in [(seen.peak_minute, 60), (seen.peak_hour, 3600), (seen.peak_day, 86_400)] {
                let length = seconds * SECOND;
                prop_assert!(peak >= naive(&calls, length), "{peak} in {seconds} s");
                prop_assert!(peak <= naive(&calls, length + length.div_ceil(64)), "{peak} in {seconds} s");
            }
            prop_assert_eq!(seen.calls, calls.len() as u64);
        }
    }
}
