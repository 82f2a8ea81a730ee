//! Policies from local files: read, compiled, and read again when they change.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

pub use toolweir_crds::policy_files::files;
use toolweir_crds::{
    FileError, ToolPins,
    policy_files::{self, file_error},
    stream::PolicyProblem,
};
pub use toolweir_engine::policy_files::Urls;
use toolweir_engine::{
    CompileOptions, Engine, Memory,
    policy_files::{CompiledFiles, compile_files},
};

use crate::{
    audit::sha256,
    governor::Governor,
    in_force::{InForce, PolicyView},
    server_metrics::ServerMetrics,
};

/// The time between two looks at the files.
const LOOK: Duration = Duration::from_millis(250);

/// The policies of files, compiled.
#[derive(Debug)]
pub struct Loaded {
    /// The policies, compiled.
    pub engine: Engine,
    /// The policies, for display.
    pub policies: Vec<PolicyView>,
    /// The pins among them.
    pub pins: Vec<ToolPins>,
    /// The first 12 hex digits of the SHA-256 of the text.
    pub version: String,
    /// Faults that are no reason to refuse the files.
    pub warnings: Vec<FileError>,
    /// Policies that close a server, since they disagree with others on its credential.
    pub problems: Vec<PolicyProblem>,
    /// True if the policies were compiled with a shared store.
    pub shared_store: bool,
}

/// Reads and compiles files.
///
/// # Errors
/// All that is wrong with the first file that is wrong, or with the policies together.
pub fn load(paths: &[PathBuf], counters: Arc<Memory>, options: &CompileOptions, urls: Urls) -> Result<Loaded, Vec<FileError>> {
    let texts = policy_files::read(paths).map_err(|error| vec![error])?;
    let CompiledFiles { engine, policies, pins, mut warnings, pin_warnings, problems } =
        compile_files(&texts, counters, options, urls, toolweir_pins::check_texts)?;
    warnings.extend(pin_warnings);
    let whole: String = texts.iter().map(|file| file.text.as_str()).collect();
    let version = sha256(whole.as_bytes()).chars().take(12).collect();
    let policies = policies.into_iter().map(PolicyView::from).collect();
    Ok(Loaded { engine, policies, pins, version, warnings, problems, shared_store: options.shared_store })
}

impl Loaded {
    /// Logs the warnings, and makes the policies ready to be brought into force.
    ///
    /// # Errors
    /// A url that cannot be connected to.
    pub fn in_force(self, path: &Path, metrics: &ServerMetrics) -> Result<InForce, Vec<FileError>> {
        for warning in &self.warnings {
            tracing::warn!(%warning, "policy");
        }
        let (mut in_force, bad) = InForce::new(self.engine, self.policies, self.pins, self.version, metrics);
        (in_force.shared_store, in_force.problems) = (self.shared_store, self.problems);
        let errors: Vec<FileError> =
            bad.into_iter().map(|bad| file_error(path, format!("server {}: {}", bad.server, bad.why))).collect();
        if errors.is_empty() { Ok(in_force) } else { Err(errors) }
    }
}

/// The files, each with its time of change, size and inode if it is there. It differs when a file has changed.
type FileStamps = Vec<(PathBuf, Option<(SystemTime, u64, u64)>)>;

fn stamps(path: &Path) -> FileStamps {
    use std::os::unix::fs::MetadataExt;
    let files = files(path).unwrap_or_else(|_| vec![path.to_owned()]);
    let seen = files.into_iter().map(|file| {
        let seen = fs::metadata(&file).ok().and_then(|meta| Some((meta.modified().ok()?, meta.len(), meta.ino())));
        (file, seen)
    });
    seen.collect()
}

/// A watch on a file or folder. Its first look is taken when it is made, so make it before the first load.
#[derive(Debug)]
pub struct FileWatch {
    path: PathBuf,
    urls: Urls,
    last: FileStamps,
}

impl FileWatch {
    /// A watch on this path.
    pub fn new(path: &Path, urls: Urls) -> Self {
        Self { path: path.to_owned(), urls, last: stamps(path) }
    }

    /// Brings changes into force, for ever. A bad edit keeps the last good policies, logs why and raises a metric.
    pub async fn run(mut self, governor: Arc<Governor>) {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let now = stamps(&self.path);
            if now != self.last {
                self.last = now;
                // Compiling takes its time, and this thread accepts connections.
                let (path, urls, governor) = (self.path.clone(), self.urls, Arc::clone(&governor));
                if let Err(error) = tokio::task::spawn_blocking(move || reload(&path, urls, &governor)).await {
                    tracing::error!(%error, "cannot read the policy");
                }
            }
        }
    }
}

fn reload(path: &Path, urls: Urls, governor: &Governor) {
    let loaded = files(path)
        .map_err(|error| vec![error])
        .and_then(|files| load(&files, Arc::clone(governor.counters()), &governor.options(), urls))
        .and_then(|loaded| loaded.in_force(path, &governor.metrics.servers));
    match loaded {
        Ok(new) => {
            tracing::info!(version = %new.version, policies = new.policies.len(), "policy in force");
            governor.replace(new);
        }
        Err(errors) => {
            for error in errors {
                tracing::error!(%error, "policy refused; the last good one stays in force");
            }
            governor.freshness.reload_failed();
        }
    }
}
