//! The operator's configuration file, `config.yaml`.

mod capture;
mod ports;

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Deserializer, de};
use toolweir_crds::{stream, text::one_line};
use toolweir_store::config::{self as store, LONGEST_BUDGET, LONGEST_PREFIX, is_prefix, is_username};

use crate::{
    certs::plan::{CertificateLifetimes, LifetimesError},
    credentials::{check_audiences, secret_problem},
    quantity::Quantity,
};

pub use self::{
    capture::{CaptureConfig, CaptureMethod, IdRange},
    ports::SidecarPorts,
};

/// Namespaces that are always protected: the cluster itself runs there.
pub const ALWAYS_PROTECTED: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];

/// The whole file. Fields that are left out have their defaults; fields that are not known are errors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct OperatorConfig {
    /// The sidecars that are injected.
    pub sidecar: SidecarConfig,
    /// How traffic of pods that opt in to it is captured.
    pub capture: CaptureConfig,
    /// Namespaces whose pods are never injected, besides [`ALWAYS_PROTECTED`] and the operator's own.
    pub protected_namespaces: Vec<String>,
    /// The store of counts that pods share; none: policies with a scope wider than a pod are refused.
    pub shared_store: Option<SharedStoreConfig>,
    /// The clients that may use the webhooks.
    pub webhooks: WebhooksConfig,
    /// The lifetimes of certificates.
    pub certificates: CertificatesConfig,
}

/// The clients that may use the webhooks. Every client may, unless the file says how API servers authenticate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct WebhooksConfig {
    /// The file of the authorities, in PEM, that sign the certificates of API servers. It is read again and again.
    pub client_ca_file: Option<PathBuf>,
    /// Names of which such a certificate must have one, as its common name or as a DNS name. Any, where there is none.
    pub client_names: Vec<String>,
}

/// The sidecars that are injected.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SidecarConfig {
    /// The image.
    pub image: String,
    /// The image pull policy.
    pub image_pull_policy: PullPolicy,
    /// The resources of a sidecar; annotations of a pod override them.
    pub resources: SidecarResources,
    /// The log level of a sidecar; an annotation of a pod overrides it.
    pub log_level: SidecarLogLevel,
    /// The lifetime of the token that a sidecar shows to the operator, in seconds.
    pub token_expiration_seconds: u64,
    /// True if pods get the annotations by which a plain Prometheus finds its sidecar.
    pub scrape_annotations: bool,
    /// The Secret of a pod's namespace whose keys policies name; empty: none. Annotations of a pod or its namespace override it.
    pub credentials_secret: String,
    /// The audiences of tokens of a pod's service account; annotations of a pod or its namespace override them.
    pub token_audiences: Vec<String>,
    /// The ports at which a sidecar listens.
    pub ports: SidecarPorts,
}

impl Default for SidecarConfig {
    fn default() -> Self {
        Self {
            image: concat!("ghcr.io/toolweir/sidecar:", env!("CARGO_PKG_VERSION")).to_owned(),
            image_pull_policy: PullPolicy::default(),
            resources: SidecarResources::default(),
            log_level: SidecarLogLevel::default(),
            token_expiration_seconds: 3600,
            scrape_annotations: false,
            credentials_secret: String::new(),
            token_audiences: Vec::new(),
            ports: SidecarPorts::default(),
        }
    }
}

impl SidecarConfig {
    /// Checks the fields on credentials of servers.
    fn check_credentials(&self) -> Result<(), String> {
        let secret = Some(&self.credentials_secret).filter(|name| !name.is_empty());
        if let Some(problem) = secret.and_then(|name| secret_problem(name)) {
            return Err(format!("sidecar.credentialsSecret: {problem}"));
        }
        check_audiences("sidecar.tokenAudiences", &self.token_audiences)
    }
}

/// When an image is pulled (Kubernetes API, `Container.imagePullPolicy`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum PullPolicy {
    /// At every start.
    Always,
    /// When the node does not have it.
    #[default]
    IfNotPresent,
    /// Never: the node has it.
    Never,
}

impl PullPolicy {
    /// Returns the policy as Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// The resources of a sidecar. The defaults are those of the chart.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SidecarResources {
    /// The requests.
    pub requests: ResourceAmounts,
    /// The limits.
    pub limits: ResourceAmounts,
}

impl Default for SidecarResources {
    fn default() -> Self {
        let amount = |text: &str| text.parse().ok();
        Self {
            requests: ResourceAmounts { cpu: amount("10m"), memory: amount("24Mi") },
            limits: ResourceAmounts { cpu: None, memory: amount("64Mi") },
        }
    }
}

/// An amount of each resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ResourceAmounts {
    /// CPUs.
    pub cpu: Option<Quantity>,
    /// Bytes of memory.
    pub memory: Option<Quantity>,
}

/// The log level of a sidecar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SidecarLogLevel {
    /// Nothing.
    Off,
    /// Errors.
    Error,
    /// And warnings.
    Warn,
    /// And rare events.
    #[default]
    Info,
    /// And frequent events.
    Debug,
    /// And their details.
    Trace,
}

impl SidecarLogLevel {
    /// Every level.
    pub const ALL: [Self; 6] = [Self::Off, Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    /// Returns the level as the sidecar's `--log-level` takes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// The store of counts that pods share.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SharedStoreConfig {
    /// Its URL, in the form of [`stream::SharedStore::url`].
    pub url: String,
    /// The ACL user; the default user where it is left out.
    #[serde(default)]
    pub username: Option<String>,
    /// The file of the password. It is read again and again.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// The file of certificates, in PEM, to trust besides the system's. It is read again and again.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// The certificate that the operator makes for the store, if it does.
    #[serde(default)]
    pub certificate: Option<StoreCertificateConfig>,
    /// The prefix of the keys in the store.
    #[serde(default = "store_prefix")]
    pub prefix: String,
    /// True if sidecars lease calls ahead of use where a limit is large compared with the traffic.
    #[serde(default = "yes")]
    pub leases: bool,
    /// The time that a call may wait for the store, in milliseconds.
    #[serde(default = "store_budget")]
    pub budget_milliseconds: u64,
}

/// The certificate of a store, signed by the operator's own authorities. Sidecars are told to trust those.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StoreCertificateConfig {
    /// The Secret to keep it in, in the operator's namespace: `tls.crt`, `tls.key` and `ca.crt`.
    pub secret: String,
    /// The Service of the store, in the same namespace, whose names it is for.
    pub service: String,
}

fn store_prefix() -> String {
    stream::STORE_PREFIX.to_owned()
}

fn store_budget() -> u64 {
    stream::STORE_BUDGET_MILLISECONDS
}

fn yes() -> bool {
    true
}

impl SharedStoreConfig {
    /// Returns the store as sidecars get it, with the text of the files.
    pub fn for_sidecars(&self, password: Option<String>, ca: Option<String>) -> stream::SharedStore {
        stream::SharedStore {
            url: self.url.clone(),
            username: self.username.clone(),
            password,
            ca,
            prefix: self.prefix.clone(),
            leases: self.leases,
            budget_milliseconds: self.budget_milliseconds,
        }
    }

    fn check(&self) -> Result<(), String> {
        if !is_prefix(&self.prefix) {
            return Err(format!(
                "sharedStore.prefix: `{}` is not a valid prefix of keys; write 1 to {LONGEST_PREFIX} letters, digits and `.`, `_`, `:`, \
                 `-`, such as toolweir",
                shown(&self.prefix)
            ));
        }
        if let Some(username) = self.username.as_deref().filter(|username| !is_username(username)) {
            return Err(format!(
                "sharedStore.username: `{}` is not the name of an ACL user; write one, or leave it out for the default user",
                shown(username)
            ));
        }
        let budget = Duration::from_millis(self.budget_milliseconds);
        if budget.is_zero() || budget > LONGEST_BUDGET {
            return Err(format!(
                "sharedStore.budgetMilliseconds: is {}; from 1 to {} are possible",
                self.budget_milliseconds,
                LONGEST_BUDGET.as_millis()
            ));
        }
        self.check_certificates()?;
        store::StoreConfig::try_from(&self.for_sidecars(None, None))
            .map_err(|error| format!("sharedStore.url: {}", error.message))?;
        Ok(())
    }

    /// Checks the fields on the store's certificate.
    fn check_certificates(&self) -> Result<(), String> {
        let has_tls = self.url.starts_with("rediss") || self.url.starts_with("valkeys");
        if self.ca_file.is_some() && !has_tls {
            return Err(
                "sharedStore.caFile: is given, and sharedStore.url is without TLS; write rediss:// there, or leave it out"
                    .to_owned(),
            );
        }
        if let Some(certificate) = &self.certificate {
            if self.ca_file.is_some() {
                return Err(
                    "sharedStore.certificate: is given, and so is sharedStore.caFile; the certificate is of the operator's \
                            authorities, so leave out one of the two"
                        .to_owned(),
                );
            }
            if !has_tls {
                return Err(
                    "sharedStore.certificate: is given, and sharedStore.url is without TLS; write rediss:// there, or leave \
                            it out"
                        .to_owned(),
                );
            }
            for (field, name) in [("secret", &certificate.secret), ("service", &certificate.service)] {
                let usual = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
                if !(1..=253).contains(&name.len()) || !name.bytes().all(usual) {
                    return Err(format!("sharedStore.certificate.{field}: `{}` is not the name of a {field}", shown(name)));
                }
            }
        }
        Ok(())
    }
}

/// Returns the start of a text on one line, for an error.
fn shown(text: &str) -> String {
    toolweir_crds::text::escaped(text, 80)
}

/// The lifetimes of certificates: see docs/certificates.md for when they are made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CertificatesConfig {
    /// The operator's CA.
    #[serde(deserialize_with = "duration")]
    pub ca_life: Duration,
    /// The certificates that it signs for the operator.
    #[serde(deserialize_with = "duration")]
    pub leaf_life: Duration,
}

impl Default for CertificatesConfig {
    fn default() -> Self {
        Self { ca_life: Duration::from_secs(365 * 24 * 3600), leaf_life: Duration::from_secs(24 * 3600) }
    }
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(|_| {
        let shown: String = text.chars().take(40).flat_map(char::escape_debug).collect();
        de::Error::custom(format!("`{shown}` is not a duration; write for example 365d, 24h or 90s"))
    })
}

/// An error in a configuration: the field, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

/// The lifetimes of a token that the API server accepts, in seconds (`ServiceAccountTokenProjection.expirationSeconds`).
const TOKEN_LIFETIMES: std::ops::RangeInclusive<u64> = 600..=1 << 32;

impl OperatorConfig {
    /// Reads `config.yaml`.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn read(text: &str) -> Result<Self, ConfigError> {
        let read: Option<Self> =
            serde_yaml::from_str(text).map_err(|error| ConfigError(one_line(&error.to_string(), usize::MAX)))?;
        let config = read.unwrap_or_default();
        config.check().map_err(ConfigError)?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let image = &self.sidecar.image;
        if image.is_empty() || image.len() > 1024 || !image.chars().all(|c| c.is_ascii_graphic()) {
            return Err(format!(
                "sidecar.image: `{}` is not an image; write for example ghcr.io/toolweir/sidecar:0.1.0",
                shown(image)
            ));
        }
        self.sidecar.resources.check(|resource, kind| format!("sidecar.resources.{kind}s.{resource}"))?;
        let life = self.sidecar.token_expiration_seconds;
        if !TOKEN_LIFETIMES.contains(&life) {
            let (least, most) = (TOKEN_LIFETIMES.start(), TOKEN_LIFETIMES.end());
            return Err(format!("sidecar.tokenExpirationSeconds: is {life}; from {least} to {most} are possible"));
        }
        self.sidecar.check_credentials()?;
        self.sidecar.ports.check()?;
        self.capture.check()?;
        for (at, name) in self.protected_namespaces.iter().enumerate() {
            let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            if !(1..=63).contains(&name.len()) || !name.bytes().all(inner) {
                return Err(format!("protectedNamespaces[{at}]: `{}` is not the name of a namespace", shown(name)));
            }
        }
        if self.webhooks.client_ca_file.is_none() && !self.webhooks.client_names.is_empty() {
            return Err("webhooks.clientNames: is given without webhooks.clientCaFile, and nobody is asked for a certificate; \
                        write both"
                .to_owned());
        }
        if let Some(at) = self.webhooks.client_names.iter().position(String::is_empty) {
            return Err(format!("webhooks.clientNames[{at}]: is empty; write a name such as kube-apiserver"));
        }
        self.lifetimes().map_err(|error| format!("certificates.{error}"))?;
        self.shared_store.as_ref().map_or(Ok(()), SharedStoreConfig::check)
    }

    /// Returns the lifetimes of certificates.
    ///
    /// # Errors
    /// They are too short or too long. Never for a configuration that [`OperatorConfig::read`] returned.
    pub fn lifetimes(&self) -> Result<CertificateLifetimes, LifetimesError> {
        CertificateLifetimes::new(self.certificates.ca_life, self.certificates.leaf_life)
    }

    /// Returns whether pods of a namespace are never injected.
    pub fn protects(&self, namespace: &str, operator_namespace: &str) -> bool {
        namespace == operator_namespace
            || ALWAYS_PROTECTED.contains(&namespace)
            || self.protected_namespaces.iter().any(|protected| protected == namespace)
    }
}

/// The least memory that a container can be limited to: with less, the runtime cannot start it.
const LEAST_MEMORY: u128 = 8 * 1024 * 1024 * 1_000_000_000;

impl SidecarResources {
    /// Checks that a sidecar can run with them. `name` returns where an amount is written, by resource (`cpu`, `memory`) and kind
    /// (`request`, `limit`).
    pub(crate) fn check(&self, name: impl Fn(&str, &str) -> String) -> Result<(), String> {
        let (requests, limits) = (&self.requests, &self.limits);
        for (resource, request, limit) in [("cpu", &requests.cpu, &limits.cpu), ("memory", &requests.memory, &limits.memory)] {
            let Some(limit) = limit else { continue };
            let field = name(resource, "limit");
            if limit.nanos() == 0 {
                return Err(format!("{field}: is {limit}; a limit is more than nothing"));
            }
            if resource == "memory" && limit.nanos() < LEAST_MEMORY {
                return Err(format!("{field}: is {limit}, too little to start with; write 8Mi or more, such as 64Mi"));
            }
            if let Some(request) = request
                && request.nanos() > limit.nanos()
            {
                let other = name(resource, "request");
                return Err(format!("{field}: is {limit}, less than the request, {request}; raise it, or lower {other}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
