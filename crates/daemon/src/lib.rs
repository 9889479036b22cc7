//! The control plane: remembers what users want ([`store`]), makes it true ([`controller`]), tells the
//! gateway ([`publish`], [`gateway_link`]), keeps output ([`logs`]), and answers the API ([`http`]).
//! It runs without privileges and asks the warden for everything that needs them.

mod builds;
mod certs;
mod cipher;
mod controller;
mod disk;
mod docker;
mod external;
mod folder;
mod gateway_link;
mod git;
mod http;
mod ids;
mod images;
mod jobs;
mod launch;
mod logs;
mod memory;
mod observed;
mod platform;
mod publish;
mod snapshots;
mod specs;
mod store;
mod unpack;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use hutong_ipc::channel;
use hutong_ipc::warden::{ControlSetup, ServerSettings};
use hutong_runtime::client::WardenClient;
use tokio::sync::Notify;

pub use git::{become_git, hook_main, is_hook};
pub use http::openapi;

/// What every part of the control plane shares.
struct Control {
    /// Bans that are not written down yet.
    banned: Mutex<Vec<hutong_ipc::gateway::Banned>>,
    /// Who waits for what the gateway has to show.
    status_asked: Mutex<Vec<tokio::sync::oneshot::Sender<hutong_ipc::gateway::Status>>>,
    /// Where apps may name servers that Hutong does not run.
    upstreams: hutong_core::networks::Networks,
    /// Private networks that apps may list in `egress`.
    egress_allowed: hutong_core::networks::Networks,
    data_dir: PathBuf,
    run_dir: PathBuf,
    http: String,
    https: Option<String>,
    settings: ServerSettings,
    admins: Vec<u32>,
    /// The API's bearer token, where it listens on TCP.
    token: Option<String>,
    gateway_gid: Option<u32>,
    store: store::Store,
    specs: specs::Specs,
    warden: WardenClient,
    docker: docker::DockerClient,
    images: images::Images,
    observed: Mutex<observed::Observed>,
    logs: logs::Logs,
    memory: Mutex<memory::Ledger>,
    certs: certs::Certs,
    git: git::Pushes,
    /// The controller looks again.
    wake: Notify,
    /// A new snapshot is there.
    published: Notify,
    /// One build at a time: two freeze a small machine.
    building: tokio::sync::Semaphore,
    /// Images that are fetched at once.
    fetching: tokio::sync::Semaphore,
    /// When this process began, and when each tree was last asked for: milliseconds since boot.
    began_ms: u64,
    trees_asked: Mutex<HashMap<String, u64>>,
    /// The machine was started anew since a control plane last ran here.
    rebooted: bool,
    /// How many passes the controller made; whoever asks waits for the next one.
    passes: tokio::sync::watch::Sender<u64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The process's main. `line` is its standard input; `drop_privileges` gets (uid, gid, groups) before
/// any thread is started.
pub fn main(
    line: &UnixStream,
    drop_privileges: impl FnOnce(u32, u32, &[u32]) -> std::io::Result<()>,
) -> Result<(), String> {
    let (setup, fds): (ControlSetup, Vec<OwnedFd>) = channel::receive(line)
        .map_err(|error| error.to_string())?
        .ok_or("the warden went away")?;
    let api = fds
        .into_iter()
        .next()
        .ok_or("the API's socket is missing")?;
    if let Some((uid, gid)) = setup.drop_to {
        let groups: Vec<u32> = setup.gateway_gid.into_iter().collect();
        drop_privileges(uid, gid, &groups)
            .map_err(|error| format!("cannot drop privileges: {error}"))?;
    }
    hutong_runtime::sys::keep_few_heaps();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(32)
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    runtime.block_on(run(setup, api))
}

async fn run(setup: ControlSetup, api: OwnedFd) -> Result<(), String> {
    let data_dir = PathBuf::from(&setup.data_dir);
    let run_dir = PathBuf::from(&setup.run_dir);
    let own = data_dir.join("control");
    let cipher = cipher::Cipher::open(&own.join("key"))?;
    let token = if setup.api_is_tcp {
        Some(http::token(&own.join("token"))?)
    } else {
        None
    };
    let acme = match &setup.settings.acme {
        // What serde says may quote a key.
        Some(text) => {
            Some(serde_json::from_str(&text.0).map_err(|_| "the table [acme] is not understood")?)
        }
        None => None,
    };
    let upstreams = hutong_core::networks::Networks::parse(&setup.settings.allow_upstreams)?;
    let egress_allowed = hutong_core::networks::Networks::parse(&setup.settings.egress_allow)?;
    let control = Arc::new(Control {
        upstreams,
        egress_allowed,
        status_asked: Mutex::default(),
        banned: Mutex::default(),
        certs: certs::Certs::new(setup.https.is_some(), acme),
        git: git::Pushes::default(),
        store: store::Store::open(&own.join("state.db"), cipher).map_err(|e| e.to_string())?,
        specs: specs::Specs::default(),
        warden: WardenClient::new(&run_dir),
        docker: docker::DockerClient::new(&run_dir),
        images: images::Images::new(&own, setup.settings.ca_bundle.as_deref()),
        observed: Mutex::default(),
        logs: logs::Logs::new(&own),
        memory: Mutex::default(),
        wake: Notify::new(),
        published: Notify::new(),
        building: tokio::sync::Semaphore::new(1),
        fetching: tokio::sync::Semaphore::new(3),
        began_ms: hutong_runtime::processes::steady_ms(),
        trees_asked: Mutex::default(),
        rebooted: std::fs::read(own.join("boot")).unwrap_or_default() != boot_id(),
        passes: tokio::sync::watch::channel(0).0,
        http: setup.http,
        https: setup.https,
        settings: setup.settings,
        admins: setup.admins,
        gateway_gid: setup.gateway_gid,
        token,
        data_dir,
        run_dir,
    });
    unpack::sweep(&control.data_dir.join("trees"));
    control.logs.end_deletions();
    builds::resume(&control).await;
    git::start(&control)?;
    platform::start(&control)?;
    tokio::spawn(gateway_link::run(control.clone()));
    tokio::spawn(gateway_link::keep_bans(control.clone()));
    tokio::spawn(logs::run(control.clone()));
    tokio::spawn(controller::run(control.clone()));
    tokio::spawn(docker::watch(control.clone()));
    tokio::spawn(disk::run(control.clone()));
    tokio::spawn(snapshots::run(control.clone()));
    tokio::spawn(images::run(control.clone()));
    tokio::spawn(images::health::run(control.clone()));
    tokio::spawn(images::watch::run(control.clone()));
    tokio::spawn(images::pushed::resume(control.clone()));
    tokio::spawn(certs::issuer::run(control.clone()));
    let api_is_tcp = setup.api_is_tcp;
    tokio::select! {
        served = http::serve(control, api, api_is_tcp) => served,
        () = terminated() => Ok(()),
    }
}

/// The kernel's own name for this boot (random(4)).
fn boot_id() -> Vec<u8> {
    std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

impl Control {
    /// Remembers in which boot we are.
    fn note_boot(&self) {
        let path = self.data_dir.join("control").join("boot");
        if let Err(error) = hutong_runtime::paths::atomic_write(&path, &boot_id(), 0o600) {
            tracing::warn!("{}: {error}", path.display());
        }
    }
}

async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    // Ctrl-C reaches the whole terminal; it is the warden's to decide when we end.
    let _interrupt = signal(SignalKind::interrupt());
    match signal(SignalKind::terminate()) {
        Ok(mut signal) => {
            signal.recv().await;
        }
        Err(_) => std::future::pending().await,
    }
}
