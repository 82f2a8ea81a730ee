//! "Narrower" and "wider" are true: no value that one schema accepts and the other refuses says otherwise. What accepts is a plain
//! validator here, written for this alone.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::{cell::RefCell, collections::BTreeSet};

use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use serde_json::{Map, Value, json};
use toolweir_crds::{PinnedTool, seen::ChangeKind};
use toolweir_pins::{Definition, changes};

mod generated;

/// A validator of JSON Schema that refuses members which nothing names, as the grades do.
struct Validator<'a> {
    root: &'a Value,
}

/// Where a schema stands.
#[derive(Clone, Copy)]
struct Place {
    root: bool,
    open: bool,
}

const INNER: Place = Place { root: false, open: false };

impl Validator<'_> {
    fn accepts(&self, value: &Value) -> bool {
        self.valid(self.root, value, Place { root: true, open: false })
    }

    fn valid(&self, schema: &Value, value: &Value, place: Place) -> bool {
        let keywords = match schema {
            Value::Bool(all) => return *all,
            Value::Object(keywords) => keywords,
            _ => panic!("{schema} is no schema"),
        };
        let named = keywords.contains_key("properties") || place.root && in_place(keywords).is_empty();
        let at = Place { root: false, open: place.open || named };
        keywords.iter().all(|(keyword, argument)| self.keyword(keyword, argument, keywords, value, at))
            && (!named || place.open || keywords.contains_key("additionalProperties") || self.all_named(keywords, value))
    }

    fn all_named(&self, keywords: &Map<String, Value>, value: &Value) -> bool {
        let mut names = BTreeSet::new();
        self.names(keywords, &mut names, 0);
        let Value::Object(members) = value else { return true };
        members.keys().all(|name| names.contains(name) || patterns(keywords).any(|(pattern, _)| matches(pattern, name)))
    }

    fn names(&self, keywords: &Map<String, Value>, names: &mut BTreeSet<String>, depth: u32) {
        names.extend(keywords.get("properties").and_then(Value::as_object).into_iter().flatten().map(|(name, _)| name.clone()));
        for inner in in_place(keywords) {
            let mut inner = inner;
            if let Some(target) = inner.get("$ref") {
                let Some(target) = self.root.pointer(&target.as_str().unwrap()[1..]) else { continue };
                inner = target;
            }
            if let (Value::Object(inner), true) = (inner, depth < 5) {
                self.names(inner, names, depth + 1);
            }
        }
    }

    fn keyword(&self, keyword: &str, argument: &Value, schema: &Map<String, Value>, value: &Value, at: Place) -> bool {
        let here = |schema: &Value| self.valid(schema, value, at);
        let all = |schemas: &Value| schemas.as_array().unwrap().iter().filter(|schema| here(schema)).count();
        match keyword {
            "type" => argument.as_array().map_or_else(|| is(value, argument), |types| types.iter().any(|name| is(value, name))),
            "enum" => argument.as_array().unwrap().iter().any(|listed| equal(listed, value)),
            "const" => equal(argument, value),
            "$ref" => self.root.pointer(&argument.as_str().unwrap()[1..]).is_some_and(here),
            "allOf" => all(argument) == argument.as_array().unwrap().len(),
            "anyOf" => all(argument) > 0,
            "oneOf" => all(argument) == 1,
            "not" => !here(argument),
            "if" => schema.get(if here(argument) { "then" } else { "else" }).is_none_or(here),
            "dependentSchemas" => argument
                .as_object()
                .unwrap()
                .iter()
                .all(|(name, schema)| value.get(name).is_none() || !value.is_object() || here(schema)),
            _ => match value {
                Value::Number(number) => for_number(keyword, argument, number.as_f64().unwrap()),
                Value::String(text) => for_text(keyword, argument, text),
                Value::Array(items) => self.for_array(keyword, argument, schema, items),
                Value::Object(members) => self.for_object(keyword, argument, schema, members),
                _ => true,
            },
        }
    }

    fn for_array(&self, keyword: &str, argument: &Value, schema: &Map<String, Value>, items: &[Value]) -> bool {
        let first = || schema.get("prefixItems").map_or(0, |prefix| prefix.as_array().unwrap().len());
        match keyword {
            "minItems" => items.len() as u64 >= argument.as_u64().unwrap(),
            "maxItems" => items.len() as u64 <= argument.as_u64().unwrap(),
            "uniqueItems" => {
                argument == false || (0..items.len()).all(|at| !items[..at].iter().any(|other| equal(other, &items[at])))
            }
            "prefixItems" => argument.as_array().unwrap().iter().zip(items).all(|(schema, item)| self.valid(schema, item, INNER)),
            "items" => items.iter().skip(first()).all(|item| self.valid(argument, item, INNER)),
            "contains" => items.iter().any(|item| self.valid(argument, item, INNER)),
            _ => true,
        }
    }

    fn for_object(&self, keyword: &str, argument: &Value, schema: &Map<String, Value>, members: &Map<String, Value>) -> bool {
        let has = |names: &Value| names.as_array().unwrap().iter().all(|name| members.contains_key(name.as_str().unwrap()));
        match keyword {
            "minProperties" => members.len() as u64 >= argument.as_u64().unwrap(),
            "maxProperties" => members.len() as u64 <= argument.as_u64().unwrap(),
            "required" => has(argument),
            "dependentRequired" => {
                argument.as_object().unwrap().iter().all(|(name, names)| !members.contains_key(name) || has(names))
            }
            "propertyNames" => members.keys().all(|name| self.valid(argument, &json!(name), INNER)),
            "properties" => {
                members.iter().all(|(name, value)| argument.get(name).is_none_or(|schema| self.valid(schema, value, INNER)))
            }
            "patternProperties" => patterns(schema).all(|(pattern, schema)| {
                members.iter().all(|(name, value)| !matches(pattern, name) || self.valid(schema, value, INNER))
            }),
            "additionalProperties" => members.iter().all(|(name, value)| {
                schema.get("properties").is_some_and(|properties| properties.get(name).is_some())
                    || patterns(schema).any(|(pattern, _)| matches(pattern, name))
                    || self.valid(argument, value, INNER)
            }),
            _ => true,
        }
    }
}

fn for_number(keyword: &str, argument: &Value, number: f64) -> bool {
    let argument = || argument.as_f64().unwrap();
    match keyword {
        "minimum" => number >= argument(),
        "maximum" => number <= argument(),
        "exclusiveMinimum" => number > argument(),
        "exclusiveMaximum" => number < argument(),
        "multipleOf" => number % argument() == 0.0,
        _ => true,
    }
}

fn for_text(keyword: &str, argument: &Value, text: &str) -> bool {
    match keyword {
        "minLength" => text.chars().count() as u64 >= argument.as_u64().unwrap(),
        "maxLength" => text.chars().count() as u64 <= argument.as_u64().unwrap(),
        "pattern" => matches(argument.as_str().unwrap(), text),
        _ => true,
    }
}

fn matches(pattern: &str, text: &str) -> bool {
    text.starts_with(pattern.strip_prefix('^').unwrap())
}

fn patterns(schema: &Map<String, Value>) -> impl Iterator<Item = (&String, &Value)> {
    schema.get("patternProperties").and_then(Value::as_object).into_iter().flatten()
}

/// The schemas for the same value.
fn in_place(schema: &Map<String, Value>) -> Vec<&Value> {
    let inner = schema.iter().flat_map(|(keyword, value)| match (keyword.as_str(), value) {
        ("not" | "if" | "then" | "else", inner) => vec![inner],
        ("allOf" | "anyOf" | "oneOf", Value::Array(inner)) => inner.iter().collect(),
        ("dependentSchemas", Value::Object(inner)) => inner.values().collect(),
        _ => Vec::new(),
    });
    inner.collect()
}

fn is(value: &Value, name: &Value) -> bool {
    match name.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        other => panic!("{other}"),
    }
}

fn equal(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one.as_f64() == other.as_f64(),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| equal(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len() && one.iter().all(|(name, value)| other.get(name).is_some_and(|other| equal(value, other)))
        }
        _ => one == other,
    }
}

fn pinned(schema: &Value) -> PinnedTool {
    Definition::of(&json!({"name": "t", "inputSchema": schema})).unwrap().pinned(8192)
}

fn grade(before: &PinnedTool, now: &PinnedTool) -> Option<ChangeKind> {
    changes(before, now).first().map(|change| change.change)
}

/// What the cases showed: a property that never came to anything proves nothing.
#[derive(Debug, Default)]
struct Seen {
    narrower: u32,
    wider: u32,
    changed: u32,
    text: u32,
    accepted: u32,
    told_apart: u32,
}

fn check(before: &Value, now: &Value, values: &[Value], seen: &mut Seen) -> Result<(), TestCaseError> {
    let (pinned_before, pinned_now) = (pinned(before), pinned(now));
    let grade_now = grade(&pinned_before, &pinned_now);
    let back = grade(&pinned_now, &pinned_before);
    let (narrow, wide) = match grade_now {
        Some(ChangeKind::Narrower) => {
            seen.narrower += 1;
            prop_assert_eq!(back, Some(ChangeKind::Wider));
            (now, before)
        }
        Some(ChangeKind::Wider) => {
            seen.wider += 1;
            prop_assert_eq!(back, Some(ChangeKind::Narrower));
            (before, now)
        }
        other => {
            seen.changed += u32::from(other == Some(ChangeKind::Changed));
            seen.text += u32::from(other == Some(ChangeKind::Text));
            prop_assert_eq!(back, other);
            if other == Some(ChangeKind::Changed) {
                return Ok(());
            }
            (now, before)
        }
    };
    let same = matches!(grade_now, None | Some(ChangeKind::Text));
    for value in values {
        let (narrow, wide) = (Validator { root: narrow }.accepts(value), Validator { root: wide }.accepts(value));
        seen.accepted += u32::from(narrow);
        seen.told_apart += u32::from(narrow != wide);
        prop_assert!(wide || !narrow, "{:?}: only the narrow one accepts {}", grade_now, value);
        prop_assert!(!same || wide == narrow, "{:?}: one accepts {}", grade_now, value);
    }
    Ok(())
}

#[test]
fn narrower_and_wider_are_true_of_every_value() {
    let seen = RefCell::new(Seen::default());
    let config = Config { cases: 2000, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let pairs = prop_oneof![4 => generated::tweaked().boxed(), 1 => (generated::root(), generated::root()).boxed()];
    let cases = (pairs, vec(generated::value(), 24));
    runner.run(&cases, |((before, now), values)| check(&before, &now, &values, &mut seen.borrow_mut())).unwrap();
    let seen = seen.into_inner();
    println!("{seen:?}");
    assert!(seen.narrower > 150 && seen.wider > 150 && seen.changed > 150 && seen.text > 20, "{seen:?}");
    assert!(seen.accepted > 2000 && seen.told_apart > 400, "{seen:?}");
}

proptest! {
    #[test]
    fn the_same_with_other_dice((before, now) in generated::tweaked(), values in vec(generated::value(), 24)) {
        check(&before, &now, &values, &mut Seen::default())?;
    }
}
