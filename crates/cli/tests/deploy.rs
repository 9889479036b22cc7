//! Deploys as their owner sees them: nothing lost, the old release serves until the new one can.

use std::path::Path;

use hutong_testkit::server::{Server, python_app};
use hutong_testkit::traffic::Traffic;
use hutong_testkit::visitor::get;
use hutong_testkit::{eventually, is_root};

fn change(folder: &Path, from: &str, to: &str) {
    let path = folder.join("app.py");
    let text = std::fs::read_to_string(&path).expect("read");
    std::fs::write(path, text.replace(from, to)).expect("write");
}

#[test]
fn rolling_deploy_and_rollback_lose_no_request_under_load() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let app = python_app("roll", "instances = 2", "release-one");
    server.deploy(app.path());
    let traffic = Traffic::start(&server.http, "roll.test", "/", 200, 40);
    eventually("traffic is answered", 10, || {
        get(&server.http, "roll.test", "/").status == 200
    });
    change(app.path(), "release-one", "release-two");
    server.deploy(app.path());
    assert_eq!(get(&server.http, "roll.test", "/").text(), "release-two");
    server.ok(&["rollback", "roll"]);
    assert_eq!(get(&server.http, "roll.test", "/").text(), "release-one");
    server.ok(&["restart", "roll"]);
    for _ in 0..3 {
        server.ok(&["rollback", "roll", "2"]);
        server.ok(&["rollback", "roll", "1"]);
    }
    let report = traffic.finish();
    assert!(report.failed.is_empty(), "{report:?}");
    assert!(
        report.answered > 100 && report.bodies.len() == 2,
        "{report:?}"
    );
    let releases = server.json(&["releases", "roll"]);
    let states: Vec<_> = releases
        .as_array()
        .expect("list")
        .iter()
        .map(|r| (r["id"].clone(), r["state"].clone()))
        .collect();
    assert_eq!(
        states,
        [(2.into(), "kept".into()), (1.into(), "active".into())]
    );
}

#[test]
fn a_recreate_app_waits_and_loses_no_request_and_keeps_its_data() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let app = python_app("data", "data = true", "one");
    server.deploy(app.path());
    assert_eq!(get(&server.http, "data.test", "/count").text(), "1");
    let traffic = Traffic::start(&server.http, "data.test", "/", 200, 40);
    change(app.path(), "\"one\"", "\"two\"");
    server.deploy(app.path());
    server.ok(&["rollback", "data"]);
    let report = traffic.finish();
    assert!(report.failed.is_empty(), "{report:?}");
    assert_eq!(get(&server.http, "data.test", "/count").text(), "2");
    server.ok(&["remove", "data"]);
    eventually("it is gone", 10, || {
        get(&server.http, "data.test", "/").status == 404
    });
    server.deploy(app.path());
    assert_eq!(
        get(&server.http, "data.test", "/count").text(),
        "3",
        "a week of grace"
    );
    server.ok(&["remove", "data", "--purge"]);
    let folder = server.data.path().join("data/data");
    eventually("the data is deleted", 10, || !folder.exists());
}

#[test]
fn a_release_that_fails_leaves_the_old_one_serving_and_says_why() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let app = python_app("frail", "[timeouts]\nstart = \"3s\"", "good");
    server.deploy(app.path());
    change(
        app.path(),
        "main()\n",
        "print('a word before the end'); sys.exit(3)\nmain()\n",
    );
    // The first `main()` is in `def main():`; both are replaced, which is an error of its own kind.
    let (code, said) = server.fails(&["deploy", &app.path().to_string_lossy()]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("release 2 of frail is not served"), "{said}");
    assert_eq!(get(&server.http, "frail.test", "/").text(), "good");
    let status = server.app("frail");
    assert_eq!(
        (&status["state"], &status["release"]),
        (&"running".into(), &1.into())
    );
    let releases = server.json(&["releases", "frail"]);
    assert_eq!(releases[0]["state"], "failed");
}

#[test]
fn the_last_words_of_what_failed_are_shown() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let app = hutong_testkit::server::app_folder(&[(
        "hutong.toml",
        "name='w'\ncommand=['python3','-c','import sys; print(\"key missing\"); sys.exit(3)']",
    )]);
    let (_, said) = server.fails(&["deploy", &app.path().to_string_lossy()]);
    assert!(
        said.contains("key missing") && said.contains("exited with code 3"),
        "{said}"
    );
}

#[test]
fn the_same_content_is_kept_once_and_old_releases_go() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let app = python_app("many", "", "r0");
    server.deploy(app.path());
    server.deploy(app.path());
    let trees = || {
        std::fs::read_dir(server.data.path().join("trees"))
            .expect("trees")
            .count()
    };
    assert_eq!(trees(), 1);
    for n in 1..=5 {
        change(app.path(), &format!("r{}", n - 1), &format!("r{n}"));
        server.deploy(app.path());
    }
    let list = server.json(&["releases", "many"]);
    assert_eq!(list.as_array().map(Vec::len), Some(5), "{list}");
    let (_, said) = server.fails(&["rollback", "many", "1"]);
    assert!(said.contains("keeps no release 1"), "{said}");
    server.ok(&["rollback", "many", "4"]);
    assert_eq!(get(&server.http, "many.test", "/").text(), "r2");
}

#[test]
fn variables_scale_stop_and_start() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let app = python_app("knobs", "[env]\nCOLOUR = \"red\"", "x");
    server.deploy(app.path());
    let env = || get(&server.http, "knobs.test", "/env").text();
    assert!(env().contains("\"COLOUR\": \"red\""));
    server.ok(&[
        "env",
        "set",
        "knobs",
        "COLOUR=blue",
        "SECRET_WORD=courtyard",
    ]);
    assert!(env().contains("\"COLOUR\": \"blue\"") && env().contains("courtyard"));
    let listed = server.ok(&["env", "list", "knobs"]);
    assert!(
        listed.contains("SECRET_WORD") && !listed.contains("courtyard"),
        "{listed}"
    );
    let in_files = std::process::Command::new("grep")
        .args(["-r", "-l", "courtyard"])
        .arg(server.data.path().join("control"))
        .output()
        .expect("grep");
    assert!(
        in_files.stdout.is_empty(),
        "{}",
        String::from_utf8_lossy(&in_files.stdout)
    );
    server.ok(&["env", "unset", "knobs", "COLOUR", "SECRET_WORD"]);
    assert!(env().contains("\"COLOUR\": \"red\"") && !env().contains("courtyard"));
    server.ok(&["scale", "knobs", "3"]);
    let healthy = || {
        let app = server.app("knobs");
        let list = app["instances"].as_array().cloned().unwrap_or_default();
        list.iter().filter(|i| i["state"] == "healthy").count()
    };
    eventually("three instances", 15, || healthy() == 3);
    server.ok(&["scale", "knobs", "1"]);
    eventually("one instance", 15, || healthy() == 1);
    server.ok(&["stop", "knobs"]);
    eventually("none", 15, || {
        server.app("knobs")["instances"]
            .as_array()
            .is_some_and(Vec::is_empty)
    });
    let answer = get(&server.http, "knobs.test", "/");
    assert_eq!(answer.status, 503);
    assert!(answer.header("retry-after").is_some());
    server.ok(&["start", "knobs"]);
    eventually("it serves again", 15, || {
        get(&server.http, "knobs.test", "/").status == 200
    });
}

#[test]
fn a_dry_run_says_what_would_be_done_and_does_nothing() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let app = python_app("dry", "", "x");
    let said = server.ok(&["deploy", "--dry-run", &app.path().to_string_lossy()]);
    assert!(
        said.contains("make the app dry") && said.contains("start 1 instance"),
        "{said}"
    );
    assert_eq!(server.json(&["apps"]), serde_json::json!([]));
}

#[test]
fn a_release_may_change_its_port_and_its_health_check() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let app = python_app("moves", "", "m");
    server.deploy(app.path());
    let traffic = Traffic::start(&server.http, "moves.test", "/", 100, 4);
    let toml = app.path().join("hutong.toml");
    let text = std::fs::read_to_string(&toml).expect("read");
    std::fs::write(
        &toml,
        format!("{text}\nport = 9099\n[health]\npath = \"/up\"\n"),
    )
    .expect("write");
    server.deploy(app.path());
    assert!(
        get(&server.http, "moves.test", "/env")
            .text()
            .contains("\"PORT\": \"9099\"")
    );
    std::fs::write(
        &toml,
        format!("{text}\nport = 9099\n[health]\npath = \"/eval?x\"\n[timeouts]\nstart = \"1s\"\n"),
    )
    .expect("write");
    let (_, said) = server.fails(&["deploy", &app.path().to_string_lossy()]);
    assert!(said.contains("GET /eval?x answered 500"), "{said}");
    let report = traffic.finish();
    assert!(report.failed.is_empty(), "{report:?}");
}

#[test]
fn a_single_writer_is_never_two_and_a_removed_app_forgets_its_domains() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    // Slow to end, and it marks when two of it live at once.
    let program = "import os,signal,sys,time,http.server\nlock='/data/lock'\nif os.path.exists(lock): open('/data/twice','w').write('x')\nopen(lock,'w').write('x')\ndef end(*_):\n    time.sleep(0.7); os.remove(lock); os._exit(0)\nsignal.signal(signal.SIGTERM, end)\nclass H(http.server.BaseHTTPRequestHandler):\n    protocol_version='HTTP/1.1'\n    def log_message(*_): pass\n    def do_GET(s):\n        b=b'twice' if os.path.exists('/data/twice') else b'once'\n        s.send_response(200); s.send_header('Content-Length',str(len(b))); s.end_headers(); s.wfile.write(b)\nhttp.server.ThreadingHTTPServer(('127.0.0.1',int(os.environ['PORT'])),H).serve_forever()\n";
    let toml = "name='solo'\ndomains=['solo.test']\ncommand=['python3','app.py']\ndata=true\n";
    let app = hutong_testkit::server::app_folder(&[("hutong.toml", toml), ("app.py", program)]);
    server.deploy(app.path());
    server.ok(&["restart", "solo"]);
    server.ok(&["stop", "solo"]);
    server.ok(&["start", "solo"]);
    eventually("it serves again", 20, || {
        get(&server.http, "solo.test", "/").status == 200
    });
    assert_eq!(get(&server.http, "solo.test", "/").text(), "once");
    server.ok(&["remove", "solo"]);
    eventually("it is gone", 20, || {
        get(&server.http, "solo.test", "/").status == 404
    });
    let heir = hutong_testkit::server::app_folder(&[
        (
            "hutong.toml",
            "name='heir'\ndomains=['solo.test']\nstatic='.'",
        ),
        ("index.html", "heir"),
    ]);
    server.deploy(heir.path());
    std::fs::write(
        app.path().join("hutong.toml"),
        toml.replace("['solo.test']", "['new.test']"),
    )
    .expect("write");
    server.deploy(app.path());
    assert_eq!(get(&server.http, "solo.test", "/").text(), "heir");
    assert_eq!(get(&server.http, "solo.test", "/hutong.toml").status, 404);
    assert_eq!(
        get(&server.http, "new.test", "/").text(),
        "once",
        "with its old data"
    );
}

/// Two releases that failed are kept, and no more, however quickly they failed.
#[test]
fn failed_releases_do_not_pile_up() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let folder = python_app("a", "", "hello");
    server.deploy(folder.path());
    let path = folder.path().display().to_string();
    for attempt in 0..4 {
        let program = format!("raise SystemExit({attempt})");
        std::fs::write(folder.path().join("app.py"), program).expect("write");
        server.fails(&["deploy", &path]);
    }
    eventually("one that serves and two that failed are left", 10, || {
        let releases = server.json(&["releases", "a"]);
        releases.as_array().map(Vec::len) == Some(3)
    });
    assert_eq!(get(&server.http, "a.test", "/").text(), "hello");
}
