//! Control's end of the Docker driver: the same things as are asked of the warden, for apps from images.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hutong_core::spec;
use hutong_ipc::channel;
use hutong_ipc::docker::{self, About, Answer, Container, Foreign, Image, Pull, Request, Start};
use hutong_ipc::shim::Exec;
use hutong_ipc::warden::{Evidence, Instance, Reach};
use hutong_runtime::client::{Driver, DriverError};

use crate::{Control, lock};

/// How long an answer may take; the driver waits for nobody, but when it fetches an image.
const PATIENCE: Duration = Duration::from_secs(10);
/// An image may be large and the way to it slow.
const FETCH: Duration = Duration::from_secs(30 * 60);

pub struct DockerClient {
    path: PathBuf,
    idle: Mutex<Option<UnixStream>>,
    /// Instances that are containers, as of the last look, and those that were asked for since.
    known: Mutex<HashSet<String>>,
    last: Mutex<Vec<Instance>>,
}

impl DockerClient {
    pub fn new(run_dir: &std::path::Path) -> Self {
        DockerClient {
            path: run_dir.join("docker.sock"),
            idle: Mutex::new(None),
            known: Mutex::default(),
            last: Mutex::default(),
        }
    }

    fn connect(&self, patience: Duration) -> Result<UnixStream, DriverError> {
        let unreachable = |source| DriverError::Unreachable {
            path: self.path.clone(),
            source,
        };
        let line = UnixStream::connect(&self.path).map_err(unreachable)?;
        line.set_read_timeout(Some(patience)).map_err(unreachable)?;
        Ok(line)
    }

    /// One request; a line that broke is made anew once, because the driver may have been restarted.
    fn ask(&self, request: &Request) -> Result<Answer, DriverError> {
        let idle = lock(&self.idle).take();
        if let Some(line) = idle
            && let Ok((answer, _)) = channel::call(&line, request, &[])
        {
            *lock(&self.idle) = Some(line);
            return refused(answer);
        }
        let line = self.connect(PATIENCE)?;
        let answer = channel::call(&line, request, &[]);
        let (answer, _) = answer.map_err(|source| DriverError::Unreachable {
            path: self.path.clone(),
            source,
        })?;
        *lock(&self.idle) = Some(line);
        refused(answer)
    }

    fn done(&self, request: &Request) -> Result<(), DriverError> {
        match self.ask(request)? {
            Answer::Done => Ok(()),
            _ => Err(DriverError::Unexpected),
        }
    }

    pub fn list(&self) -> Result<Vec<Instance>, DriverError> {
        match self.ask(&Request::List)? {
            Answer::Instances(list) => {
                let list: Vec<Instance> = list.into_iter().map(instance).collect();
                let names = list.iter().map(|one| one.instance.clone());
                *lock(&self.known) = names.collect();
                lock(&self.last).clone_from(&list);
                Ok(list)
            }
            _ => Err(DriverError::Unexpected),
        }
    }

    pub fn start(&self, start: Start) -> Result<(), DriverError> {
        lock(&self.known).insert(start.instance.clone());
        self.done(&Request::Start(Box::new(start)))
    }

    /// What the last list had.
    fn last(&self) -> Vec<Instance> {
        lock(&self.last).clone()
    }

    /// Whether an instance is a container.
    pub fn has(&self, instance: &str) -> bool {
        lock(&self.known).contains(instance)
    }

    pub fn stop(&self, instance: &str, timeout: Duration) -> Result<(), DriverError> {
        self.done(&Request::Stop {
            instance: instance.to_owned(),
            timeout_ms: timeout.as_millis() as u64,
        })
    }

    pub fn kill(&self, instance: &str) -> Result<(), DriverError> {
        self.done(&Request::Kill {
            instance: instance.to_owned(),
        })
    }

    pub fn freeze(&self, instance: &str, frozen: bool) -> Result<(), DriverError> {
        self.done(&Request::Freeze {
            instance: instance.to_owned(),
            frozen,
        })
    }

    pub fn examine(&self, app: &str) -> Result<Vec<Evidence>, DriverError> {
        match self.ask(&Request::Examine {
            app: app.to_owned(),
        })? {
            Answer::Evidence(found) => Ok(found),
            _ => Err(DriverError::Unexpected),
        }
    }

    /// Removes what belongs to no app.
    pub fn sweep(&self, apps: Vec<String>) -> Result<(), DriverError> {
        self.done(&Request::Sweep { apps, wait: false })
    }

    pub fn about(&self) -> Result<About, DriverError> {
        match self.ask(&Request::About)? {
            Answer::About(about) => Ok(about),
            _ => Err(DriverError::Unexpected),
        }
    }

    /// Containers that others started and that want to be routed.
    pub fn foreign(&self) -> Result<Vec<Foreign>, DriverError> {
        match self.ask(&Request::Foreign)? {
            Answer::Foreign(list) => Ok(list),
            _ => Err(DriverError::Unexpected),
        }
    }

    /// Has the engine fetch an image for an app; takes long.
    pub fn resolve(&self, image: &str, pull: spec::Pull, app: &str) -> Result<Image, DriverError> {
        let request = Request::Resolve {
            image: image.to_owned(),
            app: app.to_owned(),
            pull: match pull {
                spec::Pull::Missing => Pull::Missing,
                spec::Pull::Always => Pull::Always,
                spec::Pull::Never => Pull::Never,
            },
        };
        let line = self.connect(FETCH)?;
        let answer = channel::call(&line, &request, &[]);
        let (answer, _) = answer.map_err(|source| DriverError::Unreachable {
            path: self.path.clone(),
            source,
        })?;
        match refused(answer)? {
            Answer::Resolved(image) => Ok(image),
            _ => Err(DriverError::Unexpected),
        }
    }

    /// Has the engine build an image; takes long. `context` is where the archive can be read, `line` gets what is
    /// printed, and the build ends once `wanted` says no.
    pub fn build(
        &self,
        build: docker::Build,
        context: UnixStream,
        mut line: impl FnMut(&str),
        wanted: impl Fn() -> bool + Sync,
    ) -> Result<Image, DriverError> {
        let broken = |source| DriverError::Unreachable {
            path: self.path.clone(),
            source,
        };
        let server = self.connect(PATIENCE)?;
        server.set_read_timeout(None).map_err(broken)?;
        let request = Request::Build(Box::new(build));
        channel::send(&server, &request, &[context.as_fd()]).map_err(broken)?;
        // The driver's own end is the only one now: whoever writes hears when it is gone.
        drop(context);
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    if !wanted() {
                        // Whoever hangs up has ended it.
                        let _ = server.shutdown(std::net::Shutdown::Both);
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
            });
            let answer = loop {
                match channel::receive::<Answer>(&server) {
                    Ok(Some((Answer::Output(text), _))) => line(&text),
                    Ok(Some((answer, _))) => break refused(answer),
                    Ok(None) => break Err(broken(std::io::ErrorKind::UnexpectedEof.into())),
                    Err(error) => break Err(broken(error)),
                }
            };
            over.store(true, Ordering::Relaxed);
            match answer? {
                Answer::Resolved(image) => Ok(image),
                _ => Err(DriverError::Unexpected),
            }
        })
    }

    /// Removes images that were built here, but for these.
    pub fn sweep_images(&self, keep: Vec<String>) -> Result<(), DriverError> {
        self.done(&Request::SweepImages { keep })
    }

    /// Starts a program in a container; the connection says when it ended, as a shim's does.
    pub fn exec(
        &self,
        instance: &str,
        exec: Exec,
        stdio: [impl AsFd; 3],
    ) -> Result<UnixStream, DriverError> {
        let line = self.connect(PATIENCE)?;
        let fds = stdio.each_ref().map(|fd| fd.as_fd());
        let request = Request::Exec {
            instance: instance.to_owned(),
            exec,
        };
        let answer = channel::call(&line, &request, &fds);
        let (answer, _) = answer.map_err(|error| DriverError::Refused(error.to_string()))?;
        match refused(answer)? {
            Answer::ExecStarted => {
                let _ = line.set_read_timeout(None);
                Ok(line)
            }
            _ => Err(DriverError::Unexpected),
        }
    }
}

/// What is asked of whichever runs an instance.
impl Control {
    /// Everything that runs, wherever. An engine that does not answer hides nothing of what the warden runs; what it ran
    /// is taken to run on.
    pub fn running(&self) -> Result<Vec<Instance>, DriverError> {
        let mut all = self.warden.list()?;
        if self.settings.docker.is_some() {
            let listed = self.docker.list();
            all.extend(listed.unwrap_or_else(|_| self.docker.last()));
        }
        Ok(all)
    }

    /// SIGTERM, and SIGKILL after the time-out; SIGKILL at once if nobody can be asked for that.
    pub fn stop_instance(&self, instance: &str, timeout: Duration) {
        let stopped = match self.docker.has(instance) {
            true => self.docker.stop(instance, timeout),
            false => self.warden.stop(instance, timeout),
        };
        if stopped.is_err() {
            let _ = self.kill_instance(instance);
        }
    }

    pub fn kill_instance(&self, instance: &str) -> Result<(), DriverError> {
        match self.docker.has(instance) {
            true => self.docker.kill(instance),
            false => self.warden.kill(instance),
        }
    }

    pub fn freeze_instance(&self, instance: &str, frozen: bool) -> Result<(), DriverError> {
        match self.docker.has(instance) {
            true => self.docker.freeze(instance, frozen),
            false => self.warden.freeze(instance, frozen),
        }
    }

    /// What an app's processes are and hold, wherever they run.
    pub fn examine(&self, app: &str) -> Result<Vec<Evidence>, DriverError> {
        let mut all = self.warden.examine(app)?;
        if self.settings.docker.is_some() {
            // What can be had is had.
            all.extend(self.docker.examine(app).unwrap_or_default());
        }
        Ok(all)
    }

    pub fn exec_in(
        &self,
        instance: &str,
        exec: Exec,
        stdio: [impl AsFd; 3],
    ) -> Result<UnixStream, DriverError> {
        match self.docker.has(instance) {
            true => self.docker.exec(instance, exec, stdio),
            false => self.warden.exec(instance, exec, stdio),
        }
    }
}

fn refused(answer: Answer) -> Result<Answer, DriverError> {
    match answer {
        Answer::Refused(reason) => Err(DriverError::Refused(reason)),
        Answer::Later(reason) => Err(DriverError::Later(reason)),
        other => Ok(other),
    }
}

fn instance(container: Container) -> Instance {
    Instance {
        instance: container.instance,
        app: container.app,
        deployment: container.deployment,
        build: false,
        pid: container.pid,
        started_at: container.started_at,
        started_steady: container.started_steady,
        container: Some(Reach {
            address: container.address,
            health: container.health,
        }),
        ending: false,
        frozen: container.frozen,
        held: container.frozen,
        memory: container.memory,
        reclaimable: container.reclaimable,
        oom_kills: 0,
        cpu_usec: container.cpu_usec,
    }
}

/// Hears from the driver when something began or ended; and has it clear away what belongs to no app.
pub async fn watch(control: Arc<Control>) {
    if control.settings.docker.is_none() {
        return;
    }
    loop {
        let ours = control.clone();
        let swept = tokio::task::spawn_blocking(move || {
            let apps = ours.store.apps().map_err(|error| error.to_string())?;
            let names = apps.into_iter().map(|app| app.name).collect();
            ours.docker.sweep(names).map_err(|error| error.to_string())
        });
        if let Ok(Ok(())) = swept.await {
            let _ = listen(&control).await;
        }
        control.wake.notify_one();
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Until the driver goes away.
async fn listen(control: &Control) -> std::io::Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut line = tokio::net::UnixStream::connect(&control.docker.path).await?;
    line.write_all(&channel::encode(&Request::Watch)?).await?;
    loop {
        let mut header = [0; 4];
        line.read_exact(&mut header).await?;
        let mut body = vec![0; channel::frame_length(header)?];
        line.read_exact(&mut body).await?;
        control.wake.notify_one();
    }
}
