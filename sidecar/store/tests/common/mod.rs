//! Real servers for tests.

#![allow(dead_code, reason = "not every test uses all of it")]

use std::{
    env, fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use toolweir_store::config::Address;

/// How long a server may take to answer.
const START: Duration = Duration::from_secs(20);

/// A redis-server of its own in a folder of its own; both are gone when it is dropped.
pub struct Redis {
    child: Child,
    folder: PathBuf,
    /// The port that is spoken to: that of TLS if it has one.
    pub port: u16,
}

impl Redis {
    /// A server on a free port, with these arguments added, once it answers.
    pub fn start(arguments: &[&str]) -> Self {
        let port = free_port();
        Self::spawn(port, &[&["--port", &port.to_string()], arguments].concat())
    }

    /// A Sentinel on a free port that watches this master, once it answers.
    pub fn sentinel(name: &str, master: &Self, more: &str) -> Self {
        let port = free_port();
        let folder = new_folder();
        let file = folder.join("sentinel.conf");
        let text = format!("port {port}\nbind 127.0.0.1\nsentinel monitor {name} 127.0.0.1 {} 1\n{more}\n", master.port);
        fs::write(&file, text).unwrap();
        Self::run(folder, port, &[file.to_str().unwrap(), "--sentinel"])
    }

    /// A server whose ports are among the arguments; it is waited for at this one.
    pub fn spawn(port: u16, arguments: &[&str]) -> Self {
        let mut all = vec!["--save", "", "--appendonly", "no", "--bind", "127.0.0.1"];
        all.extend(arguments);
        Self::run(new_folder(), port, &all)
    }

    fn run(folder: PathBuf, port: u16, arguments: &[&str]) -> Self {
        let log = fs::File::create(folder.join("log")).unwrap();
        let child =
            Command::new(program("redis-server")).args(arguments).current_dir(&folder).stdout(log).stderr(Stdio::null()).spawn();
        let redis = Self { child: child.unwrap(), folder, port };
        let end = Instant::now() + START;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < end, "redis-server does not listen: {}", redis.log());
            thread::sleep(Duration::from_millis(20));
        }
        redis
    }

    /// Where it is.
    pub fn address(&self) -> Address {
        Address { host: "127.0.0.1".to_owned(), port: self.port }
    }

    /// What it wrote.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Says something to a server without TLS; what it answers, as it is on the wire.
    pub fn say(&self, words: &[&str]) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(START)).unwrap();
        let mut text = format!("*{}\r\n", words.len());
        for word in words {
            text += &format!("${}\r\n{word}\r\n", word.len());
        }
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = vec![0; 64 * 1024];
        let read = stream.read(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[..read]).into_owned()
    }

    /// Waits until it answers so.
    pub fn until(&self, words: &[&str], part: &str) {
        let end = Instant::now() + START;
        loop {
            let answer = self.say(words);
            if answer.contains(part) {
                return;
            }
            assert!(Instant::now() < end, "{words:?}: {answer}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A port that nothing listens on.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A folder for one server.
fn new_folder() -> PathBuf {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    // Nothing is left behind where there is none.
    program("redis-server");
    let name = format!("toolweir-store-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let folder = env::temp_dir().join(name);
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn program(name: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|folder| folder.join(name)).find(|file| Path::is_file(file));
    found.unwrap_or_else(|| panic!("no {name}: run tests/unit.sh or put redis-server in PATH: . tests/lib.sh; ensure_redis"))
}
