//! Twenty apps, twenty minutes (`HUTONG_SOAK_MINUTES`), whatever comes: deploys, rollbacks, scaling, variables, stops
//! and kills at random. At the end nothing has grown, nothing lies around, and no write is lost.
#![cfg(feature = "full")]
// Its tables go into docs/reliability.md.
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hutong_testkit::crash::{Random, seed, write_body};
use hutong_testkit::server::{Server, app_folder, children_of, python_app};
use hutong_testkit::traffic::Traffic;
use hutong_testkit::visitor::raw;
use hutong_testkit::{eventually, is_root, kill};
use serde_json::Value;
use tempfile::TempDir;

/// Counts in SQLite: each answer is a row that was committed.
const COUNTER: &str = r#"
import http.server, os, sqlite3, threading
db = sqlite3.connect("/data/count.db", check_same_thread=False)
one = threading.Lock()
db.execute("create table if not exists hits (id integer primary key)")
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    def log_message(self, *_): pass
    def do_GET(self):
        if self.path == "/add":
            with one, db: body = str(db.execute("insert into hits default values").lastrowid)
        else:
            with one: body = str(db.execute("select count(*) from hits").fetchone()[0])
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), H).serve_forever()
"#;

struct App {
    name: String,
    folder: TempDir,
    is_static: bool,
}

fn apps() -> Vec<App> {
    let mut apps = Vec::new();
    for number in 0..20 {
        let name = format!("app{number}");
        let is_static = number % 3 == 2;
        let folder = if is_static {
            let toml = format!("name = \"{name}\"\ndomains = [\"{name}.test\"]\nstatic = \".\"\n");
            app_folder(&[("hutong.toml", &toml), ("index.html", "v0")])
        } else {
            let more = ["instances = 2", "data = true", ""][number % 3];
            python_app(&name, more, "v0")
        };
        apps.push(App {
            name,
            folder,
            is_static,
        });
    }
    apps
}

fn get(http: &str, host: &str, path: &str) -> Option<(u16, String)> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let answer = raw(http, request.as_bytes()).ok()?;
    Some((answer.status, answer.text()))
}

/// Memory of each of our processes, in bytes; shims together, for each one.
fn memory(server: &Server) -> Option<BTreeMap<String, f64>> {
    let output = server.run(&["system", "--json"]);
    let system: Value = serde_json::from_slice(&output.stdout).ok()?;
    let mut sums: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    for process in system.as_array()? {
        let entry = sums
            .entry(process["role"].as_str()?.to_owned())
            .or_default();
        entry.0 += process["memory_bytes"].as_f64()?;
        entry.1 += 1.0;
    }
    Some(
        sums.into_iter()
            .map(|(role, (sum, count))| (role, sum / count))
            .collect(),
    )
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// One random change or kill; what it was, in a word.
fn act(
    server: &Server,
    apps: &[App],
    random: &mut Random,
    round: usize,
    ours_too: bool,
) -> &'static str {
    let app = &apps[random.below(apps.len())];
    let path = app.folder.path().to_string_lossy().into_owned();
    let name = app.name.as_str();
    // A command may fail because of the kill before it; what counts is what is true in the end.
    match random.below(12) {
        0..=3 => {
            let body = format!("v{round}");
            if app.is_static {
                std::fs::write(app.folder.path().join("index.html"), body).expect("write");
            } else {
                write_body(app.folder.path(), &body);
            }
            server.run(&["deploy", &path]);
            "deploy"
        }
        4 => {
            server.run(&["rollback", name]);
            "rollback"
        }
        5 => {
            server.run(&["scale", name, &(1 + random.below(3)).to_string()]);
            "scale"
        }
        6 => {
            server.run(&["env", "set", name, &format!("ROUND={round}")]);
            "env"
        }
        7 => {
            server.run(&["restart", name]);
            "restart"
        }
        8 => {
            server.run(&["stop", name]);
            server.run(&["start", name]);
            "stop and start"
        }
        9 if ours_too => {
            let role = ["control", "gateway"][random.below(2)];
            let output = server.run(&["system", "--json"]);
            let system: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let list = system.as_array().cloned().unwrap_or_default();
            for process in list.iter().filter(|process| process["role"] == role) {
                kill(process["pid"].as_u64().expect("a pid") as u32);
            }
            "kill of ours"
        }
        _ => {
            let output = server.run(&["system", "--json"]);
            let system: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let list = system.as_array().cloned().unwrap_or_default();
            // Whom nobody touches is left alone.
            let is_prey = |process: &&Value| process["role"] == "shim" && process["app"] != "calm";
            let shims: Vec<_> = list.iter().filter(is_prey).collect();
            if !shims.is_empty() {
                let shim = shims[random.below(shims.len())]["pid"]
                    .as_u64()
                    .expect("a pid") as u32;
                let init = children_of(shim);
                let program: Vec<u32> = init.iter().flat_map(|pid| children_of(*pid)).collect();
                let candidates = [vec![shim], init, program].concat();
                kill(candidates[random.below(candidates.len())]);
            }
            "kill of an instance"
        }
    }
}

#[test]
fn twenty_apps_for_twenty_minutes() {
    if !is_root() {
        return;
    }
    let minutes: u64 = std::env::var("HUTONG_SOAK_MINUTES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(20);
    let mut random = Random(seed());
    let mut server = Server::start();
    let http = server.http.clone();
    let apps = apps();
    for app in &apps {
        server.deploy(app.folder.path());
    }
    let toml = "name = \"counter\"\ndomains = [\"counter.test\"]\ncommand = [\"python3\", \"app.py\"]\ndata = true\n";
    server.deploy(app_folder(&[("hutong.toml", toml), ("app.py", COUNTER)]).path());
    // What nobody touches: visitors of it must not notice anything but a killed gateway.
    server.deploy(python_app("calm", "", "calm").path());
    let calm = Traffic::start(&http, "calm.test", "/", 50, 4);

    let stop = Arc::new(AtomicBool::new(false));
    let counting = {
        let (stop, http) = (stop.clone(), http.clone());
        std::thread::spawn(move || {
            let mut acknowledged = 0usize;
            while !stop.load(Ordering::SeqCst) {
                let answer = get(&http, "counter.test", "/add");
                acknowledged += usize::from(answer.is_some_and(|(status, _)| status == 200));
                std::thread::sleep(Duration::from_millis(20));
            }
            acknowledged
        })
    };

    let (began, length) = (Instant::now(), Duration::from_secs(minutes * 60));
    let mut done: BTreeMap<&str, usize> = BTreeMap::new();
    let mut samples: Vec<BTreeMap<String, f64>> = Vec::new();
    let mut restarts = 0;
    let mut round = 0;
    while began.elapsed() < length {
        round += 1;
        // In the second half our own processes live on, so that it shows if they grow.
        let first_half = began.elapsed() < length / 2;
        *done
            .entry(act(&server, &apps, &mut random, round, first_half))
            .or_default() += 1;
        if first_half && random.below(60) == 0 {
            // Not together with the gateway: then nobody would hold the port.
            eventually("all of ours are there", 30, || {
                memory(&server).is_some_and(|roles| roles.contains_key("gateway"))
            });
            let data = server.into_data();
            server = Server::start_in(data, &["--http", &http]);
            restarts += 1;
        }
        if !first_half {
            samples.extend(memory(&server));
        }
    }
    stop.store(true, Ordering::SeqCst);
    let acknowledged = counting.join().expect("it counts");

    // In the end all is as it was declared.
    eventually("every app serves", 120, || {
        apps.iter().all(|app| {
            server.run(&["start", &app.name]);
            get(&http, &format!("{}.test", app.name), "/").is_some_and(|(status, _)| status == 200)
        })
    });
    eventually("nothing lies around", 60, || {
        server.run(&["doctor", "--leaks"]).status.success()
    });
    let counted = get(&http, "counter.test", "/").expect("an answer").1;
    let counted: usize = counted.parse().expect("a number");
    assert!(
        counted >= acknowledged,
        "{counted} of {acknowledged} acknowledged writes"
    );
    let report = calm.finish();
    let other = report.worse_than_cut();
    println!(
        "{minutes} minutes: {done:?}, {restarts} wardens killed; {acknowledged} writes acknowledged, {counted} there"
    );
    println!(
        "an app that nobody touched: {} answers, {} sent again, failed {:?}",
        report.answered, report.sent_again, report.failed
    );
    assert!(other.is_none(), "{report:?}");

    let third = samples.len() / 3;
    println!("| role | first third of the second half, MB | last third, MB |");
    println!("|---|---|---|");
    let mut grown = Vec::new();
    for role in ["warden", "control", "gateway", "shim"] {
        let of = |part: &[BTreeMap<String, f64>]| {
            median(
                part.iter()
                    .filter_map(|sample| sample.get(role).copied())
                    .collect(),
            )
        };
        let (early, late) = (of(&samples[..third]), of(&samples[samples.len() - third..]));
        println!("| {role} | {:.2} | {:.2} |", early / 1e6, late / 1e6);
        if late > early * 1.1 {
            grown.push(format!("{role}: {early} to {late}"));
        }
    }
    assert!(grown.is_empty(), "{grown:?}");
}
