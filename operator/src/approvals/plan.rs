//! What is to be done for a pod whose sidecar is connected: which objects to create, which states to write, what to tell the sidecar. A
//! function of what is known; no I/O.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use toolweir_crds::{
    approval_request::{ApprovalDecision, ApprovalNews, ApprovalState, KnownApproval, MCPApprovalSpec, ReportedApproval},
    bounds,
};

use super::{
    guarded::ApprovalGuard,
    records::{ApprovalRecord, PodRecords, RequestDigest, digest},
    request::{bounded, checked, governs, is_name},
    transition::{Circumstances, DueState, due},
};
use crate::{auth::PodIdentity, index::IncludedPolicy};

/// The most objects that are created for a pod within [`WINDOW`].
pub const CREATIONS: usize = 20;
/// See [`CREATIONS`].
pub const WINDOW: Duration = Duration::from_secs(60);
/// The most requests of a report that are looked at: as many as may be open, and as many that have ended.
const REPORTED: usize = 2 * bounds::POD_APPROVALS;
/// What is not there so long after a report that supposes it, is gone. Before, the watch may be behind.
const BEHIND: Duration = Duration::from_secs(5);
/// An object that is younger than this may be missing from a report that was made before.
const YOUNG: Duration = Duration::from_secs(30);
const CROWDED: &str = "too many requests wait at the operator; the same call can be made again later";

/// The last report of a sidecar, as far as it is kept.
#[derive(Debug)]
pub struct TakenReport<H> {
    /// When it came.
    pub received: Timestamp,
    /// Requests for which there was no room.
    pub crowded: Vec<String>,
    /// What it says, by name.
    pub said: BTreeMap<String, SaidOfRequest<H>>,
}

/// What a sidecar says of a request.
#[derive(Debug)]
pub struct SaidOfRequest<H> {
    /// The state.
    pub state: ApprovalState,
    /// Since when it says so.
    pub since: Timestamp,
    /// Why it ended.
    pub message: Option<String>,
    /// What is asked, if the sidecar says.
    pub digest: Option<RequestDigest>,
    /// The same whole, until there is an object.
    pub request: Option<HeldRequest<H>>,
}

/// A request for which there is no object yet, with the room that it takes.
#[derive(Debug)]
pub struct HeldRequest<H> {
    /// What is asked.
    pub spec: Box<MCPApprovalSpec>,
    _room: H,
}

impl<H> TakenReport<H> {
    /// Takes a report. `before` is the one that it replaces; `room` reserves memory for so many bytes of a request.
    pub fn new(
        approvals: Vec<ReportedApproval>,
        received: Timestamp,
        before: Option<&Self>,
        mut room: impl FnMut(usize) -> Option<H>,
    ) -> Self {
        let (mut said, mut crowded) = (BTreeMap::new(), Vec::new());
        for reported in approvals.into_iter().filter(|reported| is_name(&reported.name)).take(REPORTED) {
            let digest = reported.request.as_ref().map(digest);
            let open = reported.request.filter(|_| !reported.state.is_final());
            let request = open.and_then(|spec| {
                let room = room(size(&spec));
                if room.is_none() {
                    crowded.push(reported.name.clone());
                }
                Some(HeldRequest { spec: Box::new(spec), _room: room? })
            });
            let message = reported.message.map(|message| bounded(&message, bounds::TEXT));
            let state = reported.state;
            let same = before.and_then(|before| before.said.get(&reported.name)).filter(|before| before.state == state);
            let since = same.map_or(received, |before| before.since);
            said.entry(reported.name).or_insert(SaidOfRequest { state, since, message, digest, request });
        }
        Self { received, crowded, said }
    }

    /// Drops what is kept of requests for which there are objects.
    pub fn settle(&mut self, records: &PodRecords) {
        for (name, said) in &mut self.said {
            if records.contains_key(name.as_str()) {
                said.request = None;
            }
        }
    }
}

/// About the bytes that a request takes.
fn size(spec: &MCPApprovalSpec) -> usize {
    let shown: usize = spec.shown.iter().map(|shown| shown.expression.len() + shown.value.len() + 64).sum();
    let policies: usize =
        spec.policies.iter().map(|policy| policy.namespace.len() + policy.name.len() + policy.uid.len() + 96).sum();
    spec.server.len() + spec.tool.len() + spec.message.len() + shown + policies + 512
}

/// What a stream remembers of its requests.
#[derive(Debug, Default)]
pub struct StreamMemory {
    /// Objects that were created and that the watch has not shown yet, and when.
    pub made: BTreeMap<String, Timestamp>,
    /// Requests of which no object can be made, and why.
    pub refused: BTreeMap<String, String>,
    /// Requests whose object was deleted.
    pub deleted: BTreeSet<String>,
}

impl StreamMemory {
    /// Takes a new report: forgets what the sidecar speaks of no longer.
    pub fn take<H>(&mut self, report: &TakenReport<H>) {
        self.made.retain(|name, _| report.said.contains_key(name));
        self.refused.retain(|name, _| report.said.contains_key(name));
        self.deleted.retain(|name| report.said.contains_key(name));
        for name in &report.crowded {
            self.refused.entry(name.clone()).or_insert_with(|| CROWDED.to_owned());
        }
    }

    /// Remembers that an object is gone. Only of names that the sidecar speaks of, which are few.
    pub fn forget<H>(&mut self, name: &str, report: Option<&TakenReport<H>>) {
        self.made.remove(name);
        if report.is_some_and(|report| report.said.contains_key(name)) {
            self.deleted.insert(name.to_owned());
        }
    }
}

/// All on which a plan depends.
#[derive(Debug)]
pub struct PodView<'a, H> {
    /// The pod of the stream, as the token review says.
    pub agent: &'a PodIdentity,
    /// The last report of its sidecar; none before the first.
    pub report: Option<&'a TakenReport<H>>,
    /// The objects of the pod.
    pub records: &'a PodRecords,
    /// The policies that govern the pod.
    pub governing: &'a [IncludedPolicy],
    /// Whether the API server checks who decides.
    pub guard: &'a ApprovalGuard,
    /// What the stream remembers.
    pub memory: &'a StreamMemory,
}

/// What is to be done for a pod.
#[derive(Debug, Default, PartialEq)]
pub struct ApprovalPlan {
    /// Objects to create, by name, the one that was asked first first.
    pub create: Vec<(String, MCPApprovalSpec)>,
    /// States to write, by name.
    pub write: Vec<(String, DueState)>,
    /// What to tell the sidecar.
    pub news: ApprovalNews,
    /// When to look again though nothing has changed.
    pub next: Option<Timestamp>,
}

/// Plans what is to be done.
pub fn plan<H>(view: &PodView<'_, H>, now: Timestamp) -> ApprovalPlan {
    let mut planner = Planner { view, now, plan: ApprovalPlan::default(), wanted: Vec::new() };
    let said = view.report.map(|report| &report.said);
    for (name, record) in view.records {
        let said = said.and_then(|said| said.get(&**name));
        if said.is_some() || !record.has_ended() {
            planner.of_record(name, record, said);
        }
    }
    for (name, said) in said.into_iter().flatten() {
        if !view.records.contains_key(name.as_str()) {
            planner.of_missing(name, said);
        }
    }
    planner.create();
    planner.plan.news.unavailable = view.guard.unavailable().map(ToOwned::to_owned);
    planner.plan.news.approvals.sort_by(|a, b| a.name.cmp(&b.name));
    planner.plan
}

struct Planner<'a, H> {
    view: &'a PodView<'a, H>,
    now: Timestamp,
    plan: ApprovalPlan,
    /// Requests of which an object is to be made, and when they were made.
    wanted: Vec<(Timestamp, String, MCPApprovalSpec)>,
}

impl<H> Planner<'_, H> {
    fn tell(&mut self, name: &str, state: ApprovalState, reason: Option<&str>) {
        let reason = reason.map(|reason| bounded(reason, bounds::TEXT));
        self.plan.news.approvals.push(KnownApproval { name: name.to_owned(), state, reason, ..KnownApproval::default() });
    }

    /// Looks again at this time, if it is still to come.
    fn look_at(&mut self, time: Timestamp) {
        if time > self.now {
            self.plan.next = Some(self.plan.next.map_or(time, |next| next.min(time)));
        }
    }

    fn of_record(&mut self, name: &str, record: &ApprovalRecord, said: Option<&SaidOfRequest<H>>) {
        let asked = said.and_then(|said| said.digest);
        // An approval of one thing is none of another, whatever its name.
        let is_another = record.open.as_ref().is_some_and(|open| asked.is_some_and(|asked| asked != open.digest));
        let said = said.filter(|_| !is_another);
        let governed =
            record.open.as_ref().is_some_and(|open| open.policies.iter().all(|policy| governs(policy, self.view.governing)));
        let received = self.view.report.map(|report| report.received.as_second());
        let is_old = received.is_some_and(|received| record.created.saturating_add(seconds(YOUNG)) < received);
        let lost = (said.is_none() && is_old).then_some("The pod's sidecar does not know the request any more.");
        let around = Circumstances {
            guard: self.view.guard,
            governed,
            said: said.map(|said| (said.state, said.message.as_deref())),
            lost,
        };
        let due = due(record, around, self.now);
        let is_due = due.is_some();
        self.plan.write.extend(due.map(|due| (name.to_owned(), due)));
        if let Some(open) = &record.open {
            let end = if record.state == Some(ApprovalState::Approved) { record.until } else { Some(open.expires.as_second()) };
            if let Some(after) = end.and_then(|end| Timestamp::from_second(end.saturating_add(1)).ok()) {
                self.look_at(after);
            }
        }
        if is_another {
            return self.tell(name, ApprovalState::Voided, Some("its name is that of another request"));
        }
        // A sidecar forgets what it hears has ended: not before its own word is written, or is known to be of no use.
        match said.map(|said| said.state) {
            Some(said) if is_due && said.is_final() => {}
            Some(ApprovalState::Used) if record.has_ended() => self.tell(name, ApprovalState::Used, None),
            _ => self.plan.news.approvals.extend(self.known(name, record, governed)),
        }
    }

    /// What the sidecar is told of an object.
    fn known(&self, name: &str, record: &ApprovalRecord, governed: bool) -> Option<KnownApproval> {
        let state = record.state.unwrap_or_default();
        let known = KnownApproval { name: name.to_owned(), state, ..KnownApproval::default() };
        let until = record.until.filter(|until| self.now.as_second() <= *until).and_then(|until| u64::try_from(until).ok());
        let verdict = record.verdict.as_deref();
        let decided = |until: Option<u64>| KnownApproval {
            decided_by: verdict.map(|verdict| bounded(&verdict.by, bounds::USER_NAME)),
            reason: verdict.and_then(|verdict| verdict.reason.as_deref()).map(|reason| bounded(reason, bounds::TEXT)),
            until,
            ..known.clone()
        };
        match state {
            ApprovalState::Approved if !governed => {
                let reason = Some("a policy that asked has changed, or does not govern the pod any more".to_owned());
                Some(KnownApproval { state: ApprovalState::Voided, reason, ..known })
            }
            ApprovalState::Approved => {
                let holds = record.decision == Some(ApprovalDecision::Approve)
                    && verdict.is_some()
                    && until.is_some()
                    && *self.view.guard == ApprovalGuard::Guarded;
                holds.then(|| decided(until))
            }
            ApprovalState::Denied => Some(decided(until)),
            ApprovalState::Voided => {
                Some(KnownApproval { reason: record.message.as_deref().map(|why| bounded(why, bounds::TEXT)), ..known })
            }
            ApprovalState::Pending | ApprovalState::Used | ApprovalState::Expired => Some(known),
        }
    }

    /// A request of which there is no object.
    fn of_missing(&mut self, name: &str, said: &SaidOfRequest<H>) {
        let memory = self.view.memory;
        if said.state.is_final() {
            // Nobody ever saw it, or saw it go: its sidecar can forget it.
            return self.tell(name, said.state, None);
        }
        if let Some(why) = memory.refused.get(name) {
            return self.tell(name, ApprovalState::Voided, Some(why));
        }
        if memory.deleted.contains(name) {
            return self.tell(name, ApprovalState::Voided, Some("it was deleted"));
        }
        match self.view.guard {
            ApprovalGuard::Off => return self.tell(name, ApprovalState::Voided, self.view.guard.unavailable()),
            // Whether there is an object may not be known either.
            ApprovalGuard::Unknown(_) => return,
            ApprovalGuard::Missing(_) | ApprovalGuard::Guarded => {}
        }
        if memory.made.get(name).is_some_and(|made| *made + WINDOW > self.now) {
            return;
        }
        match (&said.request, said.state) {
            (Some(request), ApprovalState::Pending) => self.want(name, &request.spec),
            _ => {
                let until = said.since + BEHIND;
                if self.now >= until {
                    self.tell(name, ApprovalState::Voided, Some("it is not in the cluster any more"));
                } else {
                    self.look_at(until);
                }
            }
        }
    }

    fn want(&mut self, name: &str, spec: &MCPApprovalSpec) {
        match checked(spec, self.view.agent, self.view.governing, self.now) {
            Ok(checked) => {
                let requested = checked.requested_at.parse().unwrap_or(self.now);
                self.wanted.push((requested, name.to_owned(), checked));
            }
            Err(why) => self.tell(name, ApprovalState::Voided, Some(&why)),
        }
    }

    /// Creates as many of the wanted objects as the pod may have and the pace allows.
    fn create(&mut self) {
        if *self.view.guard != ApprovalGuard::Guarded || self.wanted.is_empty() {
            return;
        }
        let records = self.view.records;
        let made = &self.view.memory.made;
        let unseen: Vec<Timestamp> =
            made.iter().filter(|(name, _)| !records.contains_key(name.as_str())).map(|(_, made)| *made).collect();
        let open = records.values().filter(|record| !record.has_ended()).count() + unseen.len();
        let created = records.values().filter_map(|record| Timestamp::from_second(record.created).ok());
        let mut lately: Vec<Timestamp> = created.chain(unseen).filter(|created| *created > self.now - WINDOW).collect();
        lately.sort();
        let room = bounds::POD_APPROVALS.saturating_sub(open);
        let now = CREATIONS.saturating_sub(lately.len()).min(room);
        self.wanted.sort_by(|(a, name, _), (b, other, _)| (a, name).cmp(&(b, other)));
        let wanted = std::mem::take(&mut self.wanted);
        if wanted.len() > now {
            // The clock of the API server may be ahead, and that must not make it longer than a window.
            self.look_at(lately.first().map_or(self.now, |first| (*first).min(self.now)) + WINDOW);
        }
        self.plan.create = wanted.into_iter().take(now).map(|(_, name, spec)| (name, spec)).collect();
    }
}

fn seconds(span: Duration) -> i64 {
    i64::try_from(span.as_secs()).unwrap_or(i64::MAX)
}
