//! Lines of a sidecar's log: recognizes denials, and resumes a stream that broke off.

use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value};
use toolweir_crds::OperationKind;

use crate::table::shown;

/// A line of a sidecar's log.
#[derive(Clone, Debug, PartialEq)]
pub enum LogLine {
    /// The audit line of a call, another operation or a connection that was denied, or would have been denied.
    Denial(DenialLine),
    /// An audit line of another call or connection, or a line of the sidecar's own log.
    Other,
    /// An audit line that cannot be read.
    Malformed,
}

/// The fields of an audit line that reports a denial.
#[derive(Clone, Debug, PartialEq)]
pub struct DenialLine(Map<String, Value>);

impl LogLine {
    /// Parses a line.
    pub fn parse(line: &str) -> Self {
        let line = line.trim();
        let Ok(Value::Object(fields)) = serde_json::from_str(line) else {
            return if line.starts_with("{\"time\":") { Self::Malformed } else { Self::Other };
        };
        let Some(decision) = fields.get("decision") else { return Self::Other };
        let text = |name: &str| fields.get(name).is_some_and(Value::is_string);
        // A connection to somewhere else than a declared server has a destination in place of server and tool.
        let needed: &[&str] = if fields.contains_key("destination") {
            &["time", "destination", "reason"]
        } else if fields.contains_key("operation") {
            &["time", "server", "operation", "name", "reason"]
        } else {
            &["time", "server", "tool", "reason"]
        };
        match decision.as_str() {
            Some("allowed") => Self::Other,
            Some(_) if needed.iter().all(|name| text(name)) => Self::Denial(DenialLine(fields)),
            _ => Self::Malformed,
        }
    }
}

impl DenialLine {
    /// The column headers for [`DenialLine::cells`].
    pub const HEADER: [&'static str; 8] = ["TIME", "POD", "SERVER", "TOOL", "DECISION", "REASON", "POLICY", "ENTRY"];

    /// Returns a field, or `-` if it is absent.
    fn field(&self, name: &str) -> &str {
        self.0.get(name).and_then(Value::as_str).filter(|text| !text.is_empty()).unwrap_or("-")
    }

    /// Returns the time of the call or connection, in RFC 3339 and UTC.
    pub fn time(&self) -> &str {
        self.field("time")
    }

    /// Returns the cells of a row for people. The server of a connection is its destination, the tool of another operation its method
    /// and what it names.
    pub fn cells(&self, namespace: &str, pod: &str) -> [String; 8] {
        let field = |name: &str| shown(self.field(name)).into_owned();
        [
            field("time"),
            format!("{namespace}/{pod}"),
            field(if self.0.contains_key("destination") { "destination" } else { "server" }),
            self.tool_cell(),
            field("decision"),
            self.reason_cell(),
            field("policy"),
            field("entry"),
        ]
    }

    /// Returns the tool; of another operation the method, with the name where that is not said by the method.
    fn tool_cell(&self) -> String {
        let (method, name) = (self.field("operation"), self.field("name"));
        let says_all = method == name || OperationKind::of_method(method) == OperationKind::Request;
        match method {
            "-" => shown(self.field("tool")).into_owned(),
            method if says_all => shown(method).into_owned(),
            method => format!("{} {}", shown(method), shown(name)),
        }
    }

    /// Returns the reason, with the name of the request for approval where there is one: `kubectl toolweir approve` takes it.
    fn reason_cell(&self) -> String {
        match self.field("approval") {
            "-" => shown(self.field("reason")).into_owned(),
            name => format!("{} ({})", shown(self.field("reason")), shown(name)),
        }
    }

    /// Returns one line of JSON: the audit line with namespace and pod.
    pub fn json(&self, namespace: &str, pod: &str) -> String {
        let mut fields = self.0.clone();
        fields.insert("namespace".to_owned(), namespace.into());
        fields.insert("pod".to_owned(), pod.into());
        Value::Object(fields).to_string()
    }
}

/// The position up to which a pod's log was read, by the timestamps of the container runtime. A stream can only be requested from a
/// whole second on, so a resumed stream repeats lines; [`Progress::take`] skips these.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// The latest time so far, and the number of lines with that time.
    latest: Option<(Timestamp, u64)>,
    /// The position at the beginning of the current stream.
    before: Option<(Timestamp, u64)>,
}

impl Progress {
    /// Begins a stream. Returns the time from which to request it: the beginning of a second.
    pub fn begin(&mut self) -> Option<Timestamp> {
        self.before = self.latest;
        // A client rounds a part of a second to the nearest, which may be later.
        self.latest.and_then(|(time, _)| Timestamp::from_second(time.as_second()).ok())
    }

    /// Returns the text of a line after its timestamp, or `None` if it was read before. A line without a timestamp is returned as it is.
    pub fn take<'a>(&mut self, line: &'a str) -> Option<&'a str> {
        let Some((time, text)) = line.split_once(' ').and_then(|(time, text)| Some((time.parse::<Timestamp>().ok()?, text)))
        else {
            return Some(line);
        };
        match &mut self.before {
            Some((before, _)) if time < *before => return None,
            Some((before, left)) if time == *before && *left > 0 => {
                *left -= 1;
                return None;
            }
            _ => {}
        }
        match &mut self.latest {
            Some((latest, many)) if time == *latest => *many += 1,
            Some((latest, _)) if time < *latest => {}
            latest => *latest = Some((time, 1)),
        }
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DENIED: &str = r#"{"time":"2026-11-24T17:08:44.414Z","server":"facebook","tool":"send_dm_to_user","decision":"denied","reason":"rate_limit","policy":"default/facebook","entry":"send_dm_to_user","outcome":"denied","latencyMs":0.185,"session":null,"argumentsSha256":"52f7"}"#;

    #[test]
    fn denials_are_told_from_other_lines() {
        let LogLine::Denial(denial) = LogLine::parse(DENIED) else { panic!("no denial") };
        assert_eq!(
            denial.cells("default", "agent-0").join(" "),
            "2026-11-24T17:08:44.414Z default/agent-0 facebook send_dm_to_user denied rate_limit default/facebook send_dm_to_user"
        );
        let json: Value = serde_json::from_str(&denial.json("default", "agent-0")).unwrap();
        assert_eq!((&json["pod"], &json["namespace"], &json["latencyMs"]), (&"agent-0".into(), &"default".into(), &0.185.into()));
        for (line, read) in [
            ("", LogLine::Other),
            ("thread 'main' panicked", LogLine::Other),
            (r#"{"timestamp":"2026-11-24T17:08:44Z","level":"INFO","message":"ready"}"#, LogLine::Other),
            (&DENIED.replace("\"denied\"", "\"allowed\""), LogLine::Other),
            (DENIED.split_at(60).0, LogLine::Malformed),
            (&DENIED.replace("\"facebook\"", "7"), LogLine::Malformed),
            (&DENIED.replace("\"denied\"", "7"), LogLine::Malformed),
        ] {
            assert_eq!(LogLine::parse(line), read, "{line}");
        }
    }

    #[test]
    fn a_call_that_waits_names_its_request_and_a_step_of_one_is_no_denial() {
        let waits = DENIED
            .replace("\"rate_limit\"", "\"approval_pending\"")
            .replace("\"latencyMs\"", "\"approval\":\"agents/pay-x7k2\u{1b}\",\"latencyMs\"");
        let LogLine::Denial(denial) = LogLine::parse(&waits.replace('\u{1b}', "\\u001b")) else { panic!("no denial") };
        assert_eq!(denial.cells("default", "agent-0")[5], "approval_pending (agents/pay-x7k2\u{fffd})");
        let LogLine::Denial(audited) = LogLine::parse(&DENIED.replace("\"denied\"", "\"would_ask\"")) else {
            panic!("no denial")
        };
        assert_eq!(audited.cells("default", "agent-0")[4], "would_ask");
        let step = r#"{"time":"2026-11-24T17:08:44.414Z","event":"approval","step":"denied","approval":"pay-x7k2","server":"bank","tool":"pay","by":"jane","reason":"no"}"#;
        assert_eq!(LogLine::parse(step), LogLine::Other);
    }

    #[test]
    fn a_connection_has_its_destination_for_a_server() {
        let line = r#"{"time":"2026-11-24T17:08:44.414Z","destination":"api.example.com:443","decision":"denied","reason":"not_allowed","policy":"agents/out","protocol":"tls"}"#;
        let LogLine::Denial(denial) = LogLine::parse(line) else { panic!("no denial") };
        assert_eq!(
            denial.cells("default", "agent-0").join(" "),
            "2026-11-24T17:08:44.414Z default/agent-0 api.example.com:443 - denied not_allowed agents/out -"
        );
        for (line, read) in [
            (line.replace("\"denied\"", "\"allowed\""), LogLine::Other),
            (line.replace("\"api.example.com:443\"", "null"), LogLine::Malformed),
            (line.replace("\"not_allowed\"", "1"), LogLine::Malformed),
        ] {
            assert_eq!(LogLine::parse(&line), read, "{line}");
        }
    }

    #[test]
    fn another_operation_has_its_method_and_what_it_names_for_a_tool() {
        for (method, name, cell) in [
            ("prompts/get", "review", "prompts/get review"),
            ("resources/read", "file:///a\\u001b", "resources/read file:///a\u{fffd}"),
            ("sampling/createMessage", "sampling", "sampling/createMessage"),
            ("logging/setLevel", "logging/setLevel", "logging/setLevel"),
        ] {
            let line = DENIED.replace("\"tool\":\"send_dm_to_user\"", &format!("\"operation\":\"{method}\",\"name\":\"{name}\""));
            let LogLine::Denial(denial) = LogLine::parse(&line) else { panic!("no denial: {line}") };
            assert_eq!(denial.cells("default", "agent-0")[3], cell);
        }
        let nameless = DENIED.replace("\"tool\":", "\"operation\":");
        assert_eq!(LogLine::parse(&nameless), LogLine::Malformed);
    }

    #[test]
    fn what_a_client_named_does_not_reach_the_terminal_as_it_is() {
        let LogLine::Denial(denial) =
            LogLine::parse(&DENIED.replace("send_dm_to_user", "x\\u001b[2J").replace("\"default/facebook\"", "null"))
        else {
            panic!("no denial")
        };
        let cells = denial.cells("default", "agent-0");
        assert_eq!((cells[3].as_str(), cells[6].as_str()), ("x\u{fffd}[2J", "-"));
        assert!(!denial.json("default", "agent-0").contains('\u{1b}'));
    }

    #[test]
    fn a_log_that_is_read_anew_gives_each_line_once() {
        let first = ["2026-01-01T00:00:01.1Z a", "2026-01-01T00:00:01.7Z b", "2026-01-01T00:00:01.7Z c"];
        let later = ["2026-01-01T00:00:01.7Z d", "2026-01-01T00:00:01.800000001Z e", "2026-01-01T00:00:01.75Z f"];
        let mut progress = Progress::default();
        assert_eq!(progress.begin(), None);
        let taken: Vec<&str> = first.iter().filter_map(|line| progress.take(line)).collect();
        assert_eq!(taken, ["a", "b", "c"]);
        for _ in 0..2 {
            assert_eq!(progress.begin(), Some("2026-01-01T00:00:01Z".parse().unwrap()));
            assert_eq!(first.iter().filter_map(|line| progress.take(line)).count(), 0);
        }
        let taken: Vec<&str> = later.iter().filter_map(|line| progress.take(line)).collect();
        // Lines of two streams of a container may be a little out of order: none is lost for that.
        assert_eq!(taken, ["d", "e", "f"]);
        assert_eq!(progress.take("no time"), Some("no time"));
    }
}
