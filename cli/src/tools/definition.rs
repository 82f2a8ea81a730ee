//! Definitions of tools, as a server lists them.

use std::collections::HashSet;

use anyhow::{Context, bail};
use serde_json::Value;
use toolweir_classes::{Classification, ToolAnnotations, ToolDefinition, classify};

use super::{limits::ReadLimits, other_lists::OtherLists};
use crate::table::shown;

/// A tool, as its server lists it: nothing of its definition is lost.
#[derive(Clone, Debug, PartialEq)]
pub struct ListedTool {
    name: String,
    definition: Value,
}

impl ListedTool {
    /// Takes a definition as it is listed.
    ///
    /// # Errors
    /// It is not an object, or has no name.
    pub fn new(definition: Value) -> anyhow::Result<Self> {
        let fields = definition.as_object().context("a tool is not an object")?;
        let name = fields.get("name").and_then(Value::as_str).context("a tool has no name")?;
        if name.is_empty() {
            bail!("a tool has an empty name");
        }
        Ok(Self { name: name.to_owned(), definition })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its title for people, also where older servers write it.
    pub fn title(&self) -> Option<&str> {
        let annotated = || self.definition.get("annotations")?.get("title")?.as_str();
        self.definition.get("title").and_then(Value::as_str).or_else(annotated)
    }

    /// The description that the model reads.
    pub fn description(&self) -> Option<&str> {
        self.definition.get("description")?.as_str()
    }

    /// The schema of its arguments.
    pub fn input_schema(&self) -> Option<&Value> {
        self.definition.get("inputSchema")
    }

    /// The server's own hints; what is not a boolean is none.
    pub fn annotations(&self) -> ToolAnnotations {
        let hint = |name: &str| self.definition.get("annotations")?.get(name)?.as_bool();
        ToolAnnotations { read_only: hint("readOnlyHint"), destructive: hint("destructiveHint") }
    }

    /// The whole definition, with fields that nobody here knows.
    pub fn definition(&self) -> &Value {
        &self.definition
    }

    /// What the classifier reads of it.
    pub fn as_definition(&self) -> ToolDefinition<'_> {
        ToolDefinition {
            name: self.name(),
            title: self.title(),
            description: self.description(),
            input_schema: self.input_schema(),
            annotations: self.annotations(),
        }
    }

    /// What it can do, and why.
    pub fn classify(&self) -> Classification {
        classify(&self.as_definition())
    }
}

/// The tools of one server, in the order in which it lists them. No two have one name.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerTools {
    /// A name for the server in policies, made of what is known of it. It always fits there.
    pub name: String,
    /// True if the name is made of what the server calls itself.
    pub says_name: bool,
    /// The URL at which agents reach it, if it has one.
    pub url: Option<String>,
    /// The tools.
    pub tools: Vec<ListedTool>,
    /// What it lists beside tools, where that was read.
    pub others: Option<OtherLists>,
}

/// Collects tools, within bounds.
#[derive(Debug, Default)]
pub struct ToolCollector {
    names: HashSet<String>,
    tools: Vec<ListedTool>,
}

impl ToolCollector {
    /// Adds the definitions of a page.
    ///
    /// # Errors
    /// There are too many, one has no name, or two have one name.
    pub fn add(&mut self, definitions: Vec<Value>, limits: &ReadLimits) -> anyhow::Result<()> {
        for definition in definitions {
            let number = self.tools.len() + 1;
            if number > limits.tools {
                bail!("there are more than {} tools, and no agent can use so many", limits.tools);
            }
            let tool = ListedTool::new(definition).with_context(|| format!("tool {number} cannot be read"))?;
            if !self.names.insert(tool.name.clone()) {
                bail!("two tools are named `{}`, and a policy cannot tell them apart", shown(&tool.name));
            }
            self.tools.push(tool);
        }
        Ok(())
    }

    /// Returns the tools.
    pub fn finish(self) -> Vec<ListedTool> {
        self.tools
    }
}

/// Makes a name for a server that fits into a policy out of what it calls itself, such as `io.github.acme/Mail-Server`.
pub fn server_name(text: &str) -> String {
    let last = text.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default();
    let mut name = String::new();
    for c in last.chars().flat_map(char::to_lowercase) {
        match c {
            'a'..='z' | '0'..='9' => name.push(c),
            _ if !name.is_empty() && !name.ends_with('-') => name.push('-'),
            _ => {}
        }
    }
    name.truncate(toolweir_crds::bounds::SERVER_NAME);
    let name = name.trim_matches('-');
    if name.is_empty() { "server".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_definition_is_kept_whole() {
        let definition = json!({"name": "pay", "annotations": {"title": "Pay", "destructiveHint": true, "readOnlyHint": "no"},
            "inputSchema": {"type": "object"}, "icons": [], "aNewerField": 1});
        let tool = ListedTool::new(definition.clone()).unwrap();
        assert_eq!((tool.name(), tool.title(), tool.description()), ("pay", Some("Pay"), None));
        assert_eq!(tool.annotations(), ToolAnnotations { read_only: None, destructive: Some(true) });
        assert_eq!(tool.definition(), &definition);
    }

    #[test]
    fn what_cannot_be_told_apart_is_refused() {
        let add = |definitions: Value, limits: ReadLimits| {
            let mut tools = ToolCollector::default();
            let added = tools.add(serde_json::from_value(definitions).unwrap(), &limits);
            added.map(|()| tools.finish().len()).map_err(|error| format!("{error:#}"))
        };
        let limits = ReadLimits { tools: 2, ..ReadLimits::default() };
        let twice = "two tools are named `a\u{fffd}`, and a policy cannot tell them apart";
        for (definitions, found) in [
            (json!([]), Ok(0)),
            (json!([{"name": "a"}, {"name": "A"}]), Ok(2)),
            (json!([{"name": "a\u{1b}"}, {"name": "a\u{1b}"}]), Err(twice)),
            (json!([{"name": "a"}, {"title": "b"}]), Err("tool 2 cannot be read: a tool has no name")),
            (json!(["a"]), Err("tool 1 cannot be read: a tool is not an object")),
            (json!([{"name": ""}]), Err("tool 1 cannot be read: a tool has an empty name")),
            (
                json!([{"name": "a"}, {"name": "b"}, {"name": "c"}]),
                Err("there are more than 2 tools, and no agent can use so many"),
            ),
        ] {
            assert_eq!(add(definitions, limits), found.map_err(str::to_owned));
        }
    }

    #[test]
    fn names_of_servers_fit_into_policies() {
        for (text, name) in [
            ("io.github.acme/Mail-Server", "mail-server"),
            ("mcp-servers/everything/", "everything"),
            ("Ünï code!", "n-code"),
            ("--", "server"),
            ("", "server"),
        ] {
            assert_eq!(server_name(text), name);
        }
        assert_eq!(server_name(&"ab-".repeat(40)).len(), 62);
    }
}
