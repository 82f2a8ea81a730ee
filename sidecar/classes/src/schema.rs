//! What the schema of the arguments says: the names, values and descriptions of properties.

use serde_json::{Map, Value};

use crate::words::{self, Word};

/// How many properties are looked at.
const PROPERTIES: usize = 256;
/// How many values of an enumeration.
const VALUES: usize = 256;
/// How deep.
const DEPTH: usize = 6;
/// How many schemas.
const SCHEMAS: usize = 1024;
/// Properties that hold the arguments themselves.
const WRAPPERS: &str = "request params parameters input inputs arguments args body options payload";

/// A property of the arguments.
#[derive(Clone, Debug)]
pub struct Property<'a> {
    /// Where it stands: `inputSchema.properties.sql`.
    pub path: String,
    /// Its name.
    pub name: &'a str,
    /// The words of its name.
    pub words: Vec<Word>,
    /// Its description.
    pub description: Option<&'a str>,
    /// The values that an enumeration allows, with where they stand.
    pub values: Vec<(String, &'a str)>,
    /// Whether it is true or false.
    pub boolean: bool,
    /// Whether every call must give it.
    pub required: bool,
}

impl Property<'_> {
    /// Whether the last word of the name is one of these.
    pub fn ends_with(&self, words: &str) -> bool {
        self.words.last().is_some_and(|word| crate::lexicon::among(words, &word.lower))
    }

    /// Whether the first word of the name is one of these.
    pub fn begins_with(&self, words: &str) -> bool {
        self.words.first().is_some_and(|word| crate::lexicon::among(words, &word.lower))
    }

    /// Whether one of the words of the name is one of these.
    pub fn has(&self, words: &str) -> bool {
        self.words.iter().any(|word| crate::lexicon::among(words, &word.lower))
    }
}

/// The properties of a schema, also those of its alternatives and of what only wraps them.
pub fn properties(schema: &Value) -> Vec<Property<'_>> {
    let mut walk = Walk { root: schema, found: Vec::new(), left: SCHEMAS };
    walk.schema(schema, "inputSchema", DEPTH);
    walk.found
}

struct Walk<'a> {
    root: &'a Value,
    found: Vec<Property<'a>>,
    left: usize,
}

impl<'a> Walk<'a> {
    fn schema(&mut self, schema: &'a Value, path: &str, depth: usize) {
        let Some(schema) = self.resolved(schema) else { return };
        if depth == 0 || self.left == 0 {
            return;
        }
        self.left -= 1;
        for key in ["oneOf", "anyOf", "allOf"] {
            for (at, part) in schema.get(key).and_then(Value::as_array).into_iter().flatten().enumerate().take(VALUES) {
                self.schema(part, &format!("{path}.{key}[{at}]"), depth - 1);
            }
        }
        let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
        let alone = properties.len() == 1;
        for (name, property) in properties {
            if self.found.len() >= PROPERTIES {
                return;
            }
            if name.len() > words::NAME_BYTES {
                continue;
            }
            let path = format!("{path}.properties.{name}");
            let Some(inner) = self.resolved(property) else { continue };
            let property = self.property(path, name, inner, requires(schema, name));
            if inner.contains_key("properties") && (alone || property.ends_with(WRAPPERS)) || alone && inner.contains_key("anyOf")
            {
                self.inner(inner, &property.path, depth - 1);
            }
            self.found.push(property);
        }
    }

    /// The parts of an object that wraps the arguments.
    fn inner(&mut self, inner: &'a Map<String, Value>, path: &str, depth: usize) {
        let parts = ["oneOf", "anyOf", "allOf"].into_iter().filter_map(|key| Some((key, inner.get(key)?.as_array()?)));
        for (key, parts) in parts {
            for (at, part) in parts.iter().enumerate().take(VALUES) {
                self.schema(part, &format!("{path}.{key}[{at}]"), depth);
            }
        }
        for (name, property) in inner.get("properties").and_then(Value::as_object).into_iter().flatten() {
            if self.found.len() >= PROPERTIES {
                return;
            }
            let Some(part) = self.resolved(property).filter(|_| name.len() <= words::NAME_BYTES) else { continue };
            let path = format!("{path}.properties.{name}");
            let property = self.property(path, name, part, requires(inner, name));
            self.found.push(property);
        }
    }

    /// The schema itself, or the one of the same document to which it refers.
    fn resolved(&self, schema: &'a Value) -> Option<&'a Map<String, Value>> {
        let schema = schema.as_object()?;
        let target = schema.get("$ref").and_then(Value::as_str).and_then(|target| target.strip_prefix('#'));
        target.and_then(|pointer| self.root.pointer(pointer)).and_then(Value::as_object).or(Some(schema))
    }

    fn property(&self, path: String, name: &'a str, schema: &'a Map<String, Value>, required: bool) -> Property<'a> {
        let mut values = Vec::new();
        enumerated(schema, &path, &mut values);
        for key in ["items", "anyOf", "oneOf"] {
            let parts = match schema.get(key) {
                Some(Value::Array(parts)) => parts.as_slice(),
                Some(part) => std::slice::from_ref(part),
                None => &[],
            };
            for (at, part) in parts.iter().enumerate().take(VALUES) {
                let Some(part) = self.resolved(part) else { continue };
                enumerated(part, &format!("{path}.{key}[{at}]"), &mut values);
            }
        }
        Property {
            path,
            name,
            words: words::of_name(name),
            description: schema.get("description").and_then(Value::as_str),
            values,
            boolean: schema.get("type").and_then(Value::as_str) == Some("boolean"),
            required,
        }
    }
}

/// Whether a schema of an object requires this property.
fn requires(schema: &Map<String, Value>, name: &str) -> bool {
    let required = schema.get("required").and_then(Value::as_array);
    required.into_iter().flatten().any(|required| required.as_str() == Some(name))
}

fn enumerated<'a>(schema: &'a Map<String, Value>, path: &str, values: &mut Vec<(String, &'a str)>) {
    let listed = schema.get("enum").and_then(Value::as_array).into_iter().flatten().enumerate();
    let listed = listed.filter_map(|(at, value)| Some((format!("{path}.enum[{at}]"), value.as_str()?)));
    let only = schema.get("const").and_then(Value::as_str).map(|value| (format!("{path}.const"), value));
    let left = VALUES.saturating_sub(values.len());
    values.extend(listed.chain(only).take(left));
}
