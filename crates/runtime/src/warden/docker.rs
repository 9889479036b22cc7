//! The Docker driver as a child: given its socket, and what it needs of the host, which is little enough to be
//! listed here. It can do anything by way of the engine; this keeps it from having to.

use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hutong_core::name::is_digest;
use hutong_core::spec::links;
use hutong_ipc::channel;
use hutong_ipc::docker::{self, Ask, Prepared, Setup, Told};
use hutong_ipc::shim::APP_UID;
use hutong_ipc::warden::Tree;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::requests::{RESTORING, SPOOL_BYTES, checked_app, checked_instance, data_of_others};
use super::{Warden, bind_unix, lock};
use crate::disks::Unready;
use crate::trees::Data;
use crate::{launch, snapshots, sys, trees};

/// Sends the driver its setup and answers it from then on.
pub fn set_up(warden: &Warden, line: UnixStream) -> Result<(), String> {
    let settings = warden.config.settings.docker.as_ref();
    let settings = settings.ok_or("no engine is configured")?;
    let control = warden.ids().map(|(control, _)| control);
    let listener = bind_unix(&warden.layout.docker_socket(), 0o600, control)?;
    let gateway = warden.ids().map(|(_, gateway)| gateway);
    let callers = bind_unix(&warden.layout.links_socket(), 0o600, gateway)?;
    let uid = lock(&warden.uids).docker();
    // Who may use the socket is its group; while there is none, the driver has no way to it, and begins again.
    let group = std::fs::metadata(&settings.socket).map_or(uid, |found| found.gid());
    let setup = Setup {
        socket: settings.socket.clone(),
        folder: warden.layout.docker().to_string_lossy().into_owned(),
        tag: warden.layout.tag.clone(),
        server: format!("{}-{:016x}", warden.layout.tag, lock(&warden.uids).server()),
        drop_to: warden.root.then_some((uid, uid, group)),
        control_uid: control.unwrap_or_else(sys::effective_uid),
        gateway_uid: gateway.unwrap_or_else(sys::effective_uid),
        spool_bytes: SPOOL_BYTES,
        seccomp: crate::seccomp::docker_profile(),
        pool: settings.pool.clone(),
        labels: settings.labels.then_some(docker::Labels {
            expose_by_default: settings.expose_by_default,
        }),
    };
    channel::send(&line, &setup, &[listener.as_fd(), callers.as_fd()])
        .map_err(|error| error.to_string())?;
    let Some(warden) = warden.me.upgrade() else {
        return Err("the server ends".into());
    };
    std::thread::Builder::new()
        .stack_size(512 << 10)
        .spawn(move || serve(&warden, &line))
        .map(drop)
        .map_err(|error| error.to_string())
}

fn serve(warden: &Arc<Warden>, line: &UnixStream) {
    while let Ok(Some((ask, _))) = channel::receive::<Ask>(line) {
        let sent = match answer(warden, ask) {
            Ok((told, files)) => {
                let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
                channel::send(line, &told, &fds)
            }
            Err(reason) => channel::send(line, &Told::Refused(reason), &[]),
        };
        if sent.is_err() {
            return;
        }
    }
}

/// From here up ids are given to apps and to our own processes, and stand for nobody of an image.
const FIRST_OWN: u32 = 0x7000_0000;

type Answer = (Told, Vec<std::fs::File>);

fn answer(warden: &Warden, ask: Ask) -> Result<Answer, String> {
    match ask {
        Ask::Spool { instance } => {
            checked_instance(&instance)?;
            let spool = warden.layout.spool();
            let owner = warden.ids().map(|(control, _)| control);
            let open = |half: &str| {
                let path = spool.join(format!("{instance}.{half}"));
                launch::open_spool(&path, true, owner).map_err(|error| error.to_string())
            };
            Ok((Told::Spool, vec![open("a")?, open("b")?]))
        }
        Ask::Examine {
            instance,
            container,
        } => {
            checked_instance(&instance)?;
            let pids = processes_of(&container)?;
            let mut left = 1 << 20;
            let evidence = super::evidence::examine(&instance, &pids, &mut left);
            Ok((Told::Evidence(evidence), Vec::new()))
        }
        Ask::Listen {
            container,
            pid,
            links,
        } => Ok((Told::Listening, listen(&container, pid, links)?)),
        Ask::End { container, pid } => {
            end(&container, pid)?;
            Ok((Told::Done, Vec::new()))
        }
        Ask::Prepare {
            app,
            tree,
            user,
            data,
            egress,
            quota,
            listed,
        } => {
            checked_app(&app)?;
            let _making = warden.making.read();
            let base = warden
                .uid_base(&app)?
                .ok_or("containers need a server that is root")?;
            let own = (base + APP_UID, base + APP_UID);
            if user.is_some_and(|(uid, gid)| uid >= FIRST_OWN || gid >= FIRST_OWN) {
                return Err("the image's user is one of ours; set `user = \"app\"`".into());
            }
            let tree = tree
                .map(|tree| safe_copy(warden, &app, &tree))
                .transpose()?;
            // Before there is anything to keep in.
            warden.ensure_egress()?;
            let resolver = lock(&warden.network).as_ref().map(|network| match listed {
                true => network.listed_resolver().octets(),
                false => network.gateway().octets(),
            });
            let folder = warden.layout.app_data().join(&app);
            let mut note = None;
            if data && snapshots::is_restoring(&app) {
                return Ok((Told::Later(RESTORING.into()), Vec::new()));
            }
            if data {
                note = match warden.ensure_disk(&app, quota) {
                    Ok(note) => note,
                    Err(Unready::Later(why)) => return Ok((Told::Later(why), Vec::new())),
                    Err(Unready::Failed(why)) => return Err(why),
                };
                let (uid, gid) = user.unwrap_or(own);
                // A fresh one is the host's root's.
                let made = trees::make_data(&folder, Some((uid, gid)), |id| id != 0)
                    .map_err(|error| format!("cannot make /data: {error}"))?;
                if let Data::Others(id) = made
                    && uid != 0
                {
                    let inside = |id: u32| if id == own.0 { APP_UID } else { id };
                    return Err(data_of_others(inside(uid), inside(id)));
                }
            }
            let text = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
            let prepared = Prepared {
                runs_as: user.unwrap_or(own),
                tree: tree.map(text),
                data: data.then(|| text(folder)),
                resolver: resolver.filter(|_| egress),
                note,
            };
            Ok((Told::Prepared(prepared), Vec::new()))
        }
        Ask::Fence {
            bridge,
            network,
            list,
            again,
        } => {
            warden.fence_containers(&bridge, &network, &list, again)?;
            Ok((Told::Done, Vec::new()))
        }
    }
}

/// A tree as containers may have it: the engine follows links as root, and trees are control's to change. So it is copied,
/// once, to where only root writes; no link is followed on the way.
fn safe_copy(warden: &Warden, app: &str, tree: &Tree) -> Result<std::path::PathBuf, String> {
    let Tree::Source { digest } = tree else {
        return Err("containers have no built trees".into());
    };
    let source = trees::locate(&warden.layout, app, tree)?;
    let folder = warden.layout.mounts();
    let kept = folder.join(digest);
    let failed = |error: std::io::Error| format!("cannot copy the app's folder: {error}");
    let _one = lock(&warden.preparing);
    forget_copies(warden);
    if kept.is_dir() {
        return Ok(kept);
    }
    let fresh = folder.join(format!("{}{digest}", trees::GONE));
    trees::delete(&fresh).map_err(failed)?;
    if let Err(error) = trees::copy(&source, &fresh, None) {
        let _ = trees::delete(&fresh);
        return Err(failed(error));
    }
    // On disk before its name says that it is there.
    let opened = std::fs::File::open(&fresh).map_err(failed)?;
    rustix::fs::syncfs(opened).map_err(|error| failed(error.into()))?;
    std::fs::rename(&fresh, &kept).map_err(failed)?;
    Ok(kept)
}

/// Copies of trees that control has thrown away: it keeps those of what runs.
fn forget_copies(warden: &Warden) {
    let copies = std::fs::read_dir(warden.layout.mounts())
        .into_iter()
        .flatten()
        .flatten();
    for entry in copies {
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_digest(&name) && !warden.layout.trees().join(&name).is_dir() {
            let _ = trees::delete(&entry.path());
        }
    }
}

/// The processes in a container's cgroup.
fn processes_of(container: &str) -> Result<Vec<i32>, String> {
    if !is_digest(container) {
        return Err("not a container".into());
    }
    let all = std::fs::read_dir("/proc").map_err(|error| error.to_string())?;
    let pids = all
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(pids.filter(|pid| is_in(*pid, container)).collect())
}

fn is_in(pid: i32, container: &str) -> bool {
    let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let names = [
        format!("/{container}"),
        format!("/docker-{container}.scope"),
    ];
    let is_of = |line: &str| names.iter().any(|name| line.ends_with(name.as_str()));
    cgroups.lines().any(is_of)
}

/// SIGKILL to a process, if it is in the container's cgroup.
fn end(container: &str, pid: i32) -> Result<(), String> {
    if !is_digest(container) {
        return Err("not a container".into());
    }
    let pid = Pid::from_raw(pid).filter(|pid| pid.as_raw_nonzero().get() > 1);
    let pid = pid.ok_or("not a process")?;
    let process = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| error.to_string())?;
    // Asked behind pidfd_open: the number may have become another's before it.
    if !is_in(pid.as_raw_nonzero().get(), container) {
        return Err("not a process of that container".into());
    }
    pidfd_send_signal(process, Signal::KILL).map_err(|error| error.to_string())
}

/// Listens in a container's network, at the addresses of so many links.
fn listen(container: &str, pid: i32, count: usize) -> Result<Vec<std::fs::File>, String> {
    if !is_digest(container) || pid <= 1 || count > links::MAX_LINKS {
        return Err("not a container".into());
    }
    let failed = |error: std::io::Error| error.to_string();
    let network = std::fs::File::open(format!("/proc/{pid}/ns/net")).map_err(failed)?;
    // Asked behind open: the number may have become another's before it.
    if !is_in(pid, container) {
        return Err("not a process of that container".into());
    }
    let own = std::fs::metadata("/proc/self/ns/net").map_err(failed)?;
    if network.metadata().map_err(failed)?.ino() == own.ino() {
        return Err("a container without a network of its own".into());
    }
    let bind = move || -> std::io::Result<Vec<std::fs::File>> {
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
        let addresses = (0..count).map(|index| Ipv4Addr::from(links::address(index)));
        addresses
            .map(|address| TcpListener::bind((address, links::PORT)))
            .map(|bound| bound.map(|socket| std::os::fd::OwnedFd::from(socket).into()))
            .collect()
    };
    // A thread of its own, which ends there: nobody else of us changes networks.
    let thread = std::thread::Builder::new().stack_size(128 << 10);
    let bound = thread.spawn(bind).map_err(failed)?.join();
    let bound = bound.map_err(|_| "the thread that listens failed")?;
    bound.map_err(|error| format!("cannot listen for links: {error}"))
}

/// Has the driver end and remove every container and network of ours, and waits for it.
pub fn stop_all(warden: &Warden, patience: Duration) {
    let deadline = Instant::now() + patience;
    let ask = |request: &docker::Request| -> std::io::Result<docker::Answer> {
        let line = UnixStream::connect(warden.layout.docker_socket())?;
        line.set_read_timeout(Some(patience))?;
        channel::call(&line, request, &[]).map(|(answer, _)| answer)
    };
    let sweep = docker::Request::Sweep {
        apps: Vec::new(),
        wait: true,
    };
    loop {
        // Networks go when nobody is in them any more.
        let swept = matches!(ask(&sweep), Ok(docker::Answer::Done));
        let left = match ask(&docker::Request::List) {
            Ok(docker::Answer::Instances(list)) => list.len(),
            _ => usize::MAX,
        };
        if swept && left == 0 {
            let _ = ask(&sweep);
            return;
        }
        if Instant::now() > deadline {
            tracing::warn!("containers may run on: the Docker engine does not answer");
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
