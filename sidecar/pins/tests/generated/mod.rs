//! Schemas and definitions for property tests, and how to change them.
#![allow(dead_code)]

use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::{Map, Value, json};

/// Names of members: some are called like keywords.
pub const NAMES: [&str; 6] = ["a", "b", "c", "required", "enum", "$schema"];

/// Small values.
pub fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-2..7).prop_map(Value::from),
        select(vec![0.5, 1.5, -1e-7, 1e30]).prop_map(Value::from),
        select(vec!["", "a", "b", "ab", "abc", "é\"\\\n\u{1}"]).prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        let members = vec((select(&NAMES[..]), inner.clone()), 0..4);
        prop_oneof![members.prop_map(object), vec(inner, 0..4).prop_map(Value::from)]
    })
}

/// An object of these members; of two with one name, the last.
pub fn object<N: Into<String>>(members: Vec<(N, Value)>) -> Value {
    Value::Object(members.into_iter().map(|(name, value)| (name.into(), value)).collect())
}

fn type_name() -> impl Strategy<Value = Value> {
    select(vec!["null", "boolean", "integer", "number", "string", "array", "object", "object"]).prop_map(Value::from)
}

/// A keyword without schemas in it, and its value.
fn assertion() -> impl Strategy<Value = (&'static str, Value)> {
    let count = select(vec!["minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"]);
    let bound = select(vec!["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]);
    let names = || vec(select(&NAMES[..]), 0..3).prop_map(Value::from);
    prop_oneof![
        6 => type_name().prop_map(|name| ("type", name)),
        2 => vec(type_name(), 1..4).prop_map(|names| ("type", Value::from(names))),
        2 => vec(value(), 1..5).prop_map(|values| ("enum", Value::from(values))),
        1 => value().prop_map(|value| ("const", value)),
        2 => (count, 0..4).prop_map(|(keyword, count)| (keyword, Value::from(count))),
        2 => (bound, -2..6).prop_map(|(keyword, bound)| (keyword, Value::from(bound))),
        1 => (1..5).prop_map(|of| ("multipleOf", Value::from(of))),
        1 => select(vec!["^a", "^b"]).prop_map(|pattern| ("pattern", Value::from(pattern))),
        1 => any::<bool>().prop_map(|unique| ("uniqueItems", Value::from(unique))),
        2 => names().prop_map(|names| ("required", names)),
        1 => (select(&NAMES[..]), names()).prop_map(|(name, names)| ("dependentRequired", json!({name: names}))),
        1 => select(vec!["title", "description", "$comment"]).prop_map(|keyword| (keyword, Value::from("text"))),
        1 => value().prop_map(|value| ("default", value)),
        1 => Just(("$schema", Value::from("https://json-schema.org/draft/2020-12/schema"))),
    ]
}

/// A keyword with schemas in it.
fn applicator(inner: BoxedStrategy<Value>) -> impl Strategy<Value = (&'static str, Value)> {
    let named = |inner: &BoxedStrategy<Value>| vec((select(&NAMES[..]), inner.clone()), 0..4).prop_map(object);
    let list = |inner: &BoxedStrategy<Value>| vec(inner.clone(), 1..4).prop_map(Value::from);
    let one = select(vec!["not", "if", "then", "else", "contains", "propertyNames"]);
    prop_oneof![
        8 => named(&inner).prop_map(|schemas| ("properties", schemas)),
        3 => inner.clone().prop_map(|schema| ("additionalProperties", schema)),
        3 => inner.clone().prop_map(|schema| ("items", schema)),
        3 => list(&inner).prop_map(|schemas| ("anyOf", schemas)),
        2 => list(&inner).prop_map(|schemas| ("allOf", schemas)),
        1 => list(&inner).prop_map(|schemas| ("oneOf", schemas)),
        1 => list(&inner).prop_map(|schemas| ("prefixItems", schemas)),
        1 => named(&inner).prop_map(|schemas| ("dependentSchemas", schemas)),
        1 => (select(vec!["^a", "^b"]), inner.clone()).prop_map(|(pattern, schema)| ("patternProperties", json!({pattern: schema}))),
        2 => (one, inner).prop_map(|(keyword, schema)| (keyword, schema)),
    ]
}

/// A schema.
pub fn schema() -> BoxedStrategy<Value> {
    let leaf = prop_oneof![
        8 => vec(assertion(), 0..3).prop_map(object),
        1 => any::<bool>().prop_map(Value::from),
        1 => Just(json!({"$ref": "#/$defs/A"})),
    ];
    let inside = leaf.prop_recursive(2, 12, 3, |inner| keywords(inner.boxed()));
    keywords(inside.boxed()).boxed()
}

fn keywords(inner: BoxedStrategy<Value>) -> impl Strategy<Value = Value> {
    (vec(assertion(), 0..3), vec(applicator(inner), 0..3))
        .prop_map(|(assertions, applicators)| object([assertions, applicators].concat()))
}

/// A schema for the target of references. It refers to itself only for members, so that it says something of every value.
fn target() -> impl Strategy<Value = Value> {
    vec(assertion(), 0..3).prop_map(|mut assertions| {
        assertions.push(("properties", json!({"a": {"$ref": "#/$defs/A"}, "b": {"type": "integer"}})));
        object(assertions)
    })
}

/// The schema of a tool's arguments.
pub fn root() -> impl Strategy<Value = Value> {
    (schema(), option::of(target())).prop_map(|(mut schema, target)| {
        if let (Some(keywords), Some(target)) = (schema.as_object_mut(), target) {
            keywords.insert("$defs".to_owned(), json!({"A": target}));
        }
        schema
    })
}

/// A definition.
pub fn definition() -> impl Strategy<Value = Value> {
    let field = || {
        let fields = vec!["title", "description", "annotations", "icons", "execution", "_meta", "other", "more", "required"];
        (select(fields), value()).prop_map(|(name, value)| (name, value))
    };
    (option::of(root()), option::of(root()), vec(field(), 0..5)).prop_map(|(input, output, fields)| {
        let mut members = fields;
        members.push(("name", Value::from("t")));
        members.extend(input.map(|schema| ("inputSchema", schema)));
        members.extend(output.map(|schema| ("outputSchema", schema)));
        object(members)
    })
}

/// Numbers that look random.
#[derive(Debug)]
pub struct Dice(pub u64);

impl Dice {
    /// The next number below `sides`; 0 where there are none.
    pub fn below(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap().checked_rem(sides).unwrap_or(0)
    }
}

/// The schemas within a schema's keyword.
pub fn schemas_in<'a>(keyword: &str, value: &'a mut Value) -> Vec<&'a mut Value> {
    match (keyword, value) {
        ("properties" | "patternProperties" | "dependentSchemas" | "$defs", Value::Object(named)) => named.values_mut().collect(),
        ("anyOf" | "allOf" | "oneOf" | "prefixItems", Value::Array(list)) => list.iter_mut().collect(),
        ("not" | "if" | "then" | "else" | "contains" | "propertyNames" | "items" | "additionalProperties", schema) => {
            vec![schema]
        }
        _ => Vec::new(),
    }
}

/// A schema with one keyword more, fewer or another, somewhere.
pub fn tweaked() -> impl Strategy<Value = (Value, Value)> {
    let keyword = prop_oneof![assertion().boxed(), applicator(vec(assertion(), 0..3).prop_map(object).boxed()).boxed()];
    (root(), any::<u64>(), option::weighted(0.7, keyword)).prop_map(|(before, seed, keyword)| {
        let mut now = before.clone();
        tweak(&mut now, &mut Dice(seed), keyword);
        (before, now)
    })
}

fn tweak(schema: &mut Value, dice: &mut Dice, keyword: Option<(&str, Value)>) {
    let Some(keywords) = schema.as_object_mut() else {
        *schema = json!({"type": "object"});
        return;
    };
    let inner: Vec<_> = keywords.iter_mut().flat_map(|(keyword, value)| schemas_in(keyword, value)).collect();
    let at = dice.below(inner.len() + 1);
    if let Some(inner) = inner.into_iter().nth(at) {
        return tweak(inner, dice, keyword);
    }
    match keyword {
        // One more alternative, or one more property.
        Some(("anyOf", Value::Array(more))) if keywords.contains_key("anyOf") => {
            keywords["anyOf"].as_array_mut().unwrap().extend(more);
        }
        Some(("properties", Value::Object(more))) if keywords.contains_key("properties") => {
            let properties = keywords["properties"].as_object_mut().unwrap();
            for (name, schema) in more {
                properties.entry(name).or_insert(schema);
            }
        }
        Some((keyword, value)) => {
            keywords.insert(keyword.to_owned(), value);
        }
        None => {
            let names: Vec<_> = keywords.keys().cloned().collect();
            names.get(dice.below(names.len())).and_then(|name| keywords.remove(name));
        }
    }
}

/// All members of an object, in an order that the dice say.
pub fn shuffled<'a>(members: &'a Map<String, Value>, dice: &mut Dice) -> Vec<(&'a String, &'a Value)> {
    let mut members: Vec<_> = members.iter().collect();
    shuffle(&mut members, dice);
    members
}

/// Puts items in an order that the dice say.
pub fn shuffle<T>(items: &mut [T], dice: &mut Dice) {
    for last in (1..items.len()).rev() {
        items.swap(last, dice.below(last + 1));
    }
}
