//! Control, gateway and resolver as the warden's children: spawned from our own binary, given their
//! sockets over standard input, restarted with back-off, found again by a restarted warden.

use std::fs::File;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hutong_core::backoff;
use hutong_ipc::channel;
use hutong_ipc::warden::{ControlSetup, GatewaySetup, Process, ResolverSetup};

use super::adopt::{self, Listening, OnRecord};
use super::{Api, Warden, bind_http, bind_unix, docker, lists, lock, memory_of, port_is_taken};
use crate::{egress, processes, sys};

/// Visitors, or the owner, wait for our own processes: they are tried again soon, however often they end.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Listening sockets of one gateway.
const MAX_WORKERS: usize = 8;
/// Old gateways that may drain at once.
const MAX_RETIRED: usize = 4;
/// A gateway drains for 30 s and ends within 5 more.
const RETIRED_WITHIN: Duration = Duration::from_secs(40);
/// Bound of each of the two access spool files of a worker, in bytes.
const ACCESS_SPOOL: u64 = 8 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Control,
    Gateway,
    Resolver,
    Docker,
}

impl Role {
    pub fn word(self) -> &'static str {
        match self {
            Role::Control => "control",
            Role::Gateway => "gateway",
            Role::Resolver => "resolver",
            Role::Docker => "docker",
        }
    }
}

struct Child {
    role: Role,
    /// 0 while it is down.
    pid: i32,
    started: Instant,
    failures: u32,
    restart_at: Option<Instant>,
}

#[derive(Default)]
pub struct Children {
    list: Vec<Child>,
    /// Gateways before the one in `list`; each ends once its last request is answered.
    retired: Vec<OnRecord>,
    api: Option<ApiListener>,
    gateway_socket: Option<UnixListener>,
    fronts: Vec<Front>,
}

/// An address where visitors arrive, with a socket for each worker.
struct Front {
    flag: &'static str,
    wanted: SocketAddr,
    sockets: Vec<TcpListener>,
}

struct ApiListener {
    fd: OwnedFd,
    text: String,
    path: Option<PathBuf>,
}

impl Front {
    /// Sockets of a front that may have any port must agree on one.
    fn same_port(&self, address: SocketAddr) -> bool {
        let first = self
            .sockets
            .first()
            .and_then(|socket| socket.local_addr().ok());
        first.is_none_or(|first| first.port() == address.port())
    }
}

impl Children {
    pub fn start_all(&mut self, warden: &Warden) -> Result<(), String> {
        let config = &warden.config;
        let fronts = [("--http", Some(config.http)), ("--https", config.https)];
        self.fronts = fronts
            .into_iter()
            .filter_map(|(flag, wanted)| {
                Some(Front {
                    flag,
                    wanted: wanted?,
                    sockets: Vec::new(),
                })
            })
            .collect();
        let in_the_way = self.take_over(warden);
        if !in_the_way {
            // Before anything is ended: a mistaken address must not take what serves down.
            self.bind_fronts(warden)?;
        }
        // Two control planes would start the same things twice.
        adopt::end(warden, Role::Control);
        adopt::end(warden, Role::Resolver);
        adopt::end(warden, Role::Docker);
        if in_the_way {
            adopt::end(warden, Role::Gateway);
            self.retired.clear();
            self.bind_fronts(warden)?;
        }
        if self.api.is_none() {
            self.api = Some(bind_api(warden)?);
        }
        if self.gateway_socket.is_none() {
            let path = warden.layout.gateway_socket();
            let control = warden.ids().map(|(control, _)| control);
            self.gateway_socket = Some(bind_unix(&path, 0o600, control)?);
        }
        self.start(warden, Role::Gateway)?;
        if warden.config.settings.docker.is_some() {
            self.start(warden, Role::Docker)?;
        }
        self.start(warden, Role::Control)
    }

    fn bind_fronts(&mut self, warden: &Warden) -> Result<(), String> {
        let serves_on = if self.retired.is_empty() {
            ""
        } else {
            "; the gateway that runs serves on"
        };
        // Each worker has a socket of each front.
        let workers = self.fronts.iter().map(|front| front.sockets.len());
        let workers = workers.max().filter(|count| *count > 0);
        let workers = workers.unwrap_or(warden.config.workers);
        for front in self.fronts.iter_mut().filter(|f| f.sockets.is_empty()) {
            if port_is_taken(front.wanted) {
                return Err(format!(
                    "something else listens on {} already; stop it, or choose another {}{serves_on}",
                    front.wanted, front.flag
                ));
            }
            front.sockets = bind_http(front.wanted, workers)?;
        }
        Ok(())
    }

    /// Takes the sockets of what runs already, where they are those that we want. True: the gateway that runs
    /// has a port that is wanted, and its socket could not be had.
    fn take_over(&mut self, warden: &Warden) -> bool {
        self.retired = adopt::on_record(warden, Role::Gateway);
        let too_many = self.retired.len().saturating_sub(MAX_RETIRED);
        for old in &self.retired[..too_many] {
            sys::kill(old.pid, libc::SIGKILL);
        }
        // The newest that has any: gateways before it listen no more, or on the same sockets.
        let found = self.retired.iter().rev().map(adopt::listening);
        let found = found.into_iter().find(|sockets| !sockets.is_empty());
        let mut in_the_way = found.is_none() && !self.retired.is_empty();
        for socket in found.unwrap_or_default() {
            match socket {
                Listening::Tcp(listener, address) => {
                    let port =
                        |f: &&mut Front| f.wanted.port() == 0 || f.wanted.port() == address.port();
                    let ip = |f: &&mut Front| f.wanted.ip() == address.ip();
                    // Port 0 twice: as many for each as there are workers, in the order that they are kept.
                    let room =
                        |f: &&mut Front| f.sockets.len() < MAX_WORKERS && f.same_port(address);
                    let front = self.fronts.iter_mut().find(|f| ip(f) && port(f) && room(f));
                    match front {
                        Some(front) => front.sockets.push(listener),
                        None => {
                            let same = |f: &Front| f.wanted.port() == address.port();
                            in_the_way |= self.fronts.iter().any(same);
                        }
                    }
                }
                Listening::Unix(listener, path)
                    if path == warden.layout.gateway_socket() && adopt::still_there(&path) =>
                {
                    self.gateway_socket = Some(listener);
                }
                Listening::Unix(..) => {}
            }
        }
        self.take_over_api(warden);
        in_the_way
    }

    fn take_over_api(&mut self, warden: &Warden) {
        let control = adopt::on_record(warden, Role::Control);
        for found in control.iter().flat_map(adopt::listening) {
            let text = match (&found, &warden.config.api) {
                (Listening::Unix(_, path), Api::Unix(wanted)) => {
                    let wanted = wanted.clone().unwrap_or_else(|| warden.layout.api_socket());
                    let same = std::path::absolute(wanted).is_ok_and(|wanted| wanted == *path);
                    (same && adopt::still_there(path)).then(|| format!("unix:{}", path.display()))
                }
                (Listening::Tcp(_, found), Api::Tcp(wanted)) => {
                    let port = wanted.port() == 0 || found.port() == wanted.port();
                    (found.ip() == wanted.ip() && port).then(|| found.to_string())
                }
                _ => None,
            };
            if let Some(text) = text {
                let (fd, path): (OwnedFd, _) = match found {
                    Listening::Unix(listener, path) => (listener.into(), Some(path)),
                    Listening::Tcp(listener, _) => (listener.into(), None),
                };
                self.api = Some(ApiListener { fd, text, path });
            }
        }
    }

    pub fn api_text(&self) -> &str {
        self.api.as_ref().map_or("", |api| &api.text)
    }

    pub fn api_path(&self) -> Option<PathBuf> {
        self.api.as_ref()?.path.clone()
    }

    pub fn http_address(&self, warden: &Warden) -> SocketAddr {
        self.address_of("--http").unwrap_or(warden.config.http)
    }

    pub fn https_address(&self) -> Option<SocketAddr> {
        self.address_of("--https")
    }

    fn address_of(&self, flag: &str) -> Option<SocketAddr> {
        let front = self.fronts.iter().find(|front| front.flag == flag)?;
        front.sockets.first()?.local_addr().ok()
    }

    /// Spawns a child and gives it what it needs.
    pub fn start(&mut self, warden: &Warden, role: Role) -> Result<(), String> {
        // Before the process: without them it is not started, and not taken for running.
        let resolver = match role {
            Role::Resolver => Some(resolver_sockets(warden)?),
            _ => None,
        };
        let (ours, theirs) = UnixStream::pair().map_err(|error| error.to_string())?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0(format!("hutong {}", role.word()))
            .args(["internal", role.word()])
            .env_clear()
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null());
        command.envs(hutong_ipc::fail::environment());
        for key in ["HUTONG_LOG", "RUST_BACKTRACE"] {
            if let Some(value) = std::env::var_os(key) {
                command.env(key, value);
            }
        }
        let child = command
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", role.word()))?;
        hutong_ipc::fail::point("child.spawned");
        let pid = child.id() as i32;
        // Every visitor waits for it; it has no thread yet but the one.
        if role == Role::Gateway
            && let Err(error) = sys::put_first(pid)
        {
            tracing::debug!(%error, "the gateway runs like everybody else");
        }
        let failures = self.find(role).map_or(0, |child| child.failures);
        self.list.retain(|child| child.role != role);
        self.retired.retain(OnRecord::is_alive);
        let taken = |slot: &usize| self.retired.iter().any(|old| old.slot == *slot);
        let slot = (0..).find(|slot| !taken(slot)).unwrap_or(0);
        self.list.push(Child {
            role,
            pid,
            started: Instant::now(),
            failures,
            restart_at: None,
        });
        let mut record = vec![OnRecord::of(pid, slot)];
        if role == Role::Gateway {
            record.splice(0..0, self.retired.iter().cloned());
        }
        adopt::put_on_record(warden, role, &record);
        if role == Role::Control {
            *lock(&warden.control) = record.pop();
        }
        let sent = match role {
            Role::Control => self.set_up_control(warden, &ours),
            Role::Gateway => self.set_up_gateway(warden, &ours, slot),
            Role::Resolver => set_up_resolver(warden, &ours, resolver),
            Role::Docker => ours
                .try_clone()
                .map_err(|error| error.to_string())
                .and_then(|line| docker::set_up(warden, line)),
        };
        sent.map_err(|error| format!("cannot set {} up: {error}", role.word()))?;
        if role == Role::Gateway && !self.retired.is_empty() {
            retire_once_ready(ours, self.retired.clone());
        }
        Ok(())
    }

    fn set_up_control(&self, warden: &Warden, line: &UnixStream) -> Result<(), String> {
        let api = self.api.as_ref().ok_or("the API has no socket")?;
        let ids = warden.ids();
        let setup = ControlSetup {
            data_dir: warden.layout.data.to_string_lossy().into_owned(),
            run_dir: warden.layout.run.to_string_lossy().into_owned(),
            drop_to: ids.map(|(control, _)| (control, control)),
            gateway_gid: ids.map(|(_, gateway)| gateway),
            admins: vec![0, sys::effective_uid()],
            http: self.http_address(warden).to_string(),
            https: self.https_address().map(|address| address.to_string()),
            api: api.text.clone(),
            api_is_tcp: api.path.is_none(),
            workers: warden.config.workers,
            settings: warden.config.settings.clone(),
        };
        channel::send(line, &setup, &[api.fd.as_fd()]).map_err(|error| error.to_string())
    }

    fn set_up_gateway(
        &self,
        warden: &Warden,
        line: &UnixStream,
        slot: usize,
    ) -> Result<(), String> {
        let ids = warden.ids();
        let workers = self.fronts.first().map_or(0, |front| front.sockets.len());
        let predecessors: Vec<OwnedFd> = self.retired.iter().filter_map(OnRecord::pidfd).collect();
        let setup = GatewaySetup {
            data_dir: warden.layout.data.to_string_lossy().into_owned(),
            run_dir: warden.layout.run.to_string_lossy().into_owned(),
            drop_to: ids.map(|(_, gateway)| (gateway, gateway)),
            control_uid: ids.map_or(sys::effective_uid(), |(control, _)| control),
            // As many as there are sockets: one that nobody accepts from would swallow visitors.
            workers,
            https: self.fronts.len() > 1,
            spool_bytes: ACCESS_SPOOL,
            predecessors: predecessors.len(),
            trusted_proxies: warden.config.settings.trusted_proxies.clone(),
            proxy_protocol: warden.config.settings.proxy_protocol,
            max_connections_per_ip: warden.config.settings.max_connections_per_ip,
        };
        let socket = self
            .gateway_socket
            .as_ref()
            .ok_or("the gateway has no socket")?;
        let spool = access_spool(warden, slot, workers)?;
        let mut fds = vec![socket.as_fd()];
        let listeners = self.fronts.iter().flat_map(|front| front.sockets.iter());
        fds.extend(listeners.map(|listener| listener.as_fd()));
        fds.extend(spool.iter().map(|file| file.as_fd()));
        fds.extend(predecessors.iter().map(|process| process.as_fd()));
        channel::send(line, &setup, &fds).map_err(|error| error.to_string())
    }

    fn find(&self, role: Role) -> Option<&Child> {
        self.list.iter().find(|child| child.role == role)
    }

    pub fn runs(&self, role: Role) -> bool {
        self.find(role).is_some()
    }

    /// Notes which children ended, and when each is started again.
    pub fn reap(&mut self) {
        self.retired.retain(|old| {
            sys::reap(old.pid);
            old.is_alive()
        });
        for child in self.list.iter_mut().filter(|child| child.pid > 0) {
            let Some(status) = sys::reap(child.pid) else {
                continue;
            };
            if child.started.elapsed() > backoff::STEADY {
                child.failures = 0;
            }
            child.failures += 1;
            let (role, pid) = (child.role.word(), child.pid);
            tracing::warn!(role, pid, status, "ended; it is restarted");
            child.pid = 0;
            let pause = backoff::pause(child.failures).min(LONGEST_PAUSE);
            child.restart_at = Some(Instant::now() + pause);
        }
    }

    /// How long until the next restart is due; an hour if none is.
    pub fn next_restart(&self) -> Duration {
        self.list
            .iter()
            .filter_map(|child| child.restart_at)
            .map(|at| at.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
            .min()
            .unwrap_or(Duration::from_secs(3600))
    }

    pub fn restart_due(&mut self, warden: &Warden) {
        let due: Vec<Role> = self
            .list
            .iter()
            .filter(|child| child.restart_at.is_some_and(|at| at <= Instant::now()))
            .map(|child| child.role)
            .collect();
        for role in due {
            if let Err(error) = self.start(warden, role) {
                tracing::error!("{error}");
                if let Some(child) = self.list.iter_mut().find(|child| child.role == role) {
                    child.restart_at = Some(Instant::now() + Duration::from_secs(5));
                }
            }
        }
    }

    /// SIGTERM to all, SIGKILL to what stays.
    pub fn stop_all(&mut self) {
        for old in self.retired.iter().filter(|old| old.is_alive()) {
            sys::kill(old.pid, libc::SIGTERM);
        }
        self.stop_those(|_| true);
        let deadline = Instant::now() + Duration::from_secs(6);
        while !self.retired.is_empty() {
            self.reap();
            for old in self.retired.iter().filter(|_| Instant::now() > deadline) {
                sys::kill(old.pid, libc::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn stop(&mut self, role: Role) {
        self.stop_those(|other| other == role);
    }

    fn stop_those(&mut self, which: impl Fn(Role) -> bool) {
        let (mut ending, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.list)
            .into_iter()
            .partition(|child| which(child.role));
        self.list = rest;
        for child in ending.iter().filter(|child| child.pid > 0) {
            sys::kill(child.pid, libc::SIGTERM);
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        while ending.iter().any(|child| child.pid > 0) {
            for child in ending.iter_mut().filter(|child| child.pid > 0) {
                if Instant::now() > deadline {
                    sys::kill(child.pid, libc::SIGKILL);
                }
                if sys::reap(child.pid).is_some() {
                    child.pid = 0;
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn processes(&self) -> Vec<Process> {
        self.list
            .iter()
            .filter(|child| child.pid > 0)
            .map(|child| Process {
                role: child.role.word().into(),
                pid: child.pid,
                uid: processes::uid(child.pid).unwrap_or(0),
                memory_bytes: memory_of(child.pid),
                app: None,
                instance: None,
            })
            .collect()
    }
}

/// For those who may ask for every name, and for those with a list.
type ResolverSockets = [(UdpSocket, TcpListener); 2];

fn resolver_sockets(warden: &Warden) -> Result<ResolverSockets, String> {
    let network = lock(&warden.network);
    let network = network.as_ref().ok_or("the egress network is not there")?;
    network.resolver_sockets()
}

fn set_up_resolver(
    warden: &Warden,
    line: &UnixStream,
    sockets: Option<ResolverSockets>,
) -> Result<(), String> {
    let sockets = sockets.ok_or("the resolver has no sockets")?;
    let fds: Vec<_> = sockets
        .iter()
        .flat_map(|(udp, tcp)| [udp.as_fd(), tcp.as_fd()])
        .collect();
    let uid = lock(&warden.uids).resolver();
    let failed = |error: std::io::Error| error.to_string();
    // One that does not listen must not hold up who waits for our locks.
    line.set_write_timeout(Some(lists::PATIENCE))
        .map_err(failed)?;
    {
        // Nobody comes or goes between what it is told now and what it is told later.
        let mut known = lock(&warden.lists);
        let setup = ResolverSetup {
            drop_to: warden.root.then_some((uid, uid)),
            upstreams: egress::upstreams(),
            places: known.count(),
        };
        channel::send(line, &setup, &fds).map_err(failed)?;
        known
            .attach(line.try_clone().map_err(failed)?)
            .map_err(failed)?;
    }
    let line = line.try_clone().map_err(failed)?;
    let warden = warden.me.upgrade().ok_or("the server ends")?;
    std::thread::Builder::new()
        .stack_size(256 << 10)
        .spawn(move || lists::serve(&warden, &line))
        .map(drop)
        .map_err(failed)
}

fn bind_api(warden: &Warden) -> Result<ApiListener, String> {
    match &warden.config.api {
        Api::Unix(path) => {
            let path = path.clone().unwrap_or_else(|| warden.layout.api_socket());
            let path = std::path::absolute(&path).map_err(|error| error.to_string())?;
            let listener = bind_unix(&path, 0o600, None)?;
            Ok(ApiListener {
                fd: listener.into(),
                text: format!("unix:{}", path.display()),
                path: Some(path),
            })
        }
        Api::Tcp(address) => {
            let listener = TcpListener::bind(address)
                .map_err(|error| format!("cannot listen on {address}: {error}"))?;
            let address = listener.local_addr().map_err(|error| error.to_string())?;
            Ok(ApiListener {
                fd: listener.into(),
                text: address.to_string(),
                path: None,
            })
        }
    }
}

/// Two files for each worker, control's own; the gateway only gets their descriptors.
fn access_spool(warden: &Warden, slot: usize, workers: usize) -> Result<Vec<File>, String> {
    let folder = warden.layout.spool();
    let control = warden.ids().map(|(control, _)| control);
    let mut files = Vec::new();
    for worker in 0..workers {
        for half in ["a", "b"] {
            let path = folder.join(format!("access-{slot}-{worker}.{half}"));
            let file = crate::launch::open_spool(&path, true, control)
                .map_err(|error| format!("{}: {error}", path.display()))?;
            files.push(file);
        }
    }
    Ok(files)
}

/// Tells old gateways to finish what they have as soon as the new one says that it serves. Until then,
/// and if it never does, they go on: both accept from the same sockets.
fn retire_once_ready(line: UnixStream, old: Vec<OnRecord>) {
    let spawned = std::thread::Builder::new()
        .stack_size(128 << 10)
        .spawn(move || {
            if std::io::Read::read_exact(&mut &line, &mut [0]).is_ok() {
                for old in old.iter().filter(|old| old.is_alive()) {
                    sys::kill(old.pid, libc::SIGUSR1);
                }
                // One that hangs, or does not want to go, must not serve old routes for ever.
                std::thread::sleep(RETIRED_WITHIN);
                for old in old.iter().filter(|old| old.is_alive()) {
                    sys::kill(old.pid, libc::SIGKILL);
                }
            }
        });
    if let Err(error) = spawned {
        tracing::error!("cannot wait for the new gateway: {error}");
    }
}
