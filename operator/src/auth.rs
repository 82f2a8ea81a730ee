//! Authentication of sidecars: the API server reviews the token, and everything that is known of the sidecar comes from that
//! review.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use data_encoding::BASE64URL_NOPAD;
use http::{HeaderMap, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::{Api, Client, api::PostParams};
use prometheus::IntCounterVec;
use serde::Deserialize;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};
use toolweir_crds::sidecar::AUDIENCE;

use crate::{index::PodKey, metrics::OperatorRegistry, seats::Seat};

/// The longest token that is looked at, in bytes.
const LONGEST_TOKEN: usize = 16 * 1024;
/// The time limit of a review, in seconds.
const REVIEW_SECONDS: u64 = 5;
/// The most reviews at once, so that a thousand sidecars that reconnect do not flood the API server.
const REVIEWS: usize = 32;
/// The most reviews at once of tokens that claim to be of the same pod.
const REVIEWS_OF_POD: usize = 2;
/// The most reviews at once of tokens that do not name a pod. Anybody can show one; a kubelet's tokens do name it.
const REVIEWS_OF_OTHERS: usize = 4;
/// The most reviews that wait.
const QUEUE: usize = 512;
/// The time for which a token that the API server did not accept is refused without asking again.
const FORGET: Duration = Duration::from_secs(10);
/// The most refused tokens that are remembered.
const REMEMBERED: usize = 1024;

/// The pod that a token was made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodIdentity {
    /// The pod.
    pub pod: PodKey,
    /// The pod's uid.
    pub uid: String,
    /// Its service account.
    pub service_account: String,
}

/// The reasons to refuse a stream: the closed set of the label `reason` of `toolweir_operator_stream_refused_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamRefusal {
    /// There is no `Authorization: Bearer` header. 401.
    #[error("show the token of audience `toolweir` as `Authorization: Bearer`")]
    NoToken,
    /// The API server does not take the token for one of this audience: forged, expired, of another audience, or of a pod
    /// that is gone. 401.
    #[error("the token is not valid for the audience `toolweir`")]
    BadToken,
    /// The token is in order but was not made for a pod. 403.
    #[error("the token is not bound to a pod; it must be a projected token of the sidecar")]
    NoPod,
    /// The token's pod does not run now, as far as this replica knows. 403.
    #[error("the token's pod does not run")]
    UnknownPod,
    /// The API server could not be asked. 503.
    #[error("the API server cannot review the token now; try again")]
    ReviewFailed,
    /// This replica has not seen the whole cluster yet. 503.
    #[error("not ready yet; try again")]
    NotSynced,
    /// Too many ask at once, or too many streams are open. 503.
    #[error("too many streams are opened at once; try again")]
    Busy,
}

impl StreamRefusal {
    /// Every reason.
    pub const ALL: [Self; 7] =
        [Self::NoToken, Self::BadToken, Self::NoPod, Self::UnknownPod, Self::ReviewFailed, Self::NotSynced, Self::Busy];

    /// Returns the reason as metrics name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoToken => "no_token",
            Self::BadToken => "bad_token",
            Self::NoPod => "no_pod",
            Self::UnknownPod => "unknown_pod",
            Self::ReviewFailed => "review_failed",
            Self::NotSynced => "not_synced",
            Self::Busy => "busy",
        }
    }

    /// Returns the HTTP status of the answer.
    pub fn status(self) -> http::StatusCode {
        match self {
            Self::NoToken | Self::BadToken => http::StatusCode::UNAUTHORIZED,
            Self::NoPod | Self::UnknownPod => http::StatusCode::FORBIDDEN,
            Self::ReviewFailed | Self::NotSynced | Self::Busy => http::StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// Registers the metric of refused streams, with every reason at 0.
///
/// # Errors
/// Those of [`OperatorRegistry::counter`].
pub fn refusals(registry: &OperatorRegistry) -> Result<IntCounterVec, prometheus::Error> {
    registry.counters_at_zero(
        "toolweir_operator_stream_refused_total",
        "Policy streams that were not opened, by reason.",
        "reason",
        StreamRefusal::ALL.map(StreamRefusal::as_str),
    )
}

/// Has the API server review tokens.
#[derive(Clone, Debug)]
pub struct TokenReviewer {
    reviews: Api<TokenReview>,
    limits: Arc<ReviewLimits>,
}

/// The limits on reviews.
#[derive(Debug)]
struct ReviewLimits {
    places: Semaphore,
    others: Semaphore,
    waiting: Semaphore,
    /// The number of reviews for each pod that tokens claim, by its uid.
    pods: Mutex<HashMap<String, usize>>,
    /// Hashes of tokens that were refused, and when; the oldest first.
    refused: Mutex<VecDeque<([u8; 32], Instant)>>,
}

/// A review of a pod's token that is under way.
struct PodReview<'a>(&'a ReviewLimits, &'a str);

impl Drop for PodReview<'_> {
    fn drop(&mut self) {
        let mut pods = locked(&self.0.pods);
        if let Some(count) = pods.get_mut(self.1) {
            *count -= 1;
            if *count == 0 {
                pods.remove(self.1);
            }
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ReviewLimits {
    fn of_pod<'a>(&'a self, uid: &'a str) -> Option<PodReview<'a>> {
        let mut pods = locked(&self.pods);
        let count = pods.entry(uid.to_owned()).or_default();
        if *count >= REVIEWS_OF_POD {
            return None;
        }
        *count += 1;
        Some(PodReview(self, uid))
    }

    fn was_refused(&self, hash: &[u8; 32], now: Instant) -> bool {
        let mut refused = locked(&self.refused);
        while refused.front().is_some_and(|(_, when)| now.saturating_duration_since(*when) >= FORGET) {
            refused.pop_front();
        }
        refused.iter().any(|(other, _)| other == hash)
    }

    fn refuse(&self, hash: [u8; 32], now: Instant) {
        let mut refused = locked(&self.refused);
        if refused.len() == REMEMBERED {
            refused.pop_front();
        }
        refused.push_back((hash, now));
    }
}

impl TokenReviewer {
    /// Creates a reviewer that asks the API server.
    pub fn new(client: Client) -> Self {
        let limits = ReviewLimits {
            places: Semaphore::new(REVIEWS),
            others: Semaphore::new(REVIEWS_OF_OTHERS),
            waiting: Semaphore::new(QUEUE),
            pods: Mutex::default(),
            refused: Mutex::default(),
        };
        Self { reviews: Api::all(client), limits: Arc::new(limits) }
    }

    /// Returns the pod that a token was made for. `claimed`: the pod that the token names; `seat`: the connection, which is not
    /// closed for others while the API server reviews the token.
    ///
    /// # Errors
    /// The token is refused.
    pub async fn review(
        &self,
        token: &str,
        claimed: Option<&ClaimedIdentity>,
        seat: Option<&Arc<Seat>>,
    ) -> Result<PodIdentity, StreamRefusal> {
        let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
        let hash = <[u8; 32]>::try_from(digest.as_ref()).unwrap_or_default();
        if self.limits.was_refused(&hash, Instant::now()) {
            return Err(StreamRefusal::BadToken);
        }
        let _waits = self.limits.waiting.try_acquire().map_err(|_| StreamRefusal::Busy)?;
        let _of_pod = match claimed {
            Some(claimed) => Some(self.limits.of_pod(&claimed.uid).ok_or(StreamRefusal::Busy)?),
            None => None,
        };
        let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![AUDIENCE.to_owned()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let asked = timeout(Duration::from_secs(REVIEW_SECONDS), async {
            // Tokens that do not name a pod wait apart, and do not keep the others out.
            let _other = match claimed {
                Some(_) => None,
                None => Some(self.limits.others.acquire().await),
            };
            let _place = self.limits.places.acquire().await;
            let _hold = seat.map(Seat::hold);
            self.reviews.create(&PostParams::default(), &review).await
        });
        let identity = match asked.await {
            Ok(Ok(review)) => identity(&review.status.unwrap_or_default()),
            Ok(Err(error)) => {
                tracing::warn!(%error, "a token cannot be reviewed");
                Err(StreamRefusal::ReviewFailed)
            }
            Err(_) => {
                tracing::warn!(seconds = REVIEW_SECONDS, "a token was not reviewed in time");
                Err(StreamRefusal::ReviewFailed)
            }
        };
        if identity == Err(StreamRefusal::BadToken) {
            self.limits.refuse(hash, Instant::now());
        }
        identity
    }
}

/// The pod that a token names. Not verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimedIdentity {
    /// The pod.
    pub pod: PodKey,
    /// The pod's uid.
    pub uid: String,
}

/// Reads the pod that a token names; none where it does not. It may only be used to refuse the token: the API server says who is
/// let in.
pub fn claimed(token: &str) -> Option<ClaimedIdentity> {
    #[derive(Deserialize)]
    struct Payload {
        #[serde(rename = "kubernetes.io")]
        kubernetes: Bound,
    }
    #[derive(Deserialize)]
    struct Bound {
        namespace: String,
        pod: ClaimedPod,
    }
    #[derive(Deserialize)]
    struct ClaimedPod {
        name: String,
        uid: String,
    }
    let Payload { kubernetes: Bound { namespace, pod: ClaimedPod { name, uid } } } =
        serde_json::from_slice(&payload(token)?).ok()?;
    Some(ClaimedIdentity { pod: PodKey { namespace, name }, uid })
}

/// Decodes the payload of a token (RFC 7519).
fn payload(token: &str) -> Option<Vec<u8>> {
    BASE64URL_NOPAD.decode(token.split('.').nth(1)?.as_bytes()).ok()
}

/// Returns the token of a request.
///
/// # Errors
/// There is none, or more than one, or it is too long to be one.
pub fn bearer(headers: &HeaderMap) -> Result<&str, StreamRefusal> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Err(StreamRefusal::NoToken) };
    let text = value.to_str().map_err(|_| StreamRefusal::NoToken)?;
    let (scheme, token) = text.split_once(' ').ok_or(StreamRefusal::NoToken)?;
    let token = token.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
        return Err(StreamRefusal::NoToken);
    }
    if token.len() > LONGEST_TOKEN { Err(StreamRefusal::BadToken) } else { Ok(token) }
}

/// Returns the pod that a reviewed token was made for. `extra` of a bound token names it
/// (Kubernetes, "Managing Service Accounts", "Additional metadata in Pod bound tokens").
///
/// # Errors
/// The API server does not vouch for the token and its audience, or it is bound to no pod.
pub fn identity(status: &TokenReviewStatus) -> Result<PodIdentity, StreamRefusal> {
    let for_us = status.audiences.iter().flatten().any(|audience| audience == AUDIENCE);
    if status.authenticated != Some(true) || !for_us || status.error.as_ref().is_some_and(|error| !error.is_empty()) {
        return Err(StreamRefusal::BadToken);
    }
    let user = status.user.as_ref().ok_or(StreamRefusal::BadToken)?;
    let extra = |key: &str| {
        let values = user.extra.as_ref()?.get(key)?;
        // More than one value would leave open which holds.
        values.first().filter(|value| values.len() == 1 && !value.is_empty()).cloned()
    };
    let account = user.username.as_deref().and_then(|name| name.strip_prefix("system:serviceaccount:"));
    let (namespace, service_account) = account.and_then(|account| account.split_once(':')).ok_or(StreamRefusal::NoPod)?;
    let name = extra("authentication.kubernetes.io/pod-name").ok_or(StreamRefusal::NoPod)?;
    let uid = extra("authentication.kubernetes.io/pod-uid").ok_or(StreamRefusal::NoPod)?;
    let pod = PodKey { namespace: namespace.to_owned(), name };
    Ok(PodIdentity { pod, uid, service_account: service_account.to_owned() })
}

/// Reads when a token expires, in seconds since 1970. Only for a token that was reviewed: it says when to end the stream, never
/// whom to let in.
pub fn expires(token: &str) -> Option<i64> {
    #[derive(Deserialize)]
    struct Payload {
        exp: i64,
    }
    serde_json::from_slice::<Payload>(&payload(token)?).ok().map(|payload| payload.exp)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(yaml: &str) -> TokenReviewStatus {
        serde_yaml::from_str(yaml).unwrap()
    }

    const POD: &str = "{authenticated: true, audiences: [toolweir], user: {username: 'system:serviceaccount:agents:social', \
                       extra: {authentication.kubernetes.io/pod-name: [agent-1], authentication.kubernetes.io/pod-uid: [u1]}}}";

    #[test]
    fn the_identity_is_that_of_the_review() {
        let pod = PodKey { namespace: "agents".to_owned(), name: "agent-1".to_owned() };
        assert_eq!(identity(&status(POD)), Ok(PodIdentity { pod, uid: "u1".to_owned(), service_account: "social".to_owned() }));
    }

    #[test]
    fn what_the_review_does_not_vouch_for_is_refused() {
        for (changed, to, refusal) in [
            ("authenticated: true", "authenticated: false", StreamRefusal::BadToken),
            ("authenticated: true, ", "", StreamRefusal::BadToken),
            ("audiences: [toolweir]", "audiences: [api]", StreamRefusal::BadToken),
            ("audiences: [toolweir], ", "", StreamRefusal::BadToken),
            ("authenticated: true", "authenticated: true, error: expired", StreamRefusal::BadToken),
            ("system:serviceaccount:agents:social", "system:node:node1", StreamRefusal::NoPod),
            ("system:serviceaccount:agents:social", "system:serviceaccount:agents", StreamRefusal::NoPod),
            ("pod-name: [agent-1]", "pod-name: []", StreamRefusal::NoPod),
            ("pod-name: [agent-1]", "pod-name: [agent-1, agent-2]", StreamRefusal::NoPod),
            ("pod-uid: [u1]", "pod-uid: ['']", StreamRefusal::NoPod),
            (", authentication.kubernetes.io/pod-uid: [u1]", "", StreamRefusal::NoPod),
        ] {
            assert!(POD.contains(changed));
            assert_eq!(identity(&status(&POD.replace(changed, to))), Err(refusal), "{to}");
        }
        assert_eq!(identity(&TokenReviewStatus::default()), Err(StreamRefusal::BadToken));
    }

    #[test]
    fn a_token_comes_as_one_bearer_header() {
        let headers = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, value.parse().unwrap());
            }
            headers
        };
        assert_eq!(bearer(&headers(&["Bearer abc"])), Ok("abc"));
        assert_eq!(bearer(&headers(&["bearer abc"])), Ok("abc"));
        for refused in [&[][..], &["abc"], &["Basic abc"], &["Bearer "], &["Bearer a", "Bearer b"]] {
            assert_eq!(bearer(&headers(refused)), Err(StreamRefusal::NoToken), "{refused:?}");
        }
        assert_eq!(bearer(&headers(&[&format!("Bearer {}", "a".repeat(LONGEST_TOKEN + 1))])), Err(StreamRefusal::BadToken));
    }

    #[test]
    fn the_expiry_is_that_of_the_payload() {
        let token = |payload: &str| format!("e30.{}.c2ln", BASE64URL_NOPAD.encode(payload.as_bytes()));
        assert_eq!(expires(&token(r#"{"exp": 1800000000, "sub": "x"}"#)), Some(1_800_000_000));
        for none in [token("{}"), token("[]"), token("x"), String::new(), "a.b.c".to_owned(), "....".to_owned()] {
            assert_eq!(expires(&none), None, "{none}");
        }
    }
}
