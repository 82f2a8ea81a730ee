//! Pins as documents: those of the samples, and the check of them against a naive one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{collections::HashSet, fs, path::Path};

use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::json;
use toolweir_crds::{
    API_VERSION, MCPToolPinsSpec, PinnedPart, PinnedTool, ToolPart, ToolPins, bounds, check::check_tool_pins, read_documents,
    read_manifests,
};

fn sample(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("samples/valid").join(name)).unwrap()
}

/// The manifest of pins, as JSON.
fn manifest(pins: &ToolPins) -> String {
    json!({"apiVersion": API_VERSION, "kind": "MCPToolPins", "metadata": {"name": pins.name, "namespace": pins.namespace}, "spec": pins.spec})
        .to_string()
}

#[test]
fn a_file_of_policies_and_pins_has_both() {
    let text = sample("pins.yaml");
    let read = read_manifests("pins.yaml", &text).unwrap();
    let names: Vec<String> = read.pins.iter().map(|located| located.pins.to_string()).collect();
    assert_eq!(names, ["agents/library", "agents/nothing-yet"]);
    assert_eq!((read.policies.len(), read_documents("pins.yaml", &text).unwrap().len()), (2, 2));
    let tools = &read.pins[0].pins.spec.tools;
    let digests = tools[0].digests().unwrap();
    let parts: Vec<ToolPart> = ToolPart::ALL.into_iter().filter(|part| digests.get(*part).is_some()).collect();
    assert_eq!(parts, [ToolPart::Description, ToolPart::InputSchema, ToolPart::Meta]);
    assert_eq!((tools[0].parts[0].cut, tools[0].parts[1].cut), (false, true));
    assert_eq!((tools[1].name.as_str(), tools[1].parts.len()), ("ping", 0));
    assert_eq!(read.pins[1].pins.spec.tools, []);
}

#[test]
fn pins_written_as_json_and_read_again_are_the_same() {
    let text = sample("pins.yaml");
    for located in read_manifests("pins.yaml", &text).unwrap().pins {
        let again = manifest(&located.pins);
        assert_eq!(read_manifests("pins.json", &again).unwrap().pins[0].pins, located.pins);
    }
}

#[test]
fn a_file_with_pins_alone_has_no_policy() {
    let text = "{apiVersion: toolweir.dev/v1alpha1, kind: MCPToolPins, metadata: {name: a}, spec: {server: s}}";
    let read = read_manifests("a.yaml", text).unwrap();
    assert_eq!((read.policies.len(), read.pins[0].pins.namespace.as_str()), (0, "default"));
    let errors = read_documents("a.yaml", text).unwrap_err();
    assert!(errors[0].to_string().starts_with("a.yaml: holds no policy; write one with"), "{errors:?}");
}

#[test]
fn everything_that_is_wrong_in_pins_is_told_at_once_each_at_its_line() {
    let long = "x".repeat(bounds::PINNED_TEXT + 1);
    let text = format!(
        r#"apiVersion: toolweir.dev/v1alpha1
kind: MCPToolPins
metadata:
  name: UPPER
  namespace: a_b
spec:
  server: ""
  tools:
  - name: ""
  - name: a
    parts:
    - part: icons
      sha256: "00"
    - part: title
      sha256: {digest}
      text: {long}
  - name: a
    parts:
    - {{part: other, sha256: {digest}}}
    - {{part: other, sha256: {digest}}}
"#,
        digest = "ab".repeat(32)
    );
    let errors = read_manifests("all.yaml", &text).unwrap_err();
    let told: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "all.yaml:4:9: metadata.name: `UPPER` is not a Kubernetes name; write lower case letters, digits, `-` and `.`",
            "all.yaml:5:14: metadata.namespace: `a_b` is not a Kubernetes name; write lower case letters, digits, `-` and `.`",
            "all.yaml:7:11: spec.server: has 0 bytes; from 1 to 63 are possible",
            "all.yaml:9:11: spec.tools[0].name: has 0 bytes; from 1 to 512 are possible",
            "all.yaml:13:15: spec.tools[1].parts[0].sha256: is not a SHA-256; write its 64 lower case hexadecimal digits, or pin the tool anew",
            "all.yaml:16:13: spec.tools[1].parts[1].text: has 8193 bytes; at most 8192 are possible",
            "all.yaml:17:11: spec.tools[2].name: is also the name of tools[1]; remove one",
            "all.yaml:20:14: spec.tools[2].parts[1].part: `other` stands twice; remove one",
        ]
    );
}

#[test]
fn more_tools_than_are_possible_are_refused_and_as_many_as_are_possible_accepted() {
    let pins = |count: usize| ToolPins {
        namespace: "agents".to_owned(),
        name: "many".to_owned(),
        spec: MCPToolPinsSpec {
            server: "s".to_owned(),
            tools: (0..count).map(|at| PinnedTool { name: format!("t{at}"), parts: Vec::new() }).collect(),
        },
    };
    assert_eq!(check_tool_pins(&pins(bounds::PINNED_TOOLS)), []);
    let errors = read_manifests("many.json", &manifest(&pins(bounds::PINNED_TOOLS + 1))).unwrap_err();
    assert_eq!(errors[0].message, "spec.tools: has 1025 items; from 0 to 1024 are possible");
}

fn a_part() -> impl Strategy<Value = PinnedPart> {
    let sha256 = prop_oneof![8 => "[0-9a-f]{64}", 1 => "[0-9a-fA-G]{63,65}"];
    (select(&ToolPart::ALL), sha256, "\\PC{0,9}", any::<bool>()).prop_map(|(part, sha256, text, cut)| PinnedPart {
        part,
        sha256,
        text,
        cut,
    })
}

fn some_pins() -> impl Strategy<Value = ToolPins> {
    let tool = ("[ab]{0,3}\n?|\\PC{1,9}", vec(a_part(), 0..4)).prop_map(|(name, parts)| PinnedTool { name, parts });
    ("[a-z]{0,2}", "[a-z]{1,2}", "[a-z]{0,3}", vec(tool, 0..4)).prop_map(|(server, name, namespace, tools)| ToolPins {
        namespace,
        name,
        spec: MCPToolPinsSpec { server, tools },
    })
}

/// Whether pins are in order, as the docs of their fields say.
fn fits(pins: &ToolPins) -> bool {
    let mut names = HashSet::new();
    let in_order = |tool: &PinnedTool| {
        let mut parts = HashSet::new();
        let is_digit = |digit: char| "0123456789abcdef".contains(digit);
        let fits = |part: &PinnedPart| part.sha256.chars().count() == 64 && part.sha256.chars().all(is_digit);
        !tool.name.is_empty()
            && !tool.name.contains('\u{7f}')
            && tool.parts.iter().all(|part| parts.insert(part.part) && fits(part))
    };
    !pins.namespace.is_empty()
        && !pins.spec.server.is_empty()
        && pins.spec.tools.iter().all(|tool| in_order(tool) && names.insert(&tool.name))
}

proptest! {
    #[test]
    fn pins_are_accepted_where_they_are_in_order_and_then_read_as_they_are_written(pins in some_pins()) {
        let errors = check_tool_pins(&pins);
        prop_assert_eq!(errors.is_empty(), fits(&pins), "{:?}", errors);
        match read_manifests("pins.json", &manifest(&pins)) {
            Ok(read) => prop_assert_eq!(&read.pins[0].pins, &pins),
            Err(told) => {
                prop_assert_eq!(told.len(), errors.len());
                prop_assert!(told.iter().all(|error| error.position.is_some() && !error.to_string().contains(char::is_control)));
            }
        }
    }
}
