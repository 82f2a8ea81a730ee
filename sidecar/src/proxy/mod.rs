//! The way of a request over HTTP: parse once, decide, forward.
//!
//! ```text
//! server ─> http_connection ─> service ─> route  accept; find what a request is for
//!              │ ├──> authorization               GET of a description (RFC 9728)
//!              │ └──> post ─> call                a message; a call of a tool is decided on
//!              │        │       │
//!              │        └──> exchange ─> upstream ─> through, crate::net      (with a credential: credentialed)
//!              │                │
//!              └──────────> pass ─> list_answer   the answer, streamed or read
//!                               └─> body ─> outgoing ─> the client
//! ```
//!
//! [`state`] has what all of them share. [`request_guard`] counts a request at its end, and [`refusals`] answers one that fails,
//! with [`failure`] and [`replies`]. Rewritten for the client are [`cookies`], the [`challenge`]s and the [`representation`] of
//! answers, by [`localize`]; [`forwarding`] has the headers that go on. [`legacy`] knows the open streams of the HTTP+SSE
//! transport, [`cancel`] the calls that a client may cancel, [`sessions`] and [`list_changes`] tell clients that the list of
//! tools has changed, [`pages`] fills pages of lists that come empty, and [`own_list`] asks for a list that a decision needs. [`budget`] and [`clients`] bound what is held,
//! [`unread`] discards what is not read, and [`cors`] is for pages in a browser.
//!
//! [`captured`] takes connections that the kernel redirected here: [`captured_http`] has their requests to declared servers answered as
//! above, [`egress_http`] passes those on that lead elsewhere, and what is no HTTP is joined to where it may go.

mod answer_head;
pub mod answer_rooms;
mod asked_call;
pub mod authorization;
pub mod body;
pub mod budget;
pub mod call;
pub mod cancel;
pub mod captured;
pub mod captured_http;
pub mod challenge;
pub mod client_stream;
pub mod clients;
pub mod cookies;
pub mod cors;
pub mod credentialed;
pub mod credentialed_clients;
pub mod egress_http;
pub mod event_filter;
pub mod exchange;
pub mod failure;
pub mod forwarding;
pub mod http_connection;
pub mod legacy;
pub mod limits;
pub mod list_answer;
pub mod list_changes;
pub mod localize;
pub mod oauth;
pub mod origin;
pub mod outgoing;
pub mod own_list;
pub mod pages;
pub mod pass;
pub mod peeked;
pub mod post;
pub mod reason;
pub mod refusals;
pub mod replies;
pub mod representation;
pub mod request_guard;
pub mod response_kind;
pub mod rest_of_answer;
mod route;
pub mod server;
pub mod server_answers;
pub mod service;
pub mod sessions;
pub mod state;
pub mod stream_judge;
pub mod stream_lists;
pub mod through;
pub mod unread;
pub mod upstream;
pub mod whole_answer;

pub use self::limits::Limits;
