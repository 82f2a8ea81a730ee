//! A call over HTTP for which policies ask a person: it waits, unless its answer comes on a stream, and its client may cancel it meanwhile.

use std::{sync::atomic::Ordering, time::Instant};

use toolweir_engine::{Call, Decision};

use super::{cancel::CallName, post::Requester, request_guard::RequestGuard, state::Proxy};
use crate::{
    approvals::asking_call::{AskingCall, SettledCall, WaitEnd, cancel_signal},
    governor::Decided,
    mcp::request::Request,
    outcome::Outcome,
    record::Record,
};

impl Proxy {
    /// Asks a person for a call, and decides on it by the policies that are in force then, which hold for the request from now on. Nothing
    /// where its client has cancelled it meanwhile.
    pub(super) async fn asked_call(
        &self,
        message: &Request<'_>,
        call: &Call<'_>,
        (client, on_stream): (&Requester<'_>, bool),
        bytes: usize,
        asking: Box<Decision>,
        request: &mut RequestGuard<'_>,
    ) -> Option<(Decided, Record)> {
        let before = Instant::now();
        let asked = AskingCall::new(&self.state.governor, request.in_force.clone(), call, asking, request.arrived);
        // Clients of HTTP+SSE give up on a POST within seconds.
        let place = || if on_stream { None } else { self.state.waiting.take(bytes) };
        // It holds no places yet, but can be named.
        let named = message.id.filter(|_| !on_stream).and_then(|id| CallName::of(call.server, client.headers, id));
        let (signal, cancelled) = cancel_signal();
        let cancellable = named.map(|name| self.state.calls.add(name, signal));
        let mut stopping = self.state.stopping.clone();
        let end = async {
            tokio::select! {
                () = cancelled, if cancellable.is_some() => WaitEnd::Cancelled,
                _ = stopping.wait_for(|stopping| *stopping) => WaitEnd::Stopping,
            }
        };
        let SettledCall { decided, record, in_force, is_cancelled } = asked.settle(place, end).await;
        request.waited_since(before);
        request.in_force = in_force;
        request.find_server(call.server);
        if is_cancelled || cancellable.is_some_and(|(_, cancelled)| cancelled.load(Ordering::Relaxed)) {
            decided.give_back();
            record.finish(Outcome::Cancelled);
            return None;
        }
        Some((decided, record))
    }
}
