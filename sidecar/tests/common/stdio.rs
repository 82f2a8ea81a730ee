//! `toolweir-sidecar stdio`, the real program.

use std::process::Stdio;

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout},
};

use super::{folder::Folder, policy_with, program, within};

/// The real program with a server in Python.
pub struct Governed {
    pub child: Child,
    pub stdin: Option<ChildStdin>,
    stdout: tokio::io::Lines<BufReader<ChildStdout>>,
    pub folder: Folder,
}

impl Governed {
    /// Starts it with more flags.
    pub fn start(more: &[&str], server: &str) -> Self {
        Self::with("[{name: pay, limits: [{max: 1, window: hour}]}, {name: hang}]", more, server)
    }

    /// Starts it with entries of the policy. Methods that are none of MCP are allowed: by these servers are told what to do.
    pub fn with(tools: &str, more: &[&str], server: &str) -> Self {
        let folder = Folder::new();
        let path =
            folder.write("policy.yaml", policy_with("X", tools, &["defaultActions: {other: Allow}"]).replace("    url: X\n", ""));
        let audit = folder.path().join("audit.jsonl");
        let mut arguments = vec!["stdio", "--policy", path.to_str().unwrap(), "--server", "bank"];
        arguments.extend(["--audit-log", audit.to_str().unwrap()]);
        arguments.extend(more);
        arguments.extend(["--", "python3", "-c", server]);
        let mut child = program::command(&arguments).stdin(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { stdin: child.stdin.take(), stdout, child, folder }
    }

    /// Sends a message.
    pub async fn send(&mut self, message: &str) {
        self.stdin.as_mut().unwrap().write_all(format!("{message}\n").as_bytes()).await.unwrap();
    }

    /// Sends a message, and gives what comes next.
    pub async fn ask(&mut self, message: &str) -> Value {
        self.send(message).await;
        self.next().await.unwrap()
    }

    /// The next message; nothing at the end.
    pub async fn next(&mut self) -> Option<Value> {
        let line = within("an answer", self.stdout.next_line()).await.unwrap();
        line.map(|line| serde_json::from_str(&line).unwrap())
    }

    /// The exit code.
    pub async fn code(&mut self) -> Option<i32> {
        within("the end", self.child.wait()).await.unwrap().code()
    }
}
