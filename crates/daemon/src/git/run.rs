//! Git as a program: always in one repository, behind the walls of `runtime/confine`, with nothing of our environment, no
//! shell, and no settings but ours.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hutong_runtime::confine::{self, Bounds};

use crate::Control;

use super::repo::Repo;

/// Where programs are.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// Address space of one git; what it maps of packs is bounded by the repository's settings.
const MEMORY: u64 = 2 << 30;
const CPU_S: u64 = 900;
/// A file may be larger than what came in, by the index of a pack.
const FILE_SLACK: u64 = 64 << 20;
/// What of its complaints is kept.
const STDERR: u64 = 8 << 10;
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
        .and_then(|()| std::env::set_current_dir(folder))
        .and_then(|()| confine::enter(&bounds));
    if let Err(error) = entered {
        return format!("git cannot be started behind its walls: {error}");
    }
    let error = Command::new("git")
        .args(arguments)
        .env_remove(FILE_BYTES)
        .exec();
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no git on this server".into(),
        _ => format!("git cannot be started: {error}"),
    }
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

/// Waits for the end of a git whose output was read; the error is what it said, or how it ended.
pub fn finish(mut child: Child) -> Result<(), String> {
    let mut said = String::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(STDERR).read_to_string(&mut said);
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    if status.success() {
        return Ok(());
    }
    let last = said.lines().rev().find(|line| !line.trim().is_empty());
    Err(match last {
        Some(line) => super::plain(line),
        None => format!("git ended with {status}"),
    })
}

/// Runs a git that says little to its end, or kills it after `patience`; its output.
pub fn run(mut command: Command, patience: Duration) -> Result<String, String> {
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let pid = child.id();
    let output = child.stdout.take();
    // A thread each, so that neither pipe fills up while we wait.
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        if let Some(output) = output {
            let _ = output.take(1 << 20).read_to_string(&mut text);
        }
        text
    });
    let waiter = std::thread::spawn(move || finish(child));
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
