//! How the tools of a server differ from what was pinned.

use std::collections::BTreeMap;

use serde::Serialize;
use toolweir_crds::{
    MCPToolPinsSpec, PinnedPart, PinnedTool, ToolPart,
    seen::{ChangeKind, PartChange},
};
use toolweir_pins::changes;

/// A tool that is not as it was pinned. Its JSON form is documented, and stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ToolDriftRow {
    /// The server.
    pub server: String,
    /// The pins: `namespace/name`.
    pub pins: String,
    /// Its name.
    pub tool: String,
    /// The parts that changed, in their order.
    pub changes: Vec<PartDrift>,
    /// True if it is not pinned.
    pub new: bool,
    /// True if it is pinned, and the server does not list it.
    pub gone: bool,
}

/// A part that is not as it was pinned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PartDrift {
    /// The part.
    pub part: ToolPart,
    /// What became of it.
    pub change: ChangeKind,
    /// The text that was pinned: a text as it was, everything else in its canonical form; none where there was no such part.
    pub before: Option<String>,
    /// The text now.
    pub after: Option<String>,
    /// True where the text goes on after `before`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub before_cut: bool,
    /// True where the text goes on after `after`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub after_cut: bool,
}

impl PartDrift {
    fn new(change: PartChange, before: &PinnedTool, now: &PinnedTool) -> Self {
        let part = |tool: &PinnedTool| tool.parts.iter().find(|part| part.part == change.part).cloned();
        let text = |part: &Option<PinnedPart>| part.as_ref().map(|part| part.text.clone());
        let is_cut = |part: &Option<PinnedPart>| part.as_ref().is_some_and(|part| part.cut);
        let (before, now) = (part(before), part(now));
        Self {
            part: change.part,
            change: change.change,
            before: text(&before),
            after: text(&now),
            before_cut: is_cut(&before),
            after_cut: is_cut(&now),
        }
    }
}

/// What is compared.
#[derive(Clone, Copy, Debug)]
pub struct Compared<'a> {
    /// The server.
    pub server: &'a str,
    /// The pins: `namespace/name`.
    pub pins: &'a str,
}

/// Compares tools as they are now with pins: first what is pinned, in the order of the pins, then what is new, in the order of the server.
pub fn drifted(of: Compared<'_>, pinned: &MCPToolPinsSpec, now: &[PinnedTool]) -> Vec<ToolDriftRow> {
    let row = |tool: &str| ToolDriftRow {
        server: of.server.to_owned(),
        pins: of.pins.to_owned(),
        tool: tool.to_owned(),
        ..ToolDriftRow::default()
    };
    let by_name: BTreeMap<&str, &PinnedTool> = now.iter().map(|tool| (tool.name.as_str(), tool)).collect();
    let of_pinned = pinned.tools.iter().filter_map(|before| match by_name.get(before.name.as_str()) {
        None => Some(ToolDriftRow { gone: true, ..row(&before.name) }),
        Some(now) => {
            let changes: Vec<_> = changes(before, now).into_iter().map(|change| PartDrift::new(change, before, now)).collect();
            (!changes.is_empty()).then(|| ToolDriftRow { changes, ..row(&before.name) })
        }
    });
    let is_new = |tool: &&PinnedTool| pinned.tools.iter().all(|before| before.name != tool.name);
    let of_new = now.iter().filter(is_new).map(|now| {
        let added = now.parts.iter().map(|part| PartChange { part: part.part, change: ChangeKind::Added });
        let changes = added.map(|change| PartDrift::new(change, &PinnedTool::default(), now)).collect();
        ToolDriftRow { new: true, changes, ..row(&now.name) }
    });
    of_pinned.chain(of_new).collect()
}
