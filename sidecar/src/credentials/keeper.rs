//! Keeps one credential: reads its files, and asks its token endpoint where it has one.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use ring::rand::{SecureRandom, SystemRandom};
use rustls::ClientConfig;
use tokio::time::sleep;
use toolweir_crds::{Credential, CredentialSource};

use super::{
    CredentialProblem,
    grant::{FetchFailure, FetchOutcome, TokenRequest},
    keys::KeyFolders,
    material::{CredentialInput, of_files},
    metrics::CredentialMetrics,
    server_credential::{Known, ServerCredential},
    since_1970,
    token_client::TokenClient,
    unix_now,
};

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// The least time between two renewals that calls ask for: a server that refuses everything does not make the sidecar ask its token
/// endpoint with every call.
const RENEWALS: Duration = Duration::from_secs(5);
/// The least time between two tokens.
const SPACE: Duration = Duration::from_millis(200);
/// The least and the most wait after a failed attempt.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// What all keepers use.
#[derive(Debug)]
pub struct KeeperTools {
    /// Where keys and tokens are.
    pub folders: KeyFolders,
    /// The base of connections with a certificate.
    pub tls: Arc<ClientConfig>,
    /// Asks token endpoints.
    pub tokens: TokenClient,
    /// The metrics.
    pub metrics: CredentialMetrics,
}

/// The moments that decide when a token is asked for. Pure: times in, decision out.
#[derive(Clone, Debug, Default)]
struct Schedule {
    /// When a call last made the keeper renew it.
    renewed: Option<Instant>,
    /// Failed attempts since the last success.
    failures: u32,
    /// No attempt before this, unless its keys change.
    not_before: Option<Instant>,
}

/// What a schedule depends on besides the time.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts")]
struct Need {
    /// Nothing was ever asked, or the keys are others than those that were shown.
    new_keys: bool,
    /// A call has been refused with what it has.
    refused: bool,
    /// A call came since the last look.
    used: bool,
    /// There is something that can be shown.
    usable: bool,
    /// The time to renew it has come.
    renew: bool,
}

impl Need {
    /// Returns true where a call may wait for a token. One that expired before the call saw it is asked for anew, but not at once.
    fn is_waited_for(self) -> bool {
        self.used && !self.usable
    }
}

impl Schedule {
    fn is_due(&self, need: Need, now: Instant) -> bool {
        let rests = self.not_before.is_some_and(|at| now < at);
        if need.new_keys {
            return true;
        }
        if need.refused && self.may_renew(now) {
            return !rests || self.failures == 0;
        }
        // What failed is tried again, also where nobody asks: so it is known when it works.
        let wanted = if need.usable { need.renew && (need.used || self.failures > 0) } else { need.used || self.failures > 0 };
        wanted && !rests
    }

    fn may_renew(&self, now: Instant) -> bool {
        self.renewed.is_none_or(|at| now.saturating_duration_since(at) >= RENEWALS)
    }

    /// Takes note of a failed attempt. `random` is spread evenly over all of `u64`.
    fn failed(&mut self, now: Instant, random: u64) {
        let (least, most) = BACKOFF;
        let longest = least.saturating_mul(2_u32.saturating_pow(self.failures.saturating_add(1))).min(most);
        // From half of it to all of it.
        let share = u32::try_from(random >> 32).unwrap_or(u32::MAX);
        self.not_before = Some(now + longest / 2 + (longest / 2).mul_f64(f64::from(share) / f64::from(u32::MAX)));
        self.failures = self.failures.saturating_add(1);
    }

    fn succeeded(&mut self, now: Instant) {
        (self.failures, self.not_before) = (0, Some(now + SPACE));
    }
}

/// Keeps one credential for as long as it is in force.
pub struct Keeper {
    credential: Weak<ServerCredential>,
    tools: Arc<KeeperTools>,
    random: SystemRandom,
    schedule: Schedule,
    /// When files were last read.
    looked: Option<Instant>,
    /// The digest of the texts that what is known was made of.
    made_of: Option<[u8; 32]>,
}

impl Keeper {
    /// A keeper that has done nothing yet.
    pub fn new(credential: &Arc<ServerCredential>, tools: Arc<KeeperTools>) -> Self {
        let random = SystemRandom::new();
        Self { credential: Arc::downgrade(credential), tools, random, schedule: Schedule::default(), looked: None, made_of: None }
    }

    /// Keeps it until it is no longer in force.
    pub async fn run(mut self) {
        let Some(wake) = self.credential.upgrade().map(|of| Arc::clone(&of.wake)) else { return };
        while let Some(credential) = self.credential.upgrade().filter(|of| !of.is_retired()) {
            self.step(&credential).await;
            drop(credential);
            tokio::select! {
                () = wake.notified() => {}
                () = sleep(LOOK) => {}
            }
        }
    }

    async fn step(&mut self, credential: &ServerCredential) {
        let now = Instant::now();
        let refused = credential.take_renew();
        // Calls may wake the keeper often; files are read once a second.
        let looks = refused || self.looked.is_none_or(|at| now.saturating_duration_since(at) >= LOOK);
        let waits = !looks && credential.known().problem.is_none();
        if looks || waits {
            self.looked = Some(now);
            match CredentialInput::read(&credential.credential, &self.tools.folders) {
                Ok(input @ CredentialInput::Whole(_)) => self.show_files(credential, &input, refused),
                Ok(CredentialInput::Request(request, texts)) => {
                    self.renew(credential, &request, digest(&texts), refused, now).await;
                }
                Err(problem) => self.unreadable(credential, problem, refused),
            }
        }
        credential.unless_retired(|| {
            credential.tell();
            self.measure(credential);
        });
    }

    /// Shows what the files say.
    fn show_files(&mut self, credential: &ServerCredential, input: &CredentialInput, refused: bool) {
        let (known, made_of) = (credential.known(), digest(input.texts()));
        let ready = match &known.ready {
            // A clock that was set back makes one good again.
            Some(ready) if self.made_of == Some(made_of) && ready.is_usable(Instant::now) => Ok(Arc::clone(ready)),
            _ => of_files(&credential.credential, input.texts(), &self.tools.tls)
                .map(|ready| Arc::new(ready.until_it_expires(Instant::now(), since_1970()))),
        };
        self.made_of = Some(made_of);
        let expires = ready.as_ref().ok().and_then(|ready| ready.expires);
        let is_over = expires.is_some_and(|at| at <= unix_now());
        let (ready, problem) = match ready {
            Ok(_) if is_over => (
                None,
                Some(CredentialProblem::lasting(format!(
                    "{} has expired; renew it, or set the clock",
                    what_expires(&credential.credential)
                ))),
            ),
            Ok(ready) => (Some(ready), None),
            Err(problem) => (None, Some(problem)),
        };
        let same = match (&ready, &known.ready) {
            (Some(new), Some(old)) => new.is(old),
            (new, old) => new.is_none() && old.is_none(),
        };
        if !same {
            credential.forget_refusal();
        }
        if !same || problem != known.problem || refused {
            credential.publish(Known { ready, expires, problem, renewals: known.renewals + u64::from(refused) });
        }
    }

    /// Asks for a token, if it is time.
    async fn renew(
        &mut self,
        credential: &ServerCredential,
        request: &TokenRequest,
        made_of: [u8; 32],
        refused: bool,
        now: Instant,
    ) {
        let known = credential.known();
        let need = Need {
            new_keys: self.made_of != Some(made_of),
            refused,
            used: credential.take_used(),
            usable: known.ready.as_ref().is_some_and(|ready| ready.is_usable(|| now)),
            renew: known.ready.as_ref().and_then(|ready| ready.renew_at).is_some_and(|at| now >= at),
        };
        let renewals = known.renewals + u64::from(refused);
        if !self.schedule.is_due(need, now) {
            if need.is_waited_for() {
                // It is asked for later.
                credential.set_used();
            }
            if refused {
                credential.publish(Known { renewals, ..Known::clone(&known) });
            }
            return;
        }
        if refused {
            self.schedule.renewed = Some(now);
        }
        self.made_of = Some(made_of);
        let fetched = self.tools.tokens.fetch(request).await.and_then(|ready| {
            let too_short = "the tokens of the token endpoint do not live long enough to be shown";
            let usable = ready.is_usable(Instant::now);
            usable.then_some(ready).ok_or_else(|| FetchFailure::passing(FetchOutcome::Invalid, too_short))
        });
        let outcome = fetched.as_ref().err().map_or(FetchOutcome::Ok, |failure| failure.outcome);
        credential.unless_retired(|| self.tools.metrics.fetched(&credential.server, outcome));
        match fetched {
            Ok(ready) => {
                self.schedule.succeeded(Instant::now());
                if need.new_keys {
                    credential.forget_refusal();
                }
                credential.publish(Known { expires: ready.expires, ready: Some(Arc::new(ready)), problem: None, renewals });
            }
            Err(failure) => {
                let mut bytes = [0; 8];
                // Without a random number the whole pause is waited.
                let random = self.random.fill(&mut bytes).map_or(u64::MAX, |()| u64::from_ne_bytes(bytes));
                self.schedule.failed(Instant::now(), random);
                let (server, problem) = (credential.server.as_str(), failure.problem.message.as_str());
                tracing::warn!(server, outcome = outcome.as_str(), problem, "no token; it is asked for again");
                // What was made of other keys is no longer shown.
                let ready = known.ready.clone().filter(|_| !need.new_keys);
                let expires = ready.as_ref().and_then(|ready| ready.expires);
                credential.publish(Known { ready, expires, problem: Some(failure.problem), renewals });
            }
        }
    }

    /// Shows nothing: a file is missing, or its text cannot be used.
    fn unreadable(&mut self, credential: &ServerCredential, problem: CredentialProblem, refused: bool) {
        let known = credential.known();
        self.made_of = None;
        if known.ready.is_none() && known.problem.as_ref() == Some(&problem) && !refused {
            return;
        }
        if credential.kind.asks_for_tokens() {
            credential.unless_retired(|| self.tools.metrics.fetched(&credential.server, FetchOutcome::NoKey));
        }
        let renewals = known.renewals + u64::from(refused);
        credential.publish(Known { problem: Some(problem), renewals, ..Known::default() });
    }

    /// Sets the metrics.
    fn measure(&self, credential: &ServerCredential) {
        let known = credential.known();
        // Of a token that expired unused, nobody has to know.
        let idle = known.problem.is_none() && known.ready.as_ref().is_some_and(|ready| !ready.is_usable(Instant::now));
        let expires = known.expires.filter(|_| !idle);
        let (server, works) = (credential.server.as_str(), credential.works());
        self.tools.metrics.set(server, credential.kind, works, expires.map(|at| at.saturating_sub(unix_now())));
    }
}

/// What expires of a credential of files, in words.
fn what_expires(credential: &Credential) -> String {
    let key = || credential.keys().first().map_or("", |(_, key)| key).to_owned();
    match credential.source() {
        Some(CredentialSource::ServiceAccountToken(of)) => format!("the service account token of the audience {}", of.audience),
        Some(CredentialSource::ClientCertificate(_)) => format!("the certificate of the key {}", key()),
        _ => format!("the token of the key {}", key()),
    }
}

/// The digest of texts, each with its length.
fn digest(texts: &[Vec<u8>]) -> [u8; 32] {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for text in texts {
        context.update(&(text.len() as u64).to_be_bytes());
        context.update(text);
    }
    context.finish().as_ref().try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_asked_for_when_it_is_needed_and_not_more_often() {
        let now = Instant::now();
        let usable = Need { usable: true, ..Need::default() };
        let mut schedule = Schedule::default();
        let due = |schedule: &Schedule, need: Need| schedule.is_due(need, now);
        assert!(due(&schedule, Need { new_keys: true, ..Need::default() }));
        assert!(!due(&schedule, Need::default()), "one that expired unused waits for a call");
        assert!(due(&schedule, Need { used: true, ..Need::default() }));
        assert!(!due(&schedule, Need { used: true, ..usable }));
        assert!(due(&schedule, Need { used: true, renew: true, ..usable }));
        assert!(!due(&schedule, Need { renew: true, ..usable }), "nobody uses it");
        assert!(due(&schedule, Need { refused: true, ..usable }));
        schedule.renewed = Some(now);
        assert!(!due(&schedule, Need { refused: true, ..usable }), "just renewed");
        assert!(schedule.is_due(Need { refused: true, ..usable }, now + RENEWALS));
    }

    #[test]
    fn a_token_that_expired_before_its_call_saw_it_is_asked_for_after_the_rest() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        schedule.succeeded(now);
        let expired = Need { used: true, ..Need::default() };
        assert!(!schedule.is_due(expired, now) && expired.is_waited_for());
        assert!(schedule.is_due(expired, now + SPACE));
        assert!(!Need { usable: true, ..expired }.is_waited_for() && !Need::default().is_waited_for());
    }

    #[test]
    fn a_failure_is_followed_by_a_rest_that_new_keys_end() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        let mut rests = Vec::new();
        for _ in 0..8 {
            schedule.failed(now, u64::MAX);
            rests.push((schedule.not_before.unwrap() - now).as_millis());
        }
        assert_eq!(rests, [1000, 2000, 4000, 8000, 15_000, 15_000, 15_000, 15_000]);
        schedule.failed(now, 0);
        assert_eq!(schedule.not_before, Some(now + BACKOFF.1 / 2));
        let need = Need { used: true, ..Need::default() };
        assert!(!schedule.is_due(need, now));
        assert!(!schedule.is_due(Need { refused: true, ..need }, now));
        assert!(schedule.is_due(Need { new_keys: true, ..need }, now));
        assert!(schedule.is_due(Need::default(), now + BACKOFF.1), "it is tried again though nobody asks");
        schedule.succeeded(now);
        assert!(!schedule.is_due(Need::default(), now + BACKOFF.1));
        assert!(!schedule.is_due(need, now), "tokens that do not live long are not asked for without a pause");
        assert!(schedule.is_due(need, now + SPACE));
    }
}
