//! An app that misbehaves is cut off, frozen as it is, and what it was doing is kept.

use std::time::{Duration, Instant};

use hutong_testkit::docker::Docker;
use hutong_testkit::server::{Server, python_app};
use hutong_testkit::visitor::get;
use hutong_testkit::{eventually, is_root, kill};

/// Listens where nobody asked it to, holds a file that is deleted, counts as fast as it can in a child.
const MISDEEDS: &str = "
import os, socket, subprocess, sys
loot = open('/tmp/loot', 'w'); loot.write('x' * 1000); loot.flush(); os.unlink('/tmp/loot')
back = socket.socket(); back.bind(('0.0.0.0', 4444)); back.listen()
keep = globals().setdefault('keep', []); import builtins; builtins.keep = [loot, back]
builtins.child = subprocess.Popen([sys.executable, '-c', 'n = 0\\nwhile True:\\n n += 1', 'miner'])
result = 'done'
";

fn eval(server: &Server, code: &str) -> String {
    let code: String = code.bytes().map(|byte| format!("%{byte:02x}")).collect();
    get(&server.http, "bad.test", &format!("/eval?{code}")).text()
}

/// Microseconds of processor time.
fn used(server: &Server) -> u64 {
    let app = server.app("bad");
    app["instances"][0]["cpu_usec"].as_u64().unwrap_or(0)
}

fn misbehave(server: &Server, file: &str, table: &str) {
    server.deploy(
        python_app(
            "bad",
            &format!("{file}env.BIND = '0.0.0.0'\n{table}"),
            "innocent",
        )
        .path(),
    );
    server.ok(&["env", "set", "bad", "TOKEN=very-secret-token"]);
    eventually("it has its variable", 20, || {
        get(&server.http, "bad.test", "/env")
            .text()
            .contains("very-secret-token")
    });
    eventually("the instance before it is gone", 30, || {
        server.app("bad")["instances"].as_array().map(Vec::len) == Some(1)
    });
    let shown = MISDEEDS.replace("'miner'", "'miner', 'very-secret-token'");
    assert_eq!(eval(server, &shown), "done");
    let instance = server.app("bad")["instances"][0]["id"].clone();
    let folder = tempfile::tempdir().expect("a folder");
    let bundle = folder.path().join("bundle.tar.gz");
    let began = Instant::now();
    let said = server.ok(&["isolate", "bad", "--bundle", &bundle.to_string_lossy()]);
    let took = began.elapsed();
    assert!(said.contains("is cut off, 1 instance(s) frozen"), "{said}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(get(&server.http, "bad.test", "/").status, 503);
    assert_eq!(server.app("bad")["state"], "isolated");
    // It stands still: ten times the same in a row, because what it had used is written down at the next tick.
    let (mut last, mut same) = (0, 0);
    eventually("it uses nothing any more", 10, || {
        let now = used(server);
        same = if now == last && now > 0 { same + 1 } else { 0 };
        last = now;
        same == 10
    });
    let files = unpack(&bundle);
    let find = |end: &str| {
        let found = files.iter().find(|(name, _)| name.ends_with(end));
        found
            .map(|(_, text)| text.as_str())
            .unwrap_or_else(|| panic!("no {end}"))
    };
    let processes = find("processes.txt");
    assert!(
        processes.contains("miner") && processes.contains("/tmp/loot (deleted)"),
        "{processes}"
    );
    // 0.0.0.0:4444, listening.
    assert!(
        find("net/tcp").contains("00000000:115C 00000000:0000 0A"),
        "{}",
        find("net/tcp")
    );
    assert!(find("/app.log").contains("was started"));
    assert!(find("/access.log").contains("/eval"));
    assert!(find("releases/1.toml").contains("name = \"bad\""));
    assert!(find("app.json").contains("isolated"));
    for (name, text) in &files {
        assert!(!text.contains("very-secret-token"), "{name}");
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(&bundle)
            .expect("it is there")
            .permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    // Nothing changes it, not even a control plane that was killed.
    for verb in [
        &["restart", "bad"][..],
        &["stop", "bad"],
        &["exec", "bad", "--", "true"],
        &["run", "bad", "--", "true"],
        &["remove", "bad", "--purge"],
    ] {
        let (_, said) = server.fails(verb);
        assert!(said.contains("hutong release bad"), "{verb:?}: {said}");
    }
    kill(server.role("control"));
    eventually("control is back", 15, || {
        server.run(&["apps"]).status.success()
    });
    assert_eq!(get(&server.http, "bad.test", "/").status, 503);
    assert_eq!(
        (
            server.app("bad")["instances"][0]["id"].clone(),
            used(server)
        ),
        (instance.clone(), last)
    );
    // It goes on where it was.
    server.ok(&["release", "bad"]);
    eventually("it answers again", 20, || {
        get(&server.http, "bad.test", "/").status == 200
    });
    assert_eq!(server.app("bad")["instances"][0]["id"], instance);
    eventually("it uses its processor again", 10, || used(server) > last);
    let (_, said) = server.fails(&["release", "bad"]);
    assert!(said.contains("is not isolated"), "{said}");
}

fn unpack(bundle: &std::path::Path) -> Vec<(String, String)> {
    let folder = tempfile::tempdir().expect("a folder");
    let done = std::process::Command::new("tar")
        .arg("-xzf")
        .arg(bundle)
        .arg("-C")
        .arg(folder.path())
        .status();
    assert!(done.expect("tar runs").success());
    let mut files = Vec::new();
    let mut folders = vec![folder.path().to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let content = std::fs::read(&path).expect("a file");
                let text = String::from_utf8_lossy(&content).into_owned();
                files.push((path.to_string_lossy().into_owned(), text));
            }
        }
    }
    files
}

#[test]
fn a_sandbox_in_quarantine() {
    if is_root() {
        let server = Server::start();
        misbehave(&server, "egress = 'internet'\n", "");
    }
}

#[test]
fn a_container_in_quarantine() {
    let Some(engine) = Docker::start() else {
        return;
    };
    let server = Server::start_with(&["--docker", &engine.socket()]);
    misbehave(
        &server,
        "image = 'hutong-test/python:1'\n",
        "[container]\nmount = '/app'\nuser = 'app'\n",
    );
}
