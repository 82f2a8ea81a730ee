//! Interception from the first policies to a request's bytes, without the network.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio_rustls::TlsConnector;
use toolweir_crds::{read_documents, stream::InterceptionReport};
use toolweir_engine::{CompileOptions, Engine, Memory, Policy};
use toolweir_store::tls::provider;

use super::{
    BUNDLE, Interception, InterceptionSettings, KEPT, KEY_STORE,
    handshake::{HandshakeError, is_http2},
};
use crate::{
    capture::names::SearchDomains, control::state::StateDir, files::FileMetrics, in_force::InForce,
    interception::metrics::InterceptionMetrics, metrics::SidecarMetrics, registry::MetricsRegistry,
};

const OPENED: &str = "bank=https://bank.tools.svc:8443/mcp";

/// Policies with these servers, `NAME=URL`, all intercepted unless the name ends in `!`.
fn policies(servers: &[&str]) -> InForce {
    let one = |server: &&str| {
        let (name, url) = server.split_once('=').unwrap();
        let (name, tls) = name.strip_suffix('!').map_or((name, ", tls: Intercept"), |name| (name, ""));
        format!("  - {{name: {name}, url: '{url}'{tls}}}\n")
    };
    let servers: String = servers.iter().map(one).collect();
    let text = format!("apiVersion: toolweir.dev/v1alpha1\nkind: MCPPolicy\nmetadata: {{name: p}}\nspec:\n  servers:\n{servers}");
    let policies: Vec<Policy> = read_documents("p", &text).unwrap().into_iter().map(|located| located.document.into()).collect();
    let (engine, problems) = Engine::compile(&policies, Memory::new(0), &CompileOptions::default());
    assert!(problems.is_empty(), "{problems:?}");
    InForce::new(engine, Vec::new(), Vec::new(), "v".to_owned(), &SidecarMetrics::new().unwrap().servers).0
}

/// A pod's folders, which are removed with the test.
struct PodFolders {
    folder: PathBuf,
    registry: MetricsRegistry,
    files: FileMetrics,
}

impl PodFolders {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("toolweir-interception-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        for part in ["agents", "state"] {
            fs::create_dir_all(folder.join(part)).unwrap();
        }
        let registry = MetricsRegistry::default();
        let files = FileMetrics::new(&registry).unwrap();
        Self { folder, registry, files }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(if name == KEPT { "state" } else { "agents" }).join(name)
    }

    /// A sidecar that starts, with the policies that it gets first.
    fn start(&self, first: &InForce) -> Interception {
        self.start_at(first, SystemTime::now(), true)
    }

    fn start_at(&self, first: &InForce, now: SystemTime, with_folder: bool) -> Interception {
        let interception = self.undecided(with_folder);
        interception.prepare(first, &self.files, now, Duration::from_secs(60));
        interception
    }

    fn undecided(&self, with_folder: bool) -> Interception {
        let settings = InterceptionSettings {
            folder: with_folder.then(|| self.folder.join("agents")),
            state: StateDir::new(Some(self.folder.join("state"))),
            patience: Duration::from_secs(5),
            extra_roots: Vec::new(),
            pod: "agents/social-0".to_owned(),
        };
        let domains = ["agents.svc.cluster.local", "svc.cluster.local", "cluster.local"].map(str::to_owned);
        let metrics = InterceptionMetrics::new(&MetricsRegistry::default()).unwrap();
        let interception = Interception::new(settings, SearchDomains::new(domains), metrics).unwrap();
        assert!(!interception.is_prepared());
        interception
    }

    /// What an agent trusts: the last certificate of the bundle.
    fn root(&self) -> CertificateDer<'static> {
        CertificateDer::pem_file_iter(self.path(BUNDLE)).unwrap().last().unwrap().unwrap()
    }

    fn page(&self) -> String {
        String::from_utf8(self.registry.encode().unwrap()).unwrap()
    }
}

impl Drop for PodFolders {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The problems of servers. Where one is there, a new pod helps, unless the words say otherwise.
fn problems(report: &InterceptionReport) -> Vec<(&str, Option<&str>)> {
    for state in &report.interception {
        assert_eq!(state.needs_new_pod, state.problem.as_ref().is_some_and(|problem| problem.ends_with("create the pod anew")));
    }
    report.interception.iter().map(|state| (state.server.as_str(), state.problem.as_deref())).collect()
}

/// What a client of this root and these protocols gets from a server that says `hello`: the text, and whether HTTP/2 was agreed on.
async fn ask(
    interception: &Interception,
    root: CertificateDer<'static>,
    name: &str,
    protocols: &[&[u8]],
    http2: bool,
) -> (Result<String, String>, Result<bool, HandshakeError>) {
    let mut roots = RootCertStore::empty();
    roots.add(root).unwrap();
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let (here, there) = duplex(1024);
    let client = async {
        let connector = TlsConnector::from(Arc::new(config));
        let mut stream = connector.connect(ServerName::try_from(name.to_owned()).unwrap(), here).await?;
        let mut said = String::new();
        stream.read_to_string(&mut said).await?;
        Ok::<_, std::io::Error>(said)
    };
    let server = async {
        let (mut stream, opened) = interception.accept(name, there, http2, SystemTime::now()).await?;
        opened.asked();
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
        Ok(is_http2(&stream))
    };
    let (client, server) = tokio::join!(client, server);
    (client.map_err(|error| error.to_string()), server)
}

#[tokio::test]
async fn an_agent_that_trusts_the_bundle_gets_an_answer_by_every_spelling_of_the_server() {
    let pod = PodFolders::new("spellings");
    let interception = pod.start(&policies(&[OPENED, "other!=https://other.tools.svc/mcp"]));
    for name in ["bank.tools.svc", "bank.tools", "bank.tools.svc.cluster.local"] {
        let (said, http2) = ask(&interception, pod.root(), name, &[b"h2", b"http/1.1"], true).await;
        assert_eq!((said.as_deref(), http2.unwrap()), (Ok("hello"), true), "{name}");
    }
    for (protocols, offered, agreed) in
        [(&[&b"h2"[..], b"http/1.1"][..], false, false), (&[b"http/1.1"], true, false), (&[], true, false)]
    {
        let (said, http2) = ask(&interception, pod.root(), "bank.tools", protocols, offered).await;
        assert_eq!((said.as_deref(), http2.unwrap()), (Ok("hello"), agreed));
    }
    for name in ["other.tools.svc", "tools", "xbank.tools"] {
        assert!(!interception.covers(name));
        let (said, server) = ask(&interception, pod.root(), name, &[], true).await;
        assert!(said.is_err() && matches!(server, Err(HandshakeError::Failed(_))), "{name}: {said:?}");
    }
    for (file, most) in [(BUNDLE, 0o644), (KEY_STORE, 0o644), (KEPT, 0o600)] {
        assert_eq!(fs::metadata(pod.path(file)).unwrap().permissions().mode() & 0o777, most, "{file}");
    }
}

#[tokio::test]
async fn a_client_that_does_not_trust_the_authority_is_told_from_one_that_hangs_up() {
    let (pod, other) = (PodFolders::new("trust"), PodFolders::new("other"));
    let interception = pod.start(&policies(&[OPENED]));
    other.start(&policies(&[OPENED]));
    let (said, server) = ask(&interception, other.root(), "bank.tools.svc", &[], true).await;
    assert!(said.unwrap_err().contains("UnknownIssuer"));
    assert_eq!(server.unwrap_err().as_str(), "refused");
    let (client, stream) = duplex(64);
    drop(client);
    let hung_up = interception.accept("bank.tools.svc", stream, true, SystemTime::now()).await;
    assert_eq!(hung_up.unwrap_err().as_str(), "failed");
}

#[tokio::test]
async fn a_restart_changes_nothing_that_agents_trust() {
    let pod = PodFolders::new("restart");
    let first = pod.start(&policies(&[OPENED]));
    let before = [BUNDLE, KEY_STORE, KEPT].map(|file| {
        let written = fs::metadata(pod.path(file)).unwrap().modified().unwrap();
        (fs::read(pod.path(file)).unwrap(), written)
    });
    let root = pod.root();
    // By then, other policies are in force.
    let again = pod.start(&policies(&["new=https://new.example/mcp"]));
    let after = [BUNDLE, KEY_STORE, KEPT].map(|file| {
        let written = fs::metadata(pod.path(file)).unwrap().modified().unwrap();
        (fs::read(pod.path(file)).unwrap(), written)
    });
    assert_eq!((before, first.describe()), (after, again.describe()));
    assert_eq!(ask(&again, root, "bank.tools.svc", &[], true).await.0.as_deref(), Ok("hello"));
    let report = again.report(&policies(&[OPENED, "new=https://new.example/mcp"]));
    let problem = "the pod was created before a policy declared new.example with it; create the pod anew";
    assert_eq!(problems(&report), [("bank", None), ("new", Some(problem))]);
}

#[test]
fn a_pod_without_servers_to_intercept_has_no_authority_for_ever() {
    let pod = PodFolders::new("none");
    let interception = pod.start(&policies(&["bank!=https://bank.tools.svc/mcp"]));
    assert!(interception.is_prepared() && interception.describe().is_none());
    assert!(pod.path(BUNDLE).exists() && pod.path(KEY_STORE).exists());
    let again = pod.start(&policies(&[OPENED]));
    assert!(again.describe().is_none() && !again.covers("bank.tools.svc"));
    let before = PodFolders::new("before");
    let without = before.start_at(&policies(&[OPENED]), SystemTime::now(), false);
    assert!(without.is_prepared() && !before.path(BUNDLE).exists() && !before.path(KEPT).exists());
    let problem = "the pod was created before a policy asked for it; create the pod anew";
    assert_eq!(problems(&without.report(&policies(&[OPENED]))), [("bank", Some(problem))]);
}

#[test]
fn the_first_policies_may_lack_the_one_for_which_the_pod_got_its_folder() {
    let pod = PodFolders::new("late");
    let interception = pod.undecided(true);
    let prepare = |policies: &InForce, seconds| {
        interception.prepare(policies, &pod.files, SystemTime::now(), Duration::from_secs(seconds));
        interception.is_prepared()
    };
    assert!(!prepare(&policies(&["bank!=https://bank.tools.svc/mcp"]), 1) && !pod.path(BUNDLE).exists());
    assert!(prepare(&policies(&[OPENED]), 2) && interception.covers("bank.tools.svc"));
    assert!(pod.page().contains(r#"toolweir_file_failures_total{file="interception",operation="write"} 0"#));
}

#[tokio::test]
async fn a_host_that_is_too_long_below_a_search_domain_does_not_close_the_others() {
    let pod = PodFolders::new("long");
    let long = ["a"; 4].map(|letter| letter.repeat(58)).join(".");
    let interception = pod.start(&policies(&[OPENED, &format!("long=https://{long}/mcp")]));
    for name in ["bank.tools", &long] {
        assert_eq!(ask(&interception, pod.root(), name, &[], true).await.0.as_deref(), Ok("hello"), "{name}");
    }
}

#[tokio::test]
async fn an_authority_that_is_lost_or_damaged_is_made_anew_and_old_agents_do_not_connect() {
    let pod = PodFolders::new("damaged");
    pod.start(&policies(&[OPENED]));
    let (old, good) = (pod.root(), fs::read_to_string(pod.path(KEPT)).unwrap());
    for damaged in ["", "{}", "{\"authority\":{}}", &good.replace("BEGIN PRIVATE", "BEGIN"), &good[..good.len() / 2]] {
        fs::write(pod.path(KEPT), damaged).unwrap();
        let interception = pod.start(&policies(&[OPENED]));
        assert!(ask(&interception, old.clone(), "bank.tools.svc", &[], true).await.0.unwrap_err().contains("UnknownIssuer"));
        assert_eq!(ask(&interception, pod.root(), "bank.tools.svc", &[], true).await.0.as_deref(), Ok("hello"), "{damaged}");
    }
    let page = pod.page();
    assert!(page.contains(r#"toolweir_file_failures_total{file="interception",operation="read"} 5"#), "{page}");
    fs::remove_file(pod.path(KEPT)).unwrap();
    pod.start(&policies(&[OPENED]));
    assert_ne!(pod.root(), old);
}

#[test]
fn a_sidecar_that_cannot_write_for_agents_is_not_ready() {
    let pod = PodFolders::new("unwritable");
    fs::create_dir(pod.path(BUNDLE)).unwrap();
    let interception = pod.start(&policies(&[OPENED]));
    assert!(!interception.is_prepared() && !interception.covers("bank.tools.svc"));
    assert!(pod.page().contains(r#"toolweir_file_failures_total{file="interception",operation="write"} 1"#));
    let report = interception.report(&policies(&[OPENED]));
    assert!(problems(&report)[0].1.unwrap().starts_with("the pod's certificate authority is not made and written yet"));
    let changes = interception.changes();
    assert!(!changes.has_changed().unwrap());
    fs::remove_dir(pod.path(BUNDLE)).unwrap();
    interception.prepare(&policies(&[OPENED]), &pod.files, SystemTime::now(), Duration::ZERO);
    assert!(interception.is_prepared() && interception.covers("bank.tools.svc"));
    assert!(changes.has_changed().unwrap(), "the operator is told, though no policy changed");
}

#[tokio::test]
async fn a_certificate_is_made_anew_at_half_of_its_life() {
    let pod = PodFolders::new("renewed");
    let interception = pod.start(&policies(&[OPENED]));
    let serial = |at: SystemTime| {
        interception.certify("bank.tools", at).unwrap();
        interception.certificates.get("bank.tools", |certificate| certificate.key.cert[0].clone()).unwrap()
    };
    let now = SystemTime::now();
    let first = serial(now);
    assert_eq!(serial(now + Duration::from_secs(10 * 3600)), first);
    assert_ne!(serial(now + Duration::from_secs(13 * 3600)), first);
}
