//! Requests whose answer arrives elsewhere than on their own: on a stream, or on a server's stdout. There an answer is known
//! by its id alone, so an id belongs to one request until that is answered, and a call's places come free with its answer.

use std::{
    borrow::Cow,
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use smallvec::SmallVec;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use toolweir_crds::OperationKind;
use toolweir_engine::{Denial, Operation, Permit, ResultLimit, json::Raw};

use crate::{
    account::Account,
    mcp::{
        answer_finder::AnswerFinder,
        id::{IdHash, LONGEST_ID, RequestId},
        request::Request,
        scan::ReplyTo,
    },
    outcome::Outcome,
    server_judge::AnsweredCall,
};

/// The most requests without an answer on one stream, or over stdio.
pub const MOST: usize = 1024;

/// The most requests without an answer on all streams of the sidecar.
pub const MOST_OF_ALL: usize = 16 * 1024;

/// The most ids of cancelled requests that are remembered on one stream, or over stdio.
pub const MOST_CANCELLED: usize = 1024;

/// The requests without an answer yet.
#[derive(Debug)]
pub struct PendingRequests {
    requests: Mutex<PendingTable>,
    /// Room among those of all streams.
    room: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct PendingTable {
    kept: HashMap<IdHash, PendingEntry>,
    /// Of requests that were cancelled, oldest first, until their late answer. It would be taken for that of another request
    /// with the id.
    cancelled: VecDeque<RequestId>,
    next: u64,
}

/// A request without an answer yet.
#[derive(Debug)]
struct PendingEntry {
    /// Tells it from another that had its id before.
    number: u64,
    exact: IdHash,
    /// A call's places among those under way.
    places: Permit,
    /// The account that is written at its end.
    account: Option<Account>,
    /// The form of its answer, if it is to be answered in the server's stead.
    asked: Option<ReplyTo<'static>>,
    /// What its answer is judged by, if it is an operation.
    call: Option<Arc<PendingCall>>,
    _room: OwnedSemaphorePermit,
}

/// An operation that was let through, as far as its answer is judged by it.
#[derive(Debug)]
pub struct PendingCall {
    reply: ReplyTo<'static>,
    kind: OperationKind,
    name: Box<str>,
    method: Box<str>,
    result_limit: Option<Arc<ResultLimit>>,
}

impl PendingCall {
    /// The operation of a request, whose result has this bound. None for a notification.
    pub fn new(request: &Request<'_>, operation: Operation<'_>, result_limit: Option<Arc<ResultLimit>>) -> Option<Self> {
        let Operation { kind, name, method } = operation;
        Some(Self { reply: ReplyTo::later(request)?, kind, name: name.into(), method: method.into(), result_limit })
    }

    /// The operation of a request that is answered in this form, whose result has this bound.
    pub fn of(reply: &ReplyTo<'_>, operation: Operation<'_>, result_limit: Option<Arc<ResultLimit>>) -> Self {
        let Operation { kind, name, method } = operation;
        let ReplyTo { id, takes_tool_result, modern } = reply;
        let id = id.as_ref().map(|id| Cow::Owned(id.clone().into_owned()));
        let reply = ReplyTo { id, takes_tool_result: *takes_tool_result, modern: *modern };
        Self { reply, kind, name: name.into(), method: method.into(), result_limit }
    }

    /// The bound on its result, if there is one.
    pub fn result_limit(&self) -> Option<&ResultLimit> {
        self.result_limit.as_deref()
    }

    /// What it asks for, and how it is answered in the server's stead.
    pub fn answered(&self) -> AnsweredCall<'_> {
        let operation = Operation { kind: self.kind, name: &self.name, method: &self.method };
        AnsweredCall { reply: &self.reply, operation }
    }

    /// The denial that takes the place of an answer of so many bytes, if these are too many.
    pub fn denies_result(&self, bytes: usize) -> Option<Denial> {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let limit = self.result_limit.as_ref().filter(|limit| bytes > limit.max)?;
        Some(Denial::result_too_large(limit, self.answered().operation, bytes, true))
    }
}

/// A request whose answer has come, and is judged. Its places come free when this is dropped.
#[derive(Debug)]
pub struct AnsweredRequest(PendingEntry);

impl AnsweredRequest {
    /// What is needed to answer it in the server's stead, if that may be done.
    pub fn reply(&self) -> Option<&ReplyTo<'static>> {
        self.0.asked.as_ref()
    }

    /// The operation that it asked for, if it is one.
    pub fn call(&self) -> Option<&PendingCall> {
        self.0.call.as_deref()
    }

    /// The same, to be kept.
    pub fn call_shared(&self) -> Option<Arc<PendingCall>> {
        self.0.call.clone()
    }

    /// Writes what became of it.
    pub fn end(self, outcome: Outcome) {
        self.0.end(outcome);
    }
}

impl PendingEntry {
    /// Frees its places, and writes what became of it.
    fn end(mut self, outcome: Outcome) {
        drop(std::mem::take(&mut self.places));
        self.account.take().into_iter().for_each(|account| account.finish(outcome));
    }
}

/// A request that a client names to cancel it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CancelTarget {
    id: RequestId,
    number: u64,
}

/// Why a request is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegisterError {
    /// Its id belongs to a request without an answer.
    InUse,
    /// Its id belongs to a request that was cancelled and may be answered all the same.
    Cancelled,
    /// Its id is longer than [`LONGEST_ID`].
    LongId,
    /// As many requests are without an answer as may be.
    NoRoom,
}

/// A request that is kept until its answer comes. Dropped, it is forgotten, unless the server may have taken it.
#[derive(Debug)]
pub struct PendingRequest<'a> {
    all: &'a PendingRequests,
    id: IdHash,
    number: u64,
    sent: bool,
}

impl Default for PendingRequests {
    fn default() -> Self {
        Self::within(Arc::new(Semaphore::new(MOST)))
    }
}

impl PendingRequests {
    /// None yet. They share this room with others.
    pub fn within(room: Arc<Semaphore>) -> Self {
        Self { requests: Mutex::default(), room }
    }

    /// Keeps a request. Call it before the request is decided on and sent: its answer can be quick.
    ///
    /// # Errors
    /// Its id is in use, or there is no room.
    pub fn register(&self, id: Raw<'_>) -> Result<PendingRequest<'_>, RegisterError> {
        if id.as_str().len() > LONGEST_ID {
            return Err(RegisterError::LongId);
        }
        let Some(id) = RequestId::read(id) else { return Err(RegisterError::LongId) };
        let mut requests = self.lock();
        if requests.kept.contains_key(&id.loose) {
            return Err(RegisterError::InUse);
        }
        if requests.cancelled.iter().any(|cancelled| cancelled.loose == id.loose) {
            return Err(RegisterError::Cancelled);
        }
        if requests.kept.len() >= MOST {
            return Err(RegisterError::NoRoom);
        }
        let room = Arc::clone(&self.room).try_acquire_owned().map_err(|_| RegisterError::NoRoom)?;
        requests.next += 1;
        let number = requests.next;
        let request = PendingEntry {
            number,
            exact: id.exact,
            places: Permit::default(),
            account: None,
            asked: None,
            call: None,
            _room: room,
        };
        requests.kept.insert(id.loose, request);
        Ok(PendingRequest { all: self, id: id.loose, number, sent: false })
    }

    /// Takes a message of the server, and ends the requests that it answers.
    pub fn read_message(&self, message: &[u8]) {
        self.take_answered(message).into_iter().for_each(|request| request.end(Outcome::Ok));
    }

    /// Takes a message of the server, and gives the requests that it answers. They are under way no longer.
    pub fn take_answered(&self, message: &[u8]) -> SmallVec<[AnsweredRequest; 1]> {
        let (mut answers, mut found) = (AnswerFinder::default(), SmallVec::new());
        answers.push(message, &mut |id| found.extend(self.take(id)));
        answers.finish(&mut |id| found.extend(self.take(id)));
        found
    }

    /// The request that a client names by its id, if it has no answer yet.
    pub fn find(&self, id: Raw<'_>) -> Option<CancelTarget> {
        let id = RequestId::read(id).filter(|_| id.as_str().len() <= LONGEST_ID)?;
        let requests = self.lock();
        let request = requests.kept.get(&id.loose).filter(|request| request.exact == id.exact)?;
        Some(CancelTarget { id, number: request.number })
    }

    /// Ends a request that its client has cancelled, unless it was answered meanwhile. Call it when the server was told.
    pub fn cancel(&self, CancelTarget { id, number }: CancelTarget) {
        let Some(request) = self.forget(id.loose, |request| request.number == number) else { return };
        let mut requests = self.lock();
        if requests.cancelled.len() >= MOST_CANCELLED {
            requests.cancelled.pop_front();
        }
        requests.cancelled.push_back(id);
        drop(requests);
        request.end(Outcome::Cancelled);
    }

    /// Ends the request with an id, since its answer has come.
    pub fn answered(&self, id: RequestId) {
        if let Some(request) = self.take(id) {
            request.end(Outcome::Ok);
        }
    }

    /// Gives the request with an id, since its answer has come. It is under way no longer.
    pub fn take(&self, id: RequestId) -> Option<AnsweredRequest> {
        let found = self.forget(id.loose, |request| request.exact == id.exact);
        if found.is_none() {
            self.lock().cancelled.retain(|cancelled| *cancelled != id);
        }
        found.map(AnsweredRequest)
    }

    /// The smallest bound on a result that is awaited, if one of them has a bound.
    pub fn smallest_result_limit(&self) -> Option<u64> {
        let requests = self.lock();
        requests.kept.values().filter_map(|request| Some(request.call.as_ref()?.result_limit()?.max)).min()
    }

    /// Ends all of them, since their server has failed. Gives what is needed to answer those that are to be answered, in the
    /// order in which they came.
    pub fn fail_all(&self) -> Vec<ReplyTo<'static>> {
        let kept = std::mem::take(&mut self.lock().kept);
        let mut failed: Vec<PendingEntry> = kept.into_values().collect();
        failed.sort_unstable_by_key(|request| request.number);
        let end = |mut request: PendingEntry| {
            let asked = request.asked.take();
            request.end(Outcome::UpstreamFailed);
            asked
        };
        failed.into_iter().filter_map(end).collect()
    }

    /// The number of requests without an answer.
    pub fn len(&self) -> usize {
        self.lock().kept.len()
    }

    /// Returns true where every request is answered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets the request that an id belongs to, if it is the one. Its places come free when what this gives is dropped.
    fn forget(&self, id: IdHash, is_it: impl FnOnce(&PendingEntry) -> bool) -> Option<PendingEntry> {
        match self.lock().kept.entry(id) {
            Entry::Occupied(kept) if is_it(kept.get()) => Some(kept.remove()),
            _ => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, PendingTable> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PendingRequest<'_> {
    /// Keeps a call's places until its answer comes.
    pub fn hold_places(&self, places: Permit) {
        if let Some(request) = self.all.lock().kept.get_mut(&self.id).filter(|request| request.number == self.number) {
            drop(std::mem::replace(&mut request.places, places));
        }
    }

    /// Keeps the account that is written at its end, and what is needed to answer it in the server's stead, if that is to be
    /// done.
    pub fn attach(&self, account: Account, asked: Option<ReplyTo<'static>>) {
        if let Some(request) = self.all.lock().kept.get_mut(&self.id).filter(|request| request.number == self.number) {
            request.account = Some(account);
            request.asked = asked;
        }
    }

    /// Keeps what its answer is judged by.
    pub fn limit_result(&self, call: Option<PendingCall>) {
        if let Some(request) = self.all.lock().kept.get_mut(&self.id).filter(|request| request.number == self.number) {
            request.call = call.map(Arc::new);
        }
    }

    /// Writes what became of it, unless that is done. It stays under way.
    pub fn finish(&self, outcome: Outcome) {
        let mut requests = self.all.lock();
        let request = requests.kept.get_mut(&self.id).filter(|request| request.number == self.number);
        let account = request.and_then(|request| request.account.take());
        drop(requests);
        if let Some(account) = account {
            account.finish(outcome);
        }
    }

    /// Returns true where it was neither cancelled nor answered.
    pub fn is_under_way(&self) -> bool {
        self.all.lock().kept.get(&self.id).is_some_and(|request| request.number == self.number)
    }

    /// From now on the server may have taken it: it is kept, whatever becomes of who sent it.
    pub fn mark_sent(&mut self) {
        self.sent = true;
    }

    /// The server has not taken it: nothing was sent, or it said so.
    pub fn not_taken(mut self) {
        self.sent = false;
    }
}

impl Drop for PendingRequest<'_> {
    fn drop(&mut self) {
        if !self.sent {
            drop(self.all.forget(self.id, |kept| kept.number == self.number));
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use toolweir_engine::json::Reader;

    use super::*;

    pub fn raw(id: &str) -> Raw<'_> {
        Reader::new(id.as_bytes()).unwrap().value().unwrap()
    }

    /// Keeps requests with these ids until they are answered.
    pub fn keep(ids: &[&str]) -> PendingRequests {
        let pending = PendingRequests::default();
        for id in ids {
            pending.register(raw(id)).unwrap().mark_sent();
        }
        pending
    }

    #[test]
    fn an_id_belongs_to_one_request_until_that_is_answered() {
        let pending = keep(&["1"]);
        assert_eq!(pending.register(raw("1")).unwrap_err(), RegisterError::InUse);
        pending.read_message(br#"{"id":1,"result":{}}"#);
        pending.register(raw("1")).unwrap().mark_sent();
        // One that was never sent leaves its id.
        drop(pending.register(raw("2")).unwrap());
        drop(pending.register(raw("2")).unwrap());
        let mut sent = pending.register(raw("2")).unwrap();
        sent.mark_sent();
        sent.not_taken();
        let mut sent = pending.register(raw("2")).unwrap();
        sent.mark_sent();
        drop(sent);
        assert_eq!(pending.register(raw("2")).unwrap_err(), RegisterError::InUse);
    }

    #[test]
    fn a_request_that_was_answered_and_not_sent_does_not_take_the_next_with_its_id_along() {
        let pending = PendingRequests::default();
        let first = pending.register(raw("1")).unwrap();
        pending.read_message(br#"{"id":1,"result":{}}"#);
        pending.register(raw("1")).unwrap().mark_sent();
        drop(first);
        assert_eq!(pending.len(), 1);
    }

    #[test]
    fn ids_that_some_server_takes_for_one_are_one() {
        for (first, second) in [
            ("7", "7.0"),
            ("7", "7e0"),
            ("70", "7.0E+1"),
            ("7", "7.5"),
            ("0", "-0"),
            ("0", "-0.5"),
            ("9007199254740992", "9007199254740993"),
            ("1e400", "1e500"),
            ("7", "\"7\""),
            ("\"7\"", "7"),
            ("7", "\" 7\\n\""),
            ("7", "\"7.0\""),
            ("\"a\"", r#""\u0061""#),
            ("\"a\"", r#""a\u0000b""#),
        ] {
            assert_eq!(keep(&[first]).register(raw(second)).unwrap_err(), RegisterError::InUse, "{first} {second}");
        }
        for (first, second) in [("7", "8"), ("7", "-7"), ("\"a\"", "\"b\""), ("\"a\"", "\"A\""), ("7", "\"7a\""), ("\"\"", "0")] {
            assert!(keep(&[first]).register(raw(second)).is_ok(), "{first} {second}");
        }
        let long = format!("\"{}\"", "x".repeat(LONGEST_ID));
        assert_eq!(PendingRequests::default().register(raw(&long)).unwrap_err(), RegisterError::LongId);
    }

    #[test]
    fn requests_without_an_answer_are_bounded_on_a_stream_and_in_all() {
        let room = Arc::new(Semaphore::new(MOST + 1));
        let (first, second) = (PendingRequests::within(Arc::clone(&room)), PendingRequests::within(Arc::clone(&room)));
        for id in 0..MOST {
            first.register(raw(&id.to_string())).unwrap().mark_sent();
        }
        assert_eq!(first.register(raw("-1")).unwrap_err(), RegisterError::NoRoom);
        second.register(raw("1")).unwrap().mark_sent();
        assert_eq!(second.register(raw("2")).unwrap_err(), RegisterError::NoRoom);
        drop(first);
        assert!(second.register(raw("2")).is_ok());
    }
}
