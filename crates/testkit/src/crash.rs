//! A server whose processes are killed at named steps (`hutong_ipc::fail`), with traffic beside it, and what
//! must hold again afterwards.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::server::{Server, children_of};
use crate::traffic::{Report, Traffic};
use crate::visitor::get;
use crate::{eventually, kill};

/// Connections of the traffic.
pub const CONNECTIONS: u32 = 8;

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Victim {
    /// Whoever reached the step.
    Itself,
    Warden,
    Control,
    Gateway,
    Shim,
    Init,
    App,
    /// All of them at once, as a power cut does.
    Everything,
    /// Nobody: the step fails with EIO, where it is a write.
    Eio,
    /// Nobody: the step fails with ENOSPC, where it is a write.
    Enospc,
    /// Nobody: the step takes five seconds, as on a disk that hangs.
    Hang,
}

impl Victim {
    /// Those who can be killed.
    pub const ALL: [Victim; 8] = [
        Victim::Itself,
        Victim::Warden,
        Victim::Control,
        Victim::Gateway,
        Victim::Shim,
        Victim::Init,
        Victim::App,
        Victim::Everything,
    ];

    pub fn word(self) -> &'static str {
        match self {
            Victim::Itself => "itself",
            Victim::Warden => "warden",
            Victim::Control => "control",
            Victim::Gateway => "gateway",
            Victim::Shim => "shim",
            Victim::Init => "init",
            Victim::App => "app",
            Victim::Everything => "everything",
            Victim::Eio => "– (EIO)",
            Victim::Enospc => "– (ENOSPC)",
            Victim::Hang => "– (hung disk)",
        }
    }
}

/// One try: at which step (`role name`), the how-manieth time, who is killed.
#[derive(Clone, Debug)]
pub struct Case {
    pub step: String,
    pub count: usize,
    pub victim: Victim,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The step was reached, and the victim was killed.
    pub killed: bool,
    /// The command that was under way said that it had succeeded.
    pub succeeded: bool,
    pub report: String,
    /// Until everything was whole again.
    pub took: Duration,
}

pub struct Rig {
    server: Option<Server>,
    fail: TempDir,
    pub http: String,
    /// The host that traffic asks for.
    host: String,
    app: String,
    /// How many instances there must be.
    instances: usize,
}

impl Rig {
    /// A server with one app, deployed from `folder`; it answers `GET /` at `host` and has `instances`.
    pub fn new(app: &str, host: &str, folder: &Path, instances: usize) -> Self {
        let fail = tempfile::Builder::new()
            .prefix("hutong-fail-")
            .tempdir()
            .expect("a temporary folder");
        // Every process of ours, whatever its id, takes part.
        fs::set_permissions(fail.path(), fs::Permissions::from_mode(0o777)).expect("chmod");
        let data = tempfile::Builder::new()
            .prefix("hutong-test-")
            .tempdir()
            .expect("a temporary folder");
        let server = start(&fail, data, "127.0.0.1:0");
        server.deploy(folder);
        Rig {
            http: server.http.clone(),
            server: Some(server),
            fail,
            host: host.to_owned(),
            app: app.to_owned(),
            instances,
        }
    }

    pub fn server(&self) -> &Server {
        self.server.as_ref().expect("there is always one")
    }

    /// The steps that a command passes, in order, each with how often.
    pub fn record(&self, arguments: &[&str]) -> Vec<(String, usize)> {
        self.reset();
        self.server().ok(arguments);
        // What comes behind the answer: the old instances end, their output is taken in.
        self.converge();
        let text = fs::read_to_string(self.fail.path().join("hits")).expect("hits");
        let mut order = Vec::new();
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for line in text.lines() {
            if !counts.contains_key(line) {
                order.push(line.to_owned());
            }
            *counts.entry(line.to_owned()).or_default() += 1;
        }
        order
            .into_iter()
            .map(|step| (step.clone(), counts[&step]))
            .collect()
    }

    fn reset(&self) {
        for file in ["armed", "taken", "held", "go"] {
            let _ = fs::remove_file(self.fail.path().join(file));
        }
        let hits = self.fail.path().join("hits");
        fs::write(&hits, "").expect("write");
        fs::set_permissions(&hits, fs::Permissions::from_mode(0o666)).expect("chmod");
    }

    /// Arms a step: what happens when it is reached.
    pub fn arm(&self, step: &str, count: usize, action: &str) {
        self.reset();
        let fresh = self.fail.path().join("fresh");
        fs::write(&fresh, format!("{step} {count} {action}")).expect("write");
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o666)).expect("chmod");
        fs::rename(fresh, self.fail.path().join("armed")).expect("rename");
    }

    fn has(&self, file: &str) -> bool {
        self.fail.path().join(file).exists()
    }

    /// Whether the armed step was reached.
    pub fn was_reached(&self) -> bool {
        self.has("taken")
    }

    /// Runs a command with a kill on the way; then everything must be whole again.
    pub fn run(&mut self, case: &Case, arguments: &[&str]) -> Outcome {
        // The instances that are to be killed are those that serve: none is left of the release before.
        self.converge();
        let began = Instant::now();
        let action = match case.victim {
            Victim::Itself => "kill",
            Victim::Eio => "eio",
            Victim::Enospc => "enospc",
            Victim::Hang => "hang",
            _ => "hold",
        };
        let victims = self.victims(case.victim);
        let before = self.server().pid();
        let traffic = Traffic::start(&self.http, &self.host, "/", 200, CONNECTIONS);
        self.arm(&case.step, case.count, action);
        let mut command = self.server().command(arguments);
        let mut command = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("hutong runs");
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut status = None;
        let mut killed = false;
        // Some steps come only behind the command's answer.
        let mut linger = Instant::now() + Duration::from_secs(60);
        let mut acted = false;
        while status.is_none() || (!acted && Instant::now() < linger) {
            assert!(
                Instant::now() < deadline,
                "{case:?}: the command does not end"
            );
            if let Ok(Some(ended)) = command.try_wait()
                && status.is_none()
            {
                status = Some(ended);
                linger = Instant::now() + Duration::from_millis(700);
            }
            if self.has("held") && !killed {
                for pid in &victims {
                    kill(*pid);
                }
                killed = true;
                fs::write(self.fail.path().join("go"), "").expect("write");
            }
            acted = killed || (action != "hold" && self.was_reached());
            self.revive();
            std::thread::sleep(Duration::from_millis(3));
        }
        killed = acted;
        let status = status.unwrap_or(command.wait().expect("it ended"));
        let _ = fs::remove_file(self.fail.path().join("armed"));
        let warden = match case.victim {
            Victim::Warden | Victim::Everything => true,
            Victim::Itself => case.step.starts_with("warden "),
            _ => false,
        };
        if killed && warden {
            // It takes a moment to die.
            eventually("the warden is dead or another", 20, || {
                self.revive();
                self.server().pid() != before
            });
        }
        self.converge();
        let report = traffic.finish();
        self.judge(case, &report);
        Outcome {
            killed,
            succeeded: status.success(),
            report: format!("{report:?}"),
            took: began.elapsed(),
        }
    }

    /// A killed warden is started again, as a service manager does.
    pub fn revive(&mut self) {
        let server = self.server.as_mut().expect("there is always one");
        if server.is_alive() {
            return;
        }
        let data = self.server.take().expect("there is always one").into_data();
        self.server = Some(start(&self.fail, data, &self.http));
    }

    fn victims(&self, victim: Victim) -> Vec<u32> {
        let server = self.server();
        let shim = || server.shim_of(&self.app);
        let init = || children_of(shim())[0];
        match victim {
            Victim::Itself | Victim::Eio | Victim::Enospc | Victim::Hang => Vec::new(),
            Victim::Warden => vec![server.pid()],
            Victim::Control => vec![server.role("control")],
            Victim::Gateway => vec![server.role("gateway")],
            Victim::Shim => vec![shim()],
            Victim::Init => vec![init()],
            Victim::App => children_of(init()),
            Victim::Everything => {
                let system = server.json(&["system"]);
                let list = system.as_array().expect("a list");
                let pids = list.iter().filter_map(|process| process["pid"].as_u64());
                pids.map(|pid| pid as u32).collect()
            }
        }
    }

    /// Waits until there is nothing left to do, and nothing too much.
    pub fn converge(&self) {
        let deadline = Instant::now() + Duration::from_secs(40);
        let mut last = String::new();
        while Instant::now() < deadline {
            match self.is_whole() {
                Ok(()) => return,
                Err(reason) => last = reason,
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("it does not converge: {last}");
    }

    fn is_whole(&self) -> Result<(), String> {
        let server = self.server();
        let output = server.run(&["apps", "--json"]);
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let apps: Value = serde_json::from_slice(&output.stdout).map_err(|e| e.to_string())?;
        let app = apps
            .as_array()
            .and_then(|list| list.iter().find(|app| app["name"] == self.app.as_str()));
        let app = app.ok_or("the app is gone")?;
        if app["deploying"].is_object() {
            return Err(format!("a deployment is under way: {app}"));
        }
        let list = app["instances"].as_array().cloned().unwrap_or_default();
        let healthy = |instance: &&Value| {
            instance["state"] == "healthy" && instance["release"] == app["release"]
        };
        if list.len() != self.instances || list.iter().filter(healthy).count() != self.instances {
            return Err(format!("not {} healthy instances: {app}", self.instances));
        }
        let leaks = server.run(&["doctor", "--leaks", "--json"]);
        if !leaks.status.success() {
            return Err(format!("leaks: {}", String::from_utf8_lossy(&leaks.stdout)));
        }
        let status = get(&self.http, &self.host, "/").status;
        if status != 200 {
            return Err(format!("answered {status}"));
        }
        Ok(())
    }

    /// What visitors may have noticed: nothing, but for requests in hand of a killed gateway or instance.
    fn judge(&self, case: &Case, report: &Report) {
        let role = case.step.split(' ').next().unwrap_or_default();
        let hit = match case.victim {
            Victim::Itself => role.to_owned(),
            other => other.word().to_owned(),
        };
        let failed: usize = report.failed.values().sum();
        match hit.as_str() {
            // With everything dead, nobody answers for a while.
            "everything" => {}
            hit if hit == "warden" || hit == "control" || hit.starts_with('–') => {
                assert_eq!((failed, report.sent_again), (0, 0), "{case:?}: {report:?}");
            }
            _ => {
                // In hand: at most one of each connection, and only if its answer had begun.
                let other = report.worse_than_cut();
                assert!(
                    other.is_none() && failed <= CONNECTIONS as usize,
                    "{case:?}: {report:?}"
                );
            }
        }
    }
}

/// Changes what the test app answers to `GET /`.
pub fn write_body(folder: &Path, body: &str) {
    let path = folder.join("app.py");
    let text = fs::read_to_string(&path).expect("read");
    let lines = text.lines().map(|line| {
        if line.starts_with("BODY = ") {
            format!("BODY = \"{body}\"")
        } else {
            line.to_owned()
        }
    });
    let text = lines.collect::<Vec<_>>().join("\n");
    fs::write(path, text).expect("write");
}

/// A seed from `HUTONG_SEED`, or a fresh one; it is printed, so that a failure can be had again.
pub fn seed() -> u64 {
    let given = std::env::var("HUTONG_SEED").ok();
    let seed = given
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| u64::from(std::process::id()));
    println!("seed {seed} (HUTONG_SEED={seed} repeats it)");
    seed
}

/// xorshift64*: any sequence will do, as long as its seed repeats it.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.max(1);
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound
    }
}

fn start(fail: &TempDir, data: TempDir, http: &str) -> Server {
    let variable = format!("HUTONG_FAIL={}", fail.path().display());
    Server::start_through_in(&["/usr/bin/env", &variable], data, &["--http", http])
}
