//! `toolweir-operator run`: starts the parts of the operator, and stops them on a signal.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use kube::Client;
use tokio::{
    net::TcpListener,
    signal::unix::SignalKind,
    sync::{mpsc, watch},
    task::JoinSet,
    time::sleep,
};
use toolweir_engine::CompileOptions;

use crate::{
    admission::{AdmissionHandler, Intake},
    approvals::{
        settings::{ApprovalSettings, PreparedApprovals},
        writer::EventQueue,
    },
    auth::TokenReviewer,
    certs::{CertificateManager, CertificateSettings, StoreCertificateSettings, issue},
    client_ca::{ClientCa, ClientCaError},
    cluster,
    cluster_state::ClusterState,
    config::OperatorConfig,
    events, leader,
    metrics_port::MetricsPort,
    namespaces::NamespaceLookup,
    operator_metrics::OperatorMetrics,
    probes::ProbeHealth,
    publish::{self, Others, Replica},
    serve::{self, Port, serve},
    shared_store::monitor::StoreMonitor,
    stream::{StreamBounds, StreamServer},
};

/// The time for which a stopping replica goes on serving, until no more requests are sent to it.
const LAME_DUCK: Duration = Duration::from_secs(4);

/// The most reports that wait to become events. Each takes up to some 30 KiB, or what a line of a sidecar can have.
const REPORTS: usize = 256;

/// The command line.
#[derive(Clone, Debug)]
pub struct RunOptions {
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
    /// The address of the webhooks' port.
    pub webhook_listen: String,
    /// The address of the streams' port.
    pub stream_listen: String,
    /// The address of the metrics' port.
    pub metrics_listen: String,
    /// The address of the probes' port.
    pub probe_listen: String,
    /// The settings of approvals; none where they are off.
    pub approvals: Option<ApprovalSettings>,
}

/// Runs a replica until SIGTERM or SIGINT.
///
/// # Errors
/// A part cannot be started, or one ended that should run for ever.
#[expect(clippy::too_many_lines, reason = "each part is made and started once, in an order that is easier to see in one place")]
pub async fn run(options: RunOptions) -> anyhow::Result<()> {
    let path = options.config.display();
    let text = std::fs::read_to_string(&options.config).with_context(|| format!("{path} cannot be read"))?;
    let config = Arc::new(OperatorConfig::read(&text).with_context(|| path.to_string())?);
    let lifetimes = config.lifetimes().with_context(|| path.to_string())?;
    let client = Client::try_default().await.context("the API server cannot be reached as this pod's service account")?;

    let metrics = OperatorMetrics::new()?;
    // A pod's name, namespace, account and workload are known at each sidecar; whether a policy compiles does not depend on them.
    let engine = CompileOptions { shared_store: config.shared_store.is_some(), of_any_pod: true, ..CompileOptions::default() };
    let state = Arc::new(ClusterState::new(metrics.state.clone(), engine));
    let (stop, stopping) = watch::channel(false);
    // Streams end at once; everything else serves until nobody is sent here any more.
    let (close, closing) = watch::channel(false);

    let settings = CertificateSettings {
        namespace: options.namespace.clone(),
        secret: options.ca_secret.clone(),
        names: issue::names(&options.service, &options.namespace),
        injector: options.injector.clone(),
        validator: options.validator.clone(),
        lifetimes,
        store: config.shared_store.as_ref().and_then(|store| store.certificate.as_ref()).map(|certificate| {
            StoreCertificateSettings {
                secret: certificate.secret.clone(),
                names: issue::names(&certificate.service, &options.namespace),
            }
        }),
    };
    let certificates = CertificateManager::new(client.clone(), settings, metrics.certificates.clone(), metrics.watches.clone());
    let (serving, trust, certified) = (certificates.serving(), certificates.trust(), certificates.ready());
    let (events, reports) = mpsc::channel(REPORTS);
    let queue = EventQueue { reports: events.clone(), metrics: metrics.events.clone() };
    let approvals = PreparedApprovals::new(options.approvals.clone(), client.clone(), queue, &metrics);
    let webhooks = AdmissionHandler {
        state: Arc::clone(&state),
        approvals: Arc::clone(&approvals.service),
        namespaces: NamespaceLookup::new(&client),
        config: Arc::clone(&config),
        namespace: options.namespace.as_str().into(),
        stream_url: format!("https://{}.{}.svc:8444", options.service, options.namespace).into(),
        trust: trust.clone(),
        intake: Arc::new(Intake::default()),
        metrics: metrics.admission.clone(),
    };
    let store_monitor =
        StoreMonitor::new(config.shared_store.clone(), Arc::clone(&state), metrics.store.clone()).trusting(trust.clone());
    let streams = StreamServer {
        approvals: Arc::clone(&approvals.service),
        reports: events,
        state: Arc::clone(&state),
        reviewer: TokenReviewer::new(client.clone()),
        trust: trust.clone(),
        store: store_monitor.store(),
        stopping: closing.clone(),
        bounds: Arc::new(StreamBounds::default()),
        metrics: metrics.stream.clone(),
        events: metrics.events.clone(),
    };
    let health = ProbeHealth::new(metrics.state.synced.clone(), certified, stopping.clone());
    let metrics_port = MetricsPort::new(
        Arc::clone(&state),
        Arc::clone(&config),
        options.namespace.as_str().into(),
        trust,
        health.clone(),
        metrics.scrape.clone(),
    );
    let client_ca = client_ca(&config).with_context(|| path.to_string())?;

    let webhook_listener = listen(&options.webhook_listen).await?;
    let stream_listener = listen(&options.stream_listen).await?;
    let metrics_listener = listen(&options.metrics_listen).await?;
    let probe_listener = listen(&options.probe_listen).await?.into_std()?;
    let webhook_tls = serve::tls(serving.clone(), Port::Webhooks, client_ca.clone())?;
    let stream_tls = serve::tls(serving, Port::Streams, None)?;

    let mut servers = JoinSet::new();
    let webhook = move |request| webhooks.clone().answer(request);
    servers.spawn(serve(webhook_listener, Port::Webhooks, Some(webhook_tls), webhook, metrics.ports.clone(), closing.clone()));
    let stream = move |request| streams.clone().answer(request);
    servers.spawn(serve(stream_listener, Port::Streams, Some(stream_tls), stream, metrics.ports.clone(), closing.clone()));
    let answer = move |request| metrics_port.clone().answer(request);
    servers.spawn(serve(metrics_listener, Port::Metrics, None, answer, metrics.ports.clone(), closing.clone()));
    let probes = health.serve(probe_listener, metrics.ports.clone(), closing)?;
    // Ended, or panicked: either way there are no probes any more.
    servers.spawn(async move { drop(probes.await) });

    let replica = Replica { namespace: options.namespace.clone(), pod: options.pod_name.clone(), uid: options.pod_uid.clone() };
    let others = Arc::new(Others::default());
    let (leads, leading) = watch::channel(false);
    // None of these ends by itself.
    let mut parts = JoinSet::new();
    approvals.start(&mut parts, &state, &metrics, leading.clone());
    parts.spawn(certificates.run());
    parts.spawn(health.beat());
    client_ca.map(|client_ca| parts.spawn(client_ca.follow()));
    parts.spawn(store_monitor.run());
    parts.spawn(cluster::watch(client.clone(), Arc::clone(&state), metrics.watches.clone()));
    parts.spawn(events::write(client.clone(), reports, metrics.events.clone()));
    parts.spawn(publish::acknowledgements(client.clone(), Arc::clone(&state), replica.clone()));
    parts.spawn(publish::follow_others(
        client.clone(),
        Arc::clone(&state),
        replica.clone(),
        Arc::clone(&others),
        metrics.watches.clone(),
    ));
    parts.spawn(publish::statuses(client.clone(), Arc::clone(&state), replica, others, metrics.status.clone(), leading));
    let lease = tokio::spawn({
        let (metrics, stopping) = (metrics.leader.clone(), stopping.clone());
        async move {
            leader::lead(client, &options.namespace, &options.lease, &options.pod_name, leads, &metrics, stopping).await;
        }
    });
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "toolweir-operator runs");

    let outcome = tokio::select! {
        signal = stop_signal() => signal,
        Some(ended) = parts.join_next() => Err(unexpected("a part of the operator", ended)),
        Some(ended) = servers.join_next() => Err(unexpected("a server", ended)),
    };
    stop.send_replace(true);
    if outcome.is_ok() {
        tracing::info!(seconds = LAME_DUCK.as_secs(), "stopping: no longer ready, but still serving for a while");
        sleep(LAME_DUCK).await;
    }
    close.send_replace(true);
    let _ = lease.await;
    while servers.join_next().await.is_some() {}
    parts.shutdown().await;
    outcome
}

fn client_ca(config: &OperatorConfig) -> Result<Option<Arc<ClientCa>>, ClientCaError> {
    let names = || config.webhooks.client_names.clone();
    config.webhooks.client_ca_file.as_ref().map(|file| ClientCa::new(file, names())).transpose()
}

async fn listen(address: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

async fn stop_signal() -> anyhow::Result<()> {
    let mut terminate = tokio::signal::unix::signal(SignalKind::terminate())?;
    let mut interrupt = tokio::signal::unix::signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Returns the error of a part that ended, which should run for ever.
fn unexpected(what: &str, ended: Result<(), tokio::task::JoinError>) -> anyhow::Error {
    match ended {
        Ok(()) => anyhow::anyhow!("{what} ended; Kubernetes starts it anew"),
        Err(error) => anyhow::Error::from(error).context(format!("{what} failed; Kubernetes starts it anew")),
    }
}
