//! The answer of `GET /seen` at the sidecar's administration: what servers' lists said last of their tools, and how that compares with
//! pins. The sidecar writes it and `kubectl toolweir` reads it. Fields that are left out have their defaults, so the two can have
//! different versions.

use serde::{Deserialize, Serialize};

use crate::{
    tool_class::ToolClass,
    tool_pins::{PinnedTool, ToolPart},
};

/// The answer of `GET /seen`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SeenResponse {
    /// The servers whose policies read the definitions of tools, by name.
    pub servers: Vec<SeenServer>,
}

/// The tools of one server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SeenServer {
    /// The server's name in the policies.
    pub server: String,
    /// The pins to which policies hold it, as `namespace/name`.
    pub pins: Vec<String>,
    /// The tools that a list of it had, by name.
    pub tools: Vec<SeenDefinition>,
}

/// A tool as its server listed it last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SeenDefinition {
    /// Its parts, in the form of pins. The texts are left out where no pins hold the server.
    pub definition: PinnedTool,
    /// The worst class of its definitions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<ToolClass>,
    /// What is not as it was pinned, for each pins that it differs from.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub drift: Vec<ToolDrift>,
}

/// How a tool differs from what was pinned. Nothing in it is secret; the name is a text of the server's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ToolDrift {
    /// The server's name in the policies.
    pub server: String,
    /// The pins, as `namespace/name`.
    pub pins: String,
    /// The tool's name, as the server writes it.
    pub tool: String,
    /// The parts that changed, in their order; empty for a tool that is not pinned.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<PartChange>,
}

/// A part of a definition that is not as it was pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartChange {
    /// The part.
    pub part: ToolPart,
    /// What became of it.
    pub change: ChangeKind,
}

/// What became of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ChangeKind {
    /// It was not there before.
    Added,
    /// It is gone.
    Removed,
    /// Text for models or people is another; of a schema: text alone.
    Text,
    /// A hint is another.
    Annotation,
    /// The schema accepts less than before.
    Narrower,
    /// The schema accepts more than before.
    Wider,
    /// It is another, and none of these can be said of it.
    Changed,
}

impl ChangeKind {
    /// Returns the name, as it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Text => "text",
            Self::Annotation => "annotation",
            Self::Narrower => "narrower",
            Self::Wider => "wider",
            Self::Changed => "changed",
        }
    }
}
