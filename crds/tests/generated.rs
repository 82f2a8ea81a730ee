//! The manifests in crds/generated are those of the types: after a change, `make crds` writes them anew.
#![cfg(feature = "kube")]
#![allow(clippy::unwrap_used)]

use std::path::Path;

#[test]
fn generated_manifests_are_those_of_the_types() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("generated");
    let manifests = toolweir_crds::resource::manifests();
    for (name, text) in &manifests {
        let written = std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        assert!(written == *text, "crds/generated/{name} is not what the types say; run `make crds`");
    }
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), manifests.len(), "crds/generated has other files");
}

#[test]
fn every_list_and_string_of_a_spec_is_bounded() {
    let mut open = Vec::new();
    for (name, text) in toolweir_crds::resource::manifests() {
        let crd: serde_json::Value = serde_yaml::from_str(&text).unwrap();
        let spec = crd.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec").unwrap();
        walk(spec, &format!("{name} spec"), &mut open);
    }
    // Labels have bounds of their own, which the API server's validation of selectors does not repeat.
    open.retain(|path| !path.contains("matchLabels") && !path.contains("matchExpressions"));
    assert_eq!(open, Vec::<String>::new());
}

fn walk(schema: &serde_json::Value, path: &str, open: &mut Vec<String>) {
    let has = |key: &str| schema.get(key).is_some();
    match schema.get("type").and_then(serde_json::Value::as_str) {
        Some("array") if !has("maxItems") => open.push(path.to_owned()),
        Some("string") if !(has("maxLength") || has("enum") || has("pattern")) => open.push(path.to_owned()),
        Some("integer") if !(has("maximum") && has("minimum")) => open.push(path.to_owned()),
        _ => {}
    }
    for (name, inner) in schema.get("properties").and_then(serde_json::Value::as_object).into_iter().flatten() {
        walk(inner, &format!("{path}.{name}"), open);
    }
    if let Some(items) = schema.get("items") {
        walk(items, &format!("{path}[]"), open);
    }
}
