//! Pins: what the tools of a server looked like when a person looked at them.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{bounds, error::FieldError};

/// What the tools of one server looked like. The `pins` of a policy's server name it; `kubectl toolweir pin` writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(
    feature = "kube",
    derive(kube::CustomResource),
    kube(
        group = "toolweir.dev",
        version = "v1alpha1",
        kind = "MCPToolPins",
        doc = "What the tools of an MCP server looked like when they were pinned.",
        plural = "mcptoolpins",
        singular = "mcptoolpins",
        shortname = "mcptp",
        category = "toolweir",
        namespaced,
        printcolumn = r#"{"name": "Server", "type": "string", "jsonPath": ".spec.server"}"#,
        printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#
    )
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MCPToolPinsSpec {
    /// The server whose tools were pinned, for people: which servers are held to the pins, policies say.
    #[schemars(length(min = 1, max = bounds::SERVER_NAME))]
    pub server: String,
    /// The tools.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = bounds::PINNED_TOOLS),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub tools: Vec<PinnedTool>,
}

/// What one tool looked like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, expecting = "a tool, such as {name: search}")]
pub struct PinnedTool {
    /// The tool's name, as its server lists it: no glob.
    #[schemars(length(min = 1, max = bounds::TOOL_NAME))]
    pub name: String,
    /// The parts that its definition had. One that it has beyond these is a change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = ToolPart::ALL.len()),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["part"])
    )]
    pub parts: Vec<PinnedPart>,
}

/// A part of a tool's definition, as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PinnedPart {
    /// The part.
    pub part: ToolPart,
    /// The SHA-256 of the part's canonical form: 64 lower case hexadecimal digits.
    #[schemars(length(min = 64, max = 64), regex(pattern = r"^[0-9a-f]{64}$"))]
    pub sha256: String,
    /// The beginning of the part, to show what changed: a text as it is, everything else in its canonical form.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = bounds::PINNED_TEXT))]
    pub text: String,
    /// True where the part goes on after `text`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
}

/// The parts of a tool's definition that a model or a client reads, each by its field of MCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ToolPart {
    /// The title for people.
    Title,
    /// The description that the model reads.
    Description,
    /// The JSON schema of the arguments.
    InputSchema,
    /// The JSON schema of the structured result.
    OutputSchema,
    /// The server's own hints.
    Annotations,
    /// Pictures for people.
    Icons,
    /// How it is executed: whether as a task.
    Execution,
    /// `_meta`: what is for certain clients.
    #[serde(rename = "_meta")]
    Meta,
    /// All fields that MCP does not name, together.
    Other,
}

impl ToolPart {
    /// All parts, in order.
    pub const ALL: [Self; 9] = [
        Self::Title,
        Self::Description,
        Self::InputSchema,
        Self::OutputSchema,
        Self::Annotations,
        Self::Icons,
        Self::Execution,
        Self::Meta,
        Self::Other,
    ];

    /// Returns the name of the field, or `other`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Title => "title",
            Self::Description => "description",
            Self::InputSchema => "inputSchema",
            Self::OutputSchema => "outputSchema",
            Self::Annotations => "annotations",
            Self::Icons => "icons",
            Self::Execution => "execution",
            Self::Meta => "_meta",
            Self::Other => "other",
        }
    }
}

impl fmt::Display for ToolPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The SHA-256 of the canonical form of a part.
pub type PartDigest = [u8; 32];

/// The digests of the parts of one definition. Two definitions with the same digests differ in notation alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartDigests([Option<PartDigest>; ToolPart::ALL.len()]);

impl PartDigests {
    /// Returns the digest of a part; none where the definition has no such part.
    pub fn get(&self, part: ToolPart) -> Option<&PartDigest> {
        self.0.get(part as usize)?.as_ref()
    }

    /// Sets the digest of a part.
    pub fn set(&mut self, part: ToolPart, digest: PartDigest) {
        if let Some(slot) = self.0.get_mut(part as usize) {
            *slot = Some(digest);
        }
    }

    /// Returns the parts in which another definition differs.
    pub fn changed(&self, other: &Self) -> PartSet {
        if self == other {
            return PartSet::default();
        }
        ToolPart::ALL.into_iter().filter(|part| self.get(*part) != other.get(*part)).collect()
    }
}

impl PinnedTool {
    /// Returns the digests.
    ///
    /// # Errors
    /// One is no SHA-256, or a part stands twice. The path starts at the tool.
    pub fn digests(&self) -> Result<PartDigests, FieldError> {
        let mut digests = PartDigests::default();
        for (index, pinned) in self.parts.iter().enumerate() {
            let error = |field: &str, message: String| FieldError { path: format!("parts[{index}].{field}"), message };
            if digests.get(pinned.part).is_some() {
                return Err(error("part", format!("`{}` stands twice; remove one", pinned.part)));
            }
            let digest = digest_of_hex(&pinned.sha256).ok_or_else(|| {
                error("sha256", "is not a SHA-256; write its 64 lower case hexadecimal digits, or pin the tool anew".to_owned())
            })?;
            digests.set(pinned.part, digest);
        }
        Ok(digests)
    }

    /// Drops the texts, which only show what changed. What is left says as well whether a tool is as it was.
    pub fn drop_texts(&mut self) {
        for part in &mut self.parts {
            part.cut |= !part.text.is_empty();
            part.text = String::new();
        }
    }
}

fn digest_of_hex(text: &str) -> Option<PartDigest> {
    let digit = |byte: &u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let bytes: Option<Vec<u8>> = pairs.iter().map(|[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect();
    bytes?.try_into().ok()
}

/// Some parts of a definition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartSet(u16);

impl PartSet {
    /// Returns true where it holds none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns true where it holds the part.
    pub fn contains(self, part: ToolPart) -> bool {
        self.0 >> part as u16 & 1 == 1
    }

    /// Returns the parts of both.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns its parts, in order.
    pub fn iter(self) -> impl Iterator<Item = ToolPart> {
        ToolPart::ALL.into_iter().filter(move |part| self.contains(*part))
    }
}

impl FromIterator<ToolPart> for PartSet {
    fn from_iter<I: IntoIterator<Item = ToolPart>>(parts: I) -> Self {
        Self(parts.into_iter().fold(0, |set, part| set | 1 << part as u16))
    }
}

impl fmt::Display for PartSet {
    /// Writes the names, with commas between them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, part) in self.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            f.write_str(part.as_str())?;
        }
        Ok(())
    }
}

/// Pins with their name, as a snapshot of the policy stream has them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ToolPins {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// What is pinned.
    pub spec: MCPToolPinsSpec,
}

impl fmt::Display for ToolPins {
    /// Writes `namespace/name`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The pins that a policy's server is held to, and what becomes of a tool that is not as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, expecting = "the pins by their name, such as {name: files}")]
pub struct ServerPins {
    /// The name of the `MCPToolPins`.
    #[schemars(length(min = 1, max = bounds::OBJECT_NAME))]
    pub name: String,
    /// Its namespace: only in an `MCPClusterPolicy`, which has none itself. Those of an `MCPPolicy` are in its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = bounds::OBJECT_NAME))]
    pub namespace: Option<String>,
    /// What becomes of a pinned tool whose definition is another now, or is not known.
    #[serde(default)]
    pub on_drift: OnDrift,
    /// What becomes of a tool that is not pinned.
    #[serde(default)]
    pub on_new: OnNew,
}

impl ServerPins {
    /// Returns `namespace/name` of the pins; `namespace` is that of the policy, empty for an `MCPClusterPolicy`.
    pub fn full_name(&self, namespace: &str) -> String {
        format!("{}/{}", self.namespace.as_deref().unwrap_or(namespace), self.name)
    }
}

/// What becomes of a pinned tool whose definition is another now, or is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum OnDrift {
    /// Lists leave it out, and a call is denied in words that say which part changed.
    #[default]
    Deny,
    /// The same, but the agent is only told that there is no such tool.
    Hide,
    /// It is counted and logged, and the tool stays.
    Audit,
}

/// What becomes of a tool that is not pinned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum OnNew {
    /// Lists leave it out, and a call is denied.
    #[default]
    Deny,
    /// It is counted and logged, and the tool stays.
    Audit,
    /// Pins have no say in it.
    Allow,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_the_names_of_their_fields_and_their_order() {
        for (index, part) in ToolPart::ALL.into_iter().enumerate() {
            assert_eq!(part as usize, index);
            assert_eq!(serde_json::to_value(part).unwrap(), part.as_str());
        }
    }

    #[test]
    fn digests_are_read_as_they_are_written_and_nothing_else_is() {
        let pinned = |parts: &[(ToolPart, &str)]| PinnedTool {
            name: "a".to_owned(),
            parts: parts
                .iter()
                .map(|(part, sha256)| PinnedPart { part: *part, sha256: (*sha256).to_owned(), text: String::new(), cut: false })
                .collect(),
        };
        let (one, two) = ("0a".repeat(32), "ff".repeat(32));
        let digests = pinned(&[(ToolPart::Title, &one), (ToolPart::Meta, &two)]).digests().unwrap();
        assert_eq!((digests.get(ToolPart::Title), digests.get(ToolPart::Meta)), (Some(&[10; 32]), Some(&[255; 32])));
        assert_eq!(digests.get(ToolPart::Description), None);
        assert_eq!(digests.changed(&digests), PartSet::default());
        let other = pinned(&[(ToolPart::Title, &two), (ToolPart::Icons, &two), (ToolPart::Meta, &two)]).digests().unwrap();
        assert_eq!(digests.changed(&other).to_string(), "title, icons");
        for wrong in ["", "0A", &"0A".repeat(32), &"0a".repeat(31), &format!("{one}0"), &"0g".repeat(32)] {
            let error = pinned(&[(ToolPart::Title, wrong)]).digests().unwrap_err();
            assert_eq!(error.path, "parts[0].sha256", "{wrong}");
        }
        assert_eq!(pinned(&[(ToolPart::Title, &one), (ToolPart::Title, &two)]).digests().unwrap_err().path, "parts[1].part");
    }
}
