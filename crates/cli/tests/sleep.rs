//! Apps that sleep while nobody asks for them, and are woken by the first who does.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use hutong_testkit::server::{Server, app_folder, python_app};
use hutong_testkit::visitor::{ask, get};
use hutong_testkit::{eventually, is_root, kill};

fn state(server: &Server, app: &str) -> String {
    server.app(app)["state"].as_str().unwrap_or_default().into()
}

/// Asleep, and nothing of it is left.
fn sleeps(server: &Server, app: &str) -> bool {
    let shown = server.app(app);
    shown["state"] == "asleep" && shown["instances"].as_array().is_some_and(Vec::is_empty)
}

fn instances_started(server: &Server, app: &str) -> usize {
    let log = server.ok(&["logs", app, "-n", "1000"]);
    log.matches("was started").count()
}

#[test]
fn nobody_asks_and_then_many_do() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    server.deploy(python_app("lazy", "[sleep]\nafter='1s'\n", "hello").path());
    eventually("it sleeps", 20, || sleeps(&server, "lazy"));
    let doctor = server.ok(&["doctor", "--leaks"]);
    assert!(doctor.contains("nothing lies around"), "{doctor}");
    let shims = server.json(&["system"]);
    assert!(
        !shims.to_string().contains("\"lazy\""),
        "no process is left: {shims}"
    );
    // All who come while it wakes wait, and it is woken once.
    let before = instances_started(&server, "lazy");
    std::thread::scope(|scope| {
        let many: Vec<_> = (0..30)
            .map(|_| scope.spawn(|| get(&server.http, "lazy.test", "/")))
            .collect();
        for one in many {
            let answer = one.join().expect("no panic");
            assert_eq!((answer.status, answer.text().as_str()), (200, "hello"));
        }
    });
    assert_eq!(instances_started(&server, "lazy"), before + 1);
    assert_eq!(state(&server, "lazy"), "running");
    // What is under way keeps it awake, however long it takes.
    assert_eq!(get(&server.http, "lazy.test", "/slow?4").status, 200);
    assert_eq!(instances_started(&server, "lazy"), before + 1);
    eventually("it sleeps again", 20, || sleeps(&server, "lazy"));
    the_owner_wants_it_up(&server);
}

/// Whoever starts it or runs something in it finds it awake, and for a while.
fn the_owner_wants_it_up(server: &Server) {
    let stays = |what: &str, before: usize| {
        let until = Instant::now() + Duration::from_millis(700);
        eventually(what, 20, || state(server, "lazy") == "running");
        while Instant::now() < until {
            assert_eq!(state(server, "lazy"), "running", "{what}");
        }
        assert_eq!(instances_started(server, "lazy"), before + 1, "{what}");
    };
    let before = instances_started(server, "lazy");
    server.ok(&["start", "lazy"]);
    stays("it was started", before);
    server.ok(&["stop", "lazy"]);
    eventually("it is stopped", 20, || {
        server.app("lazy")["instances"]
            .as_array()
            .is_some_and(Vec::is_empty)
    });
    // Nobody has asked for it for long.
    let since = Instant::now();
    eventually("a while", 10, || since.elapsed() > Duration::from_secs(2));
    let before = instances_started(server, "lazy");
    server.ok(&["start", "lazy"]);
    stays("it was stopped and started", before);
    eventually("it sleeps", 20, || sleeps(server, "lazy"));
    let before = instances_started(server, "lazy");
    // Longer than it would be awake for nobody.
    assert_eq!(
        server.ok(&["exec", "lazy", "--", "sh", "-c", "sleep 4; echo done"]),
        "done\n"
    );
    assert_eq!(instances_started(server, "lazy"), before + 1);
    eventually("it sleeps", 20, || sleeps(server, "lazy"));
}

/// Who comes at the very moment in which it falls asleep.
#[test]
fn on_the_edge_of_sleep() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let more = "data=true\ninstances=1\n[sleep]\nafter='1s'\n[timeouts]\ndrain='0s'\n";
    server.deploy(python_app("lazy", more, "hello").path());
    for tenths in 0..16 {
        let gap = Duration::from_millis(900 + 100 * tenths);
        let since = Instant::now();
        eventually("some time passes", 10, || since.elapsed() >= gap);
        let answer = get(&server.http, "lazy.test", "/slow?0.6");
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (200, "slow"),
            "{gap:?}"
        );
    }
    // The gateway dies while it sleeps.
    eventually("it sleeps", 20, || sleeps(&server, "lazy"));
    kill(server.role("gateway"));
    assert_eq!(get(&server.http, "lazy.test", "/").status, 200);
}

/// A WebSocket is somebody who is there; whoever is kept out is nobody.
#[test]
fn who_counts() {
    if !is_root() {
        return;
    }
    let more = "[sleep]\nafter='1s'\n[traffic]\ndeny=['10.0.0.0/8']\n";
    let own = tempfile::tempdir().expect("tempdir");
    let config = own.path().join("server.toml");
    std::fs::write(&config, "trusted_proxies = ['127.0.0.1']\n").expect("write");
    let server = Server::start_with(&["--config", &config.display().to_string()]);
    server.deploy(python_app("lazy", more, "hello").path());
    let mut socket = TcpStream::connect(&server.http).expect("connect");
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("a time-out");
    socket
        .write_all(b"GET /ws HTTP/1.1\r\nHost: lazy.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n")
        .expect("write");
    let mut head = [0; 12];
    socket.read_exact(&mut head).expect("an answer");
    assert_eq!(&head, b"HTTP/1.1 101");
    // Three times as long as it would take.
    let until = Instant::now() + Duration::from_secs(3);
    eventually("a while passes, and it is awake", 10, || {
        assert_eq!(state(&server, "lazy"), "running");
        Instant::now() > until
    });
    // Stopped and started before it was cut: it is still there, and counts.
    server.ok(&["stop", "lazy"]);
    server.ok(&["start", "lazy"]);
    let until = Instant::now() + Duration::from_secs(3);
    eventually("a while passes, and it is still awake", 10, || {
        assert_ne!(state(&server, "lazy"), "asleep");
        Instant::now() > until
    });
    drop(socket);
    eventually("it sleeps", 20, || sleeps(&server, "lazy"));
    let kept_out = ask(
        &server.http,
        "lazy.test",
        "/",
        "X-Forwarded-For: 10.0.0.1\r\n",
    );
    assert_eq!(kept_out.status, 403);
    let (before, since) = (instances_started(&server, "lazy"), Instant::now());
    eventually("it would have been woken", 10, || {
        since.elapsed() > Duration::from_secs(2)
    });
    assert!(sleeps(&server, "lazy"));
    assert_eq!(instances_started(&server, "lazy"), before);
}

/// The control plane dies while somebody waits, and while the app sleeps.
#[test]
fn waking_outlives_the_control_plane() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    server.deploy(python_app("lazy", "[sleep]\nafter='1s'\n", "hello").path());
    for _ in 0..5 {
        eventually("it sleeps", 30, || sleeps(&server, "lazy"));
        std::thread::scope(|scope| {
            let visit = scope.spawn(|| get(&server.http, "lazy.test", "/").status);
            kill(server.role("control"));
            assert_eq!(visit.join().expect("no panic"), 200);
        });
    }
    // One that sleeps is not started by a control plane that is new.
    eventually("it sleeps", 30, || sleeps(&server, "lazy"));
    let before = instances_started(&server, "lazy");
    let old = server.role("control");
    kill(old);
    eventually("another control plane looks after it", 20, || {
        server.run(&["apps"]).status.success()
            && server.role("control") != old
            && sleeps(&server, "lazy")
    });
    assert_eq!(instances_started(&server, "lazy"), before);
}

#[test]
fn an_app_that_does_not_wake_says_so() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let more = "data=true\n[sleep]\nafter='1s'\n[timeouts]\nstart='3s'\n";
    let folder = python_app("lazy", more, "hello");
    let program = std::fs::read_to_string(folder.path().join("app.py")).expect("read");
    let program = format!(
        "import os\nif os.path.exists('/data/broken'): raise SystemExit('no strength today')\n{program}"
    );
    std::fs::write(folder.path().join("app.py"), program).expect("write");
    server.deploy(folder.path());
    server.ok(&["exec", "lazy", "--", "touch", "/data/broken"]);
    eventually("it sleeps", 20, || sleeps(&server, "lazy"));
    let answer = get(&server.http, "lazy.test", "/");
    assert_eq!(answer.status, 503);
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    assert!(!answer.text().contains("strength"), "{}", answer.text());
    let shown = server.app("lazy");
    assert_eq!(shown["state"], "failing");
    assert!(server.ok(&["logs", "lazy"]).contains("no strength today"));
    // Nobody asks any more: it does not try for ever.
    eventually("it sleeps", 30, || sleeps(&server, "lazy"));
    // That it failed last time is no reason not to wait for it this time.
    let data = server.data.path().join("data/lazy/broken");
    std::fs::remove_file(data).expect("removed");
    assert_eq!(get(&server.http, "lazy.test", "/").status, 200);
}

#[test]
fn a_deployment_needs_nobody_to_wake_what_was_before() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    server.deploy(python_app("lazy", "[sleep]\nafter='1s'\n", "one").path());
    eventually("it sleeps", 20, || sleeps(&server, "lazy"));
    let before = instances_started(&server, "lazy");
    server.deploy(python_app("lazy", "[sleep]\nafter='1s'\n", "two").path());
    assert_eq!(instances_started(&server, "lazy"), before + 1);
    assert_eq!(get(&server.http, "lazy.test", "/").text(), "two");
    eventually("it sleeps", 20, || sleeps(&server, "lazy"));
    // While a release is tried that never serves, the one before it is there for whoever comes.
    let folder = python_app(
        "lazy",
        "[sleep]\nafter='1s'\n[timeouts]\nstart='20s'\n",
        "three",
    );
    std::fs::write(
        folder.path().join("app.py"),
        "import time\ntime.sleep(60)\n",
    )
    .expect("write");
    std::thread::scope(|scope| {
        let path = folder.path().display().to_string();
        let server = &server;
        let tried = scope.spawn(move || server.run(&["deploy", &path]).status.success());
        eventually("it is under way", 20, || {
            server.app("lazy")["deploying"].is_object()
        });
        let since = Instant::now();
        assert_eq!(get(&server.http, "lazy.test", "/").text(), "two");
        assert!(since.elapsed() < Duration::from_secs(10));
        assert!(!tried.join().expect("no panic"));
    });
}

#[test]
fn what_cannot_sleep() {
    let server = Server::start();
    for (spec, said) in [
        (
            "name='a'\nstatic='.'\ndomains=['a.test']\n[sleep]\nafter='1m'",
            "5:7: `sleep` goes with `command`",
        ),
        (
            "name='a'\ncommand='x'\n[sleep]\nafter='1m'",
            "4:7: `sleep` goes with `domains`",
        ),
        (
            "name='a'\ncommand='x'\ndomains=['a.test']\n[sleep]\nafter='0s'",
            "5:7: must be 1s to 30d",
        ),
        (
            "name='a'\ncommand='x'\ndomains=['a.test']\n[sleep]\n",
            "after",
        ),
    ] {
        let folder = app_folder(&[("hutong.toml", spec)]);
        let (code, text) = server.fails(&["check", &folder.path().display().to_string()]);
        assert!(code == 4 && text.contains(said), "{text}");
    }
}
