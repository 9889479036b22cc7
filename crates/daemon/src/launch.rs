//! Starts an instance: of whichever kind, with its release's files and the app's variables.

use std::collections::BTreeMap;

use hutong_core::image::{ImageUser, find_user};
use hutong_core::spec::{AppSpec, Caps, ContainerUser, Egress, Image};
use hutong_ipc::docker;
use hutong_ipc::warden::{ImageLayers, ImageRoot, Instance, Limits, Quota, Start, Tree};
use hutong_registry::{ContainerConfig, Digest};
use hutong_runtime::client::{Driver, DriverError};

use crate::builds::NO_ENGINE;
use crate::images::{self, program};
use crate::store::Release;
use crate::{Control, ids, lock};

/// What is to run.
pub struct What<'a> {
    pub deployment: u64,
    pub release: &'a Release,
    pub spec: &'a AppSpec,
    pub kind: ids::Kind<'a>,
    pub argv: &'a [String],
    pub caps: Caps,
}

pub enum NotStarted {
    /// The warden could not be reached, or did not answer: it may have been started all the same.
    Unknown(String),
    Because(String),
    /// There is no memory for it now: why.
    NoRoom(String),
}

impl From<String> for NotStarted {
    fn from(reason: String) -> Self {
        NotStarted::Because(reason)
    }
}

/// The variables that an app's programs get; `release` is its number.
pub fn environment(
    control: &Control,
    spec: &AppSpec,
    release: u64,
    kind: ids::Kind<'_>,
) -> Result<Vec<(String, String)>, String> {
    let own = control.store.env(spec.name.as_str());
    let mut env: BTreeMap<String, String> = spec.env.clone();
    env.extend(own.map_err(|error| error.to_string())?);
    env.insert("PORT".into(), spec.port.to_string());
    env.insert("HUTONG_RELEASE".into(), release.to_string());
    env.insert("HUTONG_PROCESS".into(), process(kind).to_owned());
    Ok(env.into_iter().collect())
}

/// What a kind of instance is called to people.
pub fn process(kind: ids::Kind<'_>) -> &str {
    match kind {
        ids::Kind::Web => "web",
        ids::Kind::Worker(name) | ids::Kind::Cron(name) => name,
        ids::Kind::Run => "run",
        ids::Kind::Release => "release",
        ids::Kind::Build => "build",
    }
}

/// Starts `instance`, an id of the same kind.
pub fn launch(control: &Control, instance: &str, what: &What<'_>) -> Result<(), NotStarted> {
    let app = what.spec.name.as_str();
    let env = environment(control, what.spec, what.release.number, what.kind)?;
    let set_aside = control.set_aside(instance, what.caps.guaranteed_bytes);
    set_aside.map_err(NotStarted::NoRoom)?;
    let tree = match what
        .release
        .built
        .as_ref()
        .filter(|_| what.spec.image.is_none())
    {
        Some(key) => Tree::Built { key: key.clone() },
        None => Tree::Source {
            digest: what.release.digest.clone(),
        },
    };
    let limits = Limits {
        memory: what.caps.memory_bytes,
        cpu_millis: what.caps.cpu_millis,
        pids: what.caps.pids,
        guaranteed: what.caps.guaranteed_bytes,
    };
    let started = match &what.spec.image {
        Some(image) => match images::of_release(what.release) {
            Some(digest) => {
                start_from_image(control, instance, what, (image, &digest), env, limits)
            }
            None => start_container(control, instance, what, image, env, limits),
        },
        None => control.warden.start(Start {
            instance: instance.to_owned(),
            app: app.to_owned(),
            deployment: what.deployment,
            tree,
            argv: what.argv.to_vec(),
            env,
            limits,
            data: what.spec.data,
            egress: what.spec.egress != Egress::None,
            egress_list: what.spec.egress.list(),
            links: links(what),
            quota: quota(control, instance, what.spec),
            image: None,
        }),
    };
    match started {
        Ok(()) => {
            let number = what.release.number;
            let text = match what.kind {
                ids::Kind::Web => format!("was started (release {number})"),
                kind => format!("{} was started (release {number})", process(kind)),
            };
            control.logs.note(app, instance, &text);
            Ok(())
        }
        Err(error @ DriverError::Refused(_)) => {
            control.give_back(instance);
            lock(&control.observed).image_health.remove(instance);
            control.logs.forget_spool(instance);
            Err(NotStarted::Because(error.to_string()))
        }
        Err(error) => Err(NotStarted::Unknown(error.to_string())),
    }
}

/// Names of an app's links, in the order of their addresses. A release command has none: nobody would answer, because
/// the gateway hears of what serves and of what runs beside it.
fn links(what: &What<'_>) -> Vec<String> {
    match what.kind {
        ids::Kind::Release => Vec::new(),
        _ => what.spec.links.keys().cloned().collect(),
    }
}

/// The bound of an app's `/data`.
fn quota(control: &Control, instance: &str, spec: &AppSpec) -> Option<Quota> {
    let bytes = spec.disk?;
    // Asked now, with release commands: what was seen a while ago is no reason to move anybody's files.
    let sandboxes = control.warden.list();
    let containers = match control.settings.docker {
        Some(_) => control.docker.list(),
        None => Ok(Vec::new()),
    };
    let is_other =
        |one: &Instance| one.app == spec.name.as_str() && one.instance != instance && !one.build;
    let alone = match (sandboxes, containers) {
        (Ok(sandboxes), Ok(containers)) => !sandboxes.iter().chain(&containers).any(is_other),
        _ => false,
    };
    Some(Quota { bytes, alone })
}

/// What a container gets beside the app's own variables.
pub fn container_env(spec: &AppSpec, instance: &str) -> Vec<(String, String)> {
    let mut env = vec![
        ("HUTONG_APP".to_owned(), spec.name.to_string()),
        ("HUTONG_INSTANCE".to_owned(), instance.to_owned()),
    ];
    if spec.data {
        env.push(("DATA_DIR".into(), "/data".into()));
    }
    env
}

/// What a program of a sandbox from an image gets: the image's own variables, and `env` over them.
pub fn image_env(
    config: &ContainerConfig,
    spec: &AppSpec,
    instance: &str,
    env: Vec<(String, String)>,
) -> Vec<(String, String)> {
    let mut own = container_env(spec, instance);
    own.extend(env);
    let image = spec.image.as_ref();
    let user = image.and_then(|image| program::user(config, image).ok().flatten());
    let root = matches!(user, Some(ImageUser::Number(0, _)));
    let home = match (root, spec.data) {
        (true, _) => "/root",
        (false, true) => "/data",
        (false, false) => "/tmp",
    };
    program::environment(config, home, own)
}

/// Whose number the image's user is, by the image's own /etc/passwd if it has a name.
fn number_of(
    control: &Control,
    app: &str,
    layers: &ImageLayers,
    user: Option<ImageUser>,
) -> Result<Option<(u32, u32)>, DriverError> {
    let name = match user {
        None => return Ok(None),
        Some(ImageUser::Number(uid, gid)) => return Ok(Some((uid, gid))),
        Some(ImageUser::Named(name)) => name,
    };
    let passwd = control.warden.passwd(app, layers.clone())?;
    let found = passwd.and_then(|text| find_user(&text, &name));
    found.map(Some).ok_or_else(|| {
        DriverError::Refused(format!(
            "the image's user `{name}` is not in its /etc/passwd, or not once; set `user = \"app\"`"
        ))
    })
}

fn start_from_image(
    control: &Control,
    instance: &str,
    what: &What<'_>,
    (image, digest): (&Image, &Digest),
    env: Vec<(String, String)>,
    limits: Limits,
) -> Result<(), DriverError> {
    let app = what.spec.name.as_str();
    let found = control.images.image(digest).map_err(DriverError::Refused)?;
    let config = found.config.config.clone().unwrap_or_default();
    if what.kind == ids::Kind::Web && images::health::has_check(&config) {
        // Before it runs: it is not healthy until its own check has passed.
        let health = docker::Health::Starting;
        let mut observed = lock(&control.observed);
        observed.image_health.insert(instance.to_owned(), health);
    }
    let layers = images::layers(control.warden.can_stack()?, &found);
    let user = program::user(&config, image).map_err(DriverError::Refused)?;
    let user = number_of(control, app, &layers, user)?;
    let argv = program::argv(&config, image, what.argv);
    if argv.is_empty() {
        let reason = "the image says no command to run: set `command`";
        return Err(DriverError::Refused(reason.into()));
    }
    control.warden.start(Start {
        instance: instance.to_owned(),
        app: app.to_owned(),
        deployment: what.deployment,
        tree: Tree::Source {
            digest: what.release.digest.clone(),
        },
        argv,
        env: image_env(&config, what.spec, instance, env),
        limits,
        data: what.spec.data,
        egress: what.spec.egress != Egress::None,
        egress_list: what.spec.egress.list(),
        links: links(what),
        quota: quota(control, instance, what.spec),
        image: Some(ImageRoot {
            layers,
            mount: image.mount.clone(),
            writable: program::writable(&config, image, what.spec.data),
            cwd: program::folder(&config, image),
            user,
            allow_root: image.allow_root,
            stop_signal: program::signal(&config),
        }),
    })
}

fn start_container(
    control: &Control,
    instance: &str,
    what: &What<'_>,
    image: &Image,
    env: Vec<(String, String)>,
    limits: Limits,
) -> Result<(), DriverError> {
    if control.settings.docker.is_none() {
        return Err(DriverError::Refused(NO_ENGINE.into()));
    }
    let built = what.release.built.clone();
    let id = built.ok_or_else(|| DriverError::Refused("its image was never fetched".into()))?;
    let mut all = container_env(what.spec, instance);
    all.extend(env);
    let digest = what.release.digest.clone();
    control.docker.start(docker::Start {
        instance: instance.to_owned(),
        app: what.spec.name.to_string(),
        deployment: what.deployment,
        image: id,
        argv: what.argv.to_vec(),
        entrypoint: image.entrypoint.clone(),
        env: all,
        limits,
        data: what.spec.data,
        egress: what.spec.egress != Egress::None,
        egress_list: what.spec.egress.list(),
        mount: image
            .mount
            .clone()
            .map(|target| (Tree::Source { digest }, target)),
        writable: image.writable.clone(),
        own_user: image.user == ContainerUser::App,
        allow_root: image.allow_root,
        links: links(what),
        quota: quota(control, instance, what.spec),
    })
}
