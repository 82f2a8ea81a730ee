//! Which request an answer is to, as far as that decides how it passes.

use std::sync::Arc;

use bytes::Bytes;
use http::Uri;
use toolweir_engine::{Operation, ResultLimit, json::Raw};

use crate::{
    mcp::{request::Request, scan::ReplyTo},
    pending::PendingCall,
};

/// The kind of request that an answer is to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ResponseKind<'a> {
    /// Any message.
    Message,
    /// An operation that was let through.
    Answer(&'a AnswerContext<'a>),
    /// A request for a list; what was sent, where it has an id.
    List(Option<ListContext<'a>>),
    /// A request for a list whose answer comes on an HTTP+SSE stream.
    PostedList,
    /// A GET: what a client keeps open for as long as it lives, on which anything can be replayed.
    Get,
    /// An initialize of Streamable HTTP.
    Initialize,
    /// A subscriptions/listen, which a modern client keeps open for as long as it lives.
    Listen,
}

/// An operation that was let through.
#[derive(Clone, PartialEq, Eq)]
pub struct AnswerContext<'a> {
    /// How its answer is given in the server's stead.
    pub reply: ReplyTo<'a>,
    /// What it asks for.
    pub operation: Operation<'a>,
    /// The bound on its result.
    pub result_limit: Option<Arc<ResultLimit>>,
}

impl<'a> AnswerContext<'a> {
    /// That of this message, whose result has this bound.
    pub fn new(message: &Request<'a>, operation: Operation<'a>, result_limit: Option<Arc<ResultLimit>>) -> Self {
        Self { reply: ReplyTo::from(message), operation, result_limit }
    }

    /// The same, kept until the answer comes.
    pub fn kept(&self) -> PendingCall {
        PendingCall::of(&self.reply, self.operation, self.result_limit.clone())
    }
}

/// A request for a list that was sent.
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
    /// Returns true for a list.
    pub fn is_list(&self) -> bool {
        matches!(self, Self::List(_) | Self::PostedList)
    }

    /// Returns true where a client keeps the answer open for as long as it lives.
    pub fn is_kept_open(&self) -> bool {
        matches!(self, Self::Get | Self::Listen)
    }
}
