//! Names of the operator and of the store, by DNS alone.
//!
//! All containers of a pod share one `/etc/hosts`, and mostly one `/etc/resolv.conf`; who is root in one of them may write to both.
//! So the first is not read at all, and the second once: a sidecar starts before the agent does. What an agent can do all the same is
//! in docs/security.md, under "Names"; TLS is what it cannot get around.

use std::{future::Future, net::IpAddr, pin::Pin, sync::OnceLock, time::Duration};

use hickory_resolver::{
    ConnectionProvider, PoolContext, Resolver,
    config::{ConnectionConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    lookup_ip::LookupIp,
    net::{
        NetError,
        runtime::TokioRuntimeProvider,
        xfer::{DnsExchange, DnsHandle},
    },
    proto::op::DnsRequest,
    system_conf::{parse_resolv_conf, read_system_conf},
};

/// The most answers that [`caching_resolver`] remembers.
const CACHED: u64 = 512;

/// A question that is not answered for so long is asked once more: its datagram may be lost. The first is still waited for.
const ASKED_AGAIN: Duration = Duration::from_millis(500);

/// A resolver that asks DNS servers over [`DnsConnections`].
pub type DnsResolver = Resolver<DnsConnections>;

/// Connections to DNS servers on which a lost datagram costs half a second. hickory alone asks again after a multiple of the time that a
/// server takes, and counts 150 ms for each name that is not there. With the search domains of a pod, of which most names come to nothing,
/// that makes up to 5 s, after which whoever wanted the name has given up.
#[derive(Clone, Default)]
pub struct DnsConnections(TokioRuntimeProvider);

impl ConnectionProvider for DnsConnections {
    type Conn = DnsConnection;
    type FutureConn = Pin<Box<dyn Future<Output = Result<DnsConnection, NetError>> + Send>>;
    type RuntimeProvider = TokioRuntimeProvider;

    fn new_connection(&self, ip: IpAddr, config: &ConnectionConfig, context: &PoolContext) -> Result<Self::FutureConn, NetError> {
        let made = self.0.new_connection(ip, config, context)?;
        Ok(Box::pin(async { Ok(DnsConnection(made.await?)) }))
    }

    fn runtime_provider(&self) -> &TokioRuntimeProvider {
        &self.0
    }
}

/// One of [`DnsConnections`].
#[derive(Clone)]
pub struct DnsConnection(DnsExchange<TokioRuntimeProvider>);

impl DnsHandle for DnsConnection {
    type Response = <DnsExchange<TokioRuntimeProvider> as DnsHandle>::Response;
    type Runtime = TokioRuntimeProvider;

    fn is_verifying_dnssec(&self) -> bool {
        self.0.is_verifying_dnssec()
    }

    fn is_using_edns(&self) -> bool {
        self.0.is_using_edns()
    }

    fn send(&self, mut request: DnsRequest) -> Self::Response {
        let after = request.options().retry_interval.min(ASKED_AGAIN);
        request.options_mut().retry_interval = after;
        self.0.send(request)
    }
}

/// The content of `/etc/resolv.conf` when it was read.
static SYSTEM: OnceLock<(ResolverConfig, ResolverOpts)> = OnceLock::new();

/// Reads `/etc/resolv.conf`, if this process has not yet. What is written to it later has no effect on [`resolver`].
///
/// # Errors
/// The file cannot be read, or names no server. It is read again the next time.
pub fn read() -> Result<(), String> {
    system().map(|_| ())
}

/// Takes a text in place of `/etc/resolv.conf`, if this process has not read that yet.
///
/// # Errors
/// The text names no server, or cannot be read.
pub fn use_text(text: &[u8]) -> Result<(), String> {
    let read = parse_resolv_conf(text).map_err(|error| error.to_string())?;
    if read.0.name_servers().is_empty() {
        return Err("names no nameserver".to_owned());
    }
    SYSTEM.get_or_init(|| read);
    Ok(())
}

fn system() -> Result<&'static (ResolverConfig, ResolverOpts), String> {
    if let Some(read) = SYSTEM.get() {
        return Ok(read);
    }
    let read = read_system_conf().map_err(|error| format!("/etc/resolv.conf: {error}"))?;
    Ok(SYSTEM.get_or_init(|| read))
}

/// A resolver that asks the servers of `/etc/resolv.conf`, with its search domains, and reads no hosts file. It remembers nothing: a
/// connection is rare, and often made since something moved.
///
/// # Errors
/// Those of [`read`], or it cannot be set up.
pub fn resolver() -> Result<DnsResolver, String> {
    let (config, options) = system()?;
    alone(config.clone(), options.clone(), 0)
}

/// A resolver like [`resolver`] that remembers what it is told, for as long as the answer says. That there is no such name it
/// remembers for a second at most.
///
/// # Errors
/// Those of [`resolver`].
pub fn caching_resolver() -> Result<DnsResolver, String> {
    let (config, options) = system()?;
    let mut options = options.clone();
    options.negative_max_ttl = Some(Duration::from_secs(1));
    alone(config.clone(), options, CACHED)
}

/// The search domains of `/etc/resolv.conf`.
///
/// # Errors
/// Those of [`read`].
pub fn search_domains() -> Result<Vec<String>, String> {
    let (config, _) = system()?;
    Ok(config.search().iter().map(ToString::to_string).collect())
}

/// The addresses of a name.
///
/// # Errors
/// Those of DNS.
pub async fn addresses(resolver: &DnsResolver, name: &str) -> Result<Vec<IpAddr>, NetError> {
    Ok(lookup(resolver, name).await?.iter().collect())
}

/// What DNS says about a name: its addresses, and the whole name, with the search domain, that has them.
///
/// # Errors
/// Those of DNS.
pub async fn lookup(resolver: &DnsResolver, name: &str) -> Result<LookupIp, NetError> {
    // The machine itself is no matter of DNS, and of no search domain either (RFC 6761, section 6.3).
    if name == "localhost" || name.ends_with(".localhost") {
        resolver.lookup_ip(format!("{name}.")).await
    } else {
        resolver.lookup_ip(name).await
    }
}

fn alone(config: ResolverConfig, mut options: ResolverOpts, cached: u64) -> Result<DnsResolver, String> {
    options.use_hosts_file = ResolveHosts::Never;
    options.cache_size = cached;
    let mut builder = DnsResolver::builder_with_config(config, DnsConnections::default());
    *builder.options_mut() = options;
    builder.build().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, fs, net::Ipv4Addr, time::Instant};

    use hickory_resolver::{
        config::{ConnectionConfig, NameServerConfig},
        proto::rr::Name,
    };
    use tokio::net::UdpSocket;

    use super::*;

    const ANSWER: [u8; 4] = [127, 0, 0, 99];

    /// A DNS server that knows an address for each name that `known` takes, and says of others that they are not there. The first datagram
    /// of each question for a name that begins with `lost` is lost.
    async fn server(known: fn(&str) -> bool) -> u16 {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = socket.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut buffer, mut asked) = ([0; 512], HashSet::new());
            loop {
                let Ok((length, from)) = socket.recv_from(&mut buffer).await else { return };
                // One question: labels, then type and class (RFC 1035, section 4.1.2).
                let (mut at, mut name) = (12, String::new());
                while buffer[at] != 0 {
                    let label = &buffer[at + 1..=at + usize::from(buffer[at])];
                    name.push_str(&std::str::from_utf8(label).unwrap().to_ascii_lowercase());
                    name.push('.');
                    at += 1 + label.len();
                }
                let (end, is_a) = (at + 5, buffer[at + 2] == 1);
                assert!(end <= length);
                if name.starts_with("lost") && asked.insert((name.clone(), is_a)) {
                    continue;
                }
                let (there, answers) = (known(&name), u8::from(known(&name) && is_a));
                let mut said = buffer[..2].to_vec();
                said.extend([0x81, if there { 0x80 } else { 0x83 }, 0, 1, 0, answers, 0, 0, 0, 0]);
                said.extend(&buffer[12..end]);
                if answers == 1 {
                    said.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                    said.extend(ANSWER);
                }
                let _ = socket.send_to(&said, from).await;
            }
        });
        port
    }

    async fn resolver_of(known: fn(&str) -> bool, search: &[&str]) -> DnsResolver {
        let mut connection = ConnectionConfig::udp();
        connection.port = server(known).await;
        let server = NameServerConfig::new(Ipv4Addr::LOCALHOST.into(), true, vec![connection]);
        let search = search.iter().map(|name| Name::from_ascii(name).unwrap()).collect();
        let mut options = ResolverOpts::default();
        options.ndots = 5;
        alone(ResolverConfig::from_parts(None, search, vec![server]), options, 0).unwrap()
    }

    #[tokio::test]
    async fn a_name_of_the_hosts_file_is_what_dns_says() {
        let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
        let names = hosts.lines().filter_map(|line| line.split('#').next()).flat_map(|line| line.split_whitespace().skip(1));
        let resolver = resolver_of(|_| true, &[]).await;
        // A name that is reserved for the machine itself is no matter of DNS.
        for name in names.filter(|name| !name.ends_with("localhost")) {
            assert_eq!(addresses(&resolver, name).await.unwrap(), [IpAddr::from(ANSWER)], "{name}");
        }
        assert_eq!(resolver.options().use_hosts_file, ResolveHosts::Never);
    }

    #[tokio::test]
    async fn names_of_services_are_found_with_the_search_domains_of_the_pod() {
        let known = |name: &str| name == "toolweir-operator.toolweir-system.svc.cluster.local.";
        let resolver = resolver_of(known, &["agents.svc.cluster.local.", "svc.cluster.local.", "cluster.local."]).await;
        for name in ["toolweir-operator.toolweir-system.svc", "toolweir-operator.toolweir-system.svc.cluster.local"] {
            assert_eq!(addresses(&resolver, name).await.unwrap(), [IpAddr::from(ANSWER)], "{name}");
        }
        assert!(addresses(&resolver, "other.toolweir-system.svc").await.unwrap_err().is_nx_domain());
    }

    #[tokio::test]
    async fn a_lost_datagram_is_sent_again_soon_whatever_was_asked_before() {
        let domains = ["agents.svc.cluster.local.", "svc.cluster.local.", "cluster.local."];
        let resolver = resolver_of(|name| name.ends_with(".test."), &domains).await;
        // Each comes to nothing in three domains, and has no IPv6 address.
        for number in 0..10 {
            addresses(&resolver, &format!("name-{number}.test")).await.unwrap();
        }
        let began = Instant::now();
        assert_eq!(addresses(&resolver, "lost.test.").await.unwrap(), [IpAddr::from(ANSWER)]);
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(300), "nothing was lost: {took:?}");
        assert!(took < Duration::from_millis(1500), "{took:?}");
    }

    #[tokio::test]
    async fn the_machine_itself_is_known_without_a_question() {
        // The server would know another address for it, behind the search domain.
        let resolver = resolver_of(|_| true, &["agents.svc.cluster.local."]).await;
        for name in ["localhost", "a.localhost"] {
            let found = addresses(&resolver, name).await.unwrap();
            assert!(!found.is_empty() && found.iter().all(IpAddr::is_loopback), "{name}: {found:?}");
        }
    }

    #[test]
    fn the_machines_servers_are_read_once() {
        read().unwrap();
        assert!(std::ptr::eq(system().unwrap(), system().unwrap()));
        assert_eq!(resolver().unwrap().options().use_hosts_file, ResolveHosts::Never);
    }
}
