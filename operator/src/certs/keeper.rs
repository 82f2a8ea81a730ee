//! Keeps the authorities' Secret, this replica's certificate and the `caBundle` of the webhooks current.
//!
//! One loop does all three, in this order, and always from a Secret that was just read: a replica whose knowledge is old
//! cannot write an old `caBundle` over a new one for longer than it takes to be told.

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
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

use super::{
    issue::{self, IssueError},
    plan::{self, Lives, State},
    shared_store, store,
};
use crate::metrics::Metrics;

/// How long to wait after something else wrote an object, so that many changes are looked at once.
const GATHER: Duration = Duration::from_millis(50);

/// What is kept, and how.
#[derive(Clone, Debug)]
pub struct Settings {
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
    /// How long certificates live.
    pub lives: Lives,
    /// The certificate of the chart's store, where there is one.
    pub store: Option<StoreSettings>,
}

/// The certificate that is kept for a store.
#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// The Secret to keep it in.
    pub secret: String,
    /// The names that it is for.
    pub names: Vec<String>,
}

/// The certificate that this replica shows now. None before the first one was made: then no handshake succeeds.
#[derive(Debug, Default)]
pub struct Serving(ArcSwapOption<CertifiedKey>);

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

/// Why a round failed. All are tried again.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error("the API server did not do as asked: {0}")]
    Api(#[from] kube::Error),
    #[error(
        "Secret {name} cannot be used: {why}. Nothing is changed. Restore it, or delete it: an operator that ran before writes it \
         back. Where none did, restart the agents then"
    )]
    Secret { name: String, why: String },
    #[error(transparent)]
    Issue(#[from] IssueError),
    #[error("Secret {name}, with the certificate of the store: {why}")]
    Store { name: String, why: shared_store::Error },
    #[error("the authorities cannot be written: {0}")]
    Write(#[from] serde_json::Error),
}

/// What this replica shows.
struct Held {
    /// The certificate of the authority that signed it.
    signer: String,
    times: plan::Leaf,
}

/// A certificate that is in order and not shown yet.
struct Fresh {
    leaf: CertifiedKey,
    held: Held,
    signer_valid_from: SystemTime,
    signer_expires: SystemTime,
}

/// The keeper.
pub struct Keeper {
    client: Client,
    settings: Settings,
    secrets: Api<Secret>,
    injectors: Api<MutatingWebhookConfiguration>,
    validators: Api<ValidatingWebhookConfiguration>,
    serving: Arc<Serving>,
    trust: watch::Sender<Arc<str>>,
    ready: watch::Sender<bool>,
    metrics: Metrics,
    /// The authorities that were in force last: written back if somebody deletes the Secret, since every sidecar trusts them.
    known: State,
    held: Option<Held>,
}

impl Keeper {
    /// A keeper that has not looked yet.
    pub fn new(client: Client, settings: Settings, metrics: Metrics) -> Self {
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
            known: State::default(),
            held: None,
        }
    }

    /// The certificate to serve with.
    pub fn serving(&self) -> Arc<Serving> {
        Arc::clone(&self.serving)
    }

    /// The authorities to trust, in PEM; empty before the first round.
    pub fn trust(&self) -> watch::Receiver<Arc<str>> {
        self.trust.subscribe()
    }

    /// Turns true once there is a certificate and both webhooks trust it.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// Keeps everything current, for ever.
    pub async fn run(mut self) {
        let changed = Arc::new(Notify::new());
        let (client, metrics) = (self.client.clone(), self.metrics.clone());
        let Settings { injector: injector_name, validator: validator_name, .. } = self.settings.clone();
        let injector: Api<PartialObjectMeta<MutatingWebhookConfiguration>> = Api::all(client.clone());
        let validator: Api<PartialObjectMeta<ValidatingWebhookConfiguration>> = Api::all(client);
        let injector = tell(injector, &injector_name, &metrics, Arc::clone(&changed));
        let validator = tell(validator, &validator_name, &metrics, Arc::clone(&changed));
        let keep = async {
            loop {
                let wait = match self.round(SystemTime::now()).await {
                    Ok(next) => {
                        self.ready.send_if_modified(|ready| !std::mem::replace(ready, true));
                        let until = next.duration_since(SystemTime::now()).unwrap_or_default();
                        until.min(self.settings.lives.look())
                    }
                    Err(error) => {
                        self.metrics.certificate_failures.inc();
                        tracing::warn!(%error, "certificates are not in order; it is tried again");
                        self.settings.lives.retry()
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

    /// Looks at everything once and puts it in order. Gives when the next change is due.
    async fn round(&mut self, now: SystemTime) -> Result<SystemTime, KeepError> {
        let (state, next) = match self.authorities(now).await {
            Ok(found) => found,
            Err(error) => {
                // What is shown must not run out meanwhile: the authorities that were in force last go on signing.
                if let Some(fresh) = self.fresh(&self.known, now).ok().flatten() {
                    self.show(fresh);
                }
                return Err(error);
            }
        };
        // Nobody is told of authorities that cannot sign what is accepted.
        let fresh = self.fresh(&state, now)?;
        self.trust.send_if_modified(|trust| {
            let bundle = state.bundle();
            let differs = **trust != *bundle;
            if differs {
                *trust = bundle.into();
            }
            differs
        });
        if let Some(fresh) = fresh {
            self.show(fresh);
        }
        self.known = state;
        self.webhooks().await?;
        let next = self.held.as_ref().map_or(next, |held| next.min(held.times.renew));
        // Without it sidecars do as onStoreFailure says; pods and policies must not wait for it.
        Ok(match self.store(now).await {
            Ok(()) => next,
            Err(error) => {
                self.metrics.certificate_failures.inc();
                tracing::warn!(%error, "the store's certificate is not in order; it is tried again");
                next.min(now + self.settings.lives.retry())
            }
        })
    }

    /// Writes the certificate of the store where it is not what it should be.
    async fn store(&self, now: SystemTime) -> Result<(), KeepError> {
        let Some(StoreSettings { secret: name, names }) = &self.settings.store else { return Ok(()) };
        loop {
            let found = self.secrets.get_opt(name).await?;
            let due = shared_store::due(name, found.as_ref(), &self.known, names, now, &self.settings.lives)
                .map_err(|why| KeepError::Store { name: name.clone(), why })?;
            let Some(secret) = due else { return Ok(()) };
            let written = match found {
                None => self.secrets.create(&PostParams::default(), &secret).await,
                Some(_) => self.secrets.replace(name, &PostParams::default(), &secret).await,
            };
            match written {
                Ok(_) => {
                    self.metrics.certificate_rotations.with_label_values(&["store"]).inc();
                    tracing::info!(secret = name, "the store has a new certificate");
                    return Ok(());
                }
                // Another replica was first; it is looked at.
                Err(kube::Error::Api(error)) if error.code == 409 => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The authorities, after what was due was done.
    async fn authorities(&self, now: SystemTime) -> Result<(State, SystemTime), KeepError> {
        let name = &self.settings.secret;
        // Another replica may write between our reading and our writing; then its word holds, and is read again.
        loop {
            let found = self.secrets.get_opt(name).await?;
            let read = found.as_ref().map(store::read).transpose();
            let read = read.map_err(|why| KeepError::Secret { name: name.clone(), why })?.flatten();
            let missing = read.is_none();
            let state = read.unwrap_or_else(|| self.known.clone());
            let plan = plan::plan(&state, now, &self.settings.lives);
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
                        self.metrics.certificate_rotations.with_label_values(&["ca"]).inc();
                    }
                    let ids: Vec<&str> = changed.authorities.iter().map(|authority| authority.id.as_str()).collect();
                    tracing::info!(secret = name, authorities = ids.join(" "), "the authorities changed");
                    let next = plan::plan(&changed, now, &self.settings.lives).next;
                    return Ok((changed, next));
                }
                Err(kube::Error::Api(error)) if error.code == 409 => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// A new certificate where the one that is shown is old or signed by another authority.
    fn fresh(&self, state: &State, now: SystemTime) -> Result<Option<Fresh>, KeepError> {
        let Some(signer) = state.signer(now) else {
            return Err(KeepError::Issue(IssueError::Verify("no authority can sign; is the clock right?".to_owned())));
        };
        if self.held.as_ref().is_some_and(|held| held.signer == signer.certificate && held.times.renew > now) {
            return Ok(None);
        }
        let times = plan::leaf(&signer.span, now, &self.settings.lives);
        let leaf = issue::leaf(signer, &times, &self.settings.names)?;
        issue::verify(&leaf, state, &self.settings.names, now)?;
        tracing::debug!(authority = signer.id, "a certificate was made");
        let held = Held { signer: signer.certificate.clone(), times };
        Ok(Some(Fresh { leaf, held, signer_valid_from: signer.span.valid_from(), signer_expires: signer.span.expires }))
    }

    /// Shows a certificate from now on.
    fn show(&mut self, Fresh { leaf, held, signer_valid_from, signer_expires }: Fresh) {
        self.serving.0.store(Some(Arc::new(leaf)));
        self.metrics.certificate_rotations.with_label_values(&["leaf"]).inc();
        for (certificate, at) in [("leaf", held.times.expires), ("ca", signer_expires)] {
            let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            self.metrics.certificate_expiry.with_label_values(&[certificate]).set(seconds);
        }
        for (certificate, from, to) in
            [("leaf", held.times.valid_from, held.times.expires), ("ca", signer_valid_from, signer_expires)]
        {
            let seconds = to.duration_since(from).unwrap_or_default().as_secs_f64();
            self.metrics.certificate_lifetime.with_label_values(&[certificate]).set(seconds);
        }
        self.held = Some(held);
    }

    /// Writes the `caBundle` of both configurations where it is not what is trusted.
    async fn webhooks(&self) -> Result<(), KeepError> {
        let bundle = BASE64.encode(self.known.bundle().as_bytes());
        let params = PatchParams { field_manager: Some("toolweir-operator".to_owned()), ..PatchParams::default() };
        let name = &self.settings.injector;
        let injector = self.injectors.get(name).await?;
        let held: Vec<Webhook> = injector.webhooks.unwrap_or_default().into_iter().map(Webhook::from).collect();
        if let Some(patch) = bundle_patch(&held, &bundle) {
            self.injectors.patch(name, &params, &Patch::Json::<()>(patch)).await?;
            tracing::info!(name, "the caBundle was written");
        }
        let name = &self.settings.validator;
        let validator = self.validators.get(name).await?;
        let held: Vec<Webhook> = validator.webhooks.unwrap_or_default().into_iter().map(Webhook::from).collect();
        if let Some(patch) = bundle_patch(&held, &bundle) {
            self.validators.patch(name, &params, &Patch::Json::<()>(patch)).await?;
            tracing::info!(name, "the caBundle was written");
        }
        Ok(())
    }
}

/// What matters of a webhook of either kind.
#[derive(Debug)]
struct Webhook {
    name: String,
    bundle: Option<String>,
}

impl From<k8s_openapi::api::admissionregistration::v1::MutatingWebhook> for Webhook {
    fn from(webhook: k8s_openapi::api::admissionregistration::v1::MutatingWebhook) -> Self {
        Self { name: webhook.name, bundle: webhook.client_config.ca_bundle.map(|bundle| BASE64.encode(&bundle.0)) }
    }
}

impl From<k8s_openapi::api::admissionregistration::v1::ValidatingWebhook> for Webhook {
    fn from(webhook: k8s_openapi::api::admissionregistration::v1::ValidatingWebhook) -> Self {
        Self { name: webhook.name, bundle: webhook.client_config.ca_bundle.map(|bundle| BASE64.encode(&bundle.0)) }
    }
}

/// A patch that gives every webhook this `caBundle`; none where all have it. It tests the name at each place first, so that a
/// list that changed meanwhile is not written to.
fn bundle_patch(webhooks: &[Webhook], bundle: &str) -> Option<json_patch::Patch> {
    let mut steps: Vec<Value> = Vec::new();
    for (at, webhook) in webhooks.iter().enumerate() {
        if webhook.bundle.as_deref() != Some(bundle) {
            steps.push(json!({"op": "test", "path": format!("/webhooks/{at}/name"), "value": webhook.name}));
            steps.push(json!({"op": "add", "path": format!("/webhooks/{at}/clientConfig/caBundle"), "value": bundle}));
        }
    }
    if steps.is_empty() { None } else { serde_json::from_value(Value::Array(steps)).ok() }
}

/// Tells of every change of the object of this name, for ever.
async fn tell<K>(api: Api<PartialObjectMeta<K>>, name: &str, metrics: &Metrics, changed: Arc<Notify>)
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
                Err(error) => {
                    metrics.watch_failures.with_label_values(&[&resource]).inc();
                    tracing::warn!(%error, resource, "watch failed; it is begun anew");
                }
            }
            ready(())
        })
        .await;
}

#[cfg(test)]
mod tests;
