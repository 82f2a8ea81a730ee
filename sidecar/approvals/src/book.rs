//! The book of requests: a state machine without a clock.
//!
//! **Time.** Every method gets the time, and everything that has ended by then ends first. The book remembers the time that it was told
//! last. Where the clock has gone back since then, all times of the book go back by as much: what is left of a request or an approval stays
//! what it was, and nobody can use an approval for longer than its span of the time that the book has seen pass. What passes between the
//! last time that it was told and a clock that is set back, it cannot see; so tell it the time now and then ([`Book::expire`]). The time is
//! to be taken under the lock that guards the book: one that comes too late counts as a clock that was set back, and shortens what is left.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::{Duration, SystemTime},
};

use toolweir_crds::{
    approval_request::{ApprovalAgent, ApprovalNews, ApprovalReport, ApprovalState, KnownApproval, MCPApprovalSpec},
    bounds, text,
};
use toolweir_engine::ApprovalAsk;

use crate::{
    kept::{self, KeptBook, KeptBookError, KeptRequest},
    key::CallKey,
    name,
    request::{ApprovalChange, ApprovalStep, Request, WaitingApproval},
};

/// Requests that have ended and are kept: the operator is told of them, and the agent of the end of its request.
const ENDED: usize = 64;

/// Denials that hold. Of one that is forgotten, the call asks anew.
const DENIALS: usize = 256;

/// A call that asks.
#[derive(Clone, Copy, Debug)]
pub struct AskedCall<'a> {
    /// The server.
    pub server: &'a str,
    /// The tool.
    pub tool: &'a str,
    /// The digest of its arguments.
    pub arguments_sha256: &'a str,
    /// Who calls.
    pub agent: &'a ApprovalAgent,
}

/// The book's answer to a call that needs approval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A person is asked.
    Waiting {
        /// The name of the request.
        name: Arc<str>,
        /// When the request ends unless it is decided.
        until: SystemTime,
        /// Whether this call made it; otherwise it joined one.
        is_new: bool,
    },
    /// A person has approved it, and it was not used yet.
    Approved {
        /// The name of the request.
        name: Arc<str>,
    },
    /// A person has denied it.
    Denied {
        /// The name of the request.
        name: Arc<str>,
        /// The person's reason.
        reason: Option<Arc<str>>,
        /// Until when the same call is denied without asking.
        until: SystemTime,
    },
    /// Its request has ended without being used: nobody decided in time, the call did not come again in time, or the operator ended it.
    /// Said once: the next such call asks anew.
    Expired {
        /// The name of the request.
        name: Arc<str>,
        /// Why, in words.
        why: Arc<str>,
    },
    /// As many requests wait as may.
    Full {
        /// How many that is.
        most: usize,
    },
    /// More policies ask than one approval can name.
    TooManyPolicies {
        /// How many it can name.
        most: usize,
    },
}

/// The decision of a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// Whether the call may go through.
    pub approve: bool,
    /// Who decided.
    pub by: String,
    /// Why, for the agent.
    pub reason: Option<String>,
    /// Until when an approval can be used, or a denial holds; at most as long as the request says, which is also what `None` means.
    pub until: Option<SystemTime>,
}

/// Why a decision has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotDecided {
    /// There is no request of this name.
    #[error("there is no request of this name; list those that wait")]
    Unknown,
    /// It does not wait any more.
    #[error("the request is {} already; a request is decided once", .0.as_str())]
    NotPending(ApprovalState),
}

/// Why an approval cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotUsable {
    /// There is no request of this name.
    #[error("there is no such approval any more")]
    Unknown,
    /// It is for another call.
    #[error("the approval is for another call")]
    OtherCall,
    /// It is not approved: another call has used it, or it has ended.
    #[error("the approval is {}", .0.as_str())]
    NotApproved(ApprovalState),
}

/// One use of an approval, to be given back if nothing was sent.
#[derive(Debug, PartialEq, Eq)]
pub struct ApprovalUse {
    name: Arc<str>,
    /// Which use of it.
    number: u32,
}

impl ApprovalUse {
    /// The name of the request.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }
}

/// All requests of one sidecar. Bounded: [`bounds::POD_APPROVALS`] that are not ended, and some that are.
///
/// A clone is cheap, so that a change can be made to one and kept in a file before it takes the place of the book.
#[derive(Clone, Debug)]
pub struct Book {
    /// The latest time that it was told.
    seen: SystemTime,
    /// Pending or approved, oldest first; one for a key.
    open: Vec<Request>,
    /// In the order in which they ended.
    ended: VecDeque<Request>,
    changes: Vec<ApprovalChange>,
}

impl Default for Book {
    fn default() -> Self {
        Self { seen: SystemTime::UNIX_EPOCH, open: Vec::new(), ended: VecDeque::new(), changes: Vec::new() }
    }
}

impl Book {
    /// The book that was kept, without requests of another pod or service account. What ended in the meantime ends now.
    ///
    /// # Errors
    /// No book was kept like that.
    pub fn from_kept(kept: KeptBook, agent: &ApprovalAgent, now: SystemTime) -> Result<Self, KeptBookError> {
        kept::check(&kept.requests, bounds::POD_APPROVALS + ENDED + DENIALS)?;
        let seen = kept::time(kept.seen);
        let requests = kept.requests.into_iter().map(|request| request.restore(seen)).filter(|request| {
            let asked = &request.spec.agent;
            (&asked.pod_uid, &asked.service_account) == (&agent.pod_uid, &agent.service_account)
        });
        let (ended, open): (Vec<_>, Vec<_>) = requests.partition(|request| request.state.is_final());
        let mut book = Self { seen, open, ended: ended.into(), changes: Vec::new() };
        book.expire(now);
        Ok(book)
    }

    /// The book, for a file.
    pub fn kept(&self) -> KeptBook {
        let requests = self.ended.iter().chain(&self.open).map(KeptRequest::of).collect();
        KeptBook { seen: kept::millis(self.seen), requests }
    }

    /// What happened since the last time that this was asked, in order. To be asked after every other method.
    pub fn take_changes(&mut self) -> Vec<ApprovalChange> {
        std::mem::take(&mut self.changes)
    }

    /// Answers a call for which policies ask: joins the request that is there for its key, or makes one.
    pub fn ask(&mut self, key: CallKey, ask: &ApprovalAsk, call: &AskedCall<'_>, random: u64, now: SystemTime) -> Asked {
        self.expire(now);
        if let Some(answer) = self.ask_open(key).or_else(|| self.ask_ended(key)) {
            return answer;
        }
        if ask.policies.len() > bounds::ASKING_POLICIES {
            return Asked::TooManyPolicies { most: bounds::ASKING_POLICIES };
        }
        let pending = self.open.iter().filter(|request| request.state == ApprovalState::Pending).count();
        let most = usize::try_from(ask.pending).unwrap_or(usize::MAX);
        if pending >= most {
            return Asked::Full { most };
        }
        if self.open.len() >= bounds::POD_APPROVALS {
            return Asked::Full { most: bounds::POD_APPROVALS };
        }
        self.request(key, ask, call, random)
    }

    /// What a request that waits or is approved says to a call. There can be more than one, where an approval was given back: then the one
    /// that ends first of those that are approved.
    fn ask_open(&self, key: CallKey) -> Option<Asked> {
        let of_call = self.open.iter().filter(|request| request.key == key);
        let request = of_call.min_by_key(|request| (request.state_for_calls() != ApprovalState::Approved, request.until))?;
        let name = Arc::clone(&request.name);
        Some(match request.state_for_calls() {
            ApprovalState::Approved => Asked::Approved { name },
            _ => Asked::Waiting { name, until: request.until, is_new: false },
        })
    }

    /// What a request that has ended says to a call.
    fn ask_ended(&mut self, key: CallKey) -> Option<Asked> {
        let seen = self.seen;
        let says = |request: &Request| request.key == key && request.is_of_use(seen) && request.state != ApprovalState::Used;
        let request = self.ended.iter().rev().find(|request| says(request))?;
        let (name, reason) = (Arc::clone(&request.name), request.reason.clone());
        if request.state == ApprovalState::Denied {
            return Some(Asked::Denied { name, reason, until: request.until });
        }
        // There can be two, where an approval was given back.
        self.ended.iter_mut().filter(|request| says(request)).for_each(|request| request.until = seen);
        Some(Asked::Expired { name, why: reason.unwrap_or_default() })
    }

    fn request(&mut self, key: CallKey, ask: &ApprovalAsk, call: &AskedCall<'_>, random: u64) -> Asked {
        let usable_seconds = ask.expiry.as_secs().clamp(1, 86_400);
        let until = self.seen.checked_add(Duration::from_secs(usable_seconds)).unwrap_or(self.seen);
        let spec = MCPApprovalSpec {
            server: call.server.to_owned(),
            tool: call.tool.to_owned(),
            arguments_sha256: call.arguments_sha256.to_owned(),
            agent: call.agent.clone(),
            policies: ask.policies.iter().map(|asking| asking.policy.clone()).collect(),
            message: ask.message.clone(),
            shown: ask.shown.clone(),
            requested_at: rfc3339(self.seen),
            expires_at: rfc3339(until),
            usable_seconds,
        };
        let name: Arc<str> = self.free_name(call.tool, random).into();
        let request = Request {
            name: Arc::clone(&name),
            key,
            revisions: ask.policies.iter().map(|asking| CallKey::of_revision(&asking.revision)).collect(),
            spec: Arc::new(spec),
            state: ApprovalState::Pending,
            asked: self.seen,
            until,
            reason: None,
            known: false,
            uses: 0,
            held_back: false,
        };
        self.changes.push(request.change(ApprovalStep::Requested));
        self.open.push(request);
        Asked::Waiting { name, until, is_new: true }
    }

    fn free_name(&self, tool: &str, random: u64) -> String {
        let mut random = random;
        loop {
            let name = name::of(tool, random);
            if !self.open.iter().chain(&self.ended).any(|request| *request.name == *name) {
                return name;
            }
            random = random.wrapping_add(1);
        }
    }

    /// Enters a decision.
    ///
    /// # Errors
    /// No request of this name waits.
    pub fn decide(&mut self, name: &str, decided: &Decided, now: SystemTime) -> Result<(), NotDecided> {
        self.expire(now);
        let seen = self.seen;
        let Some(at) = self.open.iter().position(|request| *request.name == *name) else {
            let ended = self.ended.iter().find(|request| *request.name == *name);
            return Err(ended.map_or(NotDecided::Unknown, |request| NotDecided::NotPending(request.state)));
        };
        let Some(request) = self.open.get_mut(at) else { return Err(NotDecided::Unknown) };
        if request.state != ApprovalState::Pending {
            return Err(NotDecided::NotPending(request.state));
        }
        let most = seen.checked_add(request.span()).unwrap_or(seen);
        request.until = decided.until.map_or(most, |until| until.min(most));
        request.reason = decided.reason.as_deref().map(|reason| readable(reason, bounds::TEXT).into());
        let (state, step) = if decided.approve {
            (ApprovalState::Approved, ApprovalStep::Approved)
        } else {
            (ApprovalState::Denied, ApprovalStep::Denied)
        };
        request.state = state;
        let by = Some(readable(&decided.by, bounds::USER_NAME));
        let waited = Some(seen.duration_since(request.asked).unwrap_or_default());
        self.changes.push(ApprovalChange { by, waited, ..request.change(step) });
        if state == ApprovalState::Denied {
            let request = self.open.remove(at);
            self.no_longer(|other| other.key == request.key, "a person has denied the same call");
            self.ended.push_back(request);
        }
        self.expire(now);
        Ok(())
    }

    /// Lets an approval that was entered just now count for no call until [`Book::let_count`]: calls go on waiting. Nothing is held back of a
    /// denial.
    pub fn hold_back(&mut self, name: &str) {
        if let Some(request) = self.open.iter_mut().find(|request| *request.name == *name) {
            request.held_back = request.state == ApprovalState::Approved;
        }
    }

    /// Lets an approval count that was held back.
    pub fn let_count(&mut self, name: &str) {
        if let Some(request) = self.open.iter_mut().find(|request| *request.name == *name) {
            request.held_back = false;
        }
    }

    /// Voids an approval that was held back: whoever made it is told that it does not count.
    pub fn take_back(&mut self, name: &str, why: &str, now: SystemTime) {
        self.expire(now);
        self.end(|request| {
            let is_it = request.held_back && *request.name == *name;
            is_it.then(|| (ApprovalState::Voided, request.span(), why.to_owned()))
        });
        self.tidy();
    }

    /// Uses an approval up. The call may be sent once the book is kept.
    ///
    /// # Errors
    /// It is not one for this call that can be used now.
    pub fn begin_use(&mut self, name: &str, key: CallKey, now: SystemTime) -> Result<ApprovalUse, NotUsable> {
        self.expire(now);
        let named = |request: &Request| *request.name == *name;
        let Some(at) = self.open.iter().position(named) else {
            let ended = self.ended.iter().find(|request| named(request));
            return Err(ended.map_or(NotUsable::Unknown, |request| NotUsable::NotApproved(request.state)));
        };
        let Some(request) = self.open.get_mut(at) else { return Err(NotUsable::Unknown) };
        if request.key != key {
            return Err(NotUsable::OtherCall);
        }
        if request.state_for_calls() != ApprovalState::Approved {
            return Err(NotUsable::NotApproved(request.state_for_calls()));
        }
        request.state = ApprovalState::Used;
        request.uses = request.uses.saturating_add(1);
        self.changes.push(request.change(ApprovalStep::Used));
        let used = ApprovalUse { name: Arc::clone(&request.name), number: request.uses };
        let request = self.open.remove(at);
        self.ended.push_back(request);
        self.tidy();
        Ok(used)
    }

    /// Gives an approval back of which nothing was sent. Returns false where it could not be used any more: then it stays used.
    pub fn give_back(&mut self, used: &ApprovalUse, now: SystemTime) -> bool {
        self.expire(now);
        let seen = self.seen;
        let is_it = |request: &Request| {
            request.name == used.name
                && request.state == ApprovalState::Used
                && request.uses == used.number
                && request.is_of_use(seen)
        };
        let Some(at) = self.ended.iter().position(is_it) else { return false };
        let Some(mut request) = self.ended.remove(at) else { return false };
        if self.open.len() >= bounds::POD_APPROVALS {
            self.ended.insert(at, request);
            return false;
        }
        (request.state, request.known) = (ApprovalState::Approved, false);
        self.changes.push(request.change(ApprovalStep::Returned));
        self.open.push(request);
        true
    }

    /// Voids what asks for policies that are not in force any more in the state in which they asked. Gets the revisions of all that are.
    pub fn keep_only<'a>(&mut self, in_force: impl IntoIterator<Item = &'a str>, now: SystemTime) {
        self.expire(now);
        let in_force: HashSet<CallKey> = in_force.into_iter().map(CallKey::of_revision).collect();
        let has_changed = |request: &Request| !request.revisions.iter().all(|revision| in_force.contains(revision));
        self.no_longer(has_changed, "a policy that asks for it has changed");
        self.tidy();
    }

    /// Voids requests, and ends the use of those that have ended.
    fn no_longer(&mut self, voids: impl Fn(&Request) -> bool, why: &str) {
        let seen = self.seen;
        self.end(|request| voids(request).then(|| (ApprovalState::Voided, Duration::ZERO, why.to_owned())));
        for request in self.ended.iter_mut().filter(|request| voids(request)) {
            request.until = request.until.min(seen);
        }
    }

    /// Ends what has ended by this time.
    pub fn expire(&mut self, now: SystemTime) {
        self.observe(now);
        let seen = self.seen;
        self.end(|request| {
            let span = humantime::format_duration(request.span());
            let why = match request.state {
                ApprovalState::Approved => format!("it was approved, and the call did not come again within {span}"),
                _ => format!("nobody decided within {span}"),
            };
            (!request.is_of_use(seen)).then_some((ApprovalState::Expired, request.span(), why))
        });
        self.tidy();
    }

    /// Takes note of the time.
    fn observe(&mut self, now: SystemTime) {
        let back = self.seen.duration_since(now).unwrap_or_default();
        if !back.is_zero() {
            for request in self.open.iter_mut().chain(&mut self.ended) {
                request.asked = request.asked.checked_sub(back).unwrap_or(SystemTime::UNIX_EPOCH);
                request.until = request.until.checked_sub(back).unwrap_or(SystemTime::UNIX_EPOCH);
            }
        }
        self.seen = now;
    }

    /// Ends requests that wait or are approved: how, for how long that is worth telling, and why.
    fn end(&mut self, ends: impl Fn(&Request) -> Option<(ApprovalState, Duration, String)>) {
        let mut at = 0;
        while let Some(request) = self.open.get(at) {
            let Some((state, told, why)) = ends(request) else {
                at += 1;
                continue;
            };
            let mut request = self.open.remove(at);
            (request.state, request.reason, request.held_back) = (state, Some(why.into()), false);
            request.until = self.seen.checked_add(told).unwrap_or(self.seen);
            let step = if state == ApprovalState::Expired { ApprovalStep::Expired } else { ApprovalStep::Voided };
            self.changes.push(request.change(step));
            self.ended.push_back(request);
        }
    }

    /// Forgets what nobody needs, and the oldest where there are too many.
    fn tidy(&mut self) {
        let seen = self.seen;
        self.ended.retain(|request| !request.known || request.is_of_use(seen));
        let denials = self.ended.iter().filter(|request| request.denies(seen)).count();
        let (mut denials, mut others) = (denials.saturating_sub(DENIALS), (self.ended.len() - denials).saturating_sub(ENDED));
        self.ended.retain_mut(|request| {
            if request.state != ApprovalState::Used || !request.is_of_use(seen) {
                request.forget_content();
            }
            let surplus = if request.denies(seen) { &mut denials } else { &mut others };
            let keep = *surplus == 0;
            *surplus = surplus.saturating_sub(1);
            keep
        });
    }

    /// When something ends next.
    pub fn next_end(&self) -> Option<SystemTime> {
        self.open.iter().map(|request| request.until).min()
    }

    /// What the operator is told: all that is not ended, and what has ended and it does not know.
    pub fn report(&self) -> ApprovalReport {
        let ended = self.ended.iter().rev().filter(|request| !request.known).take(ENDED);
        ApprovalReport { approvals: self.open.iter().chain(ended).map(Request::report).collect() }
    }

    /// Takes in what the operator says: decisions, and requests that have ended.
    pub fn learn(&mut self, news: &ApprovalNews, now: SystemTime) {
        self.expire(now);
        for known in &news.approvals {
            if let Some(ended) = self.ended.iter_mut().find(|request| *request.name == *known.name) {
                // What the operator ended while it did not know that the call went is not its answer to that.
                let is_used = ended.state == ApprovalState::Used;
                ended.known |= if is_used { known.state == ApprovalState::Used } else { known.state.is_final() };
            } else if let Some(open) = self.open.iter().find(|request| *request.name == *known.name) {
                let (state, uses) = (open.state, open.uses);
                self.learn_of_open(state, uses, known, now);
            }
        }
        self.tidy();
    }

    fn learn_of_open(&mut self, state: ApprovalState, uses: u32, known: &KnownApproval, now: SystemTime) {
        let ended = match (state, known.state) {
            (ApprovalState::Pending, ApprovalState::Approved | ApprovalState::Denied) => {
                let decided = Decided {
                    approve: known.state == ApprovalState::Approved,
                    by: known.decided_by.clone().unwrap_or_default(),
                    reason: known.reason.clone(),
                    until: known.until.map(|seconds| kept::time(seconds.saturating_mul(1000))),
                };
                // It waits: that was asked.
                let _ = self.decide(&known.name, &decided, now);
                return;
            }
            (_, ApprovalState::Expired) => ApprovalState::Expired,
            // Given back since the operator was told that it was used.
            (ApprovalState::Approved, ApprovalState::Used) if uses > 0 => return,
            (_, ApprovalState::Voided | ApprovalState::Used | ApprovalState::Denied) => ApprovalState::Voided,
            (_, ApprovalState::Pending | ApprovalState::Approved) => return,
        };
        let why =
            known.reason.as_deref().map_or_else(|| "it has ended for the operator".to_owned(), |why| readable(why, bounds::TEXT));
        self.end(|request| (*request.name == *known.name).then(|| (ended, request.span(), why.clone())));
    }

    /// Returns true where the request of this name waits for a person.
    pub fn is_waiting(&self, name: &str) -> bool {
        self.open.iter().any(|request| request.state_for_calls() == ApprovalState::Pending && *request.name == *name)
    }

    /// What waits for a person, oldest first.
    pub fn waiting(&self) -> Vec<WaitingApproval> {
        let pending = self.open.iter().filter(|request| request.state == ApprovalState::Pending);
        let waiting = pending.map(|request| WaitingApproval {
            name: Arc::clone(&request.name),
            request: Arc::clone(&request.spec),
            until: request.until,
        });
        waiting.collect()
    }
}

/// A text of others as one line without characters that cannot be seen.
fn readable(text: &str, most: usize) -> String {
    text::shown(&text::one_line(text, most)).into_owned()
}

/// A time as objects have it, to the second. Times that no clock shows are the nearest that can be written.
fn rfc3339(time: SystemTime) -> String {
    /// The year 9999 begins.
    const LAST: Duration = Duration::from_secs(253_370_764_800);
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().min(LAST);
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + since).to_string()
}
