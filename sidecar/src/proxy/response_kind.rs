//! Which request an answer is to, as far as that decides how it passes.

use bytes::Bytes;
use http::Uri;
use toolweir_engine::json::Raw;

/// The kind of request that an answer is to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ResponseKind<'a> {
    /// Any message.
    Message,
    /// A tools/list; what was sent, where it has an id.
    List(Option<ListContext<'a>>),
    /// A tools/list whose answer comes on an HTTP+SSE stream.
    PostedList,
    /// A GET: what a client keeps open for as long as it lives, on which anything can be replayed.
    Get,
    /// An initialize of Streamable HTTP.
    Initialize,
    /// A subscriptions/listen, which a modern client keeps open for as long as it lives.
    Listen,
}

/// A tools/list that was sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ListContext<'a> {
    /// Its id.
    pub id: Raw<'a>,
    /// The whole message.
    pub request: &'a Bytes,
    /// The URL to which it was sent.
    pub url: &'a Uri,
}

impl ResponseKind<'_> {
    /// Returns true for a list of tools.
    pub fn is_list(self) -> bool {
        matches!(self, Self::List(_) | Self::PostedList)
    }

    /// Returns true where a client keeps the answer open for as long as it lives.
    pub fn is_kept_open(self) -> bool {
        matches!(self, Self::Get | Self::Listen)
    }
}
