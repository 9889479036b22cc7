//! What runs in containers of ours, followed from its first line to its end. What is known is kept in memory and found again
//! by labels after a restart, so control is answered at once, whatever the engine is at.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::query_parameters::{
    EventsOptions, InspectContainerOptions, KillContainerOptions, ListContainersOptions,
    LogsOptions, RemoveContainerOptions, StartContainerOptions,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::StreamExt;
use hutong_core::name::{AppName, is_digest, is_instance_id};
use hutong_core::spec::egress::parse_egress;
use hutong_ipc::channel;
use hutong_ipc::docker::{About, Answer, Ask, Container, Health, Request, Setup, Start, Told};
use hutong_ipc::shim::{Ended, Exit};
use hutong_ipc::spool::{Kind, Writer};
use tokio::sync::Notify;

use crate::create;
use crate::foreign;
use crate::links;
use crate::position::{KEEP, Position};
use crate::usage::Usage;

pub const LABEL_SERVER: &str = "hutong.server";
/// The boot of the machine that it was made in.
pub const LABEL_BOOT: &str = "hutong.boot";
pub const LABEL_APP: &str = "hutong.app";
pub const LABEL_INSTANCE: &str = "hutong.instance";
pub const LABEL_DEPLOYMENT: &str = "hutong.deployment";
/// When it was asked for, in milliseconds since 1970.
pub const LABEL_STARTED: &str = "hutong.started";
/// The same since boot.
pub const LABEL_STEADY: &str = "hutong.steady";
/// Names of its links.
pub const LABEL_LINKS: &str = "hutong.links";
/// The network that it is in.
pub const LABEL_NETWORK: &str = "hutong.network";

/// How long the engine may take for an answer, in seconds; output and events go on.
const TIMEOUT_S: u64 = 60;
/// How long the warden may take for an answer.
const WARDEN: Duration = Duration::from_secs(120);
/// How soon an engine that does not answer is asked again.
const AGAIN: Duration = Duration::from_millis(500);
/// From SIGTERM to SIGKILL for what belongs to no app, in milliseconds.
const SWEPT_MS: u64 = 5000;
const LONG: Duration = Duration::from_secs(3600);
/// Containers of an app whose evidence goes into one answer, of a megabyte each at most.
const MAX_EXAMINED: usize = 3;
/// Output taken from one container, in bytes a second, as with sandboxes.
const OUTPUT_RATE: f64 = 16e6;

/// One container of ours.
#[derive(Clone)]
struct Instance {
    /// The engine's id; empty until it is made.
    id: String,
    app: String,
    deployment: u64,
    started_at: u64,
    started_steady: u64,
    /// The name of the network that it is in, or will be.
    network: String,
    address: Option<IpAddr>,
    health: Option<Health>,
    pid: i32,
    usage: Usage,
    /// Its processes are frozen.
    frozen: bool,
    /// We had asked it to stop.
    told: bool,
    out_of_memory: bool,
    /// It was asked to end before it was made.
    unwanted: bool,
    /// Names of the apps that it calls.
    links: Vec<String>,
}

pub struct Engine {
    pub setup: Setup,
    /// Something began or ended.
    pub changed: Notify,
    /// Held while a network is made.
    pub networks: tokio::sync::Mutex<()>,
    /// Builds under way.
    pub building: Cell<usize>,
    /// All that ever began.
    pub begun: Cell<u64>,
    docker: RefCell<Option<Docker>>,
    remapped: Cell<Option<bool>>,
    warden: Arc<Mutex<UnixStream>>,
    instances: RefCell<HashMap<String, Instance>>,
    /// Where containers call other apps.
    pub listening: RefCell<HashMap<String, Rc<Vec<OwnedFd>>>>,
    /// What there was before us is known.
    looked: Cell<bool>,
    trouble: RefCell<String>,
    /// Containers of others.
    pub foreign: RefCell<foreign::Known>,
}

/// Ends the process: the warden starts another, which begins with a line that is in order.
fn give_up(reason: &str) -> ! {
    tracing::error!("the Docker driver begins again: {reason}");
    std::process::exit(1);
}

/// Whether the engine says that there is no such thing.
pub fn is_missing(error: &Error) -> bool {
    matches!(
        error,
        Error::DockerResponseServerError {
            status_code: 404,
            ..
        }
    )
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_millis() as u64)
}

fn steady_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

impl Engine {
    pub fn new(setup: Setup, warden: UnixStream) -> Result<Self, String> {
        warden
            .set_read_timeout(Some(WARDEN))
            .map_err(|error| error.to_string())?;
        Ok(Engine {
            setup,
            changed: Notify::new(),
            networks: tokio::sync::Mutex::new(()),
            building: Cell::default(),
            begun: Cell::default(),
            docker: RefCell::default(),
            remapped: Cell::default(),
            warden: Arc::new(Mutex::new(warden)),
            instances: RefCell::default(),
            listening: RefCell::default(),
            looked: Cell::new(false),
            trouble: RefCell::new("the engine was not asked yet".into()),
            foreign: RefCell::default(),
        })
    }

    /// The engine's client; made anew while there is no socket.
    pub fn docker(&self) -> Result<Docker, String> {
        if let Some(docker) = self.docker.borrow().as_ref() {
            return Ok(docker.clone());
        }
        let socket = &self.setup.socket;
        let docker = Docker::connect_with_unix(socket, TIMEOUT_S, API_DEFAULT_VERSION)
            .map_err(|error| format!("{socket}: {error}"))?;
        self.docker.replace(Some(docker.clone()));
        Ok(docker)
    }

    /// Speaks the version of the API that the engine speaks.
    pub async fn connect(&self) -> Result<Docker, String> {
        let docker = self.docker()?;
        let docker = docker.negotiate_version().await;
        let docker = docker.map_err(|error| error.to_string())?;
        self.docker.replace(Some(docker.clone()));
        Ok(docker)
    }

    /// Asks the warden.
    pub async fn ask(&self, ask: Ask) -> Result<(Told, Vec<OwnedFd>), String> {
        let warden = self.warden.clone();
        let asked = tokio::task::spawn_blocking(move || {
            let line = warden
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            channel::call(&line, &ask, &[])
        });
        match asked.await {
            Ok(Ok(told)) => Ok(told),
            // An answer that comes later would be taken for another question's.
            Ok(Err(error)) => give_up(&format!("the warden does not answer: {error}")),
            Err(error) => give_up(&error.to_string()),
        }
    }

    /// Whether the engine makes somebody else of root.
    pub async fn is_remapped(&self) -> bool {
        if let Some(known) = self.remapped.get() {
            return known;
        }
        let Ok(docker) = self.docker() else {
            return false;
        };
        let Ok(info) = docker.info().await else {
            return false;
        };
        let options = info.security_options.unwrap_or_default();
        let remapped = options.iter().any(|one| one.contains("name=userns"));
        self.remapped.set(Some(remapped));
        remapped
    }

    /// Finds what there is, then hears what happens to it; again whenever the engine comes back.
    pub async fn keep_up(self: Rc<Self>) {
        loop {
            match self.look().await {
                Ok(docker) => {
                    self.trouble.borrow_mut().clear();
                    self.changed.notify_waiters();
                    tokio::task::spawn_local(self.clone().sweep_stages());
                    self.hear(&docker).await;
                    self.trouble.replace("the engine went away".into());
                    self.remapped.set(None);
                }
                Err(reason) => {
                    self.trouble.replace(reason);
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn look(self: &Rc<Self>) -> Result<Docker, String> {
        self.may_connect().await;
        let docker = self.connect().await?;
        let filters = HashMap::from([("label".to_owned(), vec![self.label()])]);
        let options = ListContainersOptions {
            all: true,
            filters: Some(filters),
            ..Default::default()
        };
        let found = docker.list_containers(Some(options)).await;
        for container in found.map_err(|error| error.to_string())? {
            let labels = container.labels.unwrap_or_default();
            let number = |key: &str| labels.get(key).and_then(|text| text.parse().ok());
            let name = labels.get(LABEL_INSTANCE);
            let called = |name: &&String| {
                let wanted = format!("/{}", self.name_of(name));
                let names = container.names.iter().flatten();
                is_instance_id(name) && names.into_iter().any(|found| *found == wanted)
            };
            let Some(id) = container.id.clone() else {
                continue;
            };
            let (Some(name), Some(app)) = (name.filter(called), labels.get(LABEL_APP)) else {
                // One that was only made to be looked into.
                let leftover = |name: &String| name.ends_with("-user");
                if container.names.iter().flatten().any(leftover) {
                    self.remove(&id).await;
                }
                continue;
            };
            if self.instances.borrow().contains_key(name) {
                continue;
            }
            let of_this_boot = labels.get(LABEL_BOOT) == Some(&create::boot_id());
            let instance = Instance {
                id,
                app: app.clone(),
                deployment: number(LABEL_DEPLOYMENT).unwrap_or(0),
                started_at: number(LABEL_STARTED).unwrap_or(0),
                started_steady: number(LABEL_STEADY).unwrap_or(0).min(steady_ms()),
                network: labels.get(LABEL_NETWORK).cloned().unwrap_or_default(),
                address: None,
                health: None,
                pid: 0,
                usage: Usage::default(),
                frozen: false,
                // That the machine went is not the app's doing.
                told: !of_this_boot || self.note(name, "told").exists(),
                out_of_memory: false,
                unwanted: false,
                links: links::names(labels.get(LABEL_LINKS)),
            };
            let id = instance.id.clone();
            self.instances.borrow_mut().insert(name.clone(), instance);
            // Nobody waits for one that was made and not started: whoever made it has given it up.
            self.change(name, |instance| instance.unwanted = instance.pid == 0);
            if !matches!(self.state(name, &id).await, State::Made) {
                self.change(name, |instance| instance.unwanted = false);
            } else {
                self.change(name, |instance| instance.told = true);
            }
            tokio::task::spawn_local(self.clone().follow(name.clone()));
        }
        self.fence_all(&docker).await?;
        // What happened while nobody listened.
        let known: Vec<(String, String)> = {
            let all = self.instances.borrow();
            let made = all.iter().filter(|(_, one)| !one.id.is_empty());
            made.map(|(name, one)| (name.clone(), one.id.clone()))
                .collect()
        };
        for (name, id) in known {
            self.state(&name, &id).await;
        }
        self.looked.set(true);
        Ok(docker)
    }

    /// The group that may use the socket was asked for when this process began. If the engine was not there then, it
    /// has to begin again.
    async fn may_connect(&self) {
        let tried = UnixStream::connect(&self.setup.socket);
        if tried.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied) {
            tokio::time::sleep(Duration::from_secs(2)).await;
            give_up(&format!("{}: permission denied", self.setup.socket));
        }
    }

    fn label(&self) -> String {
        format!("{LABEL_SERVER}={}", self.setup.server)
    }

    /// Until the engine goes away.
    async fn hear(self: &Rc<Self>, docker: &Docker) {
        let filters = HashMap::from([
            ("label".to_owned(), vec![self.label()]),
            ("type".to_owned(), vec!["container".to_owned()]),
        ]);
        let options = EventsOptions {
            filters: Some(filters),
            ..Default::default()
        };
        let mut events = Box::pin(docker.events(Some(options)));
        while let Some(Ok(event)) = events.next().await {
            let action = event.action.unwrap_or_default();
            let attributes = event.actor.and_then(|actor| actor.attributes);
            let Some(name) = attributes.and_then(|mut all| all.remove(LABEL_INSTANCE)) else {
                continue;
            };
            let health = match action.as_str() {
                "health_status: healthy" => Some(Health::Healthy),
                "health_status: unhealthy" => Some(Health::Unhealthy),
                _ => None,
            };
            if health.is_some() {
                self.change(&name, |instance| instance.health = health);
            } else if action == "oom" {
                // What is left of it would go on without a part of itself.
                self.change(&name, |instance| instance.out_of_memory = true);
                let engine = self.clone();
                tokio::task::spawn_local(async move { engine.kill(&name).await });
            }
        }
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Instance)) {
        if let Some(instance) = self.instances.borrow_mut().get_mut(name) {
            change(instance);
        }
        self.changed.notify_waiters();
    }

    pub fn has_instances(&self, app: &str) -> bool {
        self.instances.borrow().values().any(|one| one.app == *app)
    }

    /// Whether somebody is in a network, or is about to be.
    pub fn uses_network(&self, name: &str) -> bool {
        let all = self.instances.borrow();
        all.values().any(|one| one.network == name)
    }

    fn instance(&self, name: &str) -> Option<Instance> {
        self.instances.borrow().get(name).cloned()
    }

    /// The engine's id of an instance that runs.
    pub fn container_of(&self, name: &str) -> Option<String> {
        let id = self.instance(name)?.id;
        (!id.is_empty()).then_some(id)
    }

    /// Names of the apps that a container calls.
    pub fn links_of(&self, name: &str) -> Vec<String> {
        self.instance(name).map_or_else(Vec::new, |one| one.links)
    }

    /// The engine's id and the first process of a container that runs.
    pub fn process_of(&self, name: &str) -> Option<(String, i32)> {
        let one = self.instance(name).filter(|one| one.pid > 0)?;
        Some((one.id, one.pid))
    }

    pub fn runs(&self, name: &str) -> bool {
        self.instances.borrow().contains_key(name)
    }

    pub async fn answer(self: &Rc<Self>, request: Request) -> Answer {
        match request {
            Request::List if self.looked.get() && self.trouble.borrow().is_empty() => {
                Answer::Instances(self.list())
            }
            Request::List => Answer::Later(self.trouble.borrow().clone()),
            Request::Resolve { image, pull, app } => {
                match self.resolve_for(&image, pull, &app).await {
                    Ok(image) => Answer::Resolved(image),
                    Err(reason) if self.answers().await => Answer::Refused(reason),
                    Err(reason) => Answer::Later(reason),
                }
            }
            Request::Start(start) => self.begin(*start),
            Request::Stop {
                instance,
                timeout_ms,
            } => {
                let engine = self.clone();
                self.tell(&instance);
                tokio::task::spawn_local(async move { engine.stop(&instance, timeout_ms).await });
                Answer::Done
            }
            Request::Kill { instance } => {
                let engine = self.clone();
                self.tell(&instance);
                tokio::task::spawn_local(async move { engine.kill(&instance).await });
                Answer::Done
            }
            Request::Freeze { instance, frozen } => {
                let engine = self.clone();
                tokio::task::spawn_local(async move {
                    if let Err(reason) = engine.freeze(&instance, frozen).await {
                        tracing::warn!("{instance} cannot be frozen or thawed: {reason}");
                    }
                });
                Answer::Done
            }
            Request::Examine { app } => Answer::Evidence(self.examine(&app).await),
            Request::Sweep { apps, wait } => self.sweep(apps, wait).await,
            Request::About => self.about().await,
            Request::Foreign => self.foreign_answer(),
            Request::SweepImages { keep } => {
                let engine = self.clone();
                tokio::task::spawn_local(async move {
                    if let Err(reason) = engine.sweep_images(&keep).await {
                        tracing::debug!("images that nobody uses stay: {reason}");
                    }
                });
                Answer::Done
            }
            Request::Exec { .. } | Request::Watch | Request::Build(_) => {
                Answer::Refused("not here".into())
            }
        }
    }

    fn list(&self) -> Vec<Container> {
        let all = self.instances.borrow();
        all.iter()
            .map(|(name, instance)| {
                let memory = instance.usage.memory();
                Container {
                    instance: name.clone(),
                    app: instance.app.clone(),
                    deployment: instance.deployment,
                    started_at: instance.started_at,
                    started_steady: instance.started_steady,
                    address: instance.address,
                    health: instance.health,
                    frozen: instance.frozen,
                    pid: instance.pid,
                    memory,
                    reclaimable: instance.usage.reclaimable(memory),
                    cpu_usec: instance.usage.cpu_usec(),
                }
            })
            .collect()
    }

    async fn about(&self) -> Answer {
        let version = async {
            let docker = self.connect().await?;
            docker.version().await.map_err(|error| error.to_string())
        };
        match version.await {
            Ok(version) => Answer::About(About {
                version: version.version.unwrap_or_default(),
                remapped: self.is_remapped().await,
            }),
            Err(reason) => Answer::Later(reason),
        }
    }

    fn begin(self: &Rc<Self>, start: Start) -> Answer {
        let no_nul = |text: &String| !text.contains('\0');
        let sound = AppName::new(&start.app).is_ok()
            && is_instance_id(&start.instance)
            && is_digest(&start.image)
            && start.argv.iter().all(no_nul)
            && start
                .env
                .iter()
                .all(|(key, value)| hutong_core::name::is_env_key(key) && no_nul(value))
            && parse_egress(start.egress_list.as_deref().unwrap_or_default()).is_ok()
            && start.mount.iter().all(|(_, target)| is_inner_path(target))
            && start.writable.iter().all(|path| is_inner_path(path))
            && start.links.iter().all(|name| AppName::new(name).is_ok());
        if !sound {
            return Answer::Refused("not an app, a program or a path".into());
        }
        if !self.looked.get() || !self.trouble.borrow().is_empty() {
            return Answer::Later(self.trouble.borrow().clone());
        }
        let name = start.instance.clone();
        if self.instances.borrow().contains_key(&name) {
            // Control asks again because the answer to its first request was lost.
            return Answer::Done;
        }
        let instance = Instance {
            id: String::new(),
            app: start.app.clone(),
            deployment: start.deployment,
            started_at: now_ms(),
            started_steady: steady_ms(),
            network: crate::network::name(&self.setup.tag, &start),
            address: None,
            health: None,
            pid: 0,
            usage: Usage::default(),
            frozen: false,
            told: false,
            out_of_memory: false,
            unwanted: false,
            links: start.links.clone(),
        };
        self.instances.borrow_mut().insert(name, instance);
        let engine = self.clone();
        tokio::task::spawn_local(async move { engine.make(start).await });
        Answer::Done
    }

    async fn make(self: Rc<Self>, start: Start) {
        let name = &start.instance;
        let Some(known) = self.instance(name) else {
            return;
        };
        let mut removed = 0;
        let made = loop {
            let (steady, now) = (known.started_steady, known.started_at);
            let made = self.create(&start, steady, now).await;
            let wanted = self
                .instance(name)
                .is_some_and(|instance| !instance.unwanted);
            if wanted && removed < 2 && made.as_ref().is_err_and(|why| why == create::IN_THE_WAY) {
                removed += 1;
                self.remove(&self.name_of(name)).await;
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            // That the engine went away meanwhile is not the app's fault.
            if made.is_ok() || !wanted || self.answers().await {
                break made;
            }
            tokio::time::sleep(AGAIN).await;
        };
        match made {
            Ok(id) => {
                self.change(name, |instance| instance.id = id);
                self.follow(name.clone()).await;
            }
            Err(reason) => {
                let exit = Exit::NotStarted(reason);
                // It may have been made all the same, a moment ago.
                self.remove_soon(self.name_of(name));
                match self.spool(name).await {
                    Ok(mut spool) => self.end(name, &mut spool, exit, false).await,
                    Err(error) => {
                        tracing::error!("{error}");
                        self.forget(name);
                    }
                }
            }
        }
    }

    async fn spool(&self, name: &str) -> Result<Writer, String> {
        let ask = Ask::Spool {
            instance: name.to_owned(),
        };
        match self.ask(ask).await? {
            (Told::Spool, fds) => {
                let files: Vec<File> = fds.into_iter().map(File::from).collect();
                let files: [File; 2] = files.try_into().map_err(|_| "no spool came along")?;
                Writer::new(files, self.setup.spool_bytes).map_err(|error| error.to_string())
            }
            (Told::Refused(reason), _) => Err(reason),
            _ => Err("the warden's answer is not understood".into()),
        }
    }

    /// From the start of a container that is made to its end and removal.
    async fn follow(self: Rc<Self>, name: String) {
        let Some(id) = self.container_of(&name) else {
            return;
        };
        let mut spool = loop {
            match self.spool(&name).await {
                Ok(spool) => break spool,
                Err(error) => tracing::warn!("the output of {name}: {error}"),
            }
            tokio::time::sleep(AGAIN).await;
        };
        let mut position = Position::read(self.note(&name, "cursor"));
        // The engine went away while it ran: its end is the engine's doing.
        let mut left_alone = false;
        let mut is_complete = false;
        loop {
            let state = self.state(&name, &id).await;
            let told = self
                .instance(&name)
                .is_some_and(|instance| instance.unwanted);
            match state {
                State::Made => {
                    if told {
                        let exit = Exit::Signal(9);
                        return self.end(&name, &mut spool, exit, false).await;
                    }
                    if let Err(reason) = self.start(&id).await {
                        let exit = Exit::NotStarted(reason);
                        return self.end(&name, &mut spool, exit, false).await;
                    }
                }
                State::Runs if told => {
                    // Its end was asked for while it was being started.
                    self.change(&name, |instance| instance.unwanted = false);
                    self.kill(&name).await;
                }
                State::Runs => {
                    left_alone = false;
                    // At once: what calls waits in the sockets until a gateway has them.
                    if let Err(reason) = self.listen(&name).await {
                        tracing::warn!("the links of {name}: {reason}");
                    }
                    is_complete = self.copy_output(&id, &mut spool, &mut position).await;
                    if !is_complete {
                        tokio::time::sleep(AGAIN).await;
                    }
                }
                State::Ended(exit, out_of_memory) => {
                    // Its last words; again if the engine went away over them.
                    if !is_complete && self.answers().await {
                        is_complete = self.copy_output(&id, &mut spool, &mut position).await;
                        if !is_complete && !self.answers().await {
                            continue;
                        }
                    }
                    if left_alone {
                        self.change(&name, |instance| instance.told = true);
                    }
                    return self.end(&name, &mut spool, exit, out_of_memory).await;
                }
                State::Gone => {
                    let exit =
                        Exit::NotStarted("its container was removed by somebody else".into());
                    return self.end(&name, &mut spool, exit, false).await;
                }
                State::Unknown => {
                    left_alone = true;
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    async fn start(&self, id: &str) -> Result<(), String> {
        let docker = self.docker()?;
        match docker
            .start_container(id, None::<StartContainerOptions>)
            .await
        {
            Ok(()) => Ok(()),
            Err(Error::DockerResponseServerError { message, .. }) => Err(message),
            // It is looked at again.
            Err(_) => {
                tokio::time::sleep(AGAIN).await;
                Ok(())
            }
        }
    }

    /// How a container is now; what is seen of one that runs is taken in.
    async fn state(&self, name: &str, id: &str) -> State {
        let Ok(docker) = self.docker() else {
            return State::Unknown;
        };
        let found = docker
            .inspect_container(id, None::<InspectContainerOptions>)
            .await;
        let found = match found {
            Ok(found) => found,
            Err(error) if is_missing(&error) => return State::Gone,
            Err(_) => return State::Unknown,
        };
        let state = found.state.unwrap_or_default();
        let status = state
            .status
            .map(|status| status.to_string())
            .unwrap_or_default();
        match status.as_str() {
            "created" => State::Made,
            "running" | "paused" | "restarting" => {
                let networks = found
                    .network_settings
                    .and_then(|settings| settings.networks);
                let addresses = networks.into_iter().flatten();
                let address = addresses
                    .filter_map(|(_, endpoint)| endpoint.ip_address?.parse().ok())
                    .next();
                let pid = i32::try_from(state.pid.unwrap_or(0)).unwrap_or(0);
                let health = state.health.and_then(|health| health.status);
                let health = health.and_then(|status| match status.to_string().as_str() {
                    "starting" => Some(Health::Starting),
                    "healthy" => Some(Health::Healthy),
                    "unhealthy" => Some(Health::Unhealthy),
                    _ => None,
                });
                let frozen = status == "paused";
                self.change(name, |instance| {
                    instance.frozen = frozen;
                    instance.address = address;
                    if instance.pid != pid {
                        (instance.pid, instance.usage) = (pid, Usage::of(pid));
                    }
                    instance.health = health;
                });
                State::Runs
            }
            _ => {
                let code = i32::try_from(state.exit_code.unwrap_or(0)).unwrap_or(0);
                let exit = match code {
                    // The engine's way to say that a signal ended it.
                    129..=159 => Exit::Signal(code - 128),
                    code => Exit::Code(code),
                };
                State::Ended(exit, state.oom_killed.unwrap_or(false))
            }
        }
    }

    /// Until the container ends, or the engine goes away; true if all of it was read.
    async fn copy_output(&self, id: &str, spool: &mut Writer, position: &mut Position) -> bool {
        let Ok(docker) = self.docker() else {
            return false;
        };
        let mut is_complete = false;
        let options = LogsOptions {
            follow: true,
            stdout: true,
            stderr: true,
            timestamps: true,
            since: position.since(),
            tail: "all".into(),
            ..Default::default()
        };
        let mut output = Box::pin(docker.logs(id, Some(options)));
        position.go_on();
        let mut allowance = OUTPUT_RATE;
        let mut refilled = std::time::Instant::now();
        loop {
            // Whoever says nothing wakes nobody.
            let pause = if position.is_news { KEEP } else { LONG };
            let chunk = match tokio::time::timeout(pause, output.next()).await {
                Ok(Some(Ok(chunk))) => chunk,
                Ok(None) => {
                    is_complete = true;
                    break;
                }
                Ok(Some(Err(_))) => break,
                Err(_) => {
                    position.keep();
                    continue;
                }
            };
            let (kind, bytes) = match chunk {
                LogOutput::StdErr { message } => (Kind::Stderr, message),
                LogOutput::StdOut { message } | LogOutput::Console { message } => {
                    (Kind::Stdout, message)
                }
                LogOutput::StdIn { .. } => continue,
            };
            let Some(text) = position.take(&bytes) else {
                continue;
            };
            spool.write(kind, now_ms() * 1000, text);
            position.keep();
            allowance += refilled.elapsed().as_secs_f64() * OUTPUT_RATE - text.len() as f64;
            allowance = allowance.min(OUTPUT_RATE);
            refilled = std::time::Instant::now();
            if allowance < 0.0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        position.keep_now();
        // The engine ends the stream a moment before it says that the container has ended.
        tokio::time::sleep(Duration::from_millis(10)).await;
        is_complete
    }

    /// Whether the engine answers now.
    async fn answers(&self) -> bool {
        let Ok(docker) = self.docker() else {
            return false;
        };
        let asked = tokio::time::timeout(Duration::from_secs(5), docker.ping());
        matches!(asked.await, Ok(Ok(_)))
    }

    /// Removes a container by its name, if there is one.
    fn remove_soon(self: &Rc<Self>, name: String) {
        let engine = self.clone();
        tokio::task::spawn_local(async move { engine.remove(&name).await });
    }

    /// Writes down how it ended, and removes it.
    async fn end(&self, name: &str, spool: &mut Writer, exit: Exit, out_of_memory: bool) {
        let Some(instance) = self.instance(name) else {
            return;
        };
        let told = instance.told && !instance.out_of_memory;
        if out_of_memory || instance.out_of_memory {
            spool.write(Kind::OutOfMemory, now_ms() * 1000, b"");
        }
        let record = serde_json::to_vec(&Ended { exit, told }).unwrap_or_default();
        spool.write(Kind::Exit, now_ms() * 1000, &record);
        if !instance.id.is_empty() {
            self.remove(&instance.id).await;
        }
        self.forget(name);
    }

    fn forget(&self, name: &str) {
        self.instances.borrow_mut().remove(name);
        self.listening.borrow_mut().remove(name);
        for kind in ["cursor", "told"] {
            let _ = std::fs::remove_file(self.note(name, kind));
        }
        self.changed.notify_waiters();
    }

    /// Removes a container, however long the engine is away. One that cannot be removed (something holds its files) is
    /// left to the next start of this process.
    pub async fn remove(&self, id: &str) {
        let mut refused = 0;
        while refused < 10 {
            if let Ok(docker) = self.docker() {
                let options = RemoveContainerOptions {
                    force: true,
                    v: true,
                    ..Default::default()
                };
                match docker.remove_container(id, Some(options)).await {
                    Ok(()) => return,
                    Err(error) if is_missing(&error) => return,
                    Err(error @ Error::DockerResponseServerError { .. }) => {
                        refused += 1;
                        if refused == 10 {
                            tracing::warn!("cannot remove a container: {error}");
                        }
                    }
                    Err(_) => {}
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// A file of our own about an instance, or an app.
    pub(crate) fn note(&self, name: &str, kind: &str) -> PathBuf {
        PathBuf::from(&self.setup.folder).join(format!("{name}.{kind}"))
    }

    /// Remembers that its end is our wish.
    fn tell(&self, name: &str) {
        if !is_instance_id(name) || !self.instances.borrow().contains_key(name) {
            return;
        }
        let _ = std::fs::write(self.note(name, "told"), "");
        if let Some(instance) = self.instances.borrow_mut().get_mut(name) {
            instance.told = true;
            instance.unwanted = instance.id.is_empty() || instance.pid == 0;
        }
    }

    /// The image's own stop signal, or SIGTERM; SIGKILL after the time-out.
    async fn stop(&self, name: &str, timeout_ms: u64) {
        let deadline = tokio::time::Instant::now() + Duration::from_millis(timeout_ms);
        if let (Some(id), Ok(docker)) = (self.container_of(name), self.docker()) {
            let inspected = docker.inspect_container(&id, None::<InspectContainerOptions>);
            let signal = inspected
                .await
                .ok()
                .and_then(|found| found.config?.stop_signal);
            let options = KillContainerOptions {
                signal: signal.unwrap_or_else(|| "SIGTERM".into()),
            };
            let _ = docker.kill_container(&id, Some(options)).await;
        }
        while tokio::time::Instant::now() < deadline {
            if self.instance(name).is_none() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.kill(name).await;
    }

    /// A frozen container sends nothing; what was in its queues when it froze may still go out.
    async fn freeze(&self, name: &str, frozen: bool) -> Result<(), String> {
        let id = self.container_of(name).ok_or("the instance does not run")?;
        let docker = self.docker()?;
        let done = match frozen {
            true => docker.pause_container(&id).await,
            false => docker.unpause_container(&id).await,
        };
        match done {
            Ok(()) => {}
            // It is so already.
            Err(Error::DockerResponseServerError {
                status_code: 409, ..
            }) => {}
            Err(error) => return Err(error.to_string()),
        }
        self.change(name, |instance| instance.frozen = frozen);
        Ok(())
    }

    async fn examine(&self, app: &str) -> Vec<hutong_ipc::warden::Evidence> {
        let mine: Vec<(String, String)> = {
            let all = self.instances.borrow();
            let mine = all
                .iter()
                .filter(|(_, one)| one.app == app && !one.id.is_empty());
            mine.map(|(name, one)| (name.clone(), one.id.clone()))
                .collect()
        };
        let mut found: Vec<hutong_ipc::warden::Evidence> = Vec::new();
        for (instance, container) in mine {
            let ask = Ask::Examine {
                instance,
                container,
            };
            // All of it goes into one answer.
            if found.len() == MAX_EXAMINED {
                found[0].complete = false;
                break;
            }
            if let Ok((Told::Evidence(evidence), _)) = self.ask(ask).await {
                found.push(evidence);
            }
        }
        found
    }

    async fn kill(&self, name: &str) {
        if let (Some(id), Ok(docker)) = (self.container_of(name), self.docker()) {
            let options = KillContainerOptions {
                signal: "KILL".into(),
            };
            let _ = docker.kill_container(&id, Some(options)).await;
        }
    }

    /// Ends and removes what belongs to no app.
    async fn sweep(self: &Rc<Self>, apps: Vec<String>, wait: bool) -> Answer {
        if !self.looked.get() {
            return Answer::Later(self.trouble.borrow().clone());
        }
        let strays: Vec<String> = {
            let all = self.instances.borrow();
            let strays = all.iter().filter(|(_, one)| !apps.contains(&one.app));
            strays.map(|(name, _)| name.clone()).collect()
        };
        for name in strays {
            let is_told = self.instance(&name).is_some_and(|instance| instance.told);
            self.tell(&name);
            if !is_told {
                let engine = self.clone();
                tokio::task::spawn_local(async move { engine.stop(&name, SWEPT_MS).await });
            }
        }
        if !wait {
            let engine = self.clone();
            tokio::task::spawn_local(async move { engine.sweep_networks(&apps).await });
            return Answer::Done;
        }
        match self.sweep_networks(&apps).await {
            Ok(()) => Answer::Done,
            Err(reason) => Answer::Later(reason),
        }
    }
}

enum State {
    /// Made, and not started yet.
    Made,
    Runs,
    Ended(Exit, bool),
    Gone,
    /// The engine does not say.
    Unknown,
}

/// Absolute, plain, and none of the engine's separators.
fn is_inner_path(path: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    path.starts_with('/')
        && path.len() > 1
        && path.bytes().all(plain)
        && path[1..]
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_no_way_out() {
        assert!(is_inner_path("/var/cache/nginx"));
        for bad in ["", "/", "x", "/a/../b", "/a:rw", "/a//b", "/a,b", "/a b"] {
            assert!(!is_inner_path(bad), "{bad}");
        }
    }
}
