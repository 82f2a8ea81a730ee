//! What a tool can do, as its definition says.
//!
//! [`classify`] reads the definition of a tool as its server lists it, and says to which class it belongs, with the words that say so. It
//! is a pure function: the same definition always has the same class.

use std::ops::Range;

use serde_json::Value;
use toolweir_crds::{ToolClass, ToolSeverity};

/// A tool as its server lists it.
#[derive(Clone, Copy, Debug, Default)]
pub struct ToolDefinition<'a> {
    /// The name.
    pub name: &'a str,
    /// The title for people.
    pub title: Option<&'a str>,
    /// The description that the model reads.
    pub description: Option<&'a str>,
    /// The JSON schema of the arguments.
    pub input_schema: Option<&'a Value>,
    /// The server's own hints.
    pub annotations: ToolAnnotations,
}

/// The hints of a server on its tool. They may lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ToolAnnotations {
    /// `readOnlyHint`
    pub read_only: Option<bool>,
    /// `destructiveHint`
    pub destructive: Option<bool>,
}

/// Words of a definition that speak for a class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Where they stand: `name`, `title`, `description`, `inputSchema.properties.NAME`, `annotations.destructiveHint`.
    pub part: String,
    /// The bytes of that text.
    pub span: Range<usize>,
    /// The words themselves: exactly these bytes.
    pub text: String,
    /// The class for which they speak.
    pub class: ToolClass,
}

/// The class of a tool, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classification {
    /// The class.
    pub class: ToolClass,
    /// What speaks for it, the strongest first. Empty for [`ToolClass::Unknown`].
    pub evidence: Vec<Evidence>,
}

impl Classification {
    /// How much harm a call can do.
    pub fn severity(&self) -> ToolSeverity {
        self.class.severity()
    }

    /// Why, in one line for people: short, and without control characters.
    pub fn why(&self) -> String {
        String::new()
    }
}

/// Says what a tool can do.
pub fn classify(_definition: &ToolDefinition<'_>) -> Classification {
    Classification { class: ToolClass::Unknown, evidence: Vec::new() }
}
