//! Two hundred apps that sleep, half of them Python and half a small static binary, and visitors who wake a thousand,
//! five a second; meanwhile the control plane is killed every half minute. Nobody is sent away.
#![cfg(feature = "full")]
// Its table goes into docs/benchmarks.md.
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use hutong_testkit::server::{Server, app_folder};
use hutong_testkit::visitor::ask;
use hutong_testkit::{eventually, is_root, kill};

const TINY: &str = include_str!("../../xtask/src/core/tiny.c");
const PYTHON: &str = r#"
import http.server, os
class H(http.server.BaseHTTPRequestHandler):
    wbufsize = -1
    def log_message(self, *_): pass
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), H).serve_forever()
"#;
const APPS: usize = 200;
const VISITS: usize = 1010;
const PERIOD: Duration = Duration::from_millis(200);
/// Every thirty seconds.
const VISITS_TO_A_KILL: usize = 150;

/// How long each visit took, by kind of app.
type Took = BTreeMap<&'static str, Vec<Duration>>;

fn kind(number: usize) -> &'static str {
    if number.is_multiple_of(2) {
        "static binary"
    } else {
        "Python"
    }
}

fn deploy_all(server: &Server) {
    let build = tempfile::tempdir().expect("tempdir");
    let (source, program) = (build.path().join("tiny.c"), build.path().join("tiny"));
    std::fs::write(&source, TINY).expect("write");
    let built = Command::new("cc")
        .args(["-O2", "-static", "-o"])
        .arg(&program)
        .arg(&source)
        .status();
    assert!(built.expect("cc runs").success());
    for number in 0..APPS {
        let command = match kind(number) {
            "Python" => "python3 app.py",
            _ => "./tiny",
        };
        let spec = format!(
            "name='app-{number}'\ndomains=['app-{number}.test']\ncommand='{command}'\n[limits]\nmemory='64M'\n[sleep]\nafter='2s'\n"
        );
        let folder = app_folder(&[("hutong.toml", &spec), ("app.py", PYTHON)]);
        std::fs::copy(&program, folder.path().join("tiny")).expect("copy");
        server.deploy(folder.path());
    }
}

fn asleep(server: &Server) -> usize {
    let output = server.run(&["apps", "--json"]);
    let apps: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let list = apps.as_array().cloned().unwrap_or_default();
    list.iter().filter(|app| app["state"] == "asleep").count()
}

fn visit_all(server: &Server) -> (Took, Vec<String>, usize) {
    let mut kills = 0;
    let http = server.http.clone();
    let began = Instant::now();
    std::thread::scope(|scope| {
        let visits: Vec<_> = (0..VISITS)
            .map(|visit| {
                if visit % VISITS_TO_A_KILL == VISITS_TO_A_KILL - 1 {
                    kill(server.role("control"));
                    kills += 1;
                }
                let due = PERIOD * visit as u32;
                std::thread::sleep(due.saturating_sub(began.elapsed()));
                let http = http.clone();
                scope.spawn(move || {
                    // Each in its turn: an app that was visited has long fallen asleep again.
                    let number = visit % APPS;
                    let from = Instant::now();
                    let answer = ask(&http, &format!("app-{number}.test"), "/", "");
                    (number, answer.status, from.elapsed())
                })
            })
            .collect();
        let (mut took, mut failed) = (Took::new(), Vec::new());
        for visit in visits {
            match visit.join() {
                Ok((number, 200, time)) => took.entry(kind(number)).or_default().push(time),
                Ok((number, status, time)) => {
                    failed.push(format!("app-{number}: {status} after {time:?}"));
                }
                Err(_) => failed.push("no answer".into()),
            }
        }
        (took, failed, kills)
    })
}

#[test]
fn a_thousand_visitors_wake_two_hundred_apps() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    deploy_all(&server);
    eventually("all sleep", 120, || asleep(&server) == APPS);
    let own: u64 = server.json(&["system"]).as_array().map_or(0, |list| {
        let memory = |process: &serde_json::Value| process["memory_bytes"].as_u64();
        list.iter().filter_map(memory).sum()
    });
    println!("{APPS} apps asleep; our own processes: {} MB", own >> 20);
    let (took, failed, kills) = visit_all(&server);
    println!(
        "control was killed {kills} times; {} visits failed",
        failed.len()
    );
    for (kind, mut times) in took {
        times.sort();
        let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_millis();
        println!(
            "| {kind} | {} | {} ms | {} ms | {} ms | {} ms |",
            times.len(),
            at(0.5),
            at(0.9),
            at(0.99),
            at(1.0)
        );
    }
    assert!(failed.is_empty(), "{failed:?}");
    assert!(kills >= 5, "{kills}");
    let starts: usize = (0..APPS)
        .map(|number| server.ok(&["logs", &format!("app-{number}"), "-n", "1000"]))
        .map(|log| log.matches("was started").count())
        .sum();
    println!("{} wakes", starts - APPS);
    assert!(starts >= APPS + 1000, "{starts}");
    eventually("all sleep again", 120, || asleep(&server) == APPS);
    let leaks = server.ok(&["doctor", "--leaks"]);
    assert!(leaks.contains("nothing lies around"), "{leaks}");
}
