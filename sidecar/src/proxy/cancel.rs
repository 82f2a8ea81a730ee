//! Calls of Streamable HTTP that hold places of `maxConcurrent`, by what a `notifications/cancelled` names them with
//! (MCP 2025-11-25, Cancellation): the session and the request's id. Over HTTP+SSE and stdio [`crate::pending`] knows them.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use http::{HeaderMap, HeaderValue};
use smallvec::SmallVec;
use toolweir_engine::{Permit, json::Raw, shared::GrantedPlaces};

use crate::mcp::{
    headers::SESSION_ID,
    id::{LONGEST_ID, RequestId},
};

/// The calls under way that hold places. There is an entry for each and no other.
#[derive(Clone, Debug, Default)]
pub struct CancellableCalls {
    named: Arc<Mutex<ByName>>,
}

/// Calls by their names.
type ByName = HashMap<CallName, SmallVec<[Arc<CancellableCall>; 1]>>;

/// The name of a call: the server, the client's session if it has one, and the id.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CallName {
    server: Box<str>,
    session: Option<HeaderValue>,
    id: RequestId,
}

/// A call that holds places.
#[derive(Debug)]
pub struct CancellableCall {
    places: Mutex<Permit>,
    cancelled: Arc<AtomicBool>,
}

/// A call's entry. Dropped, the call is over, and its places are free.
#[derive(Debug)]
struct CallEntry {
    calls: CancellableCalls,
    name: CallName,
    call: Arc<CancellableCall>,
}

impl CallName {
    /// The name of a request to a server. Nothing where the id is none, or longer than is kept.
    pub fn of(server: &str, headers: &HeaderMap, id: Raw<'_>) -> Option<Self> {
        if id.as_str().len() > LONGEST_ID {
            return None;
        }
        Some(Self { server: server.into(), session: headers.get(SESSION_ID).cloned(), id: RequestId::read(id)? })
    }
}

impl CancellableCalls {
    fn lock(&self) -> MutexGuard<'_, ByName> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a call. Its places are in the permit that this gives, and free when that is dropped or the call is cancelled;
    /// then the flag is up.
    pub fn add(&self, name: CallName, places: Permit) -> (Permit, Arc<AtomicBool>) {
        let cancelled = Arc::new(AtomicBool::new(false));
        let call = Arc::new(CancellableCall { places: Mutex::new(places), cancelled: Arc::clone(&cancelled) });
        self.lock().entry(name.clone()).or_default().push(Arc::clone(&call));
        (Permit::with_places(Box::new(CallEntry { calls: self.clone(), name, call })), cancelled)
    }

    /// The call of that name, if there is exactly one.
    pub fn find(&self, name: &CallName) -> Option<Arc<CancellableCall>> {
        match self.lock().get(name).map(SmallVec::as_slice) {
            Some([call]) => Some(Arc::clone(call)),
            _ => None,
        }
    }

    /// Frees the places of a call that [`CancellableCalls::find`] gave. Its name is free for another.
    pub fn cancel(&self, name: &CallName, call: &Arc<CancellableCall>) {
        call.cancelled.store(true, Ordering::Relaxed);
        self.forget(name, call);
        drop(std::mem::take(&mut *call.places.lock().unwrap_or_else(PoisonError::into_inner)));
    }

    /// The number of calls.
    pub fn len(&self) -> usize {
        self.lock().values().map(SmallVec::len).sum()
    }

    /// Returns true where there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn forget(&self, name: &CallName, call: &Arc<CancellableCall>) {
        let mut named = self.lock();
        if let Some(calls) = named.get_mut(name) {
            calls.retain(|other| !Arc::ptr_eq(other, call));
            if calls.is_empty() {
                named.remove(name);
            }
        }
    }
}

impl GrantedPlaces for CallEntry {}

impl Drop for CallEntry {
    fn drop(&mut self) {
        self.calls.forget(&self.name, &self.call);
        // Who cancels it at this moment may hold the call a little longer.
        drop(std::mem::take(&mut *self.call.places.lock().unwrap_or_else(PoisonError::into_inner)));
    }
}

#[cfg(test)]
mod tests {
    use toolweir_engine::json::Reader;

    use super::*;

    fn name(session: Option<&'static str>, id: &str) -> CallName {
        let mut headers = HeaderMap::new();
        headers.extend(session.map(|session| (SESSION_ID, HeaderValue::from_static(session))));
        CallName::of("bank", &headers, Reader::new(id.as_bytes()).unwrap().value().unwrap()).unwrap()
    }

    #[test]
    fn a_call_is_found_by_its_session_and_id_alone() {
        let calls = CancellableCalls::default();
        let (place, cancelled) = calls.add(name(Some("a"), "7"), Permit::default());
        for other in [name(Some("b"), "7"), name(None, "7"), name(Some("a"), "\"7\""), name(Some("a"), "7.5")] {
            assert!(calls.find(&other).is_none(), "{other:?}");
        }
        let call = calls.find(&name(Some("a"), "7.0")).unwrap();
        calls.cancel(&name(Some("a"), "7"), &call);
        assert!(cancelled.load(Ordering::Relaxed) && calls.is_empty());
        drop(place);
        assert!(calls.is_empty());
    }

    #[test]
    fn of_two_with_one_name_none_is_found_until_one_is_over() {
        let calls = CancellableCalls::default();
        let (first, _) = calls.add(name(None, "7"), Permit::default());
        let (second, cancelled) = calls.add(name(None, "7"), Permit::default());
        assert!(calls.find(&name(None, "7")).is_none());
        drop(first);
        let call = calls.find(&name(None, "7")).unwrap();
        // It ended meanwhile, and another took its name.
        drop(second);
        let (_third, other) = calls.add(name(None, "7"), Permit::default());
        calls.cancel(&name(None, "7"), &call);
        assert!(cancelled.load(Ordering::Relaxed) && !other.load(Ordering::Relaxed));
        assert_eq!(calls.len(), 1);
    }
}
