//! What holds for any definition.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use proptest::{collection::vec, option, prelude::*};
use serde_json::{Map, Value, json};
use toolweir_classes::{Classification, ToolAnnotations, ToolDefinition, classify};
use toolweir_crds::ToolClass;

const WORDS: &[&str] = &[
    "get",
    "list",
    "delete",
    "post",
    "query",
    "run",
    "and",
    "or",
    "this",
    "tool",
    "will",
    "permanently",
    "deletes",
    "read-only",
    "sql",
    "a",
    "the",
    "cannot",
    "be",
    "undone",
    "not",
    "action",
    "Create,",
    "updates.",
    "\n- ",
    "`x_y`",
    "/",
    "|",
    ":",
    "payment",
    "é",
    "🦀",
    "\u{202e}",
];

fn text() -> impl Strategy<Value = String> {
    let words = vec(proptest::sample::select(WORDS), 0..24).prop_map(|words| words.join(" "));
    prop_oneof![words, ".{0,80}", "[a-zA-Z_-]{0,40}"]
}

fn schema() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), text().prop_map(Value::from)];
    let keys = proptest::sample::select(vec![
        "properties",
        "enum",
        "oneOf",
        "anyOf",
        "items",
        "const",
        "description",
        "$ref",
        "action",
        "sql",
        "request",
        "amount",
        "currency",
        "type",
    ]);
    leaf.prop_recursive(6, 64, 6, move |inner| {
        let members = vec((keys.clone(), inner.clone()), 0..6);
        let object =
            members.prop_map(|members| Value::Object(members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()));
        prop_oneof![object, vec(inner, 0..6).prop_map(Value::from)]
    })
}

/// A definition's texts.
#[derive(Clone, Debug)]
struct Owned {
    name: String,
    title: Option<String>,
    description: Option<String>,
    schema: Option<Value>,
}

impl Owned {
    fn classify(&self, annotations: ToolAnnotations) -> Classification {
        classify(&ToolDefinition {
            name: &self.name,
            title: self.title.as_deref(),
            description: self.description.as_deref(),
            input_schema: self.schema.as_ref(),
            annotations,
        })
    }

    /// The text that a piece of evidence names.
    fn part(&self, part: &str) -> Option<String> {
        match part {
            "name" => Some(self.name.clone()),
            "title" => self.title.clone(),
            "description" => self.description.clone(),
            _ => None,
        }
    }
}

fn definition() -> impl Strategy<Value = Owned> {
    (text(), option::of(text()), option::of(text()), option::of(schema())).prop_map(|(name, title, description, schema)| Owned {
        name,
        title,
        description,
        schema,
    })
}

fn annotations() -> impl Strategy<Value = ToolAnnotations> {
    (any::<Option<bool>>(), any::<Option<bool>>()).prop_map(|(read_only, destructive)| ToolAnnotations { read_only, destructive })
}

proptest! {
    #[test]
    fn the_same_definition_has_the_same_class(tool in definition(), hints in annotations()) {
        prop_assert_eq!(tool.classify(hints), tool.clone().classify(hints));
    }

    #[test]
    fn evidence_is_the_text_itself(tool in definition(), hints in annotations()) {
        let found = tool.classify(hints);
        prop_assert_eq!(found.evidence.is_empty(), found.class == ToolClass::Unknown);
        if let Some(first) = found.evidence.first() {
            prop_assert_eq!(first.class, found.class);
        }
        prop_assert!(found.evidence.len() <= 32);
        for piece in &found.evidence {
            prop_assert_eq!(piece.text.len(), piece.span.len());
            if let Some(text) = tool.part(&piece.part) {
                prop_assert_eq!(text.get(piece.span.clone()), Some(piece.text.as_str()));
            } else {
                prop_assert!(piece.part.starts_with("inputSchema.") || piece.part.starts_with("annotations."), "{}", piece.part);
            }
        }
    }

    #[test]
    fn annotations_never_lower(tool in definition(), hints in annotations()) {
        let (bare, hinted) = (tool.classify(ToolAnnotations::default()), tool.classify(hints));
        prop_assert!(hinted.severity() >= bare.severity(), "{:?} {:?}", bare, hinted);
        prop_assert!(hinted.class >= bare.class || bare.class == ToolClass::Unknown, "{:?} {:?}", bare, hinted);
    }

    #[test]
    fn a_server_s_word_alone_reads_nothing(tool in definition()) {
        let bare = tool.classify(ToolAnnotations::default()).class;
        let hints = ToolAnnotations { read_only: Some(true), destructive: Some(false) };
        prop_assert_eq!(tool.classify(hints).class, bare);
    }

    #[test]
    fn why_is_one_line(tool in definition(), hints in annotations()) {
        let why = tool.classify(hints).why();
        prop_assert!(!why.is_empty() && why.chars().count() <= 130, "{}", why);
        let harmful = why.chars().any(|c| c.is_control() || c == '\u{202e}');
        prop_assert!(!harmful, "{}", why);
    }
}

/// What a class takes, with a margin for slow machines and unoptimised builds.
fn in_time(what: &str, tool: &Owned) -> Classification {
    let began = Instant::now();
    let found = tool.classify(ToolAnnotations::default());
    let elapsed = began.elapsed();
    assert!(elapsed < Duration::from_secs(2), "{what} took {elapsed:?}");
    found
}

#[test]
fn megabytes_take_no_time() {
    let mebibyte = 1 << 20;
    for unit in [
        "a",
        "A",
        " ",
        "\n",
        "_",
        "/",
        ".",
        "a ",
        "a, ",
        "delete ",
        "delete and ",
        "overwrites ",
        "é",
        "\"`",
        "- x\n",
        "this will delete ",
        "Get. ",
    ] {
        let text = unit.repeat(mebibyte / unit.len());
        let schema = json!({"properties": {"action": {"description": text, "enum": [text]}, "query": {"description": text}, text.as_str(): {}}});
        let tool = Owned { name: text.clone(), title: Some(text.clone()), description: Some(text), schema: Some(schema) };
        in_time(unit, &tool);
    }
}

#[test]
fn schemas_of_any_size_take_no_time() {
    let property = json!({"enum": (0..1000).map(|at| format!("delete_{at}")).collect::<Vec<_>>(), "description": "SQL to execute ".repeat(4096)});
    let many: Map<_, _> = (0..1000).map(|at| (format!("action_{at}_action"), property.clone())).collect();
    let mut deep = json!({"properties": {"sql": {}}});
    for _ in 0..100 {
        deep = json!({"oneOf": vec![deep; 1], "properties": {"request": {"properties": {}}}});
    }
    let own = json!({"$ref": "#", "properties": {"a": {"$ref": "#"}}, "anyOf": [{"$ref": "#"}, {"$ref": "#"}]});
    let branches = json!({"anyOf": vec![own.clone(); 1000], "oneOf": vec![json!({"$ref": "#"}); 1000], "properties": many});
    for (what, schema) in
        [("many", json!({"properties": branches["properties"]})), ("deep", deep), ("own", own), ("branches", branches)]
    {
        let tool = Owned { name: "thing".to_owned(), title: None, description: None, schema: Some(schema) };
        in_time(what, &tool);
    }
}

#[test]
fn what_is_far_behind_is_not_passed_over() {
    let description = format!("Lists things.{}\nThis will delete them.", " Really.".repeat(4096));
    let tool = Owned { name: "list_things".to_owned(), title: None, description: Some(description), schema: None };
    let found = in_time("far", &tool);
    assert_eq!((found.class, found.why().as_str()), (ToolClass::Unknown, "its description is longer than what is read"));
}
