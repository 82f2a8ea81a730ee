//! The socket at which people of this machine decide (`--approvals-socket`). The kernel says who they are; the sidecar's own user is refused
//! unless it is allowed, since an agent that starts its sidecar is that user.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream, unix::UCred},
    sync::Semaphore,
    task::AbortHandle,
    time::{sleep, timeout},
};
use toolweir_approvals::{Decided, NotDecided, WaitingApproval};
use toolweir_crds::approval_request::ApprovalState;

use super::{
    Approvals, DecisionError, accounts,
    accounts::UnknownGroup,
    socket_args::ApprovalsSocketSettings,
    socket_file::{self, SocketFile, SocketFileError},
    socket_messages::{LONGEST_QUESTION, SocketAnswer, SocketQuestion, SocketRequest, check_reason},
};

/// Connections at once.
const CONNECTIONS: usize = 16;

/// The time that a question may take, and the reading of its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The time after which a connection is accepted again where that failed.
const AGAIN: Duration = Duration::from_millis(50);

/// Why people cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum ApprovalsSocketError {
    /// There is no such group.
    #[error("--approvals-group")]
    Group(#[from] UnknownGroup),
    /// There is no socket.
    #[error("--approvals-socket {}", .path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: SocketFileError,
    },
}

/// An open socket. It is closed, and its file removed, when this is dropped.
#[derive(Debug)]
pub struct ApprovalsSocket {
    serving: AbortHandle,
    _file: SocketFile,
}

impl Drop for ApprovalsSocket {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Opens the socket, if there is to be one: from now on people can be asked.
///
/// # Errors
/// There is no such group, or the socket cannot be made.
pub async fn open(
    settings: Option<&ApprovalsSocketSettings>,
    approvals: &Arc<Approvals>,
) -> Result<Option<ApprovalsSocket>, ApprovalsSocketError> {
    let Some(settings) = settings else { return Ok(None) };
    let group = settings.group.as_deref().map(accounts::group_id).transpose()?;
    let failed = |source| ApprovalsSocketError::File { path: settings.path.clone(), source };
    let (listener, file) = socket_file::listen(&settings.path, group).await.map_err(failed)?;
    let doorkeeper = Doorkeeper {
        own: rustix::process::geteuid().as_raw(),
        allow_own: settings.allow_same_user,
        refused: AtomicBool::default(),
    };
    let path = settings.path.display().to_string();
    if settings.allow_same_user {
        tracing::warn!(path, "the sidecar's own user may approve calls; an agent that is this user can approve its own");
    } else {
        tracing::info!(path, "people approve calls at a socket: toolweir-sidecar approvals --socket PATH");
    }
    approvals.ask_locally();
    let serving = tokio::spawn(serve(listener, doorkeeper, Arc::clone(approvals)));
    Ok(Some(ApprovalsSocket { serving: serving.abort_handle(), _file: file }))
}

/// Who may ask and decide, of those that the mode of the file lets connect.
#[derive(Debug)]
struct Doorkeeper {
    /// The sidecar's user.
    own: u32,
    allow_own: bool,
    /// Somebody was refused already.
    refused: AtomicBool,
}

impl Doorkeeper {
    /// Returns who somebody is, for the record.
    ///
    /// # Errors
    /// Why they may not decide.
    fn admit(&self, peer: io::Result<UCred>) -> Result<String, String> {
        let peer = peer.map_err(|error| format!("the system does not say who you are: {error}"))?;
        if peer.uid() != self.own || self.allow_own {
            return Ok(accounts::user(peer.uid()));
        }
        let user = accounts::user(peer.uid());
        if self.refused.swap(true, Ordering::Relaxed) {
            tracing::debug!(user, pid = peer.pid(), "the sidecar's own user may not approve calls");
        } else {
            tracing::warn!(user, pid = peer.pid(), "the sidecar's own user was refused at the socket of approvals");
        }
        Err(format!(
            "you are {user}, the user of the sidecar, and its agent may be the same user; approve as another user, or start the sidecar \
             with --approvals-allow-same-user"
        ))
    }
}

/// Answers for as long as it runs.
async fn serve(listener: UnixListener, doorkeeper: Doorkeeper, approvals: Arc<Approvals>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the socket of approvals cannot accept");
                sleep(AGAIN).await;
                continue;
            }
        };
        let place =
            Arc::clone(&places).try_acquire_owned().map_err(|_| "the sidecar answers as many as it can; try again".to_owned());
        let (place, by) = match place.and_then(|place| Ok((place, doorkeeper.admit(stream.peer_cred())?))) {
            Ok(admitted) => admitted,
            Err(why) => {
                // An empty queue holds it. Nobody waits for one who does not read.
                let _ = stream.try_write(&line(&SocketAnswer::Refused(why)));
                continue;
            }
        };
        let approvals = Arc::clone(&approvals);
        tokio::spawn(async move {
            converse(stream, by, &approvals).await;
            drop(place);
        });
    }
}

/// Answers one question.
async fn converse(mut stream: UnixStream, by: String, approvals: &Approvals) {
    let answer = match timeout(PATIENCE, question(&mut stream)).await {
        Ok(Ok(question)) => answer(question, by, approvals).await,
        Ok(Err(why)) => SocketAnswer::Refused(why),
        Err(_) => SocketAnswer::Refused(format!("no question came within {} s", PATIENCE.as_secs())),
    };
    match timeout(PATIENCE, stream.write_all(&line(&answer))).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "an answer on approvals was not read"),
        Err(_) => tracing::debug!("an answer on approvals was not read in time"),
    }
}

fn line(answer: &SocketAnswer) -> Vec<u8> {
    let mut line = serde_json::to_vec(answer).unwrap_or_default();
    line.push(b'\n');
    line
}

async fn question(stream: &mut UnixStream) -> Result<SocketQuestion, String> {
    let most = u64::try_from(LONGEST_QUESTION).unwrap_or(u64::MAX);
    let mut line = Vec::new();
    BufReader::new(stream.take(most)).read_until(b'\n', &mut line).await.map_err(|error| error.to_string())?;
    if !line.ends_with(b"\n") {
        return Err(format!("a question is one line of at most {LONGEST_QUESTION} bytes"));
    }
    serde_json::from_slice(&line).map_err(|error| format!("the question is not understood: {error}"))
}

async fn answer(question: SocketQuestion, by: String, approvals: &Approvals) -> SocketAnswer {
    let (name, approve, reason) = match question {
        SocketQuestion::List {} => return SocketAnswer::Waiting(waiting(approvals)),
        SocketQuestion::Approve { name } => (name, true, None),
        SocketQuestion::Deny { name, reason } => (name, false, reason),
    };
    if let Some(Err(why)) = reason.as_deref().map(check_reason) {
        return SocketAnswer::Refused(format!("the reason {why}"));
    }
    // Agents are told the name with the namespace of their pod.
    let is_named = |waiting: &&WaitingApproval| *waiting.name == *name || *approvals.shown_name(&waiting.name) == *name;
    let seconds = approvals.waiting().iter().find(is_named).map(|waiting| waiting.request.usable_seconds);
    match approvals.decide(&name, &Decided { approve, by, reason, until: None }).await {
        Ok(()) => SocketAnswer::Decided { seconds: seconds.unwrap_or_default() },
        Err(DecisionError::NotKept(why)) if !approve => {
            SocketAnswer::Undecided(format!("is denied, which a restart may forget, since it cannot be kept: {why}"))
        }
        Err(error) => SocketAnswer::Undecided(undecided(error)),
    }
}

/// Why a request is not decided, after its name.
fn undecided(error: DecisionError) -> String {
    match error {
        DecisionError::NotDecided(NotDecided::Unknown) => {
            "is not the name of a request; `list` has those that wait, and the sidecar forgets old ones".to_owned()
        }
        DecisionError::NotDecided(NotDecided::NotPending(state)) => match state {
            ApprovalState::Expired => "has expired undecided; the agent's next call asks anew".to_owned(),
            ApprovalState::Voided => {
                "is void: a policy that asks has changed, or its approval could not be written; the agent's next call asks anew"
                    .to_owned()
            }
            ApprovalState::Denied => "is denied already; a decision is not changed".to_owned(),
            ApprovalState::Used => "is approved already, and the call went through".to_owned(),
            ApprovalState::Approved | ApprovalState::Pending => "is approved already; a decision is not changed".to_owned(),
        },
        DecisionError::NotKept(why) => format!("is not approved but void, since that cannot be kept: {why}"),
    }
}

fn waiting(approvals: &Approvals) -> Vec<SocketRequest> {
    let now = SystemTime::now();
    let row = |waiting: &WaitingApproval| {
        let asked = humantime::parse_rfc3339(&waiting.request.requested_at).unwrap_or(now);
        SocketRequest {
            name: waiting.name.to_string(),
            request: (*waiting.request).clone(),
            waits: now.duration_since(asked).unwrap_or_default().as_secs(),
            expires: waiting.until.duration_since(now).unwrap_or_default().as_secs(),
        }
    };
    approvals.waiting().iter().map(row).collect()
}
