//! What a pod becomes. `pods/NAME.yaml` is a pod in, `pods/NAME.golden.yaml` the pod out with its warnings, or why there is
//! none; `UPDATE_GOLDEN=1` writes those anew. Then properties of any pod, and the table of docs/injection.md.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    path::PathBuf,
};

use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};
use toolweir_crds::{
    SIDECAR_CONTAINER,
    select::Labels,
    sidecar::{CAPTURE_CONTAINER, METRICS_PORT},
};
use toolweir_operator::{
    config::{OperatorConfig, SidecarPorts},
    credentials::{AUDIENCE_TOKENS_VOLUME, CREDENTIALS_VOLUME},
    inject::{
        AGENT_CA_DIR, CA_VARIABLES, CONFIG_PATH, CONFIG_VOLUME, INJECTED, InjectionContext, InjectionOutcome, MCP_CONFIG_ENV,
        NamespaceInfo, SCRAPE, STATE_VOLUME, SidecarIds, SkipReason, TOKEN_VOLUME, URL_ENV, inject, patch, scrape_annotations,
        strip,
    },
};

/// What a case says besides its pod, in a document before it. A pod alone is one of `agents`, which opted in.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Case {
    namespace: String,
    /// Null where they are not known.
    namespace_labels: Option<Labels>,
    namespace_annotations: BTreeMap<String, String>,
    config: Value,
    /// Whether a policy that governs the pod has TLS opened.
    intercepts: bool,
    seed: u64,
    /// The pod is injected first, then another webhook does this to it (JSON Patch), then it is injected anew.
    between: Option<json_patch::Patch>,
}

impl Default for Case {
    fn default() -> Self {
        let opted_in = Labels::from([("toolweir.dev/inject".to_owned(), "enabled".to_owned())]);
        Self {
            namespace: "agents".to_owned(),
            namespace_labels: Some(opted_in),
            namespace_annotations: BTreeMap::new(),
            config: Value::Null,
            intercepts: false,
            seed: 0,
            between: None,
        }
    }
}

impl Case {
    fn inject(&self, pod: &Value) -> InjectionOutcome {
        let config = if self.config.is_null() { String::new() } else { self.config.to_string() };
        let config = OperatorConfig::read(&config).unwrap();
        let info = self.namespace_labels.clone().map(|labels| NamespaceInfo::new(labels, &self.namespace_annotations));
        let context = InjectionContext {
            config: &config,
            namespace: &self.namespace,
            namespace_info: info.as_ref(),
            operator_namespace: "toolweir-system",
            stream_url: "https://toolweir-operator.toolweir-system.svc:8444",
            intercepts: self.intercepts,
            seed: self.seed,
            ca: "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
            version: "0.1.0",
        };
        inject(pod, &context)
    }

    /// The pod as it was sent the last time, and what became of it.
    fn run(&self, pod: Value) -> (Value, InjectionOutcome) {
        let Some(between) = &self.between else {
            let outcome = self.inject(&pod);
            return (pod, outcome);
        };
        let InjectionOutcome::Injected { mut pod, .. } = self.inject(&pod) else { panic!("not injected the first time") };
        json_patch::patch(&mut pod, between).unwrap();
        let outcome = self.inject(&pod);
        (pod, outcome)
    }
}

/// The volumes that the sidecar alone mounts.
const SIDECARS: [&str; 4] = [TOKEN_VOLUME, STATE_VOLUME, CREDENTIALS_VOLUME, AUDIENCE_TOKENS_VOLUME];
/// All volumes of Toolweir.
const VOLUMES: [&str; 5] = [TOKEN_VOLUME, STATE_VOLUME, CONFIG_VOLUME, CREDENTIALS_VOLUME, AUDIENCE_TOKENS_VOLUME];

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pods"))
}

/// The names of all cases.
fn names() -> Vec<String> {
    let files = std::fs::read_dir(folder()).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> =
        files.filter(|file| !file.contains(".golden.")).map(|file| file.strip_suffix(".yaml").expect(&file).to_owned()).collect();
    names.sort();
    names
}

fn read(name: &str) -> (Case, Value) {
    let text = std::fs::read_to_string(folder().join(format!("{name}.yaml"))).unwrap();
    let documents = serde_yaml::Deserializer::from_str(&text).map(|document| Value::deserialize(document).unwrap());
    match documents.collect::<Vec<_>>().as_slice() {
        [pod] => (Case::default(), pod.clone()),
        [case, pod] => (serde_json::from_value(case.clone()).unwrap_or_else(|error| panic!("{name}: {error}")), pod.clone()),
        _ => panic!("{name}: a pod, and perhaps a case before it"),
    }
}

fn golden(outcome: &InjectionOutcome) -> String {
    match outcome {
        InjectionOutcome::Injected { pod, warnings } => {
            let mut text = String::new();
            for warning in warnings {
                writeln!(text, "# warning: {warning}").unwrap();
            }
            text + &serde_yaml::to_string(pod).unwrap()
        }
        InjectionOutcome::Skipped(skip) => format!("# skipped: {} ({})\n", skip.as_str(), skip.explain()),
        InjectionOutcome::Refused(why) => format!("# refused: {why}\n"),
    }
}

#[test]
fn every_pod_becomes_what_its_golden_file_says() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut wrong = String::new();
    let mut expected_files = BTreeSet::new();
    for name in names() {
        let (case, pod) = read(&name);
        let is = golden(&case.run(pod).1);
        let path = folder().join(format!("{name}.golden.yaml"));
        expected_files.insert(path.clone());
        if update {
            std::fs::write(&path, &is).unwrap();
            continue;
        }
        let promised = std::fs::read_to_string(&path).unwrap_or_default();
        if is != promised {
            let differs = is.lines().zip(promised.lines()).position(|(is, promised)| is != promised);
            let at = differs.unwrap_or_else(|| is.lines().count().min(promised.lines().count()));
            let line = |text: &str| text.lines().nth(at).unwrap_or("(the end)").to_owned();
            writeln!(wrong, "{name}, line {}:\n  is       {}\n  promised {}", at + 1, line(&is), line(&promised)).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}UPDATE_GOLDEN=1 writes them anew");
    let all = std::fs::read_dir(folder()).unwrap().map(|file| file.unwrap().path());
    let stray: Vec<PathBuf> =
        all.filter(|path| path.to_string_lossy().contains(".golden.") && !expected_files.contains(path)).collect();
    assert!(stray.is_empty(), "without a pod: {stray:?}");
}

#[test]
fn the_patch_makes_the_same_pod_and_another_round_changes_nothing() {
    let mut injected = 0;
    for name in names() {
        let (case, pod) = read(&name);
        let (sent, outcome) = case.run(pod);
        let InjectionOutcome::Injected { pod, .. } = outcome else { continue };
        injected += 1;
        assert_eq!(patched(&sent, &pod), pod, "{name}");
        assert_eq!(case.inject(&pod), InjectionOutcome::Skipped(SkipReason::AlreadyInjected), "{name}");
        check(&sent, &pod);
    }
    assert!(injected > 15, "{injected}");
}

#[test]
fn a_patch_leaves_alone_what_is_as_it_should_be() {
    let (case, pod) = read("reinvoked");
    let (sent, outcome) = case.run(pod);
    let InjectionOutcome::Injected { pod, .. } = outcome else { panic!("{outcome:?}") };
    let patch = patch(&sent, &pod);
    let paths: Vec<&str> = patch.iter().map(|step| step.path().as_str()).collect();
    assert!(
        paths.iter().all(|path| ["/spec/initContainers/", "/spec/containers/1/"].iter().any(|there| path.starts_with(there))),
        "{paths:?}"
    );
}

#[test]
fn what_a_policy_adds_to_a_pod_outlasts_the_policy_and_goes_with_capture() {
    let (case, pod) = read("captured-intercepted");
    let InjectionOutcome::Injected { pod: opened, .. } = case.run(pod.clone()).1 else { panic!("not injected") };
    // The policy is gone when the webhook is asked again.
    let after = Case { intercepts: false, ..case };
    assert_eq!(after.inject(&opened), InjectionOutcome::Skipped(SkipReason::AlreadyInjected));
    let InjectionOutcome::Injected { pod: closed, .. } = after.inject(&pod) else { panic!("not injected") };
    assert_ne!(closed, opened);
    // It came when the webhook was asked already: the sidecar counts as the one of before.
    let before = Case { intercepts: true, ..after };
    let InjectionOutcome::Injected { pod: later, warnings } = before.inject(&closed) else { panic!("not injected") };
    assert_eq!(later, opened);
    assert!(!warnings.iter().any(|warning| warning.contains(SIDECAR_CONTAINER)), "{warnings:?}");
    // Capture is gone, and with it what makes sense with it alone.
    let mut opted_out = opened;
    opted_out["metadata"]["labels"] = json!({"toolweir.dev/capture": "disabled"});
    let InjectionOutcome::Injected { pod: free, .. } = before.inject(&opted_out) else { panic!("not injected") };
    let all = list(&free["spec"], "initContainers").iter().chain(list(&free["spec"], "containers"));
    assert!(!all.flat_map(|container| list(container, "env")).any(is_of_authority));
    assert!(argument(&free["spec"]["initContainers"][0], AGENT_CA_DIR).is_none());
}

#[test]
fn the_page_lists_every_variable_of_interception_and_no_other() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/injection.md")).unwrap();
    let section = page.split("\n### Interception\n").nth(1).expect("the section").split("\n#").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let documented: Vec<(String, String)> = rows
        .flat_map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let value = cells[2].trim_matches('`').to_owned();
            cells[1].split(", ").map(|name| (name.trim_matches('`').to_owned(), value.clone())).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(documented, CA_VARIABLES.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

#[test]
fn annotations_of_scraping_are_taken_off_only_where_all_are_ours() {
    let with = |annotations: &Value| json!({"metadata": {"annotations": annotations}, "spec": {"containers": [{"name": "a"}]}});
    let ours =
        json!({"prometheus.io/scrape": "true", "prometheus.io/port": METRICS_PORT.to_string(), "prometheus.io/path": "/metrics"});
    assert_eq!(ours, object(scrape_annotations(METRICS_PORT).map(|(key, value)| (key, Some(value.into()))).into()));
    let strip = |pod: &Value| strip(pod, SidecarPorts::default(), false);
    assert_eq!(strip(&with(&ours)), json!({"metadata": {}, "spec": {"containers": [{"name": "a"}]}}));
    let mut more = ours.clone();
    more["prometheus.io/scheme"] = "http".into();
    more[INJECTED] = "0.1.0".into();
    assert_eq!(strip(&with(&more)), with(&json!({"prometheus.io/scheme": "http"})));
    for (key, value) in scrape_annotations(METRICS_PORT) {
        for other in [Value::Null, "".into(), format!("{value} ").into(), true.into(), 15020.into()] {
            let mut changed = ours.clone();
            changed[key] = other;
            assert_eq!(strip(&with(&changed)), with(&changed));
        }
        let mut fewer = ours.clone();
        fewer.as_object_mut().unwrap().remove(key);
        assert_eq!(strip(&with(&fewer)), with(&fewer));
    }
}

#[test]
fn every_reason_to_skip_has_a_case() {
    let mut seen = BTreeSet::new();
    for name in names() {
        let (case, pod) = read(&name);
        if let InjectionOutcome::Skipped(skip) = case.run(pod).1 {
            seen.insert(skip);
        }
    }
    assert_eq!(seen, SkipReason::ALL.into());
}

#[test]
fn the_page_lists_every_reason_to_skip_and_no_other() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/injection.md")).unwrap();
    let section = page.split("\n## When no sidecar is added\n").nth(1).expect("the section");
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let documented: Vec<Vec<&str>> = rows.map(|row| row.split('|').map(str::trim).collect()).collect();
    let documented: Vec<(&str, &str, &str)> =
        documented.iter().map(|cells| (cells[1].trim_matches('`'), cells[2], cells[3])).collect();
    let known: Vec<(&str, &str, &str)> =
        SkipReason::ALL.iter().map(|skip| (skip.as_str(), skip.explain(), if skip.warns() { "yes" } else { "no" })).collect();
    assert_eq!(documented, known, "reason, explanation, warning; in the order in which they are looked for");
}

fn patched(from: &Value, to: &Value) -> Value {
    let mut patched = from.clone();
    json_patch::patch(&mut patched, &patch(from, to)).unwrap();
    patched
}

fn list<'a>(of: &'a Value, field: &str) -> &'a [Value] {
    of[field].as_array().map_or(&[], Vec::as_slice)
}

/// The items of a list without those of these names, and nothing where there are none left.
fn without(of: &Value, field: &str, is_ours: impl Fn(&Value) -> bool) -> Value {
    let rest: Vec<Value> = list(of, field).iter().filter(|item| !is_ours(item)).cloned().collect();
    if rest.is_empty() { Value::Null } else { rest.into() }
}

fn is_named(item: &Value, names: &[&str]) -> bool {
    item["name"].as_str().is_some_and(|name| names.contains(&name))
}

/// Whether a variable is exactly one that leads to the pod's authority.
fn is_of_authority(env: &Value) -> bool {
    CA_VARIABLES.iter().any(|(name, value)| *env == json!({"name": name, "value": value}))
}

/// A container without what may be changed in it.
fn its_own(container: &Value, opened: bool) -> Value {
    let mut rest = container.clone();
    let is_ours = |env: &Value| is_named(env, &[URL_ENV, MCP_CONFIG_ENV]) || opened && is_of_authority(env);
    rest["env"] = without(container, "env", is_ours);
    rest["volumeMounts"] = without(container, "volumeMounts", |mount| {
        let path = mount["mountPath"].as_str().unwrap_or_default().replace("/./", "/").replace("//", "/");
        is_named(mount, &VOLUMES) || format!("{path}/").starts_with("/etc/toolweir/")
    });
    rest
}

/// A pod without anything that is the sidecar's or may be changed.
fn own(pod: &Value, metrics_port: u16, opened: bool) -> Value {
    let mut rest = pod.clone();
    if let Some(annotations) = rest.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(INJECTED);
        // Without the first of them, the others may be replaced.
        if !annotations.contains_key(SCRAPE)
            || scrape_annotations(metrics_port).iter().all(|(key, value)| annotations.get(*key) == Some(&json!(value)))
        {
            annotations.retain(|key, _| scrape_annotations(metrics_port).iter().all(|(ours, _)| ours != key));
        }
        if annotations.is_empty() {
            rest["metadata"].as_object_mut().unwrap().remove("annotations");
        }
    }
    let spec = &pod["spec"];
    for kind in ["initContainers", "containers"] {
        let ours = [SIDECAR_CONTAINER, CAPTURE_CONTAINER];
        let others = list(spec, kind).iter().filter(|container| !is_named(container, &ours));
        let others: Vec<Value> = others.map(|container| its_own(container, opened)).collect();
        rest["spec"][kind] = others.into();
    }
    rest["spec"]["volumes"] = without(spec, "volumes", |volume| is_named(volume, &VOLUMES));
    rest
}

/// What stands after a flag.
fn argument<'a>(container: &'a Value, flag: &str) -> Option<&'a str> {
    let args = list(container, "args");
    args.iter().position(|arg| arg == flag).and_then(|at| args[at + 1].as_str())
}

/// The user of the sidecar is the usual one, or that which the rules of capture know it by, and nobody else's.
fn check_user(spec: &Value, captured: bool) {
    let sidecar = &spec["initContainers"][usize::from(captured)]["securityContext"];
    let ids = (&sidecar["runAsUser"], &sidecar["runAsGroup"]);
    if !captured {
        assert_eq!(ids, (&json!(65532), &json!(65532)));
        return;
    }
    let capture = &spec["initContainers"][0];
    let number = |flag: &str| json!(argument(capture, flag).unwrap().parse::<u32>().unwrap());
    assert_eq!(ids, (&number("--uid"), &number("--gid")));
    let others = list(spec, "initContainers").iter().skip(2).chain(list(spec, "containers"));
    for context in others.map(|container| &container["securityContext"]).chain([&spec["securityContext"]]) {
        assert!(context["runAsUser"] != *ids.0 && context["runAsGroup"] != *ids.1 && context["fsGroup"] != *ids.1, "{context}");
    }
    assert_eq!(capture["image"], spec["initContainers"][1]["image"]);
    assert_eq!(capture["securityContext"]["capabilities"], json!({"drop": ["ALL"], "add": ["NET_ADMIN"]}));
    for field in ["command", "env", "volumeMounts", "restartPolicy", "lifecycle"] {
        assert_eq!(capture.get(field), None, "{field}");
    }
}

/// What holds of every injected pod.
fn check(before: &Value, after: &Value) {
    let spec = &after["spec"];
    let captured = usize::from(is_named(&spec["initContainers"][0], &[CAPTURE_CONTAINER]));
    let sidecar = &spec["initContainers"][captured];
    assert_eq!((&sidecar["name"], &sidecar["restartPolicy"]), (&json!(SIDECAR_CONTAINER), &json!("Always")));
    assert!(sidecar.get("command").is_none(), "{sidecar}");
    let all = || ["initContainers", "containers"].into_iter().flat_map(|kind| list(spec, kind));
    assert_eq!(all().filter(|container| is_named(container, &[SIDECAR_CONTAINER])).count(), 1);
    assert_eq!(all().filter(|container| is_named(container, &[CAPTURE_CONTAINER])).count(), captured);
    check_user(spec, captured == 1);
    let url =
        format!("http://127.0.0.1:{}", argument(sidecar, "--listen").and_then(|at| at.split(':').nth(1)).unwrap_or("15001"));
    let opened = argument(sidecar, AGENT_CA_DIR) == Some(CONFIG_PATH);
    for container in all().skip(1 + captured) {
        if opened {
            // That those with another value are the pod's own is seen below.
            let sets = |name: &str| list(container, "env").iter().any(|env| is_named(env, &[name]));
            assert!(CA_VARIABLES.iter().all(|(name, _)| sets(name)), "{container}");
        }
        let mounts = list(container, "volumeMounts");
        assert!(!mounts.iter().any(|mount| is_named(mount, &SIDECARS)), "{container}");
        let config: Vec<&Value> = mounts.iter().filter(|mount| is_named(mount, &[CONFIG_VOLUME])).collect();
        assert_eq!(config, [&json!({"name": CONFIG_VOLUME, "mountPath": CONFIG_PATH, "readOnly": true})], "{container}");
        for (name, value) in [(URL_ENV, url.as_str()), (MCP_CONFIG_ENV, "/etc/toolweir/mcp.json")] {
            let found: Vec<&Value> = list(container, "env").iter().filter(|env| is_named(env, &[name])).collect();
            assert_eq!(found, [&json!({"name": name, "value": value})], "{container}");
        }
    }
    for volume in [TOKEN_VOLUME, STATE_VOLUME, CONFIG_VOLUME] {
        assert_eq!(list(spec, "volumes").iter().filter(|found| is_named(found, &[volume])).count(), 1, "{volume}");
    }
    for (volume, flag) in [(CREDENTIALS_VOLUME, "--credentials-dir"), (AUDIENCE_TOKENS_VOLUME, "--audience-tokens-dir")] {
        let volumes = list(spec, "volumes").iter().filter(|found| is_named(found, &[volume])).count();
        let mounts: Vec<&Value> = list(sidecar, "volumeMounts").iter().filter(|mount| is_named(mount, &[volume])).collect();
        let args = list(sidecar, "args");
        let paths: Vec<&Value> = args.iter().zip(&args[1..]).filter(|(arg, _)| *arg == flag).map(|(_, path)| path).collect();
        assert_eq!(mounts.iter().map(|mount| &mount["mountPath"]).collect::<Vec<_>>(), paths, "{volume}");
        assert!(mounts.len() == volumes && volumes < 2 && mounts.iter().all(|mount| mount["readOnly"] == true), "{volume}");
    }
    assert_eq!(after["metadata"]["annotations"][INJECTED], "0.1.0");
    let port = sidecar["ports"][0]["containerPort"].as_u64().unwrap().try_into().unwrap();
    assert_eq!(own(before, port, opened), own(after, port, opened), "what is others' is as it was");
}

fn named(names: &'static str, more: impl Strategy<Value = Value>) -> impl Strategy<Value = Value> {
    (names, more).prop_map(|(name, mut item)| {
        item["name"] = name.into();
        item
    })
}

/// A list that may not be there, or be null or empty.
fn maybe_list(item: impl Strategy<Value = Value>, most: usize) -> impl Strategy<Value = Option<Value>> {
    prop_oneof![
        1 => Just(None),
        1 => Just(Some(Value::Null)),
        4 => prop::collection::vec(item, 0..=most).prop_map(|items| Some(items.into())),
    ]
}

fn object(fields: Vec<(&'static str, Option<Value>)>) -> Value {
    fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

fn container() -> impl Strategy<Value = Value> {
    let values = prop_oneof![
        Just(json!({"value": "x"})),
        Just(json!({"later": 1})),
        Just(json!({"value": "/etc/toolweir/ca-bundle.pem"}))
    ];
    let env = named("A|B|TOOLWEIR_URL|TOOLWEIR_MCP_CONFIG|SSL_CERT_FILE|JAVA_TOOL_OPTIONS", values);
    let paths = prop_oneof![
        Just("/data"),
        Just("/etc"),
        Just("/etc/toolweir"),
        Just("/etc/toolweir/"),
        Just("/etc/toolweir/mcp.json"),
        Just("/etc/toolweir-of-mine"),
        Just("/var/lib/toolweir"),
    ];
    let mount = named(
        "data|toolweir-token|toolweir-state|toolweir-config|toolweir-credentials|toolweir-audience-tokens",
        (paths, any::<bool>()).prop_map(|(path, read_only)| json!({"mountPath": path, "readOnly": read_only})),
    );
    let name = prop_oneof![4 => "[a-c]", 1 => Just(SIDECAR_CONTAINER.to_owned()), 1 => Just(CAPTURE_CONTAINER.to_owned())];
    (name, maybe_list(env, 3), maybe_list(mount, 3), prop::option::of(0_u16..4)).prop_map(|(name, env, mounts, port)| {
        let user = port.map(|port| json!({"runAsUser": 3000 + port, "runAsGroup": 3253 + port}));
        let ports = port.map(|port| json!([{"containerPort": 15000 + port}]));
        let unknown = port.map(|port| json!({"new in": port}));
        object(vec![
            ("name", Some(name.into())),
            ("env", env),
            ("volumeMounts", mounts),
            ("ports", ports),
            ("securityContext", user),
            ("unknown", unknown),
        ])
    })
}

fn pod() -> impl Strategy<Value = Value> {
    let volume = named(
        "data|more|toolweir-token|toolweir-config|toolweir-credentials|toolweir-audience-tokens",
        Just(json!({"emptyDir": {"medium": "Memory"}})),
    );
    let annotations = prop::option::of(prop_oneof![
        Just(json!({})),
        Just(json!({"toolweir.dev/injected": "0.0.9"})),
        Just(json!({"toolweir.dev/sidecar-memory-limit": "128Mi", "other": "x"})),
        Just(json!({"toolweir.dev/sidecar-log-level": "debug", "toolweir.dev/injected": "0.1.0"})),
        Just(json!({"prometheus.io/scrape": "true", "prometheus.io/port": "15020", "prometheus.io/path": "/metrics"})),
        Just(json!({"prometheus.io/scrape": "true", "prometheus.io/port": "8080", "prometheus.io/path": "/metrics"})),
        Just(json!({"prometheus.io/scrape": "false", "toolweir.dev/injected": "0.1.0"})),
        Just(json!({"prometheus.io/port": "8080", "other": "x"})),
        Just(json!({"toolweir.dev/credentials": "tokens"})),
        Just(json!({"toolweir.dev/credentials": "", "toolweir.dev/token-audiences": "mcp, https://a.example/"})),
    ]);
    // Two of one name are nothing that the API server takes; the sidecar's may be there in whatever number.
    let containers = |least: usize| {
        prop::collection::vec(container(), least..4).prop_map(move |all| {
            let mut seen = BTreeSet::new();
            let unique = |container: &Value| {
                is_named(container, &[SIDECAR_CONTAINER, CAPTURE_CONTAINER]) || seen.insert(container["name"].to_string())
            };
            let mut all: Vec<Value> = all.into_iter().filter(unique).collect();
            if least > 0 {
                all.push(json!({"name": "agent"}));
            }
            all
        })
    };
    let init = prop::option::of(containers(0)).prop_map(|init| init.map(Value::from));
    (annotations, init, containers(1), maybe_list(volume, 3), prop::option::of(Just(json!({"b": [1, null]})))).prop_map(
        |(annotations, init, containers, volumes, unknown)| {
            let spec = object(vec![
                ("initContainers", init),
                ("containers", Some(containers.into())),
                ("volumes", volumes),
                ("unknown", unknown.clone()),
            ]);
            object(vec![
                ("apiVersion", Some("v1".into())),
                ("kind", Some("Pod".into())),
                ("metadata", Some(object(vec![("name", Some("p".into())), ("annotations", annotations), ("unknown", unknown)]))),
                ("spec", Some(spec)),
            ])
        },
    )
}

fn injected(case: &Case, pod: &Value) -> Value {
    match case.inject(pod) {
        InjectionOutcome::Injected { pod, warnings } => {
            assert!(warnings.iter().all(|warning| !warning.contains(char::is_control)), "{warnings:?}");
            pod
        }
        other => panic!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn any_pod_gets_a_sidecar_and_keeps_what_is_its_own(pod in pod(), scrape in any::<bool>()) {
        let sidecar = json!({"scrapeAnnotations": scrape, "credentialsSecret": if scrape { "of-all" } else { "" }});
        let case = Case { config: json!({"sidecar": sidecar}), ..Case::default() };
        let once = injected(&case, &pod);
        check(&pod, &once);
        let (before, after) = (&pod["metadata"]["annotations"], &once["metadata"]["annotations"]);
        let ours = scrape && before.get(SCRAPE).is_none();
        for (key, value) in scrape_annotations(METRICS_PORT) {
            let promised = if ours { Some(json!(value)) } else { before.get(key).cloned() };
            prop_assert_eq!(after.get(key), promised.as_ref());
        }
        prop_assert_eq!(&patched(&pod, &once), &once);
        prop_assert_eq!(case.inject(&once), InjectionOutcome::Skipped(SkipReason::AlreadyInjected));
    }

    #[test]
    fn any_pod_is_captured_and_keeps_its_ids(pod in pod(), seed in any::<u64>(), later in any::<u64>(), opened in any::<bool>()) {
        let mut pod = pod;
        pod["metadata"]["labels"] = json!({"toolweir.dev/capture": "enabled"});
        let config = json!({"capture": {"method": "Init", "userRange": "3000-3255"}});
        let case = |seed| Case { config: config.clone(), intercepts: opened, seed, ..Case::default() };
        let once = injected(&case(seed), &pod);
        check(&pod, &once);
        prop_assert_eq!(argument(&once["spec"]["initContainers"][1], AGENT_CA_DIR), opened.then_some(CONFIG_PATH));
        prop_assert!(is_named(&once["spec"]["initContainers"][0], &[CAPTURE_CONTAINER]));
        prop_assert_eq!(&patched(&pod, &once), &once);
        prop_assert_eq!(case(later).inject(&once), InjectionOutcome::Skipped(SkipReason::AlreadyInjected));
        // What another webhook did to the sidecar is undone, and the ids are as they were.
        let mut changed = once.clone();
        changed["spec"]["initContainers"].as_array_mut().unwrap().swap(0, 1);
        changed["spec"]["initContainers"][0]["securityContext"]["runAsUser"] = 0.into();
        let twice = injected(&case(later), &changed);
        prop_assert_eq!(SidecarIds::of_pod(&twice), SidecarIds::of_pod(&once));
        prop_assert_eq!(twice, once);
    }

    #[test]
    fn what_others_add_afterwards_is_held_to_the_same(pod in pod(), new in container(), first in any::<bool>(), init in any::<bool>()) {
        prop_assume!(!is_named(&new, &[SIDECAR_CONTAINER, CAPTURE_CONTAINER]));
        let mut once = injected(&Case::default(), &pod);
        let list = once["spec"][if init { "initContainers" } else { "containers" }].as_array_mut();
        // Where the sidecar alone was in the list, there is none.
        let Some(list) = list else { return Ok(()) };
        let at = if first { 0 } else { list.len() };
        list.insert(at, new);
        match Case::default().inject(&once) {
            InjectionOutcome::Injected { pod: twice, .. } => {
                check(&once, &twice);
                prop_assert_eq!(&patched(&once, &twice), &twice);
            }
            // By chance the new one has all that it should.
            other => {
                prop_assert_eq!(other, InjectionOutcome::Skipped(SkipReason::AlreadyInjected));
                check(&once, &once);
            }
        }
    }
}
