//! `toolweir-sidecar stdio`: whatever a server starts ends with it, and it with the sidecar. With the real program and a
//! server in Python that has a family.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use common::{call, program, request, stdio::Governed, until};
use serde_json::{Value, json};
use tokio::process::Command;

/// Starts three processes that ignore SIGTERM: one in its group, one in a session of its own, and one there whose parent has
/// ended. Answers `family` with the numbers of them all, its own and its parent's first. It never answers a call, goes on
/// when its stdin ends, and ends on `exit` with code 3 and on `crash` by SIGKILL.
const FAMILY: &str = r#"
import json, os, signal, subprocess, sys, time
TERM = signal.SIG_IGN if STUBBORN else signal.SIG_DFL
SLEEPER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
ORPHAN = "import os, subprocess, sys; print(subprocess.Popen([sys.executable, '-c', sys.argv[1]]).pid, flush=True)"
def start(code, *more, **how):
    child = subprocess.Popen([sys.executable, "-c", code, *more], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, **how)
    return child, child.stdout.readline()
def answer(message, result):
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
signal.signal(signal.SIGTERM, TERM)
family = [os.getppid(), os.getpid(), start(SLEEPER)[0].pid, start(SLEEPER, start_new_session=True)[0].pid]
child, orphan = start(ORPHAN, SLEEPER, start_new_session=True)
child.stdout.readline()
child.wait()
family.append(int(orphan))
if HOLDS:
    family.append(subprocess.Popen(["sleep", "600"], start_new_session=True).pid)
for line in sys.stdin:
    message = json.loads(line)
    if message["method"] == "family":
        answer(message, family)
    elif message["method"] == "exit":
        answer(message, "bye")
        os._exit(3)
    elif message["method"] == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
time.sleep(600)
"#;

/// The real program with that server, and the numbers of its keeper, the server and the server's family.
async fn family(stubborn: bool, holds: bool) -> (Governed, Vec<u64>) {
    let flag = |is: bool| if is { "True" } else { "False" };
    let server = format!("STUBBORN, HOLDS = {}, {}\n{FAMILY}", flag(stubborn), flag(holds));
    let mut governed = Governed::start(&[], &server);
    let family = governed.ask(&request("0", "family", "{}")).await["result"].clone();
    let family: Vec<u64> = family.as_array().unwrap().iter().map(|pid| pid.as_u64().unwrap()).collect();
    assert!(family.iter().copied().all(lives), "{family:?}");
    (governed, family)
}

fn lives(pid: u64) -> bool {
    let stat = std::fs::read_to_string(PathBuf::from(format!("/proc/{pid}/stat"))).unwrap_or_default();
    // A zombie has ended; whoever became its parent takes its end when it likes.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn is_there(pid: u64) -> bool {
    PathBuf::from(format!("/proc/{pid}")).exists()
}

async fn kill(pid: u64) {
    assert!(Command::new("kill").args(["-KILL", &pid.to_string()]).status().await.unwrap().success());
}

/// What became of calls of tools.
fn outcomes(governed: &Governed) -> Vec<Value> {
    let audit = std::fs::read_to_string(governed.folder.path().join("audit.jsonl")).unwrap();
    let lines = audit.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line.get("tool").is_some()).map(|line| line["outcome"].clone()).collect()
}

#[tokio::test]
async fn a_server_that_goes_on_without_stdin_ends_with_the_clients_sigterm() {
    let (mut governed, family) = family(false, false).await;
    governed.stdin = None;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(lives(family[1]), "it was not asked to end yet");
    let began = Instant::now();
    program::signal(&governed.child, "-TERM").await;
    // The server ends at once; its family, which ignores the signal, has a moment longer.
    until("the server's end", async || !lives(family[1])).await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(governed.code().await, Some(128 + 15));
    assert!(began.elapsed() < Duration::from_millis(1450), "{:?}", began.elapsed());
    assert!(!family.iter().copied().any(is_there), "{family:?}");
}

#[tokio::test]
async fn a_server_that_ignores_sigterm_is_killed_before_the_client_kills_the_sidecar() {
    for signal in ["-TERM", "-INT", "-HUP"] {
        let (mut governed, family) = family(true, true).await;
        let began = Instant::now();
        program::signal(&governed.child, signal).await;
        assert_eq!(governed.code().await, Some(128 + 9), "{signal}");
        assert!(began.elapsed() < Duration::from_secs(2), "{signal}: {:?}", began.elapsed());
        assert!(!family.iter().copied().any(is_there), "{signal}: {family:?}");
    }
}

#[tokio::test]
async fn nobody_outlives_a_sidecar_that_is_killed() {
    for stubborn in [false, true] {
        let (mut governed, family) = family(stubborn, true).await;
        let began = Instant::now();
        program::signal(&governed.child, "-KILL").await;
        assert_eq!(governed.code().await, None);
        until("the end of all", async || !family.iter().copied().any(lives)).await;
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn nobody_outlives_a_keeper_that_is_killed() {
    let (mut governed, family) = family(true, true).await;
    governed.send(&call("1", "hang", "{}")).await;
    kill(family[0]).await;
    assert_eq!(governed.next().await.unwrap()["result"]["isError"], true);
    assert_eq!(governed.code().await, Some(128 + 9));
    assert!(!family.iter().copied().any(is_there), "{family:?}");
}

#[tokio::test]
async fn a_server_whose_client_is_gone_ends_without_a_signal() {
    let (mut governed, family) = family(true, true).await;
    let began = Instant::now();
    governed.stdin = None;
    assert_eq!(governed.code().await, Some(128 + 9));
    assert!((5..8).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert!(!family.iter().copied().any(is_there), "{family:?}");
}

#[tokio::test]
async fn what_a_server_that_ended_left_is_answered_though_its_child_holds_stdout() {
    for (end, code) in [("exit", 3), ("crash", 128 + 9)] {
        let (mut governed, family) = family(false, true).await;
        governed.send(&call("\"a\"", "hang", "{}")).await;
        governed.send(&call("7.0", "hang", "{}")).await;
        governed.send(&request("8", "resources/list", "{}")).await;
        let began = Instant::now();
        governed.send(&request("9", end, "{}")).await;
        // What it said last comes first.
        if end == "exit" {
            assert_eq!(governed.next().await.unwrap(), json!({"jsonrpc": "2.0", "id": 9, "result": "bye"}));
        }
        let words = "The MCP server bank ended before it answered.";
        let why = json!({"toolweir.dev/denial": {"reason": "upstream_failed", "retry": false}});
        for id in [json!("a"), json!(7.0)] {
            let text = format!("{words} The call may have been carried out.");
            let result = json!({"content": [{"type": "text", "text": text}], "isError": true, "_meta": why});
            assert_eq!(governed.next().await.unwrap(), json!({"jsonrpc": "2.0", "id": id, "result": result}), "{end}");
        }
        let error = json!({"jsonrpc": "2.0", "id": 8, "error": {"code": -32603, "message": words, "data": why}});
        assert_eq!(governed.next().await.unwrap(), error, "{end}");
        if end == "crash" {
            assert_eq!(governed.next().await.unwrap()["id"], 9);
        }
        assert_eq!(governed.next().await, None, "{end}");
        assert_eq!(governed.code().await, Some(code), "{end}");
        assert!(began.elapsed() < Duration::from_millis(2500), "{end}: {:?}", began.elapsed());
        assert!(!family.iter().copied().any(is_there), "{end}: {family:?}");
        assert_eq!(outcomes(&governed), ["upstream_failed", "upstream_failed"], "{end}");
    }
}

#[tokio::test]
async fn a_long_line_of_descendants_ends_in_time_with_a_stop_and_with_the_sidecar() {
    // Each starts the next and ignores SIGTERM; the last says that it is there.
    let server = r#"
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(100):
    if os.fork():
        time.sleep(600)
print('{"jsonrpc":"2.0","id":1,"result":%d}' % os.getpid(), flush=True)
time.sleep(600)
"#;
    for signal in ["-TERM", "-KILL"] {
        let mut governed = Governed::start(&[], server);
        let last = governed.ask(&request("1", "ping", "{}")).await["result"].as_u64().unwrap();
        let began = Instant::now();
        program::signal(&governed.child, signal).await;
        governed.code().await;
        until("the end of the last", async || !lives(last)).await;
        // Clients wait 2 s; a machine that runs other tests at the same time is given half a second more.
        assert!(began.elapsed() < Duration::from_millis(2500), "{signal}: {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn a_keeper_that_was_stopped_is_woken_to_end_its_server() {
    let (mut governed, family) = family(false, false).await;
    assert!(Command::new("kill").args(["-STOP", &family[0].to_string()]).status().await.unwrap().success());
    program::signal(&governed.child, "-TERM").await;
    assert_eq!(governed.code().await, Some(128 + 15));
    assert!(!family.iter().copied().any(is_there), "{family:?}");
}

#[tokio::test]
async fn a_child_that_the_server_did_not_start_is_left_alone() {
    let folder = common::folder::Folder::new();
    let policy = folder.write("policy.yaml", common::policy("X", "[{name: pay}]").replace("    url: X\n", ""));
    // As a shell does that becomes the sidecar and has started something before, such as whatever takes its stderr.
    let script = r#"sleep 600 & echo $! > "$1"; shift; exec "$@""#;
    let pid = folder.path().join("pid");
    let arguments = ["-c", script, "sh", pid.to_str().unwrap(), env!("CARGO_BIN_EXE_toolweir-sidecar"), "stdio", "--policy"];
    for server in ["exit 0", "kill -KILL $PPID"] {
        let rest = [policy.to_str().unwrap(), "--server", "bank", "--", "sh", "-c", server];
        let mut child = Command::new("sh").args(arguments).args(rest).stdin(std::process::Stdio::null()).spawn().unwrap();
        common::within("the end", child.wait()).await.unwrap();
        let other: u64 = std::fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
        assert!(lives(other), "{server}");
        kill(other).await;
    }
}
