//! What is done before a release rolls out. Builds: what a folder needs before it can run, done in a sandbox of its own
//! with the app's ids, capped, one at a time.  Then the release command, if there is one. The result is kept by what went in, so the same input is not built twice.

mod dockerfile;
mod unpacking;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hutong_core::spec::{
    AppSpec, BUILD_TIMEOUT, ContainerUser, Image, ImageDriver, Pull, ReleaseCommand, Run,
};
use hutong_core::tree::digest_of;
use hutong_core::units::{show_size, show_time};
use hutong_ipc::gateway::Secret;
use hutong_ipc::shim::Exit;
use hutong_ipc::warden::{Build, Limits, ServerSettings};
use hutong_ipc::{docker, fail};
use hutong_runtime::client::{Driver, DriverError};

use crate::launch::{NotStarted, What, launch};
use crate::store::{Deployment, Release, Seen, StoreError};
use crate::{Control, controller, ids, images, lock, memory};

/// Caps of a build: it must not freeze a machine of 2 cores and 4 GB.
const CPU_MILLIS: u32 = 1500;
const PIDS: u32 = 512;
/// How long a build waits for a warden that is away.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);

/// One program of a build.
pub struct Recipe {
    pub argv: Vec<String>,
    /// It fetches packages.
    pub network: bool,
}

/// The programs that make a folder ready, in order; none if it is ready as it is.
pub fn recipe(spec: &AppSpec, tree: &Path) -> Vec<Recipe> {
    let step = |argv, network| Recipe { argv, network };
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let mut steps = Vec::new();
    // An image brings what it needs.
    let is_program = spec.has_programs() && spec.image.is_none();
    let installs = spec.build.as_ref().is_none_or(|build| build.installs);
    if installs && is_program && tree.join("requirements.txt").is_file() {
        steps.push(step(words("python3 -m venv /app/.venv"), false));
        steps.push(step(words(
            "/app/.venv/bin/python -m pip install --no-input --disable-pip-version-check --no-warn-script-location -r requirements.txt",
        ), true));
    }
    let locked = ["package-lock.json", "npm-shrinkwrap.json"]
        .iter()
        .any(|lock| tree.join(lock).is_file());
    let needs_node = is_program || spec.build.is_some();
    if installs && needs_node && locked && tree.join("package.json").is_file() {
        let mut install = words("npm ci --no-audit --no-fund --no-update-notifier");
        if spec.build.is_none() {
            install.push("--omit=dev".into());
        }
        steps.push(step(install, true));
    }
    let own = spec.build.iter().flat_map(|build| &build.steps);
    steps.extend(own.map(|own| step(own.command.clone(), own.network)));
    steps
}

/// What a person should know about a folder that looks as if it needed a build and gets none.
pub fn advice(spec: &AppSpec, tree: &Path) -> Option<String> {
    let has = |name: &str| tree.join(name).exists();
    let is_program = spec.has_programs() && spec.image.is_none();
    let locked = has("package-lock.json") || has("npm-shrinkwrap.json");
    (is_program && has("package.json") && !locked && !has("node_modules")).then(|| {
        "package.json has no package-lock.json beside it, so no packages are installed; run `npm install` and deploy the lock file too".to_owned()
    })
}

/// Begins builds again that a restart interrupted, and throws away what others left.
pub async fn resume(control: &Arc<Control>) {
    let under_way = control.store.building().unwrap_or_default();
    let keep = under_way.iter().map(|d| ids::build(&d.app, d.id)).collect();
    let ours = control.clone();
    let swept = tokio::task::spawn_blocking(move || ours.warden.build_sweep(keep)).await;
    if let Ok(Err(error)) = swept {
        tracing::warn!("cannot clear away what builds left: {error}");
    }
    let build_spools = control
        .logs
        .spooled()
        .into_iter()
        .filter(|name| ids::is_of_deployment(name));
    for name in build_spools {
        let alive = ids::parse(&name).is_some_and(|(_, id)| under_way.iter().any(|d| d.id == id));
        if !alive {
            control.logs.forget_spool(&name);
        }
    }
    for deployment in under_way {
        // What a control plane before us left in the spools is taken in soon.
        if let Err(error) = secrets_of(control, &deployment.app) {
            tracing::error!("{error}");
        }
        start(control, deployment);
    }
}

/// What an app's builds are given, which from now on no line of theirs shows.
fn secrets_of(control: &Control, app: &str) -> Result<Vec<(String, Secret)>, StoreError> {
    let secrets = control.store.build_secrets(app)?;
    let values = secrets.iter().map(|(_, value)| value.as_str());
    control.logs.mask(app, values);
    let sealed = |(name, value)| (name, Secret(value));
    Ok(secrets.into_iter().map(sealed).collect())
}

/// Writes a build's outcome down, however long the disk is full.
async fn settle(control: &Arc<Control>, write: impl Fn(&Control) -> Result<(), StoreError>) {
    let mut pause = Duration::from_millis(200);
    while let Err(error) = write(control) {
        tracing::error!("{error}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(10));
    }
}

/// Builds in the background; the deployment then rolls out, or fails with the reason.
pub fn start(control: &Arc<Control>, deployment: Deployment) {
    let control = control.clone();
    tokio::spawn(async move {
        // A registry may be slow: whoever fetches an image keeps no builds waiting.
        let release = control.store.release(&deployment.app, deployment.release);
        let spec = release
            .ok()
            .flatten()
            .and_then(|release| release.parse().ok());
        let image = spec.and_then(|spec: AppSpec| spec.image);
        let turns = match image.is_some_and(|image| image.dockerfile.is_none()) {
            true => &control.fetching,
            false => {
                lock(&control.observed).queue.push(deployment.id);
                &control.building
            }
        };
        let turn = turns.acquire().await;
        lock(&control.observed)
            .queue
            .retain(|waits| *waits != deployment.id);
        let Ok(_turn) = turn else {
            return;
        };
        if is_superseded(&control, deployment.id) {
            lock(&control.observed).fresh.remove(&deployment.id);
            return;
        }
        let ours = control.clone();
        let (id, app) = (deployment.id, deployment.app.clone());
        let work = tokio::task::spawn_blocking(move || build(&ours, &deployment));
        let result = work.await.unwrap_or_else(|error| Err(Broken::plain(error)));
        {
            let mut observed = lock(&control.observed);
            observed.building.remove(&id);
            observed.fresh.remove(&id);
        }
        // Also what a control plane before us left of it, in whichever step.
        let own = format!("{}-s", ids::build(&app, id));
        for name in control.logs.spooled() {
            if name.starts_with(&own) && ids::is_build(&name) {
                control.logs.forget_spool(&name);
            }
        }
        match result {
            Ok(Outcome::Ready(key)) => {
                settle(&control, |c| c.store.built(id, key.as_deref())).await;
            }
            Ok(Outcome::Superseded) => {}
            Err(broken) => {
                let ours = control.clone();
                let step = ids::build_step(&app, id, 0);
                let _ = tokio::task::spawn_blocking(move || ours.warden.build_drop(&step)).await;
                settle(&control, |c| {
                    c.store.fail(id, &broken.reason, &broken.log).map(|_| ())
                })
                .await;
            }
        }
        control.wake.notify_one();
    });
}

struct Broken {
    reason: String,
    log: Vec<String>,
}

impl Broken {
    fn plain(reason: impl ToString) -> Self {
        Broken {
            reason: reason.to_string(),
            log: Vec::new(),
        }
    }

    /// How to have the data back that the release command may have changed.
    fn with_snapshot(mut self, deployment: &Deployment) -> Self {
        let (app, id) = (&deployment.app, deployment.id);
        self.reason = format!(
            "{}; snapshot {id} holds /data as it was before (hutong snapshot restore {app} {id})",
            self.reason
        );
        self
    }
}

/// Whether a preview is still to get its copy of the app's data, before anything of it runs.
pub fn copies_data(control: &Control, app: &str, spec: &AppSpec) -> Result<bool, StoreError> {
    let preview = control.store.preview(app)?;
    Ok(spec.data && preview.is_some_and(|preview| preview.copies))
}

/// Makes a new preview's data of the app's. False if nobody wants the deployment any more.
fn copy_data(control: &Control, deployment: &Deployment, spec: &AppSpec) -> Result<bool, Broken> {
    let app = &deployment.app;
    let found = control.store.preview(app).map_err(Broken::plain)?;
    let Some(preview) = found.filter(|preview| preview.copies && spec.data) else {
        return Ok(true);
    };
    let parent = &preview.parent;
    let doing = format!("copying the /data of {parent}");
    control.logs.note(app, "", &doing);
    fail::point("copy data");
    let done = wait_out(control, deployment, doing, || {
        control.warden.copy_data(parent, app)
    })?;
    if done {
        control.store.data_copied(app).map_err(Broken::plain)?;
    }
    Ok(done)
}

/// Keeps an app's data as it is before its release command; once, however often that is begun. False if nobody wants the
/// deployment any more.
fn take_snapshot(
    control: &Control,
    deployment: &Deployment,
    command: &ReleaseCommand,
) -> Result<bool, Broken> {
    let (app, id) = (&deployment.app, deployment.id);
    fail::point("snapshot");
    let doing = "taking a snapshot of /data".to_owned();
    // What the data were before a row of tries that failed is worth more than what they were before the last.
    let keep = control.store.first_try(app).map_err(Broken::plain)?;
    let done = wait_out(control, deployment, doing, || {
        control.warden.snapshot(app, id, keep)
    });
    let done = done.map_err(|broken| Broken {
        reason: format!(
            "{}; `{}` was not run (`snapshot = false` in [release] goes without one)",
            broken.reason,
            command.command.join(" ")
        ),
        log: broken.log,
    })?;
    if done {
        let text = format!("/data is kept as snapshot {id}");
        control.logs.note(app, "", &text);
    }
    Ok(done)
}

/// Asks the warden for what takes as long as it takes. False if nobody wants the deployment any more.
fn wait_out(
    control: &Control,
    deployment: &Deployment,
    doing: String,
    ask: impl Fn() -> Result<(), DriverError>,
) -> Result<bool, Broken> {
    lock(&control.observed)
        .building
        .insert(deployment.id, doing);
    let mut lost_since = None;
    loop {
        if is_superseded(control, deployment.id) {
            return Ok(false);
        }
        match ask() {
            Ok(()) => return Ok(true),
            Err(error @ DriverError::Refused(_)) => return Err(Broken::plain(error)),
            Err(DriverError::Later(_)) => lost_since = None,
            Err(error) if lost_since.get_or_insert_with(Instant::now).elapsed() > PATIENCE => {
                return Err(Broken::plain(error));
            }
            Err(_) => {}
        }
        std::thread::sleep(LOOK);
    }
}

/// Asks the warden until it answers: it may be killed or replaced while a build goes on.
fn patiently<T>(ask: impl Fn() -> Result<T, DriverError>) -> Result<T, DriverError> {
    // A step may take long before the warden is lost.
    let mut lost_since = None;
    loop {
        match ask() {
            Err(error @ DriverError::Refused(_)) => return Err(error),
            Err(error) if lost_since.get_or_insert_with(Instant::now).elapsed() > PATIENCE => {
                return Err(error);
            }
            Err(_) => std::thread::sleep(LOOK),
            Ok(answer) => return Ok(answer),
        }
    }
}

/// Has the engine fetch the image, if its owner may run it so; its id is what the release runs from then on, wherever the
/// tag goes.
fn fetch(
    control: &Control,
    deployment: &Deployment,
    image: &Image,
) -> Result<docker::Image, Broken> {
    let reference = &image.reference;
    let doing = format!("fetching the image {reference}");
    control.logs.note(&deployment.app, "", &doing);
    lock(&control.observed)
        .building
        .insert(deployment.id, doing);
    if control.settings.docker.is_none() {
        return Err(Broken::plain(NO_ENGINE));
    }
    let found = patiently(|| {
        control
            .docker
            .resolve(reference, image.pull, &deployment.app)
    });
    found.map_err(Broken::plain)
}

/// Nobody's image runs as root without its owner's word.
fn check_user(image: &Image, found: &docker::Image) -> Result<(), Broken> {
    let may_be_root = image.allow_root || image.user == ContainerUser::App || found.remapped;
    if found.is_root && !may_be_root {
        let reference = &image.reference;
        return Err(Broken::plain(format!(
            "the image {reference} runs as root: set `user = \"app\"` in [container] to run it as a user of the app's own, or `allow_root = true`"
        )));
    }
    Ok(())
}

/// Why no app from an image runs here.
pub const NO_ENGINE: &str = "this server has no Docker engine: leave `driver` out or set it to \"sandbox\", start the server with --docker, or set [docker] in the server file";

enum Outcome {
    /// The key that the result is kept by, if there was something to build.
    Ready(Option<String>),
    /// Nobody wants it any more.
    Superseded,
}

/// Whether something is to be done before a release can roll out.
pub fn is_needed(spec: &AppSpec, steps: &[Recipe]) -> bool {
    !steps.is_empty() || spec.release.is_some() || spec.image.is_some()
}

/// The tag that an app follows from this deployment of its owner's on: what is fetched is what that leads to now.
fn followed(spec: &mut AppSpec, deployment: &Deployment) -> Option<String> {
    if spec.watch.is_none() || deployment.kind != "deploy" {
        return None;
    }
    let image = spec.image.as_mut()?;
    if image.digest().is_some() {
        return None;
    }
    if image.pull == Pull::Missing {
        image.pull = Pull::Always;
    }
    image.tagged().map(str::to_owned)
}

/// Whoever watches the tag does not find it new. Nobody knows where it led if the engine does not say.
fn note_seen(
    control: &Control,
    deployment: &Deployment,
    tag: Option<String>,
    led_to: Option<String>,
) -> Result<(), Broken> {
    let (Some(image), Some(digest)) = (tag, led_to) else {
        return Ok(());
    };
    if is_superseded(control, deployment.id) {
        return Ok(());
    }
    let seen = Seen { image, digest };
    let noted = control.store.note_seen(&deployment.app, &seen);
    noted.map_err(Broken::plain)
}

fn build(control: &Control, deployment: &Deployment) -> Result<Outcome, Broken> {
    let release = control
        .store
        .release(&deployment.app, deployment.release)
        .map_err(Broken::plain)?
        .ok_or_else(|| Broken::plain("its release is gone"))?;
    let mut spec = release.parse().map_err(Broken::plain)?;
    let tag = followed(&mut spec, deployment);
    let tree = control.data_dir.join("trees").join(&release.digest);
    let steps = recipe(&spec, &tree);
    let mut ready = release;
    if !steps.is_empty() {
        let build = spec.build.as_ref();
        let timeout = build.map_or(BUILD_TIMEOUT, |build| build.timeout);
        match make(control, deployment, &ready, &steps, timeout)? {
            Some(key) => ready.built = Some(key),
            None => return Ok(Outcome::Superseded),
        }
    }
    let driver = spec
        .image
        .as_ref()
        .map(|image| images::driver(control, image));
    if let (Some(image), Some(ImageDriver::Sandbox)) = (&spec.image, driver) {
        let (built, text) = unpacking::prepare(control, deployment, &ready, &spec, image)?;
        ready.built = Some(built);
        let led_to = images::of_release(&ready).map(|digest| digest.to_string());
        note_seen(control, deployment, tag, led_to)?;
        if let Some(text) = text {
            let number = ready.number;
            let kept = control.store.set_spec(&ready.app, number, &text);
            kept.map_err(Broken::plain)?;
            ready.spec = text;
            spec = ready.parse().map_err(Broken::plain)?;
        }
        if is_superseded(control, deployment.id) {
            return Ok(Outcome::Superseded);
        }
    } else if let Some(image) = &spec.image {
        let found = match &image.dockerfile {
            Some(file) => match dockerfile::build(control, deployment, &ready, file)? {
                Some(found) => found,
                None => return Ok(Outcome::Superseded),
            },
            None => fetch(control, deployment, image)?,
        };
        check_user(image, &found)?;
        let brings_nothing = !found.has_command && image.entrypoint.is_none();
        if brings_nothing && spec.run == Run::Command(Vec::new()) {
            return Err(Broken::plain(format!(
                "the image {} says no command to run: set `command`",
                image.reference
            )));
        }
        let led_to = tag
            .as_deref()
            .and_then(|tag| images::watch::digest_of(tag, &found.digests));
        note_seen(control, deployment, tag, led_to)?;
        ready.built = Some(found.id);
    }
    if !copy_data(control, deployment, &spec)? {
        return Ok(Outcome::Superseded);
    }
    // What a release did to the data is not undone by a rollback, nor done again by a restart.
    if let Some(command) = spec
        .release
        .as_ref()
        .filter(|_| deployment.kind == "deploy")
    {
        let keeps = spec.data && command.snapshot;
        if keeps && !take_snapshot(control, deployment, command)? {
            return Ok(Outcome::Superseded);
        }
        run_release(control, deployment, &ready, &spec, command).map_err(|broken| {
            if keeps {
                broken.with_snapshot(deployment)
            } else {
                broken
            }
        })?;
        if is_superseded(control, deployment.id) {
            return Ok(Outcome::Superseded);
        }
    }
    Ok(Outcome::Ready(ready.built))
}

/// The key that the result is kept by; none if nobody wants it any more.
fn make(
    control: &Control,
    deployment: &Deployment,
    release: &Release,
    steps: &[Recipe],
    timeout: Duration,
) -> Result<Option<String>, Broken> {
    let app = &deployment.app;
    let fresh = lock(&control.observed).fresh.contains(&deployment.id);
    let key = key(release, steps, fresh.then_some(deployment.id));
    let there = patiently(|| control.warden.has_built(app, &key)).map_err(Broken::plain)?;
    if !there {
        let place = wait_for_memory(control, deployment)?;
        if fresh {
            patiently(|| control.warden.drop_cache(app)).map_err(Broken::plain)?;
        }
        let secrets = secrets_of(control, app).map_err(Broken::plain)?;
        let bound = Bound {
            deadline: Instant::now() + timeout,
            timeout,
        };
        for (index, step) in steps.iter().enumerate() {
            if is_superseded(control, deployment.id) {
                break;
            }
            run_step(
                control,
                deployment,
                release,
                (index, step),
                &secrets,
                &bound,
            )?;
        }
        drop(place);
        let last = ids::build_step(app, deployment.id, steps.len() - 1);
        if is_superseded(control, deployment.id) {
            let _ = control.warden.build_drop(&last);
            return Ok(None);
        }
        let kept = patiently(|| control.warden.build_keep(&last, app, &key, &secrets));
        if let Some(digest) = kept.map_err(Broken::plain)? {
            let result = format!("the result has the content {}", &digest[..12]);
            control.logs.note(app, &last, &result);
        }
    }
    Ok(Some(key))
}

/// Memory that is set aside for a build, until this is dropped.
struct Aside<'a>(&'a Control, String);

impl Drop for Aside<'_> {
    fn drop(&mut self) {
        self.0.give_back(&self.1);
        self.0.wake.notify_one();
    }
}

/// A build that does not fit waits for its turn.
fn wait_for_memory<'a>(control: &'a Control, deployment: &Deployment) -> Result<Aside<'a>, Broken> {
    let build = ids::build_step(&deployment.app, deployment.id, 0);
    let began = Instant::now();
    loop {
        let Err(why) = control.set_aside_for_build(&build) else {
            return Ok(Aside(control, build));
        };
        if began.elapsed() > BUILD_TIMEOUT || is_superseded(control, deployment.id) {
            return Err(Broken::plain(format!("the build found no memory: {why}")));
        }
        let doing = format!("the build waits for memory: {why}");
        lock(&control.observed)
            .building
            .insert(deployment.id, doing);
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// `alone`: a deployment whose result is not to be taken for another's.
fn key(release: &Release, steps: &[Recipe], alone: Option<u64>) -> String {
    let argvs: Vec<&Vec<String>> = steps.iter().map(|step| &step.argv).collect();
    let recipe = serde_json::to_string(&argvs).unwrap_or_default();
    match alone {
        None => digest_of(&[&release.app, &release.digest, &recipe]),
        Some(id) => digest_of(&[&release.app, &release.digest, &recipe, &id.to_string()]),
    }
}

/// How long all steps of a build may take together.
struct Bound {
    deadline: Instant,
    timeout: Duration,
}

fn is_superseded(control: &Control, deployment: u64) -> bool {
    match control.store.deployment(deployment) {
        Ok(Some(now)) => now.is_over(),
        _ => true,
    }
}

fn run_step(
    control: &Control,
    deployment: &Deployment,
    release: &Release,
    (index, step): (usize, &Recipe),
    secrets: &[(String, Secret)],
    bound: &Bound,
) -> Result<(), Broken> {
    let app = &deployment.app;
    let instance = ids::build_step(app, deployment.id, index);
    // What a control plane before us left of this step.
    let _ = control.warden.kill(&instance);
    wait_until_gone(control, &instance, deployment.id)?;
    control.logs.forget_spool(&instance);
    let line = step.argv.join(" ");
    let memory = memory::build_cap();
    let doing = format!("building: {line}");
    lock(&control.observed)
        .building
        .insert(deployment.id, doing);
    control.logs.note(app, &instance, &format!("$ {line}"));
    let build = Build {
        instance: instance.clone(),
        app: app.clone(),
        source: release.digest.clone(),
        argv: step.argv.clone(),
        egress: step.network,
        secrets: secrets.to_vec(),
        env: environment(&control.settings),
        limits: Limits {
            memory,
            cpu_millis: CPU_MILLIS,
            pids: PIDS,
            guaranteed: 0,
        },
    };
    fail::point("build step");
    patiently(|| control.warden.build(build.clone(), index > 0))
        .map_err(|error| Broken::plain(format!("the build `{line}` cannot start: {error}")))?;
    let late = format!("the build took over {}", show_time(bound.timeout));
    let left = bound.deadline.saturating_duration_since(Instant::now());
    let (id, log) = (deployment.id, || {
        controller::last_words(control, app, deployment.id)
    });
    if let Err(broken) = wait_for(control, &instance, id, left, None, &late) {
        control.logs.end_of(&instance);
        control.logs.forget_spool(&instance);
        return Err(Broken {
            reason: broken.reason,
            log: log(),
        });
    }
    match how_it_ended(control, &instance, memory) {
        None => Ok(()),
        Some(why) if control.has_disk().is_err() => {
            let low = control.has_disk().err().unwrap_or_default();
            Err(Broken::plain(format!("the build `{line}` {why}: {low}")))
        }
        Some(why) => Err(Broken {
            reason: format!("the build `{line}` {why}"),
            log: log(),
        }),
    }
}

/// What went wrong with one that is gone; `None` if it succeeded.
fn how_it_ended(control: &Control, instance: &str, memory: u64) -> Option<String> {
    let end = control.logs.end_of(instance);
    control.logs.forget_spool(instance);
    match (end.exit, end.out_of_memory) {
        (Some(Exit::Code(0)), false) => None,
        (_, true) => Some(format!("ran out of memory (it had {})", show_size(memory))),
        (Some(exit), _) => Some(exit.to_string()),
        (None, _) => Some("was killed".into()),
    }
}

/// Runs what must succeed before the release serves; again if a control plane before us died meanwhile.
fn run_release(
    control: &Control,
    deployment: &Deployment,
    release: &Release,
    spec: &AppSpec,
    command: &ReleaseCommand,
) -> Result<(), Broken> {
    let line = command.command.join(" ");
    let doing = format!("running `{line}`");
    lock(&control.observed)
        .building
        .insert(deployment.id, doing);
    let began = Instant::now();
    let (instance, _aside) = loop {
        end_releases(control, deployment)?;
        if is_superseded(control, deployment.id) {
            return Ok(());
        }
        let instance = ids::instance(&deployment.app, deployment.id, ids::Kind::Release);
        let what = What {
            deployment: deployment.id,
            release,
            spec,
            kind: ids::Kind::Release,
            argv: &command.command,
            caps: spec.caps,
        };
        fail::point("release command");
        // Whatever comes of it, what it set aside is given back.
        let aside = Aside(control, instance.clone());
        match launch(control, &instance, &what) {
            Ok(()) => break (instance, aside),
            Err(NotStarted::Unknown(_) | NotStarted::NoRoom(_)) if began.elapsed() < PATIENCE => {
                std::thread::sleep(LOOK);
            }
            Err(
                NotStarted::Unknown(reason)
                | NotStarted::Because(reason)
                | NotStarted::NoRoom(reason),
            ) => {
                return Err(Broken::plain(format!(
                    "the release command `{line}` cannot start: {reason}"
                )));
            }
        }
    };
    let time = show_time(command.timeout);
    let late = format!("the release command `{line}` took over {time}");
    let (timeout, patience) = (command.timeout, Some(spec.stop_timeout));
    let ended = wait_for(control, &instance, deployment.id, timeout, patience, &late);
    let log = |reason| Broken {
        reason,
        log: controller::last_words(control, &deployment.app, deployment.id),
    };
    if let Err(broken) = ended {
        control.logs.end_of(&instance);
        control.logs.forget_spool(&instance);
        return Err(log(broken.reason));
    }
    match how_it_ended(control, &instance, spec.caps.memory_bytes) {
        None => Ok(()),
        Some(why) => Err(log(format!("the release command `{line}` {why}"))),
    }
}

/// Ends release commands of a deployment that somebody before us began.
fn end_releases(control: &Control, deployment: &Deployment) -> Result<(), Broken> {
    let listed = patiently(|| control.running()).map_err(Broken::plain)?;
    let listed = listed.into_iter().map(|found| found.instance);
    let spooled = control.logs.spooled().into_iter();
    let is_mine = |name: &String| {
        let of = ids::parse(name);
        ids::kind(name) == ids::Kind::Release && of.is_some_and(|(_, id)| id == deployment.id)
    };
    for name in listed.chain(spooled).filter(is_mine) {
        let _ = control.kill_instance(&name);
        wait_until_gone(control, &name, deployment.id)?;
        control.logs.forget_spool(&name);
    }
    Ok(())
}

fn wait_until_gone(control: &Control, instance: &str, deployment: u64) -> Result<(), Broken> {
    let late = "what was left of an earlier try does not end";
    wait_for(control, instance, deployment, BUILD_TIMEOUT, None, late)
}

/// Waits until an instance is gone; ends it when that takes too long, or when nobody wants it any more: with SIGTERM and
/// `patience`, or at once.
fn wait_for(
    control: &Control,
    instance: &str,
    deployment: u64,
    timeout: Duration,
    patience: Option<Duration>,
    late_words: &str,
) -> Result<(), Broken> {
    let deadline = Instant::now() + timeout;
    let mut told = false;
    let mut late = false;
    loop {
        late |= Instant::now() > deadline;
        let listed = control.running();
        match &listed {
            Ok(listed) if !listed.iter().any(|i| i.instance == instance) => {
                return if late {
                    Err(Broken::plain(late_words))
                } else {
                    Ok(())
                };
            }
            // The warden is being restarted; it goes on meanwhile.
            Err(error) if Instant::now() > deadline + PATIENCE => return Err(Broken::plain(error)),
            _ => {}
        }
        // Until it is gone: a word that got lost is said again.
        if late || is_superseded(control, deployment) {
            let app = ids::parse(instance).map(|(app, _)| app).unwrap_or_default();
            let found = control.store.app(app).ok().flatten();
            // What is in quarantine gets no time to finish.
            let patience = patience.filter(|_| !found.is_some_and(|app| app.isolated));
            match patience {
                Some(patience) if !told => control.stop_instance(instance, patience),
                Some(_) => {}
                None => drop(control.kill_instance(instance)),
            }
            told = listed.is_ok();
        }
        std::thread::sleep(LOOK);
    }
}

/// What makes the same input give the same result, where a tool lets it: no clock, no seed, no time zone. Archives know
/// no time before 1980.
const FIXED: [(&str, &str); 6] = [
    ("CI", "true"),
    ("SOURCE_DATE_EPOCH", "315532800"),
    ("PYTHONHASHSEED", "0"),
    ("TZ", "UTC"),
    ("LC_ALL", "C.UTF-8"),
    ("NEXT_TELEMETRY_DISABLED", "1"),
];

/// Mirrors and the way out, as the server file says.
fn environment(settings: &ServerSettings) -> Vec<(String, String)> {
    let fixed = FIXED.iter();
    let mut env: Vec<(String, String)> = fixed
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    let mut add = |key: &str, value: &Option<String>| {
        if let Some(value) = value {
            env.push((key.to_owned(), value.clone()));
        }
    };
    add("PIP_INDEX_URL", &settings.pip_index);
    add("npm_config_registry", &settings.npm_registry);
    for key in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
        add(key, &settings.proxy);
    }
    env
}
