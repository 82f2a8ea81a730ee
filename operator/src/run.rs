//! `toolweir-operator run`: puts the parts together, and takes them apart when it is told to stop.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use kube::Client;
use tokio::{
    net::TcpListener,
    signal::unix::SignalKind,
    sync::{mpsc, watch},
    task::JoinSet,
    time::sleep,
};
use toolweir_engine::Options as EngineOptions;

use crate::{
    admission::Webhooks,
    auth::Reviewer,
    certs::{Keeper, Settings, StoreSettings, issue},
    cluster,
    config::Config,
    events, leader,
    metrics::Metrics,
    namespaces::Namespaces,
    publish::{self, Others, Replica},
    serve::{self, Port, serve},
    shared,
    stream::{Streams, text},
    world::World,
};

/// How long a stopping replica goes on serving, until nobody is sent to it any more.
const LAME_DUCK: Duration = Duration::from_secs(4);

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
    /// Where metrics and probes are.
    pub metrics_listen: String,
}

/// Runs a replica until SIGTERM or SIGINT.
///
/// # Errors
/// It cannot start, or a part of it ended that never should.
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
    let (denials, told) = mpsc::channel(1024);
    let streams = Streams {
        denials,
        world: Arc::clone(&world),
        reviewer: Reviewer::new(client.clone()),
        trust: trust.clone(),
        store: store_keeper.store(),
        stopping: closing.clone(),
    };
    let pages = Pages {
        world: Arc::clone(&world),
        config: Arc::clone(&config),
        namespace: options.namespace.as_str().into(),
        trust,
        certified,
        stopping: stopping.clone(),
    };

    let webhook_listener = listen(&options.webhook_listen).await?;
    let stream_listener = listen(&options.stream_listen).await?;
    let metrics_listener = listen(&options.metrics_listen).await?;
    let webhook_tls = serve::tls(Arc::clone(&serving), Port::Webhooks)?;
    let stream_tls = serve::tls(serving, Port::Streams)?;

    let mut servers = JoinSet::new();
    let webhook = move |request| webhooks.clone().answer(request);
    servers.spawn(serve(webhook_listener, Port::Webhooks, Some(webhook_tls), webhook, closing.clone()));
    let stream = move |request| streams.clone().answer(request);
    servers.spawn(serve(stream_listener, Port::Streams, Some(stream_tls), stream, closing.clone()));
    let answer = move |request: Request<hyper::body::Incoming>| {
        let answered = pages.answer(request.method(), request.uri().path());
        async move { answered }
    };
    servers.spawn(serve(metrics_listener, Port::Metrics, None, answer, closing));

    let replica = Replica { namespace: options.namespace.clone(), pod: options.pod_name.clone(), uid: options.pod_uid.clone() };
    let others = Arc::new(Others::default());
    let (leads, leading) = watch::channel(false);
    // None of these ends by itself.
    let mut parts = JoinSet::new();
    parts.spawn(keeper.run());
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

/// What is on the plain port.
#[derive(Clone)]
struct Pages {
    world: Arc<World>,
    config: Arc<Config>,
    namespace: Arc<str>,
    trust: watch::Receiver<Arc<str>>,
    certified: watch::Receiver<bool>,
    stopping: watch::Receiver<bool>,
}

impl Pages {
    fn answer(&self, method: &Method, path: &str) -> Response<BoxBody<Bytes, std::convert::Infallible>> {
        if method != Method::GET && method != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "use GET");
        }
        match path {
            "/metrics" => match self.scrape() {
                Ok(page) => typed(page, prometheus::TEXT_FORMAT),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("the metrics cannot be written: {error}")),
            },
            "/healthz" => text(StatusCode::OK, "ok"),
            "/readyz" => match self.unready() {
                None => text(StatusCode::OK, "ready"),
                Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, why),
            },
            "/ca.pem" => typed(self.trust.borrow().as_bytes().to_vec(), "application/x-pem-file"),
            _ => text(StatusCode::NOT_FOUND, "there are /metrics, /healthz, /readyz and /ca.pem"),
        }
    }

    fn scrape(&self) -> Result<Vec<u8>, prometheus::Error> {
        let protects = |namespace: &str| self.config.protects(namespace, &self.namespace);
        let without_sidecar = self.world.index().without_sidecar(protects);
        self.world.metrics.streams_acknowledged.set(i64::try_from(self.world.acks().current()).unwrap_or(i64::MAX));
        self.world.metrics.scrape(&without_sidecar)
    }

    /// Why nobody should be sent here.
    fn unready(&self) -> Option<&'static str> {
        if *self.stopping.borrow() {
            Some("stopping")
        } else if !*self.certified.borrow() {
            Some("no certificate yet, or a webhook does not trust it yet; the log says more")
        } else if !self.world.index().synced() {
            Some("not all namespaces, pods and policies were seen yet")
        } else {
            None
        }
    }
}

fn typed(page: Vec<u8>, content_type: &'static str) -> Response<BoxBody<Bytes, std::convert::Infallible>> {
    let mut response = Response::new(Full::new(Bytes::from(page)).boxed());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
