//! People who decide at the socket of a sidecar, by the real command.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::float_cmp)]

mod common;

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Output,
    sync::Arc,
};

use common::{
    call, denial,
    folder::Folder,
    policy,
    program::{self, Running},
    sidecar::Sidecar,
    stdio::Governed,
    until,
    upstream::Upstream,
    within,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    process::Command,
    task::JoinHandle,
};
use toolweir_sidecar::approvals::{
    AskSettings, accounts, socket_args::ApprovalsSocketSettings, socket_messages::LONGEST_QUESTION,
};

const ASKS: &str = "[{name: pay, approval: {message: Over 500., show: [args.amount, args.payee], hold: 5s, expiry: 1h}}]";

/// A sidecar with a socket.
struct Asking {
    upstream: Upstream,
    sidecar: Arc<Sidecar>,
    socket: PathBuf,
    _folder: Folder,
}

impl Asking {
    async fn start(allow_same_user: bool, group: Option<u32>) -> Self {
        let (upstream, folder) = (Upstream::bank().await, Folder::new());
        // Others must get there.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let socket = folder.path().join("approvals.sock");
        let settings =
            ApprovalsSocketSettings { path: socket.clone(), group: group.map(|group| group.to_string()), allow_same_user };
        let sidecar = Sidecar::with(&policy(&upstream.url(), ASKS), |config| {
            "agents".clone_into(&mut config.options.namespace);
            config.approvals = AskSettings { socket: Some(settings), ..AskSettings::default() };
        })
        .await;
        Self { upstream, sidecar: Arc::new(sidecar), socket, _folder: folder }
    }

    /// Makes a call that waits, and gives the name of its request.
    async fn pay(&self, arguments: &str) -> (String, JoinHandle<Value>) {
        let (sidecar, call) = (Arc::clone(&self.sidecar), call("1", "pay", arguments));
        let paid = tokio::spawn(async move { sidecar.post(&call).await });
        let waiting = || self.sidecar.governor.approvals().waiting();
        until("a request", async || waiting().len() == 1).await;
        (waiting()[0].name.to_string(), paid)
    }

    async fn approvals(&self, more: &[&str]) -> Said {
        said(&program::run(&self.arguments(more)).await)
    }

    fn arguments<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        [&["approvals", "--socket", self.socket.to_str().unwrap()], more].concat()
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.socket).await.unwrap()
    }

    /// What is answered to these bytes.
    async fn told(&self, bytes: &[u8]) -> Value {
        let mut stream = self.connect().await;
        // Of a question that is too long, the rest is not read.
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        answer(stream).await
    }
}

async fn answer(mut stream: UnixStream) -> Value {
    let mut answer = Vec::new();
    let _ = within("an answer", stream.read_to_end(&mut answer)).await;
    serde_json::from_slice(&answer).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&answer)))
}

/// Exit code, stdout and stderr.
type Said = (i32, String, String);

fn said(output: &Output) -> Said {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn own_uid() -> u32 {
    fs::metadata("/proc/self").unwrap().uid()
}

fn own() -> String {
    accounts::user(own_uid())
}

#[tokio::test]
async fn a_person_lists_and_approves_and_the_call_goes_on() {
    let asking = Asking::start(true, None).await;
    let heading = "ID  TOOL  SERVER  WAITS  EXPIRES  POLICIES  ABOUT\n";
    assert_eq!(asking.approvals(&[]).await, (0, heading.to_owned(), "no call waits for a person\n".to_owned()));
    let (name, paid) = asking.pay(r#"{"amount":501,"payee":"A\" args.amount=\"1\u001b[2K","note":"MARKER"}"#).await;
    for list in [&[][..], &["list"]] {
        let (code, out, err) = asking.approvals(list).await;
        assert_eq!((code, &*err), (0, ""));
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines.len(), 2, "{out}");
        let words: Vec<&str> = lines[1].split_whitespace().collect();
        assert_eq!(words[..3], [&*name, "pay", "bank"]);
        assert_eq!((words[4].starts_with("59m") || words[4] == "1h", words[5]), (true, "agents/bank"));
        assert!(lines[1].ends_with(r#"  Over 500. args.amount="501" args.payee="A\" args.amount=\"1\\u{1b}[2K""#), "{out}");
        assert!(!out.contains("MARKER"));
    }
    // Also by the name that the agent is told.
    let told = format!("agents/{name}");
    let approved = asking.approvals(&["approve", &told]).await;
    assert_eq!(approved, (0, format!("approved {told}; the call goes through once, within 1h\n"), String::new()));
    assert_eq!(within("the answer", paid).await.unwrap()["result"]["isError"], false);
    assert_eq!(asking.upstream.seen().len(), 1);
    let (code, out, err) = asking.approvals(&["approve", &name]).await;
    assert_eq!((code, &*out), (3, ""));
    assert_eq!(err, format!("toolweir-sidecar: {name} is approved already, and the call went through\n"));
    let steps = asking.sidecar.audit(4).await;
    let approved = steps.iter().find(|line| line["step"] == "approved").unwrap();
    assert_eq!(approved["by"], own());
}

#[tokio::test]
async fn a_denial_has_its_reason_and_decisions_are_not_changed() {
    let asking = Asking::start(true, None).await;
    let (name, paid) = asking.pay(r#"{"amount":1}"#).await;
    for (reason, why) in
        [(" ", "is empty"), (&"x".repeat(513), "has 513 bytes; 512 are possible"), ("a\nb", "has a control character")]
    {
        let (code, _, err) = asking.approvals(&["deny", &name, "--reason", reason]).await;
        assert!(code == 1 && err.contains(&format!("--reason {why}")), "{err}");
    }
    let denied = asking.approvals(&["deny", &name, "--reason", "Not \"today\"."]).await;
    assert_eq!(denied, (0, format!("denied {name}; the same call is denied without asking for 1h\n"), String::new()));
    let answer = within("the answer", paid).await.unwrap();
    assert_eq!(denial(&answer)["reason"], "approval_denied");
    assert_eq!(answer["result"]["content"][0]["text"], format!("Denied by a person (agents/{name}): Not \"today\"."));
    for more in [&["approve", &name][..], &["deny", &name]] {
        let (code, _, err) = asking.approvals(more).await;
        assert_eq!((code, err), (3, format!("toolweir-sidecar: {name} is denied already; a decision is not changed\n")));
    }
    let (code, _, err) = asking.approvals(&["approve", "no-such\u{1b}[2K"]).await;
    assert_eq!(code, 3);
    assert!(err.starts_with("toolweir-sidecar: no-such\u{fffd}[2K is not the name of a request;"), "{err}");
    assert!(asking.upstream.seen().is_empty());
}

/// The agent may be the sidecar's user.
#[tokio::test]
async fn the_sidecars_own_user_is_refused() {
    let asking = Asking::start(false, None).await;
    let (name, paid) = asking.pay("{}").await;
    for more in [&[][..], &["approve", &name], &["deny", &name]] {
        let (code, out, err) = asking.approvals(more).await;
        assert_eq!((code, &*out), (1, ""));
        assert_eq!(
            err,
            format!(
                "toolweir-sidecar: you are {}, the user of the sidecar, and its agent may be the same user; approve as another user, or start \
                 the sidecar with --approvals-allow-same-user\n",
                own()
            )
        );
    }
    let answer = within("the answer", paid).await.unwrap();
    assert_eq!(denial(&answer)["reason"], "approval_pending");
    assert_eq!(asking.sidecar.governor.approvals().waiting().len(), 1);
    assert!(asking.upstream.seen().is_empty());
}

/// Members of the group decide, and nobody else gets there.
#[tokio::test]
async fn members_of_the_group_decide() {
    if own_uid() != 0 {
        // Only root can be several users. Being in the group is not enough for the sidecar's own.
        let asking = Asking::start(false, Some(fs::metadata("/proc/self").unwrap().gid())).await;
        assert!(asking.approvals(&[]).await.2.contains("the user of the sidecar"));
        return;
    }
    let group = 54_321;
    let asking = Asking::start(false, Some(group)).await;
    // The folder of the build may be closed to others.
    let program = asking.socket.with_file_name("sidecar");
    fs::copy(env!("CARGO_BIN_EXE_toolweir-sidecar"), &program).unwrap();
    let run = async |uid: u32, gid: u32, more: &[&str]| {
        let mut command = Command::new(&program);
        command.args(asking.arguments(more)).uid(uid).gid(gid);
        said(&within("the command", command.output()).await.unwrap())
    };
    let (name, paid) = asking.pay("{}").await;
    let (code, _, err) = run(54_000, 54_000, &["approve", &name]).await;
    assert_eq!(code, 1);
    let socket = asking.socket.display();
    assert_eq!(
        err,
        format!(
            "toolweir-sidecar: {socket}: you may not connect; it is for uid 0 (root) and the group gid 54321, and a new member of a group must \
             log in again\n"
        )
    );
    assert_eq!(run(54_000, group, &[]).await.1.lines().count(), 2);
    assert_eq!(run(54_000, group, &["approve", &name]).await.0, 0);
    assert_eq!(within("the answer", paid).await.unwrap()["result"]["isError"], false);
    let approved = asking.sidecar.audit(4).await.into_iter().find(|line| line["step"] == "approved").unwrap();
    assert_eq!(approved["by"], "uid 54000");
}

#[tokio::test]
async fn what_peers_send_is_read_strictly() {
    let asking = Asking::start(true, None).await;
    let (name, paid) = asking.pay("{}").await;
    let long = format!("{{\"approve\":{{\"name\":\"{}\"}}}}\n", "x".repeat(LONGEST_QUESTION));
    let twice = format!("{{\"approve\":{{\"name\":\"x\",\"name\":\"{name}\"}}}}\n");
    for (question, why) in [
        ("", "a question is one line of at most 16384 bytes"),
        ("{\"list\":{}}", "a question is one line"),
        (&long, "a question is one line"),
        ("\n", "is not understood"),
        ("list\n", "is not understood"),
        ("\"list\"\n", "is not understood"),
        ("{\"list\":{\"all\":true}}\n", "is not understood: unknown field `all`"),
        ("{\"list\":{},\"approve\":{\"name\":\"x\"}}\n", "is not understood"),
        ("{\"approve\":{}}\n", "is not understood: missing field `name`"),
        (&twice, "is not understood: duplicate field `name`"),
        ("{\"approve\":{\"name\":5}}\n", "is not understood"),
        ("{\"approve\":{\"name\":\"x\"}} {}\n", "is not understood: trailing characters"),
        ("{\"deny\":{\"name\":\"x\",\"reason\":\"\"}}\n", "the reason is empty"),
        ("{\"deny\":{\"name\":\"x\",\"reason\":\"a\\u0000\"}}\n", "the reason has a control character"),
        ("\u{fffd}\n", "is not understood"),
    ] {
        let told = asking.told(question.as_bytes()).await;
        let refused = told["refused"].as_str().unwrap_or_else(|| panic!("{question}: {told}"));
        assert!(refused.contains(why), "{question}: {refused}");
    }
    assert_eq!(asking.told(b"{\"list\":{}}\n{\"deny\":{\"name\":\"x\"}}\n").await["waiting"][0]["name"], name);
    paid.abort();
}

/// Who connects and says nothing keeps others waiting for seconds at most.
#[tokio::test]
async fn silent_peers_are_bounded() {
    let asking = Asking::start(true, None).await;
    let mut silent = Vec::new();
    for _ in 0..16 {
        silent.push(asking.connect().await);
    }
    let list = b"{\"list\":{}}\n";
    until("all places taken", async || asking.told(list).await["refused"] == "the sidecar answers as many as it can; try again")
        .await;
    let (code, _, err) = asking.approvals(&[]).await;
    assert_eq!((code, &*err), (1, "toolweir-sidecar: the sidecar answers as many as it can; try again\n"));
    for stream in silent {
        assert_eq!(answer(stream).await, json!({"refused": "no question came within 5 s"}));
    }
    until("a place", async || asking.told(list).await == json!({"waiting": []})).await;
}

#[tokio::test]
async fn the_socket_is_there_while_the_sidecar_is() {
    let (upstream, folder) = (Upstream::bank().await, Folder::new());
    let path = folder.write("policy.yaml", policy(&upstream.url(), ASKS));
    let socket = folder.path().join("approvals.sock");
    let flags = ["--approvals-socket", socket.to_str().unwrap()];
    let mut running = Running::start(&path, &flags).await;
    let metadata = fs::symlink_metadata(&socket).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o660);
    // Another one does not take it away.
    let run = async |more: &[&str]| {
        let mut arguments = vec!["run", "--policy", path.to_str().unwrap()];
        for flag in ["--listen", "--metrics-listen", "--admin-listen"] {
            arguments.extend([flag, "127.0.0.1:0"]);
        }
        arguments.extend(more);
        let (code, out, err) = said(&program::run(&arguments).await);
        assert_eq!((code, &*out), (1, ""), "{err}");
        err.lines().last().unwrap().to_owned()
    };
    let at = socket.display();
    assert_eq!(
        run(&flags).await,
        format!("toolweir-sidecar: --approvals-socket {at}: another process listens there; give each sidecar a path of its own")
    );
    let policy_path = path.to_str().unwrap();
    assert_eq!(
        run(&["--approvals-socket", policy_path]).await,
        format!("toolweir-sidecar: --approvals-socket {policy_path}: is there and no socket; write another path, or remove it")
    );
    assert_eq!(
        run(&[&flags[..], &["--approvals-group", "no-such-group"]].concat()).await,
        "toolweir-sidecar: --approvals-group: /etc/group has no group `no-such-group`; write another name, or the number of the group"
    );
    assert!(socket.exists());
    assert_eq!(running.stop("-TERM").await.0.code(), Some(0));
    assert!(!socket.exists());
    let (code, _, err) = said(&program::run(&["approvals", "--socket", socket.to_str().unwrap()]).await);
    assert_eq!(code, 1);
    assert!(
        err.starts_with(&format!("toolweir-sidecar: {at}: there is no socket; start the sidecar with --approvals-socket {at}")),
        "{err}"
    );
    // A dead one leaves it, and the next takes its place.
    let mut running = Running::start(&path, &flags).await;
    running.stop("-KILL").await;
    let (code, _, err) = said(&program::run(&["approvals", "--socket", socket.to_str().unwrap()]).await);
    assert_eq!((code, err), (1, format!("toolweir-sidecar: {at}: nobody listens; the sidecar of this socket has ended\n")));
    let mut running = Running::start(&path, &flags).await;
    assert_eq!(running.stop("-INT").await.0.code(), Some(0));
    assert_eq!(names(folder.path()), ["policy.yaml"]);
}

fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn with_the_operator_the_flags_are_refused() {
    let folder = Folder::new();
    let token = folder.write("token", "x");
    let control_plane = ["run", "--control-plane", "https://127.0.0.1:1", "--token-file", token.to_str().unwrap()];
    let (code, _, err) = said(&program::run(&[&control_plane[..], &["--approvals-socket", "/tmp/x"]].concat()).await);
    assert_eq!(code, 1);
    assert_eq!(
        err,
        "toolweir-sidecar: --approvals-socket: with --control-plane the operator asks people, who decide with kubectl toolweir approve; \
         remove the flag\n"
    );
    let alone = program::run(&["run", "--policy", "x", "--approvals-allow-same-user"]).await;
    assert_eq!(alone.status.code(), Some(2));
}

/// Answers every call.
const SERVER: &str = r#"
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": {"content": [], "isError": False}}), flush=True)
"#;

#[tokio::test]
async fn over_stdio_too() {
    let folder = Folder::new();
    let socket = folder.path().join("approvals.sock");
    let flags = ["--approvals-socket", socket.to_str().unwrap(), "--approvals-allow-same-user"];
    let mut governed = Governed::with("[{name: pay, approval: {hold: 20s}}]", &flags, SERVER);
    governed.send(&call("1", "pay", "{}")).await;
    let mut name = String::new();
    until("a request", async || {
        let output = program::run(&["approvals", "--socket", flags[1]]).await;
        let (_, out, _) = said(&output);
        name = out.lines().nth(1).and_then(|line| line.split_whitespace().next()).unwrap_or_default().to_owned();
        !name.is_empty()
    })
    .await;
    assert_eq!(said(&program::run(&["approvals", "--socket", flags[1], "approve", &name]).await).0, 0);
    assert_eq!(governed.next().await.unwrap()["result"]["isError"], false);
    drop(governed.stdin.take());
    assert_eq!(governed.code().await, Some(0));
    assert!(!socket.exists());
}
