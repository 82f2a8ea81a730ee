//! Files of policies: Kubernetes manifests in YAML or JSON, with errors that name file, line, column and field.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Serialize,
    de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use crate::{
    API_VERSION, check,
    error::{FieldError, FileError},
    policy::{MCPClusterPolicySpec, MCPPolicySpec},
    quoting,
    text::one_line,
    tool_pins::{MCPToolPinsSpec, ToolPins},
    yaml_words,
};

/// One policy of a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
pub enum Document {
    /// An `MCPPolicy`.
    MCPPolicy {
        /// Its name and namespace.
        metadata: Metadata,
        /// Its spec.
        spec: MCPPolicySpec,
    },
    /// An `MCPClusterPolicy`.
    MCPClusterPolicy {
        /// Its name.
        metadata: Metadata,
        /// Its spec.
        spec: MCPClusterPolicySpec,
    },
}

/// The part of Kubernetes' object metadata that matters here. The rest is accepted, so that the output of
/// `kubectl get -o yaml` is a policy file too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// The policy's name.
    pub name: String,
    /// Its namespace; none for an `MCPClusterPolicy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// When it was created, in RFC 3339; of two policies that give a server different urls the older one's holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<String>,
    /// Its uid in a cluster. An approval is bound to it, and to the generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Its generation in a cluster, which changes with its spec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
}

/// A document with its place in a file, for errors that are found later.
#[derive(Clone, Debug)]
pub struct Located<'a> {
    /// The document.
    pub document: Document,
    /// False where the file leaves the namespace out: that of an `MCPPolicy` is `default` then.
    pub has_namespace: bool,
    place: DocumentPlace<'a>,
}

/// Where a document stands.
#[derive(Clone, Copy, Debug)]
struct DocumentPlace<'a> {
    file: &'a str,
    text: &'a str,
    index: usize,
}

impl DocumentPlace<'_> {
    /// Adds the place of a field in the file to an error.
    fn error(&self, error: &FieldError) -> FileError {
        FileError { file: self.file.to_owned(), position: locate(self.text, self.index, &error.path), message: error.to_string() }
    }
}

impl Located<'_> {
    /// Adds the place of a field in the file to an error.
    pub fn error(&self, error: &FieldError) -> FileError {
        self.place.error(error)
    }

    /// Returns an error for each unquoted text that kubectl reads as a boolean, a number or null.
    pub fn unquoted(&self) -> Vec<FileError> {
        let Ok(value) = serde_yaml::to_value(&self.document) else { return Vec::new() };
        let stands_plain = |path: &str, key: bool| {
            let (line, column) = locate(self.place.text, self.place.index, path)?;
            let line = self.place.text.lines().nth(line.checked_sub(1)?)?;
            let before: String = line.chars().take(column.checked_sub(1)?).collect();
            let quotes = ['"', '\''];
            Some(if key {
                let key = before.trim_end().strip_suffix(':')?.trim_end();
                !key.ends_with(quotes)
            } else {
                // A block, a tag, an alias or an anchor is no plain scalar.
                let first = line.get(before.len()..)?.chars().next()?;
                !quotes.contains(&first) && !"|>!&*".contains(first)
            })
        };
        let found = quoting::doubtful(&value).into_iter();
        found.filter(|(error, key)| stands_plain(&error.path, *key) == Some(true)).map(|(error, _)| self.error(&error)).collect()
    }
}

/// What a file holds.
#[derive(Clone, Debug, Default)]
pub struct Manifests<'a> {
    /// The policies.
    pub policies: Vec<Located<'a>>,
    /// The pins.
    pub pins: Vec<LocatedPins<'a>>,
}

/// Pins with their place in a file, for errors that are found later.
#[derive(Clone, Debug)]
pub struct LocatedPins<'a> {
    /// The pins.
    pub pins: ToolPins,
    place: DocumentPlace<'a>,
}

impl LocatedPins<'_> {
    /// Adds the place of a field in the file to an error.
    pub fn error(&self, error: &FieldError) -> FileError {
        self.place.error(error)
    }
}

/// Reads every policy of a file, as [`read_manifests`] does, and passes over pins.
///
/// # Errors
/// Those of [`read_manifests`]; a file without a policy is an error too.
pub fn read_documents<'a>(file: &'a str, text: &'a str) -> Result<Vec<Located<'a>>, Vec<FileError>> {
    let policies = read_manifests(file, text)?.policies;
    if policies.is_empty() { Err(vec![no_policy(file)]) } else { Ok(policies) }
}

/// Returns the error of a file, or a folder, that holds no policy.
pub fn no_policy(file: &str) -> FileError {
    let message = format!("holds no policy; write one with `apiVersion: {API_VERSION}` and `kind: MCPPolicy`");
    FileError { file: file.to_owned(), position: None, message }
}

/// Reads every policy and all pins of a file, and checks the bounds. `file` is only used to name it in errors.
///
/// # Errors
/// All errors of the first document that has any; a file with neither policies nor pins is an error too.
pub fn read_manifests<'a>(file: &'a str, text: &'a str) -> Result<Manifests<'a>, Vec<FileError>> {
    // YAML lets a byte-order mark begin a file (YAML 1.2.2, section 5.2), and editors of Windows write one.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut read = Manifests::default();
    let heads = serde_yaml::Deserializer::from_str(text);
    let bodies = serde_yaml::Deserializer::from_str(text);
    for (index, (head, body)) in heads.zip(bodies).enumerate() {
        let place = DocumentPlace { file, text, index };
        let Some(head) = Option::<Head>::deserialize(head).map_err(|error| vec![yaml_error(file, text, &error)])? else {
            continue;
        };
        if let Some(error) = head.problem() {
            return Err(vec![place.error(&error)]);
        }
        if head.kind == PINS_KIND {
            let pins = read_pins(body).map_err(|error| vec![yaml_error(file, text, &error)])?;
            let errors = check::check_tool_pins(&pins);
            let located = LocatedPins { pins, place };
            if !errors.is_empty() {
                return Err(errors.iter().map(|error| located.error(error)).collect());
            }
            read.pins.push(located);
            continue;
        }
        let (document, has_namespace) = head.read(body).map_err(|error| vec![yaml_error(file, text, &error)])?;
        let located = Located { document, has_namespace, place };
        let errors = check_document(&located.document);
        if !errors.is_empty() {
            return Err(errors.iter().map(|error| located.error(error)).collect());
        }
        read.policies.push(located);
    }
    if read.policies.is_empty() && read.pins.is_empty() { Err(vec![no_policy(file)]) } else { Ok(read) }
}

/// The kind of pins.
const PINS_KIND: &str = "MCPToolPins";

fn read_pins(document: serde_yaml::Deserializer<'_>) -> Result<ToolPins, serde_yaml::Error> {
    let manifest = Manifest::<MCPToolPinsSpec>::deserialize(document)?;
    let namespace = manifest.metadata.namespace.unwrap_or_else(|| "default".to_owned());
    Ok(ToolPins { namespace, name: manifest.metadata.name, spec: manifest.spec })
}

fn check_document(document: &Document) -> Vec<FieldError> {
    let (metadata, mut errors) = match document {
        Document::MCPPolicy { metadata, spec } => (metadata, check::check(spec, false)),
        Document::MCPClusterPolicy { metadata, spec } => {
            let mut errors = check::check_selector("spec.namespaceSelector", &spec.namespace_selector);
            errors.extend(check::check(&spec.clone().into(), true));
            if metadata.namespace.is_some() {
                errors.push(FieldError {
                    path: "metadata.namespace".to_owned(),
                    message: "an MCPClusterPolicy has no namespace; remove it, or write `kind: MCPPolicy`".to_owned(),
                });
            }
            (metadata, errors)
        }
    };
    for (path, name) in [("metadata.name", Some(&metadata.name)), ("metadata.namespace", metadata.namespace.as_ref())] {
        errors.extend(name.and_then(|name| check::object_name_problem(path, name)));
    }
    errors
}

/// The fields that say how to read the rest of a document.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", expecting = "a manifest with apiVersion, kind, metadata and spec")]
struct Head {
    api_version: String,
    kind: String,
}

impl Head {
    /// Returns the field by which the document is no policy, if so.
    fn problem(&self) -> Option<FieldError> {
        let error = |path: &str, text: &str, known: &str| {
            let message = format!("`{}` is not known; write {known}", text.escape_debug());
            Some(FieldError { path: path.to_owned(), message })
        };
        if self.api_version != API_VERSION {
            return error("apiVersion", &self.api_version, &format!("`{API_VERSION}`"));
        }
        if !["MCPPolicy", "MCPClusterPolicy", PINS_KIND].contains(&self.kind.as_str()) {
            return error("kind", &self.kind, "`MCPPolicy`, `MCPClusterPolicy` or `MCPToolPins`");
        }
        None
    }

    /// Reads a document. Also returns whether it names a namespace.
    fn read(&self, document: serde_yaml::Deserializer<'_>) -> Result<(Document, bool), serde_yaml::Error> {
        if self.kind == "MCPClusterPolicy" {
            let manifest = Manifest::<MCPClusterPolicySpec>::deserialize(document)?;
            let metadata: Metadata = manifest.metadata.into();
            let has_namespace = metadata.namespace.is_some();
            return Ok((Document::MCPClusterPolicy { metadata, spec: manifest.spec }, has_namespace));
        }
        let manifest = Manifest::<MCPPolicySpec>::deserialize(document)?;
        let mut metadata: Metadata = manifest.metadata.into();
        let has_namespace = metadata.namespace.is_some();
        metadata.namespace.get_or_insert_with(|| "default".to_owned());
        Ok((Document::MCPPolicy { metadata, spec: manifest.spec }, has_namespace))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Manifest<S> {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: ObjectMeta,
    spec: S,
    #[serde(default, rename = "status")]
    _status: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ObjectMeta {
    name: String,
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    creation_timestamp: Option<String>,
    #[serde(default, rename = "labels")]
    _labels: BTreeMap<String, String>,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    #[serde(default)]
    uid: Option<String>,
    #[serde(default, rename = "resourceVersion")]
    _resource_version: IgnoredAny,
    #[serde(default)]
    generation: Option<i64>,
    #[serde(default, rename = "managedFields")]
    _managed_fields: IgnoredAny,
    #[serde(default, rename = "ownerReferences")]
    _owner_references: IgnoredAny,
    #[serde(default, rename = "finalizers")]
    _finalizers: IgnoredAny,
}

impl From<ObjectMeta> for Metadata {
    fn from(meta: ObjectMeta) -> Self {
        let ObjectMeta { name, namespace, creation_timestamp, uid, generation, .. } = meta;
        Self { name, namespace, creation_timestamp, uid, generation }
    }
}

fn yaml_error(file: &str, text: &str, error: &serde_yaml::Error) -> FileError {
    let told = error.to_string();
    let position = error.location().map(|at| (at.line(), at.column()));
    // The place is told before the message.
    let message = position.map_or(told.clone(), |(line, column)| told.replace(&format!(" at line {line} column {column}"), ""));
    let line = position.and_then(|(line, _)| text.lines().nth(line.checked_sub(1)?)).unwrap_or_default();
    let message = yaml_words::remedied(one_line(&message, usize::MAX), line);
    FileError { file: file.to_owned(), position, message }
}

/// Returns the line and column of a field. The YAML library knows places only for errors, so this walks to the field and raises
/// one there. A field that is not there gives the place of what should hold it.
fn locate(text: &str, document: usize, path: &str) -> Option<(usize, usize)> {
    let steps = steps(path);
    let document = serde_yaml::Deserializer::from_str(text).nth(document)?;
    let place = Walk(&steps).deserialize(document).err()?.location()?;
    Some((place.line(), place.column()))
}

/// Returns the keys and indices of a path such as `a.b[0]["c.d"]`.
fn steps(path: &str) -> Vec<&str> {
    let (mut steps, mut rest) = (Vec::new(), path);
    while !rest.is_empty() {
        let (step, after) = match rest.strip_prefix("[\"") {
            Some(quoted) => quoted.split_once("\"]").unwrap_or((quoted, "")),
            None => {
                let start = rest.strip_prefix(['.', '[']).unwrap_or(rest);
                let end = start.find(['.', '[']).unwrap_or(start.len());
                let (step, after) = start.split_at(end);
                (step.trim_end_matches(']'), after)
            }
        };
        steps.push(step);
        rest = after;
    }
    steps
}

struct Walk<'a>(&'a [&'a str]);

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    // Scalars end the walk: the provided methods raise an error, and that has the place.
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the end of the walk")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        if let Some((step, rest)) = self.0.split_first() {
            while let Some(key) = map.next_key::<String>()? {
                if key == *step {
                    return map.next_value_seed(Walk(rest));
                }
                map.next_value::<IgnoredAny>()?;
            }
        }
        Err(de::Error::custom("here"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        if let Some((step, rest)) = self.0.split_first() {
            let index: usize = step.parse().map_err(de::Error::custom)?;
            for _ in 0..index {
                seq.next_element::<IgnoredAny>()?;
            }
            if seq.next_element_seed(Walk(rest))?.is_some() {
                return Ok(());
            }
        }
        Err(de::Error::custom("here"))
    }
}
