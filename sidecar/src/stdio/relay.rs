//! Passes the messages between a client and a server on pipes.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Notify, mpsc},
    task::JoinSet,
    time::Instant,
};

use super::{
    gate::Gate,
    keeper::LINGER,
    lines::{MessageLines, TooLong, write_line},
    pipe_answers::{PipeAnswers, pipe_answers},
    server_line::{JudgedLines, ServerMessageAction},
    to_server::{PipePages, ToServer},
};
use crate::{lists::fill, mcp::answer_finder::AnswerFinder, pending::AnsweredRequest, policy_changes::PolicyChanges};

/// The factor by which a message of the server may be longer than one of the client: it holds what tools give, such as pictures,
/// and a client waits for ever for one that is dropped.
const ANSWERS: usize = 16;

/// The most pages of lists that are filled at once.
const MOST_FILLED: usize = 4;
/// The time that filling a page may take: as long as a server over HTTP may take to begin an answer.
const FILL_TIME: Duration = Duration::from_secs(300);

/// Signals between the relay and whoever watches over the server's process.
#[derive(Debug, Default)]
pub struct RelaySignals {
    /// By the relay: the server's stdin is closed, since the client's has ended or the server takes no more.
    pub input: Notify,
    /// To the relay: close the server's stdin.
    pub stop: Notify,
    /// To the relay: the server has ended. What it wrote is read, for [`LINGER`] if somebody holds its stdout open.
    pub server: Notify,
}

/// Passes lines between client and server until the server ends or the client reads no more. Requests that the server left
/// without an answer get one then.
///
/// # Errors
/// The client's pipe cannot be written, or the server's not read.
pub async fn relay(
    gate: Arc<Gate>,
    longest: usize,
    client_in: impl AsyncRead + Unpin + Send + 'static,
    client_out: impl AsyncWrite + Unpin,
    server_in: impl AsyncWrite + Unpin + Send + 'static,
    server_out: impl AsyncRead + Unpin,
    signals: Arc<RelaySignals>,
) -> std::io::Result<()> {
    // One writer for the client: answers of the server and of the gate must not mix within a line.
    let (answers, answered) = mpsc::channel::<Bytes>(16);
    // And one for the server.
    let (to_server, requests) = mpsc::channel::<Vec<u8>>(1);
    let (server_answers, waiting) = pipe_answers(&gate.governor, &gate.server);
    // Ends with this function, however that ends: the server's stdin closes then.
    let mut reading = JoinSet::new();
    let way = ToServer::new(Arc::clone(&gate), longest, server_in, answers, (to_server.clone(), requests), waiting);
    let ends = Arc::clone(&signals);
    reading.spawn(async move {
        way.run(client_in, ends.stop.notified()).await;
        ends.input.notify_one();
    });
    let longest = longest.saturating_mul(ANSWERS);
    let judged = JudgedLines::new(Arc::clone(&gate));
    let filling = JoinSet::new();
    let mut to_client = ToClient { gate, longest, client: client_out, answered, to_server, filling, judged, server_answers };
    to_client.run(server_out, &signals).await?;
    reading.shutdown().await;
    to_client.finish().await
}

/// The way to the client: the server's lines, answers of the gate, pages of lists, and notifications of changes.
struct ToClient<W> {
    gate: Arc<Gate>,
    longest: usize,
    client: W,
    /// Answers of the gate.
    answered: mpsc::Receiver<Bytes>,
    /// Requests of the sidecar's own to the server.
    to_server: mpsc::Sender<Vec<u8>>,
    /// Pages of lists that are filled from the next.
    filling: JoinSet<Bytes>,
    /// Lines of the server whose decision waits.
    judged: JudgedLines,
    /// Answers to what the server asks for and the client does not get.
    server_answers: PipeAnswers,
}

/// What was found in a line of the server that is too long, as far as it has come.
#[derive(Default)]
struct PassedOver {
    finder: AnswerFinder,
    bytes: usize,
    answered: SmallVec<[AnsweredRequest; 1]>,
}

impl PassedOver {
    /// Takes a part of it.
    fn push(&mut self, part: &[u8], gate: &Gate) {
        self.bytes += part.len();
        self.finder.push(part, &mut |id| self.answered.extend(gate.under_way.take(id)));
    }

    /// Takes its end. Gives the answers to the requests that it answers.
    fn finish(self, gate: &Gate, longest: usize) -> SmallVec<[Bytes; 1]> {
        let Self { mut finder, bytes, mut answered } = self;
        finder.finish(&mut |id| answered.extend(gate.under_way.take(id)));
        gate.too_long(answered, bytes, longest)
    }
}

/// The next thing for the client.
enum Next {
    /// An answer of the gate.
    Answer(Bytes),
    /// Other policies govern the server.
    Changed,
    /// A line of the server; nothing at its end.
    Line(Option<Result<Vec<u8>, TooLong>>),
    /// A line of the server that had to wait for the decision on it.
    Judged(Vec<u8>, ServerMessageAction),
}

impl<W: AsyncWrite + Unpin> ToClient<W> {
    /// Passes the server's lines on until they end, or until [`LINGER`] after the server has.
    async fn run(&mut self, server: impl AsyncRead + Unpin, signals: &RelaySignals) -> std::io::Result<()> {
        let mut lines = MessageLines::new(server, self.longest);
        let mut dropped = PassedOver::default();
        let mut changes = PolicyChanges::watch(&self.gate.governor, &self.gate.server);
        let mut cut = std::pin::pin!(async {
            signals.server.notified().await;
            tokio::time::sleep(LINGER).await;
        });
        loop {
            let Self { gate, answered, filling, judged, .. } = self;
            let next = async {
                tokio::select! {
                    Some(answer) = answered.recv() => Ok(Next::Answer(answer)),
                    line = lines.next(|part| dropped.push(part, gate)), if judged.has_room() => line.map(Next::Line),
                    Some((line, action)) = judged.next() => Ok(Next::Judged(line, action)),
                    Some(Ok(page)) = filling.join_next() => Ok(Next::Answer(page)),
                    () = changes.next() => Ok(Next::Changed),
                }
            };
            let next = tokio::select! {
                biased;
                next = next => next?,
                () = &mut cut => return Ok(()),
            };
            match next {
                Next::Line(Some(Ok(line))) => {
                    if let Some((line, action)) = self.judged.push(line) {
                        self.carry_out(&line, action).await?;
                    }
                }
                Next::Line(Some(Err(TooLong))) => {
                    for answer in std::mem::take(&mut dropped).finish(&self.gate, self.longest) {
                        write_line(&mut self.client, &answer).await?;
                    }
                }
                Next::Judged(line, action) => self.carry_out(&line, action).await?,
                Next::Line(None) => return Ok(()),
                Next::Answer(answer) => write_line(&mut self.client, &answer).await?,
                Next::Changed => {
                    let messages: Vec<String> = self.gate.listeners().messages().collect();
                    for message in messages {
                        write_line(&mut self.client, message.as_bytes()).await?;
                    }
                }
            }
        }
    }

    /// Does with a line of the server what the gate says.
    async fn carry_out(&mut self, line: &[u8], action: ServerMessageAction) -> std::io::Result<()> {
        match action {
            ServerMessageAction::Forward => write_line(&mut self.client, line).await,
            ServerMessageAction::Replace(new) => write_line(&mut self.client, &new).await,
            ServerMessageAction::Fill(_, page) if self.filling.len() >= MOST_FILLED => {
                write_line(&mut self.client, &page.message).await
            }
            ServerMessageAction::Fill(asked, page) => {
                let mut pages = PipePages::new(Arc::clone(&self.gate), self.to_server.clone());
                let until = Instant::now() + FILL_TIME;
                self.filling.spawn(async move { fill(&asked, page, &mut pages, until).await.message });
                Ok(())
            }
            ServerMessageAction::Answer { client, server } => {
                server.into_iter().for_each(|answer| self.server_answers.send(answer, std::time::Instant::now()));
                for answer in client {
                    write_line(&mut self.client, &answer).await?;
                }
                Ok(())
            }
        }
    }

    /// Gives the client what is left for it once the server has ended.
    async fn finish(mut self) -> std::io::Result<()> {
        while let Some((line, action)) = self.judged.next().await {
            self.carry_out(&line, action).await?;
        }
        let Self { gate, mut client, mut answered, to_server, mut filling, .. } = self;
        // Pages that are still empty leave as they are.
        drop(to_server);
        gate.lists.expected.close();
        while let Some(page) = filling.join_next().await {
            if let Ok(page) = page {
                write_line(&mut client, &page).await?;
            }
        }
        while let Ok(answer) = answered.try_recv() {
            write_line(&mut client, &answer).await?;
        }
        for answer in gate.server_ended() {
            write_line(&mut client, &answer).await?;
        }
        Ok(())
    }
}
