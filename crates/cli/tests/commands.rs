//! The command-line contract that scripts rely on.

use std::io::Write;
use std::process::Stdio;

use hutong_testkit::server::{Server, python_app};
use hutong_testkit::visitor::get;
use hutong_testkit::{eventually, is_root};

#[test]
fn json_has_the_documented_fields() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    server.deploy(python_app("one", "", "1").path());
    let app = server.app("one");
    for key in ["name", "state", "domains", "release", "instances"] {
        assert!(app.get(key).is_some(), "{key} in {app}");
    }
    assert_eq!(app["state"], "running");
    let system = server.json(&["system"]);
    for process in system.as_array().expect("a list") {
        for key in ["role", "pid", "uid", "memory_bytes"] {
            assert!(process.get(key).is_some(), "{key} in {process}");
        }
    }
    let release = &server.json(&["releases", "one"])[0];
    for key in ["id", "digest", "created_at", "state"] {
        assert!(release.get(key).is_some(), "{key} in {release}");
    }
    let doctor = server.json(&["doctor"]);
    assert!(
        doctor
            .as_array()
            .is_some_and(|walls| walls.iter().all(|w| w["stands"] == true)),
        "{doctor}"
    );
    let described: serde_json::Value =
        serde_json::from_str(&server.ok(&["openapi"])).expect("JSON");
    assert!(
        described["paths"]
            .as_object()
            .is_some_and(|paths| paths.len() >= 14)
    );
    assert!(server.ok(&["completions", "bash"]).contains("_hutong"));
    let schema: serde_json::Value = serde_json::from_str(&server.ok(&["schema"])).expect("JSON");
    assert_eq!(schema["title"], "hutong.toml");
}

#[test]
fn exec_runs_inside_with_pipes_and_the_programs_own_code() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    server.deploy(python_app("one", "data = true", "1").path());
    assert_eq!(server.ok(&["exec", "one", "--", "pwd"]).trim(), "/app");
    let ids = server.ok(&["exec", "one", "--", "id", "-u"]);
    assert_eq!(ids.trim(), "1000");
    let output = server.run(&[
        "exec",
        "one",
        "--",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 42",
    ]);
    assert_eq!(output.status.code(), Some(42));
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice()),
        (b"out\n".as_slice(), b"err\n".as_slice())
    );
    let mut child = server
        .command(&[
            "exec",
            "one",
            "--",
            "sh",
            "-c",
            "cat > /data/x; wc -c < /data/x",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("hutong runs");
    child
        .stdin
        .take()
        .expect("piped")
        .write_all(&vec![b'z'; 500_000])
        .expect("write");
    let output = child.wait_with_output().expect("output");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "500000");
    let (code, said) = server.fails(&["exec", "one", "--", "no-such-program"]);
    assert!(code == 1 && said.contains("was not found"), "{said}");
    let status = server.ok(&[
        "exec",
        "one",
        "--",
        "grep",
        "-E",
        "^(CapEff|NoNewPrivs|Seccomp):",
        "/proc/self/status",
    ]);
    assert!(
        status.contains("CapEff:\t0000000000000000")
            && status.contains("NoNewPrivs:\t1")
            && status.contains("Seccomp:\t2"),
        "{status}"
    );
}

#[test]
fn logs_follow_and_are_filtered() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let app = python_app("talks", "", "t");
    let path = app.path().join("app.py");
    let text = std::fs::read_to_string(&path).expect("read");
    std::fs::write(
        &path,
        text.replace(
            "            self.answer(200, BODY)",
            "            print('asked', self.path, flush=True); self.answer(200, BODY)",
        ),
    )
    .expect("write");
    server.deploy(app.path());
    let mut follower = server
        .command(&["logs", "talks", "-f"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("hutong runs");
    let (sender, lines) = std::sync::mpsc::channel();
    let stdout = follower.stdout.take().expect("piped");
    std::thread::spawn(move || {
        use std::io::BufRead;
        for line in std::io::BufReader::new(stdout)
            .lines()
            .map_while(Result::ok)
        {
            let _ = sender.send(line);
        }
    });
    get(&server.http, "talks.test", "/tea");
    let deadline = std::time::Duration::from_secs(10);
    while !lines
        .recv_timeout(deadline)
        .expect("a line")
        .contains("asked /tea")
    {}
    let _ = follower.kill();
    let _ = follower.wait();
    get(&server.http, "talks.test", "/last");
    eventually("it is kept", 10, || {
        server
            .ok(&["logs", "talks", "-n", "1"])
            .contains("asked /last")
    });
    assert!(
        server
            .ok(&["logs", "talks", "--since", "1h"])
            .contains("asked /tea")
    );
}

/// The demo does it all and leaves nothing: no process, mount, namespace, cgroup, interface or folder.
#[test]
fn the_demo_checks_itself_and_leaves_nothing() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().expect("tempdir");
    let traces = || {
        let mut found: Vec<String> = Vec::new();
        for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let cwd = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
            if line.contains(&*folder.path().to_string_lossy()) || cwd.starts_with(folder.path()) {
                found.push(line);
            }
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
        found.extend(
            mounts
                .lines()
                .filter(|l| l.contains("hutong-demo"))
                .map(str::to_owned),
        );
        found
    };
    let output = std::process::Command::new(hutong_testkit::server::binary())
        .args(["demo", "--check", "--http", "127.0.0.1:0"])
        .current_dir(folder.path())
        .output()
        .expect("hutong runs");
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches("ok   ").count(), 8, "{said}");
    assert_eq!(traces(), Vec::<String>::new());
    assert_eq!(std::fs::read_dir(folder.path()).expect("read").count(), 0);
    let api = said
        .lines()
        .find_map(|l| l.strip_prefix("api    unix:"))
        .expect("the API's path");
    let tag = api
        .trim_start_matches("/run/hutong-")
        .trim_end_matches("/api.sock");
    assert!(!std::path::Path::new(&format!("/run/hutong-{tag}")).exists());
    for tree in ["memory", "cpu", "pids", "blkio", "unified", "."] {
        let left = format!("/sys/fs/cgroup/{tree}/hutong-{tag}");
        assert!(!std::path::Path::new(&left).exists(), "{left}");
    }
    assert!(!std::path::Path::new(&format!("/sys/class/net/ht{}", &tag[..6])).exists());
}

#[test]
fn exec_loses_no_output_to_a_slow_reader_and_ends_with_its_caller() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    server.deploy(python_app("one", "", "1").path());
    let mut child = server
        .command(&["exec", "one", "--", "head", "-c", "3000000", "/dev/zero"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("hutong runs");
    std::thread::sleep(std::time::Duration::from_millis(1200));
    let mut all = Vec::new();
    std::io::Read::read_to_end(&mut child.stdout.take().expect("piped"), &mut all).expect("read");
    assert!(child.wait().expect("wait").success());
    assert_eq!(all.len(), 3_000_000);
    let mut child = server
        .command(&["exec", "one", "--", "sleep", "4321"])
        .spawn()
        .expect("hutong runs");
    let sleeping = || {
        server.ok(&[
            "exec",
            "one",
            "--",
            "sh",
            "-c",
            "grep -l 4321 /proc/[0-9]*/cmdline || true",
        ])
    };
    // The shell that looks has the number in its own command line.
    eventually("it runs", 10, || sleeping().lines().count() > 1);
    let _ = child.kill();
    let _ = child.wait();
    eventually("it is ended", 10, || sleeping().lines().count() <= 1);
}

/// Development mode: everything works for an ordinary user, and the missing walls are named.
#[test]
fn the_demo_works_for_an_ordinary_user_and_says_what_is_missing() {
    if !is_root() {
        return;
    }
    // A place, and a copy of the program, that this user can reach.
    let folder = tempfile::Builder::new()
        .prefix("hutong-user-")
        .tempdir_in("/tmp")
        .expect("tempdir");
    let program = folder.path().join("hutong");
    std::fs::copy(hutong_testkit::server::binary(), &program).expect("copy");
    std::os::unix::fs::chown(folder.path(), Some(64321), Some(64321)).expect("chown");
    let output = std::process::Command::new("setpriv")
        .args(["--reuid=64321", "--regid=64321", "--clear-groups"])
        .arg(&program)
        .args(["demo", "--check", "--http", "127.0.0.1:0"])
        .current_dir(folder.path())
        .env("HOME", folder.path())
        .env_remove("XDG_RUNTIME_DIR")
        .output()
        .expect("setpriv");
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("development mode") && said.contains("the wall `ids` is missing"),
        "{said}"
    );
    assert_eq!(said.matches("ok   ").count(), 8, "{said}");
    let left = std::fs::read_dir("/tmp").expect("/tmp").flatten();
    let left: Vec<_> = left
        .filter(|e| e.file_name().to_string_lossy().starts_with("hutong-64321-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
