//! A protocol that is neither HTTP nor TLS: a server of it, and a load that passes through proxies of connections in turn.
//!
//! A client says first what it wants: [`MARK`], one of the letters below, and for how many milliseconds. What begins as a TLS
//! handshake does is sent back, as is everything after [`ECHO`].

use crate::process::smaps;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

const MARK: u8 = 1;
/// What comes is sent back.
const ECHO: u8 = b'e';
/// What comes is counted; at its end the count is sent.
const UP: u8 = b'u';
/// The server sends for as long as was asked.
const DOWN: u8 = b'd';
/// The first byte of a TLS handshake (RFC 8446, section 5.1).
const HANDSHAKE: u8 = 22;

const PIECE: usize = 256 * 1024;
/// A connection on which nothing moves for so long fails the run.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub struct ServerArgs {
    #[arg(long)]
    listen: SocketAddr,
}

/// Serves until the process ends, with a thread for each connection.
pub fn serve(args: &ServerArgs) -> Result<()> {
    let listener = TcpListener::bind(args.listen).with_context(|| format!("cannot listen on {}", args.listen))?;
    for stream in listener.incoming() {
        let stream = stream.context("accept")?;
        stream.set_nodelay(true)?;
        thread::spawn(move || {
            // A client that goes away is no event for a benchmark; what is lost by it, the client notices.
            let _ = answer(stream);
        });
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> Result<()> {
    let mut first = [0; 16];
    stream.read_exact(&mut first[..1])?;
    if first[0] == HANDSHAKE {
        stream.write_all(&first[..1])?;
        return echo(&mut stream);
    }
    stream.read_exact(&mut first[1..])?;
    ensure!(first[0] == MARK, "an unknown protocol");
    let time = Duration::from_millis(first[8..].iter().fold(0, |number, byte| number << 8 | u64::from(*byte)));
    match first[1] {
        ECHO => echo(&mut stream),
        UP => {
            let count = drain(&mut stream)?;
            Ok(stream.write_all(&count.to_be_bytes())?)
        }
        DOWN => {
            fill(&mut stream, time)?;
            Ok(stream.shutdown(Shutdown::Write)?)
        }
        other => bail!("unknown: {other}"),
    }
}

fn echo(stream: &mut TcpStream) -> Result<()> {
    let mut piece = [0; 16 * 1024];
    loop {
        match stream.read(&mut piece)? {
            0 => return Ok(()),
            count => stream.write_all(&piece[..count])?,
        }
    }
}

fn drain(stream: &mut TcpStream) -> Result<u64> {
    let mut piece = vec![0; PIECE];
    let mut all = 0;
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return Ok(all),
            Ok(count) => all += count as u64,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn fill(stream: &mut TcpStream, time: Duration) -> Result<u64> {
    let piece = vec![7; PIECE];
    let end = Instant::now() + time;
    let mut all = 0;
    while Instant::now() < end {
        stream.write_all(&piece)?;
        all += PIECE as u64;
    }
    Ok(all)
}

#[derive(clap::Args)]
pub struct LoadArgs {
    /// Where the server is reached, `NAME=ADDRESS:PORT`, once for each way. The others are held against the first
    #[arg(long = "target", required = true)]
    targets: Vec<String>,
    /// The same, for connections that begin with a TLS `ClientHello` for `--server-name`
    #[arg(long = "tls-target", requires = "server_name")]
    tls_targets: Vec<String>,
    #[arg(long)]
    server_name: Option<String>,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// How many connections carry bytes at once
    #[arg(long, value_delimiter = ',', default_value = "1,8")]
    connections: Vec<usize>,
    /// How many connections are made of each kind in each round
    #[arg(long, default_value_t = 500)]
    connects: usize,
}

/// A figure of each round, for each target.
type Rounds = BTreeMap<String, Vec<f64>>;

/// Prints, for each figure and target, the median of the rounds, and the median of what it was against the first target in the same
/// round. Throughput is in MiB/s, times are in microseconds.
pub fn load(args: &LoadArgs) -> Result<()> {
    let (targets, tls) = (parsed(&args.targets)?, parsed(&args.tls_targets)?);
    let hello = args.server_name.as_deref().map(client_hello).transpose()?.unwrap_or_default();
    let time = Duration::from_secs_f64(args.seconds);
    // Warm: code, names, routes.
    for (_, address) in &targets {
        connects(*address, &request(ECHO, Duration::ZERO), 20)?;
    }
    for (_, address) in &tls {
        connects(*address, &hello, 20)?;
    }
    let mut figures: BTreeMap<String, Rounds> = BTreeMap::new();
    let mut note = |figure: String, target: &str, value: f64| {
        figures.entry(figure).or_default().entry(target.to_owned()).or_default().push(value);
    };
    for round in 0..args.rounds {
        for &count in &args.connections {
            for (direction, letter) in [("up", UP), ("down", DOWN)] {
                for (name, address) in in_turn(&targets, round) {
                    note(format!("{direction}_{count}"), name, carry(*address, count, letter, time)?);
                }
            }
        }
        for (kind, of, first) in [("connect", &targets, &request(ECHO, Duration::ZERO)), ("tls_connect", &tls, &hello)] {
            for (name, address) in in_turn(of, round) {
                let mut took = connects(*address, first, args.connects)?;
                took.sort_by(f64::total_cmp);
                note(format!("{kind}_p50"), name, took[took.len() / 2]);
                note(format!("{kind}_p99"), name, took[took.len() * 99 / 100]);
            }
        }
    }
    let first_of = |figure: &str| if figure.starts_with("tls") { &tls[0].0 } else { &targets[0].0 };
    let told: BTreeMap<_, _> = figures.iter().map(|(figure, rounds)| (figure, told(rounds, first_of(figure)))).collect();
    println!("{}", json!(told));
    Ok(())
}

fn told(rounds: &Rounds, first: &str) -> BTreeMap<String, Value> {
    let of = |(target, values): (&String, &Vec<f64>)| {
        let ratios = values.iter().zip(&rounds[first]).map(|(value, first)| value / first).collect();
        let (least, most) = (values.iter().copied().fold(f64::MAX, f64::min), values.iter().copied().fold(0.0, f64::max));
        (target.clone(), json!({"median": median(values.clone()), "least": least, "most": most, "ratio": median(ratios)}))
    };
    rounds.iter().map(of).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Each round begins with another target.
fn in_turn<T>(targets: &[T], round: usize) -> impl Iterator<Item = &T> {
    targets.iter().cycle().skip(round % targets.len().max(1)).take(targets.len())
}

fn parsed(targets: &[String]) -> Result<Vec<(String, SocketAddr)>> {
    let parse = |target: &String| {
        let (name, address) = target.split_once('=').with_context(|| format!("{target}: not NAME=ADDRESS:PORT"))?;
        Ok((name.to_owned(), address.parse().with_context(|| format!("{target}: not an address and a port"))?))
    };
    targets.iter().map(parse).collect()
}

fn request(letter: u8, time: Duration) -> Vec<u8> {
    let mut first = vec![MARK, letter, 0, 0, 0, 0, 0, 0];
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    first.extend(millis.to_be_bytes());
    if letter == ECHO {
        first.push(b'x');
    }
    first
}

fn open(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Carries bytes on so many connections for a time: MiB a second.
fn carry(address: SocketAddr, connections: usize, letter: u8, time: Duration) -> Result<f64> {
    let ready = Barrier::new(connections + 1);
    let (bytes, took) = thread::scope(|scope| {
        let start = || {
            let stream = open(address);
            ready.wait();
            let mut stream = stream?;
            stream.write_all(&request(letter, time))?;
            if letter == DOWN {
                return drain(&mut stream);
            }
            let sent = fill(&mut stream, time)?;
            stream.shutdown(Shutdown::Write)?;
            let mut count = [0; 8];
            stream.read_exact(&mut count).context("the server's count")?;
            ensure!(u64::from_be_bytes(count) == sent, "{sent} bytes were sent, {} arrived", u64::from_be_bytes(count));
            Ok(sent)
        };
        let workers: Vec<_> = (0..connections).map(|_| scope.spawn(start)).collect();
        ready.wait();
        let started = Instant::now();
        let mut all = 0;
        for worker in workers {
            all += worker.join().map_err(|_| anyhow::anyhow!("a connection's thread ended"))??;
        }
        anyhow::Ok((all, started.elapsed()))
    })?;
    ensure!(bytes > 0, "nothing came through {address}");
    Ok(bytes as f64 / (1024.0 * 1024.0) / took.as_secs_f64())
}

/// Makes so many connections one after the other: microseconds from before `connect()` until the first byte came back, each.
fn connects(address: SocketAddr, first: &[u8], count: usize) -> Result<Vec<f64>> {
    let once = || {
        let started = Instant::now();
        let mut stream = open(address)?;
        stream.write_all(first)?;
        stream.read_exact(&mut [0]).with_context(|| format!("nothing came back through {address}"))?;
        Ok(started.elapsed().as_nanos() as f64 / 1000.0)
    };
    (0..count).map(|_| once()).collect()
}

/// A `ClientHello` of TLS 1.3 with a server name (RFC 8446, section 4.1.2; RFC 6066, section 3).
fn client_hello(server_name: &str) -> Result<Vec<u8>> {
    let sized = |of: &[u8]| anyhow::Ok([&u16::try_from(of.len())?.to_be_bytes(), of].concat());
    let name = sized(&[&[0][..], &sized(server_name.as_bytes())?].concat())?;
    let extensions = [
        [&[0, 0][..], &sized(&name)?].concat(),
        // The versions that the client takes: 1.3.
        vec![0, 43, 0, 3, 2, 3, 4],
    ]
    .concat();
    // Version, random, no session, one cipher suite, no compression.
    let body = [&[3, 3][..], &[0; 32], &[0, 0, 2, 0x13, 1, 1, 0], &sized(&extensions)?].concat();
    let message = [&[1, 0][..], &sized(&body)?].concat();
    Ok([&[HANDSHAKE, 3, 1][..], &sized(&message)?].concat())
}

#[derive(clap::Args)]
pub struct IdleArgs {
    /// Where the server is reached
    #[arg(long)]
    target: SocketAddr,
    /// The process to watch
    #[arg(long)]
    pid: u32,
    #[arg(long, default_value_t = 64)]
    connections: usize,
}

/// Prints how much a process's memory grows with connections that have carried a little each way and carry nothing now.
pub fn idle(args: &IdleArgs) -> Result<()> {
    let first = request(ECHO, Duration::ZERO);
    // One after the other: what only the first ones need, such as code, is there then.
    connects(args.target, &first, 100)?;
    thread::sleep(Duration::from_millis(300));
    let before = (smaps(args.pid, "Rss")?, smaps(args.pid, "Anonymous")?, files(args.pid)?);
    let mut open_ones = Vec::new();
    for _ in 0..args.connections {
        let mut stream = open(args.target)?;
        stream.write_all(&first)?;
        stream.write_all(&[0; 4095])?;
        stream.read_exact(&mut [0; 4096]).context("the echo")?;
        open_ones.push(stream);
    }
    thread::sleep(Duration::from_millis(700));
    let after = (smaps(args.pid, "Rss")?, smaps(args.pid, "Anonymous")?, files(args.pid)?);
    println!(
        "{}",
        json!({
            "connections": open_ones.len(), "rss_kib": before.0, "rss_kib_with": after.0,
            "anonymous_kib": before.1, "anonymous_kib_with": after.1, "files": before.2, "files_with": after.2,
        })
    );
    Ok(())
}

fn files(pid: u32) -> Result<usize> {
    let path = format!("/proc/{pid}/fd");
    Ok(std::fs::read_dir(&path).with_context(|| path.clone())?.count())
}
