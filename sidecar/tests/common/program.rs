//! The real program.

use std::{
    net::SocketAddr,
    path::Path,
    process::{ExitStatus, Output, Stdio},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStderr, Command},
};

use super::within;

/// The program with these arguments. It ends with the test.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_toolweir-sidecar"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Runs the program to its end.
pub async fn run(arguments: &[&str]) -> Output {
    within("the program's end", command(arguments).output()).await.unwrap()
}

/// Sends a signal to a process that a test started.
pub async fn signal(child: &Child, name: &str) {
    let id = child.id().expect("it has ended").to_string();
    let sent = Command::new("kill").args([name, &id]).status().await.unwrap();
    assert!(sent.success());
}

/// `toolweir-sidecar run`, ready.
pub struct Running {
    pub child: Child,
    pub proxy: SocketAddr,
    pub metrics: SocketAddr,
    pub admin: SocketAddr,
    pub log: Lines<BufReader<ChildStderr>>,
}

impl Running {
    pub async fn start(policy: &Path, more: &[&str]) -> Self {
        let policy = policy.to_str().unwrap();
        let mut arguments = vec!["run", "--policy", policy, "--log-format", "json"];
        for flag in ["--listen", "--metrics-listen", "--admin-listen"] {
            arguments.extend([flag, "127.0.0.1:0"]);
        }
        arguments.extend(more);
        let mut child = command(&arguments).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let ready: Value = loop {
            let line = within("the log", log.next_line()).await.unwrap().expect("it ended before it was ready");
            let line: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"));
            if line["message"] == "ready" {
                break line;
            }
        };
        let address = |field: &str| ready[field].as_str().unwrap().parse().unwrap();
        Self { proxy: address("listen"), metrics: address("metrics"), admin: address("admin"), child, log }
    }

    /// Tells it to stop by a signal, and gives how it ended and how long that took.
    pub async fn stop(&mut self, name: &str) -> (ExitStatus, Duration) {
        let began = std::time::Instant::now();
        signal(&self.child, name).await;
        let status = within("the end", self.child.wait()).await.unwrap();
        (status, began.elapsed())
    }
}
