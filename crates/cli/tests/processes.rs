//! What an app runs beside the program that serves: workers, timed jobs, the release command, and what its owner asks for.

use std::time::{Duration, Instant};

use hutong_testkit::crash::Rig;
use hutong_testkit::server::{Server, app_folder, python_app};
use hutong_testkit::visitor::{escape, get};
use hutong_testkit::{eventually, is_root, kill};

fn process(server: &Server, app: &str, name: &str) -> serde_json::Value {
    let shown = server.json(&["status", app]);
    let all = shown["processes"].as_array().expect("a list");
    let found = all.iter().find(|process| process["name"] == name);
    found.cloned().unwrap_or_default()
}

fn instances_of(server: &Server, app: &str, process: &str) -> Vec<String> {
    let shown = server.json(&["status", app]);
    let all = shown["instances"].as_array().cloned().unwrap_or_default();
    let mine = all.iter().filter(|one| one["process"] == process);
    mine.map(|one| one["id"].as_str().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn workers_run_are_restarted_and_follow_the_release() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let workers = "[workers.mail]\ncommand=['sh', '-c', 'echo up as $HUTONG_PROCESS; exec sleep 3600']\ninstances=2\n[workers.mail.limits]\nmemory='32M'\n[workers.bad]\ncommand=['sh', '-c', 'echo cannot; exit 3']\n";
    server.deploy(python_app("shop", workers, "one").path());
    eventually("two mail workers run", 10, || {
        instances_of(&server, "shop", "mail").len() == 2
    });
    eventually("they are heard", 10, || {
        let said = server.ok(&["logs", "shop", "--process", "mail"]);
        said.matches("up as mail").count() == 2
    });
    assert_eq!(get(&server.http, "shop.test", "/").text(), "one");
    eventually("the bad one is paused", 20, || {
        let bad = process(&server, "shop", "bad");
        bad["failures"].as_u64() > Some(2) && bad["problem"] == "the program exited with code 3"
    });
    // It does not take the app down with it.
    assert_eq!(server.app("shop")["state"], "running");
    // One that is killed comes back; the other one stays.
    let before = instances_of(&server, "shop", "mail");
    let system = server.json(&["system"]);
    let shim = system
        .as_array()
        .expect("a list")
        .iter()
        .find(|p| p["instance"] == before[0]);
    kill(shim.expect("its shim")["pid"].as_u64().expect("a pid") as u32);
    eventually("another takes its place", 10, || {
        let now = instances_of(&server, "shop", "mail");
        now.len() == 2 && !now.contains(&before[0]) && now.contains(&before[1])
    });
    // A new release brings its own.
    let fewer = "[workers.mail]\ncommand=['sh', '-c', 'exec sleep 3600']\n";
    server.deploy(python_app("shop", fewer, "two").path());
    eventually("the new release's worker runs alone", 15, || {
        let now = instances_of(&server, "shop", "mail");
        now.len() == 1 && !before.contains(&now[0]) && now[0].starts_with("shop-d2-")
    });
    assert!(instances_of(&server, "shop", "bad").is_empty());
    server.ok(&["stop", "shop"]);
    eventually("nothing runs", 15, || {
        let shown = server.json(&["status", "shop"]);
        shown["instances"].as_array().is_some_and(Vec::is_empty)
    });
    server.ok(&["start", "shop"]);
    eventually("it runs again", 15, || {
        instances_of(&server, "shop", "mail").len() == 1
    });
    // It goes on without control, and control finds it again.
    let worker = instances_of(&server, "shop", "mail");
    kill(server.role("control"));
    eventually("control is back", 15, || {
        server.run(&["apps"]).status.success()
    });
    assert_eq!(instances_of(&server, "shop", "mail"), worker);
}

#[test]
fn an_app_without_visitors() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let toml =
        "name='bot'\n[workers.poll]\ncommand=['sh', '-c', 'echo polling; exec sleep 3600']\n";
    server.deploy(app_folder(&[("hutong.toml", toml)]).path());
    eventually("it polls", 10, || {
        server.ok(&["logs", "bot"]).contains("polling")
    });
    assert_eq!(server.app("bot")["state"], "running");
    assert_eq!(server.app("bot")["kind"], "background");
    let id = server.ok(&["exec", "bot", "--", "printenv", "HUTONG_PROCESS"]);
    assert_eq!(id, "poll\n");
    let toml = "name='bot'\n[workers.poll]\ncommand=['false']\n";
    server.deploy(app_folder(&[("hutong.toml", toml)]).path());
    eventually("it is said to fail", 15, || {
        server.app("bot")["state"] == "failing"
    });
    let message = server.app("bot")["message"].to_string();
    assert!(
        message.contains("worker poll: the program exited with code 1"),
        "{message}"
    );
    server.ok(&["remove", "bot", "--purge"]);
    eventually("it is gone", 15, || server.app("bot").is_null());
}

#[test]
fn a_release_command_comes_first_and_must_succeed() {
    if !is_root() {
        return;
    }
    let mut server = Server::start();
    let release = |script: &str, more: &str| {
        format!("data=true\n[release]\ncommand=['sh', '-c', '{script}']\n{more}")
    };
    let first = release("echo moving; echo 1 >> /data/done", "");
    let said = server.ok(&[
        "deploy",
        "--dry-run",
        &python_app("db", &first, "one").path().to_string_lossy(),
    ]);
    assert!(said.contains("which must succeed"), "{said}");
    server.deploy(python_app("db", &first, "one").path());
    assert_eq!(server.ok(&["exec", "db", "--", "cat", "/data/done"]), "1\n");
    assert!(
        server
            .ok(&["logs", "db", "--process", "release"])
            .contains("moving")
    );
    // A failure leaves the old release as it is.
    let bad = python_app("db", &release("echo no such column; exit 4", ""), "two");
    let (code, said) = server.fails(&["deploy", &bad.path().to_string_lossy()]);
    assert_eq!(code, 1);
    assert!(
        said.contains("exited with code 4") && said.contains("no such column"),
        "{said}"
    );
    let slow = python_app("db", &release("sleep 60", "timeout='1s'"), "two");
    let (_, said) = server.fails(&["deploy", &slow.path().to_string_lossy()]);
    assert!(said.contains("took over 1s"), "{said}");
    assert_eq!(get(&server.http, "db.test", "/").text(), "one");
    // A restart and a rollback do not run it.
    server.ok(&["restart", "db"]);
    assert_eq!(server.ok(&["exec", "db", "--", "cat", "/data/done"]), "1\n");
    // Control is killed meanwhile: it is run again, and the release comes.
    let script = "echo 2 >> /data/done; while [ ! -e /data/go ]; do sleep 0.1; done";
    let third = python_app("db", &release(script, ""), "three");
    let folder = third.path().to_string_lossy().into_owned();
    let mut deploy = server
        .command(&["deploy", &folder])
        .spawn()
        .expect("it runs");
    let lines = |server: &Server| {
        server
            .ok(&["exec", "db", "--", "cat", "/data/done"])
            .lines()
            .count()
    };
    eventually("it runs", 10, || lines(&server) == 2);
    kill(server.role("control"));
    eventually("control is back", 15, || {
        server.run(&["apps"]).status.success()
    });
    eventually("it runs again", 15, || lines(&server) == 3);
    server.ok(&["exec", "db", "--", "touch", "/data/go"]);
    eventually("the release serves", 20, || {
        get(&server.http, "db.test", "/").text() == "three"
    });
    assert_eq!(lines(&server), 3);
    // It may have given up when control was away; that is no matter here.
    let _ = deploy.wait();
    server.stop();
}

#[test]
fn a_program_is_run_once() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let jobs = "data=true\n[cron.report]\ncommand=['sh', '-c', 'echo reported; sleep 1; echo done']\nschedule='0 0 1 1 *'\ntimeout='30s'\n";
    server.deploy(python_app("shop", jobs, "one").path());
    let output = server.run(&[
        "run",
        "shop",
        "--",
        "sh",
        "-c",
        "echo out; echo bad >&2; id -u; exit 7",
    ]);
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "out\n1000\n");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.starts_with("bad\n") && said.contains("exited with code 7"),
        "{said}"
    );
    // Each line once, however many.
    let many = server.ok(&["run", "shop", "--", "seq", "20000"]);
    let lines: Vec<String> = (1..=20000).map(|n| n.to_string()).collect();
    assert!(
        many.lines().eq(lines.iter()),
        "{} lines",
        many.lines().count()
    );
    let began = Instant::now();
    assert_eq!(
        server.ok(&["run", "shop", "--cron", "report"]),
        "reported\ndone\n"
    );
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "its end is seen when it comes"
    );
    let report = process(&server, "shop", "report");
    assert_eq!(report["last"]["state"], "ok");
    assert!(report["next_at"].as_u64() > Some(0));
    // What takes too long is ended; what uses too much memory is said to.
    let (code, said) = server.fails(&["run", "shop", "--timeout", "1s", "--", "sleep", "60"]);
    assert!(code != 0 && said.contains("took over 1s"), "{code} {said}");
    let eat = "import os; x = bytearray(400 << 20); print(len(x))";
    let (_, said) = server.fails(&["run", "shop", "--", "python3", "-c", eat]);
    assert!(said.contains("ran out of memory"), "{said}");
    let (_, said) = server.fails(&["run", "shop", "--", "no-such-program"]);
    assert!(said.contains("no-such-program"), "{said}");
    // One goes on while control is killed, and how it ended is known.
    server.ok(&[
        "run",
        "shop",
        "--detach",
        "--",
        "sh",
        "-c",
        "while [ ! -e /data/go ]; do sleep 0.1; done; exit 9",
    ]);
    let newest = || server.json(&["runs", "shop"])[0].clone();
    eventually("it runs", 10, || newest()["state"] == "running");
    kill(server.role("control"));
    eventually("control is back", 15, || {
        server.run(&["apps"]).status.success()
    });
    assert_eq!(newest()["state"], "running");
    server.ok(&["exec", "shop", "--", "touch", "/data/go"]);
    eventually("its end is known", 10, || newest()["state"] == "failed");
    assert_eq!(newest()["exit_code"], 9);
    // One that nobody waits for is ended by its number.
    server.ok(&["run", "shop", "--detach", "--", "sleep", "600"]);
    eventually("it runs", 10, || newest()["state"] == "running");
    server.ok(&["runs", "shop", "--stop", &newest()["id"].to_string()]);
    eventually("it is stopped", 15, || newest()["state"] == "stopped");
    // Stopping the app ends what runs beside it.
    server.ok(&["run", "shop", "--detach", "--", "sleep", "600"]);
    eventually("it runs", 10, || newest()["state"] == "running");
    server.ok(&["stop", "shop"]);
    eventually("it is stopped, too", 15, || newest()["state"] == "stopped");
    let (code, said) = server.fails(&["run", "shop", "--", "true"]);
    assert!(code == 1 && said.contains("hutong start shop"), "{said}");
    let (_, said) = server.fails(&["run", "shop", "--cron", "nightly"]);
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn a_timed_job_runs_on_time_and_says_what_it_missed() {
    if !is_root() {
        return;
    }
    let mut server = Server::start();
    let toml = "name='clock'\n[cron.tick]\ncommand=['sh', '-c', 'echo tick; exec sleep 600']\nschedule='* * * * *'\nzone='Asia/Shanghai'\n";
    server.deploy(app_folder(&[("hutong.toml", toml)]).path());
    let deployed = Instant::now();
    // The one that is asked for goes on: the next time is left out.
    server.ok(&["run", "clock", "--cron", "tick", "--detach"]);
    let runs = |server: &Server| {
        server
            .json(&["runs", "clock"])
            .as_array()
            .cloned()
            .unwrap_or_default()
    };
    let with = |server: &Server, state: &str| {
        runs(server)
            .iter()
            .filter(|run| run["state"] == state)
            .count()
    };
    eventually("it runs", 10, || with(&server, "running") == 1);
    eventually("a minute is left out", 70, || with(&server, "skipped") == 1);
    let skipped = runs(&server)[0].clone();
    assert_eq!(
        skipped["due_at"].as_u64().map(|at| at % 60_000),
        Some(0),
        "{skipped}"
    );
    assert!(deployed.elapsed() < Duration::from_secs(65));
    let id = runs(&server)[1]["id"].to_string();
    server.ok(&["runs", "clock", "--stop", &id]);
    eventually("it is over", 15, || with(&server, "running") == 0);
    // An hour without a server.
    server.stop();
    let data = server.into_data();
    let store = data.path().join("control/state.db");
    let script = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('UPDATE cron SET seen_ms = seen_ms - 3600000'); c.commit()";
    let done = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(&store)
        .status();
    assert!(done.expect("python3 runs").success());
    let server = Server::start_in(data, &[]);
    eventually("what was missed is said", 10, || {
        with(&server, "missed") == 1
    });
    let missed = runs(&server)
        .into_iter()
        .find(|run| run["state"] == "missed")
        .expect("it is there");
    let detail = missed["detail"].as_str().unwrap_or_default();
    let count: u32 = detail
        .split(' ')
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or(0);
    assert!((58..=62).contains(&count), "{detail}");
    // The last one is not long ago: it is met.
    eventually("it runs", 10, || with(&server, "running") == 1);
    assert!(
        server
            .ok(&["logs", "clock", "--process", "tick"])
            .contains("tick")
    );
}

/// What keeps nearly all of its memory is replaced beside itself, and it is said why; the ten minutes are cut short.
#[test]
fn what_fills_its_memory_and_keeps_it_is_replaced() {
    if !is_root() {
        return;
    }
    let more = "[limits]\nmemory = '300M'\n";
    let app = python_app("leaky", more, "here");
    let rig = Rig::new("leaky", "leaky.test", app.path(), 1);
    let server = rig.server();
    let before = instances_of(server, "leaky", "web");
    assert!(server.app("leaky")["message"].is_null());
    rig.arm("control near its cap", 1, "eio");
    // 96 % by its own count, to which the kernel adds some.
    let fill = "import builtins\ndef held():\n    lines = open('/proc/self/status').readlines()\n    return next(int(line.split()[1]) for line in lines if line.startswith('RssAnon'))\nbuiltins.keep = []\nwhile held() < 289 << 10: builtins.keep.append(b'x' * (1 << 20))\nresult = held()";
    let said = get(&rig.http, "leaky.test", &format!("/eval?{}", escape(fill)));
    assert_eq!(said.status, 200, "{}", said.text());
    eventually("another takes its place", 40, || {
        assert_eq!(get(&rig.http, "leaky.test", "/").text(), "here");
        let now = instances_of(server, "leaky", "web");
        now.len() == 1 && now != before
    });
    assert!(rig.was_reached());
    let log = server.ok(&["logs", "leaky"]);
    assert!(log.contains("most likely it leaks"), "{log}");
    let shown = server.app("leaky");
    let message = shown["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("limits.memory") && shown["state"] == "running",
        "{shown}"
    );
    // Another release may be the remedy: it starts afresh.
    let folder = python_app("leaky", more, "mended");
    server.deploy(folder.path());
    assert!(server.app("leaky")["message"].is_null());
}
