//! Sessions of Streamable HTTP whose clients are told that lists have changed (MCP 2025-11-25, Transports, "Session Management").
//!
//! The answer to `initialize` says of what a server tells its clients, and the stream on which they are told is opened later.
//! A client whose session is forgotten is not told.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
};

use ring::digest::{SHA256, digest};

use crate::mcp::changes::ToldLists;

/// The most sessions that are known. The oldest are forgotten first.
const MOST: usize = 4096;

/// A session takes as much room as any other, whatever its id.
type Hash = [u8; 16];

/// The sessions.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<(HashMap<Hash, ToldLists>, VecDeque<Hash>)>);

fn hash(server: &str, session: &[u8]) -> Hash {
    let digest = digest(&SHA256, &[server.as_bytes(), b"\0", session].concat());
    std::array::from_fn(|at| digest.as_ref().get(at).copied().unwrap_or_default())
}

impl Sessions {
    /// Adds a session whose clients are told this.
    pub fn add(&self, server: &str, session: &[u8], told: ToldLists) {
        let hash = hash(server, session);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.0.insert(hash, told).is_some() {
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
        if known.0.remove(&hash).is_some() {
            known.1.retain(|other| *other != hash);
        }
    }

    /// Returns what clients of this session are told.
    pub fn told(&self, server: &str, session: &[u8]) -> ToldLists {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.0.get(&hash(server, session)).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcp::changes::Declaration;

    #[test]
    fn sessions_are_bounded_in_number_and_the_oldest_go() {
        let (sessions, mut declaration) = (Sessions::default(), Declaration::default());
        let told = declaration.push(br#"{"result":{"capabilities":{"prompts":{"listChanged":true}}}}"#);
        assert!(told.any());
        sessions.add("bank", b"ended", told);
        sessions.remove("bank", b"ended");
        for number in 0..=MOST {
            sessions.add("bank", number.to_string().as_bytes(), told);
        }
        let nothing = ToldLists::default();
        assert_eq!((sessions.told("bank", b"0"), sessions.told("bank", b"1")), (nothing, told));
        assert_eq!((sessions.told("bank", b"ended"), sessions.told("shop", b"1")), (nothing, nothing));
        assert_eq!(sessions.0.lock().unwrap().1.len(), MOST);
    }
}
