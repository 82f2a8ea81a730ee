//! Sessions of Streamable HTTP whose clients are told that the list of tools has changed (MCP 2025-11-25, Transports, "Session
//! Management").
//!
//! The answer to `initialize` says whether a server tells its clients, and the stream on which they are told is opened later.
//! A client whose session is forgotten is not told.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Mutex, PoisonError},
};

use ring::digest::{SHA256, digest};

/// The most sessions that are known. The oldest are forgotten first.
const MOST: usize = 4096;

/// A session takes as much room as any other, whatever its id.
type Hash = [u8; 16];

/// The sessions.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<(HashSet<Hash>, VecDeque<Hash>)>);

fn hash(server: &str, session: &[u8]) -> Hash {
    let digest = digest(&SHA256, &[server.as_bytes(), b"\0", session].concat());
    std::array::from_fn(|at| digest.as_ref().get(at).copied().unwrap_or_default())
}

impl Sessions {
    /// Adds a session whose clients are told.
    pub fn add(&self, server: &str, session: &[u8]) {
        let hash = hash(server, session);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.0.insert(hash) {
            return;
        }
        known.1.push_back(hash);
        if known.1.len() > MOST
            && let Some(oldest) = known.1.pop_front()
        {
            known.0.remove(&oldest);
        }
    }

    /// Forgets a session, since it has ended.
    pub fn remove(&self, server: &str, session: &[u8]) {
        let hash = hash(server, session);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.0.remove(&hash) {
            known.1.retain(|other| *other != hash);
        }
    }

    /// Returns true where clients of this session are told.
    pub fn has(&self, server: &str, session: &[u8]) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.contains(&hash(server, session))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_bounded_in_number_and_the_oldest_go() {
        let sessions = Sessions::default();
        sessions.add("bank", b"ended");
        sessions.remove("bank", b"ended");
        for number in 0..=MOST {
            sessions.add("bank", number.to_string().as_bytes());
        }
        assert!(!sessions.has("bank", b"0") && sessions.has("bank", b"1") && !sessions.has("shop", b"1"));
        assert_eq!(sessions.0.lock().unwrap().1.len(), MOST);
    }
}
