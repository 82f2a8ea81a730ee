//! `toolweir-sidecar approvals`: what waits at the socket of a running sidecar, and decisions of people.

use std::{
    fs,
    io::{self, BufRead, BufReader, ErrorKind, Read, Write},
    os::unix::{fs::MetadataExt, net::UnixStream},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{anyhow, bail};
use clap::{Args, Subcommand};
use socket2::{Domain, SockAddr, Socket, Type};
use toolweir_crds::{
    approval_request::{ApprovalPolicy, ShownValue},
    text::{one_word, safe_json, shown},
};

use super::{
    accounts,
    socket_messages::{LONGEST_ANSWER, SocketAnswer, SocketQuestion, SocketRequest, check_reason},
};

/// The time that connecting, a question and its answer may take each. A decision counts once it is on disk.
const PATIENCE: Duration = Duration::from_secs(15);

/// The exit code where a request cannot be decided.
const UNDECIDED: u8 = 3;

/// The arguments of `approvals`.
#[derive(Debug, Args)]
pub struct ApprovalsArgs {
    /// The socket of a sidecar that runs with --approvals-socket PATH.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    #[command(subcommand)]
    action: Option<ApprovalsAction>,
}

#[derive(Debug, Subcommand)]
enum ApprovalsAction {
    /// List the calls that wait for a person, with what their policies show of them. This is the default.
    List,
    /// Approve a call: it goes through once.
    Approve {
        /// The request, as the list names it.
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Deny a call: the agent is told so.
    Deny {
        /// The request, as the list names it.
        #[arg(value_name = "ID")]
        id: String,
        /// Why, for the agent.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
}

impl ApprovalsArgs {
    /// Asks the sidecar, and prints what it says. The exit code is 3 where a request cannot be decided.
    ///
    /// # Errors
    /// The sidecar cannot be asked, or refuses.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let (question, id) = match self.action.unwrap_or(ApprovalsAction::List) {
            ApprovalsAction::List => (SocketQuestion::List {}, String::new()),
            ApprovalsAction::Approve { id } => (SocketQuestion::Approve { name: id.clone() }, id),
            ApprovalsAction::Deny { id, reason } => {
                if let Some(reason) = &reason {
                    check_reason(reason).map_err(|why| anyhow!("--reason {why}"))?;
                }
                (SocketQuestion::Deny { name: id.clone(), reason }, id)
            }
        };
        let id = shown(&id);
        let answer = ask(&self.socket, &question)?;
        let (text, code) = match (answer, question) {
            (SocketAnswer::Waiting(requests), SocketQuestion::List {}) => {
                if requests.is_empty() {
                    writeln!(io::stderr(), "no call waits for a person")?;
                }
                (listed(&requests), ExitCode::SUCCESS)
            }
            (SocketAnswer::Decided { seconds }, SocketQuestion::Approve { .. }) => {
                (format!("approved {id}; the call goes through once, within {}\n", span(seconds)), ExitCode::SUCCESS)
            }
            (SocketAnswer::Decided { seconds }, SocketQuestion::Deny { .. }) => {
                (format!("denied {id}; the same call is denied without asking for {}\n", span(seconds)), ExitCode::SUCCESS)
            }
            (SocketAnswer::Undecided(why), _) => {
                writeln!(io::stderr(), "toolweir-sidecar: {id} {}", shown(&why))?;
                (String::new(), ExitCode::from(UNDECIDED))
            }
            (SocketAnswer::Refused(why), _) => bail!("{}", shown(&why)),
            _ => bail!("{}: what listens there is no sidecar of this version", self.socket.display()),
        };
        match io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
            // The reader of the output has closed the pipe.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(code),
            written => Ok(written.map(|()| code)?),
        }
    }
}

fn ask(path: &Path, question: &SocketQuestion) -> anyhow::Result<SocketAnswer> {
    let mut stream = connect(path).map_err(|error| unreachable(path, &error))?;
    let failed = |error: &io::Error| anyhow!("{}: the sidecar does not answer: {error}", path.display());
    let mut line = serde_json::to_string(question)?;
    line.push('\n');
    // A sidecar that refuses its peer reads no question, and may have hung up; its answer says why.
    let asked = stream.write_all(line.as_bytes());
    let mut answer = Vec::new();
    let most = u64::try_from(LONGEST_ANSWER).unwrap_or(u64::MAX);
    let read = BufReader::new(stream.take(most)).read_until(b'\n', &mut answer);
    if !answer.ends_with(b"\n") {
        let end = || io::Error::new(ErrorKind::UnexpectedEof, "the connection ended");
        return Err(failed(&read.err().or(asked.err()).unwrap_or_else(end)));
    }
    serde_json::from_slice(&answer).map_err(|_| anyhow!("{}: what listens there is no sidecar of this version", path.display()))
}

fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Connecting waits where the queue of the listener is full.
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(std::os::fd::OwnedFd::from(socket).into())
}

/// Why a sidecar cannot be reached, and the remedy.
fn unreachable(path: &Path, error: &io::Error) -> anyhow::Error {
    let at = path.display();
    match error.kind() {
        ErrorKind::NotFound => {
            anyhow!("{at}: there is no socket; start the sidecar with --approvals-socket {at}, or name the socket that it has")
        }
        ErrorKind::ConnectionRefused => anyhow!("{at}: nobody listens; the sidecar of this socket has ended"),
        ErrorKind::PermissionDenied => match fs::metadata(path) {
            Ok(file) => anyhow!(
                "{at}: you may not connect; it is for {} and the group {}, and a new member of a group must log in again",
                accounts::user(file.uid()),
                accounts::group(file.gid())
            ),
            Err(_) => anyhow!("{at}: you may not enter its folder"),
        },
        _ => anyhow!("{at}: {error}"),
    }
}

/// The requests as a table: a line each, which begins with the name.
fn listed(requests: &[SocketRequest]) -> String {
    let heading = ["ID", "TOOL", "SERVER", "WAITS", "EXPIRES", "POLICIES", "ABOUT"].map(str::to_owned);
    let row = |asked: &SocketRequest| {
        let SocketRequest { name, request, waits, expires } = asked;
        let policies: Vec<String> = request.policies.iter().map(policy_name).collect();
        let values = request.shown.iter().map(value);
        let message = Some(shown(&request.message).into_owned()).filter(|message| !message.is_empty());
        [
            one_word(name).into_owned(),
            one_word(&request.tool).into_owned(),
            one_word(&request.server).into_owned(),
            span(*waits),
            span(*expires),
            policies.join(","),
            message.into_iter().chain(values).collect::<Vec<_>>().join(" "),
        ]
    };
    let rows: Vec<[String; 7]> = std::iter::once(heading).chain(requests.iter().map(row)).collect();
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..6).filter_map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (at, cell) in row.iter().enumerate() {
            line.push_str(&format!("{cell:0$}  ", widths.get(at).copied().unwrap_or_default()));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn quoted(text: &str) -> String {
    safe_json(&serde_json::Value::from(text).to_string())
}

fn policy_name(policy: &ApprovalPolicy) -> String {
    let ApprovalPolicy { namespace, name, .. } = policy;
    if namespace.is_empty() { one_word(name).into_owned() } else { format!("{}/{}", one_word(namespace), one_word(name)) }
}

/// A value that policies show, in quotes, so that it cannot be taken for another one.
fn value(value: &ShownValue) -> String {
    let ShownValue { expression, value, cut } = value;
    format!("{}={}{}", shown(expression), quoted(value), if *cut { " (cut)" } else { "" })
}

/// Seconds such as `9m48s`.
fn span(seconds: u64) -> String {
    humantime::format_duration(Duration::from_secs(seconds)).to_string().replace(' ', "")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use toolweir_crds::approval_request::MCPApprovalSpec;

    use super::*;

    fn request(name: &str, tool: &str, shown: &[(&str, &str, bool)]) -> SocketRequest {
        let policy = |namespace: &str, name: &str| ApprovalPolicy {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ..ApprovalPolicy::default()
        };
        let shown = shown.iter().map(|(expression, value, cut)| ShownValue {
            expression: (*expression).to_owned(),
            value: (*value).to_owned(),
            cut: *cut,
        });
        let request = MCPApprovalSpec {
            server: "bank".to_owned(),
            tool: tool.to_owned(),
            policies: vec![policy("agents", "invoices"), policy("", "guard")],
            message: "Over 500.".to_owned(),
            shown: shown.collect(),
            ..MCPApprovalSpec::default()
        };
        SocketRequest { name: name.to_owned(), request, waits: 12, expires: 588 }
    }

    #[test]
    fn a_line_each_begins_with_the_name() {
        let requests = [
            request("pay-invoice-x7k2bcdfgh", "pay_invoice", &[("args.amount", "1200", false), ("args.payee", "ACME", true)]),
            request("call-x", "a b", &[]),
        ];
        assert_eq!(
            listed(&requests),
            "ID                      TOOL         SERVER  WAITS  EXPIRES  POLICIES               ABOUT\n\
             pay-invoice-x7k2bcdfgh  pay_invoice  bank    12s    9m48s    agents/invoices,guard  Over 500. args.amount=\"1200\" args.payee=\"ACME\" (cut)\n\
             call-x                  \"a b\"        bank    12s    9m48s    agents/invoices,guard  Over 500.\n"
        );
        assert_eq!(listed(&[]).lines().count(), 1);
    }

    /// What an agent chooses looks like nothing else, and does not move the cursor.
    #[test]
    fn values_of_agents_stay_values() {
        let evil = "1\" args.payee=\"me\u{1b}[2K\n\u{202e}";
        let line = value(&ShownValue { expression: "args.amount".to_owned(), value: evil.to_owned(), cut: false });
        assert_eq!(line, r#"args.amount="1\" args.payee=\"me\u001b[2K\n\u202e""#);
        let rows = listed(&[request("x", "pay\u{1b}]0;\u{7}\n  ok", &[("args.a", evil, false)])]);
        assert_eq!(rows.lines().count(), 2);
        assert!(!rows.replace('\n', "").contains(|c: char| c.is_control() || c == '\u{202e}'), "{rows:?}");
    }

    #[test]
    fn what_cannot_be_reached_is_said_with_the_remedy() {
        let said = |path: &str| ask(Path::new(path), &SocketQuestion::List {}).unwrap_err().to_string();
        assert_eq!(
            said("/nowhere/toolweir.sock"),
            "/nowhere/toolweir.sock: there is no socket; start the sidecar with --approvals-socket /nowhere/toolweir.sock, or name the \
             socket that it has"
        );
        assert!(said("/etc/passwd").starts_with("/etc/passwd: nobody listens"), "{}", said("/etc/passwd"));
    }
}
