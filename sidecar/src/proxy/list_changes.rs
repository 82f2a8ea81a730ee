//! Clients are told that lists have changed when the policies have, where their server has agreed to tell them (MCP 2025-11-25,
//! "List Changed Notification").

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;

use super::state::ProxyState;
use crate::{
    mcp::{
        answer,
        changes::{Declaration, Listeners, ToldLists},
    },
    policy_changes::PolicyChanges,
};

/// Looks at an answer to `initialize` as it passes, for whether its server tells clients of changes.
#[derive(Debug)]
pub struct DeclarationWatch {
    state: Arc<ProxyState>,
    server: String,
    session: Vec<u8>,
    declaration: Declaration,
}

impl DeclarationWatch {
    /// Watches the answer of a server that opens this session.
    pub fn new(state: &Arc<ProxyState>, server: &str, session: &[u8]) -> Self {
        let declaration = Declaration::default();
        Self { state: Arc::clone(state), server: server.to_owned(), session: session.to_owned(), declaration }
    }

    /// Takes a piece of it.
    pub fn push(&mut self, piece: &[u8]) {
        let told = self.declaration.push(piece);
        if told.any() {
            self.state.sessions.add(&self.server, &self.session, told);
        }
    }
}

/// Tells a client on its stream that lists have changed.
pub struct ListChangedNotifier {
    listeners: Listeners,
    waits: Pin<Box<dyn Future<Output = PolicyChanges> + Send>>,
    changed: bool,
}

fn next(mut changes: PolicyChanges) -> Pin<Box<dyn Future<Output = PolicyChanges> + Send>> {
    Box::pin(async move {
        changes.next().await;
        changes
    })
}

impl ListChangedNotifier {
    /// A notifier of one stream. `session` is what clients are told in the session that the stream is of.
    pub fn new(changes: PolicyChanges, session: ToldLists) -> Self {
        Self { listeners: Listeners::of(session), waits: next(changes), changed: false }
    }

    /// Takes note of an event's data.
    pub fn server_said(&mut self, data: &[u8]) {
        self.listeners.server_said(data);
    }

    /// The events for the client, if the policies have changed since they were last asked for.
    pub fn events(&mut self, context: &mut Context<'_>, between_events: bool) -> Option<Bytes> {
        while let Poll::Ready(changes) = self.waits.as_mut().poll(context) {
            self.changed = true;
            self.waits = next(changes);
        }
        if !between_events || !std::mem::take(&mut self.changed) {
            return None;
        }
        let events: Vec<u8> = self.listeners.messages().flat_map(|message| answer::event(message.as_bytes())).collect();
        (!events.is_empty()).then(|| events.into())
    }
}
