//! Git as a program: always in one repository, behind the walls of `runtime/confine`, with nothing of our environment, no
//! shell, and no settings but ours.

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hutong_runtime::confine::{self, Bounds};
use hutong_runtime::sys;

use crate::Control;

use super::hook::SOCKET_VARIABLE;
use super::repo::Repo;

/// Where programs are.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// Address space of one git; what it maps of packs is bounded by the repository's settings.
const MEMORY: u64 = 1 << 30;
const CPU_S: u64 = 900;
/// A file may be larger than what came in, by the index of a pack.
const FILE_SLACK: u64 = 64 << 20;
/// What of its complaints is kept.
const STDERR: u64 = 8 << 10;
/// Output of a git that says little.
const MAX_OUTPUT: u64 = 1 << 20;
/// Tells the process behind the walls how large a file may get.
const FILE_BYTES: &str = "HUTONG_GIT_FILE_BYTES";
/// A file with certificates of authorities, which git may read.
pub const CA_BUNDLE: &str = "GIT_SSL_CAINFO";

/// A git with these arguments in a repository, in a process group of its own.
pub fn command<S: AsRef<OsStr>>(control: &Control, repo: &Repo, arguments: &[S]) -> Command {
    // Our own program, whatever lies under its name by now; it becomes git.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("hutong git")
        .args(["internal", "git"])
        .arg(&repo.folder)
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", &repo.folder)
        .env("LC_ALL", "C")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_ATTR_NOSYSTEM", "1")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env(
            FILE_BYTES,
            (control.settings.upload_bytes + FILE_SLACK).to_string(),
        )
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The main of the process that becomes git: `folder` is its repository. Returns only if that fails.
pub fn become_git(folder: &Path, arguments: &[std::ffi::OsString]) -> String {
    let file = std::env::var(FILE_BYTES)
        .ok()
        .and_then(|text| text.parse().ok());
    let bounds = Bounds {
        memory: MEMORY,
        file: file.unwrap_or(FILE_SLACK),
        cpu_s: CPU_S,
        folder: folder.to_owned(),
        reads: std::env::var_os(CA_BUNDLE)
            .map(std::path::PathBuf::from)
            .into_iter()
            .collect(),
    };
    let entered = confine::hold(&folder.join(super::repo::LOCK))
        .and_then(|()| connect_hook())
        .and_then(|()| std::env::set_current_dir(folder))
        .and_then(|()| confine::enter(&bounds));
    if let Err(error) = entered {
        return format!("git cannot be started behind its walls: {error}");
    }
    let error = Command::new("git")
        .args(arguments)
        .env_remove(FILE_BYTES)
        .env_remove(SOCKET_VARIABLE)
        .exec();
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no git on this server".into(),
        _ => format!("git cannot be started: {error}"),
    }
}

/// The line on which the hook of a push asks control.
fn connect_hook() -> std::io::Result<()> {
    if let Some(path) = std::env::var_os(SOCKET_VARIABLE) {
        let line = std::os::unix::net::UnixStream::connect(path)?;
        sys::inherit_as(line.as_fd(), confine::LINE)?;
    }
    Ok(())
}

/// Kills a process group of ours: git and all that it started.
pub fn kill_group(pid: u32) {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended by itself.
        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
    }
}

/// A git that runs. What it complains of is read all along, or it would wait for somebody to do so.
pub struct Running {
    child: Child,
    complaints: JoinHandle<String>,
}

impl Running {
    pub fn start(mut command: Command) -> Result<Self, String> {
        let mut child = command.spawn().map_err(|error| error.to_string())?;
        let stderr = child.stderr.take();
        let complaints = std::thread::spawn(move || {
            let mut said = Vec::new();
            if let Some(mut stderr) = stderr {
                let _ = stderr.by_ref().take(STDERR).read_to_end(&mut said);
                let _ = std::io::copy(&mut stderr, &mut std::io::sink());
            }
            String::from_utf8_lossy(&said).into_owned()
        });
        Ok(Running { child, complaints })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn output(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Waits for its end; its output must have been read. The error is what it said last, or how it ended.
    pub fn finish(mut self) -> Result<(), String> {
        let status = self.child.wait().map_err(|error| error.to_string())?;
        if status.success() {
            return Ok(());
        }
        let said = self.complaints.join().unwrap_or_default();
        let last = said.lines().rev().find(|line| !line.trim().is_empty());
        Err(match last {
            Some(line) => super::plain(line),
            None => format!("git ended with {status}"),
        })
    }

    /// Ends it at once.
    pub fn kill(mut self) {
        kill_group(self.child.id());
        let _ = self.child.wait();
    }
}

/// Ends a git that takes too long; it is dropped once that has ended by itself.
pub struct Watch {
    ended: Option<std::sync::mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub fn begin(pid: u32, patience: Duration) -> Self {
        let (ended, over) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            if over.recv_timeout(patience) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                kill_group(pid);
            }
        });
        Watch {
            ended: Some(ended),
            thread: Some(thread),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.ended.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Runs a git that says little to its end, or kills it after `patience`; its output.
pub fn run(command: Command, patience: Duration) -> Result<String, String> {
    let mut running = Running::start(command)?;
    let pid = running.pid();
    let output = running.output();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        if let Some(output) = output {
            let _ = output.take(MAX_OUTPUT).read_to_string(&mut text);
        }
        text
    });
    let waiter = std::thread::spawn(move || running.finish());
    let deadline = Instant::now() + patience;
    let mut late = false;
    while !waiter.is_finished() {
        if Instant::now() > deadline && !late {
            late = true;
            kill_group(pid);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let ended = waiter.join().unwrap_or_else(|_| Err("git is lost".into()));
    let text = reader.join().unwrap_or_default();
    if late {
        let time = hutong_core::units::show_time(patience);
        return Err(format!("git took over {time}"));
    }
    ended.map(|()| text)
}
