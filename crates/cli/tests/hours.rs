//! Apps whose owners' hours say when they are woken, and when they do not run.

use std::time::{SystemTime, UNIX_EPOCH};

use hutong_testkit::server::{Server, app_folder, python_app};
use hutong_testkit::visitor::get;
use hutong_testkit::{eventually, is_root, kill};

/// `HH:MM` in UTC, so many minutes from now.
fn clock(from_now: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let minutes = now.expect("after 1970").as_secs() as i64 / 60 + from_now;
    let of_day = minutes.rem_euclid(24 * 60);
    format!("{:02}:{:02}", of_day / 60, of_day % 60)
}

/// Nothing of it is left.
fn is_gone(server: &Server, app: &str) -> bool {
    let shown = server.app(app);
    shown["instances"].as_array().is_some_and(Vec::is_empty)
}

fn instances_started(server: &Server, app: &str) -> usize {
    let log = server.ok(&["logs", app, "-n", "1000"]);
    log.matches("was started").count()
}

#[test]
fn in_its_hours_nothing_of_it_runs() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let end = clock(30);
    let more = format!(
        "[sleep]\nafter='1h'\ndown=['{}-{end}']\n[workers.mail]\ncommand='sleep 1000'\n",
        clock(-5)
    );
    // It is tried at any hour.
    server.deploy(python_app("night", &more, "hello").path());
    eventually("it is down", 30, || {
        server.app("night")["state"] == "down" && is_gone(&server, "night")
    });
    let answer = get(&server.http, "night.test", "/");
    assert_eq!(answer.status, 503);
    let seconds: u64 = answer
        .header("retry-after")
        .and_then(|text| text.parse().ok())
        .expect("it says when");
    assert!((20 * 60..=30 * 60 + 1).contains(&seconds), "{seconds}");
    let until = format!("down until {end} UTC");
    assert!(answer.text().contains(&until), "{}", answer.text());
    assert!(server.ok(&["status", "night"]).contains(&until));
    assert!(server.ok(&["logs", "night"]).contains(&until));
    // Neither visitors nor another control plane wake it.
    let before = instances_started(&server, "night");
    let old = server.role("control");
    kill(old);
    eventually("another control plane looks after it", 20, || {
        server.run(&["apps"]).status.success()
            && server.role("control") != old
            && server.app("night")["state"] == "down"
    });
    assert_eq!(get(&server.http, "night.test", "/").status, 503);
    assert!(is_gone(&server, "night"));
    assert_eq!(instances_started(&server, "night"), before);
    // With other hours it runs again.
    let more = format!(
        "[sleep]\nafter='1h'\ndown=['{}-{}']\n[workers.mail]\ncommand='sleep 1000'\n",
        clock(60),
        clock(120)
    );
    server.deploy(python_app("night", &more, "hello").path());
    assert_eq!(get(&server.http, "night.test", "/").status, 200);
    eventually("its worker runs", 20, || {
        server.app("night")["processes"][0]["running"] == 1
    });
}

#[test]
fn it_is_woken_before_anybody_asks() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let more = "[sleep]\nafter='1s'\nwake=['* * * * *']\n";
    server.deploy(python_app("early", more, "hello").path());
    let sleeps = || server.app("early")["state"] == "asleep" && is_gone(&server, "early");
    eventually("it sleeps", 30, sleeps);
    let before = instances_started(&server, "early");
    // The last minute began while nobody looked, as far as the next control plane knows.
    let old = server.role("control");
    kill(old);
    eventually("it is woken", 30, || {
        server.run(&["apps"]).status.success() && instances_started(&server, "early") > before
    });
    assert!(
        server
            .ok(&["logs", "early"])
            .contains("is woken before anybody asks")
    );
    eventually("it sleeps again", 30, sleeps);
}

#[test]
fn what_are_no_hours() {
    let server = Server::start();
    for (hours, said) in [
        ("down=['23-06']", "6:7: `23-06` is no part of the day"),
        (
            "down=['00:00-24:00']",
            "6:7: this leaves no time of the day",
        ),
        ("wake=['soon']", "6:7: `soon` is no cron expression"),
        ("zone='UTC'", "6:6: `zone` goes with `wake` or `down`"),
        (
            "wake=['@daily']\nzone='Mars'",
            "7:6: `Mars` is no time zone",
        ),
    ] {
        let spec =
            format!("name='a'\ncommand='x'\ndomains=['a.test']\n[sleep]\nafter='1m'\n{hours}");
        let folder = app_folder(&[("hutong.toml", &spec)]);
        let (code, text) = server.fails(&["check", &folder.path().display().to_string()]);
        assert!(code == 4 && text.contains(said), "{text}");
    }
}
