//! SIGKILL at named steps: a sample of what `full_crash` does at every one, and what lies around afterwards.

use std::path::Path;
use std::process::Command;

use hutong_testkit::crash::{Case, Random, Rig, Victim, seed, write_body};
use hutong_testkit::server::{Server, children_of, python_app};
use hutong_testkit::traffic::Traffic;
use hutong_testkit::visitor::{escape, get};
use hutong_testkit::{eventually, is_root};

#[test]
fn a_deploy_with_a_kill_on_the_way_ends_in_the_old_or_the_new_state() {
    if !is_root() {
        return;
    }
    let app = python_app("one", "instances = 2", "v0");
    let path = app.path().to_string_lossy().into_owned();
    let mut rig = Rig::new("one", "one.test", app.path(), 2);
    write_body(app.path(), "v1");
    let steps = rig.record(&["deploy", &path]);
    assert!(steps.len() > 20, "{steps:?}");
    let mut random = Random(seed());
    let mut before = "v1".to_owned();
    for round in 0..12 {
        let (step, times) = &steps[random.below(steps.len())];
        let case = Case {
            step: step.clone(),
            count: 1 + random.below(*times),
            victim: Victim::ALL[random.below(Victim::ALL.len())],
        };
        let body = format!("round-{round}");
        write_body(app.path(), &body);
        let outcome = rig.run(&case, &["deploy", &path]);
        let killed = if outcome.killed {
            "killed"
        } else {
            "not reached"
        };
        println!("{round}: {case:?}: {killed}, {:?}", outcome.took);
        let now = get(&rig.http, "one.test", "/").text();
        if outcome.succeeded {
            assert_eq!(now, body, "{case:?}");
        } else {
            assert!(now == body || now == before, "{case:?}: {now}");
        }
        // And the next one goes as if nothing had been.
        rig.server().ok(&["deploy", &path]);
        assert_eq!(get(&rig.http, "one.test", "/").text(), body);
        rig.converge();
        before = body;
    }
}

#[test]
fn a_canary_with_a_kill_on_the_way_takes_over_all_the_same() {
    if !is_root() {
        return;
    }
    let settings =
        "strategy = \"canary\"\n[canary]\nsteps = [50, 100]\nevery = \"1s\"\nmin_requests = 0";
    let app = python_app("bird", settings, "v0");
    let path = app.path().to_string_lossy().into_owned();
    let mut rig = Rig::new("bird", "bird.test", app.path(), 1);
    for (round, (step, victim)) in [
        ("control apply begin", Victim::Itself),
        ("control applied begin", Victim::Itself),
        ("control applied begin", Victim::Gateway),
        ("control apply promote", Victim::Itself),
        ("control applied promote", Victim::Gateway),
    ]
    .into_iter()
    .enumerate()
    {
        let case = Case {
            step: step.into(),
            count: 1,
            victim,
        };
        let body = format!("round-{round}");
        write_body(app.path(), &body);
        let outcome = rig.run(&case, &["deploy", &path]);
        assert!(outcome.killed, "{case:?} was not reached");
        assert_eq!(get(&rig.http, "bird.test", "/").text(), body, "{case:?}");
    }
}

/// Too slow, so that it is rolled back and no request fails.
#[test]
fn a_canary_that_is_rolled_back_with_a_kill_on_the_way_stays_so() {
    if !is_root() {
        return;
    }
    let settings =
        "strategy = \"canary\"\n[canary]\nsteps = [50, 100]\nevery = \"1s\"\nmin_requests = 200";
    let app = python_app("snail", settings, "v0");
    let path = app.path().to_string_lossy().into_owned();
    let mut rig = Rig::new("snail", "snail.test", app.path(), 1);
    let program = app.path().join("app.py");
    let text = std::fs::read_to_string(&program).expect("read");
    let slow = text.replace(
        "self.answer(200, BODY)",
        "(time.sleep(0.2), self.answer(200, BODY))",
    );
    assert_ne!(slow, text, "the test app answers somewhere else");
    std::fs::write(&program, slow).expect("write");
    for (round, step) in ["control roll back", "control rolled back"]
        .into_iter()
        .enumerate()
    {
        write_body(app.path(), &format!("round-{round}"));
        let case = Case {
            step: step.into(),
            count: 1,
            victim: Victim::Itself,
        };
        let outcome = rig.run(&case, &["deploy", &path]);
        assert!(outcome.killed, "{case:?} was not reached");
        assert!(!outcome.succeeded, "{case:?}");
        assert_eq!(get(&rig.http, "snail.test", "/").text(), "v0", "{case:?}");
        let logs = rig.server().ok(&["logs", "snail"]);
        let begun = logs.matches("it gets 50 % of the visitors").count();
        assert_eq!(begun, round + 1, "{case:?} began once more: {logs}");
        let canary = hutong_testkit::trial::canary(rig.server(), "snail");
        let why = canary["decision"].to_string();
        assert!(why.contains("is rolled back"), "{case:?}: {why}");
    }
}

/// As after a power cut or a reboot: nothing runs, /run is empty, the disk is as it was.
#[test]
fn after_a_reboot_every_app_is_back_and_none_is_blamed() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let more = "instances = 2\nrestart = \"never\"";
    server.deploy(python_app("one", more, "1").path());
    server.deploy(python_app("two", "data = true", "2").path());
    let run = server.api.strip_prefix("unix:").map(Path::new);
    let run = run.and_then(Path::parent).expect("a folder").to_owned();
    let system = server.json(&["system"]);
    let pids = system.as_array().expect("a list").iter();
    for pid in pids.filter_map(|process| process["pid"].as_u64()) {
        hutong_testkit::kill(pid as u32);
    }
    let http = server.http.clone();
    let data = server.into_data();
    std::fs::remove_dir_all(run).expect("remove");
    // The kernel says so by another boot id; here the old one is another.
    std::fs::write(data.path().join("control/boot"), "another boot").expect("write");
    let server = Server::start_in(data, &["--http", &http]);
    for (app, body) in [("one", "1"), ("two", "2")] {
        assert_eq!(
            get(&http, &format!("{app}.test"), "/").text(),
            body,
            "held, not refused"
        );
        let shown = server.json(&["status", app]);
        assert_eq!(shown["message"], serde_json::Value::Null, "{shown}");
    }
    let output = server.run(&["doctor", "--leaks"]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

/// What one app writes fills the disk under everybody.
#[test]
fn on_a_full_disk_everything_serves_on_and_the_remedy_works() {
    if !is_root() {
        return;
    }
    let disk = SmallDisk::new(64);
    let data = tempfile::tempdir_in(disk.0.path()).expect("tempdir");
    let mut server = Server::start_in(data, &[]);
    let calm = python_app("calm", "", "calm");
    server.deploy(calm.path());
    server.ok(&["env", "set", "calm", "KEY=value"]);
    server.deploy(python_app("hog", "data = true", "hog").path());
    let traffic = Traffic::start(&server.http, "calm.test", "/", 100, 4);
    let fill = "f=open('/data/big','wb')\nwhile True: f.write(b'x'*65536); f.flush()";
    let path = format!("/eval?{}", escape(fill));
    let said = get(&server.http, "hog.test", &path).text();
    assert!(said.contains("No space left"), "{said}");
    // A deploy says what is wrong and what to do, and the old release serves on.
    std::fs::write(calm.path().join("big"), vec![7; 3 << 20]).expect("write");
    let folder = calm.path().to_string_lossy().into_owned();
    let (code, said) = server.fails(&["deploy", &folder]);
    assert_eq!(code, 1);
    assert!(
        said.contains("No space left") || said.contains("disk is full"),
        "{said}"
    );
    assert!(
        said.contains("remove") && said.contains("--purge"),
        "{said}"
    );
    // An app that ends is started again, too.
    let init = children_of(server.shim_of("hog"))[0];
    hutong_testkit::kill(children_of(init)[0]);
    eventually("it is back", 20, || {
        get(&server.http, "hog.test", "/").text() == "hog"
    });
    // Whatever is killed comes back.
    for role in ["gateway", "control"] {
        let before = server.role(role);
        hutong_testkit::kill(before);
        eventually("it is back", 30, || {
            server.run(&["apps"]).status.success()
                && get(&server.http, "calm.test", "/").text() == "calm"
        });
        assert_ne!(server.role(role), before);
    }
    let http = server.http.clone();
    server = Server::start_in(server.into_data(), &["--http", &http]);
    assert_eq!(get(&http, "calm.test", "/").text(), "calm");
    // The remedy.
    server.ok(&["remove", "hog", "--purge"]);
    eventually("there is room again", 30, || disk.free() > 32 << 20);
    server.ok(&["deploy", &folder]);
    let env = server.ok(&["exec", "calm", "--", "printenv", "KEY"]);
    assert_eq!(env.trim(), "value");
    let report = traffic.finish();
    let other = report.worse_than_cut();
    assert!(other.is_none(), "{report:?}");
    let store = server.data.path().join("control/state.db");
    let check = "import sqlite3,sys; print(sqlite3.connect(sys.argv[1]).execute('pragma integrity_check').fetchone()[0])";
    let checked = Command::new("/usr/bin/python3")
        .args(["-c", check])
        .arg(store)
        .output();
    assert_eq!(checked.expect("python3").stdout, b"ok\n");
    server.stop();
}

/// A file system of a few megabytes, mounted while the test lasts.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(megabytes: u32) -> Self {
        let point = tempfile::tempdir().expect("tempdir");
        let size = format!("size={megabytes}m,mode=755");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(point.path())
            .status();
        assert!(mounted.expect("mount").success());
        SmallDisk(point)
    }

    fn free(&self) -> u64 {
        let found = rustix::fs::statvfs(self.0.path()).expect("statvfs");
        found.f_bavail * found.f_frsize
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.0.path())
            .status();
    }
}

/// No process can be started any more: what runs, runs on, and it passes.
#[test]
fn with_a_full_pid_table_what_runs_runs_on() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    server.deploy(python_app("one", "", "1").path());
    let before = server.app("one")["instances"][0]["id"].clone();
    let group = PidGroup::around(&[server.pid()]);
    group.bound();
    let (_, said) = server.fails(&["restart", "one"]);
    assert!(said.contains("temporarily unavailable"), "{said}");
    assert_eq!(get(&server.http, "one.test", "/").text(), "1");
    assert_eq!(server.app("one")["instances"][0]["id"], before);
    group.unbound();
    server.ok(&["restart", "one"]);
    eventually("the old instance is gone", 20, || {
        server.app("one")["instances"][0]["id"] != before
    });
}

/// A cgroup of the test's own that bounds how many processes there may be.
struct PidGroup(std::path::PathBuf);

impl PidGroup {
    fn around(pids: &[u32]) -> Self {
        let trees = [
            Path::new("/sys/fs/cgroup/pids"),
            Path::new("/sys/fs/cgroup"),
        ];
        let tree = trees.iter().find(|tree| tree.join("cgroup.procs").exists());
        let folder = tree
            .expect("cgroups")
            .join(format!("hutong-test-{}", std::process::id()));
        std::fs::create_dir(&folder).expect("mkdir");
        for pid in pids {
            std::fs::write(folder.join("cgroup.procs"), pid.to_string()).expect("move");
        }
        PidGroup(folder)
    }

    /// Below what is there: no fork fits, whatever ends meanwhile.
    fn bound(&self) {
        std::fs::write(self.0.join("pids.max"), "1").expect("write");
    }

    fn unbound(&self) {
        std::fs::write(self.0.join("pids.max"), "max").expect("write");
    }
}

impl Drop for PidGroup {
    fn drop(&mut self) {
        let parent = self.0.parent().expect("a parent").join("cgroup.procs");
        let pids = std::fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        for pid in pids.lines() {
            let _ = std::fs::write(&parent, pid);
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// What belongs to no app is found, whatever it is, and removed; nothing else is.
#[test]
fn leaks_are_found_and_removed() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    server.deploy(python_app("one", "data = true", "1").path());
    server.ok(&["doctor", "--leaks"]);
    let data = server.data.path();
    let run = Path::new(server.api.strip_prefix("unix:").expect("a socket"))
        .parent()
        .expect("a folder");
    let tag = run
        .to_string_lossy()
        .rsplit('-')
        .next()
        .expect("a tag")
        .to_owned();
    // A process with an app's ids, in a cgroup that no instance has.
    let uid = server.json(&["system"])[3]["uid"]
        .as_u64()
        .expect("the shim's id");
    let stray = Command::new("setpriv")
        .args([
            format!("--reuid={uid}"),
            "--clear-groups".into(),
            "sleep".into(),
            "600".into(),
        ])
        .spawn()
        .expect("setpriv");
    let mut strays = Strays {
        process: stray,
        mount: data.join("data/one/m"),
        interface: format!("ht{}-77", &tag[..6]),
    };
    let cgroup = cgroup_of(&tag).join("one-d1-deadbeef");
    std::fs::create_dir(&cgroup).expect("mkdir");
    // Files, folders, a mount, an interface.
    std::fs::write(run.join("i/one-d1-deadbeef.sock"), "").expect("write");
    for folder in [
        "builds/one-d99",
        "data/nobody",
        "snapshots/nobody/1/data",
        "built/nobody/x",
        "data/one/m",
    ] {
        std::fs::create_dir_all(data.join(folder)).expect("mkdir");
    }
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "tmpfs"])
        .arg(data.join("data/one/m"))
        .status();
    assert!(mounted.expect("mount").success());
    let interface = strays.interface.clone();
    let made = Command::new("ip")
        .args([
            "link",
            "add",
            &interface,
            "type",
            "veth",
            "peer",
            "name",
            &format!("lp{}", &tag[..6]),
        ])
        .status();
    assert!(made.expect("ip").success());
    let look = |arguments: &[&str]| {
        let output = server.run(&[&["doctor", "--leaks", "--json"], arguments].concat());
        let found: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        (output.status.code(), found)
    };
    let (code, found) = look(&[]);
    assert_eq!(code, Some(1));
    let mut kinds: Vec<&str> = found
        .as_array()
        .expect("a list")
        .iter()
        .map(|leak| leak["kind"].as_str().expect("a word"))
        .collect();
    kinds.sort();
    let all = [
        "cgroup",
        "file",
        "folder",
        "folder",
        "folder",
        "folder",
        "interface",
        "mount",
        "process",
    ];
    assert_eq!(kinds, all, "{found}");
    let (code, fixed) = look(&["--fix"]);
    assert_eq!(code, Some(0), "{fixed}");
    assert_eq!(look(&[]).1, serde_json::json!([]));
    assert!(!strays.process.wait().expect("it was our child").success());
    assert!(!data.join("builds/one-d99").exists() && !data.join("data/nobody").exists());
    for lost in ["data/.lost", "snapshots/.lost"] {
        let found = std::fs::read_dir(data.join(lost)).expect("read").count();
        assert_eq!(found, 1, "{lost}: data is moved aside, not deleted");
    }
    assert!(!data.join("snapshots/nobody").exists());
    assert!(data.join("data/one").exists());
    assert_eq!(get(&server.http, "one.test", "/").text(), "1");
}

/// What the test puts into the machine, taken away however it ends.
struct Strays {
    process: std::process::Child,
    mount: std::path::PathBuf,
    interface: String,
}

impl Drop for Strays {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let quietly = |command: &mut Command| {
            let _ = command.stderr(std::process::Stdio::null()).status();
        };
        quietly(Command::new("umount").arg(&self.mount));
        quietly(Command::new("ip").args(["link", "del", &self.interface]));
    }
}

/// Our folder in some tree of cgroups.
fn cgroup_of(tag: &str) -> std::path::PathBuf {
    let trees = ["", "unified", "pids"].map(|tree| Path::new("/sys/fs/cgroup").join(tree));
    let found = trees
        .iter()
        .map(|tree| tree.join(format!("hutong-{tag}")))
        .find(|p| p.exists());
    found.expect("a cgroup of this server")
}
