//! `toolweir-sidecar stdio`: governs a server that speaks on stdin and stdout, one message a line
//! (MCP 2025-11-25, Transports, "stdio").

use std::{path::PathBuf, process::Stdio, sync::Arc};

use anyhow::Context;
use bytes::Bytes;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader},
    process::Command,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::JoinSet,
};
use toolweir_engine::{Call, Memory, Options, json::Raw};

use crate::{
    admin::{self, Face, LogLevel, State},
    governor::{Arrival, Counts, Decided, Governor, Outcome},
    mcp::{
        answer,
        list::Filtered,
        method_label,
        request::{Message, Refusal, Request, parse},
        sse::spells_tools,
    },
    metrics::Metrics,
    proxy::{body::filter_list, failure::Failure},
    run::govern,
    source::Urls,
    under_way::{Answers, Kept, UnderWay},
};

/// What `stdio` is told.
#[derive(Clone)]
pub struct Config {
    /// The policy file or folder.
    pub policy: PathBuf,
    /// The server's name in the policy.
    pub server: String,
    /// The server's program and its arguments.
    pub command: Vec<String>,
    /// Where metrics and health are served, if anywhere.
    pub metrics_listen: Option<String>,
    /// Where audit lines go; else to stderr, since stdout is the protocol's.
    pub audit_log: Option<PathBuf>,
    /// The longest message, in bytes.
    pub longest: usize,
    /// How many live counts are kept.
    pub counters: usize,
    /// What is known of the pod.
    pub options: Options,
}

/// Runs the server until it or the client ends. Gives the exit code of the server.
///
/// # Errors
/// The policy is not in order or does not name the server, or the program cannot be started.
pub async fn run(config: Config, log_level: LogLevel) -> anyhow::Result<u8> {
    let audit: Box<dyn std::io::Write + Send> = match &config.audit_log {
        None => Box::new(std::io::stderr()),
        Some(path) => {
            let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
            Box::new(file.with_context(|| format!("--audit-log {}", path.display()))?)
        }
    };
    let metrics = Arc::new(Metrics::new()?);
    // No call waits here: limits across pods are refused as the policy is read.
    let counts = Counts { memory: Memory::new(config.counters), store: None };
    let (governor, watch) = govern(&config.policy, Urls::Unused, metrics, counts, config.options.clone(), audit)?;
    if governor.in_force().server(&config.server).is_none() {
        anyhow::bail!(
            "no policy in {} names the server {}; nothing could be called there",
            config.policy.display(),
            config.server
        );
    }
    if let Some(address) = &config.metrics_listen {
        let listener = admin::bind(address, "--metrics-listen").await?;
        let (_, stopping) = tokio::sync::watch::channel(false);
        tokio::spawn(admin::serve(listener, Face::Metrics, State { governor: Arc::clone(&governor), stopping, log_level }));
    }
    tokio::spawn(watch.run(Arc::clone(&governor)));
    let (program, arguments) = config.command.split_first().context("name the server's command after --")?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("{program} cannot be started"))?;
    let (stdin, stdout) = (child.stdin.take().context("no stdin")?, child.stdout.take().context("no stdout")?);
    let gate = Gate { governor: Arc::clone(&governor), server: config.server.clone(), under_way: UnderWay::default() };
    let relay = relay(Arc::new(gate), config.longest, tokio::io::stdin(), tokio::io::stdout(), stdin, stdout);
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        done = relay => done?,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    // Its stdin is closed now, which is how a client ends a server (MCP 2025-11-25, Lifecycle, "Shutdown").
    let status = match tokio::time::timeout(std::time::Duration::from_secs(5), child.wait()).await {
        Ok(status) => status?,
        Err(_) => {
            child.kill().await?;
            child.wait().await?
        }
    };
    governor.audit().close();
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// Decides on the messages of one client and one server.
#[derive(Debug)]
pub struct Gate {
    /// The policies in force and the record of decisions.
    pub governor: Arc<Governor>,
    /// The server's name in the policy.
    pub server: String,
    /// Requests without an answer yet.
    pub under_way: UnderWay,
}

/// What happens to a client's message.
#[derive(Debug, PartialEq, Eq)]
pub enum Passage {
    /// It goes to the server.
    Forward,
    /// The client gets this answer.
    Answer(Bytes),
    /// It goes nowhere.
    Drop,
}

impl Gate {
    /// Decides on a message of the client: a line without its end.
    pub fn from_client(&self, line: &[u8]) -> Passage {
        let in_force = self.governor.in_force();
        let server = in_force.server(&self.server).map(|server| &**server);
        let count = |method: &str, outcome| self.governor.count(server, method, outcome);
        let arrived = Arrival::now();
        let request = match read(line) {
            Err(refusal) => {
                count("_none", Outcome::Refused);
                tracing::info!(server = self.server, failure = refusal.in_general(), "request refused");
                return Passage::Answer(answer::refusal(None, &refusal));
            }
            Ok(Message::Answer) => {
                let (passage, outcome) = if self.closed(&in_force).is_some() {
                    (Passage::Drop, Outcome::Dropped)
                } else {
                    (Passage::Forward, Outcome::Ok)
                };
                count("_answer", outcome);
                return passage;
            }
            Ok(Message::Request(request)) => request,
        };
        let method = method_label(&request.method);
        // An answer is known by its id alone.
        let mut kept = match request.id.map(|id| self.under_way.keep(id)).transpose() {
            Ok(kept) => kept,
            Err(why) => {
                let failure = Failure::from(why);
                count(method, failure.outcome());
                tracing::info!(server = self.server, method, failure = failure.in_general(), "request refused");
                return Passage::Answer(answer::error(request.id.map(Raw::as_str), failure.code(), &failure.to_string()));
            }
        };
        if !request.is_tool_call() {
            return match self.closed(&in_force) {
                None => {
                    kept.iter_mut().for_each(Kept::sent);
                    count(method, Outcome::Ok);
                    Passage::Forward
                }
                Some(denial) if request.id.is_some() => {
                    count(method, Outcome::Denied);
                    Passage::Answer(answer::denial(&request, &denial))
                }
                Some(_) => {
                    count(method, Outcome::Dropped);
                    Passage::Drop
                }
            };
        }
        let (passage, outcome) = self.tool_call(&in_force, &request, kept, arrived);
        count(method, outcome);
        passage
    }

    /// The denial of everything, if there is one.
    fn closed(&self, in_force: &crate::governor::InForce) -> Option<toolweir_engine::Denial> {
        match in_force.server(&self.server) {
            None => Some(toolweir_engine::Denial::no_policy(&self.server, "")),
            Some(_) => in_force.engine.closed(&self.server),
        }
    }

    fn tool_call(
        &self,
        in_force: &crate::governor::InForce,
        request: &Request<'_>,
        kept: Option<Kept<'_>>,
        arrived: Arrival,
    ) -> (Passage, Outcome) {
        let tool = request.params.name.as_deref().unwrap_or_default();
        let call = Call { server: &self.server, tool, arguments: request.params.arguments, session: "" };
        let Some(mut kept) = kept else {
            let decision = crate::governor::dropped(&call);
            self.governor.record(in_force, &call, decision, arrived).1.finish(Outcome::Dropped);
            return (Passage::Drop, Outcome::Dropped);
        };
        match self.governor.decide(in_force, &call, arrived) {
            (Decided::Allowed(permit), record) => {
                kept.hold(permit);
                kept.sent();
                record.finish(Outcome::Ok);
                (Passage::Forward, Outcome::Ok)
            }
            (Decided::Denied(denial), record) => {
                record.finish(Outcome::Denied);
                (Passage::Answer(answer::denial(request, &denial)), Outcome::Denied)
            }
        }
    }

    /// Takes a message of the server, and gives what replaces it where it shows what may not be called. Nothing when
    /// it is dropped: a list that cannot be read.
    pub fn from_server(&self, line: &[u8]) -> Option<Option<Vec<u8>>> {
        self.under_way.answered(line);
        if !spells_tools(line) {
            return Some(None);
        }
        let hidden = self.governor.metrics.tools_hidden.with_label_values(&[self.server.as_str()]);
        match filter_list(&self.governor, &self.server, &hidden, line) {
            Ok(Filtered::Same) => Some(None),
            Ok(Filtered::Edited(edited)) => Some(Some(edited)),
            // A client that is less strict may read what this cannot.
            Err(error) => {
                tracing::warn!(server = self.server, %error, "a message of the server was dropped: a list of tools that cannot be read");
                None
            }
        }
    }
}

fn read(line: &[u8]) -> Result<Message<'_>, Refusal> {
    // Python's servers end a line at CR too, so that what stands after one would be a message of its own there.
    if memchr::memchr(b'\r', line).is_some() {
        return Err(Refusal::CarriageReturn);
    }
    parse(line)
}

/// How many times as long as a message of the client one of the server may be: it holds what tools give, such as pictures,
/// and a client waits for ever for one that is dropped.
const ANSWERS: usize = 16;

/// Passes lines between client and server until one of them ends.
///
/// # Errors
/// A pipe cannot be read or written.
pub async fn relay(
    gate: Arc<Gate>,
    longest: usize,
    client_in: impl AsyncRead + Unpin + Send + 'static,
    mut client_out: impl AsyncWrite + Unpin,
    mut server_in: impl AsyncWrite + Unpin + Send + 'static,
    server_out: impl AsyncRead + Unpin,
) -> std::io::Result<()> {
    // One writer for the client: answers of the server and of the gate must not mix within a line.
    let (answers, mut answered) = mpsc::channel::<Bytes>(16);
    let inbound = {
        let gate = Arc::clone(&gate);
        async move {
            let mut lines = Lines::new(client_in, longest);
            while let Some(line) = lines.next(|_| ()).await? {
                let passage = match &line {
                    Ok(line) if line.is_empty() => Passage::Drop,
                    Ok(line) => gate.from_client(line),
                    Err(TooLong) => {
                        let server = gate.governor.in_force();
                        gate.governor.count(server.server(&gate.server).map(|server| &**server), "_none", Outcome::Refused);
                        Passage::Answer(answer::refusal(None, &Refusal::TooLarge(longest)))
                    }
                };
                match (passage, line) {
                    (Passage::Forward, Ok(mut line)) => {
                        line.push(b'\n');
                        server_in.write_all(&line).await?;
                        server_in.flush().await?;
                    }
                    (Passage::Answer(answer), _) => {
                        let Ok(()) = answers.send(answer).await else { break };
                    }
                    _ => {}
                }
            }
            // The client has ended: the server's stdin closes with this.
            server_in.shutdown().await
        }
    };
    // Ends with this function, however that ends: the server's stdin closes then.
    let mut reading = JoinSet::new();
    reading.spawn(inbound);
    let longest = longest.saturating_mul(ANSWERS);
    let mut lines = Lines::new(server_out, longest);
    let mut dropped = Answers::default();
    loop {
        tokio::select! {
            Some(answer) = answered.recv() => write_line(&mut client_out, &answer).await?,
            line = lines.next(|part| dropped.push(part, &gate.under_way)) => {
                let Some(line) = line? else { break };
                let Ok(line) = line else {
                    // What it answered is over.
                    dropped.finish(&gate.under_way);
                    tracing::warn!(server = gate.server, longest, "a message of the server was dropped: it is too long");
                    continue;
                };
                if let Some(replaced) = gate.from_server(&line) {
                    write_line(&mut client_out, replaced.as_deref().unwrap_or(&line)).await?;
                }
            }
        }
    }
    reading.shutdown().await;
    while let Ok(answer) = answered.try_recv() {
        write_line(&mut client_out, &answer).await?;
    }
    Ok(())
}

async fn write_line(out: &mut (impl AsyncWrite + Unpin), line: &[u8]) -> std::io::Result<()> {
    out.write_all(line).await?;
    out.write_all(b"\n").await?;
    out.flush().await
}

/// A line that is longer than is held; it was passed over.
struct TooLong;

/// Lines of at most a length. `next` may be cancelled: what was read stays.
struct Lines<R> {
    reader: BufReader<R>,
    line: Vec<u8>,
    longest: usize,
    over: bool,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    fn new(reader: R, longest: usize) -> Self {
        Self { reader: BufReader::with_capacity(64 * 1024, reader), line: Vec::new(), longest, over: false }
    }

    /// The next line. One that is too long goes part by part to `passed_over`.
    async fn next(&mut self, mut passed_over: impl FnMut(&[u8])) -> std::io::Result<Option<Result<Vec<u8>, TooLong>>> {
        loop {
            let buffer = self.reader.fill_buf().await?;
            let ended = buffer.is_empty();
            let end = memchr::memchr(b'\n', buffer);
            let part = buffer.get(..end.unwrap_or(buffer.len())).unwrap_or_default();
            let taken = part.len() + usize::from(end.is_some());
            if !self.over && self.line.len() + part.len() > self.longest {
                self.over = true;
                passed_over(&std::mem::take(&mut self.line));
            }
            if self.over {
                passed_over(part);
            } else {
                self.line.extend_from_slice(part);
            }
            self.reader.consume(taken);
            if end.is_some() || (ended && (!self.line.is_empty() || self.over)) {
                let mut line = std::mem::take(&mut self.line);
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                return Ok(Some(if std::mem::take(&mut self.over) { Err(TooLong) } else { Ok(line) }));
            }
            if ended {
                return Ok(None);
            }
        }
    }
}
