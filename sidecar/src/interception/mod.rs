//! HTTPS of captured agents to declared servers: the sidecar answers in the server's place, so that calls are governed as any others.
//!
//! What agents have to trust for that is decided once in a pod's life, from the first policies that it gets, and before any container
//! but the sidecar starts: their programs read it at their own start.

pub mod authority;
pub mod handshake;
pub mod metrics;
#[cfg(test)]
mod tests;
pub mod trust_store;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, SystemTime},
};

use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
};
use tokio_rustls::server::TlsStream;
use toolweir_crds::stream::{InterceptionReport, InterceptionState};

use self::{
    authority::{AuthorityError, KeptAuthority, PodAuthority},
    handshake::{HandshakeError, HostCertificates, TlsServer},
    metrics::{InterceptionMetrics, OpenedTls},
};
use crate::{
    capture::names::{Host, SearchDomains, is_dns_name},
    control::state::StateDir,
    files::{Durable, FileMetrics, replace},
    in_force::{InForce, ServerInForce},
};

/// The label `file` of the files for agents and of what is kept.
pub const INTERCEPTION: &str = "interception";
/// The file that keeps the authority.
pub const KEPT: &str = "interception.json";
/// The file for agents with everything that they are to trust, in PEM.
pub const BUNDLE: &str = "ca-bundle.pem";
/// The same for Java.
pub const KEY_STORE: &str = "ca-bundle.jks";
/// The largest file that keeps an authority, in bytes.
const LARGEST_KEPT: usize = 256 * 1024;

/// What there is to intercept with.
#[derive(Clone, Debug)]
pub struct InterceptionSettings {
    /// The folder that agents' containers mount, for the files with what they are to trust. None: nothing is intercepted.
    pub folder: Option<PathBuf>,
    /// Where the authority is kept.
    pub state: StateDir,
    /// How long the first policies are waited for that have TLS opened, from the start.
    pub patience: Duration,
    /// What agents are to trust besides the system's roots and the pod's.
    pub extra_roots: Vec<CertificateDer<'static>>,
    /// The pod, as certificates name it; empty where it is not known.
    pub pod: String,
}

/// What is kept of a pod's authority, or that it has none.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptInterception {
    // One that is missing is damage, not a pod without an authority.
    #[serde(deserialize_with = "Option::deserialize")]
    authority: Option<KeptAuthority>,
}

/// What was decided for a pod's life.
#[derive(Debug)]
struct PodTrust {
    /// None where its agents trust nobody but everybody else.
    authority: Option<PodAuthority>,
}

/// Why agents' files, or the authority, are not to be had.
#[derive(Debug, thiserror::Error)]
pub enum InterceptionError {
    /// The authority is not to be had.
    #[error("the pod's certificate authority: {0}")]
    Authority(#[from] AuthorityError),
    /// Agents would trust nobody but the pod.
    #[error(
        "there are no certificates of public authorities; the sidecar's image, or this machine, needs /etc/ssl/certs/ca-certificates.crt"
    )]
    NoSystemRoots,
    /// A file cannot be written.
    #[error("{}: {error}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

/// Opens TLS of agents to declared servers.
pub struct Interception {
    settings: InterceptionSettings,
    domains: SearchDomains,
    metrics: InterceptionMetrics,
    decided: OnceLock<PodTrust>,
    /// What was reported last. Held while it is decided, so that nobody decides twice.
    told: Mutex<InterceptionReport>,
    /// Tells that it was decided.
    changed: watch::Sender<()>,
    certificates: Arc<HostCertificates>,
    tls: TlsServer,
}

impl std::fmt::Debug for Interception {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Interception").field("settings", &self.settings).field("decided", &self.decided).finish_non_exhaustive()
    }
}

impl Interception {
    /// One that has decided nothing yet. By `domains`, hosts have short names.
    ///
    /// # Errors
    /// The crypto provider lacks something: a defect of the build.
    pub fn new(
        settings: InterceptionSettings,
        domains: SearchDomains,
        metrics: InterceptionMetrics,
    ) -> Result<Self, rustls::Error> {
        let certificates = Arc::<HostCertificates>::default();
        let tls = TlsServer::new(Arc::clone(&certificates))?;
        let (decided, told, changed) = (OnceLock::new(), Mutex::default(), watch::Sender::new(()));
        Ok(Self { settings, domains, metrics, decided, told, changed, certificates, tls })
    }

    /// Decides, at the first policies of the pod's life, on what the pod has to trust, and writes it for the agents. Later ones change
    /// nothing about that. `age` is how long the sidecar has run. A failure is logged and counted; the sidecar is not ready then, and this
    /// is to be called again.
    pub fn prepare(&self, in_force: &InForce, files: &FileMetrics, now: SystemTime, age: Duration) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_prepared() {
            let decided = match &self.settings.folder {
                None => Some(PodTrust { authority: None }),
                Some(folder) => {
                    let decided = self.decide(folder, in_force, files, (now, age));
                    files.record_result(INTERCEPTION, "write", decided).flatten()
                }
            };
            if let Some(decided) = decided {
                if let Some(authority) = &decided.authority {
                    tracing::info!(authority = authority.describe(), "TLS of agents to declared servers is opened");
                }
                let _ = self.decided.set(decided);
                self.changed.send_replace(());
            }
        }
        let report = self.report(in_force);
        self.metrics.show_ready(report.interception.iter().map(|state| (state.server.as_str(), state.problem.is_none())));
        for state in report.interception.iter().filter(|state| !told.interception.contains(state)) {
            if let InterceptionState { server, problem: Some(problem), .. } = state {
                tracing::warn!(server, "TLS to a server with `tls: Intercept` is not opened: {problem}");
            }
        }
        *told = report;
    }

    /// Returns a receiver that changes when it was decided what agents trust.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Returns whether it was decided what agents trust, and they can read it.
    pub fn is_prepared(&self) -> bool {
        self.decided.get().is_some()
    }

    fn decide(
        &self,
        folder: &Path,
        in_force: &InForce,
        files: &FileMetrics,
        (now, age): (SystemTime, Duration),
    ) -> Result<Option<PodTrust>, InterceptionError> {
        let mut trusted = toolweir_store::tls::system_certificates();
        if trusted.is_empty() {
            return Err(InterceptionError::NoSystemRoots);
        }
        let decided = match self.restore(files, now) {
            Some(kept) => kept,
            None => {
                let hosts = self.hosts(in_force);
                // Who gave the pod this folder knew of a policy that the first ones may lack: its sidecar waits for it a while.
                if hosts.is_empty() && age < self.settings.patience {
                    return Ok(None);
                }
                self.make(hosts, files, now)?
            }
        };
        trusted.extend(self.settings.extra_roots.iter().cloned());
        trusted.extend(decided.authority.iter().map(|authority| authority.root().clone()));
        for (name, bytes) in [(BUNDLE, trust_store::pem(&trusted)), (KEY_STORE, trust_store::jks(&trusted))] {
            let path = folder.join(name);
            // What is there already stays as it is, since agents read it while the sidecar restarts.
            match fs::read(&path) {
                Ok(before) if before == bytes => continue,
                Ok(_) => tracing::warn!(
                    file = %path.display(),
                    "what agents are to trust is another than before: those that have started trust the old one; delete the pod"
                ),
                Err(_) => {}
            }
            replace(&path, &bytes, 0o644, Durable::No).map_err(|error| InterceptionError::Write { path, error })?;
        }
        Ok(Some(decided))
    }

    /// Returns what an earlier process of this pod decided. What cannot be read is as if there were nothing: agents that trust the lost
    /// authority then do not connect.
    fn restore(&self, files: &FileMetrics, now: SystemTime) -> Option<PodTrust> {
        let restored = |kept: KeptInterception| {
            let authority = kept.authority.map(|authority| PodAuthority::restore(authority, now)).transpose();
            Ok(PodTrust { authority: authority.map_err(|error| format!("{KEPT}: {error}"))? })
        };
        let kept = self.settings.state.read_json(KEPT, LARGEST_KEPT).map_err(|error| error.to_string());
        let kept = kept.and_then(|kept| kept.map(restored).transpose());
        if kept.is_err() {
            tracing::error!(
                "the pod's certificate authority is made anew: agents that have started trust the lost one; delete the pod"
            );
        }
        files.record_result(INTERCEPTION, "read", kept).flatten()
    }

    fn make(&self, hosts: Vec<String>, files: &FileMetrics, now: SystemTime) -> Result<PodTrust, InterceptionError> {
        let authority = if hosts.is_empty() { None } else { Some(PodAuthority::new(&self.settings.pod, hosts, now)?) };
        let kept = KeptInterception { authority: authority.as_ref().map(|authority| authority.kept().clone()) };
        files.record_result(INTERCEPTION, "write", self.settings.state.keep_json(KEPT, &kept));
        Ok(PodTrust { authority })
    }

    /// Returns the names for which the pod needs certificates: those of declared servers first, then everything that means the same.
    fn hosts(&self, in_force: &InForce) -> Vec<String> {
        let mut names: Vec<String> = intercepted(in_force).filter_map(|server| host(server)).collect();
        names.sort();
        let spellings: Vec<String> = names.iter().flat_map(|name| self.domains.spellings(name)).collect();
        // A search domain may make a name of one that is too long. One such constraint, and clients accept nothing.
        names.into_iter().chain(spellings).filter(|name| is_dns_name(name)).collect()
    }

    /// Returns whether TLS to a name is opened, where a policy has it intercepted. The name is in lower case.
    pub fn covers(&self, name: &str) -> bool {
        self.known().is_some_and(|authority| authority.covers(name))
    }

    fn known(&self) -> Option<&PodAuthority> {
        self.decided.get()?.authority.as_ref()
    }

    /// Returns who signs what agents see, in words.
    pub fn describe(&self) -> Option<String> {
        self.known().map(PodAuthority::describe)
    }

    /// Returns the states of all servers in force with `tls: Intercept`.
    pub fn report(&self, in_force: &InForce) -> InterceptionReport {
        let state = |server: &Arc<ServerInForce>| {
            let found = match host(server) {
                Some(name) if self.covers(&name) => None,
                Some(name) => Some(self.problem(&name)),
                None => Some(("the host of its url is no name that can be connected to; correct the url".to_owned(), false)),
            };
            let (problem, needs_new_pod) = found.map_or((None, false), |(problem, needs_new_pod)| (Some(problem), needs_new_pod));
            InterceptionState { server: server.name.clone(), problem, needs_new_pod }
        };
        let mut interception: Vec<InterceptionState> = intercepted(in_force).map(state).collect();
        interception.sort_by(|one, other| one.server.cmp(&other.server));
        InterceptionReport { interception }
    }

    /// Returns why a name is not covered, and whether a new pod helps.
    fn problem(&self, name: &str) -> (String, bool) {
        if self.settings.folder.is_none() {
            return ("the pod was created before a policy asked for it; create the pod anew".to_owned(), self.is_prepared());
        }
        if !self.is_prepared() {
            let problem = "the pod's certificate authority is not made and written yet; the sidecar's log says why if it fails";
            return (problem.to_owned(), false);
        }
        if self.known().is_some_and(PodAuthority::is_full) {
            let problem = format!(
                "the pod's certificate authority has no room for {name}: clients take some 16 KiB of names; govern this pod by fewer \
                 servers with `tls: Intercept`"
            );
            return (problem, false);
        }
        (format!("the pod was created before a policy declared {name} with it; create the pod anew"), true)
    }

    /// Takes part in the handshake of a client that asks for a name, which is in lower case and covered. With `http2`, HTTP/2 is offered.
    ///
    /// # Errors
    /// The handshake came to nothing.
    pub async fn accept<S>(
        &self,
        name: &str,
        stream: S,
        http2: bool,
        now: SystemTime,
    ) -> Result<(TlsStream<S>, OpenedTls), HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let accepted = match self.certify(name, now) {
            Ok(()) => self.tls.accept(stream, http2).await,
            Err(error) => Err(HandshakeError::Failed(io::Error::other(error))),
        };
        match accepted {
            Ok(stream) => Ok((stream, self.metrics.opened(name))),
            Err(error) => {
                self.metrics.failed(&error);
                Err(error)
            }
        }
    }

    /// Has a certificate of a name at hand that is still to be shown.
    fn certify(&self, name: &str, now: SystemTime) -> Result<(), AuthorityError> {
        let is_fresh = self.certificates.get(name, |certificate| certificate.is_fresh(now));
        if let Some(authority) = self.known().filter(|authority| authority.covers(name) && is_fresh != Some(true)) {
            self.certificates.keep(name, authority.certify(name, now)?);
        }
        Ok(())
    }
}

/// The servers in force whose TLS is to be opened.
fn intercepted(in_force: &InForce) -> impl Iterator<Item = &Arc<ServerInForce>> {
    in_force.servers().filter(|server| server.intercept)
}

/// The name of a server's host.
fn host(server: &ServerInForce) -> Option<String> {
    Host::read(server.url.as_ref()?.host()?)?.name().map(str::to_owned)
}
