//! Why the tools of a server cannot be read, each with what helps.

use std::{
    error::Error,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::secrets::HeaderSecrets;
use crate::{cluster::chain, table::shown};

/// The longest part of a foreign text that an error shows, in characters.
const SHOWN: usize = 120;

/// A fault of a server, or of the way to it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceFault {
    /// Nobody listens.
    #[error("nothing listens there (connection refused); start the server, or check host and port")]
    Refused,
    /// No connection for another reason.
    #[error("cannot be reached: {0}; check the URL")]
    Unreachable(String),
    /// A certificate that cannot be verified.
    #[error("its certificate cannot be verified: {0}; if a private authority issued it, give its certificate with --ca FILE")]
    Certificate(String),
    /// No TLS for another reason.
    #[error("TLS fails: {0}; check that the server speaks https at this port")]
    Tls(String),
    /// 401 or 403.
    #[error("the server refuses access ({0}); give what it asks for with --header 'Authorization: ...'")]
    Unauthorized(u16),
    /// 404.
    #[error("the server has no MCP endpoint there (404); check the path of the URL")]
    NotFound,
    /// Another status that is no success.
    #[error("the server answers with HTTP status {status}{}; is this the URL of an MCP server, and does it work? See its log", text_of(.text))]
    Status {
        /// The status.
        status: u16,
        /// What it says to that; empty if nothing.
        text: String,
    },
    /// A redirect that is not followed.
    #[error("the server redirects to {}{}", foreign(.to), if *.same { "; give that URL" } else { ", and headers are not sent elsewhere; give that URL if you trust it" })]
    Redirect {
        /// Where to, without a query.
        to: String,
        /// Whether that is at the same origin.
        same: bool,
    },
    /// A compressed answer, which was not asked for.
    #[error("the server compresses its answer ({}), which it was not asked to do; make it answer without Content-Encoding", foreign(.0))]
    Encoded(String),
    /// Something else than JSON or a stream of events.
    #[error("the server answers with {}, which no MCP server does; check the path of the URL", content(.0))]
    ContentType(String),
    /// What is no message of JSON-RPC.
    #[error("the server sends what is no MCP message ({why}): {}; check that it is an MCP server", foreign(.text))]
    Garbage {
        /// The text.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// What a command writes to its standard output beside messages.
    #[error("the command writes something else than MCP messages to its standard output: {}; it must log to its standard error", foreign(.0))]
    GarbageLine(String),
    /// More bytes than are read.
    #[error("the server sends more than {0} bytes, which no list of tools needs")]
    TooLarge(usize),
    /// A connection that ended too early.
    #[error("the connection broke: {0}; try again, or look at the server's log")]
    Broken(String),
    /// No answer in time.
    #[error("the server does not answer within {}; check that it runs and is an MCP server", seconds(.0))]
    Silent(Duration),
    /// No whole list in time.
    #[error("the server does not give its whole list within {}; look at its log to see why it is so slow", seconds(.0))]
    Slow(Duration),
    /// A command that ended by itself.
    #[error("the command ended ({ended}) before it listed its tools{}; run it by hand to see why", text_of(.stderr))]
    Ended {
        /// How it ended.
        ended: String,
        /// The last line on its standard error; empty if there is none.
        stderr: String,
    },
    /// An endpoint of the transport of 2024-11-05 at another origin.
    #[error("the server wants messages at another origin, {}, and nothing is sent there; give the URL of that server", foreign(.0))]
    ForeignEndpoint(String),
    /// An error of JSON-RPC in place of an answer.
    #[error("the server answers {method} with an error: {} ({code}); look at its log", refusal(.message))]
    Refusal {
        /// What was asked.
        method: &'static str,
        /// What it says.
        message: String,
        /// The code.
        code: i32,
    },
    /// A port-forward that fails.
    #[error("{0}")]
    Forward(String),
}

/// Shortens a foreign text to one line that is safe to show.
fn foreign(text: &str) -> String {
    let line = text.trim().replace(['\n', '\r', '\t'], " ");
    let cut: String = shown(&line).chars().take(SHOWN).collect();
    let more = if line.chars().nth(SHOWN).is_some() { "..." } else { "" };
    if cut.is_empty() { "(nothing)".to_owned() } else { format!("`{cut}{more}`") }
}

/// Shortens what a server says to one line without quotes.
fn refusal(text: &str) -> String {
    shown(text).replace('\u{fffd}', " ").chars().take(200).collect()
}

fn text_of(text: &str) -> String {
    if text.trim().is_empty() { String::new() } else { format!(": {}", foreign(text)) }
}

fn content(kind: &str) -> String {
    if kind.is_empty() { "no content type".to_owned() } else { format!("content of type {}", foreign(kind)) }
}

fn seconds(span: &Duration) -> String {
    format!("{} s", crate::table::number(span.as_secs_f64()))
}

impl SourceFault {
    /// Tells the fault of a text that is no message.
    pub fn garbage(text: &[u8], why: &dyn std::fmt::Display) -> Self {
        Self::Garbage { text: String::from_utf8_lossy(text).into_owned(), why: why.to_string() }
    }

    /// Tells the fault of a status that is no success.
    pub fn status(status: u16, text: &str) -> Self {
        match status {
            401 | 403 => Self::Unauthorized(status),
            404 => Self::NotFound,
            _ => Self::Status { status, text: text.to_owned() },
        }
    }

    /// Returns the fault without secrets. They are removed before a text is shortened, which could leave a part of one.
    #[must_use]
    pub fn without(mut self, secrets: &HeaderSecrets) -> Self {
        let texts: &mut [&mut String] = match &mut self {
            Self::Unreachable(text)
            | Self::Certificate(text)
            | Self::Tls(text)
            | Self::ContentType(text)
            | Self::GarbageLine(text)
            | Self::Broken(text)
            | Self::ForeignEndpoint(text)
            | Self::Encoded(text)
            | Self::Forward(text)
            | Self::Status { text, .. }
            | Self::Redirect { to: text, .. }
            | Self::Refusal { message: text, .. } => &mut [text],
            Self::Garbage { text, why } => &mut [text, why],
            Self::Ended { ended, stderr } => &mut [ended, stderr],
            Self::Refused | Self::Unauthorized(_) | Self::NotFound | Self::TooLarge(_) | Self::Silent(_) | Self::Slow(_) => {
                &mut []
            }
        };
        for text in texts {
            **text = secrets.removed(text);
        }
        self
    }

    /// Returns true where a server may know only the transport of 2024-11-05: the specification names these answers to a POST.
    pub fn suggests_http_sse(&self) -> bool {
        matches!(self, Self::NotFound | Self::Status { status: 400 | 405, .. })
    }
}

impl From<reqwest::Error> for SourceFault {
    fn from(error: reqwest::Error) -> Self {
        // A URL can hold secrets.
        let error = error.without_url();
        if let Some(known) = known_cause(&error) {
            return known;
        }
        if error.is_connect() { Self::Unreachable(chain(&error)) } else { Self::Broken(chain(&error)) }
    }
}

/// Finds a cause with a remedy of its own. The source of an I/O error is the source of what it holds, and passes that over.
fn known_cause(error: &(dyn Error + 'static)) -> Option<SourceFault> {
    match error.downcast_ref::<rustls::Error>() {
        Some(tls @ rustls::Error::InvalidCertificate(_)) => return Some(SourceFault::Certificate(tls.to_string())),
        Some(tls) => return Some(SourceFault::Tls(tls.to_string())),
        None => {}
    }
    if let Some(error) = error.downcast_ref::<io::Error>() {
        if error.kind() == io::ErrorKind::ConnectionRefused {
            return Some(SourceFault::Refused);
        }
        if let Some(held) = error.get_ref() {
            return known_cause(held);
        }
    }
    error.source().and_then(known_cause)
}

/// The first fault of a source, which the others follow from. The SDK does not hand every error of a transport on, so it is noted where it
/// arises.
#[derive(Clone, Debug, Default)]
pub struct FaultNote(Arc<Mutex<Option<SourceFault>>>);

impl FaultNote {
    /// Notes a fault if it is the first, and returns it.
    pub fn note(&self, fault: SourceFault) -> SourceFault {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| fault.clone());
        fault
    }

    /// Takes the fault.
    pub fn take(&self) -> Option<SourceFault> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_texts_are_short_and_harmless() {
        let fault = SourceFault::garbage(format!("a\u{1b}[2J\nb{}", "x".repeat(1000)).as_bytes(), &"no");
        let text = fault.to_string();
        assert!(
            text.starts_with("the server sends what is no MCP message (no): `a\u{fffd}[2J bxxx") && text.contains("x...`; check"),
            "{text}"
        );
        assert!(text.len() < 300);
        assert_eq!(
            SourceFault::status(500, " ").to_string(),
            "the server answers with HTTP status 500; is this the URL of an MCP server, and does it work? See its log"
        );
        assert_eq!(
            SourceFault::ContentType(String::new()).to_string(),
            "the server answers with no content type, which no MCP server does; check the path of the URL"
        );
        assert_eq!(
            SourceFault::Silent(Duration::from_secs(30)).to_string(),
            "the server does not answer within 30 s; check that it runs and is an MCP server"
        );
    }
}
