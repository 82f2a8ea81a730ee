//! `kubectl toolweir denials`: shows denied calls and connections from the sidecars' audit logs.

use std::{
    collections::{HashMap, VecDeque},
    io::{self, Write},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{anyhow, bail};
use futures_util::{AsyncBufRead, AsyncBufReadExt, StreamExt, stream};
use k8s_openapi::api::core::v1::Pod as KubePod;
use kube::{
    Api, Client,
    api::LogParams,
    runtime::{WatchStreamExt, watcher},
};
use tokio::sync::{Semaphore, mpsc};
use toolweir_crds::SIDECAR_CONTAINER;

use crate::{
    OutputFormat,
    audit::{DenialLine, LogLine, Progress},
    cluster::{ApiAccess, NamespaceScope, NamespacedName, PodInfo, chain, is_forbidden, is_missing, list},
    table::{Columns, safe_json},
};

/// Number of logs that are read at once.
const AT_ONCE: usize = 16;
/// Number of logs that are followed at once. Each uses a connection to the API server.
pub const FOLLOWED: usize = 200;
/// Number of denials that are kept for each pod until all are sorted; the latest ones are kept.
const MAX_DENIALS: usize = 10_000;
/// Maximum length of a line in bytes. A longer one is not an audit line, and is cut.
const MAX_LINE: usize = 64 * 1024;
/// The first and the longest pause before a log is followed again.
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// The denials to show, and how.
#[derive(Clone, Debug)]
pub struct DenialsQuery {
    /// The namespaces.
    pub scope: NamespaceScope,
    /// Only this pod.
    pub pod: Option<String>,
    /// How far to look back.
    pub since: Duration,
    /// Keep showing new denials.
    pub follow: bool,
    /// The output format.
    pub form: OutputFormat,
}

/// An error that ended the reading of a log.
enum LogError {
    Api(kube::Error),
    Io(io::Error),
}

impl LogError {
    fn describe(&self, access: ApiAccess<'_>) -> anyhow::Error {
        match self {
            Self::Api(error) => access.failed(error),
            Self::Io(error) => anyhow!("reading the log failed: {}", chain(error)),
        }
    }
}

/// A denial and its pod.
type PodDenial = (NamespacedName, DenialLine);

/// The result of reading a pod's log.
struct PodLog {
    pod: PodInfo,
    progress: Progress,
    denials: VecDeque<DenialLine>,
    malformed: u64,
    left_out: u64,
    broken: Option<LogError>,
}

/// Writes the denials so far, sorted by time. With `follow`, it then writes new ones until an error occurs. `notes` gets a note about
/// everything that could not be read.
///
/// # Errors
/// Pods cannot be listed, the pod does not exist, a right is missing, or the output cannot be written.
pub async fn denials(client: &Client, options: &DenialsQuery, out: impl Write, mut notes: impl Write) -> anyhow::Result<()> {
    let pods = pods(client, options).await?;
    let logs = pods.into_iter().map(|pod| read(client, pod, options.since));
    let logs: Vec<PodLog> = stream::iter(logs).buffer_unordered(AT_ONCE).collect().await;
    let (mut malformed, mut left_out) = (0, 0);
    let (mut all, mut progress): (Vec<PodDenial>, HashMap<String, Progress>) = Default::default();
    for log in logs {
        let access = ApiAccess { verb: "get", resource: "pods/log", namespace: Some(&log.pod.key.namespace) };
        match &log.broken {
            Some(LogError::Api(error)) if is_forbidden(error) => return Err(access.failed(error)),
            // The pod has ended meanwhile.
            Some(LogError::Api(error)) if is_missing(error) => {}
            Some(broken) => writeln!(notes, "note: pod {}: {:#}", log.pod.key, broken.describe(access))?,
            None => {}
        }
        malformed += log.malformed;
        left_out += log.left_out;
        all.extend(log.denials.into_iter().map(|denial| (log.pod.key.clone(), denial)));
        progress.insert(log.pod.uid, log.progress);
    }
    all.sort_by(|(a_pod, a), (b_pod, b)| (a.time(), a_pod).cmp(&(b.time(), b_pod)));
    if left_out > 0 {
        writeln!(notes, "note: {left_out} earlier denials are not shown; use a shorter --since")?;
    }
    if malformed > 0 {
        let lines = if malformed == 1 { "line" } else { "lines" };
        writeln!(notes, "note: {malformed} {lines} of the audit log could not be read")?;
    }
    let mut writer = DenialWriter { out, form: options.form, columns: Columns::default(), begun: false };
    if all.is_empty() && !options.follow && options.form == OutputFormat::Text {
        writeln!(notes, "No denials in the last {}.", humantime::format_duration(options.since))?;
    }
    writer.all(&all)?;
    if options.follow { follow(client, options, progress, writer, notes).await } else { Ok(()) }
}

/// Returns the pods whose logs are to be read.
async fn pods(client: &Client, options: &DenialsQuery) -> anyhow::Result<Vec<PodInfo>> {
    let api = options.scope.pods(client);
    let Some(name) = &options.pod else {
        let access = ApiAccess { verb: "list", resource: "pods", namespace: options.scope.namespace() };
        let pods: Vec<KubePod> = list(&api, access).await?;
        return Ok(pods.iter().map(PodInfo::from).filter(has_log).collect());
    };
    let Some(namespace) = options.scope.namespace() else { bail!("--pod needs one namespace; write -n NAMESPACE instead of -A") };
    let pod = crate::explain::find(client, namespace, name).await?;
    Ok(Some(pod).into_iter().filter(has_log).collect())
}

/// Returns true if the sidecar of a pod has a log.
pub(crate) fn has_log(pod: &PodInfo) -> bool {
    pod.sidecar.as_ref().is_some_and(|sidecar| sidecar.started)
}

fn parameters() -> LogParams {
    LogParams { container: Some(SIDECAR_CONTAINER.to_owned()), timestamps: true, ..LogParams::default() }
}

/// Returns a span in whole seconds, at least one, as the API server takes it.
pub(crate) fn whole_seconds(span: Duration) -> i64 {
    i64::try_from(span.as_secs().max(1)).unwrap_or(i64::MAX)
}

/// Reads the current log of a pod.
async fn read(client: &Client, pod: PodInfo, since: Duration) -> PodLog {
    let mut log =
        PodLog { pod, progress: Progress::default(), denials: VecDeque::new(), malformed: 0, left_out: 0, broken: None };
    let parameters = LogParams { since_seconds: Some(whole_seconds(since)), ..parameters() };
    log.broken = log.read(client, &parameters).await.err();
    log
}

impl PodLog {
    async fn read(&mut self, client: &Client, parameters: &LogParams) -> Result<(), LogError> {
        let mut lines = LogLines::open(client, &self.pod.key, parameters).await?;
        while let Some(line) = lines.next(&mut self.progress).await? {
            match line {
                LogLine::Denial(denial) => {
                    if self.denials.len() == MAX_DENIALS {
                        self.denials.pop_front();
                        self.left_out += 1;
                    }
                    self.denials.push_back(denial);
                }
                LogLine::Malformed => self.malformed += 1,
                LogLine::Other => {}
            }
        }
        Ok(())
    }
}

/// The lines of a log.
struct LogLines {
    reader: std::pin::Pin<Box<dyn AsyncBufRead + Send>>,
    line: Vec<u8>,
}

impl LogLines {
    async fn open(client: &Client, pod: &NamespacedName, parameters: &LogParams) -> Result<Self, LogError> {
        let api: Api<KubePod> = Api::namespaced(client.clone(), &pod.namespace);
        let log = api.log_stream(&pod.name, parameters).await.map_err(LogError::Api)?;
        Ok(Self { reader: Box::pin(log), line: Vec::new() })
    }

    /// Returns the next line that was not read before, or `None` at the end.
    async fn next(&mut self, progress: &mut Progress) -> Result<Option<LogLine>, LogError> {
        while next_line(&mut self.reader, &mut self.line).await.map_err(LogError::Io)? {
            if let Some(text) = progress.take(&String::from_utf8_lossy(&self.line)) {
                return Ok(Some(LogLine::parse(text)));
            }
        }
        Ok(None)
    }
}

/// Reads a line without its line end, at most [`MAX_LINE`] bytes of it. Returns false at the end of the stream.
pub(crate) async fn next_line(reader: &mut (impl AsyncBufRead + Unpin), line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let mut any = false;
    loop {
        let buffer = reader.fill_buf().await?;
        if buffer.is_empty() {
            return Ok(any);
        }
        any = true;
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let part = buffer.get(..end.unwrap_or(buffer.len())).unwrap_or_default();
        let room = MAX_LINE.saturating_sub(line.len()).min(part.len());
        line.extend_from_slice(part.get(..room).unwrap_or_default());
        let used = part.len() + usize::from(end.is_some());
        reader.consume_unpin(used);
        if end.is_some() {
            return Ok(true);
        }
    }
}

/// Writes denials in the output format.
struct DenialWriter<W> {
    out: W,
    form: OutputFormat,
    columns: Columns,
    begun: bool,
}

impl<W: Write> DenialWriter<W> {
    fn all(&mut self, denials: &[PodDenial]) -> io::Result<()> {
        if self.form == OutputFormat::Text && !denials.is_empty() && !self.begun {
            self.columns.fit(&DenialLine::HEADER);
            for (pod, denial) in denials {
                self.columns.fit(&denial.cells(&pod.namespace, &pod.name));
            }
            writeln!(self.out, "{}", self.columns.line(&DenialLine::HEADER))?;
            self.begun = true;
        }
        for (pod, denial) in denials {
            let line = match self.form {
                OutputFormat::Text => self.columns.line(&denial.cells(&pod.namespace, &pod.name)),
                OutputFormat::Json => safe_json(&denial.json(&pod.namespace, &pod.name)),
            };
            writeln!(self.out, "{line}")?;
        }
        self.out.flush()
    }
}

/// An event from a [`LogFollower`].
enum FollowEvent {
    Denial(PodDenial),
    Note(String),
    Fatal(anyhow::Error),
}

/// The pods that the watch has reported, by uid.
type KnownPods = Arc<Mutex<HashMap<String, PodInfo>>>;

fn known(known: &KnownPods) -> std::sync::MutexGuard<'_, HashMap<String, PodInfo>> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Follows the logs of all pods, including new ones.
async fn follow<W: Write>(
    client: &Client,
    options: &DenialsQuery,
    mut progress: HashMap<String, Progress>,
    mut writer: DenialWriter<W>,
    mut notes: impl Write,
) -> anyhow::Result<()> {
    let (sender, mut news) = mpsc::channel(1024);
    let places = Arc::new(Semaphore::new(FOLLOWED));
    let pods: KnownPods = Arc::default();
    let mut followers = tokio::task::JoinSet::new();
    let mut config = watcher::Config::default();
    if let Some(name) = &options.pod {
        config = config.fields(&format!("metadata.name={name}"));
    }
    let mut events = std::pin::pin!(watcher(options.scope.pods(client), config).default_backoff());
    let mut told_full = false;
    loop {
        tokio::select! {
            Some(news) = news.recv() => match news {
                FollowEvent::Denial(denial) => writer.all(&[denial])?,
                FollowEvent::Note(note) => writeln!(notes, "note: {note}")?,
                FollowEvent::Fatal(error) => return Err(error),
            },
            Some(_) = followers.join_next() => {}
            event = events.next() => match event {
                Some(Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod))) => {
                    let pod = PodInfo::from(&pod);
                    let first = known(&pods).insert(pod.uid.clone(), pod.clone()).is_none_or(|before| !has_log(&before));
                    if !first || !has_log(&pod) {
                        continue;
                    }
                    if places.available_permits() == 0 && !told_full {
                        told_full = true;
                        writeln!(notes, "note: only {FOLLOWED} logs are followed at once, and other pods wait; select fewer with -n or --pod")?;
                    }
                    let follower = LogFollower {
                        client: client.clone(),
                        progress: progress.remove(&pod.uid).unwrap_or_default(),
                        pod,
                        pods: Arc::clone(&pods),
                        since: options.since,
                        news: sender.clone(),
                    };
                    followers.spawn(follower.run(Arc::clone(&places)));
                }
                Some(Ok(watcher::Event::Delete(pod))) => {
                    known(&pods).remove(&PodInfo::from(&pod).uid);
                }
                Some(Ok(watcher::Event::Init | watcher::Event::InitDone)) => {}
                Some(Err(error)) => {
                    if let watcher::Error::InitialListFailed(api) | watcher::Error::WatchStartFailed(api) = &error
                        && is_forbidden(api)
                    {
                        return Err(ApiAccess { verb: "watch", resource: "pods", namespace: options.scope.namespace() }.failed(api));
                    }
                    writeln!(notes, "note: the watch for new pods is interrupted: {}", chain(&error))?;
                }
                None => bail!("the watch for new pods has ended"),
            },
        }
    }
}

/// Follows the log of one pod until the pod is gone.
struct LogFollower {
    client: Client,
    pod: PodInfo,
    pods: KnownPods,
    progress: Progress,
    since: Duration,
    news: mpsc::Sender<FollowEvent>,
}

impl LogFollower {
    async fn run(mut self, places: Arc<Semaphore>) {
        let Ok(_place) = places.acquire_owned().await else { return };
        let mut pause = RETRY_PAUSES.0;
        while known(&self.pods).get(&self.pod.uid).is_some_and(|pod| !pod.ended) {
            let mut parameters = LogParams { follow: true, ..parameters() };
            match self.progress.begin() {
                Some(time) => parameters.since_time = Some(time),
                None => parameters.since_seconds = Some(whole_seconds(self.since)),
            }
            let began = tokio::time::Instant::now();
            let read = self.read(&parameters).await;
            let access = ApiAccess { verb: "get", resource: "pods/log", namespace: Some(&self.pod.key.namespace) };
            match read {
                // The container ended, or the API server closed the stream: follow it again.
                Ok(()) => {}
                Err(LogError::Api(error)) if is_missing(&error) => return,
                Err(LogError::Api(error)) if is_forbidden(&error) => {
                    let _ = self.news.send(FollowEvent::Fatal(access.failed(&error))).await;
                    return;
                }
                Err(broken) => {
                    let note = format!("pod {}: {:#}; retrying", self.pod.key, broken.describe(access));
                    let _ = self.news.send(FollowEvent::Note(note)).await;
                }
            }
            pause = if began.elapsed() > RETRY_PAUSES.1 { RETRY_PAUSES.0 } else { (pause * 2).min(RETRY_PAUSES.1) };
            tokio::time::sleep(pause).await;
        }
    }
}

impl LogFollower {
    /// Reads the log until it ends or the receiver is closed.
    async fn read(&mut self, parameters: &LogParams) -> Result<(), LogError> {
        let mut lines = LogLines::open(&self.client, &self.pod.key, parameters).await?;
        while let Some(line) = lines.next(&mut self.progress).await? {
            let news = match line {
                LogLine::Denial(denial) => FollowEvent::Denial((self.pod.key.clone(), denial)),
                LogLine::Malformed => {
                    FollowEvent::Note(format!("pod {}: a line of the audit log could not be read", self.pod.key))
                }
                LogLine::Other => continue,
            };
            if self.news.send(news).await.is_err() {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denial(time: &str, tool: &str) -> DenialLine {
        let line = format!(
            r#"{{"time":"{time}","server":"bank","tool":"{tool}","decision":"denied","reason":"denied","policy":"agents/bank","entry":"{tool}"}}"#
        );
        match LogLine::parse(&line) {
            LogLine::Denial(denial) => denial,
            other => panic!("{other:?}"),
        }
    }

    fn written(form: OutputFormat) -> String {
        let mut out = Vec::new();
        let mut writer = DenialWriter { out: &mut out, form, columns: Columns::default(), begun: false };
        let pod = |name: &str| NamespacedName { namespace: "agents".to_owned(), name: name.to_owned() };
        let first = [
            (pod("social-1"), denial("2026-11-24T17:08:44.414Z", "pay")),
            (pod("b"), denial("2026-11-24T17:08:45.001Z", "pay_all")),
        ];
        writer.all(&first).unwrap();
        writer.all(&[(pod("social-10"), denial("2026-11-24T17:09:00.000Z", "pay"))]).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_denial_is_a_line() {
        let golden = "\
TIME                      POD              SERVER  TOOL     DECISION  REASON  POLICY       ENTRY
2026-11-24T17:08:44.414Z  agents/social-1  bank    pay      denied    denied  agents/bank  pay
2026-11-24T17:08:45.001Z  agents/b         bank    pay_all  denied    denied  agents/bank  pay_all
2026-11-24T17:09:00.000Z  agents/social-10  bank    pay      denied    denied  agents/bank  pay
";
        assert_eq!(written(OutputFormat::Text), golden);
        let json = written(OutputFormat::Json);
        let lines: Vec<serde_json::Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((lines.len(), &lines[1]["pod"], &lines[1]["tool"]), (3, &"b".into(), &"pay_all".into()));
    }

    #[tokio::test]
    async fn lines_are_read_whole_and_long_ones_cut() {
        let text = format!("one\n\n{}\nlast", "x".repeat(MAX_LINE + 5));
        let mut reader = futures_util::io::BufReader::with_capacity(7, text.as_bytes());
        let (mut line, mut lengths) = (Vec::new(), Vec::new());
        while next_line(&mut reader, &mut line).await.unwrap() {
            lengths.push(line.len());
        }
        assert_eq!(lengths, [3, 0, MAX_LINE, 4]);
    }
}
