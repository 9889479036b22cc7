//! What an app keeps in `/data` is copied aside before a release command, whatever it is, and put back when its owner says so.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use hutong_testkit::crash::Rig;
use hutong_testkit::server::{Server, python_app};
use hutong_testkit::visitor::get;
use hutong_testkit::{eventually, is_root};

/// A release whose command is that shell script.
fn release(name: &str, more: &str, script: &str, body: &str) -> tempfile::TempDir {
    let more = format!("data = true\n{more}\n[release]\ncommand = ['sh', '-c', '''{script}''']\n");
    python_app(name, &more, body)
}

fn sh(server: &Server, app: &str, script: &str) -> String {
    server.ok(&["exec", app, "--", "sh", "-c", script])
}

fn path_of(folder: &tempfile::TempDir) -> String {
    folder.path().to_string_lossy().into_owned()
}

#[test]
fn a_migration_that_ruins_the_data_is_undone() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    for (app, bound) in [("plain", ""), ("bound", "limits.disk = '16M'")] {
        let serves = || {
            eventually("it serves", 30, || {
                get(&server.http, &format!("{app}.test"), "/").text() == "one"
            });
        };
        server.deploy(python_app(app, &format!("data = true\n{bound}"), "one").path());
        sh(&server, app, "mkdir /data/notes; echo mine > /data/notes/1");
        assert!(server.ok(&["snapshots", app, "--json"]).trim() == "[]");
        let script = "rm -r /data/notes; echo ruined > /data/ruin; exit 3";
        let bad = release(app, bound, script, "two");
        let said = server.ok(&["deploy", "--dry-run", &path_of(&bad)]);
        assert!(said.contains("take a snapshot of /data"), "{said}");
        let (_, said) = server.fails(&["deploy", &path_of(&bad)]);
        let list = server.json(&["snapshots", app]);
        let id = list[0]["id"].to_string();
        let words = format!("snapshot {id} holds /data as it was before");
        assert!(
            said.contains("exited with code 3") && said.contains(&words),
            "{said}"
        );
        assert!(said.contains(&format!("hutong snapshot restore {app} {id}")));
        assert_eq!(list.as_array().map(Vec::len), Some(1));
        // However often it is tried: what was before the first of them is kept, beside the newest three.
        for _ in 0..4 {
            server.fails(&["deploy", &path_of(&bad)]);
        }
        let list = server.json(&["snapshots", app]);
        let ids = list.as_array().expect("a list");
        assert_eq!(ids.len(), 4, "{list}");
        assert_eq!(ids[3]["id"].to_string(), id);
        // The old release serves on, with what is left.
        assert_eq!(sh(&server, app, "ls /data | grep -v lost"), "ruin\n");
        let (_, said) = server.fails(&["snapshot", "restore", app, "999"]);
        assert!(said.contains("has no snapshot 999"), "{said}");
        for _ in 0..2 {
            server.ok(&["snapshot", "restore", app, &id]);
            serves();
            assert_eq!(sh(&server, app, "cat /data/notes/1"), "mine\n");
            assert_eq!(sh(&server, app, "ls /data | grep -v lost"), "notes\n");
            // It is its own as before.
            sh(
                &server,
                app,
                "echo more > /data/more; echo 2 >> /data/notes/1",
            );
        }
        // A stopped app stays stopped.
        server.ok(&["stop", app]);
        server.ok(&["snapshot", "restore", app, &id]);
        assert_eq!(server.app(app)["state"], "stopped");
        server.ok(&["start", app]);
        serves();
        assert_eq!(sh(&server, app, "cat /data/notes/1"), "mine\n");
        // The newest three are kept.
        let good = release(app, bound, "true", "one");
        for _ in 0..4 {
            server.deploy(good.path());
        }
        let list = server.json(&["snapshots", app]);
        assert_eq!(list.as_array().map(Vec::len), Some(3));
        assert!(list[0]["id"].as_u64() > list[2]["id"].as_u64());
        let newest = list[0]["id"].to_string();
        server.ok(&["snapshot", "remove", app, &newest]);
        let list = server.json(&["snapshots", app]);
        assert_eq!(list.as_array().map(Vec::len), Some(2));
        // Without one.
        let without = python_app(
            app,
            &format!("data = true\n{bound}\n[release]\ncommand = ['true']\nsnapshot = false\n"),
            "one",
        );
        server.deploy(without.path());
        assert_eq!(server.json(&["snapshots", app]), list);
        let folder = server.data.path().join("snapshots").join(app);
        assert!(folder.is_dir());
        server.ok(&["remove", app, "--purge"]);
        eventually("its snapshots go with it", 30, || !folder.exists());
    }
    eventually("nothing is left", 30, || {
        server.ok(&["doctor", "--leaks"]).contains("nothing")
    });
}

const HOSTILE: &str = r"
import os, socket
os.chdir('/data')
os.symlink('/etc/shadow', 'link')
os.symlink('/', 'root')
os.symlink('.', 'loop')
open('file', 'w').write('mine')
os.link('file', 'again')
os.mkfifo('pipe')
socket.socket(socket.AF_UNIX).bind('socket')
os.mkdir('closed', 0)
with open('sparse', 'wb') as f: f.truncate(1 << 40)
os.makedirs('many')
for n in range(100000): open(f'many/{n}', 'w').close()
os.chmod('file', 0o751)
";

#[test]
fn what_a_hostile_app_keeps_is_copied_and_nothing_else() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    server.deploy(release("bad", "", "true", "one").path());
    server.ok(&["exec", "bad", "--", "python3", "-c", HOSTILE]);
    server.deploy(release("bad", "", "true", "one").path());
    let list = server.json(&["snapshots", "bad"]);
    assert_eq!(list[0]["left_out"], 1, "the socket");
    let id = list[0]["id"].to_string();
    let kept = server.data.path().join("snapshots/bad").join(&id);
    let at = |path: &str| kept.join("data").join(path);
    let link = |path: &str| std::fs::read_link(at(path)).expect("a link");
    assert_eq!(link("link"), Path::new("/etc/shadow"));
    assert_eq!(link("root"), Path::new("/"));
    let pipe = std::fs::symlink_metadata(at("pipe")).expect("there");
    assert!(pipe.file_type().is_fifo());
    assert_eq!(
        std::fs::read_dir(at("many")).expect("there").count(),
        100_000
    );
    let remove = "chmod 700 /data/closed; rm -rf /data/* ; echo gone > /data/file";
    sh(&server, "bad", remove);
    server.ok(&["snapshot", "restore", "bad", &id]);
    eventually("it serves", 60, || {
        get(&server.http, "bad.test", "/").text() == "one"
    });
    let check = r"
import os
s = os.stat('/data/file')
print(open('/data/again').read(), os.readlink('/data/link'), s.st_nlink, oct(s.st_mode), s.st_uid == os.getuid(),
  len(os.listdir('/data/many')), os.stat('/data/sparse').st_size == 1 << 40, os.path.exists('/data/socket'),
  oct(os.stat('/data/closed').st_mode))
";
    assert_eq!(
        server.ok(&["exec", "bad", "--", "python3", "-c", check]),
        "mine /etc/shadow 2 0o100751 True 100000 True False 0o40000\n"
    );
    // What is too deep to be copied is said, and nothing is run that could not be undone.
    sh(
        &server,
        "bad",
        "cd /data; for n in $(seq 150); do mkdir x; cd x; done",
    );
    let next = release("bad", "", "echo ran > /data/ran", "two");
    let (_, said) = server.fails(&["deploy", &path_of(&next)]);
    assert!(
        said.contains("more than 100 deep") && said.contains("snapshot = false"),
        "{said}"
    );
    assert_eq!(
        sh(&server, "bad", "ls /data/ran 2>/dev/null || echo none"),
        "none\n"
    );
    assert_eq!(get(&server.http, "bad.test", "/").text(), "one");
}

/// Runs a command during which somebody is killed at a step; then everything is whole again.
fn run_with_a_kill(rig: &mut Rig, step: &str, arguments: &[&str]) {
    rig.arm(step, 1, "kill");
    let mut command = rig.server().command(arguments);
    let mut command = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("hutong runs");
    let began = Instant::now();
    loop {
        let ended = matches!(command.try_wait(), Ok(Some(_)));
        if ended && rig.was_reached() {
            break;
        }
        assert!(
            began.elapsed() < Duration::from_secs(120),
            "{step}: it does not end, or the step is not reached"
        );
        rig.revive();
        std::thread::sleep(Duration::from_millis(5));
    }
    // It takes a moment to die.
    eventually(step, 60, || {
        rig.revive();
        let shown = rig.server().run(&["status", "db", "--json"]);
        let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap_or_default();
        shown["name"] == "db" && shown["restoring"].is_null() && shown["deploying"].is_null()
    });
    rig.converge();
}

#[test]
fn whoever_is_killed_a_snapshot_is_whole_and_put_back_whole() {
    if !is_root() {
        return;
    }
    let folder = release("db", "", "echo after > /data/state", "db");
    let mut rig = Rig::new("db", "db.test", folder.path(), 1);
    let deploy = path_of(&folder);
    for step in [
        "control snapshot",
        "warden snapshot.copied",
        "warden snapshot.kept",
        "control release command",
    ] {
        sh(rig.server(), "db", "echo before > /data/state");
        run_with_a_kill(&mut rig, step, &["deploy", &deploy]);
        let state = sh(rig.server(), "db", "cat /data/state");
        assert_eq!(state, "after\n", "{step}");
        let list = rig.server().json(&["snapshots", "db"]);
        let id = list[0]["id"].to_string();
        rig.server().ok(&["snapshot", "restore", "db", &id]);
        rig.converge();
        let state = sh(rig.server(), "db", "cat /data/state");
        assert_eq!(state, "before\n", "{step}");
    }
    let list = rig.server().json(&["snapshots", "db"]);
    let id = list[0]["id"].to_string();
    for step in [
        "control restore begins",
        "warden restore.copied",
        "warden restore.exchanged",
        "control restored",
    ] {
        sh(
            rig.server(),
            "db",
            "echo other > /data/state; echo x > /data/more",
        );
        run_with_a_kill(&mut rig, step, &["snapshot", "restore", "db", &id]);
        let state = sh(rig.server(), "db", "cat /data/state; ls /data");
        assert_eq!(state, "before\nstate\n", "{step}");
    }
    let left = std::fs::read_dir(rig.server().data.path().join("data")).expect("there");
    let left: Vec<String> = left
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(".new-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
