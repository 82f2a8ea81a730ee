//! The way of a call that a person must approve, whatever the transport: asked for, held for a while, and decided anew by the policies that
//! are in force then.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    time::{Instant, SystemTime},
};

use prometheus::IntGauge;
use tokio::{
    sync::{oneshot, watch},
    time::sleep_until,
};
use toolweir_approvals::{Asked, CallKey, NotExact, arguments_sha256};
use toolweir_engine::{
    ApprovalAsk, Call, Decision, Denial, Effect, Operation, Permit, SeenTool, json::Raw, shared::GrantedPlaces,
};

use super::{
    UseError,
    room::WaitingPlace,
    words::{self, Unavailable},
};
use crate::{
    governor::{Decided, Governor},
    in_force::InForce,
    record::{Arrival, Record},
};

/// What ends the wait of a call, apart from its time, the decision, and other policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitEnd {
    /// Its client has cancelled it.
    Cancelled,
    /// The sidecar stops.
    Stopping,
}

/// Dropped, it tells who waits.
#[derive(Debug)]
struct CancelSignal(#[expect(dead_code, reason = "its end is the signal")] oneshot::Sender<()>);

impl GrantedPlaces for CancelSignal {}

/// Returns places that a call holds while it waits, and what ends when they are freed: its client has cancelled it.
pub fn cancel_signal() -> (Permit, impl Future<Output = ()> + Send) {
    let (signal, cancelled) = oneshot::channel();
    let ended = async move { drop(cancelled.await) };
    (Permit::with_places(Box::new(CancelSignal(signal))), ended)
}

/// A call for which policies ask. Dropped before it is settled, since its client hung up, it is recorded as one that waits; the request
/// stands.
pub struct AskingCall<'a> {
    governor: &'a Arc<Governor>,
    in_force: Arc<InForce>,
    server: &'a str,
    operation: Operation<'a>,
    arguments: Option<Raw<'a>>,
    session: &'a str,
    seen: Option<Arc<SeenTool>>,
    arrived: Arrival,
    /// The decision as it is now; none once it is recorded.
    decision: Option<Box<Decision>>,
}

/// What became of a call for which policies asked.
pub struct SettledCall {
    /// The decision, for the way on.
    pub decided: Decided,
    /// The record of the call.
    pub record: Record,
    /// The policies by which it was decided.
    pub in_force: Arc<InForce>,
    /// True where its client has cancelled it meanwhile.
    pub is_cancelled: bool,
}

/// What comes next for a call that was asked for.
enum Next {
    /// It is settled.
    Settled(Box<SettledCall>),
    /// It waits for the decision on a request of this name until then; if none comes, this is the answer.
    Wait { name: Arc<str>, until: Instant, pending: Denial },
    /// Another call has used its approval.
    Again,
}

impl Next {
    fn settled(settled: SettledCall) -> Self {
        Self::Settled(Box::new(settled))
    }
}

/// Why a call that waits goes on.
enum Woken {
    /// Its request was decided or has ended, or other policies are in force.
    Changed,
    /// Its time is over.
    Late,
    /// Something else has ended its wait.
    Ended(WaitEnd),
}

/// What wakes calls that wait.
struct Wakers {
    changes: watch::Receiver<()>,
    replaced: watch::Receiver<()>,
}

impl Wakers {
    /// Wakes for what changes from now on.
    fn mark_unchanged(&mut self) {
        self.changes.mark_unchanged();
        self.replaced.mark_unchanged();
    }

    /// Waits as long as a request does, until a time at most.
    async fn wait(
        &mut self,
        is_waiting: impl Fn() -> bool,
        until: Instant,
        end: Pin<&mut impl Future<Output = WaitEnd>>,
    ) -> Woken {
        let mut late = pin!(sleep_until(until.into()));
        let mut end = end;
        loop {
            tokio::select! {
                biased;
                end = &mut end => return Woken::Ended(end),
                changed = self.changes.changed() => if changed.is_err() || !is_waiting() { return Woken::Changed },
                _ = self.replaced.changed() => return Woken::Changed,
                () = &mut late => return Woken::Late,
            }
        }
    }
}

/// A decision that has taken what the call needs, of which nothing was sent yet. Dropped, it gives that back.
struct UnsentDecision(Option<Decision>);

impl Drop for UnsentDecision {
    fn drop(&mut self) {
        if let Some(Decision { effect: Effect::Allowed(permit), .. }) = self.0.take() {
            permit.give_back();
        }
    }
}

/// Counts a call among those that wait, until it is dropped.
struct HeldCount<'a>(&'a IntGauge);

impl<'a> HeldCount<'a> {
    fn begin(gauge: &'a IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for HeldCount<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl<'a> AskingCall<'a> {
    /// A call on which this was decided by these policies: a person must be asked.
    pub fn new(
        governor: &'a Arc<Governor>,
        in_force: Arc<InForce>,
        call: &Call<'a>,
        decision: Box<Decision>,
        arrived: Arrival,
    ) -> Self {
        let Call { server, operation, arguments, session, .. } = *call;
        let seen = in_force.seen_by(server, operation);
        Self { governor, in_force, server, operation, arguments, session, seen, arrived, decision: Some(decision) }
    }

    fn call(&self) -> Call<'_> {
        let Self { server, operation, arguments, session, seen, .. } = self;
        Call { server, operation: *operation, arguments: *arguments, session, seen: seen.as_deref() }
    }

    /// Asks for it, and settles what becomes of it. Where it must wait, it does so if `place` finds room, for no longer than the policies
    /// say, and until `end` says otherwise.
    pub async fn settle(
        mut self,
        place: impl FnOnce() -> Option<WaitingPlace>,
        end: impl Future<Output = WaitEnd>,
    ) -> SettledCall {
        let (approvals, began) = (self.governor.approvals(), Instant::now());
        let sha256 = arguments_sha256(self.arguments);
        let (mut place, mut held) = (Some(place), None);
        let mut wakers = Wakers { changes: approvals.changes(), replaced: self.governor.replacements() };
        let mut end = pin!(end);
        loop {
            wakers.mark_unchanged();
            match self.ask(sha256.as_deref(), began).await {
                Next::Settled(settled) => return *settled,
                Next::Again => {}
                Next::Wait { name, until, pending } => {
                    // So it is recorded if its client hangs up.
                    self.decision = Some(Box::new(Decision::denied(pending.clone())));
                    if Instant::now() < until && held.is_none() {
                        let found = place.take().and_then(|place| place());
                        held = found.map(|found| (found, HeldCount::begin(&self.governor.metrics.approvals.held)));
                    }
                    if held.is_none() {
                        return self.deny(pending);
                    }
                    match wakers.wait(|| approvals.is_waiting(&name), until, end.as_mut()).await {
                        Woken::Changed => {}
                        Woken::Late | Woken::Ended(WaitEnd::Stopping) => return self.deny(pending),
                        Woken::Ended(WaitEnd::Cancelled) => return SettledCall { is_cancelled: true, ..self.deny(pending) },
                    }
                }
            }
            if let Some(settled) = self.decide_anew().await {
                return settled;
            }
        }
    }

    /// Asks for it once, as its arguments have this hash and it began then.
    async fn ask(&mut self, sha256: Result<&str, &NotExact>, began: Instant) -> Next {
        let approvals = self.governor.approvals();
        let Some((denial, ask)) = self.asks() else {
            return Next::settled(self.deny(Denial::no_policy(self.server, self.operation)));
        };
        let sha256 = match sha256 {
            Ok(sha256) => sha256,
            Err(why) => return Next::settled(self.deny(words::not_exact(&denial, why))),
        };
        let key = approvals.key(self.server, self.operation, sha256, &ask);
        match approvals.ask(key, &ask, (self.server, self.operation, sha256)).await {
            Err(why) => Next::settled(self.deny(words::unavailable(&denial, &why))),
            Ok(Asked::Approved { name }) => self.use_approval(&name, key, &ask, &denial).await.map_or(Next::Again, Next::settled),
            Ok(Asked::Waiting { name, until, .. }) => {
                let left = until.duration_since(SystemTime::now()).unwrap_or_default();
                let pending = words::pending(&denial, &approvals.shown_name(&name), left);
                Next::Wait { name, until: began + ask.hold, pending }
            }
            Ok(answer) => Next::settled(self.deny(self.answer(&denial, answer))),
        }
    }

    /// The denial that asks, and what it asks.
    fn asks(&self) -> Option<(Denial, Box<ApprovalAsk>)> {
        let denial = self.decision.as_ref()?.denial()?;
        Some((denial.clone(), denial.ask.clone()?))
    }

    /// What is said where nothing is to be waited for.
    fn answer(&self, denial: &Denial, asked: Asked) -> Denial {
        let shown = |name: &str| self.governor.approvals().shown_name(name);
        match asked {
            Asked::Denied { name, reason, .. } => words::denied(denial, &shown(&name), reason.as_deref()),
            Asked::Expired { name, why } => words::expired(denial, &shown(&name), &why),
            Asked::Full { most } => words::full(denial, most),
            Asked::TooManyPolicies { most } => words::unavailable(denial, &Unavailable::Policies(most)),
            Asked::Approved { .. } | Asked::Waiting { .. } => denial.clone(),
        }
    }

    /// Decides by the policies that are in force now. Nothing where a person must be asked.
    async fn decide_anew(&mut self) -> Option<SettledCall> {
        let governor = self.governor;
        self.in_force = arc_swap::Guard::into_inner(governor.in_force());
        self.seen = self.in_force.seen_by(self.server, self.operation);
        // Dropped while it waits for the shared store, it is recorded there.
        self.decision = None;
        match governor.decide_shared(&self.in_force, &self.call(), self.arrived).await {
            Ok(decided) => Some(self.settled(decided)),
            Err(asking) => {
                self.decision = Some(asking);
                None
            }
        }
    }

    /// Lets the call go through by an approval, if its limits allow it. Nothing where another call has used the approval meanwhile.
    async fn use_approval(&mut self, name: &str, key: CallKey, ask: &ApprovalAsk, denial: &Denial) -> Option<SettledCall> {
        let governor = self.governor;
        let mut decision = UnsentDecision(Some(governor.decide_approved(&self.in_force, &self.call(), ask).await));
        let is_allowed = decision.0.as_ref().is_some_and(|decision| matches!(decision.effect, Effect::Allowed(_)));
        let mut used = None;
        if is_allowed {
            match governor.approvals().begin_use(name, key).await {
                Ok(approval) => used = Some(approval),
                Err(UseError::NotUsable(_)) => return None,
                Err(UseError::NotKept(_)) => {
                    governor.metrics.approvals.count(self.server, "unavailable");
                    return Some(self.deny(words::unavailable(denial, &Unavailable::NotKept)));
                }
            }
        }
        let mut decision = decision.0.take()?;
        if let (Effect::Allowed(permit), Some(used)) = (&mut decision.effect, used) {
            permit.join(Permit::with_amounts(Box::new(used)));
        }
        let mut settled = self.record(decision);
        settled.record.set_approval(governor.approvals().shown_name(name));
        Some(settled)
    }

    fn deny(&mut self, denial: Denial) -> SettledCall {
        self.record(Decision::denied(denial))
    }

    fn record(&mut self, decision: Decision) -> SettledCall {
        self.decision = None;
        self.settled(self.governor.record(&self.in_force, &self.call(), decision, self.arrived))
    }

    fn settled(&self, (decided, record): (Decided, Record)) -> SettledCall {
        SettledCall { decided, record, in_force: Arc::clone(&self.in_force), is_cancelled: false }
    }
}

impl Drop for AskingCall<'_> {
    fn drop(&mut self) {
        if let Some(decision) = self.decision.take() {
            self.governor.record(&self.in_force, &self.call(), *decision, self.arrived);
        }
    }
}
