//! Keeps the connection to the store: finds it, begins its epochs, tells it what this pod did without it, and says that the pod lives.
//!
//! An epoch is a span in which the store has lost nothing. One that was started again, or that is another server, begins a new one,
//! closed for [`CLOSED`]: every pod brings what it took itself and the store may have lost before it takes anything more, so that no
//! window is forgotten. Counts that came through, on disk or in a replica, count on.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use redis::{Cmd, Value};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::time::{sleep, timeout};

use crate::{
    config::{Config, Kind, StoreUrl},
    connect::{Address, Connection, Connector, Fault, StoreError},
    local::{Add, PLACES_LIFE, POD_LIFE},
    scripts::{Keys, Scripts, epoch, integers},
    store::{Inner, Job, State, Store, Up, current, lost, name, unreadable},
};

/// How long a new epoch is closed: longer than [`STEP`] and [`PAUSE`] together, and than [`BEAT`], after which every pod that reaches
/// the store has come.
const CLOSED: Duration = Duration::from_secs(2);
/// How long one step of a connection may take.
const STEP: Duration = Duration::from_secs(1);
/// How long the store may take to answer the upkeep before it counts as gone.
const SILENCE: Duration = Duration::from_millis(500);
/// How often a pod says that it lives.
const BEAT: Duration = Duration::from_millis(1500);
/// How often it is asked who the master is, where that can change.
const MASTER: Duration = Duration::from_secs(5);
/// The longest pause between attempts; the shortest is a tenth.
const PAUSE: Duration = Duration::from_millis(500);
/// The shortest sleep between two looks at what is to be done: each is one at every count.
const NAP: Duration = Duration::from_millis(4);
/// How long the store has to answer before it counts as steady: one that fails soon after it was reached is not tried faster for it.
const STEADY: Duration = Duration::from_secs(5);
/// How long the store may take to carry out what is sent at once.
const BRING: Duration = Duration::from_secs(5);
/// How many commands are sent at once.
const BATCH: usize = 128;

impl Store {
    /// Keeps the connection for as long as it runs. To be run once.
    pub async fn keep(&self) {
        let mut upkeep = Upkeep {
            inner: Arc::clone(&self.0),
            epoch: None,
            bringing: None,
            brought: None,
            generation: 0,
            told: None,
            place: None,
        };
        let mut jobs = self.0.job.subscribe();
        loop {
            let job = jobs.borrow_and_update().clone();
            let other = |now: &Job| now.config != job.config || now.groups.is_empty() != job.groups.is_empty();
            tokio::select! {
                () = upkeep.serve(&job) => {}
                changed = jobs.wait_for(other) => if changed.is_err() { return },
            }
        }
    }
}

impl Store {
    /// Returns what is leased and says which places are held, before this process ends: what is not returned counts as used. It takes
    /// no longer than this.
    pub async fn leave(&self, limit: Duration) {
        let inner = &self.0;
        let State::Up(up) = (**inner.state.load()).clone() else { return };
        let (places, gives, closing) = {
            let mut local = inner.lock();
            (local.all_places(), local.gives(), local.end_leases())
        };
        let mut cmds = vec![up.keys.beat(&up.scripts, &inner.pod, &[], POD_LIFE, &places, PLACES_LIFE)];
        cmds.extend(gives.iter().map(|add| up.keys.add(&up.scripts, add)));
        cmds.extend(closing.iter().map(|count| up.keys.close(&up.scripts, &inner.pod, count)));
        let returned = timeout(limit, send_all(&up, &cmds)).await;
        if !matches!(returned, Ok(Ok(()))) {
            tracing::debug!("what was taken of the shared store was not returned");
        }
    }
}

/// What is being given back or moved; what is left of it when this is dropped may not have been told.
struct Gives<'a> {
    inner: &'a Inner,
    adds: Vec<Add>,
}

impl Drop for Gives<'_> {
    fn drop(&mut self) {
        if !self.adds.is_empty() {
            self.inner.lock().gives_untold(std::mem::take(&mut self.adds));
        }
    }
}

/// What is to be brought to a new epoch; what the store has confirmed is not in it any more, so that an attempt goes on where the last
/// one ended.
struct Bringing {
    epoch: String,
    since: u64,
    adds: Vec<Add>,
    alone: Vec<Add>,
}

/// Places are being told; dropped before they are, they have to be told again.
struct Telling<'a>(Option<&'a Inner>);

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        if let Some(inner) = self.0 {
            inner.lock().places_untold();
        }
    }
}

struct Upkeep {
    inner: Arc<Inner>,
    /// The epoch that this pod has brought everything to.
    epoch: Option<String>,
    /// What it still has to bring to another.
    bringing: Option<Bringing>,
    /// Since when it brought what it took, and when that was, by the store's clock: a store that loses its last moments loses that too.
    brought: Option<(u64, u64)>,
    generation: u64,
    /// The fault that was logged last.
    told: Option<StoreError>,
    /// The store that was served last: where it is, and what its keys begin with.
    place: Option<(StoreUrl, String)>,
}

impl Upkeep {
    /// Serves one job until it changes. Which groups there are may change meanwhile.
    async fn serve(&mut self, Job { config, groups }: &Job) {
        let config = config.as_ref().filter(|_| !groups.is_empty());
        let place = config.and_then(|config| config.as_ref().ok()).map(|config| (config.url.clone(), config.prefix.clone()));
        // Another store is not up until it is connected to. The same one with another password goes on until then.
        if place.is_none() || place != self.place {
            self.down(State::Idle);
        }
        // Not missed by anybody.
        if config.is_none() {
            self.inner.meters.up.set(1);
        }
        self.place = place;
        let config = match config {
            Some(Ok(config)) => config,
            Some(Err(error)) => {
                self.failed(error.clone());
                return std::future::pending().await;
            }
            None => return std::future::pending().await,
        };
        let connector = match Connector::new(config) {
            Ok(connector) => connector,
            Err(error) => {
                self.failed(error);
                return std::future::pending().await;
            }
        };
        let mut attempt = 0;
        loop {
            let error = match self.connect(&connector, config).await {
                Ok(up) => {
                    self.told = None;
                    tracing::info!(address = %up.address, "the shared store answers");
                    let began = Instant::now();
                    let error = self.look_after(&up, config).await;
                    if began.elapsed() > STEADY {
                        attempt = 0;
                    }
                    error
                }
                Err(error) => error,
            };
            self.failed(error);
            sleep(pause(attempt)).await;
            attempt = u32::min(attempt + 1, 8);
        }
    }

    fn failed(&mut self, error: StoreError) {
        self.inner.meters.failures.with_label_values(&[error.fault.as_str()]).inc();
        self.tell(&error);
        self.down(State::Down(error));
    }

    fn down(&self, state: State) {
        self.inner.meters.up.set(0);
        self.inner.state.store(Arc::new(state));
    }

    /// Logs a fault once, not with every attempt.
    fn tell(&mut self, error: &StoreError) {
        if self.told.as_ref().is_some_and(|told| told.fault == error.fault) {
            tracing::debug!(%error, fault = error.fault.as_str(), "no shared store");
        } else {
            tracing::error!(%error, fault = error.fault.as_str(), "no shared store; calls with limits across pods are answered as onStoreFailure says");
        }
        self.told = Some(error.clone());
    }

    async fn connect(&mut self, connector: &Connector, config: &Config) -> Result<Arc<Up>, StoreError> {
        let address = connector.master(STEP).await?;
        let connection = connector.open(&address, STEP).await?;
        let scripts = load(&connection, &address, STEP).await?;
        let keys = Keys::new(&config.prefix);
        let closed = u64::try_from(CLOSED.as_micros()).unwrap_or(0);
        let sent = self.inner.now();
        let begin = keys.begin(&scripts, &connection.run_id, &name(), closed, self.epoch.as_deref());
        let answer = send(&connection, &address, &begin, STEP).await?;
        let (store, text, opens) = epoch(&answer).ok_or_else(|| unreadable(&address))?;
        let received = self.inner.now();
        let keys = keys.within(&text);
        self.generation += 1;
        let (generation, connector) = (self.generation, connector.clone());
        let up = Arc::new(Up { generation, address, connector, keys, scripts, connection });
        self.inner.lock().new_clock(store, sent, received);
        if self.epoch.as_deref() != Some(&text) {
            // What a question takes from now on would not be brought.
            self.down(State::Idle);
            self.bring_everything(&up, text, received).await?;
        }
        self.beat(&up, &self.groups()).await?;
        if opens > store {
            tracing::info!(milliseconds = (opens - store) / 1000, "the shared store is new; pods bring what they counted");
            // Also where the store's clock was set back.
            sleep(Duration::from_micros(opens - store).min(CLOSED)).await;
        }
        let alone = self.bring_alone(&up).await?;
        self.has_brought(alone);
        // The others have come by now.
        let groups = self.groups();
        let pods = self.beat(&up, &groups).await?;
        self.know(&groups, &pods);
        self.inner.suspect.store(false, Ordering::Relaxed);
        self.inner.state.store(Arc::new(State::Up(Arc::clone(&up))));
        self.inner.meters.up.set(1);
        Ok(up)
    }

    /// Does what there is to do until the store is lost, and says why.
    async fn look_after(&mut self, up: &Arc<Up>, config: &Config) -> StoreError {
        let inner = Arc::clone(&self.inner);
        let mut told = self.groups();
        let (mut beat_at, mut master_at) = (inner.now() + micros(BEAT), inner.now() + micros(MASTER));
        let mut flush_at = 0;
        loop {
            match &**inner.state.load() {
                State::Up(now) if now.generation == up.generation => {}
                State::Down(error) => return error.clone(),
                State::Up(_) | State::Idle => {
                    return StoreError::new(Fault::Lost, "another connection took its place");
                }
            }
            let now = inner.now();
            let done = async {
                if inner.suspect.swap(false, Ordering::Relaxed) {
                    let mut ping = Cmd::new();
                    ping.arg("PING");
                    send(&up.connection, &up.address, &ping, SILENCE).await?;
                }
                let alone = self.bring_alone(up).await?;
                self.has_brought(alone);
                let (gives, closing) = {
                    let mut local = inner.lock();
                    (local.gives(), local.closing(now))
                };
                let mut gives = Gives { inner: &inner, adds: gives };
                bring(up, &gives.adds).await?;
                gives.adds.clear();
                let closes: Vec<Cmd> = closing.iter().map(|count| up.keys.close(&up.scripts, &inner.pod, count)).collect();
                send_all(up, &closes).await?;
                let groups = self.groups();
                if now >= beat_at || groups != told || (now >= flush_at && inner.lock().places_changed()) {
                    let pods = self.beat(up, &groups).await?;
                    self.know(&groups, &pods);
                    told = groups;
                    inner.lock().sweep(now);
                    // Not all pods at once.
                    beat_at = now + micros(BEAT) / 2 + micros(BEAT) * u64::from(random() % 1024) / 2048;
                    flush_at = now + micros(NAP);
                }
                if now >= master_at && config.url.kind != Kind::Single {
                    master_at = now + micros(MASTER);
                    let master = up.connector.master(STEP).await?;
                    if master != up.address {
                        return Err(StoreError::new(Fault::NotMaster, format!("the master is {master} now")));
                    }
                }
                Ok::<_, StoreError>(())
            };
            if let Err(error) = done.await {
                inner.fail(up.generation, error.clone());
                return error;
            }
            let next = {
                let local = inner.lock();
                let flush = if local.places_changed() { flush_at } else { beat_at };
                local.next_deadline().unwrap_or(beat_at).min(beat_at).min(flush).min(now + 1_000_000)
            };
            let nap = Duration::from_micros(next.saturating_sub(inner.now())).max(NAP);
            tokio::select! {
                () = sleep(nap) => {}
                // Not for each call.
                () = inner.wake.notified() => sleep(NAP).await,
                // Also where there is nothing to tell it: what this pod took must be brought before a new one opens.
                () = up.connection.ended() => {
                    let error = StoreError::new(Fault::Lost, format!("{} ended the connection", up.address));
                    inner.fail(up.generation, error.clone());
                    return error;
                }
            }
        }
    }

    /// Brings what this pod took and the store has lost, or may have.
    async fn bring_everything(&mut self, up: &Up, text: String, now: u64) -> Result<(), StoreError> {
        if self.bringing.as_ref().is_none_or(|bringing| bringing.epoch != text) {
            let mut since = up.keys.since(self.epoch.as_deref());
            // What was brought lately is lost as well.
            if let Some((from, _)) = self.brought.filter(|(_, at)| since <= *at) {
                since = since.min(from);
            }
            let (adds, alone) = self.inner.lock().everything(since, now);
            self.bringing = Some(Bringing { epoch: text.clone(), since, adds, alone });
        }
        let Some(bringing) = &mut self.bringing else { return Ok(()) };
        while let Some(batch) = bringing.adds.chunks(BATCH).next() {
            let brought = batch.len();
            bring(up, batch).await?;
            bringing.adds.drain(..brought);
        }
        let mut local = self.inner.lock();
        local.alone_told(&bringing.alone);
        self.brought = Some((bringing.since, local.store_now(self.inner.now())));
        drop(local);
        self.bringing = None;
        self.epoch = Some(text);
        Ok(())
    }

    /// Brings what was taken while the store was away; gives whether there was something. If this ends half-way, it is brought again:
    /// what counts twice is safe.
    async fn bring_alone(&self, up: &Up) -> Result<bool, StoreError> {
        let adds = self.inner.lock().taken_alone();
        bring(up, &adds).await?;
        self.inner.lock().alone_told(&adds);
        Ok(!adds.is_empty())
    }

    fn has_brought(&mut self, something: bool) {
        if something {
            self.brought = Some((0, self.inner.lock().store_now(self.inner.now())));
        }
    }

    /// Says that the pod lives and what places it holds. Gives how many pods each group has.
    async fn beat(&self, up: &Up, groups: &BTreeSet<Arc<str>>) -> Result<Vec<i64>, StoreError> {
        let mut telling = Telling(Some(&self.inner));
        let places = self.inner.lock().all_places();
        let names: Vec<&str> = groups.iter().map(|group| &**group).collect();
        let cmd = up.keys.beat(&up.scripts, &self.inner.pod, &names, POD_LIFE, &places, PLACES_LIFE);
        let answer = send(&up.connection, &up.address, &cmd, SILENCE).await?;
        let (_, pods) = current(&up.address, &answer)?;
        telling.0 = None;
        Ok(pods)
    }

    /// The groups of pods that count together now.
    fn groups(&self) -> BTreeSet<Arc<str>> {
        self.inner.job.borrow().groups.clone()
    }

    fn know(&self, groups: &BTreeSet<Arc<str>>, pods: &[i64]) {
        let mut local = self.inner.lock();
        for (group, pods) in groups.iter().zip(pods) {
            local.set_pods(group, u64::try_from(*pods).unwrap_or(0));
        }
    }
}

/// Tells of what was taken without the store, moved or given back.
async fn bring(up: &Up, adds: &[Add]) -> Result<(), StoreError> {
    let cmds: Vec<Cmd> = adds.iter().map(|add| up.keys.add(&up.scripts, add)).collect();
    send_all(up, &cmds).await
}

/// Sends commands of scripts, and makes sure that the epoch is still the same.
async fn send_all(up: &Up, cmds: &[Cmd]) -> Result<(), StoreError> {
    for batch in cmds.chunks(BATCH) {
        let answers = match timeout(BRING, up.connection.send_all(batch)).await {
            Ok(answers) => answers.map_err(|error| lost(&up.address, &error))?,
            Err(_) => return Err(StoreError::new(Fault::Timeout, format!("{} did not answer", up.address))),
        };
        for answer in answers {
            current(&up.address, &answer)?;
        }
    }
    Ok(())
}

async fn send(connection: &Connection, address: &Address, cmd: &Cmd, limit: Duration) -> Result<Value, StoreError> {
    match timeout(limit, connection.send(cmd)).await {
        Ok(result) => result.map_err(|error| lost(address, &error)),
        Err(_) => Err(StoreError::new(Fault::Timeout, format!("{address} did not answer within {} ms", limit.as_millis()))),
    }
}

async fn load(connection: &Connection, address: &Address, limit: Duration) -> Result<Scripts, StoreError> {
    let mut shas = Vec::new();
    for text in Scripts::texts() {
        let mut load = Cmd::new();
        load.arg("SCRIPT").arg("LOAD").arg(text);
        match send(connection, address, &load, limit).await? {
            Value::BulkString(sha) => shas.push(String::from_utf8_lossy(&sha).into_owned()),
            Value::SimpleString(sha) => shas.push(sha),
            _ => return Err(unreadable(address)),
        }
    }
    let shas: [String; 5] = shas.try_into().map_err(|_| unreadable(address))?;
    Ok(Scripts::of(shas))
}

/// Connects once, as pods do, and runs a script that looks and takes nothing: whether they could use the store. Each step may take
/// so long.
///
/// # Errors
/// They could not.
pub async fn probe(config: &Config, limit: Duration) -> Result<(), StoreError> {
    let connector = Connector::new(config)?;
    let address = connector.master(limit).await?;
    let connection = connector.open(&address, limit).await?;
    let scripts = load(&connection, &address, limit).await?;
    let look = Keys::new(&config.prefix).look(&scripts, &[], &[]);
    let answer = send(&connection, &address, &look, limit).await?;
    integers(&answer).map(drop).ok_or_else(|| unreadable(&address))
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

fn random() -> u32 {
    let mut bytes = [0; 4];
    // Without a random number all pods do it at once, no worse.
    SystemRandom::new().fill(&mut bytes).map_or(0, |()| u32::from_ne_bytes(bytes))
}

/// How long to wait before an attempt: some part of a span that grows, so that pods do not come all at once.
fn pause(attempt: u32) -> Duration {
    let span = (PAUSE / 10 * 2_u32.pow(attempt.min(8))).min(PAUSE);
    span / 4 + span * (random() % 1024) / 1024 * 3 / 4
}
