//! Parses a client's message, or refuses it.
//!
//! A message whose meaning could differ between two parsers is refused. What passes is forwarded byte for byte, so
//! what was decided on is what the server receives.

use std::{borrow::Cow, collections::HashSet};

use smallvec::SmallVec;
use toolweir_crds::{OperationKind, text::one_line};
use toolweir_engine::json::{JsonError, JsonKind, Raw, Reader, same_but_for_case};

use super::{differs_in_case, id::LONGEST_ID};

/// The `_meta` key that carries the protocol version of a modern request (MCP 2026-07-28, "Per-request fields").
pub const PROTOCOL_VERSION: &str = "io.modelcontextprotocol/protocolVersion";

const ENVELOPE: &[&str] = &["jsonrpc", "id", "method", "params", "result", "error"];
const PARAMS: &[&str] = &["name", "arguments", "_meta", "task", "uri", "taskId", "requestId", "ref", "notifications"];
const META: &[&str] = &[PROTOCOL_VERSION];

/// The most keys of an object that decides: each is remembered until the object ends, to find one that is repeated.
pub const MOST_KEYS: usize = 1024;
/// The longest key of such an object as it is written, in bytes.
pub const LONGEST_KEY: usize = 1024;

/// The most characters of a key or a method that an error shows.
const MOST_SHOWN: usize = 40;

/// The JSON-RPC error code of headers that disagree with the body (MCP 2026-07-28, "Request Metadata Headers").
pub const HEADER_MISMATCH: i32 = -32020;

/// A client's message.
#[derive(Clone, Debug)]
pub enum Message<'a> {
    /// A request, or a notification (without an id).
    Request(Box<Request<'a>>),
    /// An answer to a request of the server.
    Answer {
        /// The id of that request as it stands in the message; none where it has none.
        id: Option<Raw<'a>>,
    },
}

/// A request or notification.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The method.
    pub method: Cow<'a, str>,
    /// The id as it stands in the message; nothing for a notification.
    pub id: Option<Raw<'a>>,
    /// The parameters that decide.
    pub params: Params<'a>,
}

/// The parameters that decide.
#[derive(Clone, Debug, Default)]
pub struct Params<'a> {
    /// `name`: the tool or prompt.
    pub name: Option<Cow<'a, str>>,
    /// `uri` of resources/read, resources/subscribe and resources/unsubscribe.
    pub uri: Option<Cow<'a, str>>,
    /// `ref` of completion/complete, as it stands in the message.
    pub reference: Option<Raw<'a>>,
    /// `notifications` of subscriptions/listen, as it stands in the message.
    pub notifications: Option<Raw<'a>>,
    /// `taskId` of tasks/*.
    pub task_id: Option<Cow<'a, str>>,
    /// `requestId` of notifications/cancelled, as it stands in the message.
    pub request_id: Option<Raw<'a>>,
    /// `arguments` as they stand in the message.
    pub arguments: Option<Raw<'a>>,
    /// True where the call asks for a task (legacy).
    pub task: bool,
    /// The protocol version in `_meta` (modern).
    pub protocol_version: Option<Cow<'a, str>>,
    /// What is there and is not what it should be: in the methods that read it, that is refused.
    odd: OddParams,
}

/// Parameters that are there, and are not what they should be. Some servers make a text of what is none.
#[derive(Clone, Copy, Debug, Default)]
struct OddParams {
    /// `params` is no object.
    all: bool,
    /// `uri` is no string.
    uri: bool,
    /// `taskId` is no string.
    task_id: bool,
}

/// Returns true for what is neither a string nor null, which stands for nothing.
fn is_no_text(value: Raw<'_>) -> bool {
    !matches!(value.kind(), JsonKind::String | JsonKind::Null)
}

impl Request<'_> {
    /// Returns true where the request calls a tool.
    pub fn is_tool_call(&self) -> bool {
        self.method == "tools/call"
    }

    /// The id of the request that it cancels (MCP 2025-11-25, Cancellation), if it does that.
    pub fn cancels(&self) -> Option<Raw<'_>> {
        self.params.request_id.filter(|_| self.id.is_none() && self.method == "notifications/cancelled")
    }

    /// Returns true where answers to it carry `resultType` (MCP 2026-07-28 and later).
    pub fn is_modern(&self) -> bool {
        self.params.protocol_version.is_some()
    }

    /// The value that the header `Mcp-Name` of this request repeats (MCP 2026-07-28, "Request Metadata Headers").
    pub fn header_name(&self) -> Option<&str> {
        match &*self.method {
            "tools/call" | "prompts/get" => self.params.name.as_deref(),
            "resources/read" => self.params.uri.as_deref(),
            method if method.starts_with("tasks/") => self.params.task_id.as_deref(),
            _ => None,
        }
    }
}

/// Why a message is refused. It was the client's fault; trying the same again does not help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not strict JSON.
    #[error("the body {0}")]
    Json(#[from] JsonError),
    /// A batch, which current versions of MCP forbid and some servers run all the same.
    #[error("the body is a JSON-RPC batch; send its messages one by one")]
    Batch,
    /// Not an object.
    #[error("the body is not a JSON-RPC object")]
    NotAnObject,
    /// A key stands twice.
    #[error("{0} repeats the key `{1}`")]
    Repeated(&'static str, String),
    /// More keys than are read.
    #[error("{0} has more than {MOST_KEYS} keys; put them into `arguments`, or send less at once")]
    Keys(&'static str),
    /// A key that is longer than is read.
    #[error("{0} has a key of more than {LONGEST_KEY} bytes")]
    LongKey(&'static str),
    /// A key that some parsers take for a known one.
    #[error("{0} has the key `{1}`, which differs from `{2}` in case alone")]
    Case(&'static str, String, &'static str),
    /// A NUL in a key, where some parsers end it.
    #[error("{0} has a key with a NUL character")]
    Nul(&'static str),
    /// A member has the wrong kind.
    #[error("{0} is not {1}")]
    Kind(&'static str, &'static str),
    /// Neither request nor answer, or both.
    #[error("the body has {0}")]
    Neither(&'static str),
    /// The method is a known one but for case.
    #[error("the method `{0}` differs from `{1}` in case alone")]
    MethodCase(String, &'static str),
    /// A method with blanks, which some trim, or letters that some fold to those of a known one.
    #[error("the method has a character that is not visible ASCII")]
    Method,
    /// A request without what it is about.
    #[error("a {0} needs `params.{1}`, a string")]
    Lacks(&'static str, &'static str),
    /// The name of a tool or prompt with a control character.
    #[error("the {0}'s name has a control character")]
    ControlInName(OperationKind),
    /// Headers and body disagree.
    #[error("the header {0} says {1}, the body {2}")]
    HeaderMismatch(&'static str, String, String),
    /// A header that decides stands twice.
    #[error("the header {0} stands twice")]
    RepeatedHeader(&'static str),
    /// A header that decides has a value that it cannot have.
    #[error("the header {0} {1}")]
    HeaderValue(&'static str, &'static str),
    /// A header that decides would end at the sidecar, so that the server would not see what was decided on.
    #[error("the header Connection names {0}, which decides")]
    Connection(String),
    /// The body is not declared as JSON.
    #[error("the Content-Type is not application/json, alone or with charset=utf-8")]
    ContentType,
    /// The body is compressed.
    #[error("the body has a Content-Encoding; send it plain")]
    ContentEncoding,
    /// The id is that of a request without an answer, where answers are known by their id alone.
    #[error("the id is in use by a request that has no answer yet")]
    IdInUse,
    /// The id is that of a request that was cancelled and may be answered all the same, where answers are known by their id alone.
    #[error("the id is in use by a request that was cancelled and may still be answered")]
    IdCancelled,
    /// The id is longer than is kept.
    #[error("the id is longer than {LONGEST_ID} bytes")]
    LongId,
    /// The body is larger than is accepted.
    #[error("the body is larger than {0} bytes; send less at once, or raise --max-body")]
    TooLarge(usize),
    /// stdio: a carriage return, at which some servers end the line.
    #[error("the message has a carriage return inside")]
    CarriageReturn,
}

impl Refusal {
    /// The JSON-RPC error code (JSON-RPC 2.0, section 5.1).
    pub fn code(&self) -> i32 {
        match self {
            Self::Json(_) => -32700,
            Self::HeaderMismatch(..) | Self::HeaderValue("Mcp-*" | "MCP-Protocol-Version", _) => HEADER_MISMATCH,
            _ => -32600,
        }
    }

    /// Why, without a word of the message: for the log.
    pub fn in_general(&self) -> String {
        match self {
            Self::Repeated(object, _) => format!("{object} repeats a key"),
            Self::Case(object, _, known) => format!("{object} has a key that differs from `{known}` in case alone"),
            Self::MethodCase(_, known) => format!("the method differs from `{known}` in case alone"),
            Self::HeaderMismatch(header, ..) => format!("the header {header} and the body disagree"),
            Self::Connection(_) => "the header Connection names one that decides".to_owned(),
            other => other.to_string(),
        }
    }

    /// The HTTP status.
    pub fn status(&self) -> http::StatusCode {
        match self {
            Self::TooLarge(_) => http::StatusCode::PAYLOAD_TOO_LARGE,
            Self::ContentType | Self::ContentEncoding => http::StatusCode::UNSUPPORTED_MEDIA_TYPE,
            _ => http::StatusCode::BAD_REQUEST,
        }
    }
}

/// Reads a message.
pub fn parse(body: &[u8]) -> Result<Message<'_>, Refusal> {
    let mut reader = Reader::new(body)?;
    match reader.peek()? {
        JsonKind::Object => {}
        JsonKind::Array => {
            reader.value()?;
            return Err(Refusal::Batch);
        }
        _ => {
            reader.value()?;
            return Err(Refusal::NotAnObject);
        }
    }
    let (mut id, mut method, mut params, mut answer) = (None, None, Params::default(), false);
    let mut keys = DecidingKeys::new("the message", ENVELOPE);
    reader.object::<Refusal>(|reader, key| {
        match keys.add(key)?.as_ref() {
            "id" => id = Some(reader.value()?),
            "method" => method = Some(text(reader, "`method`")?),
            "params" => params = read_params(reader)?,
            key => {
                answer |= key == "result" || key == "error";
                reader.value()?;
            }
        }
        Ok(())
    })?;
    reader.finish()?;
    if id.is_some_and(|id: Raw<'_>| !matches!(id.kind(), JsonKind::String | JsonKind::Number)) {
        return Err(Refusal::Kind("`id`", "a string or a number"));
    }
    let Some(method) = method else {
        return if answer {
            Ok(Message::Answer { id })
        } else {
            Err(Refusal::Neither("neither `method` nor `result` nor `error`"))
        };
    };
    if answer {
        return Err(Refusal::Neither("both a `method` and a `result` or `error`"));
    }
    // Half of a surrogate pair comes back as something else.
    id.map(Raw::string).transpose()?;
    if !method.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Refusal::Method);
    }
    let request = Request { method, id, params };
    if !request.is_tool_call()
        && let Some(known) = differs_in_case(&request.method)
    {
        return Err(Refusal::MethodCase(one_line(&request.method, MOST_SHOWN), known));
    }
    check_name(&request)?;
    Ok(Message::Request(Box::new(request)))
}

/// Checks that a request says what it is about, as MCP wants it. What may be missing is a matter of [`ClientAsk::of`].
///
/// [`ClientAsk::of`]: super::client_ask::ClientAsk::of
fn check_name(request: &Request<'_>) -> Result<(), Refusal> {
    let params = &request.params;
    let odd = match &*request.method {
        "resources/read" | "resources/subscribe" | "resources/unsubscribe" => params.odd.uri.then_some("`params.uri`"),
        "completion/complete" | "subscriptions/listen" => None,
        method if method.starts_with("tasks/") => params.odd.task_id.then_some("`params.taskId`"),
        _ => return check_named(request),
    };
    if params.odd.all {
        return Err(Refusal::Kind("`params`", "an object"));
    }
    if let Some(odd) = odd {
        return Err(Refusal::Kind(odd, "a string"));
    }
    if request.method == "resources/read" && params.uri.is_none() { Err(Refusal::Lacks("resources/read", "uri")) } else { Ok(()) }
}

/// The same for what has a name.
fn check_named(request: &Request<'_>) -> Result<(), Refusal> {
    let (kind, method) = match &*request.method {
        "tools/call" => (OperationKind::Tool, "tools/call"),
        "prompts/get" => (OperationKind::Prompt, "prompts/get"),
        _ => return Ok(()),
    };
    let name = request.params.name.as_deref().ok_or(Refusal::Lacks(method, "name"))?;
    if name.contains(char::is_control) { Err(Refusal::ControlInName(kind)) } else { Ok(()) }
}

fn read_params<'a>(reader: &mut Reader<'a>) -> Result<Params<'a>, Refusal> {
    let mut params = Params::default();
    if reader.peek()? != JsonKind::Object {
        // JSON-RPC allows an array here, and null stands for none; MCP knows only objects.
        params.odd.all = reader.value()?.kind() != JsonKind::Null;
        return Ok(params);
    }
    let mut keys = DecidingKeys::new("`params`", PARAMS);
    reader.object::<Refusal>(|reader, key| {
        match keys.add(key)?.as_ref() {
            "name" => params.name = Some(text(reader, "`params.name`")?),
            "uri" => {
                let value = reader.value()?;
                (params.uri, params.odd.uri) = (value.string()?, is_no_text(value));
            }
            "ref" => params.reference = Some(reader.value()?),
            "notifications" => params.notifications = Some(reader.value()?),
            "requestId" => params.request_id = Some(reader.value()?),
            "taskId" => {
                let value = reader.value()?;
                (params.task_id, params.odd.task_id) = (value.string()?, is_no_text(value));
            }
            "arguments" => params.arguments = Some(reader.value()?),
            "task" => params.task = reader.value()?.kind() != JsonKind::Null,
            "_meta" => params.protocol_version = read_meta(reader)?,
            _ => drop(reader.value()?),
        }
        Ok(())
    })?;
    Ok(params)
}

fn read_meta<'a>(reader: &mut Reader<'a>) -> Result<Option<Cow<'a, str>>, Refusal> {
    if reader.peek()? != JsonKind::Object {
        reader.value()?;
        return Ok(None);
    }
    let mut version = None;
    let mut keys = DecidingKeys::new("`params._meta`", META);
    reader.object::<Refusal>(|reader, key| {
        if keys.add(key)? == PROTOCOL_VERSION {
            let value = reader.value()?;
            version = value.string()?;
            // What is no version to one is another era to the next.
            if version.is_none() && value.kind() != JsonKind::Null {
                return Err(Refusal::Kind("the protocol version in `_meta`", "a string"));
            }
        } else {
            reader.value()?;
        }
        Ok(())
    })?;
    Ok(version)
}

/// Reads a text that may be missing, or null.
pub(super) fn optional_text<'a>(reader: &mut Reader<'a>, what: &'static str) -> Result<Option<Cow<'a, str>>, Refusal> {
    let value = reader.value()?;
    if is_no_text(value) { Err(Refusal::Kind(what, "a string")) } else { Ok(value.string()?) }
}

fn text<'a>(reader: &mut Reader<'a>, what: &'static str) -> Result<Cow<'a, str>, Refusal> {
    reader.value()?.string()?.ok_or(Refusal::Kind(what, "a string"))
}

/// The keys of an object that decides.
pub(super) struct DecidingKeys<'a> {
    object: &'static str,
    known: &'static [&'static str],
    few: SmallVec<[Cow<'a, str>; 8]>,
    /// Used once there are more, so that each costs one step.
    many: HashSet<Cow<'a, str>>,
}

impl<'a> DecidingKeys<'a> {
    /// No keys yet of an object that may have these and others.
    pub(super) fn new(object: &'static str, known: &'static [&'static str]) -> Self {
        Self { object, known, few: SmallVec::new(), many: HashSet::new() }
    }

    /// Adds a key.
    ///
    /// # Errors
    /// It could be taken for another that is there.
    pub(super) fn add(&mut self, key: Raw<'a>) -> Result<Cow<'a, str>, Refusal> {
        if key.as_str().len() > LONGEST_KEY + 2 {
            return Err(Refusal::LongKey(self.object));
        }
        let key = key.string()?.unwrap_or_default();
        if key.contains('\0') {
            return Err(Refusal::Nul(self.object));
        }
        if !self.known.contains(&&*key)
            && let Some(known) = self.known.iter().find(|known| same_but_for_case(known, &key))
        {
            return Err(Refusal::Case(self.object, one_line(&key, MOST_SHOWN), known));
        }
        if self.few.contains(&key) || self.many.contains(&key) {
            return Err(Refusal::Repeated(self.object, one_line(&key, MOST_SHOWN)));
        }
        if self.few.len() < 8 {
            self.few.push(key.clone());
        } else if self.many.len() + 8 >= MOST_KEYS {
            return Err(Refusal::Keys(self.object));
        } else {
            self.many.insert(key.clone());
        }
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> Request<'_> {
        match parse(text.as_bytes()) {
            Ok(Message::Request(request)) => *request,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_tool_call_is_read_as_it_stands() {
        let call = request(
            r#"{"jsonrpc":"2.0","id":"a7","method":"tools\/call","params":{"name":"n\u0061me","arguments": {"x":[1, 2]},
               "_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","progressToken":1}}}"#,
        );
        assert!(call.is_tool_call() && call.is_modern());
        assert_eq!(call.id.unwrap().as_str(), "\"a7\"");
        assert_eq!(call.params.name.as_deref(), Some("name"));
        assert_eq!(call.params.arguments.unwrap().as_str(), r#"{"x":[1, 2]}"#);
        assert_eq!(call.header_name(), Some("name"));
    }

    #[test]
    fn answers_and_notifications_are_told_apart() {
        assert!(matches!(parse(br#"{"jsonrpc":"2.0","id":1,"result":{}}"#), Ok(Message::Answer { .. })));
        assert!(matches!(parse(br#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"m"}}"#), Ok(Message::Answer { .. })));
        assert!(request(r#"{"method":"notifications/initialized"}"#).id.is_none());
        assert!(request(r#"{"method":"tools/call","params":{"name":"x"}}"#).id.is_none());
    }

    #[test]
    fn what_could_mean_two_things_is_refused() {
        for (body, refusal) in [
            (r#"[{"method":"ping"}]"#, "batch"),
            (r#""x""#, "not a JSON-RPC object"),
            (r#"{"method":"a","method":"b"}"#, "repeats the key `method`"),
            (r#"{"method":"a","m\u0065thod":"b"}"#, "repeats the key `method`"),
            (r#"{"method":"tools/call","params":{"name":"a","name":"b"}}"#, "`params` repeats the key `name`"),
            (r#"{"method":"ping","x":1,"x":2}"#, "repeats the key `x`"),
            (r#"{"method":"ping","METHOD":"tools/call"}"#, "differs from `method` in case"),
            (r#"{"method":"tools/call","params":{"name":"a","Name":"b"}}"#, "differs from `name` in case"),
            (r#"{"method":"ping","paramſ":{}}"#, "differs from `params` in case"),
            (r#"{"method":"ping","m\u0000":1}"#, "NUL"),
            (r#"{"method":7}"#, "`method` is not a string"),
            (r#"{"id":1}"#, "neither"),
            (r#"{"method":"ping","result":{}}"#, "both"),
            (r#"{"method":"ping","id":null}"#, "`id` is not"),
            (r#"{"method":"ping","id":{}}"#, "`id` is not"),
            (r#"{"method":"tools/call"}"#, "needs `params.name`"),
            (r#"{"method":"tools/call","params":{"name":7}}"#, "`params.name` is not a string"),
            (r#"{"method":"tools/call","params":[]}"#, "needs `params.name`"),
            (r#"{"method":"ping","id":"\ud800"}"#, "surrogate"),
            (r#"{"method":"Tools/Call","params":{"name":"a"}}"#, "differs from `tools/call` in case alone"),
            (r#"{"method":"TOOLS/LIST"}"#, "differs from `tools/list` in case alone"),
            (r#"{"method":"Subscriptions/Listen"}"#, "differs from `subscriptions/listen` in case alone"),
            (r#"{"method":"server/Discover"}"#, "differs from `server/discover` in case alone"),
            (r#"{"method":"Initialize"}"#, "differs from `initialize` in case alone"),
            (r#"{"method":"Tasks/Get"}"#, "differs from `tasks/get` in case alone"),
            (r#"{"method":"TASKS/other"}"#, "differs from `tasks/` in case alone"),
            (r#"{"method":"notifications/Initialized"}"#, "in case alone"),
            (r#"{"method":"tools/li\u017ft"}"#, "not visible ASCII"),
            (r#"{"method":"ta\u017f\u212a\u017f/get"}"#, "not visible ASCII"),
            (r#"{"method":" tools/call","params":{"name":"a"}}"#, "not visible ASCII"),
            (r#"{"method":" tools/list"}"#, "not visible ASCII"),
            (r#"{"method":"tools/list\u3000"}"#, "not visible ASCII"),
            (r#"{"method":"tools/list\u200b"}"#, "not visible ASCII"),
            (r#"{"method":"\ufefftools/list"}"#, "not visible ASCII"),
            (r#"{"method":"tools/list\u0000"}"#, "not visible ASCII"),
            (r#"{"method":"tools/list\u007f"}"#, "not visible ASCII"),
            (r#"{"method":"tools / list"}"#, "not visible ASCII"),
            (r#"{"method":"tools/call","params":{"name":"a\u0000b"}}"#, "the tool's name has a control character"),
            (r#"{"method":"tools/call\u0000","params":{"name":"a"}}"#, "not visible ASCII"),
            (r#"{"method":"tools/call\n","params":{"name":"a"}}"#, "not visible ASCII"),
            (r#"{"method":"tools/call","params":{"name":"a\ud800"}}"#, "surrogate"),
            (r#"{"method":"tools/call","params":{"name":"a","_meta":{"a":1,"a":2}}}"#, "`params._meta` repeats"),
            (
                r#"{"method":"ping","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":20260728}}}"#,
                "protocol version in `_meta` is not a string",
            ),
            (r#"{"method":"ping"} {}"#, "goes on"),
            ("\u{feff}{\"method\":\"ping\"}", "byte-order mark"),
            (r#"{"method":"ping",}"#, "is not JSON"),
        ] {
            let error = parse(body.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(refusal), "{body}: {error}");
        }
        assert!(matches!(parse(b"{\"method\":\"\xff\"}"), Err(Refusal::Json(JsonError::Utf8(_)))));
        let many: String = (0..20).map(|n| format!("\"k{n}\":0,")).collect();
        assert!(parse(format!("{{{many}\"k15\":1,\"method\":\"ping\"}}").as_bytes()).is_err());
        assert!(parse(format!("{{{many}\"method\":\"ping\"}}").as_bytes()).is_ok());
    }

    #[test]
    fn an_object_that_decides_has_a_bounded_number_of_keys_of_a_bounded_length() {
        let keys = |count: usize| (0..count).map(|n| format!("\"k{n}\":0,")).collect::<String>();
        for (count, fits) in [(MOST_KEYS - 2, true), (MOST_KEYS, false)] {
            let keys = keys(count);
            for body in [
                format!("{{{keys}\"jsonrpc\":\"2.0\",\"method\":\"ping\"}}"),
                format!("{{\"method\":\"ping\",\"params\":{{{keys}\"a\":1,\"b\":2}}}}"),
                format!("{{\"method\":\"ping\",\"params\":{{\"_meta\":{{{keys}\"a\":1,\"b\":2}}}}}}"),
            ] {
                match parse(body.as_bytes()) {
                    Ok(_) => assert!(fits, "{count}"),
                    Err(refusal) => {
                        assert!(!fits && refusal.to_string().contains("has more than 1024 keys"), "{count}: {refusal}");
                    }
                }
            }
        }
        for (length, fits) in [(LONGEST_KEY, true), (LONGEST_KEY + 1, false)] {
            let body = format!("{{\"method\":\"ping\",\"params\":{{\"{}\":1}}}}", "k".repeat(length));
            assert_eq!(parse(body.as_bytes()).is_ok(), fits, "{length}");
        }
    }
}
