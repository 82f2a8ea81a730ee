//! `config.yaml`: what whoever installs the operator decides.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Deserializer, de};
use toolweir_crds::stream;
use toolweir_store::config::{self as store, LONGEST_BUDGET, LONGEST_PREFIX, is_prefix, is_username};

use crate::{
    certs::plan::{Lives, LivesError},
    inject::Quantity,
};

/// Namespaces that are protected whatever the configuration says: the cluster itself runs there.
pub const ALWAYS_PROTECTED: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];

/// The whole file. What is left out has its default, and what is not known is an error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// The sidecars that are injected.
    pub sidecar: Sidecar,
    /// Namespaces whose pods are never injected, besides [`ALWAYS_PROTECTED`] and the operator's own.
    pub protected_namespaces: Vec<String>,
    /// The store of counts that pods share; none: policies with a scope wider than a pod are refused.
    pub shared_store: Option<SharedStore>,
    /// Who may use the webhooks.
    pub webhooks: Webhooks,
    /// How long certificates live.
    pub certificates: Certificates,
}

/// Who may use the webhooks. Everybody who can connect, unless it is said how API servers are told from others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Webhooks {
    /// The file of the authorities, in PEM, that sign the certificates of API servers. It is read again and again.
    pub client_ca_file: Option<PathBuf>,
    /// Names of which such a certificate must have one, as its common name or as a DNS name. Any, where there is none.
    pub client_names: Vec<String>,
}

/// The sidecars that are injected.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Sidecar {
    /// The image.
    pub image: String,
    /// When it is pulled.
    pub image_pull_policy: PullPolicy,
    /// What a sidecar requests and is limited to; annotations of a pod override it.
    pub resources: Resources,
    /// What a sidecar logs; an annotation of a pod overrides it.
    pub log_level: LogLevel,
    /// How long the token lives that a sidecar shows to the operator.
    pub token_expiration_seconds: u64,
    /// Whether a pod gets the annotations by which a plain Prometheus finds its sidecar.
    pub scrape_annotations: bool,
}

impl Default for Sidecar {
    fn default() -> Self {
        Self {
            image: concat!("ghcr.io/toolweir/sidecar:", env!("CARGO_PKG_VERSION")).to_owned(),
            image_pull_policy: PullPolicy::default(),
            resources: Resources::default(),
            log_level: LogLevel::default(),
            token_expiration_seconds: 3600,
            scrape_annotations: false,
        }
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
    /// As Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// What a sidecar requests and is limited to. The defaults are those of the chart.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// What is kept free for it.
    pub requests: Amounts,
    /// What it may not exceed.
    pub limits: Amounts,
}

impl Default for Resources {
    fn default() -> Self {
        let amount = |text: &str| text.parse().ok();
        Self {
            requests: Amounts { cpu: amount("10m"), memory: amount("24Mi") },
            limits: Amounts { cpu: None, memory: amount("64Mi") },
        }
    }
}

/// Amounts of each resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Amounts {
    /// CPUs.
    pub cpu: Option<Quantity>,
    /// Bytes of memory.
    pub memory: Option<Quantity>,
}

/// What a sidecar logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What failed.
    Error,
    /// And what may fail.
    Warn,
    /// And what happens now and then.
    #[default]
    Info,
    /// And what happens all the time.
    Debug,
    /// And how.
    Trace,
}

impl LogLevel {
    /// Every level.
    pub const ALL: [Self; 6] = [Self::Off, Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    /// As the sidecar's `--log-level` takes it.
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
pub struct SharedStore {
    /// Where it is, in the form of [`stream::SharedStore::url`].
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
    pub certificate: Option<StoreCertificate>,
    /// What the keys in the store begin with.
    #[serde(default = "store_prefix")]
    pub prefix: String,
    /// Whether sidecars take places ahead of use where a limit is large against the traffic.
    #[serde(default = "yes")]
    pub leases: bool,
    /// How long a call may wait for the store, in milliseconds.
    #[serde(default = "store_budget")]
    pub budget_milliseconds: u64,
}

/// The certificate of a store, of the operator's own authorities. Sidecars are told to trust those.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StoreCertificate {
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

impl SharedStore {
    /// As sidecars get it, with what was read of the files.
    pub fn with(&self, password: Option<String>, ca: Option<String>) -> stream::SharedStore {
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
        let shown = |text: &str| text.chars().take(80).flat_map(char::escape_debug).collect::<String>();
        if !is_prefix(&self.prefix) {
            return Err(format!(
                "sharedStore.prefix: `{}` is no beginning of keys; write 1 to {LONGEST_PREFIX} letters, digits and `.`, `_`, `:`, \
                 `-`, such as toolweir",
                shown(&self.prefix)
            ));
        }
        if let Some(username) = self.username.as_deref().filter(|username| !is_username(username)) {
            return Err(format!(
                "sharedStore.username: `{}` is no ACL user; write its name, or leave it out for the default user",
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
        if self.ca_file.is_some() && !self.url.starts_with("rediss") && !self.url.starts_with("valkeys") {
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
            if !self.url.starts_with("rediss") && !self.url.starts_with("valkeys") {
                return Err(
                    "sharedStore.certificate: is given, and sharedStore.url is without TLS; write rediss:// there, or leave \
                            it out"
                        .to_owned(),
                );
            }
            for (field, name) in [("secret", &certificate.secret), ("service", &certificate.service)] {
                let usual = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
                if !(1..=253).contains(&name.len()) || !name.bytes().all(usual) {
                    return Err(format!("sharedStore.certificate.{field}: `{}` is no name of a {field}", shown(name)));
                }
            }
        }
        store::Config::try_from(&self.with(None, None)).map_err(|error| format!("sharedStore.url: {}", error.message))?;
        Ok(())
    }
}

/// How long certificates live: see docs/certificates.md for when they are made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Certificates {
    /// The operator's CA.
    #[serde(deserialize_with = "duration")]
    pub ca_life: Duration,
    /// What it signs for the operator.
    #[serde(deserialize_with = "duration")]
    pub leaf_life: Duration,
}

impl Default for Certificates {
    fn default() -> Self {
        Self { ca_life: Duration::from_secs(365 * 24 * 3600), leaf_life: Duration::from_secs(24 * 3600) }
    }
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(|_| {
        let shown: String = text.chars().take(40).flat_map(char::escape_debug).collect();
        de::Error::custom(format!("`{shown}` is no duration; write such as 365d, 24h or 90s"))
    })
}

/// What is wrong with a configuration: the field, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

/// What the API server takes for a token's life (`ServiceAccountTokenProjection.expirationSeconds`).
const TOKEN_LIVES: std::ops::RangeInclusive<u64> = 600..=1 << 32;

impl Config {
    /// Reads `config.yaml`.
    ///
    /// # Errors
    /// The first thing that is wrong, with its field.
    pub fn read(text: &str) -> Result<Self, ConfigError> {
        let read: Option<Self> =
            serde_yaml::from_str(text).map_err(|error| ConfigError(error.to_string().replace(char::is_control, " ")))?;
        let config = read.unwrap_or_default();
        config.check().map_err(ConfigError)?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let image = &self.sidecar.image;
        if image.is_empty() || image.len() > 1024 || !image.chars().all(|c| c.is_ascii_graphic()) {
            let shown: String = image.chars().take(80).flat_map(char::escape_debug).collect();
            return Err(format!("sidecar.image: `{shown}` is no image; write such as ghcr.io/toolweir/sidecar:0.1.0"));
        }
        self.sidecar.resources.check(|resource, kind| format!("sidecar.resources.{kind}s.{resource}"))?;
        let life = self.sidecar.token_expiration_seconds;
        if !TOKEN_LIVES.contains(&life) {
            let (least, most) = (TOKEN_LIVES.start(), TOKEN_LIVES.end());
            return Err(format!("sidecar.tokenExpirationSeconds: is {life}; from {least} to {most} are possible"));
        }
        for (at, name) in self.protected_namespaces.iter().enumerate() {
            let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            if !(1..=63).contains(&name.len()) || !name.bytes().all(inner) {
                let shown: String = name.chars().take(80).flat_map(char::escape_debug).collect();
                return Err(format!("protectedNamespaces[{at}]: `{shown}` is no name of a namespace"));
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
        self.lives().map_err(|error| format!("certificates.{error}"))?;
        self.shared_store.as_ref().map_or(Ok(()), SharedStore::check)
    }

    /// How long certificates live.
    ///
    /// # Errors
    /// They are too short or too long. Not of what [`Config::read`] gave.
    pub fn lives(&self) -> Result<Lives, LivesError> {
        Lives::new(self.certificates.ca_life, self.certificates.leaf_life)
    }

    /// Whether pods of a namespace are never touched.
    pub fn protects(&self, namespace: &str, operator_namespace: &str) -> bool {
        namespace == operator_namespace
            || ALWAYS_PROTECTED.contains(&namespace)
            || self.protected_namespaces.iter().any(|protected| protected == namespace)
    }
}

/// The least memory that a container can be limited to: with less, the runtime cannot start it.
const LEAST_MEMORY: u128 = 8 * 1024 * 1024 * 1_000_000_000;

impl Resources {
    /// Whether a sidecar can run with them. `name` names an amount by resource (`cpu`, `memory`) and kind (`request`,
    /// `limit`) for whoever wrote it.
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
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Config::read(text).unwrap_err().to_string()
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let config = Config::read("").unwrap();
        assert_eq!(config, Config::default());
        assert_eq!(config, Config::read("sidecar: {}\ncertificates: {}").unwrap());
        assert_eq!(config.sidecar.image, "ghcr.io/toolweir/sidecar:0.1.0");
        assert_eq!(config.sidecar.resources.limits.memory.unwrap().as_str(), "64Mi");
        assert_eq!(config.sidecar.resources.limits.cpu, None);
        assert_eq!(config.certificates.leaf_life, Duration::from_secs(86400));
    }

    #[test]
    fn every_field_is_read() {
        let text = "
            sidecar:
              image: localhost/toolweir-sidecar:e2e
              imagePullPolicy: Never
              resources: {requests: {cpu: 1, memory: 32Mi}, limits: {cpu: 1.5, memory: 128Mi}}
              logLevel: off
              tokenExpirationSeconds: 600
              scrapeAnnotations: true
            protectedNamespaces: [monitoring]
            sharedStore:
              url: rediss://store.example:6380
              username: toolweir
              passwordFile: /etc/store/password
              caFile: /etc/store/ca.crt
              prefix: team
              leases: false
              budgetMilliseconds: 20
            webhooks: {clientCaFile: /etc/client-ca/ca.crt, clientNames: [kube-apiserver]}
            certificates: {caLife: 2m, leafLife: 1m}";
        let config = Config::read(text).unwrap();
        assert_eq!((config.sidecar.image_pull_policy, config.sidecar.log_level), (PullPolicy::Never, LogLevel::Off));
        let limits = config.sidecar.resources.limits.clone();
        assert_eq!((limits.cpu.unwrap().as_str(), limits.memory.unwrap().as_str()), ("1.5", "128Mi"));
        assert_eq!(config.sidecar.token_expiration_seconds, 600);
        assert!(config.sidecar.scrape_annotations);
        let store = config.shared_store.as_ref().unwrap();
        assert_eq!(store.password_file.as_deref(), Some("/etc/store/password".as_ref()));
        assert_eq!(store.ca_file.as_deref(), Some("/etc/store/ca.crt".as_ref()));
        let sent = store.with(Some("secret".to_owned()), None);
        assert_eq!((sent.url.as_str(), sent.username.as_deref()), ("rediss://store.example:6380", Some("toolweir")));
        assert_eq!((sent.prefix.as_str(), sent.leases, sent.budget_milliseconds), ("team", false, 20));
        assert_eq!((config.certificates.ca_life.as_secs(), config.certificates.leaf_life.as_secs()), (120, 60));
        let webhooks =
            Webhooks { client_ca_file: Some("/etc/client-ca/ca.crt".into()), client_names: vec!["kube-apiserver".to_owned()] };
        assert_eq!(config.webhooks, webhooks);
        for namespace in ["monitoring", "kube-system", "kube-public", "kube-node-lease", "toolweir-system"] {
            assert!(config.protects(namespace, "toolweir-system"), "{namespace}");
        }
        assert!(!config.protects("agents", "toolweir-system"));
    }

    #[test]
    fn a_shared_store_needs_no_more_than_its_url() {
        let config = Config::read("sharedStore: {url: 'redis://store'}").unwrap();
        let store = config.shared_store.unwrap();
        assert_eq!((store.username, store.password_file, store.ca_file, store.certificate), (None, None, None, None));
        assert_eq!((store.prefix.as_str(), store.leases, store.budget_milliseconds), ("toolweir", true, 50));
        assert_eq!(Config::read("sharedStore: null").unwrap().shared_store, None);
        let config =
            Config::read("sharedStore: {url: 'rediss://store', certificate: {secret: store-tls, service: store}}").unwrap();
        let certificate = config.shared_store.unwrap().certificate.unwrap();
        assert_eq!((certificate.secret.as_str(), certificate.service.as_str()), ("store-tls", "store"));
    }

    #[test]
    fn resources_that_are_named_replace_the_defaults() {
        let config = Config::read("sidecar: {resources: {requests: {}, limits: {}}}").unwrap();
        assert_eq!(config.sidecar.resources, Resources { requests: Amounts::default(), limits: Amounts::default() });
    }

    #[test]
    fn what_is_wrong_is_named_with_its_field() {
        for (text, promised) in [
            ("side: {}", "unknown field `side`"),
            ("webhooks: {clientNames: [a]}", "webhooks.clientNames: is given without webhooks.clientCaFile"),
            ("webhooks: {clientCaFile: a, clientNames: [a, '']}", "webhooks.clientNames[1]: is empty"),
            ("webhooks: {clientCA: a}", "webhooks: unknown field `clientCA`"),
            ("sidecar: {images: a}", "sidecar: unknown field `images`"),
            ("sidecar: {image: ''}", "sidecar.image: `` is no image; write such as"),
            ("sidecar: {image: 'a b'}", "sidecar.image: `a b` is no image"),
            ("sidecar: {imagePullPolicy: Sometimes}", "unknown variant `Sometimes`, expected one of `Always`"),
            ("sidecar: {resources: {limits: {cpu: lots}}}", "limits.cpu: `lots` is no quantity; write such as 500m"),
            ("sidecar: {resources: {limits: {gpu: 1}}}", "unknown field `gpu`"),
            ("sidecar: {resources: {limits: {cpu: 0}}}", "sidecar.resources.limits.cpu: is 0; a limit is more than nothing"),
            ("sidecar: {resources: {limits: {memory: 64m}}}", "sidecar.resources.limits.memory: is 64m, too little"),
            (
                "sidecar: {resources: {requests: {memory: 1Gi}, limits: {memory: 64Mi}}}",
                "sidecar.resources.limits.memory: is 64Mi, less than the request, 1Gi; raise it, or lower sidecar.resources.requests.memory",
            ),
            ("sidecar: {logLevel: verbose}", "unknown variant `verbose`"),
            (
                "sidecar: {scrapeAnnotations: often}",
                "sidecar.scrapeAnnotations: invalid type: string \"often\", expected a boolean",
            ),
            ("sidecar: {tokenExpirationSeconds: 60}", "sidecar.tokenExpirationSeconds: is 60; from 600 to"),
            ("protectedNamespaces: [Kube]", "protectedNamespaces[0]: `Kube` is no name of a namespace"),
            ("certificates: {caLife: soon}", "certificates: `soon` is no duration; write such as 365d"),
            ("certificates: {leafLife: 5s}", "certificates.leafLife must be from 10s to caLife, for example 24h; it is 5s"),
            ("certificates: {caLife: 101years}", "certificates.caLife must be from 1m to 20 years"),
            (
                "certificates: {caLife: 1h, leafLife: 2h}",
                "certificates.leafLife must be from 10s to caLife, for example 24h; it is 2h",
            ),
            ("sharedStore: true", "sharedStore: invalid type: boolean `true`"),
            ("sharedStore: {}", "sharedStore: missing field `url`"),
            ("sharedStore: {url: 'redis://s', password: x}", "sharedStore: unknown field `password`"),
            ("sharedStore: {url: 'http://s'}", "sharedStore.url: "),
            ("sharedStore: {url: 'redis://:secret@s'}", "sharedStore.url: the store's url has a user or a password in it"),
            ("sharedStore: {url: 'redis://s', prefix: ''}", "sharedStore.prefix: `` is no beginning of keys"),
            ("sharedStore: {url: 'redis://s', prefix: '{a}'}", "sharedStore.prefix: `{a}` is no beginning of keys"),
            ("sharedStore: {url: 'redis://s', caFile: /ca}", "sharedStore.caFile: is given, and sharedStore.url is without TLS"),
            ("sharedStore: {url: 'redis://s', certificate: {secret: a}}", "sharedStore.certificate: missing field `service`"),
            (
                "sharedStore: {url: 'redis://s', certificate: {secret: a, service: b}}",
                "sharedStore.certificate: is given, and sharedStore.url is without TLS",
            ),
            (
                "sharedStore: {url: 'rediss://s', caFile: /ca, certificate: {secret: a, service: b}}",
                "sharedStore.certificate: is given, and so is sharedStore.caFile",
            ),
            (
                "sharedStore: {url: 'rediss://s', certificate: {secret: a/b, service: b}}",
                "sharedStore.certificate.secret: `a/b` is no name of a secret",
            ),
            ("sharedStore: {url: 'redis://s', username: ''}", "sharedStore.username: `` is no ACL user"),
            (
                "sharedStore: {url: 'redis://s', budgetMilliseconds: 0}",
                "sharedStore.budgetMilliseconds: is 0; from 1 to 10000 are possible",
            ),
            ("[1]", "invalid type: sequence"),
        ] {
            let error = error(text);
            assert!(error.contains(promised), "{text} gives {error:?}");
            assert!(!error.contains(char::is_control), "{error:?}");
        }
    }
}
