//! A client or a server can make the sidecar hold only so much, and others are served meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::float_cmp)]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use common::{
    allow_all, call,
    client::{Ask, Http, Http2, Wire},
    list, policy, request, result,
    sidecar::Sidecar,
    until,
    upstream::{Feed, Reply, Seen, Upstream},
    within,
};
use http_body_util::BodyExt;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// A server that answers calls of `large` with more than anybody takes, and counts what it has sent of that; others at once.
async fn endless() -> (Upstream, Arc<AtomicUsize>) {
    let sent = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&sent);
    let upstream = Upstream::start(move |seen: &Seen| {
        if !seen.text().contains("large") {
            return Reply::json(result("1"));
        }
        let (reply, feed) = Reply::stream("application/json");
        tokio::spawn(pour(feed, Arc::clone(&counts)));
        reply
    });
    (upstream.await, sent)
}

async fn pour(feed: Feed, sent: Arc<AtomicUsize>) {
    let piece = "x".repeat(16 * 1024);
    while feed.try_send(&piece).await {
        sent.fetch_add(piece.len(), Ordering::Relaxed);
    }
}

/// Waits until a number stays what it is, and gives it.
async fn settled(number: &AtomicUsize) -> usize {
    let (mut last, mut since) = (0, Instant::now());
    loop {
        let now = number.load(Ordering::Relaxed);
        if now != last {
            (last, since) = (now, Instant::now());
        }
        if since.elapsed() > Duration::from_millis(400) {
            return last;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Asks for large answers on one connection over HTTP/2 and reads none of them.
async fn hoard(sidecar: &Sidecar, calls: usize) -> (Http2, Vec<http::Response<hyper::body::Incoming>>) {
    let mut client = Http2::connect(sidecar.address).await;
    let mut answers = Vec::new();
    for id in 0..calls {
        answers.push(client.head(&Ask::post(call(&id.to_string(), "large", "{}"))).await);
    }
    (client, answers)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_a_client_does_not_read_are_not_read_from_the_server() {
    let (upstream, sent) = endless().await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    let (_client, answers) = hoard(&sidecar, 32).await;
    // What the kernel keeps of each connection to the server, of both ends, and the pieces of the one to the client.
    let total = settled(&sent).await;
    assert!(total < 32 * 600 * 1024, "{total} bytes were read from the server");
    let held = sidecar.scrape().await.sum("toolweir_held_bytes", &[]);
    assert!((1.0..=16.0 * 16_384.0).contains(&held), "{held} bytes are held");
    // Somebody else is served at once, on that connection nobody waits for another stream's reader either.
    let began = Instant::now();
    assert_eq!(sidecar.reason(&call("1", "pay", "{}")).await, "none");
    assert!(began.elapsed() < Duration::from_secs(1));
    drop(answers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_read_are_cut_off_where_others_wait_for_room() {
    let (upstream, _) = endless().await;
    let sidecar = Sidecar::with(&allow_all(&upstream.url()), |config| config.limits.held = 1024 * 1024).await;
    let mut hoards = Vec::new();
    for _ in 0..3 {
        hoards.push(hoard(&sidecar, 8).await);
    }
    // Together they want more than there is; each has its own piece, so others are answered all the same.
    for _ in 0..20 {
        assert_eq!(sidecar.reason(&call("1", "pay", "{}")).await, "none");
    }
    let closed = async || {
        sidecar.scrape().await.sum("toolweir_connections_closed_total", &[("port", "proxy"), ("cause", "not_read")]) >= 1.0
    };
    until("those that do not read to be cut off", closed).await;
    until("their room to come free", async || sidecar.scrape().await.sum("toolweir_held_bytes", &[]) == 0.0).await;
    for (_, answers) in &mut hoards {
        let answer = answers.remove(0).into_body();
        assert!(within("the end", answer.collect()).await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_slowly_gets_all_of_a_large_answer() {
    let body = "y".repeat(3_000_000);
    let whole = body.clone();
    let upstream = Upstream::start(move |_| Reply::json(whole.clone())).await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    for http in Http::BOTH {
        assert!(Ask::post(call("1", "pay", "{}")).over(http, sidecar.address).await.text() == body, "{http:?}");
    }
    let mut stream = TcpStream::connect(sidecar.address).await.unwrap();
    let ask = Ask::post(call("1", "pay", "{}")).with("connection", "close");
    stream.write_all(&ask.bytes("localhost")).await.unwrap();
    let (mut read, mut buffer) = (0, vec![0; 100_000]);
    loop {
        match within("more", stream.read(&mut buffer)).await.unwrap() {
            0 => break,
            more => read += more,
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(read > body.len() && read < body.len() + 1000, "{read}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_is_not_read_counts_as_held_until_it_is() {
    let names: Vec<String> = (0..40_000).map(|n| format!("pay{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).chain(["wipe"]).collect();
    let answer = list("1", &names);
    let length = answer.len();
    let least = f64::from(u32::try_from(length).unwrap() - 100);
    let upstream = Upstream::start(move |_| Reply::json(answer.clone())).await;
    let sidecar = Sidecar::start(&policy(&upstream.url(), "[{name: \"pay*\"}]")).await;
    let (mut wire, status, _) = Wire::open(sidecar.address, &Ask::post(request("1", "tools/list", "{}"))).await;
    assert_eq!(status, 200);
    let held = async || sidecar.scrape().await.sum("toolweir_held_bytes", &[]);
    assert!(held().await >= least, "{} of {length}", held().await);
    let read = wire.rest().await.unwrap();
    assert!(read.len() < length && !String::from_utf8_lossy(&read).contains("wipe"));
    until("its room to come free", async || held().await == 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_read_keep_no_place_from_others() {
    let (upstream, _) = endless().await;
    let sidecar = Sidecar::with(&allow_all(&upstream.url()), |config| config.limits.requests = 8).await;
    // One connection gets no more than three quarters of all places.
    let mut client = Http2::connect(sidecar.address).await;
    let mut statuses = Vec::new();
    let mut answers = Vec::new();
    for id in 0..8 {
        let answer = client.head(&Ask::post(call(&id.to_string(), "large", "{}")).plain()).await;
        statuses.push(answer.status().as_u16());
        answers.push(answer);
    }
    assert_eq!(statuses, [200, 200, 200, 200, 200, 200, 503, 503]);
    assert_eq!(sidecar.reason(&call("1", "pay", "{}")).await, "none");
    // Many take all of them; who comes then waits until those that do not read are cut off.
    let mut hoards = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(sidecar.address).await.unwrap();
        stream.write_all(&Ask::post(call("1", "large", "{}")).bytes("localhost")).await.unwrap();
        let mut head = [0; 12];
        within("an answer", stream.read_exact(&mut head)).await.unwrap();
        hoards.push(stream);
    }
    assert_eq!(sidecar.reason(&call("1", "pay", "{}")).await, "none");
}

#[tokio::test]
async fn beyond_the_requests_that_may_be_under_way_one_is_turned_away() {
    let (guards, mut hanging) = tokio::sync::mpsc::unbounded_channel();
    let upstream = Upstream::start(move |seen| {
        if seen.text().contains("hang") {
            let (guard, given_up) = tokio::sync::oneshot::channel();
            guards.send(given_up).unwrap();
            return Reply::hang(guard);
        }
        Reply::json(result("1"))
    })
    .await;
    let sidecar = Sidecar::with(&allow_all(&upstream.url()), |config| config.limits.requests = 2).await;
    let hang = Ask::post(call("1", "hang", "{}"));
    let mut wires = Vec::new();
    for _ in 0..2 {
        let mut wire = Wire::connect(sidecar.address).await;
        wire.write(&hang.bytes("localhost")).await;
        hanging.recv().await.unwrap();
        wires.push(wire);
    }
    for http in Http::BOTH {
        let answer = Ask::post(call("1", "pay", "{}")).plain().over(http, sidecar.address).await;
        assert_eq!((answer.status, answer.header("retry-after")), (503, "1"));
    }
    assert_eq!(sidecar.counted("overloaded").await, 2.0);
    drop(wires);
    let free = async || sidecar.ask(&Ask::post(call("1", "pay", "{}")).plain()).await.status == 200;
    until("their places to come free", free).await;
}

#[tokio::test]
async fn what_tells_the_version_of_http_may_come_byte_by_byte() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    let mut stream = TcpStream::connect(sidecar.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    // The preface, an empty SETTINGS, and the SETTINGS that come back.
    for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0" {
        stream.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut head = [0; 9];
    within("its settings", stream.read_exact(&mut head)).await.unwrap();
    assert_eq!(head[3], 4, "{head:?}");
    let ask = Ask::post(call("7", "pay", "{}")).bytes("localhost");
    let mut wire = Wire::connect(sidecar.address).await;
    for byte in &ask {
        wire.write(&[*byte]).await;
    }
    assert_eq!(wire.answer().await.text(), result("7"));
}

#[tokio::test]
async fn objects_with_very_many_keys_are_refused_before_they_fill_memory() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    let keys: String = (0..200_000).map(|n| format!("\"{n}\":0,")).collect();
    for body in [
        format!("{{{keys}\"method\":\"ping\",\"id\":1}}"),
        format!("{{\"method\":\"tools/call\",\"id\":1,\"params\":{{{keys}\"name\":\"pay\"}}}}"),
    ] {
        let answer = sidecar.ask(&Ask::post(body).plain()).await;
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (400, &json!(-32600)));
        assert!(answer.text().contains("has more than 1024 keys"), "{}", answer.text());
    }
    // Arguments may have as many as they like where no policy reads them.
    let arguments = format!("{{{keys}\"x\":0}}");
    assert_eq!(sidecar.reason(&call("1", "pay", &arguments)).await, "none");
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test]
async fn the_small_ports_answer_while_somebody_fills_them() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    for (address, port, path) in [(sidecar.metrics, "metrics", "/healthz"), (sidecar.admin, "admin", "/log-level")] {
        let mut halves = Vec::new();
        for _ in 0..200 {
            let mut wire = Wire::connect(address).await;
            wire.write(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nx: ").await;
            halves.push(wire);
        }
        let answer = Ask::get().to(path).over(Http::One, address).await;
        assert_eq!(answer.status, 200, "{port}");
        let closed = sidecar.scrape().await.sum("toolweir_connections_closed_total", &[("port", port), ("cause", "too_many")]);
        assert!(closed >= 130.0, "{port}: {closed}");
        // The oldest are gone.
        assert_eq!(halves[0].closed().await, "");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_metrics_that_are_not_read_do_not_add_up() {
    let upstream = Upstream::bank().await;
    let servers: Vec<String> = (0..300)
        .map(|n| policy(&upstream.url(), "[{name: a}, {name: b}, {name: c}, {name: d}]").replace("bank", &format!("bank{n}")))
        .collect();
    let sidecar = Sidecar::start(&format!("{}---\n{}", allow_all(&upstream.url()), servers.join("---\n"))).await;
    let mut readers = Vec::new();
    for _ in 0..30 {
        let mut stream = TcpStream::connect(sidecar.metrics).await.unwrap();
        let many = "GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(20);
        stream.write_all(many.as_bytes()).await.unwrap();
        readers.push(stream);
    }
    // Somebody who reads gets a page, though maybe one of some seconds ago; and the others are closed in time.
    sidecar.scrape().await;
    let closed = async || {
        let page = sidecar.scrape().await;
        page.sum("toolweir_connections_closed_total", &[("port", "metrics"), ("cause", "not_read")]) >= 1.0
    };
    let began = Instant::now();
    while !closed().await {
        assert!(began.elapsed() < Duration::from_secs(30), "nobody was closed");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
