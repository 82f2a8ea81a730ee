//! What agents did, as their sidecars tell it: of several pods, the largest peaks.

use std::collections::BTreeMap;

use anyhow::{anyhow, bail};
use toolweir_crds::observed::{ObservedResponse, ObservedTool};
use toolweir_engine::case;

use crate::{table::shown, tools::strict_json};

/// A window, and its length in seconds.
pub const WINDOWS: [(&str, u64); 3] = [("minute", 60), ("hour", 3600), ("day", 86_400)];

/// The calls of a tool that were let through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeenCalls {
    /// All of them, of all pods.
    pub calls: u64,
    /// The most that one pod had in each of [`WINDOWS`].
    pub peaks: [u64; 3],
    /// The time that every pod which called it was observed, in seconds.
    pub seconds: u64,
}

/// What agents did in one or more pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observations {
    /// The number of pods.
    pub pods: usize,
    /// The time that was observed, in seconds: that of the pod with most.
    pub seconds: u64,
    /// That of the pod with least.
    pub least_seconds: u64,
    /// Calls that no tool here has.
    pub dropped: u64,
    servers: BTreeMap<String, BTreeMap<String, SeenCalls>>,
}

impl Observations {
    /// Adds what was seen in one more pod.
    pub fn add(&mut self, response: &ObservedResponse) {
        self.least_seconds = if self.pods == 0 { response.seconds } else { self.least_seconds.min(response.seconds) };
        self.pods += 1;
        self.seconds = self.seconds.max(response.seconds);
        self.dropped = self.dropped.saturating_add(response.dropped_calls);
        for tool in response.tools.iter().filter(|tool| tool.calls > 0) {
            let first = SeenCalls { seconds: response.seconds, ..SeenCalls::default() };
            let seen = self.servers.entry(tool.server.clone()).or_default().entry(tool.tool.clone()).or_insert(first);
            // The peak of a pod says nothing of a window that is longer than it was observed.
            seen.seconds = seen.seconds.min(response.seconds);
            seen.calls = seen.calls.saturating_add(tool.calls);
            for (peak, more) in seen.peaks.iter_mut().zip(peaks(tool)) {
                *peak = more.max(*peak);
            }
        }
    }

    /// The servers on which calls were let through, in order.
    pub fn servers(&self) -> impl Iterator<Item = &str> {
        self.servers.keys().map(String::as_str)
    }

    /// The tools of a server of which calls were let through, in order.
    pub fn tools(&self, server: &str) -> impl Iterator<Item = (&str, SeenCalls)> {
        self.servers.get(server).into_iter().flatten().map(|(tool, seen)| (tool.as_str(), *seen))
    }

    /// What a limit of an entry for this tool would have counted: calls of names in another case count, too.
    pub fn counted(&self, server: &str, tool: &str) -> SeenCalls {
        let mut found = self.tools(server).filter(|(name, _)| case::same_but_for_case(name, tool)).map(|(_, seen)| seen);
        let mut counted = found.next().unwrap_or_default();
        for seen in found {
            counted.seconds = counted.seconds.min(seen.seconds);
            counted.calls = counted.calls.saturating_add(seen.calls);
            for (peak, more) in counted.peaks.iter_mut().zip(seen.peaks) {
                *peak = peak.saturating_add(more);
            }
        }
        counted
    }
}

fn peaks(tool: &ObservedTool) -> [u64; 3] {
    [tool.peak_minute, tool.peak_hour, tool.peak_day]
}

/// Reads the answer of `GET /observed`, which may have been kept in a file.
///
/// # Errors
/// It has another form; the error says what, and what to give.
pub fn parse(bytes: &[u8]) -> anyhow::Result<ObservedResponse> {
    read(bytes).map_err(|why| {
        anyhow!("is not what a sidecar observed: {why}; save it in the pod with `curl http://127.0.0.1:15000/observed`")
    })
}

/// Reads the answer of `GET /observed`.
///
/// # Errors
/// It has another form.
pub fn read(bytes: &[u8]) -> anyhow::Result<ObservedResponse> {
    let value = strict_json::parse(bytes)?;
    // Every field has a default, so that versions can differ; but without these it is something else.
    for field in ["since", "seconds", "tools"] {
        if value.get(field).is_none() {
            bail!("it has no `{field}`");
        }
    }
    let response: ObservedResponse = serde_json::from_value(value)?;
    for tool in &response.tools {
        if tool.server.is_empty() || tool.tool.is_empty() {
            bail!("a tool has no `server` or no `tool`");
        }
        let [minute, hour, day] = peaks(tool);
        if tool.calls > 0 && !(1 <= minute && minute <= hour && hour <= day && day <= tool.calls) {
            bail!("the peaks of `{}` do not fit to its calls", shown(&tool.tool));
        }
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn response(seconds: u64, tools: &[(&str, &str, u64, [u64; 3])]) -> ObservedResponse {
        let tool = |(server, tool, calls, [peak_minute, peak_hour, peak_day]): &(&str, &str, u64, [u64; 3])| ObservedTool {
            server: (*server).to_owned(),
            tool: (*tool).to_owned(),
            calls: *calls,
            denied: 1,
            peak_minute: *peak_minute,
            peak_hour: *peak_hour,
            peak_day: *peak_day,
        };
        ObservedResponse { seconds, tools: tools.iter().map(tool).collect(), dropped_calls: 2, ..ObservedResponse::default() }
    }

    #[test]
    fn of_several_pods_the_largest_peaks_count() {
        let mut seen = Observations::default();
        seen.add(&response(50, &[("a", "x", 9, [3, 9, 9]), ("b", "denied_only", 0, [0, 0, 0])]));
        seen.add(&response(90, &[("a", "x", 7, [5, 7, 7]), ("a", "X", 1, [1, 1, 1]), ("c", "y", 1, [1, 1, 1])]));
        assert_eq!((seen.pods, seen.seconds, seen.least_seconds, seen.dropped), (2, 90, 50, 4));
        assert_eq!(seen.servers().collect::<Vec<_>>(), ["a", "c"]);
        let x = SeenCalls { calls: 16, peaks: [5, 9, 9], seconds: 50 };
        assert_eq!(seen.tools("a").collect::<Vec<_>>(), [("X", SeenCalls { calls: 1, peaks: [1, 1, 1], seconds: 90 }), ("x", x)]);
        // A limit of an entry holds in any case.
        assert_eq!(seen.counted("a", "x"), SeenCalls { calls: 17, peaks: [6, 10, 10], seconds: 50 });
        assert_eq!(seen.counted("b", "x"), SeenCalls::default());
    }

    #[test]
    fn what_is_something_else_is_told() {
        let tool = json!({"server": "s", "tool": "t", "calls": 3, "peakMinute": 2, "peakHour": 3, "peakDay": 3});
        let whole = |tools: serde_json::Value| json!({"since": "2026-01-01T00:00:00Z", "seconds": 5, "tools": tools}).to_string();
        assert_eq!(parse(whole(json!([tool])).as_bytes()).unwrap().tools[0].peak_hour, 3);
        for (text, why) in [
            ("{".to_owned(), "is not what a sidecar observed: EOF while parsing"),
            ("[]".to_owned(), "is not what a sidecar observed: it has no `since`"),
            (json!({"tools": []}).to_string(), "is not what a sidecar observed: it has no `since`"),
            (whole(json!({})), "is not what a sidecar observed: invalid type: map, expected a sequence"),
            (whole(json!([{"tool": "t", "calls": 1}])), "is not what a sidecar observed: a tool has no `server`"),
            (
                whole(json!([{"server": "s", "tool": "t", "calls": 1}])),
                "is not what a sidecar observed: the peaks of `t` do not fit",
            ),
            (whole(json!([{"server": "s", "tool": "t", "calls": -1}])), "is not what a sidecar observed: invalid value"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(why) && error.contains("; save it in the pod with `curl "), "{error}");
        }
    }
}
