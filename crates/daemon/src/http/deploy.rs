//! Uploads, deployments, releases, rollback.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use futures_util::TryStreamExt;
use hutong_api::{
    DeployRequest, Deployment, DeploymentState, PlanAnswer, Problem, Release, ReleaseState,
    RollbackRequest, TakenImage,
};
use hutong_core::canary::Canary;
use hutong_core::name::AppName;
use hutong_core::name::is_digest;
use hutong_core::spec::egress::no_consent;
use hutong_core::spec::{self, AppSpec, Egress, ImageDriver, LOCAL_REGISTRY, Run, Strategy};
use hutong_core::{detect, dockerfile};
use hutong_core::{route, units};

use super::{ApiError, Result, apps, canary};
use crate::store::{self, Goal};
use crate::{Control, builds, controller, images, lock, memory, platform, publish, unpack};

pub fn tree(control: &Control, digest: &str) -> Result<PathBuf> {
    if !is_digest(digest) {
        return Err(ApiError::bad("a digest is 64 hex digits"));
    }
    Ok(control.data_dir.join("trees").join(digest))
}

/// Whether the server has a tree already.
#[utoipa::path(head, path = "/v1/trees/{digest}", responses((status = 200), (status = 404)))]
pub async fn has_tree(
    State(control): State<Arc<Control>>,
    Path(digest): Path<String>,
) -> Result<()> {
    let folder = tree(&control, &digest)?;
    if folder.is_dir() {
        asked_for(&control, &digest);
        Ok(())
    } else {
        Err(ApiError::not_found("the server does not have this tree"))
    }
}

/// It is not cleared away before it is deployed.
fn asked_for(control: &Control, digest: &str) {
    let now = hutong_runtime::processes::steady_ms();
    lock(&control.trees_asked).insert(digest.to_owned(), now);
}

/// Uploads at once; more wait.
static UPLOADS: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(4);

/// Uploads a tree as a gzipped tar; its content must have the digest. The same content is kept once.
#[utoipa::path(put, path = "/v1/trees/{digest}", request_body(content = Vec<u8>, content_type = "application/gzip"), responses((status = 200), (status = 400, body = Problem), (status = 413, body = Problem), (status = 422, body = Problem)))]
pub async fn upload(
    State(control): State<Arc<Control>>,
    Path(digest): Path<String>,
    body: Body,
) -> Result<()> {
    tree(&control, &digest)?;
    control.has_disk().map_err(ApiError::no_room)?;
    asked_for(&control, &digest);
    // Each holds a thread while it lasts, and disk and memory.
    let _place = UPLOADS
        .acquire()
        .await
        .map_err(|error| ApiError::new(503, error.to_string()))?;
    let trees = control.data_dir.join("trees");
    let (bound, group) = (control.settings.upload_bytes, control.gateway_gid);
    let take = move |archive: Received| unpack::unpack(archive, &trees, &digest, bound, group);
    taken_in(body, take).await??;
    Ok(())
}

/// Takes an image in, an OCI layout or what `docker save` writes, as an archive (tar, gzipped or not), for the app to run
/// it: how the image is called then.
#[utoipa::path(put, path = "/v1/apps/{app}/image", request_body(content = Vec<u8>, content_type = "application/x-tar"), responses((status = 200, body = TakenImage), (status = 400, body = Problem), (status = 413, body = Problem), (status = 422, body = Problem)))]
pub async fn take_image(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
    body: Body,
) -> Result<Json<TakenImage>> {
    AppName::new(&name).map_err(ApiError::bad)?;
    control.has_disk().map_err(ApiError::no_room)?;
    let _place = UPLOADS
        .acquire()
        .await
        .map_err(|error| ApiError::new(503, error.to_string()))?;
    let bound = control.settings.upload_bytes.max(IMAGE_BYTES);
    let app = name.clone();
    let take = move |archive: Received| -> Result<String> {
        let failed = |reason: String| ApiError::new(500, reason);
        let repository = images::repository_of(&app).map_err(ApiError::bad)?;
        let registry = control.images.registry().map_err(failed)?;
        let staging = control.images.incoming();
        let digest = images::archive::take_in(&registry, &repository, &staging, archive, bound)?;
        // Whether it is for this machine, before anybody deploys it.
        control.images.image(&digest).map_err(ApiError::bad)?;
        Ok(digest.to_string())
    };
    let digest = taken_in(body, take).await??;
    Ok(Json(TakenImage {
        image: format!("{LOCAL_REGISTRY}/{name}@{digest}"),
        digest,
    }))
}

/// What an image's archive may have at least, in bytes.
const IMAGE_BYTES: u64 = 8 << 30;

/// Has `take` read a body, on a thread that may wait.
async fn taken_in<T: Send + 'static>(
    body: Body,
    take: impl FnOnce(Received) -> T + Send + 'static,
) -> Result<T> {
    let stream = body.into_data_stream().map_err(std::io::Error::other);
    let (sender, receiver) = std::sync::mpsc::sync_channel(8);
    let work = tokio::task::spawn_blocking(move || take(Received::new(receiver)));
    let feed = async {
        let mut stream = std::pin::pin!(stream);
        loop {
            let chunk = match stream.try_next().await {
                Ok(Some(chunk)) => Ok(chunk),
                Ok(None) => return,
                Err(error) => Err(error),
            };
            let (sender, failed) = (sender.clone(), chunk.is_err());
            // The other side unpacks on a thread of its own; a full channel holds the sender back.
            let sent = tokio::task::spawn_blocking(move || sender.send(chunk)).await;
            if failed || !matches!(sent, Ok(Ok(()))) {
                return;
            }
        }
    };
    feed.await;
    drop(sender);
    work.await.map_err(|e| ApiError::new(500, e.to_string()))
}

/// Chunks of an upload as a reader.
struct Received {
    chunks: std::sync::mpsc::Receiver<std::io::Result<bytes::Bytes>>,
    current: bytes::Bytes,
}

impl Received {
    fn new(chunks: std::sync::mpsc::Receiver<std::io::Result<bytes::Bytes>>) -> Self {
        Received {
            chunks,
            current: bytes::Bytes::new(),
        }
    }
}

impl std::io::Read for Received {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.recv() {
                Ok(chunk) => self.current = chunk?,
                Err(_) => return Ok(0),
            }
        }
        let count = buffer.len().min(self.current.len());
        buffer[..count].copy_from_slice(&self.current.split_to(count));
        Ok(count)
    }
}

/// Deploys a tree that was uploaded, or only says what that would do.
#[utoipa::path(post, path = "/v1/apps/{app}/deployments", request_body = DeployRequest, responses((status = 200, body = PlanAnswer), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub async fn deploy(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
    Json(request): Json<DeployRequest>,
) -> Result<Json<PlanAnswer>> {
    let folder = tree(&control, &request.digest)?;
    check_origin(request.applied_from.as_deref())?;
    let there = folder.is_dir();
    let text = if there {
        std::fs::read_to_string(folder.join("hutong.toml"))
            .map_err(|_| ApiError::bad("there is no hutong.toml in the folder"))?
    } else {
        match (&request.spec, request.dry_run) {
            (Some(spec), true) => spec.clone(),
            _ => {
                return Err(ApiError::not_found("the server does not have this tree")
                    .kind("unknown-tree")
                    .hint("upload it first: PUT /v1/trees/DIGEST"));
            }
        }
    };
    let text = match &request.image {
        Some(reference) => spec::with_image(&text, reference).map_err(ApiError::bad)?,
        None => text,
    };
    let text = match (&request.variant, request.share) {
        (Some(variant), share) => {
            check_serves(&control, &name, variant)?;
            spec::with_variant(&text, variant, share).map_err(ApiError::bad)?
        }
        (None, Some(_)) => return Err(ApiError::bad("a share is a variant's: name that, too")),
        (None, None) => text,
    };
    decide(&control, &name, &request, &text, None).map(Json)
}

/// A variant is compared with something.
fn check_serves(control: &Control, name: &str, variant: &str) -> Result<()> {
    let app = control.store.app(name)?;
    let active = app.filter(|app| app.goal != Goal::Removed);
    let active = controller::version_of(control, active.and_then(|app| app.active))?;
    // Files and other people's servers have nothing beside them: they would be replaced.
    match active.is_some_and(|(_, _, spec)| spec.run.has_instances()) {
        true => Ok(()),
        false => Err(ApiError::conflict(format!(
            "no release of {name} with a `command` serves that the variant {variant} could be compared with"
        ))
        .hint("deploy one without a variant first")),
    }
}

/// Deploys a tree that is there, with `text` in place of its own hutong.toml.
pub fn begin(control: &Arc<Control>, name: &str, digest: &str, text: &str) -> Result<PlanAnswer> {
    if !tree(control, digest)?.is_dir() {
        return Err(ApiError::conflict(
            "the tree of this commit was cleared away; push again",
        ));
    }
    // Who pushes has a token of this app, and of no other.
    if let Ok(spec) = spec::parse("hutong.toml", text)
        && let Some(image) = &spec.image
    {
        if let Some(local) = image.local()
            && !images::is_own(name, local)
        {
            return Err(ApiError::conflict(format!(
                "the image {LOCAL_REGISTRY}/{local} is another app's"
            )));
        }
        check_registry(control, name, &image.reference)?;
    }
    let request = DeployRequest {
        digest: digest.to_owned(),
        spec: None,
        dry_run: false,
        applied_from: None,
        image: None,
        variant: None,
        share: None,
        no_cache: false,
    };
    decide(control, name, &request, text, None)
}

/// Nobody has this server ask around in its own network but its owner: by a login for that registry, or by having deployed
/// the app, or the one that it is a preview of, from there.
fn check_registry(control: &Control, name: &str, reference: &str) -> Result<()> {
    let Some(host) = images::remote::inside(reference) else {
        return Ok(());
    };
    if control.store.registry_login(&host)?.is_some() {
        return Ok(());
    }
    let parent = name.split("--").next().unwrap_or(name);
    for known in [name, parent] {
        let Some(app) = control.store.app(known)? else {
            continue;
        };
        let spec = apps::current_spec(control, &app)?;
        let image = spec.and_then(|(_, spec)| spec.image);
        let before = image.and_then(|image| images::remote::inside(&image.reference));
        if before.as_ref() == Some(&host) {
            return Ok(());
        }
    }
    Err(ApiError::conflict(format!(
        "the registry {host} is in this server's own network, where only its owner has it ask"
    ))
    .hint(format!(
        "on the server: hutong registry login {host}, or deploy the app from there once by hand"
    )))
}

/// The same, of what a tag leads to now, if the app still is as it was when that was decided.
pub fn begin_seen(
    control: &Arc<Control>,
    name: &str,
    digest: &str,
    text: &str,
    news: &News,
) -> Result<()> {
    if !tree(control, digest)?.is_dir() {
        return Err(ApiError::conflict(
            "the folder of its release was cleared away; deploy it again",
        ));
    }
    let request = DeployRequest {
        digest: digest.to_owned(),
        spec: None,
        dry_run: false,
        applied_from: None,
        image: None,
        variant: None,
        share: None,
        no_cache: false,
    };
    decide(control, name, &request, text, Some(news)).map(drop)
}

/// What nobody but a tag says: where that leads now, and how the app was when that was found.
pub struct News {
    pub before: store::Before,
    pub seen: store::Seen,
}

fn decide(
    control: &Arc<Control>,
    name: &str,
    request: &DeployRequest,
    text: &str,
    news: Option<&News>,
) -> Result<PlanAnswer> {
    let folder = tree(control, &request.digest)?;
    let there = folder.is_dir();
    let engine = control.settings.docker.is_some();
    let completed = aside(|| {
        detect::complete("hutong.toml", text, engine, || match there {
            true => crate::folder::listing(&folder),
            false => detect::Listing::default(),
        })
    });
    // Written down: what a release is does not depend on what a later version would recognise.
    let detect::Completed { spec, text, plan } =
        completed.map_err(|problems| ApiError::bad(problems.to_string()))?;
    if spec.name.as_str() != name {
        return Err(ApiError::bad(format!(
            "hutong.toml names the app {}, the request {name}",
            spec.name
        )));
    }
    check_upstreams(control, &spec)?;
    check_egress(control, &spec)?;
    if let Some(image) = &spec.image
        && images::driver(control, image) == ImageDriver::Docker
        && control.settings.docker.is_none()
    {
        return Err(ApiError::conflict(builds::NO_ENGINE));
    }
    if let Some(domain) = platform::taken(control, &spec) {
        return Err(ApiError::conflict(format!(
            "the host {domain} is the platform's own; take another"
        )));
    }
    let others = other_specs(control, name)?;
    if let Some(conflict) = conflict(&others, &spec) {
        return Err(ApiError::conflict(conflict));
    }
    let mut warnings = waiting_routes(&others[0], &spec);
    let recognised =
        plan.map(|plan| format!("it is {}: {}", plan.language, plan.because.join("; ")));
    let before = control.store.app(name)?;
    let is_free = |app: &store::App| !app.isolated && app.restoring.is_none();
    if before.as_ref().is_some_and(|app| !is_free(app)) {
        apps::find_free(control, name)?;
    }
    let steps = if there {
        aside(|| check_tree(&spec, &folder))?;
        warnings.extend(builds::advice(&spec, &folder));
        builds::recipe(&spec, &folder)
    } else {
        Vec::new()
    };
    let plan = outline(
        control,
        &spec,
        before.as_ref(),
        &request.digest,
        there,
        &steps,
    )?;
    let plan: Vec<String> = recognised.into_iter().chain(plan).collect();
    let instances = match &before {
        Some(app) => controller::wanted_instances(&lock(&control.observed), app, &spec),
        None => spec.instances,
    };
    memory::check_release(control, name, &spec, instances).map_err(ApiError::no_memory)?;
    let grows = !steps.is_empty() || spec.image.is_some();
    if grows && !request.dry_run {
        control.has_disk().map_err(ApiError::no_room)?;
    }
    let tried = canary::under_way(control, name)?;
    if let Some(((_, release, tried), _)) = &tried {
        warnings.push(format!(
            "the {} of release {} ends: this release takes its place",
            controller::called(tried),
            release.number
        ));
    }
    if request.dry_run {
        return Ok(PlanAnswer {
            deployment: None,
            steps: plan,
            warnings,
        });
    }
    let prepares = builds::is_needed(&spec, &steps) || builds::copies_data(control, name, &spec)?;
    let state = if prepares { "building" } else { "rolling" };
    let folder = request.applied_from.as_deref();
    let store = &control.store;
    let digest = &request.digest;
    let deployment = match news {
        None => store.deploy_from(name, digest, &text, state, folder)?,
        Some(news) => store
            .deploy_seen(name, &news.before, &news.seen, digest, &text, state)?
            .ok_or_else(|| ApiError::conflict(format!("{name} was changed meanwhile")))?,
    };
    if let Some(((replaced, release, tried), _)) = &tried {
        lock(&control.observed).verdicts.remove(&replaced.id);
        let (old, new) = (release.number, deployment.release);
        let what = controller::called(tried);
        let text = format!("the {what} of release {old} is aborted: release {new} takes its place");
        control.logs.note(name, "", &text);
    }
    if prepares {
        if request.no_cache {
            lock(&control.observed).fresh.insert(deployment.id);
        }
        builds::start(control, deployment.clone());
    } else {
        control.wake.notify_one();
    }
    Ok(PlanAnswer {
        deployment: Some(to_wire(&deployment)),
        steps: plan,
        warnings,
    })
}

/// Does what reads many files: other requests go on meanwhile.
fn aside<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current() {
        Ok(runtime) if runtime.runtime_flavor() == RuntimeFlavor::MultiThread => {
            tokio::task::block_in_place(work)
        }
        _ => work(),
    }
}

/// What is compared and shown later, and is no path of ours.
fn check_origin(origin: Option<&str>) -> Result<()> {
    let sound = |text: &str| {
        (1..=500).contains(&text.chars().count()) && !text.chars().any(char::is_control)
    };
    match origin {
        Some(text) if !sound(text) => Err(ApiError::bad(
            "applied_from is 1 to 500 printable characters",
        )),
        _ => Ok(()),
    }
}

/// An app names no server that the owner of this one does not allow.
fn check_upstreams(control: &Control, spec: &AppSpec) -> Result<()> {
    if let Run::Upstream(list) = &spec.run {
        let refused = list
            .iter()
            .find(|one| !control.upstreams.contains(one.address.ip()));
        if let Some(one) = refused {
            return Err(ApiError::bad(publish::not_allowed(one)).hint(format!(
                "on the server: allow_upstreams = [\"{}\"] in the server file, and restart it",
                one.address.ip()
            )));
        }
    }
    Ok(())
}

/// Nor does it reach private addresses without that owner's consent.
fn check_egress(control: &Control, spec: &AppSpec) -> Result<()> {
    let Egress::List(rules) = &spec.egress else {
        return Ok(());
    };
    for rule in rules {
        if let Some(part) = rule.without_consent(&control.egress_allowed) {
            return Err(ApiError::bad(no_consent(rule, part)).hint(format!(
                "on the server: allow = [\"{part}\"] in the table [egress] of the server file, and restart it"
            )));
        }
    }
    Ok(())
}

/// A static app without a build must bring its folder, and an app of a Dockerfile that.
fn check_tree(spec: &AppSpec, tree: &std::path::Path) -> Result<()> {
    let image = spec.image.as_ref();
    if let Some(file) = image.and_then(|image| image.dockerfile.as_ref()) {
        let read = crate::folder::text(&tree.join(&file.path), dockerfile::MAX_BYTES);
        let text = match read {
            Ok(Some(text)) => text,
            Ok(None) => {
                return Err(ApiError::bad(format!(
                    "the file `{}` that `build.dockerfile` names is not there",
                    file.path
                )));
            }
            Err(error) => {
                return Err(ApiError::bad(format!(
                    "the file `{}` that `build.dockerfile` names cannot be read: {error}",
                    file.path
                )));
            }
        };
        dockerfile::check(&file.path, &text)
            .map_err(|problems| ApiError::bad(problems.to_string()))?;
    }
    let Run::Static { folder, .. } = &spec.run else {
        return Ok(());
    };
    if spec.build.is_none() && !tree.join(folder).is_dir() {
        return Err(ApiError::bad(format!(
            "the folder `{folder}` that `static` names is not there"
        ))
        .hint("build it first, or let Hutong do it: [build] command = \"npm run build\""));
    }
    Ok(())
}

/// The specifications of every other app: the one that serves, and the one under way, which counts
/// too, because two deployments at once must not win the same host.
fn other_specs(control: &Control, name: &str) -> Result<Vec<BTreeMap<String, AppSpec>>> {
    let mut serving = BTreeMap::new();
    let mut under_way = BTreeMap::new();
    for app in control.store.apps()? {
        if app.goal == Goal::Removed || app.name == name {
            continue;
        }
        for (version, specs) in [
            (active(control, &app)?, &mut serving),
            (control.store.under_way(&app.name)?, &mut under_way),
        ] {
            let Some(deployment) = version else { continue };
            if let Some(release) = control.store.release(&app.name, deployment.release)? {
                specs.insert(app.name.clone(), release.parse()?);
            }
        }
    }
    Ok(vec![serving, under_way])
}

fn conflict(others: &[BTreeMap<String, AppSpec>], spec: &AppSpec) -> Option<String> {
    others.iter().find_map(|specs| route::conflict(specs, spec))
}

fn active(control: &Control, app: &store::App) -> Result<Option<store::Deployment>> {
    Ok(match app.active {
        Some(id) => control.store.deployment(id)?,
        None => None,
    })
}

fn waiting_routes(others: &BTreeMap<String, AppSpec>, spec: &AppSpec) -> Vec<String> {
    let mut all = others.clone();
    all.insert(spec.name.to_string(), spec.clone());
    spec.domains
        .iter()
        .filter_map(|domain| route::holds(&all, spec.name.as_str(), domain).err())
        .collect()
}

/// What a deployment does, in the words of the planner's steps.
fn outline(
    control: &Control,
    spec: &AppSpec,
    before: Option<&store::App>,
    digest: &str,
    there: bool,
    build: &[builds::Recipe],
) -> Result<Vec<String>> {
    let mut steps = Vec::new();
    let running = match before {
        Some(app) => active(control, app)?,
        None => None,
    };
    if before.is_none() {
        steps.push(format!("make the app {}", spec.name));
    }
    steps.push(if there {
        format!("use the content {} that is there already", &digest[..12])
    } else {
        format!("upload the content {}", &digest[..12])
    });
    steps.extend(
        build
            .iter()
            .map(|step| format!("build: {}", step.argv.join(" "))),
    );
    if !there && let Some(build) = &spec.build {
        let lines = build.steps.iter();
        steps.extend(lines.map(|step| format!("build: {}", step.command.join(" "))));
    }
    if let Some(image) = &spec.image {
        steps.push(match &image.dockerfile {
            Some(file) => format!("build the image of {}", file.path),
            None => format!("use the image {}", image.reference),
        });
    }
    if let Some(release) = &spec.release {
        if spec.data && release.snapshot {
            steps.push("take a snapshot of /data".into());
        }
        steps.push(format!(
            "run `{}`, which must succeed",
            release.command.join(" ")
        ));
    }
    match (&spec.run, &running, spec.strategy) {
        (Run::Static { folder, .. }, _, _) => steps.push(format!("serve the files of /{folder}")),
        (Run::Upstream(list), _, _) => {
            let list: Vec<String> = list.iter().map(|one| one.address.to_string()).collect();
            steps.push(format!("send requests to {}", list.join(", ")));
        }
        (Run::Background, _, _) => {}
        (Run::Command(_), Some(_), Strategy::Recreate) => {
            steps.push("hold requests; let those under way finish; stop the old release".into());
            steps.push(start_words(spec));
        }
        (Run::Command(_), None, _) => steps.push(start_words(spec)),
        (Run::Command(_), Some(_), strategy) => {
            steps.push(start_words(spec));
            steps.extend(spec.canary.iter().flat_map(trial_words));
            steps.push(match strategy {
                Strategy::BlueGreen => format!(
                    "move requests over at once; keep the old release ready for {}; stop it",
                    units::show_time(spec.keep)
                ),
                Strategy::Ab => "once it is promoted: move requests over; let those under way finish; stop the old release".into(),
                _ => "move requests over; let those under way finish; stop the old release".into(),
            });
        }
    }
    for (name, worker) in &spec.workers {
        steps.push(format!("run {} worker(s) {name}", worker.instances));
    }
    for (name, job) in &spec.cron {
        let zone = job.schedule.zone();
        steps.push(format!("run {name} at `{}` ({zone})", job.schedule));
    }
    let domains: Vec<String> = spec.domains.iter().map(ToString::to_string).collect();
    if !domains.is_empty() {
        steps.push(format!("answer for {}", domains.join(", ")));
    }
    let release = running.map(|running| control.store.release(&running.app, running.release));
    // One that is not understood any more is not compared.
    if let Some(Ok(before)) = release
        .transpose()?
        .flatten()
        .map(|release| release.parse())
    {
        let lost = before
            .domains
            .iter()
            .filter(|old| !spec.domains.contains(old));
        let lost: Vec<String> = lost.map(ToString::to_string).collect();
        if !lost.is_empty() {
            steps.push(format!("answer no more for {}", lost.join(", ")));
        }
    }
    Ok(steps)
}

/// What a canary's steps are, in words.
fn trial_words(canary: &Canary) -> Vec<String> {
    if let Some(name) = &canary.variant {
        return vec![format!(
            "give it, the variant {name}, {} % of the visitors until `hutong promote` or `hutong abort`",
            canary.share(0)
        )];
    }
    let shares = canary.steps.iter().filter(|share| **share < 100);
    shares
        .map(|share| {
            format!(
                "give it {share} % of the visitors for {} at least, and look how it does",
                units::show_time(canary.every)
            )
        })
        .collect()
}

fn start_words(spec: &AppSpec) -> String {
    let health = match &spec.health.path {
        Some(path) => format!("GET {path} on port {}", spec.port),
        None => format!("port {} to open", spec.port),
    };
    format!(
        "start {} instance(s) with {} of memory each; wait up to {} for {health}",
        spec.show_instances(),
        units::show_size(spec.caps.memory_bytes),
        units::show_time(spec.start_timeout)
    )
}

#[derive(serde::Deserialize)]
pub struct Watch {
    /// Seconds to wait for something new, at most 30.
    #[serde(default)]
    wait: u64,
    /// What the caller knows already.
    #[serde(default)]
    known: Option<String>,
}

/// A deployment; with `wait` it is answered when there is something new (`known` is the last `doing`).
#[utoipa::path(get, path = "/v1/apps/{app}/deployments/{id}", params(("wait" = Option<u64>, Query), ("known" = Option<String>, Query)), responses((status = 200, body = Deployment), (status = 404, body = Problem)))]
pub async fn watch(
    State(control): State<Arc<Control>>,
    Path((name, id)): Path<(String, u64)>,
    Query(watch): Query<Watch>,
) -> Result<Json<Deployment>> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(watch.wait.min(30));
    let mut passes = control.passes.subscribe();
    loop {
        let found = control.store.deployment(id)?;
        let deployment = found
            .filter(|deployment| deployment.app == name)
            .ok_or_else(|| ApiError::not_found("there is no such deployment"))?;
        let wire = wire_deployment(&control, &deployment);
        let news = if deployment.is_over() {
            is_visible(&control, &deployment)
        } else {
            wire.doing != watch.known || tokio::time::Instant::now() >= deadline
        };
        if news {
            return Ok(Json(wire));
        }
        let tick = Duration::from_millis(250);
        let _ = tokio::time::timeout(tick, passes.changed()).await;
    }
}

/// A deployment as it stands; one that is done counts as under way until visitors get it. None if it is gone.
pub fn now(control: &Control, id: u64) -> Result<Option<Deployment>> {
    let Some(found) = control.store.deployment(id)? else {
        return Ok(None);
    };
    let mut wire = wire_deployment(control, &found);
    if found.is_over() && !is_visible(control, &found) {
        wire.state = DeploymentState::Rolling;
    }
    Ok(Some(wire))
}

/// Where visitors reach an app.
pub fn urls(control: &Control, app: &str) -> Vec<String> {
    let spec = control
        .store
        .app(app)
        .ok()
        .flatten()
        .and_then(|app| apps::current_spec(control, &app).ok().flatten());
    let domains = spec.map(|(_, spec)| spec.domains).unwrap_or_default();
    let domains = domains
        .iter()
        .filter(|domain| !domain.host.starts_with("*."));
    domains
        .map(|domain| {
            let (scheme, address, usual) = match &control.https {
                Some(address) => ("https", address, "443"),
                None => ("http", &control.http, "80"),
            };
            let port = address.rsplit_once(':').map_or(usual, |(_, port)| port);
            let port = match port {
                port if port == usual => String::new(),
                port => format!(":{port}"),
            };
            let path = match domain.prefix.as_str() {
                "/" => "",
                path => path,
            };
            format!("{scheme}://{}{port}{path}", domain.host)
        })
        .collect()
}

/// Done means that visitors get it: the gateway serves a table with it. If there is no gateway for a
/// while, it is done all the same.
fn is_visible(control: &Control, deployment: &store::Deployment) -> bool {
    let observed = lock(&control.observed);
    let published = observed.published_active.get(&deployment.app) == Some(&deployment.id);
    let served = published && observed.gateway_version >= observed.published_version;
    // Either way: the clock may have been set meanwhile.
    let age = hutong_runtime::processes::now_ms().abs_diff(deployment.finished_ms.unwrap_or(0));
    deployment.state != "done" || served || age > 3000
}

pub fn to_wire(deployment: &store::Deployment) -> Deployment {
    Deployment {
        id: deployment.id,
        app: deployment.app.clone(),
        release: deployment.release,
        kind: deployment.kind.clone(),
        state: match deployment.state.as_str() {
            "building" => DeploymentState::Building,
            "rolling" => DeploymentState::Rolling,
            "done" => DeploymentState::Done,
            "superseded" => DeploymentState::Superseded,
            _ => DeploymentState::Failed,
        },
        doing: None,
        variant: None,
        reason: deployment.reason.clone(),
        log: deployment.log.clone(),
        created_at: deployment.created_ms,
        finished_at: deployment.finished_ms,
        warnings: Vec::new(),
    }
}

/// With what it does now, and which routes wait.
pub fn wire_deployment(control: &Control, deployment: &store::Deployment) -> Deployment {
    let mut wire = to_wire(deployment);
    let tested = canary::variant(control, deployment);
    let observed = lock(&control.observed);
    let trouble = observed.trouble.clone();
    wire.doing = match wire.state {
        DeploymentState::Building | DeploymentState::Rolling if trouble.is_some() => trouble,
        DeploymentState::Building => {
            let at_work = observed.building.get(&deployment.id).cloned();
            let before = observed.queue.iter().position(|id| *id == deployment.id);
            Some(at_work.unwrap_or_else(|| match before {
                None | Some(0) => "waiting for the build before it".into(),
                Some(place) => format!("waiting for {} builds before it", place + 1),
            }))
        }
        DeploymentState::Rolling if tested.is_some() => tested
            .as_ref()
            .map(|(name, share)| format!("the variant {name} gets {share} % of the visitors")),
        DeploymentState::Rolling if observed.verdicts.contains_key(&deployment.id) => observed
            .verdicts
            .get(&deployment.id)
            .map(|why| format!("the canary: {why}")),
        DeploymentState::Rolling => observed
            .doing
            .get(&deployment.app)
            .and_then(|steps| steps.first().cloned()),
        _ => None,
    };
    wire.variant = tested.map(|(name, _)| name);
    wire.warnings = observed
        .warnings
        .get(&deployment.app)
        .cloned()
        .unwrap_or_default();
    wire
}

/// The releases that are kept, newest first.
#[utoipa::path(get, path = "/v1/apps/{app}/releases", responses((status = 200, body = Vec<Release>)))]
pub async fn releases(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
) -> Result<Json<Vec<Release>>> {
    let app = apps::find(&control, &name)?;
    let serving = active(&control, &app)?.map(|deployment| deployment.release);
    let under_way = control.store.under_way(&name)?.map(|d| d.release);
    let list = control
        .store
        .releases(&name)?
        .into_iter()
        .map(|release| Release {
            id: release.number,
            state: match () {
                () if serving == Some(release.number) => ReleaseState::Active,
                () if under_way == Some(release.number) => ReleaseState::Deploying,
                () if release.served => ReleaseState::Kept,
                () => ReleaseState::Failed,
            },
            digest: release.digest,
            created_at: release.created_ms,
        })
        .collect();
    Ok(Json(list))
}

/// Makes a kept release serve again.
#[utoipa::path(post, path = "/v1/apps/{app}/rollback", request_body = RollbackRequest, responses((status = 200, body = Deployment), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub async fn rollback(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
    Json(request): Json<RollbackRequest>,
) -> Result<Json<Deployment>> {
    let mut app = apps::find_free(&control, &name)?;
    let tried = canary::under_way(&control, &name)?;
    // Of a release on trial this is the way back.
    if let (Some(((deployment, _, _), _)), Some(active)) = (tried, active(&control, &app)?)
        && request
            .release
            .is_none_or(|number| number == active.release)
    {
        if canary::give_up(&control, &deployment, "its owner rolled it back")? {
            canary::until_served(&control).await;
            return Ok(Json(to_wire(&active)));
        }
        // It has just taken over: what served before is a release that is kept, like any.
        app = apps::find_free(&control, &name)?;
    }
    let serving = active(&control, &app)?.map(|deployment| deployment.release);
    let releases = control.store.releases(&name)?;
    let chosen = match request.release {
        Some(number) => releases
            .iter()
            .find(|r| r.number == number)
            .ok_or_else(|| {
                ApiError::not_found(format!("{name} keeps no release {number}"))
                    .hint(format!("`hutong releases {name}` lists those it keeps"))
            })?,
        None => releases
            .iter()
            .find(|r| r.served && serving.is_some_and(|serving| r.number < serving))
            .ok_or_else(|| {
                ApiError::conflict(format!("{name} keeps no earlier release that ever served"))
            })?,
    };
    let spec = chosen.parse()?;
    check_upstreams(&control, &spec)?;
    let others = other_specs(&control, &name)?;
    if let Some(conflict) = conflict(&others, &spec) {
        return Err(ApiError::conflict(conflict));
    }
    if let Some(back) = canary::switch_back(&control, &app, chosen.number).await? {
        return Ok(Json(to_wire(&back)));
    }
    let folder = tree(&control, &chosen.digest)?;
    let steps = builds::recipe(&spec, &folder);
    let must_build = chosen.built.is_none() && (!steps.is_empty() || spec.image.is_some());
    let state = if must_build { "building" } else { "rolling" };
    let deployment = control
        .store
        .redeploy(&name, chosen.number, "rollback", state)?;
    if must_build {
        builds::start(&control, deployment.clone());
    }
    control.wake.notify_one();
    Ok(Json(to_wire(&deployment)))
}
