//! The budgets of the core, each with its must and goal. What each row counts is said at its function;
//! the ones that need many apps are in [`boot`].
//!
//! "Own start" is the same program run bare, from spawn to the first connection, in the same run. The
//! apps are [`TINY`], static and one page of C, so that what is measured is ours; the traffic of
//! [`lost`] goes to the clock of examples/, which keeps its connections.

pub mod boot;
pub mod memory;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use hutong_testkit::server::{Server, app_folder, children_of};
use hutong_testkit::traffic::{Report as TrafficReport, Traffic};
use hutong_testkit::visitor::{self, Answer};
use hutong_testkit::{eventually, kill};
use tempfile::TempDir;

use crate::footprint::{Bare, ROUNDS, build, built_clock, timed};
use crate::{Report, Row, median, release_binary};

/// Answers with the time at which it began to listen.
const TINY: &str = include_str!("core/tiny.c");
/// Before memory counts as idle memory.
const QUIET: Duration = Duration::from_secs(2);

pub fn run(quick: bool) -> anyhow::Result<Report> {
    let binary = release_binary()?;
    let source = app_folder(&[("main.c", TINY)]);
    let program = source.path().join("tiny");
    build(source.path(), &program, &["-static"])?;
    let server = Server::start_binary(&binary, &[]);
    let folder = tiny_app("tiny", 1, &program)?;
    server.deploy(folder.path());
    let starts = starts(&server, &program)?;
    let own = median(starts.own);
    let (started, launched) = (median(starts.whole), median(starts.launches));
    let mut notes = vec![format!(
        "start of an instance: {started:.1} ms to listening, {launched:.1} ms of it behind the warden's `started_at` (whole milliseconds); own start {own:.1} ms"
    )];
    let deploys = deploys(&server, folder.path())?;
    std::thread::sleep(QUIET);
    let idle = memory::platform(&server)?;
    let exits = exits(&server, &program, if quick { 5 } else { ROUNDS })?;
    let routes = route_changes(&server)?;
    let lost = lost(&server, if quick { 2 } else { 6 })?;
    notes.push(lost.note);
    drop(server);

    let load = boot::run(&binary, &program, if quick { 20 } else { 250 })?;
    notes.extend(load.notes);
    let (apps, instances) = (load.apps, load.instances);
    let platform =
        |what: &str| format!("platform memory, idle, {what}: warden + control + gateway (PSS)");
    Ok(Report {
        rows: vec![
            row(platform("one app"), idle, "MB", 40.0, 25.0),
            row(
                platform(&format!("{apps} apps")),
                load.platform,
                "MB",
                40.0,
                25.0,
            ),
            row(
                format!(
                    "one instance's shim and init, mean of {instances} (PSS, and the kernel memory of its cgroup)"
                ),
                load.instance,
                "MB",
                1.5,
                0.5,
            ),
            row(
                "start of an instance, API request to listening, beyond own start",
                started - own,
                "ms",
                15.0,
                8.0,
            ),
            row(
                "deploy of a changed small app, command to traffic, beyond own start",
                median(deploys) - own,
                "ms",
                1000.0,
                300.0,
            ),
            row(
                "exit of an instance to its target out of rotation",
                median(exits),
                "ms",
                50.0,
                5.0,
            ),
            row(
                "route change, API request to every worker serving it",
                median(routes),
                "ms",
                50.0,
                20.0,
            ),
            row(
                format!(
                    "boot with {apps} apps ({instances} static, {instances} processes) to all routed, beyond own starts"
                ),
                load.boot,
                "s",
                10.0,
                3.0,
            ),
            row(
                "failed requests during deploy, rollback, scale, and SIGKILL of control",
                lost.failed,
                "requests",
                0.0,
                0.0,
            ),
        ],
        notes,
    })
}

fn row(name: impl Into<String>, ours: f64, unit: &'static str, must: f64, goal: f64) -> Row {
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

/// A folder with the tiny app, to be asked for at NAME.test.
fn tiny_app(name: &str, instances: u32, program: &Path) -> anyhow::Result<TempDir> {
    let folder = tempfile::tempdir()?;
    fill_tiny_app(folder.path(), name, instances, program)?;
    Ok(folder)
}

fn fill_tiny_app(folder: &Path, name: &str, instances: u32, program: &Path) -> anyhow::Result<()> {
    let text = format!(
        "name = \"{name}\"\ndomains = [\"{name}.test\"]\ncommand = [\"./tiny\"]\ninstances = {instances}\n"
    );
    std::fs::write(folder.join("hutong.toml"), text)?;
    std::fs::copy(program, folder.join("tiny"))?;
    Ok(())
}

/// `GET /` over a connection of its own; unlike the testkit's, it may fail.
fn get(http: &str, host: &str) -> std::io::Result<Answer> {
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    visitor::raw(http, request.as_bytes())
}

fn serves(http: &str, host: &str) -> bool {
    get(http, host).is_ok_and(|answer| answer.status == 200)
}

/// When the instance of a tiny app that answers now began to listen, in microseconds since 1970.
fn listening_since(server: &Server, app: &str) -> Option<u64> {
    let answer = get(&server.http, &format!("{app}.test")).ok()?;
    answer.text().parse().ok()
}

fn now_micros() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |time| time.as_micros() as u64)
}

fn instances(server: &Server, app: &str) -> Vec<serde_json::Value> {
    let app = server.app(app);
    app["instances"].as_array().cloned().unwrap_or_default()
}

fn healthy(server: &Server, app: &str) -> usize {
    let list = instances(server, app);
    list.iter().filter(|i| i["state"] == "healthy").count()
}

/// A request to the API without the command line's own start. The answer is read by [`finish`].
fn post(server: &Server, path: &str, body: &serde_json::Value) -> anyhow::Result<UnixStream> {
    let socket = server
        .api
        .strip_prefix("unix:")
        .context("the API is no unix socket")?;
    let body = body.to_string();
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes())?;
    Ok(stream)
}

fn finish(mut stream: UnixStream) -> anyhow::Result<()> {
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    anyhow::ensure!(
        answer.starts_with("HTTP/1.1 200 "),
        "the API says: {answer}"
    );
    Ok(())
}

/// Milliseconds.
#[derive(Default)]
struct Starts {
    whole: Vec<f64>,
    launches: Vec<f64>,
    own: Vec<f64>,
}

/// From before the API request that asks for a second instance until that instance listens, by its own
/// clock: API, store, the controller's pass, warden, sandbox, exec and the program. The health probe is
/// not in it, because the program itself notes the time. `launches` are the same from the warden's record
/// of its start, which is cut to whole milliseconds. Own starts come in between, so that both see the
/// same machine.
fn starts(server: &Server, program: &Path) -> anyhow::Result<Starts> {
    let mut found = Starts::default();
    for _ in 0..ROUNDS {
        found.own.push(Bare::start(program)?.milliseconds);
        let asked = now_micros();
        let body = serde_json::json!({ "instances": 2 });
        finish(post(server, "/v1/apps/tiny/scale", &body)?)?;
        // Nothing of ours takes the processor from what is measured.
        std::thread::sleep(Duration::from_millis(50));
        let mut listening = 0;
        eventually("the second instance answers", 10, || {
            listening = listening_since(server, "tiny").unwrap_or(0);
            listening > asked
        });
        let list = instances(server, "tiny");
        let began = list.iter().filter_map(|i| i["started_at"].as_u64()).max();
        let began = began.context("no instance has a time")? * 1000;
        found.whole.push((listening - asked) as f64 / 1000.0);
        let launch = listening.saturating_sub(began);
        found.launches.push(launch as f64 / 1000.0);
        server.ok(&["scale", "tiny", "1"]);
        eventually("one instance is left", 20, || {
            instances(server, "tiny").len() == 1
        });
    }
    Ok(found)
}

/// `hutong deploy` of a changed folder: from the command's spawn to its end, when every worker serves the
/// new release, and one request that the new instance answers. The health check is in it.
fn deploys(server: &Server, folder: &Path) -> anyhow::Result<Vec<f64>> {
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        std::fs::write(folder.join("round.txt"), round.to_string())?;
        let before = now_micros();
        let mut listening = 0;
        times.push(timed(|| {
            server.deploy(folder);
            listening = listening_since(server, "tiny").unwrap_or(0);
        }));
        anyhow::ensure!(
            listening > before,
            "the old release answered after the deploy"
        );
        eventually("the old instance is gone", 20, || {
            instances(server, "tiny").len() == 1
        });
    }
    Ok(times)
}

/// An app with two instances, the program of one gets SIGKILL, and requests follow one another on fresh
/// connections: from the kill to the end of the last request that failed, or for which the gateway tried
/// to connect to the dead instance (counted in the instance's network namespace, by the kernel). The
/// first request always counts: before its end nothing is known. Every round takes another app, because
/// the pauses before a restart grow.
fn exits(server: &Server, program: &Path, rounds: usize) -> anyhow::Result<Vec<f64>> {
    let mut times = Vec::new();
    for round in 0..rounds {
        let name = format!("exit-{round}");
        let host = format!("{name}.test");
        server.deploy(tiny_app(&name, 2, program)?.path());
        // The connections of every worker to both.
        eventually("both instances answer", 10, || {
            (0..8).all(|_| serves(&server.http, &host)) && healthy(server, &name) == 2
        });
        let shim = server.shim_of(&name);
        let target = children_of(shim)
            .first()
            .and_then(|init| children_of(*init).first().copied())
            .context("the instance has no program")?;
        let network = File::open(format!("/proc/{shim}/net/snmp"))?;
        let mut tried = connections_opened(&network)?;
        let mut out = Duration::ZERO;
        let began = Instant::now();
        kill(target);
        // The replacement comes after 200 ms; it has a network of its own and does not disturb.
        while began.elapsed() < Duration::from_millis(200) {
            let answered = serves(&server.http, &host);
            let now = connections_opened(&network)?;
            if !answered || now != tried || out.is_zero() {
                out = began.elapsed();
            }
            tried = now;
        }
        times.push(out.as_secs_f64() * 1000.0);
    }
    Ok(times)
}

/// TCP's ActiveOpens of a network namespace, from a `net/snmp` that was opened while it was inhabited.
fn connections_opened(snmp: &File) -> anyhow::Result<u64> {
    let mut buffer = vec![0; 8192];
    let size = snmp.read_at(&mut buffer, 0)?;
    let text = String::from_utf8_lossy(&buffer[..size]);
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let names = lines.next().context("no TCP counters")?;
    let values = lines.next().context("no TCP counters")?;
    let both = names.split(' ').zip(values.split(' '));
    let mut found = both.filter(|(name, _)| *name == "ActiveOpens");
    let (_, value) = found.next().context("no ActiveOpens")?;
    Ok(value.parse()?)
}

/// A rollback of a static app, there and back: from before the API request to the end of the first of
/// twenty requests in a row, each on a fresh connection, that all got the other release (SO_REUSEPORT
/// spreads connections over the workers, so that none is left out but once in half a million times).
fn route_changes(server: &Server) -> anyhow::Result<Vec<f64>> {
    const IN_A_ROW: usize = 20;
    let text = "name = \"site\"\ndomains = [\"site.test\"]\nstatic = \".\"\n";
    for release in ["1", "2"] {
        let folder = app_folder(&[("hutong.toml", text), ("index.html", release)]);
        server.deploy(folder.path());
    }
    let mut times = Vec::new();
    for round in 0..2 * ROUNDS + 1 {
        let release = if round % 2 == 0 { 1 } else { 2 };
        let body = serde_json::json!({ "release": release });
        let began = Instant::now();
        let answer = post(server, "/v1/apps/site/rollback", &body)?;
        let (mut in_a_row, mut first) = (0, Duration::ZERO);
        while in_a_row < IN_A_ROW {
            let got = get(&server.http, "site.test")?;
            if got.text() == release.to_string() {
                if in_a_row == 0 {
                    first = began.elapsed();
                }
                in_a_row += 1;
            } else {
                in_a_row = 0;
            }
            anyhow::ensure!(began.elapsed().as_secs() < 10, "the route does not change");
        }
        finish(answer)?;
        times.push(first.as_secs_f64() * 1000.0);
        // The passes that follow a promotion are over.
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(times)
}

struct Lost {
    failed: f64,
    note: String,
}

/// 200 requests a second over 40 keep-alive connections (each waits for its answer) while an app is
/// deployed, rolled back and scaled, and while control is killed. Failed is what was not answered with
/// 200, and what had to be sent again: the gateway is left alone, so no connection may break.
fn lost(server: &Server, rounds: usize) -> anyhow::Result<Lost> {
    let clock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/clock");
    let folder = built_clock(&clock, 2)?;
    server.deploy(folder.path());
    let traffic = steady_traffic(&server.http, "clock.localhost", "/healthz");
    for round in 0..rounds {
        std::fs::write(folder.path().join("round.txt"), round.to_string())?;
        server.deploy(folder.path());
        server.ok(&["rollback", "clock"]);
        for count in [3, 1, 2] {
            server.ok(&["scale", "clock", &count.to_string()]);
            eventually("it is scaled", 20, || {
                healthy(server, "clock") == count && instances(server, "clock").len() == count
            });
        }
        let old = server.role("control");
        kill(old);
        eventually("control is back", 20, || {
            let output = server.run(&["system", "--json"]);
            let text = String::from_utf8_lossy(&output.stdout);
            output.status.success() && !text.contains(&format!("\"pid\": {old},"))
        });
        eventually("it is known to be healthy", 20, || {
            healthy(server, "clock") == 2
        });
    }
    let mut report = TrafficReport::default();
    for one in traffic.into_iter().map(Traffic::finish) {
        report.answered += one.answered;
        report.sent_again += one.sent_again;
        report.slowest = report.slowest.max(one.slowest);
        for (reason, count) in one.failed {
            *report.failed.entry(reason).or_default() += count;
        }
    }
    let failed = report.failed.values().sum::<usize>() + report.sent_again;
    anyhow::ensure!(report.answered > 100, "there was no traffic: {report:?}");
    let reasons = if failed == 0 {
        String::new()
    } else {
        format!("; {:?}, sent again: {}", report.failed, report.sent_again)
    };
    Ok(Lost {
        failed: failed as f64,
        note: format!(
            "requests during {rounds} rounds of deploy, rollback, scale (3, 1, 2) and SIGKILL of control: {} answered, the slowest in {:.0} ms{reasons}",
            report.answered,
            report.slowest.as_secs_f64() * 1000.0
        ),
    })
}

/// 200 requests a second over 40 connections. The connections of one `Traffic` all ask at the same
/// moments, five times a second; ten of them, each a bit later, leave no gap of more than 20 ms.
fn steady_traffic(http: &str, host: &str, path: &str) -> Vec<Traffic> {
    let start = |_| {
        std::thread::sleep(Duration::from_millis(20));
        Traffic::start(http, host, path, 20, 4)
    };
    (0..10).map(start).collect()
}
