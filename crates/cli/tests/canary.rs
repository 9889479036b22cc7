//! Releases on trial, and the way back: what visitors get, what is decided, and what outlives a killed control plane.

use hutong_testkit::server::{Server, python_app};
use hutong_testkit::traffic::Traffic;
use hutong_testkit::trial::{begin, canary, is_tried, release, visitors};
use hutong_testkit::visitor::{ask, get};
use hutong_testkit::{eventually, is_root, kill};

/// A canary that goes no further by itself while a test looks.
const STAYS: &str = "strategy = \"canary\"\n[canary]\nsteps = [5, 25, 100]\nevery = \"1h\"\nheader = \"x-try: me\"\ncookie = \"try=me\"";

fn is_over(server: &Server, app: &str) -> bool {
    server.app(app)["deploying"].is_null()
}

#[test]
fn one_of_twenty_visitors_gets_a_canary_and_gets_it_again() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let app = python_app("shared", STAYS, "one");
    server.deploy(app.path());
    let answer = get(&server.http, "shared.test", "/");
    assert_eq!(answer.header("set-cookie"), None, "nothing is on trial");
    release(app.path(), "two", 0.0, 1);
    begin(&server, app.path());
    is_tried(&server, "shared", 5);
    let found = visitors(&server, "shared.test", 1000, "two");
    assert!((40..=60).contains(&found), "{found} of 1000");
    let mut both = std::collections::BTreeSet::new();
    for _ in 0..200 {
        let first = get(&server.http, "shared.test", "/");
        let cookie = first.header("set-cookie").expect("a place");
        assert!(cookie.contains("HttpOnly; SameSite=Lax"), "{cookie}");
        let place = cookie.split(';').next().expect("a cookie");
        if !both.insert(first.text()) {
            continue;
        }
        for _ in 0..20 {
            let again = ask(
                &server.http,
                "shared.test",
                "/",
                &format!("Cookie: {place}\r\n"),
            );
            assert_eq!(again.text(), first.text());
            assert_eq!(again.header("set-cookie"), None);
        }
    }
    assert_eq!(both.len(), 2);
    for tester in ["X-Try: me\r\n", "Cookie: a=b; try=me\r\n"] {
        let answer = ask(&server.http, "shared.test", "/", tester);
        assert_eq!(answer.text(), "two");
    }
    let shown = server.ok(&["status", "shared"]);
    assert!(
        shown.contains("release 2 gets 5 % of the visitors"),
        "{shown}"
    );
    // The judge has nothing against it, and its owner is in a hurry.
    server.ok(&["promote", "shared"]);
    let answer = get(&server.http, "shared.test", "/");
    assert_eq!(
        (answer.text().as_str(), answer.header("set-cookie")),
        ("two", None)
    );
    let (_, said) = server.fails(&["promote", "shared"]);
    assert!(said.contains("no release of shared is on trial"), "{said}");
}

#[test]
fn a_canary_that_fails_3_percent_is_rolled_back_within_a_minute() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let settings = "strategy = \"canary\"\n[canary]\nevery = \"1m\"";
    let app = python_app("frail", settings, "one");
    server.deploy(app.path());
    let traffic = Traffic::start(&server.http, "frail.test", "/", 200, 40);
    release(app.path(), "two", 0.03, 7);
    begin(&server, app.path());
    is_tried(&server, "frail", 5);
    eventually("it is rolled back", 60, || is_over(&server, "frail"));
    let app = server.app("frail");
    assert_eq!(
        (&app["release"], &app["state"]),
        (&1.into(), &"running".into())
    );
    let (state, why) = (
        &app["canary"]["state"],
        app["canary"]["decision"].to_string(),
    );
    assert!(
        state == "failed" && why.contains("of its requests failed"),
        "{why}"
    );
    assert_eq!(visitors(&server, "frail.test", 50, "one"), 50);
    let report = traffic.finish();
    let other = report.failed.keys().find(|what| !what.starts_with("500"));
    assert!(other.is_none(), "{report:?}");
    let logs = server.ok(&["logs", "frail"]);
    assert!(logs.contains("it gets 5 % of the visitors"), "{logs}");
    assert!(logs.contains("is rolled back"), "{logs}");
}

#[test]
fn a_canary_that_is_merely_new_takes_over_step_by_step() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let settings = "strategy = \"canary\"\n[canary]\nsteps = [20, 50, 100]\nevery = \"2s\"\nmin_requests = 100";
    let app = python_app("sound", settings, "one");
    server.deploy(app.path());
    let traffic = Traffic::start(&server.http, "sound.test", "/", 200, 40);
    release(app.path(), "two", 0.0, 1);
    // Waits until it serves all.
    server.deploy(app.path());
    assert_eq!(visitors(&server, "sound.test", 20, "two"), 20);
    let report = traffic.finish();
    assert!(
        report.failed.is_empty() && report.bodies.len() == 2,
        "{report:?}"
    );
    let logs = server.ok(&["logs", "sound"]);
    for step in ["20 → 50 % of the visitors", "50 → 100 % of the visitors"] {
        assert!(logs.contains(step), "{logs}");
    }
    // What served before is not tried out once more.
    server.ok(&["rollback", "sound"]);
    assert_eq!(get(&server.http, "sound.test", "/").text(), "one");
}

#[test]
fn a_canary_outlives_control_and_ends_with_its_owners_word_or_a_newer_release() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let app = python_app("told", STAYS, "one");
    server.deploy(app.path());
    let (_, said) = server.fails(&["abort", "told"]);
    assert!(
        said.contains("no deployment of told is under way"),
        "{said}"
    );
    release(app.path(), "two", 0.0, 1);
    begin(&server, app.path());
    is_tried(&server, "told", 5);
    let before = canary(&server, "told");
    kill(server.role("control"));
    is_tried(&server, "told", 5);
    let after = canary(&server, "told");
    assert_eq!(before["deployment"], after["deployment"]);
    let lasted = |canary: &serde_json::Value| canary["elapsed_ms"].as_u64().expect("known");
    assert!(
        lasted(&after) >= lasted(&before),
        "the step goes on: {after}"
    );
    assert_eq!(
        ask(&server.http, "told.test", "/", "X-Try: me\r\n").text(),
        "two"
    );
    // The way back is the one of any release.
    let said = server.ok(&["rollback", "told"]);
    assert!(said.contains("release 1 of told serves"), "{said}");
    assert_eq!(
        ask(&server.http, "told.test", "/", "X-Try: me\r\n").text(),
        "one"
    );
    eventually("the canary is gone", 20, || {
        server.app("told")["instances"].as_array().map(Vec::len) == Some(1)
    });
    release(app.path(), "three", 0.0, 1);
    begin(&server, app.path());
    is_tried(&server, "told", 5);
    release(app.path(), "four", 0.0, 1);
    let output = server.run(&["deploy", "--detach", &app.path().to_string_lossy()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("the canary of release 3 ends"), "{said}");
    is_tried(&server, "told", 5);
    let tester = || ask(&server.http, "told.test", "/", "X-Try: me\r\n").text();
    eventually("the newer one is on trial", 20, || tester() == "four");
    let said = server.ok(&["abort", "told"]);
    assert!(said.contains("release 1 serves on"), "{said}");
    assert_eq!(tester(), "one");
    assert_eq!(canary(&server, "told")["state"], "failed");
}

#[test]
fn the_release_before_a_blue_green_one_serves_again_at_once() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let settings = "strategy = \"blue-green\"\n[timeouts]\nkeep = \"10m\"";
    let app = python_app("pair", settings, "one");
    server.deploy(app.path());
    let instance = |release: u64| {
        let app = server.app("pair");
        let list = app["instances"].as_array().cloned().unwrap_or_default();
        let found = list.into_iter().find(|one| one["release"] == release);
        found.map(|one| one["id"].to_string())
    };
    let first = instance(1);
    release(app.path(), "two", 0.0, 1);
    let traffic = Traffic::start(&server.http, "pair.test", "/", 200, 40);
    server.deploy(app.path());
    assert_eq!(visitors(&server, "pair.test", 20, "two"), 20);
    assert_eq!(server.app("pair")["standby"]["release"], 1);
    // It is the store that remembers.
    kill(server.role("control"));
    eventually("control is back", 20, || {
        server.app("pair")["standby"]["release"] == 1
    });
    server.ok(&["rollback", "pair"]);
    assert_eq!(visitors(&server, "pair.test", 20, "one"), 20);
    assert_eq!(instance(1), first, "nothing was started");
    eventually("the other one ends", 20, || instance(2).is_none());
    assert!(server.app("pair")["standby"].is_null());
    let report = traffic.finish();
    assert!(report.failed.is_empty(), "{report:?}");
}

#[test]
fn what_was_kept_ready_ends_when_its_time_is_over() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let settings = "strategy = \"blue-green\"\n[timeouts]\nkeep = \"1s\"";
    let app = python_app("brief", settings, "one");
    server.deploy(app.path());
    release(app.path(), "two", 0.0, 1);
    server.deploy(app.path());
    eventually("one is left", 20, || {
        let app = server.app("brief");
        app["standby"].is_null() && app["instances"].as_array().map(Vec::len) == Some(1)
    });
    server.ok(&["rollback", "brief"]);
    assert_eq!(get(&server.http, "brief.test", "/").text(), "one");
}

#[test]
fn a_dry_run_says_how_a_release_would_take_over() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let app = python_app("dry", STAYS, "one");
    let dry =
        |folder: &std::path::Path| server.ok(&["deploy", "--dry-run", &folder.to_string_lossy()]);
    let said = dry(app.path());
    assert!(
        !said.contains("of the visitors"),
        "the first has nobody beside it: {said}"
    );
    server.deploy(app.path());
    let said = dry(app.path());
    for step in ["give it 5 % of the visitors for 1h0m", "give it 25 %"] {
        assert!(said.contains(step), "{said}");
    }
    let other = python_app("dry", "strategy = \"blue-green\"", "two");
    let file = other.path().join("hutong.toml");
    let text = std::fs::read_to_string(&file).expect("read");
    std::fs::write(file, text.replace("dry.test", "wet.test")).expect("write");
    let said = dry(other.path());
    for step in [
        "keep the old release ready for 10m",
        "answer no more for dry.test",
    ] {
        assert!(said.contains(step), "{said}");
    }
    assert_eq!(server.app("dry")["release"], 1);
}
