//! When authorities come and go: plain data and functions. Time is an argument.
//!
//! The life of an authority has three thirds. In the first one it is only trusted, so that everybody hears of it; in the
//! second one it signs; in the third one it is trusted still, for the certificates that it signed last. A successor is made
//! at the end of each first third, so that there is always one authority that signs and one that everybody is hearing of.
//! The very first authority signs at once: nobody trusts another one.

use std::{fmt, time::Duration, time::SystemTime};

use serde::{Deserialize, Serialize};

/// The most authorities that are held. In the usual course there are three.
pub const MOST_AUTHORITIES: usize = 16;
/// The shortest life of an authority that can be configured.
pub const SHORTEST_CA_LIFE: Duration = Duration::from_secs(60);
/// The longest one.
pub const LONGEST_CA_LIFE: Duration = Duration::from_secs(20 * 366 * 86_400);
/// The shortest life of a serving certificate that can be configured.
pub const SHORTEST_LEAF_LIFE: Duration = Duration::from_secs(10);
/// How far certificates are backdated at most, for clocks that are behind.
const MOST_SKEW: Duration = Duration::from_secs(5 * 60);
/// At least this long between two serving certificates, however little life their authority has left.
const SHORTEST_RENEWAL: Duration = Duration::from_millis(200);

/// How long certificates live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lives {
    /// An authority.
    pub ca: Duration,
    /// A serving certificate. Longer than a third of its authority's life it never is.
    pub leaf: Duration,
}

/// Lives that cannot be configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LivesError {
    /// The authority's.
    #[error("caLife must be from 1m to 20 years, for example 365d; it is {}", humantime::format_duration(*.0))]
    Ca(Duration),
    /// The serving certificate's.
    #[error("leafLife must be from 10s to caLife, for example 24h; it is {}", humantime::format_duration(*.0))]
    Leaf(Duration),
}

impl Lives {
    /// Lives from the configuration.
    ///
    /// # Errors
    /// They are too short or too long.
    pub fn new(ca: Duration, leaf: Duration) -> Result<Self, LivesError> {
        if !(SHORTEST_CA_LIFE..=LONGEST_CA_LIFE).contains(&ca) {
            return Err(LivesError::Ca(ca));
        }
        if !(SHORTEST_LEAF_LIFE..=ca).contains(&leaf) {
            return Err(LivesError::Leaf(leaf));
        }
        Ok(Self { ca, leaf })
    }

    /// How often to look at what others may have changed, should nobody tell of it.
    pub fn look(&self) -> Duration {
        (self.ca / 24).clamp(Duration::from_millis(200), Duration::from_secs(300))
    }

    /// How long to wait after a failure.
    pub fn retry(&self) -> Duration {
        (self.ca / 60).clamp(Duration::from_millis(200), Duration::from_secs(5))
    }
}

impl Default for Lives {
    /// A year and a day.
    fn default() -> Self {
        Self { ca: Duration::from_secs(365 * 86_400), leaf: Duration::from_secs(86_400) }
    }
}

/// An authority, as the Secret holds it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Authority {
    /// What its subject ends in.
    pub id: String,
    /// Its times.
    #[serde(flatten)]
    pub span: Span,
    /// Its certificate, in PEM.
    pub certificate: String,
    /// Its key, in PEM.
    pub key: String,
}

// The key is never printed.
impl fmt::Debug for Authority {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Authority").field("id", &self.id).field("span", &self.span).finish_non_exhaustive()
    }
}

/// The times of an authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Span {
    /// When it was made.
    #[serde(with = "moment")]
    pub made: SystemTime,
    /// From when on it signs.
    #[serde(with = "moment")]
    pub signs_from: SystemTime,
    /// When its certificate expires.
    #[serde(with = "moment")]
    pub expires: SystemTime,
}

impl Span {
    /// How long it lives.
    pub fn life(&self) -> Duration {
        self.expires.duration_since(self.made).unwrap_or_default()
    }

    /// From when on its certificate is valid: before it was made, for clocks that are behind.
    pub fn valid_from(&self) -> SystemTime {
        back(self.made, skew(self.life()))
    }

    /// How long until its successor is made, and how long that one is only trusted.
    fn third(&self, lives: &Lives) -> Duration {
        self.life().min(lives.ca) / 3
    }

    /// How long a certificate that it signs lives.
    fn leaf_life(&self, lives: &Lives) -> Duration {
        lives.leaf.min(self.life() / 3)
    }
}

/// By how much clocks may differ, for something with this life.
fn skew(life: Duration) -> Duration {
    MOST_SKEW.min(life / 12)
}

fn back(time: SystemTime, by: Duration) -> SystemTime {
    time.checked_sub(by).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn later(time: SystemTime, by: Duration) -> SystemTime {
    time.checked_add(by).unwrap_or(time)
}

/// Everything that the Secret holds. The one made last comes last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The authorities.
    pub authorities: Vec<Authority>,
}

impl State {
    /// The authority that signs: the latest one whose time has come. If there is none, the one whose time comes first: then
    /// clocks disagree, or an authority was taken out by hand.
    pub fn signer(&self, now: SystemTime) -> Option<&Authority> {
        let alive = || self.authorities.iter().filter(move |authority| authority.span.expires > now);
        let signs = alive().rfind(|authority| authority.span.signs_from <= now);
        signs.or_else(|| alive().min_by_key(|authority| authority.span.signs_from))
    }

    /// All that are to be trusted, in PEM.
    pub fn bundle(&self) -> String {
        self.authorities.iter().map(|authority| format!("{}\n", authority.certificate.trim_end())).collect()
    }

    /// Does what is planned.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn changed<E>(&self, plan: &Plan, make: impl FnOnce(&Span) -> Result<Authority, E>) -> Result<Self, E> {
        let kept = self.authorities.iter().filter(|authority| !plan.drop.contains(&authority.id)).cloned();
        let new = plan.make.as_ref().map(make).transpose()?;
        Ok(Self { authorities: kept.chain(new).collect() })
    }
}

/// What is to be done with the authorities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The ids of those that are trusted no longer.
    pub drop: Vec<String>,
    /// The one to make.
    pub make: Option<Span>,
    /// When to ask again: until then the answer, and who signs, stay the same.
    pub next: SystemTime,
}

impl Plan {
    /// Whether anything is to be done.
    pub fn is_due(&self) -> bool {
        self.make.is_some() || !self.drop.is_empty()
    }
}

/// What is to be done with these authorities now.
pub fn plan(state: &State, now: SystemTime, lives: &Lives) -> Plan {
    let mut drop = Vec::new();
    let mut kept: Vec<Span> = Vec::new();
    let mut times: Vec<SystemTime> = Vec::new();
    for (place, authority) in state.authorities.iter().enumerate() {
        let span = authority.span;
        let gone = gone(&span, state.authorities.iter().skip(place + 1).map(|newer| &newer.span), lives);
        // By count: only what somebody wrote into the Secret by hand can reach it.
        let surplus = state.authorities.len() - place >= MOST_AUTHORITIES;
        if gone <= now || surplus {
            drop.push(authority.id.clone());
        } else {
            times.extend([gone, span.signs_from]);
            kept.push(span);
        }
    }
    let (make, newest) = match kept.last() {
        None => {
            let first = Span { made: now, signs_from: now, expires: later(now, lives.ca) };
            (Some(first), first)
        }
        Some(newest) if later(newest.made, newest.third(lives)) <= now => {
            let third = newest.third(lives);
            // After a long absence the old one may not last until then: as long as it can.
            let last = back(newest.expires, third / 4);
            let signs_from = later(now, third).min(last).max(now);
            let successor = Span { made: now, signs_from, expires: later(now, lives.ca) };
            (Some(successor), successor)
        }
        Some(newest) => (None, *newest),
    };
    times.extend([newest.signs_from, later(newest.made, newest.third(lives))]);
    let next = times.into_iter().filter(|time| *time > now).min().unwrap_or_else(|| later(now, lives.look()));
    Plan { drop, make, next }
}

/// When an authority is trusted no longer: once the last certificate that it may have signed has expired.
fn gone<'a>(span: &Span, newer: impl Iterator<Item = &'a Span>, lives: &Lives) -> SystemTime {
    let superseded = newer.map(|newer| newer.signs_from).min();
    let last = superseded.map(|from| later(from, span.leaf_life(lives) + skew(span.life())));
    last.map_or(span.expires, |last| last.min(span.expires))
}

/// The times of a serving certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// From when on it is valid: before it was made, for clocks that are behind.
    pub valid_from: SystemTime,
    /// When it expires.
    pub expires: SystemTime,
    /// When the next one is made: at half of its life.
    pub renew: SystemTime,
}

/// A serving certificate that is made now.
pub fn leaf(signer: &Span, now: SystemTime, lives: &Lives) -> Leaf {
    let life = signer.leaf_life(lives);
    let expires = later(now, life).min(signer.expires);
    let half = expires.duration_since(now).unwrap_or_default() / 2;
    Leaf { valid_from: back(now, skew(signer.life())), expires, renew: later(now, half.max(SHORTEST_RENEWAL)) }
}

/// Times as RFC 3339, for people who look at the Secret.
mod moment {
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_rfc3339_millis(*time))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_rfc3339(&text).map_err(|_| D::Error::custom(format!("{text:?} is no time such as 2026-01-31T12:00:00Z")))
    }
}
