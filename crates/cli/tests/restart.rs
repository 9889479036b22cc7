//! Any process of ours may be killed or replaced; what restarts finds the rest, and visitors do not notice.

use std::path::Path;
use std::time::Duration;

use hutong_testkit::server::{Server, app_folder, binary, python_app};
use hutong_testkit::traffic::{Report, Traffic};
use hutong_testkit::visitor::get;
use hutong_testkit::{eventually, is_root, kill};

/// Kills one of our processes and waits until another is in its place.
fn replace(server: &Server, role: &str) {
    let pid = server.role(role);
    kill(pid);
    eventually("another is in its place", 20, || {
        let listed = server.run(&["system", "--json"]);
        let text = String::from_utf8_lossy(&listed.stdout).into_owned();
        listed.status.success()
            && text.contains(&format!("\"role\": \"{role}\""))
            && !text.contains(&format!("\"pid\": {pid},"))
    });
}

fn is_healthy(server: &Server, app: &str) -> bool {
    server.app(app)["instances"][0]["state"] == "healthy"
}

/// The one instance of an app: it must stay the same, and alone.
fn only_instance(server: &Server, app: &str) -> String {
    let found = server.app(app)["instances"].clone();
    let list = found.as_array().expect("a list");
    assert_eq!(list.len(), 1, "{found}");
    list[0]["id"].as_str().expect("an id").to_owned()
}

fn lost_nothing(report: &Report) {
    assert!(report.failed.is_empty(), "{report:?}");
    assert_eq!(report.sent_again, 0, "{report:?}");
}

#[test]
fn control_may_be_killed_without_a_failed_request() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let app = python_app("one", "", "1");
    server.deploy(app.path());
    let before = only_instance(&server, "one");
    let traffic = Traffic::start(&server.http, "one.test", "/", 200, 4);
    traffic.goes_on(20);
    for _ in 0..3 {
        replace(&server, "control");
        traffic.goes_on(20);
    }
    eventually("it is known to be healthy", 20, || {
        is_healthy(&server, "one")
    });
    assert_eq!(only_instance(&server, "one"), before);
    server.deploy(app.path());
    lost_nothing(&traffic.finish());
}

#[test]
fn a_killed_gateway_loses_only_what_it_had_in_hand() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    server.deploy(python_app("one", "", "1").path());
    let before = only_instance(&server, "one");
    let traffic = Traffic::start(&server.http, "one.test", "/", 200, 8);
    for _ in 0..3 {
        traffic.goes_on(20);
        replace(&server, "gateway");
    }
    traffic.goes_on(100);
    // The warden holds the listening sockets: a new connection waits instead of being refused.
    let report = traffic.finish();
    // In hand is at most one request of each connection, each time.
    assert!(report.failed.values().sum::<usize>() <= 3 * 8, "{report:?}");
    let other = report.worse_than_cut();
    assert!(other.is_none(), "{report:?}");
    assert_eq!(only_instance(&server, "one"), before);
    // The one that took over goes before everybody else, too.
    let threads = std::fs::read_dir(format!("/proc/{}/task", server.role("gateway")));
    for thread in threads.expect("it runs").flatten() {
        let stat = std::fs::read_to_string(thread.path().join("stat")).expect("it runs");
        // The 19th field of proc_pid_stat(5); the second one, in brackets, may hold anything.
        let nice = stat
            .rsplit(") ")
            .next()
            .and_then(|rest| rest.split(' ').nth(16));
        assert_eq!(nice, Some("-5"), "{stat}");
    }
}

#[test]
fn a_killed_warden_is_followed_by_one_that_takes_everything_over() {
    if !is_root() {
        return;
    }
    let mut server = Server::start();
    server.deploy(python_app("one", "", "1").path());
    let before = only_instance(&server, "one");
    let http = server.http.clone();
    let traffic = Traffic::start(&http, "one.test", "/", 200, 8);
    for _ in 0..2 {
        server.kill();
        assert_eq!(
            get(&http, "one.test", "/").text(),
            "1",
            "gateway and app go on"
        );
        let data = std::mem::replace(&mut server.data, tempfile::tempdir().expect("tempdir"));
        server = Server::start_in(data, &["--http", &http]);
        eventually("the app is found", 20, || is_healthy(&server, "one"));
        assert_eq!(only_instance(&server, "one"), before);
        traffic.goes_on(50);
    }
    lost_nothing(&traffic.finish());
    // And it can be worked with.
    server.ok(&["restart", "one"]);
    eventually("the old instance is gone", 20, || {
        let instances = server.app("one")["instances"].clone();
        instances
            .as_array()
            .is_some_and(|list| list.len() == 1 && list[0]["id"] != before.as_str())
    });
    replace(&server, "gateway");
    assert_eq!(get(&http, "one.test", "/").text(), "1");
}

/// A server file with a mistaken port: what serves is not taken down for it.
#[test]
fn a_server_that_cannot_have_its_new_port_leaves_the_old_gateway_alone() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    server.deploy(python_app("one", "", "1").path());
    let (http, before) = (server.http.clone(), only_instance(&server, "one"));
    let traffic = Traffic::start(&http, "one.test", "/", 100, 4);
    let data = server.into_data();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").to_string();
    let refused = std::process::Command::new(binary())
        .args([
            "serve",
            "--config",
            "/dev/null",
            "--http",
            &port,
            "--data-dir",
        ])
        .arg(data.path())
        .output()
        .expect("hutong runs");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("serves on"),
        "{said}"
    );
    traffic.goes_on(20);
    let again = Server::start_in(data, &["--http", &http]);
    eventually("the app is found", 20, || is_healthy(&again, "one"));
    assert_eq!(only_instance(&again, "one"), before);
    lost_nothing(&traffic.finish());
}

#[test]
fn an_upgrade_in_place_loses_no_request_and_restarts_no_app() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().expect("tempdir");
    let program = folder.path().join("hutong");
    install(&program);
    let server = Server::start_binary(&program, &[]);
    server.deploy(python_app("one", "", "1").path());
    let site = "name = \"site\"\ndomains = [\"site.test\"]\nstatic = \".\"\n";
    server.deploy(app_folder(&[("hutong.toml", site), ("index.html", "hello")]).path());
    let before = only_instance(&server, "one");
    let (warden, gateway) = (server.pid(), server.role("gateway"));
    let one = Traffic::start(&server.http, "one.test", "/", 100, 4);
    let two = Traffic::start(&server.http, "site.test", "/", 100, 4);
    for _ in 0..2 {
        // As a package manager does it: another file takes the name.
        install(&program);
        let said = server.ok(&["upgrade"]);
        assert!(said.contains("every app ran on"), "{said}");
        one.goes_on(50);
        two.goes_on(50);
    }
    assert_eq!(
        server.role("warden"),
        warden,
        "the same process, for whoever supervises it"
    );
    assert_ne!(server.role("gateway"), gateway);
    assert_eq!(only_instance(&server, "one"), before);
    server.ok(&["restart", "one"]);
    lost_nothing(&one.finish());
    lost_nothing(&two.finish());
    eventually("the old gateways are gone", 40, || {
        gateways_of(&program) == 1
    });
    // What is no program, or no working one, does not take the server's place.
    for broken in ["#!/bin/sh\nexit 1\n", "not a program"] {
        let other = folder.path().join("other");
        std::fs::write(&other, broken).expect("write");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&other, mode).expect("chmod");
        std::fs::rename(&other, &program).expect("rename");
        // The command itself is another copy.
        let refused = std::process::Command::new(binary())
            .args(["upgrade", "--api", &server.api])
            .output()
            .expect("hutong runs");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            !refused.status.success() && said.contains("hutong"),
            "{said}"
        );
        assert_eq!(get(&server.http, "one.test", "/").text(), "1");
    }
    install(&program);
}

/// Requests that the old gateway holds, because the app's only instance is being replaced, are answered by
/// the new instance all the same.
#[test]
fn an_upgrade_in_the_middle_of_a_recreate_loses_no_request() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().expect("tempdir");
    let program = folder.path().join("hutong");
    install(&program);
    let server = Server::start_binary(&program, &[]);
    let app = python_app("solo", "data = true", "1");
    server.deploy(app.path());
    let path = app.path().join("app.py");
    let text = std::fs::read_to_string(&path).expect("read");
    let slow = text.replacen("import ", "import time; time.sleep(2)\nimport ", 1);
    std::fs::write(&path, slow).expect("write");
    let traffic = Traffic::start(&server.http, "solo.test", "/", 100, 8);
    traffic.goes_on(20);
    let mut deploy = server
        .command(&["deploy", &app.path().to_string_lossy()])
        .spawn()
        .expect("hutong runs");
    eventually("the old instance is gone", 20, || {
        let app = server.app("solo");
        app["deploying"].is_object() && app["instances"][0]["state"] == "starting"
    });
    install(&program);
    server.ok(&["upgrade"]);
    assert!(deploy.wait().expect("it ends").success());
    traffic.goes_on(50);
    lost_nothing(&traffic.finish());
}

fn install(program: &Path) {
    let fresh = program.with_extension("new");
    std::fs::copy(binary(), &fresh).expect("copy");
    std::fs::rename(&fresh, program).expect("rename");
}

/// Gateway processes that run this program, whichever of its files.
fn gateways_of(program: &Path) -> usize {
    let name = program.display().to_string();
    let entries = std::fs::read_dir("/proc").expect("proc").flatten();
    entries
        .filter(|entry| {
            let exe = std::fs::read_link(entry.path().join("exe")).unwrap_or_default();
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            exe.to_string_lossy().starts_with(&name) && line.starts_with(b"hutong gateway")
        })
        .count()
}

/// An app older than its start time-out must not be taken for one that never got healthy.
#[test]
fn an_old_app_survives_restarts_of_control_gateway_and_warden() {
    if !is_root() {
        return;
    }
    let mut server = Server::start();
    let start = Duration::from_millis(1500);
    server.deploy(python_app("old", "[timeouts]\nstart = \"1500ms\"", "o").path());
    let before = only_instance(&server, "old");
    // Time has to pass here: it is what the test is about.
    std::thread::sleep(start);
    for role in ["control", "gateway"] {
        replace(&server, role);
        std::thread::sleep(start);
        eventually("it is known to be healthy", 20, || {
            is_healthy(&server, "old")
        });
        assert_eq!(only_instance(&server, "old"), before, "{role}");
    }
    let http = server.http.clone();
    server.kill();
    let data = std::mem::replace(&mut server.data, tempfile::tempdir().expect("tempdir"));
    let again = Server::start_in(data, &["--http", &http]);
    std::thread::sleep(start);
    assert_eq!(only_instance(&again, "old"), before);
    assert_eq!(get(&again.http, "old.test", "/").text(), "o");
}
