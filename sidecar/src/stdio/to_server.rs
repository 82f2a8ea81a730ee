//! The way from a client to a server on pipes. A call that needs a list of the server's tools waits for it, and what the client sends
//! meanwhile keeps its place behind it.

use std::{collections::VecDeque, pin::Pin, sync::Arc, time::Instant};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};

use super::{
    asked_line::AskedLines,
    gate::{ClientMessageAction, Gate},
    lines::{MessageLines, TooLong, write_line},
    pipe_answers::WaitingPipeAnswers,
};
use crate::{
    approvals::room::WaitingRoom,
    lists::{Page, PageSource},
    mcp::{list::OwnRequest, scan::Scan},
    record::Arrival,
};

/// The most messages that wait behind a call. Beyond them, and beyond the length of the longest message, the client's pipe is not read.
const MOST_HELD: usize = 64;

/// The way to the server: the client's lines, and between them requests of the sidecar's own.
pub struct ToServer<W> {
    /// What decides.
    gate: Arc<Gate>,
    longest: usize,
    server: W,
    /// Requests of the sidecar's own, as all who send some do it.
    asking: mpsc::Sender<Vec<u8>>,
    requests: mpsc::Receiver<Vec<u8>>,
    /// Answers to what the server asks for and the client does not get.
    server_answers: WaitingPipeAnswers,
    held: HeldLines,
    asked: AskedLines,
}

/// A list that the sidecar asks for by itself, for the first of the lines that are held.
type Listing = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What comes next.
enum Next {
    /// A line of the client; nothing at its end.
    Line(Option<Result<Vec<u8>, TooLong>>),
    /// A request of the sidecar's own.
    Request(Vec<u8>),
    /// An answer in the client's name.
    ServerAnswer(Bytes),
    /// The end of a list.
    Listed,
    /// A call for which a person was asked, and what is to be done with it.
    Asked(Vec<u8>, ClientMessageAction),
}

impl<W: AsyncWrite + Unpin> ToServer<W> {
    /// A way to a server, for client's messages of at most `longest` bytes. `answers` takes what the gate answers, and `requests` are those
    /// that come by `asking`. The server gets `server_answers` as well.
    pub fn new(
        gate: Arc<Gate>,
        longest: usize,
        server: W,
        answers: mpsc::Sender<Bytes>,
        (asking, requests): (mpsc::Sender<Vec<u8>>, mpsc::Receiver<Vec<u8>>),
        server_answers: WaitingPipeAnswers,
    ) -> Self {
        let asked = AskedLines::new(Arc::clone(&gate), WaitingRoom::new(longest, MOST_HELD), answers.clone());
        let held = HeldLines { gate: Arc::clone(&gate), lines: VecDeque::new(), bytes: 0, answers };
        Self { gate, longest, server, asking, requests, server_answers, held, asked }
    }

    /// Passes lines on until they end or `stop` does, and then closes the server's stdin.
    pub async fn run(mut self, client: impl AsyncRead + Unpin, stop: impl Future<Output = ()>) {
        tokio::select! {
            _ = self.pass_all(client) => {}
            () = stop => {}
        }
        let _ = self.server.shutdown().await;
    }

    async fn pass_all(&mut self, client: impl AsyncRead + Unpin) -> std::io::Result<()> {
        let mut lines = MessageLines::new(client, self.longest);
        let mut scan = Scan::default();
        let (mut listing, mut ended): (Option<Listing>, bool) = (None, false);
        while !(ended && listing.is_none() && self.asked.is_empty()) {
            let reads = !ended && self.held.has_room(self.longest);
            let next = tokio::select! {
                line = lines.next(|part| scan.push(part)), if reads => Next::Line(line?),
                Some(request) = self.requests.recv() => Next::Request(request),
                answer = self.server_answers.next() => Next::ServerAnswer(answer),
                () = end_of(&mut listing), if listing.is_some() => Next::Listed,
                (line, action) = self.asked.next(), if !self.asked.is_empty() => Next::Asked(line, action),
            };
            match next {
                Next::Request(request) => write_line(&mut self.server, &request).await?,
                Next::ServerAnswer(answer) => {
                    let written = write_line(&mut self.server, &answer).await;
                    self.server_answers.written(&written);
                    written?;
                }
                // Nobody makes a call again who has no more to say.
                Next::Line(None) => {
                    ended = true;
                    self.asked.stop();
                }
                Next::Line(Some(Err(TooLong))) => {
                    let action = self.gate.refuse_too_long(self.longest, &std::mem::take(&mut scan).finish());
                    self.carry_out(action, Vec::new()).await?;
                }
                Next::Line(Some(Ok(line))) if line.is_empty() => {}
                // The server may wait for it before it lists anything.
                Next::Line(Some(Ok(line))) if listing.is_some() && !Gate::can_wait(&line) => {
                    let action = self.gate.from_client(&line);
                    self.carry_out(action, line).await?;
                }
                Next::Line(Some(Ok(line))) => self.held.push(line),
                Next::Listed => listing = None,
                Next::Asked(line, action) => self.carry_out(action, line).await?,
            }
            if listing.is_none() {
                listing = self.pass_held().await?;
            }
        }
        Ok(())
    }

    /// Passes on what is held, up to a call that needs a list, which it begins.
    async fn pass_held(&mut self) -> std::io::Result<Option<Listing>> {
        while let Some(held) = self.held.pop() {
            let until = held.arrived.instant + self.gate.lists.own.wait();
            let may_list = !held.listed && Instant::now() < until;
            match self.gate.decide(&held.line, held.arrived, may_list) {
                ClientMessageAction::List { tool } => {
                    let (gate, line) = (Arc::clone(&self.gate), Bytes::copy_from_slice(&held.line));
                    let mut pages = PipePages::new(Arc::clone(&gate), self.asking.clone());
                    self.held.put_back(HeldLine { listed: true, ..held });
                    return Ok(Some(Box::pin(async move { gate.list_for_call(&line, &tool, &mut pages, until).await })));
                }
                ClientMessageAction::Ask => self.asked.push(held.line, held.arrived),
                action => self.carry_out(action, held.line).await?,
            }
        }
        Ok(None)
    }

    /// Does with a line what the gate says.
    async fn carry_out(&mut self, action: ClientMessageAction, mut line: Vec<u8>) -> std::io::Result<()> {
        let cancelled = match action {
            ClientMessageAction::Forward => None,
            ClientMessageAction::Cancel(request) => Some(request),
            ClientMessageAction::Answer(answer) => {
                return self.held.answers.send(answer).await.map_err(|_| std::io::ErrorKind::BrokenPipe.into());
            }
            ClientMessageAction::Drop | ClientMessageAction::Ask | ClientMessageAction::List { .. } => return Ok(()),
        };
        line.push(b'\n');
        self.server.write_all(&line).await?;
        self.server.flush().await?;
        if let Some(request) = cancelled {
            self.gate.under_way.cancel(request);
        }
        Ok(())
    }
}

/// Waits for the end of a list; for ever where there is none.
async fn end_of(listing: &mut Option<Listing>) {
    match listing {
        Some(listing) => listing.as_mut().await,
        None => std::future::pending().await,
    }
}

/// Lines of the client that are not decided on yet, in their order.
struct HeldLines {
    gate: Arc<Gate>,
    lines: VecDeque<HeldLine>,
    bytes: usize,
    /// Answers of the gate to the client.
    answers: mpsc::Sender<Bytes>,
}

struct HeldLine {
    line: Vec<u8>,
    arrived: Arrival,
    /// True where a list was asked for on its account.
    listed: bool,
}

impl HeldLines {
    fn has_room(&self, longest: usize) -> bool {
        self.lines.len() < MOST_HELD && self.bytes <= longest
    }

    fn push(&mut self, line: Vec<u8>) {
        self.bytes += line.len();
        self.lines.push_back(HeldLine { line, arrived: Arrival::now(), listed: false });
    }

    fn pop(&mut self) -> Option<HeldLine> {
        let held = self.lines.pop_front()?;
        self.bytes -= held.line.len();
        Some(held)
    }

    fn put_back(&mut self, held: HeldLine) {
        self.bytes += held.line.len();
        self.lines.push_front(held);
    }
}

impl Drop for HeldLines {
    /// The server has ended, or its stdin is closed. What waits is decided and counted with what is known: a call that is denied is
    /// answered, and one that is not is among those that the server leaves without an answer.
    fn drop(&mut self) {
        let asked = AskedLines::new(Arc::clone(&self.gate), WaitingRoom::new(0, 0), self.answers.clone());
        for held in std::mem::take(&mut self.lines) {
            match self.gate.decide(&held.line, held.arrived, false) {
                ClientMessageAction::Answer(answer) => drop(self.answers.try_send(answer)),
                ClientMessageAction::Ask => asked.push(held.line, held.arrived),
                _ => {}
            }
        }
    }
}

/// Asks a server on pipes for pages of a list.
pub struct PipePages {
    gate: Arc<Gate>,
    to_server: mpsc::Sender<Vec<u8>>,
}

impl PipePages {
    /// Pages that are asked for by `to_server`.
    pub fn new(gate: Arc<Gate>, to_server: mpsc::Sender<Vec<u8>>) -> Self {
        Self { gate, to_server }
    }
}

impl PageSource for PipePages {
    async fn page(&mut self, request: Vec<u8>, own: OwnRequest<'_>) -> Option<Page> {
        let page = self.gate.lists.expected.expect(own)?;
        self.to_server.send(request).await.ok()?;
        page.await.ok()?
    }
}
