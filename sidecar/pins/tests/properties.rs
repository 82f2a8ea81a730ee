//! What holds for any definition.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::time::{Duration, Instant};

use generated::{Dice, schemas_in, shuffle, shuffled};
use proptest::prelude::*;
use serde_json::{Value, json};
use toolweir_crds::{PinnedTool, ToolPart};
use toolweir_pins::{Definition, changes, document};

mod generated;

/// A dialect that servers name.
const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

/// Writes a value in some other notation.
fn write(value: &Value, schema: bool, dice: &mut Dice, out: &mut String) {
    let space = [" ", "", "\n\t", ""];
    out.push_str(space[dice.below(4)]);
    match value {
        Value::Object(members) => {
            out.push('{');
            let dialect = schema && !members.contains_key("$schema") && dice.below(4) == 0;
            let mut rest = dialect
                .then(|| r#""$schema":"https://json-schema.org/draft/2020-12/schema""#.to_owned())
                .into_iter()
                .collect::<Vec<_>>();
            for (name, value) in shuffled(members, dice) {
                let mut member = String::new();
                string(name, dice, &mut member);
                member.push(':');
                if schema {
                    keyword(name, value, dice, &mut member);
                } else {
                    write(value, false, dice, &mut member);
                }
                rest.push(member);
            }
            out.push_str(&rest.join(","));
            out.push('}');
        }
        Value::Array(items) => list(items.iter(), false, dice, out),
        Value::String(text) => string(text, dice, out),
        Value::Number(number) => match number.as_i64() {
            Some(integer) => match dice.below(4) {
                0 => out.push_str(&format!("{integer}.0")),
                1 => out.push_str(&format!("{integer}.0e-0")),
                2 => out.push_str(&format!("{integer}.00E+0")),
                _ => out.push_str(&integer.to_string()),
            },
            None => match dice.below(2) {
                0 => out.push_str(&format!("{:e}", number.as_f64().unwrap())),
                _ => out.push_str(&number.to_string()),
            },
        },
        other => out.push_str(&other.to_string()),
    }
    out.push_str(space[dice.below(4)]);
}

fn list<'a>(items: impl Iterator<Item = &'a Value>, schemas: bool, dice: &mut Dice, out: &mut String) {
    let items: Vec<_> = items
        .map(|item| {
            let mut one = String::new();
            write(item, schemas, dice, &mut one);
            one
        })
        .collect();
    out.push_str(&format!("[{}]", items.join(",")));
}

fn keyword(name: &str, value: &Value, dice: &mut Dice, out: &mut String) {
    match (name, value) {
        ("required" | "enum", Value::Array(items)) => {
            let mut items: Vec<_> = items.iter().collect();
            if dice.below(3) == 0
                && let Some(twice) = items.get(dice.below(items.len())).copied()
            {
                items.push(twice);
            }
            shuffle(&mut items, dice);
            list(items.into_iter(), false, dice, out);
        }
        ("properties" | "patternProperties" | "dependentSchemas" | "$defs", Value::Object(named)) => {
            let members: Vec<_> = shuffled(named, dice)
                .into_iter()
                .map(|(name, schema)| {
                    let mut member = String::new();
                    string(name, dice, &mut member);
                    member.push(':');
                    write(schema, true, dice, &mut member);
                    member
                })
                .collect();
            out.push_str(&format!("{{{}}}", members.join(",")));
        }
        ("anyOf" | "allOf" | "oneOf" | "prefixItems", Value::Array(schemas)) => list(schemas.iter(), true, dice, out),
        ("$schema", Value::String(text)) if text == DIALECT => out.push_str("\"http://json-schema.org/draft-07/schema#\""),
        _ => write(value, !schemas_in(name, &mut value.clone()).is_empty(), dice, out),
    }
}

fn string(text: &str, dice: &mut Dice, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        if dice.below(3) == 0 || character < ' ' || matches!(character, '"' | '\\') {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                out.push_str(&format!("\\u{unit:04X}"));
            }
        } else {
            out.push(character);
        }
    }
    out.push('"');
}

/// A definition in some other notation.
fn rewritten(definition: &Value, dice: &mut Dice) -> String {
    let mut members = Vec::new();
    for (name, value) in shuffled(definition.as_object().unwrap(), dice) {
        let mut member = String::new();
        string(name, dice, &mut member);
        member.push(':');
        write(value, matches!(name.as_str(), "inputSchema" | "outputSchema"), dice, &mut member);
        members.push(member);
    }
    if dice.below(2) == 0 && definition.get("icons").is_none() {
        members.push("\"icons\": null".to_owned());
    }
    format!("{{{}}}", members.join(","))
}

/// Puts something that stood nowhere in the place of some value, and returns true; or false where that place says nothing.
fn replace(value: &mut Value, schema: bool, dice: &mut Dice) -> bool {
    let inner = match value {
        Value::Object(members) => members.len(),
        Value::Array(items) => items.len(),
        _ => 0,
    };
    let at = dice.below(inner + 1);
    match value {
        Value::Array(items) if at < inner => replace(&mut items[at], false, dice),
        Value::Object(members) if at < inner => {
            let (name, value) = members.iter_mut().nth(at).unwrap();
            if !schema {
                return replace(value, false, dice);
            }
            let mut schemas = schemas_in(name, value);
            let one = dice.below(schemas.len());
            if !schemas.is_empty() {
                return replace(schemas.swap_remove(one), true, dice);
            }
            replace(value, false, dice)
        }
        _ => {
            *value = Value::from("was not there");
            true
        }
    }
}

fn part_of(field: &str) -> ToolPart {
    ToolPart::ALL.into_iter().find(|part| part.as_str() == field).unwrap_or(ToolPart::Other)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..Default::default() })]

    #[test]
    fn notation_changes_no_digest(definition in generated::definition(), seed: u64) {
        let rewritten = rewritten(&definition, &mut Dice(seed));
        let (one, other) = (Definition::of(&definition).unwrap(), Definition::read(rewritten.as_bytes()).unwrap());
        let changed = one.digests().changed(&other.digests());
        prop_assert!(changed.is_empty(), "{}: {} is {}", changed, definition, rewritten);
        prop_assert_eq!(one.pinned(8192), other.pinned(8192));
        prop_assert_eq!(changes(&one.pinned(8192), &other.pinned(8192)), vec![]);
    }

    #[test]
    fn a_change_changes_the_digest_of_its_part(definition in generated::definition(), seed: u64) {
        let mut now = definition.clone();
        let mut dice = Dice(seed);
        let members = now.as_object_mut().unwrap();
        let at = dice.below(members.len());
        let (name, value) = members.iter_mut().nth(at).unwrap();
        let name = name.clone();
        prop_assume!(name != "name");
        prop_assume!(replace(value, matches!(name.as_str(), "inputSchema" | "outputSchema"), &mut dice));
        let (one, other) = (Definition::of(&definition).unwrap(), Definition::of(&now).unwrap());
        let changed: Vec<_> = one.digests().changed(&other.digests()).iter().collect();
        prop_assert_eq!(&changed, &[part_of(&name)], "{}: {} is {}", name, definition, now);
        let told: Vec<_> = changes(&one.pinned(8192), &other.pinned(8192)).iter().map(|change| change.part).collect();
        prop_assert_eq!(told, changed);
    }

    #[test]
    fn changes_tell_of_the_digests_that_differ(one in generated::definition(), other in generated::definition(), bytes in 0..200_usize) {
        let (one, other) = (Definition::of(&one).unwrap(), Definition::of(&other).unwrap());
        let told: Vec<_> = changes(&one.pinned(bytes), &other.pinned(bytes)).iter().map(|change| change.part).collect();
        prop_assert_eq!(told, one.digests().changed(&other.digests()).iter().collect::<Vec<_>>());
    }

    #[test]
    fn pins_have_the_digests_and_the_beginning_of_each_part(definition in generated::definition(), bytes in 0..80_usize) {
        let definition = Definition::of(&definition).unwrap();
        let (whole, cut) = (definition.pinned(usize::MAX), definition.pinned(bytes));
        prop_assert_eq!(cut.digests().unwrap(), definition.digests());
        for (whole, cut) in whole.parts.iter().zip(&cut.parts) {
            prop_assert!(whole.text.starts_with(&cut.text) && cut.text.len() <= bytes && cut.text.len() + 4 > bytes.min(whole.text.len()));
            prop_assert_eq!(cut.cut, cut.text.len() < whole.text.len());
            prop_assert!(!whole.cut);
        }
    }

    #[test]
    fn the_canonical_form_is_its_own(schema in generated::root()) {
        let of = |schema: &str| Definition::read(format!(r#"{{"name": "t", "inputSchema": {schema}}}"#).as_bytes()).unwrap().pinned(8192);
        let canonical = of(&schema.to_string());
        let again = of(&canonical.parts[0].text);
        prop_assert_eq!(canonical, again);
    }
}

#[test]
fn documents_shrink_until_they_fit_and_have_every_digest() {
    let tools = |count: usize, bytes: usize| -> Vec<Definition> {
        let of = |at| Definition::of(&json!({"name": format!("t{at:04}"), "description": "é\"".repeat(bytes / 3)})).unwrap();
        (0..count).rev().map(of).collect()
    };
    let text = |spec: &toolweir_crds::MCPToolPinsSpec| spec.tools[0].parts[0].text.len();
    for (count, bytes, expected) in
        [(2, 300, 300), (20, 9000, 8192), (200, 9000, 2048), (800, 9000, 512), (1024, 300, 300), (4000, 300, 0)]
    {
        let definitions = tools(count, bytes);
        let spec = document("files", &definitions);
        assert_eq!((spec.server.as_str(), spec.tools.len(), text(&spec)), ("files", count, expected), "{count} of {bytes}");
        assert!(expected == 0 || serde_json::to_vec(&spec).unwrap().len() <= 768 * 1024);
        assert!(spec.tools.is_sorted_by_key(|tool| &tool.name));
        assert!(
            spec.tools
                .iter()
                .zip(definitions.iter().rev())
                .all(|(tool, definition)| tool.digests().unwrap() == definition.digests())
        );
    }
}

#[test]
fn the_same_tool_twice_is_pinned_once() {
    let of = |title: &str| Definition::of(&json!({"name": "t", "title": title})).unwrap();
    assert_eq!(document("s", &[of("a"), of("a")]).tools.len(), 1);
    // Which of them is right, nobody knows: the document is refused where it is read.
    assert_eq!(document("s", &[of("a"), of("b"), of("a")]).tools.len(), 2);
}

/// How long reading and comparing takes, with a margin for slow machines and unoptimised builds.
fn in_time(what: &str, json: &str) -> PinnedTool {
    let began = Instant::now();
    let definition = Definition::read(json.as_bytes()).unwrap();
    let pinned = definition.pinned(8192);
    let other = Definition::read(json.replace("\"t\"", "\"u\"").replace("end", "END").as_bytes()).unwrap().pinned(8192);
    changes(&pinned, &other);
    let elapsed = began.elapsed();
    assert!(elapsed < Duration::from_secs(5), "{what} took {elapsed:?}");
    pinned
}

#[test]
fn huge_and_odd_definitions_take_time_in_proportion() {
    let schema = |schema: &str| format!(r#"{{"name": "t", "inputSchema": {schema}}}"#);
    let names = |of: &str| (0..100_000).map(|at| format!("\"{of}{at}\"")).collect::<Vec<_>>().join(",");
    in_time("many names required", &schema(&format!(r#"{{"required": [{}]}}"#, names("x"))));
    in_time("many values, each of them large", &schema(&format!(r#"{{"enum": [[{}], {}]}}"#, names("y"), names("z"))));
    let members: Vec<_> = (0..50_000).map(|at| format!(r#""m{at}": {{"enum": ["b", "a"]}}"#)).collect();
    in_time("many properties", &schema(&format!(r#"{{"properties": {{{}}}}}"#, members.join(","))));
    in_time("a long text", &format!(r#"{{"name": "t", "description": "{}end"}}"#, "\\u0001é".repeat(500_000)));
    in_time(
        "long numbers",
        &schema(&format!(r#"{{"const": [{}1, 1e-{}1, 0.{}1]}}"#, "9".repeat(300), "9".repeat(300_000), "0".repeat(300_000))),
    );
    let nest =
        |open: &str, close: &str, levels: usize| format!("{}{{\"const\":\"end\"}}{}", open.repeat(levels), close.repeat(levels));
    for (what, open, close) in [
        ("unions in unions", r#"{"anyOf":[{"type":"string"},"#, "]}"),
        ("properties in properties", r#"{"properties":{"a":"#, "}}"),
        ("negations", r#"{"not":"#, "}"),
        ("many types in unions", r#"{"type":["string","null","object"],"properties":{"a":"#, "}}"),
    ] {
        in_time(what, &schema(&nest(open, close, 60)));
    }
    let refers: Vec<_> = (0..40)
        .map(|at| {
            format!(r##""d{at}":{{"anyOf":[{{"$ref":"#/$defs/d{0}"}},{{"items":{{"$ref":"#/$defs/d{0}"}}}}]}}"##, (at + 1) % 40)
        })
        .collect();
    in_time(
        "references in circles",
        &schema(&format!(r##"{{"$ref":"#/$defs/d0","$defs":{{{},"e":{{"const":"end"}}}}}}"##, refers.join(","))),
    );
}
