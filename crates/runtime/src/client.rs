//! The other end: what `control` uses to reach the warden and the shims. Blocking and short; call it
//! from a blocking thread.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use hutong_ipc::channel;
use hutong_ipc::gateway::Secret;
use hutong_ipc::shim;
use hutong_ipc::warden::{
    Answer, Build, DiskUse, Evidence, ImageLayers, Instance, Leak, Process, Request, Snapshot,
    Start, Unpack, Wanted,
};
use thiserror::Error;

#[derive(Debug, Error)]
pub enum DriverError {
    #[error("the warden cannot be reached at {path}")]
    Unreachable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// What the warden says, for a person.
    #[error("{0}")]
    Refused(String),
    /// Asked again, it may go.
    #[error("{0}")]
    Later(String),
    #[error("the warden gave an answer that does not fit the question")]
    Unexpected,
}

/// What can run apps. Each method is idempotent or fails without a trace.
pub trait Driver: Send + Sync {
    fn start(&self, start: Start) -> Result<(), DriverError>;
    fn list(&self) -> Result<Vec<Instance>, DriverError>;
    /// SIGTERM, and SIGKILL after the time-out; returns at once.
    fn stop(&self, instance: &str, timeout: Duration) -> Result<(), DriverError>;
    fn kill(&self, instance: &str) -> Result<(), DriverError>;
    /// TCP ports that something in the instance listens on.
    fn listening(&self, instance: &str) -> Result<Vec<shim::Listening>, DriverError>;
}

/// How long an answer may take; and one for which a build's result is read through, which has a bound of its own, and may
/// have to wait for another's.
const ANSWER: Duration = Duration::from_secs(120);
const LONG_ANSWER: Duration = Duration::from_secs(15 * 60);

/// Idle connections that are kept.
const KEPT: usize = 4;

/// Connections to the warden, made anew when they break. Each request has one to itself, so that a slow
/// one (a build's copy) keeps nobody waiting.
pub struct WardenClient {
    path: PathBuf,
    instances: PathBuf,
    idle: Mutex<Vec<UnixStream>>,
}

impl WardenClient {
    pub fn new(run_dir: &Path) -> Self {
        WardenClient {
            path: run_dir.join("warden.sock"),
            instances: run_dir.join("i"),
            idle: Mutex::new(Vec::new()),
        }
    }

    /// One request; a broken line is mended once, because the warden may have been restarted.
    fn ask(&self, request: &Request) -> Result<Answer, DriverError> {
        let unreachable = |source| DriverError::Unreachable {
            path: self.path.clone(),
            source,
        };
        let idle = self.idle().pop();
        if let Some(open) = idle {
            match channel::call(&open, request, &[]) {
                Ok((answer, _)) => {
                    self.keep(open);
                    return refused(answer);
                }
                // It is still at it: asking twice would do it twice.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    return Err(unreachable(error));
                }
                // The others are as old.
                Err(_) => self.idle().clear(),
            }
        }
        let fresh = UnixStream::connect(&self.path).map_err(unreachable)?;
        let _ = fresh.set_read_timeout(Some(ANSWER));
        let (answer, _) = channel::call(&fresh, request, &[]).map_err(unreachable)?;
        self.keep(fresh);
        refused(answer)
    }

    /// As [`Self::ask`], for what takes long: on a line of its own, with more time.
    fn ask_patiently(&self, request: &Request) -> Result<Answer, DriverError> {
        let unreachable = |source| DriverError::Unreachable {
            path: self.path.clone(),
            source,
        };
        let fresh = UnixStream::connect(&self.path).map_err(unreachable)?;
        let _ = fresh.set_read_timeout(Some(LONG_ANSWER));
        let (answer, _) = channel::call(&fresh, request, &[]).map_err(unreachable)?;
        refused(answer)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<UnixStream>> {
        self.idle
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn keep(&self, line: UnixStream) {
        let mut idle = self.idle();
        if idle.len() < KEPT {
            idle.push(line);
        }
    }

    fn done(&self, request: &Request) -> Result<(), DriverError> {
        match self.ask(request)? {
            Answer::Done => Ok(()),
            _ => Err(DriverError::Unexpected),
        }
    }

    fn shim(&self, instance: &str) -> Result<UnixStream, DriverError> {
        connect_shim(&self.instances, instance)
    }

    pub fn build(&self, build: Build, goes_on: bool) -> Result<(), DriverError> {
        let build = Box::new(build);
        self.done(&if goes_on {
            Request::BuildStep(build)
        } else {
            Request::Build(build)
        })
    }

    /// The result's content digest, if this was the first to ask.
    pub fn build_keep(
        &self,
        instance: &str,
        app: &str,
        key: &str,
        secrets: &[(String, Secret)],
    ) -> Result<Option<String>, DriverError> {
        match self.ask_patiently(&Request::BuildKeep {
            instance: instance.into(),
            app: app.into(),
            key: key.into(),
            secrets: secrets.to_vec(),
        })? {
            Answer::Kept(digest) => Ok(digest),
            _ => Err(DriverError::Unexpected),
        }
    }

    /// Throws away what an app's builds keep for the next one.
    pub fn drop_cache(&self, app: &str) -> Result<(), DriverError> {
        self.done(&Request::DropCache { app: app.into() })
    }

    pub fn build_drop(&self, instance: &str) -> Result<(), DriverError> {
        self.done(&Request::BuildDrop {
            instance: instance.into(),
        })
    }

    /// Throws away what no build under way needs; `keep` are their ids without the step.
    pub fn build_sweep(&self, keep: Vec<String>) -> Result<(), DriverError> {
        self.done(&Request::BuildSweep { keep })
    }

    pub fn has_built(&self, app: &str, key: &str) -> Result<bool, DriverError> {
        match self.ask(&Request::HasBuilt {
            app: app.into(),
            key: key.into(),
        })? {
            Answer::Yes(there) => Ok(there),
            _ => Err(DriverError::Unexpected),
        }
    }

    pub fn drop_built(&self, app: &str, key: &str) -> Result<(), DriverError> {
        self.done(&Request::DropBuilt {
            app: app.into(),
            key: key.into(),
        })
    }

    /// Starts to unpack layers; it ends like a build.
    pub fn unpack(&self, unpack: Unpack) -> Result<(), DriverError> {
        self.done(&Request::Unpack(Box::new(unpack)))
    }

    /// Keeps what was unpacked: a layer by its digest, or an image of the app by its own.
    pub fn unpack_keep(
        &self,
        instance: &str,
        app: &str,
        flat: bool,
        digest: &str,
    ) -> Result<(), DriverError> {
        self.done(&Request::UnpackKeep {
            instance: instance.into(),
            app: app.into(),
            flat,
            digest: digest.into(),
        })
    }

    /// Whether layers of images can be stacked on this host.
    pub fn can_stack(&self) -> Result<bool, DriverError> {
        match self.ask(&Request::CanStack)? {
            Answer::Yes(stacks) => Ok(stacks),
            _ => Err(DriverError::Unexpected),
        }
    }

    pub fn has_layers(&self, app: &str, layers: ImageLayers) -> Result<bool, DriverError> {
        match self.ask(&Request::HasLayers {
            app: app.into(),
            layers,
        })? {
            Answer::Yes(there) => Ok(there),
            _ => Err(DriverError::Unexpected),
        }
    }

    /// An image's /etc/passwd, if it has one.
    pub fn passwd(&self, app: &str, layers: ImageLayers) -> Result<Option<String>, DriverError> {
        match self.ask(&Request::Passwd {
            app: app.into(),
            layers,
        })? {
            Answer::Text(text) => Ok(text),
            _ => Err(DriverError::Unexpected),
        }
    }

    /// Throws away the unpacked layers and images that are not among these.
    pub fn images_sweep(
        &self,
        layers: Vec<String>,
        flat: Vec<(String, String)>,
    ) -> Result<(), DriverError> {
        self.done(&Request::ImagesSweep { layers, flat })
    }

    pub fn drop_data(&self, app: &str) -> Result<(), DriverError> {
        self.done(&Request::DropData { app: app.into() })
    }

    /// Copies an app's data aside. One that is there already stays as it is, and so does the oldest from `keep` on.
    pub fn snapshot(&self, app: &str, id: u64, keep: u64) -> Result<(), DriverError> {
        let app = app.into();
        self.done(&Request::Snapshot { app, id, keep })
    }

    /// An app's snapshots, the newest first.
    pub fn snapshots(&self, app: &str) -> Result<Vec<Snapshot>, DriverError> {
        match self.ask(&Request::Snapshots { app: app.into() })? {
            Answer::Snapshots(list) => Ok(list),
            _ => Err(DriverError::Unexpected),
        }
    }

    pub fn drop_snapshot(&self, app: &str, id: u64) -> Result<(), DriverError> {
        let app = app.into();
        self.done(&Request::DropSnapshot { app, id })
    }

    /// Puts a snapshot in the place of an app's data; nothing of the app runs.
    pub fn restore(&self, app: &str, id: u64) -> Result<(), DriverError> {
        let app = app.into();
        self.done(&Request::Restore { app, id })
    }

    /// Makes an app's first data of another's.
    pub fn copy_data(&self, from: &str, to: &str) -> Result<(), DriverError> {
        let (from, to) = (from.into(), to.into());
        self.done(&Request::CopyData { from, to })
    }

    pub fn system(&self) -> Result<Vec<Process>, DriverError> {
        match self.ask(&Request::System)? {
            Answer::System(list) => Ok(list),
            _ => Err(DriverError::Unexpected),
        }
    }

    pub fn leaks(
        &self,
        apps: Vec<String>,
        builds: Vec<String>,
        fix: Vec<(String, String)>,
    ) -> Result<Vec<Leak>, DriverError> {
        match self.ask(&Request::Leaks { apps, builds, fix })? {
            Answer::Leaks(list) => Ok(list),
            _ => Err(DriverError::Unexpected),
        }
    }

    /// Freezes every process of an instance and cuts its way out, or undoes that.
    pub fn freeze(&self, instance: &str, frozen: bool) -> Result<(), DriverError> {
        self.done(&Request::Freeze {
            instance: instance.into(),
            frozen,
        })
    }

    /// What an app's processes are and hold.
    pub fn examine(&self, app: &str) -> Result<Vec<Evidence>, DriverError> {
        match self.ask(&Request::Examine { app: app.into() })? {
            Answer::Evidence(found) => Ok(found),
            _ => Err(DriverError::Unexpected),
        }
    }

    /// What these apps keep on disk.
    pub fn disk(&self, apps: Vec<String>) -> Result<Vec<DiskUse>, DriverError> {
        match self.ask(&Request::Disk { apps })? {
            Answer::Disk(found) => Ok(found),
            _ => Err(DriverError::Unexpected),
        }
    }

    pub fn upgrade(&self) -> Result<(), DriverError> {
        self.done(&Request::Upgrade)
    }

    pub fn doctor(&self) -> Result<Vec<Wanted>, DriverError> {
        match self.ask(&Request::Doctor)? {
            Answer::Doctor(list) => Ok(list),
            _ => Err(DriverError::Unexpected),
        }
    }

    /// Starts a program in a running instance; the connection says when it ended.
    pub fn exec(
        &self,
        instance: &str,
        exec: shim::Exec,
        stdio: [impl AsFd; 3],
    ) -> Result<UnixStream, DriverError> {
        let line = self.shim(instance)?;
        let fds = stdio.each_ref().map(|fd| fd.as_fd());
        match call_shim(&line, &shim::Request::Exec(exec), &fds)? {
            shim::Answer::ExecStarted => {
                let _ = line.set_read_timeout(None);
                Ok(line)
            }
            shim::Answer::ExecEnded(exit) => Err(DriverError::Refused(exit.to_string())),
            shim::Answer::Refused(reason) => Err(DriverError::Refused(reason)),
            _ => Err(DriverError::Unexpected),
        }
    }
}

impl Driver for WardenClient {
    fn start(&self, start: Start) -> Result<(), DriverError> {
        self.done(&Request::Start(Box::new(start)))
    }

    fn list(&self) -> Result<Vec<Instance>, DriverError> {
        match self.ask(&Request::List)? {
            Answer::Instances(list) => Ok(list),
            _ => Err(DriverError::Unexpected),
        }
    }

    fn stop(&self, instance: &str, timeout: Duration) -> Result<(), DriverError> {
        let request = shim::Request::Stop {
            timeout_ms: timeout.as_millis() as u64,
        };
        call_shim(&self.shim(instance)?, &request, &[]).map(drop)
    }

    fn kill(&self, instance: &str) -> Result<(), DriverError> {
        self.done(&Request::Kill {
            instance: instance.into(),
        })
    }

    fn listening(&self, instance: &str) -> Result<Vec<shim::Listening>, DriverError> {
        match call_shim(&self.shim(instance)?, &shim::Request::Status, &[])? {
            shim::Answer::Status(status) => Ok(status.listening),
            _ => Err(DriverError::Unexpected),
        }
    }
}

/// Where an instance's shim listens.
pub fn shim_socket(run_dir: &Path, instance: &str) -> PathBuf {
    run_dir.join("i").join(format!("{instance}.sock"))
}

/// A line to an instance's shim; its end is the instance's end.
pub fn connect_shim(instances: &Path, instance: &str) -> Result<UnixStream, DriverError> {
    let path = instances.join(format!("{instance}.sock"));
    let line = UnixStream::connect(&path).map_err(|source| DriverError::Unreachable {
        path: path.clone(),
        source,
    })?;
    let _ = line.set_read_timeout(Some(Duration::from_secs(5)));
    Ok(line)
}

fn call_shim(
    line: &UnixStream,
    request: &shim::Request,
    fds: &[std::os::fd::BorrowedFd<'_>],
) -> Result<shim::Answer, DriverError> {
    channel::call(line, request, fds)
        .map(|(answer, _)| answer)
        .map_err(|error| DriverError::Refused(format!("the instance does not answer: {error}")))
}

fn refused(answer: Answer) -> Result<Answer, DriverError> {
    match answer {
        Answer::Failed(reason) => Err(DriverError::Refused(reason)),
        Answer::Later(reason) => Err(DriverError::Later(reason)),
        other => Ok(other),
    }
}
