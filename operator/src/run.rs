//! `toolweir-operator run`: puts the parts together, and takes them apart when it is told to stop.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use kube::Client;
use tokio::{
    net::TcpListener,
    signal::unix::SignalKind,
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{Instant, sleep},
};
use toolweir_engine::Options as EngineOptions;

use crate::{
    admission::Webhooks,
    auth::Reviewer,
    certs::{Keeper, Settings, StoreSettings, issue},
    client_ca::{ClientCa, ClientCaError},
    cluster,
    config::Config,
    events, leader,
    metrics::Metrics,
    namespaces::Namespaces,
    publish::{self, Others, Replica},
    room::{self, Room, Ticket},
    seats::Seat,
    serve::{self, Port, serve},
    shared,
    stream::{Streams, text},
    world::World,
};

/// How long a stopping replica goes on serving, until nobody is sent to it any more.
const LAME_DUCK: Duration = Duration::from_secs(4);

/// How many lines of denials wait to become events. Each takes up to some 30 KiB.
const DENIALS: usize = 256;
/// How many pages of metrics are held at once, for who reads slowly. Then the oldest reader is closed.
const PAGES: usize = 8;
/// How long a reader has at the least.
const READS: Duration = Duration::from_secs(1);
/// How long a page is given out again, so that who asks without end costs no more than this.
const FRESH: Duration = Duration::from_millis(100);
/// How often the runtime shows that it lives.
const BEAT: Duration = Duration::from_secs(1);
/// How long it may show nothing. It is busy for seconds at the most; who is silent for longer will not come back.
const SILENCE: Duration = Duration::from_secs(60);

/// The command line.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration's file.
    pub config: PathBuf,
    /// The operator's namespace.
    pub namespace: String,
    /// This pod's name.
    pub pod_name: String,
    /// This pod's uid.
    pub pod_uid: String,
    /// The operator's Service.
    pub service: String,
    /// The Secret of the authorities.
    pub ca_secret: String,
    /// The Lease.
    pub lease: String,
    /// The `MutatingWebhookConfiguration`.
    pub injector: String,
    /// The `ValidatingWebhookConfiguration`.
    pub validator: String,
    /// Where the webhooks are served.
    pub webhook_listen: String,
    /// Where the policy stream is served.
    pub stream_listen: String,
    /// Where metrics are.
    pub metrics_listen: String,
    /// Where probes are.
    pub probe_listen: String,
}

/// Runs a replica until SIGTERM or SIGINT.
///
/// # Errors
/// It cannot start, or a part of it ended that never should.
#[expect(clippy::too_many_lines, reason = "each part is made and started once, in an order that is easier to see in one place")]
pub async fn run(options: Options) -> anyhow::Result<()> {
    let path = options.config.display();
    let text = std::fs::read_to_string(&options.config).with_context(|| format!("{path} cannot be read"))?;
    let config = Arc::new(Config::read(&text).with_context(|| path.to_string())?);
    let lives = config.lives().with_context(|| path.to_string())?;
    let client = Client::try_default().await.context("the API server cannot be reached as this pod's service account")?;

    let metrics = Metrics::new()?;
    // A pod's name, namespace, account and workload are known at each sidecar; whether a policy compiles does not depend on them.
    let engine = EngineOptions { shared_store: config.shared_store.is_some(), of_any_pod: true, ..EngineOptions::default() };
    let world = Arc::new(World::new(metrics.clone(), engine));
    let (stop, stopping) = watch::channel(false);
    // Streams end at once; everything else serves until nobody is sent here any more.
    let (close, closing) = watch::channel(false);

    let settings = Settings {
        namespace: options.namespace.clone(),
        secret: options.ca_secret.clone(),
        names: issue::names(&options.service, &options.namespace),
        injector: options.injector.clone(),
        validator: options.validator.clone(),
        lives,
        store: config.shared_store.as_ref().and_then(|store| store.certificate.as_ref()).map(|certificate| StoreSettings {
            secret: certificate.secret.clone(),
            names: issue::names(&certificate.service, &options.namespace),
        }),
    };
    let keeper = Keeper::new(client.clone(), settings, metrics.clone());
    let (serving, trust, certified) = (keeper.serving(), keeper.trust(), keeper.ready());
    let webhooks = Webhooks {
        world: Arc::clone(&world),
        namespaces: Namespaces::new(&client),
        config: Arc::clone(&config),
        namespace: options.namespace.as_str().into(),
        stream_url: format!("https://{}.{}.svc:8444", options.service, options.namespace).into(),
        trust: trust.clone(),
    };
    let store_keeper = shared::Keeper::new(config.shared_store.clone(), Arc::clone(&world)).trusting(trust.clone());
    let (denials, told) = mpsc::channel(DENIALS);
    let streams = Streams {
        denials,
        world: Arc::clone(&world),
        reviewer: Reviewer::new(client.clone()),
        trust: trust.clone(),
        store: store_keeper.store(),
        stopping: closing.clone(),
    };
    let health = Health::new(metrics.clone(), certified, stopping.clone());
    let pages = Pages {
        world: Arc::clone(&world),
        config: Arc::clone(&config),
        namespace: options.namespace.as_str().into(),
        trust,
        health: health.clone(),
        room: Room::new(PAGES, PAGES, READS),
        last: Arc::default(),
    };
    let client_ca = client_ca(&config).with_context(|| path.to_string())?;

    let webhook_listener = listen(&options.webhook_listen).await?;
    let stream_listener = listen(&options.stream_listen).await?;
    let metrics_listener = listen(&options.metrics_listen).await?;
    let probe_listener = listen(&options.probe_listen).await?.into_std()?;
    let webhook_tls = serve::tls(serving.clone(), Port::Webhooks, client_ca.clone())?;
    let stream_tls = serve::tls(serving, Port::Streams, None)?;

    let mut servers = JoinSet::new();
    let webhook = move |request| webhooks.clone().answer(request);
    servers.spawn(serve(webhook_listener, Port::Webhooks, Some(webhook_tls), webhook, metrics.clone(), closing.clone()));
    let stream = move |request| streams.clone().answer(request);
    servers.spawn(serve(stream_listener, Port::Streams, Some(stream_tls), stream, metrics.clone(), closing.clone()));
    let answer = move |request| pages.clone().answer(request);
    servers.spawn(serve(metrics_listener, Port::Metrics, None, answer, metrics.clone(), closing.clone()));
    let probes = health.serve(probe_listener, metrics.clone(), closing)?;
    // Ended, or panicked: either way there are no probes any more.
    servers.spawn(async move { drop(probes.await) });

    let replica = Replica { namespace: options.namespace.clone(), pod: options.pod_name.clone(), uid: options.pod_uid.clone() };
    let others = Arc::new(Others::default());
    let (leads, leading) = watch::channel(false);
    // None of these ends by itself.
    let mut parts = JoinSet::new();
    parts.spawn(keeper.run());
    parts.spawn(health.beat());
    client_ca.map(|client_ca| parts.spawn(client_ca.follow()));
    parts.spawn(store_keeper.run());
    parts.spawn(cluster::watch(client.clone(), Arc::clone(&world)));
    parts.spawn(events::write(client.clone(), told, metrics.clone()));
    parts.spawn(publish::acknowledgements(client.clone(), Arc::clone(&world), replica.clone()));
    parts.spawn(publish::follow_others(client.clone(), Arc::clone(&world), replica.clone(), Arc::clone(&others)));
    parts.spawn(publish::statuses(client.clone(), Arc::clone(&world), replica, others, leading));
    let lease = tokio::spawn({
        let (metrics, stopping) = (metrics.clone(), stopping.clone());
        async move {
            leader::lead(client, &options.namespace, &options.lease, &options.pod_name, leads, &metrics, stopping).await;
        }
    });
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "toolweir-operator runs");

    let outcome = tokio::select! {
        signal = told_to_stop() => signal,
        Some(ended) = parts.join_next() => Err(unexpected("a part of the operator", ended)),
        Some(ended) = servers.join_next() => Err(unexpected("a server", ended)),
    };
    stop.send_replace(true);
    if outcome.is_ok() {
        tracing::info!(seconds = LAME_DUCK.as_secs(), "told to stop: no longer ready, serving on for a while");
        sleep(LAME_DUCK).await;
    }
    close.send_replace(true);
    let _ = lease.await;
    while servers.join_next().await.is_some() {}
    parts.shutdown().await;
    outcome
}

fn client_ca(config: &Config) -> Result<Option<Arc<ClientCa>>, ClientCaError> {
    let names = || config.webhooks.client_names.clone();
    config.webhooks.client_ca_file.as_ref().map(|file| ClientCa::new(file, names())).transpose()
}

async fn listen(address: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

async fn told_to_stop() -> anyhow::Result<()> {
    let mut terminate = tokio::signal::unix::signal(SignalKind::terminate())?;
    let mut interrupt = tokio::signal::unix::signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// What should run for ever has ended.
fn unexpected(what: &str, ended: Result<(), tokio::task::JoinError>) -> anyhow::Error {
    match ended {
        Ok(()) => anyhow::anyhow!("{what} ended; Kubernetes starts it anew"),
        Err(error) => anyhow::Error::from(error).context(format!("{what} failed; Kubernetes starts it anew")),
    }
}

/// What the kubelet is told. It takes no lock: a probe must not wait for what is probed.
#[derive(Clone, Debug)]
pub struct Health {
    metrics: Metrics,
    certified: watch::Receiver<bool>,
    stopping: watch::Receiver<bool>,
    began: Instant,
    /// Milliseconds from there to the last sign of life.
    beat: Arc<AtomicU64>,
}

impl Health {
    /// Nothing is wrong yet. `certified`: whether there is a certificate that is trusted; `stopping`: whether this replica stops.
    pub fn new(metrics: Metrics, certified: watch::Receiver<bool>, stopping: watch::Receiver<bool>) -> Self {
        Self { metrics, certified, stopping, began: Instant::now(), beat: Arc::default() }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Shows that the runtime lives on which this is run, for ever.
    pub async fn beat(self) {
        loop {
            self.beat.store(self.now(), Ordering::Relaxed);
            sleep(BEAT).await;
        }
    }

    /// Serves the probes from a thread of their own, so that they are answered however much the others have to do. What is given
    /// ends with it.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn serve(
        &self,
        listener: std::net::TcpListener,
        metrics: Metrics,
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

    fn answer(&self, method: &Method, path: &str) -> Page {
        if method != Method::GET && method != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "use GET");
        }
        self.page(path).unwrap_or_else(|| text(StatusCode::NOT_FOUND, "there are /healthz and /readyz"))
    }

    fn page(&self, path: &str) -> Option<Page> {
        match path {
            "/healthz" if self.is_alive() => Some(text(StatusCode::OK, "ok")),
            "/healthz" => Some(text(StatusCode::SERVICE_UNAVAILABLE, "the operator has done nothing for a minute")),
            "/readyz" => Some(match self.unready() {
                None => text(StatusCode::OK, "ready"),
                Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, why),
            }),
            _ => None,
        }
    }

    fn is_alive(&self) -> bool {
        let silent = self.now().saturating_sub(self.beat.load(Ordering::Relaxed));
        Duration::from_millis(silent) < SILENCE
    }

    /// Why nobody should be sent here.
    fn unready(&self) -> Option<&'static str> {
        if *self.stopping.borrow() {
            Some("stopping")
        } else if !*self.certified.borrow() {
            Some("no certificate yet, or a webhook does not trust it yet; the log says more")
        } else if self.metrics.synced.get() != 1 {
            Some("not all namespaces, pods and policies were seen yet")
        } else {
            None
        }
    }
}

type Page = Response<BoxBody<Bytes, std::convert::Infallible>>;

/// What is on the port of metrics.
#[derive(Clone)]
struct Pages {
    world: Arc<World>,
    config: Arc<Config>,
    namespace: Arc<str>,
    trust: watch::Receiver<Arc<str>>,
    health: Health,
    room: Room,
    last: Arc<Mutex<Option<(Instant, Bytes)>>>,
}

/// A page of metrics, and its place among those that are held.
struct Held(Bytes, #[expect(dead_code, reason = "held")] Ticket);

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Pages {
    async fn answer<B>(self, request: Request<B>) -> Page {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "use GET");
        }
        match request.uri().path() {
            "/metrics" => self.metrics(request.extensions().get::<Arc<Seat>>()).await,
            "/ca.pem" => typed(Bytes::copy_from_slice(self.trust.borrow().as_bytes()), "application/x-pem-file"),
            path => self
                .health
                .page(path)
                .unwrap_or_else(|| text(StatusCode::NOT_FOUND, "there are /metrics, /healthz, /readyz and /ca.pem")),
        }
    }

    /// The page of metrics. Whoever reads it slowly is closed where others need the place.
    async fn metrics(&self, seat: Option<&Arc<Seat>>) -> Page {
        let bell = seat.map_or_else(room::bell, |seat| seat.bell().clone());
        let Ok(ticket) = self.room.take(1, &bell).await else {
            return text(StatusCode::SERVICE_UNAVAILABLE, "too many read the metrics at once; try again");
        };
        match self.page() {
            Ok(page) => typed(Bytes::from_owner(Held(page, ticket)), prometheus::TEXT_FORMAT),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("the metrics cannot be written: {error}")),
        }
    }

    fn page(&self) -> Result<Bytes, prometheus::Error> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((when, page)) = &*last
            && when.elapsed() < FRESH
        {
            return Ok(page.clone());
        }
        let page = Bytes::from(self.scrape()?);
        *last = Some((Instant::now(), page.clone()));
        Ok(page)
    }

    fn scrape(&self) -> Result<Vec<u8>, prometheus::Error> {
        let protects = |namespace: &str| self.config.protects(namespace, &self.namespace);
        let without_sidecar = self.world.index().without_sidecar(protects);
        self.world.metrics.streams_acknowledged.set(i64::try_from(self.world.acks().current()).unwrap_or(i64::MAX));
        self.world.metrics.scrape(&without_sidecar)
    }
}

fn typed(page: Bytes, content_type: &'static str) -> Page {
    let mut response = Response::new(Full::new(page).boxed());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
