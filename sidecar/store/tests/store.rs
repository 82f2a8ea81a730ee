//! [`Store`] with its upkeep and a real redis-server: what pods see of each other, across restarts, changes and an end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use common::{Redis, free_port};
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts};
use tokio::{task::JoinHandle, time::sleep};
use toolweir_crds::{OnStoreFailure, stream::SharedStore};
use toolweir_engine::{
    Amount, Timestamp,
    shared::{SharedAnswer, SharedDemand, SharedHold, SharedTake, SharedUsage},
    take::{Hold, Identity, Take, instance},
    window::Span,
};
use toolweir_store::{
    Meters, Store,
    config::StoreConfig,
    error::{StoreError, StoreFault},
    probe,
};

const GROUP: &str = "Workload agents/Deployment/agent";
const PASSWORD: &str = "kestrel-7-swordfish";

fn meters() -> Meters {
    let counter = |name: &str| IntCounter::new(name, name).unwrap();
    Meters {
        up: IntGauge::new("up", "up").unwrap(),
        asked: counter("asked"),
        leased: counter("leased"),
        refused: counter("refused"),
        known_full: counter("known_full"),
        unavailable: counter("unavailable"),
        timeout: counter("timeout"),
        failures: IntCounterVec::new(Opts::new("failures", "failures"), &["fault"]).unwrap(),
        round_trip: Histogram::with_opts(HistogramOpts::new("round_trip", "round_trip")).unwrap(),
    }
}

fn config(port: u16, password: Option<&str>) -> Result<StoreConfig, StoreError> {
    let store = SharedStore {
        url: format!("redis://127.0.0.1:{port}"),
        username: None,
        password: password.map(ToOwned::to_owned),
        ca: None,
        prefix: "t".to_owned(),
        leases: true,
        budget_milliseconds: 5000,
    };
    StoreConfig::try_from(&store)
}

fn group() -> BTreeSet<Arc<str>> {
    BTreeSet::from([GROUP.into()])
}

/// A pod; its upkeep ends with it.
struct Pod {
    store: Store,
    meters: Meters,
    began: Instant,
    upkeep: JoinHandle<()>,
}

impl Pod {
    async fn start(config: Result<StoreConfig, StoreError>) -> Self {
        let meters = meters();
        let store = Store::new(meters.clone(), 1000);
        store.set_config(Some(config));
        store.set_groups(group());
        let kept = store.clone();
        let upkeep = tokio::spawn(async move { kept.keep().await });
        let pod = Self { store, meters, began: Instant::now(), upkeep };
        pod.until("connected").await;
        pod
    }

    async fn until(&self, state: &str) {
        let end = Instant::now() + Duration::from_secs(20);
        while self.store.state() != state {
            assert!(Instant::now() < end, "not {state}: {:?}", self.store.failure());
            sleep(Duration::from_millis(5)).await;
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp::default().after(self.began.elapsed())
    }

    async fn take(&self, wanted: &SharedDemand) -> &'static str {
        match &self.store.take(std::slice::from_ref(wanted), self.now()).await[0] {
            SharedAnswer::Taken(taken) if taken.store_fallback.is_none() => "taken",
            SharedAnswer::Taken(_) => "without the store",
            SharedAnswer::Refused(_) | SharedAnswer::RefusedAlone(_) => "refused",
            SharedAnswer::Unavailable => "unavailable",
            SharedAnswer::NotAsked => "not asked",
        }
    }

    async fn used(&self, wanted: &SharedDemand) -> f64 {
        // What was seen lately is shown again.
        sleep(Duration::from_millis(1100)).await;
        let seen = self.store.usage(wanted.takes.iter().cloned(), self.now()).await;
        seen.used(&wanted.takes[0].take.identity).unwrap_or_default().as_f64()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.upkeep.abort();
    }
}

fn limit(max: u64, window: Duration) -> SharedDemand {
    let take = Take {
        identity: Identity::new("agents/bank#0"),
        instance: instance(""),
        span: Span::new(window),
        max: Amount::whole(max),
        amount: Amount::ONE,
    };
    let shared = SharedTake { take, pod_group: GROUP.into(), failure: OnStoreFailure::Deny };
    SharedDemand { takes: [shared].into_iter().collect(), ..SharedDemand::default() }
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_pod_that_is_idle_brings_what_it_took_before_a_store_that_began_anew_opens() {
    let port = free_port();
    let spawn = || Redis::spawn(port, &["--port", &port.to_string()]);
    let redis = spawn();
    let (one, other) = (Pod::start(config(port, None)).await, Pod::start(config(port, None)).await);
    let wanted = limit(5, HOUR);
    for _ in 0..5 {
        assert_eq!(one.take(&wanted).await, "taken");
    }
    drop(redis);
    // Nobody calls, and both know all the same.
    one.until("unavailable").await;
    other.until("unavailable").await;
    assert_eq!((one.meters.up.get(), other.take(&wanted).await), (0, "unavailable"));
    let _redis = spawn();
    other.until("connected").await;
    assert_eq!(other.take(&wanted).await, "refused");
    assert_eq!(other.used(&wanted).await.to_bits(), 5_f64.to_bits());
}

#[tokio::test]
async fn a_changed_password_is_no_outage_and_a_group_more_neither() {
    let redis = Redis::start(&[]);
    let pod = Pod::start(config(redis.port, None)).await;
    let wanted = limit(1_000_000, HOUR);
    let calling = async {
        for _ in 0..200 {
            let took = pod.take(&wanted).await;
            assert_eq!(took, "taken", "{:?} {} {}", pod.store.failure(), pod.meters.timeout.get(), pod.meters.unavailable.get());
            sleep(Duration::from_millis(2)).await;
        }
    };
    let changing = async {
        sleep(Duration::from_millis(100)).await;
        assert_eq!(redis.say(&["CONFIG", "SET", "requirepass", PASSWORD]), "+OK\r\n");
        pod.store.set_config(Some(config(redis.port, Some(PASSWORD))));
        sleep(Duration::from_millis(100)).await;
        pod.store.set_groups([GROUP.into(), "Policy agents/bank".into()].into());
    };
    tokio::join!(calling, changing);
    assert_eq!((pod.meters.up.get(), pod.meters.unavailable.get()), (1, 0));
}

#[tokio::test]
async fn a_pod_that_ends_returns_what_it_leased_and_has_not_used() {
    let redis = Redis::start(&[]);
    let (one, other) = (Pod::start(config(redis.port, None)).await, Pod::start(config(redis.port, None)).await);
    let wanted = limit(100_000, Duration::from_secs(60));
    let mut calls = 0_u32;
    while one.meters.leased.get() < 50 {
        assert_eq!(one.take(&wanted).await, "taken");
        calls += 1;
        assert!(calls < 20_000, "no lease");
        sleep(Duration::from_millis(1)).await;
    }
    assert!(other.used(&wanted).await > f64::from(calls), "some is leased and not used");
    one.store.leave(Duration::from_secs(5)).await;
    assert_eq!(other.used(&wanted).await.to_bits(), f64::from(calls).to_bits());
}

#[tokio::test]
async fn a_store_that_may_forget_counts_is_refused_until_it_may_not() {
    let redis = Redis::start(&["--maxmemory", "100mb", "--maxmemory-policy", "volatile-lru"]);
    let error = probe(&config(redis.port, None).unwrap(), Duration::from_secs(5)).await.unwrap_err();
    assert_eq!(error.fault, StoreFault::Evicts);
    assert!(error.message.contains("set maxmemory-policy noeviction"), "{error}");
    redis.say(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    probe(&config(redis.port, None).unwrap(), Duration::from_secs(5)).await.unwrap();
}

#[tokio::test]
async fn what_a_script_may_not_do_is_a_missing_permission_and_a_full_memory_is_told_apart() {
    let redis = Redis::start(&[]);
    redis.say(&["ACL", "SETUSER", "default", "-time"]);
    let error = probe(&config(redis.port, None).unwrap(), Duration::from_secs(5)).await.unwrap_err();
    assert_eq!(error.fault, StoreFault::NoPermission, "{error}");
    redis.say(&["ACL", "SETUSER", "default", "+time"]);
    let pod = Pod::start(config(redis.port, None)).await;
    redis.say(&["CONFIG", "SET", "maxmemory", "1"]);
    pod.take(&limit(5, HOUR)).await;
    pod.until("unavailable").await;
    assert_eq!(pod.store.failure().unwrap().fault, StoreFault::OutOfMemory);
}

#[tokio::test]
async fn a_store_that_keeps_its_data_keeps_what_pods_took_that_have_ended() {
    let folder = std::env::temp_dir().join(format!("toolweir-kept-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (port, dir) = (free_port(), folder.to_str().unwrap().to_owned());
    let number = port.to_string();
    let arguments = ["--port", &number, "--dir", &dir, "--appendonly", "yes", "--appendfsync", "always"];
    let redis = Redis::spawn(port, &arguments);
    let wanted = limit(3, HOUR);
    let ended = Pod::start(config(port, None)).await;
    for _ in 0..3 {
        assert_eq!(ended.take(&wanted).await, "taken");
    }
    drop(ended);
    drop(redis);
    let _redis = Redis::spawn(port, &arguments);
    let next = Pod::start(config(port, None)).await;
    assert_eq!(next.take(&wanted).await, "refused");
    let _ = std::fs::remove_dir_all(&folder);
}

#[tokio::test]
async fn a_call_that_is_over_before_its_answer_comes_takes_nothing() {
    let redis = Redis::start(&[]);
    let pod = Pod::start(config(redis.port, None).map(|config| StoreConfig {
        budget: Duration::from_millis(20),
        leases: false,
        ..config
    }))
    .await;
    let wanted = limit(10, HOUR);
    assert_eq!(pod.take(&wanted).await, "taken");
    for _ in 0..3 {
        redis.say(&["CLIENT", "PAUSE", "200", "ALL"]);
        let began = Instant::now();
        assert_eq!(pod.take(&wanted).await, "unavailable");
        assert!(began.elapsed() < Duration::from_millis(150), "{:?}", began.elapsed());
        sleep(Duration::from_millis(400)).await;
    }
    assert_eq!((pod.meters.timeout.get(), pod.meters.unavailable.get()), (3, 0));
    assert_eq!(pod.used(&wanted).await.to_bits(), 1_f64.to_bits());
    assert_eq!(pod.take(&wanted).await, "taken");
}

#[tokio::test]
async fn a_connection_that_was_closed_while_nobody_called_costs_no_call() {
    let redis = Redis::start(&[]);
    let pod = Pod::start(config(redis.port, None)).await;
    let wanted = limit(100, HOUR);
    for _ in 0..3 {
        assert_eq!(pod.take(&wanted).await, "taken");
        // All but the newest, which is this test's own, and the oldest, which is the upkeep's.
        let clients = redis.say(&["CLIENT", "LIST"]);
        let mut ids: Vec<u64> =
            clients.split("id=").skip(1).filter_map(|client| client.split(' ').next()?.parse().ok()).collect();
        ids.sort_unstable();
        ids.dedup();
        for id in ids.iter().take(ids.len().saturating_sub(1)).skip(1) {
            redis.say(&["CLIENT", "KILL", "ID", &id.to_string()]);
        }
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!((pod.meters.asked.get(), pod.meters.unavailable.get()), (3, 0));
}

#[tokio::test]
async fn the_user_of_the_docs_may_do_what_is_needed_and_no_more() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/shared-store.md")).unwrap();
    let line = page.split("ACL SETUSER toolweir on ").nth(1).unwrap().split("```").next().unwrap();
    let line = line.replace(">PASSWORD", &format!(">{PASSWORD}")).replace("{toolweir}", "{t}");
    let redis = Redis::start(&[]);
    let rule: Vec<&str> = ["ACL", "SETUSER", "toolweir", "on"].into_iter().chain(line.split_whitespace()).collect();
    assert_eq!(redis.say(&rule), "+OK\r\n");
    let config = |prefix: &str| {
        let known = config(redis.port, Some(PASSWORD)).unwrap();
        StoreConfig { username: Some("toolweir".to_owned()), prefix: prefix.to_owned(), ..known }
    };
    let pod = Pod::start(Ok(config("t"))).await;
    let mut wanted = limit(2, HOUR);
    let place = Hold { identity: Identity::new("places"), max: 1 };
    wanted.holds.push(SharedHold { hold: place, pod_group: GROUP.into(), failure: OnStoreFailure::Deny });
    for _ in 0..2 {
        // Its place comes free and is told.
        assert_eq!(pod.take(&wanted).await, "taken");
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(pod.take(&wanted).await, "refused");
    assert_eq!(pod.used(&wanted).await.to_bits(), 2_f64.to_bits());
    assert_eq!((pod.meters.up.get(), pod.store.failure()), (1, None));
    let error = probe(&config("other"), Duration::from_secs(5)).await.unwrap_err();
    assert_eq!(error.fault, StoreFault::NoPermission, "{error}");
}
