//! Tools that are not as they were pinned, as Kubernetes events of their `MCPToolPins`: one for each tool and what changed of it.
//! Plain data and functions; [`crate::events`] writes the events.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use data_encoding::HEXLOWER;
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;
use toolweir_crds::{
    API_VERSION, ToolPart,
    seen::PartChange,
    stream::{DriftReport, MOST_DRIFT},
};

use crate::{
    event_notice::{EventNotice, EventObject, EventType},
    index::{Index, PodKey, PreparedSnapshot},
    pins::PinsKey,
    pins_status::tool_shown,
};

/// After this time the same drift is told anew: the API server has forgotten the event by then.
const FORGET: Duration = Duration::from_secs(60 * 60);
/// The most drifts that are kept in mind. What goes beyond is counted, and not written.
const MOST: usize = 10_000;
/// The most of them that are of the same pins: a server can name as many tools as it likes.
const MOST_OF_PINS: usize = 64;
/// The most that are written in a round.
const ROUND: usize = 25;

/// A tool that a sidecar reported as not being as it was pinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriftedTool {
    /// The pins.
    pub pins: PinsKey,
    /// Their uid.
    pub uid: String,
    /// Their generation: pins that were written anew are others.
    pub generation: i64,
    /// The server.
    pub server: String,
    /// The tool, as its server writes it.
    pub tool: String,
    /// The parts that changed; none for a tool that is not pinned.
    pub changes: Vec<PartChange>,
    /// A pod whose sidecar saw it.
    pub pod: PodKey,
}

impl DriftedTool {
    /// Returns a name for what changed: the same for all sidecars that see it, and for all replicas.
    fn digest(&self) -> String {
        let mut changes = self.changes.clone();
        changes.sort_by_key(|changed| changed.part);
        let parts: Vec<&str> = changes.iter().flat_map(|changed| [changed.part.as_str(), changed.change.as_str()]).collect();
        let told = serde_json::json!([self.uid, self.generation, self.server, self.tool, parts]).to_string();
        HEXLOWER.encode(ring::digest::digest(&ring::digest::SHA256, told.as_bytes()).as_ref().get(..8).unwrap_or_default())
    }

    fn notice(&self, digest: &str, time: Timestamp) -> EventNotice {
        let Self { pins, server, pod, .. } = self;
        let tool = tool_shown(&self.tool);
        let changes: Vec<String> =
            self.changes.iter().map(|changed| format!("{} ({})", changed.part, changed.change.as_str())).collect();
        let what = match changes.as_slice() {
            [] => "is not pinned".to_owned(),
            changes => format!("is not as it was pinned: {}", changes.join(", ")),
        };
        let name: String = pins.name.chars().take(230).collect();
        EventNotice {
            regarding: EventObject {
                api_version: API_VERSION,
                kind: "MCPToolPins",
                namespace: pins.namespace.clone(),
                name: pins.name.clone(),
                uid: self.uid.clone(),
            },
            name: format!("{}.{digest}", name.trim_end_matches(['.', '-'])),
            event_type: EventType::Warning,
            reason: "ToolDrifted",
            message: format!("Tool {tool} on server {server} {what}. The sidecar of pod {pod} saw it."),
            first: time,
            last: time,
            count: 1,
        }
    }
}

/// Returns the tools of a report of which the policies of its pod ask, and whose pins are there.
pub fn drifted(index: &Index, current: &PreparedSnapshot, pod: &PodKey, report: &DriftReport) -> Vec<DriftedTool> {
    let known = report.drift.iter().take(MOST_DRIFT).filter_map(|drift| {
        let mut pinned = current.pinned.values().flatten();
        let pinned = pinned.find(|pinned| pinned.server == drift.server && pinned.pins.to_string() == drift.pins)?;
        let entry = index.pins(&pinned.pins)?;
        Some(DriftedTool {
            pins: pinned.pins.clone(),
            uid: entry.uid.clone(),
            generation: entry.generation,
            server: drift.server.clone(),
            tool: drift.tool.clone(),
            changes: drift.changes.iter().take(ToolPart::ALL.len()).copied().collect(),
            pod: pod.clone(),
        })
    });
    known.collect()
}

/// The drifts that were reported lately, and the events that are still to be written.
#[derive(Debug, Default)]
pub struct DriftLedger {
    /// By the pins' uid: when each was told.
    told: HashMap<String, HashMap<String, Instant>>,
    held: usize,
    due: VecDeque<EventNotice>,
}

impl DriftLedger {
    /// Adds what a sidecar reported. Returns how many had no room.
    pub fn add(&mut self, drifted: Vec<DriftedTool>, now: Instant, time: Timestamp) -> usize {
        let mut lost = 0;
        for tool in drifted {
            let digest = tool.digest();
            let known = self.told.get(&tool.uid);
            if known.is_some_and(|known| known.contains_key(&digest)) {
                continue;
            }
            if self.held >= MOST || known.is_some_and(|known| known.len() >= MOST_OF_PINS) {
                lost += 1;
                continue;
            }
            self.due.push_back(tool.notice(&digest, time));
            self.told.entry(tool.uid).or_default().insert(digest, now);
            self.held += 1;
        }
        lost
    }

    /// Returns the events to write now, the oldest first, and forgets those that were told long ago.
    pub fn due(&mut self, now: Instant) -> Vec<EventNotice> {
        self.told.retain(|_, of_pins| {
            of_pins.retain(|_, told| now.saturating_duration_since(*told) < FORGET);
            !of_pins.is_empty()
        });
        self.held = self.told.values().map(HashMap::len).sum();
        self.due.drain(..self.due.len().min(ROUND)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use toolweir_crds::seen::ChangeKind;

    use super::*;

    fn drifted(tool: &str, changes: &[(ToolPart, ChangeKind)]) -> DriftedTool {
        DriftedTool {
            pins: PinsKey { namespace: "agents".to_owned(), name: "library".to_owned() },
            uid: "uid of library".to_owned(),
            generation: 1,
            server: "archive".to_owned(),
            tool: tool.to_owned(),
            changes: changes.iter().map(|(part, change)| PartChange { part: *part, change: *change }).collect(),
            pod: PodKey { namespace: "agents".to_owned(), name: "one".to_owned() },
        }
    }

    const TEXT: (ToolPart, ChangeKind) = (ToolPart::Description, ChangeKind::Text);
    const WIDER: (ToolPart, ChangeKind) = (ToolPart::InputSchema, ChangeKind::Wider);

    #[test]
    fn each_tool_and_change_is_told_once_whoever_sees_it() {
        let (mut ledger, now, time) = (DriftLedger::default(), Instant::now(), Timestamp::UNIX_EPOCH);
        let other = PodKey { namespace: "agents".to_owned(), name: "two".to_owned() };
        assert_eq!(ledger.add(vec![drifted("find", &[TEXT, WIDER])], now, time), 0);
        assert_eq!(ledger.add(vec![DriftedTool { pod: other, ..drifted("find", &[WIDER, TEXT]) }], now, time), 0);
        let first = ledger.due(now);
        assert_eq!(first.len(), 1);
        assert_eq!(
            first[0].message,
            "Tool find on server archive is not as it was pinned: description (text), inputSchema (wider). The sidecar of pod agents/one \
             saw it."
        );
        let EventNotice { regarding, reason, count, .. } = &first[0];
        assert_eq!((regarding.kind, regarding.to_string().as_str()), ("MCPToolPins", "agents/library"));
        assert_eq!((*reason, *count, regarding.uid.as_str()), ("ToolDrifted", 1, "uid of library"));
        // What is another tool, another change, or compared with other pins, is told anew.
        let again = DriftedTool { generation: 2, ..drifted("find", &[TEXT, WIDER]) };
        let replaced = DriftedTool { uid: "another".to_owned(), ..drifted("find", &[TEXT, WIDER]) };
        let different = vec![drifted("find", &[TEXT]), drifted("new", &[]), again, replaced];
        assert_eq!(ledger.add(different, now, time), 0);
        let more = ledger.due(now);
        let names: BTreeSet<&String> = first.iter().chain(&more).map(|notice| &notice.name).collect();
        assert_eq!((more.len(), names.len()), (4, 5));
        assert_eq!(more[1].message, "Tool new on server archive is not pinned. The sidecar of pod agents/one saw it.");
        // Once the event is gone, it is told again, under the same name.
        ledger.add(vec![drifted("find", &[TEXT, WIDER])], now, time);
        assert_eq!(ledger.due(now + FORGET), []);
        ledger.add(vec![drifted("find", &[TEXT, WIDER])], now + FORGET, time);
        assert_eq!(ledger.due(now + FORGET), first);
    }

    #[test]
    fn what_a_server_can_make_of_it_is_bounded() {
        let (mut ledger, now, time) = (DriftLedger::default(), Instant::now(), Timestamp::UNIX_EPOCH);
        let tools: Vec<DriftedTool> = (0..100).map(|at| drifted(&format!("t{at}"), &[])).collect();
        assert_eq!(ledger.add(tools, now, time), 100 - MOST_OF_PINS);
        assert_eq!((ledger.due(now).len(), ledger.due(now).len(), ledger.due(now).len()), (25, 25, 14));
        let tools = (0..MOST).map(|at| DriftedTool { uid: format!("{at}"), ..drifted("t", &[]) }).collect();
        assert_eq!(ledger.add(tools, now, time), MOST_OF_PINS);
    }

    #[test]
    fn the_name_of_a_tool_is_shown_as_text_and_an_event_has_one_that_the_api_takes() {
        let (mut ledger, now) = (DriftLedger::default(), Instant::now());
        let long = DriftedTool {
            pins: PinsKey { namespace: "agents".to_owned(), name: format!("{}.b", "a".repeat(229)) },
            ..drifted(&format!("a\n\u{1b}[31m\u{202e}{}", "é".repeat(1000)), &[TEXT])
        };
        ledger.add(vec![long], now, Timestamp::UNIX_EPOCH);
        let [notice] = ledger.due(now).try_into().unwrap();
        assert!(
            notice.message.len() < 500 && notice.message.starts_with("Tool a\u{fffd}\u{fffd}[31m\u{fffd}é"),
            "{}",
            notice.message
        );
        assert!(!notice.message.contains(char::is_control));
        assert!(notice.name.len() <= 253 && !notice.name.contains(".."), "{}", notice.name);
    }
}
