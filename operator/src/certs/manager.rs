//! Keeps the authorities' Secret, this replica's certificate and the `caBundle` of the webhooks current.
//!
//! One loop does all three, in this order, and always from a Secret that was just read: a replica with an old Secret cannot write
//! an old `caBundle` over a new one for longer than its watch takes.

use std::{
    future::ready,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use data_encoding::BASE64;
use futures_util::StreamExt;
use k8s_openapi::api::{
    admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
    core::v1::Secret,
};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams, PostParams},
    core::PartialObjectMeta,
    runtime::{WatchStreamExt, watcher},
};
use prometheus::{GaugeVec, IntCounter, IntCounterVec};
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

use super::{
    issue::{self, IssueError},
    plan::{self, AuthoritySet, CertificateLifetimes},
    shared_store, store,
};
use crate::{metrics::OperatorRegistry, watch::WatchFailures};

/// The time to wait after a change of an object, so that many changes are handled in one round.
const GATHER: Duration = Duration::from_millis(50);

/// The settings of a [`CertificateManager`].
#[derive(Clone, Debug)]
pub struct CertificateSettings {
    /// The operator's namespace.
    pub namespace: String,
    /// The Secret with the authorities.
    pub secret: String,
    /// The names under which this replica serves.
    pub names: Vec<String>,
    /// The `MutatingWebhookConfiguration`.
    pub injector: String,
    /// The `ValidatingWebhookConfiguration`.
    pub validator: String,
    /// The lifetimes of certificates.
    pub lifetimes: CertificateLifetimes,
    /// The certificate of the chart's store, where there is one.
    pub store: Option<StoreCertificateSettings>,
}

/// The settings of the store's certificate.
#[derive(Clone, Debug)]
pub struct StoreCertificateSettings {
    /// The Secret to keep it in.
    pub secret: String,
    /// The names that it is for.
    pub names: Vec<String>,
}

/// The certificate that this replica serves. None before the first one was made: then no handshake succeeds.
#[derive(Debug, Default)]
pub struct ServingCertificate(ArcSwapOption<CertifiedKey>);

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

/// The errors of a round. Each is tried again.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error("the API server returned an error: {0}")]
    Api(#[from] kube::Error),
    #[error(
        "Secret {name} cannot be used: {why}. Nothing is changed. Restore it, or delete it: an operator that ran before writes it \
         back. Where none did, restart the agents then"
    )]
    Secret { name: String, why: String },
    #[error(transparent)]
    Issue(#[from] IssueError),
    #[error("Secret {name}, with the certificate of the store: {why}")]
    Store { name: String, why: shared_store::StoreCertificateError },
    #[error("the authorities cannot be written: {0}")]
    Write(#[from] serde_json::Error),
}

/// The certificate that this replica serves: its signer and its times.
struct ServedCertificate {
    /// The certificate of the authority that signed it.
    signer: String,
    times: plan::LeafTimes,
}

/// A certificate that is valid and not served yet.
struct IssuedCertificate {
    leaf: CertifiedKey,
    held: ServedCertificate,
    signer_valid_from: SystemTime,
    signer_expires: SystemTime,
}

/// The metrics of certificates.
#[derive(Clone, Debug)]
pub struct CertificateMetrics {
    /// When certificates expire, in seconds since 1970.
    pub expiry: GaugeVec,
    /// The lifetimes of certificates, in seconds.
    pub lifetime: GaugeVec,
    /// Certificates that were made.
    pub rotations: IntCounterVec,
    /// Rounds that failed.
    pub failures: IntCounter,
}

impl CertificateMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// Those of [`OperatorRegistry::counter`].
    pub fn new(registry: &OperatorRegistry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            expiry: registry.seconds(
                "toolweir_operator_certificate_expiry_timestamp_seconds",
                "When a certificate expires (ca, leaf).",
                &["certificate"],
            )?,
            lifetime: registry.seconds(
                "toolweir_operator_certificate_lifetime_seconds",
                "How long a certificate lives, from beginning to end.",
                &["certificate"],
            )?,
            rotations: registry.counters(
                "toolweir_operator_certificate_rotations_total",
                "Certificates that were made (ca, leaf).",
                &["certificate"],
            )?,
            failures: registry.counter(
                "toolweir_operator_certificate_failures_total",
                "Certificates that could not be read, made or written, and webhooks whose CA could not be kept.",
            )?,
        })
    }
}

/// Keeps the certificates current.
pub struct CertificateManager {
    client: Client,
    settings: CertificateSettings,
    secrets: Api<Secret>,
    injectors: Api<MutatingWebhookConfiguration>,
    validators: Api<ValidatingWebhookConfiguration>,
    serving: Arc<ServingCertificate>,
    trust: watch::Sender<Arc<str>>,
    ready: watch::Sender<bool>,
    metrics: CertificateMetrics,
    watch_failures: WatchFailures,
    /// The authorities that were in force last: written back if somebody deletes the Secret, since every sidecar trusts them.
    known: AuthoritySet,
    held: Option<ServedCertificate>,
}

impl CertificateManager {
    /// Creates a manager that has not read anything yet.
    pub fn new(
        client: Client,
        settings: CertificateSettings,
        metrics: CertificateMetrics,
        watch_failures: WatchFailures,
    ) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), &settings.namespace),
            injectors: Api::all(client.clone()),
            validators: Api::all(client.clone()),
            client,
            settings,
            serving: Arc::default(),
            trust: watch::Sender::new(Arc::from("")),
            ready: watch::Sender::new(false),
            metrics,
            watch_failures,
            known: AuthoritySet::default(),
            held: None,
        }
    }

    /// Returns the certificate to serve with.
    pub fn serving(&self) -> Arc<ServingCertificate> {
        Arc::clone(&self.serving)
    }

    /// Returns the authorities to trust, in PEM; empty before the first round.
    pub fn trust(&self) -> watch::Receiver<Arc<str>> {
        self.trust.subscribe()
    }

    /// Returns a value that turns true once there is a certificate and both webhooks trust it.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// Keeps everything current, for ever.
    pub async fn run(mut self) {
        let changed = Arc::new(Notify::new());
        let (client, failures) = (self.client.clone(), self.watch_failures.clone());
        let CertificateSettings { injector: injector_name, validator: validator_name, .. } = self.settings.clone();
        let injector: Api<PartialObjectMeta<MutatingWebhookConfiguration>> = Api::all(client.clone());
        let validator: Api<PartialObjectMeta<ValidatingWebhookConfiguration>> = Api::all(client);
        let injector = notify_of_changes(injector, &injector_name, &failures, Arc::clone(&changed));
        let validator = notify_of_changes(validator, &validator_name, &failures, Arc::clone(&changed));
        let keep = async {
            loop {
                let wait = match self.round(SystemTime::now()).await {
                    Ok(next) => {
                        self.ready.send_if_modified(|ready| !std::mem::replace(ready, true));
                        let until = next.duration_since(SystemTime::now()).unwrap_or_default();
                        until.min(self.settings.lifetimes.look())
                    }
                    Err(error) => {
                        self.metrics.failures.inc();
                        tracing::warn!(%error, "certificates are not in order; it is tried again");
                        self.settings.lifetimes.retry()
                    }
                };
                tokio::select! {
                    () = tokio::time::sleep(wait.max(GATHER)) => {}
                    () = changed.notified() => tokio::time::sleep(GATHER).await,
                }
            }
        };
        tokio::join!(keep, injector, validator);
    }

    /// Reads everything once and brings it up to date. Returns when the next change is due.
    async fn round(&mut self, now: SystemTime) -> Result<SystemTime, KeepError> {
        let (state, next) = match self.authorities(now).await {
            Ok(found) => found,
            Err(error) => {
                // What is shown must not run out meanwhile: the authorities that were in force last go on signing.
                if let Some(fresh) = self.issue(&self.known, now).ok().flatten() {
                    self.serve(fresh);
                }
                return Err(error);
            }
        };
        // Nobody is told of authorities that cannot sign what is accepted.
        let fresh = self.issue(&state, now)?;
        self.trust.send_if_modified(|trust| {
            let bundle = state.bundle();
            let differs = **trust != *bundle;
            if differs {
                *trust = bundle.into();
            }
            differs
        });
        if let Some(fresh) = fresh {
            self.serve(fresh);
        }
        self.known = state;
        self.webhooks().await?;
        let next = self.held.as_ref().map_or(next, |held| next.min(held.times.renew));
        // Without it sidecars do as onStoreFailure says; pods and policies must not wait for it.
        Ok(match self.store(now).await {
            Ok(()) => next,
            Err(error) => {
                self.metrics.failures.inc();
                tracing::warn!(%error, "the store's certificate is not in order; it is tried again");
                next.min(now + self.settings.lifetimes.retry())
            }
        })
    }

    /// Writes the certificate of the store where it is not as it should be.
    async fn store(&self, now: SystemTime) -> Result<(), KeepError> {
        let Some(StoreCertificateSettings { secret: name, names }) = &self.settings.store else { return Ok(()) };
        loop {
            let found = self.secrets.get_opt(name).await?;
            let due = shared_store::due(name, found.as_ref(), &self.known, names, now, &self.settings.lifetimes)
                .map_err(|why| KeepError::Store { name: name.clone(), why })?;
            let Some(secret) = due else { return Ok(()) };
            let written = match found {
                None => self.secrets.create(&PostParams::default(), &secret).await,
                Some(_) => self.secrets.replace(name, &PostParams::default(), &secret).await,
            };
            match written {
                Ok(_) => {
                    self.metrics.rotations.with_label_values(&["store"]).inc();
                    tracing::info!(secret = name, "the store has a new certificate");
                    return Ok(());
                }
                // Another replica was first; it is looked at.
                Err(kube::Error::Api(error)) if error.code == 409 => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads the authorities and does what is due. Returns them, and when the next change is due.
    async fn authorities(&self, now: SystemTime) -> Result<(AuthoritySet, SystemTime), KeepError> {
        let name = &self.settings.secret;
        // Another replica may write between our reading and our writing; then its word holds, and is read again.
        loop {
            let found = self.secrets.get_opt(name).await?;
            let read = found.as_ref().map(store::read).transpose();
            let read = read.map_err(|why| KeepError::Secret { name: name.clone(), why })?.flatten();
            let missing = read.is_none();
            let state = read.unwrap_or_else(|| self.known.clone());
            let plan = plan::plan(&state, now, &self.settings.lifetimes);
            if !missing && !plan.is_due() {
                return Ok((state, plan.next));
            }
            let changed = state.changed(&plan, issue::authority)?;
            let written = match found {
                None => self.secrets.create(&PostParams::default(), &store::secret(name, &changed)?).await,
                Some(mut secret) => {
                    secret.data = Some(store::data(&changed)?);
                    self.secrets.replace(name, &PostParams::default(), &secret).await
                }
            };
            match written {
                Ok(_) => {
                    if plan.make.is_some() {
                        self.metrics.rotations.with_label_values(&["ca"]).inc();
                    }
                    let ids: Vec<&str> = changed.authorities.iter().map(|authority| authority.id.as_str()).collect();
                    tracing::info!(secret = name, authorities = ids.join(" "), "the authorities changed");
                    let next = plan::plan(&changed, now, &self.settings.lifetimes).next;
                    return Ok((changed, next));
                }
                Err(kube::Error::Api(error)) if error.code == 409 => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Makes a certificate where the one that is served is old or signed by another authority.
    fn issue(&self, state: &AuthoritySet, now: SystemTime) -> Result<Option<IssuedCertificate>, KeepError> {
        let Some(signer) = state.signer(now) else {
            return Err(KeepError::Issue(IssueError::Verify("no authority can sign; is the clock right?".to_owned())));
        };
        if self.held.as_ref().is_some_and(|held| held.signer == signer.certificate && held.times.renew > now) {
            return Ok(None);
        }
        let times = plan::leaf(&signer.span, now, &self.settings.lifetimes);
        let leaf = issue::leaf(signer, &times, &self.settings.names)?;
        issue::verify(&leaf, state, &self.settings.names, now)?;
        tracing::debug!(authority = signer.id, "a certificate was made");
        let held = ServedCertificate { signer: signer.certificate.clone(), times };
        Ok(Some(IssuedCertificate {
            leaf,
            held,
            signer_valid_from: signer.span.valid_from(),
            signer_expires: signer.span.expires,
        }))
    }

    /// Serves a certificate from now on.
    fn serve(&mut self, IssuedCertificate { leaf, held, signer_valid_from, signer_expires }: IssuedCertificate) {
        self.serving.0.store(Some(Arc::new(leaf)));
        self.metrics.rotations.with_label_values(&["leaf"]).inc();
        for (certificate, at) in [("leaf", held.times.expires), ("ca", signer_expires)] {
            let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            self.metrics.expiry.with_label_values(&[certificate]).set(seconds);
        }
        for (certificate, from, to) in
            [("leaf", held.times.valid_from, held.times.expires), ("ca", signer_valid_from, signer_expires)]
        {
            let seconds = to.duration_since(from).unwrap_or_default().as_secs_f64();
            self.metrics.lifetime.with_label_values(&[certificate]).set(seconds);
        }
        self.held = Some(held);
    }

    /// Writes the `caBundle` of both configurations where it is not the authorities that are trusted.
    async fn webhooks(&self) -> Result<(), KeepError> {
        let bundle = BASE64.encode(self.known.bundle().as_bytes());
        let params = PatchParams { field_manager: Some("toolweir-operator".to_owned()), ..PatchParams::default() };
        let name = &self.settings.injector;
        let injector = self.injectors.get(name).await?;
        let held: Vec<WebhookBundle> = injector.webhooks.unwrap_or_default().into_iter().map(WebhookBundle::from).collect();
        if let Some(patch) = bundle_patch(&held, &bundle) {
            self.injectors.patch(name, &params, &Patch::Json::<()>(patch)).await?;
            tracing::info!(name, "the caBundle was written");
        }
        let name = &self.settings.validator;
        let validator = self.validators.get(name).await?;
        let held: Vec<WebhookBundle> = validator.webhooks.unwrap_or_default().into_iter().map(WebhookBundle::from).collect();
        if let Some(patch) = bundle_patch(&held, &bundle) {
            self.validators.patch(name, &params, &Patch::Json::<()>(patch)).await?;
            tracing::info!(name, "the caBundle was written");
        }
        Ok(())
    }
}

/// The name and the `caBundle` of a webhook of either kind.
#[derive(Debug)]
struct WebhookBundle {
    name: String,
    bundle: Option<String>,
}

impl From<k8s_openapi::api::admissionregistration::v1::MutatingWebhook> for WebhookBundle {
    fn from(webhook: k8s_openapi::api::admissionregistration::v1::MutatingWebhook) -> Self {
        Self { name: webhook.name, bundle: webhook.client_config.ca_bundle.map(|bundle| BASE64.encode(&bundle.0)) }
    }
}

impl From<k8s_openapi::api::admissionregistration::v1::ValidatingWebhook> for WebhookBundle {
    fn from(webhook: k8s_openapi::api::admissionregistration::v1::ValidatingWebhook) -> Self {
        Self { name: webhook.name, bundle: webhook.client_config.ca_bundle.map(|bundle| BASE64.encode(&bundle.0)) }
    }
}

/// Returns a patch that gives every webhook this `caBundle`; none where all have it. It tests the name at each place first, so
/// that a list that changed meanwhile is not written to.
fn bundle_patch(webhooks: &[WebhookBundle], bundle: &str) -> Option<json_patch::Patch> {
    let mut steps: Vec<Value> = Vec::new();
    for (at, webhook) in webhooks.iter().enumerate() {
        if webhook.bundle.as_deref() != Some(bundle) {
            steps.push(json!({"op": "test", "path": format!("/webhooks/{at}/name"), "value": webhook.name}));
            steps.push(json!({"op": "add", "path": format!("/webhooks/{at}/clientConfig/caBundle"), "value": bundle}));
        }
    }
    if steps.is_empty() { None } else { serde_json::from_value(Value::Array(steps)).ok() }
}

/// Notifies `changed` of every change of the object of this name, for ever.
async fn notify_of_changes<K>(api: Api<PartialObjectMeta<K>>, name: &str, failures: &WatchFailures, changed: Arc<Notify>)
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + 'static,
{
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let resource = K::plural(&()).into_owned();
    let events = watcher(api, config).default_backoff();
    events
        .for_each(|event| {
            match event {
                Ok(watcher::Event::Apply(_) | watcher::Event::InitDone) => changed.notify_one(),
                Ok(_) => {}
                Err(error) => failures.report(&resource, &error),
            }
            ready(())
        })
        .await;
}

#[cfg(test)]
mod tests;
