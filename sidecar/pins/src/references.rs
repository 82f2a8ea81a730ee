//! References within a schema.

use serde_json::Value;

use crate::{
    assertions::Keywords,
    keywords::{Content, content},
};

/// Keywords whose value leads to another schema.
const REFERENCES: [&str; 3] = ["$ref", "$dynamicRef", "$recursiveRef"];
/// How many references one after the other.
const HOPS: usize = 16;

/// Whether anything in the value refers to a schema.
pub fn refers(value: &Value) -> bool {
    any_reference(value, &|_| true)
}

/// Whether a reference in the value may lead into the value of a keyword of this kind (`#/enum/0` into a list that has no order otherwise).
pub fn refers_into(value: &Value, kind: Content) -> bool {
    // What is written with `%` may be anything.
    let leads = |target: &Value| {
        target.as_str().is_some_and(|target| target.contains('%') || target.split('/').any(|step| content(step) == kind))
    };
    any_reference(value, &leads)
}

fn any_reference(value: &Value, leads: &dyn Fn(&Value) -> bool) -> bool {
    match value {
        Value::Array(items) => items.iter().any(|item| any_reference(item, leads)),
        Value::Object(members) => {
            members.iter().any(|(name, value)| REFERENCES.contains(&name.as_str()) && leads(value) || any_reference(value, leads))
        }
        _ => false,
    }
}

/// Whether a keyword says all that a schema says of values.
pub fn stands_alone(schema: &Keywords, keyword: &str) -> bool {
    let silent =
        |name: &str| matches!(content(name), Content::Text | Content::Dialect) || matches!(name, "$defs" | "definitions");
    schema.contains_key(keyword) && schema.keys().all(|name| name == keyword || silent(name))
}

/// Returns the schema that is meant: where a `$ref` stands alone, what it leads to in the same document; where an `allOf` of one stands
/// alone, that one. None where a reference leads nowhere, or in a circle.
pub fn target<'a>(schema: &'a Value, root: &'a Value) -> Option<&'a Value> {
    let mut schema = schema;
    for _ in 0..HOPS {
        let Some(keywords) = schema.as_object() else { return Some(schema) };
        schema = if stands_alone(keywords, "$ref") {
            let pointer = keywords.get("$ref")?.as_str()?.strip_prefix('#')?;
            root.pointer(pointer).filter(|_| !pointer.contains('%'))?
        } else if stands_alone(keywords, "allOf")
            && let Some([only]) = keywords.get("allOf").and_then(Value::as_array).map(Vec::as_slice)
        {
            only
        } else {
            return Some(schema);
        };
    }
    None
}
