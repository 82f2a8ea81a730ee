//! The manifests in crds/generated are those of the types: after a change, `make crds` writes them anew.
#![cfg(feature = "kube")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::path::Path;

use regex_automata::meta::Regex;
use serde_json::json;

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
        let properties = crd.pointer("/spec/versions/0/schema/openAPIV3Schema/properties").unwrap();
        walk(&properties["spec"], &format!("{name} spec"), &mut open);
        // Of a policy, the operator alone writes the status; here people write a part of it.
        if name == "mcpapprovals.yaml" {
            walk(&properties["status"], &format!("{name} status"), &mut open);
        }
    }
    // Labels have bounds of their own, which the API server's validation of selectors does not repeat.
    open.retain(|path| !path.contains("matchLabels") && !path.contains("matchExpressions"));
    assert_eq!(open, Vec::<String>::new());
}

/// The pattern of the one rule of a server whose message has this text.
fn pattern(rules: &serde_json::Value, message: &str) -> String {
    let of = |rule: &serde_json::Value| {
        rule["message"].as_str().unwrap().contains(message).then(|| rule["rule"].as_str().unwrap().to_owned())
    };
    let found: Vec<String> = rules.as_array().unwrap().iter().filter_map(of).collect();
    let [rule] = found.as_slice() else { panic!("{message}: {found:?}") };
    let (_, pattern) = rule.split_once(".matches('").unwrap();
    pattern.strip_suffix("')").unwrap().replace(r"\\", r"\")
}

#[test]
fn the_api_server_and_the_check_refuse_to_intercept_the_same_hosts() {
    let manifests = toolweir_crds::resource::manifests();
    for (name, text) in &manifests {
        let crd: serde_json::Value = serde_yaml::from_str(text).unwrap();
        let servers = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/servers/items/x-kubernetes-validations";
        let Some(rules) = crd.pointer(servers) else {
            assert!(["mcptoolpins.yaml", "mcpapprovals.yaml"].contains(name), "{name} has servers");
            continue;
        };
        let is_address = Regex::new(&pattern(rules, "for a host with a name")).unwrap();
        for (host, is_name) in [
            ("bank.tools.svc", true),
            ("bank", true),
            ("BANK.example.", true),
            ("10.example", true),
            ("0x7f.example", true),
            ("a1.b2", true),
            ("10.0.0.5", false),
            ("10.0.0.5.", false),
            ("[fd00::1]", false),
            ("[::ffff:10.0.0.5]", false),
            ("2130706433", false),
            ("10.1", false),
            ("a.0x7F", false),
            ("0x", false),
        ] {
            for (port, rest) in [("", ""), ("", "/mcp"), (":8443", "/1.2"), ("", "?a.1"), (":443", "")] {
                let url = format!("https://{host}{port}{rest}");
                let spec = json!({"servers": [{"name": "bank", "url": url, "tls": "Intercept"}]});
                let errors = toolweir_crds::check::check(&serde_json::from_value(spec).unwrap(), false);
                let paths: Vec<&str> = errors.iter().map(|error| error.path.as_str()).collect();
                assert_eq!(paths, if is_name { &[][..] } else { &["spec.servers[0].tls"] }, "{url}: {errors:?}");
                assert_eq!(is_address.is_match(&url), !is_name, "{name}: {url}");
            }
        }
    }
}

#[test]
fn the_api_server_and_a_file_leave_out_the_same_of_an_approval() {
    let read = |approval: serde_json::Value| serde_json::from_value::<toolweir_crds::EntryApproval>(approval).unwrap();
    let left_out = read(json!({}));
    assert_eq!(left_out, toolweir_crds::EntryApproval::default());
    for (name, text) in toolweir_crds::resource::manifests().iter().filter(|(name, _)| name.ends_with("policies.yaml")) {
        let crd: serde_json::Value = serde_yaml::from_str(text).unwrap();
        for kind in ["tools", "prompts", "resources", "requests"] {
            let of_entry = format!(
                "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/servers/items/properties/{kind}/items\
                 /properties/approval/properties"
            );
            let fields = crd.pointer(&of_entry).unwrap().as_object().unwrap();
            let completed: serde_json::Map<_, _> =
                fields.iter().filter_map(|(field, schema)| Some((field.clone(), schema.get("default")?.clone()))).collect();
            let written = serde_json::to_value(&left_out).unwrap();
            assert_eq!(written, json!(completed), "{name} {kind}: written anew, it is as the API server has it");
            assert_eq!(read(json!(completed)), left_out, "{name} {kind}");
        }
    }
}

#[test]
fn the_api_server_takes_no_say_for_one_that_is_left_out() {
    // A default in the schema would be written into every stored policy, and would be a say.
    for (name, text) in toolweir_crds::resource::manifests().iter().filter(|(name, _)| name.ends_with("policies.yaml")) {
        let crd: serde_json::Value = serde_yaml::from_str(text).unwrap();
        let server = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/servers/items/properties";
        let server = crd.pointer(server).unwrap();
        for field in ["prompts", "resources", "requests", "defaultActions"] {
            assert!(server[field].is_object(), "{name} has no {field}");
            assert_eq!(server[field].get("default"), None, "{name} {field}");
        }
        for (kind, schema) in server["defaultActions"]["properties"].as_object().unwrap() {
            assert_eq!(schema.get("default"), None, "{name} {kind}");
        }
    }
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
