//! The probes of the kubelet, on a port and a thread of their own.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{Method, Request, StatusCode};
use prometheus::IntGauge;
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
    time::{Instant, sleep},
};

use crate::{
    response::{PortResponse, plain_text},
    serve::{Port, PortMetrics, serve},
};

/// The time between two signs of life of the runtime.
const BEAT: Duration = Duration::from_secs(1);
/// The longest time without a sign of life. The runtime is busy for seconds at most; one that is silent for longer does not
/// recover.
const SILENCE: Duration = Duration::from_secs(60);

/// The health of this replica, as probes ask for it. It takes no lock: a probe must not wait for the runtime that it probes.
#[derive(Clone, Debug)]
pub struct ProbeHealth {
    synced: IntGauge,
    certified: watch::Receiver<bool>,
    stopping: watch::Receiver<bool>,
    began: Instant,
    /// Milliseconds from `began` to the last sign of life.
    beat: Arc<AtomicU64>,
}

impl ProbeHealth {
    /// Creates a health. `synced`: 1 once the whole cluster was seen; `certified`: whether there is a certificate that is
    /// trusted; `stopping`: whether this replica stops.
    pub fn new(synced: IntGauge, certified: watch::Receiver<bool>, stopping: watch::Receiver<bool>) -> Self {
        Self { synced, certified, stopping, began: Instant::now(), beat: Arc::default() }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Shows that the runtime on which this runs is alive, for ever.
    pub async fn beat(self) {
        loop {
            self.beat.store(self.now(), Ordering::Relaxed);
            sleep(BEAT).await;
        }
    }

    /// Serves the probes from a thread of their own, so that they are answered however busy the others are. The returned receiver
    /// ends with the thread.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn serve(
        &self,
        listener: std::net::TcpListener,
        metrics: PortMetrics,
        closing: watch::Receiver<bool>,
    ) -> std::io::Result<oneshot::Receiver<()>> {
        let (ended, ends) = oneshot::channel();
        let health = self.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("probes".to_owned()).spawn(move || {
            let _ended: oneshot::Sender<()> = ended;
            runtime.block_on(async {
                let listener = match TcpListener::from_std(listener) {
                    Ok(listener) => listener,
                    Err(error) => return tracing::error!(%error, "the port of probes cannot be served"),
                };
                let answer = move |request: Request<hyper::body::Incoming>| {
                    let answered = health.answer(request.method(), request.uri().path());
                    async move { answered }
                };
                serve(listener, Port::Probes, None, answer, metrics, closing).await;
            });
        })?;
        Ok(ends)
    }

    fn answer(&self, method: &Method, path: &str) -> PortResponse {
        if method != Method::GET && method != Method::HEAD {
            return plain_text(StatusCode::METHOD_NOT_ALLOWED, "use GET");
        }
        self.page(path).unwrap_or_else(|| plain_text(StatusCode::NOT_FOUND, "there are /healthz and /readyz"))
    }

    /// Returns the answer to a probe; none for another path.
    pub(crate) fn page(&self, path: &str) -> Option<PortResponse> {
        match path {
            "/healthz" if self.is_alive() => Some(plain_text(StatusCode::OK, "ok")),
            "/healthz" => Some(plain_text(StatusCode::SERVICE_UNAVAILABLE, "the operator has done nothing for a minute")),
            "/readyz" => Some(match self.unready() {
                None => plain_text(StatusCode::OK, "ready"),
                Some(why) => plain_text(StatusCode::SERVICE_UNAVAILABLE, why),
            }),
            _ => None,
        }
    }

    fn is_alive(&self) -> bool {
        let silent = self.now().saturating_sub(self.beat.load(Ordering::Relaxed));
        Duration::from_millis(silent) < SILENCE
    }

    /// Returns why this replica is not ready, if so.
    fn unready(&self) -> Option<&'static str> {
        if *self.stopping.borrow() {
            Some("stopping")
        } else if !*self.certified.borrow() {
            Some("no certificate yet, or a webhook does not trust it yet; the log says more")
        } else if self.synced.get() != 1 {
            Some("not all namespaces, pods and policies were seen yet")
        } else {
            None
        }
    }
}
