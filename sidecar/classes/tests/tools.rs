//! What a person would say of each tool: `tools.txt`.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use toolweir_classes::{ToolDefinition, classify};

fn schema(arguments: &str) -> Value {
    let properties =
        arguments.split(',').filter(|name| !name.is_empty()).map(|name| (name.to_owned(), json!({"type": "string"})));
    let required = arguments.split(',').filter_map(|name| name.strip_suffix('!'));
    let properties = properties.map(|(name, schema)| (name.trim_end_matches('!').to_owned(), schema));
    json!({
        "type": "object",
        "required": required.collect::<Vec<_>>(),
        "properties": properties.collect::<serde_json::Map<_, _>>(),
    })
}

#[test]
fn each_tool_has_the_class_that_a_person_gives_it() {
    let mut wrong = Vec::new();
    let mut tools = 0;
    for line in include_str!("tools.txt").lines().filter(|line| !line.starts_with('#')) {
        let mut parts = line.splitn(4, " |").map(str::trim);
        let mut next = || parts.next().unwrap();
        let (class, name, arguments, description) = (next(), next(), next(), next());
        let schema = schema(arguments);
        let definition =
            ToolDefinition { name, description: Some(description), input_schema: Some(&schema), ..ToolDefinition::default() };
        let found = classify(&definition);
        if found.class.as_str() != class {
            wrong.push(format!("{line}\n    is {}: {}", found.class.as_str(), found.why()));
        }
        tools += 1;
    }
    assert!(tools > 200, "{tools} tools");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
