//! One program in a sandbox that is missing some of its walls: how `doctor` finds the wall that this host cannot have, and how
//! it is shown that each wall holds by itself.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hutong_ipc::channel;
use hutong_ipc::shim::{Go, Launch, Root, Step, Wall};
use hutong_ipc::spool::{self, Cursor, Kind};

use crate::{launch, sandbox, seccomp};

/// Ids that are nobody's.
const TRIAL_IDS: u32 = 0x6fff_0000;

/// A program that was started; it ends with this.
pub struct Trial {
    shim: Child,
    spool: [File; 2],
}

impl Drop for Trial {
    fn drop(&mut self) {
        let _ = self.shim.kill();
        let _ = self.shim.wait();
    }
}

impl Trial {
    /// Starts a program without these walls. `app` is what it sees as `/app`. As root it gets ids that are nobody's: it
    /// is to live for a moment and own nothing.
    pub fn start(without: &[Wall], argv: &[&str], app: Option<&Path>) -> Result<Self, String> {
        let mut mounts = sandbox::host_mounts();
        mounts.extend(app.map(|folder| sandbox::mount(folder, "/app", false)));
        Self::launch(Launch {
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            mounts,
            files: sandbox::files("trial", "/tmp", None),
            without: without.to_vec(),
            ..Launch::default()
        })
    }

    /// Starts a program of an image.
    pub fn start_in(root: Root, argv: &[&str]) -> Result<Self, String> {
        Self::launch(Launch {
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            files: sandbox::files_of_image("trial"),
            root: Some(root),
            ..Launch::default()
        })
    }

    /// With what all of them have in common.
    fn launch(launch: Launch) -> Result<Self, String> {
        let text = |error: std::io::Error| error.to_string();
        let program = launch::shim_program().map_err(text)?;
        let (ours, theirs) = UnixStream::pair().map_err(text)?;
        let _ = ours.set_read_timeout(Some(Duration::from_secs(10)));
        let spool = [unnamed_file()?, unnamed_file()?];
        let shim = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
            .arg0("hutong-shim trial")
            .env_clear()
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot start the shim: {error}"))?;
        let trial = Trial { shim, spool };
        let is_root = crate::sys::effective_uid() == 0;
        let launch = Launch {
            instance: "trial".into(),
            hostname: "trial".into(),
            uid_base: is_root.then_some(TRIAL_IDS),
            cwd: "/".into(),
            tmp_bytes: 64 << 20,
            seccomp: seccomp::program()?,
            spool_bytes: 1 << 20,
            ..launch
        };
        // Nobody asks it anything.
        let socket = std::os::unix::net::UnixDatagram::unbound().map_err(text)?;
        let fds = [
            socket.as_fd(),
            trial.spool[0].as_fd(),
            trial.spool[1].as_fd(),
        ];
        channel::send(&ours, &launch, &fds).map_err(text)?;
        loop {
            match channel::receive::<Step>(&ours).map_err(text)? {
                Some((Step::Running, _)) => return Ok(trial),
                Some((Step::Failed(reason), _)) => return Err(reason),
                Some(_) => channel::send(&ours, &Go::On, &[]).map_err(text)?,
                None => return Err("the shim ended without a word".into()),
            }
        }
    }

    /// What it printed until its end, or until so much time has passed.
    pub fn output(mut self, patience: Duration) -> String {
        let began = Instant::now();
        while matches!(self.shim.try_wait(), Ok(None)) && began.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut cursor = Cursor::default();
        let mut said = Vec::new();
        while let Ok(records) = spool::read(&self.spool, &mut cursor, 1 << 20) {
            if records.is_empty() {
                break;
            }
            let output = records.into_iter().filter(|one| one.kind == Kind::Stdout);
            output.for_each(|one| said.extend(one.payload));
        }
        String::from_utf8_lossy(&said).into_owned()
    }
}

fn unnamed_file() -> Result<File, String> {
    let file = rustix::fs::memfd_create("spool", rustix::fs::MemfdFlags::CLOEXEC);
    file.map(File::from).map_err(|error| error.to_string())
}
