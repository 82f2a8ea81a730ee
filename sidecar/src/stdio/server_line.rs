//! Decides on the lines of a server: what they ask for, what they answer, and the lists that they hold.

use std::{fmt::Display, pin::Pin, sync::Arc};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use smallvec::SmallVec;

use super::gate::Gate;
use crate::{
    lists::{ListRequest, Lists, Page},
    mcp::{answer, edits::Filtered, server_message::possible_answers, sse::spells_list},
    outcome::Outcome,
    pending::{AnsweredRequest, PendingCall},
    proxy::failure::RequestFailure,
    server_judge::{ServerMessageSource, ServerMessageVerdict},
};

/// The most lines of a server that wait for the decision on them. Beyond these its stdout is not read.
const MOST_JUDGED: usize = 16;

/// The handling of a server's message.
#[derive(Debug)]
pub enum ServerMessageAction {
    /// Pass it on to the client.
    Forward,
    /// Give the client this instead.
    Replace(Vec<u8>),
    /// Fill this page of a list, which comes empty, and give the client that.
    Fill(ListRequest, Page),
    /// Discard it, and give these answers.
    Answer {
        /// To the client, in the server's stead.
        client: SmallVec<[Bytes; 1]>,
        /// To the server, in the client's name.
        server: SmallVec<[Bytes; 1]>,
    },
}

impl ServerMessageAction {
    /// Discard it.
    fn none() -> Self {
        Self::Answer { client: SmallVec::new(), server: SmallVec::new() }
    }
}

impl Gate {
    /// Decides on a message of the server. It does not wait for a person. What a client could read in two ways goes nowhere, and neither
    /// does a list that cannot be read; who waits for it is told.
    pub async fn from_server(&self, line: &[u8]) -> ServerMessageAction {
        let lists = Lists::of(&self.governor, &self.server, self.list_ttl);
        lists.server_said(line);
        let answered = self.under_way.take_answered(line);
        if answered.iter().any(|request| request.call().is_some_and(|call| call.denies_result(line.len()).is_some())) {
            let client = self.not_passed(answered, line.len(), &"it stands beside one that is too large");
            return ServerMessageAction::Answer { client, server: SmallVec::new() };
        }
        // In a batch it is not known which one asks.
        let call = if let [one] = answered.as_slice() { one.call() } else { None };
        let source = ServerMessageSource { server: &self.server, session: "", call: call.map(PendingCall::answered) };
        let edited = match self.governor.judge_message(source, line).await {
            Ok(ServerMessageVerdict::Pass) => None,
            Ok(ServerMessageVerdict::Replace(edited)) => Some(edited),
            Ok(ServerMessageVerdict::Take(server)) => {
                self.refuse_page(line, &lists);
                let client = self.not_passed(answered, line.len(), &"it stands beside what policies do not let through");
                return ServerMessageAction::Answer { client, server };
            }
            // Whatever a client finds in it, the server may ask for it.
            Err(_) if self.governor.in_force().engine.asks_are_free(&self.server) => None,
            Err(unclear) => {
                self.refuse_page(line, &lists);
                return self.unreadable(answered, line, &unclear);
            }
        };
        self.pass(line, edited, answered, &lists)
    }

    /// Decides on what a message answers, and what it holds of lists. `edited` is what is left of it.
    fn pass(
        &self,
        line: &[u8],
        edited: Option<Vec<u8>>,
        answered: SmallVec<[AnsweredRequest; 1]>,
        lists: &Lists,
    ) -> ServerMessageAction {
        let text = edited.as_deref().unwrap_or(line);
        if self.lists.expected.answered(text, lists, |_| Some(None)) {
            return ServerMessageAction::none();
        }
        // To another id than is awaited, which its client may take for that of a request all the same.
        if self.under_way.smallest_result_limit().is_some_and(|most| line.len() as u64 > most)
            && possible_answers(line) > answered.len()
        {
            let too_large = "is larger than a result may be that is awaited, and answers something else";
            return self.unreadable(answered, line, &too_large);
        }
        self.listeners().server_said(text);
        let action = if spells_list(text) {
            match lists.read(text, None) {
                Ok(read) => {
                    let asked = read.page.and_then(|page| self.lists.asked.take(page.id));
                    match (asked, Page::emptied(read)) {
                        (Some((asked, ())), Ok(page)) => ServerMessageAction::Fill(asked, page),
                        (None, Ok(page)) => ServerMessageAction::Replace(page.message.into()),
                        (_, Err(Filtered::Edited(edited))) => ServerMessageAction::Replace(edited),
                        (_, Err(Filtered::Same)) => ServerMessageAction::Forward,
                    }
                }
                // A client that is less strict may read what this cannot.
                Err(error) => return self.unreadable(answered, line, &error),
            }
        } else {
            ServerMessageAction::Forward
        };
        answered.into_iter().for_each(|request| request.end(Outcome::Ok));
        match (action, edited) {
            (ServerMessageAction::Forward, Some(edited)) => ServerMessageAction::Replace(edited),
            (action, _) => action,
        }
    }

    /// A message of so many bytes was dropped unread.
    pub(super) fn too_long(
        &self,
        answered: SmallVec<[AnsweredRequest; 1]>,
        bytes: usize,
        longest: usize,
    ) -> SmallVec<[Bytes; 1]> {
        tracing::warn!(server = self.server, longest, "a message of the server was dropped: it is too long");
        self.governor.metrics.servers.count_refused_message(&self.server);
        self.not_passed(answered, bytes, &format_args!("it is longer than {longest} bytes"))
    }

    /// Drops a message that cannot be read.
    fn unreadable(&self, answered: SmallVec<[AnsweredRequest; 1]>, line: &[u8], why: &impl Display) -> ServerMessageAction {
        tracing::warn!(server = self.server, error = %why, "a message of the server was dropped: it cannot be read");
        self.governor.metrics.servers.count_refused_message(&self.server);
        let client = self.not_passed(answered, line.len(), &format_args!("it {why}"));
        ServerMessageAction::Answer { client, server: SmallVec::new() }
    }

    /// Ends requests whose answer has come in a message of so many bytes and does not pass, and gives their answers.
    fn not_passed(&self, answered: SmallVec<[AnsweredRequest; 1]>, bytes: usize, why: &impl Display) -> SmallVec<[Bytes; 1]> {
        let in_force = self.governor.in_force();
        let answer = |request: AnsweredRequest| {
            let denied = request.call().and_then(|call| Some((call.answered(), call.denies_result(bytes)?)));
            let (answer, outcome) = match denied {
                Some((call, denial)) => {
                    self.governor.count_denied_result(&in_force, &self.server, call.operation, &denial);
                    (Some(answer::denial_of(call.reply, &denial)), Outcome::ResultTooLarge)
                }
                None => {
                    let failure = RequestFailure::Invalid(self.server.clone(), why.to_string());
                    (request.reply().map(|reply| failure.answer(reply)), failure.outcome())
                }
            };
            request.end(outcome);
            answer
        };
        answered.into_iter().filter_map(answer).collect()
    }

    /// Tells who waits for a page of a list that it did not come, if the message was to be that.
    fn refuse_page(&self, line: &[u8], lists: &Lists) {
        self.lists.expected.answered(line, lists, |_| None);
    }
}

/// A line of the server, and what is to be done with it.
type JudgedLine = Pin<Box<dyn Future<Output = (Vec<u8>, ServerMessageAction)> + Send>>;

/// Lines of the server whose decision waits: others overtake them.
pub struct JudgedLines {
    gate: Arc<Gate>,
    lines: FuturesUnordered<JudgedLine>,
}

impl JudgedLines {
    /// None yet.
    pub fn new(gate: Arc<Gate>) -> Self {
        Self { gate, lines: FuturesUnordered::new() }
    }

    /// Decides on a line. Gives it back with what is to be done, unless that has to wait.
    pub fn push(&self, line: Vec<u8>) -> Option<(Vec<u8>, ServerMessageAction)> {
        let gate = Arc::clone(&self.gate);
        let mut judged: JudgedLine = Box::pin(async move {
            let action = gate.from_server(&line).await;
            (line, action)
        });
        let done = judged.as_mut().now_or_never();
        if done.is_none() {
            self.lines.push(judged);
        }
        done
    }

    /// Returns true where another line may wait.
    pub fn has_room(&self) -> bool {
        self.lines.len() < MOST_JUDGED
    }

    /// The next line that is decided on; none where none waits.
    pub async fn next(&mut self) -> Option<(Vec<u8>, ServerMessageAction)> {
        self.lines.next().await
    }
}
