//! Servers that are commands: messages are lines on their standard input and output.

use std::{
    ffi::OsString,
    io,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{anyhow, bail};
use rmcp::model::ServerJsonRpcMessage;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};

use super::{
    channel::{ChannelTransport, TaskEnd},
    fault::SourceFault,
    message::{self, ReadState},
};
use crate::table::shown;

/// The time that a command has to end by itself, and again after a signal.
const GOODBYE: Duration = Duration::from_secs(2);
/// The part of the standard error that is kept, in bytes.
const KEPT: usize = 8 * 1024;

/// Starts a command, and returns a transport to it. The command and what it starts end with the transport.
///
/// # Errors
/// The command cannot be started.
pub fn start(command: &[OsString], state: &ReadState) -> anyhow::Result<ChannelTransport> {
    let Some((program, args)) = command.split_first() else { bail!("there is no command after --") };
    let spawned = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // What the command starts is ended with it.
        .process_group(0)
        .kill_on_drop(true)
        .spawn();
    let mut child = spawned.map_err(|error| {
        let name = program.to_string_lossy();
        let help = match error.kind() {
            io::ErrorKind::NotFound => "install it, or give its path",
            io::ErrorKind::PermissionDenied => "make it executable",
            _ => "check the command",
        };
        anyhow!("cannot start `{}`: {error}; {help}", shown(&name))
    })?;
    let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take()) else {
        bail!("the command has no standard input and output");
    };
    let group = ProcessGroup(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw));
    let log = tokio::spawn(last_line(stderr));
    let state = state.clone();
    Ok(ChannelTransport::start(|end| async move {
        let running = RunningCommand { child, group, log };
        running.talk(stdin, stdout, end, &state).await;
    }))
}

/// A process and what it started, which end when this is dropped.
#[derive(Debug)]
struct ProcessGroup(Option<Pid>);

impl ProcessGroup {
    fn signal(&self, signal: Signal) {
        if let Some(group) = self.0 {
            // It may be gone.
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

#[derive(Debug)]
struct RunningCommand {
    child: Child,
    group: ProcessGroup,
    log: JoinHandle<String>,
}

impl RunningCommand {
    /// Passes messages in both directions until one side ends, and then ends the command.
    async fn talk(mut self, stdin: ChildStdin, stdout: ChildStdout, end: TaskEnd, state: &ReadState) {
        let TaskEnd { outgoing, incoming } = end;
        let read = tokio::select! {
            read = receive(stdout, &incoming, state) => read,
            () = send(stdin, outgoing) => Ok(false),
        };
        match read {
            Err(fault) => {
                state.faults.note(fault);
            }
            Ok(false) => {}
            Ok(true) => {
                let ended = timeout(GOODBYE, self.child.wait()).await;
                let ended = ended.ok().and_then(Result::ok).map_or_else(|| "it closed its output".to_owned(), how);
                // What it started may hold its standard error open.
                let log = timeout(Duration::from_millis(200), &mut self.log).await;
                let stderr = log.ok().and_then(Result::ok).unwrap_or_default();
                state.faults.note(SourceFault::Ended { ended, stderr });
            }
        }
        drop(incoming);
        self.end().await;
    }

    /// Ends the command as the specification says: its input ends, then SIGTERM, then SIGKILL.
    async fn end(mut self) {
        if timeout(GOODBYE, self.child.wait()).await.is_err() {
            self.group.signal(Signal::TERM);
            let _ = timeout(GOODBYE, self.child.wait()).await;
        }
    }
}

fn how(status: ExitStatus) -> String {
    status.to_string()
}

/// Writes messages as lines. Returns when there are no more, or nobody reads them.
async fn send(mut stdin: ChildStdin, mut outgoing: mpsc::Receiver<rmcp::model::ClientJsonRpcMessage>) {
    while let Some(message) = outgoing.recv().await {
        let Ok(mut line) = serde_json::to_vec(&message) else { continue };
        line.push(b'\n');
        if stdin.write_all(&line).await.is_err() || stdin.flush().await.is_err() {
            // The end of its output says more.
            std::future::pending::<()>().await;
        }
    }
}

/// Reads lines as messages. Returns true at the end of the output, and false if nobody wants more.
async fn receive(
    stdout: ChildStdout,
    incoming: &mpsc::Sender<ServerJsonRpcMessage>,
    state: &ReadState,
) -> Result<bool, SourceFault> {
    let mut reader = BufReader::new(stdout);
    loop {
        let mut line = Vec::new();
        if read_line(&mut reader, &mut line, state).await? == 0 {
            return Ok(true);
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let message = message::read(&line).map_err(|fault| match fault {
            // A banner or a line of a log.
            SourceFault::Garbage { text, .. } if !line.trim_ascii_start().starts_with(b"{") => SourceFault::GarbageLine(text),
            other => other,
        })?;
        if incoming.send(message).await.is_err() {
            return Ok(false);
        }
    }
}

/// Reads up to the end of a line, within the bounds.
async fn read_line<R: AsyncRead + Unpin>(
    reader: &mut BufReader<R>,
    line: &mut Vec<u8>,
    state: &ReadState,
) -> Result<usize, SourceFault> {
    let most = u64::try_from(state.limits.bytes).unwrap_or(u64::MAX).saturating_add(1);
    let read = reader.take(most).read_until(b'\n', line).await.map_err(|error| SourceFault::Broken(error.to_string()))?;
    state.count(read)?;
    Ok(read)
}

/// Reads a standard error to its end, and returns the last line with text.
async fn last_line(mut stderr: ChildStderr) -> String {
    let (mut kept, mut buffer) = (Vec::new(), vec![0; 4096]);
    while let Ok(read @ 1..) = stderr.read(&mut buffer).await {
        kept.extend_from_slice(buffer.get(..read).unwrap_or_default());
        let more = kept.len().saturating_sub(KEPT);
        kept.drain(..more);
    }
    let text = String::from_utf8_lossy(&kept);
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().to_owned()
}
