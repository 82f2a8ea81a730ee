//! The requests of the pod of one stream: keeps its sidecar informed, and its objects as they have to be. What that means is decided by
//! [`plan`](fn@super::plan::plan).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::jiff::Timestamp;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use toolweir_crds::approval_request::{ApprovalNews, ApprovalState, MCPApprovalSpec};

use super::{
    plan::{ApprovalPlan, PodView, plan},
    records::{ApprovalRecord, PodRecords, RequestingPod},
    service::{ApprovalService, HeldByStream, OpenRequestStream},
    transition::DueState,
    writer::{ApprovalWriter, WriteOutcome},
};
use crate::{
    auth::PodIdentity,
    index::{CurrentSnapshot, IncludedPolicy},
};

/// The longest time that a sidecar hears nothing since this replica has just started.
const SETTLE: Duration = Duration::from_secs(10);
/// The longest pause after writes that failed.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Keeps the requests of the pod of a stream, for as long as the stream lasts. Nothing is done, and `news` stays empty, as long as no
/// policy of the pod has an `approval` and nothing is left of one that had.
pub async fn serve(
    service: &ApprovalService,
    number: u64,
    agent: &PodIdentity,
    mut current: watch::Receiver<CurrentSnapshot>,
    news: watch::Sender<Option<Arc<ApprovalNews>>>,
) {
    let pod = RequestingPod { namespace: agent.pod.namespace.clone(), uid: agent.uid.clone() };
    loop {
        // No lock is taken while the value is borrowed.
        let asks_people = current.borrow_and_update().as_ref().is_some_and(|snapshot| snapshot.asks_people);
        if asks_people || service.records().has_open(&pod) {
            break;
        }
        if current.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
    let mut settled = service.settled();
    let _ = timeout(SETTLE, settled.wait_for(|settled| *settled)).await;
    let open = service.open(number, pod);
    let session = RequestSession { service, agent, open, tried: BTreeMap::new(), failures: 0, pause: None };
    // Boxed, so that the streams of pods without approvals are no larger for it.
    Box::pin(session.run(current, news)).await;
}

struct RequestSession<'a> {
    service: &'a ApprovalService,
    agent: &'a PodIdentity,
    open: OpenRequestStream<'a>,
    /// States that were written, and that the watch has not shown yet.
    tried: BTreeMap<String, (ApprovalState, ObjectVersion)>,
    failures: u32,
    /// Nothing is written before this, since writes have failed.
    pause: Option<Instant>,
}

/// What tells a version of an object from the next.
type ObjectVersion = (Option<String>, i64);

fn version(record: &ApprovalRecord) -> ObjectVersion {
    (record.open.as_ref().map(|open| open.resource_version.clone()), record.changed)
}

/// The next write.
enum NextWrite {
    State(String, ApprovalRecord, DueState),
    Object(String, Box<MCPApprovalSpec>),
}

impl RequestSession<'_> {
    async fn run(mut self, mut current: watch::Receiver<CurrentSnapshot>, news: watch::Sender<Option<Arc<ApprovalNews>>>) {
        let mut guard = self.service.guard_changes();
        let stream = Arc::clone(&self.open.stream);
        loop {
            guard.borrow_and_update();
            let Some(snapshot) = current.borrow_and_update().clone() else { return std::future::pending().await };
            let now = Timestamp::now();
            let (plan, write) = self.look(&snapshot.includes, now);
            news.send_if_modified(|told| {
                let changed = told.as_deref() != Some(&plan.news);
                if changed {
                    *told = Some(Arc::new(plan.news));
                }
                changed
            });
            let pause = self.pause.filter(|until| *until > Instant::now());
            if let (Some(write), Some(writer), None) = (write, &self.service.writer, pause) {
                Box::pin(self.perform(writer, write)).await;
                continue;
            }
            let later = plan.next.map(|next| Instant::now() + until(next, now));
            let wake = pause.into_iter().chain(later).min();
            tokio::select! {
                () = stream.changed.notified() => {}
                changed = current.changed() => if changed.is_err() { return std::future::pending().await },
                changed = guard.changed() => if changed.is_err() { return std::future::pending().await },
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            }
        }
    }

    /// Plans, and returns the write that is next; none where another stream of the pod writes.
    fn look(&mut self, governing: &[IncludedPolicy], now: Timestamp) -> (ApprovalPlan, Option<NextWrite>) {
        let guard = self.service.guard();
        let is_newest = self.open.is_newest();
        let mut held = self.open.stream.held();
        let all = self.service.records();
        let none = PodRecords::new();
        let records = all.of(&self.open.pod).unwrap_or(&none);
        let HeldByStream { report, memory } = &mut *held;
        memory.made.retain(|name, _| !records.contains_key(name.as_str()));
        if let Some(report) = report.as_mut() {
            report.settle(records);
        }
        self.tried.retain(|name, (_, tried)| records.get(name.as_str()).is_some_and(|record| version(record) == *tried));
        let view = PodView { agent: self.agent, report: report.as_ref(), records, governing, guard: &guard, memory };
        let mut plan = plan(&view, now);
        let is_tried = |name: &String, due: &DueState| self.tried.get(name).is_some_and(|(state, _)| *state == due.state);
        let state = std::mem::take(&mut plan.write).into_iter().find(|(name, due)| !is_tried(name, due));
        let state = state.and_then(|(name, due)| {
            let record = records.get(name.as_str())?.clone();
            Some(NextWrite::State(name, record, due))
        });
        let object = || {
            let (name, spec) = std::mem::take(&mut plan.create).into_iter().next()?;
            Some(NextWrite::Object(name, Box::new(spec)))
        };
        let write = state.or_else(object).filter(|_| is_newest);
        (plan, write)
    }

    async fn perform(&mut self, writer: &ApprovalWriter, write: NextWrite) {
        let now = Timestamp::now();
        let outcome = match write {
            NextWrite::State(name, record, due) => {
                let key = (self.open.pod.clone(), name.as_str().into());
                let outcome = writer.write(&key, &record, &due, now).await;
                if outcome != WriteOutcome::Failed {
                    self.tried.insert(name, (due.state, version(&record)));
                }
                outcome
            }
            NextWrite::Object(name, spec) => {
                let outcome = writer.create(&self.open.pod, &name, *spec, now).await;
                let mut held = self.open.stream.held();
                match &outcome {
                    WriteOutcome::Written => drop(held.memory.made.insert(name, now)),
                    WriteOutcome::Refused(why) => drop(held.memory.refused.insert(name, why.clone())),
                    WriteOutcome::Stale | WriteOutcome::Failed => {}
                }
                outcome
            }
        };
        if outcome == WriteOutcome::Failed {
            let pause = Duration::from_secs(1 << self.failures.min(5)).min(LONGEST_PAUSE);
            self.pause = Some(Instant::now() + pause);
            self.failures = self.failures.saturating_add(1);
        } else {
            self.failures = 0;
        }
    }
}

/// Returns how long it is until then.
fn until(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(then.duration_since(now)).unwrap_or_default()
}
