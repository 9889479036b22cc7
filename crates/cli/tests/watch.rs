//! `hutong deploy --watch`: what is saved is served, mistakes end nothing, Ctrl-C does.
// What the command said is shown where a test fails.
#![allow(clippy::print_stderr)]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use hutong_testkit::crash::write_body;
use hutong_testkit::server::{Server, app_folder, python_app};
use hutong_testkit::visitor::get;
use hutong_testkit::{eventually, is_root};

/// A `hutong deploy --watch` that ends with the test.
struct Watch {
    child: Child,
    /// Lines of standard output, and of standard error.
    out: Lines,
    err: Lines,
}

type Lines = Arc<Mutex<Vec<String>>>;

fn collect(stream: impl Read + Send + 'static) -> Lines {
    let lines = Lines::default();
    let all = lines.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            eprintln!("[watch] {line}");
            all.lock().expect("no panic while locked").push(line);
        }
    });
    lines
}

impl Watch {
    fn start(server: &Server, folder: &Path) -> Self {
        let mut child = server
            .command(&["deploy", "--watch", &folder.to_string_lossy()])
            // It says so where nothing is to be done.
            .env("HUTONG_LOG", "hutong=debug")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("hutong runs");
        Watch {
            out: collect(child.stdout.take().expect("piped")),
            err: collect(child.stderr.take().expect("piped")),
            child,
        }
    }

    /// How many lines of standard error have all of these words.
    fn said(&self, words: &[&str]) -> usize {
        let lines = self.err.lock().expect("no panic while locked");
        let has = |line: &&String| words.iter().all(|word| line.contains(word));
        lines.iter().filter(has).count()
    }

    /// Whether the app's output has come.
    fn heard(&self, word: &str) -> bool {
        let lines = self.out.lock().expect("no panic while locked");
        lines.iter().any(|line| line.contains(word))
    }

    fn interrupt(&mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        let mut ended = None;
        eventually("Ctrl-C ends it", 10, || {
            ended = self.child.try_wait().expect("it is our child");
            ended.is_some()
        });
        ended.expect("it has ended")
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn releases(server: &Server, app: &str) -> u64 {
    let list = server.json(&["releases", app]);
    list[0]["id"].as_u64().unwrap_or(0)
}

#[test]
fn what_is_saved_is_served_and_mistakes_end_nothing() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let app = python_app("live", "", "one");
    let (folder, toml) = (app.path(), app.path().join("hutong.toml"));
    let serves = |body: &str| get(&server.http, "live.test", "/").text() == body;
    let mut watch = Watch::start(&server, folder);
    eventually("it is deployed", 20, || serves("one"));
    eventually("it says so", 10, || {
        watch.said(&["release 1 of live serves: http://live.test"]) == 1
            && watch.said(&["watching", "Ctrl-C"]) == 1
    });

    // A change.
    write_body(folder, "two");
    eventually("the change is served", 20, || serves("two"));
    eventually("it says so", 10, || {
        watch.said(&["changed: app.py → deployment", "serves after"]) == 1
    });

    // Several at once: a folder comes whole.
    let more = app_folder(&[("a.txt", "a"), ("b.txt", "b"), ("c.txt", "c")]);
    fs::rename(more.path(), folder.join("more")).expect("rename");
    eventually("one round is made of it", 20, || {
        watch.said(&["changed: more/a.txt, 2 more → deployment", "serves after"]) == 1
    });

    // What is not part of the app, and what is touched and the same, deploys nothing.
    let before = releases(&server, "live");
    let noticed = watch.said(&["the same as before"]);
    fs::create_dir(folder.join(".git")).expect("mkdir");
    fs::write(folder.join(".git/index"), "x").expect("write");
    let text = fs::read(folder.join("app.py")).expect("read");
    fs::write(folder.join("app.py"), text).expect("write");
    eventually("it is looked at", 20, || {
        watch.said(&["the same as before"]) > noticed
    });
    assert_eq!(releases(&server, "live"), before);

    // What the app says comes along.
    let text = fs::read_to_string(folder.join("app.py")).expect("read");
    let text = format!("print('up and well', flush=True)\n{text}");
    fs::write(folder.join("app.py"), text).expect("write");
    eventually("its output is shown", 20, || watch.heard("up and well"));

    // A mistake in hutong.toml.
    let good = fs::read_to_string(&toml).expect("read");
    fs::write(&toml, good.replace("command", "comand")).expect("write");
    eventually("the mistake is shown", 20, || {
        watch.said(&["changed: hutong.toml → not deployed"]) == 1
            && watch.said(&["hutong.toml:3:1: unknown key `comand`"]) == 1
    });
    assert!(serves("two"));
    fs::write(&toml, &good).expect("write");
    eventually("it is mended", 20, || {
        watch.said(&["changed: hutong.toml → as in deployment", "which serves"]) == 1
    });

    // A release that does not start.
    let text = fs::read_to_string(folder.join("app.py")).expect("read");
    fs::write(folder.join("app.py"), "raise SystemExit(3)\n").expect("write");
    eventually("it failed", 20, || {
        watch.said(&["changed: app.py → deployment", "failed after"]) == 1
            && watch.said(&["of live is not served", "exited with code 3"]) == 1
    });
    assert!(serves("two"));
    fs::write(folder.join("app.py"), text).expect("write");
    write_body(folder, "three");
    eventually("it is mended, too", 20, || serves("three"));

    // The control plane is killed: lines and rounds go on.
    hutong_testkit::kill(server.role("control"));
    eventually("control is back", 15, || {
        server.run(&["apps"]).status.success()
    });
    let text = fs::read_to_string(folder.join("app.py")).expect("read");
    let text = text.replace("up and well", "up once more");
    fs::write(folder.join("app.py"), text).expect("write");
    eventually("its output is shown", 20, || watch.heard("up once more"));

    eventually("it is at rest", 20, || {
        watch.said(&["changed: app.py → deployment", "serves after"]) == 4
    });
    assert_eq!(watch.interrupt().code(), Some(0));
    // What was deployed stays.
    assert!(serves("three"));
}

/// What changes while a deployment is under way is deployed behind it, never beside it.
#[test]
fn a_change_during_a_deployment_leads_to_one_more() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let app = python_app("slow", "", "one");
    let program = fs::read_to_string(app.path().join("app.py")).expect("read");
    let write = |pause: &str, body: &str| {
        let text = program.replace("BODY = \"one\"", &format!("BODY = \"{body}\""));
        let text = text.replace("def main():\n", &format!("def main():\n    {pause}\n"));
        fs::write(app.path().join("app.py"), text).expect("write");
    };
    let mut watch = Watch::start(&server, app.path());
    eventually("it is deployed", 20, || watch.said(&["watching"]) == 1);
    write("time.sleep(4)", "two");
    eventually("a deployment is under way", 20, || {
        server.app("slow")["deploying"].is_object()
    });
    write("pass", "three");
    eventually("the last one serves", 30, || {
        get(&server.http, "slow.test", "/").text() == "three"
    });
    eventually("both were made", 10, || {
        watch.said(&["changed: app.py → deployment", "serves after"]) == 2
    });
    assert_eq!(releases(&server, "slow"), 3);
    // Ctrl-C leaves a deployment to the server.
    write("time.sleep(4)", "four");
    eventually("a deployment is under way", 20, || {
        server.app("slow")["deploying"].is_object()
    });
    assert_eq!(watch.interrupt().code(), Some(130));
    eventually("it goes on", 30, || {
        get(&server.http, "slow.test", "/").text() == "four"
    });
}

#[test]
fn what_makes_no_sense_is_refused() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let app = python_app("no", "", "one");
    let folder = app.path().to_string_lossy().into_owned();
    for other in ["--dry-run", "--json"] {
        let (code, said) = server.fails(&["deploy", "--watch", other, &folder]);
        assert!(code == 2 && said.contains(other), "{said}");
    }
    let empty = tempfile::tempdir().expect("tempdir");
    let (code, said) = server.fails(&["deploy", "--watch", &empty.path().to_string_lossy()]);
    assert!(code == 4 && said.contains("hutong.toml"), "{said}");
    let nobody = empty.path().join("api.sock");
    let nobody = format!("unix:{}", nobody.display());
    let (code, said) = server.fails(&["deploy", "--watch", "--api", &nobody, &folder]);
    assert!(code == 3 && said.contains("no server"), "{said}");
    assert_eq!(server.json(&["apps"]), serde_json::json!([]));
}
