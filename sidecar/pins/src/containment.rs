//! Whether one schema accepts whatever another accepts.
//!
//! [`contains`] says so only where simple rules prove it, keyword by keyword. What it does not know it takes for different: its yes is
//! certain, and its no means nothing.

use serde_json::{Map, Value};

use crate::{
    assertions::{self, ARRAY, Keywords, NUMBER, OBJECT, STRING, Types, same},
    members::Members,
    references::{refers, stands_alone, target},
};

/// How many pairs of schemas are compared.
const STEPS: u32 = 4096;
/// How deep.
const DEPTH: u32 = 96;
/// Keywords that look at what others do, or that say where to look. A `$ref` is only understood where it stands alone.
const ELSEWHERE: [&str; 6] =
    ["$dynamicRef", "$recursiveAnchor", "$recursiveRef", "$ref", "unevaluatedItems", "unevaluatedProperties"];
/// Keywords that change what references around them mean; at the root they change nothing.
const NAMES_OF_SCHEMAS: [&str; 4] = ["$anchor", "$dynamicAnchor", "$id", "id"];
/// Keywords with rules of their own, and those that say nothing about values.
const KNOWN: [&str; 45] = [
    "$comment",
    "$defs",
    "$schema",
    "additionalItems",
    "additionalProperties",
    "allOf",
    "anyOf",
    "const",
    "contains",
    "default",
    "definitions",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "deprecated",
    "description",
    "else",
    "enum",
    "examples",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "format",
    "if",
    "items",
    "maxContains",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minContains",
    "minItems",
    "minLength",
    "minProperties",
    "minimum",
    "multipleOf",
    "not",
    "oneOf",
    "pattern",
    "patternProperties",
    "prefixItems",
    "properties",
    "propertyNames",
    "required",
    "type",
    "uniqueItems",
];

/// What becomes of a member that an object's schema does not name, where the schema does not say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unnamed {
    /// It is refused: a model sends the arguments that it has read of. An object whose schema names none takes any, but for the root.
    Refused,
    /// It is accepted, as JSON Schema has it.
    Accepted,
}

/// Returns true where it is certain that `wide` accepts every value that `narrow` accepts.
pub fn contains(wide: &Value, narrow: &Value, unnamed: Unnamed) -> bool {
    let mut comparison = Comparison { narrow, wide, unnamed, steps: STEPS, assumed: Vec::new() };
    comparison.contained(narrow, wide, Position::default())
}

/// Where in the schemas a pair stands.
#[derive(Clone, Copy, Debug, Default)]
struct Position {
    /// How many comparisons deep.
    depth: u32,
    /// How many objects and arrays deep in the value.
    level: u32,
    /// Whether a schema around them, for the same value, says which members there are.
    open: bool,
}

impl Position {
    fn inside(self) -> Self {
        Self { level: self.level + 1, open: false, ..self }
    }
}

/// Two schemas that are compared because a reference led there.
#[derive(Clone, Copy, Debug)]
struct Assumed {
    narrow: *const Value,
    wide: *const Value,
    at: Position,
}

struct Comparison<'a> {
    narrow: &'a Value,
    wide: &'a Value,
    unnamed: Unnamed,
    steps: u32,
    /// What is being compared: a schema that refers to itself contains another if it does so for every value that is smaller.
    assumed: Vec<Assumed>,
}

/// Two schemas for the same value.
#[derive(Clone, Copy)]
struct Pair<'a> {
    narrow: Members<'a>,
    wide: Members<'a>,
}

impl Comparison<'_> {
    fn contained(&mut self, narrow: &Value, wide: &Value, at: Position) -> bool {
        if self.steps == 0 || at.depth == DEPTH {
            return false;
        }
        self.steps -= 1;
        let at = Position { depth: at.depth + 1, ..at };
        let (Some(narrow_target), Some(wide_target)) = (target(narrow, self.narrow), target(wide, self.wide)) else {
            return false;
        };
        if std::ptr::eq(narrow_target, narrow) && std::ptr::eq(wide_target, wide) {
            return self.compared(narrow, wide, at);
        }
        let pair = Assumed { narrow: narrow_target, wide: wide_target, at };
        let again = |known: &&Assumed| known.narrow == pair.narrow && known.wide == pair.wide && known.at.open == at.open;
        if let Some(known) = self.assumed.iter().find(again) {
            return known.at.level < at.level;
        }
        self.assumed.push(pair);
        let contained = self.compared(narrow_target, wide_target, at);
        self.assumed.pop();
        contained
    }

    fn compared(&mut self, narrow: &Value, wide: &Value, at: Position) -> bool {
        let roots = (std::ptr::eq(narrow, self.narrow), std::ptr::eq(wide, self.wide));
        if roots.0 == roots.1 && narrow == wide && !refers(wide) {
            return true;
        }
        let all = Map::new();
        let (narrow_keywords, wide_keywords) = match (narrow, wide) {
            (_, Value::Bool(true)) | (Value::Bool(false), _) => return true,
            (Value::Bool(true), Value::Object(wide)) => (&all, wide),
            (Value::Object(narrow), Value::Object(wide)) => (narrow, wide),
            _ => return false,
        };
        let elsewhere = |schema: &Keywords, root: bool| {
            ELSEWHERE.iter().any(|key| schema.contains_key(*key))
                || !root && NAMES_OF_SCHEMAS.iter().any(|key| schema.contains_key(*key))
        };
        if elsewhere(narrow_keywords, roots.0) || elsewhere(wide_keywords, roots.1) {
            return false;
        }
        if let Some(branches) = alone(narrow_keywords, "anyOf").or_else(|| alone(narrow_keywords, "oneOf")) {
            return branches.iter().all(|branch| self.contained(branch, wide, at));
        }
        if let Some(sections) = alone(wide_keywords, "allOf") {
            return sections.iter().all(|section| self.contained(narrow, section, at));
        }
        if let Some(sections) = alone(narrow_keywords, "allOf") {
            return sections.iter().any(|section| self.contained(section, wide, at));
        }
        if let Some(branches) = alone(wide_keywords, "anyOf") {
            return match each_type(narrow_keywords) {
                Some(parts) => parts.iter().all(|part| self.in_any(part, branches, at)),
                None => self.in_any(narrow, branches, at),
            };
        }
        let pair = Pair { narrow: Members::of(narrow_keywords, roots.0), wide: Members::of(wide_keywords, roots.1) };
        self.keywords(pair, at)
    }

    fn in_any(&mut self, narrow: &Value, branches: &[Value], at: Position) -> bool {
        branches.iter().any(|branch| self.contained(narrow, branch, at))
    }

    fn keywords(&mut self, pair: Pair<'_>, at: Position) -> bool {
        let (narrow, wide) = (pair.narrow.keywords, pair.wide.keywords);
        let (Some(types), Some(declared)) = (assertions::types(narrow), assertions::declared(wide)) else { return false };
        types & !declared == 0
            && assertions::lists(narrow, wide)
            && assertions::demands(narrow, wide, &["format"])
            && unknown_are_same(narrow, wide)
            && (types & NUMBER == 0 || assertions::numbers(narrow, wide, types))
            && (types & STRING == 0 || assertions::strings(narrow, wide))
            && self.in_place(pair, types, at)
            && (types & ARRAY == 0 || self.arrays(narrow, wide, at.inside()))
            && (types & OBJECT == 0 || self.objects(pair, at))
    }

    /// The keywords with schemas for the same value.
    fn in_place(&mut self, pair: Pair<'_>, types: Types, at: Position) -> bool {
        if !pair.narrow.has_in_place() && !pair.wide.has_in_place() {
            return true;
        }
        if types & OBJECT != 0 && !pair.narrow.names_within(pair.wide) {
            return false;
        }
        let at = Position { open: at.open || pair.wide.named, ..at };
        let (narrow, wide) = (pair.narrow.keywords, pair.wide.keywords);
        let restrictions: [&[&str]; 5] =
            [&["oneOf"], &["not"], &["if", "then", "else"], &["dependentSchemas"], &["dependencies"]];
        restrictions.iter().all(|together| restricts(narrow, wide, together))
            && match (list(narrow, "anyOf"), list(wide, "anyOf")) {
                (_, None) => !wide.contains_key("anyOf"),
                (None, Some(_)) => false,
                (Some(narrow), Some(wide)) => narrow.iter().all(|branch| self.in_any(branch, wide, at)),
            }
            && match (list(narrow, "allOf"), list(wide, "allOf")) {
                (_, None) => !wide.contains_key("allOf"),
                (None, Some(_)) => false,
                (Some(narrow), Some(wide)) => {
                    wide.iter().all(|wide| narrow.iter().any(|narrow| self.contained(narrow, wide, at)))
                }
            }
    }

    fn arrays(&mut self, narrow: &Keywords, wide: &Keywords, at: Position) -> bool {
        let tuple = |schema: &Keywords| schema.contains_key("prefixItems") || schema.get("items").is_some_and(Value::is_array);
        let all = Value::Bool(true);
        let each = if tuple(narrow) || tuple(wide) {
            restricts(narrow, wide, &["prefixItems", "items", "additionalItems"])
        } else {
            match (narrow.get("items"), wide.get("items")) {
                (_, None) => true,
                (narrow, Some(wide)) => self.contained(narrow.unwrap_or(&all), wide, at),
            }
        };
        each && assertions::lengths(narrow, wide) && restricts(narrow, wide, &["contains", "minContains", "maxContains"])
    }

    fn objects(&mut self, pair: Pair<'_>, at: Position) -> bool {
        let (narrow, wide) = (pair.narrow.keywords, pair.wide.keywords);
        let rest = assertions::members(narrow, wide) && restricts(narrow, wide, &["propertyNames"]);
        if !rest || !pair.narrow.is_clear() || !pair.wide.is_clear() {
            return false;
        }
        let refuses = self.unnamed == Unnamed::Refused && !at.open;
        let (narrow_others, wide_others) = (pair.narrow.others(refuses), pair.wide.others(refuses));
        // A pattern can match a name.
        let patterns = (pair.narrow.patterns(), pair.wide.patterns());
        let patterned = patterns.0.len() + patterns.1.len() > 0;
        if patterned && !(pair.narrow.same_names(pair.wide) && patterns.0.keys().eq(patterns.1.keys())) {
            return false;
        }
        let at = at.inside();
        let mut names = pair.narrow.properties().keys().chain(pair.wide.properties().keys());
        names.all(|name| {
            let narrow = pair.narrow.properties().get(name).unwrap_or(narrow_others);
            let wide = pair.wide.properties().get(name).unwrap_or(wide_others);
            self.contained(narrow, wide, at)
        }) && patterns
            .0
            .iter()
            .all(|(pattern, narrow)| patterns.1.get(pattern).is_some_and(|wide| self.contained(narrow, wide, at)))
            && self.contained(narrow_others, wide_others, at)
    }
}

/// The list of a keyword that stands alone.
fn alone<'a>(schema: &'a Keywords, keyword: &str) -> Option<&'a [Value]> {
    stands_alone(schema, keyword).then(|| list(schema, keyword))?
}

fn list<'a>(schema: &'a Keywords, keyword: &str) -> Option<&'a [Value]> {
    schema.get(keyword)?.as_array().map(Vec::as_slice)
}

/// The schema for each of its types, where it lists several.
fn each_type(schema: &Keywords) -> Option<Vec<Value>> {
    let types = list(schema, "type")?;
    let of = |name: &Value| {
        let mut part = schema.clone();
        part.insert("type".to_owned(), name.clone());
        Value::Object(part)
    };
    Some(types.iter().map(of).collect())
}

/// Keywords that together restrict what is accepted: the wide schema has none of them, or both say the same.
fn restricts(narrow: &Keywords, wide: &Keywords, together: &[&str]) -> bool {
    let free = together.iter().all(|keyword| !wide.contains_key(*keyword));
    free || same(narrow, wide, together) && !together.iter().any(|keyword| wide.get(*keyword).is_some_and(refers))
}

/// Whether both say the same with the keywords that nobody here knows.
fn unknown_are_same(narrow: &Keywords, wide: &Keywords) -> bool {
    let unknown = |keyword: &&String| !KNOWN.contains(&keyword.as_str());
    narrow.keys().chain(wide.keys()).filter(unknown).all(|keyword| narrow.get(keyword) == wide.get(keyword))
}
