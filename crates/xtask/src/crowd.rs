//! Many at once: hosts with certificates, idle TLS connections, open WebSockets. Loopback only, bounded in
//! number and time.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use hutong_testkit::server::{Server, app_folder};
use hutong_testkit::{eventually, kill};

use crate::{Report, Row, release_binary};

const IDLE: usize = 10_000;
const SOCKETS: usize = 10_000;
const THREADS: usize = 8;
/// In all, for so long.
const MESSAGES_PER_S: usize = 1_000;
const TALK: Duration = Duration::from_secs(10);

pub fn run() -> anyhow::Result<Report> {
    let binary = release_binary()?;
    let mut rows = Vec::new();
    let mut notes = Vec::new();
    rows.extend(hosts(&binary)?);
    rows.push(idle(&binary, &mut notes)?);
    rows.push(sockets(&binary, &mut notes)?);
    Ok(Report { rows, notes })
}

fn row(name: &str, ours: f64, unit: &'static str, must: f64, goal: f64) -> Row {
    Row {
        name: name.into(),
        ours,
        rival: None,
        unit,
        must,
        goal,
        more_is_better: false,
    }
}

/// In bytes, of the gateway alone.
fn memory(server: &Server) -> f64 {
    let system = server.json(&["system"]);
    let list = system.as_array().cloned().unwrap_or_default();
    let gateway = list.iter().find(|one| one["role"] == "gateway");
    gateway
        .and_then(|one| one["memory_bytes"].as_f64())
        .unwrap_or(0.0)
}

/// Ten static apps with a hundred hosts each.
fn hosts(binary: &Path) -> anyhow::Result<Vec<Row>> {
    let server = Server::start_binary(binary, &["--https", "127.0.0.1:0"]);
    let site = |app: usize, hosts: usize| {
        let list: Vec<String> = (0..hosts)
            .map(|host| format!("'h{host}.a{app}.test'"))
            .collect();
        let spec = format!("name='a{app}'\nstatic='.'\ndomains=[{}]", list.join(","));
        app_folder(&[("hutong.toml", &spec), ("index.html", "x")])
    };
    server.deploy(site(0, 1).path());
    let certificates = || {
        server
            .json(&["cert", "list"])
            .as_array()
            .map_or(0, Vec::len)
    };
    eventually("it has a certificate", 30, || certificates() == 1);
    let before = memory(&server);
    let rate_before = new_connections(&server)?;
    for app in 0..10 {
        server.deploy(site(app, 100).path());
    }
    eventually("a thousand certificates", 300, || {
        let list = server.json(&["cert", "list"]);
        let list = list.as_array().cloned().unwrap_or_default();
        list.iter().filter(|one| one["not_after"].is_u64()).count() >= 1000
    });
    let rate_after = new_connections(&server)?;
    let grown = (memory(&server) - before) / 1e6;
    Ok(vec![
        row(
            "gateway's memory for 1,000 hosts with certificates",
            grown,
            "MB",
            20.0,
            10.0,
        ),
        Row {
            name: "requests/s over TLS with 1,000 hosts, beside one host".into(),
            ours: rate_after,
            rival: Some(rate_before),
            unit: "req/s",
            must: 0.9,
            goal: 0.97,
            more_is_better: true,
        },
    ])
}

/// Requests a second, of three rounds the best.
fn new_connections(server: &Server) -> anyhow::Result<f64> {
    let mut best: f64 = 0.0;
    for _ in 0..3 {
        let output = h2load(server, &["--h1", "-c16", "-D3"], "h0.a0.test")
            .stdout(Stdio::piped())
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let rate = text
            .lines()
            .find_map(|line| line.strip_prefix("finished in ")?.split(", ").nth(1))
            .and_then(|rate| rate.trim_end_matches(" req/s").parse().ok());
        best = best.max(rate.with_context(|| text.clone())?);
    }
    Ok(best)
}

fn h2load(server: &Server, arguments: &[&str], host: &str) -> Command {
    let port = server.https.rsplit(':').next().unwrap_or_default();
    let mut command = Command::new("prlimit");
    command
        .args([&format!("--nofile={}:", file_limit()), "h2load"])
        .args(arguments)
        .arg("--connect-to")
        .arg(&server.https)
        .arg(format!("https://{host}:{port}/"));
    command
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        kill(self.0.id());
        let _ = self.0.wait();
    }
}

fn connections(server: &Server) -> u64 {
    server.json(&["gateway"])["connections"]
        .as_u64()
        .unwrap_or(0)
}

/// Each asks once and stays.
fn idle(binary: &Path, notes: &mut Vec<String>) -> anyhow::Result<Row> {
    let server = Server::start_binary(binary, &["--https", "127.0.0.1:0"]);
    let spec = "name='a'\nstatic='.'\ndomains=['a.test']";
    server.deploy(app_folder(&[("hutong.toml", spec), ("index.html", "x")]).path());
    eventually("it has a certificate", 30, || {
        server.json(&["cert", "list"])[0]["not_after"].is_u64()
    });
    let before = memory(&server);
    let count = format!("-c{IDLE}");
    let visitors = h2load(&server, &["--h1", &count, "-D60", "--rps=0.02"], "a.test")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let visitors = Ended(visitors);
    eventually("all are connected", 60, || {
        connections(&server) >= IDLE as u64
    });
    std::thread::sleep(Duration::from_secs(2));
    let open = connections(&server);
    let grown = (memory(&server) - before) / 1e6;
    drop(visitors);
    notes.push(format!(
        "idle TLS: {open} connections, {:.1} KB each in the gateway; the kernel's sockets are not in it",
        grown * 1e3 / open as f64
    ));
    Ok(row(
        "10,000 idle TLS connections: gateway's memory",
        grown,
        "MB",
        280.0,
        200.0,
    ))
}

/// All are open; each says something every ten seconds and waits for the echo.
fn sockets(binary: &Path, notes: &mut Vec<String>) -> anyhow::Result<Row> {
    raise_file_limit();
    let server = Server::start_binary(binary, &[]);
    let spec = "name='echo'\ndomains=['echo.test']\ncommand='/app/echo'\n[limits]\nmemory='128M'";
    let folder = app_folder(&[("hutong.toml", spec)]);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/crowd/echo.c");
    let built = Command::new("cc")
        .args(["-O2", "-o"])
        .arg(folder.path().join("echo"))
        .arg(source)
        .status()?;
    anyhow::ensure!(built.success(), "cc");
    server.deploy(folder.path());
    let before = memory(&server);
    let http = server.http.clone();
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let http = http.clone();
            std::thread::spawn(move || talk(&http))
        })
        .collect();
    eventually("all are connected", 60, || {
        connections(&server) >= (sockets_that_fit() / THREADS * THREADS) as u64
    });
    let open = connections(&server);
    let grown = (memory(&server) - before) / 1e6;
    let mut times = Vec::new();
    for thread in threads {
        times.extend(thread.join().expect("no panic")?);
    }
    times.sort();
    anyhow::ensure!(
        times.len() > MESSAGES_PER_S * 5,
        "only {} messages",
        times.len()
    );
    let at = |share: usize| times[times.len() * share / 100].as_secs_f64() * 1e3;
    notes.push(format!(
        "WebSockets: {open} open, {:.1} KB each in the gateway; {} messages, half within {:.2} ms",
        grown * 1e3 / open as f64,
        times.len(),
        at(50)
    ));
    Ok(row(
        "10,000 WebSockets, 1,000 messages/s: p99 of an echo",
        at(99),
        "ms",
        20.0,
        10.0,
    ))
}

/// One thread's share of the sockets and of the messages; how long each echo took.
fn talk(http: &str) -> anyhow::Result<Vec<Duration>> {
    let mut open = Vec::new();
    for _ in 0..sockets_that_fit() / THREADS {
        let mut stream = TcpStream::connect(http)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: echo.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        anyhow::ensure!(head.starts_with(b"HTTP/1.1 101 "), "{head:?}");
        open.push(stream);
    }
    // All wait for the last: then the talk begins.
    std::thread::sleep(Duration::from_secs(5));
    let pause = Duration::from_secs_f64(THREADS as f64 / MESSAGES_PER_S as f64);
    let (began, mut next) = (Instant::now(), Instant::now());
    let mut times = Vec::new();
    let frame = [0x81, 0x84, 0, 0, 0, 0, b'h', b'u', b't', b'o'];
    for mut stream in open.iter().cycle() {
        if began.elapsed() > TALK {
            break;
        }
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        next += pause;
        let sent = Instant::now();
        stream.write_all(&frame)?;
        let mut back = [0; 10];
        stream.read_exact(&mut back)?;
        times.push(sent.elapsed());
    }
    Ok(times)
}

/// How many files a process may have open here, at most.
fn file_limit() -> usize {
    let text = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("Max open files"));
    let hard = line.and_then(|line| line.split_ascii_whitespace().nth(4)?.parse().ok());
    hard.unwrap_or(1024)
}

/// The gateway has two for each WebSocket.
fn sockets_that_fit() -> usize {
    SOCKETS.min(file_limit().saturating_sub(1000) / 2)
}

fn raise_file_limit() {
    let pid = std::process::id().to_string();
    let _ = Command::new("prlimit")
        .args(["--pid", &pid, &format!("--nofile={}:", file_limit())])
        .status();
}
