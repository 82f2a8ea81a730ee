//! Measures the time from a command's start until it says that it is ready.

use crate::bar;
use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub struct Args {
    /// Where the command answers GET /readyz
    #[arg(long)]
    ready: SocketAddr,
    #[arg(long, default_value_t = 20)]
    times: usize,
    /// The most that the median may be
    #[arg(long, default_value_t = 50.0)]
    max_ms: f64,
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

pub fn run(args: &Args) -> Result<bool> {
    if TcpStream::connect(args.ready).is_ok() {
        bail!("something listens on {} already", args.ready);
    }
    let mut took = Vec::new();
    for _ in 0..args.times.max(1) {
        let started = Instant::now();
        let mut child = Command::new(&args.command[0])
            .args(&args.command[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| args.command[0].clone())?;
        let ready = wait(&mut child, args.ready, started);
        child.kill().and_then(|()| child.wait())?;
        took.push(ready?.as_secs_f64() * 1000.0);
    }
    took.sort_by(f64::total_cmp);
    let median = took[took.len() / 2];
    let text = format!(
        "from exec to /readyz 200 in {median:.1} ms, the median of {} from {:.1} to {:.1} ms (< {} ms)",
        took.len(),
        took[0],
        took[took.len() - 1],
        args.max_ms
    );
    Ok(bar(median < args.max_ms, &text))
}

fn wait(child: &mut Child, address: SocketAddr, started: Instant) -> Result<Duration> {
    while !ready(address) {
        if let Some(status) = child.try_wait()? {
            bail!("the command ended before it was ready: {status}");
        }
        if started.elapsed() > Duration::from_secs(10) {
            bail!("not ready within 10 s");
        }
        // Often enough to be exact, seldom enough to leave the core to the command.
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(started.elapsed())
}

fn ready(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut status = [0; 12];
        stream.read_exact(&mut status)?;
        Ok(&status == b"HTTP/1.1 200")
    };
    ask().unwrap_or(false)
}
