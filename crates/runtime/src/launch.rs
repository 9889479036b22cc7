//! How an instance comes to be: spawn the shim, tell it what to build, put its child into cgroups,
//! connect its network, wait until the program was executed.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use hutong_ipc::channel;
use hutong_ipc::shim::{Go, Launch, Step};
use hutong_ipc::warden::Limits;

use crate::cgroup::Cgroups;
use crate::egress::Network;
use crate::instances::{Instances, Record};
use crate::paths::Layout;
use crate::{processes, sys};

pub static SHIM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hutong-shim"));

/// A launch may take this long, everything included.
const PATIENCE: Duration = Duration::from_secs(20);

/// The shim's program as an unnamed, sealed file.
pub fn shim_program() -> std::io::Result<OwnedFd> {
    sys::executable_in_memory(c"hutong-shim", SHIM)
}

/// What every launch needs.
pub struct Launcher<'a> {
    pub layout: &'a Layout,
    pub cgroups: &'a Cgroups,
    pub instances: &'a Instances,
    pub shim: &'a OwnedFd,
    /// Whoever reaps children finds them here.
    pub shims: &'a std::sync::Mutex<Vec<i32>>,
    /// Who owns the spool files: control.
    pub control: Option<u32>,
    /// The network and this instance's place in it.
    pub network: Option<(&'a Network, u16)>,
}

impl Launcher<'_> {
    /// Runs one launch; on failure nothing of it is left.
    pub fn run(&self, launch: Launch, record: Record, limits: &Limits) -> Result<(), String> {
        let instance = record.instance.clone();
        let result = self.attempt(launch, record, limits);
        if result.is_err() {
            let _ = fs::remove_file(self.layout.instance_socket(&instance));
        }
        result
    }

    fn attempt(
        &self,
        mut launch: Launch,
        mut record: Record,
        limits: &Limits,
    ) -> Result<(), String> {
        let instance = record.instance.clone();
        let socket_path = self.layout.instance_socket(&instance);
        let _ = fs::remove_file(&socket_path);
        let listener = UnixListener::bind(&socket_path)
            .map_err(|error| format!("{}: {error}", socket_path.display()))?;
        // Anyone may connect, the shim asks the kernel who it is; the folder is closed to apps.
        let _ = fs::set_permissions(&socket_path, fs::Permissions::from_mode(0o666));
        let spool = [self.spool(&instance, "a")?, self.spool(&instance, "b")?];
        let (ours, theirs) = UnixStream::pair().map_err(|error| error.to_string())?;
        let _ = ours.set_read_timeout(Some(PATIENCE));
        let child = Command::new(format!("/proc/self/fd/{}", self.shim.as_raw_fd()))
            .arg0(format!("hutong-shim {instance}"))
            .env_clear()
            .envs(hutong_ipc::fail::environment())
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot start the shim: {error}"))?;
        hutong_ipc::fail::point("launch.spawned");
        record.pid = child.id() as i32;
        self.shims
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .push(record.pid);
        record.start_time = processes::start_time(record.pid).unwrap_or(0);
        let result = self.instances.write(&record).and_then(|()| {
            let places = hutong_ipc::fail::fallible("launch.cgroups")
                .and_then(|()| self.cgroups.prepare(&instance, limits, record.build))
                .map_err(|error| format!("cannot set the caps: {error}"))?;
            launch.cgroup = places.folder.is_some();
            launch.tasks = places.tasks.len();
            let mut fds = vec![listener.as_fd(), spool[0].as_fd(), spool[1].as_fd()];
            fds.extend(places.folder.iter().map(|folder| folder.as_fd()));
            fds.extend(places.tasks.iter().map(|tasks| tasks.as_fd()));
            self.converse(&launch, &record, &ours, &fds)?;
            record.launched = true;
            self.instances.write(&record)
        });
        if result.is_err() {
            if processes::is_alive(record.pid, record.start_time) {
                sys::kill(record.pid, libc::SIGKILL);
            }
            self.instances.clean_up(&instance, None);
        }
        result
    }

    fn converse(
        &self,
        launch: &Launch,
        record: &Record,
        line: &UnixStream,
        fds: &[std::os::fd::BorrowedFd<'_>],
    ) -> Result<(), String> {
        let gone = |error: std::io::Error| format!("the shim went away: {error}");
        channel::send(line, launch, fds).map_err(gone)?;
        loop {
            let step = channel::receive::<Step>(line).map_err(gone)?;
            match step.map(|(step, _)| step) {
                Some(Step::Namespaces) => {
                    if let Some((network, index)) = self.network {
                        hutong_ipc::fail::point("launch.connect");
                        network.connect(index, record.pid)?;
                    }
                }
                Some(Step::Child(_)) => hutong_ipc::fail::point("launch.child"),
                Some(Step::Running) => {
                    hutong_ipc::fail::point("launch.running");
                    return Ok(());
                }
                Some(Step::Failed(reason)) => return Err(reason),
                None => return Err("the shim ended while it built the sandbox".into()),
            }
            channel::send(line, &Go::On, &[]).map_err(gone)?;
        }
    }

    fn spool(&self, instance: &str, half: &str) -> Result<File, String> {
        let path = self.layout.spool().join(format!("{instance}.{half}"));
        open_spool(&path, true, self.control)
            .map_err(|error| format!("{}: {error}", path.display()))
    }
}

/// Opens a spool file for reading and appending, and gives it to `owner`. The folder is control's, which
/// may have been broken into: no link is followed, and another name of somebody else's file, or anything
/// but a file, is removed where one may be made, else refused.
pub fn open_spool(path: &std::path::Path, make: bool, owner: Option<u32>) -> std::io::Result<File> {
    let open = || {
        OpenOptions::new()
            .read(true)
            .append(true)
            .create(make)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)
    };
    let is_ours = |file: &File| file.metadata().is_ok_and(|m| m.is_file() && m.nlink() == 1);
    let file = match open() {
        Ok(file) if is_ours(&file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(error),
        found if make => {
            let found = found.map_or_else(|error| error.to_string(), |_| "another's file".into());
            tracing::warn!("{} is replaced: {found}", path.display());
            fs::remove_file(path)?;
            let file = open()?;
            if !is_ours(&file) {
                return Err(std::io::Error::other("not a file of its own"));
            }
            file
        }
        Ok(_) => return Err(std::io::Error::other("not a file of its own")),
        Err(error) => return Err(error),
    };
    if let Some(uid) = owner {
        fchown(&file, Some(uid), Some(uid))?;
    }
    Ok(file)
}
