//! Many apps that sleep: what each costs while it does, and whether many can be woken at once. On a server of its own, and
//! while no other runs: one that shares the program's pages would make everyone's share look smaller.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hutong_testkit::eventually;
use hutong_testkit::server::Server;
use hutong_testkit::visitor::raw;

use crate::core::{boot, memory};
use crate::{Report, Row, median};

/// They sleep before anything is counted: what the first ones cost is not what one more does.
const BEFORE: usize = 10;
/// Before memory is read: control gives what it freed back to the kernel within ten seconds of quiet.
const QUIET: Duration = Duration::from_secs(12);
/// So many times apps are woken at once, each time others.
const GOES: usize = 5;

pub fn run(binary: &Path, tiny: &Path, quick: bool) -> anyhow::Result<Report> {
    let count = if quick { 100 } else { 500 };
    let folders = tempfile::tempdir()?;
    let names: Vec<String> = (0..BEFORE + count)
        .map(|number| format!("sleeper-{number}"))
        .collect();
    let made: anyhow::Result<Vec<PathBuf>> = names
        .iter()
        .map(|name| sleeper(folders.path(), name, tiny))
        .collect();
    let mut first = made?;
    let rest = first.split_off(BEFORE);
    let server = Server::start_binary(binary, &[]);
    boot::deploy_all(&server, first)?;
    await_sleep(&server, BEFORE);
    std::thread::sleep(QUIET);
    let own = memory::platform(&server)?;
    let kernel = memory::of_the_kernel()?;
    let began = Instant::now();
    boot::deploy_all(&server, rest)?;
    let deployed = began.elapsed().as_secs_f64();
    await_sleep(&server, names.len());
    std::thread::sleep(QUIET);
    let each = |before: f64, after: f64| (after - before) * 1000.0 / count as f64;
    let own_after = memory::platform(&server)?;
    let kernel = each(kernel, memory::of_the_kernel()?);
    let row = Row {
        name: format!(
            "memory of a sleeping app, mean of {count}: what warden + control + gateway grow by (PSS)"
        ),
        ours: each(own, own_after),
        rival: None,
        unit: "KB",
        must: 50.0,
        goal: 10.0,
        more_is_better: false,
    };
    let note = format!(
        "{count} sleeping apps: warden + control + gateway {own:.1} MB with {BEFORE} others asleep, {own_after:.1} MB with these too; what the kernel of the whole machine took for itself meanwhile (unreclaimable slab, stacks, page tables, per-cpu), whoever it was for: {kernel:.1} KB for each; their deployment took {deployed:.1} s"
    );
    let (woken, wakes) = wake_at_once(&server, &names[BEFORE..]);
    Ok(Report {
        rows: vec![row, woken],
        notes: vec![note, wakes],
    })
}

/// A folder with the tiny app, which sleeps as soon as it may.
fn sleeper(folders: &Path, name: &str, tiny: &Path) -> anyhow::Result<PathBuf> {
    let folder = folders.join(name);
    std::fs::create_dir(&folder)?;
    let toml = format!(
        "name = '{name}'\ndomains = ['{name}.bench']\ncommand = ['./tiny']\n[limits]\nmemory = '8M'\n[sleep]\nafter = '1s'\n"
    );
    std::fs::write(folder.join("hutong.toml"), toml)?;
    std::fs::copy(tiny, folder.join("tiny"))?;
    Ok(folder)
}

/// Until so many sleep, and nothing of them is left.
fn await_sleep(server: &Server, count: usize) {
    eventually(&format!("{count} apps sleep"), 180, || {
        // A list of hundreds of apps is work for control, too.
        std::thread::sleep(Duration::from_millis(300));
        let apps = server.json(&["apps"]);
        let list = apps.as_array().cloned().unwrap_or_default();
        let sleeps = |app: &&serde_json::Value| {
            app["state"] == "asleep" && app["instances"].as_array().is_some_and(Vec::is_empty)
        };
        list.iter().filter(sleeps).count() == count
    });
}

/// A fifth of the apps is asked for in one moment, each by a visitor of its own; then the next fifth, once all sleep again.
fn wake_at_once(server: &Server, names: &[String]) -> (Row, String) {
    let each = names.len() / GOES;
    let (mut failed, mut wholes, mut times) = (Vec::new(), Vec::new(), Vec::new());
    for names in names.chunks_exact(each) {
        let began = Instant::now();
        std::thread::scope(|scope| {
            let visits: Vec<_> = names
                .iter()
                .map(|name| scope.spawn(move || visit(&server.http, name)))
                .collect();
            for (name, visit) in names.iter().zip(visits) {
                match visit.join() {
                    Ok(Ok(time)) => times.push(time),
                    Ok(Err(error)) => failed.push(format!("{name}: {error}")),
                    Err(_) => failed.push(format!("{name}: the visitor panicked")),
                }
            }
        });
        wholes.push(began.elapsed().as_secs_f64());
        await_sleep(server, BEFORE + GOES * each);
    }
    let whole = wholes.into_iter().fold(0.0, f64::max);
    let slowest = times.iter().copied().fold(0.0, f64::max);
    let half = if times.is_empty() { 0.0 } else { median(times) };
    let errors = failed.len();
    let mut note = format!(
        "{each} sleeping apps woken at once, {GOES} times: all were answered after {whole:.2} s at most; half of the requests within {half:.2} s, the slowest after {slowest:.2} s"
    );
    if errors > 0 {
        failed.truncate(5);
        note.push_str(&format!("; {errors} failed, such as {failed:?}"));
    }
    let row = Row {
        name: format!(
            "{each} sleeping apps woken at once ({GOES} times), the slowest answer after {slowest:.2} s: errors"
        ),
        ours: errors as f64,
        rival: None,
        unit: "",
        must: 0.0,
        goal: 0.0,
        more_is_better: false,
    };
    (row, note)
}

/// Seconds from before the connection to the end of the answer.
fn visit(http: &str, name: &str) -> anyhow::Result<f64> {
    let request = format!("GET / HTTP/1.1\r\nHost: {name}.bench\r\nConnection: close\r\n\r\n");
    let began = Instant::now();
    let answer = raw(http, request.as_bytes())?;
    anyhow::ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
    Ok(began.elapsed().as_secs_f64())
}
