//! One simulated sidecar: its stream, opened again whenever it ends, and nothing behind it.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use toolweir_crds::stream::Message;
use toolweir_sidecar::control::{
    backoff::Backoff,
    client::{self, Acks, Endpoint, Lost, Messages, SILENCE},
    trust::Trust,
    wire::{self, Line},
};

/// The attempt with which to go on where somebody has to change something first, as the real sidecar does.
const SLOWER: u32 = 4;

/// What the sidecars share: a bundle of authorities for each would cost more memory than the rest of it.
#[derive(Debug)]
pub struct Shared {
    /// Where the operator is.
    pub endpoint: Endpoint,
    /// Whom to trust as the operator, and the bundle that says so.
    pub trust: Mutex<(Arc<Trust>, String)>,
    /// Where each says what happens.
    pub words: mpsc::Sender<Word>,
}

/// What happens to a sidecar.
#[derive(Debug)]
pub enum Word {
    /// Its stream is open.
    Opened,
    /// It has acknowledged a version.
    Acknowledged {
        /// Its number.
        sidecar: usize,
        /// The version.
        version: String,
        /// When.
        at: SystemTime,
    },
    /// Its stream has ended: the label of how, and the error.
    Lost(&'static str, String),
    /// No stream opened: the label of whose fault it is, and the error.
    Refused(&'static str, String),
}

/// Lives as long as the process. `delay`: how long before the first attempt.
pub async fn run(shared: Arc<Shared>, number: usize, pod: String, token: String, delay: Duration) {
    sleep(delay).await;
    let (backoff, random) = (Backoff::default(), RandomState::new());
    let mut attempt = 0;
    for round in 0_u64.. {
        let mut least = Duration::ZERO;
        match client::connect(&shared.endpoint, shared.trust().tls(), &token).await {
            Ok((acks, mut messages)) => {
                shared.tell(Word::Opened).await;
                let began = Instant::now();
                let lost = listen(&shared, number, &acks, &mut messages).await;
                tracing::info!(pod, error = %lost, "stream lost");
                shared.tell(Word::Lost(lost.as_str(), lost.to_string())).await;
                if began.elapsed() >= backoff.most {
                    attempt = 0;
                }
            }
            Err(error) => {
                tracing::info!(pod, %error, "no stream");
                shared.tell(Word::Refused(error.fault.as_str(), error.to_string())).await;
                least = error.retry_after.unwrap_or_default();
                if !error.fault.passes() {
                    attempt = attempt.max(SLOWER);
                }
            }
        }
        // Random enough to spread them: the hash of a number under a key of this sidecar's own.
        sleep(least + backoff.pause(attempt, random.hash_one(round))).await;
        attempt = attempt.saturating_add(1);
    }
}

/// Acknowledges every snapshot at once, until the stream ends.
async fn listen(shared: &Shared, sidecar: usize, acks: &Acks, messages: &mut Messages) -> Lost {
    loop {
        let line = match messages.next(SILENCE).await {
            Ok(line) => line,
            Err(lost) => return lost,
        };
        match line {
            Line::Message(Message::Snapshot(snapshot)) => {
                match timeout(SILENCE, acks.send(&wire::ack(&snapshot.version, &[]))).await {
                    Ok(Ok(())) => {}
                    Ok(Err(lost)) => return lost,
                    Err(_) => return Lost::Broken("the operator takes no acknowledgement".to_owned()),
                }
                shared.tell(Word::Acknowledged { sidecar, version: snapshot.version, at: SystemTime::now() }).await;
            }
            Line::Message(Message::Trust(told)) => shared.believe(told.certificates),
            Line::Message(Message::KeepAlive | Message::SharedStore(_)) => {}
            Line::Unknown(kind) => tracing::warn!(kind, "a message of a kind that is not known"),
        }
    }
}

impl Shared {
    async fn tell(&self, word: Word) {
        // Nobody listens any more only when the process ends.
        let _ = self.words.send(word).await;
    }

    fn trust(&self) -> Arc<Trust> {
        Arc::clone(&self.trust.lock().unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Trusts other authorities from the next connection on. A bundle that cannot be used changes nothing.
    fn believe(&self, bundle: String) {
        let mut held = self.trust.lock().unwrap_or_else(PoisonError::into_inner);
        // All are told the same, one after the other.
        if held.1 == bundle {
            return;
        }
        match Trust::from_pem(&bundle) {
            Ok(trust) => *held = (Arc::new(trust), bundle),
            Err(error) => tracing::error!(%error, "a bundle of authorities that cannot be used"),
        }
    }
}
