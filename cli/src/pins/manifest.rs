//! `MCPToolPins` as a manifest.

use std::fmt::Write;

use anyhow::{anyhow, bail};
use toolweir_crds::{API_VERSION, MCPToolPinsSpec, PinnedPart, PinnedTool, quoting::scalar, read_manifests};

use crate::yaml_text::{comment, value};

/// The bytes of JSON that `kubectl apply` can keep in an annotation, so that it knows later what it has applied.
const APPLIED: usize = 256 * 1024;
/// The bytes of JSON that an object can have, with room for what the API server adds.
const OBJECT: usize = 1024 * 1024;

/// What an object is called.
#[derive(Clone, Copy, Debug)]
pub struct ManifestName<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its namespace, if it is known.
    pub namespace: Option<&'a str>,
}

/// Writes pins. `origin` says where the tools were read. The manifest is read back before it is returned, and is the same for the same input.
///
/// # Errors
/// It does not say what it should, or is too large for a cluster.
pub fn pins_manifest(name: &ManifestName<'_>, spec: &MCPToolPinsSpec, origin: &str) -> anyhow::Result<String> {
    let bytes = serde_json::to_vec(spec)?.len();
    if bytes > OBJECT {
        bail!("the pins have {bytes} bytes, and a cluster takes {OBJECT}; the server lists too many tools to pin them");
    }
    let mut text = header(spec, origin, bytes);
    // A write to a text does not fail.
    let _ = write!(text, "apiVersion: {API_VERSION}\nkind: MCPToolPins\nmetadata:\n  name: {}\n", scalar(name.name));
    if let Some(namespace) = name.namespace {
        let _ = writeln!(text, "  namespace: {}", scalar(namespace));
    }
    let _ = writeln!(text, "spec:\n  server: {}", scalar(&spec.server));
    text.push_str(if spec.tools.is_empty() { "  tools: []\n" } else { "  tools:\n" });
    for tool in &spec.tools {
        tool_text(&mut text, tool);
    }
    read_back(name, spec, &text)?;
    Ok(text)
}

fn header(spec: &MCPToolPinsSpec, origin: &str, bytes: usize) -> String {
    let mut text = String::new();
    let tools = if spec.tools.len() == 1 { "tool" } else { "tools" };
    let count = spec.tools.len();
    comment(&mut text, 0, &format!("Pinned by toolweir: {count} {tools} of {}, read from {origin}.", spec.server));
    comment(&mut text, 0, "Read what they say before you apply it: it says what they looked like, not that they are harmless.");
    let cut = spec.tools.iter().flat_map(|tool| &tool.parts).filter(|part| part.cut).count();
    if cut > 0 {
        let texts = if cut == 1 { "1 text is" } else { &format!("{cut} texts are") };
        comment(&mut text, 0, &format!("{texts} cut here (cut: true). The digests are those of the whole."));
    }
    if bytes > APPLIED {
        comment(&mut text, 0, "It is too large for the annotation of kubectl apply: use kubectl apply --server-side.");
    }
    text
}

fn tool_text(text: &mut String, tool: &PinnedTool) {
    let _ = writeln!(text, "  - name: {}", scalar(&tool.name));
    if tool.parts.is_empty() {
        return;
    }
    text.push_str("    parts:\n");
    for PinnedPart { part, sha256, text: kept, cut } in &tool.parts {
        let _ = writeln!(text, "    - part: {}\n      sha256: {}", scalar(part.as_str()), scalar(sha256));
        if !kept.is_empty() {
            let _ = writeln!(text, "      text: {}", value(kept, 6));
        }
        if *cut {
            text.push_str("      cut: true\n");
        }
    }
}

/// Reads a manifest back, as a sidecar with local policies does.
fn read_back(name: &ManifestName<'_>, spec: &MCPToolPinsSpec, text: &str) -> anyhow::Result<()> {
    let fault = |why: &str| anyhow!("the pins are not in order, which is a fault of this program: {why}");
    let read =
        read_manifests("pins", text).map_err(|errors| fault(&errors.first().map(ToString::to_string).unwrap_or_default()))?;
    match read.pins.as_slice() {
        [located] if located.pins.name == name.name && located.pins.spec == *spec => Ok(()),
        _ => Err(fault("they are not read as they are written")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::{pins::pinned::pins_of, tools::definition::ListedTool};

    const NAME: ManifestName<'_> = ManifestName { name: "mail", namespace: Some("agents") };

    fn pins(tools: &[Value]) -> MCPToolPinsSpec {
        let tools: Vec<ListedTool> = tools.iter().map(|tool| ListedTool::new(tool.clone()).unwrap()).collect();
        pins_of("mail", &tools).unwrap()
    }

    #[test]
    fn people_can_read_what_is_pinned() {
        let spec = pins(&[
            json!({"name": "yes", "description": "Sends a mail.\n\nArgs:\n  to: \"whom\"", "inputSchema": {"type": "object"}}),
            json!({"name": "bare", "title": "on"}),
        ]);
        let digest = |tool: usize, part: usize| spec.tools[tool].parts[part].sha256.clone();
        let golden = format!(
            r#"# Pinned by toolweir: 2 tools of mail, read from a file.
# Read what they say before you apply it: it says what they looked like, not that they are harmless.
apiVersion: toolweir.dev/v1alpha1
kind: MCPToolPins
metadata:
  name: mail
  namespace: agents
spec:
  server: mail
  tools:
  - name: bare
    parts:
    - part: title
      sha256: {}
      text: "on"
  - name: "yes"
    parts:
    - part: description
      sha256: {}
      text: |-
        Sends a mail.

        Args:
          to: "whom"
    - part: inputSchema
      sha256: {}
      text: |-
        {{"type":"object"}}
"#,
            scalar(&digest(0, 0)),
            scalar(&digest(1, 0)),
            scalar(&digest(1, 1))
        );
        assert_eq!(pins_manifest(&NAME, &spec, "a file").unwrap(), golden);
    }

    #[test]
    fn a_cut_text_and_a_large_document_say_so() {
        let tool = |number: usize| json!({"name": format!("t{number}"), "description": "x".repeat(9000)});
        let text = pins_manifest(&NAME, &pins(&[tool(0)]), "").unwrap();
        assert!(
            text.contains("# 1 text is cut here (cut: true).")
                && text.contains("      cut: true\n")
                && !text.contains("--server-side")
        );
        let many: Vec<Value> = (0..40).map(tool).collect();
        let text = pins_manifest(&NAME, &pins(&many), "").unwrap();
        assert!(
            text.contains("# 40 texts are cut here") && text.contains("# It is too large for the annotation of kubectl apply")
        );
    }

    proptest! {
        /// Whatever servers write: the manifest says that and nothing else, and is read back before it is printed.
        #[test]
        fn what_servers_write_is_pinned_as_it_is(name in "\\PC{1,12}|[a-z]{1,3}", description in any::<String>(), title in "(?s).{0,20}", origin in "(?s).{0,30}") {
            let spec = pins(&[json!({"name": name, "description": description, "title": title, "\u{2028}": {"x\n": [description, 1.5]}})]);
            let text = pins_manifest(&NAME, &spec, &origin).unwrap();
            prop_assert_eq!(&read_manifests("x", &text).unwrap().pins[0].pins.spec, &spec);
        }
    }
}
