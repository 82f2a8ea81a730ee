//! Which members of an object a schema names.

use std::{collections::BTreeSet, sync::LazyLock};

use serde_json::{Map, Value};

use crate::{assertions::Keywords, references::refers};

/// Keywords with a schema for the same value.
const IN_PLACE: [&str; 4] = ["not", "if", "then", "else"];
/// Keywords with several of them.
const LISTS_IN_PLACE: [&str; 3] = ["allOf", "anyOf", "oneOf"];
/// Keywords with several of them, by name.
const NAMED_IN_PLACE: [&str; 2] = ["dependentSchemas", "dependencies"];

static ALL: Value = Value::Bool(true);
static NONE: Value = Value::Bool(false);
static EMPTY: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);

/// A schema, as what says which members an object has.
#[derive(Clone, Copy, Debug)]
pub struct Members<'a> {
    /// The schema.
    pub keywords: &'a Keywords,
    /// Whether it says so: where it has properties, or is that of all arguments.
    pub named: bool,
}

impl<'a> Members<'a> {
    /// Looks at a schema.
    pub fn of(keywords: &'a Keywords, root: bool) -> Self {
        let named = keywords.get("properties").is_some_and(Value::is_object) || root && in_place(keywords).next().is_none();
        Self { keywords, named }
    }

    /// Whether other schemas within it hold for the same value.
    pub fn has_in_place(self) -> bool {
        in_place(self.keywords).next().is_some()
    }

    /// Whether what names its members is what it should be.
    pub fn is_clear(self) -> bool {
        ["properties", "patternProperties"].iter().all(|keyword| self.keywords.get(*keyword).is_none_or(Value::is_object))
    }

    /// Returns the members that it names.
    pub fn properties(self) -> &'a Map<String, Value> {
        self.keywords.get("properties").and_then(Value::as_object).unwrap_or(&EMPTY)
    }

    /// Returns the patterns of names.
    pub fn patterns(self) -> &'a Map<String, Value> {
        self.keywords.get("patternProperties").and_then(Value::as_object).unwrap_or(&EMPTY)
    }

    /// Returns the schema of members that it does not name; `refuses` where that of a schema that does not say so accepts none.
    pub fn others(self, refuses: bool) -> &'a Value {
        let unsaid = if refuses && self.named { &NONE } else { &ALL };
        self.keywords.get("additionalProperties").unwrap_or(unsaid)
    }

    /// Whether both name the same properties.
    pub fn same_names(self, other: Members<'_>) -> bool {
        self.properties().keys().collect::<BTreeSet<_>>() == other.properties().keys().collect::<BTreeSet<_>>()
    }

    /// Whether it names no member that the other does not name, where schemas in them that hold for the same value name some too. What is
    /// not simple to say is no.
    pub fn names_within(self, wide: Members<'_>) -> bool {
        if self.named != wide.named || !self.named {
            return self.named == wide.named;
        }
        let says = |members: Members<'_>| members.keywords.contains_key("additionalProperties");
        let refers = |members: Members<'_>| in_place(members.keywords).any(refers);
        let (inner, wide_inner) = (inner_names(self.keywords), inner_names(wide.keywords));
        self.same_names(wide)
            && says(self) == says(wide)
            && !refers(self)
            && !refers(wide)
            && inner.iter().all(|name| wide_inner.contains(name) || wide.properties().contains_key(*name))
    }
}

/// The schemas within a schema that hold for the same value.
fn in_place(schema: &Keywords) -> impl Iterator<Item = &Value> {
    let lists = LISTS_IN_PLACE.iter().filter_map(|keyword| schema.get(*keyword)?.as_array()).flatten();
    let named = NAMED_IN_PLACE.iter().filter_map(|keyword| schema.get(*keyword)?.as_object()).flat_map(Map::values);
    IN_PLACE.iter().filter_map(|keyword| schema.get(*keyword)).chain(lists).chain(named)
}

/// The members that schemas within a schema name for the same value.
fn inner_names(schema: &Keywords) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    let mut left: Vec<_> = in_place(schema).collect();
    while let Some(inner) = left.pop().map(Value::as_object) {
        let Some(inner) = inner else { continue };
        names.extend(Members::of(inner, false).properties().keys().map(String::as_str));
        left.extend(in_place(inner));
    }
    names
}
