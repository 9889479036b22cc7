//! Memory of our own processes (PSS), and the times that people feel. "Own start" is the same program
//! run bare, in the same run.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Instant;

use hutong_testkit::server::Server;

use crate::{Row, median, release_binary};

pub const ROUNDS: usize = 7;

pub fn run() -> anyhow::Result<Vec<Row>> {
    let binary = release_binary()?;
    let server = Server::start_binary(&binary, &[]);
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let clock = examples.join("clock");
    server.deploy(&clock);
    server.ok(&["scale", "clock", "1"]);
    let own = own_start(&clock, &[])?;
    let (mut restarts, mut rollbacks, mut deploys) = (Vec::new(), Vec::new(), Vec::new());
    let copy = built_clock(&clock, 1)?;
    for round in 0..ROUNDS {
        std::fs::write(copy.path().join("round.txt"), round.to_string())?;
        deploys.push(timed(|| server.deploy(copy.path())));
        rollbacks.push(timed(|| server.ok(&["rollback", "clock"])));
        restarts.push(timed(|| server.ok(&["restart", "clock"])));
    }
    let system = server.json(&["system"]);
    let memory = |role: &str| -> f64 {
        let list = system.as_array().cloned().unwrap_or_default();
        let of = list.iter().filter(|p| p["role"] == role);
        of.filter_map(|p| p["memory_bytes"].as_f64()).sum::<f64>() / 1e6
    };
    let platform = memory("warden") + memory("control") + memory("gateway");
    let row = |name: &str, ours: f64, unit, must: f64, goal: f64| Row {
        name: name.into(),
        ours,
        rival: None,
        unit,
        must,
        goal,
        more_is_better: false,
    };
    Ok(vec![
        row(
            "platform memory: warden + control + gateway (PSS)",
            platform,
            "MB",
            40.0,
            25.0,
        ),
        row(
            "one instance's shim and init (PSS)",
            memory("shim"),
            "MB",
            1.5,
            0.5,
        ),
        row(
            "deploy of a changed small app, command to traffic, beyond own start",
            median(deploys) - own,
            "ms",
            1000.0,
            300.0,
        ),
        row(
            "rollback, command to traffic, beyond own start",
            median(rollbacks) - own,
            "ms",
            1000.0,
            300.0,
        ),
        row(
            "restart, command to traffic, beyond own start",
            median(restarts) - own,
            "ms",
            1000.0,
            300.0,
        ),
    ])
}

/// How long the work takes, in milliseconds.
pub fn timed<T>(work: impl FnOnce() -> T) -> f64 {
    let began = Instant::now();
    work();
    began.elapsed().as_secs_f64() * 1000.0
}

/// The clock of examples/ without its build step, which is the compiler's time: the program comes along.
pub fn built_clock(clock: &Path, instances: u32) -> anyhow::Result<tempfile::TempDir> {
    let copy = tempfile::tempdir()?;
    std::fs::copy(clock.join("main.c"), copy.path().join("main.c"))?;
    let text = std::fs::read_to_string(clock.join("hutong.toml"))?;
    let text = text
        .lines()
        .filter(|line| !line.starts_with("[build]") && !line.contains("\"cc\""))
        .map(|line| line.replace("instances = 2", &format!("instances = {instances}")))
        .collect::<Vec<_>>()
        .join("\n");
    std::fs::write(copy.path().join("hutong.toml"), text)?;
    build(clock, &copy.path().join("clock"), &[])?;
    Ok(copy)
}

/// Compiles the `main.c` of a folder.
pub fn build(source: &Path, program: &Path, flags: &[&str]) -> anyhow::Result<()> {
    let built = Command::new("cc")
        .args(["-O2", "-o"])
        .arg(program)
        .args(flags)
        .arg(source.join("main.c"))
        .status()?;
    anyhow::ensure!(built.success(), "cc failed");
    Ok(())
}

/// From spawn to the first connection, without any sandbox; the median in milliseconds.
pub fn own_start(source: &Path, flags: &[&str]) -> anyhow::Result<f64> {
    let folder = tempfile::tempdir()?;
    let program = folder.path().join("program");
    build(source, &program, flags)?;
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        times.push(Bare::start(&program)?.milliseconds);
    }
    Ok(median(times))
}

/// A program that runs without any sandbox, until this is dropped.
pub struct Bare {
    child: Child,
    /// From spawn to the first connection.
    pub milliseconds: f64,
}

impl Bare {
    pub fn start(program: &Path) -> anyhow::Result<Self> {
        let port = free_port()?;
        let began = Instant::now();
        let child = Command::new(program)
            .env("PORT", port.to_string())
            .stdout(Stdio::null())
            .spawn()?;
        let mut bare = Bare {
            child,
            milliseconds: 0.0,
        };
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            anyhow::ensure!(began.elapsed().as_secs() < 10, "it does not listen");
        }
        bare.milliseconds = began.elapsed().as_secs_f64() * 1000.0;
        Ok(bare)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that nothing listens on, below those that the kernel gives to connections: a try to connect
/// to one of those may end up connected with itself.
pub fn free_port() -> anyhow::Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    for _ in 0..10_000 {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no port is free")
}
