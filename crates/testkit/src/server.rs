//! A server of a test's own: temporary data folder, port 0, ended with the test.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::eventually;

/// The binary under test: HUTONG_BIN, or the one beside the test's own.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("HUTONG_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().expect("a test has a path");
    let target = test
        .parent()
        .and_then(Path::parent)
        .expect("target/PROFILE/deps");
    target.join("hutong")
}

pub struct Server {
    child: Child,
    pub data: TempDir,
    pub api: String,
    /// IP:PORT of the gateway.
    pub http: String,
    /// The same for TLS; empty where it is not served.
    pub https: String,
    pub messages: Vec<String>,
    said: Arc<Mutex<Vec<String>>>,
    env: Vec<(String, PathBuf)>,
    run_dir: PathBuf,
    binary: PathBuf,
}

impl Server {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts `hutong serve` with more arguments. `/tmp` is used because socket paths are short.
    pub fn start_with(arguments: &[&str]) -> Self {
        let data = tempfile::Builder::new()
            .prefix("hutong-test-")
            .tempdir()
            .expect("a temporary folder");
        Self::start_in(data, arguments)
    }

    pub fn start_in(data: TempDir, arguments: &[&str]) -> Self {
        Self::start_in_with_env(data, arguments, &[])
    }

    /// A server of another build of the binary, for benchmarks.
    pub fn start_binary(binary: &Path, arguments: &[&str]) -> Self {
        let data = tempfile::Builder::new()
            .prefix("hutong-bench-")
            .tempdir()
            .expect("a temporary folder");
        Self::launch(&[], binary, data, arguments, &[])
    }

    /// A server that another program becomes: `wrapper` is its command line, ours follows.
    pub fn start_through(wrapper: &[&str]) -> Self {
        let data = tempfile::Builder::new()
            .prefix("hutong-test-")
            .tempdir()
            .expect("a temporary folder");
        Self::launch(wrapper, &binary(), data, &[], &[])
    }

    /// `env` is given to every command that is run against the server.
    pub fn start_in_with_env(data: TempDir, arguments: &[&str], env: &[(&str, &PathBuf)]) -> Self {
        Self::launch(&[], &binary(), data, arguments, env)
    }

    /// The same on a data folder that is there.
    pub fn start_through_in(wrapper: &[&str], data: TempDir, arguments: &[&str]) -> Self {
        Self::launch(wrapper, &binary(), data, arguments, &[])
    }

    /// Whether the warden runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Takes the data folder out of a server that was killed, for the next one.
    pub fn into_data(mut self) -> TempDir {
        self.kill();
        std::mem::replace(&mut self.data, tempfile::tempdir().expect("tempdir"))
    }

    fn launch(
        wrapper: &[&str],
        binary: &Path,
        data: TempDir,
        arguments: &[&str],
        env: &[(&str, &PathBuf)],
    ) -> Self {
        let mut words: Vec<&std::ffi::OsStr> = wrapper.iter().map(std::ffi::OsStr::new).collect();
        words.push(binary.as_os_str());
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .args(["serve", "--stop-apps", "--http", "127.0.0.1:0"])
            .args(if arguments.contains(&"--config") {
                &[][..]
            } else {
                &["--config", "/dev/null"]
            })
            .arg("--data-dir")
            .arg(data.path())
            .args(arguments)
            .env_remove("HUTONG_API")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let (lines, heard) = mpsc::channel();
        let all = Arc::new(Mutex::new(Vec::new()));
        let keep = all.clone();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                eprintln!("[server] {line}");
                keep.lock()
                    .expect("no panic while locked")
                    .push(line.clone());
                let _ = lines.send(line);
            }
        });
        let mut messages = Vec::new();
        let mut said = BTreeMap::new();
        while !["http", "api", "data"]
            .iter()
            .all(|key| said.contains_key(key))
        {
            let line = heard
                .recv_timeout(Duration::from_secs(30))
                .unwrap_or_else(|_| panic!("the server did not start: {messages:?}"));
            for key in ["http", "https", "api", "data"] {
                if let Some(rest) = line.strip_prefix(key).filter(|rest| rest.starts_with(' ')) {
                    said.insert(key, rest.trim().to_owned());
                }
            }
            messages.push(line);
        }
        let server = Server {
            child,
            data,
            api: said["api"].clone(),
            http: said["http"].clone(),
            https: said.get("https").cloned().unwrap_or_default(),
            messages,
            said: all,
            binary: binary.to_owned(),
            run_dir: said["api"]
                .strip_prefix("unix:")
                .and_then(|socket| Path::new(socket).parent())
                .map(Path::to_owned)
                .unwrap_or_default(),
            env: env
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).clone()))
                .collect(),
        };
        eventually("the API answers", 20, || {
            server.run(&["apps"]).status.success()
        });
        server
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Runs `hutong ARGUMENTS` against this server.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("hutong runs")
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(arguments)
            .env("HUTONG_API", &self.api)
            .envs(self.env.iter().cloned())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    /// The same, which must succeed: its standard output.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(
            output.status.success(),
            "hutong {}: {}\n{}{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The same, which must fail: its exit code and standard error.
    pub fn fails(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.run(arguments);
        assert!(
            !output.status.success(),
            "hutong {} succeeded",
            arguments.join(" ")
        );
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code().unwrap_or(-1), said)
    }

    /// JSON of a command with `--json`.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let text = self.ok(&[arguments, &["--json"]].concat());
        serde_json::from_str(&text).expect("JSON")
    }

    pub fn deploy(&self, folder: &Path) -> String {
        self.ok(&["deploy", &folder.to_string_lossy()])
    }

    /// The app of `hutong apps --json`.
    pub fn app(&self, name: &str) -> Value {
        let apps = self.json(&["apps"]);
        let list = apps.as_array().expect("a list");
        let found = list.iter().find(|app| app["name"] == name);
        found.cloned().unwrap_or(Value::Null)
    }

    /// Every line that the server's processes have written so far.
    pub fn heard(&self) -> Vec<String> {
        self.said.lock().expect("no panic while locked").clone()
    }

    /// Pid of one of our processes: `warden`, `control`, `gateway`.
    pub fn role(&self, role: &str) -> u32 {
        self.find_process(|process| process["role"] == role)
    }

    /// Pid of the shim of an app's (first) instance.
    pub fn shim_of(&self, app: &str) -> u32 {
        self.find_process(|process| process["role"] == "shim" && process["app"] == app)
    }

    fn find_process(&self, wanted: impl Fn(&Value) -> bool) -> u32 {
        let system = self.json(&["system"]);
        let list = system.as_array().expect("a list");
        let found = list.iter().find(|process| wanted(process));
        let pid = found.and_then(|process| process["pid"].as_u64());
        let pid = pid.unwrap_or_else(|| panic!("no such process in {system}"));
        pid.try_into().expect("a pid")
    }

    /// SIGTERM to the warden, and its end.
    pub fn stop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        eventually("the server ends", 30, || {
            matches!(self.child.try_wait(), Ok(Some(_)))
        });
        // Whatever the test did, a server that was told to stop its apps leaves no trace.
        if !std::thread::panicking() && !self.run_dir.as_os_str().is_empty() {
            let left = std::fs::read_dir(self.run_dir.join("i"))
                .into_iter()
                .flatten()
                .flatten();
            let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
            assert!(left.is_empty(), "left behind: {left:?}");
        }
    }

    /// SIGKILL to the warden alone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.stop();
        }
        unmount_below(self.data.path());
    }
}

/// What a killed server left mounted in its folder would keep the folder from going.
pub fn unmount_below(folder: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    for point in points.filter(|point| Path::new(point).starts_with(folder.join("data"))) {
        let _ = Command::new("umount").args(["-l", "--", point]).status();
    }
}

/// Pids of a process's children.
pub fn children_of(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let text = text.unwrap_or_default();
    let pids = text.split_ascii_whitespace();
    pids.filter_map(|pid| pid.parse().ok()).collect()
}

/// A folder with an app: `files` are (path, content).
pub fn app_folder(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (path, content) in files {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
        std::fs::write(path, content).expect("write");
    }
    dir
}

/// A Python program for tests: answers `GET /` with `body`, and a few more paths (see its source).
pub fn python_app(name: &str, more: &str, body: &str) -> TempDir {
    let toml = format!(
        "name = \"{name}\"\ndomains = [\"{name}.test\"]\ncommand = [\"python3\", \"app.py\"]\n{more}\n"
    );
    let program = PYTHON.replace("@BODY@", body);
    app_folder(&[("hutong.toml", &toml), ("app.py", &program)])
}

const PYTHON: &str = include_str!("app.py");
