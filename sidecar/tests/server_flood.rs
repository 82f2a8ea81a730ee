//! A server that asks without end: what it asks for is answered in bounds, and other calls are not in its way.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::float_cmp)]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use common::{
    call,
    client::{Ask, Wire},
    policy, request, result,
    sidecar::Sidecar,
    until,
    upstream::{Reply, Upstream},
};
use tokio::sync::mpsc;
use toolweir_sidecar::answer_rate::{BURST, PER_SECOND};

const REQUESTS: u32 = 10_000;

/// The time below which 99 of 100 calls end, and how many were made, with a pause after each.
async fn p99(sidecar: &Sidecar, pause: Duration, mut goes_on: impl FnMut(usize) -> bool) -> (Duration, usize) {
    let mut wire = Wire::connect(sidecar.address).await;
    let bytes = Ask::post(call("1", "pay", "{}")).bytes("localhost");
    let mut times = Vec::new();
    while goes_on(times.len()) {
        let before = Instant::now();
        wire.write(&bytes).await;
        assert_eq!(wire.next_status().await, Some(200));
        times.push(before.elapsed());
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
    times.sort_unstable();
    (times[times.len() * 99 / 100], times.len())
}

/// The memory of this process in bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_requests_of_a_server_are_answered_in_bounds_and_starve_nobody() {
    let (feeds, mut opened) = mpsc::unbounded_channel();
    let answered = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&answered);
    let upstream = Upstream::start(move |seen| {
        if seen.method == "GET" {
            let (reply, feed) = Reply::events();
            feeds.send(feed).unwrap();
            return reply;
        }
        if seen.json().get("method").is_none() {
            count.fetch_add(1, Ordering::Relaxed);
            return Reply::status(202);
        }
        Reply::json(result("1"))
    })
    .await;
    let rules = "[{name: \"*\", action: Allow}]\n    defaultActions: {requests: Deny}";
    let sidecar = Sidecar::start(&policy(&upstream.url(), rules)).await;
    let _ = p99(&sidecar, Duration::ZERO, |made| made < 500).await;
    let (before, _) = p99(&sidecar, Duration::ZERO, |made| made < 2000).await;
    let memory = resident();

    let (mut wire, ..) = Wire::open(sidecar.address, &Ask::get()).await;
    let feed = opened.recv().await.unwrap();
    let began = Instant::now();
    let flood = tokio::spawn(async move {
        for number in 0..REQUESTS {
            let message = request(&number.to_string(), "sampling/createMessage", r#"{"messages":[],"maxTokens":9}"#);
            feed.send(&format!("id: {number}\ndata: {message}\n\n")).await;
        }
        feed
    });
    let last = format!("id: {}\n\n", REQUESTS - 1);
    let reading = tokio::spawn(async move { wire.text_up_to(&last).await });
    // The server of this test keeps every call that it sees: not too many, since memory is measured.
    let (during, made) = p99(&sidecar, Duration::from_millis(5), |made| made < 100 || !flood.is_finished()).await;
    let come = reading.await.unwrap();
    let took = began.elapsed();
    let _feed = flood.await.unwrap();

    assert!(!come.contains("sampling") && !come.contains("data"), "a request has passed");
    assert_eq!(come.lines().filter(|line| line.starts_with("id: ")).count(), REQUESTS as usize);
    let sum = |scrape: &common::metrics::Scrape, outcome: &str| {
        scrape.sum("toolweir_server_answers_total", &[("server", "bank"), ("outcome", outcome)])
    };
    until("the answers", async || {
        let scrape = sidecar.scrape().await;
        sum(&scrape, "ok") + sum(&scrape, "dropped") == f64::from(REQUESTS)
    })
    .await;
    let answered = answered.load(Ordering::Relaxed);
    let most = f64::from(BURST) + f64::from(PER_SECOND) * (took.as_secs_f64() + 1.0);
    assert!(answered >= 16 && f64::from(answered) <= most, "{answered} answers, at most {most}");
    let grown = resident().saturating_sub(memory);
    println!(
        "{REQUESTS} requests in {took:?}, {answered} answered; p99 of calls {before:?} before, {during:?} during ({:.2}, {made} calls); {} KiB more",
        during.as_secs_f64() / before.as_secs_f64(),
        grown / 1024
    );
    assert!(grown < 64 * 1024 * 1024, "{grown} bytes more");
    // On a busy machine the rest is chance.
    assert!(during < before * 20 + Duration::from_millis(50), "p99 {before:?} before, {during:?} during");
}
