//! Any process of ours may be killed; what restarts finds the rest.

use std::time::Duration;

use hutong_testkit::server::{Server, python_app};
use hutong_testkit::traffic::Traffic;
use hutong_testkit::visitor::get;
use hutong_testkit::{eventually, is_root};

fn kill(server: &Server, role: &str) -> u64 {
    let system = server.json(&["system"]);
    let process = system
        .as_array()
        .expect("list")
        .iter()
        .find(|p| p["role"] == role)
        .cloned()
        .expect("the role");
    let pid = process["pid"].as_u64().expect("a pid");
    let target = rustix::process::Pid::from_raw(pid as i32).expect("positive");
    rustix::process::kill_process(target, rustix::process::Signal::KILL).expect("kill");
    pid
}

#[test]
fn control_may_be_killed_without_a_failed_request() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let app = python_app("one", "", "1");
    server.deploy(app.path());
    let before = server.app("one")["instances"][0]["id"].clone();
    let traffic = Traffic::start(&server.http, "one.test", "/", 200, 4);
    for _ in 0..3 {
        let pid = kill(&server, "control");
        eventually("control is back", 20, || {
            let output = server.run(&["system", "--json"]);
            output.status.success()
                && !String::from_utf8_lossy(&output.stdout).contains(&format!("\"pid\": {pid},"))
        });
    }
    eventually("it is known to be healthy", 20, || {
        server.app("one")["instances"][0]["state"] == "healthy"
    });
    assert_eq!(
        server.app("one")["instances"][0]["id"],
        before,
        "no second copy, no restart"
    );
    server.deploy(app.path());
    let report = traffic.finish();
    assert!(report.failed.is_empty(), "{report:?}");
}

#[test]
fn a_killed_gateway_is_back_at_once_with_the_same_routes() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    server.deploy(python_app("one", "", "1").path());
    kill(&server, "gateway");
    // The warden holds the listening sockets: a new connection waits instead of being refused.
    assert_eq!(get(&server.http, "one.test", "/").text(), "1");
}

#[test]
fn apps_outlive_a_killed_warden_and_are_found_again() {
    if !is_root() {
        return;
    }
    let mut server = Server::start();
    server.deploy(python_app("one", "", "1").path());
    let before = server.app("one")["instances"][0]["id"].clone();
    let http = server.http.clone();
    server.kill();
    assert_eq!(
        get(&http, "one.test", "/").text(),
        "1",
        "gateway and app go on"
    );
    let data = std::mem::replace(&mut server.data, tempfile::tempdir().expect("tempdir"));
    let again = Server::start_in(data, &["--http", &http]);
    eventually("the app is found", 20, || {
        again.app("one")["instances"][0]["state"] == "healthy"
    });
    assert_eq!(again.app("one")["instances"][0]["id"], before);
    assert_eq!(get(&again.http, "one.test", "/").text(), "1");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(
        again.app("one")["instances"].as_array().map(Vec::len),
        Some(1)
    );
}

/// An app older than its start time-out must not be taken for one that never got healthy.
#[test]
fn an_old_app_survives_restarts_of_control_gateway_and_warden() {
    if !is_root() {
        return;
    }
    let mut server = Server::start();
    server.deploy(python_app("old", "[timeouts]\nstart = \"600ms\"", "o").path());
    let before = server.app("old")["instances"][0]["id"].clone();
    std::thread::sleep(Duration::from_millis(900));
    for role in ["control", "gateway"] {
        kill(&server, role);
        std::thread::sleep(Duration::from_millis(800));
        eventually("the API answers", 20, || {
            server.run(&["apps"]).status.success()
        });
        assert_eq!(get(&server.http, "old.test", "/").text(), "o", "{role}");
    }
    let http = server.http.clone();
    server.kill();
    let data = std::mem::replace(&mut server.data, tempfile::tempdir().expect("tempdir"));
    let again = Server::start_in(data, &["--http", &http]);
    std::thread::sleep(Duration::from_millis(900));
    assert_eq!(again.app("old")["instances"][0]["id"], before);
    assert_eq!(get(&again.http, "old.test", "/").text(), "o");
}
