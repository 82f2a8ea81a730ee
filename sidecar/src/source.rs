//! Policies from local files: read, compiled, and read again when they change.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use toolweir_crds::{FileError, document::Located, read_documents, stream::PolicyProblem, text::one_line};
use toolweir_engine::{CompileOptions, Engine, Memory, Policy, Severity};

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
    /// The first 12 hex digits of the SHA-256 of the text.
    pub version: String,
    /// Faults that are no reason to refuse the files.
    pub warnings: Vec<FileError>,
    /// Policies that close a server, since they disagree with others on its credential.
    pub problems: Vec<PolicyProblem>,
    /// True if the policies were compiled with a shared store.
    pub shared_store: bool,
}

/// The files of a path: itself, or those of a folder that end in .yaml, .yml or .json, by name.
///
/// # Errors
/// The path cannot be read or the folder has no such file.
pub fn files(path: &Path) -> Result<Vec<PathBuf>, FileError> {
    let failed = |error: &io::Error| file_error(path, format!("cannot be read: {error}"));
    if !fs::metadata(path).map_err(|error| failed(&error))?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(path).map_err(|error| failed(&error))? {
        let file = entry.map_err(|error| failed(&error))?.path();
        // A mounted ConfigMap keeps its data in folders whose names begin with two dots.
        let hidden = file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let policy = file.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json");
        if policy && !hidden && file.is_file() {
            found.insert(file);
        }
    }
    if found.is_empty() {
        return Err(file_error(path, "is a folder without a .yaml, .yml or .json file; write a policy there".to_owned()));
    }
    Ok(found.into_iter().collect())
}

fn file_error(path: &Path, message: String) -> FileError {
    FileError { file: path.display().to_string(), position: None, message }
}

/// The meaning of a server without a url.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urls {
    /// An error: the proxy needs the url to reach the server.
    Needed,
    /// A warning: other policies may give the url.
    MayFollow,
    /// In order: the server is a program.
    Unused,
}

/// The policies of files as they are written, and what came of compiling them.
struct Compiled {
    engine: Engine,
    policies: Vec<Policy>,
    version: String,
    warnings: Vec<FileError>,
    problems: Vec<PolicyProblem>,
}

/// Reads and compiles files.
///
/// # Errors
/// All that is wrong with the first file that is wrong, or with the policies together.
pub fn load(paths: &[PathBuf], counters: Arc<Memory>, options: &CompileOptions, urls: Urls) -> Result<Loaded, Vec<FileError>> {
    let Compiled { engine, policies, version, warnings, problems } = compile(paths, counters, options, urls)?;
    let policies = policies.into_iter().map(PolicyView::from).collect();
    Ok(Loaded { engine, policies, version, warnings, problems, shared_store: options.shared_store })
}

/// Reads files, and checks their policies as those of one pod with a shared store. Also returns warnings.
///
/// # Errors
/// As [`load`].
pub fn read(paths: &[PathBuf]) -> Result<(Vec<Policy>, Vec<FileError>), Vec<FileError>> {
    let options = CompileOptions { shared_store: true, of_any_pod: true, ..CompileOptions::default() };
    let Compiled { policies, warnings, .. } = compile(paths, Memory::new(0), &options, Urls::MayFollow)?;
    Ok((policies, warnings))
}

fn compile(paths: &[PathBuf], counters: Arc<Memory>, options: &CompileOptions, urls: Urls) -> Result<Compiled, Vec<FileError>> {
    let mut texts = Vec::new();
    for path in paths {
        let bytes = fs::read(path).map_err(|error| vec![file_error(path, format!("cannot be read: {error}"))])?;
        let text =
            String::from_utf8(bytes).map_err(|error| vec![file_error(path, format!("is not UTF-8: {}", error.utf8_error()))])?;
        texts.push((path.display().to_string(), text));
    }
    let mut located: Vec<Located<'_>> = Vec::new();
    for (name, text) in &texts {
        located.extend(read_documents(name, text)?);
    }
    let policies: Vec<Policy> = located.iter().map(|located| located.document.clone().into()).collect();
    let (engine, problems) = Engine::compile(&policies, counters, options);
    let (mut errors, mut warnings, mut closed) = (Vec::new(), Vec::new(), Vec::new());
    warnings.extend(located.iter().flat_map(Located::unquoted));
    for problem in problems {
        let Some(place) = located.get(problem.policy) else { continue };
        if let Some(policy) = policies.get(problem.policy).filter(|_| problem.severity == Severity::Closed) {
            let message = one_line(&problem.error.to_string(), usize::MAX);
            closed.push(PolicyProblem { policy: policy.id.to_string(), message });
        }
        match (problem.severity, urls) {
            // A server that is closed is an error of `check`; `run` closes it, and goes on with the others.
            (Severity::Invalid, _) | (Severity::NoUrl, Urls::Needed) | (Severity::Closed, Urls::MayFollow) => {
                errors.push(place.error(&problem.error));
            }
            (Severity::Conflict | Severity::Closed | Severity::Doubt, _) | (Severity::NoUrl, Urls::MayFollow) => {
                warnings.push(place.error(&problem.error));
            }
            (Severity::NoUrl, Urls::Unused) => {}
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let whole: String = texts.iter().map(|(_, text)| text.as_str()).collect();
    let version = sha256(whole.as_bytes()).chars().take(12).collect();
    Ok(Compiled { engine, policies, version, warnings, problems: closed })
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
        let (mut in_force, bad) = InForce::new(self.engine, self.policies, self.version, metrics);
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
