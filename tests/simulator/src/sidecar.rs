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
use toolweir_crds::stream::StreamMessage;
use toolweir_sidecar::control::{
    backoff::Backoff,
    client::{self, Lost, Messages, OperatorEndpoint, SILENCE, StreamSender},
    trust::Trust,
    wire::{self, StreamLine},
};

/// The attempt with which to go on where somebody has to change something first, as the real sidecar does.
const SLOWER: u32 = 4;

/// The settings that all sidecars share: a bundle of authorities for each would take more memory than the rest of it.
#[derive(Debug)]
pub struct SharedSettings {
    /// The operator's endpoint.
    pub endpoint: OperatorEndpoint,
    /// The authorities to trust, and the bundle that they were read from.
    pub trust: Mutex<(Arc<Trust>, String)>,
    /// The channel of events.
    pub events: mpsc::Sender<SidecarEvent>,
}

/// An event of a sidecar.
#[derive(Debug)]
pub enum SidecarEvent {
    /// Its stream is open.
    Opened,
    /// The sidecar has acknowledged a version.
    Acknowledged {
        /// Its number.
        sidecar: usize,
        /// The version.
        version: String,
        /// When.
        at: SystemTime,
    },
    /// Its stream has ended: the label of the cause, and the error.
    Lost(&'static str, String),
    /// No stream opened: the label of the fault, and the error.
    Refused(&'static str, String),
}

/// Lives as long as the process. `delay`: how long before the first attempt.
pub async fn run(shared: Arc<SharedSettings>, number: usize, pod: String, token: String, delay: Duration) {
    sleep(delay).await;
    let (backoff, random) = (Backoff::default(), RandomState::new());
    let mut attempt = 0;
    for round in 0_u64.. {
        let mut least = Duration::ZERO;
        match client::connect(&shared.endpoint, shared.trust().tls(), &token).await {
            Ok((acks, mut messages)) => {
                shared.send(SidecarEvent::Opened).await;
                let began = Instant::now();
                let lost = listen(&shared, number, &acks, &mut messages).await;
                tracing::info!(pod, error = %lost, "stream lost");
                shared.send(SidecarEvent::Lost(lost.as_str(), lost.to_string())).await;
                if began.elapsed() >= backoff.most {
                    attempt = 0;
                }
            }
            Err(error) => {
                tracing::info!(pod, %error, "no stream");
                shared.send(SidecarEvent::Refused(error.fault.as_str(), error.to_string())).await;
                least = error.retry_after.unwrap_or_default();
                if !error.fault.is_transient() {
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
async fn listen(shared: &SharedSettings, sidecar: usize, acks: &StreamSender, messages: &mut Messages) -> Lost {
    loop {
        let line = match messages.next(SILENCE).await {
            Ok(line) => line,
            Err(lost) => return lost,
        };
        match line {
            StreamLine::Message(StreamMessage::Snapshot(snapshot)) => {
                match timeout(SILENCE, acks.send_ack(&wire::ack(&snapshot.version, &[]))).await {
                    Ok(Ok(())) => {}
                    Ok(Err(lost)) => return lost,
                    Err(_) => return Lost::Broken("the operator takes no acknowledgement".to_owned()),
                }
                shared.send(SidecarEvent::Acknowledged { sidecar, version: snapshot.version, at: SystemTime::now() }).await;
            }
            StreamLine::Message(StreamMessage::Trust(told)) => shared.trust_bundle(told.certificates),
            StreamLine::Message(StreamMessage::KeepAlive | StreamMessage::SharedStore(_) | StreamMessage::Approvals(_)) => {}
            StreamLine::Unknown(kind) => tracing::warn!(kind, "a message of a kind that is not known"),
        }
    }
}

impl SharedSettings {
    async fn send(&self, event: SidecarEvent) {
        // Nobody listens any more only when the process ends.
        let _ = self.events.send(event).await;
    }

    fn trust(&self) -> Arc<Trust> {
        Arc::clone(&self.trust.lock().unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Trusts other authorities from the next connection on. A bundle that cannot be used changes nothing.
    fn trust_bundle(&self, bundle: String) {
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
