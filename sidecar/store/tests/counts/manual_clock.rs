//! A store whose clock a test sets.

use redis::{Cmd, Value, aio::MultiplexedConnection};
use tokio::runtime::Runtime;
use toolweir_engine::{Timestamp, shared::SharedDemand, take::Take};
use toolweir_store::{
    answer::DemandAnswers,
    local::{LocalCounts, LocalDecision, PLACES_LIFE, POD_LIFE},
    scripts::{CountUpdate, EpochReply, KeySpace, Scripts, read_integers},
};

use super::common::Redis;

/// A store whose clock stands still until it is set, in a redis-server of its own.
pub struct ManualClockStore {
    runtime: Runtime,
    connection: MultiplexedConnection,
    /// The scripts, which read this clock.
    pub scripts: Scripts,
    /// The keys of the epoch.
    pub keys: KeySpace,
    /// The time, in microseconds.
    pub now: u64,
    epochs: u64,
    _redis: Redis,
}

/// Some day of 2026, in microseconds.
pub const BEGIN: u64 = 1_795_000_000_000_000;

impl ManualClockStore {
    /// An empty store.
    pub fn new() -> Self {
        let redis = Redis::start(&[]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", redis.port)).unwrap();
        let connection = runtime.block_on(client.get_multiplexed_async_connection()).unwrap();
        let keys = KeySpace::new("test");
        let mut store = Self { runtime, connection, scripts: Scripts::default(), keys, now: BEGIN, epochs: 0, _redis: redis };
        let shas = Scripts::sources().map(|text| {
            assert!(text.contains("redis.call('TIME')"));
            let text = text.replace("redis.call('TIME')", "{ redis.call('GET', 's'), redis.call('GET', 'u') }");
            let mut load = Cmd::new();
            load.arg("SCRIPT").arg("LOAD").arg(text);
            match store.run(&load) {
                Value::BulkString(sha) => String::from_utf8(sha).unwrap(),
                other => panic!("{other:?}"),
            }
        });
        store.scripts = Scripts::from_shas(shas);
        store.reset();
        store
    }

    /// Forgets everything, and sets the clock to [`BEGIN`].
    pub fn reset(&mut self) {
        let mut flush = Cmd::new();
        self.run(flush.arg("FLUSHDB"));
        self.set_clock(BEGIN);
        let text = self.restart();
        assert_eq!(text.split(' ').next().unwrap(), format!("e{}", self.epochs));
    }

    /// Begins an epoch, as where another run of the server has the data. Returns it.
    pub fn restart(&mut self) -> String {
        self.epochs += 1;
        let begin = self.keys.begin_epoch(&self.scripts, &format!("run{}", self.epochs), &format!("e{}", self.epochs), 0, None);
        let answer = self.run(&begin);
        let EpochReply { text, opens, .. } = EpochReply::read(&answer).unwrap();
        assert_eq!(opens, self.now);
        self.keys = self.keys.in_epoch(&text);
        text
    }

    /// Updates counts.
    pub fn update(&mut self, adds: &[CountUpdate]) {
        for add in adds {
            self.numbers(&self.keys.clone().add(&self.scripts.clone(), add));
        }
    }

    /// A sign of life, with the pod's places.
    pub fn heartbeat(&mut self, pod: &mut LocalCounts, name: &str) {
        let places = pod.report_places();
        self.numbers(&self.keys.clone().heartbeat(&self.scripts.clone(), name, &[], POD_LIFE, &places, PLACES_LIFE));
    }

    /// Sets the clock.
    pub fn set_clock(&mut self, now: u64) {
        self.now = now;
        for (key, value) in [("s", now / 1_000_000), ("u", now % 1_000_000)] {
            let mut set = Cmd::new();
            set.arg("SET").arg(key).arg(value);
            self.run(&set);
        }
    }

    /// Runs a command.
    pub fn run(&mut self, cmd: &Cmd) -> Value {
        let mut connection = self.connection.clone();
        self.runtime.block_on(connection.send_packed_command(cmd)).unwrap()
    }

    /// Runs a script in the epoch, and returns the numbers that follow the time.
    pub fn numbers(&mut self, cmd: &Cmd) -> Vec<i64> {
        let answer = self.run(cmd);
        let mut numbers = read_integers(&answer).unwrap_or_else(|| panic!("{answer:?}"));
        assert_eq!(numbers[0], 0, "another epoch");
        numbers.split_off(2)
    }

    /// The engine's time: the same clock.
    pub fn engine_time(&self) -> Timestamp {
        Timestamp(self.now * 1000)
    }

    /// A call of a pod whose clock is the store's, answered at once.
    pub fn call(&mut self, pod: &mut LocalCounts, name: &str, wanted: &[SharedDemand]) -> DemandAnswers {
        match pod.decide(wanted, self.now, self.engine_time()).unwrap() {
            LocalDecision::Answered(answers) => answers,
            LocalDecision::Ask(request) => {
                let numbers = self.numbers(&self.keys.clone().take(&self.scripts.clone(), name, &request));
                pod.apply_reply(wanted, &request, self.now, &numbers, self.now, self.engine_time()).unwrap()
            }
        }
    }

    /// Sends the updates of a pod and closes its leases that are over.
    pub fn flush(&mut self, pod: &mut LocalCounts, name: &str) {
        for add in pod.take_updates() {
            self.numbers(&self.keys.clone().add(&self.scripts.clone(), &add));
        }
        for count in pod.close_leases(self.now) {
            self.numbers(&self.keys.clone().close(&self.scripts.clone(), name, &count));
        }
    }

    /// What counts now against a limit, in millionths.
    pub fn used(&mut self, take: &Take) -> i64 {
        let counts = [LocalCounts::peek_of(take)];
        self.numbers(&self.keys.clone().peek(&self.scripts.clone(), &counts, &[]))[0]
    }
}
