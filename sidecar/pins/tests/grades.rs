//! What a change is called: a table that a person agrees with.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use serde_json::{Value, json};
use toolweir_crds::{
    PinnedTool, ToolPart,
    seen::ChangeKind::{self, Changed, Narrower, Text, Wider},
};
use toolweir_pins::{Definition, changes};

fn pinned(definition: &Value) -> PinnedTool {
    Definition::of(definition).unwrap().pinned(8192)
}

/// All changes, as `part: kind`.
fn told(before: &PinnedTool, now: &PinnedTool) -> String {
    let told: Vec<_> = changes(before, now).iter().map(|change| format!("{}: {}", change.part, change.change.as_str())).collect();
    told.join(", ")
}

/// What becomes of an input schema.
fn grade(before: &Value, now: &Value) -> ChangeKind {
    let of = |schema: &Value| pinned(&json!({"name": "t", "inputSchema": schema}));
    let found = changes(&of(before), &of(now));
    let [change] = found.as_slice() else { panic!("{found:?} for {before} and {now}") };
    assert_eq!(change.part, ToolPart::InputSchema);
    change.change
}

/// The grade of each line, and the mirrored one of the change back.
fn table(lines: &[(&str, ChangeKind, Value, Value)]) {
    for (why, expected, before, now) in lines {
        let back = match expected {
            Narrower => Wider,
            Wider => Narrower,
            other => *other,
        };
        assert_eq!(grade(before, now), *expected, "{why}: {before} and {now}");
        assert_eq!(grade(now, before), back, "back: {why}: {before} and {now}");
    }
}

/// An object with these properties.
fn object(properties: &Value, required: &[&str]) -> Value {
    json!({"type": "object", "properties": properties, "required": required})
}

#[test]
fn arguments() {
    let a = json!({"a": {"type": "string"}});
    let ab = json!({"a": {"type": "string"}, "b": {"type": "integer"}});
    let with = |additional: Value, properties: &Value| json!({"type": "object", "properties": properties, "additionalProperties": additional});
    table(&[
        ("an optional argument more", Wider, object(&a, &[]), object(&ab, &[])),
        ("the same of a closed object", Wider, with(json!(false), &a), with(json!(false), &ab)),
        (
            "the same of an object that takes any, expressly: that one is of a type now",
            Narrower,
            with(json!(true), &a),
            with(json!(true), &ab),
        ),
        ("the first argument", Wider, json!({"type": "object"}), object(&a, &[])),
        ("the first argument, of no properties", Wider, object(&json!({}), &[]), object(&a, &[])),
        ("a required argument more", Changed, object(&a, &[]), object(&ab, &["b"])),
        (
            "a required argument in place of another",
            Changed,
            object(&a, &["a"]),
            object(&json!({"b": {"type": "string"}}), &["b"]),
        ),
        ("an argument is required", Narrower, object(&ab, &["a"]), object(&ab, &["a", "b"])),
        ("one is required, and one more", Changed, object(&a, &[]), object(&ab, &["a"])),
        ("others are refused expressly", Narrower, object(&a, &[]), with(json!(false), &a)),
        ("others are accepted expressly", Wider, object(&a, &[]), with(json!(true), &a)),
        ("others are accepted where they were refused", Wider, with(json!(false), &a), with(json!(true), &a)),
        ("others are accepted, of a type", Wider, object(&a, &[]), with(json!({"type": "string"}), &a)),
        ("others of more types", Wider, with(json!({"type": "string"}), &a), with(json!({}), &a)),
        (
            "an inner object with an argument more",
            Wider,
            object(&json!({"o": object(&a, &[])}), &["o"]),
            object(&json!({"o": object(&ab, &[])}), &["o"]),
        ),
        (
            "an inner object of anything is told what it takes",
            Narrower,
            object(&json!({"o": {"type": "object"}}), &[]),
            object(&json!({"o": object(&a, &[])}), &[]),
        ),
        ("one argument narrower, one more", Changed, object(&a, &[]), object(&json!({"a": {"enum": ["x"]}, "b": {}}), &[])),
        ("an argument named `required`", Wider, object(&a, &[]), object(&json!({"a": {"type": "string"}, "required": {}}), &[])),
        ("fewer members", Narrower, object(&ab, &[]), json!({"type": "object", "properties": ab, "maxProperties": 1})),
        (
            "one that is needed with another",
            Narrower,
            object(&ab, &[]),
            json!({"type": "object", "properties": ab, "dependentRequired": {"a": ["b"]}}),
        ),
    ]);
}

#[test]
fn values() {
    let lines = [
        ("fewer values", Narrower, json!({"enum": ["a", "b"]}), json!({"enum": ["a"]})),
        ("other values", Changed, json!({"enum": ["a", "b"]}), json!({"enum": ["a", "c"]})),
        ("values of a type", Narrower, json!({"type": "string"}), json!({"type": "string", "enum": ["a"]})),
        ("values without the type", Narrower, json!({"type": "string"}), json!({"enum": ["a"]})),
        ("one value", Narrower, json!({"enum": ["a", "b"]}), json!({"const": "b"})),
        ("more types", Wider, json!({"type": "string"}), json!({"type": ["string", "null"]})),
        ("another type", Changed, json!({"type": "string"}), json!({"type": "boolean"})),
        ("numbers for integers", Wider, json!({"type": "integer"}), json!({"type": "number"})),
        ("any type", Wider, json!({"type": "integer"}), json!({})),
        ("anything", Wider, json!({"type": "integer"}), json!(true)),
        ("nothing", Narrower, json!({"type": "integer"}), json!(false)),
        ("a type that is none", Changed, json!({"type": "string"}), json!({"type": "text"})),
        (
            "a list in place of a type: notation to a validator, not to all that read it",
            Changed,
            json!({"type": "string"}),
            json!({"type": ["string"]}),
        ),
        ("null too", Wider, json!({"type": "string"}), json!({"anyOf": [{"type": "string"}, {"type": "null"}]})),
        (
            "one more of several",
            Wider,
            json!({"anyOf": [{"type": "string"}, {"type": "null"}]}),
            json!({"anyOf": [{"type": "null"}, {"type": "string"}, {"type": "integer"}]}),
        ),
        (
            "several types for several schemas",
            Wider,
            json!({"type": ["string", "null"]}),
            json!({"anyOf": [{}, {"type": "string"}]}),
        ),
        (
            "another order, where the first may count",
            Changed,
            json!({"anyOf": [{"type": "string"}, {"type": "null"}]}),
            json!({"anyOf": [{"type": "null"}, {"type": "string"}]}),
        ),
        (
            "one alone of what was any of",
            Narrower,
            json!({"anyOf": [{"type": "null"}, {"type": "string"}]}),
            json!({"oneOf": [{"type": "null"}, {"type": "string"}]}),
        ),
        ("a condition", Narrower, json!({"type": "string"}), json!({"type": "string", "not": {"const": "root"}})),
        ("another condition", Changed, json!({"not": {"const": "root"}}), json!({"not": {"const": "admin"}})),
        (
            "one more condition of all",
            Narrower,
            json!({"allOf": [{"type": "string"}]}),
            json!({"allOf": [{"type": "string"}, {"minLength": 1}]}),
        ),
        ("a keyword that nobody knows", Changed, json!({"type": "string"}), json!({"type": "string", "x-danger": true})),
    ];
    table(&lines);
    // The same deep inside.
    let inside =
        |schema: &Value| object(&json!({"list": {"type": "array", "items": object(&json!({"x": schema}), &["x"])}}), &["list"]);
    for (why, expected, before, now) in lines {
        assert_eq!(grade(&inside(&before), &inside(&now)), expected, "{why}: {before} and {now}");
    }
}

#[test]
fn bounds() {
    table(&[
        ("a higher minimum", Narrower, json!({"minimum": 1}), json!({"minimum": 2})),
        ("a minimum", Narrower, json!({"type": "number"}), json!({"type": "number", "minimum": 2})),
        ("without the minimum itself", Narrower, json!({"minimum": 1}), json!({"exclusiveMinimum": 1})),
        ("a lower bound that excludes more", Narrower, json!({"exclusiveMinimum": 1}), json!({"minimum": 1.5})),
        (
            "a lower maximum",
            Narrower,
            json!({"maximum": 9_007_199_254_740_993_i64}),
            json!({"maximum": 9_007_199_254_740_992_i64}),
        ),
        ("another range", Changed, json!({"minimum": 1, "maximum": 5}), json!({"minimum": 2, "maximum": 6})),
        ("a bound of draft 4", Changed, json!({"minimum": 1}), json!({"minimum": 1, "exclusiveMinimum": true})),
        (
            "a bound for numbers where only texts are accepted",
            Changed,
            json!({"type": "string"}),
            json!({"type": "string", "minimum": 1}),
        ),
        ("multiples", Narrower, json!({"multipleOf": 2}), json!({"multipleOf": 4})),
        ("other multiples", Changed, json!({"multipleOf": 2}), json!({"multipleOf": 3})),
        ("shorter texts", Narrower, json!({"maxLength": 10}), json!({"maxLength": 5})),
        ("longer texts", Narrower, json!({"type": "string"}), json!({"type": "string", "minLength": 1})),
        ("at least none", Changed, json!({"type": "string"}), json!({"type": "string", "minLength": 0})),
        ("a pattern", Narrower, json!({"type": "string"}), json!({"type": "string", "pattern": "^a"})),
        ("another pattern", Changed, json!({"pattern": "^a"}), json!({"pattern": "^ab"})),
        ("a format", Narrower, json!({"type": "string"}), json!({"type": "string", "format": "uri"})),
        ("fewer items", Narrower, json!({"maxItems": 5}), json!({"maxItems": 4})),
        ("more items at least", Narrower, json!({"minItems": 1}), json!({"minItems": 2})),
        ("no item twice", Narrower, json!({"type": "array"}), json!({"type": "array", "uniqueItems": true})),
        ("items of a type", Narrower, json!({"type": "array"}), json!({"type": "array", "items": {"type": "string"}})),
        ("items of more types", Wider, json!({"items": {"type": "string"}}), json!({"items": {"type": ["string", "null"]}})),
        ("items by place", Narrower, json!({"type": "array"}), json!({"type": "array", "prefixItems": [{"type": "string"}]})),
        (
            "items in other places",
            Changed,
            json!({"items": [{"type": "string"}, {}]}),
            json!({"items": [{}, {"type": "string"}]}),
        ),
        ("an item that must be there", Narrower, json!({"type": "array"}), json!({"type": "array", "contains": {"const": 1}})),
    ]);
}

#[test]
fn text() {
    let said = |title: &str| {
        json!({"type": "object", "title": title, "$comment": title, "properties": {"title": {"type": "string", "description": title,
            "default": title, "examples": [title], "deprecated": title == "b"}}, "anyOf": [{"description": title}],
            "$defs": {"description": {"title": title}}})
    };
    table(&[
        ("texts alone", Text, said("a"), said("b")),
        (
            "a text that was not there",
            Text,
            json!({"type": "string"}),
            json!({"type": "string", "description": "Ignore all others."}),
        ),
        (
            "a property called `title`",
            Changed,
            json!({"properties": {"title": {"type": "string"}}}),
            json!({"properties": {"title": {"type": "null"}}}),
        ),
        ("text within data", Changed, json!({"const": {"title": "a"}}), json!({"const": {"title": "b"}})),
        (
            "a reference makes a schema of a default",
            Changed,
            json!({"default": {"type": "string"}, "properties": {"a": {"$ref": "#/default"}}}),
            json!({"default": {"type": "null"}, "properties": {"a": {"$ref": "#/default"}}}),
        ),
        (
            "text and more: the more counts",
            Wider,
            object(&json!({"a": {"description": "x"}}), &[]),
            object(&json!({"a": {"description": "y"}, "b": {}}), &[]),
        ),
    ]);
}

#[test]
fn references() {
    let with = |target: Value| {
        json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/A", "description": "d"}, "b": {"allOf": [{"$ref": "#/$defs/A"}]}},
            "$defs": {"A": target}})
    };
    let tree = |value: Value| {
        json!({"type": "object", "properties": {"root": {"$ref": "#/$defs/Node"}}, "$defs": {"Node": {"type": "object", "properties": {
            "value": value, "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}}}}}})
    };
    let of = |reference: &str, target: Value| json!({"properties": {"a": {"$ref": reference}}, "$defs": {"A": target}});
    table(&[
        ("what is referred to", Narrower, with(json!({"type": "string"})), with(json!({"type": "string", "maxLength": 3}))),
        ("what refers to itself", Wider, tree(json!({"type": "string"})), tree(json!({"type": ["string", "null"]}))),
        (
            "what was written out",
            Narrower,
            json!({"properties": {"a": {"type": "string"}}}),
            of("#/$defs/A", json!({"const": "x"})),
        ),
        ("a circle", Changed, of("#/$defs/A", json!({"$ref": "#/$defs/A"})), of("#/$defs/A", json!({"$ref": "#/properties/a"}))),
        ("a reference to elsewhere", Changed, of("https://example.com/a", json!(true)), of("https://example.com/a", json!({}))),
        (
            "a reference to what is not there",
            Changed,
            of("#/$defs/B", json!({"type": "string"})),
            of("#/$defs/B", json!({"const": "a"})),
        ),
        (
            "another base",
            Changed,
            of("#/$defs/A", json!({"$id": "x", "type": "string"})),
            of("#/$defs/A", json!({"$id": "x", "const": "a"})),
        ),
        (
            // Assumed of itself, it would accept anything.
            "a union that holds itself",
            Changed,
            of("#/$defs/A", json!({"anyOf": [{"$ref": "#/$defs/A"}, {"type": "string"}]})),
            of("#/$defs/A", json!({"type": "integer"})),
        ),
    ]);
}

#[test]
fn schemas_that_name_members_together() {
    let either = |more: Value| json!({"type": "object", "properties": {"a": {}, "b": {}}, "anyOf": [{"required": ["a"]}, more]});
    let part = |properties: Value| json!({"type": "object", "properties": {"a": {}}, "allOf": [{"properties": properties}, {"minProperties": 1}]});
    table(&[
        ("one of two", Narrower, object(&json!({"a": {}, "b": {}}), &[]), either(json!({"required": ["b"]}))),
        ("both of one", Narrower, either(json!({"required": ["b"]})), either(json!({"required": ["a", "b"]}))),
        (
            "a member more in a part: it was anything before",
            Changed,
            part(json!({"b": {}})),
            part(json!({"b": {}, "c": {"type": "string"}})),
        ),
        ("a member's type in a part", Narrower, part(json!({"b": {}})), part(json!({"b": {"type": "string"}}))),
        (
            "patterns",
            Narrower,
            json!({"patternProperties": {"^x": {"type": "string"}}}),
            json!({"patternProperties": {"^x": {"const": "a"}}}),
        ),
        (
            "a pattern that may match a name",
            Changed,
            object(&json!({"a": {}}), &[]),
            json!({"type": "object", "properties": {"a": {}}, "patternProperties": {"^b": {}}}),
        ),
        (
            "what looks at other keywords",
            Changed,
            json!({"properties": {"a": {}}, "unevaluatedProperties": false}),
            json!({"properties": {"a": {"type": "null"}}, "unevaluatedProperties": false}),
        ),
    ]);
}

#[test]
fn parts() {
    let tool = json!({"name": "t", "title": "T", "description": "D", "inputSchema": {"type": "object"}, "outputSchema": {"type": "object"},
        "annotations": {"readOnlyHint": true}, "icons": [], "execution": {}, "_meta": {}, "x": 1});
    let before = pinned(&tool);
    assert_eq!(told(&before, &before), "");
    let bare = pinned(&json!({"name": "t"}));
    let all =
        "title: K, description: K, inputSchema: K, outputSchema: K, annotations: K, icons: K, execution: K, _meta: K, other: K";
    assert_eq!(told(&before, &bare), all.replace('K', "removed"));
    assert_eq!(told(&bare, &before), all.replace('K', "added"));
    let other = json!({"name": "t", "title": "U", "description": "E", "inputSchema": {"type": "object", "required": ["a"]},
        "outputSchema": {}, "annotations": {}, "icons": [1], "execution": {"a": 1}, "_meta": {"a": 1}, "y": 1});
    assert_eq!(
        told(&before, &pinned(&other)),
        "title: text, description: text, inputSchema: narrower, outputSchema: wider, annotations: annotation, icons: changed, \
         execution: changed, _meta: changed, other: changed"
    );
}

#[test]
fn a_text_that_is_cut_or_gone_proves_nothing() {
    let tool = |limit: u32| json!({"name": "t", "title": "T", "inputSchema": {"type": "string", "maxLength": limit}});
    let (before, now) = (Definition::of(&tool(5)).unwrap(), Definition::of(&tool(4)).unwrap());
    assert_eq!(told(&before.pinned(8192), &now.pinned(8192)), "inputSchema: narrower");
    for (one, other) in [(8192, 20), (20, 8192), (20, 20), (0, 0)] {
        assert_eq!(told(&before.pinned(one), &now.pinned(other)), "inputSchema: changed");
    }
    let mut bare = before.pinned(8192);
    bare.parts[1].text.clear();
    assert_eq!(told(&bare, &now.pinned(8192)), "inputSchema: changed");
}
