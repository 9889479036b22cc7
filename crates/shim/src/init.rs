//! Pid 1 of the instance: builds the sandbox around itself, gives its privileges up, runs the program,
//! reaps orphans, and ends with it. If the line to the shim closes, it ends, and the kernel kills all
//! that is left in its namespace.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use hutong_ipc::channel;
use hutong_ipc::shim::{Exec, Exit, INIT_UID, Launch, Wall};
use serde::{Deserialize, Serialize};

use crate::{Context, landlock, sandbox, sys};

/// shim → init.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    Go,
    Signal(i32),
    KillAll,
    /// SIGKILL to a program that `Exec` started, and its group.
    KillGuest {
        id: u32,
    },
    /// Three descriptors come along.
    Exec {
        id: u32,
        exec: Exec,
    },
}

/// init → shim.
#[derive(Debug, Serialize, Deserialize)]
pub enum News {
    WantsIds,
    Running,
    Failed(String),
    Ended(Exit),
    ExecStarted { id: u32 },
    ExecEnded { id: u32, exit: Exit },
}

pub fn tell(line: &UnixStream, order: &Order) -> Result<(), String> {
    channel::send(line, order, &[]).during("init went away")
}

pub fn heard(line: &UnixStream) -> Result<News, String> {
    match channel::receive(line) {
        Ok(Some((news, _))) => Ok(news),
        Ok(None) => Err("init ended before the program ran".into()),
        Err(error) => Err(format!("cannot hear init: {error}")),
    }
}

/// Never returns; `line` is the socketpair to the shim.
pub fn run(
    launch: &Launch,
    tasks: Vec<File>,
    mapping: Option<OwnedFd>,
    line: UnixStream,
    outputs: [OwnedFd; 2],
) -> ! {
    let started = start(launch, tasks, mapping, &line, &outputs);
    drop(outputs);
    let program = match started {
        Ok(pid) => pid,
        Err(reason) => {
            let _ = channel::send(&line, &News::Failed(reason), &[]);
            sys::exit(1)
        }
    };
    let _ = channel::send(&line, &News::Running, &[]);
    let exit = Init {
        launch,
        line,
        program,
        guests: Vec::new(),
    }
    .serve();
    sys::exit(exit)
}

fn await_go(line: &UnixStream) -> Result<(), String> {
    match channel::receive(line) {
        Ok(Some((Order::Go, _))) => Ok(()),
        _ => Err("the shim went away".into()),
    }
}

fn start(
    launch: &Launch,
    tasks: Vec<File>,
    mapping: Option<OwnedFd>,
    line: &UnixStream,
    [stdout, stderr]: &[OwnedFd; 2],
) -> Result<i32, String> {
    await_go(line)?;
    for mut tasks in tasks {
        tasks.write_all(b"0").during("cannot enter its cgroups")?;
    }
    // From here on this process is in its cgroups; namespaces made now begin there.
    hutong_ipc::fail::point("begin");
    sys::unshare(
        libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP,
    )
    .during("cannot make the mount, ipc, uts and cgroup namespaces")?;
    let cwd = if launch.without.contains(&Wall::Root) {
        if !launch.without.contains(&Wall::Pid) {
            sandbox::own_proc()?;
        }
        let app = launch.mounts.iter().find(|mount| mount.target == "/app");
        app.map_or("/", |mount| mount.source.as_str())
    } else {
        hutong_ipc::fail::point("mount namespace");
        sandbox::enter(launch, mapping.as_ref())?;
        // An image's folders may be closed to init; its programs go there themselves.
        match &launch.root {
            Some(_) => "/",
            None => launch.cwd.as_str(),
        }
    };
    drop(mapping);
    // While this process may still open everything.
    let rules = landlock::rules(launch)?;
    if !launch.without.contains(&Wall::User) {
        if launch.uid_base.is_some() {
            let base = launch.uid_base.unwrap_or_default();
            sys::own_next_namespace(base + INIT_UID).during("cannot own the user namespace")?;
            sys::unshare(libc::CLONE_NEWUSER).during("cannot make the user namespace")?;
            channel::send(line, &News::WantsIds, &[]).during("the shim went away")?;
            await_go(line)?;
            sys::set_ids(INIT_UID, INIT_UID).during("cannot take on init's id")?;
        }
        let keep = [
            sys::CAP_KILL,
            sys::CAP_SETGID,
            sys::CAP_SETUID,
            sys::CAP_SETPCAP,
        ];
        // What it gives on to programs it must have.
        let more = launch.uid_base.map_or(0, |_| launch.user.capabilities);
        let mask = keep.iter().fold(more, |mask, cap| mask | 1u64 << cap);
        sys::set_capabilities(mask).during("cannot drop capabilities")?;
    }
    sys::not_dumpable();
    sys::leave_session_keyring();
    let filtered = !launch.without.contains(&Wall::Seccomp);
    if filtered || rules.is_some() {
        sys::no_new_privileges().during("cannot set no_new_privs")?;
    }
    if let Some(rules) = rules {
        sys::landlock_enforce(&rules).during("cannot enforce Landlock")?;
    }
    // Last: it need not allow what comes before.
    if filtered && !launch.seccomp.is_empty() {
        sys::load_seccomp(&launch.seccomp).during("cannot load the seccomp filter")?;
    }
    sys::chdir(cwd).during(&format!("cannot enter {cwd}"))?;
    let null = File::open("/dev/null").during("cannot open /dev/null")?;
    let stdio = [null.as_fd(), stdout.as_fd(), stderr.as_fd()];
    spawn(launch, &launch.argv, &launch.env, stdio, false)
}

/// What a child could not do, beside the number of the error.
const NOT_EXECUTED: i32 = 0;
const NOT_ENTERED: i32 = 1 << 16;

/// Forks and executes a program as the app's user; an error is the exec's own.
fn spawn(
    launch: &Launch,
    argv: &[String],
    env: &[(String, String)],
    stdio: [std::os::fd::BorrowedFd<'_>; 3],
    terminal: bool,
) -> Result<i32, String> {
    let (report, report_end) = sys::pipe().during("cannot make a pipe")?;
    let child = sys::fork().during("cannot fork (are the pids used up?)")?;
    if child == 0 {
        let (what, failure) = match become_app(launch, stdio, terminal) {
            Err(error) => (NOT_EXECUTED, error),
            Ok(()) => match enter_folder(launch) {
                Err(error) => (NOT_ENTERED, error),
                Ok(()) => (NOT_EXECUTED, sys::execute(argv, env)),
            },
        };
        let report = what | failure.raw_os_error().unwrap_or(0);
        let _ = File::from(report_end).write_all(&report.to_le_bytes());
        sys::exit(127);
    }
    drop(report_end);
    let mut errno = [0; 4];
    let failed = |report: i32| match report & NOT_ENTERED {
        0 => why_not_executed(launch, &argv[0], env, report),
        _ => format!(
            "cannot enter {}: {}",
            launch.cwd,
            sys::describe(report & !NOT_ENTERED)
        ),
    };
    // The descriptor does not block, so wait for data or for the end.
    // The child has the app's id by now, so the app may stop it: not for long.
    if sys::poll(&[(report.as_raw_fd(), sys::READABLE)], 5000)[0] == 0 {
        sys::kill(child, libc::SIGKILL);
        return Err("it was stopped before it could run".into());
    }
    match File::from(report).read_exact(&mut errno) {
        Err(_) => Ok(child),
        Ok(()) => Err(failed(i32::from_le_bytes(errno))),
    }
}

fn become_app(
    launch: &Launch,
    stdio: [std::os::fd::BorrowedFd<'_>; 3],
    terminal: bool,
) -> std::io::Result<()> {
    sys::prepare_program(stdio, terminal)?;
    if launch.without.contains(&Wall::Pid) {
        sys::die_with_parent();
    }
    if launch.without.contains(&Wall::User) {
        return Ok(());
    }
    if launch.uid_base.is_none() {
        sys::drop_bounding_set(0);
        return sys::set_capabilities(0);
    }
    let user = launch.user;
    sys::drop_bounding_set(user.capabilities);
    sys::set_ids(user.uid, user.gid)?;
    sys::set_capabilities(user.capabilities)
}

/// Of an image; elsewhere init is there already.
fn enter_folder(launch: &Launch) -> std::io::Result<()> {
    match &launch.root {
        Some(_) => sys::chdir(&launch.cwd),
        None => Ok(()),
    }
}

fn why_not_executed(
    launch: &Launch,
    program: &str,
    env: &[(String, String)],
    errno: i32,
) -> String {
    let found = sys::candidates(program, env)
        .into_iter()
        .find(|path| sys::exists(path));
    if let (Some(_), libc::ENOENT, None) = (&launch.root, errno, &found) {
        return match program.contains('/') {
            true => format!("there is no file `{program}` in the image"),
            false => format!("the program `{program}` was not found in the image's PATH"),
        };
    }
    match (errno, found) {
        (libc::ENOENT, None) if program.contains('/') => {
            format!("there is no file `{program}` in the app's folder")
        }
        (libc::ENOENT, None) => format!(
            "the program `{program}` was not found; it must be installed below /usr on the server or come with the app"
        ),
        (libc::ENOENT, Some(path)) => {
            format!("`{path}` is there, but the interpreter or loader that it names is not")
        }
        (libc::EACCES, _) => {
            format!("`{program}` is not executable; set its mode (chmod +x) before deploying")
        }
        (libc::ENOEXEC, _) => format!(
            "`{program}` is neither a program for this machine nor a script that begins with #!"
        ),
        _ => format!("cannot execute `{program}`: {}", sys::describe(errno)),
    }
}

/// How many programs `exec` may run at once in one instance.
const MAX_GUESTS: usize = 16;

struct Init<'a> {
    launch: &'a Launch,
    line: UnixStream,
    program: i32,
    guests: Vec<(i32, u32)>,
}

impl Init<'_> {
    fn serve(mut self) -> i32 {
        let Ok(signal) = sys::child_signal() else {
            return 1;
        };
        loop {
            sys::drain_signal(&signal);
            while let Some((pid, status)) = sys::reap() {
                let exit = sys::exit_of(status);
                if pid == self.program {
                    self.say(&News::Ended(exit));
                    return 0;
                }
                if let Some(index) = self.guests.iter().position(|(guest, _)| *guest == pid) {
                    let (_, id) = self.guests.swap_remove(index);
                    self.say(&News::ExecEnded { id, exit });
                }
            }
            let fds = [
                (signal.as_raw_fd(), sys::READABLE),
                (self.line.as_raw_fd(), sys::READABLE),
            ];
            if sys::poll(&fds, -1)[1] != 0 && !self.obey() {
                return 1;
            }
        }
    }

    fn say(&self, news: &News) {
        let _ = channel::send(&self.line, news, &[]);
    }

    /// One order; false when the shim is gone.
    fn obey(&mut self) -> bool {
        let Ok(Some((order, fds))) = channel::receive(&self.line) else {
            return false;
        };
        match order {
            Order::Go => {}
            Order::Signal(signal) => sys::kill(-self.program, signal),
            Order::KillAll => sys::kill(-1, libc::SIGKILL),
            Order::KillGuest { id } => {
                if let Some((guest, _)) = self.guests.iter().find(|(_, other)| *other == id) {
                    sys::kill(-guest, libc::SIGKILL);
                }
            }
            Order::Exec { id, exec } => self.exec(id, &exec, &fds),
        }
        true
    }

    fn exec(&mut self, id: u32, exec: &Exec, fds: &[OwnedFd]) {
        let failed = |why: String| News::ExecEnded {
            id,
            exit: Exit::NotStarted(why),
        };
        let news = match fds {
            _ if self.guests.len() >= MAX_GUESTS => failed("too many programs at once".into()),
            [input, output, error] => {
                let stdio = [input.as_fd(), output.as_fd(), error.as_fd()];
                match spawn(self.launch, &exec.argv, &exec.env, stdio, exec.terminal) {
                    Ok(pid) => {
                        self.guests.push((pid, id));
                        News::ExecStarted { id }
                    }
                    Err(why) => failed(why),
                }
            }
            _ => failed("three descriptors are needed".into()),
        };
        self.say(&news);
    }
}
