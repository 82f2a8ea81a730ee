//! The bounds of the proxy.

use std::time::Duration;

use crate::{lists::TTL, own_lists::WAIT};

/// The bounds of the proxy.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The largest body of a request, and the largest answer that has to be read, in bytes.
    pub body: usize,
    /// The bytes of all bodies that are held at once.
    pub held: usize,
    /// The time that a call waits for room among the bytes that are held.
    pub held_wait: Duration,
    /// The time that a client has for sending a request's body.
    pub body_time: Duration,
    /// The time that connecting to a server may take, TLS included.
    pub connect: Duration,
    /// The time that a server has for beginning its answer.
    pub first_byte: Duration,
    /// The time for which a client may keep a list.
    pub list_ttl: Duration,
    /// The time for which a call waits for a list that the sidecar asks for by itself.
    pub own_list: Duration,
    /// The most open connections of clients.
    pub connections: usize,
    /// The most requests under way, their answers included.
    pub requests: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 4 * 1024 * 1024,
            held: 16 * 1024 * 1024,
            held_wait: Duration::from_secs(1),
            body_time: Duration::from_secs(30),
            connect: Duration::from_secs(5),
            first_byte: Duration::from_secs(300),
            list_ttl: TTL,
            own_list: WAIT,
            connections: 512,
            requests: 256,
        }
    }
}
