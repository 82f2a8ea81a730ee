//! Reads a tools/list result from stdin, and prints each tool's class with the evidence as JSON: one list, in the same order.

use std::io::{Read, Write};

use serde::Serialize;
use serde_json::Value;
use toolweir_classes::{Evidence, ToolAnnotations, ToolDefinition, classify};

#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    class: &'static str,
    severity: &'static str,
    why: String,
    evidence: Vec<Piece>,
}

#[derive(Serialize)]
struct Piece {
    r#in: String,
    start: usize,
    end: usize,
    text: String,
    class: &'static str,
}

fn piece(evidence: Evidence) -> Piece {
    let Evidence { part, span, text, class } = evidence;
    Piece { r#in: part, start: span.start, end: span.end, text, class: class.as_str() }
}

fn line(tool: &Value) -> Line<'_> {
    let text = |key: &str| tool.get(key).and_then(Value::as_str);
    let hint = |key: &str| tool.get("annotations").and_then(|hints| hints.get(key)).and_then(Value::as_bool);
    let found = classify(&ToolDefinition {
        name: text("name").unwrap_or_default(),
        title: text("title"),
        description: text("description"),
        input_schema: tool.get("inputSchema"),
        annotations: ToolAnnotations { read_only: hint("readOnlyHint"), destructive: hint("destructiveHint") },
    });
    Line {
        name: text("name").unwrap_or_default(),
        class: found.class.as_str(),
        severity: found.severity().as_str(),
        why: found.why(),
        evidence: found.evidence.into_iter().map(piece).collect(),
    }
}

fn main() -> std::io::Result<()> {
    let mut input = String::new();
    std::io::stdin().read_to_string(&mut input)?;
    let list: Value = serde_json::from_str(&input)?;
    let tools = list.get("tools").unwrap_or(&list).as_array().cloned().unwrap_or_default();
    let lines: Vec<_> = tools.iter().map(line).collect();
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, &lines)?;
    out.write_all(b"\n")
}
