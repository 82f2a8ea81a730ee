//! When authorities come and go: plain data and functions. Time is an argument.
//!
//! The life of an authority has three thirds. In the first one it is only trusted, so that every client gets to know it; in the
//! second one it signs; in the third one it is trusted still, for the certificates that it signed last. A successor is made
//! at the end of each first third, so that there is always one authority that signs and one that clients get to know.
//! The very first authority signs at once: there is no other one.

use std::{fmt, time::Duration, time::SystemTime};

use serde::{Deserialize, Serialize};

/// The most authorities that are held. In the usual course there are three.
pub const MOST_AUTHORITIES: usize = 16;
/// The shortest lifetime of an authority that can be configured.
pub const SHORTEST_CA_LIFE: Duration = Duration::from_secs(60);
/// The longest one.
pub const LONGEST_CA_LIFE: Duration = Duration::from_secs(20 * 366 * 86_400);
/// The shortest lifetime of a serving certificate that can be configured.
pub const SHORTEST_LEAF_LIFE: Duration = Duration::from_secs(10);
/// The longest lifetime of a certificate that is made for a store.
const LONGEST_STORE_LIFE: Duration = Duration::from_secs(90 * 86_400);
/// The most that certificates are backdated, for clocks that are behind.
const MOST_SKEW: Duration = Duration::from_secs(5 * 60);
/// At least this long between two serving certificates, however little life their authority has left.
const SHORTEST_RENEWAL: Duration = Duration::from_millis(200);

/// The lifetimes of certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CertificateLifetimes {
    /// An authority.
    pub ca: Duration,
    /// A serving certificate. Longer than a third of its authority's life it never is.
    pub leaf: Duration,
}

/// Lifetimes that cannot be configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LifetimesError {
    /// The authority's.
    #[error("caLife must be from 1m to 20 years, for example 365d; it is {}", humantime::format_duration(*.0))]
    Ca(Duration),
    /// The serving certificate's.
    #[error("leafLife must be from 10s to caLife, for example 24h; it is {}", humantime::format_duration(*.0))]
    Leaf(Duration),
}

impl CertificateLifetimes {
    /// Checks the lifetimes of a configuration.
    ///
    /// # Errors
    /// They are too short or too long.
    pub fn new(ca: Duration, leaf: Duration) -> Result<Self, LifetimesError> {
        if !(SHORTEST_CA_LIFE..=LONGEST_CA_LIFE).contains(&ca) {
            return Err(LifetimesError::Ca(ca));
        }
        if !(SHORTEST_LEAF_LIFE..=ca).contains(&leaf) {
            return Err(LifetimesError::Leaf(leaf));
        }
        Ok(Self { ca, leaf })
    }

    /// Returns how often to read everything, should a watch miss a change.
    pub fn look(&self) -> Duration {
        (self.ca / 24).clamp(Duration::from_millis(200), Duration::from_secs(300))
    }

    /// Returns how long to wait after a failure.
    pub fn retry(&self) -> Duration {
        (self.ca / 60).clamp(Duration::from_millis(200), Duration::from_secs(5))
    }
}

impl Default for CertificateLifetimes {
    /// A year and a day.
    fn default() -> Self {
        Self { ca: Duration::from_secs(365 * 86_400), leaf: Duration::from_secs(86_400) }
    }
}

/// An authority, as the Secret holds it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Authority {
    /// The end of its subject.
    pub id: String,
    /// Its times.
    #[serde(flatten)]
    pub span: AuthoritySpan,
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
pub struct AuthoritySpan {
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

impl AuthoritySpan {
    /// Returns how long it lives.
    pub fn lifetime(&self) -> Duration {
        self.expires.duration_since(self.made).unwrap_or_default()
    }

    /// Returns from when on its certificate is valid: before it was made, for clocks that are behind.
    pub fn valid_from(&self) -> SystemTime {
        back(self.made, skew(self.lifetime()))
    }

    /// Returns the time until its successor is made, for which that one is only trusted, too.
    fn third(&self, lifetimes: &CertificateLifetimes) -> Duration {
        self.lifetime().min(lifetimes.ca) / 3
    }

    /// Returns how long a certificate that it signs lives.
    fn leaf_life(&self, lifetimes: &CertificateLifetimes) -> Duration {
        lifetimes.leaf.min(self.lifetime() / 3)
    }
}

/// Returns by how much clocks may differ, for a certificate with this lifetime.
fn skew(life: Duration) -> Duration {
    MOST_SKEW.min(life / 12)
}

fn back(time: SystemTime, by: Duration) -> SystemTime {
    time.checked_sub(by).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn later(time: SystemTime, by: Duration) -> SystemTime {
    time.checked_add(by).unwrap_or(time)
}

/// The authorities of the Secret, in the order in which they were made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuthoritySet {
    /// The authorities.
    pub authorities: Vec<Authority>,
}

impl AuthoritySet {
    /// Returns the authority that signs: the latest one whose time has come. If there is none, the one whose time comes first:
    /// then clocks disagree, or an authority was taken out by hand.
    pub fn signer(&self, now: SystemTime) -> Option<&Authority> {
        let alive = || self.authorities.iter().filter(move |authority| authority.span.expires > now);
        let signs = alive().rfind(|authority| authority.span.signs_from <= now);
        signs.or_else(|| alive().min_by_key(|authority| authority.span.signs_from))
    }

    /// Returns the certificates of all authorities, in PEM.
    pub fn bundle(&self) -> String {
        self.authorities.iter().map(|authority| format!("{}\n", authority.certificate.trim_end())).collect()
    }

    /// Returns the authorities after a plan was carried out.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn changed<E>(&self, plan: &AuthorityPlan, make: impl FnOnce(&AuthoritySpan) -> Result<Authority, E>) -> Result<Self, E> {
        let kept = self.authorities.iter().filter(|authority| !plan.drop.contains(&authority.id)).cloned();
        let new = plan.make.as_ref().map(make).transpose()?;
        Ok(Self { authorities: kept.chain(new).collect() })
    }
}

/// The changes that are due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityPlan {
    /// The ids of the authorities that are no longer trusted.
    pub drop: Vec<String>,
    /// The one to make.
    pub make: Option<AuthoritySpan>,
    /// When to ask again: until then the answer, and who signs, stay the same.
    pub next: SystemTime,
}

impl AuthorityPlan {
    /// Returns whether there is a change.
    pub fn is_due(&self) -> bool {
        self.make.is_some() || !self.drop.is_empty()
    }
}

/// Plans the changes of authorities that are due now.
pub fn plan(state: &AuthoritySet, now: SystemTime, lifetimes: &CertificateLifetimes) -> AuthorityPlan {
    let mut drop = Vec::new();
    let mut kept: Vec<AuthoritySpan> = Vec::new();
    let mut times: Vec<SystemTime> = Vec::new();
    for (place, authority) in state.authorities.iter().enumerate() {
        let span = authority.span;
        let gone = gone(&span, state.authorities.iter().skip(place + 1).map(|newer| &newer.span), lifetimes);
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
            let first = AuthoritySpan { made: now, signs_from: now, expires: later(now, lifetimes.ca) };
            (Some(first), first)
        }
        Some(newest) if later(newest.made, newest.third(lifetimes)) <= now => {
            let third = newest.third(lifetimes);
            // After a long absence the old one may not last until then: as long as it can.
            let last = back(newest.expires, third / 4);
            let signs_from = later(now, third).min(last).max(now);
            let successor = AuthoritySpan { made: now, signs_from, expires: later(now, lifetimes.ca) };
            (Some(successor), successor)
        }
        Some(newest) => (None, *newest),
    };
    times.extend([newest.signs_from, later(newest.made, newest.third(lifetimes))]);
    let next = times.into_iter().filter(|time| *time > now).min().unwrap_or_else(|| later(now, lifetimes.look()));
    AuthorityPlan { drop, make, next }
}

/// Returns when an authority is no longer trusted: once the last certificate that it may have signed has expired.
fn gone<'a>(
    span: &AuthoritySpan,
    newer: impl Iterator<Item = &'a AuthoritySpan>,
    lifetimes: &CertificateLifetimes,
) -> SystemTime {
    let superseded = newer.map(|newer| newer.signs_from).min();
    let last = superseded.map(|from| later(from, span.leaf_life(lifetimes) + skew(span.lifetime())));
    last.map_or(span.expires, |last| last.min(span.expires))
}

/// The times of a serving certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafTimes {
    /// From when on it is valid: before it was made, for clocks that are behind.
    pub valid_from: SystemTime,
    /// When it expires.
    pub expires: SystemTime,
    /// When the next one is made: at half of its life.
    pub renew: SystemTime,
}

/// Returns the times of a certificate of the store that is made now. It lives longer than the operator's own: the store goes on
/// while no operator runs, and learns of a new one only when its files have changed.
pub fn store_leaf(signer: &AuthoritySpan, now: SystemTime, lifetimes: &CertificateLifetimes) -> LeafTimes {
    leaf(signer, now, &CertificateLifetimes { leaf: (lifetimes.ca / 3).min(LONGEST_STORE_LIFE), ..*lifetimes })
}

/// Returns the times of a serving certificate that is made now.
pub fn leaf(signer: &AuthoritySpan, now: SystemTime, lifetimes: &CertificateLifetimes) -> LeafTimes {
    let life = signer.leaf_life(lifetimes);
    let expires = later(now, life).min(signer.expires);
    let half = expires.duration_since(now).unwrap_or_default() / 2;
    LeafTimes { valid_from: back(now, skew(signer.lifetime())), expires, renew: later(now, half.max(SHORTEST_RENEWAL)) }
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
        humantime::parse_rfc3339(&text)
            .map_err(|_| D::Error::custom(format!("{text:?} is not a time such as 2026-01-31T12:00:00Z")))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const BASE: SystemTime = SystemTime::UNIX_EPOCH;

    fn lifetimes(ca: Duration, leaf: Duration) -> CertificateLifetimes {
        CertificateLifetimes::new(ca, leaf).unwrap()
    }

    fn at(seconds: u64) -> SystemTime {
        BASE + Duration::from_secs(1_000_000 + seconds)
    }

    fn authority(id: impl fmt::Display + Copy, span: AuthoritySpan) -> Authority {
        Authority { id: id.to_string(), span, certificate: format!("certificate of {id}"), key: String::new() }
    }

    /// The plan is carried out; gives the new state.
    fn done(state: &AuthoritySet, now: SystemTime, lifetimes: &CertificateLifetimes) -> AuthoritySet {
        let make = |span: &AuthoritySpan| Ok::<_, ()>(authority(span.made.duration_since(BASE).unwrap().as_millis(), *span));
        state.changed(&plan(state, now, lifetimes), make).unwrap()
    }

    #[test]
    fn the_first_authority_signs_at_once_and_its_successor_a_third_after_everybody_could_hear_of_it() {
        let lifetimes = lifetimes(Duration::from_secs(90), Duration::from_secs(10));
        let one = done(&AuthoritySet::default(), at(0), &lifetimes);
        let [first] = one.authorities.as_slice() else { panic!("{one:?}") };
        assert_eq!(first.span, AuthoritySpan { made: at(0), signs_from: at(0), expires: at(90) });
        assert_eq!(plan(&one, at(0), &lifetimes), AuthorityPlan { drop: Vec::new(), make: None, next: at(30) });
        assert_eq!(plan(&one, at(29), &lifetimes).next, at(30));

        let two = done(&one, at(30), &lifetimes);
        let [_, second] = two.authorities.as_slice() else { panic!("{two:?}") };
        assert_eq!(second.span, AuthoritySpan { made: at(30), signs_from: at(60), expires: at(120) });
        assert_eq!(two.signer(at(59)).unwrap().id, first.id);
        assert_eq!(two.signer(at(60)).unwrap().id, second.id);

        // The first one is trusted until the last certificate of its own has expired, and some more for clocks that are behind.
        let three = done(&two, at(60), &lifetimes);
        assert_eq!(three.authorities.len(), 3);
        assert!(!plan(&three, at(77), &lifetimes).is_due());
        assert_eq!(plan(&three, at(78), &lifetimes).drop, std::slice::from_ref(&first.id));
    }

    #[test]
    fn a_certificate_of_a_store_lives_for_a_third_of_its_authority_and_at_most_90_days() {
        let day = Duration::from_secs(86_400);
        for (ca, life) in [(365 * day, 90 * day), (90 * day, 30 * day), (60 * day, 20 * day)] {
            let lifetimes = lifetimes(ca, Duration::from_secs(600));
            let span = AuthoritySpan { made: at(0), signs_from: at(0), expires: at(0) + ca };
            let leaf = store_leaf(&span, at(9), &lifetimes);
            assert_eq!((leaf.expires, leaf.renew), (at(9) + life, at(9) + life / 2));
            // Not beyond its authority.
            let late = span.expires - day;
            assert_eq!(store_leaf(&span, late, &lifetimes).expires, span.expires);
        }
    }

    #[test]
    fn a_serving_certificate_lives_as_long_as_is_asked_for_but_no_longer_than_a_third_of_its_authority() {
        let span = AuthoritySpan { made: at(0), signs_from: at(0), expires: at(3600) };
        let of = |leaf_life: u64, now: u64| {
            leaf(&span, at(now), &lifetimes(Duration::from_secs(3600), Duration::from_secs(leaf_life)))
        };
        assert_eq!(of(600, 60), LeafTimes { valid_from: at(0) - Duration::from_secs(240), expires: at(660), renew: at(360) });
        assert_eq!(of(3600, 0).expires, at(1200));
        // Nor does it outlive its authority.
        assert_eq!((of(600, 3300).expires, of(600, 3300).renew), (at(3600), at(3450)));
        // However little is left, it is not made anew without pause.
        assert_eq!(of(600, 3599).renew, at(3599) + Duration::from_millis(500));
        assert_eq!(of(600, 3600).renew, at(3600) + SHORTEST_RENEWAL);
    }

    #[test]
    fn lives_that_cannot_be_kept_are_refused() {
        let of = |ca: u64, leaf: u64| {
            CertificateLifetimes::new(Duration::from_secs(ca), Duration::from_secs(leaf)).map_err(|error| error.to_string())
        };
        assert_eq!(of(59, 10), Err("caLife must be from 1m to 20 years, for example 365d; it is 59s".to_owned()));
        assert!(of(u64::from(u32::MAX), 10).unwrap_err().starts_with("caLife must be"));
        assert_eq!(of(60, 9), Err("leafLife must be from 10s to caLife, for example 24h; it is 9s".to_owned()));
        assert!(of(60, 61).unwrap_err().starts_with("leafLife must be"));
        assert!(of(60, 60).is_ok());
        assert_eq!(
            CertificateLifetimes::new(CertificateLifetimes::default().ca, CertificateLifetimes::default().leaf),
            Ok(CertificateLifetimes::default())
        );
    }

    #[test]
    fn times_are_written_for_people_and_keys_are_never_printed() {
        let span = AuthoritySpan { made: at(0), signs_from: at(1), expires: at(2) };
        let mut authority = authority("a", span);
        authority.key = "secret".to_owned();
        let json = serde_json::to_value(&authority).unwrap();
        assert_eq!(json["signsFrom"], "1970-01-12T13:46:41.000Z");
        assert_eq!(serde_json::from_value::<Authority>(json).unwrap(), authority);
        assert!(!format!("{:?}", AuthoritySet { authorities: vec![authority] }).contains("secret"));
    }

    #[test]
    fn what_a_hand_put_into_the_secret_is_bounded() {
        let lifetimes = CertificateLifetimes::default();
        let span = |n: u64| AuthoritySpan { made: at(n), signs_from: at(n), expires: at(n) + lifetimes.ca };
        let state = AuthoritySet { authorities: (0..40).map(|n| authority(n, span(n))).collect() };
        let done = done(&state, at(50), &lifetimes);
        assert!(done.authorities.len() < MOST_AUTHORITIES, "{}", done.authorities.len());
        assert_eq!(done.authorities.last().unwrap().id, "39");
    }

    #[test]
    fn with_a_shorter_life_in_the_configuration_a_successor_is_made_at_once_and_nobody_is_cut_off() {
        let long = done(&AuthoritySet::default(), at(0), &CertificateLifetimes::default());
        let short = lifetimes(Duration::from_secs(60), Duration::from_secs(20));
        let now = at(10 * 86_400);
        let both = done(&long, now, &short);
        let [old, new] = both.authorities.as_slice() else { panic!("{both:?}") };
        assert_eq!(new.span.signs_from, now + Duration::from_secs(20));
        assert_eq!(both.signer(now + Duration::from_secs(19)).unwrap().id, old.id);
        // With a longer one, what there is lives out its life.
        let longer = lifetimes(Duration::from_secs(3600), Duration::from_secs(20));
        assert!(!plan(&AuthoritySet { authorities: vec![new.clone()] }, now, &longer).is_due());
    }

    #[test]
    fn an_absence_within_a_life_keeps_the_old_one_signing_as_long_as_it_can() {
        let lifetimes = lifetimes(Duration::from_secs(90), Duration::from_secs(30));
        let one = done(&AuthoritySet::default(), at(0), &lifetimes);
        for (now, signs_from) in [(40, 70), (60, 82), (80, 82), (85, 85)] {
            let two = done(&one, at(now), &lifetimes);
            let [first, second] = two.authorities.as_slice() else { panic!("{two:?}") };
            assert_eq!(second.span.signs_from.duration_since(at(0)).unwrap().as_secs(), signs_from, "back after {now}");
            assert_eq!(two.signer(at(now)).unwrap().id, if now < signs_from { &first.id } else { &second.id }.clone());
        }
    }

    /// A replica of the operator, as [`super::super::keeper`] does it, and what it tells its sidecars.
    struct Replica {
        /// How far its clock is ahead of the one that is furthest behind.
        ahead: Duration,
        wakes: Duration,
        held: Option<(String, LeafTimes)>,
        told: Vec<(Duration, BTreeSet<String>)>,
    }

    struct Simulation {
        lifetimes: CertificateLifetimes,
        /// The Secret.
        state: AuthoritySet,
        spans: Vec<AuthoritySpan>,
        replicas: Vec<Replica>,
        most: usize,
    }

    impl Simulation {
        fn new(lifetimes: CertificateLifetimes, ahead: Vec<Duration>) -> Self {
            let new = |ahead| Replica { ahead, wakes: Duration::ZERO, held: None, told: Vec::new() };
            Self {
                lifetimes,
                state: AuthoritySet::default(),
                spans: Vec::new(),
                replicas: ahead.into_iter().map(new).collect(),
                most: 0,
            }
        }

        fn leaf_life(&self) -> Duration {
            self.lifetimes.leaf.min(self.lifetimes.ca / 3)
        }

        /// One round of a replica at a time by the clock that is furthest behind.
        fn round(&mut self, replica: usize, time: Duration, late: Duration) {
            let now = BASE + time + self.replicas[replica].ahead;
            let due = plan(&self.state, now, &self.lifetimes);
            if due.is_due() {
                let spans = &mut self.spans;
                self.state = self
                    .state
                    .changed(&due, |span| {
                        spans.push(*span);
                        Ok::<_, ()>(authority(spans.len() - 1, *span))
                    })
                    .unwrap();
            }
            self.most = self.most.max(self.state.authorities.len());
            let due = plan(&self.state, now, &self.lifetimes);
            assert!(!due.is_due(), "all is done in one step");
            assert!(due.next > now, "it is not asked again at once");
            let signer = self.state.signer(now).expect("somebody signs");
            let replica = &mut self.replicas[replica];
            replica.told.push((time, self.state.authorities.iter().map(|authority| authority.id.clone()).collect()));
            if replica.held.as_ref().is_none_or(|(id, times)| *id != signer.id || times.renew <= now) {
                replica.held = Some((signer.id.clone(), leaf(&signer.span, now, &self.lifetimes)));
            }
            let renew = replica.held.as_ref().unwrap().1.renew;
            let wait = due.next.min(renew).duration_since(now).unwrap_or_default().min(self.lifetimes.look());
            replica.wakes = time + wait + late;
        }

        /// Every certificate that is shown is accepted by all who heard from any replica within this span, by clocks from the
        /// one furthest behind to `ahead`.
        fn check(&self, time: Duration, within: Duration, ahead: Duration) {
            for (id, times) in self.replicas.iter().filter_map(|replica| replica.held.as_ref()) {
                let authority = self.spans[id.parse::<usize>().unwrap()];
                for clock in [BASE + time, BASE + time + ahead] {
                    let valid = |from: SystemTime, until: SystemTime| from <= clock && clock < until;
                    assert!(valid(times.valid_from, times.expires), "{time:?}: the certificate of {id} is not valid");
                    assert!(valid(authority.valid_from(), authority.expires), "{time:?}: {id} is not valid");
                }
                for replica in &self.replicas {
                    let since = time.saturating_sub(within);
                    let first = replica.told.iter().rposition(|(told, _)| *told <= since).unwrap_or_default();
                    for (told, trusted) in replica.told.iter().skip(first) {
                        assert!(trusted.contains(id), "{time:?}: who heard at {told:?} of {trusted:?} does not accept {id}");
                    }
                }
            }
        }
    }

    /// Up to two hours: for longer ones all is the same, but for clocks that may differ less and more looks between.
    fn some_lifetimes() -> impl Strategy<Value = CertificateLifetimes> {
        let ca = prop_oneof![Just(60), Just(600), Just(7200)].prop_map(Duration::from_secs);
        let leaf = prop_oneof![Just(1), Just(3), Just(12), Just(48)];
        (ca, leaf).prop_map(|(ca, part)| lifetimes(ca, (ca / part).max(SHORTEST_LEAF_LIFE)))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        /// Ten lifetimes, with clocks that differ by as much as is promised, and replicas that are late at times.
        #[test]
        fn what_is_shown_is_always_accepted_by_all_who_heard_lately(
            lifetimes in some_lifetimes(),
            clocks in prop::collection::vec(0_u32..=16, 1..5),
            late in prop::collection::vec(0_u32..=16, 64),
        ) {
            let mut simulation = Simulation::new(lifetimes, Vec::new());
            // Certificates are made anew at half of their life: to be further behind than that is to be too late.
            let most_ahead = skew(lifetimes.ca).min(simulation.leaf_life() / 4);
            let most_late = (simulation.leaf_life() / 8).min(lifetimes.ca / 48);
            simulation = Simulation::new(lifetimes, clocks.iter().map(|part| most_ahead * *part / 16).collect());
            let within = (lifetimes.ca / 3).saturating_sub(most_ahead + lifetimes.look() + most_late);
            let mut late = late.iter().cycle();
            let end = lifetimes.ca * 10;
            loop {
                let (replica, time) = (0..simulation.replicas.len())
                    .map(|replica| (replica, simulation.replicas[replica].wakes))
                    .min_by_key(|(_, wakes)| *wakes)
                    .unwrap();
                if time > end {
                    break;
                }
                if simulation.replicas.iter().all(|replica| replica.held.is_some()) {
                    simulation.check(time, within, most_ahead);
                }
                simulation.round(replica, time, most_late * *late.next().unwrap() / 16);
                simulation.check(time, within, most_ahead);
            }
            prop_assert!(simulation.most <= 4, "{} at once", simulation.most);
        }

        /// Nobody looks for a while, however long. Then one round puts everything in order, for all who hear of it.
        #[test]
        fn after_any_absence_one_round_puts_all_in_order(lifetimes in some_lifetimes(), parts in prop::collection::vec(0_u32..=40, 1..30)) {
            let mut simulation = Simulation::new(lifetimes, vec![Duration::ZERO]);
            let mut time = Duration::ZERO;
            for part in parts {
                simulation.round(0, time, Duration::ZERO);
                simulation.check(time, Duration::ZERO, Duration::ZERO);
                time += lifetimes.ca * part / 12;
            }
            prop_assert!(simulation.most <= 4, "{} at once", simulation.most);
        }

        /// Whatever is in the Secret, in whatever order: something signs in the end, and it ends.
        #[test]
        fn any_authorities_come_to_rest(lifetimes in some_lifetimes(), spans in prop::collection::vec((0_u32..60, 0_u32..60, 1_u32..60), 0..=16)) {
            let moment = |part: u32| BASE + lifetimes.ca * part / 12;
            let authorities = spans.iter().enumerate().map(|(n, (made, after, life))| {
                let (made, signs_from) = (moment(*made), moment(made + after));
                authority(n, AuthoritySpan { made, signs_from, expires: signs_from + lifetimes.ca * *life / 12 })
            });
            let now = moment(30);
            // The second step is for a full Secret: one goes for the one that was made.
            let state = done(&done(&AuthoritySet { authorities: authorities.collect() }, now, &lifetimes), now, &lifetimes);
            prop_assert!(!plan(&state, now, &lifetimes).is_due(), "{state:?}");
            prop_assert!(plan(&state, now, &lifetimes).next > now);
            let signer = state.signer(now);
            prop_assert!(signer.is_some_and(|signer| signer.span.expires > now), "{state:?}");
            let times = leaf(&signer.unwrap().span, now, &lifetimes);
            prop_assert!(times.valid_from <= now && now < times.expires && now < times.renew);
        }
    }
}
