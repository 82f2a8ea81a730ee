//! The way of a request: parse once, decide, forward.
//!
//! [`service`] has the way itself; what it stands on: [`upstream`] connects to servers, by [`names`], [`through`] a proxy if need be,
//! and [`reason`] says why it could not; [`body`] streams answers, [`budget`] bounds what is held, [`waiting`] what
//! waits for clients, [`unread`] discards what is not read, [`legacy`] knows the open streams of the HTTP+SSE transport, [`oauth`] finds where a server's
//! authorization is described, [`challenge`] and [`cookies`] rewrite what names the server to the client, [`cors`] is for
//! pages in a browser, and [`server`] accepts connections.

pub mod body;
pub mod budget;
pub mod challenge;
pub mod cookies;
pub mod cors;
pub mod failure;
pub mod legacy;
pub mod names;
pub mod oauth;
pub mod reason;
pub mod server;
pub mod service;
pub mod through;
pub mod unread;
pub mod upstream;
pub mod waiting;

use std::time::Duration;

/// What bounds the proxy.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The largest body of a request, and the largest answer that has to be read, in bytes.
    pub body: usize,
    /// The bytes of all bodies that are held at once.
    pub held: usize,
    /// How long a call waits for room among the bytes that are held.
    pub held_wait: Duration,
    /// How long a client may take to send a request's body.
    pub body_time: Duration,
    /// How long connecting to a server may take, TLS included.
    pub connect: Duration,
    /// How long a server may take to begin its answer.
    pub first_byte: Duration,
    /// How many connections of clients may be open.
    pub connections: usize,
    /// How many requests may be under way, their answers included.
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
            connections: 512,
            requests: 256,
        }
    }
}
