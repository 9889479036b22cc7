//! Apps that misbehave: one clear message each, and the neighbour does not notice.

use std::time::{Duration, Instant};

use hutong_testkit::server::{Server, app_folder, python_app};
use hutong_testkit::traffic::Traffic;
use hutong_testkit::visitor::get;
use hutong_testkit::{eventually, is_root};

/// Deploys a program that must fail; what is said.
fn fails(server: &Server, name: &str, program: &str, more: &str) -> String {
    let toml =
        format!("name='{name}'\ndomains=['{name}.test']\ncommand=['python3','a.py']\n{more}");
    let folder = app_folder(&[("hutong.toml", &toml), ("a.py", program)]);
    let (code, said) = server.fails(&["deploy", &folder.path().to_string_lossy()]);
    assert_eq!(code, 1, "{said}");
    said
}

#[test]
fn apps_that_never_serve_say_why() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    server.deploy(python_app("calm", "", "c").path());
    let traffic = Traffic::start(&server.http, "calm.test", "/", 50, 2);
    let short = "[timeouts]\nstart='1500ms'\nstop='500ms'";
    let said = fails(&server, "mute", "import time\ntime.sleep(99)", short);
    assert!(
        said.contains("nothing listens on port 8080") && said.contains("PORT"),
        "{said}"
    );
    let elsewhere = "import http.server\nhttp.server.HTTPServer(('127.0.0.1',8000),http.server.SimpleHTTPRequestHandler).serve_forever()";
    let said = fails(&server, "elsewhere", elsewhere, short);
    assert!(said.contains("listens on 127.0.0.1:8000 instead"), "{said}");
    let said = fails(
        &server,
        "quits",
        "import sys\nprint('no database')\nsys.exit(7)",
        short,
    );
    assert!(
        said.contains("exited with code 7") && said.contains("no database"),
        "{said}"
    );
    let sick = "import http.server\nclass H(http.server.BaseHTTPRequestHandler):\n  def do_GET(s): s.send_error(500)\nhttp.server.HTTPServer(('127.0.0.1',8080),H).serve_forever()";
    let said = fails(
        &server,
        "sick",
        sick,
        &format!("[health]\npath='/up'\n{short}"),
    );
    assert!(said.contains("GET /up answered 500"), "{said}");
    for (name, command, says) in [
        ("nofile", "['./server']", "no file `./server`"),
        ("nocmd", "['nodejs-of-the-future']", "was not found"),
        ("nox", "['./plain.txt']", "not executable"),
    ] {
        let toml = format!("name='{name}'\ncommand={command}");
        let folder = app_folder(&[("hutong.toml", &toml), ("plain.txt", "hello")]);
        let (_, said) = server.fails(&["deploy", &folder.path().to_string_lossy()]);
        assert!(said.contains(says), "{said}");
    }
    let report = traffic.finish();
    assert!(
        report.failed.is_empty() && report.answered > 50,
        "{report:?}"
    );
}

#[test]
fn late_and_ipv6_only_listeners_are_found() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let late = python_app("late", "", "late");
    let path = late.path().join("app.py");
    let text = std::fs::read_to_string(&path).expect("read");
    std::fs::write(
        &path,
        text.replace("def main():", "def main():\n    time.sleep(1.5)"),
    )
    .expect("write");
    server.deploy(late.path());
    assert_eq!(get(&server.http, "late.test", "/").text(), "late");
    let six = python_app("six", "[env]\nBIND = \"::1\"", "six");
    let path = six.path().join("app.py");
    let text = std::fs::read_to_string(&path).expect("read");
    let text = text.replace(
        "    daemon_threads = True",
        "    import socket\n    address_family = socket.AF_INET6\n    daemon_threads = True",
    );
    std::fs::write(&path, text).expect("write");
    server.deploy(six.path());
    assert_eq!(get(&server.http, "six.test", "/").text(), "six");
}

#[test]
fn an_app_that_ignores_sigterm_is_killed_after_its_time() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let deaf = python_app("deaf", "[timeouts]\nstop = \"700ms\"\ndrain = \"0ms\"", "d");
    let path = deaf.path().join("app.py");
    let text = std::fs::read_to_string(&path).expect("read");
    std::fs::write(
        &path,
        text.replace("lambda *_: sys.exit(0)", "signal.SIG_IGN"),
    )
    .expect("write");
    server.deploy(deaf.path());
    let began = Instant::now();
    server.ok(&["stop", "deaf"]);
    eventually("it is killed", 10, || {
        server.app("deaf")["instances"]
            .as_array()
            .is_some_and(Vec::is_empty)
    });
    assert!(
        began.elapsed() >= Duration::from_millis(600),
        "{:?}",
        began.elapsed()
    );
    let logs = server.ok(&["logs", "deaf"]);
    assert!(logs.contains("was killed (SIGKILL)"), "{logs}");
}

#[test]
fn a_flood_of_output_and_hostile_bytes_harm_nobody() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    server.deploy(python_app("calm", "", "c").path());
    let loud = python_app("loud", "", "l");
    let path = loud.path().join("app.py");
    let text = std::fs::read_to_string(&path).expect("read");
    let flood = "def flood():\n    while True: os.write(1, b'x' * 99 + b'\\n' + b'y' * 65436)\n\ndef main():\n    os.write(1, b'bad \\xff\\xfe utf8\\n\\x1b[2Jescape\\x07\\n')\n    import threading\n    threading.Timer(1, flood).start()";
    std::fs::write(&path, text.replace("def main():", flood)).expect("write");
    server.deploy(loud.path());
    let logs = server.ok(&["logs", "loud", "-n", "1000"]);
    assert!(logs.contains("bad \u{fffd}\u{fffd} utf8"), "{logs}");
    assert!(
        logs.contains("escape") && !logs.contains('\x1b') && !logs.contains('\x07'),
        "{logs}"
    );
    let traffic = Traffic::start(&server.http, "calm.test", "/", 100, 4);
    eventually("the flood is noticed", 30, || {
        server
            .ok(&["logs", "loud", "-n", "3000"])
            .contains("bytes of output were dropped")
    });
    let report = traffic.finish();
    assert!(report.failed.is_empty(), "{report:?}");
    let size: u64 = walk(&server.data.path().join("control"));
    assert!(size < 80 << 20, "{size} bytes of logs and spools");
    server.ok(&["remove", "loud"]);
}

fn walk(path: &std::path::Path) -> u64 {
    std::fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| {
            let metadata = entry.metadata().expect("metadata");
            if metadata.is_dir() {
                walk(&entry.path())
            } else {
                metadata.len()
            }
        })
        .sum()
}

#[test]
fn an_app_that_crashes_is_started_again_and_policy_counts() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    server.deploy(python_app("phoenix", "", "p").path());
    assert_eq!(get(&server.http, "phoenix.test", "/exit?1").status, 200);
    // The request waits for the new instance; it is not refused.
    assert_eq!(get(&server.http, "phoenix.test", "/").text(), "p");
    server.deploy(python_app("once", "restart = \"on-failure\"", "o").path());
    get(&server.http, "once.test", "/exit?0");
    eventually("it is left alone", 10, || {
        get(&server.http, "once.test", "/").status == 503
    });
    server.ok(&["start", "once"]);
    eventually("it is back", 10, || {
        get(&server.http, "once.test", "/").status == 200
    });
}
