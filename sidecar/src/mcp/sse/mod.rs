//! Event streams (WHATWG HTML, "Server-sent events"): passed on as they come, but for the events that must be changed.
//!
//! An event is held from its first byte to its end only on streams that can carry a list. Whatever is not
//! changed leaves as the bytes that came, `retry` included; comment lines leave at once.
//!
//! Clients read streams in more ways than the specification's: some trim names, some end lines at more characters, some take
//! the last event without its blank line. An event that tells where credentials go is known in all these ways, and passes
//! only where all mean the same. Each byte is looked at once, however small the pieces are in which it comes.
//!
//! [`Rewriter`] cuts a stream into lines and events and holds those that must be decided on. What an event says is in
//! [`event`], what its lines are and how they are written anew in [`lines`]. [`endpoint`] and [`mod@known_keys`] know an endpoint's
//! name and the keys of lists however they are written, and [`passing`] looks for both in an event that is too large to hold.

pub mod endpoint;
pub mod event;
pub mod known_keys;
pub mod lines;
pub mod passing;
pub mod rewriter;

pub use self::{
    event::{Decide, EndpointMatch, EventVerdict, RewriteMode, SseError, SseEvent},
    known_keys::{KeyFinder, KnownKeys, known_keys, spells_ask, spells_list},
    lines::{with_data, without_id},
    rewriter::Rewriter,
};
