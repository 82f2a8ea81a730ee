//! The definition of one tool, and what pins keep of it.

use serde_json::{Map, Value};
use thiserror::Error;
use toolweir_crds::{MCPToolPinsSpec, PartDigests, PinnedPart, PinnedTool, ToolPart, bounds};
use toolweir_engine::json::{JsonError, MAX_DEPTH};

use crate::{canonical, strict};

/// Bytes of JSON that a document has at most: Kubernetes stores no object of more than about a megabyte.
const DOCUMENT: usize = 768 * 1024;
/// Bytes of text for each part, until the document is small enough.
const TEXTS: [usize; 4] = [bounds::PINNED_TEXT, 2048, 512, 0];

/// Why a definition cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DefinitionError {
    /// It is not JSON that every parser reads alike.
    #[error("{0}")]
    Json(#[from] JsonError),
    /// An object has a name twice: of two members with one name, some parsers take the first and some the last.
    #[error("`{0}` stands twice in one object")]
    Repeated(String),
    /// A number is larger than an `f64` can be.
    #[error("the number {0} is too large")]
    NotFinite(String),
    /// It is not an object.
    #[error("is not an object")]
    NotAnObject,
    /// It has no name, or the name is no text, or empty.
    #[error("has no `name` that is a text")]
    NoName,
}

/// What a list says of one tool, read strictly.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    name: String,
    value: Value,
    digests: PartDigests,
}

impl Definition {
    /// Reads a definition.
    ///
    /// # Errors
    /// The text is not JSON, or not what every parser reads alike: a name stands twice in an object, at whatever level; a number is not
    /// finite; it nests deeper than 128 levels. Or it is no object, or has no `name` that is a text.
    pub fn read(json: &[u8]) -> Result<Self, DefinitionError> {
        Self::from_value(strict::read_json(json)?)
    }

    /// Takes a definition that was parsed elsewhere. How strictly that was done is up to the parser: one that rounds the last digit of a
    /// number, as `serde_json` does by default, can give it another digest than [`Self::read`] does.
    ///
    /// # Errors
    /// It is no object, has no `name` that is a text, or nests deeper than 128 levels.
    pub fn of(value: &Value) -> Result<Self, DefinitionError> {
        if nests_deeper(value, MAX_DEPTH) {
            return Err(JsonError::TooDeep.into());
        }
        Self::from_value(value.clone())
    }

    fn from_value(value: Value) -> Result<Self, DefinitionError> {
        let Value::Object(members) = &value else { return Err(DefinitionError::NotAnObject) };
        let name = members
            .get("name")
            .and_then(Value::as_str)
            .filter(|name| !name.is_empty())
            .ok_or(DefinitionError::NoName)?
            .to_owned();
        let mut digests = PartDigests::default();
        for (part, canonical) in parts(members) {
            digests.set(part, canonical::digest_of(&canonical));
        }
        Ok(Self { name, value, digests })
    }

    /// Returns the tool's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the definition as it was read.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// Returns the digests of its parts. Two definitions have the same where they differ in notation alone.
    pub fn digests(&self) -> PartDigests {
        self.digests
    }

    /// Returns what pins keep of it: of each part the digest, and at most so many bytes of text (and [`bounds::PINNED_TEXT`]), cut between
    /// two characters.
    pub fn pinned(&self, text_bytes: usize) -> PinnedTool {
        let bytes = text_bytes.min(bounds::PINNED_TEXT);
        let members = self.value.as_object();
        let parts = members.into_iter().flat_map(parts).map(|(part, canonical)| {
            let plain = members.and_then(|members| members.get(part.as_str())).and_then(Value::as_str);
            let text = plain.filter(|_| part != ToolPart::Other).unwrap_or(&canonical);
            let end = text.floor_char_boundary(bytes);
            PinnedPart {
                part,
                sha256: canonical::hex(&canonical::digest_of(&canonical)),
                text: text.get(..end).unwrap_or_default().to_owned(),
                cut: end < text.len(),
            }
        });
        PinnedTool { name: self.name.clone(), parts: parts.collect() }
    }
}

/// The parts that a definition has, in their order, in their canonical form. One that is null is not there.
fn parts(members: &Map<String, Value>) -> impl Iterator<Item = (ToolPart, String)> {
    ToolPart::ALL.into_iter().filter_map(|part| {
        let field = || members.get(part.as_str()).filter(|value| !value.is_null());
        let canonical = match part {
            ToolPart::Other => return other(members).map(|others| (part, others)),
            ToolPart::InputSchema | ToolPart::OutputSchema => canonical::of_schema(field()?),
            _ => canonical::of_value(field()?),
        };
        Some((part, canonical))
    })
}

/// The fields that MCP does not name, as one object; none where there are none.
fn other(members: &Map<String, Value>) -> Option<String> {
    let named = |name: &str| name == "name" || ToolPart::ALL.iter().any(|part| *part != ToolPart::Other && part.as_str() == name);
    // Their names say something too, whatever the value is.
    let others = members.iter().filter(|(name, _)| !named(name));
    let others: Map<String, Value> = others.map(|(name, value)| (name.clone(), value.clone())).collect();
    (!others.is_empty()).then(|| canonical::of_value(&Value::Object(others)))
}

/// Whether arrays and objects nest deeper than so many levels.
fn nests_deeper(value: &Value, levels: u32) -> bool {
    match value {
        Value::Array(items) => levels == 0 || items.iter().any(|item| nests_deeper(item, levels - 1)),
        Value::Object(members) => levels == 0 || members.values().any(|value| nests_deeper(value, levels - 1)),
        _ => false,
    }
}

/// Makes the pins of a server's tools, sorted by name. Texts are kept to 8192 bytes, or as much less as it takes for the document's JSON to
/// have at most 768 KiB.
///
/// The same definition twice is kept once. Two different ones of one tool are both kept: such a document is refused where it is read.
pub fn document(server: &str, definitions: &[Definition]) -> MCPToolPinsSpec {
    let mut sorted: Vec<_> = definitions.iter().collect();
    let key = |definition: &Definition| ToolPart::ALL.map(|part| definition.digests.get(part).copied());
    sorted.sort_by(|one, other| one.name.cmp(&other.name).then_with(|| key(one).cmp(&key(other))));
    sorted.dedup_by(|one, other| one.name == other.name && one.digests == other.digests);
    let of = |bytes: usize| MCPToolPinsSpec {
        server: server.to_owned(),
        tools: sorted.iter().map(|definition| definition.pinned(bytes)).collect(),
    };
    let fits = |spec: &MCPToolPinsSpec| serde_json::to_vec(spec).is_ok_and(|json| json.len() <= DOCUMENT);
    TEXTS.into_iter().map(of).find(fits).unwrap_or_else(|| of(0))
}
