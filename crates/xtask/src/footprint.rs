//! Memory of our own processes (PSS), and the times that people feel. "Own start" is the same program
//! run bare, in the same run.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use hutong_testkit::server::Server;

use crate::{Row, median, release_binary};

const ROUNDS: usize = 7;

pub fn run() -> anyhow::Result<Vec<Row>> {
    let binary = release_binary()?;
    let server = Server::start_binary(&binary, &[]);
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let clock = examples.join("clock");
    server.deploy(&clock);
    server.ok(&["scale", "clock", "1"]);
    let own = own_start(&clock)?;
    let (mut restarts, mut rollbacks, mut deploys) = (Vec::new(), Vec::new(), Vec::new());
    let copy = tempfile::tempdir()?;
    for file in ["hutong.toml", "main.c"] {
        std::fs::copy(clock.join(file), copy.path().join(file))?;
    }
    // Without the build step, which is the compiler's time: the program comes along.
    let text = std::fs::read_to_string(copy.path().join("hutong.toml"))?;
    let text = text
        .lines()
        .filter(|line| !line.starts_with("[build]") && !line.contains("\"cc\""))
        .map(|line| line.replace("instances = 2", "instances = 1"))
        .collect::<Vec<_>>()
        .join("\n");
    std::fs::write(copy.path().join("hutong.toml"), text)?;
    build(&clock, &copy.path().join("clock"))?;
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

fn timed<T>(work: impl FnOnce() -> T) -> f64 {
    let began = Instant::now();
    work();
    began.elapsed().as_secs_f64() * 1000.0
}

fn build(clock: &Path, program: &Path) -> anyhow::Result<()> {
    let built = Command::new("cc")
        .args(["-O2", "-o"])
        .arg(program)
        .arg(clock.join("main.c"))
        .status()?;
    anyhow::ensure!(built.success(), "cc failed");
    Ok(())
}

/// From spawn to the first connection, without any sandbox; the median in milliseconds.
fn own_start(clock: &Path) -> anyhow::Result<f64> {
    let folder = tempfile::tempdir()?;
    let program = folder.path().join("clock");
    build(clock, &program)?;
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port();
        let began = Instant::now();
        let mut child = Command::new(&program)
            .env("PORT", port.to_string())
            .stdout(Stdio::null())
            .spawn()?;
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            anyhow::ensure!(began.elapsed().as_secs() < 10, "it does not listen");
        }
        times.push(began.elapsed().as_secs_f64() * 1000.0);
        child.kill()?;
        child.wait()?;
    }
    Ok(median(times))
}
