//! The warden: the only process that is root. It holds the listening sockets, spawns and restarts
//! control, gateway and resolver, and answers typed requests of control ([`requests`]). It parses
//! nothing that a visitor or an app sent.

mod adopt;
mod children;
mod docker;
mod evidence;
mod images;
mod leaks;
mod lists;
mod requests;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use hutong_ipc::warden::{ServerSettings, Wanted};

use crate::cgroup::Cgroups;
use crate::egress::{self, Network};
use crate::instances::Instances;
use crate::paths::Layout;
use crate::uids::Uids;
use crate::{disks, doctor, launch, processes, seccomp, sys};

use children::{Children, Role};

/// How the server listens and where it keeps things; validated by the command line.
#[derive(Clone, Debug)]
pub struct Config {
    pub data_dir: PathBuf,
    pub http: SocketAddr,
    pub https: Option<SocketAddr>,
    pub api: Api,
    pub workers: usize,
    /// Walls that the owner accepts to be without.
    pub accept_missing: Vec<String>,
    /// Stop the apps when the server is stopped; and leave nothing of them.
    pub stop_apps: bool,
    pub settings: ServerSettings,
}

#[derive(Clone, Debug)]
pub enum Api {
    Unix(Option<PathBuf>),
    Tcp(SocketAddr),
}

/// What every thread of the warden shares.
struct Warden {
    /// For threads that it starts.
    me: std::sync::Weak<Warden>,
    config: Config,
    layout: Layout,
    cgroups: Cgroups,
    instances: Instances,
    shim: OwnedFd,
    seccomp: Vec<u64>,
    uids: Mutex<Uids>,
    network: Mutex<Option<Network>>,
    /// Locked before `network`, by whoever needs both.
    lists: Mutex<egress::lists::Lists>,
    children: Mutex<Children>,
    /// The one process that may ask: control, ours or that of the warden before us.
    control: Mutex<Option<adopt::OnRecord>>,
    /// Shims that this process started and has to reap.
    shims: Mutex<Vec<i32>>,
    /// Launches that are not on record yet.
    launching: Mutex<Vec<hutong_ipc::warden::Instance>>,
    /// Read by whoever makes something of an app's, written by who looks for leaks.
    making: std::sync::RwLock<()>,
    /// Whether images' layers can be stacked here, once it was tried.
    stacks: Mutex<Option<bool>>,
    /// Held while a build's folder is made.
    preparing: Mutex<()>,
    /// Held while a build's result is looked at and kept: asked twice, the second waits for the first.
    keeping: Mutex<()>,
    /// Instances being started: their address on the egress network is taken.
    starting: Mutex<Vec<u16>>,
    root: bool,
    /// Where the program lies that was started; another may be put there.
    program: PathBuf,
    ending: AtomicBool,
    /// Requests are refused: a newer program is about to take this process over.
    replacing: AtomicBool,
    under_way: AtomicUsize,
    connections: AtomicUsize,
}

/// A poisoned lock means another thread panicked between two whole states; ours are.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Runs until SIGTERM, SIGINT or SIGHUP. `ready` is told how the server is reached, once it serves.
pub fn run(config: Config, ready: impl FnOnce(&Ready)) -> Result<(), String> {
    sys::leave_no_descriptor_to_children();
    sys::notice_children();
    sys::raise_file_limit();
    // What we and our children make has the mode that is asked for, whoever started us.
    rustix::process::umask(rustix::fs::Mode::WGRP | rustix::fs::Mode::WOTH);
    // Before any thread exists, so that all inherit the mask.
    let signals = sys::signals(&[
        libc::SIGCHLD,
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGHUP,
        libc::SIGUSR2,
    ])
    .map_err(|error| error.to_string())?;
    fs::create_dir_all(&config.data_dir)
        .map_err(|error| format!("{}: {error}", config.data_dir.display()))?;
    let layout = Layout::new(&config.data_dir)
        .map_err(|error| format!("{}: {error}", config.data_dir.display()))?;
    let root = sys::effective_uid() == 0;
    let cgroups = Cgroups::find(&format!("hutong-{}", layout.tag));
    let walls = doctor::examine(&cgroups);
    check_walls(&walls, root, &config.accept_missing)?;

    let state = layout.warden_state();
    fs::create_dir_all(&state).map_err(|error| format!("{}: {error}", state.display()))?;
    let _lock = lock_server(&layout)?;
    let uids = Uids::open(&state)?;
    layout
        .create(root.then(|| (uids.control(), uids.gateway(), uids.docker())))
        .map_err(|error| format!("cannot lay out {}: {error}", layout.data.display()))?;
    let shim = launch::shim_program().map_err(|error| format!("cannot hold the shim: {error}"))?;
    let seccomp = seccomp::program()?;
    let program = program_on_disk()?;
    let warden = Arc::new_cyclic(|me| Warden {
        me: me.clone(),
        instances: Instances::new(layout.clone(), cgroups.clone(), uids.server()),
        shim,
        seccomp,
        uids: Mutex::new(uids),
        network: Mutex::new(None),
        lists: Mutex::default(),
        children: Mutex::new(Children::default()),
        control: Mutex::new(None),
        shims: Mutex::new(Vec::new()),
        launching: Mutex::new(Vec::new()),
        making: std::sync::RwLock::new(()),
        stacks: Mutex::new(None),
        preparing: Mutex::new(()),
        keeping: Mutex::new(()),
        starting: Mutex::new(Vec::new()),
        root,
        program,
        ending: AtomicBool::new(false),
        replacing: AtomicBool::new(false),
        under_way: AtomicUsize::new(0),
        connections: AtomicUsize::new(0),
        cgroups,
        layout,
        config,
    });
    // Until it has a successor.
    *lock(&warden.control) = adopt::on_record(&warden, children::Role::Control).pop();
    warden.instances.end_strangers();
    warden.instances.end_unfinished();
    crate::disks::sweep(&warden.layout);
    crate::snapshots::sweep(&warden.layout);
    warden.instances.sweep();
    {
        // They may be our children: this process may have been an older program a moment ago.
        let live = warden.instances.live();
        lock(&warden.shims).extend(live.iter().map(|record| record.pid));
    }
    // Before anybody can ask for a way out.
    let uses_egress = warden.instances.all().iter().any(|r| r.egress.is_some());
    let has_engine = warden.config.settings.docker.is_some();
    if root && !uses_egress && !has_engine && !egress::has_containers(&warden.layout.tag) {
        crate::egress::remove_leftovers(&warden.layout.tag);
    }
    warden.serve_requests()?;
    lock(&warden.children).start_all(&warden)?;
    let live = warden.instances.live();
    if has_engine || live.iter().any(|record| record.egress.is_some()) {
        // Apps that outlived the last warden go on having a way out.
        if let Err(error) = warden.ensure_egress() {
            tracing::error!("the way out of running apps is broken: {error}");
        }
    }
    if root {
        warden.guard_egress()?;
    }
    let (http, https, api) = {
        let children = lock(&warden.children);
        (
            children.http_address(&warden),
            children.https_address(),
            children.api_text().to_owned(),
        )
    };
    ready(&Ready {
        http,
        https,
        api,
        missing: doctor::missing(&walls).into_iter().cloned().collect(),
        data_dir: warden.layout.data.clone(),
    });
    warden.watch(&signals);
    warden.end();
    Ok(())
}

/// How a server that just began is reached, and which walls it lacks.
pub struct Ready {
    pub http: SocketAddr,
    pub https: Option<SocketAddr>,
    pub api: String,
    pub missing: Vec<Wanted>,
    pub data_dir: PathBuf,
}

fn check_walls(walls: &[Wanted], root: bool, accepted: &[String]) -> Result<(), String> {
    // Without these no sandbox can be made at all.
    let fatal = ["root", "pid", "net", "seccomp"];
    {
        let broken = walls
            .iter()
            .find(|w| !w.stands && fatal.contains(&w.wall.as_str()));
        if let Some(wall) = broken {
            return Err(format!(
                "no sandbox can be made here: {}\n  remedy: {}",
                wall.found, wall.remedy
            ));
        }
    }
    // An ordinary user gets development mode, and is told.
    if !root {
        return Ok(());
    }
    let refused: Vec<String> = walls
        .iter()
        .filter(|wall| !wall.stands && !accepted.contains(&wall.wall))
        .map(|wall| {
            format!(
                "the wall `{}` does not stand: {}\n  remedy: {}\n  or accept it: --accept-missing={}",
                wall.wall, wall.found, wall.remedy, wall.wall
            )
        })
        .collect();
    if refused.is_empty() {
        Ok(())
    } else {
        Err(refused.join("\n"))
    }
}

/// One server per data folder: held until the process ends, however it ends.
fn lock_server(layout: &Layout) -> Result<fs::File, String> {
    let path = layout.warden_state().join("lock");
    let file = fs::File::create(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(
        |_| {
            format!(
                "another server runs on {}; stop it first, or choose another --data-dir",
                layout.data.display()
            )
        },
    )?;
    Ok(file)
}

impl Warden {
    fn ids(&self) -> Option<(u32, u32)> {
        self.root.then(|| {
            let uids = lock(&self.uids);
            (uids.control(), uids.gateway())
        })
    }

    /// Whether a process is control. Others have its user, too: gits, which read what strangers sent.
    fn is_control(&self, pid: i32) -> bool {
        let known = lock(&self.control);
        let known = known.as_ref();
        known.is_some_and(|known| known.pid == pid && known.is_alive())
    }

    /// The socket on which control asks; each connection has a thread, and there are few.
    fn serve_requests(self: &Arc<Self>) -> Result<(), String> {
        let path = self.layout.warden_socket();
        let listener = bind_unix(&path, 0o600, self.ids().map(|(control, _)| control))?;
        let warden = self.clone();
        std::thread::Builder::new()
            .stack_size(256 << 10)
            .spawn(move || requests::accept(&warden, &listener))
            .map(drop)
            .map_err(|error| error.to_string())
    }

    /// Puts the rules of the way out back when somebody flushed them, within two seconds.
    fn guard_egress(self: &Arc<Self>) -> Result<(), String> {
        let warden = self.clone();
        let look = move || {
            loop {
                std::thread::sleep(Duration::from_secs(2));
                let network = lock(&warden.network).clone();
                let has_engine = warden.config.settings.docker.is_some();
                let used =
                    || has_engine || warden.instances.all().iter().any(|r| r.egress.is_some());
                if let Some(network) = network
                    && used()
                    && !network.stands()
                {
                    tracing::warn!("the rules of the way out were gone; they are put back");
                    if let Err(error) = warden.ensure_egress() {
                        tracing::error!("apps have a way out without walls: {error}");
                    }
                }
                warden.forget_lists();
            }
        };
        std::thread::Builder::new()
            .stack_size(256 << 10)
            .spawn(look)
            .map(drop)
            .map_err(|error| error.to_string())
    }

    /// Reaps and restarts until told to end.
    fn watch(self: &Arc<Self>, signals: &OwnedFd) {
        while !self.ending.load(Ordering::Relaxed) {
            let pause = lock(&self.children).next_restart();
            // Never long: a signal that got lost must not stop supervision.
            let pause = pause.min(Duration::from_secs(5));
            sys::poll(&[signals.as_raw_fd()], pause.as_millis() as i32);
            while let Some(signal) = sys::next_signal(signals) {
                match signal {
                    libc::SIGTERM | libc::SIGINT | libc::SIGHUP => {
                        self.ending.store(true, Ordering::Relaxed);
                    }
                    libc::SIGUSR2 => {
                        let Err(reason) = self.replace();
                        tracing::error!("the server goes on as it was: {reason}");
                    }
                    _ => {}
                }
            }
            lock(&self.children).reap();
            if self.reap_shims() {
                self.instances.live();
            }
            if !self.ending.load(Ordering::Relaxed) {
                lock(&self.children).restart_due(self);
            }
        }
    }

    /// Becomes the program that now lies where ours was, with the same arguments. Gateway, control and
    /// shims go on; the new program takes them over as those of a killed warden ([`adopt`]).
    fn replace(&self) -> Result<std::convert::Infallible, String> {
        let path = self.program.clone();
        check_program(&path)?;
        self.replacing.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + UNDER_WAY;
        let is_busy = || self.under_way.load(Ordering::SeqCst) > 0 || disks::is_busy();
        while is_busy() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        if disks::is_busy() {
            // What works on them would end with us.
            self.replacing.store(false, Ordering::SeqCst);
            return Err("the disk of an app is being made or grown: try again later".into());
        }
        let mut arguments = std::env::args_os();
        let mut command = std::process::Command::new(&path);
        if let Some(name) = arguments.next() {
            std::os::unix::process::CommandExt::arg0(&mut command, name);
        }
        let error = std::os::unix::process::CommandExt::exec(command.args(arguments));
        // Which `exec` had set to its default.
        sys::ignore_broken_pipes();
        self.replacing.store(false, Ordering::SeqCst);
        Err(format!("{}: {error}", path.display()))
    }

    /// True if one ended.
    fn reap_shims(&self) -> bool {
        let mut shims = lock(&self.shims);
        let before = shims.len();
        shims.retain(|pid| sys::reap(*pid).is_none());
        shims.len() != before
    }

    fn end(&self) {
        if self.config.stop_apps {
            // Control first: it would start again what we stop.
            lock(&self.children).stop(Role::Control);
            self.stop_apps();
        }
        lock(&self.children).stop_all();
        for socket in [
            self.layout.warden_socket(),
            self.layout.gateway_socket(),
            self.layout.docker_socket(),
            self.layout.links_socket(),
        ] {
            let _ = fs::remove_file(socket);
        }
        if let Some(path) = lock(&self.children).api_path() {
            let _ = fs::remove_file(path);
        }
        if self.instances.all().is_empty() && !egress::has_containers(&self.layout.tag) {
            if self.root {
                crate::disks::release_all(&self.layout);
                crate::egress::remove_leftovers(&self.layout.tag);
            }
            self.cgroups.remove_all();
            let _ = fs::remove_dir_all(&self.layout.run);
        }
    }

    /// SIGTERM to every app, SIGKILL after five seconds.
    fn stop_apps(&self) {
        let patience = Duration::from_secs(5);
        for record in self.instances.live() {
            let client = crate::client::WardenClient::new(&self.layout.run);
            let _ = crate::client::Driver::stop(&client, &record.instance, patience);
        }
        if self.config.settings.docker.is_some() {
            docker::stop_all(self, patience + Duration::from_secs(5));
        }
        let deadline = Instant::now() + patience + Duration::from_secs(1);
        loop {
            self.reap_shims();
            let live = self.instances.live();
            if live.is_empty() {
                return;
            }
            if Instant::now() > deadline {
                for record in live {
                    self.instances.kill(&record.instance);
                }
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// How long a replaced warden waits for requests that it works on; a launch takes 20 seconds at most.
const UNDER_WAY: Duration = Duration::from_secs(20);

/// Where our own program lies, or what was put there since.
fn program_on_disk() -> Result<PathBuf, String> {
    let link = fs::read_link("/proc/self/exe").map_err(|error| error.to_string())?;
    let text = link.to_string_lossy();
    // The kernel's words for a file that was replaced or removed.
    Ok(text
        .strip_suffix(" (deleted)")
        .map_or(link.clone(), PathBuf::from))
}

/// A program that cannot even be run must not take the server's place.
fn check_program(path: &std::path::Path) -> Result<(), String> {
    let mut child = std::process::Command::new(path)
        .args(["internal", "ready"])
        .env_clear()
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .map_err(|error| format!("{} cannot be run: {error}", path.display()))?;
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => {
                return Err(format!("{} is no working hutong: {status}", path.display()));
            }
            _ if Instant::now() > deadline => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{} does not answer", path.display()));
            }
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// A listening unix socket with mode and owner, in place of one that a killed server left.
fn bind_unix(
    path: &std::path::Path,
    mode: u32,
    owner: Option<u32>,
) -> Result<UnixListener, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    match fs::symlink_metadata(path) {
        Ok(found) if std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
            fs::remove_file(path).map_err(failed)?;
        }
        Ok(_) => return Err(format!("{} is there already and no socket", path.display())),
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)?;
    if let Some(uid) = owner {
        chown(path, Some(uid), None).map_err(failed)?;
    }
    Ok(listener)
}

/// `count` listeners that share one port (SO_REUSEPORT), one for each worker.
fn bind_http(address: SocketAddr, count: usize) -> Result<Vec<TcpListener>, String> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
    let failed = |error: rustix::io::Errno| {
        format!(
            "cannot listen on {address}: {}",
            std::io::Error::from(error)
        )
    };
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let mut address = address;
    let mut listeners = Vec::new();
    for _ in 0..count {
        let socket =
            rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .map_err(failed)?;
        sockopt::set_socket_reuseaddr(&socket, true).map_err(failed)?;
        sockopt::set_socket_reuseport(&socket, true).map_err(failed)?;
        rustix::net::bind(&socket, &address).map_err(failed)?;
        rustix::net::listen(&socket, 4096).map_err(failed)?;
        let listener = TcpListener::from(socket);
        // Port 0: the others take the port that the first one got.
        address = listener.local_addr().map_err(|error| error.to_string())?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Whether something else already listens there: SO_REUSEPORT would let us share it silently.
fn port_is_taken(address: SocketAddr) -> bool {
    address.port() != 0 && TcpListener::bind(address).is_err()
}

fn memory_of(pid: i32) -> u64 {
    processes::pss(pid)
}
