//! `POST /explain` of the administration: what would be decided on a call that nobody makes, and why; or on a connection.

use std::borrow::Cow;

use http::StatusCode;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::Serialize;
use tokio::{sync::Semaphore, time::timeout};
use toolweir_crds::{
    OperationKind, RequestName,
    explain::{ConnectionExplanation, ExplainResponse},
    text::one_line,
};
use toolweir_engine::{
    Call, Operation,
    json::{JsonError, JsonKind, Raw, Reader},
};

use crate::{
    capture::Capture,
    governor::Governor,
    in_force::InForce,
    mcp::{
        client_ask::ClientAsk,
        request::{Message, parse},
    },
};

/// The largest question, in bytes: arguments that a command line can hold.
pub const LARGEST: usize = 256 * 1024;
/// The most questions that are answered at once: whoever shares the pod's network can ask, and must not fill the memory.
pub const AT_ONCE: usize = 4;
/// The time that a question may take to arrive.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// One question is decided on after the other.
static ONE: Semaphore = Semaphore::const_new(1);

/// Why there is no answer: the status, and a line that says what to do.
type Refused = (StatusCode, String);

/// An answer: of a question about a call, or about a connection.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Explained {
    /// What would be decided on a call.
    Call(Box<ExplainResponse>),
    /// What would become of a captured connection.
    Connection(ConnectionExplanation),
}

/// Reads a question and answers it. `places` are those for questions that are answered at once, `capture` what connections are judged
/// with, where they are captured.
///
/// # Errors
/// The body is no question, or too many are asked at once.
pub async fn explain(
    governor: &Governor,
    capture: Option<&Capture>,
    places: &Semaphore,
    body: Incoming,
) -> Result<Explained, Refused> {
    let Ok(_place) = places.try_acquire() else {
        return Err((StatusCode::SERVICE_UNAVAILABLE, format!("{AT_ONCE} questions are being answered; ask again")));
    };
    let bytes = match timeout(PATIENCE, Limited::new(body, LARGEST).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => return Err((StatusCode::PAYLOAD_TOO_LARGE, format!("write at most {LARGEST} bytes"))),
        Err(_) => return Err((StatusCode::REQUEST_TIMEOUT, "the question did not come in time".to_owned())),
    };
    let bad = |why: String| (StatusCode::BAD_REQUEST, why);
    let in_force = arc_swap::Guard::into_inner(governor.in_force());
    let question = match question(&bytes).map_err(bad)? {
        ExplainQuestion::Call(question) => question,
        ExplainQuestion::Connection(url) => {
            let capture = capture.ok_or_else(|| bad(NOT_CAPTURED.to_owned()))?;
            return Ok(Explained::Connection(capture.explain(&in_force, &url).await.map_err(bad)?));
        }
    };
    let server = question.server(&in_force).map_err(bad)?;
    let seen = if question.kind == OperationKind::Tool { in_force.seen(&server, &question.name) } else { None };
    let call = Call { seen: seen.as_deref(), ..question.call(&server) };
    let (engine, now) = (&in_force.engine, governor.now());
    let peeked = governor.peek(&in_force, &call, now).await;
    let version = in_force.version.clone();
    let servers = engine.servers().map(|server| server.name.to_owned()).collect();
    // What expressions compute can take its time: one question after the other, and not on the thread that serves the port.
    let Ok(_turn) = ONE.acquire().await else {
        return Err((StatusCode::SERVICE_UNAVAILABLE, "the sidecar stops".to_owned()));
    };
    let (server, again) = (server.into_owned(), bytes.clone());
    let explained = tokio::task::spawn_blocking(move || {
        let ExplainQuestion::Call(question) = self::question(&again)? else { return Err(FORM.to_owned()) };
        let call = Call { seen: seen.as_deref(), ..question.call(&server) };
        Ok(in_force.engine.explain(&call, now, &peeked))
    });
    let explanation =
        explained.await.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, format!("the question was given up: {error}")))?;
    let explanation = explanation.map_err(bad)?;
    Ok(Explained::Call(Box::new(ExplainResponse { version, servers, explanation })))
}

/// What to write.
const FORM: &str = r#"write {"tool": NAME, "server": NAME, "arguments": {...}, "session": ID}, of which the last three may be left out; in place of `tool` one of `prompt`, `resource`, `request` and `method`; or {"url": URL}"#;
const NOT_CAPTURED: &str = "the connections of this pod are not captured, so that they lead where its containers want; label it toolweir.dev/capture: enabled and create it anew";

/// What is asked.
#[derive(Debug, PartialEq)]
enum ExplainQuestion<'a> {
    Call(CallQuestion<'a>),
    /// The URL for which a connection would be opened.
    Connection(Cow<'a, str>),
}

/// A call or another operation that nobody makes.
#[derive(Debug, Default, PartialEq)]
struct CallQuestion<'a> {
    server: Option<Cow<'a, str>>,
    kind: OperationKind,
    name: Cow<'a, str>,
    arguments: Option<Raw<'a>>,
    session: Cow<'a, str>,
}

/// A fault of a question.
#[derive(Debug, PartialEq, thiserror::Error)]
enum Unclear {
    #[error("the body {0}")]
    Json(#[from] JsonError),
    #[error("{0}")]
    Other(String),
}

/// Reads a question. The arguments are left as they stand there, as those of a call are.
fn question(bytes: &[u8]) -> Result<ExplainQuestion<'_>, String> {
    let unclear = |error: Unclear| format!("{error}; {FORM}");
    let mut question = CallQuestion::default();
    let (mut asked, mut session, mut url, mut seen) = (None, None, None, Vec::new());
    let mut reader = Reader::new(bytes).map_err(|error| unclear(error.into()))?;
    reader
        .object::<Unclear>(|reader, key| {
            let key = key.string()?.unwrap_or_default();
            if seen.contains(&key) {
                return Err(Unclear::Other(format!("`{}` stands there twice", one_line(&key, 40))));
            }
            match &*key {
                "server" => question.server = Some(text(reader, "server")?),
                key if let Some(kind) = OperationKind::of_noun(key) => {
                    if let Some((other, _)) = asked.replace((kind, text(reader, kind.noun())?)) {
                        return Err(Unclear::Other(format!("there are `{other}` and `{kind}`, and a question is about one")));
                    }
                }
                "session" => session = Some(text(reader, "session")?),
                "url" => url = Some(text(reader, "url")?),
                "arguments" => question.arguments = Some(reader.value()?),
                other => return Err(Unclear::Other(format!("`{}` is not known", one_line(other, 40)))),
            }
            seen.push(key);
            Ok(())
        })
        .map_err(unclear)?;
    reader.finish().map_err(|error| unclear(error.into()))?;
    if let Some(url) = url {
        let alone = seen.len() == 1;
        return if alone {
            Ok(ExplainQuestion::Connection(url))
        } else {
            Err(unclear(Unclear::Other("a question about a `url` has nothing else".to_owned())))
        };
    }
    (question.kind, question.name) = asked.ok_or_else(|| unclear(Unclear::Other("there is no `tool`".to_owned())))?;
    question.check()?;
    question.session = session.unwrap_or_default();
    Ok(ExplainQuestion::Call(question))
}

fn text<'a>(reader: &mut Reader<'a>, key: &str) -> Result<Cow<'a, str>, Unclear> {
    let value = reader.value()?;
    if value.kind() != JsonKind::String {
        return Err(Unclear::Other(format!("`{key}` is no string")));
    }
    Ok(value.string()?.unwrap_or_default())
}

impl CallQuestion<'_> {
    /// The call, of a tool of which nothing is known.
    fn call<'a>(&'a self, server: &'a str) -> Call<'a> {
        let operation = Operation::of_kind(self.kind, &self.name);
        Call { server, operation, arguments: self.arguments, session: &self.session, seen: None }
    }

    /// Refuses what no policy decides on.
    fn check(&self) -> Result<(), String> {
        let Self { kind, name, .. } = self;
        if name.contains(char::is_control) {
            // It is refused before any policy is asked.
            return Err(format!(
                "`{kind}` has a control character, and what names such a {kind} is refused; write a {kind}'s name"
            ));
        }
        match kind {
            OperationKind::Request if RequestName::ALL.iter().all(|known| known.as_str() != name) => {
                Err(format!("`{}` is nothing that servers ask for; write sampling, elicitation or roots", one_line(name, 80)))
            }
            OperationKind::Other => check_method(name),
            _ => Ok(()),
        }
    }

    /// The server: the one that is meant where there is only one.
    fn server(&self, in_force: &InForce) -> Result<Cow<'_, str>, String> {
        if let Some(server) = &self.server {
            return Ok(Cow::Borrowed(server));
        }
        let known: Vec<&str> = in_force.engine.servers().map(|server| server.name).collect();
        match known.as_slice() {
            [one] => Ok(Cow::Owned((*one).to_owned())),
            [] => Err("no policy in force names a server, so that no call passes; name one as `server` all the same".to_owned()),
            several => Err(format!("which server? There are {}; name one as `server`", several.join(", "))),
        }
    }
}

/// Refuses methods on which no policy decides, and those that are decided on by what they name.
fn check_method(method: &str) -> Result<(), String> {
    let shown = one_line(method, 80);
    let by_name = |kinds: &str| Err(format!("{shown} is decided on by what it names; ask about {kinds}"));
    match OperationKind::of_method(method) {
        OperationKind::Other if method == "completion/complete" => return by_name("a `prompt` or `resource`"),
        OperationKind::Other if method.starts_with("tasks/") && method != "tasks/list" => return by_name("the `tool`"),
        OperationKind::Other => {}
        kind => return by_name(&format!("a `{kind}`")),
    }
    let message = serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": method}).to_string();
    let message = parse(message.as_bytes()).map_err(|why| why.to_string())?;
    let Message::Request(request) = message else { return Ok(()) };
    match ClientAsk::of(&request) {
        Ok(ClientAsk::Free) => Err(format!("{shown} belongs to the base protocol: it passes, whatever policies say")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_read_as_it_stands() {
        let bytes = br#" {"tool":"p\u0061y","arguments": {"a":1, "a":2},"server":"bank"} "#;
        let ExplainQuestion::Call(question) = question(bytes).unwrap() else { panic!("it is about a call") };
        assert_eq!((question.server.as_deref(), &*question.name, &*question.session), (Some("bank"), "pay", ""));
        assert_eq!(question.arguments.map(Raw::as_str), Some(r#"{"a":1, "a":2}"#));
        let least = super::question(br#"{"tool":"x"}"#).unwrap();
        assert_eq!(least, ExplainQuestion::Call(CallQuestion { name: "x".into(), ..CallQuestion::default() }));
        for (key, kind, name) in [
            ("prompt", OperationKind::Prompt, "review"),
            ("resource", OperationKind::Resource, "file:///a"),
            ("request", OperationKind::Request, "sampling"),
            ("method", OperationKind::Other, "logging/setLevel"),
        ] {
            let body = format!(r#"{{"{key}":"{name}"}}"#);
            let expected = CallQuestion { kind, name: name.into(), ..CallQuestion::default() };
            assert_eq!(super::question(body.as_bytes()).unwrap(), ExplainQuestion::Call(expected));
        }
        let url = super::question(br#"{"url":"http://a"}"#).unwrap();
        assert_eq!(url, ExplainQuestion::Connection("http://a".into()));
    }

    #[test]
    fn what_is_no_question_is_told_with_what_to_write() {
        for (text, why) in [
            ("", "the body is not JSON (byte 0); write {"),
            ("[]", "the body is not JSON (byte 0); write {"),
            ("{}", "there is no `tool`; write {"),
            (r#"{"tool":"x"} {}"#, "the body goes on after its JSON value (byte 13); write {"),
            (r#"{"tool":1}"#, "`tool` is no string; write {"),
            (r#"{"tool":"x","tool":"y"}"#, "`tool` stands there twice; write {"),
            (r#"{"tool":"x","args":{}}"#, "`args` is not known; write {"),
            (r#"{"url":"http://a","tool":"x"}"#, "a question about a `url` has nothing else; write {"),
            (r#"{"tool":"x\n"}"#, "`tool` has a control character"),
            (r#"{"resource":"a:\n"}"#, "`resource` has a control character"),
            (r#"{"tool":"x","prompt":"y"}"#, "there are `tool` and `prompt`, and a question is about one; write {"),
            (r#"{"request":"sample"}"#, "`sample` is nothing that servers ask for; write sampling, elicitation or roots"),
            (r#"{"method":"prompts/get"}"#, "prompts/get is decided on by what it names; ask about a `prompt`"),
            (r#"{"method":"roots/list"}"#, "roots/list is decided on by what it names; ask about a `request`"),
            (r#"{"method":"completion/complete"}"#, "completion/complete is decided on by what it names"),
            (r#"{"method":"tools/list"}"#, "tools/list belongs to the base protocol: it passes"),
        ] {
            let error = question(text.as_bytes()).unwrap_err();
            assert!(error.starts_with(why), "{text}: {error}");
        }
    }
}
