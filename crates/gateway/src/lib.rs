//! The data plane: every visitor's request. Serves from the last snapshot that control published, and
//! goes on when control is gone. It never opens the store, asks nobody for leave, and holds no secret.
//!
//! Start at [`main`], then [`worker`] (a connection), [`visitor`] (its protocol), [`pipeline`] (a request,
//! stage by stage, with the reason for the order), [`table`] (what is served), [`target`] (an instance),
//! [`upstream`] (its protocol).

mod access;
mod activity;
mod admin;
mod balance;
mod buffers;
mod compress;
mod control_line;
mod cookies;
mod date;
mod files;
mod https;
mod io;
mod limits;
mod links;
mod pages;
mod pipeline;
mod probe;
mod proxy;
mod queue;
mod retries;
mod standing;
mod stats;
mod status;
mod table;
mod target;
mod tls;
mod trial;
mod upstream;
mod visitor;
mod worker;

use std::fs::File;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hutong_ipc::channel;
use hutong_ipc::spool::Writer;
use hutong_ipc::warden::GatewaySetup;
use tokio::sync::{Notify, watch};

use hutong_core::networks::Networks;

use limits::Limits;
use table::Table;
use tls::Tls;

/// A gateway's life, as its workers see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Phase {
    Serving,
    /// Another gateway took our sockets over: nothing new is accepted, and each connection is closed
    /// with the next answer it gets. An idle one stays open: its visitor may be about to ask.
    Draining,
    /// Idle connections are closed, requests under way have a few seconds.
    Ending,
}

/// How long a replaced gateway waits for its visitors.
const DRAIN: Duration = Duration::from_secs(30);

/// What all threads share.
struct Shared {
    table: ArcSwap<Table>,
    tls: Tls,
    /// The table's version: requests that wait for another table wait on this.
    version: watch::Sender<u64>,
    /// Poked when a draining target may have finished.
    drained: Notify,
    phase: watch::Sender<Phase>,
    /// Not serving any more, for every request to see without a lock.
    closing: AtomicBool,
    /// Where HTTPS arrives, if it does.
    https_port: Option<u16>,
    data_dir: PathBuf,
    run_dir: PathBuf,
    control_uid: u32,
    limits: Limits,
    /// Proxies before us whose word counts.
    trusted: Networks,
    /// Connections of one address at once; 0 for any number.
    max_connections_per_ip: u32,
    /// They begin each connection with who the visitor is.
    proxy_protocol: bool,
    began: Instant,
    /// Visitors' connections that are open.
    connections: AtomicU64,
    /// Those of addresses that had enough already.
    refused_connections: AtomicU64,
    /// Bans on their way to control, with the app.
    banned: Banned,
    /// Sleeping apps that somebody asks for, on their way to control.
    wanted: tokio::sync::mpsc::Sender<String>,
}

/// What workers have to tell control.
struct News {
    bans: tokio::sync::mpsc::Receiver<(String, limits::Ban)>,
    wishes: tokio::sync::mpsc::Receiver<String>,
}

type Banned = tokio::sync::mpsc::Sender<(String, limits::Ban)>;

/// The process's main. `line` is its standard input; `drop_privileges` is called with (uid, gid)
/// before any thread is started.
pub fn main(
    line: &UnixStream,
    drop_privileges: impl FnOnce(u32, u32) -> std::io::Result<()>,
) -> Result<(), String> {
    let (setup, fds): (GatewaySetup, Vec<OwnedFd>) = channel::receive(line)
        .map_err(|error| error.to_string())?
        .ok_or("the warden went away")?;
    let mut fds = fds.into_iter();
    let mut take = || fds.next().ok_or("a descriptor is missing");
    let control = UnixListener::from(take()?);
    let mut listeners = Vec::new();
    for _ in 0..setup.workers {
        listeners.push(TcpListener::from(take()?));
    }
    let mut secure = Vec::new();
    for _ in 0..if setup.https { setup.workers } else { 0 } {
        secure.push(TcpListener::from(take()?));
    }
    let mut spools = Vec::new();
    for _ in 0..setup.workers {
        let files = [File::from(take()?), File::from(take()?)];
        spools.push(Writer::new(files, setup.spool_bytes).map_err(|error| error.to_string())?);
    }
    let mut predecessors = Vec::new();
    for _ in 0..setup.predecessors {
        predecessors.push(take()?);
    }
    if let Some((uid, gid)) = setup.drop_to {
        drop_privileges(uid, gid).map_err(|error| format!("cannot drop privileges: {error}"))?;
    }
    raise_file_limit();
    let data_dir = PathBuf::from(setup.data_dir);
    let trusted = Networks::parse(&setup.trusted_proxies)?;
    let (banned, bans) = tokio::sync::mpsc::channel(1024);
    let (wanted, wishes) = tokio::sync::mpsc::channel(1024);
    let shared = Arc::new(Shared {
        began: Instant::now(),
        connections: AtomicU64::new(0),
        limits: Limits::new(),
        trusted,
        max_connections_per_ip: setup.max_connections_per_ip,
        refused_connections: AtomicU64::new(0),
        proxy_protocol: setup.proxy_protocol,
        banned,
        wanted,
        tls: Tls::open(&data_dir.join("keys"))?,
        https_port: secure
            .first()
            .and_then(|socket| socket.local_addr().ok())
            .map(|a| a.port()),
        table: ArcSwap::from_pointee(Table::default()),
        version: watch::channel(0).0,
        drained: Notify::new(),
        phase: watch::channel(Phase::Serving).0,
        closing: AtomicBool::new(false),
        data_dir,
        run_dir: setup.run_dir.into(),
        control_uid: setup.control_uid,
    });
    // A gateway that was restarted serves what the one before it served, from its first connection on.
    let _ = control_line::load(&shared);
    let mut workers = Vec::new();
    let mut secure = secure.into_iter();
    let count = listeners.len();
    for (index, (listener, spool)) in listeners.into_iter().zip(spools).enumerate() {
        let (shared, secure) = (shared.clone(), secure.next());
        let worker = std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || worker::run(&shared, listener, secure, spool, (index, count)))
            .map_err(|error| error.to_string())?;
        workers.push(worker);
    }
    let runtime = runtime()?;
    let local = tokio::task::LocalSet::new();
    let end = local.block_on(
        &runtime,
        control_line::run(
            shared.clone(),
            control,
            predecessors,
            News { bans, wishes },
            line,
        ),
    )?;
    if end == control_line::End::Replaced {
        shared.closing.store(true, Ordering::Relaxed);
        shared.phase.send_replace(Phase::Draining);
        runtime.block_on(async {
            let quiet = async {
                while workers.iter().any(|worker| !worker.is_finished()) {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            tokio::select! {
                () = quiet => {}
                () = control_line::follow(&shared) => {}
                () = tokio::time::sleep(DRAIN) => {}
                () = control_line::terminated() => {}
            }
        });
    }
    shared.closing.store(true, Ordering::Relaxed);
    shared.phase.send_replace(Phase::Ending);
    for worker in workers {
        let _ = worker.join();
    }
    Ok(())
}

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(16)
        .thread_keep_alive(std::time::Duration::from_secs(10))
        .build()
        .map_err(|error| error.to_string())
}

/// As many descriptors as the hard limit allows.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let _ = setrlimit(Resource::Nofile, raised);
}
