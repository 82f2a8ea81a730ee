//! `toolweir pin`, `toolweir drift` and `suggest --pin`: from files with the program, and from pods against an API server that is a function.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Arc, Mutex},
};

use clap::Parser;
use common::{
    ApiServer,
    mcp_server::{McpServer, json_reply, legacy},
    pod,
    tool_source::LIMITS,
};
use serde_json::{Value, json};
use toolweir_cli::{
    CommandOutcome, OutputFormat,
    cluster::LazyClient,
    pins::{
        drift_command::{DriftOptions, drift},
        pin_command::{PinOptions, pin},
        pinned::pins_of,
    },
    tools::definition::ListedTool,
};
use toolweir_crds::{MCPToolPinsSpec, ToolPins, read_manifests};

/// A folder that is gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("toolweir-pins-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.0.join(name), content).unwrap();
    }

    /// Runs the program where there is no kubeconfig. Returns the exit code, and what it printed.
    fn run(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let Output { status, stdout, stderr } = program(arguments, &self.0);
        let errors = String::from_utf8(stderr).unwrap();
        assert!(errors.lines().count() <= 1, "{errors}");
        (status.code(), String::from_utf8(stdout).unwrap(), errors)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn program(arguments: &[&str], folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_toolweir"))
        .args(arguments)
        .current_dir(folder)
        .env("KUBECONFIG", folder.join("none"))
        .env("HOME", folder)
        .output()
        .unwrap()
}

fn read(text: &str) -> ToolPins {
    let mut read = read_manifests("pins", text).unwrap();
    assert_eq!(read.pins.len(), 1);
    read.pins.remove(0).pins
}

fn mail() -> Vec<Value> {
    let schema = json!({"$schema": "http://json-schema.org/draft-07/schema#", "type": "object",
        "properties": {"to": {"type": "string", "description": "Whom"}, "times": {"type": "integer", "maximum": 1e2}}, "required": ["to", "times"]});
    vec![
        json!({"name": "send", "title": "Send", "description": "Sends a mail.\nOnce.", "inputSchema": schema,
            "annotations": {"destructiveHint": false}}),
        json!({"name": "read_mail", "description": "Reads mail.", "inputSchema": {"type": "object"}}),
    ]
}

/// The definitions as JSON, with this in place of that.
fn list(tools: &[Value], that: &str, this: &str) -> String {
    let text = json!({"tools": tools}).to_string();
    assert!(text.contains(that), "{that}");
    text.replacen(that, this, 1)
}

#[test]
fn what_is_pinned_is_compared_with_what_is_listed() {
    let folder = Folder::new("file");
    folder.write("mail.json", &list(&mail(), "", ""));
    let (code, manifest, errors) = folder.run(&["pin", "mail.json", "-n", "agents"]);
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    assert!(manifest.starts_with("# Pinned by toolweir: 2 tools of mail, read from mail.json.\n"), "{manifest}");
    let pins = read(&manifest);
    assert_eq!((pins.to_string().as_str(), pins.spec.server.as_str()), ("agents/mail", "mail"));
    folder.write("pins.yaml", &manifest);
    let same = "mail: 2 tools are as pinned by agents/mail.\n";
    assert_eq!(folder.run(&["drift", "--pins", "pins.yaml", "mail.json"]), (Some(0), same.to_owned(), String::new()));
    // Notation alone.
    for (that, this) in [
        (r#"{"description":"Whom","type":"string"}"#, "{ \"type\" : \"string\",\n\t\"description\": \"\\u0057hom\" }"),
        ("100.0", "100"),
        (r#""$schema":"http://json-schema.org/draft-07/schema#","#, ""),
        (r#"["to","times"]"#, r#"["times", "to"]"#),
        (r#""name":"send""#, r#""name": "send", "icons": null"#),
    ] {
        folder.write("now.json", &list(&mail(), that, this));
        assert_eq!(folder.run(&["drift", "--pins", "pins.yaml", "now.json"]).0, Some(0), "{this}");
    }
    for (that, this, row) in [
        ("Once.", "Twice.", "send  description  text    Sends a mail.\\nOnce.  Sends a mail.\\nTwice."),
        (r#","title":"Send""#, "", "send  title  removed  Send    -"),
        ("false", "true", "send  annotations  annotation  {\"destructiveHint\":false}  {\"destructiveHint\":true}"),
        (r#""Reads mail.""#, r#""Reads mail.\u200b""#, "read_mail  description  text    Reads mail.  Reads mail.\\u{200b}"),
        ("100.0", "9", "send  inputSchema  narrower"),
        ("Whom", "Who", "send  inputSchema  text"),
        (r#""name":"send""#, r#""name":"send","newer":1"#, "send  other  added   -       {\"newer\":1}"),
    ] {
        folder.write("now.json", &list(&mail(), that, this));
        let (code, text, errors) = folder.run(&["drift", "--pins", "pins.yaml", "now.json"]);
        assert_eq!((code, errors.as_str(), text.lines().nth(1)), (Some(1), "", Some(row)), "{text}");
    }
}

#[test]
fn programs_get_the_texts_whole() {
    let folder = Folder::new("json");
    folder.write("mail.json", &list(&mail(), "", ""));
    let manifest = folder.run(&["pin", "mail.json"]).1;
    folder.write("pins.yaml", &manifest);
    let mut now = mail();
    now[0]["description"] = "x\u{1b}".into();
    now[0]["name"] = "other".into();
    now[1]["description"] = "Reads all mail.".into();
    folder.write("mail2.json", &list(&now, "", ""));
    let (code, text, _) = folder.run(&["drift", "--pins", "pins.yaml", "mail2.json", "-o", "json"]);
    let rows: Value = serde_json::from_str(&text).unwrap();
    let of = |tool: &str, new: bool, gone: bool, changes: Value| json!({"server": "mail", "pins": "default/mail", "tool": tool, "new": new, "gone": gone, "changes": changes});
    let change = json!([{"part": "description", "change": "text", "before": "Reads mail.", "after": "Reads all mail."}]);
    assert_eq!(rows[0], of("read_mail", false, false, change));
    assert_eq!(rows[1], of("send", false, true, json!([])));
    assert_eq!((&rows[2]["tool"], &rows[2]["new"], rows.as_array().unwrap().len()), (&json!("other"), &json!(true), 3));
    let added = json!({"part": "description", "change": "added", "before": null, "after": "x\u{1b}"});
    assert!(rows[2]["changes"].as_array().unwrap().contains(&added) && !text.contains('\u{1b}'), "{text}");
    assert_eq!(code, Some(1));
}

#[test]
fn what_is_wrong_is_one_line_with_what_helps() {
    let folder = Folder::new("wrong");
    folder.write("mail.json", &list(&mail(), "", ""));
    folder.write("long.json", &list(&mail(), "\"send\"", &format!("\"{}\"", "n".repeat(513))));
    let manifest = folder.run(&["pin", "mail.json"]).1;
    folder.write("pins.yaml", &manifest);
    folder.write(
        "two.yaml",
        &format!("{manifest}---\n{}", manifest.replace("server: mail", "server: bank").replace("name: mail", "name: bank")),
    );
    folder.write(
        "policy.yaml",
        "{apiVersion: toolweir.dev/v1alpha1, kind: MCPPolicy, metadata: {name: p}, spec: {servers: [{name: mail}]}}",
    );
    folder.write("other.json", &list(&mail(), "", ""));
    for (arguments, why) in [
        (&["pin", "long.json"][..], "pins cannot hold the tool `nnn"),
        (&["pin", "mail.json", "--name", "No"], "--name `No` does not fit; write 1 to 253 lower case letters"),
        (&["pin", "mail.json", "-o", "json"], "pins are written as YAML; leave out -o"),
        (&["pin"], "whose tools? give the URL of a server"),
        (&["pin", "pins.yaml"], "pins.yaml: this is YAML, not a list of tools; give a saved result"),
        (
            &["drift", "--pins", "pins.yaml", "--pins", "policy.yaml", "--server", "shop", "mail.json"],
            "pins.yaml, policy.yaml have no pins",
        ),
        (&["drift", "--pins", "none.yaml", "mail.json"], "none.yaml: "),
        (&["drift", "--pins", "policy.yaml", "mail.json"], "policy.yaml has no MCPToolPins; write them with `toolweir pin`"),
        (
            &["drift", "--pins", "two.yaml", "other.json"],
            "two.yaml has pins of mail, bank; say with --server which of them these are",
        ),
        (
            &["drift", "--pins", "two.yaml", "other.json", "--server", "shop"],
            "two.yaml has no pins of the server shop, but of mail, bank",
        ),
        (&["drift"], "compared with which pins? Give --pins FILE and a SOURCE; or POD [SERVER]"),
        (&["drift", "https://a/mcp"], "compared with which pins?"),
    ] {
        let (code, text, errors) = folder.run(arguments);
        assert_eq!((code, text.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(errors.starts_with(&format!("error: {why}")), "{errors}");
    }
    // Of several pins, those of the server.
    let bank = manifest.replace("server: mail", "server: bank").replace("name: mail", "name: bank");
    folder.write("bank.yaml", &bank);
    assert_eq!(folder.run(&["drift", "--pins", "bank.yaml", "--pins", "pins.yaml", "mail.json"]).0, Some(0));
    assert_eq!(folder.run(&["drift", "--pins", "two.yaml", "mail.json"]).0, Some(0));
    assert_eq!(folder.run(&["drift", "--pins", "two.yaml", "other.json", "--server", "bank"]).0, Some(0));
}

#[test]
fn a_manifest_is_written_whole_or_not_at_all() {
    let folder = Folder::new("out");
    folder.write("mail.json", &list(&mail(), "", ""));
    let printed = folder.run(&["pin", "mail.json"]).1;
    let none = || (Some(0), String::new(), String::new());
    assert_eq!(folder.run(&["pin", "mail.json", "--out", "pins.yaml"]), none());
    let text = |name: &str| fs::read_to_string(folder.0.join(name)).unwrap();
    let mode = |name: &str| fs::metadata(folder.0.join(name)).unwrap().permissions().mode() & 0o777;
    folder.write("plain", "");
    assert_eq!((text("pins.yaml"), mode("pins.yaml")), (printed.clone(), mode("plain")));
    // In place of another, whose mode stays, also behind a link.
    folder.write("old.yaml", "old");
    fs::set_permissions(folder.0.join("old.yaml"), fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink("old.yaml", folder.0.join("link.yaml")).unwrap();
    for out in ["old.yaml", "link.yaml"] {
        folder.write("old.yaml", "old");
        assert_eq!(folder.run(&["pin", "mail.json", "--out", out]), none());
        assert_eq!((text("old.yaml"), mode("old.yaml")), (printed.clone(), 0o640), "{out}");
    }
    assert!(fs::symlink_metadata(folder.0.join("link.yaml")).unwrap().is_symlink());
    assert_eq!(folder.run(&["suggest", "mail.json", "--pin", "--out", "policy.yaml"]), none());
    assert_eq!(text("policy.yaml"), folder.run(&["suggest", "mail.json", "--pin"]).1);
    // The server is down, or what it lists cannot be pinned.
    folder.write("broken.json", "{}");
    for (arguments, why) in [
        (["pin", "http://127.0.0.1:1/mcp", "--out", "old.yaml"], "nothing listens there"),
        (["pin", "broken.json", "--out", "old.yaml"], "has no definitions of tools"),
        (["pin", "mail.json", "--out", "nowhere/x.yaml"], "--out nowhere/x.yaml cannot be written: No such file"),
        (["pin", "mail.json", "--out", "."], "--out . is no file"),
        (["pin", "mail.json", "--out", "-"], "--out - is no file"),
        (["pin", "mail.json", "--out", "/dev/null"], "--out /dev/null is no file"),
    ] {
        let (code, out, errors) = folder.run(&arguments);
        assert!(code == Some(2) && out.is_empty() && errors.contains(why), "{errors}");
        assert_eq!(text("old.yaml"), printed);
    }
    let mut left: Vec<_> = fs::read_dir(&folder.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["broken.json", "link.yaml", "mail.json", "old.yaml", "pins.yaml", "plain", "policy.yaml"]);
}

#[test]
fn pins_of_another_server_are_told() {
    let folder = Folder::new("other");
    let of = |name: &str, tools: &[Value]| json!({"name": name, "tools": tools}).to_string();
    folder.write("mail.json", &of("io.example/mail", &mail()));
    folder.write("everything.json", &of("io.example/everything", &mail()[..1]));
    assert_eq!(folder.run(&["pin", "mail.json", "--out", "pins.yaml"]).0, Some(0));
    let drift = |more: &[&str]| folder.run(&[&["drift", "--pins", "pins.yaml", "everything.json"], more].concat());
    let (code, text, errors) = drift(&[]);
    assert_eq!((code, text.contains("read_mail  -     gone")), (Some(1), true), "{text}");
    assert_eq!(
        errors,
        "note: the server calls itself everything; these are pins of mail. If they are the right ones, say --server mail\n"
    );
    assert_eq!(drift(&["--server", "mail"]).2, "");
    // As pinned is as pinned.
    folder.write("everything.json", &of("io.example/everything", &mail()));
    assert_eq!((drift(&[]).0, drift(&[]).2.as_str()), (Some(0), ""));
}

#[test]
fn what_is_refused_is_not_offered() {
    let folder = Folder::new("help");
    for (command, namespace) in [("pin", "Namespace of the pins"), ("suggest", "Namespace of the policy")] {
        let help = folder.run(&[command, "--help"]).1;
        assert!(!help.contains("--output") && help.contains(namespace) && help.contains("--out <FILE>"), "{help}");
    }
    assert!(folder.run(&["drift", "--help"]).1.contains("--output"));
    assert!(folder.run(&["explain", "--help"]).1.contains("http://127.0.0.1:15000/explain"));
}

#[test]
fn a_suggested_policy_holds_its_server_to_what_was_seen() {
    let folder = Folder::new("suggest");
    folder.write("mail.json", &list(&mail(), "", ""));
    let (code, text, errors) =
        folder.run(&["suggest", "mail.json", "--pin", "--url", "https://mail.example/mcp", "--name", "social", "-n", "agents"]);
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    let manifests = read_manifests("policy", &text).unwrap();
    assert_eq!((manifests.policies.len(), manifests.pins[0].pins.to_string().as_str()), (1, "agents/mail"));
    assert!(text.contains("    pins: {name: mail}\n"), "{text}");
    folder.write("policy.yaml", &text);
    let verdicts = |list: &str| {
        folder.write("mail.json", list);
        let (code, text, errors) = folder.run(&["tools", "mail.json", "--policy", "policy.yaml", "-o", "json"]);
        assert_eq!((code, errors.as_str()), (Some(0), ""));
        let rows: Vec<Value> = serde_json::from_str(&text).unwrap();
        rows.iter().map(|row| row["policy"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(verdicts(&list(&mail(), "", "")), ["allowed, 30 a minute", "allowed, 60 a minute"]);
    let changed = "denied: pin_drift (pins agents/mail: description, annotations)";
    let both = list(&mail(), "false", "true").replace("Once.", "Twice.");
    assert_eq!(verdicts(&both)[0], changed);
    let mut more = mail();
    more.push(json!({"name": "read_all"}));
    // It has no entry either, which counts more.
    assert_eq!(verdicts(&list(&more, "", ""))[2], "denied: not_listed");
    let audit = text.replace("pins: {name: mail}", "pins: {name: mail, onDrift: Audit}");
    folder.write("policy.yaml", &audit);
    let reported = "allowed, 30 a minute, though reported: pin_drift (pins agents/mail: description, annotations)";
    assert_eq!(verdicts(&both)[0], reported);
    let open = audit.replace("    tools:\n", "    defaultAction: Allow\n    tools:\n");
    folder.write("policy.yaml", &open);
    assert_eq!(verdicts(&list(&more, "", ""))[2], "denied: not_pinned (pins agents/mail)");
    let elsewhere = text.replace("pins: {name: mail}", "pins: {name: gone}");
    folder.write("policy.yaml", &elsewhere);
    let missing = "denied: pin_unverified (there are no pins agents/gone)";
    assert_eq!(verdicts(&list(&mail(), "", ""))[0], missing);
    let classes = "{apiVersion: toolweir.dev/v1alpha1, kind: MCPPolicy, metadata: {name: c}, spec: {servers: [{name: mail, url: 'https://m/mcp', \
                   tools: [{class: Read}, {class: Write, action: Deny, reason: no}]}]}}";
    folder.write("policy.yaml", classes);
    assert_eq!(verdicts(&list(&mail(), "", "")), ["denied by entry class:Write of default/c: no", "allowed"]);
}

fn pinned(tools: &[Value]) -> MCPToolPinsSpec {
    let tools: Vec<ListedTool> = tools.iter().map(|tool| ListedTool::new(tool.clone()).unwrap()).collect();
    pins_of("mail", &tools).unwrap()
}

/// A cluster with a pod whose sidecar shows these tools, and says that it saw these servers.
async fn cluster(shown: Vec<Value>, seen: Option<Value>) -> (ApiServer, LazyClient) {
    let mcp = legacy(move |asked| asked.result(&json!({"tools": shown})));
    let sidecar = McpServer::start(move |asked| match (asked.path.as_str(), &seen) {
        ("/seen", Some(seen)) => json_reply(200, &json!({"servers": seen, "newer": 1})),
        ("/seen", None) => json_reply(404, &json!({})),
        _ => mcp(asked),
    })
    .await;
    let api = ApiServer::default();
    api.change(|world| {
        world.pods.push(pod("agents", "social-1", true));
        for port in [15000, 15001] {
            world.ports.insert(("social-1".to_owned(), port), sidecar.address);
        }
    });
    let client = LazyClient::from(api.client());
    (api, client)
}

fn object(name: &str, spec: &MCPToolPinsSpec) -> Value {
    json!({"apiVersion": "toolweir.dev/v1alpha1", "kind": "MCPToolPins", "metadata": {"name": name, "namespace": "agents"}, "spec": spec})
}

/// What a sidecar says of the server `mail`.
fn of_mail(tools: &[Value], drift: &[(&str, Value)]) -> Value {
    let tool = |definition: &toolweir_crds::PinnedTool| {
        let changes = drift.iter().find(|(name, _)| *name == definition.name).map(|(_, changes)| changes);
        let drift = changes
            .map(|changes| json!([{"server": "mail", "pins": "agents/mail", "tool": definition.name, "changes": changes}]));
        json!({"definition": definition, "class": "Write", "drift": drift.unwrap_or_else(|| json!([]))})
    };
    let tools: Vec<Value> = pinned(tools).tools.iter().map(tool).collect();
    json!({"server": "mail", "pins": ["agents/mail"], "tools": tools})
}

#[derive(Parser)]
struct PinLine {
    #[command(flatten)]
    options: PinOptions,
}

#[derive(Parser)]
struct DriftLine {
    #[command(flatten)]
    options: DriftOptions,
}

async fn drift_of(client: &LazyClient, line: &str) -> Result<(String, Vec<String>, CommandOutcome), String> {
    let options = DriftLine::try_parse_from(line.split(' ')).unwrap().options;
    drift(&options, client, &LIMITS, OutputFormat::Text).await.map_err(|error| format!("{error:#}"))
}

#[tokio::test]
async fn pins_of_a_pod_have_what_its_sidecar_has_seen_and_hides() {
    let mut now = mail();
    now[1]["description"] = "Reads all mail.".into();
    let change = json!([{"part": "description", "change": "text"}]);
    let denied = json!({"name": "denied", "description": "x"});
    let all = [now.clone(), vec![denied]].concat();
    let seen = of_mail(&all, &[("read_mail", change)]);
    let (_, client) = cluster(vec![now[0].clone()], Some(json!([seen]))).await;
    let options = PinLine::try_parse_from(["pin", "-n", "agents", "pod/social-1", "mail", "--name", "mail-2"]).unwrap().options;
    let manifest = pin(&options, &client, &LIMITS).await.unwrap();
    let pins = read(&manifest);
    assert_eq!(pins.to_string(), "agents/mail-2");
    assert_eq!(pins.spec, pinned(&all));
    // A sidecar that is too old shows what it shows.
    let (_, client) = cluster(vec![now[0].clone()], None).await;
    let options = PinLine::try_parse_from(["pin", "social-1", "mail"]).unwrap().options;
    let pins = read(&pin(&options, &client, &LIMITS).await.unwrap());
    assert_eq!((pins.to_string().as_str(), pins.spec), ("agents/mail", pinned(&now[..1])));
}

#[tokio::test]
async fn what_a_sidecar_saw_is_compared_with_the_pins_of_the_cluster() {
    let mut now = mail();
    now[1]["description"] = "Reads all mail.".into();
    let change = json!([{"part": "description", "change": "text"}]);
    let seen = json!([of_mail(&now, &[("read_mail", change)]), {"server": "free", "pins": [], "tools": []}]);
    let (api, client) = cluster(Vec::new(), Some(seen)).await;
    api.change(|world| world.pins.push(object("mail", &pinned(&mail()))));
    for line in ["drift -n agents social-1", "drift -n agents pod/social-1 mail"] {
        let (text, notes, outcome) = drift_of(&client, line).await.unwrap();
        let golden =
            "TOOL       PART         CHANGE  PINNED       NOW\nread_mail  description  text    Reads mail.  Reads all mail.\n";
        assert_eq!((text.as_str(), notes, outcome), (golden, vec![], CommandOutcome::Negative));
    }
    assert!(!api.seen("/namespaces/agents/mcptoolpins/mail").is_empty());
    let error = drift_of(&client, "drift -n agents social-1 free").await.unwrap_err();
    assert_eq!(error, "no policy of pod agents/social-1 holds the server free to pins, but mail");
    // Pinned again: the sidecar has not got that yet.
    api.change(|world| world.pins = vec![object("mail", &pinned(&now))]);
    let (text, notes, outcome) = drift_of(&client, "drift social-1 mail").await.unwrap();
    assert_eq!((text.as_str(), outcome), ("mail: 2 tools are as pinned by agents/mail.\n", CommandOutcome::Negative));
    assert!(
        notes[0].starts_with("mail: its sidecar says that these are not as pinned by agents/mail")
            && notes[0].contains(": read_mail."),
        "{notes:?}"
    );
    api.change(|world| world.pins.clear());
    let (text, notes, outcome) = drift_of(&client, "drift social-1").await.unwrap();
    assert_eq!((text.as_str(), outcome), ("", CommandOutcome::Negative));
    assert_eq!(notes, ["mail: the pins agents/mail are not there, and so no tool is known to be as it was; write them with pin"]);
    api.change(|world| {
        world.forbidden.insert(("get", "mcptoolpins"));
    });
    let error = drift_of(&client, "drift social-1").await.unwrap_err();
    assert!(error.starts_with("you may not get mcptoolpins.toolweir.dev in namespace agents: the verb `get`"), "{error}");
}

#[tokio::test]
async fn what_a_sidecar_cannot_say_is_told() {
    let (_, client) = cluster(Vec::new(), None).await;
    let error = drift_of(&client, "drift social-1").await.unwrap_err();
    assert_eq!(
        error,
        "the sidecar of pod agents/social-1 is too old for this: it has no /seen. Restart the pod to get a new sidecar"
    );
    let (_, client) = cluster(Vec::new(), Some(json!([]))).await;
    let error = drift_of(&client, "drift social-1 mail").await.unwrap_err();
    assert!(error.starts_with("no policy of pod agents/social-1 holds a server to pins"), "{error}");
    let (_, client) = cluster(Vec::new(), Some(json!([{"server": "mail", "pins": ["agents/mail"], "tools": []}]))).await;
    let (text, notes, outcome) = drift_of(&client, "drift social-1").await.unwrap();
    assert_eq!((text.as_str(), outcome), ("", CommandOutcome::Negative));
    assert_eq!(notes, ["mail: no list of its tools was seen yet; kubectl toolweir tools -n agents social-1 mail asks for one"]);
}

#[test]
fn the_page_has_every_part_and_every_grade() {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/pins.md")).unwrap();
    for part in toolweir_crds::ToolPart::ALL {
        assert!(page.contains(&format!("\n| `{part}` | ")), "{part}");
    }
    for grade in ["added", "removed", "text", "annotation", "narrower", "wider", "changed", "new", "gone"] {
        assert!(page.contains(&format!("`{grade}`")), "{grade}");
    }
}

/// With a real sidecar: what it hides is pinned again, and then there is no drift.
#[tokio::test]
async fn a_sidecar_says_what_it_saw() {
    let text = Arc::new(Mutex::new("Reads mail.".to_owned()));
    let shown = Arc::clone(&text);
    let server = McpServer::start(legacy(move |asked| {
        let mut now = mail();
        now[1]["description"] = shown.lock().unwrap().as_str().into();
        asked.result(&json!({"tools": now}))
    }))
    .await;
    let pins = serde_json::to_string(&object("mail", &pinned(&mail()))).unwrap();
    let policy = format!(
        "{{apiVersion: toolweir.dev/v1alpha1, kind: MCPPolicy, metadata: {{name: mail, namespace: agents}}, spec: {{servers: [\
         {{name: mail, url: '{}', pins: {{name: mail}}, defaultAction: Allow}}]}}}}\n---\n{pins}\n",
        server.url()
    );
    let running = common::sidecar(&policy).await;
    let api = ApiServer::default();
    api.change(|world| {
        world.pods.push(pod("agents", "social-1", true));
        world.pins.push(object("mail", &pinned(&mail())));
        world.ports.insert(("social-1".to_owned(), 15001), running.sidecar.proxy.address);
        world.ports.insert(("social-1".to_owned(), 15000), running.sidecar.admin);
    });
    let client = LazyClient::from(api.client());
    let (_, notes, outcome) = drift_of(&client, "drift social-1").await.unwrap();
    assert_eq!(outcome, CommandOutcome::Negative);
    assert_eq!(notes, ["mail: no list of its tools was seen yet; kubectl toolweir tools -n agents social-1 mail asks for one"]);
    "Reads all mail.".clone_into(&mut text.lock().unwrap());
    let options = PinLine::try_parse_from(["pin", "social-1", "mail"]).unwrap().options;
    let again = read(&pin(&options, &client, &LIMITS).await.unwrap());
    let mut now = mail();
    now[1]["description"] = "Reads all mail.".into();
    assert_eq!(again.spec, pinned(&now));
    let (text, notes, outcome) = drift_of(&client, "drift social-1 mail").await.unwrap();
    let golden =
        "TOOL       PART         CHANGE  PINNED       NOW\nread_mail  description  text    Reads mail.  Reads all mail.\n";
    assert_eq!((text.as_str(), notes, outcome), (golden, vec![], CommandOutcome::Negative));
}
