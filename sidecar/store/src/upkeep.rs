//! Keeps the connection to the store: finds it, begins its epochs, tells it what this pod did without it, and sends signs of life.
//!
//! An epoch is a span in which the store has lost nothing. A server that was started again, or that is another one, begins a new epoch,
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
    config::{Address, StoreConfig, StoreKind, StoreUrl},
    connect::Connector,
    connection::StoreConnection,
    error::{StoreError, StoreFault},
    local::{PLACES_LIFE, POD_LIFE},
    reply::{command_failed, malformed_reply, script_numbers},
    scripts::{CountUpdate, EpochReply, KeySpace, Scripts, read_integers},
    state::{ConnectedStore, SharingConfig, StoreInner, StoreState, random_id},
    store::Store,
};

/// The time for which a new epoch is closed: longer than [`STEP`] and [`PAUSE`] together, and than [`HEARTBEAT`], after which every pod that reaches
/// the store has come.
const CLOSED: Duration = Duration::from_secs(2);
/// The longest time of one step of a connection.
const STEP: Duration = Duration::from_secs(1);
/// The time after which a store that does not answer the upkeep counts as gone.
const REPLY_LIMIT: Duration = Duration::from_millis(500);
/// The interval of a pod's signs of life.
const HEARTBEAT: Duration = Duration::from_millis(1500);
/// The interval of questions who the master is, where that can change.
const MASTER_CHECK: Duration = Duration::from_secs(5);
/// The longest pause between attempts; the shortest is a tenth.
const PAUSE: Duration = Duration::from_millis(500);
/// The shortest sleep between two rounds, each of which goes through every count.
const SHORTEST_SLEEP: Duration = Duration::from_millis(4);
/// The time for which a store has to answer until it counts as steady: one that fails soon after it was reached is not tried faster for it.
const STEADY: Duration = Duration::from_secs(5);
/// The longest time in which the store carries out a batch of commands.
const BATCH_LIMIT: Duration = Duration::from_secs(5);
/// The most commands of a batch.
const BATCH: usize = 128;

impl Store {
    /// Keeps the connection for as long as it runs. To be run once.
    pub async fn keep(&self) {
        let mut upkeep = StoreUpkeep {
            inner: Arc::clone(&self.0),
            epoch: None,
            replay: None,
            brought: None,
            generation: 0,
            logged: None,
            place: None,
        };
        let mut configurations = self.0.sharing.subscribe();
        loop {
            let sharing = configurations.borrow_and_update().clone();
            let is_other =
                |now: &SharingConfig| now.config != sharing.config || now.groups.is_empty() != sharing.groups.is_empty();
            tokio::select! {
                () = upkeep.serve(&sharing) => {}
                changed = configurations.wait_for(is_other) => if changed.is_err() { return },
            }
        }
    }

    /// Returns what is leased and says which places are held, before this process ends: what is not returned counts as used. Takes no
    /// longer than `limit`.
    pub async fn leave(&self, limit: Duration) {
        let inner = &self.0;
        let StoreState::Up(up) = (**inner.state.load()).clone() else { return };
        let (places, updates, leases) = {
            let mut local = inner.lock();
            (local.report_places(), local.take_updates(), local.end_leases())
        };
        let mut cmds = vec![up.keys.heartbeat(&up.scripts, &inner.pod, &[], POD_LIFE, &places, PLACES_LIFE)];
        cmds.extend(updates.iter().map(|update| up.keys.add(&up.scripts, update)));
        cmds.extend(leases.iter().map(|count| up.keys.close(&up.scripts, &inner.pod, count)));
        let returned = timeout(limit, send_all(&up, &cmds)).await;
        if !matches!(returned, Ok(Ok(()))) {
            tracing::debug!("what was taken of the shared store was not returned");
        }
    }
}

/// Updates that are being sent. Those that are left when this is dropped may not have reached the store.
struct PendingUpdates<'a> {
    inner: &'a StoreInner,
    updates: Vec<CountUpdate>,
}

impl Drop for PendingUpdates<'_> {
    fn drop(&mut self) {
        if !self.updates.is_empty() {
            self.inner.lock().updates_lost(std::mem::take(&mut self.updates));
        }
    }
}

/// The updates that are brought to a new epoch. What the store has confirmed is taken out, so that an attempt goes on where the last one ended.
struct EpochReplay {
    epoch: String,
    since: u64,
    updates: Vec<CountUpdate>,
    /// The part of them that was taken without the store.
    offline: Vec<CountUpdate>,
}

/// Places that are being reported. Dropped before that is done, they have to be reported again.
struct PlaceReportGuard<'a>(Option<&'a StoreInner>);

impl Drop for PlaceReportGuard<'_> {
    fn drop(&mut self) {
        if let Some(inner) = self.0 {
            inner.lock().places_lost();
        }
    }
}

/// When what recurs is due, in microseconds of this process' clock.
struct Schedule {
    /// The groups of the last sign of life.
    groups: BTreeSet<Arc<str>>,
    heartbeat_at: u64,
    /// The earliest sign of life that only reports places.
    places_at: u64,
    master_at: u64,
}

struct StoreUpkeep {
    inner: Arc<StoreInner>,
    /// The epoch that this pod has brought everything to.
    epoch: Option<String>,
    /// The updates that it still has to bring to another.
    replay: Option<EpochReplay>,
    /// Since when it brought what it took, and when that was, by the store's clock: a store that loses its last moments loses that too.
    brought: Option<(u64, u64)>,
    generation: u64,
    /// The error that was logged last.
    logged: Option<StoreError>,
    /// The store that was served last: where it is, and what its keys begin with.
    place: Option<(StoreUrl, String)>,
}

impl StoreUpkeep {
    /// Serves one configuration until it changes. The groups may change meanwhile.
    async fn serve(&mut self, SharingConfig { config, groups }: &SharingConfig) {
        let config = config.as_ref().filter(|_| !groups.is_empty());
        let place = config.and_then(|config| config.as_ref().ok()).map(|config| (config.url.clone(), config.prefix.clone()));
        // Another store is not up until it is connected to. The same one with another password goes on until then.
        if place.is_none() || place != self.place {
            self.set_down(StoreState::Idle);
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
                    self.logged = None;
                    tracing::info!(address = %up.address, "the shared store answers");
                    let began = Instant::now();
                    let error = self.maintain(&up, config).await;
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
        self.log(&error);
        self.set_down(StoreState::Down(error));
    }

    fn set_down(&self, state: StoreState) {
        self.inner.meters.up.set(0);
        self.inner.state.store(Arc::new(state));
    }

    /// Logs a fault once, not with every attempt.
    fn log(&mut self, error: &StoreError) {
        if self.logged.as_ref().is_some_and(|logged| logged.fault == error.fault) {
            tracing::debug!(%error, fault = error.fault.as_str(), "no shared store");
        } else {
            tracing::error!(%error, fault = error.fault.as_str(), "no shared store; calls with limits across pods are answered as onStoreFailure says");
        }
        self.logged = Some(error.clone());
    }

    async fn connect(&mut self, connector: &Connector, config: &StoreConfig) -> Result<Arc<ConnectedStore>, StoreError> {
        let address = connector.master(STEP).await?;
        let connection = connector.open(&address, STEP).await?;
        let scripts = load(&connection, &address, STEP).await?;
        let keys = KeySpace::new(&config.prefix);
        let sent = self.inner.now();
        let begin = keys.begin_epoch(&scripts, &connection.run_id, &random_id(), micros(CLOSED), self.epoch.as_deref());
        let answer = send(&connection, &address, &begin, STEP).await?;
        let EpochReply { now: store, text, opens } = EpochReply::read(&answer).ok_or_else(|| malformed_reply(&address))?;
        let received = self.inner.now();
        let keys = keys.in_epoch(&text);
        self.generation += 1;
        let (generation, connector) = (self.generation, connector.clone());
        let up = Arc::new(ConnectedStore { generation, address, connector, keys, scripts, connection });
        self.inner.lock().replace_clock(store, sent, received);
        if self.epoch.as_deref() != Some(&text) {
            // What a request takes from now on would not be brought.
            self.set_down(StoreState::Idle);
            self.replay(&up, text, received).await?;
        }
        self.heartbeat(&up, &self.groups()).await?;
        if opens > store {
            tracing::info!(milliseconds = (opens - store) / 1000, "the shared store is new; pods bring what they counted");
            // Also where the store's clock was set back.
            sleep(Duration::from_micros(opens - store).min(CLOSED)).await;
        }
        self.bring_offline(&up).await?;
        // The others have come by now.
        let groups = self.groups();
        let pods = self.heartbeat(&up, &groups).await?;
        self.set_pods(&groups, &pods);
        self.inner.suspect.store(false, Ordering::Relaxed);
        self.inner.state.store(Arc::new(StoreState::Up(Arc::clone(&up))));
        self.inner.meters.up.set(1);
        Ok(up)
    }

    /// Does what there is to do until the store is lost. Returns why it was.
    async fn maintain(&mut self, up: &Arc<ConnectedStore>, config: &StoreConfig) -> StoreError {
        let inner = Arc::clone(&self.inner);
        let mut schedule = Schedule {
            groups: self.groups(),
            heartbeat_at: inner.now() + micros(HEARTBEAT),
            places_at: 0,
            master_at: inner.now() + micros(MASTER_CHECK),
        };
        loop {
            match &**inner.state.load() {
                StoreState::Up(now) if now.generation == up.generation => {}
                StoreState::Down(error) => return error.clone(),
                StoreState::Up(_) | StoreState::Idle => {
                    return StoreError::new(StoreFault::Lost, "another connection took its place");
                }
            }
            let now = inner.now();
            if let Err(error) = self.round(up, config, &mut schedule, now).await {
                inner.fail(up.generation, error.clone());
                return error;
            }
            tokio::select! {
                () = sleep(self.until_next_round(&schedule, now)) => {}
                // Not for each call.
                () = inner.wake.notified() => sleep(SHORTEST_SLEEP).await,
                // Also where there is nothing to tell it: what this pod took must be brought before a new one opens.
                () = up.connection.ended() => {
                    let error = StoreError::new(StoreFault::Lost, format!("{} ended the connection", up.address));
                    inner.fail(up.generation, error.clone());
                    return error;
                }
            }
        }
    }

    /// Does once what is due.
    async fn round(
        &mut self,
        up: &Arc<ConnectedStore>,
        config: &StoreConfig,
        schedule: &mut Schedule,
        now: u64,
    ) -> Result<(), StoreError> {
        let inner = Arc::clone(&self.inner);
        if inner.suspect.swap(false, Ordering::Relaxed) {
            let mut ping = Cmd::new();
            ping.arg("PING");
            send(&up.connection, &up.address, &ping, REPLY_LIMIT).await?;
        }
        self.bring_offline(up).await?;
        let (updates, leases) = {
            let mut local = inner.lock();
            (local.take_updates(), local.close_leases(now))
        };
        let mut pending = PendingUpdates { inner: &inner, updates };
        send_updates(up, &pending.updates).await?;
        pending.updates.clear();
        let closes: Vec<Cmd> = leases.iter().map(|count| up.keys.close(&up.scripts, &inner.pod, count)).collect();
        send_all(up, &closes).await?;
        let groups = self.groups();
        let places_are_due = now >= schedule.places_at && inner.lock().places_changed();
        if now >= schedule.heartbeat_at || groups != schedule.groups || places_are_due {
            let pods = self.heartbeat(up, &groups).await?;
            self.set_pods(&groups, &pods);
            schedule.groups = groups;
            inner.lock().sweep(now);
            // Not all pods at once.
            schedule.heartbeat_at = now + micros(HEARTBEAT) / 2 + micros(HEARTBEAT) * u64::from(random() % 1024) / 2048;
            schedule.places_at = now + micros(SHORTEST_SLEEP);
        }
        if now >= schedule.master_at && config.url.kind != StoreKind::Single {
            schedule.master_at = now + micros(MASTER_CHECK);
            let master = up.connector.master(STEP).await?;
            if master != up.address {
                return Err(StoreError::new(StoreFault::NotMaster, format!("the master is {master} now")));
            }
        }
        Ok(())
    }

    /// Returns how long to sleep after a round that began at `now`.
    fn until_next_round(&self, schedule: &Schedule, now: u64) -> Duration {
        let local = self.inner.lock();
        let places_at = if local.places_changed() { schedule.places_at } else { schedule.heartbeat_at };
        let lease = local.next_deadline().unwrap_or(schedule.heartbeat_at);
        let next = lease.min(schedule.heartbeat_at).min(places_at).min(now + 1_000_000);
        Duration::from_micros(next.saturating_sub(self.inner.now())).max(SHORTEST_SLEEP)
    }

    /// Brings to a new epoch what this pod took and the store has lost, or may have.
    async fn replay(&mut self, up: &ConnectedStore, text: String, now: u64) -> Result<(), StoreError> {
        if self.replay.as_ref().is_none_or(|replay| replay.epoch != text) {
            let mut since = up.keys.lost_since(self.epoch.as_deref());
            // What was brought lately is lost as well.
            if let Some((from, _)) = self.brought.filter(|(_, at)| since <= *at) {
                since = since.min(from);
            }
            let (updates, offline) = self.inner.lock().enter_epoch(since, now);
            self.replay = Some(EpochReplay { epoch: text.clone(), since, updates, offline });
        }
        let Some(replay) = &mut self.replay else { return Ok(()) };
        while let Some(batch) = replay.updates.chunks(BATCH).next() {
            let brought = batch.len();
            send_updates(up, batch).await?;
            replay.updates.drain(..brought);
        }
        let mut local = self.inner.lock();
        local.offline_stored(&replay.offline);
        self.brought = Some((replay.since, local.store_now(self.inner.now())));
        drop(local);
        self.replay = None;
        self.epoch = Some(text);
        Ok(())
    }

    /// Brings what was taken while the store was away. If this ends half-way, it is brought again: what counts twice is safe.
    async fn bring_offline(&mut self, up: &ConnectedStore) -> Result<(), StoreError> {
        let updates = self.inner.lock().offline_updates();
        send_updates(up, &updates).await?;
        let mut local = self.inner.lock();
        local.offline_stored(&updates);
        if !updates.is_empty() {
            self.brought = Some((0, local.store_now(self.inner.now())));
        }
        Ok(())
    }

    /// Sends a sign of life and the places that the pod holds. Returns how many pods each group has.
    async fn heartbeat(&self, up: &ConnectedStore, groups: &BTreeSet<Arc<str>>) -> Result<Vec<i64>, StoreError> {
        let mut reporting = PlaceReportGuard(Some(&self.inner));
        let places = self.inner.lock().report_places();
        let names: Vec<&str> = groups.iter().map(|group| &**group).collect();
        let cmd = up.keys.heartbeat(&up.scripts, &self.inner.pod, &names, POD_LIFE, &places, PLACES_LIFE);
        let answer = send(&up.connection, &up.address, &cmd, REPLY_LIMIT).await?;
        let (_, pods) = script_numbers(&up.address, &answer)?;
        reporting.0 = None;
        Ok(pods)
    }

    /// The groups of pods that count together now.
    fn groups(&self) -> BTreeSet<Arc<str>> {
        self.inner.sharing.borrow().groups.clone()
    }

    fn set_pods(&self, groups: &BTreeSet<Arc<str>>, pods: &[i64]) {
        let mut local = self.inner.lock();
        for (group, pods) in groups.iter().zip(pods) {
            local.set_pods(group, u64::try_from(*pods).unwrap_or(0));
        }
    }
}

async fn send_updates(up: &ConnectedStore, updates: &[CountUpdate]) -> Result<(), StoreError> {
    let cmds: Vec<Cmd> = updates.iter().map(|update| up.keys.add(&up.scripts, update)).collect();
    send_all(up, &cmds).await
}

/// Sends commands of scripts in batches.
///
/// # Errors
/// Also where the store is in another epoch.
async fn send_all(up: &ConnectedStore, cmds: &[Cmd]) -> Result<(), StoreError> {
    for batch in cmds.chunks(BATCH) {
        let answers = match timeout(BATCH_LIMIT, up.connection.send_all(batch)).await {
            Ok(answers) => answers.map_err(|error| command_failed(&up.address, &error))?,
            Err(_) => return Err(StoreError::new(StoreFault::Timeout, format!("{} did not answer", up.address))),
        };
        for answer in answers {
            script_numbers(&up.address, &answer)?;
        }
    }
    Ok(())
}

async fn send(connection: &StoreConnection, address: &Address, cmd: &Cmd, limit: Duration) -> Result<Value, StoreError> {
    match timeout(limit, connection.send(cmd)).await {
        Ok(result) => result.map_err(|error| command_failed(address, &error)),
        Err(_) => Err(StoreError::new(StoreFault::Timeout, format!("{address} did not answer within {} ms", limit.as_millis()))),
    }
}

async fn load(connection: &StoreConnection, address: &Address, limit: Duration) -> Result<Scripts, StoreError> {
    let mut shas = Vec::new();
    for text in Scripts::sources() {
        let mut load = Cmd::new();
        load.arg("SCRIPT").arg("LOAD").arg(text);
        match send(connection, address, &load, limit).await? {
            Value::BulkString(sha) => shas.push(String::from_utf8_lossy(&sha).into_owned()),
            Value::SimpleString(sha) => shas.push(sha),
            _ => return Err(malformed_reply(address)),
        }
    }
    let shas: [String; 5] = shas.try_into().map_err(|_| malformed_reply(address))?;
    Ok(Scripts::from_shas(shas))
}

/// Checks that pods could use the store: connects once, as they do, and runs a script that takes nothing. Each step may take as long as
/// `limit`.
///
/// # Errors
/// The reason why pods could not use it.
pub async fn probe(config: &StoreConfig, limit: Duration) -> Result<(), StoreError> {
    let connector = Connector::new(config)?;
    let address = connector.master(limit).await?;
    let connection = connector.open(&address, limit).await?;
    let scripts = load(&connection, &address, limit).await?;
    let peek = KeySpace::new(&config.prefix).peek(&scripts, &[], &[]);
    let answer = send(&connection, &address, &peek, limit).await?;
    read_integers(&answer).map(drop).ok_or_else(|| malformed_reply(&address))
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

fn random() -> u32 {
    let mut bytes = [0; 4];
    // Without a random number all pods do it at once, no worse.
    SystemRandom::new().fill(&mut bytes).map_or(0, |()| u32::from_ne_bytes(bytes))
}

/// The pause before an attempt: a random part of a span that grows, so that pods do not come all at once.
fn pause(attempt: u32) -> Duration {
    let span = (PAUSE / 10 * 2_u32.pow(attempt.min(8))).min(PAUSE);
    span / 4 + span * (random() % 1024) / 1024 * 3 / 4
}
