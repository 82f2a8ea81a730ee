//! Events of a stream, and what becomes of them.

/// The verdict on an event that is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventVerdict {
    /// The event passes as it came.
    Pass,
    /// Its data becomes this.
    Replace(Vec<u8>),
    /// The event does not pass.
    Take,
    /// The event does not pass, but what it says of the stream itself does: where to resume it, and when.
    TakeData,
}

/// The ways in which clients read an event as the one that names the endpoint of the HTTP+SSE transport (MCP 2024-11-05, Transports).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointMatch {
    /// None does.
    No,
    /// Those that do read the same in it. Replaced, it is written so that every client does.
    Yes,
    /// Some do and others not, or they read another place in it.
    Unclear,
}

/// An event that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SseEvent<'a> {
    /// Its name, as the specification reads it.
    pub name: &'a [u8],
    /// Its data.
    pub data: &'a [u8],
    /// Its lines as they came, without the blank one where the stream ended before that.
    pub text: &'a [u8],
    /// The way in which clients read it as the one that names the endpoint.
    pub endpoint: EndpointMatch,
}

/// Decides on an event.
pub type Decide<'a> = dyn FnMut(SseEvent<'_>) -> Result<EventVerdict, SseError> + 'a;

/// Why a stream ends early. It was the server's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    /// An event that would have to be read is larger than is held.
    #[error("an event that holds a list or a request, or names an endpoint, is larger than {0} bytes")]
    TooLarge(usize),
    /// An event has more data than may pass.
    #[error("an event has more than {0} bytes of data")]
    DataTooLarge(u64),
    /// An event that must be read cannot be.
    #[error("an event that holds a list or a request cannot be read")]
    Unreadable,
    /// Clients would read different endpoints, or some of them none.
    #[error("an event names an endpoint in a way that clients read differently")]
    UnclearEndpoint,
    /// The endpoint is of another origin.
    #[error("an event names an endpoint that is not of the server's origin")]
    ForeignEndpoint,
    /// There is no room to hold it.
    #[error("there is no room to hold an event")]
    NoRoom,
}

/// Which events of a stream are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RewriteMode {
    /// Everything: an event that cannot be decided on ends the stream.
    All,
    /// An answer that is no event stream, and that a client may take for one. Nothing is held.
    Foreign,
}
