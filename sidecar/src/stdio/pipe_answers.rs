//! Answers to requests of a server that its client does not get. They never wait: a server that takes none loses them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::mpsc::{self, error::TrySendError};

use crate::{answer_rate::AnswerRate, governor::Governor, outcome::ServerAnswerEnd};

/// The most answers that wait for the server.
const MOST_WAITING: usize = 64;
/// How often it is logged that answers were dropped.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Counts what becomes of answers.
#[derive(Clone, Debug)]
struct PipeAnswerCounts {
    governor: Arc<Governor>,
    server: Arc<str>,
}

impl PipeAnswerCounts {
    fn count(&self, end: ServerAnswerEnd) {
        self.governor.metrics.servers.server_answers.with_label_values(&[&*self.server, end.as_str()]).inc();
    }
}

/// The end of those that answer a server.
#[derive(Debug)]
pub struct PipeAnswers {
    waiting: mpsc::Sender<Bytes>,
    counts: PipeAnswerCounts,
    rate: AnswerRate,
    /// When it was last logged that one was dropped.
    told: Option<Instant>,
}

/// The end of who writes to the server. Dropped, the answers that wait are counted as failed.
#[derive(Debug)]
pub struct WaitingPipeAnswers {
    waiting: mpsc::Receiver<Bytes>,
    counts: PipeAnswerCounts,
}

/// Returns both ends of the answers to a server.
pub fn pipe_answers(governor: &Arc<Governor>, server: &str) -> (PipeAnswers, WaitingPipeAnswers) {
    let (sender, waiting) = mpsc::channel(MOST_WAITING);
    let counts = PipeAnswerCounts { governor: Arc::clone(governor), server: server.into() };
    let rate = AnswerRate::new(Instant::now());
    (PipeAnswers { waiting: sender, counts: counts.clone(), rate, told: None }, WaitingPipeAnswers { waiting, counts })
}

impl PipeAnswers {
    /// Gives the server an answer, if there is room.
    pub fn send(&mut self, answer: Bytes, now: Instant) {
        let sent = if self.rate.take(now) { self.waiting.try_send(answer) } else { Err(TrySendError::Full(answer)) };
        match sent {
            Ok(()) => {}
            Err(TrySendError::Closed(_)) => self.counts.count(ServerAnswerEnd::Failed),
            Err(TrySendError::Full(_)) => {
                self.counts.count(ServerAnswerEnd::Dropped);
                if self.told.is_none_or(|told| now.saturating_duration_since(told) >= TOLD_EVERY) {
                    self.told = Some(now);
                    let server = &*self.counts.server;
                    tracing::warn!(server, "the server asks for more than it is answered; requests go without an answer");
                }
            }
        }
    }
}

impl WaitingPipeAnswers {
    /// The next one. For ever where none comes any more. May be cancelled.
    pub async fn next(&mut self) -> Bytes {
        match self.waiting.recv().await {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }

    /// The answer was written, or could not be.
    pub fn written(&self, result: &std::io::Result<()>) {
        self.counts.count(if result.is_ok() { ServerAnswerEnd::Ok } else { ServerAnswerEnd::Failed });
    }
}

impl Drop for WaitingPipeAnswers {
    fn drop(&mut self) {
        self.waiting.close();
        while self.waiting.try_recv().is_ok() {
            self.counts.count(ServerAnswerEnd::Failed);
        }
    }
}
