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

use hickory_resolver::TokioResolver;
use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, FromRedisValue, Pipeline, RedisConnectionInfo, RedisError, RedisResult, Value,
    aio::MultiplexedConnection,
};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore, client::Resumption};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    config::{Config, Kind, StoreUrl},
    dns,
};

/// Slots of a cluster.
const SLOTS: u16 = 16384;
/// The longest first answer of a server, in bytes.
const LONGEST_GREETING: usize = 512;
/// The longest text of an error, in characters.
const LONGEST_MESSAGE: usize = 600;
/// The longest part of it that a server wrote, in characters.
const LONGEST_QUOTE: usize = 120;
/// Nodes of a cluster that are remembered besides the configured ones.
const MOST_REMEMBERED: usize = 64;
/// Longer than anybody waits.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

/// Where a server is.
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

/// What is wrong with the store, for a person: one line with the place and the remedy, never with the password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StoreError {
    /// What kind of thing it is.
    pub fault: Fault,
    /// What is wrong.
    pub message: String,
}

impl StoreError {
    /// An error of one line.
    pub fn new(fault: Fault, message: impl Into<String>) -> Self {
        Self { fault, message: one_line(&message.into(), LONGEST_MESSAGE) }
    }
}

/// What kind of thing is wrong with the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The configuration cannot be right.
    BadConfig,
    /// A name has no address.
    Unresolvable,
    /// Nothing takes the connection.
    Refused,
    /// It took too long.
    Timeout,
    /// TLS, or a certificate.
    Tls,
    /// There should be a password.
    AuthRequired,
    /// The user or the password is wrong.
    WrongPassword,
    /// The user may not do this.
    NoPermission,
    /// Something else answers there.
    NotRedis,
    /// It is a replica, or does not own the slot.
    NotMaster,
    /// Nobody knows a master.
    NoMaster,
    /// It is not ready yet, or busy.
    Loading,
    /// It has no room for more.
    OutOfMemory,
    /// It forgets counts where it has no room.
    Evicts,
    /// It has lost what it knew, or begun anew.
    Reset,
    /// The connection ended.
    Lost,
    /// It answers with another error.
    Answer,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::BadConfig,
        Self::Unresolvable,
        Self::Refused,
        Self::Timeout,
        Self::Tls,
        Self::AuthRequired,
        Self::WrongPassword,
        Self::NoPermission,
        Self::NotRedis,
        Self::NotMaster,
        Self::NoMaster,
        Self::Loading,
        Self::OutOfMemory,
        Self::Evicts,
        Self::Reset,
        Self::Lost,
        Self::Answer,
    ];

    /// Its name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadConfig => "bad_config",
            Self::Unresolvable => "unresolvable",
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Tls => "tls",
            Self::AuthRequired => "auth_required",
            Self::WrongPassword => "wrong_password",
            Self::NoPermission => "no_permission",
            Self::NotRedis => "not_redis",
            Self::NotMaster => "not_master",
            Self::NoMaster => "no_master",
            Self::Loading => "loading",
            Self::OutOfMemory => "out_of_memory",
            Self::Evicts => "evicts",
            Self::Reset => "reset",
            Self::Lost => "lost",
            Self::Answer => "answer",
        }
    }

    /// Whether it says no more than that a host is not there.
    fn is_absence(self) -> bool {
        matches!(self, Self::Unresolvable | Self::Refused | Self::Timeout | Self::Lost)
    }
}

/// What kind of thing the error of a command is.
pub fn fault_of(error: &RedisError) -> Fault {
    if let Some(code) = code_of(error) {
        let fault = fault_of_code(&code);
        // What a script may not do is said by the script's error (Redis 7 and Valkey; Redis 6).
        let forbidden = ["ACL failure in script", "can't run this command"];
        let in_script = fault == Fault::Answer && forbidden.iter().any(|text| quote(error).contains(text));
        return if in_script { Fault::NoPermission } else { fault };
    }
    match error.kind() {
        ErrorKind::Io if error.is_timeout() => Fault::Timeout,
        ErrorKind::Io => Fault::Lost,
        ErrorKind::Parse => Fault::NotRedis,
        ErrorKind::AuthenticationFailed => Fault::WrongPassword,
        _ => Fault::Answer,
    }
}

fn fault_of_code(code: &str) -> Fault {
    match code {
        "NOAUTH" | "DENIED" => Fault::AuthRequired,
        "WRONGPASS" => Fault::WrongPassword,
        "NOPERM" => Fault::NoPermission,
        "READONLY" | "MOVED" | "ASK" | "MASTERDOWN" => Fault::NotMaster,
        "CLUSTERDOWN" => Fault::NoMaster,
        "LOADING" | "BUSY" | "TRYAGAIN" => Fault::Loading,
        "OOM" => Fault::OutOfMemory,
        _ => Fault::Answer,
    }
}

/// The first word of what a server answered, also where it answered several commands.
fn code_of(error: &RedisError) -> Option<String> {
    error.clone().into_server_errors().and_then(|all| all.first().map(|(_, error)| error.code().to_owned()))
}

/// The slot of keys with this hash tag.
pub fn slot(tag: &str) -> u16 {
    // CRC-16/XMODEM.
    let mut crc: u16 = 0;
    for byte in tag.bytes() {
        crc ^= u16::from(byte) << 8;
        for _ in 0..8 {
            let over = crc & 0x8000 != 0;
            crc <<= 1;
            if over {
                crc ^= 0x1021;
            }
        }
    }
    crc % SLOTS
}

/// A connection; closes when it and its clones are dropped, and `commands` with it. Its driver is a task of the runtime that
/// opened it.
#[derive(Clone)]
pub struct Connection {
    /// Takes commands. Errors of the server are values among its answers.
    pub commands: MultiplexedConnection,
    /// Names the run of the server: another one when it was restarted, or is another server.
    pub run_id: Arc<str>,
    driver: Arc<Driver>,
}

impl Connection {
    /// Whether it is the same one.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.driver, &other.driver)
    }

    /// Sends a command and waits for its answer, for as long as the connection lasts.
    ///
    /// # Errors
    /// The connection ends, or the server answers with an error.
    pub async fn send(&self, cmd: &Cmd) -> RedisResult<Value> {
        self.commands.clone().send_packed_command(cmd).await.and_then(Value::extract_error)
    }

    /// Sends commands at once and waits for all answers.
    ///
    /// # Errors
    /// The connection ends, or the server answers one with an error.
    pub async fn send_all(&self, cmds: &[Cmd]) -> RedisResult<Vec<Value>> {
        let mut pipeline = Pipeline::with_capacity(cmds.len());
        for cmd in cmds {
            pipeline.add_command(cmd.clone());
        }
        let answers = self.commands.clone().send_packed_commands(&pipeline, 0, cmds.len()).await?;
        answers.into_iter().map(Value::extract_error).collect()
    }

    /// Whether the other side has ended it.
    pub fn has_ended(&self) -> bool {
        self.driver.alive.has_changed().is_err()
    }

    /// Waits until the other side has ended it.
    pub async fn ended(&self) {
        let mut alive = self.driver.alive.clone();
        while alive.changed().await.is_ok() {}
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("run_id", &self.run_id).finish_non_exhaustive()
    }
}

/// What moves the bytes of a connection. It would wait for all answers, so it is ended when it is dropped.
struct Driver {
    task: JoinHandle<()>,
    /// Its sender is the task's.
    alive: watch::Receiver<()>,
}

impl Driver {
    fn start(moves: impl Future<Output = ()> + Send + 'static) -> Self {
        let (sender, alive) = watch::channel(());
        let task = tokio::spawn(async move {
            moves.await;
            drop(sender);
        });
        Self { task, alive }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Finds the master of a store and connects to it. Cheap to clone.
#[derive(Clone)]
pub struct Connector(Arc<Inner>);

struct Inner {
    url: StoreUrl,
    username: Option<String>,
    password: Option<String>,
    slot: u16,
    tls: Option<TlsConnector>,
    /// Made at the first name.
    resolver: OnceLock<Result<TokioResolver, String>>,
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
    pub fn new(config: &Config) -> Result<Self, StoreError> {
        let Config { url, username, password, ca, .. } = config;
        let tls = url.tls.then(|| tls(ca.as_deref())).transpose()?;
        Ok(Self(Arc::new(Inner {
            configured: url.hosts.iter().map(|(host, port)| Address { host: host.clone(), port: *port }).collect(),
            url: url.clone(),
            username: username.clone(),
            password: password.clone(),
            slot: slot(config.tag()),
            tls,
            resolver: OnceLock::new(),
            remembered: Mutex::default(),
            turn: AtomicUsize::new(0),
        })))
    }

    /// Which server is the master now.
    ///
    /// # Errors
    /// Nobody who could know says so in time.
    pub async fn master(&self, limit: Duration) -> Result<Address, StoreError> {
        let until = Until::new(limit);
        let inner = &*self.0;
        let mut hosts = inner.configured.clone();
        let what = match &inner.url.kind {
            Kind::Single => {
                let none =
                    || StoreError::new(Fault::BadConfig, format!("the store's url `{}` lacks a host; write one", inner.url));
                return hosts.into_iter().next().ok_or_else(none);
            }
            Kind::Sentinel { .. } => "Sentinel",
            Kind::Cluster => {
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
            let share = until.share(hosts.len() - n);
            let answer = match &inner.url.kind {
                Kind::Sentinel { master } => inner.ask_sentinel(host, master, share).await,
                _ => inner.ask_node(host, share).await,
            };
            match answer {
                Ok(master) => return Ok(master),
                Err(error) => errors.push(error),
            }
        }
        Err(none_knows(what, errors))
    }

    /// A connection to a master, with the user, the database and the run of the server looked at.
    ///
    /// # Errors
    /// Whatever stands in the way, or takes too long.
    pub async fn open(&self, at: &Address, limit: Duration) -> Result<Connection, StoreError> {
        let until = Until::new(limit);
        let inner = &*self.0;
        let mut session = inner.enter(at, false, until).await?;
        let database = inner.url.database;
        if database != 0 {
            let selected = session.ask::<Value>(redis::cmd("SELECT").arg(database), until).await?;
            selected.map_err(|error| match fault_of(&error) {
                Fault::Answer => StoreError::new(
                    Fault::BadConfig,
                    format!("{at} has no database {database} ({}); write another number behind the host, or none", quote(&error)),
                ),
                _ => inner.unwilling(at, "SELECT", &error),
            })?;
        }
        let server = inner.info(&mut session, "server", until).await?;
        let replication = inner.info(&mut session, "replication", until).await?;
        let mode = field(&server, "redis_mode").or_else(|| field(&server, "server_mode")).unwrap_or("standalone");
        if mode == "sentinel" {
            let text = format!("{at} is a Sentinel; write redis+sentinel://{at}/MASTER, or the address of a server");
            return Err(StoreError::new(Fault::BadConfig, text));
        }
        if mode == "cluster" && inner.url.kind != Kind::Cluster {
            let text = format!("{at} is a node of a cluster; write {} in the store's url", inner.scheme("+cluster"));
            return Err(StoreError::new(Fault::BadConfig, text));
        }
        if field(&replication, "role").is_some_and(|role| role != "master") {
            let master = match (field(&replication, "master_host"), field(&replication, "master_port")) {
                (Some(host), Some(port)) => format!(" of {host}:{port}"),
                _ => String::new(),
            };
            let remedy = match inner.url.kind {
                Kind::Single => "; write the master's address, or redis+sentinel:// and the Sentinels that know it",
                _ => "; another one is made the master, or was just now",
            };
            return Err(StoreError::new(Fault::NotMaster, format!("{at} is a replica{master}{remedy}")));
        }
        let Some(run_id) = field(&server, "run_id").filter(|id| !id.is_empty()) else {
            let text =
                format!("{at} does not tell its run_id in INFO, so nobody could know that it lost its data; use another server");
            return Err(StoreError::new(Fault::Answer, text));
        };
        let memory = inner.info(&mut session, "memory", until).await?;
        // A count that is forgotten would be an open door.
        let policy = field(&memory, "maxmemory_policy").unwrap_or("noeviction");
        if policy != "noeviction" && field(&memory, "maxmemory") != Some("0") {
            let text = format!(
                "{at} forgets keys where its memory is full (maxmemory-policy {policy}), and with them what is counted; set \
                 maxmemory-policy noeviction there"
            );
            return Err(StoreError::new(Fault::Evicts, text));
        }
        Ok(Connection { run_id: run_id.into(), commands: session.commands, driver: session.driver })
    }
}

impl Inner {
    /// What one Sentinel says.
    async fn ask_sentinel(&self, at: &Address, master: &str, until: Until) -> Result<Address, StoreError> {
        let mut session = self.enter(at, true, until).await?;
        let mut command = redis::cmd("SENTINEL");
        command.arg("get-master-addr-by-name").arg(master);
        match session.ask::<Option<(String, u16)>>(&command, until).await? {
            Ok(Some((host, port))) => Ok(Address { host, port }),
            Ok(None) => Err(StoreError::new(
                Fault::NoMaster,
                format!(
                    "the Sentinel {at} knows no master `{master}`; write the name of its `sentinel monitor` behind the hosts"
                ),
            )),
            Err(error) if is_unknown_command(&error) => Err(StoreError::new(
                Fault::BadConfig,
                format!("{at} is no Sentinel; write the Sentinels' addresses, or {} for one server", self.scheme("")),
            )),
            Err(error) => Err(self.unwilling(at, "SENTINEL", &error)),
        }
    }

    /// What one node of the cluster says.
    async fn ask_node(&self, at: &Address, until: Until) -> Result<Address, StoreError> {
        let mut session = self.enter(at, false, until).await?;
        let answer = session.ask::<Value>(redis::cmd("CLUSTER").arg("SLOTS"), until).await?;
        let slots = answer.map_err(|error| {
            if is_unknown_command(&error) || quote(&error).contains("cluster support disabled") {
                let text = format!("{at} is no node of a cluster; write {} for one server", self.scheme(""));
                StoreError::new(Fault::BadConfig, text)
            } else {
                self.unwilling(at, "CLUSTER", &error)
            }
        })?;
        let (owner, others) = owner(&slots, self.slot, at);
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
                Fault::NoMaster,
                format!(
                    "the cluster's node {at} knows no owner of slot {}; look with redis-cli --cluster check {at} and have all slots served",
                    self.slot
                ),
            )
        })
    }

    /// A connection that may be used: over TLS, with the password. A Sentinel is told the password only if it asks for one, since
    /// it often has none.
    async fn enter(&self, at: &Address, only_if_asked: bool, until: Until) -> Result<Session, StoreError> {
        let tcp = self.connect(at, until).await?;
        let mut stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(tcp),
            Some(tls) => Box::new(shake(tls, at, tcp, until).await?),
        };
        // The password goes to nothing that does not answer as Redis does.
        let locked = greet(stream.as_mut(), at, self.tls.is_some(), until).await?;
        let config = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
        let info = RedisConnectionInfo::default().set_skip_set_lib_name();
        let (commands, driver) = MultiplexedConnection::new_with_config(&info, stream, config)
            .await
            .map_err(|error| StoreError::new(fault_of(&error), format!("{at} cannot be spoken to: {error}")))?;
        let mut session = Session { at: at.clone(), commands, driver: Arc::new(Driver::start(driver)) };
        let given = self.username.is_some() || self.password.is_some();
        if !given && locked {
            return Err(StoreError::new(Fault::AuthRequired, format!("{at} asks for a password and none is given; {PASSWORD}")));
        }
        if given && (locked || !only_if_asked) {
            self.authenticate(&mut session, until).await?;
        }
        Ok(session)
    }

    async fn connect(&self, at: &Address, until: Until) -> Result<TcpStream, StoreError> {
        let addresses = self.resolve(at, until).await?;
        let mut last = StoreError::new(Fault::Unresolvable, format!("the name {} has no address", at.host));
        for (n, address) in addresses.iter().enumerate() {
            let connected = until.share(addresses.len() - n).wait(tcp(SocketAddr::new(*address, at.port))).await;
            last = match connected {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => StoreError::new(
                    Fault::Refused,
                    format!("{at} refuses the connection: nothing listens there; is the server up, and the port right?"),
                ),
                Some(Err(error)) => StoreError::new(
                    Fault::Refused,
                    format!("{at} cannot be reached: {error}; look at the address and at network policies on the way"),
                ),
                None => StoreError::new(
                    Fault::Timeout,
                    format!(
                        "{at} did not take the connection within {until}; look at the address and at network policies on the way"
                    ),
                ),
            };
        }
        Err(last)
    }

    async fn resolve(&self, at: &Address, until: Until) -> Result<Vec<IpAddr>, StoreError> {
        if let Ok(address) = at.host.parse() {
            return Ok(vec![address]);
        }
        let unresolvable = |why: &str| {
            let text = format!("the name {} cannot be resolved: {why}; write the name of a Service, or an address", at.host);
            StoreError::new(Fault::Unresolvable, text)
        };
        let made = self.resolver.get_or_init(dns::resolver);
        let resolver = made.as_ref().map_err(|error| unresolvable(error))?;
        match until.wait(dns::addresses(resolver, &at.host)).await {
            Some(Ok(found)) => Ok(found),
            Some(Err(error)) if error.is_nx_domain() => Err(unresolvable("DNS knows no such name")),
            Some(Err(error)) if error.is_no_records_found() => Err(unresolvable("DNS has no address for it")),
            Some(Err(error)) => Err(unresolvable(&error.to_string())),
            None => Err(StoreError::new(
                Fault::Timeout,
                format!("the name {} was not resolved within {until}; look at the cluster's DNS, or write an address", at.host),
            )),
        }
    }

    async fn authenticate(&self, session: &mut Session, until: Until) -> Result<(), StoreError> {
        let mut command = redis::cmd("AUTH");
        if let Some(username) = &self.username {
            command.arg(username);
        }
        command.arg(self.password.as_deref().unwrap_or_default());
        let Err(error) = session.ask::<Value>(&command, until).await? else { return Ok(()) };
        let at = &session.at;
        let user = self.user();
        let (fault, text) = match fault_of(&error) {
            Fault::WrongPassword if self.password.is_none() => {
                (Fault::AuthRequired, format!("{at} asks the ACL user {user} for a password and none is given; {PASSWORD}"))
            }
            Fault::WrongPassword => (
                Fault::WrongPassword,
                format!("{at} does not take this password of the ACL user {user}; write the right user and password"),
            ),
            Fault::Answer if quote(&error).contains("without any password configured") => (
                Fault::WrongPassword,
                format!(
                    "{at} has no password for its default user, and one is given; set it there (requirepass), or leave it out here"
                ),
            ),
            fault @ (Fault::Lost | Fault::Timeout | Fault::NotRedis) => (
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
    async fn info(&self, session: &mut Session, section: &str, until: Until) -> Result<String, StoreError> {
        let answer = session.ask(redis::cmd("INFO").arg(section), until).await?;
        answer.map_err(|error| self.unwilling(&session.at, "INFO", &error))
    }

    /// The error of a command that is none of AUTH.
    fn unwilling(&self, at: &Address, command: &str, error: &RedisError) -> StoreError {
        let user = self.user();
        let fault = fault_of(error);
        let text = match fault {
            Fault::NoPermission => format!(
                "{at} does not allow {command} to the ACL user {user}; allow it: ACL SETUSER {user} +{}",
                command.to_ascii_lowercase()
            ),
            Fault::AuthRequired => format!("{at} asks for a password: {}; {PASSWORD}", quote(error)),
            Fault::Lost => format!("{at} ended the connection when it was asked for {command}; look into its log"),
            Fault::Loading => format!("{at} is not ready yet: {}; wait, or look into its log", quote(error)),
            Fault::NotRedis => format!("{at} answers {command} with what is not the Redis protocol; {WRITE}"),
            _ => format!("{at} answers {command} with: {}; look into its log", quote(error)),
        };
        StoreError::new(fault, text)
    }

    fn user(&self) -> &str {
        self.username.as_deref().unwrap_or("default")
    }

    /// How a URL of another kind begins.
    fn scheme(&self, way: &str) -> String {
        format!("{}{way}://", if self.url.tls { "rediss" } else { "redis" })
    }
}

const PASSWORD: &str = "write it into the password file";
const WRITE: &str = "write the address of a Redis or Valkey server";

/// A connection before it is a [`Connection`].
struct Session {
    at: Address,
    commands: MultiplexedConnection,
    driver: Arc<Driver>,
}

impl Session {
    /// What the server answers; an error if it does not in time.
    async fn ask<T: FromRedisValue>(&mut self, command: &Cmd, until: Until) -> Result<Result<T, RedisError>, StoreError> {
        let answer = until.wait(command.query_async::<T>(&mut self.commands)).await;
        answer.ok_or_else(|| {
            let text = format!("{} did not answer within {until}; is it overloaded, or far away?", self.at);
            StoreError::new(Fault::Timeout, text)
        })
    }
}

/// What bytes come from and go to.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The end of a time, and how long it was.
#[derive(Clone, Copy)]
struct Until {
    end: Instant,
    given: Duration,
}

impl Until {
    fn new(given: Duration) -> Self {
        Self { end: Instant::now() + given.min(LONGEST_WAIT), given }
    }

    /// One of so many equal parts of what is left.
    fn share(self, parts: usize) -> Self {
        let parts = u32::try_from(parts.max(1)).unwrap_or(u32::MAX);
        if parts == 1 { self } else { Self::new(self.end.saturating_duration_since(Instant::now()) / parts) }
    }

    async fn wait<T>(self, future: impl Future<Output = T>) -> Option<T> {
        timeout_at(self.end, future).await.ok()
    }
}

impl fmt::Display for Until {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.given.as_millis())
    }
}

/// TLS that trusts the system's authorities and those given.
fn tls(ca: Option<&str>) -> Result<TlsConnector, StoreError> {
    let bad = |why: &str| {
        let text = format!("the store's authority (CA) {why}; write one or more certificates in PEM, or leave it out");
        StoreError::new(Fault::BadConfig, text)
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(pem) = ca {
        let mut found = false;
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.map_err(|error| bad(&format!("is no valid PEM: {error}")))?;
            roots.add(certificate).map_err(|error| bad(&format!("has a certificate that is not valid: {error}")))?;
            found = true;
        }
        if !found {
            return Err(bad("holds no certificate"));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| StoreError::new(Fault::Tls, format!("TLS cannot be set up: {error}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // Every connection is verified anew.
    config.resumption = Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn tcp(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_keepalive(true)?;
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn shake(tls: &TlsConnector, at: &Address, stream: TcpStream, until: Until) -> Result<TlsStream<TcpStream>, StoreError> {
    let name = ServerName::try_from(at.host.clone()).map_err(|_| {
        StoreError::new(Fault::Tls, format!("no certificate can be for `{}`; write a name that DNS has", at.host))
    })?;
    match until.wait(tls.connect(name, stream)).await {
        Some(Ok(stream)) => Ok(stream),
        Some(Err(error)) => Err(tls_error(at, &error)),
        None => Err(StoreError::new(
            Fault::Timeout,
            format!(
                "{at} did not answer in TLS within {until}; if it speaks none, write redis in place of rediss in the store's url"
            ),
        )),
    }
}

fn cause(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// What an error on the way of TLS means.
fn tls_error(at: &Address, error: &io::Error) -> StoreError {
    use rustls::Error;
    let text = match cause(error) {
        Some(Error::InvalidMessage(_)) => {
            format!("{at} does not speak TLS; write redis in place of rediss in the store's url, or the server's tls-port")
        }
        Some(Error::InvalidCertificate(why)) => match why {
            CertificateError::UnknownIssuer => format!(
                "the certificate of {at} is of an authority that is not trusted; give that authority's certificate as the store's CA"
            ),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!(
                    "the certificate of {at} is for other names than `{}`; write one of those, or have it made for this one",
                    at.host
                )
            }
            _ => format!("the certificate of {at} is not valid: {error}; have a new one made"),
        },
        Some(Error::AlertReceived(
            AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure | AlertDescription::BadCertificate,
        )) => format!("{at} asks for a certificate of the client, and there is none; set tls-auth-clients no there"),
        Some(error) => format!("{at} and TLS: {error}; look into its log"),
        None => {
            format!("{at} ended the connection instead of TLS ({error}); if it speaks none, write redis in place of rediss")
        }
    };
    StoreError::new(Fault::Tls, text)
}

/// Says PING and looks whether what answers is Redis; whether it asks for a password.
async fn greet(stream: &mut dyn Stream, at: &Address, tls: bool, until: Until) -> Result<bool, StoreError> {
    let heard = until.wait(hear(stream)).await;
    let way = if tls { "" } else { "; if it speaks TLS, write rediss in place of redis in the store's url" };
    let line = match heard {
        Some(Ok(line)) => line,
        Some(Err(error)) if tls && cause(&error).is_some() => {
            return Err(tls_error(at, &error));
        }
        Some(Err(error)) => {
            return Err(StoreError::new(Fault::Lost, format!("{at} ended the connection without an answer ({error}){way}")));
        }
        None => {
            let text = format!("{at} takes the connection and says nothing within {until}; {WRITE}{way}");
            return Err(StoreError::new(Fault::Timeout, text));
        }
    };
    if line.starts_with(b"+PONG") {
        return Ok(false);
    }
    if let Some(text) = line.strip_prefix(b"-") {
        let text = String::from_utf8_lossy(text);
        let (code, said) = (text.split_whitespace().next().unwrap_or_default(), one_line(&text, LONGEST_QUOTE));
        return match (code, fault_of_code(code)) {
            ("NOAUTH", _) => Ok(true),
            // Perhaps another user may; it is seen with the first command.
            (_, Fault::NoPermission) => Ok(false),
            ("DENIED", fault) => Err(StoreError::new(
                fault,
                format!(
                    "{at} is in protected mode: it serves others than itself only with a password; set one there, and {PASSWORD}"
                ),
            )),
            (_, fault @ Fault::Loading) => {
                Err(StoreError::new(fault, format!("{at} is not ready yet: {said}; wait, or look into its log")))
            }
            (_, fault @ Fault::NotMaster) => {
                Err(StoreError::new(fault, format!("{at} is a replica without its master: {said}; write the master's address")))
            }
            _ if said.contains("max number of clients") => {
                Err(StoreError::new(Fault::Refused, format!("{at} has too many clients: {said}; raise its maxclients")))
            }
            (_, fault) => Err(StoreError::new(fault, format!("{at} answers PING with: {said}; look into its log"))),
        };
    }
    if !tls && matches!(line.as_slice(), [0x15, 0x03, ..]) {
        let text = format!("{at} speaks TLS; write rediss in place of redis in the store's url");
        return Err(StoreError::new(Fault::Tls, text));
    }
    if line.is_empty() {
        let text = format!("{at} ended the connection without an answer{way}");
        return Err(StoreError::new(Fault::Lost, text));
    }
    let other = if line.starts_with(b"HTTP/") {
        " (it is HTTP)"
    } else if line.starts_with(b"SSH-") {
        " (it is SSH)"
    } else {
        ""
    };
    Err(StoreError::new(Fault::NotRedis, format!("{at} answers, but not in the Redis protocol{other}; {WRITE}")))
}

/// The first line that is answered to PING; no more than is needed to see that it is none.
async fn hear(stream: &mut dyn Stream) -> io::Result<Vec<u8>> {
    stream.write_all(b"*1\r\n$4\r\nPING\r\n").await?;
    stream.flush().await?;
    let mut line = Vec::with_capacity(LONGEST_GREETING);
    let mut part = [0; LONGEST_GREETING];
    while line.len() < LONGEST_GREETING {
        let read = match stream.read(&mut part).await {
            Ok(read) => read,
            // What came before tells more.
            Err(_) if !line.is_empty() => break,
            Err(error) => return Err(error),
        };
        line.extend_from_slice(part.get(..read).unwrap_or_default());
        let plausible = matches!(line.first(), Some(b'+' | b'-'));
        // So much tells apart what is known to answer otherwise.
        if read == 0 || line.contains(&b'\n') || (!plausible && line.len() >= 5) {
            break;
        }
    }
    Ok(line)
}

/// One error of many, when nobody knew the master.
fn none_knows(what: &str, mut errors: Vec<StoreError>) -> StoreError {
    // What somebody answered tells more than that others are not there.
    errors.sort_by_key(|error| error.fault.is_absence());
    let count = errors.len();
    let mut errors = errors.into_iter();
    match errors.next() {
        Some(first) if count == 1 => first,
        Some(first) => {
            let text = format!("no {what} of {count} knows the master. One says: {}", first.message);
            StoreError::new(first.fault, text)
        }
        None => StoreError::new(Fault::BadConfig, format!("there is no {what} to ask; write one into the store's url")),
    }
}

/// The owner of a slot in the answer to CLUSTER SLOTS, and all nodes in it.
fn owner(slots: &Value, slot: u16, asked: &Address) -> (Option<Address>, Vec<Address>) {
    let (mut owner, mut nodes) = (None, Vec::new());
    for range in list(slots) {
        let [Value::Int(first), Value::Int(last), servers @ ..] = list(range) else { continue };
        let mut servers = servers.iter().map(|server| node(server, asked));
        // The master, then its replicas.
        let master = servers.next().flatten();
        if (*first..=*last).contains(&i64::from(slot)) {
            owner.clone_from(&master);
        }
        nodes.extend(master.into_iter().chain(servers.flatten()));
    }
    (owner, nodes)
}

fn node(server: &Value, asked: &Address) -> Option<Address> {
    let [host, Value::Int(port), more @ ..] = list(server) else { return None };
    let port = u16::try_from(*port).ok().filter(|port| *port != 0)?;
    let host = match text(host) {
        None | Some("") => asked.host.clone(),
        // A cluster of names, and this node has none: its address is among what else is known of it.
        Some("?") => more.get(1).and_then(|known| list(known).chunks_exact(2).find_map(|pair| ip(pair)))?.to_owned(),
        Some(host) => host.to_owned(),
    };
    Some(Address { host, port })
}

fn ip(pair: &[Value]) -> Option<&str> {
    let [key, value] = pair else { return None };
    text(value).filter(|_| text(key) == Some("ip"))
}

fn list(value: &Value) -> &[Value] {
    if let Value::Array(items) = value { items } else { &[] }
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

/// A line `key:value` of INFO.
fn field<'a>(info: &'a str, key: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
}

fn is_unknown_command(error: &RedisError) -> bool {
    code_of(error).as_deref() == Some("ERR") && quote(error).contains("unknown command")
}

/// What a server answered, as it wrote it.
fn quote(error: &RedisError) -> String {
    let all = error.clone().into_server_errors();
    let text = match all.as_deref().and_then(<[_]>::first) {
        Some((_, error)) => format!("{} {}", error.code(), error.details().unwrap_or_default()),
        None => error.to_string(),
    };
    one_line(text.trim(), LONGEST_QUOTE)
}

fn one_line(text: &str, most: usize) -> String {
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis() {
        // redis-cli CLUSTER KEYSLOT
        for (tag, expected) in [("123456789", 12739), ("", 0), ("foo", 12182), ("bar", 5061), ("hello", 866), ("somekey", 11058)]
        {
            assert_eq!(slot(tag), expected, "{tag}");
        }
    }

    #[test]
    fn errors_of_commands_are_told_apart() {
        let rows = [
            ("-NOAUTH Authentication required.", Fault::AuthRequired),
            ("-DENIED Redis is running in protected mode", Fault::AuthRequired),
            ("-WRONGPASS invalid username-password pair or user is disabled.", Fault::WrongPassword),
            ("-NOPERM User x has no permissions to run the 'info' command", Fault::NoPermission),
            ("-READONLY You can't write against a read only replica.", Fault::NotMaster),
            ("-MOVED 3999 127.0.0.1:6381", Fault::NotMaster),
            ("-ASK 3999 127.0.0.1:6381", Fault::NotMaster),
            ("-MASTERDOWN Link with MASTER is down", Fault::NotMaster),
            ("-CLUSTERDOWN The cluster is down", Fault::NoMaster),
            ("-LOADING Redis is loading the dataset in memory", Fault::Loading),
            ("-BUSY Redis is busy running a script.", Fault::Loading),
            ("-TRYAGAIN Multiple keys request during rehashing of slot", Fault::Loading),
            ("-ERR syntax error", Fault::Answer),
            ("-NOSCRIPT No matching script.", Fault::Answer),
            ("-OOM command not allowed when used memory > 'maxmemory'.", Fault::OutOfMemory),
        ];
        for (line, fault) in rows {
            let error = redis::parse_redis_value(format!("{line}\r\n").as_bytes()).unwrap().extract_error().expect_err(line);
            assert_eq!(fault_of(&error), fault, "{line}");
        }
        assert_eq!(fault_of(&io::Error::from(io::ErrorKind::BrokenPipe).into()), Fault::Lost);
        assert_eq!(fault_of(&io::Error::from(io::ErrorKind::TimedOut).into()), Fault::Timeout);
        assert_eq!(fault_of(&redis::parse_redis_value(b"HTTP/1.1 400\r\n").expect_err("no RESP")), Fault::NotRedis);
        let mut names: Vec<_> = Fault::ALL.iter().map(|fault| fault.as_str()).collect();
        names.dedup();
        assert_eq!(names.len(), Fault::ALL.len());
    }

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn the_owner_of_a_slot_is_read_from_the_cluster() {
        let asked = Address { host: "seed".to_owned(), port: 1 };
        let server = |host: Value, port| Value::Array(vec![host, Value::Int(port), bulk("id")]);
        let named = Value::Array(vec![bulk("?"), Value::Int(5), bulk("id"), Value::Array(vec![bulk("ip"), bulk("10.0.0.5")])]);
        let range =
            |first, last, servers: Vec<Value>| Value::Array([vec![Value::Int(first), Value::Int(last)], servers].concat());
        let slots = Value::Array(vec![
            range(0, 9, vec![server(bulk("a"), 2), server(bulk("b"), 3)]),
            range(10, 19, vec![server(bulk(""), 4)]),
            range(20, 29, vec![named]),
            range(30, 39, vec![server(Value::Nil, 6)]),
            range(40, 49, vec![server(bulk("c"), 0)]),
            Value::Nil,
        ]);
        let rows = [(0, "a:2"), (9, "a:2"), (10, "seed:4"), (29, "10.0.0.5:5"), (30, "seed:6"), (40, "none"), (50, "none")];
        for (slot, expected) in rows {
            let (owner, nodes) = owner(&slots, slot, &asked);
            assert_eq!(owner.map_or("none".to_owned(), |owner| owner.to_string()), expected, "{slot}");
            assert_eq!(nodes.len(), 5);
        }
        assert_eq!(owner(&Value::Okay, 0, &asked), (None, Vec::new()));
    }

    #[test]
    fn addresses_are_shown_with_brackets_where_they_need_them() {
        assert_eq!(Address { host: "::1".to_owned(), port: 7 }.to_string(), "[::1]:7");
        assert_eq!(Address { host: "h".to_owned(), port: 7 }.to_string(), "h:7");
    }
}
