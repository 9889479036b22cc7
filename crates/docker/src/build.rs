//! Images built by the engine of a Dockerfile. What it runs gets the caps of a build of ours: memory and processor as
//! the engine takes them, and a bound of processes that is set the moment the engine says that it made the container.
//! The engine's own, older builder is used: it needs no session, keeps each step as an image, and ends with the
//! connection. It has no build secrets, so there are none for Dockerfiles.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use bollard::body_try_stream;
use bollard::errors::Error;
use bollard::models::ContainerUpdateBody;
use bollard::query_parameters::{
    BuildImageOptions, InspectContainerOptions, ListImagesOptions, RemoveImageOptions,
};
use bytes::Bytes;
use futures_util::StreamExt;
use hutong_core::dockerfile;
use hutong_core::name::{AppName, is_digest};
use hutong_core::tree::{check_path, digest_of};
use hutong_core::units::show_size;
use hutong_ipc::channel;
use hutong_ipc::docker::{Answer, Build, Image, Pull, Start};
use hutong_ipc::warden::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use crate::engine::{Engine, is_missing};
use crate::serve;

/// Labels of images are others than those of containers: a container has its image's, too.
pub const LABEL_SERVER: &str = "hutong.image.server";
pub const LABEL_APP: &str = dockerfile::LABEL_APP;
const LABEL_KEY: &str = "hutong.image.key";

/// Lines on their way to control; more are left out, so that the engine is always listened to.
const LINES: usize = 1024;
/// The longest line that is passed on, in bytes.
const MAX_LINE: usize = 8 << 10;
/// How often the engine's disk is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How often an image is tried to be removed that something may still use, and how long after each other.
const REMOVALS: usize = 10;
const REMOVE_AGAIN: Duration = Duration::from_secs(2);
/// Names of files of our own that say whose stages are still to be swept: a driver that is killed leaves them to the next.
const STAGES: &str = "stages";
/// What the engine says when it has made the container of a step.
const RUNNING: &str = "---> Running in ";

/// Serves one request to build; ends the build when the caller hangs up.
pub async fn run(
    engine: &Rc<Engine>,
    build: &Build,
    fds: Vec<OwnedFd>,
    mut stream: UnixStream,
) -> std::io::Result<()> {
    let context = fds.into_iter().next().map(|fd| {
        let socket = std::os::unix::net::UnixStream::from(fd);
        socket.set_nonblocking(true)?;
        UnixStream::from_std(socket)
    });
    let Some(context) = context else {
        let refused = Answer::Refused("the context did not come along".into());
        return serve::send(&mut stream, &refused).await;
    };
    let (lines, mut said) = mpsc::channel(LINES);
    let context = context?;
    let _under_way = UnderWay::begin(engine, build);
    let work = engine.build(build, context, lines);
    let mut work = std::pin::pin!(work);
    let (mut hears, mut tells) = stream.split();
    // Beside the work, not between: a reader that is slow keeps no guard waiting.
    let passing_on = async move {
        while let Some(line) = said.recv().await {
            tells
                .write_all(&channel::encode(&Answer::Output(line))?)
                .await?;
        }
        Ok::<_, std::io::Error>(tells)
    };
    let mut passing_on = std::pin::pin!(passing_on);
    let mut nothing = [0; 1];
    let done = tokio::select! {
        biased;
        done = &mut work => done,
        // It ends before the work only when nobody reads any more.
        passed = &mut passing_on => return passed.map(drop),
        // What is dropped with this ends the build.
        _ = hears.read(&mut nothing) => return Ok(()),
    };
    let mut tells = passing_on.await?;
    let answer = match done {
        Ok(image) => Answer::Resolved(image),
        Err(reason) => Answer::Refused(reason),
    };
    tells.write_all(&channel::encode(&answer)?).await
}

/// A build that is under way: meanwhile no image is removed that it may begin with. What its stages left goes at its end.
struct UnderWay {
    engine: Rc<Engine>,
}

impl UnderWay {
    fn begin(engine: &Rc<Engine>, build: &Build) -> Self {
        engine.building.set(engine.building.get() + 1);
        engine.begun.set(engine.begun.get() + 1);
        engine.note_stages(&build.app, &build.stages);
        UnderWay {
            engine: engine.clone(),
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let left = self.engine.building.get().saturating_sub(1);
        self.engine.building.set(left);
        tokio::task::spawn_local(self.engine.clone().sweep_stages());
    }
}

/// The container that a step runs in; it goes when nobody waits for the build any more.
struct Step {
    engine: Rc<Engine>,
    container: RefCell<Option<String>>,
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(id) = self.container.take() {
            let engine = self.engine.clone();
            tokio::task::spawn_local(async move { engine.remove(&id).await });
        }
    }
}

impl Engine {
    async fn build(
        self: &Rc<Self>,
        build: &Build,
        context: UnixStream,
        lines: mpsc::Sender<String>,
    ) -> Result<Image, String> {
        let sound = AppName::new(&build.app).is_ok()
            && is_digest(&build.key)
            && is_digest(&build.stages)
            && check_path(&build.dockerfile).is_ok_and(|path| !path.is_empty());
        if !sound {
            return Err("not an app, a key and a path".into());
        }
        let docker = self.connect().await?;
        let tag = self.image_tag(&build.app, &build.key);
        let wanted = self.image_labels(&build.app, &build.key);
        if !build.fresh
            && let Ok(found) = docker.inspect_image(&tag).await
        {
            let labels = found.config.and_then(|config| config.labels);
            let labels = labels.unwrap_or_default();
            if wanted
                .iter()
                .all(|(key, value)| labels.get(key) == Some(value))
            {
                let _ = lines
                    .send("the image is there: nothing has changed".into())
                    .await;
                return self.resolve(&tag, Pull::Never).await;
            }
        }
        let deadline = tokio::time::Instant::now() + Duration::from_millis(build.timeout_ms);
        let late = || format!("took over {} s", build.timeout_ms / 1000);
        for base in &build.bases {
            let _ = lines.try_send(format!("looking for the image {base}"));
            let checked = tokio::time::timeout_at(deadline, self.check_base(base, &build.app));
            checked.await.map_err(|_| late())??;
        }
        let network = match build.egress {
            true => self.build_network(build).await?,
            false => "none".to_owned(),
        };
        let root = docker.info().await.map_err(|error| error.to_string())?;
        let root = root.docker_root_dir;
        // Told from every other container by a name that nobody else could have given it. What runs in it sees the name,
        // so it is made of the server's own and does not say it.
        let mark = digest_of(&["build", &self.setup.server, &build.key]);
        let mark = format!("hutong-build-{}:127.0.0.1", &mark[..24]);
        let small = |number: u64| i32::try_from(number).unwrap_or(i32::MAX);
        let options = BuildImageOptions {
            dockerfile: build.dockerfile.clone(),
            t: Some(tag.clone()),
            extrahosts: Some(mark.clone()),
            nocache: build.fresh,
            rm: true,
            forcerm: true,
            memory: Some(small(build.limits.memory)),
            // Swap would only hide that the memory is used up.
            memswap: Some(small(build.limits.memory)),
            cpuperiod: Some(100_000),
            cpuquota: Some(small(u64::from(build.limits.cpu_millis) * 100)),
            shmsize: Some(64 << 20),
            labels: Some(wanted),
            networkmode: Some(network),
            ..Default::default()
        };
        let step = Step {
            engine: self.clone(),
            container: RefCell::new(None),
        };
        let body = body_try_stream(chunks(context));
        let mut said = Box::pin(docker.build_image(options, None, Some(body)));
        let mut look = tokio::time::interval(LOOK);
        // The engine is always listened to: a step's container gets its bound when it says that it made it.
        let mut dropped: u64 = 0;
        loop {
            let next = tokio::select! {
                next = said.next() => next,
                _ = look.tick() => {
                    if let Some(why) = too_full(root.as_deref(), build.disk_reserve) {
                        return Err(why);
                    }
                    continue;
                }
                () = tokio::time::sleep_until(deadline) => {
                    return Err(late());
                }
            };
            let Some(info) = next else { break };
            let info = info.map_err(|error| failure(&error.to_string()))?;
            if let Some(error) = info.error_detail.and_then(|detail| detail.message) {
                return Err(failure(&error));
            }
            for line in info.stream.iter().flat_map(|text| text.lines()) {
                let line = line.trim_end();
                if let Some(id) = line.trim_start().strip_prefix(RUNNING) {
                    self.bound(id, &mark, build.limits.pids, &step).await?;
                }
                if line.is_empty() {
                    continue;
                }
                if dropped > 0 && lines.try_send(left_out(dropped)).is_ok() {
                    dropped = 0;
                }
                if dropped > 0 || lines.try_send(cut(line)).is_err() {
                    dropped += 1;
                }
            }
        }
        if dropped > 0 {
            let _ = lines.try_send(left_out(dropped));
        }
        // The engine removed it.
        step.container.take();
        self.resolve(&tag, Pull::Never).await
    }

    /// Gives the container of a step its bound of processes. What a build prints may name any container: only one that
    /// carries this server's mark is touched.
    async fn bound(&self, id: &str, mark: &str, pids: u32, step: &Step) -> Result<(), String> {
        let hex = id.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !hex || !(12..=64).contains(&id.len()) {
            return Ok(());
        }
        let docker = self.docker()?;
        let found = docker
            .inspect_container(id, None::<InspectContainerOptions>)
            .await;
        let Ok(found) = found else {
            // It is over already.
            return Ok(());
        };
        let hosts = found.host_config.and_then(|config| config.extra_hosts);
        if !hosts.is_some_and(|hosts| hosts.iter().any(|host| host == mark)) {
            return Ok(());
        }
        let runs = found.state.and_then(|state| state.running) == Some(true);
        step.container.replace(found.id);
        let change = ContainerUpdateBody {
            pids_limit: Some(i64::from(pids)),
            ..Default::default()
        };
        let bounded = docker.update_container(id, change).await;
        match bounded {
            // One that ended meanwhile needs no bound.
            Err(error) if runs && self.still_runs(id).await => {
                Err(format!("the build cannot be bounded: {error}"))
            }
            _ => Ok(()),
        }
    }

    /// Whether a container runs, or may.
    async fn still_runs(&self, id: &str) -> bool {
        let Ok(docker) = self.docker() else {
            return true;
        };
        let found = docker
            .inspect_container(id, None::<InspectContainerOptions>)
            .await;
        match found {
            Ok(found) => found.state.and_then(|state| state.running) != Some(false),
            Err(error) => !matches!(
                error,
                Error::DockerResponseServerError {
                    status_code: 404,
                    ..
                }
            ),
        }
    }

    /// Fetches an image that a Dockerfile begins with or copies from, if it is not there, and refuses another app's, and
    /// one whose triggers would have the engine do something by itself.
    async fn check_base(&self, base: &str, app: &str) -> Result<(), String> {
        dockerfile::check_image(base)?;
        self.resolve_for(base, Pull::Missing, app).await?;
        let found = self.docker()?.inspect_image(base).await;
        let config = found.map_err(|error| error.to_string())?.config;
        let config = config.unwrap_or_default();
        for trigger in config.on_build.iter().flatten() {
            if let Err(why) = dockerfile::check_trigger(trigger) {
                return Err(format!(
                    "the image {base} has the engine do `{}` when something is built of it: {why}",
                    cut(trigger)
                ));
            }
        }
        Ok(())
    }

    /// The app's own network with a way to every public address, behind its walls.
    async fn build_network(&self, build: &Build) -> Result<String, String> {
        let start = Start {
            instance: String::new(),
            app: build.app.clone(),
            deployment: 0,
            image: String::new(),
            argv: Vec::new(),
            entrypoint: None,
            env: Vec::new(),
            limits: Limits {
                memory: 0,
                cpu_millis: 0,
                pids: 0,
                guaranteed: 0,
            },
            data: false,
            egress: true,
            egress_list: None,
            mount: None,
            writable: Vec::new(),
            own_user: true,
            allow_root: false,
            links: Vec::new(),
            quota: None,
        };
        self.prepare(&start, None).await?;
        self.ensure_network(&start).await
    }

    fn image_tag(&self, app: &str, key: &str) -> String {
        format!("hutong-{}/{app}:{}", self.setup.tag, &key[..16])
    }

    fn image_labels(&self, app: &str, key: &str) -> HashMap<String, String> {
        HashMap::from([
            (LABEL_SERVER.to_owned(), self.setup.server.clone()),
            (LABEL_APP.to_owned(), app.to_owned()),
            (LABEL_KEY.to_owned(), key.to_owned()),
        ])
    }

    /// Removes images that were built here and that no release uses. One that a container uses stays until the next
    /// time, as all do while something is being built, which may begin with one.
    pub async fn sweep_images(&self, keep: &[String]) -> Result<(), String> {
        let label = format!("{LABEL_SERVER}={}", self.setup.server);
        let options = ListImagesOptions {
            filters: Some(HashMap::from([("label".to_owned(), vec![label])])),
            ..Default::default()
        };
        let docker = self.connect().await?;
        let found = docker.list_images(Some(options)).await;
        for image in found.map_err(|error| error.to_string())? {
            let id = image.id.strip_prefix("sha256:").unwrap_or(&image.id);
            if keep.iter().any(|kept| kept == id) {
                continue;
            }
            let own = format!("hutong-{}/", self.setup.tag);
            let tags = image.repo_tags.iter().filter(|tag| tag.starts_with(&own));
            let mut names: Vec<String> = tags.cloned().collect();
            if image.repo_tags.is_empty() {
                // It was built anew under the same name.
                names.push(image.id.clone());
            }
            for name in names {
                self.remove_image(&name).await;
            }
        }
        Ok(())
    }

    /// Writes down that an app's builds leave stages.
    fn note_stages(&self, app: &str, stages: &str) {
        if AppName::new(app).is_ok() && is_digest(stages) {
            let written = std::fs::write(self.note(app, STAGES), stages);
            if let Err(error) = written {
                tracing::warn!("stages of {app} may stay behind: {error}");
            }
        }
    }

    /// Apps whose builds left stages, and what those are known by.
    fn noted_stages(&self) -> Vec<(String, String)> {
        let files = std::fs::read_dir(&self.setup.folder);
        let names = files
            .into_iter()
            .flatten()
            .flatten()
            .map(|file| file.file_name().to_string_lossy().into_owned());
        names
            .filter_map(|name| {
                let app = name.strip_suffix(STAGES)?.strip_suffix('.')?.to_owned();
                AppName::new(&app).ok()?;
                let stages = std::fs::read_to_string(self.note(&app, STAGES)).ok()?;
                Some((app, stages))
            })
            .filter(|(_, stages)| is_digest(stages))
            .collect()
    }

    /// Removes what builds left, also under a driver before this one. The last container may be on its way out, so it is
    /// tried for a while; what stays then is noted still.
    pub async fn sweep_stages(self: Rc<Self>) {
        for _ in 0..REMOVALS {
            let noted = self.noted_stages();
            if noted.is_empty() {
                return;
            }
            // A note says the same of each build of its app, so it does not show that there was another one.
            let begun = self.begun.get();
            tokio::time::sleep(REMOVE_AGAIN).await;
            for (app, stages) in noted {
                let swept = self.sweep_dangling(&app, &stages).await;
                if self.building.get() > 0 || self.begun.get() != begun {
                    // It does this at its own end, or does it now, and needs its note.
                    return;
                }
                match swept {
                    Ok(true) => {
                        let _ = std::fs::remove_file(self.note(&app, STAGES));
                    }
                    Ok(false) => {}
                    Err(reason) => tracing::debug!("what a build of {app} left stays: {reason}"),
                }
            }
        }
    }

    /// Removes what builds of an app left without a name: stages, and layers of builds that failed. False: some of it is
    /// still in use.
    async fn sweep_dangling(&self, app: &str, stages: &str) -> Result<bool, String> {
        let labels = vec![
            format!("{}={stages}", dockerfile::LABEL_STAGES),
            format!("{LABEL_APP}={app}"),
        ];
        let options = ListImagesOptions {
            filters: Some(HashMap::from([
                ("label".to_owned(), labels),
                ("dangling".to_owned(), vec!["true".to_owned()]),
            ])),
            ..Default::default()
        };
        let docker = self.connect().await?;
        let found = docker.list_images(Some(options)).await;
        let mut clean = true;
        for image in found.map_err(|error| error.to_string())? {
            // A whole image has its key, and is swept when no release uses it; these are only parts.
            if image.labels.contains_key(LABEL_KEY) {
                continue;
            }
            if self.building.get() > 0 {
                return Ok(true);
            }
            let options = None::<RemoveImageOptions>;
            if let Err(error) = docker.remove_image(&image.id, options, None).await {
                tracing::debug!("the image {} stays for now: {error}", image.id);
                clean = false;
            }
        }
        Ok(clean)
    }

    /// The last container of it may be on its way out.
    async fn remove_image(&self, name: &str) {
        for _ in 0..REMOVALS {
            if self.building.get() > 0 {
                return;
            }
            let Ok(docker) = self.docker() else { return };
            let options = None::<RemoveImageOptions>;
            match docker.remove_image(name, options, None).await {
                Ok(_) => return,
                Err(error) if is_missing(&error) => return,
                Err(error) => tracing::debug!("the image {name} stays for now: {error}"),
            }
            tokio::time::sleep(REMOVE_AGAIN).await;
        }
    }
}

/// What the engine is sent.
fn chunks(
    context: UnixStream,
) -> impl futures_util::Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static {
    futures_util::stream::unfold(Some(context), |context| async move {
        let mut context = context?;
        let mut buffer = vec![0; 64 << 10];
        match context.read(&mut buffer).await {
            Ok(0) => None,
            Ok(count) => {
                buffer.truncate(count);
                Some((Ok(Bytes::from(buffer)), Some(context)))
            }
            Err(error) => Some((Err(error), None)),
        }
    })
}

/// Why the engine's disk is too full to go on, if it can be seen from here.
fn too_full(root: Option<&str>, reserve: u64) -> Option<String> {
    let found = rustix::fs::statvfs(root?).ok()?;
    let free = found.f_bavail * found.f_frsize;
    (free < reserve).then(|| {
        format!(
            "was ended: the engine's disk is full but for its reserve: {} are free, and {} are kept back",
            show_size(free),
            show_size(reserve)
        )
    })
}

/// What the engine says, without what its client puts before it.
fn failure(text: &str) -> String {
    let text = text.strip_prefix("Docker stream error: ").unwrap_or(text);
    cut(text.trim())
}

fn left_out(lines: u64) -> String {
    format!("({lines} lines came too fast and are left out)")
}

fn cut(line: &str) -> String {
    let mut end = line.len().min(MAX_LINE);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line[..end].to_owned()
}
