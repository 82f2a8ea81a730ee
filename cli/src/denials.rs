//! `kubectl toolweir denials`: what is being turned away, read from the sidecars' logs.

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
    Form,
    audit::{Denial, Progress, Read},
    cluster::{Asked, Pod, PodKey, Scope, chain, is_forbidden, is_missing, list},
    table::Columns,
};

/// How many logs are read at once.
const AT_ONCE: usize = 16;
/// How many logs are followed at once. Each takes a connection to the API server.
pub const FOLLOWED: usize = 200;
/// How many denials of a pod are kept until all are sorted: the latest.
const KEPT: usize = 10_000;
/// The longest line that is read, in bytes; a longer one is none of the audit log.
const LONGEST: usize = 64 * 1024;
/// The pause before a log is followed anew, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whose denials.
    pub scope: Scope,
    /// Of this pod alone.
    pub pod: Option<String>,
    /// From how long ago on.
    pub since: Duration,
    /// Whether to go on.
    pub follow: bool,
    /// How to write them.
    pub form: Form,
}

/// Why a log could not be read to its end.
enum Broken {
    Api(kube::Error),
    Io(io::Error),
}

impl Broken {
    fn why(&self, asked: Asked<'_>) -> anyhow::Error {
        match self {
            Self::Api(error) => asked.failed(error),
            Self::Io(error) => anyhow!("the log breaks off: {}", chain(error)),
        }
    }
}

/// A denial and its pod.
type Found = (PodKey, Denial);

/// What became of reading a pod's log.
struct Log {
    pod: Pod,
    progress: Progress,
    denials: VecDeque<Denial>,
    malformed: u64,
    left_out: u64,
    broken: Option<Broken>,
}

/// Writes the denials so far in the order of their times, and with `follow` those that come, for ever. What could not be
/// read is told in `notes`.
///
/// # Errors
/// Pods cannot be listed, there is no such pod, a right is missing, or nothing can be written.
pub async fn denials(client: &Client, options: &Options, out: impl Write, mut notes: impl Write) -> anyhow::Result<()> {
    let pods = pods(client, options).await?;
    let logs = pods.into_iter().map(|pod| read(client, pod, options.since));
    let logs: Vec<Log> = stream::iter(logs).buffer_unordered(AT_ONCE).collect().await;
    let (mut malformed, mut left_out) = (0, 0);
    let (mut all, mut progress): (Vec<Found>, HashMap<String, Progress>) = Default::default();
    for log in logs {
        let asked = Asked { verb: "get", resource: "pods/log", namespace: Some(&log.pod.key.namespace) };
        match &log.broken {
            Some(Broken::Api(error)) if is_forbidden(error) => return Err(asked.failed(error)),
            // It has ended meanwhile.
            Some(Broken::Api(error)) if is_missing(error) => {}
            Some(broken) => writeln!(notes, "note: pod {}: {:#}", log.pod.key, broken.why(asked))?,
            None => {}
        }
        malformed += log.malformed;
        left_out += log.left_out;
        all.extend(log.denials.into_iter().map(|denial| (log.pod.key.clone(), denial)));
        progress.insert(log.pod.uid, log.progress);
    }
    all.sort_by(|(a_pod, a), (b_pod, b)| (a.time(), a_pod).cmp(&(b.time(), b_pod)));
    if left_out > 0 {
        writeln!(notes, "note: {left_out} earlier ones are left out; ask for a shorter time with --since")?;
    }
    if malformed > 0 {
        let lines = if malformed == 1 { "line" } else { "lines" };
        writeln!(notes, "note: {malformed} {lines} of the audit log could not be read")?;
    }
    let mut writer = Writer { out, form: options.form, columns: Columns::default(), begun: false };
    if all.is_empty() && !options.follow && options.form == Form::Text {
        writeln!(notes, "No denials in the last {}.", humantime::format_duration(options.since))?;
    }
    writer.all(&all)?;
    if options.follow { follow(client, options, progress, writer, notes).await } else { Ok(()) }
}

/// The pods whose logs are asked for.
async fn pods(client: &Client, options: &Options) -> anyhow::Result<Vec<Pod>> {
    let api = options.scope.pods(client);
    let Some(name) = &options.pod else {
        let asked = Asked { verb: "list", resource: "pods", namespace: options.scope.namespace() };
        let pods: Vec<KubePod> = list(&api, asked).await?;
        return Ok(pods.iter().map(Pod::from).filter(has_log).collect());
    };
    let Some(namespace) = options.scope.namespace() else {
        bail!("--pod names a pod of one namespace; write -n NAMESPACE, not -A")
    };
    let pod = crate::explain::find(client, namespace, name).await?;
    Ok(Some(pod).into_iter().filter(has_log).collect())
}

fn has_log(pod: &Pod) -> bool {
    pod.sidecar.as_ref().is_some_and(|sidecar| sidecar.started)
}

fn parameters() -> LogParams {
    LogParams { container: Some(SIDECAR_CONTAINER.to_owned()), timestamps: true, ..LogParams::default() }
}

fn whole_seconds(span: Duration) -> i64 {
    i64::try_from(span.as_secs().max(1)).unwrap_or(i64::MAX)
}

/// Reads the log of a pod as far as it goes now.
async fn read(client: &Client, pod: Pod, since: Duration) -> Log {
    let mut log = Log { pod, progress: Progress::default(), denials: VecDeque::new(), malformed: 0, left_out: 0, broken: None };
    let parameters = LogParams { since_seconds: Some(whole_seconds(since)), ..parameters() };
    log.broken = log.read(client, &parameters).await.err();
    log
}

impl Log {
    async fn read(&mut self, client: &Client, parameters: &LogParams) -> Result<(), Broken> {
        let mut lines = Lines::open(client, &self.pod.key, parameters).await?;
        while let Some(line) = lines.next(&mut self.progress).await? {
            match line {
                Read::Denial(denial) => {
                    if self.denials.len() == KEPT {
                        self.denials.pop_front();
                        self.left_out += 1;
                    }
                    self.denials.push_back(denial);
                }
                Read::Malformed => self.malformed += 1,
                Read::Other => {}
            }
        }
        Ok(())
    }
}

/// The lines of a log.
struct Lines {
    reader: std::pin::Pin<Box<dyn AsyncBufRead + Send>>,
    line: Vec<u8>,
}

impl Lines {
    async fn open(client: &Client, pod: &PodKey, parameters: &LogParams) -> Result<Self, Broken> {
        let api: Api<KubePod> = Api::namespaced(client.clone(), &pod.namespace);
        let log = api.log_stream(&pod.name, parameters).await.map_err(Broken::Api)?;
        Ok(Self { reader: Box::pin(log), line: Vec::new() })
    }

    /// The next line that was not read already; nothing at the end.
    async fn next(&mut self, progress: &mut Progress) -> Result<Option<Read>, Broken> {
        while next_line(&mut self.reader, &mut self.line).await.map_err(Broken::Io)? {
            if let Some(text) = progress.take(&String::from_utf8_lossy(&self.line)) {
                return Ok(Some(Read::line(text)));
            }
        }
        Ok(None)
    }
}

/// Reads a line without its end. Of one that is too long, the beginning. False at the end.
async fn next_line(reader: &mut (impl AsyncBufRead + Unpin), line: &mut Vec<u8>) -> io::Result<bool> {
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
        let room = LONGEST.saturating_sub(line.len()).min(part.len());
        line.extend_from_slice(part.get(..room).unwrap_or_default());
        let used = part.len() + usize::from(end.is_some());
        reader.consume_unpin(used);
        if end.is_some() {
            return Ok(true);
        }
    }
}

/// Writes denials.
struct Writer<W> {
    out: W,
    form: Form,
    columns: Columns,
    begun: bool,
}

impl<W: Write> Writer<W> {
    fn all(&mut self, denials: &[Found]) -> io::Result<()> {
        if self.form == Form::Text && !denials.is_empty() && !self.begun {
            self.columns.fit(&Denial::HEADER);
            for (pod, denial) in denials {
                self.columns.fit(&denial.cells(&pod.namespace, &pod.name));
            }
            writeln!(self.out, "{}", self.columns.line(&Denial::HEADER))?;
            self.begun = true;
        }
        for (pod, denial) in denials {
            let line = match self.form {
                Form::Text => self.columns.line(&denial.cells(&pod.namespace, &pod.name)),
                Form::Json => denial.json(&pod.namespace, &pod.name),
            };
            writeln!(self.out, "{line}")?;
        }
        self.out.flush()
    }
}

/// What comes from those who follow logs.
enum News {
    Denial(Found),
    Note(String),
    Fatal(anyhow::Error),
}

/// The pods of which the watch knows, by uid.
type Known = Arc<Mutex<HashMap<String, Pod>>>;

fn known(known: &Known) -> std::sync::MutexGuard<'_, HashMap<String, Pod>> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Follows the logs of all pods, those that come among them.
async fn follow<W: Write>(
    client: &Client,
    options: &Options,
    mut progress: HashMap<String, Progress>,
    mut writer: Writer<W>,
    mut notes: impl Write,
) -> anyhow::Result<()> {
    let (sender, mut news) = mpsc::channel(1024);
    let places = Arc::new(Semaphore::new(FOLLOWED));
    let pods: Known = Arc::default();
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
                News::Denial(denial) => writer.all(&[denial])?,
                News::Note(note) => writeln!(notes, "note: {note}")?,
                News::Fatal(error) => return Err(error),
            },
            Some(_) = followers.join_next() => {}
            event = events.next() => match event {
                Some(Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod))) => {
                    let pod = Pod::from(&pod);
                    let first = known(&pods).insert(pod.uid.clone(), pod.clone()).is_none_or(|before| !has_log(&before));
                    if !first || !has_log(&pod) {
                        continue;
                    }
                    if places.available_permits() == 0 && !told_full {
                        told_full = true;
                        writeln!(notes, "note: {FOLLOWED} logs are followed, and others wait for a place; ask for fewer with -n or --pod")?;
                    }
                    let follower = Follower {
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
                    known(&pods).remove(&Pod::from(&pod).uid);
                }
                Some(Ok(watcher::Event::Init | watcher::Event::InitDone)) => {}
                Some(Err(error)) => {
                    if let watcher::Error::InitialListFailed(api) | watcher::Error::WatchStartFailed(api) = &error
                        && is_forbidden(api)
                    {
                        return Err(Asked { verb: "watch", resource: "pods", namespace: options.scope.namespace() }.failed(api));
                    }
                    writeln!(notes, "note: pods that come are not seen for a while: {}", chain(&error))?;
                }
                None => bail!("the watch of the pods has ended"),
            },
        }
    }
}

/// Follows the log of one pod for as long as that is there.
struct Follower {
    client: Client,
    pod: Pod,
    pods: Known,
    progress: Progress,
    since: Duration,
    news: mpsc::Sender<News>,
}

impl Follower {
    async fn run(mut self, places: Arc<Semaphore>) {
        let Ok(_place) = places.acquire_owned().await else { return };
        let mut pause = PAUSES.0;
        while known(&self.pods).get(&self.pod.uid).is_some_and(|pod| !pod.over) {
            let mut parameters = LogParams { follow: true, ..parameters() };
            match self.progress.begin() {
                Some(time) => parameters.since_time = Some(time),
                None => parameters.since_seconds = Some(whole_seconds(self.since)),
            }
            let began = tokio::time::Instant::now();
            let read = self.read(&parameters).await;
            let asked = Asked { verb: "get", resource: "pods/log", namespace: Some(&self.pod.key.namespace) };
            match read {
                // The container ended, or the API server had enough: begun anew.
                Ok(()) => {}
                Err(Broken::Api(error)) if is_missing(&error) => return,
                Err(Broken::Api(error)) if is_forbidden(&error) => {
                    let _ = self.news.send(News::Fatal(asked.failed(&error))).await;
                    return;
                }
                Err(broken) => {
                    let note = format!("pod {}: {:#}; it is read anew", self.pod.key, broken.why(asked));
                    let _ = self.news.send(News::Note(note)).await;
                }
            }
            pause = if began.elapsed() > PAUSES.1 { PAUSES.0 } else { (pause * 2).min(PAUSES.1) };
            tokio::time::sleep(pause).await;
        }
    }
}

impl Follower {
    /// Reads the log until it ends, or nobody listens any more.
    async fn read(&mut self, parameters: &LogParams) -> Result<(), Broken> {
        let mut lines = Lines::open(&self.client, &self.pod.key, parameters).await?;
        while let Some(line) = lines.next(&mut self.progress).await? {
            let news = match line {
                Read::Denial(denial) => News::Denial((self.pod.key.clone(), denial)),
                Read::Malformed => News::Note(format!("pod {}: a line of the audit log could not be read", self.pod.key)),
                Read::Other => continue,
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

    fn denial(time: &str, tool: &str) -> Denial {
        let line = format!(
            r#"{{"time":"{time}","server":"bank","tool":"{tool}","decision":"denied","reason":"denied","policy":"agents/bank","entry":"{tool}"}}"#
        );
        match Read::line(&line) {
            Read::Denial(denial) => denial,
            other => panic!("{other:?}"),
        }
    }

    fn written(form: Form) -> String {
        let mut out = Vec::new();
        let mut writer = Writer { out: &mut out, form, columns: Columns::default(), begun: false };
        let pod = |name: &str| PodKey { namespace: "agents".to_owned(), name: name.to_owned() };
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
        assert_eq!(written(Form::Text), golden);
        let json = written(Form::Json);
        let lines: Vec<serde_json::Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((lines.len(), &lines[1]["pod"], &lines[1]["tool"]), (3, &"b".into(), &"pay_all".into()));
    }

    #[tokio::test]
    async fn lines_are_read_whole_and_long_ones_cut() {
        let text = format!("one\n\n{}\nlast", "x".repeat(LONGEST + 5));
        let mut reader = futures_util::io::BufReader::with_capacity(7, text.as_bytes());
        let (mut line, mut lengths) = (Vec::new(), Vec::new());
        while next_line(&mut reader, &mut line).await.unwrap() {
            lengths.push(line.len());
        }
        assert_eq!(lengths, [3, 0, LONGEST, 4]);
    }
}
