//! What pins keep of the tools of a server.

use anyhow::{anyhow, bail};
use toolweir_crds::{MCPToolPinsSpec, PinnedTool, bounds, text::escaped};
use toolweir_pins::{Definition, document};

use crate::tools::definition::ListedTool;

/// The characters that an error shows of a name.
const SHOWN: usize = 80;

/// Reads the definition of a tool as pins and the sidecar do.
///
/// # Errors
/// It cannot be read so; the error names the tool.
pub fn definition_of(tool: &ListedTool) -> anyhow::Result<Definition> {
    Definition::of(tool.definition())
        .map_err(|error| anyhow!("the definition of `{}` cannot be pinned: {error}", escaped(tool.name(), SHOWN)))
}

/// Pins the tools of a server.
///
/// # Errors
/// Pins have no room for all of them, or for the name of one.
pub fn pins_of(server: &str, tools: &[ListedTool]) -> anyhow::Result<MCPToolPinsSpec> {
    check(tools.iter().map(ListedTool::name))?;
    let definitions = tools.iter().map(definition_of).collect::<anyhow::Result<Vec<Definition>>>()?;
    Ok(document(server, &definitions))
}

/// Adds tools that are known in the form of pins, as far as they are not among those that were listed. The whole stays sorted by name. Of several
/// definitions of one tool the first is kept: no pins match them all.
///
/// # Errors
/// Pins have no room for all of them, or for the name of one.
pub fn add_hidden(spec: &mut MCPToolPinsSpec, hidden: Vec<PinnedTool>) -> anyhow::Result<()> {
    let is_new = |tool: &PinnedTool| spec.tools.iter().all(|listed| listed.name != tool.name);
    let new: Vec<PinnedTool> = hidden.into_iter().filter(is_new).collect();
    spec.tools.extend(new);
    spec.tools.sort_by(|a, b| a.name.cmp(&b.name));
    spec.tools.dedup_by(|later, first| later.name == first.name);
    check(spec.tools.iter().map(|tool| tool.name.as_str()))
}

/// Returns a tool as `drift` shows it, with as much text as pins can have.
///
/// # Errors
/// Its definition cannot be read.
pub fn pinned_tool(tool: &ListedTool) -> anyhow::Result<PinnedTool> {
    Ok(definition_of(tool)?.pinned(bounds::PINNED_TEXT))
}

fn check<'a>(names: impl Iterator<Item = &'a str>) -> anyhow::Result<()> {
    let mut count = 0;
    for name in names {
        count += 1;
        if !(1..=bounds::TOOL_NAME).contains(&name.len()) {
            bail!(
                "pins cannot hold the tool `{}`: its name has {} bytes, and 1 to {} are possible; no agent can call it through a sidecar either",
                escaped(name, SHOWN),
                name.len(),
                bounds::TOOL_NAME
            );
        }
        if name.contains(char::is_control) {
            bail!(
                "pins cannot hold the tool `{}`: its name has a control character; no policy can name such a tool either, so that it is denied \
                 where tools must be pinned. Have its server leave it out",
                escaped(name, SHOWN)
            );
        }
    }
    if count > bounds::PINNED_TOOLS {
        bail!(
            "pins have room for {} tools, and these are {count}; such a server cannot be pinned: allow by name what agents need",
            bounds::PINNED_TOOLS
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tools(names: &[String]) -> Vec<ListedTool> {
        names.iter().map(|name| ListedTool::new(json!({"name": name, "description": "x"})).unwrap()).collect()
    }

    #[test]
    fn what_pins_cannot_hold_is_named() {
        let long = format!("{}\u{1b}", "é".repeat(256));
        let error = pins_of("s", &tools(&["a".to_owned(), long])).unwrap_err().to_string();
        assert!(
            error.starts_with("pins cannot hold the tool `ééé") && error.contains("its name has 513 bytes, and 1 to 512"),
            "{error}"
        );
        let error = pins_of("s", &tools(&["a\u{7}".to_owned()])).unwrap_err().to_string();
        assert!(error.starts_with("pins cannot hold the tool `a\\u{7}`: its name has a control character"), "{error}");
        let many: Vec<String> = (0..1025).map(|number| number.to_string()).collect();
        let error = pins_of("s", &tools(&many)).unwrap_err().to_string();
        assert!(error.starts_with("pins have room for 1024 tools, and these are 1025"), "{error}");
    }

    #[test]
    fn what_is_hidden_is_added_once() {
        let listed = tools(&["b".to_owned()]);
        let mut spec = pins_of("s", &listed).unwrap();
        let hidden = |name: &str| PinnedTool { name: name.to_owned(), ..PinnedTool::default() };
        add_hidden(&mut spec, vec![hidden("b"), hidden("a"), hidden("a")]).unwrap();
        let found: Vec<_> = spec.tools.iter().map(|tool| (tool.name.as_str(), tool.parts.len())).collect();
        assert_eq!(found, [("a", 0), ("b", 1)]);
    }
}
