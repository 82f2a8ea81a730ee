//! The connector against real servers, and against what is none.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    thread,
    time::{Duration, Instant},
};

use common::{Redis, free_port};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use toolweir_crds::stream::SharedStore;
use toolweir_store::{
    config::{Address, StoreConfig},
    connect::Connector,
    connection::StoreConnection,
    error::{StoreError, StoreFault, fault_of},
    topology::hash_slot,
};

/// Long enough for a busy machine.
const LONG: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(300);
const SECRET: &str = "secret-8f2a";

fn store(url: &str) -> SharedStore {
    SharedStore {
        url: url.to_owned(),
        username: None,
        password: None,
        ca: None,
        prefix: "toolweir".to_owned(),
        leases: false,
        budget_milliseconds: 50,
    }
}

fn connector(store: &SharedStore) -> Connector {
    Connector::new(&StoreConfig::try_from(store).unwrap()).unwrap()
}

async fn reach(store: &SharedStore, limit: Duration) -> Result<StoreConnection, StoreError> {
    let connector = connector(store);
    let master = connector.master(limit).await?;
    connector.open(&master, limit).await
}

/// Reaches it in vain; the error, which is held to what holds for all.
async fn fails(store: &SharedStore, limit: Duration) -> StoreError {
    let before = Instant::now();
    let error = reach(store, limit).await.expect_err("it cannot be reached");
    eprintln!("{:<14} {error}", error.fault.as_str());
    assert!(before.elapsed() < limit + Duration::from_millis(200), "{:?}: {error}", before.elapsed());
    assert!(!error.message.contains(SECRET), "{error}");
    assert!(!error.message.contains(['\n', '\r']), "{error}");
    for form in ["Error {", "Os {", "Custom {", "kind:", "Query {", "Some("] {
        assert!(!error.message.contains(form), "a Debug form: {error}");
    }
    error
}

fn assert_says(error: &StoreError, fault: StoreFault, parts: &[&str]) {
    assert_eq!(error.fault, fault, "{error}");
    for part in parts {
        assert!(error.message.contains(part), "{part}: {error}");
    }
}

/// Answers every connection with these bytes once it has heard something, or at once; and then says nothing.
fn server(answers: &'static [&'static [u8]], at_once: bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut heard = [0; 4096];
                for answer in answers {
                    if !at_once && stream.read(&mut heard).unwrap_or(0) == 0 {
                        return;
                    }
                    let _ = stream.write_all(answer);
                }
                while stream.read(&mut heard).unwrap_or(0) > 0 {}
            });
        }
    });
    port
}

fn pem(what: &str, der: &[u8]) -> String {
    let text = data_encoding::BASE64.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN {what}-----\n{}\n-----END {what}-----\n", lines.join("\n"))
}

/// Certificates for a server, in a folder; their authority.
struct Certificates {
    folder: std::path::PathBuf,
    ca: String,
}

impl Certificates {
    fn new(names: &[&str]) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &ca).unwrap();
        let folder = std::env::temp_dir().join(format!("toolweir-store-tls-{}-{}", std::process::id(), free_port()));
        fs::create_dir_all(&folder).unwrap();
        let ca = pem("CERTIFICATE", ca.der());
        fs::write(folder.join("ca.pem"), &ca).unwrap();
        fs::write(folder.join("cert.pem"), pem("CERTIFICATE", certificate.der())).unwrap();
        fs::write(folder.join("key.pem"), pem("PRIVATE KEY", key.serialized_der())).unwrap();
        Self { folder, ca }
    }

    /// A server that speaks TLS alone.
    fn redis(&self, more: &[&str]) -> Redis {
        let file = |name: &str| self.folder.join(name).to_str().unwrap().to_owned();
        let (port, cert, key, ca) = (free_port(), file("cert.pem"), file("key.pem"), file("ca.pem"));
        let port_text = port.to_string();
        let mut arguments = vec!["--port", "0", "--tls-port", &port_text, "--tls-cert-file", &cert];
        arguments.extend(["--tls-key-file", &key, "--tls-ca-cert-file", &ca]);
        arguments.extend(more);
        Redis::spawn(port, &arguments)
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[tokio::test]
async fn one_server_is_connected_to() {
    let redis = Redis::start(&[]);
    let url = format!("redis://127.0.0.1:{}/3", redis.port);
    let connector = connector(&store(&url));
    assert_eq!(connector.master(LONG).await.unwrap(), redis.address());
    let first = connector.open(&redis.address(), LONG).await.unwrap();
    let second = connector.open(&redis.address(), LONG).await.unwrap();
    assert_eq!(first.run_id.len(), 40);
    assert_eq!(first.run_id, second.run_id);
    let mut commands = first.commands.clone();
    let () = redis::cmd("SET").arg("key").arg("value").query_async(&mut commands).await.unwrap();
    assert!(redis.say(&["INFO", "keyspace"]).contains("db3:keys=1"));
    // No answer for longer than the default of the library is no error.
    let slow = redis::cmd("BLPOP").arg("nothing").arg(1.5).query_async::<Option<(String, String)>>(&mut commands).await;
    assert_eq!(slow.unwrap(), None);
    assert!(fault_of(&redis::cmd("NONSENSE").query_async::<String>(&mut commands).await.unwrap_err()) == StoreFault::Answer);
    assert!(format!("{first:?} {connector:?}").contains(&url));

    // A server that is gone is lost, and the connection does not come back on its own.
    drop(redis);
    let error = redis::cmd("PING").query_async::<String>(&mut commands).await.unwrap_err();
    assert_eq!(fault_of(&error), StoreFault::Lost, "{error}");
}

#[tokio::test]
async fn a_connection_closes_with_its_last_clone() {
    let redis = Redis::start(&[]);
    let clients = async |line: &str| {
        let end = Instant::now() + LONG;
        while !redis.say(&["INFO", "clients"]).contains(line) {
            assert!(Instant::now() < end, "{line}");
            // The connection's driver is a task of this thread.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let connection = reach(&store(&format!("redis://127.0.0.1:{}", redis.port)), LONG).await.unwrap();
    // One of them asks.
    clients("connected_clients:2\r\n").await;
    let clone = connection.clone();
    drop(connection);
    let mut commands = clone.commands.clone();
    assert_eq!(redis::cmd("PING").query_async::<String>(&mut commands).await.unwrap(), "PONG");
    // Also while an answer is outstanding.
    let waiting = tokio::spawn(async move { redis::cmd("BLPOP").arg("nothing").arg(0).query_async::<()>(&mut commands).await });
    clients("blocked_clients:1\r\n").await;
    drop(clone);
    assert!(waiting.await.unwrap().is_err());
    clients("connected_clients:1\r\n").await;
}

#[tokio::test]
async fn passwords_and_users() {
    let redis = Redis::start(&["--requirepass", SECRET]);
    tell(&redis, &["ACL", "SETUSER", "agent", "on", &format!(">{SECRET}-2"), "~*", "+@all"]).await;
    tell(&redis, &["ACL", "SETUSER", "blind", "on", &format!(">{SECRET}-3"), "~*", "+@all", "-info"]).await;
    tell(&redis, &["ACL", "SETUSER", "narrow", "on", &format!(">{SECRET}-4"), "~*", "+info"]).await;
    tell(&redis, &["ACL", "SETUSER", "open", "on", "nopass", "~*", "+@all"]).await;
    let place = format!("127.0.0.1:{}", redis.port);
    let row = |user: Option<&str>, password: Option<&str>| SharedStore {
        username: user.map(str::to_owned),
        password: password.map(str::to_owned),
        ..store(&format!("redis://{place}"))
    };
    let (two, three, four) = (&*format!("{SECRET}-2"), &*format!("{SECRET}-3"), &*format!("{SECRET}-4"));
    for (user, password) in [
        (None, Some(SECRET)),
        (Some("default"), Some(SECRET)),
        (Some("agent"), Some(two)),
        (Some("narrow"), Some(four)),
        (Some("open"), None),
    ] {
        reach(&row(user, password), LONG).await.unwrap_or_else(|error| panic!("{user:?}: {error}"));
    }
    let error = fails(&row(None, None), LONG).await;
    assert_says(&error, StoreFault::AuthRequired, &[&place, "asks for a password and none is given", "password file"]);
    let error = fails(&row(None, Some("other")), LONG).await;
    assert_says(&error, StoreFault::WrongPassword, &[&place, "ACL user default", "write the right user and password"]);
    for (user, password) in [("agent", SECRET), ("nobody", SECRET)] {
        let error = fails(&row(Some(user), Some(password)), LONG).await;
        assert_says(&error, StoreFault::WrongPassword, &[&place, user, "write the right user and password"]);
    }
    let error = fails(&row(Some("agent"), None), LONG).await;
    assert_says(&error, StoreFault::AuthRequired, &[&place, "ACL user agent", "none is given"]);
    let error = fails(&row(Some("blind"), Some(three)), LONG).await;
    assert_says(
        &error,
        StoreFault::NoPermission,
        &[&place, "does not allow INFO to the ACL user blind", "ACL SETUSER blind +info"],
    );
    let narrow = SharedStore { url: format!("redis://{place}/1"), ..row(Some("narrow"), Some(four)) };
    assert_says(&fails(&narrow, LONG).await, StoreFault::NoPermission, &[&place, "ACL SETUSER narrow +select"]);
    let far = SharedStore { url: format!("redis://{place}/16"), ..row(None, Some(SECRET)) };
    assert_says(&fails(&far, LONG).await, StoreFault::BadConfig, &[&place, "no database 16", "write another number"]);

    let open = Redis::start(&[]);
    let given = SharedStore { password: Some(SECRET.to_owned()), ..store(&format!("redis://127.0.0.1:{}", open.port)) };
    assert_says(&fails(&given, LONG).await, StoreFault::WrongPassword, &["no password for its default user", "requirepass"]);
}

/// Says something as the default user with the secret.
async fn tell(redis: &Redis, words: &[&str]) {
    let given = SharedStore { password: Some(SECRET.to_owned()), ..store(&format!("redis://127.0.0.1:{}", redis.port)) };
    let mut connection = reach(&given, LONG).await.unwrap();
    let mut command = redis::Cmd::new();
    for word in words {
        command.arg(word);
    }
    let () = command.query_async(&mut connection.commands).await.unwrap();
}

#[tokio::test]
async fn tls() {
    let certificates = Certificates::new(&["127.0.0.1", "localhost"]);
    let redis = certificates.redis(&["--tls-auth-clients", "no", "--requirepass", SECRET]);
    let place = format!("127.0.0.1:{}", redis.port);
    let trusting = |url: &str| SharedStore {
        ca: url.starts_with("rediss").then(|| certificates.ca.clone()),
        password: Some(SECRET.to_owned()),
        ..store(url)
    };
    for host in ["127.0.0.1", "localhost"] {
        let mut connection = reach(&trusting(&format!("rediss://{host}:{}", redis.port)), LONG).await.unwrap();
        assert_eq!(redis::cmd("PING").query_async::<String>(&mut connection.commands).await.unwrap(), "PONG");
    }
    let unknown = SharedStore { ca: None, ..trusting(&format!("rediss://{place}")) };
    assert_says(&fails(&unknown, LONG).await, StoreFault::Tls, &[&place, "authority that is not trusted", "as the store's CA"]);
    let error = fails(&trusting(&format!("redis://{place}")), LONG).await;
    assert!(matches!(error.fault, StoreFault::Tls | StoreFault::Lost), "{error}");
    assert_says(&error, error.fault, &[&place, "write rediss in place of redis"]);

    let plain = Redis::start(&[]);
    let error = fails(&trusting(&format!("rediss://127.0.0.1:{}", plain.port)), Duration::from_secs(1)).await;
    assert!(matches!(error.fault, StoreFault::Tls | StoreFault::Timeout), "{error}");
    assert_says(&error, error.fault, &[&plain.address().to_string(), "write redis in place of rediss"]);

    let other = Certificates::new(&["valkey.store.svc"]);
    let named = other.redis(&["--tls-auth-clients", "no"]);
    let given = SharedStore { ca: Some(other.ca.clone()), ..store(&format!("rediss://127.0.0.1:{}", named.port)) };
    assert_says(&fails(&given, LONG).await, StoreFault::Tls, &["is for other names than `127.0.0.1`", "write one of those"]);

    // Redis asks for a certificate of the client unless it is told not to.
    let mutual = certificates.redis(&[]);
    let error = fails(&trusting(&format!("rediss://127.0.0.1:{}", mutual.port)), LONG).await;
    assert_says(&error, StoreFault::Tls, &["asks for a certificate of the client", "tls-auth-clients no"]);
}

#[test]
fn an_authority_that_is_none_is_refused() {
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (ca, part) in [("", "holds no certificate"), ("nonsense", "holds no certificate"), (broken, "not valid")] {
        let config = StoreConfig::try_from(&SharedStore { ca: Some(ca.to_owned()), ..store("rediss://h") }).unwrap();
        let error = Connector::new(&config).unwrap_err();
        assert_says(&error, StoreFault::BadConfig, &["CA", part, "in PEM"]);
    }
}

#[tokio::test]
async fn what_is_no_redis_is_told_apart() {
    type Row = (&'static [&'static [u8]], bool, StoreFault, &'static str);
    let rows: [Row; 16] = [
        (
            &[b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"],
            false,
            StoreFault::NotRedis,
            "not in the Redis protocol (it is HTTP)",
        ),
        (&[b"<html>"], false, StoreFault::NotRedis, "not in the Redis protocol; write the address of a Redis or Valkey server"),
        (&[b"SSH-2.0-OpenSSH_9.2\r\n"], true, StoreFault::NotRedis, "(it is SSH)"),
        (&[b"220 mail ESMTP\r\n"], true, StoreFault::NotRedis, "not in the Redis protocol"),
        (&[b"+OK POP3 ready\r\n"], true, StoreFault::NotRedis, "not in the Redis protocol"),
        (&[b"\x15\x03\x01\x00\x02\x02\x46"], false, StoreFault::Tls, "write rediss in place of redis"),
        (&[], true, StoreFault::Timeout, "says nothing within 300 ms"),
        (&[b"+PO"], false, StoreFault::Timeout, "says nothing within 300 ms"),
        (&[b"+PONG\r\n"], false, StoreFault::Timeout, "did not answer within 300 ms"),
        (&[b"+PONG\r\n", b"nonsense\r\n"], false, StoreFault::WrongPassword, ""),
        (&[b"-LOADING Redis is loading the dataset in memory\r\n"], false, StoreFault::Loading, "is not ready yet"),
        (&[b"-MASTERDOWN Link with MASTER is down\r\n"], false, StoreFault::NotMaster, "a replica without its master"),
        (&[b"-DENIED Redis is running in protected mode\r\n"], false, StoreFault::AuthRequired, "protected mode"),
        (&[b"-ERR max number of clients reached\r\n"], true, StoreFault::Refused, "maxclients"),
        (&[b"-MISCONF Errors writing to disk\r\n"], false, StoreFault::Answer, "MISCONF Errors writing"),
        (
            &[b"-NOAUTH x\r\n", b"-ERR unknown command 'AUTH' with args beginning with: 'secret-8f2a'\r\n"],
            false,
            StoreFault::Answer,
            "ERR",
        ),
    ];
    for (answers, at_once, fault, part) in rows {
        let port = server(answers, at_once);
        let given = SharedStore { password: Some(SECRET.to_owned()), ..store(&format!("redis://127.0.0.1:{port}")) };
        let error = fails(&given, SHORT).await;
        let first = String::from_utf8_lossy(answers.first().unwrap_or(&&b""[..])).into_owned();
        if part.is_empty() {
            assert_eq!(error.fault, StoreFault::NotRedis, "{first}: {error}");
        } else {
            assert_says(&error, fault, &[&format!("127.0.0.1:{port}"), part]);
        }
    }
    let silent = server(&[], true);
    let given = SharedStore { ca: None, ..store(&format!("rediss://127.0.0.1:{silent}")) };
    assert_says(&fails(&given, SHORT).await, StoreFault::Timeout, &["did not answer in TLS", "redis in place of rediss"]);
    let http = server(&[b"HTTP/1.1 400 Bad Request\r\n\r\n"], false);
    let given = store(&format!("rediss://127.0.0.1:{http}"));
    assert_says(&fails(&given, SHORT).await, StoreFault::Tls, &["does not speak TLS"]);
}

#[tokio::test]
async fn what_is_not_there_is_told_apart() {
    let port = free_port();
    let error = fails(&store(&format!("redis://127.0.0.1:{port}")), LONG).await;
    assert_says(&error, StoreFault::Refused, &[&format!("127.0.0.1:{port} refuses the connection")]);
    let error = fails(&store("redis://nowhere.invalid"), LONG).await;
    assert_says(
        &error,
        StoreFault::Unresolvable,
        &["the name nowhere.invalid cannot be resolved", "write the name of a Service"],
    );
    let error = fails(&store("redis://127.0.0.1"), Duration::ZERO).await;
    assert!(matches!(error.fault, StoreFault::Timeout | StoreFault::Refused), "{error}");
}

#[tokio::test]
async fn a_replica_is_no_master() {
    let master = Redis::start(&[]);
    let replica = Redis::start(&["--replicaof", &format!("127.0.0.1 {}", master.port)]);
    replica.until(&["INFO", "replication"], "role:slave");
    let error = fails(&store(&format!("redis://127.0.0.1:{}", replica.port)), LONG).await;
    let of = format!("is a replica of 127.0.0.1:{}", master.port);
    assert_says(&error, StoreFault::NotMaster, &[&replica.address().to_string(), &of, "write the master's address"]);

    let connection = reach(&store(&format!("redis://127.0.0.1:{}", master.port)), LONG).await.unwrap();
    master.say(&["REPLICAOF", "127.0.0.1", "1"]);
    let set = redis::cmd("SET").arg("key").arg("value").query_async::<()>(&mut connection.commands.clone()).await;
    assert_eq!(fault_of(&set.unwrap_err()), StoreFault::NotMaster);
}

#[tokio::test]
async fn sentinels_are_asked_for_the_master() {
    let master = Redis::start(&["--requirepass", SECRET]);
    let open = Redis::sentinel("mymaster", &master, "");
    let locked = Redis::sentinel("mymaster", &master, &format!("requirepass {SECRET}"));
    let dead = free_port();
    let silent = server(&[], true);
    let given = |hosts: &[u16], rest: &str| {
        let hosts: Vec<_> = hosts.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        SharedStore { password: Some(SECRET.to_owned()), ..store(&format!("redis+sentinel://{}/{rest}", hosts.join(","))) }
    };
    for hosts in [&[open.port][..], &[locked.port], &[dead, open.port], &[open.port, dead, locked.port]] {
        let connector = connector(&given(hosts, "mymaster"));
        // Each of them is the first once.
        for _ in hosts {
            assert_eq!(connector.master(LONG).await.unwrap(), master.address());
        }
        connector.open(&master.address(), LONG).await.unwrap();
    }
    let connector = connector(&given(&[silent, open.port], "mymaster"));
    let before = Instant::now();
    assert_eq!(connector.master(Duration::from_secs(2)).await.unwrap(), master.address());
    assert!(before.elapsed() < Duration::from_secs(2));

    let error = fails(&given(&[open.port], "other"), LONG).await;
    assert_says(&error, StoreFault::NoMaster, &[&open.address().to_string(), "knows no master `other`", "sentinel monitor"]);
    let error = fails(&given(&[dead, open.port], "other"), LONG).await;
    assert_says(&error, StoreFault::NoMaster, &["no Sentinel of 2 knows the master", "knows no master `other`"]);
    let error = fails(&given(&[dead], "mymaster"), LONG).await;
    assert_says(&error, StoreFault::Refused, &[&format!("127.0.0.1:{dead}")]);
    let error = fails(&given(&[master.port], "mymaster"), LONG).await;
    assert_says(&error, StoreFault::BadConfig, &["is no Sentinel", "redis://"]);
    let bare = SharedStore { password: None, ..given(&[locked.port], "mymaster") };
    assert_says(&fails(&bare, LONG).await, StoreFault::AuthRequired, &[&locked.address().to_string()]);
    let error = fails(&store(&format!("redis://127.0.0.1:{}", open.port)), LONG).await;
    assert_says(&error, StoreFault::BadConfig, &["is a Sentinel", "redis+sentinel://"]);
}

/// Three masters, each with a third of the slots.
fn cluster() -> Vec<Redis> {
    let nodes: Vec<(Redis, u16)> = (0..3)
        .map(|_| {
            let bus = free_port();
            let arguments = ["--cluster-enabled", "yes", "--cluster-port", &bus.to_string(), "--cluster-node-timeout", "2000"];
            (Redis::start(&arguments), bus)
        })
        .collect();
    for (n, range) in [("0", "5460"), ("5461", "10922"), ("10923", "16383")].into_iter().enumerate() {
        assert!(nodes[n].0.say(&["CLUSTER", "ADDSLOTSRANGE", range.0, range.1]).starts_with("+OK"));
    }
    for (node, bus) in &nodes[1..] {
        nodes[0].0.say(&["CLUSTER", "MEET", "127.0.0.1", &node.port.to_string(), &bus.to_string()]);
    }
    for (node, _) in &nodes {
        node.until(&["CLUSTER", "INFO"], "cluster_state:ok");
    }
    nodes.into_iter().map(|(node, _)| node).collect()
}

#[tokio::test]
async fn nodes_of_a_cluster_are_asked_for_the_owner_of_the_slot() {
    let mut nodes = cluster();
    for tag in ["toolweir", "a", "a.b_c:d-9"] {
        let expected = nodes[0].say(&["CLUSTER", "KEYSLOT", &format!("{{{tag}}}key")]);
        assert_eq!(expected, format!(":{}\r\n", hash_slot(tag)), "{tag}");
    }
    let at = |port: u16| store(&format!("redis+cluster://127.0.0.1:{port}"));
    let owners = ["a", "b", "c", "d", "toolweir"].map(|tag| (tag, usize::from(hash_slot(tag)) / 5461));
    assert!((0..3).all(|node| owners.iter().any(|(_, owner)| *owner == node)), "each is asked for: {owners:?}");
    for (prefix, owner) in &owners {
        for node in &nodes {
            let given = SharedStore { prefix: (*prefix).to_owned(), ..at(node.port) };
            let connector = connector(&given);
            let master = connector.master(LONG).await.unwrap();
            assert_eq!(master, nodes[*owner].address(), "{prefix}");
            let mut connection = connector.open(&master, LONG).await.unwrap();
            let key = format!("{{{prefix}}}key");
            let () = redis::cmd("SET").arg(key).arg("value").query_async(&mut connection.commands).await.unwrap();
        }
    }
    // A node that is not the owner says so.
    let owner = usize::from(hash_slot("toolweir")) / 5461;
    let other = (owner + 1) % 3;
    let mut connection = connector(&at(nodes[other].port)).open(&nodes[other].address(), LONG).await.unwrap();
    let set = redis::cmd("SET").arg("{toolweir}key").arg("value").query_async::<()>(&mut connection.commands).await;
    assert_eq!(fault_of(&set.unwrap_err()), StoreFault::NotMaster);

    let error = fails(&store(&format!("redis://127.0.0.1:{}", nodes[0].port)), LONG).await;
    assert_says(&error, StoreFault::BadConfig, &["is a node of a cluster", "redis+cluster://"]);
    let single = Redis::start(&[]);
    assert_says(&fails(&at(single.port), LONG).await, StoreFault::BadConfig, &["is no node of a cluster", "redis://"]);

    // The other nodes are remembered: the one that was configured may go.
    let connector = connector(&at(nodes[other].port));
    assert_eq!(connector.master(LONG).await.unwrap(), nodes[owner].address());
    let expected = nodes[owner].address();
    drop(nodes.remove(other));
    for _ in 0..3 {
        assert_eq!(connector.master(LONG).await.unwrap(), expected);
    }

    // Nobody has the slot.
    let empty = Redis::start(&["--cluster-enabled", "yes", "--cluster-port", &free_port().to_string()]);
    let error = fails(&at(empty.port), LONG).await;
    let parts = [empty.address().to_string(), format!("no owner of slot {}", hash_slot("toolweir"))];
    assert_says(&error, StoreFault::NoMaster, &[&parts[0], &parts[1], "redis-cli --cluster check"]);
}

#[tokio::test]
async fn a_name_is_resolved() {
    let redis = Redis::start(&[]);
    let connector = connector(&store(&format!("redis://localhost:{}", redis.port)));
    let master = connector.master(LONG).await.unwrap();
    assert_eq!(master, Address { host: "localhost".to_owned(), port: redis.port });
    connector.open(&master, LONG).await.unwrap();
}
