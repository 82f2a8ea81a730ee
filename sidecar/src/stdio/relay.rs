//! Passes the messages between a client and a server on pipes.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Notify, mpsc},
    task::JoinSet,
    time::Instant,
};

use super::{
    gate::{Gate, ServerMessageAction},
    keeper::LINGER,
    lines::{MessageLines, TooLong, write_line},
    to_server::{PipePages, ToServer},
};
use crate::{lists::fill, mcp::answer_finder::AnswerFinder, policy_changes::PolicyChanges};

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
    // Ends with this function, however that ends: the server's stdin closes then.
    let mut reading = JoinSet::new();
    let way = ToServer::new(Arc::clone(&gate), longest, server_in, answers, (to_server.clone(), requests));
    let ends = Arc::clone(&signals);
    reading.spawn(async move {
        way.run(client_in, ends.stop.notified()).await;
        ends.input.notify_one();
    });
    let longest = longest.saturating_mul(ANSWERS);
    let mut to_client = ToClient { gate, longest, client: client_out, answered, to_server, filling: JoinSet::new() };
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
}

/// The next thing for the client.
enum Next {
    /// An answer of the gate.
    Answer(Bytes),
    /// Other policies govern the server.
    Changed,
    /// A line of the server; nothing at its end.
    Line(Option<Result<Vec<u8>, TooLong>>),
}

impl<W: AsyncWrite + Unpin> ToClient<W> {
    /// Passes the server's lines on until they end, or until [`LINGER`] after the server has.
    async fn run(&mut self, server: impl AsyncRead + Unpin, signals: &RelaySignals) -> std::io::Result<()> {
        let mut lines = MessageLines::new(server, self.longest);
        let mut dropped = AnswerFinder::default();
        let mut changes = PolicyChanges::watch(&self.gate.governor, &self.gate.server);
        let mut cut = std::pin::pin!(async {
            signals.server.notified().await;
            tokio::time::sleep(LINGER).await;
        });
        loop {
            let Self { gate, answered, filling, .. } = self;
            let next = async {
                tokio::select! {
                    Some(answer) = answered.recv() => Ok(Next::Answer(answer)),
                    line = lines.next(|part| dropped.push(part, &mut |id| gate.under_way.answered(id))) => line.map(Next::Line),
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
                Next::Line(Some(Ok(line))) => self.pass(&line).await?,
                Next::Line(Some(Err(TooLong))) => {
                    // What it answered is over.
                    dropped.finish(&mut |id| self.gate.under_way.answered(id));
                    let (server, longest) = (&self.gate.server, self.longest);
                    tracing::warn!(server, longest, "a message of the server was dropped: it is too long");
                }
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

    /// Passes a line of the server on, as the gate says.
    async fn pass(&mut self, line: &[u8]) -> std::io::Result<()> {
        match self.gate.from_server(line) {
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
            ServerMessageAction::Drop => Ok(()),
        }
    }

    /// Gives the client what is left for it once the server has ended.
    async fn finish(self) -> std::io::Result<()> {
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
