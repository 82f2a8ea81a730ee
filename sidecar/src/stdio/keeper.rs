//! Nothing that a server starts outlives the sidecar.
//!
//! ```text
//! client ── sidecar ── keeper ── server ── whatever that starts
//! ```
//!
//! The keeper is this program once more, under a hidden subcommand and in a process group of its own, so that no signal to
//! the sidecar's group ends it. It starts the server as the leader of another group, which has the pipes of the sidecar and
//! its stderr; the keeper itself holds none of these pipes. It is a subreaper (prctl(2), `PR_SET_CHILD_SUBREAPER`): who
//! loses its parent, in whatever group or session it is, becomes a child of the keeper. So killing whoever is below it until
//! nobody is reaches everybody. The number of a child is not given away before its parent has taken its end; who is further
//! below is killed by a file descriptor that was looked at once more (`pidfd_open`): nobody else is reached. The keeper ends
//! the server
//!
//! - when the sidecar tells it so by SIGTERM: the server's group gets SIGTERM at once; who lives [`GRACE`] later is killed;
//! - when the sidecar is gone, even by SIGKILL: the kernel then sends what the keeper chose
//!   (`PR_SET_PDEATHSIG`), and the same happens within [`ORPHANED`];
//! - when the server has ended by itself: what it started has [`LINGER`] to end too, such as a filter that writes the rest
//!   of what the server said.
//!
//! It ends with the server's exit code once nobody is left. The sidecar is a subreaper as well: should somebody kill the
//! keeper, the same is done there. Children that the sidecar had before, from a shell that became it, are left alone.

use std::{
    collections::HashMap,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::Stdio,
    time::Duration,
};

use anyhow::Context;
use rustix::{
    io::Errno,
    process::{
        Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, getpid, getppid, kill_process, kill_process_group, pidfd_open,
        pidfd_send_signal, set_child_subreaper, set_parent_process_death_signal, wait,
    },
    stdio::{dup2_stdin, dup2_stdout},
};
use tokio::{
    process::{Child, ChildStdin, ChildStdout, Command},
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep, sleep_until},
};

/// The hidden subcommand. It takes the number of the sidecar's process, and behind `--` the server's command.
pub const SUBCOMMAND: &str = "keep-server";

/// The time that a server has to stop when it is told to. Clients kill the sidecar 2 s after they told it (MCP 2025-11-25,
/// Lifecycle, "Shutdown").
pub const GRACE: Duration = Duration::from_millis(1500);

/// The time that a server has to stop when its sidecar is gone.
pub const ORPHANED: Duration = Duration::from_millis(500);

/// The time that processes which a server started have to end once the server has.
pub const LINGER: Duration = Duration::from_millis(500);

/// The time for which killed processes are waited for. One that the kernel holds, or of another user, may not end.
const KILLING: Duration = Duration::from_secs(5);

/// The time that a keeper has to end everything when it is told to stop. One that does not, as it was stopped itself, is killed.
pub const STOPPING: Duration = Duration::from_secs(8);

/// The time between two looks at children that were killed.
const PAUSE: Duration = Duration::from_millis(5);

/// The exit code of a process that a signal ended is this and the signal's number, as in shells.
const BY_SIGNAL: i32 = 128;

/// The keeper, as the sidecar sees it.
#[derive(Debug)]
pub struct ServerProcess {
    child: Child,
    /// Children of this process that it had before.
    spared: Vec<Pid>,
}

impl ServerProcess {
    /// Starts the keeper, and the server through it. Gives the server's stdin and stdout as well.
    ///
    /// # Errors
    /// The keeper cannot be started. If the server cannot, the keeper says so on stderr.
    pub fn start(command: &[String]) -> anyhow::Result<(Self, ChildStdin, ChildStdout)> {
        let spared = Process::all().into_iter().filter(|process| process.parent == getpid()).map(|process| process.pid).collect();
        set_child_subreaper(Some(getpid())).context("prctl(PR_SET_CHILD_SUBREAPER)")?;
        // By this name it is the program that runs, also where the file was replaced.
        let mut child = Command::new("/proc/self/exe")
            .arg0("toolweir-sidecar")
            .args([SUBCOMMAND, &getpid().as_raw_nonzero().to_string(), "--"])
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("/proc/self/exe cannot be started")?;
        let (stdin, stdout) = (child.stdin.take().context("no stdin")?, child.stdout.take().context("no stdout")?);
        Ok((Self { child, spared }, stdin, stdout))
    }

    /// Makes the keeper end the server: by SIGTERM now, by SIGKILL after [`GRACE`].
    pub fn stop(&self) {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        // Somebody may have stopped it.
        if let Some(Err(error)) = pid.map(|pid| kill_process(pid, Signal::TERM).and(kill_process(pid, Signal::CONT))) {
            tracing::warn!(%error, "cannot tell the server to stop");
        }
    }

    /// Kills the keeper; [`ServerProcess::ended`] does its work then.
    pub fn kill(&mut self) {
        if let Err(error) = self.child.start_kill() {
            tracing::warn!(%error, "cannot kill the keeper of the server");
        }
    }

    /// Waits until nobody is left, and gives the server's exit code: 128 and the signal's number if one ended it. May be
    /// cancelled.
    ///
    /// # Errors
    /// The end of a process cannot be waited for.
    pub async fn ended(&mut self) -> std::io::Result<u8> {
        let status = self.child.wait().await?;
        // Else it has ended them all.
        if status.signal().is_some() {
            end_all(&self.spared, |_, _| ()).await;
        }
        Ok(code(status.code(), status.signal()))
    }
}

fn code(exited: Option<i32>, signal: Option<i32>) -> u8 {
    exited.or(signal.map(|signal| BY_SIGNAL + signal)).and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// Is the keeper of a server: starts it, and gives its exit code once nobody is left.
///
/// # Errors
/// The server cannot be started.
pub async fn keep_server(parent: i32, command: &[String]) -> anyhow::Result<u8> {
    let (program, arguments) = command.split_first().context("name the server's command")?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (mut orphaned, mut child) = (signal(SignalKind::hangup())?, signal(SignalKind::child())?);
    set_child_subreaper(Some(getpid())).context("prctl(PR_SET_CHILD_SUBREAPER)")?;
    set_parent_process_death_signal(Some(Signal::HUP)).context("prctl(PR_SET_PDEATHSIG)")?;
    // It may be gone already, and then no signal comes.
    anyhow::ensure!(getppid().map(|pid| pid.as_raw_nonzero().get()) == Some(parent), "only `stdio` starts this");
    let server = std::process::Command::new(program)
        .args(arguments)
        .process_group(0)
        .spawn()
        .with_context(|| format!("{program} cannot be started"))?;
    let server = Pid::from_child(&server);
    leave_pipes()?;
    let (mut ended, mut until) = (None, None);
    loop {
        let lives = ended.is_none();
        if !reap(|pid, status| note(&mut ended, server, pid, status)) {
            break;
        }
        if lives && ended.is_some() {
            until = Some(sooner(until, LINGER));
        }
        let grace = tokio::select! {
            _ = child.recv() => continue,
            _ = terminate.recv() => GRACE,
            _ = interrupt.recv() => GRACE,
            _ = orphaned.recv() => ORPHANED,
            () = wait_until(until) => break,
        };
        // The number of a group whose leader has ended may be given away.
        if ended.is_none() {
            let _ = kill_process_group(server, Signal::TERM);
        }
        until = Some(sooner(until, grace));
    }
    end_all(&[], |pid, status| note(&mut ended, server, pid, status)).await;
    Ok(ended.unwrap_or(1))
}

/// Remembers how the server ended.
fn note(ended: &mut Option<u8>, server: Pid, pid: Pid, status: WaitStatus) {
    if pid == server {
        *ended = Some(code(status.exit_status(), status.terminating_signal()));
    }
}

fn sooner(until: Option<Instant>, span: Duration) -> Instant {
    let then = Instant::now() + span;
    until.map_or(then, |until| until.min(then))
}

/// Waits for a point in time, or for ever.
pub(super) async fn wait_until(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}

/// Closes this process's ends of the server's pipes: each side sees there what the other does.
fn leave_pipes() -> anyhow::Result<()> {
    let nothing = std::fs::File::options().read(true).write(true).open("/dev/null").context("/dev/null")?;
    dup2_stdin(&nothing).context("stdin")?;
    dup2_stdout(&nothing).context("stdout")?;
    Ok(())
}

/// Takes the ends of children, and says whether one is left.
fn reap(mut ended: impl FnMut(Pid, WaitStatus)) -> bool {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => ended(pid, status),
            Ok(None) => return true,
            Err(Errno::INTR) => {}
            // There is none.
            Err(_) => return false,
        }
    }
}

/// Kills whoever is below this process until nobody is, but for the spared children and who is below these.
async fn end_all(spared: &[Pid], mut ended: impl FnMut(Pid, WaitStatus)) {
    let until = Instant::now() + KILLING;
    while reap(&mut ended) && Instant::now() < until {
        let below = below(getpid(), spared, Process::all());
        if below.is_empty() {
            break;
        }
        below.iter().for_each(Process::kill);
        sleep(PAUSE).await;
    }
}

/// A process, as `/proc/pid/stat` tells of it (proc(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    pid: Pid,
    parent: Pid,
    /// When it started, in ticks: tells it from another that had its number before.
    started: u64,
}

impl Process {
    /// All of them, as far as this one sees.
    fn all() -> Vec<Self> {
        let process = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw);
        let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(process);
        pids.filter_map(Self::look).collect()
    }

    fn look(pid: Pid) -> Option<Self> {
        Self::read(pid, &std::fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Its second field is a name in brackets, which may hold anything; the state and the parent follow, and the start is the
    /// 22nd field of all.
    fn read(pid: Pid, stat: &[u8]) -> Option<Self> {
        let behind = stat.get(memchr::memrchr(b')', stat)? + 1..)?;
        let mut fields = std::str::from_utf8(behind).ok()?.split_ascii_whitespace();
        let parent = fields.nth(1)?.parse().ok().and_then(Pid::from_raw)?;
        Some(Self { pid, parent, started: fields.nth(17)?.parse().ok()? })
    }

    fn kill(&self) {
        if self.parent == getpid() {
            let _ = kill_process(self.pid, Signal::KILL);
        } else if let Ok(open) = pidfd_open(self.pid, PidfdFlags::empty())
            && Self::look(self.pid) == Some(*self)
        {
            let _ = pidfd_send_signal(open, Signal::KILL);
        }
    }
}

/// Who is below a process: its children but for the spared ones, their children, and so on.
fn below(top: Pid, spared: &[Pid], all: Vec<Process>) -> Vec<Process> {
    let mut children: HashMap<Pid, Vec<Process>> = HashMap::new();
    for process in all {
        children.entry(process.parent).or_default().push(process);
    }
    let mut found = children.remove(&top).unwrap_or_default();
    found.retain(|child| !spared.contains(&child.pid));
    let mut next = 0;
    while let Some(process) = found.get(next) {
        found.extend(children.remove(&process.pid).unwrap_or_default());
        next += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pid(number: i32) -> Pid {
        Pid::from_raw(number).unwrap()
    }

    #[test]
    fn a_process_is_read_behind_a_name_that_looks_like_more() {
        let rest = "77 77 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 2 3";
        for name in ["(sh)", "(a) S 5 (b)", "()"] {
            let read = Process::read(pid(77), format!("77 {name} S 12 {rest}").as_bytes());
            assert_eq!(read, Some(Process { pid: pid(77), parent: pid(12), started: 4711 }), "{name}");
        }
        assert_eq!(Process::read(pid(2), format!("2 (kthreadd) S 0 {rest}").as_bytes()), None);
        assert_eq!(Process::read(pid(2), b""), None);
        let own = Process::look(getpid()).unwrap();
        assert_eq!((Some(own.parent), Process::look(getpid())), (getppid(), Some(own)));
    }

    #[test]
    fn those_below_are_found_however_deep_and_the_spared_left_out() {
        let process = |number, parent| Process { pid: pid(number), parent: pid(parent), started: 0 };
        let all = vec![process(9, 8), process(3, 2), process(2, 1), process(4, 3), process(8, 1), process(7, 6), process(5, 1)];
        let mut found: Vec<_> = below(pid(1), &[pid(8)], all).iter().map(|process| process.pid.as_raw_nonzero().get()).collect();
        found.sort_unstable();
        assert_eq!(found, [2, 3, 4, 5]);
    }
}
