//! Classes of tools: what a call of a tool can do.

use serde::{Deserialize, Serialize};

/// What a call of a tool can do, as far as its definition says. The order is that of what is worse, but for [`ToolClass::Unknown`], which
/// stands last since it may be any of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ToolClass {
    /// It reads, and changes nothing.
    Read,
    /// It adds or changes something.
    Write,
    /// It runs what its arguments say: a command, a query, a script.
    Execute,
    /// It deletes, overwrites or stops something that cannot be had back.
    Destructive,
    /// It moves money.
    Financial,
    /// Its definition does not say. It is treated as the worst.
    Unknown,
}

impl ToolClass {
    /// All classes, in order.
    pub const ALL: [Self; 6] = [Self::Read, Self::Write, Self::Execute, Self::Destructive, Self::Financial, Self::Unknown];

    /// The name, as it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "Read",
            Self::Write => "Write",
            Self::Execute => "Execute",
            Self::Destructive => "Destructive",
            Self::Financial => "Financial",
            Self::Unknown => "Unknown",
        }
    }

    /// How much harm a call can do.
    pub fn severity(self) -> ToolSeverity {
        match self {
            Self::Read => ToolSeverity::Low,
            Self::Write => ToolSeverity::Medium,
            Self::Execute => ToolSeverity::High,
            Self::Destructive | Self::Financial | Self::Unknown => ToolSeverity::Critical,
        }
    }
}

/// How much harm a call of a tool can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ToolSeverity {
    /// Of tools that read.
    Low,
    /// Of tools that write.
    Medium,
    /// Of tools that execute.
    High,
    /// Of tools that destroy or pay, and of those that are not known.
    Critical,
}

impl ToolSeverity {
    /// The name, as it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Low => "Low",
            Self::Medium => "Medium",
            Self::High => "High",
            Self::Critical => "Critical",
        }
    }
}
