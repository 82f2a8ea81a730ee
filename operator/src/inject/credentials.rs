//! What a pod's sidecar mounts for credentials of servers: keys of a Secret, and tokens of the pod's service account.

use serde_json::{Value, json};
use toolweir_crds::credential::token_file;

use super::{
    context::InjectionContext,
    fields::{annotation, items, path, shown},
};
use crate::credentials::{
    AUDIENCE_TOKENS_PATH, AUDIENCE_TOKENS_VOLUME, CREDENTIALS, CREDENTIALS_PATH, CREDENTIALS_VOLUME, TOKEN_AUDIENCES,
    read_audiences, secret_problem,
};

/// What the sidecar of one pod mounts.
#[derive(Debug)]
pub(crate) struct CredentialVolumes {
    /// The Secret, if there is one.
    secret: Option<String>,
    /// The audiences of the tokens, each once.
    audiences: Vec<String>,
    token_seconds: u64,
}

impl CredentialVolumes {
    /// Reads the annotations of the pod, else those of its namespace, else the configuration. An empty annotation means none.
    ///
    /// # Errors
    /// An annotation is wrong: which, and what to write instead.
    pub fn new(pod: &Value, context: &InjectionContext<'_>) -> Result<Self, String> {
        let sidecar = &context.config.sidecar;
        let of_namespace = |key: &str, text: Option<&Box<str>>| {
            text.map(|text| (format!("namespace {}: {}", shown(context.namespace), path(key)), text.to_string()))
        };
        let given = |key: &str, of_namespace: Option<(String, String)>| {
            annotation(pod, key).map(|text| (path(key), text.to_owned())).or(of_namespace)
        };
        let info = context.namespace_info;
        let secret = given(CREDENTIALS, of_namespace(CREDENTIALS, info.and_then(|info| info.credentials.as_ref())));
        let secret = match secret {
            Some((_, name)) if name.is_empty() => None,
            Some((path, name)) => match secret_problem(&name) {
                Some(problem) => return Err(format!("{path}: {problem}")),
                None => Some(name),
            },
            None => Some(sidecar.credentials_secret.clone()).filter(|name| !name.is_empty()),
        };
        let of_namespace = of_namespace(TOKEN_AUDIENCES, info.and_then(|info| info.token_audiences.as_ref()));
        let audiences = match given(TOKEN_AUDIENCES, of_namespace) {
            Some((path, text)) => read_audiences(&text).map_err(|problem| format!("{path}: {problem}"))?,
            None => sidecar.token_audiences.clone(),
        };
        Ok(Self { secret, audiences, token_seconds: sidecar.token_expiration_seconds })
    }

    /// Returns whether there is neither a Secret nor an audience.
    pub fn is_empty(&self) -> bool {
        self.secret.is_none() && self.audiences.is_empty()
    }

    /// Returns the volumes. Their files are 0644 for the same reason as the sidecar's token.
    pub fn volumes(&self) -> Vec<Value> {
        let secret = self.secret.iter().map(|secret| {
            json!({"name": CREDENTIALS_VOLUME, "secret": {"defaultMode": 0o644, "optional": true, "secretName": secret}})
        });
        let token = |audience: &String| {
            let path = token_file(audience);
            json!({"serviceAccountToken": {"audience": audience, "expirationSeconds": self.token_seconds, "path": path}})
        };
        let sources: Vec<Value> = self.audiences.iter().map(token).collect();
        let tokens = (!sources.is_empty())
            .then(|| json!({"name": AUDIENCE_TOKENS_VOLUME, "projected": {"defaultMode": 0o644, "sources": sources}}));
        secret.chain(tokens).collect()
    }

    /// Returns the names and paths at which the sidecar mounts the volumes, with the flags that name these.
    fn places(&self) -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
        let secret = self.secret.as_ref().map(|_| (CREDENTIALS_VOLUME, CREDENTIALS_PATH, "--credentials-dir"));
        let has_tokens = !self.audiences.is_empty();
        secret.into_iter().chain(has_tokens.then_some((AUDIENCE_TOKENS_VOLUME, AUDIENCE_TOKENS_PATH, "--audience-tokens-dir")))
    }

    /// Returns the mounts of the sidecar.
    pub fn mounts(&self) -> Vec<Value> {
        self.places().map(|(name, path, _)| json!({"name": name, "mountPath": path, "readOnly": true})).collect()
    }

    /// Returns the arguments of the sidecar.
    pub fn args(&self) -> Vec<&'static str> {
        self.places().flat_map(|(_, path, flag)| [flag, path]).collect()
    }

    /// Warns of a volume of the pod's own that has what is to be the sidecar's alone.
    pub fn warn_of_volume(&self, volume: &Value, who: &str, warnings: &mut Vec<String>) {
        if let Some(secret) = self.secret.as_ref().filter(|secret| has_secret(volume, secret)) {
            warnings.push(format!("{who}: has the Secret {secret} too; who reads it needs no sidecar to use its keys"));
        }
        for audience in self.audiences.iter().filter(|audience| has_token(volume, audience)) {
            warnings.push(format!("{who}: has a token of the audience {audience} too; who reads it needs no sidecar to use it"));
        }
    }

    /// Warns of a container whose variables have what is to be the sidecar's alone.
    pub fn warn_of_container(&self, container: &Value, who: &str, warnings: &mut Vec<String>) {
        let Some(secret) = &self.secret else { return };
        let is_it = |env: &Value, path: &str| env.pointer(path).and_then(Value::as_str) == Some(secret);
        if items(container, "env").iter().any(|env| is_it(env, "/valueFrom/secretKeyRef/name"))
            || items(container, "envFrom").iter().any(|env| is_it(env, "/secretRef/name"))
        {
            warnings
                .push(format!("{who}: its env has keys of the Secret {secret} too; who reads them needs no sidecar to use them"));
        }
    }
}

fn sources(volume: &Value) -> &[Value] {
    volume.get("projected").map_or(&[][..], |projected| items(projected, "sources"))
}

/// Returns whether a volume has files of a Secret.
fn has_secret(volume: &Value, secret: &str) -> bool {
    volume.pointer("/secret/secretName").and_then(Value::as_str) == Some(secret)
        || sources(volume).iter().any(|source| source.pointer("/secret/name").and_then(Value::as_str) == Some(secret))
}

/// Returns whether a volume has a token of an audience.
pub(super) fn has_token(volume: &Value, audience: &str) -> bool {
    sources(volume).iter().any(|source| source.pointer("/serviceAccountToken/audience").and_then(Value::as_str) == Some(audience))
}
