//! A call over stdio for which policies ask a person: it waits beside the other lines, and its client may cancel it meanwhile.

use std::{pin::Pin, sync::Arc};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::sync::{mpsc, watch};
use toolweir_engine::Call;

use super::gate::{ClientMessageAction, Gate, read};
use crate::{
    approvals::{
        asking_call::{AskingCall, SettledCall, WaitEnd, cancel_signal},
        room::WaitingRoom,
    },
    in_force::InForce,
    mcp::{client_ask::ClientAsk, method_label, request::Message, scan::ReplyTo},
    outcome::Outcome,
    record::Arrival,
};

/// A call that is not counted yet. Dropped, it is, as one whose client is gone.
struct Uncounted<'a> {
    gate: &'a Gate,
    in_force: &'a InForce,
    method: &'static str,
    is_counted: bool,
}

impl Uncounted<'_> {
    fn count(&mut self, in_force: &InForce, outcome: Option<Outcome>) {
        self.is_counted = true;
        if let Some(outcome) = outcome {
            self.gate.count(in_force, self.method, outcome);
        }
    }
}

impl Drop for Uncounted<'_> {
    fn drop(&mut self) {
        if !self.is_counted {
            self.gate.count(self.in_force, self.method, Outcome::ClientGone);
        }
    }
}

impl Gate {
    /// Asks a person for a call of the client that came then, where [`Gate::decide`] says so, and decides on it by the policies that are in
    /// force then. It waits if there is room, and until `stopping` turns true.
    pub async fn ask(
        &self,
        line: &[u8],
        arrived: Arrival,
        room: &WaitingRoom,
        stopping: watch::Receiver<bool>,
    ) -> ClientMessageAction {
        let in_force = arc_swap::Guard::into_inner(self.governor.in_force());
        let Ok(Message::Request(request)) = read(line) else { return ClientMessageAction::Drop };
        let kept = match self.register(&in_force, &request) {
            Ok(kept) => kept,
            Err(refused) => return refused,
        };
        let Some(kept) = kept.zip(ReplyTo::later(&request)) else { return ClientMessageAction::Drop };
        let mut uncounted =
            Uncounted { gate: self, in_force: &in_force, method: method_label(&request.method), is_counted: false };
        let Ok(ClientAsk::Operation(operation)) = ClientAsk::of(&request) else { return ClientMessageAction::Drop };
        let seen = in_force.seen_by(&self.server, operation);
        let arguments = request.params.arguments;
        let call = Call { server: &self.server, operation, arguments, session: "", seen: seen.as_deref() };
        let SettledCall { decided, record, in_force: by, is_cancelled } = match self.governor.decide(&in_force, &call, arrived) {
            Ok((decided, record)) => SettledCall { decided, record, in_force: in_force.clone(), is_cancelled: false },
            Err(asking) => {
                let asked = AskingCall::new(&self.governor, in_force.clone(), &call, asking, arrived);
                let (signal, cancelled) = cancel_signal();
                kept.0.hold_places(signal);
                asked.settle(|| room.take(line.len()), wait_end(cancelled, stopping)).await
            }
        };
        if is_cancelled || !kept.0.is_under_way() {
            decided.give_back();
            record.finish(Outcome::Cancelled);
            uncounted.count(&by, Some(Outcome::Cancelled));
            return ClientMessageAction::Drop;
        }
        let (action, outcome) = self.decided_call(&by, (&request, operation), kept, (decided, record));
        uncounted.count(&by, outcome);
        action
    }
}

/// What ends the wait of a call.
async fn wait_end(cancelled: impl Future<Output = ()>, mut stopping: watch::Receiver<bool>) -> WaitEnd {
    tokio::select! {
        () = cancelled => WaitEnd::Cancelled,
        _ = stopping.wait_for(|stopping| *stopping) => WaitEnd::Stopping,
    }
}

/// A call that is asked for, and what is to be done with it then.
type AskedLine = Pin<Box<dyn Future<Output = (Vec<u8>, ClientMessageAction)> + Send>>;

/// Lines of the client that people are asked for. Dropped, since the server has ended or its stdin is closed, those that wait are answered.
pub struct AskedLines {
    gate: Arc<Gate>,
    room: WaitingRoom,
    lines: FuturesUnordered<AskedLine>,
    stopping: watch::Sender<bool>,
    /// Answers of the gate to the client.
    answers: mpsc::Sender<Bytes>,
}

impl AskedLines {
    /// None yet. They wait in this room, and are answered by `answers` where this is dropped.
    pub fn new(gate: Arc<Gate>, room: WaitingRoom, answers: mpsc::Sender<Bytes>) -> Self {
        Self { gate, room, lines: FuturesUnordered::new(), stopping: watch::Sender::new(false), answers }
    }

    /// Asks for a line that came then.
    pub fn push(&self, line: Vec<u8>, arrived: Arrival) {
        let (gate, room, stopping) = (Arc::clone(&self.gate), self.room.clone(), self.stopping.subscribe());
        let mut asked: AskedLine = Box::pin(async move {
            let action = gate.ask(&line, arrived, &room, stopping).await;
            (line, action)
        });
        // At once, so that its id is its own before another line is looked at.
        match asked.as_mut().now_or_never() {
            Some(done) => self.lines.push(Box::pin(std::future::ready(done))),
            None => self.lines.push(asked),
        }
    }

    /// Returns true where none waits.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The next line that is decided; for ever where there is none.
    pub async fn next(&mut self) -> (Vec<u8>, ClientMessageAction) {
        match self.lines.next().await {
            Some(decided) => decided,
            None => std::future::pending().await,
        }
    }

    /// Lets none wait any longer.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }
}

impl Drop for AskedLines {
    fn drop(&mut self) {
        self.stop();
        while let Some(Some((_, action))) = self.lines.next().now_or_never() {
            if let ClientMessageAction::Answer(answer) = action {
                let _ = self.answers.try_send(answer);
            }
        }
    }
}
