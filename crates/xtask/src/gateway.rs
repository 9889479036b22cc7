//! Requests per CPU-second of the proxying processes, beside nginx (which the budgets are about), HAProxy
//! and Caddy, interleaved in one run. The app behind all is the same small C program, for us in its
//! sandbox, for the others on the host. Loopback only; every round is bounded by the client's own duration.

pub mod rivals;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use hutong_testkit::eventually;
use hutong_testkit::server::{Server, app_folder};

use crate::{Report, Row, median, release_binary};
use rivals::{Ground, Rival, free_port};

/// One kind of traffic.
struct Traffic {
    name: &'static str,
    /// Requests per CPU-second, as a share of nginx's.
    must: f64,
    goal: f64,
    tls: bool,
    path: &'static str,
    client: Client,
}

#[derive(Clone, Copy)]
enum Client {
    /// wrk, 64 connections that stay.
    Wrk,
    /// wrk, a connection for each request.
    WrkClose,
    /// h2load, 4 connections of 32 streams.
    H2,
}

const TRAFFIC: [Traffic; 6] = [
    Traffic {
        name: "HTTP/1.1 keep-alive, 64 connections, 1 KiB",
        must: 0.9,
        goal: 1.0,
        tls: false,
        path: "/1k",
        client: Client::Wrk,
    },
    Traffic {
        name: "TLS 1.3, HTTP/1.1, 64 connections, 1 KiB",
        must: 1.05,
        goal: 1.2,
        tls: true,
        path: "/1k",
        client: Client::Wrk,
    },
    Traffic {
        name: "HTTP/2 over TLS, 4 connections of 32 streams, 1 KiB",
        must: 0.9,
        goal: 1.3,
        tls: true,
        path: "/1k",
        client: Client::H2,
    },
    Traffic {
        name: "HTTP/1.1, bodies of 1 MiB",
        must: 1.0,
        goal: 1.5,
        tls: false,
        path: "/1m",
        client: Client::Wrk,
    },
    Traffic {
        name: "TLS 1.3, bodies of 1 MiB",
        must: 1.0,
        goal: 1.5,
        tls: true,
        path: "/1m",
        client: Client::Wrk,
    },
    Traffic {
        name: "new TLS connections, one request each",
        must: 1.2,
        goal: 1.4,
        tls: true,
        path: "/1k",
        client: Client::WrkClose,
    },
];

/// What one round found.
#[derive(Clone, Copy)]
struct Round {
    per_cpu_s: f64,
    per_s: f64,
    p99_ms: f64,
}

pub fn run(quick: bool) -> anyhow::Result<Report> {
    let (rounds, seconds) = if quick { (3, 1) } else { (5, 3) };
    let folder = tempfile::tempdir()?;
    let (program, cert, key) = prepare(folder.path())?;
    let binary = release_binary()?;
    let server = Server::start_binary(&binary, &["--https", "127.0.0.1:0"]);
    deploy(&server, &program, &cert, &key)?;
    let app_port = free_port()?;
    let _app = App::start(&program, app_port)?;
    let ground = Ground {
        folder: folder.path(),
        app: app_port,
        cert: &cert,
        key: &key,
        site: folder.path(),
    };
    let rivals = rivals::all(&ground)?;
    let system = server.json(&["system"]);
    let gateway = system
        .as_array()
        .and_then(|list| list.iter().find(|p| p["role"] == "gateway"));
    let gateway = gateway.and_then(|p| p["pid"].as_u64()).unwrap_or(0) as u32;
    let port = |address: &str| address.rsplit(':').next().and_then(|p| p.parse().ok());
    let own = (
        port(&server.http).unwrap_or(0),
        port(&server.https).unwrap_or(0),
    );
    let mut report = Report {
        rows: Vec::new(),
        notes: Vec::new(),
    };
    for traffic in &TRAFFIC {
        let mut ours = Vec::new();
        let mut theirs: Vec<Vec<Round>> = rivals.iter().map(|_| Vec::new()).collect();
        for _ in 0..rounds {
            let port = if traffic.tls { own.1 } else { own.0 };
            ours.push(round(traffic, port, &[gateway], seconds)?);
            for (rival, found) in rivals.iter().zip(&mut theirs) {
                let port = if traffic.tls { rival.tls } else { rival.plain };
                found.push(round(traffic, port, &rival.workers(), seconds)?);
            }
        }
        tell(&mut report, traffic, &ours, &rivals, &theirs);
    }
    let log = folder.path().join("h2load.log");
    for steady in &STEADY {
        let mut ours = Vec::new();
        let mut theirs: Vec<Vec<f64>> = rivals.iter().map(|_| Vec::new()).collect();
        for _ in 0..rounds {
            ours.push(steady.p99_ms(if steady.tls { own.1 } else { own.0 }, seconds, &log)?);
            for (rival, found) in rivals.iter().zip(&mut theirs) {
                let port = if steady.tls { rival.tls } else { rival.plain };
                found.push(steady.p99_ms(port, seconds, &log)?);
            }
        }
        let name = format!("{}: p99 at {RATE} requests/s", steady.name);
        let theirs: Vec<f64> = theirs.into_iter().map(median).collect();
        let others = rivals.iter().zip(&theirs);
        let others: Vec<String> = others
            .map(|(rival, p99)| format!("{} {p99:.2} ms", rival.name))
            .collect();
        let ours = median(ours);
        report
            .notes
            .push(format!("{name}: we {ours:.2} ms, {}", others.join(", ")));
        report.rows.push(Row {
            name,
            ours,
            rival: Some(theirs[0]),
            unit: "ms",
            must: 1.0,
            goal: 0.8,
            more_is_better: false,
        });
    }
    Ok(report)
}

/// All sides asked at the same rate, far below what they can do: how long the slowest hundredth takes.
struct Steady {
    name: &'static str,
    tls: bool,
    arguments: &'static [&'static str],
}

const RATE: u32 = 6400;
const STEADY: [Steady; 3] = [
    Steady {
        name: "HTTP/1.1, 64 connections",
        tls: false,
        arguments: &["--h1", "-c64", "-m1", "--rps=100"],
    },
    Steady {
        name: "TLS 1.3, HTTP/1.1, 64 connections",
        tls: true,
        arguments: &["--h1", "-c64", "-m1", "--rps=100"],
    },
    Steady {
        name: "HTTP/2 over TLS, 4 connections",
        tls: true,
        arguments: &["-c4", "-m32", "--rps=1600"],
    },
];

impl Steady {
    fn p99_ms(&self, port: u16, seconds: u32, log: &Path) -> anyhow::Result<f64> {
        let scheme = if self.tls { "https" } else { "http" };
        let _ = std::fs::remove_file(log);
        let output = Command::new("h2load")
            .args(["-t1", &format!("-D{}", seconds + 1)])
            .args(self.arguments)
            .arg("--log-file")
            .arg(log)
            .arg(format!("{scheme}://localhost:{port}/1k"))
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        anyhow::ensure!(text.contains(" 0 failed, 0 errored"), "h2load said: {text}");
        // Start, status, and microseconds of each request.
        let text = std::fs::read_to_string(log)?;
        let mut times: Vec<f64> = text
            .lines()
            .filter_map(|line| line.split('\t').nth(2)?.parse().ok())
            .collect();
        anyhow::ensure!(times.len() > 1000, "only {} requests", times.len());
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() * 99 / 100] / 1000.0)
    }
}

fn tell(
    report: &mut Report,
    traffic: &Traffic,
    ours: &[Round],
    rivals: &[Rival],
    theirs: &[Vec<Round>],
) {
    let of = |rounds: &[Round], what: fn(&Round) -> f64| median(rounds.iter().map(what).collect());
    let cpu = of(ours, |round| round.per_cpu_s);
    let name = traffic.name;
    report.rows.push(Row {
        name: format!("{name}: requests per CPU-second"),
        ours: cpu,
        rival: Some(of(&theirs[0], |round| round.per_cpu_s)),
        unit: "req/CPU-s",
        must: traffic.must,
        goal: traffic.goal,
        more_is_better: true,
    });
    let others: Vec<String> = rivals
        .iter()
        .zip(theirs)
        .map(|(rival, rounds)| {
            format!(
                "{} {:.0} req/CPU-s (we: {:.2} of it), {:.0} req/s, p99 {:.1} ms",
                rival.name,
                of(rounds, |round| round.per_cpu_s),
                cpu / of(rounds, |round| round.per_cpu_s),
                of(rounds, |round| round.per_s),
                of(rounds, |round| round.p99_ms),
            )
        })
        .collect();
    report.notes.push(format!(
        "{name}: we {cpu:.0} req/CPU-s, {:.0} req/s, p99 {:.1} ms; {}",
        of(ours, |round| round.per_s),
        of(ours, |round| round.p99_ms),
        others.join("; ")
    ));
}

/// The app's program, and a certificate for localhost with its key.
fn prepare(folder: &Path) -> anyhow::Result<(PathBuf, PathBuf, PathBuf)> {
    let (program, cert, key) = (
        folder.join("app"),
        folder.join("cert.pem"),
        folder.join("key.pem"),
    );
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gateway/app.c");
    let built = Command::new("cc")
        .args(["-O2", "-static", "-o"])
        .arg(&program)
        .arg(source)
        .status()?;
    anyhow::ensure!(built.success(), "cc failed");
    certificate(&cert, &key)?;
    Ok((program, cert, key))
}

/// An ECDSA certificate of its own root, for the names that benchmarks use.
pub fn certificate(cert: &Path, key: &Path) -> anyhow::Result<()> {
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
        ])
        .args([
            "-days",
            "5",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost,DNS:corpus.test",
            "-keyout",
        ])
        .arg(key)
        .arg("-out")
        .arg(cert)
        .stderr(Stdio::null())
        .status()?;
    anyhow::ensure!(made.success(), "openssl failed");
    Ok(())
}

fn deploy(server: &Server, program: &Path, cert: &Path, key: &Path) -> anyhow::Result<()> {
    let folder = app_folder(&[(
        "hutong.toml",
        "name='bench'\ndomains=['localhost']\ncommand='./app'\n[https]\nredirect=false\n[limits]\nmemory='64M'",
    )]);
    std::fs::copy(program, folder.path().join("app"))?;
    server.deploy(folder.path());
    let (cert, key) = (cert.display().to_string(), key.display().to_string());
    server.ok(&["cert", "add", "bench", "--cert", &cert, "--key", &key]);
    Ok(())
}

/// The app on the host.
struct App(Child);

impl App {
    fn start(program: &Path, port: u16) -> anyhow::Result<Self> {
        let child = Command::new(program)
            .env("PORT", port.to_string())
            .stdout(Stdio::null())
            .spawn()?;
        eventually("the app listens", 10, || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Ok(App(child))
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn round(traffic: &Traffic, port: u16, pids: &[u32], seconds: u32) -> anyhow::Result<Round> {
    let scheme = if traffic.tls { "https" } else { "http" };
    let url = format!("{scheme}://localhost:{port}{}", traffic.path);
    let before: f64 = pids.iter().map(|pid| cpu_seconds(*pid)).sum();
    let duration = format!("-d{seconds}s");
    let output = match traffic.client {
        Client::Wrk => Command::new("wrk")
            .args(["-t1", "-c64", "--latency", &duration, &url])
            .output()?,
        Client::WrkClose => Command::new("wrk")
            .args([
                "-t1",
                "-c16",
                "--latency",
                "-H",
                "Connection: close",
                &duration,
                &url,
            ])
            .output()?,
        Client::H2 => Command::new("h2load")
            .args(["-t1", "-c4", "-m32", &format!("-D{seconds}"), &url])
            .output()?,
    };
    let used = pids.iter().map(|pid| cpu_seconds(*pid)).sum::<f64>() - before;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (count, p99_ms) = match traffic.client {
        Client::H2 => read_h2load(&text),
        _ => read_wrk(&text),
    }
    .ok_or_else(|| anyhow::anyhow!("the client said: {text}"))?;
    Ok(Round {
        per_cpu_s: count / used.max(0.01),
        per_s: count / f64::from(seconds),
        p99_ms,
    })
}

fn read_wrk(text: &str) -> Option<(f64, f64)> {
    if text.contains("Non-2xx") {
        return None;
    }
    let lines = || text.lines().map(str::trim);
    let count = lines().find_map(|line| line.split_once(" requests in"))?.0;
    let p99 = lines().find_map(|line| line.strip_prefix("99%"))?;
    Some((count.parse().ok()?, milliseconds(p99)?))
}

/// h2load gives no percentiles: the largest time stands for them.
fn read_h2load(text: &str) -> Option<(f64, f64)> {
    if !text.contains(" 0 failed, 0 errored, 0 timeout") {
        return None;
    }
    let line = text.lines().find(|line| line.starts_with("requests:"))?;
    let count = line
        .split(',')
        .find_map(|part| part.trim().strip_suffix(" succeeded"))?;
    let times = text
        .lines()
        .find_map(|line| line.strip_prefix("time for request:"))?;
    let max = times.split_ascii_whitespace().nth(1)?;
    Some((count.parse().ok()?, milliseconds(max)?))
}

fn milliseconds(text: &str) -> Option<f64> {
    let text = text.trim();
    let split = text.find(|c: char| c.is_ascii_alphabetic())?;
    let number: f64 = text[..split].parse().ok()?;
    Some(match &text[split..] {
        "us" => number / 1000.0,
        "ms" => number,
        "s" => number * 1000.0,
        _ => return None,
    })
}

/// Processor time that a process took so far, its threads' included.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: f64 = fields
        .split_ascii_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<f64>().ok())
        .sum();
    ticks / 100.0
}
