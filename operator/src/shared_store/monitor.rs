//! Reads the files of the shared store's configuration for sidecars, and probes the store.
//!
//! The operator counts nothing there. It probes the store, so that the status of a policy can say why its limits do not hold
//! across pods.

use std::{fmt, path::Path, sync::Arc, time::Duration};

use prometheus::{IntCounterVec, IntGaugeVec};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};
use toolweir_crds::stream::SharedStore;
use toolweir_store::{StoreConfig, StoreError, StoreUrl, config::IN_CLEAR};

use super::health::{SidecarStore, StoreFailure, StoreHealth, UNREADABLE, faults};
use crate::{cluster_state::ClusterState, config::SharedStoreConfig, metrics::OperatorRegistry};

/// The time between two rounds.
const EVERY: Duration = Duration::from_secs(10);
/// The time in which the message of the same fault does not change: the host that it names first may differ each time, and each
/// change is a write of every status.
const SAME_FAULT: Duration = Duration::from_secs(60);
/// The time limit of each step of a probe.
const LIMIT: Duration = Duration::from_secs(2);
/// The largest file that is read, in bytes: a password or some certificates.
const LARGEST: u64 = 1024 * 1024;
/// The metrics of the shared store. They have no series where there is no store.
#[derive(Clone, Debug)]
pub struct StoreMonitorMetrics {
    /// 1 while the store answers this replica.
    pub up: IntGaugeVec,
    /// Probes that failed, by fault.
    pub failures: IntCounterVec,
}

impl StoreMonitorMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// Those of [`OperatorRegistry::counter`].
    pub fn new(registry: &OperatorRegistry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            up: registry.gauges("toolweir_operator_shared_store_up", "1 while the shared store answers this replica.", &[])?,
            failures: registry.counters(
                "toolweir_operator_shared_store_failures_total",
                "How often this replica asked the shared store in vain, by fault.",
                &["fault"],
            )?,
        })
    }

    /// Begins all series at 0.
    pub fn begin(&self) {
        self.up.with_label_values::<&str>(&[]);
        for fault in faults() {
            self.failures.with_label_values(&[fault]);
        }
    }
}

/// Keeps the store that sidecars get up to date, and probes it.
pub struct StoreMonitor {
    settings: Option<SharedStoreConfig>,
    state: Arc<ClusterState>,
    metrics: StoreMonitorMetrics,
    store: watch::Sender<SidecarStore>,
    /// The operator's authorities in PEM, for a store whose certificate is of them; empty until they are known.
    trust: watch::Receiver<Arc<str>>,
    /// The text of each file as it was read last.
    password: Option<String>,
    ca: Option<String>,
    /// The file that could not be read the last time.
    unreadable: Option<StoreFailure>,
    /// When the health changed last.
    changed_at: Option<Instant>,
}

impl fmt::Debug for StoreMonitor {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreMonitor").field("store", &self.store).field("unreadable", &self.unreadable).finish_non_exhaustive()
    }
}

impl StoreMonitor {
    /// Creates a monitor, which reads the files once. [`StoreMonitor::run`] reports what cannot be read. Without settings there
    /// is no store.
    pub fn new(settings: Option<SharedStoreConfig>, state: Arc<ClusterState>, metrics: StoreMonitorMetrics) -> Self {
        let store = watch::Sender::new(if settings.is_some() { SidecarStore::Unread } else { SidecarStore::Nowhere });
        let (_, trust) = watch::channel(Arc::from(""));
        let mut monitor =
            Self { settings, state, metrics, store, trust, password: None, ca: None, unreadable: None, changed_at: None };
        if monitor.settings.is_some() {
            monitor.metrics.begin();
            monitor.state.set_store(&StoreHealth::Pending);
            monitor.read();
            if monitor.is_in_clear() {
                tracing::warn!(url = monitor.settings.as_ref().map(|settings| &settings.url), "the shared store: {IN_CLEAR}");
            }
        }
        monitor
    }

    /// Sets the operator's authorities, which sidecars trust for a store whose certificate they signed.
    #[must_use]
    pub fn trusting(mut self, trust: watch::Receiver<Arc<str>>) -> Self {
        self.trust = trust;
        self.read();
        self
    }

    fn is_in_clear(&self) -> bool {
        let url = self.settings.as_ref().and_then(|settings| settings.url.parse::<StoreUrl>().ok());
        url.is_some_and(|url| url.is_in_clear())
    }

    /// Returns the store that sidecars get, and its changes.
    pub fn store(&self) -> watch::Receiver<SidecarStore> {
        self.store.subscribe()
    }

    /// Reads and probes, for ever.
    pub async fn run(mut self) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut trust = self.trust.clone();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                // New authorities go to sidecars at once: the store may soon show a certificate of one.
                Ok(()) = trust.changed() => {}
            }
            self.round().await;
        }
    }

    /// Reads the files and probes the store once.
    pub async fn round(&mut self) {
        self.read();
        let Some(url) = self.settings.as_ref().map(|settings| settings.url.clone()) else { return };
        let told = self.store.borrow().clone();
        let asked = match (self.unreadable.clone(), told) {
            (Some(down), _) => Err(down),
            (None, SidecarStore::At(store)) => probe(&store).await.map_err(StoreFailure::from),
            (None, SidecarStore::Unread | SidecarStore::Nowhere) => return,
        };
        self.metrics.up.with_label_values::<&str>(&[]).set(i64::from(asked.is_ok()));
        let health = match asked {
            Ok(()) if self.is_in_clear() => StoreHealth::InClear,
            Ok(()) => StoreHealth::Connected,
            Err(mut down) => {
                self.metrics.failures.with_label_values(&[down.fault]).inc();
                if self.is_in_clear() {
                    down.message = format!("{}; besides, {IN_CLEAR}", down.message);
                }
                StoreHealth::Down(down)
            }
        };
        if self.is_same_fault_reworded(&health) {
            return;
        }
        if self.state.set_store(&health) {
            self.changed_at = Some(Instant::now());
            match health {
                StoreHealth::Down(down) => tracing::warn!(
                    url,
                    fault = down.fault,
                    error = down.message,
                    "the shared store does not answer; sidecars answer as onStoreFailure says where it does not answer them either"
                ),
                _ => tracing::info!(url, "the shared store answers"),
            }
        }
    }

    /// Returns whether it is a fault that was reported just now, perhaps in other words. Messages on files do not vary.
    fn is_same_fault_reworded(&self, health: &StoreHealth) -> bool {
        let lately = self.changed_at.is_some_and(|changed_at| changed_at.elapsed() < SAME_FAULT);
        match (self.state.store(), health) {
            (StoreHealth::Down(before), StoreHealth::Down(now)) => lately && before.fault == now.fault && now.fault != UNREADABLE,
            _ => false,
        }
    }

    /// Reads the files and notifies sidecars of a change. A file that cannot be read leaves the text that was read before.
    fn read(&mut self) {
        self.unreadable = None;
        let Some(settings) = &self.settings else { return };
        // The line end with which many write a Secret is not part of the password.
        let password = settings.password_file.as_deref().map(|path| {
            file("sharedStore.passwordFile", path).map(|text| text.trim_end_matches(['\r', '\n']).to_owned()).and_then(|text| {
                let empty = || format!("sharedStore.passwordFile: {} is empty; write the password to its Secret", path.display());
                if text.is_empty() { Err(empty()) } else { Ok(text) }
            })
        });
        let ca = settings.ca_file.as_deref().map(|path| file("sharedStore.caFile", path));
        for (read, held) in [(password, &mut self.password), (ca, &mut self.ca)] {
            match read {
                Some(Ok(text)) => *held = Some(text),
                Some(Err(message)) => self.unreadable = Some(StoreFailure { fault: UNREADABLE, message }),
                None => {}
            }
        }
        if settings.certificate.is_some() {
            let trust = self.trust.borrow_and_update();
            if !trust.is_empty() {
                self.ca = Some(trust.to_string());
            }
        }
        let has_ca = settings.ca_file.is_some() || settings.certificate.is_some();
        if (settings.password_file.is_some() && self.password.is_none()) || (has_ca && self.ca.is_none()) {
            return;
        }
        let told = SidecarStore::At(Arc::new(settings.for_sidecars(self.password.clone(), self.ca.clone())));
        self.store.send_if_modified(|held| {
            let changed = *held != told;
            if changed && *held != SidecarStore::Unread {
                tracing::info!("the password or the certificates of the shared store changed; sending them to sidecars");
            }
            *held = told;
            changed
        });
    }
}

/// Reads a file that the configuration names.
fn file(field: &str, path: &Path) -> Result<String, String> {
    let shown = path.display();
    let unread = |error: std::io::Error| {
        format!("{field}: {shown} cannot be read ({error}); see that its Secret is there and has that key")
    };
    if std::fs::metadata(path).map_err(unread)?.len() > LARGEST {
        return Err(format!("{field}: {shown} is larger than {LARGEST} bytes"));
    }
    std::fs::read_to_string(path).map_err(unread)
}

/// Connects once, as sidecars do.
async fn probe(store: &SharedStore) -> Result<(), StoreError> {
    toolweir_store::probe(&StoreConfig::try_from(store)?, LIMIT).await
}

#[cfg(test)]
mod tests {
    use toolweir_engine::CompileOptions;

    use super::*;
    use crate::{cluster_state::StateMetrics, config::OperatorConfig};

    fn monitor_with(settings: Option<SharedStoreConfig>) -> (StoreMonitor, OperatorRegistry) {
        let registry = OperatorRegistry::new().unwrap();
        let state = ClusterState::new(StateMetrics::new(&registry).unwrap(), CompileOptions::default());
        (StoreMonitor::new(settings, Arc::new(state), StoreMonitorMetrics::new(&registry).unwrap()), registry)
    }

    /// A folder of one test.
    struct Folder(std::path::PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("toolweir-operator-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn monitor(password: Option<&Path>) -> StoreMonitor {
        // Nothing listens on port 1.
        let text = "sharedStore: {url: 'redis://127.0.0.1:1'}";
        let mut settings = OperatorConfig::read(text).unwrap().shared_store.unwrap();
        settings.password_file = password.map(Path::to_owned);
        monitor_with(Some(settings)).0
    }

    fn told(store: &mut watch::Receiver<SidecarStore>) -> Option<String> {
        match &*store.borrow_and_update() {
            SidecarStore::At(store) => store.password.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_password_that_changes_is_told_and_one_that_goes_stays() {
        let folder = Folder::new("rotates");
        let path = folder.0.join("password");
        std::fs::write(&path, "first\n").unwrap();
        let mut monitor = monitor(Some(&path));
        let mut store = monitor.store();
        assert_eq!(told(&mut store).as_deref(), Some("first"));
        monitor.round().await;
        assert!(!store.has_changed().unwrap());
        std::fs::write(&path, " other-one \r\n").unwrap();
        monitor.round().await;
        assert!(store.has_changed().unwrap());
        assert_eq!(told(&mut store).as_deref(), Some(" other-one "));
        std::fs::remove_file(&path).unwrap();
        monitor.round().await;
        assert!(!store.has_changed().unwrap());
        assert!(!format!("{monitor:?}").contains("other-one"), "{monitor:?}");
    }

    #[tokio::test]
    async fn a_password_that_was_never_read_takes_the_store_from_nobody() {
        let folder = Folder::new("missing");
        let path = folder.0.join("password");
        let mut monitor = monitor(Some(&path));
        let mut store = monitor.store();
        assert_eq!(monitor.state.store(), StoreHealth::Pending);
        assert_eq!(*store.borrow_and_update(), SidecarStore::Unread);
        monitor.round().await;
        let (status, reason, message) = monitor.state.store().condition();
        assert_eq!((status, reason.as_str()), ("False", "Unreadable"));
        assert!(message.contains("sharedStore.passwordFile: ") && message.contains("see that its Secret is there"), "{message}");
        std::fs::write(&path, "\n").unwrap();
        monitor.round().await;
        assert!(monitor.state.store().condition().2.contains("is empty"), "{:?}", monitor.state.store());
        assert!(!store.has_changed().unwrap());
        std::fs::write(&path, "there\n").unwrap();
        monitor.round().await;
        assert_eq!(told(&mut store).as_deref(), Some("there"));
        let metrics = &monitor.metrics;
        assert_eq!(metrics.failures.with_label_values(&[UNREADABLE]).get(), 2);
        assert_eq!(metrics.up.with_label_values::<&str>(&[]).get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn other_words_for_the_same_fault_are_told_once_a_minute() {
        let mut monitor = monitor(None);
        let down = |fault, message: &str| StoreHealth::Down(StoreFailure { fault, message: message.to_owned() });
        monitor.state.set_store(&down("refused", "one"));
        monitor.changed_at = Some(Instant::now());
        assert!(monitor.is_same_fault_reworded(&down("refused", "two")));
        assert!(!monitor.is_same_fault_reworded(&down("timeout", "one")));
        assert!(!monitor.is_same_fault_reworded(&StoreHealth::Connected));
        tokio::time::advance(SAME_FAULT).await;
        assert!(!monitor.is_same_fault_reworded(&down("refused", "two")));
    }

    #[tokio::test]
    async fn a_store_without_tls_that_does_not_answer_is_warned_of_too_unless_it_is_on_the_machine() {
        let of = |url: &str| {
            let settings = OperatorConfig::read(&format!("sharedStore: {{url: '{url}'}}")).unwrap().shared_store;
            monitor_with(settings).0
        };
        // An address of the loopback network that only looks like none: it is in the way of IPv6.
        let mut monitor = of("redis://[::ffff:127.0.0.1]:1");
        monitor.round().await;
        let (_, _, message) = monitor.state.store().condition();
        assert!(message.contains("; besides, it is reached without TLS"), "{message}");
        let mut monitor = of("redis://127.0.0.1:1");
        monitor.round().await;
        assert!(!monitor.state.store().condition().2.contains("without TLS"));
        let mut monitor = of("rediss://[::ffff:127.0.0.1]:1");
        monitor.round().await;
        assert!(!monitor.state.store().condition().2.contains("without TLS"));
    }

    #[tokio::test]
    async fn a_store_with_a_certificate_of_the_operator_is_told_with_the_authorities_in_force() {
        let text = "sharedStore: {url: 'rediss://127.0.0.1:1', certificate: {secret: s, service: store}}";
        let settings = OperatorConfig::read(text).unwrap().shared_store;
        let (trust, trusted) = watch::channel(Arc::from(""));
        let mut monitor = monitor_with(settings).0.trusting(trusted);
        let mut store = monitor.store();
        monitor.round().await;
        assert_eq!(*store.borrow_and_update(), SidecarStore::Unread, "nobody could verify it yet");
        let told = |store: &mut watch::Receiver<SidecarStore>| match &*store.borrow_and_update() {
            SidecarStore::At(store) => store.ca.clone(),
            other => panic!("{other:?}"),
        };
        tokio::spawn(monitor.run());
        for bundle in ["first", "first and second", "second"] {
            trust.send(Arc::from(bundle)).unwrap();
            tokio::time::timeout(Duration::from_secs(5), store.changed()).await.expect("at once").unwrap();
            assert_eq!(told(&mut store).as_deref(), Some(bundle));
        }
    }

    #[tokio::test]
    async fn without_settings_there_is_no_store() {
        let (mut monitor, registry) = monitor_with(None);
        monitor.round().await;
        assert_eq!((monitor.state.store(), monitor.store().borrow().clone()), (StoreHealth::Absent, SidecarStore::Nowhere));
        let page = registry.scrape().unwrap();
        assert!(!String::from_utf8(page).unwrap().contains("shared_store"));
    }

    #[tokio::test]
    async fn word_goes_round_only_when_something_changed() {
        let mut monitor = monitor(None);
        let mut changes = monitor.state.changes();
        monitor.round().await;
        assert!(changes.has_changed().unwrap());
        assert!(matches!(monitor.state.store(), StoreHealth::Down(_)), "{:?}", monitor.state.store());
        changes.mark_unchanged();
        monitor.round().await;
        assert!(!changes.has_changed().unwrap());
    }
}
