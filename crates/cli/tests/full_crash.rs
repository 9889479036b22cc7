//! SIGKILL at every step of every kind of change, to everyone: the table of docs/reliability.md.
#![cfg(feature = "full")]
// Its tables go into docs/reliability.md.
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hutong_testkit::crash::{Case, Random, Rig, Victim, seed, write_body};
use hutong_testkit::server::{Server, app_folder, children_of, python_app};
use hutong_testkit::traffic::Traffic;
use hutong_testkit::visitor::get;
use hutong_testkit::{eventually, is_root, kill};

/// One row: steps of one role, one victim.
#[derive(Default)]
struct Row {
    runs: usize,
    killed: usize,
    succeeded: usize,
}

fn is_write(step: &str) -> bool {
    [" write ", " upload.", " launch.cgroups"]
        .iter()
        .any(|word| step.contains(word))
}

type Table = BTreeMap<(String, String, &'static str), Row>;

fn print(table: &Table) {
    println!("| change | steps of | killed | runs | reached | command succeeded | whole again |");
    println!("|---|---|---|---|---|---|---|");
    for ((change, role, victim), row) in table {
        println!(
            "| {change} | {role} | {victim} | {} | {} | {} | {} |",
            row.runs, row.killed, row.succeeded, row.runs
        );
    }
}

/// Every step with every one of `victims`, then as many random ones, each with another body to deploy.
fn exhaust(
    change: &str,
    rig: &mut Rig,
    folder: &Path,
    set_body: fn(&Path, &str),
    host: &str,
    victims: &[Victim],
    table: &mut Table,
) {
    // `HUTONG_CHANGE=build` repeats one of the three.
    if std::env::var("HUTONG_CHANGE").is_ok_and(|only| only != change) {
        return;
    }
    let path = folder.to_string_lossy().into_owned();
    set_body(folder, "recorded");
    let steps = rig.record(&["deploy", &path]);
    let mut random = Random(seed());
    let mut cases: Vec<Case> = Vec::new();
    for victim in victims {
        cases.extend(steps.iter().map(|(step, _)| Case {
            step: step.clone(),
            count: 1,
            victim: *victim,
        }));
    }
    for _ in 0..steps.len() {
        let (step, times) = &steps[random.below(steps.len())];
        cases.push(Case {
            step: step.clone(),
            count: 1 + random.below(*times),
            victim: victims[random.below(victims.len())],
        });
    }
    // Only a disk can fail so, and only where a process of ours waits for it.
    cases.retain(|case| match case.victim {
        Victim::Eio | Victim::Enospc => is_write(&case.step),
        Victim::Hang => is_write(&case.step) || case.step.contains("store"),
        _ => true,
    });
    println!("{change}: {} steps, {} runs", steps.len(), cases.len());
    let names: Vec<&str> = steps.iter().map(|(step, _)| step.as_str()).collect();
    println!("{}", names.join(", "));
    let mut before = "recorded".to_owned();
    for (number, case) in cases.iter().enumerate() {
        let body = format!("{change}-{number}");
        set_body(folder, &body);
        let outcome = rig.run(case, &["deploy", &path]);
        let now = get(&rig.http, host, "/").text();
        assert!(
            now == body || (now == before && !outcome.succeeded),
            "{case:?}: {now}"
        );
        let role = case.step.split(' ').next().unwrap_or_default().to_owned();
        let row = table
            .entry((change.to_owned(), role, case.victim.word()))
            .or_default();
        row.runs += 1;
        row.killed += usize::from(outcome.killed);
        row.succeeded += usize::from(outcome.succeeded);
        before = now;
        if !outcome.succeeded {
            // And the next one goes as if nothing had been.
            rig.server().ok(&["deploy", &path]);
            assert_eq!(get(&rig.http, host, "/").text(), body, "{case:?}");
            before = body;
        }
        if (number + 1) % 50 == 0 {
            println!("{change}: {} of {}", number + 1, cases.len());
        }
    }
}

#[test]
fn every_step_of_every_change_survives_every_kill() {
    if !is_root() {
        return;
    }
    let mut table = Table::new();
    let all = [
        &Victim::ALL[..],
        &[Victim::Eio, Victim::Enospc, Victim::Hang],
    ]
    .concat();

    let app = python_app("one", "instances = 2", "v0");
    let mut rig = Rig::new("one", "one.test", app.path(), 2);
    exhaust(
        "rolling",
        &mut rig,
        app.path(),
        write_body,
        "one.test",
        &all,
        &mut table,
    );
    drop(rig);

    let app = python_app("solo", "data = true", "v0");
    let mut rig = Rig::new("solo", "solo.test", app.path(), 1);
    let some = [
        Victim::Itself,
        Victim::Control,
        Victim::Warden,
        Victim::App,
        Victim::Everything,
    ];
    exhaust(
        "recreate",
        &mut rig,
        app.path(),
        write_body,
        "solo.test",
        &some,
        &mut table,
    );
    drop(rig);

    let toml = "name = \"site\"\ndomains = [\"site.test\"]\nstatic = \"out\"\n[build]\ncommand = [\"sh\", \"-c\", \"mkdir -p out && cp body out/index.html\"]\n";
    let site = app_folder(&[("hutong.toml", toml), ("body", "v0")]);
    let mut rig = Rig::new("site", "site.test", site.path(), 0);
    let set = |folder: &Path, body: &str| std::fs::write(folder.join("body"), body).expect("write");
    let some = [Victim::Itself, Victim::Control, Victim::Warden];
    exhaust(
        "build",
        &mut rig,
        site.path(),
        set,
        "site.test",
        &some,
        &mut table,
    );
    drop(rig);

    print(&table);
}

/// Kills control as soon as it is there, again and again.
fn without_control(server: &Server, time: Duration) -> usize {
    let (began, mut killed) = (Instant::now(), 0);
    while began.elapsed() < time {
        for pid in children_of(server.pid()) {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if line.starts_with(b"hutong control") {
                kill(pid);
                killed += 1;
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    killed
}

#[test]
fn a_minute_without_the_control_plane_is_not_noticed() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    server.deploy(python_app("one", "", "1").path());
    let before = server.app("one")["instances"][0]["id"].clone();
    // Two deployments are under way when it goes: one that gets healthy meanwhile, one that never does.
    let slow = python_app("slow", "[timeouts]\nstart = \"90s\"", "slow");
    let bad = python_app("bad", "[timeouts]\nstart = \"10s\"", "bad");
    for (folder, program) in [
        (&slow, "import time; time.sleep(3)\n"),
        (&bad, "import time; time.sleep(3000)\n"),
    ] {
        let path = folder.path().join("app.py");
        let text = std::fs::read_to_string(&path).expect("read");
        std::fs::write(
            &path,
            text.replacen("import ", &format!("{program}import "), 1),
        )
        .expect("write");
    }
    let traffic = Traffic::start(&server.http, "one.test", "/", 200, 8);
    let deploys = [&slow, &bad].map(|folder| {
        let mut command = server.command(&["deploy", &folder.path().to_string_lossy()]);
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("hutong runs")
    });
    eventually("both are under way", 20, || {
        ["slow", "bad"].iter().all(|app| {
            server.app(app)["instances"]
                .as_array()
                .is_some_and(|list| list.len() == 1)
        })
    });
    let killed = without_control(&server, Duration::from_secs(60));
    assert!(killed > 10, "{killed}");
    eventually("it is back", 30, || server.run(&["apps"]).status.success());
    for mut deploy in deploys {
        deploy.wait().expect("it ends");
    }
    eventually("both are over", 60, || {
        ["slow", "bad"]
            .iter()
            .all(|app| server.app(app)["deploying"].is_null())
    });
    assert_eq!(
        get(&server.http, "slow.test", "/").text(),
        "slow",
        "finished"
    );
    assert_eq!(
        server.app("bad")["release"],
        serde_json::Value::Null,
        "undone"
    );
    assert_eq!(server.app("bad")["instances"], serde_json::json!([]));
    assert_eq!(server.app("one")["instances"][0]["id"], before);
    let report = traffic.finish();
    assert_eq!(
        (report.failed.len(), report.sent_again),
        (0, 0),
        "{report:?}"
    );
    // Every request is in the access log, those of that minute too.
    eventually("the access log is taken in", 20, || {
        let logged = server.ok(&["logs", "one", "--access", "--lines", "100000"]);
        logged.lines().count() >= report.answered
    });
    println!(
        "control was killed {killed} times in a minute; {} requests, none failed",
        report.answered
    );
}

/// EIO and ENOSPC from the kernel itself (strace(1) injects them), in the n-th call of a thread of control or
/// the warden: SQLite's writes among them, which no failpoint of ours reaches.
#[test]
fn any_call_that_writes_may_fail() {
    if !is_root() {
        return;
    }
    let app = python_app("one", "data = true", "v0");
    let path = app.path().to_string_lossy().into_owned();
    let rig = Rig::new("one", "one.test", app.path(), 1);
    let traffic = Traffic::start(&rig.http, "one.test", "/", 100, 4);
    let (mut runs, mut failed) = (0, 0);
    let mut before = "v0".to_owned();
    for (call, error) in [
        ("pwrite64", "EIO"),
        ("pwrite64", "ENOSPC"),
        ("fsync", "EIO"),
        ("rename", "EIO"),
        ("mkdir", "ENOSPC"),
        ("syncfs", "EIO"),
        ("unlink", "EIO"),
    ] {
        for count in 1..=8 {
            let server = rig.server();
            let (warden, control) = (server.pid(), server.role("control"));
            let mut strace = Command::new("strace")
                .args([
                    "-f",
                    "-qq",
                    "-o",
                    "/dev/null",
                    "-e",
                    &format!("trace={call}"),
                ])
                .args(["-e", &format!("inject={call}:error={error}:when={count}")])
                .args(["-p", &warden.to_string(), "-p", &control.to_string()])
                .stderr(Stdio::null())
                .spawn()
                .expect("strace");
            let traced = |pid: u32| {
                let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
                status.is_ok_and(|text| text.contains(&format!("TracerPid:\t{}\n", strace.id())))
            };
            eventually("strace is there", 20, || traced(warden) && traced(control));
            let body = format!("{call}-{error}-{count}");
            write_body(app.path(), &body);
            let done = server.run(&["deploy", &path]);
            let interrupt = rustix::process::Pid::from_child(&strace);
            let _ = rustix::process::kill_process(interrupt, rustix::process::Signal::INT);
            // It may hang over a thread that does not stop for it; those it traces live on either way.
            let began = Instant::now();
            while strace.try_wait().expect("wait").is_none() {
                if began.elapsed() > Duration::from_secs(2) {
                    let _ = strace.kill();
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            rig.converge();
            let now = get(&rig.http, "one.test", "/").text();
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            assert!(
                now == body || (now == before && !done.status.success()),
                "{body}: {now} {said}"
            );
            runs += 1;
            if !done.status.success() {
                failed += 1;
                assert!(
                    said.contains("error") || said.contains("space") || said.contains("full"),
                    "{said}"
                );
                server.ok(&["deploy", &path]);
            }
            before = body;
        }
    }
    let report = traffic.finish();
    assert!(report.failed.is_empty(), "{report:?}");
    println!("{runs} deploys with a call that failed: {failed} said so, all were whole again");
}
