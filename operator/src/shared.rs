//! The store of counts that pods share: what sidecars are told of it, and whether it answers.
//!
//! The operator counts nothing there. It hands each sidecar where the store is and how to use it, and asks it now and then
//! itself, so that the status of a policy can say why its limits do not hold across pods.

use std::{fmt, path::Path, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};
use toolweir_crds::{MCPPolicySpec, stream::SharedStore};
use toolweir_store::{
    config::{Config, IN_CLEAR, StoreUrl},
    connect::{Fault, StoreError},
};

use crate::{config, world::World};

/// How often the files are read and the store is asked.
const EVERY: Duration = Duration::from_secs(10);
/// How often at most other words are told for the same fault: which of several hosts is named first differs each time, and each
/// telling is a write of every status.
const SAME_FAULT: Duration = Duration::from_secs(60);
/// How long each step of asking it may take.
const LIMIT: Duration = Duration::from_secs(2);
/// The largest file that is read, in bytes: a password or some certificates.
const LARGEST: u64 = 1024 * 1024;
/// The fault where a file of the operator's cannot be read.
pub const UNREADABLE: &str = "unreadable";

/// The closed set of the label `fault`.
pub fn faults() -> impl Iterator<Item = &'static str> {
    std::iter::once(UNREADABLE).chain(Fault::ALL.map(Fault::as_str))
}

/// What sidecars are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Nothing yet: a file with the password or the authorities was never read. Sidecars keep what they were told before, so that a
    /// new operator without its Secret takes the store from nobody.
    Unread,
    /// There is no store.
    Nowhere,
    /// Where it is.
    At(Arc<SharedStore>),
}

/// How the store is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// There is none.
    #[default]
    Absent,
    /// It was not asked yet.
    Pending,
    /// It answers.
    Connected,
    /// It answers, and what is said passes the network in clear.
    InClear,
    /// It does not.
    Down(Down),
}

/// Why the store does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Down {
    /// The label `fault` of `toolweir_operator_shared_store_failures_total`.
    pub fault: &'static str,
    /// What to read.
    pub message: String,
}

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)
    }
}

impl From<StoreError> for Down {
    fn from(error: StoreError) -> Self {
        Self { fault: error.fault.as_str(), message: error.message }
    }
}

impl Health {
    /// The condition `SharedStoreReady`: its status, its reason, and what it says.
    pub fn condition(&self) -> (&'static str, String, String) {
        // What is done meanwhile.
        let meanwhile = "Until it does, calls that it would count are answered as onStoreFailure says.";
        match self {
            Self::Absent => {
                let message = "There is no shared store, which a scope wider than a pod needs; the operator's configuration names \
                               it as sharedStore, and so do the chart's values.";
                ("False", "NotConfigured".to_owned(), message.to_owned())
            }
            Self::Pending => ("Unknown", "Pending".to_owned(), "The operator has not asked the shared store yet.".to_owned()),
            Self::Connected => ("True", "Connected".to_owned(), "The shared store answers the operator.".to_owned()),
            // The store is ready; the reason stays one, so that what waits for it goes on working.
            Self::InClear => {
                ("True", "Connected".to_owned(), format!("The shared store answers the operator. Warning: {IN_CLEAR}."))
            }
            Self::Down(down) => {
                ("False", camel(down.fault), format!("The shared store does not answer the operator: {down}. {meanwhile}"))
            }
        }
    }
}

/// `wrong_password` as reasons of conditions are written: `WrongPassword`.
fn camel(fault: &str) -> String {
    let word = |word: &str| {
        let mut letters = word.chars();
        letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect::<String>()
    };
    fault.split('_').map(word).collect()
}

/// Whether a policy counts across pods.
pub fn is_used(spec: &MCPPolicySpec) -> bool {
    spec.servers.iter().flat_map(|server| &server.tools).any(|tool| {
        tool.limits.iter().any(|limit| limit.scope.is_shared())
            || (tool.max_concurrent.is_some() && tool.max_concurrent_scope.is_shared())
    })
}

/// Keeps what sidecars are told of the store up to date, and looks how it is.
pub struct Keeper {
    settings: Option<config::SharedStore>,
    world: Arc<World>,
    store: watch::Sender<Told>,
    /// The operator's authorities in PEM, for a store whose certificate is of them; empty until they are known.
    trust: watch::Receiver<Arc<str>>,
    /// Of each file the text that was read last.
    password: Option<String>,
    ca: Option<String>,
    /// What could not be read the last time.
    unreadable: Option<Down>,
    /// When something was told the last time.
    said: Option<Instant>,
}

impl fmt::Debug for Keeper {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("store", &self.store).field("unreadable", &self.unreadable).finish_non_exhaustive()
    }
}

impl Keeper {
    /// Reads the files once. What cannot be read is told by [`Keeper::run`]. Without settings there is no store.
    pub fn new(settings: Option<config::SharedStore>, world: Arc<World>) -> Self {
        let store = watch::Sender::new(if settings.is_some() { Told::Unread } else { Told::Nowhere });
        let (_, trust) = watch::channel(Arc::from(""));
        let mut keeper = Self { settings, world, store, trust, password: None, ca: None, unreadable: None, said: None };
        if keeper.settings.is_some() {
            keeper.world.metrics.begin_shared_store();
            keeper.world.set_store(&Health::Pending);
            keeper.read();
            if keeper.is_in_clear() {
                tracing::warn!(url = keeper.settings.as_ref().map(|settings| &settings.url), "the shared store: {IN_CLEAR}");
            }
        }
        keeper
    }

    /// Has sidecars trust these authorities, the operator's, for a store whose certificate is of them.
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

    /// What sidecars are told, now and from now on.
    pub fn store(&self) -> watch::Receiver<Told> {
        self.store.subscribe()
    }

    /// Keeps on, for ever.
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

    /// Reads the files, and asks the store.
    pub async fn round(&mut self) {
        self.read();
        let Some(url) = self.settings.as_ref().map(|settings| settings.url.clone()) else { return };
        let told = self.store.borrow().clone();
        let asked = match (self.unreadable.clone(), told) {
            (Some(down), _) => Err(down),
            (None, Told::At(store)) => ask(&store).await.map_err(Down::from),
            (None, Told::Unread | Told::Nowhere) => return,
        };
        let metrics = &self.world.metrics;
        metrics.shared_store_up.with_label_values::<&str>(&[]).set(i64::from(asked.is_ok()));
        let health = match asked {
            Ok(()) if self.is_in_clear() => Health::InClear,
            Ok(()) => Health::Connected,
            Err(mut down) => {
                metrics.shared_store_failures.with_label_values(&[down.fault]).inc();
                if self.is_in_clear() {
                    down.message = format!("{}; besides, {IN_CLEAR}", down.message);
                }
                Health::Down(down)
            }
        };
        if self.is_only_other_words(&health) {
            return;
        }
        if self.world.set_store(&health) {
            self.said = Some(Instant::now());
            match health {
                Health::Down(down) => tracing::warn!(
                    url,
                    fault = down.fault,
                    error = down.message,
                    "the shared store does not answer; sidecars answer as onStoreFailure says where it does not answer them either"
                ),
                _ => tracing::info!(url, "the shared store answers"),
            }
        }
    }

    /// Whether it is the fault that was told just now, perhaps in other words. What is said of files is always the same.
    fn is_only_other_words(&self, health: &Health) -> bool {
        let lately = self.said.is_some_and(|said| said.elapsed() < SAME_FAULT);
        match (self.world.store(), health) {
            (Health::Down(before), Health::Down(now)) => lately && before.fault == now.fault && now.fault != UNREADABLE,
            _ => false,
        }
    }

    /// Reads the files and tells sidecars, if something changed. A file that cannot be read leaves what was read before.
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
                Some(Err(message)) => self.unreadable = Some(Down { fault: UNREADABLE, message }),
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
        let told = Told::At(Arc::new(settings.with(self.password.clone(), self.ca.clone())));
        self.store.send_if_modified(|held| {
            let changed = *held != told;
            if changed && *held != Told::Unread {
                tracing::info!("the password or the certificates of the shared store changed; sidecars are told");
            }
            *held = told;
            changed
        });
    }
}

/// The text of a file of the configuration.
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
async fn ask(store: &SharedStore) -> Result<(), StoreError> {
    toolweir_store::probe(&Config::try_from(store)?, LIMIT).await
}

#[cfg(test)]
mod tests {
    use toolweir_crds::{Document, read_documents};
    use toolweir_engine::Options;

    use super::*;
    use crate::metrics::Metrics;

    fn spec(tool: &str) -> MCPPolicySpec {
        let text = format!(
            "{{apiVersion: toolweir.dev/v1alpha1, kind: MCPPolicy, metadata: {{name: p, namespace: agents}}, \
             spec: {{servers: [{{name: a, url: 'http://a'}}, {{name: s, url: 'http://s', tools: [{{name: u}}, {{name: t, {tool}}}]}}]}}}}"
        );
        match read_documents("test", &text).unwrap().remove(0).document {
            Document::MCPPolicy { spec, .. } => spec,
            Document::MCPClusterPolicy { .. } => unreachable!(),
        }
    }

    #[test]
    fn a_policy_uses_the_store_where_some_scope_is_wider_than_a_pod() {
        for (tool, used) in [
            ("limits: [{max: 1, window: minute}]", false),
            ("limits: [{max: 1, window: minute, scope: Session}], maxConcurrent: 1", false),
            ("limits: [{max: 1, window: minute}, {max: 9, window: day, scope: Workload}]", true),
            ("limits: [{max: 9, window: day, scope: Policy}]", true),
            ("maxConcurrent: 1, maxConcurrentScope: Namespace", true),
            ("maxConcurrent: 1, maxConcurrentScope: Pod", false),
        ] {
            assert_eq!(is_used(&spec(tool)), used, "{tool}");
        }
    }

    #[test]
    fn the_condition_says_what_is_wrong_and_what_is_done_meanwhile() {
        let down = Health::Down(Down { fault: "wrong_password", message: "WRONGPASS".to_owned() });
        let (status, reason, message) = down.condition();
        assert_eq!((status, reason.as_str()), ("False", "WrongPassword"));
        assert_eq!(
            message,
            "The shared store does not answer the operator: WRONGPASS. Until it does, calls that it would count are answered as \
             onStoreFailure says."
        );
        assert_eq!(Health::Connected.condition().0, "True");
        assert_eq!((Health::Pending.condition().0, Health::Pending.condition().1.as_str()), ("Unknown", "Pending"));
        assert_eq!((Health::Absent.condition().0, Health::Absent.condition().1.as_str()), ("False", "NotConfigured"));
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

    fn keeper(password: Option<&Path>) -> Keeper {
        // Nothing listens on port 1.
        let text = "sharedStore: {url: 'redis://127.0.0.1:1'}";
        let mut settings = config::Config::read(text).unwrap().shared_store.unwrap();
        settings.password_file = password.map(Path::to_owned);
        Keeper::new(Some(settings), Arc::new(World::new(Metrics::new().unwrap(), Options::default())))
    }

    fn told(store: &mut watch::Receiver<Told>) -> Option<String> {
        match &*store.borrow_and_update() {
            Told::At(store) => store.password.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_password_that_changes_is_told_and_one_that_goes_stays() {
        let folder = Folder::new("rotates");
        let path = folder.0.join("password");
        std::fs::write(&path, "first\n").unwrap();
        let mut keeper = keeper(Some(&path));
        let mut store = keeper.store();
        assert_eq!(told(&mut store).as_deref(), Some("first"));
        keeper.round().await;
        assert!(!store.has_changed().unwrap());
        std::fs::write(&path, " other-one \r\n").unwrap();
        keeper.round().await;
        assert!(store.has_changed().unwrap());
        assert_eq!(told(&mut store).as_deref(), Some(" other-one "));
        std::fs::remove_file(&path).unwrap();
        keeper.round().await;
        assert!(!store.has_changed().unwrap());
        assert!(!format!("{keeper:?}").contains("other-one"), "{keeper:?}");
    }

    #[tokio::test]
    async fn a_password_that_was_never_read_takes_the_store_from_nobody() {
        let folder = Folder::new("missing");
        let path = folder.0.join("password");
        let mut keeper = keeper(Some(&path));
        let mut store = keeper.store();
        assert_eq!(keeper.world.store(), Health::Pending);
        assert_eq!(*store.borrow_and_update(), Told::Unread);
        keeper.round().await;
        let (status, reason, message) = keeper.world.store().condition();
        assert_eq!((status, reason.as_str()), ("False", "Unreadable"));
        assert!(message.contains("sharedStore.passwordFile: ") && message.contains("see that its Secret is there"), "{message}");
        std::fs::write(&path, "\n").unwrap();
        keeper.round().await;
        assert!(keeper.world.store().condition().2.contains("is empty"), "{:?}", keeper.world.store());
        assert!(!store.has_changed().unwrap());
        std::fs::write(&path, "there\n").unwrap();
        keeper.round().await;
        assert_eq!(told(&mut store).as_deref(), Some("there"));
        let metrics = &keeper.world.metrics;
        assert_eq!(metrics.shared_store_failures.with_label_values(&[UNREADABLE]).get(), 2);
        assert_eq!(metrics.shared_store_up.with_label_values::<&str>(&[]).get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn other_words_for_the_same_fault_are_told_once_a_minute() {
        let mut keeper = keeper(None);
        let down = |fault, message: &str| Health::Down(Down { fault, message: message.to_owned() });
        keeper.world.set_store(&down("refused", "one"));
        keeper.said = Some(Instant::now());
        assert!(keeper.is_only_other_words(&down("refused", "two")));
        assert!(!keeper.is_only_other_words(&down("timeout", "one")));
        assert!(!keeper.is_only_other_words(&Health::Connected));
        tokio::time::advance(SAME_FAULT).await;
        assert!(!keeper.is_only_other_words(&down("refused", "two")));
    }

    #[test]
    fn a_store_without_tls_is_ready_with_a_warning() {
        let (status, reason, message) = Health::InClear.condition();
        assert_eq!((status, reason.as_str()), ("True", "Connected"));
        assert!(message.contains("Warning: it is reached without TLS") && message.contains("rediss"), "{message}");
        assert!(!Health::Connected.condition().2.contains("TLS"));
    }

    #[tokio::test]
    async fn a_store_without_tls_that_does_not_answer_is_warned_of_too_unless_it_is_on_the_machine() {
        let of = |url: &str| {
            let settings = config::Config::read(&format!("sharedStore: {{url: '{url}'}}")).unwrap().shared_store;
            Keeper::new(settings, Arc::new(World::new(Metrics::new().unwrap(), Options::default())))
        };
        // An address of the loopback network that only looks like none: it is in the way of IPv6.
        let mut keeper = of("redis://[::ffff:127.0.0.1]:1");
        keeper.round().await;
        let (_, _, message) = keeper.world.store().condition();
        assert!(message.contains("; besides, it is reached without TLS"), "{message}");
        let mut keeper = of("redis://127.0.0.1:1");
        keeper.round().await;
        assert!(!keeper.world.store().condition().2.contains("without TLS"));
        let mut keeper = of("rediss://[::ffff:127.0.0.1]:1");
        keeper.round().await;
        assert!(!keeper.world.store().condition().2.contains("without TLS"));
    }

    #[tokio::test]
    async fn a_store_with_a_certificate_of_the_operator_is_told_with_the_authorities_in_force() {
        let text = "sharedStore: {url: 'rediss://127.0.0.1:1', certificate: {secret: s, service: store}}";
        let settings = config::Config::read(text).unwrap().shared_store;
        let (trust, trusted) = watch::channel(Arc::from(""));
        let mut keeper =
            Keeper::new(settings, Arc::new(World::new(Metrics::new().unwrap(), Options::default()))).trusting(trusted);
        let mut store = keeper.store();
        keeper.round().await;
        assert_eq!(*store.borrow_and_update(), Told::Unread, "nobody could verify it yet");
        let told = |store: &mut watch::Receiver<Told>| match &*store.borrow_and_update() {
            Told::At(store) => store.ca.clone(),
            other => panic!("{other:?}"),
        };
        tokio::spawn(keeper.run());
        for bundle in ["first", "first and second", "second"] {
            trust.send(Arc::from(bundle)).unwrap();
            tokio::time::timeout(Duration::from_secs(5), store.changed()).await.expect("at once").unwrap();
            assert_eq!(told(&mut store).as_deref(), Some(bundle));
        }
    }

    #[tokio::test]
    async fn without_settings_there_is_no_store() {
        let world = Arc::new(World::new(Metrics::new().unwrap(), Options::default()));
        let mut keeper = Keeper::new(None, world);
        keeper.round().await;
        assert_eq!((keeper.world.store(), keeper.store().borrow().clone()), (Health::Absent, Told::Nowhere));
        let page = keeper.world.metrics.scrape(&std::collections::BTreeMap::new()).unwrap();
        assert!(!String::from_utf8(page).unwrap().contains("shared_store"));
    }

    #[tokio::test]
    async fn word_goes_round_only_when_something_changed() {
        let mut keeper = keeper(None);
        let mut changes = keeper.world.changes();
        keeper.round().await;
        assert!(changes.has_changed().unwrap());
        assert!(matches!(keeper.world.store(), Health::Down(_)), "{:?}", keeper.world.store());
        changes.mark_unchanged();
        keeper.round().await;
        assert!(!changes.has_changed().unwrap());
    }
}
