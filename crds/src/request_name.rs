//! What a server may ask of its client.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a server may ask of its client (MCP 2025-11-25, Client Features).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum RequestName {
    /// That the agent's model answers a prompt of the server's: `sampling/createMessage`.
    Sampling,
    /// That the agent's user fills in a form, or opens a URL: `elicitation/create`.
    Elicitation,
    /// The folders that the agent works in: `roots/list`.
    Roots,
}

impl RequestName {
    /// All of them, in order.
    pub const ALL: [Self; 3] = [Self::Sampling, Self::Elicitation, Self::Roots];

    /// The name, as it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sampling => "sampling",
            Self::Elicitation => "elicitation",
            Self::Roots => "roots",
        }
    }

    /// The method with which a server asks for it.
    pub const fn method(self) -> &'static str {
        match self {
            Self::Sampling => "sampling/createMessage",
            Self::Elicitation => "elicitation/create",
            Self::Roots => "roots/list",
        }
    }
}
