//! What a warden before this one left running. Its listening sockets are still open in the gateway and
//! in control; a new warden takes them from there (pidfd_getfd(2)), so that no connection that waits in
//! one of their queues is lost, whether the old warden was killed or replaced itself by a newer program.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{socket_acceptconn, socket_domain};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde::{Deserialize, Serialize};

use super::Warden;
use super::children::Role;
use crate::paths::atomic_write;
use crate::{processes, sys};

/// A process in one of our roles, kept in /run for the next warden.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnRecord {
    pub pid: i32,
    pub start_time: u64,
    /// Which set of access spool files a gateway writes to.
    #[serde(default)]
    pub slot: usize,
}

impl OnRecord {
    pub fn of(pid: i32, slot: usize) -> Self {
        OnRecord {
            pid,
            start_time: processes::start_time(pid).unwrap_or(0),
            slot,
        }
    }

    pub fn is_alive(&self) -> bool {
        processes::is_alive(self.pid, self.start_time)
    }

    /// A descriptor that becomes readable when the process ends; none if it has.
    pub fn pidfd(&self) -> Option<OwnedFd> {
        let pidfd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // Asked behind pidfd_open: the number may have become another's before it.
        self.is_alive().then_some(pidfd)
    }
}

fn path(warden: &Warden, role: Role) -> PathBuf {
    warden.layout.run.join(format!("{}.json", role.word()))
}

/// Those on record in a role that live: the last one, and gateways before it that still drain.
pub fn on_record(warden: &Warden, role: Role) -> Vec<OnRecord> {
    let mut found: Vec<OnRecord> = fs::read(path(warden, role))
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    found.retain(OnRecord::is_alive);
    found
}

pub fn put_on_record(warden: &Warden, role: Role, list: &[OnRecord]) {
    let written = serde_json::to_vec(list)
        .map_err(std::io::Error::from)
        .and_then(|text| atomic_write(&path(warden, role), &text, 0o600));
    if let Err(error) = written {
        // The next warden would not find it, and would end it by other means: it holds our port.
        tracing::error!("cannot keep {} on record: {error}", role.word());
    }
}

/// SIGTERM to what runs in this role, SIGKILL after five seconds. Apps are not touched.
pub fn end(warden: &Warden, role: Role) {
    for old in on_record(warden, role) {
        let deadline = Instant::now() + Duration::from_secs(5);
        sys::kill(old.pid, libc::SIGTERM);
        while old.is_alive() {
            // It may be our own child: we may be the same process with a newer program.
            sys::reap(old.pid);
            if Instant::now() > deadline {
                sys::kill(old.pid, libc::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A listening socket of another process of ours.
pub enum Listening {
    Tcp(TcpListener, SocketAddr),
    Unix(UnixListener, PathBuf),
}

/// Every listening socket of a process; none where the kernel does not let us (an ordinary user under
/// Yama), and then the caller binds anew.
pub fn listening(process: &OnRecord) -> Vec<Listening> {
    let Some(pidfd) = process.pidfd() else {
        return Vec::new();
    };
    let mut numbers: Vec<i32> = fs::read_dir(format!("/proc/{}/fd", process.pid))
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            fs::read_link(entry.path())
                .is_ok_and(|link| link.to_string_lossy().starts_with("socket:"))
        })
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers
        .into_iter()
        .filter_map(|number| {
            let fd = pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()).ok()?;
            classify(fd)
        })
        .collect()
}

fn classify(fd: OwnedFd) -> Option<Listening> {
    use rustix::net::AddressFamily;
    if !socket_acceptconn(fd.as_fd()).ok()? {
        return None;
    }
    match socket_domain(fd.as_fd()).ok()? {
        AddressFamily::UNIX => {
            let listener = UnixListener::from(fd);
            let path = listener.local_addr().ok()?.as_pathname()?.to_owned();
            Some(Listening::Unix(listener, path))
        }
        AddressFamily::INET | AddressFamily::INET6 => {
            let listener = TcpListener::from(fd);
            let address = listener.local_addr().ok()?;
            Some(Listening::Tcp(listener, address))
        }
        _ => None,
    }
}

/// Whether a socket's path still leads to a socket; if somebody removed it, nobody finds ours.
pub fn still_there(path: &Path) -> bool {
    fs::symlink_metadata(path)
        .is_ok_and(|found| std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()))
}
