//! Finds the master of the store and connects to it.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use redis::{AsyncConnectionConfig, Cmd, FromRedisValue, RedisConnectionInfo, RedisError, Value, aio::MultiplexedConnection};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use crate::{
    config::{Address, StoreConfig, StoreKind, StoreUrl},
    connection::{Driver, StoreConnection},
    dns::{self, DnsResolver},
    error::{StoreError, StoreFault, code_of, fault_of, is_unknown_command, quote},
    handshake::{ByteStream, Deadline, GIVE_PASSWORD, WRITE_ADDRESS, ping, tls_handshake},
    tls::tls_connector,
    topology::{hash_slot, no_master_error, owner_of_slot},
};

/// Nodes of a cluster that are remembered besides the configured ones.
const MOST_REMEMBERED: usize = 64;

/// Finds the master of a store and connects to it. Cheap to clone.
#[derive(Clone)]
pub struct Connector(Arc<ConnectorInner>);

struct ConnectorInner {
    url: StoreUrl,
    username: Option<String>,
    password: Option<String>,
    slot: u16,
    tls: Option<TlsConnector>,
    /// Made at the first name.
    resolver: OnceLock<Result<DnsResolver, String>>,
    configured: Vec<Address>,
    /// Nodes of the cluster by its last answer, without those configured.
    remembered: Mutex<Vec<Address>>,
    /// Which host is asked first.
    turn: AtomicUsize,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connector").field(&self.0.url.to_string()).finish()
    }
}

impl Connector {
    /// A connector. It does not connect yet.
    ///
    /// # Errors
    /// The certificates are none, or TLS cannot be set up.
    pub fn new(config: &StoreConfig) -> Result<Self, StoreError> {
        let StoreConfig { url, username, password, ca, .. } = config;
        let tls = url.tls.then(|| tls_connector(ca.as_deref())).transpose()?;
        Ok(Self(Arc::new(ConnectorInner {
            configured: url.hosts.iter().map(|(host, port)| Address { host: host.clone(), port: *port }).collect(),
            url: url.clone(),
            username: username.clone(),
            password: password.clone(),
            slot: hash_slot(config.hash_tag()),
            tls,
            resolver: OnceLock::new(),
            remembered: Mutex::default(),
            turn: AtomicUsize::new(0),
        })))
    }

    /// Finds the server that is the master now.
    ///
    /// # Errors
    /// Nobody who could know says so in time.
    pub async fn master(&self, limit: Duration) -> Result<Address, StoreError> {
        let deadline = Deadline::new(limit);
        let inner = &*self.0;
        let mut hosts = inner.configured.clone();
        let what = match &inner.url.kind {
            StoreKind::Single => {
                let none =
                    || StoreError::new(StoreFault::BadConfig, format!("the store's url `{}` lacks a host; write one", inner.url));
                return hosts.into_iter().next().ok_or_else(none);
            }
            StoreKind::Sentinel { .. } => "Sentinel",
            StoreKind::Cluster => {
                hosts.extend(inner.remembered.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
                "node of the cluster"
            }
        };
        // Another one first each time: one that is cut off from the others must not be believed for ever.
        let first = inner.turn.fetch_add(1, Ordering::Relaxed).checked_rem(hosts.len()).unwrap_or(0);
        hosts.rotate_left(first);
        let mut errors: Vec<StoreError> = Vec::new();
        for (n, host) in hosts.iter().enumerate() {
            // One that is silent must not use up the time of the others.
            let share = deadline.share(hosts.len() - n);
            let answer = match &inner.url.kind {
                StoreKind::Sentinel { master } => inner.ask_sentinel(host, master, share).await,
                _ => inner.ask_node(host, share).await,
            };
            match answer {
                Ok(master) => return Ok(master),
                Err(error) => errors.push(error),
            }
        }
        Err(no_master_error(what, errors))
    }

    /// A connection to a master, with the user, the database and the run of the server looked at.
    ///
    /// # Errors
    /// Whatever stands in the way, or takes too long.
    pub async fn open(&self, at: &Address, limit: Duration) -> Result<StoreConnection, StoreError> {
        let deadline = Deadline::new(limit);
        let inner = &*self.0;
        let mut session = inner.start_session(at, false, deadline).await?;
        let database = inner.url.database;
        if database != 0 {
            let selected = session.ask::<Value>(redis::cmd("SELECT").arg(database), deadline).await?;
            selected.map_err(|error| match fault_of(&error) {
                StoreFault::Answer => StoreError::new(
                    StoreFault::BadConfig,
                    format!("{at} has no database {database} ({}); write another number behind the host, or none", quote(&error)),
                ),
                _ => inner.command_error(at, "SELECT", &error),
            })?;
        }
        let server = inner.info(&mut session, "server", deadline).await?;
        let replication = inner.info(&mut session, "replication", deadline).await?;
        let mode = field(&server, "redis_mode").or_else(|| field(&server, "server_mode")).unwrap_or("standalone");
        if mode == "sentinel" {
            let text = format!("{at} is a Sentinel; write redis+sentinel://{at}/MASTER, or the address of a server");
            return Err(StoreError::new(StoreFault::BadConfig, text));
        }
        if mode == "cluster" && inner.url.kind != StoreKind::Cluster {
            let text = format!("{at} is a node of a cluster; write {} in the store's url", inner.url_scheme("+cluster"));
            return Err(StoreError::new(StoreFault::BadConfig, text));
        }
        if field(&replication, "role").is_some_and(|role| role != "master") {
            let master = match (field(&replication, "master_host"), field(&replication, "master_port")) {
                (Some(host), Some(port)) => format!(" of {host}:{port}"),
                _ => String::new(),
            };
            let remedy = match inner.url.kind {
                StoreKind::Single => "; write the master's address, or redis+sentinel:// and the Sentinels that know it",
                _ => "; another one is made the master, or was just now",
            };
            return Err(StoreError::new(StoreFault::NotMaster, format!("{at} is a replica{master}{remedy}")));
        }
        let Some(run_id) = field(&server, "run_id").filter(|id| !id.is_empty()) else {
            let text =
                format!("{at} does not tell its run_id in INFO, so nobody could know that it lost its data; use another server");
            return Err(StoreError::new(StoreFault::Answer, text));
        };
        let memory = inner.info(&mut session, "memory", deadline).await?;
        // A count that is forgotten would be an open door.
        let policy = field(&memory, "maxmemory_policy").unwrap_or("noeviction");
        if policy != "noeviction" && field(&memory, "maxmemory") != Some("0") {
            let text = format!(
                "{at} forgets keys where its memory is full (maxmemory-policy {policy}), and with them what is counted; set \
                 maxmemory-policy noeviction there"
            );
            return Err(StoreError::new(StoreFault::Evicts, text));
        }
        Ok(StoreConnection { run_id: run_id.into(), commands: session.commands, driver: session.driver })
    }
}

impl ConnectorInner {
    /// Asks one Sentinel for the master.
    async fn ask_sentinel(&self, at: &Address, master: &str, deadline: Deadline) -> Result<Address, StoreError> {
        let mut session = self.start_session(at, true, deadline).await?;
        let mut command = redis::cmd("SENTINEL");
        command.arg("get-master-addr-by-name").arg(master);
        match session.ask::<Option<(String, u16)>>(&command, deadline).await? {
            Ok(Some((host, port))) => Ok(Address { host, port }),
            Ok(None) => Err(StoreError::new(
                StoreFault::NoMaster,
                format!(
                    "the Sentinel {at} knows no master `{master}`; write the name of its `sentinel monitor` behind the hosts"
                ),
            )),
            Err(error) if is_unknown_command(&error) => Err(StoreError::new(
                StoreFault::BadConfig,
                format!("{at} is no Sentinel; write the Sentinels' addresses, or {} for one server", self.url_scheme("")),
            )),
            Err(error) => Err(self.command_error(at, "SENTINEL", &error)),
        }
    }

    /// Asks one node of the cluster for the owner of the slot, and remembers the other nodes.
    async fn ask_node(&self, at: &Address, deadline: Deadline) -> Result<Address, StoreError> {
        let mut session = self.start_session(at, false, deadline).await?;
        let answer = session.ask::<Value>(redis::cmd("CLUSTER").arg("SLOTS"), deadline).await?;
        let slots = answer.map_err(|error| {
            if is_unknown_command(&error) || quote(&error).contains("cluster support disabled") {
                let text = format!("{at} is no node of a cluster; write {} for one server", self.url_scheme(""));
                StoreError::new(StoreFault::BadConfig, text)
            } else {
                self.command_error(at, "CLUSTER", &error)
            }
        })?;
        let (owner, others) = owner_of_slot(&slots, self.slot, at);
        let mut seen: Vec<Address> = Vec::new();
        for node in others {
            if seen.len() < MOST_REMEMBERED && !self.configured.contains(&node) && !seen.contains(&node) {
                seen.push(node);
            }
        }
        // A node that was told to forget the others knows nobody.
        if !seen.is_empty() {
            *self.remembered.lock().unwrap_or_else(PoisonError::into_inner) = seen;
        }
        owner.ok_or_else(|| {
            StoreError::new(
                StoreFault::NoMaster,
                format!(
                    "the cluster's node {at} knows no owner of slot {}; look with redis-cli --cluster check {at} and have all slots served",
                    self.slot
                ),
            )
        })
    }

    /// A connection that may be used: over TLS, with the password. A Sentinel is told the password only if it asks for one, since
    /// it often has none.
    async fn start_session(&self, at: &Address, only_if_asked: bool, deadline: Deadline) -> Result<RedisSession, StoreError> {
        let tcp = self.connect(at, deadline).await?;
        let mut stream: Box<dyn ByteStream> = match &self.tls {
            None => Box::new(tcp),
            Some(tls) => Box::new(tls_handshake(tls, at, tcp, deadline).await?),
        };
        // The password goes to nothing that does not answer as Redis does.
        let locked = ping(stream.as_mut(), at, self.tls.is_some(), deadline).await?;
        let config = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
        let info = RedisConnectionInfo::default().set_skip_set_lib_name();
        let (commands, driver) = MultiplexedConnection::new_with_config(&info, stream, config)
            .await
            .map_err(|error| StoreError::new(fault_of(&error), format!("{at} cannot be spoken to: {error}")))?;
        let mut session = RedisSession { at: at.clone(), commands, driver: Arc::new(Driver::start(driver)) };
        let given = self.username.is_some() || self.password.is_some();
        if !given && locked {
            return Err(StoreError::new(
                StoreFault::AuthRequired,
                format!("{at} asks for a password and none is given; {GIVE_PASSWORD}"),
            ));
        }
        if given && (locked || !only_if_asked) {
            self.authenticate(&mut session, deadline).await?;
        }
        Ok(session)
    }

    async fn connect(&self, at: &Address, deadline: Deadline) -> Result<TcpStream, StoreError> {
        let addresses = self.resolve(at, deadline).await?;
        let mut last = StoreError::new(StoreFault::Unresolvable, format!("the name {} has no address", at.host));
        for (n, address) in addresses.iter().enumerate() {
            let connected = deadline.share(addresses.len() - n).wait(tcp(SocketAddr::new(*address, at.port))).await;
            last = match connected {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => StoreError::new(
                    StoreFault::Refused,
                    format!("{at} refuses the connection: nothing listens there; is the server up, and the port right?"),
                ),
                Some(Err(error)) => StoreError::new(
                    StoreFault::Refused,
                    format!("{at} cannot be reached: {error}; look at the address and at network policies on the way"),
                ),
                None => StoreError::new(
                    StoreFault::Timeout,
                    format!(
                        "{at} did not take the connection within {deadline}; look at the address and at network policies on the way"
                    ),
                ),
            };
        }
        Err(last)
    }

    async fn resolve(&self, at: &Address, deadline: Deadline) -> Result<Vec<IpAddr>, StoreError> {
        if let Ok(address) = at.host.parse() {
            return Ok(vec![address]);
        }
        let unresolvable = |why: &str| {
            let text = format!("the name {} cannot be resolved: {why}; write the name of a Service, or an address", at.host);
            StoreError::new(StoreFault::Unresolvable, text)
        };
        let made = self.resolver.get_or_init(dns::resolver);
        let resolver = made.as_ref().map_err(|error| unresolvable(error))?;
        match deadline.wait(dns::addresses(resolver, &at.host)).await {
            Some(Ok(found)) => Ok(found),
            Some(Err(error)) if error.is_nx_domain() => Err(unresolvable("DNS knows no such name")),
            Some(Err(error)) if error.is_no_records_found() => Err(unresolvable("DNS has no address for it")),
            Some(Err(error)) => Err(unresolvable(&error.to_string())),
            None => Err(StoreError::new(
                StoreFault::Timeout,
                format!(
                    "the name {} was not resolved within {deadline}; look at the cluster's DNS, or write an address",
                    at.host
                ),
            )),
        }
    }

    async fn authenticate(&self, session: &mut RedisSession, deadline: Deadline) -> Result<(), StoreError> {
        let mut command = redis::cmd("AUTH");
        if let Some(username) = &self.username {
            command.arg(username);
        }
        command.arg(self.password.as_deref().unwrap_or_default());
        let Err(error) = session.ask::<Value>(&command, deadline).await? else { return Ok(()) };
        let at = &session.at;
        let user = self.user();
        let (fault, text) = match fault_of(&error) {
            StoreFault::WrongPassword if self.password.is_none() => (
                StoreFault::AuthRequired,
                format!("{at} asks the ACL user {user} for a password and none is given; {GIVE_PASSWORD}"),
            ),
            StoreFault::WrongPassword => (
                StoreFault::WrongPassword,
                format!("{at} does not take this password of the ACL user {user}; write the right user and password"),
            ),
            StoreFault::Answer if quote(&error).contains("without any password configured") => (
                StoreFault::WrongPassword,
                format!(
                    "{at} has no password for its default user, and one is given; set it there (requirepass), or leave it out here"
                ),
            ),
            fault @ (StoreFault::Lost | StoreFault::Timeout | StoreFault::NotRedis) => (
                fault,
                format!("{at} ended the connection when it was told the password of the ACL user {user}; look into its log"),
            ),
            // What a server writes here may repeat the password.
            fault => {
                let code = code_of(&error).filter(|code| code.len() < 16 && code.bytes().all(|byte| byte.is_ascii_uppercase()));
                let code = code.as_deref().filter(|code| self.password.as_deref() != Some(code)).unwrap_or("another error");
                (fault, format!("{at} does not let the ACL user {user} in: its answer to AUTH is {code}; look into its log"))
            }
        };
        Err(StoreError::new(fault, text))
    }

    /// A section of INFO.
    async fn info(&self, session: &mut RedisSession, section: &str, deadline: Deadline) -> Result<String, StoreError> {
        let answer = session.ask(redis::cmd("INFO").arg(section), deadline).await?;
        answer.map_err(|error| self.command_error(&session.at, "INFO", &error))
    }

    /// The error of a command that is none of AUTH.
    fn command_error(&self, at: &Address, command: &str, error: &RedisError) -> StoreError {
        let user = self.user();
        let fault = fault_of(error);
        let text = match fault {
            StoreFault::NoPermission => format!(
                "{at} does not allow {command} to the ACL user {user}; allow it: ACL SETUSER {user} +{}",
                command.to_ascii_lowercase()
            ),
            StoreFault::AuthRequired => format!("{at} asks for a password: {}; {GIVE_PASSWORD}", quote(error)),
            StoreFault::Lost => format!("{at} ended the connection when it was asked for {command}; look into its log"),
            StoreFault::Loading => format!("{at} is not ready yet: {}; wait, or look into its log", quote(error)),
            StoreFault::NotRedis => format!("{at} answers {command} with what is not the Redis protocol; {WRITE_ADDRESS}"),
            _ => format!("{at} answers {command} with: {}; look into its log", quote(error)),
        };
        StoreError::new(fault, text)
    }

    fn user(&self) -> &str {
        self.username.as_deref().unwrap_or("default")
    }

    /// The scheme of a URL of another kind.
    fn url_scheme(&self, way: &str) -> String {
        format!("{}{way}://", if self.url.tls { "rediss" } else { "redis" })
    }
}

/// A connection before it is a [`StoreConnection`].
struct RedisSession {
    at: Address,
    commands: MultiplexedConnection,
    driver: Arc<Driver>,
}

impl RedisSession {
    /// Sends a command. The inner result is the server's answer, the outer an error where none came in time.
    async fn ask<T: FromRedisValue>(&mut self, command: &Cmd, deadline: Deadline) -> Result<Result<T, RedisError>, StoreError> {
        let answer = deadline.wait(command.query_async::<T>(&mut self.commands)).await;
        answer.ok_or_else(|| {
            let text = format!("{} did not answer within {deadline}; is it overloaded, or far away?", self.at);
            StoreError::new(StoreFault::Timeout, text)
        })
    }
}

async fn tcp(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_keepalive(true)?;
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A line `key:value` of INFO.
fn field<'a>(info: &'a str, key: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
}
