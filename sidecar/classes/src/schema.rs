//! What the schema of the arguments says: the names, values and descriptions of properties.

use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::{
    arguments::SELECTORS,
    lexicon,
    words::{self, Word},
};

/// How many properties are looked at.
const PROPERTIES: usize = 256;
/// How many values of an enumeration.
const VALUES: usize = 256;
/// How many objects and lists deep.
const DEPTH: usize = 8;
/// How many schemas.
const SCHEMAS: usize = 4096;
/// How many references one after the other.
const REFERENCES: usize = 8;
/// Keys with alternatives, or parts that hold for the same value.
const PARTS: [&str; 6] = ["oneOf", "anyOf", "allOf", "if", "then", "else"];
/// Keys with the schemas of what is inside.
const INSIDE: [&str; 7] =
    ["items", "prefixItems", "additionalItems", "contains", "additionalProperties", "unevaluatedProperties", "unevaluatedItems"];

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

/// What a schema says.
#[derive(Clone, Debug, Default)]
pub struct Arguments<'a> {
    /// The properties, at any depth.
    pub properties: Vec<Property<'a>>,
    /// Whether there are more, or deeper ones, than are read.
    pub cut: bool,
}

impl Property<'_> {
    /// The last word of the name, if it is one of these.
    pub fn last_of(&self, words: &str) -> Option<&Word> {
        self.words.last().filter(|word| lexicon::among(words, &word.lower))
    }

    /// The first word of the name that is one of these.
    pub fn one_of(&self, words: &str) -> Option<&Word> {
        self.words.iter().find(|word| lexicon::among(words, &word.lower))
    }

    /// Whether the last word of the name is one of these.
    pub fn ends_with(&self, words: &str) -> bool {
        self.last_of(words).is_some()
    }

    /// Whether the first word of the name is one of these.
    pub fn begins_with(&self, words: &str) -> bool {
        self.words.first().is_some_and(|word| lexicon::among(words, &word.lower))
    }

    /// Whether one of the words of the name is one of these.
    pub fn has(&self, words: &str) -> bool {
        self.one_of(words).is_some()
    }
}

/// The properties of a schema: also those of its alternatives, and of the objects and lists inside.
pub fn arguments(schema: &Value) -> Arguments<'_> {
    let mut walk = Walk { root: schema, found: Arguments::default(), left: SCHEMAS, seen: HashSet::new() };
    walk.schema(schema, "inputSchema", DEPTH);
    walk.found
}

struct Walk<'a> {
    root: &'a Value,
    found: Arguments<'a>,
    left: usize,
    /// Where the schemas lie that were read: one that refers to itself is read once.
    seen: HashSet<*const Map<String, Value>>,
}

impl<'a> Walk<'a> {
    fn schema(&mut self, schema: &'a Value, path: &str, depth: usize) {
        for schema in self.layers(schema) {
            if !self.seen.insert(std::ptr::from_ref(schema)) {
                continue;
            }
            if self.left == 0 {
                self.found.cut = true;
                return;
            }
            self.left -= 1;
            for key in PARTS {
                self.parts(schema, key, path, depth);
            }
            if depth == 0 {
                self.found.cut |= ["properties", "patternProperties"].iter().any(|key| schema.contains_key(*key))
                    || INSIDE.iter().any(|key| schema.get(*key).is_some_and(|inside| inside.is_object() || inside.is_array()));
                continue;
            }
            for key in INSIDE {
                self.parts(schema, key, path, depth - 1);
            }
            for key in ["properties", "patternProperties", "dependentSchemas"] {
                self.named(schema, key, path, depth - 1);
            }
        }
    }

    /// The schema of a key, or those of its list.
    fn parts(&mut self, schema: &'a Map<String, Value>, key: &str, path: &str, depth: usize) {
        match schema.get(key) {
            Some(Value::Array(parts)) => {
                for (at, part) in parts.iter().enumerate() {
                    self.schema(part, &format!("{path}.{key}[{at}]"), depth);
                }
            }
            Some(part) => self.schema(part, &format!("{path}.{key}"), depth),
            None => {}
        }
    }

    fn named(&mut self, schema: &'a Map<String, Value>, key: &str, path: &str, depth: usize) {
        for (name, value) in schema.get(key).and_then(Value::as_object).into_iter().flatten() {
            if self.found.properties.len() >= PROPERTIES || name.len() > words::NAME_BYTES {
                self.found.cut = true;
                return;
            }
            let path = format!("{path}.{key}.{name}");
            if key != "dependentSchemas" {
                let property = self.property(path.clone(), name, value, requires(schema, name));
                self.found.properties.push(property);
            }
            self.schema(value, &path, depth);
        }
    }

    /// The schema itself, and those of the same document to which it refers.
    fn layers(&self, schema: &'a Value) -> Vec<&'a Map<String, Value>> {
        let mut layers = Vec::new();
        let mut next = schema.as_object();
        while let Some(layer) = next.filter(|_| layers.len() < REFERENCES) {
            layers.push(layer);
            let target = layer.get("$ref").and_then(Value::as_str).and_then(|target| target.strip_prefix('#'));
            next = target.and_then(|pointer| self.root.pointer(pointer)).and_then(Value::as_object);
        }
        layers
    }

    fn property(&mut self, path: String, name: &'a str, schema: &'a Value, required: bool) -> Property<'a> {
        let layers = self.layers(schema);
        let mut values = Vec::new();
        for layer in &layers {
            enumerated(layer, &path, &mut values);
            for key in ["items", "anyOf", "oneOf"] {
                let parts = match layer.get(key) {
                    Some(Value::Array(parts)) => parts.as_slice(),
                    Some(part) => std::slice::from_ref(part),
                    None => &[],
                };
                for (at, part) in parts.iter().enumerate() {
                    for part in self.layers(part) {
                        enumerated(part, &format!("{path}.{key}[{at}]"), &mut values);
                    }
                }
            }
        }
        let words = words::of_name(name);
        let chooses = words.last().is_some_and(|word| lexicon::among(SELECTORS, &word.lower));
        self.found.cut |= chooses && values.len() > VALUES;
        values.truncate(VALUES);
        Property {
            path,
            name,
            words,
            description: layers.iter().find_map(|layer| layer.get("description").and_then(Value::as_str)),
            values,
            boolean: layers.iter().any(|layer| layer.get("type").and_then(Value::as_str) == Some("boolean")),
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
    let left = (VALUES + 1).saturating_sub(values.len());
    values.extend(listed.chain(only).take(left));
}
