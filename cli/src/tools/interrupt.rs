//! Signals that end the program: what it started must end with it.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// A signal asked the program to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted(u8);

impl Interrupted {
    /// Returns the exit code that shells expect: 128 and the number of the signal.
    pub fn exit_code(&self) -> u8 {
        self.0.saturating_add(128)
    }
}

/// Waits for the signals of Ctrl-C, `kill`, and a terminal that is closed.
#[derive(Debug)]
pub struct EndSignals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl EndSignals {
    /// Begins to wait: from now on, these signals no longer end the program by themselves.
    ///
    /// # Errors
    /// The system does not let the program wait for signals.
    pub fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).map_err(|error| anyhow::anyhow!("cannot wait for signals: {error}"));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// Returns the first signal that comes.
    pub async fn next(&mut self) -> Interrupted {
        let kind = tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.hangup.recv() => SignalKind::hangup(),
        };
        Interrupted(u8::try_from(kind.as_raw_value()).unwrap_or_default())
    }
}
