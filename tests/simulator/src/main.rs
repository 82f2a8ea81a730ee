//! Many simulated sidecars in one process, on the policy stream of one real operator, over the sidecar's own client.
//!
//! Each opens a stream with the token of its pod, acknowledges every snapshot at once and enforces nothing. What happens is
//! told on stdout, a line of JSON for each event:
//!
//! - `connected`: every sidecar has acknowledged its first snapshot.
//! - `acknowledged`: the last one has acknowledged a version that others have already; with the times of the first, the middle
//!   and the last acknowledgement in milliseconds since 1970, to be held against the time at which a policy was changed. All
//!   sidecars are expected to have the same policies: those have the same version.
//! - `report`, for each line `report` on stdin: what is open, what was lost and refused so far, and who holds what.
//!
//! The simulator ends when stdin does.

mod sidecar;
mod tally;

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail};
use clap::Parser;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    sync::mpsc,
};
use toolweir_sidecar::control::{client::OperatorEndpoint, trust::Trust};
use tracing_subscriber::{filter::LevelFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{
    sidecar::{SharedSettings, SidecarEvent},
    tally::{FleetEvent, VersionTally},
};

/// Simulates many sidecars on the policy stream of one operator.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    /// Where the operator serves the policy stream.
    #[arg(long, value_name = "IP:PORT")]
    connect: SocketAddr,
    /// The name that its certificate must be for.
    #[arg(long, value_name = "NAME", default_value = "toolweir-operator.toolweir-system.svc")]
    server_name: String,
    /// The authorities to trust as the operator, in PEM.
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
    /// One sidecar a line: {"pod":"NAMESPACE/NAME","token":"..."}.
    #[arg(long, value_name = "FILE")]
    tokens: PathBuf,
    /// Over how many milliseconds the first connections are spread.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 2000)]
    spread: u64,
    /// How much to log to stderr.
    #[arg(long, default_value = "warn", value_name = "LEVEL")]
    log_level: LevelFilter,
}

/// The pod that a sidecar is in, as far as an operator can tell.
#[derive(Debug, Deserialize)]
struct SimulatedPod {
    pod: String,
    token: String,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let log = fmt::layer().with_writer(io::stderr).with_target(false).with_ansi(false);
    tracing_subscriber::registry().with(cli.log_level).with(log).init();
    // One thread: the cores are for the operator and the API server, which are what is measured.
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(&cli))
}

async fn run(cli: &Cli) -> anyhow::Result<()> {
    let authorities = fs::read_to_string(&cli.ca).with_context(|| format!("{}", cli.ca.display()))?;
    let pods = read_pods(&cli.tokens)?;
    let (sender, mut events) = mpsc::channel(1024);
    let shared = Arc::new(SharedSettings {
        endpoint: format!("https://{}", cli.connect).parse::<OperatorEndpoint>()?.with_server_name(&cli.server_name)?,
        trust: Mutex::new((Arc::new(Trust::from_pem(&authorities)?), authorities)),
        events: sender,
    });
    let mut seen = Seen::new(pods.len());
    let count = u32::try_from(pods.len())?;
    for (number, pod) in pods.into_iter().enumerate() {
        let delay = Duration::from_millis(cli.spread) * u32::try_from(number)? / count;
        tokio::spawn(sidecar::run(Arc::clone(&shared), number, pod.pod, pod.token, delay));
    }
    let mut commands = BufReader::new(tokio::io::stdin()).lines();
    loop {
        tokio::select! {
            // This function holds a sender of its own, so that the channel never ends.
            Some(event) = events.recv() => {
                if let Some(line) = seen.take(event) {
                    say(&line)?;
                }
            }
            command = commands.next_line() => match command?.as_deref() {
                Some("report") => say(&seen.report())?,
                Some(other) => tracing::warn!(command = other, "no command; there is `report`"),
                None => return Ok(()),
            },
        }
    }
}

fn read_pods(path: &Path) -> anyhow::Result<Vec<SimulatedPod>> {
    let text = fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let pods =
        lines.map(|(number, line)| serde_json::from_str(line).with_context(|| format!("{}:{}", path.display(), number + 1)));
    let pods: Vec<SimulatedPod> = pods.collect::<Result<_, _>>()?;
    if pods.is_empty() {
        bail!("{}: there is no token", path.display());
    }
    Ok(pods)
}

/// Says one event. At once, also where stdout is a pipe.
fn say(event: &Value) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{event}")?;
    stdout.flush()
}

/// The events of all sidecars, added up.
struct Seen {
    began: Instant,
    tally: VersionTally,
    open: usize,
    opened: u64,
    acknowledgements: u64,
    lost: BTreeMap<&'static str, u64>,
    refused: BTreeMap<&'static str, u64>,
    last_error: Option<String>,
}

impl Seen {
    fn new(sidecars: usize) -> Self {
        Self {
            began: Instant::now(),
            tally: VersionTally::new(sidecars),
            open: 0,
            opened: 0,
            acknowledgements: 0,
            lost: BTreeMap::new(),
            refused: BTreeMap::new(),
            last_error: None,
        }
    }

    /// Adds an event of a sidecar. Returns the line that it makes.
    fn take(&mut self, event: SidecarEvent) -> Option<Value> {
        match event {
            SidecarEvent::Opened => {
                self.open += 1;
                self.opened += 1;
            }
            SidecarEvent::Lost(how, error) => {
                self.open = self.open.saturating_sub(1);
                *self.lost.entry(how).or_default() += 1;
                self.last_error = Some(error);
            }
            SidecarEvent::Refused(fault, error) => {
                *self.refused.entry(fault).or_default() += 1;
                self.last_error = Some(error);
            }
            SidecarEvent::Acknowledged { sidecar, version, at } => {
                self.acknowledgements += 1;
                return self.tally.acknowledged(sidecar, &version, milliseconds(at)).map(|whole| self.event(&whole));
            }
        }
        None
    }

    fn event(&self, whole: &FleetEvent) -> Value {
        let count = self.tally.sidecars();
        match whole {
            FleetEvent::Connected { version } => {
                json!({"event": "connected", "count": count, "seconds": self.seconds(), "version": version})
            }
            FleetEvent::Acknowledged { version, first, middle, last } => {
                let at = humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(*last)).to_string();
                json!({
                    "event": "acknowledged", "count": count, "version": version,
                    "first_ms": first, "median_ms": middle, "last_ms": last, "at": at,
                })
            }
        }
    }

    fn report(&self) -> Value {
        let sidecars = self.tally.sidecars();
        json!({
            "event": "report", "count": sidecars, "seconds": self.seconds(), "open": self.open,
            "reconnects": self.opened.saturating_sub(self.tally.connected() as u64),
            "acknowledgements": self.acknowledgements, "versions": self.tally.versions(),
            "lost": self.lost, "refused": self.refused, "last_error": self.last_error,
        })
    }

    fn seconds(&self) -> f64 {
        (self.began.elapsed().as_secs_f64() * 1000.0).round() / 1000.0
    }
}

fn milliseconds(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
