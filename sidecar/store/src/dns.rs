//! Names of the operator and of the store, by DNS alone.
//!
//! All containers of a pod share one `/etc/hosts`, and mostly one `/etc/resolv.conf`; who is root in one of them may write to both.
//! So the first is not read at all, and the second once: a sidecar starts before the agent does. What an agent can do all the same is
//! in docs/security.md, under "Names"; TLS is what it cannot get around.

use std::{net::IpAddr, sync::OnceLock, time::Duration};

use hickory_resolver::{
    TokioResolver,
    config::{ResolveHosts, ResolverConfig, ResolverOpts},
    lookup_ip::LookupIp,
    net::{NetError, runtime::TokioRuntimeProvider},
    system_conf::{parse_resolv_conf, read_system_conf},
};

/// The most answers that [`caching_resolver`] remembers.
const CACHED: u64 = 512;

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
pub fn resolver() -> Result<TokioResolver, String> {
    let (config, options) = system()?;
    alone(config.clone(), options.clone(), 0)
}

/// A resolver like [`resolver`] that remembers what it is told, for as long as the answer says. That there is no such name it
/// remembers for a second at most.
///
/// # Errors
/// Those of [`resolver`].
pub fn caching_resolver() -> Result<TokioResolver, String> {
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
pub async fn addresses(resolver: &TokioResolver, name: &str) -> Result<Vec<IpAddr>, NetError> {
    Ok(lookup(resolver, name).await?.iter().collect())
}

/// What DNS says about a name: its addresses, and the whole name, with the search domain, that has them.
///
/// # Errors
/// Those of DNS.
pub async fn lookup(resolver: &TokioResolver, name: &str) -> Result<LookupIp, NetError> {
    // The machine itself is no matter of DNS, and of no search domain either (RFC 6761, section 6.3).
    if name == "localhost" || name.ends_with(".localhost") {
        resolver.lookup_ip(format!("{name}.")).await
    } else {
        resolver.lookup_ip(name).await
    }
}

fn alone(config: ResolverConfig, mut options: ResolverOpts, cached: u64) -> Result<TokioResolver, String> {
    options.use_hosts_file = ResolveHosts::Never;
    options.cache_size = cached;
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    builder.build().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::{fs, net::Ipv4Addr};

    use hickory_resolver::{
        config::{ConnectionConfig, NameServerConfig},
        proto::rr::Name,
    };
    use tokio::net::UdpSocket;

    use super::*;

    const ANSWER: [u8; 4] = [127, 0, 0, 99];

    /// A DNS server that knows an address for each name that `known` takes, and says of others that they are not there.
    async fn server(known: fn(&str) -> bool) -> u16 {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = socket.local_addr().unwrap().port();
        tokio::spawn(async move {
            let mut buffer = [0; 512];
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

    async fn resolver_of(known: fn(&str) -> bool, search: &[&str]) -> TokioResolver {
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
