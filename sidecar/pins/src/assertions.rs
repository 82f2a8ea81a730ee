//! What the keywords without schemas of their own say, compared between two schemas. Each function says whether `wide` accepts what `narrow`
//! accepts, as far as its keywords go, and says so only where that is certain.

use std::{cmp::Ordering, collections::BTreeSet};

use serde_json::{Map, Number, Value};

use crate::number;

/// A schema that is an object.
pub type Keywords = Map<String, Value>;

/// Types of values, as bits.
pub type Types = u8;
/// Objects.
pub const OBJECT: Types = 4;
/// Arrays.
pub const ARRAY: Types = 8;
const INTEGER: Types = 16;
/// Numbers, integers or not.
pub const NUMBER: Types = 32 | INTEGER;
/// Strings.
pub const STRING: Types = 64;
const ANY: Types = 127;

/// Returns the types that a schema accepts; none where that is not clear.
pub fn types(schema: &Keywords) -> Option<Types> {
    let listed = values(schema).map_or(ANY, |values| values.iter().fold(0, |types, value| types | type_of(value)));
    Some(declared(schema)? & listed)
}

/// Returns the types that its `type` accepts; none where that is not clear.
pub fn declared(schema: &Keywords) -> Option<Types> {
    match schema.get("type") {
        None => Some(ANY),
        Some(Value::Array(names)) => names.iter().try_fold(0, |types, name| Some(types | named(name)?)),
        Some(name) => named(name),
    }
}

fn named(name: &Value) -> Option<Types> {
    Some(match name.as_str()? {
        "null" => 1,
        "boolean" => 2,
        "object" => OBJECT,
        "array" => ARRAY,
        "integer" => INTEGER,
        "number" => NUMBER,
        "string" => STRING,
        _ => return None,
    })
}

fn type_of(value: &Value) -> Types {
    match value {
        Value::Null => 1,
        Value::Bool(_) => 2,
        Value::Object(_) => OBJECT,
        Value::Array(_) => ARRAY,
        Value::Number(_) => NUMBER,
        Value::String(_) => STRING,
    }
}

/// The values that `const` or else `enum` lists.
fn values(schema: &Keywords) -> Option<&[Value]> {
    match (schema.get("const"), schema.get("enum")) {
        (Some(only), _) => Some(std::slice::from_ref(only)),
        (None, Some(Value::Array(values))) => Some(values),
        _ => None,
    }
}

/// `enum` and `const`.
pub fn lists(narrow: &Keywords, wide: &Keywords) -> bool {
    let in_narrow = |value: &Value| values(narrow).is_some_and(|values| values.iter().all(|narrow| narrow == value));
    let enumerated = match wide.get("enum") {
        None => true,
        Some(Value::Array(wide)) => values(narrow).is_some_and(|values| values.iter().all(|value| wide.contains(value))),
        Some(_) => false,
    };
    enumerated && wide.get("const").is_none_or(in_narrow)
}

/// The keywords of numbers.
pub fn numbers(narrow: &Keywords, wide: &Keywords, types: Types) -> bool {
    within(narrow, wide, "minimum", "exclusiveMinimum", Ordering::Greater)
        && within(narrow, wide, "maximum", "exclusiveMaximum", Ordering::Less)
        && multiple(narrow, wide, types)
}

/// The keywords of strings.
pub fn strings(narrow: &Keywords, wide: &Keywords) -> bool {
    at_least(narrow, wide, "minLength") && at_most(narrow, wide, "maxLength") && demands(narrow, wide, &["pattern"])
}

/// The keywords of arrays that look at no item.
pub fn lengths(narrow: &Keywords, wide: &Keywords) -> bool {
    let free = wide.get("uniqueItems") == Some(&Value::Bool(false));
    at_least(narrow, wide, "minItems") && at_most(narrow, wide, "maxItems") && (free || demands(narrow, wide, &["uniqueItems"]))
}

/// The keywords of objects that look at no member's value.
pub fn members(narrow: &Keywords, wide: &Keywords) -> bool {
    let required = |schema: &Keywords| -> Option<BTreeSet<String>> {
        let Some(names) = schema.get("required") else { return Some(BTreeSet::new()) };
        names.as_array()?.iter().map(|name| name.as_str().map(str::to_owned)).collect()
    };
    let required = match (required(narrow), required(wide)) {
        (Some(narrow), Some(wide)) => narrow.is_superset(&wide),
        _ => same(narrow, wide, &["required"]),
    };
    required
        && at_least(narrow, wide, "minProperties")
        && at_most(narrow, wide, "maxProperties")
        && demands(narrow, wide, &["dependentRequired"])
}

fn within(narrow: &Keywords, wide: &Keywords, inclusive: &str, exclusive: &str, inside: Ordering) -> bool {
    // In draft 4, `exclusiveMinimum` is true or false.
    let odd =
        |schema: &Keywords| [inclusive, exclusive].iter().any(|key| schema.get(*key).is_some_and(|value| !value.is_number()));
    if odd(narrow) || odd(wide) {
        return same(narrow, wide, &[inclusive, exclusive]);
    }
    let bounds = |schema: &Keywords| -> Vec<(Number, bool)> {
        let bound = |key, excludes| Some((schema.get(key)?.as_number()?.clone(), excludes));
        [bound(inclusive, false), bound(exclusive, true)].into_iter().flatten().collect()
    };
    let narrow = bounds(narrow);
    bounds(wide).iter().all(|(wide, wide_excludes)| {
        narrow.iter().any(|(narrow, narrow_excludes)| match number::compare(narrow, wide) {
            Some(Ordering::Equal) => *narrow_excludes || !wide_excludes,
            ordering => ordering == Some(inside),
        })
    })
}

/// `multipleOf`.
fn multiple(narrow: &Keywords, wide: &Keywords, types: Types) -> bool {
    let Some(of) = wide.get("multipleOf") else { return true };
    let integer = |value: &Value| value.as_number().and_then(number::exact).filter(|of| *of > 0);
    if integer(of) == Some(1) && types & NUMBER == INTEGER {
        return true;
    }
    let Some(narrow) = narrow.get("multipleOf") else { return false };
    narrow == of || integer(narrow).zip(integer(of)).is_some_and(|(narrow, wide)| narrow % wide == 0)
}

/// A keyword that says how many there are at least.
fn at_least(narrow: &Keywords, wide: &Keywords, keyword: &str) -> bool {
    match wide.get(keyword) {
        None => true,
        Some(Value::Number(least)) if number::exact(least) == Some(0) => true,
        Some(least) => counted(narrow.get(keyword), least, Ordering::Greater),
    }
}

/// A keyword that says how many there are at most.
fn at_most(narrow: &Keywords, wide: &Keywords, keyword: &str) -> bool {
    wide.get(keyword).is_none_or(|most| counted(narrow.get(keyword), most, Ordering::Less))
}

fn counted(narrow: Option<&Value>, wide: &Value, inside: Ordering) -> bool {
    let (Some(Value::Number(narrow)), Value::Number(wide)) = (narrow, wide) else { return narrow == Some(wide) };
    number::compare(narrow, wide).is_some_and(|ordering| ordering == inside || ordering == Ordering::Equal)
}

/// Keywords that each restrict on their own: what `wide` demands, `narrow` demands too.
pub fn demands(narrow: &Keywords, wide: &Keywords, keywords: &[&str]) -> bool {
    keywords.iter().all(|keyword| wide.get(*keyword).is_none_or(|demand| narrow.get(*keyword) == Some(demand)))
}

/// Whether both say the same with these keywords.
pub fn same(narrow: &Keywords, wide: &Keywords, keywords: &[&str]) -> bool {
    keywords.iter().all(|keyword| narrow.get(*keyword) == wide.get(*keyword))
}
