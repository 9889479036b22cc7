//! The Docker driver: runs apps from images in containers of the engine that is there. A process of its own, the only
//! one that may use the engine's socket, because that is as good as being root. Like the warden it takes names and
//! digests from control and no path; what it needs of the host it asks the warden for.
//!
//! Start at [`main`], then [`engine`] (what runs, and its output), [`create`] (what a container may do), [`network`].
//! A container is ours by its labels; nothing without them is touched, and only [`foreign`] looks at it. The engine may be
//! slow, hang or be restarted at any moment, so no answer to control waits for it, but for fetching images.

mod build;
mod create;
mod engine;
mod exec;
mod foreign;
mod images;
mod links;
mod network;
mod position;
mod serve;
mod usage;

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;

use hutong_ipc::channel;
use hutong_ipc::docker::Setup;

/// The process's main. `line` is its standard input; `drop_privileges` gets (uid, gid, groups) before any thread is
/// started.
pub fn main(
    line: &UnixStream,
    drop_privileges: impl FnOnce(u32, u32, &[u32]) -> std::io::Result<()>,
) -> Result<(), String> {
    let (setup, fds): (Setup, Vec<OwnedFd>) = channel::receive(line)
        .map_err(|error| error.to_string())?
        .ok_or("the warden went away")?;
    let mut fds = fds.into_iter();
    let mut take = || fds.next().ok_or("a socket is missing");
    let (listener, callers) = (take()?, take()?);
    if let Some((uid, gid, group)) = setup.drop_to {
        drop_privileges(uid, gid, &[group])
            .map_err(|error| format!("cannot drop privileges: {error}"))?;
    }
    let warden = line.try_clone().map_err(|error| error.to_string())?;
    let [listener, callers] = [listener, callers].map(UnixListener::from);
    for socket in [&listener, &callers] {
        let set = socket.set_nonblocking(true);
        set.map_err(|error| error.to_string())?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(4)
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let listener = tokio::net::UnixListener::from_std(listener);
        let listener = listener.map_err(|error| error.to_string())?;
        let callers = tokio::net::UnixListener::from_std(callers);
        let callers = callers.map_err(|error| error.to_string())?;
        let engine = Rc::new(engine::Engine::new(setup, warden)?);
        tokio::task::spawn_local(engine.clone().keep_up());
        tokio::task::spawn_local(links::run(engine.clone(), callers));
        tokio::task::spawn_local(engine.clone().keep_foreign());
        serve::run(&engine, &listener).await
    })
}
