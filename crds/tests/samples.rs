//! Every sample of a policy, read: valid ones are accepted as they are, and of invalid ones an error says what and where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{collections::HashSet, fs, path::Path};

use serde_json::json;
use toolweir_crds::{Document, FileError, bounds, read_documents};

/// Errors that a reader cannot find and the compiler does: see the same test of `toolweir-engine`.
const FOUND_BY_THE_COMPILER: [&str; 19] = [
    "approval-show-not-cel.yaml",
    "approval-when-not-cel.yaml",
    "cel-args-of-a-resource.yaml",
    "cel-bad-pattern.yaml",
    "cel-made-type.yaml",
    "cel-nested-comprehension.yaml",
    "cel-not-cel.yaml",
    "cel-pattern-of-the-call.yaml",
    "cel-prompt-of-a-request.yaml",
    "cel-too-deep.yaml",
    "cel-too-long-a-chain.yaml",
    "cel-tool-of-a-prompt.yaml",
    "cel-unknown-function.yaml",
    "cel-unknown-variable.yaml",
    "contradictory-globs.yaml",
    "contradictory-prompts.yaml",
    "cost-not-cel.yaml",
    "key-unknown-variable.yaml",
    "shared-scope-without-store.yaml",
];

/// The samples of a folder: file name and text.
fn samples(folder: &str) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples").join(folder);
    let mut samples: Vec<(String, String)> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(&path).unwrap()))
        .collect();
    samples.sort();
    assert!(samples.len() > 10, "{} has only {} samples", folder.display(), samples.len());
    samples
}

/// The errors of a text that no policy can be read from.
fn errors(file: &str, text: &str) -> Vec<FileError> {
    read_documents(file, text).expect_err(file)
}

fn one(file: &str, text: &str) -> FileError {
    let errors = errors(file, text);
    assert_eq!(errors.len(), 1, "{errors:#?}");
    errors.into_iter().next().unwrap()
}

fn is_one_line(error: &FileError) -> bool {
    !error.to_string().contains(char::is_control)
}

#[test]
fn valid_samples_are_read_and_each_has_a_name_of_its_own() {
    let mut seen = HashSet::new();
    for (name, text) in samples("valid") {
        let documents = read_documents(&name, &text).unwrap_or_else(|errors| panic!("{errors:#?}"));
        for located in documents {
            let id = match &located.document {
                Document::MCPPolicy { metadata, .. } => format!("{}/{}", metadata.namespace.as_deref().unwrap(), metadata.name),
                Document::MCPClusterPolicy { metadata, .. } => metadata.name.clone(),
            };
            assert!(seen.insert(id.clone()), "{name}: there are two policies {id}");
        }
    }
    assert!(seen.contains("agents/facebook") && seen.contains("guardrail") && seen.contains("no-file-writes"));
}

#[test]
fn a_valid_sample_written_as_json_and_read_again_is_the_same_policy() {
    for (name, text) in samples("valid") {
        for located in read_documents(&name, &text).unwrap() {
            let mut manifest = serde_json::to_value(&located.document).unwrap();
            manifest["apiVersion"] = json!(toolweir_crds::API_VERSION);
            let again = manifest.to_string();
            let again = read_documents(&name, &again).unwrap_or_else(|errors| panic!("{errors:#?}\n{again}"));
            assert_eq!(again[0].document, located.document, "{name}");
        }
    }
}

#[test]
fn several_documents_of_a_file_are_read_in_their_order() {
    let (name, text) = samples("valid").into_iter().find(|(name, _)| name == "several-documents.yaml").unwrap();
    let names: Vec<String> = read_documents(&name, &text)
        .unwrap()
        .into_iter()
        .map(|located| match located.document {
            Document::MCPPolicy { metadata, .. } => format!("policy {}", metadata.name),
            Document::MCPClusterPolicy { metadata, .. } => format!("cluster policy {}", metadata.name),
        })
        .collect();
    assert_eq!(names, ["policy files", "policy browser", "cluster policy no-file-writes"]);
}

#[test]
fn a_policy_without_namespace_is_in_the_default_one() {
    let text = "{apiVersion: toolweir.dev/v1alpha1, kind: MCPPolicy, metadata: {name: a}, spec: {servers: [{name: a}]}}";
    let documents = read_documents("a.yaml", text).unwrap();
    let Document::MCPPolicy { metadata, .. } = &documents[0].document else { panic!("{documents:?}") };
    assert_eq!(metadata.namespace.as_deref(), Some("default"));
}

#[test]
fn the_error_of_an_invalid_sample_says_what_its_first_line_promises() {
    let mut left: Vec<String> = Vec::new();
    for (name, text) in samples("invalid") {
        let promised = text.lines().next().and_then(|line| line.strip_prefix("# error: ")).expect(&name);
        let Err(errors) = read_documents(&name, &text) else {
            left.push(name);
            continue;
        };
        assert!(errors[0].message.contains(promised), "{name} promises {promised:?} and says {errors:#?}");
        assert!(errors.iter().all(is_one_line), "{errors:#?}");
        assert!(errors.iter().all(|error| error.file == name), "{errors:#?}");
    }
    assert_eq!(left, FOUND_BY_THE_COMPILER);
}

/// The error of a policy whose only server has these lines behind its name.
fn error_of_server(lines: &str) -> String {
    let text = format!(
        "apiVersion: toolweir.dev/v1alpha1\nkind: MCPPolicy\nmetadata: {{name: a, namespace: b}}\nspec:\n  servers:\n  - name: s\n{lines}"
    );
    one("a.yaml", &text).to_string()
}

#[test]
fn what_yaml_takes_otherwise_than_it_was_meant_is_told_with_the_remedy() {
    for (server, promised) in [
        (
            "    tools:\n    - name: *delete*\n",
            "8:20: did not find expected alphabetic or numeric character, while scanning an alias at line 8 column 13; a text that begins with `*` needs quotes",
        ),
        ("    tools:\n    - {name: a, reason: @me}\n", "a text that begins with `@` needs quotes"),
        (
            "    tools:\n    - name: a\n      validations:\n      - expression: !has(args.a) || args.a == 1\n",
            "a text that begins with `!` needs quotes",
        ),
        (
            "    tools:\n    - name: a\n      validations:\n      - expression: !has(args.a)\n",
            "expression: has 0 bytes; from 1 to 2048 are possible, and one that begins with `!` needs quotes",
        ),
        ("    tools:\n    - name: a\n\taction: Deny\n", "; indent with spaces; YAML takes no tabs there"),
        ("\ttools: []\n", "; indent with spaces; YAML takes no tabs there"),
        ("    tools:\n    - name: a\n      reason: no: never\n", "; a text that contains `: ` needs quotes"),
        (
            "    tools:\n    - {name: a, reason: a[0] of b}\n",
            "; close each `{` and `[`; within them, a text that contains one of `,[]{}` needs quotes",
        ),
    ] {
        let error = error_of_server(server);
        assert!(error.contains(promised), "{server}{error}");
    }
}

#[test]
fn what_has_another_form_is_told_with_the_form_it_should_have() {
    for (field, promised) in [
        ("tools: [search]", "tools[0]: invalid type: string \"search\", expected an entry, such as {name: search}"),
        ("prompts: {review: Allow}", "prompts: invalid type: map, expected a list"),
        ("requests: [sampling]", "requests[0]: invalid type: string \"sampling\", expected an entry, such as {name: sampling}"),
        ("resources: ['file:///a']", "expected an entry, such as {uri: 'file:///handbook/*'}"),
        ("tools: [{name: a, maxResultBytes: 100KB}]", "expected a whole number, without quotes and without a unit"),
        ("tools: [{name: a, action: [Deny]}]", "action: invalid type: list, expected a text"),
        ("tools: [{name: a, limits: [5]}]", "expected a limit, such as {max: 30, window: 1m}"),
        ("tools: [{name: a, validations: ['args.a < 3']}]", "expected a condition, such as {expression: args.amount <= 500}"),
        ("defaultActions: Deny", "expected an action for each kind, such as {prompts: Deny}"),
        // Who writes nothing behind the colon means an empty list, or all of something.
        ("prompts: null", "`prompts` is null, and would say nothing of prompts; write [] to let none through, or remove it"),
        ("resources: ~", "`resources` is null, and would say nothing of resources; write [] to let none through, or remove it"),
        ("requests:", "`requests` is null, and would say nothing of requests; write [] to let none through, or remove it"),
        ("pins:", "`pins` is null, and would pin nothing; write the name of the pins, or remove it"),
        ("url: http://*.tools.svc/mcp", "has a `*` in its host; a URL names one host, so write its name"),
    ] {
        let error = error_of_server(&format!("    {field}\n"));
        assert!(error.contains(promised), "{field}: {error}");
    }
}

#[test]
fn an_error_has_the_line_that_the_sample_marks() {
    let mut marked = 0;
    for (name, text) in samples("invalid") {
        let Err(errors) = read_documents(&name, &text) else { continue };
        for error in &errors {
            let field = ["spec", "metadata", "apiVersion", "kind"].iter().any(|path| error.message.starts_with(path));
            assert!(!field || error.position.is_some(), "{error:?} says no place");
        }
        if let Some(line) = text.lines().position(|line| line.ends_with("# <- here")) {
            assert_eq!(errors[0].position.map(|(line, _)| line), Some(line + 1), "{errors:#?}");
            marked += 1;
        }
    }
    assert!(marked > 50, "only {marked} samples mark a line");
}

#[test]
fn errors_are_written_as_file_line_column_field_and_advice() {
    let samples = samples("invalid");
    for (name, written) in [
        (
            "max-negative.yaml",
            "max-negative.yaml:13:14: spec.servers[0].tools[0].limits[0].max: is -1; write 1 to 1000000000000, or \
             `action: Deny` on the entry to forbid it",
        ),
        (
            "second-document.yaml",
            "second-document.yaml:19:14: spec.servers[0].tools[0].limits[0].max: is 0; write 1 to 1000000000000, or \
             `action: Deny` on the entry to forbid it",
        ),
        (
            "window-unknown.yaml",
            "window-unknown.yaml:14:17: spec.servers[0].tools[0].limits[0].window: `fortnight` is not a window; write second, \
             minute, hour, day, or a duration from 100ms to 744h such as 90s or 1h30m",
        ),
        (
            "wrong-kind.yaml",
            "wrong-kind.yaml:4:7: kind: `McpPolicy` is not known; write `MCPPolicy`, `MCPClusterPolicy` or `MCPToolPins`",
        ),
        (
            "wrong-api-version.yaml",
            "wrong-api-version.yaml:3:13: apiVersion: `toolweir.dev/v1` is not known; write `toolweir.dev/v1alpha1`",
        ),
        (
            "unknown-field.yaml",
            "unknown-field.yaml:7:3: spec: unknown field `server`, expected one of `podSelector`, `mode`, `onStoreFailure`, `servers`, `egress`",
        ),
        ("missing-servers.yaml", "missing-servers.yaml:7:3: spec.servers: has no items; write from 1 to 64 servers, or `egress`"),
        (
            "too-many-limits.yaml",
            "too-many-limits.yaml:13:7: spec.servers[0].tools[0].limits: has 17 items; from 0 to 16 are possible",
        ),
        ("empty.yaml", "empty.yaml: holds no policy; write one with `apiVersion: toolweir.dev/v1alpha1` and `kind: MCPPolicy`"),
    ] {
        let text = &samples.iter().find(|(sample, _)| sample == name).expect(name).1;
        assert_eq!(one(name, text).to_string(), written);
    }
}

/// A policy in which every field that can be wrong is.
const ALL_WRONG: &str = r#"apiVersion: toolweir.dev/v1alpha1
kind: MCPClusterPolicy
metadata:
  name: UPPER
  namespace: agents
spec:
  namespaceSelector:
    matchExpressions:
    - {key: a, operator: Exists, values: [x]}
  podSelector:
    matchExpressions:
    - key: b
      operator: In
  servers:
  - name: "*"
    url: http://a/mcp
  - name: b_c
    url: ftp://a
    tools:
    - name: 'a\b'
      reason: ""
      maxConcurrent: 1000001
      limits:
      - max: 0
        window: minute
        key: ""
        cost: ""
        counter: ""
      validations:
      - expression: ""
        message: ""
    - name: 'a\b'
  - name: b_c
"#;

#[test]
fn everything_that_is_wrong_in_a_policy_is_told_at_once_each_at_its_line() {
    let errors = errors("all.yaml", ALL_WRONG);
    let mut found: Vec<(usize, &str)> =
        errors.iter().map(|error| (error.position.expect("a place").0, error.message.split(": ").next().unwrap())).collect();
    found.sort_unstable();
    assert_eq!(
        found,
        [
            (4, "metadata.name"),
            (5, "metadata.namespace"),
            (9, "spec.namespaceSelector.matchExpressions[0].values"),
            // A field that is left out: the place of what should hold it.
            (12, "spec.podSelector.matchExpressions[0].values"),
            (16, "spec.servers[0].url"),
            (17, "spec.servers[1].name"),
            (18, "spec.servers[1].url"),
            (20, "spec.servers[1].tools[0].name"),
            (21, "spec.servers[1].tools[0].reason"),
            (22, "spec.servers[1].tools[0].maxConcurrent"),
            (24, "spec.servers[1].tools[0].limits[0].max"),
            (26, "spec.servers[1].tools[0].limits[0].key"),
            (27, "spec.servers[1].tools[0].limits[0].cost"),
            (28, "spec.servers[1].tools[0].limits[0].counter"),
            (30, "spec.servers[1].tools[0].validations[0].expression"),
            (31, "spec.servers[1].tools[0].validations[0].message"),
            (32, "spec.servers[1].tools[1].name"),
            (32, "spec.servers[1].tools[1].name"),
            (33, "spec.servers[2].name"),
            (33, "spec.servers[2].name"),
        ]
    );
}

#[test]
fn more_entries_than_are_possible_are_refused_and_as_many_as_are_possible_accepted() {
    let file = |list: &str, key: &str, entries: usize| {
        let entries: Vec<_> = (0..entries).map(|index| json!({key: format!("db://t{index}")})).collect();
        json!({"apiVersion": "toolweir.dev/v1alpha1", "kind": "MCPPolicy", "metadata": {"name": "many"},
               "spec": {"servers": [{"name": "a", "url": "http://a/mcp", list: entries}]}})
        .to_string()
    };
    let lists = [("tools", "name", bounds::TOOLS), ("prompts", "name", bounds::PROMPTS), ("resources", "uri", bounds::RESOURCES)];
    for (list, key, most) in lists {
        assert!(read_documents("many.json", &file(list, key, most)).is_ok(), "{list}");
        let error = one("many.json", &file(list, key, most + 1));
        let expected = format!("spec.servers[0].{list}: has {} items; from 0 to {most} are possible", most + 1);
        assert_eq!(error.message, expected);
    }
}

#[test]
fn an_error_is_one_line_of_text_whatever_the_file_holds() {
    for nasty in ["a\nb", "a\r\nb", "\u{1b}[31mred", "a\u{0}b", "a\u{85}b", "\u{7f}"] {
        let policy = |changed: &str, value: serde_json::Value| {
            let mut manifest = json!({"apiVersion": "toolweir.dev/v1alpha1", "kind": "MCPPolicy",
                "metadata": {"name": "a", "namespace": "b"},
                "spec": {"podSelector": {"matchExpressions": [{"key": "k", "operator": "In", "values": ["v"]}]},
                    "mode": "Enforce", "servers": [{"name": "a", "url": "http://a/mcp", "defaultAction": "Deny",
                    "tools": [{"name": "t", "action": "Allow", "reason": "r",
                        "limits": [{"max": 1, "window": "minute", "scope": "Pod"}]}],
                    "defaultActions": {"prompts": "Deny"}, "prompts": [{"name": "p"}], "requests": [{"name": "roots"}]}]}});
            *manifest.pointer_mut(changed).expect(changed) = value;
            manifest.to_string()
        };
        let named = |name: &str| json!([{"name": name}, {"name": name}]);
        for (changed, value) in [
            ("/apiVersion", json!(nasty)),
            ("/kind", json!(nasty)),
            ("/metadata", json!({ "name": "a", nasty: 1 })),
            ("/metadata/name", json!(nasty)),
            ("/metadata/namespace", json!(nasty)),
            ("/spec", json!({ nasty: 1 })),
            ("/spec/mode", json!(nasty)),
            ("/spec/podSelector/matchExpressions/0/operator", json!(nasty)),
            ("/spec/servers", named(nasty)),
            ("/spec/servers/0/name", json!(nasty)),
            ("/spec/servers/0/url", json!(nasty)),
            ("/spec/servers/0/url", json!(format!("http://a/{nasty}"))),
            ("/spec/servers/0/url", json!(format!("http:///{nasty}"))),
            ("/spec/servers/0/defaultAction", json!(nasty)),
            ("/spec/servers/0/tools", named(nasty)),
            ("/spec/servers/0/tools/0/name", json!(nasty)),
            ("/spec/servers/0/defaultActions/prompts", json!(nasty)),
            ("/spec/servers/0/prompts", named(nasty)),
            ("/spec/servers/0/prompts/0/name", json!(nasty)),
            ("/spec/servers/0/requests/0/name", json!(nasty)),
            ("/spec/servers/0/tools/0/action", json!(nasty)),
            ("/spec/servers/0/tools/0/limits/0/max", json!(nasty)),
            ("/spec/servers/0/tools/0/limits/0/window", json!(nasty)),
            ("/spec/servers/0/tools/0/limits/0/scope", json!(nasty)),
        ] {
            // A line break of YAML is a blank inside of a text, and a tool may have that in its name.
            if nasty.contains('\u{85}') && (changed.ends_with("tools/0/name") || changed.ends_with("prompts/0/name")) {
                continue;
            }
            let text = policy(changed, value);
            for error in errors("nasty.json", &text) {
                assert!(is_one_line(&error), "{changed}: {:?}", error.to_string());
            }
        }
    }
}

#[test]
fn a_file_may_begin_with_a_byte_order_mark() {
    for (name, text) in samples("valid") {
        let plain = read_documents(&name, &text).unwrap();
        let marked = format!("\u{feff}{text}").replace('\n', "\r\n");
        let marked = read_documents(&name, &marked).unwrap_or_else(|errors| panic!("{errors:#?}"));
        assert_eq!(plain.len(), marked.len());
        assert!(plain.iter().zip(&marked).all(|(plain, marked)| plain.document == marked.document), "{name}");
    }
}

#[test]
fn what_kubectl_reads_as_something_else_is_to_be_quoted() {
    let text = r#"apiVersion: toolweir.dev/v1alpha1
kind: MCPPolicy
metadata: {name: 007, namespace: agents}
spec:
  podSelector:
    matchLabels:
      n: y
      "on": "off"
      app: 1.10
      app.kubernetes.io/name: "no"
      app.kubernetes.io/instance: off
  servers:
  - name: "1"
    url: http://a/mcp
    tools:
    - name: on
      reason: |-
        no
    - name: 'true'
    - {name: false}
"#;
    let documents = read_documents("a.yaml", text).unwrap();
    let told: Vec<String> = documents[0].unquoted().iter().map(ToString::to_string).collect();
    let expected = [
        "a.yaml:3:18: metadata.name: `007` without quotes is a number to kubectl; write \"007\"",
        "a.yaml:9:12: spec.podSelector.matchLabels.app: `1.10` without quotes is a number to kubectl; write \"1.10\"",
        "a.yaml:11:35: spec.podSelector.matchLabels[\"app.kubernetes.io/instance\"]: `off` without quotes is a boolean to kubectl; write \"off\"",
        "a.yaml:7:10: spec.podSelector.matchLabels.n: the key `n` without quotes is a boolean to kubectl; write \"n\"",
        "a.yaml:7:10: spec.podSelector.matchLabels.n: `y` without quotes is a boolean to kubectl; write \"y\"",
        "a.yaml:16:13: spec.servers[0].tools[0].name: `on` without quotes is a boolean to kubectl; write \"on\"",
        "a.yaml:20:14: spec.servers[0].tools[2].name: `false` without quotes is a boolean to kubectl; write \"false\"",
    ];
    assert_eq!(told, expected);
    for (name, text) in samples("valid") {
        for document in read_documents(&name, &text).unwrap() {
            assert_eq!(document.unquoted(), [], "{name}");
        }
    }
}
