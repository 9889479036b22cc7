//! The shim: one small process per instance. It makes the instance's namespaces, forks pid 1 ([`init`]),
//! drops its own privileges, and then hands sockets of the instance's network namespace to the gateway,
//! keeps the output, and passes on stop and exec. When it dies its instance dies with it.
//!
//! Static, single-threaded, and freshly executed by the warden, so that forking and unsharing are safe.
//! Start at [`main`], then [`supervise`]. It must not open a path that the app can influence.

mod image;
mod init;
mod landlock;
mod net;
mod sandbox;
mod supervise;
mod sys;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use hutong_ipc::shim::{
    FD_CGROUPS, FD_LISTENER, FD_SPOOL_A, FD_SPOOL_B, Go, INIT_UID, Launch, Step, Wall,
};
use hutong_ipc::spool::Writer;
use hutong_ipc::{channel, fail};

fn main() {
    sys::leave_no_descriptor_to_children();
    sys::notice_children();
    let warden = UnixStream::from(sys::take_stdin());
    // Ctrl-C in the server's terminal is not meant for apps.
    sys::new_session();
    // The new root's folders must not depend on who started the server.
    sys::set_umask();
    let Err(reason) = launch(&warden);
    let _ = channel::send(&warden, &Step::Failed(reason), &[]);
    std::process::exit(1);
}

/// What a launch's failure says, and where it happened.
pub(crate) trait Context<T> {
    fn during(self, what: &str) -> Result<T, String>;
}

impl<T, E: std::fmt::Display> Context<T> for Result<T, E> {
    fn during(self, what: &str) -> Result<T, String> {
        self.map_err(|error| format!("{what}: {error}"))
    }
}

fn launch(warden: &UnixStream) -> Result<std::convert::Infallible, String> {
    let (launch, fds): (Launch, Vec<OwnedFd>) = channel::receive(warden)
        .during("cannot read what to launch")?
        .ok_or("the warden went away")?;
    let mut fds: Vec<Option<OwnedFd>> = fds.into_iter().map(Some).collect();
    let mut take = |index: usize| {
        fds.get_mut(index)
            .and_then(Option::take)
            .ok_or_else(|| format!("descriptor {index} is missing"))
    };
    let listener = UnixListener::from(take(FD_LISTENER)?);
    let spool = [File::from(take(FD_SPOOL_A)?), File::from(take(FD_SPOOL_B)?)];
    let cgroup = launch.cgroup.then(|| take(FD_CGROUPS)).transpose()?;
    let tasks = (0..launch.tasks)
        .map(|index| take(FD_CGROUPS + usize::from(launch.cgroup) + index).map(File::from))
        .collect::<Result<Vec<File>, String>>()?;
    let spool = Writer::new(spool, launch.spool_bytes).during("cannot use the spool")?;

    fail::point("begin");
    // While this process has the host's /proc and pids.
    let owner = launch.root.as_ref().and_then(|root| root.owner);
    let mapping = match (owner, launch.uid_base) {
        (Some(owner), Some(base)) => {
            Some(sys::id_mapping(owner, base).during("cannot map the image's ids")?)
        }
        _ => None,
    };
    make_namespaces(&launch)?;
    fail::point("namespaces");
    if !launch.without.contains(&Wall::Net) {
        net::loopback_up().during("cannot bring the loopback interface up")?;
        net::allow_low_ports();
    }
    if let Some(egress) = &launch.egress {
        channel::send(warden, &Step::Namespaces, &[]).during("the warden went away")?;
        wait_go(warden)?;
        net::configure(egress).during("cannot configure the network interface")?;
    }

    // Before the app runs: none of its own programs can have taken the address.
    let links = net::listen_for_links(&launch)?;

    let pipe = || sys::pipe().during("cannot make a pipe");
    let (stdout, app_stdout) = pipe()?;
    let (stderr, app_stderr) = pipe()?;
    if let Some(base) = launch.uid_base {
        // Who opens /dev/stdout opens the pipe anew, and needs the right to.
        let owner = (Some(base + launch.user.uid), Some(base + launch.user.gid));
        for pipe in [&app_stdout, &app_stderr] {
            std::os::unix::fs::fchown(pipe, owner.0, owner.1)
                .during("cannot give a pipe to the app")?;
        }
    }
    let (ours, theirs) = UnixStream::pair().during("cannot make a socketpair")?;
    let forked = match &cgroup {
        Some(cgroup) => sys::fork_into(cgroup),
        None => sys::fork(),
    };
    let child = match forked.during("cannot fork")? {
        0 => {
            fail::set_role("init");
            drop((ours, stdout, stderr, listener, spool, cgroup, links));
            init::run(&launch, tasks, mapping, theirs, [app_stdout, app_stderr])
        }
        child => child,
    };
    fail::point("forked");
    drop((theirs, app_stdout, app_stderr, cgroup, tasks, mapping));
    channel::send(warden, &Step::Child(child), &[]).during("the warden went away")?;
    wait_go(warden)?;
    init::tell(&ours, &init::Order::Go)?;
    loop {
        match init::heard(&ours)? {
            init::News::WantsIds => {
                let base = launch.uid_base.ok_or("ids are mapped in user mode")?;
                sys::write_id_maps(child, base).during("cannot map the app's ids")?;
                init::tell(&ours, &init::Order::Go)?;
            }
            init::News::Running => break,
            init::News::Failed(reason) => return Err(reason),
            other => return Err(format!("unexpected news from init: {other:?}")),
        }
    }
    if let Some(base) = launch.uid_base {
        sys::become_plain_user(base + INIT_UID).during("the shim cannot drop its privileges")?;
    }
    fail::point("running");
    channel::send(warden, &Step::Running, &[]).during("the warden went away")?;
    let (peers, socket_peers) = (launch.peers.clone(), launch.socket_peers.clone());
    let stop_signal = launch.stop_signal.unwrap_or(libc::SIGTERM);
    drop(launch);
    sys::release_memory();
    supervise::run(supervise::Instance {
        init: child,
        line: ours,
        listener,
        outputs: [Some(stdout), Some(stderr)],
        spool,
        links,
        peers,
        socket_peers,
        stop_signal,
    })
}

fn make_namespaces(launch: &Launch) -> Result<(), String> {
    let mut flags = 0;
    if !launch.without.contains(&Wall::Net) {
        flags |= libc::CLONE_NEWNET;
    }
    if !launch.without.contains(&Wall::Pid) {
        flags |= libc::CLONE_NEWPID;
    }
    if launch.uid_base.is_some() {
        return sys::unshare(flags).during("cannot make the network and pid namespaces");
    }
    let (uid, gid) = sys::own_ids();
    sys::unshare(flags | libc::CLONE_NEWUSER)
        .during("this kernel does not let an ordinary user make namespaces")?;
    sys::map_only_own_ids(uid, gid).during("cannot map the own user")
}

fn wait_go(warden: &UnixStream) -> Result<(), String> {
    match channel::receive::<Go>(warden) {
        Ok(Some((Go::On, _))) => Ok(()),
        Ok(Some((Go::Abort, _))) | Ok(None) => Err("the warden gave up".into()),
        Err(error) => Err(format!("the warden went away: {error}")),
    }
}
