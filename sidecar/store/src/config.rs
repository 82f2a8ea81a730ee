//! The configuration of the store: its URL, its user, and how it is used.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
    time::Duration,
};

use toolweir_crds::stream::SharedStore;

use crate::error::{StoreError, StoreFault};

/// The port of a server, unless the URL has one.
pub const PORT: u16 = 6379;
/// The port of a Sentinel, unless the URL has one.
pub const SENTINEL_PORT: u16 = 26379;
/// The longest prefix of keys, in characters.
pub const LONGEST_PREFIX: usize = 64;
/// The longest time that a call may wait for the store.
pub const LONGEST_BUDGET: Duration = Duration::from_secs(10);
/// The most hosts of a URL.
pub const MOST_HOSTS: usize = 16;

/// The longest name of a host, in characters: DNS has no longer ones.
const LONGEST_HOST: usize = 253;
const FORMS: &str = "redis://HOST[:PORT][/DB], redis+sentinel://HOST[:PORT],.../MASTER[/DB] or redis+cluster://HOST[:PORT],...; \
                     with TLS, rediss in place of redis";

/// The configuration of the store.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// The server, the Sentinels or the cluster.
    pub url: StoreUrl,
    /// The ACL user; the default user if there is none.
    pub username: Option<String>,
    /// The password.
    pub password: Option<String>,
    /// Certificates in PEM to trust besides the system's.
    pub ca: Option<String>,
    /// The beginning of every key.
    pub prefix: String,
    /// Amounts are leased ahead of use where a limit is large against the traffic.
    pub leases: bool,
    /// The longest time that a call waits for the store.
    pub budget: Duration,
}

/// The host and the port of a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// Its name or address; IPv6 without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// Returns whether a text is a valid prefix of keys.
pub fn is_prefix(text: &str) -> bool {
    let usual = |c: char| c.is_ascii_alphanumeric() || "._:-".contains(c);
    (1..=LONGEST_PREFIX).contains(&text.len()) && text.chars().all(usual)
}

/// Returns whether a text is a valid name of an ACL user.
pub fn is_username(text: &str) -> bool {
    !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control())
}

impl StoreConfig {
    /// The hash tag, in braces at the beginning of every key: all keys are in one slot of a cluster.
    pub fn hash_tag(&self) -> &str {
        &self.prefix
    }
}

impl fmt::Debug for StoreConfig {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, username, password, ca, prefix, leases, budget } = self;
        f.debug_struct("Config")
            .field("url", &url.to_string())
            .field("username", username)
            .field("password", &password.as_ref().map(|_| "(not shown)"))
            .field("ca", &ca.as_ref().map(String::len))
            .field("prefix", prefix)
            .field("leases", leases)
            .field("budget", budget)
            .finish()
    }
}

impl TryFrom<&SharedStore> for StoreConfig {
    type Error = StoreError;

    fn try_from(store: &SharedStore) -> Result<Self, StoreError> {
        let SharedStore { url, username, password, ca, prefix, leases, budget_milliseconds } = store;
        let url: StoreUrl = url.parse()?;
        if !is_prefix(prefix) {
            return Err(bad(format!(
                "the prefix of the store's keys is no 1 to {LONGEST_PREFIX} letters, digits and `.`, `_`, `:`, `-`; write one such as \
                 toolweir"
            )));
        }
        let budget = Duration::from_millis(*budget_milliseconds);
        if budget.is_zero() || budget > LONGEST_BUDGET {
            return Err(bad(format!(
                "a call may wait {budget:?} for the store; write 1 to {} milliseconds",
                LONGEST_BUDGET.as_millis()
            )));
        }
        if username.as_deref().is_some_and(|name| !is_username(name)) {
            return Err(bad(
                "the store's user name is empty or has a space in it; write the name of an ACL user, or leave it out",
            ));
        }
        if password.as_ref().is_some_and(String::is_empty) {
            return Err(bad("the store's password is empty; write it into the password file, or leave the file out"));
        }
        if ca.is_some() && !url.tls {
            return Err(bad(format!(
                "the store's url `{url}` is without TLS, so the authority that is given for its certificate is not used; write rediss in \
                 place of redis, or leave the authority out"
            )));
        }
        Ok(Self {
            url,
            username: username.clone(),
            password: password.clone(),
            ca: ca.clone(),
            prefix: prefix.clone(),
            leases: *leases,
            budget,
        })
    }
}

/// The URL of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreUrl {
    /// The kind of store that answers there.
    pub kind: StoreKind,
    /// The connection is over TLS.
    pub tls: bool,
    /// Names or addresses (IPv6 without brackets) and ports; at least one, and for [`StoreKind::Single`] no more.
    pub hosts: Vec<(String, u16)>,
    /// The number of the database; 0 in a cluster.
    pub database: u32,
}

/// The kind of store at a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// One server.
    Single,
    /// Sentinels, which know which server is the master.
    Sentinel {
        /// The master's name in their configuration.
        master: String,
    },
    /// Nodes of a cluster.
    Cluster,
}

/// The warning about a store for which [`StoreUrl::is_in_clear`] holds.
pub const IN_CLEAR: &str = "it is reached without TLS, so its password and all counts pass the network in clear, and whoever can say \
                            where its name leads gets both; have it serve TLS and write rediss in place of redis";

impl StoreUrl {
    /// Returns whether the connection passes a network without TLS.
    pub fn is_in_clear(&self) -> bool {
        let is_here = |host: &str| {
            host == "localhost"
                || host.ends_with(".localhost")
                || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        };
        !self.tls && !self.hosts.iter().all(|(host, _)| is_here(host))
    }
}

impl FromStr for StoreUrl {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        // Before anything else, and without showing it: a password may stand in it.
        if text.contains('@') {
            return Err(bad(
                "the store's url has a user or a password in it, where anybody can read them; write the password into the \
                            password file and the user into the user name's setting, and nothing before the host",
            ));
        }
        if text.contains(['?', '#']) {
            return Err(bad(format!("the store's url has a `?` or a `#` in it, which means nothing here; write {FORMS}")));
        }
        let wrong = |what: &str| bad(format!("the store's url `{text}` {what}"));
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(wrong(&format!("has no scheme; write {FORMS}")));
        };
        let scheme = scheme.to_ascii_lowercase();
        let (base, way) = scheme.split_once('+').map_or((scheme.as_str(), None), |(base, way)| (base, Some(way)));
        let tls = match base {
            "redis" | "valkey" => false,
            "rediss" | "valkeys" => true,
            _ => return Err(wrong(&format!("has an unknown scheme; write {FORMS}"))),
        };
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (kind, database) = match way {
            None => (StoreKind::Single, path),
            Some("cluster") if path.is_empty() => (StoreKind::Cluster, ""),
            Some("cluster") => return Err(wrong("has a path, and a cluster has one database only; end it with the last host")),
            Some("sentinel") => {
                let (master, database) = path.split_once('/').unwrap_or((path, ""));
                if master.is_empty() {
                    return Err(wrong(
                        "does not name the master; write the name of its `sentinel monitor` behind the hosts: /MASTER",
                    ));
                }
                if !master.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) {
                    return Err(wrong("names a master that no Sentinel can have; write letters, digits and `.`, `_`, `-`"));
                }
                (StoreKind::Sentinel { master: master.to_owned() }, database)
            }
            Some(_) => return Err(wrong(&format!("has an unknown scheme; write {FORMS}"))),
        };
        let digits = database.bytes().all(|byte| byte.is_ascii_digit());
        let database = match database {
            "" => 0,
            number if digits => number.parse().map_err(|_| wrong("has a database whose number is too large; write 0 to 15"))?,
            _ => return Err(wrong("has a database that is no number; write /0 to /15, or nothing")),
        };
        let port = if matches!(kind, StoreKind::Sentinel { .. }) { SENTINEL_PORT } else { PORT };
        let hosts = hosts.split(',').map(|one| host(one, port)).collect::<Result<Vec<_>, _>>().map_err(|what| wrong(&what))?;
        if hosts.len() > 1 && kind == StoreKind::Single {
            return Err(wrong("has several hosts; write redis+sentinel:// or redis+cluster:// for those, or one host"));
        }
        if hosts.len() > MOST_HOSTS {
            return Err(wrong(&format!("has {} hosts; {MOST_HOSTS} are enough to find the others", hosts.len())));
        }
        Ok(Self { kind, tls, hosts, database })
    }
}

/// A host with or without a port; else what is wrong.
fn host(text: &str, port: u16) -> Result<(String, u16), String> {
    let (host, rest) = if let Some(inner) = text.strip_prefix('[') {
        let (address, rest) = inner.split_once(']').ok_or("has a `[` without its `]`; write [::1]:6379 for an IPv6 address")?;
        let address: Ipv6Addr = address.parse().map_err(|_| format!("has `{address}` in brackets, which is no IPv6 address"))?;
        (address.to_string(), rest)
    } else {
        let end = text.find(':').unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        if rest.matches(':').count() > 1 {
            return Err("has a host with several colons; write an IPv6 address in brackets, such as [::1]:6379".to_owned());
        }
        if name.is_empty() {
            return Err("lacks a host; write one, such as redis://valkey.store.svc:6379".to_owned());
        }
        let usual = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if name.len() > LONGEST_HOST || !name.chars().all(usual) {
            return Err(format!(
                "has the host `{name}`, which is no name and no address; write such as valkey.store.svc or 10.0.0.7"
            ));
        }
        (name.to_ascii_lowercase(), rest)
    };
    let port = match rest.strip_prefix(':') {
        None if rest.is_empty() => port,
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => match digits.parse() {
            Ok(0) | Err(_) => return Err(format!("has the port `{digits}`; write 1 to 65535")),
            Ok(port) => port,
        },
        _ => return Err(format!("has `{rest}` behind the host `{host}`; write a port as :6379")),
    };
    Ok((host, port))
}

impl fmt::Display for StoreUrl {
    /// The URL with all its ports. It never has a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tls { "rediss" } else { "redis" })?;
        f.write_str(match self.kind {
            StoreKind::Single => "://",
            StoreKind::Sentinel { .. } => "+sentinel://",
            StoreKind::Cluster => "+cluster://",
        })?;
        for (n, (host, port)) in self.hosts.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            if host.contains(':') { write!(f, "{comma}[{host}]:{port}")? } else { write!(f, "{comma}{host}:{port}")? }
        }
        if let StoreKind::Sentinel { master } = &self.kind {
            write!(f, "/{master}")?;
        }
        if self.database == 0 { Ok(()) } else { write!(f, "/{}", self.database) }
    }
}

fn bad(message: impl Into<String>) -> StoreError {
    StoreError::new(StoreFault::BadConfig, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_shown_with_their_ports() {
        let rows = [
            ("redis://valkey", "redis://valkey:6379"),
            ("redis://Valkey.Store.svc:7000/", "redis://valkey.store.svc:7000"),
            ("REDIS://10.0.0.7/3", "redis://10.0.0.7:6379/3"),
            ("redis://h/0", "redis://h:6379"),
            ("rediss://[::1]", "rediss://[::1]:6379"),
            ("rediss://[0:0:0::1]:7/15", "rediss://[::1]:7/15"),
            ("valkey://h", "redis://h:6379"),
            ("valkeys://h:1", "rediss://h:1"),
            ("redis+sentinel://a,b:1,[fe80::1]/mymaster", "redis+sentinel://a:26379,b:1,[fe80::1]:26379/mymaster"),
            ("rediss+sentinel://a/my.master-1/2", "rediss+sentinel://a:26379/my.master-1/2"),
            ("valkey+sentinel://a/m", "redis+sentinel://a:26379/m"),
            ("redis+cluster://a,b:6380", "redis+cluster://a:6379,b:6380"),
            ("rediss+cluster://a/", "rediss+cluster://a:6379"),
            ("valkeys+cluster://a", "rediss+cluster://a:6379"),
        ];
        for (text, shown) in rows {
            let url: StoreUrl = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(url.to_string(), shown, "{text}");
            assert_eq!(shown.parse::<StoreUrl>().unwrap(), url, "{text}");
        }
    }

    #[test]
    fn a_url_without_tls_is_in_clear_unless_it_stays_on_the_machine() {
        for (url, is_in_clear) in [
            ("redis://counts.data.svc", true),
            ("valkey://10.0.0.7", true),
            ("redis+sentinel://127.0.0.1,counts/m", true),
            ("redis+cluster://a,b", true),
            ("redis://localhost.data.svc", true),
            ("rediss://counts.data.svc", false),
            ("valkeys+cluster://a", false),
            ("redis://127.0.0.1", false),
            ("redis://127.1.2.3:7", false),
            ("redis://[::1]", false),
            ("redis://LOCALHOST", false),
            ("redis+sentinel://127.0.0.1,[::1],a.localhost/m", false),
        ] {
            assert_eq!(url.parse::<StoreUrl>().unwrap().is_in_clear(), is_in_clear, "{url}");
        }
    }

    #[test]
    fn urls_that_mean_nothing_are_refused_with_a_remedy() {
        let many = format!("redis+cluster://{}", vec!["h"; MOST_HOSTS + 1].join(","));
        let long = format!("redis://{}", "a".repeat(LONGEST_HOST + 1));
        let rows = [
            ("", "has no scheme; write redis://HOST"),
            ("valkey:6379", "has no scheme"),
            ("http://h", "unknown scheme"),
            ("unix:///run/redis", "unknown scheme"),
            ("redis+replica://h", "unknown scheme"),
            ("redis+sentinel+cluster://h", "unknown scheme"),
            ("redis://", "lacks a host"),
            ("redis:///1", "lacks a host"),
            ("redis://:6379", "lacks a host"),
            ("redis+cluster://a,,b", "lacks a host"),
            ("redis://a,b", "several hosts; write redis+sentinel:// or redis+cluster://"),
            (&many, "has 17 hosts"),
            (&long, "no name and no address"),
            ("redis://h h", "no name and no address"),
            ("redis://h%41", "no name and no address"),
            ("redis://::1", "in brackets"),
            ("redis://::1:6379", "in brackets"),
            ("redis://[::1", "without its `]`"),
            ("redis://[h]", "no IPv6 address"),
            ("redis://[::1]6379", "write a port as :6379"),
            ("redis://h:", "write 1 to 65535"),
            ("redis://h:0", "write 1 to 65535"),
            ("redis://h:65536", "write 1 to 65535"),
            ("redis://h:+1", "write a port as :6379"),
            ("redis://h/one", "no number"),
            ("redis://h/-1", "no number"),
            ("redis://h/1/2", "no number"),
            ("redis://h/99999999999", "too large"),
            ("redis+cluster://h/1", "one database only"),
            ("redis+sentinel://h", "does not name the master"),
            ("redis+sentinel://h/", "does not name the master"),
            ("redis+sentinel://h/a b", "no Sentinel can have"),
            ("redis+sentinel://h/m/x", "no number"),
        ];
        for (text, part) in rows {
            let error = text.parse::<StoreUrl>().expect_err(text);
            assert_eq!(error.fault, StoreFault::BadConfig, "{text}");
            assert!(error.message.contains(part), "{text}: {error}");
            assert!(error.message.contains(&format!("`{text}`")), "{text}: {error}");
        }
    }

    #[test]
    fn a_password_in_the_url_is_refused_and_not_shown() {
        for text in ["redis://user:sesame@h", "redis://:sesame@h", "sesame@h", "redis://h?password=sesame", "redis://h#sesame"] {
            let error = text.parse::<StoreUrl>().expect_err(text);
            assert!(!error.message.contains("sesame"), "{error}");
            assert!(error.message.contains("write"), "{error}");
        }
        let error = "redis://user:sesame@h".parse::<StoreUrl>().expect_err("a user");
        assert!(error.message.contains("password file"), "{error}");
    }

    fn store() -> SharedStore {
        SharedStore {
            url: "rediss://h".to_owned(),
            username: Some("toolweir".to_owned()),
            password: Some("sesame".to_owned()),
            ca: Some("PEM".to_owned()),
            prefix: "a.b_c:d-9".to_owned(),
            leases: true,
            budget_milliseconds: 50,
        }
    }

    type Row = (fn(&mut SharedStore), &'static str);

    #[test]
    fn a_store_of_the_stream_is_checked() {
        let config = StoreConfig::try_from(&store()).unwrap();
        assert_eq!((config.budget, config.leases, config.hash_tag()), (Duration::from_millis(50), true, "a.b_c:d-9"));
        assert!(!format!("{config:?}").contains("sesame"), "{config:?}");
        let rows: [Row; 12] = [
            (|store| store.url = "h".to_owned(), "has no scheme"),
            (|store| store.url = "redis://h".to_owned(), "is without TLS"),
            (|store| store.prefix = String::new(), "the prefix"),
            (|store| store.prefix = "p".repeat(65), "the prefix"),
            (|store| store.prefix = "a{b".to_owned(), "the prefix"),
            (|store| store.prefix = "ä".to_owned(), "the prefix"),
            (|store| store.budget_milliseconds = 0, "1 to 10000 milliseconds"),
            (|store| store.budget_milliseconds = 10_001, "1 to 10000 milliseconds"),
            (|store| store.budget_milliseconds = u64::MAX, "1 to 10000 milliseconds"),
            (|store| store.username = Some(String::new()), "user name"),
            (|store| store.username = Some("a b".to_owned()), "user name"),
            (|store| store.password = Some(String::new()), "password is empty"),
        ];
        for (change, part) in rows {
            let mut store = store();
            change(&mut store);
            let error = StoreConfig::try_from(&store).expect_err(part);
            assert_eq!(error.fault, StoreFault::BadConfig, "{error}");
            assert!(error.message.contains(part), "{error}");
        }
        for milliseconds in [1, 10_000] {
            let store = SharedStore { budget_milliseconds: milliseconds, prefix: "p".repeat(64), ..store() };
            assert!(StoreConfig::try_from(&store).is_ok(), "{milliseconds}");
        }
    }

    #[test]
    fn addresses_are_shown_with_brackets_where_they_need_them() {
        assert_eq!(Address { host: "::1".to_owned(), port: 7 }.to_string(), "[::1]:7");
        assert_eq!(Address { host: "h".to_owned(), port: 7 }.to_string(), "h:7");
    }

    proptest::proptest! {
        #[test]
        fn a_url_that_is_read_is_shown_so_that_it_is_read_again(
            text in "(redis|rediss|valkey)([+](sentinel|cluster))?://([a-z:\\[\\]0-9.]{0,9},?){0,3}(/[a-z0-9]{0,3}){0,2}",
        ) {
            if let Ok(url) = text.parse::<StoreUrl>() {
                proptest::prop_assert_eq!(url.to_string().parse::<StoreUrl>().unwrap(), url);
            }
        }

        #[test]
        fn no_text_is_too_strange(text in ".{0,40}", before in "(redis://|redis[+]sentinel://)?") {
            let _ = format!("{before}{text}").parse::<StoreUrl>();
        }
    }
}
