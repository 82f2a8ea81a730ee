//! The kinds of what an MCP message asks for that policies decide on.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::request_name::RequestName;

/// The kind of what a message asks for. Each has entries and a default of its own in a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OperationKind {
    /// A call of a tool.
    #[default]
    Tool,
    /// A use of a prompt.
    Prompt,
    /// A read of a resource, or a subscription to it.
    Resource,
    /// What a server asks of its client: sampling, elicitation, roots.
    Request,
    /// Every other method.
    #[serde(rename = "method")]
    Other,
}

impl OperationKind {
    /// All kinds, in order.
    pub const ALL: [Self; 5] = [Self::Tool, Self::Prompt, Self::Resource, Self::Request, Self::Other];

    /// The field of a server with the entries of the kind, and of `defaultActions`.
    pub fn field(self) -> &'static str {
        match self {
            Self::Tool => "tools",
            Self::Prompt => "prompts",
            Self::Resource => "resources",
            Self::Request => "requests",
            Self::Other => "other",
        }
    }

    /// The field that names one, in denials and explanations.
    pub fn noun(self) -> &'static str {
        match self {
            Self::Tool => "tool",
            Self::Prompt => "prompt",
            Self::Resource => "resource",
            Self::Request => "request",
            Self::Other => "method",
        }
    }

    /// The kind of what a method asks for. A completion/complete can be about a prompt or a resource, which the method does not say.
    pub fn of_method(method: &str) -> Self {
        match method {
            "tools/call" => Self::Tool,
            "prompts/get" => Self::Prompt,
            "resources/read" | "resources/subscribe" | "resources/unsubscribe" | "subscriptions/listen" => Self::Resource,
            method if RequestName::ALL.into_iter().any(|name| name.method() == method) => Self::Request,
            _ => Self::Other,
        }
    }

    /// True for tools.
    pub fn is_tool(&self) -> bool {
        *self == Self::Tool
    }

    /// The kind that a noun names, if one does.
    pub fn of_noun(noun: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.noun() == noun)
    }
}

impl fmt::Display for OperationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.noun())
    }
}
