//! The canonical form of a value: JSON that is the same for two values that differ in notation alone.
//!
//! - No white space. Members stand in the order of their names' bytes (UTF-8, so by code points).
//! - Strings have no escapes but those that JSON demands, each in one way, in lower case.
//! - An integer of 64 bits is written as such, in whatever notation it stood. Any other number is the nearest `f64` in its shortest
//!   notation: with an exponent (`1.5e-7`) from 10^21 on and below 10^-5.
//!
//! In a schema, moreover, `required` and `enum` are sorted by the canonical forms of their items, each of which stands once; a `$schema`
//! that names a known dialect is left out, and so is a `required` that requires nothing. Any other `$schema` is a text like others. That holds where schemas stand (`keywords.rs`), not within data. Where a `$ref` may point into such a list,
//! the lists of that schema stay as they are: there, their order means something.

use ring::digest::{SHA256, digest};
use serde_json::{Map, Value};
use toolweir_crds::tool_pins::PartDigest;

use crate::{
    keywords::{Content, content},
    number,
    references::refers_into,
};

/// How a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// As data.
    Data,
    /// As a schema.
    Schema,
    /// As a schema whose lists stay as they are.
    OrderedSchema,
}

/// Returns the canonical form of a value that is no schema.
pub fn of_value(value: &Value) -> String {
    let mut out = String::new();
    write(value, Form::Data, &mut out);
    out
}

/// Returns the canonical form of a schema.
pub fn of_schema(schema: &Value) -> String {
    let form = if refers_into(schema, Content::Set) { Form::OrderedSchema } else { Form::Schema };
    let mut out = String::new();
    write(schema, form, &mut out);
    out
}

/// Returns the digest of a canonical form.
pub fn digest_of(canonical: &str) -> PartDigest {
    sha256(canonical.as_bytes())
}

/// Returns the SHA-256 of bytes.
pub fn sha256(bytes: &[u8]) -> PartDigest {
    let digest = digest(&SHA256, bytes);
    std::array::from_fn(|at| digest.as_ref().get(at).copied().unwrap_or_default())
}

/// Returns a digest as pins have it.
pub fn hex(digest: &PartDigest) -> String {
    digest.iter().flat_map(|byte| [byte >> 4, byte & 15]).filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}

fn write(value: &Value, form: Form, out: &mut String) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(number) => number::write(number, out),
        Value::String(text) => write_string(text, out),
        Value::Array(items) => list(items, Form::Data, out),
        Value::Object(members) => object(members, form, out),
    }
}

/// Writes the value of a keyword of a schema.
fn keyword(name: &str, value: &Value, form: Form, out: &mut String) {
    match (content(name), value) {
        (Content::Schema, Value::Object(_)) => write(value, form, out),
        (Content::Schema | Content::Schemas, Value::Array(schemas)) => list(schemas, form, out),
        (Content::Named, Value::Object(schemas)) => {
            let all: Vec<_> = schemas.iter().collect();
            members(all, out, |_, schema, out| write(schema, form, out));
        }
        (Content::Set, Value::Array(items)) if form == Form::Schema => set(items, out),
        _ => write(value, Form::Data, out),
    }
}

/// Whether a `$schema` names a dialect of JSON Schema that servers of MCP use, and says nothing else.
fn is_known_dialect(uri: &str) -> bool {
    let scheme = ["http://", "https://"];
    let Some(rest) = scheme.iter().find_map(|scheme| uri.strip_prefix(scheme)) else { return false };
    let dialect = rest.strip_prefix("json-schema.org/").map(|rest| rest.trim_end_matches('#'));
    let known = ["draft-04", "draft-06", "draft-07", "draft/2019-09", "draft/2020-12"];
    rest.matches('#').count() <= 1
        && dialect.and_then(|dialect| dialect.strip_suffix("/schema")).is_some_and(|name| known.contains(&name))
}

fn object(object: &Map<String, Value>, form: Form, out: &mut String) {
    let says_nothing = |name: &str, value: &Value| match content(name) {
        Content::Dialect => value.as_str().is_some_and(is_known_dialect),
        Content::Set => name == "required" && form == Form::Schema && value.as_array().is_some_and(Vec::is_empty),
        _ => false,
    };
    let kept = |(name, value): &(&String, &Value)| form == Form::Data || !says_nothing(name, value);
    let kept: Vec<_> = object.iter().filter(kept).collect();
    members(kept, out, |name, value, out| match form {
        Form::Data => write(value, form, out),
        Form::Schema | Form::OrderedSchema => keyword(name, value, form, out),
    });
}

fn members(mut members: Vec<(&String, &Value)>, out: &mut String, each: impl Fn(&str, &Value, &mut String)) {
    // A build can have maps that keep the order of the text.
    members.sort_unstable_by_key(|(name, _)| *name);
    out.push('{');
    for (at, (name, value)) in members.into_iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        write_string(name, out);
        out.push(':');
        each(name, value, out);
    }
    out.push('}');
}

fn list(items: &[Value], form: Form, out: &mut String) {
    out.push('[');
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        write(item, form, out);
    }
    out.push(']');
}

fn set(items: &[Value], out: &mut String) {
    let mut items: Vec<_> = items.iter().map(of_value).collect();
    items.sort_unstable();
    items.dedup();
    out.push('[');
    out.push_str(&items.join(","));
    out.push(']');
}

/// Writes a string of JSON as RFC 8785 has it: with the escapes that JSON demands, each in one way, in lower case.
pub fn write_string(text: &str, out: &mut String) {
    out.push('"');
    let mut rest = text;
    while let Some(at) = rest.bytes().position(|byte| byte < b' ' || byte == b'"' || byte == b'\\') {
        let (plain, from) = rest.split_at(at);
        out.push_str(plain);
        let mut chars = from.chars();
        match chars.next() {
            Some('"') => out.push_str("\\\""),
            Some('\\') => out.push_str("\\\\"),
            Some('\u{8}') => out.push_str("\\b"),
            Some('\t') => out.push_str("\\t"),
            Some('\n') => out.push_str("\\n"),
            Some('\u{c}') => out.push_str("\\f"),
            Some('\r') => out.push_str("\\r"),
            control => out.push_str(&format!("\\u{:04x}", control.map_or(0, u32::from))),
        }
        rest = chars.as_str();
    }
    out.push_str(rest);
    out.push('"');
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn strings_have_one_form_that_is_json() {
        let text: String = (0..=u8::MAX).map(char::from).chain(['\u{2028}', '🦀']).collect();
        let mut written = String::new();
        write_string(&text, &mut written);
        assert_eq!(written, serde_json::to_string(&text).unwrap());
        assert_eq!(serde_json::from_str::<String>(&written).unwrap(), text);
    }

    #[test]
    fn members_stand_in_the_order_of_code_points() {
        assert_eq!(
            of_value(&json!({"\u{ffff}": 1, "🦀": 2, "b": [], "a": {}, "aa": null, "": true})),
            "{\"\":true,\"a\":{},\"aa\":null,\"b\":[],\"\u{ffff}\":1,\"🦀\":2}"
        );
    }
}
