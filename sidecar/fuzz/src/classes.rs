//! A tool's definition: its class has evidence that stands in it, and the server's hints only make it worse.

use serde_json::Value;
use toolweir_classes::{Classification, Evidence, ToolAnnotations, ToolDefinition, classify};
use toolweir_crds::ToolClass;

fn classified(tool: &Value, annotations: ToolAnnotations) -> Classification {
    let text = |key: &str| tool.get(key).and_then(Value::as_str);
    classify(&ToolDefinition {
        name: text("name").unwrap_or_default(),
        title: text("title"),
        description: text("description"),
        input_schema: tool.get("inputSchema"),
        annotations,
    })
}

/// Whether some text of a value has the evidence at its place.
fn stands_in(value: &Value, evidence: &Evidence) -> bool {
    let here = |text: &str| text.get(evidence.span.clone()) == Some(evidence.text.as_str());
    match value {
        Value::String(text) => here(text),
        Value::Array(values) => values.iter().any(|value| stands_in(value, evidence)),
        Value::Object(members) => members.iter().any(|(name, value)| here(name) || stands_in(value, evidence)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// The check.
pub fn check(bytes: &[u8]) {
    let Ok(tool) = serde_json::from_slice::<Value>(bytes) else { return };
    let bare = classified(&tool, ToolAnnotations::default());
    assert_eq!(bare, classified(&tool.clone(), ToolAnnotations::default()), "one definition, two classes");
    assert_eq!(bare.evidence.is_empty(), bare.class == ToolClass::Unknown);
    assert!(bare.evidence.first().is_none_or(|first| first.class == bare.class), "{bare:?}");
    for evidence in &bare.evidence {
        let part = evidence.part.split('.').next().unwrap_or_default();
        assert!(tool.get(part).is_some_and(|value| stands_in(value, evidence)), "{evidence:?} is not in the definition");
    }
    let why = bare.why();
    assert!(!why.is_empty() && why.chars().count() <= 130 && !why.chars().any(char::is_control), "{why:?}");
    for read_only in [None, Some(false), Some(true)] {
        for destructive in [None, Some(false), Some(true)] {
            let hinted = classified(&tool, ToolAnnotations { read_only, destructive });
            assert!(hinted.severity() >= bare.severity(), "{bare:?} became {hinted:?}");
            assert!(
                read_only != Some(true) || destructive == Some(true) || hinted.class == bare.class,
                "{bare:?} became {hinted:?}"
            );
        }
    }
}
