//! The condition `PinsMatched` of a policy that holds a server to pins: whether the tools that its pods see are as they were pinned.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use toolweir_crds::{ToolPart, bounds, stream::DriftReport, text::shown};

use crate::{
    index::{Index, PolicyEntry},
    pins::PinnedServer,
    readiness::NAMED,
};

/// The longest name of a tool that is shown, in bytes.
pub const LONGEST_TOOL: usize = 128;
/// The most servers of a report that are kept though no policy is known that holds them to pins.
const OTHERS: usize = 16;

/// The reasons of the condition. A closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinsReason {
    /// No sidecar sees a tool that is not as it was pinned.
    Matched,
    /// Some sidecar does.
    Drifted,
    /// Pins that the policy names are not there.
    NotFound,
    /// Some sidecar has not reported yet.
    Pending,
    /// There is no pod whose sidecar could compare.
    NoPods,
}

impl PinsReason {
    /// Every reason.
    pub const ALL: [Self; 5] = [Self::Matched, Self::Drifted, Self::NotFound, Self::Pending, Self::NoPods];

    /// Returns the reason as the condition has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Matched => "Matched",
            Self::Drifted => "Drifted",
            Self::NotFound => "NotFound",
            Self::Pending => "Pending",
            Self::NoPods => "NoPods",
        }
    }

    /// Returns the status of the condition.
    pub fn status(self) -> &'static str {
        match self {
            Self::Matched => "True",
            Self::Drifted | Self::NotFound => "False",
            Self::Pending | Self::NoPods => "Unknown",
        }
    }
}

/// What the pins of one policy need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PinsNeeds {
    /// A server whose pins are not there.
    missing: Option<PinnedServer>,
}

impl PinsNeeds {
    /// Returns what a policy needs; none where it holds no server to pins.
    pub fn of(entry: &PolicyEntry, index: &Index) -> Option<Self> {
        let mut pinned = entry.pinned_servers().peekable();
        pinned.peek()?;
        Some(Self { missing: pinned.find(|pinned| index.pins(&pinned.pins).is_none()) })
    }

    /// Returns the reason of the condition and its message. `injected` is the number of pods with a sidecar, `accepted` whether the
    /// policy holds as it is written.
    pub fn condition(&self, injected: i32, accepted: bool, tally: &DriftTally) -> (PinsReason, String) {
        if let Some(PinnedServer { server, pins }) = &self.missing {
            let message = format!(
                "There are no MCPToolPins {pins}, to which server {server} is held, so that no tool of it can be verified. Write them with \
                 `kubectl toolweir pin`, or mend their name in the policy."
            );
            return (PinsReason::NotFound, message);
        }
        if injected == 0 {
            return (PinsReason::NoPods, "It governs no pod with a sidecar that could compare tools with pins.".to_owned());
        }
        if tally.drifted > 0 {
            return (PinsReason::Drifted, tally.drift(injected));
        }
        // Two replicas may count a pod both, for the moment in which it changes from one to the other.
        let reported = tally.reported.min(injected);
        if reported < injected {
            let hint = if accepted { "" } else { " See the condition Accepted too." };
            let message = format!("{reported} of {injected} sidecars said by now whether tools are as they were pinned.{hint}");
            return (PinsReason::Pending, message);
        }
        (PinsReason::Matched, format!("None of {injected} sidecars sees a tool that is not as it was pinned."))
    }
}

/// What sidecars of a policy's pods said of its pinned servers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DriftTally {
    /// Pods whose sidecar said something.
    pub reported: i32,
    /// Those of them that see a tool that is not as it was pinned.
    #[serde(default)]
    pub drifted: i32,
    /// The first of these tools, as `tool on server`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    tools: BTreeMap<String, DriftedToolTally>,
    /// True if there are more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    more: bool,
}

/// A tool that is not as it was pinned.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct DriftedToolTally {
    /// The pods that see it.
    pods: i32,
    /// The parts that changed; none where it is not pinned.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    parts: BTreeSet<ToolPart>,
}

impl DriftTally {
    /// Returns whether nothing was said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Counts what the sidecar of a pod said of these servers.
    pub fn add(&mut self, pinned: &[PinnedServer], said: &SaidOfPins) {
        let mut pod = Self { reported: 1, ..Self::default() };
        for PinnedServer { server, pins } in pinned {
            let Some(of_server) = said.0.get(&(server.clone(), pins.to_string())) else { continue };
            pod.drifted = 1;
            pod.more |= of_server.more;
            for (tool, parts) in &of_server.tools {
                pod.name(format!("{tool} on {server}"), DriftedToolTally { pods: 1, parts: parts.clone() });
            }
        }
        // A tool that two pins of the policy hold is in it once.
        pod.tools.values_mut().for_each(|tool| tool.pods = 1);
        self.merge(pod);
    }

    /// Adds what sidecars of another replica said.
    pub fn merge(&mut self, other: Self) {
        self.reported += other.reported;
        self.drifted += other.drifted;
        self.more |= other.more;
        for (name, tool) in other.tools {
            self.name(name, tool);
        }
    }

    /// Keeps the first tools by name, so that they do not change with the order in which pods are counted.
    fn name(&mut self, name: String, tool: DriftedToolTally) {
        let held = self.tools.entry(name).or_default();
        held.pods += tool.pods;
        held.parts.extend(tool.parts);
        while self.tools.len() > NAMED {
            self.tools.pop_last();
            self.more = true;
        }
    }

    fn drift(&self, injected: i32) -> String {
        let named = |(name, tool): (&String, &DriftedToolTally)| {
            let parts: Vec<&str> = tool.parts.iter().map(|part| part.as_str()).collect();
            let what = if parts.is_empty() { "not pinned".to_owned() } else { parts.join(", ") };
            let pods = tool.pods.min(injected);
            format!("{name} ({what}; {pods} {})", if pods == 1 { "pod" } else { "pods" })
        };
        let named: Vec<String> = self.tools.iter().map(named).collect();
        format!(
            "{} of {injected} sidecars see tools that are not as they were pinned: {}{}. Compare them with `kubectl toolweir drift`; then mend \
             the server, or pin what it has now.",
            self.drifted.min(injected),
            named.join(", "),
            if self.more { ", ..." } else { "" },
        )
    }
}

/// What a sidecar said last of pinned servers, by server and pins: which tools are not as they were pinned. Of a server without such
/// tools it has nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SaidOfPins(BTreeMap<(String, String), SaidOfServerPins>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct SaidOfServerPins {
    tools: BTreeMap<String, BTreeSet<ToolPart>>,
    more: bool,
}

impl SaidOfPins {
    /// Returns what is kept of a report: of each server the first tools by name. `is_pinned` says whether a policy is known that holds a
    /// server to pins. A few others are kept: a sidecar that comes from another replica may know of policies of which this one is still
    /// to hear, and says nothing anew when it has.
    pub fn new(report: DriftReport, is_pinned: impl Fn(&str, &str) -> bool) -> Self {
        let (mut kept, mut others) = (BTreeMap::<(String, String), SaidOfServerPins>::new(), 0);
        for drift in report.drift {
            let key = (drift.server, drift.pins);
            if !kept.contains_key(&key) && !is_pinned(&key.0, &key.1) {
                others += 1;
                // Both names, with the slash between.
                if others > OTHERS || key.0.len() > bounds::SERVER_NAME || key.1.len() > 2 * bounds::OBJECT_NAME + 1 {
                    continue;
                }
            }
            let server = kept.entry(key).or_default();
            let parts = drift.changes.iter().map(|changed| changed.part);
            server.tools.entry(tool_shown(&drift.tool)).or_default().extend(parts);
            while server.tools.len() > NAMED {
                server.tools.pop_last();
                server.more = true;
            }
        }
        Self(kept)
    }
}

/// Returns the name of a tool as a message has it: bounded, and without what could be misread. Servers name their tools as they like.
pub fn tool_shown(name: &str) -> String {
    let cut = name.get(..name.floor_char_boundary(LONGEST_TOOL)).unwrap_or_default();
    let shown = shown(cut).replace('`', "'");
    if cut.len() < name.len() { format!("{shown}...") } else { shown }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;
    use toolweir_crds::{
        MCPToolPinsSpec, ToolPins,
        resource::PolicyStatus,
        seen::{ChangeKind, PartChange, ToolDrift},
    };
    use toolweir_engine::CompileOptions;

    use super::*;
    use crate::{
        acks::{self, Acknowledgements, PolicyTally, Tallies},
        index::{ClusterEvent, Pod},
        pins::{PinsEntry, PinsKey},
        readiness::fixtures::{apply, cluster, enforce, key},
        shared_store::health::StoreHealth,
        status,
    };

    const HELD: &str = "{name: s, url: 'https://s.example/mcp', pins: {name: shop}}";
    const SILENT: &str = "{name: s, url: 'https://s.example/mcp'}";

    fn pods(names: &[&str]) -> Index {
        let pod = |name: &str| Pod { uid: format!("uid of {name}"), injected: true, ..Pod::default() };
        let all: Vec<(&str, Pod)> = names.iter().map(|name| (*name, pod(name))).collect();
        cluster(&all)
    }

    fn pin(index: &mut Index, name: &str) {
        let key = PinsKey { namespace: "agents".to_owned(), name: name.to_owned() };
        let spec = MCPToolPinsSpec { server: "s".to_owned(), tools: Vec::new() };
        let pins = ToolPins { namespace: "agents".to_owned(), name: name.to_owned(), spec };
        index.apply(ClusterEvent::Pins(key, PinsEntry::new(format!("uid of {name}"), 1, &pins)));
    }

    fn told(index: &mut Index, tallies: &Tallies, name: &str) -> Option<(PinsReason, String)> {
        let all = status::desired(index, tallies, &CompileOptions::default(), &StoreHealth::Absent);
        all.into_iter().find(|(id, _)| id.name == name).unwrap().1.pins
    }

    fn report(drift: &[(&str, &str, &[ToolPart])]) -> DriftReport {
        let drifted = |(server, tool, parts): &(&str, &str, &[ToolPart])| ToolDrift {
            server: (*server).to_owned(),
            pins: "agents/shop".to_owned(),
            tool: (*tool).to_owned(),
            changes: parts.iter().map(|part| PartChange { part: *part, change: ChangeKind::Changed }).collect(),
        };
        DriftReport { drift: drift.iter().map(drifted).collect() }
    }

    const TEXT: &[ToolPart] = &[ToolPart::Description];
    const BOTH: &[ToolPart] = &[ToolPart::InputSchema, ToolPart::Description];

    #[test]
    fn only_a_policy_with_pins_has_the_condition_and_it_says_where_there_are_none() {
        let mut index = pods(&[]);
        apply(&mut index, "silent", 1, &[SILENT]);
        apply(&mut index, "held", 1, &[HELD, "{name: t, url: 'https://t.example/mcp', pins: {name: other}}"]);
        assert_eq!(told(&mut index, &Tallies::new(), "silent"), None);
        pin(&mut index, "shop");
        let promised = "There are no MCPToolPins agents/other, to which server t is held, so that no tool of it can be verified. Write them \
                        with `kubectl toolweir pin`, or mend their name in the policy.";
        assert_eq!(told(&mut index, &Tallies::new(), "held"), Some((PinsReason::NotFound, promised.to_owned())));
        pin(&mut index, "other");
        assert_eq!(told(&mut index, &Tallies::new(), "held").unwrap().0, PinsReason::NoPods);
        let pod = Pod { uid: "uid of one".to_owned(), injected: true, ..Pod::default() };
        index.apply(ClusterEvent::Pod(key("one"), pod));
        let promised = "0 of 1 sidecars said by now whether tools are as they were pinned.";
        assert_eq!(told(&mut index, &Tallies::new(), "held"), Some((PinsReason::Pending, promised.to_owned())));
    }

    #[test]
    fn what_sidecars_see_is_added_up_over_pods_and_replicas() {
        let mut index = pods(&["a", "b", "c"]);
        pin(&mut index, "shop");
        apply(&mut index, "p", 1, &[HELD]);
        let (mut here, mut there) = (Acknowledgements::default(), Acknowledgements::default());
        let streams = ["a", "b"].map(|name| enforce(&mut index, &mut here, name));
        let other = enforce(&mut index, &mut there, "c");
        here.report_drift(streams[0], None, report(&[]));
        here.report_drift(streams[1], None, report(&[("s", "pay", TEXT), ("s", "new", &[])]));
        there.report_drift(other, None, report(&[("s", "pay", BOTH), ("t", "not asked for", TEXT)]));
        let sum = |index: &Index, here: &Acknowledgements| acks::sum([here.tally(index), there.tally(index)]);
        let tallies = sum(&index, &here);
        let promised = "2 of 3 sidecars see tools that are not as they were pinned: new on s (not pinned; 1 pod), pay on s (description, \
                        inputSchema; 2 pods). Compare them with `kubectl toolweir drift`; then mend the server, or pin what it has now.";
        assert_eq!(told(&mut index, &tallies, "p"), Some((PinsReason::Drifted, promised.to_owned())));
        // Pods that said nothing yet hide no drift, and one that is counted twice is not too many.
        let twice = acks::sum([tallies.clone(), tallies]);
        assert!(told(&mut index, &twice, "p").unwrap().1.starts_with("3 of 3 sidecars see"), "never more than there are");
        here.report_drift(streams[1], None, report(&[]));
        let now = sum(&index, &here);
        assert!(told(&mut index, &now, "p").unwrap().1.starts_with("1 of 3 sidecars see"));
        there.report_drift(other, None, report(&[]));
        let now = acks::sum([here.tally(&index), there.tally(&index)]);
        let promised = "None of 3 sidecars sees a tool that is not as it was pinned.";
        assert_eq!(told(&mut index, &now, "p"), Some((PinsReason::Matched, promised.to_owned())));
        // Nothing was said of a later generation yet.
        apply(&mut index, "p", 2, &[HELD]);
        let now = here.tally(&index);
        assert_eq!(told(&mut index, &now, "p").unwrap().0, PinsReason::Pending);
    }

    #[test]
    fn what_a_sidecar_can_say_is_bounded_and_shown_as_text() {
        let names: Vec<String> = (0..100).map(|at| format!("pod-{at}")).collect();
        let mut index = pods(&names.iter().map(String::as_str).collect::<Vec<_>>());
        pin(&mut index, "shop");
        apply(&mut index, "p", 1, &[HELD]);
        let mut acks = Acknowledgements::default();
        let tools: Vec<String> = (0..500).map(|at| format!("{at}\u{202e}\n`{}", "x".repeat(1000))).collect();
        let servers: Vec<String> = (0..500).map(|at| format!("other{at}")).collect();
        let of_tools = tools.iter().map(|tool| ("s", tool.as_str(), &ToolPart::ALL[..]));
        let of_others = servers.iter().map(|server| (server.as_str(), "t", TEXT));
        let all: Vec<(&str, &str, &[ToolPart])> = of_others.chain(of_tools).collect();
        for name in &names {
            let stream = enforce(&mut index, &mut acks, name);
            acks.report_drift(stream, None, report(&all));
        }
        let tallies = acks.tally(&index);
        let tally: &PolicyTally = tallies.values().next().unwrap();
        let text = serde_json::to_string(tally).unwrap();
        assert!(text.len() < 2048, "{text}");
        assert_eq!(serde_json::from_str::<PolicyTally>(&text).unwrap(), *tally);
        let (reason, message) = told(&mut index, &tallies, "p").unwrap();
        assert_eq!(reason, PinsReason::Drifted);
        assert!(message.starts_with("100 of 100 sidecars see") && message.contains("100 pods), ..."), "{message}");
        assert!(!message.contains(['\n', '\u{202e}']) && message.chars().count() <= 1024, "{message}");
        let kept = SaidOfPins::new(report(&all), |server, pins| (server, pins) == ("s", "agents/shop"));
        assert_eq!(kept.0.len(), OTHERS + 1);
        assert!(kept.0.values().all(|server| server.tools.len() <= NAMED));
    }

    #[test]
    fn the_condition_is_written_with_its_status_and_goes_with_the_last_pins() {
        let mut index = pods(&["one"]);
        apply(&mut index, "p", 1, &[HELD]);
        let desired = |index: &mut Index| {
            let all = status::desired(index, &Tallies::new(), &CompileOptions::default(), &StoreHealth::Absent);
            all.into_values().next().unwrap()
        };
        let (before, now) = (desired(&mut index), Timestamp::UNIX_EPOCH);
        let mut written = PolicyStatus::default();
        for reason in PinsReason::ALL {
            let new = status::DesiredStatus { pins: Some((reason, "why".to_owned())), ..before.clone() };
            written = status::merge(&written, &new, now).unwrap();
            let condition = written.conditions.iter().find(|condition| condition.type_ == "PinsMatched").unwrap();
            assert_eq!((condition.status.as_str(), condition.reason.as_str()), (reason.status(), reason.as_str()));
        }
        apply(&mut index, "p", 2, &[SILENT]);
        let written = status::merge(&written, &desired(&mut index), now).unwrap();
        assert_eq!(written.conditions.len(), 2);
    }
}
