//! Names of servers, resolved in Rust: a static program has no resolver of the C library.
//!
//! A machine can start offline and change its network. So how names are resolved is read again when it has changed, and
//! a failure to read it is not kept.

use std::{
    fmt, fs, io,
    io::Read,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use hickory_resolver::{
    Hosts,
    config::{ResolveHosts, ResolverConfig, ResolverOpts},
    net::NetError,
    system_conf::parse_resolv_conf,
};
use toolweir_store::dns::{DnsConnections, DnsResolver};

/// The time for which a name that has no address is taken to have none.
const NEGATIVE: Duration = Duration::from_secs(5);
/// The most bytes of resolv.conf that are read.
const LARGEST: u64 = 64 * 1024;

/// Why a name has no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A nameserver says that there is no such name.
    #[error("DNS knows no name {0}")]
    Unknown(String),
    /// A nameserver says that it has none.
    #[error("DNS has no address for the name {0}")]
    NoAddress(String),
    /// Nobody says anything.
    #[error("no nameserver answers for the name {0}")]
    Silence(String),
    /// There is nobody to ask.
    #[error("the name {0} cannot be resolved, since {1} names no nameserver")]
    NoNameserver(String, String),
    /// The file that names the nameservers cannot be read.
    #[error("{0} cannot be read: {1}")]
    Configuration(String, String),
    /// The text is no name.
    #[error("{0} is no name of a host")]
    NoName(String),
}

/// The files and the port by which names are resolved.
#[derive(Clone, Debug)]
pub struct ResolverSource {
    /// The file that names the nameservers (resolv.conf(5)).
    pub resolv: PathBuf,
    /// The file of names that need none (hosts(5)), if it is to be believed.
    pub hosts: Option<PathBuf>,
    /// The port of nameservers, if it is not 53.
    pub port: Option<u16>,
}

impl Default for ResolverSource {
    fn default() -> Self {
        Self { resolv: "/etc/resolv.conf".into(), hosts: Some("/etc/hosts".into()), port: None }
    }
}

/// Resolves names. Cheap to clone.
#[derive(Clone, Default)]
pub struct HostNames(Arc<HostNamesState>);

#[derive(Default)]
struct HostNamesState {
    source: ResolverSource,
    made: Mutex<Option<Arc<LoadedResolver>>>,
}

/// A resolver, and what it was made from.
struct LoadedResolver {
    resolv: Vec<u8>,
    hosts: Option<Stamp>,
    resolver: DnsResolver,
    nameservers: bool,
}

/// The time and the length of a file, which tell one state of it from another.
type Stamp = (SystemTime, u64);

impl fmt::Debug for HostNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Names").field(&self.0.source).finish()
    }
}

impl HostNames {
    /// Resolves as this says. Its files are looked at for each name.
    pub fn new(source: ResolverSource) -> Self {
        Self(Arc::new(HostNamesState { source, made: Mutex::default() }))
    }

    /// The files and the port by which names are resolved.
    pub fn source(&self) -> &ResolverSource {
        &self.0.source
    }

    /// The addresses of a host, at least one.
    ///
    /// # Errors
    /// The host has none, or nobody knows.
    pub async fn lookup(&self, host: &str) -> Result<Vec<IpAddr>, NameError> {
        let name = host.strip_suffix('.').unwrap_or(host);
        if let Ok(address) = name.parse() {
            return Ok(vec![address]);
        }
        // RFC 6761, section 6.3: no nameserver is asked.
        let last = name.rsplit('.').next().unwrap_or_default();
        if last.eq_ignore_ascii_case("localhost") {
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        let made = self.0.current()?;
        let found = made.resolver.lookup_ip(host).await.map_err(|error| self.0.describe(host, made.nameservers, &error))?;
        let addresses: Vec<IpAddr> = found.iter().collect();
        if addresses.is_empty() { Err(NameError::NoAddress(host.to_owned())) } else { Ok(addresses) }
    }
}

impl HostNamesState {
    /// The resolver for what the files say now.
    fn current(&self) -> Result<Arc<LoadedResolver>, NameError> {
        let mut resolv = Vec::new();
        match fs::File::open(&self.source.resolv).and_then(|file| file.take(LARGEST).read_to_end(&mut resolv)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(self.unreadable(&error)),
            _ => {}
        }
        let hosts = self.source.hosts.as_ref().and_then(|path| fs::metadata(path).ok());
        let hosts = hosts.and_then(|about| Some((about.modified().ok()?, about.len())));
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = made.as_ref().filter(|made| made.resolv == resolv && made.hosts == hosts) {
            return Ok(Arc::clone(made));
        }
        let new = Arc::new(self.make(resolv, hosts)?);
        *made = Some(Arc::clone(&new));
        Ok(new)
    }

    fn make(&self, resolv: Vec<u8>, stamp: Option<Stamp>) -> Result<LoadedResolver, NameError> {
        let lines = resolv.split(|byte| *byte == b'\n');
        let nameservers = lines.map(<[u8]>::trim_ascii_start).any(|line| line.starts_with(b"nameserver"));
        let (config, mut options) = if nameservers {
            parse_resolv_conf(&resolv).map_err(|error| self.unreadable(&error))?
        } else {
            // The file of hosts is worth reading without one too.
            (ResolverConfig::from_parts(None, Vec::new(), Vec::new()), ResolverOpts::default())
        };
        let mut servers = config.name_servers().to_vec();
        for connection in servers.iter_mut().flat_map(|server| &mut server.connections) {
            connection.port = self.source.port.unwrap_or(connection.port);
        }
        let config = ResolverConfig::from_parts(config.domain().cloned(), config.search().to_vec(), servers);
        options.negative_max_ttl = Some(NEGATIVE);
        options.use_hosts_file = ResolveHosts::Never;
        let builder = DnsResolver::builder_with_config(config, DnsConnections::default());
        let mut resolver = builder.with_options(options).build().map_err(|error| self.unreadable(&error))?;
        let mut hosts = Hosts::default();
        if let Some(path) = &self.source.hosts
            && let Err(error) = fs::File::open(path).and_then(|file| hosts.read_hosts_conf(file))
        {
            tracing::debug!(path = %path.display(), %error, "hosts");
        }
        resolver.set_hosts(Arc::new(hosts));
        Ok(LoadedResolver { resolv, hosts: stamp, resolver, nameservers })
    }

    fn unreadable(&self, error: &dyn fmt::Display) -> NameError {
        NameError::Configuration(self.source.resolv.display().to_string(), error.to_string())
    }

    fn describe(&self, host: &str, nameservers: bool, error: &NetError) -> NameError {
        let host = host.to_owned();
        match error {
            _ if !nameservers => NameError::NoNameserver(host, self.source.resolv.display().to_string()),
            NetError::Proto(_) => NameError::NoName(host),
            error if error.is_nx_domain() => NameError::Unknown(host),
            error if error.is_no_records_found() => NameError::NoAddress(host),
            _ => NameError::Silence(host),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{SocketAddr, UdpSocket},
        sync::atomic::{AtomicUsize, Ordering},
        thread,
    };

    use super::*;

    struct Files(PathBuf);

    impl Files {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("toolweir-names-{name}-{}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            Self(folder)
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, text).unwrap();
            path
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn of(resolv: PathBuf, hosts: Option<PathBuf>, port: Option<u16>) -> HostNames {
        HostNames::new(ResolverSource { resolv, hosts, port })
    }

    #[tokio::test]
    async fn localhost_and_addresses_need_no_nameserver_and_no_configuration() {
        let names = of("/nowhere/resolv.conf".into(), None, None);
        let both: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        for name in ["localhost", "LocalHost.", "a.localhost"] {
            assert_eq!(names.lookup(name).await.unwrap(), both, "{name}");
        }
        assert_eq!(names.lookup("192.0.2.7").await.unwrap(), ["192.0.2.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(names.lookup("2001:db8::1").await.unwrap(), ["2001:db8::1".parse::<IpAddr>().unwrap()]);
        let error = names.lookup("tools.test").await.unwrap_err();
        assert_eq!(error.to_string(), "the name tools.test cannot be resolved, since /nowhere/resolv.conf names no nameserver");
    }

    #[tokio::test]
    async fn a_file_of_hosts_is_read_without_a_nameserver_and_again_when_it_changes() {
        let files = Files::new("hosts");
        let hosts = files.write("hosts", "192.0.2.1 tools.test\n");
        let names = of(files.write("resolv.conf", "# none\n"), Some(hosts), None);
        assert_eq!(names.lookup("tools.test").await.unwrap(), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        files.write("hosts", "192.0.2.22 tools.test\n");
        assert_eq!(names.lookup("tools.test").await.unwrap(), ["192.0.2.22".parse::<IpAddr>().unwrap()]);
    }

    /// A nameserver that gives a name an address or none, by how many questions came before.
    fn nameserver(at: [u8; 4], port: u16, answer: impl Fn(usize) -> Option<[u8; 4]> + Send + 'static) -> (u16, Arc<AtomicUsize>) {
        let socket = UdpSocket::bind(SocketAddr::from((at, port))).unwrap();
        let port = socket.local_addr().unwrap().port();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        thread::spawn(move || {
            let mut question = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut question) {
                let answer = answer(count.fetch_add(1, Ordering::SeqCst));
                let question = &question[..length];
                let mut end = 12;
                while question[end] != 0 {
                    end += usize::from(question[end]) + 1;
                }
                let kind = question[end + 2];
                let address = answer.filter(|_| kind == 1);
                let code = if answer.is_some() { 0x80 } else { 0x83 };
                let (answers, authorities) = (u8::from(address.is_some()), u8::from(answer.is_none()));
                let mut reply = [&question[..2], &[0x85, code, 0, 1, 0, answers, 0, authorities, 0, 0]].concat();
                reply.extend_from_slice(&question[12..end + 5]);
                if let Some(address) = address {
                    reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                    reply.extend_from_slice(&address);
                }
                if answer.is_none() {
                    // That it has none holds for an hour: the SOA record says so (RFC 2308, section 5).
                    reply.extend_from_slice(&[0xc0, 12, 0, 6, 0, 1, 0, 0, 14, 16, 0, 22, 0, 0]);
                    reply.extend_from_slice(&[[0, 0, 14, 16]; 5].concat());
                }
                let _ = socket.send_to(&reply, from);
            }
        });
        (port, asked)
    }

    #[tokio::test]
    async fn another_networks_nameserver_is_asked_from_the_next_name_on() {
        let (port, nobody) = nameserver([127, 0, 53, 1], 0, |_| None);
        let (_, somebody) = nameserver([127, 0, 53, 2], port, |_| Some([192, 0, 2, 9]));
        let files = Files::new("resolv");
        let names = of(files.write("resolv.conf", ""), None, Some(port));
        assert!(matches!(names.lookup("tools.test").await.unwrap_err(), NameError::NoNameserver(..)));
        files.write("resolv.conf", "nameserver 127.0.53.1\n");
        assert_eq!(names.lookup("tools.test").await.unwrap_err(), NameError::Unknown("tools.test".to_owned()));
        assert!(nobody.load(Ordering::SeqCst) > 0);
        files.write("resolv.conf", "nameserver 127.0.53.2\n");
        assert_eq!(names.lookup("tools.test").await.unwrap(), ["192.0.2.9".parse::<IpAddr>().unwrap()]);
        assert!(somebody.load(Ordering::SeqCst) > 0);
        // Back on a network without one.
        files.write("resolv.conf", "options timeout:1\n");
        assert!(matches!(names.lookup("tools.test").await.unwrap_err(), NameError::NoNameserver(..)));
    }

    #[tokio::test]
    async fn that_a_name_has_no_address_is_kept_for_at_most_5_s() {
        let made = Arc::new(AtomicUsize::new(0));
        let is_made = Arc::clone(&made);
        let (port, asked) =
            nameserver([127, 0, 53, 3], 0, move |_| (is_made.load(Ordering::SeqCst) > 0).then_some([192, 0, 2, 9]));
        let files = Files::new("negative");
        let names = of(files.write("resolv.conf", "nameserver 127.0.53.3\n"), None, Some(port));
        assert_eq!(names.lookup("tools.test").await.unwrap_err(), NameError::Unknown("tools.test".to_owned()));
        let before = asked.load(Ordering::SeqCst);
        assert!(names.lookup("tools.test").await.is_err());
        assert_eq!(asked.load(Ordering::SeqCst), before, "it is kept for a moment");
        made.store(1, Ordering::SeqCst);
        tokio::time::sleep(NEGATIVE + Duration::from_millis(500)).await;
        assert_eq!(names.lookup("tools.test").await.unwrap(), ["192.0.2.9".parse::<IpAddr>().unwrap()]);
    }
}
